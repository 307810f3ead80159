/* A sequence: one accepted request with all of its tokens, from engine_submit to its last event. The scheduler moves it
 * between its lists; the engine owns the memory. Everything needed to rebuild it on fresh workers is here. */
#ifndef COORDINATOR_SEQ_H
#define COORDINATOR_SEQ_H

#include "coordinator/request.h"

enum seq_state { SEQ_NEW, SEQ_QUEUED, SEQ_ACTIVE, SEQ_OUT };

/* Log-probabilities of the prompt, gathered chunk by chunk; a chunk that is computed again overwrites the same values.
 */
struct seq_prompt_logprobs {
    float *logprob;   /* [n_prompt]; NaN for the first */
    uint32_t *n_top;  /* [n_prompt] */
    uint32_t *top_id; /* [n_prompt][n_logprobs] */
    float *top;
    bool sent;
};

struct seq {
    struct request *req; /* owned */
    uint32_t *tokens;    /* prompt, then output; room for n_cap */
    uint32_t n_cap;
    float mu;            /* mirostat's state after the last token: the one thing that cannot be computed from the tokens */
    struct seq_prompt_logprobs prompt_logprobs;
    bool started; /* the client has had its first event */
    uint64_t first_slot_ns, first_token_ns, last_token_ns;

    /* The scheduler's. */
    enum seq_state state;
    struct seq *prev, *next;
    uint64_t order;      /* rank of its arrival; the younger has the larger */
    uint32_t n_tokens;   /* known: prompt and accepted output */
    uint32_t n_planned;  /* positions computed by steps that are done or in flight */
    uint32_t n_pending;  /* samples on their way */
    uint32_t slot;       /* while active */
    uint64_t last_step;  /* id of the newest step it takes part in */
    uint32_t n_best;     /* the furthest that it was ever computed */
    uint32_t n_failures; /* times a replica failed under it since it last got further */
};

/* Takes the request over on success. ctx: the longest that a sequence may ever become. NULL: out of memory. */
struct seq *seq_create(struct request *r, uint32_t ctx);
void seq_destroy(struct seq **s);
static inline uint32_t seq_n_output(const struct seq *s)
{
    return s->n_tokens - s->req->n_prompt;
}

#endif
