/* Every CPU table against ref's exact form, bit for bit: every op, type, shape and number of tokens of the case table,
 * row ranges and positions of every kind. That ref itself is right is oracle.py's part (numpy), so no expectation here
 * comes from the code under test. The AVX-512 kernels run natively where the CPU has them, and everywhere through
 * SIMDe. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/check.h"
#include "kernels/cpu/cpu.h"
#include "kernels/half.h"
#include "tests/kernels/cases.h"
#include "tests/tools/sanitized.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
extern const struct kernels kernels_cpu_avx512_simde;
#endif
static const struct kernels *cpu; /* the table under test */

/* Bits, except that any NaN equals any other. */
static void check_same(const float *want, const float *got, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&want[i], &got[i], 4) && !(isnan(want[i]) && isnan(got[i])))
            fail_msg("%s: %s: element %zu of %zu is %a, want %a", cpu->name, what, i, n, (double)got[i],
                     (double)want[i]);
}

struct matrix {
    struct kernels_weight ref, cpu;
    uint8_t *src, *ref_data, *cpu_data;
};

/* Packed in two calls where the rows allow, as threads do. */
static void *packed(const struct kernels *k, enum quant type, uint32_t rows, uint32_t cols, const uint8_t *src)
{
    uint8_t *data = cases_alloc(k->weight_bytes(type, rows, cols));
    uint32_t first = rows > 16 ? 16 : rows;
    if (rows > first)
        k->weight_pack(type, rows, cols, src + first * quant_row_bytes(type, cols), first, rows - first, data);
    k->weight_pack(type, rows, cols, src, 0, first, data);
    return data;
}
static void matrix_init(struct matrix *m, struct cases_rng *r, enum quant type, uint32_t rows, uint32_t cols)
{
    m->src = cases_alloc(rows * quant_row_bytes(type, cols));
    cases_weights(r, type, rows, cols, true, m->src);
    m->ref_data = packed(&kernels_ref, type, rows, cols, m->src);
    m->cpu_data = packed(cpu, type, rows, cols, m->src);
    m->ref = (struct kernels_weight){type, rows, cols, m->ref_data};
    m->cpu = (struct kernels_weight){type, rows, cols, m->cpu_data};
}
static void matrix_deinit(struct matrix *m)
{
    free(m->src);
    free(m->ref_data);
    free(m->cpu_data);
}

static void check_rows(const struct matrix *m, const char *what)
{
    float *a = cases_alloc(m->ref.cols * sizeof *a), *b = cases_alloc(m->ref.cols * sizeof *b);
    for (uint32_t r = 0; r < m->ref.rows; r++) {
        kernels_ref.weight_row(&m->ref, r, a);
        cpu->weight_row(&m->cpu, r, b);
        check_same(a, b, m->ref.cols, what);
    }
    free(a);
    free(b);
}

/* All tokens at once by ref; by the table under test every number of tokens, whole and in row ranges. */
static void check_matmul(struct cases_rng *r, const struct matrix *m, const char *what)
{
    enum { N = 70 };
    uint32_t rows = m->ref.rows, k = m->ref.cols;
    size_t stride = rows + 3;
    uint32_t xs = kernels_act_stride(k);
    float *x = cases_alloc((size_t)N * xs * 4), *want = cases_alloc(N * stride * 4), *got = cases_alloc(N * stride * 4);
    float *d = cases_alloc((size_t)N * xs / 32 * 4);
    int8_t *q = cases_alloc((size_t)N * xs);
    cases_floats(r, (size_t)N * xs, x);
    if (k % 32 == 0)
        for (uint32_t i = 0; i < N; i++)
            kernels_ref.quantize(x + (size_t)i * xs, k, q + (size_t)i * xs, d + (size_t)i * (xs / 32));
    struct kernels_act act = {.n = N, .k = k, .stride = xs, .f32 = x, .q = q, .d = d};
    kernels_ref.matmul(&m->ref, &act, 0, rows, want, stride);
    for (unsigned c = 0; c < cases_n_tokens; c++) {
        act.n = cases_tokens[c];
        memset(got, 0xa5, N * stride * 4);
        uint32_t cut = rows / 2 / 16 * 16;
        cpu->matmul(&m->cpu, &act, 0, cut, got, stride);
        cpu->matmul(&m->cpu, &act, cut, rows, got, stride);
        for (uint32_t i = 0; i < act.n; i++)
            check_same(want + i * stride, got + i * stride, rows, what);
        for (uint32_t i = 0; i < act.n; i++)
            for (uint32_t p = rows; p < stride; p++)
                assert_memory_equal(&got[i * stride + p], "\xa5\xa5\xa5\xa5", 4); /* nothing past a row's end */
    }
    free(x);
    free(want);
    free(got);
    free(d);
    free(q);
}

