/* Model facts: every way in which a file can contradict itself is refused by name, and rope frequencies equal those of
 * the reference implementation (PyPI transformers 5.23, modeling_rope_utils: _compute_yarn_parameters,
 * _compute_linear_scaling_rope_parameters, _compute_llama3_parameters; run on numpy in float64). */
#include "base/check.h"
#include "model/hparams.h"
#include "tests/tools/tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Loads what stands in w, and frees it. rope_freqs becomes invalid. */
static enum err load(struct gguf_write *w, struct hparams *hp)
{
    size_t len;
    uint8_t *bytes = tiny_model_bytes(w, &len);
    struct gguf *g = NULL;
    enum err e = gguf_parse(bytes, len, &g);
    if (e == ERR_OK)
        e = hparams_load(g, hp);
    if (e != ERR_OK)
        assert_true(err_detail()[0] && !strchr(err_detail(), '\n'));
    gguf_close(&g);
    free(bytes);
    gguf_write_deinit(w);
    return e;
}

static void expect(enum err want, enum err got, const char *text)
{
    if (got != want || (text && !strstr(err_detail(), text)))
        fail_msg("%s with \"%s\" expected, %s: \"%s\"", err_name(want), text ? text : "", err_name(got), err_detail());
}

static const struct tiny_model full = {
    "llama", 2, 64, 4, 2, 8, 12, 96, 300, 256, .qkv_bias = true, .o_bias = true, .untied = true, .rope_freqs = true};

static void facts_come_from_the_file(void **state)
{
    (void)state;
    struct gguf_write w;
    struct hparams hp;
    tiny_model_begin(&full, &w);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_int_equal(hp.arch, ARCH_LLAMA);
    assert_int_equal(hp.rope_layout, ROPE_NORMAL);
    assert_int_equal(hp.n_layers, 2);
    assert_int_equal(hp.dim, 64);
    assert_int_equal(hp.n_heads, 4);
    assert_int_equal(hp.n_kv_heads, 2);
    assert_int_equal(hp.head_dim, 8);
    assert_int_equal(hp.head_dim_v, 12);
    assert_int_equal(hp.ffn_dim, 96);
    assert_int_equal(hp.vocab, 300);
    assert_int_equal(hp.ctx_train, 256);
    assert_int_equal(hp.rope_dims, 8);
    assert_true(hp.rope_base == 10000.0f && hp.norm_eps == 1e-5f);
    assert_true(hp.has_qkv_bias && hp.has_o_bias && !hp.has_qk_norm && !hp.tied_embeddings && hp.has_rope_freqs);
    assert_int_equal(hp.rope_scaling, ROPE_SCALING_NONE);
    struct tiny_model t = tiny_model_default;
    t.arch = "qwen3";
    t.qk_norm = true;
    tiny_model_begin(&t, &w);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_int_equal(hp.arch, ARCH_QWEN3);
    assert_int_equal(hp.rope_layout, ROPE_NEOX);
    assert_true(hp.has_qk_norm && !hp.has_qkv_bias && hp.tied_embeddings && !hp.has_rope_freqs);
}

static void silent_keys_have_their_defaults(void **state)
{
    (void)state;
    struct gguf_write w;
    struct hparams hp;
    struct tiny_model t = tiny_model_default;
    tiny_model_begin(&t, &w);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_true(hp.pooling == POOLING_NONE && !hp.has_cls);
    tiny_model_begin(&t, &w);
    gguf_write_u32(&w, "llama.pooling_type", 4);
    gguf_write_add_tensor(&w, "cls.output.weight", 0, t.dim, 2, (uint64_t)t.dim * 2 * 4);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_true(hp.pooling == POOLING_RANK && hp.has_cls);
    t.skip_key = "llama.attention.key_length";
    tiny_model_begin(&t, &w);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_int_equal(hp.head_dim, 16);
    t.skip_key = "llama.attention.value_length";
    tiny_model_begin(&t, &w);
    expect(ERR_OK, load(&w, &hp), NULL);
    t.kv_heads = t.heads;
    t.skip_key = "llama.attention.head_count_kv";
    tiny_model_begin(&t, &w);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_int_equal(hp.n_kv_heads, 4);
}

