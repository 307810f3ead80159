/* Sampling (sample.h). What a number is stands in kernels/sampling.h and sampling_filter.h; here stands which thread forms it. Sums whose order is fixed are chains
 * of one thread over shared memory, loaded 8 at a time; everything else of a row is done by all. */
#include "kernels/cuda/ptx.cuh"

#include "base/check.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/sample.h"
#include "kernels/sampling_filter.h"

struct cuda_sample_row_state { /* of a row that goes to slow_kernel */
    struct sampling_dist dist;
    double raw_sum;
    float raw_max, mu;
    uint32_t token, cands, n_top; /* cands: 0: the token is known; n_top: 0: the best are written */
};

namespace
{

constexpr uint32_t SEG = SHARD_VOCAB_SEGMENT, LIST = CUDA_SAMPLE_LIST, SEG_WARPS = 4, ROW_THREADS = 512, ROW_WARPS = ROW_THREADS / 32, SLOW_BLOCKS = 4,
                   FULL = 0xffffffffu, TOO_MANY = 0xffffffffu;
constexpr uint32_t SEGS_MAX = 2048; /* six doubles of each fit the list's memory */
constexpr uint32_t WARP_FLOATS = 3 * SEG;
static_assert(ROW_THREADS == SEG, "a thread for each id of a segment");
static_assert(ROW_WARPS * WARP_FLOATS * 4 <= LIST * 12 && SEGS_MAX * 6 * 8 <= LIST * 12, "what shares the list's memory");

struct launch {
    struct cuda_sample s;
    struct cuda_sample_call c;
};

/* What is asked of a row; the same in every thread. */
struct ask {
    const struct cuda_sample_slot *slot;
    uint32_t row, position, first_change, n_changes;
    bool raw, sample, adjusted;
    bool lifted; /* everything was banned: only `allowed` counts, and biases */
    struct sampling_plan plan;
};
__device__ __forceinline__ struct ask ask_of(const struct launch &l, uint32_t row)
{
    const struct cuda_sample_row *r = l.c.rows + row;
    struct ask a;
    a.slot = l.s.slot + r->slot;
    a.row = row;
    a.position = r->position;
    a.first_change = r->first_change;
    a.n_changes = r->n_changes;
    a.sample = r->sample != 0;
    a.raw = r->target != SAMPLING_NONE || (r->sample && r->logprob) || r->n_top > 0;
    const struct sampling_params *sp = &a.slot->params;
    a.adjusted = a.slot->n_bias || a.slot->has_allowed || a.n_changes || sampling_has_penalties(sp) ||
                 (a.slot->n_stop && sampling_bans_stops(sp, a.position));
    a.lifted = false;
    sampling_begin(sp, l.s.cfg.vocab, a.position, &a.plan);
    return a;
}

__device__ __forceinline__ uint32_t seg_len(const struct launch &l, uint32_t g)
{
    return MIN(SEG, l.s.cfg.vocab - g * SEG);
}
__device__ __forceinline__ const float *raw_seg(const struct launch &l, uint32_t row, uint32_t g)
{
    uint32_t at = g * SEG, r = 0;
    while (at - l.s.cfg.ids[r].first >= l.s.cfg.ids[r].n)
        r++;
    return l.c.logits + r * l.c.rank_stride + row * l.c.row_stride + (at - l.s.cfg.ids[r].first);
}
__device__ __forceinline__ float raw_at(const struct launch &l, uint32_t row, uint32_t id)
{
    return raw_seg(l, row, id / SEG)[id % SEG];
}
__device__ __forceinline__ const float *z_seg(const struct launch &l, uint32_t row, bool adjusted, uint32_t g)
{
    return adjusted ? l.s.adj_logits + row * l.s.adj_stride + g * SEG : raw_seg(l, row, g);
}

/* ---- a segment by a warp: lane i holds ids 4 * (i + 32 u) + (0 .. 3), u < 4; -inf beyond the end */

__device__ __forceinline__ void load16(const float *x, uint32_t n, float *v)
{
#pragma unroll
    for (uint32_t u = 0; u < 4; u++) {
        uint32_t at = 4 * (threadIdx.x % 32 + 32 * u);
        float4 f = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (at + 4 <= n) {
            f = *(const float4 *)(x + at);
        } else if (at < n) {
            f.x = x[at];
            f.y = at + 1 < n ? x[at + 1] : -INFINITY;
            f.z = at + 2 < n ? x[at + 2] : -INFINITY;
        }
        v[4 * u] = f.x;
        v[4 * u + 1] = f.y;
        v[4 * u + 2] = f.z;
        v[4 * u + 3] = f.w;
    }
}
__device__ __forceinline__ void store16(const float *v, uint32_t n, float *x)
{
#pragma unroll
    for (uint32_t u = 0; u < 4; u++) {
        uint32_t at = 4 * (threadIdx.x % 32 + 32 * u);
        if (at < n)
            *(float4 *)(x + at) = make_float4(v[4 * u], v[4 * u + 1], v[4 * u + 2], v[4 * u + 3]);
    }
}
__device__ __forceinline__ float warp_max(float m)
{
    for (uint32_t d = 16; d > 0; d /= 2) {
        float o = __shfl_xor_sync(FULL, m, d);
        m = o > m ? o : m;
    }
    return m;
}
/* NaN when one is NaN or +inf. */
__device__ __forceinline__ float max16(const float *v)
{
    float m = -INFINITY;
    bool odd = false;
#pragma unroll
    for (uint32_t i = 0; i < 16; i++) {
        m = v[i] > m ? v[i] : m;
        odd |= !(v[i] < INFINITY);
    }
    m = warp_max(m);
    return __any_sync(FULL, odd) ? NAN : m;
}
__device__ __forceinline__ void exps16(const float *v, float max, float scale, float *e)
{
    float x[16];
#pragma unroll
    for (uint32_t i = 0; i < 16; i++)
        x[i] = fm_exp((v[i] - max) * scale);
    store16(x, SEG, e);
}
/* Chain lane % 8 over a segment's exponentials, and the 8 chains added: ((0+4)+(2+6)) + ((1+5)+(3+7)). */
__device__ __forceinline__ double chains(const float *e, bool any)
{
    double sum = 0;
    for (uint32_t i = threadIdx.x % 8; any && i < SEG; i += 64) {
        float t[8];
#pragma unroll
        for (uint32_t u = 0; u < 8; u++)
            t[u] = e[i + 8 * u];
#pragma unroll
        for (uint32_t u = 0; u < 8; u++)
            sum += (double)t[u];
    }
    sum += __shfl_xor_sync(FULL, sum, 4);
    sum += __shfl_xor_sync(FULL, sum, 2);
    return sum + __shfl_xor_sync(FULL, sum, 1);
}

/* v, z: the adjusted logits of the segment. Each list is gone through by all lanes; what touches an id twice stands on both sides of a barrier. */
__device__ __forceinline__ void adjust(const struct launch &l, const struct ask &a, uint32_t g, uint32_t n, float *v, float *z)
{
    uint32_t lane = threadIdx.x % 32, first = g * SEG;
    const struct cuda_sample_slot *s = a.slot;
    store16(v, SEG, z);
    __syncwarp();
    for (uint32_t i = lane; i < s->n_bias; i += 32)
        if (s->bias_id[i] - first < n)
            z[s->bias_id[i] - first] += s->bias[i];
    __syncwarp();
    const uint32_t *allowed = l.s.allowed + (size_t)(s - l.s.slot) * ((l.s.cfg.vocab + 31) / 32);
    for (uint32_t j = lane; s->has_allowed && j < n; j += 32)
        if (!(allowed[(first + j) / 32] >> j % 32 & 1))
            z[j] = -INFINITY;
    __syncwarp();
    if (!a.lifted) {
        for (uint32_t i = lane; sampling_bans_stops(&s->params, a.position) && i < s->n_stop; i += 32)
            if (s->stop[i] - first < n)
                z[s->stop[i] - first] = -INFINITY;
        __syncwarp();
        const struct cuda_sample_count *c = l.s.counts + (size_t)(s - l.s.slot) * l.s.cfg.vocab + first;
        for (uint32_t j = lane; sampling_has_penalties(&s->params) && j < n; j += 32)
            z[j] = sampling_penalise(&s->params, z[j], c[j].all, c[j].output);
        __syncwarp();
        const struct sampling_change *change = l.c.changes + (a.n_changes ? a.first_change : 0);
        uint32_t lo = 0, hi = a.n_changes;
        while (lo < hi) {
            uint32_t mid = lo + (hi - lo) / 2;
            if (change[mid].id < first)
                lo = mid + 1;
            else
                hi = mid;
        }
        for (uint32_t i = lo + lane; i < a.n_changes && change[i].id < first + n; i += 32)
            if (i == 0 || change[i - 1].id != change[i].id) /* an id may stand there more than once */
                for (uint32_t j = i; j < a.n_changes && change[j].id == change[i].id; j++)
                    z[change[i].id - first] -= change[j].minus;
        __syncwarp();
    }
    load16(z, SEG, v);
    store16(v, n, l.s.adj_logits + a.row * l.s.adj_stride + first);
}

/* Statistics of segment g of the raw logits (raw) and, for rows that sample, of the adjusted ones at the plan's temperature. w: WARP_FLOATS of this warp. */
__device__ void segment(const struct launch &l, const struct ask &a, uint32_t g, bool raw, bool more, float *w)
{
    uint32_t lane = threadIdx.x % 32, n = seg_len(l, g);
    float *e_raw = w, *e_adj = w + SEG, *z = w + 2 * SEG, v[16], max_raw = -INFINITY, max_adj = -INFINITY, scale = a.plan.dist.scale;
    bool greedy = a.plan.greedy, same = raw && !a.adjusted && !greedy && scale == 1; /* then the raw ones serve both */
    load16(raw_seg(l, a.row, g), n, v);
    if (raw) {
        max_raw = max16(v);
        if (max_raw > -INFINITY)
            exps16(v, max_raw, 1, e_raw);
    }
    if (a.sample) {
        if (a.adjusted)
            adjust(l, a, g, n, v, z);
        else if (more)
            store16(v, SEG, z);
        max_adj = same ? max_raw : max16(v);
        if (same)
            e_adj = e_raw;
        else if (!greedy && max_adj > -INFINITY)
            exps16(v, max_adj, scale, e_adj);
    }
    __syncwarp();
    bool second = lane & 8;
    double sum = chains(second ? e_adj : e_raw, second ? !greedy && max_adj > -INFINITY : max_raw > -INFINITY);
    if (lane == 0 && raw) {
        l.s.raw[(size_t)a.row * l.s.n_segs + g].sum = sum;
        l.s.raw[(size_t)a.row * l.s.n_segs + g].max = max_raw;
    }
    if (lane == 8 && a.sample) {
        l.s.adj[(size_t)a.row * l.s.n_segs + g].sum = sum;
        l.s.adj[(size_t)a.row * l.s.n_segs + g].max = max_adj;
    }
    if (more && a.sample) { /* four chains, by lanes 0 to 3 */
        double m = 0;
        for (uint32_t j = 0; max_adj > -INFINITY && j < n; j++) {
            double zj = (double)z[j];
            if (z[j] > -INFINITY)
                m += lane % 4 == 0 ? sampling_dot(e_adj[j], z[j], max_adj, scale) : lane % 4 == 1 ? 1.0 : lane % 4 == 2 ? zj : zj * zj;
        }
        if (lane < 4)
            ((double *)(l.s.more + (size_t)a.row * l.s.n_segs + g))[lane] = m;
    }
    __syncwarp();
}

/* Per segment: maximum and sum of exponentials, after sampling.h.
 * Grid: (segments / SEG_WARPS, rows); a warp a segment, 16 logits a lane in registers, exponentials in shared memory for the chains.
 * Bytes a row: 4 vocab read, with adjustments 4 vocab written (8 more vocab of counts with penalties); operations: 25 an exponential. Bound by memory for many
 * rows, by the chains' latency (64 double additions) for few; expected 50% of copy bandwidth from 16 rows on. Oracle: worker/sampler.c. */
__global__ void __launch_bounds__(SEG_WARPS * 32, 8) seg_kernel(const struct launch l)
{
    uint32_t g = blockIdx.x * SEG_WARPS + threadIdx.x / 32, row = blockIdx.y;
    if (blockIdx.x == 0 && row == 0 && threadIdx.x == 0)
        l.s.slow[0] = 0;
    if (l.c.rows[row].slot == SAMPLING_NONE || g >= l.s.n_segs)
        return; /* warps do not meet */
    struct ask a = ask_of(l, row);
    segment(l, a, g, a.raw, a.plan.more || a.plan.dynamic, (float *)smem_base() + threadIdx.x / 32 * WARP_FLOATS);
}

/* ---- a row by a block. The functions below have a barrier between what one thread writes to struct shared and another reads; at their ends only where the
 * text says so: what a caller does next (row_kernel) has one before it writes where this one reads. */

struct listed { /* a candidate, after its key was read */
    float z;
    uint32_t id;
};
struct shared {
    unsigned long long keys[LIST]; /* best first once sorted; then struct listed. Before: doubles of segments, or the warps' segments (with p) */
    float p[LIST];
    unsigned long long best;
    double sums[4];
    float part[ROW_WARPS], mu;
    uint32_t count, found, last, pick, decided;
};

/* Floats as numbers that compare alike; -0 is 0. */
__device__ __forceinline__ uint32_t order(float z)
{
    uint32_t b = (uint32_t)fm_bits(z + 0.0f);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}
__device__ __forceinline__ float value(uint32_t o)
{
    return fm_from_bits((int32_t)(o & 0x80000000u ? o & 0x7fffffffu : ~o));
}
/* The higher logit, then the lower id. */
__device__ __forceinline__ unsigned long long key_of(float z, uint32_t id)
{
    return (unsigned long long)order(z) << 32 | ~id;
}

/* The largest of the segments' maxima; NaN when one is. */
__device__ float max_of(const struct sampling_seg *st, uint32_t n, struct shared *sh)
{
    float m = -INFINITY;
    bool odd = false;
    for (uint32_t g = threadIdx.x; g < n; g += ROW_THREADS) {
        odd |= st[g].max != st[g].max;
        m = st[g].max > m ? st[g].max : m;
    }
    m = warp_max(m);
    if (threadIdx.x % 32 == 0)
        sh->part[threadIdx.x / 32] = m;
    odd = __syncthreads_or(odd);
    m = warp_max(threadIdx.x % 32 < ROW_WARPS ? sh->part[threadIdx.x % 32] : -INFINITY);
    return odd ? NAN : m;
}

/* One chain, by the thread that calls it; prefix[i] = v[0] + ... + v[i]. */
__device__ double chain(const double *v, uint32_t n, double *prefix)
{
    double sum = 0;
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        double t[8];
#pragma unroll
        for (uint32_t u = 0; u < 8; u++)
            t[u] = v[i + u];
#pragma unroll
        for (uint32_t u = 0; u < 8; u++) {
            sum += t[u];
            if (prefix)
                prefix[i + u] = sum;
        }
    }
    for (; i < n; i++) {
        sum += v[i];
        if (prefix)
            prefix[i] = sum;
    }
    return sum;
}
/* The first that has mass and whose prefix passes the target, else the last that has mass (rounding may leave the sum short). */
__device__ uint32_t first_above(const double *mass, const double *prefix, uint32_t n, double target, struct shared *sh)
{
    if (threadIdx.x == 0) {
        sh->found = n;
        sh->last = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS)
        if (mass[i] != 0) {
            atomicMax(&sh->last, i);
            if (prefix[i] > target)
                atomicMin(&sh->found, i);
        }
    __syncthreads();
    return sh->found < n ? sh->found : sh->last;
}

