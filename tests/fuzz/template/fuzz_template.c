/* Any bytes as a chat template and, behind a line "----", as the JSON of its context (without one, a small
 * conversation). It must render or give an error with a text, within its budgets, twice the same. */
#include "base/check.h"
#include "text/chat_template.h"

#include <stdint.h>
#include <string.h>

static const char DEFAULT_CONTEXT[] = "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": "
                                      "\"user\", \"content\": \"H\\u00e4 \\ud83d\\ude42\"}, {\"role\": \"assistant\","
                                      "\"content\": null, \"tool_calls\": [{\"function\": {\"name\": \"f\", "
                                      "\"arguments\": {\"a\": [1, 2.5, true]}}}]}], \"add_generation_prompt\": true, "
                                      "\"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"tools\": [{\"type\": "
                                      "\"function\", \"function\": {\"name\": \"f\", \"parameters\": {}}}]}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *cut = size == 0 ? NULL : memmem(text, size, "\n----\n", 6);
    size_t len = cut == NULL ? size : (size_t)(cut - text);
    struct chat_template *t;
    json_t *ctx = cut == NULL ? NULL : json_loadb(cut + 6, size - len - 6, 0, NULL);
    if (!json_is_object(ctx)) {
        json_decref(ctx);
        ctx = json_loads(DEFAULT_CONTEXT, 0, NULL);
    }
    ASSERT(ctx != NULL);
    err_clear();
    enum err e = chat_template_create(text, len, &t);
    if (e != ERR_OK) {
        ASSERT(err_detail()[0] != 0 && t == NULL);
        json_decref(ctx);
        return 0;
    }
    struct buf a, b;
    buf_init(&a);
    buf_init(&b);
    e = chat_template_render_at(t, ctx, 1767225600, &a);
    enum err f = chat_template_render_at(t, ctx, 1767225600, &b);
    if (e == ERR_OK && f == ERR_OK)
        ASSERT(a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0));
    else
        ASSERT(err_detail()[0] != 0);
    buf_deinit(&a);
    buf_deinit(&b);
    chat_template_destroy(&t);
    json_decref(ctx);
    return 0;
}
