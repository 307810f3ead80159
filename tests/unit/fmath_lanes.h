/* The vector twins of fmath.h over arrays, each compiled for its own instruction set (fmath_lanes.c). n is a multiple
 * of 16. Off x86 none is usable. */
#ifndef TESTS_FMATH_LANES_H
#define TESTS_FMATH_LANES_H

#include <stdbool.h>
#include <stddef.h>

typedef void fmath_lanes_fn(const float *x, float *y, size_t n);

bool fmath_lanes_avx2_usable(void);
bool fmath_lanes_avx512_usable(void);
fmath_lanes_fn fmath_lanes_exp_avx2, fmath_lanes_log_avx2;
fmath_lanes_fn fmath_lanes_exp_avx512, fmath_lanes_log_avx512;
fmath_lanes_fn fmath_lanes_exp_simde, fmath_lanes_log_simde; /* the AVX-512 twin on AVX2 hardware */

#endif
