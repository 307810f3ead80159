/* See splitter.h. A step that splits finds the cuts of one piece (stretches that match and stretches that do not, in
 * turn) and folds them by its behaviour; a step that rewrites copies all pieces into new text. Each piece is matched as
 * if it stood alone. */
#include "text/splitter.h"

#include "base/check.h"
#include "text/normalizer.h"
#include "text/regex.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* GPT-2's words, which ByteLevel cuts by when it is told to. */
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
/* Whitespace: the \w of Rust holds the joiners, too. */
#define WORDS "(?:\\w|[\\x{200C}\\x{200D}])+|(?:(?![\\x{200C}\\x{200D}])[^\\w\\s])+"
#define NUMERIC "\\p{N}"
#define PUNCTUATION "[\\p{P}$+<=>^`|~]"

struct splitter_cut {
    uint32_t at, len;
    bool match;
};
struct step {
    const struct tokenizer_json_step *what;
    struct regex *regex;
    enum tokenizer_json_behavior behavior;
    bool invert;
};
struct splitter {
    struct step *steps;
    uint32_t n;
};

void splitter_pieces_deinit(struct splitter_pieces *p)
{
    free(p->spans);
    free(p->spare);
    free(p->cuts);
    buf_deinit(&p->rewritten);
    buf_deinit(&p->spare_text);
    memset(p, 0, sizeof(*p));
}

static enum err push(struct splitter_pieces *p, size_t at, size_t len)
{
    if (len == 0)
        return ERR_OK;
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 256;
        struct splitter_span *s = realloc(p->spans, cap * sizeof(*s));
        if (!s)
            return err_set(ERR_NOMEM, "no memory for %zu words of a text", cap);
        p->spans = s;
        p->cap = cap;
    }
    p->spans[p->n++] = (struct splitter_span){(uint32_t)at, (uint32_t)len};
    return ERR_OK;
}

static enum err cut(struct splitter_pieces *p, size_t at, size_t len, bool match)
{
    if (len == 0)
        return ERR_OK;
    if (p->n_cuts == p->cuts_cap) {
        size_t cap = p->cuts_cap ? p->cuts_cap * 2 : 256;
        struct splitter_cut *c = realloc(p->cuts, cap * sizeof(*c));
        if (!c)
            return err_set(ERR_NOMEM, "no memory for %zu words of a text", cap);
        p->cuts = c;
        p->cuts_cap = cap;
    }
    p->cuts[p->n_cuts++] = (struct splitter_cut){(uint32_t)at, (uint32_t)len, match};
    return ERR_OK;
}

/* Matches of a string, one by one; nothing matches an empty one. */
static enum err cut_string(struct splitter_pieces *p, struct gguf_str what, struct splitter_span in, bool invert)
{
    const char *s = p->text + in.at;
    size_t from = 0;
    for (const char *hit; what.len > 0 && (hit = memmem(s + from, in.len - from, what.s, what.len)) != NULL;) {
        size_t at = (size_t)(hit - s);
        TRY(cut(p, in.at + from, at - from, invert));
        TRY(cut(p, in.at + at, what.len, !invert));
        from = at + what.len;
    }
    return cut(p, in.at + from, in.len - from, invert);
}

static enum err cut_regex(struct splitter_pieces *p, struct regex_find *f, struct splitter_span in, bool invert)
{
    const char *s = p->text + in.at;
    size_t done = 0, at = 0, from, to;
    while (at < in.len) {
        bool found;
        TRY(regex_find_next(f, s, in.len, at, &found, &from, &to));
        if (!found)
            break;
        TRY(cut(p, in.at + done, from - done, invert));
        TRY(cut(p, in.at + from, to - from, !invert));
        done = to;
        at = to > from ? to : to + (to < in.len ? utf8_len_valid((unsigned char)s[to]) : 1);
    }
    return cut(p, in.at + done, in.len - done, invert);
}

/* Cuts to pieces. Merged with previous: a match joins what stands before it, but not another match; with next: the same
 * from the other end. */
