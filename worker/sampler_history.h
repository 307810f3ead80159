/* What parameters that look back at the tokens take off the logits: DRY's penalty on tokens that would continue a repetition, and the last
 * ids of the sequences that must not become output. A function of the slot's tokens alone: a rebuilt sequence comes to the same. */
#ifndef WORKER_SAMPLER_HISTORY_H
#define WORKER_SAMPLER_HISTORY_H

#include "worker/slots.h"

/* Changes before the token of `position` is sampled, by rising id (an id may stand there twice); returns how many: at most position + n_bad.
 * best: [vocab] zeros, and left so; z: [position]. Linear in the tokens looked at.
 *
 * DRY (p-e-w, 2024; the form of llama.cpp): among the last dry_last_n tokens, cut at the last sequence that ends it (dry_stop, dry_id), let a
 * token t follow a run of n tokens that also ends the text. With n >= dry_allowed_length, the longest such n costs t
 * dry_multiplier * dry_base^(n - dry_allowed_length). Ids that end it by themselves cost nothing. */
uint32_t sampler_history_changes(const struct slot *sl, uint32_t position, uint32_t *best, uint32_t *z, struct sampling_change *out);
/* The token of position pos stands in sl->tokens: once for each in order, of a slot with DRY. Linear in the sequences; keeps dry_cut_*. */
void sampler_history_learn(struct slot *sl, uint32_t pos);

#endif
