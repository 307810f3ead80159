/* Attention of runs of tokens: FlashAttention-2 (Dao 2023) on mma.sync, keys and values from the paged pool.
 *
 *   out[i][h] = sum_p softmax_p(scale q[i][h] K[p]) V[p],  p <= pos[i], p > pos[i] - window
 *
 * A block: CUDA_ATTN_TILE queries of one run and one head; grid (head, tile), heads of a KV head side by side, so that they meet in L2, and the last tiles, which
 * see the most, first. 4 warps of 16 queries each go over tiles of N positions (64; 32 beyond 128 dims) that all share: cp.async fills the second of two tiles while the
 * first is worked on; 8-bit types are copied as they are and widened by all threads, which frees the raw bytes for the next copy. Q is rounded once to
 * f16 (bf16 for a bf16 cache), so is P. Masks are applied in tiles that a warp's first or last row does not see whole; a warp leaves out tiles
 * that none of its rows sees.
 *
 * Shared memory, D = 128: 2 x (K, V) of 64 x 272 bytes = 68 KB (Q passes through the second tile into registers): two blocks an SM from sm_80 on (H100: three but for
 * registers). D = 256: Q stays, 99 KB: the most that sm_86, 89 and 120 have.
 *
 * Operations: 4 dim a pair of query and position. Bytes: q and out once, K and V once a tile of queries, from L2 (for a head of 128 dims in f16 8 bytes a
 * 1,000 FLOP). So mma bounds it: expected 50 to 60% of the rate that cuBLAS reaches in f16 on an H100 at 4k positions (mma.sync has about two thirds of wgmma's
 * rate there, and half of the diagonal tile is masked), 65 to 75% on sm_80, 86, 89, 120. Not measured.
 * Oracle: kernels_ref_f32.attention (tests/gpu/test_attention.c). */
#include "kernels/cuda/attention.cuh"

