/* Tolerance of y = sum over k of w[k] * x[k], x exact (the oracle is given the 16-bit values themselves).
 *
 * F32, F16, BF16: the weights are exact, products of 16-bit values are exact in fp32; there is only the order and rounding of sums. A chain of c
 * additions of fp32 makes at most c * 2^-24 * sum |w x| where each rounds to nearest, twice that where tensor cores truncate (they do not say; PTX
 * leaves it open). mma adds 16 products and the old sum at a time, so c <= k / 16 + 16 (inside of one, splits); for F32 k / 32 + 8.
 *
 * Quantised: w = c * s + t in f16 with s = d * sc and t = m * mn, c exact. Each of s, t and w is rounded once, by at most u = 2^-11 of itself, or
 * 2^-25 where that is less than normal. With e_s, e_t one error for a block of 16 or 32, e_w one a weight, the sum is off by
 *     sum over blocks of (e_s * sum c x + e_t * sum x) + sum over k of e_w x.
 * These are bounded errors without a common sign: for independent terms |X_i| <= a_i, P(|sum| > T) <= 2 exp(-T^2 / (2 sum a_i^2)) (Hoeffding 1963). T
 * = 5 sqrt(sum a_i^2) is passed by less than 8e-6 of sums for any distribution, and the bound is far from reached by rounding errors, whose deviation
 * is about 0.4 a. A weight, scale or minimum that is wrong moves a sum by more than that: |w x| of one weight against 2^-11 * 5 * sqrt(3k) of them. */
#include "tests/gpu/cases_gpu.h"

#include "base/check.h"
#include "kernels/cuda/cuda.h"
#include "kernels/half.h"
#include "kernels/ref/ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const struct cases_gpu_matmul cases_gpu_matmuls[] = {
    /* The smallest; one row more and less than a fragment; one block, odd blocks; columns that are no multiple of 8 (float types). */
    {1, 32, 1, false}, {1, 256, 2, false}, {15, 64, 3, false}, {16, 96, 7, false}, {17, 160, 8, false}, {19, 7, 3, false},
    {31, 260, 9, false}, {16, 514, 5, false},
    {100, 768, 1, false}, {33, 1280, 2, false}, {40, 288, 4, false},
    /* Every edge of a tile of tokens. */
    {48, 512, 9, false}, {48, 512, 16, false}, {48, 512, 17, false}, {48, 512, 33, false},
    {48, 512, 64, false}, {48, 512, 65, false}, {48, 512, 70, false},
    {24, 256, 97, false}, {17, 256, 130, false},
    /* Many rows, many columns: several chunks of x, several rounds of every warp. */
    {4097, 256, 1, false}, {300, 256, 7, false}, {16, 8192, 1, false}, {16, 4864, 8, false}, {33, 2304, 20, false},
    {16, 2048, 40, false}, {16, 1792, 70, false},
    /* Shapes of Llama 3 8B: attention, up, down. */
    {4096, 4096, 1, true}, {4096, 4096, 8, true}, {4096, 4096, 64, true}, {4096, 4096, 512, true},
    {28672, 4096, 1, true}, {28672, 4096, 2, true}, {28672, 4096, 4, true}, {28672, 4096, 8, true},
    {28672, 4096, 16, true}, {28672, 4096, 32, true}, {28672, 4096, 64, true},
    {28672, 4096, 128, true}, {28672, 4096, 512, true}, {28672, 4096, 4096, true},
    {4096, 14336, 1, true}, {4096, 14336, 8, true}, {4096, 14336, 64, true}, {4096, 14336, 512, true}, {4096, 14336, 4096, true},
};
const unsigned cases_gpu_n_matmuls = ARRAY_LEN(cases_gpu_matmuls);

bool cases_gpu_has(const struct cases_gpu_matmul *c, enum quant type)
{
    return c->cols % quant_traits[type].block_elems == 0;
}
double cases_gpu_bytes(const struct cases_gpu_matmul *c, enum quant type)
{
    double x = type == QUANT_F32 ? 4 : 2;
    return (double)cuda_weight_bytes(type, c->rows, c->cols) + c->n * (x * c->cols + 4.0 * c->rows);
}
double cases_gpu_flops(const struct cases_gpu_matmul *c)
{
    return 2.0 * c->rows * c->cols * c->n;
}

static double rounding(double v)
{
    return fmax(fabs(v) * 0x1p-11, 0x1p-25);
}
static double block_bound2(const struct ref_block *b, const float *x)
{
    double a2 = 0;
    for (int h = 0; h < 2; h++) {
        double s = (double)b->d * b->sc[h], t = b->has_min ? (double)b->m * b->mn[h] : 0, cx = 0, sx = 0;
        for (int i = 16 * h; i < 16 * h + 16; i++) {
            cx += (double)b->w[i] * x[i];
            sx += x[i];
            double e = rounding(b->w[i] * s + t) * x[i];
            a2 += e * e;
        }
        a2 += pow(rounding(s) * cx, 2) + (b->has_min ? pow(rounding(t) * sx, 2) : 0);
    }
    return 2 * a2; /* halves of one block may share their errors: (p + q)^2 <= 2 p^2 + 2 q^2 */
}

