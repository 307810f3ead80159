/* Speeds of the kernels on the shapes of a 1B model, with the machine's read bandwidth and int8 rate measured in the
 * same run.
 *
 *   bench_kernels [threads] [type ...]      (default: 2 threads, all types; "attn" for attention)
 *
 * Weights stream from memory: several matrices, larger than the caches together, in huge pages. Medians of several
 * runs. Asserts nothing. */
#include "base/ceiling.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/pool.h"
#include "tests/kernels/cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { RUNS = 7, POOL_BYTES = 192 << 20 };

struct job {
    const struct kernels *k;
    struct kernels_weight w;
    size_t matrix_bytes, n_matrices;
    struct kernels_act x;
    float *y;
    const uint8_t *mem;
    uint64_t cpu_ns; /* cpu_ns: CPU time of all threads inside multiply, which other processes on the machine do
                              not lengthen */
    struct cases_attn *attn;
    float *scratch[64];
};

static void *huge(size_t bytes)
{
    void *p = mmap(NULL, ROUND_UP(bytes, (size_t)2 << 20) + (2 << 20), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT(p != MAP_FAILED);
    p = (void *)ROUND_UP((uintptr_t)p, (uintptr_t)2 << 20);
    madvise(p, ROUND_UP(bytes, (size_t)2 << 20), MADV_HUGEPAGE);
    return p;
}

static void own_time(struct job *j, const struct timespec *t0)
{
    struct timespec t1;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t1);
    __atomic_fetch_add(&j->cpu_ns, (uint64_t)((t1.tv_sec - t0->tv_sec) * 1000000000l + t1.tv_nsec - t0->tv_nsec),
                       __ATOMIC_RELAXED);
}

static void multiply(void *arg, unsigned ith, unsigned nth)
{
    struct job *j = arg;
    uint32_t b, e;
    pool_part(j->w.rows, 16, ith, nth, &b, &e);
    struct kernels_weight w = j->w;
    struct timespec t0;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t0);
    for (size_t m = 0; m < j->n_matrices; m++) {
        w.data = j->mem + m * j->matrix_bytes;
        j->k->matmul(&w, &j->x, b, e, j->y, w.rows);
    }
    own_time(j, &t0);
}

static void attend(void *arg, unsigned ith, unsigned nth)
{
    struct job *j = arg;
    uint32_t b, e;
    pool_part(j->attn->n_heads, j->attn->a.group, ith, nth, &b, &e);
    struct timespec t0;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t0);
    j->k->attention(&j->attn->a, b, e, 0, j->attn->a.n_tok, j->scratch[ith]);
    own_time(j, &t0);
}

static int by_value(const void *a, const void *b)
{
    return *(const double *)a < *(const double *)b ? -1 : 1;
}
static double median_s(struct pool *p, pool_fn *fn, struct job *j)
{
    double t[RUNS];
    for (int i = 0; i < RUNS; i++) {
        uint64_t t0 = clock_ns();
        pool_run(p, fn, j);
        t[i] = (double)(clock_ns() - t0) * 1e-9;
    }
    qsort(t, RUNS, sizeof *t, by_value);
    return t[RUNS / 2];
}

static void bench_type(struct pool *p, struct job *j, enum quant type, double read_gbs)
{
    static const uint32_t tokens[] = {1, 2, 4, 8, 16, 512};
    for (unsigned s = 0; s < cases_n_shapes; s++) {
        const struct cases_shape *c = &cases_shapes[s];
        if (!c->bench)
            continue;
        struct cases_rng r = {s};
        size_t file_bytes = c->rows * quant_row_bytes(type, c->cols);
        uint8_t *src = cases_alloc(file_bytes);
        cases_weights(&r, type, c->rows, c->cols, false, src);
        j->w = (struct kernels_weight){.type = type, .rows = c->rows, .cols = c->cols};
        j->matrix_bytes = ROUND_UP(j->k->weight_bytes(type, c->rows, c->cols), (size_t)4096);
        size_t all = POOL_BYTES / j->matrix_bytes;
        uint64_t t0 = clock_ns();
        for (size_t m = 0; m < all; m++)
            j->k->weight_pack(type, c->rows, c->cols, src, 0, c->rows, (uint8_t *)j->mem + m * j->matrix_bytes);
        double pack_gbs = (double)(all * file_bytes) / (double)(clock_ns() - t0);
        uint32_t s = kernels_act_stride(c->cols);
        float *x = cases_alloc(512 * (size_t)s * sizeof *x), *d = cases_alloc(512 * (size_t)s / 32 * sizeof *d);
        int8_t *q = cases_alloc(512 * (size_t)s);
        cases_floats(&r, 512 * (size_t)s, x);
        for (uint32_t i = 0; i < 512; i++)
            j->k->quantize(x + (size_t)i * s, c->cols, q + (size_t)i * s, d + (size_t)i * s / 32);
        j->y = cases_alloc(512 * (size_t)c->rows * sizeof *j->y);
        for (unsigned n = 0; n < ARRAY_LEN(tokens); n++) {
            j->x = (struct kernels_act){.n = tokens[n], .k = c->cols, .stride = s, .f32 = x, .q = q, .d = d};
            j->n_matrices = tokens[n] > 16 ? 1 : all;
            j->cpu_ns = 0;
            double t = median_s(p, multiply, j);
            double gbs = (double)j->n_matrices * (double)file_bytes / t * 1e-9;
            double gops = 2.0 * tokens[n] * c->rows * c->cols * (double)j->n_matrices / t * 1e-9;
            double own = gops * t * RUNS / ((double)j->cpu_ns * 1e-9) * pool_n_threads(p);
            printf("%-5s %5ux%-5u n %3u  %7.2f GB/s of file (%3.0f%% of read)  %7.1f GOP/s, by CPU time %7.1f%s",
                   quant_traits[type].name, c->rows, c->cols, tokens[n], gbs, 100 * gbs / read_gbs, gops, own,
                   n ? "\n" : "");
            if (n == 0)
                printf("  (packed at %.2f GB/s a thread)\n", pack_gbs);
            fflush(stdout);
        }
        free(src);
        free(x);
        free(d);
        free(q);
        free(j->y);
    }
}

