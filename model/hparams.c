/* From GGUF metadata to struct hparams, with every fact checked before anybody computes with it.
 *
 * Three passes: the numbers (bounded, so that no product below can overflow), the rope settings, and the tensors. The
 * tensor pass walks the table layer_rules and the few tensors outside of layers, compares presence, shape and type, and
 * then looks for tensors that nobody asked for: a model with weights that the forward pass would not use answers
 * wrongly, so it is refused. Key names: format document of GGUF (ggml docs/gguf.md), section "Standardized key-value
 * pairs". No state. */
#include "model/hparams.h"

#include "base/check.h"
#include "base/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYERS_MAX = 4096,
    DIM_MAX = 1 << 20,
    HEADS_MAX = 1 << 14,
    HEAD_DIM_MAX = 4096,
    VOCAB_MAX = 1 << 24,
    CTX_MAX = 1 << 28
};

static const struct {
    const char *name;
    enum rope_layout rope;
    unsigned features;
} archs[ARCH_COUNT] = {
#define ARCH(sym, name, rope, features) [ARCH_##sym] = {name, rope, features},
#include "model/archs.def"
#undef ARCH
};

const char *arch_name(enum arch a)
{
    ASSERT((unsigned)a < ARCH_COUNT);
    return archs[a].name;
}

uint64_t hparams_n_params(const struct gguf *g)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        n += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
    }
    return n;
}

/* --- keys: "<architecture>.<suffix>" --- */

struct loader {
    const struct gguf *g;
    struct hparams *hp;
    char key[128];
};

static const char *arch_key(struct loader *l, const char *suffix)
{
    snprintf(l->key, sizeof(l->key), "%s.%s", arch_name(l->hp->arch), suffix);
    return l->key;
}

static bool has_key(struct loader *l, const char *suffix)
{
    return gguf_find(l->g, arch_key(l, suffix)) != NULL;
}

/* An integer, or an array of one value for each layer as some converters write it: all must be equal. */
static enum err get_u32(struct loader *l, const char *suffix, uint32_t min, uint32_t max, uint32_t *out)
{
    const char *key = arch_key(l, suffix);
    const struct gguf_kv *kv = gguf_find(l->g, key);
    int64_t v = -1;
    if (!kv)
        return err_set(ERR_CORRUPT, "the model lacks the key %s", key);
    uint32_t scalar;
    if (gguf_get_u32(l->g, key, &scalar)) {
        v = scalar;
    } else if (gguf_arr_i64(kv, 0, &v)) {
        for (uint64_t i = 1; i < kv->n; i++) {
            int64_t w;
            if (!gguf_arr_i64(kv, i, &w) || w != v)
                return err_set(ERR_UNSUPPORTED, "%s differs from layer to layer, which is not supported", key);
        }
    } else {
        return err_set(ERR_CORRUPT, "%s is no integer that can be", key);
    }
    if (v < (int64_t)min || v > (int64_t)max)
        return err_set(ERR_CORRUPT, "%s is %" PRId64 " (%u to %u expected)", key, v, min, max);
    *out = (uint32_t)v;
    return ERR_OK;
}

static enum err get_u32_or(struct loader *l, const char *suffix, uint32_t min, uint32_t max, uint32_t def,
                           uint32_t *out)
{
    *out = def;
    return has_key(l, suffix) ? get_u32(l, suffix, min, max, out) : ERR_OK;
}

static enum err get_f32_or(struct loader *l, const char *suffix, float min, float max, float def, float *out)
{
    const char *key = arch_key(l, suffix);
    *out = def;
    if (!gguf_find(l->g, key))
        return ERR_OK;
    if (!gguf_get_f32(l->g, key, out))
        return err_set(ERR_CORRUPT, "%s is no number", key);
    if (!(*out >= min && *out <= max))
        return err_set(ERR_CORRUPT, "%s is %g (%g to %g expected)", key, (double)*out, (double)min, (double)max);
    return ERR_OK;
}

/* --- numbers --- */

