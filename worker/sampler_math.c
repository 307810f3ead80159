#include "worker/sampler_math.h"

#include "base/fmath.h"

void sampler_math_exps(const float *z, uint32_t n, float max, float scale, float *e)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        sampler_math_exps_avx2(z, n, max, scale, e);
        return;
    }
#endif
    for (uint32_t i = 0; i < n; i++)
        e[i] = fm_exp((z[i] - max) * scale);
}

double sampler_math_sum(const float *e, uint32_t n)
{
    double c[8] = {0};
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (uint32_t j = 0; j < 8; j++)
            c[j] += (double)e[i + j];
    for (uint32_t j = 0; i + j < n; j++)
        c[j] += (double)e[i + j];
    return ((c[0] + c[4]) + (c[2] + c[6])) + ((c[1] + c[5]) + (c[3] + c[7]));
}

float sampler_math_max(const float *z, uint32_t n)
{
    float m[16], odd[16];
    for (uint32_t j = 0; j < 16; j++) {
        m[j] = -INFINITY;
        odd[j] = 0;
    }
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (uint32_t j = 0; j < 16; j++) {
            float v = z[i + j];
            m[j] = v > m[j] ? v : m[j];
            odd[j] += v < INFINITY ? 0.0f : 1.0f; /* NaN and +inf are not below infinity */
        }
    }
    for (uint32_t j = 0; i + j < n; j++) {
        m[j] = z[i + j] > m[j] ? z[i + j] : m[j];
        odd[j] += z[i + j] < INFINITY ? 0.0f : 1.0f;
    }
    float max = -INFINITY, bad = 0;
    for (uint32_t j = 0; j < 16; j++) {
        max = m[j] > max ? m[j] : max;
        bad += odd[j];
    }
    return bad > 0 ? NAN : max;
}
