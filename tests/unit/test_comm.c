/* The conformance suite of worker/comm/comm.h: every case runs over comm_local (ranks are threads) and comm_ucx (ranks are forked
 * processes, as in production). Expectations are patterns computed from (rank, operation, position).
 *
 * The UCX half is left out under ThreadSanitizer, which does not see into UCX or across processes. The figures printed with "measured" are for
 * people; nothing is asserted about them but bounds that only a collapse breaks. */
#include "base/check.h"
#include "tests/tools/comm_ranks.h"
#include "tests/tools/sanitized.h"
#include "tests/tools/shared_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

/* Every access costs tens of times more under a sanitizer: fewer and smaller messages there. PATIENCE_MS ends a wait for what must come; the times
 * that are asserted are lower bounds, so that a machine that stands still for seconds passes. */
enum { GATHERS = SANITIZED ? 12 : 60, SMALLER = SANITIZED_THREAD ? 32 : SANITIZED ? 4 : 1, PATIENCE_MS = 40000 };

/* Creates rank r's comm for epoch + round and connects it; `n` ranks take part in the exchange of addresses. */
static enum err join_world(struct rank *r, unsigned round)
{
    struct world *w = r->w;
    if (w->kind == THREADS) {
        TRY(comm_local_create(w->hubs[round], r->rank, &r->c));
        return comm_connect(r->c, NULL, in_ms(PATIENCE_MS));
    }
    if (w->netns[0][0] && round == 0) {
        char path[64];
        snprintf(path, sizeof(path), "/run/netns/%s", w->netns[r->rank]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || setns(fd, CLONE_NEWNET) != 0)
            return err_set(ERR_IO, "%s: %s", path, strerror(errno));
        close(fd);
        /* UCX reads /sys, which shows the namespace it was mounted in. */
        if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) != 0 ||
            umount2("/sys", MNT_DETACH) != 0 || mount("sysfs", "/sys", "sysfs", 0, NULL) != 0)
            return err_set(ERR_IO, "/sys: %s", strerror(errno));
    }
    struct comm_config cfg = {.rank = r->rank, .tp = w->tp, .pp = w->pp, .epoch = w->epoch + round,
                              .own_core = w->own_core, .net_device = w->net_device};
    TRY(comm_ucx_create(&cfg, &r->c, &w->addrs[round][r->rank]));
    meet(w, round, w->n);
    struct comm_addr *addrs = malloc(sizeof(struct comm_addr) * w->n);
    memcpy(addrs, w->addrs[round], sizeof(struct comm_addr) * w->n);
    for (uint32_t i = 0; i < w->n && w->other_host; i++)
        addrs[i].bytes[1] ^= 0xff;
    enum err e = comm_connect(r->c, addrs, in_ms(PATIENCE_MS));
    free(addrs);
    return e;
}

/* expect_killed: a bit mask of ranks that end by SIGKILL. */
static void run_processes(struct world *w, rank_fn *fn, unsigned expect_killed)
{
    int status[RANKS_MAX];
    collect_processes(w, fn, status);
    for (uint32_t i = 0; i < w->n; i++)
        assert_int_equal(status[i], expect_killed >> i & 1 ? 128 + SIGKILL : 0);
}

static void run_world(struct world *w, rank_fn *fn)
{
    if (w->kind == THREADS)
        assert_true(run_threads(w, fn));
    else
        run_processes(w, fn, 0);
}

static void run_case(enum kind kind, uint32_t tp, uint32_t pp, rank_fn *fn)
{
    struct world *w = world_create(kind, tp, pp);
    run_world(w, fn);
    munmap(w, sizeof(*w));
}

static enum kind kind_of(void **state)
{
    return *(enum kind *)*state;
}

/* ---- cases ---- */

