/* The sampling parameters of a request: from JSON to struct sampling. Numbers stand in one table with their limits and defaults; lists have
 * readers of their own. Names, meanings and defaults are those of OpenAI, vLLM and llama-server; where they differ, vLLM's (a number of top_k that is
 * not positive, for instance, is off). What a parameter does is said in worker/sampler.h and kernels/sampling_filter.h. */
#include "coordinator/api.h"
#include "text/token_sequences.h"

#include "base/check.h"
#include "base/rng.h"

#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
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

/* ---- lists of ids and of words */

static struct sampling_ids *ids_of(struct sampling *s, struct api_error *e)
{
    if (!s->ids && (s->ids = calloc(1, sizeof(*s->ids))))
        s->ids->n_refs = 1;
    if (!s->ids)
        api_error(e, 503, NULL, "out of memory");
    return s->ids;
}

static bool get_allowed(const struct deployment *d, const json_t *o, struct sampling *s, struct api_error *e)
{
    const char *key = "allowed_token_ids";
    const json_t *v = api_get(o, key);
    if (!v)
        return true;
    size_t n = json_array_size(v);
    if (n == 0)
        return api_error(e, 400, key, "`%s` must be a list of at least one token id", key);
    struct sampling_ids *ids = ids_of(s, e);
    if (!ids)
        return false;
    ids->allowed = calloc(MIN(n, (size_t)MSG_ALLOWED_MAX), sizeof(*ids->allowed));
    if (!ids->allowed)
        return api_error(e, 503, NULL, "out of memory");
    return get_ids(v, key, d->hp.vocab, MSG_ALLOWED_MAX, ids->allowed, &ids->n_allowed, e);
}

static const struct token_pieces *pieces_of(struct deployment *d)
{
    struct token_pieces *p = atomic_load(&d->pieces), *none = NULL;
    if (p || token_pieces_create(d->tok, &p) != ERR_OK)
        return p;
    if (!atomic_compare_exchange_strong(&d->pieces, &none, p)) { /* another thread was first */
        token_pieces_destroy(&p);
        p = none;
    }
    return p;
}

/* Strings become sequences of ids; `breakers`: wherever they begin in a token. */
static bool get_words(struct deployment *d, const json_t *v, const char *key, bool breakers, size_t max_ids, struct token_sequences *q,
                      struct api_error *e)
{
    if (!json_is_array(v) || json_array_size(v) > API_WORDS_MAX)
        return api_error(e, 400, key, "`%s` must be a list of at most %d strings", key, API_WORDS_MAX);
    const struct token_pieces *pieces = breakers ? pieces_of(d) : NULL;
    if (breakers && !pieces)
        return api_error(e, 503, NULL, "out of memory");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *w = json_array_get(v, i);
        size_t len = json_string_length(w), before = q->ids.n;
        if (!json_is_string(w) || len == 0 || len > API_WORD_BYTES_MAX)
            return api_error(e, 400, key, "`%s[%zu]` must be a string of 1 to %d bytes", key, i, API_WORD_BYTES_MAX);
        enum err err = breakers ? token_sequences_breaker(pieces, d->tok, json_string_value(w), len, max_ids, q)
                                : token_sequences_word(d->tok, json_string_value(w), len, max_ids, q);
        for (size_t j = before; j < q->ids.n && err == ERR_OK; j++)
            if (q->ids.ids[j] >= d->hp.vocab) /* a tokenizer with more tokens than the model has rows */
                err = err_set(ERR_INVALID, "token %u is none of the model's %u", q->ids.ids[j], d->hp.vocab);
        if (err != ERR_OK)
            return api_error(e, err == ERR_NOMEM ? 503 : 400, key, "`%s[%zu]` cannot be taken: %.200s", key, i, err_detail());
    }
    return true;
}

