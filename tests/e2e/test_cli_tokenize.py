"""racklm tokenize and racklm detokenize: against the vectors of the shared folder (made by the models' own tokenizers), the demo model's reference ids, and
what must not be: ids that are none, files that are none."""
import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from conftest import BUILD, DEMO, Server

SHARED = Path(os.environ.get("RACKLM_TEST_SHARED", Path(__file__).parents[2] / "../shared")) / "data/tokenizers"
VOCABS = sorted(p for p in SHARED.glob("*.gguf") if p.with_name(p.name + ".inp").exists())


def run(*args, text=b""):
    return subprocess.run([BUILD / "bin/racklm", *args], input=text, capture_output=True, timeout=120)


def ids(model, text, *flags):
    r = run("tokenize", model, "--ids", *flags, text=text)
    assert r.returncode == 0 and r.stderr == b"", r
    assert r.stdout.endswith(b"\n") and r.stdout.count(b"\n") == 1
    return [int(x) for x in r.stdout.split()]


def text_of(model, numbers, *flags):
    r = run("detokenize", model, *flags, text=" ".join(map(str, numbers)).encode())
    assert r.returncode == 0 and r.stderr == b"", r
    return r.stdout


@pytest.mark.skipif(not VOCABS, reason="no shared vocabularies")
@pytest.mark.parametrize("vocab", VOCABS, ids=lambda p: p.stem)
def test_the_vectors(vocab):
    texts = vocab.with_name(vocab.name + ".inp").read_bytes().split(b"\n__ggml_vocab_test__\n")[:-1]
    want = [[int(x) for x in line.split()] for line in vocab.with_name(vocab.name + ".out").read_text().splitlines()]
    assert len(texts) == len(want) > 20
    for text, numbers in random.Random(1).sample(list(zip(texts, want)), 5):
        assert ids(vocab, text, "--no-special") == numbers, text
        assert text_of(vocab, numbers) == text


@pytest.mark.sanitizer
def test_special_tokens_are_added_and_recognised_unless_told_not_to():
    plain = ids(DEMO, b"Once", "--no-special")
    bos, *rest = ids(DEMO, b"Once")
    mark = text_of(DEMO, [bos])
    assert rest == plain and bos not in plain and mark and text_of(DEMO, [bos], "--no-special") == b""
    with_special, without = ids(DEMO, mark + b"Once"), ids(DEMO, mark + b"Once", "--no-special")
    assert with_special == [bos, bos, *plain] and bos not in without and len(without) > len(plain)
    assert text_of(DEMO, without) == mark + b"Once" and text_of(DEMO, with_special, "--no-special") == b"Once" and text_of(DEMO, with_special) == mark * 2 + b"Once"


@pytest.mark.sanitizer
def test_pieces_come_one_a_line():
    r = run("tokenize", DEMO, "--no-special", text="A \"tale\"\nof ä".encode())
    lines = [line.split(maxsplit=1) for line in r.stdout.decode().splitlines()]
    assert [int(n) for n, _ in lines] == ids(DEMO, "A \"tale\"\nof ä".encode(), "--no-special")
    if not any("\ufffd" in p for _, p in lines):  # no character in parts
        assert "".join(json.loads(p) for _, p in lines).lstrip(" ") == "A \"tale\"\nof ä"


@pytest.mark.sanitizer
def test_odd_texts_come_back():
    for text in (b"", b"\n", b"a\0b", b"\x01\x1b[0m\x7f", "\ufeff\u200b\u2028 é 漢字 🙂".encode(), b" lead", b"trail ", b"x" * 100_000):
        assert text_of(DEMO, ids(DEMO, text, "--no-special")) == text
    assert text_of(DEMO, ids(DEMO, b"a\xff\xe4\xb8b", "--no-special")).decode() == "a\ufffd\ufffdb"
    assert run("detokenize", DEMO, text=b"[ 5,6,\n7 ]").stdout == text_of(DEMO, [5, 6, 7])


@pytest.mark.sanitizer
def test_what_is_wrong_is_said_in_one_line(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF\x03\0\0\0")
    cases = [("detokenize", DEMO, b"1 two 3", "two"), ("detokenize", DEMO, b"99999999", "99999999"), ("detokenize", DEMO, b"-1", "-1"), ("detokenize", DEMO, b"1 99999999999999999999", "9999"),
             ("tokenize", tmp_path / "none.gguf", b"", "none.gguf"), ("tokenize", bad, b"a", "bad.gguf"), ("tokenize", tmp_path, b"a", str(tmp_path))]
    for command, model, text, word in cases:
        r = run(command, model, text=text)
        assert r.returncode == 1 and r.stdout == b"" and len(r.stderr.splitlines()) == 1 and word in r.stderr.decode(), r


def test_the_http_twins_say_the_same():
    text = "A tale, é 🙂\n"
    raw = text.encode()
    mark = text_of(DEMO, ids(DEMO, b"")[:1]).decode()
    with Server(DEMO) as s:
        def tokens(**body):
            r = s.post("/tokenize", body)
            assert r.status == 200, r
            assert r.json["count"] == len(r.json["tokens"])
            return r.json["tokens"]

        assert tokens(prompt=text) == tokens(content=text, add_special=True) == ids(DEMO, raw)
        assert tokens(content=text) == tokens(prompt=text, add_special_tokens=False) == ids(DEMO, raw, "--no-special")
        assert tokens(content=mark + "a", parse_special=False) == ids(DEMO, (mark + "a").encode(), "--no-special")
        assert tokens(prompt=mark + "a") == ids(DEMO, (mark + "a").encode())
        pieces = tokens(content=text, with_pieces=True)
        assert [p["id"] for p in pieces] == tokens(content=text)
        whole = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
        assert whole.removeprefix(b" ") == raw and any(isinstance(p["piece"], list) for p in pieces)  # no token has the emoji
        for numbers in (ids(DEMO, raw), ids(DEMO, raw, "--no-special"), [5, 6, 7]):
            r = s.post("/detokenize", {"tokens": numbers}).json
            assert r["prompt"] == r["content"] == text_of(DEMO, numbers).decode()
