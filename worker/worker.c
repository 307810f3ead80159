/* The worker's loop. One message at a time leaves the inbox; while a step runs, or the weights load, `tick` (called from inside them) keeps
 * reading the link: steps wait in the inbox, a RESET or an end is taken note of at once and aborts the communicator.
 *
 * Epochs: a replica's communicator lives for one. Whatever fails is reported once (WORKER_ERROR); then the worker drops every step
 * until RESET brings the next epoch. Recovery is the coordinator's.
 *
 * Threads: the main thread does everything and uses link, runner and communicator; the runner's pool computes with it; a watcher thread waits
 * for SIGTERM and for the end of the parent, and only sets a flag, writes an eventfd, or ends the process. */
#include "worker/worker.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/link.h"
#include "worker/model_runner.h"
#include "worker/spec.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum {
    TICK_MS = 20,             /* how often the link is read inside a step: how late a RESET may be heard */
    PROGRESS_MS = 100,        /* between two LOAD_PROGRESS */
    SPIN_US = 300,            /* of the pool's threads, where they own their cores */
    DEVICE_POLL_US = 20,      /* while a device works on a step and nothing else is to do */
    STOP_GRACE_MS = 700,      /* SIGTERM in the middle of a step: the step may end */
    INBOX_SPARE = 8,          /* over the pp + 1 steps that an engine has in flight */
    MESSAGE_MAX = 256 << 20,  /* decoded */
};

enum state { STATE_LOADING, STATE_CONNECTING, STATE_SERVING, STATE_FAILED };

struct letter {
    struct arena arena;
    struct msg msg;
};

struct worker {
    const struct options *opts;
    struct spec spec;
    const struct msg_start_worker *start; /* &spec.start */
    struct link_context *links;
    struct link_client *link;
    struct runner *runner;
    struct comm *comm; /* NULL where tp = pp = 1 */
    struct comm_addr address;
    enum state state;
    uint64_t epoch, step_id;
    uint64_t reset_epoch; /* a RESET that waits in the inbox: older steps are not worth running */

    struct letter *inbox; /* ring; the one after the last is being received into */
    uint32_t inbox_cap, inbox_first, inbox_n;

    uint64_t progress, next_tick_ns, next_heartbeat_ns, next_progress_ns, heard_ns;
    bool echoes; /* the engine answers heartbeats, so its silence means something */
    int stop_fd;
    bool quit;
    int exit_code;
    char last_word[SPEC_TEXT_MAX];
};

static atomic_int stop_asked;

/* ---- the watcher ---- */

struct watch {
    int signal_fd, parent_fd, stop_fd;
};

static void *watcher(void *p)
{
    struct watch *w = p;
    struct pollfd fds[2] = {{w->signal_fd, POLLIN, 0}, {w->parent_fd, POLLIN, 0}};
    for (;;) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return NULL;
        if (fds[1].revents) /* nothing of ours survives the process, so there is nothing to tidy up */
            _exit(WORKER_EXIT_ORPHAN);
        if (fds[0].revents)
            break;
    }
    uint64_t one = 1;
    atomic_store(&stop_asked, 1);
    ssize_t put = write(w->stop_fd, &one, sizeof(one));
    (void)put;
    fds[0].fd = -1;
    uint64_t end = clock_ns() + STOP_GRACE_MS * NS_PER_MS;
    for (uint64_t now; (now = clock_ns()) < end;)
        if (poll(fds, 2, (int)((end - now) / NS_PER_MS) + 1) > 0)
            break;
    _exit(WORKER_EXIT_OK);
}

