#include "kernels/cuda/matmul_tile.cuh"

namespace
{

constexpr uint32_t N_TILES = 12, THREADS = 256;

constexpr bool dense(quant t)
{
    return t == QUANT_F16 || t == QUANT_BF16;
}
/* 32 rows x 96 tokens a warp are 96 sums a lane (128 tokens spill). Dense weights take 32 registers a group and step: no room for two groups. */
constexpr uint32_t m_tiles(quant t)
{
    return dense(t) ? 1 : 2;
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
    return {N_TILES, m_tiles(type), 1};
}

cudaError_t matmul_large(enum quant type, const struct matmul_args *a, cudaStream_t stream)
{
    switch (type) {
#define QUANT(sym, id, name, elems, bytes, act)                                                                        \
    case QUANT_##sym:                                                                                                  \
        if constexpr (QUANT_##sym != QUANT_F32)                                                                        \
            return matmul_launch<QUANT_##sym, N_TILES, m_tiles(QUANT_##sym), 1, 1>(*a, stream);                        \
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
