/* all_reduce.h. A block owns a chunk of 512 values of a token, a thread 4 of them. */
#include "kernels/cuda/act.cuh"

#include "base/check.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/ptx.cuh"

namespace
{

constexpr uint32_t THREADS = 128, CHUNK = THREADS * 4, CHUNKS_MAX = 32 /* of a token with a norm: a warp reads them */, WORD = 16 /* bytes: two values, numbered */;
constexpr uint32_t POLLS = 64; /* between two looks at the abort word and the clock */
enum { STEP, ENDED, STATUS };  /* of state[] */

/* Mailbox: [half][from][plane][group] words, then [half][block] words of this rank's own blocks. A group is 4 values; its first two are in plane 0. */
struct layout {
    uint32_t n, groups_max;
};
__host__ __device__ inline size_t word_at(layout l, uint32_t half, uint32_t from, uint32_t plane, uint32_t group)
{
    return (((size_t)half * l.n + from) * 2 + plane) * l.groups_max + group;
}
__host__ __device__ inline size_t partial_at(layout l, uint32_t half, uint32_t block)
{
    return word_at(l, 2, 0, 0, 0) + (size_t)half * CUDA_PEERS_BLOCKS_MAX + block;
}
__host__ __device__ inline layout layout_of(uint32_t n, uint32_t floats_max)
{
    return {n, (floats_max + 3) / 4};
}

struct word {
    uint64_t lo, hi;
};
__device__ __forceinline__ uint64_t numbered(float v, uint32_t step)
{
    return (uint64_t)step << 32 | (uint32_t)fm_bits(v);
}
__device__ __forceinline__ float value_of(uint64_t half)
{
    return fm_from_bits((int32_t)(uint32_t)half);
}
__device__ __forceinline__ bool has_come(word w, uint32_t step)
{
    return (uint32_t)(w.lo >> 32) == step && (uint32_t)(w.hi >> 32) == step;
}
__device__ __forceinline__ void send(void *mail, size_t at, float a, float b, uint32_t step)
{
    ptx_st_relaxed_sys_v2((unsigned char *)mail + at * WORD, numbered(a, step), numbered(b, step));
}
__device__ __forceinline__ word receive(const void *mail, size_t at)
{
    word w;
    ptx_ld_relaxed_sys_v2((const unsigned char *)mail + at * WORD, w.lo, w.hi);
    return w;
}

/* After a poll in vain: whether to give up. */
struct patience {
    uint32_t polls;
    uint64_t begun;
};
__device__ __forceinline__ bool gives_up(const cuda_peers &p, patience *q)
{
    if (++q->polls % POLLS != 0)
        return false;
    uint64_t now = ptx_globaltimer();
    if (q->begun == 0)
        q->begun = now;
    uint32_t why = ptx_ld_relaxed_sys(p.abort) != 0 ? CUDA_PEERS_ABORTED : now - q->begun > p.spin_ns ? CUDA_PEERS_TIMEOUT : CUDA_PEERS_OK;
    if (why != CUDA_PEERS_OK && atomicCAS(&p.state[STATUS], (uint32_t)CUDA_PEERS_OK, why) == CUDA_PEERS_OK && p.status)
        ptx_st_relaxed_sys(p.status, why);
    return ptx_ld_relaxed_sys(&p.state[STATUS]) != CUDA_PEERS_OK;
}

/* Over the block, in a fixed order; every thread gets both. part: [2][4] floats. */
__device__ __forceinline__ void block_sum_max(float *sum, float *top, float *part)
{
    for (uint32_t d = 16; d > 0; d /= 2) {
        *sum += __shfl_xor_sync(0xffffffffu, *sum, d);
        *top = fmaxf(*top, __shfl_xor_sync(0xffffffffu, *top, d));
    }
    uint32_t warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
        part[warp] = *sum;
        part[4 + warp] = *top;
    }
    __syncthreads();
    *sum = (part[0] + part[1]) + (part[2] + part[3]);
    *top = fmaxf(fmaxf(part[4], part[5]), fmaxf(part[6], part[7]));
}

