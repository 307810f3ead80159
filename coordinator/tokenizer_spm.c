/* SentencePiece BPE (vocabulary kind `llama`): spaces become U+2581, every character is a symbol, and the adjacent pair
 * whose joined text is the token of the highest score is merged until none is left; of equal scores the leftmost. A
 * symbol that is no token then falls back to byte tokens, or to the unknown token. Joined texts longer than the longest
 * token are not looked up, so a step costs no more than that length.
 *
 * Where no token has U+2581 behind another character no merge can cross the start of a word: words are then merged one
 * by one, which keeps the working memory small. */
#include "base/buf.h"
#include "base/check.h"
#include "coordinator/tokenizer_impl.h"
#include "coordinator/utf8.h"

#include <stdio.h>
#include <stdlib.h>

static const char SPACE[] = "\xE2\x96\x81";
enum { SPACE_LEN = 3 };

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

enum err tokenizer_spm_init(struct tokenizer *t)
{
    if (t->v->scores == NULL)
        return err_set(ERR_CORRUPT, "tokenizer.ggml.model is llama, but tokenizer.ggml.scores is missing");
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof(name), "<0x%02X>", b);
        t->byte_ids[b] = tokenizer_find(t, name, 6);
    }
    t->split_words = true;
    for (uint32_t i = 0; i < t->v->n_tokens && t->split_words; i++)
        t->split_words = !space_inside(&t->v->tokens[i]);
    return ERR_OK;
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

/* Text never names control, unknown or byte tokens by spelling them out. */
static uint32_t find_text(const struct tokenizer *t, const char *s, size_t len)
{
    uint32_t id = tokenizer_find(t, s, len);
    if (id != TOKEN_NONE && t->v->types != NULL) {
        uint8_t type = t->v->types[id];
        if (type == VOCAB_CONTROL || type == VOCAB_UNKNOWN || type == VOCAB_BYTE)
            return TOKEN_NONE;
    }
    return id;
}

struct symbol {
    uint32_t off, len, prev, next; /* len 0: merged away; TOKEN_NONE at the ends */
};
struct candidate {
    float score;
    uint32_t at, len; /* len: of both symbols together when it was made; another one means that it is stale */
};
struct spm_work {
    const char *text;
    struct symbol *sym;
    struct candidate *heap;
    size_t n_heap, cap;
};

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->score != b->score ? a->score > b->score : a->at < b->at;
}

static void heap_push(struct spm_work *w, struct candidate c)
{
    size_t i = w->n_heap++;
    for (; i > 0 && before(&c, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static struct candidate heap_pop(struct spm_work *w)
{
    struct candidate top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= w->n_heap)
            break;
        if (k + 1 < w->n_heap && before(&w->heap[k + 1], &w->heap[k]))
            k++;
        if (!before(&w->heap[k], &last))
            break;
        w->heap[i] = w->heap[k];
        i = k;
    }
    w->heap[i] = last;
    return top;
}

static void propose(const struct tokenizer *t, struct spm_work *w, uint32_t left)
{
    if (left == TOKEN_NONE || w->sym[left].next == TOKEN_NONE)
        return;
    const struct symbol *a = &w->sym[left], *b = &w->sym[a->next];
    uint32_t id = find_text(t, w->text + a->off, a->len + b->len);
    if (id != TOKEN_NONE)
        heap_push(w, (struct candidate){t->v->scores[id], left, a->len + b->len});
}

static enum err emit(const struct tokenizer *t, const char *s, size_t len, struct tokens *out)
{
    uint32_t id = find_text(t, s, len);
    if (id != TOKEN_NONE)
        return tokens_push(out, id);
    for (size_t i = 0; i < len; i++) {
        id = t->byte_ids[(unsigned char)s[i]];
        if (id == TOKEN_NONE)
            return t->v->unk >= 0 ? tokens_push(out, (uint32_t)t->v->unk) : ERR_OK;
        TRY(tokens_push(out, id));
    }
    return ERR_OK;
}

static enum err reserve(struct spm_work *w, size_t len)
{
    if (len <= w->cap)
        return ERR_OK;
    size_t cap = MAX(len, (size_t)256);
    free(w->sym);
    free(w->heap);
    w->sym = malloc(cap * sizeof(*w->sym));
    w->heap = malloc(3 * cap * sizeof(*w->heap)); /* n - 1 pairs at first, two more for each merge */
    w->cap = w->sym != NULL && w->heap != NULL ? cap : 0;
    return w->cap != 0 ? ERR_OK : err_set(ERR_NOMEM, "no memory to tokenise %zu bytes", len);
}

static enum err encode_run(const struct tokenizer *t, struct spm_work *w, const char *s, size_t len, struct tokens *out)
{
    TRY(reserve(w, len));
    w->text = s;
    w->n_heap = 0;
    uint32_t n = 0;
    for (size_t i = 0; i < len; n++) {
        uint32_t cp;
        size_t bad;
        bool cut;
        size_t k = utf8_decode(s + i, len - i, &cp, &bad, &cut);
        k = k == 0 ? 1 : k; /* a bad byte is a symbol of its own and ends as its byte token */
        w->sym[n] = (struct symbol){(uint32_t)i, (uint32_t)k, n == 0 ? TOKEN_NONE : n - 1, n + 1};
        i += k;
    }
    if (n == 0)
        return ERR_OK;
    w->sym[n - 1].next = TOKEN_NONE;
    for (uint32_t i = 0; i + 1 < n; i++)
        propose(t, w, i);
    while (w->n_heap > 0) {
        struct candidate c = heap_pop(w);
        struct symbol *a = &w->sym[c.at];
        if (a->len == 0 || a->next == TOKEN_NONE || a->len + w->sym[a->next].len != c.len)
            continue;
        struct symbol *b = &w->sym[a->next];
        a->len = c.len;
        b->len = 0;
        a->next = b->next;
        if (a->next != TOKEN_NONE)
            w->sym[a->next].prev = c.at;
        propose(t, w, a->prev);
        propose(t, w, c.at);
    }
    for (uint32_t i = 0; i != TOKEN_NONE; i = w->sym[i].next)
        TRY(emit(t, s + w->sym[i].off, w->sym[i].len, out));
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

enum err tokenizer_spm_encode(const struct tokenizer *t, const char *text, size_t len, bool space_first,
                              struct tokens *out)
{
    struct buf esc;
    struct spm_work w = {0};
    enum err e = ERR_OK;
    buf_init(&esc);
    if (space_first)
        buf_append(&esc, SPACE, SPACE_LEN);
    for (size_t i = 0; i < len;) {
        const char *p = memchr(text + i, ' ', len - i);
        size_t to = p == NULL ? len : (size_t)(p - text);
        buf_append(&esc, text + i, to - i);
        if (p != NULL)
            buf_append(&esc, SPACE, SPACE_LEN);
        i = p == NULL ? len : to + 1;
    }
    if (esc.failed) {
        e = err_set(ERR_NOMEM, "no memory to tokenise %zu bytes", len);
        goto done;
    }
    for (size_t i = 0; i < esc.len;) {
        size_t to = t->split_words ? word_end(esc.data, i, esc.len) : esc.len;
        TRY_GOTO(encode_run(t, &w, esc.data + i, to - i, out), done);
        i = to;
    }
done:
    free(w.sym);
    free(w.heap);
    buf_deinit(&esc);
    return e;
}
