/* The loop of matmul_small.cu and matmul_large.cu: weights dequantised in registers, once a block, times 16-bit activations, on mma.m16n8k16 with sums in fp32.
 *
 *   y[i][r] = scale[i] * sum over k of w[r][k] * x[i][k] + bias[r]         oracle: kernels_ref_f32
 *
 * A block is 8 warps: R (warps_row) over rows, 8 / R over k. A warp owns M groups of 16 rows and N tiles of 8 tokens: weights are operand A, tokens the columns of
 * B. It walks its steps (128 columns) s0 + its number, + 8/R, ...: weights come straight from memory into registers, AHEAD steps ahead, in whole 128- to 512-byte pieces,
 * and are read by no other warp; x comes in chunks of CHUNK steps for the block, by cp.async into one of two buffers while the other is used, one barrier a
 * chunk.
 *
 * x in shared memory: [token][step of the chunk][16-byte piece] with 64 bytes between tokens, the pieces of a step in the order in which lanes take
 * them (x_piece): the 8 lanes of a quarter warp, two tokens x 4 pieces, then lie in 8 different groups of 4 banks.
 *
 * Then the k parts of the block are added in order through shared memory, and those of other blocks (splits) in order by the last block of a tile to come,
 * from the workspace: any order of arrival gives the same bits.
 *
 * A token's sums depend on warps_row and splits, never on N, M or other tokens: with these two fixed, results have the same bits in any batch. */
#ifndef KERNELS_CUDA_MATMUL_TILE_CUH
#define KERNELS_CUDA_MATMUL_TILE_CUH

#include "kernels/cuda/launch.cuh"

#include "base/check.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/weights.cuh"

constexpr uint32_t MATMUL_THREADS = MATMUL_WARPS * 32, MATMUL_STEP_PIECES = LAYOUT_STEP / 8;

/* Steps in a chunk of x: two chunks of N tiles fit in 83 KB (what every GPU from sm_80 on has), and a chunk holds a step for each warp over k. */
constexpr __host__ __device__ uint32_t matmul_chunk(uint32_t n_tiles)
{
    return n_tiles >= 16 ? 1 : 16 / n_tiles;
}
constexpr __host__ __device__ uint32_t matmul_pitch(uint32_t n_tiles)
{
    return matmul_chunk(n_tiles) * LAYOUT_STEP * 2 + 64;
}

/* A chunk. Of one tile of tokens there are only those that exist. */
static __host__ __device__ __forceinline__ uint32_t matmul_x_bytes(uint32_t n_tiles, uint32_t n)
{
    return (n_tiles == 1 && n < 8 ? n : n_tiles * 8) * matmul_pitch(n_tiles);
}

/* Where piece c (columns 8c ..) of a step of x lies: a lane t owns RUN columns at a time, RUN / 8 pieces, and all t's of one turn lie side by side. */
template <uint32_t RUN>
static __device__ __forceinline__ uint32_t x_piece(uint32_t c)
{
    constexpr uint32_t PER = RUN / 8;
    return (c / (4 * PER) * PER + c % PER) * 4 + c / PER % 4;
}

template <quant T, uint32_t N, uint32_t M, uint32_t AHEAD>
struct matmul_tile {
    using step_t = weight_step<T>;
    static constexpr uint32_t CHUNK = matmul_chunk(N), PITCH = matmul_pitch(N), TOKENS = N * 8;

    const matmul_args &a;
    uint32_t lane, warp, warps_row, warps_k, row_warp, k_warp;
    uint32_t token0, n_tok, s0, s1; /* of the block */
    uint32_t x_bytes;               /* of a chunk */
    typename step_t::source src[M];
    float acc[M][N][4];

    static __device__ __forceinline__ const matmul_job &job_of(const matmul_args &a, uint32_t group)
    {
        uint32_t j = 0;
        while (j + 1 < a.n_jobs && group >= a.job[j + 1].group0)
            j++;
        return a.job[j];
    }
    __device__ __forceinline__ uint32_t group_of(uint32_t row_warp, uint32_t m) const
    {
        return (blockIdx.x * warps_row + row_warp) * M + m;
    }

