/* Sampling on a GPU against worker/sampler.c, given the same logits: the same tokens, and the same bits of log-probabilities and of mirostat's state. (What worker/sampler.c
 * gives is itself checked against the definitions in tests/unit/test_sampler*.c.) Counts of tokens are formed here by plain loops. */
#include "base/check.h"
#include "base/pool.h"
#include "kernels/cuda/sample.h"
#include "tests/tools/random.h"
#include "tests/tools/sanitized.h"
#include "worker/sampler.h"
#include "worker/sampler_adjust.h"
#include "worker/sampler_history.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 16, CTX = 256, TOP_CAP = MSG_LOGPROBS_MAX, VOCAB_MAX = 40000 };
#define OK(call) assert_int_equal(call, cudaSuccess)

static uint32_t below(uint32_t n)
{
    return (uint32_t)(uniform01() * n);
}
static bool chance(double p)
{
    return uniform01() < p;
}

/* ---- rows: a slot each, with what a slot points to */

struct made {
    struct slot slot;
    struct sampler_row row;
    uint32_t stop[MSG_STOP_IDS_MAX], bias_id[MSG_BIAS_MAX], tokens[CTX], bad_id[64], bad_len[32], none[VOCAB_MAX / 32 + 1], allowed[VOCAB_MAX / 32 + 1];
    float bias[MSG_BIAS_MAX];
    struct slot_count *counts; /* [vocab] */
    uint32_t top_id[TOP_CAP];
    float top_lp[TOP_CAP];
};

/* What the penalties look at before `position`: by its definition. */
static void count_tokens(struct made *m, uint32_t vocab, uint32_t position)
{
    struct slot *s = &m->slot;
    memset(m->counts, 0, vocab * sizeof(*m->counts));
    uint32_t first = s->penalty_last_n && s->penalty_last_n < position ? position - s->penalty_last_n : 0;
    for (uint32_t i = first; i < position; i++) {
        m->counts[m->tokens[i]].all++;
        m->counts[m->tokens[i]].output += i >= s->prompt_len;
    }
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}
/* Sorts them, and gives how many are left when each stands there once. */
static uint32_t each_once(uint32_t *ids, uint32_t n)
{
    uint32_t kept = 0;
    qsort(ids, n, sizeof(*ids), by_number);
    for (uint32_t i = 0; i < n; i++)
        if (i == 0 || ids[i] != ids[i - 1])
            ids[kept++] = ids[i];
    return kept;
}