static enum err load_arch(struct loader *l)
{
    struct gguf_str name;
    char known[256] = "";
    if (!gguf_get_str(l->g, "general.architecture", &name))
        return err_set(ERR_CORRUPT, "the model lacks the key general.architecture");
    for (unsigned i = 0; i < ARCH_COUNT; i++) {
        if (name.len == strlen(archs[i].name) && memcmp(name.s, archs[i].name, name.len) == 0) {
            l->hp->arch = (enum arch)i;
            l->hp->rope_layout = archs[i].rope;
            return ERR_OK;
        }
        size_t at = strlen(known);
        snprintf(known + at, sizeof(known) - at, "%s%s", i ? ", " : "", archs[i].name);
    }
    char shown[48];
    size_t n = MIN(name.len, sizeof(shown) - 1);
    for (size_t i = 0; i < n; i++) /* a value may hold anything; the message is one line */
        shown[i] = (name.s[i] >= 0x20 && name.s[i] < 0x7f) ? name.s[i] : '?';
    shown[n] = 0;
    static const char *const encoders[] = {"bert",         "modern-bert",  "neo-bert", "nomic-bert",      "nomic-bert-moe", "jina-bert-v2",
                                           "jina-bert-v3", "eurobert",     "gemma-embedding", "llama-embed", "t5encoder"};
    for (unsigned i = 0; i < ARRAY_LEN(encoders); i++)
        if (strcmp(shown, encoders[i]) == 0)
            return err_set(ERR_UNSUPPORTED, "architecture \"%s\" is an encoder, which is not supported yet (known: %s)", shown, known);
    return err_set(ERR_UNSUPPORTED, "architecture \"%s\" is not supported (known: %s)", shown, known);
}

static enum err load_heads(struct loader *l)
{
    struct hparams *hp = l->hp;
    TRY(get_u32(l, "attention.head_count", 1, HEADS_MAX, &hp->n_heads));
    TRY(get_u32_or(l, "attention.head_count_kv", 1, HEADS_MAX, hp->n_heads, &hp->n_kv_heads));
    if (hp->n_heads % hp->n_kv_heads)
        return err_set(ERR_CORRUPT, "%u attention heads cannot share %u KV heads evenly", hp->n_heads, hp->n_kv_heads);
    uint32_t even = hp->dim % hp->n_heads ? 0 : hp->dim / hp->n_heads;
    if (!even && !has_key(l, "attention.key_length"))
        return err_set(ERR_CORRUPT,
                       "embedding_length %u is no multiple of head_count %u and attention.key_length is missing",
                       hp->dim, hp->n_heads);
    TRY(get_u32_or(l, "attention.key_length", 2, HEAD_DIM_MAX, even, &hp->head_dim));
    TRY(get_u32_or(l, "attention.value_length", 1, HEAD_DIM_MAX, even ? even : hp->head_dim, &hp->head_dim_v));
    if (hp->head_dim % 2 || hp->head_dim > HEAD_DIM_MAX || hp->head_dim_v > HEAD_DIM_MAX)
        return err_set(ERR_CORRUPT, "a head dimension of %u (values %u) cannot be (even, at most %d)", hp->head_dim,
                       hp->head_dim_v, HEAD_DIM_MAX);
    if (MAX(hp->head_dim, hp->head_dim_v) > HPARAMS_HEAD_DIM_MAX)
        return err_set(ERR_UNSUPPORTED, "heads of %u dimensions (values %u) are not supported (at most %d)", hp->head_dim,
                       hp->head_dim_v, HPARAMS_HEAD_DIM_MAX);
    return ERR_OK;
}

static enum err check_cols(const struct hparams *hp)
{
    uint64_t heads = (uint64_t)hp->n_heads * MAX(hp->head_dim, hp->head_dim_v);
    if (heads > HPARAMS_COLS_MAX || MAX(hp->dim, hp->ffn_dim) > HPARAMS_COLS_MAX)
        return err_set(ERR_UNSUPPORTED,
                       "matrices of %" PRIu64 " columns are not supported (at most %d; embedding_length %u, "
                       "feed_forward_length %u, %u heads of %u)",
                       MAX(heads, (uint64_t)MAX(hp->dim, hp->ffn_dim)), HPARAMS_COLS_MAX, hp->dim, hp->ffn_dim, hp->n_heads,
                       MAX(hp->head_dim, hp->head_dim_v));
    return ERR_OK;
}

