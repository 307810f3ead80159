/* What worker/comm/comm_nccl.h does when something goes wrong: deadlines and aborts, peers that die or never come, groups that are refused, errors that the emulated NCCL and GPUs
 * are told to make (left out on real ones). */
#include "tests/gpu/comm_nccl_ranks.h"
#include "worker/worker.h"

#include <sys/resource.h>

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
    collect_processes(w, loses_a_peer, status);
    munmap(w, sizeof(*w));
    assert_int_equal(status[0], 0);
    assert_int_equal(status[1], 0);
    assert_int_equal(status[2], 128 + SIGKILL);
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
    set_environment();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wait_ends_by_deadline_and_abort),
        cmocka_unit_test(survivors_of_a_peer_that_dies_in_a_collective_go_on),
        cmocka_unit_test(an_init_that_never_completes_ends_at_the_deadline),
        cmocka_unit_test(mixed_types_of_gpu_are_refused),
        cmocka_unit_test(addresses_that_are_none_are_refused),
        /* from here on of the emulated NCCL only */
        cmocka_unit_test(two_ranks_on_one_gpu_are_refused),
        cmocka_unit_test(errors_of_nccl_and_of_the_gpu_are_told),
        cmocka_unit_test(an_abort_that_hangs_ends_the_process),
        cmocka_unit_test(nccl_is_looked_for_where_it_is_needed),
    };
    return emulated() ? cmocka_run_group_tests_name("comm_nccl_faults", tests, NULL, NULL) : _cmocka_run_group_tests("comm_nccl_faults", tests, 5, NULL, NULL);
}
