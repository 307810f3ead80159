/* The engine of one replica: its continuous-batching loop.
 *
 * http_request -api-> chat -chat_template-> text -tokenizer-> request -scheduler-> step_plan -step-> step
 * => batch -forward-> logits -sampler-> step_result => token_event -detokenizer-> text_delta -sse-> bytes
 *
 * This file joins the stages from request to step and from step_result to token_event; scheduler.c decides, step.c
 * translates, engine_workers.c keeps the workers. One thread; it shares the three queues, the snapshot and two atomics
 * with the others. It sleeps in poll() until a worker, the front, the cluster or the heartbeat timer has something. The
 * link's descriptor is edge-triggered: it is drained until neither a message comes nor a step goes. */
#include "coordinator/engine_int.h"

#include "base/check.h"
#include "base/log.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

const char *engine_state_name(enum engine_state s)
{
    static const char *const names[] = {"waiting for workers", "loading", "connecting", "warming up", "ready",
                                        "recovering",          "stopped"};
    return names[s];
}

/* ---- events to the front and the cluster ---- */

static void hold_event(struct engine *e, struct token_event *ev)
{
    if (e->held_n == e->held_cap) {
        uint32_t cap = MAX(64u, e->held_cap * 2);
        struct token_event **ring = malloc(cap * sizeof(*ring));
        ASSERT(ring);
        for (uint32_t i = 0; i < e->held_n; i++)
            ring[i] = e->held[(e->held_first + i) % e->held_cap];
        free(e->held);
        e->held = ring;
        e->held_first = 0;
        e->held_cap = cap;
    }
    e->held[(e->held_first + e->held_n++) % e->held_cap] = ev;
}

/* When the front is behind, events wait here and no step is planned: what can still come is bounded by the steps in
 * flight and the open requests. */
static void push_event(struct engine *e, struct token_event *ev)
{
    if (e->held_n || queue_push(e->events, ev) != ERR_OK)
        hold_event(e, ev);
}

static void flush_held(struct engine *e)
{
    while (e->held_n && queue_push(e->events, e->held[e->held_first]) == ERR_OK) {
        e->held_first = (e->held_first + 1) % e->held_cap;
        e->held_n--;
    }
}

