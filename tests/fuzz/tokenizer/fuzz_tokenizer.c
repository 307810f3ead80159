/* Any bytes through the tokenizer. The first line chooses: a pre-tokeniser's name (byte-level BPE, or raw as gemma4),
 * "spm", "ids NAME" (the bytes are ids), "pattern P" (P is a pattern of words); the rest is the text. The vocabulary is a
 * small one, made here. Held: the ids of a text are its bytes again; a stream of ids is whole characters and equals the
 * whole; a match never leaves its text, and is the same whatever was read before. */
#include "base/buf.h"
#include "base/check.h"
#include "text/detokenizer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"
#include "text/word_dfa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = 40, TOKENS = 256 + 256 + WORDS };
static const char *const words[WORDS] = {
    "ab", "aa", "aaaa", "abab", "bc", "abc", "the", "th", "he", "in", "12", "123", "é", "Ã©", "\xE2\x96\x81", "\xE2\x96\x81the", "\xE2\x96\x81t", ("\xE2\x96\x81" "a"),
    "\xE2\x96\x81\xE2\x96\x81", "Ġ", "Ġt", "Ġthe", "ĊĊ", "Ċ", "一", "a", "b", "c", "t", "h", "e", "\n\n", "\n", "<|x|>", "<|x|>>", "[u]", "<unk>", "ĠĠ", "xx", "x",
};
static const char *const merges[] = {"a b", "a a", "b c", "aa aa", "ab ab", "a bc", "ab c", "t h", "th e", "h e", "1 2", "12 3", "1 23", "Ã ©", "Ġ t", "Ġ the", "Ġt he", "Ċ Ċ",
                                     "Ġ Ġ", "i n", "\xE2\x96\x81 t", "\xE2\x96\x81 the", "\xE2\x96\x81 a", "\xE2\x96\x81 \xE2\x96\x81", "x x", "\n \n"};
static char names[512][8];
static struct gguf_str tokens[TOKENS], merge_strs[ARRAY_LEN(merges)];
static float scores[TOKENS];
static uint8_t types[TOKENS];

/* Ids 0 to 255: the alphabet of bytes (BPE); 256 to 511: <0xXX>; then words. */
static void make_vocab(struct vocab *v, const char *pre, bool spm)
{
    unsigned next = 256;
    for (unsigned b = 0; b < 256; b++) {
        unsigned c = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE ? b : next++;
        names[b][utf8_encode(c, names[b])] = 0;
        snprintf(names[256 + b], 8, "<0x%02X>", b);
        types[b] = VOCAB_NORMAL;
        types[256 + b] = VOCAB_BYTE;
    }
    for (unsigned i = 0; i < TOKENS; i++) {
        const char *s = i < 512 ? names[i] : words[i - 512];
        tokens[i] = (struct gguf_str){s, strlen(s)};
        scores[i] = i < 512 ? -1000 : -(float)(i * 7 % 4); /* many are equal */
        if (i >= 512)
            types[i] = s[0] == '<' ? (s[1] == 'u' ? VOCAB_UNKNOWN : VOCAB_CONTROL) : s[0] == '[' ? VOCAB_USER_DEFINED : VOCAB_NORMAL;
    }
    for (unsigned i = 0; i < ARRAY_LEN(merges); i++)
        merge_strs[i] = (struct gguf_str){merges[i], strlen(merges[i])};
    *v = (struct vocab){.kind = spm ? VOCAB_SPM : VOCAB_BPE, .pre = {pre, strlen(pre)}, .n_tokens = TOKENS, .tokens = tokens, .scores = scores, .types = types,
                        .n_merges = spm ? 0 : ARRAY_LEN(merges), .merges = merge_strs, .bos = TOKENS - 7, .eos = TOKENS - 6, .eot = -1, .eom = -1, .unk = TOKENS - 4, .pad = -1,
                        .add_bos = true, .add_eos = true, .add_space_prefix = spm, .strip_space = spm};
}

/* The tokenizer of a name, made when first asked for and kept. */
static struct tokenizer *tokenizer_of(const char *name)
{
    enum { KEPT = 160 };
    static struct {
        const char *name;
        struct vocab v;
        struct tokenizer *t;
    } kept[KEPT];
    unsigned i = 0;
    while (i < KEPT && kept[i].name != NULL && strcmp(kept[i].name, name) != 0)
        i++;
    ASSERT(i < KEPT);
    if (kept[i].name == NULL) {
        bool spm = strcmp(name, "spm") == 0;
        kept[i].name = strdup(name);
        make_vocab(&kept[i].v, spm ? "default" : kept[i].name, spm);
        ASSERT(tokenizer_create(&kept[i].v, &kept[i].t) == ERR_OK);
    }
    return kept[i].t;
}

