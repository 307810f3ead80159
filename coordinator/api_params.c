/* Readers of request parameters: exact types, ranges, and an error that names the field. */
#include "coordinator/api.h"

#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *api_body(struct http_exchange *x, struct api_error *e)
{
    size_t len;
    const char *body = http_body(x, &len);
    return api_parse_body(body, len, e);
}

json_t *api_parse_body(const char *body, size_t len, struct api_error *e)
{
    size_t depth = 0, deepest = 0; /* jansson's own limit is 2,048 levels: a shallower one keeps recursion elsewhere small */
    bool in_str = false;
    for (size_t i = 0; i < len; i++) {
        char c = body[i];
        if (in_str) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_str = false;
        } else if (c == '"') {
            in_str = true;
        } else if (c == '{' || c == '[') {
            deepest = MAX(deepest, ++depth);
        } else if ((c == '}' || c == ']') && depth) {
            depth--;
        }
    }
    if (deepest > API_JSON_DEPTH_MAX) {
        api_error(e, 400, NULL, "the body nests deeper than %d levels", API_JSON_DEPTH_MAX);
        return NULL;
    }
    json_error_t je;
    json_t *o = json_loadb(body, len, JSON_REJECT_DUPLICATES, &je);
    if (!o) {
        api_error(e, 400, NULL, "the body is no valid JSON: line %d, column %d: %.200s", je.line, je.column, je.text);
        return NULL;
    }
    if (!json_is_object(o)) {
        api_error(e, 400, NULL, "the body must be a JSON object");
        json_decref(o);
        return NULL;
    }
    return o;
}

const json_t *api_get(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) ? v : NULL;
}

bool api_get_bool(const json_t *o, const char *key, bool *out, struct api_error *e)
{
    const json_t *v = api_get(o, key);
    if (!v)
        return true;
    if (!json_is_boolean(v))
        return api_error(e, 400, key, "`%s` must be true or false", key);
    *out = json_is_true(v);
    return true;
}

bool api_get_int(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *out, struct api_error *e)
{
    const json_t *v = api_get(o, key);
    if (!v)
        return true;
    if (!json_is_integer(v))
        return api_error(e, 400, key, "`%s` must be an integer", key);
    int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return api_error(e, 400, key, "`%s` must be between %lld and %lld, not %lld", key, (long long)min, (long long)max, (long long)i);
    *out = i;
    return true;
}

bool api_get_float(const json_t *o, const char *key, double min, double max, double *out, struct api_error *e)
{
    const json_t *v = api_get(o, key);
    if (!v)
        return true;
    if (!json_is_number(v))
        return api_error(e, 400, key, "`%s` must be a number", key);
    double d = json_number_value(v);
    if (!(d >= min && d <= max))
        return api_error(e, 400, key, "`%s` must be between %g and %g, not %g", key, min, max, d);
    *out = d;
    return true;
}

bool api_get_str(const json_t *o, const char *key, const char **out, struct api_error *e)
{
    const json_t *v = api_get(o, key);
    if (!v)
        return true;
    if (!json_is_string(v))
        return api_error(e, 400, key, "`%s` must be a string", key);
    *out = json_string_value(v);
    return true;
}

struct deployment *api_find_model(const struct api *a, const char *name, struct api_error *e)
{
    char list[256];
    struct deployment *d = deployment_find(a->deployments, a->n_deployments, name);
    if (!d) {
        deployment_list(a->deployments, a->n_deployments, list, sizeof(list));
        api_error(e, 404, "model", "there is no model `%.100s` here; this server has %s", name, list);
    }
    return d;
}

struct deployment *api_get_model(const struct api *a, const json_t *o, struct api_error *e)
{
    const char *name = NULL;
    if (!api_get_str(o, "model", &name, e))
        return NULL;
    return name ? api_find_model(a, name, e) : &a->deployments[0];
}

/* ---- stops, prompts, messages ---- */

static bool add_stop(const json_t *v, struct generation *g, struct api_error *e)
{
    if (!json_is_string(v) || json_string_length(v) == 0 || json_string_length(v) > API_STOP_BYTES_MAX)
        return api_error(e, 400, "stop", "`stop` must be one to %d strings of 1 to %d bytes", API_STOPS_MAX, API_STOP_BYTES_MAX);
    g->stops[g->n_stops] = strdup(json_string_value(v));
    return g->stops[g->n_stops++] != NULL || api_error(e, 503, NULL, "out of memory");
}

