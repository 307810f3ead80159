/* What decode and prefill share: one warp with 16 rows of queries goes over a tile of N positions (FlashAttention: Dao et al. 2022; the order of loops and the
 * deferred division: FlashAttention-2, Dao 2023; fragments of S serve as those of P).
 *
 *   S = Q K^T        m16n8k16: A is Q, B is K as it lies, [position][dim], by ldmatrix
 *   m' = max(m, max S), P = 2^(S - m'), l = l 2^(m - m') + sum P, O = O 2^(m - m') + P V     A is P, B is V by ldmatrix.trans
 *
 * Q is rounded as it comes: the scale, which would push small values below f16's exponents, is part of the exponential's argument, in one fma with log2(e) and
 * the maximum. m is in units of log2. Where no maximum of the warp moved, O is left alone, which gives the same bits.
 *
 * Rows in a lane (g = lane / 4, t = lane % 4): g and g + 8; columns 8 n + 2 t and the next. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/kv.cuh"

#include "base/check.h"
#include "kernels/cuda/attention.h"

#define FULL_WARP 0xffffffffu
#define LOG2E 1.44269504088896340736f

/* Both kernels exist for these padded head dims (the smaller ones are padded with zeros): D, threads' registers and shared memory follow from it. */
#define ATTENTION_BY_DIM(dim, CASE)                                                                                    \
    do {                                                                                                               \
        if ((dim) <= 64)                                                                                               \
            CASE(64)                                                                                                   \
        else if ((dim) <= 80)                                                                                          \
            CASE(80)                                                                                                   \
        else if ((dim) <= 96)                                                                                          \
            CASE(96)                                                                                                   \
        else if ((dim) <= 128)                                                                                         \
            CASE(128)                                                                                                  \
        else                                                                                                           \
            CASE(256)                                                                                                  \
    } while (0)

template <int D> struct attn_rows {
    static constexpr uint32_t STRIDE = kv_tile<D>::STRIDE;
    static constexpr bool Q_REGS = D <= 128;       /* else O alone fills half of the registers, and Q is read from shared memory each time */
    uint32_t q[Q_REGS ? D / 16 : 1][4];
    const unsigned char *q_tile; /* [16] rows of this warp */
    float o[D / 8][4];
    float m[2], l[2]; /* l: of this lane's columns until attn_finish */
};

/* Products q k become scores in units of log2: s * log2, or with a softcap cap_out * tanh(s * cap_in). */
struct attn_scores {
    float log2, cap_in, cap_out; /* cap_out = 0: no softcap */
};
static inline struct attn_scores attn_scores_of(const struct cuda_attention *a)
{
    if (a->softcap > 0)
        return (struct attn_scores){1, a->scale / a->softcap, a->softcap * LOG2E};
    return (struct attn_scores){a->scale * LOG2E, 0, 0};
}

/* ROWS rows of Q (fp32, global; row i at at(i), nullptr: zeros) as 16-bit rows of a tile, columns past dim zeros, by T threads. with_rest: what rounding has lost
 * becomes rows ROWS and up. */
template <int D, int ROWS, int T, bool BF16, class AT>
static __device__ __forceinline__ void attn_load_q(unsigned char *tile, const AT &at, uint32_t dim, bool with_rest, uint32_t tid)
{
    for (uint32_t i = tid; i < ROWS * (D / 4); i += T) {
        uint32_t row = i / (D / 4), c = i % (D / 4) * 4; /* constants: no division */
        const float *x = at(row);
        float4 v = make_float4(0, 0, 0, 0);
        if (x && c < dim)
            v = *(const float4 *)(x + c);
        uint2 u = make_uint2(kv_pack2<BF16>(v.x, v.y), kv_pack2<BF16>(v.z, v.w));
        *(uint2 *)(tile + row * attn_rows<D>::STRIDE + c * 2) = u;
        if (with_rest)
            *(uint2 *)(tile + (row + ROWS) * attn_rows<D>::STRIDE + c * 2) =
                make_uint2(kv_rest2<BF16>(u.x, v.x, v.y), kv_rest2<BF16>(u.y, v.z, v.w));
    }
}

