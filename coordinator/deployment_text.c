/* The text side of a deployment: its vocabulary, tokenizer and chat template, from the model's file or from files that the operator names, and
 * what is read out of them once. */
#include "coordinator/deployment.h"

#include "base/check.h"
#include "base/log.h"
#include "text/reasoning.h"
#include "text/template_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *token_text(const struct tokenizer *t, int32_t id)
{
    struct buf b;
    buf_init(&b);
    if (id >= 0)
        tokenizer_piece(t, (uint32_t)id, true, &b);
    buf_putc(&b, '\0');
    return buf_take(&b, NULL);
}

/* The id of a control token, or false. */
static bool control_token(const struct tokenizer *t, const char *text, uint32_t *id)
{
    struct tokens ids = {0};
    const struct vocab *v = tokenizer_vocab(t);
    bool found = tokenizer_encode(t, text, strlen(text), TOKENIZER_PARSE, &ids) == ERR_OK && ids.n == 1 && v->types && v->types[ids.ids[0]] == VOCAB_CONTROL;
    if (found)
        *id = ids.ids[0];
    tokens_deinit(&ids);
    return found;
}

static void find_marks(struct deployment *d)
{
    const char *mark;
    for (uint32_t i = 0; d->caps.reasoning && d->n_marks < ARRAY_LEN(d->marks) && (mark = reasoning_mark(d->caps.reasoning, i)) != NULL; i++)
        d->n_marks += control_token(d->tok, mark, &d->marks[d->n_marks]);
}

/* By the keys of the file (two generations of them), or by the names that code models give the three tokens. */
static bool find_fim(const struct deployment *d, uint32_t fim[3])
{
    static const char *const keys[][3] = {
        {"tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.fim_mid_token_id"},
        {"tokenizer.ggml.prefix_token_id", "tokenizer.ggml.suffix_token_id", "tokenizer.ggml.middle_token_id"},
    };
    static const char *const names[][3] = {
        {"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"},
        {"<fim_prefix>", "<fim_suffix>", "<fim_middle>"},
        {"<fim-prefix>", "<fim-suffix>", "<fim-middle>"},
    };
    for (size_t k = 0; k < ARRAY_LEN(keys); k++) {
        uint32_t n = 0;
        while (n < 3 && gguf_get_u32(d->gguf, keys[k][n], &fim[n]) && fim[n] < d->hp.vocab)
            n++;
        if (n == 3)
            return true;
    }
    for (size_t k = 0; k < ARRAY_LEN(names); k++) {
        uint32_t n = 0;
        while (n < 3 && control_token(d->tok, names[k][n], &fim[n]))
            n++;
        if (n == 3)
            return true;
    }
    return false;
}

/* What went wrong, with the file it is about before it. */
static enum err fail_in(const char *path, enum err e)
{
    char why[400];
    snprintf(why, sizeof(why), "%s", err_detail());
    return strstr(why, path) ? e : err_set(e, "%s: %s", path, why);
}

/* The model's own tokenizer, or the file that takes its place. */
static enum err load_tokenizer(struct deployment *d)
{
    const char *json = d->opts->tokenizer;
    enum err e = vocab_load(d->gguf, &d->vocab);
    if (json && (e == ERR_OK || e == ERR_UNSUPPORTED)) /* it may stand for one that is not known */
        e = vocab_replace(&d->vocab, json, d->hp.vocab);
    if (e == ERR_OK)
        e = tokenizer_create(d->vocab, &d->tok);
    if (e == ERR_UNSUPPORTED && !json) {
        char why[400];
        snprintf(why, sizeof(why), "%s", err_detail());
        return err_set(e, "%s: %s (--tokenizer takes the tokenizer.json of the model instead)", d->path, why);
    }
    return e == ERR_OK ? e : fail_in(json ? json : d->path, e);
}

/* A model may have a second template, named tool_use; one that is not understood is as good as none. */
static enum err load_tool_template(struct deployment *d)
{
    const char *path = d->opts->chat_template;
    struct gguf_str own = {0};
    struct buf text;
    enum err e = ERR_OK;
    buf_init(&text);
    if (path)
        e = template_file_read_named(path, "tool_use", &text);
    else if (!d->opts->tokenizer && gguf_get_str(d->gguf, "tokenizer.chat_template.tool_use", &own))
        buf_append(&text, own.s, own.len);
    if (e == ERR_OK && text.len)
        e = chat_template_create(text.data, text.len, &d->tool_tmpl);
    if (e != ERR_OK && e != ERR_NOT_FOUND)
        LOG(WARN, FRONT, "the chat template for tools is not understood: the default one takes its place", "model=\"%s\" reason=\"%s\"", d->names[0], err_detail());
    buf_deinit(&text);
    err_clear();
    return ERR_OK;
}

/* A file that the operator names must be good; a template of the model that is not understood leaves it without chat. */
static enum err load_template(struct deployment *d)
{
    const char *path = d->opts->chat_template;
    struct gguf_str t = d->vocab->chat_template;
    if (path) {
        TRY(template_file_read(path, &d->template_text));
        t = (struct gguf_str){d->template_text.data, d->template_text.len};
    }
    enum err e = t.len ? chat_template_create(t.s, t.len, &d->tmpl) : ERR_OK;
    if (e != ERR_OK && path)
        return fail_in(path, e);
    if (e != ERR_OK) {
        d->tmpl_error = strdup(err_detail());
        LOG(WARN, FRONT, "chat template not understood: chat requests will be refused", "model=\"%s\" reason=\"%s\"", d->names[0], err_detail());
    }
    if (d->tmpl) {
        chat_caps_find(d->tmpl, t.s, t.len, d->bos_text, d->eos_text, &d->caps);
        find_marks(d);
        return load_tool_template(d);
    }
    return ERR_OK;
}

enum err deployment_load_text(struct deployment *d)
{
    TRY(load_tokenizer(d));
    d->n_end_ids = tokenizer_end_ids(d->tok, d->end_ids, ARRAY_LEN(d->end_ids));
    d->bos_text = token_text(d->tok, d->vocab->bos);
    d->eos_text = token_text(d->tok, d->vocab->eos);
    if (!d->bos_text || !d->eos_text)
        return err_set(ERR_NOMEM, "the texts of BOS and EOS");
    d->has_fim = find_fim(d, d->fim);
    return load_template(d);
}
