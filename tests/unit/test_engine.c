/* The engine thread with real links and fake workers (tests/sim/fake_worker.h) in threads of this process: bring-up,
 * streams, every way to lose a worker, cancellation, bounds, drain. The expected text is the fake model's pure
 * function. */
#include "base/check.h"
#include "base/clock.h"
#include "coordinator/engine_int.h"
#include "tests/sim/fake_worker.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { RANKS_MAX = 4, SLOTS = 4, BLOCKS = 64, CTX = 256, OPEN_MAX = 32, WAIT_S = 60 };
#define OK(x) assert_int_equal((x), ERR_OK)

/* ---- a fake worker in a thread ---- */

struct peer {
    pthread_t thread;
    uint64_t id;
    uint32_t rank, version_min, version_max;
    atomic_uint step_us;
    bool answers; /* rank 0 of the last stage */
    char endpoint[256];
    atomic_bool stop, silent, lie, liar, joined, refused; /* lie: once; liar: in every result */
    atomic_uint refuse_err;
    char refuse_text[256];
};
static struct link_context *client_links;
static struct key_file worker_key;

static void send_ready(struct link_client *l, uint64_t epoch, uint32_t rank)
{
    uint8_t address[8] = {(uint8_t)rank, (uint8_t)epoch};
    struct msg m = {.type = MSG_WORKER_READY};
    m.worker_ready = (struct msg_worker_ready){
        .epoch = epoch, .kv_blocks = BLOCKS, .backend = "fake", .address = address, .address_len = 8};
    link_client_send(l, &m);
}

static void on_step(struct peer *p, struct link_client *l, struct fake_worker *w, const struct step *s, struct arena *a)
{
    struct msg m = {.type = MSG_STEP_RESULT};
    if (!p->answers)
        return;
    usleep(atomic_load(&p->step_us));
    if (!fake_worker_run(w, s, a, &m.step_result)) {
        m.type = MSG_WORKER_ERROR;
        m.worker_error =
            (struct msg_worker_error){.epoch = s->epoch, .step_id = s->step_id, .err = ERR_INTERNAL, .text = w->error};
        fprintf(stderr, "fake worker: %s\n", w->error);
    } else if (atomic_exchange(&p->lie, false) || atomic_load(&p->liar)) {
        m.step_result.slot[0] ^= 1;
    }
    link_client_send(l, &m);
}

static void *peer_main(void *arg)
{
    struct peer *p = arg;
    struct link_client *l;
    struct fake_worker w;
    struct arena a;
    uint64_t epoch = 1, beat_ns = 0;
    arena_init(&a, 0);
    fake_worker_init(&w, SLOTS, BLOCKS);
    ASSERT(link_client_open(client_links, p->endpoint, &worker_key, &l) == ERR_OK);
    struct msg hello = {.type = MSG_HELLO};
    hello.hello = (struct msg_hello){.version_min = p->version_min,
                                     .version_max = p->version_max,
                                     .role = "worker",
                                     .host = "here",
                                     .peer_id = p->id,
                                     .epoch = epoch,
                                     .pid = 4711};
    link_client_send(l, &hello);
    while (!atomic_load(&p->stop)) {
        struct msg m;
        arena_reset(&a);
        if (atomic_load(&p->silent)) {
            usleep(2000);
            continue;
        }
        uint64_t now = clock_ns();
        if (now > beat_ns && atomic_load(&p->joined)) {
            struct msg beat = {.type = MSG_HEARTBEAT};
            link_client_send(l, &beat);
            beat_ns = now + 20 * NS_PER_MS;
        }
        if (link_client_wait(l, &a, 5, &m) != ERR_OK)
            continue;
        struct msg out = {.type = MSG_COMM_READY};
        switch (m.type) {
        case MSG_WELCOME:
            atomic_store(&p->joined, true);
            send_ready(l, epoch, p->rank);
            break;
        case MSG_REFUSE:
            snprintf(p->refuse_text, sizeof p->refuse_text, "%s [%u-%u]", m.refuse.text, m.refuse.version_min,
                     m.refuse.version_max);
            atomic_store(&p->refuse_err, m.refuse.err);
            atomic_store(&p->refused, true);
            break;
        case MSG_RESET:
            epoch = m.reset.epoch;
            fake_worker_deinit(&w);
            fake_worker_init(&w, SLOTS, BLOCKS);
            send_ready(l, epoch, p->rank);
            break;
        case MSG_COMM_PEERS:
            ASSERT(m.comm_peers.epoch == epoch);
            for (uint32_t i = 0; i < m.comm_peers.n; i++)
                ASSERT(m.comm_peers.address[i][0] == i);
            out.comm_ready.epoch = epoch;
            link_client_send(l, &out);
            break;
        case MSG_STEP:
            ASSERT(m.step.epoch == epoch);
            on_step(p, l, &w, &m.step, &a);
            break;
        default:
            break;
        }
    }
    link_client_close(&l);
    fake_worker_deinit(&w);
    arena_deinit(&a);
    return NULL;
}

