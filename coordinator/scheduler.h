/* Which sequences run in the next step, and with which tokens and KV blocks: continuous batching as a pure state
 * machine.
 *
 * No socket, no clock (now_ns comes in), no allocation after scheduler_init and scheduler_reset: state in, plan out, so
 * that tests/sim can run it a million times from a seed. Not thread-safe: the engine's thread owns it.
 *
 * Policy. Decodes first; then prefill chunks of running sequences, then of admitted ones, oldest first, as many tokens
 * as the step's time budget buys at the measured speed; more where no sequence waits for its next token. Admission is
 * first come, first served: the head of the queue
 * enters when a slot is free and the blocks of all its tokens are. When a running sequence needs a block and none is
 * free, the youngest is preempted: it gives slot and blocks back and waits at the head of the queue with the tokens it
 * has; prefilled again as prompt and output it continues as if nothing had been, because a draw is a function of (seed,
 * choice, position).
 *
 * Steps in flight. Up to pp + 1 at a time. The input token of a decode may be what its slot sampled in a step whose
 * result is not back yet (plan_run.tokens is NULL). With pp > 1 the decodes are dealt out over pp steps, so that every
 * stage has work. A sequence that leaves while steps in flight touch its slot leaves the slot draining: slot and blocks
 * are free when those steps have ended, and what they sampled is dropped.
 *
 * Slots. A slot is a worker's place for a sequence's state; its generation tells one user from the next. Generation 0
 * is never given. */
#ifndef COORDINATOR_SCHEDULER_H
#define COORDINATOR_SCHEDULER_H

#include "coordinator/kv_blocks.h"
#include "coordinator/seq.h"

#include <stddef.h>

/* A sequence ends with an error when the replica failed so often while a step of it ran, without its getting any
 * further in between: it may be the cause. */
enum { SCHEDULER_FAILURES_MAX = 8 };

struct scheduler_config {
    uint32_t max_seqs, queue_max, pp;
    uint32_t max_step_tokens; /* >= max_seqs */
    uint32_t prefill_chunk;   /* tokens of a step, 0: by time */
    uint32_t step_target_us;
    uint32_t embed_max; /* sequences of REQUEST_EMBED that run together (the room of a result); 0: any */
};

enum slot_state { SLOT_FREE, SLOT_ACTIVE, SLOT_DRAINING };
struct slot {
    enum slot_state state;
    uint32_t gen;
    uint32_t n_in_flight; /* steps in flight that touch it */
    bool fresh;           /* no run of this generation yet */
    struct seq *seq;      /* while active */
};

struct plan_run {
    struct seq *seq; /* only to build the step; at the result ask the slot whether it is still there */
    uint32_t slot, gen, start, n_tokens, want; /* want: enum run_want */
    const uint32_t
        *tokens; /* view of the sequence's tokens until the next scheduler call; NULL: one, STEP_TOKEN_SAMPLED */
    uint32_t n_blocks, first_block; /* newly given: first_block, then kv_blocks_next */
    uint32_t n_targets;             /* rows that RUN_WANT_TARGETS gives */
    bool setup;                     /* the first run of its generation */
};
struct step_plan {
    uint64_t step_id, planned_ns;
    struct plan_run *runs;
    uint32_t n_runs;
    uint32_t *freed; /* slots to forget before the runs */
    uint32_t n_freed;
    uint32_t n_tokens, n_decodes; /* n_decodes: runs of one token, the others are prefill */
};
/* What a result meant for one sequence. */
struct seq_outcome {
    struct seq *seq;
    uint32_t run_idx;
    bool has_token;
    uint32_t token;
    enum finish finish; /* other than FINISH_NONE: the scheduler has let go of it */
    uint32_t stop_id;
    uint32_t n_prefilled; /* a chunk that is not the prompt's last; else 0 */
};

struct seq_list {
    struct seq *first, *last;
    uint32_t n;
};
struct scheduler {
    struct scheduler_config cfg;
    struct kv_blocks kv;
    uint32_t ctx;           /* longest sequence: the configured context or what all blocks hold */
    struct seq_list queue;  /* by order */
    struct seq_list active; /* by order; all older than the queue */
    struct slot *slots;     /* [max_seqs] */
    uint32_t *free_slots, n_free_slots, n_draining;
    uint32_t n_embed; /* active of REQUEST_EMBED */
    uint32_t *freed, n_freed; /* since the last plan */
    struct step_plan *plans;  /* ring of pp + 1 */
    uint32_t plan_first, n_in_flight;
    struct seq_outcome *outcomes;
    uint64_t next_step_id, next_order;
    double prefill_us, decode_us; /* per token; per step without prefill. 0: not measured yet */
    uint64_t n_preemptions;
};

/* Without blocks: nothing is admitted before scheduler_reset. */
enum err scheduler_init(struct scheduler *s, const struct scheduler_config *cfg);
/* Sequences still inside are the owner's to free. */
void scheduler_deinit(struct scheduler *s);

/* Appends to the queue. ERR_BUSY: it holds max_seqs + queue_max already (so a burst may fill all slots and the queue).
 */
enum err scheduler_submit(struct scheduler *s, struct seq *q);
/* Lets go of a queued or active sequence at once. */
void scheduler_cancel(struct scheduler *s, struct seq *q);
/* The next step, or NULL: nothing to do, or pp + 1 steps are in flight. The plan stays valid until its result was
 * applied. */
const struct step_plan *scheduler_plan(struct scheduler *s, uint64_t now_ns);
/* The oldest plan in flight, or NULL. */
const struct step_plan *scheduler_oldest(const struct scheduler *s);
/* The oldest step in flight has ended; sampled[i] is the token of its run i where one was wanted. Returns how many of
 * s->outcomes are filled. */
uint32_t scheduler_apply(struct scheduler *s, const uint32_t *sampled, uint64_t now_ns);
/* A new epoch: steps in flight are lost, workers have forgotten everything, active sequences wait at the head of the
 * queue in their order. n_blocks may differ. ERR_NOMEM: unchanged but without blocks. */
enum err scheduler_reset(struct scheduler *s, uint32_t n_blocks, uint32_t ctx);
/* A queued sequence that can never run, let go of: *finish and *err say how it ends. NULL: none. Call after reset and
 * submit. */
struct seq *scheduler_take_unfit(struct scheduler *s, enum finish *finish, enum err *err);
/* A step took so long from its turn to its result. */
void scheduler_observe(struct scheduler *s, uint32_t n_prefill_tokens, uint32_t n_decodes, double us);
/* A step outside of any plan (warm-up): its id, and a slot that the next step's `freed` shall name. */
uint64_t scheduler_take_step_id(struct scheduler *s);
void scheduler_note_freed(struct scheduler *s, uint32_t slot);
static inline uint32_t scheduler_blocks_used(const struct scheduler *s)
{
    return s->kv.n_blocks - s->kv.n_free;
}
/* All invariants; ends the process when one is broken. */
void scheduler_check(const struct scheduler *s);

/* Faults that the simulator plants to show that it finds them (tests/sim); never in a shipped build. */
#ifdef SCHEDULER_MUTANTS
extern int scheduler_mutant;
#define MUTANT(n) (scheduler_mutant == (n))
#else
#define MUTANT(n) 0
#endif

#endif
