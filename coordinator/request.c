#include "coordinator/request.h"

#include "base/check.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct request *request_create(uint32_t n_prompt)
{
    struct request *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->prompt = calloc((size_t)n_prompt + 1, sizeof *r->prompt);
    if (!r->prompt) {
        free(r);
        return NULL;
    }
    r->n_prompt = n_prompt;
    return r;
}

struct sampling_ids *sampling_ids_share(struct sampling_ids *s)
{
    if (s)
        atomic_fetch_add(&s->n_refs, 1);
    return s;
}

void sampling_ids_release(struct sampling_ids **p)
{
    struct sampling_ids *s = *p;
    *p = NULL;
    if (!s || atomic_fetch_sub(&s->n_refs, 1) > 1)
        return;
    uint32_t *arrays[] = {s->allowed, s->bad_id, s->bad_len, s->dry_id, s->dry_len};
    for (size_t i = 0; i < ARRAY_LEN(arrays); i++)
        free(arrays[i]);
    free(s);
}

void request_destroy(struct request **r)
{
    if (!*r)
        return;
    free((*r)->prompt);
    free((*r)->sampling.stop_ids);
    free((*r)->sampling.bias_id);
    free((*r)->sampling.bias);
    sampling_ids_release(&(*r)->sampling.ids);
    free(*r);
    *r = NULL;
}

/* Pointers first, then the 4-byte arrays: everything is aligned without padding. */
struct token_event *token_event_create(uint32_t n_tokens, bool logprobs, uint32_t n_top_total,
                                       uint32_t n_prompt_positions)
{
    size_t n_lp = (logprobs ? (size_t)n_tokens : 0) + n_prompt_positions;
    size_t bytes = sizeof(struct token_event) + n_lp * sizeof(struct token_logprobs) +
                   (size_t)n_tokens * sizeof(uint32_t) + (size_t)n_top_total * (sizeof(uint32_t) + sizeof(float));
    struct token_event *e = calloc(1, bytes);
    if (!e)
        return NULL;
    struct token_logprobs *lp = (struct token_logprobs *)(e + 1);
    uint32_t *words = (uint32_t *)(lp + n_lp);
    e->logprobs = logprobs && n_tokens ? lp : NULL;
    e->prompt_logprobs = n_prompt_positions ? lp + (logprobs ? n_tokens : 0) : NULL;
    e->n_prompt_logprobs = n_prompt_positions;
    e->n_tokens = n_tokens;
    e->tokens = words;
    e->top_ids = words + n_tokens;
    e->top_values = (float *)(e->top_ids + n_top_total);
    e->n_top_left = n_top_total;
    return e;
}

struct token_event *token_event_create_values(uint32_t n_values)
{
    struct token_event *e = calloc(1, sizeof *e + (size_t)n_values * sizeof(float));
    if (!e)
        return NULL;
    e->values = (float *)(e + 1);
    e->n_values = n_values;
    return e;
}

void token_event_top(struct token_event *e, struct token_logprobs *lp, uint32_t n)
{
    ASSERT(n <= e->n_top_left);
    lp->n_top = n;
    lp->id = e->top_ids;
    lp->top = e->top_values;
    e->top_ids += n;
    e->top_values += n;
    e->n_top_left -= n;
}

void token_event_destroy(struct token_event **e)
{
    free(*e);
    *e = NULL;
}
