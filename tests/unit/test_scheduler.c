/* The scheduler's policy, one rule a test; that no token is ever lost is the simulator's part (tests/sim). Workers are
 * not played here: a sample is whatever the test says. */
#include "coordinator/scheduler.h"
#include "proto/msg.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TOKEN = 5, STOP = 9, BIG = 4096 };

static struct scheduler_config config(uint32_t max_seqs, uint32_t pp)
{
    return (struct scheduler_config){.max_seqs = max_seqs,
                                     .queue_max = 4,
                                     .pp = pp,
                                     .max_step_tokens = 512,
                                     .prefill_chunk = 64,
                                     .step_target_us = 10000};
}

static void make(struct scheduler *s, struct scheduler_config cfg, uint32_t n_blocks)
{
    assert_int_equal(scheduler_init(s, &cfg), ERR_OK);
    assert_int_equal(scheduler_reset(s, n_blocks, BIG), ERR_OK);
}

static struct seq *make_seq(uint32_t n_prompt, uint32_t max_tokens)
{
    struct request *r = request_create(n_prompt);
    r->id = 1;
    r->sampling.max_tokens = max_tokens;
    r->sampling.stop_ids = calloc(1, sizeof(uint32_t));
    r->sampling.stop_ids[0] = STOP;
    r->sampling.n_stop_ids = 1;
    return seq_create(r, BIG);
}

static struct seq *submit(struct scheduler *s, uint32_t n_prompt, uint32_t max_tokens)
{
    struct seq *q = make_seq(n_prompt, max_tokens);
    assert_int_equal(scheduler_submit(s, q), ERR_OK);
    return q;
}

/* The oldest step ends; every sample is `token`. */
static uint32_t finish_step(struct scheduler *s, uint32_t token)
{
    uint32_t sampled[64];
    for (int i = 0; i < 64; i++)
        sampled[i] = token;
    uint32_t n = scheduler_apply(s, sampled, 0);
    scheduler_check(s);
    return n;
}

static void a_prompt_runs_in_chunks_and_only_the_last_one_samples(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(2, 1), 100);
    struct seq *q = submit(&s, 150, 4);
    const uint32_t expected[] = {64, 64, 22};
    for (int i = 0; i < 3; i++) {
        const struct step_plan *p = scheduler_plan(&s, 0);
        assert_non_null(p);
        assert_int_equal(p->n_runs, 1);
        assert_int_equal(p->runs[0].n_tokens, expected[i]);
        assert_int_equal(p->runs[0].setup, i == 0);
        assert_int_equal(p->runs[0].n_blocks, i == 0 ? 10 : 0);
        assert_int_equal(p->runs[0].want, i == 2 ? RUN_WANT_SAMPLE : RUN_WANT_NOTHING);
        assert_int_equal(finish_step(&s, TOKEN), 1);
        assert_int_equal(s.outcomes[0].n_prefilled, i == 0 ? 64 : i == 1 ? 128 : 0);
    }
    assert_int_equal(q->n_tokens, 151);
    scheduler_cancel(&s, q);
    seq_destroy(&q);
    assert_int_equal(s.kv.n_free, 100);
    scheduler_deinit(&s);
}

static void the_next_decode_is_sent_before_the_sample_is_known(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(2, 1), 100);
    struct seq *q = submit(&s, 10, 3);
    assert_non_null(scheduler_plan(&s, 0));
    const struct step_plan *p = scheduler_plan(&s, 0);
    assert_non_null(p);
    assert_null(p->runs[0].tokens); /* STEP_TOKEN_SAMPLED */
    assert_int_equal(p->runs[0].start, 10);
    assert_null(scheduler_plan(&s, 0)); /* pp + 1 are in flight */
    finish_step(&s, TOKEN);
    p = scheduler_plan(&s, 0);
    assert_int_equal(p->runs[0].start, 11);
    finish_step(&s, TOKEN);
    assert_null(scheduler_plan(&s, 0)); /* the third and last sample is on its way */
    finish_step(&s, TOKEN);
    assert_int_equal(s.outcomes[0].finish, FINISH_LENGTH);
    assert_int_equal(s.n_free_slots, 2);
    seq_destroy(&q);
    scheduler_deinit(&s);
}

static void what_was_sampled_past_a_stop_is_dropped(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(1, 1), 100);
    struct seq *q = submit(&s, 10, 50), *next = submit(&s, 3, 1);
    scheduler_plan(&s, 0);
    scheduler_plan(&s, 0);
    assert_int_equal(finish_step(&s, STOP), 1);
    assert_int_equal(s.outcomes[0].finish, FINISH_STOP);
    assert_int_equal(s.outcomes[0].stop_id, STOP);
    assert_false(s.outcomes[0].has_token);
    assert_int_equal(seq_n_output(q), 0);
    seq_destroy(&q);
    assert_int_equal(scheduler_blocks_used(&s), 1); /* the step in flight still writes there */
    assert_null(scheduler_plan(&s, 0));             /* and its slot is not given away */
    assert_int_equal(finish_step(&s, TOKEN), 0);
    assert_int_equal(scheduler_blocks_used(&s), 0);
    const struct step_plan *p = scheduler_plan(&s, 0);
    assert_ptr_equal(p->runs[0].seq, next);
    assert_int_equal(p->n_freed, 1);
    assert_int_equal(p->freed[0], p->runs[0].slot);
    assert_int_equal(p->runs[0].gen, 2);
    finish_step(&s, TOKEN);
    seq_destroy(&next);
    scheduler_deinit(&s);
}