bool api_get_stops(const json_t *o, struct generation *g, struct api_error *e)
{
    const json_t *v = api_get(o, "stop");
    if (!v)
        return true;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > API_STOPS_MAX)
        return api_error(e, 400, "stop", "`stop` takes at most %d strings", API_STOPS_MAX);
    g->stops = calloc(n + 1, sizeof(*g->stops));
    if (!g->stops)
        return api_error(e, 503, NULL, "out of memory");
    for (size_t i = 0; i < n; i++)
        if (!add_stop(json_is_array(v) ? json_array_get(v, i) : v, g, e))
            return false;
    return true;
}

static bool check_prompt(const struct generation *g, const struct tokens *t, const char *param, struct api_error *e)
{
    if (t->n == 0)
        return api_error(e, 400, param, "`%s` is empty: the model needs at least one token", param);
    if (t->n > g->ctx)
        return api_error(e, 400, param, "the prompt has %zu tokens, the context is %u", t->n, g->ctx);
    return true;
}

static bool encode(const struct generation *g, const char *text, size_t len, unsigned flags, const char *param, struct tokens *out, struct api_error *e)
{
    enum err err = tokenizer_encode(g->d->tok, text, len, flags, out);
    if (err != ERR_OK)
        return api_error(e, err_http_status(err), param, "`%s` cannot be tokenised: %.200s", param, err_detail());
    return check_prompt(g, out, param, e);
}

static bool ids_prompt(const struct generation *g, const json_t *list, struct tokens *out, struct api_error *e)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= g->d->hp.vocab)
            return api_error(e, 400, "prompt", "`prompt`: element %zu is no token id below %u", i, g->d->hp.vocab);
        if (tokens_push(out, (uint32_t)json_integer_value(v)) != ERR_OK)
            return api_error(e, 503, NULL, "out of memory");
    }
    return check_prompt(g, out, "prompt", e);
}

bool api_get_prompts(const json_t *o, struct generation *g, struct api_error *e)
{
    const json_t *v = api_get(o, "prompt");
    static const char what[] = "`prompt` must be a string, a list of strings, a list of token ids or a list of such lists";
    if (!v || (!json_is_string(v) && !json_is_array(v)) || (json_is_array(v) && json_array_size(v) == 0))
        return api_error(e, 400, "prompt", what);
    const json_t *first = json_is_array(v) ? json_array_get(v, 0) : NULL;
    bool single = !first || json_is_integer(first);
    size_t n = single ? 1 : json_array_size(v);
    if (n > API_CHOICES_MAX)
        return api_error(e, 400, "prompt", "`prompt` holds %zu prompts, at most %d are taken", n, API_CHOICES_MAX);
    g->prompts = calloc(n, sizeof(*g->prompts));
    if (!g->prompts)
        return api_error(e, 503, NULL, "out of memory");
    g->n_prompts = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *p = single ? v : json_array_get(v, i);
        bool ok;
        if (json_is_string(p))
            ok = encode(g, json_string_value(p), json_string_length(p), TOKENIZER_SPECIAL | TOKENIZER_PARSE, "prompt", &g->prompts[i], e);
        else if (json_is_array(p))
            ok = ids_prompt(g, p, &g->prompts[i], e);
        else
            ok = api_error(e, 400, "prompt", what);
        if (!ok)
            return false;
    }
    return true;
}

/* Content as a string: text parts are joined; anything else is refused by name. */
static json_t *flat_content(const json_t *content, size_t idx, struct api_error *e)
{
    if (!content || json_is_null(content))
        return json_string("");
    if (json_is_string(content))
        return json_incref((json_t *)content);
    if (!json_is_array(content)) {
        api_error(e, 400, "messages", "`messages[%zu].content` must be a string or a list of parts", idx);
        return NULL;
    }
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");
        if (!type || strcmp(type, "text") != 0 || !json_is_string(text)) {
            api_error(e, 400, "messages", "`messages[%zu].content[%zu]`: only parts of type `text` are understood by this model, not `%.40s`",
                      idx, i, type ? type : "?");
            buf_deinit(&b);
            return NULL;
        }
        buf_append(&b, json_string_value(text), json_string_length(text));
    }
    json_t *s = b.failed ? NULL : json_stringn(b.data ? b.data : "", b.len);
    buf_deinit(&b);
    if (!s)
        api_error(e, 503, NULL, "out of memory");
    return s;
}

