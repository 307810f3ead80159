/* kernels/cuda/all_reduce.h with N virtual ranks in one grid, and with ranks on devices of their own where there are several. Expected sums are plain float additions in
 * the order of ranks, bit for bit; expected norms are computed in double. Mailboxes are never wiped between the calls of a case. */
#include "kernels/cuda/all_reduce.h"

#include "base/check.h"
#include "base/clock.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define OK(x) assert_int_equal((x), cudaSuccess)

enum { FLOATS_MAX = 6000 };

struct world {
    uint32_t n;
    struct cuda_peers peers[CUDA_PEERS_MAX];
    struct cuda_all_reduce calls[CUDA_PEERS_MAX];
    size_t room;     /* of a part, in floats */
    uint32_t *words; /* [rank][abort, status] */
    float *w;
    float *host[CUDA_PEERS_MAX]; /* what each rank's part was */
    float *residual, *weights;   /* host copies */
    cudaStream_t stream;
};

static uint64_t random_state = 88172645463325252ull; /* Marsaglia's xorshift64 */
static float random_float(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (float)((double)(random_state >> 11) / 9007199254740992.0 * 4.0 - 2.0);
}

static void *device_memory(size_t bytes)
{
    void *p;
    OK(cudaMalloc(&p, bytes));
    OK(cudaMemset(p, 0, bytes));
    return p;
}

/* ranks[i] lives on device i % n_devices. */
static void world_init(struct world *w, uint32_t n, int n_devices)
{
    *w = (struct world){.n = n, .room = FLOATS_MAX};
    OK(cudaHostAlloc((void **)&w->words, 2 * n * sizeof(uint32_t), cudaHostAllocPortable | cudaHostAllocMapped));
    memset(w->words, 0, 2 * n * sizeof(uint32_t));
    w->residual = calloc(FLOATS_MAX, sizeof(float));
    w->weights = calloc(FLOATS_MAX, sizeof(float));
    void *mail[CUDA_PEERS_MAX];
    for (uint32_t r = 0; r < n; r++) {
        OK(cudaSetDevice((int)r % n_devices));
        mail[r] = device_memory(cuda_peers_mail_bytes(n, FLOATS_MAX));
        w->peers[r] = (struct cuda_peers){.rank = r, .n = n, .floats_max = FLOATS_MAX, .state = device_memory(CUDA_PEERS_STATE_BYTES),
                                          .abort = &w->words[2 * r], .status = &w->words[2 * r + 1], .spin_ns = 100 * NS_PER_S};
        w->calls[r].part = device_memory(FLOATS_MAX * sizeof(float));
        w->host[r] = calloc(FLOATS_MAX, sizeof(float));
    }
    for (uint32_t r = 0; r < n; r++) {
        OK(cudaSetDevice((int)r % n_devices));
        memcpy(w->peers[r].mail, mail, sizeof(mail));
        OK(cuda_peers_reset(&w->peers[r], 1));
        for (int d = 0; d < n_devices && n_devices > 1; d++)
            if (d != (int)r % n_devices) {
                cudaError_t e = cudaDeviceEnablePeerAccess(d, 0);
                assert_true(e == cudaSuccess || e == cudaErrorPeerAccessAlreadyEnabled);
                (void)cudaGetLastError();
            }
    }
    OK(cudaSetDevice(0));
    OK(cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking));
}

static void world_deinit(struct world *w)
{
    OK(cudaDeviceSynchronize());
    for (uint32_t r = 0; r < w->n; r++) {
        OK(cudaFree(w->peers[r].mail[r]));
        OK(cudaFree(w->peers[r].state));
        OK(cudaFree(w->calls[r].part));
        cudaFree(w->calls[r].x);
        cudaFree(w->calls[r].out.x);
        cudaFree(w->calls[r].out.scale);
        free(w->host[r]);
    }
    cudaFree(w->w);
    OK(cudaFreeHost(w->words));
    OK(cudaStreamDestroy(w->stream));
    free(w->residual);
    free(w->weights);
}

