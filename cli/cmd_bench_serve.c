/* racklm bench serve: load on any server that speaks the OpenAI dialect. One thread, libcurl's multi interface; every request streams, so that the
 * times of its first and of each further token are known. Latencies are measured from when a request was due, so that a server that makes
 * arrivals wait cannot look better for it (coordinated omission). */
#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"
#include "cli/cli.h"
#include "cli/client.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct load {
    const char *url, *model, *api_key;
    long concurrency, n_requests, prompt_tokens, max_tokens, seed;
    double rate;
    bool ignore_eos;
};
struct shot {
    struct client_request req;
    uint64_t due_ns, first_ns, last_ns, end_ns;
    long long n_prompt, n_tokens, n_events;
    struct samples *gaps;
    bool failed;
    char error[200];
};
struct samples {
    double *v;
    size_t n, cap;
};

static void add(struct samples *s, double v)
{
    if (s->n == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 1024;
        s->v = realloc(s->v, s->cap * sizeof(*s->v));
        ASSERT(s->v != NULL);
    }
    s->v[s->n++] = v;
}

static int cmp_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Nearest rank. Sorts. */
static double percentile(struct samples *s, double p)
{
    if (s->n == 0)
        return 0;
    qsort(s->v, s->n, sizeof(*s->v), cmp_double);
    size_t i = (size_t)ceil(p / 100 * (double)s->n);
    return s->v[i ? i - 1 : 0];
}

static bool on_event(void *arg, const char *json, size_t len)
{
    struct shot *s = arg;
    uint64_t now = clock_ns();
    json_t *o = json_loadb(json, len, 0, NULL);
    const json_t *usage = json_object_get(o, "usage"), *c = json_array_get(json_object_get(o, "choices"), 0), *err = json_object_get(o, "error");
    const json_t *delta = json_object_get(c, "delta");
    bool text = json_string_length(json_object_get(delta, "content")) || json_string_length(json_object_get(delta, "reasoning_content"));
    if (err) {
        s->failed = true;
        snprintf(s->error, sizeof(s->error), "%s", json_string_value(json_object_get(err, "message")));
    }
    if (json_is_object(usage)) {
        s->n_tokens = json_integer_value(json_object_get(usage, "completion_tokens"));
        s->n_prompt = json_integer_value(json_object_get(usage, "prompt_tokens"));
    }
    if (text) {
        if (!s->first_ns)
            s->first_ns = now;
        else
            add(s->gaps, (double)(now - s->last_ns) / 1e6);
        s->last_ns = now;
        s->n_events++;
    }
    json_decref(o);
    return true;
}

static const char *const words[] = {"fox", "king", "forest", "river", "stone", "bread", "golden", "old", "little", "house",
                                    "went", "said", "night", "water", "bird", "tree", "daughter", "castle", "horse", "gold"};

static enum err start_shot(const struct load *l, struct shot *s, unsigned idx, CURLM *multi)
{
    struct buf b;
    buf_init(&b);
    buf_puts(&b, "{\"model\":");
    buf_json_str(&b, l->model, strlen(l->model));
    buf_printf(&b, ",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"max_tokens\":%ld,\"temperature\":0.8,\"seed\":%u", l->max_tokens, idx);
    if (l->ignore_eos)
        buf_puts(&b, ",\"ignore_eos\":true");
    buf_puts(&b, ",\"messages\":[{\"role\":\"user\",\"content\":\"");
    for (long i = 0; i < l->prompt_tokens; i++)
        buf_printf(&b, "%s%s", i ? " " : "", words[(size_t)(rng_uniform((uint64_t)l->seed, idx, (uint32_t)i) * ARRAY_LEN(words))]);
    buf_puts(&b, "\"}]}");
    enum err e = client_request_init(&s->req, l->url, "/v1/chat/completions", l->api_key, &b, on_event, s);
    buf_deinit(&b);
    return e == ERR_OK ? client_request_start(&s->req, multi) : e;
}

static void finish_shot(struct shot *s, enum err outcome)
{
    s->end_ns = clock_ns();
    if (outcome != ERR_OK) {
        s->failed = true;
        snprintf(s->error, sizeof(s->error), "%s", err_detail());
    } else if (!s->failed && !s->req.done) {
        s->failed = true;
        snprintf(s->error, sizeof(s->error), "the stream ended without [DONE]");
    }
    client_request_deinit(&s->req);
}

