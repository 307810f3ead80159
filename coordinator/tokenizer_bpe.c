/* Byte-level BPE (the way of GPT-2): text is cut into words by the pre-tokeniser, each byte of a word is a token, and
 * the adjacent pair of lowest rank is merged until none is left; of equal ranks the leftmost. Merges are kept as ids,
 * so that merging never touches a string. Short words scan for the best pair; long ones keep a heap of candidates over
 * a linked list, O(n log n). A byte that has no token is left out. */
#include "base/buf.h"
#include "base/check.h"
#include "coordinator/tokenizer_impl.h"
#include "coordinator/utf8.h"

#include <stdlib.h>

enum { SHORT_MAX = 32, WORD_ENCODED_MAX = 512 };

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

static uint32_t pair_slot(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15ull;
    return (uint32_t)(h ^ h >> 32) & t->merge_mask;
}

/* The rank of merging left and right, or TOKEN_NONE. */
static uint32_t pair_rank(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    for (uint32_t i = pair_slot(t, left, right); t->merge_slots[i] != 0; i = (i + 1) & t->merge_mask) {
        const struct bpe_merge *m = &t->merges[t->merge_slots[i] - 1];
        if (m->left == left && m->right == right)
            return t->merge_slots[i] - 1;
    }
    return TOKEN_NONE;
}

/* "left right"; the left part is at least one byte, so that it may be a space itself. */
static bool parse_merge(const struct tokenizer *t, const struct gguf_str *s, struct buf *joined, struct bpe_merge *m)
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
static enum err build_merges(struct tokenizer *t)
{
    uint64_t n = t->v->n_merges, cap = 16;
    if (n >= UINT32_MAX / 4)
        return err_set(ERR_TOO_BIG, "tokenizer.ggml.merges has %llu entries", (unsigned long long)n);
    while (cap < n * 3 / 2)
        cap *= 2;
    t->merges = calloc(n + 1, sizeof(*t->merges));
    t->merge_slots = calloc(cap, sizeof(*t->merge_slots));
    if (t->merges == NULL || t->merge_slots == NULL)
        return err_set(ERR_NOMEM, "no memory for %llu merges", (unsigned long long)n);
    t->merge_mask = (uint32_t)(cap - 1);
    struct buf joined;
    buf_init(&joined);
    for (uint64_t i = 0; i < n; i++) {
        struct bpe_merge m;
        if (!parse_merge(t, &t->v->merges[i], &joined, &m) || pair_rank(t, m.left, m.right) != TOKEN_NONE)
            continue;
        uint32_t s = pair_slot(t, m.left, m.right);
        while (t->merge_slots[s] != 0)
            s = (s + 1) & t->merge_mask;
        t->merges[t->n_merges] = m;
        t->merge_slots[s] = ++t->n_merges;
    }
    buf_deinit(&joined);
    return ERR_OK;
}

enum err tokenizer_bpe_init(struct tokenizer *t)
{
    TRY(pretokenizer_create(t->v->pre.s, t->v->pre.len, &t->pre));
    t->ignore_merges = (pretokenizer_flags(t->pre) & PRE_IGNORE_MERGES) != 0;
    for (unsigned b = 0; b < 256; b++) {
        char c[4];
        t->byte_ids[b] = tokenizer_find(t, c, utf8_encode(byte_char(b), c));
    }
    return build_merges(t);
}

/* A word that is a token by itself; its text is looked up as the file writes it. */
static uint32_t whole_word(const struct tokenizer *t, const char *s, size_t len)
{
    char enc[WORD_ENCODED_MAX];
    size_t n = 0;
    if (len > WORD_ENCODED_MAX / 2)
        return TOKEN_NONE;
    for (size_t i = 0; i < len; i++)
        n += utf8_encode(byte_char((unsigned char)s[i]), enc + n);
    uint32_t id = tokenizer_find(t, enc, n);
    if (id != TOKEN_NONE && t->v->types != NULL && t->v->types[id] != VOCAB_NORMAL)
        return TOKEN_NONE;
    return id;
}

static size_t merge_short(const struct tokenizer *t, uint32_t *ids, size_t n)
{
    uint32_t ranks[SHORT_MAX];
    for (size_t i = 0; i + 1 < n; i++)
        ranks[i] = pair_rank(t, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == TOKEN_NONE)
            break;
        ids[best] = t->merges[ranks[best]].result;
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof(*ids));
        if (best + 2 < n)
            memmove(ranks + best + 1, ranks + best + 2, (n - best - 3) * sizeof(*ranks));
        n--;
        if (best > 0)
            ranks[best - 1] = pair_rank(t, ids[best - 1], ids[best]);
        if (best + 1 < n)
            ranks[best] = pair_rank(t, ids[best], ids[best + 1]);
    }
    return n;
}

