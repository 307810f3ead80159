/* Strings as sequences of token ids, for parameters that look at what tokens say: DRY's sequence breakers, bad words. Front thread. */
#ifndef TEXT_TOKEN_SEQUENCES_H
#define TEXT_TOKEN_SEQUENCES_H

#include "text/tokenizer.h"

/* Growing lists: ids one sequence after the other, and the length of each. */
struct token_sequences {
    struct tokens ids, lens;
};
void token_sequences_deinit(struct token_sequences *s);

/* What each id says, in one stretch of memory: made once a model. */
struct token_pieces;
enum err token_pieces_create(const struct tokenizer *t, struct token_pieces **out);
void token_pieces_destroy(struct token_pieces **p);

/* Every way in which `text` (not empty) can begin in a token: ids that hold all of it by themselves; ids that end with its beginning, followed by the tokens
 * of its rest. Appends; at most max_ids in all. ERR_TOO_BIG, ERR_NOMEM. */
enum err token_sequences_breaker(const struct token_pieces *p, const struct tokenizer *t, const char *text, size_t len, size_t max_ids,
                                 struct token_sequences *out);
/* The tokens of a word, at the beginning of a text and after a space. Appends. */
enum err token_sequences_word(const struct tokenizer *t, const char *text, size_t len, size_t max_ids, struct token_sequences *out);

#endif
