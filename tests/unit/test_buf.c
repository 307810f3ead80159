/* buf.h. What it writes as JSON is read back by jansson, which is strict. */
#include "base/buf.h"

#include <float.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void what_is_appended_stands_there_with_a_nul(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    char expected[5000] = "";
    size_t len = 0;
    for (int i = 0; i < 400; i++) {
        buf_puts(&b, "ab");
        buf_putc(&b, 'c');
        buf_printf(&b, "%d,%s", i, "x");
        buf_append(&b, NULL, 0);
        len += (size_t)sprintf(expected + len, "abc%d,x", i);
    }
    assert_false(b.failed);
    assert_int_equal(b.len, len);
    assert_string_equal(b.data, expected);
    buf_clear(&b);
    assert_string_equal(b.data, "");
    buf_printf(&b, "%0*d", 3000, 7); /* longer than the room */
    assert_int_equal(strlen(b.data), 3000);
    size_t n;
    char *taken = buf_take(&b, &n);
    assert_int_equal(n, 3000);
    assert_null(b.data);
    free(taken);
    buf_deinit(&b);
}

static void a_failure_is_remembered(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    buf_puts(&b, "x");
    assert_false(buf_reserve(&b, SIZE_MAX - 4));
    assert_true(b.failed);
    buf_puts(&b, "y");
    buf_printf(&b, "%d", 1);
    assert_string_equal(b.data, "x");
    buf_clear(&b);
    buf_puts(&b, "z");
    assert_string_equal(b.data, "z");
    buf_deinit(&b);
}

static void json_strings_read_back_as_they_were(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    /* Every code point up to U+10FFFF that is a character, a thousand in a string. */
    char text[4096];
    size_t n = 0;
    for (unsigned c = 1; c <= 0x10FFFF; c++) {
        if (c >= 0xD800 && c <= 0xDFFF)
            continue;
        unsigned char u[4];
        size_t k = 0;
        if (c < 0x80) {
            u[k++] = (unsigned char)c;
        } else if (c < 0x800) {
            u[k++] = (unsigned char)(0xC0 | c >> 6);
            u[k++] = (unsigned char)(0x80 | (c & 63));
        } else if (c < 0x10000) {
            u[k++] = (unsigned char)(0xE0 | c >> 12);
            u[k++] = (unsigned char)(0x80 | (c >> 6 & 63));
            u[k++] = (unsigned char)(0x80 | (c & 63));
        } else {
            u[k++] = (unsigned char)(0xF0 | c >> 18);
            u[k++] = (unsigned char)(0x80 | (c >> 12 & 63));
            u[k++] = (unsigned char)(0x80 | (c >> 6 & 63));
            u[k++] = (unsigned char)(0x80 | (c & 63));
        }
        memcpy(text + n, u, k);
        n += k;
        if (n > 4000 || c == 0x10FFFF) {
            buf_clear(&b);
            buf_json_str(&b, text, n);
            json_t *j = json_loadb(b.data, b.len, JSON_DECODE_ANY, NULL);
            assert_non_null(j);
            assert_int_equal(json_string_length(j), n);
            assert_memory_equal(json_string_value(j), text, n);
            json_decref(j);
            n = 0;
        }
    }
    buf_clear(&b);
    buf_json_str(&b, "a\0b\x7f\"\\\n", 7);
    assert_string_equal(b.data, "\"a\\u0000b\\u007f\\\"\\\\\\n\"");
    buf_deinit(&b);
}

