/* Products with F32, F16 and BF16 weights on AVX-512: a column of 16 rows is one vector. One token: 4 chains in 4
 * registers. More: for each chain a tile of 16 rows x up to 16 tokens on a widened panel (see avx2_float.c). */
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/cpu.h"

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

CPU_INLINE void one(enum quant type, const uint8_t *group, const float *x, uint32_t k, float *out)
{
    __m512 c[4];
    CPU_UNROLL
    for (int i = 0; i < 4; i++)
        c[i] = _mm512_setzero_ps();
    uint32_t at = 0, step = type == QUANT_F32 ? 64 : 32;
    for (; at + 4 <= k; at += 4) {
        for (uint32_t i = 0; i < 4 * step; i += 64)
            _mm_prefetch((const char *)group + (size_t)at * step + 2048 + i, _MM_HINT_T0);
        CPU_UNROLL
        for (int i = 0; i < 4; i++)
            c[i] = _mm512_fmadd_ps(column(type, group, at + (uint32_t)i), _mm512_set1_ps(x[at + (uint32_t)i]), c[i]);
    }
    CPU_UNROLL
    for (int i = 0; i < 3; i++)
        if (at + (uint32_t)i < k)
            c[i] = _mm512_fmadd_ps(column(type, group, at + (uint32_t)i), _mm512_set1_ps(x[at + (uint32_t)i]), c[i]);
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_add_ps(c[0], c[1]), _mm512_add_ps(c[2], c[3])));
}

CPU_INLINE void panel(enum quant type, const uint8_t *group, uint32_t k0, uint32_t n, float *out)
{
    for (uint32_t k = 0; k < n; k++)
        _mm512_storeu_ps(out + (k % 4 * (CPU_PANEL / 4) + k / 4) * 16, column(type, group, k0 + k));
}

CPU_INLINE void tile(int T, const struct cpu_ftile *c)
{
    for (uint32_t chain = 0; chain < 4; chain++) {
        const float *w = c->w + chain * (CPU_PANEL / 4 * 16), *x = c->x + chain;
        __m512 a[CPU_TILE_MAX];
        CPU_UNROLL
        for (int t = 0; t < T; t++)
            a[t] = _mm512_loadu_ps(c->acc + t * 64 + chain * 16);
        for (uint32_t k = chain; k < c->n; k += 4, w += 16, x += 4) {
            __m512 v = _mm512_loadu_ps(w);
            CPU_UNROLL
            for (int t = 0; t < T; t++)
                a[t] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[(size_t)t * c->k]), a[t]);
        }
        CPU_UNROLL
        for (int t = 0; t < T; t++)
            _mm512_storeu_ps(c->acc + t * 64 + chain * 16, a[t]);
    }
}

#define TILE(T)                                                                                                        \
    static void tile_##T(const struct cpu_ftile *c)                                                                    \
    {                                                                                                                  \
        tile(T, c);                                                                                                    \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)
TILE(7)
TILE(8)
TILE(9)
TILE(10)
TILE(11)
TILE(12)
TILE(13)
TILE(14)
TILE(15)
TILE(16)
#define TYPE(type)                                                                                                     \
    static void one_##type(const uint8_t *group, const float *x, uint32_t k, float *out)                               \
    {                                                                                                                  \
        one(QUANT_##type, group, x, k, out);                                                                           \
    }                                                                                                                  \
    static void panel_##type(const uint8_t *group, uint32_t k0, uint32_t n, float *out)                                \
    {                                                                                                                  \
        panel(QUANT_##type, group, k0, n, out);                                                                        \
    }
TYPE(F32)
TYPE(F16)
TYPE(BF16)

static const struct cpu_matmul_f32 kernels = {
    .width = 16,
    .tile = {NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6, tile_7, tile_8, tile_9, tile_10, tile_11, tile_12,
             tile_13, tile_14, tile_15, tile_16},
    .one = {[QUANT_F32] = one_F32, [QUANT_F16] = one_F16, [QUANT_BF16] = one_BF16},
    .panel = {[QUANT_F32] = panel_F32, [QUANT_F16] = panel_F16, [QUANT_BF16] = panel_BF16},
};

void AVX512_NAME(cpu_avx512_matmul_float)(const struct kernels_weight *w, const struct kernels_act *x,
                                          uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride)
{
    cpu_matmul_float(&kernels, w, x, row_begin, row_end, y, y_stride);
}