namespace
{

enum { WARPS = 4, THREADS = 32 * WARPS, TILE = CUDA_ATTN_TILE };
static_assert(TILE == 16 * WARPS, "a warp has 16 queries");

template <int D> struct shape {
    static constexpr int N = D > 128 ? 32 : 64;
    static constexpr uint32_t STRIDE = attn_rows<D>::STRIDE, KEYS = N * STRIDE, STAGE = 2 * KEYS; /* K, V */
    static constexpr uint32_t RAW = 2 * N * (D + D / 16);
    static constexpr bool Q_STAYS = !attn_rows<D>::Q_REGS;
    /* [K, V] [K, V, or raw K and V] [Q, where it stays]. In 8 bits Q passes through the first, else through the second. */
    static __host__ __device__ constexpr uint32_t q_off(bool narrow)
    {
        return Q_STAYS ? STAGE + (narrow ? RAW : STAGE) : narrow ? 0 : STAGE;
    }
    static constexpr size_t smem(bool narrow)
    {
        return STAGE + (narrow ? RAW : STAGE) + (Q_STAYS ? TILE * STRIDE : 0);
    }
    static_assert(Q_STAYS || TILE * STRIDE <= STAGE, "Q fits into a stage");
};

struct prefill {
    struct cuda_attention a;
    struct cuda_batch b;
    const uint32_t *tile_tok, *tile_n;
    struct attn_scores scores;
};

/* Tiles of N positions of one sequence, from a page's border on. */
template <int D> struct keys {
    const struct cuda_kv *kv;
    uint32_t kv_head, start, lo, end; /* positions [lo, end) are wanted, tiles begin at start */
    struct attn_pages pages;
    unsigned char *smem;
    bool narrow;
};
template <int D> __device__ __forceinline__ void issue(keys<D> *k, uint32_t i, uint32_t tid)
{
    using S = shape<D>;
    const struct cuda_kv &kv = *k->kv;
    uint32_t base = k->start + i * S::N;
    if (base < k->end) {
        int lo = (int)k->lo - (int)base, hi = (int)k->end - (int)base;
        const uint8_t *pages[S::N / KV_PAGE]; /* all before any copy: the warp's lanes hand them round */
#pragma unroll
        for (int j = 0; j < S::N / KV_PAGE; j++)
            pages[j] = kv.layer + attn_page(&k->pages, i * (S::N / KV_PAGE) + j, tid % 32) * kv.block_stride;
        size_t k_off = k->kv_head * kv.k_head_stride, v_off = kv.v_off + k->kv_head * kv.v_head_stride;
        auto ks = [&](int j) { return pages[j] + k_off; };
        auto vs = [&](int j) { return pages[j] + v_off; };
        if (k->narrow) {
            unsigned char *raw = k->smem + S::STAGE;
            kv_copy8<S::N, THREADS>(raw, ks, kv_bytes(kv.type, kv.head_dim), lo, hi, tid);
            kv_copy8<S::N, THREADS>(raw + S::RAW / 2, vs, kv_bytes(kv.type, kv.head_dim_v), lo, hi, tid);
        } else {
            unsigned char *at = k->smem + (i & 1) * S::STAGE;
            kv_copy16<D, S::N, THREADS>(at, ks, kv.layer, kv.head_dim, lo, hi, tid);
            kv_copy16<D, S::N, THREADS>(at + S::KEYS, vs, kv.layer, kv.head_dim_v, lo, hi, tid);
        }
    }
    ptx_cp_async_commit();
}
/* Tile i is there for all threads, the next is on its way; where it lies. */
template <int D> __device__ __forceinline__ const unsigned char *arrive(keys<D> *k, uint32_t i, uint32_t tid)
{
    using S = shape<D>;
    const struct cuda_kv &kv = *k->kv;
    if (!k->narrow) {
        issue(k, i + 1, tid);
        ptx_cp_async_wait<1>();
        __syncthreads();
        return k->smem + (i & 1) * S::STAGE;
    }
    uint32_t base = k->start + i * S::N;
    int lo = (int)k->lo - (int)base, hi = (int)k->end - (int)base;
    ptx_cp_async_wait<0>();
    __syncthreads();
    kv_widen<D, S::N, THREADS>(kv.type, k->smem, k->smem + S::STAGE, kv.head_dim, lo, hi, tid);
    kv_widen<D, S::N, THREADS>(kv.type, k->smem + S::KEYS, k->smem + S::STAGE + S::RAW / 2, kv.head_dim_v, lo, hi, tid);
    __syncthreads();
    issue(k, i + 1, tid);
    return k->smem;
}

/* Rows row and row + 8 of the tile of queries, where they exist. */
template <int D> __device__ __forceinline__ void store(const attn_rows<D> *w, const struct prefill &p, uint32_t tok, uint32_t n, uint32_t head, uint32_t row)
{
    uint32_t dim_v = p.a.kv.head_dim_v, col = threadIdx.x % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (row + 8 * r >= n)
            continue;
        float f = attn_share(w->m[r], w->l[r], p.a.sinks ? p.a.sinks + head : nullptr);
        float *out = p.a.out + (tok + row + 8 * r) * p.a.out_stride + (size_t)head * dim_v + col;
#pragma unroll
        for (int d = 0; d < D / 8; d++)
            if ((uint32_t)d * 8 < dim_v)
                *(float2 *)(out + d * 8) = make_float2(w->o[d][2 * r] * f, w->o[d][2 * r + 1] * f);
    }
}

