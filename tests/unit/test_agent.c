/* The real racklm-worker (agent and its workers) against a coordinator played by the test: hello, refusals, start, failure, death of each
 * process, recovery into a new epoch, silence, and what stays behind (nothing).
 *
 * RACKLM_WORKER_BIN: the program. WORKER_GPUS_BIN: the same with made-up GPUs (tests/tools/worker_gpus.c, fake_nvml.c). The model is the demo model in deploy/demo (6 layers, vocabulary 2048: its README). */
#include "base/check.h"
#include "base/clock.h"
#include "proto/device.h"
#include "proto/link.h"
#include "tests/tools/sanitized.h"
#include "tests/tools/shared_memory.h"
#include "worker/agent.h"
#include "worker/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#ifndef RACKLM_WORKER_BIN
#error "RACKLM_WORKER_BIN names the program under test"
#endif

/* PATIENCE_MS ends a wait for what must come. It is no expectation of speed: a machine that stands still for seconds passes. */
enum { MODEL_LAYERS = 6, MODEL_VOCAB = 2048, HEARTBEAT_MS = 100, RANKS = 2, PATIENCE_MS = 30000 };
#define MODEL "deploy/demo/grimm-6m-Q8_0.gguf"

/* ---- a coordinator ---- */

static struct cell {
    char dir[64], control[128], engine[128], key[256];
    struct keys keys;
    struct link_context *links;
    struct link_server *cluster, *workers;
    struct arena arena;
    struct msg msg;
    struct link_peer from, agent_peer, worker_peer[RANKS];
    uint32_t beats[RANKS + 1]; /* heartbeats of each rank; the last is the agent's */
    struct ready { /* of a rank, taken when it came */
        uint64_t epoch;
        uint8_t address[MSG_BLOB_MAX];
        uint32_t len;
    } ready[RANKS];
    struct exited { /* the last WORKER_EXITED, taken when it came */
        bool is;
        uint64_t id;
        int32_t status;
        char text[600];
    } exited;
    struct states { /* the last of GPUs, taken when it came */
        uint32_t n, lost[8], temperature[8];
        char why[200];
    } states;
    bool deaf; /* does not answer heartbeats */
    const char *program;
    char gpu_events[100];
    pid_t agent;
    int parent_fd;
} g;

static int open_cell(void **state)
{
    (void)state;
    memset(&g, 0, sizeof(g));
    snprintf(g.dir, sizeof(g.dir), "/tmp/racklm-agent-XXXXXX");
    assert_non_null(mkdtemp(g.dir));
    snprintf(g.control, sizeof(g.control), "ipc://%s/c.sock", g.dir);
    snprintf(g.engine, sizeof(g.engine), "ipc://%s/e.sock", g.dir);
    snprintf(g.key, sizeof(g.key), "%s/keys/local-worker.key", g.dir);
    assert_int_equal(keys_load_or_create(g.dir, &g.keys), ERR_OK);
    assert_int_equal(link_context_create(&g.keys, g.dir, &g.links), ERR_OK);
    assert_int_equal(link_server_open(g.links, g.control, 1u << KEY_ROLE_WORKER, &g.cluster), ERR_OK);
    assert_int_equal(link_server_open(g.links, g.engine, 1u << KEY_ROLE_WORKER, &g.workers), ERR_OK);
    arena_init(&g.arena, 0);
    g.parent_fd = -1;
    g.program = RACKLM_WORKER_BIN;
    return 0;
}

static int close_cell(void **state)
{
    (void)state;
    if (g.agent > 0) {
        kill(g.agent, SIGKILL);
        waitpid(g.agent, NULL, 0);
    }
    if (g.parent_fd >= 0)
        close(g.parent_fd);
    link_server_close(&g.cluster);
    link_server_close(&g.workers);
    link_context_destroy(&g.links);
    keys_deinit(&g.keys);
    arena_deinit(&g.arena);
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf %s", g.dir);
    return system(cmd);
}