static void bytes_that_are_no_utf8_become_the_replacement_character(void **state)
{
    (void)state;
    /* Ill-formed by table 3-7 of the Unicode standard: lone, overlong, surrogate, too large, cut. */
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"a\x80z", "a\uFFFDz"},
        {"\xC0\xAF", "\uFFFD\uFFFD"},
        {"\xE0\x80\xAF", "\uFFFD\uFFFD\uFFFD"},
        {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
        {"\xF8\x88\x80\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"},
        {"ok\xE2\x82", "ok\uFFFD\uFFFD"},
        {"\xC3(", "\uFFFD("},
    };
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        buf_clear(&b);
        buf_json_str(&b, cases[i].in, strlen(cases[i].in));
        json_t *j = json_loadb(b.data, b.len, JSON_DECODE_ANY, NULL);
        assert_non_null(j);
        assert_string_equal(json_string_value(j), cases[i].out);
        json_decref(j);
    }
    srand(3);
    for (int i = 0; i < 20000; i++) { /* whatever the bytes, jansson must take it */
        char junk[24];
        size_t n = (size_t)(rand() % 24);
        for (size_t k = 0; k < n; k++)
            junk[k] = (char)(rand() % 3 ? 0x80 + rand() % 128 : rand() % 256);
        buf_clear(&b);
        buf_json_str(&b, junk, n);
        json_t *j = json_loadb(b.data, b.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_non_null(j);
        json_decref(j);
    }
    buf_deinit(&b);
}

static void doubles_read_back_equal_and_short(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *text;
    } cases[] = {
        {0.1, "0.1"},
        {1, "1"},
        {-2.5, "-2.5"},
        {1e21, "1e+21"},
        {5e-324, "5e-324"},
        {0, "0"},
        {1.0 / 3, "0.3333333333333333"},
        {NAN, "null"},
        {INFINITY, "null"},
        {-INFINITY, "null"},
        {1e300, "1e+300"},
        {0.30000000000000004, "0.30000000000000004"},
    };
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        buf_clear(&b);
        buf_json_double(&b, cases[i].v);
        assert_string_equal(b.data, cases[i].text);
    }
    srand(5);
    for (int i = 0; i < 100000; i++) {
        uint64_t bits = (uint64_t)rand() << 42 ^ (uint64_t)rand() << 21 ^ (uint64_t)rand();
        double v;
        memcpy(&v, &bits, sizeof v);
        if (!isfinite(v))
            continue;
        buf_clear(&b);
        buf_json_double(&b, v);
        double back = strtod(b.data, NULL);
        assert_memory_equal(&back, &v, sizeof v);
    }
    buf_deinit(&b);
}

static void files_are_read_whole_up_to_the_limit(void **state)
{
    (void)state;
    char path[] = "/tmp/racklm-test-XXXXXX", data[10000];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)(i * 7);
    assert_int_equal(write(fd, data, sizeof data), sizeof data);
    close(fd);
    struct buf b;
    buf_init(&b);
    assert_int_equal(buf_read_file(&b, path, sizeof data), ERR_OK);
    assert_int_equal(b.len, sizeof data);
    assert_memory_equal(b.data, data, sizeof data);
    buf_clear(&b);
    assert_int_equal(buf_read_file(&b, path, sizeof data - 1), ERR_TOO_BIG);
    assert_non_null(strstr(err_detail(), path));
    buf_clear(&b);
    assert_int_equal(buf_read_file(&b, path, 0), ERR_TOO_BIG);
    unlink(path);
    assert_int_equal(buf_read_file(&b, path, 10), ERR_NOT_FOUND);
    assert_int_equal(buf_read_file(&b, "/tmp", 10), ERR_IO);
    buf_clear(&b);
    assert_int_equal(buf_read_file(&b, "/dev/null", 10), ERR_OK);
    assert_int_equal(b.len, 0);
    buf_clear(&b);
    assert_int_equal(buf_read_file(&b, "/proc/self/status", 1 << 20), ERR_OK); /* no size is known beforehand */
    assert_non_null(strstr(b.data, "test_buf"));
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_appended_stands_there_with_a_nul),
        cmocka_unit_test(a_failure_is_remembered),
        cmocka_unit_test(json_strings_read_back_as_they_were),
        cmocka_unit_test(bytes_that_are_no_utf8_become_the_replacement_character),
        cmocka_unit_test(doubles_read_back_equal_and_short),
        cmocka_unit_test(files_are_read_whole_up_to_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
