/* See tokenizer.h. Here: the token index, special tokens in the text (a trie, longest match first), BOS and EOS, single
 * pieces, end ids. The algorithms are in tokenizer_bpe.c, tokenizer_spm.c and tokenizer_unigram.c; a tokenizer.json
 * does everything in its own way (tokenizer_hf.c). Memory per token: 4 to 8 bytes of index
 * beside the vocabulary itself. */
#include "base/buf.h"
#include "base/check.h"
#include "text/added_tokens.h"
#include "text/tokenizer_hf.h"
#include "text/tokenizer_merge.h"
#include "text/tokenizer_unigram.h"

#include <stdlib.h>

enum { TEXT_MAX = 1 << 30 };

void tokens_deinit(struct tokens *t)
{
    free(t->ids);
    memset(t, 0, sizeof(*t));
}

enum err tokens_reserve(struct tokens *t, size_t extra)
{
    size_t cap = MAX(t->n + extra, t->cap == 0 ? (size_t)64 : t->cap * 2);
    uint32_t *ids = realloc(t->ids, cap * sizeof(*ids));
    if (ids == NULL)
        return err_set(ERR_NOMEM, "no memory for %zu token ids", cap);
    t->ids = ids;
    t->cap = cap;
    return ERR_OK;
}

enum err tokens_push(struct tokens *t, uint32_t id)
{
    if (t->n == t->cap)
        TRY(tokens_reserve(t, 1));
    t->ids[t->n++] = id;
    return ERR_OK;
}

uint32_t tokenizer_find(const struct tokenizer *t, const char *s, size_t len)
{
    if (len > t->token_len_max)
        return TOKEN_NONE;
    uint64_t h = tokenizer_hash(s, len);
    for (uint32_t i = (uint32_t)h & t->slot_mask; t->slots[i] != 0; i = (i + 1) & t->slot_mask) {
        if ((t->slots[i] ^ h) >> 32 != 0)
            continue;
        uint32_t id = (uint32_t)t->slots[i] - 1;
        const struct gguf_str *w = &t->v->tokens[id];
        if (w->len == len && memcmp(w->s, s, len) == 0)
            return id;
    }
    return TOKEN_NONE;
}

static enum err build_index(struct tokenizer *t)
{
    uint64_t cap = 16;
    while (cap < (uint64_t)t->v->n_tokens * 3 / 2)
        cap *= 2;
    t->slots = calloc(cap, sizeof(*t->slots));
    if (t->slots == NULL)
        return err_set(ERR_NOMEM, "no memory for the index of %u tokens", t->v->n_tokens);
    t->slot_mask = (uint32_t)(cap - 1);
    for (uint32_t id = 0; id < t->v->n_tokens; id++) {
        const struct gguf_str *w = &t->v->tokens[id];
        t->token_len_max = MAX(t->token_len_max, w->len);
        uint64_t h = tokenizer_hash(w->s, w->len);
        uint32_t i = (uint32_t)h & t->slot_mask;
        for (; t->slots[i] != 0; i = (i + 1) & t->slot_mask) { /* of two tokens with one text the later counts */
            const struct gguf_str *o = &t->v->tokens[(uint32_t)t->slots[i] - 1];
            if (o->len == w->len && memcmp(o->s, w->s, w->len) == 0)
                break;
        }
        t->slots[i] = (h >> 32 << 32) | (id + 1);
    }
    return ERR_OK;
}

static uint8_t type_of(const struct tokenizer *t, uint32_t id)
{
    return t->v->types == NULL ? VOCAB_NORMAL : t->v->types[id];
}

static enum err build_special(struct tokenizer *t)
{
    TRY(trie_init(&t->special));
    for (uint32_t id = 0; id < t->v->n_tokens; id++) {
        const struct gguf_str *w = &t->v->tokens[id];
        uint8_t type = type_of(t, id);
        if ((type != VOCAB_CONTROL && type != VOCAB_UNKNOWN && type != VOCAB_USER_DEFINED) || w->len == 0)
            continue;
        TRY(trie_add(&t->special, w->s, w->len, id));
        t->special_first[(uint8_t)w->s[0]] = true;
    }
    return ERR_OK;
}

