/* Matrices on a GPU against kernels_ref_f32 (the mathematics in double, itself compared with numpy by tests/kernels/oracle.py) on the very activations
 * that the kernels are given; packing and look-up of rows against ref_dequant, exactly; the deterministic form against itself, bit for bit.
 * Tolerances: cases_gpu.c.
 *
 *   test_matmul                          the tests
 *   test_matmul --bench [type ...]       speeds on a GPU; asserts nothing */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/check.h"
#include "kernels/kernels.h"
#include "kernels/ref/ref.h"
#include "tests/gpu/cases_gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const enum quant all_types[] = {
#define QUANT(sym, id, name, elems, bytes, act) QUANT_##sym,
#include "model/quants.def"
#undef QUANT
};

#define OK(call) assert_int_equal(call, cudaSuccess)

/* ---- a context with its workspace */
enum { SMS = 24 }; /* so few that some cases fill them, and so many that others split k over blocks */
struct context {
    struct cuda_context *c;
    void *workspace;
};
static struct context context_of(bool deterministic, uint32_t n_sms, size_t bytes)
{
    struct context k = {.workspace = bytes ? cases_gpu_device(NULL, bytes) : NULL};
    k.c = cuda_context_create(&(struct cuda_config){deterministic, k.workspace, bytes, n_sms});
    assert_non_null(k.c);
    return k;
}
static size_t workspace_for(uint32_t rows, uint32_t n)
{
    struct cuda_limits l = {.n_tok = n, .n_seqs = n, .n_heads = 1, .head_dim_v = 64, .ctx = 64, .rows_max = rows, .cols_max = 64};
    return cuda_workspace_bytes(&l);
}
static void context_done(struct context *k)
{
    cuda_context_destroy(&k->c);
    assert_null(k->c);
    cases_gpu_free(k->workspace);
}

/* ---- a matrix, as the file has it and on the device; packed in two pieces, as a loader does */
struct matrix {
    struct kernels_weight file;
    struct cuda_weight gpu;
    uint8_t *bytes;
};
static struct cuda_weight packed(enum quant type, uint32_t rows, uint32_t cols, const uint8_t *bytes)
{
    struct cuda_weight w = {type, rows, cols, cases_gpu_device(NULL, cuda_weight_bytes(type, rows, cols))};
    size_t row = quant_row_bytes(type, cols);
    uint32_t first = rows / 3;
    void *src = cases_gpu_device(bytes, rows * row), *rest = cases_gpu_device(bytes + first * row, (rows - first) * row);
    OK(cuda_weight_pack(&w, rest, first, rows - first, NULL));
    OK(cuda_weight_pack(&w, src, 0, first, NULL));
    OK(cudaDeviceSynchronize());
    cases_gpu_free(src);
    cases_gpu_free(rest);
    return w;
}
static void matrix_init(struct matrix *m, struct cases_rng *r, enum quant type, uint32_t rows, uint32_t cols, bool any)
{
    m->bytes = cases_alloc(rows * quant_row_bytes(type, cols));
    if (any)
        cases_weights(r, type, rows, cols, true, m->bytes);
    else
        cases_gpu_weights(r, type, rows, cols, m->bytes);
    m->file = (struct kernels_weight){type, rows, cols, m->bytes};
    m->gpu = packed(type, rows, cols, m->bytes);
}
static void matrix_deinit(struct matrix *m)
{
    cases_gpu_free((void *)m->gpu.data);
    free(m->bytes);
}

