/* See tokenizer_hf.h. The BPE model here starts from characters, not from bytes: a character that is no token falls back
 * to its bytes' tokens or to the unknown token. A piece may be the whole text (Llama 2's file has no pre-tokeniser), so
 * a long one is merged in parts: between two characters that no token made by a merge holds side by side, no merge can
 * ever reach across. */
#include "text/tokenizer_hf.h"

#include "base/buf.h"
#include "base/check.h"
#include "text/added_tokens.h"
#include "text/splitter.h"
#include "text/tokenizer_impl.h"
#include "text/tokenizer_unigram.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>

enum { CHARS = 0x180, PAIR_BITS = 20, PART_MIN = 64 };

struct tokenizer_hf {
    const struct tokenizer *t;
    const struct tokenizer_json *json;
    struct normalizer *normalizer;
    struct splitter *splitter;
    struct added_tokens raw, normalized;
    struct tokenizer_unigram *unigram;
    uint32_t chars[CHARS];   /* tokens of the first characters, which byte-level text is made of */
    uint32_t byte_ids[256];  /* of byte fallback */
    uint64_t *pairs;         /* a bit for each hash of two characters that stand side by side in a merged token */
    bool parts;              /* pieces may be merged in parts */
};

static uint32_t pair_bit(uint32_t a, uint32_t b)
{
    return (uint32_t)((((uint64_t)a << 21 | b) * 0x9E3779B97F4A7C15ull) >> (64 - PAIR_BITS));
}

/* The id of a text that the model itself knows. */
static uint32_t model_token(const struct tokenizer_hf *h, const char *s, size_t len)
{
    uint32_t id = tokenizer_find(h->t, s, len);
    return id != TOKEN_NONE && h->json->in_model[id] ? id : TOKEN_NONE;
}

static enum err learn_pairs(struct tokenizer_hf *h)
{
    const struct vocab *v = h->t->v;
    h->pairs = calloc((1u << PAIR_BITS) / 64, sizeof(*h->pairs));
    if (!h->pairs)
        return err_set(ERR_NOMEM, "no memory for a tokenizer");
    h->parts = true;
    for (uint64_t m = 0; m < v->n_merges; m++) {
        const struct vocab_merge *g = &v->merge_ids[m];
        struct gguf_str w = v->tokens[g->result];
        uint32_t last = 0, cp;
        size_t bad;
        bool cut;
        for (size_t i = 0, n; i < w.len; i += n) {
            n = utf8_decode(w.s + i, w.len - i, &cp, &bad, &cut);
            ASSERT(n > 0); /* jansson takes valid UTF-8 only */
            uint32_t bit = pair_bit(last, cp);
            if (i > 0)
                h->pairs[bit / 64] |= 1ull << bit % 64;
            last = cp;
        }
        /* Tokens of bytes and the unknown one stand for other characters than they are written with. */
        const uint32_t parts[] = {g->left, g->right};
        for (unsigned k = 0; k < 2; k++)
            if (v->types[parts[k]] == VOCAB_BYTE || (int32_t)parts[k] == v->unk)
                h->parts = false;
    }
    return ERR_OK;
}

static enum err init_bpe(struct tokenizer_hf *h)
{
    for (uint32_t c = 0; c < CHARS; c++) {
        char s[4];
        h->chars[c] = model_token(h, s, utf8_encode(c, s));
    }
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof(name), "<0x%02X>", b);
        h->byte_ids[b] = h->json->byte_fallback ? model_token(h, name, 6) : TOKEN_NONE;
    }
    return learn_pairs(h);
}

enum err tokenizer_hf_create(const struct tokenizer *t, struct tokenizer_hf **out)
{
    enum err e;
    struct tokenizer_hf *h = calloc(1, sizeof(*h));
    *out = NULL;
    if (!h)
        return err_set(ERR_NOMEM, "no memory for a tokenizer");
    h->t = t;
    h->json = t->v->json;
    TRY_GOTO(normalizer_create(h->json, &h->normalizer), fail);
    TRY_GOTO(splitter_create(h->json, &h->splitter), fail);
    TRY_GOTO(added_tokens_init(&h->raw, t->v, false, h->normalizer), fail);
    TRY_GOTO(added_tokens_init(&h->normalized, t->v, true, h->normalizer), fail);
    TRY_GOTO(t->v->kind == VOCAB_UNIGRAM ? tokenizer_unigram_create(t->v, &h->unigram) : init_bpe(h), fail);
    *out = h;
    return ERR_OK;
fail:
    tokenizer_hf_destroy(&h);
    return e;
}

void tokenizer_hf_destroy(struct tokenizer_hf **hp)
{
    struct tokenizer_hf *h = *hp;
    if (!h)
        return;
    normalizer_destroy(&h->normalizer);
    splitter_destroy(&h->splitter);
    added_tokens_deinit(&h->raw);
    added_tokens_deinit(&h->normalized);
    tokenizer_unigram_destroy(&h->unigram);
    free(h->pairs);
    free(h);
    *hp = NULL;
}

