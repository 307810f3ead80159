/* tokenizer.json: damage and what is not supported are told by name; ids of files small enough to check by hand (that
 * they are those of the library `tokenizers` is tests/oracle/tokenizer_json_oracle.py). */
#include "base/buf.h"
#include "base/check.h"
#include "text/normalizer.h"
#include "text/regex.h"
#include "text/tokenizer.h"
#include "model/tokenizer_json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BPE "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"c\":3},\"merges\":[\"a b\"]}"

static enum err load(const char *json)
{
    struct vocab *v = NULL;
    struct tokenizer *t = NULL;
    enum err e = tokenizer_json_parse(json, strlen(json), &v);
    if (e == ERR_OK)
        e = tokenizer_create(v, &t);
    tokenizer_destroy(&t);
    vocab_destroy(&v);
    return e;
}

/* json fails so, with these words. */
static void refused(const char *json, enum err want, const char *words)
{
    enum err e = load(json);
    if (e != want || !strstr(err_detail(), words))
        fail_msg("%s: error %d (%d expected): %s", json, e, want, err_detail());
}

static void damage_is_told_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *json, *words;
    } cases[] = {
        {"", "no JSON"},
        {"{\"model\":", "no JSON"},
        {"{\"model\":{},\"model\":{}}", "duplicate"},
        {"[]", "model"},
        {"{}", "model"},
        {"{\"model\":[]}", "model"},
        {"{\"model\":{\"type\":\"BPE\"}}", "model.vocab"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", "empty"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", "model.vocab"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", "model.vocab"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":9000000000},\"merges\":[]}}", "model.vocab"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":16000000},\"merges\":[]}}", "largest id is 16000000"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "id 0"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}", "model.merges"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}", "model.merges[0]"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a a\"]}}", "model.merges[0]"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", "model.merges[0]"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "model.merges[0]"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",1]]}}", "model.merges[0]"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"fuse_unk\":1}}", "model.fuse_unk"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":{}}}", "model.vocab"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\"]]}}", "model.vocab[0]"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",\"b\"]]}}", "model.vocab[0]"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",1e999]]}}", "no JSON"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",0]],\"unk_id\":1}}", "model.unk_id"},
        {"{" BPE ",\"added_tokens\":{}}", "added_tokens"},
        {"{" BPE ",\"added_tokens\":[{\"id\":9}]}", "added_tokens[0]"},
        {"{" BPE ",\"added_tokens\":[{\"content\":\"x\"}]}", "added_tokens[0]"},
        {"{" BPE ",\"added_tokens\":[{\"content\":\"x\",\"id\":0}]}", "id 0"},
        {"{" BPE ",\"added_tokens\":[{\"content\":\"x\",\"id\":4,\"lstrip\":\"no\"}]}", "lstrip"},
        {"{" BPE ",\"normalizer\":{}}", "normalizer"},
        {"{" BPE ",\"normalizer\":{\"type\":\"Prepend\"}}", "prepend"},
        {"{" BPE ",\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"*\"}}", "precompiled_charsmap"},
        {"{" BPE ",\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////w==\"}}", "precompiled_charsmap"},
        {"{" BPE ",\"normalizer\":{\"type\":\"Sequence\"}}", "normalizers"},
        {"{" BPE ",\"pre_tokenizer\":{\"type\":\"Split\"}}", "Split"},
        {"{" BPE ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Odd\"}}", "behavior"},
        {"{" BPE ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "replacement"},
        {"{" BPE ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}}", "prepend_scheme"},
        {"{" BPE ",\"post_processor\":{\"type\":\"TemplateProcessing\"}}", "TemplateProcessing"},
        {"{" BPE ",\"post_processor\":{\"type\":\"RobertaProcessing\",\"sep\":[\"x\",4],\"cls\":[\"y\",1]}}", "post_processor"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        refused(cases[i].json, ERR_CORRUPT, cases[i].words);
}

