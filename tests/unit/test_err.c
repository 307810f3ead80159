/* err.h and check.h: the table, the thread's detail, checked arithmetic, a failed ASSERT. */
#include "base/check.h"
#include "base/err.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void every_error_has_a_name_a_status_and_a_sentence(void **state)
{
    (void)state;
    for (int e = 0; e < ERR_COUNT; e++) {
        assert_true(strlen(err_name(e)) > 1);
        assert_true(strlen(err_text(e)) > 3);
        assert_in_range(err_http_status(e), 200, 599);
    }
    assert_string_equal(err_name(ERR_NOT_FOUND), "NOT_FOUND");
    assert_int_equal(err_http_status(ERR_BUSY), 429); /* RFC 6585, section 4: Too Many Requests */
    assert_true(err_retry(ERR_BUSY));
    assert_false(err_retry(ERR_AUTH));
}

static void a_number_from_outside_the_table_is_an_internal_error(void **state)
{
    (void)state;
    assert_string_equal(err_name((enum err)ERR_COUNT), "INTERNAL");
    assert_string_equal(err_name((enum err) - 1), "INTERNAL");
}

static void detail_is_kept_cut_and_cleared(void **state)
{
    (void)state;
    assert_int_equal(err_set(ERR_IO, "%s: %d", "file", 7), ERR_IO);
    assert_string_equal(err_detail(), "file: 7");
    err_set(ERR_IO, "while loading: %s", err_detail()); /* the old detail inside the new one */
    assert_string_equal(err_detail(), "while loading: file: 7");
    char big[2000];
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = 0;
    err_set(ERR_IO, "%s", big);
    assert_int_equal(strlen(err_detail()), 511);
    for (size_t i = 0; i + 2 < sizeof big; i += 2)
        memcpy(big + i, "\xC3\xA9", 2); /* e with an acute accent */
    err_set(ERR_IO, "%s", big);
    assert_int_equal(strlen(err_detail()) % 2, 0); /* none cut in half */
    assert_true(strlen(err_detail()) >= 508);
    err_clear();
    assert_string_equal(err_detail(), "");
}

static void *set_in_thread(void *arg)
{
    assert_string_equal(err_detail(), "");
    err_set(ERR_IO, "other");
    return arg;
}

static void detail_belongs_to_the_thread(void **state)
{
    (void)state;
    pthread_t t;
    err_set(ERR_IO, "mine");
    assert_int_equal(pthread_create(&t, NULL, set_in_thread, NULL), 0);
    pthread_join(t, NULL);
    assert_string_equal(err_detail(), "mine");
}

static enum err step_that_fails(int *steps, enum err with)
{
    enum err e = ERR_OK;
    ++*steps;
    TRY_GOTO(with, fail);
    ++*steps;
fail:
    *steps += 100;
    return e;
}

static enum err passes_up(int *steps)
{
    TRY(step_that_fails(steps, ERR_OK));
    TRY(step_that_fails(steps, ERR_TIMEOUT));
    *steps = -1;
    return ERR_OK;
}

static void try_passes_the_first_failure_up(void **state)
{
    (void)state;
    int steps = 0;
    assert_int_equal(passes_up(&steps), ERR_TIMEOUT);
    assert_int_equal(steps, 203);
}

static void checked_arithmetic_refuses_what_does_not_fit(void **state)
{
    (void)state;
    uint64_t v = 42;
    assert_false(check_add(UINT64_MAX, 1, &v));
    assert_false(check_mul(1ull << 32, 1ull << 32, &v));
    assert_int_equal(v, 42);
    assert_true(check_add(UINT64_MAX - 1, 1, &v));
    assert_true(v == UINT64_MAX);
    assert_true(check_mul(0, UINT64_MAX, &v) && v == 0);
    assert_true(check_range(0, 0, 0));
    assert_true(check_range(10, 0, 10));
    assert_false(check_range(11, 0, 10));
    assert_true(check_range(3, 7, 10));
    assert_false(check_range(3, 8, 10));
    assert_false(check_range(5, UINT64_MAX, 10)); /* off + len wraps */
    assert_false(check_range(UINT64_MAX, 1, UINT64_MAX));
}

static void a_failed_assert_tells_where_and_the_state_and_aborts(void **state)
{
    (void)state;
    int fd[2];
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(fd[1], STDERR_FILENO);
        check_context("step=%d epoch=%d", 12, 3);
        ASSERT(1 + 1 == 3);
        _exit(0);
    }
    close(fd[1]);
    char text[8192];
    size_t len = 0;
    ssize_t n;
    while ((n = read(fd[0], text + len, sizeof text - 1 - len)) > 0)
        len += (size_t)n;
    text[len] = 0;
    close(fd[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(text, "test_err.c:"));
    assert_non_null(strstr(text, "1 + 1 == 3"));
    assert_non_null(strstr(text, "step=12 epoch=3"));
    char *newline = strchr(text, '\n');
    assert_non_null(newline);
    assert_non_null(strchr(newline + 1, '\n')); /* a backtrace of at least one frame */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_error_has_a_name_a_status_and_a_sentence),
        cmocka_unit_test(a_number_from_outside_the_table_is_an_internal_error),
        cmocka_unit_test(detail_is_kept_cut_and_cleared),
        cmocka_unit_test(detail_belongs_to_the_thread),
        cmocka_unit_test(try_passes_the_first_failure_up),
        cmocka_unit_test(checked_arithmetic_refuses_what_does_not_fit),
        cmocka_unit_test(a_failed_assert_tells_where_and_the_state_and_aborts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
