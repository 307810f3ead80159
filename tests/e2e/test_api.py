"""The OpenAI routes as clients use them. Expected texts and ids come from deploy/demo/reference.json (transformers, float32)."""
import json
import math
import re
import shutil
import subprocess
import threading
import time

import pytest
from conftest import DEMO, FULL, REFERENCE, SANITIZED, Server

CASES = REFERENCE["files"]["grimm-6m-Q8_0.gguf"]["cases"]
TEXTS = [c for c in CASES if "prompt" in c and isinstance(c["prompt"], str)]
pytestmark = pytest.mark.sanitizer


def sure_prefix(case, margin=0.15):
    """How many greedy tokens of the reference are certain: int8 activations may turn choices closer than that."""
    for i, m in enumerate(case["margins"]):
        if m < margin:
            return i
    return len(case["margins"])


def test_models_and_version(demo):
    models = demo.get("/v1/models").json
    assert models["object"] == "list" and models["data"][0]["id"] == "grimm-6m-Q8_0"
    assert models["data"][0]["max_model_len"] == 1024
    assert demo.get("/v1/models/default").json["id"] == "grimm-6m-Q8_0"
    assert demo.get("/v1/models/other").status == 404
    assert demo.get("/version").json["version"]
    assert demo.get("/health").status == 200 and demo.get("/health").json["status"] == "ok"


@pytest.mark.parametrize("case", TEXTS, ids=lambda c: c["prompt"][:20])
def test_greedy_text_follows_the_reference(demo, case):
    n = sure_prefix(case)
    assert demo.post("/tokenize", {"prompt": case["prompt"]}).json["tokens"] == case["prompt_ids"]
    if n == 0:
        return
    out = demo.complete(case["prompt"], max_tokens=n, return_token_ids=True)
    assert out["choices"][0]["token_ids"] == case["greedy_ids"][:n]
    assert out["choices"][0]["prompt_token_ids"] == case["prompt_ids"]
    assert out["choices"][0]["finish_reason"] == "length"
    assert out["usage"]["prompt_tokens"] == len(case["prompt_ids"]) and out["usage"]["completion_tokens"] == n


def test_log_probabilities_are_those_of_the_reference(demo):
    for case in TEXTS:
        out = demo.complete(case["prompt"], max_tokens=1, logprobs=8)["choices"][0]["logprobs"]
        got = {k: v for k, v in out["top_logprobs"][0].items()}
        ids = [i for i, _ in case["top"]]
        pieces = [demo.post("/detokenize", {"tokens": [i]}).json["prompt"] for i in ids]
        near = [abs(got[p] - lp) for p, (_, lp) in zip(pieces, case["top"]) if p in got]
        assert len(near) >= 6 and max(near) < 0.15, (case["prompt"], got, case["top"])
        assert sum(math.exp(v) for v in got.values()) < 1.0001


def test_streamed_text_equals_the_whole(demo):
    body = {"prompt": "The king said", "max_tokens": 40, "temperature": 0.8, "seed": 11}
    whole = demo.post("/v1/completions", body).json["choices"][0]
    events = list(demo.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}}))
    assert events[-1] == "[DONE]"
    chunks = [e for e in events[:-1] if e["choices"]]
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks[:-1])
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 40
    assert len({e["id"] for e in events[:-1]}) == 1 and len({e["created"] for e in events[:-1]}) == 1


def test_chat_stream_has_the_shape_clients_expect(demo):
    body = {"model": "default", "messages": [{"role": "user", "content": "Tell me a tale about a fox."}], "max_tokens": 30, "seed": 3}
    events = list(demo.stream("/v1/chat/completions", body))
    assert events[-1] == "[DONE]"
    first, last = events[0], events[-2]
    assert first["object"] == "chat.completion.chunk" and first["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["delta"] == {} and last["choices"][0]["finish_reason"] in ("stop", "length")
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1])
    whole = demo.post("/v1/chat/completions", body).json
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert whole["id"].startswith("chatcmpl-") and whole["object"] == "chat.completion"


