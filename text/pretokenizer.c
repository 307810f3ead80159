/* See pretokenizer.h. Patterns are applied one after the other, each to the pieces that the one before it left; a piece is
 * one stretch of valid UTF-8, seen as if it stood alone (`$` and lookaheads end with it). A pattern is a word_dfa, or one
 * of two ways of grouping digits from the right, whose lookaheads reach to the end of a number, so that every digit would
 * read all that follow. */
#include "text/pretokenizer.h"

#include "base/buf.h"
#include "base/check.h"
#include "text/unicode_props.h"
#include "text/utf8.h"
#include "text/word_dfa.h"

#include <stdlib.h>
#include <string.h>

enum { STAGES_MAX = 7 };

enum pretokenizer_id {
#define PRETOKENIZER(id, flags, ...) PRE_ID_##id,
#define PRETOKENIZER_NAME(name, id)
#include "text/pretokenizers.def"
#undef PRETOKENIZER
#undef PRETOKENIZER_NAME
};
static const struct {
    unsigned flags;
    const char *patterns[STAGES_MAX + 1]; /* NULL after the last */
} kinds[] = {
#define PRETOKENIZER(id, flags, ...) {flags, {__VA_ARGS__}},
#define PRETOKENIZER_NAME(name, id)
#include "text/pretokenizers.def"
#undef PRETOKENIZER
#undef PRETOKENIZER_NAME
};
static const struct {
    const char *name;
    enum pretokenizer_id id;
} names[] = {
#define PRETOKENIZER(id, flags, ...)
#define PRETOKENIZER_NAME(name, id) {name, PRE_ID_##id},
#include "text/pretokenizers.def"
#undef PRETOKENIZER
#undef PRETOKENIZER_NAME
};

/* Digits in groups of three from the right: in every number, or in those that no letter follows. */
static const char DIGITS_ANY[] = "(?=(\\d{3})+(?!\\d))", DIGITS_WORD_END[] = "\\d{1,3}(?=(?:\\d{3})*\\b)";
struct stage {
    const char *digits;   /* one of the two, or NULL */
    struct word_dfa *dfa; /* of the pattern, or of a number */
};
struct pretokenizer {
    unsigned flags;
    size_t n;
    struct stage stages[STAGES_MAX];
};

static int find_name(const char *name, size_t len)
{
    if (len == 0)
        return find_name("default", 7);
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strlen(names[i].name) == len && memcmp(names[i].name, name, len) == 0)
            return (int)names[i].id;
    return -1;
}

static enum err unknown_name(const char *name, size_t len)
{
    struct buf known;
    buf_init(&known);
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        buf_printf(&known, "%s%s", i == 0 ? "" : " ", names[i].name);
    enum err e = err_set(ERR_UNSUPPORTED, "tokenizer.ggml.pre \"%.*s\" is not known; known: %s", (int)MIN(len, 64u),
                         name, known.data == NULL ? "" : known.data);
    buf_deinit(&known);
    return e;
}

const char *pretokenizer_name(size_t i)
{
    return i < ARRAY_LEN(names) ? names[i].name : NULL;
}

const char *const *pretokenizer_patterns(const char *name)
{
    int id = find_name(name, strlen(name));
    return id < 0 ? NULL : kinds[id].patterns;
}

enum err pretokenizer_create(const char *name, size_t len, struct pretokenizer **out)
{
    *out = NULL;
    int id = find_name(name, len);
    if (id < 0)
        return unknown_name(name, len);
    struct pretokenizer *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return err_set(ERR_NOMEM, "no memory for a pre-tokeniser");
    p->flags = kinds[id].flags;
    for (; kinds[id].patterns[p->n] != NULL; p->n++) {
        const char *pattern = kinds[id].patterns[p->n];
        struct stage *s = &p->stages[p->n];
        s->digits = strcmp(pattern, DIGITS_ANY) == 0        ? DIGITS_ANY
                    : strcmp(pattern, DIGITS_WORD_END) == 0 ? DIGITS_WORD_END
                                                            : NULL;
        if (s->digits != NULL)
            pattern = "\\p{Nd}+";
        enum err e = word_dfa_create(pattern, strlen(pattern), &s->dfa);
        if (e != ERR_OK) {
            pretokenizer_destroy(&p);
            return e;
        }
    }
    *out = p;
    return ERR_OK;
}

void pretokenizer_destroy(struct pretokenizer **pp)
{
    struct pretokenizer *p = *pp;
    if (p == NULL)
        return;
    for (size_t i = 0; i < ARRAY_LEN(p->stages); i++)
        word_dfa_destroy(&p->stages[i].dfa);
    free(p);
    *pp = NULL;
}

unsigned pretokenizer_flags(const struct pretokenizer *p)
{
    return p->flags;
}