void engine_tell_cluster(struct engine *e, const struct engine_event *ev)
{
    struct engine_event *copy = malloc(sizeof *copy);
    ASSERT(copy);
    *copy = *ev;
    if (queue_push(e->cluster_events, copy) != ERR_OK) {
        LOG(ERROR, ENGINE, "the cluster thread is behind: an event was dropped", "model=\"%s\" replica=%u type=%d", e->model, e->replica,
            ev->type);
        free(copy);
    }
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

/* Before the last event is pushed: whoever has the answer finds it counted. */
static void count_end(struct engine *e, const struct seq *q, enum finish finish)
{
    static const char *const reasons[] = {"", "stop", "length", "error", "abort"};
    const struct request *r = q->req;
    metrics_add_label(e->metrics, METRIC_REQUEST_SUCCESS, e->replica, reasons[finish], 1);
    if (finish != FINISH_STOP && finish != FINISH_LENGTH)
        return;
    metrics_observe(e->metrics, METRIC_E2E, e->replica, seconds(r->arrival_ns, e->now_ns));
    metrics_observe(e->metrics, METRIC_REQUEST_PROMPT_TOKENS, e->replica, r->n_prompt);
    if (r->kind != REQUEST_GENERATE)
        return;
    metrics_observe(e->metrics, METRIC_REQUEST_GENERATION_TOKENS, e->replica, seq_n_output(q));
    if (q->first_token_ns)
        metrics_observe(e->metrics, METRIC_DECODE_TIME, e->replica, seconds(q->first_token_ns, q->last_token_ns));
}

static void drop_seq(struct engine *e, struct seq *q)
{
    seq_destroy(&q);
    atomic_fetch_sub(&e->n_open, 1);
}

void engine_end_seq(struct engine *e, struct seq *q, enum finish finish, enum err err, const char *text)
{
    struct token_event *ev = token_event_create(0, false, 0, 0);
    ASSERT(ev);
    ev->id = q->req->id;
    ev->finish = finish;
    ev->err = err;
    snprintf(ev->text, sizeof ev->text, "%s", text);
    count_end(e, q, finish);
    push_event(e, ev);
    drop_seq(e, q);
}

void engine_end_unfit(struct engine *e)
{
    enum finish finish;
    enum err err = ERR_OK;
    char text[160] = "";
    for (struct seq *q; (q = scheduler_take_unfit(&e->sched, &finish, &err));) {
        if (err == ERR_PEER_LOST)
            snprintf(text, sizeof text, "the model's workers failed %d times in a row while this request ran",
                     SCHEDULER_FAILURES_MAX);
        else if (err == ERR_NO_FIT)
            snprintf(text, sizeof text, "the prompt has %u tokens, the workers' memory holds %u", q->req->n_prompt,
                     e->sched.ctx);
        engine_end_seq(e, q, finish, err, text);
    }
}

/* ---- requests in ---- */

static struct seq *find_seq(const struct engine *e, uint64_t id)
{
    for (struct seq *q = e->sched.active.first; q; q = q->next)
        if (q->req->id == id)
            return q;
    for (struct seq *q = e->sched.queue.first; q; q = q->next)
        if (q->req->id == id)
            return q;
    return NULL;
}

static void take_new(struct engine *e)
{
    bool any = false;
    for (struct seq *q; (q = queue_pop(e->requests)); any = true) {
        /* n_open bounds what was let in, so there is room; a request that came while the replica gave up or drained
         * ends at once. */
        if (e->gave_up || e->drained)
            engine_end_seq(e, q, FINISH_ERROR, ERR_UNAVAILABLE,
                           e->drained ? "the server is shutting down" : e->down_text);
        else if (scheduler_submit(&e->sched, q) != ERR_OK)
            engine_end_seq(e, q, FINISH_ERROR, ERR_BUSY, err_detail());
    }
    if (any)
        engine_end_unfit(e);
}

static void take_requests(struct engine *e)
{
    take_new(e);
    for (void *id; (id = queue_pop(e->cancels));) {
        take_new(e); /* the request may have come after the last look, but before its cancellation */
        struct seq *q = find_seq(e, (uintptr_t)id & ~ENGINE_CANCEL_STOPPED);
        if (!q)
            continue; /* it has ended meanwhile */
        scheduler_cancel(&e->sched, q);
        engine_end_seq(e, q, (uintptr_t)id & ENGINE_CANCEL_STOPPED ? FINISH_STOP : FINISH_CANCEL, ERR_OK, "");
    }
}

static void take_commands(struct engine *e)
{
    for (struct engine_command *c; (c = queue_pop(e->commands)); free(c)) {
        switch (c->type) {
        case ENGINE_CMD_EXPECT:
        case ENGINE_CMD_WORKER_LOST:
            engine_workers_command(e, c);
            break;
        case ENGINE_CMD_DRAIN:
            e->draining = true;
            e->drain_until_ns = e->now_ns + c->grace_ms * NS_PER_MS;
            atomic_store(&e->refuse, ERR_UNAVAILABLE);
            break;
        case ENGINE_CMD_STOP:
            e->running = false;
            break;
        }
    }
}

/* ---- steps out ---- */

bool engine_send_step(struct engine *e, const struct step *s)
{
    struct msg m = {.type = MSG_STEP, .step = *s};
    buf_clear(&e->wire);
    if (codec_encode(&m, &e->wire) != ERR_OK) {
        engine_workers_fail_epoch(e, err_detail());
        return false;
    }
    for (uint32_t i = 0; i < e->n_ranks; i++) {
        if (link_server_send_bytes(e->link, &e->ranks[i].peer, e->wire.data, e->wire.len) != ERR_OK) {
            char text[128];
            snprintf(text, sizeof text, "worker %u cannot be reached", i);
            engine_workers_fail_rank(e, &e->ranks[i], text);
            return false;
        }
    }
    e->n_steps++;
    return true;
}

static bool plan_and_send(struct engine *e)
{
    bool any = false;
    const struct step_plan *p;
    while (e->phase == PHASE_SERVE && !e->held_n && (p = scheduler_plan(&e->sched, e->now_ns))) {
        struct step s;
        arena_reset(&e->arena_step);
        if (step_build(p, &e->sched.kv, e->epoch, &e->arena_step, &s) != ERR_OK) {
            engine_workers_fail_epoch(e, err_detail());
            break;
        }
        e->sent_ns[p->step_id % (e->pp + 1)] = e->now_ns;
        metrics_observe(e->metrics, METRIC_ITERATION_TOKENS, e->replica, p->n_tokens);
        if (!engine_send_step(e, &s))
            break;
        any = true;
    }
    return any;
}

/* ---- results in ---- */

static void count_token(struct engine *e, struct seq *q, struct token_event *ev)
{
    if (!q->last_token_ns) {
        ev->queue_ns = q->first_slot_ns > q->req->arrival_ns ? q->first_slot_ns - q->req->arrival_ns : 0;
        ev->prefill_ns = e->now_ns - q->first_slot_ns;
        if (q->req->kind == REQUEST_GENERATE)
            metrics_observe(e->metrics, METRIC_TTFT, e->replica, seconds(q->req->arrival_ns, e->now_ns));
        metrics_observe(e->metrics, METRIC_QUEUE_TIME, e->replica, (double)ev->queue_ns / 1e9);
        metrics_observe(e->metrics, METRIC_PREFILL_TIME, e->replica, (double)ev->prefill_ns / 1e9);
        metrics_add(e->metrics, METRIC_PROMPT_TOKENS, e->replica, q->req->n_prompt);
    } else {
        metrics_observe(e->metrics, METRIC_ITL, e->replica, seconds(q->last_token_ns, e->now_ns));
    }
    q->last_token_ns = e->now_ns;
    if (ev->n_tokens)
        metrics_add(e->metrics, METRIC_GENERATION_TOKENS, e->replica, 1);
}

static void apply_result(struct engine *e, const struct step_result *r)
{
    const struct step_plan *p = scheduler_oldest(&e->sched);
    struct step_samples m;
    if (!p || step_match(p, r, e->vocab, &e->arena_in, &m) != ERR_OK) {
        engine_workers_fail_epoch(e, p ? err_detail() : "a result came although no step is in flight");
        return;
    }
    uint64_t from = MAX(e->sent_ns[p->step_id % (e->pp + 1)], e->last_result_ns);
    scheduler_observe(&e->sched, p->n_tokens - p->n_decodes, p->n_decodes, (double)(e->now_ns - from) / 1000);
    metrics_observe(e->metrics, METRIC_STEP_TIME, e->replica, seconds(e->sent_ns[p->step_id % (e->pp + 1)], e->now_ns));
    e->last_result_ns = e->now_ns;
    uint32_t n = scheduler_apply(&e->sched, m.token, e->now_ns);
    for (uint32_t i = 0; i < n; i++) {
        struct seq_outcome *o = &e->sched.outcomes[i];
        struct token_event *ev = step_event(p, r, &m, o);
        ASSERT(ev);
        if (!ev->prefilling)
            count_token(e, o->seq, ev);
        if (o->finish != FINISH_NONE)
            count_end(e, o->seq, o->finish);
        push_event(e, ev);
        if (o->finish != FINISH_NONE)
            drop_seq(e, o->seq);
    }
}

static void on_message(struct engine *e, const struct link_peer *from, const struct msg *m)
{
    struct rank *r = engine_workers_message(e, from, m);
    if (!r || m->type != MSG_STEP_RESULT || m->step_result.epoch != e->epoch)
        return;
    if (r != &e->ranks[(e->pp - 1) * e->tp])
        engine_workers_fail_rank(e, r, "broke the protocol: a result from a rank that does not answer");
    else if (e->phase == PHASE_WARMUP)
        engine_workers_warm_result(e, &m->step_result);
    else if (e->phase == PHASE_SERVE)
        apply_result(e, &m->step_result);
}

static bool take_messages(struct engine *e)
{
    bool any = false;
    for (;; any = true) {
        struct link_peer from;
        struct msg m;
        arena_reset(&e->arena_in);
        enum err err = link_server_recv(e->link, &e->arena_in, &from, &m);
        if (err == ERR_UNAVAILABLE)
            return any;
        e->now_ns = clock_ns();
        if (err == ERR_OK)
            on_message(e, &from, &m);
        else if (err == ERR_PROTOCOL || err == ERR_TOO_BIG)
            engine_workers_bad_message(e, &from);
        else
            return any; /* no memory or the socket failed: the deadlines notice */
    }
}

/* ---- the loop ---- */

static enum engine_state public_state(const struct engine *e)
{
    bool waiting = false;
    if (!e->running)
        return ENGINE_STOPPED;
    if (e->recovering)
        return ENGINE_RECOVERING;
    for (uint32_t i = 0; i < e->n_ranks; i++)
        waiting |= e->ranks[i].state <= RANK_EXPECTED;
    switch (e->phase) {
    case PHASE_GATHER:
        return waiting ? ENGINE_WAITING : ENGINE_LOADING;
    case PHASE_CONNECT:
        return ENGINE_CONNECTING;
    case PHASE_WARMUP:
        return ENGINE_WARMUP;
    case PHASE_SERVE:
        return ENGINE_READY;
    }
    return ENGINE_WAITING;
}

static void publish(struct engine *e)
{
    uint64_t done = 0, total = 0, weights = 0;
    uint32_t n_ready = 0;
    for (uint32_t i = 0; i < e->n_ranks; i++) {
        const struct rank *r = &e->ranks[i];
        done += r->load_done;
        total += r->load_total;
        weights += r->state >= RANK_RESETTING ? r->weights_bytes : 0;
        n_ready += r->state == RANK_CONNECTED;
    }
    const struct scheduler *s = &e->sched;
    struct engine_snapshot *o = &e->snap;
    uint32_t used = scheduler_blocks_used(s);
    atomic_store(&o->epoch, e->epoch);
    atomic_store(&o->steps, e->n_steps);
    atomic_store(&o->load_done, done);
    atomic_store(&o->load_total, total);
    atomic_store(&o->running, s->active.n);
    atomic_store(&o->waiting, s->queue.n);
    atomic_store(&o->kv_blocks, s->kv.n_blocks);
    atomic_store(&o->kv_blocks_used, used);
    atomic_store(&o->workers_ready, n_ready);
    atomic_store(&o->ctx, s->ctx ? s->ctx : e->ctx);
    atomic_store(&o->state, public_state(e));
    metrics_set(e->metrics, METRIC_REQUESTS_RUNNING, e->replica, s->active.n);
    metrics_set(e->metrics, METRIC_REQUESTS_WAITING, e->replica, s->queue.n);
    metrics_set(e->metrics, METRIC_KV_CACHE_USAGE, e->replica, s->kv.n_blocks ? (double)used / s->kv.n_blocks : 0);
    metrics_set(e->metrics, METRIC_WEIGHTS_BYTES, e->replica, (double)weights);
    metrics_set(e->metrics, METRIC_WORKERS_READY, e->replica, n_ready);
    if (s->n_preemptions != e->n_preemptions_told)
        metrics_add(e->metrics, METRIC_PREEMPTIONS, e->replica, s->n_preemptions - e->n_preemptions_told);
    e->n_preemptions_told = s->n_preemptions;
}

static void end_all(struct engine *e, const char *text)
{
    for (struct seq *q; (q = queue_pop(e->requests));)
        engine_end_seq(e, q, FINISH_ERROR, ERR_UNAVAILABLE, text);
    for (struct seq *q; (q = e->sched.active.first ? e->sched.active.first : e->sched.queue.first);) {
        scheduler_cancel(&e->sched, q);
        engine_end_seq(e, q, FINISH_ERROR, ERR_UNAVAILABLE, text);
    }
}

static void check_drain(struct engine *e)
{
    if (!e->draining || e->drained)
        return;
    if (e->now_ns >= e->drain_until_ns) {
        char text[160];
        snprintf(text, sizeof text, "the server is shutting down%s%.90s%s", e->recovering ? " without a worker (" : "",
                 e->recovering ? e->down_text : "", e->recovering ? ")" : "");
        end_all(e, text);
    }
    if (atomic_load(&e->n_open) == 0) {
        e->drained = true;
        struct engine_event ev = {.type = ENGINE_EVENT_DRAINED, .deployment = e->deployment, .replica = e->replica};
        engine_tell_cluster(e, &ev);
    }
}

/* Sleeps until something is there. True: the timer has ticked. */
static bool wait_for_work(struct engine *e)
{
    struct pollfd fds[] = {{link_server_fd(e->link), POLLIN, 0},
                           {queue_fd(e->requests), POLLIN, 0},
                           {queue_fd(e->cancels), POLLIN, 0},
                           {queue_fd(e->commands), POLLIN, 0},
                           {e->timer_fd, POLLIN, 0}};
    int timeout_ms = e->held_n ? 5 : e->draining && !e->drained ? 20 : -1;
    poll(fds, ARRAY_LEN(fds), timeout_ms);
    e->now_ns = clock_ns();
    uint64_t ticks;
    return (fds[4].revents & POLLIN) && read(e->timer_fd, &ticks, sizeof ticks) > 0;
}

static void *engine_main(void *arg)
{
    struct engine *e = arg;
    while (e->running) {
        bool tick = wait_for_work(e);
        take_commands(e);
        take_requests(e);
        if (tick)
            engine_workers_deadlines(e);
        flush_held(e);
        while ((int)take_messages(e) | (int)plan_and_send(e)) /* both, each time */
            ;
        check_drain(e);
        publish(e);
    }
    atomic_store(&e->refuse, ERR_UNAVAILABLE);
    end_all(e, "the server is shutting down");
    flush_held(e);
    engine_workers_shutdown(e);
    publish(e);
    return NULL;
}

/* ---- any thread ---- */

static enum err check_request(const struct engine *e, const struct request *r)
{
    const struct sampling *s = &r->sampling;
    if (r->n_prompt == 0)
        return err_set(ERR_INVALID, "the prompt is empty");
    for (uint32_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] >= e->vocab)
            return err_set(ERR_INVALID, "token id %u at position %u: the vocabulary has %u", r->prompt[i], i, e->vocab);
    for (uint32_t i = 0; i < s->n_bias; i++)
        if (s->bias_id[i] >= e->vocab)
            return err_set(ERR_INVALID, "logit_bias of token id %u: the vocabulary has %u", s->bias_id[i], e->vocab);
    for (uint32_t i = 0; i < r->n_targets; i++)
        if (r->targets[i] >= e->vocab)
            return err_set(ERR_INVALID, "target id %u: the vocabulary has %u", r->targets[i], e->vocab);
    ASSERT(r->kind == REQUEST_GENERATE || s->max_tokens == 0);
    ASSERT(r->kind != REQUEST_EMBED || r->pooling == POOLING_MEAN || r->pooling == POOLING_LAST || (r->pooling == POOLING_RANK && e->reranker));
    if (r->kind == REQUEST_GENERATE && e->reranker)
        return err_set(ERR_INVALID, "this model is a reranker: it answers /v1/rerank and /score");
    ASSERT(r->kind != REQUEST_SCORE || r->n_targets >= 1);
    if (s->n_stop_ids > MSG_STOP_IDS_MAX || s->n_bias > MSG_BIAS_MAX || s->n_logprobs > MSG_LOGPROBS_MAX)
        return err_set(ERR_INVALID, "at most %d stop ids, %d biases and %d log-probabilities", MSG_STOP_IDS_MAX,
                       MSG_BIAS_MAX, MSG_LOGPROBS_MAX);
    return ERR_OK;
}

