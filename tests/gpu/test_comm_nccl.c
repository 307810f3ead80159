/* worker/comm/comm_nccl.h: ranks are forked processes as in production (inner comm: UCX), or threads of one process (inner comm: comm_local). Expectations are patterns
 * computed from (rank, operation, position); sums are of whole numbers, which floats add exactly in any order.
 *
 * With fewer GPUs than ranks (one, on most machines) each process says it is a host of its own, which NCCL tolerates for tests. What injects errors into the
 * emulated NCCL (tests/gpu/emu/nccl.cc) is left out on a real one. */
#include "base/check.h"
#include "base/clock.h"
#include "tests/tools/sanitized.h"
#include "worker/comm/comm_nccl.h"
#include "worker/worker.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { RANKS_MAX = 4, ROUNDS = 4, PATIENCE_MS = 60000, FLOATS = 300000 };
enum kind { PROCESSES, THREADS };

struct world {
    enum kind kind;
    uint32_t tp, pp, n;
    size_t one_shot_bytes;
    uint32_t variant; /* of a case */
    bool own_core, same_device, deterministic;
    struct comm_hub *hubs[ROUNDS];
    struct comm_addr addrs[ROUNDS][RANKS_MAX];
    atomic_uint arrived[16];
    uint64_t hashes[RANKS_MAX];
};
struct rank {
    struct world *w;
    uint32_t rank;
    struct comm *c;
    cudaStream_t s;
};
typedef int rank_fn(struct rank *r);

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: rank %u: %s (last error: %s)\n", __FILE__, __LINE__, r->rank, #cond, err_detail()); \
            return 1;                                                                                                  \
        }                                                                                                              \
    } while (0)
#define CUDA(x) CHECK((x) == cudaSuccess)

static bool emulated(void)
{
    return dlsym(RTLD_DEFAULT, "emu_reset") != NULL;
}

static void meet(struct world *w, unsigned point, unsigned n)
{
    atomic_fetch_add(&w->arrived[point], 1);
    while (atomic_load(&w->arrived[point]) < n)
        sched_yield();
}

static uint64_t in_ms(unsigned ms)
{
    return clock_ns() + ms * NS_PER_MS;
}

static void sleep_ms(unsigned ms)
{
    nanosleep(&(struct timespec){ms / 1000, (long)(ms % 1000) * 1000000}, NULL);
}

/* The comm of a round, not connected. */
static enum err offer(struct rank *r, unsigned round)
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

static enum err join_world(struct rank *r, unsigned round)
{
    TRY(offer(r, round));
    meet(r->w, round, r->w->n);
    TRY(comm_connect(r->c, r->w->addrs[round], in_ms(PATIENCE_MS)));
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    return ERR_OK;
}

/* ---- running ranks */

static struct world *world_create(enum kind kind, uint32_t tp, uint32_t pp)
{
    struct world *w = mmap(NULL, sizeof(*w), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(w != MAP_FAILED);
    w->kind = kind;
    w->tp = tp;
    w->pp = pp;
    w->n = tp * pp;
    return w;
}

/* status[r]: an exit code, or 128 + the signal that ended the process. */
static void run_processes(struct world *w, rank_fn *fn, int *status)
{
    pid_t pids[RANKS_MAX];
    fflush(NULL);
    for (uint32_t i = 0; i < w->n; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0) {
            alarm(150);
            struct rank r = {.w = w, .rank = i};
            int code = fn(&r);
            comm_destroy(&r.c);
            _exit(code);
        }
    }
    for (uint32_t i = 0; i < w->n; i++) {
        assert_int_equal(waitpid(pids[i], &status[i], 0), pids[i]);
        status[i] = WIFEXITED(status[i]) ? WEXITSTATUS(status[i]) : 128 + WTERMSIG(status[i]);
    }
}

struct thread_arg {
    struct rank r;
    rank_fn *fn;
    int status;
};

static void *thread_main(void *p)
{
    struct thread_arg *a = p;
    a->status = a->fn(&a->r);
    comm_destroy(&a->r.c);
    if (a->r.s)
        cudaStreamDestroy(a->r.s);
    return NULL;
}

/* In a process of their own: CUDA does not survive a fork, and this one forks again. */
static void run_threads(struct world *w, rank_fn *fn, int *status)
{
    pthread_t threads[RANKS_MAX];
    struct thread_arg args[RANKS_MAX] = {0};
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0) {
        assert_int_equal(waitpid(pid, &status[0], 0), pid);
        return;
    }
    alarm(150);
    if (w->one_shot_bytes > 0) /* kernels that wait for what another rank's thread has yet to give its device */
        setenv("RACKLM_EMU_LAG_MS", "-1", 1);
    int failed = 0;
    for (unsigned i = 0; i < ROUNDS; i++)
        failed |= (int)comm_hub_create(w->tp, w->pp, &w->hubs[i]);
    for (uint32_t i = 0; i < w->n; i++) {
        args[i] = (struct thread_arg){.r = {.w = w, .rank = i}, .fn = fn};
        failed |= pthread_create(&threads[i], NULL, thread_main, &args[i]);
    }
    for (uint32_t i = 0; i < w->n; i++) {
        pthread_join(threads[i], NULL);
        failed |= args[i].status;
    }
    for (unsigned i = 0; i < ROUNDS; i++)
        comm_hub_destroy(&w->hubs[i]);
    _exit(failed != 0);
}