static void what_is_not_supported_is_told_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *json, *words;
    } cases[] = {
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", "WordPiece"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}}", "model.dropout"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", "end_of_word_suffix"},
        {"{" BPE ",\"normalizer\":{\"type\":\"BertNormalizer\"}}", "BertNormalizer"},
        {"{" BPE ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"UnicodeScripts\"}]}}", "UnicodeScripts"},
        {"{" BPE ",\"pre_tokenizer\":{\"type\":\"NFC\"}}", "pre_tokenizer \"NFC\""},
        {"{" BPE ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}}", "pre_tokenizer"},
        {"{" BPE ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[\"},\"content\":\"\"}}", "normalizer"},
        {"{" BPE ",\"decoder\":{\"type\":\"CTC\"}}", "CTC"},
        {"{" BPE ",\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":2,\"stop\":0}}", "Strip"},
        {"{" BPE ",\"post_processor\":{\"type\":\"Odd\"}}", "Odd"},
        {"{" BPE ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\C\"},\"behavior\":\"Isolated\"}}", "disabled"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        refused(cases[i].json, ERR_UNSUPPORTED, cases[i].words);
    char deep[2048] = "{" BPE ",\"normalizer\":";
    for (int i = 0; i < 20; i++)
        strcat(deep, "{\"type\":\"Sequence\",\"normalizers\":[");
    strcat(deep, "{\"type\":\"NFC\"}");
    for (int i = 0; i < 20; i++)
        strcat(deep, "]}");
    strcat(deep, "}");
    refused(deep, ERR_CORRUPT, "8 levels");
}

static void ids(const char *json, const char *text, unsigned flags, const char *want)
{
    struct vocab *v = NULL;
    struct tokenizer *t = NULL;
    struct tokens out = {0};
    char got[256] = "";
    if (tokenizer_json_parse(json, strlen(json), &v) != ERR_OK || tokenizer_create(v, &t) != ERR_OK)
        fail_msg("%s: %s", json, err_detail());
    assert_int_equal(tokenizer_encode(t, text, strlen(text), flags, &out), ERR_OK);
    for (size_t i = 0; i < out.n; i++)
        snprintf(got + strlen(got), sizeof(got) - strlen(got), i ? " %u" : "%u", out.ids[i]);
    assert_string_equal(got, want);
    tokens_deinit(&out);
    tokenizer_destroy(&t);
    vocab_destroy(&v);
}

static void small_files_give_the_ids_that_one_expects(void **state)
{
    (void)state;
    static const char plain[] = "{" BPE "}",
                      around[] = "{" BPE ",\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"c\",3],\"cls\":[\"b\",1]}}",
                      special[] = "{" BPE ",\"added_tokens\":[{\"content\":\"<x>\",\"id\":4,\"special\":true,\"lstrip\":true,\"rstrip\":true},"
                                  "{\"content\":\"ac\",\"id\":5,\"special\":false,\"normalized\":false,\"single_word\":true}]}",
                      lower[] = "{" BPE ",\"normalizer\":{\"type\":\"Lowercase\"}}";
    ids(plain, "abcab", 0, "2 3 2");
    ids(plain, "", TOKENIZER_SPECIAL, "");
    ids(plain, "a?b", 0, "2"); /* without an unknown token: left out before merging */
    ids(around, "ab", TOKENIZER_SPECIAL, "1 2 3");
    ids(around, "ab", 0, "2");
    ids(special, "a <x> b", TOKENIZER_PARSE, "0 4 1");
    ids(special, "a<x>", 0, "0");
    ids(special, "ac", 0, "5");
    ids(special, "aca", 0, "0 3 0");
    ids(lower, "AB", 0, "2");
}

static void put_base64(struct buf *out, const unsigned char *p, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        uint32_t w = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
        for (int k = 0; k < 4; k++)
            buf_putc(out, digits[w >> (18 - 6 * k) & 63]);
    }
}

/* A map (a size, a double array, texts) that makes the first byte of a character of "a"; then steps that read characters. What is left of it ends
 * the text. */
static void half_characters_of_a_charsmap_end_the_text(void **state)
{
    (void)state;
    static const char *const next[] = {"{\"type\":\"Lowercase\"}", "{\"type\":\"NFC\"}", "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[^x]\"},\"content\":\"b\"}",
                                       "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(?<!x)[^x]\"},\"content\":\"b\"}", NULL};
    unsigned char map[4 + 0x63 * 4 + 2] = {0};
    struct buf step, json;
    buf_init(&step);
    buf_init(&json);
    map[0] = 0x8C, map[1] = 0x01;                                   /* 0x63 units */
    map[4 + 'a' * 4] = 'a', map[4 + 'a' * 4 + 1] = 1 | 3 << 2;      /* label, has a value, which is at 'a' ^ 3 */
    map[4 + 0x62 * 4 + 3] = 0x80;                                   /* the value: the text at 0 */
    map[4 + 0x63 * 4] = 0xF0;
    buf_puts(&step, "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"");
    put_base64(&step, map, sizeof(map));
    buf_puts(&step, "\"}");
    for (size_t i = 0; i < ARRAY_LEN(next); i++) {
        buf_clear(&json);
        buf_printf(&json, "{" BPE ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[%s,%s]},\"pre_tokenizer\":{\"type\":\"Digits\"}}", step.data,
                   next[i] ? next[i] : step.data);
        ids(json.data, "cab", 0, i == 2 || i == 3 ? "1" : "3");
        ids(json.data, "a", 0, "");
    }
    buf_deinit(&step);
    buf_deinit(&json);
}

