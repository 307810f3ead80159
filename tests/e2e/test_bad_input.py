"""What is wrong is told in one line, in the right shape, and nothing else changes: damaged model files and wrong options on the
command line, wrong requests over HTTP. The expected limits are those of the OpenAI API, of the flags' help, and of RFC 9112."""
import concurrent.futures
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import time

import pytest
from conftest import BUILD, DEMO, FULL, SANITIZED, Server, racklm

LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARN|ERROR) ")
GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


# ---- the command line ----

def refused(r, *words, code=1):
    """The command failed with exactly one line that is not a log line, and the line holds every word."""
    assert r.returncode == code, (r.returncode, r.stdout, r.stderr)
    lines = [x for x in r.stderr.splitlines() if not LOG_LINE.match(x)]
    assert len(lines) == 1, r.stderr
    for w in words:
        assert str(w) in lines[0], (w, lines[0])
    return lines[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """State and runtime directories that commands of this file share."""
    d = tmp_path_factory.mktemp("h")
    return {**os.environ, "RACKLM_STATE_DIR": str(d / "state"), "RACKLM_RUNTIME_DIR": str(d / "run")}


def serve(home, *args, timeout=180, env=None):
    return racklm("serve", *args, "--port", "0", env={**home, **(env or {})}, timeout=timeout)


def header_integers(data):
    """Offset, size and name of every integer of a GGUF header: counts, lengths, types, values, dimensions, offsets."""
    found = []
    at = 4

    def take(fmt, name):
        nonlocal at
        v, = struct.unpack_from("<" + fmt, data, at)
        found.append((at, struct.calcsize(fmt), name))
        at += struct.calcsize(fmt)
        return v

    def text(name):
        nonlocal at
        n = take("Q", name + " length")
        s = data[at:at + n].decode("utf-8", "replace")
        at += n
        return s

    def value(kind, name, note=True):
        nonlocal at
        if kind == 8:
            n, = struct.unpack_from("<Q", data, at)
            if note:
                found.append((at, 8, name + " length"))
            at += 8 + n
        elif kind == 9:
            item = take("I", name + " item type")
            n = take("Q", name + " items")
            for i in range(n):
                value(item, f"{name}[{i}]", i in (0, n - 1))
        else:
            if note and kind not in (6, 12):
                found.append((at, GGUF_SIZES[kind], name))
            at += GGUF_SIZES[kind]

    take("I", "version")
    n_tensors, n_kv = take("Q", "tensors"), take("Q", "keys")
    for _ in range(n_kv):
        key = text("key")
        value(take("I", key + " type"), key)
    for _ in range(n_tensors):
        name = text("tensor")
        for d in range(take("I", name + " dimensions")):
            take("Q", f"{name} dimension {d}")
        take("I", name + " type")
        take("Q", name + " offset")
    return found, at


def key_value_at(data, key):
    """Offset of the value of a key, and its type."""
    at = data.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key)
    return at + 4, struct.unpack_from("<I", data, at)[0]


