/* racklm-render TEMPLATE [--now UNIX] < contexts: renders the template file once for each line of standard input, a
 * JSON object, and prints one JSON line for each: {"text": ...} or {"error": ...}. For comparisons with jinja2.
 * racklm-render --serve [--now UNIX]: each line is {"template": "...", "contexts": [...]} and gives one line with a list of
 * such results, or {"error": ...} when the template is refused; it stays until its input ends. */
#include "base/buf.h"
#include "text/chat_template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(struct buf *line, const char *key, const char *s, size_t len)
{
    buf_printf(line, "{\"%s\": ", key);
    buf_json_str(line, s == NULL ? "" : s, len);
    buf_puts(line, "}");
}

static void render(struct buf *line, const struct chat_template *t, const json_t *ctx, time_t now)
{
    struct buf out;
    buf_init(&out);
    if (chat_template_render_at(t, ctx, now, &out) != ERR_OK)
        put(line, "error", err_detail(), strlen(err_detail()));
    else
        put(line, "text", out.data, out.len);
    buf_deinit(&out);
}

static void serve(struct buf *line, const json_t *request, time_t now)
{
    const json_t *source = json_object_get(request, "template"), *contexts = json_object_get(request, "contexts");
    struct chat_template *t = NULL;
    if (chat_template_create(json_string_value(source), json_string_length(source), &t) != ERR_OK) {
        put(line, "error", err_detail(), strlen(err_detail()));
        return;
    }
    buf_puts(line, "[");
    for (size_t i = 0; i < json_array_size(contexts); i++) {
        buf_puts(line, i > 0 ? ", " : "");
        render(line, t, json_array_get(contexts, i), now);
    }
    buf_puts(line, "]");
    chat_template_destroy(&t);
}

int main(int argc, char **argv)
{
    struct buf src, out;
    struct chat_template *t = NULL;
    char *line = NULL;
    size_t cap = 0;
    time_t now = argc == 4 && strcmp(argv[2], "--now") == 0 ? (time_t)strtoll(argv[3], NULL, 10) : time(NULL);
    if (argc != 2 && argc != 4) {
        fprintf(stderr, "usage: racklm-render TEMPLATE|--serve [--now UNIX] < contexts\n");
        return 2;
    }
    buf_init(&src);
    buf_init(&out);
    bool serving = strcmp(argv[1], "--serve") == 0;
    if (!serving && (buf_read_file(&src, argv[1], 1 << 24) != ERR_OK ||
                     chat_template_create(src.data == NULL ? "" : src.data, src.len, &t) != ERR_OK)) {
        fprintf(stderr, "racklm-render: %s\n", err_detail());
        return 1;
    }
    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0;) {
        json_error_t je;
        json_t *in = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, &je);
        buf_clear(&out);
        if (in == NULL)
            put(&out, "error", je.text, strlen(je.text));
        else if (serving)
            serve(&out, in, now);
        else
            render(&out, t, in, now);
        buf_puts(&out, "\n");
        fwrite(out.data, 1, out.len, stdout);
        fflush(stdout);
        json_decref(in);
    }
    free(line);
    chat_template_destroy(&t);
    buf_deinit(&src);
    buf_deinit(&out);
    return 0;
}
