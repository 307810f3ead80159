/* The cluster thread with real links: agents, workers' starts and restarts, roles, the admin protocol. Agents are
 * played by the test; the model is the demo's. */
#include "base/check.h"
#include "base/clock.h"
#include "coordinator/cluster.h"
#include "proto/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#define OK(x) assert_int_equal((x), ERR_OK)
#define MODEL "deploy/demo/grimm-6m-Q8_0.gguf"
enum { WAIT_MS = 60000 };

struct fixture {
    char dir[64], control[128];
    struct options opts;
    struct keys keys;
    struct link_context *links, *client_links;
    struct key_file worker_key, admin_key, viewer_key;
    struct queue *events, *engine_events;
    struct deployment d[2];
    uint32_t n_deployments;
    struct cluster *cluster;
    int wake_fd;
    struct arena arena;
};

/* The demo model once more, by another name. */
static void add_deployment(struct fixture *f, const char *name, uint32_t tp, const char *devices)
{
    uint32_t i = f->n_deployments++;
    struct deployment *d = &f->d[i];
    char engine[128];
    struct options server = {.model = MODEL, .served_model_name = (char *)(uintptr_t)name, .tp = tp, .pp = 1, .kv_type = KV_F16, .max_seqs = 32};
    OK(deployment_open(&server, i, d)); /* copies them */
    d->own.devices = devices ? strdup(devices) : NULL;
    snprintf(d->path, sizeof d->path, "/models/%s.gguf", name);
    d->metrics = metrics_create(name, 1);
    d->max_step_tokens = 64;
    snprintf(engine, sizeof engine, "ipc://%s/e%u.sock", f->dir, i);
    struct engine_config cfg = {.opts = &f->opts,
                                .hp = &d->hp,
                                .split = &d->split,
                                .deployment = i,
                                .endpoint = engine,
                                .max_step_tokens = 64,
                                .links = f->links,
                                .metrics = d->metrics,
                                .events = f->events,
                                .cluster_events = f->engine_events};
    OK(engine_create(&cfg, &d->engines[0]));
    d->n_engines = 1;
}

