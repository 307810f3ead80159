/* The loop of matmul_small.cu and matmul_large.cu: weights dequantised in registers, once a block, times 16-bit activations, on mma.m16n8k16 with sums
 * in fp32.
 *
 *   y[i][r] = scale[i] * sum over k of w[r][k] * x[i][k] + bias[r]         oracle: kernels_ref_f32
 *
 * A block is 8 warps: R (warps_row) over rows, 8 / R over k. A warp owns M groups of 16 rows and N tiles of 8 tokens: weights are operand A, tokens
 * the columns of B. It walks its steps (128 columns) s0 + its number, + 8/R, ...: weights come straight from memory into registers, AHEAD steps ahead,
 * in whole 128- to 512-byte pieces, and are read by no other warp. There are only as many blocks as the GPU holds at once; each goes on with the row
 * tile gridDim.x further, and its loads are ahead across that border too, so that memory has work while sums are joined and stored. x comes by
 * cp.async: all of it once, where it fits (few tokens), else in chunks for the block, into one of two buffers while the other is used, one barrier a
 * chunk.
 *
 * x in shared memory: [token][step of the chunk][16-byte piece] with 64 bytes between tokens, the pieces of a step in the order in which lanes take
 * them (x_piece): the 8 lanes of a quarter warp, two tokens x 4 pieces, then lie in 8 different groups of 4 banks.
 *
 * Then the k parts of the block are added in order through shared memory, and those of other blocks (splits) in order by the last block of a tile to
 * come, from the workspace: any order of arrival gives the same bits.
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
/* How x and the sums of the k warps lie in shared memory. */
struct matmul_smem {
    uint32_t chunk, chunks; /* steps in one, chunks of a block's k */
    uint32_t pitch, buffer; /* bytes of a token in a chunk, of a chunk */
    uint32_t sums, total;   /* bytes: where sums begin; in all. A flag is last. */
};
constexpr uint32_t MATMUL_X_MAX = 36 << 10; /* of few tokens, that are there once for all rows */
static __host__ __device__ __forceinline__ matmul_smem matmul_smem_of(uint32_t n_tiles, uint32_t m_tiles, uint32_t n, uint32_t k, uint32_t splits,
                                                                          uint32_t warps_k)
{
    uint32_t steps = ((k + LAYOUT_STEP - 1) / LAYOUT_STEP + splits - 1) / splits; /* at most, of a split */
    uint32_t tokens = n_tiles == 1 && n < 8 ? n : n_tiles * 8, all = (steps + MATMUL_WARPS - 1) / MATMUL_WARPS * MATMUL_WARPS;
    bool once = n_tiles == 1 && tokens * (all * (LAYOUT_STEP * 2) + 64) <= MATMUL_X_MAX;
    matmul_smem m;
    m.chunk = once ? all : matmul_chunk(n_tiles);
    m.chunks = once ? 1 : (steps + m.chunk - 1) / m.chunk;
    m.pitch = m.chunk * (LAYOUT_STEP * 2) + 64;
    m.buffer = tokens * m.pitch;
    uint32_t x = (once ? 1 : 2) * m.buffer, sums = warps_k > 1 ? MATMUL_WARPS * m_tiles * n_tiles * 512 : 0;
    m.sums = n_tiles <= 2 ? x : 0; /* two beside x, of even and odd tiles; of more tokens one, in its place */
    m.total = (n_tiles <= 2 ? x + 2 * sums : x > sums ? x : sums) + 16;
    return m;
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
    static constexpr uint32_t TOKENS = N * 8;
    static constexpr bool BESIDE = N <= 2; /* sums lie beside x */

    const matmul_args &a;
    matmul_smem smem;
    uint32_t lane, warps_row, warps_k, row_warp, k_warp;
    uint32_t token0, n_tok, s0, s1, row_tiles; /* of the block */
    float acc[M][N][4];
    uint32_t load_step; /* of the next load, in a row tile that begins at src */
    typename step_t::source src[M];

    static __device__ __forceinline__ const matmul_job &job_of(const matmul_args &a, uint32_t group)
    {
        uint32_t j = 0;
        while (j + 1 < a.n_jobs && group >= a.job[j + 1].group0)
            j++;
        return a.job[j];
    }
    __device__ __forceinline__ uint32_t group_of(uint32_t tile, uint32_t row_warp, uint32_t m) const
    {
        return (tile * warps_row + row_warp) * M + m;
    }

    __device__ __forceinline__ matmul_tile(const matmul_args &args) : a(args)
    {
        uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); /* so that the compiler sees that it is one for all lanes */
        lane = threadIdx.x % 32;
        warps_row = a.warps_row, warps_k = MATMUL_WARPS / warps_row;
        row_warp = warp % warps_row, k_warp = warp / warps_row;
        smem = matmul_smem_of(N, M, a.n, a.k, a.splits, warps_k);
        token0 = blockIdx.z * TOKENS, n_tok = min(a.n - token0, TOKENS);
        uint32_t steps = (a.k + LAYOUT_STEP - 1) / LAYOUT_STEP;
        s0 = (uint32_t)((uint64_t)steps * blockIdx.y / a.splits), s1 = (uint32_t)((uint64_t)steps * (blockIdx.y + 1) / a.splits);
        row_tiles = (a.groups + warps_row * M - 1) / (warps_row * M);
    }

    /* Chunk c of x into a buffer; what lies beyond k is zero. Tokens that are not there are not written: they reach outputs only that are not there. */
    __device__ __forceinline__ void stage(uint32_t c, uint32_t buffer) const
    {
        uint32_t pieces = smem.chunk * MATMUL_STEP_PIECES;
        if (N > 1) { /* fewer than threads: a thread has one place, in every so-many-th token */
            constexpr uint32_t PIECES = matmul_chunk(N) * MATMUL_STEP_PIECES, EVERY = MATMUL_THREADS / PIECES;
#pragma unroll 1
            for (uint32_t token = threadIdx.x / PIECES; token < n_tok; token += EVERY)
                stage_piece(c, buffer, token, threadIdx.x % PIECES);
        } else {
#pragma unroll 1
            for (uint32_t token = 0; token < n_tok; token++)
#pragma unroll 1
                for (uint32_t p = threadIdx.x; p < pieces; p += MATMUL_THREADS)
                    stage_piece(c, buffer, token, p);
        }
        ptx_cp_async_commit();
    }
    __device__ __forceinline__ void stage_piece(uint32_t c, uint32_t buffer, uint32_t token, uint32_t p) const
    {
        uint32_t in = p % MATMUL_STEP_PIECES, step = s0 + c * smem.chunk + p / MATMUL_STEP_PIECES, k = step * LAYOUT_STEP + in * 8;
        unsigned char *to = smem_base() + buffer * smem.buffer + token * smem.pitch + (p - in + x_piece<step_t::RUN>(in)) * 16;
        const unsigned char *from = (const unsigned char *)a.x + ((size_t)(token0 + token) * a.k + (k < a.k ? k : 0)) * 2;
        if (step < s1)
            ptx_cp_async_16(to, from, k < a.k ? 16 : 0);
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
            uint4 b = *(const uint4 *)(x + n * 8 * (N > 1 ? matmul_chunk(N) * LAYOUT_STEP * 2 + 64 : 0) + I * 64);
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

    __device__ __forceinline__ void open(uint32_t tile)
    {
        load_step = tile < row_tiles ? s0 + k_warp : s1;
        if (tile < row_tiles) {
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                uint32_t group = min(group_of(tile, row_warp, m), a.groups - 1);
                const matmul_job &j = job_of(a, group);
                src[m] = step_t::open(j.w, group - j.group0, j.rows, a.cols, lane);
            }
        }
    }
    __device__ __forceinline__ void load_next(step_t (&w)[M])
    {
        if (load_step < s1) {
#pragma unroll
            for (uint32_t m = 0; m < M; m++)
                w[m].load(src[m], load_step, lane);
        }
        load_step += warps_k;
    }
    /* Rounds of a row tile: in each, every warp over k has a step, but for the last ones; rounded up, so that a tile begins with the first of the
     * AHEAD + 1 places for what was loaded. */
    __device__ __forceinline__ void run()
    {
        static_assert(AHEAD > 0);
        uint32_t rounds = (s1 - s0 + warps_k - 1) / warps_k, rounds_all = (rounds + AHEAD) / (AHEAD + 1) * (AHEAD + 1);
        /* A lane's token of tile 0; of one tile only, buffers hold just the tokens that are there. */
        uint32_t token = N == 1 ? min(lane / 4, n_tok - 1) : lane / 4, buffer = 0;
        const unsigned char *x0 = smem_base() + token * smem.pitch + lane % 4 * 16 + k_warp * (LAYOUT_STEP * 2);
        step_t w[AHEAD + 1][M];
        open(blockIdx.x);
#pragma unroll
        for (uint32_t u = 0; u < AHEAD; u++)
            load_next(w[u]);
        stage(0, 0);
        for (uint32_t tile = blockIdx.x, nth = 0; tile < row_tiles; tile += gridDim.x, nth++) {
            uint32_t step = s0 + k_warp, chunk = 0, left = 0; /* steps left of the chunk */
            const unsigned char *x = x0;
            bool once = smem.chunks == 1 && nth > 0 && BESIDE;
            if (once)
                left = smem.chunk;
            zero();
            for (uint32_t i0 = 0; i0 < rounds_all; i0 += AHEAD + 1) {
#pragma unroll
                for (uint32_t u = 0; u <= AHEAD; u++) {
                    if (left == 0 && i0 + u < rounds) {
                        ptx_cp_async_wait<0>();
                        __syncthreads(); /* this chunk is there for all, and none still reads the last, whose buffer is filled next */
                        x = x0 + buffer * smem.buffer;
                        left = smem.chunk;
                        bool again = BESIDE && smem.chunks > 1 && tile + gridDim.x < row_tiles; /* chunk 0, for the next tile */
                        if (++chunk < smem.chunks || again)
                            stage(chunk < smem.chunks ? chunk : 0, buffer ^= 1);
                    }
                    if (u == 1 && i0 + AHEAD + 1 == rounds_all) /* AHEAD rounds before the end */
                        open(tile + gridDim.x);
                    load_next(w[(u + AHEAD) % (AHEAD + 1)]);
                    if (step < s1)
                        compute(w[u], x);
                    step += warps_k, left -= warps_k, x += warps_k * (LAYOUT_STEP * 2);
                }
            }
            finish(tile, nth % 2);
            if (!BESIDE && tile + gridDim.x < row_tiles) {
                __syncthreads(); /* sums are read */
                stage(0, buffer = 0);
            }
        }
    }
    __device__ __forceinline__ void zero()
    {
#pragma unroll
        for (uint32_t m = 0; m < M; m++)
#pragma unroll
            for (uint32_t n = 0; n < N; n++)
#pragma unroll
                for (uint32_t e = 0; e < 4; e++)
                    acc[m][n][e] = 0;
    }

    /* Element f of the block's tile, in the order [row warp][m][n][element of the fragment][lane]. */
    static constexpr uint32_t WARP_ELEMS = M * N * 128;
    __device__ __forceinline__ void store(uint32_t tile, uint32_t f, float v) const
    {
        uint32_t l = f % 32, e = f / 32 % 4, n = f / 128 % N, m = f / (128 * N) % M;
        uint32_t group = group_of(tile, f / WARP_ELEMS, m), token = token0 + n * 8 + l % 4 * 2 + e % 2;
        if (group >= a.groups || token >= a.n)
            return;
        const matmul_job &j = job_of(a, group);
        uint32_t row = (group - j.group0) * LAYOUT_ROWS + l / 4 + e / 2 * 8;
        if (row < j.rows)
            j.y[token * j.y_stride + row] = fmaf(v, a.scale ? a.scale[token] : 1.0f, j.bias ? j.bias[row] : 0.0f);
    }
    __device__ __forceinline__ float *partial(uint32_t tile, uint32_t split) const
    {
        return a.partial + (((size_t)blockIdx.z * row_tiles + tile) * a.splits + split) * (warps_row * WARP_ELEMS);
    }
    /* The sums of a warp that had all of k, straight from registers. */
    __device__ __forceinline__ void store_warp(uint32_t tile) const
    {
#pragma unroll
        for (uint32_t m = 0; m < M; m++) {
            uint32_t group = group_of(tile, row_warp, m);
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

    __device__ __forceinline__ void finish(uint32_t tile, uint32_t odd)
    {
        uint32_t elems = warps_row * WARP_ELEMS;
        float *sums = (float *)(smem_base() + smem.sums) + (BESIDE && odd ? warps_k * elems : 0);
        if (warps_k == 1 && a.splits == 1) {
            store_warp(tile);
            return;
        }
        /* [k warp][element]: in shared memory, or, of one k warp, as this block's part right away. */
        float *part = warps_k > 1 ? sums + k_warp * elems : partial(tile, blockIdx.y);
        part += row_warp * WARP_ELEMS + lane;
        if (warps_k > 1 && !BESIDE)
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
#pragma unroll 1
            for (uint32_t f = threadIdx.x; f < elems; f += MATMUL_THREADS) {
                float v = sums[f];
                for (uint32_t k = 1; k < warps_k; k++)
                    v += sums[k * elems + f];
                if (a.splits > 1)
                    partial(tile, blockIdx.y)[f] = v;
                else
                    store(tile, f, v);
            }
        }
        if (a.splits == 1)
            return;
        __syncthreads(); /* all parts of the block are stored */
        uint32_t *last = (uint32_t *)(smem_base() + smem.total - 16), *counter = &a.counters[(size_t)blockIdx.z * row_tiles + tile];
        if (threadIdx.x == 0) {
            __threadfence(); /* they, by all its threads, come before it is counted */
            *last = atomicAdd(counter, 1u) == a.splits - 1;
            __threadfence(); /* the others' parts are read after all of them are counted */
        }
        __syncthreads();
        if (*last == 0)
            return;
        if (threadIdx.x == 0)
            *counter = 0;
#pragma unroll 1
        for (uint32_t f = threadIdx.x; f < elems; f += MATMUL_THREADS) {
            float v = __ldcg(partial(tile, 0) + f);
            for (uint32_t s = 1; s < a.splits; s++)
                v += __ldcg(partial(tile, s) + f);
            store(tile, f, v);
        }
    }
};

