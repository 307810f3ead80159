/* mkmodel SHAPE QUANT OUT.gguf: a random model of a named real shape, in seconds, to measure and to test with.
 *
 * Weights are random valid blocks of deviation 1/sqrt(columns), so that activations keep their size through the layers
 * and logits have a deviation of about 4; norms are near 1; nothing is learned. The tokenizer is a working byte-level
 * one: the 256 byte tokens, two-letter merges, filler words, and the special tokens of the family. The same arguments
 * give the same bytes, whatever --threads. */
#include "tests/bench/mkmodel.h"

#include "base/check.h"
#include "tests/tools/gguf_write.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Published configurations of the models named; the tiny ones are for tests: head counts that do not divide by powers
 * of two, and rows that every K type can hold. */
static const struct mkmodel_shape shapes[] = {
    {"llama-3.2-1b", "llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 500000, 1e-5f, 32, true, false, false,
     "llama-bpe"},
    {"llama-3-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 8192, 500000, 1e-5f, 0, false, false, false,
     "llama-bpe"},
    {"qwen2.5-0.5b", "qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1e6f, 1e-6f, 0, true, true, false, "qwen2"},
    {"qwen3-0.6b", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1e6f, 1e-6f, 0, true, false, true, "qwen2"},
    {"tiny-llama", "llama", 3, 512, 8, 4, 64, 768, 1500, 2048, 500000, 1e-5f, 8, false, false, false, "llama-bpe"},
    {"tiny-qwen2", "qwen2", 3, 256, 12, 3, 64, 768, 1500, 2048, 1e6f, 1e-6f, 0, true, true, false, "qwen2"},
    {"tiny-qwen3", "qwen3", 3, 256, 10, 5, 128, 1280, 1500, 2048, 1e6f, 1e-6f, 0, true, false, true, "qwen2"},
};

/* As llama.cpp counts whole files (the K types: the mixture named S or M). */
static uint32_t file_type(enum quant t)
{
    return t == QUANT_F32    ? 0
           : t == QUANT_F16  ? 1
           : t == QUANT_Q4_0 ? 2
           : t == QUANT_Q4_1 ? 3
           : t == QUANT_Q8_0 ? 7
           : t == QUANT_Q5_0 ? 8
           : t == QUANT_Q5_1 ? 9
           : t == QUANT_Q2_K ? 10
           : t == QUANT_Q3_K ? 12
           : t == QUANT_Q4_K ? 15
           : t == QUANT_Q5_K ? 17
           : t == QUANT_Q6_K ? 18
                             : 32;
}

enum content { MATRIX, NORM, BIAS, ROPE_FREQS };
struct job { /* how a tensor is filled */
    enum quant type;
    enum content content;
    double deviation;
    uint64_t blocks;
};
struct maker {
    struct mkmodel_shape shape;
    enum quant quant;
    uint64_t seed;
    unsigned n_threads;
    struct gguf_write w;
    struct job *jobs;
    uint8_t *map;
    atomic_uint_fast64_t next; /* run of blocks, counted over all tensors */
};

static void die(const char *what, const char *name)
{
    fprintf(stderr, "mkmodel: %s: %s\n", name, what);
    exit(1);
}

/* --- keys --- */

static void key_u32(struct maker *m, const char *suffix, uint32_t v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", m->shape.arch, suffix);
    gguf_write_u32(&m->w, key, v);
}

static void key_f32(struct maker *m, const char *suffix, float v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", m->shape.arch, suffix);
    gguf_write_f32(&m->w, key, v);
}

static void write_numbers(struct maker *m)
{
    const struct mkmodel_shape *s = &m->shape;
    char name[128];
    snprintf(name, sizeof(name), "random %s %s", s->name, quant_traits[m->quant].name);
    gguf_write_str(&m->w, "general.architecture", s->arch);
    gguf_write_str(&m->w, "general.name", name);
    gguf_write_u32(&m->w, "general.quantization_version", 2);
    gguf_write_u32(&m->w, "general.file_type", file_type(m->quant));
    key_u32(m, "block_count", s->layers);
    key_u32(m, "context_length", s->ctx);
    key_u32(m, "embedding_length", s->dim);
    key_u32(m, "feed_forward_length", s->ffn);
    key_u32(m, "attention.head_count", s->heads);
    key_u32(m, "attention.head_count_kv", s->kv_heads);
    key_u32(m, "attention.key_length", s->head_dim);
    key_u32(m, "attention.value_length", s->head_dim);
    key_u32(m, "rope.dimension_count", s->head_dim);
    key_u32(m, "vocab_size", s->vocab);
    key_f32(m, "rope.freq_base", s->rope_base);
    key_f32(m, "attention.layer_norm_rms_epsilon", s->eps);
}

/* --- tokenizer --- */

enum { BYTES = 256, LETTERS = 26, TYPE_NORMAL = 1, TYPE_CONTROL = 3 };

static const char *const llama_specials[] = {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                             "<|end_header_id|>", "<|eot_id|>"};
static const char *const qwen_specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
static const char llama_template[] =
    "{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + "
    "message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- "
    "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}";
static const char qwen_template[] =
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/* GPT-2's printable stand-in for a byte, as UTF-8: printable Latin-1 stands for itself, the others follow from U+0100.
 */
static void byte_token(int b, char out[8])
{
    unsigned code = (unsigned)b, skipped = 0;
    for (int i = 0; i <= b; i++) {
        bool shown = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        if (i == b && !shown)
            code = 256 + skipped;
        skipped += !shown;
    }
    if (code < 128)
        snprintf(out, 8, "%c", (char)code);
    else
        snprintf(out, 8, "%c%c", (char)(0xc0 | code >> 6), (char)(0x80 | (code & 63)));
}

static void write_tokenizer(struct maker *m)
{
    bool llama = strcmp(m->shape.pre, "llama-bpe") == 0;
    const char *const *specials = llama ? llama_specials : qwen_specials;
    uint32_t n_special = llama ? ARRAY_LEN(llama_specials) : ARRAY_LEN(qwen_specials), n = m->shape.vocab;
    uint32_t n_merges = MIN((uint32_t)(LETTERS * LETTERS), n - n_special - BYTES), special0 = n - n_special;
    char(*text)[24] = calloc(n, sizeof(*text)), (*merge)[24] = calloc(n_merges + 1, sizeof(*merge));
    const char **tokens = calloc(n, sizeof(*tokens)), **merges = calloc(n_merges + 1, sizeof(*merges));
    int32_t *types = calloc(n, sizeof(*types));
    if (!text || !merge || !tokens || !merges || !types)
        die("out of memory", "tokenizer");
    for (uint32_t i = 0; i < n; i++) {
        uint32_t pair = i - BYTES;
        types[i] = i >= special0 ? TYPE_CONTROL : TYPE_NORMAL;
        tokens[i] = i >= special0 ? specials[i - special0] : text[i];
        if (i < BYTES)
            byte_token((int)i, text[i]);
        else if (pair < n_merges)
            snprintf(text[i], sizeof(text[i]), "%c%c", 'a' + pair / LETTERS, 'a' + pair % LETTERS);
        else
            snprintf(text[i], sizeof(text[i]), "\xc4\xa0w%u", i); /* U+0120: a leading space */
    }
    for (uint32_t i = 0; i < n_merges; i++) {
        snprintf(merge[i], sizeof(merge[i]), "%c %c", 'a' + i / LETTERS, 'a' + i % LETTERS);
        merges[i] = merge[i];
    }
    gguf_write_str(&m->w, "tokenizer.ggml.model", "gpt2");
    gguf_write_str(&m->w, "tokenizer.ggml.pre", m->shape.pre);
    gguf_write_str_arr(&m->w, "tokenizer.ggml.tokens", tokens, n);
    gguf_write_i32_arr(&m->w, "tokenizer.ggml.token_type", types, n);
    gguf_write_str_arr(&m->w, "tokenizer.ggml.merges", merges, n_merges);
    gguf_write_u32(&m->w, "tokenizer.ggml.bos_token_id", special0);
    gguf_write_u32(&m->w, "tokenizer.ggml.eos_token_id", n - 1);
    gguf_write_bool(&m->w, "tokenizer.ggml.add_bos_token", llama);
    gguf_write_str(&m->w, "tokenizer.chat_template", llama ? llama_template : qwen_template);
    free(text);
    free(merge);
    free(tokens);
    free(merges);
    free(types);
}

/* --- tensors --- */

static void add(struct maker *m, const char *name, enum content content, enum quant type, uint32_t cols, uint32_t rows,
                double deviation)
{
    if (cols % quant_traits[type].block_elems) /* as other quantisers do: a type whose blocks the rows hold */
        type = cols % 32 ? QUANT_F16 : QUANT_Q8_0;
    uint64_t elems = (uint64_t)cols * (rows ? rows : 1), blocks = elems / quant_traits[type].block_elems;
    gguf_write_add_tensor(&m->w, name, quant_traits[type].gguf_id, cols, rows, blocks * quant_traits[type].block_bytes);
    m->jobs = realloc(m->jobs, m->w.n_tensors * sizeof(*m->jobs));
    if (!m->jobs)
        die("out of memory", name);
    m->jobs[m->w.n_tensors - 1] = (struct job){type, content, deviation, blocks};
}

static void add_matrix(struct maker *m, uint32_t layer, const char *stem, uint32_t cols, uint32_t rows)
{
    char name[96];
    snprintf(name, sizeof(name), "blk.%u.%s.weight", layer, stem);
    add(m, name, MATRIX, m->quant, cols, rows, 1.0 / sqrt(cols));
}

static void add_vector(struct maker *m, uint32_t layer, const char *suffix, enum content content, uint32_t n)
{
    char name[96];
    snprintf(name, sizeof(name), "blk.%u.%s", layer, suffix);
    add(m, name, content, QUANT_F32, n, 0, content == NORM ? 0.15 : 0.4);
}

static void add_layer(struct maker *m, uint32_t l)
{
    const struct mkmodel_shape *s = &m->shape;
    uint32_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    add_vector(m, l, "attn_norm.weight", NORM, s->dim);
    add_matrix(m, l, "attn_q", s->dim, q);
    add_matrix(m, l, "attn_k", s->dim, kv);
    add_matrix(m, l, "attn_v", s->dim, kv);
    if (s->qkv_bias) {
        add_vector(m, l, "attn_q.bias", BIAS, q);
        add_vector(m, l, "attn_k.bias", BIAS, kv);
        add_vector(m, l, "attn_v.bias", BIAS, kv);
    }
    if (s->qk_norm) {
        add_vector(m, l, "attn_q_norm.weight", NORM, s->head_dim);
        add_vector(m, l, "attn_k_norm.weight", NORM, s->head_dim);
    }
    add_matrix(m, l, "attn_output", q, s->dim);
    add_vector(m, l, "ffn_norm.weight", NORM, s->dim);
    add_matrix(m, l, "ffn_gate", s->dim, s->ffn);
    add_matrix(m, l, "ffn_up", s->dim, s->ffn);
    add_matrix(m, l, "ffn_down", s->ffn, s->dim);
}

static void add_tensors(struct maker *m)
{
    const struct mkmodel_shape *s = &m->shape;
    double head = 4.0 / sqrt(s->dim);
    add(m, "token_embd.weight", MATRIX, m->quant, s->dim, s->vocab, s->tied ? head : 1.0);
    for (uint32_t l = 0; l < s->layers; l++)
        add_layer(m, l);
    add(m, "output_norm.weight", NORM, QUANT_F32, s->dim, 0, 0.15);
    if (!s->tied)
        add(m, "output.weight", MATRIX, m->quant, s->dim, s->vocab, head);
    if (s->rope_factor > 0)
        add(m, "rope_freqs.weight", ROPE_FREQS, QUANT_F32, s->head_dim / 2, 0, 0);
}

/* Llama 3's frequency divisors (published reference code of Llama 3.1): 1 for waves short against the original context
 * of 8192, the factor for long ones, a smooth passage between a quarter of it and all of it. */
static void fill_rope_freqs(const struct mkmodel_shape *s, float *out)
{
    for (uint32_t i = 0; i < s->head_dim / 2; i++) {
        double wave = 2 * M_PI * pow(s->rope_base, 2.0 * i / s->head_dim), turns = 8192.0 / wave;
        double smooth = (turns - 1.0) / (4.0 - 1.0);
        smooth = MIN(1.0, MAX(0.0, smooth));
        out[i] = (float)(1.0 / ((1.0 - smooth) / s->rope_factor + smooth));
    }
}

static void fill_part(struct maker *m, size_t tensor, uint64_t first, uint64_t n)
{
    const struct job *j = &m->jobs[tensor];
    uint8_t *out = m->map + m->w.data_start + m->w.tensors[tensor].offset + first * quant_traits[j->type].block_bytes;
    if (j->content == ROPE_FREQS) {
        fill_rope_freqs(&m->shape, (float *)(void *)out);
        return;
    }
    mkmodel_fill(j->type, j->deviation, m->seed + tensor, first, n, out);
    if (j->content == NORM)
        for (uint64_t i = 0; i < n; i++)
            ((float *)(void *)out)[i] += 1.0f;
}

/* Each thread takes the next stretch of some tensor: their bytes depend on their place only. */
static void *fill_thread(void *arg)
{
    struct maker *m = arg;
    enum { STRETCH = 64 * MKMODEL_RUN };
    for (;;) {
        uint64_t want = atomic_fetch_add(&m->next, 1), seen = 0;
        size_t t = 0;
        for (; t < m->w.n_tensors; t++) {
            uint64_t parts = (m->jobs[t].blocks + STRETCH - 1) / STRETCH;
            if (want < seen + parts)
                break;
            seen += parts;
        }
        if (t == m->w.n_tensors)
            return NULL;
        uint64_t first = (want - seen) * STRETCH;
        fill_part(m, t, first, MIN((uint64_t)STRETCH, m->jobs[t].blocks - first));
    }
}

static void write_file(struct maker *m, const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, (off_t)m->w.file_bytes) != 0)
        die(strerror(errno), path);
    /* Space is taken now: a full disk is an error here, and not a bus error in a thread later. */
    int rc = posix_fallocate(fd, 0, (off_t)m->w.file_bytes);
    if (rc != 0 && rc != EOPNOTSUPP && rc != EINVAL)
        die(strerror(rc), path);
    m->map = mmap(NULL, m->w.file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m->map == MAP_FAILED)
        die(strerror(errno), path);
    memcpy(m->map, m->w.header.p, m->w.header.len);
    pthread_t threads[64];
    for (unsigned i = 1; i < m->n_threads; i++)
        if (pthread_create(&threads[i], NULL, fill_thread, m) != 0)
            die("cannot start a thread", path);
    fill_thread(m);
    for (unsigned i = 1; i < m->n_threads; i++)
        pthread_join(threads[i], NULL);
    if (munmap(m->map, m->w.file_bytes) != 0 || close(fd) != 0)
        die(strerror(errno), path);
}