/* ---- the fixture ---- */

struct stream {
    uint64_t id;
    struct sampling s;
    uint32_t prompt[64], n_prompt, tokens[CTX], n_tokens;
    bool ended;
    enum finish finish;
    enum err err;
    char text[160];
};
struct fixture {
    char dir[64];
    struct options opts;
    struct keys keys;
    struct link_context *links;
    struct hparams hp;
    struct shard_split split;
    struct metrics *metrics;
    struct queue *events, *cluster_events;
    struct engine *engine;
    struct peer peers[RANKS_MAX];
    uint32_t n_ranks, n_failed_events;
    uint64_t next_worker_id, next_id;
    struct stream streams[OPEN_MAX];
};

static void start_peer(struct fixture *f, uint32_t rank)
{
    struct peer *p = &f->peers[rank];
    *p = (struct peer){.id = f->next_worker_id++,
                       .rank = rank,
                       .version_min = PROTO_VERSION_MIN,
                       .version_max = PROTO_VERSION_MAX,
                       .step_us = 1000,
                       .answers = rank == (f->split.pp - 1) * f->split.tp};
    snprintf(p->endpoint, sizeof p->endpoint, "%s", engine_endpoint(f->engine));
    struct engine_command c = {.type = ENGINE_CMD_EXPECT, .world_rank = rank, .worker_id = p->id, .ctx = CTX};
    OK(engine_command(f->engine, &c));
    pthread_create(&p->thread, NULL, peer_main, p);
}

static void stop_peer(struct fixture *f, uint32_t rank)
{
    if (!f->peers[rank].id)
        return;
    atomic_store(&f->peers[rank].stop, true);
    pthread_join(f->peers[rank].thread, NULL);
    f->peers[rank].id = 0;
}

static bool wait_state(struct fixture *f, enum engine_state st)
{
    for (uint64_t end = clock_ns() + WAIT_S * NS_PER_S; clock_ns() < end; usleep(1000))
        if (atomic_load(&engine_snapshot(f->engine)->state) == (int)st)
            return true;
    return false;
}