/* Lengths by operation: small and equal, uneven with zeros, large enough for the ring. */
static size_t gather_len(uint32_t rank, uint32_t op)
{
    switch (op % 6) {
    case 0:
        return 64;
    case 1:
        return rank % 2 ? 0 : 100 + rank;
    case 2:
        return 8192;
    case 3:
        return rank * 70001 / SMALLER;
    case 4:
        return rank == 0 ? 600000 / SMALLER : 0;
    default:
        return 300000 / SMALLER + rank * 5;
    }
}

static int gathers(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    struct world *w = r->w;
    uint32_t tp = w->tp, first = r->rank / tp * tp;
    uint8_t *buf = malloc(4 << 20);
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    for (uint32_t op = 0; op < GATHERS; op++) {
        size_t off[RANKS_MAX], len[RANKS_MAX], at = 16;
        for (uint32_t k = 0; k < tp; k++) {
            off[k] = at;
            len[k] = gather_len(k, op);
            at += len[k] + 16; /* a gap that must stay as it is */
        }
        memset(buf, 0xee, at);
        uint32_t me = r->rank - first;
        for (size_t i = 0; i < len[me]; i++)
            buf[off[me] + i] = pattern(r->rank, op, i);
        CHECK(comm_allgather(r->c, buf, off, len) == ERR_OK);
        for (uint32_t k = 0; k < tp; k++) {
            for (size_t i = 0; i < len[k]; i++)
                CHECK(buf[off[k] + i] == pattern(first + k, op, i));
            for (size_t i = 0; i < 16; i++)
                CHECK(buf[off[k] + len[k] + i] == 0xee);
        }
    }
    CHECK(comm_stats(r->c).ops == (tp > 1 ? GATHERS + 1 : 1));
    free(buf);
    meet(w, 10, w->n); /* who leaves ends the operations of the others */
    return 0;
}

static void all_gather_brings_every_part_to_every_rank(void **state)
{
    for (uint32_t tp = 1; tp <= 4; tp++)
        if (tp != 3 || !sanitized_short())
            run_case(kind_of(state), tp, 1, gathers);
    run_case(kind_of(state), 2, 2, gathers);
    run_case(kind_of(state), 7, 1, gathers);
}

/* Both ranks first send several small messages each, then take them: small messages are buffered. Then large ones, one way. */
static int ordered(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    uint32_t peer = 1 - r->rank;
    static const size_t big[] = {5000, 70000, (1 << 20) / SMALLER, 3, 0};
    uint8_t *buf = malloc(1 << 20);
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    for (uint32_t turn = 0; turn < (SANITIZED ? 5 : 50); turn++) {
        for (uint32_t k = 0; k < 5; k++) {
            for (size_t i = 0; i < 800 * k + 1; i++)
                buf[i] = pattern(r->rank, turn * 5 + k, i);
            CHECK(comm_send(r->c, peer, buf, k == 4 ? 0 : 800 * k + 1) == ERR_OK);
        }
        for (uint32_t k = 0; k < 5; k++) {
            CHECK(comm_recv(r->c, peer, buf, k == 4 ? 0 : 800 * k + 1) == ERR_OK);
            for (size_t i = 0; k < 4 && i < 800 * k + 1; i++)
                CHECK(buf[i] == pattern(peer, turn * 5 + k, i));
        }
        for (uint32_t k = 0; k < ARRAY_LEN(big); k++) {
            for (size_t i = 0; r->rank == 0 && i < big[k]; i++)
                buf[i] = pattern(0, k, i);
            CHECK((r->rank == 0 ? comm_send(r->c, 1, buf, big[k]) : comm_recv(r->c, 0, buf, big[k])) == ERR_OK);
            for (size_t i = 0; r->rank == 1 && i < big[k]; i++)
                CHECK(buf[i] == pattern(0, k, i));
        }
    }
    free(buf);
    meet(r->w, 10, 2);
    return 0;
}

static void messages_of_a_pair_arrive_in_order(void **state)
{
    run_case(kind_of(state), 2, 1, ordered);
    run_case(kind_of(state), 1, 2, ordered);
}

