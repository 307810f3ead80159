/* The workers of one replica: how they come up, how an epoch begins, how it fails and how the next one follows
 * (ARCHITECTURE.md, Failure model).
 *
 * An epoch is one communicator. It begins when every rank has said WORKER_READY for it: all get COMM_PEERS, all answer
 * COMM_READY, two warm-up steps run, then requests do. It is over as soon as any rank is lost, reports an error, is
 * silent for too long or leaves a step unanswered: the number rises, survivors get RESET and answer WORKER_READY with a
 * new address, the lost one is left to the cluster thread, which starts another. Messages of an older epoch are dropped
 * here. */
#include "coordinator/engine_int.h"

#include "base/check.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>

enum { BACKOFF_MS = 20, BACKOFF_MS_MAX = 5000 };

static uint32_t rank_idx(const struct engine *e, const struct rank *r)
{
    return (uint32_t)(r - e->ranks);
}

static void set_state(struct engine *e, struct rank *r, enum rank_state s)
{
    r->state = s;
    r->since_ns = r->heard_ns = e->now_ns;
}

static void set_phase(struct engine *e, enum phase p)
{
    e->phase = p;
    e->phase_since_ns = e->now_ns;
}

static bool send_rank(struct engine *e, struct rank *r, const struct msg *m)
{
    return link_server_send(e->link, &r->peer, m) == ERR_OK;
}

static void refuse(struct engine *e, const struct link_peer *to, enum err err, char *text)
{
    struct msg m = {.type = MSG_REFUSE};
    m.refuse = (struct msg_refuse){
        .err = err, .text = text, .version_min = PROTO_VERSION_MIN, .version_max = PROTO_VERSION_MAX};
    link_server_send(e->link, to, &m);
}

static bool all_at_least(const struct engine *e, enum rank_state s)
{
    for (uint32_t i = 0; i < e->n_ranks; i++)
        if (e->ranks[i].state < s)
            return false;
    return true;
}

/* ---- failure ---- */

/* At once after the first failure; a replica whose epochs fail again before they serve waits longer each time, and does not spin. */
static void hold_back(struct engine *e)
{
    uint32_t n = e->n_failed_epochs++;
    uint64_t wait_ms = n ? MIN((uint64_t)BACKOFF_MS << MIN(n - 1, 8u), (uint64_t)BACKOFF_MS_MAX) : 0;
    e->begin_at_ns = e->now_ns + wait_ms * NS_PER_MS;
}

void engine_workers_fail_epoch(struct engine *e, const char *why)
{
    if (!e->recovering && e->was_ready) {
        e->recovering = true;
        e->down_since_ns = e->now_ns;
        struct engine_event ev = {.type = ENGINE_EVENT_RECOVERING, .deployment = e->deployment, .replica = e->replica};
        snprintf(ev.text, sizeof ev.text, "%s", why);
        engine_tell_cluster(e, &ev);
    }
    snprintf(e->down_text, sizeof e->down_text, "%s", why);
    if (e->phase == PHASE_GATHER)
        return; /* no communicator was made yet: the numbers of this epoch are still good */
    e->epoch++;
    hold_back(e);
    LOG(WARN, ENGINE, "epoch failed", "model=\"%s\" replica=%u epoch=%llu in_flight=%u running=%u why=\"%s\"", e->model, e->replica,
        (unsigned long long)e->epoch, e->sched.n_in_flight, e->sched.active.n, why);
    set_phase(e, PHASE_GATHER);
    if (scheduler_reset(&e->sched, e->sched.kv.n_blocks, e->ctx) == ERR_OK)
        engine_end_unfit(e);
    struct msg m = {.type = MSG_RESET};
    m.reset.epoch = e->epoch;
    for (uint32_t i = 0; i < e->n_ranks; i++) {
        struct rank *r = &e->ranks[i];
        if (r->state != RANK_LOADED && r->state != RANK_CONNECTED)
            continue;
        set_state(e, r, RANK_RESETTING);
        send_rank(e, r, &m); /* where it fails the silence is found by the deadline */
    }
}

