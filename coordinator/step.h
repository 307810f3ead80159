/* A plan becomes a struct step for the workers; their struct step_result becomes samples for the scheduler and
 * token_events for the front. Pure functions; what they make lives in the arena given. Results come from another
 * process: everything in them is checked against the plan. */
#ifndef COORDINATOR_STEP_H
#define COORDINATOR_STEP_H

#include "base/arena.h"
#include "coordinator/scheduler.h"
#include "proto/msg.h"

enum { STEP_WARMUP_TOKENS = 16 };

/* ERR_NOMEM. Views into the sequences: encode it before the scheduler is called again. */
enum err step_build(const struct step_plan *p, const struct kv_blocks *kv, uint64_t epoch, struct arena *a,
                    struct step *out);
/* The two steps that prove a new epoch before any request runs on it, in slot 0 and generation 0: a prompt of
 * STEP_WARMUP_TOKENS tokens of id 0 with a sample (second = false), then one decode whose input is what was sampled.
 * Needs 2 blocks: 0 and 1. */
enum err step_build_warmup(uint64_t epoch, uint64_t step_id, bool second, struct arena *a, struct step *out);
/* ERR_PROTOCOL unless the result is of this warm-up step. */
enum err step_check_warmup(const struct step_result *r, uint64_t step_id, uint32_t vocab);

/* A result seen from the plan: by run. */
struct step_samples {
    uint32_t *token; /* STEP_TOKEN_SAMPLED where none was wanted */
    uint32_t *row;   /* first row of log-probabilities */
    uint32_t *n_rows;
    float *mu;         /* mirostat's state after the sample; NaN where there is none */
    uint32_t *row_top; /* [all rows + 1] where a row's top entries begin */
    const float **pooled; /* NULL where none was wanted */
};
/* ERR_PROTOCOL names what does not match; ERR_NOMEM. */
enum err step_match(const struct step_plan *p, const struct step_result *r, uint32_t vocab, struct arena *a,
                    struct step_samples *out);
/* What an outcome of scheduler_apply means to the client. NULL: out of memory. Run it for every outcome, also where
 * only a chunk was computed: it gathers the prompt's log-probabilities and keeps mirostat's state. */
struct token_event *step_event(const struct step_plan *p, const struct step_result *r, const struct step_samples *m,
                               const struct seq_outcome *o);

#endif
