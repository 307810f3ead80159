/* How tensors are cut: cumulative shares on each axis, rounded to units, as shard.h promises. Pure functions; no state.
 */
#include "model/shard.h"

#include "base/check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { SHARE_MAX = 1 << 20, BLOCK_MAX = 256 };

static enum err init_shares(const struct hparams *hp, const uint32_t *shares, uint32_t n_shares, struct shard_split *s)
{
    if (s->tp < 1 || s->tp > SHARD_TP_MAX)
        return err_set(ERR_INVALID, "tp is %u (1 to %d expected)", s->tp, SHARD_TP_MAX);
    if (s->tp > hp->n_heads)
        return err_set(ERR_INVALID, "tp %u is beyond the model's %u attention heads: each rank needs one", s->tp,
                       hp->n_heads);
    if (shares && n_shares != s->tp)
        return err_set(ERR_INVALID, "%u shares are given for tp %u: one for each rank is needed", n_shares, s->tp);
    for (uint32_t r = 0; r < s->tp; r++) {
        s->share[r] = shares ? shares[r] : 1;
        if (s->share[r] < 1 || s->share[r] > SHARE_MAX)
            return err_set(ERR_INVALID, "the share of rank %u is %u (1 to %d expected)", r, s->share[r], SHARE_MAX);
    }
    return ERR_OK;
}

static enum err init_layers(const struct hparams *hp, const uint32_t *layers, uint32_t n_list, struct shard_split *s)
{
    if (s->pp < 1 || s->pp > SHARD_PP_MAX)
        return err_set(ERR_INVALID, "pp is %u (1 to %d expected)", s->pp, SHARD_PP_MAX);
    if (s->pp > hp->n_layers)
        return err_set(ERR_INVALID, "pp %u is beyond the model's %u layers: each stage needs one", s->pp, hp->n_layers);
    if (layers && n_list != s->pp)
        return err_set(ERR_INVALID, "%u layer counts are given for pp %u: one for each stage is needed", n_list, s->pp);
    uint64_t first = 0;
    for (uint32_t i = 0; i < s->pp; i++) {
        uint32_t n = layers ? layers[i] : hp->n_layers / s->pp + (i < hp->n_layers % s->pp);
        if (n < 1)
            return err_set(ERR_INVALID, "stage %u is given no layer", i);
        s->layer_first[i] = (uint32_t)first;
        first += n;
        if (first > hp->n_layers)
            break;
    }
    if (first != hp->n_layers)
        return err_set(ERR_INVALID, "the layer counts of the stages add up to %s than the model's %u layers",
                       first > hp->n_layers ? "more" : "fewer", hp->n_layers);
    s->layer_first[s->pp] = hp->n_layers;
    return ERR_OK;
}

enum err shard_split_init(const struct hparams *hp, uint32_t tp, uint32_t pp, const uint32_t *shares, uint32_t n_shares,
                          const uint32_t *layers, uint32_t n_layers_list, struct shard_split *out)
{
    memset(out, 0, sizeof(*out));
    out->tp = tp;
    out->pp = pp;
    TRY(init_shares(hp, shares, n_shares, out));
    return init_layers(hp, layers, n_layers_list, out);
}

/* Unit at which rank r begins: round(units * c[r] / c[tp]), halves up. min 1: every rank is left at least one unit
 * (units >= tp). */
static uint32_t boundary(const struct shard_split *s, uint32_t units, uint32_t r, uint32_t min)
{
    uint64_t total = 0, before = 0;
    uint32_t at = 0;
    for (uint32_t i = 0; i < s->tp; i++)
        total += s->share[i];
    for (uint32_t i = 1; i <= r; i++) {
        before += s->share[i - 1];
        uint32_t want = (uint32_t)((2 * (uint64_t)units * before + total) / (2 * total));
        at = min ? MIN(MAX(want, at + 1), units - (s->tp - i)) : want;
    }
    return at;
}

/* Elements [first, first + n) of an axis of `len` elements cut in units of `unit`; the last unit may be short. */
static struct shard_range cut(const struct shard_split *s, uint32_t rank, uint32_t len, uint32_t unit)
{
    uint32_t units = len / unit + (len % unit != 0);
    uint64_t b = (uint64_t)boundary(s, units, rank, 0) * unit, e = (uint64_t)boundary(s, units, rank + 1, 0) * unit;
    b = MIN(b, len);
    e = MIN(e, len);
    return (struct shard_range){(uint32_t)b, (uint32_t)(e - b)};
}

