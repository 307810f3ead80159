/* The AVX2 twin, and what this CPU can run. */
#include "fmath_lanes.h"

#if defined(__x86_64__)
#include "base/fmath_avx2.h"

bool fmath_lanes_avx2_usable(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool fmath_lanes_avx512_usable(void)
{
    return __builtin_cpu_supports("avx512f");
}
void fmath_lanes_exp_avx2(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(y + i, fm_exp_avx2(_mm256_loadu_ps(x + i)));
}
void fmath_lanes_log_avx2(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(y + i, fm_log_avx2(_mm256_loadu_ps(x + i)));
}
#else
static void none(const float *x, float *y, size_t n)
{
    (void)x, (void)y, (void)n;
}
bool fmath_lanes_avx2_usable(void)
{
    return false;
}
bool fmath_lanes_avx512_usable(void)
{
    return false;
}
void fmath_lanes_exp_avx2(const float *x, float *y, size_t n)
{
    none(x, y, n);
}
void fmath_lanes_log_avx2(const float *x, float *y, size_t n)
{
    none(x, y, n);
}
#endif