static void open_fixture(struct fixture *f, uint32_t tp)
{
    char path[160];
    memset(f, 0, sizeof *f);
    snprintf(f->dir, sizeof f->dir, "/tmp/racklm-test-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    options_init(&f->opts);
    f->opts.heartbeat_timeout_ms = WAIT_MS; /* a machine that stands still for seconds is no failure */
    OK(keys_load_or_create(f->dir, &f->keys));
    OK(keys_add(f->dir, "onlooker", KEY_ROLE_VIEWER, path, sizeof path));
    OK(keys_read_file(path, &f->viewer_key));
    snprintf(path, sizeof path, "%s/keys/local-worker.key", f->dir);
    OK(keys_read_file(path, &f->worker_key));
    snprintf(path, sizeof path, "%s/keys/local-admin.key", f->dir);
    OK(keys_read_file(path, &f->admin_key));
    keys_deinit(&f->keys);
    OK(keys_load_or_create(f->dir, &f->keys));
    OK(link_context_create(&f->keys, f->dir, &f->links));
    OK(link_context_create(NULL, NULL, &f->client_links));
    OK(queue_create(64, &f->events));
    OK(queue_create(64, &f->engine_events));
    f->wake_fd = eventfd(0, EFD_NONBLOCK);
    arena_init(&f->arena, 0);
    add_deployment(f, "demo", tp, NULL);
}

static void start_cluster(struct fixture *f)
{
    snprintf(f->control, sizeof f->control, "ipc://%s/c.sock", f->dir);
    struct cluster_config cfg = {.opts = &f->opts,
                                 .deployments = f->d,
                                 .n_deployments = f->n_deployments,
                                 .endpoint = f->control,
                                 .links = f->links,
                                 .engine_events = f->engine_events,
                                 .wake_fd = f->wake_fd};
    OK(cluster_create(&cfg, &f->cluster));
}

static void close_fixture(struct fixture *f)
{
    char cmd[128];
    cluster_destroy(&f->cluster);
    for (uint32_t i = 0; i < f->n_deployments; i++)
        deployment_stop_engines(&f->d[i]);
    for (struct engine_event *e; (e = queue_pop(f->engine_events));)
        free(e);
    queue_destroy(&f->events);
    queue_destroy(&f->engine_events);
    link_context_destroy(&f->client_links);
    link_context_destroy(&f->links);
    for (uint32_t i = 0; i < f->n_deployments; i++)
        deployment_close(&f->d[i]);
    keys_deinit(&f->keys);
    options_deinit(&f->opts);
    arena_deinit(&f->arena);
    close(f->wake_fd);
    snprintf(cmd, sizeof cmd, "rm -rf %s", f->dir);
    assert_int_equal(system(cmd), 0);
}

static struct link_client *dial(struct fixture *f, const struct key_file *key)
{
    struct link_client *l;
    OK(link_client_open(f->client_links, f->control, key, &l));
    return l;
}

static void hello(struct link_client *l, char *role, uint64_t peer_id, uint32_t n_devices, uint64_t memory,
                  uint32_t version)
{
    struct msg_device d[4];
    char names[4][16];
    for (uint32_t i = 0; i < n_devices; i++) {
        snprintf(names[i], sizeof names[i], "cpu:%u", i);
        d[i] =
            (struct msg_device){.name = names[i], .kind = "cpu", .model = "test", .memory_bytes = memory, .cores = 1};
    }
    struct msg m = {.type = MSG_HELLO};
    m.hello = (struct msg_hello){.version_min = version,
                                 .version_max = version,
                                 .role = role,
                                 .host = "there",
                                 .peer_id = peer_id,
                                 .pid = 7,
                                 .devices = d,
                                 .n_devices = n_devices};
    OK(link_client_send(l, &m));
}

/* The next message of that type, within WAIT_MS; heartbeats go out meanwhile. */
static struct msg expect(struct fixture *f, struct link_client *l, enum msg_type type)
{
    struct msg m;
    for (int i = 0; i < WAIT_MS / 50; i++) {
        struct msg beat = {.type = MSG_HEARTBEAT};
        if (link_client_wait(l, &f->arena, 50, &m) == ERR_OK) {
            if (m.type == type)
                return m;
        } else {
            link_client_send(l, &beat);
        }
    }
    fail_msg("no message of type %d came", type);
    return m;
}

/* The refusal with that error; where it is slow to come, the heartbeats of expect() are refused too. */
static struct msg expect_refusal(struct fixture *f, struct link_client *l, enum err err)
{
    struct msg m = expect(f, l, MSG_REFUSE);
    for (int i = 0; i < WAIT_MS / 50 && m.refuse.err != err; i++)
        m = expect(f, l, MSG_REFUSE);
    assert_int_equal(m.refuse.err, err);
    return m;
}

static void exited(struct link_client *l, uint64_t worker_id, char *text)
{
    struct msg m = {.type = MSG_WORKER_EXITED};
    m.worker_exited = (struct msg_worker_exited){.worker_id = worker_id, .status = 1, .text = text};
    OK(link_client_send(l, &m));
}

static struct msg_admin_reply ask(struct fixture *f, struct link_client *l, enum admin_verb verb)
{
    struct msg m = {.type = MSG_ADMIN_REQUEST};
    m.admin_request = (struct msg_admin_request){.verb = verb, .id = 42};
    OK(link_client_send(l, &m));
    struct msg r = expect(f, l, MSG_ADMIN_REPLY);
    assert_int_equal(r.admin_reply.id, 42);
    return r.admin_reply;
}

/* ---- tests ---- */

static void workers_start_when_enough_devices_have_joined(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 2);
    start_cluster(&f);
    struct link_client *one = dial(&f, &f.worker_key), *two = dial(&f, &f.worker_key);
    hello(one, "agent", 1, 1, 1ull << 30, PROTO_VERSION_MAX);
    assert_int_equal(expect(&f, one, MSG_WELCOME).welcome.heartbeat_ms, f.opts.heartbeat_ms);
    struct front_health h;
    for (int i = 0; i < WAIT_MS / 10; i++) { /* still waiting, and saying so */
        cluster_health(f.cluster, NULL, &h);
        if (strstr(h.text, "1 have joined"))
            break;
        usleep(10000);
    }
    assert_non_null(strstr(h.text, "2 workers need one each, 1 have joined"));
    assert_false(h.ready);
    hello(two, "agent", 2, 1, 1ull << 30, PROTO_VERSION_MAX);
    struct msg a = expect(&f, one, MSG_START_WORKER), b = expect(&f, two, MSG_START_WORKER);
    assert_int_equal(a.start_worker.tp_rank + b.start_worker.tp_rank, 1);
    assert_int_not_equal(a.start_worker.worker_id, b.start_worker.worker_id);
    assert_string_equal(a.start_worker.model_path, "/models/demo.gguf");
    assert_int_equal(a.start_worker.ctx, f.d[0].hp.ctx_train);
    assert_int_equal(a.start_worker.tp, 2);
    assert_string_equal(a.start_worker.device, "cpu:0");
    /* An exit: the same rank starts again at once, under a new id. */
    exited(two, b.start_worker.worker_id, "killed by signal 9");
    struct msg c = expect(&f, two, MSG_START_WORKER);
    assert_int_equal(c.start_worker.tp_rank, b.start_worker.tp_rank);
    assert_true(c.start_worker.worker_id > b.start_worker.worker_id);
    link_client_close(&one);
    link_client_close(&two);
    close_fixture(&f);
}