/* A sender leaves the comm right after a send: what it sent still arrives (a stage that goes idle). */
static int left_alone(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    uint8_t buf[4096];
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    if (r->rank == 0) {
        memset(buf, 0x5a, sizeof(buf));
        for (unsigned i = 0; i < 4; i++)
            CHECK(comm_send(r->c, 1, buf, sizeof(buf)) == ERR_OK);
        meet(r->w, 10, 2);
    } else {
        sleep_ms(50);
        for (unsigned i = 0; i < 4; i++) {
            memset(buf, 0, sizeof(buf));
            CHECK(comm_recv(r->c, 0, buf, sizeof(buf)) == ERR_OK && buf[0] == 0x5a && buf[4095] == 0x5a);
        }
        meet(r->w, 10, 2);
    }
    return 0;
}

static void a_message_arrives_while_its_sender_is_away(void **state)
{
    run_case(kind_of(state), 1, 2, left_alone);
}

static int deadlines(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    uint8_t buf[64] = {0};
    size_t off[2] = {0, 32}, len[2] = {32, 32};
    if (r->rank == 0) {
        uint64_t t0 = clock_ns();
        comm_set_deadline(r->c, t0 + 150 * NS_PER_MS);
        CHECK(comm_allgather(r->c, buf, off, len) == ERR_TIMEOUT);
        uint64_t took = clock_ns() - t0;
        CHECK(took >= 150 * NS_PER_MS && took < PATIENCE_MS * NS_PER_MS);
        CHECK(strstr(err_detail(), "deadline") != NULL);
        CHECK(comm_recv(r->c, 1, buf, 8) == ERR_TIMEOUT); /* broken for good */
    }
    meet(r->w, 10, 2);
    return 0;
}

static void a_wait_ends_at_its_deadline(void **state)
{
    run_case(kind_of(state), 2, 1, deadlines);
}

static int aborted(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    uint8_t buf[64];
    if (r->rank == 0) {
        pthread_t t;
        uint64_t t0 = clock_ns();
        CHECK(pthread_create(&t, NULL, abort_soon, r->c) == 0);
        enum err e = comm_recv(r->c, 1, buf, sizeof(buf)); /* no deadline */
        uint64_t took = clock_ns() - t0;
        pthread_join(t, NULL);
        CHECK(e == ERR_ABORTED);
        CHECK(took >= 100 * NS_PER_MS);
    }
    meet(r->w, 10, 2);
    return 0;
}

static void a_wait_ends_when_another_thread_aborts(void **state)
{
    run_case(kind_of(state), 2, 1, aborted);
}

struct idle_arg {
    struct comm *c;
    unsigned calls;
};

static void on_idle(void *p)
{
    struct idle_arg *a = p;
    if (++a->calls == 4)
        comm_abort(a->c);
}

static int idles(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    uint8_t buf[64];
    if (r->rank == 0) {
        struct idle_arg a = {r->c, 0};
        uint64_t t0 = clock_ns();
        comm_set_deadline(r->c, t0 + PATIENCE_MS * NS_PER_MS);
        comm_set_idle(r->c, on_idle, &a, 30);
        CHECK(comm_recv(r->c, 1, buf, sizeof(buf)) == ERR_ABORTED);
        uint64_t took = clock_ns() - t0;
        CHECK(a.calls == 4 && took >= 110 * NS_PER_MS);
    }
    meet(r->w, 10, 2);
    return 0;
}

static void the_idle_function_runs_during_a_wait_and_may_abort(void **state)
{
    run_case(kind_of(state), 2, 1, idles);
}

