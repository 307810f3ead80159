"""Each sampling parameter over HTTP: what it keeps is what its definition keeps of the oracle's distribution (tests/oracle: numpy, float64, dequantised weights).

The server computes with int8 activations, so cuts are put where neighbours are far apart; exactness is the unit tests' business (test_sampler_filters.c)."""
import math
import sys
import threading

import pytest
from conftest import DEMO, TOP, Server

PROMPT = "In the middle of the"
DRAW = {"temperature": 1, "top_p": 1, "max_tokens": 1, "ignore_eos": True}
VOCAB = 4096


@pytest.fixture(scope="module")
def server():
    with Server(DEMO, "--tp", 2, "--max-seqs", 128, "--queue-max", 1024) as s:
        yield s


@pytest.fixture(scope="module")
def dist(server):
    """Prompt ids, logits, probabilities, ids by falling probability."""
    pytest.importorskip("gguf")
    sys.path.insert(0, str(TOP / "tests/oracle"))
    import numpy as np
    from oracle import Model, log_softmax
    ids = server.post("/tokenize", {"prompt": PROMPT}).json["tokens"]
    z = Model(str(DEMO)).forward(ids)[-1]
    p = np.exp(log_softmax(z))
    return ids, z, p, sorted(range(len(p)), key=lambda i: -p[i])


def drawn(server, ids, rounds=2, **params):
    out = []
    for seed in range(rounds):
        r = server.post("/v1/completions", {"prompt": ids, "n": 128, "seed": 50 + seed, "return_token_ids": True, **DRAW, **params})
        assert r.status == 200, r.body
        out += [c["token_ids"][0] for c in r.json["choices"]]
    return out


def gap(p, order, low, high, ratio=1.1):
    return next(k for k in range(low, high) if p[order[k - 1]] > ratio * p[order[k]])


def test_top_n_sigma_keeps_what_is_near_the_best(server, dist):
    ids, z, p, order = dist
    k = gap(p, order, 4, 30)
    n = (z[order[0]] - (z[order[k - 1]] + z[order[k]]) / 2) / z.std()
    got = set(drawn(server, ids, top_n_sigma=float(n)))
    assert got <= set(order[:k]) and len(got) > 1
    assert set(drawn(server, ids, top_n_sigma=float(n), temperature=2)) <= set(order[:k])  # whatever the temperature
    assert len(set(drawn(server, ids, top_n_sigma=-1))) > k


def test_typical_p_keeps_what_is_near_the_entropy(server, dist):
    ids, z, p, order = dist
    h = float(-(p * [math.log(x) for x in p]).sum())
    distance = [abs(-math.log(x) - h) for x in p]
    far = sorted(order, key=lambda i: distance[i])
    k = far.index(order[0]) // 2  # the likeliest token is not typical
    assert k >= 4
    got = set(drawn(server, ids, typical_p=float(sum(p[i] for i in far[:k]))))
    assert order[0] not in got and len(got) > 1
    assert all(distance[i] < distance[far[k - 1]] + 0.1 for i in got), [distance[i] for i in got]


def test_xtc_takes_the_best_away(server, dist):
    ids, z, p, order = dist
    k = gap(p, order, 3, 12)
    threshold = math.sqrt(p[order[k - 1]] * p[order[k]])  # k are above: the first k - 1 go
    assert not set(drawn(server, ids, xtc_probability=1, xtc_threshold=threshold)) & set(order[:k - 1])
    assert order[k - 1] in drawn(server, ids, xtc_probability=1, xtc_threshold=threshold, top_k=k)
    # As often as is asked for: the best token is drawn half as often.
    n, half = 6 * 128, sum(i in order[:k - 1] for i in drawn(server, ids, 6, xtc_probability=0.5, xtc_threshold=threshold))
    expect = float(sum(p[i] for i in order[:k - 1])) / 2
    assert abs(half - n * expect) < 4.5 * math.sqrt(n * expect * (1 - expect)), (half, n * expect)
    assert drawn(server, ids, 1, xtc_probability=1, xtc_threshold=0.6, top_k=1000) == drawn(server, ids, 1, top_k=1000)  # one at most is above


def test_mirostat_begins_at_twice_tau(server, dist):
    ids, z, p, order = dist
    k = gap(p, order, 5, 40)
    tau = -math.log2(math.sqrt(p[order[k - 1]] * p[order[k]])) / 2
    got = set(drawn(server, ids, mirostat=2, mirostat_tau=tau, top_k=1))  # filters have no say beside it
    assert got <= set(order[:k]) and len(got) > 1


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_holds_the_surprise(server, version):
    """The mean surprise of long texts follows tau. (Surprise of the raw distribution: what was cut makes the difference.)"""
    def surprise(tau):
        body = {"prompt": "Once upon a time", "n": 4, "seed": 3, "max_tokens": 200, "ignore_eos": True, "logprobs": 0, "mirostat": version, "mirostat_tau": tau}
        choices = server.post("/v1/completions", body).json["choices"]
        return -sum(sum(c["logprobs"]["token_logprobs"]) for c in choices) / 800 / math.log(2)
    low, high = surprise(1.5), surprise(5)
    assert 1 < low < 3 and 3.5 < high < 6 and high > low + 1.5, (low, high)


def test_dynamic_temperature_lies_where_the_entropy_says(server, dist):
    ids, z, p, order = dist
    share = float(-(p * [math.log(x) for x in p]).sum()) / math.log(VOCAB)
    t = 0.2 + 1.6 * share ** 0.5
    q = p ** (1 / t)
    q /= q.sum()
    n, top = 12 * 128, order[:5]
    seen, expect = sum(i in top for i in drawn(server, ids, 12, temperature=1, dynatemp_range=0.8, dynatemp_exponent=0.5)), float(sum(q[i] for i in top))
    assert abs(seen - n * expect) < 5 * math.sqrt(n * expect * (1 - expect)) + 0.02 * n, (seen / n, expect)
    assert abs(expect - float(sum(p[i] for i in top))) > 0.04  # and not where it would be at temperature 1


