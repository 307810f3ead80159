/* Bodies of the generating routes, from bytes to checked requests: JSON, every parameter, prompts through the tokenizer, messages through the
 * demo model's own template; embeddings, rerank and score; and the same bytes as an answer through the splitter of thinking parts. The first byte chooses chat or completion, what the
 * template wants, and the marks. What is accepted must hold what the engine relies on; the splitter must give the same whole and in pieces. */
#include "base/check.h"
#include "coordinator/api_embed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct deployment deployment;
static struct api api;

enum { CTX = 64 };

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    static struct options opts = {.model = DEMO_MODEL, .served_model_name = "demo", .tp = 1, .pp = 1};
    ASSERT(deployment_open(&opts, 0, &deployment) == ERR_OK && deployment_load_text(&deployment) == ERR_OK && deployment.tmpl);
    deployment.has_fim = true;
    deployment.hp.has_cls = true; /* its vocabulary has no tokens for yes and no */
    for (uint32_t i = 0; i < 3; i++)
        deployment.fim[i] = deployment.hp.vocab - 1 - i;
    api = (struct api){.deployments = &deployment, .n_deployments = 1};
    return 0;
}

/* Ids of the vocabulary; where they are sequences, none is empty and together they are all. */
static void check_ids(const uint32_t *id, uint32_t n, uint32_t max, const uint32_t *len, uint32_t n_len)
{
    uint64_t sum = 0;
    ASSERT(n <= max);
    for (uint32_t i = 0; i < n; i++)
        ASSERT(id[i] < deployment.hp.vocab);
    for (uint32_t i = 0; i < n_len; i++) {
        ASSERT(len[i] > 0);
        sum += len[i];
    }
    ASSERT(!len || sum == n);
}

static void check_sampling(const struct sampling *s)
{
    ASSERT(s->temperature >= 0 && s->temperature <= 2 && s->top_p > 0 && s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1);
    ASSERT(s->top_k < deployment.hp.vocab && s->min_tokens <= s->max_tokens && s->n_logprobs <= API_LOGPROBS_MAX);
    ASSERT(s->n_stop_ids <= MSG_STOP_IDS_MAX && s->n_bias <= MSG_BIAS_MAX);
    for (uint32_t i = 0; i < s->n_stop_ids; i++)
        ASSERT(s->stop_ids[i] < deployment.hp.vocab);
    for (uint32_t i = 0; i < s->n_bias; i++)
        ASSERT(s->bias_id[i] < deployment.hp.vocab && isfinite(s->bias[i]));
    const float reals[] = {s->typical_p, s->top_n_sigma, s->xtc_probability, s->xtc_threshold, s->dynatemp_range, s->dynatemp_exponent,
                           s->dry_multiplier, s->dry_base, s->mirostat_tau, s->mirostat_eta};
    for (size_t i = 0; i < ARRAY_LEN(reals); i++)
        ASSERT(reals[i] >= 0 && reals[i] <= 100);
    ASSERT(s->mirostat <= 2 && s->typical_p > 0 && s->typical_p <= 1 && s->dry_base >= 1);
    const struct sampling_ids *ids = s->ids;
    if (!ids)
        return;
    check_ids(ids->allowed, ids->n_allowed, MSG_ALLOWED_MAX, NULL, 0);
    check_ids(ids->bad_id, ids->n_bad_ids, MSG_BAD_IDS_MAX, ids->bad_len, ids->n_bad);
    check_ids(ids->dry_id, ids->n_dry_ids, MSG_DRY_IDS_MAX, ids->dry_len, ids->n_dry);
}

static void split(const struct reasoning_format *f, const char *text, size_t len, size_t piece, struct buf *thought, struct buf *content)
{
    struct reasoning r;
    reasoning_init(&r, f, "<think>", len % 2 ? 7 : 0);
    for (size_t i = 0; i < len; i += piece)
        reasoning_push(&r, text + i, MIN(piece, len - i), thought, content);
    reasoning_finish(&r, thought, content);
    reasoning_deinit(&r);
}

