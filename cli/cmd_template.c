/* `racklm template`: renders a chat template with the variables of a JSON file, as the server would: what a model is really told. */
#include "base/check.h"
#include "cli/cli.h"
#include "text/chat_template.h"
#include "text/template_file.h"
#include "model/gguf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The template of a model file, copied; the one named tool_use where there is one and tools are shown, as the server does. */
static enum err from_gguf(const char *path, bool tools, struct buf *out)
{
    struct gguf *g = NULL;
    struct gguf_str t = {0};
    enum err e = gguf_open(path, &g);
    if (e != ERR_OK)
        return e;
    buf_init(out);
    bool found = tools && gguf_get_str(g, "tokenizer.chat_template.tool_use", &t) && t.len;
    if (found || (gguf_get_str(g, "tokenizer.chat_template", &t) && t.len))
        buf_append(out, t.s, t.len);
    else
        e = err_set(ERR_NOT_FOUND, "%s has no chat template", path);
    gguf_close(&g);
    return e;
}

static bool is_gguf(const char *path)
{
    char magic[4] = {0};
    FILE *f = fopen(path, "rb");
    bool yes = f && fread(magic, 1, sizeof(magic), f) == sizeof(magic) && memcmp(magic, "GGUF", 4) == 0;
    if (f)
        fclose(f);
    return yes;
}

/* path "-": standard input. */
static enum err read_context(const char *path, json_t **out)
{
    json_error_t at;
    *out = strcmp(path, "-") == 0 ? json_loadf(stdin, JSON_ALLOW_NUL, &at) : json_load_file(path, JSON_ALLOW_NUL, &at);
    if (!*out)
        return err_set(at.line < 0 ? ERR_NOT_FOUND : ERR_INVALID, "%s: %s (line %d)", path, at.text, at.line);
    return json_is_object(*out) ? ERR_OK : err_set(ERR_INVALID, "%s: the context must be a JSON object", path);
}

static enum err render(const char *path, const char *context, time_t now, struct buf *out)
{
    struct buf source;
    struct chat_template *t = NULL;
    json_t *ctx = NULL;
    buf_init(&source);
    enum err e = read_context(context, &ctx);
    bool tools = e == ERR_OK && json_object_get(ctx, "tools") != NULL && !json_is_null(json_object_get(ctx, "tools"));
    if (e == ERR_OK && is_gguf(path))
        e = from_gguf(path, tools, &source);
    else if (e == ERR_OK && (!tools || template_file_read_named(path, "tool_use", &source) != ERR_OK))
        e = template_file_read(path, &source);
    if (e == ERR_OK)
        e = chat_template_create(source.data ? source.data : "", source.len, &t);
    if (e == ERR_OK)
        e = chat_template_render_at(t, ctx, now, out);
    json_decref(ctx);
    chat_template_destroy(&t);
    buf_deinit(&source);
    return e;
}

int cmd_template(struct options *o, int argc, char **argv)
{
    const char *context = NULL, *time_text = NULL;
    char *end = NULL;
    const struct cli_flag flags[] = {{"--context", NULL, &context, NULL}, {"--now", NULL, &time_text, NULL}};
    if (!cli_flags("template", flags, ARRAY_LEN(flags), o, 0, &argc, argv))
        return CLI_USAGE;
    if (argc != 2 || !context)
        return cli_usage("template", "name one template or model file, and the variables with --context");
    errno = 0;
    long long now = time_text ? strtoll(time_text, &end, 10) : (long long)time(NULL);
    if (time_text && (errno != 0 || end == time_text || *end))
        return cli_usage("template", "--now takes seconds since 1970, not \"%s\"", time_text);
    struct buf out;
    buf_init(&out);
    enum err e = render(argv[1], context, (time_t)now, &out);
    if (e == ERR_OK && out.len > 0 && (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout) != 0))
        e = err_set(ERR_IO, "cannot write standard output: %s", strerror(errno));
    buf_deinit(&out);
    return e == ERR_OK ? CLI_OK : cli_fail_err("template", e);
}
