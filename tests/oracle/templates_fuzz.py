"""Random templates from a grammar, random conversations: the chat template interpreter against jinja2 (PyPI).

usage: templates_fuzz.py RENDER [--seconds N] [--seed N] [--count N] [--keep-going]

RENDER is tests/tools/render.c. Texts must be equal byte for byte, and where jinja2 raises we must raise, when the template is compiled or when it
runs. The seed of every template is seed + its number, so that one difference is seen again with --seed S --count 1. Exit 1 at a difference or a
crash, 77 when jinja2 is missing. What differs by design is left out by skips(): object addresses, what jinja2 needs a second for, budgets.
"""
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import templates_oracle  # noqa: E402  (exits with 77 without jinja2)

WORDS = ["user", "assistant", "tool", "system", "", " ", "a", "Hello World", "x-y_z", "ÄÖß", "ΣΑΣ σας", "straße", "ﬁn", "İstanbul", "ǆ ǅ", "你好 🙂", "line\nnext\r\nend",
         "  pad\t", "<b>&amp;\"'</b>", "%s and %d", "{} {0}", "a,b,,c", "42", " 7 ", "-3.5e2", "1_000", "0x1F", "٣", "½", "Ⅷ", "not\\escaped", "\x01\x7f\xa0\xad", "é", "nan", "ünï cödé",
         "the quick brown fox jumps", "CamelCase", "{{", "true", "None", "key", "value", "content", "role"]
KEYS = ["role", "content", "name", "type", "text", "a", "b", "items", "keys", "x", "Zz", "tool_calls", "function", "0", "ä"]
ROLES = ["system", "user", "assistant", "tool", "developer"]
VARS = {"str": ["s", "t", "u"], "int": ["i", "j"], "float": ["f"], "list": ["l", "strs", "nums", "messages", "dicts"], "dict": ["d", "e"], "bool": ["yes", "no"], "any": ["nothing", "missing", "z", "s", "l", "d", "i", "f"]}
LOCALS = ["v", "w", "q", "ns"]
STR_METHODS = ["upper()", "lower()", "title()", "capitalize()", "swapcase()", "casefold()", "strip()", "lstrip()", "rstrip()", "strip({s})", "lstrip({s})", "rstrip({s})",
               "replace({s}, {s})", "replace({s}, {s}, {i})", "split()[{i}]", "split({s})|join('|')", "rsplit({s}, {i})|string", "split(none, {i})|string", "rsplit(none, {i})|string", "split(maxsplit={i})|string",
               "splitlines()|string", "splitlines(true)|string", "splitlines(keepends=yes)|string", "partition({s})|string", "rpartition({s})|string", "join(strs)", "join({s})", "zfill({i})", "ljust({i})", "rjust({i}, '*')",
               "center({i})", "center({i}, 'é')", "format({a}, {a})", "format(name={a})", "removeprefix({s})", "removesuffix({s})", "expandtabs({i})"]
BOOL_METHODS = ["startswith({s})", "endswith({s})", "startswith(({s}, {s}))", "startswith({s}, {i})", "endswith({s}, {i}, {i})", "isdigit()", "isalpha()", "isalnum()", "isspace()", "isupper()", "islower()", "istitle()", "isdecimal()",
                "isnumeric()", "isascii()", "isprintable()", "isidentifier()"]
INT_METHODS = ["find({s})", "rfind({s})", "count({s})", "find({s}, {i})", "rfind({s}, {i}, {i})", "count({s}, {i})", "index({s})", "rindex({s})"]
STR_FILTERS = ["upper", "lower", "title", "capitalize", "trim", "trim({s})", "string", "replace({s}, {s})", "replace({s}, {s}, {i})", "indent", "indent({i})", "indent({s}, true)", "indent(2, first=yes, blank=no)", "reverse",
               "default({s})", "default({s}, true)", "d", "truncate({i})", "truncate({i}, true, '…', 0)", "truncate(9, yes)", "center({i})", "striptags", "urlencode", "format({a})", "tojson", "first", "last", "list|join(',')", "int|string", "float|string", "wordcount|string",
               "length|string", "unique|join", "sort|join", "batch({i})|list|string", "filesizeformat"]
