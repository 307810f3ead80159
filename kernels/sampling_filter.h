/* The filters of a draw, and the draw, on a list of candidates that is the best part of the vocabulary: the list is made longer until
 * the answer no longer depends on what is missing. Pure functions; every rank runs them on the same numbers. They compile for both sides, as sampling.h.
 *
 * Order: top_n_sigma, min_p, top_k, typical_p, top_p, XTC; or mirostat in the place of all of them. Each looks at what the one before it left. All but
 * typical_p and XTC keep the front of the list; those two may cut the front itself, so what is kept is always one stretch of it:
 * - top_n_sigma: logits (before temperature) within n standard deviations of the best (Tang et al. 2024: Top-nsigma).
 * - typical_p: the tokens whose surprise is nearest to the entropy, until their mass reaches typical_p (Meister et al. 2023: Locally Typical Sampling).
 * - XTC (p-e-w, 2024): with probability xtc_probability, all tokens of at least xtc_threshold but the least likely of them go.
 * - mirostat (Basu et al. 2021): 2 keeps tokens of a surprise of at most mu bits; 1 estimates the exponent of Zipf's law from the best 100 and keeps the
 *   k best that make the expected surprise mu. Then mu moves against the error of the surprise seen. */
#ifndef KERNELS_SAMPLING_FILTER_H
#define KERNELS_SAMPLING_FILTER_H

#include "kernels/sampling.h"

#define SAMPLING_BITS_PER_NAT 1.4426950408889634
#define SAMPLING_MU_MAX 1e6f /* far outside of what means anything; finite, whatever eta is */

/* The n best candidates, best first (higher logit, then lower id); n = vocabulary: all. */
struct sampling_list {
    const float *z;   /* adjusted logits, one each z_stride floats */
    uint32_t z_stride;
    const float *p;   /* fm_exp((z - max) * scale) */
    uint32_t n, known; /* z and p are given of the first `known` (<= n); the others have p = 0 */
};
/* What is kept: candidates [first, end) and their mass; closed: no more of the list can belong to it. */
struct sampling_kept {
    uint32_t first, end;
    double mass;
    bool closed;
};

FM_FN double sampling_x(const struct sampling_dist *d, const struct sampling_list *l, uint32_t i)
{
    return (double)((l->z[(size_t)i * l->z_stride] - d->max) * d->scale);
}
FM_FN double sampling_p(const struct sampling_list *l, uint32_t i)
{
    return i < l->known ? (double)l->p[i] : 0;
}
FM_FN double sampling_mass_in(const struct sampling_list *l, uint32_t first, uint32_t end)
{
    double mass = 0;
    for (uint32_t i = first; i < end; i++)
        mass += sampling_p(l, i);
    return mass;
}

