/* Bodies of the generating routes, from bytes to checked requests: JSON, every parameter, prompts through the tokenizer, messages through the
 * demo model's own template. The first byte chooses chat or completion. What is accepted must hold what the engine relies on. */
#include "base/check.h"
#include "coordinator/api.h"

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
    api = (struct api){.deployments = &deployment, .n_deployments = 1};
    return 0;
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
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct api_error e = {0};
    bool chat = data[0] & 1;
    json_t *o = api_parse_body((const char *)data + 1, size - 1, &e);
    if (!o) {
        ASSERT(e.status == 400 && e.message[0]);
        return 0;
    }
    struct sampling s = {0};
    struct generation g = {.api = &api, .d = api_get_model(&api, o, &e), .ctx = CTX, .chat = chat};
    bool ok = g.d && api_get_sampling(o, &g, &s, &e) && api_get_stops(o, &g, &e) && (chat ? api_get_chat(o, &g, &e) : api_get_prompts(o, &g, &e));
    ASSERT(ok == (e.status == 0) && (ok || (e.status >= 400 && e.message[0])));
    if (ok) {
        check_sampling(&s);
        ASSERT(g.n_prompts > 0);
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
