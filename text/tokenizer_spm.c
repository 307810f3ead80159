/* SentencePiece BPE (vocabulary kind `llama`): spaces become U+2581, every character is a symbol, and the adjacent pair
 * whose joined text is the token of the highest score is merged until none is left; of equal scores the leftmost
 * (tokenizer_merge.h). A symbol is where it begins in the text. One that is no token in the end falls back to byte tokens,
 * or to the unknown token. Joined texts longer than the longest token are not looked up, so a step costs no more than
 * that length.
 *
 * Where no token has U+2581 behind another character no merge can cross the start of a word: words are then merged one
 * by one, and those that came before are known. */
#include "base/buf.h"
#include "base/check.h"
#include "text/tokenizer_merge.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>

static const char SPACE[] = "\xE2\x96\x81";
enum { SPACE_LEN = 3, WORD_CACHED_MAX = 16 };

static bool is_space(const char *s, size_t len)
{
    return len >= SPACE_LEN && memcmp(s, SPACE, SPACE_LEN) == 0;
}

static bool space_inside(const struct gguf_str *w)
{
    bool other = false;
    for (size_t i = 0; i < w->len; i++) {
        if (!is_space(w->s + i, w->len - i)) {
            other = true;
            continue;
        }
        if (other)
            return true;
        i += SPACE_LEN - 1;
    }
    return false;
}

void tokenizer_spm_byte_ids(struct tokenizer *t)
{
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof(name), "<0x%02X>", b);
        t->byte_ids[b] = tokenizer_find(t, name, 6);
    }
}

struct scored {
    float score;
    uint32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    return x->score != y->score ? (x->score > y->score ? -1 : 1) : x->id < y->id ? -1 : 1;
}

/* Text never names control, unknown or byte tokens by spelling them out. */
static enum err build_orders(struct tokenizer *t)
{
    const struct vocab *v = t->v;
    struct scored *by = malloc(v->n_tokens * sizeof(*by));
    t->orders = malloc(v->n_tokens * sizeof(*t->orders));
    if (by == NULL || t->orders == NULL) {
        free(by);
        return err_set(ERR_NOMEM, "no memory for the scores of %u tokens", v->n_tokens);
    }
    bool sorted = true;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        by[i] = (struct scored){v->scores[i], i};
        sorted = sorted && (i == 0 || by_score(&by[i - 1], &by[i]) < 0);
    }
    if (!sorted)
        qsort(by, v->n_tokens, sizeof(*by), by_score);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        uint8_t type = v->types == NULL ? VOCAB_NORMAL : v->types[by[i].id];
        t->n_orders += i > 0 && by[i].score != by[i - 1].score;
        t->orders[by[i].id] =
            type == VOCAB_CONTROL || type == VOCAB_UNKNOWN || type == VOCAB_BYTE ? TOKEN_NONE : t->n_orders;
    }
    t->n_orders++;
    free(by);
    return ERR_OK;
}

enum err tokenizer_spm_init(struct tokenizer *t)
{
    if (t->v->scores == NULL)
        return err_set(ERR_CORRUPT, "tokenizer.ggml.model is llama, but tokenizer.ggml.scores is missing");
    tokenizer_spm_byte_ids(t);
    t->split_words = true;
    for (uint32_t i = 0; i < t->v->n_tokens && t->split_words; i++)
        t->split_words = !space_inside(&t->v->tokens[i]);
    return build_orders(t);
}

void tokenizer_spm_bytes(const struct tokenizer *t, uint32_t id, struct buf *out)
{
    const struct gguf_str *w = &t->v->tokens[id];
    if (t->v->types != NULL && t->v->types[id] == VOCAB_BYTE && w->len == 6) {
        char hex[3] = {w->s[3], w->s[4], 0};
        buf_putc(out, (char)strtoul(hex, NULL, 16));
        return;
    }
    for (size_t i = 0; i < w->len;) {
        const char *p = memchr(w->s + i, SPACE[0], w->len - i);
        size_t to = p == NULL ? w->len : (size_t)(p - w->s);
        buf_append(out, w->s + i, to - i);
        if (p == NULL)
            return;
        if (is_space(p, w->len - to)) {
            buf_putc(out, ' ');
            i = to + SPACE_LEN;
        } else {
            buf_putc(out, *p);
            i = to + 1;
        }
    }
}

