/* Sampling on a GPU: the same token and the same bits of log-probabilities as worker/sampler.c gives of the same logits (kernels/sampling.h is compiled into both), with
 * nothing that goes through the host between two steps.
 *
 * State of a slot lies in device memory: its set-up, written by the host once; what was sampled last, from where cuda_sample_inputs takes the next step's input; mirostat's
 * mu; and how often each token stands in what the penalties look at. So steps may follow each other in a stream, or in graphs, without the host knowing any token. Only
 * DRY and sequences that must not become output look at tokens in a way that stays on the host: for a slot that has them the host, knowing all tokens before
 * the position, gives what they take off (sampler_history_changes) with the row.
 *
 * Kernels: segments of 512 ids by a warp each (adjustments, maxima, sums); rows by a block each (merging, the best candidates, filters, draw, log-probabilities);
 * rows whose candidates are more than a block's shared memory holds (CUDA_SAMPLE_LIST) sort their whole vocabulary, in a third kernel that otherwise ends at
 * once. Every row is decided in the stream.
 *
 * Tensor parallel: the logits of all ranks stand side by side on every rank, gathered in the stream by the caller (one all-gather of n * row_stride floats a
 * rank); all ranks run the same kernels on the same numbers and come to the same token. A step in flight ahead of its predecessor's result cannot wait for
 * a host that asks the ranks for more, so no row may stay undecided; and statistics and first candidates alone, a fraction of the bytes, do not decide every row. */
#ifndef KERNELS_CUDA_SAMPLE_H
#define KERNELS_CUDA_SAMPLE_H

#include "kernels/sampling.h"
#include "model/shard.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUDA_SAMPLE_STOP_MAX = 128, CUDA_SAMPLE_BIAS_MAX = 1024, /* as proto/msg.h has them */
    CUDA_SAMPLE_LIST = 8192,
};

struct cuda_sample_config {
    uint32_t vocab, slots, rows_cap;
    uint32_t ctx;                   /* of a slot whose penalties look at a window; 0: none does */
    uint32_t tp;
    struct shard_range ids[SHARD_TP_MAX]; /* of each rank; begin at multiples of 512 */
};
/* Of a slot. Unused parts of the lists need not be set. */
struct cuda_sample_slot {
    struct sampling_params params;
    uint32_t token;                 /* state: sampled last */
    float mu;                       /* state: mirostat's */
    uint32_t penalty_last_n;        /* 0: of all tokens */
    uint32_t has_allowed;
    uint32_t n_stop, n_bias;
    uint32_t stop[CUDA_SAMPLE_STOP_MAX], bias_id[CUDA_SAMPLE_BIAS_MAX]; /* in each, no id twice */
    float bias[CUDA_SAMPLE_BIAS_MAX];
};
struct cuda_sample_count {
    uint32_t all, output;
};
/* One row of logits, as sampler_row. */
struct cuda_sample_row {
    uint32_t slot;                  /* SAMPLING_NONE: padding, whose result says nothing */
    uint32_t position;              /* of the token that these logits predict */
    uint32_t sample, logprob;       /* bool */
    uint32_t target;                /* SAMPLING_NONE: none */
    uint32_t n_top;                 /* at most top_cap of the call */
    uint32_t first_change, n_changes; /* of `changes`, by rising id */
};
enum { CUDA_SAMPLE_CORRUPT = 1 };   /* logits that are not finite: ERR_CORRUPT; the rest of the result says nothing */
struct cuda_sample_result {
    uint32_t token;                 /* SAMPLING_NONE when none was sampled */
    float lp;                       /* NaN when none was asked for */
    float mu;
    uint32_t n_top, flags;
};
struct cuda_sample_row_state;
/* Pointers into the caller's device memory, and how it is laid out. */
struct cuda_sample {
    struct cuda_sample_config cfg;
    uint32_t n_segs;
    size_t adj_stride;
    struct cuda_sample_slot *slot;      /* [slots] */
    struct cuda_sample_count *counts;   /* [slots][vocab] */
    uint32_t *allowed;                  /* [slots][vocab bits in words] */
    uint32_t *history;                  /* [slots][ctx] */
    struct sampling_seg *raw, *adj;     /* [rows_cap][n_segs] */
    struct sampling_more *more;         /* [rows_cap][n_segs] */
    float *adj_logits;                  /* [rows_cap][adj_stride] */
    struct cuda_sample_row_state *state; /* [rows_cap] */
    uint32_t *slow;                     /* how many rows need the whole vocabulary sorted, and which */
    uint64_t *sort_keys;                /* [blocks][power of two >= vocab] */
    float *sort_p;                      /* [blocks][vocab] */
    size_t sort_stride;
};

/* Bytes of device memory that a sampler takes. */
size_t cuda_sample_bytes(const struct cuda_sample_config *cfg);
/* memory: CUDA_ALIGN-aligned, cuda_sample_bytes(). Nothing is written before cuda_sample_setup. */
void cuda_sample_init(const struct cuda_sample_config *cfg, void *memory, struct cuda_sample *s);
/* Sets a slot up, before any of its tokens run. setup and allowed (bits; NULL: all may be sampled) are pinned host memory that stays as it is until the copy has run.
 * A prefix that is skipped is learnt by cuda_sample_inputs like tokens that run. */
cudaError_t cuda_sample_setup(const struct cuda_sample *s, uint32_t slot, const struct cuda_sample_slot *setup, const uint32_t *allowed, cudaStream_t stream);
/* The input tokens of a step, before it runs: STEP_TOKEN_SAMPLED (all ones) becomes what the token's slot sampled last; counts and histories learn them. slot
 * SAMPLING_NONE: padding. Tokens of a run stand in order, one after the other. */
cudaError_t cuda_sample_inputs(const struct cuda_sample *s, uint32_t *tokens, const uint32_t *slot, const uint32_t *pos, uint32_t n, cudaStream_t stream);

struct cuda_sample_call {
    const float *logits;            /* rank r's row i at logits + r * rank_stride + i * row_stride, its ids in order; strides multiples of 4, 16-byte aligned */
    size_t rank_stride, row_stride;
    const struct cuda_sample_row *rows; /* [n] */
    const struct sampling_change *changes; /* of rows that have any */
    struct cuda_sample_result *out; /* [n] */
    uint32_t *top_id;               /* [n][top_cap] */
    float *top_lp;
    uint32_t n, top_cap;
};
/* All pointers are device memory (or pinned memory that the device can reach). */
cudaError_t cuda_sample_run(const struct cuda_sample *s, const struct cuda_sample_call *call, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
