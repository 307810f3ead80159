#include "coordinator/members.h"

#include "base/check.h"
#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUICK_S = 30, BACKOFF_MS = 250, BACKOFF_MS_MAX = 10000 };

const char *members_worker_state_name(enum worker_state s)
{
    static const char *const names[] = {
        "waiting for a device", "waiting to start", "loading", "ready", "stopping", "failed"};
    return names[s];
}

enum err members_init(struct members *m, const struct group *groups, uint32_t n_groups, uint64_t first_worker_id)
{
    memset(m, 0, sizeof *m);
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_groups; i++)
        n += groups[i].tp * groups[i].pp;
    m->nodes = calloc(MEMBERS_NODES_MAX, sizeof *m->nodes);
    m->groups = calloc((size_t)n_groups + 1, sizeof *m->groups);
    m->workers = calloc((size_t)n + 1, sizeof *m->workers);
    if (!m->nodes || !m->groups || !m->workers) {
        members_deinit(m);
        return err_set(ERR_NOMEM, "the table of %u workers", n);
    }
    m->next_worker_id = first_worker_id;
    m->n_groups = n_groups;
    for (uint32_t i = 0; i < n_groups; i++) {
        m->groups[i] = groups[i];
        m->groups[i].first = m->n_workers;
        for (uint32_t r = 0; r < groups[i].tp * groups[i].pp; r++)
            m->workers[m->n_workers++] = (struct worker){.group = i, .world_rank = r, .node = PLACEMENT_NONE, .device = PLACEMENT_NONE};
    }
    return ERR_OK;
}

void members_deinit(struct members *m)
{
    for (uint32_t i = 0; i < m->n_nodes; i++)
        free(m->nodes[i].devices);
    free(m->nodes);
    free(m->groups);
    free(m->workers);
    memset(m, 0, sizeof *m);
}

static void copy_str(char *to, size_t cap, const char *from)
{
    snprintf(to, cap, "%s", from ? from : "");
}

enum err members_join(struct members *m, unsigned server, const struct link_peer *peer, const struct msg_hello *h,
                      uint64_t now_ns, uint32_t *out)
{
    uint32_t i = 0;
    while (i < m->n_nodes && m->nodes[i].joined)
        i++;
    if (i == MEMBERS_NODES_MAX)
        return err_set(ERR_TOO_BIG, "%d nodes are the most of one coordinator", MEMBERS_NODES_MAX);
    struct device *devices = calloc((size_t)h->n_devices + 1, sizeof *devices);
    if (!devices)
        return err_set(ERR_NOMEM, "%u devices", h->n_devices);
    for (uint32_t d = 0; d < h->n_devices; d++) {
        const struct msg_device *s = &h->devices[d];
        copy_str(devices[d].name, sizeof devices[d].name, s->name);
        copy_str(devices[d].kind, sizeof devices[d].kind, s->kind);
        copy_str(devices[d].model, sizeof devices[d].model, s->model);
        devices[d].memory_bytes = s->memory_bytes;
        devices[d].cores = s->cores;
        devices[d].numa = s->numa;
    }
    struct node *n = &m->nodes[i];
    free(n->devices);
    *n = (struct node){.joined = true,
                       .server = server,
                       .peer = *peer,
                       .peer_id = h->peer_id,
                       .heard_ns = now_ns,
                       .pid = h->pid,
                       .devices = devices,
                       .n_devices = h->n_devices};
    copy_str(n->host, sizeof n->host, h->host);
    m->n_nodes = MAX(m->n_nodes, i + 1);
    *out = i;
    return ERR_OK;
}

uint32_t members_find_peer(const struct members *m, unsigned server, const struct link_peer *peer)
{
    for (uint32_t i = 0; i < m->n_nodes; i++) {
        const struct node *n = &m->nodes[i];
        if (n->joined && n->server == server && n->peer.id_len == peer->id_len &&
            memcmp(n->peer.id, peer->id, peer->id_len) == 0)
            return i;
    }
    return PLACEMENT_NONE;
}

uint32_t members_find_id(const struct members *m, uint64_t peer_id)
{
    for (uint32_t i = 0; i < m->n_nodes; i++)
        if (m->nodes[i].joined && m->nodes[i].peer_id == peer_id)
            return i;
    return PLACEMENT_NONE;
}

void members_leave(struct members *m, uint32_t node)
{
    m->nodes[node].joined = false;
    for (uint32_t i = 0; i < m->n_workers; i++) {
        struct worker *w = &m->workers[i];
        if (w->node != node)
            continue;
        w->node = w->device = PLACEMENT_NONE;
        if (w->state != WORKER_FATAL)
            w->state = WORKER_UNPLACED;
        w->id = 0;
    }
}

