/* The forward pass of one rank: a batch goes in, the residual stream of its tokens comes out; rows of the residual go through the
 * head and become logits.
 *
 * SPMD: every thread of the pool runs the whole pass on its part (rows of matrices, which it takes piece by piece, heads, tokens); barriers join the stages of a
 * layer, 8 a layer with tp 1. Thread 0 also does the collectives. Every matrix is cut by output rows (model/shard.h), so each output is summed by one thread
 * of one rank in the order of kernels.h: the bits depend on nothing but weights and tokens.
 *
 * Owns its activation buffers, allocated once; borrows weights, KV pool, thread pool, communicator. */
#ifndef WORKER_FORWARD_H
#define WORKER_FORWARD_H

#include "base/pool.h"
#include "worker/batch.h"
#include "worker/comm/comm.h"
#include "worker/kv_pool.h"
#include "worker/weights.h"

#include <stdatomic.h>

struct forward_config {
    const struct hparams *hp;
    const struct shard_split *split;
    uint32_t tp_rank, stage;
    const struct kernels *k;
    struct pool *pool;
    const struct weights *w;
    const struct kv_pool *kv;
    uint32_t batch_cap;  /* tokens of a batch */
    uint32_t rows_cap;   /* rows that go through the head together */
    void (*tick)(void *); /* thread 0, between layers; may be NULL */
    void *tick_arg;
};
/* Columns (or rows) of an activation that each rank of the stage makes. */
struct forward_cols {
    uint32_t k;
    bool aligned;        /* every rank's range begins at a multiple of the quantisation block */
    struct shard_range r[SHARD_TP_MAX];
};
/* The products of a pass, each shared out over the threads by rows. */
enum forward_product { FORWARD_QKV, FORWARD_O, FORWARD_FFN /* gate and up */, FORWARD_DOWN, FORWARD_HEAD, FORWARD_PRODUCTS };

/* An activation as a matmul reads it. */
struct forward_act {
    uint32_t stride;     /* elements from token to token */
    float *f32;          /* [n][stride] */
    int8_t *q;           /* [n][stride] */
    float *d;            /* [n][stride / 32] */
};
struct forward {
    struct forward_config cfg;
    struct shard_rank own;
    struct forward_cols heads, ffn, dim, vocab;
    struct comm *comm;   /* may be NULL while tp = pp = 1 */
    uint32_t tp, world_rank;

    const struct batch *b;     /* of the pass that runs */
    enum err err;              /* written by thread 0 between barriers */
    atomic_uint next_item;     /* of attention */
    struct pool_share *share[FORWARD_PRODUCTS]; /* what is left of each: full again before the next layer comes to it */
    uint32_t piece[FORWARD_PRODUCTS];           /* taken at a time */
    uint32_t head_rows;

    double *inv_freq;          /* [rope_dims / 2] */
    float rope_magnitude;
    float *x;                  /* [batch_cap][dim] residual */
    float *cos, *sin;          /* [batch_cap][rope_dims / 2] */
    struct forward_act h;      /* [batch_cap][dim] normed input of a block */
    struct forward_act a;      /* [batch_cap][max(heads * head_dim_v, ffn)] input of o and down, whole */
    float *qkv;                /* [batch_cap][own q | own k | own v] */
    float *attn;               /* [batch_cap][own heads * head_dim_v] */
    float *gate, *up;          /* [batch_cap][own ffn] */
    uint8_t *parts;            /* gather buffer: [rank][its columns of all tokens] */
    float *out;                /* gather buffer: [rank][token][its rows of o or down] */
    float *scratch;            /* [threads][scratch_each] attention; swiglu */
    size_t scratch_each;
    uint16_t *embd_rank;       /* [batch_cap] rank that owns the token's embedding ... */
    uint32_t *embd_idx;        /* ... and where it stands among those of that rank */
    uint32_t embd_n[SHARD_TP_MAX];

    float *head_x;             /* [rows_cap][dim] rows to go through the head */
    struct forward_act hh;     /* [rows_cap][dim] */
    float *logits;             /* [rows_cap][logits_stride] ids of own.vocab */
    size_t logits_stride;
    void *map;
    size_t map_bytes;
};

enum err forward_init(struct forward *f, const struct forward_config *cfg);
void forward_deinit(struct forward *f);
/* Runs the layers of this stage over a batch: from the embedding or the stage before, to the stage after or, on the last stage, into f->x
 * [n_tok][dim]. Errors of comm.h. */
enum err forward_run(struct forward *f, const struct batch *b);
/* The state after the final norm of one row of x: what pooling takes. Any thread, last stage. */
void forward_final_norm(const struct forward *f, const float *x, float *y);
/* One row of x through a reranker's head: y [w->cls.rows]. The calling thread alone, last stage, between passes. */
void forward_classify(struct forward *f, const float *x, float *y);
/* head_x [n][dim] -> logits [n][logits_stride] of own.vocab. n <= rows_cap. */
void forward_head(struct forward *f, uint32_t n);

#endif
