/* The GGUF reader: values and tensors against files written by the PyPI package `gguf`
 * (tests/fuzz/gguf/make_corpus.py), and damage of every kind against a small model in memory. Each damaged copy has its
 * own exact-size allocation, so that AddressSanitizer sees a read past the end. */
#include "base/check.h"
#include "model/describe.h"
#include "model/vocab.h"
#include "tests/tools/sanitized.h"
#include "tests/tools/tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define CORPUS "tests/fuzz/gguf/corpus/"
#define DATA "tests/data/gguf/"

static struct gguf *must_open(const char *path)
{
    struct gguf *g;
    if (gguf_open(path, &g) != ERR_OK)
        fail_msg("%s", err_detail());
    return g;
}

static void expect_str(const struct gguf *g, const char *key, const char *want)
{
    struct gguf_str s;
    assert_true(gguf_get_str(g, key, &s));
    assert_int_equal(s.len, strlen(want));
    assert_memory_equal(s.s, want, s.len);
}

static void every_value_type_reads_back(void **state)
{
    (void)state;
    struct gguf *g = must_open(CORPUS "types.gguf");
    uint32_t u;
    float f;
    bool b;
    assert_true(gguf_get_u32(g, "t.u8", &u));
    assert_int_equal(u, 255);
    assert_true(gguf_get_u32(g, "t.u16", &u));
    assert_int_equal(u, 65535);
    assert_true(gguf_get_u32(g, "t.u32", &u));
    assert_int_equal(u, UINT32_MAX);
    assert_true(gguf_get_u32(g, "t.u64_small", &u));
    assert_int_equal(u, 77);
    static const char *const no_u32[] = {"t.i8",  "t.i16",  "t.i32", "t.i64",  "t.u64",
                                         "t.f32", "t.true", "t.str", "t.ints", "absent"};
    for (unsigned i = 0; i < ARRAY_LEN(no_u32); i++)
        assert_false(gguf_get_u32(g, no_u32[i], &u));
    assert_true(gguf_get_f32(g, "t.f32", &f) && f == 1.5f);
    assert_true(gguf_get_f32(g, "t.f64", &f) && f == 2.5f);
    assert_false(gguf_get_f32(g, "t.u8", &f));
    assert_true(gguf_get_bool(g, "t.true", &b) && b);
    assert_true(gguf_get_bool(g, "t.false", &b) && !b);
    assert_false(gguf_get_bool(g, "t.u8", &b));
    expect_str(g, "t.str", "gr\xc3\xbcn \xe2\x9c\x93");
    gguf_close(&g);
}

static void arrays_are_bounds_checked(void **state)
{
    (void)state;
    struct gguf *g = must_open(CORPUS "types.gguf");
    const struct gguf_kv *ints = gguf_find(g, "t.ints"), *floats = gguf_find(g, "t.floats"),
                         *strs = gguf_find(g, "t.strs");
    struct gguf_str_iter it;
    struct gguf_str s;
    int64_t v;
    float f;
    assert_true(gguf_arr_i64(ints, 0, &v) && v == -1);
    assert_true(gguf_arr_i64(ints, 2, &v) && v == 7);
    assert_false(gguf_arr_i64(ints, 3, &v));
    assert_false(gguf_arr_i64(ints, UINT64_MAX, &v));
    assert_false(gguf_arr_f32(ints, 0, &f));
    assert_true(gguf_arr_f32(floats, 1, &f) && f == -2.0f);
    assert_false(gguf_arr_i64(strs, 0, &v));
    assert_true(gguf_arr_i64(gguf_find(g, "t.u16s"), 1, &v) && v == 65535);
    assert_true(gguf_str_iter(strs, &it));
    assert_true(gguf_str_next(&it, &s) && s.len == 1 && s.s[0] == 'a');
    assert_true(gguf_str_next(&it, &s) && s.len == 0);
    assert_true(gguf_str_next(&it, &s) && s.len == 3);
    assert_false(gguf_str_next(&it, &s));
    assert_false(gguf_str_iter(ints, &it));
    assert_false(gguf_str_iter(NULL, &it));
    gguf_close(&g);
}

