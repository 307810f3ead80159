/* The tables ref and ref_f32, and the ops that have no chain of roundings. Weights stay GGUF rows. No state; any
 * thread. */
#include "kernels/ref/ref.h"
#include "base/check.h"
#include "kernels/half.h"

#include <math.h>

static enum quant_act act_exact(enum quant type)
{
    return quant_traits[type].act;
}
static enum quant_act act_f32(enum quant type)
{
    (void)type;
    return QUANT_ACT_F32;
}

size_t ref_weight_bytes(enum quant type, uint32_t rows, uint32_t cols)
{
    return (size_t)rows * quant_row_bytes(type, cols);
}

void ref_weight_pack(enum quant type, uint32_t rows, uint32_t cols, const void *src, uint32_t row0, uint32_t n,
                     void *dst)
{
    ASSERT(row0 % 16 == 0 && row0 <= rows && n <= rows - row0);
    size_t row_bytes = quant_row_bytes(type, cols);
    memcpy((uint8_t *)dst + row0 * row_bytes, src, n * row_bytes);
}

void ref_weight_row(const struct kernels_weight *w, uint32_t row, float *out)
{
    ASSERT(row < w->rows);
    ref_dequant(w->type, (const uint8_t *)w->data + row * (size_t)quant_row_bytes(w->type, w->cols), w->cols, out);
}

/* Largest magnitude of 32 values; NaN when one is not finite. */
static float block_max(const float *x)
{
    float a = 0;
    for (int i = 0; i < 32; i++) {
        float v = fabsf(x[i]);
        if (!(v <= 0x1.fffffep127f))
            return NAN;
        a = v > a ? v : a;
    }
    return a;
}

static void block_quants(const float *x, float a, int8_t *q)
{
    if (!(a >= 0x1p-120f)) {
        memset(q, 0, 32);
        return;
    }
    float inv = 127.0f / a;
    for (int i = 0; i < 32; i++)
        q[i] = (int8_t)rintf(x[i] * inv);
}

void ref_quantize(const float *x, uint32_t k, int8_t *q, float *d)
{
    ASSERT(k % 32 == 0);
    for (uint32_t b = 0; b < k / 32; b++) {
        float a = block_max(x + b * 32);
        d[b] = a < 0x1p-120f ? 0 : a / 127.0f;
        block_quants(x + b * 32, a, q + b * 32);
    }
}

/* q8_0: the quants of quantize, its scale rounded to f16. */
void ref_kv_write(enum kv_type type, const float *src, uint32_t n, void *dst)
{
    uint8_t *p = dst;
    ASSERT(type != KV_Q8_0 || n % 32 == 0);
    for (uint32_t i = 0; i < n && type != KV_Q8_0; i++) {
        uint16_t h = type == KV_F16 ? half_to_f16(src[i]) : half_to_bf16(src[i]);
        if (type == KV_F32)
            memcpy(p + 4 * (size_t)i, &src[i], 4);
        else if (type == KV_FP8)
            p[i] = half_to_e4m3(src[i]);
        else
            memcpy(p + 2 * (size_t)i, &h, 2);
    }
    for (uint32_t b = 0; b < n / 32 && type == KV_Q8_0; b++, p += 34) {
        float a = block_max(src + b * 32);
        uint16_t d = half_to_f16(a < 0x1p-120f ? 0 : a / 127.0f);
        memcpy(p, &d, 2);
        block_quants(src + b * 32, a, (int8_t *)p + 2);
    }
}

void ref_add(float *x, const float *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = x[i] + y[i];
}

/* The exact ops, by the copy of exact.c that this CPU runs fastest. */
static bool have_fma(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("fma");
#else
    return true;
#endif
}
static void rmsnorm(const float *x, const float *w, float eps, uint32_t k, float *y)
{
    (have_fma() ? ref_exact_rmsnorm_fma : ref_exact_rmsnorm_libm)(x, w, eps, k, y);
}
static void matmul(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin, uint32_t row_end,
                   float *y, size_t y_stride)
{
    (have_fma() ? ref_exact_matmul_fma : ref_exact_matmul_libm)(w, x, row_begin, row_end, y, y_stride);
}
static void rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rope_dims, enum rope_layout layout,
                 const float *cos, const float *sin)
{
    (have_fma() ? ref_exact_rope_fma : ref_exact_rope_libm)(x, n_heads, head_dim, rope_dims, layout, cos, sin);
}
static void attention(const struct kernels_attn *a, uint32_t head_begin, uint32_t head_end, uint32_t tok_begin,
                      uint32_t tok_end, float *scratch)
{
    (have_fma() ? ref_exact_attention_fma : ref_exact_attention_libm)(a, head_begin, head_end, tok_begin, tok_end,
                                                                      scratch);
}
static void swiglu(const float *gate, const float *up, uint32_t n, float *y)
{
    (have_fma() ? ref_exact_swiglu_fma : ref_exact_swiglu_libm)(gate, up, n, y);
}

#define EXACT_OPS                                                                                                      \
    .act = act_exact, .weight_bytes = ref_weight_bytes, .weight_pack = ref_weight_pack, .weight_row = ref_weight_row,  \
    .quantize = ref_quantize, .rmsnorm = rmsnorm, .matmul = matmul, .rope = rope, .kv_write = ref_kv_write,            \
    .attention = attention, .swiglu = swiglu, .add = ref_add

const struct kernels kernels_ref = {.name = "ref", EXACT_OPS};
/* The CPU backend of a machine without vector kernels. */
const struct kernels kernels_cpu_c = {.name = "cpu-c", EXACT_OPS};

const struct kernels kernels_ref_f32 = {
    .name = "ref_f32",
    .act = act_f32,
    .weight_bytes = ref_weight_bytes,
    .weight_pack = ref_weight_pack,
    .weight_row = ref_weight_row,
    .quantize = ref_quantize,
    .rmsnorm = ref_math_rmsnorm,
    .matmul = ref_math_matmul,
    .rope = ref_math_rope,
    .kv_write = ref_kv_write,
    .attention = ref_math_attention,
    .swiglu = ref_math_swiglu,
    .add = ref_add,
};
