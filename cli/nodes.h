/* How devices are shown: shared by racklm nodes (whose file this is), status and workers. */
#ifndef CLI_NODES_H
#define CLI_NODES_H

#include "base/buf.h"
#include "proto/msg.h"

/* The array of "nodes". */
void nodes_json(struct buf *b, const struct msg_admin_reply *r);
/* The state of a GPU: ,"memory_free_bytes":...,"throttle":["sw_power_cap"] */
void nodes_json_state(struct buf *b, uint64_t memory_free, uint32_t temperature_c, uint32_t power_mw, uint32_t utilization_percent, uint32_t throttle);
/* "cuda:0", "cuda:0 (emulated)"; the first part of a UUID; "41 C", "-" where it is not known. All return out. */
const char *nodes_device(const char *name, const char *kind, char out[80]);
const char *nodes_uuid(const char *uuid, char out[24]);
const char *nodes_temperature(uint32_t celsius, char out[24]);

#endif
