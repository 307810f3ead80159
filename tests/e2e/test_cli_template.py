"""racklm template: renders with exactly the variables it is given; what it refuses, with the reason. Texts are worked out by hand."""
import json
import os
import subprocess

import pytest
from conftest import BUILD, DEMO, TOP, Server

CHATML = TOP / "tests/data/templates/chatml.jinja"


def run(*args, text=b"", env=None):
    return subprocess.run([BUILD / "bin/racklm", "template", *map(str, args)], input=text, capture_output=True, timeout=60, env={**os.environ, **(env or {})})


def render(tmp_path, source, context, *flags, name="t.jinja", env=None):
    (tmp_path / name).write_bytes(source if isinstance(source, bytes) else source.encode())
    (tmp_path / "ctx.json").write_text(json.dumps(context))
    return run(tmp_path / name, "--context", tmp_path / "ctx.json", *flags, env=env)


def test_a_template_file(tmp_path):
    r = render(tmp_path, CHATML.read_text(), {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Grüße 🙂"}], "add_generation_prompt": True})
    assert (r.returncode, r.stderr) == (0, b"")
    assert r.stdout.decode() == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nGrüße 🙂<|im_end|>\n<|im_start|>assistant\n"


def test_only_the_variables_of_the_context(tmp_path):
    r = render(tmp_path, "{{ bos_token is defined }} {{ messages is defined }} {{ x }}", {"x": [1, None, 2.0]})
    assert r.stdout == b"False False [1, None, 2.0]"


def test_the_time(tmp_path):
    r = render(tmp_path, "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}", {}, "--now", "1767225600", env={"TZ": "UTC"})
    assert r.stdout == b"2026-01-01 00:00:00"


def test_standard_input_and_a_model_file():
    r = run(DEMO, "--context", "-", text=json.dumps({"messages": [{"role": "user", "content": "Hi"}], "bos_token": "<B>"}).encode())
    assert r.returncode == 0 and b"Hi" in r.stdout, r


@pytest.mark.parametrize("value", ["a {{ x }}", [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "a {{ x }}"}]])
def test_a_tokenizer_config(tmp_path, value):
    r = render(tmp_path, json.dumps({"chat_template": value}), {"x": 1}, name="tokenizer_config.json")
    assert r.stdout == b"a 1", r


def test_the_template_for_tools(tmp_path):
    both = json.dumps({"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools|length }} tools"}]})
    assert render(tmp_path, both, {"tools": [{}, {}]}, name="tokenizer_config.json").stdout == b"2 tools"
    assert render(tmp_path, both, {"tools": None}, name="tokenizer_config.json").stdout == b"plain"
    with Server(DEMO, "--chat-template", str(tmp_path / "tokenizer_config.json")) as s:
        ask = lambda **o: s.post("/apply-template", {"messages": [{"role": "user", "content": "x"}], **o}).json["prompt"]  # noqa: E731
        assert ask() == "plain"
        assert ask(tools=[{"type": "function", "function": {"name": "f"}}]) == "1 tools"


@pytest.mark.parametrize("source, why", [("{% if %}", b"line 1"), ("{{ raise_exception('not so') }}", b"not so"), ("{{ a.b.c }}", b"undefined"), ("{{ x | frob }}", b"frob"),
                                         ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", b"more than")])
def test_template_errors(tmp_path, source, why):
    r = render(tmp_path, "text " + source, {"a": {}})
    assert r.returncode == 1 and r.stdout == b"" and why in r.stderr and r.stderr.count(b"\n") == 1, r


def test_other_errors(tmp_path):
    good = tmp_path / "good.jinja"
    good.write_text("x")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "config.json").write_text("{}")
    for args, code in (((good,), 2), ((), 2), ((good, "--context", tmp_path / "list.json", "--now", "soon"), 2), ((good, "--context", tmp_path / "list.json"), 1),
                       ((good, "--context", tmp_path / "bad.json"), 1), ((good, "--context", tmp_path / "none.json"), 1), ((tmp_path / "none.jinja", "--context", tmp_path / "list.json"), 1),
                       ((tmp_path / "config.json", "--context", tmp_path / "list.json"), 1)):
        r = run(*args)
        assert r.returncode == code and r.stdout == b"" and r.stderr.count(b"\n") == 1, (args, r)