/* ---- packing */
static void check_rows(struct cases_rng *r, enum quant type, uint32_t rows, uint32_t cols)
{
    enum { N = 9, FIRST = 1000 };
    struct matrix m;
    matrix_init(&m, r, type, rows, cols, true);
    uint32_t ids[N] = {FIRST, FIRST + rows - 1, FIRST - 1, FIRST + rows, 0, UINT32_MAX};
    for (unsigned i = 6; i < N; i++)
        ids[i] = FIRST + cases_u32(r) % rows;
    uint32_t *ids_dev = cases_gpu_device(ids, sizeof ids);
    float *y_dev = cases_gpu_device(NULL, sizeof(float) * N * cols), *want = malloc(sizeof(float) * cols);
    OK(cuda_weight_rows(&m.gpu, ids_dev, N, FIRST, y_dev, NULL));
    float *y = cases_gpu_host(y_dev, sizeof(float) * N * cols);
    for (unsigned i = 0; i < N; i++) {
        memset(want, 0, sizeof(float) * cols);
        if (ids[i] >= FIRST && ids[i] - FIRST < rows)
            ref_dequant(type, m.bytes + (ids[i] - FIRST) * quant_row_bytes(type, cols), cols, want);
        for (uint32_t k = 0; k < cols; k++)
            if (y[i * cols + k] != want[k]) /* 0 and -0 are one */
                fail_msg("%s %ux%u: id %u column %u is %a, want %a", quant_traits[type].name, rows, cols, ids[i], k, (double)y[i * cols + k],
                         (double)want[k]);
    }
    free(y);
    free(want);
    cases_gpu_free(ids_dev);
    cases_gpu_free(y_dev);
    matrix_deinit(&m);
}
static void rows_come_back_as_the_file_has_them(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{1, 32}, {16, 64}, {17, 160}, {5, 256}, {37, 768}, {20, 7}, {9, 260}, {33, 1}};
    struct cases_rng r = {1};
    for (unsigned t = 0; t < ARRAY_LEN(all_types); t++)
        for (unsigned s = 0; s < ARRAY_LEN(shapes); s++)
            if (shapes[s][1] % quant_traits[all_types[t]].block_elems == 0)
                check_rows(&r, all_types[t], shapes[s][0], shapes[s][1]);
}
static void packed_bytes_are_within_four_percent_of_the_file(void **state)
{
    (void)state;
    for (unsigned t = 0; t < ARRAY_LEN(all_types); t++) {
        double file = 4096.0 * (double)quant_row_bytes(all_types[t], 14336), have = (double)cuda_weight_bytes(all_types[t], 4096, 14336);
        assert_true(have >= file && have <= file * 1.04);
    }
}

/* ---- products */
static float *oracle(const struct matrix *m, const struct cases_gpu_act *a)
{
    float *y = malloc(sizeof(float) * a->act.n * m->file.rows);
    struct kernels_act x = {.n = a->act.n, .k = m->file.cols, .stride = m->file.cols, .f32 = a->value};
    kernels_ref_f32.matmul(&m->file, &x, 0, m->file.rows, y, m->file.rows);
    return y;
}
/* got: values of a token `stride` after those of the last. */
static void check_product(const struct matrix *m, const struct cases_gpu_act *a, const float *bias, const float *got, size_t stride, const char *what)
{
    float *want = oracle(m, a);
    uint32_t rows = m->file.rows, cols = m->file.cols;
    for (uint32_t i = 0; i < a->act.n; i++)
        for (uint32_t r = 0; r < rows; r++) {
            float b = bias ? bias[r] : 0, w = want[(size_t)i * rows + r] + b, g = got[i * stride + r];
            double diff = fabs((double)g - w);
            if (diff <= fabs((double)b) * 0x1p-22) /* most often; saves the tolerance */
                continue;
            double tol = cases_gpu_tolerance(m->file.type, m->bytes + r * quant_row_bytes(m->file.type, cols), cols, a->value + (size_t)i * cols) +
                         (fabs((double)w) + fabs((double)b)) * 0x1p-22;
            if (!(diff <= tol))
                fail_msg("%s %s %ux%u n %u: token %u row %u is %g, want %g, tolerance %g", what, quant_traits[m->file.type].name,
                         rows, cols, a->act.n, i, r, (double)g, (double)w, tol);
        }
    free(want);
}
static float *floats_dev(const float *x, size_t n)
{
    return cases_gpu_device(x, n * sizeof *x);
}
/* What no kernel may write over. */
static const float canary = 1234.5f;
static float *canaries(size_t n)
{
    float *x = malloc(n * sizeof *x + 1);
    for (size_t i = 0; i < n; i++)
        x[i] = canary;
    float *dev = floats_dev(x, n);
    free(x);
    return dev;
}