/* with_parent: the agent watches a pipe whose other end is g.parent_fd. err_path: where its log goes, or NULL. */
static void start_agent(const char *devices, bool with_parent, const char *key, const char *err_path)
{
    int fds[2] = {-1, -1};
    char number[16] = "-1";
    if (with_parent)
        assert_int_equal(pipe(fds), 0);
    g.agent = fork();
    assert_true(g.agent >= 0);
    if (g.agent == 0) {
        int log = open(err_path ? err_path : "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (!getenv("TEST_AGENT_LOG"))
            dup2(log, 2);
        if (with_parent)
            close(fds[1]);
        snprintf(number, sizeof(number), "%d", fds[0]);
        execl(g.program, "racklm-worker", "--join", g.control, "--key-file", key, "--devices", devices, "--threads", "1",
              "--parent-fd", number, (char *)NULL);
        _exit(99);
    }
    if (with_parent) {
        close(fds[0]);
        g.parent_fd = fds[1];
    }
}

static int rank_of(const struct link_peer *p)
{
    for (int r = 0; r < RANKS; r++)
        if (p->id_len > 0 && p->id_len == g.worker_peer[r].id_len && memcmp(p->id, g.worker_peer[r].id, p->id_len) == 0)
            return r;
    return -1;
}

static void note_ready(const struct msg_worker_ready *m)
{
    int r = rank_of(&g.from);
    assert_true(r >= 0 && m->kv_blocks > 0 && m->weights_bytes > 0);
    g.ready[r].epoch = m->epoch;
    g.ready[r].len = m->address_len;
    if (m->address_len > 0)
        memcpy(g.ready[r].address, m->address, m->address_len);
}

static void note_exited(const struct msg_worker_exited *m)
{
    g.exited = (struct exited){.is = true, .id = m->worker_id, .status = m->status};
    snprintf(g.exited.text, sizeof(g.exited.text), "%s", m->text);
}

static void note_states(const struct msg_heartbeat *m)
{
    assert_in_range(m->n_devices, 1, ARRAY_LEN(g.states.lost));
    g.states.n = m->n_devices;
    for (uint32_t i = 0; i < m->n_devices; i++) {
        g.states.lost[m->device[i]] = m->lost[i];
        g.states.temperature[m->device[i]] = m->temperature_c[i];
    }
    snprintf(g.states.why, sizeof(g.states.why), "%s", m->why);
}

static uint32_t fewest_beats(void)
{
    return MIN(g.beats[0], MIN(g.beats[1], g.beats[RANKS]));
}

/* The next message of `type` on s, within ms; heartbeats are counted and answered, LOAD_PROGRESS passed over. NULL: none came. */
static struct msg *next_of(struct link_server *s, enum msg_type type, unsigned ms)
{
    uint64_t end = clock_ns() + ms * NS_PER_MS;
    for (;;) {
        struct link_server *both[2] = {s, s == g.cluster ? g.workers : g.cluster};
        for (unsigned k = 0; k < 2; k++) {
            for (;;) {
                arena_reset(&g.arena);
                enum err e = link_server_recv(both[k], &g.arena, &g.from, &g.msg);
                if (e == ERR_UNAVAILABLE)
                    break;
                assert_int_equal(e, ERR_OK);
                if (g.msg.type == MSG_HEARTBEAT) {
                    if (g.msg.heartbeat.n_devices)
                        note_states(&g.msg.heartbeat);
                    if (rank_of(&g.from) >= 0 || both[k] == g.cluster)
                        g.beats[both[k] == g.cluster ? RANKS : rank_of(&g.from)]++;
                    if (!g.deaf)
                        link_server_send(both[k], &g.from, &g.msg);
                } else if (k == 0 && g.msg.type == type) {
                    return &g.msg;
                } else if (g.msg.type == MSG_WORKER_READY) {
                    note_ready(&g.msg.worker_ready);
                } else if (g.msg.type == MSG_WORKER_EXITED) {
                    note_exited(&g.msg.worker_exited);
                } else if (g.msg.type != MSG_LOAD_PROGRESS) {
                    print_message("passed over: message %d while waiting for %d\n", (int)g.msg.type, (int)type);
                }
            }
        }
        if (clock_ns() >= end)
            return NULL;
        struct pollfd fds[2] = {{link_server_fd(g.cluster), POLLIN, 0}, {link_server_fd(g.workers), POLLIN, 0}};
        poll(fds, 2, 10);
    }
}

/* Waits for the end of a worker. */
static const struct exited *exit_of(uint64_t id)
{
    if (!g.exited.is && next_of(g.cluster, MSG_WORKER_EXITED, PATIENCE_MS))
        note_exited(&g.msg.worker_exited);
    assert_true(g.exited.is);
    assert_int_equal(g.exited.id, id);
    g.exited.is = false;
    return &g.exited;
}

static void welcome(struct link_server *s)
{
    struct msg m = {.type = MSG_WELCOME, .welcome = {.version = 1, .peer_id = 1, .heartbeat_ms = HEARTBEAT_MS}};
    enum err e = link_server_send(s, &g.from, &m);
    assert_true(e == ERR_OK || e == ERR_PEER_LOST); /* a worker that cannot load may have left again */
}

static void join_agent(void)
{
    assert_non_null(next_of(g.cluster, MSG_HELLO, PATIENCE_MS));
    assert_string_equal(g.msg.hello.role, "agent");
    g.agent_peer = g.from;
    welcome(g.cluster);
}

static void start_rank(uint64_t id, uint32_t rank, uint32_t tp, uint64_t epoch, const char *model)
{
    static uint32_t shares[RANKS] = {1, 1}, layers[2] = {0, MODEL_LAYERS};
    char device[16];
    struct stat st = {0};
    stat(model, &st);
    snprintf(device, sizeof(device), "cpu:%u", rank);
    struct msg m = {.type = MSG_START_WORKER,
                    .start_worker = {.worker_id = id, .device = device, .model_path = (char *)(uintptr_t)model,
                                     .model_bytes = (uint64_t)st.st_size, .deployment = "test", .tp = tp, .pp = 1,
                                     .tp_rank = rank, .share = shares, .n_share = tp, .layer_first = layers,
                                     .n_layer_first = 2, .epoch = epoch, .ctx = 128, .max_seqs = 2, .max_step_tokens = 64,
                                     .kv_type = 1, .endpoint = g.engine, .heartbeat_ms = HEARTBEAT_MS,
                                     .step_timeout_ms = 2 * PATIENCE_MS}};
    assert_int_equal(link_server_send(g.cluster, &g.agent_peer, &m), ERR_OK);
}

static void hello_of_worker(uint64_t id, uint32_t rank)
{
    assert_non_null(next_of(g.workers, MSG_HELLO, PATIENCE_MS));
    assert_string_equal(g.msg.hello.role, "worker");
    assert_int_equal(g.msg.hello.peer_id, id);
    g.worker_peer[rank] = g.from;
    welcome(g.workers);
}

/* Waits for READY of both ranks, sends the addresses round, waits for COMM_READY of both. */
static void connect_ranks(uint64_t epoch)
{
    uint8_t *address[RANKS];
    uint32_t len[RANKS];
    for (uint32_t r = 0; r < RANKS; r++) {
        while (g.ready[r].epoch != epoch && next_of(g.workers, MSG_WORKER_READY, PATIENCE_MS))
            note_ready(&g.msg.worker_ready);
        assert_int_equal(g.ready[r].epoch, epoch);
        address[r] = g.ready[r].address;
        len[r] = g.ready[r].len;
    }
    struct msg m = {.type = MSG_COMM_PEERS, .comm_peers = {.epoch = epoch, .address = address, .address_len = len, .n = RANKS}};
    for (uint32_t r = 0; r < RANKS; r++)
        assert_int_equal(link_server_send(g.workers, &g.worker_peer[r], &m), ERR_OK);
    for (uint32_t r = 0; r < RANKS; r++) {
        assert_non_null(next_of(g.workers, MSG_COMM_READY, PATIENCE_MS));
        assert_int_equal(g.msg.comm_ready.epoch, epoch);
    }
}

/* A prompt of 16 tokens in slot 0, greedy, in a generation of its own. A start other than 0 is wrong: it skips tokens. */
static void send_step(uint64_t epoch, uint32_t step_id, uint32_t start)
{
    uint32_t slot = 0, n = 16, want = RUN_WANT_SAMPLE, n_blocks = 1, block = 0, tokens[16];
    for (uint32_t i = 0; i < 16; i++)
        tokens[i] = 100 + i * 7;
    struct slot_setup setup = {.slot = 0, .gen = step_id, .seed = 1, .top_p = 1, .repetition_penalty = 1, .prompt_len = 16};
    struct msg m = {.type = MSG_STEP,
                    .step = {.epoch = epoch, .step_id = step_id, .n_runs = 1, .slot = &slot, .gen = &step_id, .start = &start,
                             .n_tokens = &n, .want = &want, .n_blocks = &n_blocks, .n_all_tokens = 16, .n_all_blocks = 1,
                             .tokens = tokens, .blocks = &block, .setups = &setup, .n_setups = 1, .freed = &slot, .n_freed = 1}};
    for (uint32_t r = 0; r < RANKS; r++)
        link_server_send(g.workers, &g.worker_peer[r], &m);
}

static uint32_t result_of_step(uint64_t step_id)
{
    assert_non_null(next_of(g.workers, MSG_STEP_RESULT, PATIENCE_MS));
    assert_int_equal(rank_of(&g.from), 0);
    assert_int_equal(g.msg.step_result.step_id, step_id);
    assert_int_equal(g.msg.step_result.n_runs, 1);
    assert_true(g.msg.step_result.token[0] < MODEL_VOCAB);
    return g.msg.step_result.token[0];
}

static int agent_exit_code(void)
{
    int status;
    for (unsigned i = 0; i < PATIENCE_MS / 10; i++) {
        if (waitpid(g.agent, &status, WNOHANG) == g.agent) {
            g.agent = 0;
            return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        }
        poll(NULL, 0, 10);
    }
    fail_msg("the agent does not end");
    return -1000;
}

static bool gone(pid_t pid, unsigned ms)
{
    for (unsigned i = 0; i <= ms / 10; i++) {
        char path[64], line[256] = "";
        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        FILE *f = fopen(path, "r");
        if (!f)
            return true;
        size_t n = fread(line, 1, sizeof(line) - 1, f);
        line[n] = 0;
        fclose(f);
        char *state = strrchr(line, ')');
        if (state && state[2] == 'Z') /* nobody reaps orphans in some containers */
            return true;
        poll(NULL, 0, 10);
    }
    return false;
}

static uint64_t cpu_us(pid_t pid)
{
    char path[64], line[512] = "";
    unsigned long u = 0, s = 0;
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t n = fread(line, 1, sizeof(line) - 1, f);
    line[n] = 0;
    fclose(f);
    assert_int_equal(sscanf(strrchr(line, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &u, &s), 2);
    return (u + s) * (uint64_t)(1000000 / sysconf(_SC_CLK_TCK));
}

static pid_t worker_pid(uint64_t id, uint32_t rank)
{
    hello_of_worker(id, rank);
    return (pid_t)g.msg.hello.pid;
}

/* ---- cases ---- */

static void an_engine_on_every_address_is_reached_where_the_coordinator_is(void **state)
{
    (void)state;
    static const char *const rows[][3] = {
        {"tcp://0.0.0.0:41", "tcp://10.1.2.3:7420", "tcp://10.1.2.3:41"}, {"tcp://*:41", "tcp://gpu-3:7420", "tcp://gpu-3:41"},
        {"tcp://[::]:41", "tcp://[fd00::1]:7420", "tcp://[fd00::1]:41"},  {"tcp://10.9.9.9:41", "tcp://10.1.2.3:1", "tcp://10.9.9.9:41"},
        {"ipc:///run/x", "tcp://10.1.2.3:1", "ipc:///run/x"},             {"tcp://0.0.0.0:41", "ipc:///run/x", "tcp://0.0.0.0:41"},
    };
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++) {
        char out[64];
        assert_int_equal(agent_endpoint(rows[i][0], rows[i][1], out, sizeof(out)), ERR_OK);
        assert_string_equal(out, rows[i][2]);
    }
    char small[8];
    assert_int_equal(agent_endpoint("tcp://10.9.9.9:41", "", small, sizeof(small)), ERR_TOO_BIG);
}

static void the_agent_says_what_it_offers_and_shows_life(void **state)
{
    (void)state;
    start_agent("cpu:0,cpu:1", false, g.key, NULL);
    uint64_t begin = clock_ns();
    join_agent();
    assert_int_equal(g.msg.hello.n_devices, 2);
    assert_string_equal(g.msg.hello.devices[1].name, "cpu:1");
    assert_string_equal(g.msg.hello.devices[1].kind, "cpu");
    assert_true(g.msg.hello.devices[0].memory_bytes > 0 && g.msg.hello.pid == (uint32_t)g.agent);
    assert_true(g.msg.hello.version_min <= g.msg.hello.version_max);
    uint64_t end = clock_ns() + PATIENCE_MS * NS_PER_MS;
    while (g.beats[RANKS] < 8 && clock_ns() < end)
        assert_null(next_of(g.cluster, MSG_STEP, 10));
    assert_in_range(g.beats[RANKS], 8, (clock_ns() - begin) / NS_PER_MS / HEARTBEAT_MS + 1); /* and no more than it was told */
    kill(g.agent, SIGTERM);
    assert_int_equal(agent_exit_code(), WORKER_EXIT_OK);
}

static void a_worker_that_cannot_load_says_why_to_engine_and_agent(void **state)
{
    (void)state;
    start_agent("cpu:0", false, g.key, NULL);
    join_agent();
    start_rank(71, 0, 1, 1, "/nowhere/model.gguf");
    hello_of_worker(71, 0);
    assert_non_null(next_of(g.workers, MSG_WORKER_ERROR, PATIENCE_MS));
    assert_true(g.msg.worker_error.fatal);
    assert_non_null(strstr(g.msg.worker_error.text, "/nowhere/model.gguf"));
    const struct exited *x = exit_of(71);
    assert_int_equal(x->status, WORKER_EXIT_FAILED);
    assert_non_null(strstr(x->text, "/nowhere/model.gguf"));

    start_rank(72, 1, 2, 1, MODEL); /* cpu:1 is not offered */
    x = exit_of(72);
    assert_int_equal(x->status, WORKER_EXIT_USAGE);
    assert_non_null(strstr(x->text, "cpu:1"));
}

static void a_refused_agent_ends_with_one_clear_line(void **state)
{
    (void)state;
    char log[128], path[256], text[2048] = "";
    snprintf(log, sizeof(log), "%s/log", g.dir);
    start_agent("cpu:0", false, g.key, NULL);
    assert_non_null(next_of(g.cluster, MSG_HELLO, PATIENCE_MS));
    struct msg m = {.type = MSG_REFUSE, .refuse = {.err = ERR_VERSION, .text = "too old", .version_min = 7, .version_max = 9}};
    assert_int_equal(link_server_send(g.cluster, &g.from, &m), ERR_OK);
    assert_int_equal(agent_exit_code(), WORKER_EXIT_REFUSED);

    /* A key that the coordinator has never seen: made by another coordinator, with this one's public key put into it. */
    char other[80];
    struct keys k;
    snprintf(other, sizeof(other), "%s/other", g.dir);
    assert_int_equal(keys_load_or_create(other, &k), ERR_OK);
    struct key_file stranger;
    snprintf(path, sizeof(path), "%s/keys/local-worker.key", other);
    assert_int_equal(keys_read_file(path, &stranger), ERR_OK);
    struct buf b;
    buf_init(&b);
    assert_int_equal(buf_read_file(&b, path, 4096), ERR_OK);
    buf_putc(&b, 0);
    char *at = strstr(b.data, stranger.server_pub);
    assert_non_null(at);
    memcpy(at, g.keys.server.pub, 40);
    FILE *f = fopen(path, "w");
    fputs(b.data, f);
    fclose(f);
    buf_deinit(&b);
    keys_deinit(&k);
    start_agent("cpu:0", false, path, log);
    assert_int_equal(agent_exit_code(), WORKER_EXIT_REFUSED);
    f = fopen(log, "r");
    if (f) {
        size_t n = fread(text, 1, sizeof(text) - 1, f);
        text[n] = 0;
        fclose(f);
    }
    if (!getenv("TEST_AGENT_LOG")) {
        assert_non_null(strstr(text, "refused the key"));
        assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1); /* one line */
    }
}