static enum err init_model(struct tokenizer *t)
{
    const struct vocab *v = t->v;
    if (v->json) {
        if (v->kind == VOCAB_BPE)
            TRY(tokenizer_bpe_merges_init(t));
        return tokenizer_hf_create(t, &t->hf);
    }
    switch (v->kind) {
    case VOCAB_SPM:
        return tokenizer_spm_init(t);
    case VOCAB_UNIGRAM:
        return tokenizer_unigram_create(v, &t->unigram);
    default:
        return tokenizer_bpe_init(t);
    }
}

enum err tokenizer_create(const struct vocab *v, struct tokenizer **out)
{
    *out = NULL;
    struct tokenizer *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return err_set(ERR_NOMEM, "no memory for a tokenizer");
    t->v = v;
    for (size_t i = 0; i < ARRAY_LEN(t->byte_ids); i++)
        t->byte_ids[i] = TOKEN_NONE;
    enum err e;
    TRY_GOTO(build_index(t), fail);
    if (!v->json)
        TRY_GOTO(build_special(t), fail);
    TRY_GOTO(init_model(t), fail);
    *out = t;
    return ERR_OK;
fail:
    tokenizer_destroy(&t);
    return e;
}

void tokenizer_destroy(struct tokenizer **tp)
{
    struct tokenizer *t = *tp;
    if (t == NULL)
        return;
    pretokenizer_destroy(&t->pre);
    tokenizer_hf_destroy(&t->hf);
    tokenizer_unigram_destroy(&t->unigram);
    free(t->slots);
    free(t->results);
    free(t->pairs);
    free(t->orders);
    trie_deinit(&t->special);
    free(t);
    *tp = NULL;
}

const struct vocab *tokenizer_vocab(const struct tokenizer *t)
{
    return t->v;
}

/* The longest special token at s; its length, or 0. User-defined ones are found in any text, control tokens only when
 * `control`. */
static size_t special_at(const struct tokenizer *t, const char *s, size_t len, bool control, uint32_t *id)
{
    size_t best = 0;
    uint32_t node = 0;
    for (size_t i = 0; i < len; i++) {
        node = trie_step(&t->special, node, (uint8_t)s[i]);
        if (node == 0)
            break;
        uint32_t found = t->special.values[node];
        if (found != TRIE_NONE && (control || type_of(t, found) == VOCAB_USER_DEFINED)) {
            best = i + 1;
            *id = found;
        }
    }
    return best;
}

/* after_special: the stretch starts the text or follows a special token, where SentencePiece puts its space. */
static enum err encode_stretch(const struct tokenizer *t, struct tokenizer_work *w, const char *s, size_t len,
                               bool after_special, struct tokens *out)
{
    if (len == 0)
        return ERR_OK;
    bool space_first = after_special && t->v->add_space_prefix;
    if (t->unigram)
        return tokenizer_unigram_encode(t->unigram, t->v, s, len, space_first, out);
    if (t->v->kind == VOCAB_SPM)
        return tokenizer_spm_encode(t, w, s, len, space_first, out);
    return tokenizer_bpe_encode(t, w, s, len, out);
}

