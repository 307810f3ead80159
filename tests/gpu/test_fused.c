/* What lies between matrices on a GPU (fused.cu) against plain loops in double. Tolerances: u = 2^-24 is the rounding of fp32; a value of the norm or of SwiGLU takes few
 * roundings of its own, the norm's sum of squares at most dim / 32 + 16 in a chain, halved by the root; then the rounding to the activation's type, 2^-11 (f16, with
 * at least 2^-25 of the token's scale where it becomes a denormal), 2^-8 (bf16, 8 bits of mantissa: half of 2^-7). */
#include "base/check.h"
#include "kernels/cuda/cuda.h"
#include "tests/tools/random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define U 0x1p-24

static float *normals(size_t n, float deviation)
{
    float *x = malloc((n + 1) * sizeof(*x));
    for (size_t i = 0; i < n; i++)
        x[i] = deviation * normal();
    return x;
}

static void *device(const void *host, size_t bytes)
{
    void *p = NULL;
    assert_int_equal(cudaMalloc(&p, bytes ? bytes : 1), cudaSuccess);
    if (host)
        assert_int_equal(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return p;
}
/* Bytes at p, freed there. */
static void *take_back(void *p, size_t bytes)
{
    void *host = malloc(bytes ? bytes : 1);
    assert_int_equal(cudaMemcpy(host, p, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(cudaFree(p), cudaSuccess);
    return host;
}
#define DONE(call)                                                                                                                                    \
    do {                                                                                                                                              \
        assert_int_equal(call, cudaSuccess);                                                                                                          \
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);                                                                                       \
    } while (0)

/* IEEE 754 binary16 and bfloat16 as their definitions say. */
static double f16(uint16_t h)
{
    int e = h >> 10 & 31, m = h & 1023;
    double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}
static double bf16(uint16_t b)
{
    uint32_t bits = (uint32_t)b << 16;
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

struct act {
    struct cuda_act a;
    double *value; /* [n][k] after fetch() */
    float *scale;
};
static size_t act_bytes(const struct cuda_act *a)
{
    return (size_t)a->n * a->k * (a->type == CUDA_F32 ? 4 : 2);
}
static struct act make_act(enum cuda_type type, uint32_t n, uint32_t k)
{
    struct act t = {.a = {.type = type, .n = n, .k = k}};
    t.a.x = device(NULL, act_bytes(&t.a));
    t.a.scale = device(NULL, n * sizeof(float));
    return t;
}
static void fetch(struct act *t)
{
    size_t all = (size_t)t->a.n * t->a.k;
    void *raw = take_back(t->a.x, act_bytes(&t->a));
    t->scale = take_back(t->a.scale, t->a.n * sizeof(float));
    t->value = malloc(all * sizeof(double));
    for (size_t i = 0; i < all; i++) {
        const uint16_t *h = raw;
        t->value[i] = t->a.type == CUDA_F32 ? ((float *)raw)[i] : t->a.type == CUDA_BF16 ? bf16(h[i]) : f16(h[i]) * (double)t->scale[i / t->a.k];
    }
    free(raw);
}
static void free_act(struct act *t)
{
    free(t->value);
    free(t->scale);
}

/* Of a token whose wanted values are `want`, each wrong by at most `own` relative before it is rounded to the type. */
static void check_token(const struct act *t, uint32_t i, const double *want, double own)
{
    double top = 0;
    for (uint32_t j = 0; j < t->a.k; j++)
        top = fmax(top, fabs(want[j]));
    double scale = t->a.type == CUDA_F16 ? (double)t->scale[i] : 1;
    if (t->a.type == CUDA_F16) {
        int e;
        assert_true(scale > 0 && frexp(scale, &e) == 0.5); /* a power of two */
        if (top > 0)
            assert_true(top / scale < 16384 * (1 + own) && (top / scale >= 8192 * (1 - own) || scale <= 0x1p-126));
        else
            assert_true(scale == 1);
    }
    for (uint32_t j = 0; j < t->a.k; j++) {
        double w = want[j], v = t->value[(size_t)i * t->a.k + j], rounding = t->a.type == CUDA_F32 ? 0 : t->a.type == CUDA_F16 ? 0x1p-11 : 0x1p-8;
        double tolerance = fabs(w) * (own + rounding) * 1.001 + (t->a.type == CUDA_F16 ? scale * 0x1p-25 : 0) + 0x1p-149;
        if (!(fabs(v - w) <= tolerance))
            print_message("token %u of %u, %u of %u: %.9g, wanted %.9g (scale %g)\n", i, t->a.n, j, t->a.k, v, w, scale);
        assert_true(fabs(v - w) <= tolerance);
    }
}

/* Sizes that fill registers, and beyond them (16384); one token, odd numbers of tokens. */
static const struct {
    uint32_t n, k;
} shapes[] = {{1, 8}, {3, 16}, {70, 24}, {2, 264}, {33, 256}, {1, 1032}, {5, 2048}, {2, 4104}, {1, 8200}, {2, 14344}, {1, 16392}, {1, 20480}};
static const enum cuda_type types[] = {CUDA_F32, CUDA_F16, CUDA_BF16};

static void test_add_norm(void **state)
{
    (void)state;
    for (uint32_t s = 0; s < ARRAY_LEN(shapes); s++)
        for (uint32_t form = 0; form < 6; form++) {
            uint32_t n = shapes[s].n, k = shapes[s].k;
            bool adds = form != 2, norms = form != 5;
            size_t all = (size_t)n * k;
            float *x = normals(all, form == 1 ? 1e-9f : 3.0f), *add = normals(all, 1), *w = normals(k, 1), eps = form == 1 ? 1e-12f : 1e-5f;
            if (form == 1)
                for (size_t i = 0; i < all; i++)
                    add[i] *= 1e-9f;
            void *dx = device(x, all * 4), *dadd = device(add, all * 4), *dw = device(w, k * 4);
            struct act out = make_act(types[form % 3], n, k);
            DONE(cuda_add_norm(dx, adds ? dadd : NULL, norms ? dw : NULL, eps, n, k, norms ? &out.a : NULL, NULL));
            float *got = take_back(dx, all * 4);
            fetch(&out);
            double *want = malloc(k * sizeof(double));
            for (uint32_t i = 0; i < n; i++) {
                double sum = 0;
                for (uint32_t j = 0; j < k; j++) {
                    float v = adds ? x[(size_t)i * k + j] + add[(size_t)i * k + j] : x[(size_t)i * k + j];
                    assert_memory_equal(&v, &got[(size_t)i * k + j], 4); /* one rounding */
                    sum += (double)v * (double)v;
                    want[j] = (double)v * (double)w[j];
                }
                for (uint32_t j = 0; j < k; j++)
                    want[j] /= sqrt(sum / k + (double)eps);
                if (norms)
                    check_token(&out, i, want, (k / 32 + 16) * U / 2 + 8 * U);
            }
            free(want);
            free_act(&out);
            free(take_back(dadd, 0));
            free(take_back(dw, 0));
            free(got);
            free(x);
            free(add);
            free(w);
        }
}

static void test_activations_and_swiglu(void **state)
{
    (void)state;
    for (uint32_t s = 0; s < ARRAY_LEN(shapes); s++)
        for (uint32_t form = 0; form < 6; form++) {
            uint32_t n = shapes[s].n, k = shapes[s].k;
            bool swiglu = form >= 3;
            size_t stride = form % 2 ? 2 * (size_t)k + 4 : k, all = n * stride;
            float *x = normals(all, 4.0f), *up = normals(all, 2.0f);
            for (uint32_t i = 0; i < n && !swiglu; i++) /* tokens of very different size */
                for (uint32_t j = 0; j < k; j++)
                    x[i * stride + j] *= ldexpf(1, (int)(i * 29 % 160) - 70);
            void *dx = device(x, all * 4), *dup = device(up, all * 4);
            struct act out = make_act(types[form % 3], n, k);
            if (swiglu)
                DONE(cuda_swiglu(dx, dup, stride, &out.a, NULL));
            else
                DONE(cuda_act_from_f32(dx, stride, &out.a, NULL));
            fetch(&out);
            double *want = malloc(k * sizeof(double));
            for (uint32_t i = 0; i < n; i++) {
                for (uint32_t j = 0; j < k; j++) {
                    double g = (double)x[i * stride + j];
                    want[j] = swiglu ? g / (1 + exp(-g)) * (double)up[i * stride + j] : g;
                }
                check_token(&out, i, want, swiglu ? 12 * U : 0); /* exp: 2 ulp, 4 roundings */
            }
            free(want);
            free_act(&out);
            free(take_back(dx, 0));
            free(take_back(dup, 0));
            free(x);
            free(up);
        }
}

/* Zeros, the smallest numbers, the largest, and a large one beside small ones. */
static void test_the_ends_of_the_range(void **state)
{
    (void)state;
    enum { N = 6, K = 40 };
    float x[N][K] = {{0}};
    double want[K];
    for (uint32_t j = 0; j < K; j++) {
        x[1][j] = ldexpf(1.25f + (float)j / 64, -140);
        x[2][j] = j % 2 ? 3.4e38f : -1e30f;
        x[3][j] = j ? ldexpf(1.5f, -(int)j) : 1;
        x[4][j] = -0.0f;
        x[5][j] = ldexpf(1, 13) - (j == 7 ? 0.5f : 4096);
    }
    void *dx = device(x, sizeof(x));
    for (uint32_t f = 0; f < 2; f++) {
        struct act out = make_act(types[f], N, K);
        DONE(cuda_act_from_f32(dx, K, &out.a, NULL));
        fetch(&out);
        for (uint32_t i = 0; i < N; i++) {
            for (uint32_t j = 0; j < K; j++)
                want[j] = (double)x[i][j];
            check_token(&out, i, want, 0);
        }
        free_act(&out);
    }
    cudaFree(dx);
}

/* What is not finite is never hidden: every value of its token is NaN after scaling in f16; in the other forms its own. Other tokens are as if it were not there. */
static void test_what_is_not_finite_stays_visible(void **state)
{
    (void)state;
    enum { N = 4, K = 2056 };
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    for (uint32_t f = 0; f < 3; f++)
        for (uint32_t op = 0; op < 3; op++)
            for (uint32_t o = 0; o < 3; o++) {
                float *x = normals((size_t)N * K, 1), *w = normals(K, 1), *up = normals((size_t)N * K, 1);
                uint32_t at = 500 * (o + 1) + f;
                x[K + at] = odd[o];
                if (op == 2 && o == 2) { /* silu(-inf) is 0 * inf */
                    x[K + at] = 0;
                    up[K + at] = odd[o];
                }
                void *dx = device(x, (size_t)N * K * 4), *dw = device(w, K * 4), *dup = device(up, (size_t)N * K * 4);
                struct act out = make_act(types[f], N, K);
                if (op == 0)
                    DONE(cuda_act_from_f32(dx, K, &out.a, NULL));
                else if (op == 1)
                    DONE(cuda_add_norm(dx, NULL, dw, 1e-5f, N, K, &out.a, NULL));
                else
                    DONE(cuda_swiglu(dx, dup, K, &out.a, NULL));
                fetch(&out);
                for (uint32_t i = 0; i < N; i++)
                    for (uint32_t j = 0; j < K; j++) {
                        double v = out.value[(size_t)i * K + j];
                        if (i != 1)
                            assert_true(isfinite(v));
                        else if (f == 1)
                            assert_true(isnan(v));
                        else if (j == at)
                            assert_true(!isfinite(v));
                    }
                free_act(&out);
                free(take_back(dx, 0));
                free(take_back(dw, 0));
                free(take_back(dup, 0));
                free(x);
                free(w);
                free(up);
            }
    /* A sum of squares beyond fp32 must not become a row of zeros. */
    float big[8] = {1e25f, 1, 1, 1, 1, 1, 1, 1}, ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    void *dx = device(big, sizeof(big)), *dw = device(ones, sizeof(ones));
    struct act out = make_act(CUDA_F32, 1, 8);
    DONE(cuda_add_norm(dx, NULL, dw, 1e-5f, 1, 8, &out.a, NULL));
    fetch(&out);
    for (uint32_t j = 0; j < 8; j++)
        assert_true(isnan(out.value[j]));
    free_act(&out);
    cudaFree(dx);
    cudaFree(dw);
}

/* A token's bits do not depend on how many others there are. */
static void test_a_token_is_the_same_in_any_batch(void **state)
{
    (void)state;
    enum { N = 19, K = 4104 };
    float *x = normals((size_t)N * K, 1), *w = normals(K, 1);
    void *dw = device(w, K * 4);
    struct act all = make_act(CUDA_F32, N, K), one = make_act(CUDA_F32, 1, K);
    void *dx = device(x, (size_t)N * K * 4), *d1 = device(x + 11 * K, K * 4);
    DONE(cuda_add_norm(dx, NULL, dw, 1e-5f, N, K, &all.a, NULL));
    DONE(cuda_add_norm(d1, NULL, dw, 1e-5f, 1, K, &one.a, NULL));
    fetch(&all);
    fetch(&one);
    assert_memory_equal(all.value + 11 * K, one.value, K * sizeof(double));
    free_act(&all);
    free_act(&one);
    cudaFree(dx);
    cudaFree(d1);
    cudaFree(dw);
    free(x);
    free(w);
}

static void test_rotations(void **state)
{
    (void)state;
    uint32_t pos[] = {0, 1, 17, 4095, 131071, 1048575}, n = ARRAY_LEN(pos);
    static const uint32_t halves[] = {1, 32, 48, 64, 129};
    for (uint32_t h = 0; h < ARRAY_LEN(halves); h++) {
        uint32_t half = halves[h];
        double freq[129];
        for (uint32_t j = 0; j < half; j++)
            freq[j] = pow(500000, -(double)j / half);
        float magnitude = h % 2 ? 1.1386294f : 1;
        void *dpos = device(pos, sizeof(pos)), *df = device(freq, half * sizeof(double)), *dc = device(NULL, (size_t)n * half * 4),
             *ds = device(NULL, (size_t)n * half * 4);
        DONE(cuda_rotations(dpos, n, df, half, magnitude, dc, ds, NULL));
        float *c = take_back(dc, (size_t)n * half * 4), *s = take_back(ds, (size_t)n * half * 4);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < half; j++) { /* double by both; one rounding to fp32, which may fall to either side */
                double a = pos[i] * freq[j], m = (double)magnitude;
                assert_true(fabs((double)c[i * half + j] - cos(a) * m) <= (fabs(cos(a) * m) + 1e-6) * 2 * U);
                assert_true(fabs((double)s[i * half + j] - sin(a) * m) <= (fabs(sin(a) * m) + 1e-6) * 2 * U);
            }
        free(c);
        free(s);
        cudaFree(dpos);
        cudaFree(df);
    }
}

static void test_gather_rows(void **state)
{
    (void)state;
    enum { ROWS = 9, N = 6, DIM = 1100 };
    uint32_t index[N] = {8, 0, UINT32_MAX, 3, 3, 5};
    float *x = normals(ROWS * DIM, 1), *before = normals(N * DIM, 1);
    void *dx = device(x, ROWS * DIM * 4), *di = device(index, sizeof(index)), *dout = device(before, N * DIM * 4);
    DONE(cuda_gather_rows(dx, di, N, DIM, dout, NULL));
    float *out = take_back(dout, N * DIM * 4);
    for (uint32_t i = 0; i < N; i++)
        assert_memory_equal(out + i * DIM, index[i] == UINT32_MAX ? before + i * DIM : x + (size_t)index[i] * DIM, DIM * 4);
    cudaFree(dx);
    cudaFree(di);
    free(out);
    free(x);
    free(before);
}

static void test_types(void **state)
{
    (void)state;
    assert_int_equal(cuda_act_type(QUANT_F32), CUDA_F32);
    assert_int_equal(cuda_act_type(QUANT_BF16), CUDA_BF16);
    assert_int_equal(cuda_act_type(QUANT_F16), CUDA_F16);
    assert_int_equal(cuda_act_type(QUANT_Q4_K), CUDA_F16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_norm),
        cmocka_unit_test(test_activations_and_swiglu),
        cmocka_unit_test(test_the_ends_of_the_range),
        cmocka_unit_test(test_what_is_not_finite_stays_visible),
        cmocka_unit_test(test_a_token_is_the_same_in_any_batch),
        cmocka_unit_test(test_rotations),
        cmocka_unit_test(test_gather_rows),
        cmocka_unit_test(test_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
