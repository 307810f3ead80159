"""Two hosts (network namespaces) as the README sets them up: the same bits as one host, keys that are not known, and links that are cut.

Timeouts are small so that the tests are quick; the promises are those of the options: a stream waits recover_timeout_ms for a lost host and then
ends with an error, and a cut is noticed within heartbeat_timeout_ms."""
import json
import re
import subprocess
import time

import netns
import pytest
from conftest import DEMO, FULL, TOP, Server, racklm
from streams import Stream, metric, wait_for, wait_tokens

WHY_NOT = netns.available()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

HEARTBEAT_TIMEOUT_S = 1.0
SLACK_S = 60.0  # of a busy machine
PROMPT = (TOP / "deploy/demo/heldout.txt").read_text()[:600]
LONG = {"prompt": "Once upon a time", "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def net():
    with netns.Net() as n:
        yield n


@pytest.fixture(scope="module")
def one_host():
    """What one process on one host says."""
    with Server(DEMO, "--threads", 1, "--ctx", 4096) as s:
        long = s.complete(LONG["prompt"], max_tokens=1800, ignore_eos=True, return_token_ids=True)["choices"][0]
        yield {"answer": answer(s), "long_ids": long["token_ids"], "long_text": long["text"]}


def answer(server):
    c = server.complete(PROMPT, max_tokens=256, ignore_eos=True, logprobs=3, return_token_ids=True)["choices"][0]
    return c["token_ids"], c["text"], c["logprobs"]


def options(recover_ms):
    return f"heartbeat_ms: 100;heartbeat_timeout_ms: {int(HEARTBEAT_TIMEOUT_S * 1000)};recover_timeout_ms: {recover_ms};ctx: 4096"


@pytest.mark.parametrize("tp,pp", [(2, 1), (1, 2)], ids=["tp 2", "pp 2"])
def test_the_recipe_of_the_readme_gives_the_bits_of_one_host(net, one_host, tp, pp):
    with netns.Cluster(net, DEMO, tp, pp, options(10000)) as c:
        workers = json.loads(racklm("workers", "-o", "json", env=c.env(0)).stdout)
        assert len(workers) == 2
        pids = [set(subprocess.run(["ip", "netns", "pids", n], capture_output=True, text=True).stdout.split()) for n in net.names]
        assert sorted(next(i for i in (0, 1) if str(w["pid"]) in pids[i]) for w in workers) == [0, 1]  # one on each host
        assert answer(c) == one_host["answer"]
        # What listens on the second host: at most UCX on the configured interface, nothing on any other address.
        listening = subprocess.run(["ip", "netns", "exec", net.names[1], "ss", "-Hltun"], capture_output=True, text=True).stdout
        addresses = [line.split()[4].rsplit(":", 1)[0] for line in listening.splitlines()]
        assert all(a.startswith(netns.ADDRESS[1]) for a in addresses), listening


def test_an_unknown_key_is_refused(net):
    """A key that was never on the list, and one that has been taken off it: the agent ends with one clear line; the cluster goes on."""
    with netns.Cluster(net, DEMO, 2, 1, options(10000)) as c:
        other = netns.Cluster(net, DEMO, 2, 1)  # keys of another coordinator
        foreign = other.key("host2").read_text().splitlines()
        good = (c.homes[1] / "host2.key").read_text().splitlines()
        server = [line for line in good if "server" in line]
        forged = [line for line in foreign if "server" not in line] + server
        assert len(server) == 1 and len(forged) == len(good), (good, foreign)
        path = c.homes[1] / "forged.key"
        path.write_text("\n".join(forged) + "\n")
        path.chmod(0o600)
        command = c.local(c.second[0]).replace("host2.key", "forged.key")
        p = c.spawn(1, "forged", command)
        assert p.wait(60) == 3, c.logs("forged")
        del c.procs["forged"]
        lines = [line for line in c.logs("forged").splitlines() if "refused the key" in line]
        assert len(lines) == 1 and "allow-list" in lines[0] and "ERROR" in lines[0], c.logs("forged")
        wait_for("the coordinator logs the refusal", lambda: re.search(r"WARN coordinator proto: .*refused", c.logs("coordinator")), 60)
        assert c.health() == 200 and c.complete(max_tokens=2)


@pytest.mark.parametrize("how", ["down", "drop"])
@pytest.mark.parametrize("tp,pp", [(2, 1), (1, 2)] if FULL else [(2, 1)])
def test_a_cut_link_ends_streams_within_their_deadline_and_the_cluster_comes_back(net, one_host, how, tp, pp):
    recover_s = 1.5
    with netns.Cluster(net, DEMO, tp, pp, options(int(recover_s * 1000))) as c:
        streams = [Stream(c, {**LONG, "max_tokens": 3500}) for _ in range(4)]
        wait_tokens(streams, 20)
        with net.cut(how):
            begin = time.monotonic()
            wait_for("/health is 503", lambda: c.health() == 503, HEARTBEAT_TIMEOUT_S + SLACK_S)
            noticed = time.monotonic() - begin
            for s in streams:
                s.join(HEARTBEAT_TIMEOUT_S + recover_s + SLACK_S)
                assert not s.open, f"a stream hangs {time.monotonic() - begin:.1f} s after the cut"
            ended = max(s.ended_at for s in streams) - begin
            for s in streams:
                assert s.error and "recover" in s.error["message"] and s.error["type"] != "connection", s.error
                assert s.finish is None and s.ids == one_host["long_ids"][:len(s.ids)]
            assert c.health() == 503
            late = c.post("/v1/completions", {**LONG, "max_tokens": 1}, timeout=recover_s + SLACK_S)
            assert late.status == 503 and late.json["error"]["message"], late.body
        back = c.wait_healthy(90)
        assert answer(c) == one_host["answer"]
        assert metric(c, "recoveries_total") >= 1
        print(f"\ncut by {how}: noticed after {noticed:.2f} s, streams ended after {ended:.2f} s, back {back:.2f} s after the link")


@pytest.mark.parametrize("how", ["down", "drop"])
def test_a_short_cut_is_a_pause(net, one_host, how):
    with netns.Cluster(net, DEMO, 2, 1, options(30000)) as c:
        streams = [Stream(c, {**LONG, "max_tokens": 1800}) for _ in range(3)]
        wait_tokens(streams, 20)
        with net.cut(how):
            wait_for("/health is 503", lambda: c.health() == 503, HEARTBEAT_TIMEOUT_S + SLACK_S)
            stopped = [len(s.ids) for s in streams]
        for s, n in zip(streams, stopped):
            ids, text, _, finish = s.result(90)
            assert s.error is None and finish == "length"
            assert n < 1800  # it was open
            assert ids == one_host["long_ids"] and text == one_host["long_text"]
        assert c.health() == 200
        print(f"\nshort cut by {how}: longest pause {max(s.gap() for s in streams):.2f} s")