static enum err run_load(const struct load *l, struct shot *shots, struct samples *gaps, double *seconds)
{
    CURLM *multi = curl_multi_init();
    if (!multi)
        return err_set(ERR_NOMEM, "libcurl does not start");
    long started = 0, ended = 0, running = 0;
    uint64_t begin = clock_ns(), due = begin;
    enum err e = ERR_OK;
    while (ended < l->n_requests && e == ERR_OK) {
        uint64_t now = clock_ns();
        while (started < l->n_requests && e == ERR_OK && (l->rate > 0 ? now >= due : running < l->concurrency)) {
            struct shot *s = &shots[started];
            s->due_ns = l->rate > 0 ? due : now;
            s->gaps = gaps;
            e = start_shot(l, s, (unsigned)started, multi);
            started++;
            running++;
            if (l->rate > 0)
                due += (uint64_t)(-log(1 - rng_uniform((uint64_t)l->seed, UINT32_MAX, (uint32_t)started)) / l->rate * 1e9);
        }
        enum err outcome;
        for (struct client_request *q; (q = client_request_ended(multi, &outcome)) != NULL; running--, ended++)
            finish_shot((struct shot *)((char *)q - offsetof(struct shot, req)), outcome);
        cli_progress("requests", (double)ended / (double)l->n_requests);
        int wait_ms = 100;
        now = clock_ns();
        if (l->rate > 0 && started < l->n_requests)
            wait_ms = due > now ? (int)MIN((due - now) / NS_PER_MS + 1, 100ull) : 0;
        if (ended < l->n_requests)
            curl_multi_poll(multi, NULL, 0, wait_ms, NULL);
    }
    cli_progress_end();
    *seconds = (double)(clock_ns() - begin) / 1e9;
    curl_multi_cleanup(multi);
    return e;
}

static void report(const struct load *l, const struct shot *shots, struct samples *gaps, double seconds, bool json)
{
    struct samples ttft = {0}, e2e = {0};
    long long tokens = 0, prompt = 0, failed = 0;
    const char *error = NULL;
    for (long i = 0; i < l->n_requests; i++) {
        const struct shot *s = &shots[i];
        if (s->failed) {
            failed++;
            error = s->error;
            continue;
        }
        tokens += s->n_tokens ? s->n_tokens : s->n_events;
        prompt += s->n_prompt;
        if (s->first_ns)
            add(&ttft, (double)(s->first_ns - s->due_ns) / 1e6);
        add(&e2e, (double)(s->end_ns - s->due_ns) / 1e6);
    }
    struct {
        const char *name, *key;
        struct samples *s;
    } rows[] = {{"time to first token", "ttft_ms", &ttft}, {"between tokens", "itl_ms", gaps}, {"end to end", "e2e_ms", &e2e}};
    if (json) {
        printf("{\"requests\":%ld,\"failed\":%lld,\"seconds\":%.3f,\"completion_tokens\":%lld,\"prompt_tokens\":%lld,\"tokens_per_s\":%.3f,"
               "\"requests_per_s\":%.3f", l->n_requests, failed, seconds, tokens, prompt, (double)tokens / seconds, (double)(l->n_requests - failed) / seconds);
        for (size_t i = 0; i < ARRAY_LEN(rows); i++)
            printf(",\"%s\":{\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f}", rows[i].key, percentile(rows[i].s, 50), percentile(rows[i].s, 90),
                   percentile(rows[i].s, 99));
        puts("}");
    } else {
        printf("%ld requests in %.2f s, %lld failed; %lld tokens out (%.1f tokens/s), %lld in; %.2f requests/s\n", l->n_requests, seconds, failed, tokens,
               (double)tokens / seconds, prompt, (double)(l->n_requests - failed) / seconds);
        static const char *const heads[] = {"MS", "P50", "P90", "P99"};
        struct cli_table *t = cli_table_create(4, heads, "lrrr");
        for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
            char c[3][32];
            const double p[] = {50, 90, 99};
            for (int k = 0; k < 3; k++)
                snprintf(c[k], 32, "%.1f", percentile(rows[i].s, p[k]));
            cli_table_row(t, rows[i].name, c[0], c[1], c[2]);
        }
        cli_table_print(&t);
    }
    if (failed)
        cli_fail("bench serve", "%lld of %ld requests failed, one of them: %s", failed, l->n_requests, error);
    free(ttft.v);
    free(e2e.v);
}

