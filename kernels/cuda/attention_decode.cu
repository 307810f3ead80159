/* Attention of tokens that stand alone: one query a sequence, flash attention split over positions (Flash-Decoding: Dao, Haziza, Massa, Sizov 2023).
 *
 *   out[h] = sum_p softmax_p(scale q[h] K[p]) V[p],  p in the sequence's positions that the token sees
 *
 * Shapes: a token has group query heads for each KV head; all of one KV head (up to 16: a chunk) are the 16 rows of one m16n8k16 tile, so that K and V are read once.
 * Grid: (split, KV head x chunk, token). A block's WARPS warps each go over pages (16 positions) of their own, first + warp + WARPS i, with a ring of two pages of
 * K and V in shared memory filled by cp.async; no barrier but __syncwarp until the end, when the warps' (m, l, O) are joined in warp order. With several splits
 * each writes O, m and l into scratch, and the last of them to come (a counter) joins them in order of position and divides.
 *
 * Where a split begins is computed here, from the sequence's own length: the grid knows only an upper bound, and a block beyond the end leaves at once.
 * Deterministic form: splits of 256 positions counted from 0, whatever else runs, so that a token's bits depend on nothing but its sequence.
 *
 * Why tensor cores even for one head: an element of K or V costs 1/256 ldmatrix.x4 and 1/128 mma of a warp, 0.4 lane instructions, against 3 and more with fp32 fma (convert,
 * load, multiply; times heads); the empty rows cost nothing that is scarce (16 FLOP a byte of f16 is a tenth of an H100's mma rate at its memory's speed). With up to
 * 8 heads the rows 8 to 15 are not empty: they carry what rounding Q and P has lost (attn_tile).
 *
 * Bytes: n_pos * (kv_bytes(dim) + kv_bytes(dim_v)) a KV head, once, plus splits * group * (dim_v + 2) * 4 of partial results written and read in L2.
 * Operations: 4 n_pos * dim a head. Expected: 85 to 90% of the copy bandwidth where all SMs have 1,000 positions and more in f16 (in flight: 2 pages of K and V
 * x 12 warps, 192 KB an SM at D = 128; 26 KB would do for 3.35 TB/s at 1 us); 70 to 80% in 8 bits, where each byte passes through shared memory six times
 * (copy, read, write and read as f16), near an H200's limit of it. Not measured.
 * Oracle: kernels_ref_f32.attention (tests/gpu/test_attention.c). */
#include "kernels/cuda/attention.cuh"

#include "kernels/cuda/context.h"

