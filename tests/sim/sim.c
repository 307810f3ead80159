/* The simulator: the shipping scheduler, KV block tables and step builder against fake workers, with a virtual clock
 * and planted faults. Everything follows from a seed; a failing one is printed and can be run alone (--first N --seeds
 * 1 --verbose).
 *
 * Faults: the replica is lost at any moment (its results arrive late, in a later epoch), comes back after a while with
 * the same or another number of blocks; requests are cancelled at any moment; pools of a few blocks force preemption;
 * results are slow or fast; up to pp + 1 steps are in flight.
 *
 * After every event: scheduler_check(). For every request: it ends exactly once; its tokens and log-probabilities are
 * those of the fake model's pure function, in order; it ends for the right reason. At the end every block and slot is
 * free, and the end comes within a bounded number of events. */
#include "base/check.h"
#include "coordinator/step.h"
#include "model/hparams.h"
#include "tests/sim/fake_worker.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef SCHEDULER_MUTANTS
int scheduler_mutant;
enum { N_MUTANTS = 8 };
#endif

enum { REQUESTS_MAX = 32, IN_FLIGHT_MAX = 8, LATE_MAX = 64, EVENTS_MAX = 100000, CTX_MAX = 256 };

struct client {                                                        /* what the outside world knows of a request */
    struct seq *seq;                                                   /* NULL: ended, or not submitted */
    uint32_t prompt[CTX_MAX], n_prompt, tokens[2 * CTX_MAX], n_tokens; /* tokens: prompt and what came */
    enum request_kind kind;
    uint32_t pooling, targets[2];
    struct sampling sampling;
    float mu;                      /* mirostat's state after the last token */
    uint64_t submit_ns, cancel_ns; /* cancel_ns 0: never */
    bool submitted, started, ended, prompt_logprobs;
    uint32_t n_refused, n_failed; /* n_failed: since its last token */
};
struct flight {
    struct step_result result;
    uint64_t arrive_ns, sent_ns;
};
struct sim {
    uint64_t seed, rng, now_ns, epoch, ready_ns, fail_ns, busy_until_ns, last_result_ns;
    struct scheduler sched;
    struct fake_worker worker;
    bool up, has_worker;
    uint32_t n_blocks, ctx, n_failures_left, n_clients;
    struct client clients[REQUESTS_MAX];
    struct flight flights[IN_FLIGHT_MAX];
    uint32_t flight_first, n_flights;
    uint64_t late_ns[LATE_MAX]; /* results of a lost epoch, still on their way */
    uint32_t n_late;
    struct arena arena, flight_arena[IN_FLIGHT_MAX];
    uint64_t n_steps, n_tokens, n_preempted, n_recovered, n_dropped;
};
static bool verbose;

static _Noreturn void sim_fail(const struct sim *s, const char *what, const char *detail)
{
    fprintf(stderr, "sim: seed %llu, time %llu us: %s%s%s\n", (unsigned long long)s->seed,
            (unsigned long long)s->now_ns / 1000, what, detail[0] ? ": " : "", detail);
    exit(1);
}
#define REQUIRE(s, cond) ((cond) ? (void)0 : sim_fail(s, #cond, ""))

static uint64_t rnd64(struct sim *s) /* xorshift64* */
{
    s->rng ^= s->rng >> 12;
    s->rng ^= s->rng << 25;
    s->rng ^= s->rng >> 27;
    return s->rng * 0x2545f4914f6cdd1dull;
}
static uint32_t rnd(struct sim *s, uint32_t lo, uint32_t hi) /* both ends included */
{
    return lo + (uint32_t)((rnd64(s) >> 32) % (hi - lo + 1));
}
static bool chance(struct sim *s, uint32_t percent)
{
    return rnd(s, 1, 100) <= percent;
}

/* ---- the world of a seed ---- */