enum err engine_submit(struct engine *e, struct request *r)
{
    TRY(check_request(e, r));
    enum err refuse = (enum err)atomic_load(&e->refuse);
    if (refuse != ERR_OK)
        return err_set(refuse, "the model is not ready to serve");
    if (atomic_fetch_add(&e->n_open, 1) >= e->bound) {
        atomic_fetch_sub(&e->n_open, 1);
        metrics_add(e->metrics, METRIC_ADMISSION_REJECTIONS, e->replica, 1);
        return err_set(ERR_BUSY, "%u requests run or wait, more are refused (--queue-max)", e->bound);
    }
    if (!r->arrival_ns)
        r->arrival_ns = clock_ns();
    uint32_t ctx = atomic_load(&e->snap.ctx);
    struct seq *q = seq_create(r, ctx ? ctx : e->ctx_max);
    enum err err = q ? queue_push(e->requests, q) : err_set(ERR_NOMEM, "a request of %u tokens", r->n_prompt);
    if (err != ERR_OK) {
        if (q)
            q->req = NULL; /* stays the caller's */
        seq_destroy(&q);
        atomic_fetch_sub(&e->n_open, 1);
    }
    return err;
}

void engine_cancel(struct engine *e, uint64_t id)
{
    ASSERT((id & ~ENGINE_CANCEL_STOPPED) != 0 && id <= UINTPTR_MAX);
    /* The engine never waits for the caller, so a full queue is empty soon. */
    while (queue_push(e->cancels, (void *)(uintptr_t)id) != ERR_OK) {
        if (atomic_load(&e->snap.state) == ENGINE_STOPPED)
            return;
        usleep(1000);
    }
}

