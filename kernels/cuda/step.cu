/* How a step's block comes to the device, and what it does to the block tables there. Kilobytes: latency is all that counts. */
#include "kernels/cuda/launch.cuh"

#include "kernels/cuda/cuda.h"

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
