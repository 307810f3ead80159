/* The small ops on AVX2, with the roundings of kernels.h, and the AVX2 table. Bytes decide here, not instructions. */
#include "base/check.h"
#include "base/fmath_avx2.h"
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/layout.h"
#include "kernels/half.h"

/* Largest magnitude of 32 values; NaN when one is not finite. */
static float block_max(const float *x)
{
    const __m256 abs = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)), top = _mm256_set1_ps(0x1.fffffep127f);
    __m256 v[4], finite = abs;
    CPU_UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_and_ps(_mm256_loadu_ps(x + 8 * i), abs);
        finite = _mm256_and_ps(finite, _mm256_cmp_ps(v[i], top, _CMP_LE_OQ));
    }
    if (_mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_castps_si256(finite), _mm256_castps_si256(abs))) != -1)
        return NAN;
    __m256 m = _mm256_max_ps(_mm256_max_ps(v[0], v[1]), _mm256_max_ps(v[2], v[3]));
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}

static void block_quants(const float *x, float a, int8_t *q)
{
    __m256i *out = (__m256i *)(void *)q;
    if (!(a >= 0x1p-120f)) {
        _mm256_storeu_si256(out, _mm256_setzero_si256());
        return;
    }
    __m256 inv = _mm256_set1_ps(127.0f / a);
    __m256i v[4];
    CPU_UNROLL
    for (int i = 0; i < 4; i++)
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inv));
    __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    _mm256_storeu_si256(out, _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

void cpu_avx2_quantize(const float *x, uint32_t k, int8_t *q, float *d)
{
    ASSERT(k % 32 == 0);
    for (uint32_t b = 0; b < k / 32; b++) {
        float a = block_max(x + b * 32);
        d[b] = a < 0x1p-120f ? 0 : a / 127.0f;
        block_quants(x + b * 32, a, q + b * 32);
    }
}

/* y = (x * r) * w, r = 1 / sqrt(sum of squares / k + eps): 16 chains in two vectors */
void cpu_avx2_rmsnorm(const float *x, const float *w, float eps, uint32_t k, float *y)
{
    __m256 c0 = _mm256_setzero_ps(), c1 = c0;
    uint32_t i = 0;
    for (; i + 16 <= k; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        c0 = _mm256_fmadd_ps(a, a, c0);
        c1 = _mm256_fmadd_ps(b, b, c1);
    }
    float c[16];
    _mm256_storeu_ps(c, c0);
    _mm256_storeu_ps(c + 8, c1);
    for (; i < k; i++)
        c[i % 16] = fmaf(x[i], x[i], c[i % 16]);
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            c[j] = c[j] + c[j + half];
    float r = 1.0f / sqrtf(c[0] / (float)k + eps);
    __m256 vr = _mm256_set1_ps(r);
    for (i = 0; i + 8 <= k; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), vr), _mm256_loadu_ps(w + i)));
    for (; i < k; i++)
        y[i] = (x[i] * r) * w[i];
}

static void rotate(float *p0, float *p1, float c, float s)
{
    float x0 = *p0, x1 = *p1;
    *p0 = fmaf(x0, c, -(x1 * s));
    *p1 = fmaf(x0, s, x1 * c);
}

/* Pairs (2i, 2i+1): four of them in a vector; lanes 2i get fma(x0, c, -(x1*s)), lanes 2i+1 fma(x0, s, x1*c). */
static void rope_normal(float *x, uint32_t half, const float *cos, const float *sin)
{
    const __m256 even = _mm256_castsi256_ps(_mm256_set1_epi64x(0x80000000));
    uint32_t i = 0;
    for (; i + 4 <= half; i += 4) {
        __m128 c = _mm_loadu_ps(cos + i), s = _mm_loadu_ps(sin + i);
        __m256 cs = _mm256_set_m128(_mm_unpackhi_ps(c, s), _mm_unpacklo_ps(c, s));
        __m256 sc = _mm256_permute_ps(cs, 0xb1), v = _mm256_loadu_ps(x + 2 * i);
        __m256 part = _mm256_xor_ps(_mm256_mul_ps(_mm256_movehdup_ps(v), sc), even);
        _mm256_storeu_ps(x + 2 * i, _mm256_fmadd_ps(_mm256_moveldup_ps(v), cs, part));
    }
    for (; i < half; i++)
        rotate(x + 2 * i, x + 2 * i + 1, cos[i], sin[i]);
}