static enum err start_watcher(struct worker *w)
{
    static struct watch watch; /* outlives worker_main: the thread ends with the process */
    sigset_t set;
    pthread_t thread;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    sigdelset(&set, SIGINT); /* a terminal's Ctrl-C goes to the whole group; who started us decides */
    w->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    watch = (struct watch){signalfd(-1, &set, SFD_CLOEXEC), (int)w->opts->parent_fd, w->stop_fd};
    if (w->stop_fd < 0 || watch.signal_fd < 0)
        return err_set(ERR_IO, "eventfd or signalfd: %s", strerror(errno));
    if (pthread_create(&thread, NULL, watcher, &watch) != 0)
        return err_set(ERR_NOMEM, "no thread to watch for signals");
    pthread_detach(thread);
    return ERR_OK;
}

/* ---- ending ---- */

static void end_with(struct worker *w, int code, const char *why)
{
    if (w->quit)
        return;
    w->quit = true;
    w->exit_code = code;
    snprintf(w->last_word, sizeof(w->last_word), "%s", why);
    if (w->comm)
        comm_abort(w->comm);
}

/* ---- the link ---- */

static void send_msg(struct worker *w, const struct msg *m)
{
    enum err e = link_client_send(w->link, m);
    if (e == ERR_AUTH)
        end_with(w, WORKER_EXIT_REFUSED, err_detail());
    else if (e != ERR_OK)
        LOG(WARN, WORKER, "message not sent", "type=%d error=\"%s\"", (int)m->type, err_detail());
}

/* Before the text is used for anything else: keeps it. */
static void send_error(struct worker *w, enum err e, uint64_t step_id, bool fatal)
{
    char text[SPEC_TEXT_MAX];
    snprintf(text, sizeof(text), "%s", err_detail()[0] ? err_detail() : err_text(e));
    struct msg m = {.type = MSG_WORKER_ERROR,
                    .worker_error = {.epoch = w->epoch, .step_id = step_id, .err = e, .text = text, .fatal = fatal}};
    send_msg(w, &m);
    LOG(ERROR, WORKER, fatal ? "cannot serve" : "epoch failed", "epoch=%llu step=%llu error=%s detail=\"%s\"",
        (unsigned long long)w->epoch, (unsigned long long)step_id, err_name(e), text);
    if (fatal)
        end_with(w, e == ERR_DEVICE ? WORKER_EXIT_GPU : WORKER_EXIT_FAILED, text);
    w->state = STATE_FAILED;
}

static void refused(struct worker *w, const struct msg_refuse *r)
{
    char text[SPEC_TEXT_MAX];
    bool version = r->err == ERR_VERSION;
    if (version)
        snprintf(text, sizeof(text), "the engine speaks protocol versions %u to %u, this worker %d to %d", r->version_min,
                 r->version_max, (int)PROTO_VERSION_MIN, (int)PROTO_VERSION_MAX);
    else
        snprintf(text, sizeof(text), "the engine does not want this worker: %.400s", r->text ? r->text : "");
    end_with(w, version || r->err == ERR_AUTH ? WORKER_EXIT_REFUSED : WORKER_EXIT_ORPHAN, text);
}

/* True when the message is done with; the others wait in the inbox for their turn. */
static bool take_at_once(struct worker *w, const struct msg *m)
{
    switch (m->type) {
    case MSG_HEARTBEAT:
        w->echoes = true;
        return true;
    case MSG_WELCOME:
        return true;
    case MSG_REFUSE:
        refused(w, &m->refuse);
        return true;
    case MSG_SHUTDOWN:
        end_with(w, WORKER_EXIT_OK, "stopped");
        return true;
    case MSG_RESET:
        if (m->reset.epoch > w->epoch) {
            w->reset_epoch = MAX(w->reset_epoch, m->reset.epoch);
            if (w->comm)
                comm_abort(w->comm);
        }
        return false;
    case MSG_STEP:
    case MSG_COMM_PEERS:
        return false;
    default:
        LOG(WARN, WORKER, "message ignored", "type=%d", (int)m->type);
        return true;
    }
}

