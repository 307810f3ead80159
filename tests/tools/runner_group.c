#include "tests/tools/runner_group.h"

#include "base/check.h"
#include "base/clock.h"
#ifdef RUNNER_GROUP_CUDA
#include "worker/comm/comm_nccl.h"
#endif

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rank {
    struct runner_group *g;
    uint32_t world_rank;
    struct runner *runner;
    struct comm *comm;
    struct comm_addr address;
    bool connected;
    pthread_t thread;
    struct step_result res;
    bool has_result;
    enum err err;
    char detail[512];
};
struct runner_group {
    struct runner_group_config cfg;
    struct comm_hub *hub;
    uint32_t n;
    struct rank *ranks;
    struct comm_addr *addresses; /* [n] of GPU workers */
    pthread_barrier_t go, done; /* n + 1 */
    const struct step *step;    /* [n_steps] of this turn; NULL: leave */
    uint32_t n_steps;
    uint32_t *tokens;           /* [n_steps] or NULL */
};

/* Rank r has GPU r, or they take turns on fewer. */
static enum err make_comm(struct rank *r)
{
    const struct runner_group_config *c = &r->g->cfg;
    struct comm *local;
    TRY(comm_local_create(r->g->hub, r->world_rank, &local));
#ifdef RUNNER_GROUP_CUDA
    if (c->n_gpus) {
        struct comm_nccl_config nc = {.comm = {.rank = r->world_rank, .tp = c->tp, .pp = c->pp}, .device = (int)(r->world_rank % c->n_gpus), .inner = local, .deterministic = c->deterministic};
        return comm_nccl_create(&nc, &r->comm, &r->address);
    }
#endif
    if (c->n_gpus)
        return err_set(ERR_UNSUPPORTED, "this program was built without CUDA");
    r->comm = local;
    return ERR_OK;
}

static enum err load(struct rank *r)
{
    const struct runner_group_config *c = &r->g->cfg;
    struct runner_config rc = {.model_path = c->model_path, .tp = c->tp, .pp = c->pp, .tp_rank = r->world_rank % c->tp,
                               .stage = r->world_rank / c->tp, .share = c->share, .layer_first = c->layer_first,
                               .kernels = kernels_by_name(c->backend), .n_threads = c->n_threads, .ctx = c->ctx, .max_seqs = c->max_seqs,
                               .max_step_tokens = c->max_step_tokens, .kv_type = c->kv_type, .use_cuda = c->n_gpus > 0,
                               .cuda_ordinal = c->n_gpus ? r->world_rank % c->n_gpus : 0, .deterministic = c->deterministic};
    if (!rc.kernels)
        return err_set(ERR_INVALID, "no backend %s", c->backend);
    TRY(runner_create(&rc, &r->runner));
    return make_comm(r);
}

static void keep_error(struct rank *r, enum err e)
{
    r->err = e;
    if (e != ERR_OK)
        snprintf(r->detail, sizeof(r->detail), "%s", err_detail());
}

static enum err step(struct rank *r)
{
    uint64_t deadline = clock_ns() + 300 * NS_PER_S;
    if (!r->connected) {
        TRY(comm_connect(r->comm, r->g->addresses, deadline));
        if (r->g->n > 1 || !r->g->cfg.n_gpus)
            runner_set_comm(r->runner, r->comm);
    }
    r->connected = true;
    comm_set_deadline(r->comm, deadline);
    for (uint32_t i = 0; i < r->g->n_steps; i++) {
        TRY(runner_step(r->runner, &r->g->step[i], &r->res, &r->has_result));
        if (r->has_result && r->g->tokens)
            r->g->tokens[i] = r->res.n_runs ? r->res.token[0] : STEP_TOKEN_SAMPLED;
    }
    return ERR_OK;
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    keep_error(r, load(r));
    for (;;) {
        pthread_barrier_wait(&r->g->done);
        pthread_barrier_wait(&r->g->go);
        if (!r->g->step)
            break;
        keep_error(r, step(r));
        if (r->err != ERR_OK)
            comm_abort(r->comm);
    }
    runner_destroy(&r->runner);
    return NULL;
}

static enum err first_error(struct runner_group *g)
{
    enum err e = ERR_OK;
    for (uint32_t i = 0; i < g->n; i++)
        if (g->ranks[i].err != ERR_OK && (e == ERR_OK || e == ERR_ABORTED))
            e = err_set(g->ranks[i].err, "%s", g->ranks[i].detail);
    return e;
}

