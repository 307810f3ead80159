/* racklm-logits MODEL.gguf IDS.bin OUT.f32 [options]: runs token ids (int32, native order) through the model in this process, ranks as
 * threads, and writes the raw fp32 logits of every position, [n][vocab]. The oracle suite compares them with an independent computation.
 *
 *   --backend cpu|ref|ref_f32   --tp N --pp N --shares a,b --layers a,b --threads N --kv-type f32|f16|bf16|q8_0
 *   --gpus N   ranks run on N GPUs (racklm-logits-emu: emulated ones)   --deterministic
 *   --chunk N   tokens a step (default: all at once)   --decode   one token a step
 *   --generate N  greedy continuation after the ids: the new ids, then their log-probabilities as bits (hexadecimal), on standard output
 *   --pool mean|last  instead of the logits: the pooled state after the final norm, [dim]
 *   --targets a,b  instead: the log-probabilities of these ids after the last position
 *   --sample JSON with --generate: {"temperature":1,"top_k":0,"top_p":1,"min_p":0,"seed":1,"repetition_penalty":1,...}
 */
#include "base/buf.h"
#include "base/check.h"
#include "tests/tools/runner_group.h"

#include <getopt.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tool {
    struct runner_group_config cfg;
    uint32_t chunk, generate, n_ids, vocab, ctx;
    uint32_t *ids;
    float *logits; /* [n_ids][vocab] */
    struct slot_setup setup;
    uint32_t targets[MSG_TARGETS_MAX];
    uint32_t pos, n_blocks;
    uint32_t *blocks;
};

static void die(const char *what)
{
    fprintf(stderr, "racklm-logits: %s\n", what);
    exit(1);
}

static uint32_t parse_list(const char *s, uint32_t *out, uint32_t cap)
{
    uint32_t n = 0;
    char *end;
    for (; *s; s = *end == ',' ? end + 1 : end) {
        unsigned long v = strtoul(s, &end, 10);
        if (end == s || n == cap || (*end && *end != ','))
            die("a list of numbers is not one");
        out[n++] = (uint32_t)v;
    }
    return n;
}

/* Called by the ranks of the last stage, each with its own ids. */
static void on_logits(void *arg, uint32_t slot, uint32_t position, uint32_t first_id, uint32_t n, const float *logits)
{
    struct tool *t = arg;
    (void)slot;
    if (t->logits && position - 1 < t->n_ids)
        memcpy(t->logits + (size_t)(position - 1) * t->vocab + first_id, logits, n * sizeof(float));
}

