/* Inside the engine: shared by engine.c (the loop, requests, steps) and engine_workers.c (bring-up, failure, epochs).
 * Everything but the queues, the snapshot and the two atomics belongs to the engine's thread. */
#ifndef COORDINATOR_ENGINE_INT_H
#define COORDINATOR_ENGINE_INT_H

#include "base/buf.h"
#include "base/clock.h"
#include "coordinator/engine.h"
#include "coordinator/step.h"

#include <pthread.h>

/* A worker as its engine sees it.
 * ABSENT -EXPECT-> EXPECTED -HELLO-> LOADING -WORKER_READY-> LOADED -COMM_READY-> CONNECTED; a failure of the epoch:
 * RESETTING -WORKER_READY-> LOADED. */
enum rank_state { RANK_ABSENT, RANK_EXPECTED, RANK_LOADING, RANK_RESETTING, RANK_LOADED, RANK_CONNECTED };
struct rank {
    enum rank_state state;
    uint64_t worker_id;
    struct link_peer peer; /* from HELLO on */
    uint64_t heard_ns;     /* last message */
    uint64_t since_ns;     /* of the state */
    uint64_t progress;     /* heartbeat counter */
    uint64_t load_done, load_total, weights_bytes;
    uint32_t kv_blocks, pid;
    bool reported; /* ENGINE_EVENT_WORKER_INFO was sent */
    uint8_t address[MSG_BLOB_MAX];
    uint32_t address_len;
};

enum phase { PHASE_GATHER, PHASE_CONNECT, PHASE_WARMUP, PHASE_SERVE };

struct engine {
    /* set at creation */
    const struct options *opts;
    uint32_t deployment, replica, n_ranks, pp, tp, vocab, max_seqs, bound; /* bound: open requests */
    const char *model; /* its name in the log; borrowed */
    bool reranker;    /* the model has a head for scores in place of one for tokens */
    uint32_t ctx_max; /* room given to a sequence while the context is not known yet */
    struct metrics *metrics;
    struct queue *events, *cluster_events;
    struct queue *requests; /* struct seq */
    struct queue *cancels;  /* ids, as pointers */
    struct queue *commands; /* struct engine_command */
    char endpoint[256], endpoint_tcp[256];
    pthread_t thread;
    bool has_thread;
    atomic_uint n_open; /* accepted and not ended */
    atomic_int refuse;  /* enum err that engine_submit answers; ERR_OK: accepts */
    struct engine_snapshot snap;

    /* the thread's */
    bool running;
    struct link_server *link;
    int timer_fd;
    uint64_t tick_ns, last_tick_ns, now_ns;
    struct scheduler sched;
    struct rank *ranks;
    enum phase phase;
    uint64_t phase_since_ns, epoch;
    uint32_t n_failed_epochs; /* since it served last */
    uint64_t begin_at_ns;     /* the next epoch begins no sooner */
    uint32_t ctx;
    bool recovering, was_ready, gave_up;
    uint64_t down_since_ns;
    char down_text[160];
    bool draining, drained;
    uint64_t drain_until_ns;
    uint64_t warm_step_id, n_steps;
    bool warm_second;
    uint64_t *sent_ns; /* [pp + 1] by step id */
    uint64_t last_result_ns;
    struct arena arena_in, arena_step;
    struct buf wire;
    struct token_event **held; /* the front's queue was full: ring */
    uint32_t held_first, held_n, held_cap;
    uint64_t n_preemptions_told;
};

/* engine.c */
void engine_end_seq(struct engine *e, struct seq *q, enum finish finish, enum err err, const char *text);
void engine_end_unfit(struct engine *e);
/* Sends a step to every worker of the replica; a worker that cannot be reached fails. False: the epoch is over. */
bool engine_send_step(struct engine *e, const struct step *s);
void engine_tell_cluster(struct engine *e, const struct engine_event *ev);

/* engine_workers.c */
void engine_workers_command(struct engine *e, const struct engine_command *c); /* EXPECT, WORKER_LOST */
/* HELLO, LOAD_PROGRESS, WORKER_READY, COMM_READY, HEARTBEAT, WORKER_ERROR. Returns the rank that sent it, or NULL:
 * refused. */
struct rank *engine_workers_message(struct engine *e, const struct link_peer *from, const struct msg *m);
void engine_workers_bad_message(struct engine *e, const struct link_peer *from);
void engine_workers_warm_result(struct engine *e, const struct step_result *r);
void engine_workers_deadlines(struct engine *e);
void engine_workers_shutdown(struct engine *e);
/* The epoch is over: survivors are reset, running sequences wait at the head of the queue. */
void engine_workers_fail_epoch(struct engine *e, const char *why);
void engine_workers_fail_rank(struct engine *e, struct rank *r, const char *why);

#endif
