"""Sampling over HTTP: draws follow the distribution that an independent model computes, and a seed gives the same text for every split.

The distribution comes from tests/oracle (numpy, float64, dequantised weights); the server computes with int8 activations, so its own distribution is close to
that, not equal: how close is tested first (Kullback-Leibler), and the draws are tested against both. 100,000 draws stand in the unit tests."""
import math
import sys

import pytest
from conftest import DEMO, FULL, SANITIZED, TOP, Server

TEMPERATURE = {"temperature": 1, "top_p": 1, "max_tokens": 1, "ignore_eos": True}
ROUNDS = 60 if FULL else 12  # of 128 draws
PROMPTS = ["Once upon a time there was a", "The king said to the", "In the middle of the"]
PATIENT = ["--heartbeat-timeout-ms", 20000] if SANITIZED else []  # a layer takes seconds there
SPLITS = [["--threads", 1], ["--tp", 3]] if SANITIZED else [["--threads", 1], ["--tp", 2], ["--tp", 3], ["--tp", 2, "--pp", 2]]
TOKENS = 20 if SANITIZED else 100


def chi_square_tail(x, k):
    """Upper tail of the chi-square distribution with k degrees (Wilson and Hilferty 1931)."""
    z = ((x / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
    return 0.5 * math.erfc(z / math.sqrt(2))


def bins(p, n):
    """Token ids in bins of at least 8 expected draws: the likely ones by themselves, the others together in order of their probability."""
    out, rest, mass = [], [], 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        rest.append(i)
        mass += p[i]
        if mass * n >= 8:
            out.append(rest)
            rest, mass = [], 0.0
    out[-1] += rest
    return out


def chi_square(ids, p):
    n, groups = len(ids), bins(p, len(ids))
    of = {i: g for g, group in enumerate(groups) for i in group}
    seen = [0] * len(groups)
    for i in ids:
        seen[of[i]] += 1
    x = sum((s - n * m) ** 2 / (n * m) for s, m in zip(seen, (sum(p[i] for i in g) for g in groups)))
    return chi_square_tail(x, len(groups) - 1), len(groups)


@pytest.fixture(scope="module")
def oracle():
    pytest.importorskip("gguf")
    sys.path.insert(0, str(TOP / "tests/oracle"))
    import numpy as np
    from oracle import Model, log_softmax
    model = Model(str(DEMO))
    return lambda ids: np.exp(log_softmax(model.forward(ids)[-1]))


@pytest.fixture(scope="module")
def server():
    with Server(DEMO, "--tp", 2, "--max-seqs", 128, "--queue-max", 1024) as s:
        yield s


def draws(server, prompt, rounds, known={}, **params):
    """known: what was drawn before; the same seeds draw the same."""
    key = (str(prompt), rounds, str(params))
    if key in known:
        return known[key]
    out = known[key] = []
    for seed in range(rounds):
        body = {"prompt": prompt, "n": 128, "seed": 1000 + seed, "return_token_ids": True, **TEMPERATURE, **params}
        r = server.post("/v1/completions", body)
        assert r.status == 200, r.body
        out += [c["token_ids"][0] for c in r.json["choices"]]
    return out


def server_distribution(server, ids):
    """{token: probability} of what may follow `ids`, as the server says: its twenty likeliest (and one more)."""
    c = server.complete(ids + [ids[-1]], max_tokens=1, prompt_logprobs=20)["choices"][0]
    return {int(t): math.exp(v["logprob"]) for t, v in c["prompt_logprobs"][-1].items()}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_draws_follow_the_oracles_distribution(server, oracle, prompt):
    ids = server.post("/tokenize", {"prompt": prompt}).json["tokens"]
    p = oracle(ids)
    # How far the server's own distribution is from the oracle's: over its twenty likeliest tokens and everything else.
    own = server_distribution(server, ids)
    assert len(own) >= 20
    rest, rest_oracle = 1 - sum(own.values()), 1 - sum(p[i] for i in own)
    kl = sum(q * math.log(q / p[i]) for i, q in own.items()) + rest * math.log(rest / rest_oracle)
    assert 0 <= kl < 0.01, kl
    ids_drawn = draws(server, ids, ROUNDS)
    n = len(ids_drawn)
    tail, k = chi_square(ids_drawn, p)
    # A distribution that is off by `kl` adds about 2 n kl to the statistic; here that is within the noise of k bins.
    assert 2 * n * kl < math.sqrt(2 * k) * 2, (kl, n, k)
    assert tail > 1e-4, f"p = {tail:.2e} over {k} bins"
    # And against the server's own figures, without that excuse.
    q = list(own.values()) + [rest]
    of = {i: j for j, i in enumerate(own)}
    tail, k = chi_square([of.get(i, len(own)) for i in ids_drawn], q)
    assert tail > 1e-4, f"p = {tail:.2e} over {k} bins of the server's own log-probabilities"


def test_the_test_can_tell_a_wrong_distribution(server, oracle):
    """The same draws must be rejected as draws at another temperature."""
    ids = server.post("/tokenize", {"prompt": PROMPTS[0]}).json["tokens"]
    p = oracle(ids)
    for wrong in (0.8, 1.25) if FULL else (1.25,):
        tail, _ = chi_square(draws(server, ids, ROUNDS, temperature=wrong), p)
        assert tail < 1e-4, (wrong, tail)


def test_temperature_scales_the_logits(server, oracle):
    ids = server.post("/tokenize", {"prompt": PROMPTS[1]}).json["tokens"]
    p = oracle(ids) ** (1 / 0.7)
    tail, k = chi_square(draws(server, ids, ROUNDS, temperature=0.7), p / p.sum())
    assert tail > 1e-4, (tail, k)


def test_filters_keep_exactly_the_right_tokens(server, oracle):
    ids = server.post("/tokenize", {"prompt": PROMPTS[2]}).json["tokens"]
    p = oracle(ids)
    order = sorted(range(len(p)), key=lambda i: -p[i])

    def drawn(**params):
        return set(draws(server, ids, 2, **params))
    gap = next(k for k in range(5, 40) if p[order[k - 1]] > 1.1 * p[order[k]])  # an edge that int8 activations cannot blur
    assert drawn(top_k=gap) <= set(order[:gap])
    least = math.sqrt(p[order[gap - 1]] * p[order[gap]])
    assert drawn(min_p=least / p[order[0]]) <= set(order[:gap])
    mass = sum(p[order[i]] for i in range(gap))
    kept = drawn(top_p=float(mass - 0.5 * p[order[gap - 1]]))
    assert kept <= set(order[:gap]) and len(kept) > 1
    assert len(drawn()) > gap  # without a filter more comes


def test_choices_of_a_seed_are_independent(server, oracle):
    """Pairs (choice 2i, choice 2i + 1) of one seed: as often equal as the distribution says."""
    ids = server.post("/tokenize", {"prompt": PROMPTS[0]}).json["tokens"]
    p = oracle(ids)
    d = draws(server, ids, ROUNDS)
    pairs, same = len(d) // 2, sum(a == b for a, b in zip(d[::2], d[1::2]))
    chance = float((p * p).sum())
    assert abs(same - pairs * chance) < 4.5 * math.sqrt(pairs * chance * (1 - chance)), (same, pairs * chance)
    assert draws(server, ids, 1) == d[:128]  # and a seed repeats its choices


@pytest.mark.sanitizer
def test_a_seed_gives_the_same_text_for_every_split():
    bodies = [{"prompt": "In the forest", "max_tokens": TOKENS, "seed": 42, "temperature": 1},
              {"prompt": "The old woman", "max_tokens": TOKENS, "seed": 7, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "n": 3},
              {"prompt": "A fox", "max_tokens": TOKENS, "seed": -3, "temperature": 1.5, "min_p": 0.05, "presence_penalty": 0.5, "repetition_penalty": 1.2},
              {"prompt": "x", "max_tokens": TOKENS, "seed": 9, "temperature": 1, "logit_bias": {"300": 3.5, "301": -100}, "ignore_eos": True},
              {"prompt": "The fox and the fox and the", "max_tokens": TOKENS, "seed": 1, "temperature": 0.7, "dry_multiplier": 1, "typical_p": 0.9, "repeat_last_n": 20,
               "repetition_penalty": 1.1},
              {"prompt": "A hen", "max_tokens": TOKENS, "seed": 2, "mirostat": 2, "mirostat_tau": 3, "dynatemp_range": 0.2, "bad_words": ["the"]},
              {"prompt": "A hen", "max_tokens": TOKENS, "seed": 3, "mirostat": 1, "allowed_token_ids": list(range(300, 900))},
              {"prompt": "A hen", "max_tokens": TOKENS, "seed": 4, "top_n_sigma": 1.5, "xtc_probability": 0.5}]
    seen = []
    for args in SPLITS:
        with Server(DEMO, *PATIENT, *args) as s:
            answers = [s.post("/v1/completions", {**b, "return_token_ids": True}).json["choices"] for b in bodies]
        seen.append([[(c["text"], c["token_ids"], c["finish_reason"]) for c in a] for a in answers])
        assert len({c[0] for c in seen[-1][1]}) == 3
    assert all(a == seen[0] for a in seen), [i for i, a in enumerate(seen) if a != seen[0]]


def test_without_a_seed_texts_differ(server):
    body = {"prompt": "Once", "max_tokens": 24, "temperature": 1}
    assert len({server.post("/v1/completions", body).json["choices"][0]["text"] for _ in range(4)}) == 4