/* Parts in memory of so many floats. */
static void new_parts(struct world *w, size_t room)
{
    for (uint32_t r = 0; r < w->n; r++) {
        OK(cudaFree(w->calls[r].part));
        w->calls[r].part = device_memory(room * sizeof(float));
    }
    w->room = room;
}

/* What stands behind a part has to stay. */
static const float beyond[3] = {12345, 12346, 12347};

static void fill_parts(struct world *w, size_t count)
{
    for (uint32_t r = 0; r < w->n; r++) {
        if (count + ARRAY_LEN(beyond) <= w->room)
            OK(cudaMemcpy(w->calls[r].part + count, beyond, sizeof(beyond), cudaMemcpyHostToDevice));
        for (size_t i = 0; i < count; i++)
            w->host[r][i] = random_float();
        OK(cudaMemcpy(w->calls[r].part, w->host[r], count * sizeof(float), cudaMemcpyHostToDevice));
    }
}

static float sum_at(const struct world *w, size_t i)
{
    float s = w->host[0][i];
    for (uint32_t r = 1; r < w->n; r++)
        s += w->host[r][i];
    return s;
}

static void check_sums(struct world *w, size_t count)
{
    float *got = malloc(count * sizeof(float));
    for (uint32_t r = 0; r < w->n; r++) {
        OK(cudaMemcpy(got, w->calls[r].part, count * sizeof(float), cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < count; i++) {
            float want = sum_at(w, i);
            if (memcmp(&got[i], &want, sizeof(want)) != 0)
                fail_msg("rank %u of %u, %zu values, number %zu: %a, not %a", r, w->n, count, i, (double)got[i], (double)want);
        }
        assert_int_equal(w->words[2 * r + 1], CUDA_PEERS_OK);
        if (count + ARRAY_LEN(beyond) <= w->room) {
            OK(cudaMemcpy(got, w->calls[r].part + count, MIN(count, ARRAY_LEN(beyond)) * sizeof(float), cudaMemcpyDeviceToHost));
            assert_memory_equal(got, beyond, MIN(count, ARRAY_LEN(beyond)) * sizeof(float));
        }
    }
    free(got);
}

static void run_sum(struct world *w, uint32_t count)
{
    fill_parts(w, count);
    OK(cuda_all_reduce(w->peers, w->calls, w->n, 1, count, w->stream));
    OK(cudaStreamSynchronize(w->stream));
    check_sums(w, count);
}

static const uint32_t group_sizes[] = {2, 3, 4, 8};

/* Sizes change from call to call, so that a place in a mailbox holds numbers of long ago. */
static void sums_are_those_of_the_ranks_in_order(void **state)
{
    (void)state;
    static const uint32_t counts[] = {4, 1, 2, 3, 5, 7, 511, 512, 513, 1, 515, 1024, 2051, 4, 1030};
    for (unsigned g = 0; g < ARRAY_LEN(group_sizes); g++) {
        struct world w;
        world_init(&w, group_sizes[g], 1);
        for (unsigned i = 0; i < ARRAY_LEN(counts); i++)
            run_sum(&w, counts[i]);
        run_sum(&w, group_sizes[g] < 8 ? FLOATS_MAX : 3000);
        for (unsigned i = 0; i < 5; i++) { /* nothing is read beyond a part either */
            new_parts(&w, counts[i]);
            run_sum(&w, counts[i]);
        }
        world_deinit(&w);
    }
}

static void gathered_parts_have_the_same_sum(void **state)
{
    (void)state;
    static const uint32_t counts[] = {1, 255, 256, 257, 1000};
    struct world w;
    world_init(&w, 3, 1);
    float *parts = device_memory(3 * 1000 * sizeof(float));
    for (unsigned k = 0; k < ARRAY_LEN(counts); k++) {
        fill_parts(&w, counts[k]);
        for (uint32_t r = 0; r < 3; r++)
            OK(cudaMemcpy(parts + (size_t)r * counts[k], w.host[r], counts[k] * sizeof(float), cudaMemcpyHostToDevice));
        for (uint32_t r = 0; r < 3; r++)
            OK(cuda_sum_parts(w.calls[r].part, parts, 3, counts[k], w.stream));
        OK(cudaStreamSynchronize(w.stream));
        check_sums(&w, counts[k]);
    }
    OK(cudaFree(parts));
    world_deinit(&w);
}

static void numbers_of_calls_may_wrap(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 3, 1);
    for (uint32_t r = 0; r < w.n; r++)
        OK(cuda_peers_reset(&w.peers[r], UINT32_MAX - 1));
    for (unsigned i = 0; i < 5; i++)
        run_sum(&w, 30 + 10 * (i % 2));
    uint32_t step;
    OK(cuda_peers_step(&w.peers[1], &step));
    assert_int_equal(step, 5); /* ..fe, ..ff, then 2, 3, 4: 0 is left out, and 1 so that halves alternate */
    world_deinit(&w);
}

