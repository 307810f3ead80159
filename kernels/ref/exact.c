/* The exact form: every rounding in the order that kernels.h fixes, which the CPU backend must equal bit for bit.
 * Compiled twice (exact_fma.c): fmaf is a function call in a build for plain x86-64, and an oracle that slow would not
 * be run. The bits are the same. */
#ifndef REF_EXACT_NAME
#define REF_EXACT_NAME(op) ref_exact_##op##_libm
#endif

#include "base/check.h"
#include "base/fmath.h"
#include "kernels/ref/ref.h"

/* 16 chains into one: i with i + 8, then i + 4, i + 2, i + 1. */
static float tree16(float *c)
{
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            c[i] = c[i] + c[i + half];
    return c[0];
}

void REF_EXACT_NAME(rmsnorm)(const float *x, const float *w, float eps, uint32_t k, float *y)
{
    float c[16] = {0};
    for (uint32_t i = 0; i < k; i++)
        c[i % 16] = fmaf(x[i], x[i], c[i % 16]);
    float r = 1.0f / sqrtf(tree16(c) / (float)k + eps);
    for (uint32_t i = 0; i < k; i++)
        y[i] = (x[i] * r) * w[i];
}

/* One block of 32 of a row against a token's: S, A are the sums over the two halves of w*q and of q. */
static float block_dot(const struct ref_block *blk, const int8_t *q, float dx, float acc)
{
    int32_t s[2] = {0, 0}, a[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        s[i / 16] += blk->w[i] * q[i];
        a[i / 16] += q[i];
    }
    if (blk->halves)
        acc = fmaf((float)(blk->sc[0] * s[0] + blk->sc[1] * s[1]), blk->d * dx, acc);
    else
        acc = fmaf((float)(s[0] + s[1]), blk->d * (float)blk->sc[0] * dx, acc);
    if (!blk->has_min)
        return acc;
    if (!blk->halves)
        a[0] += a[1];
    for (int h = 0; h < (blk->halves ? 2 : 1); h++)
        acc = fmaf(-(blk->m * (float)-blk->mn[h]), (float)a[h] * dx, acc);
    return acc;
}

/* y holds the chain of each token while the blocks of a row pass. */
static void matmul_row_q8(const struct kernels_weight *w, const struct kernels_act *x, const uint8_t *row, float *y,
                          size_t y_stride)
{
    uint32_t n_blocks = w->cols / 32;
    for (uint32_t i = 0; i < x->n; i++)
        y[i * y_stride] = 0;
    for (uint32_t b = 0; b < n_blocks; b++) {
        struct ref_block blk;
        ref_decode(w->type, row, b, &blk);
        for (uint32_t i = 0; i < x->n; i++)
            y[i * y_stride] =
                block_dot(&blk, x->q + (size_t)i * x->stride + b * 32, x->d[(size_t)i * (x->stride / 32) + b], y[i * y_stride]);
    }
}

static void matmul_row_f32(const struct kernels_weight *w, const struct kernels_act *x, const uint8_t *row, float *y,
                           size_t y_stride)
{
    for (uint32_t i = 0; i < x->n; i++) {
        const float *v = x->f32 + (size_t)i * x->stride;
        float c[4] = {0};
        for (uint32_t k = 0; k < w->cols; k++)
            c[k % 4] = fmaf(ref_element(w->type, row, k), v[k], c[k % 4]);
        y[i * y_stride] = (c[0] + c[1]) + (c[2] + c[3]);
    }
}

void REF_EXACT_NAME(matmul)(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin,
                            uint32_t row_end, float *y, size_t y_stride)
{
    ASSERT(x->k == w->cols && (x->stride >= x->k || x->n <= 1) && row_end <= w->rows && row_begin % 16 == 0);
    size_t row_bytes = quant_row_bytes(w->type, w->cols);
    bool q8 = quant_traits[w->type].act == QUANT_ACT_Q8;
    for (uint32_t r = row_begin; r < row_end; r++) {
        const uint8_t *row = (const uint8_t *)w->data + r * row_bytes;
        (q8 ? matmul_row_q8 : matmul_row_f32)(w, x, row, y + r, y_stride);
    }
}

