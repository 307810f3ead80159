/* Tokenizers: every vocabulary in the shared folder against its vectors (ids made by the models' own tokenizers; new
 * files there are picked up), and small vocabularies whose ids were worked out by hand. The comparison with the PyPI
 * package tokenizers is tests/oracle/tokenizers_oracle.py. */
#include "base/buf.h"
#include "base/check.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char SEPARATOR[] = "\n__ggml_vocab_test__\n";
static bool skipped;

static bool shared_dir(char *path, size_t cap)
{
    const char *env = getenv("RACKLM_TEST_SHARED");
    snprintf(path, cap, "%s/data/tokenizers", env != NULL ? env : "../shared");
    DIR *d = opendir(path);
    if (d != NULL)
        closedir(d);
    return d != NULL;
}

static void expect_ids(const char *file, unsigned nth, const struct tokens *got, const char *line)
{
    size_t n = 0;
    for (const char *p = line; *p != 0 && *p != '\n';) {
        char *end;
        unsigned long id = strtoul(p, &end, 10);
        if (end == p)
            break;
        if (n >= got->n || got->ids[n] != id)
            fail_msg("%s: text %u: token %zu is %d, %lu expected", file, nth, n, n < got->n ? (int)got->ids[n] : -1,
                     id);
        n++;
        p = end;
    }
    if (n != got->n)
        fail_msg("%s: text %u: %zu tokens, %zu expected", file, nth, got->n, n);
}

static unsigned check_vectors(const char *path)
{
    char name[1400];
    struct buf inp, out, text;
    struct gguf *g;
    struct vocab *v;
    struct tokenizer *t;
    unsigned n = 0;
    buf_init(&inp);
    buf_init(&out);
    buf_init(&text);
    snprintf(name, sizeof(name), "%s.inp", path);
    assert_int_equal(buf_read_file(&inp, name, 1 << 20), ERR_OK);
    snprintf(name, sizeof(name), "%s.out", path);
    assert_int_equal(buf_read_file(&out, name, 1 << 20), ERR_OK);
    if (gguf_open(path, &g) != ERR_OK || vocab_load(g, &v) != ERR_OK || tokenizer_create(v, &t) != ERR_OK)
        fail_msg("%s: %s", path, err_detail());
    const char *line = out.data;
    for (const char *p = inp.data, *end; (end = strstr(p, SEPARATOR)) != NULL; p = end + strlen(SEPARATOR), n++) {
        struct tokens ids = {0};
        assert_int_equal(tokenizer_encode(t, p, (size_t)(end - p), 0, &ids), ERR_OK);
        expect_ids(path, n, &ids, line);
        line = strchr(line, '\n');
        assert_non_null(line);
        line++;
        struct detokenizer d;
        detokenizer_init(&d, t, NULL, 0, true);
        buf_clear(&text);
        for (size_t i = 0; i < ids.n; i++)
            detokenizer_push(&d, ids.ids[i], &text);
        detokenizer_finish(&d, &text);
        assert_int_equal(text.len, end - p);
        assert_memory_equal(text.len > 0 ? text.data : "", p, text.len);
        detokenizer_deinit(&d);
        tokens_deinit(&ids);
    }
    tokenizer_destroy(&t);
    vocab_destroy(&v);
    gguf_close(&g);
    buf_deinit(&inp);
    buf_deinit(&out);
    buf_deinit(&text);
    return n;
}

static void every_shared_vector_gives_its_ids_and_comes_back(void **state)
{
    (void)state;
    char dir[400], path[1200];
    unsigned files = 0, texts = 0, without = 0;
    if (!shared_dir(dir, sizeof(dir))) {
        print_message("skipped: %s is not there\n", dir);
        skipped = true;
        return;
    }
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        size_t n = strlen(e->d_name);
        if (n < 9 || strcmp(e->d_name + n - 9, ".gguf.inp") != 0)
            continue;
        snprintf(path, sizeof(path), "%s/%.*s", dir, (int)(n - 4), e->d_name);
        FILE *f = fopen(path, "rb");
        if (f == NULL) {
            without++;
            continue;
        }
        fclose(f);
        texts += check_vectors(path);
        files++;
    }
    closedir(d);
    print_message("%u vocabularies, %u texts; %u vectors skipped because their .gguf is missing\n", files, texts,
                  without);
    assert_true(files == 0 || texts > 0);
}