static float from_half(uint16_t h)
{
    int e = h >> 10 & 31, m = h & 1023;
    float v = e == 0 ? ldexpf((float)m, -24) : e == 31 ? (m ? NAN : INFINITY) : ldexpf((float)(m + 1024), e - 25);
    return h >> 15 ? -v : v;
}

static float from_bf16(uint16_t b)
{
    uint32_t u = (uint32_t)b << 16;
    float v;
    memcpy(&v, &u, sizeof(v));
    return v;
}

static float read_out(const void *out, enum cuda_type type, size_t i)
{
    const uint16_t *h = out;
    return type == CUDA_F32 ? ((const float *)out)[i] : type == CUDA_F16 ? from_half(h[i]) : from_bf16(h[i]);
}

static void add_norm_buffers(struct world *w, enum cuda_type type, uint32_t n_tok, uint32_t dim, bool residual)
{
    size_t count = (size_t)n_tok * dim;
    for (size_t i = 0; i < dim; i++)
        w->weights[i] = 1.0f + random_float() / 4;
    for (size_t i = 0; i < count; i++)
        w->residual[i] = random_float() * (i % 97 == 0 ? 300 : 3);
    w->w = device_memory(dim * sizeof(float));
    OK(cudaMemcpy(w->w, w->weights, dim * sizeof(float), cudaMemcpyHostToDevice));
    for (uint32_t r = 0; r < w->n; r++) {
        struct cuda_all_reduce *c = &w->calls[r];
        c->w = w->w;
        c->eps = 1e-5f;
        c->out = (struct cuda_act){.type = type, .n = n_tok, .k = dim, .x = device_memory(count * 4), .scale = device_memory(n_tok * sizeof(float))};
        if (residual) {
            c->x = device_memory(count * sizeof(float));
            OK(cudaMemcpy(c->x, w->residual, count * sizeof(float), cudaMemcpyHostToDevice));
        }
    }
}

