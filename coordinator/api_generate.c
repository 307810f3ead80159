/* Generations: from a checked POST to requests of the engines, and from their events to the end. A generation lives in the api's slot
 * table; the engines' request ids carry (serial, slot, choice), so that an event that comes late finds nothing instead of a stranger. */
#include "coordinator/api.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SILENCE_S = 10 }; /* a stream that had nothing to say for so long gets a comment */

static uint64_t request_id(const struct generation *g, uint32_t choice)
{
    return (uint64_t)g->serial << 32 | (uint64_t)g->slot << 8 | choice;
}

static struct choice *find_choice(struct api *a, uint64_t id, struct generation **out)
{
    uint32_t slot = (uint32_t)(id >> 8) & 0xffffff, choice = (uint32_t)id & 0xff;
    struct generation *g = slot < a->gens_cap ? a->gens[slot] : NULL;
    if (!g || g->serial != (uint32_t)(id >> 32) || choice >= g->n_choices)
        return NULL;
    *out = g;
    return &g->choices[choice];
}

static bool take_slot(struct api *a, struct generation *g)
{
    uint32_t slot = 0;
    while (slot < a->gens_cap && a->gens[slot])
        slot++;
    if (slot == a->gens_cap) {
        uint32_t cap = a->gens_cap ? a->gens_cap * 2 : 64;
        struct generation **p = cap <= 1 << 24 ? realloc(a->gens, cap * sizeof(*p)) : NULL;
        if (!p)
            return false;
        memset(p + a->gens_cap, 0, (cap - a->gens_cap) * sizeof(*p));
        a->gens = p;
        a->gens_cap = cap;
    }
    g->slot = slot;
    a->serial = a->serial % INT32_MAX + 1; /* ids stay below 2^63 and are never 0 */
    g->serial = a->serial;
    a->gens[slot] = g;
    a->n_gens++;
    return true;
}

static void choice_deinit(struct choice *c)
{
    detokenizer_deinit(&c->detok);
    reasoning_deinit(&c->split);
    struct buf *bufs[] = {&c->text, &c->thought, &c->raw, &c->logprobs, &c->lp_tokens, &c->lp_values, &c->lp_top, &c->lp_offsets, &c->ids, &c->prompt_logprobs, &c->prompt_ids};
    for (size_t i = 0; i < ARRAY_LEN(bufs); i++)
        buf_deinit(bufs[i]);
}

static void generation_destroy(struct generation *g)
{
    struct api *a = g->api;
    if (g->slot < a->gens_cap && a->gens[g->slot] == g) {
        a->gens[g->slot] = NULL;
        a->n_gens--;
    }
    for (struct generation **p = &a->unsent; g->in_unsent && *p; p = &(*p)->next_unsent)
        if (*p == g) {
            *p = g->next_unsent;
            break;
        }
    buf_deinit(&g->out);
    for (uint32_t i = 0; g->choices && i < g->n_choices; i++)
        choice_deinit(&g->choices[i]);
    for (uint32_t i = 0; i < g->n_prompts; i++)
        tokens_deinit(&g->prompts[i]);
    for (uint32_t i = 0; i < g->n_stops; i++)
        free(g->stops[i]);
    reasoning_deinit(&g->split);
    free(g->stops);
    free(g->prompts);
    free(g->choices);
    free(g);
}

static void cancel_open(struct generation *g)
{
    for (uint32_t i = 0; g->choices && i < g->n_choices; i++) {
        struct choice *c = &g->choices[i];
        if (c->engine && !c->done) {
            c->done = true;
            engine_cancel(c->engine, c->id);
        }
    }
}

void api_generation_gone(struct generation *g)
{
    cancel_open(g);
    generation_destroy(g);
}

struct engine *api_engine(const struct deployment *d)
{
    struct engine *best = NULL;
    unsigned best_load = 0;
    for (uint32_t i = 0; i < d->n_engines; i++) {
        const struct engine_snapshot *s = engine_snapshot(d->engines[i]);
        int state = atomic_load(&s->state);
        if (state == ENGINE_STOPPED)
            continue;
        unsigned load = atomic_load(&s->running) + atomic_load(&s->waiting) + (state == ENGINE_READY ? 0 : 1u << 20);
        if (!best || load < best_load) {
            best = d->engines[i];
            best_load = load;
        }
    }
    return best;
}

