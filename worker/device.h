/* The compute half of one rank behind one interface: its weights, KV bytes, activations, and what is done with them. device_cpu.c is this host's
 * processors; device_cuda*.c an NVIDIA GPU (only in builds with CUDA, and in the emulated worker of the tests).
 *
 * The runner (model_runner.c) calls in this order: device_create, device_plan, device_load, device_prepare; then for each batch device_forward, for the
 * rows that go through the head device_put_row or device_put_kept, and with enough of them device_head, device_sample. Rows are numbered 0 .. rows_cap - 1.
 * One thread uses a device. Errors of a GPU are ERR_DEVICE: nothing but device_destroy may follow, and the process should end. */
#ifndef WORKER_DEVICE_H
#define WORKER_DEVICE_H

#include "base/pool.h"
#include "kernels/kernels.h"
#include "worker/batch.h"
#include "worker/comm/comm.h"
#include "worker/sampler.h"
#include "worker/weights.h"

struct device;

struct device_config {
    const struct hparams *hp;
    const struct shard_split *split;
    uint32_t tp_rank, stage;
    struct pool *pool;
    const struct kernels *kernels; /* of the CPU */
    int32_t cuda_ordinal;          /* of the GPU; -1: the CPU */
    enum kv_type kv_type;
    bool deterministic;            /* GPU: a token's results have the same bits in any batch (the CPU's always have) */
    uint64_t memory_bytes;         /* budget of this worker; 0: no limit (GPU: what is free) */
    void (*tick)(void *);          /* now and then, by the thread that uses the device, while it works; may be NULL */
    void *tick_arg;
};
/* What the buffers of a step must hold. */
struct device_sizes {
    enum kv_type kv_type;
    uint32_t kv_blocks, ctx, max_seqs;
    uint32_t batch_cap;            /* tokens of a batch */
    uint32_t rows_cap;             /* rows that go through the head together */
};
struct device_info {
    const char *backend;           /* "cpu-avx2", "cuda sm_90"; lives as long as the device */
    uint64_t weights_bytes;        /* resident, after loading */
    uint64_t weights_bytes_planned, file_bytes, kv_bytes, activation_bytes;
    uint64_t memory_bytes;         /* what there is for weights, KV and the rest together; 0: no limit known */
    uint32_t n_layers;             /* of this stage */
    bool defers;                   /* device_sample_begin exists */
    bool kv_takes_rest;            /* KV may have all that the others leave, not half of it */
};
struct device_ops {
    void (*destroy)(struct device *d);
    enum err (*plan)(struct device *d, const struct gguf *g);
    uint64_t (*reserve_bytes)(struct device *d, const struct device_sizes *s);
    enum err (*load)(struct device *d, const struct gguf *g, weights_progress_fn *progress, void *arg);
    enum err (*prepare)(struct device *d, const struct device_sizes *s);
    enum err (*comm_create)(struct device *d, const struct comm_config *cfg, struct comm **out, struct comm_addr *own);
    enum err (*set_comm)(struct device *d, struct comm *c); /* NULL: nothing to do but remember it */
    enum err (*reset)(struct device *d);
    enum err (*flush)(struct device *d); /* NULL: nothing ever waits */
    enum err (*setup)(struct device *d, uint32_t slot, const struct slot *sl); /* NULL: nothing to do */
    enum err (*forward)(struct device *d, const struct batch *b);
    void (*put_row)(struct device *d, uint32_t row, uint32_t tok);
    void (*keep)(struct device *d, uint32_t slot, uint32_t tok);
    void (*put_kept)(struct device *d, uint32_t row, uint32_t slot);
    enum err (*head)(struct device *d, uint32_t n);
    const float *(*logits)(struct device *d, uint32_t row);
    enum err (*sample)(struct device *d, struct sampler_row *rows, uint32_t n);
    enum err (*sample_begin)(struct device *d, const struct sampler_row *rows, uint32_t n); /* NULL: not */
    bool (*sample_ready)(struct device *d);
    enum err (*sample_end)(struct device *d, struct sampler_row *rows, uint32_t n);
    enum err (*state)(struct device *d, uint32_t tok, float *y);
    enum err (*classify)(struct device *d, uint32_t tok, float *y);
};
/* First member of every implementation's struct. */
struct device {
    const struct device_ops *ops;
    struct device_config cfg;
    struct device_info info;
    struct comm *comm;             /* of the epoch, borrowed; NULL between epochs and where tp = pp = 1 */
};

/* Opens it; nothing of the model is allocated. ERR_UNSUPPORTED: a GPU in a build without CUDA; ERR_DEVICE: no driver, no such GPU. */
enum err device_create(const struct device_config *cfg, struct device **out);
void device_destroy(struct device **d);
enum err device_cpu_create(const struct device_config *cfg, struct device **out);
enum err device_cuda_create(const struct device_config *cfg, struct device **out); /* device_cuda.c, or device_cuda_none.c */

