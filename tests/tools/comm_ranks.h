/* A case of several ranks, each a thread (over comm_local) or a forked process (over UCX, as in production): what tests of communicators share. Every program includes it
 * once, so its functions stand here. */
#ifndef TESTS_TOOLS_COMM_RANKS_H
#define TESTS_TOOLS_COMM_RANKS_H

#include "base/check.h"
#include "base/clock.h"
#include "worker/comm/comm.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { RANKS_MAX = 8, ROUNDS = 4 };
enum kind { THREADS, PROCESSES };

/* Shared by all ranks of a case, forked processes among them. */
struct world {
    enum kind kind;
    uint32_t tp, pp, n;
    uint32_t variant; /* of a case */
    bool own_core;
    struct comm_hub *hubs[ROUNDS]; /* of threads */
    struct comm_addr addrs[ROUNDS][RANKS_MAX];
    atomic_uint arrived[16];
    pid_t pids[RANKS_MAX];
    uint64_t result[RANKS_MAX];
    /* tests/unit/test_comm.c */
    uint64_t epoch;
    const char *net_device;
    char netns[2][32]; /* ranks 0 and 1 live in these network namespaces, whose interface is "data" */
    bool other_host;   /* pretend that the peers are on other hosts: the host id in their addresses is changed */
    /* tests/gpu/comm_nccl_ranks.h */
    size_t one_shot_bytes;
    bool same_device, deterministic;
};
struct rank {
    struct world *w;
    uint32_t rank;
    struct comm *c;
    struct CUstream_st *s; /* of its GPU */
};
typedef int rank_fn(struct rank *r); /* 0: all is well */

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: rank %u: %s (last error: %s)\n", __FILE__, __LINE__, r->rank, #cond, err_detail()); \
            return 1;                                                                                                  \
        }                                                                                                              \
    } while (0)

static inline void sleep_ms(unsigned ms)
{
    nanosleep(&(struct timespec){ms / 1000, (long)(ms % 1000) * 1000000}, NULL);
}

static inline uint64_t in_ms(unsigned ms)
{
    return clock_ns() + ms * NS_PER_MS;
}

/* n ranks meet; outside the code under test. */
static inline void meet(struct world *w, unsigned point, unsigned n)
{
    atomic_fetch_add(&w->arrived[point], 1);
    while (atomic_load(&w->arrived[point]) < n)
        sched_yield();
}

static inline uint8_t pattern(uint32_t rank, uint32_t op, size_t i)
{
    return (uint8_t)(rank * 83 + op * 31 + i * 7 + (i >> 8));
}

/* A thread's. */
static inline void *abort_soon(void *c)
{
    sleep_ms(120);
    comm_abort(c);
    return NULL;
}

static inline struct world *world_create(enum kind kind, uint32_t tp, uint32_t pp)
{
    struct world *w = mmap(NULL, sizeof(*w), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(w != MAP_FAILED);
    w->kind = kind;
    w->tp = tp;
    w->pp = pp;
    w->n = tp * pp;
    w->epoch = 7;
    return w;
}

static inline pid_t start_process(struct world *w, uint32_t rank, rank_fn *fn)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(150);
        struct rank r = {.w = w, .rank = rank};
        int status = fn(&r);
        comm_destroy(&r.c);
        _exit(status);
    }
    return pid;
}

/* An exit code, or 128 + the signal that ended the process. */
static inline int wait_process(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* status[r]: as wait_process gives it. Rank 0 is the last to start: it finds the others in pids. */
static inline void collect_processes(struct world *w, rank_fn *fn, int *status)
{
    uint32_t n = w->n; /* a case may change it */
    for (uint32_t i = n; i-- > 0;)
        w->pids[i] = start_process(w, i, fn);
    for (uint32_t i = 0; i < n; i++)
        status[i] = wait_process(w->pids[i]);
}

struct thread_arg {
    struct rank r;
    rank_fn *fn;
    int status;
};

static inline void *thread_main(void *p)
{
    struct thread_arg *a = p;
    a->status = a->fn(&a->r);
    comm_destroy(&a->r.c);
    return NULL;
}

/* Whether all is well. */
static inline bool run_threads(struct world *w, rank_fn *fn)
{
    pthread_t threads[RANKS_MAX];
    struct thread_arg args[RANKS_MAX] = {0};
    bool ok = true;
    for (unsigned i = 0; i < ROUNDS; i++)
        ok = comm_hub_create(w->tp, w->pp, &w->hubs[i]) == ERR_OK && ok;
    for (uint32_t i = 0; i < w->n; i++) {
        args[i] = (struct thread_arg){.r = {.w = w, .rank = i}, .fn = fn};
        ASSERT(pthread_create(&threads[i], NULL, thread_main, &args[i]) == 0);
    }
    for (uint32_t i = 0; i < w->n; i++) {
        pthread_join(threads[i], NULL);
        ok = args[i].status == 0 && ok;
    }
    for (unsigned i = 0; i < ROUNDS; i++)
        comm_hub_destroy(&w->hubs[i]);
    return ok;
}

#endif