enum err engine_command(struct engine *e, const struct engine_command *c)
{
    struct engine_command *copy = malloc(sizeof *copy);
    if (!copy)
        return err_set(ERR_NOMEM, "an engine command");
    *copy = *c;
    enum err err = queue_push(e->commands, copy);
    if (err != ERR_OK)
        free(copy);
    return err;
}

const struct engine_snapshot *engine_snapshot(const struct engine *e)
{
    return &e->snap;
}
const char *engine_endpoint(const struct engine *e)
{
    return e->endpoint;
}
const char *engine_endpoint_tcp(const struct engine *e)
{
    return e->endpoint_tcp[0] ? e->endpoint_tcp : NULL;
}

/* ---- life ---- */

static enum err open_timer(struct engine *e)
{
    uint32_t ms = MIN(e->opts->heartbeat_timeout_ms, e->opts->step_timeout_ms) / 8;
    ms = MAX(10u, MIN(ms, 250u));
    e->tick_ns = ms * NS_PER_MS;
    e->last_tick_ns = clock_ns();
    e->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    struct itimerspec it = {.it_interval = ts, .it_value = ts};
    if (e->timer_fd < 0 || timerfd_settime(e->timer_fd, 0, &it, NULL) != 0)
        return err_set(ERR_IO, "timer: %s", strerror(errno));
    return ERR_OK;
}

