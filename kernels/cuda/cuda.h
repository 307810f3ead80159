/* What the CUDA backend can do, as functions that put work into a stream. They check shapes (ASSERT: a wrong one is a bug of the caller), launch, and
 * return the launch's error; nothing is waited for, nothing allocated. Every pointer is device memory unless a comment says host. All of them may be
 * captured in a graph: whatever changes from step to step lies in device memory, counts given by value are upper bounds where the comment
 * says so.
 *
 * Numerics. The residual stream, norms, scores, softmax and all outputs of matrices are fp32. What a matrix is multiplied with is 16 bits wide (struct
 * cuda_act): bf16 for BF16 weights, else f16 with one power of two a token taken out, so that nothing overflows. Products are summed in fp32 on
 * tensor cores. The oracle is kernels_ref_f32; the tolerance belongs to each case (tests/gpu/test_kernels.cc).
 *
 * Deterministic form (cuda_config.deterministic): only our own kernels, with tiles and an order of summation that do not depend on how many tokens or
 * sequences run together, so that a token's results have the same bits in any batch and for any chunking. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "model/hparams.h"
#include "model/quants.h"
#include "model/shard.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_ALIGN = 256 };
/* Tokens up to which matrices run in the kernels that read the weights once for all of them (matmul_small.cu); more go to matmul_large.cu or cuBLASLt. */
enum { CUDA_SMALL_BATCH = 64 };

/* ---- weights (pack.cu; the layout: layout.h)
 *
 * A matrix [rows][cols], a row is an output. F32, F16, BF16: row-major as in the file, rows padded (layout.h). Quantised: tiles of 16 rows x 128 or 256 columns in
 * the order in which a warp reads them (layout.h): what a rank does not have is cut from the file's rows, before packing. Weights are multiplied as f16: beyond 65504
 * they are infinite. */
struct cuda_weight {
    enum quant type;
    uint32_t rows, cols; /* rows = 0: none here */
    const void *data;    /* CUDA_ALIGN-aligned, cuda_weight_bytes() */
};
/* Bytes of a packed matrix; cols is a multiple of the type's block. */
size_t cuda_weight_bytes(enum quant type, uint32_t rows, uint32_t cols);
/* n rows of `cols` columns as the file has them, dense at src (device), become packed rows [row0, row0 + n) of w (w->data is written). */
cudaError_t cuda_weight_pack(const struct cuda_weight *w, const void *src, uint32_t row0, uint32_t n, cudaStream_t stream);
/* y[i][cols] = row (ids[i] - first_id) as fp32; zeros where that is outside [0, rows): summed over the ranks it is the embedding. */
cudaError_t cuda_weight_rows(const struct cuda_weight *w, const uint32_t *ids, uint32_t n, uint32_t first_id, float *y, cudaStream_t stream);

/* ---- activations */
enum cuda_type { CUDA_F32, CUDA_F16, CUDA_BF16 };
/* n tokens of k columns, row-major and dense: value = x * scale[token]. scale is a power of two for F16; NULL: 1 (BF16, F32). k is a multiple of 8. */
struct cuda_act {
    enum cuda_type type;
    uint32_t n, k;
    void *x;
    float *scale;
};
/* The form of activation that a weight type is multiplied with. */
enum cuda_type cuda_act_type(enum quant type);

/* ---- matrices (matmul.c picks; matmul_small.cu, matmul_large.cu, matmul_f32.cu, cublaslt.c) */
struct cuda_matmul {
    const struct cuda_weight *w;
    const float *bias; /* [rows], or NULL */
    float *y;          /* y[token * y_stride + row] */
    size_t y_stride;
};
struct cuda_context; /* below */
/* Up to 4 matrices with one input (q, k, v; gate, up): as few launches as their types allow. All of x's type. x->n tokens; x->k is their columns rounded up to 8, what is
 * beyond them being anything finite. Needs nothing of the workspace, but is faster with it. */
