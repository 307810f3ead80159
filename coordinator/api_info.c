/* What the server tells of itself, and the tokenizer's HTTP twins. */
#include "coordinator/api.h"

#include "base/check.h"
#include "base/clock.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Each name is an entry; an alias tells the name that it stands for, as vLLM's adapters do. */
static void put_model(struct buf *b, const struct api *a, const struct deployment *d, uint32_t name)
{
    buf_puts(b, "{\"id\":");
    buf_json_str(b, d->names[name], strlen(d->names[name]));
    buf_printf(b, ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"racklm\",\"root\":", (unsigned long long)a->started_s);
    buf_json_str(b, d->stem, strlen(d->stem));
    buf_puts(b, ",\"parent\":");
    if (name)
        buf_json_str(b, d->names[0], strlen(d->names[0]));
    else
        buf_puts(b, "null");
    buf_printf(b, ",\"max_model_len\":%u,\"meta\":{\"n_vocab\":%u,\"n_ctx_train\":%u,\"n_params\":%llu,\"size\":%llu}}", deployment_ctx(d),
               d->hp.vocab, d->hp.ctx_train, (unsigned long long)d->n_params, (unsigned long long)d->bytes);
}

/* An alias shows itself; the other names that requests may use show the deployment. */
static uint32_t name_idx(const struct deployment *d, const char *id)
{
    for (uint32_t k = 0; k < d->n_names; k++)
        if (strcmp(d->names[k], id) == 0)
            return k;
    return 0;
}

void api_models(struct api *a, struct http_exchange *x, const char *id)
{
    struct buf b;
    buf_init(&b);
    if (id) {
        struct api_error e = {0};
        const struct deployment *d = api_find_model(a, id, &e);
        if (!d) {
            api_fail(x, &e);
            return;
        }
        put_model(&b, a, d, name_idx(d, id));
    } else {
        buf_puts(&b, "{\"object\":\"list\",\"data\":[");
        for (uint32_t i = 0; i < a->n_deployments; i++)
            for (uint32_t k = 0; k < a->deployments[i].n_names; k++) {
                buf_puts(&b, i || k ? "," : "");
                put_model(&b, a, &a->deployments[i], k);
            }
        buf_puts(&b, "]}");
    }
    api_reply_json(x, 200, &b);
}

static void put_replicas(struct buf *b, const struct deployment *d)
{
    for (uint32_t i = 0; i < d->n_engines; i++) {
        const struct engine_snapshot *s = engine_snapshot(d->engines[i]);
        buf_puts(b, d->index || i ? ",{\"model\":" : "{\"model\":");
        buf_json_str(b, d->names[0], strlen(d->names[0]));
        buf_printf(b, ",\"replica\":%u,\"state\":\"%s\",\"epoch\":%llu,\"running\":%u,\"waiting\":%u}", i,
                   engine_state_name((enum engine_state)atomic_load(&s->state)), (unsigned long long)atomic_load(&s->epoch), atomic_load(&s->running),
                   atomic_load(&s->waiting));
    }
}

static void put_health(struct buf *b, const struct front_health *h, bool draining)
{
    bool ready = h->ready && !draining;
    buf_printf(b, "\"status\":\"%s\",\"progress\":%.2f,\"workers_ready\":%u,\"workers\":%u,\"message\":",
               ready ? "ok" : draining ? "stopping" : h->degraded ? "degraded" : h->fatal ? "failed" : "loading",
               ready ? 1.0 : h->load_percent / 100.0, h->n_workers_ready, h->n_workers);
    buf_json_str(b, h->text, strlen(h->text));
}

