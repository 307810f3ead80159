/* The only place that knows how a tensor is cut: pure functions from (hparams, split) and (tp rank, pp stage) to a slice. The planner
 * counts bytes with them and the worker loads with them.
 *
 * CPU workers: every matrix is cut by output rows; a row is never cut, so no quantisation block is either. Units: q, k, v by whole
 * KV groups (a KV head with its query heads) while tp <= n_kv_heads, else by query heads with KV heads replicated; o and down by
 * rows in units of 16; gate, up in units of 32 columns of the ffn (256, the largest quantisation block, with SHARD_CUT_INPUTS where each rank gets one); embedding and head in segments of 512 ids. Shares: rank r gets units
 * [round(U*c[r]/c[tp]), round(U*c[r+1]/c[tp])) with c the running sum of the shares, moved so that no rank lacks a head.
 * A rank may own nothing of an axis other than heads (n = 0). */
#ifndef MODEL_SHARD_H
#define MODEL_SHARD_H

#include "model/hparams.h"

enum { SHARD_TP_MAX = 64, SHARD_PP_MAX = 64, SHARD_VOCAB_SEGMENT = 512, SHARD_FFN_UNIT = 32, SHARD_ROW_UNIT = 16 };

/* How o and down are cut: by output rows, as everything else (CPU: one rank sums an output, so the bits do not depend on tp), or by the inputs that the rank made
 * itself, so that one all-reduce of the outputs is all that travels (GPU). */
enum shard_cut { SHARD_CUT_ROWS, SHARD_CUT_INPUTS };

/* How a replica is split. Plain data; the same on every rank. */
struct shard_split {
    uint32_t tp, pp;
    enum shard_cut cut;                    /* ROWS from shard_split_init */
    uint32_t share[SHARD_TP_MAX];          /* >= 1 each; all 1: equal */
    uint32_t layer_first[SHARD_PP_MAX + 1]; /* stage s has layers [layer_first[s], layer_first[s+1]) */
};
struct shard_range {
    uint32_t first, n;
};
/* What one tp rank owns along every axis. */
struct shard_rank {
    struct shard_range heads;     /* query heads */
    struct shard_range kv_heads;  /* KV heads that those need */
    struct shard_range dim_rows;  /* output rows of o and down; all with SHARD_CUT_INPUTS */
    struct shard_range ffn;       /* columns of gate, up = inputs of down */
    struct shard_range vocab;     /* ids, of the embedding and the head */
};
enum shard_axis { SHARD_WHOLE, SHARD_Q, SHARD_KV, SHARD_DIM, SHARD_FFN, SHARD_VOCAB };

/* shares: n_shares values or NULL; layers: n_layers_list counts or NULL for even stages (the later stages get the fewer).
 * ERR_INVALID with the numbers: tp beyond the heads, pp beyond the layers, sums that do not match. */
enum err shard_split_init(const struct hparams *hp, uint32_t tp, uint32_t pp, const uint32_t *shares, uint32_t n_shares,
                          const uint32_t *layers, uint32_t n_layers_list, struct shard_split *out);
void shard_rank(const struct hparams *hp, const struct shard_split *s, uint32_t tp_rank, struct shard_rank *out);
/* The rows of a tensor that a rank of a stage loads; n = 0: none. By tensor name (blk.N.attn_q.weight ...). Biases and norms follow:
 * a bias is cut like its matrix, norms are whole. The embedding belongs to stage 0, the head (or the tied embedding) and
 * output_norm and cls.output (whole) to the last stage. Rows of a 1-D tensor are its elements. */
void shard_tensor_rows(const struct hparams *hp, const struct shard_split *s, const struct gguf_tensor *t, uint32_t tp_rank,
                       uint32_t stage, struct shard_range *rows);
/* Rows and columns that a rank of a stage loads. cols: all, but with SHARD_CUT_INPUTS of attn_output and ffn_down those of the rank's heads or ffn columns, widened to
 * whole quantisation blocks of the tensor (a block on a border is loaded by both ranks; each multiplies what is not its own with zeros). */
void shard_tensor_slice(const struct hparams *hp, const struct shard_split *s, const struct gguf_tensor *t, uint32_t tp_rank,
                        uint32_t stage, struct shard_range *rows, struct shard_range *cols);
/* Bytes in the file that a rank of a stage reads. */
uint64_t shard_file_bytes(const struct gguf *g, const struct hparams *hp, const struct shard_split *s, uint32_t tp_rank, uint32_t stage);

enum kv_type { KV_F32, KV_F16, KV_BF16, KV_Q8_0, KV_FP8 /* e4m3 */ };
enum { SHARD_KV_BLOCK = 16 }; /* positions of a KV block */
/* ERR_UNSUPPORTED where the model's heads cannot be stored so (q8_0 stores whole blocks of 32). */
enum err shard_kv_check(const struct hparams *hp, enum kv_type type);
/* Bytes of one KV block ([layer][K or V][kv head][16][head_dim]) on a rank of a stage. q8_0: 34 bytes per 32. */
uint64_t shard_kv_block_bytes(const struct hparams *hp, const struct shard_split *s, enum kv_type type, uint32_t tp_rank, uint32_t stage);

#endif
