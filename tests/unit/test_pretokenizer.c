/* Pre-tokenisers: every pattern of the table against PCRE2 (JIT, UTF, UCP), over random text; pieces worked out by
 * hand; what the automaton refuses. */
#include "base/check.h"
#include "text/pretokenizer.h"
#include "text/utf8.h"
#include "text/word_dfa.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

static uint64_t seed = 0x1234567;

static uint32_t rnd(uint32_t below)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((seed >> 33) % below);
}

/* Characters that some pattern tells apart, and any others. */
static uint32_t random_char(void)
{
    static const uint32_t ranges[][2] = {
        {0x0, 0x7F},       {0x20, 0x7E},     {0x41, 0x7A},     {0x30, 0x39},     {0x80, 0x24F},    {0x250, 0x5FF},
        {0x600, 0x6FF},    {0x900, 0x97F},   {0xE00, 0xEFF},   {0x1000, 0x17FF}, {0x1800, 0x1810}, {0x1C80, 0x1FFF},
        {0x2000, 0x206F},  {0x2070, 0x2BFF}, {0x2E80, 0x30FF}, {0x3100, 0x3200}, {0x4DB0, 0x4E10}, {0x9F90, 0xA000},
        {0xA9E0, 0xAA80},  {0xAC00, 0xAC10}, {0xD7A0, 0xD7FF}, {0xF900, 0xFAFF}, {0xFE20, 0xFFFF}, {0x10400, 0x10450},
        {0x1E900, 0x1E950}, {0x1F300, 0x1F6FF}, {0x20000, 0x20100}, {0xE0100, 0xE0110}, {0, 0x10FFFF},
    };
    static const char often[] = "  \n\r\t''''aAsStTrReEvVmMlLdDIMGZ<>:sentinel0123456789.,!?/|(";
    static const uint32_t odd[] = {0x85, 0xA0, 0x17F, 0x212A, 0x180E, 0x200B, 0x3000, 0x2028, 0x301, 0xBD, 0x2167, 0x1C5};
    uint32_t kind = rnd(10), c;
    if (kind < 6)
        return (unsigned char)often[rnd(sizeof(often) - 1)];
    if (kind < 7)
        return odd[rnd(ARRAY_LEN(odd))];
    do {
        const uint32_t *r = ranges[rnd(ARRAY_LEN(ranges))];
        c = r[0] + rnd(r[1] - r[0] + 1);
    } while (c >= 0xD800 && c <= 0xDFFF);
    return c;
}

/* A run of one character now and then. */
static size_t random_text(char *s, size_t chars, bool ascii)
{
    size_t len = 0;
    while (chars > 0) {
        uint32_t c = ascii ? random_char() & 0x7F : random_char();
        size_t n = rnd(8) == 0 ? 1 + rnd(9) : 1;
        for (; n > 0 && chars > 0; n--, chars--)
            len += utf8_encode(c, s + len);
    }
    return len;
}

/* ---- the reference ---- */

struct reference {
    pcre2_code *codes[8];
    pcre2_match_data *md;
    size_t n;
};

/* PCRE2's \s is White_Space and U+180E, which newer Unicode took out: classes are written out. Its \p{Han} holds what is
 * written together with Han, too (the full stop U+3002), which \p{Han} in the models' own files does not. */
static pcre2_code *compile(const char *pattern)
{
#define WHITE_SPACE "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
    static char full[16384];
    size_t n = 0;
    bool in_class = false;
    for (const char *p = pattern; *p != 0; p++) {
        assert_true(n + 256 < sizeof(full));
        if (p[0] == '\\' && (p[1] == 's' || p[1] == 'S')) {
            assert_true(p[1] == 's' || !in_class);
            n += (size_t)sprintf(full + n, in_class ? "%s" : p[1] == 's' ? "[%s]" : "[^%s]", WHITE_SPACE);
            p++;
            continue;
        }
        if (strncmp(p, "\\p{Han}", 7) == 0) {
            n += (size_t)sprintf(full + n, "\\p{sc:Han}");
            p += 6;
            continue;
        }
        if (*p == '\\')
            full[n++] = *p++;
        else if (*p == '[' || *p == ']')
            in_class = *p == '[';
        full[n++] = *p;
    }
    int code;
    PCRE2_SIZE at;
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)full, n, PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY, &code, &at, NULL);
    assert_non_null(c);
    pcre2_jit_compile(c, PCRE2_JIT_COMPLETE);
    return c;
}

