/* Slices are checked by painting: every row of every tensor must be painted by exactly the ranks that need it. What
 * "needs" means is worked out here from the definition (which query heads read which KV head), not from shard.c. */
#include "base/check.h"
#include "model/describe.h"
#include "tests/tools/tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct model {
    struct gguf_write w;
    uint8_t *bytes;
    struct gguf *g;
    struct hparams hp;
};

static void open_model(const struct tiny_model *t, struct model *m)
{
    size_t len;
    tiny_model_begin(t, &m->w);
    m->bytes = tiny_model_bytes(&m->w, &len);
    assert_int_equal(gguf_parse(m->bytes, len, &m->g), ERR_OK);
    if (hparams_load(m->g, &m->hp) != ERR_OK)
        fail_msg("%s", err_detail());
}

static void close_model(struct model *m)
{
    gguf_close(&m->g);
    free(m->bytes);
    gguf_write_deinit(&m->w);
}

static bool is_kv(const char *name)
{
    return strstr(name, ".attn_k.") || strstr(name, ".attn_v.");
}

static bool is_whole(const char *name)
{
    return strstr(name, "norm.weight") != NULL || strcmp(name, "rope_freqs.weight") == 0;
}

static uint32_t stage_of(const struct shard_split *s, const char *name)
{
    uint32_t layer = (uint32_t)atoi(name + 4), stage = 0;
    while (layer >= s->layer_first[stage + 1])
        stage++;
    return stage;
}

static void check_tensor(const struct model *m, const struct shard_split *s, const struct gguf_tensor *t)
{
    const struct hparams *hp = &m->hp;
    uint32_t n = (uint32_t)(t->n_dims == 1 ? t->ne[0] : t->ne[1]), group = hp->n_heads / hp->n_kv_heads;
    uint8_t *painted = calloc(n, 1);
    for (uint32_t stage = 0; stage < s->pp; stage++) {
        bool here = strncmp(t->name, "blk.", 4) == 0 ? stage_of(s, t->name) == stage
                    : strcmp(t->name, "token_embd.weight") == 0
                        ? stage == 0 || (hp->tied_embeddings && stage == s->pp - 1)
                        : strcmp(t->name, "rope_freqs.weight") == 0 || stage == s->pp - 1;
        memset(painted, 0, n);
        for (uint32_t r = 0; r < s->tp; r++) {
            struct shard_range rows;
            shard_tensor_rows(hp, s, t, r, stage, &rows);
            assert_true(check_range(rows.first, rows.n, n));
            if (here && is_whole(t->name))
                assert_int_equal(rows.n, n);
            if (here && is_kv(t->name)) { /* exactly the KV heads that the rank's query heads read */
                struct shard_rank rank;
                shard_rank(hp, s, r, &rank);
                uint32_t per_head = n / hp->n_kv_heads, first = rank.heads.first / group;
                uint32_t last = (rank.heads.first + rank.heads.n - 1) / group;
                assert_int_equal(rows.first, first * per_head);
                assert_int_equal(rows.n, (last - first + 1) * per_head);
            }
            for (uint32_t i = 0; i < rows.n; i++)
                painted[rows.first + i]++;
        }
        for (uint32_t i = 0; i < n; i++) {
            if (!here)
                assert_int_equal(painted[i], 0);
            else if (is_whole(t->name))
                assert_int_equal(painted[i], s->tp);
            else if (is_kv(t->name) && s->tp > hp->n_kv_heads)
                assert_true(painted[i] >= 1);
            else
                assert_int_equal(painted[i], 1);
        }
    }
    free(painted);
}

