/* A result against its plan: what a worker that is broken or lies may send is refused by name, and what is not asked for is not looked at. */
#include "coordinator/step.h"
#include "proto/msg.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 50, DIM = 3, RUNS = 4 };

/* Slots 1 to 4: a chunk that wants nothing, a token with its log-probability and mirostat's state, the scores of two targets, a pooled state. */
struct fixture {
    struct plan_run runs[RUNS];
    struct step_plan plan;
    uint32_t slot[3], gen[3], token[3], n_positions[3], n_top[3], top_id[2], mu_run[1];
    float logprob[3], top_logprob[2], pooled[DIM], mu[1];
    struct step_result r;
    struct arena arena;
    struct step_samples m;
};

static void make(struct fixture *f)
{
    static const uint32_t wants[RUNS] = {RUN_WANT_NOTHING, RUN_WANT_SAMPLE | RUN_WANT_LOGPROBS, RUN_WANT_TARGETS, RUN_WANT_POOLED};
    *f = (struct fixture){.slot = {2, 3, 4}, .gen = {7, 7, 7}, .token = {49, STEP_TOKEN_SAMPLED, STEP_TOKEN_SAMPLED}, .n_positions = {1, 2, 0},
                          .n_top = {2, 0, 0}, .top_id = {49, 3}, .mu_run = {0}, .logprob = {-1, -2, -3}, .top_logprob = {-1, -4}, .pooled = {1, 2, 3}, .mu = {9}};
    for (uint32_t i = 0; i < RUNS; i++)
        f->runs[i] = (struct plan_run){.slot = i + 1, .gen = 7, .n_tokens = 5, .want = wants[i], .n_targets = wants[i] == RUN_WANT_TARGETS ? 2 : 0};
    f->plan = (struct step_plan){.step_id = 11, .runs = f->runs, .n_runs = RUNS, .n_tokens = 5 * RUNS};
    f->r = (struct step_result){.step_id = 11, .n_runs = 3, .slot = f->slot, .gen = f->gen, .token = f->token, .n_positions = f->n_positions,
                                .n_all_positions = 3, .logprob = f->logprob, .n_top = f->n_top, .n_all_top = 2, .top_id = f->top_id,
                                .top_logprob = f->top_logprob, .pooled_dim = DIM, .n_all_pooled = DIM, .pooled = f->pooled, .mu_run = f->mu_run,
                                .mu = f->mu, .n_mu = 1};
    arena_init(&f->arena, 0);
}

static enum err match(struct fixture *f)
{
    return step_match(&f->plan, &f->r, VOCAB, &f->arena, &f->m);
}

static void each_run_finds_what_is_its_own(void **state)
{
    (void)state;
    struct fixture f;
    make(&f);
    assert_int_equal(match(&f), ERR_OK);
    assert_int_equal(f.m.token[0], STEP_TOKEN_SAMPLED);
    assert_int_equal(f.m.token[1], 49);
    assert_true(f.m.mu[1] == 9 && isnan(f.m.mu[0]) && isnan(f.m.mu[2]));
    assert_int_equal(f.m.row[1], 0);
    assert_int_equal(f.m.row[2], 1);
    assert_int_equal(f.m.n_rows[2], 2);
    assert_int_equal(f.m.row_top[1] - f.m.row_top[0], 2);
    assert_ptr_equal(f.m.pooled[3], f.pooled);
    assert_null(f.m.pooled[2]);
    arena_deinit(&f.arena);
}

static void spoil(struct fixture *f, uint32_t how)
{
    switch (how) {
    case 0: f->r.step_id = 12; break;
    case 1: f->r.n_runs = 2; break;
    case 2: f->slot[1] = 1; break;
    case 3: f->gen[2] = 8; break;
    case 4: f->token[0] = VOCAB; break;
    case 5: f->n_positions[0] = 2, f->n_positions[1] = 1; break;
    case 6: f->n_positions[1] = 1, f->r.n_all_positions = 2; break;
    case 7: f->n_positions[2] = 1; break;
    case 8: f->logprob[1] = NAN; break;
    case 9: f->logprob[2] = -INFINITY; break;
    case 10: f->r.n_all_pooled = 0; break;
    case 11: f->r.pooled_dim = 0, f->r.n_all_pooled = 0; break;
    case 12: f->top_id[1] = VOCAB; break;
    default: fail();
    }
}

static void a_result_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    for (uint32_t how = 0; how <= 12; how++) {
        struct fixture f;
        make(&f);
        spoil(&f, how);
        if (match(&f) != ERR_PROTOCOL)
            fail_msg("case %u was taken", how);
        arena_deinit(&f.arena);
    }
}

/* Mirostat's state counts where a sample was wanted; a sample's own log-probability may be no number (the client reads null). */
static void what_may_be_missing(void **state)
{
    (void)state;
    struct fixture f;
    make(&f);
    f.r.n_mu = 0;
    f.logprob[0] = NAN;
    assert_int_equal(match(&f), ERR_OK);
    assert_true(isnan(f.m.mu[1]));
    arena_deinit(&f.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_run_finds_what_is_its_own),
        cmocka_unit_test(a_result_that_does_not_fit_is_refused),
        cmocka_unit_test(what_may_be_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
