/* arena.h: alignment, zeroing, limits, and that a steady state takes nothing from the system. */
#include "base/arena.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void objects_are_zeroed_aligned_and_apart(void **state)
{
    (void)state;
    struct arena a;
    unsigned char *p[2000];
    size_t n[2000];
    arena_init(&a, 0);
    srand(7);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 2000; i++) {
            n[i] = (size_t)(rand() % (i % 100 == 0 ? 50000 : 200));
            p[i] = arena_alloc(&a, n[i]);
            assert_non_null(p[i]);
            assert_int_equal((uintptr_t)p[i] % 16, 0);
            for (size_t k = 0; k < n[i]; k++)
                assert_int_equal(p[i][k], 0);
            memset(p[i], i % 255 + 1, n[i]);
        }
        for (int i = 0; i < 2000; i++) /* nothing overlapped */
            for (size_t k = 0; k < n[i]; k++)
                assert_int_equal(p[i][k], i % 255 + 1);
        arena_reset(&a);
    }
    arena_deinit(&a);
    assert_null(a.head);
}

static void a_steady_state_takes_nothing_from_the_system(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 0);
    size_t total = 0;
    void *head = NULL;
    for (int step = 0; step < 50; step++) {
        for (int i = 0; i < 300; i++)
            assert_non_null(arena_alloc(&a, 100));
        if (step >= 5) {
            assert_ptr_equal(a.head, head);
            assert_int_equal(a.total, total);
        }
        arena_reset(&a);
        head = a.head;
        total = a.total;
    }
    arena_deinit(&a);
}

static void the_limit_holds_and_can_be_used_up(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 100000);
    size_t got = 0;
    while (arena_alloc(&a, 1000))
        got += 1000;
    assert_true(a.total <= 100000);
    assert_true(got >= 80000);
    assert_null(arena_alloc(&a, 90000));
    arena_reset(&a);
    assert_non_null(arena_alloc(&a, 1000)); /* still of use after the failure */
    arena_deinit(&a);
}

static void sizes_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 1 << 20);
    assert_null(arena_alloc(&a, SIZE_MAX));
    assert_null(arena_alloc(&a, SIZE_MAX - 15));
    assert_null(arena_alloc(&a, SIZE_MAX / 2));
    assert_null(arena_array(&a, SIZE_MAX / 4, 8));
    assert_null(arena_array(&a, (size_t)1 << 33, (size_t)1 << 33));
    assert_null(arena_strndup(&a, "x", SIZE_MAX));
    assert_non_null(arena_alloc(&a, 0));
    assert_non_null(arena_array(&a, 0, 8));
    arena_deinit(&a);
}

static void strings_are_copied_with_their_end(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 0);
    assert_string_equal(arena_strdup(&a, "hello"), "hello");
    assert_string_equal(arena_strdup(&a, ""), "");
    assert_string_equal(arena_strndup(&a, "hello", 2), "he");
    assert_string_equal(arena_strndup(&a, NULL, 0), "");
    arena_deinit(&a);
    arena_deinit(&a); /* twice does no harm */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(objects_are_zeroed_aligned_and_apart),
        cmocka_unit_test(a_steady_state_takes_nothing_from_the_system),
        cmocka_unit_test(the_limit_holds_and_can_be_used_up),
        cmocka_unit_test(sizes_that_do_not_fit_are_refused),
        cmocka_unit_test(strings_are_copied_with_their_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