/* Ends with a barrier. All segments of the row once more, at another temperature or without bans. */
__device__ void redo(const struct launch &l, const struct ask &a, bool more, struct shared *sh)
{
    uint32_t warp = threadIdx.x / 32;
    for (uint32_t g = warp; g < l.s.n_segs; g += ROW_WARPS)
        segment(l, a, g, false, more, (float *)sh->keys + warp * WARP_FLOATS);
    __syncthreads();
}

/* Sum over the segments; mass and prefix stay in shared memory. */
__device__ double merge_sum(const struct launch &l, const struct sampling_seg *st, float max, float scale, double *mass, double *prefix, struct shared *sh)
{
    for (uint32_t g = threadIdx.x; g < l.s.n_segs; g += ROW_THREADS)
        mass[g] = sampling_seg_mass(&st[g], max, scale);
    __syncthreads();
    if (threadIdx.x == 0)
        sh->sums[0] = chain(mass, l.s.n_segs, prefix);
    __syncthreads();
    return sh->sums[0];
}
__device__ struct sampling_more merge_more(const struct launch &l, const struct ask &a, const struct sampling_seg *st, double *at, struct shared *sh)
{
    uint32_t n = l.s.n_segs;
    for (uint32_t g = threadIdx.x; g < n; g += ROW_THREADS) {
        struct sampling_more m = l.s.more[(size_t)a.row * n + g];
        at[g] = sampling_seg_dot(&st[g], &m, a.plan.dist.max, a.plan.dist.scale);
        at[n + g] = m.n;
        at[2 * n + g] = m.z;
        at[3 * n + g] = m.zz;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0 && threadIdx.x < 128)
        sh->sums[threadIdx.x / 32] = chain(at + threadIdx.x / 32 * n, n, nullptr);
    __syncthreads();
    struct sampling_more all = {sh->sums[0], sh->sums[1], sh->sums[2], sh->sums[3]};
    return all;
}

