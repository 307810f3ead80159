#include "coordinator/kv_blocks.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

enum err kv_blocks_init(struct kv_blocks *k, uint32_t n_blocks, uint32_t n_seqs)
{
    memset(k, 0, sizeof *k);
    k->next = calloc((size_t)n_blocks + 1, sizeof *k->next);
    k->owner = calloc((size_t)n_blocks + 1, sizeof *k->owner);
    k->tables = calloc((size_t)n_seqs + 1, sizeof *k->tables);
    if (!k->next || !k->owner || !k->tables) {
        kv_blocks_deinit(k);
        return err_set(ERR_NOMEM, "tables for %u KV blocks", n_blocks);
    }
    k->n_blocks = k->n_free = n_blocks;
    k->n_seqs = n_seqs;
    k->free_first = n_blocks ? 0 : KV_BLOCKS_NONE;
    for (uint32_t b = 0; b < n_blocks; b++) {
        k->next[b] = b + 1 < n_blocks ? b + 1 : KV_BLOCKS_NONE;
        k->owner[b] = KV_BLOCKS_NONE;
    }
    for (uint32_t s = 0; s < n_seqs; s++)
        k->tables[s] = (struct kv_table){KV_BLOCKS_NONE, KV_BLOCKS_NONE, 0};
    return ERR_OK;
}

void kv_blocks_deinit(struct kv_blocks *k)
{
    free(k->next);
    free(k->owner);
    free(k->tables);
    memset(k, 0, sizeof *k);
}

bool kv_blocks_take(struct kv_blocks *k, uint32_t seq, uint32_t n, uint32_t *first)
{
    ASSERT(seq < k->n_seqs && n >= 1);
    if (n > k->n_free)
        return false;
    struct kv_table *t = &k->tables[seq];
    uint32_t b = k->free_first, last = KV_BLOCKS_NONE;
    *first = b;
    for (uint32_t i = 0; i < n; i++) {
        ASSERT(k->owner[b] == KV_BLOCKS_NONE);
        k->owner[b] = seq;
        last = b;
        b = k->next[b];
    }
    k->free_first = b;
    k->n_free -= n;
    k->next[last] = KV_BLOCKS_NONE;
    if (t->n)
        k->next[t->last] = *first;
    else
        t->first = *first;
    t->last = last;
    t->n += n;
    return true;
}

uint32_t kv_blocks_give(struct kv_blocks *k, uint32_t seq)
{
    ASSERT(seq < k->n_seqs);
    struct kv_table *t = &k->tables[seq];
    uint32_t n = t->n;
    if (!n)
        return 0;
    for (uint32_t b = t->first; b != KV_BLOCKS_NONE; b = k->next[b]) {
        ASSERT(k->owner[b] == seq);
        k->owner[b] = KV_BLOCKS_NONE;
    }
    /* The most recently used blocks go out first again: their memory is touched already. */
    k->next[t->last] = k->free_first;
    k->free_first = t->first;
    k->n_free += n;
    *t = (struct kv_table){KV_BLOCKS_NONE, KV_BLOCKS_NONE, 0};
    return n;
}

uint32_t kv_blocks_next(const struct kv_blocks *k, uint32_t block)
{
    ASSERT(block < k->n_blocks);
    return k->next[block];
}

static uint32_t check_chain(const struct kv_blocks *k, uint32_t first, uint32_t owner, uint32_t *last)
{
    uint32_t n = 0;
    *last = KV_BLOCKS_NONE;
    for (uint32_t b = first; b != KV_BLOCKS_NONE; b = k->next[b]) {
        ASSERT(b < k->n_blocks);
        ASSERT(k->owner[b] == owner);
        ASSERT(n < k->n_blocks); /* no cycle */
        *last = b;
        n++;
    }
    return n;
}

void kv_blocks_check(const struct kv_blocks *k)
{
    uint32_t last;
    uint32_t total = check_chain(k, k->free_first, KV_BLOCKS_NONE, &last);
    ASSERT(total == k->n_free);
    for (uint32_t s = 0; s < k->n_seqs; s++) {
        const struct kv_table *t = &k->tables[s];
        ASSERT(check_chain(k, t->first, s, &last) == t->n);
        ASSERT(last == t->last);
        total += t->n;
    }
    ASSERT(total == k->n_blocks); /* with the owners above: each block exactly once */
}
