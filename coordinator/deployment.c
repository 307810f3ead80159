#include "coordinator/deployment.h"

#include "base/check.h"
#include "text/token_sequences.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- options that are lists ---- */

/* "3,1" -> values; the error names the option. */
static enum err parse_list(const char *option, const char *text, uint32_t *out, uint32_t cap, uint32_t *n)
{
    *n = 0;
    for (const char *p = text; p && *p;) {
        char *end;
        errno = 0;
        unsigned long v = strtoul(p, &end, 10);
        if (end == p || *p == '-' || *p == '+' || errno || v > UINT32_MAX || v == 0 || (*end && *end != ',') || (*end == ',' && !end[1]))
            return err_set(ERR_CONFIG, "--%s '%s': a list of positive numbers like 3,1 is expected", option, text);
        if (*n == cap)
            return err_set(ERR_CONFIG, "--%s '%s': at most %u numbers", option, text, cap);
        out[(*n)++] = (uint32_t)v;
        p = *end ? end + 1 : end;
    }
    return ERR_OK;
}

static enum err make_split(struct deployment *d)
{
    uint32_t shares[SHARD_TP_MAX], layers[SHARD_PP_MAX], n_shares, n_layers;
    const struct options *o = d->opts;
    TRY(parse_list("shares", o->shares, shares, SHARD_TP_MAX, &n_shares));
    TRY(parse_list("layers", o->layers, layers, SHARD_PP_MAX, &n_layers));
    return shard_split_init(&d->hp, (uint32_t)o->tp, (uint32_t)o->pp, n_shares ? shares : NULL, n_shares, n_layers ? layers : NULL, n_layers, &d->split);
}

/* ---- names ---- */

static void file_stem(const char *path, char *out, size_t cap)
{
    const char *base = strrchr(path, '/');
    snprintf(out, cap, "%s", base ? base + 1 : path);
    size_t n = strlen(out);
    if (n > 5 && strcmp(out + n - 5, ".gguf") == 0)
        out[n - 5] = '\0';
}

/* llama-1b-00001-of-00004 and llama-1b are both served as llama-1b. */
static void drop_part(char *stem)
{
    size_t n = strlen(stem);
    unsigned part, of;
    int used = 0;
    if (n > 15 && sscanf(stem + n - 15, "-%5u-of-%5u%n", &part, &of, &used) == 2 && used == 15)
        stem[n - 15] = '\0';
}

/* served_model_name is "name,alias,..."; without it the file names the model. */
static enum err name_model(struct deployment *d)
{
    const char *given = d->opts->served_model_name;
    file_stem(d->opts->model, d->stem, sizeof(d->stem));
    d->names_text = strdup(given ? given : d->stem);
    if (!d->names_text)
        return err_set(ERR_NOMEM, "the model's names");
    if (!given) {
        drop_part(d->names_text);
        d->names[d->n_names++] = d->names_text;
        return ERR_OK;
    }
    for (char *p = d->names_text, *end; p; p = end) {
        end = strchr(p, ',');
        if (end)
            *end++ = '\0';
        if (!*p || strlen(p) > DEPLOYMENT_NAME_LEN_MAX)
            return err_set(ERR_CONFIG, "--served-model-name '%.300s': each name has 1 to %d bytes", given, DEPLOYMENT_NAME_LEN_MAX);
        if (d->n_names == DEPLOYMENT_NAMES_MAX)
            return err_set(ERR_CONFIG, "--served-model-name '%s': at most %d names", given, DEPLOYMENT_NAMES_MAX);
        d->names[d->n_names++] = p;
    }
    return ERR_OK;
}

/* ---- the model's facts ---- */

static enum err load_facts(struct deployment *d)
{
    const char *path = d->opts->model;
    TRY(gguf_open(path, &d->gguf));
    if (!realpath(path, d->path))
        return err_set(ERR_IO, "%s: %s", path, strerror(errno));
    enum err e = hparams_load(d->gguf, &d->hp);
    if (e != ERR_OK) {
        char why[512];
        snprintf(why, sizeof(why), "%s", err_detail());
        return err_set(e, "%s: %s", path, why);
    }
    d->n_params = hparams_n_params(d->gguf);
    for (uint32_t i = 0; i < d->gguf->n_files; i++)
        d->bytes += d->gguf->files[i].size;
    return ERR_OK;
}

