/* See tokenizer_json.h. Here: normalizer, pre_tokenizer and decoder as flat lists of steps (a table of what each may
 * hold, filled in by one reader), and the ids that the post-processor adds. */
#include "model/tokenizer_json_int.h"

#include "base/check.h"

#include <stdio.h>

enum { STEPS_MAX = 64, DEPTH_MAX = 8, AROUND_MAX = 64, COUNT_MAX = 1 << 20 };

static const struct {
    const char *name, *roles;
} kinds[] = {
#define TOKENIZER_JSON_STEP(id, name, roles) {name, roles},
#include "model/tokenizer_json_steps.def"
#undef TOKENIZER_JSON_STEP
};

/* Where a step stands: for errors, and for what the same name means there. */
struct place {
    char role; /* N, P, D */
    const char *key;
    const char *list; /* of the steps of a Sequence */
};
static const struct place places[] = {
    {'N', "normalizer", "normalizers"}, {'P', "pre_tokenizer", "pretokenizers"}, {'D', "decoder", "decoders"}};

static enum err damaged(const struct place *p, const char *type, const char *what)
{
    return err_set(ERR_CORRUPT, "tokenizer.json: %s %s: %s", p->key, type, what);
}

static enum err read_text(struct tokenizer_json *j, const struct place *p, const char *type, const json_t *o,
                          const char *key, struct gguf_str *out)
{
    const json_t *s = json_object_get(o, key);
    if (!json_is_string(s))
        return err_set(ERR_CORRUPT, "tokenizer.json: %s %s: %s is no string", p->key, type, key);
    return tokenizer_json_str(j, s, out) ? ERR_OK : err_set(ERR_NOMEM, "out of memory for a tokenizer.json");
}

static enum err read_pattern(struct tokenizer_json *j, const struct place *p, const char *type, const json_t *o,
                             struct tokenizer_json_step *s)
{
    const json_t *pattern = json_object_get(o, "pattern");
    s->is_regex = json_object_get(pattern, "Regex") != NULL;
    return read_text(j, p, type, pattern, s->is_regex ? "Regex" : "String", &s->pattern);
}

