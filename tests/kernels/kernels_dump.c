/* The oracle's helper: runs every op of a reference backend on random inputs and writes inputs and outputs for
 * oracle.py to judge.
 *
 *   kernels_dump BACKEND SEED [MUTANT] > records
 *
 * A record is a line "op key=value ... | name:type:count ..." and then the arrays' bytes in that order. A mutant breaks
 * one thing in what the op is given while the record keeps the true inputs: scale, min (one sub-block's scale or
 * minimum of one row), rope (the other layout), heads (two query heads swapped), kvhead (a KV head off by one),
 * position (one token too many seen), weight (one norm weight). The oracle must reject each. */
#include "base/check.h"
#include "tests/kernels/cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct kernels *k;
static const char *mutant = "";
static struct cases_rng rng;

static bool mutated(const char *name)
{
    return !strcmp(mutant, name);
}
static void put(const void *p, size_t bytes)
{
    ASSERT(fwrite(p, 1, bytes, stdout) == bytes);
}

/* The bytes that hold the first sub-block's scale or minimum of a block, and one value to change. */
static void break_scale(enum quant type, uint8_t *block, bool minimum)
{
    switch (type) {
    case QUANT_Q2_K:
        block[0] ^= minimum ? 0x60 : 0x06; /* two bits of a field of four */
        break;
    case QUANT_Q3_K:
        block[96] ^= 0x0c;
        break;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        block[minimum ? 8 : 4] ^= 0x18;
        break;
    case QUANT_Q6_K:
        block[192] ^= 0x30;
        break;
    case QUANT_Q4_1:
    case QUANT_Q5_1:
        block[minimum ? 3 : 1] ^= 0x08; /* an exponent bit */
        break;
    default:
        block[1] ^= 0x08;
    }
}
static bool has_min(enum quant t)
{
    return t == QUANT_Q2_K || t == QUANT_Q4_K || t == QUANT_Q5_K || t == QUANT_Q4_1 || t == QUANT_Q5_1;
}

static void dump_matmul(enum quant type, uint32_t rows, uint32_t cols, uint32_t n, bool extreme)
{
    size_t bytes = rows * quant_row_bytes(type, cols);
    uint8_t *src = cases_alloc(bytes), *given = cases_alloc(bytes),
            *data = cases_alloc(k->weight_bytes(type, rows, cols));
    cases_weights(&rng, type, rows, cols, extreme, src);
    memcpy(given, src, bytes);
    bool q8 = quant_traits[type].act == QUANT_ACT_Q8;
    if ((mutated("scale") && q8) || (mutated("min") && has_min(type)))
        break_scale(type, given + (rows / 2) * quant_row_bytes(type, cols), mutated("min"));
    k->weight_pack(type, rows, cols, given, 0, rows, data);
    struct kernels_weight w = {.type = type, .rows = rows, .cols = cols, .data = data};
    float *x = cases_alloc((size_t)n * cols * 4), *y = cases_alloc((size_t)n * rows * 4),
          *row = cases_alloc((size_t)rows * cols * 4);
    float *d = cases_alloc((size_t)n * cols / 32 * 4 + 4);
    int8_t *q = cases_alloc((size_t)n * cols);
    cases_floats(&rng, (size_t)n * cols, x);
    if (k->act(type) == QUANT_ACT_Q8) /* the product is judged on the activations that it is given */
        for (uint32_t i = 0; i < n; i++) {
            k->quantize(x + (size_t)i * cols, cols, q + (size_t)i * cols, d + (size_t)i * (cols / 32));
            for (uint32_t c = 0; c < cols; c++)
                x[(size_t)i * cols + c] = (float)q[(size_t)i * cols + c] * d[((size_t)i * cols + c) / 32];
        }
    struct kernels_act act = {.n = n, .k = cols, .stride = cols, .f32 = x, .q = q, .d = d};
    k->matmul(&w, &act, 0, rows, y, rows);
    for (uint32_t r = 0; r < rows; r++)
        k->weight_row(&w, r, row + (size_t)r * cols);
    printf("matmul type=%s rows=%u cols=%u n=%u extreme=%d | w:u1:%zu x:f4:%zu y:f4:%zu row:f4:%zu\n",
           quant_traits[type].name, rows, cols, n, extreme, bytes, (size_t)n * cols, (size_t)n * rows,
           (size_t)rows * cols);
    put(src, bytes);
    put(x, (size_t)n * cols * 4);
    put(y, (size_t)n * rows * 4);
    put(row, (size_t)rows * cols * 4);
    free(src);
    free(given);
    free(data);
    free(x);
    free(y);
    free(row);
    free(d);
    free(q);
}

static void dump_elementwise(uint32_t n)
{
    static float x[4096], w[4096], y[4096], d[128];
    static int8_t q[4096];
    cases_floats(&rng, n, x);
    cases_floats(&rng, n, w);
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++)
        at = fabsf(x[i] * w[i]) > fabsf(x[at] * w[at]) ? i : at;
    float keep = w[at];
    w[at] *= mutated("weight") ? 1.25f : 1;
    k->rmsnorm(x, w, 1e-5f, n, y);
    w[at] = keep;
    printf("rmsnorm eps=1e-5 | x:f4:%u w:f4:%u y:f4:%u\n", n, n, n);
    put(x, n * 4);
    put(w, n * 4);
    put(y, n * 4);
    k->swiglu(x, w, n, y);
    printf("swiglu | gate:f4:%u up:f4:%u y:f4:%u\n", n, n, n);
    put(x, n * 4);
    put(w, n * 4);
    put(y, n * 4);
    memcpy(y, x, n * 4);
    k->add(y, w, n);
    printf("add | a:f4:%u b:f4:%u y:f4:%u\n", n, n, n);
    put(x, n * 4);
    put(w, n * 4);
    put(y, n * 4);
    if (n % 32)
        return;
    k->quantize(x, n, q, d);
    printf("quantize | x:f4:%u q:i1:%u d:f4:%u\n", n, n, n / 32);
    put(x, n * 4);
    put(q, n);
    put(d, n / 32 * 4);
}