@pytest.mark.sanitizer
@pytest.mark.parametrize("command", ["show", "serve", "run"])
def test_files_that_are_no_model(home, tmp_path, command):
    data = DEMO.read_bytes()
    _, header = header_integers(data)
    cases = {"empty": b"", "short": b"GGUF", "text": b"Once upon a time " * 1000, "garbage": b"GGUF" + os.urandom(100000), "half": data[:len(data) // 2],
             "header": data[:header // 2], "one": data[:-4096], "endian": data[:4] + data[4:8][::-1] + data[8:], "old": data[:4] + struct.pack("<I", 1) + data[8:]}
    if command != "show" and not FULL:
        cases = {k: cases[k] for k in ("garbage", "half")}
    for name, content in cases.items():
        f = tmp_path / f"{name}.gguf"
        f.write_bytes(content)
        refused(racklm(command, f, *(["hello"] if command == "run" else []), *(["--port", "0"] if command == "serve" else []), env=home, timeout=180), f)
    refused(racklm(command, tmp_path / "absent.gguf", *(["hello"] if command == "run" else []), env=home), "absent.gguf", "No such file")
    refused(racklm(command, tmp_path, *(["hello"] if command == "run" else []), env=home), tmp_path)


def test_every_header_integer_mutated(home, tmp_path):
    """Each integer set to 0, 1, 2^31, 2^63 and -1: either the file still makes sense, or one line says what does not. Nothing crashes or hangs."""
    data = DEMO.read_bytes()
    found, header = header_integers(data)
    if not FULL:  # all of the keys' and of a few tensors'; the unit tests of gguf.c take every one
        tensors = {n.split(" ")[0] for _, _, n in found if " dimension" in n}
        some = set(sorted(tensors)[:2]) | {"token_embd.weight"}
        found = [f for f in found if f[2].split(" ")[0] not in tensors or f[2].split(" ")[0] in some]
        found = [f for i, f in enumerate(found) if f[2] not in ("key length", "tensor length") or i % 6 == 0]
    values = (0, 1, 1 << 31, 1 << 63, (1 << 64) - 1) if FULL else (0, 1 << 31, (1 << 64) - 1)
    if SANITIZED:
        found = found[::10]

    def one(job):
        i, (at, size, name), v = job
        f = tmp_path / f"{i}.gguf"
        f.write_bytes(data[:at] + (v & ((1 << 8 * size) - 1)).to_bytes(size, "little") + data[at + size:header])
        with open(f, "ab") as out:
            out.truncate(len(data))  # the weights read as zeros; only the header is looked at
        r = racklm("show", f, env=home, timeout=180)
        f.unlink()
        if r.returncode != 0:
            try:
                refused(r, f)
            except AssertionError as e:
                return f"{name} = {v}: {e}"
        return r.returncode
    jobs = [(i, f, v) for i, (f, v) in enumerate((f, v) for f in found for v in values)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, jobs))
    assert not [r for r in results if isinstance(r, str)]
    assert results.count(1) > len(results) / 2


@pytest.mark.sanitizer
def test_unknown_architecture_and_quantisation(home, tmp_path):
    data = DEMO.read_bytes()
    at, kind = key_value_at(data, "general.architecture")
    assert kind == 8 and data[at + 8:at + 13] == b"llama"
    f = tmp_path / "arch.gguf"
    f.write_bytes(data[:at + 8] + b"mamba" + data[at + 13:])
    refused(serve(home, f), f, "mamba", "llama")
    found, _ = header_integers(data)
    pos = next(p for p, _, n in found if n == "token_embd.weight type")
    for number in (16, 99):  # IQ2_XXS, which is known by name only; no type at all
        f = tmp_path / f"type{number}.gguf"
        f.write_bytes(data[:pos] + struct.pack("<I", number) + data[pos + 4:])
        refused(racklm("show", f, env=home), f, "token_embd.weight", "IQ2_XXS" if number == 16 else "99")
    refused(serve(home, f), f, "token_embd.weight")


def test_splits_that_cannot_be(home):
    heads = json.loads(racklm("show", DEMO, "-o", "json").stdout)["heads"]
    for command in ("serve", "show"):
        args = ["--port", "0"] if command == "serve" else []
        refused(racklm(command, DEMO, "--tp", heads + 1, *args, env=home), heads + 1, heads, "heads")
        refused(racklm(command, DEMO, "--pp", 60, *args, env=home), "60", "layers")
        refused(racklm(command, DEMO, "--tp", 2, "--shares", "1,1,1", *args, env=home), "3", "2")
        refused(racklm(command, DEMO, "--pp", 2, "--layers", "1,1", *args, env=home), "layers")


@pytest.mark.sanitizer
def test_context_beyond_memory_and_kv(home):
    refused(serve(home, DEMO, "--kv-memory", "64K"), "context", "kv-memory")
    refused(serve(home, DEMO, "--ctx", "1000", "--kv-memory", "1M"), "1000", "kv-memory")
    refused(serve(home, DEMO, "--ctx", "16"), "16", "--ctx")
    # The model's own context is lowered to what fits, and says so. More than it was trained for is given, with a warning.
    with Server(DEMO, "--kv-memory", "1M") as s:
        lowered = json.loads(s.cli("status", "-o", "json").stdout)["ctx"]
        assert 16 <= lowered < 1024 and f"lowered from the model's 1024 to {lowered}" in s.proc.stdout.readline()
        r = s.post("/v1/completions", {"prompt": [5] * 1000, "max_tokens": 1})
        check_error(r, 400, "1000", lowered, param="prompt")
    with Server(DEMO, "--ctx", "3000") as s:
        assert "longer than the model was trained for" in s.logs()
        assert s.get("/v1/models").json["data"][0]["max_model_len"] == 3000


def test_model_beyond_memory(home, tmp_path):
    """A model whose weights exceed the machine's memory is refused before anything is loaded (the file is sparse)."""
    f = tmp_path / "big.gguf"
    made = subprocess.run([BUILD / "bin/mkmodel", "tiny-llama", "Q8_0", f], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    data = f.read_bytes()
    at, kind = key_value_at(data, "llama.context_length")
    assert kind == 4
    f.write_bytes(data[:at] + struct.pack("<I", 1 << 24) + data[at + 4:])
    r = serve(home, f, "--ctx", 1 << 24, "--max-seqs", 4096, "--kv-type", "f32", timeout=180)
    refused(r, "context", str(1 << 24))


@pytest.mark.sanitizer
def test_port_in_use_and_hosts(home):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        refused(racklm("serve", DEMO, "--port", port, env=home), port, "in use")
    refused(serve(home, DEMO, "--host", "0.0.0.0"), "0.0.0.0", "api-key")
    refused(serve(home, DEMO, "--host", "192.0.2.7", "--api-key", "k"), "192.0.2.7")
    refused(serve(home, DEMO, "--api-key-file", "/absent/keys"), "/absent/keys")
    assert not [p for p in (home["RACKLM_RUNTIME_DIR"],) if os.listdir(p)]


def test_flags_and_variables(home):
    refused(serve(home, DEMO, "--tpp", "2"), "--tpp", "--tp", code=2)
    refused(serve(home, DEMO, "--tp", "two"), "--tp", "two", "1", "1024", code=2)
    refused(serve(home, DEMO, "--tp", "0"), "--tp", "1024", code=2)
    refused(serve(home, DEMO, "--port", "70000"), "65535", code=2)
    refused(serve(home, DEMO, "--kv-type", "f64"), "f64", "f16", code=2)
    refused(serve(home, DEMO, "--kv-memory", "much"), "much", code=2)
    refused(racklm("serve", DEMO, "--threads", env=home), "--threads", "value", code=2)
    refused(serve(home, DEMO, env={"RACKLM_MAX_SEQS": "-3"}), "RACKLM_MAX_SEQS", "-3", "4096", code=2)
    refused(serve(home), "GGUF", code=2)
    refused(serve(home, DEMO, DEMO), "two models", DEMO.stem)


@pytest.mark.parametrize("text, words", [
    ("tp: 2\nprt: 3\n", (":2:1:", "prt", "http.port")),
    ("http:\n  prot: 8000\n", (":2:3:", "prot", "http.port")),
    ("tp: two\n", (":1:5:", "two", "1024")),
    ("tp: 4000\n", (":1:5:", "4000", "1024")),
    ("tp: [1, 2]\n", (":1:5:", "tp")),
    ("http: 3\n", (":1:7:",)),
    ("tp: 1\ntp: 2\n", (":2:1:", "twice")),
    ("tp: 1\n  pp: 2\n", (":1:5:", "tp")),
    ("layers: [\n", (":2:1:",)),
    ("tp:\n\t- 1\n", (":2:1:",)),
    ("- tp\n", (":1:1:",)),
    ("http:\n  host: *x\n", (":2:9:",)),
    ("max_seqs: !!int 3\n", (":1:11:",)),
    ("\x00\x01", (":1:1:",)),
], ids=lambda v: repr(v)[:20] if isinstance(v, str) else "")
def test_configuration_errors_name_file_line_and_column(home, tmp_path, text, words):
    f = tmp_path / "racklm.yaml"
    f.write_text(text)
    refused(racklm("serve", DEMO, "--config", f, env=home), f"{f}:", *words, code=2)
    r = subprocess.run([BUILD / "bin/racklm-coordinator", "--config", f], env=home, capture_output=True, text=True, timeout=180)
    refused(r, f"{f}:", *words, code=r.returncode or 99)
    assert r.returncode in (1, 2)


@pytest.mark.sanitizer
def test_wrong_keys(home, tmp_path):
    """Files that are no keys or are open to others are refused where they are read; a key that the coordinator does not know, by the coordinator."""
    with Server(DEMO) as s:
        good = s.dir / "state/keys/local-admin.key"
        for name, content, mode, words in (("open", good.read_text(), 0o644, ("600",)), ("junk", "hello\n", 0o600, ()), ("absent", None, 0, ("No such file",))):
            f = tmp_path / name
            if content is not None:
                f.write_text(content)
                f.chmod(mode)
            refused(s.cli("status", "--key-file", f), f, *words)
        # A stranger: keys made in another state directory, with this coordinator's public key written in.
        other = {**os.environ, "RACKLM_STATE_DIR": str(tmp_path / "other")}
        made = {}
        for role in ("admin", "worker"):
            r = racklm("key", "stranger-" + role, "--role", role, env=other)
            assert r.returncode == 0, r.stderr
            text = open(r.stdout.strip()).read()
            server = re.search(r"^.*server.*$", good.read_text(), re.M).group(0)
            f = tmp_path / ("stranger-" + role)
            f.write_text(re.sub(r"^.*server.*$", server, text, flags=re.M))
            f.chmod(0o600)
            made[role] = f
        line = refused(s.cli("status", "--key-file", made["admin"], timeout=180), "racklm status:")
        assert re.search(r"key|not authorised|allow|refused", line), line
        link = os.readlink(s.dir / "run/current")
        agent = subprocess.run([BUILD / "bin/racklm-worker", "--join", f"ipc://{s.dir}/run/{link}/control.sock", "--key-file", made["worker"]],
                               capture_output=True, text=True, timeout=30, env=s.env)
        assert agent.returncode in (1, 3), (agent.returncode, agent.stderr)
        assert re.search(r"key|allow|refused|not authorised", agent.stderr), agent.stderr
        # A key made while it runs is known at once; a viewer may look.
        viewer = s.cli("key", "guest", "--role", "viewer").stdout.strip()
        assert os.stat(viewer).st_mode & 0o777 == 0o600
        assert s.cli("status", "--key-file", viewer).returncode == 0
        assert s.complete(max_tokens=1)


# ---- HTTP: what is in a request ----

@pytest.fixture(scope="module")
def server():
    """One worker, a small body limit and a short time to receive a request."""
    with Server(DEMO, "--body-max", "100K", "--http-timeout-ms", "4000", "--connections-max", "60", "--max-seqs", "8") as s:
        yield s


def check_error(r, status, *words, param=...):
    assert r.status == status, (r.status, r.body)
    assert r.headers["Content-Type"].startswith("application/json"), r.headers
    body = r.json
    assert list(body) == ["error"], body
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"] and "\n" not in error["message"] and error["code"] == status and error["type"].endswith("_error")
    if param is not ...:
        assert error["param"] == param, error
    for w in words:
        assert str(w) in error["message"], (w, error)


def alive(s):
    assert s.complete(max_tokens=1)["usage"]["completion_tokens"] == 1


def completion(s, raw=None, **params):
    body = raw if raw is not None else {"prompt": "a", "max_tokens": 1, **params}
    return s.post("/v1/completions", body)


MALFORMED = ["", "{", "nope", "[]", "3", "null", '"a"', '{"prompt":"a",}', "{'prompt':'a'}", '{"prompt":"a"} x', '{"prompt":"a"', '{"prompt":"\x01"}', "\ufeff{}",
             '{"prompt":"a","temperature":NaN}', '{"prompt":"a","temperature":Infinity}', '{"prompt":"a","temperature":1e999}', '{"prompt":"a","max_tokens":1' + "0" * 40 + "}",
             '{"prompt":"a","prompt":"b"}', '{"prompt":"a","metadata":{"a":"1","a":"2"}}', '{"messages":[{"role":"user","role":"user","content":"a"}]}',
             '{"tokens":[1],"tokens":[1]}', '{"prompt":"\\ud800"}', '{"prompt":"\\u12"}', '{"prompt":' + "[" * 5000 + "]" * 5000 + "}",
             '{"x":' * 70 + "1" + "}" * 70, "[" * 90000]


@pytest.mark.sanitizer
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_malformed_json(server, path):
    for raw in [m.encode() for m in MALFORMED] + [b'{"prompt":"\xff\xfe"}', b'{"prompt":"\xc0\x80"}', b'{"prompt":"\xed\xa0\x80"}', b'\x00\x00']:
        check_error(server.post(path, raw), 400)
    alive(server)


FLOATS = {"temperature": (0, 2), "top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (0.01, 100), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2),
          "repeat_penalty": (0.01, 100), "typical_p": (0, 1), "top_n_sigma": (-1, 100), "xtc_probability": (0, 1), "xtc_threshold": (0, 1), "dynatemp_range": (0, 2),
          "dynatemp_exponent": (0, 100), "dry_multiplier": (0, 100), "dry_base": (1, 100), "mirostat_tau": (0, 100), "mirostat_eta": (0, 10)}
INTS = {"top_k": (-1, 2**31 - 1), "max_tokens": (0, 2**31 - 1), "max_completion_tokens": (0, 2**31 - 1), "min_tokens": (0, 2**31 - 1), "seed": (-2**63, 2**63 - 1),
        "repeat_last_n": (-1, 2**31 - 1), "dry_allowed_length": (0, 2**31 - 1), "dry_penalty_last_n": (-1, 2**31 - 1), "mirostat": (0, 2), "n": (1, 128), "best_of": (1, 128), "priority": (-2**31, 2**31 - 1), "truncate_prompt_tokens": (-1, 2**31 - 1), "logprobs": (0, 20), "prompt_logprobs": (0, 20)}
BOOLS = ["stream", "echo", "ignore_eos", "return_token_ids", "include_stop_str_in_output", "skip_special_tokens", "return_tokens_as_token_ids", "store", "parallel_tool_calls"]


@pytest.mark.sanitizer
@pytest.mark.parametrize("name", [*FLOATS, *INTS])
def test_numbers_in_and_out_of_range(server, name):
    low, high = (FLOATS.get(name) or INTS[name])
    wrong = [low - 1, high + 1, -1e30, 1e30, "1", "", [], [1], {}, True, "NaN"]
    if name in INTS:
        wrong += [1.5, 1.0]
        if name == "seed":
            wrong = wrong[2:]
        if name == "best_of":
            wrong += [0]
    for v in wrong:
        check_error(completion(server, **{name: v}), 400, name, param=name)
    for raw in ("NaN", "-Infinity", "1e400", "--1", "0x10", "01"):
        check_error(completion(server, raw='{"prompt":"a","%s":%s}' % (name, raw)), 400, param=name)
    tokens = {"max_tokens": 2} if name != "max_tokens" else {}
    for v in (low, high, None):
        if name in ("max_tokens", "max_completion_tokens") and v != low:
            tokens["stop"] = [" ", "e", "a", "o"]  # the end comes soon
        r = completion(server, **{**tokens, **({"echo": True} if v == 0 else {}), name: v})
        assert r.status == 200, (name, v, r.body)
    big = completion(server, raw='{"prompt":"a","max_tokens":1,"%s":%d}' % (name, 2**63))
    check_error(big, 400, param=None if name == "max_tokens" else name)  # that one stands there twice
    alive(server)


@pytest.mark.parametrize("name", BOOLS)
def test_booleans(server, name):
    for v in (0, 1, "true", "", [], {}):
        check_error(completion(server, **{name: v}), 400, name, param=name)
    assert completion(server, **{name: None}).status == 200


@pytest.mark.sanitizer
@pytest.mark.parametrize("params, param", [
    ({"prompt": ""}, None), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"), ({"prompt": 3}, "prompt"), ({"prompt": {"a": 1}}, "prompt"), ({"prompt": None}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"), ({"prompt": ["a", 1]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [4096]}, "prompt"), ({"prompt": [2**40]}, "prompt"),
    ({"prompt": [1.0]}, "prompt"), ({"prompt": [True]}, "prompt"), ({"prompt": [[1], [[2]]]}, "prompt"), ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": ["a"] * 64, "n": 3}, "n"),
    ({"stop": ""}, "stop"), ({"stop": 3}, "stop"), ({"stop": ["a", 3]}, "stop"), ({"stop": ["a"] * 17}, "stop"), ({"stop": "x" * 1025}, "stop"), ({"stop": {"a": 1}}, "stop"),
    ({"stop_token_ids": 3}, "stop_token_ids"), ({"stop_token_ids": ["a"]}, "stop_token_ids"), ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": [4096]}, "stop_token_ids"), ({"stop_token_ids": [1] * 5000}, "stop_token_ids"),
    ({"allowed_token_ids": []}, "allowed_token_ids"), ({"allowed_token_ids": 3}, "allowed_token_ids"), ({"allowed_token_ids": {}}, "allowed_token_ids"),
    ({"allowed_token_ids": [1, 4096]}, "allowed_token_ids"), ({"allowed_token_ids": ["1"]}, "allowed_token_ids"), ({"allowed_token_ids": [True]}, "allowed_token_ids"),
    ({"bad_words": "x"}, "bad_words"), ({"bad_words": [3]}, "bad_words"), ({"bad_words": [""]}, "bad_words"), ({"bad_words": ["x" * 257]}, "bad_words"),
    ({"bad_words": ["x"] * 257}, "bad_words"), ({"bad_words": ["ab cd ef gh" * 20] * 250}, "bad_words"), ({"dry_sequence_breakers": "x"}, "dry_sequence_breakers"),
    ({"dry_sequence_breakers": [3]}, "dry_sequence_breakers"), ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers"),
    ({"dry_sequence_breakers": [None]}, "dry_sequence_breakers"), ({"dry_sequence_breakers": ["x" * 257]}, "dry_sequence_breakers"),
    ({"logit_bias": []}, "logit_bias"), ({"logit_bias": {"a": 1}}, "logit_bias"), ({"logit_bias": {"-1": 1}}, "logit_bias"), ({"logit_bias": {"4096": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999999999999999": 1}}, "logit_bias"), ({"logit_bias": {"1": "a"}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": -100.5}}, "logit_bias"), ({"logit_bias": {"": 1}}, "logit_bias"), ({"logit_bias": {" 1": 1}}, "logit_bias"), ({"logit_bias": {"+1": 1}}, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"stream": True, "stream_options": 3}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"), ({"max_tokens": 0}, "max_tokens"), ({"model": 3}, "model"), ({"model": []}, "model"),
], ids=lambda v: str(v)[:36])
def test_other_parameters(server, params, param):
    body = {"prompt": "a", "max_tokens": 1, **params}
    r = server.post("/v1/completions", body)
    if params == {"prompt": ""}:  # BOS, or refused: never an empty run
        assert r.status in (200, 400)
    else:
        check_error(r, 400, param=param)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.sanitizer
@pytest.mark.parametrize("messages, param", [
    (None, ""), ([], ""), ({}, ""), ("hi", ""), (3, ""), ([3], "[0]"), ([None], "[0]"), ([[]], "[0]"), (["hi"], "[0]"), ([{}], "[0].role"),
    ([{"role": 3, "content": "a"}], "[0].role"), ([{"role": "emperor", "content": "a"}], "[0].role"), ([{"role": "User", "content": "a"}], "[0].role"),
    ([{"role": "user", "content": "a"}, {"role": None, "content": "a"}], "[1].role"), ([{"content": "a"}], "[0].role"),
    ([{"role": "user", "content": 3}], "[0].content"), ([{"role": "user", "content": {"a": 1}}], "[0].content"), ([{"role": "user", "content": [3]}], "[0].content"),
    ([{"role": "user"}], "[0].content"), ([{"role": "system", "content": None}], "[0].content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "[0].content"), ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "[0].content"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}], "[0].content"),
    ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}], "[0].content"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}], "[0].content"),
    ([{"role": "user", "content": [{"type": "file", "file": {"file_id": "/etc/passwd"}}]}], "[0].content"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": 3}], "[1].tool_calls"), ([{"role": "assistant", "tool_calls": [3]}], "[0].tool_calls"),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": 3}}]}], "[0].tool_calls"), ([{"role": "assistant", "tool_calls": [{**CALL, "function": {"arguments": "{}"}}]}], "[0].tool_calls"),
    ([{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": 3}}]}], "[0].tool_calls"),
], ids=lambda v: str(v)[:40])
def test_messages(server, messages, param):
    body = {"max_tokens": 1} if messages is None else {"messages": messages, "max_tokens": 1}
    check_error(server.post("/v1/chat/completions", body), 400, "messages", param="messages" + param)


def test_chat_parameters(server):
    m = [{"role": "user", "content": "Hi"}]
    tool = {"type": "function", "function": {"name": "f"}}
    for v in (-1, 21, 2**31, 1e30, -1e30, 1.5, 2.0, "1", [1], {}, True, "NaN"):
        check_error(server.post("/v1/chat/completions", {"messages": m, "max_tokens": 1, "logprobs": True, "top_logprobs": v}), 400, param="top_logprobs")
    for p, param in (({"reasoning_effort": 3}, "reasoning_effort"), ({"verbosity": ["low"]}, "verbosity"), ({"include_reasoning": 1}, "include_reasoning"),
                     ({"reasoning_format": "xml"}, "reasoning_format"), ({"documents": {}}, "documents"), ({"continue_final_message": 1}, "continue_final_message"),
                     ({"continue_final_message": True, "messages": [{"role": "assistant", "content": " "}]}, "continue_final_message"), ({"tools": [3]}, "tools[0]"),
                     ({"tools": [tool, {"type": "function"}]}, "tools[1]"), ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, "tools[0]"),
                     ({"tools": [tool], "tool_choice": "always"}, "tool_choice"), ({"tools": [tool], "tool_choice": 3}, "tool_choice"), ({"modalities": "text"}, "modalities"),
                     ({"response_format": "text"}, "response_format"), ({"response_format": {"type": "xml"}}, "response_format"), ({"metadata": []}, "metadata"),
                     ({"metadata": {str(i): "" for i in range(17)}}, "metadata"), ({"service_tier": 3}, "service_tier"), ({"cache_salt": 3}, "cache_salt")):
        check_error(server.post("/v1/chat/completions", {"messages": m, "max_tokens": 1, **p}), 400, param=param)
    for p, param in (({"logprobs": 3}, "logprobs"), ({"top_logprobs": 3}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"tools": 3}, "tools"),
                     ({"chat_template_kwargs": 3}, "chat_template_kwargs"), ({"add_generation_prompt": "yes"}, "add_generation_prompt")):
        check_error(server.post("/v1/chat/completions", {"messages": m, "max_tokens": 1, **p}), 400, param=param)
    assert server.post("/v1/chat/completions", {"messages": m, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}).status == 200