static enum err read_behavior(const struct place *p, const char *type, const json_t *o,
                              enum tokenizer_json_behavior def, enum tokenizer_json_behavior *out)
{
    static const char *const names[] = {[TOKENIZER_JSON_REMOVED] = "Removed",
                                        [TOKENIZER_JSON_ISOLATED] = "Isolated",
                                        [TOKENIZER_JSON_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
                                        [TOKENIZER_JSON_MERGED_WITH_NEXT] = "MergedWithNext",
                                        [TOKENIZER_JSON_CONTIGUOUS] = "Contiguous"};
    const json_t *b = json_object_get(o, "behavior");
    *out = def;
    if (!b)
        return ERR_OK;
    for (unsigned i = 0; i < ARRAY_LEN(names); i++)
        if (json_is_string(b) && strcmp(json_string_value(b), names[i]) == 0) {
            *out = (enum tokenizer_json_behavior)i;
            return ERR_OK;
        }
    return damaged(p, type, "behavior is none of Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
}

static enum err read_metaspace(struct tokenizer_json *j, const struct place *p, const char *type, const json_t *o,
                               struct tokenizer_json_step *s)
{
    bool add;
    const char *scheme = json_string_value(json_object_get(o, "prepend_scheme"));
    TRY(read_text(j, p, type, o, "replacement", &s->pattern));
    TRY(tokenizer_json_flag(o, type, "split", true, &s->split));
    TRY(tokenizer_json_flag(o, type, "add_prefix_space", true, &add)); /* the way of older files */
    if (s->pattern.len == 0)
        return damaged(p, type, "replacement is empty");
    s->prepend = add ? TOKENIZER_JSON_ALWAYS : TOKENIZER_JSON_NEVER;
    if (!scheme)
        return ERR_OK;
    static const char *const names[] = {[TOKENIZER_JSON_NEVER] = "never",
                                        [TOKENIZER_JSON_FIRST] = "first",
                                        [TOKENIZER_JSON_ALWAYS] = "always"};
    for (unsigned i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(scheme, names[i]) == 0) {
            s->prepend = (enum tokenizer_json_prepend)i;
            return ERR_OK;
        }
    return damaged(p, type, "prepend_scheme is none of never, first, always");
}

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* RFC 4648; the padding may be missing. */
static enum err read_base64(struct tokenizer_json *j, const struct place *p, const char *type, struct gguf_str *s)
{
    size_t n = s->len, at = 0;
    uint32_t bits = 0;
    while (n > 0 && s->s[n - 1] == '=')
        n--;
    char *out = arena_alloc(&j->arena, n * 3 / 4 + 1);
    if (!out)
        return err_set(ERR_NOMEM, "out of memory for a tokenizer.json");
    for (size_t i = 0; i < n; i++) {
        int v = base64_value(s->s[i]);
        if (v < 0)
            return damaged(p, type, "precompiled_charsmap is no base64");
        bits = bits << 6 | (uint32_t)v;
        if (i % 4)
            out[at++] = (char)(bits >> (6 - 2 * (i % 4)));
    }
    *s = (struct gguf_str){out, at};
    return ERR_OK;
}

static enum err read_strip(struct tokenizer_json *j, const struct place *p, const char *type, const json_t *o,
                           struct tokenizer_json_step *s)
{
    if (p->role == 'N') {
        TRY(tokenizer_json_flag(o, type, "strip_left", true, &s->left));
        return tokenizer_json_flag(o, type, "strip_right", true, &s->right);
    }
    json_int_t start = json_integer_value(json_object_get(o, "start")), stop = json_integer_value(json_object_get(o, "stop"));
    if (start < 0 || start > 1 || stop != 0)
        return err_set(ERR_UNSUPPORTED, "tokenizer.json: decoder Strip is supported for start 0 or 1 and stop 0 only");
    s->start = (uint32_t)start;
    return read_text(j, p, type, o, "content", &s->content);
}

static enum err read_fields(struct tokenizer_json *j, const struct place *p, const char *type, const json_t *o,
                            struct tokenizer_json_step *s)
{
    bool prefix;
    switch (s->kind) {
    case TOKENIZER_JSON_PREPEND:
        return read_text(j, p, type, o, "prepend", &s->content);
    case TOKENIZER_JSON_PRECOMPILED:
        TRY(read_text(j, p, type, o, "precompiled_charsmap", &s->content));
        return read_base64(j, p, type, &s->content);
    case TOKENIZER_JSON_STRIP:
        return read_strip(j, p, type, o, s);
    case TOKENIZER_JSON_REPLACE:
        TRY(read_pattern(j, p, type, o, s));
        if (p->role == 'D' && s->is_regex)
            return err_set(ERR_UNSUPPORTED, "tokenizer.json: decoder Replace with a regular expression is not supported");
        return read_text(j, p, type, o, "content", &s->content);
    case TOKENIZER_JSON_BYTE_LEVEL:
        TRY(tokenizer_json_flag(o, type, "add_prefix_space", p->role == 'P', &prefix));
        s->prepend = prefix && p->role == 'P' ? TOKENIZER_JSON_ALWAYS : TOKENIZER_JSON_NEVER;
        return tokenizer_json_flag(o, type, "use_regex", true, &s->split);
    case TOKENIZER_JSON_METASPACE:
        return read_metaspace(j, p, type, o, s);
    case TOKENIZER_JSON_SPLIT:
        TRY(read_pattern(j, p, type, o, s));
        TRY(read_behavior(p, type, o, TOKENIZER_JSON_REMOVED, &s->behavior));
        return tokenizer_json_flag(o, type, "invert", false, &s->invert);
    case TOKENIZER_JSON_CHAR_SPLIT:
        s->behavior = TOKENIZER_JSON_REMOVED;
        return read_text(j, p, type, o, "delimiter", &s->pattern);
    case TOKENIZER_JSON_DIGITS:
        return tokenizer_json_flag(o, type, "individual_digits", false, &s->individual);
    case TOKENIZER_JSON_PUNCTUATION:
        return read_behavior(p, type, o, TOKENIZER_JSON_ISOLATED, &s->behavior);
    default:
        return ERR_OK;
    }
}

struct steps {
    struct tokenizer_json_step *at;
    uint32_t n;
};

static enum err read_step(struct tokenizer_json *j, const struct place *p, const json_t *o, unsigned depth,
                          struct steps *out)
{
    const char *type = json_string_value(json_object_get(o, "type"));
    if (!o || json_is_null(o))
        return ERR_OK;
    if (!type)
        return err_set(ERR_CORRUPT, "tokenizer.json: a %s has no type", p->key);
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(o, p->list), *step;
        size_t i;
        if (!json_is_array(list) || depth == DEPTH_MAX)
            return err_set(ERR_CORRUPT, "tokenizer.json: %s Sequence: no array %s, or more than %d levels", p->key, p->list, DEPTH_MAX);
        json_array_foreach((json_t *)list, i, step) TRY(read_step(j, p, step, depth + 1, out));
        return ERR_OK;
    }
    for (unsigned k = 0; k < ARRAY_LEN(kinds); k++)
        if (strcmp(type, kinds[k].name) == 0 && strchr(kinds[k].roles, p->role)) {
            if (out->n == STEPS_MAX)
                return err_set(ERR_TOO_BIG, "tokenizer.json: %s has more than %d steps", p->key, STEPS_MAX);
            out->at[out->n].kind = (enum tokenizer_json_kind)k;
            return read_fields(j, p, kinds[k].name, o, &out->at[out->n++]);
        }
    return err_set(ERR_UNSUPPORTED, "tokenizer.json: %s \"%.40s\" is not supported", p->key, type);
}

enum err tokenizer_json_steps(struct tokenizer_json *j, const json_t *root)
{
    struct tokenizer_json_step **at[] = {&j->normalizer, &j->pre, &j->decoder};
    uint32_t *n[] = {&j->n_normalizer, &j->n_pre, &j->n_decoder};
    for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
        struct steps s = {arena_array(&j->arena, STEPS_MAX, sizeof(struct tokenizer_json_step)), 0};
        if (!s.at)
            return err_set(ERR_NOMEM, "out of memory for a tokenizer.json");
        TRY(read_step(j, &places[i], json_object_get(root, places[i].key), 0, &s));
        *at[i] = s.at;
        *n[i] = s.n;
    }
    return ERR_OK;
}