/* Takes w. expect: status by rank; NULL: 0 of all. */
static void run_world(struct world *w, rank_fn *fn, const int *expect)
{
    int status[RANKS_MAX] = {0};
    if (w->kind == THREADS)
        run_threads(w, fn, status);
    else
        run_processes(w, fn, status);
    uint32_t n = w->n;
    munmap(w, sizeof(*w));
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(status[i], expect ? expect[i] : 0);
}

static void run_case(enum kind kind, uint32_t tp, uint32_t pp, size_t one_shot_bytes, rank_fn *fn)
{
    struct world *w = world_create(kind, tp, pp);
    w->one_shot_bytes = one_shot_bytes;
    run_world(w, fn, NULL);
}

/* Threads share a process, and with it one NCCL host: they need a GPU each. */
static bool threads_have_devices(void)
{
    return emulated();
}

/* ---- sums */

static float whole(uint32_t rank, uint32_t op, size_t i)
{
    return (float)((rank + 1) * 1000 + op * 17 + i % 251);
}

static int sums(struct rank *r)
{
    static const size_t counts[] = {1, 3, 1000, 16384, FLOATS, 7, 0}; /* FLOATS: none for our own kernel */
    struct world *w = r->w;
    CHECK(join_world(r, 0) == ERR_OK);
    uint32_t first = r->rank / w->tp * w->tp;
    float *host = malloc(FLOATS * sizeof(float)), *buf;
    CUDA(cudaMalloc((void **)&buf, FLOATS * sizeof(float)));
    for (uint32_t op = 0; op < ARRAY_LEN(counts); op++) {
        for (size_t i = 0; i < counts[op]; i++)
            host[i] = whole(r->rank, op, i);
        CUDA(cudaMemcpyAsync(buf, host, counts[op] * sizeof(float), cudaMemcpyHostToDevice, r->s));
        CHECK(comm_nccl_all_reduce(r->c, buf, counts[op], r->s) == ERR_OK);
        CUDA(cudaMemcpyAsync(host, buf, counts[op] * sizeof(float), cudaMemcpyDeviceToHost, r->s));
        CHECK(comm_nccl_wait(r->c, r->s, NULL) == ERR_OK);
        for (size_t i = 0; i < counts[op]; i++) {
            float want = 0;
            for (uint32_t k = 0; k < w->tp; k++)
                want += whole(first + k, op, i);
            CHECK(host[i] == want);
        }
    }
    /* Fractions: the same bits on all ranks, and near the sum. */
    for (size_t i = 0; i < 3000; i++)
        host[i] = sinf((float)(i + 1) * (float)(r->rank - first + 1));
    CUDA(cudaMemcpy(buf, host, 3000 * sizeof(float), cudaMemcpyHostToDevice));
    CHECK(comm_nccl_all_reduce(r->c, buf, 3000, r->s) == ERR_OK && comm_nccl_wait(r->c, r->s, NULL) == ERR_OK);
    CUDA(cudaMemcpy(host, buf, 3000 * sizeof(float), cudaMemcpyDeviceToHost));
    uint64_t h = 14695981039346656037ull; /* FNV-1a */
    for (size_t i = 0; i < 3000; i++) {
        double want = 0;
        float in_order = 0;
        for (uint32_t k = 0; k < w->tp; k++) {
            float v = sinf((float)(i + 1) * (float)(k + 1));
            want += v;
            in_order = k == 0 ? v : in_order + v;
        }
        CHECK(fabs(host[i] - want) < 1e-6);
        CHECK((!w->deterministic && w->one_shot_bytes == 0) || host[i] == in_order);
        uint32_t bits;
        memcpy(&bits, &host[i], sizeof(bits));
        h = (h ^ bits) * 1099511628211ull;
    }
    w->hashes[r->rank] = h;
    meet(w, 10, w->n);
    CHECK(w->hashes[r->rank] == w->hashes[first]);
    meet(w, 11, w->n); /* who leaves ends the operations of the others */
    CUDA(cudaFree(buf));
    free(host);
    return 0;
}

static void sums_over_the_group(void **state)
{
    (void)state;
    for (uint32_t tp = 1; tp <= 4; tp++)
        run_case(PROCESSES, tp, 1, 0, sums);
    run_case(PROCESSES, 2, 2, 0, sums);
    if (threads_have_devices())
        run_case(THREADS, 3, 1, 0, sums);
}

static void sums_in_the_order_of_ranks(void **state)
{
    (void)state;
    for (uint32_t tp = 1; tp <= 4; tp++) {
        struct world *w = world_create(PROCESSES, tp, 1);
        w->deterministic = true;
        run_world(w, sums, NULL);
    }
}

static void sums_by_our_own_kernel(void **state)
{
    (void)state;
    for (uint32_t tp = 2; tp <= 4; tp += 1 + (tp == 2))
        run_case(PROCESSES, tp, 1, 65536, sums);
    run_case(PROCESSES, 2, 2, 65536, sums);
    /* One group: of kernels that wait, the emulator runs one on top of the other, and two groups could keep each other's from coming to their end. */
    if (threads_have_devices())
        run_case(THREADS, 4, 1, 65536, sums);
}

/* ---- the sum and what follows it: against cuda_add_norm of the sum, which has its own tests */

