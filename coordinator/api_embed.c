/* See api_embed.h. */
#include "coordinator/api_embed.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"

#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

enum { FLOAT_TEXT = 16 }; /* bytes of a float in JSON, at most */

/* ---- life */

static uint64_t request_id(const struct embed *m, uint32_t input)
{
    return (uint64_t)m->serial << 32 | (uint64_t)m->slot << 12 | input;
}

static bool take_slot(struct embed *m)
{
    struct api *a = m->api;
    uint32_t slot = 0;
    while (slot < a->embeds_cap && a->embeds[slot])
        slot++;
    if (slot == a->embeds_cap) {
        uint32_t cap = a->embeds_cap ? a->embeds_cap * 2 : 16;
        struct embed **p = cap <= 1 << 20 ? realloc(a->embeds, cap * sizeof(*p)) : NULL;
        if (!p)
            return false;
        memset(p + a->embeds_cap, 0, (cap - a->embeds_cap) * sizeof(*p));
        a->embeds = p;
        a->embeds_cap = cap;
    }
    a->serial = a->serial % INT32_MAX + 1;
    m->serial = a->serial;
    m->slot = slot;
    a->embeds[slot] = m;
    a->n_embeds++;
    return true;
}

void embed_deinit(struct embed *m)
{
    for (uint32_t i = 0; i < m->n_inputs; i++) {
        tokens_deinit(&m->inputs[i].ids);
        buf_deinit(&m->inputs[i].json);
    }
    free(m->inputs);
    json_decref(m->documents);
}

static void destroy(struct embed *m)
{
    struct api *a = m->api;
    if (m->serial) {
        a->embeds[m->slot] = NULL;
        a->n_embeds--;
    }
    embed_deinit(m);
    free(m);
}

static void cancel_and_destroy(struct embed *m)
{
    for (uint32_t i = 0; i < m->n_sent; i++)
        if (!m->inputs[i].done)
            engine_cancel(m->inputs[i].engine, request_id(m, i));
    destroy(m);
}

static void gone(struct api_client *c)
{
    struct embed *m = (struct embed *)c;
    if (m->body) {
        m->x = NULL;
        atomic_store(&m->job.cancelled, true);
    } else {
        cancel_and_destroy(m);
    }
}

static void fail(struct embed *m, const struct api_error *e)
{
    struct http_exchange *x = m->x;
    http_set_user(x, NULL);
    cancel_and_destroy(m);
    api_fail(x, e);
}

bool embed_make_inputs(struct embed *m, size_t n, const char *param, struct api_error *e)
{
    if (n > EMBED_INPUTS_MAX)
        return api_error(e, 400, param, "`%s` makes %zu inputs, at most %d are taken", param, n, EMBED_INPUTS_MAX);
    m->inputs = calloc(n, sizeof(*m->inputs));
    m->n_inputs = m->inputs ? (uint32_t)n : 0;
    return m->inputs || api_error(e, 503, NULL, "out of memory");
}

/* ---- inputs to engines */

static struct request *make_request(const struct embed *m, uint32_t input)
{
    const struct tokens *t = &m->inputs[input].ids;
    struct request *r = request_create((uint32_t)t->n);
    if (!r)
        return NULL;
    memcpy(r->prompt, t->ids, t->n * sizeof(*r->prompt));
    r->id = request_id(m, input);
    r->arrival_ns = m->arrival_ns;
    r->kind = m->pooling != POOLING_NONE ? REQUEST_EMBED : REQUEST_SCORE;
    r->pooling = m->pooling;
    r->sampling = (struct sampling){.top_p = 1, .repetition_penalty = 1};
    if (r->kind == REQUEST_SCORE) {
        r->n_targets = ARRAY_LEN(m->targets);
        memcpy(r->targets, m->targets, sizeof(m->targets));
    }
    return r;
}

/* As many as the window has room for. A full queue is no error while others of this request are on their way, or (later) a
 * matter of the next tick. */