/* 200 when every model can be used, or (later) some of several still can: a server that was up is not taken out for one of them. */
void api_health(struct api *a, struct http_exchange *x)
{
    struct front_health h = {0};
    a->health(a->health_arg, NULL, &h);
    bool ok = (h.ready || h.degraded) && !a->draining;
    struct buf b;
    buf_init(&b);
    buf_putc(&b, '{');
    put_health(&b, &h, a->draining);
    buf_puts(&b, ",\"models\":[");
    for (uint32_t i = 0; i < a->n_deployments; i++) {
        const struct deployment *d = &a->deployments[i];
        a->health(a->health_arg, d, &h);
        buf_puts(&b, i ? ",{\"model\":" : "{\"model\":");
        buf_json_str(&b, d->names[0], strlen(d->names[0]));
        buf_putc(&b, ',');
        put_health(&b, &h, a->draining);
        buf_putc(&b, '}');
    }
    buf_putc(&b, ']');
    buf_puts(&b, ",\"replicas\":[");
    for (uint32_t i = 0; i < a->n_deployments; i++)
        put_replicas(&b, &a->deployments[i]);
    buf_puts(&b, "]}");
    if (!ok)
        http_set_header(x, "Retry-After", "1");
    api_reply_json(x, ok ? 200 : 503, &b);
}

