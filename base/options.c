/* Options (options.h): the rows of options.def as data, the parsing of values, the environment and the flags. The file
 * is read in options_yaml.c; the texts for people are made in options_doc.c. No state of its own. */
#include "base/options.h"

#include "base/check.h"
#include "base/log.h"
#include "base/options_table.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

/* How a row's columns become the members of struct option_row, by type. ENUM has its names in the min column. */
#define ROW_BOOL(def_, min_, max_) .def = def_
#define ROW_INT(def_, min_, max_) .def = def_, .min = min_, .max = max_
#define ROW_SIZE(def_, min_, max_) .def = def_, .min = min_, .max = max_
#define ROW_FLOAT(def_, min_, max_) .def_float = def_, .min_float = min_, .max_float = max_
#define ROW_STR(def_, min_, max_) .def_str = def_
#define ROW_MS(def_, min_, max_) .def = def_, .min = min_, .max = max_
#define ROW_ENUM(def_, names_, max_) .def = def_, .names = names_

const struct option_row option_rows[OPTION_ROW_COUNT] = {
#define OPT(id_, key_, type_, def_, min_, max_, unit_, live_, scope_, help_)                                           \
    {.id = #id_,                                                                                                       \
     .key = key_,                                                                                                      \
     .type = OPTION_TYPE_##type_,                                                                                      \
     .offset = offsetof(struct options, id_),                                                                          \
     ROW_##type_(def_, min_, max_),                                                                                    \
     .unit = unit_,                                                                                                    \
     .live = live_,                                                                                                    \
     .scope = scope_,                                                                                                  \
     .help = help_},
#include "base/options.def"
#undef OPT
};

_Static_assert(OPTION_ROW_COUNT <= 128, "set_mask has a bit for each row");

/* Second names of flags, which users know from elsewhere. */
static const struct {
    const char *flag;
    unsigned row;
} aliases[] = {
    {"-o", OPTION_ROW_output},
    {"-h", OPTION_ROW_help},
    {"-tp", OPTION_ROW_tp},
    {"-pp", OPTION_ROW_pp},
    {"--name", OPTION_ROW_served_model_name},
};

/* --- fields --- */

static void *field(struct options *o, const struct option_row *r)
{
    return (char *)o + r->offset;
}

static void mark_given(struct options *o, unsigned row)
{
    o->set_mask[row / 64] |= 1ull << (row % 64);
    o->outer_mask[row / 64] |= 1ull << (row % 64);
}

static void set_default(struct options *o, const struct option_row *r)
{
    void *f = field(o, r);
    switch (r->type) {
    case OPTION_TYPE_BOOL:
        *(bool *)f = r->def != 0;
        break;
    case OPTION_TYPE_INT:
        *(int64_t *)f = r->def;
        break;
    case OPTION_TYPE_SIZE:
        *(uint64_t *)f = (uint64_t)r->def;
        break;
    case OPTION_TYPE_FLOAT:
        *(double *)f = r->def_float;
        break;
    case OPTION_TYPE_STR:
        *(char **)f = r->def_str ? strdup(r->def_str) : NULL;
        ASSERT(!r->def_str || *(char **)f); /* a few bytes at the start of a process */
        break;
    case OPTION_TYPE_MS:
        *(uint32_t *)f = (uint32_t)r->def;
        break;
    case OPTION_TYPE_ENUM:
        *(int *)f = (int)r->def;
        break;
    }
}

void options_init(struct options *o)
{
    memset(o, 0, sizeof *o);
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++)
        set_default(o, &option_rows[i]);
}

void options_deinit(struct options *o)
{
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        if (option_rows[i].type != OPTION_TYPE_STR)
            continue;
        char **s = field(o, &option_rows[i]);
        if (*s && strcmp(option_rows[i].id, "api_key") == 0)
            explicit_bzero(*s, strlen(*s));
        free(*s);
    }
    option_drop_models(o);
    memset(o, 0, sizeof *o);
}

static bool in_mask(const uint64_t mask[2], const char *id)
{
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++)
        if (strcmp(option_rows[i].id, id) == 0)
            return mask[i / 64] >> (i % 64) & 1;
    ASSERT(!"no such option");
    return false;
}

bool options_given(const struct options *o, const char *id)
{
    return in_mask(o->set_mask, id);
}

bool options_overrides(const struct options *o, const char *id)
{
    return in_mask(o->outer_mask, id);
}

/* --- values --- */

