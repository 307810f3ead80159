/* The front's thread: joins the three streams of its loop (HTTP requests, token events, drain) and owns what they need. See front.h. */
#include "coordinator/front.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "coordinator/api.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { EVENTS_A_TURN = 256, KEEP_ALIVE_MS = 2000 };

struct front {
    struct front_config cfg;
    struct api api;
    struct http *http;
    pthread_t thread;
    bool running;
    int wake_fd;          /* eventfd: drain or stop was asked for */
    atomic_bool drain, stop;
    char url[128];
};

static void on_request(void *arg, struct http_exchange *x)
{
    struct front *f = arg;
    api_handle(&f->api, x);
    if (api_n_open(&f->api))
        http_timer(f->http, KEEP_ALIVE_MS, api_tick, &f->api);
}

static void on_gone(void *arg, struct http_exchange *x)
{
    struct front *f = arg;
    api_gone(&f->api, x);
}

static int on_head(void *arg, const struct http_head *head, char *text, size_t cap)
{
    struct front *f = arg;
    return api_admit(&f->api, head, text, cap);
}

static void on_work(void *arg)
{
    struct front *f = arg;
    api_work_reap(f->api.work);
    if (api_n_open(&f->api))
        http_timer(f->http, KEEP_ALIVE_MS, api_tick, &f->api);
}

static void on_events(void *arg)
{
    struct front *f = arg;
    /* A bounded turn: requests are looked at between two of them. The descriptor stays readable while events are left. */
    struct token_event *ev;
    for (int i = 0; i < EVENTS_A_TURN && (ev = queue_pop(f->cfg.events)) != NULL; i++)
        api_event(&f->api, ev);
    api_flush(&f->api);
}

static void on_wake(void *arg)
{
    struct front *f = arg;
    uint64_t n;
    if (read(f->wake_fd, &n, sizeof(n)) < 0)
        return;
    if (atomic_load(&f->drain))
        f->api.draining = true;
    if (atomic_load(&f->stop))
        http_stop(f->http);
}

static void *run(void *arg)
{
    struct front *f = arg;
    http_run(f->http);
    return NULL;
}

static enum err start(struct front *f)
{
    const struct front_config *cfg = &f->cfg;
    for (uint32_t i = 0; i < cfg->n_deployments; i++)
        TRY(deployment_load_text(&cfg->deployments[i]));
    f->api.opts = cfg->opts;
    f->api.deployments = cfg->deployments;
    f->api.n_deployments = cfg->n_deployments;
    f->api.health = cfg->health;
    f->api.health_arg = cfg->health_arg;
    TRY(api_init(&f->api));
    struct http_config http = {.host = cfg->opts->host, .port = (uint16_t)cfg->opts->port, .body_max = cfg->opts->body_max,
                               .timeout_ms = cfg->opts->http_timeout_ms, .connections_max = (uint32_t)cfg->opts->connections_max,
                               .admit = on_head, .handle = on_request, .gone = on_gone, .arg = f};
    TRY(http_create(&http, &f->http));
    f->api.http = f->http;
    bool v6 = strchr(cfg->opts->host, ':') != NULL;
    snprintf(f->url, sizeof(f->url), v6 ? "http://[%s]:%u" : "http://%s:%u", cfg->opts->host, http_port(f->http));
    f->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (f->wake_fd < 0)
        return err_set(ERR_IO, "no eventfd for the front");
    TRY(http_watch_fd(f->http, f->wake_fd, on_wake, f));
    TRY(http_watch_fd(f->http, queue_fd(cfg->events), on_events, f));
    TRY(api_work_create(&f->api.work));
    TRY(http_watch_fd(f->http, api_work_fd(f->api.work), on_work, f));
    if (pthread_create(&f->thread, NULL, run, f) != 0)
        return err_set(ERR_NOMEM, "no thread for the front");
    f->running = true;
    LOG(INFO, FRONT, "listening", "url=%s keys=%u", f->url, f->api.n_keys);
    return ERR_OK;
}

enum err front_create(const struct front_config *cfg, struct front **out)
{
    struct front *f = calloc(1, sizeof(*f));
    if (!f)
        return err_set(ERR_NOMEM, "no memory for the front");
    f->cfg = *cfg;
    f->wake_fd = -1;
    enum err e = start(f);
    if (e != ERR_OK)
        front_destroy(&f);
    *out = f;
    return e;
}

static void wake(struct front *f)
{
    uint64_t one = 1;
    if (write(f->wake_fd, &one, sizeof(one)) < 0)
        LOG(ERROR, FRONT, "the front cannot be woken", "fd=%d", f->wake_fd);
}

void front_destroy(struct front **fp)
{
    struct front *f = *fp;
    if (!f)
        return;
    if (f->running) {
        atomic_store(&f->stop, true);
        wake(f);
        pthread_join(f->thread, NULL);
    }
    http_destroy(&f->http); /* closing connections cancels their generations */
    api_work_destroy(&f->api.work);
    api_deinit(&f->api);
    if (f->wake_fd >= 0)
        close(f->wake_fd);
    free(f);
    *fp = NULL;
}

const char *front_url(const struct front *f)
{
    return f->url;
}

void front_drain(struct front *f)
{
    atomic_store(&f->drain, true);
    wake(f);
}
