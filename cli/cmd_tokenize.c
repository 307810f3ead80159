/* `racklm tokenize` and `racklm detokenize`: what the server's /tokenize and /detokenize do, without a server. Text is
 * standard input, byte for byte. */
#include "base/check.h"
#include "cli/cli.h"
#include "text/detokenizer.h"
#include "model/vocab.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum err read_input(struct buf *b)
{
    enum { INPUT_MAX = 1 << 30 };
    char chunk[1 << 16];
    for (size_t n; (n = fread(chunk, 1, sizeof(chunk), stdin)) > 0;) {
        if (b->len + n > INPUT_MAX)
            return err_set(ERR_TOO_BIG, "standard input has more than %d bytes", INPUT_MAX);
        buf_append(b, chunk, n);
    }
    if (ferror(stdin))
        return err_set(ERR_IO, "cannot read standard input: %s", strerror(errno));
    return b->failed ? err_set(ERR_NOMEM, "no memory for standard input") : ERR_OK;
}

struct job {
    const char *command;
    struct vocab *v;
    struct tokenizer *t;
    struct buf in, out;
};

static enum err open_job(struct job *j, const char *path)
{
    TRY(vocab_open(path, &j->v));
    TRY(tokenizer_create(j->v, &j->t));
    return read_input(&j->in);
}

static int close_job(struct job *j, enum err e)
{
    if (e == ERR_OK && j->out.failed)
        e = err_set(ERR_NOMEM, "no memory for the answer");
    if (e == ERR_OK && j->out.len > 0 && (fwrite(j->out.data, 1, j->out.len, stdout) != j->out.len || fflush(stdout) != 0))
        e = err_set(ERR_IO, "cannot write standard output: %s", strerror(errno));
    int rc = e == ERR_OK ? CLI_OK : cli_fail_err(j->command, e);
    tokenizer_destroy(&j->t);
    vocab_destroy(&j->v);
    buf_deinit(&j->in);
    buf_deinit(&j->out);
    return rc;
}

/* One line a token: its id and its bytes as a JSON string. */
static void put_pieces(struct job *j, const struct tokens *ids)
{
    struct buf piece;
    buf_init(&piece);
    for (size_t i = 0; i < ids->n; i++) {
        buf_clear(&piece);
        tokenizer_piece(j->t, ids->ids[i], true, &piece);
        buf_printf(&j->out, "%7u  ", ids->ids[i]);
        buf_json_str(&j->out, piece.data ? piece.data : "", piece.len);
        buf_putc(&j->out, '\n');
    }
    buf_deinit(&piece);
}

int cmd_tokenize(struct options *o, int argc, char **argv)
{
    bool only_ids = false, no_special = false;
    const struct cli_flag flags[] = {{"--ids", NULL, NULL, &only_ids}, {"--no-special", NULL, NULL, &no_special}};
    if (!cli_flags("tokenize", flags, ARRAY_LEN(flags), o, 0, &argc, argv))
        return CLI_USAGE;
    if (argc != 2)
        return cli_usage("tokenize", "name one GGUF file or tokenizer.json");
    struct job j = {.command = "tokenize"};
    struct tokens ids = {0};
    buf_init(&j.in);
    buf_init(&j.out);
    enum err e = open_job(&j, argv[1]);
    if (e == ERR_OK)
        e = tokenizer_encode(j.t, j.in.data ? j.in.data : "", j.in.len, no_special ? 0 : TOKENIZER_SPECIAL | TOKENIZER_PARSE, &ids);
    if (e == ERR_OK && !only_ids) {
        put_pieces(&j, &ids);
    } else if (e == ERR_OK) {
        for (size_t i = 0; i < ids.n; i++)
            buf_printf(&j.out, i ? " %u" : "%u", ids.ids[i]);
        buf_putc(&j.out, '\n');
    }
    tokens_deinit(&ids);
    return close_job(&j, e);
}

/* Numbers with white space, commas and brackets around them. */
static enum err detokenize(struct job *j, struct detokenizer *d)
{
    const char *s = j->in.data ? j->in.data : "";
    for (size_t i = 0; i < j->in.len;) {
        if (isspace((unsigned char)s[i]) || s[i] == ',' || s[i] == '[' || s[i] == ']') {
            i++;
            continue;
        }
        uint64_t id = 0;
        size_t from = i;
        for (; i < j->in.len && isdigit((unsigned char)s[i]) && id < UINT32_MAX; i++)
            id = id * 10 + (uint64_t)(s[i] - '0');
        if (i == from || id >= j->v->n_tokens)
            return err_set(ERR_INVALID, "\"%.*s\" at byte %zu is no token id below %u", (int)MIN(j->in.len - from, strcspn(s + from, " \n\t,]")), s + from, from,
                           j->v->n_tokens);
        detokenizer_push(d, (uint32_t)id, &j->out);
    }
    detokenizer_finish(d, &j->out);
    return ERR_OK;
}

int cmd_detokenize(struct options *o, int argc, char **argv)
{
    bool no_special = false;
    const struct cli_flag flags[] = {{"--no-special", NULL, NULL, &no_special}};
    if (!cli_flags("detokenize", flags, ARRAY_LEN(flags), o, 0, &argc, argv))
        return CLI_USAGE;
    if (argc != 2)
        return cli_usage("detokenize", "name one GGUF file or tokenizer.json");
    struct job j = {.command = "detokenize"};
    buf_init(&j.in);
    buf_init(&j.out);
    enum err e = open_job(&j, argv[1]);
    if (e == ERR_OK) {
        struct detokenizer d;
        detokenizer_init(&d, j.t, NULL, 0, !no_special);
        e = detokenize(&j, &d);
        detokenizer_deinit(&d);
    }
    return close_job(&j, e);
}
