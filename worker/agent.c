/* One poll loop over: a signalfd, the parent's pipe, the coordinator's link, what the watch of the GPUs saw (a thread of its own), and a pidfd for each child.
 *
 * A HELLO is sent once a connection; ZeroMQ keeps it until the coordinator is there. A coordinator that does not know us any more (it
 * restarted, or the link was cut and came back) says REFUSE(UNAVAILABLE); one that is silent for WORKER_LINK_LOST_MS is taken for lost:
 * in both cases the workers, which nobody would use again, are stopped, and when they are gone a new link says HELLO. */
#include "worker/agent.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "proto/link.h"
#include "worker/child.h"
#include "worker/gpu_watch.h"
#include "worker/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum {
    CHILDREN_MAX = 1024,
    FIXED_FDS = 4,
    HELLO_AGAIN_MS = 10000, /* no WELCOME for so long: the link is made anew */
    HELLO_PAUSE_MS = 1000,  /* between two HELLOs at the least: a coordinator that answers each with REFUSE is not flooded */
    WAITING_LOG_MS = 10000,
    GPU_LOOK_MS = 300, /* how long the end of a worker may wait for what its GPU has to say */
};

struct agent {
    struct options *opts;
    struct inventory inventory;
    struct gpu_info *gpus; /* NULL: not looked for */
    char gpu_note[500];    /* why there may be GPUs that are not offered */
    struct gpu_watch *watch; /* where GPUs are offered */
    struct link_context *links;
    struct link_client *link;
    struct key_file key;
    struct arena arena;
    struct msg msg;
    struct child children[CHILDREN_MAX];
    uint32_t n_children;
    struct pollfd fds[FIXED_FDS + CHILDREN_MAX];
    int signal_fd, life_fds[2]; /* the pipe: children hold the read end */
    uint64_t peer_id, wakeups;
    uint32_t heartbeat_ms;
    uint64_t next_heartbeat_ns, heard_ns, hello_ns, next_log_ns;
    bool welcome, echoes, rejoin, quit;
    int exit_code;
};

/* ---- small parts ---- */

enum err agent_endpoint(const char *endpoint, const char *join, char *out, size_t cap)
{
    static const char *const any[] = {"tcp://0.0.0.0:", "tcp://*:", "tcp://[::]:"};
    int n = -1;
    for (unsigned i = 0; i < ARRAY_LEN(any) && n < 0; i++) {
        size_t len = strlen(any[i]);
        const char *colon = strrchr(join, ':');
        if (strncmp(endpoint, any[i], len) == 0 && strncmp(join, "tcp://", 6) == 0 && colon > join + 6)
            n = snprintf(out, cap, "%.*s:%s", (int)(colon - join), join, endpoint + len);
    }
    if (n < 0)
        n = snprintf(out, cap, "%s", endpoint);
    return n < (int)cap ? ERR_OK : err_set(ERR_TOO_BIG, "an endpoint of %d bytes", n);
}

static enum err set_default(char **field, const char *value)
{
    *field = strdup(value);
    return *field ? ERR_OK : err_set(ERR_NOMEM, "%s", value);
}

enum err agent_defaults(struct options *o)
{
    char dir[300], path[400];
    if (!o->join) {
        TRY(keys_runtime_dir(o->runtime_dir, dir, sizeof(dir)));
        snprintf(path, sizeof(path), "ipc://%s/current/control.sock", dir);
        TRY(set_default(&o->join, path));
    }
    if (!o->key_file) {
        TRY(keys_state_dir(o->state_dir, dir, sizeof(dir)));
        snprintf(path, sizeof(path), "%s/keys/local-worker.key", dir);
        TRY(set_default(&o->key_file, path));
    }
    return ERR_OK;
}

static void end_with(struct agent *a, int code, const char *why)
{
    if (a->quit)
        return;
    a->quit = true;
    a->exit_code = code;
    if (code == WORKER_EXIT_OK)
        LOG(INFO, AGENT, "stopping", "why=\"%s\" workers=%u", why, a->n_children);
    else
        LOG(ERROR, AGENT, "leaving", "status=%d why=\"%s\"", code, why);
}

static void send_msg(struct agent *a, const struct msg *m)
{
    enum err e = a->link ? link_client_send(a->link, m) : ERR_OK;
    if (e == ERR_AUTH)
        end_with(a, WORKER_EXIT_REFUSED, err_detail());
    else if (e != ERR_OK)
        LOG(WARN, AGENT, "message not sent", "type=%d error=\"%s\"", (int)m->type, err_detail());
}

