/* Properties of Unicode's code points, as sorted ranges that unicode_gen.c makes while building. Read-only. */
#ifndef TEXT_UNICODE_PROPS_H
#define TEXT_UNICODE_PROPS_H

#include <stddef.h>
#include <stdint.h>

enum { UNICODE_END = 0x110000 };
/* General categories; the bit of each. Two letters a category; one letter in a pattern means all that begin with it. */
#define UNICODE_CATEGORIES                                                                                             \
    UNICODE_CATEGORY(Lu, 0)                                                                                            \
    UNICODE_CATEGORY(Ll, 1)                                                                                            \
    UNICODE_CATEGORY(Lt, 2)                                                                                            \
    UNICODE_CATEGORY(Lm, 3)                                                                                            \
    UNICODE_CATEGORY(Lo, 4)                                                                                            \
    UNICODE_CATEGORY(Mn, 5)                                                                                            \
    UNICODE_CATEGORY(Mc, 6)                                                                                            \
    UNICODE_CATEGORY(Me, 7)                                                                                            \
    UNICODE_CATEGORY(Nd, 8)                                                                                            \
    UNICODE_CATEGORY(Nl, 9)                                                                                            \
    UNICODE_CATEGORY(No, 10)                                                                                           \
    UNICODE_CATEGORY(Pc, 11)                                                                                           \
    UNICODE_CATEGORY(Pd, 12)                                                                                           \
    UNICODE_CATEGORY(Ps, 13)                                                                                           \
    UNICODE_CATEGORY(Pe, 14)                                                                                           \
    UNICODE_CATEGORY(Pi, 15)                                                                                           \
    UNICODE_CATEGORY(Pf, 16)                                                                                           \
    UNICODE_CATEGORY(Po, 17)                                                                                           \
    UNICODE_CATEGORY(Sm, 18)                                                                                           \
    UNICODE_CATEGORY(Sc, 19)                                                                                           \
    UNICODE_CATEGORY(Sk, 20)                                                                                           \
    UNICODE_CATEGORY(So, 21)                                                                                           \
    UNICODE_CATEGORY(Zs, 22)                                                                                           \
    UNICODE_CATEGORY(Zl, 23)                                                                                           \
    UNICODE_CATEGORY(Zp, 24)                                                                                           \
    UNICODE_CATEGORY(Cc, 25)                                                                                           \
    UNICODE_CATEGORY(Cf, 26)                                                                                           \
    UNICODE_CATEGORY(Co, 27)                                                                                           \
    UNICODE_CATEGORY(Cn, 28)
#define UNICODE_SPACE (1u << 29) /* White_Space */
#define UNICODE_HAN (1u << 30)   /* Script=Han */

struct unicode_range {
    uint32_t from; /* up to the next range's; the first begins at 0, the last ends at UNICODE_END */
    uint32_t bits;
};
extern const struct unicode_range unicode_ranges[];
extern const size_t unicode_n_ranges;

/* The category bits of a name ("L", "Lu", "Han"), or 0. */
uint32_t unicode_bits(const char *name, size_t len);
/* The properties of a code point, by binary search. */
uint32_t unicode_props(uint32_t cp);

#endif
