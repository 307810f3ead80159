"""The official `openai` client of PyPI against a live `racklm serve`: it must not be able to tell the difference. Expected texts are those of plain requests,
shapes and exception classes those that the client's own types demand. LangChain, litellm and the Node client follow where they are at hand."""
import asyncio
import json
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest
from conftest import DEMO, FULL, REFERENCE, SANITIZED, Server

openai = pytest.importorskip("openai")
from openai import AsyncOpenAI, OpenAI  # noqa: E402

pytestmark = pytest.mark.skipif(SANITIZED, reason="the requests are those of test_api.py and test_bad_input.py")
NAME = "grimm-6m-Q8_0"
ASK = [{"role": "system", "content": "You tell tales."}, {"role": "user", "content": "Tell me of a fox."}]
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}}
LONG = {"max_tokens": 1000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def server():
    with Server(DEMO, "--max-seqs", "16") as s:
        yield s


@pytest.fixture(scope="module")
def client(server):
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as c:
        yield c


def make_async(server):
    return AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


def chat(client, **params):
    return client.chat.completions.create(**{"model": NAME, "messages": ASK, "max_tokens": 8, "temperature": 0, **params})


def complete(client, **params):
    return client.completions.create(**{"model": NAME, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, **params})


def idle(server):
    deadline = time.time() + 10
    while any(server.get("/health").json["replicas"][0][k] for k in ("running", "waiting")):
        assert time.time() < deadline
        time.sleep(0.02)


# ---- models ----

def test_models_list(client):
    models = list(client.models.list())
    assert [m.id for m in models] == [NAME] and models[0].object == "model" and models[0].owned_by == "racklm" and models[0].created > 1_700_000_000
    assert models[0].max_model_len == 1024


def test_models_retrieve(client):
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError) as e:
        client.models.retrieve("nobody")
    assert e.value.status_code == 404 and e.value.param == "model" and e.value.type == "not_found_error"


# ---- chat ----

def test_chat_shape(client):
    r = chat(client)
    assert r.object == "chat.completion" and r.id.startswith("chatcmpl-") and r.model == NAME and r.system_fingerprint.startswith("racklm-")
    m = r.choices[0].message
    assert m.role == "assistant" and m.content and m.refusal is None and m.tool_calls is None and m.function_call is None
    assert r.choices[0].index == 0 and r.choices[0].finish_reason == "length" and r.choices[0].logprobs is None
    u = r.usage
    assert u.total_tokens == u.prompt_tokens + u.completion_tokens and u.completion_tokens == 8
    assert u.prompt_tokens_details.cached_tokens == 0 and u.completion_tokens_details.reasoning_tokens == 0


def test_chat_stream(client):
    whole = chat(client, max_tokens=20).choices[0].message.content
    chunks = list(chat(client, max_tokens=20, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].object == "chat.completion.chunk"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1 and all(c.usage is None for c in chunks)


def test_chat_stream_with_usage(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8 and all(c.usage is None for c in chunks[:-1])


def test_chat_stream_with_usage_in_every_chunk(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}))
    counts = [c.usage.completion_tokens for c in chunks if c.usage]
    assert len(counts) > 4 and counts == sorted(counts) and counts[-1] == 8


def test_chat_stream_helper(client):
    free = chat(client, max_tokens=40).choices[0].message.content
    with client.chat.completions.stream(model=NAME, messages=ASK, max_tokens=40, temperature=0, stop=free[20:24]) as s:
        deltas = [e.delta for e in s if e.type == "content.delta"]
        final = s.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == free[:free.index(free[20:24])]
    with pytest.raises(openai.LengthFinishReasonError), client.chat.completions.stream(model=NAME, messages=ASK, max_tokens=4, temperature=0) as s:
        s.get_final_completion()


def test_chat_n(client):
    r = chat(client, n=3, temperature=1, seed=5)
    assert [c.index for c in r.choices] == [0, 1, 2] and len({c.message.content for c in r.choices}) == 3 and r.usage.completion_tokens == 24


def test_chat_n_streamed(client):
    whole = chat(client, n=3, temperature=1, seed=5)
    texts, finished = {}, {}
    for c in chat(client, n=3, temperature=1, seed=5, stream=True):
        for choice in c.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            finished[choice.index] = choice.finish_reason
    assert texts == {c.index: c.message.content for c in whole.choices} and set(finished.values()) == {"length"}


