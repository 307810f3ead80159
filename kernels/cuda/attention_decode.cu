/* Attention of tokens that stand alone: one query a sequence, flash attention split over positions (Flash-Decoding: Dao, Haziza, Massa, Sizov 2023).
 *
 *   out[h] = sum_p softmax_p(scale q[h] K[p]) V[p],  p in the sequence's positions that the token sees
 *
 * Shapes: a token has group query heads for each KV head; all of one KV head (up to 16: a chunk) are the 16 rows of one m16n8k16 tile, so that K and V are read once.
 * Grid: (split, KV head x chunk, token). A block's WARPS warps each go over pages (16 positions) of their own, first + warp + WARPS i, with a ring of two pages of
 * K and V in shared memory filled by cp.async; no barrier but __syncwarp until the end, when the warps' (m, l, O) are joined in warp order. With several splits
 * each writes (O, m, l) into scratch, and the last of them to come (a counter) joins them in order of position and divides.
 *
 * Where a split begins is computed here, from the sequence's own length: the grid knows only an upper bound, and a block beyond the end leaves at once.
 * Deterministic form: ranges of 256 positions counted from 0, each joined from its warps and then folded into one state in order. It is the same sequence of operations
 * whether a block a range takes part or one block does all ranges, so that which of both is left to the size of the batch.
 *
 * Why tensor cores even for one head: an element of K or V costs 1/256 ldmatrix.x4 and 1/128 mma of a warp, 0.4 lane instructions, against 3 and more with fp32 fma (convert,
 * load, multiply; times heads); the empty rows cost nothing that is scarce (16 FLOP a byte of f16 is a tenth of an H100's mma rate at its memory's speed). With up to
 * 8 heads the rows 8 to 15 are not empty: they carry what rounding Q and P has lost (attn_tile).
 *
 * Bytes: n_pos * (kv_bytes(dim) + kv_bytes(dim_v)) a KV head, once, plus splits * 16 * (dim_v + 2) * 4 of partial results written and read in L2.
 * Operations: 4 n_pos * dim a head. Expected: 85 to 90% of the copy bandwidth where all SMs have 1,000 positions and more in f16 (in flight: 2 pages of K and V
 * x 12 warps, 192 KB an SM at D = 128; 26 KB would do for 3.35 TB/s at 1 us); 70 to 80% in 8 bits, where each byte passes through shared memory six times
 * (copy, read, write and read as f16), near an H200's limit of it. Not measured.
 * Oracle: kernels_ref_f32.attention (tests/gpu/test_attention.c). */
#include "kernels/cuda/attention.cuh"

#include "kernels/cuda/context.h"