static void *dup_array(const void *p, uint32_t n, size_t size, bool *ok)
{
    if (n == 0)
        return NULL;
    void *d = malloc(n * size);
    if (d)
        memcpy(d, p, n * size);
    else
        *ok = false;
    return d;
}

static struct request *make_request(const struct generation *g, const struct choice *c, const struct sampling *s, uint32_t idx)
{
    struct request *r = request_create(c->n_prompt);
    if (!r)
        return NULL;
    bool ok = true;
    memcpy(r->prompt, c->prompt, c->n_prompt * sizeof(*r->prompt));
    r->id = c->id;
    r->arrival_ns = g->arrival_ns;
    r->sampling = *s;
    r->sampling.choice = idx;
    r->sampling.stop_ids = dup_array(s->stop_ids, s->n_stop_ids, sizeof(*s->stop_ids), &ok);
    r->sampling.bias_id = dup_array(s->bias_id, s->n_bias, sizeof(*s->bias_id), &ok);
    r->sampling.bias = dup_array(s->bias, s->n_bias, sizeof(*s->bias), &ok);
    r->sampling.ids = sampling_ids_share(s->ids);
    r->sampling.max_tokens = MIN(s->max_tokens, g->ctx - c->n_prompt);
    if (!ok)
        request_destroy(&r);
    return r;
}

static bool submit(struct generation *g, const struct sampling *s, struct api_error *e)
{
    uint32_t per_prompt = g->n_choices / g->n_prompts;
    for (uint32_t i = 0; i < g->n_choices; i++) {
        struct choice *c = &g->choices[i];
        struct engine *engine = api_engine(g->d);
        if (!engine)
            return api_error(e, 503, NULL, "the server is stopping");
        struct request *r = make_request(g, c, s, i % per_prompt);
        if (!r)
            return api_error(e, 503, NULL, "out of memory");
        enum err err = engine_submit(engine, r);
        if (err != ERR_OK) {
            request_destroy(&r);
            if (err == ERR_BUSY)
                return api_error(e, 429, NULL, "the queue is full (queue_max = %lld); try again later", (long long)g->d->opts->queue_max);
            return api_error(e, err_http_status(err), NULL, "%.300s", err_detail());
        }
        c->engine = engine;
    }
    return true;
}

static bool init_choices(struct generation *g, const struct sampling *s, int64_t n, struct api_error *e)
{
    if (g->n_prompts * (uint64_t)n > API_CHOICES_MAX)
        return api_error(e, 400, "n", "`n` times the prompts is %llu, at most %d choices are made", (unsigned long long)(g->n_prompts * (uint64_t)n),
                         API_CHOICES_MAX);
    g->n_choices = g->n_prompts * (uint32_t)n;
    g->choices = calloc(g->n_choices, sizeof(*g->choices));
    if (!g->choices || !take_slot(g->api, g)) {
        free(g->choices);
        g->choices = NULL;
        return api_error(e, 503, NULL, "out of memory");
    }
    for (uint32_t i = 0; i < g->n_choices; i++) {
        struct choice *c = &g->choices[i];
        c->prompt_idx = i / (uint32_t)n;
        c->prompt = g->prompts[c->prompt_idx].ids;
        c->n_prompt = (uint32_t)g->prompts[c->prompt_idx].n;
        c->id = request_id(g, i);
        c->stop_id = -1;
        detokenizer_init(&c->detok, g->d->tok, (const char *const *)g->stops, g->n_stops, g->show_special);
        detokenizer_continue(&c->detok);
        c->detok.shown = g->d->marks;
        c->detok.n_shown = g->chat ? g->d->n_marks : 0;
        c->split = g->split; /* which holds no memory yet */
        if (s->max_tokens > 0 && c->n_prompt >= g->ctx)
            return api_error(e, 400, g->chat ? "messages" : "prompt",
                             "the prompt has %u tokens, the context is %u: no room for an answer", c->n_prompt, g->ctx);
    }
    for (uint32_t i = 0; i < g->n_prompts; i++)
        g->prompt_tokens += (uint32_t)g->prompts[i].n;
    return true;
}

bool api_servable(const struct api *a, const struct deployment *d, struct api_error *e)
{
    struct front_health h = {0};
    a->health(a->health_arg, d, &h);
    return !h.fatal || api_error(e, 503, NULL, "the model cannot be served: %.300s", h.text);
}

/* A request between its arrival and its choices: `read` looks at nothing but itself and what never changes, in whichever thread; `begin` is the
 * loop's. */