cudaError_t cuda_matmul(struct cuda_context *c, const struct cuda_matmul *m, uint32_t n_m, const struct cuda_act *x, cudaStream_t stream);

/* ---- fused elementwise (fused.cu). n tokens each. */
/* The rotation of each token: cos, sin [n][half] of pos[i] * inv_freq[j] (double), times magnitude. */
cudaError_t cuda_rotations(const uint32_t *pos, uint32_t n, const double *inv_freq, uint32_t half, float magnitude, float *cos, float *sin,
                           cudaStream_t stream);
/* x += add (NULL: nothing to add; stride dim), then, where w is given, out = rmsnorm(x) * w. x [n][dim] fp32. out may be of any type; F32 leaves scale alone. */
cudaError_t cuda_add_norm(float *x, const float *add, const float *w, float eps, uint32_t n, uint32_t dim, const struct cuda_act *out,
                          cudaStream_t stream);
/* x[n][k] fp32, row stride in floats, as an activation. */
cudaError_t cuda_act_from_f32(const float *x, size_t stride, const struct cuda_act *out, cudaStream_t stream);
/* out = silu(gate) * up; gate, up [n][k] with row stride. */
cudaError_t cuda_swiglu(const float *gate, const float *up, size_t stride, const struct cuda_act *out, cudaStream_t stream);
/* out[i] = x[index[i]] for n rows of dim floats; an index of UINT32_MAX leaves the row alone. */
cudaError_t cuda_gather_rows(const float *x, const uint32_t *index, uint32_t n, uint32_t dim, float *out, cudaStream_t stream);

/* ---- the step's block (step.cu)
 *
 * The host writes what it has to say about a batch into one of n_blocks blocks of pinned memory, `stride` apart; the device takes block *turn % n_blocks and
 * counts on. So a captured graph needs no argument that changes, and the host writes one block while the device has yet to read another. */
/* dst = the block, `bytes` (a multiple of 16) of it. ring: pinned, as the device sees it. */
cudaError_t cuda_step_fetch(const void *ring, size_t stride, uint32_t n_blocks, const uint32_t *turn, size_t bytes, void *dst, cudaStream_t stream);
/* Entry i < *n: tables[u[i].slot * table_stride + u[i].at] = u[i].block; no place is named twice. n_max: bound of *n. Then ++*turn. */
struct cuda_table_update {
    uint32_t slot, at, block;
};
cudaError_t cuda_step_tables(uint32_t *tables, size_t table_stride, const struct cuda_table_update *u, const uint32_t *n, uint32_t n_max, uint32_t *turn,
                             cudaStream_t stream);

/* What was sampled, back into the same turn's place of a pinned ring: results [n], top_id and top_lp [n][top_cap] (only the n_top of each row), as they lie at out on the
 * device. Called after cuda_step_tables, so the turn is *turn - 1. */
struct cuda_sample_result;
struct cuda_step_results {
    struct cuda_sample_result *out;
    uint32_t *top_id;
    float *top_lp;
};
cudaError_t cuda_step_store(const struct cuda_step_results *from, const struct cuda_step_results *to /* [n_blocks], by value */, uint32_t n_blocks,
                            const uint32_t *turn, uint32_t n, uint32_t top_cap, cudaStream_t stream);

/* ---- KV cache and attention (rope_kv.cu, attention_decode.cu, attention_prefill.cu)
 *
 * The pool of a layer is that of worker/kv_pool.h: [block][K or V][kv head][16 positions][head_dim] of a KV type, here f16, bf16, q8_0 (34 bytes: f16 scale, 32
 * int8) or fp8 (e4m3). */
