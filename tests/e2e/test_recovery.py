"""A stream whose worker dies pauses and goes on where it was: nothing lost, nothing repeated, the very text of an undisturbed run.

What is promised (ARCHITECTURE.md, Failure model): a death is noticed at once, a hang within heartbeat_timeout_ms; /health is 503 in between. The
times are printed, not asserted beyond what the options promise plus the slack of a busy machine."""
import json
import os
import shutil
import signal
import time

import pytest
from conftest import DEMO, FULL, PATIENCE_S, SANITIZED, Server
from streams import Stream, metric, wait_for, wait_tokens

N_STREAMS = 8 if FULL and not SANITIZED else 4
TOKENS = 150 if SANITIZED else 900
BEAT = ["--heartbeat-ms", 100, "--heartbeat-timeout-ms", 20000]  # deaths are noticed without it
HANG = ["--heartbeat-timeout-ms", 2500]
SPLITS = {"tp 2": ["--tp", 2], "pp 2": ["--pp", 2]}


def bodies():
    """Greedy and sampled, with penalties and log-probabilities, and with every parameter that looks back: all of a stream's state has to come back."""
    common = {"max_tokens": TOKENS, "ignore_eos": True, "logprobs": 1}
    kinds = [{"temperature": 0}, {"mirostat": 2, "mirostat_tau": 4}, {"repetition_penalty": 1.1, "frequency_penalty": 0.2}, {"top_p": 0.9, "min_p": 0.01},
             {"temperature": 0, "dry_multiplier": 0.8}, {"mirostat": 1, "mirostat_eta": 0.3},
             {"repeat_penalty": 1.2, "presence_penalty": 0.3, "bad_words": ["once upon"]}, {"typical_p": 0.95, "xtc_probability": 0.3}]
    return [{**common, "prompt": f"Tale number {i}. Once upon a time", "seed": i, "temperature": 0.9, **kinds[i % len(kinds)]} for i in range(N_STREAMS)]


def serve(*args):
    return Server(DEMO, "--threads", 1, *BEAT, *args)


@pytest.fixture(scope="module")
def undisturbed():
    with serve() as s:
        streams = [Stream(s, b) for b in bodies()]
        results = [x.result(300) for x in streams]
        assert all(len(r[0]) == TOKENS and len(r[2]) == TOKENS for r in results)
        assert len({r[1] for r in results}) == N_STREAMS
        yield results


def check_streams(streams, undisturbed):
    for i, (s, expected) in enumerate(zip(streams, undisturbed)):
        ids, text, logprobs, finish = s.result(180)
        assert s.error is None and s.done, f"stream {i}: {s.error} after {len(ids)} tokens"
        assert ids == expected[0], f"stream {i} differs from token {next((k for k, (a, b) in enumerate(zip(ids, expected[0])) if a != b), 'the end')} on"
        assert (text, logprobs, finish) == expected[1:], f"stream {i}"


def start(s):
    streams = [Stream(s, b) for b in bodies()]
    wait_tokens(streams, 25)
    return streams


def worker_pid(s, rank=-1):
    return [w["pid"] for w in s.workers()][rank]


def health(s):
    return s.get("/health").status


def break_and_wait(s, what, breaking):
    """Breaks something; returns (seconds until /health said so, seconds until it was well again)."""
    epoch = s.get("/health").json["replicas"][0]["epoch"]
    begin = time.monotonic()
    breaking()
    # 503 may be over before it is asked for: the epoch has risen by then.
    def noticed():
        r = s.get("/health")
        return r.status == 503 or r.json["replicas"][0]["epoch"] > epoch
    wait_for(f"/health notices {what}", noticed, PATIENCE_S, 0.005)
    detected = time.monotonic() - begin
    wait_for(lambda: f"the replica recovers from {what}: {s.logs()[-3000:]}", lambda: health(s) == 200, PATIENCE_S)
    return detected, time.monotonic() - begin


def report(what, times, streams):
    print(f"\n{what}: detected after {times[0] * 1000:.0f} ms, serving after {times[1] * 1000:.0f} ms, longest pause of a stream {max(s.gap() for s in streams) * 1000:.0f} ms")


@pytest.mark.sanitizer
@pytest.mark.parametrize("split", SPLITS)
def test_a_killed_worker(undisturbed, split):
    with serve(*SPLITS[split]) as s:
        for rank in (1,) if SANITIZED else (0, 1):
            streams = start(s)
            before, pid = metric(s, "recoveries_total"), worker_pid(s, rank)
            times = break_and_wait(s, f"SIGKILL of worker {rank}", lambda: os.kill(pid, signal.SIGKILL))
            check_streams(streams, undisturbed)
            assert metric(s, "recoveries_total") == before + 1
            assert worker_pid(s, rank) != pid
            report(f"{split}, SIGKILL of worker {rank}", times, streams)


