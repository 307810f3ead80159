/* What worker/comm/comm_nccl.h promises while all goes well. Expectations are patterns computed from (rank, operation, position); sums are of whole numbers, which floats add
 * exactly in any order. What goes wrong: test_comm_nccl_faults.c. */
#include "tests/gpu/comm_nccl_ranks.h"
#include "worker/worker.h"

#include <math.h>

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
    w->result[r->rank] = h;
    meet(w, 10, w->n);
    CHECK(w->result[r->rank] == w->result[first]);
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

static int delayed(struct rank *r)
{
    if (r->rank == 1)
        setenv("RACKLM_EMU_NCCL_DELAY_US", "3000", 1);
    return sums(r);
}

static void sums_wait_for_a_rank_that_is_late(void **state)
{
    (void)state;
    run_case(PROCESSES, 3, 1, 0, delayed);
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

int main(void)
{
    set_environment();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_over_the_group),
        cmocka_unit_test(sums_in_the_order_of_ranks),
        cmocka_unit_test(sums_by_our_own_kernel),
        cmocka_unit_test(residual_and_norm_after_the_sum),
        cmocka_unit_test(all_gather_brings_every_part_to_every_rank),
        cmocka_unit_test(stages_pass_activations_on),
        cmocka_unit_test(a_graph_with_collectives_is_replayed),
        cmocka_unit_test(a_new_epoch_has_a_new_communicator),
        /* from here on of the emulated NCCL only */
        cmocka_unit_test(sums_wait_for_a_rank_that_is_late),
        cmocka_unit_test(a_graph_that_outlives_its_communicator_ends_the_process),
    };
    return emulated() ? cmocka_run_group_tests_name("comm_nccl", tests, NULL, NULL) : _cmocka_run_group_tests("comm_nccl", tests, 8, NULL, NULL);
}