static void make_client(struct sim *s, struct client *c)
{
    c->n_prompt = rnd(s, 1, MIN(s->ctx, chance(s, 30) ? 90u : 20u));
    for (uint32_t i = 0; i < c->n_prompt; i++)
        c->tokens[i] = c->prompt[i] = rnd(s, 0, FAKE_VOCAB - 1);
    c->n_tokens = c->n_prompt;
    struct sampling *p = &c->sampling;
    *p = (struct sampling){
        .seed = rnd64(s), .choice = rnd(s, 0, 3), .max_tokens = rnd(s, 1, chance(s, 20) ? 120 : 30), .temperature = 1};
    p->logprobs = chance(s, 30);
    p->prompt_logprobs = chance(s, 20);
    p->n_logprobs = p->logprobs || p->prompt_logprobs ? rnd(s, 0, 3) : 0;
    if (p->prompt_logprobs && chance(s, 30))
        p->max_tokens = 0;
    p->n_stop_ids = chance(s, 50) ? rnd(s, 1, 2) : 0;
    p->mirostat = chance(s, 30) ? rnd(s, 1, 2) : 0;
    p->mirostat_tau = p->mirostat ? (float)rnd(s, 1, 9) : 0;
    c->mu = 2 * p->mirostat_tau;
    if (chance(s, 15)) {
        c->kind = chance(s, 50) ? REQUEST_EMBED : REQUEST_SCORE;
        c->pooling = chance(s, 50) ? POOLING_MEAN : POOLING_LAST;
        c->targets[0] = rnd(s, 0, FAKE_VOCAB - 1);
        c->targets[1] = rnd(s, 0, FAKE_VOCAB - 1);
        *p = (struct sampling){.top_p = 1};
    }
    c->submit_ns = chance(s, 50) ? 0 : rnd64(s) % 40000000;
    c->cancel_ns = chance(s, 20) ? c->submit_ns + rnd64(s) % 20000000 + 1 : 0;
}

static struct request *make_request(struct sim *s, struct client *c)
{
    struct request *r = request_create(c->n_prompt);
    REQUIRE(s, r);
    memcpy(r->prompt, c->prompt, c->n_prompt * sizeof *r->prompt);
    r->id = (uint64_t)(c - s->clients) + 1;
    r->sampling = c->sampling;
    r->kind = c->kind;
    r->pooling = c->kind == REQUEST_EMBED ? c->pooling : 0;
    r->n_targets = c->kind == REQUEST_SCORE ? 2 : 0;
    memcpy(r->targets, c->targets, sizeof c->targets);
    r->sampling.stop_ids = calloc(2, sizeof(uint32_t));
    REQUIRE(s, r->sampling.stop_ids);
    r->sampling.stop_ids[0] = 7;
    r->sampling.stop_ids[1] = 13;
    return r;
}

static void sim_init(struct sim *s, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    s->seed = seed;
    s->rng = (seed + 1) * 0x9e3779b97f4a7c15ull;
    static const uint32_t chunks[] = {0, 0, 1, 7, 16, 64};
    struct scheduler_config cfg = {.max_seqs = rnd(s, 1, 8),
                                   .queue_max = rnd(s, 0, 24),
                                   .pp = rnd(s, 1, 4),
                                   .prefill_chunk = chunks[rnd(s, 0, 5)],
                                   .step_target_us = rnd(s, 100, 5000),
                                   .embed_max = chance(s, 50) ? rnd(s, 1, 3) : 0};
    cfg.max_step_tokens = cfg.max_seqs + rnd(s, 0, 80);
    s->ctx = rnd(s, 2, 200);
    s->n_blocks = rnd(s, 1, chance(s, 50) ? 12 : 40);
    s->n_failures_left = chance(s, 50) ? rnd(s, 1, chance(s, 20) ? 20 : 6) : 0;
    s->n_clients = rnd(s, 1, REQUESTS_MAX);
    REQUIRE(s, scheduler_init(&s->sched, &cfg) == ERR_OK);
    for (uint32_t i = 0; i < s->n_clients; i++)
        make_client(s, &s->clients[i]);
    s->ready_ns = rnd64(s) % 5000000;
    arena_init(&s->arena, 0);
    for (uint32_t i = 0; i < IN_FLIGHT_MAX; i++)
        arena_init(&s->flight_arena[i], 0);
}

static void sim_deinit(struct sim *s)
{
    scheduler_deinit(&s->sched);
    if (s->has_worker)
        fake_worker_deinit(&s->worker);
    arena_deinit(&s->arena);
    for (uint32_t i = 0; i < IN_FLIGHT_MAX; i++)
        arena_deinit(&s->flight_arena[i]);
}

/* ---- what clients see ---- */

