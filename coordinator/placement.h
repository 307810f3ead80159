/* Which rank runs on which device, and how long a sequence may be there. Pure functions: no state, no clock, the same
 * answer for the same input. */
#ifndef COORDINATOR_PLACEMENT_H
#define COORDINATOR_PLACEMENT_H

#include "model/shard.h"

#include <stddef.h>

#define PLACEMENT_NONE 0xffffffffu

struct placement_device {
    uint32_t node;
    uint64_t memory_bytes; /* budget of a worker there; 0: not known, anything fits */
    bool taken;            /* by another rank or replica */
    uint32_t type;         /* the ranks of a replica are all of one type; lower numbers are tried first */
};

/* Fills the ranks of one replica that have no device yet: device[stage * tp + tp_rank] is an index into d or
 * PLACEMENT_NONE. need_bytes: by the same index.
 *
 * All ranks are of one type: the one that ranks have already, or the first that has a device for each. Rules within it, in this order: the ranks of a stage on one node where that is possible (they talk after every matrix); the
 * node that already has ranks of that stage; a node with room for all that is missing; a node that already has ranks of
 * this replica; the node with the most free memory; the lower index. Within a node the largest need gets the largest
 * device. False, and nothing changed, when not every rank finds a device. */
bool placement_assign(const struct placement_device *d, uint32_t n_devices, uint32_t tp, uint32_t pp,
                      const uint64_t *need_bytes, uint32_t *device);

/* The context that fits one rank: KV memory is kv_memory_bytes, or half of what the weights leave of the device's
 * budget. UINT32_MAX when not known. */
uint32_t placement_ctx_fit(uint64_t device_bytes, uint64_t weights_bytes, uint64_t kv_memory_bytes,
                           uint64_t kv_block_bytes);
/* The context to serve with, given the smallest placement_ctx_fit of all ranks: asked (0: the model's, lowered to what
 * fits, *lowered says so). ERR_NO_FIT with both numbers when asked does not fit, or when not even two blocks do. */
enum err placement_ctx(uint32_t asked, uint32_t ctx_train, uint32_t fit, uint32_t *ctx, bool *lowered);

#endif