namespace
{

enum { RANGE = 256, ROWS = 16 };

template <int D> struct shape {
    static constexpr uint32_t WARPS = D > 128 ? 2 : 4, THREADS = WARPS * 32;
    static constexpr uint32_t TILE = KV_PAGE * attn_rows<D>::STRIDE, STAGE = 2 * TILE; /* K, V */
    static constexpr uint32_t O_STRIDE = D + 8;                                        /* floats; rows of a warp's O in different banks */
    /* [ring of each warp][Q][m and l of each warp][m and l of the block's rows][flag] [O of the fold]; the ring becomes the warps' O in the end. */
    static constexpr uint32_t RAW = 2 * KV_PAGE * (D + D / 16); /* K, V; q8_0's rows are the longest */
    static constexpr uint32_t Q_BYTES = ROWS * attn_rows<D>::STRIDE, ML_BYTES = (WARPS + 1) * ROWS * 8 + 16;
    static __host__ __device__ constexpr uint32_t ring(bool narrow)
    {
        return STAGE + (narrow ? RAW : STAGE);
    }
    static constexpr size_t smem(bool narrow, bool fold)
    {
        return WARPS * ring(narrow) + Q_BYTES + ML_BYTES + (fold ? ROWS * D * 4 : 0);
    }
    static_assert(WARPS * ROWS * O_STRIDE * 4 <= WARPS * (STAGE + RAW), "the warps' O fit into the rings");
};

struct decode {
    struct cuda_attention a;
    struct cuda_batch b;
    const uint32_t *index;
    struct attn_scores scores;
    uint32_t n_splits;  /* 1: a block does all of a token */
    uint32_t range_len; /* 0: the sequence's length over n_splits */
    uint32_t n_chunks;  /* of up to 16 heads, of a group */
    float *part;        /* [token][KV head x chunk][split][row][dim_v + 2] */
    uint32_t *counters; /* [token][KV head x chunk] */
};

/* The state takes in a later range's. From the empty state (-inf, 0, 0) it becomes the range's own, exactly. */
__device__ __forceinline__ void fold(float &m_all, float &l_all, float &o_all, float m, float l, float o)
{
    float top = fmaxf(m_all, m), a = ptx_exp2(m_all - top), b = ptx_exp2(m - top);
    m_all = top;
    l_all = fmaf(l, b, l_all * a);
    o_all = fmaf(o, b, o_all * a);
}

/* What a block works on. */
struct work {
    uint32_t tok, kv_head, n_rows, row0, n_pos, lo; /* rows row0 .. row0 + n_rows of 16 are heads of ours; positions [lo, n_pos) are seen */
    int head0;                                      /* local head of row 0 */
    const uint32_t *table;
};

/* Pages of [from, to) of the warp, through its ring. */
template <int D, bool BF16>
__device__ __forceinline__ void warp_pages(attn_rows<D> *w, const struct decode &p, const struct work &k, unsigned char *ring, uint32_t from, uint32_t to,
                                           bool paired, uint32_t warp, uint32_t lane)
{
    using S = shape<D>;
    const struct cuda_kv &kv = p.a.kv;
    constexpr uint32_t STRIDE = attn_rows<D>::STRIDE;
    bool narrow = kv_narrow(kv.type);
    uint32_t first = from / KV_PAGE + warp, end = (to + KV_PAGE - 1) / KV_PAGE, n = first < end ? (end - first + S::WARPS - 1) / S::WARPS : 0;
    struct attn_pages pages;
    attn_pages_start(&pages, k.table, first, S::WARPS, end);
    auto issue = [&](uint32_t i) {
        if (i < n) {
            uint32_t base = (first + i * S::WARPS) * KV_PAGE;
            int lo = (int)from - (int)base, hi = (int)to - (int)base;
            const uint8_t *block = kv.layer + attn_page(&pages, i, lane) * kv.block_stride;
            const uint8_t *ks = block + k.kv_head * kv.k_head_stride, *vs = block + kv.v_off + k.kv_head * kv.v_head_stride;
            if (narrow) {
                uint32_t k_row = kv_bytes(kv.type, kv.head_dim), v_row = kv_bytes(kv.type, kv.head_dim_v);
                kv_copy8<KV_PAGE, 32>(ring + S::STAGE, [=](int) { return ks; }, k_row, lo, hi, lane);
                kv_copy8<KV_PAGE, 32>(ring + S::STAGE + S::RAW / 2, [=](int) { return vs; }, v_row, lo, hi, lane);
            } else {
                unsigned char *at = ring + (i & 1) * S::STAGE;
                kv_copy16<KV_PAGE, 32>(at, STRIDE, [=](int) { return ks; }, ks, kv.head_dim, lo, hi, lane);
                kv_copy16<KV_PAGE, 32>(at + S::TILE, STRIDE, [=](int) { return vs; }, vs, kv.head_dim_v, lo, hi, lane);
            }
        }
        ptx_cp_async_commit();
    };
    issue(0);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t base = (first + i * S::WARPS) * KV_PAGE;
        int lo = (int)from - (int)base, hi = (int)to - (int)base;
        unsigned char *at = ring;
        if (narrow) {
            ptx_cp_async_wait<0>();
            __syncwarp();
            kv_widen<KV_PAGE, 32>(kv.type, at, STRIDE, ring + S::STAGE, kv.head_dim, lo, hi, lane);
            kv_widen<KV_PAGE, 32>(kv.type, at + S::TILE, STRIDE, ring + S::STAGE + S::RAW / 2, kv.head_dim_v, lo, hi, lane);
            __syncwarp();
            issue(i + 1);
        } else {
            at += (i & 1) * S::STAGE;
            issue(i + 1);
            ptx_cp_async_wait<1>();
            __syncwarp();
        }
        int los[2] = {lo, lo}, his[2] = {hi, hi};
        attn_tile<D, KV_PAGE, BF16>(w, at, at + S::TILE, lo > 0 || hi < KV_PAGE, los, his, p.scores, paired, lane);
        __syncwarp(); /* the page has been read: the next copy may go there */
    }
}

