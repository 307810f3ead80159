/* ceiling.h: sane arguments give a rate, others 0. The rate itself is a measurement and is not judged. */
#include "base/ceiling.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void a_rate_is_measured_with_any_number_of_threads(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 3; n++) {
        double gbs = ceiling_read_gbs(n, (size_t)16 << 20);
        assert_true(gbs > 0.001 && gbs < 1e6);
    }
}

static void sizes_that_cannot_be_read_give_no_rate(void **state)
{
    (void)state;
    assert_true(ceiling_read_gbs(0, (size_t)64 << 20) == 0);
    assert_true(ceiling_read_gbs(1, 1000) == 0);
    assert_true(ceiling_read_gbs(4, (size_t)4 << 20) == 0); /* fewer huge pages than threads */
    assert_true(ceiling_read_gbs(1, SIZE_MAX) == 0);
    assert_true(ceiling_read_gbs(1, SIZE_MAX / 4) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rate_is_measured_with_any_number_of_threads),
        cmocka_unit_test(sizes_that_cannot_be_read_give_no_rate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