/* Ends of the pieces of one piece s[from, to), from the pattern i on. */
static size_t reference_split(const struct reference *r, size_t i, const char *s, size_t from, size_t to, uint32_t *ends)
{
    size_t n = 0, at = 0, done = 0, len = to - from;
    if (i == r->n) {
        ends[0] = (uint32_t)to;
        return 1;
    }
    while (at < len && pcre2_match(r->codes[i], (PCRE2_SPTR)(s + from), len, at, PCRE2_NO_UTF_CHECK, r->md, NULL) >= 0) {
        const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(r->md);
        size_t a = ov[0], b = ov[1];
        if (a > done)
            n += reference_split(r, i + 1, s, from + done, from + a, ends + n);
        if (b > a)
            n += reference_split(r, i + 1, s, from + a, from + b, ends + n);
        done = b;
        at = b > a || b == len ? b : b + utf8_len_valid((unsigned char)s[from + b]);
    }
    if (done < len)
        n += reference_split(r, i + 1, s, from + done, to, ends + n);
    return n;
}

static struct pretokenizer *make(const char *name)
{
    struct pretokenizer *p;
    if (pretokenizer_create(name, strlen(name), &p) != ERR_OK)
        fail_msg("%s: %s", name, err_detail());
    return p;
}

static void same_pieces(const char *name, const struct pretokenizer *p, const struct reference *r, const char *s, size_t len)
{
    static uint32_t want[4096];
    struct pretokenizer_pieces got = {0};
    assert_int_equal(pretokenizer_split(p, s, len, &got), ERR_OK);
    size_t n = reference_split(r, 0, s, 0, len, want);
    for (size_t i = 0; i < got.n || i < n; i++)
        if (i >= got.n || i >= n || got.ends[i] != want[i])
            fail_msg("%s: piece %zu of \"%.*s\" ends at %d, by PCRE2 at %d", name, i, (int)len, s,
                     i < got.n ? (int)got.ends[i] : -1, i < n ? (int)want[i] : -1);
    pretokenizer_pieces_deinit(&got);
}

static void every_pattern_of_the_table_cuts_as_pcre2_does(void **state)
{
    (void)state;
    const char *full = getenv("RACKLM_FULL");
    int rounds = full != NULL && full[0] == '1' ? 20000 : 300;
    static char text[4 * 1000];
    for (size_t i = 0; pretokenizer_name(i) != NULL; i++) {
        const char *name = pretokenizer_name(i);
        const char *const *patterns = pretokenizer_patterns(name);
        bool seen = false;
        for (size_t k = 0; k < i && !seen; k++)
            seen = pretokenizer_patterns(pretokenizer_name(k)) == patterns;
        if (seen)
            continue;
        struct pretokenizer *p = make(name);
        struct reference r = {.md = pcre2_match_data_create(16, NULL)};
        for (; patterns[r.n] != NULL; r.n++)
            r.codes[r.n] = compile(patterns[r.n]);
        /* What a \b counts as a word beyond ASCII differs between the versions of PCRE2. */
        bool ascii = strstr(patterns[0], "\\b") != NULL;
        for (int k = 0; k < rounds; k++)
            same_pieces(name, p, &r, text, random_text(text, 1 + rnd(k % 50 == 0 ? 400 : 40), ascii));
        /* Long runs: what one attempt read in vain the next one need not. */
        for (int k = 0; k < 8; k++) {
            size_t len = 0, n = 200 + rnd(500);
            for (int part = 0; part < 3; part++, n = rnd(700))
                for (uint32_t c = "  \n\t1aA'"[rnd(8)]; n > 0; n--)
                    text[len++] = (char)c;
            len += random_text(text + len, 10, true);
            same_pieces(name, p, &r, text, len);
        }
        for (size_t k = 0; k < r.n; k++)
            pcre2_code_free(r.codes[k]);
        pcre2_match_data_free(r.md);
        pretokenizer_destroy(&p);
    }
}