void shard_rank(const struct hparams *hp, const struct shard_split *s, uint32_t tp_rank, struct shard_rank *out)
{
    ASSERT(tp_rank < s->tp && s->tp <= hp->n_heads);
    uint32_t group = hp->n_heads / hp->n_kv_heads;
    uint32_t unit_heads = s->tp <= hp->n_kv_heads ? group : 1;
    uint32_t units = hp->n_heads / unit_heads;
    uint32_t b = boundary(s, units, tp_rank, 1) * unit_heads, e = boundary(s, units, tp_rank + 1, 1) * unit_heads;
    out->heads = (struct shard_range){b, e - b};
    out->kv_heads = (struct shard_range){b / group, (e - 1) / group - b / group + 1};
    out->dim_rows = s->cut == SHARD_CUT_INPUTS ? (struct shard_range){0, hp->dim} : cut(s, tp_rank, hp->dim, SHARD_ROW_UNIT);
    out->ffn = cut(s, tp_rank, hp->ffn_dim, s->cut == SHARD_CUT_INPUTS && hp->ffn_dim / BLOCK_MAX >= s->tp ? BLOCK_MAX : SHARD_FFN_UNIT);
    out->vocab = cut(s, tp_rank, hp->vocab, SHARD_VOCAB_SEGMENT);
}

/* --- tensors by name --- */

static const struct {
    const char *stem; /* between "blk.N." and ".weight" or ".bias" */
    enum shard_axis axis;
} layer_axes[] = {
    {"attn_norm", SHARD_WHOLE}, {"attn_q", SHARD_Q},          {"attn_k", SHARD_KV},         {"attn_v", SHARD_KV},
    {"attn_output", SHARD_DIM}, {"ffn_norm", SHARD_WHOLE},    {"ffn_gate", SHARD_FFN},      {"ffn_up", SHARD_FFN},
    {"ffn_down", SHARD_DIM},    {"attn_q_norm", SHARD_WHOLE}, {"attn_k_norm", SHARD_WHOLE},
};

/* Where a tensor belongs: a layer, or the ends of the model. */
struct place {
    enum shard_axis axis;
    bool in_layer, first_stage, last_stage;
    uint32_t layer;
};

static bool layer_place(const char *name, struct place *p)
{
    char *end;
    if (strncmp(name, "blk.", 4) != 0 || name[4] < '0' || name[4] > '9')
        return false;
    unsigned long layer = strtoul(name + 4, &end, 10);
    if (*end != '.' || layer > UINT32_MAX)
        return false;
    const char *stem = end + 1, *dot = strchr(stem, '.');
    if (!dot || (strcmp(dot, ".weight") != 0 && strcmp(dot, ".bias") != 0))
        return false;
    for (unsigned i = 0; i < ARRAY_LEN(layer_axes); i++)
        if (strlen(layer_axes[i].stem) == (size_t)(dot - stem) &&
            memcmp(stem, layer_axes[i].stem, (size_t)(dot - stem)) == 0) {
            *p = (struct place){.axis = layer_axes[i].axis, .in_layer = true, .layer = (uint32_t)layer};
            return true;
        }
    return false;
}

static bool find_place(const struct hparams *hp, const char *name, struct place *p)
{
    if (strcmp(name, "token_embd.weight") == 0)
        *p = (struct place){.axis = SHARD_VOCAB, .first_stage = true, .last_stage = hp->tied_embeddings};
    else if (strcmp(name, "output.weight") == 0)
        *p = (struct place){.axis = SHARD_VOCAB, .last_stage = true};
    else if (strcmp(name, "output_norm.weight") == 0 || strcmp(name, "cls.output.weight") == 0)
        *p = (struct place){.axis = SHARD_WHOLE, .last_stage = true};
    else
        return layer_place(name, p);
    return true;
}

static struct shard_range scaled(struct shard_range heads, uint64_t rows_per_head)
{
    return (struct shard_range){(uint32_t)(heads.first * rows_per_head), (uint32_t)(heads.n * rows_per_head)};
}

