/* Loading: each rank holds exactly its rows of every tensor, checked against the file's own bytes widened here; plan and memory agree; a load can be stopped.
 * The model: deploy/demo (Q8_0: blocks of an fp16 scale and 32 int8, ggml's format document). */
#include "base/check.h"
#include "worker/weights.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DEMO "deploy/demo/grimm-6m-Q8_0.gguf"

static double half(const uint8_t *p)
{
    uint32_t h = p[0] | (uint32_t)p[1] << 8, e = h >> 10 & 31, m = h & 1023;
    double v = e ? ldexp(1024 + m, (int)e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}
static double value(const struct gguf_tensor *t, uint64_t row, uint64_t col)
{
    const uint8_t *b = t->data + row * (t->ne[0] / 32 * 34) + col / 32 * 34;
    return half(b) * (int8_t)b[2 + col % 32];
}

struct watch {
    uint64_t calls, last, total, stop_at;
    bool backwards;
};
static bool on_progress(void *arg, uint64_t done, uint64_t total)
{
    struct watch *w = arg;
    w->backwards |= done < w->last;
    w->last = done;
    w->total = total;
    return ++w->calls != w->stop_at;
}

static void check_matrix(const struct kernels *k, const struct gguf *g, const char *name, const struct kernels_weight *w, uint32_t first, uint8_t *seen)
{
    const struct gguf_tensor *t = gguf_tensor(g, name);
    assert_non_null(t);
    float *row = malloc(t->ne[0] * sizeof(float));
    for (uint32_t r = 0; r < w->rows; r++) {
        k->weight_row(w, r, row);
        seen[first + r]++;
        for (uint32_t c = 0; c < t->ne[0]; c += 37)
            assert_true(row[c] == (float)value(t, first + r, c));
    }
    free(row);
}

static void test_ranks_hold_each_row_once(void **state)
{
    (void)state;
    struct gguf *g;
    struct hparams hp;
    struct shard_split split;
    struct pool *pool;
    const uint32_t shares[3] = {2, 1, 1};
    assert_int_equal(gguf_open(DEMO, &g), ERR_OK);
    assert_int_equal(hparams_load(g, &hp), ERR_OK);
    assert_int_equal(shard_split_init(&hp, 3, 2, shares, 3, NULL, 0, &split), ERR_OK);
    assert_int_equal(pool_create(2, NULL, 0, &pool), ERR_OK);
    const struct kernels *backends[] = {&kernels_ref, kernels_cpu()};
    for (uint32_t b = 0; b < 2; b++) {
        const struct kernels *k = backends[b];
        uint8_t seen_down[256] = {0}, seen_gate[1024] = {0}, seen_q[256] = {0}, seen_embd[2048] = {0}, seen_head[2048] = {0};
        uint64_t file_bytes = 0;
        for (uint32_t stage = 0; stage < 2; stage++)
            for (uint32_t r = 0; r < 3; r++) {
                struct weights w;
                struct watch watch = {0};
                struct shard_rank own;
                shard_rank(&hp, &split, r, &own);
                assert_int_equal(weights_plan(g, &hp, &split, r, stage, k->weight_bytes, &w), ERR_OK);
                uint64_t planned = w.planned_bytes;
                assert_int_equal(weights_load(&w, g, &hp, stage, &split, k, pool, on_progress, &watch), ERR_OK);
                assert_int_equal(w.planned_bytes, planned);
                assert_true(!watch.backwards && watch.last == watch.total && watch.total == w.file_bytes);
                assert_int_equal(w.file_bytes, shard_file_bytes(g, &hp, &split, r, stage));
                assert_true(weights_resident_bytes(&w) == planned);
                assert_int_equal(w.n_layers, 3);
                file_bytes += w.file_bytes;
                if (stage == 1) {
                    check_matrix(k, g, "blk.4.ffn_down.weight", &w.layers[1].down, own.dim_rows.first, seen_down);
                    check_matrix(k, g, "blk.5.ffn_gate.weight", &w.layers[2].gate, own.ffn.first, seen_gate);
                    check_matrix(k, g, "token_embd.weight", &w.head, own.vocab.first, seen_head);
                    assert_int_equal(w.embd.rows, 0);
                    const float *norm = (const float *)gguf_tensor(g, "output_norm.weight")->data;
                    assert_memory_equal(w.out_norm, norm, 256 * sizeof(float));
                } else {
                    check_matrix(k, g, "blk.0.attn_q.weight", &w.layers[0].q, own.heads.first * 32, seen_q);
                    check_matrix(k, g, "token_embd.weight", &w.embd, own.vocab.first, seen_embd);
                    assert_int_equal(w.head.rows, 0);
                }
                weights_deinit(&w);
            }
        for (uint32_t i = 0; i < 2048; i++)
            assert_true(seen_head[i] == 1 && seen_embd[i] == 1 && (i >= 1024 || seen_gate[i] == 1) && (i >= 256 || (seen_down[i] == 1 && seen_q[i] == 1)));
        /* Every matrix once; the tied embedding on both stages; norms on every rank that uses them. */
        uint64_t once = 0, embd = gguf_tensor(g, "token_embd.weight")->bytes, norms = 0;
        for (uint64_t i = 0; i < g->n_tensors; i++)
            *(g->tensors[i].n_dims == 1 ? &norms : &once) += g->tensors[i].bytes;
        assert_int_equal(file_bytes, once + embd + 3 * norms);
    }
    pool_destroy(&pool);
    gguf_close(&g);
}

static void test_a_load_can_be_stopped(void **state)
{
    (void)state;
    struct gguf *g;
    struct hparams hp;
    struct shard_split split;
    struct pool *pool;
    assert_int_equal(gguf_open(DEMO, &g), ERR_OK);
    assert_int_equal(hparams_load(g, &hp), ERR_OK);
    assert_int_equal(shard_split_init(&hp, 1, 1, NULL, 0, NULL, 0, &split), ERR_OK);
    assert_int_equal(pool_create(1, NULL, 0, &pool), ERR_OK);
    for (uint64_t stop_at = 1; stop_at <= 3; stop_at++) {
        struct weights w;
        struct watch watch = {.stop_at = stop_at};
        assert_int_equal(weights_plan(g, &hp, &split, 0, 0, kernels_cpu()->weight_bytes, &w), ERR_OK);
        assert_int_equal(weights_load(&w, g, &hp, 0, &split, kernels_cpu(), pool, on_progress, &watch), ERR_ABORTED);
        assert_int_equal(watch.calls, stop_at);
        weights_deinit(&w);
    }
    pool_destroy(&pool);
    gguf_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_hold_each_row_once),
        cmocka_unit_test(test_a_load_can_be_stopped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
