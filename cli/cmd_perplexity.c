/* racklm perplexity: the text is tokenised whole without special tokens, cut into windows (what is left at the end is dropped), each run alone
 * after one BOS; exp of the mean negative log-likelihood of all of its ids. The log-probabilities come from the same steps that serve. */
#include "base/check.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/local.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum err post(const struct local *l, const char *path, const struct buf *body, json_t **out)
{
    struct client_request q;
    enum err e = client_request_init(&q, l->url, path, l->opts->api_key, body, NULL, NULL);
    if (e == ERR_OK)
        e = client_request_run(&q);
    *out = e == ERR_OK ? json_loadb(q.reply.data ? q.reply.data : "", q.reply.len, 0, NULL) : NULL;
    if (e == ERR_OK && !*out)
        e = err_set(ERR_PROTOCOL, "the server's answer is no JSON");
    client_request_deinit(&q);
    return e;
}

static enum err tokenize(const struct local *l, const char *text, size_t len, json_t **ids)
{
    struct buf b;
    buf_init(&b);
    buf_puts(&b, "{\"add_special_tokens\":false,\"parse_special\":false,\"prompt\":");
    buf_json_str(&b, text, len);
    buf_putc(&b, '}');
    json_t *o = NULL;
    enum err e = post(l, "/tokenize", &b, &o);
    *ids = json_incref(json_object_get(o, "tokens"));
    json_decref(o);
    buf_deinit(&b);
    return e;
}

static enum err window(const struct local *l, const json_t *ids, size_t first, size_t n, long long bos, double *nll)
{
    struct buf b;
    buf_init(&b);
    buf_puts(&b, "{\"echo\":true,\"logprobs\":0,\"max_tokens\":0,\"prompt\":[");
    if (bos >= 0)
        buf_printf(&b, "%lld,", bos);
    for (size_t i = 0; i < n; i++)
        buf_printf(&b, i ? ",%lld" : "%lld", (long long)json_integer_value(json_array_get(ids, first + i)));
    buf_puts(&b, "]}");
    json_t *o = NULL;
    enum err e = post(l, "/v1/completions", &b, &o);
    buf_deinit(&b);
    if (e != ERR_OK)
        return e;
    const json_t *lp = json_object_get(json_object_get(json_array_get(json_object_get(o, "choices"), 0), "logprobs"), "token_logprobs");
    if (json_array_size(lp) != n + (bos >= 0))
        e = err_set(ERR_PROTOCOL, "the server gave %zu log-probabilities for %zu tokens", json_array_size(lp), n + (bos >= 0));
    for (size_t i = 1; e == ERR_OK && i < json_array_size(lp); i++)
        *nll -= json_number_value(json_array_get(lp, i));
    json_decref(o);
    return e;
}

/* BOS is what the tokenizer puts before an empty text; a model without one scores from the second token of a window on. */
static enum err find_bos(const struct local *l, long long *bos)
{
    struct buf b;
    buf_init(&b);
    buf_puts(&b, "{\"prompt\":\"\"}");
    json_t *o = NULL;
    enum err e = post(l, "/tokenize", &b, &o);
    const json_t *t = json_object_get(o, "tokens");
    *bos = json_array_size(t) ? json_integer_value(json_array_get(t, 0)) : -1;
    json_decref(o);
    buf_deinit(&b);
    return e;
}

static enum err measure(const struct local *l, const struct buf *text, long size, double *ppl, size_t *n_windows, size_t *n_scored)
{
    json_t *ids = NULL;
    long long bos;
    double nll = 0;
    enum err e = find_bos(l, &bos);
    if (e == ERR_OK)
        e = tokenize(l, text->data ? text->data : "", text->len, &ids);
    size_t n = size > 0 ? (size_t)size : MIN(511u, l->served[0].ctx - 1);
    *n_windows = e == ERR_OK ? json_array_size(ids) / n : 0;
    if (e == ERR_OK && *n_windows == 0)
        e = err_set(ERR_INVALID, "the text has %zu tokens, a window needs %zu", json_array_size(ids), n);
    for (size_t w = 0; w < *n_windows && e == ERR_OK; w++) {
        e = window(l, ids, w * n, n, bos, &nll);
        cli_progress("perplexity", (double)(w + 1) / (double)*n_windows);
    }
    cli_progress_end();
    *n_scored = *n_windows * (n - (bos >= 0 ? 0 : 1));
    *ppl = exp(nll / (double)MAX(*n_scored, (size_t)1));
    json_decref(ids);
    return e;
}

int cmd_perplexity(struct options *o, int argc, char **argv)
{
    const char *size_text = NULL, *output = "table";
    const struct cli_flag flags[] = {{"--window", NULL, &size_text, NULL}, {"--output", "-o", &output, NULL}};
    if (!cli_flags("perplexity", flags, ARRAY_LEN(flags), o, OPTION_SERVE, &argc, argv))
        return CLI_USAGE;
    bool json;
    if (!cli_output("perplexity", output, &json))
        return CLI_USAGE;
    long size = 0;
    if (size_text && cli_numbers("perplexity", "--window", size_text, 2, &size, 1) != 1)
        return CLI_USAGE;
    if (argc != 3)
        return cli_usage("perplexity", "name a GGUF file and a text file");
    struct buf text;
    buf_init(&text);
    struct local l;
    enum err e = buf_read_file(&text, argv[2], 256 << 20);
    if (e == ERR_OK)
        e = local_start(o, &argv[1], 1, true, &l);
    if (e != ERR_OK) {
        buf_deinit(&text);
        return cli_fail_err("perplexity", e);
    }
    double ppl = 0;
    size_t n_windows = 0, n_scored = 0;
    e = measure(&l, &text, size, &ppl, &n_windows, &n_scored);
    if (e == ERR_OK && json)
        printf("{\"perplexity\":%.6f,\"windows\":%zu,\"tokens\":%zu}\n", ppl, n_windows, n_scored);
    else if (e == ERR_OK)
        printf("perplexity %.4f  (%zu tokens in %zu windows)\n", ppl, n_scored, n_windows);
    int rc = e == ERR_OK ? CLI_OK : cli_fail_err("perplexity", e);
    local_stop(&l);
    buf_deinit(&text);
    return rc;
}