static int norms(struct rank *r)
{
    enum { TOK = 3, DIM = 1032, N = TOK * DIM };
    struct world *w = r->w;
    CHECK(join_world(r, 0) == ERR_OK);
    float *host = malloc(N * sizeof(float)), *want = malloc(N * sizeof(float)), *part, *x, *x2, *weight, *out, *out2, *sum;
    float **all[] = {&part, &x, &x2, &weight, &out, &out2, &sum};
    for (unsigned i = 0; i < ARRAY_LEN(all); i++)
        CUDA(cudaMalloc((void **)all[i], N * sizeof(float)));
    for (unsigned i = 0; i < N; i++)
        host[i] = sinf((float)i);
    CUDA(cudaMemcpy(x, host, N * sizeof(float), cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(x2, host, N * sizeof(float), cudaMemcpyHostToDevice));
    for (unsigned i = 0; i < DIM; i++)
        host[i] = 1 + (float)(i % 8) / 8;
    CUDA(cudaMemcpy(weight, host, DIM * sizeof(float), cudaMemcpyHostToDevice));
    for (unsigned i = 0; i < N; i++) {
        host[i] = whole(r->rank, 0, i) / 1024;
        want[i] = 0;
        for (uint32_t k = 0; k < w->tp; k++)
            want[i] += whole(k, 0, i) / 1024;
    }
    CUDA(cudaMemcpy(part, host, N * sizeof(float), cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(sum, want, N * sizeof(float), cudaMemcpyHostToDevice));
    struct cuda_act a = {.type = CUDA_F32, .n = TOK, .k = DIM, .x = out}, b = a;
    b.x = out2;
    CHECK(comm_nccl_all_reduce_norm(r->c, part, x, weight, 1e-5f, TOK, DIM, &a, r->s) == ERR_OK);
    CUDA(cuda_add_norm(x2, sum, weight, 1e-5f, TOK, DIM, &b, r->s));
    CHECK(comm_nccl_wait(r->c, r->s, NULL) == ERR_OK);
    CUDA(cudaMemcpy(host, x, N * sizeof(float), cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(want, x2, N * sizeof(float), cudaMemcpyDeviceToHost));
    CHECK(memcmp(host, want, N * sizeof(float)) == 0);
    CUDA(cudaMemcpy(host, out, N * sizeof(float), cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(want, out2, N * sizeof(float), cudaMemcpyDeviceToHost));
    for (unsigned i = 0; i < N; i++)
        CHECK(fabsf(host[i] - want[i]) <= 4e-6f * fabsf(want[i]));
    meet(w, 10, w->n);
    for (unsigned i = 0; i < ARRAY_LEN(all); i++)
        CUDA(cudaFree(*all[i]));
    free(host);
    free(want);
    return 0;
}

static void residual_and_norm_after_the_sum(void **state)
{
    (void)state;
    run_case(PROCESSES, 1, 1, 0, norms);
    run_case(PROCESSES, 2, 1, 0, norms);
    run_case(PROCESSES, 2, 1, 65536, norms);
    run_case(PROCESSES, 2, 1, 8192, norms); /* too large for our own */
}

/* ---- gathers, on the device and on the host */

static uint8_t pattern(uint32_t rank, uint32_t op, size_t i)
{
    return (uint8_t)(rank * 83 + op * 31 + i * 7 + (i >> 8));
}

static size_t gather_len(uint32_t rank, uint32_t op)
{
    switch (op % 5) {
    case 0:
        return 64;
    case 1:
        return rank % 2 ? 0 : 100 + rank;
    case 2:
        return rank == 0 ? 150000 : 0;
    case 3:
        return 70001 * rank;
    default:
        return 100000;
    }
}

static int gathers(struct rank *r)
{
    enum { CAP = 1 << 20 };
    struct world *w = r->w;
    CHECK(join_world(r, 0) == ERR_OK);
    uint32_t tp = w->tp, first = r->rank / tp * tp, me = r->rank - first;
    uint8_t *host = malloc(CAP), *buf;
    CUDA(cudaMalloc((void **)&buf, CAP));
    for (uint32_t op = 0; op < 10; op++) {
        bool on_device = op < 8;
        size_t off[RANKS_MAX], len[RANKS_MAX], gap = op % 5 == 4 ? 0 : 16, at = 16;
        for (uint32_t k = 0; k < tp; k++) {
            off[k] = at;
            len[k] = gather_len(k, op);
            at += len[k] + gap; /* a gap stays as it is */
        }
        memset(host, 0xee, CAP);
        for (size_t i = 0; i < len[me]; i++)
            host[off[me] + i] = pattern(r->rank, op, i);
        if (on_device) {
            CUDA(cudaMemcpyAsync(buf, host, CAP, cudaMemcpyHostToDevice, r->s));
            CHECK(comm_nccl_all_gather(r->c, buf, off, len, r->s) == ERR_OK);
            CUDA(cudaMemcpyAsync(host, buf, CAP, cudaMemcpyDeviceToHost, r->s));
            CHECK(comm_nccl_wait(r->c, r->s, NULL) == ERR_OK);
        } else {
            CHECK(comm_allgather(r->c, host, off, len) == ERR_OK);
        }
        for (uint32_t k = 0; k < tp; k++)
            for (size_t i = 0; i < len[k]; i++)
                CHECK(host[off[k] + i] == pattern(first + k, op, i));
        for (uint32_t k = 0; k < tp; k++)
            for (size_t i = 0; i < gap; i++)
                CHECK(host[off[k] + len[k] + i] == 0xee);
        for (size_t i = 0; i < 16; i++)
            CHECK(host[i] == 0xee && host[at + i] == 0xee);
    }
    meet(w, 10, w->n);
    CUDA(cudaFree(buf));
    free(host);
    return 0;
}

static void all_gather_brings_every_part_to_every_rank(void **state)
{
    (void)state;
    for (uint32_t tp = 1; tp <= 4; tp++)
        run_case(PROCESSES, tp, 1, 0, gathers);
    run_case(PROCESSES, 2, 2, 0, gathers);
    if (threads_have_devices())
        run_case(THREADS, 3, 1, 0, gathers);
}

/* ---- pipeline: microbatches go from stage to stage on a stream of their own, each adds its rank; ids come back on the host */

static int pipeline(struct rank *r)
{
    enum { STEPS = 6, MAX_FLOATS = 40000 };
    struct world *w = r->w;
    CHECK(join_world(r, 0) == ERR_OK);
    bool begins = r->rank < w->tp, ends = r->rank >= w->n - w->tp;
    float *host = malloc(MAX_FLOATS * sizeof(float)), *buf;
    cudaStream_t moves;
    cudaEvent_t come, ready;
    CUDA(cudaMalloc((void **)&buf, MAX_FLOATS * sizeof(float)));
    CUDA(cudaStreamCreateWithFlags(&moves, cudaStreamNonBlocking));
    CUDA(cudaEventCreateWithFlags(&come, cudaEventDisableTiming));
    CUDA(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming));
    for (uint32_t step = 0; step < STEPS; step++) {
        size_t n = step % 2 ? MAX_FLOATS : 10 + step;
        if (begins) {
            for (size_t i = 0; i < n; i++)
                host[i] = whole(r->rank, step, i);
        } else {
            CHECK(comm_nccl_recv(r->c, r->rank - w->tp, buf, n * sizeof(float), moves) == ERR_OK);
            CUDA(cudaEventRecord(come, moves));
            CHECK(comm_nccl_wait(r->c, moves, come) == ERR_OK);
            CUDA(cudaMemcpy(host, buf, n * sizeof(float), cudaMemcpyDeviceToHost));
            for (size_t i = 0; i < n; i++) {
                float want = whole(r->rank % w->tp, step, i);
                for (uint32_t k = r->rank % w->tp + w->tp; k < r->rank; k += w->tp)
                    want += (float)k;
                CHECK(host[i] == want);
                host[i] += (float)r->rank;
            }
        }
        if (!ends) {
            CUDA(cudaMemcpyAsync(buf, host, n * sizeof(float), cudaMemcpyHostToDevice, r->s));
            CUDA(cudaEventRecord(ready, r->s));
            CUDA(cudaStreamWaitEvent(moves, ready, 0));
            CHECK(comm_nccl_send(r->c, r->rank + w->tp, buf, n * sizeof(float), moves) == ERR_OK);
            CHECK(comm_nccl_wait(r->c, moves, NULL) == ERR_OK);
        }
        uint32_t id = 100 + step;
        if (ends)
            CHECK(comm_send(r->c, r->rank % w->tp, &id, sizeof(id)) == ERR_OK);
        if (begins) {
            CHECK(comm_recv(r->c, w->n - w->tp + r->rank, &id, sizeof(id)) == ERR_OK);
            CHECK(id == 100 + step);
        }
    }
    CHECK(comm_stats(r->c).ops > STEPS);
    meet(w, 10, w->n);
    CUDA(cudaEventDestroy(come));
    CUDA(cudaEventDestroy(ready));
    CUDA(cudaStreamDestroy(moves));
    CUDA(cudaFree(buf));
    free(host);
    return 0;
}

static void stages_pass_activations_on(void **state)
{
    (void)state;
    run_case(PROCESSES, 1, 2, 0, pipeline);
    run_case(PROCESSES, 1, 4, 0, pipeline);
    run_case(PROCESSES, 2, 2, 0, pipeline);
    if (threads_have_devices())
        run_case(THREADS, 1, 3, 0, pipeline);
}

/* ---- graphs */

static enum err capture(struct rank *r, float *buf, uint8_t *bytes, const size_t *off, const size_t *len)
{
    TRY(comm_nccl_all_reduce(r->c, buf, 1000, r->s));
    TRY(comm_nccl_all_gather(r->c, bytes, off, len, r->s));
    return comm_nccl_all_reduce(r->c, buf, 1000, r->s);
}

static int graphs(struct rank *r)
{
    struct world *w = r->w;
    uint32_t me = r->rank;
    size_t off[RANKS_MAX], len[RANKS_MAX];
    float host[1000], *buf;
    uint8_t bytes[4096], *dev;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(join_world(r, 0) == ERR_OK);
    for (uint32_t k = 0; k < w->tp; k++) {
        off[k] = 1024 * k;
        len[k] = 10 + 100 * k;
    }
    CUDA(cudaMalloc((void **)&buf, sizeof(host)));
    CUDA(cudaMalloc((void **)&dev, sizeof(bytes)));
    CUDA(cudaStreamBeginCapture(r->s, cudaStreamCaptureModeThreadLocal));
    CHECK(capture(r, buf, dev, off, len) == ERR_OK);
    CUDA(cudaStreamEndCapture(r->s, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (uint32_t turn = 0; turn < 6; turn++) {
        for (size_t i = 0; i < 1000; i++)
            host[i] = whole(me, turn, i);
        for (size_t i = 0; i < len[me]; i++)
            bytes[off[me] + i] = pattern(me, turn, i);
        CUDA(cudaMemcpyAsync(buf, host, sizeof(host), cudaMemcpyHostToDevice, r->s));
        CUDA(cudaMemcpyAsync(dev, bytes, sizeof(bytes), cudaMemcpyHostToDevice, r->s));
        if (turn < 4)
            CUDA(cudaGraphLaunch(exec, r->s));
        else
            CHECK(capture(r, buf, dev, off, len) == ERR_OK); /* the same outside of a graph */
        CUDA(cudaMemcpyAsync(host, buf, sizeof(host), cudaMemcpyDeviceToHost, r->s));
        CUDA(cudaMemcpyAsync(bytes, dev, sizeof(bytes), cudaMemcpyDeviceToHost, r->s));
        CHECK(comm_nccl_wait(r->c, r->s, NULL) == ERR_OK);
        for (size_t i = 0; i < 1000; i++) {
            float want = 0;
            for (uint32_t k = 0; k < w->tp; k++)
                want += whole(k, turn, i);
            CHECK(host[i] == want * (float)w->tp);
        }
        for (uint32_t k = 0; k < w->tp; k++)
            for (size_t i = 0; i < len[k]; i++)
                CHECK(bytes[off[k] + i] == pattern(k, turn, i));
    }
    meet(w, 10, w->n);
    if (w->variant == 0) {
        CUDA(cudaGraphExecDestroy(exec));
        CUDA(cudaGraphDestroy(graph));
    }
    CUDA(cudaFree(buf));
    CUDA(cudaFree(dev));
    return 0;
}

static void a_graph_with_collectives_is_replayed(void **state)
{
    (void)state;
    run_case(PROCESSES, 2, 1, 0, graphs);
    run_case(PROCESSES, 3, 1, 0, graphs);
    run_case(PROCESSES, 2, 1, 65536, graphs);
    if (threads_have_devices())
        run_case(THREADS, 4, 1, 65536, graphs);
}

static void a_graph_that_outlives_its_communicator_ends_the_process(void **state)
{
    (void)state;
    struct world *w = world_create(PROCESSES, 2, 1);
    w->variant = 1;
    run_world(w, graphs, (int[]){WORKER_EXIT_GPU, WORKER_EXIT_GPU});
}

/* ---- epochs */

static int epochs(struct rank *r)
{
    struct world *w = r->w;
    float *buf;
    for (unsigned round = 0; round < ROUNDS; round++) {
        CHECK(join_world(r, round) == ERR_OK);
        CUDA(cudaMalloc((void **)&buf, 4000));
        for (unsigned turn = 0; turn < 3; turn++) {
            float one = 1 + (float)round, got;
            CUDA(cudaMemcpy(buf, &one, sizeof(one), cudaMemcpyHostToDevice));
            CHECK(comm_nccl_all_reduce(r->c, buf, 1, r->s) == ERR_OK && comm_nccl_wait(r->c, r->s, NULL) == ERR_OK);
            CUDA(cudaMemcpy(&got, buf, sizeof(got), cudaMemcpyDeviceToHost));
            CHECK(got == one * (float)w->tp);
        }
        meet(w, 5 + round, w->n);
        /* Some leave in the middle of an operation that nobody else joins. */
        if (r->rank == round % w->n)
            CHECK(comm_nccl_all_reduce(r->c, buf, round % 2 ? 1000 : 1, r->s) == ERR_OK);
        comm_destroy(&r->c);
        CUDA(cudaStreamSynchronize(r->s));
        CUDA(cudaFree(buf));
    }
    return 0;
}

static void a_new_epoch_has_a_new_communicator(void **state)
{
    (void)state;
    run_case(PROCESSES, 2, 1, 0, epochs);
    run_case(PROCESSES, 3, 1, 2048, epochs);
    if (threads_have_devices())
        run_case(THREADS, 3, 1, 2048, epochs);
}

/* ---- what goes wrong */

static void *abort_soon(void *c)
{
    sleep_ms(120);
    comm_abort(c);
    return NULL;
}

static void idle_aborts(void *c)
{
    comm_abort(c);
}

/* Rank 0 waits for one that stays away. Variants: the deadline, another thread's abort, the idle function's. */
static int stays_away(struct rank *r)
{
    struct world *w = r->w;
    setenv("RACKLM_EMU_LAG_MS", "-1", 1); /* our own kernel waits for a word of the host, which must not run it itself */
    CHECK(join_world(r, 0) == ERR_OK);
    if (r->rank == 0) {
        float *buf;
        pthread_t t;
        CUDA(cudaMalloc((void **)&buf, 4000));
        CUDA(cudaMemset(buf, 0, 4000));
        uint64_t t0 = clock_ns();
        if (w->variant == 0)
            comm_set_deadline(r->c, t0 + 150 * NS_PER_MS);
        else
            comm_set_deadline(r->c, UINT64_MAX);
        if (w->variant == 1)
            CHECK(pthread_create(&t, NULL, abort_soon, r->c) == 0);
        if (w->variant == 2)
            comm_set_idle(r->c, idle_aborts, r->c, 120);
        CHECK(comm_nccl_all_reduce(r->c, buf, 1000, r->s) == ERR_OK);
        enum err e = comm_nccl_wait(r->c, r->s, NULL), want = w->variant == 0 ? ERR_TIMEOUT : ERR_ABORTED;
        uint64_t took = clock_ns() - t0;
        CHECK(e == want && took >= 100 * NS_PER_MS);
        CHECK(comm_nccl_all_reduce(r->c, buf, 1000, r->s) == want); /* broken for good */
        CHECK(comm_nccl_wait(r->c, r->s, NULL) == want);
        if (w->variant == 1)
            pthread_join(t, NULL);
        comm_destroy(&r->c);
        CUDA(cudaStreamSynchronize(r->s)); /* nothing hangs in the stream any more */
        CUDA(cudaFree(buf));
    }
    meet(w, 10, w->n);
    return 0;
}

static void a_wait_ends_by_deadline_and_abort(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 12; i++) {
        struct world *w = world_create(PROCESSES, 2, 1);
        w->variant = i % 3;
        w->own_core = i % 6 >= 3;
        w->one_shot_bytes = i >= 6 ? 65536 : 0;
        run_world(w, stays_away, NULL);
    }
}

/* Rank 2 dies inside its third collective; the others hear nothing, end by their deadline, and go on as a group of two. */
static int loses_a_peer(struct rank *r)
{
    struct world *w = r->w;
    float *buf;
    if (r->rank == 2)
        setenv("RACKLM_EMU_NCCL_DIE", "3", 1);
    CHECK(join_world(r, 0) == ERR_OK);
    CUDA(cudaMalloc((void **)&buf, FLOATS * sizeof(float)));
    CUDA(cudaMemset(buf, 0, FLOATS * sizeof(float)));
    enum err e = ERR_OK;
    for (unsigned i = 0; i < 6 && e == ERR_OK; i++) {
        if (i == 2 && r->rank == 2 && !emulated())
            raise(SIGKILL);
        comm_set_deadline(r->c, in_ms(i < 2 ? PATIENCE_MS : 700));
        e = comm_nccl_all_reduce(r->c, buf, FLOATS, r->s);
        if (e == ERR_OK)
            e = comm_nccl_wait(r->c, r->s, NULL);
    }
    CHECK(e == ERR_TIMEOUT);
    comm_destroy(&r->c);
    CUDA(cudaStreamSynchronize(r->s));
    if (r->rank == 0)
        w->tp = w->n = 2;
    while (*(volatile uint32_t *)&w->n != 2)
        sched_yield();
    CHECK(join_world(r, 1) == ERR_OK);
    float one = 1, got;
    CUDA(cudaMemcpy(buf, &one, sizeof(one), cudaMemcpyHostToDevice));
    CHECK(comm_nccl_all_reduce(r->c, buf, 1, r->s) == ERR_OK && comm_nccl_wait(r->c, r->s, NULL) == ERR_OK);
    CUDA(cudaMemcpy(&got, buf, sizeof(got), cudaMemcpyDeviceToHost));
    CHECK(got == 2);
    meet(w, 10, 2);
    return 0;
}

static void survivors_of_a_peer_that_dies_in_a_collective_go_on(void **state)
{
    (void)state;
    struct world *w = world_create(PROCESSES, 3, 1);
    int status[RANKS_MAX];
    run_processes(w, loses_a_peer, status); /* n is 2 in the end */
    assert_int_equal(status[0], 0);
    assert_int_equal(status[1], 0);
    pid_t dead;
    int how;
    while ((dead = waitpid(-1, &how, 0)) > 0)
        assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    munmap(w, sizeof(*w));
}

static int never_inits(struct rank *r)
{
    struct world *w = r->w;
    if (r->rank == 1)
        setenv("RACKLM_EMU_NCCL_INIT", "hang", 1);
    CHECK(offer(r, 0) == ERR_OK);
    meet(w, 0, 2);
    uint64_t t0 = clock_ns();
    if (r->rank == 0) { /* who has come has no error, but nobody to talk to */
        enum err e = comm_connect(r->c, w->addrs[0], t0 + 1000 * NS_PER_MS);
        CHECK(e == ERR_OK || e == ERR_TIMEOUT);
    } else {
        CHECK(comm_connect(r->c, w->addrs[0], t0 + 1000 * NS_PER_MS) == ERR_TIMEOUT);
        CHECK(clock_ns() - t0 >= 1000 * NS_PER_MS && strstr(err_detail(), "the tensor-parallel group"));
    }
    comm_destroy(&r->c);
    meet(w, 10, 2);
    return 0;
}

/* Rank 1 meets the others on the host, then does nothing. */
static int never_comes(struct rank *r)
{
    struct world *w = r->w;
    if (r->rank == 1) {
        struct comm_config cfg = {.rank = 1, .tp = 2, .pp = 1, .epoch = 7};
        struct comm_addr own = {.len = 0}, addrs[2];
        meet(w, 0, 2);
        CHECK(comm_ucx_create(&cfg, &r->c, &own) == ERR_OK);
        /* The address of a GPU worker around that of UCX: rank 0's head, our tail. */
        struct comm_addr *a = &w->addrs[0][1];
        *a = w->addrs[0][0];
        uint32_t inner = a->bytes[1] | (uint32_t)a->bytes[2] << 8, head = a->len - inner;
        memcpy(a->bytes + head, own.bytes, own.len);
        a->bytes[1] = (uint8_t)own.len;
        a->bytes[2] = (uint8_t)(own.len >> 8);
        a->len = head + own.len;
        addrs[0].len = inner;
        memcpy(addrs[0].bytes, w->addrs[0][0].bytes + head, inner);
        addrs[1] = own;
        meet(w, 1, 2);
        CHECK(comm_connect(r->c, addrs, in_ms(PATIENCE_MS)) == ERR_OK);
    } else {
        CHECK(offer(r, 0) == ERR_OK);
        meet(w, 0, 2);
        meet(w, 1, 2);
        uint64_t t0 = clock_ns();
        if (w->variant == 1) {
            pthread_t t;
            CHECK(pthread_create(&t, NULL, abort_soon, r->c) == 0);
            CHECK(comm_connect(r->c, w->addrs[0], UINT64_MAX) == ERR_ABORTED);
            pthread_join(t, NULL);
        } else {
            CHECK(comm_connect(r->c, w->addrs[0], t0 + 2000 * NS_PER_MS) == ERR_TIMEOUT);
            CHECK(clock_ns() - t0 >= 2000 * NS_PER_MS && strstr(err_detail(), "the tensor-parallel group"));
        }
        comm_destroy(&r->c);
    }
    meet(w, 10, 2);
    return 0;
}

static void an_init_that_never_completes_ends_at_the_deadline(void **state)
{
    (void)state;
    if (emulated())
        run_case(PROCESSES, 2, 1, 0, never_inits);
    for (uint32_t i = 0; i < 2; i++) {
        struct world *w = world_create(PROCESSES, 2, 1);
        w->variant = i;
        run_world(w, never_comes, NULL);
    }
}

static int other_gpu(struct rank *r)
{
    static const char other[] = "Other GPU 9000";
    struct world *w = r->w;
    CHECK(offer(r, 0) == ERR_OK);
    struct cudaDeviceProp p;
    CUDA(cudaGetDeviceProperties(&p, 0));
    meet(w, 0, 2);
    struct comm_addr addrs[2] = {w->addrs[0][0], w->addrs[0][1]};
    uint8_t *name = memmem(addrs[1 - r->rank].bytes, addrs[1 - r->rank].len, p.name, strlen(p.name));
    CHECK(name);
    memcpy(name, other, sizeof(other));
    CHECK(comm_connect(r->c, addrs, in_ms(PATIENCE_MS)) == ERR_CONFIG);
    CHECK(strstr(err_detail(), other) && strstr(err_detail(), p.name));
    meet(w, 10, 2);
    return 0;
}

static void mixed_types_of_gpu_are_refused(void **state)
{
    (void)state;
    run_case(PROCESSES, 2, 1, 0, other_gpu);
}

static int bad_address(struct rank *r)
{
    struct world *w = r->w;
    for (unsigned i = 0; i < 3; i++) {
        CHECK(offer(r, i) == ERR_OK);
        meet(w, i, 2);
        struct comm_addr addrs[2] = {w->addrs[i][0], w->addrs[i][1]};
        if (i == 0)
            addrs[1].len = 100;
        else if (i == 1)
            addrs[1].bytes[0] = 99;
        else
            addrs[1].bytes[1] ^= 1;
        CHECK(comm_connect(r->c, addrs, in_ms(PATIENCE_MS)) == ERR_PROTOCOL);
        comm_destroy(&r->c);
        meet(w, 5 + i, 2);
    }
    return 0;
}

static void addresses_that_are_none_are_refused(void **state)
{
    (void)state;
    run_case(PROCESSES, 2, 1, 0, bad_address);
}

/* ---- injected into the emulated NCCL, and into the emulated GPU */

static int async_error(struct rank *r)
{
    float *buf;
    if (r->rank == 1)
        setenv("RACKLM_EMU_NCCL_FAIL", "2", 1);
    CHECK(join_world(r, 0) == ERR_OK);
    CUDA(cudaMalloc((void **)&buf, 4000));
    CUDA(cudaMemset(buf, 0, 4000));
    CHECK(comm_nccl_all_reduce(r->c, buf, 1000, r->s) == ERR_OK && comm_nccl_wait(r->c, r->s, NULL) == ERR_OK);
    comm_set_deadline(r->c, in_ms(r->rank == 1 ? PATIENCE_MS : 1500));
    enum err e = comm_nccl_all_reduce(r->c, buf, 1000, r->s);
    if (e == ERR_OK)
        e = comm_nccl_wait(r->c, r->s, NULL);
    CHECK(e == (r->rank == 1 ? ERR_PEER_LOST : ERR_TIMEOUT));
    if (r->rank == 1)
        CHECK(strstr(err_detail(), "remote process exited"));
    return 0;
}

static int mismatch(struct rank *r)
{
    float *buf;
    CHECK(join_world(r, 0) == ERR_OK);
    CUDA(cudaMalloc((void **)&buf, 4000));
    CUDA(cudaMemset(buf, 0, 4000));
    comm_set_deadline(r->c, in_ms(500));
    CHECK(comm_nccl_all_reduce(r->c, buf, 900 + r->rank, r->s) == ERR_OK);
    CHECK(comm_nccl_wait(r->c, r->s, NULL) == ERR_TIMEOUT);
    return 0;
}

static int delayed(struct rank *r)
{
    if (r->rank == 1)
        setenv("RACKLM_EMU_NCCL_DELAY_US", "3000", 1);
    return sums(r);
}

static int gpu_lost(struct rank *r)
{
    float *buf;
    if (r->rank == 0)
        setenv("RACKLM_EMU_FAULT", "lost@400ms", 1);
    CHECK(join_world(r, 0) == ERR_OK);
    comm_set_deadline(r->c, in_ms(3000));
    enum err e = cudaMalloc((void **)&buf, 4000) == cudaSuccess ? ERR_OK : ERR_DEVICE;
    if (e == ERR_OK)
        e = comm_nccl_all_reduce(r->c, buf, 1000, r->s);
    if (r->rank == 0 && e == ERR_OK)
        e = comm_nccl_all_reduce(r->c, buf, 1000, r->s); /* waits for one that rank 1 does not make */
    if (e == ERR_OK)
        e = comm_nccl_wait(r->c, r->s, NULL);
    CHECK(r->rank == 1 || (e == ERR_DEVICE && strstr(err_detail(), "GPU")));
    meet(r->w, 10, 2);
    return 0;
}

static void errors_of_nccl_and_of_the_gpu_are_told(void **state)
{
    (void)state;
    run_case(PROCESSES, 2, 1, 0, async_error);
    run_case(PROCESSES, 2, 1, 0, mismatch);
    run_case(PROCESSES, 3, 1, 0, delayed);
    run_case(PROCESSES, 2, 1, 0, gpu_lost);
}

static int abort_hangs(struct rank *r)
{
    float *buf;
    if (r->rank == 0)
        setenv("RACKLM_EMU_NCCL_ABORT", "hang", 1);
    CHECK(join_world(r, 0) == ERR_OK);
    CUDA(cudaMalloc((void **)&buf, 4000));
    CHECK(comm_nccl_all_reduce(r->c, buf, 1000, r->s) == ERR_OK && comm_nccl_wait(r->c, r->s, NULL) == ERR_OK);
    meet(r->w, 10, 2);
    uint64_t t0 = clock_ns();
    comm_destroy(&r->c);
    CHECK(r->rank == 1 && clock_ns() - t0 < 2000 * NS_PER_MS);
    return 0;
}

static void an_abort_that_hangs_ends_the_process(void **state)
{
    (void)state;
    uint64_t t0 = clock_ns();
    run_world(world_create(PROCESSES, 2, 1), abort_hangs, (int[]){WORKER_EXIT_GPU, 0});
    assert_true(clock_ns() - t0 >= 2000 * NS_PER_MS);
}

static int two_on_one_gpu(struct rank *r)
{
    CHECK(offer(r, 0) == ERR_OK);
    meet(r->w, 0, 2);
    CHECK(comm_connect(r->c, r->w->addrs[0], in_ms(PATIENCE_MS)) == ERR_CONFIG);
    CHECK(strstr(err_detail(), "uplicate GPU"));
    meet(r->w, 10, 2);
    return 0;
}

static void two_ranks_on_one_gpu_are_refused(void **state)
{
    (void)state;
    struct world *w = world_create(PROCESSES, 2, 1);
    w->same_device = true;
    run_world(w, two_on_one_gpu, NULL);
}

static int library(struct rank *r)
{
    struct comm_addr a;
    struct comm_nccl_config cfg = {.comm = {.tp = r->w->variant == 2 ? 1 : 2, .pp = 1}};
    if (r->w->variant == 1) { /* nothing can be opened */
        struct rlimit none = {0};
        CUDA(cudaSetDevice(0));
        CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    } else {
        setenv("RACKLM_EMU_NCCL_VERSION", "21703", 1);
    }
    enum err e = comm_nccl_create(&cfg, &r->c, &a);
    if (r->w->variant == 0) /* it would have listened on the loopback only */
        CHECK(strcmp(getenv("NCCL_SOCKET_IFNAME"), "=lo") == 0 && strcmp(getenv("NCCL_RAS_ENABLE"), "0") == 0);
    if (r->w->variant == 2) { /* one rank needs none */
        CHECK(e == ERR_OK && comm_connect(r->c, &a, in_ms(PATIENCE_MS)) == ERR_OK);
        CHECK(comm_nccl_all_reduce(r->c, NULL, 5, NULL) == ERR_OK);
        return 0;
    }
    CHECK(e == ERR_UNSUPPORTED && r->c == NULL);
    CHECK(strstr(err_detail(), r->w->variant == 0 ? "2.17.3" : "libnccl.so.2") && strstr(err_detail(), "2.18"));
    return 0;
}

static void nccl_is_looked_for_where_it_is_needed(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        struct world *w = world_create(PROCESSES, 1, 1);
        w->variant = i;
        run_world(w, library, NULL);
    }
}

int main(void)
{
    /* Read by UCX when its first context is made, by the emulated GPUs and by NCCL, in the children. */
    setenv("UCX_WARN_UNUSED_ENV_VARS", "n", 0);
    setenv("UCX_MEM_EVENTS", "n", 0);
    setenv("RACKLM_EMU_DEVICES", "4", 0);
    static const char *const one_gpu[][2] = {{"NCCL_NET", "Socket"}, {"NCCL_IB_DISABLE", "1"}, {"NCCL_MNNVL_ENABLE", "0"}, {"NCCL_MAX_CTAS", "2"}};
    for (unsigned i = 0; i < ARRAY_LEN(one_gpu); i++)
        setenv(one_gpu[i][0], one_gpu[i][1], 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_over_the_group),
        cmocka_unit_test(sums_in_the_order_of_ranks),
        cmocka_unit_test(sums_by_our_own_kernel),
        cmocka_unit_test(residual_and_norm_after_the_sum),
        cmocka_unit_test(all_gather_brings_every_part_to_every_rank),
        cmocka_unit_test(stages_pass_activations_on),
        cmocka_unit_test(a_graph_with_collectives_is_replayed),
        cmocka_unit_test(a_new_epoch_has_a_new_communicator),
        cmocka_unit_test(a_wait_ends_by_deadline_and_abort),
        cmocka_unit_test(survivors_of_a_peer_that_dies_in_a_collective_go_on),
        cmocka_unit_test(an_init_that_never_completes_ends_at_the_deadline),
        cmocka_unit_test(mixed_types_of_gpu_are_refused),
        cmocka_unit_test(addresses_that_are_none_are_refused),
        /* from here on of the emulated NCCL only */
        cmocka_unit_test(two_ranks_on_one_gpu_are_refused),
        cmocka_unit_test(errors_of_nccl_and_of_the_gpu_are_told),
        cmocka_unit_test(an_abort_that_hangs_ends_the_process),
        cmocka_unit_test(a_graph_that_outlives_its_communicator_ends_the_process),
        cmocka_unit_test(nccl_is_looked_for_where_it_is_needed),
    };
    return emulated() ? cmocka_run_group_tests_name("comm_nccl", tests, NULL, NULL) : _cmocka_run_group_tests("comm_nccl", tests, 13, NULL, NULL);
}