/* want: the pieces, each followed by |. */
static void expect_pieces(const struct pretokenizer *p, const char *text, const char *want)
{
    struct pretokenizer_pieces w = {0};
    char got[512];
    size_t n = 0, from = 0;
    assert_int_equal(pretokenizer_split(p, text, strlen(text), &w), ERR_OK);
    for (size_t i = 0; i < w.n; i++) {
        n += (size_t)snprintf(got + n, sizeof(got) - n, "%.*s|", (int)(w.ends[i] - from), text + from);
        from = w.ends[i];
    }
    got[n] = 0;
    pretokenizer_pieces_deinit(&w);
    assert_string_equal(got, want);
}

static void expect_name(const char *name, const char *text, const char *want)
{
    struct pretokenizer *p = make(name);
    expect_pieces(p, text, want);
    pretokenizer_destroy(&p);
}

static void pieces_worked_out_by_hand(void **state)
{
    (void)state;
    expect_name("gpt-2", "I'm  2 Ol'Ve  \n x", "I|'m| | 2| Ol|'|Ve|  \n| x|");
    expect_name("llama-bpe", "I'VE 12345\r\n\n  if(x)  ", "I|'VE| |123|45|\r\n\n| | if|(x|)|  |");
    expect_name("qwen2", "12a!?\n\nb", "1|2|a|!?\n\n|b|");
    expect_name("gpt-4o", "camelCase HTTPServer's", "camel|Case| HTTPServer's|");
    expect_name("tekken", "it's //\n", "it|'s| //\n|");
    expect_name("superbpe", "a 1234567 b", "a |1|234|567| b|");
    expect_name("tiny_aya", "1234567 12345x 123", "1|234|567| |123|45|x| |123|");
    expect_name("exaone-moe", "a bc d", "a bc d|");
    expect_name("jais-2", "a       b", "a|    |  | b|");
    expect_name("gemma4", "a b\n\nc", "a b|\n\n|c|");
    expect_name("ufakzeka", "Ali'ye", "Ali|'ye|");
    expect_name("laguna", "a\n\n b", "a|\n\n| b|");
    expect_name("afmoe", "x1234\xE4\xB8\x80y", "x|1|234|\xE4\xB8\x80|y|");
    expect_name("deepseek-llm", "a b   ", "a| b|   |");
    /* Bytes that are no UTF-8 are pieces of their own. */
    expect_name("gpt-2", "ab\xFF\xFE" "cd\xE4\xB8", "ab|\xFF\xFE|cd|\xE4\xB8|");
}

static void what_would_not_be_linear_or_is_nonsense_is_refused(void **state)
{
    (void)state;
    static const char *const odd[] = {"a++b", "(?=a)b|c", "x*", "[^\\s]+?y", "(?<=a)b", "\\w+|\\W", "(a)\\1", "(", "[a", "a{2,1}",
                                      "\\p{Nope}", "*", "[\\S]", "a$b", "\\p", "\\p{L", "\\", "[b-a]", "(?i:\xC3\xA9)", "[a&&b]"};
    for (size_t i = 0; i < ARRAY_LEN(odd); i++) {
        struct word_dfa *d;
        if (word_dfa_create(odd[i], strlen(odd[i]), &d) != ERR_UNSUPPORTED)
            fail_msg("%s is taken", odd[i]);
        assert_null(d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pattern_of_the_table_cuts_as_pcre2_does),
        cmocka_unit_test(pieces_worked_out_by_hand),
        cmocka_unit_test(what_would_not_be_linear_or_is_nonsense_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
