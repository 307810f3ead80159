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

/* ---- dot products: 12 chains (more than latency times throughput of any core so far), each turn one instruction a chain */

enum { CHAINS = 12, TURNS = 1 << 17 };

#if defined(__x86_64__)
#define TURN(type, zero, instruction)                                                                                  \
    type c[CHAINS];                                                                                                    \
    for (int i = 0; i < CHAINS; i++)                                                                                   \
        c[i] = zero;                                                                                                   \
    for (long t = 0; t < TURNS; t++) {                                                                                 \
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) c[i] = instruction;                                  \
        __asm__ volatile("" : "+x"(a), "+x"(b)); /* one loop after the other, as it stands */                          \
    }                                                                                                                  \
    for (int i = 0; i < CHAINS; i++)                                                                                   \
        __asm__ volatile("" ::"x"(c[i]))

__attribute__((target("avx512f,avx512vnni"))) static void int8_vnni(void)
{
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(1);
    TURN(__m512i, _mm512_setzero_si512(), _mm512_dpbusd_epi32(c[i], a, b));
}
__attribute__((target("avx2"))) static void int8_avx2(void)
{
    __m256i a = _mm256_set1_epi8(3), b = a; /* times the chain: a product of the two would be made once for all chains */
    TURN(__m256i, _mm256_setzero_si256(), _mm256_add_epi16(c[i], _mm256_maddubs_epi16(a, c[i])));
}
__attribute__((target("avx512f,avx512bf16"))) static void bf16_avx512(void)
{
    __m512i a = _mm512_set1_epi16(0x3f80), b = a;
    TURN(__m512, _mm512_setzero_ps(), _mm512_dpbf16_ps(c[i], (__m512bh)a, (__m512bh)b));
}
__attribute__((target("avx512f"))) static void fp32_avx512(void)
{
    __m512 a = _mm512_set1_ps(0.5f), b = a;
    TURN(__m512, _mm512_setzero_ps(), _mm512_fmadd_ps(a, b, c[i]));
}
__attribute__((target("avx2,fma"))) static void fp32_avx2(void)
{
    __m256 a = _mm256_set1_ps(0.5f), b = a;
    TURN(__m256, _mm256_setzero_ps(), _mm256_fmadd_ps(a, b, c[i]));
}
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
