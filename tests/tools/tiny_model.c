/* See tiny_model.h. */
#include "tests/tools/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct tiny_model tiny_model_default = {.arch = "llama",
                                              .layers = 2,
                                              .dim = 64,
                                              .heads = 4,
                                              .kv_heads = 2,
                                              .head_dim = 16,
                                              .head_dim_v = 16,
                                              .ffn = 96,
                                              .vocab = 300,
                                              .ctx = 256};

static void num(const struct tiny_model *t, struct gguf_write *w, const char *suffix, uint32_t v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", t->arch, suffix);
    if (!t->skip_key || strcmp(t->skip_key, key) != 0)
        gguf_write_u32(w, key, v);
}

static void tokenizer(const struct tiny_model *t, struct gguf_write *w)
{
    static const char *const merges[] = {"t o", "to k"};
    char(*text)[16] = calloc(t->vocab, sizeof(*text));
    const char **tokens = calloc(t->vocab, sizeof(*tokens));
    int32_t *types = calloc(t->vocab, sizeof(*types));
    if (!text || !tokens || !types)
        abort();
    for (uint32_t i = 0; i < t->vocab; i++) {
        snprintf(text[i], sizeof(text[i]), "tok%u", i);
        tokens[i] = text[i];
        types[i] = 1;
    }
    gguf_write_str(w, "tokenizer.ggml.model", "gpt2");
    gguf_write_str(w, "tokenizer.ggml.pre", "qwen2");
    gguf_write_str_arr(w, "tokenizer.ggml.tokens", tokens, t->vocab);
    gguf_write_i32_arr(w, "tokenizer.ggml.token_type", types, t->vocab);
    gguf_write_str_arr(w, "tokenizer.ggml.merges", merges, 2);
    gguf_write_u32(w, "tokenizer.ggml.eos_token_id", t->vocab - 1);
    gguf_write_bool(w, "tokenizer.ggml.add_bos_token", false);
    free(text);
    free(tokens);
    free(types);
}

static void f32(struct gguf_write *w, int layer, const char *name, uint64_t cols, uint64_t rows)
{
    char full[96];
    if (layer >= 0)
        snprintf(full, sizeof(full), "blk.%d.%s", layer, name);
    else
        snprintf(full, sizeof(full), "%s", name);
    gguf_write_add_tensor(w, full, 0, cols, rows, cols * (rows ? rows : 1) * 4);
}

void tiny_model_begin(const struct tiny_model *t, struct gguf_write *w)
{
    uint32_t q = t->heads * t->head_dim, k = t->kv_heads * t->head_dim, v = t->kv_heads * t->head_dim_v;
    char eps[96];
    gguf_write_init(w);
    if (!t->skip_key || strcmp(t->skip_key, "general.architecture") != 0)
        gguf_write_str(w, "general.architecture", t->arch);
    num(t, w, "block_count", t->layers);
    num(t, w, "context_length", t->ctx);
    num(t, w, "embedding_length", t->dim);
    num(t, w, "feed_forward_length", t->ffn);
    num(t, w, "attention.head_count", t->heads);
    num(t, w, "attention.head_count_kv", t->kv_heads);
    num(t, w, "attention.key_length", t->head_dim);
    num(t, w, "attention.value_length", t->head_dim_v);
    snprintf(eps, sizeof(eps), "%s.attention.layer_norm_rms_epsilon", t->arch);
    if (!t->skip_key || strcmp(t->skip_key, eps) != 0)
        gguf_write_f32(w, eps, 1e-5f);
    if (!t->no_tokenizer)
        tokenizer(t, w);
    f32(w, -1, "token_embd.weight", t->dim, t->vocab);
    for (int l = 0; l < (int)t->layers; l++) {
        f32(w, l, "attn_norm.weight", t->dim, 0);
        f32(w, l, "attn_q.weight", t->dim, q);
        f32(w, l, "attn_k.weight", t->dim, k);
        f32(w, l, "attn_v.weight", t->dim, v);
        if (t->qkv_bias) {
            f32(w, l, "attn_q.bias", q, 0);
            f32(w, l, "attn_k.bias", k, 0);
            f32(w, l, "attn_v.bias", v, 0);
        }
        if (t->qk_norm) {
            f32(w, l, "attn_q_norm.weight", t->head_dim, 0);
            f32(w, l, "attn_k_norm.weight", t->head_dim, 0);
        }
        f32(w, l, "attn_output.weight", (uint64_t)t->heads * t->head_dim_v, t->dim);
        if (t->o_bias)
            f32(w, l, "attn_output.bias", t->dim, 0);
        f32(w, l, "ffn_norm.weight", t->dim, 0);
        f32(w, l, "ffn_gate.weight", t->dim, t->ffn);
        f32(w, l, "ffn_up.weight", t->dim, t->ffn);
        f32(w, l, "ffn_down.weight", t->ffn, t->dim);
    }
    f32(w, -1, "output_norm.weight", t->dim, 0);
    if (t->untied)
        f32(w, -1, "output.weight", t->dim, t->vocab);
    if (t->rope_freqs)
        f32(w, -1, "rope_freqs.weight", t->head_dim / 2, 0);
}

struct gguf_write_tensor *tiny_model_tensor(struct gguf_write *w, const char *name)
{
    for (size_t i = 0; i < w->n_tensors; i++)
        if (strcmp(w->tensors[i].name, name) == 0)
            return &w->tensors[i];
    return NULL;
}

uint8_t *tiny_model_bytes(struct gguf_write *w, size_t *len)
{
    gguf_write_header(w);
    uint8_t *p = calloc(1, w->file_bytes);
    if (!p)
        abort();
    memcpy(p, w->header.p, w->header.len);
    const struct gguf_write_tensor *freqs = tiny_model_tensor(w, "rope_freqs.weight");
    for (uint64_t i = 0; freqs && i < freqs->ne[0]; i++) {
        const float one = 1.0f;
        memcpy(p + w->data_start + freqs->offset + 4 * i, &one, 4);
    }
    *len = w->file_bytes;
    return p;
}
