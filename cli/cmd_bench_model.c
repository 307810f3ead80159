/* racklm bench model: prompt and generation speed of one model on this machine, as its users get it (through the API of a server of its own),
 * against what the machine was measured to reach in the same run. Generation reads every weight once a token, so its ceiling is bandwidth / bytes; a prompt's is the
 * rate of dot products. */
#include "base/ceiling.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/local.h"
#include "model/describe.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { REPS_MAX = 32, TESTS_MAX = 16 };

struct sample {
    uint64_t start_ns, first_ns, last_ns;
    long long n;
};

static bool on_event(void *arg, const char *json, size_t len)
{
    struct sample *s = arg;
    uint64_t now = clock_ns();
    json_t *o = json_loadb(json, len, 0, NULL);
    const json_t *usage = json_object_get(o, "usage");
    if (json_is_object(usage))
        s->n = json_integer_value(json_object_get(usage, "completion_tokens"));
    if (json_array_size(json_object_get(o, "choices"))) {
        if (!s->first_ns)
            s->first_ns = now;
        s->last_ns = now;
    }
    json_decref(o);
    return true;
}

/* n_prompt random ids in, n_gen tokens out. */
static enum err run_once(const struct local *l, uint32_t vocab, long n_prompt, long n_gen, uint32_t salt, struct sample *s)
{
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "{\"stream\":true,\"stream_options\":{\"include_usage\":true},\"temperature\":0,\"ignore_eos\":true,\"return_token_ids\":true,"
                   "\"max_tokens\":%ld,\"prompt\":[", n_gen);
    for (long i = 0; i < n_prompt; i++)
        buf_printf(&b, i ? ",%u" : "%u", (unsigned)(rng_uniform(salt, 1, (uint32_t)i) * vocab));
    buf_puts(&b, "]}");
    memset(s, 0, sizeof(*s));
    struct client_request q;
    enum err e = client_request_init(&q, l->url, "/v1/completions", l->opts->api_key, &b, on_event, s);
    s->start_ns = clock_ns();
    if (e == ERR_OK)
        e = client_request_run(&q);
    client_request_deinit(&q);
    buf_deinit(&b);
    return e;
}