def test_prompts_longer_than_the_context(server):
    for n in (1024, 1025, 3000):
        r = server.post("/v1/completions", {"prompt": [5] * n, "max_tokens": 1})
        check_error(r, 400, str(n), "1024", param="prompt")
        r = server.post("/v1/completions", {"prompt": [[5], [5] * n], "max_tokens": 1, "stream": True})
        check_error(r, 400, str(n), "1024", param="prompt")
    count = server.post("/tokenize", {"messages": [{"role": "user", "content": "tale " * 2000}]})
    check_error(count, 400, "1024", param="messages")
    r = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "tale " * 2000}]})
    check_error(r, 400, "1024", param="messages")
    assert server.post("/v1/completions", {"prompt": [5] * 1023, "max_tokens": 50}).json["usage"]["completion_tokens"] == 1
    assert server.post("/v1/completions", {"prompt": [5] * 1024, "max_tokens": 0, "echo": True}).status == 200


@pytest.mark.sanitizer
def test_unknown_models_paths_and_methods(server):
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}), ("/tokenize", {"prompt": "a"}),
                       ("/detokenize", {"tokens": [1]})):
        check_error(server.post(path, {**body, "model": "nobody"}), 404, "nobody", "grimm-6m-Q8_0", param="model")
    check_error(server.get("/v1/models/nobody"), 404, "nobody", param="model")
    for path in ("/", "/v1", "/v2/models", "/v1/models/a/b/../../..", "//etc/passwd", "/v1/completions/", "/%00", "/%2e%2e/%2e%2e/etc/passwd", "/" + "a" * 8000, "/v1/audio/speech"):
        check_error(server.get(path), 404)
    for method, path in (("GET", "/v1/completions"), ("DELETE", "/v1/models"), ("PUT", "/v1/chat/completions"), ("POST", "/health"), ("PATCH", "/tokenize"), ("GET", "/detokenize")):
        r = server.request(method, path, "{}" if method != "GET" else None)
        check_error(r, 405)
        assert r.headers["Allow"] == ("GET, HEAD" if path in ("/v1/models", "/health") else "POST"), r.headers
    for ids in (None, 3, "1", [4096], [-1], ["a"], [1.5], [[1]], {}):
        check_error(server.post("/detokenize", {"tokens": ids}), 400, param="tokens")
    for body in ({}, {"prompt": 3}, {"prompt": ["a"]}, {"prompt": "a", "add_special_tokens": 3}, {"messages": 3}, {"messages": []}):
        check_error(server.post("/tokenize", body), 400)
    alive(server)


