/* What passes between front and engine: a request going in, events coming out. Nothing else is shared between the two
 * threads.
 *
 * struct request: made by the front (api), owned by the engine from a successful queue_push on, freed by it with
 * request_destroy. Token ids only: text, stop strings, templates and JSON stay in the front. One request is one choice:
 * `n` choices are n requests with the same prompt and choice 0..n-1. struct token_event: made by the engine, owned by
 * the front once pushed. A cancellation is the id alone (engine_cancel). */
#ifndef COORDINATOR_REQUEST_H
#define COORDINATOR_REQUEST_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct sampling {
    float temperature, top_p, min_p;
    uint32_t top_k;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint64_t seed;
    uint32_t choice;
    uint32_t max_tokens; /* resolved: >= 0; 0 only with prompt_logprobs */
    uint32_t min_tokens;
    bool ignore_eos;
    uint32_t n_logprobs;  /* top log-probabilities per token */
    bool logprobs;        /* of the sampled token too */
    bool prompt_logprobs; /* of every prompt token, n_logprobs each */
    uint32_t *stop_ids;   /* end ids of the model (unless ignore_eos) and stop_token_ids */
    uint32_t n_stop_ids;
    uint32_t *bias_id;
    float *bias;
    uint32_t n_bias;
    uint32_t penalty_last_n; /* as in struct slot_setup (proto/msg.h), to the end of the struct */
    float typical_p, top_n_sigma, xtc_probability, xtc_threshold, dynatemp_range, dynatemp_exponent;
    float dry_multiplier, dry_base;
    uint32_t dry_allowed_length, dry_last_n;
    uint32_t mirostat;
    float mirostat_tau, mirostat_eta;
    struct sampling_ids *ids; /* NULL: nothing is listed; shared by the choices of a generation */
};
/* The long lists of a request. Counted references, because n choices need them once; the count may fall on any thread. */
struct sampling_ids {
    _Atomic uint32_t n_refs;
    uint32_t *allowed;
    uint32_t n_allowed;
    uint32_t *bad_id, *bad_len, n_bad_ids, n_bad;
    uint32_t *dry_id, *dry_len, n_dry_ids, n_dry;
};
struct sampling_ids *sampling_ids_share(struct sampling_ids *s); /* NULL stays NULL */
void sampling_ids_release(struct sampling_ids **s);

/* What a request is for. EMBED and SCORE run their prompt and end: max_tokens is 0. */
enum request_kind {
    REQUEST_GENERATE,
    REQUEST_EMBED, /* the pooled hidden state of the prompt: event.values [dim], not normalised */
    REQUEST_SCORE, /* log-probabilities of `targets` after the prompt: event.values [n_targets] */
};
enum { REQUEST_TARGETS_MAX = 4 };
struct request {
    uint64_t id;      /* unique in the process, given by the front */
    enum request_kind kind;
    uint32_t pooling; /* EMBED: POOLING_MEAN, LAST, or RANK (the outputs of a reranker's head, then zeros) */
    uint32_t targets[REQUEST_TARGETS_MAX], n_targets;
    uint32_t *prompt; /* token ids, BOS included */
    uint32_t n_prompt;
    struct sampling sampling;
    uint64_t arrival_ns;
    struct request *next; /* for the owner's lists */
};
struct request *request_create(uint32_t n_prompt); /* zeroed, prompt allocated; NULL: out of memory */
void request_destroy(struct request **r);

enum finish {
    FINISH_NONE,   /* more to come */
    FINISH_STOP,   /* an id of stop_ids (in stop_id), which is not part of the tokens */
    FINISH_LENGTH, /* max_tokens or the context */
    FINISH_ERROR,  /* err, text */
    FINISH_CANCEL,
};
/* Log-probabilities of one position. */
struct token_logprobs {
    float logprob;
    uint32_t n_top;
    uint32_t *id;
    float *top;
};
/* Tokens of one request that became known together (one step: usually one). */
struct token_event {
    uint64_t id;
    uint32_t n_tokens;
    uint32_t *tokens;
    struct token_logprobs *logprobs;        /* [n_tokens] or NULL */
    uint32_t n_prompt_logprobs;             /* positions; the first one's logprob is NaN */
    struct token_logprobs *prompt_logprobs; /* once, before or with the first token */
    uint32_t n_values;                      /* EMBED, SCORE: with the end */
    float *values;
    bool started;                           /* first event: the request left the queue */
    bool prefilling;                        /* sign of life while the prompt runs: no tokens */
    uint32_t n_prefilled;
    enum finish finish;
    uint32_t stop_id;
    enum err err;
    char text[160];
    uint64_t queue_ns, prefill_ns; /* with the first token */
    uint32_t *top_ids;             /* room for the arrays of all token_logprobs above, given out by token_event_top */
    float *top_values;
    uint32_t n_top_left;
};
/* One allocation holds the event and its arrays (n_tokens, n_prompt_positions and room for n_top_total top entries):
 * made by token_event_create (NULL: out of memory), freed by token_event_destroy. */
struct token_event *token_event_create(uint32_t n_tokens, bool logprobs, uint32_t n_top_total,
                                       uint32_t n_prompt_positions);
/* With room for values instead. */
struct token_event *token_event_create_values(uint32_t n_values);
/* Gives lp room for n entries out of the event's allocation and sets lp->n_top. */
void token_event_top(struct token_event *e, struct token_logprobs *lp, uint32_t n);
void token_event_destroy(struct token_event **e);

#endif