static enum err push_around(uint32_t *ids, uint32_t *n, const struct vocab *v, json_int_t id)
{
    if (id < 0 || id >= v->n_tokens || *n == AROUND_MAX)
        return err_set(ERR_CORRUPT, "tokenizer.json: post_processor: an id is none of the %u tokens, or more than %d are added", v->n_tokens, AROUND_MAX);
    ids[(*n)++] = (uint32_t)id;
    return ERR_OK;
}

static enum err read_template(struct tokenizer_json *j, const struct vocab *v, const json_t *o)
{
    const json_t *single = json_object_get(o, "single"), *tokens = json_object_get(o, "special_tokens"), *piece;
    size_t i;
    bool behind = false;
    if (!json_is_array(single))
        return err_set(ERR_CORRUPT, "tokenizer.json: post_processor TemplateProcessing: single is no array");
    json_array_foreach((json_t *)single, i, piece)
    {
        if (json_object_get(piece, "Sequence")) {
            if (behind)
                return err_set(ERR_UNSUPPORTED, "tokenizer.json: post_processor TemplateProcessing: the text stands there twice");
            behind = true;
            continue;
        }
        const char *name = json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
        const json_t *ids = name ? json_object_get(json_object_get(tokens, name), "ids") : NULL, *id;
        size_t k;
        if (!json_is_array(ids))
            return err_set(ERR_CORRUPT, "tokenizer.json: post_processor TemplateProcessing: single[%zu] names no special token", i);
        json_array_foreach((json_t *)ids, k, id)
        {
            json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
            TRY(push_around(behind ? j->suffix : j->prefix, behind ? &j->n_suffix : &j->n_prefix, v, value));
        }
    }
    if (!behind)
        return err_set(ERR_UNSUPPORTED, "tokenizer.json: post_processor TemplateProcessing: single lacks the text");
    return ERR_OK;
}

/* BERT's and RoBERTa's: [text, id] for what stands before and behind. */
static enum err read_cls_sep(struct tokenizer_json *j, const struct vocab *v, const json_t *o)
{
    const json_t *cls = json_array_get(json_object_get(o, "cls"), 1), *sep = json_array_get(json_object_get(o, "sep"), 1);
    TRY(push_around(j->prefix, &j->n_prefix, v, json_is_integer(cls) ? json_integer_value(cls) : -1));
    return push_around(j->suffix, &j->n_suffix, v, json_is_integer(sep) ? json_integer_value(sep) : -1);
}

static enum err read_post(struct tokenizer_json *j, const struct vocab *v, const json_t *o, unsigned depth)
{
    const char *type = json_string_value(json_object_get(o, "type"));
    if (!o || json_is_null(o))
        return ERR_OK;
    if (!type)
        return err_set(ERR_CORRUPT, "tokenizer.json: a post_processor has no type");
    if (strcmp(type, "ByteLevel") == 0) /* moves offsets only */
        return ERR_OK;
    bool around = j->n_prefix + j->n_suffix > 0;
    if (strcmp(type, "Sequence") == 0 && depth < DEPTH_MAX) {
        const json_t *list = json_object_get(o, "processors"), *p;
        size_t i;
        json_array_foreach((json_t *)list, i, p) TRY(read_post(j, v, p, depth + 1));
        return ERR_OK;
    }
    if (strcmp(type, "TemplateProcessing") == 0 && !around)
        return read_template(j, v, o);
    if ((strcmp(type, "RobertaProcessing") == 0 || strcmp(type, "BertProcessing") == 0) && !around)
        return read_cls_sep(j, v, o);
    return err_set(ERR_UNSUPPORTED, "tokenizer.json: post_processor \"%.40s\" is not supported%s", type, around ? " behind another that adds tokens" : "");
}

enum err tokenizer_json_post(struct tokenizer_json *j, const struct vocab *v, const json_t *root)
{
    j->prefix = arena_array(&j->arena, AROUND_MAX, sizeof *j->prefix);
    j->suffix = arena_array(&j->arena, AROUND_MAX, sizeof *j->suffix);
    if (!j->prefix || !j->suffix)
        return err_set(ERR_NOMEM, "out of memory for a tokenizer.json");
    return read_post(j, v, json_object_get(root, "post_processor"), 0);
}
