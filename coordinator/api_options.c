/* The parameters of a request that are neither sampling nor prompt: how the answer is to look, what is taken without effect, and what would change the
 * answer but is not there: that is refused by name, never silently left out. Parameters that nobody here has heard of are ignored, as the peers do. */
#include "coordinator/api.h"

#include "base/check.h"

#include <stdio.h>
#include <string.h>

/* false, null, [], {} and "" ask for nothing. */
static bool asks(const json_t *v)
{
    return v && !json_is_null(v) && !json_is_false(v) && !((json_is_array(v) || json_is_object(v)) && json_array_size(v) + json_object_size(v) == 0) &&
           !(json_is_string(v) && json_string_length(v) == 0);
}

static bool refuse_unsupported(const json_t *o, bool chat, struct api_error *e)
{
    static const char grammar[] = "structured output is not there in this version", tools[] = "it is the older form of `tools` and `tool_choice`: use those";
    static const struct {
        const char *key, *why;
        bool chat_only;
    } keys[] = {
        {"audio", "this server's models write text only", true},
        {"web_search_options", "this server searches nothing on the web", true},
        {"prediction", "predicted outputs are not there in this version", true},
        {"functions", tools, true},
        {"function_call", tools, true},
        {"use_beam_search", "beam search is not there; `best_of` chooses among several answers", false},
        {"prompt_embeds", "prompts are text or token ids", false},
        {"structured_outputs", grammar, false},
        {"guided_json", grammar, false},
        {"guided_regex", grammar, false},
        {"guided_choice", grammar, false},
        {"guided_grammar", grammar, false},
        {"json_schema", grammar, false},
        {"grammar", grammar, false},
    };
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if ((chat || !keys[i].chat_only) && asks(json_object_get(o, keys[i].key)))
            return api_error(e, 400, keys[i].key, "`%s` is not supported: %s", keys[i].key, keys[i].why);
    return true;
}

static bool check_modalities(const json_t *o, struct api_error *e)
{
    const json_t *v = api_get(o, "modalities");
    if (v && !json_is_array(v))
        return api_error(e, 400, "modalities", "`modalities` must be a list");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const char *s = json_string_value(json_array_get(v, i));
        if (!s || strcmp(s, "text") != 0)
            return api_error(e, 400, "modalities", "`modalities`: this server's models write text only, not `%.40s`", s ? s : "?");
    }
    return true;
}

static bool check_response_format(const json_t *o, struct api_error *e)
{
    const json_t *v = api_get(o, "response_format");
    if (!v)
        return true;
    const char *type = json_string_value(json_object_get(v, "type"));
    if (!type)
        return api_error(e, 400, "response_format", "`response_format` must be an object with a `type`");
    if (strcmp(type, "text") == 0)
        return true;
    if (strcmp(type, "json_object") == 0 || strcmp(type, "json_schema") == 0 || strcmp(type, "structural_tag") == 0)
        return api_error(e, 400, "response_format", "`response_format` of type `%s` is not supported: structured output is not there in this version", type);
    return api_error(e, 400, "response_format", "`response_format.type` must be `text`, not `%.40s`", type);
}

static bool check_metadata(const json_t *o, struct api_error *e)
{
    static const char what[] = "`metadata` must be an object of at most 16 strings, with keys of at most 64 and values of at most 512 characters";
    const json_t *v = api_get(o, "metadata");
    if (v && (!json_is_object(v) || json_object_size(v) > 16))
        return api_error(e, 400, "metadata", what);
    const char *key;
    json_t *val;
    json_object_foreach((json_t *)v, key, val)
        if (strlen(key) > 64 * 4 || !json_is_string(val) || json_string_length(val) > 512 * 4)
            return api_error(e, 400, "metadata", what);
    return true;
}

