/* tokenizer.json of the Hugging Face library `tokenizers`, as plain data: what its components are called and what they
 * are set to. It owns the strings of the vocabulary it was read into (struct vocab, whose kind is BPE or UNIGRAM). The
 * algorithms are the coordinator's (tokenizer_hf.c).
 *
 * A component that nothing here can carry out is an error that names it (ERR_UNSUPPORTED), and so is what contradicts
 * itself (ERR_CORRUPT). `truncation` and `padding` are not looked at: a server never cuts a prompt silently. */
#ifndef MODEL_TOKENIZER_JSON_H
#define MODEL_TOKENIZER_JSON_H

#include "base/arena.h"
#include "model/vocab.h"

/* One step of a normalizer, pre_tokenizer or decoder; sequences are flattened. */
enum tokenizer_json_kind {
#define TOKENIZER_JSON_STEP(id, name, roles) TOKENIZER_JSON_##id,
#include "model/tokenizer_json_steps.def"
#undef TOKENIZER_JSON_STEP
};
enum tokenizer_json_behavior { /* what becomes of a match that splits a text */
    TOKENIZER_JSON_REMOVED,
    TOKENIZER_JSON_ISOLATED,
    TOKENIZER_JSON_MERGED_WITH_PREVIOUS,
    TOKENIZER_JSON_MERGED_WITH_NEXT,
    TOKENIZER_JSON_CONTIGUOUS,
};
enum tokenizer_json_prepend { TOKENIZER_JSON_NEVER, TOKENIZER_JSON_FIRST, TOKENIZER_JSON_ALWAYS };

struct tokenizer_json_step {
    enum tokenizer_json_kind kind;
    enum tokenizer_json_behavior behavior; /* Split, Punctuation */
    enum tokenizer_json_prepend prepend;   /* Metaspace; ByteLevel: NEVER or ALWAYS */
    struct gguf_str pattern;               /* Split, Replace, CharDelimiterSplit; Metaspace: the replacement */
    struct gguf_str content;               /* Replace, Prepend, Strip; Precompiled: the decoded bytes */
    bool is_regex, invert;                 /* of the pattern */
    bool split;                            /* Metaspace; ByteLevel: use_regex */
    bool individual;                       /* Digits */
    bool left, right;                      /* normalizer Strip */
    uint32_t start, stop;                  /* decoder Strip: how many */
};
struct tokenizer_json_added {
    uint32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
};
struct tokenizer_json {
    struct arena arena;
    struct tokenizer_json_step *normalizer, *pre, *decoder;
    uint32_t n_normalizer, n_pre, n_decoder;
    struct tokenizer_json_added *added; /* in the order of the file */
    uint32_t n_added;
    uint32_t *prefix, *suffix; /* what the post-processor puts around one sequence */
    uint32_t n_prefix, n_suffix;
    uint8_t *in_model;       /* per id: the model itself knows it, not only the list of added tokens */
    double *scores;          /* Unigram */
    bool byte_fallback, fuse_unk, ignore_merges;
};

/* ERR_NOT_FOUND, ERR_IO, ERR_TOO_BIG (file), ERR_UNSUPPORTED, ERR_CORRUPT, ERR_NOMEM. A tokenizer_config.json beside the
 * file gives bos, eos and the chat template where it names them. */
enum err tokenizer_json_load(const char *path, struct vocab **out);
/* The same of bytes in memory, which need not outlive the call. */
enum err tokenizer_json_parse(const char *bytes, size_t len, struct vocab **out);
/* The names in tokenizer_config.json beside a tokenizer.json, into v. */
enum err tokenizer_json_config(struct vocab *v, const char *bytes, size_t len);
/* Frees what v->json owns; NULL is fine. */
void tokenizer_json_destroy(struct tokenizer_json **j);

#endif