enum feature {
    TEMPERATURE, TOP_K, TOP_P, MIN_P, TYPICAL, SIGMA, XTC, DYNATEMP, MIROSTAT, PENALTIES, WINDOW, BIAS, ALLOWED, STOPS, BAD, DRY, LOGPROB, TOP, TARGET,
    FEATURES
};
static void make_row(struct made *m, uint32_t vocab, uint32_t features, uint32_t number)
{
    struct slot_count *counts = m->counts;
    *m = (struct made){.counts = counts};
    struct slot *s = &m->slot;
    static const float temperatures[] = {0, 0.2f, 0.7f, 1, 1, 1.3f, 4}, ps[] = {0.1f, 0.5f, 0.9f, 0.95f, 0.999f}, mins[] = {0.001f, 0.02f, 0.3f};
    static const uint32_t ks[] = {1, 2, 40, 900, 3000}, tops[] = {1, 5, 20, TOP_CAP};
#define HAS(f) (features >> (f) & 1)
    uint32_t len = 1 + below(CTX - 2);
    *s = (struct slot){.live = true, .seed = (uint64_t)number * 0x9E3779B97F4A7C15ull, .choice = number % 5, .top_p = 1, .repetition_penalty = 1, .temperature = 1,
                       .prompt_len = below(len + 1), .stop = m->stop, .bias_id = m->bias_id, .bias = m->bias, .tokens = m->tokens, .counts = m->counts,
                       .bad_id = m->bad_id, .bad_len = m->bad_len, .dry_stop = m->none, .dry_tail = m->none, .mu = 0};
    uint32_t alphabet = 1 + below(30);
    for (uint32_t i = 0; i < len; i++)
        m->tokens[i] = i > 9 && chance(0.6) ? m->tokens[i - 7] : below(alphabet) * (vocab / alphabet);
    if (HAS(TEMPERATURE))
        s->temperature = temperatures[below(ARRAY_LEN(temperatures))];
    if (HAS(TOP_K))
        s->top_k = ks[below(ARRAY_LEN(ks))];
    if (HAS(TOP_P))
        s->top_p = ps[below(ARRAY_LEN(ps))];
    if (HAS(MIN_P))
        s->min_p = mins[below(ARRAY_LEN(mins))];
    if (HAS(TYPICAL))
        s->typical_p = ps[below(ARRAY_LEN(ps))];
    if (HAS(SIGMA))
        s->top_n_sigma = (float)(0.3 + 2 * uniform01());
    if (HAS(XTC)) {
        s->xtc_probability = 0.7f;
        s->xtc_threshold = mins[below(ARRAY_LEN(mins))];
    }
    if (HAS(DYNATEMP)) {
        s->dynatemp_range = (float)uniform01();
        s->dynatemp_exponent = (float)(0.3 + 2 * uniform01());
    }
    if (HAS(MIROSTAT)) {
        s->mirostat = 1 + below(2);
        s->mirostat_tau = 3;
        s->mirostat_eta = 0.1f;
        s->mu = (float)(2 + 8 * uniform01());
    }
    if (HAS(PENALTIES) || HAS(WINDOW)) {
        s->repetition_penalty = chance(0.7) ? 1.3f : 1;
        s->frequency_penalty = chance(0.5) ? 0.4f : 0;
        s->presence_penalty = s->repetition_penalty == 1 && s->frequency_penalty == 0 ? 0.7f : 0;
        s->has_penalties = true;
        s->penalty_last_n = HAS(WINDOW) ? 1 + below(100) : 0;
    }
    if (HAS(BIAS)) {
        s->n_bias = 1 + below(MIN(MSG_BIAS_MAX, vocab / 4));
        for (uint32_t i = 0; i < s->n_bias; i++) {
            m->bias_id[i] = below(vocab);
            m->bias[i] = chance(0.1) ? -100 : 3 * normal();
        }
        s->n_bias = each_once(m->bias_id, s->n_bias);
    }
    if (HAS(STOPS)) {
        s->n_stop = 1 + below(20);
        for (uint32_t i = 0; i < s->n_stop; i++)
            m->stop[i] = below(vocab);
        s->n_stop = each_once(m->stop, s->n_stop);
        s->min_tokens = chance(0.8) ? CTX : 1;
    }
    if (HAS(ALLOWED)) { /* at times only what is banned as a stop */
        s->allowed = m->allowed;
        for (uint32_t i = 0, n = chance(0.5) ? 1 + below(5) : vocab / 3; i < n; i++) {
            uint32_t id = s->n_stop && i < s->n_stop && n < 6 ? m->stop[i] : below(vocab);
            m->allowed[id / 32] |= 1u << id % 32;
        }
    }
    if (HAS(BAD)) {
        for (uint32_t i = 0, at = 0; i < 8; i++, s->n_bad++) {
            m->bad_len[i] = i % 2 ? 1 : 2;
            if (m->bad_len[i] == 2)
                m->bad_id[at++] = m->tokens[len - 1];
            m->bad_id[at++] = below(vocab);
        }
        s->prompt_len = len > 1 ? MIN(s->prompt_len, len - 1) : 0;
    }
    if (HAS(DRY)) {
        s->dry_multiplier = 0.8f;
        s->dry_base = 1.75f;
        s->dry_allowed_length = below(3);
    }
    m->row = (struct sampler_row){.slot = s, .position = len, .sample = !HAS(TARGET) || chance(0.3), .logprob = HAS(LOGPROB),
                                  .target = HAS(TARGET) ? below(vocab) : SAMPLER_NONE, .n_top = HAS(TOP) ? tops[below(ARRAY_LEN(tops))] : 0,
                                  .top_id = m->top_id, .top_lp = m->top_lp};
    count_tokens(m, vocab, len);
}

