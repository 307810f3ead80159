/* What the server tells of itself, and the tokenizer's HTTP twins. */
#include "coordinator/api.h"

#include "base/check.h"
#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put_model(struct buf *b, const struct api *a)
{
    buf_puts(b, "{\"id\":");
    buf_json_str(b, a->model_name, strlen(a->model_name));
    buf_printf(b, ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"racklm\",\"root\":", (unsigned long long)a->started_s);
    buf_json_str(b, a->model_stem, strlen(a->model_stem));
    buf_printf(b, ",\"parent\":null,\"max_model_len\":%u,\"meta\":{\"n_vocab\":%u,\"n_ctx_train\":%u,\"n_params\":%llu,\"size\":%llu}}", a->ctx, a->vocab,
               a->ctx_train, (unsigned long long)a->n_params, (unsigned long long)a->model_bytes);
}

void api_models(struct api *a, struct http_exchange *x, const char *id)
{
    struct buf b;
    buf_init(&b);
    if (!id) {
        buf_puts(&b, "{\"object\":\"list\",\"data\":[");
        put_model(&b, a);
        buf_puts(&b, "]}");
    } else if (strcmp(id, a->model_name) == 0 || strcmp(id, a->model_stem) == 0 || strcmp(id, "default") == 0) {
        put_model(&b, a);
    } else {
        struct api_error e = {0};
        api_error(&e, 404, "model", "there is no model `%.100s` here; this server has `%.100s`", id, a->model_name);
        api_fail(x, &e);
        return;
    }
    api_reply_json(x, 200, &b);
}

void api_health(struct api *a, struct http_exchange *x)
{
    struct front_health h = {0};
    a->health(a->health_arg, &h);
    bool ready = h.ready && !a->draining;
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "{\"status\":\"%s\",\"progress\":%.2f,\"workers_ready\":%u,\"workers\":%u,\"message\":",
               ready ? "ok" : h.fatal ? "failed" : a->draining ? "stopping" : "loading", ready ? 1.0 : h.load_percent / 100.0, h.n_workers_ready,
               h.n_workers);
    buf_json_str(&b, h.text, strlen(h.text));
    buf_puts(&b, ",\"replicas\":[");
    for (uint32_t i = 0; i < a->n_engines; i++) {
        const struct engine_snapshot *s = engine_snapshot(a->engines[i]);
        buf_printf(&b, "%s{\"replica\":%u,\"state\":\"%s\",\"epoch\":%llu,\"running\":%u,\"waiting\":%u}", i ? "," : "", i,
                   engine_state_name((enum engine_state)atomic_load(&s->state)), (unsigned long long)atomic_load(&s->epoch), atomic_load(&s->running),
                   atomic_load(&s->waiting));
    }
    buf_puts(&b, "]}");
    if (!ready)
        http_set_header(x, "Retry-After", "1");
    api_reply_json(x, ready ? 200 : 503, &b);
}

void api_metrics(struct api *a, struct http_exchange *x)
{
    struct buf b;
    buf_init(&b);
    metrics_render(a->metrics, &b);
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", b.data ? b.data : "", b.len);
    buf_deinit(&b);
}

void api_version(struct api *a, struct http_exchange *x)
{
    (void)a;
    struct buf b;
    buf_init(&b);
    buf_puts(&b, "{\"version\":\"" RACKLM_VERSION "\"}");
    api_reply_json(x, 200, &b);
}

void api_tokenize(struct api *a, struct http_exchange *x)
{
    struct api_error e = {0};
    struct buf b;
    struct tokens t = {0};
    struct generation g = {.api = a}; /* carries a chat's prompt */
    json_t *o = api_body(x, &e);
    const char *text = NULL;
    bool special = true, parse = true;
    if (o && api_check_model(a, o, &e) && api_get_bool(o, "add_special_tokens", &special, &e) && api_get_bool(o, "parse_special", &parse, &e)) {
        const json_t *prompt = json_object_get(o, "prompt");
        const char *key = prompt ? "prompt" : "content";
        if (json_object_get(o, "messages")) {
            api_get_chat(a, o, &g, &e);
        } else if (api_get_str(o, key, &text, &e)) {
            const json_t *v = json_object_get(o, key);
            if (!text)
                api_error(&e, 400, "prompt", "`prompt` (or `messages`) is missing");
            else if (tokenizer_encode(a->tok, text, json_string_length(v), (special ? TOKENIZER_SPECIAL : 0) | (parse ? TOKENIZER_PARSE : 0), &t) != ERR_OK)
                api_error(&e, 400, "prompt", "`prompt` cannot be tokenised: %.200s", err_detail());
        }
    }
    if (o)
        json_decref(o);
    if (e.status) {
        api_fail(x, &e);
    } else {
        const struct tokens *out = g.n_prompts ? &g.prompts[0] : &t;
        buf_init(&b);
        buf_printf(&b, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", out->n, a->ctx);
        for (size_t i = 0; i < out->n; i++)
            buf_printf(&b, i ? ",%u" : "%u", out->ids[i]);
        buf_puts(&b, "]}");
        api_reply_json(x, 200, &b);
    }
    tokens_deinit(&t);
    for (uint32_t i = 0; i < g.n_prompts; i++)
        tokens_deinit(&g.prompts[i]);
    free(g.prompts);
}

void api_detokenize(struct api *a, struct http_exchange *x)
{
    struct api_error e = {0};
    json_t *o = api_body(x, &e);
    struct buf text, b;
    buf_init(&text);
    buf_init(&b);
    const json_t *ids = o ? json_object_get(o, "tokens") : NULL;
    struct detokenizer d;
    detokenizer_init(&d, a->tok, NULL, 0, true);
    if (o && api_check_model(a, o, &e)) {
        if (!json_is_array(ids))
            api_error(&e, 400, "tokens", "`tokens` must be a list of token ids");
        for (size_t i = 0; !e.status && i < json_array_size(ids); i++) {
            const json_t *v = json_array_get(ids, i);
            if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= a->vocab)
                api_error(&e, 400, "tokens", "`tokens[%zu]` is no token id below %u", i, a->vocab);
            else
                detokenizer_push(&d, (uint32_t)json_integer_value(v), &text);
        }
    }
    detokenizer_finish(&d, &text);
    detokenizer_deinit(&d);
    if (o)
        json_decref(o);
    if (e.status) {
        api_fail(x, &e);
    } else {
        buf_puts(&b, "{\"prompt\":");
        buf_json_str(&b, text.data ? text.data : "", text.len);
        buf_putc(&b, '}');
        api_reply_json(x, 200, &b);
    }
    buf_deinit(&text);
}
