/* A small GGUF v3 writer for test models: keys first, then tensor headers, then gguf_write_header. It remembers where
 * each integer of the header stands, so that tests can break them one by one. Written after the format document of ggml
 * (docs/gguf.md), and on purpose not sharing anything with model/gguf.c. Out of memory aborts: it is a test tool. */
#ifndef TESTS_TOOLS_GGUF_WRITE_H
#define TESTS_TOOLS_GGUF_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gguf_write_bytes {
    uint8_t *p;
    size_t len, cap;
};
struct gguf_write_mark { /* an integer of the header */
    size_t offset;
    uint32_t width;   /* bytes: 4 or 8 */
    const char *what; /* static text */
};
struct gguf_write_tensor {
    char name[96];
    uint32_t type_id, n_dims;
    uint64_t ne[4], bytes;
    uint64_t offset; /* in the data section; set by gguf_write_header */
};
struct gguf_write {
    struct gguf_write_bytes kvs, header;
    uint64_t n_kvs;
    uint32_t version, alignment; /* 3 and 32 by gguf_write_init; another alignment is written as a key */
    struct gguf_write_tensor *tensors;
    size_t n_tensors, tensors_cap;
    struct gguf_write_mark *marks;
    size_t n_marks, marks_cap;
    uint64_t file_bytes; /* header, padding, data; set by gguf_write_header */
    uint64_t data_start;
};

void gguf_write_init(struct gguf_write *w);
void gguf_write_deinit(struct gguf_write *w);
void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t v);
void gguf_write_u64(struct gguf_write *w, const char *key, uint64_t v);
void gguf_write_f32(struct gguf_write *w, const char *key, float v);
void gguf_write_bool(struct gguf_write *w, const char *key, bool v);
void gguf_write_str(struct gguf_write *w, const char *key, const char *v);
void gguf_write_i32_arr(struct gguf_write *w, const char *key, const int32_t *v, size_t n);
void gguf_write_f32_arr(struct gguf_write *w, const char *key, const float *v, size_t n);
void gguf_write_str_arr(struct gguf_write *w, const char *key, const char *const *v, size_t n);
/* type_id and bytes as the format says; ne1 0: a vector. */
void gguf_write_add_tensor(struct gguf_write *w, const char *name, uint32_t type_id, uint64_t ne0, uint64_t ne1,
                           uint64_t bytes);
/* Fills w->header (padded up to the data), offsets and sizes. */
void gguf_write_header(struct gguf_write *w);

#endif
