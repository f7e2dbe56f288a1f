"""After a fork parent and child both go on: neither hangs, and no byte of one is on the other's connection."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.reliability.programs import finished, next_line, program
from tests.support.mail import envelope, intact
from threadmail import Client, ClientPool, Closed, ThreadedSender
from threadmail.testing import Pause, Reply, ScriptedServer, Serve, Signal, TestCA

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at sockets through /proc")

NAMES = ("client", "pool", "sender")


def told(out: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in out.splitlines():
        found.update(json.loads(line))
    return found


def check_connections(server: ScriptedServer, parents: list[str], childs: list[str]) -> None:
    """Each message arrived once and whole; the parent's three connections are the parent's from EHLO to QUIT."""
    assert intact(server.messages) == Counter([*parents, *childs])
    connection_of = {m.sender.removeprefix("from-").partition("@")[0]: m.connection for m in server.messages}
    for index, name in enumerate(NAMES):
        lines = server.received[index]
        assert [line.partition(" ")[0].lower() for line in lines if line.lower() in ("ehlo", "quit")] == ["quit"]
        assert lines[-1].lower() == "quit"
        assert not any("child" in line for line in lines)
        assert {connection_of[each] for each in parents if each.endswith(name)} == {index}
    assert {connection_of[each] for each in childs}.isdisjoint(range(len(NAMES)))
    assert len(server.received) == 2 * len(NAMES)


@pytest.mark.parametrize("tls", ["none", "tls"])
@pytest.mark.parametrize("how", ["hooks", "no hooks", "libc"])
def test_used_before_the_fork(how: str, tls: Literal["none", "tls"], tmp_path: Path) -> None:
    """Client, pool and sender; also where the hooks of Python, or ours, do not run. A child's end says nothing."""
    cafile = ""
    ca = None
    if tls == "tls":
        ca = TestCA()
        cafile = str(tmp_path / "ca.pem")
        ca.write_ca(cafile)
    with ScriptedServer(tls=tls, ca=ca) as server:
        with program("forking", server.url, cafile, how, "nothing") as process:
            assert process.stdin is not None
            process.stdin.write("fork\n")
            facts = told_after_ready(finished(process))
        assert facts == {"opened": [1, 1, 1], "opened in child": [1, 1, 1], "still inherited": 0, "child": 0}
        check_connections(
            server, [f"{when}-{n}" for when in ("before", "after") for n in NAMES], [f"child-{n}" for n in NAMES]
        )


@pytest.mark.parametrize("how", ["hooks", "no hooks", "libc"])
def test_forked_in_the_midst_of_transactions(how: str) -> None:
    """The three dialogues of the parent stall at the end of data, their locks and the lease held, while it forks."""
    reached = [threading.Event() for _ in NAMES]
    go_on = threading.Event()
    scripts = [
        [Serve(until=".", count=2), Signal(event), Pause(go_on, 30.0), Reply("250 2.0.0 OK"), Serve()]
        for event in reached
    ]
    with ScriptedServer(*scripts, [Serve()], last="repeat") as server:
        with program("forking", server.url, "", how, "transactions") as process:
            assert process.stdin is not None
            assert json.loads(next_line(process)) == "ready"
            assert all(event.wait(10.0) for event in reached)
            process.stdin.write("fork\n")
            process.stdin.flush()
            child = json.loads(next_line(process))
            assert child == {"opened in child": [1, 1, 1], "still inherited": 0}
            assert json.loads(next_line(process)) == {"child": 0}
            assert not go_on.is_set(), "the child waited for the parent"
            go_on.set()
            assert told(finished(process)) == {"opened": [1, 1, 1]}
        check_connections(
            server,
            [f"{when}-{n}" for when in ("before", "during", "after") for n in NAMES],
            [f"child-{n}" for n in NAMES],
        )


@pytest.mark.parametrize("how", ["hooks", "no hooks"])
def test_forked_while_other_threads_hold_each_of_our_locks(how: str) -> None:
    with ScriptedServer() as server:
        with program("forking", server.url, "", how, "locks") as process:
            assert process.stdin is not None
            process.stdin.write("fork\n")
            facts = told_after_ready(finished(process))
        assert facts["child"] == 0
        check_connections(
            server, [f"{when}-{n}" for when in ("before", "after") for n in NAMES], [f"child-{n}" for n in NAMES]
        )


def told_after_ready(out: str) -> dict[str, Any]:
    ready, _, rest = out.partition("\n")
    assert json.loads(ready) == "ready"
    return told(rest)


@pytest.mark.parametrize("how", ["hooks", "no hooks"])
def test_a_child_that_aborts_closes_and_leaves_blocks_harms_no_connection_of_its_parent(how: str) -> None:
    names = ("smtp", "client", "leased", "sender")
    with ScriptedServer() as server:
        with program("leaving", server.url, how) as process:
            assert finished(process) == ""
        childs = ["child-client", "child-leased"]
        assert intact(server.messages) == Counter([*(f"{w}-{n}" for w in ("before", "after") for n in names), *childs])
        of = {m.sender.removeprefix("from-").partition("@")[0]: m.connection for m in server.messages}
        assert all(of[f"before-{name}"] == of[f"after-{name}"] for name in names)
        assert len({*of.values()}) == server.connections == len(names) + len(childs)
        for lines in server.received:
            assert [line.lower() for line in lines].count("quit") == 1
            assert lines[-1].lower() == "quit"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str) -> None:
    """With senders used at import. Live ones cannot be sent to a process, and say that a config can."""
    with ScriptedServer() as server:
        with program("workers", server.url, method) as process:
            assert finished(process) == ""
        expected = [f"{when}-MainProcess-{name}" for when in ("before", "after") for name in NAMES]
        expected += [f"process-w{number}-{name}" for number in range(2) for name in NAMES]
        expected += [f"{what}-w{number}" for number in range(2) for what in ("config", "queued")]
        assert intact(server.messages) == Counter(expected)
        of = {m.sender.removeprefix("from-").partition("@")[0]: m.connection for m in server.messages}
        assert all(of[f"before-MainProcess-{name}"] == of[f"after-MainProcess-{name}"] for name in NAMES)
        assert len({*of.values()}) == server.connections <= len(expected) - len(NAMES)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_was_closed_before_the_fork_is_closed_in_the_child() -> None:
    with ScriptedServer() as server:
        subjects: list[Client | ClientPool | ThreadedSender] = [
            Client(server.url),
            ClientPool(server.url),
            ThreadedSender(server.url),
        ]
        for subject in subjects:
            subject.send(envelope("before"))
            subject.close()
        child = os.fork()
        if child == 0:
            refused = 0
            try:
                for subject in subjects:
                    try:
                        subject.send(envelope("child"))
                    except Closed:
                        refused += 1
            finally:
                os._exit(refused)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == len(subjects)
        assert intact(server.messages) == {"before": 3}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_childs_statistics_are_its_own() -> None:
    """Those of a client went on from where its parent's stood, with a connection open for ever."""
    with ScriptedServer([Serve()], last="repeat") as server:
        client = Client(server.url)
        client.send(envelope("parent"))
        child = os.fork()
        if not child:
            status = 1
            try:
                client.send(envelope("child"))
                client.close()
                stats = client.stats()
                status = 0 if (stats.opened, stats.sent, dict(stats.closed)) == (1, 1, {"closed": 1}) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.stats().sent == 1
        client.close()
