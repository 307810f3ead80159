/* Filters that look at the whole distribution, mirostat's state, and what looks back at the tokens, against the definitions in their plainest form:
 * everything sorted or compared with everything, in double, with libm. Nothing is shared with worker/ but the Philox uniforms. */
#include "base/rng.h"
#include "tests/tools/sanitized.h"
#include "tests/unit/sampler_stage.h"
#include "worker/sampler_history.h"

struct plain {
    double z, p, far; /* logit; probability; distance of the surprise from the entropy */
    uint32_t id;
};
static int by_p(const void *a, const void *b)
{
    const struct plain *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}
static int by_far(const void *a, const void *b)
{
    const struct plain *x = a, *y = b;
    return x->far != y->far ? (x->far > y->far ? 1 : -1) : by_p(a, b);
}
static void normalise(struct plain *v, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += v[i].p;
    for (uint32_t i = 0; i < n; i++)
        v[i].p /= sum;
}
static double entropy(const struct plain *v, uint32_t n)
{
    double h = 0;
    for (uint32_t i = 0; i < n; i++)
        h -= v[i].p > 0 ? v[i].p * log(v[i].p) : 0;
    return h;
}
static void softmax(const float *z, uint32_t vocab, double temperature, struct plain *out)
{
    double max = -INFINITY;
    for (uint32_t i = 0; i < vocab; i++)
        max = fmax(max, z[i]);
    for (uint32_t i = 0; i < vocab; i++)
        out[i] = (struct plain){z[i], exp((z[i] - max) / temperature), 0, i};
    normalise(out, vocab);
    qsort(out, vocab, sizeof(*out), by_p);
}

/* How near the nearest decision was to going the other way, relative to what was compared. */
static double border;
static bool less(double a, double b)
{
    border = fmin(border, fabs(a - b) / (fabs(a) + fabs(b) + 1e-300));
    return a < b;
}

/* Each filter as its authors define it; the order is the documented one. */
static uint32_t plain_filter(const float *z, uint32_t vocab, const struct slot *sl, double u_xtc, struct plain *v)
{
    double temperature = sl->temperature, mean = 0, var = 0;
    if (sl->dynatemp_range > 0) {
        softmax(z, vocab, 1, v);
        double low = fmax(temperature - sl->dynatemp_range, 0), high = temperature + sl->dynatemp_range;
        temperature = low + (high - low) * pow(entropy(v, vocab) / log(vocab), sl->dynatemp_exponent);
    }
    softmax(z, vocab, temperature, v);
    uint32_t n = vocab;
    if (sl->top_n_sigma > 0) {
        for (uint32_t i = 0; i < vocab; i++)
            mean += z[i] / (double)vocab;
        for (uint32_t i = 0; i < vocab; i++)
            var += (z[i] - mean) * (z[i] - mean) / vocab;
        for (n = 1; n < vocab && !less(v[n].z, v[0].z - sl->top_n_sigma * sqrt(var)); n++)
            ;
    }
    if (sl->min_p > 0)
        for (uint32_t i = 1; i < n; i++)
            if (less(v[i].p, sl->min_p * v[0].p))
                n = i;
    if (sl->top_k && sl->top_k < n)
        n = sl->top_k;
    normalise(v, n);
    if (sl->typical_p > 0 && sl->typical_p < 1) {
        double h = entropy(v, n), mass = 0;
        for (uint32_t i = 0; i < n; i++)
            v[i].far = fabs(-log(v[i].p) - h);
        qsort(v, n, sizeof(*v), by_far);
        for (uint32_t i = 0; i < n; i++) {
            if (i > 0)
                less(v[i - 1].far, v[i].far);
            mass += v[i].p;
            if (!less(mass, sl->typical_p)) {
                n = i + 1;
                break;
            }
        }
        qsort(v, n, sizeof(*v), by_p);
        normalise(v, n);
    }
    if (sl->top_p < 1) {
        double mass = 0;
        for (uint32_t i = 0; i < n; i++) {
            mass += v[i].p;
            if (!less(mass, sl->top_p)) {
                n = i + 1;
                break;
            }
        }
        normalise(v, n);
    }
    if (u_xtc < sl->xtc_probability) {
        uint32_t above = 0;
        while (above < n && !less(v[above].p, sl->xtc_threshold))
            above++;
        if (above > 1) {
            n -= above - 1;
            memmove(v, v + above - 1, n * sizeof(*v));
            normalise(v, n);
        }
    }
    return n;
}
static uint32_t plain_pick(const struct plain *v, uint32_t n, double u)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += v[i].p;
        border = fmin(border, fabs(sum - u));
        if (sum > u)
            return i;
    }
    return n - 1;
}
static double xtc_uniform(const struct slot *sl, uint32_t position)
{
    return rng_uniform(sl->seed, sl->choice + (1u << 30), position);
}

