/* racklm-render TEMPLATE [--now UNIX] < contexts: renders the template file once for each line of standard input, a
 * JSON object, and prints one JSON line for each: {"text": ...} or {"error": ...}. For comparisons with jinja2. */
#include "base/buf.h"
#include "coordinator/chat_template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_line(const char *key, const char *s, size_t len)
{
    struct buf line;
    buf_init(&line);
    buf_printf(&line, "{\"%s\": ", key);
    buf_json_str(&line, s, len);
    buf_puts(&line, "}\n");
    fwrite(line.data, 1, line.len, stdout);
    buf_deinit(&line);
}

int main(int argc, char **argv)
{
    struct buf src, out;
    struct chat_template *t = NULL;
    char *line = NULL;
    size_t cap = 0;
    time_t now = argc == 4 && strcmp(argv[2], "--now") == 0 ? (time_t)strtoll(argv[3], NULL, 10) : time(NULL);
    if (argc != 2 && argc != 4) {
        fprintf(stderr, "usage: racklm-render TEMPLATE [--now UNIX] < contexts\n");
        return 2;
    }
    buf_init(&src);
    buf_init(&out);
    if (buf_read_file(&src, argv[1], 1 << 24) != ERR_OK ||
        chat_template_create(src.data == NULL ? "" : src.data, src.len, &t) != ERR_OK) {
        fprintf(stderr, "racklm-render: %s\n", err_detail());
        return 1;
    }
    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0;) {
        json_error_t je;
        json_t *ctx = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, &je);
        buf_clear(&out);
        if (ctx == NULL)
            print_line("error", je.text, strlen(je.text));
        else if (chat_template_render_at(t, ctx, now, &out) != ERR_OK)
            print_line("error", err_detail(), strlen(err_detail()));
        else
            print_line("text", out.data == NULL ? "" : out.data, out.len);
        json_decref(ctx);
    }
    free(line);
    chat_template_destroy(&t);
    buf_deinit(&src);
    buf_deinit(&out);
    return 0;
}
