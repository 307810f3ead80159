/* What options.c (values, environment, flags), options_yaml.c (the file) and options_doc.c (help, Markdown, man page)
 * share: the rows of options.def as data. Private to base/. */
#ifndef BASE_OPTIONS_TABLE_H
#define BASE_OPTIONS_TABLE_H

#include "base/options.h"

#include <stddef.h>

enum option_type {
    OPTION_TYPE_BOOL,
    OPTION_TYPE_INT,
    OPTION_TYPE_SIZE,
    OPTION_TYPE_FLOAT,
    OPTION_TYPE_STR,
    OPTION_TYPE_MS,
    OPTION_TYPE_ENUM,
};

/* Integers keep their range in int64_t; a SIZE has no upper bound when max is 0, an INT no range when both are 0. */
struct option_row {
    const char *id, *key; /* C field; dotted path in the file */
    enum option_type type;
    size_t offset; /* of the field in struct options */
    int64_t def, min, max;
    double def_float, min_float, max_float;
    const char *def_str;
    const char *names; /* of an ENUM, "a|b|c" */
    const char *unit, *help;
    bool live;
    unsigned scope;
};

enum {
#define OPT(id, key, type, def, min, max, unit, live, scope, help) OPTION_ROW_##id,
#include "base/options.def"
#undef OPT
    OPTION_ROW_COUNT
};
extern const struct option_row option_rows[OPTION_ROW_COUNT];

/* "max_seqs" -> "max-seqs"; cut at cap. */
void option_flag_name(const struct option_row *r, char *out, size_t cap);
/* Parses `text` into the field and marks the row as given. `source` names the place ("racklm.yaml:3:7", "--port") and
 * begins the error; a secret's value is never repeated in it. */
enum err option_set(struct options *o, unsigned row, const char *text, const char *source);
/* A copy of one value, and whether it was given. */
enum err option_copy(struct options *to, const struct options *from, unsigned row);
/* One more entry of o->models, empty; NULL: OPTIONS_MODELS_MAX, or no memory. */
struct options *option_new_model(struct options *o);
void option_drop_models(struct options *o);
/* The range and kind that a value of the row must have, for errors and documentation: "an integer, 1..4096". */
void option_range(const struct option_row *r, char *out, size_t cap);
/* Edits (insert, delete, change, swap of neighbours) that turn a into b; long words count as far apart. */
unsigned option_distance(const char *a, const char *b);

#endif
