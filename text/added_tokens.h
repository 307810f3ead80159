/* The added tokens of a tokenizer.json: found in text by leftmost-longest match, with their flags (single_word, lstrip,
 * rstrip). Those with `normalized` are looked for in normalised text, the others before. Immutable once made. */
#ifndef TEXT_ADDED_TOKENS_H
#define TEXT_ADDED_TOKENS_H

#include "text/normalizer.h"
#include "text/trie.h"

struct added_tokens {
    const struct tokenizer_json *json;
    struct trie trie; /* text to the index in json->added */
    bool any;
};
/* The tokens whose flag `normalized` is as given; n is run over the texts of those that have it. */
enum err added_tokens_init(struct added_tokens *a, const struct vocab *v, bool normalized, const struct normalizer *n);
void added_tokens_deinit(struct added_tokens *a);

struct added_tokens_scan {
    size_t at, done; /* at: where the search goes on; done: up to where the text is given out */
};
/* The next stretch of s: *id of an added token, or TRIE_NONE for text between them. False at the end. special: control
 * tokens count; without it they are text, but still hide what begins inside them. */
bool added_tokens_next(const struct added_tokens *a, const char *s, size_t len, bool special,
                       struct added_tokens_scan *scan, size_t *from, size_t *to, uint32_t *id);

/* Where the white space that ends at `at` (and starts at `from` at the earliest) begins; where that at `at` ends. */
size_t added_tokens_space_before(const char *s, size_t at, size_t from);
size_t added_tokens_space_behind(const char *s, size_t at, size_t len);

#endif