static void every_quantisation_is_recognised(void **state)
{
    (void)state;
    struct gguf *g = must_open(CORPUS "quants.gguf");
    assert_int_equal(g->n_tensors, QUANT_COUNT + 1);
    for (unsigned q = 0; q < QUANT_COUNT; q++) {
        const struct gguf_tensor *t = gguf_tensor(g, quant_traits[q].name);
        assert_non_null(t);
        assert_int_equal(t->type, q);
        assert_int_equal(t->ne[0], 256);
        assert_int_equal(t->ne[1], 3);
        assert_int_equal(t->bytes, 3 * quant_row_bytes(q, 256));
        assert_int_equal(t->data[0], 0);
        assert_ptr_equal(t->data, g->files[0].map + t->file_offset);
    }
    const struct gguf_tensor *four = gguf_tensor(g, "four_dims");
    static const uint64_t ne[] = {5, 4, 3, 2}; /* numpy's order turned round */
    assert_memory_equal(four->ne, ne, sizeof(ne));
    for (uint64_t i = 1; i < g->n_tensors; i++)
        assert_true(strcmp(g->tensors[i - 1].name, g->tensors[i].name) < 0);
    gguf_close(&g);
}

static void version_two_and_other_alignments_open(void **state)
{
    (void)state;
    struct hparams hp;
    struct gguf *g = must_open(CORPUS "llama-v2.gguf");
    assert_int_equal(g->version, 2);
    assert_int_equal(hparams_load(g, &hp), ERR_OK);
    gguf_close(&g);
    g = must_open(CORPUS "llama-linear.gguf"); /* alignment 64, tensors of ones */
    assert_int_equal(hparams_load(g, &hp), ERR_OK);
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        float one;
        assert_int_equal(g->tensors[i].file_offset % 64, 0);
        memcpy(&one, g->tensors[i].data + g->tensors[i].bytes - 4, 4);
        assert_true(one == 1.0f);
    }
    gguf_close(&g);
}

static void split_files_open_as_one(void **state)
{
    (void)state;
    struct gguf *g = must_open(DATA "split-00001-of-00003.gguf");
    assert_int_equal(g->n_files, 3);
    assert_int_equal(g->n_tensors, 5);
    expect_str(g, "general.name", "split");
    for (int i = 0; i < 5; i++) {
        char name[32];
        float v;
        snprintf(name, sizeof(name), "tensor.%d", 4 - i);
        const struct gguf_tensor *t = gguf_tensor(g, name);
        assert_non_null(t);
        assert_int_equal(t->file_idx, i / 2);
        memcpy(&v, t->data, 4);
        assert_true(v == (float)i);
        assert_ptr_equal(t->data, g->files[t->file_idx].map + t->file_offset);
    }
    gguf_close(&g);
    assert_null(g);
}

static void copy(const char *from, const char *to)
{
    char buf[4096];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_true(in && out);
    fwrite(buf, 1, fread(buf, 1, sizeof(buf), in), out);
    fclose(in);
    fclose(out);
}

static void expect_open_error(const char *path, enum err want, const char *text)
{
    struct gguf *g;
    assert_int_equal(gguf_open(path, &g), want);
    assert_null(g);
    if (!strstr(err_detail(), text) || strchr(err_detail(), '\n'))
        fail_msg("\"%s\" expected in \"%s\"", text, err_detail());
}