/* The warps' states into shared memory: O over the rings. */
template <int D>
__device__ __forceinline__ void put_state(const attn_rows<D> *w, float *o, float *m, float *l, bool paired, uint32_t warp, uint32_t lane)
{
    using S = shape<D>;
    o += warp * ROWS * S::O_STRIDE;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (r == 1 && paired)
            break;
        uint32_t row = lane / 4 + 8 * r;
        if (lane % 4 == 0) {
            m[warp * ROWS + row] = w->m[r];
            l[warp * ROWS + row] = w->l[r];
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(float2 *)(o + row * S::O_STRIDE + n * 8 + lane % 4 * 2) = make_float2(w->o[n][2 * r], w->o[n][2 * r + 1]);
    }
}

template <int D> __device__ __forceinline__ float *out_of(const struct decode &p, const struct work &k, uint32_t row)
{
    return p.a.out + k.tok * p.a.out_stride + (size_t)(k.head0 + (int)row) * p.a.kv.head_dim_v;
}

/* The last split of a token's KV head folds all of them, in order. */
template <int D> __device__ __forceinline__ void fold_parts(const struct decode &p, const struct work &k, const float *part, uint32_t n, uint32_t tid)
{
    uint32_t dim_v = p.a.kv.head_dim_v, row_floats = dim_v + 2, rows = min(p.a.group, (uint32_t)ROWS);
    for (uint32_t i = tid; i < k.n_rows * dim_v; i += shape<D>::THREADS) {
        uint32_t row = k.row0 + i / dim_v, j = i % dim_v;
        float m = -INFINITY, l = 0, o = 0;
#pragma unroll 4
        for (uint32_t s = 0; s < n; s++) {
            const float *r = part + ((size_t)s * rows + row) * row_floats;
            fold(m, l, o, __ldcg(r + dim_v), __ldcg(r + dim_v + 1), __ldcg(r + j));
        }
        out_of<D>(p, k, row)[j] = o * attn_share(m, l, p.a.sinks ? p.a.sinks + k.head0 + (int)row : nullptr);
    }
}