static void two_workers_compute_survive_a_kill_and_leave_nothing(void **state)
{
    (void)state;
    unsigned shared = shared_memory_orphans();
    start_agent("cpu:0,cpu:1", true, g.key, NULL);
    join_agent();
    start_rank(1, 0, 2, 1, MODEL);
    pid_t p0 = worker_pid(1, 0);
    start_rank(2, 1, 2, 1, MODEL);
    pid_t p1 = worker_pid(2, 1);
    connect_ranks(1);
    send_step(1, 10, 0);
    uint32_t token = result_of_step(10);
    send_step(0, 11, 0); /* of another epoch: dropped */
    send_step(1, 12, 0);
    assert_int_equal(result_of_step(12), token);

    /* Idle: heartbeats only, of all three, and no thread that spins. */
    uint64_t before[3] = {cpu_us(g.agent), cpu_us(p0), cpu_us(p1)}, t0 = clock_ns(), end = t0 + PATIENCE_MS * NS_PER_MS;
    memset(g.beats, 0, sizeof(g.beats));
    while (fewest_beats() < (SANITIZED ? 3 : 15) && clock_ns() < end)
        assert_null(next_of(g.workers, MSG_STEP_RESULT, 10));
    assert_true(fewest_beats() >= (SANITIZED ? 3 : 15));
    double passed_us = (double)(clock_ns() - t0) / 1000;
    const pid_t pids[3] = {g.agent, p0, p1};
    for (unsigned i = 0; i < 3; i++) {
        double share = 100 * (double)(cpu_us(pids[i]) - before[i]) / passed_us;
        print_message("measured: %s idle: %.2f%% of a core (heartbeats at 10 Hz)\n", i ? "worker" : "agent", share);
        assert_true(SANITIZED || share < 25);
    }

    /* Rank 1 is stopped in the middle: rank 0 waits in a collective, yet shows life and hears RESET. */
    kill(p1, SIGSTOP);
    send_step(1, 13, 0);
    memset(g.beats, 0, sizeof(g.beats));
    end = clock_ns() + PATIENCE_MS * NS_PER_MS;
    while (MIN(g.beats[0], g.beats[RANKS]) < 8 && clock_ns() < end)
        assert_null(next_of(g.workers, MSG_STEP_RESULT, 10));
    assert_true(MIN(g.beats[0], g.beats[RANKS]) >= 8);
    uint64_t killed = clock_ns();
    kill(p1, SIGKILL);
    const struct exited *x = exit_of(2);
    print_message("measured: death reported after %.1f ms\n", (double)(clock_ns() - killed) / 1e6);
    assert_int_equal(x->status, -SIGKILL);
    assert_non_null(strstr(x->text, "SIGKILL"));

    struct msg reset = {.type = MSG_RESET, .reset = {.epoch = 2}};
    uint64_t told = clock_ns();
    assert_int_equal(link_server_send(g.workers, &g.worker_peer[0], &reset), ERR_OK);
    start_rank(3, 1, 2, 2, MODEL);
    p1 = worker_pid(3, 1);
    connect_ranks(2);
    print_message("measured: new epoch with a new process %.0f ms after RESET\n", (double)(clock_ns() - told) / 1e6);
    send_step(2, 20, 0);
    assert_int_equal(result_of_step(20), token);

    /* A step that contradicts itself: an error, then a new epoch. */
    send_step(2, 21, 5);
    struct msg *m = next_of(g.workers, MSG_WORKER_ERROR, PATIENCE_MS);
    assert_non_null(m);
    assert_false(m->worker_error.fatal);
    assert_int_equal(m->worker_error.step_id, 21);
    assert_non_null(next_of(g.workers, MSG_WORKER_ERROR, PATIENCE_MS)); /* of the other rank */
    reset.reset.epoch = 3;
    for (uint32_t r = 0; r < RANKS; r++)
        assert_int_equal(link_server_send(g.workers, &g.worker_peer[r], &reset), ERR_OK);
    connect_ranks(3);
    send_step(3, 30, 0);
    assert_int_equal(result_of_step(30), token);

    kill(g.agent, SIGTERM);
    assert_int_equal(agent_exit_code(), WORKER_EXIT_OK);
    assert_true(gone(p0, 0) && gone(p1, 0));
    assert_false(shared_memory_left(shared));
}