static void broken_splits_are_refused(void **state)
{
    (void)state;
    char dir[] = "/tmp/test_gguf.XXXXXX", a[64], b[64], c[64], other[64];
    assert_non_null(mkdtemp(dir));
    snprintf(a, sizeof(a), "%s/m-00001-of-00003.gguf", dir);
    snprintf(b, sizeof(b), "%s/m-00002-of-00003.gguf", dir);
    snprintf(c, sizeof(c), "%s/m-00003-of-00003.gguf", dir);
    snprintf(other, sizeof(other), "%s/other.gguf", dir);
    expect_open_error(DATA "split-00002-of-00003.gguf", ERR_INVALID, "is part 2 of 3");
    copy(DATA "split-00001-of-00003.gguf", a);
    copy(DATA "split-00001-of-00003.gguf", other);
    expect_open_error(other, ERR_INVALID, "-00001-of-00003.gguf");
    expect_open_error(a, ERR_NOT_FOUND, "m-00002-of-00003.gguf");
    copy(DATA "split-00002-of-00003.gguf", b);
    copy(DATA "split-00002-of-00003.gguf", c); /* the wrong part */
    expect_open_error(a, ERR_CORRUPT, "not 3 of 3");
    copy(DATA "split-00003-of-00003.gguf", c);
    struct gguf *g = must_open(a);
    gguf_close(&g);
    unlink(a);
    unlink(b);
    unlink(c);
    unlink(other);
    rmdir(dir);
}

static void what_is_no_model_file_is_refused(void **state)
{
    (void)state;
    char fifo[] = "/tmp/test_gguf.XXXXXX";
    expect_open_error("/nonexistent/model.gguf", ERR_NOT_FOUND, "/nonexistent/model.gguf");
    expect_open_error("/tmp", ERR_INVALID, "regular");
    expect_open_error("/dev/null", ERR_INVALID, "regular");
    expect_open_error("CMakeLists.txt", ERR_CORRUPT, "not a GGUF");
    expect_open_error(DATA "big-endian.gguf", ERR_UNSUPPORTED, "big-endian");
    int fd = mkstemp(fifo);
    expect_open_error(fifo, ERR_CORRUPT, "not a GGUF"); /* empty */
    close(fd);
    unlink(fifo);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    expect_open_error(fifo, ERR_INVALID, "regular"); /* and does not hang */
    unlink(fifo);
}

/* --- damage --- */

/* Everything that reads headers, as a program does it. */
static enum err load_all(const uint8_t *bytes, size_t len)
{
    struct gguf *g = NULL;
    struct vocab *v = NULL;
    struct hparams hp;
    uint8_t *exact = malloc(len ? len : 1);
    assert_non_null(exact);
    memcpy(exact, bytes, len);
    err_clear();
    enum err e = gguf_parse(exact, len, &g);
    if (e == ERR_OK)
        e = hparams_load(g, &hp);
    if (e == ERR_OK)
        e = vocab_load(g, &v);
    for (uint32_t tp = 1; e == ERR_OK && tp <= 3; tp++) {
        struct shard_split s;
        if (shard_split_init(&hp, tp, 1, NULL, 0, NULL, 0, &s) == ERR_OK)
            for (uint32_t r = 0; r < tp; r++)
                shard_file_bytes(g, &hp, &s, r, 0);
    }
    vocab_destroy(&v);
    gguf_close(&g);
    free(exact);
    if (e != ERR_OK) {
        assert_true(e == ERR_CORRUPT || e == ERR_UNSUPPORTED);
        assert_true(err_detail()[0] != 0);
        assert_null(strchr(err_detail(), '\n'));
    }
    return e;
}

static const struct tiny_model victim = {"llama",           2, 64, 4, 2, 16, 16, 96, 300, 256, .untied = true,
                                         .rope_freqs = true};

static uint8_t *victim_bytes(struct gguf_write *w, size_t *len)
{
    tiny_model_begin(&victim, w);
    uint8_t *bytes = tiny_model_bytes(w, len);
    assert_int_equal(load_all(bytes, *len), ERR_OK);
    return bytes;
}

