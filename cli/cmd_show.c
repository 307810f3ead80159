/* racklm show: what a model file is, and what each shard of a split would hold. */
#include "cli/cli.h"
#include "model/describe.h"
#include "model/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct show {
    struct gguf *g;
    struct hparams hp;
    struct describe d;
    bool known;         /* the architecture is one we run */
    char why_not[400];
    struct shard_split split;
    bool split_ok;
    char split_error[400];
    uint32_t ctx;
};

static void show_json(const struct show *s)
{
    struct buf b;
    buf_init(&b);
    buf_putc(&b, '{');
    cli_json_strn(&b, "name", s->d.name.s, s->d.name.len);
    cli_json_str(&b, "architecture", s->d.arch);
    buf_printf(&b, ",\"parameters\":%llu,\"file_bytes\":%llu,\"weights_bytes\":%llu,\"files\":%u,\"tensors\":%llu", (unsigned long long)s->d.n_params,
               (unsigned long long)s->d.file_bytes, (unsigned long long)s->d.weights_bytes, s->d.n_files, (unsigned long long)s->d.n_tensors);
    if (s->known)
        buf_printf(&b, ",\"context\":%u,\"layers\":%u,\"dim\":%u,\"heads\":%u,\"kv_heads\":%u,\"head_dim\":%u,\"ffn\":%u,\"vocab\":%u", s->hp.ctx_train,
                   s->hp.n_layers, s->hp.dim, s->hp.n_heads, s->hp.n_kv_heads, s->hp.head_dim, s->hp.ffn_dim, s->hp.vocab);
    buf_puts(&b, ",\"quantisations\":{");
    bool first = true;
    for (int q = 0; q < QUANT_COUNT; q++)
        if (s->d.quants[q].tensors) {
            buf_printf(&b, "%s\"%s\":{\"tensors\":%llu,\"parameters\":%llu,\"bytes\":%llu}", first ? "" : ",", quant_traits[q].name,
                       (unsigned long long)s->d.quants[q].tensors, (unsigned long long)s->d.quants[q].params, (unsigned long long)s->d.quants[q].bytes);
            first = false;
        }
    buf_puts(&b, "},");
    cli_json_strn(&b, "tokenizer", s->d.tokenizer.s, s->d.tokenizer.len);
    cli_json_strn(&b, "pre_tokenizer", s->d.pre.s, s->d.pre.len);
    cli_json_strn(&b, "chat_template", s->d.chat_template.s, s->d.chat_template.len);
    buf_puts(&b, ",\"shards\":[");
    for (uint32_t i = 0; s->split_ok && i < s->split.pp * s->split.tp; i++) {
        struct describe_shard d;
        describe_shard(s->g, &s->hp, &s->split, KV_F16, s->ctx, i % s->split.tp, i / s->split.tp, &d);
        buf_printf(&b, "%s{\"stage\":%u,\"tp_rank\":%u,\"layers\":[%u,%u],\"weights_bytes\":%llu,\"kv_bytes_per_sequence\":%llu}", i ? "," : "", d.stage,
                   d.tp_rank, d.layers.first, d.layers.first + d.layers.n, (unsigned long long)d.weights_bytes, (unsigned long long)d.kv_ctx_bytes);
    }
    buf_puts(&b, "]}\n");
    fwrite(b.data, 1, b.len, stdout);
    buf_deinit(&b);
}

static void show_shards(const struct show *s)
{
    static const char *const heads[] = {"STAGE", "RANK", "LAYERS", "HEADS", "KV HEADS", "FFN", "VOCAB", "WEIGHTS", "KV A SEQUENCE"};
    struct cli_table *t = cli_table_create(9, heads, "rrlrrrrrr");
    for (uint32_t i = 0; i < s->split.pp * s->split.tp; i++) {
        struct describe_shard d;
        describe_shard(s->g, &s->hp, &s->split, KV_F16, s->ctx, i % s->split.tp, i / s->split.tp, &d);
        char c[7][32], w[16], kv[16];
        snprintf(c[0], 32, "%u", d.stage);
        snprintf(c[1], 32, "%u", d.tp_rank);
        snprintf(c[2], 32, "%u-%u", d.layers.first, d.layers.first + d.layers.n - 1);
        snprintf(c[3], 32, "%u", d.rank.heads.n);
        snprintf(c[4], 32, "%u", d.rank.kv_heads.n);
        snprintf(c[5], 32, "%u", d.rank.ffn.n);
        snprintf(c[6], 32, "%u", d.rank.vocab.n);
        cli_table_row(t, c[0], c[1], c[2], c[3], c[4], c[5], c[6], cli_bytes(d.weights_bytes, w), cli_bytes(d.kv_ctx_bytes, kv));
    }
    printf("\nShards (tp %u, pp %u; KV in f16 for %u positions):\n", s->split.tp, s->split.pp, s->ctx);
    cli_table_print(&t);
}

