/* racklm run: one prompt or a chat, with a server of its own or (--url) one that runs. Tokens are printed as they come. */
#include "base/check.h"
#include "base/clock.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/local.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct run {
    const char *url, *api_key;
    uint32_t ctx;      /* 0: not known */
    const char *system, *max_tokens, *temperature, *top_p, *top_k, *min_p, *seed;
    bool raw, stats, failed; /* failed: the stream said why, err_detail() has it */
    json_t *messages;
    /* of the answer that is being printed */
    struct buf answer;
    uint64_t start_ns, first_ns, last_ns;
    long long prompt_tokens, completion_tokens;
};

static bool on_event(void *arg, const char *json, size_t len)
{
    struct run *r = arg;
    json_t *o = json_loadb(json, len, 0, NULL);
    const json_t *err = json_object_get(o, "error"), *usage = json_object_get(o, "usage");
    const json_t *c = json_array_get(json_object_get(o, "choices"), 0);
    const json_t *text = r->raw ? json_object_get(c, "text") : json_object_get(json_object_get(c, "delta"), "content");
    const char *message = json_string_value(json_object_get(err, "message"));
    if (err) {
        r->failed = true;
        err_set(ERR_UNAVAILABLE, "%s", message ? message : "the server ended the answer with an error");
    }
    if (json_is_object(usage)) {
        r->prompt_tokens = json_integer_value(json_object_get(usage, "prompt_tokens"));
        r->completion_tokens = json_integer_value(json_object_get(usage, "completion_tokens"));
    }
    if (json_string_length(text)) {
        r->last_ns = clock_ns();
        if (r->first_ns == 0)
            r->first_ns = r->last_ns;
        fwrite(json_string_value(text), 1, json_string_length(text), stdout);
        fflush(stdout);
        buf_append(&r->answer, json_string_value(text), json_string_length(text));
    }
    json_decref(o);
    return !r->failed && !ferror(stdout); /* nobody reads on: nothing is worth computing */
}

/* A number of the command line, as it is; the server checks it. */
static void put_number(struct buf *b, const char *key, const char *v)
{
    if (v)
        buf_printf(b, ",\"%s\":%s", key, v);
}

static bool is_number(const char *s)
{
    char *end;
    return !s || (strtod(s, &end), *s && *end == '\0' && strspn(s, "0123456789+-.eE") == strlen(s));
}

