/* See added_tokens.h. */
#include "text/added_tokens.h"

#include "base/check.h"
#include "text/utf8.h"

#include <string.h>
#include <utf8proc.h>

enum err added_tokens_init(struct added_tokens *a, const struct vocab *v, bool normalized, const struct normalizer *n)
{
    struct buf text;
    enum err e = ERR_OK;
    a->json = v->json;
    a->any = false;
    buf_init(&text);
    TRY_GOTO(trie_init(&a->trie), done);
    for (uint32_t i = 0; i < a->json->n_added; i++) {
        struct gguf_str w = v->tokens[a->json->added[i].id];
        if (a->json->added[i].normalized != normalized || w.len == 0)
            continue;
        if (normalized) {
            size_t valid = utf8_valid_prefix(w.s, w.len);
            TRY_GOTO(normalizer_run(n, w.s, valid, &text), done);
            w = (struct gguf_str){text.data, text.len};
        }
        if (w.len == 0)
            continue;
        TRY_GOTO(trie_add(&a->trie, w.s, w.len, i), done);
        a->any = true;
    }
done:
    buf_deinit(&text);
    return e;
}

void added_tokens_deinit(struct added_tokens *a)
{
    trie_deinit(&a->trie);
}

/* The character that ends before `at`, and its length. */
static uint32_t before(const char *s, size_t at, size_t *n)
{
    size_t k = at, bad;
    uint32_t cp = 0;
    bool cut;
    do
        k--;
    while (k > 0 && at - k < 4 && ((unsigned char)s[k] & 0xC0) == 0x80);
    utf8_decode(s + k, at - k, &cp, &bad, &cut);
    *n = at - k;
    return cp;
}

static uint32_t behind(const char *s, size_t at, size_t len, size_t *n)
{
    uint32_t cp = 0;
    size_t bad;
    bool cut;
    *n = utf8_decode(s + at, len - at, &cp, &bad, &cut);
    *n = *n == 0 ? bad : *n;
    return cp;
}

static bool is_word(uint32_t c)
{
    switch (utf8proc_category((int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return c == 0x200C || c == 0x200D;
    }
}

static bool stands_alone(const char *s, size_t len, size_t from, size_t to)
{
    size_t n;
    return (from == 0 || !is_word(before(s, from, &n))) && (to == len || !is_word(behind(s, to, len, &n)));
}

size_t added_tokens_space_before(const char *s, size_t at, size_t from)
{
    size_t n;
    while (at > from && normalizer_is_white(before(s, at, &n)) && n <= at - from)
        at -= n;
    return at;
}

size_t added_tokens_space_behind(const char *s, size_t at, size_t len)
{
    size_t n;
    while (at < len && normalizer_is_white(behind(s, at, len, &n)))
        at += n;
    return at;
}

bool added_tokens_next(const struct added_tokens *a, const char *s, size_t len, bool special,
                       struct added_tokens_scan *scan, size_t *from, size_t *to, uint32_t *id)
{
    *id = TRIE_NONE;
    for (; a->any && scan->at < len; scan->at++) {
        uint32_t idx = 0;
        size_t n = trie_longest(&a->trie, s + scan->at, len - scan->at, &idx);
        if (n == 0)
            continue;
        const struct tokenizer_json_added *t = &a->json->added[idx];
        size_t begin = scan->at, end = begin + n;
        if ((t->special && !special) || (t->single_word && !stands_alone(s, len, begin, end))) {
            scan->at = end - 1; /* it is text, and nothing inside it is looked at */
            continue;
        }
        if (t->lstrip)
            begin = added_tokens_space_before(s, begin, MIN(scan->done, begin));
        if (begin > scan->done) { /* the text before it first; the token is found again */
            *from = scan->done;
            *to = scan->done = begin;
            return true;
        }
        scan->at = end;
        if (t->rstrip)
            end = added_tokens_space_behind(s, end, len);
        *from = scan->done;
        *to = scan->done = end;
        *id = t->id;
        return true;
    }
    if (scan->done >= len)
        return false;
    *from = scan->done;
    *to = scan->done = len;
    return true;
}
