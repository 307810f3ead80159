/* See regex.h. The translation is one pass over the pattern: outside of sets it follows where the last atom began, as
 * `{n,m}+` must wrap it; a set is read whole, into the text of a PCRE2 class for each operand of &&. */
#include "coordinator/regex.h"

#include "base/buf.h"
#include "base/check.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATTERN_MAX = 1 << 16, DEPTH_MAX = 64, MATCH_LIMIT = 200 << 20, HEAP_LIMIT_KIB = 64 << 10 };

/* As the inside of a class. U+180E is no White_Space, but PCRE2's \s holds it. */
#define SPACE                                                                                                          \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define NOT_SPACE "\\S\\x{180E}"
#define CIRCLED "\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"
#define WORD "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}" CIRCLED /* Alphabetic, Mark, Decimal_Number, Connector_Punctuation */
#define NOT_WORD "\\p{C}\\p{Z}\\p{S}\\p{No}\\p{Pd}\\p{Ps}\\p{Pe}\\p{Pi}\\p{Pf}\\p{Po}"
#define HEX "0-9A-Fa-f"

struct regex {
    pcre2_code *code;
    pcre2_match_context *limits;
    bool jit;
};
struct translation {
    const char *p, *end;
    struct buf out;
    unsigned depth;
    const char *error;
};

static bool at(const struct translation *t, const char *what)
{
    size_t n = strlen(what);
    return (size_t)(t->end - t->p) >= n && memcmp(t->p, what, n) == 0;
}

/* The inside of a class for an escape of a kind of characters, or NULL. */
static const char *kind_of(char c, bool in_set)
{
    switch (c) {
    case 's':
        return in_set ? SPACE : "[" SPACE "]";
    case 'S':
        return in_set ? NOT_SPACE : "[^" SPACE "]";
    case 'w':
        return in_set ? WORD : "[" WORD "]";
    case 'W':
        return in_set ? NOT_WORD : "[^" WORD "]";
    case 'd':
        return "\\p{Nd}";
    case 'D':
        return "\\P{Nd}";
    case 'h':
        return in_set ? HEX : "[" HEX "]";
    case 'H':
        return in_set ? NULL : "[^" HEX "]";
    case 'b':
        return in_set ? "\\x{8}" : "(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))";
    case 'B':
        return in_set ? NULL : "(?:(?<=[" WORD "])(?=[" WORD "])|(?<![" WORD "])(?![" WORD "]))";
    default:
        return NULL;
    }
}