def test_chat_logprobs(client):
    r = chat(client, logprobs=True, top_logprobs=4)
    items = r.choices[0].logprobs.content
    assert len(items) == 8 and b"".join(bytes(t.bytes) for t in items).decode() == r.choices[0].message.content
    for t in items:
        assert len(t.top_logprobs) == 4 and t.top_logprobs[0].token == t.token and t.logprob == t.top_logprobs[0].logprob <= 0
        assert sorted((x.logprob for x in t.top_logprobs), reverse=True) == [x.logprob for x in t.top_logprobs]


def test_chat_logprobs_streamed(client):
    whole = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    got = [t for c in chat(client, logprobs=True, top_logprobs=2, stream=True) if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert got == whole


def test_chat_logprobs_without_alternatives(client):
    assert all(t.top_logprobs == [] for t in chat(client, logprobs=True).choices[0].logprobs.content)


def test_chat_seed(client):
    a, b, c = (chat(client, temperature=1, seed=s, max_tokens=24).choices[0].message.content for s in (7, 7, 8))
    assert a == b != c


@pytest.mark.parametrize("how", ["one", "list", "stream"])
def test_chat_stop(client, how):
    free = chat(client, max_tokens=40).choices[0].message.content
    stop = free[15:20]
    r = chat(client, max_tokens=40, stop=stop if how == "one" else ["\x01never", stop], stream=how == "stream")
    if how == "stream":
        chunks = list(r)
        text, finish = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, finish = r.choices[0].message.content, r.choices[0].finish_reason
    assert text == free[:free.index(stop)] and finish == "stop"


def test_chat_stop_is_each_choices_own(client):
    free = chat(client, n=4, temperature=1, seed=3, max_tokens=30)
    stop = free.choices[2].message.content[8:12]
    cut = chat(client, n=4, temperature=1, seed=3, max_tokens=30, stop=stop)
    for f, c in zip(free.choices, cut.choices):
        assert c.message.content == f.message.content.partition(stop)[0]
        assert c.finish_reason == ("stop" if stop in f.message.content else f.finish_reason)


def test_chat_stop_in_the_output(client):
    free = chat(client, max_tokens=40).choices[0].message.content
    stop = free[15:20]
    assert chat(client, max_tokens=40, stop=stop, extra_body={"include_stop_str_in_output": True}).choices[0].message.content == free[:free.index(stop) + len(stop)]


def test_chat_stop_token_ids(client):
    ids = chat(client, extra_body={"return_token_ids": True}).choices[0].token_ids
    at = next(i for i in range(2, 8) if ids[i] not in ids[:i])
    r = chat(client, extra_body={"stop_token_ids": [ids[at]], "return_token_ids": True}).choices[0]
    assert r.token_ids == ids[:at] and r.finish_reason == "stop" and r.stop_reason == ids[at]


def test_chat_max_completion_tokens(client):
    assert chat(client, max_tokens=openai.omit if hasattr(openai, "omit") else openai.NOT_GIVEN, max_completion_tokens=5).usage.completion_tokens == 5


def test_chat_logit_bias(client):
    assert chat(client, logit_bias={"300": 100}, extra_body={"return_token_ids": True}).choices[0].token_ids == [300] * 8


def test_chat_penalties(client):
    plain, other = (chat(client, max_tokens=60, frequency_penalty=f, presence_penalty=f).choices[0].message.content for f in (0, 2))
    assert plain != other


@pytest.mark.parametrize("content, same", [([{"type": "text", "text": "Tell me of a fox."}], "Tell me of a fox."), ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb")])
def test_chat_content_parts(client, content, same):
    one, other = (chat(client, messages=[{"role": "user", "content": c}]) for c in (content, same))
    assert one.usage.prompt_tokens == other.usage.prompt_tokens and one.choices[0].message.content == other.choices[0].message.content


def test_chat_developer_role(client):
    a, b = (chat(client, messages=[{"role": r, "content": "x"}, ASK[1]]).choices[0].message.content for r in ("developer", "system"))
    assert a == b


def test_chat_tool_conversation(client):
    messages = [ASK[1], {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"at\": \"fox\"}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "a fox"}]
    for choice in ("auto", "none"):
        assert chat(client, messages=messages, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False).choices[0].message.content


def test_chat_parameters_without_effect(client):
    plain = chat(client).choices[0].message.content
    r = chat(client, user="u", metadata={"a": "b"}, store=False, service_tier="auto", safety_identifier="s", prompt_cache_key="k", reasoning_effort="low", verbosity="low",
             response_format={"type": "text"}, modalities=["text"], parallel_tool_calls=True, extra_body={"cache_salt": "x", "priority": 3, "never_heard_of": [1]})
    assert r.choices[0].message.content == plain and r.service_tier == "default"


def test_chat_continue_final_message(client):
    whole = chat(client, max_tokens=20).choices[0].message.content
    begun = whole[:whole.index(" ", 10)]
    rest = chat(client, messages=[*ASK, {"role": "assistant", "content": begun}], extra_body={"continue_final_message": True}).choices[0].message.content
    assert whole.startswith((begun + rest)[:len(begun) + 6])


def test_chat_with_raw_response(client):
    raw = client.chat.completions.with_raw_response.create(model=NAME, messages=ASK, max_tokens=2, extra_headers={"X-Request-Id": "mine-7"})
    assert raw.status_code == 200 and raw.headers["x-request-id"] == "mine-7" and raw.parse()._request_id == "mine-7"


def test_request_ids_are_made(client):
    a, b = chat(client, max_tokens=1)._request_id, chat(client, max_tokens=1)._request_id
    assert a.startswith("req-") and b.startswith("req-") and a != b


# ---- text completions ----

def test_completion_shape(client):
    r = complete(client)
    assert r.object == "text_completion" and r.id.startswith("cmpl-") and r.choices[0].text and r.choices[0].finish_reason == "length" and r.usage.completion_tokens == 8


def test_completion_of_the_reference(client):
    case = next(c for c in REFERENCE["files"]["grimm-6m-Q8_0.gguf"]["cases"] if isinstance(c.get("prompt"), str) and min(c["margins"][:4]) > 0.2)
    assert complete(client, prompt=case["prompt"], max_tokens=4, extra_body={"return_token_ids": True}).choices[0].token_ids == case["greedy_ids"][:4]


def test_completion_stream(client):
    whole = complete(client, max_tokens=20).choices[0].text
    chunks = list(complete(client, max_tokens=20, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole and chunks[-1].usage.completion_tokens == 20


def test_completion_prompts(client):
    texts = complete(client, prompt=["Once upon a time", "The fox"])
    alone = [complete(client, prompt=p).choices[0].text for p in ("Once upon a time", "The fox")]
    assert [c.text for c in texts.choices] == alone and [c.index for c in texts.choices] == [0, 1]


def test_completion_prompt_ids(client):
    ids = complete(client, extra_body={"return_token_ids": True}).choices[0].prompt_token_ids
    assert complete(client, prompt=ids).choices[0].text == complete(client, prompt=[ids]).choices[0].text == complete(client).choices[0].text


def test_completion_echo_and_logprobs(client):
    r = complete(client, echo=True, logprobs=2).choices[0]
    lp = r.logprobs
    assert r.text.startswith("Once upon a time") and len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset)
    assert lp.token_logprobs[0] is None and lp.top_logprobs[0] is None and all(len(t) >= 2 for t in lp.top_logprobs[1:])
    assert all(r.text.startswith(t, o) for t, o in list(zip(lp.tokens, lp.text_offset))[1:])


def test_completion_echo_alone(client):
    assert complete(client, echo=True, max_tokens=0).choices[0].text == "Once upon a time"


def test_completion_best_of(client):
    params = {"temperature": 1, "seed": 4, "max_tokens": 12}
    every = complete(client, n=5, logprobs=0, **params)
    best = sorted(every.choices, key=lambda c: -sum(c.logprobs.token_logprobs) / len(c.logprobs.tokens))
    r = complete(client, n=2, best_of=5, **params)
    assert [c.text for c in r.choices] == [c.text for c in best[:2]] and [c.index for c in r.choices] == [0, 1]
    assert r.choices[0].logprobs is None and r.usage.completion_tokens == every.usage.completion_tokens


def test_completion_prompt_logprobs(client):
    r = complete(client, max_tokens=1, extra_body={"prompt_logprobs": 1}).choices[0]
    assert r.prompt_logprobs[0] is None and all(v["logprob"] <= 0 for p in r.prompt_logprobs[1:] for v in p.values())


def test_completion_truncated_prompt(client):
    ids = complete(client, extra_body={"return_token_ids": True}).choices[0].prompt_token_ids
    r = complete(client, extra_body={"truncate_prompt_tokens": 3, "return_token_ids": True})
    assert r.choices[0].prompt_token_ids == ids[-3:] and r.usage.prompt_tokens == 3
    assert complete(client, prompt=[5] * 3000, max_tokens=1, extra_body={"truncate_prompt_tokens": -1}).usage.prompt_tokens == 1023


def test_completion_tokens_as_ids(client):
    r = complete(client, logprobs=1, extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True}).choices[0]
    assert r.logprobs.tokens == [f"token_id:{i}" for i in r.token_ids]


# ---- errors: the class, the status, the parameter ----

@pytest.mark.parametrize("params, param", [
    ({"temperature": 3}, "temperature"), ({"top_p": -1}, "top_p"), ({"n": 0}, "n"), ({"max_tokens": -1}, "max_tokens"), ({"stop": [""]}, "stop"), ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"messages": []}, "messages"), ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}]}]}, "messages[0].content"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"), ({"modalities": ["text", "audio"]}, "modalities"), ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"), ({"functions": [{"name": "f"}]}, "functions"), ({"function_call": "auto"}, "function_call"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}}, "tool_choice"), ({"tools": [{"type": "banana"}]}, "tools[0]"),
    ({"reasoning_effort": "mighty"}, "reasoning_effort"), ({"verbosity": "x"}, "verbosity"), ({"service_tier": "gold"}, "service_tier"), ({"metadata": {"a": 1}}, "metadata"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template"), ({"extra_body": {"guided_json": {}, "guided_regex": "a"}}, "guided_regex"),
    ({"seed": 1.5}, "seed"), ({"user": 3}, "user"), ({"store": "yes"}, "store"),
], ids=lambda v: str(v)[:40])
def test_bad_requests(client, params, param):
    with pytest.raises(openai.BadRequestError) as e:
        chat(client, **params)
    assert e.value.status_code == 400 and e.value.type == "invalid_request_error" and e.value.param == param and e.value.body["message"] and e.value.request_id