static int loses_a_peer(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    uint8_t *buf = calloc(1, 3 << 20);
    size_t n = r->w->epoch == 7 ? 8192 : 1 << 20, off[3] = {0, n, 2 * n}, len[3] = {n, n, n};
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    for (unsigned i = 0; i < 10; i++)
        CHECK(comm_allgather(r->c, buf, off, len) == ERR_OK);
    if (r->rank == 2) {
        free(buf);
        if (r->w->kind == PROCESSES)
            raise(SIGKILL);
        return 0; /* a thread: comm_destroy */
    }
    comm_set_deadline(r->c, in_ms(400));
    enum err e = ERR_OK;
    for (unsigned i = 0; i < 10 && e == ERR_OK; i++)
        e = comm_allgather(r->c, buf, off, len);
    CHECK(e == ERR_TIMEOUT || e == ERR_PEER_LOST);
    comm_destroy(&r->c);
    free(buf);
    if (r->w->kind == THREADS)
        return 0;

    /* A new epoch, with a new process for the lost rank (started by the case). */
    CHECK(join_world(r, 1) == ERR_OK);
    uint8_t word[3] = {0};
    size_t o1[3] = {0, 1, 2}, l1[3] = {1, 1, 1};
    word[r->rank] = (uint8_t)(r->rank + 1);
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    CHECK(comm_allgather(r->c, word, o1, l1) == ERR_OK && word[0] == 1 && word[1] == 2 && word[2] == 3);
    return 0;
}

static int replaces_a_peer(struct rank *r)
{
    CHECK(join_world(r, 1) == ERR_OK);
    uint8_t word[3] = {0, 0, 3};
    size_t off[3] = {0, 1, 2}, len[3] = {1, 1, 1};
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    CHECK(comm_allgather(r->c, word, off, len) == ERR_OK && word[0] == 1 && word[1] == 2 && word[2] == 3);
    return 0;
}

static void survivors_of_a_killed_peer_go_on_in_a_new_epoch(void **state)
{
    if (kind_of(state) == THREADS) {
        run_case(THREADS, 3, 1, loses_a_peer);
        return;
    }
    for (uint64_t epoch = 7; epoch < 9; epoch++) { /* 7: small messages, 8: 1 MiB ones */
        struct world *w = world_create(PROCESSES, 3, 1);
        w->epoch = epoch;
        pid_t pids[3];
        for (uint32_t i = 0; i < 3; i++)
            pids[i] = start_process(w, i, loses_a_peer);
        assert_int_equal(wait_process(pids[2]), 128 + SIGKILL);
        pids[2] = start_process(w, 2, replaces_a_peer);
        for (uint32_t i = 0; i < 3; i++)
            assert_int_equal(wait_process(pids[i]), 0);
        munmap(w, sizeof(*w));
    }
}

/* ---- UCX only ---- */

static int of_two_epochs(struct rank *r)
{
    struct world *w = r->w;
    struct comm_config cfg = {.rank = r->rank, .tp = 2, .pp = 1, .epoch = 100 + r->rank};
    CHECK(comm_ucx_create(&cfg, &r->c, &w->addrs[0][r->rank]) == ERR_OK);
    meet(w, 0, 2);
    CHECK(comm_connect(r->c, w->addrs[0], in_ms(400)) == ERR_TIMEOUT);
    meet(w, 1, 2);
    return 0;
}

static void ranks_of_different_epochs_never_meet(void **state)
{
    (void)state;
    struct world *w = world_create(PROCESSES, 2, 1);
    run_processes(w, of_two_epochs, 0);
    munmap(w, sizeof(*w));
}

static int peer_never_comes(struct rank *r)
{
    struct world *w = r->w;
    struct comm_config cfg = {.rank = r->rank, .tp = 2, .pp = 1, .epoch = 3};
    CHECK(comm_ucx_create(&cfg, &r->c, &w->addrs[0][r->rank]) == ERR_OK);
    meet(w, 0, 2);
    if (r->rank == 1) {
        meet(w, 1, 2);
        return 0; /* alive, but never connects */
    }
    CHECK(comm_connect(r->c, w->addrs[0], in_ms(200)) == ERR_TIMEOUT);
    meet(w, 1, 2);
    return 0;
}

static void connecting_to_a_silent_peer_ends_at_the_deadline(void **state)
{
    (void)state;
    struct world *w = world_create(PROCESSES, 2, 1);
    run_processes(w, peer_never_comes, 0);
    munmap(w, sizeof(*w));
}

