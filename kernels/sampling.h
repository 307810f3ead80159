/* What sampling means, in functions that gcc and nvcc compile to the same bits: the CPU's sampler (worker/sampler.c) and the GPU's (cuda/sample.cu) differ
 * in who does what when, never in a number. Only base/fmath.h, +, -, *, /, sqrt in double, comparisons; every sum has one order, written where it
 * is formed: within a segment of SHARD_VOCAB_SEGMENT ids 8 chains (sum of exponentials) or one (the rest), then segments in the order of ids.
 *
 * The order of what is done to a distribution is worker/sampler.h's; the filters are sampling_filter.h. */
#ifndef KERNELS_SAMPLING_H
#define KERNELS_SAMPLING_H

#include "base/check.h"
#include "base/fmath.h"
#include "base/rng.h"
#include "model/shard.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SAMPLING_NONE = 0xffffffff,
    /* Candidates that the filters see first; each time they are not enough, so many times more. */
    SAMPLING_CANDS = 64, SAMPLING_CANDS_TOP_K = 1024 /* at most, for top_k */, SAMPLING_CANDS_GROWTH = 8,
    SAMPLING_MIROSTAT_M = 100, /* mirostat 1 estimates from so many */
    /* Draws beside the token's own come from streams of their own: this is added to the number of the choice. */
    SAMPLING_STREAM_XTC = 1 << 30,
};
#define SAMPLING_TEMPERATURE_MIN 1e-5f /* below: greedy */

/* What a request sets; 0 is off, but for top_p and repetition_penalty, where 1 is. */
struct sampling_params {
    uint64_t seed;
    uint32_t choice, top_k;
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    float typical_p, top_n_sigma, xtc_probability, xtc_threshold, dynatemp_range, dynatemp_exponent;
    float mirostat_tau, mirostat_eta;
    uint32_t mirostat, min_tokens, prompt_len;
};
/* What looks back at the tokens (worker/sampler_history.h) takes off a logit. */
struct sampling_change {
    uint32_t id;
    float minus;         /* INFINITY: a ban */
};
/* Of a segment of logits. */
struct sampling_seg {
    double sum;          /* of exponentials relative to max, times scale */
    float max, pad;      /* NaN: a logit is not finite (but -inf, a ban) */
};
struct sampling_more {   /* of those that are no bans */
    double dot;          /* sum of exponential times exponent */
    double n, z, zz;     /* how many; sums of logits and of their squares */
};
/* What is known of a whole distribution. */
struct sampling_dist {
    float max, scale;    /* p ~ exp((z - max) * scale) */
    double sum;          /* of that over the vocabulary */
    double mean;         /* expected (z - max) * scale: the surprise of p is log(sum) minus its own, so its distance from the entropy needs no more */
    float floor;         /* top_n_sigma: least logit; -INFINITY */
    uint32_t vocab;
    double u;            /* uniform of the draw */
    bool xtc;            /* it strikes this time */
};
struct sampling_plan {
    bool greedy, filtered;
    bool dynamic;        /* the temperature is not known before the entropy is */
    bool more;           /* struct sampling_more is needed of the final distribution */
    uint32_t cands;      /* filtered: candidates to begin with */
    struct sampling_dist dist; /* scale (1 where dynamic), floor, vocab, u, xtc */
};

