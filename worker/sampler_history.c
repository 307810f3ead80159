#include "worker/sampler_history.h"

#include "base/check.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Called for every token once, so that a sampled token costs no walk back through all of them times all sequences. Of two that begin at the same
 * place the longer comes later. */
void sampler_history_learn(struct slot *sl, uint32_t pos)
{
    const uint32_t *end = sl->tokens + pos + 1;
    uint32_t shortest = slot_bit(sl->dry_stop, end[-1]);
    if (!shortest && slot_bit(sl->dry_tail, end[-1]))
        for (uint32_t i = 0, at = 0; i < sl->n_dry; at += sl->dry_len[i++]) {
            uint32_t len = sl->dry_len[i];
            if ((!shortest || len < shortest) && len <= pos + 1 && memcmp(end - len, sl->dry_id + at, len * sizeof(*end)) == 0)
                shortest = len;
        }
    if (!shortest || pos + 1 - shortest < sl->dry_cut_begin)
        return;
    sl->dry_cut_begin = pos + 1 - shortest;
    sl->dry_cut_end = pos + 1;
}

/* How many of the last n tokens come after the last sequence that ends a repetition and begins among them. */
static uint32_t reach(const struct slot *sl, uint32_t position, uint32_t n)
{
    return sl->dry_cut_end && position - sl->dry_cut_begin <= n ? position - sl->dry_cut_end : n;
}

/* base^n by squaring, in double: the same bits everywhere. */
static double power(double base, uint32_t n)
{
    double p = 1;
    for (; n; n >>= 1, base *= base)
        if (n & 1)
            p *= base;
    return p;
}

static void sift(struct sampling_change *h, uint32_t n, uint32_t i)
{
    struct sampling_change v = h[i];
    for (uint32_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && h[c + 1].id > h[c].id)
            c++;
        if (h[c].id <= v.id)
            break;
        h[i] = h[c];
    }
    h[i] = v;
}
static void sort_by_id(struct sampling_change *h, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift(h, n, i);
    for (uint32_t end = n; end-- > 1;) {
        struct sampling_change last = h[0];
        h[0] = h[end];
        h[end] = last;
        sift(h, end, 0);
    }
}

/* Gusfield's Z algorithm on the text read backwards: z[k] is how many tokens before the end equal those before the k-th last. */
static uint32_t dry_changes(const struct slot *sl, uint32_t position, uint32_t *best, uint32_t *z, struct sampling_change *out)
{
    uint32_t n = sl->dry_last_n ? MIN(sl->dry_last_n, position) : position, n_out = 0, allowed = sl->dry_allowed_length;
    if (n <= allowed)
        return 0;
    const uint32_t *end = sl->tokens + position;
    uint32_t limit = reach(sl, position, n);
    if (limit < allowed)
        return 0;
    for (uint32_t k = 1, from = 0, to = 0; k < n; k++) { /* [from, to): the match that reaches furthest back */
        uint32_t len = k < to ? MIN(z[k - from], to - k) : 0;
        while (k + len < n && end[-1 - (ptrdiff_t)len] == end[-1 - (ptrdiff_t)(k + len)])
            len++;
        if (k + len > to) {
            from = k;
            to = k + len;
        }
        z[k] = len;
        uint32_t id = end[-(ptrdiff_t)k]; /* came after that run */
        len = MIN(len, limit);
        if (len < allowed || slot_bit(sl->dry_stop, id) || best[id] > len)
            continue;
        if (best[id] == 0)
            out[n_out++].id = id;
        best[id] = len + 1;
    }
    for (uint32_t i = 0; i < n_out; i++) {
        double minus = (double)sl->dry_multiplier * power((double)sl->dry_base, best[out[i].id] - 1 - allowed);
        out[i].minus = minus < (double)FLT_MAX / 4 ? (float)minus : FLT_MAX / 4; /* a long repetition is no ban: something must be left */
        best[out[i].id] = 0;
    }
    return n_out;
}

uint32_t sampler_history_changes(const struct slot *sl, uint32_t position, uint32_t *best, uint32_t *z, struct sampling_change *out)
{
    uint32_t n = sl->dry_multiplier > 0 ? dry_changes(sl, position, best, z, out) : 0;
    uint32_t n_output = position > sl->prompt_len ? position - sl->prompt_len : 0;
    for (uint32_t i = 0, at = 0; i < sl->n_bad; at += sl->bad_len[i++]) {
        uint32_t before = sl->bad_len[i] - 1;
        if (before <= n_output && memcmp(sl->tokens + position - before, sl->bad_id + at, before * sizeof(uint32_t)) == 0)
            out[n++] = (struct sampling_change){sl->bad_id[at + before], INFINITY};
    }
    sort_by_id(out, n);
    return n;
}
