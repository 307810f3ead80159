/* struct msg <-> bytes, through protobuf-c and the table codec_fields.def.
 *
 * Packing points protobuf-c's structures at the caller's arrays: nothing is copied, and a message without inner
 * messages (every steady Step) allocates nothing but room in the buffer, which the caller reuses. Unpacking runs
 * protobuf-c in the caller's arena through an allocator that never gives more than a small multiple of the input; the
 * decoded arrays stay where protobuf-c put them and struct msg points at them. With an arena that is reset between
 * messages a steady state allocates nothing. Order of decoding: codec_scan (caps, before any allocation), unpack,
 * parallel lengths here, codec_check. No state; any thread. */
#include "proto/codec.h"

#include "base/check.h"
#include "proto/codec_internal.h"

#include <string.h>

/* What decoding may take: the widest honest growth is a one-byte varint that becomes eight bytes in memory; the
 * constant covers structures of a step with MSG_RUNS_MAX set-ups. */
enum { GROWTH_MAX = 8, GRANT_BASE = 4 << 20 };

/* protobuf-c's allocator interface on an arena, with a budget. */
struct grant {
    ProtobufCAllocator base;
    struct arena *arena;
    size_t left;
    bool over;      /* the budget ended */
    bool no_memory; /* the arena's limit or the system's memory ended */
};

static void *grant_alloc(void *data, size_t size)
{
    struct grant *g = data;
    if (size > g->left) {
        g->over = true;
        return NULL;
    }
    g->left -= size;
    void *p = arena_alloc(g->arena, size);
    g->no_memory |= !p;
    return p;
}

static void grant_free(void *data, void *p)
{
    (void)data, (void)p; /* the arena's reset frees */
}

static const char *own_str(struct arena *a, const char *s)
{
    return *s ? s : arena_strdup(a, ""); /* an absent string points at a constant of protobuf-c */
}

/* --- pack: plain -> protobuf-c. False when out of memory. --- */