static enum err load_numbers(struct loader *l)
{
    struct hparams *hp = l->hp;
    uint32_t experts, window, pooling;
    bool causal = true;
    TRY(get_u32(l, "block_count", 1, LAYERS_MAX, &hp->n_layers));
    TRY(get_u32(l, "embedding_length", 1, DIM_MAX, &hp->dim));
    TRY(get_u32(l, "feed_forward_length", 1, DIM_MAX, &hp->ffn_dim));
    TRY(get_u32(l, "context_length", 1, CTX_MAX, &hp->ctx_train));
    TRY(load_heads(l));
    TRY(check_cols(hp));
    if (!has_key(l, "attention.layer_norm_rms_epsilon"))
        return err_set(ERR_CORRUPT, "the model lacks the key %s", l->key);
    TRY(get_f32_or(l, "attention.layer_norm_rms_epsilon", 0, 0.1f, 0, &hp->norm_eps));
    TRY(get_u32_or(l, "expert_count", 0, UINT32_MAX, 0, &experts));
    if (experts)
        return err_set(ERR_UNSUPPORTED, "the model is a mixture of %u experts, which is not supported yet", experts);
    TRY(get_u32_or(l, "pooling_type", POOLING_NONE, POOLING_RANK, POOLING_NONE, &pooling));
    hp->pooling = (enum pooling)pooling;
    if (gguf_get_bool(l->g, arch_key(l, "attention.causal"), &causal) && !causal)
        return err_set(ERR_UNSUPPORTED, "the model is an encoder (attention.causal is false), which is not supported yet");
    TRY(get_u32_or(l, "attention.sliding_window", 0, UINT32_MAX, 0, &window));
    if (window && window < hp->ctx_train) {
        LOG(WARN, MODEL, "context lowered to the sliding window", "from=%u to=%u", hp->ctx_train, window);
        hp->ctx_train = window; /* within the window, full attention is the same thing */
    }
    return ERR_OK;
}

static enum err load_rope_type(struct loader *l, bool has_factor)
{
    struct hparams *hp = l->hp;
    struct gguf_str type;
    const char *key = arch_key(l, "rope.scaling.type");
    /* Files from before rope.scaling.type carry only a factor, which was always linear. */
    hp->rope_scaling = has_factor ? ROPE_SCALING_LINEAR : ROPE_SCALING_NONE;
    if (!gguf_find(l->g, key))
        return ERR_OK;
    if (!gguf_get_str(l->g, key, &type))
        return err_set(ERR_CORRUPT, "%s is no string", key);
    static const char *const names[] = {
        [ROPE_SCALING_NONE] = "none", [ROPE_SCALING_LINEAR] = "linear", [ROPE_SCALING_YARN] = "yarn"};
    for (unsigned i = 0; i < ARRAY_LEN(names); i++)
        if (type.len == strlen(names[i]) && memcmp(type.s, names[i], type.len) == 0) {
            hp->rope_scaling = (enum rope_scaling)i;
            return ERR_OK;
        }
    return err_set(ERR_UNSUPPORTED, "%s is none of none, linear, yarn", key);
}