static void drain(struct worker *w)
{
    while (!w->quit && w->inbox_n < w->inbox_cap) {
        struct letter *l = &w->inbox[(w->inbox_first + w->inbox_n) % w->inbox_cap];
        arena_reset(&l->arena);
        enum err e = link_client_recv(w->link, &l->arena, &l->msg);
        if (e == ERR_UNAVAILABLE)
            return;
        if (e == ERR_AUTH || e == ERR_IO || e == ERR_NOMEM) {
            end_with(w, e == ERR_AUTH ? WORKER_EXIT_REFUSED : WORKER_EXIT_FAILED, err_detail());
            return;
        }
        if (e != ERR_OK) {
            LOG(WARN, WORKER, "bad message", "error=\"%s\"", err_detail());
            continue;
        }
        w->heard_ns = clock_ns();
        if (!take_at_once(w, &l->msg))
            w->inbox_n++;
    }
}

/* The sign of life, and the look whether anybody is there to see it. */
static void heartbeat(struct worker *w, uint64_t now)
{
    if (now < w->next_heartbeat_ns)
        return;
    w->next_heartbeat_ns = now + MAX(w->start->heartbeat_ms, 10) * NS_PER_MS;
    struct msg m = {.type = MSG_HEARTBEAT, .heartbeat = {.progress = w->progress, .step_id = w->step_id, .epoch = w->epoch}};
    send_msg(w, &m);
    if (w->echoes && now > w->heard_ns + WORKER_LINK_LOST_MS * NS_PER_MS)
        end_with(w, WORKER_EXIT_ORPHAN, "the engine has been silent for 30 s");
}

/* Called often from inside loading, steps and waits. */
static void tick(void *arg)
{
    struct worker *w = arg;
    uint64_t now = clock_ns();
    if (now < w->next_tick_ns)
        return;
    w->next_tick_ns = now + TICK_MS * NS_PER_MS;
    if (atomic_load(&stop_asked))
        end_with(w, WORKER_EXIT_OK, "stopped");
    drain(w);
    heartbeat(w, now);
}

/* ---- epochs ---- */

static bool alone(const struct worker *w)
{
    return w->start->tp * w->start->pp == 1;
}

static void send_ready(struct worker *w)
{
    struct runner_info i;
    runner_info(w->runner, &i);
    struct msg m = {.type = MSG_WORKER_READY,
                    .worker_ready = {.epoch = w->epoch, .kv_blocks = i.kv_blocks, .weights_bytes = i.weights_bytes,
                                     .weights_bytes_planned = i.weights_bytes_planned, .kv_bytes = i.kv_bytes,
                                     .file_bytes_read = i.file_bytes_read, .load_ms = i.load_ms,
                                     .backend = (char *)(uintptr_t)i.backend, .address = w->address.bytes,
                                     .address_len = w->address.len}};
    send_msg(w, &m);
}

/* Leaves the epoch and offers a new communicator for `epoch`. */
static void enter_epoch(struct worker *w, uint64_t epoch)
{
    runner_set_comm(w->runner, NULL);
    comm_destroy(&w->comm);
    enum err reset_err = runner_reset(w->runner);
    w->epoch = epoch;
    w->state = STATE_CONNECTING;
    if (w->reset_epoch <= epoch)
        w->reset_epoch = 0;
    if (reset_err != ERR_OK) {
        send_error(w, reset_err, 0, true);
        return;
    }
    if (!alone(w)) {
        struct comm_config cfg = {.rank = w->start->stage * w->start->tp + w->start->tp_rank, .tp = w->start->tp,
                                  .pp = w->start->pp, .epoch = epoch, .own_core = w->spec.own_core,
                                  .net_device = w->opts->comm_device};
        enum err e = runner_comm_create(w->runner, &cfg, &w->comm, &w->address);
        if (e != ERR_OK) {
            send_error(w, e, 0, true);
            return;
        }
        comm_set_idle(w->comm, tick, w, TICK_MS);
    }
    send_ready(w);
}