/* Adds up the peers' values of a group in the order of ranks; false: gave up. */
__device__ __forceinline__ bool gather(const cuda_peers &p, layout l, uint32_t step, uint32_t group, float4 own, float4 *sum)
{
    word w[CUDA_PEERS_MAX][2];
    patience q = {0, 0};
    const void *mail = p.mail[p.rank];
#pragma unroll
    for (uint32_t k = 0; k < 2 * CUDA_PEERS_MAX; k++) /* all on their way before the first is looked at */
        if (k / 2 < p.n && k / 2 != p.rank)
            w[k / 2][k % 2] = receive(mail, word_at(l, step & 1, k / 2, k % 2, group));
#pragma unroll
    for (uint32_t k = 0; k < 2 * CUDA_PEERS_MAX; k++) {
        if (k / 2 >= p.n || k / 2 == p.rank)
            continue;
        while (!has_come(w[k / 2][k % 2], step)) {
            if (gives_up(p, &q))
                return false;
            w[k / 2][k % 2] = receive(mail, word_at(l, step & 1, k / 2, k % 2, group));
        }
    }
    float4 s = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (uint32_t r = 0; r < CUDA_PEERS_MAX; r++) {
        if (r >= p.n)
            continue;
        float4 v = own;
        if (r != p.rank)
            v = make_float4(value_of(w[r][0].lo), value_of(w[r][0].hi), value_of(w[r][1].lo), value_of(w[r][1].hi));
        s = r == 0 ? v : make_float4(s.x + v.x, s.y + v.y, s.z + v.z, s.w + v.w);
    }
    *sum = s;
    return true;
}

/* What the blocks of a token have, brought together through this rank's own mailbox; in a fixed order. */
__device__ __forceinline__ bool across_blocks(const cuda_peers &p, layout l, uint32_t step, float *sum, float *top, float *shared)
{
    uint32_t first = blockIdx.y * gridDim.x;
    if (threadIdx.x == 0)
        send(p.mail[p.rank], partial_at(l, step & 1, first + blockIdx.x), *sum, *top, step);
    bool ok = true;
    float s = 0.0f, t = 0.0f;
    if (threadIdx.x < gridDim.x) { /* at most CHUNKS_MAX: one warp */
        patience q = {0, 0};
        word w = receive(p.mail[p.rank], partial_at(l, step & 1, first + threadIdx.x));
        while (ok && !has_come(w, step)) {
            ok = !gives_up(p, &q);
            w = receive(p.mail[p.rank], partial_at(l, step & 1, first + threadIdx.x));
        }
        s = value_of(w.lo);
        t = value_of(w.hi);
    }
    block_sum_max(&s, &t, shared);
    *sum = s;
    *top = t;
    return ok;
}

__device__ __forceinline__ void store(const cuda_act &out, size_t group, float4 v, float inverse)
{
    if (out.type == CUDA_F32)
        act_store<CUDA_F32>(out.x, group, v, inverse);
    else if (out.type == CUDA_F16)
        act_store<CUDA_F16>(out.x, group, v, inverse);
    else
        act_store<CUDA_BF16>(out.x, group, v, inverse);
}

template <uint32_t HERE> struct set {
    cuda_peers p[HERE];
    struct cuda_all_reduce c[HERE];
};

/* sum over ranks of part; x += sum; out = x * w / sqrt(mean(x^2) + eps).
 * Grid: (chunks of a token, tokens, ranks here); thread t owns values 4 t .. 4 t + 3 of its chunk. The last chunk of a token may be short, its last group, too.
 * Bytes: 8 (n - 1) a value over each rank's links and as many into its memory, about 20 beside; operations: n + 6 a value. Expected on NVLink 4: a crossing
 * and two kernel edges, about 4 us up to 64 KiB. Oracle: sums and ref_f32 rmsnorm. */