void engine_workers_fail_rank(struct engine *e, struct rank *r, const char *why)
{
    struct engine_event ev = {.type = ENGINE_EVENT_WORKER_FAILED,
                              .deployment = e->deployment,
                              .replica = e->replica,
                              .world_rank = rank_idx(e, r),
                              .worker_id = r->worker_id};
    snprintf(ev.text, sizeof ev.text, "%s", why);
    LOG(WARN, ENGINE, "worker failed", "model=\"%s\" replica=%u rank=%u worker=%llu why=\"%s\"", e->model, e->replica, ev.world_rank,
        (unsigned long long)r->worker_id, why);
    set_state(e, r, RANK_ABSENT);
    engine_tell_cluster(e, &ev);
    engine_workers_fail_epoch(e, why);
}

void engine_workers_command(struct engine *e, const struct engine_command *c)
{
    if (c->world_rank >= e->n_ranks)
        return;
    struct rank *r = &e->ranks[c->world_rank];
    if (c->type == ENGINE_CMD_EXPECT) {
        if (r->state != RANK_ABSENT)
            engine_workers_fail_epoch(e, "a worker was replaced");
        memset(r, 0, sizeof *r);
        r->worker_id = c->worker_id;
        set_state(e, r, RANK_EXPECTED);
        if (c->ctx)
            e->ctx = c->ctx;
    } else if (c->type == ENGINE_CMD_WORKER_LOST && r->worker_id == c->worker_id && r->state != RANK_ABSENT) {
        set_state(e, r, RANK_ABSENT);
        engine_workers_fail_epoch(e, c->text);
    }
}

/* ---- bring-up ---- */

static void begin_warmup(struct engine *e, bool second)
{
    struct step s;
    e->warm_second = second;
    e->warm_step_id = scheduler_take_step_id(&e->sched);
    arena_reset(&e->arena_step);
    if (step_build_warmup(e->epoch, e->warm_step_id, second, &e->arena_step, &s) != ERR_OK) {
        engine_workers_fail_epoch(e, err_detail());
        return;
    }
    set_phase(e, PHASE_WARMUP);
    engine_send_step(e, &s);
}

static void serve(struct engine *e)
{
    scheduler_note_freed(&e->sched, 0);
    set_phase(e, PHASE_SERVE);
    e->last_result_ns = e->now_ns;
    if (e->was_ready)
        metrics_add(e->metrics, METRIC_RECOVERIES, e->replica, 1);
    LOG(INFO, ENGINE, "replica ready", "model=\"%s\" replica=%u epoch=%llu kv_blocks=%u ctx=%u recovered=%d down_ms=%llu",
        e->model, e->replica, (unsigned long long)e->epoch, e->sched.kv.n_blocks, e->sched.ctx, e->was_ready,
        (unsigned long long)(e->recovering ? (e->now_ns - e->down_since_ns) / NS_PER_MS : 0));
    e->was_ready = true;
    e->recovering = e->gave_up = false;
    e->n_failed_epochs = 0;
    if (!e->draining)
        atomic_store(&e->refuse, ERR_OK);
    struct engine_event ev = {.type = ENGINE_EVENT_READY, .deployment = e->deployment, .replica = e->replica};
    engine_tell_cluster(e, &ev);
}

void engine_workers_warm_result(struct engine *e, const struct step_result *r)
{
    if (step_check_warmup(r, e->warm_step_id, e->vocab) != ERR_OK) {
        engine_workers_fail_epoch(e, err_detail());
        return;
    }
    double us = (double)(e->now_ns - e->phase_since_ns) / 1000;
    if (!e->warm_second) {
        scheduler_observe(&e->sched, STEP_WARMUP_TOKENS, 0, us);
        begin_warmup(e, true);
    } else {
        scheduler_observe(&e->sched, 0, 1, us);
        serve(e);
    }
}

