/* Collectives and point-to-point between the ranks of one replica, behind one interface.
 *
 * World rank = stage * tp + tp_rank. comm_local: ranks are threads of one process (tests). comm_ucx: processes, UCX tag matching over shared
 * memory within a host, TCP or RDMA between hosts. Every wait has a deadline and looks at the abort flag; after any error the object is
 * only good for comm_destroy: the worker makes a new one for the next epoch (the recovery unit is the process or the communicator,
 * never a repaired one). One thread uses a comm; comm_abort may come from any thread.
 *
 * A rank that destroys its comm ends the operations of the others sooner or later, so destroying belongs to the end of an epoch.
 *
 * Errors: ERR_TIMEOUT (deadline), ERR_ABORTED, ERR_PEER_LOST. */
#ifndef WORKER_COMM_COMM_H
#define WORKER_COMM_COMM_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { COMM_RANKS_MAX = 1024, COMM_ADDRESS_MAX = 4096 };

struct comm;

struct comm_config {
    uint32_t rank, tp, pp;
    uint64_t epoch;        /* messages of another epoch are never matched */
    bool own_core;         /* may spin for long; otherwise sleeps soon */
    const char *net_device; /* interface for other hosts; NULL: this host only, no listening socket at all */
};

struct comm_addr {
    uint8_t bytes[COMM_ADDRESS_MAX];
    uint32_t len;
};

/* comm_ucx in two steps: the address goes to the coordinator, all addresses come back. */
enum err comm_ucx_create(const struct comm_config *cfg, struct comm **out, struct comm_addr *own);
/* addrs: tp * pp of them by world rank. Returns when every peer this rank talks to has answered once. */
enum err comm_connect(struct comm *c, const struct comm_addr *addrs, uint64_t deadline_ns);

/* comm_local: a hub that tp * pp comms share. */
struct comm_hub;
enum err comm_hub_create(uint32_t tp, uint32_t pp, struct comm_hub **out);
void comm_hub_destroy(struct comm_hub **h);
enum err comm_local_create(struct comm_hub *h, uint32_t rank, struct comm **out);

void comm_destroy(struct comm **c);
void comm_abort(struct comm *c);
/* The deadline (clock_ns) of all waits from now on. */
void comm_set_deadline(struct comm *c, uint64_t deadline_ns);
/* Waiting has no sense any more: the deadline is over, it was aborted, or it is broken. */
bool comm_overdue(const struct comm *c);
/* fn runs in the thread that uses the comm, inside operations, when period_ms have passed since its last call: signs of life and
 * news from the coordinator while a peer keeps this rank waiting. It may call comm_abort and nothing else of this interface. NULL: off. */
typedef void comm_idle_fn(void *arg);
void comm_set_idle(struct comm *c, comm_idle_fn *fn, void *arg, uint32_t period_ms);

/* All-gather inside the tensor-parallel group of this rank's stage, in place: part r of buf is bytes [off[r], off[r] + len[r]), this rank's own part
 * is filled in before the call. off, len: tp values, the same on every rank; a len may be 0. tp = 1 returns at once. */
enum err comm_allgather(struct comm *c, void *buf, const size_t *off, const size_t *len);
/* Between any two ranks, in order per pair. Sending returns when buf may be reused: for messages up to 4 KiB without waiting for the
 * receiver (a few of them are buffered), larger ones may wait until it takes them. len is the same on both sides. */
enum err comm_send(struct comm *c, uint32_t to, const void *buf, size_t len);
enum err comm_recv(struct comm *c, uint32_t from, void *buf, size_t len);

/* What was spent waiting and how much was moved, for the timings of a step. */
struct comm_stats {
    uint64_t wait_ns, bytes, ops;
};
struct comm_stats comm_stats(const struct comm *c);

#endif
