/* See gguf_write.h. */
#include "tests/tools/gguf_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TYPE_U32 = 4, TYPE_I32 = 5, TYPE_F32 = 6, TYPE_BOOL = 7, TYPE_STR = 8, TYPE_ARR = 9, TYPE_U64 = 10 };

static void *grown(void *p, size_t n, size_t *cap, size_t elem)
{
    if (n < *cap)
        return p;
    *cap = *cap ? *cap * 2 : 64;
    while (*cap <= n)
        *cap *= 2;
    p = realloc(p, *cap * elem);
    if (!p)
        abort();
    return p;
}

static void put(struct gguf_write_bytes *b, const void *p, size_t n)
{
    b->p = grown(b->p, b->len + n, &b->cap, 1);
    memcpy(b->p + b->len, p, n);
    b->len += n;
}

static void mark(struct gguf_write *w, size_t offset, uint32_t width, const char *what)
{
    w->marks = grown(w->marks, w->n_marks, &w->marks_cap, sizeof(*w->marks));
    w->marks[w->n_marks++] = (struct gguf_write_mark){offset, width, what};
}

/* Keys are written before the header, whose 24 bytes stand before them. */
enum { KVS_AT = 24 };

static void kv_u32(struct gguf_write *w, uint32_t v, const char *what)
{
    mark(w, KVS_AT + w->kvs.len, 4, what);
    put(&w->kvs, &v, 4);
}

static void kv_u64(struct gguf_write *w, uint64_t v, const char *what)
{
    mark(w, KVS_AT + w->kvs.len, 8, what);
    put(&w->kvs, &v, 8);
}

static void kv_str(struct gguf_write *w, const char *s, const char *what)
{
    kv_u64(w, strlen(s), what);
    put(&w->kvs, s, strlen(s));
}

static void kv_begin(struct gguf_write *w, const char *key, uint32_t type)
{
    w->n_kvs++;
    kv_str(w, key, "key length");
    kv_u32(w, type, "value type");
}

static void arr_begin(struct gguf_write *w, const char *key, uint32_t elem, size_t n)
{
    kv_begin(w, key, TYPE_ARR);
    kv_u32(w, elem, "element type");
    kv_u64(w, n, "array length");
}

void gguf_write_init(struct gguf_write *w)
{
    memset(w, 0, sizeof(*w));
    w->version = 3;
    w->alignment = 32;
}

void gguf_write_deinit(struct gguf_write *w)
{
    free(w->kvs.p);
    free(w->header.p);
    free(w->tensors);
    free(w->marks);
    memset(w, 0, sizeof(*w));
}

void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t v)
{
    kv_begin(w, key, TYPE_U32);
    kv_u32(w, v, "value");
}

void gguf_write_u64(struct gguf_write *w, const char *key, uint64_t v)
{
    kv_begin(w, key, TYPE_U64);
    kv_u64(w, v, "value");
}

void gguf_write_f32(struct gguf_write *w, const char *key, float v)
{
    kv_begin(w, key, TYPE_F32);
    put(&w->kvs, &v, 4);
}

void gguf_write_bool(struct gguf_write *w, const char *key, bool v)
{
    uint8_t b = v;
    kv_begin(w, key, TYPE_BOOL);
    put(&w->kvs, &b, 1);
}

void gguf_write_str(struct gguf_write *w, const char *key, const char *v)
{
    kv_begin(w, key, TYPE_STR);
    kv_str(w, v, "string length");
}

void gguf_write_i32_arr(struct gguf_write *w, const char *key, const int32_t *v, size_t n)
{
    arr_begin(w, key, TYPE_I32, n);
    put(&w->kvs, v, n * 4);
}

void gguf_write_f32_arr(struct gguf_write *w, const char *key, const float *v, size_t n)
{
    arr_begin(w, key, TYPE_F32, n);
    put(&w->kvs, v, n * 4);
}

void gguf_write_str_arr(struct gguf_write *w, const char *key, const char *const *v, size_t n)
{
    arr_begin(w, key, TYPE_STR, n);
    for (size_t i = 0; i < n; i++)
        kv_str(w, v[i], "length of an array's string");
}

void gguf_write_add_tensor(struct gguf_write *w, const char *name, uint32_t type_id, uint64_t ne0, uint64_t ne1,
                           uint64_t bytes)
{
    w->tensors = grown(w->tensors, w->n_tensors, &w->tensors_cap, sizeof(*w->tensors));
    struct gguf_write_tensor *t = &w->tensors[w->n_tensors++];
    memset(t, 0, sizeof(*t));
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->type_id = type_id;
    t->n_dims = ne1 ? 2 : 1;
    t->ne[0] = ne0;
    t->ne[1] = ne1;
    t->bytes = bytes;
}

static void head_u32(struct gguf_write *w, uint32_t v, const char *what)
{
    mark(w, w->header.len, 4, what);
    put(&w->header, &v, 4);
}

static void head_u64(struct gguf_write *w, uint64_t v, const char *what)
{
    mark(w, w->header.len, 8, what);
    put(&w->header, &v, 8);
}

static uint64_t aligned(const struct gguf_write *w, uint64_t n)
{
    return (n + w->alignment - 1) / w->alignment * w->alignment;
}

void gguf_write_header(struct gguf_write *w)
{
    uint64_t offset = 0;
    if (w->alignment != 32)
        gguf_write_u32(w, "general.alignment", w->alignment);
    put(&w->header, "GGUF", 4);
    head_u32(w, w->version, "version");
    head_u64(w, w->n_tensors, "number of tensors");
    head_u64(w, w->n_kvs, "number of keys");
    put(&w->header, w->kvs.p, w->kvs.len);
    for (size_t i = 0; i < w->n_tensors; i++) {
        struct gguf_write_tensor *t = &w->tensors[i];
        t->offset = offset;
        offset = aligned(w, offset + t->bytes);
        head_u64(w, strlen(t->name), "name length");
        put(&w->header, t->name, strlen(t->name));
        head_u32(w, t->n_dims, "number of dimensions");
        for (uint32_t d = 0; d < t->n_dims; d++)
            head_u64(w, t->ne[d], "dimension");
        head_u32(w, t->type_id, "tensor type");
        head_u64(w, t->offset, "tensor offset");
    }
    w->data_start = aligned(w, w->header.len);
    static const uint8_t zero = 0;
    while (w->header.len < w->data_start)
        put(&w->header, &zero, 1);
    w->file_bytes = w->data_start + offset;
}
