/* The first pass over bytes of a peer: what protobuf-c would allocate is counted and capped before it runs.
 *
 * protobuf-c allocates in proportion to what the bytes claim: two bytes of an empty inner message become a hundred
 * bytes of structure. This pass follows the schema (generated descriptors) and the caps (codec_fields.def), allocates
 * nothing, and recurses only as deep as the schema nests (three levels; the schema has no recursive message). It is
 * stricter than protobuf: a singular field stands at most once, and fields this build does not know are skipped but
 * few. Anything it lets through that protobuf-c reads differently is refused there. Wire format:
 * protobuf.dev/programming-guides/encoding. No state; any thread. */
#include "proto/codec_internal.h"

#include "base/check.h"
#include "base/err.h"

#include <string.h>

enum { FIELDS_MAX = 64, UNKNOWN_MAX = 16 };
enum wire { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct shape;
struct row {
    const char *field;
    uint32_t cap;              /* entries (repeated) */
    uint32_t one_cap;          /* bytes of one entry (bytes) */
    const struct shape *inner; /* inner message */
};
struct shape {
    const ProtobufCMessageDescriptor *desc;
    const struct row *rows;
    unsigned n_rows;
};

/* The rows of each message: only fields that may cost memory. The empty last row keeps the array valid for messages
 * without any. */
#define BEGIN(ctype, snake, camel) static const struct row rows_##snake[] = {
#define VAL(f)
#define CODE(f)
#define REAL(f)
#define STR(f) {#f, 1, MSG_STR_MAX, NULL},
#define BLOB(f, len, max) {#f, 1, max, NULL},
#define BLOBS(f, lens, n, max, one) {#f, max, one, NULL},
#define LIST(f, n, max) {#f, max, 0, NULL},
#define WITH(f, n, max) {#f, max, 0, NULL},
#define WITH_AS(f, wire, n, max) {#wire, max, 0, NULL},
#define REALS(f, n, max) {#f, max, 0, NULL},
#define SUBS(f, n, max, ctype, snake, camel) {#f, max, 0, &shape_##snake},
#define END                                                                                                            \
    {                                                                                                                  \
        NULL, 0, 0, NULL                                                                                               \
    }                                                                                                                  \
    }                                                                                                                  \
    ;
/* A SUBS row names the shape of a message that stands before it in the table; tentative definitions make that one pass.
 */
#define SHAPE(snake) static const struct shape shape_##snake
SHAPE(device);
SHAPE(hello);
SHAPE(slot_setup);
SHAPE(worker_info);
SHAPE(replica_info);
SHAPE(deployment_info);
#undef SHAPE
#include "proto/codec_fields.def"

#define BEGIN(ctype, snake, camel)                                                                                     \
    static const struct shape shape_##snake = {&racklm__##snake##__descriptor, rows_##snake,                           \
                                               ARRAY_LEN(rows_##snake) - 1};
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

static const struct shape *const bodies[MSG_TYPE_COUNT] = {
#define MSG(sym, field) [MSG_##sym] = &shape_##field,
#include "proto/msgs.def"
#undef MSG
};

const ProtobufCMessageDescriptor *codec_descriptor(enum msg_type type)
{
    return bodies[type]->desc;
}

struct cursor {
    const uint8_t *p, *end;
};

static bool read_varint(struct cursor *c, uint64_t *out)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64 && c->p < c->end; shift += 7) {
        uint8_t b = *c->p++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            *out = v;
            return true;
        }
    }
    return false;
}

