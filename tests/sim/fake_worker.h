/* A worker without a model: it keeps slots and a KV cache as a real one must, and its next token is a hash of
 * everything in the sequence's cache.
 *
 * The cache remembers who wrote each position. A block that two sequences share, a position that was never computed, a
 * lost or repeated token, a run in the wrong place: each either breaks a check here (fake_worker.error) or changes the
 * hash, and with it the text. */
#ifndef TESTS_SIM_FAKE_WORKER_H
#define TESTS_SIM_FAKE_WORKER_H

#include "base/arena.h"
#include "proto/msg.h"

struct fake_cell {
    uint32_t slot, gen, pos, token;
};
struct fake_slot {
    bool used, has_sample;
    uint32_t gen, n_computed, n_blocks, last_sample;
    uint32_t *blocks; /* [n_blocks of the pool] */
    uint64_t seed;
    float mu;
    uint32_t mirostat, choice, n_logprobs, prompt_len, pooling, n_targets, targets[MSG_TARGETS_MAX];
};
struct fake_worker {
    uint32_t n_slots, n_blocks, vocab;
    struct fake_slot *slots;
    struct fake_cell *cells; /* [n_blocks][16] */
    uint64_t last_step_id;
    char error[200]; /* the first thing that was wrong; empty: nothing */
};

enum { FAKE_VOCAB = 61, FAKE_DIM = 3 };

/* The pure function behind the text: the token that follows tokens[0..n). mu: mirostat's state, 0 without it. */
uint32_t fake_worker_next(uint64_t seed, uint32_t choice, float mu, const uint32_t *tokens, uint32_t n);
/* What becomes of mu with a token: one that is lost, repeated or a step late changes the text. */
float fake_worker_mu(float mu, uint32_t token);
/* Its log-probability at a position, and the i-th of the top list. */
float fake_worker_logprob(uint32_t token, uint32_t pos);
uint32_t fake_worker_top_id(uint32_t token, uint32_t i);

/* What stands for the log-probability of a target after tokens[0..n), and (target FAKE_VOCAB + pooling + i) for value i of a pooled state. */
float fake_worker_value(uint32_t target, const uint32_t *tokens, uint32_t n);

void fake_worker_init(struct fake_worker *w, uint32_t n_slots, uint32_t n_blocks);
void fake_worker_deinit(struct fake_worker *w);
/* Runs a step; the result lies in the arena. False: w->error says what the step did wrong. */
bool fake_worker_run(struct fake_worker *w, const struct step *s, struct arena *a, struct step_result *out);

#endif
