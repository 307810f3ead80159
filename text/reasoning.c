/* See reasoning.h. */
#include "text/reasoning.h"

#include "base/check.h"

#include <string.h>

enum { HEADER_BYTES_MAX = 256 }; /* of a channel; longer: no header after all */

/* Order matters where a template shows two: the more particular one first. */
static const struct reasoning_format formats[] = {
    {.sign = "<|channel|>"},
    {"<seed:think>", "</seed:think>", "<seed:think>", {0}},
    {"[THINK]", "[/THINK]", "[THINK]", {0}},
    {"<|START_THINKING|>", "<|END_THINKING|>", "<|START_THINKING|>", {"<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"}},
    {"<|channel>thought\n", "<channel|>", "<|channel>", {0}},
    {"<|inner_prefix|>", "<|inner_suffix|>", "<|inner_suffix|>", {0}},
    {"<longcat_think>", "</longcat_think>", "</longcat_think>", {0}},
    {"\xe2\x97\x81think\xe2\x96\xb7", "\xe2\x97\x81/think\xe2\x96\xb7", "\xe2\x97\x81/think\xe2\x96\xb7", {0}}, /* Kimi's triangles */
    {"Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", "[BEGIN FINAL RESPONSE]", {"[END FINAL RESPONSE]"}},
    {"<think>", "</think>", "</think>", {"<response>", "</response>"}},
    {"<reasoning>", "</reasoning>", "</reasoning>", {0}},
};
static const char *const channel_marks[] = {"<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"};

static const char *find(const char *s, size_t len, const char *what)
{
    size_t n = strlen(what);
    for (const char *p = s; (size_t)(s + len - p) >= n && (p = memchr(p, what[0], len - (size_t)(p - s) - n + 1)) != NULL; p++)
        if (memcmp(p, what, n) == 0)
            return p;
    return NULL;
}

const struct reasoning_format *reasoning_find(const char *source, size_t len)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        const struct reasoning_format *f = &formats[i];
        if (!find(source, len, f->sign))
            continue;
        if (f->drop[0] && strcmp(f->drop[0], "<response>") == 0 && !find(source, len, f->drop[0])) {
            static const struct reasoning_format plain = {"<think>", "</think>", "</think>", {0}};
            return &plain; /* an answer about XML may well have a <response> */
        }
        return f;
    }
    return NULL;
}