/* One field's tag and payload; for WIRE_BYTES *data is the payload, otherwise the value's bytes. */
static bool read_field(struct cursor *c, uint32_t *number, enum wire *wire, const uint8_t **data, size_t *len)
{
    uint64_t tag, n;
    if (!read_varint(c, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
        return false;
    *number = (uint32_t)(tag >> 3);
    *wire = (enum wire)(tag & 7);
    *data = c->p;
    switch (*wire) {
    case WIRE_VARINT:
        if (!read_varint(c, &n))
            return false;
        *len = (size_t)(c->p - *data);
        return true;
    case WIRE_BYTES:
        if (!read_varint(c, &n) || n > (uint64_t)(c->end - c->p))
            return false;
        *data = c->p;
        break;
    case WIRE_64:
        n = 8;
        break;
    case WIRE_32:
        n = 4;
        break;
    default: /* groups and what does not exist */
        return false;
    }
    if (n > (uint64_t)(c->end - c->p))
        return false;
    *len = (size_t)n;
    c->p += n;
    return true;
}

static enum wire wire_of(ProtobufCType t)
{
    switch (t) {
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return WIRE_64;
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return WIRE_32;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return WIRE_BYTES;
    default:
        return WIRE_VARINT;
    }
}

static bool count_packed(enum wire elem, const uint8_t *p, size_t len, uint64_t *n)
{
    *n = 0;
    if (elem == WIRE_64 || elem == WIRE_32) {
        size_t size = elem == WIRE_64 ? 8 : 4;
        *n = len / size;
        return len % size == 0;
    }
    for (size_t i = 0; i < len; i++)
        *n += !(p[i] & 0x80);
    return len == 0 || !(p[len - 1] & 0x80);
}

static const struct row *find_row(const struct shape *s, const char *field)
{
    for (unsigned i = 0; i < s->n_rows; i++)
        if (strcmp(s->rows[i].field, field) == 0)
            return &s->rows[i];
    return NULL;
}

static enum err scan(const struct shape *s, const uint8_t *p, size_t len)
{
    const ProtobufCMessageDescriptor *d = s->desc;
    struct cursor c = {p, p + len};
    uint64_t count[FIELDS_MAX] = {0};
    unsigned unknown = 0;

    ASSERT(d->n_fields <= FIELDS_MAX);
    while (c.p < c.end) {
        uint32_t number;
        enum wire wire;
        const uint8_t *data;
        size_t data_len;
        if (!read_field(&c, &number, &wire, &data, &data_len))
            return err_set(ERR_PROTOCOL, "%s: malformed field at byte %zu of %zu", d->short_name, (size_t)(c.p - p),
                           len);
        const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field(d, number);
        if (!f) {
            if (++unknown > UNKNOWN_MAX)
                return err_set(ERR_PROTOCOL, "%s: more than %d unknown fields", d->short_name, UNKNOWN_MAX);
            continue;
        }
        enum wire want = wire_of(f->type);
        bool packed = f->label == PROTOBUF_C_LABEL_REPEATED && want != WIRE_BYTES && wire == WIRE_BYTES;
        if (wire != want && !packed)
            return err_set(ERR_PROTOCOL, "%s.%s: wire type %d, expected %d", d->short_name, f->name, (int)wire,
                           (int)want);
        uint64_t n = 1;
        if (packed && !count_packed(want, data, data_len, &n))
            return err_set(ERR_PROTOCOL, "%s.%s: the packed values end early", d->short_name, f->name);
        uint64_t *total = &count[f - d->fields];
        *total += n;
        /* A repeated field without a row has no cap and is refused, so that a new field cannot be forgotten in the
         * table. */
        const struct row *r = f->label == PROTOBUF_C_LABEL_REPEATED || want == WIRE_BYTES ? find_row(s, f->name) : NULL;
        uint64_t cap = f->label == PROTOBUF_C_LABEL_REPEATED ? (r ? r->cap : 0) : 1;
        if (*total > cap)
            return err_set(cap > 1 ? ERR_TOO_BIG : ERR_PROTOCOL, "%s.%s: %llu entries, at most %llu", d->short_name,
                           f->name, (unsigned long long)*total, (unsigned long long)cap);
        if (want != WIRE_BYTES)
            continue;
        if (r && r->inner) {
            TRY(scan(r->inner, data, data_len));
            continue;
        }
        if (!r || data_len > r->one_cap)
            return err_set(ERR_TOO_BIG, "%s.%s: %zu bytes, at most %u", d->short_name, f->name, data_len,
                           r ? r->one_cap : 0);
        if (f->type == PROTOBUF_C_TYPE_STRING && memchr(data, 0, data_len))
            return err_set(ERR_PROTOCOL, "%s.%s: a NUL byte in a string", d->short_name, f->name);
    }
    return ERR_OK;
}

enum err codec_scan(const uint8_t *bytes, size_t len, enum msg_type *type, const uint8_t **body, size_t *body_len)
{
    struct cursor c = {bytes, bytes + len};
    uint32_t number;
    enum wire wire;

    if (len > MSG_FRAME_MAX)
        return err_set(ERR_TOO_BIG, "message of %zu bytes, at most %d", len, (int)MSG_FRAME_MAX);
    if (!read_field(&c, &number, &wire, body, body_len) || wire != WIRE_BYTES || c.p != c.end)
        return err_set(ERR_PROTOCOL, "not one message in a frame of %zu bytes", len);
    if (number == 0 || number > MSG_TYPE_COUNT)
        return err_set(ERR_PROTOCOL, "unknown message number %u", number);
    *type = (enum msg_type)(number - 1); /* racklm.proto numbers the bodies in the order of msgs.def */
    return scan(bodies[*type], *body, *body_len);
}
