/* The texts for people, made from the rows of options.def: --help, the Markdown table, the lines of the man page. */
#include "base/options.h"

#include "base/check.h"
#include "base/options_table.h"

#include <stdio.h>
#include <string.h>

enum { HELP_COLUMN = 34, HELP_WIDTH = 100 };

/* The name of the index'th of "a|b|c". */
static void enum_name(const char *names, int64_t index, char *out, size_t cap)
{
    for (; index > 0; index--)
        names += strcspn(names, "|") + 1;
    snprintf(out, cap, "%.*s", (int)strcspn(names, "|"), names);
}

static void size_text(uint64_t v, char *out, size_t cap)
{
    static const char letters[] = "KMGT";
    int i = -1;
    while (v >= 1024 && v % 1024 == 0 && i < 3) {
        v /= 1024;
        i++;
    }
    snprintf(out, cap, "%llu%.*s", (unsigned long long)v, i >= 0, letters + (i >= 0 ? i : 0));
}

/* The default as one would write it; "" when there is none worth showing. */
static void default_text(const struct option_row *r, char *out, size_t cap)
{
    out[0] = 0;
    switch (r->type) {
    case OPTION_TYPE_BOOL:
        snprintf(out, cap, "%s", r->def ? "true" : "");
        break;
    case OPTION_TYPE_INT:
    case OPTION_TYPE_MS:
        snprintf(out, cap, "%lld", (long long)r->def);
        break;
    case OPTION_TYPE_SIZE:
        size_text((uint64_t)r->def, out, cap);
        break;
    case OPTION_TYPE_FLOAT:
        snprintf(out, cap, "%g", r->def_float);
        break;
    case OPTION_TYPE_STR:
        snprintf(out, cap, "%s", r->def_str ? r->def_str : "");
        break;
    case OPTION_TYPE_ENUM:
        enum_name(r->names, r->def, out, cap);
        break;
    }
}

/* The word that stands for the value in "--flag WORD". */
static void value_word(const struct option_row *r, char *out, size_t cap)
{
    const char *word = r->type == OPTION_TYPE_BOOL   ? ""
                       : r->type == OPTION_TYPE_ENUM ? r->names
                       : r->type == OPTION_TYPE_MS   ? "MS"
                       : r->type == OPTION_TYPE_SIZE ? "SIZE"
                       : r->type == OPTION_TYPE_STR  ? r->unit
                                                     : "N";
    snprintf(out, cap, "%s", word);
    if (r->type == OPTION_TYPE_STR)
        for (char *c = out; *c; c++)
            *c = *c >= 'a' && *c <= 'z' ? (char)(*c - 'a' + 'A') : *c;
}

/* The help text, with the default unless the text tells it itself. */
static void help_text(const struct option_row *r, char *out, size_t cap)
{
    char def[64];
    default_text(r, def, sizeof def);
    if (def[0] && !strstr(r->help, "(default") && !strstr(r->help, "(0:"))
        snprintf(out, cap, "%s (default %s)", r->help, def);
    else
        snprintf(out, cap, "%s", r->help);
}

static bool is_internal(const struct option_row *r)
{
    return strncmp(r->help, "internal", 8) == 0;
}

/* Words of `text` from column HELP_COLUMN on, wrapped; `column` is where the line is now. */
static void wrap(struct buf *out, const char *text, size_t column)
{
    if (column >= HELP_COLUMN) {
        buf_putc(out, '\n');
        column = 0;
    }
    buf_printf(out, "%*s", (int)(HELP_COLUMN - column), "");
    column = HELP_COLUMN;
    while (*text) {
        size_t n = strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + n > HELP_WIDTH) {
            buf_printf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        if (column > HELP_COLUMN) {
            buf_putc(out, ' ');
            column++;
        }
        buf_append(out, text, n);
        column += n;
        text += n;
        text += strspn(text, " ");
    }
    buf_putc(out, '\n');
}

void options_help(struct buf *out, unsigned scope)
{
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        const struct option_row *r = &option_rows[i];
        if (!(r->scope & scope) || is_internal(r))
            continue;
        char flag[64], word[64], text[512], line[160];
        option_flag_name(r, flag, sizeof flag);
        value_word(r, word, sizeof word);
        help_text(r, text, sizeof text);
        const char *letter = i == OPTION_ROW_output ? "-o, " : i == OPTION_ROW_help ? "-h, " : "    ";
        snprintf(line, sizeof line, "  %s--%s%s%s ", letter, flag, *word ? " " : "", word);
        buf_puts(out, line);
        wrap(out, text, strlen(line));
    }
}

/* A table cell: the bar is its border. */
static void put_cell(struct buf *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '|')
            buf_putc(out, '\\');
        buf_putc(out, *s);
    }
}

void options_markdown(struct buf *out)
{
    buf_puts(out, "| key in racklm.yaml | flag | variable | default | value | programs | meaning |\n"
                  "|---|---|---|---|---|---|---|\n");
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        const struct option_row *r = &option_rows[i];
        char flag[64], def[64], range[256], variable[64];
        if (is_internal(r) || i == OPTION_ROW_help)
            continue;
        option_flag_name(r, flag, sizeof flag);
        default_text(r, def, sizeof def);
        option_range(r, range, sizeof range);
        snprintf(variable, sizeof variable, "%s", r->id);
        for (char *c = variable; *c; c++)
            *c = *c >= 'a' && *c <= 'z' ? (char)(*c - 'a' + 'A') : *c;
        buf_printf(out, "| `%s` | `--%s` | `RACKLM_%s` | %s | ", i == OPTION_ROW_config ? "" : r->key, flag, variable,
                   def);
        put_cell(out, range);
        buf_printf(out, " |%s%s%s%s%s | ", r->scope & OPTION_COORDINATOR ? " coordinator" : "",
                   r->scope & OPTION_WORKER ? " worker" : "", r->scope & OPTION_SERVE ? " serve" : "",
                   r->scope & OPTION_CLIENT ? " client" : "",
                   r->scope & OPTION_MODEL ? " (per model)" : "");
        put_cell(out, r->help);
        buf_printf(out, "%s |\n", r->live ? " (live)" : "");
    }
}

/* Text in troff: a hyphen is a minus sign in flags, a backslash and a leading dot are commands. */
static void put_troff(struct buf *out, const char *s)
{
    if (*s == '.' || *s == '\'')
        buf_puts(out, "\\&");
    for (; *s; s++) {
        if (*s == '-')
            buf_puts(out, "\\-");
        else if (*s == '\\')
            buf_puts(out, "\\e");
        else
            buf_putc(out, *s);
    }
}

void options_man(struct buf *out, unsigned scope)
{
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        const struct option_row *r = &option_rows[i];
        if (!(r->scope & scope) || is_internal(r))
            continue;
        char flag[64], word[64], text[512];
        option_flag_name(r, flag, sizeof flag);
        value_word(r, word, sizeof word);
        help_text(r, text, sizeof text);
        buf_puts(out, ".TP\n\\fB");
        if (i == OPTION_ROW_output || i == OPTION_ROW_help)
            buf_puts(out, i == OPTION_ROW_output ? "\\-o\\fR, \\fB" : "\\-h\\fR, \\fB");
        buf_puts(out, "\\-\\-");
        put_troff(out, flag);
        buf_puts(out, "\\fR");
        if (*word) {
            buf_puts(out, " \\fI");
            put_troff(out, word);
            buf_puts(out, "\\fR");
        }
        buf_putc(out, '\n');
        put_troff(out, text);
        buf_putc(out, '\n');
    }
}