/* Long words. A candidate is stale when the pair that it was made for is no longer there: then its rank no longer fits.
 */
struct symbol {
    uint32_t id, prev, next; /* prev, next: indices, TOKEN_NONE at the ends; a dead symbol has id TOKEN_NONE */
};
struct candidate {
    uint32_t rank, at; /* ordered by rank, then by place */
};
struct bpe_work {
    struct symbol *sym;
    struct candidate *heap;
    size_t n_heap;
};

static bool before(struct candidate a, struct candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static void heap_push(struct bpe_work *w, struct candidate c)
{
    size_t i = w->n_heap++;
    for (; i > 0 && before(c, w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static struct candidate heap_pop(struct bpe_work *w)
{
    struct candidate top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= w->n_heap)
            break;
        if (k + 1 < w->n_heap && before(w->heap[k + 1], w->heap[k]))
            k++;
        if (!before(w->heap[k], last))
            break;
        w->heap[i] = w->heap[k];
        i = k;
    }
    w->heap[i] = last;
    return top;
}

static void propose(const struct tokenizer *t, struct bpe_work *w, uint32_t left)
{
    if (left == TOKEN_NONE || w->sym[left].next == TOKEN_NONE)
        return;
    uint32_t rank = pair_rank(t, w->sym[left].id, w->sym[w->sym[left].next].id);
    if (rank != TOKEN_NONE)
        heap_push(w, (struct candidate){rank, left});
}

static void merge_long(const struct tokenizer *t, struct bpe_work *w, size_t n)
{
    for (size_t i = 0; i + 1 < n; i++)
        propose(t, w, (uint32_t)i);
    while (w->n_heap > 0) {
        struct candidate c = heap_pop(w);
        struct symbol *a = &w->sym[c.at];
        const struct bpe_merge *m = &t->merges[c.rank];
        if (a->id != m->left || a->next == TOKEN_NONE || w->sym[a->next].id != m->right)
            continue;
        struct symbol *b = &w->sym[a->next];
        a->id = m->result;
        b->id = TOKEN_NONE;
        a->next = b->next;
        if (a->next != TOKEN_NONE)
            w->sym[a->next].prev = c.at;
        propose(t, w, a->prev);
        propose(t, w, c.at);
    }
}

static enum err encode_long(const struct tokenizer *t, const char *s, size_t len, struct tokens *out)
{
    /* Each merge takes one symbol away and proposes at most two pairs: at most 3 * len candidates ever. */
    struct bpe_work w = {malloc(len * sizeof(*w.sym)), malloc(3 * len * sizeof(*w.heap)), 0};
    enum err e = ERR_OK;
    if (w.sym == NULL || w.heap == NULL) {
        e = err_set(ERR_NOMEM, "no memory to tokenise a word of %zu bytes", len);
        goto done;
    }
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        if (t->byte_ids[(unsigned char)s[i]] != TOKEN_NONE) {
            w.sym[n] = (struct symbol){t->byte_ids[(unsigned char)s[i]], n == 0 ? TOKEN_NONE : (uint32_t)n - 1,
                                       (uint32_t)n + 1};
            n++;
        }
    if (n == 0)
        goto done;
    w.sym[n - 1].next = TOKEN_NONE;
    merge_long(t, &w, n);
    for (uint32_t i = 0; i != TOKEN_NONE; i = w.sym[i].next)
        TRY_GOTO(tokens_push(out, w.sym[i].id), done);
done:
    free(w.sym);
    free(w.heap);
    return e;
}

static enum err encode_word(const struct tokenizer *t, const char *s, size_t len, struct tokens *out)
{
    if (t->ignore_merges) {
        uint32_t id = whole_word(t, s, len);
        if (id != TOKEN_NONE)
            return tokens_push(out, id);
    }
    if (len > SHORT_MAX)
        return encode_long(t, s, len, out);
    uint32_t ids[SHORT_MAX];
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        if (t->byte_ids[(unsigned char)s[i]] != TOKEN_NONE)
            ids[n++] = t->byte_ids[(unsigned char)s[i]];
    n = merge_short(t, ids, n);
    for (size_t i = 0; i < n; i++)
        TRY(tokens_push(out, ids[i]));
    return ERR_OK;
}

enum err tokenizer_bpe_encode(const struct tokenizer *t, const char *text, size_t len, struct tokens *out)
{
    struct pretokenizer_pieces pieces = {0};
    enum err e;
    TRY_GOTO(pretokenizer_split(t->pre, text, len, &pieces), done);
    size_t from = 0;
    for (size_t i = 0; i < pieces.n; from = pieces.ends[i], i++)
        TRY_GOTO(encode_word(t, text + from, pieces.ends[i] - from, out), done);
done:
    pretokenizer_pieces_deinit(&pieces);
    return e;
}
