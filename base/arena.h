/* A bump allocator: many small objects with one lifetime (process, model, request, step). Not thread-safe. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>

struct arena_chunk;
struct arena {
    struct arena_chunk *head; /* newest chunk; arena_reset keeps the largest */
    size_t used, cap;         /* of the newest chunk */
    size_t total;             /* bytes taken from the system */
    size_t limit;             /* arena_alloc returns NULL past it; 0: none */
};

void arena_init(struct arena *a, size_t limit);
void arena_deinit(struct arena *a);
/* Forgets every object; keeps the memory, so that a steady state allocates nothing. */
void arena_reset(struct arena *a);
/* Zeroed, 16-byte aligned; NULL when out of memory or past the limit. n = 0 gives a valid pointer. */
void *arena_alloc(struct arena *a, size_t n);
/* n objects of size sz, overflow-checked; NULL as above. */
void *arena_array(struct arena *a, size_t n, size_t sz);
char *arena_strdup(struct arena *a, const char *s);
char *arena_strndup(struct arena *a, const char *s, size_t len);

#endif