/* --- command line --- */

static void usage(FILE *f)
{
    fprintf(f,
            "usage: mkmodel SHAPE QUANT OUT.gguf [--layers N] [--vocab N] [--ctx N] [--seed N] [--threads N]\nshapes:");
    for (unsigned i = 0; i < ARRAY_LEN(shapes); i++)
        fprintf(f, " %s", shapes[i].name);
    fprintf(f, "\nquants:");
    for (unsigned i = 0; i < QUANT_COUNT; i++)
        fprintf(f, " %s", quant_traits[i].name);
    fprintf(f, "\n");
}

static uint64_t number(const char *s, uint64_t min, uint64_t max)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (errno || *end || end == s || v < min || v > max)
        die("is no number in range", s);
    return v;
}

static void options(struct maker *m, int argc, char **argv)
{
    static const struct option longs[] = {{"layers", 1, 0, 'l'},
                                          {"vocab", 1, 0, 'v'},
                                          {"ctx", 1, 0, 'c'},
                                          {"seed", 1, 0, 's'},
                                          {"threads", 1, 0, 't'},
                                          {"help", 0, 0, 'h'},
                                          {0}};
    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        if (c == 'l')
            m->shape.layers = (uint32_t)number(optarg, 1, 1024);
        else if (c == 'v')
            m->shape.vocab = (uint32_t)number(optarg, BYTES + 8, 1 << 20);
        else if (c == 'c')
            m->shape.ctx = (uint32_t)number(optarg, 1, 1 << 24);
        else if (c == 's')
            m->seed = number(optarg, 0, UINT32_MAX) << 20;
        else if (c == 't')
            m->n_threads = (unsigned)number(optarg, 1, 64);
        else {
            usage(c == 'h' ? stdout : stderr);
            exit(c == 'h' ? 0 : 2);
        }
    }
}

