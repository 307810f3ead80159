/* The sampler against the mathematics, computed here in double and in the plainest way: sort everything, cut, normalise. Random logits from a
 * fixed generator of this file; nothing is shared with worker/sampler.c but the Philox uniforms (base/rng.h has its own published vectors). */
#include "base/rng.h"
#include "tests/tools/sanitized.h"
#include "tests/unit/sampler_stage.h"

/* ---- the plain form */

struct plain {
    double p;
    uint32_t id;
};
static int by_p(const void *a, const void *b)
{
    const struct plain *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}
/* Kept tokens with their probabilities, best first. */
static uint32_t plain_filter(const float *z, uint32_t vocab, const struct slot *sl, struct plain *out)
{
    double max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        max = fmax(max, z[i]);
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((z[i] - max) / sl->temperature);
    for (uint32_t i = 0; i < vocab; i++)
        out[i] = (struct plain){exp((z[i] - max) / sl->temperature) / sum, i};
    qsort(out, vocab, sizeof(*out), by_p);
    uint32_t n = 0;
    while (n < vocab && out[n].p >= sl->min_p * out[0].p)
        n++;
    if (sl->top_k && sl->top_k < n)
        n = sl->top_k;
    double mass = 0, cum = 0;
    for (uint32_t i = 0; i < n; i++)
        mass += out[i].p;
    if (sl->top_p < 1)
        for (uint32_t i = 0; i < n; i++) {
            cum += out[i].p;
            if (cum >= (double)sl->top_p * mass) {
                n = i + 1;
                break;
            }
        }
    mass = 0;
    for (uint32_t i = 0; i < n; i++)
        mass += out[i].p;
    for (uint32_t i = 0; i < n; i++)
        out[i].p /= mass;
    return n;
}

/* ---- tests */

/* 100,000 draws at temperature 1 without filters: Pearson's statistic over cells of at least 5 expected draws. Its mean is the degrees of freedom,
 * its variance twice that; 5 deviations are far outside chance (seeds are fixed, so the test cannot flicker). */
static void test_unfiltered_draws_follow_the_distribution(void **state)
{
    (void)state;
    const uint32_t DRAWS = sanitized_short() ? 40000 : 100000;
    lcg = 42;
    float *one = random_logits(1, VOCAB, 2.0f), *z = malloc((size_t)16 * VOCAB * sizeof(float));
    uint32_t *count = calloc(VOCAB, sizeof(*count));
    struct slot sl = {.live = true, .temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 7};
    struct sampler_row rows[16];
    struct sampler_config cfg = {.tp = 1, .vocab = VOCAB, .rows_cap = 16, .ctx = CTX, .ids = {{0, VOCAB}}};
    struct sampler *s;
    assert_int_equal(pool_create(1, NULL, 0, &cfg.pool), ERR_OK);
    assert_int_equal(sampler_create(&cfg, &s), ERR_OK);
    for (uint32_t i = 0; i < 16; i++)
        memcpy(z + (size_t)i * VOCAB, one, VOCAB * sizeof(float));
    for (uint32_t i = 0; i < DRAWS; i += 16) {
        for (uint32_t j = 0; j < 16; j++)
            rows[j] = (struct sampler_row){.slot = &sl, .position = i + j, .sample = true, .target = SAMPLER_NONE};
        assert_int_equal(sampler_run(s, NULL, z, VOCAB, rows, 16), ERR_OK);
        for (uint32_t j = 0; j < 16; j++) {
            assert_true(rows[j].token < VOCAB);
            count[rows[j].token]++;
        }
    }
    double sum = 0, max = -INFINITY, chi = 0, rest_p = 0, rest_n = 0;
    uint32_t cells = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        max = fmax(max, one[i]);
    for (uint32_t i = 0; i < VOCAB; i++)
        sum += exp(one[i] - max);
    for (uint32_t i = 0; i < VOCAB; i++) {
        double expect = exp(one[i] - max) / sum * DRAWS;
        if (expect < 5) { /* the rare ones together */
            rest_p += expect;
            rest_n += count[i];
            continue;
        }
        chi += (count[i] - expect) * (count[i] - expect) / expect;
        cells++;
    }
    chi += (rest_n - rest_p) * (rest_n - rest_p) / rest_p;
    print_message("chi-square %.1f with %u degrees of freedom\n", chi, cells);
    assert_true(cells > (sanitized_short() ? 300 : 500));
    assert_true(fabs(chi - cells) < 5 * sqrt(2.0 * cells));
    sampler_destroy(&s);
    pool_destroy(&cfg.pool);
    free(one);
    free(z);
    free(count);
}