static enum err open_link(struct engine *e, const struct engine_config *cfg)
{
    TRY(link_server_open(cfg->links, cfg->endpoint, 1u << KEY_ROLE_WORKER, &e->link));
    snprintf(e->endpoint, sizeof e->endpoint, "%s", link_server_endpoint(e->link));
    if (cfg->endpoint_tcp) {
        TRY(link_server_bind(e->link, cfg->endpoint_tcp));
        snprintf(e->endpoint_tcp, sizeof e->endpoint_tcp, "%s", link_server_endpoint_at(e->link, 1));
    }
    return ERR_OK;
}

enum err engine_create(const struct engine_config *cfg, struct engine **out)
{
    enum err err;
    struct engine *e = calloc(1, sizeof *e);
    *out = NULL;
    if (!e)
        return err_set(ERR_NOMEM, "engine %u", cfg->replica);
    e->opts = cfg->opts;
    e->deployment = cfg->deployment;
    e->replica = cfg->replica;
    e->model = cfg->model ? cfg->model : "";
    e->tp = cfg->split->tp;
    e->pp = cfg->split->pp;
    e->n_ranks = e->tp * e->pp;
    e->vocab = cfg->hp->vocab;
    e->reranker = cfg->hp->has_cls;
    e->max_seqs = (uint32_t)cfg->opts->max_seqs;
    e->bound = e->max_seqs + (uint32_t)cfg->opts->queue_max;
    e->ctx = cfg->ctx;
    e->ctx_max = cfg->ctx ? cfg->ctx : MAX(cfg->hp->ctx_train, (uint32_t)cfg->opts->ctx);
    e->metrics = cfg->metrics;
    e->events = cfg->events;
    e->cluster_events = cfg->cluster_events;
    e->epoch = 1;
    e->running = true;
    e->timer_fd = -1;
    e->now_ns = e->phase_since_ns = clock_ns();
    arena_init(&e->arena_in, 0);
    arena_init(&e->arena_step, 0);
    buf_init(&e->wire);
    struct scheduler_config sc = {.max_seqs = e->max_seqs,
                                  .queue_max = (uint32_t)cfg->opts->queue_max,
                                  .pp = e->pp,
                                  .max_step_tokens = MAX(cfg->max_step_tokens, e->max_seqs),
                                  .prefill_chunk = (uint32_t)cfg->opts->prefill_chunk,
                                  .step_target_us = cfg->opts->step_target_ms * 1000,
                                  .embed_max = MSG_POOLED_MAX / MAX(cfg->hp->dim, 1u)};
    err = ERR_NOMEM;
    e->ranks = calloc(e->n_ranks, sizeof *e->ranks);
    e->sent_ns = calloc(e->pp + 1, sizeof *e->sent_ns);
    if (!e->ranks || !e->sent_ns)
        goto fail;
    if ((err = scheduler_init(&e->sched, &sc)) != ERR_OK ||
        (err = queue_create(e->bound + 16, &e->requests)) != ERR_OK ||
        (err = queue_create(2 * (size_t)e->bound + 64, &e->cancels)) != ERR_OK ||
        (err = queue_create(4 * (size_t)e->n_ranks + 64, &e->commands)) != ERR_OK || (err = open_timer(e)) != ERR_OK ||
        (err = open_link(e, cfg)) != ERR_OK)
        goto fail;
    atomic_store(&e->snap.epoch, e->epoch);
    atomic_store(&e->snap.ctx, e->ctx);
    if (pthread_create(&e->thread, NULL, engine_main, e) != 0) {
        err = err_set(ERR_NOMEM, "thread of engine %u", e->replica);
        goto fail;
    }
    e->has_thread = true;
    pthread_setname_np(e->thread, "engine");
    *out = e;
    return ERR_OK;
fail:
    engine_destroy(&e);
    return err;
}