enum err runner_group_create(const struct runner_group_config *cfg, struct runner_group **out)
{
    struct runner_group *g = calloc(1, sizeof(*g));
    ASSERT(g);
    g->cfg = *cfg;
    g->n = cfg->tp * cfg->pp;
    g->ranks = calloc(g->n, sizeof(*g->ranks));
    g->addresses = calloc(g->n, sizeof(*g->addresses));
    ASSERT(g->ranks && g->addresses);
    enum err e = comm_hub_create(cfg->tp, cfg->pp, &g->hub);
    ASSERT(e == ERR_OK);
    pthread_barrier_init(&g->go, NULL, g->n + 1);
    pthread_barrier_init(&g->done, NULL, g->n + 1);
    for (uint32_t i = 0; i < g->n; i++) {
        g->ranks[i].g = g;
        g->ranks[i].world_rank = i;
        ASSERT(pthread_create(&g->ranks[i].thread, NULL, rank_main, &g->ranks[i]) == 0);
    }
    pthread_barrier_wait(&g->done);
    for (uint32_t i = 0; i < g->n; i++)
        g->addresses[i] = g->ranks[i].address;
    e = first_error(g);
    if (e != ERR_OK)
        runner_group_destroy(&g);
    *out = g;
    return e;
}

void runner_group_destroy(struct runner_group **gp)
{
    struct runner_group *g = *gp;
    if (!g)
        return;
    g->step = NULL;
    pthread_barrier_wait(&g->go);
    for (uint32_t i = 0; i < g->n; i++)
        pthread_join(g->ranks[i].thread, NULL);
    for (uint32_t i = 0; i < g->n; i++)
        if (g->ranks[i].comm)
            comm_destroy(&g->ranks[i].comm);
    comm_hub_destroy(&g->hub);
    pthread_barrier_destroy(&g->go);
    pthread_barrier_destroy(&g->done);
    free(g->addresses);
    free(g->ranks);
    free(g);
    *gp = NULL;
}

/* All ranks of the last stage came to the same tokens and log-probabilities, as bits. */
static bool agree(const struct step_result *a, const struct step_result *b)
{
    return a->n_runs == b->n_runs && a->n_all_positions == b->n_all_positions && a->n_all_top == b->n_all_top &&
           (!a->n_runs || !memcmp(a->token, b->token, a->n_runs * 4)) &&
           (!a->n_all_positions || !memcmp(a->logprob, b->logprob, a->n_all_positions * 4)) &&
           (!a->n_all_top || (!memcmp(a->top_id, b->top_id, a->n_all_top * 4) && !memcmp(a->top_logprob, b->top_logprob, a->n_all_top * 4)));
}

static enum err take_turn(struct runner_group *g, const struct step *s, uint32_t n, uint32_t *tokens)
{
    g->step = s;
    g->n_steps = n;
    g->tokens = tokens;
    pthread_barrier_wait(&g->go);
    pthread_barrier_wait(&g->done);
    return first_error(g);
}

enum err runner_group_stream(struct runner_group *g, const struct step *s, uint32_t n, uint32_t *tokens)
{
    return take_turn(g, s, n, tokens);
}

enum err runner_group_step(struct runner_group *g, const struct step *s, const struct step_result **out)
{
    TRY(take_turn(g, s, 1, NULL));
    const struct rank *first = &g->ranks[g->n - g->cfg.tp];
    for (uint32_t i = 0; i < g->n; i++)
        if (g->ranks[i].has_result != (&g->ranks[i] == first))
            return err_set(ERR_INTERNAL, "rank %u: a result where none belongs, or none", i);
    for (uint32_t r = 1; r < g->cfg.tp; r++)
        if (!agree(&first->res, &first[r].res))
            return err_set(ERR_INTERNAL, "rank %u of the last stage came to another result than rank 0", r);
    *out = &first->res;
    return ERR_OK;
}

void runner_group_reset(struct runner_group *g)
{
    for (uint32_t i = 0; i < g->n; i++)
        runner_reset(g->ranks[i].runner);
}

void runner_group_set_logits_hook(struct runner_group *g, runner_logits_fn *fn, void *arg)
{
    for (uint32_t i = g->n - g->cfg.tp; i < g->n; i++)
        runner_set_logits_hook(g->ranks[i].runner, fn, arg);
}

void runner_group_info(const struct runner_group *g, uint32_t world_rank, struct runner_info *out)
{
    runner_info(g->ranks[world_rank].runner, out);
}
