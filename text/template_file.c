#include "text/template_file.h"

#include "base/check.h"

#include <jansson.h>
#include <string.h>

enum { FILE_MAX = 16 << 20 };

/* [{"name": "default", "template": "..."}, {"name": "tool_use", ...}] */
static const json_t *pick(const json_t *templates, const char *wanted)
{
    size_t i;
    const json_t *entry;
    if (json_is_string(templates))
        return strcmp(wanted, "default") == 0 ? templates : NULL;
    json_array_foreach(templates, i, entry)
    {
        const json_t *name = json_object_get(entry, "name");
        if (json_is_string(name) && strcmp(json_string_value(name), wanted) == 0)
            return json_object_get(entry, "template");
    }
    return NULL;
}

static enum err from_json(const char *path, const char *name, struct buf *b)
{
    json_error_t at;
    json_t *o = json_loadb(b->data ? b->data : "", b->len, JSON_REJECT_DUPLICATES, &at);
    if (!o)
        return err_set(ERR_CORRUPT, "%s: no JSON: %s (line %d)", path, at.text, at.line);
    const json_t *t = pick(json_object_get(o, "chat_template"), name);
    enum err e = ERR_OK;
    buf_clear(b);
    if (json_is_string(t))
        buf_append(b, json_string_value(t), json_string_length(t));
    else
        e = err_set(strcmp(name, "default") == 0 ? ERR_INVALID : ERR_NOT_FOUND,
                    "%s has no member \"chat_template\" that is a string or holds one named \"%s\"", path, name);
    json_decref(o);
    return e == ERR_OK && b->failed ? err_set(ERR_NOMEM, "%s: no memory for the template", path) : e;
}

enum err template_file_read_named(const char *path, const char *name, struct buf *out)
{
    size_t n = strlen(path);
    bool json = n > 5 && strcmp(path + n - 5, ".json") == 0;
    buf_init(out);
    if (!json && strcmp(name, "default") != 0)
        return err_set(ERR_NOT_FOUND, "%s is one template; it has none named \"%s\"", path, name);
    enum err e = buf_read_file(out, path, FILE_MAX);
    if (e == ERR_OK && json)
        e = from_json(path, name, out);
    if (e != ERR_OK)
        buf_deinit(out);
    return e;
}

enum err template_file_read(const char *path, struct buf *out)
{
    return template_file_read_named(path, "default", out);
}