static const struct step_result *step(struct tool *t, struct runner_group *g, uint32_t *tokens, uint32_t n, uint32_t want)
{
    uint32_t zero = 0, start = t->pos, need = (t->pos + n + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK, n_blocks = need - t->n_blocks;
    struct step s = {.step_id = t->pos, .n_runs = 1, .slot = &zero, .gen = &zero, .start = &start, .n_tokens = &n, .want = &want,
                     .n_blocks = &n_blocks, .n_all_tokens = n, .n_all_blocks = n_blocks, .tokens = tokens, .blocks = t->blocks + t->n_blocks,
                     .setups = &t->setup, .n_setups = t->pos == 0};
    const struct step_result *res;
    if (runner_group_step(g, &s, &res) != ERR_OK)
        die(err_detail());
    t->pos += n;
    t->n_blocks = need;
    return res;
}

static void generate(struct tool *t, struct runner_group *g, const struct step_result *res)
{
    uint32_t *ids = calloc(t->generate, 4), *bits = calloc(t->generate, 4);
    ASSERT(ids && bits);
    for (uint32_t i = 0; i < t->generate; i++) {
        ids[i] = res->token[0];
        memcpy(&bits[i], &res->logprob[0], 4);
        uint32_t sampled = STEP_TOKEN_SAMPLED;
        if (i + 1 < t->generate)
            res = step(t, g, &sampled, 1, RUN_WANT_SAMPLE | RUN_WANT_LOGPROBS);
    }
    for (uint32_t i = 0; i < t->generate; i++)
        printf("%u%c", ids[i], i + 1 < t->generate ? ' ' : '\n');
    for (uint32_t i = 0; i < t->generate; i++)
        printf("%08x%c", bits[i], i + 1 < t->generate ? ' ' : '\n');
    free(ids);
    free(bits);
}

static void parse_sample(struct tool *t, const char *text)
{
    json_error_t err;
    json_t *j = json_loads(text, 0, &err);
    if (!j)
        die(err.text);
    struct slot_setup *u = &t->setup;
    u->temperature = (float)json_number_value(json_object_get(j, "temperature"));
    json_t *top_p = json_object_get(j, "top_p");
    u->top_p = top_p ? (float)json_number_value(top_p) : 1;
    u->min_p = (float)json_number_value(json_object_get(j, "min_p"));
    u->top_k = (uint32_t)json_integer_value(json_object_get(j, "top_k"));
    u->seed = (uint64_t)json_integer_value(json_object_get(j, "seed"));
    u->repetition_penalty = (float)json_number_value(json_object_get(j, "repetition_penalty"));
    u->presence_penalty = (float)json_number_value(json_object_get(j, "presence_penalty"));
    u->frequency_penalty = (float)json_number_value(json_object_get(j, "frequency_penalty"));
    json_decref(j);
}

static void parse_args(struct tool *t, int argc, char **argv)
{
    static uint32_t shares[SHARD_TP_MAX], layers[SHARD_PP_MAX], first[SHARD_PP_MAX + 1];
    static const char *const kv[] = {"f32", "f16", "bf16", "q8_0", "fp8"};
    static const struct option opts[] = {{"backend", 1, 0, 'b'}, {"tp", 1, 0, 't'}, {"pp", 1, 0, 'p'}, {"shares", 1, 0, 's'}, {"layers", 1, 0, 'l'},
                                         {"threads", 1, 0, 'j'}, {"chunk", 1, 0, 'c'}, {"decode", 0, 0, 'd'}, {"kv-type", 1, 0, 'k'}, {"gpus", 1, 0, 'G'}, {"deterministic", 0, 0, 'D'},
                                         {"pool", 1, 0, 'P'}, {"targets", 1, 0, 'T'}, {"generate", 1, 0, 'g'}, {"sample", 1, 0, 'S'}, {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", opts, NULL)) != -1;) {
        switch (c) {
        case 'b': t->cfg.backend = optarg; break;
        case 'G': t->cfg.n_gpus = (uint32_t)atoi(optarg); break;
        case 'D': t->cfg.deterministic = true; break;
        case 't': t->cfg.tp = (uint32_t)atoi(optarg); break;
        case 'p': t->cfg.pp = (uint32_t)atoi(optarg); break;
        case 's': parse_list(optarg, shares, SHARD_TP_MAX); t->cfg.share = shares; break;
        case 'l':
            for (uint32_t i = 0, n = parse_list(optarg, layers, SHARD_PP_MAX); i < n; i++)
                first[i + 1] = first[i] + layers[i];
            t->cfg.layer_first = first;
            break;
        case 'j': t->cfg.n_threads = (uint32_t)atoi(optarg); break;
        case 'c': t->chunk = (uint32_t)atoi(optarg); break;
        case 'd': t->chunk = 1; break;
        case 'g': t->generate = (uint32_t)atoi(optarg); break;
        case 'P': t->setup.pooling = strcmp(optarg, "mean") == 0 ? POOLING_MEAN : POOLING_LAST; break;
        case 'T': t->setup.n_targets = parse_list(optarg, t->targets, MSG_TARGETS_MAX); break;
        case 'S': parse_sample(t, optarg); break;
        case 'k':
            for (t->cfg.kv_type = 0; strcmp(kv[t->cfg.kv_type], optarg) != 0; t->cfg.kv_type++)
                if (t->cfg.kv_type == KV_FP8)
                    die("no such --kv-type");
            break;
        default: exit(2);
        }
    }
    if (argc - optind != 3)
        die("usage: racklm-logits MODEL.gguf IDS.bin OUT.f32 [options] (OUT - writes none)");
    t->cfg.model_path = argv[optind];
}

int main(int argc, char **argv)
{
    struct tool t = {.cfg = {.backend = "cpu", .tp = 1, .pp = 1, .n_threads = 1, .max_seqs = 1, .kv_type = KV_F32}, .setup = {.top_p = 1}};
    struct buf in;
    parse_args(&t, argc, argv);
    const char *out = argv[optind + 2];
    buf_init(&in);
    if (buf_read_file(&in, argv[optind + 1], 64 << 20) != ERR_OK)
        die(err_detail());
    t.n_ids = (uint32_t)(in.len / 4);
    t.ids = (uint32_t *)in.data;
    if (t.n_ids == 0)
        die("no ids");
    if (t.chunk == 0 || t.chunk > t.n_ids)
        t.chunk = t.n_ids;
    t.ctx = t.cfg.ctx = t.n_ids + t.generate + 1;
    t.cfg.max_step_tokens = t.chunk;
    t.setup.prompt_len = t.n_ids;

    struct runner_group *g;
    struct runner_info info;
    if (runner_group_create(&t.cfg, &g) != ERR_OK)
        die(err_detail());
    runner_group_info(g, 0, &info);
    t.vocab = info.vocab;
    t.blocks = calloc(info.kv_blocks, sizeof(uint32_t));
    ASSERT(t.blocks);
    for (uint32_t i = 0; i < info.kv_blocks; i++) /* not in order: nothing may depend on it */
        t.blocks[i] = (i ^ 1) < info.kv_blocks ? i ^ 1 : i;
    t.setup.target = t.targets;
    bool values = t.setup.pooling || t.setup.n_targets;
    if (strcmp(out, "-") != 0 && !values) {
        t.logits = malloc((size_t)t.n_ids * t.vocab * sizeof(float));
        ASSERT(t.logits);
        runner_group_set_logits_hook(g, on_logits, &t);
    }
    const struct step_result *res = NULL;
    for (uint32_t i = 0, n; i < t.n_ids; i += n) {
        n = t.n_ids - i < t.chunk ? t.n_ids - i : t.chunk;
        uint32_t want = values ? (t.setup.pooling ? RUN_WANT_POOLED : RUN_WANT_TARGETS) : t.generate ? RUN_WANT_SAMPLE | RUN_WANT_LOGPROBS : 0;
        res = step(&t, g, t.ids + i, n, i + n == t.n_ids ? want : RUN_WANT_NOTHING);
    }
    if (values) {
        const float *v = t.setup.pooling ? res->pooled : res->logprob;
        uint32_t n = t.setup.pooling ? res->n_all_pooled : res->n_all_positions;
        FILE *f = fopen(out, "wb");
        if (!f || fwrite(v, sizeof(float), n, f) != n || fclose(f) != 0)
            die("cannot write the values");
    }
    if (t.logits) {
        FILE *f = fopen(out, "wb");
        if (!f || fwrite(t.logits, (size_t)t.vocab * sizeof(float), t.n_ids, f) != t.n_ids || fclose(f) != 0)
            die("cannot write the logits");
        runner_group_set_logits_hook(g, NULL, NULL);
    }
    if (t.generate)
        generate(&t, g, res);
    runner_group_destroy(&g);
    free(t.logits);
    free(t.blocks);
    buf_deinit(&in);
    return 0;
}