static enum err answer(struct run *r, const char *prompt, size_t len)
{
    struct buf b;
    buf_init(&b);
    buf_puts(&b, "{\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    put_number(&b, "temperature", r->temperature);
    put_number(&b, "top_p", r->top_p);
    put_number(&b, "top_k", r->top_k);
    put_number(&b, "min_p", r->min_p);
    put_number(&b, "seed", r->seed);
    if (r->raw) {
        char room[24];
        snprintf(room, sizeof(room), "%u", r->ctx ? r->ctx : 512);
        put_number(&b, "max_tokens", r->max_tokens ? r->max_tokens : room);
        buf_puts(&b, ",\"prompt\":");
        buf_json_str(&b, prompt, len);
    } else {
        put_number(&b, "max_tokens", r->max_tokens);
        json_array_append_new(r->messages, json_pack("{s:s, s:s%}", "role", "user", "content", prompt, len));
        char *m = json_dumps(r->messages, JSON_COMPACT);
        buf_puts(&b, ",\"messages\":");
        buf_puts(&b, m ? m : "[]");
        free(m);
    }
    buf_putc(&b, '}');
    buf_clear(&r->answer);
    r->first_ns = r->last_ns = 0;
    r->start_ns = clock_ns();
    struct client_request q;
    enum err e = client_request_init(&q, r->url, r->raw ? "/v1/completions" : "/v1/chat/completions", r->api_key, &b, on_event, r);
    if (e == ERR_OK)
        e = client_request_run(&q);
    if (e == ERR_OK && !q.done && r->failed)
        e = ERR_UNAVAILABLE;
    else if (e == ERR_OK && !q.done)
        e = err_set(ERR_UNAVAILABLE, ferror(stdout) ? "cannot write the answer" : "the answer ended early");
    client_request_deinit(&q);
    buf_deinit(&b);
    if (!r->raw)
        json_array_append_new(r->messages, json_pack("{s:s, s:s%}", "role", "assistant", "content", r->answer.data ? r->answer.data : "", r->answer.len));
    return e;
}

static void print_stats(const struct run *r)
{
    double prefill = (double)(r->first_ns - r->start_ns) / 1e9, decode = (double)(r->last_ns - r->first_ns) / 1e9;
    if (!r->first_ns)
        return;
    fprintf(stderr, "prompt %lld tokens in %.2f s (%.1f tokens/s), answer %lld tokens in %.2f s (%.1f tokens/s)\n", r->prompt_tokens, prefill,
            prefill > 0 ? (double)r->prompt_tokens / prefill : 0, r->completion_tokens, prefill + decode,
            decode > 0 ? (double)(r->completion_tokens - 1) / decode : 0);
}

static void reset_messages(struct run *r)
{
    json_decref(r->messages);
    r->messages = json_array();
    if (r->system)
        json_array_append_new(r->messages, json_pack("{s:s, s:s}", "role", "system", "content", r->system));
}

static enum err chat(struct run *r)
{
    fprintf(stderr, "Chat: an empty line or Ctrl-D ends, /clear forgets.\n");
    char *line = NULL;
    size_t cap = 0;
    enum err e = ERR_OK;
    for (;;) {
        fputs("> ", stdout);
        fflush(stdout);
        ssize_t n = getline(&line, &cap, stdin);
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            n--;
        if (n <= 0)
            break;
        if (n == 6 && memcmp(line, "/clear", 6) == 0) {
            reset_messages(r);
            continue;
        }
        e = answer(r, line, (size_t)n);
        putchar('\n');
        if (e != ERR_OK)
            break;
        if (r->stats)
            print_stats(r);
    }
    free(line);
    return e;
}

static enum err read_stdin(struct buf *b)
{
    char chunk[65536];
    size_t n;
    while ((n = fread(chunk, 1, sizeof(chunk), stdin)) > 0)
        buf_append(b, chunk, n);
    while (b->len && b->data[b->len - 1] == '\n')
        b->data[--b->len] = '\0';
    return b->failed ? err_set(ERR_NOMEM, "no memory for the prompt") : ERR_OK;
}

int cmd_run(struct options *o, int argc, char **argv)
{
    struct run r = {0};
    const struct cli_flag flags[] = {
        {"--raw", NULL, NULL, &r.raw},          {"--stats", NULL, NULL, &r.stats},          {"--system", NULL, &r.system, NULL},
        {"--max-tokens", "-n", &r.max_tokens, NULL}, {"--temperature", NULL, &r.temperature, NULL}, {"--top-p", NULL, &r.top_p, NULL},
        {"--url", NULL, &r.url, NULL},
        {"--top-k", NULL, &r.top_k, NULL},      {"--min-p", NULL, &r.min_p, NULL},          {"--seed", NULL, &r.seed, NULL},
    };
    if (!cli_flags("run", flags, ARRAY_LEN(flags), o, OPTION_SERVE, &argc, argv))
        return CLI_USAGE;
    int n_args = argc - 1 - (r.url ? 0 : 1); /* beside the model */
    if (n_args < 0 || n_args > 1)
        return cli_usage("run", n_args < 0 ? "which model? name a GGUF file (or a server with --url)" : "one prompt at a time; put it in quotes");
    const char *const numbers[] = {r.max_tokens, r.temperature, r.top_p, r.top_k, r.min_p, r.seed};
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
        if (!is_number(numbers[i]))
            return cli_usage("run", "\"%s\" is no number", numbers[i]);
    struct buf prompt;
    buf_init(&prompt);
    bool interactive = n_args == 0 && isatty(0);
    enum err e = ERR_OK;
    if (n_args)
        buf_puts(&prompt, argv[argc - 1]);
    else if (!interactive)
        e = read_stdin(&prompt);
    if (e == ERR_OK && !interactive && prompt.len == 0) {
        buf_deinit(&prompt);
        return cli_usage("run", "no prompt: neither as an argument nor on standard input");
    }
    if (e == ERR_OK && r.url)
        e = local_client_key(o);
    struct local l;
    bool own = e == ERR_OK && !r.url;
    if (own)
        e = local_start(o, &argv[1], 1, true, &l);
    if (e != ERR_OK) {
        buf_deinit(&prompt);
        return cli_fail_err("run", e);
    }
    if (own) {
        r.url = l.url;
        r.ctx = l.served[0].ctx;
    }
    r.api_key = o->api_key;
    buf_init(&r.answer);
    reset_messages(&r);
    if (interactive) {
        e = chat(&r);
    } else {
        e = answer(&r, prompt.data ? prompt.data : "", prompt.len);
        putchar('\n');
        if (e == ERR_OK && r.stats)
            print_stats(&r);
    }
    int rc = e == ERR_OK ? CLI_OK : cli_fail_err("run", e);
    if (own)
        local_stop(&l);
    json_decref(r.messages);
    buf_deinit(&r.answer);
    buf_deinit(&prompt);
    return rc;
}