@pytest.mark.parametrize("params, param", [({"best_of": 1, "n": 2}, "best_of"), ({"best_of": 2, "stream": True}, "best_of"), ({"suffix": "x"}, "suffix"), ({"logprobs": 21}, "logprobs"),
                                           ({"prompt": []}, "prompt"), ({"prompt": [5] * 2000}, "prompt"), ({"extra_body": {"use_beam_search": True}}, "use_beam_search")], ids=lambda v: str(v)[:40])
def test_bad_text_requests(client, params, param):
    with pytest.raises(openai.BadRequestError) as e:
        complete(client, **params)
    assert e.value.param == param


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as e:
        chat(client, model="gpt-4")
    assert e.value.param == "model" and NAME in e.value.message


def test_unknown_route(client):
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a fox")


def test_errors_before_a_stream(client):
    with pytest.raises(openai.BadRequestError):
        chat(client, stream=True, temperature=3)


def test_keys(tmp_path):
    f = tmp_path / "keys"
    f.write_text("secret\n")
    f.chmod(0o600)
    with Server(DEMO, "--api-key-file", f) as s:
        with pytest.raises(openai.AuthenticationError) as e:
            chat(OpenAI(base_url=s.url + "/v1", api_key="wrong", max_retries=0))
        assert e.value.status_code == 401 and e.value.type == "authentication_error"
        assert chat(OpenAI(base_url=s.url + "/v1", api_key="secret", max_retries=0)).choices
        # A body of 10 MB is refused before it is sent whole; the client gets to read why.
        with pytest.raises(openai.AuthenticationError):
            chat(OpenAI(base_url=s.url + "/v1", api_key="wrong", max_retries=0), messages=[{"role": "user", "content": "x" * 10_000_000}])


