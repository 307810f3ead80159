/* See regex.h. What the automata of word_dfa.h take is matched by them, in linear time; the rest by PCRE2. The translation
 * is one pass over the pattern: outside of sets it follows where the last atom began, as
 * `{n,m}+` must wrap it; a set is read whole, into the text of a PCRE2 class for each operand of &&. */
#include "text/regex.h"

#include "base/buf.h"
#include "base/check.h"
#include "text/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATTERN_MAX = 1 << 16, DEPTH_MAX = 64, MATCH_LIMIT = 200 << 20, HEAP_LIMIT_KIB = 64 << 10, STACK_MAX = 64 << 20 };

/* As the inside of a class. U+180E is no White_Space, but PCRE2's \s holds it. */
#define SPACE                                                                                                          \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define HEX "0-9A-Fa-f"

struct regex {
    struct word_dfa *dfa; /* or else: */
    pcre2_code *code;
    pcre2_match_context *limits;
    bool jit;
};
struct translation {
    const char *p, *end;
    struct buf out;
    unsigned depth;
    bool for_dfa; /* names of scripts mean the script there */
    const char *error;
};

static bool at(const struct translation *t, const char *what)
{
    size_t n = strlen(what);
    return (size_t)(t->end - t->p) >= n && memcmp(t->p, what, n) == 0;
}

/* What an escape of a kind of characters is outside of sets, or NULL. */
static const char *kind_of(char c)
{
    switch (c) {
    case 's':
        return "[" SPACE "]";
    case 'S':
        return "[^" SPACE "]";
    case 'w':
        return "[" WORD "]";
    case 'W':
        return "[^" WORD "]";
    case 'd':
        return "[\\p{Nd}]";
    case 'D':
        return "[^\\p{Nd}]";
    case 'h':
        return "[" HEX "]";
    case 'H':
        return "[^" HEX "]";
    case 'b':
        return "(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))";
    case 'B':
        return "(?:(?<=[" WORD "])(?=[" WORD "])|(?<![" WORD "])(?![" WORD "]))";
    default:
        return NULL;
    }
}

/* The inside of a set for a class in brackets ("[:alpha:]"), where PCRE2 means another one; else NULL. */
static const char *bracket_class(const char *name, size_t len)
{
    static const char *const known[][2] = {
        {"upper", "\\p{Uppercase}"}, {"lower", "\\p{Lowercase}"},       {"alpha", "\\p{Alphabetic}"},
        {"digit", "\\p{Nd}"},        {"alnum", "\\p{Alphabetic}\\p{Nd}"}, {"space", SPACE},
        {"word", WORD},              {"xdigit", HEX},                   {"cntrl", "\\p{Cc}"},
    };
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (strlen(known[i][0]) == len && memcmp(known[i][0], name, len) == 0)
            return known[i][1];
    return NULL;
}

/* PCRE2's \p{Han} holds what is written together with Han, too; \p{sc:Han} does not. */
static bool is_script(const char *name, size_t len)
{
    char pattern[64];
    int code;
    PCRE2_SIZE where;
    if (len <= 2 || len > 40)
        return false;
    snprintf(pattern, sizeof(pattern), "\\p{sc:%.*s}", (int)len, name);
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &where, NULL);
    pcre2_code_free(c);
    return c != NULL;
}

/* \p{name}, \P{name}, \p{^name} or \x{digits}; t->p stands at the brace. */
static void escape_braces(struct translation *t, char c, struct buf *out)
{
    const char *close = memchr(t->p, '}', (size_t)(t->end - t->p));
    if (!close) {
        t->error = "a brace is not closed";
        return;
    }
    const char *name = t->p + 1;
    bool negated = c != 'x' && name < close && *name == '^';
    name += negated;
    bool script = c != 'x' && !t->for_dfa && is_script(name, (size_t)(close - name));
    buf_printf(out, "\\%c{%s%s%.*s}", c, negated ? "^" : "", script ? "sc:" : "", (int)(close - name), name);
    t->p = close + 1;
}

