/* The KV pool's addresses: every (layer, block, K or V, head, position) has bytes of its own inside the reservation, dense as the layout says. */
#include "base/check.h"
#include "worker/kv_pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_every_row_has_its_own_bytes(void **state)
{
    (void)state;
    /* Bytes of one position of 64 dimensions, from the formats: 4, 2 and 2 bytes a value; q8_0 34 bytes a block of 32; fp8 1 byte. */
    static const size_t row_bytes[] = {256, 128, 128, 68, 64};
    struct hparams hp = {.head_dim = 64, .head_dim_v = 32};
    for (enum kv_type type = KV_F32; type <= KV_FP8; type++) {
        struct kv_pool p;
        assert_int_equal(kv_pool_init(&p, &hp, 3, 2, type, 5), ERR_OK);
        assert_int_equal(p.k_row, row_bytes[type]);
        assert_int_equal(p.v_row, row_bytes[type] / 2);
        assert_int_equal(p.bytes, 2 * 5 * 3 * 16 * (row_bytes[type] + row_bytes[type] / 2));
        uint8_t *owner = calloc(p.bytes, 1);
        for (uint32_t l = 0; l < 2; l++)
            for (uint32_t b = 0; b < 5; b++)
                for (uint32_t h = 0; h < 3; h++)
                    for (uint32_t pos = 32; pos < 48; pos++)
                        for (uint32_t v = 0; v < 2; v++) {
                            uint8_t *at = v ? kv_pool_v(&p, l, b, h, pos) : kv_pool_k(&p, l, b, h, pos);
                            for (size_t i = 0; i < (v ? p.v_row : p.k_row); i++)
                                assert_int_equal(owner[at - p.map + i]++, 0);
                        }
        for (size_t i = 0; i < p.bytes; i++)
            assert_int_equal(owner[i], 1);
        assert_ptr_equal(kv_pool_k(&p, 1, 0, 0, 0), p.map + p.bytes / 2); /* layer is the outermost */
        free(owner);
        kv_pool_deinit(&p);
    }
}

static void test_what_cannot_be_is_refused(void **state)
{
    (void)state;
    struct kv_pool p;
    struct hparams odd = {.head_dim = 80, .head_dim_v = 80};
    assert_int_equal(kv_pool_init(&p, &odd, 1, 1, KV_Q8_0, 1), ERR_UNSUPPORTED);
    assert_int_equal(kv_pool_init(&p, &odd, 1 << 20, 1 << 20, KV_F32, 1 << 30), ERR_NOMEM);
    kv_pool_deinit(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_row_has_its_own_bytes),
        cmocka_unit_test(test_what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
