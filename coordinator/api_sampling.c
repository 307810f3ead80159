/* The sampling parameters of a request: from JSON to struct sampling. */
#include "coordinator/api.h"

#include "base/check.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool get_ids(const json_t *v, const char *key, uint32_t vocab, uint32_t max, uint32_t *out, uint32_t *n, struct api_error *e)
{
    if (!json_is_array(v) || json_array_size(v) > max)
        return api_error(e, 400, key, "`%s` must be a list of at most %u token ids", key, max);
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *id = json_array_get(v, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab)
            return api_error(e, 400, key, "`%s[%zu]` must be a token id below %u", key, i, vocab);
        out[(*n)++] = (uint32_t)json_integer_value(id);
    }
    return true;
}

static bool get_stop_ids(const struct deployment *d, const json_t *o, struct sampling *s, struct api_error *e)
{
    s->stop_ids = calloc(MSG_STOP_IDS_MAX, sizeof(*s->stop_ids));
    if (!s->stop_ids)
        return api_error(e, 503, NULL, "out of memory");
    if (!s->ignore_eos) {
        memcpy(s->stop_ids, d->end_ids, d->n_end_ids * sizeof(*s->stop_ids));
        s->n_stop_ids = d->n_end_ids;
    }
    const json_t *v = api_get(o, "stop_token_ids");
    return !v || get_ids(v, "stop_token_ids", d->hp.vocab, MSG_STOP_IDS_MAX - DEPLOYMENT_END_IDS_MAX, s->stop_ids, &s->n_stop_ids, e);
}

static bool get_bias(const struct deployment *d, const json_t *o, struct sampling *s, struct api_error *e)
{
    const json_t *v = api_get(o, "logit_bias");
    if (!v)
        return true;
    if (!json_is_object(v) || json_object_size(v) > MSG_BIAS_MAX)
        return api_error(e, 400, "logit_bias", "`logit_bias` must be an object of at most %d token ids", MSG_BIAS_MAX);
    size_t n = json_object_size(v);
    s->bias_id = calloc(n + 1, sizeof(*s->bias_id));
    s->bias = calloc(n + 1, sizeof(*s->bias));
    if (!s->bias_id || !s->bias)
        return api_error(e, 503, NULL, "out of memory");
    const char *key;
    json_t *val;
    json_object_foreach((json_t *)v, key, val)
    {
        char *end;
        unsigned long id = strtoul(key, &end, 10);
        if (*key < '0' || *key > '9' || *end || id >= d->hp.vocab)
            return api_error(e, 400, "logit_bias", "`logit_bias`: \"%.40s\" is no token id below %u", key, d->hp.vocab);
        if (!json_is_number(val) || !(fabs(json_number_value(val)) <= 100))
            return api_error(e, 400, "logit_bias", "`logit_bias`: the bias of %lu must be a number from -100 to 100", id);
        s->bias_id[s->n_bias] = (uint32_t)id;
        s->bias[s->n_bias++] = (float)json_number_value(val);
    }
    return true;
}

static bool get_logprobs(const json_t *o, struct generation *g, struct sampling *s, struct api_error *e)
{
    int64_t n = 0;
    if (g->chat) {
        if (!api_get_bool(o, "logprobs", &s->logprobs, e) || !api_get_int(o, "top_logprobs", 0, API_LOGPROBS_MAX, &n, e))
            return false;
        if (n && !s->logprobs)
            return api_error(e, 400, "top_logprobs", "`top_logprobs` needs `logprobs` to be true");
    } else {
        n = -1;
        if (!api_get_int(o, "logprobs", 0, API_LOGPROBS_MAX, &n, e))
            return false;
        s->logprobs = n >= 0;
        n = MAX(n, 0);
    }
    int64_t prompt = -1;
    if (!api_get_int(o, "prompt_logprobs", 0, API_LOGPROBS_MAX, &prompt, e))
        return false;
    s->prompt_logprobs = prompt >= 0;
    g->n_logprobs = (uint32_t)n;
    g->n_prompt_logprobs = (uint32_t)MAX(prompt, 0);
    s->n_logprobs = MAX(g->n_logprobs, g->n_prompt_logprobs); /* workers know one number */
    return true;
}

bool api_get_sampling(const json_t *o, struct generation *g, struct sampling *s, struct api_error *e)
{
    double temperature = 1, top_p = 1, min_p = 0, rep = 1, pres = 0, freq = 0;
    int64_t top_k = 0, max_tokens = -1, max_completion = -1, min_tokens = 0, seed = 0;
    memset(s, 0, sizeof(*s));
    rng_system(&seed, sizeof(seed));
    if (!api_get_float(o, "temperature", 0, 2, &temperature, e) || !api_get_float(o, "top_p", 0, 1, &top_p, e) ||
        !api_get_float(o, "min_p", 0, 1, &min_p, e) || !api_get_int(o, "top_k", -1, INT32_MAX, &top_k, e) ||
        !api_get_float(o, "repetition_penalty", 0.01, 100, &rep, e) || !api_get_float(o, "presence_penalty", -2, 2, &pres, e) ||
        !api_get_float(o, "frequency_penalty", -2, 2, &freq, e) || !api_get_int(o, "max_tokens", 0, INT32_MAX, &max_tokens, e) ||
        !api_get_int(o, "max_completion_tokens", 0, INT32_MAX, &max_completion, e) ||
        !api_get_int(o, "min_tokens", 0, INT32_MAX, &min_tokens, e) || !api_get_int(o, "seed", INT64_MIN, INT64_MAX, &seed, e) ||
        !api_get_bool(o, "ignore_eos", &s->ignore_eos, e))
        return false;
    if (top_p == 0)
        top_p = 1e-9; /* the most likely token alone */
    s->temperature = (float)temperature;
    s->top_p = (float)top_p;
    s->min_p = (float)min_p;
    s->top_k = top_k > 0 && top_k < g->d->hp.vocab ? (uint32_t)top_k : 0;
    s->repetition_penalty = (float)rep;
    s->presence_penalty = (float)pres;
    s->frequency_penalty = (float)freq;
    s->seed = (uint64_t)seed;
    if (max_completion >= 0)
        max_tokens = max_completion;
    s->max_tokens = max_tokens >= 0 ? (uint32_t)max_tokens : g->chat ? UINT32_MAX : 16;
    s->min_tokens = (uint32_t)MIN(min_tokens, (int64_t)s->max_tokens);
    return get_stop_ids(g->d, o, s, e) && get_bias(g->d, o, s, e) && get_logprobs(o, g, s, e);
}

void api_sampling_deinit(struct sampling *s)
{
    free(s->stop_ids);
    free(s->bias_id);
    free(s->bias);
}
