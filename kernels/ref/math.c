/* ref_f32: the mathematics of each op with dequantised weights, fp32 activations and sums in double; no chains, no
 * approximation of exp. What tests/kernels/oracle.py compares with numpy, and what a whole forward pass in fp32 means.
 */
#include "base/check.h"
#include "kernels/ref/ref.h"

#include <math.h>

void ref_math_rmsnorm(const float *x, const float *w, float eps, uint32_t k, float *y)
{
    double sum = 0;
    for (uint32_t i = 0; i < k; i++)
        sum += (double)x[i] * x[i];
    double r = 1.0 / sqrt(sum / k + (double)eps);
    for (uint32_t i = 0; i < k; i++)
        y[i] = (float)(x[i] * r * w[i]);
}

/* A row is dequantised in pieces of 256, each used for all tokens; 64 tokens at a time keep their sums on the stack. */
void ref_math_matmul(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin, uint32_t row_end,
                     float *y, size_t y_stride)
{
    enum { PIECE = 256, TOKENS = 64 };
    ASSERT(x->k == w->cols && (x->stride >= x->k || x->n <= 1) && row_end <= w->rows);
    const struct quant_traits *t = &quant_traits[w->type];
    size_t row_bytes = quant_row_bytes(w->type, w->cols);
    for (uint32_t r = row_begin; r < row_end; r++)
        for (uint32_t i0 = 0; i0 < x->n; i0 += TOKENS) {
            uint32_t n = MIN(x->n - i0, (uint32_t)TOKENS);
            double sum[TOKENS] = {0};
            for (uint32_t k0 = 0; k0 < w->cols; k0 += PIECE) {
                float v[PIECE];
                uint32_t len = MIN(w->cols - k0, (uint32_t)PIECE);
                ref_dequant(w->type,
                            (const uint8_t *)w->data + r * row_bytes + k0 / t->block_elems * (size_t)t->block_bytes,
                            len, v);
                for (uint32_t i = 0; i < n; i++)
                    for (uint32_t k = 0; k < len; k++)
                        sum[i] += (double)v[k] * x->f32[(size_t)(i0 + i) * x->stride + k0 + k];
            }
            for (uint32_t i = 0; i < n; i++)
                y[(i0 + i) * y_stride + r] = (float)sum[i];
        }
}

void ref_math_rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rope_dims, enum rope_layout layout,
                   const float *cos, const float *sin)
{
    for (uint32_t h = 0; h < n_heads; h++)
        for (uint32_t i = 0; i < rope_dims / 2; i++) {
            uint32_t i0 = layout == ROPE_NORMAL ? 2 * i : i, i1 = layout == ROPE_NORMAL ? i0 + 1 : i + rope_dims / 2;
            float *v = x + (size_t)h * head_dim;
            double x0 = v[i0], x1 = v[i1], c = cos[i], s = sin[i];
            v[i0] = (float)(x0 * c - x1 * s);
            v[i1] = (float)(x0 * s + x1 * c);
        }
}

/* One token and head in one pass with a running maximum. */
static void attend(const struct kernels_attn *a, uint32_t kv_head, uint32_t n_pos, const float *q, float *out,
                   float *scratch)
{
    float *row = scratch;
    double o[1024], top = -INFINITY, sum = 0;
    for (uint32_t j = 0; j < a->head_dim_v; j++)
        o[j] = 0;
    for (uint32_t p = 0; p < n_pos; p++) {
        double s = 0;
        ref_kv_read(a->type, ref_kv_row(a, kv_head, p, false), a->head_dim, row);
        for (uint32_t i = 0; i < a->head_dim; i++)
            s += (double)q[i] * row[i];
        s *= (double)a->scale;
        if (s > top) {
            double f = exp(top - s);
            sum *= f;
            for (uint32_t j = 0; j < a->head_dim_v; j++)
                o[j] *= f;
            top = s;
        }
        double e = exp(s - top);
        sum += e;
        ref_kv_read(a->type, ref_kv_row(a, kv_head, p, true), a->head_dim_v, row);
        for (uint32_t j = 0; j < a->head_dim_v; j++)
            o[j] += e * row[j];
    }
    for (uint32_t j = 0; j < a->head_dim_v; j++)
        out[j] = (float)(o[j] / sum);
}

void ref_math_attention(const struct kernels_attn *a, uint32_t head_begin, uint32_t head_end, uint32_t tok_begin,
                        uint32_t tok_end, float *scratch)
{
    ASSERT(a->head_dim <= 1024 && a->head_dim_v <= 1024);
    for (uint32_t t = tok_begin; t < tok_end; t++)
        for (uint32_t h = head_begin; h < head_end; h++)
            attend(a, (a->head0 + h) / a->group - a->kv_head0, a->pos0 + t + 1,
                   a->q + t * a->q_stride + (size_t)h * a->head_dim,
                   a->out + t * a->out_stride + (size_t)h * a->head_dim_v, scratch);
}

void ref_math_swiglu(const float *gate, const float *up, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++) {
        double g = gate[i];
        y[i] = (float)(g / (1.0 + exp(-g)) * up[i]);
    }
}
