"""Text and log-probabilities do not depend on how a model is split, on threads, on chunks, nor on what runs beside it: not nearly equal, the same bits.

Each case is a server of its own whose answer must equal that of one worker with one thread. Log-probabilities travel as the shortest decimal of a float32's exact
value, so equal JSON numbers are equal bits; that they are float32 values is checked, too, and that the comparison can tell: another type of KV cache must differ."""
import itertools
import struct

import pytest
from conftest import DEMO, FULL, REFERENCE, SANITIZED, TOP, Server
from streams import Stream, wait_for

TOKENS = 64 if SANITIZED else 256
PATIENT = ["--heartbeat-timeout-ms", 20000] if SANITIZED else []  # a layer takes seconds there
CASE = REFERENCE["files"]["grimm-6m-Q8_0.gguf"]["cases"][0]
HELDOUT = (TOP / "deploy/demo/heldout.txt").read_text()

SHORT = [
    ("threads 2", ["--threads", 2]),
    ("tp 2", ["--tp", 2]),
    ("tp 3", ["--tp", 3]),
    ("tp 4", ["--tp", 4]),
    ("pp 2", ["--pp", 2]),
    ("pp 3", ["--pp", 3]),
    ("tp 2 x pp 2", ["--tp", 2, "--pp", 2]),
    ("shares 3,1", ["--tp", 2, "--shares", "3,1"]),
    ("layers 1,5", ["--pp", 2, "--layers", "1,5"]),
    ("chunks of 1", ["--prefill-chunk", 1]),
    ("chunks of 7", ["--prefill-chunk", 7]),
    ("chunks of 64, tp 2, threads 2", ["--prefill-chunk", 64, "--tp", 2, "--threads", 2]),
]


def full_matrix():
    splits = [["--tp", 1], ["--tp", 2], ["--tp", 3], ["--tp", 4], ["--pp", 2], ["--pp", 3], ["--tp", 2, "--pp", 2], ["--tp", 2, "--shares", "3,1"],
              ["--pp", 2, "--layers", "1,5"], ["--tp", 3, "--shares", "1,2,1", "--pp", 2]]
    return [(" ".join(map(str, [*s, "threads", t, "chunk", c])), [*s, "--threads", t, "--prefill-chunk", c])
            for s, t, c in itertools.product(splits, (1, 2), (0, 1, 7, 64))]


CONFIGS = SHORT + (full_matrix() if FULL else [])


def answer(server, prompt, n=TOKENS):
    choice = server.complete(prompt, max_tokens=n, ignore_eos=True, logprobs=5, return_token_ids=True)["choices"][0]
    assert len(choice["token_ids"]) == n and choice["finish_reason"] == "length"
    return {"ids": choice["token_ids"], "text": choice["text"], "logprobs": choice["logprobs"]}


def assert_float32(values):
    for v in values:
        assert struct.unpack("<f", struct.pack("<f", v))[0] == v, f"{v!r} is not a float32"


@pytest.fixture(scope="module")
def base():
    """One worker, one thread, the whole prompt in one chunk; with what it says of a prompt and of one that goes on with its own answer."""
    with Server(DEMO, "--threads", 1, "--prefill-chunk", 512, *PATIENT) as s:
        prompt = s.post("/tokenize", {"prompt": HELDOUT}).json["tokens"][:200]
        a = answer(s, prompt)
        assert_float32(a["logprobs"]["token_logprobs"])
        assert len(set(a["logprobs"]["token_logprobs"])) > TOKENS // 2  # not a constant
        yield {"prompt": prompt, "answer": a}


def check(server, base):
    got = answer(server, base["prompt"])
    assert got["ids"] == base["answer"]["ids"]
    assert got["logprobs"] == base["answer"]["logprobs"]
    assert got["text"] == base["answer"]["text"]


def test_the_base_is_the_model_of_the_reference(base):
    """What all others are compared with is right in itself: the reference's greedy text as far as its choices are certain."""
    with Server(DEMO, "--threads", 1) as s:
        certain = next((i for i, m in enumerate(CASE["margins"]) if m < 0.15), len(CASE["margins"]))
        assert certain > 0 and answer(s, CASE["prompt_ids"])["ids"][:certain] == CASE["greedy_ids"][:certain]