/* An escape; t->p stands behind the backslash. */
static void escape(struct translation *t, bool in_set, struct buf *out)
{
    if (t->p == t->end) {
        t->error = "it ends with a backslash";
        return;
    }
    char c = *t->p++;
    const char *kind = kind_of(c, in_set);
    if (kind) {
        buf_puts(out, kind);
    } else if ((c == 'p' || c == 'P' || c == 'x') && t->p < t->end && *t->p == '{') {
        const char *close = memchr(t->p, '}', (size_t)(t->end - t->p));
        if (!close) {
            t->error = "a brace is not closed";
            return;
        }
        buf_printf(out, "\\%c", c);
        buf_append(out, t->p, (size_t)(close - t->p) + 1);
        t->p = close + 1;
    } else if (c == 'u' && t->end - t->p >= 4) {
        buf_printf(out, "\\x{%.4s}", t->p);
        t->p += 4;
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
    while (t->p < t->end && !t->error && (first || *t->p != ']') && !at(t, "&&")) {
        if (at(t, "[:")) {
            const char *close = strstr(t->p, ":]");
            if (!close || close > t->end - 2) {
                t->error = "a class in brackets is not closed";
                break;
            }
            buf_append(&plain, t->p, (size_t)(close - t->p) + 2);
            t->p = close + 2;
        } else if (*t->p == '[') {
            if (nested.len > 0)
                buf_putc(&nested, '|');
            set(t, &nested);
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
        buf_printf(out, "(?:%s)", nested.data);
    else
        buf_printf(out, "[%s]", plain.len > 0 ? plain.data : "");
    if (plain.failed || nested.failed)
        out->failed = true;
    buf_deinit(&plain);
    buf_deinit(&nested);
}

/* A set with its brackets. A & B is (?=A)B; not so much is a lookahead that fails. */
static void set(struct translation *t, struct buf *out)
{
    struct buf one, looks;
    buf_init(&one);
    buf_init(&looks);
    if (++t->depth > DEPTH_MAX)
        t->error = "sets are nested too deeply";
    t->p++;
    bool negated = t->p < t->end && *t->p == '^', many = false;
    t->p += negated;
    while (!t->error) {
        buf_clear(&one);
        operand(t, &one);
        if (!at(t, "&&"))
            break;
        t->p += 2;
        many = true;
        buf_printf(&looks, "(?=%s)", one.data ? one.data : "");
    }
    if (!t->error && t->p == t->end)
        t->error = "a set is not closed";
    if (!t->error) {
        t->p++;
        const char *last = one.data ? one.data : "", *before = looks.data ? looks.data : "";
        if (!negated)
            buf_printf(out, many ? "(?:%s%s)" : "%s%s", before, last);
        else if (!many && last[0] == '[')
            buf_printf(out, "[^%s", last + 1);
        else
            buf_printf(out, "(?:(?!%s%s)[\\x{0}-\\x{10FFFF}])", before, last);
    }
    t->depth--;
    if (one.failed || looks.failed)
        out->failed = true;
    buf_deinit(&one);
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
    r->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->len, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code,
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

enum err regex_create(const char *pattern, size_t len, struct regex **out)
{
    enum err e;
    *out = NULL;
    if (len > PATTERN_MAX || memchr(pattern, 0, len))
        return err_set(ERR_UNSUPPORTED, "a regular expression of %zu bytes; at most %d, without NUL", len, PATTERN_MAX);
    struct regex *r = calloc(1, sizeof(*r));
    struct translation t = {.p = pattern, .end = pattern + len};
    buf_init(&t.out);
    if (!r) {
        e = err_set(ERR_NOMEM, "no memory for a regular expression");
        goto done;
    }
    buf_puts(&t.out, "");
    translate(&t);
    if (t.error)
        e = err_set(ERR_UNSUPPORTED, "%s (at %zu of \"%.80s\")", t.error, (size_t)(t.p - pattern), pattern);
    else if (t.out.failed)
        e = err_set(ERR_NOMEM, "no memory for a regular expression");
    else if (t.out.len == 0)
        e = err_set(ERR_UNSUPPORTED, "an empty regular expression");
    else
        e = compile(r, &t.out);
    if (e == ERR_OK) {
        *out = r;
        r = NULL;
    }
done:
    buf_deinit(&t.out);
    regex_destroy(&r);
    return e;
}

void regex_destroy(struct regex **rp)
{
    if (!*rp)
        return;
    pcre2_code_free((*rp)->code);
    pcre2_match_context_free((*rp)->limits);
    free(*rp);
    *rp = NULL;
}

enum err regex_find_init(struct regex_find *f, const struct regex *r)
{
    f->r = r;
    f->md = pcre2_match_data_create_from_pattern(r->code, NULL);
    return f->md ? ERR_OK : err_set(ERR_NOMEM, "no memory for a match");
}

void regex_find_deinit(struct regex_find *f)
{
    pcre2_match_data_free(f->md);
    f->md = NULL;
}

enum err regex_find_next(struct regex_find *f, const char *s, size_t len, size_t at_, bool *found, size_t *from,
                         size_t *to)
{
    const struct regex *r = f->r;
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (r->jit)
        rc = pcre2_jit_match(r->code, (PCRE2_SPTR)s, len, at_, 0, f->md, r->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* its small stack is enough for all but odd patterns */
        rc = pcre2_match(r->code, (PCRE2_SPTR)s, len, at_, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, f->md, r->limits);
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