/* Every rank is loaded and in this epoch: they may meet. */
static void begin_epoch(struct engine *e)
{
    uint8_t *address[MSG_RANKS_MAX];
    uint32_t len[MSG_RANKS_MAX], n_blocks = UINT32_MAX;
    for (uint32_t i = 0; i < e->n_ranks; i++) {
        address[i] = e->ranks[i].address;
        len[i] = e->ranks[i].address_len;
        n_blocks = MIN(n_blocks, e->ranks[i].kv_blocks);
    }
    enum err err = scheduler_reset(&e->sched, n_blocks, e->ctx);
    if (err != ERR_OK) {
        LOG(ERROR, ENGINE, "no memory for the block tables", "model=\"%s\" replica=%u blocks=%u", e->model, e->replica, n_blocks);
        return; /* tried again when a worker reports */
    }
    engine_end_unfit(e);
    check_context("%s replica %u epoch %llu", e->model, e->replica, (unsigned long long)e->epoch);
    set_phase(e, PHASE_CONNECT);
    struct msg m = {.type = MSG_COMM_PEERS};
    m.comm_peers = (struct msg_comm_peers){.epoch = e->epoch, .address = address, .address_len = len, .n = e->n_ranks};
    for (uint32_t i = 0; i < e->n_ranks; i++) {
        struct rank *r = &e->ranks[i];
        if (!send_rank(e, r, &m)) {
            engine_workers_fail_rank(e, r, "cannot be reached");
            return;
        }
    }
}

/* Now, or (engine_workers_deadlines) when the last failures are far enough behind. */
static void begin_when_due(struct engine *e)
{
    if (e->phase == PHASE_GATHER && e->now_ns >= e->begin_at_ns && all_at_least(e, RANK_LOADED))
        begin_epoch(e);
}

static void on_hello(struct engine *e, const struct link_peer *from, const struct msg_hello *h)
{
    if (h->version_max < PROTO_VERSION_MIN || h->version_min > PROTO_VERSION_MAX) {
        char text[160];
        snprintf(text, sizeof text, "no common protocol version: the coordinator speaks %u to %u, the worker %u to %u",
                 PROTO_VERSION_MIN, PROTO_VERSION_MAX, h->version_min, h->version_max);
        refuse(e, from, ERR_VERSION, text);
        return;
    }
    struct rank *r = NULL;
    for (uint32_t i = 0; i < e->n_ranks && !r; i++)
        if (e->ranks[i].state != RANK_ABSENT && e->ranks[i].worker_id == h->peer_id)
            r = &e->ranks[i];
    if (!r) {
        refuse(e, from, ERR_UNAVAILABLE, "this worker is not expected here");
        return;
    }
    r->peer = *from;
    r->pid = h->pid;
    if (r->state == RANK_EXPECTED)
        set_state(e, r, RANK_LOADING);
    struct msg m = {.type = MSG_WELCOME};
    m.welcome = (struct msg_welcome){.version = MIN(h->version_max, (uint32_t)PROTO_VERSION_MAX),
                                     .peer_id = h->peer_id,
                                     .heartbeat_ms = e->opts->heartbeat_ms};
    send_rank(e, r, &m);
}

static void report(struct engine *e, struct rank *r, const struct msg_worker_ready *w)
{
    struct engine_event ev = {.type = ENGINE_EVENT_WORKER_INFO,
                              .deployment = e->deployment,
                              .replica = e->replica,
                              .world_rank = rank_idx(e, r),
                              .worker_id = r->worker_id,
                              .pid = r->pid};
    ev.info = *w;
    ev.info.backend = NULL;
    ev.info.address = NULL;
    ev.info.address_len = 0;
    snprintf(ev.backend, sizeof ev.backend, "%s", w->backend ? w->backend : "");
    engine_tell_cluster(e, &ev);
    r->reported = true;
    LOG(INFO, ENGINE, "worker loaded", "model=\"%s\" replica=%u rank=%u backend=%s weights_bytes=%llu kv_blocks=%u load_ms=%u",
        e->model, e->replica, rank_idx(e, r), ev.backend, (unsigned long long)w->weights_bytes, w->kv_blocks, w->load_ms);
}

