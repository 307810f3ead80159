/* What people want to know about a model file, as plain structs: for `racklm show`, the planner's reports and logs. */
#ifndef MODEL_DESCRIBE_H
#define MODEL_DESCRIBE_H

#include "model/hparams.h"
#include "model/shard.h"

struct describe_quant {
    uint64_t tensors, params, bytes;
};
struct describe {
    struct gguf_str name;           /* general.name; empty when absent; views live as long as the gguf */
    struct gguf_str chat_template;  /* empty when absent */
    struct gguf_str tokenizer, pre; /* tokenizer.ggml.model, .pre */
    const char *arch;
    uint32_t version, n_files; /* of GGUF */
    uint64_t file_bytes;       /* of all parts */
    uint64_t n_tensors, n_params, weights_bytes;
    struct describe_quant quants[QUANT_COUNT]; /* by storage type */
    enum quant main_quant;                     /* the type of most bytes */
};
/* What one rank of one stage holds. */
struct describe_shard {
    uint32_t stage, tp_rank;
    struct shard_range layers;
    struct shard_rank rank;
    uint64_t weights_bytes;  /* read from the file */
    uint64_t kv_block_bytes; /* of one KV block of 16 positions */
    uint64_t kv_ctx_bytes;   /* of one sequence of ctx positions */
};

/* Needs no supported architecture: hp may be NULL, then arch is NULL. */
void describe_file(const struct gguf *g, const struct hparams *hp, struct describe *out);
void describe_shard(const struct gguf *g, const struct hparams *hp, const struct shard_split *s, enum kv_type type,
                    uint32_t ctx, uint32_t tp_rank, uint32_t stage, struct describe_shard *out);

#endif
