#include "coordinator/placement.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

struct work {
    const struct placement_device *d;
    uint32_t n, tp, pp, type;
    const uint64_t *need;
    uint32_t *device; /* the answer so far */
};

static bool in_use(const struct work *w, uint32_t dev)
{
    for (uint32_t r = 0; r < w->tp * w->pp; r++)
        if (w->device[r] == dev)
            return true;
    return w->d[dev].taken;
}

static bool fits(const struct work *w, uint32_t dev, uint64_t need)
{
    if (w->d[dev].type != w->type)
        return false;
    return w->d[dev].memory_bytes == 0 || w->d[dev].memory_bytes >= need;
}

/* The largest free device for this need, of one node or (node == PLACEMENT_NONE) of any. */
static uint32_t best_device(const struct work *w, uint32_t node, uint64_t need)
{
    uint32_t best = PLACEMENT_NONE;
    for (uint32_t i = 0; i < w->n; i++) {
        if ((node != PLACEMENT_NONE && w->d[i].node != node) || !fits(w, i, need) || in_use(w, i))
            continue;
        if (best == PLACEMENT_NONE || w->d[i].memory_bytes > w->d[best].memory_bytes)
            best = i;
    }
    return best;
}

static uint32_t neediest(const struct work *w, uint32_t first, uint32_t n)
{
    uint32_t best = PLACEMENT_NONE;
    for (uint32_t r = first; r < first + n; r++)
        if (w->device[r] == PLACEMENT_NONE && (best == PLACEMENT_NONE || w->need[r] > w->need[best]))
            best = r;
    return best;
}

/* Gives every missing rank of [first, first + n) a device of the node. Returns how many still miss one. */
static uint32_t fill(struct work *w, uint32_t node, uint32_t first, uint32_t n)
{
    uint32_t r, dev;
    while ((r = neediest(w, first, n)) != PLACEMENT_NONE && (dev = best_device(w, node, w->need[r])) != PLACEMENT_NONE)
        w->device[r] = dev;
    uint32_t missing = 0;
    for (r = first; r < first + n; r++)
        missing += w->device[r] == PLACEMENT_NONE;
    return missing;
}

/* Would the node take all missing ranks of [first, first + n)? */
static bool would_fit(struct work *w, uint32_t node, uint32_t first, uint32_t n, uint32_t *scratch)
{
    memcpy(scratch, w->device, (size_t)w->tp * w->pp * sizeof *scratch);
    bool ok = fill(w, node, first, n) == 0;
    memcpy(w->device, scratch, (size_t)w->tp * w->pp * sizeof *scratch);
    return ok;
}

struct score {
    bool whole_stage, has_stage, whole_replica, has_replica;
    uint64_t free_bytes;
};

static struct score score_node(struct work *w, uint32_t node, uint32_t stage, uint32_t *scratch)
{
    struct score s = {0};
    s.whole_stage = would_fit(w, node, stage * w->tp, w->tp, scratch);
    s.whole_replica = would_fit(w, node, 0, w->tp * w->pp, scratch);
    for (uint32_t r = 0; r < w->tp * w->pp; r++) {
        if (w->device[r] == PLACEMENT_NONE || w->d[w->device[r]].node != node)
            continue;
        s.has_replica = true;
        s.has_stage |= r / w->tp == stage;
    }
    for (uint32_t i = 0; i < w->n; i++)
        if (w->d[i].node == node && w->d[i].type == w->type && !in_use(w, i))
            s.free_bytes += w->d[i].memory_bytes;
    return s;
}

static bool better(const struct score *a, const struct score *b)
{
    if (a->whole_stage != b->whole_stage)
        return a->whole_stage;
    if (a->has_stage != b->has_stage)
        return a->has_stage;
    if (a->whole_replica != b->whole_replica)
        return a->whole_replica;
    if (a->has_replica != b->has_replica)
        return a->has_replica;
    return a->free_bytes > b->free_bytes;
}