static enum err encode_text(const struct tokenizer *t, struct tokenizer_work *w, const char *text, size_t len,
                            unsigned flags, struct tokens *out)
{
    const struct vocab *v = t->v;
    if ((flags & TOKENIZER_SPECIAL) && v->add_bos && v->bos >= 0)
        TRY(tokens_push(out, (uint32_t)v->bos));
    bool control = (flags & TOKENIZER_PARSE) != 0, after_special = true;
    size_t from = 0;
    for (size_t i = 0; i < len;) {
        uint32_t id;
        size_t n = !t->special_first[(uint8_t)text[i]] ? 0 : special_at(t, text + i, len - i, control, &id);
        if (n == 0) {
            i++;
            continue;
        }
        unsigned strip = v->strips ? v->strips[id] : 0;
        size_t to = strip & VOCAB_LSTRIP ? added_tokens_space_before(text, i, from) : i;
        TRY(encode_stretch(t, w, text + from, to - from, after_special, out));
        TRY(tokens_push(out, id));
        after_special = true;
        i += n;
        if (strip & VOCAB_RSTRIP)
            i = added_tokens_space_behind(text, i, len);
        from = i;
    }
    TRY(encode_stretch(t, w, text + from, len - from, after_special, out));
    if ((flags & TOKENIZER_SPECIAL) && v->add_eos && v->eos >= 0)
        TRY(tokens_push(out, (uint32_t)v->eos));
    return ERR_OK;
}

enum err tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags, struct tokens *out)
{
    if (len > TEXT_MAX)
        return err_set(ERR_TOO_BIG, "a text of %zu bytes; at most %d", len, TEXT_MAX);
    struct tokenizer_work w;
    enum err e = tokenizer_work_init(&w, len);
    if (e == ERR_OK)
        e = t->hf ? tokenizer_hf_encode(t->hf, &w, text, len, flags, out) : encode_text(t, &w, text, len, flags, out);
    tokenizer_work_deinit(&w);
    return e;
}

void tokenizer_piece(const struct tokenizer *t, uint32_t id, bool special, struct buf *out)
{
    if (id >= t->v->n_tokens)
        return;
    const struct gguf_str *w = &t->v->tokens[id];
    switch (t->v->types == NULL ? VOCAB_NORMAL : t->v->types[id]) {
    case VOCAB_CONTROL:
    case VOCAB_UNKNOWN:
        if (special)
            buf_append(out, w->s, w->len);
        return;
    case VOCAB_USER_DEFINED:
        buf_append(out, w->s, w->len);
        return;
    default:
        if (t->hf)
            tokenizer_hf_piece(t->hf, id, out);
        else if (t->v->kind != VOCAB_BPE || (t->pre_flags & PRE_RAW))
            tokenizer_spm_bytes(t, id, out);
        else
            tokenizer_bpe_bytes(w, out);
    }
}

uint32_t tokenizer_end_ids(const struct tokenizer *t, uint32_t *ids, uint32_t cap)
{
    static const char *const known[] = {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<end_of_turn>",
        "<turn|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|eot|>",
        "<|end_of_turn|>",
        "<|END_OF_TURN_TOKEN|>",
        "<end_of_utterance>",
        "<EOT>",
        "_<EOT>",
        "<|endofturn|>",
        "<|role_end|>",
        "<｜end▁of▁sentence｜>",
        "<|user_end|>",
    };
    const struct vocab *v = t->v;
    uint32_t n = 0;
    const int32_t named[] = {v->eos, v->eot, v->eom};
    /* The channel format: <|end|> there ends a message, not the turn. */
    bool channels = tokenizer_find(t, "<|return|>", 10) != TOKEN_NONE && tokenizer_find(t, "<|call|>", 8) != TOKEN_NONE;
    for (size_t i = 0; i < ARRAY_LEN(named) + ARRAY_LEN(known); i++) {
        uint32_t id = TOKEN_NONE;
        if (i < ARRAY_LEN(named)) {
            if (named[i] >= 0)
                id = (uint32_t)named[i];
        } else {
            const char *name = known[i - ARRAY_LEN(named)];
            if (channels && strcmp(name, "<|end|>") == 0)
                continue;
            id = tokenizer_find(t, name, strlen(name));
            if (id != TOKEN_NONE &&
                (v->types == NULL || (v->types[id] != VOCAB_CONTROL && v->types[id] != VOCAB_USER_DEFINED)))
                id = TOKEN_NONE;
        }
        bool have = id == TOKEN_NONE;
        for (uint32_t k = 0; k < n && !have; k++)
            have = ids[k] == id;
        if (!have && n < cap)
            ids[n++] = id;
    }
    return n;
}