@pytest.mark.parametrize("args", [pytest.param(a, id=n, marks=[pytest.mark.sanitizer] if n in ("tp 3", "tp 2 x pp 2") else []) for n, a in CONFIGS])
def test_the_same_bits_for_every_split(base, args):
    with Server(DEMO, *PATIENT, *(args if "--threads" in args else [*args, "--threads", 1])) as s:
        check(s, base)


def test_the_same_bits_among_31_other_streams(base):
    """Also for requests that come one after another into a busy server, so that prefill and decode share steps."""
    with Server(DEMO, "--tp", 2, "--max-seqs", 32) as s:
        others = [Stream(s, {"prompt": HELDOUT[40 * i:40 * i + 400], "max_tokens": 800, "ignore_eos": True, "temperature": 1, "seed": i})
                  for i in range(31)]
        wait_for("31 running streams", lambda: s.get("/health").json["replicas"][0]["running"] >= 31)
        check(s, base)
        assert s.get("/health").json["replicas"][0]["running"] == 31  # it was among the others to the end
        for o in others:
            o.close()


@pytest.mark.parametrize("args", [["--threads", 1], ["--tp", 2, "--prefill-chunk", 7]], ids=["one worker", "tp 2, chunks of 7"])
def test_decoding_and_reading_a_prompt_give_the_same_bits(base, args):
    """The log-probability of a token is the same whether it was generated or stood in the prompt."""
    with Server(DEMO, *args) as s:
        n = len(base["prompt"])
        whole = base["prompt"] + base["answer"]["ids"]
        echo = s.complete(whole, max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]["token_logprobs"]
        assert echo[n:] == base["answer"]["logprobs"]["token_logprobs"]
        half = TOKENS // 2  # and the rest of a text follows from its first half
        rest = answer(s, whole[:n + half], TOKENS - half)
        assert rest["ids"] == base["answer"]["ids"][half:]
        assert rest["logprobs"]["token_logprobs"] == base["answer"]["logprobs"]["token_logprobs"][half:]


def test_the_comparison_can_tell_a_difference(base):
    with Server(DEMO, "--kv-type", "q8_0") as s:
        assert answer(s, base["prompt"])["logprobs"] != base["answer"]["logprobs"]


MODELS = {  # name: (shape of tests/oracle/models.py, quantisation)
    "qwen2 Q8_0": ("qwen2-bias-tied", "Q8_0"),
    "qwen3 Q4_0": ("qwen3-qk-norm", "Q4_0"),
    "llama Q4_K": ("llama-rope-freqs-tied", "Q4_K"),
    "llama Q6_K, yarn": ("llama-yarn", "Q6_K"),
    "qwen2 BF16, yarn": ("qwen2-yarn", "BF16"),
}
MODEL_SPLITS = [["--tp", 2, "--threads", 2], ["--tp", 3, "--shares", "2,1,3", "--prefill-chunk", 7], ["--tp", 2, "--pp", 2, "--layers", "2,1"]]


def random_models():
    if not FULL:
        return MODELS
    import models
    # K-quants come in blocks of 256: 4 heads of 96 are no multiple.
    return {**MODELS, **{f"{s} {k}": (s, k) for s in models.SHAPES for k in models.QUANTS if s != "llama-mha-head-dim" or not k.endswith("_K")}}


def all_models():
    pytest.importorskip("gguf")
    import sys
    sys.path.insert(0, str(TOP / "tests/oracle"))
    return random_models()


@pytest.mark.parametrize("name", all_models())
def test_the_same_bits_for_random_models(name, tmp_path):
    import models
    shape, kind = all_models()[name]
    path = tmp_path / "model.gguf"
    models.write(str(path), kind=kind, layers=3, **models.SHAPES[shape])
    prompt = [(7 * i * i + 3) % 1000 for i in range(60)]
    n = TOKENS // 4
    with Server(path, "--threads", 1) as s:
        expected = answer(s, prompt, n)
    for args in MODEL_SPLITS:
        with Server(path, *args) as s:
            assert answer(s, prompt, n) == expected, args