static void on_worker_ready(struct engine *e, struct rank *r, const struct msg_worker_ready *w)
{
    if (r->state == RANK_CONNECTED || w->address_len > sizeof r->address) {
        engine_workers_fail_rank(e, r, "broke the protocol: WORKER_READY out of turn");
        return;
    }
    if (w->kv_blocks < 2) {
        char text[128];
        snprintf(text, sizeof text, "worker %u has room for %u KV blocks, 2 are needed: give it more memory",
                 rank_idx(e, r), w->kv_blocks);
        engine_workers_fail_rank(e, r, text);
        return;
    }
    r->kv_blocks = w->kv_blocks;
    r->weights_bytes = w->weights_bytes;
    r->load_done = r->load_total = MAX(r->load_total, 1);
    if (!r->reported)
        report(e, r, w);
    if (w->epoch != e->epoch) { /* it was started, or reset, for an epoch that is over */
        set_state(e, r, RANK_RESETTING);
        struct msg m = {.type = MSG_RESET};
        m.reset.epoch = e->epoch;
        send_rank(e, r, &m);
        return;
    }
    if (r->address_len)
        memset(r->address, 0, sizeof r->address);
    if (w->address_len)
        memcpy(r->address, w->address, w->address_len);
    r->address_len = w->address_len;
    set_state(e, r, RANK_LOADED);
    begin_when_due(e);
}

static void on_worker_error(struct engine *e, struct rank *r, const struct msg_worker_error *w)
{
    char text[160];
    snprintf(text, sizeof text, "worker %u: %s", rank_idx(e, r),
             w->text && w->text[0] ? w->text : err_text(w->err < ERR_COUNT ? w->err : ERR_INTERNAL));
    if (w->fatal)
        engine_workers_fail_rank(e, r, text);
    else if (w->epoch == e->epoch)
        engine_workers_fail_epoch(e, text);
}

struct rank *engine_workers_message(struct engine *e, const struct link_peer *from, const struct msg *m)
{
    if (m->type == MSG_HELLO) {
        on_hello(e, from, &m->hello);
        return NULL;
    }
    struct rank *r = NULL;
    for (uint32_t i = 0; i < e->n_ranks && !r; i++) {
        struct rank *c = &e->ranks[i];
        if (c->state >= RANK_LOADING && c->peer.id_len == from->id_len &&
            memcmp(c->peer.id, from->id, from->id_len) == 0)
            r = c;
    }
    if (!r) {
        refuse(e, from, ERR_UNAVAILABLE, "unknown worker: say hello first");
        return NULL;
    }
    r->heard_ns = e->now_ns;
    switch (m->type) {
    case MSG_HEARTBEAT:
        r->progress = m->heartbeat.progress;
        send_rank(e, r, m); /* back to the worker: silence then means a lost link, not an idle engine */
        break;
    case MSG_LOAD_PROGRESS:
        r->load_done = m->load_progress.bytes_done;
        r->load_total = m->load_progress.bytes_total;
        break;
    case MSG_WORKER_READY:
        on_worker_ready(e, r, &m->worker_ready);
        break;
    case MSG_COMM_READY:
        if (m->comm_ready.epoch == e->epoch && e->phase == PHASE_CONNECT && r->state == RANK_LOADED) {
            set_state(e, r, RANK_CONNECTED);
            if (all_at_least(e, RANK_CONNECTED))
                begin_warmup(e, false);
        }
        break;
    case MSG_WORKER_ERROR:
        on_worker_error(e, r, &m->worker_error);
        break;
    default:
        break;
    }
    return r;
}

void engine_workers_bad_message(struct engine *e, const struct link_peer *from)
{
    for (uint32_t i = 0; i < e->n_ranks; i++) {
        struct rank *r = &e->ranks[i];
        if (r->state >= RANK_LOADING && r->peer.id_len == from->id_len &&
            memcmp(r->peer.id, from->id, from->id_len) == 0) {
            engine_workers_fail_rank(e, r, err_detail());
            return;
        }
    }
}

/* ---- deadlines ---- */