/* The statistics that the token hangs on. False: a logit is not finite, or nothing can be sampled. The masses of the segments are left in shared memory. */
__device__ bool settle(const struct launch &l, struct ask &a, const struct sampling_seg *st, struct shared *sh)
{
    struct sampling_dist *d = &a.plan.dist;
    for (bool dynamic = a.plan.dynamic;;) {
        d->max = max_of(st, l.s.n_segs, sh);
        if (d->max != d->max)
            return false;
        if (!(d->max > -INFINITY)) { /* what a client banned leaves nothing: not an error of the replica's */
            if (a.lifted || !a.adjusted)
                return false;
            a.lifted = true;
            redo(l, a, a.plan.more || dynamic, sh);
            continue;
        }
        if (a.plan.greedy)
            return true;
        double *mass = (double *)sh->keys;
        d->sum = merge_sum(l, st, d->max, d->scale, mass, mass + l.s.n_segs, sh);
        if (a.plan.more || dynamic) {
            struct sampling_more all = merge_more(l, a, st, mass + 2 * l.s.n_segs, sh);
            sampling_settle(&a.slot->params, &all, dynamic, d);
        }
        if (!dynamic)
            return true;
        dynamic = false;
        redo(l, a, a.plan.more, sh);
    }
}

__device__ uint32_t best_id(const struct launch &l, const struct ask &a, const struct sampling_seg *st, struct shared *sh)
{
    unsigned long long best = 0;
    for (uint32_t g = threadIdx.x; g < l.s.n_segs; g += ROW_THREADS) {
        unsigned long long key = key_of(st[g].max, g);
        best = key > best ? key : best;
    }
    for (uint32_t d = 16; d > 0; d /= 2) {
        unsigned long long o = __shfl_xor_sync(FULL, best, d);
        best = o > best ? o : best;
    }
    if (threadIdx.x == 0) {
        sh->best = 0;
        sh->found = SEG;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        atomicMax(&sh->best, best);
    __syncthreads();
    uint32_t g = ~(uint32_t)sh->best;
    if (threadIdx.x < seg_len(l, g) && z_seg(l, a.row, a.adjusted, g)[threadIdx.x] == st[g].max)
        atomicMin(&sh->found, threadIdx.x);
    __syncthreads();
    return g * SEG + sh->found;
}

/* No filter: the uniform picks the segment, then the token in it. */
__device__ uint32_t drawn_id(const struct launch &l, const struct ask &a, const struct sampling_seg *st, struct shared *sh)
{
    const struct sampling_dist *d = &a.plan.dist;
    double *mass = (double *)sh->keys, *prefix = mass + l.s.n_segs, target = d->u * d->sum;
    uint32_t g = first_above(mass, prefix, l.s.n_segs, target, sh);
    double left = (target - (g ? prefix[g - 1] : 0)) / (double)fm_exp((st[g].max - d->max) * d->scale);
    mass = prefix + l.s.n_segs;
    prefix = mass + SEG;
    mass[threadIdx.x] =
        threadIdx.x < seg_len(l, g) ? (double)fm_exp((z_seg(l, a.row, a.adjusted, g)[threadIdx.x] - st[g].max) * d->scale) : 0;
    __syncthreads();
    if (threadIdx.x == 0)
        chain(mass, SEG, prefix);
    return g * SEG + first_above(mass, prefix, SEG, left, sh);
}

/* ---- the best of a row */

/* A stage of the bitonic network over a[n], descending, the whole being part `base` of a longer array. */
__device__ __forceinline__ void sort_stage(unsigned long long *a, uint32_t n, uint32_t base, uint32_t k, uint32_t j)
{
    for (uint32_t t = threadIdx.x; t < n / 2; t += ROW_THREADS) {
        uint32_t i = 2 * t - (t & (j - 1));
        unsigned long long x = a[i], y = a[i + j];
        if ((x < y) == (((base + i) & k) == 0)) {
            a[i] = y;
            a[i + j] = x;
        }
    }
    __syncthreads();
}
__device__ void sort_list(unsigned long long *keys, uint32_t n)
{
    uint32_t size = 2;
    while (size < n)
        size *= 2;
    for (uint32_t i = n + threadIdx.x; i < size; i += ROW_THREADS)
        keys[i] = 0; /* after all others */
    __syncthreads();
    for (uint32_t k = 2; k <= size; k *= 2)
        for (uint32_t j = k / 2; j > 0; j /= 2)
            sort_stage(keys, size, 0, k, j);
}

/* Keys of all logits of at least lo, unsorted; gives how many there are, of which the first LIST are kept. */
__device__ uint32_t collect(const struct launch &l, uint32_t row, bool adjusted, const struct sampling_seg *st, float lo, struct shared *sh)
{
    __syncthreads();
    if (threadIdx.x == 0)
        sh->count = 0;
    __syncthreads();
    for (uint32_t g = threadIdx.x / 32; g < l.s.n_segs; g += ROW_WARPS) {
        if (st[g].max < lo)
            continue;
        float v[16];
        uint32_t hits = 0;
        load16(z_seg(l, row, adjusted, g), seg_len(l, g), v); /* -inf beyond the end, with the highest ids: the last of all */
#pragma unroll
        for (uint32_t i = 0; i < 16; i++)
            hits |= (v[i] >= lo ? 1u : 0u) << i;
        uint32_t to = hits ? atomicAdd(&sh->count, (uint32_t)__popc(hits)) : 0;
#pragma unroll
        for (uint32_t i = 0; i < 16; i++)
            if (hits >> i & 1) {
                if (to < LIST)
                    sh->keys[to] = key_of(v[i], g * SEG + 4 * (threadIdx.x % 32 + 32 * (i / 4)) + i % 4);
                to++;
            }
    }
    __syncthreads();
    return sh->count;
}

/* The nth largest of the segments' maxima: at least nth logits are as large. */
__device__ float nth_max(const struct sampling_seg *st, uint32_t n, uint32_t nth, struct shared *sh)
{
    uint32_t *o = (uint32_t *)sh->p;
    for (uint32_t g = threadIdx.x; g < n; g += ROW_THREADS)
        o[g] = order(st[g].max);
    __syncthreads();
    for (uint32_t g = threadIdx.x; g < n; g += ROW_THREADS) {
        uint32_t rank = 0, own = o[g];
        for (uint32_t h = 0; h < n; h++)
            rank += o[h] > own || (o[h] == own && h < g) ? 1 : 0;
        if (rank == nth - 1)
            sh->found = g;
    }
    __syncthreads();
    return st[sh->found].max;
}

/* The best of the row, sorted, in sh->keys: all logits from some value on, which is at most the cap-th best, or `bound` (nobody asks for what is below). TOO_MANY when more
 * than LIST would have to be listed. max: the largest. */
__device__ uint32_t best_of(const struct launch &l, uint32_t row, bool adjusted, const struct sampling_seg *st, float max, uint32_t cap, float bound,
                            struct shared *sh)
{
    float lo = bound, hi = max, wide = 16;
    uint32_t limit = MIN(MAX(4 * cap, 1024u), LIST);
    if (cap <= l.s.n_segs) {
        float t = nth_max(st, l.s.n_segs, cap, sh);
        lo = t > lo ? t : lo;
    }
    uint32_t n = collect(l, row, adjusted, st, lo, sh), n_lo = n;
    while (cap <= limit && (n > limit || n < cap) && n_lo > limit) {
        float mid = lo > -INFINITY ? 0.5f * lo + 0.5f * hi : hi - wide;
        if (!(mid > lo && mid < hi))
            break;
        n = collect(l, row, adjusted, st, mid, sh);
        if (n > limit) {
            lo = mid;
            n_lo = n;
        } else if (n < cap) {
            hi = mid;
        }
        wide *= 4;
    }
    if (n_lo > limit && (n > limit || n < cap)) { /* many of one value; or more than cap are wanted */
        if (n_lo > LIST)
            return TOO_MANY;
        n = collect(l, row, adjusted, st, lo, sh);
    }
    sort_list(sh->keys, n);
    return n;
}

/* Ends with a barrier. Keys become z and id; masses. */
__device__ void list_out(const unsigned long long *keys, uint32_t n, const struct sampling_dist *d, struct listed *to, float *p)
{
    for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS) {
        unsigned long long key = keys[i];
        struct listed c = {value((uint32_t)(key >> 32)), ~(uint32_t)key};
        to[i] = c;
        p[i] = fm_exp((c.z - d->max) * d->scale);
    }
    __syncthreads();
}