void REF_EXACT_NAME(rope)(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rope_dims, enum rope_layout layout,
                          const float *cos, const float *sin)
{
    uint32_t half = rope_dims / 2;
    for (uint32_t h = 0; h < n_heads; h++)
        for (uint32_t i = 0; i < half; i++) {
            float *p0 = x + (size_t)h * head_dim + (layout == ROPE_NORMAL ? 2 * i : i);
            float *p1 = layout == ROPE_NORMAL ? p0 + 1 : p0 + half;
            float x0 = *p0, x1 = *p1;
            *p0 = fmaf(x0, cos[i], -(x1 * sin[i]));
            *p1 = fmaf(x0, sin[i], x1 * cos[i]);
        }
}

/* One token and head. m, l, o belong to the range at hand; M, L, O (the output row) to all ranges before it. */
static void attend(const struct kernels_attn *a, uint32_t kv_head, uint32_t n_pos, const float *q, float *out,
                   float *scratch)
{
    float *row = scratch, *s = scratch + 1024, *o = scratch + 2048;
    float m_all = 0, l_all = 0;
    for (uint32_t p0 = 0; p0 < n_pos; p0 += KERNELS_ATTN_RANGE) {
        uint32_t n = MIN(n_pos - p0, (uint32_t)KERNELS_ATTN_RANGE);
        float m = -INFINITY, l = 0;
        for (uint32_t p = 0; p < n; p++) {
            float c[16] = {0};
            ref_kv_read(a->type, ref_kv_row(a, kv_head, p0 + p, false), a->head_dim, row);
            for (uint32_t i = 0; i < a->head_dim; i++)
                c[i % 16] = fmaf(q[i], row[i], c[i % 16]);
            s[p] = tree16(c) * a->scale;
            m = s[p] > m ? s[p] : m;
        }
        for (uint32_t j = 0; j < a->head_dim_v; j++)
            o[j] = 0;
        for (uint32_t p = 0; p < n; p++) {
            float e = fm_exp(s[p] - m);
            l = l + e;
            ref_kv_read(a->type, ref_kv_row(a, kv_head, p0 + p, true), a->head_dim_v, row);
            for (uint32_t j = 0; j < a->head_dim_v; j++)
                o[j] = fmaf(e, row[j], o[j]);
        }
        if (p0 == 0) {
            m_all = m;
            l_all = l;
            memcpy(out, o, a->head_dim_v * sizeof *o);
            continue;
        }
        float top = m > m_all ? m : m_all, fa = fm_exp(m_all - top), fb = fm_exp(m - top);
        l_all = fmaf(l, fb, l_all * fa);
        for (uint32_t j = 0; j < a->head_dim_v; j++)
            out[j] = fmaf(o[j], fb, out[j] * fa);
        m_all = top;
    }
    float inv = 1.0f / l_all;
    for (uint32_t j = 0; j < a->head_dim_v; j++)
        out[j] = out[j] * inv;
}

void REF_EXACT_NAME(attention)(const struct kernels_attn *a, uint32_t head_begin, uint32_t head_end, uint32_t tok_begin,
                               uint32_t tok_end, float *scratch)
{
    ASSERT(a->head_dim <= 1024 && a->head_dim_v <= 1024);
    for (uint32_t t = tok_begin; t < tok_end; t++)
        for (uint32_t h = head_begin; h < head_end; h++)
            attend(a, (a->head0 + h) / a->group - a->kv_head0, a->pos0 + t + 1,
                   a->q + t * a->q_stride + (size_t)h * a->head_dim,
                   a->out + t * a->out_stride + (size_t)h * a->head_dim_v, scratch);
}

void REF_EXACT_NAME(swiglu)(const float *gate, const float *up, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = gate[i] * (1.0f / (1.0f + fm_exp(-gate[i]))) * up[i];
}
