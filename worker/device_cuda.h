/* What the files of the GPU's side of device.h share: device_cuda.c (opening, memory, waiting, errors), device_cuda_load.c (the weights), device_cuda_forward.c (the
 * layers, graphs), device_cuda_sample.c (the head, sampling). Private to them; the only files of the worker that include CUDA's headers, with comm/comm_nccl.c.
 *
 * Owns one GPU's context, one stream for all its work, three allocations (weights, KV, buffers) and one of pinned memory. Everything is put into the stream in order; the host waits only for results. */
#ifndef WORKER_DEVICE_CUDA_H
#define WORKER_DEVICE_CUDA_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/sample.h"
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

/* What a pass is launched for: real counts, or the bounds of a graph. */
struct cuda_pass {
    uint32_t n_tok, n_alone, n_tiles, ctx_max;
};
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
    uint32_t *row_src;                        /* [CUDA_ROW_LISTS][rows_cap] token of the batch whose state is the head's row; CUDA_NO_TOKEN: the row is there already */
    struct cuda_sample_row *rows;             /* [rows_cap] */
    size_t bytes;
};
enum { CUDA_GRAPH_TOKENS = 9, CUDA_GRAPH_CTX = 16, CUDA_BLOCKS = 2, CUDA_TOP_CAP = MSG_LOGPROBS_MAX,
       CUDA_ROW_LISTS = 4, CUDA_WAIT_LIMIT_S = 120 };
#define CUDA_NO_TOKEN UINT32_MAX /* in lists of tokens and slots: padding */

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
    float *y;                                 /* [batch_cap][dim] of o and down */
    void *workspace;
    size_t workspace_bytes;

    /* the head, last stage */
    float *head_x;                            /* [rows_cap][dim] */
    float *logits;                            /* [tp][rows_cap][logits_stride] of all ranks; this one's at logits_own */
    float *logits_own;
    size_t logits_stride;
    float *kept;                              /* [max_seqs][dim] */
    uint32_t row_first, n_put;                /* rows put and not gathered yet: so many of the last block's row_src, from row_first on */
    uint32_t head_rows;                       /* of the last device_head */
    bool head_waits;                          /* ... which has not been launched */
    float *host_logits;                       /* pinned [rows_cap][logits_stride] */
    float *host_state;                        /* pinned [max(dim, cls rows)] */

    struct cuda_sample sample;
    struct cuda_step_results out;             /* device */
    struct cuda_step_results results[CUDA_BLOCKS]; /* pinned */
    cudaEvent_t sampled[CUDA_BLOCKS];
    uint64_t sampled_ns[CUDA_BLOCKS];
    uint32_t begun[CUDA_BLOCKS], begun_first, n_begun; /* which of them, oldest first */
    struct cuda_sample_slot *host_setup;      /* pinned */
    uint32_t *host_allowed;                   /* pinned [vocab bits] */
    struct sampling_change *changes;          /* device [changes_cap] of one row */
    struct sampling_change *host_changes;     /* pinned */
    uint32_t *best, *z;                       /* host scratch of sampler_history_changes: [vocab] zeros, [ctx] */
    uint32_t changes_cap;

    enum err failed;                          /* of a function that returns nothing; the next that can says so */
    bool pass_waits;                          /* the pass of lone tokens in `pass` has not been launched: the head may go with it */
    struct cuda_pass pass;
    bool use_graphs;
    /* A batch of lone tokens, padded to 1 << i tokens, contexts up to 256 << j: layers alone [0], or with the head and the sampling of as many rows [1]. */
    cudaGraphExec_t graph[2][CUDA_GRAPH_TOKENS][CUDA_GRAPH_CTX];
};

static inline struct cuda *cuda_of(struct device *d)
{
    return (struct cuda *)d;
}
static inline bool cuda_last_stage(const struct cuda *c)
{
    return c->d.cfg.stage + 1 == c->d.cfg.split->pp;
}

/* cudaEventQuery that leaves no error behind. */
cudaError_t device_cuda_query(cudaEvent_t event);
/* Waits for everything in the stream: ticks, looks at the communicator. ERR_DEVICE, errors of comm.h. */
enum err device_cuda_wait(struct cuda *c);
/* ... for an event that was recorded. */
enum err device_cuda_wait_event(struct cuda *c, cudaEvent_t e);