# ---- HTTP: how a request comes ----

def raw(s, data, timeout=60, shut=False, pause=0):
    """Sends bytes (or several pieces); returns what came until the server closed, or until `timeout`."""
    with socket.create_connection((s.host, s.port), timeout=timeout) as c:
        for part in data if isinstance(data, (list, tuple)) else [data]:
            try:
                c.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break
            if pause:
                time.sleep(pause)
        if shut:
            c.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while True:
                more = c.recv(65536)
                if not more:
                    return got
                got += more
        except ConnectionResetError:
            return got


def replies(data):
    """Splits HTTP/1.1 answers with a Content-Length; checks that nothing but answers is there."""
    out = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        assert re.match(r"HTTP/1\.[01] \d{3} ", lines[0]), data[:200]
        headers = http.client.HTTPMessage()
        for line in lines[1:]:
            k, _, v = line.partition(":")
            headers[k] = v.strip()
        status = int(lines[0].split()[1])
        n = int(headers.get("Content-Length", len(rest) if lines[0].startswith("HTTP/1.0") or headers["Connection"] == "close" else 0))
        if status != 100:
            r = type("R", (), {})()
            r.status, r.headers, r.body = status, headers, rest[:n].decode("utf-8", "replace")
            r.json = json.loads(r.body) if r.body[:1] == "{" else None
            out.append(r)
        data = rest[n:] if status != 100 else rest
    return out