/* From the best candidates, which grow in number as on a CPU: the same list gives the same bits. 0: not from as many as fit; *cands: how many are wanted. */
__device__ bool pick(const struct launch &l, const struct ask &a, const struct sampling_seg *st, uint32_t *cands, uint32_t *token, struct shared *sh)
{
    const struct sampling_dist *d = &a.plan.dist;
    struct listed *list = (struct listed *)sh->keys;
    /* Below it nothing has a mass: exponentials end at -87.33; the rest is for the rounding of this value. */
    float bound = d->max - 128 / d->scale - fabsf(d->max) * 0x1p-22f;
    for (;; *cands = sampling_cands_more(*cands, l.s.cfg.vocab)) {
        uint32_t n = best_of(l, a.row, a.adjusted, st, d->max, *cands, bound, sh);
        if (n == TOO_MANY)
            return false;
        list_out(sh->keys, n, d, list, sh->p);
        if (threadIdx.x == 0) {
            struct sampling_list c = {&list[0].z, sizeof(*list) / sizeof(float), sh->p, *cands, MIN(n, *cands)};
            float mu = a.slot->mu;
            sh->decided = sampling_pick(d, &a.slot->params, &c, &sh->pick, &mu);
            sh->mu = mu;
        }
        __syncthreads();
        *token = sh->decided ? list[sh->pick].id : SAMPLING_NONE;
        if (sh->decided)
            return true;
    }
}

