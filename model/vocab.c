/* The tokenizer section of a GGUF file as plain arrays of views (a tokenizer.json: tokenizer_json.c). Everything is checked here once (kinds, counts, ids),
 * so that the tokenizer indexes without looking. One allocation for each array; immutable once loaded, so any thread
 * may read it. */
#include "model/vocab.h"

#include "base/check.h"
#include "model/tokenizer_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { TOKENS_MAX = 1 << 24 };

static bool str_is(struct gguf_str s, const char *want)
{
    return s.len == strlen(want) && memcmp(s.s, want, s.len) == 0;
}

static enum err load_kind(const struct gguf *g, struct vocab *v)
{
    struct gguf_str kind;
    if (!gguf_get_str(g, "tokenizer.ggml.model", &kind))
        return err_set(ERR_CORRUPT, "the model has no tokenizer (tokenizer.ggml.model is missing)");
    if (str_is(kind, "llama"))
        v->kind = VOCAB_SPM;
    else if (str_is(kind, "gpt2") || str_is(kind, "whitespace") || str_is(kind, "gemma4"))
        v->kind = VOCAB_BPE;
    else if (str_is(kind, "t5"))
        v->kind = VOCAB_UNIGRAM;
    else
        return err_set(ERR_UNSUPPORTED, "tokenizer.ggml.model is \"%.*s\"; supported are llama, gpt2, whitespace, gemma4 and t5",
                       (int)MIN(kind.len, 40u), kind.s);
    gguf_get_str(g, "tokenizer.ggml.pre", &v->pre);
    if (str_is(kind, "gemma4")) /* the kind implies how text is cut */
        v->pre = kind;
    gguf_get_str(g, "tokenizer.chat_template", &v->chat_template);
    return ERR_OK;
}

static enum err load_strings(const struct gguf *g, const char *key, struct gguf_str **out)
{
    struct gguf_str_iter it;
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!gguf_str_iter(kv, &it))
        return err_set(ERR_CORRUPT, "%s is no array of strings", key);
    struct gguf_str *a = calloc(kv->n + 1, sizeof(*a));
    if (!a)
        return err_set(ERR_NOMEM, "out of memory for %s", key);
    *out = a;
    while (gguf_str_next(&it, a))
        a++;
    return ERR_OK;
}

static enum err load_tokens(const struct gguf *g, struct vocab *v)
{
    const struct gguf_kv *kv = gguf_find(g, "tokenizer.ggml.tokens");
    if (!kv || kv->type != GGUF_ARR || kv->n == 0 || kv->n > TOKENS_MAX)
        return err_set(ERR_CORRUPT, "tokenizer.ggml.tokens is no array of 1 to %d strings", TOKENS_MAX);
    v->n_tokens = (uint32_t)kv->n;
    return load_strings(g, "tokenizer.ggml.tokens", &v->tokens);
}

static enum err wrong_count(const char *key, const struct gguf_kv *kv, const struct vocab *v)
{
    return err_set(ERR_CORRUPT, "%s is no array of one number for each of the %u tokens (%" PRIu64 " elements)", key,
                   v->n_tokens, kv->n);
}

static enum err load_scores(const struct gguf *g, struct vocab *v)
{
    const char *key = "tokenizer.ggml.scores";
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv)
        return v->kind != VOCAB_BPE ? err_set(ERR_CORRUPT, "the model lacks the key %s", key) : ERR_OK;
    if (kv->n != v->n_tokens)
        return wrong_count(key, kv, v);
    v->scores = calloc(v->n_tokens, sizeof(*v->scores));
    if (!v->scores)
        return err_set(ERR_NOMEM, "out of memory for %s", key);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        if (!gguf_arr_f32(kv, i, &v->scores[i]))
            return wrong_count(key, kv, v);
        if (!isfinite(v->scores[i]))
            return err_set(ERR_CORRUPT, "%s: the score of token %u is not finite", key, i);
    }
    return ERR_OK;
}

static enum err load_types(const struct gguf *g, struct vocab *v)
{
    const char *key = "tokenizer.ggml.token_type";
    const struct gguf_kv *kv = gguf_find(g, key);
    v->types = malloc(v->n_tokens);
    if (!v->types)
        return err_set(ERR_NOMEM, "out of memory for %s", key);
    memset(v->types, VOCAB_NORMAL, v->n_tokens);
    if (!kv)
        return ERR_OK;
    if (kv->n != v->n_tokens)
        return wrong_count(key, kv, v);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        int64_t t;
        if (!gguf_arr_i64(kv, i, &t))
            return wrong_count(key, kv, v);
        if (t < 0 || t > VOCAB_BYTE)
            return err_set(ERR_CORRUPT, "%s: token %u has the type %" PRId64 " (0 to %d expected)", key, i, t,
                           VOCAB_BYTE);
        v->types[i] = t == 0 ? VOCAB_NORMAL : (uint8_t)t; /* 0: undefined */
    }
    return ERR_OK;
}

