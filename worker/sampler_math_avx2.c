/* Compiled for AVX2 and FMA (worker/CMakeLists.txt); called only where the CPU has them. */
#include "base/fmath_avx2.h"
#include "worker/sampler_math.h"

void sampler_math_exps_avx2(const float *z, uint32_t n, float max, float scale, float *e)
{
    __m256 m = _mm256_set1_ps(max), s = _mm256_set1_ps(scale);
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(e + i, fm_exp_avx2(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(z + i), m), s)));
    for (; i < n; i++)
        e[i] = fm_exp((z[i] - max) * scale);
}
