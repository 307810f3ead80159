/* racklm.yaml into struct options, with libyaml. A stack of sections gives every key its dotted path; a scalar sets the
 * row of that path, a list of scalars a list option (as "a,b,c"), an empty value leaves the default. `models` is a list of
 * mappings whose keys are options of one model. Errors name file,
 * line and column. Not supported, by choice, and errors: aliases, several documents, tags, keys that are no scalars.
 * The file is read whole first (1 MiB at most), so nothing here waits; scalars are never repeated in errors except
 * through option_set, which knows what is secret. */
#include "base/options.h"

#include "base/check.h"
#include "base/log.h"
#include "base/options_table.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <yaml.h>

enum { FILE_MAX = 1 << 20, DEPTH_MAX = 8, PATH_MAX_LEN = 256 };

struct loader {
    struct options *o;
    const char *file;
    yaml_parser_t parser;
    yaml_event_t event;
    bool has_event;
    char path[PATH_MAX_LEN]; /* dotted path of the section or key that is being read */
    uint64_t seen[2];        /* rows that this mapping has given: a second time is an error */
    bool in_model;           /* within an entry of `models`: its keys are options of a model */
};
static const char models_key[] = "models";

static enum err fail_at(const struct loader *l, yaml_mark_t at, const char *what)
{
    return err_set(ERR_CONFIG, "%s:%zu:%zu: %s", l->file, at.line + 1, at.column + 1, what);
}

static enum err next_event(struct loader *l)
{
    if (l->has_event)
        yaml_event_delete(&l->event);
    l->has_event = yaml_parser_parse(&l->parser, &l->event);
    if (l->has_event)
        return ERR_OK;
    const yaml_parser_t *p = &l->parser;
    if (p->error == YAML_MEMORY_ERROR)
        return err_set(ERR_NOMEM, "%s: no memory to parse it", l->file);
    yaml_mark_t at = p->problem_mark;
    if (p->error == YAML_READER_ERROR) { /* it knows a byte offset only */
        at = (yaml_mark_t){0};
        const char *text = (const char *)p->input.string.start;
        size_t size = (size_t)(p->input.string.end - p->input.string.start);
        for (size_t i = 0; i < p->problem_offset && i < size; i++) {
            at.column = text[i] == '\n' ? 0 : at.column + 1;
            at.line += text[i] == '\n';
        }
    }
    return fail_at(l, at, p->problem ? p->problem : "not YAML");
}

static const char *scalar(const struct loader *l)
{
    return (const char *)l->event.data.scalar.value;
}

static bool is_null(const struct loader *l)
{
    return l->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (strcmp(scalar(l), "") == 0 || strcmp(scalar(l), "~") == 0 || strcmp(scalar(l), "null") == 0);
}

static enum err check_scalar(const struct loader *l)
{
    if (strlen(scalar(l)) != l->event.data.scalar.length)
        return fail_at(l, l->event.start_mark, "a value holds a NUL character");
    if (l->event.data.scalar.tag)
        return fail_at(l, l->event.start_mark, "tags (!...) are not supported: write the plain value");
    return ERR_OK;
}

static bool known(const struct loader *l, unsigned row)
{
    return !l->in_model || (option_rows[row].scope & OPTION_MODEL);
}

static unsigned find_key(const struct loader *l, const char *path)
{
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++)
        if (strcmp(option_rows[i].key, path) == 0 && known(l, i))
            return i;
    return OPTION_ROW_COUNT;
}

static bool is_section(const char *path)
{
    size_t len = strlen(path);
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++)
        if (strncmp(option_rows[i].key, path, len) == 0 && option_rows[i].key[len] == '.')
            return true;
    return false;
}

/* Compares the whole path, and the last word alone for a key that stands in the wrong section. */
static const char *nearest_key(const struct loader *l)
{
    const char *path = l->path, *dot = strrchr(path, '.'), *last = dot ? dot + 1 : path, *best_key = "";
    unsigned best = 1000;
    if (!l->in_model && option_distance(path, models_key) <= 2) {
        best = option_distance(path, models_key) * 2;
        best_key = models_key;
    }
    for (unsigned i = 0; i < OPTION_ROW_COUNT; i++) {
        if (!known(l, i))
            continue;
        const char *key = option_rows[i].key, *key_dot = strrchr(key, '.');
        unsigned whole = option_distance(path, key) * 2;
        unsigned tail =
            MIN(option_distance(last, key_dot ? key_dot + 1 : key), option_distance(last, option_rows[i].id));
        unsigned d = MIN(whole, tail * 2 + 1);
        if (d < best) {
            best = d;
            best_key = key;
        }
    }
    return best_key;
}

