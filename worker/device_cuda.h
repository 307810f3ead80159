/* What the files of the GPU's side of device.h share: device_cuda.c (opening, memory, waiting, errors), device_cuda_load.c (the weights), device_cuda_forward.c (the
 * layers, the head, graphs). Private to them; the only files of the worker that include CUDA's headers, with comm/comm_nccl.c.
 *
 * Owns one GPU's context, one stream for all work of steps and one for copies while loading, three allocations (weights, KV, buffers) and two
 * pinned blocks. Everything is put into the stream in order; the host waits only for results. */
#ifndef WORKER_DEVICE_CUDA_H
#define WORKER_DEVICE_CUDA_H

#include "kernels/cuda/cuda.h"
#include "worker/device.h"
#include "worker/kv_pool.h"

#include <cuda_runtime_api.h>

/* Maps a CUDA error to ours with the call in the text, logged once. ERR_NOMEM for memory, else ERR_DEVICE. */
enum err device_cuda_error(cudaError_t e, const char *what);
#define TRY_CUDA(x)                                                                                                                                  \
    do {                                                                                                                                             \
        cudaError_t try_cuda_e = (x);                                                                                                                \
        if (try_cuda_e != cudaSuccess)                                                                                                               \
            return device_cuda_error(try_cuda_e, #x);                                                                                                \
    } while (0)

/* Places in an allocation, handed out twice: first to count, then for real. */
struct cuda_arena {
    uint8_t *base;
    size_t at;
};
/* What the host tells the device about a batch: one block, the same offsets in pinned memory and on the device. */
struct cuda_step_block {
    uint32_t *n_updates;
    struct cuda_table_update *updates;        /* [updates_cap] */
    uint32_t *token, *pos, *slot;             /* [batch_cap] */
    uint32_t *alone;                          /* [batch_cap] tokens that are runs of their own */
    uint32_t *tile_tok, *tile_n;              /* [tiles_cap] */
    size_t bytes;
};
enum { CUDA_GRAPH_TOKENS = 9, CUDA_GRAPH_CTX = 16, CUDA_BLOCKS = 2 };

struct cuda {
    struct device d;
    struct device_sizes sizes;
    char backend[128];
    cudaStream_t stream;
    cudaEvent_t done;                         /* device_cuda_wait */
    struct cudaDeviceProp *prop;
    struct cuda_context *kernels;
    struct shard_rank own;
    uint32_t tp, world_rank;

    struct weights w;
    uint8_t *weights_mem, *kv_mem, *buffers_mem;
    struct kv_pool kv;                        /* map: on the device */
    uint8_t *pinned;                          /* the ring of blocks, then results */
    struct cuda_step_block host[CUDA_BLOCKS], dev; /* the same offsets on both sides */
    uint8_t *ring;
    uint32_t *turn;                           /* device: batches so far; n_batches on the host */
    uint64_t n_batches;
    cudaEvent_t taken[CUDA_BLOCKS];           /* the batch of a block has run */
    uint32_t updates_cap, tiles_cap;

    uint32_t *tables;                         /* device [max_seqs][table_stride] */
    size_t table_stride;
    uint32_t *known;                          /* host [max_seqs] entries of the table that the device has ... */
    uint32_t *known_gen;                      /* ... of this generation */

    /* activations, on the device */
    double *inv_freq;
    float rope_magnitude;
    float *x;                                 /* [batch_cap][dim] residual */
    float *cos, *sin;                         /* [batch_cap][rope_dims / 2] */
    void *h;                                  /* [max(batch_cap, rows_cap)][dim] an input of matrices, up to fp32 ... */
    float *h_scale;
    void *a;                                  /* [batch_cap][max(o_cols, down_cols)] ... and another */
    float *a_scale;
    float *qkv;                               /* [batch_cap][own q | own k | own v] */
    size_t qkv_stride;
    uint32_t o_cols, o_skip;                  /* columns of attn: those that o takes; this rank's first is o_skip */
    float *attn;                              /* [batch_cap][o_cols]; zeros beside the rank's own */
    uint32_t down_cols, down_skip;
    float *gate, *up;                         /* [batch_cap][down_cols]; zeros beside the rank's own */
    float *out;                               /* [batch_cap][dim] */
    void *workspace;
    size_t workspace_bytes;

    /* the head, last stage */
    float *head_x;                            /* [rows_cap][dim] */
    float *logits;                            /* [rows_cap][logits_stride] */
    size_t logits_stride;
    float *kept;                              /* [max_seqs][dim] */
    uint32_t *row_src;                        /* device [rows_cap] token of the batch; UINT32_MAX: is there already */
    uint32_t *host_row_src;                   /* pinned */
    uint32_t n_put;                           /* rows put and not gathered yet: below this */
    float *host_logits;                       /* pinned [rows_cap][logits_stride] */
    float *host_state;                        /* pinned [max(dim, cls rows)] */
    bool logits_here;                         /* host_logits holds those of the last head */
    uint32_t head_rows;
    struct sampler *sampler;

    bool use_graphs;
    cudaGraphExec_t graph[CUDA_GRAPH_TOKENS][CUDA_GRAPH_CTX]; /* layers of a batch of lone tokens: padded to 1 << i tokens, contexts up to 256 << j */
};

static inline struct cuda *cuda_of(struct device *d)
{
    return (struct cuda *)d;
}
static inline bool cuda_last_stage(const struct cuda *c)
{
    return c->d.cfg.stage + 1 == c->d.cfg.split->pp;
}

/* Waits for everything in the stream: ticks, looks at the communicator. ERR_DEVICE, errors of comm.h. */
enum err device_cuda_wait(struct cuda *c);
/* ... for an event that was recorded. */
enum err device_cuda_wait_event(struct cuda *c, cudaEvent_t e);

enum err device_cuda_load(struct cuda *c, const struct gguf *g, weights_progress_fn *progress, void *arg);
/* Lays out and (base not NULL) sets all pointers of buffers; the bytes. */
size_t device_cuda_carve(struct cuda *c, const struct device_sizes *s, uint8_t *base);
size_t device_cuda_carve_block(struct cuda *c, struct cuda_step_block *b, uint8_t *base);
void device_cuda_graphs_destroy(struct cuda *c);

enum err device_cuda_forward(struct device *d, const struct batch *b);
void device_cuda_put_row(struct device *d, uint32_t row, uint32_t tok);
void device_cuda_keep(struct device *d, uint32_t slot, uint32_t tok);
void device_cuda_put_kept(struct device *d, uint32_t row, uint32_t slot);
enum err device_cuda_head(struct device *d, uint32_t n);
const float *device_cuda_logits(struct device *d, uint32_t row);
enum err device_cuda_sample(struct device *d, struct sampler_row *rows, uint32_t n);
enum err device_cuda_state(struct device *d, uint32_t tok, float *y);
enum err device_cuda_classify(struct device *d, uint32_t tok, float *y);

#endif
