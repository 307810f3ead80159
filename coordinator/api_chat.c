/* Chat requests: from OpenAI's messages to the text that the model's template makes of them, and to token ids. What may be said in more than one way
 * (content as text or as parts, arguments as text or as an object, the developer's role) is brought to what the template wants (chat_caps.h). */
#include "coordinator/api.h"

#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "messages[3].content" and the like. */
static const char *at(char out[64], size_t idx, const char *field)
{
    snprintf(out, 64, "messages[%zu]%s%s", idx, field[0] ? "." : "", field);
    return out;
}

/* ---- content ---- */

/* The text of a part, or NULL with *e filled. */
static const json_t *part_text(const json_t *part, size_t idx, size_t k, struct api_error *e)
{
    char param[64];
    const char *type = json_string_value(json_object_get(part, "type"));
    const json_t *text = type && strcmp(type, "refusal") == 0 ? json_object_get(part, "refusal") : json_object_get(part, "text");
    if (type && (strcmp(type, "text") == 0 || strcmp(type, "refusal") == 0) && json_is_string(text))
        return text;
    api_error(e, 400, at(param, idx, "content"), "`messages[%zu].content[%zu]`: only parts {\"type\": \"text\", \"text\": ...} are understood by this model, not `%.40s`",
              idx, k, type ? type : "?");
    return NULL;
}

/* Text parts in one string, a line each, as the peers join them. */
static json_t *join_parts(const json_t *parts, size_t idx, struct api_error *e)
{
    struct buf b;
    buf_init(&b);
    json_t *s = NULL;
    for (size_t k = 0; k < json_array_size(parts); k++) {
        const json_t *text = part_text(json_array_get(parts, k), idx, k, e);
        if (!text)
            goto out;
        if (k)
            buf_putc(&b, '\n');
        buf_append(&b, json_string_value(text), json_string_length(text));
    }
    s = b.failed ? NULL : json_stringn(b.data ? b.data : "", b.len);
    if (!s)
        api_error(e, 503, NULL, "out of memory");
out:
    buf_deinit(&b);
    return s;
}

static json_t *check_parts(const json_t *parts, size_t idx, struct api_error *e)
{
    for (size_t k = 0; k < json_array_size(parts); k++)
        if (!part_text(json_array_get(parts, k), idx, k, e))
            return NULL;
    return json_incref((json_t *)parts);
}

/* Content as the template wants it: a new reference, or NULL with *e filled. */
static json_t *content_for(const struct chat_caps *caps, const json_t *content, bool optional, size_t idx, struct api_error *e)
{
    char param[64];
    if (!content || json_is_null(content)) {
        if (optional)
            return json_string("");
        api_error(e, 400, at(param, idx, "content"), "`messages[%zu].content` is missing", idx);
        return NULL;
    }
    if (json_is_array(content))
        return caps->parts ? check_parts(content, idx, e) : join_parts(content, idx, e);
    if (!json_is_string(content)) {
        api_error(e, 400, at(param, idx, "content"), "`messages[%zu].content` must be a string or a list of parts", idx);
        return NULL;
    }
    return caps->parts ? json_pack("[{s:s, s:O}]", "type", "text", "text", content) : json_incref((json_t *)content);
}

/* ---- tool calls of earlier turns ---- */

/* A copy whose arguments are what the template wants, or NULL with *e filled. */
static json_t *call_for(const struct chat_caps *caps, const json_t *call, size_t idx, struct api_error *e)
{
    char param[64];
    const json_t *fn = json_object_get(call, "function"), *args = json_object_get(fn, "arguments");
    if (!json_is_string(json_object_get(fn, "name")) || (args && !json_is_string(args) && !json_is_object(args))) {
        api_error(e, 400, at(param, idx, "tool_calls"),
                  "`messages[%zu].tool_calls` must be a list of {\"id\", \"type\": \"function\", \"function\": {\"name\", \"arguments\"}}", idx);
        return NULL;
    }
    json_t *made = NULL;
    if (caps->object_arguments && json_is_string(args)) {
        made = json_loadb(json_string_value(args), json_string_length(args), JSON_REJECT_DUPLICATES, NULL);
        if (made && !json_is_object(made)) {
            json_decref(made);
            made = NULL; /* no object: the template gets the text and says what it thinks of it */
        }
    } else if (!caps->object_arguments && json_is_object(args)) {
        char *text = json_dumps(args, JSON_ENSURE_ASCII);
        made = text ? json_string(text) : NULL;
        free(text);
    }
    json_t *copy = json_copy((json_t *)call), *fn_copy = json_copy((json_t *)fn);
    if (made)
        json_object_set_new(fn_copy, "arguments", made);
    json_object_set_new(copy, "function", fn_copy);
    return copy;
}

