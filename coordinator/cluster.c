/* The cluster thread's loop and the life of workers: an agent says hello, its devices are taken for ranks, workers
 * start, exit, start again.
 *
 * Who notices what: an agent its child's death (WORKER_EXITED), an engine a worker's silence, error or missed step
 * (ENGINE_EVENT_WORKER_FAILED), this thread an agent's silence. Each ends in members_exited or members_leave, and from
 * there placement and start follow in after_change(). */
#include "coordinator/cluster.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "coordinator/cluster_int.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

void cluster_wake_main(struct cluster *c)
{
    uint64_t one = 1;
    if (write(c->cfg.wake_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        LOG(ERROR, CLUSTER, "cannot wake the main thread", "errno=%d", errno);
}

struct engine *cluster_engine(const struct cluster *c, uint32_t group)
{
    const struct group *g = &c->members.groups[group];
    return c->served[g->deployment].d->engines[g->replica];
}

static struct served *served_by(struct cluster *c, const struct worker *w)
{
    return &c->served[c->members.groups[w->group].deployment];
}

static void copy_text(struct cluster *c, char *to, const char *text)
{
    pthread_mutex_lock(&c->lock);
    snprintf(to, sizeof c->text, "%s", text);
    pthread_mutex_unlock(&c->lock);
}

/* The deployment cannot be served; the others go on, unless the server is only starting and its owner waits for all of them. */
static void set_fatal(struct cluster *c, struct served *s, const char *text)
{
    char all[256];
    bool others = false;
    if (c->cfg.n_deployments > 1)
        snprintf(all, sizeof all, "%.60s: %s", s->d->names[0], text);
    else
        snprintf(all, sizeof all, "%s", text);
    LOG(ERROR, CLUSTER, "cannot serve", "model=\"%s\" why=\"%s\"", s->d->names[0], text);
    copy_text(c, s->text, text);
    atomic_store(&s->fatal, true);
    for (uint32_t i = 0; i < c->cfg.n_deployments; i++)
        others |= !atomic_load(&c->served[i].fatal);
    if (others && atomic_load(&c->was_ready))
        return;
    copy_text(c, c->text, all);
    atomic_store(&c->fatal, true);
    cluster_wake_main(c);
}

static void tell_engine(struct cluster *c, const struct worker *w, enum engine_command_type type, const char *text)
{
    struct engine_command cmd = {.type = type, .world_rank = w->world_rank, .worker_id = w->id, .ctx = served_by(c, w)->ctx};
    snprintf(cmd.text, sizeof cmd.text, "%s", text);
    while (engine_command(cluster_engine(c, w->group), &cmd) == ERR_BUSY)
        usleep(1000); /* the engine never waits for this thread */
}

/* ---- starting workers ---- */

/* With the devices of the first placed replica known: how long may a sequence be? */
static bool decide_ctx(struct cluster *c, struct served *s, const struct group *g)
{
    const struct shard_split *sp = &s->d->split;
    const struct options *o = s->d->opts;
    uint32_t fit = UINT32_MAX, ctx_train = s->d->hp.ctx_train;
    for (uint32_t r = 0; r < g->tp * g->pp; r++) {
        const struct worker *w = &c->members.workers[g->first + r];
        uint64_t block = shard_kv_block_bytes(&s->d->hp, sp, (enum kv_type)o->kv_type, r % sp->tp, r / sp->tp);
        uint64_t memory = c->members.nodes[w->node].devices[w->device].memory_bytes;
        fit = MIN(fit, placement_ctx_fit(memory, s->need_bytes[r], o->kv_memory, block));
    }
    bool lowered;
    if (placement_ctx((uint32_t)o->ctx, ctx_train, fit, &s->ctx, &lowered) != ERR_OK) {
        set_fatal(c, s, err_detail());
        return false;
    }
    if (lowered)
        LOG(WARN, CLUSTER, "context lowered to what fits", "model=\"%s\" ctx=%u model_ctx=%u", s->d->names[0], s->ctx, ctx_train);
    else if (s->ctx > ctx_train)
        LOG(WARN, CLUSTER, "the context is longer than the model was trained for", "model=\"%s\" ctx=%u model_ctx=%u", s->d->names[0], s->ctx, ctx_train);
    return true;
}

static void start_worker(struct cluster *c, struct worker *w)
{
    struct node *n = &c->members.nodes[w->node];
    struct served *s = served_by(c, w);
    const struct deployment *d = s->d;
    const struct shard_split *sp = &d->split;
    const struct options *o = d->opts;
    struct engine *e = cluster_engine(c, w->group);
    uint32_t replica = c->members.groups[w->group].replica;
    members_started(&c->members, w, c->now_ns);
    tell_engine(c, w, ENGINE_CMD_EXPECT, "");
    struct msg m = {.type = MSG_START_WORKER};
    m.start_worker = (struct msg_start_worker){
        .worker_id = w->id,
        .device = n->devices[w->device].name,
        .model_path = (char *)d->path,
        .model_bytes = d->gguf->files[0].size,
        .deployment = (char *)d->names[0],
        .replica = replica,
        .tp = sp->tp,
        .pp = sp->pp,
        .tp_rank = w->world_rank % sp->tp,
        .stage = w->world_rank / sp->tp,
        .share = (uint32_t *)sp->share,
        .n_share = sp->tp,
        .layer_first = (uint32_t *)sp->layer_first,
        .n_layer_first = sp->pp + 1,
        .epoch = atomic_load(&engine_snapshot(e)->epoch),
        .ctx = s->ctx,
        .max_seqs = (uint32_t)o->max_seqs,
        .max_step_tokens = d->max_step_tokens,
        .kv_memory_bytes = o->kv_memory,
        .kv_type = (uint32_t)o->kv_type,
        .endpoint = (char *)(n->server == CLUSTER_TCP && engine_endpoint_tcp(e) ? engine_endpoint_tcp(e) : engine_endpoint(e)),
        .heartbeat_ms = o->heartbeat_ms,
        .step_timeout_ms = o->step_timeout_ms,
        .deterministic = o->deterministic};
    LOG(INFO, CLUSTER, "worker starts", "worker=%llu model=\"%s\" replica=%u rank=%u host=%s device=%s kind=%s", (unsigned long long)w->id, d->names[0], replica,
        w->world_rank, n->host, n->devices[w->device].name, n->devices[w->device].kind);
    if (link_server_send(c->servers[n->server], &n->peer, &m) != ERR_OK) {
        /* The agent is gone or hangs; its heartbeat decides. Try again after a while. */
        tell_engine(c, w, ENGINE_CMD_WORKER_LOST, "its node cannot be reached");
        w->id = 0;
        w->state = WORKER_PLACED;
        w->start_at_ns = c->now_ns + 500 * NS_PER_MS;
    }
}

/* Under `racklm serve` the one agent offers all its devices when it joins. */
static bool nobody_else_joins(const struct cluster *c)
{
    return c->cfg.opts->parent_fd >= 0 && !c->servers[CLUSTER_TCP] && c->members.n_nodes > 0;
}

static bool never_started(const struct cluster *c, const struct served *s)
{
    const struct group *g = &c->members.groups[s->group];
    for (uint32_t i = 0; i < s->d->n_engines * g->tp * g->pp; i++)
        if (c->members.workers[g->first + i].n_starts)
            return false;
    return true;
}

/* Places the replicas of a deployment, and says what is missing. False: nothing of it can be started. */
static bool place(struct cluster *c, struct served *s)
{
    uint32_t n_missing = 0;
    char text[256] = "", why[256];
    if (atomic_load(&s->fatal))
        return false;
    const struct group *first = &c->members.groups[s->group];
    for (uint32_t i = 0; i < s->d->n_engines; i++) {
        const struct group *g = first + i;
        if (!members_place(&c->members, g, c->now_ns))
            for (uint32_t r = 0; r < g->tp * g->pp; r++)
                n_missing += c->members.workers[g->first + r].state == WORKER_UNPLACED;
        else if (!s->ctx && !decide_ctx(c, s, g))
            return false;
    }
    if (n_missing)
        snprintf(text, sizeof text, "waiting for devices: %u workers need one each, %u have joined, %u%s%.60s are free (a device must hold its shard)",
                 c->members.n_workers, members_n_devices(&c->members), members_n_free(&c->members, first), s->d->opts->devices ? " of " : "",
                 s->d->opts->devices ? s->d->opts->devices : "");
    if (n_missing && members_why_not(&c->members, first, why, sizeof why)) {
        if (nobody_else_joins(c) && never_started(c, s)) {
            set_fatal(c, s, why);
            return false;
        }
        snprintf(text, sizeof text, "waiting for devices: %.220s", why);
    }
    copy_text(c, s->text, text);
    return true;
}

/* Places what has no device and starts what is due. Returns when the next start is due (0: none). */
static uint64_t after_change(struct cluster *c)
{
    uint64_t due = 0;
    if (atomic_load(&c->draining))
        return 0;
    for (uint32_t k = 0; k < c->cfg.n_deployments; k++)
        if (c->served[k].d->opts->devices)
            place(c, &c->served[k]); /* before one that takes any device takes theirs */
    for (uint32_t k = 0; k < c->cfg.n_deployments; k++) {
        struct served *s = &c->served[k];
        if (!place(c, s))
            continue;
        const struct group *g = &c->members.groups[s->group];
        for (uint32_t i = 0; i < s->d->n_engines * g->tp * g->pp; i++) {
            struct worker *w = &c->members.workers[g->first + i];
            if (w->state == WORKER_PLACED && w->start_at_ns <= c->now_ns)
                start_worker(c, w);
            if (w->state == WORKER_PLACED && (!due || w->start_at_ns < due))
                due = w->start_at_ns;
        }
    }
    return due;
}

static void worker_gone(struct cluster *c, struct worker *w, const char *why)
{
    char text[256];
    const struct node *n = &c->members.nodes[w->node];
    tell_engine(c, w, ENGINE_CMD_WORKER_LOST, why);
    if (atomic_load(&c->draining)) {
        w->id = 0;
        w->state = WORKER_STOPPING;
        return;
    }
    members_exited(&c->members, w, why, c->now_ns);
    struct served *s = served_by(c, w);
    uint32_t replica = c->members.groups[w->group].replica;
    LOG(WARN, CLUSTER, "worker ended", "model=\"%s\" replica=%u rank=%u host=%s why=\"%s\" restart_in_ms=%llu", s->d->names[0], replica, w->world_rank,
        n->host, why, (unsigned long long)((w->start_at_ns - c->now_ns) / NS_PER_MS));
    if (w->state == WORKER_FATAL) {
        snprintf(text, sizeof text, "worker %u of replica %u failed to load %d times: %.160s", w->world_rank, replica, MEMBERS_LOAD_FAILURES_MAX, why);
        set_fatal(c, s, text);
    }
}

/* ---- nodes ---- */

static void node_lost(struct cluster *c, uint32_t node, const char *why)
{
    struct node *n = &c->members.nodes[node];
    char text[200];
    snprintf(text, sizeof text, "node %.100s %s", n->host, why);
    LOG(WARN, CLUSTER, "node lost", "host=%s why=\"%s\"", n->host, why);
    for (uint32_t i = 0; i < c->members.n_workers; i++) {
        struct worker *w = &c->members.workers[i];
        if (w->node == node && w->id)
            tell_engine(c, w, ENGINE_CMD_WORKER_LOST, text);
    }
    members_leave(&c->members, node);
}

static void refuse(struct cluster *c, unsigned server, const struct link_peer *to, enum err err, const char *text)
{
    struct msg m = {.type = MSG_REFUSE};
    m.refuse = (struct msg_refuse){
        .err = err, .text = (char *)text, .version_min = PROTO_VERSION_MIN, .version_max = PROTO_VERSION_MAX};
    link_server_send(c->servers[server], to, &m);
}

static void on_hello(struct cluster *c, unsigned server, const struct link_peer *from, const struct msg_hello *h)
{
    char text[200];
    if (h->version_max < PROTO_VERSION_MIN || h->version_min > PROTO_VERSION_MAX) {
        snprintf(text, sizeof text, "no common protocol version: the coordinator speaks %u to %u, the peer %u to %u",
                 PROTO_VERSION_MIN, PROTO_VERSION_MAX, h->version_min, h->version_max);
        LOG(WARN, CLUSTER, "peer refused", "key=%s why=\"%s\"", from->name, text);
        refuse(c, server, from, ERR_VERSION, text);
        return;
    }
    struct msg m = {.type = MSG_WELCOME};
    m.welcome = (struct msg_welcome){.version = MIN(h->version_max, (uint32_t)PROTO_VERSION_MAX),
                                     .peer_id = h->peer_id,
                                     .heartbeat_ms = c->cfg.opts->heartbeat_ms};
    if (!h->role || strcmp(h->role, "agent") != 0) {
        if (from->role == KEY_ROLE_WORKER)
            refuse(c, server, from, ERR_FORBIDDEN, "a worker's key may only join as an agent here");
        else
            link_server_send(c->servers[server], from, &m);
        return;
    }
    if (from->role != KEY_ROLE_WORKER) {
        refuse(c, server, from, ERR_FORBIDDEN, "an agent needs a key of the role worker");
        return;
    }
    uint32_t node = members_find_id(&c->members, h->peer_id);
    if (node == PLACEMENT_NONE)
        node = members_find_peer(&c->members, server, from);
    if (node != PLACEMENT_NONE)
        node_lost(c, node, "joined again");
    if (members_join(&c->members, server, from, h, c->now_ns, &node) != ERR_OK) {
        refuse(c, server, from, ERR_TOO_BIG, err_detail());
        return;
    }
    LOG(INFO, CLUSTER, "node joined", "host=%s devices=%u key=%s", c->members.nodes[node].host, h->n_devices,
        from->name);
    link_server_send(c->servers[server], from, &m);
}

static unsigned n_lost(const struct node *n)
{
    unsigned lost = 0;
    for (uint32_t i = 0; i < n->n_devices; i++)
        lost += n->devices[i].lost;
    return lost;
}

static void on_message(struct cluster *c, unsigned server, const struct link_peer *from, const struct msg *m)
{
    if (m->type == MSG_HELLO) {
        on_hello(c, server, from, &m->hello);
        return;
    }
    if (m->type == MSG_ADMIN_REQUEST) {
        if (from->role == KEY_ROLE_WORKER)
            refuse(c, server, from, ERR_FORBIDDEN, "a worker's key gives no admin rights");
        else
            admin_answer(c, server, from, &m->admin_request);
        return;
    }
    uint32_t node = members_find_peer(&c->members, server, from);
    if (node == PLACEMENT_NONE) { /* it was taken for lost: whatever it runs is replaced */
        refuse(c, server, from, ERR_UNAVAILABLE, "unknown peer: say hello first");
        return;
    }
    c->members.nodes[node].heard_ns = c->now_ns;
    if (m->type == MSG_HEARTBEAT) { /* back to the agent: silence then means a lost link */
        struct msg echo = {.type = MSG_HEARTBEAT, .heartbeat = {.progress = m->heartbeat.progress}};
        link_server_send(c->servers[server], from, &echo);
        if (members_device_states(&c->members, node, &m->heartbeat, c->now_ns))
            LOG(WARN, CLUSTER, "devices lost or back", "host=%s lost=%u why=\"%s\"", c->members.nodes[node].host, n_lost(&c->members.nodes[node]), m->heartbeat.why);
    }
    if (m->type != MSG_WORKER_EXITED)
        return;
    struct worker *w = members_worker(&c->members, m->worker_exited.worker_id);
    if (!w || w->node != node)
        return; /* of an earlier life */
    w->pid = 0;
    worker_gone(c, w, m->worker_exited.text && m->worker_exited.text[0] ? m->worker_exited.text : "it exited");
}

static bool take_messages(struct cluster *c)
{
    bool any = false;
    for (unsigned s = 0; s < CLUSTER_SERVERS; s++) {
        for (; c->servers[s]; any = true) {
            struct link_peer from;
            struct msg m;
            arena_reset(&c->arena);
            enum err e = link_server_recv(c->servers[s], &c->arena, &from, &m);
            if (e == ERR_OK)
                on_message(c, s, &from, &m);
            else if (e == ERR_PROTOCOL || e == ERR_TOO_BIG)
                refuse(c, s, &from, e, err_detail());
            else
                break;
        }
    }
    return any;
}

/* ---- engines ---- */

static void on_engine_event(struct cluster *c, const struct engine_event *ev)
{
    struct worker *w = members_worker(&c->members, ev->worker_id);
    switch (ev->type) {
    case ENGINE_EVENT_WORKER_FAILED:
        if (!w || w->state == WORKER_STOPPING)
            break; /* its agent was quicker */
        w->state = WORKER_STOPPING;
        snprintf(w->text, sizeof w->text, "%s", ev->text);
        struct msg m = {.type = MSG_STOP_WORKER, .stop_worker = {.worker_id = w->id}};
        link_server_send(c->servers[c->members.nodes[w->node].server], &c->members.nodes[w->node].peer, &m);
        break;
    case ENGINE_EVENT_WORKER_INFO:
        if (!w)
            break;
        w->info = ev->info;
        w->pid = ev->pid;
        memcpy(w->backend, ev->backend, sizeof w->backend);
        w->loaded = true;
        w->n_load_failures = 0;
        if (w->state == WORKER_STARTING)
            w->state = WORKER_LOADED;
        break;
    case ENGINE_EVENT_DRAINED:
        c->drained[c->served[ev->deployment].group + ev->replica] = true;
        for (uint32_t i = 0; i < c->members.n_groups; i++)
            if (!c->drained[i])
                return;
        atomic_store(&c->all_drained, true);
        cluster_wake_main(c);
        break;
    case ENGINE_EVENT_READY: {
        struct front_health h;
        cluster_health(c, NULL, &h); /* notes that all were ready once */
        break;
    }
    case ENGINE_EVENT_RECOVERING:
        break; /* in the snapshot */
    }
}

static void take_engine_events(struct cluster *c)
{
    for (struct engine_event *ev; (ev = queue_pop(c->cfg.engine_events)); free(ev))
        on_engine_event(c, ev);
}

/* ---- the loop ---- */

static void check_nodes(struct cluster *c)
{
    uint64_t limit_ns = c->cfg.opts->heartbeat_timeout_ms * NS_PER_MS;
    if (c->now_ns - c->last_tick_ns < c->tick_ns)
        return;
    /* When this very process was stopped, nobody else is to blame. */
    bool slept = c->now_ns - c->last_tick_ns > 3 * c->tick_ns + 250 * NS_PER_MS;
    c->last_tick_ns = c->now_ns;
    for (uint32_t i = 0; i < c->members.n_nodes; i++) {
        struct node *n = &c->members.nodes[i];
        if (n->joined && slept)
            n->heard_ns = c->now_ns;
        if (n->joined && c->now_ns - n->heard_ns + c->tick_ns > limit_ns) {
            char text[64];
            snprintf(text, sizeof text, "was silent for %llu ms",
                     (unsigned long long)((c->now_ns - n->heard_ns) / NS_PER_MS));
            node_lost(c, i, text);
        }
    }
}

static void wait_for_work(struct cluster *c, uint64_t due_ns)
{
    struct pollfd fds[] = {{link_server_fd(c->servers[CLUSTER_IPC]), POLLIN, 0},
                           {queue_fd(c->cfg.engine_events), POLLIN, 0},
                           {c->stop_fd, POLLIN, 0},
                           {c->servers[CLUSTER_TCP] ? link_server_fd(c->servers[CLUSTER_TCP]) : -1, POLLIN, 0}};
    uint64_t until = c->last_tick_ns + c->tick_ns;
    if (due_ns && due_ns < until)
        until = due_ns;
    uint64_t now = clock_ns();
    poll(fds, ARRAY_LEN(fds), until > now ? (int)((until - now) / NS_PER_MS) + 1 : 0);
    c->now_ns = clock_ns();
}

static void stop_workers(struct cluster *c)
{
    for (uint32_t i = 0; i < c->members.n_workers; i++) {
        struct worker *w = &c->members.workers[i];
        if (!w->id || w->node == PLACEMENT_NONE)
            continue;
        struct msg m = {.type = MSG_STOP_WORKER, .stop_worker = {.worker_id = w->id}};
        link_server_send(c->servers[c->members.nodes[w->node].server], &c->members.nodes[w->node].peer, &m);
    }
}

static void *cluster_main(void *arg)
{
    struct cluster *c = arg;
    uint64_t due_ns = 0;
    while (!atomic_load(&c->stop)) {
        wait_for_work(c, due_ns);
        take_engine_events(c);
        take_messages(c);
        check_nodes(c);
        do
            due_ns = after_change(c);
        while (take_messages(c)); /* sending may have swallowed the edge of the descriptors */
    }
    stop_workers(c);
    return NULL;
}

/* ---- any thread ---- */

static void deployment_health(struct cluster *c, struct served *s, struct front_health *out)
{
    uint64_t done = 0, total = 0;
    const struct deployment *d = s->d;
    enum engine_state worst = ENGINE_READY;
    *out = (struct front_health){.n_replicas = d->n_engines, .n_workers = d->n_engines * d->split.tp * d->split.pp};
    for (uint32_t i = 0; i < d->n_engines; i++) {
        const struct engine_snapshot *snap = engine_snapshot(d->engines[i]);
        enum engine_state st = (enum engine_state)atomic_load(&snap->state);
        out->n_ready += st == ENGINE_READY;
        out->n_workers_ready += atomic_load(&snap->workers_ready);
        done += atomic_load(&snap->load_done);
        total += atomic_load(&snap->load_total);
        if (st != ENGINE_READY)
            worst = worst == ENGINE_READY || st < worst ? st : worst;
    }
    out->load_percent = total ? (uint32_t)(MIN(done, total) * 100 / total) : 0;
    out->fatal = atomic_load(&s->fatal);
    out->ready = !out->fatal && out->n_ready == out->n_replicas;
    copy_text(c, out->text, s->text);
    if (!out->text[0])
        snprintf(out->text, sizeof out->text, "%s", engine_state_name(worst));
}

/* The sums; the text of the first that is not ready. */
static void all_health(struct cluster *c, struct front_health *out)
{
    struct front_health h;
    uint32_t n_ready = 0, percent = 0;
    *out = (struct front_health){0};
    for (uint32_t i = 0; i < c->cfg.n_deployments; i++) {
        deployment_health(c, &c->served[i], &h);
        out->n_replicas += h.n_replicas;
        out->n_ready += h.n_ready;
        out->n_workers += h.n_workers;
        out->n_workers_ready += h.n_workers_ready;
        out->fatal |= h.fatal;
        percent += h.load_percent;
        if (!h.ready && n_ready == i && c->cfg.n_deployments > 1)
            snprintf(out->text, sizeof out->text, "%.60s: %.180s", c->served[i].d->names[0], h.text);
        else if (i == 0)
            snprintf(out->text, sizeof out->text, "%s", h.text);
        n_ready += h.ready;
    }
    out->load_percent = percent / c->cfg.n_deployments;
    out->ready = n_ready == c->cfg.n_deployments;
    if (out->ready)
        atomic_store(&c->was_ready, true);
    out->degraded = !out->ready && n_ready > 0 && atomic_load(&c->was_ready);
}

void cluster_health(struct cluster *c, const struct deployment *d, struct front_health *out)
{
    if (d)
        deployment_health(c, &c->served[d->index], out);
    else
        all_health(c, out);
}

void cluster_set_url(struct cluster *c, const char *http_url)
{
    pthread_mutex_lock(&c->lock);
    snprintf(c->http_url, sizeof c->http_url, "%s", http_url);
    pthread_mutex_unlock(&c->lock);
}

void cluster_drain(struct cluster *c, uint32_t grace_ms)
{
    atomic_store(&c->draining, true);
    struct engine_command cmd = {.type = ENGINE_CMD_DRAIN, .grace_ms = grace_ms};
    for (uint32_t i = 0; i < c->members.n_groups; i++)
        while (engine_command(cluster_engine(c, i), &cmd) == ERR_BUSY)
            usleep(1000);
}

bool cluster_drained(const struct cluster *c)
{
    return atomic_load(&c->all_drained);
}
bool cluster_shutdown_asked(const struct cluster *c)
{
    return atomic_load(&c->shutdown_asked);
}
bool cluster_fatal(struct cluster *c, char *text, size_t cap)
{
    if (!atomic_load(&c->fatal))
        return false;
    pthread_mutex_lock(&c->lock);
    snprintf(text, cap, "%s", c->text);
    pthread_mutex_unlock(&c->lock);
    return true;
}

const char *cluster_endpoint_tcp(const struct cluster *c)
{
    return c->servers[CLUSTER_TCP] ? link_server_endpoint(c->servers[CLUSTER_TCP]) : NULL;
}

/* ---- life ---- */

/* A row for each deployment, a group for each replica. */
static enum err init_tables(struct cluster *c)
{
    uint32_t n_groups = 0, n = 0;
    for (uint32_t i = 0; i < c->cfg.n_deployments; i++)
        n_groups += c->cfg.deployments[i].n_engines;
    struct group *groups = calloc((size_t)n_groups + 1, sizeof *groups);
    c->served = calloc((size_t)c->cfg.n_deployments + 1, sizeof *c->served);
    c->drained = calloc((size_t)n_groups + 1, sizeof *c->drained);
    enum err e = groups && c->served && c->drained ? ERR_OK : err_set(ERR_NOMEM, "the tables of the cluster");
    for (uint32_t i = 0; e == ERR_OK && i < c->cfg.n_deployments; i++) {
        const struct deployment *d = &c->cfg.deployments[i];
        const struct shard_split *sp = &d->split;
        struct served *s = &c->served[i];
        s->d = d;
        s->group = n;
        s->need_bytes = calloc((size_t)sp->tp * sp->pp, sizeof *s->need_bytes);
        if (!s->need_bytes) {
            e = err_set(ERR_NOMEM, "the tables of the cluster");
            break;
        }
        for (uint32_t r = 0; r < sp->tp * sp->pp; r++)
            s->need_bytes[r] = shard_file_bytes(d->gguf, &d->hp, sp, r % sp->tp, r / sp->tp);
        for (uint32_t k = 0; k < d->n_engines; k++)
            groups[n++] = (struct group){.deployment = i, .replica = k, .tp = sp->tp, .pp = sp->pp, .need_bytes = s->need_bytes, .devices = d->opts->devices};
    }
    /* Ids of an earlier coordinator must not be taken for ours: they start at the clock. */
    if (e == ERR_OK)
        e = members_init(&c->members, groups, n, clock_unix_s() << 20);
    free(groups);
    return e;
}

enum err cluster_create(const struct cluster_config *cfg, struct cluster **out)
{
    const unsigned roles = 1u << KEY_ROLE_WORKER | 1u << KEY_ROLE_ADMIN | 1u << KEY_ROLE_VIEWER;
    enum err e;
    struct cluster *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c)
        return err_set(ERR_NOMEM, "the cluster thread");
    c->cfg = *cfg;
    c->stop_fd = -1;
    c->started_ns = c->now_ns = c->last_tick_ns = clock_ns();
    c->tick_ns = MAX(10u, MIN(cfg->opts->heartbeat_timeout_ms / 8, 250u)) * NS_PER_MS;
    arena_init(&c->arena, 256u << 20);
    pthread_mutex_init(&c->lock, NULL);
    TRY_GOTO(init_tables(c), fail);
    TRY_GOTO(link_server_open(cfg->links, cfg->endpoint, roles, &c->servers[CLUSTER_IPC]), fail);
    if (cfg->endpoint_tcp)
        TRY_GOTO(link_server_open(cfg->links, cfg->endpoint_tcp, roles, &c->servers[CLUSTER_TCP]), fail);
    c->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->stop_fd < 0 || pthread_create(&c->thread, NULL, cluster_main, c) != 0) {
        e = err_set(ERR_NOMEM, "the cluster thread: %s", strerror(errno));
        goto fail;
    }
    c->has_thread = true;
    pthread_setname_np(c->thread, "cluster");
    *out = c;
    return ERR_OK;
fail:
    cluster_destroy(&c);
    return e;
}

void cluster_destroy(struct cluster **cp)
{
    struct cluster *c = *cp;
    if (!c)
        return;
    if (c->has_thread) {
        uint64_t one = 1;
        atomic_store(&c->stop, true);
        if (write(c->stop_fd, &one, sizeof one) < 0)
            LOG(ERROR, CLUSTER, "cannot wake the cluster thread", "errno=%d", errno);
        pthread_join(c->thread, NULL);
    }
    for (unsigned s = 0; s < CLUSTER_SERVERS; s++)
        link_server_close(&c->servers[s]);
    if (c->stop_fd >= 0)
        close(c->stop_fd);
    members_deinit(&c->members);
    pthread_mutex_destroy(&c->lock);
    arena_deinit(&c->arena);
    for (uint32_t i = 0; c->served && i < c->cfg.n_deployments; i++)
        free(c->served[i].need_bytes);
    free(c->served);
    free(c->drained);
    free(c);
    *cp = NULL;
}
