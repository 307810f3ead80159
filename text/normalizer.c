/* See normalizer.h. The forms of Unicode use utf8proc's tables of decompositions, classes and compositions, but not its
 * driver: that one sorts combining marks in quadratic time, which a client could make felt. A text is taken in stretches
 * that end before an ASCII character, as nothing composes or is reordered across one. */
#include "text/normalizer.h"

#include "base/check.h"
#include "text/charsmap.h"
#include "text/regex.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

struct step {
    const struct tokenizer_json_step *what;
    struct regex *regex;
    struct charsmap map;
};
struct normalizer {
    struct step *steps;
    uint32_t n;
};

static uint32_t decode(const char *s, size_t len, size_t *n)
{
    uint32_t cp = 0;
    size_t bad;
    bool cut;
    *n = utf8_decode(s, len, &cp, &bad, &cut);
    if (*n == 0) { /* steps get valid text; whoever calls from outside may bring other */
        *n = bad;
        cp = 0xFFFD;
    }
    return cp;
}

static void put(struct buf *out, uint32_t cp)
{
    char c[4];
    buf_append(out, c, utf8_encode(cp, c));
}

/* Unicode forms. */
struct points {
    int32_t *p;
    size_t n, cap;
};

static bool decompose(struct points *w, uint32_t cp, int options)
{
    enum { EXPANSION_MAX = 32 }; /* 18 for U+FDFA */
    if (w->n + EXPANSION_MAX > w->cap) {
        size_t cap = w->cap ? w->cap * 2 : 1024;
        int32_t *p = realloc(w->p, cap * sizeof(*p));
        if (!p)
            return false;
        w->p = p;
        w->cap = cap;
    }
    int boundary = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char((int32_t)cp, w->p + w->n, EXPANSION_MAX, options, &boundary);
    ASSERT(n >= 0 && n <= EXPANSION_MAX);
    w->n += (size_t)n;
    return true;
}

static unsigned ccc(int32_t cp)
{
    return (unsigned)utf8proc_get_property(cp)->combining_class & 255;
}

/* Marks by class, stable: counting sort for a run of any length. */
static bool sort_marks(int32_t *p, size_t n)
{
    enum { SHORT = 16 };
    if (n <= SHORT) {
        for (size_t i = 1; i < n; i++)
            for (size_t k = i; k > 0 && ccc(p[k - 1]) > ccc(p[k]); k--) {
                int32_t x = p[k];
                p[k] = p[k - 1];
                p[k - 1] = x;
            }
        return true;
    }
    size_t at[257] = {0};
    int32_t *sorted = malloc(n * sizeof(*sorted));
    if (!sorted)
        return false;
    for (size_t i = 0; i < n; i++)
        at[ccc(p[i]) + 1]++;
    for (unsigned c = 0; c < 256; c++)
        at[c + 1] += at[c];
    for (size_t i = 0; i < n; i++)
        sorted[at[ccc(p[i])]++] = p[i];
    memcpy(p, sorted, n * sizeof(*p));
    free(sorted);
    return true;
}

static bool reorder(struct points *w)
{
    for (size_t i = 0, j; i < w->n; i = j + 1) {
        for (j = i; j < w->n && ccc(w->p[j]) != 0; j++) {
        }
        if (j > i + 1 && !sort_marks(w->p + i, j - i))
            return false;
    }
    return true;
}

