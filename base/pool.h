/* The threads of one worker: they live as long as the worker and run one function together (SPMD).
 *
 * pool_run gives fn to every thread, the caller's included (index 0), and returns when all are done. Inside,
 * pool_barrier joins them. Waiting spins for at most spin_us, then sleeps in a futex; spin_us 0 never spins
 * (for machines with fewer cores than threads). One caller at a time. */
#ifndef BASE_POOL_H
#define BASE_POOL_H

#include "base/err.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pool;
typedef void pool_fn(void *arg, unsigned ith, unsigned nth);

/* cpus: n_threads CPU numbers to pin to (also the caller's thread), or NULL for no pinning. */
enum err pool_create(unsigned n_threads, const int *cpus, unsigned spin_us, struct pool **out);
void pool_destroy(struct pool **p);
unsigned pool_n_threads(const struct pool *p);
void pool_run(struct pool *p, pool_fn *fn, void *arg);
/* Every thread of the running pool_run calls it; acts as acquire and release among them. */
void pool_barrier(struct pool *p);

/* [*begin, *end): part ith of nth of n items, cut at multiples of `unit`. */
static inline void pool_part(uint32_t n, uint32_t unit, unsigned ith, unsigned nth, uint32_t *begin, uint32_t *end)
{
    uint64_t units = ((uint64_t)n + unit - 1) / unit;
    uint64_t b = units * ith / nth * unit, e = units * (ith + 1) / nth * unit;
    *begin = (uint32_t)(b < n ? b : n);
    *end = (uint32_t)(e < n ? e : n);
}

/* Items shared out while they are worked on: each thread has the stretch that pool_part gives it, takes it piece by piece from the front (one stream of memory), and then
 * helps where most is left, from the end: a core that stalls holds the others up for one piece. Set by one thread, before a barrier that all pass; taken by all. */
struct pool_share { /* an array, one for each thread */
    _Alignas(64) atomic_uint_fast64_t range; /* begin << 32 | end */
};
void pool_share_set(struct pool_share *s, unsigned n_threads, uint32_t n, uint32_t unit);
/* The next piece for thread ith; false: none is left. Pieces are of `piece` items, the last of a stretch of fewer. */
bool pool_share_take(struct pool_share *s, unsigned ith, unsigned n_threads, uint32_t piece, uint32_t *begin, uint32_t *end);

#endif