static void a_node_that_falls_silent_is_replaced_and_told_so(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    f.opts.heartbeat_timeout_ms = 1500;
    start_cluster(&f);
    struct link_client *one = dial(&f, &f.worker_key), *two = dial(&f, &f.worker_key);
    hello(one, "agent", 1, 1, 0, PROTO_VERSION_MAX);
    uint64_t first = expect(&f, one, MSG_START_WORKER).start_worker.worker_id;
    hello(two, "agent", 2, 1, 0, PROTO_VERSION_MAX);
    struct msg moved = expect(&f, two, MSG_START_WORKER); /* only two sends heartbeats while it waits */
    assert_true(moved.start_worker.worker_id > first);
    struct msg beat = {.type = MSG_HEARTBEAT};
    OK(link_client_send(one, &beat));
    expect_refusal(&f, one, ERR_UNAVAILABLE);
    link_client_close(&one);
    link_client_close(&two);
    close_fixture(&f);
}

static void a_worker_that_never_loads_is_given_up(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    start_cluster(&f);
    struct link_client *l = dial(&f, &f.worker_key);
    hello(l, "agent", 1, 1, 0, PROTO_VERSION_MAX);
    char text[256];
    for (int i = 0; i < 3; i++) {
        assert_false(cluster_fatal(f.cluster, text, sizeof text));
        exited(l, expect(&f, l, MSG_START_WORKER).start_worker.worker_id, "/models/demo.gguf: not found");
    }
    for (int i = 0; i < WAIT_MS / 10 && !cluster_fatal(f.cluster, text, sizeof text); i++)
        usleep(10000);
    assert_true(cluster_fatal(f.cluster, text, sizeof text));
    assert_non_null(strstr(text, "failed to load 3 times: /models/demo.gguf: not found"));
    struct front_health h;
    cluster_health(f.cluster, NULL, &h);
    assert_true(h.fatal && !h.ready);
    assert_string_equal(h.text, text);
    link_client_close(&l);
    close_fixture(&f);
}

static void a_context_beyond_the_memory_is_fatal_with_both_numbers(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    f.d[0].own.ctx = 100000;
    start_cluster(&f);
    struct link_client *l = dial(&f, &f.worker_key);
    hello(l, "agent", 1, 1, 16u << 20, PROTO_VERSION_MAX);
    char text[256] = "";
    for (int i = 0; i < WAIT_MS / 10 && !cluster_fatal(f.cluster, text, sizeof text); i++)
        usleep(10000);
    assert_non_null(strstr(text, "a context of 100000 tokens does not fit"));
    link_client_close(&l);
    close_fixture(&f);
}