/* A quadratic search would not end today. */
static void a_search_reads_a_text_once(void **state)
{
    (void)state;
    static const char *const patterns[] = {"b*c|b", "b*c"};
    const size_t len = 4000000;
    char *text = malloc(len);
    assert_non_null(text);
    memset(text, 'b', len);
    for (size_t i = 0; i < ARRAY_LEN(patterns); i++) {
        struct regex *r;
        struct regex_find f;
        size_t n = 0, from, to = 0;
        bool found = true;
        assert_int_equal(regex_create(patterns[i], strlen(patterns[i]), &r), ERR_OK);
        assert_int_equal(regex_find_init(&f, r), ERR_OK);
        while (found) {
            assert_int_equal(regex_find_next(&f, text, len, to, &found, &from, &to), ERR_OK);
            n += found;
        }
        assert_int_equal(n, i == 0 ? len : 0);
        regex_find_deinit(&f);
        regex_destroy(&r);
    }
    free(text);
}

/* Unicode Standard Annex #15, figures 3 to 6. */
static void the_forms_are_those_of_the_standard(void **state)
{
    (void)state;
    static const struct {
        const char *text, *forms[4]; /* NFC, NFD, NFKC, NFKD */
    } cases[] = {
        {"\u1e0a", {"\u1e0a", "D\u0307", "\u1e0a", "D\u0307"}},
        {"D\u0323\u0307", {"\u1e0c\u0307", "D\u0323\u0307", "\u1e0c\u0307", "D\u0323\u0307"}},
        {"D\u0307\u0323", {"\u1e0c\u0307", "D\u0323\u0307", "\u1e0c\u0307", "D\u0323\u0307"}},
        {"\ufb01", {"\ufb01", "\ufb01", "fi", "fi"}},
        {"2\u2075", {"2\u2075", "2\u2075", "25", "25"}},
        {"\u1e9b\u0323", {"\u1e9b\u0323", "\u017f\u0323\u0307", "\u1e69", "s\u0323\u0307"}},
        {"\uac01", {"\uac01", "\u1100\u1161\u11a8", "\uac01", "\u1100\u1161\u11a8"}},
        {"\u2126", {"\u03a9", "\u03a9", "\u03a9", "\u03a9"}},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        for (unsigned f = 0; f < 4; f++) {
            struct buf b;
            buf_init(&b);
            assert_int_equal(normalizer_unicode((enum normalizer_form)f, cases[i].text, strlen(cases[i].text), &b), ERR_OK);
            assert_string_equal(b.data, cases[i].forms[f]);
            buf_deinit(&b);
        }
}

/* What Oniguruma's document says of its Ruby syntax (doc/RE). */
static void patterns_mean_what_they_mean_in_ruby(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *text, *match; /* the first one; NULL: none */
    } cases[] = {
        {"\\h+", "xyzcafe!", "cafe"},          {"[a-c[x-z]]+", "mnaxzb1", "axzb"},   {"[a-z&&[^aeiou]]+", "aeixyzo", "xyz"},
        {"[^a-y&&[^b]]+", "aacbz", "bz"},      {"a{2}+", "aaaaa", "aaaa"},           {"a{,2}b", "aaab", "aab"},
        {"^b$", "a\nb\nc", "b"},               {".", "\n", NULL},                    {"(?m:.)", "\n", "\n"},
        {"\\s", "\u180e", NULL},               {"[\\s\\d]+", "x\u2003\u0663", "\u2003\u0663"}, {"\\bb\\w*", "ab bé", "bé"},
        {"[^\\W_]+", "_é1-", "é1"},            {"[[:upper:]]+", "aⅧB", "ⅧB"},        {"\\p{Han}+", "a。漢", "漢"},
        {"\\p{^L}+", "ab12c", "12"},           {"\\u0041", "xA", "A"},               {"(?<=a)b|c(?!d)", "bcdab", "b"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct regex *r;
        struct regex_find f;
        size_t from = 0, to = 0, len = strlen(cases[i].text);
        bool found;
        if (regex_create(cases[i].pattern, strlen(cases[i].pattern), &r) != ERR_OK)
            fail_msg("%s: %s", cases[i].pattern, err_detail());
        assert_int_equal(regex_find_init(&f, r), ERR_OK);
        assert_int_equal(regex_find_next(&f, cases[i].text, len, 0, &found, &from, &to), ERR_OK);
        const char *m = cases[i].match;
        if (found != (m != NULL) || (m && (to - from != strlen(m) || memcmp(cases[i].text + from, m, to - from) != 0)))
            fail_msg("%s on %s: %.*s", cases[i].pattern, cases[i].text, found ? (int)(to - from) : 0, cases[i].text + from);
        regex_find_deinit(&f);
        regex_destroy(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damage_is_told_by_name),
        cmocka_unit_test(what_is_not_supported_is_told_by_name),
        cmocka_unit_test(small_files_give_the_ids_that_one_expects),
        cmocka_unit_test(half_characters_of_a_charsmap_end_the_text),
        cmocka_unit_test(a_search_reads_a_text_once),
        cmocka_unit_test(the_forms_are_those_of_the_standard),
        cmocka_unit_test(patterns_mean_what_they_mean_in_ruby),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