static bool feed(struct embed *m, bool first, struct api_error *e)
{
    uint32_t window = MIN((uint32_t)m->d->opts->max_seqs, (uint32_t)EMBED_WINDOW) * m->d->n_engines;
    while (m->n_sent < m->n_inputs && m->n_sent - m->n_done < window) {
        struct engine *engine = api_engine(m->d);
        if (!engine)
            return api_error(e, 503, NULL, "the server is stopping");
        struct request *r = make_request(m, m->n_sent);
        if (!r)
            return api_error(e, 503, NULL, "out of memory");
        enum err err = engine_submit(engine, r);
        if (err == ERR_OK) {
            m->inputs[m->n_sent++].engine = engine;
            continue;
        }
        request_destroy(&r);
        if (err != ERR_BUSY)
            return api_error(e, err_http_status(err), NULL, "%.300s", err_detail());
        if (first && m->n_sent == 0)
            return api_error(e, 429, NULL, "the queue is full (queue_max = %lld); try again later", (long long)m->d->opts->queue_max);
        return true;
    }
    return true;
}

void api_embed_tick(struct api *a)
{
    for (uint32_t i = 0; i < a->embeds_cap; i++) {
        struct embed *m = a->embeds[i];
        struct api_error e = {0};
        if (m && m->n_sent < m->n_inputs && !feed(m, false, &e))
            fail(m, &e);
    }
}

void api_embed_deinit(struct api *a)
{
    for (uint32_t i = 0; i < a->embeds_cap; i++)
        if (a->embeds[i])
            cancel_and_destroy(a->embeds[i]);
    free(a->embeds);
}

/* ---- embeddings */

static bool get_pooling(struct embed *m, struct api_error *e)
{
    static const enum pooling by_option[] = {POOLING_NONE, POOLING_MEAN, POOLING_LAST}; /* auto|mean|last */
    m->pooling = by_option[m->d->opts->pooling];
    if (m->pooling == POOLING_NONE)
        m->pooling = m->d->hp.pooling;
    if (m->pooling == POOLING_NONE)
        m->pooling = POOLING_LAST; /* a model for text: the last state has seen everything */
    if (m->pooling == POOLING_RANK)
        return api_error(e, 400, "model", "the model's file says that it is a reranker: use /v1/rerank, or start the server with --pooling to have embeddings of it");
    if (m->pooling == POOLING_CLS)
        return api_error(e, 400, "model", "the model's file asks for the pooling of an encoder (cls), which is not supported; --pooling chooses another");
    return true;
}

static bool get_format(struct embed *m, const json_t *o, struct api_error *e)
{
    const char *format = "float";
    int64_t dims = m->d->hp.dim;
    if (!api_get_str(o, "encoding_format", &format, e) || !api_get_int(o, "dimensions", 1, m->d->hp.dim, &dims, e))
        return false;
    m->base64 = strcmp(format, "base64") == 0;
    m->dims = (uint32_t)dims;
    return m->base64 || strcmp(format, "float") == 0 || api_error(e, 400, "encoding_format", "`encoding_format` must be `float` or `base64`");
}