static void products_have_the_bits_of_the_reference(void **state)
{
    (void)state;
    struct cases_rng r = {1};
    for (int type = 0; type < QUANT_COUNT; type++)
        for (unsigned s = 0; s < cases_n_shapes; s++) {
            const struct cases_shape *shape = &cases_shapes[s];
            bool q8 = quant_traits[type].act == QUANT_ACT_Q8;
            if (sanitized_short() && (s + (unsigned)type) % 4)
                continue; /* every type and every shape, but not with each other */
            if (shape->bench || shape->cols % (q8 ? quant_traits[type].block_elems : 1) || (!q8 && shape->cols > 2000))
                continue;
            char what[64];
            snprintf(what, sizeof what, "%s %ux%u", quant_traits[type].name, shape->rows, shape->cols);
            struct matrix m;
            matrix_init(&m, &r, (enum quant)type, shape->rows, shape->cols);
            check_rows(&m, what);
            check_matmul(&r, &m, what);
            matrix_deinit(&m);
        }
}

/* The worst case of every accumulator: all weights and all activations at the ends of their ranges. */
static void extreme_integers_never_saturate(void **state)
{
    (void)state;
    static const uint8_t fills[] = {0x00, 0x7f, 0x80, 0xff};
    for (int type = 0; type < QUANT_COUNT; type++) {
        if (quant_traits[type].act != QUANT_ACT_Q8)
            continue;
        for (unsigned f = 0; f < 16; f++) {
            enum { K = 512, N = 5 };
            struct matrix m;
            struct cases_rng r = {f};
            matrix_init(&m, &r, (enum quant)type, 16, K);
            memset(m.src, fills[f / 4], 16 * quant_row_bytes((enum quant)type, K));
            for (size_t b = 0; b < 16 * K / quant_traits[type].block_elems; b++) {
                uint8_t *p = m.src + b * quant_traits[type].block_bytes;
                int at[] = {type == QUANT_Q2_K   ? 80
                            : type == QUANT_Q3_K ? 108
                            : type == QUANT_Q6_K ? 208
                                                 : 0,
                            type == QUANT_Q2_K ? 82
                            : type == QUANT_Q4_1 || type == QUANT_Q5_1 || type == QUANT_Q4_K || type == QUANT_Q5_K
                                ? 2
                                : -1};
                for (int i = 0; i < 2; i++)
                    if (at[i] >= 0)
                        memcpy(p + at[i], "\x00\x3c", 2);
            }
            kernels_ref.weight_pack((enum quant)type, 16, K, m.src, 0, 16, m.ref_data);
            cpu->weight_pack((enum quant)type, 16, K, m.src, 0, 16, m.cpu_data);
            int8_t q[N * K];
            float d[N * K / 32], want[N * 16], got[N * 16];
            for (int i = 0; i < N * K; i++)
                q[i] = f % 4 == 0   ? 127
                       : f % 4 == 1 ? -127
                       : f % 4 == 2 ? (i % 2 ? 127 : -127)
                                    : (i / 16 % 2 ? 127 : -127);
            for (int i = 0; i < N * K / 32; i++)
                d[i] = 1;
            struct kernels_act act = {.n = N, .k = K, .stride = K, .q = q, .d = d};
            kernels_ref.matmul(&m.ref, &act, 0, 16, want, 16);
            cpu->matmul(&m.cpu, &act, 0, 16, got, 16);
            check_same(want, got, N * 16, quant_traits[type].name);
            act.n = 1;
            cpu->matmul(&m.cpu, &act, 0, 16, got, 16);
            check_same(want, got, 16, quant_traits[type].name);
            matrix_deinit(&m);
        }
    }
}

static void a_lost_activation_stays_visible(void **state)
{
    (void)state;
    float x[64] = {1, 2, 3}, y[16], d[2];
    int8_t q[64];
    x[40] = INFINITY;
    cpu->quantize(x, 64, q, d);
    assert_true(isnan(d[1]) && !isnan(d[0]));
    for (int i = 32; i < 64; i++)
        assert_int_equal(q[i], 0);
    struct matrix m;
    struct cases_rng r = {3};
    matrix_init(&m, &r, QUANT_Q4_0, 16, 64);
    struct kernels_act act = {.n = 1, .k = 64, .stride = 64, .q = q, .d = d};
    cpu->matmul(&m.cpu, &act, 0, 16, y, 16);
    for (int i = 0; i < 16; i++)
        assert_true(isnan(y[i]));
    matrix_deinit(&m);
}

