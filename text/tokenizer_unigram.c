/* See tokenizer_unigram.h. The lattice is a window of the text that starts where the best way is settled; when every
 * way passes through a place, the ids up to it are given out and the window starts there, with the score so far, so that
 * sums are those of the whole text. Sums are in double precision: in a long text float would drown the differences. */
#include "text/tokenizer_unigram.h"

#include "base/buf.h"
#include "base/check.h"
#include "text/charsmap.h"
#include "text/utf8.h"
#include "model/tokenizer_json.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNK_PENALTY 10.0 /* below the worst piece; SentencePiece's */

static bool is_piece(const struct vocab *v, uint32_t id)
{
    if (v->json)
        return v->json->in_model[id];
    uint8_t type = v->types ? v->types[id] : VOCAB_NORMAL;
    return type == VOCAB_NORMAL || type == VOCAB_USER_DEFINED;
}

/* The worst score, which unknown characters are below. In a GGUF file only normal pieces have scores that mean one;
 * user-defined ones are preferred to whatever they could be made of. */
static enum err load_scores(struct tokenizer_unigram *u, const struct vocab *v)
{
    double low = DBL_MAX, high = -DBL_MAX;
    if (!v->json) {
        u->own_scores = calloc(v->n_tokens, sizeof(*u->own_scores));
        if (!u->own_scores)
            return err_set(ERR_NOMEM, "no memory for %u scores", v->n_tokens);
        for (uint32_t i = 0; i < v->n_tokens; i++)
            u->own_scores[i] = v->scores[i];
    }
    u->scores = v->json ? v->json->scores : u->own_scores;
    for (uint32_t i = 0; i < v->n_tokens; i++)
        if (v->json ? v->json->in_model[i] : !v->types || v->types[i] == VOCAB_NORMAL) {
            low = MIN(low, u->scores[i]);
            high = MAX(high, u->scores[i]);
        }
    for (uint32_t i = 0; u->own_scores && v->types && i < v->n_tokens; i++)
        if (v->types[i] == VOCAB_USER_DEFINED)
            u->own_scores[i] = (double)v->tokens[i].len * (high == -DBL_MAX ? 0 : high) - 0.1;
    u->unk_score = (low == DBL_MAX ? 0 : low) - UNK_PENALTY;
    return ERR_OK;
}

static enum err load_pieces(struct tokenizer_unigram *u, const struct vocab *v)
{
    TRY(trie_init(&u->trie));
    for (uint32_t i = 0; i < v->n_tokens; i++)
        if (is_piece(v, i) && v->tokens[i].len > 0)
            TRY(trie_add(&u->trie, v->tokens[i].s, v->tokens[i].len, i));
    return ERR_OK;
}

static void load_bytes(struct tokenizer_unigram *u, const struct vocab *v)
{
    memset(u->byte_ids, 0xFF, sizeof(u->byte_ids));
    u->byte_fallback = v->json && v->json->byte_fallback;
    for (uint32_t i = 0; v->types && i < v->n_tokens; i++) {
        unsigned b;
        char name[8];
        if (v->types[i] != VOCAB_BYTE || v->tokens[i].len != 6)
            continue;
        snprintf(name, sizeof(name), "%.6s", v->tokens[i].s);
        if (sscanf(name, "<0x%2X>", &b) != 1)
            continue;
        u->byte_ids[b & 255] = i;
        u->byte_fallback = true;
    }
}

enum err tokenizer_unigram_create(const struct vocab *v, struct tokenizer_unigram **out)
{
    enum err e;
    struct tokenizer_unigram *u = calloc(1, sizeof(*u));
    *out = NULL;
    if (!u)
        return err_set(ERR_NOMEM, "no memory for a tokenizer");
    u->unk = v->unk >= 0 ? (uint32_t)v->unk : TRIE_NONE;
    u->fuse_unk = true;
    TRY_GOTO(load_scores(u, v), fail);
    TRY_GOTO(load_pieces(u, v), fail);
    load_bytes(u, v);
    *out = u;
    return ERR_OK;
fail:
    tokenizer_unigram_destroy(&u);
    return e;
}

void tokenizer_unigram_destroy(struct tokenizer_unigram **up)
{
    struct tokenizer_unigram *u = *up;
    if (!u)
        return;
    trie_deinit(&u->trie);
    free(u->own_scores);
    free(u);
    *up = NULL;
}

struct node { /* the best way to a place of the window */
    double score;
    uint32_t id;  /* of the piece that ends here */
    uint32_t len; /* of that piece; 0: nothing ends here yet */
};
struct lattice {
    const struct tokenizer_unigram *u;
    const char *s;
    size_t base; /* where the window starts in s */
    struct node *nodes;
    size_t cap, reach; /* reach: the last place that a piece ends at */
    size_t unk_from, unk_to; /* unknown characters not yet given out */
    struct tokens *out;
};

static enum err reach(struct lattice *l, size_t to)
{
    if (to + 1 > l->cap) {
        size_t cap = MAX(l->cap * 2, to + 256);
        struct node *n = realloc(l->nodes, cap * sizeof(*n));
        if (!n)
            return err_set(ERR_NOMEM, "no memory to tokenise a stretch of %zu bytes", to);
        l->nodes = n;
        l->cap = cap;
    }
    for (; l->reach < to; l->reach++)
        l->nodes[l->reach + 1].len = 0;
    return ERR_OK;
}

static void offer(struct lattice *l, size_t at, size_t len, uint32_t id, double score)
{
    struct node *n = &l->nodes[at + len];
    score += l->nodes[at].score;
    if (n->len == 0 || score > n->score)
        *n = (struct node){score, id, (uint32_t)len};
}

