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
#include "model/shard.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { REPS_MAX = 32, TESTS_MAX = 16, SEQS_MAX = 64 };

/* One of the sequences that run together. */
struct sample {
    struct client_request req;
    uint64_t start_ns;
    struct buf at; /* uint64_t, when each token came */
};

static size_t n_of(const struct sample *s)
{
    return s->at.len / sizeof(uint64_t);
}
static uint64_t at_of(const struct sample *s, size_t i)
{
    return ((const uint64_t *)(const void *)s->at.data)[i];
}

static bool on_event(void *arg, const char *json, size_t len)
{
    struct sample *s = arg;
    uint64_t now = clock_ns();
    json_t *o = json_loadb(json, len, 0, NULL);
    const json_t *choice = json_array_get(json_object_get(o, "choices"), 0);
    for (size_t i = json_array_size(json_object_get(choice, "token_ids")); i > 0; i--)
        buf_append(&s->at, &now, sizeof(now));
    json_decref(o);
    return true;
}

static enum err start(const struct local *l, uint32_t vocab, long n_prompt, long n_gen, uint32_t salt, CURLM *multi, struct sample *s)
{
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "{\"stream\":true,\"temperature\":0,\"ignore_eos\":true,\"return_token_ids\":true,"
                   "\"max_tokens\":%ld,\"prompt\":[", n_gen);
    for (long i = 0; i < n_prompt; i++)
        buf_printf(&b, i ? ",%u" : "%u", (unsigned)(rng_uniform(salt, 1, (uint32_t)i) * vocab));
    buf_puts(&b, "]}");
    enum err e = client_request_init(&s->req, l->url, "/v1/completions", l->opts->api_key, &b, on_event, s);
    buf_deinit(&b);
    s->start_ns = clock_ns();
    return e == ERR_OK ? client_request_start(&s->req, multi) : e;
}

static enum err wait_all(CURLM *multi, long n)
{
    while (n > 0) {
        enum err e;
        for (; client_request_ended(multi, &e); n--)
            TRY(e);
        if (n > 0)
            curl_multi_poll(multi, NULL, 0, 1000, NULL);
    }
    return ERR_OK;
}

static void samples_deinit(struct sample *s, long n)
{
    for (long i = 0; i < n; i++)
        buf_deinit(&s[i].at);
}