static void show_text(const struct show *s)
{
    char a[16], b[16], c[16];
    printf("name           %.*s\n", (int)s->d.name.len, s->d.name.s ? s->d.name.s : "");
    printf("architecture   %s\n", s->d.arch ? s->d.arch : s->why_not);
    printf("parameters     %s (%llu)\n", cli_count(s->d.n_params, a), (unsigned long long)s->d.n_params);
    printf("file           %s in %u part%s, %llu tensors, GGUF v%u\n", cli_bytes(s->d.file_bytes, b), s->d.n_files, s->d.n_files == 1 ? "" : "s",
           (unsigned long long)s->d.n_tensors, s->d.version);
    if (s->known) {
        printf("context        %u\n", s->hp.ctx_train);
        printf("shape          %u layers, dim %u, %u heads of %u, %u KV heads, ffn %u, vocabulary %u%s\n", s->hp.n_layers, s->hp.dim, s->hp.n_heads,
               s->hp.head_dim, s->hp.n_kv_heads, s->hp.ffn_dim, s->hp.vocab, s->hp.tied_embeddings ? ", tied embeddings" : "");
    }
    printf("tokenizer      %.*s%s%.*s\n", (int)s->d.tokenizer.len, s->d.tokenizer.s ? s->d.tokenizer.s : "", s->d.pre.len ? ", pre-tokeniser " : "",
           (int)s->d.pre.len, s->d.pre.s ? s->d.pre.s : "");
    printf("chat template  %s\n", s->d.chat_template.len ? "yes (--template prints it)" : "none");
    static const char *const heads[] = {"TYPE", "TENSORS", "PARAMETERS", "BYTES"};
    struct cli_table *t = cli_table_create(4, heads, "lrrr");
    for (int q = 0; q < QUANT_COUNT; q++)
        if (s->d.quants[q].tensors) {
            char n[24];
            snprintf(n, sizeof(n), "%llu", (unsigned long long)s->d.quants[q].tensors);
            cli_table_row(t, quant_traits[q].name, n, cli_count(s->d.quants[q].params, a), cli_bytes(s->d.quants[q].bytes, c));
        }
    putchar('\n');
    cli_table_print(&t);
    if (s->split_ok)
        show_shards(s);
}

static unsigned list(const char *what, const char *text, uint32_t *out, unsigned cap)
{
    long v[SHARD_TP_MAX];
    unsigned n = text ? cli_numbers("show", what, text, 1, v, cap) : 0;
    for (unsigned i = 0; i < n; i++)
        out[i] = (uint32_t)v[i];
    return n;
}

int cmd_show(struct options *o, int argc, char **argv)
{
    const char *tp = "1", *pp = "1", *shares = NULL, *layers = NULL, *ctx = NULL;
    bool tmpl = false;
    const struct cli_flag flags[] = {{"--tp", "-tp", &tp, NULL},        {"--pp", "-pp", &pp, NULL},    {"--shares", NULL, &shares, NULL},
                                     {"--layers", NULL, &layers, NULL}, {"--ctx", "-c", &ctx, NULL}, {"--template", NULL, NULL, &tmpl}};
    if (!cli_flags("show", flags, sizeof(flags) / sizeof(flags[0]), o, OPTION_CLIENT, &argc, argv))
        return CLI_USAGE;
    if (argc != 2)
        return cli_usage("show", "name one GGUF file");
    uint32_t n_tp, n_pp, n_ctx = 0, share[SHARD_TP_MAX], layer[SHARD_PP_MAX];
    unsigned n_shares = list("--shares", shares, share, SHARD_TP_MAX), n_layers = list("--layers", layers, layer, SHARD_PP_MAX);
    if (!list("--tp", tp, &n_tp, 1) || !list("--pp", pp, &n_pp, 1) || (ctx && !list("--ctx", ctx, &n_ctx, 1)) || (shares && !n_shares) ||
        (layers && !n_layers))
        return CLI_USAGE;
    struct show s = {0};
    enum err e = gguf_open(argv[1], &s.g);
    if (e == ERR_OK) {
        e = hparams_load(s.g, &s.hp);
        s.known = e == ERR_OK;
        if (!s.known)
            snprintf(s.why_not, sizeof(s.why_not), "%s", err_detail());
        if (e == ERR_UNSUPPORTED) /* a sound file of a model that we do not run: still worth showing */
            e = ERR_OK;
        else if (e != ERR_OK)
            err_set(e, "%s: %s", argv[1], s.why_not);
    }
    if (e != ERR_OK) {
        gguf_close(&s.g);
        return cli_fail_err("show", e);
    }
    describe_file(s.g, s.known ? &s.hp : NULL, &s.d);
    int rc = CLI_OK;
    if (tmpl) {
        fwrite(s.d.chat_template.s, 1, s.d.chat_template.len, stdout);
    } else {
        if (s.known) {
            s.ctx = n_ctx ? n_ctx : s.hp.ctx_train;
            e = shard_split_init(&s.hp, n_tp, n_pp, n_shares ? share : NULL, n_shares, n_layers ? layer : NULL, n_layers, &s.split);
            s.split_ok = e == ERR_OK;
        }
        if (s.known && !s.split_ok)
            rc = cli_fail_err("show", e);
        else if (o->output == 1)
            show_json(&s);
        else
            show_text(&s);
    }
    gguf_close(&s.g);
    return rc;
}