static void open_fixture(struct fixture *f, uint32_t tp, uint32_t pp)
{
    char path[128];
    memset(f, 0, sizeof *f);
    snprintf(f->dir, sizeof f->dir, "/tmp/racklm-test-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    options_init(&f->opts);
    f->opts.max_seqs = SLOTS;
    f->opts.queue_max = 8;
    f->opts.heartbeat_ms = 50;
    f->opts.heartbeat_timeout_ms = f->opts.step_timeout_ms = WAIT_S * 1000; /* a machine that stands still for seconds is no failure */
    OK(keys_load_or_create(f->dir, &f->keys));
    snprintf(path, sizeof path, "%s/keys/local-worker.key", f->dir);
    OK(keys_read_file(path, &worker_key));
    OK(link_context_create(&f->keys, f->dir, &f->links));
    OK(link_context_create(NULL, NULL, &client_links));
    f->hp.vocab = FAKE_VOCAB;
    f->hp.ctx_train = CTX;
    f->split.tp = tp;
    f->split.pp = pp;
    f->n_ranks = tp * pp;
    f->metrics = metrics_create("fake", 1);
    OK(queue_create(4096, &f->events));
    OK(queue_create(64, &f->cluster_events));
    f->next_worker_id = 100;
    f->next_id = 1;
}

static void start_engine(struct fixture *f)
{
    char endpoint[128];
    snprintf(endpoint, sizeof endpoint, "ipc://%s/e.sock", f->dir);
    struct engine_config cfg = {.opts = &f->opts,
                                .hp = &f->hp,
                                .split = &f->split,
                                .endpoint = endpoint,
                                .max_step_tokens = 64,
                                .links = f->links,
                                .metrics = f->metrics,
                                .events = f->events,
                                .cluster_events = f->cluster_events};
    OK(engine_create(&cfg, &f->engine));
}

static void start_all(struct fixture *f)
{
    start_engine(f);
    for (uint32_t r = 0; r < f->n_ranks; r++)
        start_peer(f, r);
    assert_true(wait_state(f, ENGINE_READY));
}

static void close_fixture(struct fixture *f)
{
    char cmd[128];
    for (uint32_t r = 0; r < f->n_ranks; r++)
        stop_peer(f, r);
    engine_destroy(&f->engine);
    for (struct token_event *e; (e = queue_pop(f->events));)
        token_event_destroy(&e);
    for (struct engine_event *e; (e = queue_pop(f->cluster_events));)
        free(e);
    queue_destroy(&f->events);
    queue_destroy(&f->cluster_events);
    metrics_destroy(&f->metrics);
    link_context_destroy(&client_links);
    link_context_destroy(&f->links);
    keys_deinit(&f->keys);
    options_deinit(&f->opts);
    snprintf(cmd, sizeof cmd, "rm -rf %s", f->dir);
    assert_int_equal(system(cmd), 0);
}

/* ---- requests ---- */

static struct request *make_request(struct stream *s)
{
    struct request *r = request_create(s->n_prompt);
    r->id = s->id;
    r->sampling = s->s;
    memcpy(r->prompt, s->prompt, s->n_prompt * sizeof *r->prompt);
    return r;
}

static struct stream *submit(struct fixture *f, uint32_t n_prompt, uint32_t max_tokens)
{
    struct stream *s = &f->streams[f->next_id % OPEN_MAX];
    memset(s, 0, sizeof *s);
    s->id = f->next_id++;
    s->n_prompt = n_prompt;
    s->s = (struct sampling){.seed = 1000 + s->id, .max_tokens = max_tokens, .temperature = 1};
    for (uint32_t i = 0; i < n_prompt; i++)
        s->tokens[i] = s->prompt[i] = (uint32_t)(s->id * 7 + i * 3) % FAKE_VOCAB;
    s->n_tokens = n_prompt;
    struct request *r = make_request(s);
    OK(engine_submit(f->engine, r));
    return s;
}

static void take_events(struct fixture *f)
{
    for (struct token_event *e; (e = queue_pop(f->events)); token_event_destroy(&e)) {
        struct stream *s = &f->streams[e->id % OPEN_MAX];
        assert_int_equal(s->id, e->id);
        assert_false(s->ended);
        for (uint32_t i = 0; i < e->n_tokens; i++) {
            assert_int_equal(e->tokens[i], fake_worker_next(s->s.seed, 0, 0, s->tokens, s->n_tokens));
            s->tokens[s->n_tokens++] = e->tokens[i];
        }
        s->ended = e->finish != FINISH_NONE;
        s->finish = e->finish;
        s->err = e->err;
        memcpy(s->text, e->text, sizeof s->text);
    }
    for (struct engine_event *e; (e = queue_pop(f->cluster_events)); free(e))
        f->n_failed_events += e->type == ENGINE_EVENT_WORKER_FAILED;
}

static void wait_end(struct fixture *f, struct stream *s)
{
    for (uint64_t end = clock_ns() + WAIT_S * NS_PER_S; !s->ended; usleep(500)) {
        take_events(f);
        assert_true(clock_ns() < end);
    }
}

static void wait_tokens(struct fixture *f, struct stream *s, uint32_t n)
{
    for (uint64_t end = clock_ns() + WAIT_S * NS_PER_S; s->n_tokens - s->n_prompt < n; usleep(500)) {
        take_events(f);
        assert_true(clock_ns() < end);
    }
}

static void wait_idle(struct fixture *f)
{
    const struct engine_snapshot *s = engine_snapshot(f->engine);
    for (uint64_t end = clock_ns() + WAIT_S * NS_PER_S; atomic_load(&s->kv_blocks_used) || atomic_load(&s->running);
         usleep(500))
        assert_true(clock_ns() < end);
}

static bool metric_is(struct fixture *f, const char *line)
{
    struct buf b;
    buf_init(&b);
    metrics_render((const struct metrics *const *)&f->metrics, 1, &b);
    bool found = strstr(b.data, line) != NULL;
    if (!found)
        fprintf(stderr, "%s", b.data);
    buf_deinit(&b);
    return found;
}

static void expect_length(struct fixture *f, struct stream *s)
{
    wait_end(f, s);
    assert_int_equal(s->finish, FINISH_LENGTH);
    assert_int_equal(s->n_tokens - s->n_prompt, s->s.max_tokens);
}

/* ---- tests ---- */

static void many_streams(struct fixture *f)
{
    struct stream *s[12];
    start_all(f);
    assert_int_equal(atomic_load(&engine_snapshot(f->engine)->steps), 2); /* the warm-up */
    assert_int_equal(atomic_load(&engine_snapshot(f->engine)->ctx), CTX);
    for (uint32_t i = 0; i < 12; i++)
        s[i] = submit(f, 1 + i * 4, 20 + i);
    for (uint32_t i = 0; i < 12; i++)
        expect_length(f, s[i]);
    wait_idle(f);
    assert_true(metric_is(f, "racklm:generation_tokens_total{model_name=\"fake\",engine=\"0\"} 306"));
    close_fixture(f);
}

static void streams_are_the_fake_models_text_for_every_shape(void **state)
{
    (void)state;
    const uint32_t shapes[][2] = {{1, 1}, {2, 1}, {1, 3}, {2, 2}};
    for (int i = 0; i < 4; i++) {
        struct fixture f;
        open_fixture(&f, shapes[i][0], shapes[i][1]);
        many_streams(&f);
    }
}

static void a_killed_worker_is_a_pause(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 2, 1);
    start_all(&f);
    for (uint32_t round = 0; round < 4; round++) {
        struct stream *a = submit(&f, 20, 60), *b = submit(&f, 5, 60);
        wait_tokens(&f, a, 5);
        uint32_t rank = round % 2;
        struct engine_command c = {.type = ENGINE_CMD_WORKER_LOST, .world_rank = rank, .worker_id = f.peers[rank].id};
        snprintf(c.text, sizeof c.text, "killed by signal 9");
        stop_peer(&f, rank);
        OK(engine_command(f.engine, &c));
        assert_true(wait_state(&f, ENGINE_RECOVERING));
        start_peer(&f, rank);
        expect_length(&f, a);
        expect_length(&f, b);
    }
    assert_int_equal(atomic_load(&engine_snapshot(f.engine)->epoch), 5);
    assert_true(metric_is(&f, "racklm:recoveries_total{model_name=\"fake\",engine=\"0\"} 4"));
    wait_idle(&f);
    close_fixture(&f);
}