/* The factor of a suffix (power of 1024), 0 when it is none. "", B, K, KB, KiB, ... */
static uint64_t size_factor(const char *s)
{
    static const char letters[] = "KMGT";
    if (*s == 0 || strcasecmp(s, "b") == 0)
        return 1;
    const char *at = strchr(letters, toupper((unsigned char)*s));
    if (!at || (s[1] && strcasecmp(s + 1, "b") != 0 && strcasecmp(s + 1, "ib") != 0))
        return 0;
    return 1ull << 10 * (at - letters + 1);
}

bool options_parse_size(const char *s, uint64_t *out)
{
    /* By hand: strtod would take "inf", "0x10" and signs, and loses the low bits of large integers. */
    if (!isdigit((unsigned char)*s))
        return false;
    uint64_t whole = 0;
    for (; isdigit((unsigned char)*s); s++)
        if (!check_mul(whole, 10, &whole) || !check_add(whole, (uint64_t)(*s - '0'), &whole))
            return false;
    double fraction = 0, weight = 0.1;
    if (*s == '.') {
        if (!isdigit((unsigned char)*++s))
            return false;
        for (; isdigit((unsigned char)*s); s++, weight /= 10)
            fraction += weight * (*s - '0');
    }
    while (*s == ' ')
        s++;
    uint64_t factor = size_factor(s), bytes;
    if (factor == 0 || (factor == 1 && fraction > 0) || !check_mul(whole, factor, &bytes))
        return false;
    return check_add(bytes, (uint64_t)(fraction * (double)factor + 0.5), out);
}

static bool parse_int(const char *s, int64_t *out)
{
    char *end;
    if (!isdigit((unsigned char)s[*s == '-' || *s == '+']))
        return false;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (errno || *end)
        return false;
    *out = v;
    return true;
}

static bool parse_bool(const char *s, bool *out)
{
    static const char *const yes[] = {"true", "yes", "on", "1"}, *const no[] = {"false", "no", "off", "0"};
    for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
        if (strcasecmp(s, yes[i]) == 0 || strcasecmp(s, no[i]) == 0) {
            *out = strcasecmp(s, yes[i]) == 0;
            return true;
        }
    }
    return false;
}

/* Milliseconds: a number, or one with ms, s or m. */
static bool parse_ms(const char *s, int64_t *out)
{
    size_t digits = strspn(s, "0123456789");
    if (digits == 0 || digits > 15)
        return false;
    int64_t v = strtoll(s, NULL, 10);
    const char *suffix = s + digits;
    int64_t factor = strcmp(suffix, "") == 0 || strcmp(suffix, "ms") == 0 ? 1
                     : strcmp(suffix, "s") == 0                           ? 1000
                     : strcmp(suffix, "m") == 0                           ? 60000
                                                                          : 0;
    *out = v * factor;
    return factor != 0;
}

static bool parse_float(const char *s, double *out)
{
    char *end;
    if (!isdigit((unsigned char)s[*s == '-' || *s == '+']) && s[*s == '-' || *s == '+'] != '.')
        return false;
    *out = strtod(s, &end);
    return *end == 0 && isfinite(*out);
}

/* The index of the name among "a|b|c", -1 when it is none. */
static int enum_index(const char *names, const char *s)
{
    size_t len = strlen(s);
    for (int i = 0; len > 0; i++) {
        size_t n = strcspn(names, "|");
        if (n == len && memcmp(names, s, n) == 0)
            return i;
        if (!names[n])
            break;
        names += n + 1;
    }
    return -1;
}

static bool in_range(const struct option_row *r, int64_t v)
{
    return (r->min == 0 && r->max == 0) || (v >= r->min && v <= r->max);
}

static bool set_str(char **f, const char *text)
{
    char *copy = strdup(text);
    if (!copy)
        return false;
    free(*f);
    *f = copy;
    return true;
}

/* False when the text is no value of the row's type and range. */
static bool set_field(void *f, const struct option_row *r, const char *text)
{
    int64_t v = 0;
    double d;
    uint64_t size;
    int i;
    switch (r->type) {
    case OPTION_TYPE_BOOL:
        return parse_bool(text, f);
    case OPTION_TYPE_INT:
        if (!parse_int(text, &v) || !in_range(r, v))
            return false;
        *(int64_t *)f = v;
        return true;
    case OPTION_TYPE_MS:
        if (!parse_ms(text, &v) || !in_range(r, v))
            return false;
        *(uint32_t *)f = (uint32_t)v;
        return true;
    case OPTION_TYPE_SIZE:
        if (!options_parse_size(text, &size) || size < (uint64_t)r->min || (r->max && size > (uint64_t)r->max))
            return false;
        *(uint64_t *)f = size;
        return true;
    case OPTION_TYPE_FLOAT:
        if (!parse_float(text, &d) || d < r->min_float || d > r->max_float)
            return false;
        *(double *)f = d;
        return true;
    case OPTION_TYPE_ENUM:
        i = enum_index(r->names, text);
        if (i < 0)
            return false;
        *(int *)f = i;
        return true;
    case OPTION_TYPE_STR:
        return set_str(f, text);
    }
    return false;
}