static bool read_embeddings(struct embed *m, const json_t *o, struct api_error *e)
{
    const json_t *v = api_get(o, "input");
    struct generation g = {.d = m->d, .ctx = m->ctx}; /* carries the prompts */
    if (!get_pooling(m, e) || !get_format(m, o, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < (json_is_array(v) ? json_array_size(v) : 1); i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;
        if (json_is_string(one) && json_string_length(one) == 0)
            ok = api_error(e, 400, "input", "`input` holds an empty text");
    }
    ok = ok && api_get_prompts(o, "input", EMBED_INPUTS_MAX, &g, e) && embed_make_inputs(m, g.n_prompts, "input", e);
    for (uint32_t i = 0; i < g.n_prompts; i++) {
        if (ok)
            m->inputs[i].ids = g.prompts[i];
        else
            tokens_deinit(&g.prompts[i]);
        m->prompt_tokens += g.prompts[i].n;
    }
    free(g.prompts);
    uint64_t bytes = (uint64_t)m->n_inputs * m->dims * (m->base64 ? 6 : FLOAT_TEXT);
    if (ok && bytes > API_HELD_MAX)
        return api_error(e, 400, "input", "the answer to %u inputs of %u dimensions would be over %d MiB: send fewer at a time", m->n_inputs, m->dims,
                         API_HELD_MAX >> 20);
    return ok;
}

/* Cut, normalised, rendered. A vector of zeros stays one. */
static void put_vector(const struct embed *m, const float *v, struct buf *out)
{
    double sum = 0;
    for (uint32_t i = 0; i < m->dims; i++)
        sum += (double)v[i] * (double)v[i];
    double scale = sum > 0 ? 1 / sqrt(sum) : 0;
    if (!m->base64) {
        for (uint32_t i = 0; i < m->dims; i++)
            buf_printf(out, i ? ",%.9g" : "[%.9g", (double)(float)((double)v[i] * scale));
        buf_putc(out, ']');
        return;
    }
    size_t n = (size_t)m->dims * 4, cap = sodium_base64_ENCODED_LEN(n, sodium_base64_VARIANT_ORIGINAL);
    uint8_t *bytes = malloc(n);
    buf_putc(out, '"');
    if (!bytes || !buf_reserve(out, cap)) {
        out->failed = true;
        free(bytes);
        return;
    }
    for (uint32_t i = 0; i < m->dims; i++) {
        float f = (float)((double)v[i] * scale);
        uint32_t w;
        memcpy(&w, &f, 4);
        for (unsigned k = 0; k < 4; k++)
            bytes[i * 4 + k] = (uint8_t)(w >> 8 * k); /* little-endian */
    }
    sodium_bin2base64(out->data + out->len, cap, bytes, n, sodium_base64_VARIANT_ORIGINAL);
    out->len += strlen(out->data + out->len);
    free(bytes);
    buf_putc(out, '"');
}

static void answer_embeddings(struct embed *m, struct buf *out)
{
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < m->n_inputs; i++) {
        struct buf *json = &m->inputs[i].json;
        buf_printf(out, "%s{\"object\":\"embedding\",\"index\":%u,\"embedding\":", i ? "," : "", i);
        buf_append(out, json->data, json->len);
        buf_putc(out, '}');
        out->failed |= json->failed;
    }
    buf_puts(out, "],\"model\":");
    buf_json_str(out, m->d->names[0], strlen(m->d->names[0]));
    buf_printf(out, ",\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu}}", (unsigned long long)m->prompt_tokens, (unsigned long long)m->prompt_tokens);
}

/* ---- requests and events */

void embed_put_id(const char *prefix, struct buf *out)
{
    uint64_t r;
    rng_system(&r, sizeof(r));
    buf_printf(out, "\"id\":\"%s-%016llx\",", prefix, (unsigned long long)r);
}

bool embed_read(struct embed *m, const json_t *o, struct api_error *e)
{
    m->d = api_get_model(m->api, o, e);
    if (!m->d)
        return false;
    m->ctx = deployment_ctx(m->d);
    return m->kind == EMBED_EMBEDDINGS ? read_embeddings(m, o, e) : m->kind == EMBED_RERANK ? embed_read_rerank(m, o, e) : embed_read_score(m, o, e);
}

static void read_body(struct embed *m, const char *body, size_t len)
{
    json_t *o = api_parse_body(body, len, &m->error);
    if (o && !embed_read(m, o, &m->error))
        api_error(&m->error, 503, NULL, "out of memory"); /* where nothing else was said */
    json_decref(o);
}

/* The body is read; now the engines. */
static void begin(struct embed *m)
{
    struct api_error *e = &m->error;
    if (!e->status && m->api->draining)
        api_error(e, 503, NULL, "the server is stopping");
    if (!e->status && api_servable(m->api, m->d, e) && (take_slot(m) || api_error(e, 503, NULL, "out of memory")) && feed(m, true, e)) {
        http_set_user(m->x, &m->client);
        return;
    }
    struct api_error copy = *e;
    fail(m, &copy);
}

static struct embed *of_job(struct api_job *j)
{
    return (struct embed *)((char *)j - offsetof(struct embed, job));
}

static void job_run(struct api_job *j)
{
    struct embed *m = of_job(j);
    read_body(m, m->body, m->body_len);
}

static void job_done(struct api_job *j)
{
    struct embed *m = of_job(j);
    free(m->body);
    m->body = NULL;
    if (m->x)
        begin(m);
    else
        destroy(m);
}

