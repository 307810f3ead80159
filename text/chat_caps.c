/* See chat_caps.h. */
#include "text/chat_caps.h"

#include <string.h>

#define NEEDLE "needle-7f3a"

/* Whether the conversation (taken) renders, with `needle` in the text. */
static bool shows(const struct chat_template *t, const char *bos, const char *eos, json_t *messages, const char *needle)
{
    json_t *ctx = json_pack("{s:o, s:b, s:s, s:s}", "messages", messages, "add_generation_prompt", 0, "bos_token", bos, "eos_token", eos);
    if (!ctx)
        return false;
    struct buf text;
    buf_init(&text);
    bool found = chat_template_render(t, ctx, &text) == ERR_OK && text.data && memmem(text.data, text.len, needle, strlen(needle));
    buf_deinit(&text);
    json_decref(ctx);
    return found;
}

static json_t *call_with(json_t *arguments)
{
    return json_pack("[{s:s, s:s}, {s:s, s:s, s:[{s:s, s:s, s:{s:s, s:o}}]}]", "role", "user", "content", "hi", "role", "assistant", "content", "",
                     "tool_calls", "id", "call00001", "type", "function", "function", "name", "look", "arguments", arguments);
}

void chat_caps_find(const struct chat_template *t, const char *source, size_t len, const char *bos, const char *eos, struct chat_caps *out)
{
    memset(out, 0, sizeof(*out));
    if (!shows(t, bos, eos, json_pack("[{s:s, s:s}]", "role", "user", "content", NEEDLE), NEEDLE))
        out->parts = shows(t, bos, eos, json_pack("[{s:s, s:[{s:s, s:s}]}]", "role", "user", "content", "type", "text", "text", NEEDLE), NEEDLE);
    /* Text that was quoted once more has a backslash in front of the key's closing mark. */
    if (!shows(t, bos, eos, call_with(json_string("{\"" NEEDLE "\": 1}")), "\"" NEEDLE "\": 1"))
        out->object_arguments = shows(t, bos, eos, call_with(json_pack("{s:i}", NEEDLE, 1)), NEEDLE);
    out->developer = memmem(source, len, "'developer'", 11) || memmem(source, len, "\"developer\"", 11); /* compared with, not told of */
    out->reasoning = reasoning_find(source, len);
}