enum err normalizer_unicode(enum normalizer_form form, const char *s, size_t len, struct buf *out)
{
    bool compat = form == NORMALIZER_NFKC || form == NORMALIZER_NFKD;
    bool compose = form == NORMALIZER_NFC || form == NORMALIZER_NFKC, ok = true;
    int options = (int)UTF8PROC_DECOMPOSE | (compat ? (int)UTF8PROC_COMPAT : 0);
    struct points w = {0};
    for (size_t i = 0, n; i < len && ok;) {
        size_t from = i;
        while (i < len && (unsigned char)s[i] < 0x80)
            i++;
        size_t last = i < len && i > from ? i - 1 : i; /* the ASCII character that what follows may compose with */
        buf_append(out, s + from, last - from);
        w.n = 0;
        for (i = last; ok && i < len && (i == last || (unsigned char)s[i] >= 0x80); i += n)
            ok = decompose(&w, decode(s + i, len - i, &n), options);
        ok = ok && reorder(&w);
        if (!ok)
            break;
        if (compose && w.n > 0)
            w.n = (size_t)utf8proc_normalize_utf32(w.p, (utf8proc_ssize_t)w.n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        for (size_t k = 0; k < w.n; k++)
            put(out, (uint32_t)w.p[k]);
    }
    free(w.p);
    return ok && !out->failed ? ERR_OK : err_set(ERR_NOMEM, "no memory to normalise a text of %zu bytes", len);
}

void normalizer_byte_level(const char *s, size_t len, struct buf *out)
{
    for (size_t i = 0; i < len; i++) {
        unsigned b = (unsigned char)s[i];
        if ((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174)
            put(out, b);
        else /* in the order of the bytes that are left: U+0100 and on */
            put(out, 256 + (b <= 32 ? b : b <= 160 ? b - 127 + 33 : 67));
    }
}

bool normalizer_is_white(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static void strip(const struct tokenizer_json_step *w, const char *s, size_t len, struct buf *out)
{
    size_t from = 0, n;
    while (w->left && from < len && normalizer_is_white(decode(s + from, len - from, &n)))
        from += n;
    while (w->right && len > from) {
        size_t k = len - 1;
        while (k > from && ((unsigned char)s[k] & 0xC0) == 0x80)
            k--;
        if (!normalizer_is_white(decode(s + k, len - k, &n)))
            break;
        len = k;
    }
    buf_append(out, s + from, len - from);
}

/* The characters that SentencePiece's nmt rules drop, and those that they make a space. */
static bool nmt_drops(uint32_t c)
{
    return (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
}

static bool nmt_space(uint32_t c)
{
    return c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 ||
           c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
}

static void by_character(enum tokenizer_json_kind kind, const char *s, size_t len, struct buf *out)
{
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t c = decode(s + i, len - i, &n);
        if (kind == TOKENIZER_JSON_NMT) {
            if (!nmt_drops(c))
                put(out, nmt_space(c) ? ' ' : c);
        } else if (kind == TOKENIZER_JSON_LOWERCASE) {
            if (c == 0x130) /* the only character whose small form is two */
                buf_puts(out, "i\xCC\x87");
            else
                put(out, (uint32_t)utf8proc_tolower((int32_t)c));
        } else {
            utf8proc_category_t cat = utf8proc_category((int32_t)c);
            if (cat != UTF8PROC_CATEGORY_MN && cat != UTF8PROC_CATEGORY_MC && cat != UTF8PROC_CATEGORY_ME)
                buf_append(out, s + i, n);
        }
    }
}

static enum err replace(const struct step *p, const char *s, size_t len, struct buf *out)
{
    struct gguf_str what = p->what->pattern, with = p->what->content;
    if (!p->regex) {
        size_t from = 0;
        for (const char *hit; what.len > 0 && (hit = memmem(s + from, len - from, what.s, what.len)) != NULL;) {
            buf_append(out, s + from, (size_t)(hit - s) - from);
            buf_append(out, with.s, with.len);
            from = (size_t)(hit - s) + what.len;
        }
        buf_append(out, s + from, len - from);
        return ERR_OK;
    }
    struct regex_find f;
    size_t done = 0, at = 0, from, to;
    bool found = true;
    TRY(regex_find_init(&f, p->regex));
    enum err e;
    while (at <= len) {
        TRY_GOTO(regex_find_next(&f, s, len, at, &found, &from, &to), fail);
        if (!found)
            break;
        buf_append(out, s + done, from - done);
        buf_append(out, with.s, with.len);
        done = to;
        at = to > from ? to : to + (to < len ? utf8_len_valid((unsigned char)s[to]) : 1);
    }
    buf_append(out, s + done, len - done);
fail:
    regex_find_deinit(&f);
    return e;
}

static enum err run_step(const struct step *p, const char *s, size_t len, struct buf *out)
{
    switch (p->what->kind) {
    case TOKENIZER_JSON_NFC:
        return normalizer_unicode(NORMALIZER_NFC, s, len, out);
    case TOKENIZER_JSON_NFD:
        return normalizer_unicode(NORMALIZER_NFD, s, len, out);
    case TOKENIZER_JSON_NFKC:
        return normalizer_unicode(NORMALIZER_NFKC, s, len, out);
    case TOKENIZER_JSON_NFKD:
        return normalizer_unicode(NORMALIZER_NFKD, s, len, out);
    case TOKENIZER_JSON_REPLACE:
        return replace(p, s, len, out);
    case TOKENIZER_JSON_STRIP:
        strip(p->what, s, len, out);
        break;
    case TOKENIZER_JSON_PREPEND:
        if (len > 0)
            buf_append(out, p->what->content.s, p->what->content.len);
        buf_append(out, s, len);
        break;
    case TOKENIZER_JSON_PRECOMPILED:
        charsmap_graphemes(&p->map, s, len, out);
        out->len = utf8_valid_prefix(out->data ? out->data : "", out->len); /* a hostile charsmap may make other bytes: they end the text */
        break;
    case TOKENIZER_JSON_BYTE_LEVEL:
        normalizer_byte_level(s, len, out);
        break;
    default:
        by_character(p->what->kind, s, len, out);
    }
    return ERR_OK;
}

enum err normalizer_run(const struct normalizer *n, const char *s, size_t len, struct buf *out)
{
    struct buf other;
    enum err e = ERR_OK;
    buf_init(&other);
    buf_clear(out);
    for (uint32_t i = 0; i < n->n; i++) {
        TRY_GOTO(run_step(&n->steps[i], s, len, &other), done);
        struct buf x = *out;
        *out = other;
        other = x;
        buf_clear(&other);
        s = out->data ? out->data : "";
        len = out->len;
        if (out->failed) {
            e = err_set(ERR_NOMEM, "no memory to normalise a text");
            goto done;
        }
    }
    if (n->n == 0)
        buf_append(out, s, len);
done:
    buf_deinit(&other);
    return e;
}

bool normalizer_is_empty(const struct normalizer *n)
{
    return n->n == 0;
}

static enum err init_step(struct step *p, const struct tokenizer_json_step *what)
{
    p->what = what;
    if (what->kind == TOKENIZER_JSON_PRECOMPILED)
        return charsmap_init(&p->map, what->content.s, what->content.len);
    if (what->kind == TOKENIZER_JSON_REPLACE && what->is_regex)
        return regex_create(what->pattern.s, what->pattern.len, &p->regex);
    return ERR_OK;
}

enum err normalizer_create(const struct tokenizer_json *j, struct normalizer **out)
{
    struct normalizer *n = calloc(1, sizeof(*n));
    enum err e = ERR_OK;
    *out = NULL;
    if (n)
        n->steps = calloc(j->n_normalizer + 1, sizeof(*n->steps));
    if (!n || !n->steps) {
        e = err_set(ERR_NOMEM, "no memory for a normalizer");
        goto fail;
    }
    for (; n->n < j->n_normalizer; n->n++) {
        e = init_step(&n->steps[n->n], &j->normalizer[n->n]);
        if (e != ERR_OK) {
            char why[300];
            snprintf(why, sizeof(why), "%s", err_detail());
            err_set(e, "tokenizer.json: normalizer: %s", why);
            goto fail;
        }
    }
    *out = n;
    return ERR_OK;
fail:
    normalizer_destroy(&n);
    return e;
}

void normalizer_destroy(struct normalizer **np)
{
    struct normalizer *n = *np;
    if (!n)
        return;
    for (uint32_t i = 0; n->steps && i < n->n; i++)
        regex_destroy(&n->steps[i].regex);
    free(n->steps);
    free(n);
    *np = NULL;
}
