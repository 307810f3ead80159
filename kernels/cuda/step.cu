/* How a step's block comes to the device, and what it does to the block tables there. Kilobytes: latency is all that counts. */
#include "kernels/cuda/launch.cuh"

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/sample.h"

enum { THREADS = 128 };

/* 16 bytes a thread, read over the bus (some 25 KB a step, one round trip of it: about 2 us expected). */
static __global__ void step_fetch(const uint4 *ring, size_t stride16, uint32_t n_blocks, const uint32_t *turn, uint32_t n16, uint4 *dst)
{
    const volatile uint4 *src = ring + *turn % n_blocks * stride16; /* the host writes there: no cache may answer */
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n16)
        dst[i] = make_uint4(src[i].x, src[i].y, src[i].z, src[i].w);
}

cudaError_t cuda_step_fetch(const void *ring, size_t stride, uint32_t n_blocks, const uint32_t *turn, size_t bytes, void *dst, cudaStream_t stream)
{
    uint32_t n16 = (uint32_t)(bytes / 16);
    return LAUNCH(step_fetch, dim3((n16 + THREADS - 1) / THREADS), dim3(THREADS), 0, stream, (const uint4 *)ring, stride / 16, n_blocks, turn, n16,
                  (uint4 *)dst);
}

/* One thread an entry: 12 bytes read, 4 written, at random places; a handful of entries a step. */
static __global__ void step_tables(uint32_t *tables, size_t stride, const struct cuda_table_update *u, const uint32_t *n, uint32_t *turn)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < *n)
        tables[u[i].slot * stride + u[i].at] = u[i].block;
    if (i == 0)
        ++*turn;
}

cudaError_t cuda_step_tables(uint32_t *tables, size_t table_stride, const struct cuda_table_update *u, const uint32_t *n, uint32_t n_max, uint32_t *turn,
                             cudaStream_t stream)
{
    return LAUNCH(step_tables, dim3((n_max + THREADS - 1) / THREADS), dim3(THREADS), 0, stream, tables, table_stride, u, n, turn);
}

enum { RINGS_MAX = 2 };
struct store {
    struct cuda_step_results from, to[RINGS_MAX];
};
/* A block a row: its result and the log-probabilities that it has, written over the bus. */
static __global__ void step_store(struct store s, uint32_t n_blocks, const uint32_t *turn, uint32_t top_cap)
{
    uint32_t row = blockIdx.x, at = (*turn - 1) % n_blocks;
    struct cuda_step_results to = s.to[0];
    if (at == 1)
        to = s.to[1];
    uint32_t n_top = s.from.out[row].n_top;
    if (threadIdx.x == 0)
        to.out[row] = s.from.out[row];
    for (uint32_t i = threadIdx.x; i < n_top && i < top_cap; i += blockDim.x) {
        to.top_id[(size_t)row * top_cap + i] = s.from.top_id[(size_t)row * top_cap + i];
        to.top_lp[(size_t)row * top_cap + i] = s.from.top_lp[(size_t)row * top_cap + i];
    }
}

cudaError_t cuda_step_store(const struct cuda_step_results *from, const struct cuda_step_results *to, uint32_t n_blocks, const uint32_t *turn, uint32_t n,
                            uint32_t top_cap, cudaStream_t stream)
{
    struct store s;
    s.from = *from;
    if (n_blocks > RINGS_MAX)
        return cudaErrorInvalidValue;
    for (uint32_t i = 0; i < RINGS_MAX; i++)
        s.to[i] = to[i < n_blocks ? i : 0];
    return LAUNCH(step_store, dim3(n), dim3(32), 0, stream, s, n_blocks, turn, top_cap);
}
