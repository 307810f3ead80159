#include "coordinator/coordinator.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "coordinator/cluster.h"
#include "coordinator/front.h"
#include "coordinator/instance.h"
#include "proto/msg.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { STEP_TOKENS_MIN = 512, EVENTS_PER_REQUEST = 4 };

struct coordinator {
    const struct options *opts;
    char state_dir[256], runtime_dir[256];
    struct keys keys;
    bool has_keys;
    struct link_context *links;
    struct deployment deployments[DEPLOYMENTS_MAX];
    uint32_t n_deployments;
    struct instance instance;
    struct queue *events, *engine_events;
    uint32_t n_engines; /* of all deployments */
    struct cluster *cluster;
    struct front *front;
    int signal_fd, wake_fd;
};

/* ---- parts ---- */

/* The engine's endpoint beside the control endpoint: the next ports, or any free one. */
static enum err engine_tcp(const char *listen, uint32_t replica, char *out, size_t cap)
{
    const char *colon = strrchr(listen, ':');
    if (strncmp(listen, "tcp://", 6) != 0 || !colon || colon < listen + 6)
        return err_set(ERR_CONFIG, "--listen '%s': tcp://HOST:PORT is expected", listen);
    char *end;
    unsigned long port = strtoul(colon + 1, &end, 10);
    bool any = strcmp(colon + 1, "*") == 0 || port == 0;
    if (!any && (*end || port + 1 + replica > 65535))
        return err_set(ERR_CONFIG, "--listen '%s': the port must leave room for %u engines", listen, replica + 1);
    snprintf(out, cap, "%.*s:%lu", (int)(colon - listen), listen, any ? 0 : port + 1 + replica);
    return ERR_OK;
}

static enum err make_engines(struct coordinator *c, struct deployment *d)
{
    const struct options *o = d->opts;
    d->metrics = metrics_create(d->names[0], (unsigned)o->replicas);
    if (!d->metrics)
        return err_set(ERR_NOMEM, "metrics");
    d->max_step_tokens = (uint32_t)MIN((int64_t)MSG_TOKENS_MAX, MAX((int64_t)STEP_TOKENS_MIN, o->prefill_chunk) + o->max_seqs);
    for (uint32_t i = 0; i < (uint32_t)o->replicas; i++) {
        char name[32], ipc[320], tcp[320];
        snprintf(name, sizeof name, "engine-%u.sock", c->n_engines);
        TRY(instance_endpoint(&c->instance, name, ipc, sizeof ipc));
        if (o->listen)
            TRY(engine_tcp(o->listen, c->n_engines, tcp, sizeof tcp));
        struct engine_config cfg = {.opts = o,
                                    .hp = &d->hp,
                                    .split = &d->split,
                                    .deployment = d->index,
                                    .replica = i,
                                    .model = d->names[0],
                                    .endpoint = ipc,
                                    .endpoint_tcp = o->listen ? tcp : NULL,
                                    .max_step_tokens = d->max_step_tokens,
                                    .links = c->links,
                                    .metrics = d->metrics,
                                    .events = c->events,
                                    .cluster_events = c->engine_events};
        TRY(engine_create(&cfg, &d->engines[i]));
        d->n_engines++;
        c->n_engines++;
    }
    return ERR_OK;
}

/* Room for every event that can be under way; then the engines of each deployment. */
static enum err make_all_engines(struct coordinator *c)
{
    uint64_t n_events = 1024, n_workers = 0;
    for (uint32_t i = 0; i < c->n_deployments; i++) {
        const struct options *o = c->deployments[i].opts;
        const struct shard_split *sp = &c->deployments[i].split;
        n_workers += (uint64_t)o->replicas * sp->tp * sp->pp;
        if (o->replicas > METRIC_ENGINES_MAX)
            return err_set(ERR_CONFIG, "--replicas %lld: at most %d", (long long)o->replicas, METRIC_ENGINES_MAX);
        n_events += (uint64_t)(o->max_seqs + o->queue_max) * EVENTS_PER_REQUEST * (uint64_t)o->replicas;
    }
    if (n_workers > MSG_RANKS_MAX) /* the status would not go into a message */
        return err_set(ERR_CONFIG, "%llu workers of all models and replicas: at most %d", (unsigned long long)n_workers, MSG_RANKS_MAX);
    TRY(queue_create(n_events, &c->events));
    TRY(queue_create(4096, &c->engine_events));
    for (uint32_t i = 0; i < c->n_deployments; i++)
        TRY(make_engines(c, &c->deployments[i]));
    return ERR_OK;
}

