/* The admin protocol: what `racklm status` and `racklm workers` read, and the order to shut down. Runs in the cluster
 * thread. */
#include "base/clock.h"
#include "base/log.h"
#include "proto/device.h"
#include "coordinator/cluster_int.h"

#include "base/check.h"

#include <stdio.h>
#include <string.h>

static bool fill_replicas(struct cluster *c, struct msg_admin_reply *r)
{
    r->replicas = arena_array(&c->arena, c->members.n_groups, sizeof *r->replicas);
    if (!r->replicas)
        return false;
    r->n_replicas = c->members.n_groups;
    for (uint32_t i = 0; i < r->n_replicas; i++) {
        const struct engine_snapshot *s = engine_snapshot(cluster_engine(c, i));
        uint64_t done = atomic_load(&s->load_done), total = atomic_load(&s->load_total);
        r->replicas[i] =
            (struct msg_replica_info){.replica = c->members.groups[i].replica,
                                      .deployment = (char *)c->served[c->members.groups[i].deployment].d->names[0],
                                      .state = (char *)engine_state_name((enum engine_state)atomic_load(&s->state)),
                                      .epoch = atomic_load(&s->epoch),
                                      .running = atomic_load(&s->running),
                                      .waiting = atomic_load(&s->waiting),
                                      .kv_blocks = atomic_load(&s->kv_blocks),
                                      .kv_blocks_used = atomic_load(&s->kv_blocks_used),
                                      .load_percent = total ? (uint32_t)(MIN(done, total) * 100 / total) : 0};
    }
    return true;
}

static bool fill_deployments(struct cluster *c, struct msg_admin_reply *r)
{
    r->deployments = arena_array(&c->arena, c->cfg.n_deployments, sizeof *r->deployments);
    if (!r->deployments)
        return false;
    r->n_deployments = c->cfg.n_deployments;
    for (uint32_t i = 0; i < r->n_deployments; i++) {
        const struct deployment *d = &c->cfg.deployments[i];
        struct front_health h;
        enum { NAMES_CAP = DEPLOYMENT_NAMES_MAX * (DEPLOYMENT_NAME_LEN_MAX + 1) };
        char *names = arena_array(&c->arena, NAMES_CAP, 1), *text = arena_array(&c->arena, sizeof h.text, 1);
        if (!names || !text)
            return false;
        size_t len = 0;
        for (uint32_t k = 0; k < d->n_names; k++)
            len += (size_t)snprintf(names + len, NAMES_CAP - len, "%s%s", k ? "," : "", d->names[k]);
        cluster_health(c, d, &h);
        memcpy(text, h.text, sizeof h.text);
        r->deployments[i] = (struct msg_deployment_info){.names = names,
                                                         .path = (char *)d->path,
                                                         .state = h.ready ? "ready" : h.fatal ? "failed" : h.n_ready ? "degraded" : "not ready",
                                                         .text = text,
                                                         .tp = d->split.tp,
                                                         .pp = d->split.pp,
                                                         .replicas = d->n_engines,
                                                         .ctx = deployment_ctx(d),
                                                         .workers = h.n_workers,
                                                         .workers_ready = h.n_workers_ready};
    }
    return true;
}

static uint32_t age_ms(const struct cluster *c, uint64_t then_ns)
{
    return (uint32_t)((c->now_ns - MIN(then_ns, c->now_ns)) / NS_PER_MS);
}

static void fill_device(const struct cluster *c, struct device *v, struct msg_device *m)
{
    *m = (struct msg_device){.name = v->name, .kind = v->kind, .model = v->model, .memory_bytes = v->memory_bytes, .cores = v->cores, .numa = v->numa};
    if (!device_is_gpu(v->kind))
        return;
    m->uuid = v->uuid;
    m->bus_id = v->bus_id;
    m->why = v->why;
    m->sm = v->sm;
    m->memory_total_bytes = v->memory_total_bytes;
    m->memory_free_bytes = v->memory_free_bytes;
    m->temperature_c = v->temperature_c;
    m->power_mw = v->power_mw;
    m->utilization_percent = v->utilization_percent;
    m->throttle = v->throttle;
    m->lost = v->lost;
    m->state_age_ms = age_ms(c, v->state_ns);
    m->path = v->path;
    m->nvlinks = v->nvlinks;
    m->n_peers = v->n_peers;
}

static bool fill_nodes(struct cluster *c, struct msg_admin_reply *r)
{
    const struct members *m = &c->members;
    r->nodes = arena_array(&c->arena, m->n_nodes, sizeof *r->nodes);
    if (!r->nodes)
        return false;
    for (uint32_t i = 0; i < m->n_nodes; i++) {
        struct node *n = &m->nodes[i];
        if (!n->joined)
            continue;
        struct msg_hello *h = &r->nodes[r->n_nodes++];
        *h = (struct msg_hello){.version_min = PROTO_VERSION_MIN,
                                .version_max = PROTO_VERSION_MAX,
                                .role = "agent",
                                .host = n->host,
                                .peer_id = n->peer_id,
                                .pid = n->pid,
                                .n_devices = n->n_devices,
                                .gpu_driver = n->gpu_driver,
                                .cuda_version = n->cuda_version,
                                .gpu_note = n->gpu_note};
        h->devices = arena_array(&c->arena, n->n_devices, sizeof *h->devices);
        if (!h->devices)
            return false;
        for (uint32_t d = 0; d < n->n_devices; d++)
            fill_device(c, &n->devices[d], &h->devices[d]);
    }
    return true;
}