/* The symbols of a piece, before merging. */
struct word {
    const struct tokenizer_hf *h;
    struct tokenizer_work *merge;
    struct tokens ids, *out;
    uint32_t unk_held; /* an unknown token that the next one may become part of, or TOKEN_NONE */
    uint32_t last;     /* the last character, or UNICODE_NONE behind a symbol that is none */
};
#define UNICODE_NONE UINT32_MAX

static enum err flush(struct word *w)
{
    size_t n = w->ids.n;
    if (n > 1) {
        TRY(tokens_push(&w->ids, TOKEN_NONE)); /* room for one more */
        TRY(tokenizer_bpe_merge(w->h->t, w->merge, w->ids.ids, &n));
    }
    for (size_t i = 0; i < n; i++)
        TRY(tokens_push(w->out, w->ids.ids[i]));
    w->ids.n = 0;
    return ERR_OK;
}

/* cp: the character that the symbol is; UNICODE_NONE for bytes and the unknown token. */
static enum err add_symbol(struct word *w, uint32_t id, uint32_t cp)
{
    const struct tokenizer_hf *h = w->h;
    if (w->ids.n >= PART_MIN && h->parts) {
        uint32_t bit = pair_bit(w->last, cp);
        if (w->last == UNICODE_NONE || cp == UNICODE_NONE || !(h->pairs[bit / 64] >> bit % 64 & 1))
            TRY(flush(w));
    }
    w->last = cp;
    return tokens_push(&w->ids, id);
}

static enum err release_unknown(struct word *w)
{
    uint32_t id = w->unk_held;
    w->unk_held = TOKEN_NONE;
    return id == TOKEN_NONE ? ERR_OK : add_symbol(w, id, UNICODE_NONE);
}

/* A character that is no token. As the library does it, an unknown token that is held back is not released by bytes. */
static enum err add_unknown(struct word *w, const char *s, size_t len)
{
    const struct tokenizer_hf *h = w->h;
    bool bytes = h->json->byte_fallback;
    for (size_t i = 0; i < len && bytes; i++)
        bytes = h->byte_ids[(unsigned char)s[i]] != TOKEN_NONE;
    for (size_t i = 0; i < len && bytes; i++)
        TRY(add_symbol(w, h->byte_ids[(unsigned char)s[i]], UNICODE_NONE));
    if (bytes || h->t->v->unk < 0)
        return ERR_OK;
    if (!h->json->fuse_unk)
        TRY(release_unknown(w));
    w->unk_held = (uint32_t)h->t->v->unk;
    return ERR_OK;
}

static enum err encode_bpe(struct word *w, const char *s, size_t len)
{
    const struct tokenizer_hf *h = w->h;
    if (h->json->ignore_merges) {
        uint32_t id = model_token(h, s, len);
        if (id != TOKEN_NONE)
            return tokens_push(w->out, id);
    }
    w->ids.n = 0;
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t cp = 0;
        size_t bad;
        bool cut;
        n = utf8_decode(s + i, len - i, &cp, &bad, &cut);
        uint32_t id = n > 0 && cp < CHARS ? h->chars[cp] : n > 0 ? model_token(h, s + i, n) : TOKEN_NONE;
        n = n > 0 ? n : bad;
        if (id == TOKEN_NONE) {
            TRY(add_unknown(w, s + i, n));
        } else {
            TRY(release_unknown(w));
            TRY(add_symbol(w, id, cp));
        }
    }
    TRY(release_unknown(w));
    return flush(w);
}

/* The scratch memory of one call. */
struct hf_work {
    struct buf valid, normal;
    struct splitter_pieces pieces;
    struct word word;
};

/* Text without added tokens. */
static enum err encode_text(const struct tokenizer_hf *h, struct hf_work *w, const char *s, size_t len, bool first)
{
    TRY(splitter_run(h->splitter, s, len, first, &w->pieces));
    const struct splitter_pieces *p = &w->pieces;
    for (size_t i = 0; i < p->n; i++) {
        const char *piece = p->text + p->spans[i].at;
        TRY(h->unigram ? tokenizer_unigram_pieces(h->unigram, piece, p->spans[i].len, w->word.out)
                       : encode_bpe(&w->word, piece, p->spans[i].len));
    }
    return ERR_OK;
}

/* Text without added tokens that stand in it as they are; others may be in its normal form. */
static enum err encode_stretch(const struct tokenizer_hf *h, struct hf_work *w, const char *s, size_t len,
                               unsigned flags, bool first)
{
    struct added_tokens_scan scan = {0, 0};
    size_t from, to;
    uint32_t id;
    if (!normalizer_is_empty(h->normalizer)) {
        TRY(normalizer_run(h->normalizer, s, len, &w->normal));
        s = w->normal.data ? w->normal.data : "";
        len = w->normal.len;
    }
    while (added_tokens_next(&h->normalized, s, len, flags & TOKENIZER_PARSE, &scan, &from, &to, &id))
        if (id != TRIE_NONE)
            TRY(tokens_push(w->word.out, id));
        else
            TRY(encode_text(h, w, s + from, to - from, first && from == 0));
    return ERR_OK;
}