static void a_missing_key_is_named(void **state)
{
    (void)state;
    static const char *const keys[] = {"general.architecture",
                                       "llama.block_count",
                                       "llama.context_length",
                                       "llama.embedding_length",
                                       "llama.feed_forward_length",
                                       "llama.attention.head_count",
                                       "llama.attention.layer_norm_rms_epsilon"};
    for (unsigned i = 0; i < ARRAY_LEN(keys); i++) {
        struct tiny_model t = tiny_model_default;
        struct gguf_write w;
        struct hparams hp;
        t.skip_key = keys[i];
        tiny_model_begin(&t, &w);
        expect(ERR_CORRUPT, load(&w, &hp), keys[i]);
    }
}

static void every_tensor_must_be_there_in_its_shape_and_type(void **state)
{
    (void)state;
    struct gguf_write w, probe;
    struct hparams hp;
    tiny_model_begin(&full, &probe);
    for (size_t i = 0; i < probe.n_tensors; i++) {
        const char *name = probe.tensors[i].name;
        bool optional = strcmp(name, "output.weight") == 0 || strcmp(name, "rope_freqs.weight") == 0;
        tiny_model_begin(&full, &w); /* gone */
        w.tensors[i] = w.tensors[--w.n_tensors];
        if (optional)
            expect(ERR_OK, load(&w, &hp), NULL);
        else if (strncmp(name, "blk.0.attn_q.bias", 17) == 0 || strcmp(name, "blk.0.attn_output.bias") == 0)
            expect(ERR_UNSUPPORTED, load(&w, &hp),
                   "has no place"); /* the first decides; then the others are left over */
        else
            expect(ERR_CORRUPT, load(&w, &hp), name);
        for (int d = 0; d < (probe.tensors[i].ne[1] ? 2 : 1); d++) { /* another shape */
            tiny_model_begin(&full, &w);
            w.tensors[i].ne[d] += 32;
            w.tensors[i].bytes = w.tensors[i].ne[0] * (w.tensors[i].ne[1] ? w.tensors[i].ne[1] : 1) * 4;
            bool vocab = strcmp(name, "token_embd.weight") == 0 && d == 1;
            expect(ERR_CORRUPT, load(&w, &hp), vocab ? "300 tokens" : name);
            assert_true(vocab || strstr(err_detail(), "expected"));
        }
        if (probe.tensors[i].ne[1] == 0) { /* a vector of halves */
            tiny_model_begin(&full, &w);
            w.tensors[i].type_id = 1;
            w.tensors[i].bytes /= 2;
            expect(ERR_UNSUPPORTED, load(&w, &hp), name);
        }
    }
    gguf_write_deinit(&probe);
    tiny_model_begin(&full, &w);
    gguf_write_add_tensor(&w, "blk.0.ffn_gate_inp.weight", 0, 64, 8, 64 * 8 * 4);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "blk.0.ffn_gate_inp.weight");
    tiny_model_begin(&full, &w);
    gguf_write_add_tensor(&w, "blk.2.attn_norm.weight", 0, 64, 0, 256);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "blk.2.attn_norm.weight");
}

static void biases_and_norms_belong_to_their_families(void **state)
{
    (void)state;
    struct gguf_write w;
    struct hparams hp;
    struct tiny_model t = tiny_model_default;
    t.qk_norm = true; /* llama has none */
    tiny_model_begin(&t, &w);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "norm.weight has no place in a llama model");
    t.arch = "qwen2";
    t.qk_norm = false;
    t.qkv_bias = true;
    tiny_model_begin(&t, &w);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_true(hp.has_qkv_bias);
    t.arch = "gemma";
    tiny_model_begin(&t, &w);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "llama, qwen2, qwen3");
    t.arch = "evil\nname";
    tiny_model_begin(&t, &w);
    assert_int_not_equal(load(&w, &hp), ERR_OK);
}

