/* Printing, flags and messages that the commands share. */
#include "cli/cli.h"

#include "base/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool progress_drawn;

int cli_fail(const char *command, const char *fmt, ...)
{
    cli_progress_end();
    fprintf(stderr, "racklm %s: ", command);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    return CLI_FAILED;
}

int cli_fail_err(const char *command, enum err e)
{
    return cli_fail(command, "%s", err_detail()[0] ? err_detail() : err_text(e));
}

int cli_usage(const char *command, const char *fmt, ...)
{
    fprintf(stderr, "racklm %s: ", command);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "; see `racklm %s --help`\n", command);
    return CLI_USAGE;
}

static const struct cli_flag *find_flag(const struct cli_flag *flags, unsigned n, const char *arg)
{
    size_t len = strcspn(arg, "=");
    for (unsigned k = 0; k < n; k++)
        if ((strncmp(flags[k].name, arg, len) == 0 && flags[k].name[len] == '\0') || (flags[k].short_name && strcmp(flags[k].short_name, arg) == 0))
            return &flags[k];
    return NULL;
}

bool cli_flags(const char *command, const struct cli_flag *flags, unsigned n, struct options *o, unsigned scope, int *argc, char **argv)
{
    int out = 1;
    for (int i = 1; i < *argc; i++) {
        char *a = argv[i];
        if (strcmp(a, "--") == 0) { /* arguments from here on, for the table's reader too */
            while (i < *argc)
                argv[out++] = argv[i++];
            break;
        }
        const struct cli_flag *f = a[0] == '-' ? find_flag(flags, n, a) : NULL;
        const char *eq = strchr(a, '=');
        if (!f) {
            argv[out++] = a;
        } else if (!f->value) {
            *f->on = true;
        } else if (eq && a[1] == '-') {
            *f->value = eq + 1;
        } else if (i + 1 < *argc) {
            *f->value = argv[++i];
        } else {
            cli_usage(command, "%s needs a value", a);
            return false;
        }
    }
    argv[out] = NULL;
    *argc = out;
    if (options_load_args(o, scope, argc, argv) == ERR_OK)
        return true;
    cli_usage(command, "%s", err_detail());
    return false;
}

bool cli_output(const char *command, const char *name, bool *json)
{
    *json = strcmp(name, "json") == 0;
    if (*json || strcmp(name, "table") == 0)
        return true;
    cli_usage(command, "-o is table or json, not \"%s\"", name);
    return false;
}

unsigned cli_numbers(const char *command, const char *what, const char *list, long min, long *out, unsigned cap)
{
    unsigned n = 0;
    for (const char *p = list; *p;) {
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < min || n == cap || (*end && *end != ',')) {
            cli_usage(command, "%s takes numbers from %ld on, separated by commas (at most %u), not \"%s\"", what, min, cap, list);
            return 0;
        }
        out[n++] = v;
        p = *end ? end + 1 : end;
    }
    if (n == 0)
        cli_usage(command, "%s is empty", what);
    return n;
}

void cli_json_strn(struct buf *b, const char *key, const char *s, size_t len)
{
    bool first = b->len == 0 || strchr("{,", b->data[b->len - 1]);
    buf_printf(b, "%s\"%s\":", first ? "" : ",", key);
    buf_json_str(b, s ? s : "", s ? len : 0);
}

void cli_json_str(struct buf *b, const char *key, const char *s)
{
    cli_json_strn(b, key, s, s ? strlen(s) : 0);
}

const char *cli_bytes(uint64_t n, char out[16])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)n;
    unsigned u = 0;
    while (v >= 1024 && u + 1 < ARRAY_LEN(units)) {
        v /= 1024;
        u++;
    }
    snprintf(out, 16, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return out;
}

const char *cli_count(uint64_t n, char out[16])
{
    static const char units[] = " KMBT";
    double v = (double)n;
    unsigned u = 0;
    while (v >= 1000 && units[u + 1]) {
        v /= 1000;
        u++;
    }
    if (u)
        snprintf(out, 16, "%.2f%c", v, units[u]);
    else
        snprintf(out, 16, "%.0f", v);
    return out;
}

/* ---- tables ---- */

struct cli_table {
    unsigned n_cols, n_rows, cap;
    const char *align;
    char **cells;
};

struct cli_table *cli_table_create(unsigned n_cols, const char *const *heads, const char *align)
{
    struct cli_table *t = calloc(1, sizeof(*t));
    ASSERT(t != NULL && strlen(align) == n_cols);
    t->n_cols = n_cols;
    t->align = align;
    t->cap = 16 * n_cols;
    t->cells = malloc(t->cap * sizeof(*t->cells));
    ASSERT(t->cells != NULL);
    for (unsigned i = 0; i < n_cols; i++)
        t->cells[i] = strdup(heads[i]);
    t->n_rows = 1;
    return t;
}

void cli_table_cells(struct cli_table *t, const char *const *cells)
{
    if ((t->n_rows + 1) * t->n_cols > t->cap) {
        t->cap = t->cap * 2 + t->n_cols;
        char **p = realloc(t->cells, t->cap * sizeof(*p));
        ASSERT(p != NULL);
        t->cells = p;
    }
    for (unsigned i = 0; i < t->n_cols; i++)
        t->cells[t->n_rows * t->n_cols + i] = strdup(cells[i] ? cells[i] : "");
    t->n_rows++;
}

void cli_table_row(struct cli_table *t, ...)
{
    enum { COLS_MAX = 32 };
    const char *cells[COLS_MAX];
    va_list ap;
    ASSERT(t->n_cols <= COLS_MAX);
    va_start(ap, t);
    for (unsigned i = 0; i < t->n_cols; i++)
        cells[i] = va_arg(ap, const char *);
    va_end(ap);
    cli_table_cells(t, cells);
}

void cli_table_print(struct cli_table **tp)
{
    struct cli_table *t = *tp;
    for (unsigned r = 0; r < t->n_rows; r++) {
        for (unsigned c = 0; c < t->n_cols; c++) {
            int width = 0;
            for (unsigned k = 0; k < t->n_rows; k++)
                width = MAX(width, (int)strlen(t->cells[k * t->n_cols + c]));
            const char *s = t->cells[r * t->n_cols + c];
            if (t->align[c] == 'r')
                printf("%s%*s", c ? "  " : "", width, s);
            else if (c + 1 == t->n_cols)
                printf("%s%s", c ? "  " : "", s);
            else
                printf("%s%-*s", c ? "  " : "", width, s);
        }
        putchar('\n');
    }
    for (unsigned i = 0; i < t->n_rows * t->n_cols; i++)
        free(t->cells[i]);
    free(t->cells);
    free(t);
    *tp = NULL;
}

/* ---- progress ---- */

bool cli_is_terminal(void)
{
    return isatty(2);
}

void cli_progress(const char *what, double fraction)
{
    enum { WIDTH = 30 };
    if (!cli_is_terminal())
        return;
    char bar[WIDTH + 1];
    int n = fraction < 0 ? 0 : fraction > 1 ? WIDTH : (int)(fraction * WIDTH);
    for (int i = 0; i < WIDTH; i++)
        bar[i] = i < n ? '#' : '.';
    bar[WIDTH] = '\0';
    if (fraction < 0)
        fprintf(stderr, "\r\033[K%-24.24s", what);
    else
        fprintf(stderr, "\r\033[K%-24.24s [%s] %3.0f%%", what, bar, fraction * 100);
    fflush(stderr);
    progress_drawn = true;
}

void cli_progress_end(void)
{
    if (progress_drawn)
        fputs("\r\033[K", stderr);
    progress_drawn = false;
}
