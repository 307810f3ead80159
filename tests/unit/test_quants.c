/* Block sizes and numbers, compared with the table of the PyPI package `gguf` (gguf.constants.GGML_QUANT_SIZES, 0.19):
 * name, number, elements, bytes. */
#include "base/check.h"
#include "model/quants.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static const struct {
    const char *name;
    uint32_t id, elems, bytes;
} published[] = {
    {"F32", 0, 1, 4},       {"F16", 1, 1, 2},       {"BF16", 30, 1, 2},     {"Q4_0", 2, 32, 18},
    {"Q4_1", 3, 32, 20},    {"Q5_0", 6, 32, 22},    {"Q5_1", 7, 32, 24},    {"Q8_0", 8, 32, 34},
    {"Q2_K", 10, 256, 84},  {"Q3_K", 11, 256, 110}, {"Q4_K", 12, 256, 144}, {"Q5_K", 13, 256, 176},
    {"Q6_K", 14, 256, 210},
};

static void every_type_has_the_published_number_and_size(void **state)
{
    (void)state;
    assert_int_equal(ARRAY_LEN(published), QUANT_COUNT);
    for (unsigned i = 0; i < ARRAY_LEN(published); i++) {
        enum quant q;
        assert_true(quant_from_gguf(published[i].id, &q));
        assert_string_equal(quant_traits[q].name, published[i].name);
        assert_int_equal(quant_traits[q].block_elems, published[i].elems);
        assert_int_equal(quant_traits[q].block_bytes, published[i].bytes);
        assert_int_equal(quant_row_bytes(q, 512), 512 / published[i].elems * published[i].bytes);
    }
}

static void other_numbers_are_refused(void **state)
{
    (void)state;
    enum quant q;
    static const uint32_t others[] = {4, 5, 9, 15, 16, 23, 24, 28, 31, 39, 1000, UINT32_MAX};
    for (unsigned i = 0; i < ARRAY_LEN(others); i++)
        assert_false(quant_from_gguf(others[i], &q));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_has_the_published_number_and_size),
        cmocka_unit_test(other_numbers_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