def test_a_body_over_the_limit():
    with Server(DEMO, "--body-max", "100K") as s:
        with pytest.raises(openai.APIStatusError) as e:
            chat(OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0), messages=[{"role": "user", "content": "x" * 5_000_000}])
        assert e.value.status_code == 413 and "body_max" in e.value.message


def test_the_host_of_another_is_forbidden(server):
    with pytest.raises(openai.PermissionDeniedError):
        chat(OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, default_headers={"Host": "evil.example"}))


def test_no_server():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(openai.APIConnectionError):
            chat(OpenAI(base_url=f"http://127.0.0.1:{s.getsockname()[1]}/v1", api_key="none", max_retries=0))


# ---- time, leaving, overload ----

def test_timeout(server, client):
    with pytest.raises(openai.APITimeoutError):
        chat(client, n=16, timeout=0.3, **LONG)
    idle(server)


def test_leaving_a_stream(server, client):
    with complete(client, stream=True, **LONG) as s:
        for _, _ in zip(range(3), s):
            pass
    idle(server)


def test_retries_when_busy():
    """429 with Retry-After while the queue is full: a client that retries gets its answer once there is room, one that does not gets RateLimitError."""
    with Server(DEMO, "--max-seqs", "1", "--queue-max", "1") as s:
        def held():
            x = s.stream("/v1/completions", {"prompt": "a", "max_tokens": 1000, "ignore_eos": True})
            next(x)
            return x
        running = held()
        waiting = threading.Thread(target=s.complete, kwargs={"max_tokens": 1})
        waiting.start()
        while s.get("/health").json["replicas"][0]["waiting"] != 1:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as e:
            complete(OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0))
        assert e.value.response.headers["Retry-After"] == "1" and e.value.type == "rate_limit_error"
        threading.Timer(0.3, running.close).start()
        assert complete(OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=20)).choices[0].text
        waiting.join()


