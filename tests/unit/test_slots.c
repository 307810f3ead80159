/* What a hostile or buggy step may do to the slots: nothing. Each broken field is one that a valid step has right. */
#include "base/check.h"
#include "worker/slots.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A step with two runs: slot 1 (new, 20 tokens, 2 blocks) and slot 3 (new, 5 tokens, 1 block); everything in reach of a test. */
struct fixture {
    struct slots s;
    struct step st;
    uint32_t slot[2], gen[2], start[2], n_tokens[2], want[2], n_blocks[2], tokens[25], blocks[3], freed[2];
    struct slot_setup setups[2];
    uint32_t stop[4], bias_id[3], history[8];
    float bias[3];
};

static void begin(struct fixture *f)
{
    *f = (struct fixture){.slot = {1, 3}, .gen = {7, 9}, .n_tokens = {20, 5}, .want = {RUN_WANT_SAMPLE, 0}, .n_blocks = {2, 1},
                          .blocks = {4, 0, 9}, .stop = {1, 2, 2, 1}, .bias_id = {5, 3, 5}, .bias = {1, 2, 0.5f}, .freed = {1, 3}};
    struct slots_config cfg = {.max_seqs = 4, .ctx = 64, .vocab = 100, .dim = 32, .n_kv_blocks = 10, .max_step_tokens = 40, .sampling = true};
    assert_int_equal(slots_init(&f->s, &cfg), ERR_OK);
    for (uint32_t i = 0; i < 25; i++)
        f->tokens[i] = i;
    f->setups[0] = (struct slot_setup){.slot = 1, .gen = 7, .temperature = 1, .top_p = 1, .stop = f->stop, .n_stop = 4, .bias_id = f->bias_id,
                                       .bias = f->bias, .n_bias = 3, .frequency_penalty = 1, .prompt_len = 20};
    f->setups[1] = (struct slot_setup){.slot = 3, .gen = 9, .top_p = 1};
    f->st = (struct step){.n_runs = 2, .slot = f->slot, .gen = f->gen, .start = f->start, .n_tokens = f->n_tokens, .want = f->want,
                          .n_blocks = f->n_blocks, .n_all_tokens = 25, .n_all_blocks = 3, .tokens = f->tokens, .blocks = f->blocks,
                          .setups = f->setups, .n_setups = 2, .freed = f->freed};
}
static void end(struct fixture *f)
{
    slots_deinit(&f->s);
}
static void accept(struct fixture *f)
{
    assert_int_equal(slots_check(&f->s, &f->st), ERR_OK);
    slots_apply(&f->s, &f->st);
    for (uint32_t r = 0, at = 0; r < f->st.n_runs; at += f->n_tokens[r++])
        slots_advance(&f->s, &f->st, r, f->tokens + at);
}

static void test_a_valid_step_is_taken(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f);
    accept(&f);
    struct slot *sl = &f.s.slot[1];
    assert_true(sl->live && sl->has_sampled && f.s.slot[3].live && !f.s.slot[3].has_sampled);
    assert_int_equal(sl->pos, 20);
    assert_int_equal(sl->n_blocks, 2);
    assert_int_equal(sl->blocks[0], 4);
    assert_int_equal(sl->blocks[1], 0);
    assert_int_equal(f.s.slot[3].blocks[0], 9);
    /* Biases rise by id, equal ids are added up. */
    assert_int_equal(sl->n_bias, 2);
    assert_int_equal(sl->n_stop, 2); /* each once */
    assert_int_equal(sl->stop[0], 1);
    assert_int_equal(sl->stop[1], 2);
    assert_int_equal(sl->bias_id[0], 3);
    assert_true(sl->bias[0] == 2 && sl->bias[1] == 1.5f);
    /* Prompt tokens are seen, not counted. */
    assert_true(sl->counts[0].all == 1 && sl->counts[0].output == 0);
    assert_int_equal(sl->counts[20].all, 0);
    /* A decode step: the sampled token, no new block needed. */
    f.st = (struct step){.n_runs = 1, .slot = f.slot, .gen = f.gen, .start = f.start, .n_tokens = f.n_tokens, .want = f.want,
                         .n_blocks = f.n_blocks, .n_all_tokens = 1, .tokens = f.tokens};
    f.start[0] = 20;
    f.n_tokens[0] = 1;
    f.n_blocks[0] = 0;
    f.tokens[0] = STEP_TOKEN_SAMPLED;
    assert_int_equal(slots_check(&f.s, &f.st), ERR_OK);
    slots_apply(&f.s, &f.st);
    uint32_t resolved = 7;
    slots_advance(&f.s, &f.st, 0, &resolved);
    assert_true(sl->counts[7].all == 2 && sl->counts[7].output == 1);
    assert_int_equal(sl->pos, 21);
    end(&f);
}

