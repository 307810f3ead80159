/* Merging a run of symbols: the pair of the lowest order first, of equal orders the leftmost, until none is left. What a
 * pair's order is, and what it becomes, is the caller's (BPE: the rank of the merge; SentencePiece: the place of the
 * joined text among the scores). Short runs look at all pairs each time. Long ones keep a list of places for each order,
 * ascending, and the set of orders in use as a bitmap of three levels: each pair is in one list at most, so nothing is
 * ever stale, and a merge costs a few steps whatever the length. Lists grow at their end or near their beginning; one that
 * got a place elsewhere is sorted when its turn comes (a merge of its ascending runs, of which there are few).
 *
 * Here too: the scratch memory of one call of tokenizer_encode, with the words that the call has seen, as most of a text
 * is words it has seen. Private to tokenizer*.c. */
#ifndef TEXT_TOKENIZER_MERGE_H
#define TEXT_TOKENIZER_MERGE_H

#include "base/buf.h"
#include "text/tokenizer_impl.h"

enum { MERGE_SHORT_MAX = 64, MERGE_INSERT_STEPS = 8 };

struct merge_symbol {
    uint32_t id;         /* the caller's */
    uint32_t prev, next; /* TOKEN_NONE at the ends */
    uint32_t order;      /* of the pair with next; TOKEN_NONE: none */
    uint32_t up, down;   /* in the list of that order */
};
struct merge_lists {
    struct merge_symbol *sym;
    size_t cap;
    uint32_t n_orders;
    uint32_t *heads, *tails; /* by order; only where the bit is set */
    uint64_t *used, *used1, *used2, *unsorted;
    size_t n_used2;
};
struct merge_word { /* a word of at most 16 bytes */
    uint64_t key[2];
    uint32_t at; /* its ids in the output */
    uint8_t len, n;
};
struct tokenizer_work {
    struct pretokenizer_pieces pieces;
    struct buf text; /* normalised */
    uint32_t *ids;
    size_t ids_cap;
    struct merge_lists lists;
    struct merge_word *words;
    uint32_t word_mask;
};

/* text_len: of the whole text, which sizes the table of words. */
enum err tokenizer_work_init(struct tokenizer_work *w, size_t text_len);
void tokenizer_work_deinit(struct tokenizer_work *w);
/* Room for n ids. */
enum err tokenizer_work_ids(struct tokenizer_work *w, size_t n);

/* The entry of a word s[0..len), len at most 16, of which `avail` bytes may be read; filled in except for what it became.
 * True: it was seen before. */
bool tokenizer_work_word(struct tokenizer_work *w, const char *s, size_t len, size_t avail, struct merge_word **out);

/* Room for n symbols and orders below n_orders; the lists are of one tokenizer. */
enum err merge_reserve(struct merge_lists *l, size_t n, uint32_t n_orders);
void merge_sort(struct merge_lists *l, uint32_t order);

/* Of the pair a, b and what follows it (the sentinel behind the last symbol). TOKEN_NONE: no merge. */
typedef uint32_t merge_order_fn(const struct tokenizer *t, const char *text, uint32_t a, uint32_t b, uint32_t after);
/* The id of a symbol `a` that was merged with the next one by `order`. */
typedef uint32_t merge_result_fn(const struct tokenizer *t, uint32_t a, uint32_t order);

/* ids[n] is the sentinel; n is at most MERGE_SHORT_MAX. Returns how many are left. */
static inline __attribute__((always_inline)) size_t merge_short(const struct tokenizer *t, const char *text,
                                                                uint32_t *ids, size_t n, merge_order_fn *order_of,
                                                                merge_result_fn *result_of)
{
    uint32_t orders[MERGE_SHORT_MAX];
    for (size_t i = 0; i + 1 < n; i++)
        orders[i] = order_of(t, text, ids[i], ids[i + 1], ids[i + 2]);
    while (n > 1) {
        uint32_t best = orders[0];
        for (size_t i = 1; i + 1 < n; i++)
            best = orders[i] < best ? orders[i] : best;
        if (best == TOKEN_NONE)
            break;
        size_t at = 0;
        while (orders[at] != best)
            at++;
        ids[at] = result_of(t, ids[at], best);
        n--;
        memmove(ids + at + 1, ids + at + 2, (n - at) * sizeof(*ids));
        if (at + 1 < n)
            memmove(orders + at + 1, orders + at + 2, (n - at - 2) * sizeof(*orders));
        if (at > 0)
            orders[at - 1] = order_of(t, text, ids[at - 1], ids[at], ids[at + 1]);
        if (at + 1 < n)
            orders[at] = order_of(t, text, ids[at], ids[at + 1], ids[at + 2]);
    }
    return n;
}