template <int D> static __device__ __forceinline__ void attn_q_fragment(const attn_rows<D> *w, uint32_t kk, uint32_t (&a)[4], uint32_t lane)
{
    ptx_ldmatrix_x4(a, w->q_tile + (lane & 15) * attn_rows<D>::STRIDE + kk * 32 + (lane >> 4) * 16);
}
/* After the warp's rows of Q are visible to it. */
template <int D> static __device__ __forceinline__ void attn_start(attn_rows<D> *w, const unsigned char *q_tile, uint32_t lane)
{
    w->q_tile = q_tile;
    if constexpr (attn_rows<D>::Q_REGS) {
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++)
            attn_q_fragment(w, kk, w->q[kk], lane);
    }
}
template <int D> static __device__ __forceinline__ void attn_reset(attn_rows<D> *w)
{
    w->m[0] = w->m[1] = -INFINITY;
    w->l[0] = w->l[1] = 0;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        w->o[n][0] = w->o[n][1] = w->o[n][2] = w->o[n][3] = 0;
}

template <bool BF16> static __device__ __forceinline__ void attn_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    if constexpr (BF16)
        ptx_mma_bf16(d, a, b0, b1);
    else
        ptx_mma_f16(d, a, b0, b1);
}

/* One tile. Row r of the lane (0: g, 1: g + 8) sees the tile's positions [lo[r], hi[r]); edge: not all of them, the same for the whole warp.
 * paired (decode of up to 8 heads): rows 8 .. 15 of Q hold what rounding rows 0 .. 7 to 16 bits has lost, and those of P likewise, so that products are as
 * good as fp32's; both halves of a lane's state are then the same row's, and O the sum of both (attn_finish). */
template <int D, int N, bool BF16>
static __device__ __forceinline__ void attn_tile(attn_rows<D> *w, const unsigned char *k, const unsigned char *v, bool edge, const int (&lo)[2],
                                                 const int (&hi)[2], const struct attn_scores &scores, bool paired, uint32_t lane)
{
    constexpr uint32_t STRIDE = attn_rows<D>::STRIDE;
    float s[N / 8][4];
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
    k += ((lane & 7) + (lane >> 4) * 8) * STRIDE + (lane >> 3 & 1) * 16;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        uint32_t q[4];
        if constexpr (!attn_rows<D>::Q_REGS)
            attn_q_fragment(w, kk, q, lane);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t b[4];
            ptx_ldmatrix_x4(b, k + n * 16 * STRIDE + kk * 32);
            if constexpr (attn_rows<D>::Q_REGS) {
                attn_mma<BF16>(s[2 * n], w->q[kk], b[0], b[1]);
                attn_mma<BF16>(s[2 * n + 1], w->q[kk], b[2], b[3]);
            } else {
                attn_mma<BF16>(s[2 * n], q, b[0], b[1]);
                attn_mma<BF16>(s[2 * n + 1], q, b[2], b[3]);
            }
        }
    }
    if (paired)
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            s[n][0] = s[n][2] = s[n][0] + s[n][2];
            s[n][1] = s[n][3] = s[n][1] + s[n][3];
        }
    if (scores.cap_out > 0)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[n][e] = scores.cap_out * tanhf(s[n][e] * scores.cap_in);
    if (edge)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int col = n * 8 + (int)(lane & 3) * 2 + (e & 1);
                if (col < lo[e / 2] || col >= hi[e / 2])
                    s[n][e] = -INFINITY;
            }
    float m[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int n = 0; n < N / 8; n++)
            m[r] = fmaxf(m[r], fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        m[r] = fmaxf(w->m[r], m[r] * scores.log2);
        m[r] = fmaxf(m[r], __shfl_xor_sync(FULL_WARP, m[r], 1));
        m[r] = fmaxf(m[r], __shfl_xor_sync(FULL_WARP, m[r], 2));
    }
    if (__any_sync(FULL_WARP, m[0] > w->m[0] || m[1] > w->m[1])) {
        float f[2];
#pragma unroll
        for (int r = 0; r < 2; r++) { /* a row that has seen nothing has 0 to scale, and -inf stays out of the difference */
            f[r] = ptx_exp2(w->m[r] - (m[r] == -INFINITY ? 0 : m[r]));
            w->m[r] = m[r];
            w->l[r] *= f[r];
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                w->o[n][e] *= f[e / 2];
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
        if (m[r] == -INFINITY)
            m[r] = 0;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[n][e] = ptx_exp2(fmaf(s[n][e], scores.log2, -m[e / 2]));
            w->l[e / 2] += s[n][e];
        }
    v += (lane & 15) * STRIDE + (lane >> 4) * 16;
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        uint32_t p[4];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            p[2 * e] = kv_pack2<BF16>(s[2 * n + e][0], s[2 * n + e][1]);
            p[2 * e + 1] = paired ? kv_rest2<BF16>(p[2 * e], s[2 * n + e][2], s[2 * n + e][3]) : kv_pack2<BF16>(s[2 * n + e][2], s[2 * n + e][3]);
        }
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t b[4];
            ptx_ldmatrix_x4_trans(b, v + n * 16 * STRIDE + d * 32);
            attn_mma<BF16>(w->o[2 * d], p, b[0], b[1]);
            attn_mma<BF16>(w->o[2 * d + 1], p, b[2], b[3]);
        }
    }
}