/* ---- children ---- */

static void report_exit(struct agent *a, uint64_t worker_id, pid_t pid, const struct child_exit *x)
{
    struct msg m = {.type = MSG_WORKER_EXITED,
                    .worker_exited = {.worker_id = worker_id, .pid = (uint32_t)pid, .status = x->status,
                                      .text = (char *)(uintptr_t)x->text}};
    send_msg(a, &m);
}

/* ---- GPUs ---- */

static const struct gpu *gpu_of(const struct agent *a, const struct inventory_device *d)
{
    return d->kind == DEVICE_CPU ? NULL : &a->gpus->gpus[d->gpu];
}

/* "GPU cuda:0 (NVIDIA H200, GPU-4f...) reported Xid 79: fallen off the bus" */
static void gpu_text(const struct agent *a, uint32_t gpu, const char *what, char *out, size_t cap)
{
    const struct gpu *g = &a->gpus->gpus[gpu];
    snprintf(out, cap, "GPU cuda:%u (%s, %s) %s", gpu, g->name, g->uuid, what);
}

/* Children whose end is still to come; one that hangs in the driver of a lost GPU may never go and is not waited for. */
static bool children_live(const struct agent *a)
{
    for (uint32_t i = 0; i < a->n_children; i++)
        if (!a->children[i].reported)
            return true;
    return false;
}

static bool gpu_works(const struct agent *a)
{
    for (uint32_t i = 0; i < a->n_children; i++)
        if (a->children[i].gpu != CHILD_NO_GPU)
            return true;
    return false;
}

/* The agent's sign of life; with_gpus: and the state of its GPUs. */
static void send_heartbeat(struct agent *a, bool with_gpus)
{
    enum { N = GPU_INFO_MAX };
    uint32_t device[N], temperature[N], power[N], utilization[N], throttle[N], lost[N], n = 0;
    uint64_t memory_free[N];
    const char *why = "";
    for (uint32_t k = 0; with_gpus && k < a->inventory.n_devices; k++) {
        const struct gpu *g = gpu_of(a, &a->inventory.devices[k]);
        if (!g)
            continue;
        device[n] = k;
        temperature[n] = g->temperature_c;
        power[n] = g->power_mw;
        utilization[n] = g->utilization_percent;
        throttle[n] = g->throttle;
        memory_free[n] = g->free_bytes;
        lost[n++] = g->lost;
        why = g->lost ? g->why : why;
    }
    struct msg m = {.type = MSG_HEARTBEAT,
                    .heartbeat = {.progress = a->wakeups, .device = device, .temperature_c = temperature, .power_mw = power, .utilization_percent = utilization,
                                  .throttle = throttle, .memory_free_bytes = memory_free, .lost = lost, .n_devices = n, .why = (char *)(uintptr_t)why}};
    if (a->welcome)
        send_msg(a, &m);
}

/* Workers on a GPU that is lost are ended, and their end is reported without waiting for it: a process that hangs in the driver may never go. */
static void end_on_lost_gpus(struct agent *a)
{
    for (uint32_t i = 0; i < a->n_children; i++) {
        struct child *c = &a->children[i];
        if (c->gpu == CHILD_NO_GPU || c->reported || !a->gpus->gpus[c->gpu].lost)
            continue;
        struct child_exit x = {.status = WORKER_EXIT_FAILED};
        gpu_text(a, c->gpu, a->gpus->gpus[c->gpu].why, x.text, sizeof(x.text));
        LOG(ERROR, AGENT, "worker lost with its GPU", "worker=%llu pid=%d why=\"%s\"", (unsigned long long)c->worker_id, (int)c->pid, x.text);
        child_kill(c);
        c->reported = true;
        if (a->welcome)
            report_exit(a, c->worker_id, c->pid, &x);
    }
}

/* Takes what the watch has seen. The coordinator hears that a GPU is lost before it hears that a worker on it ended, so that it does not start another one there. */
static void take_gpu_news(struct agent *a)
{
    bool changed = false;
    if (!a->watch || !gpu_watch_take(a->watch, &changed))
        return;
    send_heartbeat(a, true);
    if (changed)
        end_on_lost_gpus(a);
}