static void every_header_integer_can_be_anything(void **state)
{
    (void)state;
    static const uint64_t evil[] = {
        0, 1, 2, 0x7fffffff, 0x80000000u, 0xffffffffu, 0x7fffffffffffffff, 0x8000000000000000u, UINT64_MAX};
    struct gguf_write w;
    size_t len;
    uint8_t *bytes = victim_bytes(&w, &len);
    struct rusage before, after;
    unsigned n = 0, refused = 0;
    getrusage(RUSAGE_SELF, &before);
    for (size_t i = 0; i < w.n_marks; i++)
        for (unsigned k = 0; k < ARRAY_LEN(evil); k++) {
            const struct gguf_write_mark *m = &w.marks[i];
            uint8_t kept[8];
            memcpy(kept, bytes + m->offset, m->width);
            if (memcmp(kept, &evil[k], m->width) == 0)
                continue;
            memcpy(bytes + m->offset, &evil[k], m->width);
            enum err e = load_all(bytes, len);
            n++;
            refused += e != ERR_OK;
            /* Only a key's own value may still make sense, version 2, and a smaller type of the last tensor, which
             * leaves no hole. */
            if (e == ERR_OK && strcmp(m->what, "value") != 0 && strcmp(m->what, "version") != 0 &&
                m->offset < w.header.len - 48)
                fail_msg("%s at %zu set to %llx went unnoticed", m->what, m->offset, (unsigned long long)evil[k]);
            memcpy(bytes + m->offset, kept, m->width);
        }
    getrusage(RUSAGE_SELF, &after);
    print_message("%u mutations, %u refused, %ld KiB more memory\n", n, refused, after.ru_maxrss - before.ru_maxrss);
    assert_true(n > 4000 && refused > n * 9 / 10);
    if (!SANITIZED) /* they keep freed memory */
        assert_true(after.ru_maxrss - before.ru_maxrss < 16 * 1024);
    assert_int_equal(load_all(bytes, len), ERR_OK);
    free(bytes);
    gguf_write_deinit(&w);
}

/* A count of 2^63 must fail before anything is allocated or walked. */
static void huge_counts_fail_at_once(void **state)
{
    (void)state;
    struct gguf_write w;
    size_t len;
    uint8_t *bytes = victim_bytes(&w, &len);
    static const uint64_t huge[] = {UINT64_MAX, 0x8000000000000000u, 1ull << 40, 1 << 24};
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (unsigned field = 8; field <= 16; field += 8)
        for (unsigned k = 0; k < ARRAY_LEN(huge); k++) {
            uint64_t kept;
            memcpy(&kept, bytes + field, 8);
            memcpy(bytes + field, &huge[k], 8);
            struct gguf *g;
            assert_int_equal(gguf_parse(bytes, len, &g), ERR_CORRUPT);
            assert_non_null(strstr(err_detail(), "promises"));
            memcpy(bytes + field, &kept, 8);
        }
    clock_gettime(CLOCK_MONOTONIC, &b);
    assert_true((b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6 < 100);
    free(bytes);
    gguf_write_deinit(&w);
}

static void every_truncation_is_noticed(void **state)
{
    (void)state;
    struct gguf_write w;
    size_t len;
    uint8_t *bytes = victim_bytes(&w, &len);
    for (size_t cut = 0; cut < w.header.len; cut += cut < 512 ? 1 : 7)
        assert_int_not_equal(load_all(bytes, cut), ERR_OK);
    for (size_t cut = w.header.len; cut < len - 32;
         cut += len / 50) /* the last tensor is padded by up to an alignment */
        assert_int_not_equal(load_all(bytes, cut), ERR_OK);
    free(bytes);
    gguf_write_deinit(&w);
}

static void garbage_never_crashes(void **state)
{
    (void)state;
    struct gguf_write w;
    size_t len;
    uint8_t *bytes = victim_bytes(&w, &len), *copied = malloc(len);
    uint64_t seed = 20240229;
    for (int round = 0; round < 3000; round++) {
        memcpy(copied, bytes, len);
        int flips = 1 + round % 8;
        for (int i = 0; i < flips; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            copied[(seed >> 33) % w.header.len] = (uint8_t)(seed >> 20);
        }
        load_all(copied, len);
    }
    for (int round = 0; round < 200; round++) { /* nothing but the magic is right */
        for (size_t i = 4; i < 1024; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            copied[i] = (uint8_t)(seed >> 40);
        }
        if (round & 1) { /* ... and the version */
            memcpy(copied + 4, "\3\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0", 20);
        }
        assert_int_not_equal(load_all(copied, 1024), ERR_OK);
    }
    free(copied);
    free(bytes);
    gguf_write_deinit(&w);
}

static enum err parse_writer(struct gguf_write *w)
{
    size_t len;
    uint8_t *bytes = tiny_model_bytes(w, &len);
    enum err e = load_all(bytes, len);
    free(bytes);
    gguf_write_deinit(w);
    return e;
}

static void duplicates_and_overlaps_are_refused(void **state)
{
    (void)state;
    struct gguf_write w;
    tiny_model_begin(&victim, &w);
    gguf_write_u32(&w, "llama.block_count", 2);
    assert_int_equal(parse_writer(&w), ERR_CORRUPT);
    assert_non_null(strstr(err_detail(), "llama.block_count stands twice"));
    tiny_model_begin(&victim, &w);
    gguf_write_add_tensor(&w, "output_norm.weight", 0, 64, 0, 256);
    assert_int_equal(parse_writer(&w), ERR_CORRUPT);
    assert_non_null(strstr(err_detail(), "output_norm.weight stands twice"));
    tiny_model_begin(&victim, &w);
    tiny_model_tensor(&w, "output_norm.weight")->bytes = 32; /* the next tensor begins inside of it */
    assert_int_equal(parse_writer(&w), ERR_CORRUPT);
    assert_non_null(strstr(err_detail(), "share bytes"));
    tiny_model_begin(&victim, &w);
    tiny_model_tensor(&w, "output_norm.weight")->type_id = 23;
    assert_int_equal(parse_writer(&w), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_detail(), "IQ4_XS"));
    tiny_model_begin(&victim, &w);
    gguf_write_str(&w, "bad\nkey", "x");
    assert_int_equal(parse_writer(&w), ERR_CORRUPT);
    assert_non_null(strstr(err_detail(), "control character"));
}

