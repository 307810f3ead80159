/* The pre_tokenizer of a tokenizer.json: text cut into the pieces inside which the model works; a step may also rewrite
 * it (ByteLevel, Metaspace). Immutable once made: any thread may use it, each with its own pieces. */
#ifndef TEXT_SPLITTER_H
#define TEXT_SPLITTER_H

#include "base/buf.h"
#include "model/tokenizer_json.h"

struct splitter_span {
    uint32_t at, len;
};
struct splitter_pieces {
    const char *text; /* borrowed, or rewritten.data */
    struct splitter_span *spans;
    size_t n, cap;
    struct splitter_span *spare; /* of the step before */
    size_t spare_cap;
    struct buf rewritten, spare_text;
    struct splitter_cut *cuts; /* of one piece */
    size_t n_cuts, cuts_cap;
};
void splitter_pieces_deinit(struct splitter_pieces *p);

struct splitter;
/* j outlives it. ERR_UNSUPPORTED names the step. */
enum err splitter_create(const struct tokenizer_json *j, struct splitter **out);
void splitter_destroy(struct splitter **s);
/* text is valid UTF-8 and shorter than 1 GiB; first: it begins the whole text. The pieces are views of p->text. */
enum err splitter_run(const struct splitter *s, const char *text, size_t len, bool first, struct splitter_pieces *p);

#endif
