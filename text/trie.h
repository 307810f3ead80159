/* Byte strings to numbers, looked up byte by byte: which of many strings begin at a place of a text? A transition is one
 * slot of an open-addressed table, so a step costs one probe whatever the fan-out, and building is linear. Immutable
 * once built: any thread may read it. */
#ifndef TEXT_TRIE_H
#define TEXT_TRIE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TRIE_NONE UINT32_MAX

struct trie_slot {
    uint32_t key;  /* node * 256 + byte */
    uint32_t next; /* 0: free */
};
struct trie {
    struct trie_slot *slots;
    uint32_t mask;
    uint32_t *values; /* by node; TRIE_NONE where no string ends */
    uint32_t n_nodes, cap;
};

/* Node 0 is the start. */
enum err trie_init(struct trie *t);
void trie_deinit(struct trie *t);
/* Of equal strings the last counts. ERR_NOMEM; ERR_TOO_BIG past 16 million nodes. */
enum err trie_add(struct trie *t, const char *s, size_t len, uint32_t value);

static inline uint32_t trie_slot_of(const struct trie *t, uint32_t key)
{
    return (key * 0x9E3779B1u >> 7 ^ key) & t->mask;
}

/* The node behind `byte`, or 0. */
static inline uint32_t trie_step(const struct trie *t, uint32_t node, uint8_t byte)
{
    uint32_t key = node << 8 | byte;
    uint32_t i = trie_slot_of(t, key);
    while (t->slots[i].next != 0 && t->slots[i].key != key)
        i = (i + 1) & t->mask;
    return t->slots[i].next;
}

/* The longest string at s; its length, or 0. */
size_t trie_longest(const struct trie *t, const char *s, size_t len, uint32_t *value);

#endif
