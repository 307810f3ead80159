/* racklm-tokenize MODEL.gguf|tokenizer.json [--special] [--parse] [--lines] < texts: ids of each text, one line a text. Texts are
 * separated by NUL (an empty last one does not count), or are lines with --lines. For comparisons with other
 * tokenizers; --back prints the text of the ids again instead (same separators). */
#include "base/buf.h"
#include "text/detokenizer.h"
#include "model/vocab.h"

#include <stdio.h>
#include <string.h>

static int fail(const char *what)
{
    fprintf(stderr, "racklm-tokenize: %s: %s\n", what, err_detail());
    return 1;
}

static int show(const struct tokenizer *t, const char *s, size_t len, unsigned flags, bool back, char sep)
{
    struct tokens ids = {0};
    if (tokenizer_encode(t, s, len, flags, &ids) != ERR_OK)
        return fail("encode");
    if (back) {
        struct detokenizer d;
        struct buf out;
        buf_init(&out);
        detokenizer_init(&d, t, NULL, 0, true);
        for (size_t i = 0; i < ids.n; i++)
            detokenizer_push(&d, ids.ids[i], &out);
        detokenizer_finish(&d, &out);
        if (out.len > 0)
            fwrite(out.data, 1, out.len, stdout);
        putchar(sep);
        buf_deinit(&out);
        detokenizer_deinit(&d);
    } else {
        for (size_t i = 0; i < ids.n; i++)
            printf(i == 0 ? "%u" : " %u", ids.ids[i]);
        putchar('\n');
    }
    tokens_deinit(&ids);
    return 0;
}

int main(int argc, char **argv)
{
    unsigned flags = 0;
    bool back = false;
    char sep = 0;
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--special") == 0)
            flags |= TOKENIZER_SPECIAL;
        else if (strcmp(argv[i], "--parse") == 0)
            flags |= TOKENIZER_PARSE;
        else if (strcmp(argv[i], "--lines") == 0)
            sep = '\n';
        else if (strcmp(argv[i], "--back") == 0)
            back = true;
        else
            argc = 0;
    }
    if (argc < 2) {
        fprintf(stderr, "usage: racklm-tokenize MODEL.gguf|tokenizer.json [--special] [--parse] [--lines] [--back] < texts\n");
        return 2;
    }
    struct vocab *v = NULL;
    struct tokenizer *t = NULL;
    struct buf in;
    buf_init(&in);
    if (vocab_open(argv[1], &v) != ERR_OK || tokenizer_create(v, &t) != ERR_OK)
        return fail(argv[1]);
    char chunk[1 << 16];
    for (size_t n; (n = fread(chunk, 1, sizeof(chunk), stdin)) > 0;)
        buf_append(&in, chunk, n);
    int rc = 0;
    for (size_t i = 0; i < in.len && rc == 0;) {
        const char *end = memchr(in.data + i, sep, in.len - i);
        size_t len = end == NULL ? in.len - i : (size_t)(end - (in.data + i));
        rc = show(t, in.data + i, len, flags, back, sep);
        i += len + 1;
    }
    buf_deinit(&in);
    tokenizer_destroy(&t);
    vocab_destroy(&v);
    return rc;
}
