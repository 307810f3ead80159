/* Readers of request parameters: exact types, ranges, and an error that names the field. */
#include "coordinator/api.h"

#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The field of the outermost object whose value is being read at `end`, when that value was to be a number (NaN, Infinity, 1e999, 0x10: no JSON). */
static bool number_at(const char *body, size_t end, char *field, size_t cap)
{
    size_t depth = 0, string = 0, string_end = 0, value = 0;
    bool in_str = false, has_key = false;
    for (size_t i = 0; i < end; i++) {
        char c = body[i];
        if (in_str) {
            i += c == '\\';
            in_str = c != '"';
            string_end = in_str ? string_end : i;
        } else if (c == '"') {
            in_str = true;
            string = depth == 1 && !has_key ? i + 1 : string;
        } else if (c == ':' && depth == 1) {
            has_key = true;
            value = i + 1;
        } else if (c == ',' && depth == 1) {
            has_key = false;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if ((c == '}' || c == ']') && depth) {
            depth--;
        }
    }
    while (value < end && strchr(" \t\r\n", body[value]))
        value++;
    if (!has_key || value == end || !strchr("+-.0123456789NnIi", body[value]) || string_end <= string || string_end - string >= cap)
        return false;
    memcpy(field, body + string, string_end - string);
    field[string_end - string] = 0;
    return true;
}

json_t *api_parse_body(const char *body, size_t len, struct api_error *e)
{
    size_t depth = 0, deepest = 0; /* jansson's own limit is 2,048 levels: a shallower one keeps recursion elsewhere small */
    size_t n_containers = 0;       /* three bytes of a body, hundreds of memory each */
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
            depth++;
            n_containers++;
            deepest = MAX(deepest, depth);
        } else if ((c == '}' || c == ']') && depth) {
            depth--;
        }
    }
    if (deepest > API_JSON_DEPTH_MAX) {
        api_error(e, 400, NULL, "the body nests deeper than %d levels", API_JSON_DEPTH_MAX);
        return NULL;
    }
    if (n_containers > API_JSON_CONTAINERS_MAX) {
        api_error(e, 400, NULL, "the body holds more than %d lists and objects", API_JSON_CONTAINERS_MAX);
        return NULL;
    }
    json_error_t je;
    json_t *o = json_loadb(body, len, JSON_REJECT_DUPLICATES, &je);
    if (!o) {
        char field[sizeof(e->param)];
        bool number = number_at(body, MIN(len, (size_t)MAX(je.position, 0)), field, sizeof(field));
        api_error(e, 400, number ? field : NULL, "the body is no valid JSON: line %d, column %d: %.200s", je.line, je.column, je.text);
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

/* ---- stops, prompts ---- */

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

/* Drops tokens in front where the request wants it so; then the prompt must fit. */
static bool check_prompt(const struct generation *g, struct tokens *t, const char *param, struct api_error *e)
{
    if (g->truncate && t->n > g->truncate) {
        memmove(t->ids, t->ids + (t->n - g->truncate), g->truncate * sizeof(*t->ids));
        t->n = g->truncate;
    }
    if (t->n == 0)
        return api_error(e, 400, param, "`%s` is empty: the model needs at least one token", param);
    if (t->n > g->ctx)
        return api_error(e, 400, param, "the prompt has %zu tokens, the context is %u", t->n, g->ctx);
    return true;
}

static bool encode(const struct generation *g, const char *text, size_t len, unsigned flags, const char *param, struct tokens *out, struct api_error *e)
{
    enum err err = tokenizer_encode(g->d->tok, text, len, flags, out);
    return err == ERR_OK || api_error(e, err_http_status(err), param, "`%s` cannot be tokenised: %.200s", param, err_detail());
}

bool api_encode_prompt(const struct generation *g, const char *text, size_t len, unsigned flags, const char *param, struct tokens *out,
                       struct api_error *e)
{
    return encode(g, text, len, flags, param, out, e) && check_prompt(g, out, param, e);
}

static bool ids_prompt(const struct generation *g, const char *key, const json_t *list, struct tokens *out, struct api_error *e)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= g->d->hp.vocab)
            return api_error(e, 400, key, "`%s`: element %zu is no token id below %u", key, i, g->d->hp.vocab);
        if (tokens_push(out, (uint32_t)json_integer_value(v)) != ERR_OK)
            return api_error(e, 503, NULL, "out of memory");
    }
    return check_prompt(g, out, key, e);
}

