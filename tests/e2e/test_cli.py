"""The racklm command as people and scripts use it: its output, its exit codes, its progress bars. Perplexities and prompt ids come from
deploy/demo/reference.json (transformers, float32)."""
import http.server
import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time

import pytest
from conftest import BUILD, DEMO, REFERENCE, TOP, Server, racklm

COMMANDS = ["serve", "run", "perplexity", "status", "workers", "show", "tokenize", "detokenize", "template", "bench model", "bench serve", "key", "version", "man"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    d = tmp_path_factory.mktemp("c")
    return {**os.environ, "RACKLM_STATE_DIR": str(d / "state"), "RACKLM_RUNTIME_DIR": str(d / "run")}


@pytest.fixture(scope="module")
def server():
    with Server(DEMO, "--tp", "2", "--pp", "2") as s:
        yield s


def usage_error(*args, words=(), env=None):
    r = racklm(*args, env=env or os.environ)
    assert r.returncode == 2 and r.stdout == "", (args, r)
    assert len(r.stderr.splitlines()) == 1 and "--help" in r.stderr, (args, r.stderr)
    for w in words:
        assert w in r.stderr, (w, r.stderr)


def test_help_everywhere(home):
    top = racklm("--help")
    assert top.returncode == 0 and top.stderr == ""
    assert racklm("help").stdout == racklm("-h").stdout == top.stdout
    for c in COMMANDS:
        assert f"racklm {c}" in top.stdout
        for flag in ("--help", "-h"):
            r = racklm(*c.split(), flag, env=home)
            assert r.returncode == 0 and r.stderr == "" and r.stdout.startswith(f"racklm {c}"), (c, r)
    flags = racklm("serve", "--help").stdout
    for f in ("--tp", "--pp", "--replicas", "--devices", "--ctx", "--host", "--port", "--api-key", "--api-key-file", "--threads", "--max-seqs", "--kv-memory", "--kv-type", "--queue-max"):
        assert re.search(rf"^ +{f}\b", flags, re.M), f
    for binary in ("racklm-coordinator", "racklm-worker"):
        r = subprocess.run([BUILD / "bin" / binary, "--help"], capture_output=True, text=True, timeout=20)
        assert r.returncode == 0 and "--" in r.stdout
    assert not os.path.exists(home["RACKLM_STATE_DIR"])


def test_version_and_man():
    version = re.search(r"project\(racklm VERSION ([\d.]+)", (TOP / "CMakeLists.txt").read_text()).group(1)
    assert racklm("version").stdout == racklm("--version").stdout == f"racklm {version}\n"
    page = racklm("man").stdout
    assert page.startswith(".TH RACKLM 1") and ".SH OPTIONS" in page
    for c in COMMANDS:
        assert f".B racklm".split()[1] and c in page
    rows = re.findall(r"^OPT\((\w+),", (TOP / "base/options.def").read_text(), re.M)
    plain = page.replace("\\-", "-")
    for row in rows:
        if row != "parent_fd":
            assert "--" + row.replace("_", "-") in plain, row
    try:
        r = subprocess.run(["groff", "-man", "-Tascii", "-ww"], input=page, capture_output=True, text=True)
        assert r.returncode == 0 and r.stderr == "", r.stderr
    except FileNotFoundError:
        pass


def test_wrong_usage_is_one_line_and_exit_2(home):
    r = racklm()
    assert r.returncode == 2 and r.stdout == "" and "racklm serve" in r.stderr
    for args, words in ((["srve"], ["srve"]), (["bench"], ["bench"]), (["run"], ["model"]), (["run", DEMO, "a", "b"], ["quotes"]), (["run", DEMO, "a", "--temperature", "hot"], ["hot"]),
                        (["run", DEMO, "a", "--seed"], ["--seed"]), (["perplexity", DEMO], ["text"]), (["perplexity", DEMO, "a", "--window", "x"], ["--window"]),
                        (["show"], ["GGUF"]), (["show", DEMO, "--tp", "a"], ["--tp"]), (["show", DEMO, "--no-such"], ["--no-such"]), (["status", "--tp", "2"], ["--tp"]),
                        (["tokenize"], ["GGUF"]), (["detokenize", "a", "b"], ["GGUF"]), (["tokenize", DEMO, "--idz"], ["--idz"]), (["status", "-o", "xml"], ["xml", "json"]), (["workers", "here"], ["here"]), (["status", "here"], ["here"]), (["key"], ["peer"]), (["key", "x", "--role", "king"], ["king", "viewer"]),
                        (["bench", "model"], ["GGUF"]), (["bench", "model", DEMO, "-n", "1"], ["-n"]), (["bench", "serve"], ["--url"]), (["bench", "serve", "--url", "http://x", "--requests", "0"], ["--requests"]),
                        (["bench", "model", DEMO, "-o", "xml"], ["xml"]), (["perplexity", DEMO, "a", "-o", "xml"], ["xml"]), (["version", "x"], ["x"])):
        usage_error(*args, words=words, env=home)


@pytest.mark.sanitizer
def test_show_tells_what_the_file_is(home):
    r = racklm("show", DEMO, "-o", "json", env=home)
    assert r.returncode == 0 and r.stderr == ""
    j = json.loads(r.stdout)
    sys_path = pytest.importorskip("gguf")
    reader = sys_path.GGUFReader(DEMO)
    params = sum(int(t.n_elements) for t in reader.tensors)
    assert j["architecture"] == "llama" and j["parameters"] == params and j["tensors"] == len(reader.tensors) and j["file_bytes"] == DEMO.stat().st_size
    assert sum(q["bytes"] for q in j["quantisations"].values()) == sum(int(t.n_bytes) for t in reader.tensors)
    assert {k: q["tensors"] for k, q in j["quantisations"].items()} == {k: sum(t.tensor_type.name == k for t in reader.tensors) for k in j["quantisations"]}
    field = {f: reader.fields[f].contents() for f in reader.fields}
    assert (j["context"], j["layers"], j["dim"], j["heads"], j["kv_heads"]) == tuple(
        field["llama." + k] for k in ("context_length", "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv"))
    assert j["chat_template"] == field["tokenizer.chat_template"] and j["vocab"] == len(field["tokenizer.ggml.tokens"])
    text = racklm("show", DEMO, env=home).stdout
    assert "llama" in text and str(params) in text and "Q8_0" in text
    assert racklm("show", DEMO, "--template", env=home).stdout == field["tokenizer.chat_template"]


def test_show_counts_the_bytes_of_every_shard(home):
    whole = json.loads(racklm("show", DEMO, "-o", "json", env=home).stdout)["shards"]
    assert len(whole) == 1
    for tp, pp, more in ((2, 1, []), (1, 3, []), (3, 2, []), (2, 1, ["--shares", "3,1"])):
        j = json.loads(racklm("show", DEMO, "-o", "json", "--tp", tp, "--pp", pp, *more, env=home).stdout)
        assert [(s["stage"], s["tp_rank"]) for s in j["shards"]] == [(i // tp, i % tp) for i in range(tp * pp)]
        layers = [s["layers"] for s in j["shards"] if s["tp_rank"] == 0]
        assert layers[0][0] == 0 and layers[-1][1] == j["layers"] and all(a[1] == b[0] for a, b in zip(layers, layers[1:]))
        total = sum(s["weights_bytes"] for s in j["shards"])
        norms = 4 * j["dim"] * (2 * j["layers"] + 1)
        tied = pp > 1  # the embedding stands on the first stage and, where it is the head too, on the last
        assert whole[0]["weights_bytes"] <= total + 1 and total <= whole[0]["weights_bytes"] * (2 if tied else 1) + tp * pp * norms + MIB
        if more:
            assert j["shards"][0]["weights_bytes"] > 1.5 * j["shards"][1]["weights_bytes"]


@pytest.mark.sanitizer
def test_run_answers_and_a_seed_repeats(home):
    first = racklm("run", DEMO, "Tell me a tale.", "--seed", 7, "--max-tokens", 24, "--stats", env=home)
    assert first.returncode == 0 and first.stdout.strip(), first.stderr
    assert re.search(r"prompt \d+ tokens .* tokens/s\), answer 24 tokens|prompt \d+ tokens .*, answer \d+ tokens", first.stderr)
    assert "\r" not in first.stdout + first.stderr and "\x1b" not in first.stdout + first.stderr
    again = racklm("run", DEMO, "Tell me a tale.", "--seed", 7, "--max-tokens", 24, "--tp", 2, env=home)
    assert again.stdout == first.stdout and again.stderr == ""
    assert racklm("run", DEMO, "Tell me a tale.", "--seed", 8, "--max-tokens", 24, env=home).stdout != first.stdout


def test_run_with_a_server_that_runs(server):
    want = server.complete("Once upon a time", max_tokens=20)["choices"][0]["text"]
    r = racklm("run", "--url", server.url, "--raw", "Once upon a time", "--temperature", 0, "--max-tokens", 20)
    assert r.returncode == 0 and r.stdout == want + "\n" and r.stderr == ""
    assert racklm("run", "--url", server.url + "/v1/", "--raw", "Once upon a time", "--temperature", 0, "--max-tokens", 20).stdout == r.stdout
    piped = subprocess.run([BUILD / "bin/racklm", "run", "--url", server.url, "--raw", "--temperature", "0", "--max-tokens", "20"], input="Once upon a time\n", capture_output=True, text=True,
                           timeout=180)
    assert piped.stdout == r.stdout
    body = {"messages": [{"role": "system", "content": "You tell tales."}, {"role": "user", "content": "A fox?"}], "temperature": 0, "max_tokens": 12}
    want = server.post("/v1/chat/completions", body).json["choices"][0]["message"]["content"]
    r = racklm("run", "--url", server.url, "--system", "You tell tales.", "A fox?", "--temperature", 0, "--max-tokens", 12)
    assert r.stdout == want + "\n"
    # What the server refuses is told with its words; so is a server that is not there.
    r = racklm("run", "--url", server.url, "A fox?", "--temperature", 9)
    assert r.returncode == 1 and len(r.stderr.splitlines()) == 1 and "temperature" in r.stderr
    r = racklm("run", "--url", "http://127.0.0.1:9", "A fox?")
    assert r.returncode == 1 and len(r.stderr.splitlines()) == 1 and "127.0.0.1" in r.stderr


def test_perplexity_is_that_of_the_reference(home):
    want = REFERENCE["files"][DEMO.name]["perplexity"]
    r = racklm("perplexity", DEMO, TOP / "deploy/demo/heldout.txt", "-o", "json", env=home, timeout=300)
    assert r.returncode == 0, r.stderr
    j = json.loads(r.stdout)
    assert j["tokens"] == REFERENCE["files"][DEMO.name]["positions"] and j["windows"] == j["tokens"] // 511
    assert abs(j["perplexity"] / want - 1) < 0.01, (j, want)
    r = racklm("perplexity", DEMO, "/absent.txt", env=home)
    assert r.returncode == 1 and len(r.stderr.splitlines()) == 1 and "/absent.txt" in r.stderr


@pytest.mark.sanitizer
def test_status_and_workers(server):
    j = json.loads(server.cli("status", "-o", "json").stdout)
    assert (j["tp"], j["pp"], j["ctx"], j["url"]) == (2, 2, 1024, server.url) and j["model"] == "grimm-6m-Q8_0"
    assert [r["state"] for r in j["replicas"]] == ["ready"] and j["replicas"][0]["kv_blocks"] > 0 and j["replicas"][0]["kv_blocks_used"] == 0
    assert len(j["nodes"]) == 1 and len(j["nodes"][0]["devices"]) == 4
    w = server.workers()
    assert sorted((x["stage"], x["tp_rank"]) for x in w) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    shards = {(s["stage"], s["tp_rank"]): s for s in json.loads(racklm("show", DEMO, "-o", "json", "--tp", 2, "--pp", 2).stdout)["shards"]}
    for x in w:
        shard = shards[x["stage"], x["tp_rank"]]
        assert x["state"] == "ready" and x["layers"] == shard["layers"] and x["restarts"] == 0 and x["heartbeat_age_ms"] < 60000
        assert x["weights_bytes_planned"] == shard["weights_bytes"]
        assert os.path.exists(f"/proc/{x['pid']}") and x["pid"] in server.pids()
    text = server.cli("workers").stdout.splitlines()
    assert len(text) == 5 and text[0].split()[:4] == ["MODEL", "REPLICA", "STAGE", "RANK"] and "ready" in text[1]
    text = server.cli("status").stdout
    assert server.url in text and "ready" in text
    nobody = racklm("status", env={**os.environ, "RACKLM_STATE_DIR": str(server.dir / "none"), "RACKLM_RUNTIME_DIR": str(server.dir / "none-run")})
    assert nobody.returncode == 1 and len(nobody.stderr.splitlines()) == 1


@pytest.mark.sanitizer
def test_key_makes_files_for_its_owner_only(home):
    r = racklm("key", "host2", env=home)
    path = r.stdout.strip()
    assert r.returncode == 0 and path.endswith("keys/host2.key") and os.stat(path).st_mode & 0o777 == 0o600
    assert "worker" in open(path).read()
    for name in ("host2", "../x", "", ".x", "a b", "x" * 64):
        r = racklm("key", name, env=home)
        assert r.returncode == 1 and len(r.stderr.splitlines()) == 1, (name, r)


def test_bench_model_compares_with_the_memory(home):
    r = racklm("bench", "model", DEMO, "-p", "64", "-n", "16", "-c", "1,4", "-d", "0,96", "-r", "1", "--kv-type", "f32", "-o", "json", env=home)
    assert r.returncode == 0, r.stderr
    j = json.loads(r.stdout)
    assert j["read_gbs"] > 0
    assert [(t["test"], t["tokens"], t["sequences"], t["depth"]) for t in j["tests"]] == [("prompt", 64, 1, 0)] + [("generate", 16, c, d) for d in (0, 96) for c in (1, 4)]
    for t in j["tests"]:
        assert t["tokens_per_s"] > 0 and t["gflops"] > 0
    # A token reads the weights, which the sequences of a step share, and the keys and values of its own positions: a number of bytes for each that all tests agree on.
    kv = [(t["gbs"] * 1e9 / t["tokens_per_s"] - j["weights_bytes"] / t["sequences"]) / (t["depth"] + t["tokens"] / 2) for t in j["tests"][1:]]
    position = 6 * 2 * 4 * 32 * 4 # the demo model: 6 layers, keys and values, 4 heads of 32, fp32
    for t, k in zip(j["tests"][1:], kv):
        assert abs(k - position) < 0.02 * position + 0.001e9 / t["tokens_per_s"] / (t["depth"] + t["tokens"] / 2), (kv, position)
        assert abs(t["read_share"] - t["gbs"] / j["read_gbs"]) < 0.01
    r = racklm("bench", "model", DEMO, "-p", "0", "-n", "8", "-c", "2", "-d", "16", "-r", "1", env=home)
    assert r.returncode == 0 and "generate 8 x 2 at 16" in r.stdout and "prompt" not in r.stdout, r
    for args, word in ((["-c", "0"], "-c"), (["-c", "65", "--max-seqs", "100"], "at most 64"), (["-c", "9", "--max-seqs", "8"], "at most 8"), (["-d", "-1"], "-d"), (["-n", ",".join(["8"] * 16), "-c", ",".join(["1"] * 16), "-d", "0,1"], "at most 256")):
        r = racklm("bench", "model", DEMO, *args, env=home)
        assert r.returncode == 2 and word in r.stderr, r


def test_bench_serve_measures_any_server(server):
    before = sum(w["steps"] for w in server.workers())
    r = racklm("bench", "serve", "--url", server.url, "--requests", 6, "--concurrency", 3, "--prompt-tokens", 20, "--max-tokens", 8, "--ignore-eos", "-o", "json")
    assert r.returncode == 0, r.stderr
    j = json.loads(r.stdout)
    text = json.dumps(j)
    for word in ("p50", "p90", "p99", "ttft"):
        assert word in text, j
    assert sum(w["steps"] for w in server.workers()) > before
    for extra in ([], ["--rate", 50]):
        t = racklm("bench", "serve", "--url", server.url, "--requests", 4, "--prompt-tokens", 10, "--max-tokens", 4, *extra)
        assert t.returncode == 0 and "p99" in t.stdout.lower(), t
    r = racklm("bench", "serve", "--url", "http://127.0.0.1:9", "--requests", 2)
    assert r.returncode == 1 and len(r.stderr.splitlines()) == 1


def test_two_servers_on_one_machine(server, tmp_path):
    """The same state and runtime directories, as one user has them: each keeps its workers, its streams and its control socket."""
    with Server(DEMO, "--name", "second", env={k: server.env[k] for k in ("RACKLM_STATE_DIR", "RACKLM_RUNTIME_DIR", "XDG_STATE_HOME")}) as s:
        assert s.port != server.port
        a, b = server.complete(max_tokens=16)["choices"][0]["text"], s.complete(max_tokens=16)["choices"][0]["text"]
        assert a == b and s.get("/v1/models").json["data"][0]["id"] == "second"
        assert json.loads(s.cli("status", "-o", "json").stdout)["model"] == "second"  # the newest
    assert server.complete(max_tokens=16)["choices"][0]["text"] == a
    assert json.loads(server.cli("status", "-o", "json").stdout)["model"] == "grimm-6m-Q8_0"


def under_pty(args, env, until=None, keys=()):
    """Runs a command with a terminal; returns its exit code and what the terminal showed."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(args[0], [str(a) for a in args], env)
    shown, end, keys = b"", time.time() + 180, list(keys)
    while time.time() < end:
        if select.select([fd], [], [], 0.2)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
        if until and until in shown:
            os.kill(pid, 15)
            until = None
        if keys and keys[0][0] in shown:
            os.write(fd, keys.pop(0)[1])
            shown += b"\x00"  # what comes now is another line
    _, status = os.waitpid(pid, 0)
    os.close(fd)
    return os.waitstatus_to_exitcode(status), shown.decode("utf-8", "replace")


def left_of(home):
    """The processes that work in this state directory."""
    found = []
    for p in os.listdir("/proc"):
        try:
            with open(f"/proc/{p}/environ", "rb") as f:
                if p.isdigit() and home["RACKLM_STATE_DIR"].encode() in f.read():
                    found.append(int(p))
        except OSError:
            pass
    return found


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_run_is_interrupted_by_signals(home, sig):
    p = subprocess.Popen([BUILD / "bin/racklm", "run", DEMO, "--raw", "Once upon a time", "--temperature", "0", "--max-tokens", "1000"], env=home,
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         preexec_fn=lambda: signal.signal(sig, signal.SIG_DFL))  # whoever runs the tests in the background ignores SIGINT
    p.stdout.read(20)
    p.send_signal(sig)
    assert p.wait(60) == -sig
    p.stdout.close()
    deadline = time.time() + 60
    while left_of(home) and time.time() < deadline:
        time.sleep(0.05)
    assert left_of(home) == []


def test_run_stops_when_nobody_reads(server):
    p = subprocess.Popen([BUILD / "bin/racklm", "run", "--url", server.url, "--raw", "Once upon a time", "--temperature", "0", "--max-tokens", "900"],
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.read(20)
    p.stdout.close()
    assert p.wait(60) == 1 and p.stderr.read() == "racklm run: cannot write the answer\n"
    p.stderr.close()


def test_run_tells_the_error_of_a_stream_once():
    class Failing(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"choices":[{"delta":{"content":"So "}}]}\n\ndata: {"error":{"message":"a worker is lost"}}\n\n')

        def log_message(self, *_):
            pass
    with http.server.HTTPServer(("127.0.0.1", 0), Failing) as s:
        threading.Thread(target=s.handle_request, daemon=True).start()
        r = racklm("run", "--url", f"http://127.0.0.1:{s.server_port}", "Tell me.")
    assert r.returncode == 1 and r.stdout == "So \n" and r.stderr == "racklm run: a worker is lost\n", r


def test_progress_only_on_a_terminal(home):
    code, shown = under_pty([str(BUILD / "bin/racklm"), "run", str(DEMO), "Tell me a tale.", "--seed", "7", "--max-tokens", "8"], home)
    assert code == 0 and re.search(r"\r\x1b\[K\w+ +\[[#.]{30}\] +\d+%", shown), repr(shown)
    answer = shown.rsplit("\x1b[K", 1)[1]
    assert answer.replace("\r\n", "\n") == racklm("run", DEMO, "Tell me a tale.", "--seed", 7, "--max-tokens", 8, env=home).stdout
    code, shown = under_pty([str(BUILD / "bin/racklm"), "serve", str(DEMO), "--port", "0"], home, until=b"log: ")
    assert code == 0 and "[K" in shown and " at http://127.0.0.1:" in shown
    assert " INFO " not in shown  # the log of the processes went to a file


def test_chat_on_a_terminal(server):
    env = {**os.environ, "TERM": "xterm"}
    code, shown = under_pty([str(BUILD / "bin/racklm"), "run", "--url", server.url, "--max-tokens", "6", "--temperature", "0", "--stats"], env,
                            keys=[(b"> ", b"Who are you?\n"), (b"tokens/s)", b"\n")])
    assert code == 0 and "Chat:" in shown and "answer 6 tokens" in shown, shown


def test_a_flag_beats_a_variable():
    with Server(DEMO, "--ctx", "256", env={"RACKLM_CTX": "128", "RACKLM_SERVED_MODEL_NAME": "variable"}) as s:
        model = s.get("/v1/models").json["data"][0]
    assert (model["id"], model["max_model_len"]) == ("variable", 256)


def test_run_without_any_prompt(home):
    r = racklm("run", DEMO, env=home, stdin=subprocess.DEVNULL)
    assert r.returncode == 2 and "no prompt" in r.stderr
