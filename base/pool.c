/* The thread pool of pool.h.
 *
 * Three words carry everything: `go` counts the runs (a worker waits for the next number), `pending` counts the threads
 * of a run that are not done (the caller waits for 0), `phase` counts the barriers passed (with `arrived` inside one).
 * A waiter spins on its word for at most spin_us and then sleeps in a futex on it. A sleeper first adds itself to the
 * word's `sleepers`, and a waker changes the word before it reads `sleepers`, both sequentially consistent: either the
 * waker sees the sleeper, or the sleeper's futex sees the changed word and returns. So nobody is woken by a system call
 * when nobody sleeps. Orders are on the variables, no fences: ThreadSanitizer follows every edge. */
#include "base/pool.h"

#include "base/check.h"
#include "base/clock.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A word that threads wait on; a cache line of its own. */
struct word {
    _Alignas(64) atomic_uint value;
    atomic_uint sleepers;
};

struct worker {
    struct pool *pool;
    pthread_t thread;
    unsigned ith;
    bool started;
};

struct pool {
    struct word go, pending, phase;
    _Alignas(64) atomic_uint arrived;
    _Alignas(64) pool_fn *fn; /* published by `go` */
    void *arg;
    bool stop;
    unsigned n_threads, spin_us;
    struct worker *workers; /* n_threads, [0] is the caller */
};

static void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void futex(struct word *w, int op, unsigned value)
{
    syscall(SYS_futex, &w->value, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Returns when the word differs from `old`; everything before the change is visible. */
static void word_wait(struct word *w, unsigned old, unsigned spin_us)
{
    if (spin_us > 0) {
        uint64_t until = clock_ns() + spin_us * 1000ull;
        do {
            for (int i = 0; i < 64; i++) {
                if (atomic_load_explicit(&w->value, memory_order_acquire) != old)
                    return;
                cpu_relax();
            }
        } while (clock_ns() < until);
    }
    if (atomic_load_explicit(&w->value, memory_order_acquire) != old)
        return;
    atomic_fetch_add(&w->sleepers, 1);
    while (atomic_load(&w->value) == old)
        futex(w, FUTEX_WAIT, old);
    atomic_fetch_sub(&w->sleepers, 1);
}

/* After a sequentially consistent change of the word. */
static void word_wake(struct word *w)
{
    if (atomic_load(&w->sleepers) > 0)
        futex(w, FUTEX_WAKE, ~0u >> 1);
}

static void *worker_main(void *arg)
{
    struct worker *self = arg;
    struct pool *p = self->pool;
    for (unsigned seen = 0;; seen++) {
        word_wait(&p->go, seen, p->spin_us);
        if (p->stop)
            return NULL;
        p->fn(p->arg, self->ith, p->n_threads);
        if (atomic_fetch_sub(&p->pending.value, 1) == 1)
            word_wake(&p->pending);
    }
}

static enum err pin(pthread_t thread, int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < 0 || cpu >= CPU_SETSIZE)
        return err_set(ERR_INVALID, "cpu %d: cannot pin a thread to it", cpu);
    CPU_SET(cpu, &set);
    int rc = pthread_setaffinity_np(thread, sizeof set, &set);
    return rc == 0 ? ERR_OK : err_set(ERR_INVALID, "cpu %d: cannot pin a thread to it: %s", cpu, strerror(rc));
}

/* Signals are the main thread's business: the workers block them all. */
static int start(struct worker *w)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    w->started = rc == 0;
    return rc;
}

