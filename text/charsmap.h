/* SentencePiece's compiled normalisation rules (precompiled_charsmap): a double-array trie of what is replaced, and the
 * replacements. Format: the trie's size in bytes (uint32), the trie's units (uint32 each: label or value in the low
 * bits, bit 8 "a string ends here", bit 9 and up the offset of the children), then NUL-terminated replacements, which
 * the trie's values point into; all little-endian. Every step is checked against the size: the data is not trusted.
 * Views: the bytes outlive the charsmap. */
#ifndef TEXT_CHARSMAP_H
#define TEXT_CHARSMAP_H

#include "base/buf.h"

struct charsmap {
    const uint8_t *units; /* not aligned */
    size_t n_units;
    const char *texts;
    size_t texts_len;
};

/* len 0: no rules. ERR_CORRUPT when the sizes do not fit. */
enum err charsmap_init(struct charsmap *c, const void *bytes, size_t len);
/* What replaces the beginning of s: the longest rule that matches, or the shortest. Returns the bytes it takes, or 0. */
size_t charsmap_find(const struct charsmap *c, const char *s, size_t len, bool shortest, const char **text,
                     size_t *text_len);
/* SentencePiece's normalisation without its treatment of spaces: the longest rule at each place, else the character;
 * bytes that are no UTF-8 become U+FFFD. Returns the bytes of s taken; their text is *text. */
size_t charsmap_next(const struct charsmap *c, const char *s, size_t len, const char **text, size_t *text_len);
/* The same rules as the library `tokenizers` applies them (normalizer Precompiled): a grapheme cluster of fewer than six
 * bytes that a rule begins is replaced whole, by the shortest such rule; otherwise each character of it. s is valid
 * UTF-8. */
void charsmap_graphemes(const struct charsmap *c, const char *s, size_t len, struct buf *out);

#endif
