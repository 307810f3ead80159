"""Thinking parts, filling in, and other things that need a model of another kind: copies of the demo model with other templates and token names.

What a split must give is computed here from the text of the same seed with the splitting off."""
import pytest
from conftest import DEMO, SANITIZED, Server
from gguf_edit import edit, string, u32

pytestmark = pytest.mark.sanitizer
OPEN, CLOSE, PRE, SUF, MID = 2037, 2038, 2039, 2040, 2041  # reserved control tokens of the demo model
TEMPLATE = """{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
{%- if m.reasoning_content is defined %}{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}{{- m.content + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- elif force is defined %}{{- '<think>\\n' }}{% endif %}{% endif %}
{%- if reasoning_effort is defined %}{{- '[effort ' + reasoning_effort + ']' }}{% endif %}{%- if tools %}{{- '[tools ' + tools[0].function.name + ']' }}{% endif %}"""
ASK = [{"role": "user", "content": "Tell me a tale about a fox."}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("thinking") / "thinking.gguf"
    return edit(DEMO, path, {"tokenizer.chat_template": string(TEMPLATE), "tokenizer.ggml.fim_pre_token_id": u32(PRE), "tokenizer.ggml.fim_suf_token_id": u32(SUF),
                             "tokenizer.ggml.fim_mid_token_id": u32(MID)}, {OPEN: "<think>", CLOSE: "</think>", PRE: "<PRE>", SUF: "<SUF>", MID: "<MID>"})


@pytest.fixture(scope="module")
def server(model):
    with Server(model) as s:
        yield s


def chat(s, **params):
    r = s.post("/v1/chat/completions", {"messages": ASK, "max_tokens": 40, "temperature": 1, **params})
    assert r.status == 200, r.body
    return r.json


def expected(raw, mode):
    """The thinking part and the content of a raw text; None: there is no thinking part."""
    text = raw.lstrip() if mode == "free" else raw
    if mode == "shut" or (mode == "free" and not text.startswith("<think>")):
        return None, raw
    thought, mark, content = text.removeprefix("<think>").partition("</think>")
    return thought.strip(), content.lstrip() if mark else ""


@pytest.mark.parametrize("mode", ["opened", "free", "shut"])
def test_thinking_is_told_from_the_rest(server, mode):
    kwargs = {"opened": {"force": 1}, "free": {}, "shut": {"enable_thinking": False}}[mode]
    # So that each mark comes in some of the answers, in others not.
    bias = {str(OPEN): 20 if mode == "free" else -100, str(CLOSE): {"opened": 17, "free": 20, "shut": 18}[mode]}
    params = {"seed": 1, "n": 4 if SANITIZED else 16, "max_tokens": 24, "chat_template_kwargs": kwargs, "logit_bias": bias}
    raw, whole = chat(server, **params, reasoning_format="none"), chat(server, **params)
    parts = {c["index"]: ["", ""] for c in whole["choices"]}
    for e in server.stream("/v1/chat/completions", {"messages": ASK, "temperature": 1, **params}):
        for c in e["choices"] if e != "[DONE]" else []:
            parts[c["index"]][0] += c["delta"].get("reasoning_content", "")
            parts[c["index"]][1] += c["delta"].get("content", "")
    seen = set()
    for with_marks, c in zip(raw["choices"], whole["choices"]):
        text, message = with_marks["message"]["content"], c["message"]
        assert "reasoning_content" not in with_marks["message"]
        thought, content = expected(text, mode)
        assert (message.get("reasoning_content", "").rstrip(), message["content"]) == (thought or "", content), text
        assert parts[c["index"]] == [message.get("reasoning_content", ""), message["content"]]
        seen.add((bool(thought), bool(content)))
    assert (whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0) == any(thought for thought, _ in seen)
    if not SANITIZED:
        assert seen >= {"opened": {(True, True), (True, False)}, "free": {(True, True), (False, True)}, "shut": {(False, True)}}[mode], seen


def test_the_thinking_part_can_be_left_out_or_named_otherwise(server, model):
    params = {"seed": 1, "chat_template_kwargs": {"force": 1}, "logit_bias": {str(CLOSE): 20}}
    both = chat(server, **params)["choices"][0]["message"]
    without = chat(server, **params, include_reasoning=False)["choices"][0]["message"]
    assert both["reasoning_content"] and "reasoning_content" not in without and without["content"] == both["content"]
    with Server(model, "--reasoning-field", "reasoning") as s:
        assert chat(s, **params)["choices"][0]["message"]["reasoning"] == both["reasoning_content"]
    with Server(model, "--reasoning-format", "none") as s:
        raw = chat(s, **params)["choices"][0]["message"]
        assert "</think>" in raw["content"] and both["reasoning_content"] in raw["content"]
        assert chat(s, **params, reasoning_format="auto")["choices"][0]["message"]["reasoning_content"] == both["reasoning_content"]


def template(s, **params):
    r = s.post("/apply-template", {"messages": ASK, **params})
    assert r.status == 200, r.body
    return r.json["prompt"]


def test_what_a_template_sees(server):
    head = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTell me a tale about a fox.<|eot_id|>"
    ask = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    tool = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    assert template(server) == head + ask
    assert template(server, add_generation_prompt=False) == head
    assert template(server, reasoning_effort="low") == head + ask + "[effort low]"
    assert template(server, reasoning_effort="none") == head + ask + "<think>\n\n</think>\n\n[effort none]"
    assert template(server, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}) == head + ask + "[effort none]"
    assert template(server, tools=tool) == head + ask + "[tools look]"
    assert template(server, tools=tool, tool_choice="none") == head + ask
    for field in ("reasoning", "reasoning_content"):
        said = [*ASK, {"role": "assistant", "content": "No.", field: "Hm."}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
        assert template(server, messages=said) == (head + ask + "<think>\nHm.\n</think>\n\nNo.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na\nb<|eot_id|>" + ask)
    went = [*ASK, {"role": "assistant", "content": "Once upon"}]
    assert template(server, messages=went, continue_final_message=True) == head + ask + "Once upon"
    r = server.post("/v1/chat/completions", {"messages": went, "continue_final_message": True, "add_generation_prompt": True})
    assert r.status == 400 and r.json["error"]["param"] == "continue_final_message"
    ids = server.post("/tokenize", {"messages": went, "continue_final_message": True}).json["tokens"]
    out = chat(server, messages=went, continue_final_message=True, temperature=0, return_token_ids=True, max_tokens=4)["choices"][0]
    assert out["prompt_token_ids"] == ids


def test_filling_in(server):
    def ids(text):
        return server.post("/tokenize", {"prompt": text, "add_special_tokens": False, "parse_special": False}).json["tokens"]
    out = server.complete("def f():", suffix="return 1", max_tokens=2, return_token_ids=True)["choices"][0]
    assert out["prompt_token_ids"] == [2032, PRE, *ids("def f():"), SUF, *ids("return 1"), MID]
    r = server.post("/v1/completions", {"prompt": [1, 2], "suffix": "x"})
    assert r.status == 400 and r.json["error"]["param"] == "prompt"
    assert server.complete("a", suffix="", max_tokens=1, return_token_ids=True)["choices"][0]["prompt_token_ids"] == [2032, *ids("a")]


def test_special_tokens_are_shown_on_request(server):
    body = {"prompt": "a", "max_tokens": 3, "logit_bias": {str(PRE): 100}}
    assert server.post("/v1/completions", body).json["choices"][0]["text"] == ""
    assert server.post("/v1/completions", {**body, "skip_special_tokens": False}).json["choices"][0]["text"] == "<PRE>" * 3