static enum err load_merges(const struct gguf *g, struct vocab *v)
{
    const char *key = "tokenizer.ggml.merges";
    const struct gguf_kv *kv = gguf_find(g, key);
    if (v->kind != VOCAB_BPE)
        return ERR_OK;
    if (!kv)
        return err_set(ERR_CORRUPT, "the model lacks the key %s", key);
    TRY(load_strings(g, key, &v->merges));
    v->n_merges = kv->n;
    return ERR_OK;
}

static enum err load_id(const struct gguf *g, const struct vocab *v, const char *key, int32_t def, int32_t *out)
{
    uint32_t id;
    *out = def >= 0 && (uint32_t)def < v->n_tokens ? def : VOCAB_NONE;
    if (!gguf_find(g, key))
        return ERR_OK;
    if (!gguf_get_u32(g, key, &id) || id >= v->n_tokens)
        return err_set(ERR_CORRUPT, "%s is none of the %u tokens", key, v->n_tokens);
    *out = (int32_t)id;
    return ERR_OK;
}

/* Files from before the keys eot_token_id and eom_token_id: the token that ends a turn is known by its text. */
static int32_t find_text(const struct vocab *v, const char *const *texts, unsigned n)
{
    for (unsigned t = 0; t < n; t++)
        for (uint32_t i = v->n_tokens; i-- > 0;) /* special tokens stand last in most vocabularies */
            if (str_is(v->tokens[i], texts[t]))
                return (int32_t)i;
    return VOCAB_NONE;
}

static enum err load_ids(const struct gguf *g, struct vocab *v)
{
    static const char *const eot[] = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"};
    static const char *const eom[] = {"<|eom_id|>"};
    bool spm = v->kind == VOCAB_SPM, t5 = v->kind == VOCAB_UNIGRAM;
    /* SentencePiece's own defaults, and those of T5, where a file is silent. */
    TRY(load_id(g, v, "tokenizer.ggml.bos_token_id", spm ? 1 : VOCAB_NONE, &v->bos));
    TRY(load_id(g, v, "tokenizer.ggml.eos_token_id", spm ? 2 : t5 ? 1 : VOCAB_NONE, &v->eos));
    TRY(load_id(g, v, "tokenizer.ggml.unknown_token_id", spm ? 0 : t5 ? 2 : VOCAB_NONE, &v->unk));
    TRY(load_id(g, v, "tokenizer.ggml.padding_token_id", t5 ? 0 : VOCAB_NONE, &v->pad));
    TRY(load_id(g, v, "tokenizer.ggml.eot_token_id", VOCAB_NONE, &v->eot));
    TRY(load_id(g, v, "tokenizer.ggml.eom_token_id", VOCAB_NONE, &v->eom));
    if (v->eot == VOCAB_NONE)
        v->eot = find_text(v, eot, ARRAY_LEN(eot));
    if (v->eom == VOCAB_NONE)
        v->eom = find_text(v, eom, ARRAY_LEN(eom));
    return ERR_OK;
}

static enum err load_flag(const struct gguf *g, const char *key, bool def, bool *out)
{
    *out = def;
    if (gguf_find(g, key) && !gguf_get_bool(g, key, out))
        return err_set(ERR_CORRUPT, "%s is neither true nor false", key);
    return ERR_OK;
}

static enum err load_flags(const struct gguf *g, struct vocab *v)
{
    /* Byte-level vocabularies whose own tokenizer puts BOS first; older files of them lack the key. */
    static const char *const pre_with_bos[] = {"llama3",   "llama-v3", "llama-bpe", "falcon3", "falcon-h1",
                                               "midm-2.0", "lfm2",     "pixtral",   "tekken",  "chameleon",
                                               "jina-v5-nano"};
    bool spm = v->kind == VOCAB_SPM, t5 = v->kind == VOCAB_UNIGRAM, bos = spm;
    for (unsigned i = 0; i < ARRAY_LEN(pre_with_bos) && !spm; i++)
        bos = bos || str_is(v->pre, pre_with_bos[i]);
    TRY(load_flag(g, "tokenizer.ggml.add_bos_token", bos, &v->add_bos));
    TRY(load_flag(g, "tokenizer.ggml.add_eos_token", t5, &v->add_eos));
    TRY(load_flag(g, "tokenizer.ggml.add_space_prefix", spm || t5, &v->add_space_prefix));
    TRY(load_flag(g, "tokenizer.ggml.remove_extra_whitespaces", t5, &v->merge_spaces));
    TRY(load_flag(g, "tokenizer.ggml.treat_whitespace_as_suffix", false, &v->space_suffix));
    v->strip_space = v->kind != VOCAB_BPE && v->add_space_prefix && !v->space_suffix;
    return ERR_OK;
}

/* GGUF has no key for it: the models whose special tokens take white space are known by name. Phi-3's do, but those named
 * here; <mask> takes what stands before it. */