static void check_rank(const struct model *m, const struct shard_split *s)
{
    const struct hparams *hp = &m->hp;
    uint32_t head = 0, row = 0, ffn = 0, vocab = 0, group = hp->n_heads / hp->n_kv_heads;
    for (uint32_t r = 0; r < s->tp; r++) {
        struct shard_rank rank;
        shard_rank(hp, s, r, &rank);
        assert_true(rank.heads.n >= 1 && rank.kv_heads.n >= 1);
        assert_int_equal(rank.heads.first, head);
        head += rank.heads.n;
        if (s->tp <= hp->n_kv_heads) {
            assert_int_equal(rank.heads.n, rank.kv_heads.n * group);
            assert_int_equal(rank.heads.first, rank.kv_heads.first * group);
        }
        assert_int_equal(rank.dim_rows.first, row);
        assert_true(rank.dim_rows.first % SHARD_ROW_UNIT == 0 || rank.dim_rows.n == 0);
        row += rank.dim_rows.n;
        assert_int_equal(rank.ffn.first, ffn);
        assert_true(rank.ffn.first % SHARD_FFN_UNIT == 0 || rank.ffn.n == 0);
        ffn += rank.ffn.n;
        assert_int_equal(rank.vocab.first, vocab);
        assert_true(rank.vocab.first % SHARD_VOCAB_SEGMENT == 0 || rank.vocab.n == 0);
        vocab += rank.vocab.n;
    }
    assert_int_equal(head, hp->n_heads);
    assert_int_equal(row, hp->dim);
    assert_int_equal(ffn, hp->ffn_dim);
    assert_int_equal(vocab, hp->vocab);
}

/* Bytes that all ranks read, less what is held more than once, are the tensors' bytes. */
static void check_bytes(const struct model *m, const struct shard_split *s)
{
    uint64_t sum = 0, extra = 0, file = 0;
    for (uint32_t stage = 0; stage < s->pp; stage++)
        for (uint32_t r = 0; r < s->tp; r++)
            sum += shard_file_bytes(m->g, &m->hp, s, r, stage);
    for (uint64_t i = 0; i < m->g->n_tensors; i++) {
        const struct gguf_tensor *t = &m->g->tensors[i];
        file += t->bytes;
        if (strcmp(t->name, "rope_freqs.weight") == 0) {
            extra += t->bytes * (s->tp * s->pp - 1);
        } else if (is_whole(t->name)) {
            extra += t->bytes * (s->tp - 1);
        } else if (strcmp(t->name, "token_embd.weight") == 0) {
            extra += m->hp.tied_embeddings && s->pp > 1 ? t->bytes : 0;
        } else if (is_kv(t->name)) {
            uint32_t held = 0;
            for (uint32_t r = 0; r < s->tp; r++) {
                struct shard_rank rank;
                shard_rank(&m->hp, s, r, &rank);
                held += rank.kv_heads.n;
            }
            extra += t->bytes / m->hp.n_kv_heads * (held - m->hp.n_kv_heads);
        }
    }
    assert_int_equal(sum - extra, file);
}

static void check_split(const struct model *m, const struct shard_split *s)
{
    check_rank(m, s);
    check_bytes(m, s);
    for (uint64_t i = 0; i < m->g->n_tensors; i++)
        check_tensor(m, s, &m->g->tensors[i]);
}

/* MHA, GQA, MQA; odd head counts; sizes that are no multiple of a unit; every feature that adds tensors. */
static const struct tiny_model models[] = {
    {"llama", 5, 64, 8, 8, 8, 8, 96, 1100, 256, .untied = true, .rope_freqs = true},
    {"llama", 4, 72, 12, 4, 6, 10, 100, 700, 256, .o_bias = true},
    {"qwen2", 6, 40, 14, 2, 4, 4, 33, 2600, 256, .qkv_bias = true},
    {"qwen3", 3, 130, 9, 3, 8, 8, 200, 512, 256, .qk_norm = true},
    {"qwen3", 3, 16, 10, 1, 8, 8, 32, 300, 256, .qk_norm = true, .untied = true},
};

