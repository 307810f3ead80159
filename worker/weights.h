/* The weights of one rank: its slices of every tensor, in the kernels' layout, in one mapping.
 *
 * Design: first a plan (labelled parts with offsets, a pure function of file header, split and backend), then one allocation of the planned
 * size, then the filling by all threads. Nothing but the plan decides where a part lies, so that the mapping can be any memory of that size,
 * also one that outlives the process. Matrices are packed; norms and biases are fp32. Tied embeddings are one part that serves
 * the look-up and the head. The file's pages are dropped as soon as they have been read.
 *
 * Threading: planned and loaded by one caller (and its pool), read-only afterwards. */
#ifndef WORKER_WEIGHTS_H
#define WORKER_WEIGHTS_H

#include "base/pool.h"
#include "kernels/kernels.h"
#include "model/shard.h"

#include <stdbool.h>

struct weights_part {
    char label[96];               /* the tensor's name */
    const struct gguf_tensor *t;  /* valid until the file is closed */
    struct shard_range rows;      /* of the tensor; of a vector: its elements */
    struct shard_range cols;      /* of a matrix: whole blocks */
    bool vector;                  /* kept as fp32 */
    uint64_t offset, bytes;       /* in the mapping */
    uint64_t src_bytes;           /* read from the file */
};
struct weights_layer {
    const float *attn_norm, *ffn_norm, *q_norm, *k_norm;     /* whole; the latter two NULL when absent */
    const float *q_bias, *k_bias, *v_bias, *o_bias;          /* this rank's rows; NULL when absent */
    struct kernels_weight q, k, v, o, gate, up, down;        /* this rank's rows and columns; rows = 0: none */
};
struct weights {
    struct weights_part *parts;
    uint32_t n_parts;
    uint64_t planned_bytes, file_bytes;
    uint8_t *base;                /* planned_bytes, at a multiple of 2 MiB */
    void *map;
    size_t map_bytes;
    struct weights_layer *layers; /* of this stage */
    uint32_t n_layers;
    struct kernels_weight embd, head; /* rows = 0 where the stage has none */
    struct kernels_weight cls;    /* a reranker's head, whole; last stage */
    const float *out_norm;        /* last stage only */
};

/* done, total: bytes read from the file. False stops the load. Called on the caller's thread. */
typedef bool weights_progress_fn(void *arg, uint64_t done, uint64_t total);

typedef size_t weights_bytes_fn(enum quant type, uint32_t rows, uint32_t cols);

/* Lays the parts out; allocates only the plan. bytes: of a packed matrix. ERR_NOMEM. */
enum err weights_plan(const struct gguf *g, const struct hparams *hp, const struct shard_split *split, uint32_t tp_rank, uint32_t stage,
                      weights_bytes_fn *bytes, struct weights *w);
/* Hangs the parts into the layers as they lie at w->base, which need not be memory of this process. */
void weights_hang(struct weights *w, const struct gguf *g, const struct hparams *hp, uint32_t stage, const struct shard_split *split);
/* Allocates, fills and hangs, on this host. All columns (SHARD_CUT_ROWS). ERR_NOMEM, ERR_ABORTED (progress said no). */
enum err weights_load(struct weights *w, const struct gguf *g, const struct hparams *hp, uint32_t stage, const struct shard_split *split,
                      const struct kernels *k, struct pool *pool, weights_progress_fn *progress, void *arg);
/* Of a file's mapping, before and after [p, p + len) is read. take: one call maps the pages that a thousand faults would map one by one (Linux 5.14; elsewhere it fails
 * and the faults come). drop: whole pages inside leave this process; they stay in the page cache, which gives them up when memory is
 * wanted and until then makes a restarted worker load at memory speed. */
void weights_take_pages(const uint8_t *p, uint64_t len);
void weights_drop_pages(const uint8_t *p, uint64_t len);
void weights_deinit(struct weights *w);
/* Bytes of the mapping that the kernel reports as resident. */
uint64_t weights_resident_bytes(const struct weights *w);

#endif