FM_FN void sampling_begin(const struct sampling_params *sp, uint32_t vocab, uint32_t position, struct sampling_plan *p)
{
    bool typical = sp->typical_p > 0 && sp->typical_p < 1, by_top_k = sp->top_k > 0 && sp->top_k < vocab;
    p->dynamic = sp->dynatemp_range > 0;
    p->greedy = !p->dynamic && sp->temperature < SAMPLING_TEMPERATURE_MIN;
    p->more = !p->greedy && (typical || sp->top_n_sigma > 0);
    p->dist.max = 0;
    p->dist.sum = p->dist.mean = p->dist.u = 0;
    p->dist.scale = p->dynamic || p->greedy ? 1 : 1 / sp->temperature;
    p->dist.floor = -INFINITY;
    p->dist.vocab = vocab;
    p->dist.xtc = p->filtered = false;
    p->cands = 0;
    if (p->greedy)
        return;
    p->dist.u = rng_uniform(sp->seed, sp->choice, position);
    p->dist.xtc = sp->xtc_probability > 0 && !sp->mirostat &&
                  rng_uniform(sp->seed, sp->choice + SAMPLING_STREAM_XTC, position) < (double)sp->xtc_probability;
    p->filtered = by_top_k || sp->top_p < 1 || sp->min_p > 0 || p->more || p->dist.xtc || sp->mirostat;
    uint32_t want = sp->mirostat == 1 ? (uint32_t)SAMPLING_MIROSTAT_M
                    : by_top_k        ? MIN(sp->top_k, (uint32_t)SAMPLING_CANDS_TOP_K)
                                      : (uint32_t)SAMPLING_CANDS;
    p->cands = MIN(want, vocab);
}
/* How many when n were not enough. */
FM_FN uint32_t sampling_cands_more(uint32_t n, uint32_t vocab)
{
    return n > vocab / SAMPLING_CANDS_GROWTH ? vocab : n * SAMPLING_CANDS_GROWTH;
}

/* Stop ids may not be sampled at this position yet. */
FM_FN bool sampling_bans_stops(const struct sampling_params *sp, uint32_t position)
{
    return (position > sp->prompt_len ? position - sp->prompt_len : 0) < sp->min_tokens;
}
FM_FN bool sampling_has_penalties(const struct sampling_params *sp)
{
    return sp->repetition_penalty != 1 || sp->presence_penalty != 0 || sp->frequency_penalty != 0;
}
/* The logit of a token that stands `all` times in what the penalties look at, `output` times in the output part of it. */
FM_FN float sampling_penalise(const struct sampling_params *sp, float z, uint32_t all, uint32_t output)
{
    if (!all)
        return z;
    z = z > 0 ? z / sp->repetition_penalty : z * sp->repetition_penalty;
    return output ? z - ((float)output * sp->frequency_penalty + sp->presence_penalty) : z;
}

/* A segment's part of the sums over the vocabulary, whose maximum is max. */
FM_FN double sampling_seg_mass(const struct sampling_seg *g, float max, float scale)
{
    return g->max > -INFINITY ? g->sum * (double)fm_exp((g->max - max) * scale) : 0;
}
FM_FN double sampling_seg_dot(const struct sampling_seg *g, const struct sampling_more *m, float max, float scale)
{
    float x = (g->max - max) * scale, e = g->max > -INFINITY ? fm_exp(x) : 0;
    return e > 0 ? (double)e * (m->dot + g->sum * (double)x) : 0;
}
/* The token's own part of `dot`. */
FM_FN double sampling_dot(float e, float z, float max, float scale)
{
    return e > 0 ? (double)e * (double)((z - max) * scale) : 0;
}
/* Entropy, deviation, and what is made of them: the floor of top_n_sigma; the temperature where it is dynamic (then everything is formed again at it). `all`: added
 * over the vocabulary. */
FM_FN void sampling_settle(const struct sampling_params *sp, const struct sampling_more *all, bool dynamic, struct sampling_dist *d)
{
    d->mean = all->dot / d->sum;
    if (sp->top_n_sigma > 0) {
        double mean = all->z / all->n, variance = all->zz / all->n - mean * mean;
        d->floor = (float)((double)d->max - (double)sp->top_n_sigma * sqrt(variance > 0 ? variance : 0));
    }
    if (!dynamic)
        return;
    /* Entropy as a share of the largest that so many tokens can have. */
    double entropy = (double)fm_log((float)d->sum) - d->mean, most = (double)fm_log((float)all->n);
    float share = most > 0 && entropy > 0 ? fm_exp(sp->dynatemp_exponent * fm_log((float)(entropy / most))) : 0;
    float low = fmaxf(sp->temperature - sp->dynatemp_range, 0), high = sp->temperature + sp->dynatemp_range;
    d->scale = 1 / fmaxf(low + (high - low) * share, SAMPLING_TEMPERATURE_MIN);
}

FM_FN float sampling_logprob(float raw, float raw_max, double raw_sum)
{
    return (raw - raw_max) - fm_log((float)raw_sum);
}

#endif