static void small_ops_have_the_bits_of_the_reference(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 5, 16, 32, 63, 100, 256, 320, 2048, 4097};
    struct cases_rng r = {7};
    for (unsigned s = 0; s < ARRAY_LEN(sizes); s++)
        for (int rep = 0; rep < 3; rep++) {
            enum { MAX = 4128 };
            static float x[MAX], w[MAX], a[MAX], b[MAX], d[2][MAX / 32];
            static int8_t q[2][MAX];
            static uint8_t kv[2][4 * MAX];
            uint32_t n = sizes[s], n32 = ROUND_UP(n, 32u);
            cases_floats(&r, MAX, x);
            cases_floats(&r, MAX, w);
            kernels_ref.rmsnorm(x, w, 1e-5f, n, a);
            cpu->rmsnorm(x, w, 1e-5f, n, b);
            check_same(a, b, n, "rmsnorm");
            memcpy(b, x, sizeof b);
            cpu->rmsnorm(b, w, 1e-5f, n, b);
            check_same(a, b, n, "rmsnorm in place");
            kernels_ref.swiglu(x, w, n, a);
            cpu->swiglu(x, w, n, b);
            check_same(a, b, n, "swiglu");
            memcpy(a, x, sizeof a);
            memcpy(b, x, sizeof b);
            kernels_ref.add(a, w, n);
            cpu->add(b, w, n);
            check_same(a, b, n, "add");
            if (rep == 1)
                x[3 % n] = NAN;
            if (rep == 2)
                x[n - 1] = 0x1p-121f;
            kernels_ref.quantize(x, n32, q[0], d[0]);
            cpu->quantize(x, n32, q[1], d[1]);
            check_same(d[0], d[1], n32 / 32, "quantize d");
            assert_memory_equal(q[0], q[1], n32);
            for (int type = KV_F32; type <= KV_FP8; type++) {
                memset(kv, 0, sizeof kv);
                kernels_ref.kv_write((enum kv_type)type, x, type == KV_Q8_0 ? n32 : n, kv[0]);
                cpu->kv_write((enum kv_type)type, x, type == KV_Q8_0 ? n32 : n, kv[1]);
                assert_memory_equal(kv[0], kv[1], sizeof kv[0]);
            }
        }
    for (uint32_t dims = 2; dims <= 128; dims += dims < 20 ? 2 : 18)
        for (int layout = ROPE_NORMAL; layout <= ROPE_NEOX; layout++) {
            float a[3 * 130], b[3 * 130], c[64], s[64];
            cases_floats(&r, ARRAY_LEN(a), a);
            memcpy(b, a, sizeof a);
            for (uint32_t i = 0; i < 64; i++) {
                c[i] = cosf((float)i);
                s[i] = sinf((float)i);
            }
            kernels_ref.rope(a, 3, 130, dims, (enum rope_layout)layout, c, s);
            cpu->rope(b, 3, 130, dims, (enum rope_layout)layout, c, s);
            check_same(a, b, ARRAY_LEN(a), "rope");
        }
}

/* Every f16 there is, and every f32 between two of them: against the hardware's or the compiler's own conversion where
 * there is one. */
static void half_conversions_round_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double v = (h >> 10 ? 1024 + (h & 1023) : h & 1023) *
                   ldexp(1, (int)(h >> 10 ? h >> 10 : 1) - 25); /* IEEE 754-2008, 3.4 */
        double next = v + ldexp(1, (int)(h >> 10 ? h >> 10 : 1) - 25);
        assert_true((double)half_from_f16((uint16_t)h) == v && (double)half_from_f16((uint16_t)(h | 0x8000)) == -v);
        float mid = (float)((v + next) / 2);
        assert_int_equal(half_to_f16((float)v), h);
        assert_int_equal(half_to_f16(-mid), 0x8000 | (h % 2 ? h + 1 : h));
        assert_int_equal(half_to_f16(nextafterf(mid, 0)), h);
        assert_int_equal(half_to_f16(nextafterf(mid, INFINITY)), h + 1);
    }
    assert_int_equal(half_to_f16(INFINITY), 0x7c00);
    assert_true(isnan(half_from_f16(half_to_f16(NAN))) && isnan(half_from_bf16(half_to_bf16(NAN))));
    assert_int_equal(half_to_bf16(1.00390625f), 0x3f80); /* a tie, to even */
    assert_int_equal(half_to_bf16(1.01171875f), 0x3f82);
}