/* Listening TCP sockets of this process (local addresses in hex as /proc/net/tcp has them), counted; the first is copied. */
static unsigned listening(char *first, size_t cap)
{
    unsigned n = 0;
    static const char *const tables[] = {"/proc/self/net/tcp", "/proc/self/net/tcp6"};
    for (unsigned t = 0; t < 2; t++) {
        FILE *f = fopen(tables[t], "r");
        char line[512], local[128];
        unsigned state;
        unsigned long inode;
        while (f && fgets(line, sizeof(line), f)) {
            if (sscanf(line, " %*d: %127s %*s %x %*s %*s %*s %*u %*u %lu", local, &state, &inode) != 3 || state != 0x0a)
                continue;
            char want[64], link[64], path[300];
            snprintf(want, sizeof(want), "socket:[%lu]", inode);
            DIR *d = opendir("/proc/self/fd");
            for (struct dirent *e; d && (e = readdir(d));) {
                snprintf(path, sizeof(path), "/proc/self/fd/%s", e->d_name);
                ssize_t len = readlink(path, link, sizeof(link) - 1);
                if (len <= 0)
                    continue;
                link[len] = 0;
                if (strcmp(link, want) == 0 && n++ == 0)
                    snprintf(first, cap, "%s", local);
            }
            if (d)
                closedir(d);
        }
        if (f)
            fclose(f);
    }
    return n;
}

static int lists_sockets(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    char first[128] = "";
    unsigned n = listening(first, sizeof(first));
    if (!r->w->net_device)
        CHECK(n == 0);
    else
        CHECK(n > 0 && strncmp(first, "0100007F:", 9) == 0); /* 127.0.0.1, the address of lo, and nothing wider */
    meet(r->w, 10, 2);
    return 0;
}

static void within_a_host_nothing_listens_and_between_hosts_only_the_device(void **state)
{
    (void)state;
    struct world *w = world_create(PROCESSES, 2, 1);
    run_processes(w, lists_sockets, 0);
    memset(w->arrived, 0, sizeof(w->arrived));
    w->net_device = "lo";
    run_processes(w, lists_sockets, 0);
    munmap(w, sizeof(*w));
}

static int is_killed(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    meet(r->w, 10, 2);
    raise(SIGKILL);
    return 0;
}

static void killed_processes_leave_no_shared_memory(void **state)
{
    (void)state;
    unsigned before = shared_memory_orphans();
    struct world *w = world_create(PROCESSES, 2, 1);
    run_processes(w, is_killed, 3);
    munmap(w, sizeof(*w));
    assert_false(shared_memory_left(before));
}

static void dies(void *arg)
{
    (void)arg;
    raise(SIGKILL);
}

static bool is_zombie(pid_t pid)
{
    char path[64], state = 0;
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    bool read = f && fscanf(f, "%*d (%*[^)]) %c", &state) == 1;
    if (f)
        fclose(f);
    return read && state == 'Z';
}

/* Rank 1 has announced a large message, which the receiver copies out of its memory, and is dead when that is tried. */
static int receives_from_a_dead_peer(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    size_t n = 1 << 20;
    uint8_t *buf = calloc(1, n);
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    if (r->rank == 1) {
        CHECK(comm_send(r->c, 0, buf, n) == ERR_OK);
        comm_set_idle(r->c, dies, NULL, 100);
        comm_send(r->c, 0, buf, n);
        return 1;
    }
    CHECK(comm_recv(r->c, 1, buf, n) == ERR_OK); /* so that the way is open */
    while (!is_zombie(r->w->pids[1]))
        usleep(10000);
    comm_set_deadline(r->c, in_ms(1000));
    enum err e = comm_recv(r->c, 1, buf, n);
    CHECK(e == ERR_PEER_LOST || e == ERR_TIMEOUT);
    free(buf);
    return 0;
}

