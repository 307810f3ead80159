/* exp and log with the same bits everywhere: gcc and nvcc, scalar and vector, every ISA. Only +, -, *, explicit
 * fmaf, comparisons and bit moves; no contraction (the build sets -ffp-contract=off), no libm.
 * Inline, so that kernels vectorise the same formula with intrinsics. CUDA includes this header too. */
#ifndef BASE_FMATH_H
#define BASE_FMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* e^x, relative error below 2 ulp on [-87.3, 88.7]; 0 below -87.33 (no denormals), +inf above 88.72; NaN stays.
 * n = rint(x * log2e) by the 1.5*2^23 trick, r = fma(-n, ln2_hi, x), r = fma(-n, ln2_lo, r), a polynomial of degree 6
 * in Horner form by fmaf, times 2^n by exponent bits (in two factors where n is 128). */
static inline float fm_exp(float x);
/* ln x for x > 0, relative error below 2 ulp; -inf for 0, NaN below 0. */
static inline float fm_log(float x);

#endif