template <quant T, uint32_t N, uint32_t M, uint32_t AHEAD, uint32_t BLOCKS>
__global__ void __launch_bounds__(MATMUL_THREADS, BLOCKS) matmul_kernel(const __grid_constant__ matmul_args a)
{
    matmul_tile<T, N, M, AHEAD> tile(a);
    tile.run();
}

template <quant T, uint32_t N, uint32_t M, uint32_t AHEAD, uint32_t BLOCKS>
static cudaError_t matmul_launch(const matmul_args &a, cudaStream_t stream)
{
    uint32_t rows = a.warps_row * M, warps_k = MATMUL_WARPS / a.warps_row;
    uint32_t row_tiles = (a.groups + rows - 1) / rows, token_tiles = (a.n + N * 8 - 1) / (N * 8);
    ASSERT(warps_k <= matmul_chunk(N));
    dim3 grid(MIN(row_tiles, MAX(a.n_sms * BLOCKS / (a.splits * token_tiles), 1u)), a.splits, token_tiles);
    matmul_smem smem = matmul_smem_of(N, M, a.n, a.k, a.splits, warps_k);
    return LAUNCH((matmul_kernel<T, N, M, AHEAD, BLOCKS>), grid, dim3(MATMUL_THREADS), smem.total, stream, a);
}

#endif
