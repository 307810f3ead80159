/* The KV cache's bytes on one rank: [layer of the stage][block][K or V][kv head][16 positions][head_dim] of one KV type. Who owns a
 * block is the coordinator's business; here an id below n_blocks is an address.
 *
 * One mapping, reserved at start and touched on use. Written by the threads of a pass (each its own rows), read after a barrier. */
#ifndef WORKER_KV_POOL_H
#define WORKER_KV_POOL_H

#include "base/err.h"
#include "kernels/kernels.h"

struct kv_pool {
    uint8_t *map;
    size_t bytes;
    uint32_t n_blocks, n_layers, n_kv_heads;
    enum kv_type type;
    uint32_t head_dim, head_dim_v;
    size_t k_row, v_row;                 /* bytes of one position of one head */
    size_t k_head_stride, v_head_stride; /* bytes from a KV head to the next, inside a block */
    size_t v_off, block_stride, layer_stride;
};

/* Bytes of n values; n is a multiple of 32 for q8_0. */
size_t kv_row_bytes(enum kv_type type, uint32_t n);
/* The strides and the size, without memory. ERR_UNSUPPORTED, ERR_NOMEM (beyond the address space). */
enum err kv_pool_layout(struct kv_pool *p, const struct hparams *hp, uint32_t n_kv_heads, uint32_t n_layers, enum kv_type type, uint32_t n_blocks);
/* ERR_UNSUPPORTED (q8_0 with a head that is no multiple of 32), ERR_NOMEM. */
enum err kv_pool_init(struct kv_pool *p, const struct hparams *hp, uint32_t n_kv_heads, uint32_t n_layers, enum kv_type type,
                      uint32_t n_blocks);
void kv_pool_deinit(struct kv_pool *p);

static inline uint8_t *kv_pool_layer(const struct kv_pool *p, uint32_t layer)
{
    return p->map + layer * p->layer_stride;
}
/* Where the K (V) of a local KV head at a position lies; block: the id of the block that holds the position. */
static inline uint8_t *kv_pool_k(const struct kv_pool *p, uint32_t layer, uint32_t block, uint32_t kv_head, uint32_t pos)
{
    return kv_pool_layer(p, layer) + block * p->block_stride + kv_head * p->k_head_stride + pos % SHARD_KV_BLOCK * p->k_row;
}
static inline uint8_t *kv_pool_v(const struct kv_pool *p, uint32_t layer, uint32_t block, uint32_t kv_head, uint32_t pos)
{
    return kv_pool_layer(p, layer) + block * p->block_stride + p->v_off + kv_head * p->v_head_stride + pos % SHARD_KV_BLOCK * p->v_row;
}

#endif