enum form { FORM_NORMAL, FORM_TIES, FORM_HOLES, FORM_PEAK, FORM_WIDE, FORM_ZEROS, FORM_FLAT, FORMS };
static void make_logits(float *z, uint32_t vocab, enum form f)
{
    for (uint32_t i = 0; i < vocab; i++)
        switch (f) {
        case FORM_TIES:
            z[i] = rintf(2 * normal());
            break;
        case FORM_HOLES:
            z[i] = chance(0.4) ? -INFINITY : 3 * normal();
            break;
        case FORM_WIDE:
            z[i] = 40 * normal();
            break;
        case FORM_ZEROS:
            z[i] = chance(0.5) ? 0.0f : chance(0.5) ? -0.0f : 0.5f * normal();
            break;
        case FORM_FLAT:
            z[i] = 0.01f * normal();
            break;
        default:
            z[i] = 3 * normal();
        }
    if (f == FORM_PEAK)
        z[below(vocab)] = 20;
    z[0] = z[0] > -INFINITY ? z[0] : 0;
}

/* ---- both samplers */

static void *device(const void *host, size_t bytes)
{
    void *p = NULL;
    OK(cudaMalloc(&p, bytes ? bytes : 4));
    if (host && bytes)
        OK(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    return p;
}
static void fetch(void *host, const void *p, size_t bytes)
{
    OK(cudaMemcpy(host, p, bytes, cudaMemcpyDeviceToHost));
}

struct bench {
    uint32_t vocab, tp;
    struct pool *pool;
    struct sampler *cpu;
    struct cuda_sample gpu;
    void *memory;
    cudaStream_t stream;
    size_t stride, rank_stride;
    float *z, *gathered, *dz; /* [ROWS][vocab]; [tp][ROWS][stride] */
    struct made *made;        /* [ROWS] */
    struct cuda_sample_slot *setup;
    struct cuda_sample_result *dout, out[ROWS];
    uint32_t *dtop_id, top_id[ROWS][TOP_CAP];
    float *dtop_lp, top_lp[ROWS][TOP_CAP];
    uint32_t n_slow, n_corrupt;
};
static void open_bench(struct bench *b, uint32_t vocab, uint32_t tp)
{
    *b = (struct bench){.vocab = vocab, .tp = tp};
    struct sampler_config pc = {.tp = 1, .vocab = vocab, .rows_cap = ROWS, .ctx = CTX, .ids = {{0, vocab}}};
    assert_int_equal(pool_create(1, NULL, 0, &b->pool), ERR_OK);
    pc.pool = b->pool;
    assert_int_equal(sampler_create(&pc, &b->cpu), ERR_OK);
    struct cuda_sample_config gc = {.vocab = vocab, .slots = ROWS, .rows_cap = ROWS, .ctx = CTX, .tp = tp};
    uint32_t segs = (vocab + 511) / 512, most = 0;
    for (uint32_t r = 0, at = 0; r < tp; r++) { /* uneven; with few segments some have none */
        uint32_t n = r + 1 == tp ? vocab - at : MIN(vocab - at, (segs * (r + 1) / (2 * tp)) * 512);
        gc.ids[r] = (struct shard_range){at, n};
        at += n;
        most = MAX(most, n);
    }
    b->stride = ROUND_UP(most, 4u) + 4;
    b->rank_stride = ROWS * b->stride;
    b->memory = device(NULL, cuda_sample_bytes(&gc));
    cuda_sample_init(&gc, b->memory, &b->gpu);
    OK(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking));
    b->z = calloc((size_t)ROWS * vocab, sizeof(float));
    b->gathered = calloc(tp * b->rank_stride, sizeof(float));
    b->dz = device(NULL, tp * b->rank_stride * sizeof(float));
    b->made = calloc(ROWS, sizeof(*b->made));
    for (uint32_t i = 0; i < ROWS; i++)
        b->made[i].counts = calloc(vocab, sizeof(struct slot_count));
    OK(cudaMallocHost((void **)&b->setup, ROWS * sizeof(*b->setup)));
    b->dout = device(NULL, sizeof(b->out));
    b->dtop_id = device(NULL, sizeof(b->top_id));
    b->dtop_lp = device(NULL, sizeof(b->top_lp));
}
static void close_bench(struct bench *b)
{
    for (uint32_t i = 0; i < ROWS; i++)
        free(b->made[i].counts);
    cudaFree(b->memory);
    cudaFree(b->dz);
    cudaFree(b->dout);
    cudaFree(b->dtop_id);
    cudaFree(b->dtop_lp);
    cudaFreeHost(b->setup);
    cudaStreamDestroy(b->stream);
    sampler_destroy(&b->cpu);
    pool_destroy(&b->pool);
    free(b->z);
    free(b->gathered);
    free(b->made);
}

