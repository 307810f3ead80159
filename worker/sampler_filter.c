#include "worker/sampler_filter.h"

#include "base/check.h"
#include "base/fmath.h"

#define BITS_PER_NAT 1.4426950408889634
#define MU_MAX 1e6f /* far outside of what means anything; finite, whatever eta is */

/* What is kept: candidates [first, end) and their mass; closed: no more of the list can belong to it. */
struct kept {
    uint32_t first, end;
    double mass;
    bool closed;
};

static double x_of(const struct sampler_dist *d, const struct cand *c)
{
    return (double)((c->z - d->max) * d->scale);
}
static double mass_of(const struct sampler_dist *d, const struct cand *c)
{
    return (double)fm_exp((c->z - d->max) * d->scale);
}
static double mass_in(const struct sampler_dist *d, const struct cand *c, uint32_t first, uint32_t end)
{
    double mass = 0;
    for (uint32_t i = first; i < end; i++)
        mass += mass_of(d, &c[i]);
    return mass;
}

/* top_n_sigma, min_p, top_k. False: more must be known before anything that follows. */
static bool keep_front(const struct sampler_dist *d, const struct slot *sl, const struct cand *c, uint32_t n, bool cuts, struct kept *k)
{
    bool by_top_k = sl->top_k > 0, by_min_p = sl->min_p > 0;
    *k = (struct kept){.closed = n >= d->vocab};
    for (; k->end < n; k->end++) {
        double p = mass_of(d, &c[k->end]);
        if ((by_top_k && k->end == sl->top_k) || (k->end > 0 && ((by_min_p && p < (double)sl->min_p) || c[k->end].z < d->floor)) || p == 0) {
            k->closed = true;
            break;
        }
        k->mass += p;
    }
    k->closed = k->closed || (by_top_k && k->end == sl->top_k);
    if (!cuts)
        k->mass = d->sum; /* known without the list */
    return k->closed || !cuts;
}

/* Outward from the entropy, the nearer of the two neighbours first (the likelier when they are as near). */
static bool keep_typical(const struct sampler_dist *d, const struct slot *sl, const struct cand *c, bool cut, struct kept *k)
{
    double mean = d->mean, sum = 0;
    if (cut) { /* of what is left */
        mean = 0;
        for (uint32_t i = k->first; i < k->end; i++)
            mean += mass_of(d, &c[i]) * x_of(d, &c[i]);
        mean /= k->mass;
    }
    uint32_t hi = k->first, lo;
    while (hi < k->end && x_of(d, &c[hi]) > mean)
        hi++;
    lo = hi;
    for (double want = k->mass * (double)sl->typical_p; sum < want;) {
        if (hi == k->end && !k->closed)
            return false;
        if (hi == k->end && lo == k->first)
            break;
        bool up = hi == k->end || (lo > k->first && x_of(d, &c[lo - 1]) - mean <= mean - x_of(d, &c[hi]));
        sum += mass_of(d, &c[up ? --lo : hi++]);
    }
    *k = (struct kept){lo, hi, sum, true};
    return true;
}

static bool keep_top_p(const struct sampler_dist *d, const struct slot *sl, const struct cand *c, struct kept *k)
{
    double want = k->mass * (double)sl->top_p, sum = 0;
    for (uint32_t i = k->first; i < k->end; i++) {
        sum += mass_of(d, &c[i]);
        if (sum >= want) {
            *k = (struct kept){k->first, i + 1, sum, true};
            return true;
        }
    }
    k->mass = sum;
    return k->closed;
}

static bool keep_xtc(const struct sampler_dist *d, const struct slot *sl, const struct cand *c, struct kept *k)
{
    double least = k->mass * (double)sl->xtc_threshold;
    uint32_t n = 0;
    while (k->first + n < k->end && mass_of(d, &c[k->first + n]) >= least)
        n++;
    if (k->first + n == k->end && !k->closed)
        return false;
    if (n < 2)
        return true;
    k->mass -= mass_in(d, c, k->first, k->first + n - 1);
    k->first += n - 1;
    return true;
}