static void a_worker_stops_when_told_also_when_it_hangs(void **state)
{
    (void)state;
    start_agent("cpu:0", false, g.key, NULL);
    join_agent();
    start_rank(5, 0, 1, 1, MODEL);
    pid_t pid = worker_pid(5, 0);
    assert_non_null(next_of(g.workers, MSG_WORKER_READY, PATIENCE_MS));
    assert_int_equal(g.msg.worker_ready.address_len, 0); /* alone: no communicator */
    struct msg stop = {.type = MSG_STOP_WORKER, .stop_worker = {.worker_id = 5}};
    kill(pid, SIGSTOP);
    assert_int_equal(link_server_send(g.cluster, &g.agent_peer, &stop), ERR_OK);
    exit_of(5);
    assert_true(gone(pid, 0));

    start_rank(6, 0, 1, 1, MODEL);
    pid = worker_pid(6, 0);
    struct msg down = {.type = MSG_SHUTDOWN, .shutdown = {.grace_ms = 0}};
    assert_int_equal(link_server_send(g.workers, &g.worker_peer[0], &down), ERR_OK);
    assert_int_equal(exit_of(6)->status, WORKER_EXIT_OK);
}

static void nothing_outlives_its_parent(void **state)
{
    (void)state;
    /* The agent's parent goes: its pipe ends. */
    start_agent("cpu:0", true, g.key, NULL);
    join_agent();
    start_rank(8, 0, 1, 1, MODEL);
    pid_t pid = worker_pid(8, 0);
    assert_non_null(next_of(g.workers, MSG_WORKER_READY, PATIENCE_MS));
    close(g.parent_fd);
    g.parent_fd = -1;
    assert_int_equal(agent_exit_code(), WORKER_EXIT_ORPHAN);
    assert_true(gone(pid, 0)); /* it waited for its workers */

    /* The agent itself is killed. */
    start_agent("cpu:0", false, g.key, NULL);
    join_agent();
    start_rank(9, 0, 1, 1, MODEL);
    pid = worker_pid(9, 0);
    kill(g.agent, SIGKILL);
    assert_int_equal(agent_exit_code(), -SIGKILL);
    assert_true(gone(pid, PATIENCE_MS));
}