/* Lays the weights out: info.weights_bytes_planned, file_bytes, n_layers. g stays the caller's. */
static inline enum err device_plan(struct device *d, const struct gguf *g)
{
    return d->ops->plan(d, g);
}
/* Bytes that device_prepare takes beside the KV cache, of the memory that info.memory_bytes counts. */
static inline uint64_t device_reserve_bytes(struct device *d, const struct device_sizes *s)
{
    return d->ops->reserve_bytes(d, s);
}
/* ERR_NOMEM, ERR_ABORTED (progress said no), ERR_DEVICE. Nothing refers to the file afterwards. */
static inline enum err device_load(struct device *d, const struct gguf *g, weights_progress_fn *progress, void *arg)
{
    return d->ops->load(d, g, progress, arg);
}
/* The KV cache, the activations, the sampler (last stage). ERR_NOMEM, ERR_UNSUPPORTED (a KV type). */
static inline enum err device_prepare(struct device *d, const struct device_sizes *s)
{
    return d->ops->prepare(d, s);
}
/* The communicator of an epoch: the caller's, given back by device_set_comm when it is connected. */
static inline enum err device_comm_create(struct device *d, const struct comm_config *cfg, struct comm **out, struct comm_addr *own)
{
    return d->ops->comm_create(d, cfg, out, own);
}
static inline enum err device_set_comm(struct device *d, struct comm *c)
{
    d->comm = c;
    return d->ops->set_comm ? d->ops->set_comm(d, c) : ERR_OK;
}
/* A new epoch: what was kept of slots is void. ERR_DEVICE: a GPU does not come to its end. */
static inline enum err device_reset(struct device *d)
{
    return d->ops->reset(d);
}
/* A slot was set up (last stage): a device that samples by itself keeps its own account of it. */
static inline enum err device_setup(struct device *d, uint32_t slot, const struct slot *sl)
{
    return d->ops->setup ? d->ops->setup(d, slot, sl) : ERR_OK;
}
/* The layers of this stage over a batch, from the embedding or the stage before, to the stage after or to the state that the functions below read. Errors of
 * comm.h, ERR_DEVICE. */
static inline enum err device_forward(struct device *d, const struct batch *b)
{
    return d->ops->forward(d, b);
}
/* The batch just run is under way at the latest now: other ranks may wait for what this one sends. For the last batch of a step of which no row goes through the
 * head, on every rank. */
static inline enum err device_flush(struct device *d)
{
    return d->ops->flush ? d->ops->flush(d) : ERR_OK;
}
/* Last stage: head row `row` becomes the state of token `tok` of the batch just run; or the state kept for a slot. Valid until device_head. */
static inline void device_put_row(struct device *d, uint32_t row, uint32_t tok)
{
    d->ops->put_row(d, row, tok);
}
static inline void device_put_kept(struct device *d, uint32_t row, uint32_t slot)
{
    d->ops->put_kept(d, row, slot);
}
static inline void device_keep(struct device *d, uint32_t slot, uint32_t tok)
{
    d->ops->keep(d, slot, tok);
}
/* Rows 0 .. n - 1 through the final norm and the head: logits of this rank's ids. */
static inline enum err device_head(struct device *d, uint32_t n)
{
    return d->ops->head(d, n);
}
/* Host view of a row's logits [own ids], valid until the next call of anything. Slow on a GPU. */
static inline const float *device_logits(struct device *d, uint32_t row)
{
    return d->ops->logits(d, row);
}
/* As sampler_run, over the logits of device_head. */
static inline enum err device_sample(struct device *d, struct sampler_row *rows, uint32_t n)
{
    return d->ops->sample(d, rows, n);
}
/* device_sample in two halves, the host free in between, for rows that look back at nothing; where info.defers. Up to RUNNER_IN_FLIGHT are begun and not ended; ends come in
 * the order of begins. A batch's token STEP_TOKEN_SAMPLED is what its slot sampled last, which only the device may know. ready: the oldest will not wait. */
static inline enum err device_sample_begin(struct device *d, const struct sampler_row *rows, uint32_t n)
{
    return d->ops->sample_begin(d, rows, n);
}
static inline bool device_sample_ready(struct device *d)
{
    return d->ops->sample_ready(d);
}
static inline enum err device_sample_end(struct device *d, struct sampler_row *rows, uint32_t n)
{
    return d->ops->sample_end(d, rows, n);
}
/* The state of a token of the batch after the final norm: y [dim], host. */
static inline enum err device_state(struct device *d, uint32_t tok, float *y)
{
    return d->ops->state(d, tok, y);
}
/* A token of the batch through a reranker's head: y [rows of cls.output], host. */
static inline enum err device_classify(struct device *d, uint32_t tok, float *y)
{
    return d->ops->classify(d, tok, y);
}

#endif