@pytest.mark.parametrize("split", SPLITS)
def test_health_is_503_while_a_worker_is_away(split):
    """The other worker is stopped, so that nothing can be well before it is found silent: the time in between can be looked at."""
    with serve(*SPLITS[split], *HANG) as s:
        pid = worker_pid(s)
        os.kill(worker_pid(s, 0), signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        r = wait_for("/health is 503", lambda: (lambda r: r if r.status == 503 else None)(s.get("/health")), PATIENCE_S)
        assert r.json["status"] != "ok" and r.json["workers_ready"] < r.json["workers"] == 2
        assert r.json["replicas"][0]["state"] == "recovering"
        status = json.loads(s.cli("status", "-o", "json").stdout)
        assert status["replicas"][0]["state"] == "recovering"
        wait_for("/health is 200", lambda: health(s) == 200, PATIENCE_S)
        assert s.complete(max_tokens=3)


@pytest.mark.parametrize("split", SPLITS)
def test_a_worker_that_hangs(undisturbed, split):
    with serve(*SPLITS[split], *HANG) as s:
        streams = start(s)
        pid = worker_pid(s)
        times = break_and_wait(s, "SIGSTOP of a worker", lambda: os.kill(pid, signal.SIGSTOP))
        assert times[0] >= 0.5  # by its silence: nobody tells
        check_streams(streams, undisturbed)
        assert worker_pid(s) != pid
        report(f"{split}, SIGSTOP of a worker (timeout 2500 ms)", times, streams)


def test_a_pause_shorter_than_the_timeout_is_none():
    with serve("--tp", 2) as s:
        pids, before = [w["pid"] for w in s.workers()], metric(s, "recoveries_total")
        stream = Stream(s, {**bodies()[0], "max_tokens": 400})
        wait_tokens([stream], 10)
        os.kill(pids[1], signal.SIGSTOP)
        time.sleep(0.5)  # the pause itself
        os.kill(pids[1], signal.SIGCONT)
        assert len(stream.result()[0]) == 400 and stream.error is None
        assert [w["pid"] for w in s.workers()] == pids and metric(s, "recoveries_total") == before


def test_the_agent_is_killed(undisturbed):
    with serve("--tp", 2, *HANG) as s:
        streams = start(s)
        pids = [w["pid"] for w in s.workers()]
        agent = int(open(f"/proc/{pids[0]}/stat").read().rsplit(")", 1)[1].split()[1])  # the parent
        times = break_and_wait(s, "SIGKILL of the agent", lambda: os.kill(agent, signal.SIGKILL))
        check_streams(streams, undisturbed)
        assert not any(os.path.exists(f"/proc/{p}") for p in pids)  # its workers went with it
        assert "the node agent ended; started again" in s.logs()
        report("SIGKILL of the agent", times, streams)


def test_the_same_worker_is_killed_five_times(undisturbed):
    with serve("--tp", 2) as s:
        streams = start(s)
        seen, pauses = set(), []
        for k in range(5):
            pid = worker_pid(s, 1)
            assert pid not in seen, f"round {k}"
            seen.add(pid)
            pauses.append(break_and_wait(s, f"kill {k}", lambda: os.kill(pid, signal.SIGKILL))[1])
            wait_tokens(streams, 5)
        check_streams(streams, undisturbed)
        assert metric(s, "recoveries_total") == 5
        assert s.workers()[1]["restarts"] == 5
        print("\nfive kills in a row, serving again after " + ", ".join(f"{p * 1000:.0f}" for p in pauses) + " ms")


def test_both_workers_at_once(undisturbed):
    with serve("--tp", 2) as s:
        streams = start(s)
        pids = [w["pid"] for w in s.workers()]
        times = break_and_wait(s, "SIGKILL of every worker", lambda: [os.kill(p, signal.SIGKILL) for p in pids])
        check_streams(streams, undisturbed)
        report("SIGKILL of both workers", times, streams)


def test_requests_that_come_while_a_worker_is_away_wait_and_are_served(undisturbed):
    with serve("--tp", 2, *HANG) as s:
        os.kill(worker_pid(s), signal.SIGSTOP)
        late = [Stream(s, b) for b in bodies()]
        check_streams(late, undisturbed)
        assert metric(s, "recoveries_total") >= 1


@pytest.mark.sanitizer
def test_a_worker_that_cannot_load_again_is_fatal_and_says_why(tmp_path):
    model = tmp_path / "moved.gguf"
    shutil.copy(DEMO, model)
    with Server(model, "--tp", 2, *BEAT) as s:
        stream = Stream(s, {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "temperature": 0})
        wait_tokens([stream], 5)
        model.unlink()
        os.kill(worker_pid(s), signal.SIGKILL)
        code = s.proc.wait(2 * PATIENCE_S)
        assert code not in (0, None) and code > 0
        stream.result()
        assert stream.error and stream.error["type"] != "connection", stream.error
        lines = [line for line in s.logs().splitlines() if "racklm" in line.split()[0] or "cannot serve" in line]
        last = [line for line in lines if "moved.gguf" in line]
        assert last and "failed to load" in last[-1], lines
        assert not s.pids()