/* An escape; t->p stands behind the backslash. */
static void escape(struct translation *t, bool in_set, struct buf *out)
{
    if (t->p == t->end) {
        t->error = "it ends with a backslash";
        return;
    }
    char c = *t->p++;
    const char *kind = in_set ? NULL : kind_of(c);
    if (kind) {
        buf_puts(out, kind);
    } else if ((c == 'p' || c == 'P' || c == 'x') && t->p < t->end && *t->p == '{') {
        escape_braces(t, c, out);
    } else if (c == 'u' && t->end - t->p >= 4) {
        buf_printf(out, "\\x{%.4s}", t->p);
        t->p += 4;
    } else if (in_set && c == 'b') {
        buf_puts(out, "\\x{8}");
    } else {
        buf_putc(out, '\\');
        buf_putc(out, c);
    }
}

static void set(struct translation *t, struct buf *out);

/* One operand of &&, up to the next && or the end of the set: ranges and kinds go into one class, sets inside it beside
 * it. Writes something that matches one character. */
static void operand(struct translation *t, struct buf *out)
{
    struct buf plain, nested;
    buf_init(&plain);
    buf_init(&nested);
    bool first = true;
    unsigned n_nested = 0;
    while (t->p < t->end && !t->error && (first || *t->p != ']') && !at(t, "&&")) {
        if (at(t, "[:")) {
            const char *close = strstr(t->p, ":]");
            if (!close || close > t->end - 2) {
                t->error = "a class in brackets is not closed";
                break;
            }
            const char *inside = bracket_class(t->p + 2, (size_t)(close - t->p) - 2);
            if (inside)
                buf_puts(&plain, inside);
            else
                buf_append(&plain, t->p, (size_t)(close - t->p) + 2);
            t->p = close + 2;
        } else if (*t->p == '[') {
            if (n_nested++ > 0)
                buf_putc(&nested, '|');
            set(t, &nested);
        } else if (*t->p == '\\' && t->end - t->p > 1 && strchr("sSwWdDhH", t->p[1])) {
            if (n_nested++ > 0) /* a set of its own, as a class cannot hold what is in none of several */
                buf_putc(&nested, '|');
            buf_puts(&nested, kind_of(t->p[1]));
            t->p += 2;
        } else if (*t->p == '\\') {
            t->p++;
            escape(t, true, &plain);
        } else {
            if (first && *t->p == ']')
                buf_putc(&plain, '\\');
            buf_putc(&plain, *t->p++);
        }
        first = false;
    }
    if (plain.len > 0 && nested.len > 0)
        buf_printf(out, "(?:[%s]|%s)", plain.data, nested.data);
    else if (nested.len > 0)
        buf_printf(out, n_nested > 1 ? "(?:%s)" : "%s", nested.data);
    else
        buf_printf(out, "[%s]", plain.len > 0 ? plain.data : "");
    if (plain.failed || nested.failed)
        out->failed = true;
    buf_deinit(&plain);
    buf_deinit(&nested);
}

/* A set with its brackets. A && B && C is (?=B)(?=C)A; a lookahead for [^B] is (?!B). */
static void set(struct translation *t, struct buf *out)
{
    struct buf one, base, looks;
    buf_init(&one);
    buf_init(&base);
    buf_init(&looks);
    if (++t->depth > DEPTH_MAX)
        t->error = "sets are nested too deeply";
    t->p++;
    bool negated = t->p < t->end && *t->p == '^', again = false;
    t->p += negated;
    for (bool first = true; !t->error && (first || again); first = false) {
        struct buf *to = first ? &base : &one;
        buf_clear(to);
        operand(t, to);
        const char *text = to->data ? to->data : "";
        if (!first && strncmp(text, "[^", 2) == 0)
            buf_printf(&looks, "(?![%s)", text + 2);
        else if (!first)
            buf_printf(&looks, "(?=%s)", text);
        again = at(t, "&&");
        t->p += again ? 2 : 0;
    }
    if (!t->error && t->p == t->end)
        t->error = "a set is not closed";
    if (!t->error) {
        t->p++;
        const char *text = base.data ? base.data : "", *before = looks.data ? looks.data : "";
        bool plain = looks.len == 0 && text[0] == '[' && text[1] != '^';
        if (!negated)
            buf_printf(out, looks.len > 0 ? "(?:%s%s)" : "%s%s", before, text);
        else if (plain)
            buf_printf(out, "[^%s", text + 1);
        else
            buf_printf(out, "(?:(?!%s%s)[\\x{0}-\\x{10FFFF}])", before, text);
    }
    t->depth--;
    if (one.failed || base.failed || looks.failed)
        out->failed = true;
    buf_deinit(&one);
    buf_deinit(&base);
    buf_deinit(&looks);
}