static void check_prompt_logprobs(struct sim *s, struct client *c, const struct token_event *e)
{
    REQUIRE(s, !c->prompt_logprobs && c->n_tokens == c->n_prompt);
    REQUIRE(s, e->n_prompt_logprobs == c->n_prompt && isnan(e->prompt_logprobs[0].logprob));
    for (uint32_t i = 1; i < c->n_prompt; i++) {
        const struct token_logprobs *lp = &e->prompt_logprobs[i];
        REQUIRE(s, lp->logprob == fake_worker_logprob(c->prompt[i], i) && lp->n_top == c->sampling.n_logprobs);
        for (uint32_t j = 0; j < lp->n_top; j++)
            REQUIRE(s, lp->id[j] == fake_worker_top_id(c->prompt[i], j));
    }
    c->prompt_logprobs = true;
}

static uint32_t expected_next(const struct client *c)
{
    return fake_worker_next(c->sampling.seed, c->sampling.choice, c->mu, c->tokens, c->n_tokens);
}

static void check_token(struct sim *s, struct client *c, const struct token_event *e)
{
    uint32_t expected = expected_next(c), pos = c->n_tokens;
    REQUIRE(s, e->n_tokens == 1 && e->tokens[0] == expected);
    REQUIRE(s, !c->sampling.prompt_logprobs || c->prompt_logprobs);
    REQUIRE(s, (e->logprobs != NULL) == c->sampling.logprobs);
    if (e->logprobs) {
        REQUIRE(s, e->logprobs[0].logprob == fake_worker_logprob(expected, pos) &&
                       e->logprobs[0].n_top == c->sampling.n_logprobs);
        for (uint32_t j = 0; j < e->logprobs[0].n_top; j++)
            REQUIRE(s, e->logprobs[0].id[j] == fake_worker_top_id(expected, j));
    }
    c->tokens[c->n_tokens++] = expected;
    if (c->sampling.mirostat)
        c->mu = fake_worker_mu(c->mu, expected);
    c->n_failed = 0;
    s->n_tokens++;
}

static bool is_stop(const struct client *c, uint32_t token)
{
    return (c->sampling.n_stop_ids > 0 && token == 7) || (c->sampling.n_stop_ids > 1 && token == 13);
}

static void client_end(struct sim *s, struct client *c, enum finish finish, uint32_t stop_id)
{
    REQUIRE(s, c->submitted && !c->ended);
    uint32_t n_out = c->n_tokens - c->n_prompt;
    uint32_t next = expected_next(c);
    if (finish == FINISH_STOP && c->kind == REQUEST_GENERATE)
        REQUIRE(s, stop_id == next && is_stop(c, next) && n_out < c->sampling.max_tokens);
    if (finish == FINISH_LENGTH)
        REQUIRE(s, n_out == c->sampling.max_tokens || c->n_tokens >= s->sched.ctx);
    c->ended = true;
    seq_destroy(&c->seq);
}

/* Of the whole prompt, whatever was lost and run again on the way. */
static void check_values(struct sim *s, struct client *c, const struct token_event *e)
{
    bool embed = c->kind == REQUEST_EMBED;
    REQUIRE(s, e->finish == FINISH_STOP && e->n_values == (embed ? (uint32_t)FAKE_DIM : 2u));
    for (uint32_t i = 0; i < e->n_values; i++)
        REQUIRE(s, e->values[i] == fake_worker_value(embed ? FAKE_VOCAB + c->pooling + i : c->targets[i], c->prompt, c->n_prompt));
}

static void check_event(struct sim *s, struct client *c, const struct token_event *e)
{
    REQUIRE(s, !c->ended && e->id == (uint64_t)(c - s->clients) + 1);
    REQUIRE(s, e->started == !c->started);
    c->started = true;
    REQUIRE(s, (e->n_values > 0) == (c->kind != REQUEST_GENERATE && e->finish != FINISH_NONE));
    if (e->n_values)
        check_values(s, c, e);
    if (e->n_prompt_logprobs)
        check_prompt_logprobs(s, c, e);
    for (uint32_t i = 0; i < c->n_tokens - c->n_prompt; i++) /* no token after one that ends the text */
        REQUIRE(s, !is_stop(c, c->tokens[c->n_prompt + i]));
    if (e->n_tokens)
        check_token(s, c, e);
    if (e->finish != FINISH_NONE) {
        REQUIRE(s, !c->sampling.prompt_logprobs || c->prompt_logprobs);
        client_end(s, c, e->finish, e->stop_id);
    }
}

