/* pool.h: every thread runs, barriers join them, with and without spinning. Plain (not atomic) shared data, so that a
 * missing edge shows under ThreadSanitizer. */
#include "base/check.h"
#include "base/pool.h"
#include "tests/tools/sanitized.h"

#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { THREADS_MAX = 8 };

struct job {
    struct pool *pool;
    unsigned n_calls[THREADS_MAX];
    uint32_t cells[THREADS_MAX * 16], sums[THREADS_MAX];
    uint32_t run, n_rounds;
};

/* Each thread writes its cells, all meet, each reads everybody's. */
static void exchange(void *arg, unsigned ith, unsigned nth)
{
    struct job *j = arg;
    j->n_calls[ith]++;
    for (uint32_t round = 0; round < j->n_rounds; round++) {
        for (unsigned i = 0; i < 16; i++)
            j->cells[ith * 16 + i] = j->run * 1000 + round + ith;
        pool_barrier(j->pool);
        uint32_t sum = 0;
        for (unsigned i = 0; i < nth; i++)
            sum += j->cells[i * 16 + round % 16];
        j->sums[ith] = sum;
        pool_barrier(j->pool);
        uint32_t expected = nth * (j->run * 1000 + round) + nth * (nth - 1) / 2;
        for (unsigned i = 0; i < nth; i++)
            ASSERT(j->sums[i] == expected);
        pool_barrier(j->pool);
    }
}

static void threads_meet_at_barriers(void **state)
{
    (void)state;
    static const unsigned spins[] = {0, 50, 2000};
    for (unsigned nth = 1; nth <= THREADS_MAX; nth++) {
        for (size_t s = 0; s < ARRAY_LEN(spins) && (nth < 4 || nth == THREADS_MAX || !sanitized_short()); s++) {
            struct job j = {.n_rounds = long_form() ? 30 : 8};
            assert_int_equal(pool_create(nth, NULL, spins[s], &j.pool), ERR_OK);
            assert_int_equal(pool_n_threads(j.pool), nth);
            for (j.run = 0; j.run < 5; j.run++)
                pool_run(j.pool, exchange, &j);
            for (unsigned i = 0; i < THREADS_MAX; i++)
                assert_int_equal(j.n_calls[i], i < nth ? 5 : 0);
            pool_destroy(&j.pool);
            assert_null(j.pool);
        }
    }
}

static void count(void *arg, unsigned ith, unsigned nth)
{
    (void)nth;
    ((uint32_t *)arg)[ith * 16]++;
}

static void many_short_runs_all_end(void **state)
{
    (void)state;
    for (unsigned spin_us = 0; spin_us <= 20; spin_us += 20) {
        struct pool *p;
        uint32_t counts[4 * 16] = {0};
        assert_int_equal(pool_create(4, NULL, spin_us, &p), ERR_OK);
        for (int i = 0; i < 3000; i++) {
            pool_run(p, count, counts);
            assert_int_equal(counts[0], i + 1); /* the caller reads what the others wrote */
            assert_int_equal(counts[16], i + 1);
            assert_int_equal(counts[32], i + 1);
            assert_int_equal(counts[48], i + 1);
        }
        pool_destroy(&p);
    }
}

struct seen {
    int cpu[THREADS_MAX], blocked[THREADS_MAX];
};

static void look(void *arg, unsigned ith, unsigned nth)
{
    struct seen *s = arg;
    cpu_set_t set;
    sigset_t mask;
    (void)nth;
    sched_getaffinity(0, sizeof set, &set);
    s->cpu[ith] = CPU_COUNT(&set) == 1 ? sched_getcpu() : -1;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    s->blocked[ith] = sigismember(&mask, SIGTERM);
}

static void threads_are_pinned_and_block_signals(void **state)
{
    (void)state;
    cpu_set_t before;
    sched_getaffinity(0, sizeof before, &before);
    int cpus[3], first = 0, last = 0;
    for (int c = CPU_SETSIZE - 1; c >= 0; c--)
        if (CPU_ISSET(c, &before))
            first = c;
    for (int c = 0; c < CPU_SETSIZE; c++)
        if (CPU_ISSET(c, &before))
            last = c;
    cpus[0] = first;
    cpus[1] = last;
    cpus[2] = first;
    struct pool *p;
    struct seen s = {0};
    assert_int_equal(pool_create(3, cpus, 0, &p), ERR_OK);
    pool_run(p, look, &s);
    for (int i = 0; i < 3; i++)
        assert_int_equal(s.cpu[i], cpus[i]);
    assert_int_equal(s.blocked[0], 0);
    assert_int_equal(s.blocked[1], 1);
    pool_destroy(&p);
    sched_setaffinity(0, sizeof before, &before);

    int bad[2] = {first, CPU_SETSIZE + 5};
    assert_int_equal(pool_create(2, bad, 0, &p), ERR_INVALID);
    assert_null(p);
    assert_non_null(strstr(err_detail(), "cpu"));
    pool_destroy(&p);
    sched_setaffinity(0, sizeof before, &before);
}

