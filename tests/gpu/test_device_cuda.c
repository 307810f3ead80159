/* A runner on an emulated GPU with steps in flight: the next step is begun before the result of the last was read, its input what the GPU has just sampled. The tokens are
 * those of the same steps one by one, which tests/gpu/test_logits.py holds against the mathematics. Model: deploy/demo. */
#include "base/check.h"
#include "tests/gpu/emu/emu_control.h"
#include "worker/model_runner.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DEMO "deploy/demo/grimm-6m-Q8_0.gguf"
enum { SEQS = 4, CTX = 128, STEPS = 24, PROMPT = 5 };

static const uint32_t prompt[PROMPT] = {2032, 1436, 323, 720, 258};

static struct runner *open_runner(enum kv_type kv, enum err want)
{
    struct runner *r = NULL;
    struct runner_config c = {.model_path = DEMO, .tp = 1, .pp = 1, .use_cuda = true, .deterministic = true, .n_threads = 1, .ctx = CTX, .max_seqs = SEQS,
                              .max_step_tokens = 64, .kv_type = kv};
    enum err e = runner_create(&c, &r);
    if (e != want)
        fail_msg("%s", err_detail());
    return r;
}

/* A step of one run a slot: slot s has its blocks at s * CTX / 16 on. */
struct one_step {
    struct step s;
    uint32_t slot[SEQS], gen[SEQS], start[SEQS], n_tok[SEQS], want[SEQS], n_blk[SEQS], tok[64], blk[64], freed[SEQS];
    struct slot_setup setup[SEQS];
};
static void begin(struct one_step *o, uint64_t id)
{
    memset(o, 0, sizeof(*o));
    o->s = (struct step){.step_id = id, .slot = o->slot, .gen = o->gen, .start = o->start, .n_tokens = o->n_tok, .want = o->want, .n_blocks = o->n_blk,
                         .tokens = o->tok, .blocks = o->blk, .setups = o->setup, .freed = o->freed};
}
static void add(struct one_step *o, uint32_t slot, uint32_t gen, uint32_t start, const uint32_t *tok, uint32_t n, const struct slot_setup *u)
{
    uint32_t i = o->s.n_runs++, had = (start + 15) / 16, need = (start + n + 15) / 16;
    o->slot[i] = slot;
    o->gen[i] = gen;
    o->start[i] = start;
    o->n_tok[i] = n;
    o->want[i] = RUN_WANT_SAMPLE | RUN_WANT_LOGPROBS;
    o->n_blk[i] = need - had;
    for (uint32_t b = had; b < need; b++)
        o->blk[o->s.n_all_blocks++] = slot * (CTX / 16) + b;
    memcpy(o->tok + o->s.n_all_tokens, tok, n * sizeof(*tok));
    o->s.n_all_tokens += n;
    if (u) {
        o->setup[o->s.n_setups] = *u;
        o->setup[o->s.n_setups].slot = slot;
        o->setup[o->s.n_setups++].gen = gen;
    }
}
static struct step_result finish(struct runner *r)
{
    struct step_result res;
    bool has;
    if (runner_finish(r, &res, &has) != ERR_OK)
        fail_msg("%s", err_detail());
    assert_true(has);
    return res;
}
static void start(struct runner *r, const struct one_step *o)
{
    assert_true(runner_may_begin(r, &o->s));
    if (runner_begin(r, &o->s) != ERR_OK)
        fail_msg("%s", err_detail());
}

static const struct slot_setup setups[SEQS] = {
    {.top_p = 1},
    {.temperature = 1, .top_p = 0.9f, .seed = 7, .n_logprobs = 3},
    {.temperature = 0.8f, .top_p = 1, .seed = 9, .repetition_penalty = 1.3f, .frequency_penalty = 0.2f},
    {.temperature = 1, .top_p = 1, .seed = 11, .mirostat = 2, .mirostat_tau = 4, .mirostat_eta = 0.1f, .mirostat_mu = 8},
};

