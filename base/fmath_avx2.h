/* The AVX2 twins of fmath.h: 8 or 16 lanes, the very same bits as the scalar functions (tests/unit/test_fmath.c).
 * Include only from code compiled for AVX2 and FMA. */
#ifndef BASE_FMATH_AVX2_H
#define BASE_FMATH_AVX2_H

#include "base/fmath.h"

#include <immintrin.h>

static inline __m256 fm_exp_avx2(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f), round = _mm256_set1_ps(FM_ROUND);
    __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(FM_LOG2E), round);
    __m256 n = _mm256_sub_ps(t, round);
    __m256i ni = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(FM_ROUND_BITS));
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(FM_LN2_HI), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(FM_LN2_LO), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(FM_EXP_C6), r, _mm256_set1_ps(FM_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(FM_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(FM_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(FM_EXP_C2));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i half = _mm256_srai_epi32(ni, 1);
    __m256i rest = _mm256_sub_epi32(ni, half);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
    /* Lanes outside the range hold garbage so far. */
    p = _mm256_blendv_ps(p, _mm256_setzero_ps(), _mm256_cmp_ps(x, _mm256_set1_ps(FM_EXP_MIN), _CMP_LT_OQ));
    __m256 inf = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
    p = _mm256_blendv_ps(p, inf, _mm256_cmp_ps(x, _mm256_set1_ps(FM_EXP_MAX), _CMP_GT_OQ));
    return _mm256_blendv_ps(p, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

static inline __m256 fm_log_avx2(__m256 x)
{
    const __m256 zero = _mm256_setzero_ps();
    __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(0x1p-126f), _CMP_LT_OQ);
    __m256 v = _mm256_blendv_ps(x, _mm256_mul_ps(x, _mm256_set1_ps(0x1p23f)), tiny);
    __m256i i = _mm256_castps_si256(v);
    __m256i ei = _mm256_srai_epi32(_mm256_sub_epi32(i, _mm256_set1_epi32(FM_SQRT_HALF_BITS)), 23);
    __m256 m = _mm256_castsi256_ps(_mm256_sub_epi32(i, _mm256_slli_epi32(ei, 23)));
    __m256 f = _mm256_sub_ps(m, _mm256_set1_ps(1.0f));
    __m256 e = _mm256_add_ps(_mm256_cvtepi32_ps(ei), _mm256_and_ps(tiny, _mm256_set1_ps(-23.0f)));
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(FM_LOG_C10), f, _mm256_set1_ps(FM_LOG_C9));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(FM_LOG_C8));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(FM_LOG_C7));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(FM_LOG_C6));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(FM_LOG_C5));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(FM_LOG_C4));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(FM_LOG_C3));
    __m256 ff = _mm256_mul_ps(f, f);
    __m256 y = _mm256_mul_ps(p, _mm256_mul_ps(ff, f));
    y = _mm256_fmadd_ps(_mm256_set1_ps(-0.5f), ff, y);
    y = _mm256_fmadd_ps(e, _mm256_set1_ps(FM_LN2_LO), y);
    __m256 z = _mm256_fmadd_ps(e, _mm256_set1_ps(FM_LN2_HI), _mm256_add_ps(f, y));
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    __m256 inf = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
    __m256 minus_inf = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xff800000u));
    z = _mm256_blendv_ps(z, nan, _mm256_cmp_ps(x, zero, _CMP_LT_OQ));
    z = _mm256_blendv_ps(z, minus_inf, _mm256_cmp_ps(x, zero, _CMP_EQ_OQ));
    z = _mm256_blendv_ps(z, inf, _mm256_cmp_ps(x, inf, _CMP_EQ_OQ));
    return _mm256_blendv_ps(z, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

#endif