static void rope_neox(float *x, uint32_t half, const float *cos, const float *sin)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    uint32_t i = 0;
    for (; i + 8 <= half; i += 8) {
        __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
        __m256 x0 = _mm256_loadu_ps(x + i), x1 = _mm256_loadu_ps(x + half + i);
        _mm256_storeu_ps(x + i, _mm256_fmadd_ps(x0, c, _mm256_xor_ps(_mm256_mul_ps(x1, s), sign)));
        _mm256_storeu_ps(x + half + i, _mm256_fmadd_ps(x0, s, _mm256_mul_ps(x1, c)));
    }
    for (; i < half; i++)
        rotate(x + i, x + half + i, cos[i], sin[i]);
}

void cpu_avx2_rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rope_dims, enum rope_layout layout,
                   const float *cos, const float *sin)
{
    for (uint32_t h = 0; h < n_heads; h++)
        (layout == ROPE_NORMAL ? rope_normal : rope_neox)(x + (size_t)h * head_dim, rope_dims / 2, cos, sin);
}

void cpu_avx2_kv_write(enum kv_type type, const float *src, uint32_t n, void *dst)
{
    uint8_t *p = dst;
    uint32_t i = 0;
    switch (type) {
    case KV_F32:
        memcpy(p, src, n * sizeof *src);
        return;
    case KV_F16:
        for (; i + 8 <= n; i += 8)
            _mm_storeu_si128((__m128i *)(void *)(p + 2 * (size_t)i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        break;
    case KV_BF16:
        break;
    case KV_Q8_0:
        ASSERT(n % 32 == 0);
        for (; i < n; i += 32, p += 34) {
            float a = block_max(src + i);
            uint16_t d = half_to_f16(a < 0x1p-120f ? 0 : a / 127.0f);
            memcpy(p, &d, 2);
            block_quants(src + i, a, (int8_t *)p + 2);
        }
        return;
    case KV_FP8:
        for (; i < n; i++)
            p[i] = half_to_e4m3(src[i]);
        return;
    }
    for (; i < n; i++) {
        uint16_t h = type == KV_F16 ? half_to_f16(src[i]) : half_to_bf16(src[i]);
        memcpy(p + 2 * (size_t)i, &h, 2);
    }
}

/* y = gate * (1 / (1 + exp(-gate))) * up */
void cpu_avx2_swiglu(const float *gate, const float *up, uint32_t n, float *y)
{
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 g = _mm256_loadu_ps(gate + i);
        __m256 r = _mm256_div_ps(one, _mm256_add_ps(one, fm_exp_avx2(_mm256_xor_ps(g, sign))));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(g, r), _mm256_loadu_ps(up + i)));
    }
    for (; i < n; i++)
        y[i] = gate[i] * (1.0f / (1.0f + fm_exp(-gate[i]))) * up[i];
}

void cpu_avx2_add(float *x, const float *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = x[i] + y[i];
}

static enum quant_act act(enum quant type)
{
    return quant_traits[type].act;
}
static void pack(enum quant type, uint32_t rows, uint32_t cols, const void *src, uint32_t row0, uint32_t n, void *dst)
{
    layout_pack(type, rows, cols, src, row0, n, dst, 0);
}
static void row(const struct kernels_weight *w, uint32_t r, float *out)
{
    layout_row(w, r, out, 0);
}
static void matmul(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin, uint32_t row_end,
                   float *y, size_t y_stride)
{
    (act(w->type) == QUANT_ACT_Q8 ? cpu_avx2_matmul_q8 : cpu_avx2_matmul_float)(w, x, row_begin, row_end, y, y_stride);
}

const struct kernels kernels_cpu_avx2 = {
    .name = "cpu-avx2",
    .act = act,
    .weight_bytes = layout_bytes,
    .weight_pack = pack,
    .weight_row = row,
    .quantize = cpu_avx2_quantize,
    .rmsnorm = cpu_avx2_rmsnorm,
    .matmul = matmul,
    .rope = cpu_avx2_rope,
    .kv_write = cpu_avx2_kv_write,
    .attention = cpu_avx2_attention,
    .swiglu = cpu_avx2_swiglu,
    .add = cpu_avx2_add,
};
