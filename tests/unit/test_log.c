/* log.h: the text form, the JSON form (read back by jansson), that no value can forge a pair or a line, and one write a
 * line from several threads. Lines are captured through a pipe in place of standard error. */
#include "base/log.h"

#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int saved_stderr, pipe_fd[2];
static char line[1 << 16];

static int capture(void **state)
{
    (void)state;
    saved_stderr = dup(STDERR_FILENO);
    if (pipe2(pipe_fd, O_CLOEXEC) || fcntl(pipe_fd[0], F_SETFL, O_NONBLOCK) < 0)
        return -1;
    fcntl(pipe_fd[1], F_SETPIPE_SZ, 1 << 20);
    dup2(pipe_fd[1], STDERR_FILENO);
    return 0;
}

static int release(void **state)
{
    (void)state;
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    close(pipe_fd[0]);
    close(pipe_fd[1]);
    return 0;
}

/* What was logged since the last call. */
static char *logged(void)
{
    size_t len = 0;
    ssize_t n;
    while ((n = read(pipe_fd[0], line + len, sizeof line - 1 - len)) > 0)
        len += (size_t)n;
    line[len] = 0;
    return line;
}

static json_t *logged_json(void)
{
    json_error_t e;
    json_t *j = json_loads(logged(), JSON_REJECT_DUPLICATES, &e);
    if (!j)
        fail_msg("%s in %s", e.text, line);
    return j;
}

static const char *member(json_t *j, const char *key)
{
    return json_string_value(json_object_get(j, key));
}

static void text_has_time_level_process_subsystem_event_and_pairs(void **state)
{
    (void)state;
    log_init("worker[0]", LOG_INFO, LOG_TEXT);
    LOG(INFO, ENGINE, "step ready", "step=%u us=%llu share=%.2f file=\"%s\"", 7u, 1234567890123ull, 0.5, "a b.gguf");
    char *s = logged();
    /* 2026-11-21T00:00:00.000Z */
    static const char shape[] = "dddd-dd-ddTdd:dd:dd.dddZ";
    for (size_t i = 0; i < sizeof shape - 1; i++)
        assert_true(shape[i] == 'd' ? s[i] >= '0' && s[i] <= '9' : s[i] == shape[i]);
    assert_string_equal(s + 24,
                        " INFO worker[0] engine: step ready step=7 us=1234567890123 share=0.50 file=\"a b.gguf\"\n");
}

static void levels_below_the_set_one_are_silent(void **state)
{
    (void)state;
    log_init("p", LOG_WARN, LOG_TEXT);
    LOG(INFO, BASE, "no", "a=1");
    LOG(DEBUG, BASE, "no", "a=1");
    assert_string_equal(logged(), "");
    LOG(ERROR, BASE, "yes", "a=1");
    assert_non_null(strstr(logged(), " ERROR p base: yes a=1\n"));
    log_set_level(LOG_DEBUG);
    LOG(DEBUG, BASE, "yes", "%s", "");
    assert_non_null(strstr(logged(), " DEBUG p base: yes"));
    enum log_level l;
    assert_true(log_level_parse("warn", &l) && l == LOG_WARN);
    assert_false(log_level_parse("WARNING", &l));
}

static void json_has_the_pairs_as_members(void **state)
{
    (void)state;
    log_init("coordinator", LOG_INFO, LOG_JSON);
    LOG(WARN, CLUSTER, "worker lost",
        "rank=%d share=%g ok=%s name=\"%s\" id=%s size=%zu neg=%d hex=0x%x none=%s pct=%d%%", 3, 1e-7, "true", "node 1",
        "w-7", (size_t)12345678901, -5, 255u, "", 50);
    json_t *j = logged_json();
    assert_string_equal(member(j, "level"), "warn");
    assert_string_equal(member(j, "process"), "coordinator");
    assert_string_equal(member(j, "subsystem"), "cluster");
    assert_string_equal(member(j, "event"), "worker lost");
    assert_int_equal(strlen(member(j, "ts")), 24);
    assert_int_equal(json_integer_value(json_object_get(j, "rank")), 3);
    assert_true(json_real_value(json_object_get(j, "share")) == 1e-7);
    assert_true(json_is_true(json_object_get(j, "ok")));
    assert_string_equal(member(j, "name"), "node 1");
    assert_string_equal(member(j, "id"), "w-7");
    assert_int_equal(json_integer_value(json_object_get(j, "size")), 12345678901);
    assert_int_equal(json_integer_value(json_object_get(j, "neg")), -5);
    assert_string_equal(member(j, "hex"), "0xff");
    assert_string_equal(member(j, "none"), "");
    assert_string_equal(member(j, "pct"), "50%");
    assert_int_equal(json_object_size(j), 15);
    json_decref(j);
}