const char *reasoning_mark(const struct reasoning_format *f, uint32_t i)
{
    if (!f->open)
        return i < ARRAY_LEN(channel_marks) ? channel_marks[i] : NULL;
    if (i < 2)
        return i == 0 ? f->open : f->close;
    return i - 2 < ARRAY_LEN(f->drop) ? f->drop[i - 2] : NULL;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static bool ends_with(const char *s, size_t len, const char *what)
{
    size_t n = strlen(what);
    return n <= len && memcmp(s + len - n, what, n) == 0;
}

void reasoning_init(struct reasoning *r, const struct reasoning_format *f, const char *prompt, size_t len)
{
    *r = (struct reasoning){.f = f, .state = f ? REASONING_START : REASONING_CONTENT};
    buf_init(&r->held);
    if (!f)
        return;
    if (!f->open) {
        if (ends_with(prompt, len, "<|message|>")) /* the template opened a channel */
            r->state = len > 30 && find(prompt + len - 30, 30, "analysis") ? REASONING_THOUGHT : REASONING_CONTENT;
        return;
    }
    if (ends_with(prompt, len, f->open))
        r->state = REASONING_THOUGHT; /* marks may end in white space themselves */
    while (len > 0 && is_space(prompt[len - 1]))
        len--;
    if (ends_with(prompt, len, f->open))
        r->state = REASONING_THOUGHT;
    else if (ends_with(prompt, len, f->close))
        r->state = REASONING_CONTENT;
    r->trim = r->state == REASONING_THOUGHT;
}

void reasoning_deinit(struct reasoning *r)
{
    buf_deinit(&r->held);
}

static void drop_held(struct reasoning *r, size_t n)
{
    memmove(r->held.data, r->held.data + n, r->held.len - n + 1);
    r->held.len -= n;
}

/* The first n bytes held go out; white space in front of a part does not. */
static void give(struct reasoning *r, size_t n, struct buf *out)
{
    size_t i = 0;
    while (r->trim && i < n && is_space(r->held.data[i]))
        i++;
    if (i < n)
        r->trim = false;
    buf_append(out, r->held.data + i, n - i);
    drop_held(r, n);
}

/* How many bytes at the end of the held text may begin `mark`. */
static size_t begins(const struct reasoning *r, const char *mark)
{
    size_t n = strlen(mark);
    for (size_t k = MIN(n - 1, r->held.len); k > 0; k--)
        if (memcmp(r->held.data + r->held.len - k, mark, k) == 0)
            return k;
    return 0;
}

/* Each returns true when a mark was found and the rest must be looked at again. */
static bool push_start(struct reasoning *r)
{
    size_t ws = 0, n = strlen(r->f->open);
    while (ws < r->held.len && is_space(r->held.data[ws]))
        ws++;
    size_t rest = r->held.len - ws;
    if (memcmp(r->held.data + ws, r->f->open, MIN(rest, n)) != 0) {
        r->state = REASONING_CONTENT;
        return true;
    }
    if (rest < n)
        return false;
    drop_held(r, ws + n);
    r->state = REASONING_THOUGHT;
    r->trim = true;
    return true;
}

static bool push_thought(struct reasoning *r, struct buf *thought)
{
    const char *p = find(r->held.data, r->held.len, r->f->close);
    size_t n = p ? (size_t)(p - r->held.data) : r->held.len - begins(r, r->f->close);
    size_t end = n;
    while (end > 0 && is_space(r->held.data[end - 1]))
        end--;
    if (!p) {
        give(r, end, thought);
        return false;
    }
    give(r, end, thought);
    drop_held(r, n - end + strlen(r->f->close));
    r->state = REASONING_CONTENT;
    r->trim = true;
    return true;
}

static bool push_content(struct reasoning *r, struct buf *content)
{
    size_t keep = 0, at = r->held.len, n = 0;
    for (size_t i = 0; i < ARRAY_LEN(r->f->drop) && r->f->drop[i]; i++) {
        const char *p = find(r->held.data, r->held.len, r->f->drop[i]);
        if (p && (size_t)(p - r->held.data) < at) {
            at = (size_t)(p - r->held.data);
            n = strlen(r->f->drop[i]);
        }
        keep = MAX(keep, begins(r, r->f->drop[i]));
    }
    if (n == 0) {
        give(r, r->held.len - keep, content);
        return false;
    }
    give(r, at, content);
    drop_held(r, n); /* white space that is still left out stays so */
    return true;
}

/* ---- channels ---- */

/* Whether the held text may be a header: one of its marks, or the beginning of one, stands first. */
static bool may_be_header(const struct reasoning *r)
{
    static const char *const firsts[] = {"<|channel|>", "<|start|>", "<|message|>", "<|end|>"};
    for (size_t i = 0; i < ARRAY_LEN(firsts); i++)
        if (memcmp(r->held.data, firsts[i], MIN(r->held.len, strlen(firsts[i]))) == 0)
            return true;
    return false;
}

static bool push_header(struct reasoning *r, struct buf *content)
{
    static const char end[] = "<|message|>";
    bool may = may_be_header(r);
    const char *p = may ? find(r->held.data, MIN(r->held.len, HEADER_BYTES_MAX), end) : NULL;
    if (!p) {
        if (may && r->held.len < HEADER_BYTES_MAX)
            return false;
        r->state = REASONING_CONTENT; /* a model that writes plain text; what it begins with is not looked at as a mark again */
        give(r, 1, content);
        return true;
    }
    size_t n = (size_t)(p - r->held.data);
    r->state = find(r->held.data, n, "analysis") ? REASONING_THOUGHT : REASONING_CONTENT;
    drop_held(r, n + sizeof(end) - 1);
    r->trim = true;
    return true;
}

static bool push_part(struct reasoning *r, struct buf *out)
{
    static const char *const ends[] = {"<|end|>", "<|start|>", "<|channel|>"};
    size_t keep = 0, at = r->held.len;
    bool found = false;
    for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
        const char *p = find(r->held.data, r->held.len, ends[i]);
        if (p && (size_t)(p - r->held.data) <= at) {
            at = (size_t)(p - r->held.data);
            found = true;
        }
        keep = MAX(keep, begins(r, ends[i]));
    }
    give(r, found ? at : r->held.len - keep, out);
    if (found)
        r->state = REASONING_HEADER;
    return found;
}

static bool step(struct reasoning *r, struct buf *thought, struct buf *content)
{
    bool tags = r->f->open != NULL;
    switch (r->state) {
    case REASONING_START: return tags ? push_start(r) : push_header(r, content);
    case REASONING_THOUGHT: return tags ? push_thought(r, thought) : push_part(r, thought);
    case REASONING_CONTENT: return tags ? push_content(r, content) : push_part(r, content);
    case REASONING_HEADER: return push_header(r, content);
    }
    return false;
}

void reasoning_push(struct reasoning *r, const char *text, size_t len, struct buf *thought, struct buf *content)
{
    if (!r->f) {
        buf_append(content, text, len);
        return;
    }
    if (len == 0)
        return;
    buf_append(&r->held, text, len);
    while (!r->held.failed && r->held.len > 0 && step(r, thought, content)) {
    }
}

void reasoning_finish(struct reasoning *r, struct buf *thought, struct buf *content)
{
    size_t n = r->held.len;
    if (!r->f || n == 0)
        return;
    if (r->state == REASONING_THOUGHT)
        give(r, n, thought);
    else if (r->state != REASONING_HEADER)
        give(r, n, content);
    buf_clear(&r->held);
}
