/* The patterns by which tokenizers cut text into words, parsed into a program over sets of code points. A part of the
 * PCRE2 (and Oniguruma) syntax: literals, classes with ranges and \p{..}, \s \S \d, groups, (?i:..), alternation, greedy
 * quantifiers, (?!set) before a set or at the end of an alternative, $ at the end. What is not among it is refused
 * with ERR_UNSUPPORTED (regex.c gives it to PCRE2). Used while a tokenizer is made; nothing here runs on text. */
#ifndef TEXT_WORD_PATTERN_H
#define TEXT_WORD_PATTERN_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WORD_SETS_MAX = 64,
    WORD_PROGRAM_MAX = 8192,
};
/* A set of code points: ascending ranges [from, to] with gaps between them. */
struct word_set {
    uint32_t (*ranges)[2];
    size_t n, cap;
};
enum word_op {
    WORD_SET,      /* a code point of `set`, then a */
    WORD_SPLIT,    /* a, or else b: a comes first */
    WORD_LOOK_NOT, /* the next code point is none of `set`, or the text ends; then a */
    WORD_END,      /* the text ends; then a */
    WORD_MATCH,
};
struct word_inst {
    uint8_t op, set;
    uint16_t a, b;
};
struct word_pattern {
    struct word_set sets[WORD_SETS_MAX];
    size_t n_sets;
    struct word_inst *prog; /* starts at entry */
    size_t n_prog, cap;
    uint16_t entry;
    int suffix_set; /* the pattern is this set, once or more, at the end ("\s+$"); or -1 */
};

/* On an error there is nothing to free. */
enum err word_pattern_parse(const char *text, size_t len, struct word_pattern *out);
void word_pattern_deinit(struct word_pattern *p);

#endif
