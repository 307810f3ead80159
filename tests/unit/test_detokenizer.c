/* Detokeniser: pieces as they come against the whole, characters never halved, stop strings across token borders.
 * Expectations by hand, and for the random part by a plain search over the whole text. */
#include "base/check.h"
#include "text/detokenizer.h"
#include "text/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* SentencePiece tokens are the easiest to write by hand: 0 to 255 bytes, then words. */
enum { WORDS = 256 };
static const char *const words[] = {
    "\xE2\x96\x81Hello", "\xE2\x96\x81world", "STOP", "ST", "OP", "ab", "abc", "bcd", "\xC3\xA4", "<s>",
    "\xE2\x96\x81"};
static struct gguf_str tokens[WORDS + ARRAY_LEN(words)];
static float scores[WORDS + ARRAY_LEN(words)];
static uint8_t types[WORDS + ARRAY_LEN(words)];
static char names[256][8];
static struct vocab vocab;
static struct tokenizer *tok;

static int setup(void **state)
{
    (void)state;
    vocab = (struct vocab){.kind = VOCAB_SPM,
                           .n_tokens = ARRAY_LEN(tokens),
                           .tokens = tokens,
                           .scores = scores,
                           .types = types,
                           .bos = VOCAB_NONE,
                           .eos = VOCAB_NONE,
                           .eot = VOCAB_NONE,
                           .eom = VOCAB_NONE,
                           .unk = VOCAB_NONE,
                           .pad = VOCAB_NONE,
                           .add_space_prefix = true,
                           .strip_space = true};
    for (unsigned i = 0; i < ARRAY_LEN(tokens); i++) {
        if (i < 256)
            snprintf(names[i], 8, "<0x%02X>", i);
        const char *s = i < 256 ? names[i] : words[i - 256];
        tokens[i] = (struct gguf_str){s, strlen(s)};
        types[i] = i < 256 ? VOCAB_BYTE : strcmp(s, "<s>") == 0 ? VOCAB_CONTROL : VOCAB_NORMAL;
    }
    return tokenizer_create(&vocab, &tok);
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_destroy(&tok);
    return 0;
}

/* Pushes ids; the text after each push is appended with '|' between, the end after '#'. */
static const char *trace(const uint32_t *ids, size_t n, const char *const *stops, uint32_t n_stops, bool follow)
{
    static char out[1000];
    struct detokenizer d;
    struct buf b;
    buf_init(&b);
    detokenizer_init(&d, tok, stops, n_stops, false);
    if (follow)
        detokenizer_continue(&d);
    for (size_t i = 0; i < n; i++) {
        if (detokenizer_push(&d, ids[i], &b))
            buf_puts(&b, "!");
        buf_puts(&b, i + 1 < n ? "|" : "#");
    }
    detokenizer_finish(&d, &b);
    snprintf(out, sizeof(out), "%s", b.data == NULL ? "" : b.data);
    buf_deinit(&b);
    detokenizer_deinit(&d);
    return out;
}
#define IDS(...) (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / 4

static void the_first_space_goes_only_at_the_start_of_a_text(void **state)
{
    (void)state;
    assert_string_equal(trace(IDS(256, 257), NULL, 0, false), "Hello| world#");
    assert_string_equal(trace(IDS(256, 257), NULL, 0, true), " Hello| world#");
    assert_string_equal(trace(IDS(265, 256), NULL, 0, false), "|Hello#"); /* a control token is not text */
    assert_string_equal(trace(IDS(266, 256), NULL, 0, false), "| Hello#");
}

static void characters_are_whole(void **state)
{
    (void)state;
    assert_string_equal(trace(IDS(0xC3, 0xA4), NULL, 0, true), "|\xC3\xA4#");
    assert_string_equal(trace(IDS(0xF0, 0x9F, 0xA6, 0x99, 'x'), NULL, 0, true), "|||\xF0\x9F\xA6\x99|x#");
    assert_string_equal(trace(IDS(0xF0, 0x9F, 'x'), NULL, 0, true),
                        "||\xEF\xBF\xBDx#");                                      /* cut short by another character */
    assert_string_equal(trace(IDS(0xF0, 0x9F), NULL, 0, true), "|#\xEF\xBF\xBD"); /* and by the end */
    assert_string_equal(trace(IDS(0xFF, 'x', 0x80), NULL, 0, true), "\xEF\xBF\xBD|x|\xEF\xBF\xBD#");
    assert_string_equal(trace(IDS(0xE2, 0xE2, 0x82, 0xAC), NULL, 0, true), "|\xEF\xBF\xBD||\xE2\x82\xAC#");
}

