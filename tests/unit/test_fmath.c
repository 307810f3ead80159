/* fmath.h against libm in double precision (within 2 ulp of the true value), and its AVX2 and AVX-512 twins against it,
 * bit for bit, over many millions of patterns. A CPU without AVX-512 tests that twin through SIMDe; one without AVX2
 * and FMA tests the scalar form only. */
#include "fmath_lanes.h"

#include "base/fmath.h"
#include "tests/tools/sanitized.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

/* The distance of `got` from the exact value in units in the last place of the exact value, at least of 2^-149. */
static double ulps(float got, double exact)
{
    int e;
    frexp(exact, &e);
    return fabs((double)got - exact) / ldexp(1.0, (e < -125 ? -125 : e) - 24);
}

static void exp_is_within_2_ulp(void **state)
{
    (void)state;
    double worst = 0;
    for (int i = 0; i <= 4000000; i++) {
        float x = (float)(-87.33 + (88.72 + 87.33) * i / 4000000.0);
        double d = ulps(fm_exp(x), exp((double)x));
        worst = d > worst ? d : worst;
    }
    for (int32_t i = 0; i < 0x3f800000; i += 997) { /* small arguments, denormals too, of both signs */
        double d = ulps(fm_exp(fm_from_bits(i)), exp((double)fm_from_bits(i)));
        double m = ulps(fm_exp(-fm_from_bits(i)), exp(-(double)fm_from_bits(i)));
        worst = fmax(worst, fmax(d, m));
    }
    print_message("exp: worst %.3f ulp\n", worst);
    assert_true(worst < 2);
}

static void log_is_within_2_ulp(void **state)
{
    (void)state;
    double worst = 0;
    for (int32_t i = 1; i < 0x7f800000 - 499; i += 499) {
        double d = ulps(fm_log(fm_from_bits(i)), log((double)fm_from_bits(i)));
        worst = d > worst ? d : worst;
    }
    for (int32_t i = 0x3f800000 - 2000000; i < 0x3f800000 + 2000000; i++) { /* every float around 1 */
        double exact = log((double)fm_from_bits(i)),
               d = exact == 0 ? fm_log(fm_from_bits(i)) != 0 : ulps(fm_log(fm_from_bits(i)), exact);
        worst = d > worst ? d : worst;
    }
    print_message("log: worst %.3f ulp\n", worst);
    assert_true(worst < 2);
}

static void special_values_are_as_documented(void **state)
{
    (void)state;
    assert_true(fm_exp(0.0f) == 1.0f && fm_exp(-0.0f) == 1.0f);
    assert_true(fm_exp(-87.34f) == 0 && fm_exp(-1e30f) == 0 && fm_exp(-INFINITY) == 0);
    assert_true(fm_exp(-87.33f) > 0x1p-126f);
    assert_true(isfinite(fm_exp(88.72f)) && isinf(fm_exp(88.73f)) && isinf(fm_exp(INFINITY)));
    assert_true(isnan(fm_exp(NAN)));
    assert_true(fm_log(1.0f) == 0);
    assert_true(fm_log(0.0f) == -INFINITY && fm_log(-0.0f) == -INFINITY && fm_log(INFINITY) == INFINITY);
    assert_true(isnan(fm_log(-1.0f)) && isnan(fm_log(-INFINITY)) && isnan(fm_log(-0x1p-149f)) && isnan(fm_log(NAN)));
    assert_true(fabs(fm_log(0x1p-149f) + 149 * 0.69314718055994531) < 1e-5);
}

/* x64* (Marsaglia, Xorshift RNGs, 2003, with a multiplier): fast patterns, the same in every run. */
static uint64_t next(uint64_t *s)
{
    *s ^= *s >> 12;
    *s ^= *s << 25;
    *s ^= *s >> 27;
    return *s * 0x2545F4914F6CDD1Dull;
}

static const uint32_t specials[] = {
    0,          0x80000000, 1,          0x80000001, 0x007fffff, 0x807fffff, 0x00800000, 0x80800000, 0x3f800000,
    0xbf800000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001, 0xff800001,
    0x7fffffff, 0xffffffff, 0xc2aea8f5, 0xc2aea8f6, 0xc2aea8f7, 0x42b170a3, 0x42b170a4, 0x42b170a5, 0x3f3504f2,
    0x3f3504f3, 0x3f3504f4, 0x3fb504f2, 0x3fb504f3, 0x3fb504f4, 0x4b400000, 0xcb400000, 0x3f7fffff, 0x3f800001,
};

enum { LANES = 1 << 12 };

static void check_lanes(fmath_lanes_fn *fn, float (*scalar)(float), const uint32_t *in)
{
    static uint32_t out[LANES];
    fn((const float *)in, (float *)out, LANES);
    for (int i = 0; i < LANES; i++) {
        float x, y;
        uint32_t want;
        memcpy(&x, &in[i], 4);
        y = scalar(x);
        memcpy(&want, &y, 4);
        if (want != out[i])
            fail_msg("x = %08x: scalar %08x, vector %08x", in[i], want, out[i]);
    }
}

static float scalar_exp(float x)
{
    return fm_exp(x);
}
static float scalar_log(float x)
{
    return fm_log(x);
}

static void compare_twins(fmath_lanes_fn *vexp, fmath_lanes_fn *vlog, int rounds)
{
    static uint32_t in[LANES];
    uint64_t s = 88172645463325252ull;
    rounds /= sanitized_short() ? 40 : 1;
    for (int i = 0; i < LANES; i++)
        in[i] = specials[(size_t)i % (sizeof specials / sizeof specials[0])];
    check_lanes(vexp, scalar_exp, in);
    check_lanes(vlog, scalar_log, in);
    for (int r = 0; r < rounds; r++) {
        for (int i = 0; i < LANES; i++)
            in[i] = (uint32_t)(next(&s) >> 32);
        check_lanes(vlog, scalar_log, in);
        if (r % 2) /* most patterns are too large or too small for exp: half of the rounds stay in its range */
            for (int i = 0; i < LANES; i++) {
                float x = (float)((double)in[i] / 4294967296.0 * 180 - 90);
                memcpy(&in[i], &x, 4);
            }
        check_lanes(vexp, scalar_exp, in);
    }
}

static void the_avx2_twin_gives_the_same_bits(void **state)
{
    (void)state;
    if (!fmath_lanes_avx2_usable())
        skip();
    compare_twins(fmath_lanes_exp_avx2, fmath_lanes_log_avx2, 4000);
}

static void the_avx512_twin_gives_the_same_bits(void **state)
{
    (void)state;
    if (fmath_lanes_avx512_usable())
        compare_twins(fmath_lanes_exp_avx512, fmath_lanes_log_avx512, 4000);
    if (!fmath_lanes_avx2_usable())
        skip();
    compare_twins(fmath_lanes_exp_simde, fmath_lanes_log_simde, 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_2_ulp),
        cmocka_unit_test(log_is_within_2_ulp),
        cmocka_unit_test(special_values_are_as_documented),
        cmocka_unit_test(the_avx2_twin_gives_the_same_bits),
        cmocka_unit_test(the_avx512_twin_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
