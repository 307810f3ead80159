/* Placement: the rules of placement.h on small clusters whose best answer is plain to see, and the arithmetic of the
 * context. */
#include "coordinator/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define GB (1ull << 30)
enum { NONE = -1 };

static bool assign(const struct placement_device *d, uint32_t n, uint32_t tp, uint32_t pp, uint64_t need, uint32_t *out)
{
    uint64_t needs[16];
    for (int i = 0; i < 16; i++)
        needs[i] = need;
    return placement_assign(d, n, tp, pp, needs, out);
}
#define CLEAR(a) memset(a, 0xff, sizeof(a))

static void a_stage_stays_on_one_node(void **state)
{
    (void)state;
    /* Node 0 has one device, node 1 has two: tp 2 goes to node 1 although node 0 comes first and is larger. */
    const struct placement_device d[] = {{0, 90 * GB, false, 0}, {1, 20 * GB, false, 0}, {1, 20 * GB, false, 0}};
    uint32_t out[2];
    CLEAR(out);
    assert_true(assign(d, 3, 2, 1, 10 * GB, out));
    assert_int_equal(d[out[0]].node, 1);
    assert_int_equal(d[out[1]].node, 1);
    assert_int_not_equal(out[0], out[1]);
}

static void stages_share_a_node_when_it_holds_them_all(void **state)
{
    (void)state;
    const struct placement_device d[] = {{0, 40 * GB, false, 0}, {0, 40 * GB, false, 0}, {1, 20 * GB, false, 0},
                                         {1, 20 * GB, false, 0}, {1, 20 * GB, false, 0}, {1, 20 * GB, false, 0}};
    uint32_t out[4];
    CLEAR(out);
    assert_true(assign(d, 6, 2, 2, 10 * GB, out));
    for (int i = 0; i < 4; i++)
        assert_int_equal(d[out[i]].node, 1);
    /* With too little memory for that, a stage each. */
    CLEAR(out);
    const struct placement_device e[] = {
        {0, 40 * GB, false, 0}, {0, 40 * GB, false, 0}, {1, 20 * GB, false, 0}, {1, 20 * GB, false, 0}};
    assert_true(assign(e, 4, 2, 2, 10 * GB, out));
    assert_int_equal(e[out[0]].node, e[out[1]].node);
    assert_int_equal(e[out[2]].node, e[out[3]].node);
    assert_int_not_equal(e[out[0]].node, e[out[2]].node);
}

static void the_largest_need_gets_the_largest_device(void **state)
{
    (void)state;
    const struct placement_device d[] = {{0, 10 * GB, false, 0}, {0, 30 * GB, false, 0}};
    const uint64_t need[] = {8 * GB, 24 * GB};
    uint32_t out[2];
    CLEAR(out);
    assert_true(placement_assign(d, 2, 2, 1, need, out));
    assert_int_equal(out[0], 0);
    assert_int_equal(out[1], 1);
}

static void too_few_devices_change_nothing(void **state)
{
    (void)state;
    const struct placement_device d[] = {{0, 10 * GB, true, 0}, {0, 10 * GB, false, 0}, {1, 1 * GB, false, 0}};
    uint32_t out[2];
    CLEAR(out);
    assert_false(assign(d, 3, 2, 1, 5 * GB, out)); /* one is taken, one too small */
    assert_int_equal((int)out[0], NONE);
    assert_int_equal((int)out[1], NONE);
    assert_false(assign(NULL, 0, 1, 1, 1, out));
    /* Memory that nobody knows is taken to suffice. */
    const struct placement_device u[] = {{0, 0, false, 0}, {0, 0, false, 0}};
    assert_true(assign(u, 2, 2, 1, 5 * GB, out));
}

static void a_lost_rank_goes_back_to_its_group(void **state)
{
    (void)state;
    const struct placement_device d[] = {{0, 10 * GB, false, 0}, {0, 10 * GB, false, 0}, {1, 90 * GB, false, 0}};
    uint32_t out[2] = {0, PLACEMENT_NONE};
    assert_true(assign(d, 3, 2, 1, 5 * GB, out));
    assert_int_equal(out[0], 0);
    assert_int_equal(out[1], 1); /* beside rank 0, not on the larger node */
}