static enum err load_rope(struct loader *l)
{
    struct hparams *hp = l->hp;
    float yarn_attn, ext, log_mul;
    TRY(get_u32_or(l, "rope.dimension_count", 2, HEAD_DIM_MAX, hp->head_dim, &hp->rope_dims));
    if (hp->rope_dims % 2 || hp->rope_dims > hp->head_dim)
        return err_set(ERR_CORRUPT, "%s is %u (even, at most the head dimension %u)",
                       arch_key(l, "rope.dimension_count"), hp->rope_dims, hp->head_dim);
    TRY(get_f32_or(l, "rope.freq_base", 1.0f, 1e12f, 10000.0f, &hp->rope_base));
    const char *factor_key = has_key(l, "rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
    bool has_factor = has_key(l, factor_key);
    TRY(get_f32_or(l, factor_key, 0.0f, 1e6f, 1.0f, &hp->rope_factor));
    if (hp->rope_factor == 0.0f)
        hp->rope_factor = 1.0f; /* some converters write 0 for none */
    TRY(load_rope_type(l, has_factor));
    if (hp->rope_scaling == ROPE_SCALING_NONE || hp->rope_factor == 1.0f) {
        hp->rope_scaling = ROPE_SCALING_NONE;
        hp->rope_factor = 1.0f;
    }
    TRY(get_u32_or(l, "rope.scaling.original_context_length", 1, CTX_MAX, hp->ctx_train, &hp->rope_ctx_orig));
    TRY(get_f32_or(l, "rope.scaling.attn_factor", 1e-3f, 1e3f, 1.0f, &hp->rope_attn_factor));
    TRY(get_f32_or(l, "rope.scaling.yarn_attn_factor", 1e-3f, 1e3f, 1.0f, &yarn_attn));
    TRY(get_f32_or(l, "rope.scaling.yarn_beta_fast", 0.0f, 1e6f, 32.0f, &hp->rope_beta_fast));
    TRY(get_f32_or(l, "rope.scaling.yarn_beta_slow", 0.0f, 1e6f, 1.0f, &hp->rope_beta_slow));
    TRY(get_f32_or(l, "rope.scaling.yarn_ext_factor", -1e6f, 1e6f, 1.0f, &ext));
    TRY(get_f32_or(l, "rope.scaling.yarn_log_multiplier", -1e6f, 1e6f, 0.0f, &log_mul));
    hp->rope_attn_factor *= yarn_attn;
    if (hp->rope_scaling == ROPE_SCALING_YARN) {
        if ((ext >= 0.0f && ext != 1.0f) || log_mul != 0.0f)
            return err_set(ERR_UNSUPPORTED, "YaRN with yarn_ext_factor %g and yarn_log_multiplier %g is not supported",
                           (double)ext, (double)log_mul);
        if (hp->rope_base <= 1.0f || hp->rope_beta_fast <= 0.0f || hp->rope_beta_slow <= 0.0f)
            return err_set(ERR_CORRUPT,
                           "YaRN needs rope.freq_base above 1 and positive yarn_beta_fast and yarn_beta_slow");
    }
    return ERR_OK;
}

/* --- tensors --- */

enum { CLS_ROWS = 2 };
enum len { LEN_NONE, LEN_CLS, LEN_DIM, LEN_Q, LEN_K, LEN_V, LEN_O, LEN_FFN, LEN_VOCAB, LEN_HEAD, LEN_ROPE };

static uint64_t len_of(const struct hparams *hp, enum len len)
{
    switch (len) {
    case LEN_NONE:
        return 1;
    case LEN_CLS:
        return CLS_ROWS;
    case LEN_DIM:
        return hp->dim;
    case LEN_Q:
        return (uint64_t)hp->n_heads * hp->head_dim;
    case LEN_K:
        return (uint64_t)hp->n_kv_heads * hp->head_dim;
    case LEN_V:
        return (uint64_t)hp->n_kv_heads * hp->head_dim_v;
    case LEN_O:
        return (uint64_t)hp->n_heads * hp->head_dim_v;
    case LEN_FFN:
        return hp->ffn_dim;
    case LEN_VOCAB:
        return hp->vocab;
    case LEN_HEAD:
        return hp->head_dim;
    case LEN_ROPE:
        return hp->rope_dims / 2;
    }
    return 0;
}

enum when { ALWAYS, QKV_BIAS, O_BIAS, QK_NORM };

static const struct layer_rule {
    const char *suffix;
    enum len cols, rows; /* rows LEN_NONE: a vector */
    enum when when;
} layer_rules[] = {
    {"attn_norm.weight", LEN_DIM, LEN_NONE, ALWAYS},     {"attn_q.weight", LEN_DIM, LEN_Q, ALWAYS},
    {"attn_k.weight", LEN_DIM, LEN_K, ALWAYS},           {"attn_v.weight", LEN_DIM, LEN_V, ALWAYS},
    {"attn_output.weight", LEN_O, LEN_DIM, ALWAYS},      {"ffn_norm.weight", LEN_DIM, LEN_NONE, ALWAYS},
    {"ffn_gate.weight", LEN_DIM, LEN_FFN, ALWAYS},       {"ffn_up.weight", LEN_DIM, LEN_FFN, ALWAYS},
    {"ffn_down.weight", LEN_FFN, LEN_DIM, ALWAYS},       {"attn_q.bias", LEN_Q, LEN_NONE, QKV_BIAS},
    {"attn_k.bias", LEN_K, LEN_NONE, QKV_BIAS},          {"attn_v.bias", LEN_V, LEN_NONE, QKV_BIAS},
    {"attn_output.bias", LEN_DIM, LEN_NONE, O_BIAS},     {"attn_q_norm.weight", LEN_HEAD, LEN_NONE, QK_NORM},
    {"attn_k_norm.weight", LEN_HEAD, LEN_NONE, QK_NORM},
};

static void shape_text(const uint64_t *ne, uint32_t n_dims, char out[96])
{
    size_t at = 0;
    for (uint32_t d = 0; d < n_dims; d++)
        at += (size_t)snprintf(out + at, 96 - at, "%s%" PRIu64, d ? " x " : "", ne[d]);
}

/* Presence, shape and type of one tensor; marks it as used. */
static enum err check_tensor(struct loader *l, bool *used, const char *name, enum len cols, enum len rows,
                             const struct gguf_tensor **out)
{
    const struct gguf_tensor *t = gguf_tensor(l->g, name);
    if (!t)
        return err_set(ERR_CORRUPT, "the model lacks the tensor %s", name);
    uint32_t n_dims = rows == LEN_NONE ? 1 : 2;
    uint64_t want[4] = {len_of(l->hp, cols), len_of(l->hp, rows), 1, 1};
    if (memcmp(t->ne, want, sizeof(want)) != 0) {
        char found[96], expected[96];
        shape_text(t->ne, t->n_dims, found);
        shape_text(want, n_dims, expected);
        return err_set(ERR_CORRUPT, "tensor %s has the shape %s, expected %s", name, found, expected);
    }
    if (n_dims == 1 && t->type != QUANT_F32)
        return err_set(ERR_UNSUPPORTED, "tensor %s is %s; vectors must be F32", name, quant_traits[t->type].name);
    used[t - l->g->tensors] = true;
    if (out)
        *out = t;
    return ERR_OK;
}

/* Is there a tensor of this feature in the first layer, and may the family have it? (Where it may not, the last check
 * names it.) */
static bool feature(const struct loader *l, const char *first_layer_name, unsigned bit)
{
    return (archs[l->hp->arch].features & bit) && gguf_tensor(l->g, first_layer_name);
}

static enum err check_layers(struct loader *l, bool *used)
{
    const bool wanted[] = {[ALWAYS] = true,
                           [QKV_BIAS] = l->hp->has_qkv_bias,
                           [O_BIAS] = l->hp->has_o_bias,
                           [QK_NORM] = l->hp->has_qk_norm};
    for (uint32_t layer = 0; layer < l->hp->n_layers; layer++)
        for (unsigned i = 0; i < ARRAY_LEN(layer_rules); i++) {
            const struct layer_rule *r = &layer_rules[i];
            char name[96];
            if (!wanted[r->when])
                continue;
            snprintf(name, sizeof(name), "blk.%u.%s", layer, r->suffix);
            TRY(check_tensor(l, used, name, r->cols, r->rows, NULL));
        }
    return ERR_OK;
}

static enum err check_rope_freqs(struct loader *l, bool *used)
{
    struct hparams *hp = l->hp;
    hp->has_rope_freqs = gguf_tensor(l->g, "rope_freqs.weight") != NULL;
    if (!hp->has_rope_freqs)
        return ERR_OK;
    TRY(check_tensor(l, used, "rope_freqs.weight", LEN_ROPE, LEN_NONE, &hp->rope_freqs));
    for (uint32_t i = 0; i < hp->rope_dims / 2; i++) {
        float f;
        memcpy(&f, hp->rope_freqs->data + 4 * (size_t)i, 4);
        if (!(f >= 1e-6f && f <= 1e6f))
            return err_set(ERR_CORRUPT, "rope_freqs.weight[%u] is %g, no factor that can be", i, (double)f);
    }
    return ERR_OK;
}

/* Derived data that some converters leave in the file, and that nobody needs. */
static bool ignorable(const char *name)
{
    const char *dot = strncmp(name, "blk.", 4) == 0 ? strchr(name + 4, '.') : NULL;
    return dot && (strcmp(dot, ".attn_rot_embd.weight") == 0 || strcmp(dot, ".attn_rot_embd") == 0);
}

static enum err check_tensors(struct loader *l, bool *used)
{
    struct hparams *hp = l->hp;
    const struct gguf_tensor *embd = gguf_tensor(l->g, "token_embd.weight");
    if (!embd)
        return err_set(ERR_CORRUPT, "the model lacks the tensor token_embd.weight");
    if (embd->ne[1] > VOCAB_MAX)
        return err_set(ERR_CORRUPT, "token_embd.weight has %" PRIu64 " rows (at most %d expected)", embd->ne[1],
                       VOCAB_MAX);
    hp->vocab = (uint32_t)embd->ne[1];
    const struct gguf_kv *tokens = gguf_find(l->g, "tokenizer.ggml.tokens");
    if (tokens && tokens->type == GGUF_ARR && tokens->n != hp->vocab)
        return err_set(ERR_CORRUPT, "the tokenizer has %" PRIu64 " tokens, token_embd.weight has %u rows", tokens->n,
                       hp->vocab);
    hp->tied_embeddings = gguf_tensor(l->g, "output.weight") == NULL;
    hp->has_qkv_bias = feature(l, "blk.0.attn_q.bias", ARCH_QKV_BIAS);
    hp->has_o_bias = feature(l, "blk.0.attn_output.bias", ARCH_O_BIAS);
    hp->has_qk_norm = feature(l, "blk.0.attn_q_norm.weight", ARCH_QK_NORM);
    TRY(check_tensor(l, used, "token_embd.weight", LEN_DIM, LEN_VOCAB, NULL));
    TRY(check_tensor(l, used, "output_norm.weight", LEN_DIM, LEN_NONE, NULL));
    if (!hp->tied_embeddings)
        TRY(check_tensor(l, used, "output.weight", LEN_DIM, LEN_VOCAB, NULL));
    hp->has_cls = hp->pooling == POOLING_RANK && hp->dim >= CLS_ROWS && gguf_tensor(l->g, "cls.output.weight");
    if (hp->has_cls)
        TRY(check_tensor(l, used, "cls.output.weight", LEN_DIM, LEN_CLS, NULL));
    TRY(check_rope_freqs(l, used));
    TRY(check_layers(l, used));
    for (uint64_t i = 0; i < l->g->n_tensors; i++)
        if (!used[i] && !ignorable(l->g->tensors[i].name))
            return err_set(ERR_UNSUPPORTED,
                           "tensor %s has no place in a %s model of %u layers; without it the answers would be wrong",
                           l->g->tensors[i].name, arch_name(hp->arch), hp->n_layers);
    return ERR_OK;
}

enum err hparams_load(const struct gguf *g, struct hparams *out)
{
    struct loader l = {.g = g, .hp = out};
    memset(out, 0, sizeof(*out));
    TRY(load_arch(&l));
    TRY(load_numbers(&l));
    TRY(load_rope(&l));
    bool *used = calloc(g->n_tensors + 1, sizeof(*used));
    if (!used)
        return err_set(ERR_NOMEM, "out of memory for a model's headers");
    enum err e = check_tensors(&l, used);
    free(used);
    return e;
}

/* --- rope --- */

/* The dimension pair whose wave turns `turns` times within the original context (YaRN, section 3.2: the inverse of
 * r(d)). */
static double yarn_dim(const struct hparams *hp, double turns)
{
    return hp->rope_dims * log(hp->rope_ctx_orig / (turns * 2.0 * M_PI)) / (2.0 * log((double)hp->rope_base));
}

/* Pairs that turn more than beta_fast times keep their frequency, those below beta_slow are interpolated (divided by
 * the factor), and a linear ramp joins them; the ends are rounded outwards and the magnitude is 0.1 ln(factor) + 1
 * (YaRN, equations 22 and 23). */
void rope_freqs_init(const struct hparams *hp, double *inv_freq, float *magnitude)
{
    uint32_t half = hp->rope_dims / 2;
    double low = 0, high = 0;
    bool yarn = hp->rope_scaling == ROPE_SCALING_YARN;
    if (yarn) {
        low = MAX(0.0, floor(yarn_dim(hp, hp->rope_beta_fast)));
        high = MIN(hp->rope_dims - 1.0, ceil(yarn_dim(hp, hp->rope_beta_slow)));
    }
    for (uint32_t i = 0; i < half; i++) {
        double f = pow(hp->rope_base, -2.0 * i / hp->rope_dims);
        if (hp->rope_freqs) {
            float divisor;
            memcpy(&divisor, hp->rope_freqs->data + 4 * (size_t)i, 4);
            f /= divisor;
        }
        if (hp->rope_scaling == ROPE_SCALING_LINEAR)
            f /= hp->rope_factor;
        if (yarn) {
            double ramp = (i - low) / MAX(0.001, high - low);
            double interpolated = MIN(1.0, MAX(0.0, ramp));
            f = f / hp->rope_factor * interpolated + f * (1.0 - interpolated);
        }
        inv_freq[i] = f;
    }
    double m = hp->rope_attn_factor;
    if (yarn && hp->rope_factor > 1.0f)
        m *= 0.1 * log((double)hp->rope_factor) + 1.0;
    *magnitude = (float)m;
}