static enum err unknown_key(const struct loader *l, yaml_mark_t at)
{
    char printable[PATH_MAX_LEN], what[PATH_MAX_LEN + 128];
    size_t n = 0;
    for (const char *c = l->path; *c && n < 80; c++)
        printable[n++] = (unsigned char)*c < 0x20 || *c == 0x7F ? '?' : *c;
    printable[n] = 0;
    if (l->in_model && (is_section(l->path) || find_key(&(struct loader){0}, l->path) != OPTION_ROW_COUNT))
        snprintf(what, sizeof what, "\"%s\" is an option of the whole server: write it outside of `models`", printable);
    else
        snprintf(what, sizeof what, "unknown key \"%s\"; the nearest valid one is \"%s\"", printable, nearest_key(l));
    return fail_at(l, at, what);
}

/* A row's value may be a secret, so a value of the wrong shape is told by shape only. */
static enum err set_row(struct loader *l, unsigned row, const char *text, yaml_mark_t at)
{
    char source[512];
    snprintf(source, sizeof source, "%.400s:%zu:%zu", l->file, at.line + 1, at.column + 1);
    TRY(option_set(l->o, row, text, source));
    l->o->outer_mask[row / 64] &= ~(1ull << (row % 64));
    return ERR_OK;
}

static bool has_seen(const struct loader *l, unsigned row)
{
    return l->seen[row / 64] >> (row % 64) & 1;
}

static enum err claim_row(struct loader *l, unsigned row, yaml_mark_t at)
{
    char what[PATH_MAX_LEN + 32];
    if (has_seen(l, row)) {
        snprintf(what, sizeof what, "\"%s\" is given twice", l->path);
        return fail_at(l, at, what);
    }
    l->seen[row / 64] |= 1ull << (row % 64);
    return ERR_OK;
}

static enum err wrong_shape(const struct loader *l, unsigned row)
{
    char range[256], what[512];
    option_range(&option_rows[row], range, sizeof range);
    snprintf(what, sizeof what, "%s has the wrong type here; it must be %s", option_rows[row].key, range);
    return fail_at(l, l->event.start_mark, what);
}

/* After the start of a list: its scalars, joined by commas. Only lists ("3,1") and plain strings take one. */
static enum err read_list(struct loader *l, unsigned row)
{
    yaml_mark_t at = l->event.start_mark;
    if (option_rows[row].type != OPTION_TYPE_STR || strcmp(option_rows[row].unit, "list") != 0)
        return wrong_shape(l, row);
    enum err e = ERR_OK;
    struct buf joined;
    buf_init(&joined);
    for (bool first = true;; first = false) {
        TRY_GOTO(next_event(l), done);
        if (l->event.type == YAML_SEQUENCE_END_EVENT)
            break;
        if (l->event.type != YAML_SCALAR_EVENT) {
            e = wrong_shape(l, row);
            goto done;
        }
        TRY_GOTO(check_scalar(l), done);
        if (!first)
            buf_putc(&joined, ',');
        buf_puts(&joined, scalar(l));
    }
    if (joined.failed)
        e = err_set(ERR_NOMEM, "%s: no memory for a list", l->file);
    else
        e = set_row(l, row, joined.data ? joined.data : "", at);
done:
    buf_deinit(&joined);
    return e;
}

static enum err push_key(struct loader *l, size_t base)
{
    size_t len = strlen(scalar(l));
    if (base + len + 2 > sizeof l->path)
        return fail_at(l, l->event.start_mark, "a key is too long");
    snprintf(l->path + base, sizeof l->path - base, "%s%s", base ? "." : "", scalar(l));
    return ERR_OK;
}

static enum err read_mapping(struct loader *l, unsigned depth);

/* After the start of an entry of `models`. */
static enum err read_model(struct loader *l, struct options *o)
{
    uint64_t seen[2] = {l->seen[0], l->seen[1]};
    yaml_mark_t at = l->event.start_mark;
    struct options *model = option_new_model(o);
    if (!model)
        return fail_at(l, at, "too many models for one server");
    l->o = model;
    l->path[0] = 0;
    l->in_model = true;
    memset(l->seen, 0, sizeof l->seen);
    TRY(read_mapping(l, 2));
    if (!model->model)
        return fail_at(l, at, "this entry of `models` has no `model: FILE`");
    l->o = o;
    l->in_model = false;
    memcpy(l->seen, seen, sizeof seen);
    snprintf(l->path, sizeof l->path, "%s", models_key);
    return ERR_OK;
}

/* The value of `models`. */
static enum err read_models(struct loader *l, yaml_mark_t at)
{
    static const char what[] = "`models` is a list, each entry a mapping of its own: \"- model: FILE\"";
    if (l->o->n_models)
        return fail_at(l, at, "\"models\" is given twice");
    TRY(next_event(l));
    if (l->event.type == YAML_SCALAR_EVENT && is_null(l))
        return ERR_OK;
    if (l->event.type != YAML_SEQUENCE_START_EVENT)
        return fail_at(l, l->event.start_mark, what);
    for (;;) {
        TRY(next_event(l));
        if (l->event.type == YAML_SEQUENCE_END_EVENT)
            return ERR_OK;
        if (l->event.type != YAML_MAPPING_START_EVENT)
            return fail_at(l, l->event.start_mark, what);
        TRY(read_model(l, l->o));
    }
}