struct start {
    struct api_job job;
    struct generation *g; /* a generation whose client left is this one's to free */
    struct sampling sampling;
    struct api_error e;
    int64_t n;
    char *body;
    size_t len;
};

static bool read_request(struct start *st, const json_t *o)
{
    struct generation *g = st->g;
    struct api_error *e = &st->e;
    g->d = api_get_model(g->api, o, e);
    if (!g->d)
        return false;
    g->ctx = deployment_ctx(g->d);
    if (!api_get_options(o, g, &st->n, e) || !api_get_sampling(o, g, &st->sampling, e) || !api_get_stops(o, g, e))
        return false;
    if (!(g->chat ? api_get_chat(o, g, e) : api_get_prompts(o, "prompt", API_CHOICES_MAX, g, e)))
        return false;
    struct sampling *s = &st->sampling;
    g->logprobs = s->logprobs;
    g->prompt_logprobs = s->prompt_logprobs;
    if (g->echo && s->logprobs)
        s->prompt_logprobs = true; /* the columns of `logprobs` then begin with the prompt's */
    if (g->n_best)
        s->logprobs = true;
    if (s->max_tokens == 0 && !g->echo && !s->prompt_logprobs)
        return api_error(e, 400, "max_tokens", "`max_tokens` 0 needs `echo` or `prompt_logprobs`");
    return true;
}

static void read_body(struct start *st, const char *body, size_t len)
{
    json_t *o = api_parse_body(body, len, &st->e);
    if (o && !read_request(st, o))
        api_error(&st->e, 503, NULL, "out of memory"); /* where nothing else was said */
    json_decref(o);
}

static void begin(struct start *st)
{
    struct generation *g = st->g;
    struct http_exchange *x = g->x;
    if (!st->e.status && g->api->draining)
        api_error(&st->e, 503, NULL, "the server is stopping");
    if (!st->e.status && api_servable(g->api, g->d, &st->e) && init_choices(g, &st->sampling, st->n, &st->e) && submit(g, &st->sampling, &st->e)) {
        http_set_user(x, &g->client);
        return;
    }
    http_set_user(x, NULL);
    api_generation_gone(g);
    api_fail(x, &st->e);
}

static struct start *start_of(struct api_job *j)
{
    return (struct start *)((char *)j - offsetof(struct start, job));
}

static void start_run(struct api_job *j)
{
    struct start *st = start_of(j);
    read_body(st, st->body, st->len);
}

static void start_done(struct api_job *j)
{
    struct start *st = start_of(j);
    st->g->start = NULL;
    if (st->g->x)
        begin(st);
    else
        generation_destroy(st->g);
    api_sampling_deinit(&st->sampling);
    free(st->body);
    free(st);
}

static void client_gone(struct api_client *c)
{
    struct generation *g = (struct generation *)c;
    if (g->start) {
        g->x = NULL;
        atomic_store(&g->start->job.cancelled, true);
    } else {
        api_generation_gone(g);
    }
}

/* Large bodies are read beside the loop. */
static bool hand_over(struct generation *g, const char *body, size_t len)
{
    struct start *st = calloc(1, sizeof(*st));
    char *copy = malloc(len);
    if (st && copy) {
        memcpy(copy, body, len);
        *st = (struct start){.job = {.run = start_run, .done = start_done, .bytes = len}, .g = g, .n = 1, .body = copy, .len = len};
        if (api_work_submit(g->api->work, &st->job)) {
            g->start = st;
            http_body_done(g->x);
            http_set_user(g->x, &g->client);
            return true;
        }
    }
    free(copy);
    free(st);
    return false;
}

static struct generation *generation_create(struct api *a, struct http_exchange *x, bool chat)
{
    struct generation *g = calloc(1, sizeof(*g));
    if (!g)
        return NULL;
    uint64_t r[2];
    rng_system(r, sizeof(r));
    g->client.gone = client_gone;
    g->api = a;
    g->x = x;
    g->chat = chat;
    g->slot = UINT32_MAX;
    g->arrival_ns = g->last_sent_ns = clock_ns();
    g->created_s = clock_unix_s();
    snprintf(g->id, sizeof(g->id), "%s-%016llx%08llx", chat ? "chatcmpl" : "cmpl", (unsigned long long)r[0], (unsigned long long)(r[1] & 0xffffffff));
    return g;
}