/* A worker on a GPU failed: what the GPU has to say about it. */
static void add_gpu_reason(struct agent *a, struct child *c, struct child_exit *x)
{
    char what[160], text[400], own[SPEC_TEXT_MAX];
    const struct gpu *g = &a->gpus->gpus[c->gpu];
    gpu_watch_look(a->watch, GPU_LOOK_MS);
    take_gpu_news(a);
    const char *known = gpu_info_xid_text(g->xid);
    if (g->lost)
        snprintf(what, sizeof(what), "%s", g->why);
    else if (g->xid && g->xid_ns >= c->started_ns)
        snprintf(what, sizeof(what), "reported Xid %u%s%s", g->xid, known[0] ? ": " : "", known);
    else
        return;
    gpu_text(a, c->gpu, what, text, sizeof(text));
    memcpy(own, x->text, sizeof(own));
    snprintf(x->text, sizeof(x->text), "%s; %s", text, own);
}

static void start_worker(struct agent *a, const struct msg_start_worker *s)
{
    char endpoint[512];
    struct msg_start_worker start = *s;
    struct child_exit x = {.status = WORKER_EXIT_USAGE};
    const struct inventory_device *d = inventory_find(&a->inventory, s->device);
    const struct gpu *g = d ? gpu_of(a, d) : NULL;
    enum err e = ERR_OK;
    for (uint32_t i = 0; i < a->n_children; i++)
        if (a->children[i].worker_id == s->worker_id) {
            LOG(WARN, AGENT, "worker runs already", "worker=%llu", (unsigned long long)s->worker_id);
            return;
        }
    if (!d)
        e = err_set(ERR_NOT_FOUND, "device %s is not offered by this host", s->device);
    else if (g && g->lost)
        e = err_set(ERR_UNAVAILABLE, "GPU %s (%s, %s) %s", d->name, g->name, g->uuid, g->why);
    else if (a->n_children == CHILDREN_MAX)
        e = err_set(ERR_BUSY, "%d workers run on this host already", (int)CHILDREN_MAX);
    if (e == ERR_OK)
        e = agent_endpoint(s->endpoint, a->opts->join, endpoint, sizeof(endpoint));
    start.endpoint = endpoint;
    struct child *c = &a->children[MIN(a->n_children, CHILDREN_MAX - 1)];
    if (e == ERR_OK)
        e = child_start(a->opts, &a->inventory, d, a->gpus, &start, a->life_fds[0], c);
    if (e != ERR_OK) {
        snprintf(x.text, sizeof(x.text), "%s", err_detail());
        LOG(ERROR, AGENT, "worker not started", "worker=%llu error=\"%s\"", (unsigned long long)s->worker_id, x.text);
        report_exit(a, s->worker_id, 0, &x);
        return;
    }
    a->n_children++;
    if (a->watch)
        gpu_watch_set_busy(a->watch, gpu_works(a));
    LOG(INFO, AGENT, "worker started", "worker=%llu pid=%d device=%s kind=%s model=\"%s\" stage=%u tp_rank=%u threads=%u own_core=%d",
        (unsigned long long)s->worker_id, (int)c->pid, s->device, device_kind_name(d->kind), d->model, s->stage, s->tp_rank, d->n_threads, d->own_core);
}

static void stop_worker(struct agent *a, uint64_t worker_id, uint64_t now)
{
    for (uint32_t i = 0; i < a->n_children; i++)
        if (a->children[i].worker_id == worker_id)
            child_stop(&a->children[i], now);
}

static void stop_all(struct agent *a, uint64_t now)
{
    for (uint32_t i = 0; i < a->n_children; i++)
        child_stop(&a->children[i], now);
}

static void watch_children(struct agent *a, uint64_t now)
{
    for (uint32_t i = 0; i < a->n_children;) {
        struct child *c = &a->children[i];
        struct child_exit x;
        child_tick(c, now);
        if (!child_reap(c, &x)) {
            i++;
            continue;
        }
        bool reported = c->reported;
        c->reported = true; /* it is we who speak of it */
        if (c->gpu != CHILD_NO_GPU && x.status != 0 && !c->kill_at_ns && !reported)
            add_gpu_reason(a, c, &x);
        if (c->kill_at_ns || x.status == 0 || reported)
            LOG(INFO, AGENT, "worker ended", "worker=%llu pid=%d status=%d why=\"%s\"", (unsigned long long)c->worker_id,
                (int)c->pid, (int)x.status, x.text);
        else
            LOG(ERROR, AGENT, "worker lost", "worker=%llu pid=%d status=%d why=\"%s\"", (unsigned long long)c->worker_id,
                (int)c->pid, (int)x.status, x.text);
        if (a->welcome && !reported)
            report_exit(a, c->worker_id, c->pid, &x);
        a->children[i] = a->children[--a->n_children];
        if (a->watch)
            gpu_watch_set_busy(a->watch, gpu_works(a));
    }
}