/* Freed and set up anew: nothing of the old generation is left. */
static void test_a_new_generation_starts_clean(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f);
    accept(&f);
    f.gen[0] = f.setups[0].gen = 8;
    f.st.n_freed = 2;
    f.st.n_setups = 1;
    f.st.n_runs = 1;
    f.st.n_all_tokens = 20;
    f.st.n_all_blocks = 2;
    f.history[0] = f.history[1] = 50;
    f.history[2] = 51;
    f.setups[0].history = f.history;
    f.setups[0].n_history = 3;
    f.setups[0].n_output = 1;
    f.start[0] = 3;
    f.tokens[19] = 99;
    accept(&f);
    const struct slot *sl = &f.s.slot[1];
    assert_int_equal(sl->pos, 23);
    assert_true(sl->counts[50].all == 2 && sl->counts[50].output == 0);
    assert_true(sl->counts[51].all == 1 && sl->counts[51].output == 1);
    assert_int_equal(sl->counts[19].all, 0); /* was in the old prompt */
    assert_false(f.s.slot[3].live);
    slots_reset(&f.s);
    assert_false(sl->live);
    end(&f);
}

/* break_step(i) breaks one thing; false when i is past the last. */
static bool break_step(struct fixture *f, uint32_t i)
{
    switch (i) {
    case 0: f->slot[0] = 4; break;
    case 1: f->slot[0] = 0xffffffff; break;
    case 2: f->slot[1] = 1; break; /* two runs of one slot */
    case 3: f->slot[0] = 2; break; /* never set up */
    case 4: f->gen[0] = 8; break;
    case 5: f->start[0] = 1; break;
    case 6: f->start[0] = 0xfffffff0; break;
    case 7: f->n_tokens[0] = 0; break;
    case 8: f->n_tokens[0] = 21; break;
    case 9: f->n_tokens[0] = 0xffffffff; break;
    case 10: f->n_tokens[0] = 19; break; /* one token belongs to nobody */
    case 11: f->want[0] = 64; break;
    case 12: f->n_blocks[0] = 1; f->n_blocks[1] = 2; break; /* 20 positions in one block */
    case 13: f->n_blocks[0] = 0xffffffff; break;
    case 14: f->n_blocks[1] = 0; f->st.n_all_blocks = 2; break;
    case 15: f->st.n_all_blocks = 2; break;
    case 16: f->blocks[2] = 10; break;
    case 17: f->tokens[24] = 100; break;
    case 18: f->tokens[0] = STEP_TOKEN_SAMPLED; break; /* nothing was sampled yet */
    case 19: f->tokens[3] = STEP_TOKEN_SAMPLED; break;
    case 20: f->st.n_all_tokens = 41; break;
    case 21: f->st.n_runs = 5; break;
    case 22: f->st.n_setups = 5; break;
    case 23: f->st.n_freed = 5; break;
    case 24: f->st.n_freed = 1; f->freed[0] = 4; break;
    case 25: f->setups[0].slot = 4; break;
    case 26: f->setups[1].slot = 1; break; /* twice */
    case 27: f->setups[0].n_stop = MSG_STOP_IDS_MAX + 1; break;
    case 28: f->setups[0].n_bias = MSG_BIAS_MAX + 1; break;
    case 29: f->setups[0].n_history = 65; break;
    case 30: f->setups[0].n_output = 1; break; /* more output than history */
    case 31: f->setups[0].n_logprobs = MSG_LOGPROBS_MAX + 1; break;
    case 32: f->stop[1] = 100; break;
    case 33: f->bias_id[1] = 0xffffffff; break;
    case 34: f->bias[2] = INFINITY; break;
    case 35: f->setups[1].temperature = NAN; break;
    case 36: f->setups[1].temperature = -1; break;
    case 37: f->setups[1].repetition_penalty = -1; break;
    case 38: f->setups[1].top_p = INFINITY; break;
    case 39: f->setups[0].history = f->history; f->setups[0].n_history = 2; f->history[1] = 100; f->start[0] = 2; break;
    case 40: f->setups[0].stop = NULL; break;
    case 41: f->setups[0].bias = NULL; break;
    case 42: f->setups[0].history = f->history; f->setups[0].n_history = 60; f->start[0] = 60; break; /* 60 + 20 positions in 64 */
    case 43: f->n_blocks[0] = 5; f->st.n_all_blocks = 6; f->setups[0].n_history = 0; f->n_blocks[1] = 1; break; /* beyond the context's table */
    case 44: f->want[0] |= RUN_WANT_POOLED; break; /* not set up to pool */
    case 45: f->want[0] |= RUN_WANT_TARGETS; break;
    case 46: f->setups[0].pooling = POOLING_CLS; break;
    case 47: f->setups[0].pooling = POOLING_LAST; f->setups[0].history = f->history; f->setups[0].n_history = 2; f->start[0] = 2; break;
    case 48: f->setups[0].target = f->stop; f->setups[0].n_targets = 2; f->stop[1] = 100; break;
    case 49: f->setups[0].target = f->stop; f->setups[0].n_targets = MSG_TARGETS_MAX + 1; break;
    case 50: f->setups[0].n_targets = 1; break;
    case 51: f->setups[0].typical_p = -0.5f; break;
    case 52: f->setups[0].dry_base = NAN; break;
    case 53: f->setups[0].mirostat = 3; break;
    case 54: f->setups[0].mirostat_mu = INFINITY; break;
    case 55: f->setups[0].allowed = f->stop; f->setups[0].n_allowed = 2; f->stop[1] = 100; break;
    case 56: f->setups[0].bad_id = f->stop; f->setups[0].n_bad_ids = 2; f->setups[0].bad_len = f->bias_id; f->setups[0].n_bad = 1; break; /* 5 of 2 */
    case 57: f->setups[0].dry_id = f->history; f->setups[0].n_dry_ids = 1; f->history[0] = 100; f->setups[0].dry_len = f->stop; f->setups[0].n_dry = 1; break;
    case 58: f->setups[0].dry_id = f->stop; f->setups[0].n_dry_ids = MSG_DRY_IDS_MAX + 1; break;
    default: return false;
    }
    return true;
}

