/* See tokenizer_json.h. Here: the file, the model (vocabulary, merges, scores) and the added tokens. All strings are
 * copied into one arena, so that jansson's tree, several times as big, can go. */
#include "model/tokenizer_json_int.h"

#include "base/buf.h"
#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>

enum { FILE_MAX = 256 << 20, TOKENS_MAX = 1 << 24, HOLES_MAX = 1 << 16, ADDED_MAX = 1 << 20 };

bool tokenizer_json_str(struct tokenizer_json *j, const json_t *s, struct gguf_str *out)
{
    if (!json_is_string(s))
        return false;
    out->len = json_string_length(s);
    out->s = arena_strndup(&j->arena, json_string_value(s), out->len);
    return out->s != NULL;
}

enum err tokenizer_json_flag(const json_t *o, const char *what, const char *key, bool def, bool *out)
{
    const json_t *f = json_object_get(o, key);
    *out = f && !json_is_null(f) ? json_is_true(f) : def;
    if (f && !json_is_boolean(f) && !json_is_null(f))
        return err_set(ERR_CORRUPT, "tokenizer.json: %s.%s is neither true nor false", what, key);
    return ERR_OK;
}

static enum err no_memory(void)
{
    return err_set(ERR_NOMEM, "out of memory for a tokenizer.json");
}

/* Room for ids 0 to n-1. Few may be missing: a single huge id must not cost memory. */
static enum err alloc_tokens(struct vocab *v, uint64_t n, uint64_t named)
{
    if (n == 0)
        return err_set(ERR_CORRUPT, "tokenizer.json: the vocabulary is empty");
    if (n > TOKENS_MAX || n > 2 * named + HOLES_MAX)
        return err_set(ERR_CORRUPT, "tokenizer.json: the largest id is %llu, but only %llu tokens are named",
                       (unsigned long long)n - 1, (unsigned long long)named);
    v->n_tokens = (uint32_t)n;
    v->tokens = calloc(n, sizeof *v->tokens);
    v->types = malloc(n);
    v->json->in_model = arena_alloc(&v->json->arena, n);
    if (!v->tokens || !v->types || !v->json->in_model)
        return no_memory();
    memset(v->types, VOCAB_UNUSED, n);
    for (uint32_t i = 0; i < v->n_tokens; i++)
        v->tokens[i].s = "";
    return ERR_OK;
}

static bool is_byte_token(struct gguf_str s)
{
    unsigned b;
    char end;
    return s.len == 6 && sscanf(s.s, "<0x%2X%c", &b, &end) == 2 && end == '>';
}

static enum err set_token(struct vocab *v, uint32_t id, const char *s, size_t len)
{
    struct tokenizer_json *j = v->json;
    if (v->tokens[id].len)
        return err_set(ERR_CORRUPT, "tokenizer.json: two tokens have the id %u", id);
    v->tokens[id].s = arena_strndup(&j->arena, s, len);
    v->tokens[id].len = len;
    if (!v->tokens[id].s)
        return no_memory();
    v->types[id] = j->byte_fallback && is_byte_token(v->tokens[id]) ? VOCAB_BYTE : VOCAB_NORMAL;
    return ERR_OK;
}

static bool id_of(const json_t *n, uint64_t *id)
{
    json_int_t i = json_integer_value(n);
    if (!json_is_integer(n) || i < 0 || i >= TOKENS_MAX)
        return false;
    *id = (uint64_t)i;
    return true;
}

/* One more than the largest id of the added tokens; `unknown` counts those that the model lacks. */
static enum err added_ids(const json_t *added, const json_t *vocab, uint64_t *n_ids, uint64_t *unknown)
{
    size_t i;
    const json_t *a;
    if (added && !json_is_null(added) && !json_is_array(added))
        return err_set(ERR_CORRUPT, "tokenizer.json: added_tokens is no array");
    if (json_array_size(added) > ADDED_MAX)
        return err_set(ERR_CORRUPT, "tokenizer.json: %zu added_tokens; at most %d", json_array_size(added), ADDED_MAX);
    json_array_foreach((json_t *)added, i, a)
    {
        uint64_t id;
        const json_t *content = json_object_get(a, "content");
        if (!json_is_string(content) || !id_of(json_object_get(a, "id"), &id))
            return err_set(ERR_CORRUPT, "tokenizer.json: added_tokens[%zu] has no content or no id below %d", i,
                           TOKENS_MAX);
        if (json_is_object(vocab) && json_object_getn(vocab, json_string_value(content), json_string_length(content)))
            continue;
        *n_ids = MAX(*n_ids, id + 1);
        (*unknown)++;
    }
    return ERR_OK;
}

