/* Options: one table (options.def) gives the field, the YAML key, the flag, the environment variable, the --help line
 * and the documentation, so that they cannot disagree.
 *
 * Precedence: flag, then RACKLM_* variable, then what racklm.yaml says of one of its `models`, then of all, then the default. Errors name the source: file:line:column,
 * the flag or the variable, the valid range, and for an unknown key the nearest valid one (edit distance). */
#ifndef BASE_OPTIONS_H
#define BASE_OPTIONS_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* Which programs take an option (bit mask). */
enum option_scope {
    OPTION_COORDINATOR = 1,
    OPTION_WORKER = 2,
    OPTION_SERVE = 4,  /* racklm serve, and what starts a server of its own: run, perplexity, bench model */
    OPTION_CLIENT = 8, /* racklm commands that talk to a running coordinator */
    OPTION_MODEL = 16, /* no program: each of several models may have its own */
};
enum { OPTIONS_MODELS_MAX = 64 };

/* Types and the C type of the field:
 *   BOOL bool; INT int64_t; SIZE uint64_t (bytes, suffixes K M G T, binary); FLOAT double; STR char * (owned, may be NULL);
 *   MS uint32_t milliseconds; ENUM int (index into the `|`-separated names given in place of min). */
struct options {
#define OPTION_FIELD_BOOL(id) bool id;
#define OPTION_FIELD_INT(id) int64_t id;
#define OPTION_FIELD_SIZE(id) uint64_t id;
#define OPTION_FIELD_FLOAT(id) double id;
#define OPTION_FIELD_STR(id) char *id;
#define OPTION_FIELD_MS(id) uint32_t id;
#define OPTION_FIELD_ENUM(id) int id;
#define OPT(id, key, type, def, min, max, unit, live, scope, help) OPTION_FIELD_##type(id)
#include "base/options.def"
#undef OPT
    uint64_t set_mask[2];   /* which options were given by file, environment or flag (bit = row) */
    uint64_t outer_mask[2]; /* those of them given by environment or flag */
    struct options *models; /* several models: what each has of its own; NULL: `model` is the one */
    uint32_t n_models;
};

void options_init(struct options *o); /* the defaults */
void options_deinit(struct options *o);
/* `scope` decides which options are known: another flag is an error; in the file any option may stand; variables of other
 * programs are left alone, since children inherit them (one that is nearly an option's name is logged as a warning). */
enum err options_load_file(struct options *o, const char *path);
enum err options_load_env(struct options *o, unsigned scope);
/* Takes the flags out of argv: --name value, --name=value, --bool, --no-bool, and the one-letter forms; `--` ends them.
 * What is left stays in order in argv[0..*argc). --config FILE is loaded first, then the environment, then the flags. */
enum err options_load_args(struct options *o, unsigned scope, int *argc, char **argv);
/* The flags alone, over what is set already. */
enum err options_load_flags(struct options *o, unsigned scope, int *argc, char **argv);
/* The lines of --help for a scope; the Markdown table; the troff lines of the man page. */
void options_help(struct buf *out, unsigned scope);
void options_markdown(struct buf *out);
void options_man(struct buf *out, unsigned scope);
/* `[NAME[,ALIAS...]=]FILE` arguments: the models, in place of those in the file. */
enum err options_add_models(struct options *o, int n, char *const *args);
/* One model, or as many as `models` holds. */
uint32_t options_n_models(const struct options *o);
/* All options as model i has them: a copy, options_deinit is due. `devices` is what the entry names, never the server's own list.
 * ERR_CONFIG: served_model_name given once for several. */
enum err options_model(const struct options *o, uint32_t i, struct options *out);
/* Was this option given? options_given(o, "max_seqs"). */
bool options_given(const struct options *o, const char *id);
/* And by flag or variable, so that it holds whatever the file says? */
bool options_overrides(const struct options *o, const char *id);
/* "1.5G" -> bytes. False when it is no size. */
bool options_parse_size(const char *s, uint64_t *out);

#endif
