/* What a worker keeps of each running sequence: its sampling setup, its block table, how many positions have run, token counts for
 * the penalties, the tokens themselves where a parameter looks back at them, what it sampled last.
 *
 * slots_check looks at every number of a step before anything is changed: a hostile or buggy coordinator gets ERR_PROTOCOL, never a
 * crash. The big arrays (tables, counts) are one NORESERVE mapping, touched on use; nothing is allocated later.
 * One thread; read by the pool's threads during a pass. */
#ifndef WORKER_SLOTS_H
#define WORKER_SLOTS_H

#include "kernels/sampling.h"
#include "model/shard.h"
#include "proto/msg.h"

#include <stdbool.h>

/* How often a token stands in what the penalties look at, and how often in the output part of that. */
struct slot_count {
    uint32_t all, output;
};
struct slot {
    bool live;
    uint32_t gen;
    uint32_t pos;           /* positions that have run (with those a cached prefix skipped) */
    uint32_t n_blocks;
    uint32_t *blocks;       /* [ctx / 16] */
    bool has_sampled;       /* the last run sampled the token of position pos ... */
    uint32_t pending;       /* samples that the device has and the host does not yet */
    uint32_t sampled;       /* ... which was this (known on the last stage, and on stage 0 once it was handed over) */
    bool hidden_valid;      /* the device keeps the hidden state of position pos - 1 */

    uint64_t seed;
    uint32_t choice;
    float temperature, top_p, min_p;
    uint32_t top_k;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t min_tokens, prompt_len, n_logprobs;
    uint32_t n_stop, n_bias;
    uint32_t *stop;         /* [MSG_STOP_IDS_MAX], each id once */
    uint32_t *bias_id;      /* [MSG_BIAS_MAX], rising */
    float *bias;
    uint32_t n_targets, target[MSG_TARGETS_MAX];
    enum pooling pooling;
    double *pool_sum;       /* [dim], last stage: of the states so far, MEAN only */
    bool has_penalties;     /* counts are kept only then */
    uint32_t penalty_last_n; /* 0: of all tokens */
    struct slot_count *counts; /* [vocab] */
    float typical_p, top_n_sigma, xtc_probability, xtc_threshold, dynatemp_range, dynatemp_exponent; /* 0: off */
    uint32_t mirostat;
    float mirostat_tau, mirostat_eta, mu; /* mu: after the last sample */
    float dry_multiplier, dry_base;
    uint32_t dry_allowed_length, dry_last_n;
    bool has_history;       /* tokens are kept only then: DRY, bad sequences, a window of the penalties */
    uint32_t *tokens;       /* [ctx] of the positions below pos */
    uint32_t *allowed;      /* [vocab] bits; NULL: all may be sampled */
    uint32_t n_bad;         /* sequences that must not become output */
    uint32_t *bad_id, *bad_len; /* [MSG_BAD_IDS_MAX] */
    uint32_t *dry_stop;     /* [vocab] bits: ids that end what DRY looks at */
    uint32_t *dry_tail;     /* [vocab] bits: the last ids of the sequences below, which do the same */
    uint32_t n_dry;
    uint32_t *dry_id, *dry_len; /* [MSG_DRY_IDS_MAX] sequences of two and more */
    uint32_t dry_cut_begin, dry_cut_end; /* positions: the last place in the tokens where one of either stands; end 0: none does */

    uint32_t *allowed_bits; /* room */
};
static inline bool slot_bit(const uint32_t *bits, uint32_t id)
{
    return bits[id / 32] >> id % 32 & 1;
}
/* The host looks back at the tokens for it, all of which it then has to know (sampler_history.h). */
static inline bool slot_looks_back(const struct slot *sl)
{
    return sl->n_bad || sl->dry_multiplier > 0;
}
static inline struct sampling_params slot_params(const struct slot *sl)
{
    return (struct sampling_params){
        .seed = sl->seed, .choice = sl->choice, .top_k = sl->top_k, .temperature = sl->temperature, .top_p = sl->top_p, .min_p = sl->min_p,
        .repetition_penalty = sl->repetition_penalty, .presence_penalty = sl->presence_penalty, .frequency_penalty = sl->frequency_penalty,
        .typical_p = sl->typical_p, .top_n_sigma = sl->top_n_sigma, .xtc_probability = sl->xtc_probability, .xtc_threshold = sl->xtc_threshold,
        .dynatemp_range = sl->dynatemp_range, .dynatemp_exponent = sl->dynatemp_exponent, .mirostat_tau = sl->mirostat_tau,
        .mirostat_eta = sl->mirostat_eta, .mirostat = sl->mirostat, .min_tokens = sl->min_tokens, .prompt_len = sl->prompt_len};
}

struct slots_config {
    uint32_t max_seqs, ctx, vocab, dim, n_kv_blocks, max_step_tokens;
    bool sampling;          /* last stage: counts are kept */
    bool has_cls;           /* POOLING_RANK is possible */
};
struct slots {
    struct slots_config cfg;
    struct slot *slot;      /* [max_seqs] */
    void *map;
    size_t map_bytes, counts_bytes;
    uint32_t *last_run;     /* [max_seqs], scratch of the check: the run that names a slot */
};

enum err slots_init(struct slots *s, const struct slots_config *cfg);
void slots_deinit(struct slots *s);
/* Forgets all of them. */
void slots_reset(struct slots *s);

/* Every index, length and value of the step against the slots as they are; changes nothing. ERR_PROTOCOL names run, field and numbers. */
enum err slots_check(struct slots *s, const struct step *step);
/* Every run's slot exists, so that it may be looked at before the check. */
bool slots_known(const struct slots *s, const struct step *step);
/* Frees, sets up, appends blocks. The step has passed slots_check. */
void slots_apply(struct slots *s, const struct step *step);
/* After slots_apply, once per run in order: its input tokens; STEP_TOKEN_SAMPLED: only the device knows. Advances pos, counts. */
void slots_advance(struct slots *s, const struct step *step, uint32_t run, const uint32_t *tokens);

#endif