/* The gap between prompt and suffix, as the model was trained to see it: PRE prompt SUF suffix MID. */
static bool infill_prompt(const struct generation *g, const json_t *prompt, const json_t *suffix, struct tokens *out, struct api_error *e)
{
    const struct deployment *d = g->d;
    const struct vocab *v = tokenizer_vocab(d->tok);
    bool bos = v->add_bos && v->bos >= 0;
    if ((bos && tokens_push(out, (uint32_t)v->bos) != ERR_OK) || tokens_push(out, d->fim[0]) != ERR_OK)
        return api_error(e, 503, NULL, "out of memory");
    if (!encode(g, json_string_value(prompt), json_string_length(prompt), 0, "prompt", out, e))
        return false;
    if (tokens_push(out, d->fim[1]) != ERR_OK)
        return api_error(e, 503, NULL, "out of memory");
    if (!encode(g, json_string_value(suffix), json_string_length(suffix), 0, "suffix", out, e))
        return false;
    if (tokens_push(out, d->fim[2]) != ERR_OK)
        return api_error(e, 503, NULL, "out of memory");
    return check_prompt(g, out, "prompt", e);
}

static bool get_suffix(const json_t *o, const struct deployment *d, const json_t **out, struct api_error *e)
{
    const json_t *v = api_get(o, "suffix");
    *out = NULL;
    if (v && !json_is_string(v))
        return api_error(e, 400, "suffix", "`suffix` must be a string");
    if (!v || json_string_length(v) == 0)
        return true;
    if (!d->has_fim)
        return api_error(e, 400, "suffix", "`suffix`: this model was not trained to fill in (it names no prefix, suffix and middle tokens)");
    *out = v;
    return true;
}

bool api_get_prompts(const json_t *o, const char *key, uint32_t n_max, struct generation *g, struct api_error *e)
{
    const json_t *v = api_get(o, key);
    static const char what[] = "`%s` must be a string, a list of strings, a list of token ids or a list of such lists";
    const json_t *suffix = NULL;
    if (!v || (!json_is_string(v) && !json_is_array(v)) || (json_is_array(v) && json_array_size(v) == 0))
        return api_error(e, 400, key, what, key);
    if (strcmp(key, "prompt") == 0 && !get_suffix(o, g->d, &suffix, e))
        return false;
    const json_t *first = json_is_array(v) ? json_array_get(v, 0) : NULL;
    bool single = !first || json_is_integer(first);
    size_t n = single ? 1 : json_array_size(v);
    if (n > n_max)
        return api_error(e, 400, key, "`%s` holds %zu prompts, at most %u are taken", key, n, n_max);
    g->prompts = calloc(n, sizeof(*g->prompts));
    if (!g->prompts)
        return api_error(e, 503, NULL, "out of memory");
    g->n_prompts = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *p = single ? v : json_array_get(v, i);
        bool ok;
        if (suffix)
            ok = json_is_string(p) ? infill_prompt(g, p, suffix, &g->prompts[i], e)
                                   : api_error(e, 400, "prompt", "`prompt` must be text where there is a `suffix`");
        else if (json_is_string(p))
            ok = api_encode_prompt(g, json_string_value(p), json_string_length(p), TOKENIZER_SPECIAL | TOKENIZER_PARSE, key, &g->prompts[i], e);
        else if (json_is_array(p))
            ok = ids_prompt(g, key, p, &g->prompts[i], e);
        else
            ok = api_error(e, 400, key, what, key);
        if (!ok)
            return false;
    }
    return true;
}