enum err pool_create(unsigned n_threads, const int *cpus, unsigned spin_us, struct pool **out)
{
    ASSERT(n_threads > 0);
    enum err e = ERR_OK;
    *out = NULL;
    struct pool *p = aligned_alloc(64, ROUND_UP(sizeof *p, (size_t)64));
    struct worker *workers = calloc(n_threads, sizeof *workers);
    if (!p || !workers) {
        free(p);
        free(workers);
        return err_set(ERR_NOMEM, "a pool of %u threads", n_threads);
    }
    memset(p, 0, sizeof *p);
    p->n_threads = n_threads;
    p->spin_us = n_threads > 1 ? spin_us : 0;
    p->workers = workers;
    if (cpus)
        TRY_GOTO(pin(pthread_self(), cpus[0]), fail);
    for (unsigned i = 1; i < n_threads; i++) {
        struct worker *w = &p->workers[i];
        w->pool = p;
        w->ith = i;
        int rc = start(w);
        if (rc != 0) {
            e = err_set(ERR_NOMEM, "thread %u of %u cannot be started: %s", i, n_threads, strerror(rc));
            goto fail;
        }
        if (cpus)
            TRY_GOTO(pin(w->thread, cpus[i]), fail);
    }
    *out = p;
    return ERR_OK;
fail:
    pool_destroy(&p);
    return e;
}

void pool_destroy(struct pool **pp)
{
    struct pool *p = *pp;
    if (!p)
        return;
    p->stop = true;
    atomic_fetch_add(&p->go.value, 1);
    word_wake(&p->go);
    for (unsigned i = 1; i < p->n_threads; i++)
        if (p->workers[i].started)
            pthread_join(p->workers[i].thread, NULL);
    free(p->workers);
    free(p);
    *pp = NULL;
}

unsigned pool_n_threads(const struct pool *p)
{
    return p->n_threads;
}

void pool_run(struct pool *p, pool_fn *fn, void *arg)
{
    p->fn = fn;
    p->arg = arg;
    if (p->n_threads > 1) {
        atomic_store_explicit(&p->pending.value, p->n_threads - 1, memory_order_relaxed);
        atomic_fetch_add(&p->go.value, 1);
        word_wake(&p->go);
    }
    fn(arg, 0, p->n_threads);
    unsigned left;
    while ((left = atomic_load_explicit(&p->pending.value, memory_order_acquire)) > 0)
        word_wait(&p->pending, left, p->spin_us);
}

void pool_barrier(struct pool *p)
{
    if (p->n_threads == 1)
        return;
    unsigned phase = atomic_load_explicit(&p->phase.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) + 1 < p->n_threads) {
        word_wait(&p->phase, phase, p->spin_us);
        return;
    }
    atomic_store_explicit(&p->arrived, 0, memory_order_relaxed); /* nobody arrives before the phase changes */
    atomic_fetch_add(&p->phase.value, 1);
    word_wake(&p->phase);
}

static uint64_t pack(uint32_t begin, uint32_t end)
{
    return (uint64_t)begin << 32 | end;
}

static uint32_t left_of(uint64_t range)
{
    return (uint32_t)range - (uint32_t)(range >> 32);
}

void pool_share_set(struct pool_share *s, unsigned n_threads, uint32_t n, uint32_t unit)
{
    for (unsigned i = 0; i < n_threads; i++) {
        uint32_t begin, end;
        pool_part(n, unit, i, n_threads, &begin, &end);
        atomic_store_explicit(&s[i].range, pack(begin, end), memory_order_relaxed);
    }
}

bool pool_share_take(struct pool_share *s, unsigned ith, unsigned n_threads, uint32_t piece, uint32_t *begin, uint32_t *end)
{
    for (;;) {
        unsigned from = ith;
        uint64_t r = atomic_load_explicit(&s[ith].range, memory_order_relaxed);
        if (left_of(r) == 0) /* done with its own: who has most left? */
            for (unsigned i = 0; i < n_threads; i++) {
                uint64_t other = atomic_load_explicit(&s[i].range, memory_order_relaxed);
                if (left_of(other) > left_of(r)) {
                    from = i;
                    r = other;
                }
            }
        uint32_t left = left_of(r), n = left < piece ? left : piece;
        if (left == 0)
            return false;
        *begin = from == ith ? (uint32_t)(r >> 32) : (uint32_t)r - n;
        *end = *begin + n;
        uint64_t rest = from == ith ? pack(*end, (uint32_t)r) : pack((uint32_t)(r >> 32), *begin);
        if (atomic_compare_exchange_strong_explicit(&s[from].range, &r, rest, memory_order_relaxed, memory_order_relaxed))
            return true;
    }
}