static uint32_t best_node(struct work *w, uint32_t stage, uint32_t *scratch)
{
    uint32_t best = PLACEMENT_NONE;
    struct score best_score = {0};
    for (uint32_t i = 0; i < w->n; i++) {
        uint32_t node = w->d[i].node;
        bool seen = false;
        for (uint32_t j = 0; j < i && !seen; j++)
            seen = w->d[j].node == node;
        if (seen)
            continue;
        struct score s = score_node(w, node, stage, scratch);
        if (best == PLACEMENT_NONE || better(&s, &best_score)) {
            best = node;
            best_score = s;
        }
    }
    return best;
}

/* On devices of w->type; false: not every rank has one, and those that found one hold it. */
static bool assign(struct work *w, uint32_t *scratch)
{
    for (uint32_t s = 0; s < w->pp; s++) {
        if (neediest(w, s * w->tp, w->tp) == PLACEMENT_NONE)
            continue;
        uint32_t missing = fill(w, best_node(w, s, scratch), s * w->tp, w->tp);
        if (missing) /* no node holds the stage: the rest goes wherever there is room */
            missing = fill(w, PLACEMENT_NONE, s * w->tp, w->tp);
        if (missing)
            return false;
    }
    return true;
}

bool placement_assign(const struct placement_device *d, uint32_t n_devices, uint32_t tp, uint32_t pp,
                      const uint64_t *need_bytes, uint32_t *device)
{
    size_t bytes = (size_t)tp * pp * sizeof(uint32_t);
    uint32_t *scratch = malloc(2 * bytes + 1), *before = scratch + (size_t)tp * pp;
    if (!scratch)
        return false;
    uint32_t first = 0, last = 0;
    for (uint32_t i = 0; i < n_devices; i++)
        last = MAX(last, d[i].type);
    for (uint32_t r = 0; r < tp * pp; r++)
        if (device[r] != PLACEMENT_NONE)
            first = last = d[device[r]].type;
    memcpy(before, device, bytes);
    bool ok = false;
    for (uint32_t type = first; n_devices > 0 && type <= last && !ok; type++) {
        struct work w = {d, n_devices, tp, pp, type, need_bytes, device};
        ok = assign(&w, scratch);
        if (!ok)
            memcpy(device, before, bytes);
    }
    free(scratch);
    return ok;
}

uint32_t placement_ctx_fit(uint64_t device_bytes, uint64_t weights_bytes, uint64_t kv_memory_bytes,
                           uint64_t kv_block_bytes)
{
    uint64_t budget = kv_memory_bytes;
    if (!budget) {
        if (!device_bytes)
            return UINT32_MAX;
        budget = device_bytes > weights_bytes ? (device_bytes - weights_bytes) / 2 : 0;
    }
    if (kv_block_bytes == 0)
        return UINT32_MAX;
    uint64_t n = budget / kv_block_bytes;
    return n > UINT32_MAX / SHARD_KV_BLOCK ? UINT32_MAX : (uint32_t)n * SHARD_KV_BLOCK;
}

enum err placement_ctx(uint32_t asked, uint32_t ctx_train, uint32_t fit, uint32_t *ctx, bool *lowered)
{
    *lowered = false;
    if (fit < 2 * SHARD_KV_BLOCK)
        return err_set(ERR_NO_FIT,
                       "the KV cache has room for %u tokens, %d are the least: give the workers more memory or set a "
                       "larger --kv-memory",
                       fit, 2 * SHARD_KV_BLOCK);
    if (asked > fit)
        return err_set(
            ERR_NO_FIT,
            "a context of %u tokens does not fit, the KV cache has room for %u: lower --ctx, or raise --kv-memory",
            asked, fit);
    *ctx = asked ? asked : ctx_train;
    if (*ctx > fit) {
        *ctx = fit >= 1024 ? fit / 256 * 256 : fit;
        *lowered = true;
    }
    return ERR_OK;
}
