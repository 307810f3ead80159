/* The case table and the generators of cases.h. */
#include "tests/kernels/cases.h"

#include "base/check.h"
#include "kernels/half.h"

#include <math.h>
#include <stdlib.h>

const struct cases_shape cases_shapes[] = {
    {1, 32, false},   {16, 64, false},   {17, 96, false},    {24, 256, false},   {33, 288, false},
    {40, 512, false}, {50, 1280, false}, {16, 17408, false}, {19, 1, false},     {31, 7, false},
    {20, 259, false}, {16, 514, false},  {2048, 8192, true}, {8192, 2048, true},
};
const unsigned cases_n_shapes = ARRAY_LEN(cases_shapes);
const uint32_t cases_tokens[] = {1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 64, 70};
const unsigned cases_n_tokens = ARRAY_LEN(cases_tokens);

const struct cases_attn_shape cases_attn_shapes[] = {
    /* dim dim_v heads group pos0 tok head0 */
    {16, 16, 2, 1, 0, 1, 0},     {64, 64, 8, 4, 0, 5, 0},    {64, 64, 8, 4, 254, 4, 4},   {80, 80, 6, 2, 17, 19, 0},
    {128, 128, 8, 8, 700, 2, 8}, {96, 96, 4, 4, 511, 3, 2},  {256, 256, 4, 2, 255, 3, 0}, {64, 64, 14, 7, 300, 1, 3},
    {128, 64, 2, 2, 40, 9, 0},   {64, 64, 20, 20, 90, 2, 0}, {100, 100, 3, 1, 33, 2, 0},  {32, 32, 4, 1, 0, 530, 0},
    {64, 64, 32, 4, 1030, 1, 0}, {72, 40, 5, 5, 100, 7, 0},
};
const unsigned cases_n_attn_shapes = ARRAY_LEN(cases_attn_shapes);

uint32_t cases_u32(struct cases_rng *r)
{
    r->s += 0x9e3779b97f4a7c15ull; /* SplitMix64 */
    uint64_t z = r->s;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (uint32_t)((z ^ z >> 31) >> 16);
}
float cases_uniform(struct cases_rng *r)
{
    return (float)(int32_t)cases_u32(r) * 0x1p-31f;
}
float cases_normal(struct cases_rng *r)
{
    float s = 0;
    for (int i = 0; i < 6; i++)
        s += cases_uniform(r);
    return s * 0.70710678f;
}

/* Where a block keeps its f16 scales; -1: none. */
static void f16_places(enum quant type, int place[2])
{
    place[0] = 0;
    place[1] = -1;
    switch (type) {
    case QUANT_Q4_1:
    case QUANT_Q5_1:
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        place[1] = 2;
        break;
    case QUANT_Q2_K:
        place[0] = 80;
        place[1] = 82;
        break;
    case QUANT_Q3_K:
        place[0] = 108;
        break;
    case QUANT_Q6_K:
        place[0] = 208;
        break;
    default:
        break;
    }
}

static uint16_t random_scale(struct cases_rng *r, bool extreme)
{
    static const uint16_t odd[] = {0, 0x8000, 1, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x3c00};
    if (extreme && cases_u32(r) % 6 == 0)
        return odd[cases_u32(r) % ARRAY_LEN(odd)];
    return half_to_f16(cases_uniform(r) * 0.02f);
}

static void random_blocks(struct cases_rng *r, enum quant type, size_t n, bool extreme, uint8_t *p)
{
    static const uint8_t fill[] = {0x00, 0xff, 0x80, 0x7f, 0xf0, 0x0f};
    uint32_t bytes = quant_traits[type].block_bytes;
    int place[2];
    f16_places(type, place);
    for (; n > 0; n--, p += bytes) {
        if (extreme && cases_u32(r) % 4 == 0)
            memset(p, fill[cases_u32(r) % ARRAY_LEN(fill)], bytes);
        else
            for (uint32_t i = 0; i < bytes; i++)
                p[i] = (uint8_t)cases_u32(r);
        for (int i = 0; i < 2; i++) {
            uint16_t h = random_scale(r, extreme);
            if (place[i] >= 0)
                memcpy(p + place[i], &h, 2);
        }
    }
}