static void numbers_out_of_bounds_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
    } bad[] = {{"llama.block_count", 0},
               {"llama.block_count", 5000},
               {"llama.context_length", 0},
               {"llama.context_length", UINT32_MAX},
               {"llama.embedding_length", 0},
               {"llama.embedding_length", 1u << 31},
               {"llama.feed_forward_length", 0},
               {"llama.attention.head_count", 0},
               {"llama.attention.head_count", UINT32_MAX},
               {"llama.attention.head_count_kv", 3},
               {"llama.attention.head_count_kv", 0},
               {"llama.attention.key_length", 15},
               {"llama.attention.key_length", 1u << 31},
               {"llama.attention.value_length", 0},
               {"llama.rope.dimension_count", 18},
               {"llama.rope.dimension_count", 7},
               {"llama.rope.dimension_count", 0},
               {"llama.rope.scaling.original_context_length", 0}};
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        struct tiny_model t = tiny_model_default;
        struct gguf_write w;
        struct hparams hp;
        t.skip_key = bad[i].key;
        tiny_model_begin(&t, &w);
        gguf_write_u32(&w, bad[i].key, bad[i].value);
        assert_int_equal(load(&w, &hp), ERR_CORRUPT);
    }
    static const struct {
        const char *key;
        float value;
    } bad_floats[] = {{"llama.attention.layer_norm_rms_epsilon", -1},
                      {"llama.attention.layer_norm_rms_epsilon", NAN},
                      {"llama.rope.freq_base", 0},
                      {"llama.rope.freq_base", INFINITY},
                      {"llama.rope.freq_base", NAN},
                      {"llama.rope.scaling.factor", -2},
                      {"llama.rope.scaling.factor", NAN},
                      {"llama.rope.scaling.attn_factor", 0}};
    for (unsigned i = 0; i < ARRAY_LEN(bad_floats); i++) {
        struct tiny_model t = tiny_model_default;
        struct gguf_write w;
        struct hparams hp;
        t.skip_key = bad_floats[i].key;
        tiny_model_begin(&t, &w);
        gguf_write_f32(&w, bad_floats[i].key, bad_floats[i].value);
        expect(ERR_CORRUPT, load(&w, &hp), bad_floats[i].key);
    }
}

/* Shapes that the format allows and no kernel has room for: said when the file is read, not by a worker's end. */
static void shapes_beyond_the_kernels_are_refused(void **state)
{
    (void)state;
    struct gguf_write w;
    struct hparams hp;
    struct tiny_model t = tiny_model_default;
    t.head_dim = t.head_dim_v = 256;
    tiny_model_begin(&t, &w);
    expect(ERR_OK, load(&w, &hp), NULL);
    t.head_dim = 258;
    tiny_model_begin(&t, &w);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "258");
    t.head_dim = 256;
    t.head_dim_v = 257;
    tiny_model_begin(&t, &w);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "257");
    t = tiny_model_default;
    t.ffn = 131072;
    t.layers = 1;
    tiny_model_begin(&t, &w);
    expect(ERR_OK, load(&w, &hp), NULL);
    t.ffn = 131073;
    tiny_model_begin(&t, &w);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "131073");
    t = tiny_model_default;
    t.heads = 1026;
    t.head_dim = t.head_dim_v = 128;
    tiny_model_begin(&t, &w);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "131328");
}

static void arrays_of_equal_values_are_one_value(void **state)
{
    (void)state;
    struct tiny_model t = tiny_model_default;
    struct gguf_write w;
    struct hparams hp;
    static const int32_t equal[] = {96, 96}, unequal[] = {96, 64};
    t.skip_key = "llama.feed_forward_length";
    tiny_model_begin(&t, &w);
    gguf_write_i32_arr(&w, t.skip_key, equal, 2);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_int_equal(hp.ffn_dim, 96);
    tiny_model_begin(&t, &w);
    gguf_write_i32_arr(&w, t.skip_key, unequal, 2);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "differs");
    tiny_model_begin(&t, &w);
    gguf_write_i32_arr(&w, t.skip_key, equal, 0);
    expect(ERR_CORRUPT, load(&w, &hp), t.skip_key);
}

static void what_would_answer_wrongly_is_refused(void **state)
{
    (void)state;
    struct gguf_write w;
    struct hparams hp;
    tiny_model_begin(&tiny_model_default, &w);
    gguf_write_bool(&w, "llama.attention.causal", false);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "encoder");
    tiny_model_begin(&tiny_model_default, &w);
    gguf_write_u32(&w, "llama.pooling_type", 5);
    expect(ERR_CORRUPT, load(&w, &hp), "pooling_type");
    tiny_model_begin(&tiny_model_default, &w);
    gguf_write_u32(&w, "llama.expert_count", 8);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "8 experts");
    tiny_model_begin(&tiny_model_default, &w);
    gguf_write_str(&w, "llama.rope.scaling.type", "longrope");
    expect(ERR_UNSUPPORTED, load(&w, &hp), "rope.scaling.type");
    tiny_model_begin(&tiny_model_default, &w);
    gguf_write_u32(&w, "llama.attention.sliding_window", 128);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_int_equal(hp.ctx_train, 128);
}