struct cuda_kv {
    uint8_t *layer;
    enum kv_type type;
    size_t block_stride, v_off, k_head_stride, v_head_stride;
    uint32_t n_kv_heads, head_dim, head_dim_v;
};
/* The tokens of a batch, as the host wrote them into the step's block (device copy). Runs are consecutive tokens of one sequence. */
struct cuda_batch {
    const uint32_t *pos;        /* [n_tok] */
    const uint32_t *slot;       /* [n_tok] row of tables; UINT32_MAX: padding, whose KV is not written and whose output is anything finite */
    const uint32_t *tables;     /* [slots][table_stride] block ids */
    size_t table_stride;
    uint32_t n_tok;
};
/* qkv [n_tok][stride]: q heads, then k heads, then v heads. Norms q and k by head where q_norm, k_norm are given, rotates both in place (rope_dims of head_dim),
 * writes k and v into the cache at the tokens' positions. Local heads only. */
struct cuda_rope_kv {
    float *qkv;
    size_t stride;
    uint32_t n_heads, rope_dims;
    enum rope_layout layout;
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    float eps;
    const float *cos, *sin;       /* [n_tok][rope_dims / 2] */
    struct cuda_kv kv;
};
cudaError_t cuda_rope_kv(const struct cuda_rope_kv *r, const struct cuda_batch *b, cudaStream_t stream);

struct cuda_attention {
    const float *q;      /* [n_tok][q_stride]; local head h at h * head_dim */
    float *out;          /* [n_tok][out_stride]; at h * head_dim_v */
    size_t q_stride, out_stride;
    uint32_t n_heads;    /* local query heads */
    uint32_t head0, group, kv_head0; /* local head h reads local KV head (head0 + h) / group - kv_head0 */
    struct cuda_kv kv;
    float scale;
    uint32_t window;     /* a token sees its last `window` positions; 0: all */
    float softcap;       /* s = softcap * tanh(s / softcap); 0: none */
    const float *sinks;  /* [n_heads] a logit that takes part in the softmax's sum only; or NULL */
};
/* Tokens that stand alone (decode): one query a sequence, split over ranges of positions, heads of a KV head together. index [n_idx]: tokens of the batch, UINT32_MAX:
 * none; NULL: tokens 0 .. n_idx - 1. ctx_max: upper bound of positions, by which the split is chosen (the deterministic form splits by a fixed length). */
cudaError_t cuda_attention_decode(struct cuda_context *c, const struct cuda_attention *a, const struct cuda_batch *b, const uint32_t *index, uint32_t n_idx,
                                  uint32_t ctx_max, cudaStream_t stream);
/* Runs of several tokens: tiles of CUDA_ATTN_TILE queries of one run. tile_tok [n_tiles]: first token in the batch; tile_n [n_tiles]: its tokens (1 ..
 * CUDA_ATTN_TILE). The keys of the run's own tokens are in the cache already. */
enum { CUDA_ATTN_TILE = 64 };
cudaError_t cuda_attention_prefill(struct cuda_context *c, const struct cuda_attention *a, const struct cuda_batch *b, const uint32_t *tile_tok,
                                   const uint32_t *tile_n, uint32_t n_tiles, cudaStream_t stream);

/* ---- a context: what the functions above need beside their arguments; one a device and thread */
struct cuda_config {
    bool deterministic;
    void *workspace;        /* cuda_workspace_bytes(), of one stream at a time */
    size_t workspace_bytes;
    uint32_t n_sms;
};
struct cuda_limits { /* what the workspace must be enough for */
    uint32_t n_tok, n_seqs, n_heads, head_dim_v, ctx, rows_max, cols_max;
};
size_t cuda_workspace_bytes(const struct cuda_limits *l);
/* cuBLASLt is loaded when it is there (dlopen); without it our own kernels serve everything. NULL: out of memory. */
struct cuda_context *cuda_context_create(const struct cuda_config *cfg);
void cuda_context_destroy(struct cuda_context **c);
/* "own kernels", or "own kernels, cuBLASLt 13.0.2": static for the context's life. */
const char *cuda_context_describe(const struct cuda_context *c);

#ifdef __cplusplus
}
#endif

#endif