enum err device_cuda_load(struct cuda *c, const struct gguf *g, weights_progress_fn *progress, void *arg);
/* Lays out and (base not NULL) sets all pointers of buffers; the bytes. */
size_t device_cuda_carve(struct cuda *c, const struct device_sizes *s, uint8_t *base);
size_t device_cuda_carve_block(struct cuda *c, struct cuda_step_block *b, uint8_t *base);
void device_cuda_graphs_destroy(struct cuda *c);

/* A matrix's view for the kernels. */
static inline struct cuda_weight cuda_weight_of(const struct kernels_weight *w)
{
    return (struct cuda_weight){w->type, w->rows, w->cols, w->data};
}
/* What the input of matrices is made of; it is made anew for each type of activation that its matrices take (nearly always one). */
struct cuda_input {
    enum { CUDA_INPUT_NORM, CUDA_INPUT_ROWS, CUDA_INPUT_SWIGLU } from;
    uint32_t n, k;
    float *x;           /* NORM: residual; ROWS: [n][stride]; SWIGLU: gate [n][stride] */
    const float *up;    /* SWIGLU */
    float *add;         /* NORM: added to x first (over all ranks), or NULL; overwritten */
    const float *norm;  /* NORM */
    size_t stride;
    void *act;          /* where it is made */
    float *scale;
};
struct cuda_output {
    const struct kernels_weight *w;
    const float *bias;
    float *y;
    size_t stride;
};
enum err device_cuda_make_input(struct cuda *c, struct cuda_input *in, enum cuda_type type, struct cuda_act *act);
/* Every output = its matrix times the input. Outputs without rows are left out. */
enum err device_cuda_project(struct cuda *c, struct cuda_input *in, const struct cuda_output *outs, uint32_t n_outs);
/* An earlier function that returns nothing failed. */
enum err device_cuda_failed(const struct cuda *c);
/* Launches what waits: the last batch's layers. */
enum err device_cuda_launch_pass(struct cuda *c);
/* ... with the head and the sampling of its rows in one graph; *done false: this batch cannot. */
enum err device_cuda_launch_whole(struct cuda *c, bool *done);
/* Puts the head's and the sampling's work over rows 0 .. n - 1 into the stream; captured in graphs, so that n may be a bound (padding rows say so). */
enum err device_cuda_enqueue_head(struct cuda *c, uint32_t n);
enum err device_cuda_enqueue_sample(struct cuda *c, uint32_t n);
/* Captures the graphs of every number of sequences for short contexts, so that the first steps need not; longer ones come when they are wanted. */
enum err device_cuda_warm(struct cuda *c);
/* Rows that were put since the last batch, or the last head, out of the residual. */
enum err device_cuda_gather(struct cuda *c);
static inline struct cuda_step_block *cuda_last_block(struct cuda *c)
{
    return &c->host[(c->n_batches - 1) % CUDA_BLOCKS];
}

enum err device_cuda_forward(struct device *d, const struct batch *b);
void device_cuda_put_row(struct device *d, uint32_t row, uint32_t tok);
void device_cuda_keep(struct device *d, uint32_t slot, uint32_t tok);
void device_cuda_put_kept(struct device *d, uint32_t row, uint32_t slot);
enum err device_cuda_head(struct device *d, uint32_t n);
const float *device_cuda_logits(struct device *d, uint32_t row);
enum err device_cuda_setup(struct device *d, uint32_t slot, const struct slot *sl);
enum err device_cuda_sample(struct device *d, struct sampler_row *rows, uint32_t n);
enum err device_cuda_sample_begin(struct device *d, const struct sampler_row *rows, uint32_t n);
bool device_cuda_sample_ready(struct device *d);
enum err device_cuda_sample_end(struct device *d, struct sampler_row *rows, uint32_t n);
enum err device_cuda_state(struct device *d, uint32_t tok, float *y);
enum err device_cuda_classify(struct device *d, uint32_t tok, float *y);

#endif