void pretokenizer_pieces_deinit(struct pretokenizer_pieces *w)
{
    free(w->ends);
    free(w->spare);
    memset(w, 0, sizeof(*w));
}

static enum err grow(struct pretokenizer_pieces *w)
{
    size_t cap = w->cap == 0 ? 64 : w->cap * 2;
    uint32_t *ends = realloc(w->ends, cap * sizeof(*ends));
    if (ends == NULL)
        return err_set(ERR_NOMEM, "no memory for %zu words of a text", cap);
    w->ends = ends;
    w->cap = cap;
    return ERR_OK;
}

static inline enum err push_end(struct pretokenizer_pieces *w, size_t end)
{
    if (w->n == w->cap)
        TRY(grow(w));
    w->ends[w->n++] = (uint32_t)end;
    return ERR_OK;
}

/* ---- one stage over one piece ---- */

static enum err cut_dfa(struct pretokenizer_pieces *w, const struct word_dfa *d, const char *s, size_t len, size_t from)
{
    struct word_dfa_memo memo = {0};
    size_t done = 0, at = word_dfa_skip(d, s, len);
    while (at < len) {
        size_t n = word_dfa_match_at(d, s, len, at, &memo);
        if (n == 0) {
            at += utf8_len_valid((unsigned char)s[at]);
            at += word_dfa_skip(d, s + at, len - at);
            continue;
        }
        if (at > done)
            TRY(push_end(w, from + at));
        done = at += n;
        TRY(push_end(w, from + at));
    }
    return done < len ? push_end(w, from + len) : ERR_OK;
}

static bool is_word(const char *s, size_t len)
{
    uint32_t cp = 0;
    size_t bad;
    bool cut;
    utf8_decode(s, len, &cp, &bad, &cut);
    return (unicode_props(cp) & (unicode_bits("L", 1) | unicode_bits("M", 1) | unicode_bits("N", 1) | unicode_bits("Pc", 2))) != 0;
}

/* numbers: a run of decimal digits of any script. */
static enum err cut_digits(struct pretokenizer_pieces *w, const struct word_dfa *numbers, bool any, const char *s, size_t len, size_t from)
{
    size_t done = 0;
    for (size_t i = 0, end; (i += word_dfa_skip(numbers, s + i, len - i)) < len; i = end) {
        end = i + word_dfa_match(numbers, s + i, len - i);
        size_t digits = 0;
        for (size_t k = i; k < end; k += utf8_len_valid((unsigned char)s[k]))
            digits++;
        if (!any && end < len && is_word(s + end, len - end))
            continue;
        for (size_t at = i; at < end; digits--) {
            if ((digits % 3 == 0 || (at == i && !any)) && at > done) {
                TRY(push_end(w, from + at));
                done = at;
            }
            at += utf8_len_valid((unsigned char)s[at]);
        }
        if (!any) {
            TRY(push_end(w, from + end));
            done = end;
        }
    }
    return done < len ? push_end(w, from + len) : ERR_OK;
}

/* Stretches of valid and of invalid UTF-8, in turn. */
static enum err split_valid(const char *text, size_t len, struct pretokenizer_pieces *w)
{
    for (size_t i = 0; i < len;) {
        size_t j = i + utf8_valid_prefix(text + i, len - i);
        if (j > i)
            TRY(push_end(w, j));
        for (i = j; i < len && utf8_valid_prefix(text + i, MIN(len - i, 4)) == 0; i++) {
        }
        if (i > j)
            TRY(push_end(w, i));
    }
    return ERR_OK;
}

enum err pretokenizer_split(const struct pretokenizer *p, const char *text, size_t len, struct pretokenizer_pieces *w)
{
    ASSERT(len <= UINT32_MAX);
    w->n = 0;
    TRY(split_valid(text, len, w));
    for (size_t i = 0; i < p->n; i++) {
        const struct stage *st = &p->stages[i];
        uint32_t *prev = w->ends;
        size_t n_prev = w->n, prev_cap = w->cap, from = 0;
        w->ends = w->spare;
        w->cap = w->spare_cap;
        w->spare = prev;
        w->spare_cap = prev_cap;
        w->n = 0;
        for (size_t k = 0; k < n_prev; from = w->spare[k], k++) {
            size_t to = w->spare[k];
            const char *s = text + from;
            if (utf8_valid_prefix(s, MIN(to - from, 4)) == 0)
                TRY(push_end(w, to));
            else if (st->digits != NULL)
                TRY(cut_digits(w, st->dfa, st->digits == DIGITS_ANY, s, to - from, from));
            else
                TRY(cut_dfa(w, st->dfa, s, to - from, from));
        }
    }
    return ERR_OK;
}