def test_chat_prompt_is_the_reference_template(demo):
    chats = [c for c in CASES if not isinstance(c.get("prompt"), str)]
    assert chats
    for c in chats:
        messages = c.get("messages") or c["prompt"]
        assert demo.post("/tokenize", {"messages": messages}).json["tokens"] == c["prompt_ids"]


def test_n_choices_differ_and_a_seed_repeats_them(demo):
    body = {"prompt": "Once", "max_tokens": 16, "n": 4, "seed": 5, "temperature": 1}
    a, b = demo.post("/v1/completions", body).json, demo.post("/v1/completions", body).json
    texts = [c["text"] for c in a["choices"]]
    assert [c["index"] for c in a["choices"]] == [0, 1, 2, 3] and len(set(texts)) == 4
    assert texts == [c["text"] for c in b["choices"]]
    assert demo.post("/v1/completions", {**body, "n": 1}).json["choices"][0]["text"] == texts[0]


def test_a_seed_gives_the_same_text_whatever_runs_beside_it(demo):
    body = {"prompt": "In the forest", "max_tokens": 60, "seed": 42, "temperature": 0.9, "top_p": 0.9, "top_k": 50, "min_p": 0.02}
    alone = demo.post("/v1/completions", body).json["choices"][0]["text"]
    others = [threading.Thread(target=demo.post, args=("/v1/completions", {"prompt": f"{i} ", "max_tokens": 80, "temperature": 1})) for i in range(5 if SANITIZED else 20)]
    for t in others:
        t.start()
    beside = demo.post("/v1/completions", body).json["choices"][0]["text"]
    for t in others:
        t.join()
    assert beside == alone


def test_several_prompts_as_texts_and_ids(demo):
    ids = demo.post("/tokenize", {"prompt": "Once upon a time"}).json["tokens"]
    other = demo.post("/tokenize", {"prompt": "The fox"}).json["tokens"]
    a = demo.complete(["Once upon a time", "The fox"], max_tokens=8)["choices"]
    b = demo.complete([ids, other], max_tokens=8)["choices"]
    c = demo.complete(ids, max_tokens=8)["choices"]
    assert [x["text"] for x in a] == [x["text"] for x in b] and c[0]["text"] == a[0]["text"]
    assert [x["index"] for x in a] == [0, 1]


def test_stop_strings_end_the_text_before_them(demo):
    free = demo.complete("Once upon a time", max_tokens=60)["choices"][0]["text"]
    stop = free[20:26]
    cut = demo.complete("Once upon a time", max_tokens=60, stop=[stop])["choices"][0]
    assert cut["text"] == free[:free.index(stop)] and cut["finish_reason"] == "stop" and cut["stop_reason"] == stop
    events = list(demo.stream("/v1/completions", {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 60, "stop": stop}))
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == cut["text"]


def test_stop_ids_min_tokens_and_ignore_eos(demo):
    ids = demo.complete(max_tokens=12, return_token_ids=True)["choices"][0]["token_ids"]
    stop = next(i for i in ids[3:] if i not in ids[:3])
    at = ids.index(stop)
    out = demo.complete(max_tokens=12, stop_token_ids=[stop], return_token_ids=True)["choices"][0]
    assert out["token_ids"] == ids[:at] and out["finish_reason"] == "stop" and out["stop_reason"] == stop
    later = demo.complete(max_tokens=12, stop_token_ids=[stop], min_tokens=12, return_token_ids=True)["choices"][0]["token_ids"]
    assert len(later) == 12 and stop not in later
    n = 200 if SANITIZED else 900
    assert demo.complete(max_tokens=n, ignore_eos=True)["usage"]["completion_tokens"] == n


