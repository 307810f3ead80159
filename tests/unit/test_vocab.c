/* Vocabularies: the shared tokenizer files (facts read from them by the PyPI package `gguf`; skipped where the folder
 * is absent), the seed files, and damage. */
#include "base/check.h"
#include "model/vocab.h"
#include "tests/tools/gguf_write.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static bool is(struct gguf_str s, const char *want)
{
    return s.len == strlen(want) && memcmp(s.s, want, s.len) == 0;
}

static const struct fact {
    const char *file;
    enum vocab_kind kind;
    const char *pre;
    uint32_t n_tokens;
    uint64_t n_merges;
    const char *token_1000, *merge_7;
    int32_t bos, eos;
    bool add_bos;
    uint32_t n_control;
} facts[] = {
    {"deepseek-llm", VOCAB_BPE, "deepseek-llm", 102400, 99757, "ty", "e r", 100000, 100001, true, 2},
    {"falcon", VOCAB_BPE, "falcon", 65024, 64784, "\xc4\xa0requ", "\xc4\xa0 s", 11, 11, false, 12},
    {"gpt-2", VOCAB_BPE, "gpt-2", 50257, 50000, "ale", "e r", 50256, 50256, false, 1},
    {"llama-spm", VOCAB_SPM, "default", 32000, 0, "ied", NULL, 1, 2, true, 2},
    {"mpt", VOCAB_BPE, "mpt", 50432, 50009, "err", "\xc4\xa0\xc4\xa0 \xc4\xa0\xc4\xa0", 0, 0, false, 2},
    {"refact", VOCAB_BPE, "refact", 49216, 48891, "\xc4\x89\xc4\x89\xc4\x89\xc4\x89", "r e", 0, 0, false, 19},
};

static void the_shared_vocabularies_read_as_written(void **state)
{
    (void)state;
    unsigned seen = 0;
    for (unsigned i = 0; i < ARRAY_LEN(facts); i++) {
        const struct fact *f = &facts[i];
        char path[256];
        struct gguf *g;
        struct vocab *v;
        uint32_t n_control = 0;
        const char *shared = getenv("RACKLM_TEST_SHARED");
        snprintf(path, sizeof(path), "%s/data/tokenizers/%s.gguf", shared ? shared : "../shared", f->file);
        if (access(path, R_OK) != 0)
            continue;
        seen++;
        assert_int_equal(gguf_open(path, &g), ERR_OK);
        if (vocab_load(g, &v) != ERR_OK)
            fail_msg("%s: %s", path, err_detail());
        assert_int_equal(v->kind, f->kind);
        assert_true(is(v->pre, f->pre));
        assert_int_equal(v->n_tokens, f->n_tokens);
        assert_int_equal(v->n_merges, f->n_merges);
        assert_true(is(v->tokens[1000], f->token_1000));
        assert_true(!f->merge_7 || is(v->merges[7], f->merge_7));
        assert_int_equal(v->bos, f->bos);
        assert_int_equal(v->eos, f->eos);
        assert_int_equal(v->add_bos, f->add_bos);
        for (uint32_t k = 0; k < v->n_tokens; k++)
            n_control += v->types[k] == VOCAB_CONTROL;
        assert_int_equal(n_control, f->n_control);
        assert_true((v->scores != NULL) == (f->kind == VOCAB_SPM));
        vocab_destroy(&v);
        gguf_close(&g);
    }
    if (!seen)
        skip();
}

static void the_seed_files_read_as_written(void **state)
{
    (void)state;
    struct gguf *g;
    struct vocab *v;
    assert_int_equal(gguf_open("tests/fuzz/gguf/corpus/llama-spm.gguf", &g), ERR_OK);
    assert_int_equal(vocab_load(g, &v), ERR_OK);
    assert_int_equal(v->kind, VOCAB_SPM);
    assert_int_equal(v->n_tokens, 40);
    assert_true(v->scores[39] == -39.0f);
    assert_int_equal(v->types[0], VOCAB_UNKNOWN);
    assert_int_equal(v->types[3], VOCAB_CONTROL);
    assert_int_equal(v->eot, 3); /* by its text */
    assert_int_equal(v->unk, 0);
    assert_int_equal(v->pad, VOCAB_NONE);
    assert_int_equal(v->eom, VOCAB_NONE);
    assert_true(v->add_bos && !v->add_eos && !v->add_space_prefix);
    assert_true(is(v->chat_template, "{{ messages[0]['content'] }}"));
    vocab_destroy(&v);
    assert_null(v);
    gguf_close(&g);
}

/* A vocabulary of four tokens with one thing wrong. */
enum wrong {
    NOTHING,
    KIND,
    SCORES_COUNT,
    SCORES_NAN,
    SCORES_TYPE,
    TYPES_COUNT,
    TYPES_RANGE,
    NO_MERGES,
    ID_RANGE,
    ID_NEGATIVE,
    FLAG,
    NO_TOKENS,
    TOKENS_INTS,
    NO_SCORES,
    EMPTY
};