static void health(void *arg, const struct deployment *d, struct front_health *out)
{
    cluster_health(arg, d, out);
}

static enum err make_cluster(struct coordinator *c)
{
    char ipc[320];
    TRY(instance_endpoint(&c->instance, "control.sock", ipc, sizeof ipc));
    struct cluster_config cfg = {.opts = c->opts,
                                 .deployments = c->deployments,
                                 .n_deployments = c->n_deployments,
                                 .endpoint = ipc,
                                 .endpoint_tcp = c->opts->listen,
                                 .links = c->links,
                                 .engine_events = c->engine_events,
                                 .wake_fd = c->wake_fd};
    return cluster_create(&cfg, &c->cluster);
}

static enum err make_front(struct coordinator *c)
{
    struct front_config cfg = {.opts = c->opts,
                               .deployments = c->deployments,
                               .n_deployments = c->n_deployments,
                               .events = c->events,
                               .health = health,
                               .health_arg = c->cluster};
    TRY(front_create(&cfg, &c->front));
    cluster_set_url(c->cluster, front_url(c->front));
    return ERR_OK;
}

void coordinator_block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static enum err open_fds(struct coordinator *c)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    c->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return c->signal_fd < 0 || c->wake_fd < 0 ? err_set(ERR_IO, "signalfd: %s", strerror(errno)) : ERR_OK;
}

static enum err start(struct coordinator *c)
{
    TRY(open_fds(c));
    for (uint32_t i = 0; i < options_n_models(c->opts); i++) {
        c->n_deployments++; /* even a failed one is closed */
        TRY(deployment_open(c->opts, i, &c->deployments[i]));
    }
    TRY(deployment_check_names(c->deployments, c->n_deployments));
    TRY(keys_state_dir(c->opts->state_dir, c->state_dir, sizeof c->state_dir));
    TRY(keys_runtime_dir(c->opts->runtime_dir, c->runtime_dir, sizeof c->runtime_dir));
    TRY(keys_load_or_create(c->state_dir, &c->keys));
    c->has_keys = true;
    TRY(instance_open(c->runtime_dir, &c->instance));
    TRY(link_context_create(&c->keys, c->state_dir, &c->links));
    TRY(make_all_engines(c));
    TRY(make_cluster(c));
    return make_front(c);
}

/* ---- running ---- */

static void stop(struct coordinator *c)
{
    front_destroy(&c->front);
    cluster_destroy(&c->cluster); /* stops the workers; before the engines, whose pointers it holds */
    for (uint32_t i = 0; i < c->n_deployments; i++)
        deployment_stop_engines(&c->deployments[i]);
    for (struct token_event *e; c->events && (e = queue_pop(c->events));)
        token_event_destroy(&e);
    for (struct engine_event *e; c->engine_events && (e = queue_pop(c->engine_events));)
        free(e);
    queue_destroy(&c->events);
    queue_destroy(&c->engine_events);
    link_context_destroy(&c->links);
    instance_close(&c->instance);
    if (c->has_keys)
        keys_deinit(&c->keys);
    for (uint32_t i = 0; i < c->n_deployments; i++)
        deployment_close(&c->deployments[i]);
    if (c->signal_fd >= 0)
        close(c->signal_fd);
    if (c->wake_fd >= 0)
        close(c->wake_fd);
}