/* Words of 8 bytes in a mailbox whose upper half is this number. */
static size_t numbered(const struct world *w, uint32_t rank, uint32_t step)
{
    size_t n = cuda_peers_mail_bytes(w->n, FLOATS_MAX) / 8, found = 0;
    uint64_t *words = malloc(n * 8);
    OK(cudaMemcpy(words, w->peers[rank].mail[rank], n * 8, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++)
        found += words[i] >> 32 == step;
    free(words);
    return found;
}

/* A slow rank may still be reading what call k brought while the others make call k + 1. */
static void a_call_leaves_what_the_one_before_it_brought(void **state)
{
    (void)state;
    enum { DIM = 1032 };
    struct world w;
    size_t before[3];
    world_init(&w, 3, 1);
    add_norm_buffers(&w, CUDA_F32, 2, DIM, true);
    for (uint32_t step = 1; step <= 3; step++) {
        OK(cuda_all_reduce(w.peers, w.calls, w.n, 2, DIM, w.stream));
        OK(cudaStreamSynchronize(w.stream));
        for (uint32_t r = 0; r < 3; r++) {
            if (step > 1)
                assert_int_equal(numbered(&w, r, step - 1), before[r]);
            before[r] = numbered(&w, r, step);
            assert_true(before[r] >= 2 * 2 * DIM); /* from two peers, two tokens */
        }
    }
    world_deinit(&w);
}

static void check_norm(struct world *w, uint32_t n_tok, uint32_t dim, bool residual)
{
    static const double tolerance[] = {[CUDA_F32] = 4e-6, [CUDA_F16] = 1.0 / 1024, [CUDA_BF16] = 1.0 / 128}; /* of a value: some roundings; half an ulp doubled */
    size_t count = (size_t)n_tok * dim;
    float *x = malloc(count * sizeof(float)), *scale = malloc(n_tok * sizeof(float));
    void *out = malloc(count * 4), *first = malloc(count * 4);
    for (uint32_t r = 0; r < w->n; r++) {
        const struct cuda_all_reduce *c = &w->calls[r];
        enum cuda_type type = c->out.type;
        size_t width = type == CUDA_F32 ? 4 : 2;
        OK(cudaMemcpy(x, residual ? c->x : c->part, count * sizeof(float), cudaMemcpyDeviceToHost));
        OK(cudaMemcpy(out, c->out.x, count * width, cudaMemcpyDeviceToHost));
        OK(cudaMemcpy(scale, c->out.scale, n_tok * sizeof(float), cudaMemcpyDeviceToHost));
        for (uint32_t t = 0; t < n_tok; t++) {
            double squares = 0, top = 0;
            for (uint32_t i = 0; i < dim; i++) {
                float want = sum_at(w, (size_t)t * dim + i);
                if (residual)
                    want = w->residual[(size_t)t * dim + i] + want;
                assert_memory_equal(&x[(size_t)t * dim + i], &want, sizeof(want));
                squares += (double)want * want;
            }
            double inv = 1 / sqrt(squares / dim + 1e-5), s = type == CUDA_F16 ? scale[t] : 1;
            int e;
            assert_true(frexp(s, &e) == 0.5); /* a power of two */
            for (uint32_t i = 0; i < dim; i++) {
                double want = x[(size_t)t * dim + i] * inv * w->weights[i], got = read_out(out, type, (size_t)t * dim + i) * s;
                top = fmax(top, fabs(want));
                if (fabs(got - want) > tolerance[type] * fabs(want) + 1e-7)
                    fail_msg("rank %u of %u, type %d, token %u of %u, %u of %u: %g, not %g", r, w->n, (int)type, t, n_tok, i, dim, got, want);
            }
            if (type == CUDA_F16)
                assert_true(top / s < 16400 && top / s > 8180); /* the top of f16 is used, and a factor of 4 is left */
        }
        if (r == 0)
            memcpy(first, out, count * width);
        assert_memory_equal(first, out, count * width);
    }
    free(x);
    free(scale);
    free(out);
    free(first);
}

static void residual_and_norm_follow(void **state)
{
    (void)state;
    static const struct {
        uint32_t n, n_tok, dim;
        bool residual;
    } rows[] = {{2, 1, 8, true}, {2, 3, 64, true}, {3, 1, 512, true}, {4, 2, 520, true}, {8, 1, 1032, true}, {2, 5, 1048, true}, {3, 2, 2048, false}, {2, 1, 5120, true}};
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++)
        for (enum cuda_type type = CUDA_F32; type <= CUDA_BF16; type++) {
            struct world w;
            world_init(&w, rows[i].n, 1);
            add_norm_buffers(&w, type, rows[i].n_tok, rows[i].dim, rows[i].residual);
            for (unsigned turn = 0; turn < 3; turn++) {
                size_t bytes = (size_t)rows[i].n_tok * rows[i].dim * sizeof(float);
                for (uint32_t r = 0; r < w.n && rows[i].residual; r++)
                    OK(cudaMemcpy(w.calls[r].x, w.residual, bytes, cudaMemcpyHostToDevice));
                fill_parts(&w, (size_t)rows[i].n_tok * rows[i].dim);
                OK(cuda_all_reduce(w.peers, w.calls, w.n, rows[i].n_tok, rows[i].dim, w.stream));
                OK(cudaStreamSynchronize(w.stream));
                check_norm(&w, rows[i].n_tok, rows[i].dim, rows[i].residual);
            }
            world_deinit(&w);
        }
}