/* --- rope --- */

static void rope_settings_are_read(void **state)
{
    (void)state;
    struct gguf_write w;
    struct hparams hp;
    tiny_model_begin(&tiny_model_default, &w);
    gguf_write_f32(&w, "llama.rope.scale_linear", 4.0f);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_int_equal(hp.rope_scaling, ROPE_SCALING_LINEAR);
    assert_true(hp.rope_factor == 4.0f);
    tiny_model_begin(&tiny_model_default, &w);
    gguf_write_str(&w, "llama.rope.scaling.type", "none");
    gguf_write_f32(&w, "llama.rope.scaling.factor", 4.0f);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_int_equal(hp.rope_scaling, ROPE_SCALING_NONE);
    tiny_model_begin(&tiny_model_default, &w);
    gguf_write_str(&w, "llama.rope.scaling.type", "yarn");
    gguf_write_f32(&w, "llama.rope.scaling.factor", 4.0f);
    gguf_write_u32(&w, "llama.rope.scaling.original_context_length", 64);
    gguf_write_f32(&w, "llama.rope.scaling.attn_factor", 0.5f);
    gguf_write_f32(&w, "llama.rope.scaling.yarn_beta_fast", 20.0f);
    gguf_write_f32(&w, "llama.rope.scaling.yarn_beta_slow", 2.0f);
    expect(ERR_OK, load(&w, &hp), NULL);
    assert_int_equal(hp.rope_scaling, ROPE_SCALING_YARN);
    assert_int_equal(hp.rope_ctx_orig, 64);
    assert_true(hp.rope_attn_factor == 0.5f && hp.rope_beta_fast == 20.0f && hp.rope_beta_slow == 2.0f);
    tiny_model_begin(&tiny_model_default, &w);
    gguf_write_str(&w, "llama.rope.scaling.type", "yarn");
    gguf_write_f32(&w, "llama.rope.scaling.factor", 4.0f);
    gguf_write_f32(&w, "llama.rope.scaling.yarn_ext_factor", 0.5f);
    expect(ERR_UNSUPPORTED, load(&w, &hp), "yarn_ext_factor");
}

static void rope_freqs_are_checked(void **state)
{
    (void)state;
    static const float bad[] = {0.0f, -1.0f, NAN, INFINITY, 1e30f};
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        struct gguf_write w;
        struct hparams hp;
        size_t len;
        tiny_model_begin(&full, &w);
        uint8_t *bytes = tiny_model_bytes(&w, &len);
        struct gguf *g;
        memcpy(bytes + w.data_start + tiny_model_tensor(&w, "rope_freqs.weight")->offset + 8, &bad[i], 4);
        assert_int_equal(gguf_parse(bytes, len, &g), ERR_OK);
        expect(ERR_CORRUPT, hparams_load(g, &hp), "rope_freqs.weight[2]");
        gguf_close(&g);
        free(bytes);
        gguf_write_deinit(&w);
    }
}

struct point {
    uint32_t i;
    double inv_freq;
};

static void expect_freqs(const struct hparams *hp, const struct point *points, unsigned n, double magnitude,
                         double tolerance)
{
    double inv[64];
    float m;
    assert_true(hp->rope_dims / 2 <= 64);
    rope_freqs_init(hp, inv, &m);
    for (unsigned k = 0; k < n; k++)
        if (!(fabs(inv[points[k].i] / points[k].inv_freq - 1) <= tolerance))
            fail_msg("frequency %u is %.12g, expected %.12g", points[k].i, inv[points[k].i], points[k].inv_freq);
    assert_true(fabs(m / magnitude - 1) < 1e-6);
}