static enum err load_merge(const json_t *vocab, const json_t *m, size_t rank, struct buf *joined,
                           struct vocab_merge *out)
{
    const char *a, *b;
    size_t na, nb;
    if (json_is_string(m)) {
        a = json_string_value(m);
        const char *sp = strchr(a, ' ');
        if (!sp || strchr(sp + 1, ' '))
            return err_set(ERR_CORRUPT, "tokenizer.json: model.merges[%zu] is not two tokens with a space between", rank);
        na = (size_t)(sp - a);
        b = sp + 1;
        nb = json_string_length(m) - na - 1;
    } else {
        const json_t *l = json_array_get(m, 0), *r = json_array_get(m, 1);
        if (json_array_size(m) != 2 || !json_is_string(l) || !json_is_string(r))
            return err_set(ERR_CORRUPT, "tokenizer.json: model.merges[%zu] is neither a string nor two strings", rank);
        a = json_string_value(l), na = json_string_length(l);
        b = json_string_value(r), nb = json_string_length(r);
    }
    buf_clear(joined);
    buf_append(joined, a, na);
    buf_append(joined, b, nb);
    if (joined->failed)
        return no_memory();
    const json_t *ids[] = {json_object_getn(vocab, a, na), json_object_getn(vocab, b, nb),
                           joined->len ? json_object_getn(vocab, joined->data, joined->len) : NULL};
    for (unsigned i = 0; i < 3; i++)
        if (!ids[i])
            return err_set(ERR_CORRUPT, "tokenizer.json: a token of model.merges[%zu] is not in model.vocab", rank);
    *out = (struct vocab_merge){(uint32_t)json_integer_value(ids[0]), (uint32_t)json_integer_value(ids[1]),
                                (uint32_t)json_integer_value(ids[2])};
    return ERR_OK;
}

static enum err load_merges(struct vocab *v, const json_t *vocab, const json_t *merges)
{
    struct buf joined;
    size_t i;
    const json_t *m;
    enum err e = ERR_OK;
    if (!json_is_array(merges))
        return err_set(ERR_CORRUPT, "tokenizer.json: model.merges is no array");
    v->n_merges = json_array_size(merges);
    v->merge_ids = calloc(v->n_merges + 1, sizeof *v->merge_ids);
    if (!v->merge_ids)
        return no_memory();
    buf_init(&joined);
    json_array_foreach((json_t *)merges, i, m) TRY_GOTO(load_merge(vocab, m, i, &joined, &v->merge_ids[i]), done);
done:
    buf_deinit(&joined);
    return e;
}

/* Settings that change the ids and that nothing here carries out. */
static enum err refuse_settings(const json_t *model)
{
    static const char *const texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (unsigned i = 0; i < ARRAY_LEN(texts); i++)
        if (json_string_length(json_object_get(model, texts[i])) > 0)
            return err_set(ERR_UNSUPPORTED, "tokenizer.json: model.%s is not supported", texts[i]);
    if (json_number_value(json_object_get(model, "dropout")) != 0)
        return err_set(ERR_UNSUPPORTED, "tokenizer.json: model.dropout is not supported (ids would be random)");
    return ERR_OK;
}