static void check_stream(const struct tokenizer *t, const uint32_t *ids, size_t n)
{
    struct detokenizer d;
    struct buf got, bytes, want;
    buf_init(&got);
    buf_init(&bytes);
    buf_init(&want);
    detokenizer_init(&d, t, NULL, 0, true);
    detokenizer_continue(&d);
    for (size_t i = 0; i < n; i++) {
        size_t before = got.len;
        detokenizer_push(&d, ids[i], &got);
        ASSERT(got.len == before || utf8_valid_prefix(got.data + before, got.len - before) == got.len - before);
        tokenizer_piece(t, ids[i], true, &bytes);
    }
    detokenizer_finish(&d, &got);
    for (size_t i = 0; i < bytes.len;) {
        uint32_t cp;
        size_t bad;
        bool cut;
        size_t k = utf8_decode(bytes.data + i, bytes.len - i, &cp, &bad, &cut);
        buf_append(&want, k > 0 ? bytes.data + i : "\xEF\xBF\xBD", k > 0 ? k : 3);
        i += k > 0 ? k : cut ? bytes.len - i : bad;
    }
    ASSERT(got.len == want.len && (got.len == 0 || memcmp(got.data, want.data, got.len) == 0));
    detokenizer_deinit(&d);
    buf_deinit(&got);
    buf_deinit(&bytes);
    buf_deinit(&want);
}

static void check_text(const struct tokenizer *t, const char *s, size_t len, unsigned flags)
{
    struct tokens ids = {0};
    struct buf b;
    buf_init(&b);
    ASSERT(tokenizer_encode(t, s, len, flags, &ids) == ERR_OK);
    for (size_t i = 0; i < ids.n; i++)
        tokenizer_piece(t, ids.ids[i], true, &b);
    bool spaces = tokenizer_vocab(t)->kind == VOCAB_SPM || memmem(s, len, "\xE2\x96\x81", 3) != NULL;
    if (!spaces) /* every byte has a token; U+2581 is a space to some, and SentencePiece puts spaces before */
        ASSERT(b.len == len && (len == 0 || memcmp(b.data, s, len) == 0));
    check_stream(t, ids.ids, ids.n);
    tokens_deinit(&ids);
    buf_deinit(&b);
}

static void check_pattern(const char *pattern, size_t pattern_len, const char *s, size_t len)
{
    struct word_dfa *d;
    struct word_dfa_memo memo = {0};
    err_clear();
    if (word_dfa_create(pattern, pattern_len, &d) != ERR_OK) {
        ASSERT(d == NULL && err_detail()[0] != 0);
        return;
    }
    len = utf8_valid_prefix(s, MIN(len, 4096u));
    for (size_t at = 0; at < len;) {
        size_t n = word_dfa_match_at(d, s, len, at, &memo), skip = word_dfa_skip(d, s + at, len - at);
        ASSERT(n <= len - at && skip <= len - at && n == word_dfa_match(d, s + at, len - at));
        ASSERT(n == 0 || skip == 0);
        at += n > 0 ? n : utf8_len_valid((unsigned char)s[at]);
    }
    word_dfa_destroy(&d);
}

static bool known(const char *name)
{
    for (size_t i = 0; pretokenizer_name(i) != NULL; i++)
        if (strcmp(pretokenizer_name(i), name) == 0)
            return true;
    return strcmp(name, "spm") == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *s = (const char *)data, *line = size == 0 ? NULL : memchr(s, '\n', size);
    size_t head = line == NULL ? 0 : (size_t)(line - s), skip = line == NULL ? 0 : head + 1;
    char name[64] = "gpt-2";
    bool ids = head > 4 && memcmp(s, "ids ", 4) == 0;
    if (head > 8 && memcmp(s, "pattern ", 8) == 0) {
        check_pattern(s + 8, head - 8, s + skip, size - skip);
        return 0;
    }
    size_t from = ids ? 4 : 0;
    if (head - from < sizeof(name) && head > from) {
        memcpy(name, s + from, head - from);
        name[head - from] = 0;
    }
    const struct tokenizer *t = tokenizer_of(known(name) ? name : "gpt-2");
    s += skip;
    size -= skip;
    if (ids) {
        uint32_t list[512];
        size_t n = 0;
        for (; n < ARRAY_LEN(list) && 2 * n + 1 < size; n++)
            list[n] = (((unsigned char)s[2 * n] << 8) | (unsigned char)s[2 * n + 1]) % (TOKENS + 5);
        check_stream(t, list, n);
        return 0;
    }
    check_text(t, s, size, 0);
    check_text(t, s, size, TOKENIZER_PARSE);
    struct tokens all = {0};
    ASSERT(tokenizer_encode(t, s, size, TOKENIZER_PARSE | TOKENIZER_SPECIAL, &all) == ERR_OK && all.n >= 2);
    tokens_deinit(&all);
    return 0;
}
