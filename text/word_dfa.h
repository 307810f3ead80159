/* A word pattern as an automaton that reads each character once: what a backtracking matcher would find (of the
 * alternatives the first that matches), in time that is linear in what it reads. Immutable; any thread may use it. */
#ifndef TEXT_WORD_DFA_H
#define TEXT_WORD_DFA_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct word_dfa;
/* ERR_UNSUPPORTED: a pattern outside of what word_pattern.h lists, one that matches nothing at all (length 0), or one
 * that needs too many states. */
enum err word_dfa_create(const char *pattern, size_t len, struct word_dfa **out);
void word_dfa_destroy(struct word_dfa **d);
/* The length of the match at the start of s, or 0. s is valid UTF-8 and ends where the text ends. */
size_t word_dfa_match(const struct word_dfa *d, const char *s, size_t len);
/* The same at s + at, for one place after the other of one text: where an attempt read far beyond its match in vain, the
 * next one stops as soon as it is in the same state there ("\s*\n|\s{1,512}" over spaces would be quadratic). */
struct word_dfa_memo { /* zeroed for each text */
    uint32_t state;
    size_t from, to; /* places at which that state led to nothing */
};
size_t word_dfa_match_at(const struct word_dfa *d, const char *s, size_t len, size_t at, struct word_dfa_memo *memo);
/* Bytes at the start of s at which no match begins. */
size_t word_dfa_skip(const struct word_dfa *d, const char *s, size_t len);

#endif
