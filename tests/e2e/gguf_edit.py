"""GGUF files with other keys: parses the header of a small model, sets keys, writes it anew in front of the same tensor data."""
import struct

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, U32 = 8, 9, 4


def _text(s):
    b = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(b)) + b


def string(s):
    """A value for edit()."""
    return STRING, _text(s)


def u32(v):
    return U32, struct.pack("<I", v)


class Header:
    def __init__(self, data):
        self.data, self.at = data, 8
        n_tensors, n_kv = self.take("Q"), self.take("Q")
        self.kv = {}
        for _ in range(n_kv):
            key = self.text().decode()
            kind = self.take("I")
            start = self.at
            self.skip(kind)
            self.kv[key] = (kind, data[start:self.at])
        start = self.at
        for _ in range(n_tensors):
            self.text()
            n_dims = self.take("I")
            self.at += 8 * n_dims + 4 + 8
        self.tensors, self.n_tensors, self.end = data[start:self.at], n_tensors, self.at

    def take(self, fmt):
        v, = struct.unpack_from("<" + fmt, self.data, self.at)
        self.at += struct.calcsize(fmt)
        return v

    def text(self):
        n = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at]

    def skip(self, kind):
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            item, n = self.take("I"), self.take("Q")
            if item in SIZES:
                self.at += SIZES[item] * n
            else:
                for _ in range(n):
                    self.skip(item)
        else:
            self.at += SIZES[kind]


def edit(source, target, keys=None, tokens=None):
    """keys: name -> string(...) or u32(...). tokens: id -> new text. Writes the edited copy of `source` (a path) to `target`."""
    data = source.read_bytes()
    h = Header(data)
    align = struct.unpack("<I", h.kv["general.alignment"][1])[0] if "general.alignment" in h.kv else 32
    kv = {**h.kv, **(keys or {})}
    if tokens:
        kind, value = kv["tokenizer.ggml.tokens"]
        n, at, out = struct.unpack_from("<Q", value, 4)[0], 12, []
        for _ in range(n):
            length, = struct.unpack_from("<Q", value, at)
            out.append(value[at + 8:at + 8 + length])
            at += 8 + length
        for i, text in tokens.items():
            out[i] = text.encode()
        kv["tokenizer.ggml.tokens"] = (kind, value[:12] + b"".join(_text(t) for t in out))
    head = data[:8] + struct.pack("<QQ", h.n_tensors, len(kv)) + b"".join(_text(k) + struct.pack("<I", t) + v for k, (t, v) in kv.items()) + h.tensors
    head += b"\0" * (-len(head) % align)
    target.write_bytes(head + data[h.end + (-h.end % align):])
    return target