namespace
{

enum { RANGE = 256, ROWS = 16, BLOCKS_AN_SM = 3 /* by registers and, from sm_90 on, shared memory at D = 128 */ };

template <int D> struct shape {
    static constexpr uint32_t WARPS = D > 128 ? 2 : 4, THREADS = WARPS * 32;
    static constexpr uint32_t TILE = KV_PAGE * attn_rows<D>::STRIDE, STAGE = 2 * TILE; /* K, V */
    static constexpr uint32_t O_STRIDE = D + 8;                                        /* floats; rows of a warp's O in different banks */
    /* [ring of each warp][Q][m and l of each warp][flag]; in the end the rings become the warps' O. */
    static constexpr uint32_t RAW = 2 * KV_PAGE * (D + D / 16); /* K, V; q8_0's rows are the longest */
    static constexpr uint32_t Q_BYTES = ROWS * attn_rows<D>::STRIDE, ML_BYTES = WARPS * ROWS * 8;
    static __host__ __device__ constexpr uint32_t ring(bool narrow)
    {
        return STAGE + (narrow ? RAW : STAGE);
    }
    static constexpr size_t smem(bool narrow)
    {
        return WARPS * ring(narrow) + Q_BYTES + ML_BYTES + 16;
    }
    static_assert(ROWS * O_STRIDE * 4 <= STAGE + RAW, "a warp's O fits into its ring");
};

struct decode {
    struct cuda_attention a;
    struct cuda_batch b;
    const uint32_t *index;
    uint32_t first; /* of the index, in this launch */
    struct attn_scores scores;
    uint32_t n_splits;  /* of a token at most */
    uint32_t split_len; /* the deterministic form's; 0: the sequence's length over n_splits, but at least split_min */
    uint32_t split_min;
    uint32_t n_chunks; /* of up to 16 heads, of a group */
    uint32_t rows;     /* heads of a chunk: of the largest */
    float *part_o;     /* [token][KV head x chunk][split][row][dim_v] */
    float2 *part_ml;   /* [token][KV head x chunk][split][row] */
    uint32_t *counters; /* [token][KV head x chunk] */
};

/* What a block works on: rows row0 .. row0 + n_rows - 1 of the 16 are heads of ours; row 0 would be local head head0. */
struct work {
    uint32_t tok, kv_head, n_rows, row0;
    int head0;
    const uint32_t *table;
};

/* A warp's pages of the positions [from, to), through its ring. */
struct stream {
    uint32_t from, to, first, n; /* n pages: first, first + WARPS, ... */
    size_t k_off, v_off;
    unsigned char *ring;
    bool narrow;
    struct attn_pages pages;
};
template <int D>
__device__ __forceinline__ void stream_start(struct stream *s, const struct cuda_kv &kv, const struct work &k, uint32_t from, uint32_t to, unsigned char *ring,
                                             uint32_t warp)
{
    uint32_t end = (to + KV_PAGE - 1) / KV_PAGE;
    s->from = from;
    s->to = to;
    s->first = from / KV_PAGE + warp;
    s->n = s->first < end ? (end - s->first + shape<D>::WARPS - 1) / shape<D>::WARPS : 0;
    s->k_off = k.kv_head * kv.k_head_stride;
    s->v_off = kv.v_off + k.kv_head * kv.v_head_stride;
    s->ring = ring;
    s->narrow = kv_narrow(kv.type);
    attn_pages_start(&s->pages, k.table, s->first, shape<D>::WARPS, end);
}
template <int D> __device__ __forceinline__ void stream_issue(struct stream *s, const struct cuda_kv &kv, uint32_t i, uint32_t lane)
{
    using S = shape<D>;
    if (i < s->n) {
        int base = (int)((s->first + i * S::WARPS) * KV_PAGE), lo = (int)s->from - base, hi = (int)s->to - base;
        const uint8_t *block = kv.layer + attn_page(&s->pages, i, lane) * kv.block_stride, *ks = block + s->k_off, *vs = block + s->v_off;
        if (s->narrow) {
            unsigned char *raw = s->ring + S::STAGE;
            kv_copy8<KV_PAGE, 32>(raw, [=](int) { return ks; }, kv_bytes(kv.type, kv.head_dim), lo, hi, lane);
            kv_copy8<KV_PAGE, 32>(raw + S::RAW / 2, [=](int) { return vs; }, kv_bytes(kv.type, kv.head_dim_v), lo, hi, lane);
        } else {
            unsigned char *at = s->ring + (i & 1) * S::STAGE;
            kv_copy16<D, KV_PAGE, 32>(at, [=](int) { return ks; }, ks, kv.head_dim, lo, hi, lane);
            kv_copy16<D, KV_PAGE, 32>(at + S::TILE, [=](int) { return vs; }, vs, kv.head_dim_v, lo, hi, lane);
        }
    }
    ptx_cp_async_commit();
}
/* All pages; the first has been issued. */
template <int D, bool BF16>
__device__ __forceinline__ void stream_run(struct stream *s, attn_rows<D> *w, const struct decode &p, bool paired, uint32_t lane)
{
    using S = shape<D>;
    const struct cuda_kv &kv = p.a.kv;
    for (uint32_t i = 0; i < s->n; i++) {
        int base = (int)((s->first + i * S::WARPS) * KV_PAGE), lo = (int)s->from - base, hi = (int)s->to - base;
        unsigned char *at = s->ring;
        if (s->narrow) {
            ptx_cp_async_wait<0>();
            __syncwarp();
            kv_widen<D, KV_PAGE, 32>(kv.type, at, at + S::STAGE, kv.head_dim, lo, hi, lane);
            kv_widen<D, KV_PAGE, 32>(kv.type, at + S::TILE, at + S::STAGE + S::RAW / 2, kv.head_dim_v, lo, hi, lane);
            __syncwarp();
            stream_issue<D>(s, kv, i + 1, lane);
        } else {
            at += (i & 1) * S::STAGE;
            stream_issue<D>(s, kv, i + 1, lane);
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
__device__ __forceinline__ void put_state(const attn_rows<D> *w, float *o, float2 *ml, bool paired, uint32_t warp, uint32_t lane)
{
    using S = shape<D>;
    o += warp * ROWS * S::O_STRIDE;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (r == 1 && paired)
            break;
        uint32_t row = lane / 4 + 8 * r;
        if (lane % 4 == 0)
            ml[warp * ROWS + row] = make_float2(w->m[r], w->l[r]);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(float2 *)(o + row * S::O_STRIDE + n * 8 + lane % 4 * 2) = make_float2(w->o[n][2 * r], w->o[n][2 * r + 1]);
    }
}

__device__ __forceinline__ float *out_of(const struct decode &p, const struct work &k, uint32_t row)
{
    return p.a.out + k.tok * p.a.out_stride + (size_t)(k.head0 + (int)row) * p.a.kv.head_dim_v;
}
__device__ __forceinline__ const float *sink_of(const struct decode &p, const struct work &k, uint32_t row)
{
    return p.a.sinks ? p.a.sinks + k.head0 + (int)row : nullptr;
}
__device__ __forceinline__ void put(float *to, float4 o, float f)
{
    *(float2 *)to = make_float2(o.x * f, o.y * f);
    *(float2 *)(to + 2) = make_float2(o.z * f, o.w * f);
}
__device__ __forceinline__ void add(float4 &to, float4 o, float f)
{
    to = make_float4(fmaf(o.x, f, to.x), fmaf(o.y, f, to.y), fmaf(o.z, f, to.z), fmaf(o.w, f, to.w));
}

/* The block's result from its warps': to the output where it is the token's only split, else to scratch. */
template <int D>
__device__ __forceinline__ void join_warps(const struct decode &p, const struct work &k, const float *o_warps, const float2 *ml_warps, uint32_t part,
                                           bool only, uint32_t tid)
{
    using S = shape<D>;
    uint32_t dim_v = p.a.kv.head_dim_v, quads = dim_v / 4;
    for (uint32_t i = tid; i < k.n_rows * quads; i += S::THREADS) {
        uint32_t row = k.row0 + i / quads, j = i % quads * 4;
        float m = -INFINITY, l = 0;
        float4 o = make_float4(0, 0, 0, 0);
        for (uint32_t s = 0; s < S::WARPS; s++)
            m = fmaxf(m, ml_warps[s * ROWS + row].x);
        for (uint32_t s = 0; s < S::WARPS; s++) {
            float f = ptx_exp2(ml_warps[s * ROWS + row].x - m);
            l = fmaf(ml_warps[s * ROWS + row].y, f, l);
            add(o, *(const float4 *)(o_warps + (s * ROWS + row) * S::O_STRIDE + j), f);
        }
        if (only) {
            put(out_of(p, k, row) + j, o, attn_share(m, l, sink_of(p, k, row)));
            continue;
        }
        size_t at = (size_t)part * p.rows + row;
        *(float4 *)(p.part_o + at * dim_v + j) = o;
        if (j == 0)
            p.part_ml[at] = make_float2(m, l);
    }
}

/* The token's result from its n splits, parts part and on: first m and l of each row, a warp a row, then O, 8 splits on their way at a time. share: [2 * ROWS] */
template <int D> __device__ __forceinline__ void join_splits(const struct decode &p, const struct work &k, uint32_t part, uint32_t n, float *share, uint32_t tid)
{
    uint32_t dim_v = p.a.kv.head_dim_v, quads = dim_v / 4, lane = tid % 32;
    const float2 *ml = p.part_ml + (size_t)part * p.rows;
    const float *os = p.part_o + (size_t)part * p.rows * dim_v;
    for (uint32_t row = k.row0 + tid / 32; row < k.row0 + k.n_rows; row += shape<D>::WARPS) {
        float m = -INFINITY, l = 0;
        for (uint32_t s = lane; s < n; s += 32)
            m = fmaxf(m, __ldcg(ml + (size_t)s * p.rows + row).x);
        for (int d = 16; d > 0; d /= 2)
            m = fmaxf(m, __shfl_xor_sync(FULL_WARP, m, d));
        for (uint32_t s = lane; s < n; s += 32) {
            float2 v = __ldcg(ml + (size_t)s * p.rows + row);
            l = fmaf(v.y, ptx_exp2(v.x - m), l);
        }
        for (int d = 16; d > 0; d /= 2)
            l += __shfl_xor_sync(FULL_WARP, l, d);
        if (lane == 0) {
            share[row] = m;
            share[ROWS + row] = attn_share(m, l, sink_of(p, k, row));
        }
    }
    __syncthreads();
    for (uint32_t i = tid; i < k.n_rows * quads; i += shape<D>::THREADS) {
        uint32_t row = k.row0 + i / quads, j = i % quads * 4;
        float4 o = make_float4(0, 0, 0, 0);
        for (uint32_t s0 = 0; s0 < n; s0 += 8) {
            float4 v[8];
            float m[8];
#pragma unroll
            for (uint32_t s = 0; s < 8; s++) {
                size_t at = (size_t)min(s0 + s, n - 1) * p.rows + row;
                v[s] = __ldcg((const float4 *)(os + at * dim_v + j));
                m[s] = s0 + s < n ? __ldcg(ml + at).x : -INFINITY;
            }
#pragma unroll
            for (uint32_t s = 0; s < 8; s++)
                add(o, v[s], ptx_exp2(m[s] - share[row]));
        }
        put(out_of(p, k, row) + j, o, share[ROWS + row]);
    }
}

/* Which heads and positions; false: none. */
__device__ __forceinline__ bool work_of(struct work *k, const struct decode &p)
{
    const struct cuda_attention &a = p.a;
    k->tok = p.first + blockIdx.z;
    if (p.index)
        k->tok = p.index[k->tok];
    if (k->tok == UINT32_MAX)
        return false;
    k->kv_head = blockIdx.y / p.n_chunks;
    uint32_t in_group = blockIdx.y % p.n_chunks * ROWS, rows = min(a.group - in_group, (uint32_t)ROWS);
    k->head0 = (int)((a.kv_head0 + k->kv_head) * a.group + in_group) - (int)a.head0;
    int begin = max(k->head0, 0), end = min(k->head0 + (int)rows, (int)a.n_heads);
    if (begin >= end)
        return false;
    k->row0 = (uint32_t)(begin - k->head0);
    k->n_rows = (uint32_t)(end - begin);
    return true;
}

template <int D, bool BF16> __global__ void __launch_bounds__(shape<D>::THREADS, BLOCKS_AN_SM) attention_decode(struct decode p)
{
    using S = shape<D>;
    const struct cuda_attention &a = p.a;
    uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32, split = blockIdx.x, dim_v = a.kv.head_dim_v;
    struct work k;
    if (!work_of(&k, p))
        return;
    uint32_t slot = p.b.slot[k.tok], pos = p.b.pos[k.tok];
    if (slot == UINT32_MAX) { /* padding: something finite */
        if (split == 0)
            for (uint32_t i = tid; i < k.n_rows * dim_v; i += S::THREADS)
                out_of(p, k, k.row0)[i] = 0;
        return;
    }
    k.table = p.b.tables + slot * p.b.table_stride;
    uint32_t n_pos = pos + 1, lo = a.window && n_pos > a.window ? n_pos - a.window : 0, len = p.split_len, from = len ? len : (uint32_t)KV_PAGE;
    uint32_t base = lo / from * from;
    if (!len) { /* in steps of a page a warp */
        constexpr uint32_t STEP = S::WARPS * KV_PAGE;
        len = (max((n_pos - base + p.n_splits - 1) / p.n_splits, p.split_min) + STEP - 1) / STEP * STEP;
    }
    uint32_t n_splits = (n_pos - base + len - 1) / len;
    if (split >= n_splits)
        return;

    bool narrow = kv_narrow(a.kv.type), paired = p.rows <= ROWS / 2;
    unsigned char *rings = smem_base(), *q = rings + S::WARPS * S::ring(narrow);
    float2 *ml_warps = (float2 *)(q + S::Q_BYTES);
    uint32_t *last = (uint32_t *)(ml_warps + S::WARPS * ROWS);
    if (a.kv.head_dim < D) { /* columns of K that no copy fills; those of V make columns of O that nobody stores */
        for (uint32_t i = tid; i < S::WARPS * S::ring(narrow) / 16; i += S::THREADS)
            ((uint4 *)rings)[i] = make_uint4(0, 0, 0, 0);
        __syncthreads();
    }
    struct stream s;
    stream_start<D>(&s, a.kv, k, max(base + split * len, lo), min(base + (split + 1) * len, n_pos), rings + warp * S::ring(narrow), warp);
    stream_issue<D>(&s, a.kv, 0, lane);
    const float *qs = a.q + k.tok * a.q_stride;
    auto q_row = [&](uint32_t r) { return r >= k.row0 && r < k.row0 + k.n_rows ? qs + (size_t)(k.head0 + (int)r) * a.kv.head_dim : nullptr; };
    if (paired)
        attn_load_q<D, ROWS / 2, S::THREADS, BF16>(q, q_row, a.kv.head_dim, true, tid);
    else
        attn_load_q<D, ROWS, S::THREADS, BF16>(q, q_row, a.kv.head_dim, false, tid);
    __syncthreads();

    attn_rows<D> w;
    attn_start(&w, q, lane);
    attn_reset(&w);
    stream_run<D, BF16>(&s, &w, p, paired, lane);
    attn_finish(&w, paired);
    __syncthreads(); /* no warp reads its ring any more, nor is anything on its way into it */
    put_state(&w, (float *)rings, ml_warps, paired, warp, lane);
    __syncthreads();
    uint32_t unit = blockIdx.z * gridDim.y + blockIdx.y, part = unit * p.n_splits;
    join_warps<D>(p, k, (const float *)rings, ml_warps, part + split, n_splits == 1, tid);
    if (n_splits == 1)
        return;
    __syncthreads(); /* the block's part is stored, by all its threads */
    if (tid == 0) {
        __threadfence();
        *last = atomicInc(&p.counters[unit], n_splits - 1) == n_splits - 1; /* back to 0 with the last one */
        __threadfence();
    }
    __syncthreads();
    if (!*last)
        return;
    join_splits<D>(p, k, part, n_splits, (float *)ml_warps, tid);
}

template <int D> cudaError_t launch(const struct decode &p, dim3 grid, cudaStream_t stream)
{
    size_t smem = shape<D>::smem(kv_narrow(p.a.kv.type));
    if (p.a.kv.type == KV_BF16)
        return LAUNCH((attention_decode<D, true>), grid, dim3(shape<D>::THREADS), smem, stream, p);
    return LAUNCH((attention_decode<D, false>), grid, dim3(shape<D>::THREADS), smem, stream, p);
}

size_t part_bytes(size_t rows, uint32_t dim_v)
{
    return rows * (dim_v + 2) * 4;
}
uint32_t ranges_of(uint32_t positions, bool window) /* a window begins anywhere */
{
    return (positions + RANGE - 1) / RANGE + (window ? 1 : 0);
}

/* How far tokens of up to `seen` positions are split. Blocks for all SMs at once, each with a page a warp at least; where the tokens alone are enough, still 4 for
 * a sequence of 4,096 positions and more among shorter ones. */
void choose_splits(struct decode *p, const struct cuda_context *c, uint32_t units, uint32_t seen)
{
    enum { STEP = 4 * KV_PAGE, LONG = 1024, LONG_SPLITS = 4 };
    uint32_t all = BLOCKS_AN_SM * c->cfg.n_sms, want = units < all ? (all + units - 1) / units : 1;
    p->split_min = want > 1 ? STEP : LONG;
    p->n_splits = MAX(MIN(want, (seen + STEP - 1) / STEP), MIN((seen + LONG - 1) / LONG, (uint32_t)LONG_SPLITS));
    size_t room = c->scratch_bytes / (part_bytes(p->rows, p->a.kv.head_dim_v) * units);
    if (!c->counters || units > CONTEXT_COUNTERS || room < 2)
        p->n_splits = 1;
    else if (p->n_splits > room)
        p->n_splits = (uint32_t)room;
}

} // namespace

/* A token of the longest sequence has rows for its heads, rounded up to chunks, and for those of the groups at both ends that are others'. */
extern "C" size_t cuda_attention_workspace_bytes(const struct cuda_limits *l)
{
    size_t waves = (size_t)2 * BLOCKS_AN_SM * 192 * ROWS, longest = (size_t)ranges_of(l->ctx, true) * (2 * l->n_heads + 4 * ROWS);
    return part_bytes(MAX(waves, longest), l->head_dim_v);
}

extern "C" cudaError_t cuda_attention_decode(struct cuda_context *c, const struct cuda_attention *a, const struct cuda_batch *b, const uint32_t *index,
                                             uint32_t n_idx, uint32_t ctx_max, cudaStream_t stream)
{
    CUDA_TRY(attn_check(a));
    ASSERT(ctx_max > 0 || n_idx == 0);
    struct decode p = {};
    p.a = *a;
    p.b = *b;
    p.index = index;
    p.scores = attn_scores_of(a);
    p.n_chunks = (a->group + ROWS - 1) / ROWS;
    p.rows = MIN(a->group, (uint32_t)ROWS);
    p.counters = c->counters;
    uint32_t n_y = a->kv.n_kv_heads * p.n_chunks, seen = a->window ? MIN(a->window, ctx_max) : ctx_max, at_once = MIN(n_idx, 65535u);
    if (c->cfg.deterministic) { /* as many tokens at a time as scratch has room for */
        p.split_len = RANGE;
        p.n_splits = ranges_of(seen, a->window);
        if (p.n_splits > 1) {
            size_t room = MIN(c->scratch_bytes / (part_bytes(p.rows, a->kv.head_dim_v) * p.n_splits), (size_t)CONTEXT_COUNTERS) / n_y;
            ASSERT(c->counters && room > 0);
            at_once = (uint32_t)MIN(room, (size_t)at_once);
        }
    } else {
        choose_splits(&p, c, at_once * n_y, seen);
    }
    p.part_o = (float *)c->scratch;
    for (uint32_t i = 0; i < n_idx; i += at_once) {
        uint32_t n = MIN(n_idx - i, at_once);
        p.first = i;
        p.part_ml = (float2 *)(p.part_o + (size_t)n * n_y * p.n_splits * p.rows * a->kv.head_dim_v);
        dim3 grid(p.n_splits, n_y, n);
#define CASE(d) CUDA_TRY(launch<d>(p, grid, stream));
        ATTENTION_BY_DIM(MAX(a->kv.head_dim, a->kv.head_dim_v), CASE);
#undef CASE
    }
    return cudaSuccess;
}
