"""Compares the chat template interpreter with jinja2 (PyPI), set up as Hugging Face transformers sets it up.

usage: templates_oracle.py RENDER TEMPLATE_DIR... [--require NAME,NAME...] [--all] [--verbose]

RENDER is tests/tools/render.c. Every template file in the folders is rendered over a matrix of conversations; texts must be equal byte for byte, and
where jinja2 raises we must raise. --require names (parts of file names) must pass fully; --all requires every file. Exit 77 when jinja2 is missing.
"""
import datetime
import itertools
import json
import os
import subprocess
import sys

NOW = 1767225600 + 12345  # fixed time for strftime_now; UTC

try:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError as e:
    print(f"skipped: the PyPI package jinja2 is not installed ({e})")
    sys.exit(77)


class Generation(jinja2.ext.Extension):
    """{% generation %} marks what an assistant wrote; it renders as its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment(**broken):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(fmt):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(fmt)

    env = ImmutableSandboxedEnvironment(**{"trim_blocks": True, "lstrip_blocks": True, **broken}, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


def conversations():
    user = {"role": "user", "content": "Hello, who are you?"}
    uni = {"role": "user", "content": "Grüße 你好 🙂 <b>\"q\" 'x' & \\ \t tab\nline two  "}
    answer = {"role": "assistant", "content": "I am  a model.\n"}
    system = {"role": "system", "content": "You are a helpful assistant. "}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdef123", "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 3, "opts": {"a": [1, 2.5, None, True]}}}}]}
    result = {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather", "content": "{\"t\": 21.5}"}
    think = {"role": "assistant", "content": "42", "reasoning_content": "Let me think.\nYes."}
    think_in = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSo it is."}
    yield "user", [user]
    yield "turns", [user, answer, {"role": "user", "content": "And then?"}]
    yield "long", [user, answer, uni, answer, user, answer, user]
    yield "unicode", [uni]
    yield "empty", [{"role": "user", "content": ""}]
    yield "space", [{"role": "user", "content": "  \n "}, answer, user]
    yield "system", [system, user]
    yield "system turns", [system, user, answer, uni]
    yield "system empty", [{"role": "system", "content": ""}, user]
    yield "ends with assistant", [user, answer]
    yield "two users", [user, user]
    yield "late system", [user, system, user]
    yield "reasoning", [user, think, user, think_in, uni]
    yield "reasoning last", [system, user, think_in]
    yield "call", [system, user, call, result, user]
    yield "call last", [user, call, result]
    yield "calls", [user, call, result, answer, user, call, result, result]
    yield "parts", [{"role": "user", "content": [{"type": "text", "text": "What is this? "}, {"type": "text", "text": "ü"}]}]
    yield "image", [{"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "What is this?"}]}]
    yield "null content", [user, {"role": "assistant", "content": None}, user]
    yield "no messages", []


TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather \"now\" <é>", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "a city"}, "days": {"type": "integer", "default": 1},
                                     "unit": {"type": "string", "enum": ["C", "F"]}}, "required": ["city"]}}},
         {"type": "function", "function": {"name": "noop", "description": "", "parameters": {"type": "object", "properties": {}}}}]


def contexts():
    for (name, msgs), gen, tools, extra in itertools.product(conversations(), (False, True), (None, TOOLS), ({}, {"enable_thinking": False})):
        ctx = {"messages": msgs, "add_generation_prompt": gen, "bos_token": "<s>", "eos_token": "</s>", **extra}
        if tools is not None:
            ctx["tools"] = tools
        yield f"{name}{' +gen' if gen else ''}{' +tools' if tools else ''}{' nothink' if extra else ''}", ctx


def run(render, path, source, ctxs, verbose, **broken):
    env = environment(**broken)
    lines = "".join(json.dumps(c, ensure_ascii=False) + "\n" for _, c in ctxs)
    p = subprocess.run([render, path, "--now", str(NOW)], input=lines.encode(), capture_output=True, env={**os.environ, "TZ": "UTC"})
    try:
        template = env.from_string(source)
    except jinja2.TemplateError as e:
        return (1, 0, []) if p.returncode == 1 else (0, 1, [("compile", f"jinja2 refuses it: {e}", "accepted")])
    if p.returncode != 0:
        return 0, len(ctxs), [("compile", "accepted", p.stderr.decode().strip())]
    got = [json.loads(x) for x in p.stdout.decode().split("\n") if x]
    good, bad, first = 0, 0, []
    for (name, ctx), g in zip(ctxs, got):
        try:
            want = {"text": template.render(**ctx)}
        except Exception as e:  # whatever a template raises is a template error for us
            want = {"error": f"{type(e).__name__}: {e}"}
        if ("text" in want) == ("text" in g) and want.get("text") == g.get("text"):
            good += 1
        else:
            bad += 1
            if len(first) < (5 if verbose else 1):
                first.append((name, want, g))
    if len(got) != len(ctxs):
        bad += 1
        first.append(("output", f"{len(ctxs)} lines", f"{len(got)} lines {p.stderr.decode()[:300]}"))
    return good, bad, first


def main():
    args = [a for a in sys.argv[1:] if not a.startswith("--")]
    required = [r for a in sys.argv if a.startswith("--require=") for r in a.split("=", 1)[1].split(",")]
    everything, verbose = "--all" in sys.argv, "--verbose" in sys.argv
    ctxs, failed, passed, files = list(contexts()), 0, 0, 0
    for folder in args[1:]:
        if not os.path.isdir(folder):
            print(f"skipped: {folder} is not there")
            continue
        for name in sorted(os.listdir(folder)):
            if not name.endswith(".jinja"):
                continue
            files += 1
            path = os.path.join(folder, name)
            source = open(path, encoding="utf-8", newline="").read()
            good, bad, first = run(args[0], path, source, ctxs, verbose)
            must = everything or any(r.lower() in name.lower() for r in required)
            passed += bad == 0
            for broken in ({"trim_blocks": False}, {"lstrip_blocks": False}):
                if name == "blocks.jinja" and run(args[0], path, source, ctxs, False, **broken)[1] == 0:
                    print(f"FAIL {name}: {broken} is not told apart")  # the comparison can fail
                    failed += 1
            failed += bad > 0 and must
            if bad or verbose:
                print(f"{'FAIL' if must and bad else 'diff' if bad else 'ok'} {name}: {good} equal, {bad} different")
                for case, want, g in first:
                    print(f"   [{case}]\n     jinja2: {str(want)[:700]}\n     racklm: {str(g)[:700]}")
    if files == 0:
        print("skipped: no templates")
        return 77
    print(f"{passed} of {files} templates equal jinja2 in all {len(ctxs)} conversations; {failed} required ones differ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