static void a_deployment_lives_for_itself(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 2);
    add_deployment(&f, "other", 1, NULL);
    start_cluster(&f);
    struct link_client *l = dial(&f, &f.worker_key);
    hello(l, "agent", 1, 2, 0, PROTO_VERSION_MAX);
    struct front_health h;
    struct msg m[3];
    for (int i = 0; i < 2; i++) {
        m[i] = expect(&f, l, MSG_START_WORKER);
        assert_string_equal(m[i].start_worker.deployment, "demo");
        assert_int_equal(m[i].start_worker.tp, 2);
    }
    for (int i = 0; i < WAIT_MS / 10; i++) {
        cluster_health(f.cluster, &f.d[1], &h);
        if (strstr(h.text, "2 have joined"))
            break;
        usleep(10000);
    }
    assert_non_null(strstr(h.text, "2 have joined, 0 are free")); /* the other one says what it lacks */
    cluster_health(f.cluster, &f.d[0], &h);
    assert_null(strstr(h.text, "devices"));
    struct link_client *late = dial(&f, &f.worker_key);
    hello(late, "agent", 2, 1, 0, PROTO_VERSION_MAX);
    m[2] = expect(&f, late, MSG_START_WORKER);
    assert_string_equal(m[2].start_worker.deployment, "other");
    assert_string_equal(m[2].start_worker.model_path, "/models/other.gguf");
    assert_int_equal(m[2].start_worker.tp, 1);
    assert_string_not_equal(m[2].start_worker.endpoint, m[0].start_worker.endpoint);

    /* Its worker fails for good; the first deployment's are left alone. */
    uint64_t id = m[2].start_worker.worker_id;
    for (int i = 0; i < 3; i++) {
        exited(late, id, "no");
        if (i < 2)
            id = expect(&f, late, MSG_START_WORKER).start_worker.worker_id;
    }
    for (int i = 0; i < WAIT_MS / 10; i++) {
        cluster_health(f.cluster, &f.d[1], &h);
        if (h.fatal)
            break;
        usleep(10000);
    }
    assert_true(h.fatal);
    cluster_health(f.cluster, &f.d[0], &h);
    assert_false(h.fatal);
    char text[256];
    assert_true(cluster_fatal(f.cluster, text, sizeof text)); /* it was only starting: whoever started it is told which model it was */
    assert_non_null(strstr(text, "other: worker 0 of replica 0 failed to load"));
    exited(l, m[0].start_worker.worker_id, "it fell");
    m[0] = expect(&f, l, MSG_START_WORKER);
    assert_string_equal(m[0].start_worker.deployment, "demo");
    struct link_client *viewer = dial(&f, &f.viewer_key);
    struct msg_admin_reply a = ask(&f, viewer, ADMIN_STATUS);
    assert_int_equal(a.n_deployments, 2);
    assert_string_equal(a.deployments[1].names, "other");
    assert_string_equal(a.deployments[1].state, "failed");
    assert_int_equal(a.deployments[0].tp, 2);
    assert_int_equal(a.n_workers, 3);
    assert_string_equal(a.workers[2].deployment, "other");
    link_client_close(&viewer);
    link_client_close(&late);
    link_client_close(&l);
    close_fixture(&f);
}

static void a_device_is_shared_by_those_that_name_it_only(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    f.d[0].own.devices = strdup("cpu:1,cpu:2");
    add_deployment(&f, "other", 1, "cpu:1");
    start_cluster(&f);
    struct link_client *l = dial(&f, &f.worker_key);
    hello(l, "agent", 1, 2, 0, PROTO_VERSION_MAX);
    for (int i = 0; i < 2; i++)
        assert_string_equal(expect(&f, l, MSG_START_WORKER).start_worker.device, "cpu:1");
    link_client_close(&l);
    close_fixture(&f);

    open_fixture(&f, 1); /* takes any device, but not the one that the other names, though it comes first */
    add_deployment(&f, "other", 1, "cpu:0");
    start_cluster(&f);
    l = dial(&f, &f.worker_key);
    hello(l, "agent", 1, 2, 0, PROTO_VERSION_MAX);
    for (int i = 0; i < 2; i++) {
        struct msg m = expect(&f, l, MSG_START_WORKER);
        assert_string_equal(m.start_worker.device, strcmp(m.start_worker.deployment, "other") == 0 ? "cpu:0" : "cpu:1");
    }
    link_client_close(&l);
    close_fixture(&f);
}