static inline void merge_unlink(struct merge_lists *l, uint32_t i)
{
    struct merge_symbol *s = &l->sym[i];
    uint32_t o = s->order;
    if (o == TOKEN_NONE)
        return;
    s->order = TOKEN_NONE;
    if (s->up != TOKEN_NONE)
        l->sym[s->up].down = s->down;
    else
        l->heads[o] = s->down;
    if (s->down != TOKEN_NONE)
        l->sym[s->down].up = s->up;
    else
        l->tails[o] = s->up;
    if (s->up != TOKEN_NONE || s->down != TOKEN_NONE)
        return;
    l->unsorted[o >> 6] &= ~(1ull << (o & 63));
    if ((l->used[o >> 6] &= ~(1ull << (o & 63))) != 0)
        return;
    o >>= 6;
    if ((l->used1[o >> 6] &= ~(1ull << (o & 63))) != 0)
        return;
    o >>= 6;
    l->used2[o >> 6] &= ~(1ull << (o & 63));
}

/* Symbol i to the list of `order`. */
static inline void merge_link(struct merge_lists *l, uint32_t i, uint32_t order)
{
    struct merge_symbol *s = &l->sym[i];
    uint32_t o = order;
    s->order = o;
    s->up = s->down = TOKEN_NONE;
    if (!(l->used[o >> 6] >> (o & 63) & 1)) {
        l->heads[o] = l->tails[o] = i;
        l->used[o >> 6] |= 1ull << (o & 63);
        o >>= 6;
        l->used1[o >> 6] |= 1ull << (o & 63);
        o >>= 6;
        l->used2[o >> 6] |= 1ull << (o & 63);
        return;
    }
    uint32_t at = l->tails[o];
    if (i < at) {
        uint32_t next = l->heads[o];
        for (int k = 0; k < MERGE_INSERT_STEPS && next < i; k++)
            next = l->sym[next].down;
        if (i < next) {
            s->down = next;
            s->up = l->sym[next].up;
            l->sym[next].up = i;
            if (s->up != TOKEN_NONE)
                l->sym[s->up].down = i;
            else
                l->heads[o] = i;
            return;
        }
        l->unsorted[o >> 6] |= 1ull << (o & 63);
    }
    l->sym[at].down = i;
    s->up = at;
    l->tails[o] = i;
}

/* The lowest order in use, or TOKEN_NONE. */
static inline uint32_t merge_lowest(const struct merge_lists *l)
{
    for (size_t i = 0; i < l->n_used2; i++) {
        if (l->used2[i] == 0)
            continue;
        uint32_t o = (uint32_t)i * 64 + (uint32_t)__builtin_ctzll(l->used2[i]);
        o = o * 64 + (uint32_t)__builtin_ctzll(l->used1[o]);
        return o * 64 + (uint32_t)__builtin_ctzll(l->used[o]);
    }
    return TOKEN_NONE;
}

/* As merge_short, for any n (below 2^32 - 1); room was reserved. */
static inline __attribute__((always_inline)) size_t merge_long(const struct tokenizer *t, struct merge_lists *l,
                                                               const char *text, uint32_t *ids, size_t n,
                                                               merge_order_fn *order_of, merge_result_fn *result_of)
{
    struct merge_symbol *sym = l->sym;
    uint32_t end = ids[n], o;
    for (size_t i = 0; i < n; i++) {
        sym[i].id = ids[i];
        sym[i].prev = i == 0 ? TOKEN_NONE : (uint32_t)i - 1;
        sym[i].next = i + 1 == n ? TOKEN_NONE : (uint32_t)i + 1;
        sym[i].order = TOKEN_NONE;
    }
    for (size_t i = 0; i + 1 < n; i++)
        if ((o = order_of(t, text, ids[i], ids[i + 1], ids[i + 2])) != TOKEN_NONE)
            merge_link(l, (uint32_t)i, o);
    while ((o = merge_lowest(l)) != TOKEN_NONE) {
        if (l->unsorted[o >> 6] >> (o & 63) & 1)
            merge_sort(l, o);
        uint32_t a = l->heads[o], b = sym[a].next, p = sym[a].prev;
        merge_unlink(l, a);
        merge_unlink(l, b);
        uint32_t c = sym[b].next;
        sym[a].id = result_of(t, sym[a].id, o);
        sym[a].next = c;
        if (c != TOKEN_NONE) {
            sym[c].prev = a;
            o = order_of(t, text, sym[a].id, sym[c].id, sym[c].next == TOKEN_NONE ? end : sym[sym[c].next].id);
            if (o != TOKEN_NONE)
                merge_link(l, a, o);
        }
        if (p != TOKEN_NONE) {
            merge_unlink(l, p);
            o = order_of(t, text, sym[p].id, sym[a].id, c == TOKEN_NONE ? end : sym[c].id);
            if (o != TOKEN_NONE)
                merge_link(l, p, o);
        }
    }
    size_t left = 0;
    for (uint32_t i = 0; i != TOKEN_NONE; i = sym[i].next)
        ids[left++] = sym[i].id;
    return left;
}

#endif
