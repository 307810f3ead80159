/* See unicode_props.h. */
#include "text/unicode_props.h"

#include <string.h>

const struct unicode_range unicode_ranges[] = {
#include "unicode_ranges.inc"
};
const size_t unicode_n_ranges = sizeof(unicode_ranges) / sizeof(unicode_ranges[0]);

uint32_t unicode_bits(const char *name, size_t len)
{
    static const char *const names[] = {
#define UNICODE_CATEGORY(name, bit) [bit] = #name,
        UNICODE_CATEGORIES
#undef UNICODE_CATEGORY
    };
    if (len == 3 && memcmp(name, "Han", 3) == 0)
        return UNICODE_HAN;
    uint32_t bits = 0;
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]) && (len == 1 || len == 2); i++)
        bits |= memcmp(names[i], name, len) == 0 ? 1u << i : 0;
    return bits;
}

uint32_t unicode_props(uint32_t cp)
{
    size_t lo = 0, hi = unicode_n_ranges;
    while (hi - lo > 1) {
        size_t mid = (lo + hi) / 2;
        if (unicode_ranges[mid].from <= cp)
            lo = mid;
        else
            hi = mid;
    }
    return unicode_ranges[lo].bits;
}