/* Where the uniform falls. False: beyond what is listed. */
static bool draw(const struct sampler_dist *d, const struct cand *c, const struct kept *k, uint32_t *pick)
{
    double sum = 0, target = d->u * (k->closed ? mass_in(d, c, k->first, k->end) : k->mass);
    for (*pick = k->first; *pick < k->end; ++*pick) {
        sum += mass_of(d, &c[*pick]);
        if (sum > target)
            return true;
    }
    *pick = k->end - 1; /* rounding may leave the sum short: then the last */
    return k->closed;
}

/* How many candidates mirostat 1 keeps: k = ((e 2^mu) / (1 - V^-e))^(1/s), e = s - 1, s by least squares over log(p_i / p_i+1) against
 * log((i + 2) / (i + 1)). */
static uint32_t mirostat_k(const struct sampler_dist *d, const struct cand *c, uint32_t n, float mu)
{
    double tb = 0, tt = 0;
    for (uint32_t i = 0; i + 1 < n && i + 1 < SAMPLER_FILTER_MIROSTAT_M && mass_of(d, &c[i + 1]) > 0; i++) {
        double t = (double)fm_log((float)(i + 2) / (float)(i + 1));
        tb += t * (x_of(d, &c[i]) - x_of(d, &c[i + 1]));
        tt += t * t;
    }
    if (tt == 0)
        return 1;
    double s = tb / tt, e = s - 1, ln_v = (double)fm_log((float)d->vocab);
    double ratio = fabs(e) < 1e-6 ? 1 / ln_v : e / (1 - (double)fm_exp((float)(-e * ln_v)));
    double ln_k = ((double)fm_log((float)ratio) + (double)mu / BITS_PER_NAT) / fmax(s, 1e-9);
    return ln_k >= ln_v ? d->vocab : MAX((uint32_t)fm_exp((float)ln_k), 1u);
}

static bool pick_mirostat(const struct sampler_dist *d, const struct slot *sl, const struct cand *c, uint32_t n, uint32_t *pick, float *mu)
{
    struct kept k = {.closed = n >= d->vocab};
    double ln_sum = (double)fm_log((float)d->sum);
    uint32_t cap = UINT32_MAX;
    if (sl->mirostat == 1) {
        if (n < SAMPLER_FILTER_MIROSTAT_M && !k.closed)
            return false;
        cap = mirostat_k(d, c, n, *mu);
    }
    for (; k.end < n; k.end++) {
        bool out = sl->mirostat == 1 ? k.end == cap : k.end > 0 && (ln_sum - x_of(d, &c[k.end])) * BITS_PER_NAT > (double)*mu;
        double p = mass_of(d, &c[k.end]);
        if (out || p == 0) {
            k.closed = true;
            break;
        }
        k.mass += p;
    }
    if (!k.closed && k.end < cap)
        return false;
    k.closed = true;
    draw(d, c, &k, pick);
    double surprise = ((double)fm_log((float)k.mass) - x_of(d, &c[*pick])) * BITS_PER_NAT;
    *mu -= sl->mirostat_eta * (float)(surprise - (double)sl->mirostat_tau);
    *mu = fminf(fmaxf(*mu, -MU_MAX), MU_MAX);
    return true;
}

bool sampler_filter_pick(const struct sampler_dist *d, const struct slot *sl, const struct cand *c, uint32_t n, uint32_t *pick, float *mu)
{
    if (sl->mirostat)
        return pick_mirostat(d, sl, c, n, pick, mu);
    bool typical = sl->typical_p > 0 && sl->typical_p < 1, cut = sl->top_k || sl->min_p > 0 || d->floor > -INFINITY;
    struct kept k;
    if (!keep_front(d, sl, c, n, cut, &k) || (typical && !keep_typical(d, sl, c, cut, &k)) || (sl->top_p < 1 && !keep_top_p(d, sl, c, &k)) ||
        (d->xtc && !keep_xtc(d, sl, c, &k)))
        return false;
    return draw(d, c, &k, pick);
}