static void dump_rope(uint32_t n_heads, uint32_t head_dim, uint32_t dims, enum rope_layout layout)
{
    float x[1024], y[1024], c[128], s[128];
    uint32_t n = n_heads * head_dim;
    ASSERT(n <= 1024);
    cases_floats(&rng, n, x);
    memcpy(y, x, n * 4);
    for (uint32_t i = 0; i < dims / 2; i++) {
        double angle = 37 * pow(10000, -2.0 * i / dims);
        c[i] = (float)cos(angle);
        s[i] = (float)sin(angle);
    }
    enum rope_layout used = mutated("rope") ? (layout == ROPE_NORMAL ? ROPE_NEOX : ROPE_NORMAL) : layout;
    k->rope(y, n_heads, head_dim, dims, used, c, s);
    printf("rope heads=%u dim=%u dims=%u layout=%s position=37 | x:f4:%u y:f4:%u\n", n_heads, head_dim, dims,
           layout == ROPE_NORMAL ? "normal" : "neox", n, n);
    put(x, n * 4);
    put(y, n * 4);
}

static const char *const kv_names[] = {"f32", "f16", "bf16", "q8_0", "fp8"};

static void dump_attention(const struct cases_attn_shape *s, enum kv_type type)
{
    struct cases_attn c;
    float *scratch = cases_alloc(KERNELS_ATTN_SCRATCH * 4);
    cases_attn_init(&rng, k, s, type, &c);
    uint32_t n_pos = s->pos0 + s->n_tok, n_blocks = (n_pos + 15) / 16;
    memset(c.out, 0, c.out_len * 4);
    struct kernels_attn a = c.a;
    float *q = cases_alloc(s->n_tok * a.q_stride * 4);
    memcpy(q, c.q, s->n_tok * a.q_stride * 4);
    if (mutated("heads") && s->n_heads > 1)
        for (uint32_t t = 0; t < s->n_tok; t++)
            memcpy(q + t * a.q_stride, c.q + t * a.q_stride + (s->n_heads - 1) * s->head_dim, s->head_dim * 4);
    a.q = q;
    if (mutated("kvhead") && c.n_kv_heads > 1)
        a.kv += a.k_head_stride; /* K of the next head */
    if (mutated("position") && s->pos0 > 0)
        a.pos0--;
    k->attention(&a, 0, mutated("kvhead") && c.n_kv_heads > 1 ? 1 : s->n_heads, 0, s->n_tok, scratch);
    printf("attention type=%s dim=%u dim_v=%u heads=%u group=%u head0=%u kv_heads=%u kv_head0=%u pos0=%u tok=%u "
           "q_stride=%zu out_stride=%zu "
           "scale=%.9g | q:f4:%zu kv:u1:%zu blocks:u4:%u out:f4:%zu\n",
           kv_names[type], s->head_dim, s->head_dim_v, s->n_heads, s->group, s->head0, c.n_kv_heads, a.kv_head0,
           s->pos0, s->n_tok, a.q_stride, a.out_stride, (double)a.scale, s->n_tok * a.q_stride,
           n_blocks * a.block_stride, n_blocks, c.out_len);
    put(c.q, s->n_tok * a.q_stride * 4);
    put(c.kv, n_blocks * a.block_stride);
    put(c.blocks, n_blocks * 4);
    put(c.out, c.out_len * 4);
    free(q);
    free(scratch);
    cases_attn_deinit(&c);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: kernels_dump BACKEND SEED [MUTANT]\n");
        return 2;
    }
    k = kernels_by_name(argv[1]);
    ASSERT(k);
    rng.s = strtoull(argv[2], NULL, 10);
    mutant = argc > 3 ? argv[3] : "";
    for (int type = 0; type < QUANT_COUNT; type++) {
        bool q8 = quant_traits[type].act == QUANT_ACT_Q8;
        dump_matmul((enum quant)type, 24, 512, 3, false);
        dump_matmul((enum quant)type, 17, q8 ? 256 : 259, 2, false);
        dump_matmul((enum quant)type, 16, 768, 2, true);
    }
    dump_elementwise(2048);
    dump_elementwise(77);
    for (int layout = ROPE_NORMAL; layout <= ROPE_NEOX; layout++) {
        dump_rope(3, 64, 64, (enum rope_layout)layout);
        dump_rope(2, 80, 32, (enum rope_layout)layout);
    }
    for (unsigned i = 0; i < cases_n_attn_shapes; i++)
        for (int type = KV_F32; type <= KV_FP8; type++)
            if (type != KV_Q8_0 ||
                (cases_attn_shapes[i].head_dim % 32 == 0 && cases_attn_shapes[i].head_dim_v % 32 == 0))
                dump_attention(&cases_attn_shapes[i], (enum kv_type)type);
    return 0;
}