static void a_copy_from_a_dead_peer_is_an_error(void **state)
{
    (void)state;
    struct world *w = world_create(PROCESSES, 2, 1);
    run_processes(w, receives_from_a_dead_peer, 2);
    munmap(w, sizeof(*w));
}

static void over_tcp_the_same_holds(void **state)
{
    (void)state;
    static rank_fn *const cases[] = {gathers, ordered, left_alone, deadlines, aborted};
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct world *w = world_create(PROCESSES, 2, 1);
        w->net_device = "lo";
        w->other_host = true;
        run_processes(w, cases[i], 0);
        munmap(w, sizeof(*w));
    }
    struct world *w = world_create(PROCESSES, 3, 1);
    w->net_device = "lo";
    w->other_host = true;
    run_processes(w, gathers, 0);
    munmap(w, sizeof(*w));
}

static int loses_a_remote_peer(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    uint8_t buf[64];
    if (r->rank == 1)
        raise(SIGKILL);
    comm_set_deadline(r->c, in_ms(1500));
    enum err e = comm_recv(r->c, 1, buf, sizeof(buf));
    CHECK(e == ERR_PEER_LOST || e == ERR_TIMEOUT);
    return 0;
}

/* The peer stops in the middle of large messages: requests of every sort are under way when the deadline comes. */
static int loses_a_remote_peer_while_busy(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    size_t n = 2 << 20, off[2] = {0, n}, len[2] = {n, n};
    uint8_t *buf = calloc(2, n);
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    enum err e = ERR_OK;
    for (unsigned i = 0; e == ERR_OK && i < 100000; i++) {
        if (r->rank == 0 && i == 20)
            comm_set_deadline(r->c, in_ms(700));
        if (r->rank == 1 && i == 20)
            raise(r->w->epoch == 7 ? SIGKILL : SIGSTOP); /* stopped: killed by the case */
        e = comm_allgather(r->c, buf, off, len);
    }
    CHECK(e == ERR_PEER_LOST || e == ERR_TIMEOUT);
    comm_destroy(&r->c);
    free(buf);
    kill(r->w->pids[1], SIGKILL);
    return 0;
}

static void a_remote_peer_that_dies_is_noticed(void **state)
{
    (void)state;
    struct world *w = world_create(PROCESSES, 2, 1);
    w->net_device = "lo";
    w->other_host = true;
    run_processes(w, loses_a_remote_peer, 2);
    for (w->epoch = 7; w->epoch < 9; w->epoch++) {
        memset(w->arrived, 0, sizeof(w->arrived));
        run_processes(w, loses_a_remote_peer_while_busy, 2);
    }
    munmap(w, sizeof(*w));
}

/* ---- two network namespaces joined by a cable: two hosts ---- */