static void every_row_is_held_by_exactly_the_ranks_that_need_it(void **state)
{
    (void)state;
    static const uint32_t uneven[][8] = {{3, 1, 1, 1, 1, 1, 1, 1},
                                         {1, 1, 1, 1, 1, 1, 1, 50},
                                         {1000, 1, 1, 1, 1, 1, 1, 1},
                                         {1, 2, 3, 4, 5, 6, 7, 8},
                                         {7, 1, 7, 1, 7, 1, 7, 1}};
    for (unsigned i = 0; i < ARRAY_LEN(models); i++) {
        struct model m;
        open_model(&models[i], &m);
        for (uint32_t tp = 1; tp <= 8 && tp <= m.hp.n_heads; tp++)
            for (uint32_t pp = 1; pp <= m.hp.n_layers; pp++) {
                struct shard_split s;
                assert_int_equal(shard_split_init(&m.hp, tp, pp, NULL, 0, NULL, 0, &s), ERR_OK);
                check_split(&m, &s);
                for (unsigned u = 0; u < ARRAY_LEN(uneven); u++) {
                    assert_int_equal(shard_split_init(&m.hp, tp, pp, uneven[u], tp, NULL, 0, &s), ERR_OK);
                    check_split(&m, &s);
                }
            }
        close_model(&m);
    }
}

/* Every column of o and down that a rank makes itself (its heads, its ffn columns, from the definition) lies in what it loads; what it loads begins and ends at
 * blocks, and goes beyond its own by less than one. Other matrices keep all columns, and everything but o and down is cut as ever. */
static void inputs_are_cut_at_whole_blocks_around_what_a_rank_makes(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(models); i++) {
        struct model m;
        open_model(&models[i], &m);
        const struct hparams *hp = &m.hp;
        for (uint32_t tp = 1; tp <= MIN(hp->n_heads, 8u); tp++) {
            struct shard_split rows_split, split;
            assert_int_equal(shard_split_init(hp, tp, 1, NULL, 0, NULL, 0, &rows_split), ERR_OK);
            split = rows_split;
            split.cut = SHARD_CUT_INPUTS;
            for (uint64_t t = 0; t < m.g->n_tensors; t++) {
                const struct gguf_tensor *g = &m.g->tensors[t];
                bool o = strstr(g->name, ".attn_output.weight") != NULL, down = strstr(g->name, ".ffn_down.weight") != NULL;
                uint32_t unit = quant_traits[g->type].block_elems, len = (uint32_t)g->ne[0], reached = 0;
                for (uint32_t r = 0; r < tp; r++) {
                    struct shard_range rows, cols, was;
                    struct shard_rank own;
                    shard_tensor_slice(hp, &split, g, r, 0, &rows, &cols);
                    shard_tensor_rows(hp, &rows_split, g, r, 0, &was);
                    shard_rank(hp, &split, r, &own);
                    if (!o && !down) {
                        bool ffn = strstr(g->name, ".ffn_gate.") || strstr(g->name, ".ffn_up."); /* cut in other units */
                        bool o_bias = strstr(g->name, ".attn_output.bias") != NULL;              /* whole: of the sum */
                        if (o_bias)
                            assert_true(rows.first == 0 && rows.n == g->ne[0]);
                        else
                            assert_true(ffn || (rows.first == was.first && rows.n == was.n));
                        assert_true(g->n_dims == 1 || rows.n == 0 || (cols.first == 0 && cols.n == len));
                        continue;
                    }
                    uint32_t first = o ? own.heads.first * hp->head_dim_v : own.ffn.first, n = o ? own.heads.n * hp->head_dim_v : own.ffn.n;
                    assert_int_equal(first, reached); /* own columns follow each other without a gap */
                    reached = first + n;
                    if (n == 0) {
                        assert_int_equal(rows.n, 0);
                        continue;
                    }
                    assert_int_equal(rows.n, g->ne[1]);
                    assert_true(cols.first <= first && cols.first + cols.n >= first + n && cols.first + cols.n <= len);
                    assert_true(cols.first % unit == 0 && (cols.first + cols.n) % unit == 0);
                    assert_true(first - cols.first < unit && cols.first + cols.n - (first + n) < unit);
                }
                if (o || down)
                    assert_int_equal(reached, len);
            }
        }
        close_model(&m);
    }
}

