/* The AVX-512 twins of fmath.h: 8 or 16 lanes, the very same bits as the scalar functions (tests/unit/test_fmath.c).
 * Include only from code compiled for AVX512F, or after SIMDe's avx512.h with FMATH_SIMDE defined. */
#ifndef BASE_FMATH_AVX512_H
#define BASE_FMATH_AVX512_H

#include "base/fmath.h"

#ifndef FMATH_SIMDE
#include <immintrin.h>
#endif

static inline __m512 fm_exp_avx512(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f), round = _mm512_set1_ps(FM_ROUND);
    __m512 t = _mm512_fmadd_ps(x, _mm512_set1_ps(FM_LOG2E), round);
    __m512 n = _mm512_sub_ps(t, round);
    __m512i ni = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(FM_ROUND_BITS));
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(FM_LN2_HI), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(FM_LN2_LO), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(FM_EXP_C6), r, _mm512_set1_ps(FM_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(FM_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(FM_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(FM_EXP_C2));
    p = _mm512_fmadd_ps(p, r, one);
    p = _mm512_fmadd_ps(p, r, one);
    const __m512i bias = _mm512_set1_epi32(127);
    __m512i half = _mm512_srai_epi32(ni, 1);
    __m512i rest = _mm512_sub_epi32(ni, half);
    p = _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(half, bias), 23)));
    p = _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(rest, bias), 23)));
    /* Lanes outside the range hold garbage so far. */
    __m512 inf = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000));
    p = _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, _mm512_set1_ps(FM_EXP_MIN), _CMP_LT_OQ), _mm512_setzero_ps());
    p = _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, _mm512_set1_ps(FM_EXP_MAX), _CMP_GT_OQ), inf);
    return _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

static inline __m512 fm_log_avx512(__m512 x)
{
    const __m512 zero = _mm512_setzero_ps();
    __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(0x1p-126f), _CMP_LT_OQ);
    __m512 v = _mm512_mask_mov_ps(x, tiny, _mm512_mul_ps(x, _mm512_set1_ps(0x1p23f)));
    __m512i i = _mm512_castps_si512(v);
    __m512i ei = _mm512_srai_epi32(_mm512_sub_epi32(i, _mm512_set1_epi32(FM_SQRT_HALF_BITS)), 23);
    __m512 m = _mm512_castsi512_ps(_mm512_sub_epi32(i, _mm512_slli_epi32(ei, 23)));
    __m512 f = _mm512_sub_ps(m, _mm512_set1_ps(1.0f));
    __m512 e = _mm512_add_ps(_mm512_cvtepi32_ps(ei), _mm512_mask_mov_ps(zero, tiny, _mm512_set1_ps(-23.0f)));
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(FM_LOG_C10), f, _mm512_set1_ps(FM_LOG_C9));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(FM_LOG_C8));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(FM_LOG_C7));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(FM_LOG_C6));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(FM_LOG_C5));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(FM_LOG_C4));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(FM_LOG_C3));
    __m512 ff = _mm512_mul_ps(f, f);
    __m512 y = _mm512_mul_ps(p, _mm512_mul_ps(ff, f));
    y = _mm512_fmadd_ps(_mm512_set1_ps(-0.5f), ff, y);
    y = _mm512_fmadd_ps(e, _mm512_set1_ps(FM_LN2_LO), y);
    __m512 z = _mm512_fmadd_ps(e, _mm512_set1_ps(FM_LN2_HI), _mm512_add_ps(f, y));
    __m512 nan = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
    __m512 inf = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000));
    __m512 minus_inf = _mm512_castsi512_ps(_mm512_set1_epi32((int)0xff800000u));
    z = _mm512_mask_mov_ps(z, _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ), nan);
    z = _mm512_mask_mov_ps(z, _mm512_cmp_ps_mask(x, zero, _CMP_EQ_OQ), minus_inf);
    z = _mm512_mask_mov_ps(z, _mm512_cmp_ps_mask(x, inf, _CMP_EQ_OQ), inf);
    return _mm512_mask_mov_ps(z, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

#endif