/* Bytes that are no UTF-8 become U+FFFD, one for each longest beginning of a character. */
static enum err make_valid(struct buf *out, const char **s, size_t *len)
{
    size_t i = utf8_valid_prefix(*s, *len), bad;
    uint32_t cp;
    bool cut;
    if (i == *len)
        return ERR_OK;
    buf_append(out, *s, i);
    while (i < *len) {
        utf8_decode(*s + i, *len - i, &cp, &bad, &cut);
        buf_puts(out, "\xEF\xBF\xBD");
        i += bad;
        size_t n = utf8_valid_prefix(*s + i, *len - i);
        buf_append(out, *s + i, n);
        i += n;
    }
    *s = out->data;
    *len = out->len;
    return out->failed ? err_set(ERR_NOMEM, "no memory for a text of %zu bytes", *len) : ERR_OK;
}

enum err tokenizer_hf_encode(const struct tokenizer_hf *h, struct tokenizer_work *merge, const char *text, size_t len,
                             unsigned flags, struct tokens *out)
{
    struct hf_work w = {.word = {.h = h, .merge = merge, .out = out, .unk_held = TOKEN_NONE, .last = UNICODE_NONE}};
    struct added_tokens_scan scan = {0, 0};
    const struct tokenizer_json *j = h->json;
    bool around = flags & TOKENIZER_SPECIAL;
    size_t from, to;
    uint32_t id;
    enum err e;
    buf_init(&w.valid);
    buf_init(&w.normal);
    TRY_GOTO(make_valid(&w.valid, &text, &len), done);
    for (uint32_t i = 0; around && i < j->n_prefix; i++)
        TRY_GOTO(tokens_push(out, j->prefix[i]), done);
    while (added_tokens_next(&h->raw, text, len, flags & TOKENIZER_PARSE, &scan, &from, &to, &id))
        if (id != TRIE_NONE)
            TRY_GOTO(tokens_push(out, id), done);
        else
            TRY_GOTO(encode_stretch(h, &w, text + from, to - from, flags, from == 0), done);
    for (uint32_t i = 0; around && i < j->n_suffix; i++)
        TRY_GOTO(tokens_push(out, j->suffix[i]), done);
done:
    buf_deinit(&w.valid);
    buf_deinit(&w.normal);
    splitter_pieces_deinit(&w.pieces);
    tokens_deinit(&w.word.ids);
    return e;
}

static void replace_all(struct buf *text, struct gguf_str what, struct gguf_str with)
{
    struct buf out;
    size_t from = 0;
    const char *s = text->data ? text->data : "";
    buf_init(&out);
    for (const char *hit; what.len > 0 && (hit = memmem(s + from, text->len - from, what.s, what.len)) != NULL;) {
        buf_append(&out, s + from, (size_t)(hit - s) - from);
        buf_append(&out, with.s, with.len);
        from = (size_t)(hit - s) + what.len;
    }
    if (from > 0) {
        buf_append(&out, s + from, text->len - from);
        buf_clear(text);
        buf_append(text, out.data, out.len);
    }
    buf_deinit(&out);
}

/* Steps of the decoder that look at one token alone; the space that Strip and Metaspace take from the first one is the
 * detokenizer's matter (vocab.strip_space). */
void tokenizer_hf_piece(const struct tokenizer_hf *h, uint32_t id, struct buf *out)
{
    static const struct gguf_str space = {" ", 1};
    const struct vocab *v = h->t->v;
    struct buf text, bytes;
    unsigned b;
    buf_init(&text);
    buf_init(&bytes);
    buf_append(&text, v->tokens[id].s, v->tokens[id].len);
    for (uint32_t i = 0; i < h->json->n_decoder; i++) {
        const struct tokenizer_json_step *d = &h->json->decoder[i];
        if (d->kind == TOKENIZER_JSON_REPLACE) {
            replace_all(&text, d->pattern, d->content);
        } else if (d->kind == TOKENIZER_JSON_METASPACE) {
            replace_all(&text, d->pattern, space);
        } else if (d->kind == TOKENIZER_JSON_BYTE_FALLBACK) {
            if (text.len == 6 && sscanf(text.data, "<0x%2X>", &b) == 1 && text.data[5] == '>') {
                buf_clear(&text);
                buf_putc(&text, (char)b);
            }
        } else if (d->kind == TOKENIZER_JSON_BYTE_LEVEL) {
            struct gguf_str w = {text.data ? text.data : "", text.len};
            buf_clear(&bytes);
            tokenizer_bpe_bytes(&w, &bytes);
            buf_clear(&text);
            buf_append(&text, bytes.data, bytes.len);
        }
    }
    buf_append(out, text.data, text.len);
    buf_deinit(&text);
    buf_deinit(&bytes);
}