/* Every e4m3 there is, from the table of the OCP specification: S.0000.MMM is M * 2^-9, S.EEEE.MMM is (8 + M) * 2^(E - 10), S.1111.111 is NaN. */
static void e4m3_rounds_to_nearest_even_and_saturates(void **state)
{
    (void)state;
    for (uint32_t b = 0; b < 0x7f; b++) {
        uint32_t e = b >> 3, m = b & 7, e1 = (b + 1) >> 3, m1 = (b + 1) & 7;
        double v = e ? ldexp(8 + m, (int)e - 10) : ldexp(m, -9), next = e1 ? ldexp(8 + m1, (int)e1 - 10) : ldexp(m1, -9);
        float mid = (float)((v + next) / 2);
        bool top = b == 0x7e; /* 448; 480 would be the next */
        assert_true((double)half_from_e4m3((uint8_t)b) == v && (double)half_from_e4m3((uint8_t)(b | 0x80)) == -v);
        assert_int_equal(half_to_e4m3((float)v), b);
        assert_int_equal(half_to_e4m3((float)-v), b | 0x80);
        assert_int_equal(half_to_e4m3(nextafterf(mid, 0)), b);
        assert_int_equal(half_to_e4m3(-mid), 0x80 | (top || b % 2 == 0 ? b : b + 1));
        assert_int_equal(half_to_e4m3(nextafterf(mid, INFINITY)), top ? b : b + 1);
    }
    assert_int_equal(half_to_e4m3(1e30f), 0x7e);
    assert_int_equal(half_to_e4m3(-INFINITY), 0xfe);
    assert_int_equal(half_to_e4m3(-NAN), 0x7f);
    assert_true(isnan(half_from_e4m3(0x7f)) && isnan(half_from_e4m3(0xff)));
}

static void attention_has_the_bits_of_the_reference(void **state)
{
    (void)state;
    struct cases_rng r = {11};
    float *scratch = cases_alloc(KERNELS_ATTN_SCRATCH * sizeof *scratch);
    for (unsigned i = 0; i < cases_n_attn_shapes; i++)
        for (int type = KV_F32; type <= KV_FP8; type++) {
            const struct cases_attn_shape *s = &cases_attn_shapes[i];
            if (sanitized_short() && (i + (unsigned)type) % 4)
                continue;
            if (type == KV_Q8_0 && (s->head_dim % 32 || s->head_dim_v % 32))
                continue;
            char what[64];
            snprintf(what, sizeof what, "attention case %u kv type %d", i, type);
            struct cases_attn c;
            cases_attn_init(&r, &kernels_ref, s, (enum kv_type)type, &c);
            float *want = cases_alloc(c.out_len * sizeof *want);
            c.a.out = want;
            kernels_ref.attention(&c.a, 0, s->n_heads, 0, s->n_tok, scratch);
            c.a.out = c.out;
            cpu->attention(&c.a, 0, s->n_heads, 0, s->n_tok, scratch);
            check_same(want, c.out, c.out_len, what);
            /* in parts, as threads take heads and tokens */
            memset(c.out, 0xa5, c.out_len * sizeof *c.out);
            uint32_t h = s->n_heads / 3, t = s->n_tok / 2;
            cpu->attention(&c.a, 0, h, 0, s->n_tok, scratch);
            cpu->attention(&c.a, h, s->n_heads, 0, t, scratch);
            cpu->attention(&c.a, h, s->n_heads, t, s->n_tok, scratch);
            check_same(want, c.out, c.out_len, what);
            free(want);
            cases_attn_deinit(&c);
        }
    free(scratch);
}

static void backends_are_found_by_name(void **state)
{
    (void)state;
    assert_ptr_equal(kernels_by_name("ref"), &kernels_ref);
    assert_ptr_equal(kernels_by_name("ref_f32"), &kernels_ref_f32);
    assert_ptr_equal(kernels_by_name("auto"), kernels_cpu());
    assert_null(kernels_by_name("nonsense"));
    setenv("RACKLM_CPU_ISA", "c", 1);
    assert_string_equal(kernels_cpu()->name, "cpu-c");
    unsetenv("RACKLM_CPU_ISA");
    assert_non_null(kernels_cpu()->matmul);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_have_the_bits_of_the_reference),
        cmocka_unit_test(extreme_integers_never_saturate),
        cmocka_unit_test(a_lost_activation_stays_visible),
        cmocka_unit_test(e4m3_rounds_to_nearest_even_and_saturates),
        cmocka_unit_test(small_ops_have_the_bits_of_the_reference),
        cmocka_unit_test(half_conversions_round_to_nearest_even),
        cmocka_unit_test(attention_has_the_bits_of_the_reference),
        cmocka_unit_test(backends_are_found_by_name),
    };
    const struct kernels *tables[4] = {&kernels_cpu_c};
    int n = 1, failed = 0;
#if defined(__x86_64__)
    if (strcmp(kernels_cpu()->name, "cpu-c")) {
        tables[n++] = &kernels_cpu_avx2;
        tables[n++] = &kernels_cpu_avx512_simde;
    }
    if (!strcmp(kernels_cpu()->name, "cpu-avx512"))
        tables[n++] = &kernels_cpu_avx512;
#endif
    for (int i = 0; i < n; i++) {
        cpu = tables[i];
        print_message("--- %s\n", cpu->name);
        failed += cmocka_run_group_tests_name(cpu->name, tests, NULL, NULL);
    }
    return failed;
}
