/* What the implementations of comm.h share: the object's head, its table of functions, and the one place (comm.c) that checks
 * arguments, keeps the first error and counts. Private to worker/comm. */
#ifndef WORKER_COMM_COMM_IMPL_H
#define WORKER_COMM_COMM_IMPL_H

#include "worker/comm/comm.h"

#include <stdatomic.h>

/* Each function is called with valid arguments, never after an earlier one failed. They look at comm_check() in every wait. */
struct comm_ops {
    const char *name;
    void (*destroy)(struct comm *c); /* frees c */
    void (*wake)(struct comm *c);    /* ends a sleep of the comm's thread after `aborted` was set; any thread */
    enum err (*connect)(struct comm *c, const struct comm_addr *addrs);
    enum err (*allgather)(struct comm *c, uint8_t *buf, const size_t *off, const size_t *len);
    enum err (*send)(struct comm *c, uint32_t to, const void *buf, size_t len);
    enum err (*recv)(struct comm *c, uint32_t from, void *buf, size_t len);
};

/* First member of every implementation's struct. */
struct comm {
    const struct comm_ops *ops;
    uint32_t rank, tp, pp, n; /* n = tp * pp */
    uint32_t group_first;     /* world rank of tp rank 0 of this stage */
    uint64_t epoch;
    bool own_core;
    bool connected;
    uint64_t deadline_ns;
    enum err broken; /* the first error; everything later returns it */
    atomic_bool aborted;
    comm_idle_fn *idle;
    void *idle_arg;
    uint64_t idle_period_ns, idle_next_ns; /* UINT64_MAX: off */
    struct comm_stats stats;
};

/* Checks the ranks and fills the head. ERR_INVALID. */
enum err comm_init(struct comm *c, const struct comm_ops *ops, const struct comm_config *cfg);
/* Runs the idle function when it is due. ERR_OK while the wait for `what` may go on; else ERR_ABORTED or ERR_TIMEOUT with the detail set.
 * Not with a lock held. */
enum err comm_check(struct comm *c, const char *what, uint64_t now_ns);
/* When a sleep must end at the latest: the deadline, or the next call of the idle function. */
uint64_t comm_wake_ns(const struct comm *c);

#endif