static size_t digits(const struct translation *t, size_t i)
{
    while (t->p + i < t->end && t->p[i] >= '0' && t->p[i] <= '9')
        i++;
    return i;
}

/* The length of {n}, {n,}, {,m} or {n,m} at t->p, or 0. */
static size_t interval(const struct translation *t)
{
    size_t a = digits(t, 1), b = a;
    if (*t->p != '{')
        return 0;
    if (t->p + a < t->end && t->p[a] == ',')
        b = digits(t, a + 1);
    bool some = a > 1 || b > a + 1;
    return some && t->p + b < t->end && t->p[b] == '}' ? b + 1 : 0;
}

/* {n,m} and what may follow: in Ruby a + behind it repeats the whole. `atom` is where in out the repeated thing begins. */
static void repeat(struct translation *t, size_t n, size_t atom)
{
    struct buf tail;
    bool from_zero = t->p[1] == ',', again = t->p + n < t->end && t->p[n] == '+';
    if (!again) {
        buf_puts(&t->out, from_zero ? "{0" : "{");
        buf_append(&t->out, t->p + 1, n - 1);
        t->p += n;
        return;
    }
    buf_init(&tail);
    buf_append(&tail, t->out.data + atom, t->out.len - atom);
    t->out.len = atom;
    buf_printf(&t->out, "(?:%s%s%.*s)+", tail.data ? tail.data : "", from_zero ? "{0" : "{", (int)n - 1, t->p + 1);
    if (tail.failed)
        t->out.failed = true;
    buf_deinit(&tail);
    t->p += n + 1;
}

/* "(?...": the beginning of a group, copied; Ruby's m (a dot matches a new line) is s here. */
static void group_head(struct translation *t)
{
    buf_putc(&t->out, *t->p++);
    if (t->p == t->end || *t->p != '?')
        return;
    buf_putc(&t->out, *t->p++);
    while (t->p < t->end && strchr("imx-", *t->p)) {
        buf_putc(&t->out, *t->p == 'm' ? 's' : *t->p);
        t->p++;
    }
}

static void translate(struct translation *t)
{
    size_t opened[DEPTH_MAX], atom = 0;
    unsigned n_open = 0;
    while (t->p < t->end && !t->error) {
        size_t start = t->out.len, n;
        char c = *t->p;
        if (c == '\\') {
            t->p++;
            escape(t, false, &t->out);
            atom = start;
        } else if (c == '[') {
            set(t, &t->out);
            atom = start;
        } else if (c == '(') {
            if (n_open == DEPTH_MAX) {
                t->error = "groups are nested too deeply";
                return;
            }
            opened[n_open++] = start;
            group_head(t);
            atom = t->out.len;
        } else if (c == ')') {
            atom = n_open > 0 ? opened[--n_open] : start;
            buf_putc(&t->out, *t->p++);
        } else if (c == '{' && (n = interval(t)) > 0) {
            repeat(t, n, atom);
        } else {
            /* A quantifier belongs to the atom before it; the bytes of one character stay together. */
            if (!strchr("*+?", c) && ((unsigned char)c & 0xC0) != 0x80)
                atom = start;
            buf_putc(&t->out, *t->p++);
        }
    }
}

static enum err compile(struct regex *r, const struct buf *pattern)
{
    int code = 0;
    PCRE2_SIZE where = 0;
    r->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->len, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code,
                            &where, NULL);
    if (!r->code) {
        PCRE2_UCHAR why[128] = "";
        pcre2_get_error_message(code, why, sizeof(why));
        return err_set(ERR_UNSUPPORTED, "%s (at %zu of \"%.80s\")", (const char *)why, (size_t)where, pattern->data);
    }
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
    r->limits = pcre2_match_context_create(NULL);
    if (!r->limits)
        return err_set(ERR_NOMEM, "no memory for a regular expression");
    pcre2_set_match_limit(r->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(r->limits, HEAP_LIMIT_KIB);
    return ERR_OK;
}

/* The pattern for PCRE2, or for the automata, in t->out. */
static enum err translate_for(struct translation *t, const char *pattern, size_t len, bool for_dfa)
{
    *t = (struct translation){.p = pattern, .end = pattern + len, .for_dfa = for_dfa};
    buf_init(&t->out);
    translate(t);
    if (t->error)
        return err_set(ERR_UNSUPPORTED, "%s (at %zu of \"%.80s\")", t->error, (size_t)(t->p - pattern), pattern);
    if (t->out.failed)
        return err_set(ERR_NOMEM, "no memory for a regular expression");
    return t->out.len > 0 ? ERR_OK : err_set(ERR_UNSUPPORTED, "an empty regular expression");
}

