/* KV block tables against a model that is an array of owners. */
#include "base/rng.h"
#include "coordinator/kv_blocks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { BLOCKS = 24, SEQS = 5 };

static void a_table_lists_its_blocks_in_the_order_they_were_taken(void **state)
{
    (void)state;
    struct kv_blocks k;
    assert_int_equal(kv_blocks_init(&k, 8, 2), ERR_OK);
    uint32_t first, second, other;
    assert_true(kv_blocks_take(&k, 0, 3, &first));
    assert_true(kv_blocks_take(&k, 1, 2, &other));
    assert_true(kv_blocks_take(&k, 0, 1, &second));
    uint32_t b = k.tables[0].first;
    assert_int_equal(b, first);
    for (int i = 0; i < 3; i++)
        b = kv_blocks_next(&k, b);
    assert_int_equal(b, second);
    assert_int_equal(kv_blocks_next(&k, b), KV_BLOCKS_NONE);
    assert_int_equal(k.n_free, 2);
    assert_false(kv_blocks_take(&k, 1, 3, &other));
    assert_int_equal(k.n_free, 2);
    assert_int_equal(kv_blocks_give(&k, 0), 4);
    assert_int_equal(kv_blocks_give(&k, 0), 0);
    kv_blocks_check(&k);
    kv_blocks_deinit(&k);
}

static void positions_are_rounded_up_to_blocks(void **state)
{
    (void)state;
    const uint32_t positions[] = {0, 1, 16, 17, 32, 33, 0xffffffffu}, blocks[] = {0, 1, 1, 2, 2, 3, 0x10000000u};
    for (int i = 0; i < 7; i++)
        assert_int_equal(kv_blocks_for(positions[i]), blocks[i]);
}

static void random_takes_and_gives_agree_with_a_plain_model(void **state)
{
    (void)state;
    struct kv_blocks k;
    assert_int_equal(kv_blocks_init(&k, BLOCKS, SEQS), ERR_OK);
    uint32_t table[SEQS][BLOCKS], n[SEQS] = {0}, n_free = BLOCKS;
    for (uint32_t i = 0; i < 20000; i++) {
        uint32_t seq = (uint32_t)(rng_uniform(1, 0, i) * SEQS), want = 1 + (uint32_t)(rng_uniform(2, 0, i) * 6), first;
        if (rng_uniform(3, 0, i) < 0.3) {
            assert_int_equal(kv_blocks_give(&k, seq), n[seq]);
            n_free += n[seq];
            n[seq] = 0;
        } else {
            bool ok = kv_blocks_take(&k, seq, want, &first);
            assert_int_equal(ok, want <= n_free);
            for (uint32_t j = 0, b = first; ok && j < want; j++, b = kv_blocks_next(&k, b))
                table[seq][n[seq]++] = b;
            n_free -= ok ? want : 0;
        }
        uint32_t seen[BLOCKS] = {0};
        for (uint32_t s = 0; s < SEQS; s++) {
            uint32_t b = k.tables[s].first;
            for (uint32_t j = 0; j < n[s]; j++, b = kv_blocks_next(&k, b)) {
                assert_int_equal(b, table[s][j]);
                assert_int_equal(seen[b]++, 0);
            }
        }
        kv_blocks_check(&k);
    }
    kv_blocks_deinit(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_lists_its_blocks_in_the_order_they_were_taken),
        cmocka_unit_test(positions_are_rounded_up_to_blocks),
        cmocka_unit_test(random_takes_and_gives_agree_with_a_plain_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