struct worker *members_worker(struct members *m, uint64_t worker_id)
{
    for (uint32_t i = 0; worker_id && i < m->n_workers; i++)
        if (m->workers[i].id == worker_id)
            return &m->workers[i];
    return NULL;
}

uint32_t members_n_devices(const struct members *m)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_nodes; i++)
        n += m->nodes[i].joined ? m->nodes[i].n_devices : 0;
    return n;
}

static bool is_named(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
        if (strncmp(p, name, len) == 0 && (p[len] == ',' || !p[len]))
            return true;
    return false;
}

/* A device as the group may use it. The weights of others that run there count; what they keep for KV does not: --kv-memory bounds it. */
static struct placement_device look_at(const struct members *m, const struct group *g, uint32_t node, uint32_t device)
{
    const struct device *v = &m->nodes[node].devices[device];
    struct placement_device d = {.node = node, .memory_bytes = v->memory_bytes, .taken = g->devices && !is_named(g->devices, v->name)};
    uint64_t used = 0;
    for (uint32_t i = 0; i < m->n_workers; i++) {
        const struct worker *w = &m->workers[i];
        const struct group *other = &m->groups[w->group];
        if (w->node != node || w->device != device)
            continue;
        used += other->need_bytes[w->world_rank];
        d.taken = d.taken || !g->devices || other->deployment == g->deployment;
    }
    if (d.memory_bytes)
        d.memory_bytes = d.memory_bytes > used ? d.memory_bytes - used : 1; /* 0 would say: not known */
    return d;
}

uint32_t members_n_free(const struct members *m, const struct group *g)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_nodes; i++)
        for (uint32_t j = 0; m->nodes[i].joined && j < m->nodes[i].n_devices; j++)
            n += !look_at(m, g, i, j).taken;
    return n;
}

bool members_place(struct members *m, const struct group *g, uint64_t now_ns)
{
    struct worker *ws = &m->workers[g->first];
    uint32_t ranks = g->tp * g->pp, n = members_n_devices(m), missing = 0, k = 0;
    for (uint32_t r = 0; r < ranks; r++)
        missing += ws[r].state == WORKER_UNPLACED;
    if (!missing)
        return true;
    struct placement_device *d = calloc((size_t)n + 1, sizeof *d);
    uint32_t *idx = calloc((size_t)n + 1, sizeof *idx), *of_rank = calloc((size_t)ranks + 1, sizeof *of_rank);
    bool ok = d && idx && of_rank;
    for (uint32_t r = 0; ok && r < ranks; r++)
        of_rank[r] = PLACEMENT_NONE;
    for (uint32_t i = 0; ok && i < m->n_nodes; i++) {
        for (uint32_t j = 0; m->nodes[i].joined && j < m->nodes[i].n_devices; j++, k++) {
            d[k] = look_at(m, g, i, j);
            idx[k] = j;
            for (uint32_t r = 0; r < ranks; r++)
                if (ws[r].node == i && ws[r].device == j)
                    of_rank[r] = k;
        }
    }
    ok = ok && placement_assign(d, n, g->tp, g->pp, g->need_bytes, of_rank);
    for (uint32_t r = 0; ok && r < ranks; r++) {
        if (ws[r].state != WORKER_UNPLACED)
            continue;
        ws[r].state = WORKER_PLACED;
        ws[r].node = d[of_rank[r]].node;
        ws[r].device = idx[of_rank[r]];
        ws[r].start_at_ns = MAX(ws[r].start_at_ns, now_ns);
    }
    free(d);
    free(idx);
    free(of_rank);
    return ok;
}

void members_started(struct members *m, struct worker *w, uint64_t now_ns)
{
    w->id = m->next_worker_id++;
    w->state = WORKER_STARTING;
    w->started_ns = now_ns;
    w->loaded = false;
    w->n_starts++;
}

void members_exited(struct members *m, struct worker *w, const char *why, uint64_t now_ns)
{
    (void)m;
    snprintf(w->text, sizeof w->text, "%s", why);
    w->n_load_failures = w->loaded ? 0 : w->n_load_failures + 1;
    w->n_quick = now_ns - w->started_ns < QUICK_S * NS_PER_S ? w->n_quick + 1 : 0;
    w->id = 0;
    w->state = w->n_load_failures >= MEMBERS_LOAD_FAILURES_MAX ? WORKER_FATAL : WORKER_PLACED;
    /* At once after the first failure; a worker that keeps dying soon after its start waits longer each time. */
    uint32_t shift = w->n_quick > 1 ? MIN(w->n_quick - 2, 6u) : 0;
    uint64_t wait_ms = w->n_quick > 1 ? MIN((uint64_t)BACKOFF_MS << shift, (uint64_t)BACKOFF_MS_MAX) : 0;
    w->start_at_ns = now_ns + wait_ms * NS_PER_MS;
}