static enum err load_bpe(struct vocab *v, const json_t *model, const json_t *added)
{
    struct tokenizer_json *j = v->json;
    const json_t *vocab = json_object_get(model, "vocab"), *id;
    const char *key;
    size_t key_len;
    uint64_t n_ids = 0, named = json_object_size(vocab), n;
    v->kind = VOCAB_BPE;
    TRY(refuse_settings(model));
    TRY(tokenizer_json_flag(model, "model", "byte_fallback", false, &j->byte_fallback));
    TRY(tokenizer_json_flag(model, "model", "fuse_unk", false, &j->fuse_unk));
    TRY(tokenizer_json_flag(model, "model", "ignore_merges", false, &j->ignore_merges));
    if (!json_is_object(vocab))
        return err_set(ERR_CORRUPT, "tokenizer.json: model.vocab is no object");
    json_object_keylen_foreach((json_t *)vocab, key, key_len, id)
    {
        if (!id_of(id, &n))
            return err_set(ERR_CORRUPT, "tokenizer.json: an id in model.vocab is no integer from 0 to %d", TOKENS_MAX);
        n_ids = MAX(n_ids, n + 1);
    }
    TRY(added_ids(added, vocab, &n_ids, &named));
    TRY(alloc_tokens(v, n_ids, named));
    json_object_keylen_foreach((json_t *)vocab, key, key_len, id)
    {
        n = (uint64_t)json_integer_value(id);
        TRY(set_token(v, (uint32_t)n, key, key_len));
        j->in_model[n] = 1;
    }
    const json_t *unk = json_object_get(model, "unk_token");
    id = json_is_string(unk) ? json_object_getn(vocab, json_string_value(unk), json_string_length(unk)) : NULL;
    v->unk = id ? (int32_t)json_integer_value(id) : VOCAB_NONE;
    return load_merges(v, vocab, json_object_get(model, "merges"));
}

static enum err load_unigram(struct vocab *v, const json_t *model, const json_t *added)
{
    struct tokenizer_json *j = v->json;
    const json_t *vocab = json_object_get(model, "vocab"), *piece, *unk = json_object_get(model, "unk_id");
    uint64_t n_ids = json_array_size(vocab), named = n_ids, id = 0;
    size_t i;
    v->kind = VOCAB_UNIGRAM;
    j->fuse_unk = true;
    TRY(tokenizer_json_flag(model, "model", "byte_fallback", false, &j->byte_fallback));
    if (!json_is_array(vocab))
        return err_set(ERR_CORRUPT, "tokenizer.json: model.vocab is no array");
    TRY(added_ids(added, NULL, &n_ids, &named));
    TRY(alloc_tokens(v, n_ids, named));
    j->scores = arena_array(&j->arena, n_ids, sizeof *j->scores);
    if (!j->scores)
        return no_memory();
    json_array_foreach((json_t *)vocab, i, piece)
    {
        const json_t *text = json_array_get(piece, 0), *score = json_array_get(piece, 1);
        if (json_array_size(piece) != 2 || !json_is_string(text) || !json_is_number(score))
            return err_set(ERR_CORRUPT, "tokenizer.json: model.vocab[%zu] is no text and score", i);
        TRY(set_token(v, (uint32_t)i, json_string_value(text), json_string_length(text)));
        j->scores[i] = json_number_value(score);
        j->in_model[i] = 1;
    }
    bool has_unk = unk && !json_is_null(unk);
    if (has_unk && (!id_of(unk, &id) || id >= json_array_size(vocab)))
        return err_set(ERR_CORRUPT, "tokenizer.json: model.unk_id is none of the %zu tokens", json_array_size(vocab));
    v->unk = has_unk ? (int32_t)id : VOCAB_NONE;
    return ERR_OK;
}

static enum err load_model(struct vocab *v, const json_t *root)
{
    const json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    const char *type = json_string_value(json_object_get(model, "type"));
    if (!json_is_object(model))
        return err_set(ERR_CORRUPT, "tokenizer.json: there is no object \"model\"");
    if (!type) /* files from before the key: told apart by what they hold */
        type = json_object_get(model, "merges") ? "BPE" : json_is_array(json_object_get(model, "vocab")) ? "Unigram" : "";
    if (strcmp(type, "BPE") == 0)
        return load_bpe(v, model, added);
    if (strcmp(type, "Unigram") == 0)
        return load_unigram(v, model, added);
    return err_set(ERR_UNSUPPORTED, "tokenizer.json: model \"%.40s\" is not supported; BPE and Unigram are", type);
}

