/* One rank of one model: its weights, its KV bytes, its slots, and the function step -> step_result. The only thing of the compute half that
 * the process loop (worker.c) sees.
 *
 * Owns: the device (device.h: weights, KV bytes, activations), the thread pool, the slot table. Does not own: the communicator (borrowed,
 * changed with every epoch), the control link, the heartbeat. Everything is allocated by runner_create; a step allocates nothing.
 *
 * Threading: one thread calls all functions and is thread 0 of the pool; it alone uses the communicator. comm_abort from any
 * thread ends a step that waits for a peer. */
#ifndef WORKER_MODEL_RUNNER_H
#define WORKER_MODEL_RUNNER_H

#include "kernels/kernels.h"
#include "model/shard.h"
#include "proto/msg.h"
#include "worker/comm/comm.h"

struct runner;

/* Called now and then by the loading thread, first with done = 0, last with done = total (bytes of the file that this rank reads). Returning
 * false stops the load: runner_create gives ERR_ABORTED. */
typedef bool runner_progress_fn(void *arg, uint64_t bytes_done, uint64_t bytes_total);

struct runner_config {
    const char *model_path;         /* GGUF, or the first file of a split one; only read by runner_create */
    uint64_t model_bytes;           /* of the first file; another size on this host is refused (0: not checked) */
    uint32_t tp, pp, tp_rank, stage;
    const uint32_t *share;          /* tp values, or NULL: equal */
    const uint32_t *layer_first;    /* pp + 1 values (stage s has layers [layer_first[s], layer_first[s+1])), or NULL: even */
    const struct kernels *kernels;  /* of the CPU: kernels_cpu(), kernels_by_name() */
    bool use_cuda;                  /* the GPU cuda_ordinal instead */
    uint32_t cuda_ordinal;
    bool deterministic;             /* GPU: the same bits in any batch */
    uint32_t n_threads;             /* >= 1, the caller's included */
    const int *cpus;                /* n_threads CPU numbers to pin to, or NULL */
    uint32_t spin_us;               /* pool_create: 0 where threads do not own their cores */
    uint32_t ctx;                   /* positions of a sequence; 0: the model's */
    uint32_t max_seqs, max_step_tokens;
    enum kv_type kv_type;
    uint64_t memory_bytes;          /* budget of this worker, weights and KV together (0: no limit) */
    uint64_t kv_memory_bytes;       /* 0: what max_seqs x ctx need, at most half of what the weights leave of memory_bytes (GPU: all of it) */
    runner_progress_fn *progress;   /* may be NULL */
    void *progress_arg;
    void (*tick)(void *tick_arg);   /* called by the calling thread between the layers of a step (heartbeats); may be NULL */
    void *tick_arg;
};

struct runner_info {
    uint32_t kv_blocks;             /* of this rank; the replica uses the minimum of its ranks */
    uint32_t ctx, vocab, n_layers;  /* n_layers: of this stage */
    uint64_t weights_bytes;         /* resident, as measured after loading */
    uint64_t weights_bytes_planned; /* as laid out before anything was allocated */
    uint64_t kv_bytes;              /* reserved; touched on use */
    uint64_t file_bytes_read, activation_bytes;
    uint32_t load_ms;
    const char *backend;            /* "cpu-avx2"; static */
};

/* Loads. ERR_NOT_FOUND, ERR_CORRUPT, ERR_UNSUPPORTED (file), ERR_INVALID (split), ERR_NO_FIT (memory; the detail has the numbers), ERR_NOMEM,
 * ERR_ABORTED (progress said no), ERR_DEVICE (a GPU; the process should end). */
enum err runner_create(const struct runner_config *cfg, struct runner **out);
void runner_destroy(struct runner **r);
void runner_info(const struct runner *r, struct runner_info *out);

/* A communicator of the kind that this worker's device needs; the caller's, to be connected and given to runner_set_comm. */
enum err runner_comm_create(struct runner *r, const struct comm_config *cfg, struct comm **out, struct comm_addr *own);
/* The communicator of the coming steps; borrowed until the next call. NULL between epochs; with tp = pp = 1 it may stay NULL. */
enum err runner_set_comm(struct runner *r, struct comm *c);
/* Forgets every slot (a new epoch). KV and buffers stay allocated. Needed after any error of runner_step. */
enum err runner_reset(struct runner *r);

/* Runs this rank's part of a step. *has_result: true on rank 0 of the last stage only, also when the step wanted nothing (n_runs 0); *out
 * then holds the result, valid until the next call. The deadline is the communicator's (comm_set_deadline before).
 * ERR_PROTOCOL: the step names what does not exist or contradicts the slots (nothing of it was run); errors of comm.h; ERR_CORRUPT: the
 * logits are not finite. After an error only runner_reset and runner_destroy may follow.
 *
 * n_positions of a run in the result: (PROMPT_LOGPROBS ? n_tokens : 0) + (SAMPLE and LOGPROBS ? 1 : 0) + (TARGETS ? the slot's targets : 0).
 * A pooled state is the state after the final norm: of the last position, or the mean over all of them, added up in double in the order of
 * positions, so that its bits depend on nothing but weights and tokens either. A token whose
 * predecessor's logits this worker has not seen (position 0, or the first after a cached prefix) has logprob NaN and no top.
 * Small messages between stages must be buffered by the communicator: the last stage sends sampled ids (at most 4 KiB a message) that
 * stage 0 may take only in a later step. */
enum err runner_step(struct runner *r, const struct step *s, struct step_result *out, bool *has_result);

/* The same in two halves, so that a device works on the next step while the host deals with the last. At most RUNNER_IN_FLIGHT steps are begun and not
 * finished; may_begin: this one may, beside those that are. finish: of the oldest; waits for it, if runner_is_ready says that it is not there yet. */
enum { RUNNER_IN_FLIGHT = 2 };
bool runner_may_begin(const struct runner *r, const struct step *s);
enum err runner_begin(struct runner *r, const struct step *s);
uint32_t runner_in_flight(const struct runner *r);
bool runner_is_ready(struct runner *r);
enum err runner_finish(struct runner *r, struct step_result *out, bool *has_result);

/* Tests and tools: fn sees the raw logits of every position of every run on the ranks of the last stage, before the sampler: ids [first_id,
 * first_id + n). Slow: every position then goes through the head. NULL switches it off. */
typedef void runner_logits_fn(void *arg, uint32_t slot, uint32_t position, uint32_t first_id, uint32_t n, const float *logits);
void runner_set_logits_hook(struct runner *r, runner_logits_fn *fn, void *arg);

#endif