def test_retries_while_stopping_or_loading():
    """503 is InternalServerError, with Retry-After, and retried."""
    seen = []

    def serve(listener):
        for answer in (b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0.05\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", None):
            conn, _ = listener.accept()
            data = conn.recv(65536)
            seen.append(data)
            if answer is None:
                body = json.dumps(good).encode()
                answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
            conn.sendall(answer)
            conn.close()
    with Server(DEMO) as s:
        good = s.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).json
        running = s.stream("/v1/completions", {"prompt": "a", "max_tokens": 1000, "ignore_eos": True})
        next(running)
        s.proc.terminate()
        raised = None
        while raised is None and s.proc.poll() is None:
            try:
                complete(OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0), max_tokens=1)
            except openai.InternalServerError as e:
                raised = e
            except openai.APIConnectionError:
                break
        assert raised is not None and raised.status_code == 503 and raised.response.headers["Retry-After"] == "1" and raised.type == "unavailable_error"
        running.close()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        t = threading.Thread(target=serve, args=(listener,))
        t.start()
        assert complete(OpenAI(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key="none", max_retries=2)).choices[0].text == good["choices"][0]["text"]
        t.join()
        assert len(seen) == 2


def test_a_large_prompt_does_not_hold_up_others(server, client):
    """Megabytes are read beside the loop: short requests are answered meanwhile; the large one's answer is the one for its size."""
    done = {}

    def large():
        try:
            chat(client, messages=[{"role": "user", "content": "In the forest lived a fox. " * 150_000}])
        except openai.BadRequestError as e:
            done["error"] = e
    t = threading.Thread(target=large)
    t.start()
    served = 0
    while t.is_alive():
        client.models.list()
        served += 1
    t.join()
    assert served > 2 and done["error"].param == "messages" and "1024" in done["error"].message


def test_leaving_while_a_large_prompt_is_read(server, client):
    body = json.dumps({"model": NAME, "messages": [{"role": "user", "content": "In the forest lived a fox. " * 100_000}]}).encode()
    for _ in range(5):
        with socket.create_connection((server.host, server.port)) as c:
            c.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert chat(client).choices[0].message.content
    r = server.post("/tokenize", {"prompt": "fox " * 100_000})
    assert r.json["count"] > 100_000


def test_tokens_that_come_together_are_sent_together(server):
    """A step's tokens of all choices leave in one write: far fewer HTTP chunks than events."""
    body = json.dumps({"prompt": "a", "n": 16, "max_tokens": 20, "ignore_eos": True, "stream": True}).encode()
    got = b""
    with socket.create_connection((server.host, server.port)) as c:
        c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while more := c.recv(65536):
            got += more
    rest, chunks = got.partition(b"\r\n\r\n")[2], []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[:int(size, 16)])
        rest = rest[int(size, 16) + 2:]
    events = b"".join(chunks).split(b"\n\n")[:-1]
    assert len(events) > 200 and events[-1] == b"data: [DONE]" and all(json.loads(e[6:]) for e in events[:-1])
    assert len(chunks) < len(events) / 2


# ---- async ----

