"""Streams that tests hold open while something breaks: each reads in a thread of its own and keeps what came and when."""
import http.client
import json
import threading
import time


class Stream(threading.Thread):
    """A streamed completion. ids, text, times: what has come; finish: the finish_reason; error: the error object that the server sent, or an
    exception's text when the connection broke; done: "[DONE]" was seen."""

    def __init__(self, server, body, start=True):
        super().__init__(daemon=True)
        self.connect = server.connection
        self.headers = {"Content-Type": "application/json", **server.headers}
        self.body = {"stream": True, "return_token_ids": True, **body}
        self.ids, self.parts, self.logprobs, self.times = [], [], [], []
        self.finish = self.error = self.status = None
        self.done = False
        self.ended_at = None
        self.leave = False
        if start:
            self.start()

    def run(self):
        conn = self.connect(120)
        try:
            conn.request("POST", "/v1/completions", json.dumps(self.body), self.headers)
            r = conn.getresponse()
            self.status = r.status
            if r.status != 200:
                self.error = json.loads(r.read())["error"]
                return
            for line in r:
                if self.leave:
                    return
                line = line.decode().rstrip("\r\n")
                if line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    self.take(json.loads(line[6:]))
        except (OSError, http.client.HTTPException, ValueError) as e:
            self.error = {"message": f"{type(e).__name__}: {e}", "type": "connection"}
        finally:
            self.ended_at = time.monotonic()
            conn.close()

    def take(self, event):
        if "error" in event:
            self.error = event["error"]
            return
        for c in event["choices"]:
            self.times += [time.monotonic()] * len(c.get("token_ids") or [])
            self.ids += c.get("token_ids") or []
            self.parts.append(c["text"])
            if c.get("logprobs"):
                self.logprobs += c["logprobs"]["token_logprobs"]
            self.finish = c["finish_reason"] or self.finish

    def close(self):
        """The client goes away in the middle."""
        self.leave = True
        self.join(30)

    @property
    def text(self):
        return "".join(self.parts)

    @property
    def open(self):
        return self.is_alive()

    def gap(self):
        """The longest pause between two tokens, in seconds."""
        return max((b - a for a, b in zip(self.times, self.times[1:])), default=0.0)

    def result(self, timeout=90):
        self.join(timeout)
        assert not self.is_alive(), f"the stream hangs after {len(self.ids)} tokens"
        return self.ids, self.text, self.logprobs, self.finish


def wait_for(what, condition, timeout=20, period=0.005):
    """Polls until condition() is true and returns its value; `what` names it in the failure."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what() if callable(what) else what}"
        time.sleep(period)


def wait_tokens(streams, n, timeout=60):
    """Until every stream has n more tokens than now; each must be open still when it has them."""
    want = [len(s.ids) + n for s in streams]
    wait_for(lambda: f"{n} more tokens of each stream: {[(len(s.ids), w, s.error) for s, w in zip(streams, want)]}",
             lambda: all(len(s.ids) >= w for s, w in zip(streams, want)) or any(s.error or s.finish for s in streams), timeout)
    bad = [(s.error, s.finish, len(s.ids)) for s in streams if s.error or s.finish]
    assert not bad, f"ended too soon: {bad}"


def metric(server, name):
    return sum(float(line.rsplit(" ", 1)[1]) for line in server.get("/metrics").body.splitlines() if line.startswith(f"racklm:{name}{{"))
