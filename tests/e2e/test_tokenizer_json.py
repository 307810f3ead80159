"""A tokenizer.json in place of the model file's tokenizer: what the server counts, reads and writes is what the package tokenizers does."""
import json
import sys

import pytest
from conftest import TOP, Server, racklm

sys.path.insert(0, str(TOP / "tests/oracle"))
tokenizers = pytest.importorskip("tokenizers")
import models  # noqa: E402
from texts import SCRIPTS  # noqa: E402

VOCAB = 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    models.write(folder / "model.gguf", kind="Q8_0", seed=3, vocab=VOCAB)
    tok = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFC(), tokenizers.normalizers.Replace(" ", "▁")])
    tok.pre_tokenizer = tokenizers.pre_tokenizers.Split("▁", "merged_with_next")
    tok.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]],
                                             limit_alphabet=120, show_progress=False)
    tok.train_from_iterator([t.replace("\0", "") for t in SCRIPTS.values()] * 3, trainer)
    tok.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    as_json = json.loads(tok.to_str())
    as_json["added_tokens"] = [t for t in as_json["added_tokens"] if not t["content"].startswith("<0x")]
    (folder / "tokenizer.json").write_text(json.dumps(as_json))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"}))
    return folder


def test_a_served_model_takes_a_tokenizer_json(folder):
    tok = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    with Server(folder / "model.gguf", "--tokenizer", folder / "tokenizer.json", "--ctx", "512") as s:
        seen = 0
        for text in list(SCRIPTS.values())[:12]:
            text = text.replace("\0", "")
            r = s.complete(text, max_tokens=4, return_token_ids=True)
            assert r["usage"]["prompt_tokens"] == len(tok.encode(text).ids), text
            choice = r["choices"][0]
            want = tok.decode(choice["token_ids"], skip_special_tokens=True)
            seen += choice["text"] == want
            # Of bytes that are no UTF-8 the package makes one U+FFFD each, a stream one for each longest beginning of a character.
            assert choice["text"] == want or "\ufffd" in want
        assert seen > 3
        r = s.post("/v1/chat/completions", {"model": "default", "max_tokens": 2, "messages": [{"role": "user", "content": "Hé du"}]})
        assert r.status == 200, r.body
        want = tok.encode("<s>Hé du</s>", add_special_tokens=False).ids  # the template of tokenizer_config.json
        assert r.json["usage"]["prompt_tokens"] == len(want)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    big = json.loads((folder / "tokenizer.json").read_text())
    big["model"]["vocab"] = {**big["model"]["vocab"], **{f"zzz{i}": VOCAB + i for i in range(8)}}
    (tmp_path / "big.json").write_text(json.dumps(big))
    bad = json.loads((folder / "tokenizer.json").read_text())
    bad["pre_tokenizer"] = {"type": "UnicodeScripts"}
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    for name, words in (("big.json", ("1031", "1024")), ("bad.json", ("pre_tokenizer", "UnicodeScripts", "bad.json")), ("none.json", ("none.json",))):
        r = racklm("serve", folder / "model.gguf", "--port", "0", "--tokenizer", tmp_path / name, "--runtime-dir", tmp_path / "run", "--state-dir", tmp_path / "state")
        assert r.returncode != 0
        assert all(w in r.stderr for w in words), r.stderr
