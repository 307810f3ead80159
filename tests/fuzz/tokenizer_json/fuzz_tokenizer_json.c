/* A tokenizer.json, and a tokenizer_config.json beside it: whatever the bytes say, loading ends with an error or with a
 * tokenizer whose ids are all in its vocabulary, for texts with special tokens, bad UTF-8 and runs. Or, behind '!', what
 * a GGUF file says of unigram: flags, the size of the charsmap (two bytes), the charsmap, a text. */
#include "base/buf.h"
#include "base/check.h"
#include "text/detokenizer.h"
#include "model/tokenizer_json.h"

#include <string.h>

static const char *const texts[] = {
    "Hello <s>  world\xE2\x96\x81 [user] e\xCC\x81\xCC\x96 42\n\n", "\xFF\xE6\xBC\xA2\xE5\xAD\x97\xEF\xBC\xA1 \xE2\x82",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabababa  b", ""};

static void use(const struct tokenizer *t, const char *text, unsigned flags)
{
    struct tokens ids = {0};
    if (tokenizer_encode(t, text, strlen(text), flags, &ids) == ERR_OK) {
        struct detokenizer d;
        struct buf out;
        buf_init(&out);
        detokenizer_init(&d, t, NULL, 0, flags & TOKENIZER_PARSE);
        for (size_t i = 0; i < ids.n; i++) {
            ASSERT(ids.ids[i] < tokenizer_vocab(t)->n_tokens);
            detokenizer_push(&d, ids.ids[i], &out);
        }
        detokenizer_finish(&d, &out);
        detokenizer_deinit(&d);
        buf_deinit(&out);
    }
    tokens_deinit(&ids);
}

static void unigram(const uint8_t *data, size_t size)
{
    static struct gguf_str tokens[] = {{"<unk>", 5}, {"</s>", 4}, {"a", 1}, {"aa", 2}, {"\xE2\x96\x81", 3}, {"\xE2\x96\x81" "a", 4}, {"b", 1}, {"[u]", 3}, {"<0x41>", 6}, {"\xE6\xBC", 2}};
    static float scores[] = {0, 0, -1, -1.5f, -2, -2.5f, -3, 0, 0, -4};
    static uint8_t types[] = {VOCAB_UNKNOWN, VOCAB_CONTROL, VOCAB_NORMAL, VOCAB_NORMAL, VOCAB_NORMAL, VOCAB_NORMAL, VOCAB_NORMAL, VOCAB_USER_DEFINED, VOCAB_BYTE, VOCAB_NORMAL};
    size_t map = size < 3 ? 0 : data[1] + 256u * data[2];
    if (size < 3 || map > size - 3)
        return;
    struct vocab v = {.kind = VOCAB_UNIGRAM, .n_tokens = ARRAY_LEN(tokens), .tokens = tokens, .scores = scores, .types = types, .bos = -1, .eos = 1,
                      .eot = -1, .eom = -1, .unk = data[0] & 1 ? 0 : -1, .pad = -1, .add_eos = true, .add_space_prefix = data[0] & 2, .strip_space = data[0] & 2,
                      .merge_spaces = data[0] & 4, .space_suffix = data[0] & 8, .charsmap = {(const char *)data + 3, map}};
    struct tokenizer *t;
    struct tokens ids = {0};
    ASSERT(tokenizer_create(&v, &t) == ERR_OK);
    if (tokenizer_encode(t, (const char *)data + 3 + map, size - 3 - map, TOKENIZER_SPECIAL, &ids) == ERR_OK)
        for (size_t i = 0; i < ids.n; i++)
            ASSERT(ids.ids[i] < v.n_tokens);
    tokens_deinit(&ids);
    tokenizer_destroy(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vocab *v = NULL;
    struct tokenizer *t = NULL;
    if (size > 0 && data[0] == '!') {
        unigram(data + 1, size - 1);
        return 0;
    }
    /* The first line may be a tokenizer_config.json. */
    const uint8_t *line = size > 0 ? memchr(data, '\n', size) : NULL;
    size_t config = line && data[0] == '#' ? (size_t)(line - data) + 1 : 0;
    if (tokenizer_json_parse((const char *)data + config, size - config, &v) != ERR_OK)
        return 0;
    if (config > 1)
        (void)tokenizer_json_config(v, (const char *)data + 1, config - 1);
    if (tokenizer_create(v, &t) == ERR_OK)
        for (size_t i = 0; i < ARRAY_LEN(texts); i++)
            use(t, texts[i], i % 2 ? TOKENIZER_SPECIAL : TOKENIZER_SPECIAL | TOKENIZER_PARSE);
    tokenizer_destroy(&t);
    vocab_destroy(&v);
    return 0;
}
