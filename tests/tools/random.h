/* Random numbers of tests: from the same seed the same. */
#ifndef TESTS_TOOLS_RANDOM_H
#define TESTS_TOOLS_RANDOM_H

#include <math.h>
#include <stdint.h>

static uint64_t lcg = 1; /* the state; a test may set it */
static inline double uniform01(void)
{
    lcg = lcg * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(lcg >> 11) * 0x1p-53;
}
static inline float normal(void)
{
    return (float)(sqrt(-2 * log(1 - uniform01())) * cos(2 * M_PI * uniform01()));
}

#endif