/* ---- the link ---- */

static enum err describe_gpu(struct agent *a, const struct gpu *g, struct msg_device *m)
{
    const struct inventory *v = &a->inventory;
    m->uuid = (char *)(uintptr_t)g->uuid;
    m->bus_id = (char *)(uintptr_t)g->bus_id;
    m->sm = g->sm;
    m->memory_total_bytes = g->memory_bytes;
    m->memory_free_bytes = g->free_bytes;
    m->temperature_c = g->temperature_c;
    m->power_mw = g->power_mw;
    m->utilization_percent = g->utilization_percent;
    m->throttle = g->throttle;
    m->lost = g->lost;
    m->why = (char *)(uintptr_t)g->why;
    m->n_peers = v->n_devices;
    m->path = arena_array(&a->arena, v->n_devices, sizeof(*m->path));
    m->nvlinks = arena_array(&a->arena, v->n_devices, sizeof(*m->nvlinks));
    if (!m->path || !m->nvlinks)
        return err_set(ERR_NOMEM, "the topology of %u devices", v->n_devices);
    for (uint32_t k = 0; k < v->n_devices; k++)
        if (v->devices[k].kind != DEVICE_CPU) {
            m->path[k] = a->gpus->path[g - a->gpus->gpus][v->devices[k].gpu];
            m->nvlinks[k] = a->gpus->nvlinks[g - a->gpus->gpus][v->devices[k].gpu];
        }
    return ERR_OK;
}

static enum err say_hello(struct agent *a)
{
    struct msg_device devices[INVENTORY_DEVICES_MAX];
    const struct inventory *v = &a->inventory;
    link_client_close(&a->link);
    TRY(link_client_open(a->links, a->opts->join, &a->key, &a->link));
    arena_reset(&a->arena);
    for (uint32_t k = 0; k < v->n_devices; k++) {
        const struct inventory_device *d = &v->devices[k];
        devices[k] = (struct msg_device){.name = (char *)(uintptr_t)d->name, .kind = (char *)(uintptr_t)device_kind_name(d->kind),
                                         .model = (char *)(uintptr_t)d->model, .memory_bytes = d->memory_bytes,
                                         .cores = d->n_threads, .numa = d->numa};
        if (gpu_of(a, d))
            TRY(describe_gpu(a, gpu_of(a, d), &devices[k]));
    }
    struct msg m = {.type = MSG_HELLO,
                    .hello = {.version_min = PROTO_VERSION_MIN, .version_max = PROTO_VERSION_MAX, .role = "agent",
                              .host = (char *)(uintptr_t)v->host, .peer_id = a->peer_id, .pid = (uint32_t)getpid(),
                              .devices = devices, .n_devices = v->n_devices, .gpu_note = a->gpu_note}};
    if (a->gpus) {
        m.hello.gpu_driver = a->gpus->driver;
        m.hello.cuda_version = a->gpus->cuda_version;
    }
    a->welcome = a->echoes = a->rejoin = false;
    a->hello_ns = a->heard_ns = clock_ns();
    return link_client_send(a->link, &m);
}

static void lose_coordinator(struct agent *a, const char *why, uint64_t now)
{
    if (a->rejoin)
        return;
    LOG(WARN, AGENT, "coordinator lost, joining again", "why=\"%s\" workers=%u", why, a->n_children);
    a->welcome = false;
    a->rejoin = true;
    stop_all(a, now);
}

static void refused(struct agent *a, const struct msg_refuse *r, uint64_t now)
{
    char text[SPEC_TEXT_MAX];
    if (r->err == ERR_VERSION) {
        snprintf(text, sizeof(text), "the coordinator at %.200s speaks protocol versions %u to %u, this agent %d to %d",
                 a->opts->join, r->version_min, r->version_max, (int)PROTO_VERSION_MIN, (int)PROTO_VERSION_MAX);
        end_with(a, WORKER_EXIT_REFUSED, text);
    } else if (r->err == ERR_UNAVAILABLE || r->err == ERR_NOT_FOUND) {
        lose_coordinator(a, r->text ? r->text : "it does not know this agent", now);
    } else {
        snprintf(text, sizeof(text), "the coordinator at %.200s refused this agent: %.250s", a->opts->join, r->text ? r->text : "");
        end_with(a, WORKER_EXIT_REFUSED, text);
    }
}

