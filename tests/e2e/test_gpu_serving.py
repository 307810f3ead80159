"""Emulated-GPU workers behind the API: the model, every split, continuous batching, cancellation, sampling, and what a GPU does when it fails.

What the tokens are is held against the CPU's mathematics (`--backend ref_f32`), teacher-forced: log-probabilities of given ids. Texts of two GPU runs are compared only with
`--deterministic`, which promises the same bits in every batch."""
import subprocess
import time

import pytest
from conftest import BUILD, DEMO, FULL, PATIENCE_S, REFERENCE, SANITIZED, Server
from streams import Stream, wait_for

EMU = BUILD / "emu"
pytestmark = pytest.mark.skipif(SANITIZED or not (EMU / "bin/racklm-worker").exists(), reason="skipped: no emulated GPU worker in this build")
CASE = REFERENCE["files"]["grimm-6m-Q8_0.gguf"]["cases"][0]
IDS = CASE["prompt_ids"] + CASE["greedy_ids"][:18]
GPUS = {"RACKLM_EMU_DEVICES": "4"}
SPLITS = {"tp 1": [], "tp 2": ["--tp", 2], "tp 3": ["--tp", 3], "pp 2": ["--pp", 2], "2 x 2": ["--tp", 2, "--pp", 2]}
PATIENT = ["--heartbeat-timeout-ms", 20000, "--max-seqs", 8]


def serve(*args, env=None, **kw):
    return Server(DEMO, *PATIENT, *args, env={**GPUS, **(env or {})}, programs=EMU / "bin", **kw)


def logprobs(s):
    r = s.complete(IDS, max_tokens=1, prompt_logprobs=0)["choices"][0]["prompt_logprobs"]
    return [next(iter(x.values()))["logprob"] for x in r[1:]]


@pytest.fixture(scope="module")
def right():
    with Server(DEMO, "--backend", "ref_f32", "--kv-type", "f32") as s:
        yield logprobs(s)


@pytest.fixture(scope="module")
def one():
    """One emulated GPU with its results the same in every batch."""
    with serve("--deterministic") as s:
        yield s


@pytest.mark.parametrize("split", SPLITS)
def test_the_model_is_the_model_for_every_split(right, split):
    with serve(*SPLITS[split]) as s:
        got = logprobs(s)
        assert len(got) == len(right) == len(IDS) - 1
        assert max(abs(a - b) for a, b in zip(got, right)) < 0.05
        # Greedy as far as the reference's choices are certain, decoded step after step.
        certain = next((i for i, m in enumerate(CASE["margins"]) if m < 0.05), 8)
        assert s.complete(CASE["prompt_ids"], max_tokens=6, return_token_ids=True)["choices"][0]["token_ids"][:certain] == CASE["greedy_ids"][:certain]
        rows = s.workers()
        assert {w["device"].split()[0] for w in rows} <= {f"cuda:{i}" for i in range(4)}
        assert all("Emulated" in w["backend"] for w in rows)


def forced(s, ids):
    """At each position but the first: (log-probability of the token that follows, {token: log-probability} of the best two)."""
    rows = s.complete(ids, max_tokens=1, prompt_logprobs=2)["choices"][0]["prompt_logprobs"][1:]
    return [(row[str(t)]["logprob"], {int(k): v["logprob"] for k, v in row.items() if v.get("rank", 3) <= 2}) for t, row in zip(ids[1:], rows)]


ARCHITECTURES = {"tiny-llama": "Q8_0", "tiny-qwen2": "Q4_K", "tiny-qwen3": "BF16"}


@pytest.mark.parametrize("arch,split", [(a, split) for a in ARCHITECTURES for split in SPLITS])
def test_a_random_model_of_each_architecture_is_served(tmp_path, arch, split):
    """Teacher-forced on the greedy tokens of the mathematics."""
    path = tmp_path / "m.gguf"
    subprocess.run([BUILD / "bin/mkmodel", arch, ARCHITECTURES[arch], path], check=True, capture_output=True)
    prompt = [(i * 7919 + 13) % 1400 for i in range(24)]
    with Server(path, "--backend", "ref_f32", "--kv-type", "f32", "--ctx", 256) as s:
        ids = prompt + s.complete(prompt, max_tokens=12, ignore_eos=True, return_token_ids=True)["choices"][0]["token_ids"]
        right = forced(s, ids)
    with Server(path, *PATIENT, "--ctx", 256, *SPLITS[split], env=GPUS, programs=EMU / "bin") as s:
        got = forced(s, ids)
    error = (sum((a[0] - b[0]) ** 2 for a, b in zip(right, got)) / len(got)) ** 0.5
    spread = (sum(a[0] ** 2 for a in right) / len(right)) ** 0.5
    assert error < 2e-2 * spread
    sure = 0
    for (_, best), (_, other) in zip(right, got):
        first, second = sorted(best.values(), reverse=True)[:2]
        if first - second > 4 * error:
            sure += 1
            assert max(best, key=best.get) == max(other, key=other.get)
    assert sure > len(ids) // 2


KINDS = [{"temperature": 0}, {"temperature": 1}, {"top_p": 0.9, "min_p": 0.01}, {"repetition_penalty": 1.2, "frequency_penalty": 0.2}, {"top_k": 20, "logprobs": 3},
         {"dry_multiplier": 0.8, "temperature": 0}, {"mirostat": 2, "mirostat_tau": 4}, {"typical_p": 0.9, "xtc_probability": 0.5}, {"bad_words": [" the"], "temperature": 0},
         {"logit_bias": {"258": -100}, "temperature": 0}]


def body(i):
    return {"prompt": f"Tale {i}. Once upon a time", "seed": i, "temperature": 0.9, "max_tokens": 12, "ignore_eos": True, "logprobs": 1, **KINDS[i % len(KINDS)]}