static struct cuda_sample_slot gpu_slot(const struct slot *s)
{
    struct cuda_sample_slot g = {.params = slot_params(s), .mu = s->mu, .penalty_last_n = s->penalty_last_n, .has_allowed = s->allowed != NULL,
                                 .n_stop = s->n_stop, .n_bias = s->n_bias};
    memcpy(g.stop, s->stop, s->n_stop * sizeof(*s->stop));
    memcpy(g.bias_id, s->bias_id, s->n_bias * sizeof(*s->bias_id));
    memcpy(g.bias, s->bias, s->n_bias * sizeof(*s->bias));
    return g;
}
static void put_logits(struct bench *b)
{
    for (uint32_t r = 0; r < b->tp; r++)
        for (uint32_t i = 0; i < ROWS; i++)
            memcpy(b->gathered + r * b->rank_stride + i * b->stride, b->z + (size_t)i * b->vocab + b->gpu.cfg.ids[r].first,
                   b->gpu.cfg.ids[r].n * sizeof(float));
    OK(cudaMemcpy(b->dz, b->gathered, b->tp * b->rank_stride * sizeof(float), cudaMemcpyHostToDevice));
}

/* n slots set up, their tokens learnt, their rows sampled on the GPU. */
static void run_gpu(struct bench *b, uint32_t n)
{
    static uint32_t tokens[ROWS * CTX], slot[ROWS * CTX], pos[ROWS * CTX], best[VOCAB_MAX], zs[CTX];
    static struct sampling_change changes[ROWS * (CTX + MSG_BAD_IDS_MAX)];
    struct cuda_sample_row rows[ROWS];
    uint32_t n_tok = 0, n_changes = 0;
    put_logits(b);
    for (uint32_t i = 0; i < n; i++) {
        struct made *m = &b->made[i];
        const struct sampler_row *r = &m->row;
        b->setup[i] = gpu_slot(&m->slot);
        OK(cuda_sample_setup(&b->gpu, i, &b->setup[i], m->slot.allowed, b->stream));
        for (uint32_t j = 0; j < r->position; j++, n_tok++) {
            tokens[n_tok] = m->tokens[j];
            slot[n_tok] = i;
            pos[n_tok] = j;
        }
        rows[i] = (struct cuda_sample_row){.slot = i, .position = r->position, .sample = r->sample, .logprob = r->logprob, .target = r->target,
                                           .n_top = r->n_top, .first_change = n_changes};
        if (r->sample && (m->slot.n_bad || m->slot.dry_multiplier > 0))
            rows[i].n_changes = sampler_history_changes(&m->slot, r->position, best, zs, changes + n_changes);
        n_changes += rows[i].n_changes;
    }
    void *dt = device(tokens, n_tok * 4), *ds = device(slot, n_tok * 4), *dp = device(pos, n_tok * 4), *dr = device(rows, sizeof(rows)),
         *dc = device(changes, n_changes * sizeof(*changes));
    uint32_t half = n_tok / 2; /* two chunks, so that histories are needed */
    OK(cuda_sample_inputs(&b->gpu, dt, ds, dp, half, b->stream));
    OK(cuda_sample_inputs(&b->gpu, (uint32_t *)dt + half, (uint32_t *)ds + half, (uint32_t *)dp + half, n_tok - half, b->stream));
    struct cuda_sample_call call = {b->dz, b->rank_stride, b->stride, dr, dc, b->dout, b->dtop_id, b->dtop_lp, n, TOP_CAP};
    OK(cuda_sample_run(&b->gpu, &call, b->stream));
    OK(cudaStreamSynchronize(b->stream));
    uint32_t slow;
    fetch(&slow, b->gpu.slow, 4);
    b->n_slow += slow;
    fetch(b->out, b->dout, sizeof(b->out));
    fetch(b->top_id, b->dtop_id, sizeof(b->top_id));
    fetch(b->top_lp, b->dtop_lp, sizeof(b->top_lp));
    cudaFree(dt);
    cudaFree(ds);
    cudaFree(dp);
    cudaFree(dr);
    cudaFree(dc);
}