static void welcomed(struct agent *a, const struct msg_welcome *w)
{
    char text[SPEC_TEXT_MAX];
    if (w->version < PROTO_VERSION_MIN || w->version > PROTO_VERSION_MAX) {
        snprintf(text, sizeof(text), "the coordinator chose protocol version %u, this agent speaks %d to %d", w->version,
                 (int)PROTO_VERSION_MIN, (int)PROTO_VERSION_MAX);
        end_with(a, WORKER_EXIT_REFUSED, text);
        return;
    }
    a->welcome = true;
    a->heartbeat_ms = MIN(MAX(w->heartbeat_ms, 10), 60000);
    LOG(INFO, AGENT, "joined", "coordinator=%s devices=%u memory=%llu heartbeat_ms=%u", a->opts->join, a->inventory.n_devices,
        (unsigned long long)a->inventory.memory_bytes, a->heartbeat_ms);
}

static void handle(struct agent *a, const struct msg *m, uint64_t now)
{
    a->heard_ns = now;
    switch (m->type) {
    case MSG_WELCOME:
        welcomed(a, &m->welcome);
        return;
    case MSG_REFUSE:
        refused(a, &m->refuse, now);
        return;
    case MSG_HEARTBEAT:
        a->echoes = true;
        return;
    case MSG_START_WORKER:
        if (a->welcome)
            start_worker(a, &m->start_worker);
        return;
    case MSG_STOP_WORKER:
        stop_worker(a, m->stop_worker.worker_id, now);
        return;
    case MSG_SHUTDOWN:
        end_with(a, WORKER_EXIT_OK, "the coordinator said so");
        return;
    default:
        LOG(WARN, AGENT, "message ignored", "type=%d", (int)m->type);
    }
}

static void drain(struct agent *a, uint64_t now)
{
    while (!a->quit && !a->rejoin) {
        arena_reset(&a->arena);
        enum err e = link_client_recv(a->link, &a->arena, &a->msg);
        if (e == ERR_UNAVAILABLE)
            return;
        if (e == ERR_OK)
            handle(a, &a->msg, now);
        else if (e == ERR_PROTOCOL)
            LOG(WARN, AGENT, "bad message", "error=\"%s\"", err_detail());
        else
            end_with(a, e == ERR_AUTH ? WORKER_EXIT_REFUSED : WORKER_EXIT_FAILED, err_detail());
    }
}

/* Heartbeats, the end of patience, and a new link when the old one's workers are gone. */
static void keep_link(struct agent *a, uint64_t now)
{
    if (a->rejoin && !children_live(a) && now >= a->hello_ns + HELLO_PAUSE_MS * NS_PER_MS && say_hello(a) != ERR_OK)
        end_with(a, WORKER_EXIT_FAILED, err_detail());
    if (a->welcome && now >= a->next_heartbeat_ns) {
        a->next_heartbeat_ns = now + a->heartbeat_ms * NS_PER_MS;
        send_heartbeat(a, false);
        if (a->echoes && now > a->heard_ns + WORKER_LINK_LOST_MS * NS_PER_MS)
            lose_coordinator(a, "silent for 30 s", now);
    }
    if (!a->welcome && !a->rejoin && now > a->hello_ns + HELLO_AGAIN_MS * NS_PER_MS)
        a->rejoin = true;
    if (!a->welcome && now >= a->next_log_ns) {
        if (a->next_log_ns)
            LOG(WARN, AGENT, "no coordinator yet, still trying", "join=%s", a->opts->join);
        a->next_log_ns = now + WAITING_LOG_MS * NS_PER_MS;
    }
}

/* ---- the loop ---- */

static int poll_timeout_ms(const struct agent *a, uint64_t now)
{
    uint64_t until = now + 1000 * NS_PER_MS;
    if (a->welcome)
        until = a->next_heartbeat_ns;
    else if (a->rejoin && !children_live(a))
        until = MIN(until, a->hello_ns + HELLO_PAUSE_MS * NS_PER_MS);
    for (uint32_t i = 0; i < a->n_children; i++)
        if (a->children[i].kill_at_ns)
            until = MIN(until, a->children[i].kill_at_ns);
    return until <= now ? 0 : (int)((until - now) / NS_PER_MS) + 1;
}