struct trace {
    uint32_t token[STEPS][SEQS];
    float lp[STEPS][SEQS];
};
static void note(struct trace *t, uint32_t i, const struct step_result *res)
{
    assert_int_equal(res->n_runs, SEQS);
    assert_int_equal(res->n_all_positions, SEQS);
    memcpy(t->token[i], res->token, sizeof(t->token[i]));
    memcpy(t->lp[i], res->logprob, sizeof(t->lp[i]));
}

/* ahead: how many steps are begun before the oldest is finished. */
static void generate(struct trace *t, uint32_t ahead)
{
    struct runner *r = open_runner(KV_F16, ERR_OK);
    struct one_step o;
    uint32_t sampled = STEP_TOKEN_SAMPLED, done = 0;
    for (uint32_t i = 0; i < STEPS; i++) {
        begin(&o, i);
        for (uint32_t s = 0; s < SEQS; s++)
            if (i == 0)
                add(&o, s, 1, 0, prompt, PROMPT, &setups[s]);
            else
                add(&o, s, 1, PROMPT + i - 1, &sampled, 1, NULL);
        start(r, &o);
        memset(&o, 0xa5, sizeof(o)); /* the step is the caller's again */
        assert_int_equal(runner_in_flight(r), i + 1 - done);
        if (i == 0 || i + 1 - done == ahead) {
            struct step_result res = finish(r);
            note(t, done++, &res);
        }
    }
    while (done < STEPS) {
        struct step_result res = finish(r);
        note(t, done++, &res);
    }
    runner_destroy(&r);
}

static void test_steps_in_flight_give_the_tokens_of_steps_one_by_one(void **state)
{
    (void)state;
    static struct trace one, two;
    generate(&one, 1);
    generate(&two, 2);
    for (uint32_t i = 0; i < STEPS; i++)
        for (uint32_t s = 0; s < SEQS; s++)
            if (one.token[i][s] != two.token[i][s] || memcmp(&one.lp[i][s], &two.lp[i][s], 4) != 0)
                fail_msg("step %u slot %u: token %u (%a) one by one, %u (%a) in flight", i, s, one.token[i][s], (double)one.lp[i][s], two.token[i][s],
                         (double)two.lp[i][s]);
    assert_memory_not_equal(one.token[1], one.token[2], sizeof(one.token[1]));
}

/* While a sample of slot 0 is on its way, the slot is freed; then it belongs to another sequence, which begins as on a fresh runner. */
static void test_a_slot_that_is_freed_with_a_sample_on_its_way_begins_anew(void **state)
{
    (void)state;
    struct runner *r = open_runner(KV_F16, ERR_OK);
    struct one_step o;
    uint32_t sampled = STEP_TOKEN_SAMPLED, first[2];
    for (uint32_t turn = 0; turn < 2; turn++) {
        begin(&o, 10 * turn);
        add(&o, 0, turn, 0, prompt, PROMPT, &setups[0]);
        if (turn == 0)
            add(&o, 1, 0, 0, prompt, PROMPT, &setups[1]);
        start(r, &o);
        struct step_result res = finish(r);
        first[turn] = res.token[0];
        if (turn == 1)
            break;
        begin(&o, 1);
        add(&o, 0, 0, PROMPT, &sampled, 1, NULL);
        add(&o, 1, 0, PROMPT, &sampled, 1, NULL);
        start(r, &o);
        begin(&o, 2); /* slot 0 ends unseen; slot 1 goes on */
        o.freed[0] = 0;
        o.s.n_freed = 1;
        add(&o, 1, 0, PROMPT + 1, &sampled, 1, NULL);
        start(r, &o);
        begin(&o, 3); /* a new sequence waits for the host to know all */
        add(&o, 0, 1, 0, prompt, PROMPT, &setups[0]);
        assert_false(runner_may_begin(r, &o.s));
        assert_int_equal(finish(r).n_runs, 2);
        assert_int_equal(finish(r).n_runs, 1);
        assert_true(runner_may_begin(r, &o.s));
    }
    assert_int_equal(first[0], first[1]);
    runner_destroy(&r);
}