template <uint32_t HERE> __global__ void __launch_bounds__(THREADS) all_reduce_kernel(const __grid_constant__ set<HERE> all, uint32_t dim)
{
    const cuda_peers &p = all.p[HERE == 1 ? 0 : blockIdx.z];
    const struct cuda_all_reduce &c = all.c[HERE == 1 ? 0 : blockIdx.z];
    float *shared = (float *)smem_base();
    layout l = layout_of(p.n, p.floats_max);
    uint32_t col = blockIdx.x * CHUNK + threadIdx.x * 4, step = p.state[STEP];
    size_t at = (size_t)blockIdx.y * dim + col;
    uint32_t group = (uint32_t)(at / 4), n_mine = col >= dim ? 0 : dim - col < 4 ? dim - col : 4;
    bool ok = ptx_ld_relaxed_gpu(&p.state[STATUS]) == CUDA_PEERS_OK; /* another block may have given up by now */
    float4 own = make_float4(0.0f, 0.0f, 0.0f, 0.0f), sum = own, residual = own;
    if (n_mine == 4) {
        own = *(const float4 *)(c.part + at);
        if (c.x)
            residual = *(const float4 *)(c.x + at);
    } else if (n_mine > 0) { /* n_tok is 1, no norm */
        own.x = c.part[at];
        own.y = n_mine > 1 ? c.part[at + 1] : 0.0f;
        own.z = n_mine > 2 ? c.part[at + 2] : 0.0f;
    }
    if (ok && n_mine > 0) {
        for (uint32_t k = 1; k < p.n; k++) { /* each rank begins with another peer */
            uint32_t to = p.rank + k < p.n ? p.rank + k : p.rank + k - p.n;
            send(p.mail[to], word_at(l, step & 1, p.rank, 0, group), own.x, own.y, step);
            send(p.mail[to], word_at(l, step & 1, p.rank, 1, group), own.z, own.w, step);
        }
        ok = gather(p, l, step, group, own, &sum);
    }
    float4 x = c.x ? make_float4(residual.x + sum.x, residual.y + sum.y, residual.z + sum.z, residual.w + sum.w) : sum;
    float *to = c.x ? c.x : c.part;
    if (n_mine == 4) {
        *(float4 *)(to + at) = x;
    } else if (n_mine > 0) {
        to[at] = x.x;
        if (n_mine > 1)
            to[at + 1] = x.y;
        if (n_mine > 2)
            to[at + 2] = x.z;
    }
    if (c.w) {
        float4 f = n_mine == 4 ? *(const float4 *)(c.w + col) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float squares = fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, x.x * x.x)));
        float top = fmaxf(fmaxf(fabsf(x.x * f.x), fabsf(x.y * f.y)), fmaxf(fabsf(x.z * f.z), fabsf(x.w * f.w)));
        block_sum_max(&squares, &top, shared);
        if (gridDim.x > 1)
            across_blocks(p, l, step, &squares, &top, shared + 8);
        /* As cuda_add_norm has it: what is not finite becomes NaN. */
        bool finite = squares < fm_from_bits(ACT_INF);
        float r = finite ? 1.0f / sqrtf(squares / (float)dim + c.eps) : fm_from_bits(0x7fc00000), inverse = 1.0f;
        if (c.out.type == CUDA_F16) {
            float scale = act_scale(finite ? (uint32_t)fm_bits(top * r) : ACT_INF);
            inverse = act_inverse(scale);
            if (blockIdx.x == 0 && threadIdx.x == 0)
                c.out.scale[blockIdx.y] = scale;
        }
        if (n_mine == 4)
            store(c.out, group, make_float4(x.x * r * f.x, x.y * r * f.y, x.z * r * f.z, x.w * r * f.w), inverse);
    }
    /* The last block counts on; nobody reads the number any more. 0 is what fresh mailboxes hold: after the largest comes 2, since halves alternate. */
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        if (atomicAdd(&p.state[ENDED], 1u) == gridDim.x * gridDim.y - 1) {
            __threadfence();
            p.state[ENDED] = 0;
            p.state[STEP] = step + 1 == 0 ? 2 : step + 1;
        }
    }
}