static void move_sequences(struct token_sequences *q, uint32_t **id, uint32_t **len, uint32_t *n_ids, uint32_t *n)
{
    *id = q->ids.ids;
    *len = q->lens.ids;
    *n_ids = (uint32_t)q->ids.n;
    *n = (uint32_t)q->lens.n;
}

static bool get_bad_words(struct deployment *d, const json_t *o, struct sampling *s, struct api_error *e)
{
    struct token_sequences q = {0};
    const json_t *v = api_get(o, "bad_words");
    if (!v)
        return true;
    if (!ids_of(s, e) || !get_words(d, v, "bad_words", false, MSG_BAD_IDS_MAX, &q, e)) {
        token_sequences_deinit(&q);
        return false;
    }
    move_sequences(&q, &s->ids->bad_id, &s->ids->bad_len, &s->ids->n_bad_ids, &s->ids->n_bad);
    return true;
}

static bool get_breakers(struct deployment *d, const json_t *o, struct sampling *s, struct api_error *e)
{
    struct token_sequences q = {0};
    const char *key = "dry_sequence_breakers";
    const json_t *v = api_get(o, key);
    json_t *usual = v || s->dry_multiplier == 0 ? NULL : json_pack("[ssss]", "\n", ":", "\"", "*");
    if (!v && !usual)
        return s->dry_multiplier == 0 || api_error(e, 503, NULL, "out of memory");
    bool ok = ids_of(s, e) && get_words(d, v ? v : usual, key, true, MSG_DRY_IDS_MAX, &q, e);
    json_decref(usual);
    if (!ok) {
        token_sequences_deinit(&q);
        return false;
    }
    move_sequences(&q, &s->ids->dry_id, &s->ids->dry_len, &s->ids->n_dry_ids, &s->ids->n_dry);
    return true;
}

/* ---- numbers */

/* Integers as they come, before they are made sense of. */
struct integers {
    int64_t top_k, max_tokens, max_completion, min_tokens, repeat_last_n, dry_last_n, dry_allowed_length, mirostat;
};
static const struct number {
    const char *name;
    double min, max, def;
    size_t at;             /* a float in struct sampling; an int64_t in struct integers */
    bool integer;
} numbers[] = {
#define REAL(name, min, max, def, field) {name, min, max, def, offsetof(struct sampling, field), false}
#define INTEGER(name, min, max, def, field) {name, min, max, def, offsetof(struct integers, field), true}
    REAL("temperature", 0, 2, 1, temperature),
    REAL("dynatemp_range", 0, 2, 0, dynatemp_range),
    REAL("dynatemp_exponent", 0, 100, 1, dynatemp_exponent),
    REAL("top_p", 0, 1, 1, top_p),
    REAL("min_p", 0, 1, 0, min_p),
    INTEGER("top_k", -1, INT32_MAX, 0, top_k),
    REAL("typical_p", 0, 1, 1, typical_p),
    REAL("top_n_sigma", -1, 100, -1, top_n_sigma),
    REAL("xtc_probability", 0, 1, 0, xtc_probability),
    REAL("xtc_threshold", 0, 1, 0.1, xtc_threshold),
    REAL("repetition_penalty", 0.01, 100, 1, repetition_penalty),
    REAL("repeat_penalty", 0.01, 100, 1, repetition_penalty), /* llama-server's name; looks at the last 64 tokens unless repeat_last_n is there */
    REAL("presence_penalty", -2, 2, 0, presence_penalty),
    REAL("frequency_penalty", -2, 2, 0, frequency_penalty),
    INTEGER("repeat_last_n", -1, INT32_MAX, -1, repeat_last_n),
    REAL("dry_multiplier", 0, 100, 0, dry_multiplier),
    REAL("dry_base", 1, 100, 1.75, dry_base),
    INTEGER("dry_allowed_length", 0, INT32_MAX, 2, dry_allowed_length),
    INTEGER("dry_penalty_last_n", -1, INT32_MAX, -1, dry_last_n),
    INTEGER("mirostat", 0, 2, 0, mirostat),
    REAL("mirostat_tau", 0, 100, 5, mirostat_tau),
    REAL("mirostat_eta", 0, 10, 0.1, mirostat_eta),
    INTEGER("max_tokens", 0, INT32_MAX, -1, max_tokens),
    INTEGER("max_completion_tokens", 0, INT32_MAX, -1, max_completion),
    INTEGER("min_tokens", 0, INT32_MAX, 0, min_tokens),
#undef REAL
#undef INTEGER
};