__device__ void write_top(const struct launch &l, uint32_t row, const unsigned long long *keys, uint32_t n, float raw_max, double raw_sum)
{
    for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS) {
        uint32_t id = ~(uint32_t)keys[i];
        l.c.top_id[(size_t)row * l.c.top_cap + i] = id;
        l.c.top_lp[(size_t)row * l.c.top_cap + i] = sampling_logprob(raw_at(l, row, id), raw_max, raw_sum);
    }
}

/* One thread: the result, and the slot's state. */
__device__ void finish(const struct launch &l, const struct ask &a, uint32_t token, float mu, bool bad, float raw_max, double raw_sum)
{
    const struct cuda_sample_row *r = l.c.rows + a.row;
    struct cuda_sample_result o = {bad ? SAMPLING_NONE : token, NAN, mu, MIN(r->n_top, l.s.cfg.vocab), bad ? (uint32_t)CUDA_SAMPLE_CORRUPT : 0};
    if (!bad && r->target != SAMPLING_NONE)
        o.lp = sampling_logprob(raw_at(l, a.row, r->target), raw_max, raw_sum);
    if (!bad && a.sample && r->logprob)
        o.lp = sampling_logprob(raw_at(l, a.row, token), raw_max, raw_sum);
    l.c.out[a.row] = o;
    if (a.sample) {
        l.s.slot[a.slot - l.s.slot].token = o.token;
        l.s.slot[a.slot - l.s.slot].mu = mu;
    }
}

