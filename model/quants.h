/* Storage types of weights, from quants.def. */
#ifndef MODEL_QUANTS_H
#define MODEL_QUANTS_H

#include <stdbool.h>
#include <stdint.h>

enum quant {
#define QUANT(sym, id, name, elems, bytes, act) QUANT_##sym,
#include "model/quants.def"
#undef QUANT
    QUANT_COUNT
};
enum quant_act { QUANT_ACT_F32, QUANT_ACT_Q8 };

struct quant_traits {
    const char *name;
    uint32_t gguf_id, block_elems, block_bytes;
    enum quant_act act;
};
extern const struct quant_traits quant_traits[QUANT_COUNT]; /* model/quants.c */

/* The type of a GGUF number; false where it is not supported. */
bool quant_from_gguf(uint32_t gguf_id, enum quant *out);
/* Bytes of one row of `cols` elements; cols is a multiple of the block. */
static inline uint64_t quant_row_bytes(enum quant q, uint64_t cols)
{
    return cols / quant_traits[q].block_elems * quant_traits[q].block_bytes;
}

#endif