static void end_unfit(struct sim *s)
{
    enum finish finish;
    enum err err;
    for (struct seq *q; (q = scheduler_take_unfit(&s->sched, &finish, &err));) {
        struct client *c = &s->clients[q->req->id - 1];
        if (finish == FINISH_ERROR && err == ERR_PEER_LOST)
            REQUIRE(s, c->n_failed >= SCHEDULER_FAILURES_MAX);
        else if (finish == FINISH_ERROR)
            REQUIRE(s, err == ERR_NO_FIT && c->n_prompt > s->sched.ctx);
        client_end(s, c, finish, 0);
    }
}

/* ---- events ---- */

static void on_submit(struct sim *s, struct client *c)
{
    struct request *r = make_request(s, c);
    struct seq *q = seq_create(r, s->ctx);
    REQUIRE(s, q);
    uint32_t inside = s->sched.queue.n + s->sched.active.n, room = s->sched.cfg.max_seqs + s->sched.cfg.queue_max;
    enum err e = scheduler_submit(&s->sched, q);
    REQUIRE(s, (e == ERR_BUSY) == (inside >= room) && (e == ERR_OK || e == ERR_BUSY));
    if (e == ERR_BUSY) {
        seq_destroy(&q);
        c->submit_ns = s->now_ns + 1 + rnd64(s) % 5000000; /* tries again, as it was told */
        return;
    }
    c->seq = q;
    c->submitted = true;
    end_unfit(s);
}

static void on_cancel(struct sim *s, struct client *c)
{
    c->cancel_ns = 0;
    if (!c->submitted || c->ended)
        return;
    scheduler_cancel(&s->sched, c->seq);
    client_end(s, c, FINISH_CANCEL, 0);
}

static void on_ready(struct sim *s)
{
    s->up = true;
    s->epoch++;
    if (s->has_worker)
        fake_worker_deinit(&s->worker);
    if (s->has_worker && chance(s, 40))
        s->n_blocks = rnd(s, 1, 40);
    fake_worker_init(&s->worker, s->sched.cfg.max_seqs, s->n_blocks);
    s->has_worker = true;
    REQUIRE(s, scheduler_reset(&s->sched, s->n_blocks, s->ctx) == ERR_OK);
    s->busy_until_ns = s->now_ns;
    end_unfit(s);
    s->fail_ns = s->n_failures_left ? s->now_ns + rnd64(s) % 30000000 : UINT64_MAX;
}

static void on_failure(struct sim *s)
{
    s->n_failures_left--;
    s->up = false;
    s->n_recovered++;
    for (struct seq *q = s->sched.active.first; q; q = q->next)
        s->clients[q->req->id - 1].n_failed++;
    for (; s->n_flights; s->n_flights--, s->flight_first = (s->flight_first + 1) % IN_FLIGHT_MAX) {
        arena_reset(&s->flight_arena[s->flight_first]);
        if (s->n_late < LATE_MAX)
            s->late_ns[s->n_late++] = s->now_ns + rnd64(s) % 20000000;
    }
    REQUIRE(s, scheduler_reset(&s->sched, s->sched.kv.n_blocks, s->ctx) == ERR_OK);
    end_unfit(s);
    s->ready_ns = s->now_ns + rnd64(s) % 10000000;
}

static void on_result(struct sim *s)
{
    struct flight *f = &s->flights[s->flight_first];
    const struct step_plan *p = scheduler_oldest(&s->sched);
    struct step_samples m;
    REQUIRE(s, p && f->result.epoch == s->epoch);
    enum err e = step_match(p, &f->result, FAKE_VOCAB, &s->arena, &m);
    if (e != ERR_OK)
        sim_fail(s, "step_match", err_detail());
    uint64_t from = MAX(f->sent_ns, s->last_result_ns);
    scheduler_observe(&s->sched, p->n_tokens - p->n_decodes, p->n_decodes, (double)(s->now_ns - from) / 1000);
    s->last_result_ns = s->now_ns;
    uint32_t n = scheduler_apply(&s->sched, m.token, s->now_ns);
    s->n_dropped += p->n_runs - n;
    for (uint32_t i = 0; i < n; i++) {
        struct seq_outcome *o = &s->sched.outcomes[i];
        struct client *c = &s->clients[o->seq->req->id - 1];
        REQUIRE(s, c->seq == o->seq);
        struct token_event *ev = step_event(p, &f->result, &m, o);
        REQUIRE(s, ev);
        check_event(s, c, ev);
        token_event_destroy(&ev);
    }
    arena_reset(&s->arena);
    arena_reset(&s->flight_arena[s->flight_first]);
    s->flight_first = (s->flight_first + 1) % IN_FLIGHT_MAX;
    s->n_flights--;
}