/* Token and log-probabilities of a row.
 * Grid: rows; a block of 512, 96 KiB of shared memory. Greedy and unfiltered draws read the segments' statistics and one segment; with filters the
 * segments that can hold a candidate (about as many as candidates, 2 KiB each) are read, what passes is sorted in shared memory, and one thread runs the filters.
 * Bound by latency: chains of double additions over segments (250 for a vocabulary of 128000) and candidates; expected 10 us unfiltered, 25 us with top_p, for
 * up to as many rows as there are SMs. Oracle: worker/sampler.c. */
__global__ void __launch_bounds__(ROW_THREADS, 1) row_kernel(const struct launch l)
{
    struct shared *sh = (struct shared *)smem_base();
    uint32_t row = blockIdx.x;
    if (l.c.rows[row].slot == SAMPLING_NONE) {
        if (threadIdx.x == 0)
            l.c.out[row] = {SAMPLING_NONE, NAN, 0, 0, 0};
        return;
    }
    struct ask a = ask_of(l, row);
    const struct sampling_seg *raw = l.s.raw + (size_t)row * l.s.n_segs, *adj = l.s.adj + (size_t)row * l.s.n_segs;
    uint32_t token = SAMPLING_NONE, n_top = MIN(l.c.rows[row].n_top, l.s.cfg.vocab), cands = 0, top_left = 0;
    float mu = a.slot->mu, raw_max = 0;
    double raw_sum = 0;
    bool bad = false;
    if (a.raw) {
        raw_max = max_of(raw, l.s.n_segs, sh);
        bad = !(raw_max > -INFINITY);
        if (!bad)
            raw_sum = merge_sum(l, raw, raw_max, 1, (double *)sh->keys, nullptr, sh);
    }
    if (!bad && n_top) {
        uint32_t n = best_of(l, row, false, raw, raw_max, n_top, -INFINITY, sh);
        if (n == TOO_MANY)
            top_left = n_top;
        else
            write_top(l, row, sh->keys, n_top, raw_max, raw_sum);
    }
    if (!bad && a.sample) {
        bad = !settle(l, a, adj, sh);
        if (!bad && a.plan.greedy) {
            token = best_id(l, a, adj, sh);
        } else if (!bad && !a.plan.filtered) {
            token = drawn_id(l, a, adj, sh);
        } else if (!bad) {
            cands = a.plan.cands;
            if (pick(l, a, adj, &cands, &token, sh)) {
                cands = 0;
                mu = sh->mu;
            }
        }
    }
    if (threadIdx.x != 0)
        return;
    if (bad || (!cands && !top_left)) {
        finish(l, a, token, mu, bad, raw_max, raw_sum);
        return;
    }
    l.s.slow[1 + atomicAdd(&l.s.slow[0], 1u)] = row;
    l.s.state[row] = {a.plan.dist, raw_sum, raw_max, mu, token, cands, top_left};
}

/* ---- rows whose candidates do not fit */

/* All keys of a row, best first, in keys[size], size a power of two >= LIST: parts of LIST in shared memory, longer distances in place. Of keys[] a thread
 * touches only what is its own modulo ROW_THREADS, so barriers stand only between the stages of a part. */