/* Filters of all kinds: the token is where the plain cumulative distribution says, unless the uniform falls within rounding of a border. */
static void test_filters_equal_a_plain_sort_and_cut(void **state)
{
    (void)state;
    enum { N = 400 };
    lcg = 7;
    float *z = random_logits(N, VOCAB, 3.0f);
    struct slot *sl = calloc(N, sizeof(*sl));
    struct sampler_row *rows = calloc(N, sizeof(*rows));
    struct plain *p = malloc(VOCAB * sizeof(*p));
    static const float temps[] = {0.3f, 0.7f, 1.0f, 1.5f, 4.0f}, tops[] = {0.1f, 0.5f, 0.9f, 0.99f, 0.9999f, 1.0f}, mins[] = {0, 0, 0.001f, 0.05f, 0.5f};
    static const uint32_t ks[] = {0, 0, 1, 5, 40, 700, 2000};
    for (uint32_t i = 0; i < N; i++) {
        sl[i] = (struct slot){.live = true, .temperature = temps[i % 5], .top_p = tops[i / 5 % 6], .min_p = mins[i / 3 % 5], .top_k = ks[i % 7],
                              .repetition_penalty = 1, .seed = 1000 + i, .choice = i % 3};
        rows[i] = (struct sampler_row){.slot = &sl[i], .position = 17 * i, .sample = true, .target = SAMPLER_NONE};
        if (i % 10 == 9) /* ties: the lower id comes first */
            for (uint32_t j = 0; j < VOCAB; j++)
                z[(size_t)i * VOCAB + j] = (float)(int)z[(size_t)i * VOCAB + j];
    }
    struct stage st = {.n = N, .vocab = VOCAB, .logits = z, .slots = sl, .rows = rows};
    assert_int_equal(run_stage(&st, 1, one_rank, 2), ERR_OK);
    uint32_t checked = 0, borders = 0;
    for (uint32_t i = 0; i < N; i++) {
        if (sl[i].top_p >= 1 && sl[i].min_p == 0 && sl[i].top_k == 0)
            continue; /* drawn in another order; the test above */
        uint32_t n = plain_filter(z + (size_t)i * VOCAB, VOCAB, &sl[i], p);
        double u = rng_uniform(sl[i].seed, sl[i].choice, rows[i].position), cum = 0, gap = 1;
        uint32_t pick = n - 1, token = st.m[0].out[i].token;
        for (uint32_t j = 0; j < n; j++) {
            cum += p[j].p;
            gap = fmin(gap, fabs(cum - u));
            if (cum > u) {
                pick = j;
                break;
            }
        }
        if (token != p[pick].id && gap < 1e-5) {
            borders++;
            continue;
        }
        assert_int_equal(token, p[pick].id);
        checked++;
    }
    print_message("%u draws checked, %u at a border\n", checked, borders);
    assert_true(checked > 300 && borders < 8);
    /* The same for every cut of the vocabulary and thread count. */
    struct stage two = st, four = st;
    assert_int_equal(run_stage(&two, 2, two_ranks, 1), ERR_OK);
    assert_int_equal(run_stage(&four, 4, four_ranks, 2), ERR_OK);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(st.m[0].out[i].token, two.m[0].out[i].token);
        assert_int_equal(st.m[0].out[i].token, four.m[0].out[i].token);
    }
    free_stage(&st);
    free_stage(&two);
    free_stage(&four);
    free(z);
    free(sl);
    free(rows);
    free(p);
}