static void roles_and_versions_are_checked(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    start_cluster(&f);
    cluster_set_url(f.cluster, "http://127.0.0.1:1");
    struct link_client *worker = dial(&f, &f.worker_key), *admin = dial(&f, &f.admin_key),
                       *viewer = dial(&f, &f.viewer_key);
    hello(worker, "agent", 1, 1, 0, PROTO_VERSION_MAX + 1);
    struct msg r = expect_refusal(&f, worker, ERR_VERSION);
    assert_int_equal(r.refuse.version_max, PROTO_VERSION_MAX);
    assert_non_null(strstr(r.refuse.text, "speaks"));
    hello(admin, "agent", 2, 1, 0, PROTO_VERSION_MAX); /* no device from an admin's key */
    expect_refusal(&f, admin, ERR_FORBIDDEN);
    struct msg q = {.type = MSG_ADMIN_REQUEST};
    OK(link_client_send(worker, &q));
    expect_refusal(&f, worker, ERR_FORBIDDEN);

    struct msg_admin_reply a = ask(&f, viewer, ADMIN_STATUS);
    assert_int_equal(a.err, ERR_OK);
    assert_string_equal(a.http_url, "http://127.0.0.1:1");
    assert_string_equal(a.model, "demo");
    assert_int_equal(a.n_replicas, 1);
    assert_int_equal(a.n_workers, 1);
    assert_string_equal(a.workers[0].state, "waiting for a device");
    a = ask(&f, viewer, ADMIN_SHUTDOWN);
    assert_int_equal(a.err, ERR_FORBIDDEN);
    assert_false(cluster_shutdown_asked(f.cluster));
    a = ask(&f, admin, ADMIN_SHUTDOWN);
    assert_int_equal(a.err, ERR_OK);
    assert_true(cluster_shutdown_asked(f.cluster));
    link_client_close(&worker);
    link_client_close(&admin);
    link_client_close(&viewer);
    close_fixture(&f);
}

/* An agent with a GPU of each model: "A|A|B". */
static void hello_gpus(struct link_client *l, uint64_t peer_id, const char *models, uint64_t memory)
{
    struct msg_device d[4] = {0};
    char names[4][16], model[4][32];
    static uint32_t path[] = {DEVICE_PATH_SELF, DEVICE_PATH_SWITCH, DEVICE_PATH_SYSTEM, DEVICE_PATH_SYSTEM}, nvlinks[] = {0, 4, 0, 0};
    uint32_t n = 0;
    for (const char *p = models; *p; p += strcspn(p, "|"), p += *p == '|', n++) {
        snprintf(names[n], sizeof names[n], "cuda:%u", n);
        snprintf(model[n], sizeof model[n], "%.*s", (int)strcspn(p, "|"), p);
        d[n] = (struct msg_device){.name = names[n], .kind = "cuda", .model = model[n], .memory_bytes = memory, .cores = 2, .uuid = "GPU-1", .bus_id = "0000:1b:00.0", .sm = 90,
                                   .memory_total_bytes = memory, .temperature_c = 40, .path = path, .nvlinks = nvlinks, .n_peers = 4};
    }
    struct msg m = {.type = MSG_HELLO};
    m.hello = (struct msg_hello){.version_min = PROTO_VERSION_MAX, .version_max = PROTO_VERSION_MAX, .role = "agent", .host = "there", .peer_id = peer_id, .devices = d, .n_devices = n,
                                 .gpu_driver = "580.00", .cuda_version = 13000, .gpu_note = "a note"};
    OK(link_client_send(l, &m));
}

static void a_device_state(struct link_client *l, uint32_t device, bool is_lost)
{
    uint32_t temperature = 77, power = 500000, utilization = 99, throttle = DEVICE_THROTTLE_HW_THERMAL, lost = is_lost;
    uint64_t memory_free = 123;
    struct msg m = {.type = MSG_HEARTBEAT};
    m.heartbeat = (struct msg_heartbeat){.device = &device, .temperature_c = &temperature, .power_mw = &power, .utilization_percent = &utilization, .throttle = &throttle,
                                         .memory_free_bytes = &memory_free, .lost = &lost, .n_devices = 1, .why = is_lost ? "reported Xid 79" : ""};
    OK(link_client_send(l, &m));
}

