/* See template_lexer.h. The rules are jinja2's: `-` beside a tag strips all white space there; `+` switches the
 * automatic stripping off; a block tag alone on its line (only blanks before it) loses the blanks; the newline behind a
 * block tag or a comment is dropped. */
#include "text/template_lexer.h"

#include "base/check.h"
#include "text/template_value.h"
#include "text/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { OPEN_MAX = 256, SOURCE_MAX = 4 << 20 };

struct lexer {
    struct arena *arena;
    const char *s;
    size_t len, at;
    struct template_token *tok;
    size_t n, cap;
    uint32_t line;
    size_t line_start, counted; /* of the source up to `counted` the lines are counted */
    enum err err;
};

static void where(struct lexer *x, size_t at)
{
    for (; x->counted < at; x->counted++)
        if (x->s[x->counted] == '\n') {
            x->line++;
            x->line_start = x->counted + 1;
        }
}

static void fail(struct lexer *x, const char *what)
{
    where(x, x->at);
    if (x->err == ERR_OK)
        x->err =
            err_set(ERR_INVALID, "chat template, line %u, column %zu: %s", x->line, x->at - x->line_start + 1, what);
}

static struct template_token *add(struct lexer *x, enum template_token_type type, size_t at)
{
    static _Thread_local struct template_token nowhere; /* written only once the lexer has failed */
    if (x->n == x->cap) {
        size_t cap = x->cap == 0 ? 256 : x->cap * 2;
        struct template_token *n = arena_array(x->arena, cap, sizeof(*n));
        if (n == NULL) {
            x->err = err_set(ERR_TOO_BIG, "chat template: too many tokens");
            return &nowhere;
        }
        if (x->n > 0)
            memcpy(n, x->tok, x->n * sizeof(*n));
        x->tok = n;
        x->cap = cap;
    }
    where(x, at);
    struct template_token *t = &x->tok[x->n++];
    *t = (struct template_token){.type = (uint8_t)type, .line = x->line, .col = (uint32_t)(at - x->line_start + 1)};
    return t;
}

/* CR LF and CR become LF; one newline at the very end goes. */
static bool normalise(struct lexer *x, const char *src, size_t len)
{
    char *d = arena_alloc(x->arena, len + 1);
    size_t n = 0;
    if (d == NULL)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (src[i] == '\r' && i + 1 < len && src[i + 1] == '\n')
            continue;
        d[n++] = src[i] == '\r' ? '\n' : src[i];
    }
    if (n > 0 && d[n - 1] == '\n')
        n--;
    d[n] = 0;
    x->s = d;
    x->len = n;
    return true;
}

static bool blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static size_t skip_space(const struct lexer *x, size_t i)
{
    while (i < x->len) {
        size_t n;
        if (!template_is_space(template_char_at(template_str(x->s, x->len), i, &n)))
            break;
        i += n;
    }
    return i;
}

/* Data before a tag at x->at; `block`: lstrip_blocks applies. */
static void emit_text(struct lexer *x, size_t from, size_t to, char sign, bool block)
{
    struct template_val t = template_str(x->s + from, to - from);
    if (sign == '-') {
        while (t.len > 0) {
            size_t at = t.len - 1, n;
            while (at > 0 && t.len - at < 4 && ((unsigned char)t.s[at] & 0xC0) == 0x80)
                at--;
            if (!template_is_space(template_char_at(t, at, &n)))
                break;
            t.len = at;
        }
    } else if (sign != '+' && block) {
        size_t line = t.len;
        while (line > 0 && t.s[line - 1] != '\n')
            line--;
        bool starts = line > 0 || from == 0 || x->s[from - 1] == '\n';
        size_t end = line;
        while (end < t.len) {
            size_t n;
            if (!template_is_space(template_char_at(t, end, &n)))
                break;
            end += n;
        }
        if (starts && end == t.len)
            t.len = line;
    }
    if (t.len > 0) {
        struct template_token *k = add(x, TT_TEXT, from);
        k->s = t.s;
        k->len = t.len;
    }
}