static enum err load(enum wrong wrong, bool spm)
{
    static const char *const tokens[] = {"a", "b", "ab", "</s>"}, *const merges[] = {"a b"};
    const float scores[] = {0, -1, wrong == SCORES_NAN ? NAN : -2.0f, -3};
    const int32_t types[] = {1, 1, 1, wrong == TYPES_RANGE ? 7 : 3};
    struct gguf_write w;
    struct gguf *g;
    struct vocab *v = NULL;
    gguf_write_init(&w);
    gguf_write_str(&w, "tokenizer.ggml.model", wrong == KIND ? "bert" : spm ? "llama" : "gpt2");
    if (wrong == TOKENS_INTS)
        gguf_write_i32_arr(&w, "tokenizer.ggml.tokens", types, 4);
    else if (wrong != NO_TOKENS)
        gguf_write_str_arr(&w, "tokenizer.ggml.tokens", tokens, wrong == EMPTY ? 0 : 4);
    if (wrong == SCORES_TYPE)
        gguf_write_i32_arr(&w, "tokenizer.ggml.scores", types, 4);
    else if (wrong != NO_SCORES)
        gguf_write_f32_arr(&w, "tokenizer.ggml.scores", scores, wrong == SCORES_COUNT ? 3 : 4);
    gguf_write_i32_arr(&w, "tokenizer.ggml.token_type", types, wrong == TYPES_COUNT ? 3 : 4);
    if (wrong != NO_MERGES)
        gguf_write_str_arr(&w, "tokenizer.ggml.merges", merges, 1);
    gguf_write_u32(&w, "tokenizer.ggml.eos_token_id", wrong == ID_RANGE ? 4 : wrong == ID_NEGATIVE ? UINT32_MAX : 3);
    if (wrong == FLAG)
        gguf_write_u32(&w, "tokenizer.ggml.add_bos_token", 1);
    gguf_write_header(&w);
    assert_int_equal(gguf_parse(w.header.p, w.header.len, &g), ERR_OK);
    enum err e = vocab_load(g, &v);
    if (e != ERR_OK) {
        assert_null(v);
        assert_non_null(strstr(err_detail(), "tokenizer.ggml."));
    } else {
        assert_int_equal(v->n_tokens, 4);
        assert_int_equal(v->bos, spm ? 1 : VOCAB_NONE);
    }
    vocab_destroy(&v);
    gguf_close(&g);
    gguf_write_deinit(&w);
    return e;
}

static void contradictions_are_refused(void **state)
{
    (void)state;
    for (int spm = 0; spm <= 1; spm++) {
        assert_int_equal(load(NOTHING, spm), ERR_OK);
        assert_int_equal(load(KIND, spm), ERR_UNSUPPORTED);
        static const enum wrong always[] = {SCORES_COUNT, SCORES_NAN, SCORES_TYPE, TYPES_COUNT, TYPES_RANGE, ID_RANGE,
                                            ID_NEGATIVE,  FLAG,       NO_TOKENS,   TOKENS_INTS, EMPTY};
        for (unsigned i = 0; i < ARRAY_LEN(always); i++)
            assert_int_equal(load(always[i], spm), ERR_CORRUPT);
        assert_int_equal(load(NO_MERGES, spm), spm ? ERR_OK : ERR_CORRUPT);
        assert_int_equal(load(NO_SCORES, spm), spm ? ERR_CORRUPT : ERR_OK);
    }
}

/* What t5 files carry, and what only the model's name tells (Phi-3's tokenizer_config.json: rstrip). */
static void unigram_fields_and_stripping_tokens_are_read(void **state)
{
    (void)state;
    static const char *const tokens[] = {"<pad>", "</s>", "<unk>", "<|end|>", "<s>", "a"};
    const float scores[] = {0, 0, 0, 0, 0, -1};
    const int32_t types[] = {3, 3, 2, 3, 3, 1};
    for (unsigned k = 0; k < 4; k++) { /* phi-3 or not; a charsmap of bytes or of integers */
        struct gguf_write w;
        struct gguf *g;
        struct vocab *v = NULL;
        gguf_write_init(&w);
        gguf_write_str(&w, "general.name", k & 1 ? "Phi-3 Mini" : "T5");
        gguf_write_str(&w, "tokenizer.ggml.model", "t5");
        gguf_write_str_arr(&w, "tokenizer.ggml.tokens", tokens, 6);
        gguf_write_f32_arr(&w, "tokenizer.ggml.scores", scores, 6);
        gguf_write_i32_arr(&w, "tokenizer.ggml.token_type", types, 6);
        gguf_write_bool(&w, "tokenizer.ggml.add_space_prefix", k & 1);
        if (k & 2)
            gguf_write_i32_arr(&w, "tokenizer.ggml.precompiled_charsmap", types, 6);
        gguf_write_header(&w);
        assert_int_equal(gguf_parse(w.header.p, w.header.len, &g), ERR_OK);
        enum err e = vocab_load(g, &v);
        assert_int_equal(e, k & 2 ? ERR_CORRUPT : ERR_OK);
        if (e == ERR_OK) {
            assert_int_equal(v->kind, VOCAB_UNIGRAM);
            assert_true(v->add_eos && !v->add_bos && v->merge_spaces && !v->space_suffix);
            assert_true(v->strip_space == (k == 1) && v->charsmap.len == 0);
            assert_int_equal(v->unk, 2);
            assert_int_equal(v->eos, 1);
            assert_int_equal(v->pad, 0);
            assert_true((v->strips != NULL) == (k == 1));
            assert_true(!v->strips || (v->strips[3] == VOCAB_RSTRIP && v->strips[1] == VOCAB_RSTRIP && !v->strips[4] && !v->strips[5]));
        }
        vocab_destroy(&v);
        gguf_close(&g);
        gguf_write_deinit(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_shared_vocabularies_read_as_written),
        cmocka_unit_test(the_seed_files_read_as_written),
        cmocka_unit_test(contradictions_are_refused),
        cmocka_unit_test(unigram_fields_and_stripping_tokens_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