static void gpus_of_two_models_do_not_make_a_replica(void **state)
{
    (void)state;
    struct fixture f;
    struct front_health h;
    open_fixture(&f, 2);
    f.d[0].own.deterministic = true;
    start_cluster(&f);
    struct link_client *one = dial(&f, &f.worker_key), *two = dial(&f, &f.worker_key);
    hello_gpus(one, 1, "NVIDIA H100|NVIDIA H200", 1ull << 30);
    expect(&f, one, MSG_WELCOME);
    for (int i = 0; i < WAIT_MS / 10; i++) {
        cluster_health(f.cluster, NULL, &h);
        if (strstr(h.text, "of one type"))
            break;
        usleep(10000);
    }
    assert_string_equal(h.text, "waiting for devices: the 2 workers of a replica need GPUs of one type, there are 1 NVIDIA H100, 1 NVIDIA H200: lower tp or pp, or name devices of one type");
    assert_false(h.fatal); /* others may join: */
    hello_gpus(two, 2, "NVIDIA H200", 1ull << 30);
    struct msg a = expect(&f, one, MSG_START_WORKER), b = expect(&f, two, MSG_START_WORKER);
    assert_string_equal(a.start_worker.device, "cuda:1");
    assert_string_equal(b.start_worker.device, "cuda:0");
    assert_true(a.start_worker.deterministic && b.start_worker.deterministic);
    link_client_close(&one);
    link_client_close(&two);
    close_fixture(&f);
}

/* Under `racklm serve` nobody else will come. */
static void what_can_never_be_placed_ends_the_start(const char *models, uint64_t memory, const char *why)
{
    struct fixture f;
    char text[256] = "";
    open_fixture(&f, 2);
    f.opts.parent_fd = 0;
    start_cluster(&f);
    struct link_client *l = dial(&f, &f.worker_key);
    hello_gpus(l, 1, models, memory);
    for (int i = 0; i < WAIT_MS / 10 && !cluster_fatal(f.cluster, text, sizeof text); i++)
        usleep(10000);
    if (!strstr(text, why))
        fail_msg("'%s' does not say '%s'", text, why);
    link_client_close(&l);
    close_fixture(&f);
}

static void a_start_that_cannot_be_is_ended_with_the_reason(void **state)
{
    (void)state;
    what_can_never_be_placed_ends_the_start("NVIDIA H100|NVIDIA H200", 1ull << 30, "need GPUs of one type, there are 1 NVIDIA H100, 1 NVIDIA H200");
    /* The demo's 6.9 MB in two halves of some 3.3 MiB: two devices of 2 MiB hold less, four would do. */
    what_can_never_be_placed_ends_the_start("G|G", 2u << 20, "the largest G has room for 2.00 MiB: 1.");
    what_can_never_be_placed_ends_the_start("G|G", 2u << 20, "are missing (tp * pp from about 4 on");
}