static bool looking_at(const struct lexer *x, size_t i, const char *s)
{
    size_t n = strlen(s);
    return x->len - i >= n && memcmp(x->s + i, s, n) == 0;
}

/* After a closing tag: its white space. */
static void after_tag(struct lexer *x, char sign, bool block)
{
    if (sign == '-')
        x->at = skip_space(x, x->at);
    else if (sign != '+' && block && x->at < x->len && x->s[x->at] == '\n')
        x->at++;
}

static void comment(struct lexer *x)
{
    const char *end = memmem(x->s + x->at, x->len - x->at, "#}", 2);
    if (end == NULL && x->at == x->len)
        return; /* jinja2 does not mind */
    if (end == NULL) {
        fail(x, "the comment has no end \"#}\"");
        return;
    }
    size_t e = (size_t)(end - x->s);
    char sign = e > x->at && (end[-1] == '-' || end[-1] == '+') ? end[-1] : 0;
    x->at = e + 2;
    after_tag(x, sign, true);
}

/* At "raw ... %}" behind "{%" and its sign? Then the place behind it. */
static bool raw_tag(const struct lexer *x, size_t i, const char *word, size_t *end, char *sign)
{
    i = skip_space(x, i);
    if (!looking_at(x, i, word))
        return false;
    i = skip_space(x, i + strlen(word));
    *sign = i < x->len && (x->s[i] == '-' || x->s[i] == '+') ? x->s[i] : 0;
    if (*sign != 0)
        i++;
    if (!looking_at(x, i, "%}"))
        return false;
    *end = i + 2;
    return true;
}

static void raw(struct lexer *x)
{
    size_t from = x->at;
    for (size_t i = from; i + 1 < x->len; i++) {
        size_t end;
        char sign;
        if (x->s[i] != '{' || x->s[i + 1] != '%')
            continue;
        char before = i + 2 < x->len && (x->s[i + 2] == '-' || x->s[i + 2] == '+') ? x->s[i + 2] : 0;
        if (!raw_tag(x, i + 2 + (before != 0), "endraw", &end, &sign))
            continue;
        emit_text(x, from, i, before, true);
        x->at = end;
        after_tag(x, sign, true);
        return;
    }
    if (from < x->len)
        fail(x, "{% raw %} has no {% endraw %}");
}

static unsigned hex_digits(const char *s, size_t n, size_t len, uint32_t *out)
{
    *out = 0;
    for (size_t i = 0; i < n; i++) {
        if (i >= len)
            return 0;
        char c = s[i];
        int d = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (d < 0)
            return 0;
        *out = *out << 4 | (uint32_t)d;
    }
    return 1;
}

/* Python's escapes; an unknown one stays as it is. */
static void unescape(struct lexer *x, const char *s, size_t len, struct template_token *t)
{
    char *d = arena_alloc(x->arena, len * 2 + 1);
    size_t n = 0;
    if (d == NULL) {
        x->err = err_set(ERR_TOO_BIG, "chat template: too much text");
        return;
    }
    for (size_t i = 0; i < len; i++) {
        if (s[i] != '\\' || i + 1 == len) {
            d[n++] = s[i];
            continue;
        }
        char c = s[++i];
        static const char named[] = "n\nt\tr\rb\bf\fv\va\a\\\\''\"\"";
        const char *p = NULL;
        for (size_t k = 0; k + 1 < sizeof(named); k += 2)
            if (named[k] == c)
                p = &named[k + 1];
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
        uint32_t cp;
        if (c == '\n') {
        } else if (p != NULL) {
            d[n++] = *p;
        } else if (c >= '0' && c <= '7') {
            cp = (uint32_t)(c - '0');
            for (int k = 0; k < 2 && i + 1 < len && s[i + 1] >= '0' && s[i + 1] <= '7'; k++)
                cp = cp * 8 + (uint32_t)(s[++i] - '0');
            n += utf8_encode(cp, d + n);
        } else if (digits > 0) {
            if (!hex_digits(s + i + 1, digits, len - i - 1, &cp) || cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000)) {
                fail(x, "a string has a bad \\x, \\u or \\U escape");
                return;
            }
            n += utf8_encode(cp, d + n);
            i += digits;
        } else {
            d[n++] = '\\';
            d[n++] = c;
        }
    }
    t->s = d;
    t->len = n;
}