static void test_a_reset_forgets_steps_in_flight(void **state)
{
    (void)state;
    struct runner *r = open_runner(KV_Q8_0, ERR_OK);
    struct one_step o;
    uint32_t sampled = STEP_TOKEN_SAMPLED, token = 0;
    for (uint32_t turn = 0; turn < 3; turn++) {
        begin(&o, 0);
        add(&o, 2, turn, 0, prompt, PROMPT, &setups[0]);
        start(r, &o);
        struct step_result res = finish(r);
        assert_true(turn == 0 || res.token[0] == token);
        token = res.token[0];
        for (uint32_t i = 0; i < 2; i++) {
            begin(&o, 1 + i);
            add(&o, 2, turn, PROMPT + i, &sampled, 1, NULL);
            start(r, &o);
        }
        assert_int_equal(runner_reset(r), ERR_OK);
        assert_int_equal(runner_in_flight(r), 0);
    }
    runner_destroy(&r);
}

/* A batch of lone tokens that wants nothing is launched all the same, and a reset after an odd number of batches leaves host and GPU of one mind. */
static void test_a_reset_after_a_step_that_wanted_nothing(void **state)
{
    (void)state;
    struct runner *r = open_runner(KV_F16, ERR_OK);
    struct one_step o;
    uint32_t sampled = STEP_TOKEN_SAMPLED, tokens[2][6];
    for (uint32_t turn = 0; turn < 2; turn++) {
        for (uint32_t i = 0; i < 6; i++) {
            begin(&o, i);
            add(&o, 0, turn, i ? PROMPT + i - 1 : 0, i ? &sampled : prompt, i ? 1 : PROMPT, i ? NULL : &setups[0]);
            start(r, &o);
            tokens[turn][i] = finish(r).token[0];
        }
        begin(&o, 6);
        add(&o, 1, turn, 0, prompt, 1, &setups[0]);
        o.want[0] = RUN_WANT_NOTHING;
        start(r, &o);
        finish(r);
        assert_int_equal(runner_reset(r), ERR_OK);
    }
    assert_memory_equal(tokens[0], tokens[1], sizeof(tokens[0]));
    runner_destroy(&r);
}

/* The first six tokens of a sequence, with a step between that needs a graph of its own; n_fail: the allocation from then on that fails, 0: none. */
static void tokens_without(uint32_t n_fail, uint32_t tokens[6])
{
    struct runner *r = open_runner(KV_F16, ERR_OK);
    struct one_step o;
    uint32_t sampled = STEP_TOKEN_SAMPLED;
    if (n_fail)
        emu_fail_allocation(n_fail);
    for (uint32_t i = 0; i < 6; i++) {
        begin(&o, 2 * i);
        add(&o, 0, 1, i ? PROMPT + i - 1 : 0, i ? &sampled : prompt, i ? 1 : PROMPT, i ? NULL : &setups[0]);
        start(r, &o);
        tokens[i] = finish(r).token[0];
        begin(&o, 2 * i + 1);
        add(&o, 1, i, 0, prompt, 1, &setups[0]);
        o.want[0] = RUN_WANT_NOTHING;
        start(r, &o);
        finish(r);
    }
    runner_destroy(&r);
}

static void test_out_of_memory_in_service_costs_graphs_and_no_token(void **state)
{
    (void)state;
    uint32_t with[6], without[6];
    tokens_without(0, with);
    tokens_without(1, without);
    assert_memory_equal(with, without, sizeof(with));
}

static void test_a_kv_cache_that_is_for_cpus_is_refused(void **state)
{
    (void)state;
    open_runner(KV_F32, ERR_UNSUPPORTED);
    assert_non_null(strstr(err_detail(), "--kv-type"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_in_flight_give_the_tokens_of_steps_one_by_one),
        cmocka_unit_test(test_a_slot_that_is_freed_with_a_sample_on_its_way_begins_anew),
        cmocka_unit_test(test_a_reset_forgets_steps_in_flight),
        cmocka_unit_test(test_a_reset_after_a_step_that_wanted_nothing),
        cmocka_unit_test(test_out_of_memory_in_service_costs_graphs_and_no_token),
        cmocka_unit_test(test_a_kv_cache_that_is_for_cpus_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