static void tell(const struct made *m, const struct cuda_sample_result *o, uint32_t vocab)
{
    const struct slot *s = &m->slot;
    print_message("vocab %u: token %u, CPU %u; lp %.9g, CPU %.9g; mu %.9g, CPU %.9g; flags %u\n", vocab, o->token, m->row.token, (double)o->lp,
                  (double)m->row.lp, (double)o->mu, (double)m->row.mu, o->flags);
    print_message("temperature %g top_k %u top_p %g min_p %g typical %g sigma %g xtc %g dyna %g mirostat %u penalties %u bias %u allowed %u stop %u bad %u dry %g\n",
                  (double)s->temperature, s->top_k, (double)s->top_p, (double)s->min_p, (double)s->typical_p, (double)s->top_n_sigma,
                  (double)s->xtc_probability, (double)s->dynatemp_range, s->mirostat, s->has_penalties, s->n_bias, s->allowed != NULL, s->n_stop, s->n_bad,
                  (double)s->dry_multiplier);
}
/* The sums that deviation and entropy are made of, in the order that sampling.h gives them. */
static void check_sums(const struct bench *b, uint32_t i, const float *z)
{
    struct sampling_more more[(VOCAB_MAX + 511) / 512];
    fetch(more, b->gpu.more + (size_t)i * b->gpu.n_segs, b->gpu.n_segs * sizeof(*more));
    for (uint32_t g = 0; g < b->gpu.n_segs; g++) {
        double n = 0, sum = 0, squares = 0;
        for (uint32_t j = g * 512; j < MIN(b->vocab, (g + 1) * 512); j++) {
            n += z[j] > -INFINITY;
            sum += z[j] > -INFINITY ? (double)z[j] : 0;
            squares += z[j] > -INFINITY ? (double)z[j] * (double)z[j] : 0;
        }
        assert_true(more[g].n == n && more[g].z == sum && more[g].zz == squares);
    }
}
/* The adjusted logits themselves: a wrong one need not show in a token. */
static void compare_adjusted(const struct bench *b, uint32_t i)
{
    static uint32_t best[VOCAB_MAX], zs[CTX];
    static struct sampling_change changes[CTX + MSG_BAD_IDS_MAX];
    static float want[VOCAB_MAX], got[VOCAB_MAX];
    const struct slot *s = &b->made[i].slot;
    uint32_t position = b->made[i].row.position, n = 0;
    struct sampling_params sp = slot_params(s);
    if (s->n_bad || s->dry_multiplier > 0)
        n = sampler_history_changes(s, position, best, zs, changes);
    struct sampling_plan plan;
    sampling_begin(&sp, b->vocab, position, &plan);
    if (!s->n_bias && !s->has_penalties && !s->allowed && !n && !(s->n_stop && sampling_bans_stops(&sp, position))) {
        if (plan.more)
            check_sums(b, i, b->z + (size_t)i * b->vocab);
        return;
    }
    bool any = false;
    sampler_adjust(s, &sp, position, changes, n, false, b->z + (size_t)i * b->vocab, 0, b->vocab, want);
    for (uint32_t j = 0; j < b->vocab; j++)
        any |= want[j] > -INFINITY;
    if (!any) /* bans are lifted */
        sampler_adjust(s, &sp, position, changes, n, true, b->z + (size_t)i * b->vocab, 0, b->vocab, want);
    fetch(got, b->gpu.adj_logits + i * b->gpu.adj_stride, b->vocab * sizeof(float));
    assert_memory_equal(got, want, b->vocab * sizeof(float));
    if (plan.more)
        check_sums(b, i, got);
}
static void compare(const struct bench *b, uint32_t i)
{
    if (b->made[i].row.sample)
        compare_adjusted(b, i);
    const struct made *m = &b->made[i];
    const struct cuda_sample_result *o = &b->out[i];
    const struct sampler_row *r = &m->row;
    bool same = o->flags == 0 && o->token == r->token && memcmp(&o->mu, &r->mu, 4) == 0 && (isnan(o->lp) ? isnan(r->lp) : memcmp(&o->lp, &r->lp, 4) == 0) &&
                o->n_top == r->n_top_out && memcmp(b->top_id[i], r->top_id, o->n_top * 4) == 0 && memcmp(b->top_lp[i], r->top_lp, o->n_top * 4) == 0;
    if (!same)
        tell(m, o, b->vocab);
    assert_true(same);
}
static void run_and_compare(struct bench *b, uint32_t n)
{
    run_gpu(b, n);
    for (uint32_t i = 0; i < n; i++) { /* row by row: an error is one of the whole call */
        struct sampler_row *r = &b->made[i].row;
        enum err e = sampler_run(b->cpu, NULL, b->z + (size_t)i * b->vocab, b->vocab, r, 1);
        assert_true(e == ERR_OK || e == ERR_CORRUPT);
        assert_int_equal(b->out[i].flags, e == ERR_CORRUPT ? CUDA_SAMPLE_CORRUPT : 0);
        b->n_corrupt += e == ERR_CORRUPT;
        if (e == ERR_OK)
            compare(b, i);
    }
}