static json_t *calls_for(const struct chat_caps *caps, const json_t *calls, size_t idx, struct api_error *e)
{
    char param[64];
    if (!json_is_array(calls)) {
        api_error(e, 400, at(param, idx, "tool_calls"), "`messages[%zu].tool_calls` must be a list", idx);
        return NULL;
    }
    json_t *out = json_array();
    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *c = call_for(caps, json_array_get(calls, i), idx, e);
        if (!c) {
            json_decref(out);
            return NULL;
        }
        json_array_append_new(out, c);
    }
    return out;
}

/* ---- messages ---- */

static json_t *message_for(const struct chat_caps *caps, const json_t *m, size_t idx, struct api_error *e)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "function"};
    char param[64];
    const char *role = json_string_value(json_object_get(m, "role"));
    bool known = false;
    for (size_t r = 0; role && r < ARRAY_LEN(roles); r++)
        known |= strcmp(role, roles[r]) == 0;
    if (!json_is_object(m)) {
        api_error(e, 400, at(param, idx, ""), "`messages[%zu]` must be an object with `role` and `content`", idx);
        return NULL;
    }
    if (!known) {
        api_error(e, 400, at(param, idx, "role"), "`messages[%zu].role` must be system, developer, user, assistant or tool, not `%.40s`", idx, role ? role : "?");
        return NULL;
    }
    bool assistant = strcmp(role, "assistant") == 0;
    json_t *content = content_for(caps, json_object_get(m, "content"), assistant, idx, e);
    if (!content)
        return NULL;
    json_t *copy = json_copy((json_t *)m);
    json_object_set_new(copy, "content", content);
    if (strcmp(role, "developer") == 0 && !caps->developer)
        json_object_set_new(copy, "role", json_string("system"));
    const json_t *calls = api_get(m, "tool_calls"), *reasoning = api_get(m, "reasoning");
    if (!calls) {
        json_object_del(copy, "tool_calls"); /* null is absent */
    } else {
        json_t *c = calls_for(caps, calls, idx, e);
        if (!c) {
            json_decref(copy);
            return NULL;
        }
        json_object_set_new(copy, "tool_calls", c);
    }
    if (assistant && json_is_string(reasoning) && !api_get(m, "reasoning_content"))
        json_object_set(copy, "reasoning_content", (json_t *)reasoning); /* the newer of its two names; templates know the other */
    return copy;
}

static json_t *messages_for(const struct chat_caps *caps, const json_t *messages, struct api_error *e)
{
    json_t *out = json_array();
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *m = message_for(caps, json_array_get(messages, i), i, e);
        if (!m) {
            json_decref(out);
            return NULL;
        }
        json_array_append_new(out, m);
    }
    return out;
}

/* ---- tools and other variables ---- */

/* Whether the template is to see the tools. Calls are not parsed, so that none can be forced. */
static bool get_tools(const json_t *o, const json_t **tools, struct api_error *e)
{
    char param[64];
    const json_t *list = api_get(o, "tools"), *choice = api_get(o, "tool_choice");
    *tools = NULL;
    if (list && !json_is_array(list))
        return api_error(e, 400, "tools", "`tools` must be a list");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *t = json_array_get(list, i), *fn = json_object_get(t, "function");
        const char *type = json_string_value(json_object_get(t, "type"));
        snprintf(param, sizeof(param), "tools[%zu]", i);
        if (!type || strcmp(type, "function") != 0 || !json_is_string(json_object_get(fn, "name")))
            return api_error(e, 400, param, "`tools[%zu]` must be {\"type\": \"function\", \"function\": {\"name\", \"description\", \"parameters\"}}", i);
        if (json_object_get(fn, "parameters") && !json_is_object(json_object_get(fn, "parameters")))
            return api_error(e, 400, param, "`tools[%zu].function.parameters` must be a JSON schema (an object)", i);
    }
    const char *how = json_string_value(choice);
    if (choice && !(how && (strcmp(how, "auto") == 0 || strcmp(how, "none") == 0))) {
        if (json_is_object(choice) || (how && strcmp(how, "required") == 0))
            return api_error(e, 400, "tool_choice", "a call cannot be forced in this version: `tool_choice` is \"auto\" or \"none\"");
        return api_error(e, 400, "tool_choice", "`tool_choice` must be \"auto\", \"none\", \"required\" or an object that names a function");
    }
    if (json_array_size(list) && !(how && strcmp(how, "none") == 0))
        *tools = list;
    return true;
}