int main(int argc, char **argv)
{
    static struct maker m = {.n_threads = 2, .quant = QUANT_COUNT};
    if (argc < 4) {
        bool help = argc == 2 && strcmp(argv[1], "--help") == 0;
        usage(help ? stdout : stderr);
        return help ? 0 : 2;
    }
    for (unsigned i = 0; i < ARRAY_LEN(shapes); i++)
        if (strcmp(shapes[i].name, argv[1]) == 0)
            m.shape = shapes[i];
    for (unsigned i = 0; i < QUANT_COUNT; i++)
        if (strcasecmp(quant_traits[i].name, argv[2]) == 0)
            m.quant = (enum quant)i;
    if (!m.shape.name)
        die("no such shape (mkmodel --help lists them)", argv[1]);
    if (m.quant == QUANT_COUNT)
        die("no such quantisation (mkmodel --help lists them)", argv[2]);
    options(&m, argc - 3, argv + 3);
    gguf_write_init(&m.w);
    write_numbers(&m);
    write_tokenizer(&m);
    add_tensors(&m);
    gguf_write_header(&m.w);
    write_file(&m, argv[3]);
    printf("%s: %.1f MB, %zu tensors\n", argv[3], m.w.file_bytes / 1e6, m.w.n_tensors);
    gguf_write_deinit(&m.w);
    free(m.jobs);
    return 0;
}