static bool get_numbers(const json_t *o, struct sampling *s, struct integers *ints, struct api_error *e)
{
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) { /* the defaults first: two names may mean one place */
        const struct number *p = &numbers[i];
        if (p->integer)
            *(int64_t *)((char *)ints + p->at) = (int64_t)p->def;
        else
            *(float *)((char *)s + p->at) = (float)p->def;
    }
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        const struct number *p = &numbers[i];
        double d = p->def;
        if (!api_get(o, p->name))
            continue;
        if (p->integer ? !api_get_int(o, p->name, (int64_t)p->min, (int64_t)p->max, (int64_t *)((char *)ints + p->at), e)
                       : !api_get_float(o, p->name, p->min, p->max, &d, e))
            return false;
        if (!p->integer)
            *(float *)((char *)s + p->at) = (float)d;
    }
    return true;
}

/* From what a client writes to what a worker takes: 0 is off there. */
static void resolve(const struct generation *g, const json_t *o, const struct integers *n, struct sampling *s)
{
    enum { WINDOW = 64 };
    int64_t window = api_get(o, "repeat_penalty") && !api_get(o, "repeat_last_n") ? WINDOW : n->repeat_last_n;
    if (window == 0) {
        s->repetition_penalty = 1;
        s->presence_penalty = s->frequency_penalty = 0;
    }
    s->penalty_last_n = (uint32_t)MAX(window, 0);
    if (n->dry_last_n == 0)
        s->dry_multiplier = 0;
    s->dry_last_n = (uint32_t)MAX(n->dry_last_n, 0);
    s->dry_allowed_length = (uint32_t)n->dry_allowed_length;
    s->mirostat = (uint32_t)n->mirostat;
    s->top_k = n->top_k > 0 && n->top_k < g->d->hp.vocab ? (uint32_t)n->top_k : 0;
    s->top_p = s->top_p > 0 ? s->top_p : 1e-9f; /* the most likely token alone */
    s->typical_p = s->typical_p > 0 ? s->typical_p : 1e-9f;
    s->top_n_sigma = MAX(s->top_n_sigma, 0.0f);
    int64_t max_tokens = n->max_completion >= 0 ? n->max_completion : n->max_tokens;
    s->max_tokens = max_tokens >= 0 ? (uint32_t)max_tokens : g->chat ? UINT32_MAX : 16;
    s->min_tokens = (uint32_t)MIN(n->min_tokens, (int64_t)s->max_tokens);
}

bool api_get_sampling(const json_t *o, struct generation *g, struct sampling *s, struct api_error *e)
{
    struct integers n;
    int64_t seed = 0;
    memset(s, 0, sizeof(*s));
    rng_system(&seed, sizeof(seed));
    if (!get_numbers(o, s, &n, e) || !api_get_int(o, "seed", INT64_MIN, INT64_MAX, &seed, e) || !api_get_bool(o, "ignore_eos", &s->ignore_eos, e))
        return false;
    s->seed = (uint64_t)seed;
    resolve(g, o, &n, s);
    return get_stop_ids(g->d, o, s, e) && get_bias(g->d, o, s, e) && get_logprobs(o, g, s, e) && get_allowed(g->d, o, s, e) &&
           get_bad_words(g->d, o, s, e) && get_breakers(g->d, o, s, e);
}

void api_sampling_deinit(struct sampling *s)
{
    free(s->stop_ids);
    free(s->bias_id);
    free(s->bias);
    sampling_ids_release(&s->ids);
}
