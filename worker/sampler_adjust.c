#include "worker/sampler_adjust.h"

#include <math.h>
#include <string.h>

static uint32_t first_bias(const struct slot *sl, uint32_t id)
{
    uint32_t lo = 0, hi = sl->n_bias;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (sl->bias_id[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static uint32_t first_change(const struct sampling_change *c, uint32_t n, uint32_t id)
{
    uint32_t lo = 0, hi = n;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (c[mid].id < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

void sampler_adjust(const struct slot *sl, const struct sampling_params *sp, uint32_t position, const struct sampling_change *changes, uint32_t n_changes,
                    bool lifted, const float *raw, uint32_t first, uint32_t n, float *z)
{
    memcpy(z, raw, n * sizeof(*z));
    for (uint32_t i = first_bias(sl, first); i < sl->n_bias && sl->bias_id[i] < first + n; i++)
        z[sl->bias_id[i] - first] += sl->bias[i];
    for (uint32_t i = 0; sl->allowed && i < n; i++)
        if (!slot_bit(sl->allowed, first + i))
            z[i] = -INFINITY;
    if (lifted)
        return;
    for (uint32_t i = 0; sampling_bans_stops(sp, position) && i < sl->n_stop; i++)
        if (sl->stop[i] - first < n)
            z[sl->stop[i] - first] = -INFINITY;
    for (uint32_t i = 0; sl->has_penalties && i < n; i++)
        z[i] = sampling_penalise(sp, z[i], sl->counts[first + i].all, sl->counts[first + i].output);
    for (uint32_t i = first_change(changes, n_changes, first); i < n_changes && changes[i].id < first + n; i++)
        z[changes[i].id - first] -= changes[i].minus;
}