/* The value comes back exactly in JSON, and no line nor pair can be forged from inside it. */
static void values_cannot_forge_lines_or_pairs(void **state)
{
    (void)state;
    static const char *const evil[] = {
        "x\" admin=1 y=\"",
        "a\nb",
        "\\",
        "\\\"",
        "a\tb c",
        "=",
        "\" \"",
        "tab\x01\x1b[31m",
        "",
        " ",
        "caf\xC3\xA9",
        "1",
        "true",
        "a=b c=d",
        "\"quoted\"",
        "ends with \\",
    };
    for (int form = 0; form < 2; form++) {
        for (size_t i = 0; i < sizeof evil / sizeof evil[0]; i++) {
            log_init("p", LOG_INFO, LOG_JSON);
            if (form == 0)
                LOG(INFO, FRONT, "request", "path=\"%s\" n=%d", evil[i], 1);
            else
                LOG(INFO, FRONT, "request", "path=%s n=%d", evil[i], 1);
            json_t *j = logged_json();
            assert_int_equal(json_object_size(j), 7);
            json_t *path = json_object_get(j, "path");
            if (json_is_string(path))
                assert_string_equal(json_string_value(path), evil[i]);
            else /* a bare 1 or true */
                assert_true(form == 1 || strcmp(evil[i], "1") == 0 || strcmp(evil[i], "true") == 0);
            json_decref(j);

            log_init("p", LOG_INFO, LOG_TEXT);
            LOG(INFO, FRONT, "request", "path=%s n=%d", evil[i], 1);
            char *s = logged();
            assert_ptr_equal(strchr(s, '\n'), s + strlen(s) - 1);
            for (char *c = s; c[1]; c++)
                assert_true((unsigned char)*c >= 0x20 && *c != 0x7F);
        }
    }
    log_init("p", LOG_INFO, LOG_JSON);
    const char *volatile nothing = NULL; /* known to be NULL, the compiler would object */
    LOG(INFO, FRONT, "event \"quoted\"\n", "bad=\"%s\" cut=\"%.3s\" ts=%d level=%d c=%c null=%s", "\xff\xc3(", "abcdef",
        1, 2, '"', nothing);
    json_t *j = logged_json();
    assert_string_equal(member(j, "event"), "event \"quoted\"\n");
    assert_string_equal(member(j, "bad"), "\uFFFD\uFFFD(");
    assert_string_equal(member(j, "cut"), "abc");
    assert_int_equal(json_integer_value(json_object_get(j, "ts_")), 1);
    assert_string_equal(member(j, "null"), "(null)");
    json_decref(j);
}

static void numbers_with_flags_widths_and_lengths_are_kept(void **state)
{
    (void)state;
    log_init("p", LOG_INFO, LOG_TEXT);
    LOG(INFO, BASE, "n", "a=%03d b=%-4ux c=%lu d=%lld e=%hhu f=%+.3e g=%*d h=%.*s i=%zd j=%jd k=%p l=%lx", 7, 8u, 9ul,
        -10ll, (unsigned char)11, 1.5, 4, 12, 2, "xyz", (ssize_t)-1, (intmax_t)5, (void *)0x10, 0xABCul);
    assert_non_null(
        strstr(logged(), " n a=007 b=8   x c=9 d=-10 e=11 f=+1.500e+00 g=  12 h=xy i=-1 j=5 k=0x10 l=abc\n"));
}

static void long_lines_are_cut_and_stay_well_formed(void **state)
{
    (void)state;
    char big[9000];
    memset(big, '"', sizeof big); /* each becomes two bytes, so a cut could fall between them */
    big[sizeof big - 1] = 0;
    for (int shift = 0; shift < 3; shift++) {
        log_init("p", LOG_INFO, LOG_JSON);
        LOG(INFO, BASE, "big", "%sa=1 v=\"%s\" after=2", shift == 0 ? "" : shift == 1 ? "x" : "xy", big);
        json_t *j = logged_json();
        assert_true(strlen(line) <= 4096);
        assert_null(json_object_get(j, "after"));
        json_decref(j);
        log_init("p", LOG_INFO, LOG_TEXT);
        LOG(INFO, BASE, "big", "a=1 v=\"%s\"", big);
        logged();
        assert_true(strlen(line) <= 4096 && line[strlen(line) - 1] == '\n');
    }
    log_init("p", LOG_INFO, LOG_JSON);
    LOG(INFO, BASE, big, "a=%d", 1);
    json_decref(logged_json());
}

enum { THREADS = 4, LINES = 200 };

static void *log_many(void *arg)
{
    char value[100];
    memset(value, 'a' + *(int *)arg, 99);
    value[99] = 0;
    for (int i = 0; i < LINES; i++)
        LOG(INFO, BASE, "thread", "v=%s", value);
    return NULL;
}

static void lines_of_threads_do_not_mix(void **state)
{
    (void)state;
    pthread_t t[THREADS];
    int id[THREADS], n = 0;
    log_init("p", LOG_INFO, LOG_TEXT);
    static char all[THREADS * LINES * 200];
    for (int i = 0; i < THREADS; i++) {
        id[i] = i;
        assert_int_equal(pthread_create(&t[i], NULL, log_many, &id[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    size_t len = 0;
    ssize_t got;
    while ((got = read(pipe_fd[0], all + len, sizeof all - 1 - len)) > 0)
        len += (size_t)got;
    for (char *s = all, *end; *s; s = end + 1, n++) {
        end = strchr(s, '\n');
        assert_non_null(end);
        char *v = strstr(s, " thread v=");
        assert_true(v && v < end);
        v += 10;
        assert_int_equal(end - v, 99);
        for (char *c = v; c < end; c++)
            assert_int_equal(*c, *v);
    }
    assert_int_equal(n, THREADS * LINES);
}

int main(void)
{
#define CAPTURED(f) cmocka_unit_test_setup_teardown(f, capture, release)
    const struct CMUnitTest tests[] = {
        CAPTURED(text_has_time_level_process_subsystem_event_and_pairs),
        CAPTURED(levels_below_the_set_one_are_silent),
        CAPTURED(json_has_the_pairs_as_members),
        CAPTURED(values_cannot_forge_lines_or_pairs),
        CAPTURED(numbers_with_flags_widths_and_lengths_are_kept),
        CAPTURED(long_lines_are_cut_and_stay_well_formed),
        CAPTURED(lines_of_threads_do_not_mix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
