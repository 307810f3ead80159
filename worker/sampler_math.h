/* The exponentials of a vocabulary segment, by the fastest code this CPU runs; the same bits from every one. */
#ifndef WORKER_SAMPLER_MATH_H
#define WORKER_SAMPLER_MATH_H

#include <stdbool.h>
#include <stdint.h>

/* e[i] = fm_exp((z[i] - max) * scale). */
void sampler_math_exps(const float *z, uint32_t n, float max, float scale, float *e);
/* 8 chains in double, chain i mod 8, added as ((0+4)+(2+6)) + ((1+5)+(3+7)). */
double sampler_math_sum(const float *e, uint32_t n);
/* The largest; NaN when one is NaN or +inf; -inf for n = 0. */
float sampler_math_max(const float *z, uint32_t n);

#if defined(__x86_64__)
void sampler_math_exps_avx2(const float *z, uint32_t n, float max, float scale, float *e); /* sampler_math_avx2.c */
#endif

#endif