/* ---- vocabularies made here ---- */

enum { TOKENS_MAX = 400 };
struct made {
    struct vocab v;
    struct gguf_str tokens[TOKENS_MAX], merges[16];
    float scores[TOKENS_MAX];
    uint8_t types[TOKENS_MAX];
    char bytes[256][8];
    struct tokenizer *t;
};

static uint32_t add(struct made *m, const char *text, uint8_t type, float score)
{
    uint32_t id = m->v.n_tokens++;
    m->tokens[id] = (struct gguf_str){text, strlen(text)};
    m->types[id] = type;
    m->scores[id] = score;
    return id;
}

static void make(struct made *m)
{
    m->v.tokens = m->tokens;
    m->v.types = m->types;
    m->v.scores = m->v.kind == VOCAB_SPM ? m->scores : NULL;
    m->v.merges = m->merges;
    if (tokenizer_create(&m->v, &m->t) != ERR_OK)
        fail_msg("%s", err_detail());
}

static void start(struct made *m, enum vocab_kind kind, const char *pre)
{
    memset(m, 0, sizeof(*m));
    m->v.kind = kind;
    m->v.pre = (struct gguf_str){pre, strlen(pre)};
    m->v.bos = m->v.eos = m->v.eot = m->v.eom = m->v.unk = m->v.pad = VOCAB_NONE;
}

/* Ids 0 to 255 are the bytes: printable ones stand for themselves, the others are U+0100 and on in order (the rule of
 * GPT-2). */
static void start_bpe(struct made *m, const char *pre)
{
    start(m, VOCAB_BPE, pre);
    unsigned next = 256;
    for (unsigned b = 0; b < 256; b++) {
        unsigned c = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE ? b : next++;
        if (c < 0x80)
            snprintf(m->bytes[b], 8, "%c", c);
        else
            snprintf(m->bytes[b], 8, "%c%c", 0xC0 | c >> 6, 0x80 | (c & 63));
        add(m, m->bytes[b], VOCAB_NORMAL, 0);
    }
}

static void merge(struct made *m, const char *pair)
{
    m->merges[m->v.n_merges++] = (struct gguf_str){pair, strlen(pair)};
}

