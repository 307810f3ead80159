#include "worker/sampler_history.h"

#include "base/check.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* How many of the last n tokens (t is one past them) come after the last sequence that ends a repetition. */
static uint32_t reach(const struct slot *sl, const uint32_t *t, uint32_t n)
{
    for (uint32_t back = 1; back <= n; back++) { /* a sequence that begins `back` tokens before the end */
        uint32_t id = t[-(ptrdiff_t)back], longest = slot_bit(sl->dry_stop, id);
        if (slot_bit(sl->dry_head, id))
            for (uint32_t i = 0, at = 0; i < sl->n_dry; at += sl->dry_len[i++]) {
                uint32_t len = sl->dry_len[i];
                if (len > longest && len <= back && memcmp(t - back, sl->dry_id + at, len * sizeof(*t)) == 0)
                    longest = len;
            }
        if (longest)
            return back - longest;
    }
    return n;
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

static void sift(struct sampler_change *h, uint32_t n, uint32_t i)
{
    struct sampler_change v = h[i];
    for (uint32_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && h[c + 1].id > h[c].id)
            c++;
        if (h[c].id <= v.id)
            break;
        h[i] = h[c];
    }
    h[i] = v;
}
static void sort_by_id(struct sampler_change *h, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift(h, n, i);
    for (uint32_t end = n; end-- > 1;) {
        struct sampler_change last = h[0];
        h[0] = h[end];
        h[end] = last;
        sift(h, end, 0);
    }
}

/* Gusfield's Z algorithm on the text read backwards: z[k] is how many tokens before the end equal those before the k-th last. */
static uint32_t dry_changes(const struct slot *sl, uint32_t position, uint32_t *best, uint32_t *z, struct sampler_change *out)
{
    uint32_t n = sl->dry_last_n ? MIN(sl->dry_last_n, position) : position, n_out = 0, allowed = sl->dry_allowed_length;
    if (n <= allowed)
        return 0;
    const uint32_t *end = sl->tokens + position;
    uint32_t limit = reach(sl, end, n);
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

uint32_t sampler_history_changes(const struct slot *sl, uint32_t position, uint32_t *best, uint32_t *z, struct sampler_change *out)
{
    uint32_t n = sl->dry_multiplier > 0 ? dry_changes(sl, position, best, z, out) : 0;
    uint32_t n_output = position > sl->prompt_len ? position - sl->prompt_len : 0;
    for (uint32_t i = 0, at = 0; i < sl->n_bad; at += sl->bad_len[i++]) {
        uint32_t before = sl->bad_len[i] - 1;
        if (before <= n_output && memcmp(sl->tokens + position - before, sl->bad_id + at, before * sizeof(uint32_t)) == 0)
            out[n++] = (struct sampler_change){sl->bad_id[at + before], INFINITY};
    }
    sort_by_id(out, n);
    return n;
}