/* Unknown text: a piece by itself (a run of them may be spelled like one), bytes, or the unknown token. */
static enum err give_unknown(struct lattice *l)
{
    const struct tokenizer_unigram *u = l->u;
    const char *s = l->s + l->unk_from;
    size_t len = l->unk_to - l->unk_from;
    uint32_t id = TRIE_NONE;
    l->unk_from = l->unk_to = 0;
    if (len == 0)
        return ERR_OK;
    if (trie_longest(&u->trie, s, len, &id) == len)
        return tokens_push(l->out, id);
    bool bytes = u->byte_fallback;
    for (size_t i = 0; i < len && bytes; i++)
        bytes = u->byte_ids[(unsigned char)s[i]] != TRIE_NONE;
    for (size_t i = 0; i < len && bytes; i++)
        TRY(tokens_push(l->out, u->byte_ids[(unsigned char)s[i]]));
    return bytes || u->unk == TRIE_NONE ? ERR_OK : tokens_push(l->out, u->unk);
}

/* Every way passes through place `end` of the window: the ids up to it are certain. */
static enum err settle(struct lattice *l, size_t end)
{
    double score = l->nodes[end].score;
    struct node next = l->nodes[end];
    for (size_t at = end; at > 0;) { /* turned around: a node now tells of the piece that starts there */
        at -= next.len;
        struct node here = l->nodes[at];
        l->nodes[at] = next;
        next = here;
    }
    for (size_t at = 0, len; at < end; at += len) {
        size_t from = l->base + at;
        len = l->nodes[at].len;
        if (l->nodes[at].id == l->u->unk && l->u->unk != TRIE_NONE && l->u->fuse_unk) {
            if (l->unk_to != from || l->unk_from == l->unk_to)
                l->unk_from = from;
            l->unk_to = from + len;
        } else {
            TRY(give_unknown(l));
            if (l->nodes[at].id != TRIE_NONE)
                TRY(tokens_push(l->out, l->nodes[at].id));
        }
    }
    l->base += end;
    l->reach = 0;
    l->nodes[0] = (struct node){score, 0, 0};
    return ERR_OK;
}

/* All pieces at place `at` of the window. */
static enum err expand(struct lattice *l, size_t at, size_t len, size_t char_len)
{
    const struct tokenizer_unigram *u = l->u;
    const char *s = l->s + l->base + at;
    bool single = false;
    uint32_t node = 0;
    TRY(reach(l, at + char_len));
    for (size_t i = 0; i < len; i++) {
        node = trie_step(&u->trie, node, (uint8_t)s[i]);
        if (node == 0)
            break;
        uint32_t id = u->trie.values[node];
        if (id == TRIE_NONE)
            continue;
        TRY(reach(l, MAX(l->reach, at + i + 1)));
        offer(l, at, i + 1, id, u->scores[id]);
        single = single || i + 1 == char_len;
    }
    if (!single)
        offer(l, at, char_len, u->unk, u->unk_score);
    return ERR_OK;
}

enum err tokenizer_unigram_pieces(const struct tokenizer_unigram *u, const char *s, size_t len, struct tokens *out)
{
    struct lattice l = {.u = u, .s = s, .out = out};
    enum err e;
    TRY_GOTO(reach(&l, 1), done);
    l.reach = 0;
    l.nodes[0] = (struct node){0, 0, 0};
    for (size_t at = 0; l.base + at < len;) {
        if (at > 0 && at == l.reach) {
            TRY_GOTO(settle(&l, at), done);
            at = 0;
        }
        size_t left = len - l.base - at, n = MIN(utf8_len_valid((unsigned char)s[l.base + at]), left);
        TRY_GOTO(expand(&l, at, left, n), done);
        at += n;
    }
    TRY_GOTO(settle(&l, len - l.base), done);
    TRY_GOTO(give_unknown(&l), done);
done:
    free(l.nodes);
    return e;
}

#define SPACE "\xE2\x96\x81"
enum { SPACE_LEN = 3 };

/* SentencePiece's normaliser: rules, then U+2581 for spaces, runs of which become one where the model wants it. */
static enum err normalise(const struct vocab *v, const char *s, size_t len, bool space_first, struct buf *out)
{
    struct charsmap map;
    bool after_space = v->merge_spaces, begun = false;
    TRY(charsmap_init(&map, v->charsmap.s, v->charsmap.len));
    for (size_t i = 0, n; i < len; i += n) {
        const char *text;
        size_t text_len;
        n = charsmap_next(&map, s + i, len - i, &text, &text_len);
        for (size_t k = 0; k < text_len; k++) {
            bool space = text[k] == ' ';
            if (space && after_space)
                continue;
            if (!begun && space_first && !v->space_suffix)
                buf_puts(out, SPACE);
            begun = true;
            if (space)
                buf_puts(out, SPACE);
            else
                buf_putc(out, text[k]);
            after_space = space && v->merge_spaces;
        }
    }
    while (v->merge_spaces && out->len >= SPACE_LEN && memcmp(out->data + out->len - SPACE_LEN, SPACE, SPACE_LEN) == 0)
        out->len -= SPACE_LEN;
    if (begun && space_first && v->space_suffix)
        buf_puts(out, SPACE);
    return out->failed ? err_set(ERR_NOMEM, "no memory to normalise a text of %zu bytes", len) : ERR_OK;
}

enum err tokenizer_unigram_encode(const struct tokenizer_unigram *u, const struct vocab *v, const char *s, size_t len,
                                  bool space_first, struct tokens *out)
{
    struct buf b;
    enum err e;
    buf_init(&b);
    TRY_GOTO(normalise(v, s, len, space_first, &b), done);
    if (b.len > 0)
        e = tokenizer_unigram_pieces(u, b.data, b.len, out);
done:
    buf_deinit(&b);
    return e;
}
