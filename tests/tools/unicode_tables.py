"""Writes text/template_unicode.def to standard output: what Python's Unicode tables know and utf8proc does not."""
import unicodedata


def ranges(macro, wanted):
    inside, first = False, 0
    for c in range(0x110001):
        ok = c < 0x110000 and not 0xD800 <= c < 0xE000 and wanted(chr(c))
        if ok and not inside:
            first = c
        if inside and not ok:
            print(f"{macro}(0x{first:X}, 0x{c - 1:X})")
        inside = ok


def c_string(s):
    return '"' + "".join(f"\\x{b:02X}" for b in s.encode()) + '"'


print(f"""/* What Python knows of Unicode {unicodedata.unidata_version} and utf8proc does not; written by tests/tools/unicode_tables.py.
 *
 * DIGITS(first, last): digits that are no decimal ones. NUMERALS: numerals among the letters. LOWERS, UPPERS: cased characters whose
 * category does not say so. CASING(code point, capitals, title): capitals of several letters, as UTF-8. */
#ifndef DIGITS
#define DIGITS(first, last)
#endif
#ifndef NUMERALS
#define NUMERALS(first, last)
#endif
#ifndef LOWERS
#define LOWERS(first, last)
#endif
#ifndef UPPERS
#define UPPERS(first, last)
#endif
#ifndef CASING
#define CASING(cp, upper, title)
#endif""")
ranges("DIGITS", lambda c: c.isdigit() and not c.isdecimal())
ranges("NUMERALS", lambda c: c.isnumeric() and unicodedata.category(c) not in ("Nd", "Nl", "No"))
ranges("LOWERS", lambda c: c.islower() and unicodedata.category(c) != "Ll")
ranges("UPPERS", lambda c: c.isupper() and unicodedata.category(c) != "Lu")
for code in range(0x110000):
    if not 0xD800 <= code < 0xE000 and max(len(chr(code).upper()), len(chr(code).title())) > 1:
        print(f"CASING(0x{code:X}, {c_string(chr(code).upper())}, {c_string(chr(code).title())})")
print("""#undef DIGITS
#undef NUMERALS
#undef LOWERS
#undef UPPERS
#undef CASING""")