void option_range(const struct option_row *r, char *out, size_t cap)
{
    const char *unit = r->unit, *blank = *unit ? " " : "";
    switch (r->type) {
    case OPTION_TYPE_BOOL:
        snprintf(out, cap, "true or false");
        break;
    case OPTION_TYPE_INT:
        if (r->min == 0 && r->max == 0)
            snprintf(out, cap, "an integer");
        else
            snprintf(out, cap, "an integer in %lld..%lld%s%s", (long long)r->min, (long long)r->max, blank, unit);
        break;
    case OPTION_TYPE_MS:
        snprintf(out, cap, "milliseconds in %lld..%lld (or with s, m: 2s)", (long long)r->min, (long long)r->max);
        break;
    case OPTION_TYPE_SIZE:
        snprintf(out, cap, "bytes%s with an optional suffix K, M, G or T", r->min ? ", at least 1K," : "");
        if (r->min && r->min != 1024)
            snprintf(out, cap, "bytes, at least %lld, with an optional suffix K, M, G or T", (long long)r->min);
        break;
    case OPTION_TYPE_FLOAT:
        snprintf(out, cap, "a number in %g..%g%s%s", r->min_float, r->max_float, blank, unit);
        break;
    case OPTION_TYPE_ENUM: {
        size_t n = (size_t)snprintf(out, cap, "one of ");
        for (const char *s = r->names; *s && n + 3 < cap; s++) {
            if (*s == '|')
                n += (size_t)snprintf(out + n, cap - n, ", ");
            else
                out[n++] = *s;
        }
        out[n] = 0;
        break;
    }
    case OPTION_TYPE_STR:
        snprintf(out, cap, "a string");
        break;
    }
}

enum err option_set(struct options *o, unsigned row, const char *text, const char *source)
{
    const struct option_row *r = &option_rows[row];
    if (!set_field(field(o, r), r, text)) {
        char range[256];
        if (r->type == OPTION_TYPE_STR)
            return err_set(ERR_NOMEM, "%s: no memory for %s", source, r->key);
        option_range(r, range, sizeof range);
        return err_set(ERR_CONFIG, "%s: %s is \"%.80s\" but must be %s", source, r->key, text, range);
    }
    mark_given(o, row);
    return ERR_OK;
}

enum err option_copy(struct options *to, const struct options *from, unsigned row)
{
    static const size_t sizes[] = {[OPTION_TYPE_BOOL] = sizeof(bool), [OPTION_TYPE_INT] = sizeof(int64_t), [OPTION_TYPE_SIZE] = sizeof(uint64_t),
                                   [OPTION_TYPE_FLOAT] = sizeof(double), [OPTION_TYPE_MS] = sizeof(uint32_t), [OPTION_TYPE_ENUM] = sizeof(int)};
    const struct option_row *r = &option_rows[row];
    uint64_t bit = 1ull << (row % 64);
    const void *f = (const char *)from + r->offset;
    if (r->type != OPTION_TYPE_STR)
        memcpy(field(to, r), f, sizes[r->type]);
    else if (*(char *const *)f && !set_str(field(to, r), *(char *const *)f))
        return err_set(ERR_NOMEM, "no memory for the options");
    to->set_mask[row / 64] |= from->set_mask[row / 64] & bit;
    to->outer_mask[row / 64] |= from->outer_mask[row / 64] & bit;
    return ERR_OK;
}

/* --- names --- */

void option_flag_name(const struct option_row *r, char *out, size_t cap)
{
    snprintf(out, cap, "%s", r->id);
    for (char *c = out; *c; c++)
        if (*c == '_')
            *c = '-';
}