__device__ void sort_all(const struct launch &l, uint32_t row, bool adjusted, unsigned long long *keys, uint32_t size, struct shared *sh)
{
    for (uint32_t i = threadIdx.x; i < size; i += ROW_THREADS)
        keys[i] = i < l.s.cfg.vocab ? key_of(z_seg(l, row, adjusted, i / SEG)[i % SEG], i) : 0;
    for (uint32_t k = LIST; k <= size; k *= 2) {
        for (uint32_t j = k / 2; j >= LIST; j /= 2)
            sort_stage(keys, size, 0, k, j);
        for (uint32_t base = 0; base < size; base += LIST) {
            for (uint32_t i = threadIdx.x; i < LIST; i += ROW_THREADS)
                sh->keys[i] = keys[base + i];
            __syncthreads();
            for (uint32_t part = k == LIST ? 2 : k; part <= k; part *= 2)
                for (uint32_t j = MIN(part, LIST) / 2; j > 0; j /= 2)
                    sort_stage(sh->keys, LIST, base, part, j);
            for (uint32_t i = threadIdx.x; i < LIST; i += ROW_THREADS)
                keys[base + i] = sh->keys[i];
        }
    }
}

/* What row_kernel left: the whole vocabulary sorted, and the filters on it.
 * Grid: SLOW_BLOCKS, each takes every SLOW_BLOCKS-th such row; ends at once when there is none. Bytes a row: about 30 times 8 vocab through L2; then up to 4 chains
 * over the candidates by one thread. Expected 1 to 15 ms for 128000 ids: flat distributions without top_k only. Oracle: worker/sampler.c. */
__global__ void __launch_bounds__(ROW_THREADS, 1) slow_kernel(const struct launch l)
{
    struct shared *sh = (struct shared *)smem_base();
    uint32_t size = LIST, n_slow = l.s.slow[0], vocab = l.s.cfg.vocab;
    while (size < vocab)
        size *= 2;
    unsigned long long *keys = (unsigned long long *)l.s.sort_keys + blockIdx.x * l.s.sort_stride;
    struct listed *list = (struct listed *)keys;
    float *p = l.s.sort_p + (size_t)blockIdx.x * vocab;
    for (uint32_t i = blockIdx.x; i < n_slow; i += SLOW_BLOCKS) {
        uint32_t row = l.s.slow[1 + i];
        struct ask a = ask_of(l, row);
        const struct cuda_sample_row_state st = l.s.state[row];
        if (st.n_top) {
            sort_all(l, row, false, keys, size, sh);
            write_top(l, row, keys, st.n_top, st.raw_max, st.raw_sum);
        }
        if (st.cands) {
            sort_all(l, row, a.adjusted, keys, size, sh);
            list_out(keys, vocab, &st.dist, list, p);
        }
        if (threadIdx.x == 0) {
            uint32_t token = st.token, pick = 0;
            float mu = st.mu;
            for (uint32_t n = st.cands; n; n = sampling_cands_more(n, vocab)) {
                struct sampling_list c = {&list[0].z, sizeof(*list) / sizeof(float), p, n, n};
                if (sampling_pick(&st.dist, &a.slot->params, &c, &pick, &mu)) {
                    token = list[pick].id;
                    break;
                }
            }
            finish(l, a, token, mu, false, st.raw_max, st.raw_sum);
        }
        __syncthreads();
    }
}

/* ---- inputs */

/* Whether another thread has put it in place by now or not. */
__device__ __forceinline__ uint32_t input(const struct cuda_sample &s, const uint32_t *tokens, const uint32_t *slot, uint32_t i)
{
    uint32_t token = ptx_ld_relaxed_gpu(tokens + i);
    return token == SAMPLING_NONE ? s.slot[slot[i]].token : token;
}
/* A thread a token; counts change by atomics, so the order within a step does not matter. What leaves a window is in the history of earlier steps, or among the run's own
 * tokens. Bytes: 20 a token. Runs once a step. Expected: the launch alone. Oracle: worker/slots.c (learn). */
__global__ void __launch_bounds__(256) inputs_kernel(const struct cuda_sample s, uint32_t *tokens, const uint32_t *slot, const uint32_t *pos, uint32_t n)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n || slot[i] == SAMPLING_NONE)
        return;
    const struct cuda_sample_slot *sl = s.slot + slot[i];
    uint32_t token = input(s, tokens, slot, i), last_n = sl->penalty_last_n;
    ptx_st_relaxed_gpu(tokens + i, token);
    if (!sampling_has_penalties(&sl->params) || token >= s.cfg.vocab)
        return;
    struct cuda_sample_count *c = s.counts + (size_t)slot[i] * s.cfg.vocab;
    atomicAdd(&c[token].all, 1u);
    if (pos[i] >= sl->params.prompt_len)
        atomicAdd(&c[token].output, 1u);
    if (!last_n)
        return;
    uint32_t *history = s.history + (size_t)slot[i] * s.cfg.ctx;
    history[pos[i]] = token;
    if (pos[i] < last_n)
        return;
    bool own = i >= last_n && slot[i - last_n] == slot[i] && pos[i - last_n] == pos[i] - last_n;
    uint32_t old = own ? input(s, tokens, slot, i - last_n) : history[pos[i] - last_n];
    if (old >= s.cfg.vocab)
        return;
    atomicSub(&c[old].all, 1u);
    if (pos[i] - last_n >= sl->params.prompt_len)
        atomicSub(&c[old].output, 1u);
}

