/* What a request does to the logits themselves, before any probability: biases, bans, penalties, and what looks back at the tokens. */
#ifndef WORKER_SAMPLER_ADJUST_H
#define WORKER_SAMPLER_ADJUST_H

#include "worker/sampler_history.h"

/* sp: slot_params(sl). raw[n] are the logits of ids [first, first + n); z[n] gets the adjusted ones: bias, allowed ids, min_tokens, penalties, changes (by rising id). lifted:
 * only the first two. */
void sampler_adjust(const struct slot *sl, const struct sampling_params *sp, uint32_t position, const struct sampling_change *changes, uint32_t n_changes, bool lifted, const float *raw,
                    uint32_t first, uint32_t n, float *z);

#endif