static void bench_attention(struct pool *p, struct job *j, double read_gbs)
{
    static const struct cases_attn_shape shapes[] = {
        {64, 64, 32, 4, 8191, 1, 0}, {64, 64, 32, 4, 0, 512, 0}, {128, 128, 32, 4, 8191, 1, 0}};
    static const char *const names[] = {"f32", "f16", "bf16", "q8_0", "fp8"};
    for (unsigned s = 0; s < ARRAY_LEN(shapes); s++)
        for (int type = KV_F32; type <= KV_FP8; type++) {
            struct cases_rng r = {s};
            struct cases_attn c;
            cases_attn_init(&r, j->k, &shapes[s], (enum kv_type)type, &c);
            j->attn = &c;
            j->cpu_ns = 0;
            double t = median_s(p, attend, j);
            double own = (double)j->cpu_ns * 1e-9 / RUNS / pool_n_threads(p);
            double pairs = 0;
            for (uint32_t i = 0; i < shapes[s].n_tok; i++)
                pairs += (double)shapes[s].n_heads * (shapes[s].pos0 + i + 1);
            double flop = pairs * 2 * (shapes[s].head_dim + shapes[s].head_dim_v);
            double kv = (double)c.a.block_stride * (shapes[s].pos0 + shapes[s].n_tok) / 16;
            printf("attention %-4s dim %3u heads %u/%u pos %u tokens %3u  %7.1f GFLOP/s, by CPU time %7.1f  %6.2f GB/s "
                   "of KV (%3.0f%%)\n",
                   names[type], shapes[s].head_dim, shapes[s].n_heads, c.n_kv_heads, shapes[s].pos0, shapes[s].n_tok,
                   flop / t * 1e-9, flop / own * 1e-9, kv / t * 1e-9, 100 * kv / t * 1e-9 / read_gbs);
            cases_attn_deinit(&c);
        }
}

int main(int argc, char **argv)
{
    unsigned threads = argc > 1 ? (unsigned)atoi(argv[1]) : 2;
    struct pool *p = NULL;
    ASSERT(threads > 0 && threads <= 64 && pool_create(threads, NULL, 1000, &p) == ERR_OK);
    struct job j = {.k = kernels_cpu()};
    j.mem = huge(POOL_BYTES + (1 << 20));
    memset((void *)j.mem, 1, POOL_BYTES);
    for (unsigned i = 0; i < threads; i++)
        j.scratch[i] = cases_alloc(KERNELS_ATTN_SCRATCH * sizeof(float));
    double read_gbs = ceiling_read_gbs(threads, POOL_BYTES);
    printf("%s, %u threads, read %.1f GB/s, int8 %.0f, bf16 %.0f, fp32 %.0f GOP/s\n", j.k->name, threads, read_gbs, ceiling_dot_gops(CEILING_INT8, threads),
           ceiling_dot_gops(CEILING_BF16, threads), ceiling_dot_gops(CEILING_FP32, threads));
    for (int t = 0; t < QUANT_COUNT; t++) {
        bool wanted = argc <= 2;
        for (int i = 2; i < argc; i++)
            wanted |= !strcmp(argv[i], quant_traits[t].name);
        if (wanted)
            bench_type(p, &j, (enum quant)t, read_gbs);
    }
    if (argc <= 2 || !strcmp(argv[argc - 1], "attn"))
        bench_attention(p, &j, read_gbs);
    printf("read again %.1f GB/s\n", ceiling_read_gbs(threads, POOL_BYTES));
    for (unsigned i = 0; i < threads; i++)
        free(j.scratch[i]);
    pool_destroy(&p);
    return 0;
}
