/* Reads a large anonymous mapping with every thread of a pool and takes the best of the rounds: a ceiling is what the machine can do, and
 * whatever else runs on it (other guests of the same host too) only takes away.
 *
 * Each thread sums its own contiguous part in four independent 64-byte sums, so that the loads and not the adds bound it, and asks for
 * the lines 2 KiB ahead as the decode kernels do: on two cores of a Zen 3 that gave 27 to 31 GB/s where the hardware's
 * prefetchers alone gave 18 to 28. The parts were first touched by the same threads (NUMA), in huge pages where the kernel gives them. */
#include "base/ceiling.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ROUNDS = 12, HUGE_PAGE = 2 << 20, STRIDE = 256, AHEAD = 2048 };

typedef uint64_t vec __attribute__((vector_size(64)));

struct job {
    const unsigned char *data;
    size_t n_pages; /* of HUGE_PAGE bytes */
    _Atomic uint64_t sink;
};

static void part_of(const struct job *j, unsigned ith, unsigned nth, size_t *begin, size_t *end)
{
    *begin = j->n_pages * ith / nth * HUGE_PAGE;
    *end = j->n_pages * (ith + 1) / nth * HUGE_PAGE;
}

static void touch(void *arg, unsigned ith, unsigned nth)
{
    struct job *j = arg;
    size_t begin, end;
    part_of(j, ith, nth, &begin, &end);
    memset((unsigned char *)j->data + begin, (int)ith + 1, end - begin);
}

static inline __attribute__((always_inline)) uint64_t sum_with(const unsigned char *p, const unsigned char *end)
{
    vec acc[4] = {0};
    for (; p < end; p += STRIDE)
        for (int i = 0; i < 4; i++) {
            __builtin_prefetch(p + AHEAD + 64 * i);
            acc[i] += ((const vec *)p)[i];
        }
    for (int i = 1; i < 4; i++)
        acc[0] += acc[i];
    uint64_t total = 0;
    for (int i = 0; i < 8; i++)
        total += acc[0][i];
    return total;
}

/* The same body for the widths that the machine may have. Not target_clones: its resolvers run before the sanitizers
 * do. */
static uint64_t sum_plain(const unsigned char *p, const unsigned char *end)
{
    return sum_with(p, end);
}
#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t sum_avx2(const unsigned char *p, const unsigned char *end)
{
    return sum_with(p, end);
}
__attribute__((target("avx512f"))) static uint64_t sum_avx512(const unsigned char *p, const unsigned char *end)
{
    return sum_with(p, end);
}
#endif

static uint64_t sum(const unsigned char *p, const unsigned char *end)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return sum_avx512(p, end);
    if (__builtin_cpu_supports("avx2"))
        return sum_avx2(p, end);
#endif
    return sum_plain(p, end);
}

static void read_part(void *arg, unsigned ith, unsigned nth)
{
    struct job *j = arg;
    size_t begin, end;
    part_of(j, ith, nth, &begin, &end);
    j->sink += sum(j->data + begin, j->data + end);
}

double ceiling_read_gbs(unsigned n_threads, size_t bytes)
{
    struct pool *pool = NULL;
    double gbs = 0;
    if (n_threads == 0 || bytes < (size_t)HUGE_PAGE * n_threads || bytes > SIZE_MAX / 2)
        return 0;
    struct job j = {.n_pages = bytes / HUGE_PAGE};
    size_t len = j.n_pages * HUGE_PAGE, mapped = len + HUGE_PAGE;
    unsigned char *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return 0;
    j.data = (unsigned char *)ROUND_UP((uintptr_t)base, (uintptr_t)HUGE_PAGE);
    (void)madvise((void *)j.data, len, MADV_HUGEPAGE); /* a kernel without them gives the rate of small pages */
    if (pool_create(n_threads, NULL, 0, &pool) == ERR_OK) {
        uint64_t best = UINT64_MAX;
        pool_run(pool, touch, &j);
        pool_run(pool, read_part, &j); /* clocks and prefetchers warm up */
        for (int i = 0; i < ROUNDS; i++) {
            uint64_t begin = clock_ns();
            pool_run(pool, read_part, &j);
            best = MIN(best, MAX(clock_ns() - begin, (uint64_t)1));
        }
        gbs = (double)len / (double)best;
    }
    pool_destroy(&pool);
    munmap(base, mapped);
    return gbs;
}