void api_metrics(struct api *a, struct http_exchange *x)
{
    struct buf b;
    buf_init(&b);
    const struct metrics *all[DEPLOYMENTS_MAX];
    for (uint32_t i = 0; i < a->n_deployments; i++)
        all[i] = a->deployments[i].metrics;
    metrics_render(all, a->n_deployments, &b);
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

/* ---- the tokenizer's twins ---- */

/* One of the names by which clients know a switch. */
static bool get_either(const json_t *o, const char *a, const char *b, bool *out, struct api_error *e)
{
    return api_get_bool(o, a, out, e) && api_get_bool(o, b, out, e);
}

static bool check_room(const struct buf *out, struct api_error *e)
{
    return out->len <= API_HELD_MAX || api_error(e, 400, NULL, "the answer would be over %d MiB: send less at a time", API_HELD_MAX >> 20);
}

/* As llama-server: text, or where a character is cut the bytes as numbers. */
static void put_piece(struct buf *out, const struct buf *piece)
{
    if (utf8_valid_prefix(piece->data ? piece->data : "", piece->len) == piece->len) {
        buf_json_str(out, piece->data ? piece->data : "", piece->len);
        return;
    }
    for (size_t i = 0; i < piece->len; i++)
        buf_printf(out, i ? ",%u" : "[%u", (unsigned char)piece->data[i]);
    buf_putc(out, ']');
}

static bool put_tokens(const struct deployment *d, const json_t *o, const struct tokens *t, struct buf *out, struct api_error *e)
{
    bool strs = false, pieces = false;
    if (!api_get_bool(o, "return_token_strs", &strs, e) || !api_get_bool(o, "with_pieces", &pieces, e))
        return false;
    struct buf piece;
    buf_init(&piece);
    buf_printf(out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", t->n, deployment_ctx(d));
    for (size_t i = 0; i < t->n && check_room(out, e); i++) {
        if (!pieces) {
            buf_printf(out, i ? ",%u" : "%u", t->ids[i]);
            continue;
        }
        buf_clear(&piece);
        tokenizer_piece(d->tok, t->ids[i], true, &piece);
        buf_printf(out, "%s{\"id\":%u,\"piece\":", i ? "," : "", t->ids[i]);
        put_piece(out, &piece);
        buf_putc(out, '}');
    }
    buf_putc(out, ']');
    for (size_t i = 0; strs && i < t->n && check_room(out, e); i++) {
        buf_clear(&piece);
        tokenizer_piece(d->tok, t->ids[i], true, &piece);
        buf_puts(out, i ? "," : ",\"token_strs\":[");
        buf_json_str(out, piece.data ? piece.data : "", piece.len);
    }
    if (strs)
        buf_puts(out, t->n ? "]" : ",\"token_strs\":[]");
    buf_putc(out, '}');
    buf_deinit(&piece);
    return e->status == 0;
}

static bool tokenize(struct api *a, const json_t *o, struct buf *out, struct api_error *e)
{
    struct deployment *d = api_get_model(a, o, e);
    if (!d)
        return false;
    bool parse = true, ok = false;
    struct tokens t = {0};
    struct generation g = {.api = a, .d = d, .ctx = deployment_ctx(d)}; /* carries a chat's prompt */
    const char *text = NULL, *key = json_object_get(o, "prompt") ? "prompt" : "content";
    bool special = strcmp(key, "prompt") == 0; /* what vLLM, whose name that is, and llama-server do when not told */
    if (!get_either(o, "add_special_tokens", "add_special", &special, e) || !api_get_bool(o, "parse_special", &parse, e))
        return false;
    if (json_object_get(o, "messages")) {
        if (api_get_chat(o, &g, e))
            ok = put_tokens(d, o, &g.prompts[0], out, e);
    } else if (api_get_str(o, key, &text, e)) {
        size_t len = json_string_length(json_object_get(o, key));
        if (!text)
            api_error(e, 400, "prompt", "`prompt` (or `messages`) is missing");
        else if (tokenizer_encode(d->tok, text, len, (special ? TOKENIZER_SPECIAL : 0) | (parse ? TOKENIZER_PARSE : 0), &t) != ERR_OK)
            api_error(e, 400, "prompt", "`prompt` cannot be tokenised: %.200s", err_detail());
        else
            ok = put_tokens(d, o, &t, out, e);
    }
    tokens_deinit(&t);
    for (uint32_t i = 0; i < g.n_prompts; i++)
        tokens_deinit(&g.prompts[i]);
    free(g.prompts);
    return ok;
}

static bool detokenize(struct api *a, const json_t *o, struct buf *out, struct api_error *e)
{
    const struct deployment *d = api_get_model(a, o, e);
    const json_t *ids = json_object_get(o, "tokens");
    if (!d)
        return false;
    if (!json_is_array(ids))
        return api_error(e, 400, "tokens", "`tokens` must be a list of token ids");
    struct detokenizer t;
    struct buf text;
    buf_init(&text);
    detokenizer_init(&t, d->tok, NULL, 0, true);
    for (size_t i = 0; !e->status && i < json_array_size(ids); i++) {
        const json_t *v = json_array_get(ids, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= d->hp.vocab)
            api_error(e, 400, "tokens", "`tokens[%zu]` is no token id below %u", i, d->hp.vocab);
        else
            detokenizer_push(&t, (uint32_t)json_integer_value(v), &text);
        check_room(&text, e);
    }
    detokenizer_finish(&t, &text);
    detokenizer_deinit(&t);
    static const char *const names[] = {"{\"prompt\":", ",\"content\":"}; /* vLLM's, llama-server's */
    for (size_t i = 0; i < ARRAY_LEN(names) && !e->status; i++) {
        buf_puts(out, names[i]);
        buf_json_str(out, text.data ? text.data : "", text.len);
        check_room(out, e);
    }
    buf_putc(out, '}');
    buf_deinit(&text);
    return e->status == 0;
}

static bool apply_template(struct api *a, const json_t *o, struct buf *out, struct api_error *e)
{
    const struct deployment *d = api_get_model(a, o, e);
    struct buf text;
    buf_init(&text);
    if (d && api_chat_render(o, d, &text, e)) {
        buf_puts(out, "{\"prompt\":");
        buf_json_str(out, text.data ? text.data : "", text.len);
        buf_putc(out, '}');
    }
    buf_deinit(&text);
    return e->status == 0;
}

void api_tokenize(struct api *a, struct http_exchange *x)
{
    api_task(a, x, tokenize);
}

void api_detokenize(struct api *a, struct http_exchange *x)
{
    api_task(a, x, detokenize);
}

void api_apply_template(struct api *a, struct http_exchange *x)
{
    api_task(a, x, apply_template);
}
