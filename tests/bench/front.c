/* What the front spends on a chat request before the engine has it: bench_front MODEL.gguf [TEXT]. Bodies of 4 KiB, 64 KiB and 1 MiB in turns of about
 * 500 bytes, cut from TEXT (default: lines about foxes); the median of many runs of each stage, in microseconds. */
#include "base/check.h"
#include "base/clock.h"
#include "coordinator/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUNS_MAX = 200, TURN = 500 };

/* Of this thread's processor time, so that what else the machine does counts little. */
static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
    qsort(v, n, sizeof(*v), by_value);
    return v[n / 2];
}

static void make_body(struct buf *out, const struct buf *text, size_t size)
{
    size_t at = 0;
    buf_clear(out);
    buf_puts(out, "{\"model\":\"default\",\"temperature\":0.7,\"max_tokens\":100,\"messages\":[");
    for (size_t i = 0; out->len < size; i++) {
        size_t n = MIN((size_t)TURN, text->len - at);
        buf_printf(out, "%s{\"role\":\"%s\",\"content\":", i ? "," : "", i % 2 ? "assistant" : "user");
        buf_json_str(out, text->data + at, n);
        buf_putc(out, '}');
        at = at + n >= text->len ? 0 : at + n;
    }
    buf_puts(out, "]}");
}

static void measure(struct deployment *d, const struct buf *body)
{
    static double json[RUNS_MAX], render[RUNS_MAX], encode[RUNS_MAX], all[RUNS_MAX];
    size_t runs = body->len > 1 << 19 ? 20 : RUNS_MAX, n_tokens = 0;
    for (size_t i = 0; i < runs; i++) {
        struct api_error e = {0};
        struct buf text;
        struct tokens ids = {0};
        buf_init(&text);
        uint64_t t0 = cpu_ns();
        json_t *o = api_parse_body(body->data, body->len, &e);
        uint64_t t1 = cpu_ns();
        if (!o || !api_chat_render(o, d, &text, &e)) {
            fprintf(stderr, "bench_front: %s\n", e.message);
            exit(1);
        }
        uint64_t t2 = cpu_ns();
        enum err err = tokenizer_encode(d->tok, text.data, text.len, TOKENIZER_PARSE, &ids);
        ASSERT(err == ERR_OK);
        uint64_t t3 = cpu_ns();
        json[i] = (double)(t1 - t0) / 1e3;
        render[i] = (double)(t2 - t1) / 1e3;
        encode[i] = (double)(t3 - t2) / 1e3;
        all[i] = (double)(t3 - t0) / 1e3;
        n_tokens = ids.n;
        tokens_deinit(&ids);
        buf_deinit(&text);
        json_decref(o);
    }
    printf("%9zu %8zu %10.1f %10.1f %10.1f %10.1f\n", body->len, n_tokens, median(json, runs), median(render, runs), median(encode, runs), median(all, runs));
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: bench_front MODEL.gguf [TEXT]\n");
        return 2;
    }
    static struct deployment d;
    struct options opts;
    options_init(&opts);
    opts.model = argv[1];
    struct buf text, body;
    buf_init(&text);
    buf_init(&body);
    enum err err = argc == 3 ? buf_read_file(&text, argv[2], 1 << 26) : ERR_OK;
    if (argc < 3)
        buf_puts(&text, "In the forest lived a fox, and nobody knew how old he was.\n");
    if (err != ERR_OK || deployment_open(&opts, 0, &d) != ERR_OK || deployment_load_text(&d) != ERR_OK) {
        fprintf(stderr, "bench_front: %s\n", err_detail());
        return 1;
    }
    printf("%9s %8s %10s %10s %10s %10s   (microseconds, median)\n", "bytes", "tokens", "json", "template", "tokenise", "all");
    static const size_t sizes[] = {4 << 10, 64 << 10, 1 << 20};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        make_body(&body, &text, sizes[i]);
        measure(&d, &body);
    }
    buf_deinit(&text);
    buf_deinit(&body);
    deployment_close(&d);
    return 0;
}