/* ---- dot products: 12 chains (more than latency times throughput of any core so far), each turn one product a chain, written as assembly: with intrinsics a compiler may
 * keep chains in memory. All operands are zeros: where a core's clock depends on its power, real data reach less. */

enum { CHAINS = 12, TURNS = 1 << 17 };

#if defined(__x86_64__)
#define EACH_CHAIN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define CHAIN_NAMES "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
/* Registers 0 to 11 are the chains, 14 and 15 the operands, 12 a product that is added apart. */
#define CEILING(name, isa, INSTRUCTION)                                                                                \
    __attribute__((target(isa))) static void name(void)                                                                \
    {                                                                                                                  \
        __asm__ volatile("vzeroall" : : : CHAIN_NAMES);                                                                \
        for (long t = 0; t < TURNS; t++)                                                                               \
            __asm__ volatile(EACH_CHAIN(INSTRUCTION) : : : CHAIN_NAMES);                                               \
        __asm__ volatile("vzeroupper" : : : CHAIN_NAMES);                                                              \
    }
#define INT8_VNNI(c) "vpdpbusd %%zmm14, %%zmm15, %%zmm" #c "\n\t"
#define INT8_AVX2(c) "vpmaddubsw %%ymm14, %%ymm15, %%ymm12\n\tvpaddw %%ymm12, %%ymm" #c ", %%ymm" #c "\n\t"
#define BF16_AVX512(c) "vdpbf16ps %%zmm14, %%zmm15, %%zmm" #c "\n\t"
#define FP32_AVX512(c) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #c "\n\t"
#define FP32_AVX2(c) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #c "\n\t"
CEILING(int8_vnni, "avx512f,avx512vnni", INT8_VNNI)
CEILING(int8_avx2, "avx2", INT8_AVX2)
CEILING(bf16_avx512, "avx512f,avx512bf16", BF16_AVX512)
CEILING(fp32_avx512, "avx512f", FP32_AVX512)
CEILING(fp32_avx2, "avx2,fma", FP32_AVX2)
#endif

struct dot {
    void (*run)(void);
    double ops; /* of an instruction */
};
static struct dot dot_of(enum ceiling_dot kind)
{
#if defined(__x86_64__)
    bool wide = __builtin_cpu_supports("avx512f"), narrow = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (kind == CEILING_INT8 && wide && __builtin_cpu_supports("avx512vnni"))
        return (struct dot){int8_vnni, 128};
    if (kind == CEILING_INT8 && narrow)
        return (struct dot){int8_avx2, 64};
    if (kind == CEILING_BF16 && wide && __builtin_cpu_supports("avx512bf16"))
        return (struct dot){bf16_avx512, 64};
    if (kind == CEILING_FP32 && wide)
        return (struct dot){fp32_avx512, 32};
    if (kind == CEILING_FP32 && narrow)
        return (struct dot){fp32_avx2, 16};
#endif
    (void)kind;
    return (struct dot){0};
}

static void dot_part(void *arg, unsigned ith, unsigned nth)
{
    (void)ith;
    (void)nth;
    ((struct dot *)arg)->run();
}

double ceiling_dot_gops(enum ceiling_dot kind, unsigned n_threads)
{
    struct dot d = dot_of(kind);
    struct pool *pool = NULL;
    uint64_t best = UINT64_MAX;
    if (!d.run || n_threads == 0 || pool_create(n_threads, NULL, 0, &pool) != ERR_OK)
        return 0;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t begin = clock_ns();
        pool_run(pool, dot_part, &d);
        best = MIN(best, MAX(clock_ns() - begin, (uint64_t)1));
    }
    pool_destroy(&pool);
    return d.ops * CHAINS * TURNS * n_threads / (double)best;
}