def test_logit_bias_forbids_and_forces(demo):
    ids = demo.complete(max_tokens=6, return_token_ids=True)["choices"][0]["token_ids"]
    banned = demo.complete(max_tokens=6, logit_bias={str(ids[0]): -100}, return_token_ids=True)["choices"][0]["token_ids"]
    assert ids[0] not in banned
    forced = demo.complete(max_tokens=6, logit_bias={"300": 100}, return_token_ids=True)["choices"][0]["token_ids"]
    assert forced == [300] * 6


def test_penalties_break_the_loop_of_greedy_text(demo):
    loop = demo.complete(max_tokens=80, return_token_ids=True)["choices"][0]["token_ids"]
    for p in ({"repetition_penalty": 1.3}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        free = demo.complete(max_tokens=80, return_token_ids=True, **p)["choices"][0]["token_ids"]
        assert len(set(free)) > len(set(loop)), p


def test_prompt_log_probabilities(demo):
    ids = demo.post("/tokenize", {"prompt": "Once upon a time"}).json["tokens"]
    echo = demo.complete(ids, max_tokens=0, echo=True, logprobs=0)["choices"][0]
    assert echo["text"] == "Once upon a time"
    lps = echo["logprobs"]["token_logprobs"]
    assert lps[0] is None and len(lps) == len(ids) and all(x < 0 for x in lps[1:])
    vllm = demo.complete(ids, max_tokens=1, prompt_logprobs=2)["choices"][0]["prompt_logprobs"]
    assert vllm[0] is None and [vllm[i][str(t)]["logprob"] for i, t in enumerate(ids) if i] == lps[1:]
    # Each is what the model says when the prefix is the whole prompt.
    for i in (2, 4):
        out = demo.complete(ids[:i], max_tokens=1, logit_bias={str(ids[i]): 100}, logprobs=0)["choices"][0]["logprobs"]["token_logprobs"]
        assert out[0] == lps[i]


def test_metrics_are_well_formed_and_count(demo):
    before = demo.get("/metrics").body
    demo.complete(max_tokens=5, ignore_eos=True)
    text = demo.get("/metrics").body

    def value(t, name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in t.splitlines() if line.startswith(name + "{"))
    assert value(text, "racklm:generation_tokens_total") == value(before, "racklm:generation_tokens_total") + 5
    assert value(text, "racklm:time_to_first_token_seconds_count") == value(before, "racklm:time_to_first_token_seconds_count") + 1
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total", "e2e_request_latency_seconds_bucket"):
        assert f"racklm:{name}{{" in text, name
    promtool = shutil.which("promtool")
    if promtool:
        check = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        assert check.returncode in (0, 3), check.stderr  # 3: style advice on names, which are vLLM's


def test_a_client_that_leaves_gives_up_its_slot(demo):
    events = demo.stream("/v1/completions", {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "temperature": 0})
    next(events)
    events.close()
    deadline = time.time() + 30
    while True:  # the blocks come back after the steps in flight
        status = json.loads(demo.cli("status", "-o", "json").stdout)["replicas"][0]
        if (status["running"], status["kv_blocks_used"]) == (0, 0):
            break
        assert time.time() < deadline, status
        time.sleep(0.02)


def test_silent_prefill_keeps_the_stream_alive_and_the_queue_is_bounded():
    with Server(DEMO, "--max-seqs", "1", "--queue-max", "1") as s:
        running = s.stream("/v1/completions", {"prompt": "a", "max_tokens": 1000, "ignore_eos": True})
        next(running)
        waiting = threading.Thread(target=s.complete, kwargs={"max_tokens": 1})
        waiting.start()
        while s.get("/health").json["replicas"][0]["waiting"] == 0:
            time.sleep(0.02)
        full = s.post("/v1/completions", {"prompt": "b", "max_tokens": 1})
        assert full.status == 429 and full.json["error"]["type"] == "rate_limit_error" and int(full.headers["Retry-After"]) >= 1
        running.close()
        waiting.join()


def test_choices_of_a_refused_request_do_not_run_on():
    with Server(DEMO, "--max-seqs", "4", "--queue-max", "40") as s:
        for _ in range(20 if SANITIZED else 200):  # some of its choices are queued when one finds no room: all are taken back
            assert s.post("/v1/completions", {"prompt": "a", "n": 100, "max_tokens": 1000, "ignore_eos": True}).status == 429
        deadline = time.time() + 60
        while any(s.get("/health").json["replicas"][0][k] for k in ("running", "waiting")):
            assert time.time() < deadline
            time.sleep(0.02)
        ended = re.search(r'racklm:request_success_total\{[^}]*"length"[^}]*\} (\d+)', s.get("/metrics").body)
        assert ended is None or int(ended.group(1)) == 0


def test_no_more_log_probabilities_than_asked(demo):
    out = demo.complete(max_tokens=1, logprobs=1, prompt_logprobs=3)["choices"][0]
    assert [len(x) for x in out["logprobs"]["top_logprobs"]] == [1] and all(len(x) in (3, 4) for x in out["prompt_logprobs"][1:])
    out = demo.complete(max_tokens=1, logprobs=4, prompt_logprobs=0, echo=True)["choices"][0]
    assert all(len(x) == 4 for x in out["logprobs"]["top_logprobs"][1:]) and all(len(x) == 1 for x in out["prompt_logprobs"][1:])


def test_text_offsets_are_characters_of_the_text(demo):
    free = demo.complete(max_tokens=30)["choices"][0]["text"]
    # A text that may become a stop string is held back: its tokens stand where they will be.
    for params in ({}, {"stop": [free[3:12] + "zzz"]}, {"echo": True, "prompt": "Él dijo ñandú ü ö: "}):
        out = demo.complete(**{"prompt": "Once upon a time", "max_tokens": 30, "logprobs": 0, **params})["choices"][0]
        lp = out["logprobs"]
        whole = [(t, o) for t, o in zip(lp["tokens"], lp["text_offset"]) if "\ufffd" not in t and not t.startswith("<|")]
        assert len(whole) > 20 and all(out["text"].startswith(t, o) for t, o in whole), (out["text"], whole)


def test_a_long_stop_string_is_named_whole(demo):
    free = demo.complete(max_tokens=100)["choices"][0]["text"]
    out = demo.complete(max_tokens=100, stop=[free[20:70]])["choices"][0]
    assert out["text"] == free[:20] and out["stop_reason"] == free[20:70]


def test_the_route_of_one_model_takes_get_and_head_only(demo):
    assert demo.request("HEAD", "/v1/models/default").status == 200
    assert demo.request("HEAD", "/v1/models/other").status == 404
    assert demo.post("/v1/models/default", {}).status == 405


@pytest.mark.skipif(SANITIZED, reason="128,000 tokens")
@pytest.mark.skipif(not FULL, reason="128 MiB of log-probabilities take a minute: RACKLM_FULL=1")
def test_an_answer_that_is_not_streamed_is_bounded(demo):
    r = demo.post("/v1/completions", {"prompt": [5] * 1000, "n": 128, "max_tokens": 1, "prompt_logprobs": 20}, timeout=500)
    assert r.status == 413 and "128 MiB" in r.json["error"]["message"], r.body[:300]
    assert demo.complete(max_tokens=1)["usage"]["completion_tokens"] == 1


def test_official_client(demo):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=demo.url + "/v1", api_key="none", max_retries=0)
    r = client.chat.completions.create(model="default", messages=[{"role": "user", "content": "And then?"}], max_tokens=8)
    assert r.choices[0].message.role == "assistant" and r.usage.completion_tokens <= 8
    parts = [c.choices[0].delta.content or "" for c in client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "And then?"}], max_tokens=8, stream=True) if c.choices]
    assert "".join(parts)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="a")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="default", prompt="a", temperature=9)