static void expect(const struct made *m, const char *text, size_t len, unsigned flags, const uint32_t *want, size_t n)
{
    struct tokens ids = {0};
    assert_int_equal(tokenizer_encode(m->t, text, len, flags, &ids), ERR_OK);
    for (size_t i = 0; i < n && i < ids.n; i++)
        if (ids.ids[i] != want[i])
            fail_msg("\"%s\": token %zu is %u, %u expected", text, i, ids.ids[i], want[i]);
    assert_int_equal(ids.n, n);
    tokens_deinit(&ids);
}
#define EXPECT(m, text, flags, ...)                                                                                    \
    expect(m, text, strlen(text), flags, (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / 4)

static void byte_level_merges_go_by_rank_and_then_from_the_left(void **state)
{
    (void)state;
    static struct made m;
    start_bpe(&m, "gpt-2");
    uint32_t ab = add(&m, "ab", VOCAB_NORMAL, 0), bc = add(&m, "bc", VOCAB_NORMAL, 0),
             aa = add(&m, "aa", VOCAB_NORMAL, 0);
    uint32_t sab = add(&m,
                       "\xC4\xA0"
                       "ab",
                       VOCAB_NORMAL, 0),
             abab = add(&m, "abab", VOCAB_NORMAL, 0);
    merge(&m, "b c");
    merge(&m, "a b");
    merge(&m, "a a");
    merge(&m, "\xC4\xA0 ab");
    merge(&m, "ab ab");
    make(&m);
    EXPECT(&m, "abc", 0, 'a', bc); /* "b c" has the lower rank */
    EXPECT(&m, "aab", 0, 'a', ab);
    EXPECT(&m, "aaa", 0, aa, 'a');
    EXPECT(&m, "ab ab", 0, ab, sab);
    EXPECT(&m, "ababab", 0, abab, ab);
    EXPECT(&m, "1ab", 0, '1', ab);
    char long_word[4001];
    uint32_t want[1000];
    for (int i = 0; i < 4000; i++)
        long_word[i] = "ab"[i % 2];
    long_word[4000] = 0;
    for (int i = 0; i < 1000; i++)
        want[i] = abab;
    expect(&m, long_word, 4000, 0, want, 1000); /* the heap of long words agrees with the scan of short ones */
    for (int i = 0; i < 1000; i++)
        want[i] = aa;
    memset(long_word, 'a', 2000);
    expect(&m, long_word, 2000, 0, want, 1000);
    tokenizer_destroy(&m.t);
}

static void bytes_that_are_no_utf8_come_back(void **state)
{
    (void)state;
    static struct made m;
    start_bpe(&m, "llama-bpe");
    make(&m);
    uint32_t want[256];
    char text[256];
    for (unsigned i = 0; i < 256; i++) {
        text[i] = (char)(i * 37 + 11);
        want[i] = (unsigned char)text[i];
    }
    expect(&m, text, 256, TOKENIZER_PARSE, want, 256);
    struct buf b;
    buf_init(&b);
    for (unsigned i = 0; i < 256; i++)
        tokenizer_piece(m.t, want[i], false, &b);
    assert_int_equal(b.len, 256);
    assert_memory_equal(b.data, text, 256);
    buf_deinit(&b);
    tokenizer_destroy(&m.t);
}

static void special_tokens_are_longest_first_and_only_when_asked(void **state)
{
    (void)state;
    static struct made m;
    start_bpe(&m, "qwen2");
    uint32_t end = add(&m, "<|e|>", VOCAB_CONTROL, 0), longer = add(&m, "<|e|>>", VOCAB_CONTROL, 0),
             user = add(&m, "<x>", VOCAB_USER_DEFINED, 0);
    uint32_t im_end = add(&m, "<|im_end|>", VOCAB_CONTROL, 0);
    m.v.bos = (int32_t)end;
    m.v.eos = (int32_t)longer;
    m.v.add_bos = m.v.add_eos = true;
    make(&m);
    EXPECT(&m, "a<|e|>b", TOKENIZER_PARSE, 'a', end, 'b');
    EXPECT(&m, "<|e|>>", TOKENIZER_PARSE, longer);
    EXPECT(&m, "<|e|><|e|", TOKENIZER_PARSE, end, '<', '|', 'e', '|');
    EXPECT(&m, "<|e|>", 0, '<', '|', 'e', '|', '>');
    EXPECT(&m, "1<x>2", 0, '1', user, '2');
    EXPECT(&m, "1", TOKENIZER_SPECIAL, end, '1', longer);
    static uint8_t strips[TOKENS_MAX];
    strips[end] = VOCAB_RSTRIP;
    strips[user] = VOCAB_LSTRIP;
    m.v.strips = strips;
    EXPECT(&m, "1\n\xC2\xA0<x><x>!<|e|>\t\r2 <|im_end|>\x0B\n", TOKENIZER_PARSE, '1', user, user, '!', end, '2', ' ', im_end, 11, 10);
    EXPECT(&m, "\x85<x>\x80", TOKENIZER_PARSE, 0x85, user, 0x80); /* no UTF-8, no space */
    expect(&m, "", 0, 0, NULL, 0);
    struct buf b;
    buf_init(&b);
    tokenizer_piece(m.t, end, false, &b);
    assert_int_equal(b.len, 0);
    tokenizer_piece(m.t, end, true, &b);
    tokenizer_piece(m.t, user, false, &b);
    tokenizer_piece(m.t, 100000, true, &b);
    assert_string_equal(b.data, "<|e|><x>");
    buf_deinit(&b);
    uint32_t ids[4];
    assert_int_equal(tokenizer_end_ids(m.t, ids, 4), 2);
    assert_int_equal(ids[0], longer);
    assert_int_equal(ids[1], im_end);
    assert_int_equal(tokenizer_end_ids(m.t, ids, 1), 1);
    tokenizer_destroy(&m.t);
}

static void sentencepiece_merges_by_score_and_falls_back_to_bytes(void **state)
{
    (void)state;
    static struct made m;
    start(&m, VOCAB_SPM, "default");
    add(&m, "<unk>", VOCAB_UNKNOWN, 0);
    uint32_t bos = add(&m, "<s>", VOCAB_CONTROL, 0);
    add(&m, "</s>", VOCAB_CONTROL, 0);
    uint32_t byte0 = m.v.n_tokens;
    for (unsigned b = 0; b < 256; b++) {
        snprintf(m.bytes[b], 8, "<0x%02X>", b);
        add(&m, m.bytes[b], VOCAB_BYTE, 0);
    }
    uint32_t sp = add(&m, "\xE2\x96\x81", VOCAB_NORMAL, -10), h = add(&m, "h", VOCAB_NORMAL, -11),
             e = add(&m, "e", VOCAB_NORMAL, -12);
    uint32_t he = add(&m, "he", VOCAB_NORMAL, -2), sph = add(&m, "\xE2\x96\x81h", VOCAB_NORMAL, -1),
             sphe = add(&m, "\xE2\x96\x81he", VOCAB_NORMAL, -5);
    uint32_t eh = add(&m, "eh", VOCAB_NORMAL, -2);
    m.v.bos = 1;
    m.v.eos = 2;
    m.v.unk = 0;
    m.v.add_bos = m.v.add_space_prefix = true;
    make(&m);
    EXPECT(&m, "he", 0, sphe);
    EXPECT(&m, "hhe", 0, sph, he);
    EXPECT(&m, "eeh", 0, sp, e, eh);
    EXPECT(&m, "ehe", 0, sp, eh, e); /* equal scores: the left one */
    EXPECT(&m, "h  e", 0, sph, sp, sp, e);
    EXPECT(&m, "\xC3\xA9", TOKENIZER_SPECIAL, bos, sp, byte0 + 0xC3, byte0 + 0xA9);
    EXPECT(&m, "\xFF", 0, sp, byte0 + 0xFF);
    EXPECT(&m, "he<s>he", TOKENIZER_PARSE, sphe, bos, sphe);
    EXPECT(&m, "<s>", 0, sp, byte0 + '<', byte0 + 's', byte0 + '>');
    expect(&m, "", 0, TOKENIZER_SPECIAL, (const uint32_t[]){bos}, 1);
    (void)h;
    tokenizer_destroy(&m.t);
}

static void an_unknown_pretokenizer_is_named_with_the_known_ones(void **state)
{
    (void)state;
    static struct made m;
    start_bpe(&m, "martian");
    m.v.tokens = m.tokens;
    m.v.types = m.types;
    m.v.merges = m.merges;
    assert_int_equal(tokenizer_create(&m.v, &m.t), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_detail(), "martian"));
    assert_non_null(strstr(err_detail(), "llama-bpe"));
    assert_null(m.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shared_vector_gives_its_ids_and_comes_back),
        cmocka_unit_test(byte_level_merges_go_by_rank_and_then_from_the_left),
        cmocka_unit_test(bytes_that_are_no_utf8_come_back),
        cmocka_unit_test(special_tokens_are_longest_first_and_only_when_asked),
        cmocka_unit_test(sentencepiece_merges_by_score_and_falls_back_to_bytes),
        cmocka_unit_test(an_unknown_pretokenizer_is_named_with_the_known_ones),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed == 0 && skipped ? 77 : failed;
}