template <int D, bool BF16> __global__ void __launch_bounds__(THREADS, 2) attention_prefill(struct prefill p)
{
    using S = shape<D>;
    const struct cuda_attention &a = p.a;
    uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32, head = blockIdx.x, tile = gridDim.y - 1 - blockIdx.y;
    uint32_t n = p.tile_n[tile];
    if (n == 0)
        return;
    uint32_t tok = p.tile_tok[tile], slot = p.b.slot[tok], dim_v = a.kv.head_dim_v;
    if (slot == UINT32_MAX) { /* padding: something finite */
        for (uint32_t i = tid; i < n * dim_v; i += THREADS)
            a.out[(tok + i / dim_v) * a.out_stride + (size_t)head * dim_v + i % dim_v] = 0;
        return;
    }
    uint32_t pos = p.b.pos[tok];
    keys<D> k;
    k.kv = &a.kv;
    k.kv_head = (a.head0 + head) / a.group - a.kv_head0;
    k.end = pos + n;
    k.lo = a.window && pos + 1 > a.window ? pos + 1 - a.window : 0;
    k.start = k.lo / KV_PAGE * KV_PAGE;
    k.narrow = kv_narrow(a.kv.type);
    k.smem = smem_base();
    attn_pages_start(&k.pages, p.b.tables + slot * p.b.table_stride, k.start / KV_PAGE, 1, (k.end + KV_PAGE - 1) / KV_PAGE);

    if (a.kv.head_dim < D) { /* columns of K that no copy fills; those of V make columns of O that nobody stores */
        for (uint32_t i = tid; i < (S::STAGE + (k.narrow ? 0 : S::STAGE)) / 16; i += THREADS)
            ((uint4 *)k.smem)[i] = make_uint4(0, 0, 0, 0);
        __syncthreads();
    }
    issue(&k, 0, tid);
    unsigned char *q = k.smem + S::q_off(k.narrow);
    const float *qs = a.q + tok * a.q_stride + (size_t)head * a.kv.head_dim;
    attn_load_q<D, TILE, THREADS, BF16>(
        q, [&](uint32_t r) { return r < n ? qs + r * a.q_stride : nullptr; }, a.kv.head_dim, false, tid);
    __syncthreads();
    attn_rows<D> w;
    attn_start(&w, q + warp * 16 * S::STRIDE, lane);
    attn_reset(&w);
    if (!S::Q_STAYS)
        __syncthreads(); /* all have Q before keys come over it; its padding is zeros too */

    /* Positions of this lane's rows, and what the warp's first and last see. */
    uint32_t row0 = warp * 16, row = row0 + lane / 4, warp_last = pos + row0 + 15;
    uint32_t warp_lo = a.window && pos + row0 + 1 > a.window ? pos + row0 + 1 - a.window : 0;
    uint32_t last_lo = a.window && warp_last + 1 > a.window ? warp_last + 1 - a.window : 0;
    for (uint32_t i = 0; k.start + i * S::N < k.end; i++) {
        const unsigned char *at = arrive(&k, i, tid);
        uint32_t base = k.start + i * S::N;
        if (row0 < n && base <= warp_last && base + S::N > warp_lo) {
            int lo[2], hi[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int own = (int)(pos + row) + 8 * r;
                hi[r] = own + 1 - (int)base;
                lo[r] = a.window ? own + 1 - (int)a.window - (int)base : 0;
            }
            bool edge = pos + row0 + 1 < base + S::N || last_lo > base;
            attn_tile<D, S::N, BF16>(&w, at, at + S::KEYS, edge, lo, hi, p.scores, false, lane);
        }
        __syncthreads(); /* the tile has been read: the next copy may go there */
    }
    attn_finish(&w, false);
    store(&w, p, tok, n, head, row);
}

template <int D> cudaError_t launch(const struct prefill &p, dim3 grid, cudaStream_t stream)
{
    size_t smem = shape<D>::smem(kv_narrow(p.a.kv.type));
    if (p.a.kv.type == KV_BF16)
        return LAUNCH((attention_prefill<D, true>), grid, dim3(THREADS), smem, stream, p);
    return LAUNCH((attention_prefill<D, false>), grid, dim3(THREADS), smem, stream, p);
}

} // namespace

extern "C" cudaError_t cuda_attention_prefill(struct cuda_context *c, const struct cuda_attention *a, const struct cuda_batch *b, const uint32_t *tile_tok,
                                              const uint32_t *tile_n, uint32_t n_tiles, cudaStream_t stream)
{
    (void)c;
    CUDA_TRY(attn_check(a));
    if (n_tiles == 0)
        return cudaSuccess;
    ASSERT(n_tiles <= 65535);
    struct prefill p = {*a, *b, tile_tok, tile_n, attn_scores_of(a)};
    dim3 grid(a->n_heads, n_tiles);
#define CASE(d) return launch<d>(p, grid, stream);
    ATTENTION_BY_DIM(MAX(a->kv.head_dim, a->kv.head_dim_v), CASE);
#undef CASE
}