/* Ids by text, for the added tokens: a BPE model is such a table already. */
static json_t *text_index(const struct vocab *v, const json_t *root)
{
    const json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab");
    if (json_is_object(vocab))
        return json_incref((json_t *)(uintptr_t)vocab);
    json_t *o = json_object();
    for (uint32_t i = 0; i < v->n_tokens && o; i++)
        if (v->json->in_model[i] && v->tokens[i].len && !memchr(v->tokens[i].s, 0, v->tokens[i].len) &&
            json_object_setn_new_nocheck(o, v->tokens[i].s, v->tokens[i].len, json_integer(i)) != 0) {
            json_decref(o);
            return NULL;
        }
    return o;
}

static enum err load_added_token(struct vocab *v, const json_t *index, const json_t *a,
                                 struct tokenizer_json_added *out)
{
    const char *what = "added_tokens[]";
    const json_t *content = json_object_get(a, "content");
    const char *s = json_string_value(content);
    size_t len = json_string_length(content);
    const json_t *known = json_object_getn(index, s, len);
    out->id = (uint32_t)json_integer_value(known ? known : json_object_get(a, "id"));
    TRY(tokenizer_json_flag(a, what, "special", false, &out->special));
    TRY(tokenizer_json_flag(a, what, "single_word", false, &out->single_word));
    TRY(tokenizer_json_flag(a, what, "lstrip", false, &out->lstrip));
    TRY(tokenizer_json_flag(a, what, "rstrip", false, &out->rstrip));
    TRY(tokenizer_json_flag(a, what, "normalized", !out->special, &out->normalized));
    bool again = !known && v->tokens[out->id].len == len && memcmp(v->tokens[out->id].s, s, len) == 0;
    if (!known && !again)
        TRY(set_token(v, out->id, s, len));
    v->types[out->id] = out->special ? VOCAB_CONTROL : VOCAB_USER_DEFINED;
    return ERR_OK;
}

static enum err load_added(struct vocab *v, const json_t *root)
{
    struct tokenizer_json *j = v->json;
    const json_t *added = json_object_get(root, "added_tokens"), *a;
    size_t i;
    enum err e = ERR_OK;
    json_t *index = text_index(v, root);
    j->added = arena_array(&j->arena, json_array_size(added), sizeof *j->added);
    if (!index || !j->added) {
        e = no_memory();
        goto done;
    }
    json_array_foreach((json_t *)added, i, a)
    {
        if (json_string_length(json_object_get(a, "content")) == 0)
            continue;
        TRY_GOTO(load_added_token(v, index, a, &j->added[j->n_added]), done);
        j->n_added++;
    }
done:
    json_decref(index);
    return e;
}

/* Where the file only shows them by use: the first id put before a text, the last behind it. */
static void find_ids(struct vocab *v)
{
    const struct tokenizer_json *j = v->json;
    v->eos = v->bos = v->eot = v->eom = v->pad = VOCAB_NONE;
    v->add_bos = j->n_prefix > 0;
    v->add_eos = j->n_suffix > 0;
    if (v->add_bos)
        v->bos = (int32_t)j->prefix[0];
    if (v->add_eos)
        v->eos = (int32_t)j->suffix[j->n_suffix - 1];
    for (uint32_t i = 0; i < j->n_decoder; i++) {
        const struct tokenizer_json_step *d = &j->decoder[i];
        v->strip_space |= d->kind == TOKENIZER_JSON_METASPACE && d->prepend != TOKENIZER_JSON_NEVER;
        v->strip_space |= d->kind == TOKENIZER_JSON_STRIP && d->start > 0;
    }
}