static bool shell(const char *fmt, ...)
{
    char cmd[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(cmd, sizeof(cmd), fmt, ap);
    va_end(ap);
    return system(cmd) == 0;
}

static int works_then_is_cut(struct rank *r)
{
    struct world *w = r->w;
    CHECK(join_world(r, 0) == ERR_OK);
    char first[128] = "";
    CHECK(listening(first, sizeof(first)) > 0 && strncmp(first, r->rank ? "0202630A:" : "0102630A:", 9) == 0); /* 10.99.2.1, .2 */
    uint8_t *buf = calloc(2, 1 << 20);
    size_t off[2] = {0, 1 << 20}, len[2] = {8192, 8192};
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    for (uint32_t op = 0; op < 200; op++) {
        len[0] = len[1] = op % 50 == 0 ? 1 << 20 : 8192;
        for (size_t i = 0; i < len[0]; i++)
            buf[off[r->rank] + i] = pattern(r->rank, op, i);
        CHECK(comm_allgather(r->c, buf, off, len) == ERR_OK);
        for (size_t i = 0; i < len[0]; i++)
            CHECK(buf[off[1 - r->rank] + i] == pattern(1 - r->rank, op, i));
    }
    meet(w, 10, 2);
    if (r->rank == 0)
        CHECK(shell("ip -n %s link set data down", w->netns[0]));
    meet(w, 11, 2);
    comm_set_deadline(r->c, in_ms(600));
    enum err e = comm_allgather(r->c, buf, off, len);
    CHECK(e == ERR_TIMEOUT || e == ERR_PEER_LOST);
    comm_destroy(&r->c);
    meet(w, 12, 2);
    if (r->rank == 0)
        CHECK(shell("ip -n %s link set data up", w->netns[0]));
    meet(w, 13, 2);
    CHECK(join_world(r, 1) == ERR_OK);
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    CHECK(comm_allgather(r->c, buf, off, len) == ERR_OK);
    meet(w, 14, 2);
    free(buf);
    return 0;
}

static void two_hosts_survive_a_cut_cable(void **state)
{
    (void)state;
    char a[32], b[32];
    snprintf(a, sizeof(a), "rka%d", (int)getpid());
    snprintf(b, sizeof(b), "rkb%d", (int)getpid());
    bool ok = shell("ip netns add %s 2>/dev/null", a) && shell("ip netns add %s 2>/dev/null", b) &&
              shell("ip -n %s link add data type veth peer name data netns %s 2>/dev/null", a, b) &&
              shell("ip -n %s addr add 10.99.2.1/24 dev data && ip -n %s addr add 10.99.2.2/24 dev data", a, b) &&
              shell("ip -n %s link set data up && ip -n %s link set data up", a, b);
    struct world *w = world_create(PROCESSES, 2, 1);
    memcpy(w->netns[0], a, sizeof(a));
    memcpy(w->netns[1], b, sizeof(b));
    w->net_device = "data";
    int status[2] = {0, 0};
    for (uint32_t i = 0; ok && i < 2; i++)
        w->pids[i] = start_process(w, i, works_then_is_cut);
    for (uint32_t i = 0; ok && i < 2; i++)
        status[i] = wait_process(w->pids[i]);
    shell("ip netns del %s 2>/dev/null", a);
    shell("ip netns del %s 2>/dev/null", b);
    munmap(w, sizeof(*w));
    if (!ok)
        skip(); /* no right to make network namespaces here */
    assert_int_equal(status[0], 0);
    assert_int_equal(status[1], 0);
}

static int far_without_device(struct rank *r)
{
    enum err e = join_world(r, 0);
    CHECK(e == ERR_CONFIG && strstr(err_detail(), "--comm-device"));
    return 0;
}

static void another_host_without_a_device_is_a_clear_error(void **state)
{
    (void)state;
    struct world *w = world_create(PROCESSES, 2, 1);
    w->other_host = true;
    run_processes(w, far_without_device, 0);
    munmap(w, sizeof(*w));

    struct comm_config cfg = {.rank = 0, .tp = 1, .pp = 1, .net_device = "nosuch0"};
    struct comm *c = NULL;
    struct comm_addr a;
    assert_int_equal(comm_ucx_create(&cfg, &c, &a), ERR_CONFIG);
    assert_non_null(strstr(err_detail(), "nosuch0"));
    assert_null(c);
}

static int measures(struct rank *r)
{
    CHECK(join_world(r, 0) == ERR_OK);
    uint32_t tp = r->w->tp, n = SANITIZED ? 300 : 2000;
    uint8_t *buf = calloc(RANKS_MAX, 8192);
    size_t off[RANKS_MAX], len[RANKS_MAX];
    for (uint32_t k = 0; k < tp; k++) {
        off[k] = k * 8192;
        len[k] = 8192;
    }
    comm_set_deadline(r->c, in_ms(PATIENCE_MS));
    for (unsigned i = 0; i < 50; i++)
        CHECK(comm_allgather(r->c, buf, off, len) == ERR_OK);
    uint64_t t0 = clock_ns();
    for (unsigned i = 0; i < n; i++)
        CHECK(comm_allgather(r->c, buf, off, len) == ERR_OK);
    r->w->result[r->rank] = (clock_ns() - t0) / n;
    free(buf);
    return 0;
}

static void more_ranks_than_cores_do_not_collapse(void **state)
{
    (void)state;
    static const struct {
        uint32_t tp;
        bool own, net;
    } rows[] = {{2, true, false}, {2, false, false}, {2, true, true}, {4, false, false}};
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++) {
        struct world *w = world_create(PROCESSES, rows[i].tp, 1);
        w->own_core = rows[i].own;
        w->net_device = rows[i].net ? "lo" : NULL;
        w->other_host = rows[i].net;
        run_processes(w, measures, 0);
        print_message("measured: all-gather of 8 KiB parts, %u processes, %s, %s: %.1f us\n", rows[i].tp,
                      rows[i].own ? "own cores" : "shared cores", rows[i].net ? "TCP on lo" : "shared memory",
                      (double)w->result[0] / 1000);
        assert_true(w->result[0] > 0); /* and all of them within PATIENCE_MS */
        munmap(w, sizeof(*w));
    }
}