#define BEGIN(ctype, snake, camel)                                                                                     \
    static bool pack_##snake(struct arena *a, const struct ctype *m, Racklm__##camel *p)                               \
    {                                                                                                                  \
        (void)a;                                                                                                       \
        racklm__##snake##__init(p);
#define VAL(f) p->f = m->f;
#define CODE(f) p->f = m->f;
#define REAL(f) p->f = m->f;
#define STR(f) p->f = m->f ? m->f : (char *)protobuf_c_empty_string;
#define BLOB(field, length, max)                                                                                       \
    p->field.len = m->length;                                                                                          \
    p->field.data = m->field;
#define BLOBS(f, lens, n, max, one)                                                                                    \
    p->n_##f = m->n;                                                                                                   \
    p->f = arena_array(a, m->n, sizeof *p->f);                                                                         \
    if (!p->f)                                                                                                         \
        return false;                                                                                                  \
    for (uint32_t i = 0; i < m->n; i++)                                                                                \
        p->f[i] = (ProtobufCBinaryData){m->lens[i], m->f[i]};
#define LIST(f, n, max)                                                                                                \
    p->n_##f = m->n;                                                                                                   \
    p->f = (void *)m->f; /* uint32_t and int32_t may alias */
#define WITH(f, n, max) LIST(f, n, max)
#define WITH_AS(f, wire, n, max)                                                                                       \
    p->n_##wire = m->n;                                                                                                \
    p->wire = m->f;
#define REALS(f, n, max) LIST(f, n, max)
#define SUBS(f, n, max, ctype, snake, camel)                                                                           \
    p->n_##f = m->n;                                                                                                   \
    if (m->n) {                                                                                                        \
        p->f = arena_array(a, m->n, sizeof *p->f);                                                                     \
        Racklm__##camel *each = arena_array(a, m->n, sizeof *each);                                                    \
        if (!p->f || !each)                                                                                            \
            return false;                                                                                              \
        for (uint32_t i = 0; i < m->n; i++) {                                                                          \
            p->f[i] = &each[i];                                                                                        \
            if (!pack_##snake(a, &m->f[i], &each[i]))                                                                  \
                return false;                                                                                          \
        }                                                                                                              \
    }
#define END                                                                                                            \
    return true;                                                                                                       \
    }
#include "proto/codec_fields.def"

/* --- unpack: protobuf-c -> plain --- */

static enum err lengths_differ(const char *msg, const char *field, size_t n, size_t want)
{
    return err_set(ERR_PROTOCOL, "%s.%s: %zu entries, the arrays beside it have %zu", msg, field, n, want);
}
static enum err no_memory(void)
{
    return err_set(ERR_NOMEM, "no memory to decode a message");
}

#define BEGIN(ctype, snake, camel)                                                                                     \
    static enum err unpack_##snake(struct arena *a, Racklm__##camel *p, struct ctype *m)                               \
    {                                                                                                                  \
        static const char msg[] = #snake;                                                                              \
        (void)a, (void)msg;
#define VAL(f) m->f = p->f;
#define CODE(f) m->f = p->f < ERR_COUNT ? p->f : ERR_INTERNAL;
#define REAL(f) m->f = p->f;
#define STR(f)                                                                                                         \
    m->f = (char *)own_str(a, p->f);                                                                                   \
    if (!m->f)                                                                                                         \
        return no_memory();
#define BLOB(field, length, max)                                                                                       \
    m->length = (uint32_t)p->field.len;                                                                                \
    m->field = p->field.data;
#define BLOBS(f, lens, n, max, one)                                                                                    \
    m->n = (uint32_t)p->n_##f;                                                                                         \
    m->f = arena_array(a, m->n, sizeof *m->f);                                                                         \
    m->lens = arena_array(a, m->n, sizeof *m->lens);                                                                   \
    if (!m->f || !m->lens)                                                                                             \
        return no_memory();                                                                                            \
    for (uint32_t i = 0; i < m->n; i++) {                                                                              \
        m->lens[i] = (uint32_t)p->f[i].len;                                                                            \
        m->f[i] = p->f[i].data;                                                                                        \
    }
#define LIST(f, n, max)                                                                                                \
    m->n = (uint32_t)p->n_##f;                                                                                         \
    m->f = (void *)p->f;
#define WITH(f, n, max) WITH_AS(f, f, n, max)
#define WITH_AS(f, wire, n, max)                                                                                       \
    if (p->n_##wire != m->n)                                                                                           \
        return lengths_differ(msg, #f, p->n_##wire, m->n);                                                             \
    m->f = (void *)p->wire;
#define REALS(f, n, max) WITH(f, n, max)
#define SUBS(f, n, max, ctype, snake, camel)                                                                           \
    m->n = (uint32_t)p->n_##f;                                                                                         \
    m->f = arena_array(a, m->n, sizeof *m->f);                                                                         \
    if (!m->f)                                                                                                         \
        return no_memory();                                                                                            \
    for (uint32_t i = 0; i < m->n; i++)                                                                                \
        TRY(unpack_##snake(a, p->f[i], &m->f[i]));
#define END                                                                                                            \
    return ERR_OK;                                                                                                     \
    }
#include "proto/codec_fields.def"

/* Room for any body on the stack. */
union body {
#define BEGIN(ctype, snake, camel) Racklm__##camel snake;
#define VAL(f)
#define CODE(f)
#define REAL(f)
#define STR(f)
#define BLOB(f, len, max)
#define BLOBS(f, lens, n, max, one)
#define LIST(f, n, max)
#define WITH(f, n, max)
#define WITH_AS(f, wire, n, max)
#define REALS(f, n, max)
#define SUBS(f, n, max, ctype, snake, camel)
#define END
#include "proto/codec_fields.def"
};

static bool pack(struct arena *a, const struct msg *m, union body *body, Racklm__Msg *top)
{
    switch (m->type) {
#define MSG(sym, field)                                                                                                \
    case MSG_##sym:                                                                                                    \
        top->body_case = RACKLM__MSG__BODY_##sym;                                                                      \
        top->field = &body->field;                                                                                     \
        return pack_##field(a, &m->field, &body->field);
#include "proto/msgs.def"
#undef MSG
    default:
        return false;
    }
}

enum err codec_encode(const struct msg *m, struct buf *out)
{
    Racklm__Msg top = RACKLM__MSG__INIT;
    union body body;
    struct arena scratch; /* pointers to inner messages; touched only by messages that have some */
    enum err e = ERR_OK;

    TRY(codec_check(m));
    arena_init(&scratch, 0);
    if (!pack(&scratch, m, &body, &top)) {
        e = err_set(ERR_NOMEM, "no memory to encode a message");
        goto done;
    }
    size_t len = racklm__msg__get_packed_size(&top);
    if (len > MSG_FRAME_MAX) {
        e = err_set(ERR_TOO_BIG, "message of %zu bytes, at most %d", len, (int)MSG_FRAME_MAX);
        goto done;
    }
    if (!buf_reserve(out, len)) {
        e = err_set(ERR_NOMEM, "no memory for a message of %zu bytes", len);
        goto done;
    }
    size_t packed = racklm__msg__pack(&top, (uint8_t *)out->data + out->len);
    ASSERT(packed == len);
    out->len += len;
    out->data[out->len] = '\0';
done:
    arena_deinit(&scratch);
    return e;
}

enum err codec_decode(const void *bytes, size_t len, struct arena *arena, struct msg *out)
{
    const uint8_t *body;
    size_t body_len;
    enum msg_type type;

    memset(out, 0, sizeof *out);
    TRY(codec_scan(bytes, len, &type, &body, &body_len));
    struct grant g = {.arena = arena, .left = GRANT_BASE + GROWTH_MAX * len};
    g.base = (ProtobufCAllocator){.alloc = grant_alloc, .free = grant_free, .allocator_data = &g};
    ProtobufCMessage *p = protobuf_c_message_unpack(codec_descriptor(type), &g.base, body_len, body);
    if (!p && g.over)
        return err_set(ERR_TOO_BIG, "%s of %zu bytes would take too much memory", codec_descriptor(type)->short_name,
                       len);
    if (!p && g.no_memory)
        return no_memory();
    if (!p)
        return err_set(ERR_PROTOCOL, "%s of %zu bytes does not parse", codec_descriptor(type)->short_name, len);
    out->type = type;
    switch (type) {
#define MSG(sym, field)                                                                                                \
    case MSG_##sym:                                                                                                    \
        TRY(unpack_##field(arena, (void *)p, &out->field));                                                            \
        break;
#include "proto/msgs.def"
#undef MSG
    default:
        break;
    }
    return codec_check(out);
}