BODY = b'{"prompt":"a","max_tokens":1}'


def post_head(n, *more, path=b"/v1/completions"):
    return b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % n + b"".join(m + b"\r\n" for m in more) + b"\r\n"


@pytest.mark.sanitizer
def test_bodies_over_the_limit(server):
    """413 in JSON whether the length is announced, announced with a question (Expect), or found out while chunks come."""
    limit = 100 << 10
    for n in (limit + 1, 4 << 20, 1 << 40, 2**63 - 1):
        r, = replies(raw(server, [post_head(n), b" " * 1000], shut=False))
        check_error(r, 413, "body_max")
    r, = replies(raw(server, post_head(limit + 1, b"Expect: 100-continue")))
    check_error(r, 413, "body_max")
    r, = replies(raw(server, [post_head(4 << 20), b" " * (4 << 20)]))  # a client that sends all of it before it reads
    check_error(r, 413, "body_max")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    r, = replies(raw(server, [head] + [b"4000\r\n" + b" " * 0x4000 + b"\r\n"] * 20))
    check_error(r, 413, "body_max")
    r, = replies(raw(server, head + b"FFFFFFFF\r\n" + b" " * 1000))
    check_error(r, 413, "body_max")
    exact = json.dumps({"prompt": "a", "max_tokens": 1, "user": "x" * limit})
    exact = exact.replace("x" * (len(exact) - limit), "", 1)
    assert len(exact) == limit and completion(server, raw=exact).status == 200
    alive(server)


