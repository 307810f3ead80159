/* What a model is, independent of the file it came from. Filled from GGUF metadata through archs.def. */
#ifndef MODEL_HPARAMS_H
#define MODEL_HPARAMS_H

#include "model/gguf.h"

enum arch {
#define ARCH(sym, name, rope, features) ARCH_##sym,
#include "model/archs.def"
#undef ARCH
    ARCH_COUNT
};
enum { ARCH_QKV_BIAS = 1, ARCH_QK_NORM = 2, ARCH_O_BIAS = 4 }; /* features in archs.def */
/* What the backends compute with: the dimensions of a head, and the columns of a matrix (embedding, heads together, feed-forward). */
enum { HPARAMS_HEAD_DIM_MAX = 256, HPARAMS_COLS_MAX = 131072 };
enum rope_layout { ROPE_NORMAL, ROPE_NEOX }; /* pairs (2i, 2i+1), or (i, i + n/2) */
/* How the hidden states of a sequence become one vector; the numbers are GGUF's ({arch}.pooling_type). CLS belongs to encoders. RANK is the last state through cls.output. */
enum pooling { POOLING_NONE, POOLING_MEAN, POOLING_CLS, POOLING_LAST, POOLING_RANK };
enum rope_scaling { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_YARN };

struct hparams {
    enum arch arch;
    uint32_t n_layers, dim, n_heads, n_kv_heads, head_dim; /* head_dim: of q and k; v has head_dim_v */
    uint32_t head_dim_v;
    uint32_t ffn_dim, vocab, ctx_train;
    float norm_eps;
    bool has_qkv_bias, has_qk_norm, tied_embeddings, has_o_bias;
    enum rope_layout rope_layout;
    uint32_t rope_dims;          /* rotated dimensions of a head */
    float rope_base;
    enum rope_scaling rope_scaling;
    float rope_factor;           /* linear and YaRN */
    uint32_t rope_ctx_orig;      /* YaRN */
    float rope_attn_factor;      /* multiplies the magnitude (beside YaRN's own 0.1 ln(factor) + 1); 1 */
    float rope_beta_fast, rope_beta_slow;
    enum pooling pooling;        /* as the file names it; NONE where it does not */
    bool has_cls;                /* cls.output.weight: a reranker's head in place of the vocabulary's, with the rows "yes" and "no" */
    bool has_rope_freqs;         /* tensor rope_freqs.weight divides each frequency (Llama 3) */
    const struct gguf_tensor *rope_freqs; /* view into the gguf, or NULL */
};

/* ERR_UNSUPPORTED names the architecture and the known ones; ERR_CORRUPT what is missing or contradicts (every needed tensor
 * is there with the expected shape and a known type). */
enum err hparams_load(const struct gguf *g, struct hparams *out);
const char *arch_name(enum arch a);
uint64_t hparams_n_params(const struct gguf *g); /* elements of all tensors */
/* cos and sin of one position: [rope_dims/2] each, magnitude factor applied; frequencies in double (RoPE: Su et al. 2021; YaRN: Peng et al.
 * 2023). inv_freq from rope_freqs_init. */
void rope_freqs_init(const struct hparams *hp, double *inv_freq /* [rope_dims/2] */, float *magnitude);

#endif
