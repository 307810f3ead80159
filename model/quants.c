/* The table of quants.def, and the checks that its rows fit together. No state. */
#include "model/quants.h"

#include "base/check.h"

const struct quant_traits quant_traits[QUANT_COUNT] = {
#define QUANT(sym, id, name_, elems, bytes, act_)                                                                      \
    [QUANT_##sym] = {.name = name_, .gguf_id = id, .block_elems = elems, .block_bytes = bytes, .act = QUANT_ACT_##act_},
#include "model/quants.def"
#undef QUANT
};

/* Q8 activations come in blocks of 32, so no block of such a type may be shorter or end between two of them. */
#define QUANT(sym, id, name, elems, bytes, act)                                                                        \
    _Static_assert(QUANT_ACT_##act == QUANT_ACT_F32 || (elems) % 32 == 0, "block of " name);
#include "model/quants.def"
#undef QUANT

bool quant_from_gguf(uint32_t gguf_id, enum quant *out)
{
    for (unsigned i = 0; i < ARRAY_LEN(quant_traits); i++)
        if (quant_traits[i].gguf_id == gguf_id) {
            *out = (enum quant)i;
            return true;
        }
    return false;
}