@pytest.mark.sanitizer
def test_bodies_that_come_in_pieces(server):
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [chunked] + [b"1\r\n" + BODY[i:i + 1] + b"\r\n" for i in range(len(BODY))] + [b"0\r\n\r\n"]
    r, = replies(raw(server, pieces))
    assert r.status == 200 and r.json["usage"]["completion_tokens"] == 1
    whole = post_head(len(BODY), b"Connection: close") + BODY
    r, = replies(raw(server, [whole[i:i + 1] for i in range(len(whole))], pause=0.001))
    assert r.status == 200
    r, = replies(raw(server, [post_head(len(BODY), b"Expect: 100-continue", b"Connection: close"), BODY], pause=0.05))
    assert r.status == 200


@pytest.mark.sanitizer
def test_answers_carry_a_request_id(server):
    """The client's own where it is short and printable, else a new one; on every answer, those included that no handler ever sees."""
    for path in ("/health", "/v1/models", "/nothing", "/v1/completions"):
        assert server.get(path, headers={"X-Request-Id": "mine 1!"}).headers["X-Request-Id"] == "mine 1!"
        ids = {server.get(path, headers={"X-Request-Id": i} if i is not None else {}).headers["X-Request-Id"] for i in (None, "", "a" * 129, "a\tb", "\xe4")}
        assert len(ids) == 5 and all(re.fullmatch(r"req-[0-9a-f]{32}", i) for i in ids)
    assert server.get("/health", headers={"X-Request-Id": "a" * 128}).headers["X-Request-Id"] == "a" * 128
    stream = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "stream": True}, headers={"X-Request-Id": "s"})
    assert stream.headers["X-Request-Id"] == "s"
    for data, status in ((post_head(4 << 20, b"X-Request-Id: big"), 413), (b"POST /v1/completions HTTP/1.1\r\nX-Request-Id: big\r\nContent-Length: 10\r\n\r\n{", 408)):
        r, = replies(raw(server, data))
        assert r.status == status and r.headers["X-Request-Id"] == "big"
    for r in replies(raw(server, b"HELLO\r\n\r\n")):
        assert r.headers["X-Request-Id"].startswith("req-")


