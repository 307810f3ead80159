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
