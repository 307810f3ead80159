/* See tokenizer.h. Here: the token index, special tokens in the text (a trie, longest match first), BOS and EOS, single
 * pieces, end ids. The merging is in tokenizer_bpe.c and tokenizer_spm.c. Memory per token: 4 to 8 bytes of index
 * beside the vocabulary itself. */
#include "base/buf.h"
#include "base/check.h"
#include "coordinator/tokenizer_impl.h"

#include <stdlib.h>

enum { TEXT_MAX = 1 << 30 };

void tokens_deinit(struct tokens *t)
{
    free(t->ids);
    memset(t, 0, sizeof(*t));
}

enum err tokens_push(struct tokens *t, uint32_t id)
{
    if (t->n == t->cap) {
        size_t cap = t->cap == 0 ? 64 : t->cap * 2;
        uint32_t *ids = realloc(t->ids, cap * sizeof(*ids));
        if (ids == NULL)
            return err_set(ERR_NOMEM, "no memory for %zu token ids", cap);
        t->ids = ids;
        t->cap = cap;
    }
    t->ids[t->n++] = id;
    return ERR_OK;
}

uint32_t tokenizer_find(const struct tokenizer *t, const char *s, size_t len)
{
    if (len > t->token_len_max)
        return TOKEN_NONE;
    uint32_t i = (uint32_t)tokenizer_hash(s, len) & t->slot_mask;
    for (; t->slots[i] != 0; i = (i + 1) & t->slot_mask) {
        const struct gguf_str *w = &t->v->tokens[t->slots[i] - 1];
        if (w->len == len && memcmp(w->s, s, len) == 0)
            return t->slots[i] - 1;
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
        uint32_t i = (uint32_t)tokenizer_hash(w->s, w->len) & t->slot_mask;
        while (t->slots[i] != 0) { /* of two tokens with one text the later counts */
            const struct gguf_str *o = &t->v->tokens[t->slots[i] - 1];
            if (o->len == w->len && memcmp(o->s, w->s, w->len) == 0)
                break;
            i = (i + 1) & t->slot_mask;
        }
        t->slots[i] = id + 1;
    }
    return ERR_OK;
}

static enum err trie_node(struct tokenizer *t, uint8_t byte, uint32_t sibling, uint32_t *out)
{
    if (t->n_trie == t->trie_cap) {
        uint32_t cap = t->trie_cap == 0 ? 256 : t->trie_cap * 2;
        struct trie_node *n = realloc(t->trie, cap * sizeof(*n));
        if (n == NULL)
            return err_set(ERR_NOMEM, "no memory for the special tokens");
        t->trie = n;
        t->trie_cap = cap;
        if (t->n_trie == 0)
            t->n_trie = 1; /* node 0 means none */
    }
    t->trie[t->n_trie] = (struct trie_node){0, sibling, TOKEN_NONE, byte, false};
    *out = t->n_trie++;
    return ERR_OK;
}

static uint32_t trie_step(const struct tokenizer *t, uint32_t node, uint8_t byte)
{
    uint32_t c = t->trie[node].child;
    while (c != 0 && t->trie[c].byte != byte)
        c = t->trie[c].sibling;
    return c;
}

static enum err trie_add(struct tokenizer *t, uint32_t id, bool always)
{
    const struct gguf_str *w = &t->v->tokens[id];
    uint32_t node = t->trie_root[(uint8_t)w->s[0]];
    if (node == 0) {
        TRY(trie_node(t, (uint8_t)w->s[0], 0, &node));
        t->trie_root[(uint8_t)w->s[0]] = node;
    }
    for (size_t i = 1; i < w->len; i++) {
        uint32_t next = trie_step(t, node, (uint8_t)w->s[i]);
        if (next == 0) {
            TRY(trie_node(t, (uint8_t)w->s[i], t->trie[node].child, &next));
            t->trie[node].child = next;
        }
        node = next;
    }
    t->trie[node].id = id;
    t->trie[node].always = always;
    return ERR_OK;
}

static enum err build_trie(struct tokenizer *t)
{
    for (uint32_t id = 0; id < t->v->n_tokens; id++) {
        uint8_t type = t->v->types == NULL ? VOCAB_NORMAL : t->v->types[id];
        bool special = type == VOCAB_CONTROL || type == VOCAB_UNKNOWN || type == VOCAB_USER_DEFINED;
        if (special && t->v->tokens[id].len > 0)
            TRY(trie_add(t, id, type == VOCAB_USER_DEFINED));
    }
    return ERR_OK;
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
    TRY_GOTO(build_trie(t), fail);
    TRY_GOTO(v->kind == VOCAB_SPM ? tokenizer_spm_init(t) : tokenizer_bpe_init(t), fail);
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
    free(t->slots);
    free(t->merges);
    free(t->merge_slots);
    free(t->trie);
    free(t);
    *tp = NULL;
}

const struct vocab *tokenizer_vocab(const struct tokenizer *t)
{
    return t->v;
}

/* The longest special token at s; its length, or 0. Control tokens count only when `control`. */
static size_t special_at(const struct tokenizer *t, const char *s, size_t len, bool control, uint32_t *id)
{
    size_t best = 0;
    uint32_t node = t->trie_root[(uint8_t)s[0]];
    for (size_t i = 1; node != 0; i++) {
        const struct trie_node *n = &t->trie[node];
        if (n->id != TOKEN_NONE && (control || n->always)) {
            best = i;
            *id = n->id;
        }
        node = i < len ? trie_step(t, node, (uint8_t)s[i]) : 0;
    }
    return best;
}

/* after_special: the stretch starts the text or follows a special token, where SentencePiece puts its space. */
static enum err encode_stretch(const struct tokenizer *t, const char *s, size_t len, bool after_special,
                               struct tokens *out)
{
    if (len == 0)
        return ERR_OK;
    if (t->v->kind == VOCAB_SPM)
        return tokenizer_spm_encode(t, s, len, after_special && t->v->add_space_prefix, out);
    return tokenizer_bpe_encode(t, s, len, out);
}

enum err tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags, struct tokens *out)
{
    if (len > TEXT_MAX)
        return err_set(ERR_TOO_BIG, "a text of %zu bytes; at most %d", len, TEXT_MAX);
    const struct vocab *v = t->v;
    if ((flags & TOKENIZER_SPECIAL) && v->add_bos && v->bos >= 0)
        TRY(tokens_push(out, (uint32_t)v->bos));
    bool control = (flags & TOKENIZER_PARSE) != 0, after_special = true;
    size_t from = 0;
    for (size_t i = 0; i < len;) {
        uint32_t id;
        size_t n = t->trie_root[(uint8_t)text[i]] == 0 ? 0 : special_at(t, text + i, len - i, control, &id);
        if (n == 0) {
            i++;
            continue;
        }
        TRY(encode_stretch(t, text + from, i - from, after_special, out));
        TRY(tokens_push(out, id));
        after_special = true;
        i += n;
        from = i;
    }
    TRY(encode_stretch(t, text + from, len - from, after_special, out));
    if ((flags & TOKENIZER_SPECIAL) && v->add_eos && v->eos >= 0)
        TRY(tokens_push(out, (uint32_t)v->eos));
    return ERR_OK;
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
        if (t->v->kind == VOCAB_SPM)
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