/* Taken and of no effect on the answer; their types are checked all the same. */
static bool check_ignored(const json_t *o, struct api_error *e)
{
    static const char *const strings[] = {"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "cache_salt", "request_id"};
    static const char *const bools[] = {"store", "parallel_tool_calls", "spaces_between_special_tokens"};
    for (size_t i = 0; i < ARRAY_LEN(strings); i++) {
        const char *s = NULL;
        if (!api_get_str(o, strings[i], &s, e))
            return false;
    }
    for (size_t i = 0; i < ARRAY_LEN(bools); i++) {
        bool b;
        if (!api_get_bool(o, bools[i], &b, e))
            return false;
    }
    int64_t priority;
    return api_get_int(o, "priority", INT32_MIN, INT32_MAX, &priority, e) && check_metadata(o, e);
}

static bool get_service_tier(const json_t *o, struct generation *g, struct api_error *e)
{
    static const char *const tiers[] = {"auto", "default", "flex", "scale", "priority"};
    const char *s = NULL;
    if (!api_get_str(o, "service_tier", &s, e))
        return false;
    for (size_t i = 0; s && i < ARRAY_LEN(tiers); i++)
        g->service_tier |= strcmp(s, tiers[i]) == 0;
    return !s || g->service_tier || api_error(e, 400, "service_tier", "`service_tier` must be one of auto, default, flex, scale, priority");
}

static bool get_stream_options(const json_t *o, struct generation *g, struct api_error *e)
{
    const json_t *so = api_get(o, "stream_options");
    if (!so)
        return true;
    if (!json_is_object(so))
        return api_error(e, 400, "stream_options", "`stream_options` must be an object");
    if (!g->stream)
        return api_error(e, 400, "stream_options", "`stream_options` needs `stream` to be true");
    return api_get_bool(so, "include_usage", &g->include_usage, e) && api_get_bool(so, "continuous_usage_stats", &g->continuous_usage, e);
}

/* What the server was started with, then what the request says in the way of llama-server. */
static bool get_reasoning(const json_t *o, struct generation *g, struct api_error *e)
{
    const struct options *opts = g->d->opts;
    bool split = opts->reasoning_format == 0;
    const char *s = NULL;
    g->include_reasoning = true;
    if (!api_get_bool(o, "include_reasoning", &g->include_reasoning, e) || !api_get_str(o, "reasoning_format", &s, e))
        return false;
    if (s && strcmp(s, "none") != 0 && strcmp(s, "auto") != 0 && strcmp(s, "deepseek") != 0)
        return api_error(e, 400, "reasoning_format", "`reasoning_format` must be auto, deepseek or none");
    if (s)
        split = strcmp(s, "none") != 0;
    g->reasoning_field = !split ? NULL : opts->reasoning_field == 0 ? "reasoning_content" : "reasoning";
    return true;
}

/* n, and best_of of a text completion. */
static bool get_n(const json_t *o, struct generation *g, int64_t *n, struct api_error *e)
{
    int64_t best = 0;
    if (!api_get_int(o, "n", 1, API_CHOICES_MAX, n, e) || (!g->chat && !api_get_int(o, "best_of", 1, API_CHOICES_MAX, &best, e)))
        return false;
    if (best == 0 || best == *n)
        return true;
    if (best < *n)
        return api_error(e, 400, "best_of", "`best_of` (%lld) must be at least `n` (%lld)", (long long)best, (long long)*n);
    if (g->stream)
        return api_error(e, 400, "best_of", "`best_of` cannot be streamed: which answers are the best is known at the end");
    g->n_best = (uint32_t)*n;
    *n = best;
    return true;
}

bool api_get_options(const json_t *o, struct generation *g, int64_t *n, struct api_error *e)
{
    bool skip_special = true;
    int64_t truncate = -1;
    if (!refuse_unsupported(o, g->chat, e) || !check_modalities(o, e) || !check_response_format(o, e) || !check_ignored(o, e))
        return false;
    if (!api_get_bool(o, "stream", &g->stream, e) || !api_get_bool(o, "return_token_ids", &g->return_token_ids, e) ||
        !api_get_bool(o, "return_tokens_as_token_ids", &g->tokens_as_ids, e) || !api_get_bool(o, "skip_special_tokens", &skip_special, e) ||
        !api_get_bool(o, "include_stop_str_in_output", &g->include_stop, e) ||
        !api_get_int(o, "truncate_prompt_tokens", -1, INT32_MAX, &truncate, e) || (!g->chat && !api_get_bool(o, "echo", &g->echo, e)))
        return false;
    if (truncate == 0)
        return api_error(e, 400, "truncate_prompt_tokens", "`truncate_prompt_tokens` must be -1 (what fits) or at least 1");
    if (api_get(o, "truncate_prompt_tokens"))
        g->truncate = truncate > 0 ? (uint32_t)truncate : MAX(g->ctx, 2) - 1;
    g->show_special = !skip_special;
    return get_n(o, g, n, e) && get_service_tier(o, g, e) && get_stream_options(o, g, e) && (!g->chat || get_reasoning(o, g, e));
}