static void the_youngest_is_preempted_and_comes_back_with_its_tokens(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(2, 1), 4);
    struct seq *a = submit(&s, 30, 30), *b = submit(&s, 17, 30); /* 2 blocks each */
    struct seq *c = submit(&s, 1, 1);
    while (!s.n_preemptions) {
        assert_non_null(scheduler_plan(&s, 0));
        finish_step(&s, TOKEN);
    }
    assert_ptr_equal(s.queue.first, b); /* before c, which came later */
    assert_ptr_equal(s.queue.last, c);
    assert_int_equal(a->state, SEQ_ACTIVE);
    uint32_t n = b->n_tokens;
    assert_true(n > 17);
    const struct plan_run *back = NULL;
    while (!back) {
        const struct step_plan *p = scheduler_plan(&s, 0);
        assert_non_null(p);
        for (uint32_t i = 0; i < p->n_runs; i++)
            back = p->runs[i].seq == b ? &p->runs[i] : back;
        if (!back)
            finish_step(&s, TOKEN);
    }
    assert_int_equal(back->start, 0);
    assert_int_equal(back->n_tokens, n); /* prompt and output at once */
    assert_true(back->setup);
    struct seq *all[] = {a, b, c};
    for (int i = 0; i < 3; i++) {
        if (all[i]->state != SEQ_OUT)
            scheduler_cancel(&s, all[i]);
        seq_destroy(&all[i]);
    }
    scheduler_deinit(&s);
}

static void admission_is_first_come_first_served(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(4, 1), 4);
    struct seq *big = submit(&s, 40, 4), *huge = submit(&s, 30, 4), *tiny = submit(&s, 1, 4);
    const struct step_plan *p = scheduler_plan(&s, 0);
    assert_int_equal(p->n_runs, 1); /* huge does not fit beside big, and tiny does not overtake it */
    assert_ptr_equal(p->runs[0].seq, big);
    struct seq *all[] = {big, huge, tiny};
    finish_step(&s, TOKEN);
    for (int i = 0; i < 3; i++) {
        scheduler_cancel(&s, all[i]);
        seq_destroy(&all[i]);
    }
    scheduler_check(&s);
    scheduler_deinit(&s);
}

/* Long lists in the set-ups: as many sequences a step as its message has room for, and one in any case. */
static void sequences_with_long_lists_are_set_up_over_several_steps(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(20, 1), 1000);
    struct seq *q[20];
    for (uint32_t i = 0; i < 20; i++) {
        q[i] = submit(&s, 1, 1);
        q[i]->req->sampling.ids = calloc(1, sizeof(struct sampling_ids));
        q[i]->req->sampling.ids->n_refs = 1;
        q[i]->req->sampling.ids->n_allowed = MSG_ALLOWED_MAX;
    }
    uint32_t n_all = 0;
    while (n_all < 20) {
        const struct step_plan *p = scheduler_plan(&s, 0);
        assert_non_null(p);
        assert_true(p->n_runs > 0 && p->n_runs * 5ull * MSG_ALLOWED_MAX < MSG_FRAME_MAX / 4); /* five bytes an id at most */
        n_all += p->n_runs;
        finish_step(&s, TOKEN);
    }
    for (uint32_t i = 0; i < 20; i++)
        seq_destroy(&q[i]);
    scheduler_deinit(&s);
}

static void a_full_queue_refuses(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(2, 1), 100);
    struct seq *q[6], *more = make_seq(1, 1);
    for (int i = 0; i < 6; i++) /* 2 slots and 4 places */
        q[i] = submit(&s, 1, 1);
    assert_int_equal(scheduler_submit(&s, more), ERR_BUSY);
    seq_destroy(&more);
    for (int i = 0; i < 6; i++) {
        scheduler_cancel(&s, q[i]);
        seq_destroy(&q[i]);
    }
    scheduler_deinit(&s);
}