static void check_case(const struct context *k, struct cases_rng *r, const struct cases_gpu_matmul *c, enum quant type)
{
    struct matrix m;
    struct cases_gpu_act a;
    matrix_init(&m, r, type, c->rows, c->cols, false);
    cases_gpu_act_init(&a, r, type, c->n, c->cols);
    size_t off = cases_u32(r) % 2, stride = c->rows + 4, n_y = off + c->n * stride; /* off: a y that cuBLASLt does not take */
    float *bias = malloc(c->rows * sizeof *bias), *y_dev = canaries(n_y);
    cases_floats(r, c->rows, bias);
    bool with_bias = cases_u32(r) % 2 == 0;
    float *bias_dev = floats_dev(bias, c->rows);
    OK(cuda_matmul(k->c, &(struct cuda_matmul){&m.gpu, with_bias ? bias_dev : NULL, y_dev + off, stride}, 1, &a.act, NULL));
    OK(cudaDeviceSynchronize());
    float *y = cases_gpu_host(y_dev, n_y * sizeof *y);
    check_product(&m, &a, with_bias ? bias : NULL, y + off, stride, cuda_context_describe(k->c));
    for (size_t i = 0; i < n_y; i++)
        if (i < off || (i - off) % stride >= c->rows)
            assert_true(y[i] == canary);
    free(y);
    free(bias);
    cases_gpu_free(bias_dev);
    cases_gpu_free(y_dev);
    cases_gpu_act_deinit(&a);
    matrix_deinit(&m);
}
static void every_case(bool deterministic, uint32_t n_sms, size_t workspace, unsigned nth)
{
    struct context k = context_of(deterministic, n_sms, workspace);
    struct cases_rng r = {7 + nth};
    unsigned at = 0;
    for (unsigned i = 0; i < cases_gpu_n_matmuls; i++)
        for (unsigned t = 0; t < ARRAY_LEN(all_types); t++) {
            const struct cases_gpu_matmul *c = &cases_gpu_matmuls[i];
            if (!c->bench && cases_gpu_has(c, all_types[t]) && at++ % nth == 0)
                check_case(&k, &r, c, all_types[t]);
        }
    context_done(&k);
}
static void products_are_those_of_the_reference(void **state)
{
    (void)state;
    every_case(false, SMS, workspace_for(4097, 130), 1);
}
static void without_workspace_or_with_little_too(void **state)
{
    (void)state;
    every_case(false, 1, 0, 5); /* and so few blocks that each has many tiles */
    every_case(false, 132, 4096 * 4 + 20000, 7);
}
static void the_deterministic_form_too(void **state)
{
    (void)state;
    every_case(true, SMS, workspace_for(4097, 130), 7);
    every_case(true, 2, workspace_for(4097, 130), 9);
}

/* Jobs of different types and rows, one without rows, each into its part of a common y, as q, k, v are. */
static void several_matrices_have_one_input(void **state)
{
    (void)state;
    static const enum quant types[][4] = {
        {QUANT_Q4_K, QUANT_Q4_K, QUANT_Q6_K, QUANT_Q4_K}, {QUANT_Q8_0, QUANT_Q8_0, QUANT_Q8_0, QUANT_Q8_0},
        {QUANT_BF16, QUANT_BF16, QUANT_BF16, QUANT_BF16}, {QUANT_F16, QUANT_Q5_0, QUANT_Q5_0, QUANT_F16},
        {QUANT_F32, QUANT_F32, QUANT_F32, QUANT_F32},
    };
    static const uint32_t rows[4] = {40, 17, 8, 0}, tokens[] = {1, 6, 20, 70}, cols = 512;
    struct context k = context_of(false, SMS, workspace_for(128, 70));
    struct cases_rng r = {3};
    for (unsigned s = 0; s < ARRAY_LEN(types); s++)
        for (unsigned t = 0; t < ARRAY_LEN(tokens); t++) {
            struct matrix m[4];
            struct cuda_matmul jobs[4];
            struct cases_gpu_act a;
            size_t stride = 40 + 17 + 8, at = 0;
            uint32_t n = tokens[t];
            cases_gpu_act_init(&a, &r, types[s][0], n, cols);
            float *y_dev = canaries(n * stride), bias[40];
            cases_floats(&r, 40, bias);
            float *bias_dev = floats_dev(bias, 40);
            for (unsigned j = 0; j < 4; j++) {
                if (rows[j])
                    matrix_init(&m[j], &r, types[s][j], rows[j], cols, false);
                else
                    m[j].gpu = (struct cuda_weight){.type = types[s][j], .cols = cols};
                jobs[j] = (struct cuda_matmul){&m[j].gpu, j == 1 ? bias_dev : NULL, y_dev + at, stride};
                at += rows[j];
            }
            OK(cuda_matmul(k.c, jobs, 4, &a.act, NULL));
            float *y = cases_gpu_host(y_dev, n * stride * sizeof *y);
            for (unsigned j = 0; j < 3; j++) {
                check_product(&m[j], &a, j == 1 ? bias : NULL, y + (jobs[j].y - y_dev), stride, "jobs");
                matrix_deinit(&m[j]);
            }
            free(y);
            cases_gpu_free(y_dev);
            cases_gpu_free(bias_dev);
            cases_gpu_act_deinit(&a);
        }
    context_done(&k);
}