int main(void)
{
    /* Read by UCX when its first context is made, in the children. */
    setenv("UCX_WARN_UNUSED_ENV_VARS", "n", 0);
    static enum kind local = THREADS, ucx = PROCESSES;
    const struct CMUnitTest tests[] = {
        {"all-gather (local)", all_gather_brings_every_part_to_every_rank, NULL, NULL, &local},
        {"order (local)", messages_of_a_pair_arrive_in_order, NULL, NULL, &local},
        {"sender away (local)", a_message_arrives_while_its_sender_is_away, NULL, NULL, &local},
        {"deadline (local)", a_wait_ends_at_its_deadline, NULL, NULL, &local},
        {"abort (local)", a_wait_ends_when_another_thread_aborts, NULL, NULL, &local},
        {"idle function (local)", the_idle_function_runs_during_a_wait_and_may_abort, NULL, NULL, &local},
        {"lost peer (local)", survivors_of_a_killed_peer_go_on_in_a_new_epoch, NULL, NULL, &local},
        {"all-gather (ucx)", all_gather_brings_every_part_to_every_rank, NULL, NULL, &ucx},
        {"order (ucx)", messages_of_a_pair_arrive_in_order, NULL, NULL, &ucx},
        {"sender away (ucx)", a_message_arrives_while_its_sender_is_away, NULL, NULL, &ucx},
        {"deadline (ucx)", a_wait_ends_at_its_deadline, NULL, NULL, &ucx},
        {"abort (ucx)", a_wait_ends_when_another_thread_aborts, NULL, NULL, &ucx},
        {"idle function (ucx)", the_idle_function_runs_during_a_wait_and_may_abort, NULL, NULL, &ucx},
        {"lost peer (ucx)", survivors_of_a_killed_peer_go_on_in_a_new_epoch, NULL, NULL, &ucx},
        cmocka_unit_test(ranks_of_different_epochs_never_meet),
        cmocka_unit_test(connecting_to_a_silent_peer_ends_at_the_deadline),
        cmocka_unit_test(within_a_host_nothing_listens_and_between_hosts_only_the_device),
        cmocka_unit_test(killed_processes_leave_no_shared_memory),
        cmocka_unit_test(a_copy_from_a_dead_peer_is_an_error),
        cmocka_unit_test(over_tcp_the_same_holds),
        cmocka_unit_test(a_remote_peer_that_dies_is_noticed),
        cmocka_unit_test(two_hosts_survive_a_cut_cable),
        cmocka_unit_test(another_host_without_a_device_is_a_clear_error),
        cmocka_unit_test(more_ranks_than_cores_do_not_collapse),
    };
    /* Under ThreadSanitizer only the threads. */
    if (SANITIZED_THREAD)
        return _cmocka_run_group_tests("comm", tests, 7, NULL, NULL);
    return cmocka_run_group_tests_name("comm", tests, NULL, NULL);
}