static enum err load_strips(const struct gguf *g, struct vocab *v)
{
    static const char *const plain[] = {"<unk>", "<s>", "<|endoftext|>"};
    struct gguf_str name = {"", 0};
    gguf_get_str(g, "general.name", &name);
    bool phi3 = false, mask = v->pre.len > 8 && memcmp(v->pre.s, "jina-v2-", 8) == 0;
    for (size_t i = 0; i + 4 <= name.len && !phi3; i++)
        phi3 = strncasecmp(name.s + i, "phi3", 4) == 0 || (i + 5 <= name.len && strncasecmp(name.s + i, "phi-3", 5) == 0);
    if (!phi3 && !mask)
        return ERR_OK;
    v->strips = calloc(v->n_tokens, 1);
    if (!v->strips)
        return err_set(ERR_NOMEM, "out of memory for %u tokens", v->n_tokens);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        bool special = v->types[i] == VOCAB_CONTROL || v->types[i] == VOCAB_USER_DEFINED;
        for (unsigned k = 0; k < ARRAY_LEN(plain); k++)
            special = special && !str_is(v->tokens[i], plain[k]);
        if (phi3 && special)
            v->strips[i] = VOCAB_RSTRIP;
        else if (mask && str_is(v->tokens[i], "<mask>"))
            v->strips[i] = VOCAB_LSTRIP;
    }
    return ERR_OK;
}

/* Bytes as an array of 8-bit integers. */
static enum err load_charsmap(const struct gguf *g, struct vocab *v)
{
    const char *key = "tokenizer.ggml.precompiled_charsmap";
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv || v->kind != VOCAB_UNIGRAM)
        return ERR_OK;
    if (kv->type != GGUF_ARR || (kv->elem != GGUF_U8 && kv->elem != GGUF_I8))
        return err_set(ERR_CORRUPT, "%s is no array of bytes", key);
    v->charsmap = (struct gguf_str){(const char *)kv->data, kv->n};
    return ERR_OK;
}

enum err vocab_load(const struct gguf *g, struct vocab **out)
{
    enum err e;
    *out = NULL;
    struct vocab *v = calloc(1, sizeof(*v));
    if (!v)
        return err_set(ERR_NOMEM, "out of memory for the vocabulary");
    TRY_GOTO(load_kind(g, v), fail);
    TRY_GOTO(load_tokens(g, v), fail);
    TRY_GOTO(load_scores(g, v), fail);
    TRY_GOTO(load_types(g, v), fail);
    TRY_GOTO(load_merges(g, v), fail);
    TRY_GOTO(load_ids(g, v), fail);
    TRY_GOTO(load_flags(g, v), fail);
    TRY_GOTO(load_strips(g, v), fail);
    TRY_GOTO(load_charsmap(g, v), fail);
    *out = v;
    return ERR_OK;
fail:
    vocab_destroy(&v);
    return e;
}

enum err vocab_open(const char *path, struct vocab **out)
{
    struct gguf *g;
    char magic[4] = "";
    *out = NULL;
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(magic, 1, sizeof(magic), f) : 0;
    if (f)
        fclose(f);
    if (n > 0 && (n < sizeof(magic) || memcmp(magic, "GGUF", sizeof(magic)) != 0) && strchr("{ \t\r\n", magic[0]))
        return tokenizer_json_load(path, out);
    TRY(gguf_open(path, &g));
    enum err e = vocab_load(g, out);
    if (e == ERR_OK)
        (*out)->file = g;
    else
        gguf_close(&g);
    return e;
}

/* What a tokenizer.json alone does not say. */
static void inherit(struct vocab *v, const struct vocab *from)
{
    int32_t *const ids[] = {&v->bos, &v->eos, &v->eot, &v->eom, &v->pad};
    const int32_t theirs[] = {from->bos, from->eos, from->eot, from->eom, from->pad};
    for (unsigned i = 0; i < ARRAY_LEN(ids); i++)
        if (*ids[i] == VOCAB_NONE && theirs[i] >= 0 && (uint32_t)theirs[i] < v->n_tokens)
            *ids[i] = theirs[i];
    if (v->chat_template.len == 0)
        v->chat_template = from->chat_template;
}

enum err vocab_replace(struct vocab **vp, const char *path, uint32_t n_vocab)
{
    struct vocab *v;
    TRY(tokenizer_json_load(path, &v));
    uint32_t n = v->n_tokens;
    if (n > n_vocab) {
        vocab_destroy(&v);
        return err_set(ERR_CORRUPT, "%s has ids up to %u, but the model knows %u: it belongs to another model", path, n - 1, n_vocab);
    }
    if (*vp)
        inherit(v, *vp);
    vocab_destroy(vp);
    *vp = v;
    return ERR_OK;
}

void vocab_destroy(struct vocab **vp)
{
    struct vocab *v = *vp;
    *vp = NULL;
    if (!v)
        return;
    free(v->tokens);
    free(v->scores);
    free(v->types);
    free(v->strips);
    free(v->merges);
    free(v->merge_ids);
    tokenizer_json_destroy(&v->json);
    gguf_close(&v->file);
    free(v);
}
