/* Where the AVX-512 files get their intrinsics: the compiler, or, with RACKLM_SIMDE, the SIMDe library, which computes
 * them on any machine. The test build compiles them a second time that way, so that their bits are checked where no CPU
 * has AVX-512. Tables get the suffix _simde then. */
#ifndef KERNELS_CPU_AVX512_H
#define KERNELS_CPU_AVX512_H

#include "kernels/cpu/cpu.h"

#ifdef RACKLM_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

/* What SIMDe lacks (0.7.4), from two halves. */
#define AVX512_HALVES(name, ret, half, arg, arg_half, fn)                                                              \
    static inline ret name(arg a)                                                                                      \
    {                                                                                                                  \
        arg_half in[2];                                                                                                \
        half out[2];                                                                                                   \
        ret r;                                                                                                         \
        __builtin_memcpy(in, &a, sizeof a);                                                                            \
        out[0] = fn(in[0]);                                                                                            \
        out[1] = fn(in[1]);                                                                                            \
        __builtin_memcpy(&r, out, sizeof r);                                                                           \
        return r;                                                                                                      \
    }
AVX512_HALVES(avx512_cvtph_ps, __m512, __m256, __m256i, __m128i, _mm256_cvtph_ps)
AVX512_HALVES(avx512_cvtepu16_epi32, __m512i, __m256i, __m256i, __m128i, _mm256_cvtepu16_epi32)
AVX512_HALVES(avx512_cvtepi32_ps, __m512, __m256, __m512i, __m256i, _mm256_cvtepi32_ps)
#define AVX512_SRAI24(v) _mm256_srai_epi32(v, 24)
AVX512_HALVES(avx512_srai24, __m512i, __m256i, __m512i, __m256i, AVX512_SRAI24)
#undef _mm512_cvtph_ps
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi32_ps
#undef _mm512_srai_epi32
#define _mm512_cvtph_ps(a) avx512_cvtph_ps(a)
#define _mm512_cvtepu16_epi32(a) avx512_cvtepu16_epi32(a)
#define _mm512_cvtepi32_ps(a) avx512_cvtepi32_ps(a)
#define _mm512_srai_epi32(a, n) avx512_srai24(a) /* the only shift used is 24 */
/* Counts need not be constants, nor loops unrolled: the build stays short. */
static inline __m512i avx512_shift16(__m512i v, int left)
{
    __m256i h[2];
    __m128i n = _mm_cvtsi32_si128(left > 0 ? left : -left);
    __builtin_memcpy(h, &v, sizeof h);
    for (int i = 0; i < 2; i++)
        h[i] = left > 0 ? _mm256_sll_epi16(h[i], n) : _mm256_srl_epi16(h[i], n);
    __builtin_memcpy(&v, h, sizeof h);
    return v;
}
#undef CPU_UNROLL
#define CPU_UNROLL
#define AVX512_NAME(name) name##_simde
#else
#include <immintrin.h>
/* Each byte's bits to the left, or with a negative count to the right; bits that cross into a neighbour are masked by
 * the caller. */
CPU_INLINE __m512i avx512_shift16(__m512i v, int left)
{
    return left > 0 ? _mm512_slli_epi16(v, (unsigned)left) : left < 0 ? _mm512_srli_epi16(v, (unsigned)-left) : v;
}
#define AVX512_NAME(name) name
#endif

void AVX512_NAME(cpu_avx512_matmul_q8)(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin,
                                       uint32_t row_end, float *y, size_t y_stride);
void AVX512_NAME(cpu_avx512_matmul_float)(const struct kernels_weight *w, const struct kernels_act *x,
                                          uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride);

#endif
