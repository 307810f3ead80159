/* queue.h: order, bound, the eventfd, and several producers (run under ThreadSanitizer too). */
#include "base/queue.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static int readable(struct queue *q)
{
    struct pollfd p = {.fd = queue_fd(q), .events = POLLIN};
    return poll(&p, 1, 0);
}

static void items_come_out_in_order_and_the_bound_holds(void **state)
{
    (void)state;
    struct queue *q;
    int items[7];
    assert_int_equal(queue_create(5, &q), ERR_OK);
    assert_null(queue_pop(q));
    assert_int_equal(readable(q), 0);
    for (int round = 0; round < 13; round++) { /* rounds that wrap the ring at every place */
        for (int i = 0; i < 5; i++)
            assert_int_equal(queue_push(q, &items[i]), ERR_OK);
        assert_int_equal(queue_push(q, &items[5]), ERR_BUSY);
        assert_int_equal(queue_len(q), 5);
        for (int i = 0; i < 5; i++) {
            assert_int_equal(readable(q), 1);
            assert_ptr_equal(queue_pop(q), &items[i]);
        }
        assert_null(queue_pop(q));
        assert_int_equal(readable(q), 0);
        for (int i = 0; i < 2; i++) { /* shift the ring */
            assert_int_equal(queue_push(q, &items[i]), ERR_OK);
            assert_ptr_equal(queue_pop(q), &items[i]);
        }
    }
    queue_destroy(&q);
    assert_null(q);
    queue_destroy(&q);
}

enum { PRODUCERS = 4, EACH = 20000 };

struct producer {
    struct queue *q;
    uintptr_t base;
};

static void *produce(void *arg)
{
    struct producer *p = arg;
    for (uintptr_t i = 1; i <= EACH;)
        if (queue_push(p->q, (void *)(p->base + i)) == ERR_OK)
            i++;
        else
            poll(NULL, 0, 0);
    return NULL;
}

static void nothing_is_lost_or_repeated_between_threads(void **state)
{
    (void)state;
    struct queue *q;
    pthread_t t[PRODUCERS];
    struct producer p[PRODUCERS];
    uintptr_t last[PRODUCERS] = {0};
    assert_int_equal(queue_create(64, &q), ERR_OK);
    for (int i = 0; i < PRODUCERS; i++) {
        p[i] = (struct producer){q, (uintptr_t)i << 24};
        assert_int_equal(pthread_create(&t[i], NULL, produce, &p[i]), 0);
    }
    for (int n = 0; n < PRODUCERS * EACH;) {
        struct pollfd pf = {.fd = queue_fd(q), .events = POLLIN};
        assert_int_equal(poll(&pf, 1, 20000), 1); /* a lost wake-up would hang here */
        void *item;
        while ((item = queue_pop(q))) {
            uintptr_t v = (uintptr_t)item;
            assert_int_equal(v & 0xFFFFFF, last[v >> 24] + 1);
            last[v >> 24]++;
            n++;
        }
    }
    for (int i = 0; i < PRODUCERS; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(queue_len(q), 0);
    assert_int_equal(readable(q), 0);
    queue_destroy(&q);
}

static void a_queue_too_large_to_exist_is_an_error(void **state)
{
    (void)state;
    struct queue *q = (void *)1;
    assert_int_equal(queue_create(SIZE_MAX / 4, &q), ERR_NOMEM);
    assert_null(q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(items_come_out_in_order_and_the_bound_holds),
        cmocka_unit_test(nothing_is_lost_or_repeated_between_threads),
        cmocka_unit_test(a_queue_too_large_to_exist_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