/* ---- tests */

static uint32_t random_features(uint32_t number)
{
    uint32_t f = number < 3 * FEATURES ? 1u << number % FEATURES : 0; /* each alone */
    for (uint32_t i = 0; i < FEATURES && number >= 3 * FEATURES; i++)
        f |= (chance(i == MIROSTAT || i == DYNATEMP ? 0.1 : 0.22) ? 1u : 0u) << i;
    return f | (chance(0.5) ? 1u << LOGPROB : 0) | (chance(0.4) ? 1u << TEMPERATURE : 0);
}
static void test_the_same_as_the_cpu(void **state)
{
    (void)state;
    static const struct {
        uint32_t vocab, tp, rows;
    } cases[] = {{513, 1, 400}, {2100, 3, 500}, {700, 2, 300}, {5000, 1, 500}, {5000, 2, 200}, {32003, 1, 80}, {32003, 3, 48}};
    uint32_t n = 0, different = 0, corrupt = 0;
    for (uint32_t c = 0; c < ARRAY_LEN(cases); c++) {
        struct bench b;
        lcg = 100 + c;
        open_bench(&b, cases[c].vocab, cases[c].tp);
        for (uint32_t done = 0; done < cases[c].rows / (SANITIZED ? 8 : 1); done += ROWS) {
            for (uint32_t i = 0; i < ROWS; i++, n++) {
                make_row(&b.made[i], b.vocab, random_features(n), n);
                make_logits(b.z + (size_t)i * b.vocab, b.vocab, (enum form)below(FORM_FLAT));
            }
            run_and_compare(&b, ROWS - done % 3);
            for (uint32_t i = 1; i < ROWS - done % 3; i++)
                different += b.out[i].token != b.out[0].token;
        }
        corrupt += b.n_corrupt;
        close_bench(&b);
    }
    print_message("%u rows, %u tokens that differ from their neighbour's, %u with nothing to sample\n", n, different, corrupt);
    assert_true(different > n / 2 && corrupt < n / 20);
}

/* More candidates than a block holds, and best ones that are all alike. */
static void test_rows_that_need_the_whole_vocabulary(void **state)
{
    (void)state;
    static const uint32_t vocabs[] = {9000, 32003};
    for (uint32_t v = 0; v < ARRAY_LEN(vocabs); v++) {
        struct bench b;
        lcg = 7 + v;
        open_bench(&b, vocabs[v], 1 + v);
        for (uint32_t i = 0; i < ROWS; i++) {
            make_row(&b.made[i], b.vocab, 1u << LOGPROB | (i % 4 == 3 ? 1u << TOP : 0), 1000 + i);
            make_logits(b.z + (size_t)i * b.vocab, b.vocab, FORM_FLAT);
            struct slot *s = &b.made[i].slot;
            s->top_p = i % 4 == 0 ? 0.99f : 1;
            s->top_n_sigma = i % 4 == 1 ? 3 : 0;
            s->min_p = i % 4 == 2 ? 0.9f : 0;
            s->mirostat = i == 6 ? 2 : i == 10 ? 1 : 0;
            s->mu = 20;
            s->xtc_probability = i == 7 ? 1 : 0;
            for (uint32_t j = 0; i % 4 == 3 && j < b.vocab; j++) /* all alike, but for a few */
                b.z[(size_t)i * b.vocab + j] = j % 5000 == 17 ? 1 : i == 3 ? -INFINITY : 0.5f;
        }
        run_and_compare(&b, ROWS);
        print_message("vocabulary %u: %u of %u rows sorted it all\n", b.vocab, b.n_slow, ROWS);
        assert_true(b.n_slow >= 8);
        close_bench(&b);
    }
}