static void given_layers_are_taken_and_even_ones_favour_the_first(void **state)
{
    (void)state;
    struct model m;
    struct shard_split s;
    open_model(&models[2], &m); /* 6 layers */
    assert_int_equal(shard_split_init(&m.hp, 2, 4, NULL, 0, NULL, 0, &s), ERR_OK);
    static const uint32_t even[] = {0, 2, 4, 5, 6};
    assert_memory_equal(s.layer_first, even, sizeof(even));
    static const uint32_t given[] = {1, 4, 1}, expected[] = {0, 1, 5, 6};
    assert_int_equal(shard_split_init(&m.hp, 3, 3, NULL, 0, given, 3, &s), ERR_OK);
    assert_memory_equal(s.layer_first, expected, sizeof(expected));
    check_split(&m, &s);
    close_model(&m);
}

/* By hand: 32 units of ffn at shares 3:1 are 24 and 8; 4 KV heads 3 and 1; 5 segments round(3.75) = 4 and 1. */
static void shares_round_as_promised(void **state)
{
    (void)state;
    struct hparams hp = {.n_layers = 1,
                         .dim = 256,
                         .n_heads = 8,
                         .n_kv_heads = 4,
                         .head_dim = 32,
                         .head_dim_v = 32,
                         .ffn_dim = 1024,
                         .vocab = 2500};
    struct shard_split s;
    struct shard_rank a, b;
    static const uint32_t shares[] = {3, 1};
    assert_int_equal(shard_split_init(&hp, 2, 1, shares, 2, NULL, 0, &s), ERR_OK);
    shard_rank(&hp, &s, 0, &a);
    shard_rank(&hp, &s, 1, &b);
    assert_int_equal(a.ffn.n, 768);
    assert_int_equal(b.ffn.n, 256);
    assert_int_equal(a.heads.n, 6);
    assert_int_equal(b.kv_heads.first, 3);
    assert_int_equal(a.vocab.n, 2048);
    assert_int_equal(b.vocab.n, 452);
    assert_int_equal(a.dim_rows.n, 192);
    /* 8 query heads over 5 ranks, 4 KV heads: boundaries round(8 r / 5) = 0 2 3 5 6 8. */
    assert_int_equal(shard_split_init(&hp, 5, 1, NULL, 0, NULL, 0, &s), ERR_OK);
    shard_rank(&hp, &s, 2, &a);
    assert_int_equal(a.heads.first, 3);
    assert_int_equal(a.heads.n, 2);
    assert_int_equal(a.kv_heads.first, 1);
    assert_int_equal(a.kv_heads.n, 2);
}

static void kv_blocks_are_counted_by_type(void **state)
{
    (void)state;
    struct hparams hp = {.n_layers = 5,
                         .dim = 256,
                         .n_heads = 8,
                         .n_kv_heads = 4,
                         .head_dim = 64,
                         .head_dim_v = 32,
                         .ffn_dim = 64,
                         .vocab = 512};
    struct shard_split s;
    assert_int_equal(shard_split_init(&hp, 2, 2, NULL, 0, NULL, 0, &s), ERR_OK);
    /* 3 layers x 2 KV heads x 16 positions x (64 + 32) values */
    assert_int_equal(shard_kv_block_bytes(&hp, &s, KV_F32, 0, 0), 3 * 2 * 16 * 96 * 4);
    assert_int_equal(shard_kv_block_bytes(&hp, &s, KV_F16, 1, 1), 2 * 2 * 16 * 96 * 2);
    assert_int_equal(shard_kv_block_bytes(&hp, &s, KV_BF16, 1, 1), 2 * 2 * 16 * 96 * 2);
    assert_int_equal(shard_kv_block_bytes(&hp, &s, KV_Q8_0, 0, 0), 3 * 2 * 16 * 3 * 34);
    assert_int_equal(shard_kv_block_bytes(&hp, &s, KV_FP8, 0, 0), 3 * 2 * 16 * 96);
}

