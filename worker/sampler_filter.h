/* The filters of a draw, and the draw, on a list of candidates that is the best part of the vocabulary: the list is made longer until
 * the answer no longer depends on what is missing. Pure functions; every rank runs them on the same numbers.
 *
 * Order: top_n_sigma, min_p, top_k, typical_p, top_p, XTC; or mirostat in the place of all of them. Each looks at what the one before it left. All but
 * typical_p and XTC keep the front of the list; those two may cut the front itself, so what is kept is always one stretch of it:
 * - top_n_sigma: logits (before temperature) within n standard deviations of the best (Tang et al. 2024: Top-nsigma).
 * - typical_p: the tokens whose surprise is nearest to the entropy, until their mass reaches typical_p (Meister et al. 2023: Locally Typical Sampling).
 * - XTC (p-e-w, 2024): with probability xtc_probability, all tokens of at least xtc_threshold but the least likely of them go.
 * - mirostat (Basu et al. 2021): 2 keeps tokens of a surprise of at most mu bits; 1 estimates the exponent of Zipf's law from the best 100 and keeps the
 *   k best that make the expected surprise mu. Then mu moves against the error of the surprise seen. */
#ifndef WORKER_SAMPLER_FILTER_H
#define WORKER_SAMPLER_FILTER_H

#include "worker/slots.h"

enum { SAMPLER_FILTER_MIROSTAT_M = 100 };

struct cand {
    float z, raw;        /* adjusted and raw logit */
    uint32_t id, pad;
};
/* What is known of the whole distribution. */
struct sampler_dist {
    float max, scale;    /* p ~ exp((z - max) * scale) */
    double sum;          /* of that over the vocabulary */
    double mean;         /* expected (z - max) * scale: the surprise of p is log(sum) minus its own, so its distance from the entropy needs no more */
    float floor;         /* top_n_sigma: least logit; -INFINITY */
    uint32_t vocab;
    double u;            /* uniform of the draw */
    bool xtc;            /* it strikes this time */
};
/* c: the n best candidates, best first; n == vocab: all. False: more must be known. *pick: index into c. *mu: mirostat's state, moved. */
bool sampler_filter_pick(const struct sampler_dist *d, const struct slot *sl, const struct cand *c, uint32_t n, uint32_t *pick, float *mu);

#endif
