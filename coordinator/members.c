#include "coordinator/members.h"

#include "base/check.h"
#include "base/clock.h"
#include "proto/device.h"

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
    for (uint32_t i = 0; i < m->n_nodes; i++) {
        free(m->nodes[i].devices);
        free(m->nodes[i].links);
    }
    free(m->nodes);
    free(m->groups);
    free(m->workers);
    memset(m, 0, sizeof *m);
}

static void copy_str(char *to, size_t cap, const char *from)
{
    snprintf(to, cap, "%s", from ? from : "");
}

static void describe(struct device *d, const struct msg_device *s, uint32_t **links, uint64_t now_ns)
{
    copy_str(d->name, sizeof d->name, s->name);
    copy_str(d->kind, sizeof d->kind, s->kind);
    copy_str(d->model, sizeof d->model, s->model);
    copy_str(d->uuid, sizeof d->uuid, s->uuid);
    copy_str(d->bus_id, sizeof d->bus_id, s->bus_id);
    copy_str(d->why, sizeof d->why, s->why);
    d->memory_bytes = s->memory_bytes;
    d->memory_total_bytes = s->memory_total_bytes;
    d->memory_free_bytes = s->memory_free_bytes;
    d->cores = s->cores;
    d->numa = s->numa;
    d->sm = s->sm;
    d->temperature_c = s->temperature_c;
    d->power_mw = s->power_mw;
    d->utilization_percent = s->utilization_percent;
    d->throttle = s->throttle;
    d->lost = s->lost;
    d->n_peers = s->n_peers;
    d->path = *links;
    d->nvlinks = *links + s->n_peers;
    *links += 2 * (size_t)s->n_peers;
    if (s->n_peers) {
        memcpy(d->path, s->path, s->n_peers * sizeof *s->path);
        memcpy(d->nvlinks, s->nvlinks, s->n_peers * sizeof *s->nvlinks);
    }
    d->state_ns = now_ns;
}