unsigned option_distance(const char *a, const char *b)
{
    enum { MAX = 64 };
    size_t la = strlen(a), lb = strlen(b);
    if (la >= MAX || lb >= MAX)
        return MAX;
    unsigned d[3][MAX + 1]; /* the rows i - 2, i - 1, i of the table (optimal string alignment) */
    for (size_t j = 0; j <= lb; j++)
        d[0][j] = (unsigned)j;
    for (size_t i = 1; i <= la; i++) {
        unsigned *now = d[i % 3], *last = d[(i + 2) % 3], *before = d[(i + 1) % 3];
        now[0] = (unsigned)i;
        for (size_t j = 1; j <= lb; j++) {
            unsigned best = MIN(last[j], now[j - 1]) + 1;
            best = MIN(best, last[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = MIN(best, before[j - 2] + 1);
            now[j] = best;
        }
    }
    return d[la % 3][lb];
}

/* The row of a flag's name without "--"; OPTION_ROW_COUNT when there is none in the scope. */
static unsigned find_flag(const char *name, size_t len, unsigned scope)
{
    char flag[64];
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        option_flag_name(&option_rows[i], flag, sizeof flag);
        if ((option_rows[i].scope & scope) && strlen(flag) == len && memcmp(flag, name, len) == 0)
            return i;
    }
    return OPTION_ROW_COUNT;
}

static const char *nearest_flag(const char *name, unsigned scope, char *out, size_t cap)
{
    unsigned best = 1000;
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        char flag[64];
        if (!(option_rows[i].scope & scope))
            continue;
        option_flag_name(&option_rows[i], flag, sizeof flag);
        unsigned d = option_distance(name, flag);
        if (d < best) {
            best = d;
            snprintf(out, cap, "%s", flag);
        }
    }
    return out;
}

/* --- environment --- */

static unsigned find_variable(const char *name, size_t len)
{
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        const char *id = option_rows[i].id;
        size_t k = 0;
        while (k < len && id[k] && toupper((unsigned char)id[k]) == name[k])
            k++;
        if (k == len && !id[k])
            return i;
    }
    return OPTION_ROW_COUNT;
}

/* Warns of RACKLM_* variables that are no option but nearly are: a typing mistake would be silent otherwise. Others
 * are left alone, since tests and container runtimes set variables with this prefix too. */
static void warn_of_variable(const char *name, size_t len)
{
    char lower[64];
    if (len >= sizeof lower)
        return;
    for (size_t i = 0; i <= len; i++)
        lower[i] = i < len ? (char)tolower((unsigned char)name[i]) : 0;
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        unsigned d = option_distance(lower, option_rows[i].id);
        if (d <= 2 && d * 3 < len) {
            LOG(WARN, BASE, "unknown environment variable ignored", "name=RACKLM_%.*s nearest_option=%s", (int)len,
                name, option_rows[i].id);
            return;
        }
    }
}

enum err options_load_env(struct options *o, unsigned scope)
{
    static const char prefix[] = "RACKLM_";
    for (char **e = environ; e && *e; e++) {
        if (strncmp(*e, prefix, sizeof prefix - 1) != 0)
            continue;
        const char *name = *e + sizeof prefix - 1;
        size_t len = strcspn(name, "=");
        unsigned row = find_variable(name, len);
        if (row == OPTION_ROW_COUNT) {
            warn_of_variable(name, len);
            continue;
        }
        const char *value = name[len] ? name + len + 1 : "";
        /* A variable set for a server must not break another command, nor a child that takes fewer options. An empty
         * one counts as unset. Kubernetes sets RACKLM_PORT=tcp://... in pods beside a service named racklm. */
        if (!(option_rows[row].scope & scope) || row == OPTION_ROW_help || !*value ||
            (row == OPTION_ROW_port && strncmp(value, "tcp://", 6) == 0))
            continue;
        char source[64];
        snprintf(source, sizeof source, "the variable RACKLM_%.*s", (int)MIN(len, (size_t)32), name);
        TRY(option_set(o, row, value, source));
    }
    return ERR_OK;
}

/* --- flags --- */

/* One argument looked at: an option (row, value), or none of ours. */
struct flag {
    unsigned row;      /* OPTION_ROW_COUNT: not an option */
    const char *value; /* NULL: none (yet) */
    bool negated;
    bool is_flag; /* begins like an option */
};