def run(server, what):
    async def go():
        async with make_async(server) as c:
            return await what(c)
    return asyncio.run(go())


def test_async_chat(server, client):
    r = run(server, lambda c: c.chat.completions.create(model=NAME, messages=ASK, max_tokens=8, temperature=0))
    assert r.choices[0].message.content == chat(client).choices[0].message.content


def test_async_stream(server, client):
    async def go(c):
        return [x async for x in await c.chat.completions.create(model=NAME, messages=ASK, max_tokens=8, temperature=0, stream=True)]
    assert "".join(x.choices[0].delta.content or "" for x in run(server, go)) == chat(client).choices[0].message.content


def test_async_many_at_once(server, client):
    async def go(c):
        return await asyncio.gather(*(c.completions.create(model=NAME, prompt="Once", max_tokens=12, temperature=1, seed=i % 4) for i in range(24)))
    texts = [r.choices[0].text for r in run(server, go)]
    assert texts[:4] * 6 == texts and len(set(texts)) == 4


def test_async_cancellation(server):
    async def go(c):
        task = asyncio.create_task(c.completions.create(model=NAME, prompt="a", **LONG))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    run(server, go)
    idle(server)


def test_async_errors(server):
    async def go(c):
        with pytest.raises(openai.BadRequestError):
            await c.chat.completions.create(model=NAME, messages=ASK, temperature=9)
        with pytest.raises(openai.NotFoundError):
            await c.models.retrieve("nobody")
    run(server, go)


def test_async_timeout(server):
    async def go(c):
        with pytest.raises(openai.APITimeoutError):
            await c.with_options(timeout=0.3).completions.create(model=NAME, prompt="a", n=16, **LONG)
    run(server, go)
    idle(server)


# ---- other clients ----

def big(name):
    """A package too large for every run: tested where it is there already, and in the long form only by those who have it."""
    return pytest.importorskip(name, reason=f"{name} is not installed" + (" (RACKLM_FULL: install it to run this)" if FULL else ""))


def test_langchain(server):
    chat_openai = big("langchain_openai").ChatOpenAI(base_url=server.url + "/v1", api_key="none", model=NAME, max_tokens=8, temperature=0)
    whole = chat_openai.invoke("Tell me of a fox.")
    assert whole.content and whole.usage_metadata["output_tokens"] == 8
    assert "".join(c.content for c in chat_openai.stream("Tell me of a fox.")) == whole.content


def test_litellm(server):
    litellm = big("litellm")
    args = {"model": "openai/" + NAME, "api_base": server.url + "/v1", "api_key": "none", "messages": ASK, "max_tokens": 8, "temperature": 0}
    whole = litellm.completion(**args)
    assert "".join(c.choices[0].delta.content or "" for c in litellm.completion(stream=True, **args)) == whole.choices[0].message.content
    with pytest.raises(litellm.exceptions.BadRequestError):
        litellm.completion(**{**args, "messages": []})


def test_node_client(server, tmp_path):
    def at_hand():
        try:
            return shutil.which("npm") and subprocess.run(["npm", "ping", "--fetch-retries=0"], capture_output=True, timeout=3).returncode == 0
        except subprocess.TimeoutExpired:
            return False
    if not at_hand():
        pytest.skip("npm or its registry is not at hand")
    subprocess.run(["npm", "install", "--silent", "openai"], cwd=tmp_path, check=True, timeout=120)
    (tmp_path / "t.mjs").write_text("""
import OpenAI from 'openai';
const c = new OpenAI({baseURL: process.env.URL, apiKey: 'none', maxRetries: 0});
const args = {model: process.env.NAME, messages: [{role: 'user', content: 'Tell me of a fox.'}], max_tokens: 8, temperature: 0};
const whole = (await c.chat.completions.create(args)).choices[0].message.content;
let text = '';
for await (const x of await c.chat.completions.create({...args, stream: true})) text += x.choices[0]?.delta?.content ?? '';
let kind = '';
try { await c.chat.completions.create({...args, temperature: 9}); } catch (e) { kind = e.constructor.name + ' ' + e.param; }
console.log(JSON.stringify({same: text === whole && whole.length > 0, kind}));
""")
    out = subprocess.run(["node", "t.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ, "URL": server.url + "/v1", "NAME": NAME})
    assert json.loads(out.stdout) == {"same": True, "kind": "BadRequestError temperature"}, out.stderr
