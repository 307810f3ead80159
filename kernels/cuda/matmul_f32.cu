/* F32 weights: few models have them, and what does (routers, norms' neighbours) is small. Plain fp32.
 *
 *   y[i][r] = sum over k of w[r][k] * x[i][k] + bias[r]         oracle: kernels_ref_f32
 *
 * A warp: a row times TOKENS tokens; lane l takes columns 4l .. 4l + 3, + 128, ... in one chain of fmaf each, the lanes are added as a tree: one order
 * for any n. Reads a row once for TOKENS tokens, x from L1: n <= 8 is bound by memory (expected: as matmul_small.cu), more by L1. */
#include "kernels/cuda/launch.cuh"

#include "kernels/cuda/layout.h"
#include "kernels/cuda/matmul.h"

namespace
{

constexpr uint32_t TOKENS = 8, THREADS = MATMUL_WARPS * 32;

__global__ void __launch_bounds__(THREADS) f32_kernel(const __grid_constant__ matmul_args a)
{
    uint32_t lane = threadIdx.x % 32, id = blockIdx.x * MATMUL_WARPS + threadIdx.x / 32, token0 = blockIdx.y * TOKENS, j = 0;
    if (id >= a.groups)
        return; /* the whole warp */
    while (j + 1 < a.n_jobs && id >= a.job[j + 1].group0)
        j++;
    const matmul_job &job = a.job[j];
    uint32_t row = id - job.group0;
    const float *w = (const float *)((const unsigned char *)job.w + row * layout_row_bytes(QUANT_F32, a.cols)), *x[TOKENS];
    float sum[TOKENS];
#pragma unroll
    for (uint32_t i = 0; i < TOKENS; i++) {
        x[i] = (const float *)a.x + (size_t)min(token0 + i, a.n - 1) * a.k;
        sum[i] = 0;
    }
    for (uint32_t k = lane * 4; k < a.cols; k += 128) {
        float4 v = __ldcs((const float4 *)(w + k));
#pragma unroll
        for (uint32_t i = 0; i < TOKENS; i++) {
            float4 u = *(const float4 *)(x[i] + k);
            sum[i] = fmaf(v.w, u.w, fmaf(v.z, u.z, fmaf(v.y, u.y, fmaf(v.x, u.x, sum[i]))));
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < TOKENS; i++) {
#pragma unroll
        for (uint32_t d = 16; d > 0; d /= 2)
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], d);
        if (lane == i && token0 + i < a.n)
            job.y[(token0 + i) * job.y_stride + row] = fmaf(sum[i], a.scale ? a.scale[token0 + i] : 1.0f, job.bias ? job.bias[row] : 0.0f);
    }
}

} // namespace

cudaError_t matmul_f32(const struct matmul_args *a, cudaStream_t stream)
{
    dim3 grid((a->groups + MATMUL_WARPS - 1) / MATMUL_WARPS, (a->n + TOKENS - 1) / TOKENS);
    return LAUNCH(f32_kernel, grid, dim3(THREADS), 0, stream, *a);
}