static void a_coordinator_that_forgot_the_agent_gets_a_new_hello_and_no_old_workers(void **state)
{
    (void)state;
    start_agent("cpu:0", false, g.key, NULL);
    join_agent();
    start_rank(11, 0, 1, 1, MODEL);
    pid_t pid = worker_pid(11, 0);
    struct msg m = {.type = MSG_REFUSE, .refuse = {.err = ERR_UNAVAILABLE, .text = "say hello first"}};
    assert_int_equal(link_server_send(g.cluster, &g.agent_peer, &m), ERR_OK);
    join_agent();
    assert_true(gone(pid, 0));
    g.exited.is = false; /* of the old worker, or none */
    /* And a worker that its engine does not know leaves. */
    start_rank(12, 0, 1, 1, MODEL);
    worker_pid(12, 0);
    assert_int_equal(link_server_send(g.workers, &g.worker_peer[0], &m), ERR_OK);
    const struct exited *x = exit_of(12);
    assert_int_equal(x->status, WORKER_EXIT_ORPHAN);
    assert_non_null(strstr(x->text, "say hello first"));
}

static void an_agent_that_is_sent_away_again_and_again_keeps_its_distance(void **state)
{
    (void)state;
    uint64_t begin = clock_ns();
    start_agent("cpu:0", false, g.key, NULL);
    struct msg m = {.type = MSG_REFUSE, .refuse = {.err = ERR_UNAVAILABLE, .text = "not now"}};
    for (unsigned i = 0; i < 3; i++) {
        assert_non_null(next_of(g.cluster, MSG_HELLO, PATIENCE_MS));
        assert_int_equal(link_server_send(g.cluster, &g.from, &m), ERR_OK);
    }
    assert_true(clock_ns() - begin >= 2000 * NS_PER_MS); /* a second between two */
    join_agent();
}