static void workers_leave_a_device_that_is_lost(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    start_cluster(&f);
    struct link_client *l = dial(&f, &f.worker_key), *viewer = dial(&f, &f.viewer_key);
    hello(viewer, "admin", 9, 0, 0, PROTO_VERSION_MAX);
    hello_gpus(l, 1, "G|G", 1ull << 30);
    struct msg a = expect(&f, l, MSG_START_WORKER);
    assert_string_equal(a.start_worker.device, "cuda:0");
    uint64_t id = a.start_worker.worker_id;
    a_device_state(l, 0, true);
    struct msg beat = expect(&f, l, MSG_HEARTBEAT);
    for (int i = 0; i < 100 && beat.heartbeat.n_devices; i++)
        beat = expect(&f, l, MSG_HEARTBEAT);
    assert_int_equal(beat.heartbeat.n_devices, 0); /* the echo is the heartbeat alone */
    exited(l, id, "GPU cuda:0 (G, GPU-1) reported Xid 79: fallen off the bus");
    struct msg b = expect(&f, l, MSG_START_WORKER);
    assert_string_equal(b.start_worker.device, "cuda:1");

    struct msg_admin_reply r = ask(&f, viewer, ADMIN_WORKERS);
    assert_int_equal(r.n_nodes, 1);
    const struct msg_hello *n = &r.nodes[0];
    assert_string_equal(n->gpu_driver, "580.00");
    assert_int_equal(n->cuda_version, 13000);
    assert_string_equal(n->gpu_note, "a note");
    assert_true(n->devices[0].lost && !n->devices[1].lost);
    assert_string_equal(n->devices[0].why, "reported Xid 79");
    assert_int_equal(n->devices[0].temperature_c, 77);
    assert_int_equal(n->devices[0].power_mw, 500000);
    assert_int_equal(n->devices[0].utilization_percent, 99);
    assert_int_equal(n->devices[0].throttle, DEVICE_THROTTLE_HW_THERMAL);
    assert_int_equal(n->devices[0].memory_free_bytes, 123);
    assert_int_equal(n->devices[1].temperature_c, 40);
    assert_int_equal(n->devices[1].n_peers, 4);
    assert_int_equal(n->devices[1].path[1], DEVICE_PATH_SWITCH);
    assert_int_equal(n->devices[1].nvlinks[1], 4);
    assert_string_equal(r.workers[0].device, "cuda:1");
    assert_string_equal(r.workers[0].device_kind, "cuda");
    assert_string_equal(r.workers[0].device_model, "G");
    assert_string_equal(r.workers[0].device_uuid, "GPU-1");
    assert_int_equal(r.workers[0].temperature_c, 40);
    assert_int_equal(r.workers[0].device_memory_bytes, 1ull << 30);
    assert_false(r.workers[0].device_lost);

    /* The other one goes too: the worker waits; one comes back: it starts there. */
    a_device_state(l, 1, true);
    exited(l, b.start_worker.worker_id, "gone");
    for (int i = 0; i < WAIT_MS / 10; i++) {
        r = ask(&f, viewer, ADMIN_WORKERS);
        if (strcmp(r.workers[0].state, "waiting for a device") == 0)
            break;
        usleep(10000);
    }
    assert_string_equal(r.workers[0].state, "waiting for a device");
    a_device_state(l, 0, false);
    assert_string_equal(expect(&f, l, MSG_START_WORKER).start_worker.device, "cuda:0");
    a_device_state(l, 200, true); /* one that there is not: nothing happens */
    r = ask(&f, viewer, ADMIN_WORKERS);
    assert_string_equal(r.nodes[0].devices[0].why, "");
    link_client_close(&l);
    link_client_close(&viewer);
    close_fixture(&f);
}

static void a_gpu_is_taken_before_a_cpu(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 2);
    struct link_client *cpus, *gpus;
    start_cluster(&f);
    cpus = dial(&f, &f.worker_key);
    gpus = dial(&f, &f.worker_key);
    hello(cpus, "agent", 1, 1, 1ull << 40, PROTO_VERSION_MAX); /* one of the two that are needed */
    expect(&f, cpus, MSG_WELCOME);
    hello_gpus(gpus, 2, "G|G", 1ull << 30);
    expect(&f, gpus, MSG_WELCOME);
    assert_string_equal(expect(&f, gpus, MSG_START_WORKER).start_worker.device, "cuda:0");
    assert_string_equal(expect(&f, gpus, MSG_START_WORKER).start_worker.device, "cuda:1");
    link_client_close(&cpus);
    link_client_close(&gpus);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(workers_start_when_enough_devices_have_joined),
        cmocka_unit_test(a_node_that_falls_silent_is_replaced_and_told_so),
        cmocka_unit_test(a_worker_that_never_loads_is_given_up),
        cmocka_unit_test(a_context_beyond_the_memory_is_fatal_with_both_numbers),
        cmocka_unit_test(a_deployment_lives_for_itself),
        cmocka_unit_test(a_device_is_shared_by_those_that_name_it_only),
        cmocka_unit_test(gpus_of_two_models_do_not_make_a_replica),
        cmocka_unit_test(a_start_that_cannot_be_is_ended_with_the_reason),
        cmocka_unit_test(workers_leave_a_device_that_is_lost),
        cmocka_unit_test(a_gpu_is_taken_before_a_cpu),
        cmocka_unit_test(roles_and_versions_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