static void a_hung_worker_is_found_by_its_silence(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 2, 1);
    f.opts.heartbeat_timeout_ms = 1500;
    start_all(&f);
    atomic_store(&f.peers[0].step_us, 20000);
    struct stream *s = submit(&f, 3, 240);
    wait_tokens(&f, s, 3);
    uint64_t end = clock_ns() + WAIT_S * NS_PER_S;
    atomic_store(&f.peers[1].silent, true); /* rank 1 does not answer steps here: only the silence tells */
    while (!f.n_failed_events) {
        take_events(&f);
        assert_true(clock_ns() < end);
        usleep(1000);
    }
    atomic_store(&f.peers[0].step_us, 1000);
    stop_peer(&f, 1);
    start_peer(&f, 1);
    expect_length(&f, s);
    close_fixture(&f);
}

static void a_result_that_lies_fails_the_epoch_not_the_process(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1, 1);
    start_all(&f);
    struct stream *s = submit(&f, 3, 40);
    wait_tokens(&f, s, 3);
    atomic_store(&f.peers[0].lie, true);
    expect_length(&f, s);
    assert_int_equal(atomic_load(&engine_snapshot(f.engine)->epoch), 2);
    close_fixture(&f);
}

static void epochs_that_fail_before_they_serve_come_ever_slower(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1, 1);
    start_all(&f);
    atomic_store(&f.peers[0].liar, true); /* its warm-ups fail too, from now on */
    uint64_t begin_ns = clock_ns(), end_ns = begin_ns + WAIT_S * NS_PER_S;
    struct stream *s = submit(&f, 3, 40);
    while (atomic_load(&engine_snapshot(f.engine)->epoch) < 7 && clock_ns() < end_ns)
        usleep(1000);
    assert_true(atomic_load(&engine_snapshot(f.engine)->epoch) >= 7);
    assert_true(clock_ns() - begin_ns >= (20 + 40 + 80 + 160) * NS_PER_MS); /* it did not spin: the sum of the waits */
    atomic_store(&f.peers[0].liar, false);
    expect_length(&f, s);
    close_fixture(&f);
}