double cases_gpu_tolerance(enum quant type, const uint8_t *row, uint32_t cols, const float *x)
{
    double sum = 0, a2 = 0, additions = type == QUANT_F32 ? cols / 32.0 + 8 : cols / 16.0 + 16;
    float w[256];
    for (uint32_t k0 = 0, len; k0 < cols; k0 += len) {
        len = MIN(cols - k0, (uint32_t)256);
        ref_dequant(type, row + k0 / quant_traits[type].block_elems * quant_traits[type].block_bytes, len, w);
        for (uint32_t k = 0; k < len; k++)
            sum += fabs((double)w[k] * x[k0 + k]);
    }
    for (uint32_t b = 0; quant_traits[type].act == QUANT_ACT_Q8 && b < cols / 32; b++) {
        struct ref_block blk;
        ref_decode(type, row, b, &blk);
        a2 += block_bound2(&blk, x + 32 * b);
    }
    return 5 * sqrt(a2) + additions * 0x1p-23 * sum + 0x1p-126;
}

void cases_gpu_weights(struct cases_rng *r, enum quant type, uint32_t rows, uint32_t cols, uint8_t *bytes)
{
    const struct quant_traits *t = &quant_traits[type];
    uint32_t len = t->block_elems;
    for (size_t b = 0; b < (size_t)rows * (cols / len); b++) {
        uint8_t *p = bytes + b * t->block_bytes;
        float w[256];
        bool extreme = true, fits;
        do {
            cases_weights(r, type, 1, len, extreme, p);
            ref_dequant(type, p, len, w);
            fits = true;
            for (uint32_t i = 0; i < len; i++)
                fits &= fabsf(w[i]) <= 256;
            extreme = cases_u32(r) % 4 != 0;
        } while (!fits);
    }
}

void *cases_gpu_device(const void *host, size_t bytes)
{
    void *p = NULL;
    ASSERT(cudaMalloc(&p, MAX(bytes, (size_t)1)) == cudaSuccess);
    ASSERT(!host || cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice) == cudaSuccess);
    return p;
}
void *cases_gpu_host(const void *p, size_t bytes)
{
    void *host = malloc(MAX(bytes, (size_t)1));
    ASSERT(host && cudaMemcpy(host, p, bytes, cudaMemcpyDeviceToHost) == cudaSuccess);
    return host;
}
void cases_gpu_free(void *p)
{
    ASSERT(cudaFree(p) == cudaSuccess);
}

void cases_gpu_act_init(struct cases_gpu_act *a, struct cases_rng *r, enum quant type, uint32_t n, uint32_t k)
{
    enum cuda_type form = cuda_act_type(type);
    uint32_t stride = ROUND_UP(k, 8u);
    size_t size = form == CUDA_F32 ? 4 : 2;
    uint8_t *x = calloc((size_t)n * stride, size);
    float *scale = malloc(n * sizeof *scale);
    a->value = malloc((size_t)n * k * sizeof(float) + 1);
    ASSERT(x && scale && a->value);
    cases_floats(r, (size_t)n * k, a->value);
    for (uint32_t i = 0; i < n; i++) {
        scale[i] = ldexpf(1, (int)(cases_u32(r) % 9) - 4);
        for (uint32_t j = 0; j < k; j++) {
            float *v = &a->value[(size_t)i * k + j];
            uint8_t *to = x + ((size_t)i * stride + j) * size;
            uint16_t h = form == CUDA_F16 ? half_to_f16(*v) : half_to_bf16(*v);
            if (form == CUDA_F32) {
                memcpy(to, v, 4);
                continue;
            }
            memcpy(to, &h, 2);
            *v = form == CUDA_F16 ? half_from_f16(h) * scale[i] : half_from_bf16(h);
        }
    }
    a->act = (struct cuda_act){form, n, stride, cases_gpu_device(x, (size_t)n * stride * size),
                               form == CUDA_F16 ? cases_gpu_device(scale, n * sizeof *scale) : NULL};
    free(x);
    free(scale);
}
void cases_gpu_act_deinit(struct cases_gpu_act *a)
{
    cases_gpu_free(a->act.x);
    cases_gpu_free(a->act.scale);
    free(a->value);
}
struct cuda_act cases_gpu_act_part(const struct cases_gpu_act *a, uint32_t first, uint32_t n)
{
    struct cuda_act p = a->act;
    p.n = n;
    p.x = (uint8_t *)p.x + (size_t)first * p.k * (p.type == CUDA_F32 ? 4 : 2);
    if (p.scale)
        p.scale += first;
    return p;
}