void engine_destroy(struct engine **ep)
{
    struct engine *e = *ep;
    if (!e)
        return;
    if (e->has_thread) {
        struct engine_command stop = {.type = ENGINE_CMD_STOP};
        while (engine_command(e, &stop) != ERR_OK)
            usleep(1000);
        pthread_join(e->thread, NULL);
    }
    for (void *p; e->requests && (p = queue_pop(e->requests));) {
        struct seq *q = p;
        seq_destroy(&q);
    }
    for (; e->held_n; e->held_n--, e->held_first = (e->held_first + 1) % e->held_cap)
        token_event_destroy(&e->held[e->held_first]);
    free(e->held);
    while (e->cancels && queue_pop(e->cancels))
        ;
    for (void *p; e->commands && (p = queue_pop(e->commands));)
        free(p);
    queue_destroy(&e->requests);
    queue_destroy(&e->cancels);
    queue_destroy(&e->commands);
    link_server_close(&e->link);
    if (e->timer_fd >= 0)
        close(e->timer_fd);
    scheduler_deinit(&e->sched);
    free(e->ranks);
    free(e->sent_ns);
    arena_deinit(&e->arena_in);
    arena_deinit(&e->arena_step);
    buf_deinit(&e->wire);
    free(e);
    *ep = NULL;
}