static void streams_end_with_an_error_when_the_worker_stays_away(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1, 1);
    f.opts.recover_timeout_ms = 300;
    start_all(&f);
    struct stream *s = submit(&f, 3, 200);
    wait_tokens(&f, s, 3);
    struct engine_command c = {.type = ENGINE_CMD_WORKER_LOST, .worker_id = f.peers[0].id};
    snprintf(c.text, sizeof c.text, "killed by signal 9");
    OK(engine_command(f.engine, &c)); /* first: the engine would notice the broken link itself, in other words */
    stop_peer(&f, 0);
    wait_end(&f, s);
    assert_int_equal(s->finish, FINISH_ERROR);
    assert_int_equal(s->err, ERR_PEER_LOST);
    assert_non_null(strstr(s->text, "killed by signal 9"));
    struct stream gone = {.id = 77, .n_prompt = 1, .s = {.max_tokens = 1}};
    struct request *r = make_request(&gone);
    assert_int_equal(engine_submit(f.engine, r), ERR_UNAVAILABLE);
    request_destroy(&r);
    start_peer(&f, 0); /* and it comes back all the same */
    assert_true(wait_state(&f, ENGINE_READY));
    expect_length(&f, submit(&f, 3, 10));
    close_fixture(&f);
}

static void a_cancelled_request_gives_its_blocks_back(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1, 1);
    start_all(&f);
    atomic_store(&f.peers[0].step_us, 20000); /* its end is far */
    struct stream *s = submit(&f, 3, 200), *other = submit(&f, 3, 50);
    wait_tokens(&f, s, 3);
    engine_cancel(f.engine, s->id);
    engine_cancel(f.engine, 999); /* nobody */
    wait_end(&f, s);
    atomic_store(&f.peers[0].step_us, 1000);
    assert_int_equal(s->finish, FINISH_CANCEL);
    expect_length(&f, other);
    wait_idle(&f);
    close_fixture(&f);
}

/* The front's moves at the one moment when a cancellation could overtake its request: the engine's thread has just found no request, and looks
 * for cancellations next. */
static struct {
    atomic_bool armed;
    struct engine *engine;
    struct request *request;
    uint64_t id;
} between;
void *__real_queue_pop(struct queue *q);
void *__wrap_queue_pop(struct queue *q);

void *__wrap_queue_pop(struct queue *q)
{
    void *p = __real_queue_pop(q);
    if (!p && atomic_load(&between.armed) && q == between.engine->requests && atomic_exchange(&between.armed, false)) {
        ASSERT(engine_submit(between.engine, between.request) == ERR_OK);
        engine_cancel(between.engine, between.id);
    }
    return p;
}

static void a_cancellation_right_behind_its_request_is_not_lost(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1, 1);
    start_all(&f);
    struct stream *s = &f.streams[f.next_id % OPEN_MAX];
    *s = (struct stream){.id = f.next_id++, .n_prompt = 1, .n_tokens = 1, .s = {.max_tokens = 200}};
    between.engine = f.engine;
    between.request = make_request(s);
    between.id = s->id;
    atomic_store(&between.armed, true);
    wait_end(&f, s);
    assert_int_equal(s->finish, FINISH_CANCEL);
    assert_int_equal(s->n_tokens, s->n_prompt);
    wait_idle(&f);
    close_fixture(&f);
}

