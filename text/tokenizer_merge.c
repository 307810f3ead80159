/* See tokenizer_merge.h. */
#include "text/tokenizer_merge.h"

#include "base/check.h"

#include <stdlib.h>

enum { WORDS_MIN = 64, WORDS_MAX = 4096, WORD_BYTES = 16 };

enum err tokenizer_work_init(struct tokenizer_work *w, size_t text_len)
{
    memset(w, 0, sizeof(*w));
    buf_init(&w->text);
    uint32_t n = WORDS_MIN;
    while (n < WORDS_MAX && n < text_len / 8)
        n *= 2;
    w->words = calloc(n, sizeof(*w->words));
    w->word_mask = n - 1;
    return w->words != NULL ? ERR_OK : err_set(ERR_NOMEM, "no memory to tokenise");
}

void tokenizer_work_deinit(struct tokenizer_work *w)
{
    pretokenizer_pieces_deinit(&w->pieces);
    buf_deinit(&w->text);
    free(w->ids);
    free(w->lists.sym);
    free(w->lists.heads);
    free(w->lists.tails);
    free(w->lists.used);
    free(w->words);
}

enum err tokenizer_work_ids(struct tokenizer_work *w, size_t n)
{
    if (n <= w->ids_cap)
        return ERR_OK;
    free(w->ids);
    w->ids_cap = MAX(n, w->ids_cap * 2);
    w->ids = malloc(w->ids_cap * sizeof(*w->ids));
    if (w->ids == NULL) {
        w->ids_cap = 0;
        return err_set(ERR_NOMEM, "no memory to tokenise a word of %zu symbols", n);
    }
    return ERR_OK;
}

bool tokenizer_work_word(struct tokenizer_work *w, const char *s, size_t len, size_t avail, struct merge_word **out)
{
    uint64_t k[2] = {0, 0};
    ASSERT(len > 0 && len <= WORD_BYTES);
    if (avail >= WORD_BYTES) {
        memcpy(k, s, WORD_BYTES);
        if (len < 8) {
            k[0] &= (1ull << (8 * len)) - 1; /* the order of bytes in a word is the machine's: little-endian */
            k[1] = 0;
        } else if (len < 16) {
            k[1] &= (1ull << (8 * (len - 8))) - 1;
        }
    } else {
        memcpy(k, s, len);
    }
    uint64_t h = (k[0] ^ len) * 0x9E3779B97F4A7C15ull;
    h = (h ^ h >> 32 ^ k[1]) * 0xD6E8FEB86659FD93ull;
    struct merge_word *e = &w->words[(h >> 40) & w->word_mask];
    *out = e;
    if (e->len == len && e->key[0] == k[0] && e->key[1] == k[1])
        return true;
    e->key[0] = k[0];
    e->key[1] = k[1];
    e->len = (uint8_t)len;
    return false;
}

static enum err reserve_orders(struct merge_lists *l, uint32_t n_orders)
{
    size_t n = n_orders / 64 + 1, n1 = n / 64 + 1, n2 = n1 / 64 + 1;
    l->heads = malloc((n_orders + 1ull) * sizeof(*l->heads));
    l->tails = malloc((n_orders + 1ull) * sizeof(*l->tails));
    l->used = calloc(2 * n + n1 + n2, sizeof(*l->used));
    if (l->heads == NULL || l->tails == NULL || l->used == NULL)
        return err_set(ERR_NOMEM, "no memory to tokenise");
    l->unsorted = l->used + n;
    l->used1 = l->unsorted + n;
    l->used2 = l->used1 + n1;
    l->n_used2 = n2;
    l->n_orders = n_orders;
    return ERR_OK;
}

enum err merge_reserve(struct merge_lists *l, size_t n, uint32_t n_orders)
{
    if (l->used == NULL)
        TRY(reserve_orders(l, n_orders));
    ASSERT(n_orders <= l->n_orders);
    if (n <= l->cap)
        return ERR_OK;
    free(l->sym);
    l->cap = MAX(n, (size_t)1024);
    l->sym = malloc(l->cap * sizeof(*l->sym));
    if (l->sym == NULL) {
        l->cap = 0;
        return err_set(ERR_NOMEM, "no memory to tokenise a word of %zu symbols", n);
    }
    return ERR_OK;
}

/* Two ascending lists (by down) to one. */
static uint32_t merge_two(struct merge_symbol *sym, uint32_t a, uint32_t b)
{
    uint32_t first = TOKEN_NONE, *at = &first;
    while (a != TOKEN_NONE && b != TOKEN_NONE) {
        uint32_t *least = a < b ? &a : &b;
        *at = *least;
        at = &sym[*least].down;
        *least = *at;
    }
    *at = a != TOKEN_NONE ? a : b;
    return first;
}

/* Ascending runs are merged as a binary counter counts: runs[k] holds about 2^k of them. */
void merge_sort(struct merge_lists *l, uint32_t order)
{
    struct merge_symbol *sym = l->sym;
    uint32_t runs[33], all = TOKEN_NONE, prev = TOKEN_NONE;
    for (size_t k = 0; k < ARRAY_LEN(runs); k++)
        runs[k] = TOKEN_NONE;
    for (uint32_t i = l->heads[order]; i != TOKEN_NONE;) {
        uint32_t run = i, last = i;
        while (sym[last].down != TOKEN_NONE && sym[last].down > last)
            last = sym[last].down;
        i = sym[last].down;
        sym[last].down = TOKEN_NONE;
        size_t k = 0;
        for (; runs[k] != TOKEN_NONE; k++) {
            run = merge_two(sym, runs[k], run);
            runs[k] = TOKEN_NONE;
        }
        runs[k] = run;
    }
    for (size_t k = 0; k < ARRAY_LEN(runs); k++)
        all = merge_two(sym, runs[k], all);
    l->heads[order] = all;
    for (uint32_t i = all; i != TOKEN_NONE; i = sym[i].down) {
        sym[i].up = prev;
        prev = i;
    }
    l->tails[order] = prev;
    l->unsorted[order >> 6] &= ~(1ull << (order & 63));
}