static json_t *flat_messages(const json_t *messages, struct api_error *e)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "function"};
    json_t *out = json_array();
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *m = json_array_get(messages, i);
        const char *role = json_string_value(json_object_get(m, "role"));
        bool known = false;
        for (size_t r = 0; role && r < ARRAY_LEN(roles); r++)
            known |= strcmp(role, roles[r]) == 0;
        if (!json_is_object(m) || !known) {
            api_error(e, 400, "messages", "`messages[%zu]` must be an object whose `role` is system, developer, user, assistant or tool", i);
            json_decref(out);
            return NULL;
        }
        json_t *content = flat_content(json_object_get(m, "content"), i, e);
        if (!content) {
            json_decref(out);
            return NULL;
        }
        json_t *copy = json_copy((json_t *)m);
        if (strcmp(role, "developer") == 0)
            json_object_set_new(copy, "role", json_string("system"));
        json_object_set_new(copy, "content", content);
        json_array_append_new(out, copy);
    }
    return out;
}

bool api_get_chat(const json_t *o, struct generation *g, struct api_error *e)
{
    const struct deployment *d = g->d;
    const json_t *messages = api_get(o, "messages");
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return api_error(e, 400, "messages", "`messages` must be a list with at least one message");
    if (json_array_size(messages) > API_MESSAGES_MAX)
        return api_error(e, 400, "messages", "`messages` holds %zu messages, at most %d are taken", json_array_size(messages), API_MESSAGES_MAX);
    if (!d->tmpl)
        return api_error(e, 400, "messages", "this model has no usable chat template (%.200s); use /v1/completions", d->tmpl_error ? d->tmpl_error : "none in its file");
    bool generation_prompt = true;
    const json_t *kwargs = api_get(o, "chat_template_kwargs"), *tools = api_get(o, "tools");
    if (!api_get_bool(o, "add_generation_prompt", &generation_prompt, e))
        return false;
    if (kwargs && !json_is_object(kwargs))
        return api_error(e, 400, "chat_template_kwargs", "`chat_template_kwargs` must be an object");
    if (tools && !json_is_array(tools))
        return api_error(e, 400, "tools", "`tools` must be a list");
    json_t *flat = flat_messages(messages, e);
    if (!flat)
        return false;
    json_t *ctx = json_object();
    if (kwargs)
        json_object_update(ctx, (json_t *)kwargs);
    json_object_set_new(ctx, "messages", flat);
    if (tools && json_array_size(tools))
        json_object_set(ctx, "tools", (json_t *)tools);
    json_object_set_new(ctx, "add_generation_prompt", json_boolean(generation_prompt));
    json_object_set_new(ctx, "bos_token", json_string(d->bos_text));
    json_object_set_new(ctx, "eos_token", json_string(d->eos_text));
    struct buf text;
    buf_init(&text);
    enum err err = chat_template_render(d->tmpl, ctx, &text);
    json_decref(ctx);
    bool ok;
    g->prompts = calloc(1, sizeof(*g->prompts));
    g->n_prompts = g->prompts ? 1 : 0;
    if (err != ERR_OK) {
        ok = api_error(e, err == ERR_NOMEM ? 503 : 400, "messages", "the chat template refuses these messages: %.250s", err_detail());
    } else if (!g->prompts || text.failed) {
        ok = api_error(e, 503, NULL, "out of memory");
    } else {
        /* A template that writes BOS itself is the rule; one that does not gets it from the tokenizer. */
        size_t n = strlen(d->bos_text);
        unsigned flags = TOKENIZER_PARSE;
        if (tokenizer_vocab(d->tok)->add_bos && (n == 0 || text.len < n || memcmp(text.data, d->bos_text, n) != 0))
            flags |= TOKENIZER_SPECIAL;
        ok = encode(g, text.data ? text.data : "", text.len, flags, "messages", &g->prompts[0], e);
    }
    buf_deinit(&text);
    return ok;
}
