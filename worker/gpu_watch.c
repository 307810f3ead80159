#include "worker/gpu_watch.h"

#include "base/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { ERRORS_MS = 500, STATE_MS = 10000, STATE_IDLE_MS = 60000, STOP_MS = 1000 };

struct gpu_watch {
    struct gpu_info *gpus; /* the caller's */
    struct gpu_info own;   /* the thread's, with the same NVML */
    pthread_t thread;
    int fd;

    pthread_mutex_t lock; /* for all below */
    pthread_cond_t cond;  /* to the thread: asked, stop, busy; from it: done */
    struct gpu seen[GPU_INFO_MAX];
    bool news, changed, busy, stop;
    uint64_t asked, done; /* looks: how many were asked for, and how many of them are finished */
};

static struct timespec after_ms(unsigned ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    t.tv_sec += ms / 1000 + t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

/* One look without the lock, then its result under it. */
static void look(struct gpu_watch *w, bool state, uint64_t asked)
{
    pthread_mutex_unlock(&w->lock);
    bool changed = gpu_info_poll(&w->own, clock_ns());
    changed |= state && gpu_info_refresh(&w->own);
    pthread_mutex_lock(&w->lock);
    w->done = asked;
    memcpy(w->seen, w->own.gpus, sizeof(w->seen));
    w->changed |= changed;
    if (state || changed) {
        uint64_t one = 1;
        w->news = true;
        ssize_t put = write(w->fd, &one, sizeof(one));
        (void)put; /* full: it is readable */
    }
    pthread_cond_broadcast(&w->cond);
}

static void *watcher(void *p)
{
    struct gpu_watch *w = p;
    uint64_t next_state_ns = clock_ns() + STATE_IDLE_MS * NS_PER_MS;
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        uint64_t asked = w->asked, now = clock_ns();
        bool busy = w->busy;
        if (busy && next_state_ns > now + STATE_MS * NS_PER_MS)
            next_state_ns = now + STATE_MS * NS_PER_MS;
        bool state = asked != w->done || now >= next_state_ns;
        if (state)
            next_state_ns = now + (busy ? STATE_MS : STATE_IDLE_MS) * NS_PER_MS;
        if (state || busy)
            look(w, state, asked);
        if (w->stop || w->asked != w->done || w->busy != busy)
            continue;
        struct timespec until = after_ms(busy ? ERRORS_MS : STATE_IDLE_MS);
        pthread_cond_timedwait(&w->cond, &w->lock, &until);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

enum err gpu_watch_create(struct gpu_info *gpus, struct gpu_watch **out)
{
    pthread_condattr_t attr;
    struct gpu_watch *w = calloc(1, sizeof(*w));
    *out = NULL;
    if (!w)
        return err_set(ERR_NOMEM, "the watch of %u GPUs", gpus->n);
    w->gpus = gpus;
    w->own = *gpus;
    w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->cond, &attr);
    pthread_condattr_destroy(&attr);
    if (w->fd >= 0 && pthread_create(&w->thread, NULL, watcher, w) == 0) {
        pthread_setname_np(w->thread, "gpus");
        *out = w;
        return ERR_OK;
    }
    enum err e = err_set(ERR_IO, "the watch of %u GPUs: %s", gpus->n, strerror(errno));
    if (w->fd >= 0)
        close(w->fd);
    free(w);
    return e;
}

bool gpu_watch_destroy(struct gpu_watch **wp)
{
    struct gpu_watch *w = *wp;
    if (!w)
        return true;
    *wp = NULL;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->lock);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until); /* the clock of pthread_timedjoin_np */
    until.tv_sec += STOP_MS / 1000;
    if (pthread_timedjoin_np(w->thread, NULL, &until) != 0) {
        pthread_detach(w->thread);
        return false;
    }
    close(w->fd);
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->lock);
    free(w);
    return true;
}

int gpu_watch_fd(const struct gpu_watch *w)
{
    return w->fd;
}

bool gpu_watch_take(struct gpu_watch *w, bool *changed)
{
    uint64_t n;
    ssize_t got = read(w->fd, &n, sizeof(n));
    (void)got;
    pthread_mutex_lock(&w->lock);
    bool news = w->news;
    *changed = w->changed;
    if (news)
        memcpy(w->gpus->gpus, w->seen, sizeof(w->seen));
    w->news = w->changed = false;
    pthread_mutex_unlock(&w->lock);
    return news;
}

void gpu_watch_set_busy(struct gpu_watch *w, bool busy)
{
    pthread_mutex_lock(&w->lock);
    if (w->busy != busy)
        pthread_cond_broadcast(&w->cond);
    w->busy = busy;
    pthread_mutex_unlock(&w->lock);
}

void gpu_watch_look(struct gpu_watch *w, unsigned timeout_ms)
{
    struct timespec until = after_ms(timeout_ms);
    pthread_mutex_lock(&w->lock);
    uint64_t mine = ++w->asked;
    pthread_cond_broadcast(&w->cond);
    while (w->done < mine && pthread_cond_timedwait(&w->cond, &w->lock, &until) == 0)
        ;
    pthread_mutex_unlock(&w->lock);
}