LIST_FILTERS = ["list", "reverse|list", "sort", "sort(reverse=true)", "sort(case_sensitive=true)", "sort(attribute={k})", "sort(attribute='a,b')", "unique|list", "unique(true)|list", "unique(attribute={k})|list", "map('upper')|list", "map('string')|list", "map(attribute={k})|list",
                "map(attribute={k}, default={a})|list", "map('default', {a})|list", "map('length')|list", "map('int')|list", "select|list", "select('string')|list", "select('number')|list", "select('equalto', {a})|list", "select('in', {l})|list", "select('gt', {i})|list",
                "reject|list", "reject('none')|list", "selectattr({k})|list", "selectattr({k}, 'defined')|list", "selectattr({k}, 'equalto', {a})|list", "selectattr({k}, '==', {s})|list", "rejectattr({k}, 'undefined')|list", "rejectattr({k}, 'in', {l})|list",
                "batch({i})|list", "batch({i}, {a})|list", "slice({i})|list", "slice({i}, {a})|list", "groupby({k})|list", "groupby({k}, default={a})|list", "groupby(0)|list", "map('first')|list", "map('tojson')|list", "map('trim')|list", "selectattr('role', 'eq', 'user')|map(attribute='content')|list",
                "map('replace', {s}, {s})|list", "sort(attribute='name')|map(attribute='name')|list", "sort(false, true)", "map(attribute='a.b')|list", "map(attribute='0')|list", "map(attribute=0)|list"]
ANY_FROM_LIST = ["first", "last", "min", "max", "sum", "sum(start={i})", "join", "join({s})", "join({s}, attribute={k})", "length", "count", "random_not_there", "string", "tojson", "tojson(indent={i})", "min(attribute={k})", "max(case_sensitive=yes)", "map('upper')|first", "select('odd')|first", "sum(attribute={k})"]
DICT_FILTERS = ["dictsort", "dictsort(true)", "dictsort(false, 'value')", "dictsort(by='key', reverse=true)", "items|list", "list", "tojson", "tojson(sort_keys=true)", "tojson(indent=2)", "tojson(indent='\\t', separators=(',', ': '))", "tojson(separators=(',', ':'))", "tojson(ensure_ascii=true)", "length", "string", "first", "last", "xmlattr", "items|map('first')|list", "urlencode", "tojson(true, none, none, true)"]
NUM_FILTERS = ["abs", "int", "float", "round", "round({i})", "round(1, 'ceil')", "round(2, 'floor')", "round(method='floor')", "string", "tojson", "filesizeformat", "filesizeformat(true)", "default(1)", "round(none)", "int(1, 16)"]
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "iterable", "sequence", "callable", "true", "false", "lower", "upper", "odd", "even", "divisibleby({i})", "divisibleby {i}", "eq({a})", "ne {a}", "equalto({a})", "in({l})", "in {l}",
         "lt({i})", "gt({a})", "ge({i})", "le {i}", "greaterthan({i})", "lessthan({i})", "sameas(none)", "sameas true", "filter", "test", "escaped", "not defined", "not none", "not string", "not in({l})"]
OPS = ["+", "-", "*", "/", "//", "%", "**"]