static int cmp_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, unsigned n)
{
    qsort(v, n, sizeof(*v), cmp_double);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

struct bench {
    struct local l;
    struct gguf *g;
    struct hparams hp;
    uint64_t weights_bytes;  /* of the file's tensors, a tied head once */
    double flops_layers, flops_head; /* of a token's matrices; of a prompt only the last token needs the head */
    double ceiling_gbs, dot_gops[CEILING_DOTS];
    enum ceiling_dot dot;    /* what most of the weights are multiplied by */
    unsigned reps, threads;
};

static void count_flops(struct bench *b)
{
    const char *head = b->hp.tied_embeddings ? "token_embd.weight" : "output.weight";
    for (uint64_t i = 0; i < b->g->n_tensors; i++) {
        const struct gguf_tensor *t = &b->g->tensors[i];
        double flops = t->n_dims == 2 ? 2 * (double)t->ne[0] * (double)t->ne[1] : 0;
        if (strcmp(t->name, head) == 0)
            b->flops_head = flops;
        else if (strcmp(t->name, "token_embd.weight") != 0)
            b->flops_layers += flops;
    }
}

/* CPU kernels multiply quantised weights as bytes, all others in fp32. */
static enum ceiling_dot dot_of(const struct gguf *g)
{
    double by[2] = {0};
    for (uint64_t i = 0; i < g->n_tensors; i++)
        by[quant_traits[g->tensors[i].type].act == QUANT_ACT_Q8] += (double)g->tensors[i].bytes;
    return by[1] > by[0] ? CEILING_INT8 : CEILING_FP32;
}

/* Tokens a second; prompt: n tokens until the first comes back. */
static enum err measure(struct bench *b, bool prompt, long n, double *out)
{
    double v[REPS_MAX];
    for (unsigned r = 0; r < b->reps; r++) {
        struct sample s;
        TRY(run_once(&b->l, b->hp.vocab, prompt ? n : 1, prompt ? 1 : n, r + 1, &s));
        if (!s.first_ns || (!prompt && s.n < 2))
            return err_set(ERR_PROTOCOL, "the server gave no tokens");
        v[r] = prompt ? (double)n / ((double)(s.first_ns - s.start_ns) / 1e9) : (double)(s.n - 1) / ((double)(s.last_ns - s.first_ns) / 1e9);
    }
    *out = median(v, b->reps);
    return ERR_OK;
}

static enum err run_tests(struct bench *b, const long *p, unsigned n_p, const long *n, unsigned n_n, bool json)
{
    static const char *const heads[] = {"TEST", "TOKENS/S", "GB/S", "OF READ", "GFLOP/S", "OF DOT"}, *const dots[] = {"int8", "bf16", "fp32"};
    struct cli_table *t = cli_table_create(6, heads, "lrrrrr");
    struct sample warm;
    enum err e = run_once(&b->l, b->hp.vocab, 32, 8, 99, &warm);
    if (json)
        printf("{\"read_gbs\":%.2f,\"int8_gops\":%.1f,\"bf16_gops\":%.1f,\"fp32_gops\":%.1f,\"threads\":%u,\"tp\":%u,\"pp\":%u,\"weights_bytes\":%llu,\"tests\":[",
               b->ceiling_gbs, b->dot_gops[CEILING_INT8], b->dot_gops[CEILING_BF16], b->dot_gops[CEILING_FP32], b->threads, b->l.served[0].tp, b->l.served[0].pp, (unsigned long long)b->weights_bytes);
    for (unsigned i = 0; i < n_p + n_n && e == ERR_OK; i++) {
        bool prompt = i < n_p;
        long k = prompt ? p[i] : n[i - n_p];
        double speed = 0;
        cli_progress(prompt ? "prompt" : "generation", (double)i / (n_p + n_n));
        e = measure(b, prompt, k, &speed);
        if (e != ERR_OK)
            break;
        double gbs = prompt ? 0 : speed * (double)b->weights_bytes / 1e9, gflops = speed * (b->flops_layers + b->flops_head / (prompt ? (double)k : 1)) / 1e9;
        char c[6][32];
        snprintf(c[0], 32, "%s %ld", prompt ? "prompt" : "generate", k);
        snprintf(c[1], 32, "%.1f", speed);
        c[2][0] = c[3][0] = c[5][0] = '\0';
        double dot = b->dot_gops[b->dot];
        if (prompt && dot > 0)
            snprintf(c[5], 32, "%.0f%% of %s", 100 * gflops / dot, dots[b->dot]);
        if (!prompt) {
            snprintf(c[2], 32, "%.1f", gbs);
            snprintf(c[3], 32, "%.0f%%", 100 * gbs / b->ceiling_gbs);
        }
        snprintf(c[4], 32, "%.0f", gflops);
        if (json)
            printf("%s{\"test\":\"%s\",\"tokens\":%ld,\"tokens_per_s\":%.3f,\"gbs\":%.3f,\"read_share\":%.4f,\"gflops\":%.2f,\"dot_share\":%.4f}", i ? "," : "",
                   prompt ? "prompt" : "generate", k, speed, gbs, gbs / b->ceiling_gbs, gflops, dot > 0 ? gflops / dot : 0);
        cli_table_row(t, c[0], c[1], c[2], c[3], c[4], c[5]);
    }
    cli_progress_end();
    if (json) {
        puts("]}");
        return e;
    }
    char w[16];
    printf("ceilings with %u threads: read %.1f GB/s, int8 %.0f, bf16 %.0f, fp32 %.0f GOP/s; weights %s; tp %u, pp %u\n", b->threads, b->ceiling_gbs,
           b->dot_gops[CEILING_INT8], b->dot_gops[CEILING_BF16], b->dot_gops[CEILING_FP32], cli_bytes(b->weights_bytes, w), b->l.served[0].tp,
           b->l.served[0].pp);
    cli_table_print(&t);
    return e;
}

int cmd_bench_model(struct options *o, int argc, char **argv)
{
    const char *p_text = "512", *n_text = "64", *r_text = "3", *output = "table";
    const struct cli_flag flags[] = {{"--prompt", "-p", &p_text, NULL}, {"--generate", "-n", &n_text, NULL}, {"--reps", "-r", &r_text, NULL},
                                     {"--output", "-o", &output, NULL}};
    if (!cli_flags("bench model", flags, ARRAY_LEN(flags), o, OPTION_SERVE, &argc, argv))
        return CLI_USAGE;
    bool json;
    if (!cli_output("bench model", output, &json))
        return CLI_USAGE;
    if (argc != 2)
        return cli_usage("bench model", "name one GGUF file");
    long p[TESTS_MAX], n[TESTS_MAX], reps;
    unsigned n_p = cli_numbers("bench model", "-p", p_text, 1, p, TESTS_MAX), n_n = cli_numbers("bench model", "-n", n_text, 2, n, TESTS_MAX);
    if (!n_p || !n_n || cli_numbers("bench model", "-r", r_text, 1, &reps, 1) != 1)
        return CLI_USAGE;
    struct bench b = {.reps = (unsigned)MIN(reps, REPS_MAX)};
    enum err e = gguf_open(argv[1], &b.g);
    if (e != ERR_OK)
        return cli_fail_err("bench model", e);
    if (hparams_load(b.g, &b.hp) != ERR_OK) {
        gguf_close(&b.g);
        return cli_fail("bench model", "%s: %s", argv[1], err_detail());
    }
    struct describe d;
    describe_file(b.g, &b.hp, &d);
    b.weights_bytes = d.weights_bytes;
    const struct gguf_tensor *embd = gguf_tensor(b.g, "token_embd.weight");
    if (!b.hp.tied_embeddings && embd)
        b.weights_bytes -= embd->bytes; /* of an untied embedding a token reads one row */
    count_flops(&b);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t workers = o->tp * o->pp * o->replicas;
    b.threads = (unsigned)MIN(o->threads ? o->threads * workers : cores, cores);
    cli_progress("the machine's ceilings", -1);
    b.ceiling_gbs = ceiling_read_gbs(b.threads, (size_t)1 << 30);
    for (int i = 0; i < CEILING_DOTS; i++)
        b.dot_gops[i] = ceiling_dot_gops((enum ceiling_dot)i, b.threads);
    b.dot = dot_of(b.g);
    e = local_start(o, &argv[1], 1, true, &b.l);
    if (e == ERR_OK) {
        e = run_tests(&b, p, n_p, n, n_n, json);
        local_stop(&b.l);
    }
    gguf_close(&b.g);
    return e == ERR_OK ? CLI_OK : cli_fail_err("bench model", e);
}
