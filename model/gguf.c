/* Opening GGUF files: mapping, header parser, split files, look-up tables. Reading values is in gguf_value.c.
 *
 * The parser is a cursor over the mapping that never moves past its end; a count is believed only after the bytes that
 * it needs at least are known to be there, so that memory and time are bounded by the size of the file, whatever a
 * header says. Keys and tensors are looked up by binary search in sorted order (a hash could be flooded by a hostile
 * file, and a model has a few hundred names). Opening touches the headers only; strings of arrays are stepped over
 * once, about 1 ms for a vocabulary of 128,000. A struct gguf is immutable once open: any thread may read it. */
#include "model/gguf.h"

#include "base/check.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF is read in place, little-endian");

enum {
    VERSION_MIN = 2,
    VERSION_MAX = 3,
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MAX = 1 << 20,
    KVS_MAX = 1 << 16,
    TENSORS_MAX = 1 << 20,
    KEY_MAX = 65535,
    FILES_MAX = 99999,    /* five digits in the name */
    KV_BYTES_MIN = 14,    /* key of one byte, type, a value of one byte */
    TENSOR_BYTES_MIN = 33 /* name of one byte, one dimension, type, offset */
};

struct cursor {
    const uint8_t *base;
    uint64_t size, off;
    const char *name; /* of the file, in messages */
};