static void test_every_broken_field_is_refused_and_nothing_changes(void **state)
{
    (void)state;
    struct fixture f;
    uint32_t n = 0, six[6] = {0, 1, 2, 3, 4, 5};
    for (;; n++) {
        begin(&f);
        assert_int_equal(slots_check(&f.s, &f.st), ERR_OK);
        bool more = break_step(&f, n);
        if (n == 43)
            f.st.blocks = six;
        if (!more) {
            end(&f);
            break;
        }
        if (slots_check(&f.s, &f.st) != ERR_PROTOCOL)
            fail_msg("break %u was accepted", n);
        assert_true(strlen(err_detail()) > 10);
        for (uint32_t i = 0; i < 4; i++)
            assert_false(f.s.slot[i].live);
        end(&f);
    }
    assert_int_equal(n, 59);
}

static void test_a_live_generation_is_not_set_up_again(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f);
    accept(&f);
    assert_int_equal(slots_check(&f.s, &f.st), ERR_PROTOCOL);
    slots_reset(&f.s);
    assert_int_equal(slots_check(&f.s, &f.st), ERR_OK);
    end(&f);
}

/* The window's counts are those of a plain recount, also in a slot that was rebuilt from the tokens, whatever the pieces they come in. */
static void test_a_window_of_the_penalties_is_a_recount(void **state)
{
    (void)state;
    enum { LEN = 60, WINDOW = 13, PROMPT = 20 };
    uint32_t text[LEN];
    for (uint32_t i = 0; i < LEN; i++)
        text[i] = i * i % 7;
    for (uint32_t first = 1; first <= LEN; first += 7) { /* of the first run; the rest comes one by one */
        struct fixture f;
        uint32_t four[4] = {0, 1, 2, 3};
        begin(&f);
        f.setups[0].penalty_last_n = WINDOW;
        f.setups[0].prompt_len = PROMPT;
        for (uint32_t at = 0, n; at < LEN; at += n) {
            n = at ? 1 : first;
            f.st = (struct step){.n_runs = 1, .slot = f.slot, .gen = f.gen, .start = f.start, .n_tokens = f.n_tokens, .want = f.want, .n_blocks = f.n_blocks,
                                 .n_all_tokens = n, .tokens = text + at, .setups = f.setups, .n_setups = at == 0, .blocks = four, .n_all_blocks = at ? 0 : 4};
            f.s.cfg.max_step_tokens = 64;
            f.start[0] = at;
            f.n_tokens[0] = n;
            f.n_blocks[0] = f.st.n_all_blocks;
            assert_int_equal(slots_check(&f.s, &f.st), ERR_OK);
            slots_apply(&f.s, &f.st);
            slots_advance(&f.s, &f.st, 0, text + at);
            for (uint32_t id = 0; id < 8; id++) {
                uint32_t all = 0, output = 0, end = at + n;
                for (uint32_t i = end > WINDOW ? end - WINDOW : 0; i < end; i++) {
                    all += text[i] == id;
                    output += text[i] == id && i >= PROMPT;
                }
                assert_int_equal(f.s.slot[1].counts[id].all, all);
                assert_int_equal(f.s.slot[1].counts[id].output, output);
            }
        }
        end(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_valid_step_is_taken),
        cmocka_unit_test(test_a_new_generation_starts_clean),
        cmocka_unit_test(test_every_broken_field_is_refused_and_nothing_changes),
        cmocka_unit_test(test_a_window_of_the_penalties_is_a_recount),
        cmocka_unit_test(test_a_live_generation_is_not_set_up_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