static void plan_and_send(struct sim *s)
{
    const struct step_plan *p;
    while (s->up && (p = scheduler_plan(&s->sched, s->now_ns))) {
        uint32_t idx = (s->flight_first + s->n_flights) % IN_FLIGHT_MAX, n_prefill = 0;
        REQUIRE(s, s->n_flights <= s->sched.cfg.pp && s->n_flights < IN_FLIGHT_MAX);
        for (uint32_t i = 0; i < p->n_runs; i++)
            n_prefill += p->runs[i].n_tokens > 1 ? p->runs[i].n_tokens : 0;
        REQUIRE(s, !s->sched.cfg.prefill_chunk || n_prefill <= s->sched.cfg.prefill_chunk);
        struct step st;
        REQUIRE(s, step_build(p, &s->sched.kv, s->epoch, &s->arena, &st) == ERR_OK);
        struct flight *f = &s->flights[idx];
        if (!fake_worker_run(&s->worker, &st, &s->flight_arena[idx], &f->result))
            sim_fail(s, "worker", s->worker.error);
        if (verbose)
            printf("%8llu us step %llu: %u runs %u tokens %u freed, queue %u active %u free blocks %u\n",
                   (unsigned long long)s->now_ns / 1000, (unsigned long long)p->step_id, p->n_runs, p->n_tokens,
                   p->n_freed, s->sched.queue.n, s->sched.active.n, s->sched.kv.n_free);
        /* Stages work in order; a result may take long to arrive, but results do not overtake one another. */
        uint64_t start = MAX(s->now_ns, s->busy_until_ns);
        s->busy_until_ns = start + 50000 + p->n_tokens * 10000ull + rnd64(s) % 100000;
        f->sent_ns = s->now_ns;
        f->arrive_ns = s->busy_until_ns + (chance(s, 10) ? rnd64(s) % 3000000 : rnd64(s) % 20000);
        if (s->n_flights) {
            const struct flight *last = &s->flights[(idx + IN_FLIGHT_MAX - 1) % IN_FLIGHT_MAX];
            f->arrive_ns = MAX(f->arrive_ns, last->arrive_ns);
        }
        s->n_flights++;
        s->n_steps++;
        arena_reset(&s->arena);
        scheduler_check(&s->sched);
    }
}

/* ---- the clock ---- */

enum event_kind { EV_NONE, EV_SUBMIT, EV_CANCEL, EV_READY, EV_FAILURE, EV_RESULT, EV_LATE };
struct event {
    enum event_kind kind;
    uint64_t at_ns;
    uint32_t idx;
};

static void consider(struct event *ev, enum event_kind kind, uint64_t at_ns, uint32_t idx)
{
    if (ev->kind == EV_NONE || at_ns < ev->at_ns)
        *ev = (struct event){kind, at_ns, idx};
}

static struct event next_event(const struct sim *s)
{
    struct event ev = {EV_NONE, 0, 0};
    bool open = false;
    for (uint32_t i = 0; i < s->n_clients; i++) {
        const struct client *c = &s->clients[i];
        open |= !c->ended;
        if (!c->submitted)
            consider(&ev, EV_SUBMIT, c->submit_ns, i);
        else if (!c->ended && c->cancel_ns)
            consider(&ev, EV_CANCEL, c->cancel_ns, i);
    }
    if (!open && !s->n_flights && !s->n_late)
        return (struct event){EV_NONE, 0, 0};
    if (!s->up)
        consider(&ev, EV_READY, s->ready_ns, 0);
    if (s->up && s->n_failures_left)
        consider(&ev, EV_FAILURE, s->fail_ns, 0);
    if (s->n_flights)
        consider(&ev, EV_RESULT, s->flights[s->flight_first].arrive_ns, 0);
    for (uint32_t i = 0; i < s->n_late; i++)
        consider(&ev, EV_LATE, s->late_ns[i], i);
    return ev;
}