static void test_filters_equal_their_definitions_for_every_split(void **state)
{
    (void)state;
    enum { N = SANITIZED ? 120 : 480 };
    lcg = 11;
    float *z = random_logits(N, VOCAB, 3.0f);
    struct slot *sl = calloc(N, sizeof(*sl));
    struct sampler_row *rows = calloc(N, sizeof(*rows));
    struct plain *v = malloc(VOCAB * sizeof(*v));
    static const float typicals[] = {0, 0.2f, 0.5f, 0.9f, 0.99f}, sigmas[] = {0, 0, 0.5f, 1, 2}, thresholds[] = {0.05f, 0.1f, 0.001f, 0.3f};
    for (uint32_t i = 0; i < N; i++) {
        sl[i] = (struct slot){.live = true, .temperature = (float)(0.4 + 1.2 * uniform01()), .top_p = i % 4 == 1 ? 0.8f : 1, .repetition_penalty = 1,
                              .min_p = i % 7 == 2 ? 0.02f : 0, .top_k = i % 5 == 3 ? 50 : 0, .typical_p = typicals[i % 5], .top_n_sigma = sigmas[i / 5 % 5],
                              .xtc_probability = i % 3 ? 0.5f : 0, .xtc_threshold = thresholds[i / 3 % 4],
                              .dynatemp_range = i % 6 == 4 ? 0.3f : 0, .dynatemp_exponent = i % 12 == 4 ? 1 : 0.5f, .seed = i * 77, .choice = i % 4};
        rows[i] = (struct sampler_row){.slot = &sl[i], .position = 13 * i, .sample = true, .target = SAMPLER_NONE};
    }
    struct stage st = {.n = N, .vocab = VOCAB, .logits = z, .slots = sl, .rows = rows}, other;
    assert_int_equal(run_stage(&st, 1, one_rank, 1), ERR_OK);
    uint32_t checked = 0, borders = 0, struck = 0;
    for (uint32_t i = 0; i < N; i++) {
        bool filtered = sl[i].top_p < 1 || sl[i].min_p > 0 || sl[i].top_k || (sl[i].typical_p > 0) || sl[i].top_n_sigma > 0;
        double u = xtc_uniform(&sl[i], rows[i].position);
        bool strikes = u < (double)sl[i].xtc_probability;
        if (!filtered && !strikes)
            continue; /* drawn in another order */
        border = 1;
        uint32_t n = plain_filter(z + (size_t)i * VOCAB, VOCAB, &sl[i], u, v);
        uint32_t pick = plain_pick(v, n, rng_uniform(sl[i].seed, sl[i].choice, rows[i].position));
        if (st.m[0].out[i].token != v[pick].id && border < 1e-5) {
            borders++;
            continue;
        }
        assert_int_equal(st.m[0].out[i].token, v[pick].id);
        struck += strikes;
        checked++;
    }
    print_message("%u draws checked (XTC struck in %u), %u at a border\n", checked, struck, borders);
    assert_true(checked > N * 3 / 4 && struck > N / 6 && borders < N / 40);
    const uint32_t *segs[] = {one_rank, two_ranks, three_ranks, four_ranks};
    for (uint32_t tp = 1; tp <= 4; tp++) {
        other = st;
        assert_int_equal(run_stage(&other, tp, segs[tp - 1], 1 + tp % 2), ERR_OK);
        for (uint32_t i = 0; i < N; i++)
            assert_int_equal(st.m[0].out[i].token, other.m[0].out[i].token);
        free_stage(&other);
    }
    free_stage(&st);
    free(z);
    free(sl);
    free(rows);
    free(v);
}

