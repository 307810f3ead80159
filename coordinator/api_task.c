/* Requests whose answer is computed from the body alone. A small one is answered at once; a large one goes to the front's worker thread, and its
 * client may leave meanwhile. */
#include "coordinator/api.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

struct task {
    struct api_client client;
    struct api_job job;
    struct api *api;
    struct http_exchange *x; /* NULL: the client left */
    api_task_fn *fn;
    char *body;
    size_t len;
    struct buf out;
    struct api_error e;
};

static void compute(struct task *t, const char *body, size_t len)
{
    json_t *o = api_parse_body(body, len, &t->e);
    if (o && !t->fn(t->api, o, &t->out, &t->e))
        api_error(&t->e, 503, NULL, "out of memory"); /* where nothing else was said */
    json_decref(o);
}

static void answer(struct task *t)
{
    if (t->e.status) {
        api_fail(t->x, &t->e);
        buf_deinit(&t->out);
    } else {
        api_reply_json(t->x, 200, &t->out);
    }
}

static struct task *of_job(struct api_job *j)
{
    return (struct task *)((char *)j - offsetof(struct task, job));
}

static void run(struct api_job *j)
{
    struct task *t = of_job(j);
    compute(t, t->body, t->len);
}

static void done(struct api_job *j)
{
    struct task *t = of_job(j);
    if (t->x) {
        http_set_user(t->x, NULL);
        answer(t);
    } else {
        buf_deinit(&t->out);
    }
    free(t->body);
    free(t);
}

static void gone(struct api_client *c)
{
    struct task *t = (struct task *)c;
    t->x = NULL;
    atomic_store(&t->job.cancelled, true);
}

static bool hand_over(struct api *a, struct http_exchange *x, api_task_fn *fn, const char *body, size_t len)
{
    struct task *t = calloc(1, sizeof(*t));
    char *copy = malloc(len);
    if (t && copy) {
        memcpy(copy, body, len);
        *t = (struct task){.client.gone = gone, .job = {.run = run, .done = done, .bytes = len}, .api = a, .x = x, .fn = fn, .body = copy, .len = len};
        buf_init(&t->out);
        if (api_work_submit(a->work, &t->job)) {
            http_body_done(x);
            http_set_user(x, &t->client);
            return true;
        }
    }
    free(copy);
    free(t);
    return false;
}

void api_task(struct api *a, struct http_exchange *x, api_task_fn *fn)
{
    size_t len;
    const char *body = http_body(x, &len);
    struct task t = {.api = a, .x = x, .fn = fn};
    if (len > API_INLINE_MAX && a->work) {
        if (hand_over(a, x, fn, body, len))
            return;
        api_error(&t.e, 429, NULL, "too many large requests wait to be read; try again later");
        api_fail(x, &t.e);
        return;
    }
    buf_init(&t.out);
    compute(&t, body, len);
    answer(&t);
}
