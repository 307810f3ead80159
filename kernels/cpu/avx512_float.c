/* Products with F32, F16 and BF16 weights on AVX-512: a column of 16 rows is one vector, widened in registers; a tile is 16 rows x up to 6 tokens, with the 4 chains of
 * each token in 4 accumulators. */
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/cpu.h"

enum { WIDTH = 6, PREFETCH = 16384 };

CPU_INLINE __m512 column(enum quant type, const uint8_t *group, size_t k)
{
    if (type == QUANT_F32)
        return _mm512_loadu_ps((const float *)(const void *)(group + 64 * k));
    if (type == QUANT_F16)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(group + 32 * k)));
    __m512i pair = _mm512_loadu_si512((const void *)(group + 64 * (k / 2)));
    return _mm512_castsi512_ps(k % 2 ? _mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000))
                                     : _mm512_slli_epi32(pair, 16));
}

/* acc[t] of chain i += column k + i times the tokens. */
CPU_INLINE void add_column(enum quant type, int T, const struct cpu_ftile *c, uint32_t k, int i, __m512 acc[4][WIDTH])
{
    __m512 w = column(type, c->w, k + (uint32_t)i);
    CPU_UNROLL
    for (int t = 0; t < T; t++)
        acc[i][t] = _mm512_fmadd_ps(w, _mm512_set1_ps(c->x[(size_t)t * c->stride + k + (uint32_t)i]), acc[i][t]);
}

CPU_INLINE void tile(enum quant type, int T, const struct cpu_ftile *c)
{
    const size_t column_bytes = type == QUANT_F32 ? 64 : 32;
    __m512 acc[4][WIDTH];
    CPU_UNROLL
    for (int t = 0; t < T; t++)
        CPU_UNROLL
        for (int i = 0; i < 4; i++)
            acc[i][t] = _mm512_loadu_ps(c->acc + t * 64 + i * 16);
    uint32_t k = 0;
    for (; k + 4 <= c->n; k += 4) {
        for (size_t i = 0; i < 4 * column_bytes; i += 64)
            _mm_prefetch((const char *)c->w + k * column_bytes + PREFETCH + i, _MM_HINT_T1);
        CPU_UNROLL
        for (int i = 0; i < 4; i++)
            add_column(type, T, c, k, i, acc);
    }
    CPU_UNROLL
    for (int i = 0; i < 3; i++)
        if (k + (uint32_t)i < c->n)
            add_column(type, T, c, k, i, acc);
    CPU_UNROLL
    for (int t = 0; t < T; t++)
        CPU_UNROLL
        for (int i = 0; i < 4; i++)
            _mm512_storeu_ps(c->acc + t * 64 + i * 16, acc[i][t]);
}

#define TILE(type, T)                                                                                                  \
    static void tile_##type##_##T(const struct cpu_ftile *c)                                                           \
    {                                                                                                                  \
        tile(QUANT_##type, T, c);                                                                                      \
    }
#define TYPE(type) TILE(type, 1) TILE(type, 2) TILE(type, 3) TILE(type, 4) TILE(type, 5) TILE(type, 6)
TYPE(F32)
TYPE(F16)
TYPE(BF16)

#define TILES(type)                                                                                                    \
    [QUANT_##type] = {NULL, tile_##type##_1, tile_##type##_2, tile_##type##_3, tile_##type##_4, tile_##type##_5, tile_##type##_6}
static const struct cpu_matmul_f32 kernels = {.width = WIDTH, .tile = {TILES(F32), TILES(F16), TILES(BF16)}};

void AVX512_NAME(cpu_avx512_matmul_float)(const struct kernels_weight *w, const struct kernels_act *x,
                                          uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride)
{
    cpu_matmul_float(&kernels, w, x, row_begin, row_end, y, y_stride);
}