/* Log-probabilities of sampled and given tokens and of the top n, with biases and penalties that must not show in them. */
static void test_logprobs_are_of_the_raw_distribution(void **state)
{
    (void)state;
    enum { N = 60, TOP = 20 };
    lcg = 99;
    float *z = random_logits(N, VOCAB, 4.0f);
    struct slot *sl = calloc(N, sizeof(*sl));
    struct sampler_row *rows = calloc(N, sizeof(*rows));
    struct plain *p = malloc(VOCAB * sizeof(*p));
    uint32_t bias_id[3] = {5, 600, 2099};
    struct slot_count *counts = calloc(VOCAB, sizeof(*counts));
    float bias[3] = {3, -50, 8};
    for (uint32_t i = 0; i < VOCAB; i += 3)
        counts[i] = (struct slot_count){3, i % 4};
    for (uint32_t i = 0; i < N; i++) {
        sl[i] = (struct slot){.live = true, .temperature = i % 3 ? 0.8f : 0, .top_p = i % 4 ? 0.9f : 1, .repetition_penalty = 1.3f,
                              .frequency_penalty = 0.2f, .presence_penalty = 0.5f, .has_penalties = true, .counts = counts, .seed = i,
                              .n_bias = 3, .bias_id = bias_id, .bias = bias};
        rows[i] = (struct sampler_row){.slot = &sl[i], .position = i, .sample = i % 2, .logprob = i % 2,
                                       .target = i % 2 ? SAMPLER_NONE : (i * 37) % VOCAB, .n_top = i % TOP};
    }
    struct stage st = {.n = N, .vocab = VOCAB, .logits = z, .slots = sl, .rows = rows, .n_top = TOP}, two = st, four = st;
    assert_int_equal(run_stage(&st, 1, one_rank, 1), ERR_OK);
    assert_int_equal(run_stage(&two, 2, two_ranks, 2), ERR_OK);
    assert_int_equal(run_stage(&four, 4, four_ranks, 1), ERR_OK);
    for (uint32_t i = 0; i < N; i++) {
        struct slot raw = {.temperature = 1, .top_p = 1};
        struct sampler_row *out = &st.m[0].out[i];
        plain_filter(z + (size_t)i * VOCAB, VOCAB, &raw, p);
        uint32_t id = i % 2 ? out->token : (i * 37) % VOCAB, found = 0;
        for (uint32_t j = 0; j < VOCAB; j++)
            if (p[j].id == id) {
                assert_true(fabs(log(p[j].p) - out->lp) < 2e-5);
                found++;
            }
        assert_int_equal(found, 1);
        assert_int_equal(out->n_top_out, i % TOP);
        for (uint32_t j = 0; j < out->n_top_out; j++) {
            assert_int_equal(out->top_id[j], p[j].id);
            assert_true(fabs(log(p[j].p) - out->top_lp[j]) < 2e-5);
        }
        assert_memory_equal(&out->lp, &two.m[0].out[i].lp, 4);
        assert_memory_equal(&out->lp, &four.m[0].out[i].lp, 4);
        assert_int_equal(out->token, two.m[0].out[i].token);
        assert_int_equal(out->token, four.m[0].out[i].token);
    }
    assert_memory_equal(st.m[0].top_lp, four.m[0].top_lp, (size_t)N * TOP * 4);
    free_stage(&st);
    free_stage(&two);
    free_stage(&four);
    free(z);
    free(sl);
    free(rows);
    free(p);
    free(counts);
}