static void handle(struct sim *s, const struct event *ev)
{
    s->now_ns = MAX(s->now_ns, ev->at_ns);
    switch (ev->kind) {
    case EV_SUBMIT:
        on_submit(s, &s->clients[ev->idx]);
        break;
    case EV_CANCEL:
        on_cancel(s, &s->clients[ev->idx]);
        break;
    case EV_READY:
        on_ready(s);
        break;
    case EV_FAILURE:
        on_failure(s);
        break;
    case EV_RESULT:
        on_result(s);
        break;
    case EV_LATE: /* the engine drops it by its epoch; here it only has to do no harm */
        s->late_ns[ev->idx] = s->late_ns[--s->n_late];
        break;
    case EV_NONE:
        break;
    }
}

static void sim_run(uint64_t seed, uint64_t totals[5])
{
    struct sim *s = malloc(sizeof *s);
    ASSERT(s);
    sim_init(s, seed);
    check_context("seed %llu", (unsigned long long)seed);
    uint32_t n_events = 0;
    for (struct event ev; (ev = next_event(s)).kind != EV_NONE; n_events++) {
        if (n_events == EVENTS_MAX)
            sim_fail(s, "a request never ends", "");
        handle(s, &ev);
        scheduler_check(&s->sched);
        plan_and_send(s);
    }
    for (uint32_t i = 0; i < s->n_clients; i++)
        REQUIRE(s, s->clients[i].ended);
    REQUIRE(s, s->sched.active.n == 0 && s->sched.queue.n == 0 && s->sched.n_draining == 0);
    REQUIRE(s, s->sched.n_free_slots == s->sched.cfg.max_seqs && s->sched.kv.n_free == s->sched.kv.n_blocks);
    totals[0] += s->n_steps;
    totals[1] += s->n_tokens;
    totals[2] += s->sched.n_preemptions;
    totals[3] += s->n_recovered;
    totals[4] += s->n_dropped;
    sim_deinit(s);
    free(s);
}

#ifdef SCHEDULER_MUTANTS
/* Each planted fault must end its run with a failure. */
static int run_mutants(uint64_t n_seeds)
{
    int missed = 0;
    for (int m = 1; m <= N_MUTANTS; m++) {
        fflush(stdout);
        pid_t pid = fork();
        ASSERT(pid >= 0);
        if (pid == 0) {
            uint64_t totals[5] = {0};
            ASSERT(freopen("/dev/null", "w", stderr));
            scheduler_mutant = m;
            for (uint64_t i = 0; i < n_seeds; i++)
                sim_run(i, totals);
            _exit(0);
        }
        int status;
        ASSERT(waitpid(pid, &status, 0) == pid);
        bool caught = !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        printf("mutant %d: %s\n", m, caught ? "caught" : "NOT CAUGHT");
        missed += !caught;
    }
    return missed ? 1 : 0;
}
#endif

int main(int argc, char **argv)
{
    uint64_t n_seeds = 1000, first = 0;
    const char *env = getenv("RACKLM_SIM_SEEDS"); /* how long slow builds (fewer) and --full (more) want it */
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seeds") && i + 1 < argc)
            n_seeds = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--first") && i + 1 < argc)
            first = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--verbose"))
            verbose = true;
        else
            return fprintf(stderr, "usage: sim [--seeds N] [--first S] [--verbose]\n"), 2;
    }
    n_seeds = env ? strtoull(env, NULL, 10) : n_seeds;
#ifdef SCHEDULER_MUTANTS
    (void)first;
    return run_mutants(n_seeds);
#else
    uint64_t totals[5] = {0};
    for (uint64_t i = 0; i < n_seeds; i++)
        sim_run(first + i, totals);
    printf("sim: %llu seeds from %llu: %llu steps, %llu tokens, %llu preemptions, %llu failures, %llu runs dropped; no "
           "violation\n",
           (unsigned long long)n_seeds, (unsigned long long)first, (unsigned long long)totals[0],
           (unsigned long long)totals[1], (unsigned long long)totals[2], (unsigned long long)totals[3],
           (unsigned long long)totals[4]);
    return 0;
#endif
}