/* The value of the key l->path, whose own place is `at`. */
static enum err read_value(struct loader *l, yaml_mark_t at, unsigned depth)
{
    if (!l->in_model && strcmp(l->path, models_key) == 0)
        return has_seen(l, OPTION_ROW_model) ? fail_at(l, at, "\"model\" and \"models\" exclude each other") : read_models(l, at);
    unsigned row = find_key(l, l->path);
    bool section = !l->in_model && is_section(l->path);
    if (row == OPTION_ROW_model && !l->in_model && l->o->n_models)
        return fail_at(l, at, "\"model\" and \"models\" exclude each other");
    if (row == OPTION_ROW_COUNT && !section)
        return unknown_key(l, at);
    if (row != OPTION_ROW_COUNT)
        TRY(claim_row(l, row, at));
    TRY(next_event(l));
    switch (l->event.type) {
    case YAML_SCALAR_EVENT:
        TRY(check_scalar(l));
        if (is_null(l))
            return ERR_OK;
        if (row == OPTION_ROW_COUNT)
            return fail_at(l, l->event.start_mark, "this key is a section: write its keys below it, indented");
        if (row == OPTION_ROW_config || row == OPTION_ROW_help || row == OPTION_ROW_parent_fd)
            return fail_at(l, at, "this option cannot stand in the file");
        return set_row(l, row, scalar(l), l->event.start_mark);
    case YAML_MAPPING_START_EVENT:
        return section ? read_mapping(l, depth + 1) : wrong_shape(l, row);
    case YAML_SEQUENCE_START_EVENT:
        if (row == OPTION_ROW_COUNT)
            return fail_at(l, l->event.start_mark, "this key is a section, not a list");
        return read_list(l, row);
    default:
        return fail_at(l, l->event.start_mark, "aliases (*name) are not supported");
    }
}

/* After the start of a mapping, up to its end. */
static enum err read_mapping(struct loader *l, unsigned depth)
{
    size_t base = strlen(l->path);
    if (depth > DEPTH_MAX)
        return fail_at(l, l->event.start_mark, "nested too deep");
    for (;;) {
        TRY(next_event(l));
        if (l->event.type == YAML_MAPPING_END_EVENT)
            return ERR_OK;
        yaml_mark_t at = l->event.start_mark;
        if (l->event.type != YAML_SCALAR_EVENT)
            return fail_at(l, at, "a key must be a word");
        TRY(check_scalar(l));
        TRY(push_key(l, base));
        TRY(read_value(l, at, depth));
        l->path[base] = 0;
    }
}

static enum err read_stream(struct loader *l)
{
    bool seen = false;
    for (;;) {
        TRY(next_event(l));
        switch (l->event.type) {
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (seen)
                return fail_at(l, l->event.start_mark, "a second document (---) is not read: use one file for each");
            seen = true;
            break;
        case YAML_MAPPING_START_EVENT:
            TRY(read_mapping(l, 1));
            break;
        case YAML_SCALAR_EVENT:
            if (!is_null(l))
                return fail_at(l, l->event.start_mark, "expected `key: value` lines");
            break;
        case YAML_STREAM_END_EVENT:
            return ERR_OK;
        default:
            return fail_at(l, l->event.start_mark, "expected `key: value` lines");
        }
    }
}

static void warn_of_readable_secret(const struct loader *l)
{
    struct stat st;
    if (!has_seen(l, OPTION_ROW_api_key) || !l->o->api_key)
        return;
    if (stat(l->file, &st) == 0 && (st.st_mode & (S_IRGRP | S_IROTH)))
        LOG(WARN, BASE, "others can read the API key", "file=%s mode=%03o advice=\"chmod 600, or use api_key_file\"",
            l->file, (unsigned)(st.st_mode & 0777));
}

enum err options_load_file(struct options *o, const char *path)
{
    struct buf text;
    struct loader l = {.o = o, .file = path};
    buf_init(&text);
    enum err e = ERR_OK;
    TRY_GOTO(buf_read_file(&text, path, FILE_MAX), done);
    if (!yaml_parser_initialize(&l.parser)) {
        e = err_set(ERR_NOMEM, "%s: no memory to parse it", path);
        goto done;
    }
    yaml_parser_set_encoding(&l.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&l.parser, (const unsigned char *)(text.data ? text.data : ""), text.len);
    e = read_stream(&l);
    if (l.has_event)
        yaml_event_delete(&l.event);
    yaml_parser_delete(&l.parser);
    if (e == ERR_OK)
        warn_of_readable_secret(&l);
done:
    if (text.data)
        explicit_bzero(text.data, text.len);
    buf_deinit(&text);
    return e;
}
