/* See api_work.h. Two queues: jobs go in, done ones come out. A pointer to `stop` in the first one ends the thread. */
#include "coordinator/api_work.h"

#include "base/check.h"
#include "base/queue.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>

enum { JOBS_MAX = 64 };
static const size_t BYTES_MAX = (size_t)256 << 20;

struct api_work {
    struct queue *in, *out;
    pthread_t thread;
    bool running;
    unsigned n_jobs; /* in either queue, or running: the front's count */
    size_t bytes;
    int stop;
};

static void *work(void *arg)
{
    struct api_work *w = arg;
    struct pollfd p = {.fd = queue_fd(w->in), .events = POLLIN};
    for (;;) {
        struct api_job *j = queue_pop(w->in);
        if (!j) {
            poll(&p, 1, -1);
            continue;
        }
        if ((void *)j == &w->stop)
            return NULL;
        if (!atomic_load(&j->cancelled))
            j->run(j);
        enum err e = queue_push(w->out, j);
        ASSERT(e == ERR_OK); /* as much room as there are jobs */
    }
}

enum err api_work_create(struct api_work **out)
{
    struct api_work *w = calloc(1, sizeof(*w));
    if (!w)
        return err_set(ERR_NOMEM, "no memory for the front's worker");
    enum err e = queue_create(JOBS_MAX + 1, &w->in);
    if (e == ERR_OK)
        e = queue_create(JOBS_MAX, &w->out);
    if (e == ERR_OK && pthread_create(&w->thread, NULL, work, w) != 0)
        e = err_set(ERR_NOMEM, "no thread for the front's worker");
    w->running = e == ERR_OK;
    if (e != ERR_OK)
        api_work_destroy(&w);
    *out = w;
    return e;
}

static void reap(struct api_work *w, struct api_job *j)
{
    w->n_jobs--;
    w->bytes -= j->bytes;
    j->done(j);
}

void api_work_reap(struct api_work *w)
{
    struct api_job *j = queue_pop(w->out); /* one a turn of the loop: others wait for it, too */
    if (j)
        reap(w, j);
}

void api_work_destroy(struct api_work **wp)
{
    struct api_work *w = *wp;
    if (!w)
        return;
    if (w->running) {
        struct api_job *j;
        while ((j = queue_pop(w->in)) != NULL) {
            atomic_store(&j->cancelled, true);
            reap(w, j);
        }
        enum err e = queue_push(w->in, &w->stop);
        ASSERT(e == ERR_OK);
        pthread_join(w->thread, NULL);
        while ((j = queue_pop(w->out)) != NULL) {
            atomic_store(&j->cancelled, true);
            reap(w, j);
        }
    }
    queue_destroy(&w->in);
    queue_destroy(&w->out);
    free(w);
    *wp = NULL;
}

int api_work_fd(const struct api_work *w)
{
    return queue_fd(w->out);
}

bool api_work_submit(struct api_work *w, struct api_job *j)
{
    if (w->n_jobs >= JOBS_MAX || w->bytes + j->bytes > BYTES_MAX || queue_push(w->in, j) != ERR_OK)
        return false;
    w->n_jobs++;
    w->bytes += j->bytes;
    return true;
}