def greedy(server, prompt, n=120, **params):
    c = server.complete(prompt, max_tokens=n, ignore_eos=True, return_token_ids=True, **params)["choices"][0]
    return c["token_ids"]


def repeats(history, out, n):
    """Places of `out` where the last n tokens stood together before."""
    all_ids = history + out
    return [i for i in range(len(history), len(all_ids)) if any(all_ids[j - n + 1:j + 1] == all_ids[i - n + 1:i + 1] for j in range(n - 1, i))]


def test_dry_lets_no_long_repetition_go_on(server):
    prompt = server.post("/tokenize", {"prompt": "The king said to the queen. The king said"}).json["tokens"]
    assert repeats(prompt, greedy(server, prompt), 4)
    hard = {"dry_multiplier": 100, "dry_base": 1, "dry_sequence_breakers": []}
    assert not repeats(prompt, greedy(server, prompt, dry_allowed_length=2, **hard), 3)
    out = greedy(server, prompt, dry_allowed_length=4, **hard)
    assert repeats(prompt, out, 4) and not repeats(prompt, out, 5)
    assert repeats(prompt, greedy(server, prompt, dry_allowed_length=2, dry_penalty_last_n=3, **hard), 4)  # three tokens hold no repetition of three
    assert greedy(server, prompt, dry_penalty_last_n=0, **hard) == greedy(server, prompt)
    # No repetition reaches across a breaker: " king" in one token, or begun by the token before.
    broken = {**hard, "dry_sequence_breakers": [" king"]}
    out = greedy(server, prompt, dry_allowed_length=2, **broken)
    king = server.post("/tokenize", {"prompt": "The king"}).json["tokens"][-1]
    all_ids = prompt + out
    assert all(king in all_ids[i - 2:i + 1] for i in repeats(prompt, out, 3))


def test_the_window_of_the_penalties(server):
    prompt = "Once upon a time"
    full = greedy(server, prompt, repetition_penalty=1.3)
    assert greedy(server, prompt, repetition_penalty=1.3, repeat_last_n=-1) == full == greedy(server, prompt, repetition_penalty=1.3, repeat_last_n=5000)
    assert greedy(server, prompt, repetition_penalty=1.3, frequency_penalty=1, repeat_last_n=0) == greedy(server, prompt)
    short = greedy(server, prompt, repetition_penalty=1.3, repeat_last_n=64)
    assert short == greedy(server, prompt, repeat_penalty=1.3) != full  # llama-server's name has llama-server's window
    assert greedy(server, prompt, repeat_penalty=1.3, repeat_last_n=-1) == full
    # A penalty that forbids: no token comes again within the window.
    out = greedy(server, prompt, presence_penalty=2, repetition_penalty=100, repeat_last_n=8)
    assert all(out[i] not in out[max(0, i - 8):i] for i in range(len(out))) and len(set(out)) < len(out)


def test_ids_that_are_allowed_and_words_that_are_not(server):
    prompt = "Once upon a time there was a"
    assert set(greedy(server, prompt, allowed_token_ids=[300, 301, 500])) <= {300, 301, 500}
    plain = server.complete(prompt, max_tokens=80)["choices"][0]["text"]
    words = [w for w in ("king", "son", "very") if w in plain]
    assert words
    text = server.complete(prompt, max_tokens=80, bad_words=words + ["and he was"])["choices"][0]["text"]
    assert not any(f" {w} " in text for w in words) and " and he was" not in text
    # Together they leave nothing: what is allowed stays allowed.
    assert set(greedy(server, prompt, 10, allowed_token_ids=[500], stop_token_ids=[500], min_tokens=8)) <= {500}


def test_stop_ids_wait_for_min_tokens(server):
    out = greedy(server, "Once upon a time", 60)
    stop = out[5]
    c = server.complete("Once upon a time", max_tokens=60, ignore_eos=True, stop_token_ids=[stop], return_token_ids=True)["choices"][0]
    assert c["finish_reason"] == "stop" and stop not in c["token_ids"][:out.index(stop)] and len(c["token_ids"]) <= out.index(stop) + 1
    c = server.complete("Once upon a time", max_tokens=60, ignore_eos=True, stop_token_ids=[stop], min_tokens=20, return_token_ids=True)["choices"][0]
    assert len(c["token_ids"]) >= 20 and stop not in c["token_ids"][:20]


def test_a_text_does_not_depend_on_what_else_runs(server):
    bodies = [{"prompt": f"Tale {i}. Once upon", "max_tokens": 60, "seed": i, "temperature": 1, "return_token_ids": True, **extra}
              for i, extra in enumerate([{"mirostat": 2}, {"mirostat": 1}, {"dry_multiplier": 0.8}, {"xtc_probability": 0.5}, {"typical_p": 0.8}, {"top_n_sigma": 1},
                                         {"dynatemp_range": 0.5}, {"repeat_penalty": 1.2}])]
    alone = [server.post("/v1/completions", b).json["choices"][0]["token_ids"] for b in bodies]
    together = [None] * len(bodies)

    def run(i):
        together[i] = server.post("/v1/completions", bodies[i]).json["choices"][0]["token_ids"]
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(bodies))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert together == alone
    chosen = server.post("/v1/completions", {**bodies[0], "n": 3}).json["choices"]
    assert chosen[0]["token_ids"] == alone[0] and len({tuple(c["token_ids"]) for c in chosen}) == 3