/* A RESET may come twice (the engine answers a WORKER_READY of an old epoch with one): the second is answered with the same address. */
static void reset(struct worker *w, uint64_t epoch)
{
    if (epoch > w->epoch || (epoch == w->epoch && w->state == STATE_FAILED))
        enter_epoch(w, epoch);
    else if (epoch == w->epoch && w->state == STATE_CONNECTING)
        send_ready(w);
}

static void connect_peers(struct worker *w, const struct msg_comm_peers *p)
{
    enum err e = ERR_OK;
    struct comm_addr *addrs = NULL;
    if (p->epoch != w->epoch || w->state != STATE_CONNECTING)
        return;
    if (!alone(w)) {
        if (p->n != w->start->tp * w->start->pp) {
            e = err_set(ERR_PROTOCOL, "addresses of %u ranks, of %u expected", p->n, w->start->tp * w->start->pp);
            goto fail;
        }
        addrs = calloc(p->n, sizeof(*addrs));
        if (!addrs) {
            e = err_set(ERR_NOMEM, "addresses of %u ranks", p->n);
            goto fail;
        }
        for (uint32_t r = 0; r < p->n; r++) {
            addrs[r].len = MIN(p->address_len[r], COMM_ADDRESS_MAX);
            memcpy(addrs[r].bytes, p->address[r], addrs[r].len);
        }
        TRY_GOTO(comm_connect(w->comm, addrs, clock_ns() + w->start->step_timeout_ms * NS_PER_MS), fail);
        comm_set_deadline(w->comm, clock_ns() + w->start->step_timeout_ms * NS_PER_MS);
        TRY_GOTO(runner_set_comm(w->runner, w->comm), fail);
    }
    free(addrs);
    w->state = STATE_SERVING;
    struct msg m = {.type = MSG_COMM_READY, .comm_ready = {.epoch = w->epoch}};
    send_msg(w, &m);
    LOG(INFO, WORKER, "ready", "epoch=%llu ranks=%u", (unsigned long long)w->epoch, w->start->tp * w->start->pp);
    return;
fail:
    free(addrs);
    if (!w->quit && w->reset_epoch == 0)
        send_error(w, e, 0, e == ERR_DEVICE);
    w->state = STATE_FAILED;
}

static void step_failed(struct worker *w, enum err e)
{
    if (!w->quit && w->reset_epoch == 0) /* a RESET is on its way: the engine knows */
        send_error(w, e, w->step_id, e == ERR_DEVICE);
    w->state = STATE_FAILED;
}

/* The oldest step that was begun: its result goes out. */
static bool finish_step(struct worker *w)
{
    struct msg m = {.type = MSG_STEP_RESULT};
    bool has_result = false;
    enum err e = runner_finish(w->runner, &m.step_result, &has_result);
    w->progress++;
    if (e != ERR_OK) {
        step_failed(w, e);
        return false;
    }
    if (has_result)
        send_msg(w, &m);
    return true;
}

static void finish_ready(struct worker *w)
{
    while (w->state == STATE_SERVING && runner_in_flight(w->runner) && runner_is_ready(w->runner))
        if (!finish_step(w))
            return;
}

static void run_step(struct worker *w, const struct step *s)
{
    if (s->epoch != w->epoch || w->state != STATE_SERVING || w->reset_epoch > w->epoch)
        return;
    if (w->comm)
        comm_set_deadline(w->comm, clock_ns() + w->start->step_timeout_ms * NS_PER_MS);
    while (runner_in_flight(w->runner) && !runner_may_begin(w->runner, s))
        if (!finish_step(w))
            return;
    w->step_id = s->step_id;
    check_context("epoch %llu step %llu rank %u", (unsigned long long)s->epoch, (unsigned long long)s->step_id,
                  w->start->stage * w->start->tp + w->start->tp_rank);
    enum err e = runner_begin(w->runner, s);
    if (e != ERR_OK)
        step_failed(w, e);
    else
        finish_ready(w);
}

/* ---- loading ---- */