static void wait_for_news(struct agent *a, uint64_t now)
{
    a->fds[0] = (struct pollfd){a->signal_fd, POLLIN, 0};
    a->fds[1] = (struct pollfd){(int)a->opts->parent_fd, POLLIN, 0};
    a->fds[2] = (struct pollfd){link_client_fd(a->link), POLLIN, 0};
    a->fds[3] = (struct pollfd){a->watch ? gpu_watch_fd(a->watch) : -1, POLLIN, 0};
    for (uint32_t i = 0; i < a->n_children; i++)
        a->fds[FIXED_FDS + i] = (struct pollfd){a->children[i].pidfd, POLLIN, 0};
    poll(a->fds, FIXED_FDS + a->n_children, poll_timeout_ms(a, now));
    a->wakeups++;
    if (a->fds[0].revents) {
        struct signalfd_siginfo info;
        if (read(a->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
            end_with(a, WORKER_EXIT_OK, strsignal((int)info.ssi_signo));
    }
    if (a->fds[1].revents)
        end_with(a, WORKER_EXIT_ORPHAN, "the parent process is gone");
}

static void run(struct agent *a)
{
    while (!a->quit) {
        uint64_t now = clock_ns();
        keep_link(a, now);
        drain(a, now);
        wait_for_news(a, now);
        now = clock_ns();
        take_gpu_news(a);
        watch_children(a, now);
        drain(a, now);
    }
}

/* No child outlives the agent: SIGTERM and two seconds, or SIGKILL at once when the parent is gone. */
static void end_children(struct agent *a)
{
    stop_all(a, clock_ns());
    for (uint32_t i = 0; a->exit_code == WORKER_EXIT_ORPHAN && i < a->n_children; i++)
        child_kill(&a->children[i]);
    while (children_live(a)) {
        for (uint32_t i = 0; i < a->n_children; i++)
            a->fds[i] = (struct pollfd){a->children[i].pidfd, POLLIN, 0};
        poll(a->fds, a->n_children, 50);
        watch_children(a, clock_ns());
    }
}

static enum err open_signals(struct agent *a)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL); /* before any thread exists, so that every thread and child has it */
    if (a->opts->parent_fd >= 0)
        sigdelset(&set, SIGINT);
    a->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
    if (a->signal_fd < 0 || pipe2(a->life_fds, O_CLOEXEC) != 0)
        return err_set(ERR_IO, "signalfd or pipe: %s", strerror(errno));
    if (a->opts->parent_fd >= 0)
        fcntl((int)a->opts->parent_fd, F_SETFD, FD_CLOEXEC);
    return ERR_OK;
}

/* ---- devices ---- */

/* NVML of the driver; RACKLM_NVML names another. The emulated worker has its own beside it: ../nvml (tests/tools/fake_nvml.c). */
static const char *nvml_library(char *out, size_t cap)
{
    const char *named = getenv("RACKLM_NVML");
    ssize_t n = readlink("/proc/self/exe", out, cap);
    if (named && *named)
        return named;
    if (gpu_support() != GPU_SUPPORT_EMULATED || n <= 0 || (size_t)n == cap)
        return NULL;
    out[n] = '\0';
    char *slash = strrchr(out, '/');
    snprintf(slash ? slash : out, slash ? cap - (size_t)(slash - out) : cap, "/../nvml/libnvidia-ml.so.1");
    return out;
}

