/* Random messages for tests and the fuzzer's corpus: every type with every field, valid by the rules of msg.h, from a seed; and their
 * comparison field by field. Written by hand from msg.h, not from the codec's table, so that a field the table forgets shows. */
#ifndef TESTS_MSG_RANDOM_H
#define TESTS_MSG_RANDOM_H

#include "proto/msg.h"

struct msg_random {
    uint64_t state;
    struct arena *arena;
    uint32_t list_max; /* about how many entries a list gets */
    uint32_t str_max;
};
void msg_random_fill(struct msg_random *r, enum msg_type type, struct msg *out);
uint64_t msg_random_u64(struct msg_random *r);
uint32_t msg_random_below(struct msg_random *r, uint32_t n);
/* NULL when equal (floats by their bits), else the name of a field that differs. */
const char *msg_random_diff(const struct msg *a, const struct msg *b);

#endif