/* ---- the deterministic form: each token alone, then in batches of every size. */
static void check_invariance(struct cases_rng *r, enum quant type, uint32_t rows, uint32_t cols, uint32_t n_sms, unsigned step)
{
    enum { N = 130 };
    struct context k = context_of(true, n_sms, workspace_for(rows, N));
    struct matrix m;
    struct cases_gpu_act a;
    matrix_init(&m, r, type, rows, cols, false);
    cases_gpu_act_init(&a, r, type, N, cols);
    float *y_dev = canaries((size_t)N * rows);
    struct cuda_matmul job = {&m.gpu, NULL, y_dev, rows};
    for (uint32_t i = 0; i < N; i++) {
        struct cuda_act one = cases_gpu_act_part(&a, i, 1);
        OK(cuda_matmul(k.c, &(struct cuda_matmul){&m.gpu, NULL, y_dev + (size_t)i * rows, rows}, 1, &one, NULL));
    }
    float *alone = cases_gpu_host(y_dev, sizeof(float) * N * rows);
    check_product(&m, &a, NULL, alone, rows, "alone");
    for (uint32_t n = 2; n <= N; n = n == 70 ? N : n + step > 70 && n < 70 ? 70 : n + step) {
        uint32_t first = cases_u32(r) % (N - n + 1);
        struct cuda_act part = cases_gpu_act_part(&a, first, n);
        OK(cuda_matmul(k.c, &job, 1, &part, NULL));
        float *y = cases_gpu_host(y_dev, sizeof(float) * n * rows);
        for (uint32_t i = 0; i < n; i++)
            if (memcmp(y + (size_t)i * rows, alone + (size_t)(first + i) * rows, sizeof(float) * rows))
                fail_msg("%s %ux%u: token %u of a batch of %u has other bits than alone", quant_traits[type].name, rows, cols, i, n);
        free(y);
    }
    free(alone);
    cases_gpu_free(y_dev);
    cases_gpu_act_deinit(&a);
    matrix_deinit(&m);
    context_done(&k);
}
static void a_token_has_the_same_bits_in_any_batch(void **state)
{
    (void)state;
    struct cases_rng r = {11};
    check_invariance(&r, QUANT_Q4_K, 24, 1024, 8, 1); /* k split over blocks */
    check_invariance(&r, QUANT_BF16, 80, 384, 1, 1);  /* not split */
    for (unsigned t = 0; t < ARRAY_LEN(all_types); t++)
        check_invariance(&r, all_types[t], 20, 512, 4, 23);
}

/* A launch leaves its counters as it found them, and a graph may hold it. */
static void again_and_in_a_graph_the_bits_are_the_same(void **state)
{
    (void)state;
    struct cases_rng r = {13};
    struct context k = context_of(false, SMS, workspace_for(64, 8));
    struct matrix m;
    struct cases_gpu_act a;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    matrix_init(&m, &r, QUANT_Q5_K, 33, 2048, false);
    cases_gpu_act_init(&a, &r, QUANT_Q5_K, 5, 2048);
    float *y_dev = canaries(5 * 33), *first = NULL;
    struct cuda_matmul job = {&m.gpu, NULL, y_dev, 33};
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    OK(cuda_matmul(k.c, &job, 1, &a.act, stream));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    for (unsigned i = 0; i < 4; i++) {
        if (i < 2)
            OK(cuda_matmul(k.c, &job, 1, &a.act, stream));
        else
            OK(cudaGraphLaunch(exec, stream));
        OK(cudaStreamSynchronize(stream));
        float *y = cases_gpu_host(y_dev, sizeof(float) * 5 * 33);
        if (first)
            assert_memory_equal(first, y, sizeof(float) * 5 * 33);
        else
            first = y;
        if (first != y)
            free(y);
    }
    check_product(&m, &a, NULL, first, 33, "graph");
    free(first);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(graph));
    OK(cudaStreamDestroy(stream));
    cases_gpu_free(y_dev);
    cases_gpu_act_deinit(&a);
    matrix_deinit(&m);
    context_done(&k);
}