/* A token's results do not depend on what else is in the call. */
static void tokens_do_not_know_of_each_other(void **state)
{
    (void)state;
    enum { DIM = 1032, TOKENS = 3 };
    struct world w;
    float *all = malloc(TOKENS * DIM * sizeof(float)), *one = malloc(DIM * sizeof(float));
    world_init(&w, 4, 1);
    add_norm_buffers(&w, CUDA_F32, TOKENS, DIM, true);
    fill_parts(&w, TOKENS * DIM);
    OK(cuda_all_reduce(w.peers, w.calls, w.n, TOKENS, DIM, w.stream));
    OK(cudaStreamSynchronize(w.stream));
    OK(cudaMemcpy(all, w.calls[2].out.x, TOKENS * DIM * sizeof(float), cudaMemcpyDeviceToHost));
    for (uint32_t r = 0; r < w.n; r++) {
        OK(cudaMemcpy(w.calls[r].part, w.host[r] + 2 * DIM, DIM * sizeof(float), cudaMemcpyHostToDevice));
        OK(cudaMemcpy(w.calls[r].x, w.residual + 2 * DIM, DIM * sizeof(float), cudaMemcpyHostToDevice));
        w.calls[r].out.n = 1;
    }
    OK(cuda_all_reduce(w.peers, w.calls, w.n, 1, DIM, w.stream));
    OK(cudaStreamSynchronize(w.stream));
    OK(cudaMemcpy(one, w.calls[2].out.x, DIM * sizeof(float), cudaMemcpyDeviceToHost));
    assert_memory_equal(one, all + 2 * DIM, DIM * sizeof(float));
    world_deinit(&w);
    free(all);
    free(one);
}

static void what_is_not_finite_stays_so(void **state)
{
    (void)state;
    for (enum cuda_type type = CUDA_F32; type <= CUDA_BF16; type++) {
        struct world w;
        uint8_t out[64 * 4];
        world_init(&w, 2, 1);
        add_norm_buffers(&w, type, 1, 64, true);
        fill_parts(&w, 64);
        float inf = INFINITY;
        OK(cudaMemcpy(w.calls[1].part + 5, &inf, sizeof(inf), cudaMemcpyHostToDevice));
        OK(cuda_all_reduce(w.peers, w.calls, w.n, 1, 64, w.stream));
        OK(cudaStreamSynchronize(w.stream));
        OK(cudaMemcpy(out, w.calls[0].out.x, 64 * (type == CUDA_F32 ? 4 : 2), cudaMemcpyDeviceToHost));
        for (unsigned i = 0; i < 64; i++)
            assert_true(isnan(read_out(out, type, i)));
        world_deinit(&w);
    }
}