static void odd_alignments_are_refused(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 1, 4, 24, 33, 1u << 31, UINT32_MAX};
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        struct gguf_write w;
        tiny_model_begin(&victim, &w);
        gguf_write_u32(&w, "general.alignment", bad[i]);
        assert_int_equal(parse_writer(&w), ERR_CORRUPT);
        assert_non_null(strstr(err_detail(), "general.alignment"));
    }
    struct gguf_write w;
    tiny_model_begin(&victim, &w);
    w.alignment = 4096;
    assert_int_equal(parse_writer(&w), ERR_OK);
}

static void the_demo_model_opens(void **state)
{
    (void)state;
    struct hparams hp;
    struct describe d;
    struct gguf *g = must_open("deploy/demo/grimm-6m-Q8_0.gguf"); /* numbers by the PyPI package gguf */
    assert_int_equal(g->n_tensors, 56);
    assert_int_equal(g->n_kvs, 26);
    assert_int_equal(hparams_load(g, &hp), ERR_OK);
    assert_int_equal(hp.n_layers, 6);
    assert_int_equal(hp.n_kv_heads, 4);
    assert_int_equal(hp.vocab, 2048);
    assert_true(hp.tied_embeddings);
    describe_file(g, &hp, &d);
    assert_int_equal(d.main_quant, QUANT_Q8_0);
    assert_int_equal(d.quants[QUANT_F32].tensors, 13);
    assert_int_equal(d.n_params, 6425856);
    gguf_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_type_reads_back),
        cmocka_unit_test(arrays_are_bounds_checked),
        cmocka_unit_test(every_quantisation_is_recognised),
        cmocka_unit_test(version_two_and_other_alignments_open),
        cmocka_unit_test(split_files_open_as_one),
        cmocka_unit_test(broken_splits_are_refused),
        cmocka_unit_test(what_is_no_model_file_is_refused),
        cmocka_unit_test(every_header_integer_can_be_anything),
        cmocka_unit_test(huge_counts_fail_at_once),
        cmocka_unit_test(every_truncation_is_noticed),
        cmocka_unit_test(garbage_never_crashes),
        cmocka_unit_test(duplicates_and_overlaps_are_refused),
        cmocka_unit_test(odd_alignments_are_refused),
        cmocka_unit_test(the_demo_model_opens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
