/* Token ids to text as they come: whole UTF-8 characters only, stop strings held back. One per choice; state of a few dozen bytes. */
#ifndef COORDINATOR_DETOKENIZER_H
#define COORDINATOR_DETOKENIZER_H

#include "base/buf.h"
#include "coordinator/tokenizer.h"

struct detokenizer {
    const struct tokenizer *tok;
    struct buf held;         /* bytes not yet given out: half a character, or what may begin a stop string */
    const char *const *stops; /* borrowed from the request for the detokenizer's life */
    uint32_t n_stops;
    bool special, first, stopped;
    int stop_idx;            /* which stop string ended it, or -1 */
};

void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, const char *const *stops, uint32_t n_stops, bool special);
void detokenizer_deinit(struct detokenizer *d);
/* Appends the text that is certain now. Returns true when a stop string was met: the text ends before it, later tokens give nothing. */
bool detokenizer_push(struct detokenizer *d, uint32_t id, struct buf *out);
/* The end of the stream: what was held back (half characters become U+FFFD). */
void detokenizer_finish(struct detokenizer *d, struct buf *out);

#endif