/* out = parts[0] + parts[1] + ... Grid: 256 values a block. Bytes a value: 4 (ranks + 1); expected 80% of copy bandwidth. Oracle: the loop. */
__global__ void __launch_bounds__(256) sum_parts_kernel(float *out, const float *parts, uint32_t n_ranks, uint32_t n)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    float s = parts[i];
    for (uint32_t r = 1; r < n_ranks; r++)
        s += parts[(size_t)r * n + i];
    out[i] = s;
}

template <uint32_t HERE>
cudaError_t launch(const cuda_peers *peers, const struct cuda_all_reduce *calls, uint32_t here, uint32_t n_tok, uint32_t dim, cudaStream_t stream)
{
    set<HERE> s = {};
    for (uint32_t i = 0; i < here; i++) {
        s.p[i] = peers[i];
        s.c[i] = calls[i];
    }
    return LAUNCH(all_reduce_kernel<HERE>, dim3((dim + CHUNK - 1) / CHUNK, n_tok, here), dim3(THREADS), 16 * sizeof(float), stream, s, dim);
}

bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

} // namespace

size_t cuda_peers_mail_bytes(uint32_t n, uint32_t floats_max)
{
    return partial_at(layout_of(n, floats_max), 2, 0) * WORD;
}

cudaError_t cuda_peers_reset(const struct cuda_peers *p, uint32_t first_step)
{
    ASSERT(first_step > 0);
    const uint32_t state[CUDA_PEERS_STATE_BYTES / 4] = {first_step, 0, CUDA_PEERS_OK, 0};
    return cudaMemcpy(p->state, state, sizeof(state), cudaMemcpyHostToDevice);
}

cudaError_t cuda_peers_step(const struct cuda_peers *p, uint32_t *step)
{
    return cudaMemcpy(step, &p->state[STEP], sizeof(*step), cudaMemcpyDeviceToHost);
}

bool cuda_all_reduce_fits(const struct cuda_peers *p, uint32_t n_tok, uint32_t dim, bool norm)
{
    uint32_t chunks = dim / CHUNK + (dim % CHUNK != 0);
    return n_tok > 0 && dim > 0 && (uint64_t)n_tok * dim <= p->floats_max && (uint64_t)chunks * n_tok <= CUDA_PEERS_BLOCKS_MAX &&
           (dim % 8 == 0 || (n_tok == 1 && !norm)) && (!norm || chunks <= CHUNKS_MAX);
}

cudaError_t cuda_all_reduce(const struct cuda_peers *peers, const struct cuda_all_reduce *calls, uint32_t here, uint32_t n_tok, uint32_t dim,
                            cudaStream_t stream)
{
    ASSERT(here >= 1 && here <= CUDA_PEERS_MAX);
    for (uint32_t i = 0; i < here; i++) {
        const struct cuda_all_reduce *c = &calls[i];
        ASSERT(peers[i].n >= 2 && peers[i].n <= CUDA_PEERS_MAX && peers[i].rank < peers[i].n && cuda_all_reduce_fits(&peers[i], n_tok, dim, c->w != NULL));
        ASSERT(aligned(c->part) && aligned(c->x) && aligned(c->w) && (!c->x || dim % 8 == 0));
        ASSERT(!c->w || (c->out.n == n_tok && c->out.k == dim && aligned(c->out.x) && (c->out.type != CUDA_F16 || c->out.scale)));
    }
    return here == 1 ? launch<1>(peers, calls, here, n_tok, dim, stream) : launch<CUDA_PEERS_MAX>(peers, calls, here, n_tok, dim, stream);
}

cudaError_t cuda_sum_parts(float *out, const float *parts, uint32_t n_ranks, uint32_t n, cudaStream_t stream)
{
    ASSERT(n_ranks > 0);
    return n == 0 ? cudaSuccess : LAUNCH(sum_parts_kernel, dim3((n + 255) / 256), dim3(256), 0, stream, out, parts, n_ranks, n);
}
