/* The bump allocator of arena.h: a list of malloc'ed chunks, the newest at the head. A chunk is at least twice the one
 * before (up to 16 MiB), so that a few chunks serve any size; arena_reset keeps the largest one, hence a user whose
 * need has a bound stops allocating after a few resets. */
#include "base/arena.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 16, CHUNK_MIN = 4096, CHUNK_GROW_MAX = 16 << 20 };

struct arena_chunk {
    struct arena_chunk *next; /* older */
    size_t cap;
    _Alignas(16) unsigned char data[];
};

void arena_init(struct arena *a, size_t limit)
{
    *a = (struct arena){.limit = limit};
}

void arena_deinit(struct arena *a)
{
    for (struct arena_chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    *a = (struct arena){.limit = a->limit};
}

void arena_reset(struct arena *a)
{
    struct arena_chunk *largest = a->head;
    for (struct arena_chunk *c = a->head; c; c = c->next)
        if (c->cap > largest->cap)
            largest = c;
    for (struct arena_chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        if (c != largest)
            free(c);
    }
    a->head = largest;
    a->used = 0;
    a->cap = largest ? largest->cap : 0;
    a->total = largest ? largest->cap + sizeof *largest : 0;
    if (largest)
        largest->next = NULL;
}

static bool grow(struct arena *a, size_t need)
{
    size_t cap = MAX(need, MIN(MAX(a->cap * 2, (size_t)CHUNK_MIN), (size_t)CHUNK_GROW_MAX));
    uint64_t total;
    for (;;) {
        if (cap <= SIZE_MAX - sizeof(struct arena_chunk) &&
            check_add(a->total, cap + sizeof(struct arena_chunk), &total) && (!a->limit || total <= a->limit))
            break;
        if (cap == need)
            return false;
        cap = need; /* the doubling is a wish only */
    }
    struct arena_chunk *c = malloc(sizeof *c + cap);
    if (!c)
        return false;
    c->next = a->head;
    c->cap = cap;
    a->head = c;
    a->used = 0;
    a->cap = cap;
    a->total = total;
    return true;
}

void *arena_alloc(struct arena *a, size_t n)
{
    if (n > SIZE_MAX - ALIGN)
        return NULL;
    size_t need = n ? ROUND_UP(n, (size_t)ALIGN) : ALIGN;
    if (need > a->cap - a->used && !grow(a, need))
        return NULL;
    void *p = a->head->data + a->used;
    a->used += need;
    memset(p, 0, need);
    return p;
}

void *arena_array(struct arena *a, size_t n, size_t sz)
{
    uint64_t bytes;
    if (!check_mul(n, sz, &bytes) || bytes > SIZE_MAX)
        return NULL;
    return arena_alloc(a, (size_t)bytes);
}

char *arena_strndup(struct arena *a, const char *s, size_t len)
{
    if (len == SIZE_MAX)
        return NULL;
    char *p = arena_alloc(a, len + 1);
    if (p && len)
        memcpy(p, s, len);
    return p;
}

char *arena_strdup(struct arena *a, const char *s)
{
    return arena_strndup(a, s, strlen(s));
}
