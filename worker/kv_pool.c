#include "worker/kv_pool.h"

#include "base/check.h"

#include <sys/mman.h>

size_t kv_row_bytes(enum kv_type type, uint32_t n)
{
    switch (type) {
    case KV_F32:
        return (size_t)n * 4;
    case KV_F16:
    case KV_BF16:
        return (size_t)n * 2;
    case KV_Q8_0:
        return (size_t)n / 32 * 34;
    case KV_FP8:
        return n;
    }
    ASSERT(!"kv type");
    return 0;
}

enum err kv_pool_layout(struct kv_pool *p, const struct hparams *hp, uint32_t n_kv_heads, uint32_t n_layers, enum kv_type type, uint32_t n_blocks)
{
    *p = (struct kv_pool){.n_blocks = n_blocks, .n_layers = n_layers, .n_kv_heads = n_kv_heads, .type = type};
    TRY(shard_kv_check(hp, type));
    p->head_dim = hp->head_dim;
    p->head_dim_v = hp->head_dim_v;
    p->k_row = kv_row_bytes(type, hp->head_dim);
    p->v_row = kv_row_bytes(type, hp->head_dim_v);
    p->k_head_stride = p->k_row * SHARD_KV_BLOCK;
    p->v_head_stride = p->v_row * SHARD_KV_BLOCK;
    p->v_off = p->k_head_stride * n_kv_heads;
    p->block_stride = p->v_off + p->v_head_stride * n_kv_heads;
    uint64_t layer, all;
    if (!check_mul(p->block_stride, n_blocks, &layer) || !check_mul(layer, n_layers, &all) || all > SIZE_MAX / 2)
        return err_set(ERR_NOMEM, "a KV cache of %u blocks is beyond the address space", n_blocks);
    p->layer_stride = (size_t)layer;
    p->bytes = (size_t)all;
    return ERR_OK;
}

enum err kv_pool_init(struct kv_pool *p, const struct hparams *hp, uint32_t n_kv_heads, uint32_t n_layers, enum kv_type type,
                      uint32_t n_blocks)
{
    TRY(kv_pool_layout(p, hp, n_kv_heads, n_layers, type, n_blocks));
    if (p->bytes == 0)
        return ERR_OK;
    p->map = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->map == MAP_FAILED) {
        p->map = NULL;
        return err_set(ERR_NOMEM, "no address space for %zu bytes of KV cache (lower --kv-memory, --max-seqs or --ctx)", p->bytes);
    }
    /* Huge pages only where a layer fills many: a small cache would be touched whole by its first block. */
    if (p->layer_stride >= (32u << 20))
        madvise(p->map, p->bytes, MADV_HUGEPAGE);
    return ERR_OK;
}

void kv_pool_deinit(struct kv_pool *p)
{
    if (p->map)
        munmap(p->map, p->bytes);
    *p = (struct kv_pool){0};
}