static bool hand_over(struct embed *m, const char *body, size_t len)
{
    m->body = malloc(len);
    if (!m->body)
        return false;
    memcpy(m->body, body, len);
    m->body_len = len;
    m->job = (struct api_job){.run = job_run, .done = job_done, .bytes = len};
    if (!api_work_submit(m->api->work, &m->job)) {
        free(m->body);
        m->body = NULL;
        return false;
    }
    http_body_done(m->x);
    http_set_user(m->x, &m->client);
    return true;
}

static void start(struct api *a, struct http_exchange *x, enum embed_kind kind)
{
    struct embed *m = a->draining ? NULL : calloc(1, sizeof(*m));
    if (!m) {
        struct api_error e = {0};
        api_error(&e, 503, NULL, a->draining ? "the server is stopping" : "out of memory");
        api_fail(x, &e);
        return;
    }
    size_t len;
    const char *body = http_body(x, &len);
    *m = (struct embed){.client = {gone}, .api = a, .x = x, .kind = kind, .arrival_ns = clock_ns()};
    if (len > API_INLINE_MAX && a->work) {
        if (hand_over(m, body, len))
            return;
        api_error(&m->error, 429, NULL, "too many large requests wait to be read; try again later");
    } else {
        read_body(m, body, len);
        http_body_done(x);
    }
    begin(m);
}

void api_embeddings(struct api *a, struct http_exchange *x)
{
    start(a, x, EMBED_EMBEDDINGS);
}
void api_rerank(struct api *a, struct http_exchange *x)
{
    start(a, x, EMBED_RERANK);
}
void api_score(struct api *a, struct http_exchange *x)
{
    start(a, x, EMBED_SCORE);
}

static struct embed_input *find_input(struct api *a, uint64_t id, struct embed **out)
{
    uint32_t slot = (uint32_t)(id >> 12) & 0xfffff, input = (uint32_t)id & 0xfff;
    struct embed *m = slot < a->embeds_cap ? a->embeds[slot] : NULL;
    if (!m || m->serial != (uint32_t)(id >> 32) || input >= m->n_sent)
        return NULL;
    *out = m;
    return &m->inputs[input];
}

static bool all_finite(const float *v, uint32_t n)
{
    bool ok = true;
    for (uint32_t i = 0; i < n; i++)
        ok &= isfinite(v[i]) != 0;
    return ok;
}

static void take_values(struct embed *m, struct embed_input *in, const struct token_event *ev, struct api_error *e)
{
    uint32_t want = m->pooling != POOLING_NONE ? m->d->hp.dim : (uint32_t)ARRAY_LEN(m->targets);
    if (ev->finish != FINISH_STOP)
        api_error(e, ev->finish == FINISH_CANCEL ? 503 : err_http_status(ev->err), NULL, "%s%s%.160s", err_text(ev->finish == FINISH_CANCEL ? ERR_ABORTED : ev->err),
                  ev->text[0] ? ": " : "", ev->text);
    else if (ev->n_values != want)
        api_error(e, 500, NULL, "the model gave %u values, %u were expected", ev->n_values, want);
    else if (!all_finite(ev->values, ev->n_values))
        api_error(e, 500, NULL, "the model gave values that are no numbers");
    else if (m->kind == EMBED_EMBEDDINGS)
        put_vector(m, ev->values, &in->json);
    else
        in->score = (float)(1 / (1 + exp((double)ev->values[1] - (double)ev->values[0])));
}

static void end(struct embed *m)
{
    struct http_exchange *x = m->x;
    struct buf b;
    buf_init(&b);
    if (m->kind == EMBED_EMBEDDINGS)
        answer_embeddings(m, &b);
    else
        embed_answer_scores(m, &b);
    http_set_user(x, NULL);
    destroy(m);
    api_reply_json(x, 200, &b);
}

bool api_embed_event(struct api *a, struct token_event *ev)
{
    struct api_error e = {0};
    struct embed *m = NULL;
    struct embed_input *in = find_input(a, ev->id, &m);
    if (!in)
        return false;
    if (!in->done && ev->finish != FINISH_NONE) {
        in->done = true;
        m->n_done++;
        take_values(m, in, ev, &e);
        tokens_deinit(&in->ids);
        in->ids = (struct tokens){0};
        if (e.status || !feed(m, false, &e))
            fail(m, &e);
        else if (m->n_done == m->n_inputs)
            end(m);
    }
    token_event_destroy(&ev);
    return true;
}