static enum err fold(struct splitter_pieces *p, enum tokenizer_json_behavior behavior)
{
    const struct splitter_cut *c = p->cuts;
    size_t n = p->n_cuts;
    for (size_t i = 0; i < n;) {
        size_t k = i + 1;
        switch (behavior) {
        case TOKENIZER_JSON_REMOVED:
            if (c[i].match) {
                i++;
                continue;
            }
            break;
        case TOKENIZER_JSON_CONTIGUOUS:
            while (k < n && c[k].match == c[i].match)
                k++;
            break;
        case TOKENIZER_JSON_MERGED_WITH_PREVIOUS:
            k += !c[i].match && k < n && c[k].match;
            break;
        case TOKENIZER_JSON_MERGED_WITH_NEXT:
            k += c[i].match && k < n && !c[k].match;
            break;
        case TOKENIZER_JSON_ISOLATED:
            break;
        }
        TRY(push(p, c[i].at, c[k - 1].at + c[k - 1].len - c[i].at));
        i = k;
    }
    return ERR_OK;
}

/* The spans so far become the input of a step. */
static size_t turn(struct splitter_pieces *p)
{
    struct splitter_span *s = p->spans;
    size_t cap = p->cap, n = p->n;
    p->spans = p->spare;
    p->cap = p->spare_cap;
    p->spare = s;
    p->spare_cap = cap;
    p->n = 0;
    return n;
}

static enum err split(const struct step *st, const char *string, size_t string_len, enum tokenizer_json_behavior behavior,
                      struct splitter_pieces *p)
{
    struct regex_find f = {0};
    enum err e = ERR_OK;
    size_t n = turn(p);
    if (st->regex)
        TRY(regex_find_init(&f, st->regex));
    for (size_t i = 0; i < n; i++) {
        p->n_cuts = 0;
        if (st->regex)
            TRY_GOTO(cut_regex(p, &f, p->spare[i], st->invert), done);
        else
            TRY_GOTO(cut_string(p, (struct gguf_str){string, string_len}, p->spare[i], st->invert), done);
        TRY_GOTO(fold(p, behavior), done);
    }
done:
    if (st->regex)
        regex_find_deinit(&f);
    return e;
}

/* All pieces into new text. */
typedef void rewrite_fn(const struct step *st, const char *s, size_t len, bool first, struct buf *out);

static enum err rewrite(rewrite_fn *fn, const struct step *st, bool first, struct splitter_pieces *p)
{
    size_t n = turn(p);
    buf_clear(&p->spare_text);
    for (size_t i = 0; i < n; i++) {
        struct splitter_span in = p->spare[i];
        size_t from = p->spare_text.len;
        fn(st, p->text + in.at, in.len, first && in.at == 0, &p->spare_text);
        if (p->spare_text.failed || p->spare_text.len > UINT32_MAX)
            return err_set(ERR_NOMEM, "no memory to cut a text into words");
        TRY(push(p, from, p->spare_text.len - from));
    }
    struct buf b = p->rewritten;
    p->rewritten = p->spare_text;
    p->spare_text = b;
    p->text = p->rewritten.data ? p->rewritten.data : "";
    return ERR_OK;
}

static void add_space(const struct step *st, const char *s, size_t len, bool first, struct buf *out)
{
    (void)st;
    (void)first;
    if (len > 0 && s[0] != ' ')
        buf_putc(out, ' ');
    buf_append(out, s, len);
}

static void to_byte_level(const struct step *st, const char *s, size_t len, bool first, struct buf *out)
{
    (void)st;
    (void)first;
    normalizer_byte_level(s, len, out);
}

static void metaspace(const struct step *st, const char *s, size_t len, bool first, struct buf *out)
{
    struct gguf_str r = st->what->pattern;
    bool prepend = st->what->prepend == TOKENIZER_JSON_ALWAYS || (st->what->prepend == TOKENIZER_JSON_FIRST && first);
    if (prepend && len > 0 && s[0] != ' ' && (len < r.len || memcmp(s, r.s, r.len) != 0))
        buf_append(out, r.s, r.len);
    while (len > 0) {
        const char *space = memchr(s, ' ', len);
        size_t n = space ? (size_t)(space - s) : len;
        buf_append(out, s, n);
        if (space)
            buf_append(out, r.s, r.len);
        s += n + (space != NULL);
        len -= n + (space != NULL);
    }
}

