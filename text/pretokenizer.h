/* Cuts text into the words inside which byte-level BPE merges, by the patterns of pretokenizers.def. A compiled
 * pre-tokeniser is immutable and may be used by any thread; the scratch memory of a call belongs to the caller. Linear in
 * the text. */
#ifndef TEXT_PRETOKENIZER_H
#define TEXT_PRETOKENIZER_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pretokenizer_flags {
    PRE_IGNORE_MERGES = 1,  /* a piece that is a token as it stands is taken whole */
    PRE_RAW = 2,            /* tokens are text as it is, not in the alphabet of bytes; missing characters are byte tokens */
    PRE_SPACE_MARK = 4,     /* spaces are U+2581 before anything else */
    PRE_WHOLE_NEWLINES = 8, /* as PRE_IGNORE_MERGES, for pieces of line feeds */
};

struct pretokenizer;
/* name: tokenizer.ggml.pre; an empty one means "default". ERR_UNSUPPORTED lists the known names. */
enum err pretokenizer_create(const char *name, size_t len, struct pretokenizer **out);
void pretokenizer_destroy(struct pretokenizer **p);
unsigned pretokenizer_flags(const struct pretokenizer *p);
/* The known names in the order of the table, NULL after the last; and the patterns of one, NULL after the last. */
const char *pretokenizer_name(size_t i);
const char *const *pretokenizer_patterns(const char *name);

/* Ends of the pieces, ascending; the last is the length of the text. Reused from call to call. */
struct pretokenizer_pieces {
    uint32_t *ends;
    size_t n, cap;
    uint32_t *spare; /* of the pattern before */
    size_t spare_cap;
};
void pretokenizer_pieces_deinit(struct pretokenizer_pieces *w);
/* len is below 4 GiB. Bytes that are no UTF-8 are pieces of their own, outside of every match. ERR_NOMEM. */
enum err pretokenizer_split(const struct pretokenizer *p, const char *text, size_t len, struct pretokenizer_pieces *w);

#endif