static uint32_t order_of(const struct tokenizer *t, const char *text, uint32_t a, uint32_t b, uint32_t after)
{
    (void)b;
    uint32_t id = tokenizer_find(t, text + a, after - a);
    return id == TOKEN_NONE ? TOKEN_NONE : t->orders[id];
}

static uint32_t result_of(const struct tokenizer *t, uint32_t a, uint32_t order)
{
    (void)t;
    (void)order;
    return a;
}

static enum err emit(const struct tokenizer *t, const char *s, size_t len, struct tokens *out)
{
    uint32_t id = tokenizer_find(t, s, len);
    if (id != TOKEN_NONE && t->orders[id] != TOKEN_NONE)
        return tokens_push(out, id);
    for (size_t i = 0; i < len; i++) {
        id = t->byte_ids[(unsigned char)s[i]];
        if (id == TOKEN_NONE)
            return t->v->unk >= 0 ? tokens_push(out, (uint32_t)t->v->unk) : ERR_OK;
        TRY(tokens_push(out, id));
    }
    return ERR_OK;
}

static enum err encode_run(const struct tokenizer *t, struct tokenizer_work *w, const char *s, size_t len,
                           struct tokens *out)
{
    TRY(tokenizer_work_ids(w, len + 1));
    size_t n = 0;
    for (size_t i = 0; i < len; n++) {
        uint32_t cp;
        size_t bad;
        bool cut;
        size_t k = utf8_decode(s + i, len - i, &cp, &bad, &cut);
        w->ids[n] = (uint32_t)i;
        i += k == 0 ? 1 : k; /* a bad byte is a symbol of its own and ends as its byte token */
    }
    w->ids[n] = (uint32_t)len;
    if (n <= MERGE_SHORT_MAX) {
        n = merge_short(t, s, w->ids, n, order_of, result_of);
    } else {
        TRY(merge_reserve(&w->lists, n, t->n_orders));
        n = merge_long(t, &w->lists, s, w->ids, n, order_of, result_of);
    }
    w->ids[n] = (uint32_t)len;
    for (size_t i = 0; i < n; i++)
        TRY(emit(t, s + w->ids[i], w->ids[i + 1] - w->ids[i], out));
    return ERR_OK;
}

/* The end of the word that starts at from: its U+2581s, then all up to the next one. */
static size_t word_end(const char *s, size_t from, size_t len)
{
    size_t i = from;
    while (is_space(s + i, len - i))
        i += SPACE_LEN;
    for (; i < len; i++) {
        const char *p = memchr(s + i, SPACE[0], len - i);
        if (p == NULL)
            return len;
        i = (size_t)(p - s);
        if (is_space(p, len - i))
            return i;
    }
    return len;
}

void tokenizer_spm_escape(const char *text, size_t len, struct buf *out)
{
    for (size_t i = 0; i < len;) {
        const char *p = memchr(text + i, ' ', len - i);
        size_t to = p == NULL ? len : (size_t)(p - text);
        buf_append(out, text + i, to - i);
        if (p != NULL)
            buf_append(out, SPACE, SPACE_LEN);
        i = p == NULL ? len : to + 1;
    }
}

enum err tokenizer_spm_encode(const struct tokenizer *t, struct tokenizer_work *w, const char *text, size_t len,
                              bool space_first, struct tokens *out)
{
    struct buf *b = &w->text;
    buf_clear(b);
    if (space_first)
        buf_append(b, SPACE, SPACE_LEN);
    tokenizer_spm_escape(text, len, b);
    if (b->failed)
        return err_set(ERR_NOMEM, "no memory to tokenise %zu bytes", len);
    for (size_t i = 0, to; i < b->len; i = to) {
        to = t->split_words ? word_end(b->data, i, b->len) : b->len;
        size_t n = to - i, at = out->n;
        struct merge_word *seen = NULL;
        if (n <= WORD_CACHED_MAX && tokenizer_work_word(w, b->data + i, n, b->len - i, &seen)) {
            TRY(tokens_copy(out, seen->at, seen->n));
            continue;
        }
        TRY(encode_run(t, w, b->data + i, n, out));
        if (seen != NULL) {
            seen->at = (uint32_t)at;
            seen->n = (uint8_t)(out->n - at);
        }
    }
    return ERR_OK;
}