/* A CPU is taken where no GPU is: that must be seen in the log where GPUs may be expected. */
static enum err look_for_devices(struct agent *a)
{
    int allowed[INVENTORY_CPUS_MAX];
    char path[1024];
    const struct options *o = a->opts;
    enum { BACKEND_AUTO, BACKEND_CUDA = 4 };
    struct inventory_config c = {.root = "", .allowed = allowed, .n_allowed = inventory_allowed(allowed, INVENTORY_CPUS_MAX), .devices = o->devices,
                                 .threads = (uint32_t)o->threads, .device_memory = o->device_memory, .support = gpu_support(),
                                 .want = o->backend == BACKEND_AUTO   ? INVENTORY_WANT_ANY
                                         : o->backend == BACKEND_CUDA ? INVENTORY_WANT_GPU
                                                                      : INVENTORY_WANT_CPU};
    if (inventory_needs_gpus(o->devices, c.want))
        TRY(gpu_info_open("", nvml_library(path, sizeof(path)), getenv("CUDA_VISIBLE_DEVICES"), &a->gpus));
    c.gpus = a->gpus;
    if (a->gpus)
        inventory_why_no_gpu(&c, a->gpu_note, sizeof(a->gpu_note));
    if (a->gpu_note[0] && a->gpus->state == GPU_INFO_NONE) { /* nobody misses them */
        LOG(DEBUG, AGENT, "no GPU", "why=\"%s\"", a->gpu_note);
        a->gpu_note[0] = '\0';
    }
    TRY(inventory_read(&c, &a->inventory));
    if (a->gpu_note[0])
        LOG(WARN, AGENT, "GPUs are not used", "why=\"%s\"", a->gpu_note);
    for (uint32_t k = 0; k < a->inventory.n_devices; k++) {
        const struct inventory_device *d = &a->inventory.devices[k];
        const struct gpu *g = gpu_of(a, d);
        if (g)
            LOG(INFO, AGENT, "GPU", "device=%s kind=%s model=\"%s\" uuid=%s bus_id=%s sm=%u memory=%llu free=%llu budget=%llu numa=%d driver=%s cuda=%u.%u", d->name,
                device_kind_name(d->kind), g->name, g->uuid, g->bus_id, g->sm, (unsigned long long)g->memory_bytes, (unsigned long long)g->free_bytes,
                (unsigned long long)d->memory_bytes, g->numa, a->gpus->driver, a->gpus->cuda_version / 1000, a->gpus->cuda_version % 1000 / 10);
    }
    return ERR_OK;
}

/* Nothing of NVML is needed where no GPU is offered. */
static enum err watch_gpus(struct agent *a)
{
    for (uint32_t k = 0; k < a->inventory.n_devices; k++)
        if (a->inventory.devices[k].kind != DEVICE_CPU)
            return gpu_watch_create(a->gpus, &a->watch);
    gpu_info_close(&a->gpus);
    return ERR_OK;
}

int agent_main(struct options *o)
{
    enum err e;
    struct agent *a = calloc(1, sizeof(*a));
    if (!a) {
        err_set(ERR_NOMEM, "no memory for the agent");
        LOG(ERROR, AGENT, "leaving", "status=%d why=\"%s\"", WORKER_EXIT_FAILED, err_detail());
        return WORKER_EXIT_FAILED;
    }
    a->opts = o;
    a->signal_fd = a->life_fds[0] = a->life_fds[1] = -1;
    a->heartbeat_ms = 500;
    arena_init(&a->arena, 64 << 20);
    rng_system(&a->peer_id, sizeof(a->peer_id));
    TRY_GOTO(open_signals(a), fail);
    TRY_GOTO(agent_defaults(o), fail);
    TRY_GOTO(look_for_devices(a), fail);
    TRY_GOTO(watch_gpus(a), fail);
    TRY_GOTO(keys_read_file(o->key_file, &a->key), fail);
    TRY_GOTO(link_context_create(NULL, NULL, &a->links), fail);
    TRY_GOTO(say_hello(a), fail);
    run(a);
fail:
    if (!a->quit && e != ERR_AUTH && e != ERR_FORBIDDEN && e != ERR_IO && e != ERR_NOMEM) { /* a wrong option: the line that a person looks for */
        fprintf(stderr, "racklm-worker: %s\n", err_detail());
        a->quit = true;
        a->exit_code = WORKER_EXIT_USAGE;
    }
    if (!a->quit) /* never got as far as the loop */
        end_with(a, e == ERR_AUTH || e == ERR_FORBIDDEN ? WORKER_EXIT_REFUSED : WORKER_EXIT_FAILED, err_detail());
    end_children(a);
    int code = a->exit_code;
    link_client_close(&a->link);
    link_context_destroy(&a->links);
    for (int i = 0; i < 2; i++)
        if (a->life_fds[i] >= 0)
            close(a->life_fds[i]);
    if (a->signal_fd >= 0)
        close(a->signal_fd);
    if (gpu_watch_destroy(&a->watch))
        gpu_info_close(&a->gpus);
    inventory_deinit(&a->inventory);
    arena_deinit(&a->arena);
    free(a);
    return code;
}