static bool digit(const struct lexer *x, size_t i)
{
    return i < x->len && x->s[i] >= '0' && x->s[i] <= '9';
}

static size_t digits(const struct lexer *x, size_t i)
{
    while (digit(x, i) || (i < x->len && x->s[i] == '_' && digit(x, i + 1)))
        i++;
    return i;
}

/* The digits of a literal from `from` on in this base, each with at most one "_" before it. */
static size_t base_digits(const struct lexer *x, size_t from, int base)
{
    size_t i = from;
    while (i < x->len) {
        size_t k = i + (x->s[i] == '_');
        char c = k < x->len ? (char)(x->s[k] | 32) : 0;
        int v = digit(x, k) ? x->s[k] - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
        if (v >= base)
            break;
        i = k + 1;
    }
    return i;
}

/* "0x1F", "1_000", "1.5e3": an integer with its digits as text, for those that 64 bits do not hold. */
static void number(struct lexer *x)
{
    size_t from = x->at, end = digits(x, from);
    char c = end < x->len ? (char)(x->s[end] | 32) : 0;
    int base = end == from + 1 && x->s[from] == '0' ? (c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10) : 10;
    bool is_float = false, after_dot = from > 0 && x->s[from - 1] == '.';
    if (base != 10 && base_digits(x, from + 2, base) > from + 2) {
        from += 2;
        end = base_digits(x, from, base);
    } else {
        size_t whole = end;
        base = 10;
        if (!after_dot && end < x->len && x->s[end] == '.' && digit(x, end + 1)) {
            end = digits(x, end + 1);
            is_float = true;
        }
        if (!after_dot && end < x->len && (x->s[end] | 32) == 'e') {
            size_t e = end + 1;
            if (e < x->len && (x->s[e] == '+' || x->s[e] == '-'))
                e++;
            if (digit(x, e)) {
                end = digits(x, e);
                is_float = true;
            }
        }
        if (!is_float && x->s[from] == '0') /* zeros only */
            for (end = from + 1; end < whole && (x->s[end] == '0' || (x->s[end] == '_' && end + 1 < whole && x->s[end + 1] == '0'));)
                end++;
    }
    struct template_token *t = add(x, is_float ? TT_FLOAT : TT_INT, x->at);
    char *text = arena_alloc(x->arena, end - from + 1), *stop;
    if (text == NULL) {
        x->err = err_set(ERR_TOO_BIG, "chat template: too much text");
        return;
    }
    for (size_t i = from; i < end; i++)
        if (x->s[i] != '_')
            text[t->len++] = x->s[i];
    t->s = text;
    t->op = base;
    errno = 0;
    unsigned long long v = strtoull(text, &stop, base);
    if (is_float)
        t->f = strtod(text, &stop);
    else if (v > INT64_MAX || errno != 0)
        t->i = -1; /* too large: the text counts */
    else
        t->i = (int64_t)v;
    x->at = end;
}

static bool name_char(const struct lexer *x, size_t i)
{
    if (i >= x->len)
        return false;
    unsigned char c = (unsigned char)x->s[i];
    return c == '_' || (c >= '0' && c <= '9') || (c | 32u) - 'a' < 26 || c >= 0x80;
}

