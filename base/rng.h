/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC 2011): a counter-based
 * generator, so that the draw of (seed, choice, position) is the same on every worker, before and after a recovery. */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include "base/fmath.h" /* FM_FN: for GPUs too */

#include <stdint.h>

/* Section 4.3 of the paper and its table of constants. */
FM_FN void rng_philox(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}
/* A uniform in [0, 1) with 53 bits, a pure function of its arguments. */
FM_FN double rng_uniform(uint64_t seed, uint32_t choice, uint32_t position)
{
    uint32_t ctr[4] = {position, choice, 0, 0}, key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, out[4];
    rng_philox(ctr, key, out);
    uint64_t bits = ((uint64_t)out[0] << 32 | out[1]) >> 11;
    return (double)bits * 0x1p-53;
}
/* Bytes of the system's generator; never fails (aborts where the system has none). */
void rng_system(void *p, unsigned len);

#endif
