#include "coordinator/seq.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

static bool prompt_logprobs_init(struct seq_prompt_logprobs *p, uint32_t n_prompt, uint32_t n_top)
{
    size_t n = (size_t)n_prompt + 1, wide = n * (n_top + 1u);
    p->logprob = calloc(n, sizeof *p->logprob);
    p->n_top = calloc(n, sizeof *p->n_top);
    p->top_id = calloc(wide, sizeof *p->top_id);
    p->top = calloc(wide, sizeof *p->top);
    return p->logprob && p->n_top && p->top_id && p->top;
}

struct seq *seq_create(struct request *r, uint32_t ctx)
{
    uint64_t want = (uint64_t)r->n_prompt + r->sampling.max_tokens;
    uint32_t cap = MAX((uint32_t)MIN(want, ctx), r->n_prompt);
    struct seq *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    /* Room for the longest output at once; pages that no token ever reaches are never touched. */
    s->tokens = malloc(((size_t)cap + 1) * sizeof *s->tokens);
    if (!s->tokens)
        goto fail;
    if (r->sampling.prompt_logprobs && !prompt_logprobs_init(&s->prompt_logprobs, r->n_prompt, r->sampling.n_logprobs))
        goto fail;
    memcpy(s->tokens, r->prompt, (size_t)r->n_prompt * sizeof *s->tokens);
    s->n_cap = cap;
    s->n_tokens = r->n_prompt;
    s->mu = 2 * r->sampling.mirostat_tau;
    s->req = r;
    return s;
fail:
    seq_destroy(&s);
    return NULL;
}

void seq_destroy(struct seq **s)
{
    if (!*s)
        return;
    request_destroy(&(*s)->req);
    free((*s)->tokens);
    free((*s)->prompt_logprobs.logprob);
    free((*s)->prompt_logprobs.n_top);
    free((*s)->prompt_logprobs.top_id);
    free((*s)->prompt_logprobs.top);
    free(*s);
    *s = NULL;
}
