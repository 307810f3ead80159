/* Ranks with a GPU each, joined by worker/comm/comm_nccl.h: processes (inner comm: UCX), or threads of one process (inner comm: comm_local). With fewer GPUs than ranks
 * (one, on most machines) each process says it is a host of its own, which NCCL tolerates for tests. */
#ifndef TESTS_GPU_COMM_NCCL_RANKS_H
#define TESTS_GPU_COMM_NCCL_RANKS_H

#include "base/check.h"
#include "tests/tools/comm_ranks.h"
#include "worker/comm/comm_nccl.h"

#include <dlfcn.h>

enum { PATIENCE_MS = 60000, FLOATS = 300000 };

#define CUDA(x) CHECK((x) == cudaSuccess)

static inline bool emulated(void)
{
    return dlsym(RTLD_DEFAULT, "emu_reset") != NULL;
}

/* The comm of a round, not connected. */
static inline enum err offer(struct rank *r, unsigned round)
{
    struct world *w = r->w;
    int n_devices = 0;
    cudaGetDeviceCount(&n_devices);
    struct comm_nccl_config cfg = {.comm = {.rank = r->rank, .tp = w->tp, .pp = w->pp, .epoch = 7 + round, .own_core = w->own_core},
                                   .device = w->same_device ? 0 : (int)r->rank % MAX(n_devices, 1),
                                   .one_shot_bytes = w->one_shot_bytes, .deterministic = w->deterministic};
    if (w->kind == THREADS)
        TRY(comm_local_create(w->hubs[round], r->rank, &cfg.inner));
    else if (n_devices < (int)w->n && !w->same_device) {
        char host[32];
        snprintf(host, sizeof(host), "rank%u", r->rank);
        setenv("NCCL_HOSTID", host, 1);
    }
    TRY(comm_nccl_create(&cfg, &r->c, &w->addrs[round][r->rank]));
    return !r->s && cudaStreamCreateWithFlags(&r->s, cudaStreamNonBlocking) != cudaSuccess ? err_set(ERR_IO, "no stream") : ERR_OK;
}

static inline enum err join_world(struct rank *r, unsigned round)
{
    TRY(offer(r, round));
    meet(r->w, round, r->w->n);
    TRY(comm_connect(r->c, r->w->addrs[round], in_ms(PATIENCE_MS)));
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    return ERR_OK;
}

/* In a process of their own: CUDA does not survive a fork, and this one forks again. */
static inline int run_threads_apart(struct world *w, rank_fn *fn)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return wait_process(pid);
    alarm(150);
    if (w->one_shot_bytes > 0) /* kernels that wait for what another rank's thread has yet to give its device */
        setenv("RACKLM_EMU_LAG_MS", "-1", 1);
    _exit(run_threads(w, fn) ? 0 : 1);
}

/* Takes w. expect: status by rank; NULL: 0 of all. */
static inline void run_world(struct world *w, rank_fn *fn, const int *expect)
{
    int status[RANKS_MAX] = {0};
    if (w->kind == THREADS)
        status[0] = run_threads_apart(w, fn);
    else
        collect_processes(w, fn, status);
    uint32_t n = w->n;
    munmap(w, sizeof(*w));
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(status[i], expect ? expect[i] : 0);
}

static inline void run_case(enum kind kind, uint32_t tp, uint32_t pp, size_t one_shot_bytes, rank_fn *fn)
{
    struct world *w = world_create(kind, tp, pp);
    w->one_shot_bytes = one_shot_bytes;
    run_world(w, fn, NULL);
}

/* Read by UCX when its first context is made, by the emulated GPUs and by NCCL, in the children. */
static inline void set_environment(void)
{
    setenv("UCX_WARN_UNUSED_ENV_VARS", "n", 0);
    setenv("UCX_MEM_EVENTS", "n", 0);
    setenv("RACKLM_EMU_DEVICES", "4", 0);
    static const char *const one_gpu[][2] = {{"NCCL_NET", "Socket"}, {"NCCL_IB_DISABLE", "1"}, {"NCCL_MNNVL_ENABLE", "0"}, {"NCCL_MAX_CTAS", "2"}};
    for (unsigned i = 0; i < ARRAY_LEN(one_gpu); i++)
        setenv(one_gpu[i][0], one_gpu[i][1], 0);
}

#endif
