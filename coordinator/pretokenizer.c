/* See pretokenizer.h. PCRE2 with JIT, UTF and UCP. PCRE2's \s is White_Space and U+180E, which newer Unicode took out
 * of it: the class is written out when a pattern is compiled. A subject is one stretch of valid UTF-8, so that PCRE2
 * need not check it at every match, and each further pattern sees a piece as if it stood alone (`$` and lookaheads end
 * with it). */
#include "coordinator/pretokenizer.h"

#include "base/buf.h"
#include "base/check.h"
#include "coordinator/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum { PATTERNS_MAX = 6, MATCH_LIMIT = 200 << 20, HEAP_LIMIT_KIB = 64 << 10 };

enum pretokenizer_id {
#define PRETOKENIZER(id, flags, ...) PRE_ID_##id,
#define PRETOKENIZER_NAME(name, id)
#include "coordinator/pretokenizers.def"
#undef PRETOKENIZER
#undef PRETOKENIZER_NAME
};
static const struct {
    unsigned flags;
    const char *patterns[PATTERNS_MAX + 1]; /* NULL after the last */
} kinds[] = {
#define PRETOKENIZER(id, flags, ...) {flags, {__VA_ARGS__}},
#define PRETOKENIZER_NAME(name, id)
#include "coordinator/pretokenizers.def"
#undef PRETOKENIZER
#undef PRETOKENIZER_NAME
};
static const struct {
    const char *name;
    enum pretokenizer_id id;
} names[] = {
#define PRETOKENIZER(id, flags, ...)
#define PRETOKENIZER_NAME(name, id) {name, PRE_ID_##id},
#include "coordinator/pretokenizers.def"
#undef PRETOKENIZER
#undef PRETOKENIZER_NAME
};

struct pretokenizer {
    unsigned flags;
    size_t n;
    pcre2_code *codes[PATTERNS_MAX];
    bool jit[PATTERNS_MAX];
    pcre2_match_context *limits;
};

#define WHITE_SPACE                                                                                                    \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"

/* \s and \S as explicit classes. Inside a class only \s occurs in the table. */
static void expand_spaces(const char *p, struct buf *out)
{
    bool in_class = false;
    for (; *p != 0; p++) {
        if (*p == '\\') {
            p++;
            ASSERT(*p != 0 && !(in_class && *p == 'S'));
            if (*p == 's')
                buf_puts(out, in_class ? WHITE_SPACE : "[" WHITE_SPACE "]");
            else if (*p == 'S')
                buf_puts(out, "[^" WHITE_SPACE "]");
            else
                buf_append(out, p - 1, 2);
            continue;
        }
        if (*p == '[')
            in_class = true;
        else if (*p == ']')
            in_class = false;
        buf_putc(out, *p);
    }
}

static enum err compile(struct pretokenizer *p, const char *pattern)
{
    struct buf full;
    buf_init(&full);
    expand_spaces(pattern, &full);
    if (full.failed) {
        buf_deinit(&full);
        return err_set(ERR_NOMEM, "no memory for a pre-tokeniser pattern");
    }
    int code = 0;
    PCRE2_SIZE at = 0;
    pcre2_code *c =
        pcre2_compile((PCRE2_SPTR)full.data, full.len, PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY, &code, &at, NULL);
    buf_deinit(&full);
    if (c == NULL)
        return err_set(ERR_INTERNAL, "pre-tokeniser pattern refused by PCRE2: error %d at offset %zu", code,
                       (size_t)at);
    p->codes[p->n] = c;
    p->jit[p->n] = pcre2_jit_compile(c, PCRE2_JIT_COMPLETE) == 0;
    p->n++;
    return ERR_OK;
}

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
    enum err e = ERR_OK;
    for (size_t i = 0; kinds[id].patterns[i] != NULL; i++)
        TRY_GOTO(compile(p, kinds[id].patterns[i]), fail);
    p->limits = pcre2_match_context_create(NULL);
    if (p->limits == NULL) {
        e = err_set(ERR_NOMEM, "no memory for a pre-tokeniser");
        goto fail;
    }
    pcre2_set_match_limit(p->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(p->limits, HEAP_LIMIT_KIB);
    *out = p;
    return ERR_OK;
fail:
    pretokenizer_destroy(&p);
    return e;
}

void pretokenizer_destroy(struct pretokenizer **pp)
{
    struct pretokenizer *p = *pp;
    if (p == NULL)
        return;
    for (size_t i = 0; i < p->n; i++)
        pcre2_code_free(p->codes[i]);
    pcre2_match_context_free(p->limits);
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

static enum err push_end(struct pretokenizer_pieces *w, size_t end)
{
    if (w->n == w->cap) {
        size_t cap = w->cap == 0 ? 64 : w->cap * 2;
        uint32_t *ends = realloc(w->ends, cap * sizeof(*ends));
        if (ends == NULL)
            return err_set(ERR_NOMEM, "no memory for %zu words of a text", cap);
        w->ends = ends;
        w->cap = cap;
    }
    w->ends[w->n++] = (uint32_t)end;
    return ERR_OK;
}

/* JIT first; its small stack is enough for all but odd patterns, for which the interpreter goes on. */
static int match(const struct pretokenizer *p, size_t i, const char *s, size_t len, size_t at, pcre2_match_data *md)
{
    if (p->jit[i]) {
        int rc = pcre2_jit_match(p->codes[i], (PCRE2_SPTR)s, len, at, 0, md, p->limits);
        if (rc != PCRE2_ERROR_JIT_STACKLIMIT)
            return rc;
    }
    return pcre2_match(p->codes[i], (PCRE2_SPTR)s, len, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, md, p->limits);
}

/* One pattern over one piece text[from, to). */
static enum err split_piece(const struct pretokenizer *p, size_t i, const char *text, size_t from, size_t to,
                            pcre2_match_data *md, struct pretokenizer_pieces *w)
{
    const char *s = text + from;
    size_t len = to - from, done = 0, at = 0;
    while (at < len) {
        int rc = match(p, i, s, len, at, md);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return err_set(ERR_TOO_BIG, "the pre-tokeniser gave up on a text of %zu bytes (PCRE2 error %d)", len, rc);
        const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(md);
        size_t a = ov[0], b = ov[1];
        if (a > done)
            TRY(push_end(w, from + a));
        if (b > a)
            TRY(push_end(w, from + b));
        done = b;
        at = b > a ? b : b + utf8_len_valid((unsigned char)s[b]);
    }
    return done < len ? push_end(w, to) : ERR_OK;
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
    pcre2_match_data *md = pcre2_match_data_create(8, NULL);
    if (md == NULL)
        return err_set(ERR_NOMEM, "no memory for a match");
    enum err e = ERR_OK;
    for (size_t i = 0; i < p->n; i++) {
        uint32_t *prev = w->ends;
        size_t n_prev = w->n, prev_cap = w->cap;
        w->ends = w->spare;
        w->cap = w->spare_cap;
        w->spare = prev;
        w->spare_cap = prev_cap;
        w->n = 0;
        size_t from = 0;
        for (size_t k = 0; k < n_prev; from = w->spare[k], k++) {
            size_t to = w->spare[k];
            if (utf8_valid_prefix(text + from, MIN(to - from, 4)) == 0)
                TRY_GOTO(push_end(w, to), done);
            else
                TRY_GOTO(split_piece(p, i, text, from, to, md, w), done);
        }
    }
done:
    pcre2_match_data_free(md);
    return e;
}