/* The last events are on their way to clients when the engines have drained. */
static void let_front_finish(struct coordinator *c)
{
    for (int i = 0; i < 200 && queue_len(c->events); i++)
        usleep(5000);
    usleep(100000);
}

static bool take_signal(struct coordinator *c)
{
    struct signalfd_siginfo si;
    bool any = false;
    while (read(c->signal_fd, &si, sizeof si) == (ssize_t)sizeof si) {
        LOG(INFO, CLUSTER, "signal", "number=%u", si.ssi_signo);
        any |= si.ssi_signo != SIGHUP;
    }
    return any;
}

/* Nobody waits for the open streams any longer: each ends with an error now, and the front sends it. */
static void end_streams(struct coordinator *c)
{
    front_drain(c->front);
    cluster_drain(c->cluster, 0);
    for (int i = 0; i < 400 && !cluster_drained(c->cluster); i++)
        usleep(5000);
    let_front_finish(c);
}

static enum err wait_for_end(struct coordinator *c)
{
    struct pollfd fds[] = {{c->signal_fd, POLLIN, 0}, {c->wake_fd, POLLIN, 0}, {(int)c->opts->parent_fd, POLLIN, 0}};
    bool draining = false;
    char text[256];
    for (;;) {
        /* The engines end what is left at the end of the grace; this deadline is for one that does not answer. */
        int n = poll(fds, ARRAY_LEN(fds), draining ? (int)c->opts->drain_timeout_ms + 2000 : -1);
        if (n < 0 && errno != EINTR)
            return err_set(ERR_IO, "poll: %s", strerror(errno));
        uint64_t wakes;
        if (read(c->wake_fd, &wakes, sizeof wakes) < 0 && errno != EAGAIN)
            return err_set(ERR_IO, "eventfd: %s", strerror(errno));
        if (fds[2].revents & (POLLHUP | POLLIN | POLLERR)) /* the parent is gone: nobody waits for the streams */
            return ERR_OK;
        bool asked = take_signal(c) || (!draining && cluster_shutdown_asked(c->cluster));
        if (draining && asked)
            end_streams(c);
        else if (draining && cluster_drained(c->cluster))
            let_front_finish(c);
        if (draining && (asked || n == 0 || cluster_drained(c->cluster)))
            return ERR_OK;
        if (c->opts->parent_fd >= 0 && cluster_fatal(c->cluster, text, sizeof text)) {
            end_streams(c);
            return err_set(ERR_UNAVAILABLE, "%s", text);
        }
        if (asked && !draining) {
            draining = true;
            front_drain(c->front);
            cluster_drain(c->cluster, c->opts->drain_timeout_ms);
        }
    }
}

enum err coordinator_run(const struct options *opts)
{
    struct coordinator *c = calloc(1, sizeof *c);
    if (!c)
        return err_set(ERR_NOMEM, "the coordinator");
    uint64_t begin_ns = clock_ns();
    c->opts = opts;
    c->signal_fd = c->wake_fd = -1;
    enum err e = start(c);
    if (e == ERR_OK) {
        LOG(INFO, CLUSTER, "coordinator up", "ms=%llu url=%s control=ipc://%s/control.sock tcp=%s models=%u engines=%u",
            (unsigned long long)((clock_ns() - begin_ns) / NS_PER_MS), front_url(c->front), c->instance.dir,
            cluster_endpoint_tcp(c->cluster) ? cluster_endpoint_tcp(c->cluster) : "-", c->n_deployments, c->n_engines);
        for (uint32_t i = 0; i < c->n_deployments; i++) {
            const struct deployment *d = &c->deployments[i];
            LOG(INFO, CLUSTER, "deployment", "model=\"%s\" names=%u tp=%u pp=%u replicas=%u file=\"%s\"", d->names[0], d->n_names, d->split.tp, d->split.pp,
                d->n_engines, d->path);
        }
        e = wait_for_end(c);
    }
    char detail[512];
    snprintf(detail, sizeof detail, "%s", err_detail());
    stop(c);
    free(c);
    return e == ERR_OK ? e : err_set(e, "%s", detail);
}
