"""Several models behind one server: `model` chooses, aliases, what each says of itself, and that none suffers from another's loss.

The demo model stands in for two of them, cut differently; the third is a random model with a vocabulary of its own, so that an answer that came
from the wrong one cannot look right. What they must say comes from deploy/demo/reference.json and from a server that has the random model alone."""
import json
import os
import signal
import subprocess

import pytest
from conftest import BUILD, DEMO, SANITIZED, Server, racklm
from streams import Stream, wait_for, wait_tokens

BEAT = ["--heartbeat-ms", 100, "--heartbeat-timeout-ms", 10000 if SANITIZED else 1000]
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([BUILD / "bin/mkmodel", "tiny-llama", "Q8_0", path], check=True, stdout=subprocess.DEVNULL)
    return path


def ids(s, model, prompt=PROMPT, n=12):
    body = {"prompt": prompt, "max_tokens": n, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    r = s.post("/v1/completions", body if model is None else {"model": model, **body}, timeout=300)
    assert r.status == 200, r.body
    return r.json["choices"][0]["token_ids"], r.json["model"]


@pytest.fixture(scope="module")
def alone(tiny):
    """What the random model and the demo model say when each has a server of its own."""
    with Server(tiny, "--threads", 1) as s:
        random_ids = ids(s, None)[0]
    with Server(DEMO, "--threads", 1) as s:
        return {"tiny": random_ids, "demo": ids(s, None)[0]}


@pytest.fixture(scope="module")
def three(tiny, tmp_path_factory):
    config = tmp_path_factory.mktemp("config") / "racklm.yaml"
    config.write_text(f"""threads: 1
control: {{heartbeat_ms: 100, heartbeat_timeout_ms: {BEAT[3]}}}
models:
- model: {DEMO}
  served_model_name: [wide, chat, gpt-4o]
  tp: 2
- {{model: {DEMO}, served_model_name: deep, pp: 2, ctx: 512}}
- model: {tiny}
  max_seqs: 4
""")
    with Server(f"--config={config}") as s:
        yield s


def test_the_model_field_chooses(three, alone):
    for name, real, says in [("wide", "wide", "demo"), ("chat", "wide", "demo"), ("gpt-4o", "wide", "demo"), ("deep", "deep", "demo"), ("tiny", "tiny", "tiny"),
                             (None, "wide", "demo"), ("default", "wide", "demo"), (DEMO.stem, "wide", "demo")]:
        assert ids(three, name) == (alone[says], real), name
    assert alone["demo"] != alone["tiny"]
    r = three.post("/v1/completions", {"model": "nope", "prompt": PROMPT})
    assert r.status == 404 and r.json["error"]["param"] == "model"
    assert all(f"`{n}`" in r.json["error"]["message"] for n in ["nope", "wide", "chat", "gpt-4o", "deep", "tiny"])


def test_each_has_its_own_tokenizer_template_and_context(three):
    vocab = {m["id"]: m["meta"]["n_vocab"] for m in three.get("/v1/models").json["data"]}
    tokens = {m: three.post("/tokenize", {"model": m, "prompt": PROMPT}).json for m in ["wide", "deep", "tiny"]}
    assert tokens["wide"]["tokens"] == tokens["deep"]["tokens"] != tokens["tiny"]["tokens"]
    assert tokens["wide"]["max_model_len"] == 1024 and tokens["deep"]["max_model_len"] == 512
    for m, t in tokens.items():
        assert PROMPT in three.post("/detokenize", {"model": m, "tokens": t["tokens"]}).json["prompt"]
    last = vocab["wide"] - 1  # an id that the small vocabulary does not have
    assert vocab["tiny"] <= last and three.post("/v1/completions", {"model": "wide", "prompt": [last], "max_tokens": 1}).status == 200
    assert three.post("/v1/completions", {"model": "tiny", "prompt": [last], "max_tokens": 1}).status == 400
    long = [1] * 600
    assert three.post("/v1/completions", {"model": "wide", "prompt": long, "max_tokens": 1}).status == 200
    assert three.post("/v1/completions", {"model": "deep", "prompt": long, "max_tokens": 1}).status == 400
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    assert three.post("/v1/chat/completions", {"model": "chat", **chat}).json["model"] == "wide"


def test_the_list_of_models(three):
    entries = {m["id"]: m for m in three.get("/v1/models").json["data"]}
    assert list(entries) == ["wide", "chat", "gpt-4o", "deep", "tiny"]
    assert [entries[m]["parent"] for m in entries] == [None, "wide", "wide", None, None]
    assert {entries[m]["root"] for m in ["wide", "chat", "deep"]} == {DEMO.stem} and entries["tiny"]["root"] == "tiny"
    assert entries["deep"]["max_model_len"] == 512 and entries["chat"]["max_model_len"] == 1024
    assert three.get("/v1/models/chat").json == entries["chat"]
    assert three.get("/v1/models/default").json == entries["wide"]
    r = three.get("/v1/models/none")
    assert r.status == 404 and "`deep`" in r.json["error"]["message"]


def test_health_metrics_and_the_command_tell_them_apart(three):
    h = three.get("/health")
    assert h.status == 200 and h.json["workers"] == 5
    assert [(m["model"], m["status"], m["workers"]) for m in h.json["models"]] == [("wide", "ok", 2), ("deep", "ok", 2), ("tiny", "ok", 1)]
    ids(three, "chat"), ids(three, "tiny")
    lines = three.get("/metrics").body.splitlines()
    series = [x for x in lines if x.startswith("racklm:workers_ready{")]
    assert [(x.split('"')[1], x.split('"')[3], float(x.split()[-1])) for x in series] == [("wide", "0", 2), ("deep", "0", 2), ("tiny", "0", 1)]
    assert len([x for x in lines if x.startswith("# TYPE racklm:workers_ready")]) == 1
    assert any(x.startswith('racklm:request_success_total{model_name="tiny"') for x in lines) and not any('model_name="chat"' in x for x in lines)
    status = json.loads(three.cli("status", "-o", "json").stdout)
    assert [(m["names"], m["tp"], m["pp"], m["ctx"], m["state"]) for m in status["models"]] == [
        (["wide", "chat", "gpt-4o"], 2, 1, 1024, "ready"), (["deep"], 1, 2, 512, "ready"), (["tiny"], 1, 1, 2048, "ready")]
    workers = three.workers()
    assert [w["model"] for w in workers] == ["wide", "wide", "deep", "deep", "tiny"] and len({w["device"] for w in workers}) == 5
    assert "wide,chat,gpt-4o" in three.cli("status").stdout


@pytest.mark.sanitizer
def test_a_loss_is_felt_by_its_own_model_only(three):
    """What each says undisturbed is what it says beside a loss, and through its own: "wide" is the model of "deep", cut otherwise."""
    n = 160 if SANITIZED else 400
    body = {"prompt": PROMPT, "max_tokens": n, "temperature": 0, "ignore_eos": True}
    before = {m: Stream(three, {**body, "model": m}).result(300)[0] for m in ["deep", "tiny"]}
    for victim in ["wide"] if SANITIZED else ["wide", "tiny"]:
        epochs = {r["model"]: r["epoch"] for r in three.get("/health").json["replicas"]}
        others = [m for m in ["deep", "tiny"] if m != victim]
        own = Stream(three, {**body, "model": victim})  # first: a small model may be through before a large one has begun
        wait_tokens([own], 5)
        streams = {m: Stream(three, {**body, "model": m}) for m in others}
        wait_tokens([*streams.values()], 2)
        os.kill(next(w["pid"] for w in three.workers() if w["model"] == victim), signal.SIGKILL)
        for m, s in streams.items():
            assert s.result(300)[0] == before[m] and s.error is None and s.done, (victim, m, s.error)
        assert own.result(300)[0] == before["tiny" if victim == "tiny" else "deep"] and own.error is None, own.error
        wait_for("all ready again", lambda: three.get("/health").json["status"] == "ok", 60)
        after = {r["model"]: r["epoch"] for r in three.get("/health").json["replicas"]}
        assert after[victim] > epochs[victim] and all(after[m] == epochs[m] for m in after if m != victim)
        assert all(w["restarts"] == 0 for w in three.workers() if w["model"] == "deep")


def test_a_server_goes_on_without_one_of_its_models(tiny, tmp_path):
    """A file that vanishes while it is served: its worker cannot come back, the other model stays, /health says what is wrong."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny.read_bytes())
    with Server(f"gone={copy}", f"stays={DEMO}", "--threads", 1, *BEAT, check=False) as s:
        copy.unlink()
        os.kill(next(w["pid"] for w in s.workers() if w["model"] == "gone"), signal.SIGKILL)
        wait_for("the model is given up", lambda: s.get("/health").json["models"][0]["status"] == "failed", 60)
        h = s.get("/health")
        assert h.status == 200 and h.json["status"] == "degraded" and h.json["message"].startswith("gone: "), h.body
        assert len(ids(s, "stays")[0]) == 12
        r = s.post("/v1/completions", {"model": "gone", "prompt": PROMPT})
        assert r.status == 503 and "copy.gguf" in r.json["error"]["message"], r.body


@pytest.mark.sanitizer
def test_draining_ends_the_streams_of_all(tiny):
    with Server(f"a={DEMO}", f"b={tiny}", "--threads", 1, *BEAT, "--drain-timeout-ms", 60000) as s:
        streams = [Stream(s, {"model": m, "prompt": PROMPT, "max_tokens": 60, "ignore_eos": True, "temperature": 0}) for m in ["a", "b"]]
        wait_tokens(streams, 1)
        s.proc.send_signal(signal.SIGTERM)
        for x in streams:
            assert len(x.result(120)[0]) == 60 and x.done, x.error
        assert s.proc.wait(60) == 0


def test_one_model_takes_names_too():
    with Server(DEMO, "--served-model-name", "main,alias", "--threads", 1) as s:
        assert [m["id"] for m in s.get("/v1/models").json["data"]] == ["main", "alias"]
        assert ids(s, "alias")[1] == "main" and ids(s, DEMO.stem)[1] == "main"


def test_what_cannot_be_served_is_said_before_anything_starts(tiny, tmp_path):
    env = {**os.environ, "RACKLM_STATE_DIR": str(tmp_path / "s"), "RACKLM_RUNTIME_DIR": str(tmp_path / "r")}
    for args, words in [
        ([DEMO, DEMO], ["two models are named", DEMO.stem, "NAME=FILE"]),
        ([f"x={DEMO}", f"x={tiny}"], ["two models are named `x`", str(tiny)]),
        ([f"x,y={DEMO}", f"z,y={tiny}"], ["two models are named `y`"]),
        ([f"x={DEMO}", f"y={tmp_path}/none.gguf"], [f"{tmp_path}/none.gguf", "No such file"]),
        ([f"x={DEMO}", tiny, "--devices", "cpu:0"], ["--devices names 1", "x needs 1", "tiny.gguf needs 1"]),
        ([f"x={DEMO}", tiny, "--served-model-name", "z"], ["served_model_name is given once for 2 models"]),
        ([f"x={DEMO}", tiny, "--shares", "1,2"], ["shares", str(DEMO)]),
        ([f"x={DEMO}", f"y={__file__}"], [os.path.basename(__file__)]),
        ([f"m{i}={DEMO}" for i in range(17)] + ["--replicas", "64"], ["1088 workers", "at most 1024"]),
    ]:
        r = racklm("serve", *args, "--port", "0", env=env, timeout=60)
        assert r.returncode == 1 and all(w in r.stderr for w in words), (args, r.stderr)
        assert r.stderr.count("\n") <= 2, r.stderr
    (tmp_path / "racklm.yaml").write_text(f"models:\n- model: {DEMO}\n- model: {tiny}\n  tpp: 2\n")
    r = racklm("serve", "--config", tmp_path / "racklm.yaml", env=env)
    assert r.returncode != 0 and "racklm.yaml:4:3" in r.stderr and '"tp"' in r.stderr
    (tmp_path / "racklm.yaml").write_text(f"models:\n- {{model: {DEMO}, tp: 2, devices: 'cpu:0'}}\n")
    r = racklm("serve", "--config", tmp_path / "racklm.yaml", "--port", "0", env=env)
    assert r.returncode == 1 and "needs 2 devices, its `devices` names 1" in r.stderr


def test_models_share_a_device_that_both_name(tiny, tmp_path):
    (tmp_path / "racklm.yaml").write_text(f"models:\n- {{model: {DEMO}, served_model_name: a, devices: 'cpu:0'}}\n"
                                          f"- {{model: {DEMO}, served_model_name: b, devices: 'cpu:0'}}\n- model: {tiny}\n")
    with Server(f"--config={tmp_path}/racklm.yaml", "--threads", 1) as s:
        assert [(w["model"], w["device"]) for w in s.workers()] == [("a", "cpu:0"), ("b", "cpu:0"), ("tiny", "cpu:1")]
        assert ids(s, "a")[0] == ids(s, "b")[0] != ids(s, "tiny")[0]


def test_a_model_may_have_a_template_of_its_own(tmp_path):
    """A Jinja file and a tokenizer_config.json, whose texts are known; without one, the file's own. What is wrong with them is said at once."""
    (tmp_path / "a.jinja").write_text("A:{{ messages[0].content }}")
    (tmp_path / "b.json").write_text(json.dumps({"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "B:{{ messages[0].content }}"}]}))
    (tmp_path / "racklm.yaml").write_text(f"threads: 1\nmodels:\n- {{model: {DEMO}, served_model_name: a, chat_template: {tmp_path}/a.jinja}}\n"
                                          f"- {{model: {DEMO}, served_model_name: b, chat_template: {tmp_path}/b.json}}\n- model: {DEMO}\n")
    with Server(f"--config={tmp_path}/racklm.yaml") as s:
        def tokens(model, **body):
            return s.post("/tokenize", {"model": model, **body}).json["tokens"]
        chats = {m: tokens(m, messages=[{"role": "user", "content": "hi"}]) for m in ["a", "b", DEMO.stem]}
        assert chats["a"][-len(tokens("a", prompt="A:hi", add_special_tokens=False)):] == tokens("a", prompt="A:hi", add_special_tokens=False)
        assert chats["b"][-len(tokens("b", prompt="B:hi", add_special_tokens=False)):] == tokens("b", prompt="B:hi", add_special_tokens=False)
        assert len(chats["a"]) == len(chats["b"]) < len(chats[DEMO.stem])
    env = {**os.environ, "RACKLM_STATE_DIR": str(tmp_path / "s"), "RACKLM_RUNTIME_DIR": str(tmp_path / "r")}
    (tmp_path / "bad.jinja").write_text("{% if %}")
    (tmp_path / "bad.json").write_text("{}")
    for name, word in [("bad.jinja", "bad.jinja"), ("bad.json", "has no member"), ("none.jinja", "No such file")]:
        r = racklm("serve", DEMO, "--port", "0", "--chat-template", tmp_path / name, env=env, timeout=60)
        assert r.returncode == 1 and word in r.stderr and name in r.stderr, r.stderr