static void impossible_splits_are_refused_with_the_numbers(void **state)
{
    (void)state;
    struct hparams hp = {.n_layers = 4,
                         .dim = 64,
                         .n_heads = 6,
                         .n_kv_heads = 2,
                         .head_dim = 8,
                         .head_dim_v = 8,
                         .ffn_dim = 64,
                         .vocab = 512};
    struct shard_split s;
    static const uint32_t zero[] = {1, 0}, two[] = {2, 2}, three[] = {3, 3}, huge[] = {UINT32_MAX, UINT32_MAX},
                          hole[] = {4, 0};
    assert_int_equal(shard_split_init(&hp, 7, 1, NULL, 0, NULL, 0, &s), ERR_INVALID);
    assert_non_null(strstr(err_detail(), "7"));
    assert_non_null(strstr(err_detail(), "6"));
    assert_int_equal(shard_split_init(&hp, 1, 5, NULL, 0, NULL, 0, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 0, 1, NULL, 0, NULL, 0, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 1, 0, NULL, 0, NULL, 0, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, UINT32_MAX, UINT32_MAX, NULL, 0, NULL, 0, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 2, 1, zero, 2, NULL, 0, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 3, 1, two, 2, NULL, 0, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 2, 1, huge, 2, NULL, 0, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 1, 2, NULL, 0, three, 2, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 1, 2, NULL, 0, huge, 2, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 1, 2, NULL, 0, hole, 2, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 1, 3, NULL, 0, two, 2, &s), ERR_INVALID);
    assert_int_equal(shard_split_init(&hp, 1, 2, NULL, 0, two, 2, &s), ERR_OK);
}

static void descriptions_add_up(void **state)
{
    (void)state;
    struct model m;
    struct shard_split s;
    struct describe d;
    struct describe_shard sh;
    open_model(&models[0], &m);
    describe_file(m.g, &m.hp, &d);
    assert_string_equal(d.arch, "llama");
    assert_int_equal(d.n_tensors, m.g->n_tensors);
    assert_int_equal(d.quants[QUANT_F32].bytes, d.weights_bytes);
    assert_int_equal(d.weights_bytes, d.n_params * 4);
    assert_int_equal(d.main_quant, QUANT_F32);
    assert_int_equal(shard_split_init(&m.hp, 1, 1, NULL, 0, NULL, 0, &s), ERR_OK);
    describe_shard(m.g, &m.hp, &s, KV_F16, 33, 0, 0, &sh);
    assert_int_equal(sh.weights_bytes, d.weights_bytes);
    assert_int_equal(sh.layers.n, 5);
    assert_int_equal(sh.kv_ctx_bytes, 3 * sh.kv_block_bytes); /* 33 positions: three blocks of 16 */
    close_model(&m);
}

static void q8_0_kv_needs_whole_blocks(void **state)
{
    (void)state;
    struct hparams hp = {.head_dim = 64, .head_dim_v = 64};
    assert_int_equal(shard_kv_check(&hp, KV_Q8_0), ERR_OK);
    hp.head_dim_v = 80;
    assert_int_equal(shard_kv_check(&hp, KV_Q8_0), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_detail(), "80"));
    assert_int_equal(shard_kv_check(&hp, KV_F16), ERR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(q8_0_kv_needs_whole_blocks),
        cmocka_unit_test(every_row_is_held_by_exactly_the_ranks_that_need_it),
        cmocka_unit_test(inputs_are_cut_at_whole_blocks_around_what_a_rank_makes),
        cmocka_unit_test(given_layers_are_taken_and_even_ones_favour_the_first),
        cmocka_unit_test(shares_round_as_promised),
        cmocka_unit_test(kv_blocks_are_counted_by_type),
        cmocka_unit_test(impossible_splits_are_refused_with_the_numbers),
        cmocka_unit_test(descriptions_add_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