def test_streams_together_are_what_they_are_alone(one):
    """Continuous batching: ten streams with every kind of sampling come and go beside each other; each has the bits that it has alone."""
    together = [Stream(one, body(i)) for i in range(len(KINDS))]
    results = [x.result(300) for x in together]
    for i, (ids, text, lps, finish) in enumerate(results):
        assert together[i].error is None and len(ids) == 12 and finish == "length", together[i].error
    for i in range(len(KINDS)) if FULL else (1, 3, 5, 7):
        alone = Stream(one, body(i)).result(300)
        assert alone == results[i], f"stream {i}: {alone[0]} alone, {results[i][0]} together"
    the = one.post("/tokenize", {"prompt": " the", "add_special_tokens": False}).json["tokens"]
    assert len(the) == 1 and the[0] not in results[8][0] and 258 not in results[9][0]


def test_embeddings_of_any_length_over_two_gpus():
    """One token and many; the state that rank 0 answers with is made by both."""
    with Server(DEMO, "--backend", "ref_f32", "--kv-type", "f32") as s, serve("--deterministic", "--tp", 2) as g:
        for n in (1, 3, 4, 20):
            body = {"model": "default", "input": IDS[:n]}
            a, b = (x.post("/v1/embeddings", body).json["data"][0]["embedding"] for x in (s, g))
            assert len(a) == len(b) and sum(x * y for x, y in zip(a, b)) > 0.999


def test_a_client_that_leaves_gives_its_blocks_back(one):
    streams = [Stream(one, {**body(1), "max_tokens": 900}) for _ in range(3)]
    wait_for("all three run", lambda: all(len(x.ids) > 2 for x in streams), PATIENCE_S)
    assert one.metric("racklm:kv_cache_usage_perc") > 0
    for x in streams:
        x.close()
    wait_for("their blocks are free", lambda: one.metric("racklm:kv_cache_usage_perc") == 0, PATIENCE_S)
    assert one.complete("Once", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_the_sampler_of_the_gpu_is_the_samplers_of_all():
    """The same logits give the same token on a CPU and a GPU (tests/gpu/test_sample.c); here, that the served GPU uses what a request sets: a seed repeats, another does not."""
    with serve("--deterministic", "--tp", 2) as s:
        def draw(seed):
            return s.complete("Once upon a time", max_tokens=10, temperature=1.5, seed=seed, ignore_eos=True, return_token_ids=True)["choices"][0]["token_ids"]
        assert draw(1) == draw(1) != draw(2)


# ---- a GPU that fails

def text_of_failure(s):
    wait_for("serve ends", lambda: s.proc.poll() is not None, PATIENCE_S)
    return s.proc.returncode, s.logs()


@pytest.mark.parametrize("fault,says", [("nodriver", "driver"), ("olddriver", "driver"), ("nodevice", "no GPU"), ("oom@1", "memory")])
def test_what_cannot_start_says_why_and_ends(fault, says):
    with serve("--devices", "cuda:0", env={"RACKLM_EMU_FAULT": fault}, wait=False, check=False) as s:
        code, log = text_of_failure(s)
        assert code != 0
        assert says in log.splitlines()[-1] or any(says in line for line in log.splitlines() if "error" in line.lower()), log[-2000:]


def test_a_model_that_is_too_big_says_how_much_is_missing():
    with serve("--devices", "cuda:0", env={"RACKLM_EMU_MEMORY": "4M"}, wait=False, check=False) as s:
        code, log = text_of_failure(s)
        assert code != 0 and "missing" in log, log[-2000:]


@pytest.mark.parametrize("split,fault", [([], "illegal@900"), (["--tp", 2], "launch@900:1"), (["--pp", 2], "ecc@500:1")])
def test_a_stream_survives_a_gpu_that_fails_in_service(split, fault):
    """Every worker process of the GPU fails after so many kernels: the stream has to outlive that, more than once if it must."""
    with serve("--deterministic", *split, "--recover-timeout-ms", 60000) as s:
        expected = Stream(s, {**body(0), "max_tokens": 16}).result(300)
    with serve("--deterministic", *split, "--recover-timeout-ms", 60000, env={"RACKLM_EMU_FAULT": fault}) as s:
        x = Stream(s, {**body(0), "max_tokens": 16})
        got = x.result(300)
        assert x.error is None, x.error
        assert got == expected
        log = s.logs()
        assert "status=5" in log, "the worker left with the exit code of a failed GPU"
        assert any(w["restarts"] for w in s.workers())


def test_a_kernel_that_never_ends_is_given_up():
    with serve("--step-timeout-ms", 4000, "--recover-timeout-ms", 60000, env={"RACKLM_EMU_FAULT": "hang@1000"}) as s:
        x = Stream(s, {**body(0), "max_tokens": 10})
        x.result(300)
        assert x.error is None and len(x.ids) == 10, x.error


def test_a_communicator_that_never_comes_is_given_up():
    with serve("--tp", 2, "--step-timeout-ms", 3000, env={"RACKLM_EMU_NCCL_INIT": "hang"}, wait=False, check=False) as s:
        begin = time.monotonic()
        wait_for("the deadline is said", lambda: "deadline" in s.logs(), PATIENCE_S)
        assert time.monotonic() - begin > 2.5
        s.stop()


def test_gpus_of_two_types_do_not_share_a_model():
    with serve("--tp", 2, "--devices", "cuda:0,cuda:1", env={"RACKLM_EMU_NVML": "name=Emulated A|Emulated B"}, wait=False, check=False) as s:
        code, log = text_of_failure(s)
        assert code != 0 and "Emulated A" in log and "Emulated B" in log, log[-2000:]
