/* The AVX-512 twin: compiled as it is, and (-DFMATH_SIMDE) with SIMDe's forms of the same intrinsics. */
#include "fmath_lanes.h"

#ifdef FMATH_SIMDE
#define LANES_EXP fmath_lanes_exp_simde
#define LANES_LOG fmath_lanes_log_simde
#else
#define LANES_EXP fmath_lanes_exp_avx512
#define LANES_LOG fmath_lanes_log_avx512
#endif

#if defined(__x86_64__)
#ifdef FMATH_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <string.h>
/* The two intrinsics that SIMDe 0.7 lacks, by halves. */
static inline simde__m512i srai_epi32(simde__m512i a, unsigned n)
{
    simde__m256i half[2];
    memcpy(half, &a, sizeof a);
    half[0] = simde_mm256_sra_epi32(half[0], simde_mm_cvtsi32_si128((int)n));
    half[1] = simde_mm256_sra_epi32(half[1], simde_mm_cvtsi32_si128((int)n));
    memcpy(&a, half, sizeof a);
    return a;
}
static inline simde__m512 cvtepi32_ps(simde__m512i a)
{
    simde__m256i in[2];
    simde__m256 out[2];
    simde__m512 r;
    memcpy(in, &a, sizeof a);
    out[0] = simde_mm256_cvtepi32_ps(in[0]);
    out[1] = simde_mm256_cvtepi32_ps(in[1]);
    memcpy(&r, out, sizeof r);
    return r;
}
#undef _mm512_srai_epi32
#undef _mm512_cvtepi32_ps
#define _mm512_srai_epi32(a, n) srai_epi32(a, n)
#define _mm512_cvtepi32_ps(a) cvtepi32_ps(a)
#endif
#include "base/fmath_avx512.h"

void LANES_EXP(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        _mm512_storeu_ps(y + i, fm_exp_avx512(_mm512_loadu_ps(x + i)));
}
void LANES_LOG(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        _mm512_storeu_ps(y + i, fm_log_avx512(_mm512_loadu_ps(x + i)));
}
#else
void LANES_EXP(const float *x, float *y, size_t n)
{
    (void)x, (void)y, (void)n;
}
void LANES_LOG(const float *x, float *y, size_t n)
{
    (void)x, (void)y, (void)n;
}
#endif