static struct flag parse_flag(const char *arg, unsigned scope)
{
    struct flag f = {.row = OPTION_ROW_COUNT};
    const char *eq = strchr(arg, '=');
    size_t len = eq ? (size_t)(eq - arg) : strlen(arg);
    f.value = eq ? eq + 1 : NULL;
    for (size_t i = 0; i < ARRAY_LEN(aliases); i++) {
        if (strlen(aliases[i].flag) == len && memcmp(aliases[i].flag, arg, len) == 0 &&
            (option_rows[aliases[i].row].scope & scope)) {
            f.row = aliases[i].row;
            f.is_flag = true;
            return f;
        }
    }
    /* "-" is standard input and "-1" a number: arguments, not flags. */
    f.is_flag = arg[0] == '-' && arg[1] && !isdigit((unsigned char)arg[1]);
    if (arg[0] != '-' || arg[1] != '-')
        return f;
    f.row = find_flag(arg + 2, len - 2, scope);
    if (f.row == OPTION_ROW_COUNT && len > 5 && memcmp(arg, "--no-", 5) == 0) {
        unsigned row = find_flag(arg + 5, len - 5, scope);
        if (row != OPTION_ROW_COUNT && option_rows[row].type == OPTION_TYPE_BOOL) {
            f.row = row;
            f.negated = true;
        }
    }
    return f;
}

static bool takes_next(const struct flag *f)
{
    return f->row != OPTION_ROW_COUNT && !f->value && option_rows[f->row].type != OPTION_TYPE_BOOL;
}

/* Finds --help and --config, which decide about everything else, before any value is looked at. */
static void scan_first(int argc, char **argv, unsigned scope, bool *help, const char **config)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        struct flag f = parse_flag(argv[i], scope);
        if (takes_next(&f) && i + 1 < argc)
            f.value = argv[++i];
        if (f.row == OPTION_ROW_help && !f.negated)
            *help = true;
        else if (f.row == OPTION_ROW_config && f.value)
            *config = f.value;
    }
}

static enum err unknown_flag(const char *arg, unsigned scope)
{
    char name[64], near[64] = "";
    snprintf(name, sizeof name, "%.*s", (int)MIN(strcspn(arg, "="), sizeof name - 1), arg);
    const char *bare = name + strspn(name, "-");
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        char flag[64];
        option_flag_name(&option_rows[i], flag, sizeof flag);
        if (strcmp(flag, bare) == 0 && !(option_rows[i].scope & scope))
            return err_set(ERR_CONFIG, "%s: not an option of this command (see --help)", name);
    }
    nearest_flag(bare, scope, near, sizeof near);
    return err_set(ERR_CONFIG, "%s: unknown option; the nearest is --%s (see --help)", name, near);
}

static enum err apply_flag(struct options *o, struct flag *f, int argc, char **argv, int *i)
{
    const struct option_row *r = &option_rows[f->row];
    const char *arg = argv[*i];
    char source[64], range[256];
    snprintf(source, sizeof source, "%.*s", (int)MIN(strcspn(arg, "="), sizeof source - 1), arg);
    if (r->type == OPTION_TYPE_BOOL) {
        if (f->negated && f->value)
            return err_set(ERR_CONFIG, "%s: takes no value", source);
        return option_set(o, f->row, f->negated ? "false" : f->value ? f->value : "true", source);
    }
    if (!f->value) {
        if (*i + 1 >= argc || strncmp(argv[*i + 1], "--", 2) == 0) {
            option_range(r, range, sizeof range);
            return err_set(ERR_CONFIG, "%s: needs a value: %s", source, range);
        }
        f->value = argv[++*i];
    }
    return option_set(o, f->row, f->value, source);
}

enum err options_load_flags(struct options *o, unsigned scope, int *argc, char **argv)
{
    int n = *argc, kept = 0;
    for (int i = 0; i < n; i++) {
        if (strcmp(argv[i], "--") == 0) {
            while (++i < n)
                argv[kept++] = argv[i];
            break;
        }
        struct flag f = parse_flag(argv[i], scope);
        if (f.row != OPTION_ROW_COUNT)
            TRY(apply_flag(o, &f, n, argv, &i));
        else if (f.is_flag)
            return unknown_flag(argv[i], scope);
        else
            argv[kept++] = argv[i];
    }
    *argc = kept;
    return ERR_OK;
}

enum err options_load_args(struct options *o, unsigned scope, int *argc, char **argv)
{
    bool help = false;
    const char *config = getenv("RACKLM_CONFIG");
    scan_first(*argc, argv, scope, &help, &config);
    if (help) { /* whatever else is wrong, the person wants the text */
        o->help = true;
        mark_given(o, OPTION_ROW_help);
        return ERR_OK;
    }
    if (config && *config)
        TRY(options_load_file(o, config));
    TRY(options_load_env(o, scope));
    TRY(options_load_flags(o, scope, argc, argv));
    if (o->outer_mask[OPTION_ROW_model / 64] >> (OPTION_ROW_model % 64) & 1)
        option_drop_models(o); /* the file's: one model was named instead */
    return ERR_OK;
}