static bool one_of(const json_t *o, const char *key, const char *const *names, const char **out, struct api_error *e)
{
    if (!api_get_str(o, key, out, e))
        return false;
    char list[160] = "";
    for (size_t i = 0; *out && names[i]; i++) {
        if (strcmp(*out, names[i]) == 0)
            return true;
        snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", i ? ", " : "", names[i]);
    }
    return !*out || api_error(e, 400, key, "`%s` must be one of %s", key, list);
}

/* chat_template_kwargs, and the parameters that templates know under names of their own. */
static bool set_variables(const json_t *o, json_t *ctx, struct api_error *e)
{
    static const char *const efforts[] = {"none", "minimal", "low", "medium", "high", "xhigh", "max", NULL}, *const lengths[] = {"low", "medium", "high", NULL};
    const json_t *kwargs = api_get(o, "chat_template_kwargs"), *documents = api_get(o, "documents");
    const char *effort = NULL, *verbosity = NULL;
    if (kwargs && !json_is_object(kwargs))
        return api_error(e, 400, "chat_template_kwargs", "`chat_template_kwargs` must be an object");
    if (documents && !json_is_array(documents))
        return api_error(e, 400, "documents", "`documents` must be a list");
    if (!one_of(o, "reasoning_effort", efforts, &effort, e) || !one_of(o, "verbosity", lengths, &verbosity, e))
        return false;
    if (effort) {
        json_object_set_new(ctx, "reasoning_effort", json_string(effort));
        if (strcmp(effort, "none") == 0) { /* what families that only know on and off call it */
            json_object_set_new(ctx, "enable_thinking", json_false());
            json_object_set_new(ctx, "thinking", json_false());
        }
    }
    if (verbosity)
        json_object_set_new(ctx, "verbosity", json_string(verbosity));
    if (documents)
        json_object_set(ctx, "documents", (json_t *)documents);
    if (kwargs)
        json_object_update(ctx, (json_t *)kwargs); /* the client's own word */
    return true;
}

/* ---- the prompt ---- */

/* The last place of `what` (n > 0 bytes) in the text: matched from the end, in linear time whatever both are. */
static bool find_last(const struct buf *text, const char *what, size_t n, size_t *at)
{
    uint32_t *again = n <= UINT32_MAX ? malloc(n * sizeof(*again)) : NULL; /* how much of `what` is matched still when the byte behind i does not fit */
    bool found = false;
    if (!again)
        return false;
    again[0] = 0;
    for (size_t i = 1, k = 0; i < n; i++) {
        while (k && what[n - 1 - i] != what[n - 1 - k])
            k = again[k - 1];
        k += what[n - 1 - i] == what[n - 1 - k];
        again[i] = (uint32_t)k;
    }
    for (size_t i = text->len, k = 0; i-- > 0 && !found;) {
        while (k && text->data[i] != what[n - 1 - k])
            k = again[k - 1];
        k += text->data[i] == what[n - 1 - k];
        found = k == n;
        *at = i;
    }
    free(again);
    return found;
}

/* Cuts the text behind the last message's content, so that the answer goes on with it. As transformers does it: the content is looked for from the
 * end, without the white space around it where the template strips that. */
static bool cut_to_final(const json_t *messages, struct buf *text, struct api_error *e)
{
    const json_t *m = json_array_get(messages, json_array_size(messages) - 1), *content = json_object_get(m, "content");
    if (json_is_array(content))
        content = json_object_get(json_array_get(content, json_array_size(content) - 1), "text");
    const char *s = json_string_value(content);
    size_t n = json_string_length(content), front = 0;
    while (front < n && strchr(" \t\r\n", s[front]))
        front++;
    size_t back = n;
    while (back > front && strchr(" \t\r\n", s[back - 1]))
        back--;
    if (back == front)
        return api_error(e, 400, "continue_final_message", "`continue_final_message` needs a last message with content");
    size_t i;
    if (!find_last(text, s + front, back - front, &i))
        return api_error(e, 400, "continue_final_message", "the chat template does not show the last message as it is: it cannot be continued");
    text->len = i + (n - front) <= text->len && memcmp(text->data + i, s + front, n - front) == 0 ? i + (n - front) : i + (back - front);
    text->data[text->len] = '\0';
    return true;
}