static void check_rank(struct engine *e, struct rank *r)
{
    char text[128];
    uint64_t step_ns = e->opts->step_timeout_ms * NS_PER_MS, beat_ns = e->opts->heartbeat_timeout_ms * NS_PER_MS;
    uint64_t silent = e->now_ns - r->heard_ns, age = e->now_ns - r->since_ns;
    if (r->state == RANK_ABSENT)
        return;
    if (r->state == RANK_EXPECTED || r->state == RANK_RESETTING) {
        if (age > MAX(step_ns, beat_ns)) {
            snprintf(text, sizeof text, "worker %u did not %s within %llu ms", rank_idx(e, r),
                     r->state == RANK_EXPECTED ? "come up" : "answer a reset", (unsigned long long)(age / NS_PER_MS));
            engine_workers_fail_rank(e, r, text);
        }
        if (r->state != RANK_RESETTING)
            return;
    }
    /* A worker that loads may be busy with one large read. One tick early, so that the limit is kept and not passed. */
    if (silent + e->tick_ns > (r->state == RANK_LOADING ? MAX(step_ns, beat_ns) : beat_ns)) {
        snprintf(text, sizeof text, "worker %u was silent for %llu ms", rank_idx(e, r),
                 (unsigned long long)(silent / NS_PER_MS));
        engine_workers_fail_rank(e, r, text);
    }
}

static void check_step(struct engine *e)
{
    uint64_t limit = e->opts->step_timeout_ms * NS_PER_MS, since;
    const struct step_plan *p = scheduler_oldest(&e->sched);
    if (e->phase == PHASE_CONNECT || e->phase == PHASE_WARMUP)
        since = e->phase_since_ns;
    else if (e->phase == PHASE_SERVE && p)
        since = MAX(e->sent_ns[p->step_id % (e->pp + 1)], e->last_result_ns);
    else
        return;
    if (e->now_ns - since <= limit)
        return;
    char text[128];
    snprintf(text, sizeof text, "%s had no answer within %u ms",
             e->phase == PHASE_CONNECT ? "connecting the workers" : "a step", e->opts->step_timeout_ms);
    engine_workers_fail_epoch(e, text);
}

static void check_recovery(struct engine *e)
{
    if (!e->recovering || e->gave_up || e->now_ns - e->down_since_ns <= e->opts->recover_timeout_ms * NS_PER_MS)
        return;
    e->gave_up = true;
    char text[160];
    snprintf(text, sizeof text, "the model lost a worker and did not recover within %u ms (%.90s)",
             e->opts->recover_timeout_ms, e->down_text);
    LOG(ERROR, ENGINE, "recovery takes too long", "model=\"%s\" replica=%u ended=%u why=\"%s\"", e->model, e->replica,
        e->sched.queue.n + e->sched.active.n, e->down_text);
    atomic_store(&e->refuse, ERR_UNAVAILABLE);
    for (struct seq_list *lists[] = {&e->sched.active, &e->sched.queue}, **l = lists; l < lists + 2; l++)
        for (struct seq *q; (q = (*l)->first);) {
            scheduler_cancel(&e->sched, q);
            engine_end_seq(e, q, FINISH_ERROR, ERR_PEER_LOST, text);
        }
}

void engine_workers_deadlines(struct engine *e)
{
    /* When this very process was stopped, nobody else is to blame. */
    if (e->now_ns - e->last_tick_ns > 3 * e->tick_ns + 250 * NS_PER_MS) {
        for (uint32_t i = 0; i < e->n_ranks; i++)
            e->ranks[i].heard_ns = e->ranks[i].since_ns = e->now_ns;
        e->last_result_ns = e->phase_since_ns = e->now_ns;
    }
    e->last_tick_ns = e->now_ns;
    for (uint32_t i = 0; i < e->n_ranks; i++)
        check_rank(e, &e->ranks[i]);
    check_step(e);
    check_recovery(e);
    begin_when_due(e);
}

void engine_workers_shutdown(struct engine *e)
{
    struct msg m = {.type = MSG_SHUTDOWN};
    for (uint32_t i = 0; i < e->n_ranks; i++)
        if (e->ranks[i].state >= RANK_LOADING)
            send_rank(e, &e->ranks[i], &m);
}