def test_a_refused_client_that_sends_on_gets_its_answer(server):
    """What it still sends is taken and thrown away for a while, so that no reset takes the answer from it."""
    for head, status in ((post_head(30 << 20), 413), (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: none\r\n\r\n", 400)):
        with socket.create_connection((server.host, server.port), timeout=10) as c:
            c.sendall(head)
            for _ in range(200):  # 12 MB, none of which may fail
                c.sendall(b" " * 65536)
            r, = replies(c.recv(65536))
            check_error(r, status)
            assert c.recv(1) == b""
    alive(server)


@pytest.mark.sanitizer
def test_a_hundred_thousand_messages(demo):
    body = {"messages": [{"role": "user", "content": "a"}] * 100_000, "max_tokens": 1}
    check_error(demo.post("/v1/chat/completions", body), 400, "1024", param="messages")
    body["messages"].append(body["messages"][0])
    check_error(demo.post("/v1/chat/completions", body), 400, "100001", "100000", param="messages")
    body = {"messages": [{"role": "user", "content": "a"}] * 50_000 + [{"role": "user", "content": [{"type": "image_url"}]}]}
    check_error(demo.post("/v1/chat/completions", body), 400, param="messages[50000].content")
    alive(demo)


@pytest.mark.sanitizer
def test_small_bodies_that_want_much_memory(demo):
    """A list of three bytes takes hundreds in memory; a token of one byte takes dozens in an answer."""
    check_error(demo.request("POST", "/tokenize", '{"content": "a", "x": [' + "{}," * 1100000 + "0]}"), 400, "lists and objects")
    assert demo.request("POST", "/tokenize", '{"content": "a", "x": [' + "{}," * 1000000 + "0]}").status == 200
    if not SANITIZED:
        check_error(demo.post("/tokenize", {"content": "~" * 8000000, "with_pieces": True}), 400, "128 MiB")
    alive(demo)


@pytest.mark.sanitizer
def test_a_message_is_continued_at_its_last_place(demo):
    """Contents that overlap themselves and stand in the text before, too: the prompt ends with the last one."""
    for content in ("a", "aa", "aabaa", "abab" * 1000, "a" * 20000 + "b", "b" + "a" * 20000):
        for before in ("x", content, content[:-1], "a" + content + "a", content * 3):
            r = demo.post("/apply-template", {"messages": [{"role": "user", "content": before}, {"role": "assistant", "content": content}],
                                              "continue_final_message": True, "add_generation_prompt": False})
            assert r.status == 200 and r.json["prompt"].endswith("\n" + content) and before in r.json["prompt"][:-len(content)], (content[:20], before[:20])
    alive(demo)


@pytest.mark.sanitizer
def test_requests_that_never_end(server):
    """A request that does not arrive whole within the limit (4 s here) gets 408, however its bytes drip; others are served meanwhile."""
    def drip(data, connect):
        got, start = b"", time.time()
        connect.settimeout(0.2)
        for i in range(1000):  # far longer than the limit
            try:
                connect.sendall(data[i % len(data):i % len(data) + 1] if data else b"")
            except OSError:  # the server closed: what it said before can still be read
                break
            try:
                more = connect.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            got += more
            if not more:
                break
        connect.settimeout(30)
        try:
            while more := connect.recv(65536):
                got += more
        except OSError:
            pass
        return got, time.time() - start
    slow_head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 500
    slow_body = b'{"prompt":"' + b"a" * 500
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        conns = [socket.create_connection((server.host, server.port)) for _ in range(3)]
        conns[1].sendall(post_head(5000))
        conns[2].sendall(post_head(5000) + b"{")
        jobs = [pool.submit(drip, slow_head, conns[0]), pool.submit(drip, slow_body, conns[1]), pool.submit(drip, b"", conns[2])]
        served = 0
        while not all(j.done() for j in jobs):
            alive(server)
            served += 1
        assert served >= 3
        for j in jobs:
            got, took = j.result()
            r, = replies(got)
            check_error(r, 408, "timeout_ms")
            assert 1 < took < 60  # drip() would go on for 200 s
    for c in conns:
        c.close()
    # A connection that says nothing is closed without a word.
    assert raw(server, b"", timeout=180) == b""


@pytest.mark.sanitizer
def test_malformed_http(server):
    for data in (b"\r\n\r\n\r\n", b"HELLO\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
                 b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: nine\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
                 b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n",
                 b"GET / HTTP/1.1\r\nX: " + b"a" * 100000 + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20000 + b"\r\n", b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                 b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", os.urandom(3000)):
        got = raw(server, data)
        for r in replies(got):
            assert 400 <= r.status < 600, (data[:40], r.status)
            check_error(r, r.status)
    alive(server)


@pytest.mark.sanitizer
def test_keep_alive_pipelining_and_head(server):
    conn = http.client.HTTPConnection(server.host, server.port, timeout=180)
    sock = None
    for i in range(20):
        conn.request("POST" if i % 2 else "GET", "/v1/completions" if i % 2 else "/v1/models", BODY.decode() if i % 2 else None)
        r = conn.getresponse()
        assert r.status == 200 and r.read()
        sock = sock or conn.sock
        assert conn.sock is sock, "the connection was not kept"
    conn.request("POST", "/v1/completions", "{")  # an error that was read whole keeps it, too
    r = conn.getresponse()
    assert r.status == 400 and r.read() and conn.sock is sock
    conn.request("HEAD", "/v1/models")
    r = conn.getresponse()
    assert r.status == 200 and r.read() == b""
    conn.request("GET", "/v1/models")
    assert conn.getresponse().read()
    conn.close()
    get = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    rs = replies(raw(server, get * 9 + post_head(len(BODY)) + BODY + get + last))
    assert [r.status for r in rs] == [200] * 12 and rs[9].json["object"] == "text_completion" and rs[11].json["version"]
    r, = replies(raw(server, b"GET /version HTTP/1.0\r\n\r\n"))
    assert r.status == 200 and r.json["version"]
    # Half a request, then the end: nothing is answered, or 400.
    assert all(r.status == 400 for r in replies(raw(server, post_head(100) + b"{", shut=True)))
    alive(server)


@pytest.mark.sanitizer
def test_a_request_ends_where_everybody_sees_it_end(server):
    """RFC 9112, 6.3 and 11.2: behind a proxy that keeps connections, bytes that only one side takes for a request would get its answer to somebody else."""
    inner = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    host = b" HTTP/1.1\r\nHost: localhost\r\n"
    for method, status in ((b"GET", 200), (b"DELETE", 405), (b"OPTIONS", 405)):
        for field, body in ((b"Content-Length: %d" % len(inner), inner), (b"Transfer-Encoding: chunked", b"%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n")):
            r, = replies(raw(server, method + b" /version" + host + field + b"\r\n\r\n" + body))
            assert r.status == status and r.headers["Connection"] == "close", method
    n = b"Content-Length: %d" % len(BODY)
    for fields in (n + b"\r\n" + n, n + b"\r\nContent-Length: 0", n + b"\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", n + b"\r\nTransfer-Encoding: xchunked",
                   n + b"\r\nTransfer-Encoding : chunked", b"Content-Length: +%d" % len(BODY)):
        body = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n" if fields.endswith(b": chunked") and b" :" not in fields else BODY
        r, = replies(raw(server, b"POST /v1/completions" + host + fields + b"\r\n\r\n" + body + inner))
        check_error(r, 413 if b"gzip" in fields else 400)  # that one has no end at all
        assert r.headers["Connection"] == "close", fields
    alive(server)


@pytest.mark.sanitizer
def test_a_client_that_sends_requests_and_reads_nothing(server):
    """Once its answers fill the sockets, what it sends is bounded: 100 MB are not taken."""
    with socket.socket() as c:
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c.settimeout(60)
        c.connect((server.host, server.port))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100):
                c.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 25000)
    alive(server)


@pytest.mark.sanitizer
def test_names_of_other_machines_are_refused_without_a_key(server):
    """DNS rebinding: a web page's own name that points at 127.0.0.1."""
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.evil.example", "", "[::2]", "0.0.0.0", "192.168.0.1"):
        for path in ("/health", "/version", "/v1/models", "/nothing"):
            check_error(server.request("GET", path, headers={"Host": host}), 403, "Host")
        check_error(server.request("POST", "/v1/completions", BODY.decode(), headers={"Host": host}), 403, "Host")
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", f"127.0.0.1:{server.port}", "[::1]:80", "127.8.9.1"):
        assert server.request("GET", "/version", headers={"Host": host}).status == 200, host


ROUTES = [("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/v1/models/default"), ("GET", "/v1/models/other"), ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"),
          ("POST", "/tokenize"), ("POST", "/detokenize"), ("POST", "/apply-template"), ("POST", "/v1/embeddings"), ("POST", "/v1/rerank"), ("POST", "/score"), ("GET", "/nothing"), ("DELETE", "/v1/models"), ("OPTIONS", "/v1/models")]


@pytest.mark.sanitizer
def test_keys_guard_every_route(tmp_path):
    f = tmp_path / "keys"
    f.write_text("# of the team\nsecond-key\r\n\nthird key\n")
    f.chmod(0o600)
    with Server(DEMO, "--host", "0.0.0.0", "--api-key-file", f, env={"RACKLM_API_KEY": "first-key"}) as s:
        s.host = "127.0.0.1"
        for method, path in ROUTES:
            body = "{}" if method == "POST" else None
            for header in (None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer first-keyx", "Bearer first-ke", "Basic first-key", "first-key", "Bearer # of the team",
                           "Bearer " + "a" * 10000, "Bearer first-key second-key"):
                r = s.request(method, path, body, headers={"Authorization": header} if header is not None else {})
                check_error(r, 401, "Authorization")
            for key in ("first-key", "second-key", "third key"):
                assert s.request(method, path, body, headers={"Authorization": "Bearer " + key}).status not in (401, 403)
        assert s.get("/health").status == 200 and s.get("/version").status == 200
        assert s.request("GET", "/v1/models", headers={"Authorization": "bearer  first-key", "Host": "rack.example"}).status == 200
        r = s.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, headers={"Authorization": "Bearer second-key"})
        assert r.status == 200
        # Whoever has no key need not send a body: the answer comes behind the header, in place of "100 Continue", too.
        for more in ((b"Content-Length: 5000",), (b"Content-Length: 5000", b"Authorization: Bearer wrong", b"Expect: 100-continue"), (b"Transfer-Encoding: chunked",)):
            for step in (1, 1000):
                head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + b"".join(m + b"\r\n" for m in more) + b"\r\n"
                r, = replies(raw(s, [head[i:i + step] for i in range(0, len(head), step)]))
                check_error(r, 401, "Authorization")
        # The same for a request behind another one, and for paths that need no key: the connection ends instead of taking the body.
        for step in (30, 1000):
            both = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" + post_head(5000)
            r = replies(raw(s, [both[i:i + step] for i in range(0, len(both), step)], pause=0.2))
            assert r[0].status == 200 and all(x.status == 401 for x in r[1:])
        check_error(replies(raw(s, post_head(5000, path=b"/health")))[0], 401, "Authorization")
        good = post_head(len(BODY), b"Authorization: Bearer first-key", b"Expect: 100-continue", b"Connection: close")
        r, = replies(raw(s, [good, BODY], pause=0.05))
        assert r.status == 200
        for key in ("first-key", "second-key", "third key"):
            assert key not in s.logs()


