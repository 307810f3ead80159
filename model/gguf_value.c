/* Typed reads of GGUF values. The parser (gguf.c) has checked every length, so nothing here can leave the mapping. */
#include "model/gguf.h"

#include "base/check.h"

#include <string.h>

/* The integer at p; false where the type is none or the value does not fit in int64. */
static bool read_int(enum gguf_type type, const uint8_t *p, int64_t *out)
{
    uint8_t u8;
    int8_t i8;
    uint16_t u16;
    int16_t i16;
    uint32_t u32;
    int32_t i32;
    uint64_t u64;
    switch (type) {
    case GGUF_U8:
        memcpy(&u8, p, 1);
        *out = u8;
        return true;
    case GGUF_I8:
        memcpy(&i8, p, 1);
        *out = i8;
        return true;
    case GGUF_U16:
        memcpy(&u16, p, 2);
        *out = u16;
        return true;
    case GGUF_I16:
        memcpy(&i16, p, 2);
        *out = i16;
        return true;
    case GGUF_U32:
        memcpy(&u32, p, 4);
        *out = u32;
        return true;
    case GGUF_I32:
        memcpy(&i32, p, 4);
        *out = i32;
        return true;
    case GGUF_U64:
        memcpy(&u64, p, 8);
        if (u64 > INT64_MAX)
            return false;
        *out = (int64_t)u64;
        return true;
    case GGUF_I64:
        memcpy(out, p, 8);
        return true;
    default:
        return false;
    }
}

static bool read_float(enum gguf_type type, const uint8_t *p, float *out)
{
    double d;
    if (type == GGUF_F32) {
        memcpy(out, p, 4);
        return true;
    }
    if (type != GGUF_F64)
        return false;
    memcpy(&d, p, 8);
    *out = (float)d;
    return true;
}

bool gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    int64_t v;
    if (!kv || !read_int(kv->type, kv->data, &v) || v < 0 || v > UINT32_MAX)
        return false;
    *out = (uint32_t)v;
    return true;
}

bool gguf_get_f32(const struct gguf *g, const char *key, float *out)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    return kv && read_float(kv->type, kv->data, out);
}

bool gguf_get_bool(const struct gguf *g, const char *key, bool *out)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv || kv->type != GGUF_BOOL)
        return false;
    *out = kv->data[0] != 0;
    return true;
}

bool gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv || kv->type != GGUF_STR)
        return false;
    uint64_t len;
    memcpy(&len, kv->data, 8);
    *out = (struct gguf_str){(const char *)kv->data + 8, len};
    return true;
}

static uint32_t elem_bytes(enum gguf_type t)
{
    switch (t) {
    case GGUF_U8:
    case GGUF_I8:
    case GGUF_BOOL:
        return 1;
    case GGUF_U16:
    case GGUF_I16:
        return 2;
    case GGUF_U32:
    case GGUF_I32:
    case GGUF_F32:
        return 4;
    default:
        return 8;
    }
}

bool gguf_arr_i64(const struct gguf_kv *kv, uint64_t i, int64_t *out)
{
    return kv->type == GGUF_ARR && kv->elem != GGUF_STR && i < kv->n &&
           read_int(kv->elem, kv->data + i * elem_bytes(kv->elem), out);
}

bool gguf_arr_f32(const struct gguf_kv *kv, uint64_t i, float *out)
{
    return kv->type == GGUF_ARR && kv->elem != GGUF_STR && i < kv->n &&
           read_float(kv->elem, kv->data + i * elem_bytes(kv->elem), out);
}

bool gguf_str_iter(const struct gguf_kv *kv, struct gguf_str_iter *it)
{
    if (!kv || kv->type != GGUF_ARR || kv->elem != GGUF_STR)
        return false;
    *it = (struct gguf_str_iter){kv->data, kv->n};
    return true;
}

bool gguf_str_next(struct gguf_str_iter *it, struct gguf_str *out)
{
    if (it->left == 0)
        return false;
    uint64_t len;
    memcpy(&len, it->p, 8);
    *out = (struct gguf_str){(const char *)it->p + 8, len};
    it->p += 8 + len;
    it->left--;
    return true;
}
