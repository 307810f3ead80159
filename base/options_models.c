/* Several models (options.h): entries of `models:` in the file or NAME=FILE arguments, and what an option then is for each. */
#include "base/options.h"

#include "base/check.h"
#include "base/options_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool given(const uint64_t mask[2], unsigned row)
{
    return mask[row / 64] >> (row % 64) & 1;
}

struct options *option_new_model(struct options *o)
{
    struct options *p = o->n_models < OPTIONS_MODELS_MAX ? realloc(o->models, (o->n_models + 1) * sizeof(*p)) : NULL;
    if (!p)
        return NULL;
    o->models = p;
    p = &o->models[o->n_models++];
    memset(p, 0, sizeof(*p));
    return p;
}

void option_drop_models(struct options *o)
{
    for (uint32_t i = 0; i < o->n_models; i++)
        options_deinit(&o->models[i]);
    free(o->models);
    o->models = NULL;
    o->n_models = 0;
}

/* What stands before the first '=' names the model, unless the whole is a file or the '=' is part of a path. */
static const char *file_part(const char *arg, size_t *name_len)
{
    const char *eq = strchr(arg, '=');
    *name_len = eq && !memchr(arg, '/', (size_t)(eq - arg)) && access(arg, F_OK) != 0 ? (size_t)(eq - arg) : 0;
    return *name_len ? eq + 1 : arg;
}

enum err options_add_models(struct options *o, int n, char *const *args)
{
    option_drop_models(o);
    for (int i = 0; i < n; i++) {
        size_t name_len;
        const char *file = file_part(args[i], &name_len);
        char name[512], source[600];
        struct options *m = option_new_model(o);
        if (!m)
            return err_set(ERR_CONFIG, "%d models: at most %d are served by one coordinator", n, OPTIONS_MODELS_MAX);
        snprintf(name, sizeof(name), "%.*s", (int)MIN(name_len, sizeof(name) - 1), args[i]);
        snprintf(source, sizeof(source), "%.500s", args[i]);
        if (!*file)
            return err_set(ERR_CONFIG, "%s: NAME=FILE is expected, the file is missing", source);
        TRY(option_set(m, OPTION_ROW_model, file, source));
        if (name_len)
            TRY(option_set(m, OPTION_ROW_served_model_name, name, source));
    }
    return ERR_OK;
}

uint32_t options_n_models(const struct options *o)
{
    return MAX(o->n_models, 1u);
}

/* Whether the entry's value counts: it has one, and neither a flag nor a variable says otherwise. What tells models apart is never taken from
 * the server's options when there are entries, but for the name of a single one. */
static bool takes_own(const struct options *o, const struct options *m, unsigned row)
{
    if (row == OPTION_ROW_model || row == OPTION_ROW_devices)
        return true;
    if (row == OPTION_ROW_served_model_name && o->n_models > 1)
        return true;
    return given(m->set_mask, row) && !given(o->outer_mask, row);
}

enum err options_model(const struct options *o, uint32_t i, struct options *out)
{
    enum err e = ERR_OK;
    memset(out, 0, sizeof(*out));
    if (o->n_models > 1 && given(o->set_mask, OPTION_ROW_served_model_name))
        return err_set(ERR_CONFIG, "served_model_name is given once for %u models: name each by NAME=FILE, or in its entry of `models:`", o->n_models);
    for (unsigned row = 0; row < OPTION_ROW_COUNT && e == ERR_OK; row++) {
        const struct options *m = o->n_models ? &o->models[i] : NULL;
        if (m && takes_own(o, m, row))
            e = option_copy(out, m, row);
        else if (row != OPTION_ROW_devices)
            e = option_copy(out, o, row);
    }
    if (e != ERR_OK)
        options_deinit(out);
    return e;
}
