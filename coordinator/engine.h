/* One replica of one deployment: its continuous-batching loop in a thread of its own, its workers' link, its scheduler and KV block
 * tables.
 *
 * In: struct request (queue), commands of the cluster thread (queue). Out: struct token_event to the front's queue,
 * struct engine_event to the cluster's queue. Snapshot for /health, /metrics and the admin protocol: atomics, read by
 * anyone. */
#ifndef COORDINATOR_ENGINE_H
#define COORDINATOR_ENGINE_H

#include "base/metrics.h"
#include "base/options.h"
#include "base/queue.h"
#include "coordinator/request.h"
#include "model/hparams.h"
#include "model/shard.h"
#include "proto/link.h"

#include <stdatomic.h>

enum engine_state {
    ENGINE_WAITING,
    ENGINE_LOADING,
    ENGINE_CONNECTING,
    ENGINE_WARMUP,
    ENGINE_READY,
    ENGINE_RECOVERING,
    ENGINE_STOPPED
};
const char *engine_state_name(enum engine_state s);

struct engine_snapshot { /* written by the engine, read by any thread */
    atomic_int state;
    atomic_uint_fast64_t epoch, steps, load_done, load_total;
    atomic_uint running, waiting, kv_blocks, kv_blocks_used, workers_ready;
    atomic_uint ctx; /* longest sequence: the configured context, or what the KV blocks hold where that is less; 0 until
                        known */
};

/* To the engine from the cluster thread. */
enum engine_command_type { ENGINE_CMD_EXPECT, ENGINE_CMD_WORKER_LOST, ENGINE_CMD_DRAIN, ENGINE_CMD_STOP };
struct engine_command {
    enum engine_command_type type;
    uint32_t world_rank;
    uint64_t worker_id; /* EXPECT: this id will come up for the rank; LOST: it is gone */
    char text[160];     /* LOST: why, for errors that clients see */
    uint32_t grace_ms;  /* DRAIN */
    uint32_t ctx;       /* EXPECT: the context that the workers are started with; 0: as before */
};
/* From the engine to the cluster thread. */
enum engine_event_type {
    ENGINE_EVENT_WORKER_FAILED,
    ENGINE_EVENT_WORKER_INFO,
    ENGINE_EVENT_READY,
    ENGINE_EVENT_RECOVERING,
    ENGINE_EVENT_DRAINED
};
struct engine_event {
    enum engine_event_type type;
    uint32_t deployment, replica, world_rank;
    uint64_t worker_id;
    char text[160];               /* FAILED: the cluster stops and starts it again */
    struct msg_worker_ready info; /* INFO; strings and address not set, backend below */
    char backend[96];
    uint32_t pid;
};

struct engine;
struct engine_config {
    const struct options *opts;
    const struct hparams *hp;
    const struct shard_split *split;
    uint32_t deployment, replica, ctx; /* replica: of the deployment; ctx 0: comes with ENGINE_CMD_EXPECT */
    const char *model;        /* its name in the log, or NULL */
    const char *endpoint;     /* to bind: ipc:// or tcp:// */
    const char *endpoint_tcp; /* a second one for workers of other hosts, or NULL */
    uint32_t max_step_tokens; /* what the workers are told too */
    struct link_context *links;
    struct metrics *metrics;
    struct queue *events;         /* token_event to the front */
    struct queue *cluster_events; /* engine_event */
};
enum err engine_create(const struct engine_config *cfg, struct engine **out); /* binds; the thread starts */
void engine_destroy(struct engine **e);                                       /* stops and joins */
/* Where its workers connect: real endpoint. */
const char *engine_endpoint(const struct engine *e);
const char *engine_endpoint_tcp(const struct engine *e); /* NULL when there is none */
/* Takes ownership on ERR_OK. ERR_BUSY: the queue is full; ERR_UNAVAILABLE: stopped. Any thread. */
enum err engine_submit(struct engine *e, struct request *r);
/* Drops a request by id, now or as soon as its steps in flight have ended; its last event is FINISH_CANCEL. Never fails. With
 * ENGINE_CANCEL_STOPPED or'ed to the id the text is complete (a stop string was met): it ends, and counts, as FINISH_STOP. Ids are below 2^63. */
#define ENGINE_CANCEL_STOPPED (1ull << 63)
void engine_cancel(struct engine *e, uint64_t id);
enum err engine_command(struct engine *e, const struct engine_command *c); /* copied */
const struct engine_snapshot *engine_snapshot(const struct engine *e);

#endif