/* Types of ggml that racklm does not read, for a message that names them. */
static const struct {
    uint32_t id;
    const char *name;
} foreign_types[] = {{9, "Q8_1"},   {15, "Q8_K"},   {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
                     {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},   {22, "IQ2_S"},  {23, "IQ4_XS"},
                     {24, "I8"},    {25, "I16"},    {26, "I32"},     {27, "I64"},    {28, "F64"},
                     {29, "IQ1_M"}, {34, "TQ1_0"},  {35, "TQ2_0"},   {39, "MXFP4"}};

static enum err truncated(const struct cursor *c, const char *what)
{
    return err_set(ERR_CORRUPT,
                   "%s: the file ends inside %s (offset %" PRIu64 " of %" PRIu64 "): is the download complete?",
                   c->name, what, c->off, c->size);
}

static enum err take(struct cursor *c, uint64_t n, const char *what, const uint8_t **out)
{
    *out = c->base + c->off;
    if (!check_range(c->off, n, c->size))
        return truncated(c, what);
    c->off += n;
    return ERR_OK;
}

static enum err take_u32(struct cursor *c, const char *what, uint32_t *out)
{
    const uint8_t *p;
    TRY(take(c, 4, what, &p));
    memcpy(out, p, 4);
    return ERR_OK;
}

static enum err take_u64(struct cursor *c, const char *what, uint64_t *out)
{
    const uint8_t *p;
    TRY(take(c, 8, what, &p));
    memcpy(out, p, 8);
    return ERR_OK;
}

/* Names end up in one-line messages and in C strings: no control characters, no NUL. */
static enum err take_name(struct cursor *c, uint64_t len_max, const char *what, struct gguf_str *out)
{
    uint64_t at = c->off, len;
    const uint8_t *p;
    TRY(take_u64(c, what, &len));
    if (len == 0 || len > len_max)
        return err_set(ERR_CORRUPT,
                       "%s: %s at offset %" PRIu64 " has a length of %" PRIu64 " (1 to %" PRIu64 " expected)", c->name,
                       what, at, len, len_max);
    TRY(take(c, len, what, &p));
    for (uint64_t i = 0; i < len; i++)
        if (p[i] < 0x20 || p[i] == 0x7f)
            return err_set(ERR_CORRUPT, "%s: %s at offset %" PRIu64 " holds the control character 0x%02x", c->name,
                           what, at, p[i]);
    *out = (struct gguf_str){(const char *)p, len};
    return ERR_OK;
}

static uint32_t scalar_bytes(enum gguf_type t)
{
    static const uint8_t bytes[] = {
        [GGUF_U8] = 1,   [GGUF_I8] = 1,  [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4,
        [GGUF_BOOL] = 1, [GGUF_STR] = 0, [GGUF_ARR] = 0, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8};
    return bytes[t];
}

static enum err take_type(struct cursor *c, const struct gguf_kv *kv, enum gguf_type *out)
{
    uint32_t t;
    TRY(take_u32(c, "a value's type", &t));
    if (t > GGUF_F64)
        return err_set(ERR_CORRUPT, "%s: key %.*s has the unknown value type %u", c->name, (int)kv->key.len, kv->key.s,
                       t);
    *out = (enum gguf_type)t;
    return ERR_OK;
}

static enum err take_array(struct cursor *c, struct gguf_kv *kv)
{
    TRY(take_type(c, kv, &kv->elem));
    TRY(take_u64(c, "an array's length", &kv->n));
    if (kv->elem == GGUF_ARR)
        return err_set(ERR_UNSUPPORTED, "%s: key %.*s is an array of arrays, which no known model needs", c->name,
                       (int)kv->key.len, kv->key.s);
    kv->data = c->base + c->off;
    uint64_t elem_bytes = kv->elem == GGUF_STR ? 8 : scalar_bytes(kv->elem), bytes;
    if (!check_mul(kv->n, elem_bytes, &bytes) || !check_range(c->off, bytes, c->size))
        return err_set(ERR_CORRUPT,
                       "%s: key %.*s: an array of %" PRIu64 " elements does not fit in the file (offset %" PRIu64 ")",
                       c->name, (int)kv->key.len, kv->key.s, kv->n, c->off);
    if (kv->elem != GGUF_STR) {
        c->off += bytes;
        return ERR_OK;
    }
    for (uint64_t i = 0; i < kv->n; i++) {
        uint64_t len;
        const uint8_t *p;
        TRY(take_u64(c, "an array of strings", &len));
        TRY(take(c, len, "an array of strings", &p));
    }
    return ERR_OK;
}

static enum err take_kv(struct cursor *c, struct gguf_kv *kv)
{
    TRY(take_name(c, KEY_MAX, "a key", &kv->key));
    TRY(take_type(c, kv, &kv->type));
    kv->n = 1;
    if (kv->type == GGUF_ARR)
        return take_array(c, kv);
    if (kv->type == GGUF_STR) {
        uint64_t len;
        const uint8_t *p;
        kv->data = c->base + c->off;
        TRY(take_u64(c, "a string", &len));
        return take(c, len, "a string", &p);
    }
    TRY(take(c, scalar_bytes(kv->type), "a value", &kv->data));
    if (kv->type == GGUF_BOOL && kv->data[0] > 1)
        return err_set(ERR_CORRUPT, "%s: key %.*s is %u, neither true nor false", c->name, (int)kv->key.len, kv->key.s,
                       kv->data[0]);
    return ERR_OK;
}

static enum err tensor_type(const struct cursor *c, const struct gguf_tensor *t, uint32_t id, enum quant *out)
{
    if (quant_from_gguf(id, out))
        return ERR_OK;
    for (unsigned i = 0; i < ARRAY_LEN(foreign_types); i++)
        if (foreign_types[i].id == id)
            return err_set(ERR_UNSUPPORTED,
                           "%s: tensor %s has the type %s, which is not supported (try Q4_K, Q6_K or Q8_0)", c->name,
                           t->name, foreign_types[i].name);
    return err_set(ERR_UNSUPPORTED, "%s: tensor %s has the unknown type number %u", c->name, t->name, id);
}

/* The offset is still relative to the data section, whose start is known only when all headers are read. */
static enum err take_tensor(struct cursor *c, struct gguf_tensor *t)
{
    struct gguf_str name;
    uint32_t type_id;
    uint64_t elems = 1;
    TRY(take_name(c, sizeof(t->name) - 1, "a tensor's name", &name));
    memcpy(t->name, name.s, name.len);
    t->name[name.len] = 0;
    TRY(take_u32(c, "a tensor's header", &t->n_dims));
    if (t->n_dims < 1 || t->n_dims > 4)
        return err_set(ERR_CORRUPT, "%s: tensor %s has %u dimensions (1 to 4 expected)", c->name, t->name, t->n_dims);
    for (uint32_t d = 0; d < 4; d++) {
        t->ne[d] = 1;
        if (d < t->n_dims)
            TRY(take_u64(c, "a tensor's header", &t->ne[d]));
        if (t->ne[d] == 0 || !check_mul(elems, t->ne[d], &elems))
            return err_set(ERR_CORRUPT, "%s: tensor %s: dimension %u is %" PRIu64 ", which cannot be", c->name, t->name,
                           d, t->ne[d]);
    }
    TRY(take_u32(c, "a tensor's header", &type_id));
    TRY(take_u64(c, "a tensor's header", &t->file_offset));
    TRY(tensor_type(c, t, type_id, &t->type));
    const struct quant_traits *qt = &quant_traits[t->type];
    if (t->ne[0] % qt->block_elems)
        return err_set(ERR_CORRUPT, "%s: tensor %s: rows of %" PRIu64 " are no multiple of a %s block (%u)", c->name,
                       t->name, t->ne[0], qt->name, qt->block_elems);
    if (!check_mul(elems / qt->block_elems, qt->block_bytes, &t->bytes))
        return err_set(ERR_CORRUPT, "%s: tensor %s is larger than any file", c->name, t->name);
    return ERR_OK;
}

static int compare_str(struct gguf_str a, struct gguf_str b)
{
    int r = memcmp(a.s, b.s, MIN(a.len, b.len));
    return r ? r : (a.len > b.len) - (a.len < b.len);
}

static int compare_kvs(const void *a, const void *b, void *kvs)
{
    const struct gguf_kv *k = kvs;
    return compare_str(k[*(const uint32_t *)a].key, k[*(const uint32_t *)b].key);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

static int compare_offsets(const void *a, const void *b, void *tensors)
{
    const struct gguf_tensor *x = (const struct gguf_tensor *)tensors + *(const uint32_t *)a;
    const struct gguf_tensor *y = (const struct gguf_tensor *)tensors + *(const uint32_t *)b;
    return (x->file_offset > y->file_offset) - (x->file_offset < y->file_offset);
}

static enum err out_of_memory(const struct cursor *c)
{
    return err_set(ERR_NOMEM, "%s: out of memory for its headers", c->name);
}

static enum err parse_kvs(struct cursor *c, struct gguf *g)
{
    g->kvs = calloc(g->n_kvs + 1, sizeof(*g->kvs));
    g->index = calloc(g->n_kvs + 1, sizeof(uint32_t));
    if (!g->kvs || !g->index)
        return out_of_memory(c);
    uint32_t *order = g->index;
    for (uint64_t i = 0; i < g->n_kvs; i++) {
        TRY(take_kv(c, &g->kvs[i]));
        order[i] = (uint32_t)i;
    }
    qsort_r(order, g->n_kvs, sizeof(*order), compare_kvs, g->kvs);
    for (uint64_t i = 1; i < g->n_kvs; i++)
        if (compare_kvs(&order[i - 1], &order[i], g->kvs) == 0)
            return err_set(ERR_CORRUPT, "%s: key %.*s stands twice in the header", c->name,
                           (int)g->kvs[order[i]].key.len, g->kvs[order[i]].key.s);
    return ERR_OK;
}

/* Tensors fill the data section one after the other with no more than padding between them, as ggml wants it too: what
 * shares bytes or leaves a hole is a damaged offset, dimension or type. */
static enum err check_layout(const struct cursor *c, struct gguf *g, uint64_t start, uint64_t alignment)
{
    uint32_t *order = calloc(g->n_tensors + 1, sizeof(*order));
    if (!order)
        return out_of_memory(c);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        order[i] = (uint32_t)i;
    qsort_r(order, g->n_tensors, sizeof(*order), compare_offsets, g->tensors);
    enum err e = ERR_OK;
    uint64_t expected = start;
    for (uint64_t i = 0; i < g->n_tensors && e == ERR_OK; i++) {
        const struct gguf_tensor *t = &g->tensors[order[i]];
        if (t->file_offset < expected)
            e = err_set(ERR_CORRUPT, "%s: tensors %s and %s share bytes of the file", c->name,
                        g->tensors[order[i - 1]].name, t->name);
        else if (t->file_offset > expected)
            e = err_set(ERR_CORRUPT, "%s: %" PRIu64 " bytes before tensor %s belong to none", c->name,
                        t->file_offset - expected, t->name);
        uint64_t padding = (alignment - t->bytes % alignment) % alignment;
        expected = t->file_offset + t->bytes + padding; /* inside the file, up to the padding: cannot overflow */
    }
    free(order);
    return e;
}

static enum err parse_tensors(struct cursor *c, struct gguf *g, uint64_t alignment)
{
    g->tensors = calloc(g->n_tensors + 1, sizeof(*g->tensors));
    if (!g->tensors)
        return out_of_memory(c);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        TRY(take_tensor(c, &g->tensors[i]));
    uint64_t start;
    if (!check_add(c->off, (alignment - c->off % alignment) % alignment, &start))
        return truncated(c, "the header");
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        uint64_t offset = t->file_offset;
        if (offset % alignment)
            return err_set(ERR_CORRUPT,
                           "%s: tensor %s: its offset %" PRIu64 " is no multiple of the alignment %" PRIu64, c->name,
                           t->name, offset, alignment);
        if (!check_add(start, offset, &t->file_offset) || !check_range(t->file_offset, t->bytes, c->size))
            return err_set(ERR_CORRUPT,
                           "%s: tensor %s ends outside the file (%" PRIu64 " bytes at %" PRIu64 "+%" PRIu64
                           ", the file has %" PRIu64 "): is the download complete?",
                           c->name, t->name, t->bytes, start, offset, c->size);
        t->data = c->base + t->file_offset;
    }
    return check_layout(c, g, start, alignment);
}

/* One file into g, whose files[0] is already mapped. */
static enum err parse_file(struct gguf *g)
{
    struct cursor cur = {g->files[0].map, g->files[0].size, 0, g->files[0].path ? g->files[0].path : "memory"},
                  *c = &cur;
    const uint8_t *magic;
    if (c->size < 4 || memcmp(c->base, "GGUF", 4) != 0)
        return err_set(ERR_CORRUPT, "%s: is not a GGUF file", c->name);
    TRY(take(c, 4, "the header", &magic));
    TRY(take_u32(c, "the header", &g->version));
    if (g->version && (g->version & 0xffff) == 0)
        return err_set(ERR_UNSUPPORTED, "%s: is a big-endian GGUF file; convert it to little-endian", c->name);
    if (g->version < VERSION_MIN || g->version > VERSION_MAX)
        return err_set(ERR_UNSUPPORTED, "%s: GGUF version %u (%d to %d are supported)", c->name, g->version,
                       VERSION_MIN, VERSION_MAX);
    uint64_t n_tensors, n_kvs;
    TRY(take_u64(c, "the header", &n_tensors));
    TRY(take_u64(c, "the header", &n_kvs));
    if (n_tensors > TENSORS_MAX || n_tensors > (c->size - c->off) / TENSOR_BYTES_MIN)
        return err_set(ERR_CORRUPT, "%s: the header promises %" PRIu64 " tensors, more than the file can hold", c->name,
                       n_tensors);
    if (n_kvs > KVS_MAX || n_kvs > (c->size - c->off) / KV_BYTES_MIN)
        return err_set(ERR_CORRUPT, "%s: the header promises %" PRIu64 " keys, more than the file can hold", c->name,
                       n_kvs);
    g->n_kvs = n_kvs;
    g->n_tensors = n_tensors;
    TRY(parse_kvs(c, g));
    uint32_t alignment = ALIGNMENT_DEFAULT;
    if (gguf_find(g, "general.alignment") && !gguf_get_u32(g, "general.alignment", &alignment))
        return err_set(ERR_CORRUPT, "%s: general.alignment is no positive integer", c->name);
    if (alignment < 8 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return err_set(ERR_CORRUPT, "%s: general.alignment is %u (a power of two from 8 to %d expected)", c->name,
                       alignment, ALIGNMENT_MAX);
    return parse_tensors(c, g, alignment);
}

/* Sorts the tensors of all parts and refuses two of one name. */
static enum err finish(struct gguf *g)
{
    qsort(g->tensors, g->n_tensors, sizeof(*g->tensors), compare_names);
    for (uint64_t i = 1; i < g->n_tensors; i++)
        if (strcmp(g->tensors[i - 1].name, g->tensors[i].name) == 0)
            return err_set(ERR_CORRUPT, "%s: tensor %s stands twice in the header",
                           g->files[0].path ? g->files[0].path : "memory", g->tensors[i].name);
    return ERR_OK;
}

static enum err map_file(const char *path, struct gguf_file *out)
{
    struct stat st;
    /* Non-blocking: a FIFO given by mistake must not hang the program. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(errno == ENOENT || errno == ENOTDIR ? ERR_NOT_FOUND : ERR_IO, "%s: %s", path, strerror(errno));
    enum err e = ERR_OK;
    void *map = NULL;
    if (fstat(fd, &st) != 0)
        e = err_set(ERR_IO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        e = err_set(ERR_INVALID, "%s: is not a regular file", path);
    else if (st.st_size < 4)
        e = err_set(ERR_CORRUPT, "%s: is not a GGUF file (%lld bytes)", path, (long long)st.st_size);
    else if ((map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        e = err_set(ERR_IO, "%s: cannot be mapped: %s", path, strerror(errno));
    char *copy = e == ERR_OK ? strdup(path) : NULL;
    if (e == ERR_OK && !copy) {
        munmap(map, (size_t)st.st_size);
        e = err_set(ERR_NOMEM, "%s: out of memory", path);
    }
    if (e != ERR_OK) {
        close(fd);
        return e;
    }
    *out = (struct gguf_file){.map = map, .size = (uint64_t)st.st_size, .fd = fd, .path = copy};
    return ERR_OK;
}

static enum err create(struct gguf **out)
{
    struct gguf *g = calloc(1, sizeof(*g));
    if (g && (g->files = calloc(1, sizeof(*g->files)))) {
        g->n_files = 1;
        g->files[0].fd = -1;
        *out = g;
        return ERR_OK;
    }
    free(g);
    return err_set(ERR_NOMEM, "out of memory for a model's headers");
}

static enum err open_one(const char *path, struct gguf **out)
{
    struct gguf *g;
    TRY(create(&g));
    enum err e = map_file(path, &g->files[0]);
    if (e == ERR_OK)
        e = parse_file(g);
    if (e != ERR_OK)
        gguf_close(&g);
    *out = g;
    return e;
}

/* Moves the tensors and the mapping of part `idx` into g; the keys of later parts say nothing new. */
static enum err adopt_part(struct gguf *g, struct gguf *part, uint32_t idx)
{
    struct gguf_tensor *tensors = realloc(g->tensors, (g->n_tensors + part->n_tensors + 1) * sizeof(*tensors));
    if (!tensors)
        return err_set(ERR_NOMEM, "%s: out of memory for its headers", part->files[0].path);
    g->tensors = tensors;
    for (uint64_t i = 0; i < part->n_tensors; i++) {
        tensors[g->n_tensors + i] = part->tensors[i];
        tensors[g->n_tensors + i].file_idx = idx;
    }
    g->n_tensors += part->n_tensors;
    g->files[idx] = part->files[0];
    g->n_files = idx + 1;
    part->n_files = 0;
    return ERR_OK;
}

static enum err open_parts(struct gguf *g, uint32_t count)
{
    char suffix[32];
    const char *first = g->files[0].path;
    size_t len = strlen(first), stem;
    int suffix_len = snprintf(suffix, sizeof(suffix), "-00001-of-%05u.gguf", count);
    if (count > FILES_MAX || len <= (size_t)suffix_len || strcmp(first + len - suffix_len, suffix) != 0)
        return err_set(ERR_INVALID, "%s: is the first of %u parts, so its name must end in -00001-of-%05u.gguf", first,
                       count, count);
    stem = len - (size_t)suffix_len;
    struct gguf_file *files = realloc(g->files, count * sizeof(*files));
    if (!files)
        return err_set(ERR_NOMEM, "%s: out of memory", first);
    g->files = files;
    uint32_t total = 0;
    bool has_total = gguf_get_u32(g, "split.tensors.count", &total);
    for (uint32_t i = 1; i < count; i++) {
        char path[4096];
        uint32_t no = 0, n = 0;
        struct gguf *part;
        if (snprintf(path, sizeof(path), "%.*s-%05u-of-%05u.gguf", (int)stem, g->files[0].path, i + 1, count) >=
            (int)sizeof(path))
            return err_set(ERR_INVALID, "%s: the path is too long", g->files[0].path);
        TRY(open_one(path, &part));
        enum err e = ERR_OK;
        if (!gguf_get_u32(part, "split.no", &no) || !gguf_get_u32(part, "split.count", &n) || no != i || n != count)
            e = err_set(ERR_CORRUPT, "%s: says that it is part %u of %u, not %u of %u", path, no + 1, n, i + 1, count);
        if (e == ERR_OK)
            e = adopt_part(g, part, i);
        gguf_close(&part);
        if (e != ERR_OK)
            return e;
    }
    if (has_total && total != g->n_tensors)
        return err_set(ERR_CORRUPT, "%s: its parts hold %" PRIu64 " tensors, the first one promises %u",
                       g->files[0].path, g->n_tensors, total);
    return ERR_OK;
}

enum err gguf_open(const char *path, struct gguf **out)
{
    struct gguf *g = NULL;
    uint32_t no = 0, count = 1;
    *out = NULL;
    TRY(open_one(path, &g));
    enum err e = ERR_OK;
    if (gguf_get_u32(g, "split.count", &count) && count > 1) {
        if (gguf_get_u32(g, "split.no", &no) && no != 0)
            e = err_set(ERR_INVALID, "%s: is part %u of %u; give the first one (-00001-of-%05u.gguf)", path, no + 1,
                        count, count);
        else
            e = open_parts(g, count);
    }
    if (e == ERR_OK)
        e = finish(g);
    if (e != ERR_OK)
        gguf_close(&g);
    *out = g;
    return e;
}

enum err gguf_parse(const void *bytes, size_t size, struct gguf **out)
{
    struct gguf *g;
    *out = NULL;
    TRY(create(&g));
    g->files[0].map = bytes;
    g->files[0].size = size;
    enum err e = parse_file(g);
    if (e == ERR_OK)
        e = finish(g);
    if (e != ERR_OK)
        gguf_close(&g);
    *out = g;
    return e;
}

void gguf_close(struct gguf **gp)
{
    struct gguf *g = *gp;
    *gp = NULL;
    if (!g)
        return;
    for (uint32_t i = 0; i < g->n_files; i++)
        if (g->files[i].fd >= 0) { /* else the bytes are the caller's */
            munmap((void *)g->files[i].map, g->files[i].size);
            close(g->files[i].fd);
            free(g->files[i].path);
        }
    free(g->files);
    free(g->kvs);
    free(g->index);
    free(g->tensors);
    free(g);
}

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key)
{
    const uint32_t *order = g->index;
    struct gguf_str want = {key, strlen(key)};
    uint64_t lo = 0, hi = g->n_kvs;
    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;
        int r = compare_str(want, g->kvs[order[mid]].key);
        if (r == 0)
            return &g->kvs[order[mid]];
        if (r < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name)
{
    uint64_t lo = 0, hi = g->n_tensors;
    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;
        int r = strcmp(name, g->tensors[mid].name);
        if (r == 0)
            return &g->tensors[mid];
        if (r < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}