static void check_split(unsigned which, const char *text, size_t len)
{
    static const char *const signs[] = {"</think>", "<|channel|>", "[THINK]", "<|START_THINKING|>", "</think><response>", "none"};
    const char *sign = signs[which % ARRAY_LEN(signs)];
    const struct reasoning_format *f = reasoning_find(sign, strlen(sign));
    struct buf b[4];
    for (int i = 0; i < 4; i++)
        buf_init(&b[i]);
    split(f, text, len, len + 1, &b[0], &b[1]);
    split(f, text, len, 1 + which % 7, &b[2], &b[3]);
    ASSERT(b[0].len == b[2].len && (b[0].len == 0 || memcmp(b[0].data, b[2].data, b[0].len) == 0));
    ASSERT(b[1].len == b[3].len && (b[1].len == 0 || memcmp(b[1].data, b[3].data, b[1].len) == 0));
    ASSERT(b[0].len + b[1].len <= len);
    for (int i = 0; i < 4; i++)
        buf_deinit(&b[i]);
}

static void check_embed(enum embed_kind kind, const json_t *o)
{
    struct api_error e = {0};
    struct embed m = {.api = &api, .kind = kind};
    bool ok = embed_read(&m, o, &e);
    ASSERT(ok == (e.status == 0) && (ok || (e.status >= 400 && e.message[0])));
    uint64_t n = 0;
    for (uint32_t i = 0; ok && i < m.n_inputs; n += m.inputs[i++].ids.n) {
        ASSERT(m.inputs[i].ids.n > 0 && m.inputs[i].ids.n <= m.ctx);
        for (size_t k = 0; k < m.inputs[i].ids.n; k++)
            ASSERT(m.inputs[i].ids.ids[k] < deployment.hp.vocab);
    }
    ASSERT(!ok || (m.n_inputs > 0 && m.n_inputs <= EMBED_INPUTS_MAX && n == m.prompt_tokens));
    ASSERT(!ok || (kind == EMBED_EMBEDDINGS ? m.dims >= 1 && m.dims <= deployment.hp.dim : kind == EMBED_SCORE || (m.top_n >= 1 && m.top_n <= m.n_inputs)));
    embed_deinit(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    check_split(data[0] >> 1, (const char *)data + 1, size - 1);
    deployment.caps.parts = data[0] & 2;
    deployment.caps.object_arguments = data[0] & 4;
    deployment.caps.reasoning = data[0] & 8 ? reasoning_find("</think>", 8) : NULL;
    struct api_error e = {0};
    bool chat = data[0] & 1;
    json_t *o = api_parse_body((const char *)data + 1, size - 1, &e);
    if (!o) {
        ASSERT(e.status == 400 && e.message[0]);
        return 0;
    }
    check_embed((enum embed_kind)(data[0] % 3), o);
    struct sampling s = {0};
    struct generation g = {.api = &api, .d = api_get_model(&api, o, &e), .ctx = CTX, .chat = chat};
    int64_t n = 1;
    bool ok = g.d && api_get_options(o, &g, &n, &e) && api_get_sampling(o, &g, &s, &e) && api_get_stops(o, &g, &e) && (chat ? api_get_chat(o, &g, &e) : api_get_prompts(o, "prompt", API_CHOICES_MAX, &g, &e));
    ASSERT(ok == (e.status == 0) && (ok || (e.status >= 400 && e.message[0])));
    if (ok) {
        check_sampling(&s);
        ASSERT(g.n_prompts > 0 && n >= 1 && n <= API_CHOICES_MAX && g.n_best <= n);
        for (uint32_t i = 0; i < g.n_prompts; i++) {
            ASSERT(g.prompts[i].n > 0 && g.prompts[i].n <= CTX);
            for (size_t k = 0; k < g.prompts[i].n; k++)
                ASSERT(g.prompts[i].ids[k] < deployment.hp.vocab);
        }
    }
    api_sampling_deinit(&s);
    for (uint32_t i = 0; i < g.n_prompts; i++)
        tokens_deinit(&g.prompts[i]);
    for (uint32_t i = 0; i < g.n_stops; i++)
        free(g.stops[i]);
    free(g.stops);
    free(g.prompts);
    json_decref(o);
    return 0;
}
