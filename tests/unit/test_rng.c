/* rng.h. The Philox vectors are those published with the authors' own library Random123 (kat_vectors, philox 4x32 10).
 */
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void philox_gives_the_published_vectors(void **state)
{
    (void)state;
    static const struct {
        uint32_t ctr[4], key[2], out[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t out[4];
        rng_philox(cases[i].ctr, cases[i].key, out);
        assert_memory_equal(out, cases[i].out, sizeof out);
    }
}

/* Chi-square against 256 equal cells; the 1e-6 quantiles of the distribution with 255 degrees of freedom are 156 and
 * 376 (Wilson-Hilferty). Deterministic: it passes always or never. */
static void uniform_over(uint64_t seed, int what)
{
    enum { CELLS = 256, N = 1 << 18 };
    static unsigned count[CELLS];
    memset(count, 0, sizeof count);
    for (uint32_t i = 0; i < N; i++) {
        double u = what == 0   ? rng_uniform(seed, 0, i)
                   : what == 1 ? rng_uniform(seed, i, 0)
                               : rng_uniform(seed + i, 1, 5);
        assert_true(u >= 0 && u < 1);
        count[(int)(u * CELLS)]++;
    }
    double chi2 = 0, want = (double)N / CELLS;
    for (int i = 0; i < CELLS; i++)
        chi2 += (count[i] - want) * (count[i] - want) / want;
    assert_true(chi2 > 156 && chi2 < 376);
}

static void draws_are_uniform_over_position_choice_and_seed(void **state)
{
    (void)state;
    for (int what = 0; what < 3; what++) {
        uniform_over(0, what);
        uniform_over(0x123456789abcdefull, what);
    }
}

static void a_draw_depends_on_each_argument_and_on_nothing_else(void **state)
{
    (void)state;
    double u = rng_uniform(1, 2, 3);
    rng_uniform(9, 9, 9);
    assert_true(rng_uniform(1, 2, 3) == u);
    assert_true(rng_uniform(2, 2, 3) != u);
    assert_true(rng_uniform(1 + (1ull << 32), 2, 3) != u);
    assert_true(rng_uniform(1, 3, 3) != u);
    assert_true(rng_uniform(1, 2, 4) != u);
    assert_true(rng_uniform(1, 3, 2) != u);
    /* The first vector above: its two leading words, 53 bits of them. */
    assert_true(rng_uniform(0, 0, 0) == ldexp((double)(0x6627e8d5e169c58dull >> 11), -53));
}

static void the_system_gives_bytes(void **state)
{
    (void)state;
    unsigned char a[1000] = {0}, b[1000] = {0};
    rng_system(a, sizeof a);
    rng_system(b, sizeof b);
    assert_memory_not_equal(a, b, sizeof a);
    assert_memory_not_equal(a + 900, (unsigned char[100]){0}, 100);
    rng_system(a, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_vectors),
        cmocka_unit_test(draws_are_uniform_over_position_choice_and_seed),
        cmocka_unit_test(a_draw_depends_on_each_argument_and_on_nothing_else),
        cmocka_unit_test(the_system_gives_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