/* Passes over the segments after the first: at the temperature that the entropy gave, and with bans lifted. More segments than a block has warps. */
static void test_rows_that_look_twice(void **state)
{
    (void)state;
    struct bench b;
    lcg = 23;
    open_bench(&b, 12345, 3);
    for (uint32_t i = 0; i < ROWS; i++) {
        make_row(&b.made[i], b.vocab, 1u << LOGPROB | 1u << BIAS | (i % 2 ? 1u << TYPICAL : 1u << SIGMA) | (i % 4 ? 1u << DYNATEMP : 0) | 1u << PENALTIES, 2000 + i);
        make_logits(b.z + (size_t)i * b.vocab, b.vocab, i % 3 ? FORM_NORMAL : FORM_HOLES);
        if (i % 5 == 0) { /* all that is allowed is a stop */
            struct slot *s = &b.made[i].slot;
            s->allowed = b.made[i].allowed;
            s->n_stop = 100;
            s->min_tokens = CTX;
            for (uint32_t j = 0; j < s->n_stop; j++) {
                uint32_t id = s->stop[j] = j * (b.vocab / 100);
                s->allowed[id / 32] |= 1u << id % 32;
                b.z[(size_t)i * b.vocab + id] = normal();
            }
        }
    }
    run_and_compare(&b, ROWS);
    assert_int_equal(b.n_corrupt, 0);
    close_bench(&b);
}

static void test_logits_that_are_not_finite(void **state)
{
    (void)state;
    struct bench b;
    lcg = 3;
    open_bench(&b, 2100, 2);
    static const float odd[] = {NAN, INFINITY, -NAN};
    for (uint32_t f = 0; f < FEATURES; f++) {
        for (uint32_t i = 0; i < ROWS; i++) {
            make_row(&b.made[i], b.vocab, 1u << f, f * ROWS + i);
            make_logits(b.z + (size_t)i * b.vocab, b.vocab, FORM_NORMAL);
            if (i % 2)
                b.z[(size_t)i * b.vocab + below(b.vocab)] = odd[i % 3];
            for (uint32_t j = 0; i == 14 && j < b.vocab; j++) /* nothing at all */
                b.z[(size_t)i * b.vocab + j] = -INFINITY;
        }
        run_and_compare(&b, ROWS);
        for (uint32_t i = 1; i < ROWS; i += 2) /* a ban may hide one */
            assert_true(f == ALLOWED || f == STOPS || f == BAD || b.out[i].flags == CUDA_SAMPLE_CORRUPT);
    }
    print_message("%u of %u rows are corrupt\n", b.n_corrupt, FEATURES * ROWS);
    close_bench(&b);
}

/* Steps that follow each other in a captured graph, replayed: the input of each is what the one before sampled, and nothing is read back until the end. Half of the
 * slots have penalties, some of them over a window; one has mirostat; one row is padding. */