static void operator(struct lexer *x, char *open, size_t *n_open)
{
    static const struct {
        const char *s;
        int op;
    } two[] = {{"==", OP_EQ}, {"!=", OP_NE}, {"<=", OP_LE}, {">=", OP_GE}, {"//", OP_FLOORDIV}, {"**", OP_POW}};
    for (size_t i = 0; i < ARRAY_LEN(two); i++)
        if (looking_at(x, x->at, two[i].s)) {
            add(x, TT_OP, x->at)->op = two[i].op;
            x->at += 2;
            return;
        }
    char c = x->s[x->at];
    if (c == 0 || strchr("+-/*%~[](){}<>=.:|,;", c) == NULL) {
        fail(x, "unexpected character");
        return;
    }
    if (c == '(' || c == '[' || c == '{') {
        if (*n_open == OPEN_MAX) {
            fail(x, "brackets are nested too deeply");
            return;
        }
        open[(*n_open)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (*n_open == 0 || open[--*n_open] != c) {
            fail(x, "a closing bracket has no opening one");
            return;
        }
    }
    add(x, TT_OP, x->at)->op = c;
    x->at++;
}

static void string(struct lexer *x)
{
    char q = x->s[x->at];
    size_t i = x->at + 1;
    while (i < x->len && x->s[i] != q)
        i += x->s[i] == '\\' ? 2 : 1;
    if (i >= x->len) {
        fail(x, "the string has no end");
        return;
    }
    struct template_token *t = add(x, TT_STR, x->at);
    unescape(x, x->s + x->at + 1, i - x->at - 1, t);
    x->at = i + 1;
}

/* The inside of {{ }} or {% %}. */
static void inside(struct lexer *x, bool block)
{
    char open[OPEN_MAX];
    size_t n_open = 0;
    const char *close = block ? "%}" : "}}";
    while (x->err == ERR_OK) {
        if (x->at >= x->len) {
            fail(x, block ? "the tag has no end \"%}\"" : "the expression has no end \"}}\"");
            return;
        }
        char c = x->s[x->at];
        if (n_open == 0) {
            char sign = c == '-' || (c == '+' && block) ? c : 0;
            if (looking_at(x, x->at + (sign != 0), close)) {
                add(x, block ? TT_BLOCK_END : TT_PRINT_END, x->at);
                x->at += 2 + (sign != 0);
                after_tag(x, sign, block);
                return;
            }
        }
        if (blank(c)) {
            x->at++;
        } else if (digit(x, x->at)) {
            number(x);
        } else if (name_char(x, x->at)) {
            struct template_token *t = add(x, TT_NAME, x->at);
            t->s = x->s + x->at;
            while (name_char(x, x->at))
                x->at++;
            t->len = (size_t)(x->s + x->at - t->s);
        } else if (c == '"' || c == '\'') {
            string(x);
        } else {
            operator(x, open, &n_open);
        }
    }
}

static void next_tag(struct lexer *x)
{
    size_t from = x->at, i = from;
    while (i < x->len &&
           !(x->s[i] == '{' && i + 1 < x->len && (x->s[i + 1] == '%' || x->s[i + 1] == '{' || x->s[i + 1] == '#')))
        i++;
    if (i >= x->len) {
        emit_text(x, from, x->len, '+', false);
        x->at = x->len;
        return;
    }
    char kind = x->s[i + 1];
    char sign = i + 2 < x->len && (x->s[i + 2] == '-' || x->s[i + 2] == '+') ? x->s[i + 2] : 0;
    emit_text(x, from, i, sign, kind != '{');
    x->at = i + 2 + (sign != 0);
    size_t end;
    char end_sign;
    if (kind == '#') {
        comment(x);
    } else if (kind == '{') {
        add(x, TT_PRINT, i);
        inside(x, false);
    } else if (raw_tag(x, x->at, "raw", &end, &end_sign) && end_sign != '+') {
        x->at = end;
        after_tag(x, end_sign, false);
        raw(x);
    } else {
        add(x, TT_BLOCK, i);
        inside(x, true);
    }
}

enum err template_lexer_run(struct arena *a, const char *source, size_t len, struct template_token **out, size_t *n)
{
    struct lexer x = {.arena = a, .line = 1};
    if (len > SOURCE_MAX)
        return err_set(ERR_TOO_BIG, "chat template: %zu bytes; at most %d", len, SOURCE_MAX);
    if (!normalise(&x, source, len))
        return err_set(ERR_NOMEM, "no memory for a chat template");
    while (x.at < x.len && x.err == ERR_OK)
        next_tag(&x);
    if (x.err == ERR_OK)
        add(&x, TT_EOF, x.len);
    *out = x.tok;
    *n = x.n;
    return x.err;
}
