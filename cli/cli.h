/* What the commands of `racklm` share: their table, printing, exit codes. Each verb group has a file of its own (cmd_*.c).
 * Exit codes: 0 done, 1 failed (one line on standard error says why), 2 wrong usage. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "base/buf.h"
#include "base/err.h"
#include "base/options.h"

#include <stdbool.h>
#include <stdint.h>

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct cli_command {
    const char *name;       /* "bench model": one or two words */
    const char *args;       /* "MODEL.gguf [PROMPT]" */
    const char *summary;    /* one line of `racklm --help` */
    const char *details;    /* more of its own --help: lines, or NULL */
    unsigned scope;         /* options it takes from the table (OPTION_SERVE, OPTION_CLIENT); 0: none */
    int (*fn)(struct options *o, int argc, char **argv); /* o: the defaults; argv[0] is the command */
};
extern const struct cli_command cli_commands[];
extern const unsigned cli_n_commands;

int cmd_serve(struct options *o, int argc, char **argv);
int cmd_run(struct options *o, int argc, char **argv);
int cmd_perplexity(struct options *o, int argc, char **argv);
int cmd_status(struct options *o, int argc, char **argv);
int cmd_nodes(struct options *o, int argc, char **argv);
int cmd_workers(struct options *o, int argc, char **argv);
int cmd_show(struct options *o, int argc, char **argv);
int cmd_tokenize(struct options *o, int argc, char **argv);
int cmd_detokenize(struct options *o, int argc, char **argv);
int cmd_bench_model(struct options *o, int argc, char **argv);
int cmd_bench_serve(struct options *o, int argc, char **argv);
int cmd_key(struct options *o, int argc, char **argv);
int cmd_template(struct options *o, int argc, char **argv);
int cmd_version(struct options *o, int argc, char **argv);
int cmd_man(struct options *o, int argc, char **argv);

/* "racklm COMMAND: text" on standard error; returns CLI_FAILED or CLI_USAGE. */
int cli_fail(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int cli_fail_err(const char *command, enum err e); /* err_detail(), or the error's sentence */
int cli_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Reads a command line: first the command's own flags (below; `value` NULL: a switch), then the options of the table in `scope`, into o.
 * What is left in argv are the arguments. False after a message (unknown flag, missing or wrong value). Values stay views into argv. */
struct cli_flag {
    const char *name;     /* "--stats" */
    const char *short_name; /* "-s" or NULL */
    const char **value;
    bool *on;
};
bool cli_flags(const char *command, const struct cli_flag *flags, unsigned n, struct options *o, unsigned scope, int *argc, char **argv);
/* "table" or "json"; false after a message. */
bool cli_output(const char *command, const char *name, bool *json);
/* "1,2,8" -> up to cap numbers >= min; 0 after a message. */
unsigned cli_numbers(const char *command, const char *what, const char *list, long min, long *out, unsigned cap);

/* Columns that line up. Cells are copied; right: numbers. */
struct cli_table;
struct cli_table *cli_table_create(unsigned n_cols, const char *const *heads, const char *align /* 'l' or 'r' each */);
void cli_table_row(struct cli_table *t, ...); /* n_cols const char * */
void cli_table_cells(struct cli_table *t, const char *const *cells); /* n_cols of them */
void cli_table_print(struct cli_table **t);   /* to standard output; frees it */
/* "key":"s" in an object (s NULL: ""), after a comma where one is missing. */
void cli_json_str(struct buf *b, const char *key, const char *s);
void cli_json_strn(struct buf *b, const char *key, const char *s, size_t len);
const char *cli_bytes(uint64_t n, char out[16]); /* "6.9 MB" (binary steps of 1024 are written KiB MiB GiB) */
const char *cli_count(uint64_t n, char out[16]); /* "6.4M", "1.2B" */

/* One line that is redrawn while a person waits; nothing where standard error is no terminal. fraction < 0: unknown. */
void cli_progress(const char *what, double fraction);
void cli_progress_end(void);
bool cli_is_terminal(void); /* standard error */

#endif