/* Without cuts: what has any mass; it is all of it, known without the list. */
FM_FN void sampling_keep_all(const struct sampling_dist *d, const struct sampling_list *l, struct sampling_kept *k)
{
    uint32_t lo = 0, hi = l->known;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (l->p[mid] > 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    k->end = lo;
    k->closed = lo < l->n || l->n >= d->vocab;
    k->mass = d->sum;
}
/* top_n_sigma, min_p, top_k. False: more must be known before anything that follows. */
FM_FN bool sampling_keep_front(const struct sampling_dist *d, const struct sampling_params *sp, const struct sampling_list *l, struct sampling_kept *k)
{
    k->closed = l->n >= d->vocab;
    for (; k->end < l->n; k->end++) {
        double p = sampling_p(l, k->end);
        if (p == 0 || (sp->top_k > 0 && k->end == sp->top_k) ||
            (k->end > 0 && ((sp->min_p > 0 && p < (double)sp->min_p) || l->z[(size_t)k->end * l->z_stride] < d->floor))) {
            k->closed = true;
            break;
        }
        k->mass += p;
    }
    k->closed = k->closed || (sp->top_k > 0 && k->end == sp->top_k);
    return k->closed;
}

/* Outward from the entropy, the nearer of the two neighbours first (the likelier when they are as near). cut: something was cut before. */
FM_FN bool sampling_keep_typical(const struct sampling_dist *d, const struct sampling_params *sp, const struct sampling_list *l, bool cut,
                                 struct sampling_kept *k)
{
    double mean = d->mean, sum = 0;
    if (cut) { /* of what is left */
        mean = 0;
        for (uint32_t i = k->first; i < k->end; i++)
            mean += sampling_p(l, i) * sampling_x(d, l, i);
        mean /= k->mass;
    }
    uint32_t hi = k->first, lo;
    while (hi < k->end && sampling_x(d, l, hi) > mean)
        hi++;
    lo = hi;
    for (double want = k->mass * (double)sp->typical_p; sum < want;) {
        if (hi == k->end && !k->closed)
            return false;
        if (hi == k->end && lo == k->first)
            break;
        bool up = hi == k->end || (lo > k->first && sampling_x(d, l, lo - 1) - mean <= mean - sampling_x(d, l, hi));
        sum += sampling_p(l, up ? --lo : hi++);
    }
    k->first = lo;
    k->end = hi;
    k->mass = sum;
    k->closed = true;
    return true;
}

FM_FN bool sampling_keep_top_p(const struct sampling_params *sp, const struct sampling_list *l, struct sampling_kept *k)
{
    double want = k->mass * (double)sp->top_p, sum = 0;
    for (uint32_t i = k->first; i < k->end; i++) {
        sum += sampling_p(l, i);
        if (sum >= want) {
            k->end = i + 1;
            k->closed = true;
        }
    }
    k->mass = sum;
    return k->closed;
}

FM_FN bool sampling_keep_xtc(const struct sampling_params *sp, const struct sampling_list *l, struct sampling_kept *k)
{
    double least = k->mass * (double)sp->xtc_threshold;
    uint32_t n = 0;
    while (k->first + n < k->end && sampling_p(l, k->first + n) >= least)
        n++;
    if (k->first + n == k->end && !k->closed)
        return false;
    if (n < 2)
        return true;
    k->mass -= sampling_mass_in(l, k->first, k->first + n - 1);
    k->first += n - 1;
    return true;
}

/* Where the uniform falls. False: beyond what is listed. */
FM_FN bool sampling_draw(const struct sampling_dist *d, const struct sampling_list *l, const struct sampling_kept *k, uint32_t *pick)
{
    double sum = 0, target = d->u * (k->closed ? sampling_mass_in(l, k->first, k->end) : k->mass);
    for (*pick = k->first; *pick < k->end; ++*pick) {
        sum += sampling_p(l, *pick);
        if (sum > target)
            return true;
    }
    *pick = k->end - 1; /* rounding may leave the sum short: then the last */
    return k->closed;
}

/* How many candidates mirostat 1 keeps: k = ((e 2^mu) / (1 - V^-e))^(1/s), e = s - 1, s by least squares over log(p_i / p_i+1) against
 * log((i + 2) / (i + 1)). */
FM_FN uint32_t sampling_mirostat_k(const struct sampling_dist *d, const struct sampling_list *l, float mu)
{
    double tb = 0, tt = 0;
    for (uint32_t i = 0; i + 1 < l->n && i + 1 < SAMPLING_MIROSTAT_M && sampling_p(l, i + 1) > 0; i++) {
        double t = (double)fm_log((float)(i + 2) / (float)(i + 1));
        tb += t * (sampling_x(d, l, i) - sampling_x(d, l, i + 1));
        tt += t * t;
    }
    if (tt == 0)
        return 1;
    double s = tb / tt, e = s - 1, ln_v = (double)fm_log((float)d->vocab);
    double ratio = fabs(e) < 1e-6 ? 1 / ln_v : e / (1 - (double)fm_exp((float)(-e * ln_v)));
    double ln_k = ((double)fm_log((float)ratio) + (double)mu / SAMPLING_BITS_PER_NAT) / fmax(s, 1e-9);
    if (ln_k >= ln_v)
        return d->vocab;
    float k = fm_exp((float)ln_k);
    return k > 1 ? (uint32_t)k : 1; /* NaN too */
}

FM_FN bool sampling_pick_mirostat(const struct sampling_dist *d, const struct sampling_params *sp, const struct sampling_list *l, uint32_t *pick, float *mu)
{
    struct sampling_kept k = {0, 0, 0, l->n >= d->vocab};
    double ln_sum = (double)fm_log((float)d->sum);
    uint32_t cap = UINT32_MAX;
    if (sp->mirostat == 1) {
        if (l->n < SAMPLING_MIROSTAT_M && !k.closed)
            return false;
        cap = sampling_mirostat_k(d, l, *mu);
    }
    for (; k.end < l->n; k.end++) {
        double p = sampling_p(l, k.end);
        if (p == 0 || (sp->mirostat == 1 ? k.end == cap : k.end > 0 && (ln_sum - sampling_x(d, l, k.end)) * SAMPLING_BITS_PER_NAT > (double)*mu)) {
            k.closed = true;
            break;
        }
        k.mass += p;
    }
    if (!k.closed && k.end < cap)
        return false;
    k.closed = true;
    sampling_draw(d, l, &k, pick);
    double surprise = ((double)fm_log((float)k.mass) - sampling_x(d, l, *pick)) * SAMPLING_BITS_PER_NAT;
    *mu -= sp->mirostat_eta * (float)(surprise - (double)sp->mirostat_tau);
    *mu = fminf(fmaxf(*mu, -SAMPLING_MU_MAX), SAMPLING_MU_MAX);
    return true;
}

/* False: more must be known. *pick: index into the list. *mu: mirostat's state, moved. */
FM_FN bool sampling_pick(const struct sampling_dist *d, const struct sampling_params *sp, const struct sampling_list *l, uint32_t *pick, float *mu)
{
    if (sp->mirostat)
        return sampling_pick_mirostat(d, sp, l, pick, mu);
    bool typical = sp->typical_p > 0 && sp->typical_p < 1, cut = sp->top_k || sp->min_p > 0 || d->floor > -INFINITY;
    struct sampling_kept k = {0, 0, 0, false};
    if (!cut)
        sampling_keep_all(d, l, &k);
    else if (!sampling_keep_front(d, sp, l, &k))
        return false;
    if ((typical && !sampling_keep_typical(d, sp, l, cut, &k)) || (sp->top_p < 1 && !sampling_keep_top_p(sp, l, &k)) ||
        (d->xtc && !sampling_keep_xtc(sp, l, &k)))
        return false;
    return sampling_draw(d, l, &k, pick);
}

#endif