/* Many draws from one distribution against the probabilities that the definitions give; for XTC half of the draws are of the cut one. */
static void test_draws_through_xtc_and_typical_follow_their_distribution(void **state)
{
    (void)state;
    enum { DRAWS = SANITIZED ? 4000 : 40000, SMALL = 600 };
    for (uint32_t form = 0; form < 2; form++) {
        lcg = 5 + form;
        float *one = random_logits(1, SMALL, 2.0f), *z = malloc((size_t)16 * SMALL * sizeof(float));
        double p[SMALL] = {0}, chi = 0, rest_p = 0, rest_n = 0;
        uint32_t count[SMALL] = {0}, cells = 0;
        struct plain v[SMALL];
        struct slot sl = {.live = true, .temperature = 0.9f, .top_p = 1, .repetition_penalty = 1, .seed = 99};
        if (form == 0) {
            sl.xtc_probability = 0.5f;
            sl.xtc_threshold = 0.02f;
        } else {
            sl.typical_p = 0.7f;
        }
        for (uint32_t strikes = 0; strikes < 2; strikes++) {
            uint32_t n = plain_filter(one, SMALL, &sl, strikes ? 0 : 1, v);
            for (uint32_t i = 0; i < n; i++)
                p[v[i].id] += v[i].p / 2;
        }
        struct sampler_row rows[16];
        struct sampler_config cfg = {.tp = 1, .vocab = SMALL, .rows_cap = 16, .ctx = CTX, .ids = {{0, SMALL}}};
        struct sampler *s;
        assert_int_equal(pool_create(1, NULL, 0, &cfg.pool), ERR_OK);
        assert_int_equal(sampler_create(&cfg, &s), ERR_OK);
        for (uint32_t i = 0; i < 16; i++)
            memcpy(z + (size_t)i * SMALL, one, SMALL * sizeof(float));
        for (uint32_t i = 0; i < DRAWS; i += 16) {
            for (uint32_t j = 0; j < 16; j++)
                rows[j] = (struct sampler_row){.slot = &sl, .position = i + j, .sample = true, .target = SAMPLER_NONE};
            assert_int_equal(sampler_run(s, NULL, z, SMALL, rows, 16), ERR_OK);
            for (uint32_t j = 0; j < 16; j++)
                count[rows[j].token]++;
        }
        for (uint32_t i = 0; i < SMALL; i++) {
            assert_true(p[i] > 0 || count[i] == 0);
            if (p[i] * DRAWS < 5) {
                rest_p += p[i] * DRAWS;
                rest_n += count[i];
                continue;
            }
            chi += (count[i] - p[i] * DRAWS) * (count[i] - p[i] * DRAWS) / (p[i] * DRAWS);
            cells++;
        }
        chi += rest_p > 0 ? (rest_n - rest_p) * (rest_n - rest_p) / rest_p : 0;
        print_message("form %u: chi-square %.1f with %u degrees of freedom\n", form, chi, cells);
        assert_true(cells > 20 && fabs(chi - cells) < 5 * sqrt(2.0 * cells));
        sampler_destroy(&s);
        pool_destroy(&cfg.pool);
        free(one);
        free(z);
    }
}

