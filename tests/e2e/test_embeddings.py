"""/v1/embeddings, /v1/rerank and /score: against the numpy oracle and the PyPI tokenizer on random Qwen 3 models, through the openai client, with bad input,
through cancellation and a killed worker."""
import base64
import http.client
import json
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from conftest import SANITIZED, TOP, Server

sys.path.insert(0, str(TOP / "tests/oracle"))
import models  # noqa: E402
from oracle import Model  # noqa: E402

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
WORDS = ["yes", "no", "cat"]
EOS, YES, NO = 300, 258, 259  # as models.vocabulary() lays them out
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DIM = 256
TEXTS = ["a cat", "no, yes", "Über 23 Katzen\n", "x" * 100]
SHAPE = {**models.SHAPES["qwen3-qk-norm"], "pre": "qwen2", "words": WORDS, "special": SPECIAL, "eos": EOS, "tied": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models.write(folder / "embed.gguf", kind="F32", seed=5, pooling=3, **SHAPE)
    models.write(folder / "rank.gguf", kind="F32", seed=25, **{**SHAPE, "ctx": 600})
    models.write(folder / "q8.gguf", kind="Q8_0", seed=7, pooling=1, **SHAPE)
    models.write(folder / "ranker.gguf", kind="Q8_0", seed=7, pooling=4, **SHAPE)
    return folder


@pytest.fixture(scope="module")
def server(files):
    with Server(files / "embed.gguf", "--kv-type", "f32", "--max-seqs", "4", "--queue-max", "6") as s:
        yield s


@pytest.fixture(scope="module")
def ranker(files):
    with Server(files / "rank.gguf", "--kv-type", "f32", "--max-seqs", "4") as s:
        yield s


@pytest.fixture(scope="module")
def tokenize(files):
    tk = pytest.importorskip("tokenizers")
    m = Model(files / "embed.gguf")
    tokens, merges = (m.reader.fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "merges"))
    t = tk.Tokenizer(tk.models.BPE({x: i for i, x in enumerate(tokens)}, [tuple(x.split(" ")) for x in merges]))
    t.pre_tokenizer = tk.pre_tokenizers.Sequence([tk.pre_tokenizers.Split(tk.Regex(QWEN2), "isolated"), tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    plain = tk.Tokenizer.from_str(t.to_str())
    t.add_special_tokens(SPECIAL)
    assert t.encode("<|im_end|>yes").ids == [302, YES] and plain.encode("no").ids == [NO]
    return t, plain


def unit(v):
    return v / np.linalg.norm(v)


def embed(s, inputs, **params):
    r = s.post("/v1/embeddings", {"model": "default", "input": inputs, **params}, timeout=300)
    assert r.status == 200, r.body
    return r.json


def vectors(answer):
    assert [x["index"] for x in answer["data"]] == list(range(len(answer["data"])))
    return [np.frombuffer(base64.b64decode(x["embedding"]), "<f4") if isinstance(x["embedding"], str) else np.asarray(x["embedding"], "<f8") for x in answer["data"]]


# ---- embeddings

def test_last_token_with_eos_equals_the_oracle(server, files, tokenize):
    m, answer = Model(files / "embed.gguf"), embed(server, TEXTS)
    assert answer["object"] == "list" and answer["model"] == "embed" and all(x["object"] == "embedding" for x in answer["data"])
    ids = [[*tokenize[0].encode(t).ids, EOS] for t in TEXTS]
    n = sum(map(len, ids))
    assert answer["usage"] == {"prompt_tokens": n, "total_tokens": n}
    for v, i in zip(vectors(answer), ids):
        right = unit(m.hidden(i)[-1])
        assert len(v) == DIM and abs(np.linalg.norm(v) - 1) < 1e-6
        assert np.abs(v - right).max() < 1e-5
        assert np.abs(v - unit(m.hidden(i[:-1])[-1])).max() > 1e-3  # without EOS it would be another
    assert np.abs(vectors(embed(server, ids[0]))[0] - vectors(answer)[0]).max() < 1e-7  # ids are taken as they are
    for a, b in zip(vectors(embed(server, ids[:2])), vectors(answer)):
        assert np.abs(a - b).max() < 1e-7


def test_base64_and_dimensions(server):
    whole, text = vectors(embed(server, TEXTS[0]))[0], embed(server, TEXTS[0], encoding_format="base64")
    assert isinstance(text["data"][0]["embedding"], str)
    assert (vectors(text)[0] == whole.astype("<f4")).all()
    for n in (1, 7, 64, DIM):
        cut = vectors(embed(server, TEXTS[0], dimensions=n))[0]
        assert len(cut) == n and np.abs(cut - unit(whole[:n])).max() < 1e-6
        assert (vectors(embed(server, TEXTS[0], dimensions=n, encoding_format="base64"))[0] == cut.astype("<f4")).all()


def test_the_openai_client(server):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        r = client.embeddings.create(model="embed", input=TEXTS)  # asks for base64 and decodes it by itself
        plain = client.embeddings.create(model="embed", input=TEXTS, encoding_format="float", dimensions=32, user="u")
        with pytest.raises(openai.BadRequestError) as e:
            client.embeddings.create(model="embed", input="a", dimensions=DIM + 1)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="other", input="a")
    assert e.value.param == "dimensions"
    assert r.usage.prompt_tokens == r.usage.total_tokens > 100
    for a, b in zip(r.data, plain.data):
        assert np.abs(unit(np.asarray(a.embedding)[:32]) - np.asarray(b.embedding)).max() < 1e-6


def test_bad_input(server):
    ok = {"model": "default", "input": "a"}
    bad = [({"input": x}, "input") for x in (None, "", [], [""], ["a", ""], [[]], 3, True, {}, [1, "a"], ["a", 1], [1.5], [-1], [1024], [[1, -1]], "x" * 3000, ["a"] * 2049,
                                             [["a"]], [0] * 600, {"text": "a"})]
    bad += [({"dimensions": x}, "dimensions") for x in (0, -1, DIM + 1, 1.5, "8", True, 10**30)]
    bad += [({"encoding_format": x}, "encoding_format") for x in ("int8", "", 3, [])]
    for change, param in bad:
        r = server.post("/v1/embeddings", {**ok, **change})
        assert r.status == 400, (change, r.body[:200])
        assert r.json["error"]["param"] == param or change.get("dimensions") == 10**30, (change, r.body[:300])
    assert server.post("/v1/embeddings", {"model": "default"}).json["error"]["param"] == "input"
    assert server.post("/v1/embeddings", {**ok, "model": "nobody"}).status == 404
    assert server.post("/v1/embeddings", b"[1]").status == 400
    assert server.get("/v1/embeddings").status == 405
    assert embed(server, "a", dimensions=None, encoding_format=None, user=None)["usage"]["total_tokens"] == 2


def test_a_long_list_goes_through_a_short_queue_beside_generation(server):
    texts = [f"{i} cats" for i in range(200)]
    before = server.metric("racklm:prompt_tokens_total"), server.metric("racklm:request_success_total")
    threads = [threading.Thread(target=server.complete, args=("once",), kwargs=dict(max_tokens=20, ignore_eos=True))]
    threads[0].start()
    answer = embed(server, texts, encoding_format="base64")
    threads[0].join()
    all_vectors = vectors(answer)
    assert len(all_vectors) == 200
    for i in (0, 100, 199):
        assert (vectors(embed(server, texts[i], encoding_format="base64"))[0] == all_vectors[i]).all()
    assert server.metric("racklm:prompt_tokens_total") - before[0] >= answer["usage"]["prompt_tokens"]
    assert server.metric("racklm:request_success_total") - before[1] == 204
    assert "the queue is full" in server.post("/v1/completions", {"model": "default", "prompt": ["a"] * 30, "max_tokens": 1}).body


def test_a_client_that_leaves_ends_its_inputs(server):
    conn = http.client.HTTPConnection(server.host, server.port)
    conn.request("POST", "/v1/embeddings", json.dumps({"model": "default", "input": ["x" * 400] * 500}), {"Content-Type": "application/json"})
    deadline = time.time() + 20
    while server.metric("racklm:num_requests_running") == 0 and time.time() < deadline:
        time.sleep(0.01)
    conn.close()
    while server.metric("racklm:num_requests_running") + server.metric("racklm:num_requests_waiting") > 0:
        assert time.time() < deadline, "the inputs of a client that left are still run"
        time.sleep(0.02)
    assert embed(server, "a")["usage"]["prompt_tokens"] == 2


def raw(s, texts):
    return [x["embedding"] for x in embed(s, texts, encoding_format="base64")["data"]]


@pytest.mark.sanitizer
def test_mean_pooling_has_the_same_bits_for_every_split_and_after_a_killed_worker(files, tokenize):
    texts = ["a cat " * (8 if SANITIZED else 50), "no", *(f"{i} yes" for i in range(20 if SANITIZED else 150))]
    with Server(files / "q8.gguf", "--prefill-chunk", "7") as s:
        expected = raw(s, texts)
        v, m = vectors(embed(s, texts[0]))[0], Model(files / "q8.gguf")
        right = unit(m.hidden([*tokenize[0].encode(texts[0]).ids, EOS]).mean(axis=0))
        assert unit(v) @ right > 0.999  # activations of 8 bits
    with Server(files / "q8.gguf", "--tp", "2") as s:
        got, done, pid = [], threading.Event(), s.workers()[0]["pid"]

        def ask():
            got.extend(raw(s, texts * 5))
            done.set()
        thread = threading.Thread(target=ask)
        thread.start()
        while s.metric("racklm:num_requests_running") == 0 and not done.is_set():
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        assert not done.is_set()
        thread.join(60)
        assert got == expected * 5
        assert s.metric("racklm:recoveries_total") == 1
    with Server(files / "q8.gguf", "--pooling", "last") as s:
        assert raw(s, texts[:1]) != expected[:1]


# ---- rerank and score

PREFIX = ('<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".'
          "<|im_end|>\n<|im_start|>user\n")
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCT = "Given a web search query, retrieve relevant passages that answer the query"


SEEN = {}


def score(m, tokenize, query, document, instruct=INSTRUCT):
    """The way of the model card: the pair is tokenised by itself, then prefix and suffix are put around its ids."""
    key = query, document, instruct
    pair = f"<Instruct>: {instruct}\n<Query>: {query}\n<Document>: {document}"
    ids = tokenize[0].encode(PREFIX).ids + tokenize[1].encode(pair).ids + tokenize[0].encode(SUFFIX).ids
    if key not in SEEN:
        logits = m.hidden(ids)[-1] @ m.w("token_embd.weight").T
        SEEN[key] = 1 / (1 + np.exp(logits[NO] - logits[YES])), len(ids)
    return SEEN[key]


DOCS = ["a cat sat", "no", "yes yes", "dogs <|im_end|> are text"]


def test_rerank_equals_the_oracle(ranker, files, tokenize):
    m = Model(files / "rank.gguf")
    right = [score(m, tokenize, "cat?", d) for d in DOCS]
    assert np.ptp([x for x, _ in right]) > 0.5
    r = ranker.post("/v1/rerank", {"model": "rank", "query": "cat?", "documents": [*DOCS[:2], {"text": DOCS[2]}, DOCS[3]]}).json
    assert r["model"] == "rank" and r["id"].startswith("rerank-")
    n = sum(n for _, n in right)
    assert r["usage"] == {"prompt_tokens": n, "total_tokens": n}
    assert [x["index"] for x in r["results"]] == list(np.argsort([-x for x, _ in right]))
    for x in r["results"]:
        assert abs(x["relevance_score"] - right[x["index"]][0]) < 1e-4
        assert x["document"] == {"text": DOCS[x["index"]]}
    for path in ("/rerank", "/v2/rerank"):
        top = ranker.post(path, {"query": "cat?", "documents": DOCS, "top_n": 2, "return_documents": False}).json["results"]
        assert top == [{k: x[k] for k in ("index", "relevance_score")} for x in r["results"][:2]]
    other = ranker.post("/v1/rerank", {"query": "cat?", "documents": DOCS[:1], "instruction": "Is it about cats"}).json["results"][0]
    assert abs(other["relevance_score"] - score(m, tokenize, "cat?", DOCS[0], "Is it about cats")[0]) < 1e-4


def test_score_pairs(ranker, files, tokenize):
    m = Model(files / "rank.gguf")
    for path, one, two, pairs in (("/score", "cat?", DOCS, [("cat?", d) for d in DOCS]), ("/v1/score", ["cat?", "cat?"], DOCS[2:], [("cat?", d) for d in DOCS[2:]]), ("/score", "a", "b", [("a", "b")])):
        r = ranker.post(path, {"model": "default", "text_1": one, "text_2": two}).json
        assert r["object"] == "list" and [x["index"] for x in r["data"]] == list(range(len(pairs)))
        for x, (q, d) in zip(r["data"], pairs):
            assert x["object"] == "score" and abs(x["score"] - score(m, tokenize, q, d)[0]) < 1e-4


def test_bad_rerank_and_score(ranker):
    ok = {"query": "q", "documents": ["a"]}
    bad = [({"query": x}, "query") for x in (None, "", 3, ["a"])] + [({"top_n": x}, "top_n") for x in (-1, "2", 1.5)]
    bad += [({"documents": x}, "documents") for x in (None, [], "a", [3], [{}], [{"text": 3}], ["x" * 3000], ["a"] * 2049)]
    bad += [({"return_documents": "no"}, "return_documents"), ({"instruction": 3}, "instruction")]
    for change, param in bad:
        r = ranker.post("/v1/rerank", {**ok, **change})
        assert (r.status, r.json["error"]["param"]) == (400, param), (change, r.body[:300])
    for change, param in (({"text_1": None}, "text_1"), ({"text_2": []}, "text_2"), ({"text_2": [1]}, "text_2"), ({"text_1": ["a", "b"], "text_2": ["a"]}, "text_1"), ({"text_2": "x" * 3000}, "text_2")):
        r = ranker.post("/score", {"text_1": "a", "text_2": "b", **change})
        assert (r.status, r.json["error"]["param"]) == (400, param), (change, r.body[:300])


def test_what_a_model_cannot_do_is_said(files):
    with Server() as s:  # the demo model has no single tokens for yes and no; embeddings of a model for text are the last state's
        r = s.post("/v1/rerank", {"query": "q", "documents": ["a"]})
        assert (r.status, r.json["error"]["param"]) == (400, "model") and "yes" in r.json["error"]["message"]
        assert abs(np.linalg.norm(vectors(embed(s, "Once upon a time"))[0]) - 1) < 1e-6
    with Server(files / "ranker.gguf") as s:
        r = s.post("/v1/embeddings", {"model": "default", "input": "a"})
        assert (r.status, r.json["error"]["param"]) == (400, "model") and "/v1/rerank" in r.json["error"]["message"]
        assert len(s.post("/v1/rerank", {"query": "q", "documents": ["a", "b"]}).json["results"]) == 2


def test_a_file_with_a_head_for_scores(files, tokenize):
    """What llama.cpp's converter makes of a reranker: cls.output.weight with the rows yes and no, and a prompt named "rerank"."""
    path = files / "cls.gguf"
    models.write(path, kind="F32", seed=53, pooling=4, cls=True, **SHAPE)
    m = Model(path)
    right = []
    for d in DOCS:
        ids = tokenize[0].encode("<|im_start|>").ids + tokenize[1].encode(f"Is it yes or no?\nQ: cat?\nD: {d}").ids + tokenize[0].encode("<|im_end|>\n").ids
        yes, no = m.w("cls.output.weight") @ m.hidden(ids)[-1]
        right.append(1 / (1 + np.exp(no - yes)))
    assert np.ptp(right) > 0.5
    for split in ([], ["--tp", "2", "--prefill-chunk", "7"], ["--pp", "2"]):
        with Server(path, "--kv-type", "f32", *split) as s:
            for x in s.post("/v1/rerank", {"query": "cat?", "documents": DOCS}).json["results"]:
                assert abs(x["relevance_score"] - right[x["index"]]) < 1e-4
            r = s.post("/v1/completions", {"model": "default", "prompt": "a", "max_tokens": 1})
            assert r.status == 400 and "/v1/rerank" in r.body
            r = s.post("/v1/rerank", {"query": "q", "documents": ["a"], "instruction": "x"})
            assert (r.status, r.json["error"]["param"]) == (400, "instruction")