static bool on_progress(void *arg, uint64_t done, uint64_t total)
{
    struct worker *w = arg;
    uint64_t now = clock_ns();
    w->progress++;
    tick(w);
    if (now >= w->next_progress_ns || done == total) {
        w->next_progress_ns = now + PROGRESS_MS * NS_PER_MS;
        struct msg m = {.type = MSG_LOAD_PROGRESS, .load_progress = {.bytes_done = done, .bytes_total = total}};
        send_msg(w, &m);
    }
    return !w->quit;
}

static enum err load(struct worker *w)
{
    static const char *const backends[] = {"auto", "cpu", "ref", "ref_f32", "cuda"};
    const struct msg_start_worker *s = w->start;
    if (s->n_share != s->tp || s->n_layer_first != s->pp + 1 || s->kv_type > KV_FP8)
        return err_set(ERR_PROTOCOL, "START_WORKER with %u shares for tp %u, %u layer bounds for pp %u, KV type %u", s->n_share,
                       s->tp, s->n_layer_first, s->pp, s->kv_type);
    struct runner_config cfg = {
        .model_path = s->model_path, .model_bytes = s->model_bytes, .tp = s->tp, .pp = s->pp, .tp_rank = s->tp_rank,
        .stage = s->stage, .share = s->share, .layer_first = s->layer_first,
        .kernels = w->spec.kind == DEVICE_CPU ? kernels_by_name(backends[w->opts->backend]) : kernels_cpu(), .use_cuda = w->spec.kind != DEVICE_CPU,
        .cuda_ordinal = w->spec.ordinal, .deterministic = s->deterministic, .n_threads = MAX(w->spec.n_threads, 1),
        .spin_us = w->spec.own_core ? SPIN_US : 0, .ctx = s->ctx, .max_seqs = s->max_seqs,
        .max_step_tokens = s->max_step_tokens, .kv_type = (enum kv_type)s->kv_type, .memory_bytes = w->spec.memory_bytes,
        .kv_memory_bytes = s->kv_memory_bytes, .progress = on_progress, .progress_arg = w,
        .tick = tick, .tick_arg = w,
    };
    ASSERT(cfg.kernels);
    return runner_create(&cfg, &w->runner);
}

/* ---- the process ---- */

static enum err open_link(struct worker *w)
{
    struct key_file key;
    TRY(keys_read_file(w->opts->key_file, &key));
    TRY(link_context_create(NULL, NULL, &w->links));
    TRY(link_client_open(w->links, w->start->endpoint, &key, &w->link));
    char host[128] = "";
    gethostname(host, sizeof(host) - 1);
    struct msg m = {.type = MSG_HELLO,
                    .hello = {.version_min = PROTO_VERSION_MIN, .version_max = PROTO_VERSION_MAX, .role = "worker", .host = host,
                              .peer_id = w->start->worker_id, .epoch = w->start->epoch, .pid = (uint32_t)getpid()}};
    return link_client_send(w->link, &m);
}

static enum err make_inbox(struct worker *w)
{
    w->inbox_cap = w->start->pp + 1 + INBOX_SPARE;
    w->inbox = calloc(w->inbox_cap, sizeof(*w->inbox));
    if (!w->inbox)
        return err_set(ERR_NOMEM, "an inbox of %u messages", w->inbox_cap);
    for (uint32_t i = 0; i < w->inbox_cap; i++)
        arena_init(&w->inbox[i].arena, MESSAGE_MAX);
    return ERR_OK;
}