static enum err run_step(const struct step *st, bool first, struct splitter_pieces *p)
{
    const struct tokenizer_json_step *w = st->what;
    switch (w->kind) {
    case TOKENIZER_JSON_BYTE_LEVEL:
        if (w->prepend == TOKENIZER_JSON_ALWAYS)
            TRY(rewrite(add_space, st, first, p));
        if (w->split)
            TRY(split(st, NULL, 0, TOKENIZER_JSON_ISOLATED, p));
        return rewrite(to_byte_level, st, first, p);
    case TOKENIZER_JSON_METASPACE:
        TRY(rewrite(metaspace, st, first, p));
        return w->split ? split(st, w->pattern.s, w->pattern.len, TOKENIZER_JSON_MERGED_WITH_NEXT, p) : ERR_OK;
    default:
        return split(st, w->pattern.s, w->pattern.len, st->behavior, p);
    }
}

enum err splitter_run(const struct splitter *s, const char *text, size_t len, bool first, struct splitter_pieces *p)
{
    ASSERT(len <= UINT32_MAX);
    p->text = text;
    p->n = 0;
    TRY(push(p, 0, len));
    for (uint32_t i = 0; i < s->n; i++)
        TRY(run_step(&s->steps[i], first, p));
    return ERR_OK;
}

static enum err init_step(struct step *st, const struct tokenizer_json_step *w)
{
    st->what = w;
    st->behavior = w->behavior;
    switch (w->kind) {
    case TOKENIZER_JSON_SPLIT:
        st->invert = w->invert;
        return w->is_regex ? regex_create(w->pattern.s, w->pattern.len, &st->regex) : ERR_OK;
    case TOKENIZER_JSON_BYTE_LEVEL:
        return w->split ? regex_create(GPT2, strlen(GPT2), &st->regex) : ERR_OK;
    case TOKENIZER_JSON_DIGITS:
        st->behavior = w->individual ? TOKENIZER_JSON_ISOLATED : TOKENIZER_JSON_CONTIGUOUS;
        return regex_create(NUMERIC, strlen(NUMERIC), &st->regex);
    case TOKENIZER_JSON_PUNCTUATION:
        return regex_create(PUNCTUATION, strlen(PUNCTUATION), &st->regex);
    case TOKENIZER_JSON_WHITESPACE: /* what matches is kept, the rest goes */
        st->behavior = TOKENIZER_JSON_REMOVED;
        st->invert = true;
        return regex_create(WORDS, strlen(WORDS), &st->regex);
    case TOKENIZER_JSON_WHITESPACE_SPLIT:
        st->behavior = TOKENIZER_JSON_REMOVED;
        return regex_create("\\s", 2, &st->regex);
    default:
        return ERR_OK;
    }
}

enum err splitter_create(const struct tokenizer_json *j, struct splitter **out)
{
    struct splitter *s = calloc(1, sizeof(*s));
    enum err e = ERR_OK;
    *out = NULL;
    if (s)
        s->steps = calloc(j->n_pre + 1, sizeof(*s->steps));
    if (!s || !s->steps) {
        e = err_set(ERR_NOMEM, "no memory for a pre-tokeniser");
        goto fail;
    }
    for (; s->n < j->n_pre; s->n++) {
        e = init_step(&s->steps[s->n], &j->pre[s->n]);
        if (e != ERR_OK) {
            char why[300];
            snprintf(why, sizeof(why), "%s", err_detail());
            err_set(e, "tokenizer.json: pre_tokenizer: %s", why);
            goto fail;
        }
    }
    *out = s;
    return ERR_OK;
fail:
    splitter_destroy(&s);
    return e;
}

void splitter_destroy(struct splitter **sp)
{
    struct splitter *s = *sp;
    if (!s)
        return;
    for (uint32_t i = 0; s->steps && i < s->n; i++)
        regex_destroy(&s->steps[i].regex);
    free(s->steps);
    free(s);
    *sp = NULL;
}
