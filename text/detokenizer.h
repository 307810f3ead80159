/* Token ids to text as they come: whole UTF-8 characters only, stop strings held back. One per choice; state of a few
 * dozen bytes.
 *
 * The text given out in pieces is the text of all ids at once: bytes that are no UTF-8 become U+FFFD (one for each
 * longest beginning of a character), and a stop string ends the text where it is complete first; of several that end at
 * the same byte the longest counts. Held back is exactly the longest end of the text that may still become a stop
 * string. The caller bounds the number and the length of stop strings. */
#ifndef TEXT_DETOKENIZER_H
#define TEXT_DETOKENIZER_H

#include "base/buf.h"
#include "text/tokenizer.h"

struct detokenizer {
    const struct tokenizer *tok;
    struct buf held;          /* text not yet given out: what may begin a stop string */
    struct buf piece;         /* of the id at hand; keeps its memory */
    const char *const *stops; /* borrowed from the request for the detokenizer's life */
    uint32_t n_stops;
    const uint32_t *shown;    /* special ids that are text all the same (marks of a thinking part); borrowed, may be NULL */
    uint32_t n_shown;
    bool special, first, stopped;
    int stop_idx;    /* which stop string ended it, or -1 */
    uint8_t part[4]; /* the beginning of a character */
    uint8_t n_part;
};

/* The ids begin a text: the space that SentencePiece puts before a text is taken away again. For ids that continue a
 * prompt call detokenizer_continue next. */
void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, const char *const *stops, uint32_t n_stops,
                      bool special);
void detokenizer_continue(struct detokenizer *d);
void detokenizer_deinit(struct detokenizer *d);
/* Appends the text that is certain now. Returns true when a stop string was met: the text ends before it, later tokens
 * give nothing. */
bool detokenizer_push(struct detokenizer *d, uint32_t id, struct buf *out);
/* The end of the stream: what was held back (half characters become U+FFFD). */
void detokenizer_finish(struct detokenizer *d, struct buf *out);

#endif
