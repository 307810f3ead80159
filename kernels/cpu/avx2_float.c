/* Products with F32, F16 and BF16 weights on AVX2: every output has 4 chains over k mod 4. One token: a group's 16 rows
 * x 4 chains in 8 registers, weights widened as they stream. More tokens: a panel of 256 columns widened once, then for
 * each chain a tile of 16 rows x up to 6 tokens in 12 registers. */
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/cpu.h"

#include <immintrin.h>

/* Half h (8 rows) of column k. */
CPU_INLINE __m256 column(enum quant type, const uint8_t *group, size_t k, int h)
{
    if (type == QUANT_F32)
        return _mm256_loadu_ps((const float *)(const void *)(group + 64 * k + 32 * h));
    if (type == QUANT_F16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(group + 32 * k + 16 * h)));
    __m256i pair = _mm256_loadu_si256((const __m256i *)(const void *)(group + 64 * (k / 2) + 32 * h));
    return _mm256_castsi256_ps(k % 2 ? _mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000))
                                     : _mm256_slli_epi32(pair, 16));
}

CPU_INLINE void one(enum quant type, const uint8_t *group, const float *x, uint32_t k, float *out)
{
    __m256 c[4][2];
    for (int i = 0; i < 4; i++)
        c[i][0] = c[i][1] = _mm256_setzero_ps();
    uint32_t at = 0, step = type == QUANT_F32 ? 64 : 32;
    for (; at + 4 <= k; at += 4) {
        for (uint32_t i = 0; i < 4 * step; i += 64)
            _mm_prefetch((const char *)group + (size_t)at * step + 2048 + i, _MM_HINT_T0);
        CPU_UNROLL
        for (int i = 0; i < 4; i++)
            for (int h = 0; h < 2; h++)
                c[i][h] = _mm256_fmadd_ps(column(type, group, at + i, h), _mm256_set1_ps(x[at + i]), c[i][h]);
    }
    CPU_UNROLL
    for (uint32_t i = 0; i < 3; i++)
        for (int h = 0; h < 2 && at + i < k; h++)
            c[i][h] = _mm256_fmadd_ps(column(type, group, at + i, h), _mm256_set1_ps(x[at + i]), c[i][h]);
    for (int h = 0; h < 2; h++)
        _mm256_storeu_ps(out + 8 * h, _mm256_add_ps(_mm256_add_ps(c[0][h], c[1][h]), _mm256_add_ps(c[2][h], c[3][h])));
}

CPU_INLINE void panel(enum quant type, const uint8_t *group, uint32_t k0, uint32_t n, float *out)
{
    const size_t col = type == QUANT_F32 ? 64 : 32;
    for (uint32_t k = 0; k < n; k++) {
        if (k * col % 64 == 0) /* the next panel comes while this one is multiplied */
            _mm_prefetch((const char *)group + (k0 + CPU_PANEL + k) * col, _MM_HINT_T1);
        for (int h = 0; h < 2; h++)
            _mm256_storeu_ps(out + (k % 4 * (CPU_PANEL / 4) + k / 4) * 16 + 8 * h, column(type, group, k0 + k, h));
    }
}

CPU_INLINE void tile(int T, const struct cpu_ftile *c)
{
    for (uint32_t chain = 0; chain < 4; chain++) {
        const float *w = (const float *)c->w + chain * (CPU_PANEL / 4 * 16), *x = c->x + chain;
        __m256 a[6][2];
        CPU_UNROLL
        for (int t = 0; t < T; t++)
            for (int h = 0; h < 2; h++)
                a[t][h] = _mm256_loadu_ps(c->acc + t * 64 + chain * 16 + 8 * h);
        for (uint32_t k = chain; k < c->n; k += 4, w += 16, x += 4) {
            __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
            CPU_UNROLL
            for (int t = 0; t < T; t++) {
                __m256 v = _mm256_set1_ps(x[(size_t)t * c->stride]);
                a[t][0] = _mm256_fmadd_ps(w0, v, a[t][0]);
                a[t][1] = _mm256_fmadd_ps(w1, v, a[t][1]);
            }
        }
        CPU_UNROLL
        for (int t = 0; t < T; t++)
            for (int h = 0; h < 2; h++)
                _mm256_storeu_ps(c->acc + t * 64 + chain * 16 + 8 * h, a[t][h]);
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
    .width = 6,
#define TILES {NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6}
    .tile = {[QUANT_F32] = TILES, [QUANT_F16] = TILES, [QUANT_BF16] = TILES},
    .one = {[QUANT_F32] = one_F32, [QUANT_F16] = one_F16, [QUANT_BF16] = one_BF16},
    .panel = {[QUANT_F32] = panel_F32, [QUANT_F16] = panel_F16, [QUANT_BF16] = panel_BF16},
};

void cpu_avx2_matmul_float(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin,
                           uint32_t row_end, float *y, size_t y_stride)
{
    cpu_matmul_float(&kernels, w, x, row_begin, row_end, y, y_stride);
}