/* What is wrong whatever workers join is said before anything starts. */
static enum err check_memory(const struct deployment *d)
{
    const struct options *o = d->opts;
    uint64_t ctx = o->ctx ? (uint64_t)o->ctx : d->hp.ctx_train;
    TRY(shard_kv_check(&d->hp, (enum kv_type)o->kv_type));
    if (ctx < 2 * SHARD_KV_BLOCK) /* what the first steps of a worker take */
        return err_set(ERR_CONFIG, "a context of %llu tokens is too short, %d are the least: %s", (unsigned long long)ctx, 2 * SHARD_KV_BLOCK,
                       o->ctx ? "raise --ctx" : "the model names it; set --ctx");
    if (!o->kv_memory)
        return ERR_OK;
    uint64_t asked = o->ctx ? (uint64_t)o->ctx : 2 * SHARD_KV_BLOCK, blocks = (asked + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK, need = 0;
    for (uint32_t r = 0; r < d->split.tp * d->split.pp; r++)
        need = MAX(need, shard_kv_block_bytes(&d->hp, &d->split, (enum kv_type)o->kv_type, r % d->split.tp, r / d->split.tp) * blocks);
    if (need > o->kv_memory)
        return err_set(ERR_NO_FIT,
                       "a context of %llu tokens needs %llu bytes of KV cache in a worker, --kv-memory gives %llu: lower --ctx or raise --kv-memory",
                       (unsigned long long)asked, (unsigned long long)need, (unsigned long long)o->kv_memory);
    return ERR_OK;
}

static enum err open_model(struct deployment *d)
{
    if (!d->opts->model)
        return err_set(ERR_CONFIG, "no model: give --model FILE.gguf, or `model:` in racklm.yaml");
    TRY(load_facts(d));
    TRY(name_model(d));
    TRY(make_split(d));
    return check_memory(d);
}

enum err deployment_open(const struct options *server, uint32_t index, struct deployment *d)
{
    memset(d, 0, sizeof(*d));
    d->index = index;
    d->opts = &d->own;
    TRY(options_model(server, index, &d->own));
    enum err e = open_model(d);
    if (e == ERR_OK || options_n_models(server) == 1 || strstr(err_detail(), d->own.model))
        return e;
    char why[512];
    snprintf(why, sizeof(why), "%s", err_detail());
    return err_set(e, "%s: %s", d->own.model, why); /* which of them */
}

enum err deployment_check_names(const struct deployment *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < list[i].n_names; k++)
            for (uint32_t j = 0; j <= i; j++)
                for (uint32_t m = 0; m < (j < i ? list[j].n_names : k); m++)
                    if (strcmp(list[i].names[k], list[j].names[m]) == 0)
                        return err_set(ERR_CONFIG, "two models are named `%s`: %s and %s; name one otherwise: NAME=FILE, or served_model_name in its entry",
                                       list[i].names[k], list[j].own.model, list[i].own.model);
    return ERR_OK;
}

/* ---- the end ---- */

void deployment_stop_engines(struct deployment *d)
{
    for (uint32_t i = 0; i < d->n_engines; i++)
        engine_destroy(&d->engines[i]);
    d->n_engines = 0;
}

void deployment_close(struct deployment *d)
{
    metrics_destroy(&d->metrics);
    chat_template_destroy(&d->tmpl);
    chat_template_destroy(&d->tool_tmpl);
    tokenizer_destroy(&d->tok);
    vocab_destroy(&d->vocab);
    gguf_close(&d->gguf);
    free(d->tmpl_error);
    struct token_pieces *pieces = atomic_load(&d->pieces);
    token_pieces_destroy(&pieces);
    free(d->bos_text);
    free(d->eos_text);
    buf_deinit(&d->template_text);
    free(d->names_text);
    options_deinit(&d->own);
}

/* ---- asked by requests ---- */

uint32_t deployment_ctx(const struct deployment *d)
{
    uint32_t ctx = 0;
    for (uint32_t i = 0; i < d->n_engines; i++) {
        uint32_t c = atomic_load(&engine_snapshot(d->engines[i])->ctx);
        if (c && (ctx == 0 || c < ctx))
            ctx = c;
    }
    if (ctx == 0 && d->opts->ctx > 0 && d->opts->ctx < d->hp.ctx_train)
        ctx = (uint32_t)d->opts->ctx;
    return ctx ? ctx : d->hp.ctx_train;
}

struct deployment *deployment_find(struct deployment *list, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < list[i].n_names; k++)
            if (strcmp(list[i].names[k], name) == 0)
                return &list[i];
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(list[i].stem, name) == 0)
            return &list[i];
    return n && strcmp(name, "default") == 0 ? &list[0] : NULL;
}

void deployment_list(const struct deployment *list, uint32_t n, char *out, size_t cap)
{
    size_t len = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < list[i].n_names && len < cap; k++)
            len += (size_t)snprintf(out + len, cap - len, "%s`%.100s`", i || k ? ", " : "", list[i].names[k]);
}