static void test_steps_without_the_host(void **state)
{
    (void)state;
    enum { VOCAB = 1500, STEPS = 40, START = 11, PAD = ROWS - 1 };
    struct bench b;
    lcg = 17;
    open_bench(&b, VOCAB, 1);
    static const uint32_t features[] = {0, 1u << PENALTIES, 1u << WINDOW, 1u << MIROSTAT, 1u << WINDOW | 1u << TOP_P, 1u << PENALTIES | 1u << TEMPERATURE};
    for (uint32_t i = 0; i < ROWS; i++) {
        make_row(&b.made[i], VOCAB, features[i % ARRAY_LEN(features)] | 1u << LOGPROB, 500 + i);
        for (uint32_t j = 0; j < START; j++)
            b.made[i].tokens[j] = below(40);
        b.made[i].slot.prompt_len = 4 + i % 5;
        b.made[i].row.position = START;
        b.made[i].row.sample = true;
        b.made[i].slot.penalty_last_n = b.made[i].slot.penalty_last_n % 30;
        make_logits(b.z + (size_t)i * VOCAB, VOCAB, FORM_NORMAL);
        for (uint32_t j = 40; j < VOCAB; j++) /* few likely ones, so that penalties tell */
            b.z[(size_t)i * VOCAB + j] -= 6;
    }
    run_gpu(&b, ROWS);
    uint32_t sampled[ROWS], slot[ROWS], pos[ROWS];
    struct cuda_sample_row rows[ROWS];
    for (uint32_t i = 0; i < ROWS; i++) {
        sampled[i] = STEP_TOKEN_SAMPLED;
        slot[i] = i == PAD ? SAMPLING_NONE : i;
    }
    struct cuda_sample_result *results = device(NULL, STEPS * sizeof(b.out));
    void *dtok = device(NULL, sizeof(sampled)), *dslot = device(slot, sizeof(slot)), *dpos = device(NULL, sizeof(pos)), *drow = device(NULL, sizeof(rows));
    struct cuda_sample_call call = {b.dz, b.rank_stride, b.stride, drow, NULL, b.dout, b.dtop_id, b.dtop_lp, ROWS, TOP_CAP};
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeThreadLocal));
    OK(cuda_sample_inputs(&b.gpu, dtok, dslot, dpos, ROWS, b.stream));
    OK(cuda_sample_run(&b.gpu, &call, b.stream));
    OK(cudaStreamEndCapture(b.stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    struct step_block {
        uint32_t pos[ROWS], token[ROWS];
        struct cuda_sample_row rows[ROWS];
    } *blocks;
    OK(cudaMallocHost((void **)&blocks, STEPS * sizeof(*blocks)));
    for (uint32_t t = 0; t < STEPS; t++) { /* all is in the stream before anything is known */
        for (uint32_t i = 0; i < ROWS; i++) {
            blocks[t].pos[i] = START + t;
            blocks[t].token[i] = sampled[i];
            blocks[t].rows[i] = (struct cuda_sample_row){.slot = slot[i], .position = START + t + 1, .sample = 1, .logprob = 1, .target = SAMPLING_NONE};
        }
        OK(cudaMemcpyAsync(dpos, blocks[t].pos, sizeof(pos), cudaMemcpyHostToDevice, b.stream));
        OK(cudaMemcpyAsync(dtok, blocks[t].token, sizeof(sampled), cudaMemcpyHostToDevice, b.stream));
        OK(cudaMemcpyAsync(drow, blocks[t].rows, sizeof(rows), cudaMemcpyHostToDevice, b.stream));
        OK(cudaGraphLaunch(exec, b.stream));
        OK(cudaMemcpyAsync(results + t * ROWS, b.dout, sizeof(b.out), cudaMemcpyDeviceToDevice, b.stream));
    }
    OK(cudaStreamSynchronize(b.stream));
    struct cuda_sample_result *got = malloc(STEPS * sizeof(b.out));
    fetch(got, results, STEPS * sizeof(b.out));
    for (uint32_t i = 0; i < ROWS; i++)
        assert_int_equal(got[PAD].token, SAMPLING_NONE);
    for (uint32_t i = 0; i < PAD; i++)
        for (uint32_t t = 0; t <= STEPS; t++) {
            struct made *m = &b.made[i];
            const struct cuda_sample_result *o = t ? &got[(t - 1) * ROWS + i] : &b.out[i];
            m->row.position = START + t;
            count_tokens(m, VOCAB, START + t);
            assert_int_equal(sampler_run(b.cpu, NULL, b.z + (size_t)i * VOCAB, VOCAB, &m->row, 1), ERR_OK);
            if (o->token != m->row.token)
                tell(m, o, t);
            assert_int_equal(o->token, m->row.token);
            assert_memory_equal(&o->lp, &m->row.lp, 4);
            assert_memory_equal(&o->mu, &m->row.mu, 4);
            m->slot.mu = m->row.mu;
            m->tokens[START + t] = m->row.token;
        }
    uint32_t last[ROWS];
    fetch(last, dtok, sizeof(last));
    for (uint32_t i = 0; i < PAD; i++) /* the input of the last step */
        assert_int_equal(last[i], got[(STEPS - 2) * ROWS + i].token);
    assert_int_equal(last[PAD], STEP_TOKEN_SAMPLED);
    free(got);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaFreeHost(blocks);
    cudaFree(results);
    cudaFree(dtok);
    cudaFree(dslot);
    cudaFree(dpos);
    cudaFree(drow);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_as_the_cpu),
        cmocka_unit_test(test_rows_that_need_the_whole_vocabulary),
        cmocka_unit_test(test_rows_that_look_twice),
        cmocka_unit_test(test_logits_that_are_not_finite),
        cmocka_unit_test(test_steps_without_the_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
