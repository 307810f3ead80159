/* The cluster thread with real links: agents, workers' starts and restarts, roles, the admin protocol. Agents are
 * played by the test; the model is the demo's. */
#include "base/check.h"
#include "base/clock.h"
#include "coordinator/cluster.h"

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
enum { WAIT_MS = 10000 };

struct fixture {
    char dir[64], control[128];
    struct options opts;
    struct keys keys;
    struct link_context *links, *client_links;
    struct key_file worker_key, admin_key, viewer_key;
    struct queue *events, *engine_events;
    struct deployment d;
    struct cluster *cluster;
    int wake_fd;
    struct arena arena;
};

static void open_fixture(struct fixture *f, uint32_t tp)
{
    char path[160], engine[128];
    memset(f, 0, sizeof *f);
    snprintf(f->dir, sizeof f->dir, "/tmp/racklm-test-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    options_init(&f->opts);
    f->opts.heartbeat_timeout_ms = 500;
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
    f->opts.model = strdup(MODEL);
    f->opts.served_model_name = strdup("demo");
    f->opts.tp = tp;
    OK(deployment_open(&f->opts, 0, &f->d));
    snprintf(f->d.path, sizeof f->d.path, "/models/demo.gguf");
    f->d.metrics = metrics_create("demo", 1);
    f->d.max_step_tokens = 64;
    OK(queue_create(64, &f->events));
    OK(queue_create(64, &f->engine_events));
    f->wake_fd = eventfd(0, EFD_NONBLOCK);
    arena_init(&f->arena, 0);
    snprintf(engine, sizeof engine, "ipc://%s/e.sock", f->dir);
    struct engine_config cfg = {.opts = &f->opts,
                                .hp = &f->d.hp,
                                .split = &f->d.split,
                                .endpoint = engine,
                                .max_step_tokens = 64,
                                .links = f->links,
                                .metrics = f->d.metrics,
                                .events = f->events,
                                .cluster_events = f->engine_events};
    OK(engine_create(&cfg, &f->d.engines[0]));
    f->d.n_engines = 1;
}

static void start_cluster(struct fixture *f)
{
    snprintf(f->control, sizeof f->control, "ipc://%s/c.sock", f->dir);
    struct cluster_config cfg = {.opts = &f->opts,
                                 .deployments = &f->d,
                                 .n_deployments = 1,
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
    deployment_stop_engines(&f->d);
    for (struct engine_event *e; (e = queue_pop(f->engine_events));)
        free(e);
    queue_destroy(&f->events);
    queue_destroy(&f->engine_events);
    link_context_destroy(&f->client_links);
    link_context_destroy(&f->links);
    deployment_close(&f->d);
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
    for (int i = 0; i < 100; i++) { /* still waiting, and saying so */
        cluster_health(f.cluster, NULL, &h);
        if (strstr(h.text, "waiting for devices"))
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
    assert_int_equal(a.start_worker.ctx, f.d.hp.ctx_train);
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
    start_cluster(&f);
    struct link_client *one = dial(&f, &f.worker_key), *two = dial(&f, &f.worker_key);
    hello(one, "agent", 1, 1, 0, PROTO_VERSION_MAX);
    uint64_t first = expect(&f, one, MSG_START_WORKER).start_worker.worker_id;
    hello(two, "agent", 2, 1, 0, PROTO_VERSION_MAX);
    struct msg moved = expect(&f, two, MSG_START_WORKER); /* only two sends heartbeats while it waits */
    assert_true(moved.start_worker.worker_id > first);
    struct msg beat = {.type = MSG_HEARTBEAT};
    OK(link_client_send(one, &beat));
    assert_int_equal(expect(&f, one, MSG_REFUSE).refuse.err, ERR_UNAVAILABLE);
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
    for (int i = 0; i < 500 && !cluster_fatal(f.cluster, text, sizeof text); i++)
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
    f.opts.ctx = 100000;
    start_cluster(&f);
    struct link_client *l = dial(&f, &f.worker_key);
    hello(l, "agent", 1, 1, 16u << 20, PROTO_VERSION_MAX);
    char text[256] = "";
    for (int i = 0; i < 500 && !cluster_fatal(f.cluster, text, sizeof text); i++)
        usleep(10000);
    assert_non_null(strstr(text, "a context of 100000 tokens does not fit"));
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
    struct msg r = expect(&f, worker, MSG_REFUSE);
    assert_int_equal(r.refuse.err, ERR_VERSION);
    assert_int_equal(r.refuse.version_max, PROTO_VERSION_MAX);
    assert_non_null(strstr(r.refuse.text, "speaks"));
    hello(admin, "agent", 2, 1, 0, PROTO_VERSION_MAX); /* no device from an admin's key */
    assert_int_equal(expect(&f, admin, MSG_REFUSE).refuse.err, ERR_FORBIDDEN);
    struct msg q = {.type = MSG_ADMIN_REQUEST};
    OK(link_client_send(worker, &q));
    assert_int_equal(expect(&f, worker, MSG_REFUSE).refuse.err, ERR_FORBIDDEN);

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(workers_start_when_enough_devices_have_joined),
        cmocka_unit_test(a_node_that_falls_silent_is_replaced_and_told_so),
        cmocka_unit_test(a_worker_that_never_loads_is_given_up),
        cmocka_unit_test(a_context_beyond_the_memory_is_fatal_with_both_numbers),
        cmocka_unit_test(roles_and_versions_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