    __device__ __forceinline__ matmul_tile(const matmul_args &args) : a(args)
    {
        lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); /* so that the compiler sees that it is one for all lanes */
        warps_row = a.warps_row, warps_k = MATMUL_WARPS / warps_row;
        row_warp = warp % warps_row, k_warp = warp / warps_row;
        x_bytes = matmul_x_bytes(N, a.n);
        token0 = blockIdx.z * TOKENS, n_tok = min(a.n - token0, TOKENS);
        uint32_t steps = (a.k + LAYOUT_STEP - 1) / LAYOUT_STEP;
        s0 = (uint32_t)((uint64_t)steps * blockIdx.y / a.splits), s1 = (uint32_t)((uint64_t)steps * (blockIdx.y + 1) / a.splits);
#pragma unroll
        for (uint32_t m = 0; m < M; m++) {
            uint32_t group = min(group_of(row_warp, m), a.groups - 1);
            const matmul_job &j = job_of(a, group);
            src[m] = step_t::open(j.w, group - j.group0, j.rows, a.cols, lane);
#pragma unroll
            for (uint32_t n = 0; n < N; n++)
#pragma unroll
                for (uint32_t e = 0; e < 4; e++)
                    acc[m][n][e] = 0;
        }
    }

    /* Chunk c of x into its buffer; what lies beyond k is zero. Tokens that are not there are not written: they reach outputs only that are not there. A thread has one place in a
     * token's chunk, for every so-many-th token. */
    __device__ __forceinline__ void stage(uint32_t c) const
    {
        constexpr uint32_t PIECES = CHUNK * MATMUL_STEP_PIECES;
        uint32_t p = threadIdx.x % PIECES, token = threadIdx.x / PIECES, step = s0 + c * CHUNK + p / MATMUL_STEP_PIECES, in = p % MATMUL_STEP_PIECES;
        if (step >= s1)
            return;
        uint32_t k = step * LAYOUT_STEP + in * 8, bytes = k < a.k ? 16 : 0;
        unsigned char *to = smem_base() + c % 2 * x_bytes + token * PITCH + (p - in + x_piece<step_t::RUN>(in)) * 16;
        const unsigned char *from = (const unsigned char *)a.x + ((size_t)(token0 + token) * a.k + (bytes ? k : 0)) * 2;
        size_t next = (size_t)(MATMUL_THREADS / PIECES) * a.k * 2;
#pragma unroll 1
        for (; token < n_tok; token += MATMUL_THREADS / PIECES, to += MATMUL_THREADS / PIECES * PITCH, from += next)
            ptx_cp_async_16(to, from, bytes);
    }

    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&x)[4], uint32_t b0, uint32_t b1)
    {
        if constexpr (T == QUANT_BF16)
            ptx_mma_bf16(d, x, b0, b1);
        else
            ptx_mma_f16(d, x, b0, b1);
    }
    template <uint32_t I>
    __device__ __forceinline__ void piece(const step_t (&w)[M], const typename step_t::prepared (&q)[M], const unsigned char *x)
    {
        uint32_t op[M][2][4];
#pragma unroll
        for (uint32_t m = 0; m < M; m++)
            w[m].template operand<I>(q[m], op[m]);
#pragma unroll
        for (uint32_t n = 0; n < N; n++) {
            uint4 b = *(const uint4 *)(x + n * 8 * PITCH + I * 64);
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                mma(acc[m][n], op[m][0], b.x, b.y);
                mma(acc[m][n], op[m][1], b.z, b.w);
            }
        }
    }
    __device__ __forceinline__ void compute(const step_t (&w)[M], const unsigned char *x)
    {
        typename step_t::prepared q[M];
#pragma unroll
        for (uint32_t m = 0; m < M; m++)
            q[m] = w[m].prepare();
        piece<0>(w, q, x);
        piece<1>(w, q, x);
        piece<2>(w, q, x);
        piece<3>(w, q, x);
    }

    __device__ __forceinline__ void load(step_t (&w)[M], uint32_t step) const
    {
        if (step < s1) {
#pragma unroll
            for (uint32_t m = 0; m < M; m++)
                w[m].load(src[m], step, lane);
        }
    }
    /* Rounds: in each, every warp over k has a step, but for the last ones. */
    __device__ __forceinline__ void run()
    {
        uint32_t rounds = (s1 - s0 + warps_k - 1) / warps_k, step = s0 + k_warp;
        /* A lane's token of tile 0; of one tile only, buffers hold just the tokens that are there. */
        uint32_t token = N == 1 ? min(lane / 4, n_tok - 1) : lane / 4, chunk = 0, in_chunk = CHUNK;
        const unsigned char *x0 = smem_base() + token * PITCH + lane % 4 * 16 + k_warp * (LAYOUT_STEP * 2), *x = x0;
        step_t w[AHEAD + 1][M];
#pragma unroll
        for (uint32_t u = 0; u < AHEAD; u++)
            load(w[u], step + u * warps_k);
        stage(0);
        ptx_cp_async_commit();
        for (uint32_t i = 0; i < rounds;) {
#pragma unroll
            for (uint32_t u = 0; u <= AHEAD; u++) {
                if (i >= rounds)
                    break;
                if (in_chunk == CHUNK) {
                    ptx_cp_async_wait<0>();
                    __syncthreads(); /* this chunk is there for all, and none still reads the last, whose buffer is filled next */
                    in_chunk = 0;
                    x = x0 + chunk % 2 * x_bytes;
                    stage(++chunk);
                    ptx_cp_async_commit();
                }
                load(w[(u + AHEAD) % (AHEAD + 1)], step + AHEAD * warps_k);
                if (step < s1)
                    compute(w[u], x);
                step += warps_k, in_chunk += warps_k, x += warps_k * (LAYOUT_STEP * 2), i++;
            }
        }
    }

    /* Element f of the block's tile, in the order [row warp][m][n][element of the fragment][lane]. */
    static constexpr uint32_t WARP_ELEMS = M * N * 128;
    __device__ __forceinline__ void store(uint32_t f, float v) const
    {
        uint32_t l = f % 32, e = f / 32 % 4, n = f / 128 % N, m = f / (128 * N) % M;
        uint32_t group = group_of(f / WARP_ELEMS, m), token = token0 + n * 8 + l % 4 * 2 + e % 2;
        if (group >= a.groups || token >= a.n)
            return;
        const matmul_job &j = job_of(a, group);
        uint32_t row = (group - j.group0) * LAYOUT_ROWS + l / 4 + e / 2 * 8;
        if (row < j.rows)
            j.y[token * j.y_stride + row] = fmaf(v, a.scale ? a.scale[token] : 1.0f, j.bias ? j.bias[row] : 0.0f);
    }
    __device__ __forceinline__ size_t tile_idx() const
    {
        return (size_t)blockIdx.z * gridDim.x + blockIdx.x;
    }
    __device__ __forceinline__ float *partial(uint32_t split) const
    {
        return a.partial + (tile_idx() * a.splits + split) * (warps_row * WARP_ELEMS);
    }
    /* The sums of a warp that had all of k, straight from registers. */
    __device__ __forceinline__ void store_warp() const
    {
#pragma unroll
        for (uint32_t m = 0; m < M; m++) {
            uint32_t group = group_of(row_warp, m);
            const matmul_job &j = job_of(a, group);
            uint32_t row = (group - j.group0) * LAYOUT_ROWS + lane / 4;
            bool has[2] = {group < a.groups && row < j.rows, group < a.groups && row + 8 < j.rows};
            float bias[2] = {j.bias && has[0] ? j.bias[row] : 0.0f, j.bias && has[1] ? j.bias[row + 8] : 0.0f};
#pragma unroll
            for (uint32_t n = 0; n < N; n++)
#pragma unroll
                for (uint32_t e = 0; e < 2; e++) {
                    uint32_t token = token0 + n * 8 + lane % 4 * 2 + e;
                    if (token >= a.n)
                        continue;
                    float scale = a.scale ? a.scale[token] : 1.0f, *y = j.y + token * j.y_stride + row;
                    if (has[0])
                        y[0] = fmaf(acc[m][n][e], scale, bias[0]);
                    if (has[1])
                        y[8] = fmaf(acc[m][n][e + 2], scale, bias[1]);
                }
        }
    }

    __device__ __forceinline__ void finish()
    {
        uint32_t elems = warps_row * WARP_ELEMS;
        if (warps_k == 1 && a.splits == 1) {
            store_warp();
            return;
        }
        /* [k warp][element]: in shared memory, or, of one k warp, as this block's part right away. */
        float *part = warps_k > 1 ? (float *)smem_base() + k_warp * elems : partial(blockIdx.y);
        part += row_warp * WARP_ELEMS + lane;
        if (warps_k > 1)
            __syncthreads(); /* x is read */
#pragma unroll
        for (uint32_t m = 0; m < M; m++)
#pragma unroll
            for (uint32_t n = 0; n < N; n++)
#pragma unroll
                for (uint32_t e = 0; e < 4; e++)
                    part[((m * N + n) * 4 + e) * 32] = acc[m][n][e];
        if (warps_k > 1) {
            __syncthreads();
            const float *sums = (const float *)smem_base();
#pragma unroll 1
            for (uint32_t f = threadIdx.x; f < elems; f += MATMUL_THREADS) {
                float v = sums[f];
                for (uint32_t k = 1; k < warps_k; k++)
                    v += sums[k * elems + f];
                if (a.splits > 1)
                    partial(blockIdx.y)[f] = v;
                else
                    store(f, v);
            }
        }
        if (a.splits == 1)
            return;
        __threadfence(); /* this thread's part before its block is counted */
        __syncthreads();
        uint32_t *last = (uint32_t *)smem_base();
        if (threadIdx.x == 0) {
            *last = atomicAdd(&a.counters[tile_idx()], 1u) == a.splits - 1;
            __threadfence(); /* the others' parts after all of them are counted */
        }
        __syncthreads();
        if (*last == 0)
            return;
        if (threadIdx.x == 0)
            a.counters[tile_idx()] = 0;
#pragma unroll 1
        for (uint32_t f = threadIdx.x; f < elems; f += MATMUL_THREADS) {
            float v = __ldcg(partial(0) + f);
            for (uint32_t s = 1; s < a.splits; s++)
                v += __ldcg(partial(s) + f);
            store(f, v);
        }
    }
};

template <quant T, uint32_t N, uint32_t M, uint32_t AHEAD, uint32_t BLOCKS>
__global__ void __launch_bounds__(MATMUL_THREADS, BLOCKS) matmul_kernel(const __grid_constant__ matmul_args a)
{
    matmul_tile<T, N, M, AHEAD> tile(a);
    tile.run();
    tile.finish();
}

template <quant T, uint32_t N, uint32_t M, uint32_t AHEAD, uint32_t BLOCKS>
static cudaError_t matmul_launch(const matmul_args &a, cudaStream_t stream)
{
    uint32_t rows = a.warps_row * M, warps_k = MATMUL_WARPS / a.warps_row;
    ASSERT(warps_k <= matmul_chunk(N));
    size_t x_bytes = 2 * (size_t)matmul_x_bytes(N, a.n);
    size_t sum_bytes = warps_k > 1 ? (size_t)MATMUL_WARPS * M * N * 512 : 4;
    dim3 grid((a.groups + rows - 1) / rows, a.splits, (a.n + N * 8 - 1) / (N * 8));
    return LAUNCH((matmul_kernel<T, N, M, AHEAD, BLOCKS>), grid, dim3(MATMUL_THREADS), MAX(x_bytes, sum_bytes), stream, a);
}

#endif