static void a_graph_counts_on(void **state)
{
    (void)state;
    struct world w;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    world_init(&w, 3, 1);
    OK(cudaStreamBeginCapture(w.stream, cudaStreamCaptureModeThreadLocal));
    OK(cuda_all_reduce(w.peers, w.calls, w.n, 1, 700, w.stream));
    OK(cudaStreamEndCapture(w.stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    for (unsigned i = 0; i < 5; i++) {
        fill_parts(&w, 700);
        OK(cudaGraphLaunch(exec, w.stream));
        OK(cudaStreamSynchronize(w.stream));
        check_sums(&w, 700);
        run_sum(&w, 9 + i); /* and calls outside of it in between */
    }
    uint32_t step;
    OK(cuda_peers_step(&w.peers[0], &step));
    assert_int_equal(step, 11);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(graph));
    world_deinit(&w);
}

static void start_again(struct world *w)
{
    uint32_t step, top = 0;
    for (uint32_t r = 0; r < w->n; r++) {
        w->words[2 * r] = w->words[2 * r + 1] = 0;
        OK(cuda_peers_step(&w->peers[r], &step));
        top = MAX(top, step);
    }
    for (uint32_t r = 0; r < w->n; r++)
        OK(cuda_peers_reset(&w->peers[r], top + 2));
    run_sum(w, 600);
}

/* The last rank never comes: the others leave at the deadline, all later calls at once; then all begin anew. */
static void a_rank_that_never_comes_ends_the_wait(void **state)
{
    (void)state;
    for (unsigned g = 0; g < ARRAY_LEN(group_sizes); g++) {
        struct world w;
        uint32_t n = group_sizes[g];
        world_init(&w, n, 1);
        run_sum(&w, 600);
        add_norm_buffers(&w, CUDA_F16, 1, 1032, true);
        for (uint32_t r = 0; r < n; r++)
            w.peers[r].spin_ns = 50 * NS_PER_MS;
        uint64_t t0 = clock_ns();
        OK(cuda_all_reduce(w.peers, w.calls, n - 1, 1, 1032, w.stream));
        OK(cudaStreamSynchronize(w.stream));
        assert_true(clock_ns() - t0 >= 50 * NS_PER_MS);
        for (uint32_t r = 0; r < n; r++) {
            assert_int_equal(w.words[2 * r + 1], r < n - 1 ? CUDA_PEERS_TIMEOUT : CUDA_PEERS_OK);
            w.peers[r].spin_ns = 1000 * NS_PER_S;
        }
        t0 = clock_ns();
        assert_int_equal(numbered(&w, n - 1, 2), (n - 1) * 1032); /* what was sent to the one that did not come */
        OK(cuda_all_reduce(w.peers, w.calls, n - 1, 1, 1032, w.stream));
        OK(cudaStreamSynchronize(w.stream));
        assert_true(clock_ns() - t0 < 500 * NS_PER_S);
        assert_int_equal(numbered(&w, n - 1, 3), 0); /* nothing is sent any more */
        for (uint32_t r = 0; r < n; r++) {
            OK(cudaFree(w.calls[r].x));
            w.calls[r].x = NULL;
            w.calls[r].w = NULL;
        }
        start_again(&w);
        world_deinit(&w);
    }
}

static void *abort_soon(void *p)
{
    struct world *w = p;
    nanosleep(&(struct timespec){0, 100000000}, NULL);
    for (uint32_t r = 0; r < w->n; r++)
        __atomic_store_n(&w->words[2 * r], 1, __ATOMIC_RELEASE);
    return NULL;
}

static void the_host_may_end_a_wait(void **state)
{
    (void)state;
    struct world w;
    pthread_t t;
    world_init(&w, 4, 1);
    run_sum(&w, 600);
    assert_int_equal(pthread_create(&t, NULL, abort_soon, &w), 0);
    uint64_t t0 = clock_ns();
    OK(cuda_all_reduce(w.peers, w.calls, 3, 1, 1100, w.stream)); /* rank 3 is late */
    OK(cudaStreamSynchronize(w.stream));
    assert_true(clock_ns() - t0 < 90 * NS_PER_S);
    pthread_join(t, NULL);
    for (uint32_t r = 0; r < 3; r++)
        assert_int_equal(w.words[2 * r + 1], CUDA_PEERS_ABORTED);
    start_again(&w);
    world_deinit(&w);
}

static void shapes_that_fit(void **state)
{
    (void)state;
    struct cuda_peers p = {.n = 2, .floats_max = 100000};
    static const struct {
        uint32_t n_tok, dim;
        bool norm, fits;
    } rows[] = {{1, 1, false, true},      {1, 1, true, false},       {1, 8, true, true},      {0, 8, false, false},       {2, 9, false, false},   {2, 16, true, true},
                {1, 16384, true, true},   {1, 16392, true, false},   {1, 65536, false, true}, {1, 65537, false, false},   {128, 512, true, true}, {129, 512, true, false},
                {64, 1024, true, true},   {64, 1032, true, false},   {128, 8, true, true},    {1, UINT32_MAX, false, false}, {UINT32_MAX, 8, true, false}};
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++)
        if (cuda_all_reduce_fits(&p, rows[i].n_tok, rows[i].dim, rows[i].norm) != rows[i].fits)
            fail_msg("%u tokens of %u", rows[i].n_tok, rows[i].dim);
    p.floats_max = 1000;
    assert_true(cuda_all_reduce_fits(&p, 1, 1000, true));
    assert_false(cuda_all_reduce_fits(&p, 1, 1001, false));
}

