/* GGUF v2 and v3 files (format document: ggml docs/gguf.md), memory-mapped read-only, split files included.
 *
 * Every header integer is untrusted: all sizes go through check_add/check_mul/check_range, every tensor ends inside its file.
 * Strings in the file are not NUL-terminated; the views below carry a length. Opening reads the headers only: tensor bytes are
 * touched by whoever uses them. Errors: ERR_NOT_FOUND, ERR_IO, ERR_CORRUPT (with file, what and offset), ERR_UNSUPPORTED. */
#ifndef MODEL_GGUF_H
#define MODEL_GGUF_H

#include "base/err.h"
#include "model/quants.h"

#include <stddef.h>

enum gguf_type { GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STR, GGUF_ARR,
                 GGUF_U64, GGUF_I64, GGUF_F64 };

struct gguf_str {
    const char *s; /* view into the mapping, not NUL-terminated */
    size_t len;
};
struct gguf_kv {
    struct gguf_str key;
    enum gguf_type type;
    enum gguf_type elem;   /* of an array */
    uint64_t n;            /* elements of an array, else 1 */
    const uint8_t *data;   /* little-endian bytes in the mapping; of a string, its length field */
};
struct gguf_tensor {
    char name[96];
    enum quant type;
    uint32_t n_dims;
    uint64_t ne[4];        /* ne[0] is the row length (columns), as in the file; unused are 1 */
    uint32_t file_idx;
    uint64_t file_offset;  /* of the data, in its file */
    uint64_t bytes;
    const uint8_t *data;   /* in the mapping */
};
struct gguf_file {
    const uint8_t *map;
    uint64_t size;
    int fd;
    char *path;
};
struct gguf {
    struct gguf_file *files;
    uint32_t n_files, version;
    struct gguf_kv *kvs;
    uint64_t n_kvs;
    struct gguf_tensor *tensors; /* sorted by name */
    uint64_t n_tensors;
    void *index;                 /* key and name look-up */
};

/* path: a file, or the first of a split (-00001-of-0000N.gguf; the others are found beside it). */
enum err gguf_open(const char *path, struct gguf **out);
/* Parses one in-memory file (fuzzing, tests); bytes must outlive it. */
enum err gguf_parse(const void *bytes, size_t size, struct gguf **out);
void gguf_close(struct gguf **g);

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key);
const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name);
/* Typed reads: false when absent or of another kind. Any integer type is accepted where it fits. */
bool gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out);
bool gguf_get_f32(const struct gguf *g, const char *key, float *out);
bool gguf_get_bool(const struct gguf *g, const char *key, bool *out);
bool gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out);
/* Element i of an array, bounds-checked: false past the end. Strings: iterate with gguf_str_next (O(1) each). */
bool gguf_arr_i64(const struct gguf_kv *kv, uint64_t i, int64_t *out);
bool gguf_arr_f32(const struct gguf_kv *kv, uint64_t i, float *out);
struct gguf_str_iter {
    const uint8_t *p;
    uint64_t left;
};
bool gguf_str_iter(const struct gguf_kv *kv, struct gguf_str_iter *it); /* false unless an array of strings */
bool gguf_str_next(struct gguf_str_iter *it, struct gguf_str *out);

#endif
