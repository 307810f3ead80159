/* Between the product with Wq, Wk, Wv and attention: RMSNorm of each head of q and k (Qwen3), rotation (RoPE: Su et al. 2021), and k and v into the cache.
 *
 *   y = x / sqrt(mean(x^2) + eps) * w;  (x0, x1) -> (x0 c - x1 s, x0 s + x1 c) for the pairs of the first rope_dims;  cache[pos] = k, v in the KV type
 *
 * A warp has a head of a token: it lies in shared memory while its lanes take columns lane, lane + 32, ... in turn. Heads of q, then k, then v, of one token after
 * the other. Sums: a lane's in order of columns, then halving; they depend on nothing but the head.
 * Bytes: a token's q, k, v in fp32 read, q and k written back, k and v in the KV type; 12 operations a value. Expected: bound by the launch in decode (24 KB a token
 * in a model of 8B), by 60 to 80% of the memory's bandwidth in prefill. Not measured.
 * Oracle: kernels_ref_f32.rmsnorm and .rope; kernels_ref.kv_write, bit for bit (tests/gpu/test_attention.c). */
#include "kernels/cuda/kv.cuh"

#include "base/check.h"

namespace
{

enum { WARPS = 4, DIM = HPARAMS_HEAD_DIM_MAX };

/* x (shared, this warp's) normed with weight w; every lane has its own columns. */
__device__ __forceinline__ void norm(float *x, const float *w, float eps, uint32_t dim, uint32_t lane)
{
    float sum = 0;
    for (uint32_t j = lane; j < dim; j += 32)
        sum = fmaf(x[j], x[j], sum);
    for (int m = 16; m > 0; m /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, m);
    float r = 1.0f / sqrtf(sum / (float)dim + eps);
    for (uint32_t j = lane; j < dim; j += 32)
        x[j] = x[j] * r * w[j];
}

__global__ void __launch_bounds__(32 * WARPS) rope_kv(struct cuda_rope_kv r, struct cuda_batch b)
{
    const struct cuda_kv &kv = r.kv;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, all = r.n_heads + 2 * kv.n_kv_heads, at = blockIdx.x * WARPS + warp;
    uint32_t tok = at / all, head = at % all;
    if (tok >= b.n_tok) /* a whole warp; there is no barrier of the block */
        return;
    bool is_q = head < r.n_heads, is_v = head >= r.n_heads + kv.n_kv_heads;
    uint32_t kv_head = is_q ? 0 : is_v ? head - r.n_heads - kv.n_kv_heads : head - r.n_heads, dim = is_v ? kv.head_dim_v : kv.head_dim;
    float *x = (float *)smem_base() + warp * DIM, *src = r.qkv + tok * r.stride;
    src += is_v ? (size_t)(r.n_heads + kv.n_kv_heads) * kv.head_dim + (size_t)kv_head * dim : (size_t)head * dim;
    for (uint32_t j = lane; j < dim; j += 32)
        x[j] = src[j];
    if (!is_v) {
        const float *w = is_q ? r.q_norm : r.k_norm;
        if (w)
            norm(x, w, r.eps, dim, lane);
        __syncwarp();
        uint32_t half = r.rope_dims / 2;
        for (uint32_t i = lane; i < half; i += 32) {
            uint32_t i0 = r.layout == ROPE_NORMAL ? 2 * i : i, i1 = r.layout == ROPE_NORMAL ? i0 + 1 : i + half;
            float c = r.cos[tok * (size_t)half + i], s = r.sin[tok * (size_t)half + i], x0 = x[i0], x1 = x[i1];
            x[i0] = fmaf(x0, c, -(x1 * s));
            x[i1] = fmaf(x0, s, x1 * c);
        }
        __syncwarp();
        for (uint32_t j = lane; j < dim; j += 32)
            src[j] = x[j];
    }
    uint32_t slot = b.slot[tok];
    if (is_q || slot == UINT32_MAX)
        return;
    __syncwarp();
    uint32_t pos = b.pos[tok], block = b.tables[slot * b.table_stride + pos / KV_PAGE];
    uint8_t *dst = kv.layer + block * kv.block_stride + (is_v ? kv.v_off + kv_head * kv.v_head_stride : kv_head * kv.k_head_stride);
    kv_write_row(kv.type, x, dim, dst + pos % KV_PAGE * kv_bytes(kv.type, dim), lane);
}

} // namespace

extern "C" cudaError_t cuda_rope_kv(const struct cuda_rope_kv *r, const struct cuda_batch *b, cudaStream_t stream)
{
    const struct cuda_kv *kv = &r->kv;
    if (kv->type != KV_F16 && kv->type != KV_BF16 && kv->type != KV_Q8_0 && kv->type != KV_FP8)
        return cudaErrorInvalidValue;
    uint32_t whole = kv->type == KV_Q8_0 ? 32 : 8;
    ASSERT(kv->head_dim > 0 && kv->head_dim <= DIM && kv->head_dim % whole == 0);
    ASSERT(kv->head_dim_v > 0 && kv->head_dim_v <= DIM && kv->head_dim_v % whole == 0);
    ASSERT(r->rope_dims % 2 == 0 && r->rope_dims <= kv->head_dim);
    if (b->n_tok == 0)
        return cudaSuccess;
    uint32_t warps = b->n_tok * (r->n_heads + 2 * kv->n_kv_heads);
    return LAUNCH(rope_kv, dim3((warps + WARPS - 1) / WARPS), dim3(32 * WARPS), WARPS * DIM * sizeof(float), stream, *r, *b);
}
