/* Who owns a KV block. A block id names the same 16 positions on every rank and stage of a replica; the bytes are the
 * workers'.
 *
 * Each sequence (an index 0..n_seqs) has a table: its blocks in order of position. Tables and the free list are
 * threaded through one array of links, so that memory is per block, not per sequence times context, and nothing is
 * allocated after kv_blocks_init. Pure data, not thread-safe. */
#ifndef COORDINATOR_KV_BLOCKS_H
#define COORDINATOR_KV_BLOCKS_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_BLOCKS_POSITIONS = 16 };
#define KV_BLOCKS_NONE 0xffffffffu

struct kv_table {
    uint32_t first, last, n; /* first, last: KV_BLOCKS_NONE while n is 0 */
};
struct kv_blocks {
    uint32_t n_blocks, n_seqs, n_free;
    uint32_t free_first;
    uint32_t *next;          /* [n_blocks] the next block of its table or of the free list */
    uint32_t *owner;         /* [n_blocks] sequence, or KV_BLOCKS_NONE: free */
    struct kv_table *tables; /* [n_seqs] */
};

/* Blocks that hold n positions. */
static inline uint32_t kv_blocks_for(uint32_t n_positions)
{
    return n_positions / KV_BLOCKS_POSITIONS + (n_positions % KV_BLOCKS_POSITIONS != 0);
}

enum err kv_blocks_init(struct kv_blocks *k, uint32_t n_blocks, uint32_t n_seqs);
void kv_blocks_deinit(struct kv_blocks *k);
/* Appends n free blocks to the table of seq; *first is the first new one (follow kv_blocks_next for the others). False,
 * and nothing taken, when fewer are free. n >= 1. */
bool kv_blocks_take(struct kv_blocks *k, uint32_t seq, uint32_t n, uint32_t *first);
/* Gives all blocks of seq back. Returns how many. */
uint32_t kv_blocks_give(struct kv_blocks *k, uint32_t seq);
uint32_t kv_blocks_next(const struct kv_blocks *k, uint32_t block);
/* Every block is in exactly one table or in the free list; counts and owners agree. Ends the process when not (a bug).
 */
void kv_blocks_check(const struct kv_blocks *k);

#endif