static void frequencies_equal_the_reference(void **state)
{
    (void)state;
    struct hparams yarn4 = {.head_dim = 128,
                            .rope_dims = 128,
                            .rope_base = 1e6f,
                            .rope_scaling = ROPE_SCALING_YARN,
                            .rope_factor = 4,
                            .rope_ctx_orig = 32768,
                            .rope_attn_factor = 1,
                            .rope_beta_fast = 32,
                            .rope_beta_slow = 1};
    static const struct point p4[] = {{0, 1.0},
                                      {1, 0.8058421877614819},
                                      {16, 0.03162277660168379},
                                      {21, 0.010746078283213174},
                                      {32, 0.0006029411764705882},
                                      {48, 7.905694150420949e-06},
                                      {63, 3.102344401879299e-07}};
    expect_freqs(&yarn4, p4, ARRAY_LEN(p4), 1.138629436111989, 1e-12);
    yarn4.rope_attn_factor = 0.5f;
    expect_freqs(&yarn4, p4, ARRAY_LEN(p4), 0.5 * 1.138629436111989, 1e-12);
    struct hparams yarn16 = {.head_dim = 64,
                             .rope_dims = 64,
                             .rope_base = 1e4f,
                             .rope_scaling = ROPE_SCALING_YARN,
                             .rope_factor = 16,
                             .rope_ctx_orig = 4096,
                             .rope_attn_factor = 1,
                             .rope_beta_fast = 20,
                             .rope_beta_slow = 2};
    static const struct point p16[] = {
        {0, 1.0},       {1, 0.7498942093324559},    {8, 0.1}, {10, 0.056234132519034905}, {16, 0.005833333333333334},
        {24, 6.25e-05}, {31, 8.334508951020775e-06}};
    expect_freqs(&yarn16, p16, ARRAY_LEN(p16), 1.2772588722239782, 1e-12);
    struct hparams linear = {.head_dim = 64,
                             .rope_dims = 64,
                             .rope_base = 1e4f,
                             .rope_scaling = ROPE_SCALING_LINEAR,
                             .rope_factor = 8,
                             .rope_attn_factor = 1};
    static const struct point pl[] = {{0, 0.125}, {1, 0.09373677616655698}, {16, 0.00125}, {31, 1.666901790204155e-05}};
    expect_freqs(&linear, pl, ARRAY_LEN(pl), 1.0, 1e-12);
}

/* Llama 3.2's divisors as its converters write them: 1 for short waves, 32 for long ones. Reference:
 * _compute_llama3_parameters. */
static void rope_freqs_divide_the_frequencies(void **state)
{
    (void)state;
    float divisors[32];
    struct gguf_tensor t = {.data = (const uint8_t *)divisors};
    struct hparams hp = {.head_dim = 64,
                         .rope_dims = 64,
                         .rope_base = 5e5f,
                         .rope_attn_factor = 1,
                         .rope_factor = 1,
                         .has_rope_freqs = true,
                         .rope_freqs = &t};
    for (int i = 0; i < 32; i++)
        divisors[i] = i <= 14 ? 1.0f : 32.0f; /* between them the passage, set below */
    divisors[16] = (float)(pow(5e5, -0.5) / 0.00042955679655936815);
    static const struct point p[] = {{0, 1.0},
                                     {1, 0.6636012376960885},
                                     {8, 0.03760603093086393},
                                     {10, 0.016560440080994446},
                                     {16, 0.00042955679655936815},
                                     {24, 1.661967467795309e-06},
                                     {31, 9.418306725434909e-08}};
    expect_freqs(&hp, p, ARRAY_LEN(p), 1.0, 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(facts_come_from_the_file),
        cmocka_unit_test(silent_keys_have_their_defaults),
        cmocka_unit_test(a_missing_key_is_named),
        cmocka_unit_test(every_tensor_must_be_there_in_its_shape_and_type),
        cmocka_unit_test(biases_and_norms_belong_to_their_families),
        cmocka_unit_test(numbers_out_of_bounds_are_refused),
        cmocka_unit_test(shapes_beyond_the_kernels_are_refused),
        cmocka_unit_test(arrays_of_equal_values_are_one_value),
        cmocka_unit_test(what_would_answer_wrongly_is_refused),
        cmocka_unit_test(rope_settings_are_read),
        cmocka_unit_test(rope_freqs_are_checked),
        cmocka_unit_test(frequencies_equal_the_reference),
        cmocka_unit_test(rope_freqs_divide_the_frequencies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