/* Greedy over the plainly adjusted logits: bias, then the ban of stop ids, then the penalties. */
static void test_greedy_takes_the_best_of_the_adjusted_logits(void **state)
{
    (void)state;
    enum { N = 200 };
    lcg = 5;
    float *z = random_logits(N, VOCAB, 1.0f);
    struct slot *sl = calloc(N, sizeof(*sl));
    struct sampler_row *rows = calloc(N, sizeof(*rows));
    struct slot_count *counts = calloc((size_t)N * VOCAB, sizeof(*counts));
    uint32_t *ids = calloc((size_t)N * 8, sizeof(*ids));
    float *bias = calloc((size_t)N * 8, sizeof(*bias));
    for (uint32_t i = 0; i < N; i++) {
        float *row = z + (size_t)i * VOCAB;
        for (uint32_t j = 0; j < VOCAB; j++)
            if (uniform01() < 0.3)
                counts[(size_t)i * VOCAB + j] = (struct slot_count){3, (uint32_t)(uniform01() * 4)};
        for (uint32_t j = 0; j < 8; j++) {
            ids[i * 8 + j] = j * 250 + i; /* rising */
            bias[i * 8 + j] = 4 * normal();
        }
        if (i % 5 == 0) /* a tie for the best: the lower id wins */
            row[1999] = row[3] = 9;
        sl[i] = (struct slot){.live = true, .top_p = 1, .repetition_penalty = i % 2 ? 1.5f : 1, .presence_penalty = i % 3 ? 0.4f : 0,
                              .frequency_penalty = i % 7 ? 0.1f : 0, .has_penalties = true, .counts = counts + (size_t)i * VOCAB,
                              .n_bias = i % 4 ? 8 : 0, .bias_id = ids + i * 8, .bias = bias + i * 8,
                              .min_tokens = 10, .prompt_len = 100, .n_stop = 5, .stop = ids + i * 8 + 3};
        rows[i] = (struct sampler_row){.slot = &sl[i], .position = i % 2 ? 105 : 110, .sample = true, .target = SAMPLER_NONE};
    }
    struct stage st = {.n = N, .vocab = VOCAB, .logits = z, .slots = sl, .rows = rows};
    assert_int_equal(run_stage(&st, 4, four_ranks, 2), ERR_OK);
    for (uint32_t i = 0; i < N; i++) {
        uint32_t best = 0;
        double best_z = -INFINITY;
        for (uint32_t j = 0; j < VOCAB; j++) {
            double v = z[(size_t)i * VOCAB + j];
            struct slot_count c = sl[i].counts[j];
            for (uint32_t b = 0; b < sl[i].n_bias; b++)
                v += sl[i].bias_id[b] == j ? sl[i].bias[b] : 0;
            if (i % 2) /* 5 tokens of output so far, 10 are wanted */
                for (uint32_t b = 0; b < 5; b++)
                    v = sl[i].stop[b] == j ? -INFINITY : v;
            if (c.all)
                v = v > 0 ? v / sl[i].repetition_penalty : v * sl[i].repetition_penalty;
            if (c.output)
                v -= c.output * sl[i].frequency_penalty + sl[i].presence_penalty;
            if (v > best_z + 1e-9) {
                best_z = v;
                best = j;
            }
        }
        assert_int_equal(st.m[0].out[i].token, best);
    }
    free_stage(&st);
    free(z);
    free(sl);
    free(rows);
    free(counts);
    free(ids);
    free(bias);
}

static void test_logits_that_are_not_finite_are_an_error_on_every_rank(void **state)
{
    (void)state;
    lcg = 3;
    static const float bad[] = {NAN, INFINITY};
    for (uint32_t b = 0; b < 2; b++)
        for (uint32_t greedy = 0; greedy < 2; greedy++) {
            float *z = random_logits(2, VOCAB, 1.0f);
            z[VOCAB + 1700] = bad[b];
            struct slot sl = {.live = true, .temperature = greedy ? 0 : 1, .top_p = 1, .repetition_penalty = 1};
            struct sampler_row rows[2] = {{.slot = &sl, .sample = true, .target = SAMPLER_NONE}, {.slot = &sl, .sample = true, .target = SAMPLER_NONE}};
            struct stage st = {.n = 2, .vocab = VOCAB, .logits = z, .slots = &sl, .rows = rows};
            assert_int_equal(run_stage(&st, 2, two_ranks, 1), ERR_CORRUPT);
            free_stage(&st);
            free(z);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unfiltered_draws_follow_the_distribution),
        cmocka_unit_test(test_filters_equal_a_plain_sort_and_cut),
        cmocka_unit_test(test_logprobs_are_of_the_raw_distribution),
        cmocka_unit_test(test_greedy_takes_the_best_of_the_adjusted_logits),
        cmocka_unit_test(test_logits_that_are_not_finite_are_an_error_on_every_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