enum err tokenizer_json_parse(const char *bytes, size_t len, struct vocab **out)
{
    enum err e;
    json_error_t at;
    *out = NULL;
    json_t *root = json_loadb(bytes, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &at);
    if (!root)
        return err_set(ERR_CORRUPT, "tokenizer.json: no JSON: %s (line %d, column %d)", at.text, at.line, at.column);
    struct vocab *v = calloc(1, sizeof *v);
    if (v)
        v->json = calloc(1, sizeof *v->json);
    if (!v || !v->json) {
        e = no_memory();
        goto done;
    }
    arena_init(&v->json->arena, 0);
    TRY_GOTO(load_model(v, root), done);
    TRY_GOTO(load_added(v, root), done);
    TRY_GOTO(tokenizer_json_steps(v->json, root), done);
    TRY_GOTO(tokenizer_json_post(v->json, v, root), done);
    find_ids(v);
    *out = v;
    v = NULL;
done:
    json_decref(root);
    vocab_destroy(&v);
    return e;
}

void tokenizer_json_destroy(struct tokenizer_json **jp)
{
    if (!*jp)
        return;
    arena_deinit(&(*jp)->arena);
    free(*jp);
    *jp = NULL;
}

static int32_t find_token(const struct vocab *v, const json_t *name)
{
    const json_t *s = json_is_object(name) ? json_object_get(name, "content") : name;
    for (uint32_t i = v->n_tokens; json_string_length(s) > 0 && i-- > 0;)
        if (v->tokens[i].len == json_string_length(s) && memcmp(v->tokens[i].s, json_string_value(s), v->tokens[i].len) == 0)
            return (int32_t)i;
    return VOCAB_NONE;
}

enum err tokenizer_json_config(struct vocab *v, const char *bytes, size_t len)
{
    json_error_t at;
    json_t *root = json_loadb(bytes, len, 0, &at);
    if (!root)
        return err_set(ERR_CORRUPT, "tokenizer_config.json: no JSON: %s (line %d)", at.text, at.line);
    const struct { const char *key; int32_t *id; } names[] = {
        {"bos_token", &v->bos}, {"eos_token", &v->eos}, {"pad_token", &v->pad}};
    for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
        int32_t id = find_token(v, json_object_get(root, names[i].key));
        *names[i].id = id == VOCAB_NONE ? *names[i].id : id;
    }
    const json_t *t = json_object_get(root, "chat_template"), *one;
    size_t k;
    json_array_foreach((json_t *)t, k, one) /* several: the one that is called default */
        if (json_is_string(json_object_get(one, "name")) &&
            strcmp(json_string_value(json_object_get(one, "name")), "default") == 0)
            t = json_object_get(one, "template");
    bool ok = !json_is_string(t) || tokenizer_json_str(v->json, t, &v->chat_template);
    json_decref(root);
    return ok ? ERR_OK : no_memory();
}

/* The file `name` in the folder of path; false when there is none. */
static bool read_beside(const char *path, const char *name, struct buf *out)
{
    char beside[4096];
    const char *slash = strrchr(path, '/');
    int n = snprintf(beside, sizeof beside, "%.*s%s", slash ? (int)(slash - path + 1) : 0, path, name);
    buf_clear(out);
    return n > 0 && (size_t)n < sizeof beside && buf_read_file(out, beside, FILE_MAX) == ERR_OK;
}

enum err tokenizer_json_load(const char *path, struct vocab **out)
{
    struct buf b;
    struct vocab *v = NULL;
    char why[400];
    enum err e;
    *out = NULL;
    buf_init(&b);
    TRY_GOTO(buf_read_file(&b, path, FILE_MAX), done);
    e = tokenizer_json_parse(b.data ? b.data : "", b.len, &v);
    if (e == ERR_OK && read_beside(path, "tokenizer_config.json", &b))
        e = tokenizer_json_config(v, b.data ? b.data : "", b.len);
    if (e == ERR_OK && read_beside(path, "chat_template.jinja", &b) && b.len > 0) {
        v->chat_template = (struct gguf_str){arena_strndup(&v->json->arena, b.data, b.len), b.len};
        e = v->chat_template.s ? ERR_OK : no_memory();
    }
    if (e == ERR_OK) {
        *out = v;
        v = NULL;
        goto done;
    }
    snprintf(why, sizeof why, "%s", err_detail());
    e = err_set(e, "%s: %s", path, why);
done:
    vocab_destroy(&v);
    buf_deinit(&b);
    return e;
}