/* ---- GPUs ---- */

static int open_gpus(void **state)
{
    open_cell(state);
    g.program = WORKER_GPUS_BIN;
    snprintf(g.gpu_events, sizeof(g.gpu_events), "%s/gpu-events", g.dir);
    setenv("RACKLM_NVML", FAKE_NVML, 1);
    setenv("RACKLM_EMU_DEVICES", "3", 1);
    setenv("RACKLM_EMU_NVML", "memory=80G;temperature=51|52|53;throttle=4;link=6", 1);
    setenv("RACKLM_EMU_NVML_EVENTS", g.gpu_events, 1);
    return 0;
}

static int close_gpus(void **state)
{
    static const char *const vars[] = {"RACKLM_NVML", "RACKLM_EMU_DEVICES", "RACKLM_EMU_NVML", "RACKLM_EMU_NVML_EVENTS", "TEST_GPU_SUPPORT", "TEST_CHILD_HANGS", "RACKLM_BACKEND",
                                       "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"};
    for (unsigned i = 0; i < ARRAY_LEN(vars); i++)
        unsetenv(vars[i]);
    return close_cell(state);
}

static void gpu_event(const char *line)
{
    FILE *f = fopen(g.gpu_events, "a");
    assert_non_null(f);
    fprintf(f, "%s\n", line);
    fclose(f);
}

/* START_WORKER of a replica of its own on a GPU. */
static void start_on_gpu(uint64_t id, const char *device)
{
    static uint32_t share[1] = {1}, layers[2] = {0, MODEL_LAYERS};
    struct msg m = {.type = MSG_START_WORKER,
                    .start_worker = {.worker_id = id, .device = (char *)(uintptr_t)device, .model_path = MODEL, .deployment = "test", .tp = 1, .pp = 1, .share = share, .n_share = 1,
                                     .layer_first = layers, .n_layer_first = 2, .epoch = 1, .ctx = 128, .max_seqs = 2, .max_step_tokens = 64, .kv_type = 1, .endpoint = g.engine,
                                     .heartbeat_ms = HEARTBEAT_MS, .step_timeout_ms = PATIENCE_MS}};
    assert_int_equal(link_server_send(g.cluster, &g.agent_peer, &m), ERR_OK);
}

/* The newest child of the agent that `not` is not; it may be about to begin. */
static pid_t child_of_agent(pid_t not)
{
    char path[64], text[128];
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)g.agent, (int)g.agent);
    for (unsigned i = 0; i < PATIENCE_MS / 10; i++) {
        FILE *f = fopen(path, "r");
        int pid = 0, got;
        assert_non_null(f);
        while (fscanf(f, "%d", &got) == 1)
            pid = got != not ? got : pid;
        fclose(f);
        snprintf(text, sizeof(text), "/proc/%d/cmdline", pid);
        char line[64] = "";
        if (pid && (f = fopen(text, "r"))) {
            size_t n = fread(line, 1, sizeof(line) - 1, f);
            fclose(f);
            if (n > 20 && strcmp(line + strlen(line) + 1, "--child") == 0) /* has begun */
                return pid;
        }
        assert_null(next_of(g.cluster, MSG_STEP, 10));
    }
    fail_msg("the agent starts no worker");
    return 0;
}