template <int D, bool BF16> __global__ void __launch_bounds__(shape<D>::THREADS, 3) attention_decode(struct decode p)
{
    using S = shape<D>;
    const struct cuda_attention &a = p.a;
    uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32, split = blockIdx.x, dim_v = a.kv.head_dim_v;
    struct work k;
    k.tok = p.index ? p.index[blockIdx.z] : blockIdx.z;
    if (k.tok == UINT32_MAX)
        return;
    k.kv_head = blockIdx.y / p.n_chunks;
    uint32_t in_group = blockIdx.y % p.n_chunks * ROWS, rows = min(a.group - in_group, (uint32_t)ROWS);
    k.head0 = (int)((a.kv_head0 + k.kv_head) * a.group + in_group) - (int)a.head0;
    k.row0 = k.head0 < 0 ? min((uint32_t)-k.head0, rows) : 0;
    k.n_rows = k.head0 < (int)a.n_heads ? min(rows, (uint32_t)((int)a.n_heads - k.head0)) : 0;
    k.n_rows = k.n_rows > k.row0 ? k.n_rows - k.row0 : 0;
    uint32_t slot = p.b.slot[k.tok];
    if (slot == UINT32_MAX || k.n_rows == 0) { /* padding: something finite */
        if (split == 0)
            for (uint32_t i = tid; i < k.n_rows * dim_v; i += S::THREADS)
                out_of<D>(p, k, k.row0)[i] = 0;
        return;
    }
    k.table = p.b.tables + slot * p.b.table_stride;
    k.n_pos = p.b.pos[k.tok] + 1;
    k.lo = a.window && k.n_pos > a.window ? k.n_pos - a.window : 0;
    uint32_t len = p.range_len, base;
    if (len) {
        base = k.lo / len * len;
    } else {
        base = k.lo / KV_PAGE * KV_PAGE;
        len = ((k.n_pos - base + p.n_splits - 1) / p.n_splits + S::WARPS * KV_PAGE - 1) / (S::WARPS * KV_PAGE) * (S::WARPS * KV_PAGE);
    }
    uint32_t n_ranges = (k.n_pos - base + len - 1) / len;
    if (p.n_splits > 1 && split >= n_ranges)
        return;

    bool narrow = kv_narrow(a.kv.type), paired = min(a.group, (uint32_t)ROWS) <= ROWS / 2;
    unsigned char *rings = smem_base(), *q = rings + S::WARPS * S::ring(narrow);
    float *o_warps = (float *)rings, *m_warps = (float *)(q + S::Q_BYTES), *l_warps = m_warps + S::WARPS * ROWS;
    float *m_all = l_warps + S::WARPS * ROWS, *l_all = m_all + ROWS;
    uint32_t *flag = (uint32_t *)(l_all + ROWS);
    float *o_all = (float *)(flag + 4); /* [row][dim_v], with several ranges in this block */

    if (a.kv.head_dim < D || dim_v < D) /* columns that no copy fills */
        for (uint32_t i = tid; i < S::WARPS * S::ring(narrow) / 16; i += S::THREADS)
            ((uint4 *)rings)[i] = make_uint4(0, 0, 0, 0);
    const float *qs = a.q + k.tok * a.q_stride;
    auto q_row = [&](uint32_t r) { return r >= k.row0 && r < k.row0 + k.n_rows ? qs + (k.head0 + (int)r) * (int)a.kv.head_dim : nullptr; };
    if (paired)
        attn_load_q<D, ROWS / 2, S::THREADS, BF16>(q, q_row, a.kv.head_dim, true, tid);
    else
        attn_load_q<D, ROWS, S::THREADS, BF16>(q, q_row, a.kv.head_dim, false, tid);
    __syncthreads();

    attn_rows<D> w;
    attn_start(&w, q, lane);
    uint32_t range = p.n_splits > 1 ? split : 0, range_end = p.n_splits > 1 ? split + 1 : n_ranges, first = range;
    const uint32_t rows_all = min(a.group, (uint32_t)ROWS);
    float *part = nullptr;
    if (p.n_splits > 1)
        part = p.part + ((size_t)(blockIdx.z * gridDim.y + blockIdx.y) * p.n_splits) * rows_all * (dim_v + 2);
    for (; range < range_end; range++) {
        uint32_t from = max(base + range * len, k.lo), to = min(base + (range + 1) * len, k.n_pos);
        attn_reset(&w);
        warp_pages<D, BF16>(&w, p, k, rings + warp * S::ring(narrow), from, to, paired, warp, lane);
        attn_finish(&w, paired);
        ptx_cp_async_wait<0>();
        __syncthreads(); /* no warp reads its ring any more */
        put_state(&w, o_warps, m_warps, l_warps, paired, warp, lane);
        __syncthreads();
        bool last = range + 1 == range_end;
        for (uint32_t i = tid; i < k.n_rows * dim_v; i += S::THREADS) {
            uint32_t row = k.row0 + i / dim_v, j = i % dim_v;
            float m = -INFINITY, l = 0, o = 0;
            for (uint32_t s = 0; s < S::WARPS; s++)
                m = fmaxf(m, m_warps[s * ROWS + row]);
            for (uint32_t s = 0; s < S::WARPS; s++) {
                float f = ptx_exp2(m_warps[s * ROWS + row] - m);
                l = fmaf(l_warps[s * ROWS + row], f, l);
                o = fmaf(o_warps[(s * ROWS + row) * S::O_STRIDE + j], f, o);
            }
            if (n_ranges > 1 && p.n_splits > 1) {
                float *r = part + ((size_t)split * rows_all + row) * (dim_v + 2);
                r[j] = o;
                if (j == 0) {
                    r[dim_v] = m;
                    r[dim_v + 1] = l;
                }
                continue;
            }
            float ma = -INFINITY, la = 0, oa = 0;
            if (range > first) {
                ma = m_all[row];
                la = l_all[row];
                oa = o_all[i];
            }
            fold(ma, la, oa, m, l, o);
            if (last) {
                out_of<D>(p, k, row)[j] = oa * attn_share(ma, la, a.sinks ? a.sinks + k.head0 + (int)row : nullptr);
                continue;
            }
            o_all[i] = oa;
        }
        if (last)
            break;
        __syncthreads(); /* all have read the old m and l, and the warps' O */
        if (tid < rows_all) {
            float m = -INFINITY, l = 0, none = 0, ma = range > first ? m_all[tid] : -INFINITY, la = range > first ? l_all[tid] : 0;
            for (uint32_t s = 0; s < S::WARPS; s++)
                m = fmaxf(m, m_warps[s * ROWS + tid]);
            for (uint32_t s = 0; s < S::WARPS; s++)
                l = fmaf(l_warps[s * ROWS + tid], ptx_exp2(m_warps[s * ROWS + tid] - m), l);
            fold(ma, la, none, m, l, 0);
            m_all[tid] = ma;
            l_all[tid] = la;
        }
        if (a.kv.head_dim < D || dim_v < D) { /* O lay where zeros have to be */
            for (uint32_t i = tid; i < S::WARPS * S::ring(narrow) / 16; i += S::THREADS)
                ((uint4 *)rings)[i] = make_uint4(0, 0, 0, 0);
        }
        __syncthreads();
    }
    if (p.n_splits == 1 || n_ranges == 1)
        return;
    __threadfence();
    __syncthreads();
    if (tid == 0) /* back to 0 with the last one */
        *flag = atomicInc(&p.counters[blockIdx.z * gridDim.y + blockIdx.y], n_ranges - 1) == n_ranges - 1;
    __syncthreads();
    if (!*flag)
        return;
    __threadfence();
    fold_parts<D>(p, k, part, n_ranges, tid);
}