/* ---- ranks on devices of their own, a thread each */

struct rank_arg {
    struct world *w;
    uint32_t rank;
    int device;
    unsigned errors;
};

static void *rank_main(void *p)
{
    struct rank_arg *a = p;
    cudaStream_t s;
    a->errors += cudaSetDevice(a->device) != cudaSuccess;
    a->errors += cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) != cudaSuccess;
    for (unsigned i = 0; i < 4; i++) /* the sum of sums: n times as much each time */
        a->errors += cuda_all_reduce(&a->w->peers[a->rank], &a->w->calls[a->rank], 1, 1, 777, s) != cudaSuccess;
    a->errors += cudaStreamSynchronize(s) != cudaSuccess;
    a->errors += cudaStreamDestroy(s) != cudaSuccess;
    return NULL;
}

static void ranks_on_their_own_devices(void **state)
{
    (void)state;
    int n_devices = 0;
    OK(cudaGetDeviceCount(&n_devices));
    if (n_devices < 2)
        skip();
    for (uint32_t n = 2; n <= (uint32_t)MIN(n_devices, 4); n++) {
        struct world w;
        struct rank_arg args[4];
        pthread_t threads[4];
        world_init(&w, n, (int)n);
        fill_parts(&w, 777);
        for (uint32_t r = 0; r < n; r++) {
            args[r] = (struct rank_arg){&w, r, (int)r, 0};
            assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &args[r]), 0);
        }
        for (uint32_t r = 0; r < n; r++) {
            pthread_join(threads[r], NULL);
            assert_int_equal(args[r].errors, 0);
        }
        for (uint32_t r = 0; r < n; r++) {
            float got[777];
            OK(cudaMemcpy(got, w.calls[r].part, sizeof(got), cudaMemcpyDeviceToHost));
            for (unsigned i = 0; i < 777; i++) {
                float want = sum_at(&w, i);
                for (unsigned k = 0; k < 3; k++) {
                    float s = want;
                    for (uint32_t q = 1; q < n; q++)
                        s += want;
                    want = s;
                }
                assert_memory_equal(&got[i], &want, sizeof(want));
            }
        }
        world_deinit(&w);
    }
}

int main(void)
{
    setenv("RACKLM_EMU_DEVICES", "4", 0); /* read by the emulator only */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_that_fit),
        cmocka_unit_test(sums_are_those_of_the_ranks_in_order),
        cmocka_unit_test(gathered_parts_have_the_same_sum),
        cmocka_unit_test(a_call_leaves_what_the_one_before_it_brought),
        cmocka_unit_test(numbers_of_calls_may_wrap),
        cmocka_unit_test(residual_and_norm_follow),
        cmocka_unit_test(tokens_do_not_know_of_each_other),
        cmocka_unit_test(what_is_not_finite_stays_so),
        cmocka_unit_test(a_graph_counts_on),
        cmocka_unit_test(a_rank_that_never_comes_ends_the_wait),
        cmocka_unit_test(the_host_may_end_a_wait),
        cmocka_unit_test(ranks_on_their_own_devices),
    };
    return cmocka_run_group_tests_name("all_reduce", tests, NULL, NULL);
}
