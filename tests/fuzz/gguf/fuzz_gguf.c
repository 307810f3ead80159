/* The whole way of a model file's headers: parser, every look-up, model facts, vocabulary, and the slices of all ranks
 * of a few splits. Whatever the bytes say, the sum of the slices is the file, and no rank is left without a head. */
#include "base/check.h"
#include "base/log.h"
#include "model/describe.h"
#include "model/vocab.h"

#include <stdlib.h>

static void read_values(const struct gguf *g)
{
    for (uint64_t i = 0; i < g->n_kvs; i++) {
        const struct gguf_kv *kv = &g->kvs[i];
        struct gguf_str_iter it;
        struct gguf_str s;
        volatile unsigned char sink = 0;
        int64_t n;
        float f;
        if (gguf_str_iter(kv, &it))
            while (gguf_str_next(&it, &s)) {
                sink += s.len ? (unsigned char)s.s[s.len - 1] : 0;
                (void)sink;
            }
        gguf_arr_i64(kv, kv->n - 1, &n);
        gguf_arr_f32(kv, kv->n - 1, &f);
        gguf_arr_i64(kv, 0, &n);
    }
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        ASSERT(gguf_tensor(g, t->name) == t);
        ASSERT(check_range(t->file_offset, t->bytes, g->files[0].size));
        volatile unsigned char sink = t->data[0];
        sink += t->data[t->bytes - 1];
        (void)sink;
    }
}

static void slice(const struct gguf *g, const struct hparams *hp)
{
    for (uint32_t tp = 1; tp <= 8; tp++)
        for (uint32_t pp = 1; pp <= 3; pp++) {
            struct shard_split s;
            if (shard_split_init(hp, tp, pp, NULL, 0, NULL, 0, &s) != ERR_OK)
                continue;
            uint64_t sum = 0, all = 0;
            for (uint32_t stage = 0; stage < pp; stage++)
                for (uint32_t r = 0; r < tp; r++) {
                    struct describe_shard d;
                    describe_shard(g, hp, &s, KV_Q8_0, hp->ctx_train, r, stage, &d);
                    ASSERT(d.rank.heads.n && d.rank.kv_heads.n && d.kv_block_bytes);
                    sum += d.weights_bytes;
                }
            for (uint64_t i = 0; i < g->n_tensors; i++)
                all += g->tensors[i].bytes;
            ASSERT(sum <= all * tp * pp);
        }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    log_set_level(LOG_ERROR); /* the reader warns about some models */
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *g;
    struct hparams hp;
    struct vocab *v;
    struct describe d;
    if (gguf_parse(data, size, &g) != ERR_OK)
        return 0;
    read_values(g);
    describe_file(g, NULL, &d);
    if (hparams_load(g, &hp) == ERR_OK) {
        double inv_freq[4096 / 2];
        float magnitude;
        rope_freqs_init(&hp, inv_freq, &magnitude);
        slice(g, &hp);
    }
    if (vocab_load(g, &v) == ERR_OK)
        ASSERT(v->n_tokens > 0 && v->bos < (int32_t)v->n_tokens);
    vocab_destroy(&v);
    gguf_close(&g);
    return 0;
}
