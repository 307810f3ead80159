/* Regular expressions as a tokenizer.json writes them (Oniguruma's Ruby syntax), carried out by automata (word_dfa.h)
 * where they can, which is linear, else by PCRE2: what the two
 * write or mean differently is translated (\s, \w, \d and \b are Unicode's; \h is a hexadecimal digit; sets inside sets
 * and && between them; {n,m}+ is a repeated repetition; ^ and $ are ends of lines). What PCRE2 then refuses is an error
 * with its words, and so is \C, which would cut characters in two. Immutable once made: any thread may use it, each with its own match data. */
#ifndef TEXT_REGEX_H
#define TEXT_REGEX_H

#include "base/err.h"
#include "text/word_dfa.h"

#include <stdbool.h>
#include <stddef.h>

struct regex;
/* pattern is UTF-8 with a NUL behind it. ERR_UNSUPPORTED names the place in it. */
enum err regex_create(const char *pattern, size_t len, struct regex **out);
void regex_destroy(struct regex **r);

struct regex_find { /* one search through texts that stand still meanwhile; the scratch memory of it */
    const struct regex *r;
    const char *text; /* the memo is about this one */
    size_t text_len;
    struct word_dfa_memo memo;
    void *md, *context, *stack; /* PCRE2's */
};
enum err regex_find_init(struct regex_find *f, const struct regex *r);
void regex_find_deinit(struct regex_find *f);
/* The first match in s[start..len), s valid UTF-8, `start` never before that of the call before for the same s: *from and *to, and *found. ERR_TOO_BIG when PCRE2 gives up. */
enum err regex_find_next(struct regex_find *f, const char *s, size_t len, size_t start, bool *found, size_t *from,
                         size_t *to);

#endif