template <int D> cudaError_t launch(const struct decode &p, dim3 grid, cudaStream_t stream)
{
    size_t smem = shape<D>::smem(kv_narrow(p.a.kv.type), p.n_splits == 1 && p.range_len);
    if (p.a.kv.type == KV_BF16)
        return LAUNCH((attention_decode<D, true>), grid, dim3(shape<D>::THREADS), smem, stream, p);
    return LAUNCH((attention_decode<D, false>), grid, dim3(shape<D>::THREADS), smem, stream, p);
}

size_t part_bytes(uint32_t rows, uint32_t dim_v)
{
    return (size_t)rows * (dim_v + 2) * 4;
}

} // namespace

extern "C" size_t cuda_attention_workspace_bytes(const struct cuda_limits *l)
{
    size_t blocks = (size_t)2 * 4 * 192 * ROWS, ranges = (size_t)(l->ctx / RANGE + 2) * 2 * l->n_heads;
    return part_bytes((uint32_t)MAX(blocks, ranges), l->head_dim_v);
}

extern "C" cudaError_t cuda_attention_decode(struct cuda_context *c, const struct cuda_attention *a, const struct cuda_batch *b, const uint32_t *index,
                                             uint32_t n_idx, uint32_t ctx_max, cudaStream_t stream)
{
    CUDA_TRY(attn_check(a));
    if (n_idx == 0)
        return cudaSuccess;
    ASSERT(ctx_max > 0 && n_idx <= 65535);
    struct decode p = {};
    p.a = *a;
    p.b = *b;
    p.index = index;
    p.scores = attn_scores_of(a);
    p.n_chunks = (a->group + ROWS - 1) / ROWS;
    p.part = (float *)c->scratch;
    p.counters = c->counters;
    p.range_len = c->cfg.deterministic ? RANGE : 0;
    /* Blocks for four times the SMs, each with a page a warp at least; the deterministic form: a range each, or all. */
    uint32_t n_y = a->kv.n_kv_heads * p.n_chunks, blocks = n_idx * n_y, seen = a->window ? MIN(a->window, ctx_max) : ctx_max;
    uint32_t ranges = p.range_len ? (seen + RANGE - 1) / RANGE + (a->window ? 1 : 0) : (seen + KV_PAGE - 1 + 4 * KV_PAGE - 1) / (4 * KV_PAGE);
    uint32_t want = blocks < 4 * c->cfg.n_sms ? (4 * c->cfg.n_sms + blocks - 1) / blocks : 1;
    p.n_splits = p.range_len ? (want > 1 ? ranges : 1) : MIN(want, ranges);
    size_t one = part_bytes(MIN(a->group, (uint32_t)ROWS), a->kv.head_dim_v) * blocks;
    if (one * p.n_splits > c->scratch_bytes) /* the deterministic form takes all or nothing */
        p.n_splits = p.range_len ? 1 : MAX((uint32_t)(c->scratch_bytes / one), 1u);
    if (!c->counters || blocks > CONTEXT_COUNTERS)
        p.n_splits = 1;
    dim3 grid(p.n_splits, n_y, n_idx);
#define CASE(d) return launch<d>(p, grid, stream);
    ATTENTION_BY_DIM(MAX(a->kv.head_dim, a->kv.head_dim_v), CASE);
#undef CASE
}
