/* Random logits, and a stage of ranks that samples from them: what the tests of the sampler share. */
#ifndef TESTS_UNIT_SAMPLER_STAGE_H
#define TESTS_UNIT_SAMPLER_STAGE_H

#include "base/check.h"
#include "base/clock.h"
#include "tests/tools/random.h"
#include "worker/sampler.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 2100, RANKS_MAX = 4, CTX = 512 }; /* 5 segments, the last one short */

/* A stage of `tp` ranks over comm_local: each rank's thread holds its part of the logits and runs the same rows. */
struct stage {
    uint32_t tp, n, threads, vocab, n_top;
    const uint32_t *segs;      /* segments of each rank */
    const float *logits;       /* [n][vocab] */
    struct slot *slots;        /* [n] */
    const struct sampler_row *rows; /* [n] what is asked */
    struct comm_hub *hub;
    struct member {
        struct stage *st;
        uint32_t rank;
        enum err err;
        struct sampler_row *out; /* [n] */
        uint32_t *top_id;
        float *top_lp;
    } m[RANKS_MAX];
};

static void *member_main(void *arg)
{
    struct member *m = arg;
    struct stage *st = m->st;
    struct sampler_config cfg = {.tp = st->tp, .tp_rank = m->rank, .vocab = st->vocab, .rows_cap = 16, .ctx = CTX};
    for (uint32_t r = 0, at = 0; r < st->tp; r++) {
        uint32_t end = MIN(at + st->segs[r] * SHARD_VOCAB_SEGMENT, st->vocab);
        cfg.ids[r] = (struct shard_range){at, end - at};
        at = end;
    }
    struct comm *comm;
    struct sampler *s;
    ASSERT(pool_create(st->threads, NULL, 0, &cfg.pool) == ERR_OK);
    ASSERT(comm_local_create(st->hub, m->rank, &comm) == ERR_OK);
    ASSERT(comm_connect(comm, NULL, clock_ns() + 60 * NS_PER_S) == ERR_OK);
    comm_set_deadline(comm, clock_ns() + 100 * NS_PER_S);
    ASSERT(sampler_create(&cfg, &s) == ERR_OK);
    uint32_t own = cfg.ids[m->rank].n, stride = own + 3;
    float *z = calloc((size_t)16 * stride, sizeof(float));
    for (uint32_t i = 0; i < st->n && m->err == ERR_OK; i += 16) {
        uint32_t n = MIN(16u, st->n - i);
        for (uint32_t j = 0; j < n; j++)
            memcpy(z + (size_t)j * stride, st->logits + (size_t)(i + j) * st->vocab + cfg.ids[m->rank].first, own * sizeof(float));
        for (uint32_t j = 0; j < n; j++) {
            m->out[i + j] = st->rows[i + j];
            m->out[i + j].top_id = m->top_id + (size_t)(i + j) * st->n_top;
            m->out[i + j].top_lp = m->top_lp + (size_t)(i + j) * st->n_top;
        }
        m->err = sampler_run(s, comm, z, stride, m->out + i, n);
    }
    free(z);
    sampler_destroy(&s);
    comm_destroy(&comm);
    pool_destroy(&cfg.pool);
    return NULL;
}

/* All ranks must agree; the results are those of rank 0. */
static enum err run_stage(struct stage *st, uint32_t tp, const uint32_t *segs, uint32_t threads)
{
    pthread_t th[RANKS_MAX];
    st->tp = tp;
    st->segs = segs;
    st->threads = threads;
    assert_int_equal(comm_hub_create(tp, 1, &st->hub), ERR_OK);
    for (uint32_t r = 0; r < tp; r++) {
        st->m[r] = (struct member){.st = st, .rank = r};
        st->m[r].out = calloc(st->n, sizeof(struct sampler_row));
        st->m[r].top_id = calloc((size_t)st->n * st->n_top + 1, sizeof(uint32_t));
        st->m[r].top_lp = calloc((size_t)st->n * st->n_top + 1, sizeof(float));
        pthread_create(&th[r], NULL, member_main, &st->m[r]);
    }
    for (uint32_t r = 0; r < tp; r++)
        pthread_join(th[r], NULL);
    comm_hub_destroy(&st->hub);
    for (uint32_t r = 1; r < tp; r++) {
        assert_int_equal(st->m[r].err, st->m[0].err);
        for (uint32_t i = 0; i < st->n && st->m[0].err == ERR_OK; i++) {
            assert_int_equal(st->m[r].out[i].token, st->m[0].out[i].token);
            assert_memory_equal(&st->m[r].out[i].lp, &st->m[0].out[i].lp, 4);
        }
        assert_memory_equal(st->m[r].top_id, st->m[0].top_id, (size_t)st->n * st->n_top * 4);
        assert_memory_equal(st->m[r].top_lp, st->m[0].top_lp, (size_t)st->n * st->n_top * 4);
    }
    return st->m[0].err;
}
static void free_stage(struct stage *st)
{
    for (uint32_t r = 0; r < st->tp; r++) {
        free(st->m[r].out);
        free(st->m[r].top_id);
        free(st->m[r].top_lp);
    }
}

static float *random_logits(uint32_t n, uint32_t vocab, float deviation)
{
    float *z = malloc((size_t)n * vocab * sizeof(float));
    for (size_t i = 0; i < (size_t)n * vocab; i++)
        z[i] = deviation * normal();
    return z;
}

static const uint32_t one_rank[] = {5}, two_ranks[] = {2, 3}, three_ranks[] = {1, 3, 1}, four_ranks[] = {1, 0, 3, 1};

#endif