static bool fill_workers(struct cluster *c, struct msg_admin_reply *r)
{
    struct members *m = &c->members;
    r->workers = arena_array(&c->arena, m->n_workers, sizeof *r->workers);
    if (!r->workers)
        return false;
    r->n_workers = m->n_workers;
    for (uint32_t i = 0; i < m->n_workers; i++) {
        struct worker *w = &m->workers[i];
        struct node *n = w->node == PLACEMENT_NONE ? NULL : &m->nodes[w->node];
        struct device *v = n ? &n->devices[w->device] : NULL;
        const struct group *g = &m->groups[w->group];
        const struct served *s = &c->served[g->deployment];
        const struct shard_split *sp = &s->d->split;
        uint32_t stage = w->world_rank / sp->tp;
        r->workers[i] = (struct msg_worker_info){
            .worker_id = w->id,
            .deployment = (char *)s->d->names[0],
            .host = n ? n->host : "",
            .device = v ? v->name : "",
            .state = (char *)members_worker_state_name(w->state),
            .backend = w->backend,
            .pid = w->pid,
            .replica = g->replica,
            .stage = stage,
            .tp_rank = w->world_rank % sp->tp,
            .layer_first = sp->layer_first[stage],
            .layer_end = sp->layer_first[stage + 1],
            .weights_bytes = w->info.weights_bytes,
            .weights_bytes_planned = s->need_bytes[w->world_rank],
            .kv_bytes = w->info.kv_bytes,
            .kv_blocks = w->info.kv_blocks,
            .load_ms = w->info.load_ms,
            .restarts = w->n_starts ? w->n_starts - 1 : 0,
            .steps = atomic_load(&engine_snapshot(cluster_engine(c, w->group))->steps),
            .heartbeat_age_ms = n ? age_ms(c, n->heard_ns) : 0};
        struct msg_worker_info *o = &r->workers[i];
        if (!v)
            continue;
        o->device_kind = v->kind;
        o->device_model = v->model;
        o->device_memory_bytes = v->memory_bytes;
        if (!device_is_gpu(v->kind))
            continue;
        o->device_uuid = v->uuid;
        o->memory_free_bytes = v->memory_free_bytes;
        o->temperature_c = v->temperature_c;
        o->power_mw = v->power_mw;
        o->utilization_percent = v->utilization_percent;
        o->throttle = v->throttle;
        o->device_lost = v->lost;
    }
    return true;
}

static enum err build(struct cluster *c, const struct link_peer *from, const struct msg_admin_request *q,
                      struct msg_admin_reply *r)
{
    switch (q->verb) {
    case ADMIN_STATUS:
    case ADMIN_WORKERS:
        if (!fill_deployments(c, r) || !fill_replicas(c, r) || !fill_nodes(c, r) || !fill_workers(c, r))
            return err_set(ERR_NOMEM, "the status");
        return ERR_OK;
    case ADMIN_SHUTDOWN:
        if (from->role != KEY_ROLE_ADMIN)
            return err_set(ERR_FORBIDDEN, "the key '%s' has the role %s; shutting down needs the role %s", from->name,
                           key_role_name(from->role), key_role_name(KEY_ROLE_ADMIN));
        LOG(INFO, CLUSTER, "shutdown asked", "key=%s", from->name);
        atomic_store(&c->shutdown_asked, true);
        cluster_wake_main(c);
        return ERR_OK;
    default:
        return err_set(ERR_UNSUPPORTED, "unknown admin verb %u", q->verb);
    }
}

void admin_answer(struct cluster *c, unsigned server, const struct link_peer *from, const struct msg_admin_request *q)
{
    struct msg m = {.type = MSG_ADMIN_REPLY};
    struct msg_admin_reply *r = &m.admin_reply;
    struct front_health health;
    char url[sizeof c->http_url];
    cluster_health(c, NULL, &health);
    pthread_mutex_lock(&c->lock);
    memcpy(url, c->http_url, sizeof url);
    pthread_mutex_unlock(&c->lock);
    const struct deployment *first = &c->cfg.deployments[0];
    enum err e = build(c, from, q, r);
    if (e != ERR_OK)
        *r = (struct msg_admin_reply){0};
    r->id = q->id;
    r->err = e;
    r->text = e == ERR_OK ? health.text : (char *)err_detail();
    r->version = RACKLM_VERSION;
    r->model = (char *)first->names[0];
    r->http_url = url;
    r->uptime_ms = (c->now_ns - c->started_ns) / NS_PER_MS;
    r->tp = first->split.tp;
    r->pp = first->split.pp;
    r->ctx = deployment_ctx(first);
    link_server_send(c->servers[server], from, &m);
}