/* The variables of the template, messages included; NULL with *e filled. */
static json_t *make_context(const json_t *o, const struct deployment *d, bool *go_on, struct api_error *e)
{
    const json_t *messages = api_get(o, "messages"), *tools;
    if (!json_is_array(messages) || json_array_size(messages) == 0) {
        api_error(e, 400, "messages", "`messages` must be a list with at least one message");
        return NULL;
    }
    if (json_array_size(messages) > API_MESSAGES_MAX) {
        api_error(e, 400, "messages", "`messages` holds %zu messages, at most %d are taken", json_array_size(messages), API_MESSAGES_MAX);
        return NULL;
    }
    bool generation_prompt = true;
    if (!api_get_bool(o, "continue_final_message", go_on, e))
        return NULL;
    generation_prompt = !*go_on;
    if (!api_get_bool(o, "add_generation_prompt", &generation_prompt, e) || !get_tools(o, &tools, e))
        return NULL;
    if (*go_on && generation_prompt) {
        api_error(e, 400, "continue_final_message", "`continue_final_message` and `add_generation_prompt` exclude each other");
        return NULL;
    }
    if (api_get(o, "chat_template")) {
        api_error(e, 400, "chat_template", "`chat_template`: templates come with the model, not from a client");
        return NULL;
    }
    json_t *ctx = json_object();
    json_t *flat = set_variables(o, ctx, e) ? messages_for(&d->caps, messages, e) : NULL;
    if (!flat) {
        json_decref(ctx);
        return NULL;
    }
    json_object_set_new(ctx, "messages", flat);
    if (tools)
        json_object_set(ctx, "tools", (json_t *)tools);
    json_object_set_new(ctx, "add_generation_prompt", json_boolean(generation_prompt));
    json_object_set_new(ctx, "bos_token", json_string(d->bos_text));
    json_object_set_new(ctx, "eos_token", json_string(d->eos_text));
    return ctx;
}

bool api_chat_render(const json_t *o, const struct deployment *d, struct buf *text, struct api_error *e)
{
    if (!d->tmpl)
        return api_error(e, 400, "messages", "this model has no usable chat template (%.200s); use /v1/completions",
                         d->tmpl_error ? d->tmpl_error : "none in its file");
    bool go_on = false;
    json_t *ctx = make_context(o, d, &go_on, e);
    if (!ctx)
        return false;
    bool tools = d->tool_tmpl && json_object_get(ctx, "tools");
    enum err err = chat_template_render(tools ? d->tool_tmpl : d->tmpl, ctx, text);
    bool ok = err == ERR_OK ? !text->failed || api_error(e, 503, NULL, "out of memory")
                            : api_error(e, err == ERR_NOMEM ? 503 : 400, "messages", "the chat template refuses these messages: %.250s", err_detail());
    if (ok && go_on)
        ok = cut_to_final(json_object_get(ctx, "messages"), text, e);
    json_decref(ctx);
    return ok;
}

bool api_get_chat(const json_t *o, struct generation *g, struct api_error *e)
{
    const struct deployment *d = g->d;
    struct buf text;
    buf_init(&text);
    bool ok = api_chat_render(o, d, &text, e);
    if (ok) {
        g->prompts = calloc(1, sizeof(*g->prompts));
        g->n_prompts = g->prompts ? 1 : 0;
        ok = g->prompts || api_error(e, 503, NULL, "out of memory");
    }
    if (ok) {
        const char *s = text.data ? text.data : "";
        /* A template that writes BOS itself is the rule; one that does not gets it from the tokenizer. */
        size_t n = strlen(d->bos_text);
        unsigned flags = TOKENIZER_PARSE;
        if (tokenizer_vocab(d->tok)->add_bos && (n == 0 || text.len < n || memcmp(s, d->bos_text, n) != 0))
            flags |= TOKENIZER_SPECIAL;
        reasoning_init(&g->split, g->reasoning_field ? d->caps.reasoning : NULL, s, text.len);
        ok = api_encode_prompt(g, s, text.len, flags, "messages", &g->prompts[0], e);
    }
    buf_deinit(&text);
    return ok;
}