void shard_tensor_rows(const struct hparams *hp, const struct shard_split *s, const struct gguf_tensor *t,
                       uint32_t tp_rank, uint32_t stage, struct shard_range *rows)
{
    struct place p;
    struct shard_rank rank;
    uint32_t n_rows = (uint32_t)(t->n_dims == 1 ? t->ne[0] : t->ne[1]);
    ASSERT(stage < s->pp);
    *rows = (struct shard_range){0, 0};
    if (strcmp(t->name, "rope_freqs.weight") == 0) { /* every rank rotates its own heads */
        rows->n = n_rows;
        return;
    }
    if (!find_place(hp, t->name, &p))
        return;
    if (p.in_layer ? p.layer < s->layer_first[stage] || p.layer >= s->layer_first[stage + 1]
                   : !(p.first_stage && stage == 0) && !(p.last_stage && stage == s->pp - 1))
        return;
    shard_rank(hp, s, tp_rank, &rank);
    switch (p.axis) {
    case SHARD_WHOLE:
        rows->n = n_rows;
        return;
    case SHARD_Q:
        *rows = scaled(rank.heads, n_rows / hp->n_heads);
        return;
    case SHARD_KV:
        *rows = scaled(rank.kv_heads, n_rows / hp->n_kv_heads);
        return;
    case SHARD_DIM:
        *rows = rank.dim_rows;
        return;
    case SHARD_FFN:
        *rows = rank.ffn;
        return;
    case SHARD_VOCAB:
        *rows = rank.vocab;
        return;
    }
}

static struct shard_range widened(struct shard_range r, uint32_t unit, uint32_t len)
{
    uint32_t first = r.first / unit * unit, end = MIN(ROUND_UP(r.first + r.n, unit), len);
    return r.n ? (struct shard_range){first, end - first} : (struct shard_range){0, 0};
}

void shard_tensor_slice(const struct hparams *hp, const struct shard_split *s, const struct gguf_tensor *t, uint32_t tp_rank,
                        uint32_t stage, struct shard_range *rows, struct shard_range *cols)
{
    struct place p;
    struct shard_rank rank;
    shard_tensor_rows(hp, s, t, tp_rank, stage, rows);
    *cols = (struct shard_range){0, t->n_dims == 1 ? 1 : (uint32_t)t->ne[0]};
    if (s->cut != SHARD_CUT_INPUTS || t->n_dims == 1 || rows->n == 0 || !find_place(hp, t->name, &p) || p.axis != SHARD_DIM)
        return;
    shard_rank(hp, s, tp_rank, &rank);
    bool o = cols->n == hp->n_heads * hp->head_dim_v && strstr(t->name, ".attn_output.");
    *cols = widened(o ? scaled(rank.heads, hp->head_dim_v) : rank.ffn, quant_traits[t->type].block_elems, cols->n);
    if (cols->n == 0)
        rows->n = 0;
}

uint64_t shard_file_bytes(const struct gguf *g, const struct hparams *hp, const struct shard_split *s, uint32_t tp_rank,
                          uint32_t stage)
{
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        struct shard_range rows, cols;
        shard_tensor_slice(hp, s, t, tp_rank, stage, &rows, &cols);
        bytes += rows.n * quant_row_bytes(t->type, cols.n);
    }
    return bytes;
}

enum err shard_kv_check(const struct hparams *hp, enum kv_type type)
{
    if (type == KV_Q8_0 && (hp->head_dim % 32 || hp->head_dim_v % 32))
        return err_set(ERR_UNSUPPORTED,
                       "a q8_0 KV cache needs heads of a multiple of 32 dimensions, the model has %u (use f16)",
                       hp->head_dim % 32 ? hp->head_dim : hp->head_dim_v);
    return ERR_OK;
}

static uint64_t kv_row_bytes(enum kv_type type, uint64_t n)
{
    switch (type) {
    case KV_F32:
        return n * 4;
    case KV_F16:
    case KV_BF16:
        return n * 2;
    case KV_Q8_0:
        return (n + 31) / 32 * 34;
    case KV_FP8:
        return n;
    }
    return 0;
}

uint64_t shard_kv_block_bytes(const struct hparams *hp, const struct shard_split *s, enum kv_type type,
                              uint32_t tp_rank, uint32_t stage)
{
    struct shard_rank rank;
    ASSERT(stage < s->pp);
    shard_rank(hp, s, tp_rank, &rank);
    uint64_t layers = s->layer_first[stage + 1] - s->layer_first[stage];
    return layers * rank.kv_heads.n * SHARD_KV_BLOCK *
           (kv_row_bytes(type, hp->head_dim) + kv_row_bytes(type, hp->head_dim_v));
}
