/* Run while building: prints the general category, White_Space and Script=Han of every code point as ranges, as PCRE2
 * knows them, one `{first code point, properties},` a line (unicode_props.h). */
#include "text/unicode_props.h"
#include "text/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>

static const struct {
    const char *pattern;
    uint32_t bits;
} props[] = {
#define UNICODE_CATEGORY(name, bit) {"\\p{" #name "}+", 1u << (bit)},
    UNICODE_CATEGORIES
#undef UNICODE_CATEGORY
    {"\\p{sc:Han}+", UNICODE_HAN},
};

/* White_Space is a closed list (PCRE2's \s has U+180E, too, which newer Unicode took out). */
static const uint32_t spaces[][2] = {
    {0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
    {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000},
};

/* Gives `bits` to all that the pattern matches in the text of every code point. */
static int mark(uint32_t *of, const char *all, size_t len, const char *pattern, uint32_t bits)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &at, NULL);
    pcre2_match_data *md = c == NULL ? NULL : pcre2_match_data_create(1, NULL);
    if (md == NULL)
        return 1;
    pcre2_jit_compile(c, PCRE2_JIT_COMPLETE); /* only faster */
    const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(md);
    for (size_t i = 0; i < len && pcre2_match(c, (PCRE2_SPTR)all, len, i, PCRE2_NO_UTF_CHECK, md, NULL) >= 0; i = ov[1])
        for (size_t k = ov[0]; k < ov[1];) {
            uint32_t cp = 0;
            size_t bad;
            bool cut;
            k += utf8_decode(all + k, len - k, &cp, &bad, &cut);
            of[cp] |= bits;
        }
    pcre2_match_data_free(md);
    pcre2_code_free(c);
    return 0;
}

int main(void)
{
    char *all = malloc(4 * (size_t)UNICODE_END);
    uint32_t *of = calloc(UNICODE_END, sizeof(*of));
    if (all == NULL || of == NULL)
        return 1;
    size_t len = 0;
    for (uint32_t cp = 0; cp < UNICODE_END; cp++)
        if (cp < 0xD800 || cp > 0xDFFF)
            len += utf8_encode(cp, all + len);
    int failed = 0;
    for (size_t i = 0; i < sizeof(props) / sizeof(props[0]); i++)
        failed |= mark(of, all, len, props[i].pattern, props[i].bits);
    for (size_t i = 0; i < sizeof(spaces) / sizeof(spaces[0]); i++)
        for (uint32_t cp = spaces[i][0]; cp <= spaces[i][1]; cp++)
            of[cp] |= UNICODE_SPACE;
    for (uint32_t cp = 0; cp < UNICODE_END && !failed; cp++)
        if (cp == 0 || of[cp] != of[cp - 1])
            printf("{0x%X, 0x%Xu},\n", (unsigned)cp, (unsigned)of[cp]);
    free(all);
    free(of);
    return failed;
}