static void ranks_span_nodes_when_no_node_holds_the_stage(void **state)
{
    (void)state;
    const struct placement_device d[] = {{0, 10 * GB, false, 0}, {1, 10 * GB, false, 0}, {1, 10 * GB, false, 0}};
    uint32_t out[3];
    CLEAR(out);
    assert_true(assign(d, 3, 3, 1, 5 * GB, out));
    assert_int_equal(out[0] + out[1] + out[2], 3);
    assert_true(out[0] != out[1] && out[1] != out[2] && out[0] != out[2]);
}

static void a_replica_has_devices_of_one_type(void **state)
{
    (void)state;
    /* One large GPU, two of another type, three CPUs; types in the order in which they are wanted. */
    const struct placement_device d[] = {{0, 90 * GB, false, 0}, {0, 40 * GB, false, 1}, {1, 40 * GB, false, 1},
                                         {0, 99 * GB, false, 2}, {0, 99 * GB, false, 2}, {0, 99 * GB, false, 2}};
    uint32_t out[3];
    CLEAR(out);
    assert_true(assign(d, 6, 1, 1, 10 * GB, out));
    assert_int_equal(out[0], 0);
    CLEAR(out);
    assert_true(assign(d, 6, 2, 1, 10 * GB, out)); /* rather over two nodes than of two types */
    assert_int_equal(out[0] + out[1], 3);
    CLEAR(out);
    assert_true(assign(d, 6, 3, 1, 10 * GB, out));
    assert_true(out[0] >= 3 && out[1] >= 3 && out[2] >= 3);
    CLEAR(out);
    assert_true(assign(d, 6, 1, 2, 50 * GB, out)); /* too small a type is passed over */
    assert_true(out[0] >= 3 && out[1] >= 3);
    /* A rank that is missing comes back to the type of the others, or waits. */
    uint32_t two[] = {1, PLACEMENT_NONE}, one[] = {0, PLACEMENT_NONE};
    assert_true(assign(d, 6, 2, 1, 10 * GB, two));
    assert_int_equal(two[1], 2);
    assert_false(assign(d, 6, 2, 1, 10 * GB, one));
    assert_int_equal((int)one[1], NONE);
}

static void the_context_is_what_half_of_the_rest_holds(void **state)
{
    (void)state;
    assert_int_equal(placement_ctx_fit(10 * GB, 6 * GB, 0, GB / 16), 16 * 32); /* half of 4 GiB in blocks of 64 MiB */
    assert_int_equal(placement_ctx_fit(10 * GB, 6 * GB, 1 * GB, GB / 16), 16 * 16);
    assert_int_equal(placement_ctx_fit(1 * GB, 6 * GB, 0, GB / 16), 0);
    assert_int_equal(placement_ctx_fit(0, 6 * GB, 0, GB / 16), UINT32_MAX);
    uint32_t ctx;
    bool lowered;
    assert_int_equal(placement_ctx(0, 4096, 100000, &ctx, &lowered), ERR_OK);
    assert_true(ctx == 4096 && !lowered);
    assert_int_equal(placement_ctx(0, 4096, 3000, &ctx, &lowered), ERR_OK);
    assert_true(ctx == 2816 && lowered); /* a multiple of 256 */
    assert_int_equal(placement_ctx(2048, 4096, 3000, &ctx, &lowered), ERR_OK);
    assert_true(ctx == 2048 && !lowered);
    assert_int_equal(placement_ctx(4000, 4096, 3000, &ctx, &lowered), ERR_NO_FIT);
    assert_non_null(strstr(err_detail(), "4000"));
    assert_non_null(strstr(err_detail(), "3000"));
    assert_int_equal(placement_ctx(0, 4096, 16, &ctx, &lowered), ERR_NO_FIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stage_stays_on_one_node),
        cmocka_unit_test(stages_share_a_node_when_it_holds_them_all),
        cmocka_unit_test(the_largest_need_gets_the_largest_device),
        cmocka_unit_test(too_few_devices_change_nothing),
        cmocka_unit_test(a_lost_rank_goes_back_to_its_group),
        cmocka_unit_test(ranks_span_nodes_when_no_node_holds_the_stage),
        cmocka_unit_test(a_replica_has_devices_of_one_type),
        cmocka_unit_test(the_context_is_what_half_of_the_rest_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
