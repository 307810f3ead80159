/* A part of a step that goes through the layers together: at most `cap` tokens, cut anywhere between or inside runs (results do not
 * depend on where). The walk over a step hands out one batch after the other; no allocation. */
#ifndef WORKER_BATCH_H
#define WORKER_BATCH_H

#include "worker/slots.h"

struct batch_run {
    uint32_t run;           /* index in the step */
    uint32_t slot, gen;
    uint32_t first;         /* its first token in this batch is this one of the run */
    uint32_t tok0, n_tok;   /* in this batch */
    uint32_t pos0;          /* position of tok0 */
    const uint32_t *blocks; /* the slot's table */
};
struct batch {
    uint32_t cap, n_tok, n_runs;
    const uint32_t *token;  /* [n_tok], view into the step's tokens */
    uint32_t *pos;          /* [cap] */
    uint32_t *run_of;       /* [cap] index into runs */
    struct batch_run *runs; /* [cap] */
};
struct batch_walk {
    uint32_t run, first;    /* where the next batch begins */
    uint32_t tok;           /* tokens of the step given out */
};

enum err batch_init(struct batch *b, uint32_t cap);
void batch_deinit(struct batch *b);
/* tokens: the step's, with sampled ones resolved. start: the runs' first positions. False when nothing is left. */
bool batch_next(struct batch *b, struct batch_walk *w, const struct step *step, const uint32_t *tokens, const struct slots *slots);

#endif