/* mirostat over texts of random distributions: token and state follow the paper's formulas in double; with version 2 the surprise comes to tau. */
static void test_mirostat_follows_its_formulas(void **state)
{
    (void)state;
    enum { STEPS = SANITIZED ? 60 : 400, M = 100 };
    struct plain *v = malloc(VOCAB * sizeof(*v));
    for (uint32_t version = 1; version <= 2; version++) {
        lcg = 21;
        float *z = random_logits(STEPS, VOCAB, 2.5f);
        double mu = 6, tau = 3, eta = 0.1, surprises = 0;
        uint32_t borders = 0;
        struct slot sl = {.live = true, .temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 5, .mirostat = version, .mirostat_tau = 3,
                          .mirostat_eta = 0.1f, .mu = 6};
        for (uint32_t t = 0; t < STEPS; t++) {
            struct sampler_row row = {.slot = &sl, .position = t, .sample = true, .target = SAMPLER_NONE};
            struct stage st = {.n = 1, .vocab = VOCAB, .logits = z + (size_t)t * VOCAB, .slots = &sl, .rows = &row};
            assert_int_equal(run_stage(&st, 1 + t % 4, (const uint32_t *[]){one_rank, two_ranks, three_ranks, four_ranks}[t % 4], 1), ERR_OK);
            softmax(st.logits, VOCAB, 1, v);
            border = 1;
            uint32_t n = 1;
            if (version == 2) {
                while (n < VOCAB && !less(mu, -log2(v[n].p)))
                    n++;
            } else {
                double tb = 0, tt = 0;
                for (uint32_t i = 0; i < M - 1; i++) {
                    double ti = log((i + 2.0) / (i + 1.0));
                    tb += ti * log(v[i].p / v[i + 1].p);
                    tt += ti * ti;
                }
                double s = tb / tt, e = s - 1, k = pow(e * pow(2, mu) / (1 - pow(VOCAB, -e)), 1 / s);
                border = fmin(border, fabs(k - rint(k)) / k);
                n = k < 1 ? 1 : k > VOCAB ? VOCAB : (uint32_t)k;
            }
            normalise(v, n);
            uint32_t pick = plain_pick(v, n, rng_uniform(5, 0, t));
            struct sampler_row *out = &st.m[0].out[0];
            if (out->token != v[pick].id && border < 1e-4) { /* go on from what was drawn */
                borders++;
                for (pick = 0; v[pick].id != out->token;)
                    pick++;
            }
            assert_int_equal(out->token, v[pick].id);
            mu -= eta * (-log2(v[pick].p) - tau);
            surprises += -log2(v[pick].p);
            assert_true(fabs(out->mu - mu) < 2e-3);
            mu = sl.mu = out->mu; /* as a step's result carries it */
            free_stage(&st);
        }
        print_message("mirostat %u: mean surprise %.2f bits for tau 3, %u at a border\n", version, surprises / STEPS, borders);
        assert_true(borders <= STEPS / 40);
        assert_true(version == 1 || SANITIZED || fabs(surprises / STEPS - tau) < 0.3);
        free(z);
    }
    free(v);
}

static bool bit(const uint32_t *bits, uint32_t id)
{
    return bits[id / 32] >> id % 32 & 1;
}