enum err members_join(struct members *m, unsigned server, const struct link_peer *peer, const struct msg_hello *h,
                      uint64_t now_ns, uint32_t *out)
{
    uint32_t i = 0;
    while (i < m->n_nodes && m->nodes[i].joined)
        i++;
    if (i == MEMBERS_NODES_MAX)
        return err_set(ERR_TOO_BIG, "%d nodes are the most of one coordinator", MEMBERS_NODES_MAX);
    size_t n_links = 0;
    for (uint32_t d = 0; d < h->n_devices; d++)
        n_links += 2 * (size_t)h->devices[d].n_peers;
    struct device *devices = calloc((size_t)h->n_devices + 1, sizeof *devices);
    uint32_t *links = calloc(n_links + 1, sizeof *links), *next = links;
    if (!devices || !links) {
        free(devices);
        free(links);
        return err_set(ERR_NOMEM, "%u devices", h->n_devices);
    }
    for (uint32_t d = 0; d < h->n_devices; d++)
        describe(&devices[d], &h->devices[d], &next, now_ns);
    struct node *n = &m->nodes[i];
    free(n->devices);
    free(n->links);
    *n = (struct node){.joined = true,
                       .server = server,
                       .peer = *peer,
                       .peer_id = h->peer_id,
                       .heard_ns = now_ns,
                       .pid = h->pid,
                       .devices = devices,
                       .n_devices = h->n_devices,
                       .links = links,
                       .cuda_version = h->cuda_version};
    copy_str(n->host, sizeof n->host, h->host);
    copy_str(n->gpu_driver, sizeof n->gpu_driver, h->gpu_driver);
    copy_str(n->gpu_note, sizeof n->gpu_note, h->gpu_note);
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

static void unplace(struct worker *w)
{
    w->node = w->device = PLACEMENT_NONE;
    w->state = WORKER_UNPLACED;
    w->id = 0;
}

bool members_device_states(struct members *m, uint32_t node, const struct msg_heartbeat *h, uint64_t now_ns)
{
    struct node *n = &m->nodes[node];
    bool changed = false;
    for (uint32_t i = 0; i < h->n_devices; i++) {
        if (h->device[i] >= n->n_devices)
            continue;
        struct device *d = &n->devices[h->device[i]];
        bool lost = h->lost[i] != 0;
        if (lost != d->lost) {
            changed = true;
            copy_str(d->why, sizeof d->why, lost ? h->why : "");
        }
        d->lost = lost;
        d->temperature_c = h->temperature_c[i];
        d->power_mw = h->power_mw[i];
        d->utilization_percent = h->utilization_percent[i];
        d->throttle = h->throttle[i];
        d->memory_free_bytes = h->memory_free_bytes[i];
        d->state_ns = now_ns;
    }
    for (uint32_t i = 0; i < m->n_workers; i++) {
        struct worker *w = &m->workers[i];
        if (w->node == node && w->state == WORKER_PLACED && n->devices[w->device].lost)
            unplace(w);
    }
    return changed;
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
    struct placement_device d = {.node = node, .memory_bytes = v->memory_bytes, .taken = v->lost || (g->devices && !is_named(g->devices, v->name))};
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

/* ---- types: CPUs are one, each model of GPU is one ---- */

static bool same_type(const struct device *a, const struct device *b)
{
    return strcmp(a->kind, b->kind) == 0 && (!device_is_gpu(a->kind) || strcmp(a->model, b->model) == 0);
}

/* Which of two is wanted first: GPUs before CPUs, then the one with more memory. */
static bool wanted_before(const struct device *a, const struct device *b)
{
    if (device_is_gpu(a->kind) != device_is_gpu(b->kind))
        return device_is_gpu(a->kind);
    return a->memory_total_bytes > b->memory_total_bytes;
}

/* Numbers them in the order in which they are wanted. v, d: [n] alike. Returns how many there are. */
static uint32_t number_types(const struct device *const *v, struct placement_device *d, uint32_t n)
{
    uint32_t n_types = 0;
    for (uint32_t i = 0; i < n; i++)
        d[i].type = UINT32_MAX;
    for (;; n_types++) {
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++)
            if (d[i].type == UINT32_MAX && (best == n || wanted_before(v[i], v[best])))
                best = i;
        if (best == n)
            return n_types;
        for (uint32_t i = 0; i < n; i++)
            if (d[i].type == UINT32_MAX && same_type(v[i], v[best]))
                d[i].type = n_types;
    }
}

/* All devices of the cluster as the group may use them, with their types; free(out->d), which holds all. False: no memory. */
struct view {
    struct placement_device *d;
    const struct device **v;
    uint32_t *idx; /* in the node */
    uint32_t n, n_types;
};
static bool look_at_all(const struct members *m, const struct group *g, struct view *out)
{
    uint32_t cap = members_n_devices(m) + 1;
    out->d = calloc(cap, sizeof *out->d + sizeof *out->v + sizeof *out->idx);
    if (!out->d)
        return false;
    out->v = (const struct device **)(out->d + cap);
    out->idx = (uint32_t *)(out->v + cap);
    out->n = 0;
    for (uint32_t i = 0; i < m->n_nodes; i++)
        for (uint32_t j = 0; m->nodes[i].joined && j < m->nodes[i].n_devices; j++) {
            out->d[out->n] = look_at(m, g, i, j);
            out->v[out->n] = &m->nodes[i].devices[j];
            out->idx[out->n++] = j;
        }
    out->n_types = number_types(out->v, out->d, out->n);
    return true;
}

bool members_place(struct members *m, const struct group *g, uint64_t now_ns)
{
    struct worker *ws = &m->workers[g->first];
    struct view all = {0};
    uint32_t ranks = g->tp * g->pp, missing = 0;
    for (uint32_t r = 0; r < ranks; r++)
        missing += ws[r].state == WORKER_UNPLACED;
    if (!missing)
        return true;
    uint32_t *of_rank = calloc((size_t)ranks + 1, sizeof *of_rank);
    bool ok = of_rank && look_at_all(m, g, &all);
    for (uint32_t r = 0; ok && r < ranks; r++) {
        of_rank[r] = PLACEMENT_NONE;
        for (uint32_t k = 0; k < all.n; k++)
            if (ws[r].node == all.d[k].node && ws[r].device == all.idx[k])
                of_rank[r] = k;
    }
    ok = ok && placement_assign(all.d, all.n, g->tp, g->pp, g->need_bytes, of_rank);
    for (uint32_t r = 0; ok && r < ranks; r++) {
        if (ws[r].state != WORKER_UNPLACED)
            continue;
        ws[r].state = WORKER_PLACED;
        ws[r].node = all.d[of_rank[r]].node;
        ws[r].device = all.idx[of_rank[r]];
        ws[r].start_at_ns = MAX(ws[r].start_at_ns, now_ns);
    }
    free(all.d);
    free(of_rank);
    return ok;
}

/* Free devices of a type, and the largest of them. */
static uint32_t count_free(const struct view *all, uint32_t type, uint64_t *largest, const char **model)
{
    uint32_t n = 0;
    *largest = 0;
    for (uint32_t i = 0; i < all->n; i++) {
        if (all->d[i].type != type || all->d[i].taken)
            continue;
        n++;
        *largest = MAX(*largest, all->d[i].memory_bytes);
        *model = device_is_gpu(all->v[i]->kind) ? all->v[i]->model : "CPU device";
    }
    return n;
}

/* "20.25 GiB" */
static const char *size_text(uint64_t bytes, char out[24])
{
    bool large = bytes >= 1ull << 30;
    snprintf(out, 24, "%.2f %s", (double)bytes / (large ? 1ull << 30 : 1ull << 20), large ? "GiB" : "MiB");
    return out;
}

/* Enough devices of a type, and they are too small. */
static bool say_too_small(const struct view *all, const struct group *g, char *out, size_t cap)
{
    uint64_t need = 0, sum = 0, largest, best = 0;
    const char *model = "", *best_model = "";
    char text[3][24];
    for (uint32_t r = 0; r < g->tp * g->pp; r++) {
        need = MAX(need, g->need_bytes[r]);
        sum += g->need_bytes[r];
    }
    for (uint32_t t = 0; t < all->n_types; t++)
        if (count_free(all, t, &largest, &model) >= g->tp * g->pp && largest > best) {
            best = largest;
            best_model = model;
        }
    if (best == 0 || best >= need)
        return false;
    int len = snprintf(out, cap, "a worker needs %s for its weights alone, the largest %.60s has room for %s: %s are missing", size_text(need, text[0]), best_model,
                       size_text(best, text[1]), size_text(need - best, text[2]));
    if (sum / best < 1024 && (size_t)len < cap)
        snprintf(out + len, cap - (size_t)len, " (tp * pp from about %llu on, or a smaller file, would fit)", (unsigned long long)(sum / best + 1));
    return true;
}

bool members_why_not(const struct members *m, const struct group *g, char *out, size_t cap)
{
    struct view all;
    uint32_t n_gpus = 0, most = 0, types = 0;
    size_t len = 0;
    uint64_t largest;
    char list[120] = "";
    const char *model = "";
    if (!look_at_all(m, g, &all))
        return false;
    for (uint32_t t = 0; t < all.n_types; t++) {
        uint32_t n = count_free(&all, t, &largest, &model);
        if (!n || strcmp(model, "CPU device") == 0)
            continue;
        if (len < sizeof list)
            len += (size_t)snprintf(list + len, sizeof list - len, "%s%u %.40s", types ? ", " : "", n, model);
        n_gpus += n;
        most = MAX(most, n);
        types++;
    }
    bool mixed = types > 1 && n_gpus >= g->tp * g->pp && most < g->tp * g->pp;
    if (mixed)
        snprintf(out, cap, "the %u workers of a replica need GPUs of one type, there are %s: lower tp or pp, or name devices of one type", g->tp * g->pp, list);
    bool known = mixed || say_too_small(&all, g, out, cap);
    free(all.d);
    return known;
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
    snprintf(w->text, sizeof w->text, "%s", why);
    w->n_load_failures = w->loaded ? 0 : w->n_load_failures + 1;
    w->n_quick = now_ns - w->started_ns < QUICK_S * NS_PER_S ? w->n_quick + 1 : 0;
    w->id = 0;
    w->state = w->n_load_failures >= MEMBERS_LOAD_FAILURES_MAX ? WORKER_FATAL : WORKER_PLACED;
    /* At once after the first failure; a worker that keeps dying soon after its start waits longer each time. */
    uint32_t shift = w->n_quick > 1 ? MIN(w->n_quick - 2, 6u) : 0;
    uint64_t wait_ms = w->n_quick > 1 ? MIN((uint64_t)BACKOFF_MS << shift, (uint64_t)BACKOFF_MS_MAX) : 0;
    w->start_at_ns = now_ns + wait_ms * NS_PER_MS;
    if (w->node != PLACEMENT_NONE && m->nodes[w->node].devices[w->device].lost) { /* it is the device's fault: elsewhere at once */
        w->n_load_failures = w->n_quick = 0;
        w->start_at_ns = now_ns;
        unplace(w);
    }
}