void cases_weights(struct cases_rng *r, enum quant type, uint32_t rows, uint32_t cols, bool extreme, uint8_t *bytes)
{
    size_t n = (size_t)rows * cols;
    if (quant_traits[type].act == QUANT_ACT_Q8) {
        random_blocks(r, type, n / quant_traits[type].block_elems, extreme, bytes);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float f = cases_uniform(r) * (extreme && cases_u32(r) % 16 == 0 ? 0x1p-20f : 0.05f);
        uint16_t h = type == QUANT_F16 ? half_to_f16(f) : half_to_bf16(f);
        if (type == QUANT_F32)
            memcpy(bytes + 4 * i, &f, 4);
        else
            memcpy(bytes + 2 * i, &h, 2);
    }
}

void cases_floats(struct cases_rng *r, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++)
        x[i] = cases_normal(r) * (cases_u32(r) % 64 == 0 ? 20.0f : 1.0f);
    for (size_t b = 0; b + 32 <= n; b += 32) {
        uint32_t what = cases_u32(r) % 32;
        for (size_t i = b; what < 3 && i < b + 32; i++)
            x[i] = what == 0 ? 0 : what == 1 ? -3.5f : 1e-39f;
    }
}

void *cases_alloc(size_t bytes)
{
    void *p = NULL;
    ASSERT(posix_memalign(&p, KERNELS_ALIGN, bytes + 1) == 0);
    memset(p, 0xa5, bytes + 1);
    return p;
}

static size_t kv_row(enum kv_type type, uint32_t n)
{
    return type == KV_F32 ? 4 * (size_t)n : type == KV_Q8_0 ? 34 * (size_t)(n / 32) : type == KV_FP8 ? n : 2 * (size_t)n;
}

void cases_attn_init(struct cases_rng *r, const struct kernels *k, const struct cases_attn_shape *s, enum kv_type type,
                     struct cases_attn *c)
{
    uint32_t kv_first = s->head0 / s->group, kv_last = (s->head0 + s->n_heads - 1) / s->group;
    uint32_t n_pos = s->pos0 + s->n_tok, n_blocks = (n_pos + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK;
    size_t k_row = kv_row(type, s->head_dim), v_row = kv_row(type, s->head_dim_v);
    *c = (struct cases_attn){.n_heads = s->n_heads, .n_kv_heads = kv_last - kv_first + 1};
    struct kernels_attn *a = &c->a;
    a->head_dim = s->head_dim;
    a->head_dim_v = s->head_dim_v;
    a->head0 = s->head0;
    a->group = s->group;
    a->kv_head0 = kv_first;
    a->pos0 = s->pos0;
    a->n_tok = s->n_tok;
    a->type = type;
    a->scale = 1.0f / sqrtf((float)s->head_dim);
    a->q_stride = (size_t)s->n_heads * s->head_dim + 5;
    a->out_stride = (size_t)s->n_heads * s->head_dim_v + 3;
    a->k_head_stride = SHARD_KV_BLOCK * k_row;
    a->v_head_stride = SHARD_KV_BLOCK * v_row;
    a->v_off = c->n_kv_heads * a->k_head_stride;
    a->block_stride = a->v_off + c->n_kv_heads * a->v_head_stride;
    c->q = cases_alloc(s->n_tok * a->q_stride * sizeof(float));
    c->out_len = s->n_tok * a->out_stride;
    c->out = cases_alloc(c->out_len * sizeof(float));
    c->kv = cases_alloc((size_t)n_blocks * a->block_stride);
    c->blocks = cases_alloc(n_blocks * sizeof *c->blocks);
    cases_floats(r, s->n_tok * a->q_stride, c->q);
    for (uint32_t i = 0; i < n_blocks; i++)
        c->blocks[i] = i;
    for (uint32_t i = n_blocks; i > 1; i--) {
        uint32_t j = cases_u32(r) % i, t = c->blocks[i - 1];
        c->blocks[i - 1] = c->blocks[j];
        c->blocks[j] = t;
    }
    for (uint32_t p = 0; p < n_pos; p++)
        for (uint32_t h = 0; h < c->n_kv_heads; h++) {
            float row[1024];
            uint8_t *block = c->kv + c->blocks[p / SHARD_KV_BLOCK] * a->block_stride;
            cases_floats(r, s->head_dim, row);
            k->kv_write(type, row, s->head_dim, block + h * a->k_head_stride + p % SHARD_KV_BLOCK * k_row);
            cases_floats(r, s->head_dim_v, row);
            k->kv_write(type, row, s->head_dim_v, block + a->v_off + h * a->v_head_stride + p % SHARD_KV_BLOCK * v_row);
        }
    a->q = c->q;
    a->out = c->out;
    a->kv = c->kv;
    a->blocks = c->blocks;
}

void cases_attn_deinit(struct cases_attn *c)
{
    free(c->q);
    free(c->out);
    free(c->kv);
    free(c->blocks);
}
