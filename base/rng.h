/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC 2011): a counter-based
 * generator, so that the draw of (seed, choice, position) is the same on every worker, before and after a recovery. */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdint.h>

void rng_philox(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4]);
/* A uniform in [0, 1) with 53 bits, a pure function of its arguments. */
double rng_uniform(uint64_t seed, uint32_t choice, uint32_t position);
/* Bytes of the system's generator; never fails (aborts where the system has none). */
void rng_system(void *p, unsigned len);

#endif