static void the_time_budget_sizes_chunks_by_measured_speed(void **state)
{
    (void)state;
    struct scheduler s;
    struct scheduler_config cfg = config(2, 1);
    cfg.prefill_chunk = 0;
    make(&s, cfg, 1000);
    for (int i = 0; i < 40; i++)
        scheduler_observe(&s, 100, 0, 100 * 400.0); /* 400 us a token; nobody waits for a token of his, so 8 times 10 ms: 200 tokens */
    struct seq *q = submit(&s, 1000, 2);
    const struct step_plan *p = scheduler_plan(&s, 0);
    assert_int_equal(p->n_tokens, 192); /* a multiple of the block */
    finish_step(&s, TOKEN);
    for (int i = 0; i < 60; i++)
        scheduler_observe(&s, 10, 0, 10 * 5000.0); /* 5 ms a token: the least chunk */
    p = scheduler_plan(&s, 0);
    assert_int_equal(p->n_tokens, 32);
    finish_step(&s, TOKEN);
    scheduler_cancel(&s, q);
    seq_destroy(&q);
    /* Beside one that generates: 10 ms less the 1.9 ms of a step of decodes, at 50 us a token. */
    struct seq *first = submit(&s, 4, 50);
    scheduler_plan(&s, 0);
    finish_step(&s, TOKEN);
    for (int i = 0; i < 60; i++) {
        scheduler_observe(&s, 100, 0, 100 * 50.0);
        scheduler_observe(&s, 0, 1, 1900);
    }
    q = submit(&s, 1000, 2);
    p = scheduler_plan(&s, 0);
    assert_int_equal(p->n_tokens, 1 + 160);
    finish_step(&s, TOKEN);
    scheduler_cancel(&s, q);
    scheduler_cancel(&s, first);
    seq_destroy(&q);
    seq_destroy(&first);
    scheduler_deinit(&s);
}

static void decodes_are_dealt_out_over_the_stages(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(4, 2), 100);
    struct seq *q[4];
    for (int i = 0; i < 4; i++)
        q[i] = submit(&s, 1, 100);
    scheduler_plan(&s, 0); /* all four prefill: one token each */
    finish_step(&s, TOKEN);
    for (int i = 0; i < 3; i++)
        scheduler_plan(&s, 0);
    for (int i = 0; i < 20; i++) {
        uint64_t id = scheduler_oldest(&s)->step_id;
        finish_step(&s, TOKEN);
        const struct step_plan *p = scheduler_plan(&s, 0);
        assert_int_equal(p->n_runs, 2); /* half of them in every step */
        assert_int_equal(p->step_id, id + 3);
    }
    for (int i = 0; i < 4; i++) {
        assert_true(seq_n_output(q[i]) >= 10);
        scheduler_cancel(&s, q[i]);
        seq_destroy(&q[i]);
    }
    scheduler_deinit(&s);
}

static void a_new_epoch_puts_running_sequences_at_the_head_in_order(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(2, 1), 100);
    struct seq *q[4];
    for (int i = 0; i < 4; i++)
        q[i] = submit(&s, 5, 10);
    scheduler_plan(&s, 0);
    finish_step(&s, TOKEN);
    scheduler_plan(&s, 0);
    assert_int_equal(scheduler_reset(&s, 50, BIG), ERR_OK);
    scheduler_check(&s);
    assert_int_equal(s.n_in_flight, 0);
    struct seq *at = s.queue.first;
    for (int i = 0; i < 4; i++, at = at->next)
        assert_ptr_equal(at, q[i]);
    assert_int_equal(q[0]->n_tokens, 6); /* what clients have is kept */
    /* A sequence under which epochs fail again and again is given up. */
    enum finish finish;
    enum err err;
    for (int i = 0; i < SCHEDULER_FAILURES_MAX - 1; i++) {
        assert_null(scheduler_take_unfit(&s, &finish, &err));
        scheduler_plan(&s, 0);
        assert_int_equal(scheduler_reset(&s, 50, BIG), ERR_OK);
    }
    assert_ptr_equal(scheduler_take_unfit(&s, &finish, &err), q[0]);
    assert_int_equal(finish, FINISH_ERROR);
    assert_int_equal(err, ERR_PEER_LOST);
    for (int i = 0; i < 4; i++) {
        scheduler_cancel(&s, q[i]);
        seq_destroy(&q[i]);
    }
    scheduler_deinit(&s);
}

static void a_prompt_beyond_the_pool_never_blocks_the_queue(void **state)
{
    (void)state;
    struct scheduler s;
    make(&s, config(2, 1), 2);
    struct seq *q = submit(&s, 33, 1);
    enum finish finish;
    enum err err;
    assert_ptr_equal(scheduler_take_unfit(&s, &finish, &err), q);
    assert_int_equal(err, ERR_NO_FIT);
    seq_destroy(&q);
    scheduler_deinit(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_runs_in_chunks_and_only_the_last_one_samples),
        cmocka_unit_test(the_next_decode_is_sent_before_the_sample_is_known),
        cmocka_unit_test(what_was_sampled_past_a_stop_is_dropped),
        cmocka_unit_test(the_youngest_is_preempted_and_comes_back_with_its_tokens),
        cmocka_unit_test(admission_is_first_come_first_served),
        cmocka_unit_test(sequences_with_long_lists_are_set_up_over_several_steps),
        cmocka_unit_test(a_full_queue_refuses),
        cmocka_unit_test(the_time_budget_sizes_chunks_by_measured_speed),
        cmocka_unit_test(decodes_are_dealt_out_over_the_stages),
        cmocka_unit_test(a_new_epoch_puts_running_sequences_at_the_head_in_order),
        cmocka_unit_test(a_prompt_beyond_the_pool_never_blocks_the_queue),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