/* ---- the benchmark. Weights and activations are random bits (speed does not depend on them), copies of the matrix enough not to stay in L2. */
static double time_case(struct cuda_context *c, const struct cases_gpu_matmul *g, enum quant type, const void *noise, size_t noise_bytes)
{
    enum { WARM = 3, RUNS = 20, COPIES_MAX = 16 };
    size_t bytes = cuda_weight_bytes(type, g->rows, g->cols);
    uint32_t copies = (uint32_t)MIN((size_t)256 << 20, bytes * COPIES_MAX) / (uint32_t)bytes + 1, k = ROUND_UP(g->cols, 8u);
    struct cuda_weight w[COPIES_MAX + 1];
    struct cuda_act x = {cuda_act_type(type), g->n, k, cases_gpu_device(NULL, (size_t)g->n * k * 4), NULL};
    float *y = cases_gpu_device(NULL, (size_t)g->n * g->rows * 4), ms = 0;
    cudaEvent_t begin, end;
    OK(cudaEventCreate(&begin));
    OK(cudaEventCreate(&end));
    OK(cudaMemset(x.x, 0x3c, (size_t)g->n * k * 4));
    for (uint32_t i = 0; i < copies; i++) {
        w[i] = (struct cuda_weight){type, g->rows, g->cols, cases_gpu_device(NULL, bytes)};
        for (size_t at = 0; at < bytes; at += noise_bytes)
            OK(cudaMemcpy((uint8_t *)w[i].data + at, noise, MIN(noise_bytes, bytes - at), cudaMemcpyDeviceToDevice));
    }
    for (int i = 0; i < WARM + RUNS; i++) {
        if (i == WARM)
            OK(cudaEventRecord(begin, NULL));
        OK(cuda_matmul(c, &(struct cuda_matmul){&w[(uint32_t)i % copies], NULL, y, g->rows}, 1, &x, NULL));
    }
    OK(cudaEventRecord(end, NULL));
    OK(cudaEventSynchronize(end));
    OK(cudaEventElapsedTime(&ms, begin, end));
    for (uint32_t i = 0; i < copies; i++)
        cases_gpu_free((void *)w[i].data);
    cases_gpu_free(x.x);
    cases_gpu_free(y);
    OK(cudaEventDestroy(begin));
    OK(cudaEventDestroy(end));
    return ms / 1e3 / RUNS;
}
static int bench(int n_names, char **names)
{
    enum { NOISE = 16 << 20 };
    struct cudaDeviceProp p;
    struct cases_rng r = {1};
    uint32_t *noise = malloc(NOISE);
    if (!noise || cudaGetDeviceProperties(&p, 0) != cudaSuccess) {
        printf("SKIPPED: no device\n");
        return 77;
    }
    for (size_t i = 0; i < NOISE / 4; i++)
        noise[i] = cases_u32(&r);
    void *noise_dev = cases_gpu_device(noise, NOISE);
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        struct context k = context_of(deterministic, (uint32_t)p.multiProcessorCount, workspace_for(28672, 4096));
        printf("%s, %d SMs, %s%s\n", p.name, p.multiProcessorCount, cuda_context_describe(k.c), deterministic ? ", deterministic" : "");
        printf("%-6s %6s %6s %5s %10s %9s %9s\n", "type", "rows", "cols", "n", "us", "GB/s", "TFLOP/s");
        for (unsigned t = 0; t < ARRAY_LEN(all_types); t++) {
            bool wanted = n_names == 0;
            for (int i = 0; i < n_names; i++)
                wanted |= strcmp(names[i], quant_traits[all_types[t]].name) == 0;
            for (unsigned i = 0; wanted && i < cases_gpu_n_matmuls; i++) {
                const struct cases_gpu_matmul *g = &cases_gpu_matmuls[i];
                if (!g->bench || (deterministic && g->n > 64))
                    continue;
                double s = time_case(k.c, g, all_types[t], noise_dev, NOISE);
                printf("%-6s %6u %6u %5u %10.2f %9.1f %9.2f\n", quant_traits[all_types[t]].name, g->rows, g->cols, g->n, s * 1e6,
                       cases_gpu_bytes(g, all_types[t]) / s / 1e9, cases_gpu_flops(g) / s / 1e12);
            }
        }
        context_done(&k);
    }
    cases_gpu_free(noise_dev);
    free(noise);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return bench(argc - 2, argv + 2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_come_back_as_the_file_has_them),
        cmocka_unit_test(packed_bytes_are_within_four_percent_of_the_file),
        cmocka_unit_test(products_are_those_of_the_reference),
        cmocka_unit_test(without_workspace_or_with_little_too),
        cmocka_unit_test(the_deterministic_form_too),
        cmocka_unit_test(several_matrices_have_one_input),
        cmocka_unit_test(a_token_has_the_same_bits_in_any_batch),
        cmocka_unit_test(again_and_in_a_graph_the_bits_are_the_same),
    };
    return cmocka_run_group_tests_name("matrices on a GPU", tests, NULL, NULL);
}