static bool has_variable(pid_t pid, const char *text)
{
    char path[64];
    struct buf b;
    buf_init(&b);
    snprintf(path, sizeof(path), "/proc/%d/environ", (int)pid);
    assert_int_equal(buf_read_file(&b, path, 1 << 20), ERR_OK);
    bool found = false;
    for (size_t at = 0; at < b.len; at += strlen(b.data + at) + 1)
        found |= strcmp(b.data + at, text) == 0;
    buf_deinit(&b);
    return found;
}

static void the_agent_offers_gpus_with_their_topology(void **state)
{
    (void)state;
    start_agent("cuda:0,cuda:2,cpu:0", false, g.key, NULL);
    join_agent();
    const struct msg_hello *h = &g.msg.hello;
    assert_int_equal(h->n_devices, 3);
    assert_string_equal(h->gpu_driver, "580.00.00");
    assert_int_equal(h->cuda_version, 13000);
    assert_string_equal(h->gpu_note, "");
    const struct msg_device *d = &h->devices[1];
    assert_string_equal(d->name, "cuda:2");
    assert_string_equal(d->kind, "emulated");
    assert_string_equal(d->model, "Emulated GPU");
    assert_string_equal(d->uuid, "GPU-e0000002-e000-4000-8000-000000000002");
    assert_string_equal(d->bus_id, "0000:3b:00.0");
    assert_int_equal(d->sm, 90);
    assert_int_equal(d->memory_total_bytes, 80ull << 30);
    assert_int_equal(d->memory_bytes, (80ull << 30) - (1ull << 30) - (80ull << 30) / 64);
    assert_int_equal(d->temperature_c, 53);
    assert_int_equal(d->throttle, DEVICE_THROTTLE_SW_POWER_CAP);
    assert_false(d->lost);
    assert_int_equal(d->n_peers, 3); /* of the HELLO's devices, in its order */
    assert_int_equal(d->path[0], DEVICE_PATH_NODE);
    assert_int_equal(d->path[1], DEVICE_PATH_SELF);
    assert_int_equal(d->path[2], DEVICE_PATH_UNKNOWN);
    assert_int_equal(d->nvlinks[0], 6);
    assert_int_equal(d->nvlinks[1], 0);
    assert_string_equal(h->devices[2].kind, "cpu");
    assert_string_equal(h->devices[2].uuid, "");
    kill(g.agent, SIGTERM);
    assert_int_equal(agent_exit_code(), WORKER_EXIT_OK);
}

static void a_worker_sees_its_gpu_alone(void **state)
{
    (void)state;
    setenv("TEST_GPU_SUPPORT", "cuda", 1);
    setenv("TEST_CHILD_HANGS", "1", 1);
    setenv("CUDA_VISIBLE_DEVICES", "2,1", 1);
    setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST", 1);
    start_agent("cuda:0,cuda:1", false, g.key, NULL);
    join_agent();
    assert_string_equal(g.msg.hello.devices[0].kind, "cuda");
    start_on_gpu(21, "cuda:0");
    pid_t pid = child_of_agent(0);
    assert_true(has_variable(pid, "CUDA_DEVICE_ORDER=PCI_BUS_ID"));
    assert_true(has_variable(pid, "CUDA_VISIBLE_DEVICES=GPU-e0000002-e000-4000-8000-000000000002"));
    assert_false(has_variable(pid, "CUDA_VISIBLE_DEVICES=2,1"));
    assert_false(has_variable(pid, "CUDA_DEVICE_ORDER=FASTEST_FIRST"));
}

static void workers_end_with_their_gpu_and_the_others_go_on(void **state)
{
    (void)state;
    setenv("TEST_CHILD_HANGS", "1", 1);
    start_agent("cuda:0,cuda:1", false, g.key, NULL);
    join_agent();
    start_on_gpu(31, "cuda:0");
    pid_t other = child_of_agent(0);
    start_on_gpu(32, "cuda:1");
    pid_t pid = child_of_agent(other);
    assert_false(g.exited.is);
    gpu_event("xid 1 79");
    const struct exited *x = exit_of(32);
    assert_string_equal(x->text, "GPU cuda:1 (Emulated GPU, GPU-e0000001-e000-4000-8000-000000000001) reported Xid 79: fallen off the bus");
    assert_true(g.states.lost[1] && !g.states.lost[0]); /* told before the worker's end */
    assert_string_equal(g.states.why, "reported Xid 79: fallen off the bus");
    assert_int_equal(g.states.temperature[0], 51);
    assert_true(gone(pid, PATIENCE_MS));
    assert_false(gone(other, 0));
    start_on_gpu(33, "cuda:1"); /* of a coordinator that has not heard of it */
    assert_non_null(strstr(exit_of(33)->text, "GPU cuda:1 (Emulated GPU, GPU-e0000001-e000-4000-8000-000000000001) reported Xid 79"));
    assert_false(g.exited.is);
    kill(g.agent, SIGTERM);
    assert_int_equal(agent_exit_code(), WORKER_EXIT_OK);
    assert_true(gone(other, 0));
}