/* n_seqs sequences together, each n_prompt random ids in, n_gen tokens out. The samples are the caller's, on failure too. */
static enum err run_once(const struct local *l, uint32_t vocab, long n_prompt, long n_gen, uint32_t salt, long n_seqs, struct sample *s)
{
    CURLM *multi = curl_multi_init();
    enum err e = multi ? ERR_OK : err_set(ERR_NOMEM, "libcurl does not start");
    long started = 0;
    memset(s, 0, (size_t)n_seqs * sizeof(*s));
    while (e == ERR_OK && started < n_seqs) {
        e = start(l, vocab, n_prompt, n_gen, salt * SEQS_MAX + (uint32_t)started, multi, &s[started]);
        started++;
    }
    if (e == ERR_OK)
        e = wait_all(multi, n_seqs);
    for (long i = 0; i < started; i++) {
        curl_multi_remove_handle(multi, s[i].req.curl);
        client_request_deinit(&s[i].req);
    }
    curl_multi_cleanup(multi);
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
    double kv_bytes;         /* of a position, all layers */
    double flops_layers, flops_head; /* of a token's matrices; of a prompt only the last token needs the head */
    double ceiling_gbs, dot_gops[CEILING_DOTS];
    enum ceiling_dot dot;    /* what most of the weights are multiplied by */
    unsigned reps, threads;
    long replicas;
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

struct test {
    bool prompt;
    long n, seqs, depth; /* tokens in (a prompt) or out, of each of seqs sequences, after depth tokens of context */
};

/* Tokens a second of sequences that all generate: from when the last of them began until the first ended. 0: there is no such time. */
static double together(const struct sample *s, long n_seqs)
{
    uint64_t begin = 0, end = UINT64_MAX;
    size_t n = 0;
    for (long i = 0; i < n_seqs; i++) {
        begin = MAX(begin, at_of(&s[i], 0));
        end = MIN(end, at_of(&s[i], n_of(&s[i]) - 1));
    }
    for (long i = 0; i < n_seqs; i++)
        for (size_t k = 0; k < n_of(&s[i]); k++)
            n += at_of(&s[i], k) > begin && at_of(&s[i], k) <= end;
    return end > begin ? (double)n / ((double)(end - begin) / 1e9) : 0;
}

/* Tokens a second; prompt: n tokens until the first comes back. */
static enum err measure(struct bench *b, const struct test *t, double *out)
{
    double v[REPS_MAX];
    struct sample s[SEQS_MAX];
    for (unsigned r = 0; r < b->reps; r++) {
        enum err e = run_once(&b->l, b->hp.vocab, t->prompt ? t->n : MAX(t->depth, 1), t->prompt ? 1 : t->n, r + 1, t->seqs, s);
        for (long i = 0; i < t->seqs && e == ERR_OK; i++)
            if (n_of(&s[i]) < (t->prompt ? 1 : 2))
                e = err_set(ERR_PROTOCOL, "the server gave no tokens");
        if (e == ERR_OK)
            v[r] = t->prompt ? (double)t->n / ((double)(at_of(&s[0], 0) - s[0].start_ns) / 1e9) : together(s, t->seqs);
        samples_deinit(s, t->seqs);
        TRY(e);
        if (v[r] <= 0)
            return err_set(ERR_INVALID, "%ld sequences after %ld tokens never ran together: the first had ended when the last began (more tokens: -n; fewer sequences: -c)", t->seqs,
                           t->depth);
    }
    *out = median(v, b->reps);
    return ERR_OK;
}

/* What a step of the test reads, for each token that it gives: the weights once a step of each replica, and the keys and values of its sequence. */
static double bytes_per_token(const struct bench *b, const struct test *t)
{
    return (double)b->weights_bytes * (double)MIN(t->seqs, b->replicas) / (double)t->seqs + b->kv_bytes * ((double)t->depth + (double)t->n / 2);
}

static const char *name_of(const struct test *t, char *out, size_t cap)
{
    int n = snprintf(out, cap, "%s %ld", t->prompt ? "prompt" : "generate", t->n);
    if (t->seqs > 1)
        n += snprintf(out + n, cap - (size_t)n, " x %ld", t->seqs);
    if (t->depth)
        snprintf(out + n, cap - (size_t)n, " at %ld", t->depth);
    return out;
}

static enum err run_tests(struct bench *b, const struct test *tests, unsigned n_tests, bool json)
{
    static const char *const heads[] = {"TEST", "TOKENS/S", "GB/S", "OF READ", "GFLOP/S", "OF DOT"}, *const dots[] = {"int8", "bf16", "fp32"};
    struct cli_table *table = cli_table_create(6, heads, "lrrrrr");
    struct sample warm;
    enum err e = run_once(&b->l, b->hp.vocab, 32, 8, 99, 1, &warm);
    samples_deinit(&warm, 1);
    double dot = b->dot_gops[b->dot];
    if (json)
        printf("{\"read_gbs\":%.2f,\"int8_gops\":%.1f,\"bf16_gops\":%.1f,\"fp32_gops\":%.1f,\"threads\":%u,\"tp\":%u,\"pp\":%u,\"weights_bytes\":%llu,\"tests\":[",
               b->ceiling_gbs, b->dot_gops[CEILING_INT8], b->dot_gops[CEILING_BF16], b->dot_gops[CEILING_FP32], b->threads, b->l.served[0].tp, b->l.served[0].pp, (unsigned long long)b->weights_bytes);
    for (unsigned i = 0; i < n_tests && e == ERR_OK; i++) {
        const struct test *t = &tests[i];
        double speed = 0;
        cli_progress(t->prompt ? "prompt" : "generation", (double)i / n_tests);
        e = measure(b, t, &speed);
        if (e != ERR_OK)
            break;
        double gbs = t->prompt ? 0 : speed * bytes_per_token(b, t) / 1e9, gflops = speed * (b->flops_layers + b->flops_head / (t->prompt ? (double)t->n : 1)) / 1e9;
        char c[6][48];
        name_of(t, c[0], sizeof(c[0]));
        snprintf(c[1], sizeof(c[1]), "%.1f", speed);
        c[2][0] = c[3][0] = c[5][0] = '\0';
        if ((t->prompt || t->seqs > 1) && dot > 0)
            snprintf(c[5], sizeof(c[5]), "%.0f%% of %s", 100 * gflops / dot, dots[b->dot]);
        if (!t->prompt) {
            snprintf(c[2], sizeof(c[2]), "%.1f", gbs);
            snprintf(c[3], sizeof(c[3]), "%.0f%%", 100 * gbs / b->ceiling_gbs);
        }
        snprintf(c[4], sizeof(c[4]), "%.0f", gflops);
        if (json)
            printf("%s{\"test\":\"%s\",\"tokens\":%ld,\"sequences\":%ld,\"depth\":%ld,\"tokens_per_s\":%.3f,\"gbs\":%.3f,\"read_share\":%.4f,\"gflops\":%.2f,\"dot_share\":%.4f}",
                   i ? "," : "", t->prompt ? "prompt" : "generate", t->n, t->seqs, t->depth, speed, gbs, gbs / b->ceiling_gbs, gflops, dot > 0 ? gflops / dot : 0);
        cli_table_row(table, c[0], c[1], c[2], c[3], c[4], c[5]);
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
    cli_table_print(&table);
    return e;
}

int cmd_bench_model(struct options *o, int argc, char **argv)
{
    const char *p_text = "512", *n_text = "64", *c_text = "1", *d_text = "0", *r_text = "3", *output = "table";
    const struct cli_flag flags[] = {{"--prompt", "-p", &p_text, NULL}, {"--generate", "-n", &n_text, NULL}, {"--concurrency", "-c", &c_text, NULL},
                                     {"--depth", "-d", &d_text, NULL},  {"--reps", "-r", &r_text, NULL},     {"--output", "-o", &output, NULL}};
    if (!cli_flags("bench model", flags, ARRAY_LEN(flags), o, OPTION_SERVE, &argc, argv))
        return CLI_USAGE;
    bool json;
    if (!cli_output("bench model", output, &json))
        return CLI_USAGE;
    if (argc != 2)
        return cli_usage("bench model", "name one GGUF file");
    long p[TESTS_MAX], n[TESTS_MAX], c[TESTS_MAX], d[TESTS_MAX], reps;
    unsigned n_p = cli_numbers("bench model", "-p", p_text, 0, p, TESTS_MAX), n_n = cli_numbers("bench model", "-n", n_text, 2, n, TESTS_MAX),
             n_c = cli_numbers("bench model", "-c", c_text, 1, c, TESTS_MAX), n_d = cli_numbers("bench model", "-d", d_text, 0, d, TESTS_MAX), n_tests = 0;
    if (!n_p || !n_n || !n_c || !n_d || cli_numbers("bench model", "-r", r_text, 1, &reps, 1) != 1)
        return CLI_USAGE;
    struct test tests[TESTS_MAX + TESTS_MAX * TESTS_MAX];
    for (unsigned i = 0; i < n_p; i++)
        if (p[i] > 0)
            tests[n_tests++] = (struct test){.prompt = true, .n = p[i], .seqs = 1};
    if (n_n * n_c * n_d > TESTS_MAX * TESTS_MAX)
        return cli_usage("bench model", "at most %d tests of generation", TESTS_MAX * TESTS_MAX);
    for (unsigned i = 0; i < n_n * n_c * n_d; i++) {
        tests[n_tests++] = (struct test){.n = n[i % n_n], .seqs = c[i / n_n % n_c], .depth = d[i / n_n / n_c]};
        if (c[i / n_n % n_c] > MIN(SEQS_MAX, o->max_seqs * o->replicas))
            return cli_usage("bench model", "-c: at most %lld sequences run together (--max-seqs)", (long long)MIN(SEQS_MAX, o->max_seqs * o->replicas));
    }
    struct bench b = {.reps = (unsigned)MIN(reps, REPS_MAX), .replicas = (long)o->replicas};
    enum err e = gguf_open(argv[1], &b.g);
    if (e != ERR_OK)
        return cli_fail_err("bench model", e);
    if (hparams_load(b.g, &b.hp) != ERR_OK) {
        gguf_close(&b.g);
        return cli_fail("bench model", "%s: %s", argv[1], err_detail());
    }
    struct describe file;
    describe_file(b.g, &b.hp, &file);
    b.weights_bytes = file.weights_bytes;
    const struct gguf_tensor *embd = gguf_tensor(b.g, "token_embd.weight");
    if (!b.hp.tied_embeddings && embd)
        b.weights_bytes -= embd->bytes; /* of an untied embedding a token reads one row */
    count_flops(&b);
    struct shard_split whole;
    if (shard_split_init(&b.hp, 1, 1, NULL, 0, NULL, 0, &whole) == ERR_OK)
        b.kv_bytes = (double)shard_kv_block_bytes(&b.hp, &whole, (enum kv_type)o->kv_type, 0, 0) / SHARD_KV_BLOCK;
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
        e = run_tests(&b, tests, n_tests, json);
        local_stop(&b.l);
    }
    gguf_close(&b.g);
    return e == ERR_OK ? CLI_OK : cli_fail_err("bench model", e);
}
