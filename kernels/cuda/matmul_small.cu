/* Up to CUDA_SMALL_BATCH tokens, and more in tiles of as many in the deterministic form: the loop of matmul_tile.cuh with 1, 2, 4 or 8 tiles of tokens.
 *
 * Moves the packed weights once; x (n * cols * 2 bytes) once a block, or once a row tile of R * M * 16 rows where it does not fit, from L2; y. 2 * rows * cols * n operations.
 *
 * One token is the kernel with one tile, of which 7 columns are idle: products then cost 0.125 mma a weight, where f16 or fp32 FMAs would cost 0.5 to 1 and a reduction over
 * lanes. So there is no other kernel for it.
 *
 * Lane-instructions a weight, counted in machine code for sm_90a (one round, without the copies of x, which are 54 to 64 a chunk), and how many an H200 can issue while 4.8 TB/s
 * bring that weight (132 SMs x 128 lanes at 1.755 GHz):
 *                       Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K F16, BF16
 *   n <= 8              2.4  2.5  3.2  3.2  2.3  2.8  3.3  2.7  3.5  3.5  2.2
 *   n <= 32             2.6  2.6  3.4  3.4  2.5  3.1  3.6  2.9  3.7  3.7  3.7
 *   n <= 64             3.8  3.9  4.7  4.6  3.7  4.2  4.8  4.1  4.9  4.9  5.5
 *   can be issued       3.5  3.9  4.2  4.6  6.6  2.0  2.7  3.6  4.3  5.1  12.4
 * Expected, not measured: one token of a large matrix at 85 to 90% of copy bandwidth for Q8_0, F16 and BF16, 75 to 85% for 4 to 6 bits, 65 to 75% for Q3_K and 55 to 65%
 * for Q2_K, which issue slots bound. 64 tokens: bound by mma.sync (2 * 64 operations a weight) for quantised types, by memory for 16-bit ones. */
#include "kernels/cuda/matmul_tile.cuh"

namespace
{

constexpr bool dense(quant t)
{
    return t == QUANT_F16 || t == QUANT_BF16;
}
/* Groups of 16 rows a warp: with more tokens two, so that x is read from shared memory half as often (2 KB a tile of tokens and step, against 1.2 KB of 4-bit weights a group). Dense
 * weights are 4 KB a group and step, and their registers are needed for what is on its way. */
constexpr uint32_t m_tiles(quant t, uint32_t n_tiles)
{
    return n_tiles >= 4 && !dense(t) ? 2 : 1;
}
/* Steps on their way beside the one in use. */
constexpr uint32_t ahead(quant t, uint32_t n_tiles)
{
    return dense(t) || n_tiles == 8 ? 1 : t == QUANT_Q8_0 || n_tiles == 4 ? 2 : 3;
}
/* Blocks that share an SM's registers. */
constexpr uint32_t blocks(quant t, uint32_t n_tiles)
{
    return m_tiles(t, n_tiles) == 2 ? 1 : 2;
}

template <quant T, uint32_t N>
cudaError_t launch(const matmul_args *a, cudaStream_t stream)
{
    return matmul_launch<T, N, m_tiles(T, N), ahead(T, N), blocks(T, N)>(*a, stream);
}
template <quant T>
cudaError_t by_tokens(const matmul_args *a, cudaStream_t stream)
{
    switch (matmul_small_form(T, a->n).n_tiles) {
    case 1:
        return launch<T, 1>(a, stream);
    case 2:
        return launch<T, 2>(a, stream);
    case 4:
        return launch<T, 4>(a, stream);
    default:
        return launch<T, 8>(a, stream);
    }
}

} // namespace

struct matmul_form matmul_small_form(enum quant type, uint32_t n)
{
    uint32_t n_tiles = n <= 8 ? 1 : n <= 16 ? 2 : n <= 32 ? 4 : 8;
    return {n_tiles, m_tiles(type, n_tiles), MIN(matmul_chunk(n_tiles), (uint32_t)MATMUL_WARPS)};
}

cudaError_t matmul_small(enum quant type, const struct matmul_args *a, cudaStream_t stream)
{
    switch (type) {
#define QUANT(sym, id, name, elems, bytes, act)                                                                        \
    case QUANT_##sym:                                                                                                  \
        if constexpr (QUANT_##sym != QUANT_F32)                                                                        \
            return by_tokens<QUANT_##sym>(a, stream);                                                                  \
        break;
#include "model/quants.def"
#undef QUANT
    default:
        break;
    }
    return cudaErrorInvalidValue;
}
