/* Byte-level BPE (the way of GPT-2): text is cut into words by the pre-tokeniser, each byte of a word is a token, and the
 * adjacent pair of lowest rank is merged until none is left; of equal ranks the leftmost (tokenizer_merge.h). Merges are
 * kept as ids, so that merging never touches a string. A byte that has no token is left out. PRE_RAW: characters instead
 * of bytes are the first tokens, and a missing one is spelled out in byte tokens. */
#include "base/buf.h"
#include "base/check.h"
#include "text/tokenizer_merge.h"
#include "text/utf8.h"

#include <stdlib.h>

enum { WORD_CACHED_MAX = 16, WORD_ENCODED_MAX = 512 };

/* The printable character by which GGUF files write byte b: itself where it is printable Latin-1, else U+0100 and on.
 */
static uint32_t byte_char(unsigned b)
{
    if ((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174)
        return b;
    return 256 + (b <= 32 ? b : b <= 160 ? b - 127 + 33 : 67);
}

/* The byte of such a character, or -1. */
static int char_byte(uint32_t c)
{
    if (c < 256)
        return byte_char(c) == c ? (int)c : -1;
    if (c > 256 + 67)
        return -1;
    c -= 256;
    return (int)(c <= 32 ? c : c < 67 ? c - 33 + 127 : 173);
}

void tokenizer_bpe_bytes(const struct gguf_str *token, struct buf *out)
{
    for (size_t i = 0; i < token->len;) {
        uint32_t cp = 0;
        size_t bad;
        bool cut;
        size_t n = utf8_decode(token->s + i, token->len - i, &cp, &bad, &cut);
        int b = n == 0 ? -1 : char_byte(cp);
        if (b >= 0)
            buf_putc(out, (char)b);
        else
            buf_append(out, token->s + i, n == 0 ? bad : n);
        i += n == 0 ? bad : n;
    }
}

static inline uint32_t pair_slot(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15ull;
    return (uint32_t)(h >> 32 ^ h >> 12) & t->pair_mask;
}

/* The rank of merging left and right, or TOKEN_NONE. */
static inline uint32_t pair_rank(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    for (uint32_t i = pair_slot(t, left, right);; i = (i + 1) & t->pair_mask) {
        const struct bpe_pair *p = &t->pairs[i];
        if ((p->left == left && p->right == right) || p->rank == TOKEN_NONE)
            return p->rank;
    }
}

/* "left right"; the left part is at least one byte, so that it may be a space itself. */
static bool parse_merge(const struct tokenizer *t, const struct gguf_str *s, struct buf *joined, struct vocab_merge *m)
{
    const char *sp = s->len < 3 ? NULL : memchr(s->s + 1, ' ', s->len - 1);
    if (sp == NULL)
        return false;
    size_t left = (size_t)(sp - s->s), right = s->len - left - 1;
    m->left = tokenizer_find(t, s->s, left);
    m->right = tokenizer_find(t, sp + 1, right);
    buf_clear(joined);
    buf_append(joined, s->s, left);
    buf_append(joined, sp + 1, right);
    m->result = joined->failed ? TOKEN_NONE : tokenizer_find(t, joined->data, joined->len);
    return m->left != TOKEN_NONE && m->right != TOKEN_NONE && m->result != TOKEN_NONE;
}

/* Merges whose parts are no tokens can never be reached from bytes and are left out. */
enum err tokenizer_bpe_merges_init(struct tokenizer *t)
{
    const struct vocab *v = t->v;
    uint64_t n = v->n_merges, cap = 16;
    if (n >= UINT32_MAX / 4)
        return err_set(ERR_TOO_BIG, "tokenizer.ggml.merges has %llu entries", (unsigned long long)n);
    while (cap < n * 3 / 2)
        cap *= 2;
    t->results = calloc(n + 1, sizeof(*t->results));
    t->pairs = malloc(cap * sizeof(*t->pairs));
    if (t->results == NULL || t->pairs == NULL)
        return err_set(ERR_NOMEM, "no memory for %llu merges", (unsigned long long)n);
    memset(t->pairs, 0xFF, cap * sizeof(*t->pairs));
    t->pair_mask = (uint32_t)(cap - 1);
    struct buf joined;
    buf_init(&joined);
    for (uint64_t i = 0; i < n; i++) {
        struct vocab_merge m;
        if (v->merge_ids != NULL)
            m = v->merge_ids[i];
        else if (!parse_merge(t, &v->merges[i], &joined, &m))
            continue;
        if (pair_rank(t, m.left, m.right) != TOKEN_NONE)
            continue;
        uint32_t s = pair_slot(t, m.left, m.right);
        while (t->pairs[s].rank != TOKEN_NONE)
            s = (s + 1) & t->pair_mask;
        t->pairs[s] = (struct bpe_pair){m.left, m.right, t->n_orders};
        t->results[t->n_orders++] = m.result;
    }
    buf_deinit(&joined);
    return ERR_OK;
}

enum err tokenizer_bpe_init(struct tokenizer *t)
{
    TRY(pretokenizer_create(t->v->pre.s, t->v->pre.len, &t->pre));
    t->pre_flags = pretokenizer_flags(t->pre);
    if (t->pre_flags & PRE_RAW) {
        tokenizer_spm_byte_ids(t);
        return tokenizer_bpe_merges_init(t);
    }
    for (unsigned b = 0; b < 256; b++) {
        char c[4];
        uint32_t id = tokenizer_find(t, c, utf8_encode(byte_char(b), c));
        uint8_t type = id == TOKEN_NONE || t->v->types == NULL ? VOCAB_NORMAL : t->v->types[id];
        /* A user-defined or control token is text as it stands: "\xC3\xB8" is that letter and not the byte 0xF8. */
        t->byte_ids[b] = type == VOCAB_USER_DEFINED || type == VOCAB_CONTROL ? TOKEN_NONE : id;
    }
    return tokenizer_bpe_merges_init(t);
}

/* A word that is a token by itself; its text is looked up as the file writes it. */
static uint32_t whole_word(const struct tokenizer *t, const char *s, size_t len)
{
    char enc[WORD_ENCODED_MAX];
    size_t n = 0;
    if (t->pre_flags & PRE_RAW)
        return tokenizer_find(t, s, len);
    if (len > WORD_ENCODED_MAX / 2)
        return TOKEN_NONE;
    for (size_t i = 0; i < len; i++)
        n += utf8_encode(byte_char((unsigned char)s[i]), enc + n);
    return tokenizer_find(t, enc, n);
}

static uint32_t order_of(const struct tokenizer *t, const char *text, uint32_t a, uint32_t b, uint32_t after)
{
    (void)text;
    (void)after;
    return pair_rank(t, a, b);
}

static uint32_t result_of(const struct tokenizer *t, uint32_t a, uint32_t order)
{
    (void)a;
    return t->results[order];
}

enum err tokenizer_bpe_merge(const struct tokenizer *t, struct tokenizer_work *w, uint32_t *ids, size_t *n)
{
    ids[*n] = TOKEN_NONE;
    if (*n <= MERGE_SHORT_MAX) {
        *n = merge_short(t, NULL, ids, *n, order_of, result_of);
        return ERR_OK;
    }
    TRY(merge_reserve(&w->lists, *n, t->n_orders));
    *n = merge_long(t, &w->lists, NULL, ids, *n, order_of, result_of);
    return ERR_OK;
}

static size_t first_ids(const struct tokenizer *t, const char *s, size_t len, uint32_t *ids)
{
    bool raw = (t->pre_flags & PRE_RAW) != 0;
    size_t n = 0;
    for (size_t i = 0, k; i < len; i += k) {
        uint32_t id = raw ? TOKEN_NONE : t->byte_ids[(unsigned char)s[i]];
        k = 1;
        if (raw) {
            k = MIN(utf8_len_valid((unsigned char)s[i]), len - i); /* cut or stray bytes are no token either */
            id = tokenizer_find(t, s + i, k);
        }
        for (size_t b = i; raw && id == TOKEN_NONE && b < i + k; b++)
            if (t->byte_ids[(unsigned char)s[b]] != TOKEN_NONE)
                ids[n++] = t->byte_ids[(unsigned char)s[b]];
        if (id != TOKEN_NONE)
            ids[n++] = id;
    }
    return n;
}

static enum err encode_word(const struct tokenizer *t, struct tokenizer_work *w, const char *s, size_t len,
                            struct tokens *out)
{
    if ((t->pre_flags & PRE_IGNORE_MERGES) || ((t->pre_flags & PRE_WHOLE_NEWLINES) && s[0] == '\n')) {
        uint32_t id = whole_word(t, s, len);
        if (id != TOKEN_NONE)
            return tokens_push(out, id);
    }
    TRY(tokenizer_work_ids(w, len + 1));
    size_t n = first_ids(t, s, len, w->ids);
    TRY(tokenizer_bpe_merge(t, w, w->ids, &n));
    return tokens_append(out, w->ids, n);
}

enum err tokenizer_bpe_encode(const struct tokenizer *t, struct tokenizer_work *w, const char *text, size_t len,
                              struct tokens *out)
{
    if (t->pre_flags & PRE_SPACE_MARK) {
        buf_clear(&w->text);
        tokenizer_spm_escape(text, len, &w->text);
        if (w->text.failed)
            return err_set(ERR_NOMEM, "no memory to tokenise %zu bytes", len);
        text = w->text.data;
        len = w->text.len;
    }
    TRY(pretokenizer_split(t->pre, text, len, &w->pieces));
    for (size_t i = 0, from = 0; i < w->pieces.n; from = w->pieces.ends[i], i++) {
        const char *s = text + from;
        size_t n = w->pieces.ends[i] - from, at = out->n;
        struct merge_word *seen = NULL;
        if (n <= WORD_CACHED_MAX && tokenizer_work_word(w, s, n, len - from, &seen)) {
            TRY(tokens_copy(out, seen->at, seen->n));
            continue;
        }
        TRY(encode_word(t, w, s, n, out));
        if (seen != NULL) {
            seen->at = (uint32_t)at;
            seen->n = (uint8_t)(out->n - at);
        }
    }
    return ERR_OK;
}