static void what_is_too_much_or_wrong_is_refused(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1, 1);
    start_engine(&f); /* no worker: requests wait */
    for (uint32_t i = 0; i < SLOTS + 8; i++)
        submit(&f, 1, 1);
    struct stream s = {.id = 50, .n_prompt = 1, .s = {.max_tokens = 1}};
    struct request *r = make_request(&s);
    assert_int_equal(engine_submit(f.engine, r), ERR_BUSY);
    r->prompt[0] = FAKE_VOCAB;
    assert_int_equal(engine_submit(f.engine, r), ERR_INVALID);
    r->n_prompt = 0;
    assert_int_equal(engine_submit(f.engine, r), ERR_INVALID);
    request_destroy(&r);
    start_peer(&f, 0); /* the ones that were let in are served */
    for (uint64_t id = 1; id < f.next_id; id++)
        expect_length(&f, &f.streams[id % OPEN_MAX]);
    assert_true(metric_is(&f, "racklm:admission_rejections_total{model_name=\"fake\",engine=\"0\"} 1"));
    close_fixture(&f);
}

static void run_stranger(struct fixture *f, uint64_t id, uint32_t version_min, uint32_t version_max, struct peer *p)
{
    *p = (struct peer){.id = id, .version_min = version_min, .version_max = version_max};
    snprintf(p->endpoint, sizeof p->endpoint, "%s", engine_endpoint(f->engine));
    pthread_create(&p->thread, NULL, peer_main, p);
    for (uint64_t end = clock_ns() + WAIT_S * NS_PER_S; !atomic_load(&p->refused); usleep(1000))
        assert_true(clock_ns() < end);
    atomic_store(&p->stop, true);
    pthread_join(p->thread, NULL);
}

static void strangers_and_other_versions_are_refused(void **state)
{
    (void)state;
    struct fixture f;
    struct peer p;
    open_fixture(&f, 1, 1);
    start_engine(&f);
    run_stranger(&f, 12345, PROTO_VERSION_MIN, PROTO_VERSION_MAX, &p);
    assert_int_equal(atomic_load(&p.refuse_err), ERR_UNAVAILABLE);
    run_stranger(&f, 12345, PROTO_VERSION_MAX + 1, PROTO_VERSION_MAX + 3, &p);
    assert_int_equal(atomic_load(&p.refuse_err), ERR_VERSION);
    char both[128];
    snprintf(both, sizeof both, "speaks %d to %d, the worker %d to %d", PROTO_VERSION_MIN, PROTO_VERSION_MAX,
             PROTO_VERSION_MAX + 1, PROTO_VERSION_MAX + 3);
    assert_non_null(strstr(p.refuse_text, both));
    close_fixture(&f);
}

static void draining_lets_streams_finish_and_refuses_new_ones(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, 1, 1);
    start_all(&f);
    struct stream *s = submit(&f, 3, 10), *endless = submit(&f, 3, 240);
    wait_tokens(&f, s, 3);
    struct engine_command c = {.type = ENGINE_CMD_DRAIN, .grace_ms = 2000};
    OK(engine_command(f.engine, &c));
    expect_length(&f, s);
    atomic_store(&f.peers[0].step_us, 50000); /* its end is far behind the grace's */
    struct stream late = {.id = 60, .n_prompt = 1, .s = {.max_tokens = 1}};
    struct request *r = make_request(&late);
    assert_int_equal(engine_submit(f.engine, r), ERR_UNAVAILABLE);
    request_destroy(&r);
    wait_end(&f, endless);
    assert_int_equal(endless->finish, FINISH_ERROR);
    assert_int_equal(endless->err, ERR_UNAVAILABLE);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams_are_the_fake_models_text_for_every_shape),
        cmocka_unit_test(a_killed_worker_is_a_pause),
        cmocka_unit_test(a_hung_worker_is_found_by_its_silence),
        cmocka_unit_test(a_result_that_lies_fails_the_epoch_not_the_process),
        cmocka_unit_test(epochs_that_fail_before_they_serve_come_ever_slower),
        cmocka_unit_test(streams_end_with_an_error_when_the_worker_stays_away),
        cmocka_unit_test(a_cancelled_request_gives_its_blocks_back),
        cmocka_unit_test(a_cancellation_right_behind_its_request_is_not_lost),
        cmocka_unit_test(what_is_too_much_or_wrong_is_refused),
        cmocka_unit_test(strangers_and_other_versions_are_refused),
        cmocka_unit_test(draining_lets_streams_finish_and_refuses_new_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