/* Until something comes in, a heartbeat is due, or the process is to stop. */
static void wait_for_news(struct worker *w)
{
    uint64_t now = clock_ns();
    if (w->inbox_n > 0 || w->quit)
        return;
    if (w->state == STATE_SERVING && runner_in_flight(w->runner)) {
        struct timespec ts = {0, DEVICE_POLL_US * 1000};
        if (!runner_is_ready(w->runner))
            nanosleep(&ts, NULL);
        finish_ready(w);
        return;
    }
    struct pollfd fds[2] = {{link_client_fd(w->link), POLLIN, 0}, {w->stop_fd, POLLIN, 0}};
    if (now < w->next_heartbeat_ns)
        poll(fds, 2, (int)((w->next_heartbeat_ns - now) / NS_PER_MS) + 1);
    if (atomic_load(&stop_asked))
        end_with(w, WORKER_EXIT_OK, "stopped");
}

static void act(struct worker *w)
{
    if (w->inbox_n == 0 || w->quit)
        return;
    struct letter *l = &w->inbox[w->inbox_first];
    switch (l->msg.type) {
    case MSG_STEP:
        run_step(w, &l->msg.step);
        break;
    case MSG_COMM_PEERS:
        connect_peers(w, &l->msg.comm_peers);
        break;
    default: /* take_at_once lets nothing else in */
        reset(w, l->msg.reset.epoch);
    }
    w->inbox_first = (w->inbox_first + 1) % w->inbox_cap;
    w->inbox_n--;
}

static void serve(struct worker *w)
{
    while (!w->quit) {
        heartbeat(w, clock_ns());
        drain(w); /* also after every send: sending may swallow the edge of the link's descriptor */
        wait_for_news(w);
        drain(w);
        act(w);
    }
}

static void name_process(const struct worker *w)
{
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    char name[48];
    enum log_level level = LOG_INFO;
    snprintf(name, sizeof(name), "worker[%u.%u.%u]", w->start->replica, w->start->stage, w->start->tp_rank);
    log_level_parse(levels[w->opts->log_level], &level);
    log_init(name, level, w->opts->log_format == 1 ? LOG_JSON : LOG_TEXT);
    snprintf(name, sizeof(name), "racklm-w%u.%u", w->start->stage, w->start->tp_rank);
    prctl(PR_SET_NAME, name);
}

int worker_main(const struct options *o, int spec_fd)
{
    struct worker w = {.opts = o, .stop_fd = -1};
    struct arena arena;
    enum err e;
    arena_init(&arena, 16 << 20);
    TRY_GOTO(spec_read(spec_fd, &arena, &w.spec), fail);
    w.start = &w.spec.start;
    w.epoch = w.start->epoch;
    name_process(&w);
    TRY_GOTO(start_watcher(&w), fail);
    TRY_GOTO(make_inbox(&w), fail);
    TRY_GOTO(open_link(&w), fail);
    w.heard_ns = clock_ns();
    e = load(&w);
    if (e == ERR_OK)
        enter_epoch(&w, MAX(w.epoch, w.reset_epoch));
    else if (!w.quit)
        send_error(&w, e, 0, true);
    serve(&w);
fail:
    if (!w.quit) /* failed before there was a link to say so */
        end_with(&w, e == ERR_AUTH || e == ERR_FORBIDDEN ? WORKER_EXIT_REFUSED : WORKER_EXIT_FAILED, err_detail());
    if (w.exit_code != WORKER_EXIT_OK) {
        spec_leave_text(spec_fd, w.last_word);
        LOG(ERROR, WORKER, "leaving", "status=%d why=\"%s\"", w.exit_code, w.last_word);
    }
    if (w.exit_code == WORKER_EXIT_GPU) { /* what waits for such a GPU waits for ever: the system takes back what it had */
        link_client_close(&w.link);
        _exit(WORKER_EXIT_GPU);
    }
    if (w.runner)
        runner_set_comm(w.runner, NULL);
    comm_destroy(&w.comm);
    runner_destroy(&w.runner);
    link_client_close(&w.link);
    link_context_destroy(&w.links);
    for (uint32_t i = 0; w.inbox && i < w.inbox_cap; i++)
        arena_deinit(&w.inbox[i].arena);
    free(w.inbox);
    arena_deinit(&arena);
    return w.exit_code;
}
