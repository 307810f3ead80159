/* More than CUDA_SMALL_BATCH tokens of quantised weights, and of dense ones where cuBLASLt is not there or does not take them: the loop of matmul_tile.cuh with 8 warps side by
 * side over rows (256 of them, dense 128), each with all 80 or 96 tokens of the block. So a weight is dequantised once for as many tokens, in registers: no tile of weights
 * is written to shared memory and read back, which is what two kernels (or one with ldmatrix) would do, and x is the only operand there.
 *
 * Moves weights once and x once a block: a column of 256 rows x 96 tokens is 49152 operations for 148 bytes of Q4_K and 192 of x from L2: 145 a byte. Issue: a step of
 * a warp is 192 mma, about 260 instructions to dequantise, 48 reads of x; at 2 warps a scheduler mma.sync (at best about 6.5 cycles each there on Hopper) is busy twice as long
 * as the issue slots. Expected, not measured: 70% of what mma.sync can do, which is about 60% of the tensor cores' rate on Hopper (the rest is wgmma's), 70% on Ampere. */
#include "kernels/cuda/matmul_tile.cuh"

namespace
{

constexpr uint32_t THREADS = 256;

constexpr bool dense(quant t)
{
    return t == QUANT_F16 || t == QUANT_BF16;
}
/* Groups of 16 rows a warp. Dense weights take 32 registers a group and step: no room for two groups. */
constexpr uint32_t m_tiles(quant t)
{
    return dense(t) ? 1 : 2;
}
/* Tiles of 8 tokens: 32 rows x 96 tokens are 96 sums a lane, beside 2 x 2 steps of weights (16 tiles spill everywhere, 12 of the wider types on some GPUs). */
constexpr uint32_t n_tiles(quant t)
{
    return t == QUANT_Q8_0 || t == QUANT_Q5_1 || t == QUANT_Q5_K || t == QUANT_Q6_K ? 10 : 12;
}

/* Thread: a row; block: THREADS rows of a token. */
__global__ void finish_kernel(matmul_job j, const float *scale)
{
    uint32_t row = blockIdx.x * THREADS + threadIdx.x, token = blockIdx.y;
    if (row >= j.rows)
        return;
    float *y = j.y + token * j.y_stride + row;
    *y = fmaf(*y, scale ? scale[token] : 1.0f, j.bias ? j.bias[row] : 0.0f);
}

} // namespace

struct matmul_form matmul_large_form(enum quant type)
{
    return {n_tiles(type), m_tiles(type), 1};
}

cudaError_t matmul_large(enum quant type, const struct matmul_args *a, cudaStream_t stream)
{
    switch (type) {
#define QUANT(sym, id, name, elems, bytes, act)                                                                        \
    case QUANT_##sym:                                                                                                  \
        if constexpr (QUANT_##sym != QUANT_F32)                                                                        \
            return matmul_launch<QUANT_##sym, n_tiles(QUANT_##sym), m_tiles(QUANT_##sym), 1, 1>(*a, stream);           \
        break;
#include "model/quants.def"
#undef QUANT
    default:
        break;
    }
    return cudaErrorInvalidValue;
}

cudaError_t matmul_finish(const struct matmul_job *j, const float *scale, uint32_t n, cudaStream_t stream)
{
    if (!scale && !j->bias)
        return cudaSuccess;
    return LAUNCH(finish_kernel, dim3((j->rows + THREADS - 1) / THREADS, n), dim3(THREADS), 0, stream, *j, scale);
}