def quote(rng, s):
    q = rng.choice("'\"")
    out = ""
    for c in s:
        if c in "\\" or c == q:
            out += "\\" + c
        elif c in "\n\r\t" or ord(c) < 32:
            out += {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(c, "\\x%02x" % ord(c))
        elif ord(c) > 126 and rng.random() < 0.1:
            out += "\\u%04x" % ord(c) if ord(c) < 0x10000 else "\\U%08x" % ord(c)
        else:
            out += c
    return q + out + q


class Grammar:
    def __init__(self, rng):
        self.r = rng
        self.wild = rng.choice([0, 0.01, 0.08])  # how often a value has another type than its place wants
        self.loops, self.in_macro, self.macros, self.depth = 0, 0, [], 0

    def fill(self, text, d):
        out = ""
        while "{" in text:
            at = text.index("{")
            if text[at:at + 3] in ("{s}", "{i}", "{a}", "{l}", "{k}"):
                kind = text[at + 1]
                out += text[:at] + {"s": lambda: self.expr("str", d), "i": lambda: self.small(d), "a": lambda: self.expr("any", d), "l": lambda: self.expr("list", d), "k": lambda: quote(self.r, self.r.choice(KEYS))}[kind]()
                text = text[at + 3:]
            else:
                out += text[:at + 1]
                text = text[at + 1:]
        return out + text

    def small(self, d):
        """A number that makes nothing large of a text or list."""
        k = self.r.random()
        if k < 0.15:
            return self.r.choice(["i", "(i + 1)", "nums|length", "yes"] + (["none", "'2'", "1.0", "missing"] if self.wild else []))
        return str(self.r.choice([0, 1, 2, 3, 4, 5, 9, 12, 20])) if k < 0.85 else "(-%d)" % self.r.randrange(1, 6)

    def name(self, kind):
        if self.r.random() < self.wild * 2:
            return self.r.choice(LOCALS)
        if self.in_macro and self.r.random() < self.wild * 2:
            return self.r.choice(["varargs", "kwargs", "p", "p2", "caller"])
        return self.r.choice(VARS[kind])

    def expr(self, kind, d=None):
        d = 3 if d is None else d - 1
        if self.r.random() < self.wild:
            kind = self.r.choice(["str", "int", "float", "list", "dict", "bool", "any"])
        if kind == "any":
            kind = self.r.choice(["str", "str", "int", "float", "list", "dict", "bool", "any"])
        if kind == "any":
            return self.other(d)
        return getattr(self, "make_" + kind)(d)

    def other(self, d):
        k = self.r.randrange(9)
        if d <= 0 or k == 0:
            return self.r.choice(["none", "None", self.name("any")])
        if self.loops and k < 4:
            return "loop." + self.r.choice(["index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "previtem", "nextitem", "cycle(%s, %s)" % (self.expr("any", d), self.expr("any", d)), "changed(%s)" % self.expr("any", d)])
        if self.in_macro and k < 6:
            return self.r.choice(["varargs", "kwargs", "caller()", "caller(%s)" % self.expr("any", d), "p", "p2", "varargs[0]", "kwargs.z"])
        if k == 4:
            return "(%s if %s else %s)" % (self.expr("any", d), self.expr("bool", d), self.expr("any", d))
        if k == 5:
            return "(%s if %s)" % (self.expr("any", d), self.expr("bool", d))
        if k == 6:
            return "%s.%s" % (self.expr("dict", d), self.r.choice(KEYS + ["get('a')", "get('a', %s)" % self.expr("any", d), "a.b", "upper"]))
        if k == 7:
            return "%s[%s]" % (self.expr(self.r.choice(["list", "dict", "str"]), d), self.expr(self.r.choice(["int", "str", "any"]), d))
        return "%s|%s" % (self.expr("list", d), self.fill(self.r.choice(ANY_FROM_LIST[:11] + ANY_FROM_LIST[12:]), d))

    def make_str(self, d):
        k = self.r.randrange(13)
        if d <= 0 or k < 2:
            return quote(self.r, self.r.choice(WORDS)) if self.r.random() < 0.6 else self.name("str")
        if k < 4:
            return "%s.%s" % (self.atom("str", d), self.fill(self.r.choice(STR_METHODS), d))
        if k < 7:
            return "%s|%s" % (self.atom(self.r.choice(["str", "str", "str", "any"]), d), self.fill(self.r.choice(STR_FILTERS), d))
        if k == 7:
            return "(%s ~ %s)" % (self.expr("any", d), self.expr("any", d))
        if k == 8:
            return "(%s + %s)" % (self.expr("str", d), self.expr("str", d))
        if k == 9:
            return "%s[%s]" % (self.atom("str", d), self.slice(d))
        if k == 10:
            return "(%s %% %s)" % (quote(self.r, self.r.choice(["%s", "[%5s]", "%-6s|", "%d", "%05d", "%+.2f", "%x", "%#o", "%e", "%g", "%r", "%s-%s", "%%", "%.3s", "%(a)s", "%c", "%5.1f%%", "% d", "%i"])), self.r.choice([self.expr("any", d), "(%s,)" % self.expr("any", d), "(%s, %s)" % (self.expr("any", d), self.expr("any", d)), self.expr("int", d), self.expr("float", d), self.expr("dict", d)]))
        if k == 11:
            return "%s.format(%s, a=%s)" % (quote(self.r, self.r.choice(["{}", "{0} {a}", "{:>8}|", "{!r}", "{0:<5}{0:^9}", "{:05d}", "{:,}", "{:.2f}", "{a[0]}", "{a.x}", "{:x}", "{:#b}", "{:+}", "{{}} {}", "{:e}", "{:.3}", "{:%}", "{:_}", "{0!s:*^7}", "{:{a}}", "{} {}", "{b}", "{:g}"])), self.expr("any", d), self.expr("any", d))
        if self.macros and self.r.random() < 0.6:
            return self.call_macro(d)
        return "(%s * %s)" % (self.expr("str", d), self.small(d))

    def call_macro(self, d):
        args = [self.expr("any", d) for _ in range(self.r.randrange(4))]
        args += ["%s=%s" % (n, self.expr("any", d)) for n in ("p", "p2", "z") if self.r.random() < 0.2]
        return "%s(%s)" % (self.r.choice(self.macros), ", ".join(args))

    def make_int(self, d):
        k = self.r.randrange(9)
        if d <= 0 or k < 3:
            return self.name("int") if self.r.random() < 0.3 else self.r.choice(["0", "1", "2", "3", "7", "10", "42", "1_000", "0x1f", "0b101", "0o17", "255", "-1", "-5", "4611686018427387904", "9223372036854775807", "123456789012345678901234567890", "18446744073709551616"])
        if k < 5:
            if self.r.random() < 0.1:
                return "(%s ** %s)" % (self.r.choice(["2", "-3", "10", "i", "123456789", "0", "yes"]), self.r.choice(["0", "1", "2", "20", "64", "-1", "i"]))
            return "(%s %s %s)" % (self.expr("int", d), self.r.choice(OPS[:6]), self.small(d))
        if k == 5:
            return "%s|%s" % (self.atom("any", d), self.r.choice(["length", "int", "count", "int(%s)" % self.small(d), "wordcount", "abs"]))
        if k == 6:
            return "%s.%s" % (self.atom("str", d), self.fill(self.r.choice(INT_METHODS), d))
        if k == 7:
            return "-" + self.atom("int", d)
        return self.r.choice(["loop.index", "loop.index0"]) if self.loops else "%s.%s(%s)" % (self.atom("list", d), self.r.choice(["count", "index"]), self.expr("any", d))

    def make_float(self, d):
        k = self.r.randrange(6)
        if d <= 0 or k < 2:
            return self.r.choice(["1.5", "0.1", "2.0", "1e10", "-2.5", "1e16", "1.0e-5", "3.14159", "100.0", "0.5", "2.675", "1e300", "f"])
        if k < 4:
            return "(%s %s %s)" % (self.expr("float", d), self.r.choice(OPS[:6]), self.expr(self.r.choice(["int", "float"]), d))
        return "%s|%s" % (self.atom(self.r.choice(["float", "int", "str"]), d), self.fill(self.r.choice(NUM_FILTERS), d))

    def make_bool(self, d):
        k = self.r.randrange(11)
        if d <= 0 or k == 0:
            return self.r.choice(["true", "false", "True", "False", "yes", "no"])
        if k < 3:
            return "%s is %s" % (self.atom("any", d), self.fill(self.r.choice(TESTS), 0))
        if k < 5:
            t = self.r.choice(["int", "str", "any", "float", "list"])
            return "(%s %s %s)" % (self.expr(t, d), self.r.choice(["==", "!=", "<", ">", "<=", ">="]), self.expr(t, d))
        if k == 5:
            return "(%s %s %s)" % (self.expr("any", d), self.r.choice(["in", "not in"]), self.expr(self.r.choice(["list", "dict", "str"]), d))
        if k == 6:
            return "(not %s)" % self.expr("any", d)
        if k == 7:
            return "(%s %s %s)" % (self.expr("any", d), self.r.choice(["and", "or"]), self.expr("any", d))
        if k == 8:
            return "%s.%s" % (self.atom("str", d), self.fill(self.r.choice(BOOL_METHODS), d))
        if k == 9:
            return "(%s < %s <= %s)" % (self.expr("int", d), self.expr("int", d), self.expr("int", d))
        return "loop." + self.r.choice(["first", "last"]) if self.loops else self.expr("any", d)

    def make_list(self, d):
        k = self.r.randrange(9)
        if d <= 0 or k < 2:
            return self.name("list")
        if k == 2:
            return "[%s]" % ", ".join(self.expr("any", d) for _ in range(self.r.randrange(5)))
        if k == 3:
            return "(%s,)" % ", ".join(self.expr("any", d) for _ in range(self.r.randrange(1, 4)))
        if k == 4:
            return "range(%s)" % ", ".join(self.small(d) for _ in range(self.r.randrange(1, 4)))
        if k == 5:
            return "%s[%s]" % (self.atom("list", d), self.slice(d))
        if k == 6:
            return "(%s %s %s)" % (self.expr("list", d), "+", self.expr("list", d)) if self.r.random() < 0.7 else "(%s * %s)" % (self.expr("list", d), self.small(d))
        if k == 7:
            return "%s.%s" % (self.atom("dict", d), self.r.choice(["items()", "keys()", "values()", "items()|list", "keys()|list"]))
        return "%s|%s" % (self.atom("list", d), self.fill(self.r.choice(LIST_FILTERS), d))

    def make_dict(self, d):
        k = self.r.randrange(6)
        if d <= 0 or k < 2:
            return self.name("dict")
        if k < 4:
            return "{%s}" % ", ".join("%s: %s" % (quote(self.r, self.r.choice(KEYS)) if self.r.random() < 0.9 else self.expr(self.r.choice(["int", "bool", "float"]), 0), self.expr("any", d)) for _ in range(self.r.randrange(4)))
        if k == 4:
            return "dict(%s)" % self.r.choice(["a=%s" % self.expr("any", d), "d, b=%s" % self.expr("any", d), "[('a', %s)]" % self.expr("any", d), "", "e"])
        return self.r.choice(["messages[0]", "dicts[%s]" % self.small(d), "d.copy()", "(d or e)", "messages|last", "dicts|first"])

    def atom(self, kind, d):
        e = self.expr(kind, d)
        plain = e.replace("_", "").isalnum() or (self.wild > 0.05 and self.r.random() < 0.2)
        return e if plain else "(" + e + ")"

    def slice(self, d):
        parts = [self.r.choice(["0", "1", "2", "5", "(-1)", "(-3)", "i"]) if self.r.random() < 0.6 else "" for _ in range(self.r.choice([2, 2, 3]))]
        return ":".join(parts)

    # ---- statements

    def tag(self, text):
        return "{%" + self.r.choice(["", "", "", "-", "-", "+"]) + " " + text + " " + self.r.choice(["", "", "", "-", "-"]) + "%}"

    def text(self):
        return "".join(self.r.choice(["\n", " ", "  ", "a", "B", "é", "\t", "x\n", "\n\n", "<|im|>", "{ ", "} ", "# ", "% "] + (["{", "}", "#", "%"] if self.wild > 0.05 else [])) for _ in range(self.r.randrange(4)))

    def block(self, d):
        return "".join(self.statement(d) + self.text() for _ in range(self.r.choice([1, 1, 2, 2, 3])))

    def statement(self, d=3):
        d -= 1
        k = self.r.randrange(26)
        if d <= 0 or k < 6:
            text = self.expr("any", self.r.choice([2, 3, 4]))
            if self.r.random() < 0.05:
                text = self.r.choice(["(%s)|escape", "(%s)|e", "(%s)|safe", "(%s)|forceescape", "'<' + (%s)|safe", "(%s)|e + '&'", "[(%s)|e]"]).replace("%s", text)
            return "{{" + self.r.choice(["", "", "-"]) + " " + text + " " + self.r.choice(["", "", "-"]) + "}}"
        if k < 9:
            return self.if_(d)
        if k < 13:
            return self.for_(d)
        if k < 17:
            target = self.r.choice(LOCALS[:3] + ["v, w", "s", "ns.a", "(v, q)", "i", "_u"])
            value = "%s, %s" % (self.expr("any"), self.expr("any")) if "," in target and self.r.random() < 0.8 else self.expr("any")
            return self.tag("set %s = %s" % (target, value))
        if k == 17:
            return self.tag("set ns = namespace(%s)" % self.r.choice(["a=%s" % self.expr("any"), "", "d", "a=0, b=''"]))
        if k == 18:
            return self.tag("set %s%s" % (self.r.choice(["v", "w", "ns.a"]), self.r.choice(["", "", " | upper", " | trim | length"]))) + self.block(d) + self.tag("endset")
        if k == 19:
            return self.macro(d)
        if k == 20 and self.macros:
            return self.tag("call%s %s" % (self.r.choice(["", "(p)", "(v, w=2)"]), self.call_macro(2))) + self.block(d) + self.tag("endcall")
        if k == 21:
            return self.tag("filter " + self.fill(self.r.choice(["upper", "trim", "replace({s}, {s})", "indent(2)", "upper|trim", "default('x')", "length|string"] + (["length"] if self.wild else [])), 1)) + self.block(d) + self.tag("endfilter")
        if k == 22:
            return self.tag("with " + self.r.choice(["v = %s", "v = %s, w = v", "", "s = %s", "(v, w) = (%s, 1)"]).replace("%s", self.expr("any"))) + self.block(d) + self.tag("endwith")
        if k == 23:
            return self.tag("generation") + self.block(d) + self.tag("endgeneration")
        if k == 24 and self.loops:
            return self.if_(d, [self.tag(self.r.choice(["break", "continue"]))])
        return self.r.choice(["{# note #}", "{#- note -#}", "{% raw %}{{ x }} {%- endraw %}", "{#\n#}", "{{ raise_exception('no') }}" if self.r.random() < 0.2 else "{{ '' }}", "{{ strftime_now('%Y-%m-%d %H:%M') }}"])

    def if_(self, d, then=None):
        out = self.tag("if " + self.expr(self.r.choice(["bool", "bool", "any"]))) + (then[0] if then else self.block(d))
        for _ in range(self.r.choice([0, 0, 1])):
            out += self.tag("elif " + self.expr("bool")) + self.block(d)
        if self.r.random() < 0.4:
            out += self.tag("else") + self.block(d)
        return out + self.tag("endif")

    def for_(self, d):
        kind = self.r.randrange(6)
        recursive = ""
        if kind == 0:
            head = self.r.choice(["k, v", "(k, v)", "v, w"]) + " in " + self.r.choice(["d.items()", "e|items", "d|dictsort", "dicts|groupby('a')", "[(1, 2), (3, 4)]", "[[1, %s]]" % self.expr("any", 1)])
        else:
            head = self.r.choice(["v", "m", "x", "s"]) + " in " + self.expr("list")
        if self.r.random() < 0.25:
            head += " if " + self.r.choice(["v", "loop", "s", "ns.a", "m.role != 'user'", self.expr("bool", 2)])
        if self.r.random() < 0.1:
            recursive = " recursive"
        self.loops += 1
        body = self.block(d)
        if recursive and self.r.random() < 0.7:
            body += "{{ loop(%s) if loop.depth < 3 }}" % self.r.choice(["[1, 2]", "l", "strs", "v"])
        self.loops -= 1
        if self.r.random() < 0.3:
            body += self.tag("else") + self.block(d)
        return self.tag("for " + head + recursive) + body + self.tag("endfor")

    def macro(self, d):
        name = "m%d" % len(self.macros)
        loops, self.loops = self.loops, 0
        self.in_macro += 1
        body = self.block(d)
        self.in_macro -= 1
        self.loops = loops
        params = self.r.choice(["", "p", "p, p2=%s" % self.expr("any", 1), "p='x'", "p, p2=p", "p=1, p2=2"])
        out = self.tag("macro %s(%s)" % (name, params)) + body + self.tag("endmacro")
        self.macros.append(name)
        return out

    def template(self):
        start = self.tag("set ns = namespace(a=%s)" % self.expr("any", 1)) if self.r.random() < 0.6 else ""
        return start + "".join(self.statement() + self.text() for _ in range(self.r.choice([1, 1, 2, 3, 5])))


def value(r, d=2):
    k = r.randrange(9 if d > 0 else 6)
    if k < 3:
        return r.choice(WORDS)
    if k == 3:
        return r.choice([0, 1, -1, 7, 255, 10 ** 12])
    if k == 4:
        return r.choice([0.5, 1.0, -2.25, 1e20, 0.1])
    if k == 5:
        return r.choice([None, True, False])
    if k < 8:
        return {r.choice(KEYS): value(r, d - 1) for _ in range(r.randrange(4))}
    return [value(r, d - 1) for _ in range(r.randrange(4))]


def context(r):
    message = lambda: {"role": r.choice(ROLES), "content": r.choice(WORDS) if r.random() < 0.8 else value(r), **({"name": r.choice(WORDS)} if r.random() < 0.3 else {})}  # noqa: E731
    return {"messages": [message() for _ in range(r.randrange(1, 4))], "s": r.choice(WORDS), "t": r.choice(WORDS), "u": r.choice(WORDS), "i": r.randrange(-3, 20), "j": r.choice([0, 1, 2 ** 40]), "f": r.choice([0.5, 2.0, -1.25, 1e17]),
            "l": [value(r) for _ in range(r.randrange(4))], "strs": [r.choice(WORDS) for _ in range(r.randrange(5))], "nums": [r.randrange(-5, 50) for _ in range(r.randrange(5))],
            "dicts": [{"a": r.choice([1, 2, 3]), "b": r.choice(WORDS), "name": r.choice(["x", "Y", "y", "Z"])} for _ in range(r.randrange(1, 5))],
            "d": {r.choice(KEYS): value(r) for _ in range(r.randrange(5))}, "e": {"a": {"b": r.choice(WORDS)}, "x": 1}, "yes": True, "no": False, "nothing": None, **({"z": value(r), "v": "outer"} if r.random() < 0.5 else {})}


warnings.simplefilter("ignore")  # of the Python that templates become


class TooSlow(Exception):
    pass


def on_alarm(signum, frame):
    raise TooSlow()


def skips(want, got):
    """What is no fault: addresses in the text, limits of Python's, budgets of ours, slices of constants that jinja2 folds into nothing."""
    text = str(want.get("text", "")) + str(want.get("error", ""))
    if " at 0x" in text or any(x in text for x in ("RecursionError", "MemoryError", "TooSlow", "<function", "<built-in", "<bound method", "SyntaxError: too many", "NameError", "<class")):
        return True
    return any(x in got.get("error", "") for x in ("not supported", "more than", "bits", "is printed", "by a slice", "slice indices"))


def oracle(env, source, contexts):
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        try:
            template = env.from_string(source)
        except TooSlow:
            raise
        except Exception as e:  # a template error, or a SyntaxError of the Python that it becomes
            return {"error": f"{type(e).__name__}: {e}"}
        out = []
        for c in contexts:
            try:
                out.append({"text": template.render(**c)})
            except TooSlow:
                raise
            except Exception as e:
                out.append({"error": f"{type(e).__name__}: {e}"})
        return out
    except TooSlow:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main():
    args = sys.argv[1:]
    option = lambda name, default: int(args[args.index(name) + 1]) if name in args else default  # noqa: E731
    full = os.environ.get("RACKLM_FULL") == "1"
    seconds, count = option("--seconds", 60 if full else 5), option("--count", 0)
    seed = option("--seed", int.from_bytes(os.urandom(4), "little") if full else 1)  # the short form tells of changes, the long one finds what is new
    signal.signal(signal.SIGALRM, on_alarm)
    env = templates_oracle.environment()
    tool = subprocess.Popen([args[0], "--serve", "--now", str(templates_oracle.NOW)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "TZ": "UTC"})
    print(f"seed {seed}", flush=True)
    end, n, equal, raised, skipped, different = time.monotonic() + seconds, 0, 0, 0, 0, 0
    while n < count if count else time.monotonic() < end:
        r = random.Random(seed + n)
        source = Grammar(r).template()
        contexts = [context(r) for _ in range(3)]
        n += 1
        tool.stdin.write(json.dumps({"template": source, "contexts": contexts}, ensure_ascii=False).encode() + b"\n")
        tool.stdin.flush()
        line = tool.stdout.readline()
        if not line:
            print(f"FAIL seed {seed + n - 1}: the renderer ended with {tool.wait()}\n{source}")
            return 1
        got, want = json.loads(line), oracle(env, source, contexts)
        if want is None:
            skipped += 1
            continue
        if isinstance(got, dict) or isinstance(want, dict):
            if isinstance(got, dict) and isinstance(want, dict):
                raised += 1
                continue
            pairs = [(want if isinstance(want, dict) else {"text": "(accepted)"}, got if isinstance(got, dict) else {"text": "(accepted)"}, {})]
        else:
            pairs = list(zip(want, got, contexts))
        for w, g, c in pairs:
            if w == g or ("error" in w and "error" in g):
                equal += "text" in w
                raised += "error" in w
            elif skips(w, g):
                skipped += 1
            else:
                different += 1
                print(f"FAIL seed {seed + n - 1}\n  template: {source!r}\n  jinja2: {str(w)[:600]!r}\n  racklm: {str(g)[:600]!r}\n  context: {json.dumps(c, ensure_ascii=False)[:1500]}", flush=True)
                if "--keep-going" not in args:
                    return 1
                break
    print(f"{n} templates: {equal} texts equal, {raised} errors alike, {skipped} left out, {different} different")
    return 1 if different or equal == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