/* The server's first model. */
static enum err first_model(const struct load *l, char *out, size_t cap)
{
    struct client_request q;
    enum err e = client_request_init(&q, l->url, "/v1/models", l->api_key, NULL, NULL, NULL);
    if (e == ERR_OK)
        e = client_request_run(&q);
    if (e == ERR_OK) {
        json_t *o = json_loadb(q.reply.data ? q.reply.data : "", q.reply.len, 0, NULL);
        const char *id = json_string_value(json_object_get(json_array_get(json_object_get(o, "data"), 0), "id"));
        if (id)
            snprintf(out, cap, "%s", id);
        else
            e = err_set(ERR_PROTOCOL, "the server names no model; give --model");
        json_decref(o);
    }
    client_request_deinit(&q);
    return e;
}

int cmd_bench_serve(struct options *o, int argc, char **argv)
{
    const char *url = NULL, *model = NULL, *conc = "8", *rate = NULL, *requests = "32", *prompt = "128", *max_tokens = "128", *key_file = NULL, *seed = "1",
               *output = "table";
    struct load l = {0};
    const struct cli_flag flags[] = {
        {"--url", NULL, &url, NULL},           {"--model", NULL, &model, NULL},           {"--concurrency", "-c", &conc, NULL},
        {"--rate", NULL, &rate, NULL},         {"--requests", "-n", &requests, NULL},     {"--prompt-tokens", NULL, &prompt, NULL},
        {"--max-tokens", NULL, &max_tokens, NULL}, {"--api-key-file", NULL, &key_file, NULL}, {"--seed", NULL, &seed, NULL},
        {"--output", "-o", &output, NULL},     {"--ignore-eos", NULL, NULL, &l.ignore_eos},
    };
    if (!cli_flags("bench serve", flags, ARRAY_LEN(flags), o, 0, &argc, argv))
        return CLI_USAGE;
    bool json;
    if (!cli_output("bench serve", output, &json))
        return CLI_USAGE;
    if (!url || argc != 1)
        return cli_usage("bench serve", "which server? --url http://HOST:PORT");
    if (cli_numbers("bench serve", "--concurrency", conc, 1, &l.concurrency, 1) != 1 || cli_numbers("bench serve", "--requests", requests, 1, &l.n_requests, 1) != 1 ||
        cli_numbers("bench serve", "--prompt-tokens", prompt, 1, &l.prompt_tokens, 1) != 1 ||
        cli_numbers("bench serve", "--max-tokens", max_tokens, 1, &l.max_tokens, 1) != 1 || cli_numbers("bench serve", "--seed", seed, 0, &l.seed, 1) != 1)
        return CLI_USAGE;
    if (rate && !((l.rate = strtod(rate, NULL)) > 0))
        return cli_usage("bench serve", "--rate is arrivals a second, above 0");
    l.url = url;
    struct buf key;
    buf_init(&key);
    enum err e = key_file ? client_read_key(key_file, &key) : ERR_OK;
    l.api_key = key.len ? key.data : NULL;
    char name[256];
    l.model = model ? model : name;
    if (e == ERR_OK && !model)
        e = first_model(&l, name, sizeof(name));
    struct shot *shots = calloc((size_t)l.n_requests, sizeof(*shots));
    struct samples gaps = {0};
    double seconds = 1;
    if (e == ERR_OK && !shots)
        e = err_set(ERR_NOMEM, "no memory for %ld requests", l.n_requests);
    if (e == ERR_OK)
        e = run_load(&l, shots, &gaps, &seconds);
    int rc = CLI_OK;
    if (e == ERR_OK) {
        report(&l, shots, &gaps, seconds, json);
        for (long i = 0; i < l.n_requests; i++)
            rc = shots[i].failed ? CLI_FAILED : rc;
    } else {
        rc = cli_fail_err("bench serve", e);
    }
    free(shots);
    free(gaps.v);
    buf_deinit(&key);
    return rc;
}