static void a_stop_string_ends_the_text_wherever_it_is_cut(void **state)
{
    (void)state;
    const char *stop[] = {"STOP"}, *two[] = {"abcd", "bc"}, *nested[] = {"bcd", "abcd"}, *uml[] = {"\xC3\xA4x"};
    assert_string_equal(trace(IDS(256, 258, 257), stop, 1, false), "Hello|!|!#");
    assert_string_equal(trace(IDS(256, 259, 260, 257), stop, 1, false), "Hello||!|!#");
    assert_string_equal(trace(IDS('x', 'S', 'T', 'O', 'x'), stop, 1, true), "x||||STOx#");
    assert_string_equal(trace(IDS('S', 'T', 'S', 'T', 'O', 'P'), stop, 1, true),
                        "||ST|||!#"); /* held back is only what may still be one */
    assert_string_equal(trace(IDS('x', 'S', 'T', 'O'), stop, 1, true), "x|||#STO");
    assert_string_equal(trace(IDS(261, 'c', 'd'), two, 2, true),
                        "|a!|!#"); /* "bc" is complete first, whatever the tokens */
    assert_string_equal(trace(IDS(262, 'd'), two, 2, true), "a!|!#");
    assert_string_equal(trace(IDS('a', 263), nested, 2, true), "|!#"); /* both end together: the longer */
    assert_string_equal(trace(IDS('y', 0xC3, 0xA4, 'x'), uml, 1, true), "y|||!#");
    assert_string_equal(trace(IDS('y', 264, 'y'), uml, 1, true), "y||\xC3\xA4y#");
}

/* The text before the stop that is complete first; of those the longest. */
static size_t cut_at(const char *text, const char *const *stops, uint32_t n)
{
    size_t len = strlen(text);
    for (size_t end = 1; end <= len; end++) {
        size_t best = 0;
        for (uint32_t i = 0; i < n; i++) {
            size_t k = strlen(stops[i]);
            if (k <= end && k > best && memcmp(text + end - k, stops[i], k) == 0)
                best = k;
        }
        if (best > 0)
            return end - best;
    }
    return len;
}

static void random_cuttings_equal_the_whole(void **state)
{
    (void)state;
    const char *stops[] = {"abab", "bb", "cab\xC3\xA4"};
    uint32_t seed = 12345;
    for (int round = 0; round < 20000; round++) {
        struct detokenizer d;
        struct buf b, whole;
        buf_init(&b);
        buf_init(&whole);
        detokenizer_init(&d, tok, stops, ARRAY_LEN(stops), false);
        detokenizer_continue(&d);
        for (int i = 0; i < 12; i++) {
            static const uint32_t pick[] = {'a', 'b', 'c', 261, 262, 263, 264, 0xC3, 0xA4, 0xE2};
            seed = seed * 1664525 + 1013904223;
            uint32_t id = pick[(seed >> 16) % ARRAY_LEN(pick)];
            tokenizer_piece(tok, id, false, &whole);
            detokenizer_push(&d, id, &b);
            if (b.len > 0)
                assert_int_equal(utf8_valid_prefix(b.data, b.len), b.len);
        }
        detokenizer_finish(&d, &b);
        /* the whole text with U+FFFD for what is no UTF-8 */
        struct buf clean;
        buf_init(&clean);
        for (size_t i = 0; i < whole.len;) {
            uint32_t cp;
            size_t bad, n;
            bool cut;
            n = utf8_decode(whole.data + i, whole.len - i, &cp, &bad, &cut);
            buf_append(&clean, n > 0 ? whole.data + i : "\xEF\xBF\xBD", n > 0 ? n : 3);
            i += n > 0 ? n : bad;
        }
        size_t want = cut_at(clean.data, stops, ARRAY_LEN(stops));
        assert_int_equal(b.len, want);
        if (want > 0)
            assert_memory_equal(b.data, clean.data, want);
        buf_deinit(&clean);
        buf_deinit(&b);
        buf_deinit(&whole);
        detokenizer_deinit(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_space_goes_only_at_the_start_of_a_text),
        cmocka_unit_test(characters_are_whole),
        cmocka_unit_test(a_stop_string_ends_the_text_wherever_it_is_cut),
        cmocka_unit_test(random_cuttings_equal_the_whole),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
