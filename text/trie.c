/* See trie.h. The table doubles when it is two thirds full. */
#include "text/trie.h"

#include <stdlib.h>
#include <string.h>

enum { NODES_MAX = 1 << 24, NODES_FIRST = 1 << 10 };

static enum err grow_slots(struct trie *t, uint32_t n)
{
    struct trie_slot *old = t->slots;
    uint32_t n_old = old ? t->mask + 1 : 0;
    struct trie_slot *slots = calloc(n, sizeof(*slots));
    if (!slots)
        return err_set(ERR_NOMEM, "no memory for %u transitions", n);
    t->slots = slots;
    t->mask = n - 1;
    for (uint32_t k = 0; k < n_old; k++) {
        if (old[k].next == 0)
            continue;
        uint32_t i = trie_slot_of(t, old[k].key);
        while (slots[i].next != 0)
            i = (i + 1) & t->mask;
        slots[i] = old[k];
    }
    free(old);
    return ERR_OK;
}

static enum err new_node(struct trie *t, uint32_t *out)
{
    if (t->n_nodes == t->cap) {
        uint32_t cap = t->cap ? t->cap * 2 : NODES_FIRST;
        if (cap > NODES_MAX)
            return err_set(ERR_TOO_BIG, "the tokens have more than %d different beginnings", NODES_MAX);
        uint32_t *values = realloc(t->values, cap * sizeof(*values));
        if (!values)
            return err_set(ERR_NOMEM, "no memory for %u beginnings of tokens", cap);
        t->values = values;
        t->cap = cap;
        TRY(grow_slots(t, cap * 2)); /* never more transitions than nodes */
    }
    t->values[t->n_nodes] = TRIE_NONE;
    *out = t->n_nodes++;
    return ERR_OK;
}

enum err trie_init(struct trie *t)
{
    uint32_t root;
    memset(t, 0, sizeof(*t));
    return new_node(t, &root);
}

void trie_deinit(struct trie *t)
{
    free(t->slots);
    free(t->values);
    memset(t, 0, sizeof(*t));
}

enum err trie_add(struct trie *t, const char *s, size_t len, uint32_t value)
{
    uint32_t node = 0;
    for (size_t i = 0; i < len; i++) {
        uint32_t next = trie_step(t, node, (uint8_t)s[i]);
        if (next == 0) {
            TRY(new_node(t, &next));
            uint32_t key = node << 8 | (uint8_t)s[i], k = trie_slot_of(t, key);
            while (t->slots[k].next != 0)
                k = (k + 1) & t->mask;
            t->slots[k] = (struct trie_slot){key, next};
        }
        node = next;
    }
    t->values[node] = value;
    return ERR_OK;
}

size_t trie_longest(const struct trie *t, const char *s, size_t len, uint32_t *value)
{
    size_t best = 0;
    uint32_t node = 0;
    for (size_t i = 0; i < len; i++) {
        node = trie_step(t, node, (uint8_t)s[i]);
        if (node == 0)
            break;
        if (t->values[node] != TRIE_NONE) {
            best = i + 1;
            *value = t->values[node];
        }
    }
    return best;
}
