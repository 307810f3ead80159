/* exp and log with the same bits everywhere: gcc and nvcc, scalar and vector, every ISA. Only +, -, *, explicit
 * fmaf, comparisons and bit moves; no contraction (the build sets -ffp-contract=off), no libm but fmaf, which is exact.
 * Inline, so that kernels vectorise the same formula with intrinsics (fmath_avx2.h, fmath_avx512.h). CUDA includes
 * this header too.
 *
 * The coefficients are minimax fits made for these forms (weighted least squares, iterated, on Chebyshev points) and
 * rounded to float: exp 3e-9 relative on |r| <= 0.35, log 6e-9 relative on [sqrt(1/2), sqrt(2)]; measured with all
 * roundings, at worst 0.88 and 0.86 ulp (tests/unit/test_fmath.c). The twins use the same macros, and every operation
 * of the scalar form has one lane-wise counterpart, in the same order. */
#ifndef BASE_FMATH_H
#define BASE_FMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FM_FN static __host__ __device__ inline
#else
#define FM_FN static inline
#endif

#define FM_EXP_MIN (-87.33f) /* below: 0 (the result would be a denormal) */
#define FM_EXP_MAX 88.72f    /* above: +inf */
#define FM_LOG2E 0x1.715476p+0f
#define FM_ROUND 12582912.0f /* 1.5 * 2^23: adding it leaves rint() in the low bits */
#define FM_ROUND_BITS 0x4b400000
#define FM_LN2_HI 0x1.63p-1f /* 9 bits: a product with |n| <= 151 is exact */
#define FM_LN2_LO (-0x1.bd0106p-13f)
#define FM_EXP_C2 0x1.fffffcp-2f
#define FM_EXP_C3 0x1.55548ap-3f
#define FM_EXP_C4 0x1.555916p-5f
#define FM_EXP_C5 0x1.123fc6p-7f
#define FM_EXP_C6 0x1.6a1a72p-10f
#define FM_SQRT_HALF_BITS 0x3f3504f3
#define FM_LOG_C3 0x1.555554p-2f
#define FM_LOG_C4 (-0x1.000232p-2f)
#define FM_LOG_C5 0x1.99a060p-3f
#define FM_LOG_C6 (-0x1.546f2ap-3f)
#define FM_LOG_C7 0x1.22cf4cp-3f
#define FM_LOG_C8 (-0x1.0d9a3ep-3f)
#define FM_LOG_C9 0x1.05b75ep-3f
#define FM_LOG_C10 (-0x1.392f3cp-4f)

FM_FN int32_t fm_bits(float x)
{
    int32_t i;
    memcpy(&i, &x, sizeof i);
    return i;
}
FM_FN float fm_from_bits(int32_t i)
{
    float x;
    memcpy(&x, &i, sizeof x);
    return x;
}

/* e^x, relative error below 2 ulp on [-87.33, 88.72]; 0 below -87.33 (no denormals), +inf above 88.72; NaN stays.
 * n = rint(x * log2e), r = x - n ln2 in two pieces, a polynomial of degree 6 in Horner form, times 2^n in two factors.
 */
FM_FN float fm_exp(float x)
{
    if (x != x)
        return x;
    if (x < FM_EXP_MIN)
        return 0.0f;
    if (x > FM_EXP_MAX)
        return fm_from_bits(0x7f800000);
    float t = fmaf(x, FM_LOG2E, FM_ROUND);
    float n = t - FM_ROUND;
    int32_t ni = fm_bits(t) - FM_ROUND_BITS;
    float r = fmaf(-n, FM_LN2_HI, x);
    r = fmaf(-n, FM_LN2_LO, r);
    float p = fmaf(FM_EXP_C6, r, FM_EXP_C5);
    p = fmaf(p, r, FM_EXP_C4);
    p = fmaf(p, r, FM_EXP_C3);
    p = fmaf(p, r, FM_EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    int32_t half = ni >> 1; /* rounds down, also below 0 */
    p *= fm_from_bits((int32_t)((uint32_t)(half + 127) << 23));
    return p * fm_from_bits((int32_t)((uint32_t)(ni - half + 127) << 23));
}

/* ln x for x > 0 (denormals too), relative error below 2 ulp; -inf for +0 and -0, NaN below 0, +inf for +inf.
 * x = m 2^e with m in [sqrt(1/2), sqrt(2)), f = m - 1, ln x = f - f^2/2 + f^3 P(f) + e ln2 in two pieces. */
FM_FN float fm_log(float x)
{
    if (x != x)
        return x;
    if (x < 0.0f)
        return fm_from_bits(0x7fc00000);
    if (x == 0.0f)
        return fm_from_bits((int32_t)0xff800000u);
    if (fm_bits(x) == 0x7f800000)
        return x;
    float shift = 0.0f;
    if (x < 0x1p-126f) {
        x *= 0x1p23f;
        shift = -23.0f;
    }
    int32_t ei = (fm_bits(x) - FM_SQRT_HALF_BITS) >> 23;
    float f = fm_from_bits((int32_t)((uint32_t)fm_bits(x) - ((uint32_t)ei << 23))) - 1.0f;
    float e = (float)ei + shift;
    float p = fmaf(FM_LOG_C10, f, FM_LOG_C9);
    p = fmaf(p, f, FM_LOG_C8);
    p = fmaf(p, f, FM_LOG_C7);
    p = fmaf(p, f, FM_LOG_C6);
    p = fmaf(p, f, FM_LOG_C5);
    p = fmaf(p, f, FM_LOG_C4);
    p = fmaf(p, f, FM_LOG_C3);
    float ff = f * f;
    float y = p * (ff * f);
    y = fmaf(-0.5f, ff, y);
    y = fmaf(e, FM_LN2_LO, y);
    float z = f + y;
    return fmaf(e, FM_LN2_HI, z);
}

#endif