/* Every earlier place compared with the end, token by token. cost: of each id of a vocabulary of 64. */
static void plain_dry(const struct slot *sl, uint32_t n_all, double *cost)
{
    uint32_t first = sl->dry_last_n && sl->dry_last_n < n_all ? n_all - sl->dry_last_n : 0, limit = n_all - first;
    int64_t longest[64];
    for (uint32_t i = 0; i < 64; i++)
        longest[i] = -1;
    for (int64_t at = (int64_t)n_all - 1; at >= (int64_t)first && limit == n_all - first; at--) { /* the last sequence that breaks */
        uint32_t most = bit(sl->dry_stop, sl->tokens[at]) ? 1 : 0;
        for (uint32_t s = 0, id = 0; s < sl->n_dry; id += sl->dry_len[s++]) {
            uint32_t same = 0;
            while (same < sl->dry_len[s] && at + same < n_all && sl->tokens[at + same] == sl->dry_id[id + same])
                same++;
            if (same == sl->dry_len[s] && same > most)
                most = same;
        }
        if (most)
            limit = (uint32_t)(n_all - at - most);
    }
    for (uint32_t i = first + 1; i < n_all; i++) { /* the token there followed a run of `len` that also ends the text */
        uint32_t len = 0;
        while (len < i - first && len < limit && sl->tokens[i - 1 - len] == sl->tokens[n_all - 1 - len])
            len++;
        if (len > longest[sl->tokens[i]])
            longest[sl->tokens[i]] = len;
    }
    for (uint32_t id = 0; id < 64; id++) {
        bool counts = longest[id] >= (int64_t)sl->dry_allowed_length && limit >= sl->dry_allowed_length && !bit(sl->dry_stop, id) &&
                      n_all - first > sl->dry_allowed_length;
        cost[id] = counts ? sl->dry_multiplier * pow(sl->dry_base, (double)(longest[id] - sl->dry_allowed_length)) : 0;
    }
}

static void test_dry_equals_comparing_everything_with_everything(void **state)
{
    (void)state;
    enum { TEXTS = 3000, LEN = 120 };
    lcg = 77;
    uint32_t tokens[LEN], best[64] = {0}, z[LEN], stop[2], tail[2], dry_id[8], dry_len[3], penalised = 0, broken = 0;
    struct sampling_change out[LEN + 8];
    for (uint32_t t = 0; t < TEXTS; t++) {
        uint32_t n = 1 + (uint32_t)(uniform01() * LEN), alphabet = 1 + (uint32_t)(uniform01() * 12);
        for (uint32_t i = 0; i < n; i++)
            tokens[i] = i > 20 && uniform01() < 0.7 ? tokens[i - 17] : (uint32_t)(uniform01() * alphabet);
        struct slot sl = {.tokens = tokens, .dry_multiplier = 0.8f, .dry_base = 1.75f, .dry_allowed_length = t % 5, .dry_last_n = t % 3 ? 0 : 1 + t % 90,
                          .dry_stop = stop, .dry_tail = tail, .dry_id = dry_id, .dry_len = dry_len, .n_dry = t % 4, .prompt_len = LEN};
        stop[0] = t % 2 ? 1u << t % 16 : 0;
        stop[1] = tail[0] = tail[1] = 0;
        for (uint32_t s = 0, at = 0; s < sl.n_dry; s++) {
            dry_len[s] = 2 + s % 2;
            for (uint32_t i = 0; i < dry_len[s]; i++)
                dry_id[at + i] = (uint32_t)(uniform01() * alphabet);
            at += dry_len[s];
            tail[0] |= 1u << dry_id[at - 1];
        }
        for (uint32_t i = 0; i < n; i++)
            sampler_history_learn(&sl, i);
        double cost[64];
        plain_dry(&sl, n, cost);
        uint32_t n_out = sampler_history_changes(&sl, n, best, z, out), found = 0;
        for (uint32_t i = 0; i < n_out; i++) {
            assert_true(i == 0 || out[i - 1].id < out[i].id);
            assert_true(fabs(out[i].minus - cost[out[i].id]) <= 1e-5 * cost[out[i].id]);
        }
        for (uint32_t id = 0; id < 64; id++) {
            found += cost[id] > 0;
            assert_int_equal(best[id], 0);
        }
        assert_int_equal(n_out, found);
        penalised += n_out > 0;
        broken += stop[0] != 0 && n_out > 0;
    }
    print_message("%u texts with a cost, %u of them with breakers\n", penalised, broken);
    assert_true(penalised > TEXTS / 4 && broken > TEXTS / 20);
}

