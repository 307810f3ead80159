#include "text/token_sequences.h"

#include "base/buf.h"
#include "base/check.h"

#include <stdlib.h>
#include <string.h>

struct token_pieces {
    uint32_t n;
    struct buf bytes;
    uint32_t *first; /* [n + 1] */
};

void token_sequences_deinit(struct token_sequences *s)
{
    tokens_deinit(&s->ids);
    tokens_deinit(&s->lens);
}

enum err token_pieces_create(const struct tokenizer *t, struct token_pieces **out)
{
    uint32_t n = tokenizer_vocab(t)->n_tokens;
    struct token_pieces *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(ERR_NOMEM, "out of memory");
    p->n = n;
    p->first = calloc((size_t)n + 1, sizeof *p->first);
    buf_init(&p->bytes);
    for (uint32_t i = 0; p->first && i < n; i++) {
        tokenizer_piece(t, i, true, &p->bytes);
        p->first[i + 1] = (uint32_t)p->bytes.len;
    }
    if (!p->first || p->bytes.failed || p->bytes.len > UINT32_MAX) {
        token_pieces_destroy(&p);
        return err_set(ERR_NOMEM, "out of memory for the texts of %u tokens", n);
    }
    *out = p;
    return ERR_OK;
}

void token_pieces_destroy(struct token_pieces **p)
{
    if (!*p)
        return;
    buf_deinit(&(*p)->bytes);
    free((*p)->first);
    free(*p);
    *p = NULL;
}

static enum err push(struct token_sequences *s, uint32_t id, const struct tokens *rest, size_t max_ids)
{
    size_t n = 1 + (rest ? rest->n : 0);
    if (s->ids.n + n > max_ids)
        return err_set(ERR_TOO_BIG, "more than %zu token ids", max_ids);
    TRY(tokens_push(&s->ids, id));
    for (size_t i = 0; rest && i < rest->n; i++)
        TRY(tokens_push(&s->ids, rest->ids[i]));
    return tokens_push(&s->lens, (uint32_t)n);
}

/* The first id whose text ends behind byte `at`, from `id` on. */
static uint32_t piece_at(const struct token_pieces *p, uint32_t id, size_t at)
{
    while (p->first[id + 1] <= at)
        id++;
    return id;
}

static enum err find(const struct token_pieces *p, const struct tokenizer *t, const char *text, size_t len, size_t max_ids, struct tokens *rest,
                     struct token_sequences *out)
{
    const char *begin = p->bytes.data, *end = begin + p->bytes.len, *at = begin;
    uint32_t id = 0, whole = UINT32_MAX; /* the last id that holds all of it */
    while (at < end && (at = memchr(at, text[0], (size_t)(end - at)))) {
        id = piece_at(p, id, (size_t)(at - begin));
        size_t left = p->first[id + 1] - (size_t)(at - begin), n = MIN(left, len);
        if (id != whole && memcmp(at, text, n) == 0) {
            if (n < len && rest[n].n == 0)
                TRY(tokenizer_encode(t, text + n, len - n, 0, &rest[n]));
            TRY(push(out, id, n < len ? &rest[n] : NULL, max_ids));
            whole = n == len ? id : whole;
        }
        at++;
    }
    return ERR_OK;
}

enum err token_sequences_breaker(const struct token_pieces *p, const struct tokenizer *t, const char *text, size_t len, size_t max_ids,
                                 struct token_sequences *out)
{
    struct tokens *rest = calloc(len, sizeof *rest); /* by how much of the text came before */
    if (!rest)
        return err_set(ERR_NOMEM, "out of memory");
    enum err e = p->bytes.len ? find(p, t, text, len, max_ids, rest, out) : ERR_OK;
    for (size_t i = 0; i < len; i++)
        tokens_deinit(&rest[i]);
    free(rest);
    return e;
}

enum err token_sequences_word(const struct tokenizer *t, const char *text, size_t len, size_t max_ids, struct token_sequences *out)
{
    struct tokens bare = {0}, spaced = {0};
    struct buf b;
    enum err e;
    buf_init(&b);
    while (len && *text == ' ') {
        text++;
        len--;
    }
    buf_append(&b, " ", 1);
    buf_append(&b, text, len);
    if (b.failed)
        e = err_set(ERR_NOMEM, "out of memory");
    else if ((e = tokenizer_encode(t, text, len, 0, &bare)) == ERR_OK)
        e = tokenizer_encode(t, b.data, b.len, 0, &spaced);
    struct tokens *each[] = {&bare, &spaced};
    bool same = bare.n == spaced.n && (bare.n == 0 || memcmp(bare.ids, spaced.ids, bare.n * sizeof *bare.ids) == 0);
    for (int i = 0; e == ERR_OK && i < (same ? 1 : 2); i++)
        if (each[i]->n) {
            struct tokens tail = {each[i]->ids + 1, each[i]->n - 1, 0};
            e = push(out, each[i]->ids[0], &tail, max_ids);
        }
    tokens_deinit(&bare);
    tokens_deinit(&spaced);
    buf_deinit(&b);
    return e;
}