void api_generate(struct api *a, struct http_exchange *x, bool chat)
{
    struct start st = {.n = 1};
    st.g = a->draining ? NULL : generation_create(a, x, chat);
    if (!st.g) {
        api_error(&st.e, 503, NULL, a->draining ? "the server is stopping" : "out of memory");
        api_fail(x, &st.e);
        return;
    }
    size_t len;
    const char *body = http_body(x, &len);
    if (len > API_INLINE_MAX && a->work) {
        if (hand_over(st.g, body, len))
            return;
        api_error(&st.e, 429, NULL, "too many large requests wait to be read; try again later");
    } else {
        read_body(&st, body, len);
        http_body_done(x);
    }
    begin(&st);
    api_sampling_deinit(&st.sampling);
}

/* ---- events ---- */

static void note_times(struct generation *g, struct choice *c, const struct token_event *ev)
{
    if (ev->n_tokens == 0)
        return;
    c->last_ns = clock_ns();
    if (c->first_ns == 0) {
        c->first_ns = c->last_ns;
        g->prefill_ns = ev->prefill_ns;
    }
}

static void fail_generation(struct generation *g, const struct token_event *ev)
{
    struct api_error e = {0};
    api_error(&e, err_http_status(ev->err), NULL, "%s%s%.160s", err_text(ev->err), ev->text[0] ? ": " : "", ev->text);
    cancel_open(g);
    api_answer_error(g, &e); /* ends the exchange */
    generation_destroy(g);
}

void api_event(struct api *a, struct token_event *ev)
{
    struct generation *g = NULL;
    if (api_embed_event(a, ev))
        return;
    struct choice *c = find_choice(a, ev->id, &g);
    if (!c || c->done) {
        token_event_destroy(&ev);
        return;
    }
    if (ev->finish == FINISH_ERROR || ev->finish == FINISH_CANCEL) {
        c->done = true;
        if (ev->finish == FINISH_CANCEL) {
            ev->err = ERR_ABORTED;
            snprintf(ev->text, sizeof(ev->text), "the server is stopping");
        }
        fail_generation(g, ev);
        token_event_destroy(&ev);
        return;
    }
    note_times(g, c, ev);
    size_t held = api_answer_held(c);
    api_answer_tokens(c, g, ev);
    g->held += api_answer_held(c) - held;
    if (!g->stream && g->held > API_HELD_MAX) {
        ev->err = ERR_TOO_BIG;
        snprintf(ev->text, sizeof(ev->text), "the answer is over %d MiB; ask for it as a stream, or for less", API_HELD_MAX >> 20);
        fail_generation(g, ev);
        token_event_destroy(&ev);
        return;
    }
    if (!c->finish && ev->finish != FINISH_NONE) {
        c->finish = ev->finish == FINISH_STOP ? "stop" : "length";
        if (ev->finish == FINISH_STOP)
            c->stop_id = ev->stop_id;
    } else if (c->finish && ev->finish == FINISH_NONE) {
        engine_cancel(c->engine, c->id | ENGINE_CANCEL_STOPPED); /* what the engine makes further is not wanted */
    }
    if (c->finish) {
        api_answer_finish(c);
        c->done = true;
        g->n_done++;
    }
    if (g->stream) {
        if (ev->prefilling && !ev->n_tokens && clock_ns() - g->last_sent_ns > NS_PER_S) {
            char text[64];
            snprintf(text, sizeof(text), "prefill %u/%u", ev->n_prefilled, c->n_prompt);
            api_answer_comment(g, text);
        }
        if (ev->n_tokens || ev->n_prompt_logprobs || c->finish)
            api_answer_delta(g, c);
    }
    token_event_destroy(&ev);
    if (g->n_done == g->n_choices) {
        api_answer_end(g);
        generation_destroy(g);
    }
}

void api_flush(struct api *a)
{
    while (a->unsent) {
        struct generation *g = a->unsent;
        a->unsent = g->next_unsent;
        g->in_unsent = false;
        api_answer_send(g);
    }
}

bool api_tick(void *arg)
{
    struct api *a = arg;
    uint64_t now = clock_ns();
    for (uint32_t i = 0; i < a->gens_cap; i++) {
        struct generation *g = a->gens[i];
        if (g && g->stream && now - g->last_sent_ns > SILENCE_S * NS_PER_S)
            api_answer_comment(g, "waiting");
    }
    api_flush(a);
    api_embed_tick(a);
    return api_n_open(a) > 0;
}

uint32_t api_n_open(const struct api *a)
{
    return a->n_gens + a->n_embeds;
}