enum err regex_create(const char *pattern, size_t len, struct regex **out)
{
    enum err e;
    struct translation t = {0};
    *out = NULL;
    if (len > PATTERN_MAX || memchr(pattern, 0, len))
        return err_set(ERR_UNSUPPORTED, "a regular expression of %zu bytes; at most %d, without NUL", len, PATTERN_MAX);
    struct regex *r = calloc(1, sizeof(*r));
    if (!r)
        return err_set(ERR_NOMEM, "no memory for a regular expression");
    TRY_GOTO(translate_for(&t, pattern, len, true), done);
    /* A $ at the end is the end of a line here and that of the text there. */
    if (pattern[len - 1] == '$' || word_dfa_create(t.out.data, t.out.len, &r->dfa) != ERR_OK) {
        buf_deinit(&t.out);
        TRY_GOTO(translate_for(&t, pattern, len, false), done);
        TRY_GOTO(compile(r, &t.out), done);
    }
    *out = r;
    r = NULL;
done:
    buf_deinit(&t.out);
    regex_destroy(&r);
    return e;
}

void regex_destroy(struct regex **rp)
{
    if (!*rp)
        return;
    word_dfa_destroy(&(*rp)->dfa);
    pcre2_code_free((*rp)->code);
    pcre2_match_context_free((*rp)->limits);
    free(*rp);
    *rp = NULL;
}

enum err regex_find_init(struct regex_find *f, const struct regex *r)
{
    *f = (struct regex_find){.r = r};
    if (r->dfa)
        return ERR_OK;
    f->md = pcre2_match_data_create_from_pattern(r->code, NULL);
    f->context = pcre2_match_context_copy(r->limits);
    f->stack = pcre2_jit_stack_create(1 << 16, STACK_MAX, NULL); /* of a search, as it may be used by one thread only */
    if (!f->md || !f->context || !f->stack) {
        regex_find_deinit(f);
        return err_set(ERR_NOMEM, "no memory for a match");
    }
    pcre2_jit_stack_assign(f->context, NULL, f->stack);
    return ERR_OK;
}

void regex_find_deinit(struct regex_find *f)
{
    pcre2_match_data_free(f->md);
    pcre2_match_context_free(f->context);
    pcre2_jit_stack_free(f->stack);
    *f = (struct regex_find){0};
}

static bool find_dfa(struct regex_find *f, const char *s, size_t len, size_t *from, size_t *to)
{
    const struct word_dfa *d = f->r->dfa;
    if (s != f->text || len != f->text_len) {
        f->text = s;
        f->text_len = len;
        f->memo = (struct word_dfa_memo){0};
    }
    size_t n = 0, i = *from + word_dfa_skip(d, s + *from, len - *from);
    while (i < len && (n = word_dfa_match_at(d, s, len, i, &f->memo)) == 0) {
        i += utf8_len_valid((unsigned char)s[i]);
        i += word_dfa_skip(d, s + i, len - i);
    }
    *from = i;
    *to = i + n;
    return n > 0;
}

enum err regex_find_next(struct regex_find *f, const char *s, size_t len, size_t start, bool *found, size_t *from,
                         size_t *to)
{
    const struct regex *r = f->r;
    int rc;
    if (r->dfa) {
        *from = start;
        *found = find_dfa(f, s, len, from, to);
        return ERR_OK;
    }
    if (r->jit)
        rc = pcre2_jit_match(r->code, (PCRE2_SPTR)s, len, start, 0, f->md, f->context);
    else
        rc = pcre2_match(r->code, (PCRE2_SPTR)s, len, start, PCRE2_NO_UTF_CHECK, f->md, f->context);
    *found = rc >= 0;
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        return err_set(ERR_TOO_BIG, "a regular expression of the tokenizer gave up on a text of %zu bytes (PCRE2 error %d)",
                       len, rc);
    if (*found) {
        const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(f->md);
        *from = MIN(ov[0], ov[1]); /* \K in a lookahead may turn them around */
        *to = ov[1];
    }
    return ERR_OK;
}