/* l becomes the rows'; with pairs, O the sum. */
template <int D> static __device__ __forceinline__ void attn_finish(attn_rows<D> *w, bool paired)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        w->l[r] += __shfl_xor_sync(FULL_WARP, w->l[r], 1);
        w->l[r] += __shfl_xor_sync(FULL_WARP, w->l[r], 2);
    }
    if (paired)
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            w->o[n][0] += w->o[n][2];
            w->o[n][1] += w->o[n][3];
        }
}

/* What O is multiplied with in the end: 1 / l, where a sink takes part in the sum. sink: its logit, or NULL. */
static __device__ __forceinline__ float attn_share(float m, float l, const float *sink)
{
    if (!sink)
        return 1.0f / l;
    float s = *sink * LOG2E, top = fmaxf(m, s), f = ptx_exp2(m - top);
    return f / (l * f + ptx_exp2(s - top));
}

/* Block ids of pages first, first + step, ... of a table, 32 at a time, one a lane; limit: pages of the table that may be read. For a whole warp, k uniform. */
struct attn_pages {
    const uint32_t *table;
    uint32_t first, step, limit, window, ids;
};
static __device__ __forceinline__ void attn_pages_start(struct attn_pages *p, const uint32_t *table, uint32_t first, uint32_t step, uint32_t limit)
{
    p->table = table;
    p->first = first;
    p->step = step;
    p->limit = limit;
    p->window = UINT32_MAX;
    p->ids = 0;
}
static __device__ __forceinline__ uint32_t attn_page(struct attn_pages *p, uint32_t k, uint32_t lane)
{
    if (k / 32 != p->window) {
        p->window = k / 32;
        uint32_t page = p->first + (k / 32 * 32 + lane) * p->step;
        p->ids = page < p->limit ? p->table[page] : 0;
    }
    return __shfl_sync(FULL_WARP, p->ids, k % 32);
}

/* Shapes that both kernels take; cudaErrorInvalidValue where the KV type is not one of theirs. */
static inline cudaError_t attn_check(const struct cuda_attention *a)
{
    const struct cuda_kv *kv = &a->kv;
    if (kv->type != KV_F16 && kv->type != KV_BF16 && kv->type != KV_Q8_0 && kv->type != KV_FP8)
        return cudaErrorInvalidValue;
    uint32_t whole = kv->type == KV_Q8_0 ? 32 : 8;
    ASSERT(kv->head_dim > 0 && kv->head_dim <= 256 && kv->head_dim % whole == 0);
    ASSERT(kv->head_dim_v > 0 && kv->head_dim_v <= 256 && kv->head_dim_v % whole == 0);
    ASSERT(a->scale > 0 && a->softcap >= 0);
    ASSERT(a->group > 0 && a->n_heads > 0 && a->head0 / a->group >= a->kv_head0);
    ASSERT((a->head0 + a->n_heads - 1) / a->group - a->kv_head0 < kv->n_kv_heads);
    ASSERT((uintptr_t)kv->layer % 16 == 0 && kv->block_stride % 16 == 0 && kv->v_off % 16 == 0 && kv->k_head_stride % 16 == 0 && kv->v_head_stride % 16 == 0);
    ASSERT((uintptr_t)a->q % 16 == 0 && a->q_stride % 4 == 0 && (uintptr_t)a->out % 8 == 0 && a->out_stride % 2 == 0);
    return cudaSuccess;
}

#endif