/* Parts of the memory, in the order of struct cuda_sample; base NULL: only their size. */
size_t carve(const struct cuda_sample_config *cfg, unsigned char *base, struct cuda_sample *s)
{
    size_t at = 0, rows = cfg->rows_cap, segs = (cfg->vocab + SEG - 1) / SEG, words = (cfg->vocab + 31) / 32, sort = LIST;
    while (sort < cfg->vocab)
        sort *= 2;
    auto part = [&](size_t n, size_t bytes) {
        unsigned char *p = base ? base + at : nullptr;
        at = ROUND_UP(at + n * bytes, (size_t)CUDA_ALIGN);
        return p;
    };
    s->cfg = *cfg;
    s->n_segs = (uint32_t)segs;
    s->adj_stride = ROUND_UP((size_t)cfg->vocab, (size_t)4);
    s->sort_stride = sort;
    s->slot = (struct cuda_sample_slot *)part(cfg->slots, sizeof(*s->slot));
    s->counts = (struct cuda_sample_count *)part((size_t)cfg->slots * cfg->vocab, sizeof(*s->counts));
    s->allowed = (uint32_t *)part(cfg->slots * words, sizeof(*s->allowed));
    s->history = (uint32_t *)part((size_t)cfg->slots * cfg->ctx, sizeof(*s->history));
    s->raw = (struct sampling_seg *)part(rows * segs, sizeof(*s->raw));
    s->adj = (struct sampling_seg *)part(rows * segs, sizeof(*s->adj));
    s->more = (struct sampling_more *)part(rows * segs, sizeof(*s->more));
    s->adj_logits = (float *)part(rows * s->adj_stride, sizeof(float));
    s->state = (struct cuda_sample_row_state *)part(rows, sizeof(*s->state));
    s->slow = (uint32_t *)part(rows + 1, sizeof(*s->slow));
    s->sort_keys = (uint64_t *)part(SLOW_BLOCKS * sort, sizeof(*s->sort_keys));
    s->sort_p = (float *)part((size_t)SLOW_BLOCKS * cfg->vocab, sizeof(float));
    return at;
}

} // namespace

size_t cuda_sample_bytes(const struct cuda_sample_config *cfg)
{
    struct cuda_sample s;
    return carve(cfg, nullptr, &s);
}

void cuda_sample_init(const struct cuda_sample_config *cfg, void *memory, struct cuda_sample *s)
{
    ASSERT(cfg->tp > 0 && cfg->tp <= SHARD_TP_MAX && cfg->vocab > 0 && cfg->vocab <= SEGS_MAX * SEG);
    for (uint32_t r = 0, at = 0; r < cfg->tp; at += cfg->ids[r++].n)
        ASSERT(cfg->ids[r].n == 0 || (cfg->ids[r].first == at && at % SEG == 0));
    carve(cfg, (unsigned char *)memory, s);
}

cudaError_t cuda_sample_setup(const struct cuda_sample *s, uint32_t slot, const struct cuda_sample_slot *setup, const uint32_t *allowed, cudaStream_t stream)
{
    size_t words = (s->cfg.vocab + 31) / 32;
    ASSERT(slot < s->cfg.slots && setup->n_stop <= CUDA_SAMPLE_STOP_MAX && setup->n_bias <= CUDA_SAMPLE_BIAS_MAX && !setup->has_allowed == !allowed &&
           (!setup->penalty_last_n || s->cfg.ctx));
    CUDA_TRY(cudaMemcpyAsync(s->slot + slot, setup, sizeof(*setup), cudaMemcpyHostToDevice, stream));
    if (allowed)
        CUDA_TRY(cudaMemcpyAsync(s->allowed + slot * words, allowed, words * sizeof(*allowed), cudaMemcpyHostToDevice, stream));
    if (sampling_has_penalties(&setup->params))
        CUDA_TRY(cudaMemsetAsync(s->counts + (size_t)slot * s->cfg.vocab, 0, s->cfg.vocab * sizeof(*s->counts), stream));
    return cudaSuccess;
}

cudaError_t cuda_sample_inputs(const struct cuda_sample *s, uint32_t *tokens, const uint32_t *slot, const uint32_t *pos, uint32_t n, cudaStream_t stream)
{
    return n == 0 ? cudaSuccess : LAUNCH(inputs_kernel, dim3((n + 255) / 256), dim3(256), 0, stream, *s, tokens, slot, pos, n);
}

cudaError_t cuda_sample_run(const struct cuda_sample *s, const struct cuda_sample_call *call, cudaStream_t stream)
{
    ASSERT(call->n <= s->cfg.rows_cap && call->row_stride % 4 == 0 && call->rank_stride % 4 == 0 && (uintptr_t)call->logits % 16 == 0);
    if (call->n == 0)
        return cudaSuccess;
    struct launch l = {*s, *call};
    CUDA_TRY(LAUNCH(seg_kernel, dim3((s->n_segs + SEG_WARPS - 1) / SEG_WARPS, call->n), dim3(SEG_WARPS * 32), SEG_WARPS * WARP_FLOATS * sizeof(float), stream, l));
    CUDA_TRY(LAUNCH(row_kernel, dim3(call->n), dim3(ROW_THREADS), sizeof(struct shared), stream, l));
    return LAUNCH(slow_kernel, dim3(SLOW_BLOCKS), dim3(ROW_THREADS), sizeof(struct shared), stream, l);
}
