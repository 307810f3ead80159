/* Counting for people. Reads headers only; no state. */
#include "model/describe.h"

#include "base/check.h"

#include <string.h>

void describe_file(const struct gguf *g, const struct hparams *hp, struct describe *out)
{
    memset(out, 0, sizeof(*out));
    gguf_get_str(g, "general.name", &out->name);
    gguf_get_str(g, "tokenizer.chat_template", &out->chat_template);
    gguf_get_str(g, "tokenizer.ggml.model", &out->tokenizer);
    gguf_get_str(g, "tokenizer.ggml.pre", &out->pre);
    out->arch = hp ? arch_name(hp->arch) : NULL;
    out->version = g->version;
    out->n_files = g->n_files;
    for (uint32_t i = 0; i < g->n_files; i++)
        out->file_bytes += g->files[i].size;
    out->n_tensors = g->n_tensors;
    out->n_params = hparams_n_params(g);
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        struct describe_quant *q = &out->quants[t->type];
        q->tensors++;
        q->params += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        q->bytes += t->bytes;
        out->weights_bytes += t->bytes;
        if (q->bytes > out->quants[out->main_quant].bytes)
            out->main_quant = t->type;
    }
}

void describe_shard(const struct gguf *g, const struct hparams *hp, const struct shard_split *s, enum kv_type type,
                    uint32_t ctx, uint32_t tp_rank, uint32_t stage, struct describe_shard *out)
{
    ASSERT(stage < s->pp && tp_rank < s->tp);
    memset(out, 0, sizeof(*out));
    out->stage = stage;
    out->tp_rank = tp_rank;
    out->layers = (struct shard_range){s->layer_first[stage], s->layer_first[stage + 1] - s->layer_first[stage]};
    shard_rank(hp, s, tp_rank, &out->rank);
    out->weights_bytes = shard_file_bytes(g, hp, s, tp_rank, stage);
    out->kv_block_bytes = shard_kv_block_bytes(hp, s, type, tp_rank, stage);
    out->kv_ctx_bytes = out->kv_block_bytes * (((uint64_t)ctx + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK);
}