static void a_worker_that_fails_has_its_gpus_error_beside_its_own(void **state)
{
    (void)state;
    setenv("TEST_CHILD_HANGS", "1", 1);
    start_agent("cuda:0", false, g.key, NULL);
    join_agent();
    start_on_gpu(41, "cuda:0");
    pid_t pid = child_of_agent(0);
    gpu_event("xid 0 31"); /* its own doing: the GPU stays */
    kill(pid, SIGKILL);
    const char *text = exit_of(41)->text;
    assert_non_null(strstr(text, "GPU cuda:0 (Emulated GPU, GPU-e0000000-e000-4000-8000-000000000000) reported Xid 31: GPU memory page fault; killed by signal 9"));
    start_on_gpu(42, "cuda:0");
    pid = child_of_agent(0);
    kill(pid, SIGKILL);
    assert_string_equal(exit_of(42)->text, "killed by signal 9 (SIGKILL)"); /* an old error is not told again */
    start_on_gpu(43, "cuda:0");
    pid = child_of_agent(0);
    gpu_event("lost 0"); /* without an Xid: seen when the worker fails */
    kill(pid, SIGKILL);
    assert_non_null(strstr(exit_of(43)->text, "is lost: the driver cannot reach it any more; killed by signal 9"));
    assert_true(g.states.lost[0]);
}

static void a_gpu_that_hangs_holds_up_nobody(void **state)
{
    (void)state;
    setenv("TEST_CHILD_HANGS", "1", 1);
    start_agent("cuda:0,cuda:1", false, g.key, NULL);
    join_agent();
    start_on_gpu(51, "cuda:0");
    pid_t pid = child_of_agent(0);
    gpu_event("hang 0 60000"); /* the next question about it, when its worker has failed */
    kill(pid, SIGKILL);
    assert_string_equal(exit_of(51)->text, "killed by signal 9 (SIGKILL)"); /* no answer came */
    uint32_t before = g.beats[RANKS];
    uint64_t end = clock_ns() + PATIENCE_MS * NS_PER_MS;
    while (g.beats[RANKS] < before + 5 && clock_ns() < end)
        assert_null(next_of(g.cluster, MSG_STEP, 10));
    assert_true(g.beats[RANKS] >= before + 5);
    start_on_gpu(52, "cuda:1");
    pid = child_of_agent(0);
    kill(g.agent, SIGTERM);
    assert_int_equal(agent_exit_code(), WORKER_EXIT_OK); /* the thread that hangs is left behind */
    assert_true(gone(pid, 0));
}

static void gpus_that_cannot_be_used_are_said(void **state)
{
    (void)state;
    char log[128];
    struct buf b;
    snprintf(log, sizeof(log), "%s/log", g.dir);
    setenv("RACKLM_EMU_NVML", "cuda=12080;driver=570.10", 1);
    start_agent("", false, g.key, log); /* CPUs go on */
    join_agent();
    assert_string_equal(g.msg.hello.devices[0].name, "cpu:0");
    assert_non_null(strstr(g.msg.hello.gpu_note, "570.10 knows CUDA up to 12.8, racklm needs 13.0"));
    kill(g.agent, SIGTERM);
    assert_int_equal(agent_exit_code(), WORKER_EXIT_OK);
    setenv("RACKLM_BACKEND", "cuda", 1);
    start_agent("", false, g.key, log);
    assert_int_equal(agent_exit_code(), WORKER_EXIT_USAGE);
    buf_init(&b);
    assert_int_equal(buf_read_file(&b, log, 1 << 20), ERR_OK);
    buf_putc(&b, 0);
    assert_non_null(strstr(b.data, "GPUs are not used why=\"the NVIDIA driver 570.10 knows CUDA up to 12.8"));
    assert_non_null(strstr(b.data, "racklm-worker: --backend cuda: the NVIDIA driver 570.10"));
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_engine_on_every_address_is_reached_where_the_coordinator_is),
        cmocka_unit_test_setup_teardown(the_agent_says_what_it_offers_and_shows_life, open_cell, close_cell),
        cmocka_unit_test_setup_teardown(a_worker_that_cannot_load_says_why_to_engine_and_agent, open_cell, close_cell),
        cmocka_unit_test_setup_teardown(a_refused_agent_ends_with_one_clear_line, open_cell, close_cell),
        cmocka_unit_test_setup_teardown(two_workers_compute_survive_a_kill_and_leave_nothing, open_cell, close_cell),
        cmocka_unit_test_setup_teardown(a_worker_stops_when_told_also_when_it_hangs, open_cell, close_cell),
        cmocka_unit_test_setup_teardown(nothing_outlives_its_parent, open_cell, close_cell),
        cmocka_unit_test_setup_teardown(an_agent_that_is_sent_away_again_and_again_keeps_its_distance, open_cell, close_cell),
        cmocka_unit_test_setup_teardown(a_coordinator_that_forgot_the_agent_gets_a_new_hello_and_no_old_workers, open_cell,
                                        close_cell),
        cmocka_unit_test_setup_teardown(the_agent_offers_gpus_with_their_topology, open_gpus, close_gpus),
        cmocka_unit_test_setup_teardown(a_worker_sees_its_gpu_alone, open_gpus, close_gpus),
        cmocka_unit_test_setup_teardown(workers_end_with_their_gpu_and_the_others_go_on, open_gpus, close_gpus),
        cmocka_unit_test_setup_teardown(a_worker_that_fails_has_its_gpus_error_beside_its_own, open_gpus, close_gpus),
        cmocka_unit_test_setup_teardown(a_gpu_that_hangs_holds_up_nobody, open_gpus, close_gpus),
        cmocka_unit_test_setup_teardown(gpus_that_cannot_be_used_are_said, open_gpus, close_gpus),
    };
    return cmocka_run_group_tests_name("agent", tests, NULL, NULL);
}