def test_the_connection_limit(server):
    """At the limit new connections wait; when one ends they are served."""
    held = []
    try:
        for _ in range(60):
            held.append(socket.create_connection((server.host, server.port), timeout=5))
        late = socket.create_connection((server.host, server.port), timeout=0.7)
        late.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with pytest.raises(TimeoutError):
            late.recv(1)
        for c in held:
            c.close()
        late.settimeout(60)
        assert late.recv(100).startswith(b"HTTP/1.1 200")
        late.close()
    finally:
        for c in held:
            c.close()
    alive(server)


def wait_running(s, good, timeout):
    deadline = time.time() + timeout
    while time.time() < deadline:
        if good(s.get("/health").json["replicas"][0]["running"]):
            return
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s")


def wait_for_log(s, text, timeout):
    deadline = time.time() + timeout
    while text not in s.logs():
        assert time.time() < deadline, text
        time.sleep(0.02)


def test_a_client_that_never_reads(server):
    """What it does not read waits in bounded memory: at 16 MiB it is cut off, and its requests with it. Others do not notice."""
    c = socket.create_connection((server.host, server.port))
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    # The log-probabilities of 1,000 prompt tokens are over a megabyte of answer.
    body = json.dumps({"prompt": [5] * 1000, "n": 16, "max_tokens": 1, "prompt_logprobs": 20, "stream": True}).encode()
    c.sendall(post_head(len(body)) + body)
    wait_running(server, lambda n: n > 0, 60)
    alive(server)
    wait_running(server, lambda n: n == 0, 100)
    wait_for_log(server, "does not read its answer: cut off", 60)
    c.close()
    # Bytes without end after a request while its answer runs are cut off.
    body = json.dumps({"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "n": 4}).encode()
    c = socket.create_connection((server.host, server.port), timeout=10)
    c.sendall(post_head(len(body)) + body)
    with pytest.raises(OSError):
        for _ in range(400):
            c.sendall(b"x" * 65536)
    c.close()
    alive(server)


@pytest.mark.sanitizer
@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_at_every_point(server, stream):
    body = json.dumps({"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "stream": stream, "n": 8}).encode()
    request = post_head(len(body)) + body
    for cut in (1, 20, len(request) - len(body), len(request) - 3, len(request)):
        for linger in (False, True):
            c = socket.create_connection((server.host, server.port))
            if linger:  # a reset instead of an orderly end
                c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            c.sendall(request[:cut])
            if cut == len(request):
                wait_running(server, lambda n: n > 0, 60)
            c.close()
            if cut == len(request):
                before = server.metric("racklm:generation_tokens_total")
                wait_running(server, lambda n: n == 0, 60)
                assert server.metric("racklm:generation_tokens_total") - before < 2000, "it ran on after its client had left"
    alive(server)