static void parts_cover_everything_once_at_unit_boundaries(void **state)
{
    (void)state;
    static const uint32_t ns[] = {0, 1, 7, 32, 33, 1000, 4096, UINT32_MAX};
    static const uint32_t units[] = {1, 8, 32, 512};
    for (size_t a = 0; a < ARRAY_LEN(ns); a++)
        for (size_t u = 0; u < ARRAY_LEN(units); u++)
            for (unsigned nth = 1; nth <= 17; nth++) {
                uint32_t at = 0, least = UINT32_MAX, most = 0;
                for (unsigned i = 0; i < nth; i++) {
                    uint32_t b, e;
                    pool_part(ns[a], units[u], i, nth, &b, &e);
                    assert_int_equal(b, at);
                    assert_true(e >= b);
                    assert_true(e == ns[a] || e % units[u] == 0);
                    at = e;
                    uint32_t n_units = (uint32_t)(((uint64_t)(e - b) + units[u] - 1) / units[u]);
                    least = MIN(least, n_units);
                    most = MAX(most, n_units);
                }
                assert_int_equal(at, ns[a]);
                assert_true(most - least <= 1);
            }
}

/* Every item is taken once, in pieces of the asked size but for the last of a stretch, whoever is slow. */
struct sharing {
    struct pool_share share[THREADS_MAX];
    uint32_t n, piece, taken[5000], n_small[THREADS_MAX], stall;
};
static void take_all(void *arg, unsigned ith, unsigned nth)
{
    struct sharing *s = arg;
    uint32_t b, e;
    while (pool_share_take(s->share, ith, nth, s->piece, &b, &e)) {
        ASSERT(b < e && e <= s->n && e - b <= s->piece);
        s->n_small[ith] += e - b < s->piece;
        for (uint32_t i = b; i < e; i++)
            s->taken[i]++; /* plain: nobody else may have it */
        if (ith == s->stall)
            sched_yield();
    }
}

static void shares_are_taken_once_and_by_those_who_are_free(void **state)
{
    (void)state;
    static const uint32_t ns[] = {0, 1, 7, 64, 999, 5000}, pieces[] = {1, 2, 7, 64};
    struct pool *p;
    for (unsigned nth = 1; nth <= THREADS_MAX; nth++) {
        assert_int_equal(pool_create(nth, NULL, 0, &p), ERR_OK);
        for (size_t a = 0; a < ARRAY_LEN(ns); a++)
            for (size_t b = 0; b < ARRAY_LEN(pieces); b++) {
                static struct sharing s;
                memset(&s, 0, sizeof(s));
                s.n = ns[a];
                s.piece = pieces[b];
                s.stall = nth - 1;
                pool_share_set(s.share, nth, s.n, 1);
                pool_run(p, take_all, &s);
                uint32_t small = 0;
                for (uint32_t i = 0; i < ARRAY_LEN(s.taken); i++)
                    assert_int_equal(s.taken[i], i < s.n);
                for (unsigned i = 0; i < nth; i++)
                    small += s.n_small[i];
                assert_true(small <= nth);
            }
        pool_destroy(&p);
    }
    /* Thread 0 alone, the others never come: its own stretch in order, then the ends of whoever has most left. */
    static const uint32_t expected[][2] = {{0, 4}, {4, 8}, {8, 10}, {16, 20}, {26, 30}, {12, 16}, {22, 26}, {10, 12}, {20, 22}};
    struct pool_share share[3];
    uint32_t b, e;
    pool_share_set(share, 3, 30, 2);
    for (size_t i = 0; i < ARRAY_LEN(expected); i++) {
        assert_true(pool_share_take(share, 0, 3, 4, &b, &e));
        assert_int_equal(b, expected[i][0]);
        assert_int_equal(e, expected[i][1]);
    }
    assert_false(pool_share_take(share, 0, 3, 4, &b, &e));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_meet_at_barriers),
        cmocka_unit_test(many_short_runs_all_end),
        cmocka_unit_test(threads_are_pinned_and_block_signals),
        cmocka_unit_test(parts_cover_everything_once_at_unit_boundaries),
        cmocka_unit_test(shares_are_taken_once_and_by_those_who_are_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