/* A million tokens of one repetition: linear, and the cost stays a number. */
static void test_dry_of_a_long_repetition(void **state)
{
    (void)state;
    enum { LEN = 1 << 20 };
    uint32_t *tokens = calloc(LEN, 4), *z = calloc(LEN, 4), best[64] = {0}, none[2] = {0};
    struct sampling_change *out = calloc(LEN, sizeof(*out));
    struct slot sl = {.tokens = tokens, .dry_multiplier = 1, .dry_base = 2, .dry_allowed_length = 2, .dry_stop = none, .dry_tail = none, .prompt_len = LEN};
    for (uint32_t i = 0; i < LEN; i++) {
        tokens[i] = i % 3;
        sampler_history_learn(&sl, i);
    }
    assert_int_equal(sampler_history_changes(&sl, LEN, best, z, out), 1);
    assert_int_equal(out[0].id, LEN % 3);
    assert_true(out[0].minus > 1e30f && out[0].minus < INFINITY);
    free(tokens);
    free(z);
    free(out);
}

/* Greedy: ids outside of the list, and the last ids of sequences whose beginning stands in the output, are never taken; a list of bans that leaves nothing
 * falls back to what is allowed. */
static void test_lists_of_ids_are_kept(void **state)
{
    (void)state;
    lcg = 9;
    float *z = random_logits(5, VOCAB, 1.0f);
    uint32_t tokens[4] = {10, 11, 12, 13}, bad_id[4] = {1500, 12, 13, 1600}, bad_len[2] = {1, 3}, allowed[(VOCAB + 31) / 32] = {0}, stop[2] = {700, 701};
    for (uint32_t i = 0; i < 5; i++) {
        z[i * VOCAB + 1500] = 9;
        z[i * VOCAB + 1600] = 8;
        z[i * VOCAB + 40] = 7;
        z[i * VOCAB + 701] = -5;
        z[i * VOCAB + 700] = -6;
    }
    allowed[700 / 32] = 1u << 700 % 32 | 1u << 701 % 32;
    struct slot sl[5];
    struct sampler_row rows[5];
    for (uint32_t i = 0; i < 5; i++) {
        sl[i] = (struct slot){.live = true, .top_p = 1, .repetition_penalty = 1, .tokens = tokens};
        rows[i] = (struct sampler_row){.slot = &sl[i], .position = 4, .sample = true, .target = SAMPLER_NONE};
    }
    for (uint32_t i = 0; i < 2; i++) { /* 12 13 stand in the output, or 12 is of the prompt yet */
        sl[i].n_bad = 2;
        sl[i].bad_id = bad_id;
        sl[i].bad_len = bad_len;
        sl[i].prompt_len = 2 + i;
    }
    for (uint32_t i = 2; i < 5; i++)
        sl[i].allowed = allowed;
    for (uint32_t i = 3; i < 5; i++) { /* all that is allowed is banned as a stop */
        sl[i].stop = stop;
        sl[i].n_stop = 2;
        sl[i].min_tokens = 9;
        sl[i].temperature = i == 4 ? 0.01f : 0;
        sl[i].typical_p = i == 4 ? 0.9f : 0;
    }
    struct stage st = {.n = 5, .vocab = VOCAB, .logits = z, .slots = sl, .rows = rows};
    assert_int_equal(run_stage(&st, 3, three_ranks, 2), ERR_OK);
    static const uint32_t expected[5] = {40, 1600, 701, 701, 701};
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(st.m[0].out[i].token, expected[i]);
    free_stage(&st);
    free(z);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_filters_equal_their_definitions_for_every_split),
        cmocka_unit_test(test_draws_through_xtc_and_typical_follow_their_distribution),
        cmocka_unit_test(test_mirostat_follows_its_formulas),
        cmocka_unit_test(test_dry_equals_comparing_everything_with_everything),
        cmocka_unit_test(test_dry_of_a_long_repetition),
        cmocka_unit_test(test_lists_of_ids_are_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
