"""The model server, its socket and the oracle: strict where a client errs, quiet where it does not."""

from __future__ import annotations

import smtplib
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.detsched import DPOR, Run, Verdict, explore
from tests.detsched.modelserver import ModelServer
from tests.detsched.oracle import NOT_SENT, SENT, Ledger
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import EVERY, Envelope, Faults


def dialogue(server: ModelServer, body: Callable[[Any], object], *, greet: bool = True) -> Any:
    """What `body` returns for a freshly connected socket, run by one thread."""
    results: list[Any] = []

    def program(run: Run) -> None:
        run.context.enter_context(server)

        def work() -> None:
            sock = socket.create_connection(("model", 25), timeout=5)
            if greet:
                assert sock.recv(100) == b"220 model ready\r\n"
            results.append(body(sock))

        run.thread(work)

    result = explore(program, DPOR(), limit=1)
    assert result.failing == 0, result.first
    return results[0]


def talk(sock: Any, text: str) -> str:
    sock.sendall(text.encode())
    return str(sock.recv(1000).decode())


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        ("RCPT TO:<a>", "503 5.5.1 need MAIL"),
        ("DATA", "503 5.5.1 need RCPT"),
        ("MAIL FROM:<a>|MAIL FROM:<b>", "503 5.5.1 nested MAIL"),
        ("MAIL FROM:<a>|DATA", "503 5.5.1 need RCPT"),
        ("HELLO", "500 5.5.2 unknown command"),
        ("MAIL FROM:a", "501 5.5.4 bad MAIL"),
        ("MAIL FROM:<a> SIZE=1", "504 5.5.4 SIZE was not offered"),
    ],
)
def test_what_is_out_of_sequence_is_answered_and_noted(lines: str, answer: str) -> None:
    server = ModelServer()

    def body(sock: Any) -> str:
        return [talk(sock, line + "\r\n") for line in lines.split("|")][-1]

    assert dialogue(server, body) == answer + "\r\n"
    assert server.connections[0].violations == [f"server answered {answer}"]


def test_what_bdat_announces_is_content_whatever_it_looks_like() -> None:
    server = ModelServer("PIPELINING", "CHUNKING")

    def body(sock: Any) -> list[str]:
        group = "RSET\r\nMAIL FROM:<s>\r\nRCPT TO:<r>\r\nBDAT 16 LAST\r\n..x\r\n.\r\nQUIT\r\n\r\n"
        talk(sock, "EHLO me\r\n")
        sock.sendall(group.encode()[:-5])
        return [talk(sock, group[-5:])]

    (said,) = dialogue(server, body)
    assert [line[:3] for line in said.splitlines()] == ["250", "250", "250", "250"]
    (stored,) = server.delivered
    assert (stored.sender, stored.recipients, stored.body) == ("s", ["r"], b"..x\r\n.\r\nQUIT\r\n")
    assert server.connections[0].violations == []


def test_a_chunk_without_a_recipient_is_taken_and_refused() -> None:
    group = "MAIL FROM:<s>\r\nRCPT TO:<r>\r\nBDAT 6 LAST\r\nQUIT\r\n"
    refusing = ModelServer("PIPELINING", "CHUNKING", faults=Faults(refuse=frozenset(["r"])))
    said = dialogue(refusing, lambda sock: talk(sock, group))
    assert said == "250 2.1.0 sender ok\r\n550 5.1.1 no such user: r\r\n554 5.5.1 no valid recipients\r\n"
    assert (refusing.delivered, refusing.connections[0].violations) == ([], [])
    strict = ModelServer("PIPELINING", "CHUNKING")
    assert dialogue(strict, lambda sock: talk(sock, "BDAT 6 LAST\r\nQUIT\r\n")) == "503 5.5.1 need RCPT\r\n"
    assert strict.connections[0].violations == ["server answered 503 5.5.1 need RCPT"]
    plain = ModelServer()
    assert dialogue(plain, lambda sock: talk(sock, "BDAT 6 LAST\r\n")) == "501 5.5.4 bad BDAT\r\n"


def test_a_correct_dialogue_is_stored_without_a_violation() -> None:
    server = ModelServer("SIZE 1000", "8BITMIME")

    def body(sock: Any) -> list[str]:
        mail = ["EHLO me", "MAIL FROM:<s> SIZE=5 BODY=8BITMIME", "RCPT TO:<r>", "DATA", "..x\r\n."]
        replies = [talk(sock, step + "\r\n") for step in [*mail, "RSET", "NOOP", "QUIT"]]
        return [*replies, sock.recv(1).decode()]

    replies = dialogue(server, body)
    assert replies[0] == "250-model\r\n250-SIZE 1000\r\n250 8BITMIME\r\n"
    assert [reply[:3] for reply in replies[1:]] == ["250", "250", "354", "250", "250", "250", "221", ""]
    assert server.delivered == [Envelope("s", ["r"], "conn0.0", b".x", "250 2.0.0 stored as conn0.0-1")]
    assert server.connections[0].violations == []


def test_pipelining_is_a_violation_unless_it_was_offered() -> None:
    group = "MAIL FROM:<s>\r\nRCPT TO:<r>\r\nDATA\r\n"
    for server, violations in [(ModelServer(), ["pipelined without PIPELINING"]), (ModelServer("PIPELINING"), [])]:
        assert dialogue(server, lambda sock: talk(sock, group)).count("\r\n") == 3
        assert server.connections[0].violations == violations


def test_recv_takes_what_is_there_and_a_look_does_not_wait() -> None:
    def body(sock: Any) -> list[object]:
        sock.sendall(b"NOOP\r\n")
        first = sock.recv(4)
        buffer = bytearray(100)
        rest = sock.recv_into(buffer)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.settimeout(5)
        assert sock.gettimeout() == 5
        return [first, bytes(buffer[:rest])]

    assert dialogue(ModelServer(), body) == [b"250 ", b"2.0.0 ok\r\n"]


def test_lines_by_makefile() -> None:
    def body(sock: Any) -> list[bytes]:
        reader = sock.makefile("rb")
        sock.sendall(b"NOOP\r\n")
        return [reader.readline(), reader.readline()]

    assert dialogue(ModelServer(), body, greet=False) == [b"220 model ready\r\n", b"250 2.0.0 ok\r\n"]


def test_shutdown_wakes_a_blocked_reader() -> None:
    def program(run: Run) -> None:
        run.context.enter_context(ModelServer())
        got: list[bytes] = []
        sock = socket.create_connection(("model", 25))
        sock.recv(100)
        run.thread(lambda: got.append(sock.recv(100)))
        run.thread(lambda: sock.shutdown(socket.SHUT_RDWR))
        run.judge(lambda: Verdict(outcome=tuple(got)))

    assert explore(program, DPOR()).outcomes == {((b"",), None)}


def test_after_the_end_a_socket_fails_as_a_real_one() -> None:
    def body(sock: Any) -> None:
        sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(BrokenPipeError):
            sock.sendall(b"x")
        sock.close()
        for method, argument in [("sendall", b"x"), ("recv", 1), ("shutdown", socket.SHUT_RDWR)]:
            with pytest.raises(OSError, match="closed"):
                getattr(sock, method)(argument)
        with pytest.raises(OSError, match="descriptor"):
            sock.fileno()

    dialogue(ModelServer(), body)


def test_a_read_that_nothing_answers_is_a_deadlock_or_a_timeout() -> None:
    def program(run: Run, read_timeouts: bool) -> None:
        run.context.enter_context(ModelServer(read_timeouts=read_timeouts))
        sock = socket.create_connection(("model", 25), timeout=5)
        sock.recv(100)
        run.thread(lambda: sock.recv(100))

    assert dict(explore(lambda run: program(run, False), DPOR()).kinds) == {"deadlock": 1}
    assert dict(explore(lambda run: program(run, True), DPOR()).kinds) == {"thread died: TimeoutError": 1}


# Faults -------------------------------------------------------------------------------------------------------------


def send_two(faults: Faults, *, connections: int = 1) -> tuple[Ledger, ModelServer]:
    """Two messages by one thread through smtplib, over one connection or one each."""
    kept: list[Any] = []

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(faults=faults), failures=[""])
        jobs = office.jobs(0, 2, recipients=2)
        kept[:] = [office.ledger, office.server]

        def work() -> None:
            clients: list[smtplib.SMTP] = []

            def send(*args: Any) -> Any:
                if len(clients) < connections:
                    clients.append(smtplib.SMTP("model", 25, local_hostname="me"))
                return clients[-1].sendmail(*args)

            for job in jobs:
                office.ledger.send(job, send)

        run.thread(work)

    explore(program, DPOR(), limit=1)
    return kept[0], kept[1]


@pytest.mark.parametrize(
    ("faults", "connections", "details"),
    [
        (Faults(), 1, ["", ""]),
        (Faults(refuse=frozenset({"r1.T0m0@there.test"})), 1, ["", ""]),
        (Faults(drop={0: 3}), 1, ["SMTPServerDisconnected", "SMTPServerDisconnected"]),
        (Faults(drop={0: 3}), 2, ["SMTPServerDisconnected", ""]),
        (Faults(closing={0: 2}), 2, ["SMTPSenderRefused 421", ""]),
        (Faults(refuse_content={"T0m0@here.test": "554 5.7.1 spam"}), 1, ["SMTPDataError 554", ""]),
        (Faults(hang_up_after={EVERY: 1}), 1, ["", "SMTPServerDisconnected"]),
        (Faults(hang_up_after={EVERY: 1}), 2, ["", ""]),
        (Faults(refuse_connects=frozenset({0})), 1, ["ConnectionRefusedError", ""]),
        (Faults(greet_421=frozenset({0})), 1, ["SMTPConnectError 421", ""]),
    ],
)
def test_faults(faults: Faults, connections: int, details: list[str]) -> None:
    ledger, server = send_two(faults, connections=connections)
    assert [report.detail for report in ledger.reports.values()] == details
    assert len(server.delivered) == details.count("")
    assert ledger.reports["T0m0"].refused == faults.refuse


def test_idle_connections_can_be_hung_up_by_a_thread_of_the_scenario() -> None:
    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(ordered=True), failures=["SMTPServerDisconnected"])
        client = smtplib.SMTP("model", 25, local_hostname="me")
        client.ehlo()
        office.senders(threads=1, messages=1, sendmail=client.sendmail)
        run.thread(office.server.hang_up_idle)

    result = explore(program, DPOR())
    assert (result.complete, result.failing) == (True, 0)
    assert {outcome[0][1][0][1] for outcome in result.outcomes} == {SENT, NOT_SENT}  # type: ignore[index]


@pytest.mark.parametrize(("guarded", "violations"), [(True, []), (False, ["connection used without a lock in common"])])
def test_a_connection_used_without_a_common_lock_is_noticed(guarded: bool, violations: list[str]) -> None:
    """Even where the threads come one after the other, so that nothing else can go wrong."""

    def program(run: Run) -> None:
        server = run.context.enter_context(ModelServer(lockset=True))
        sock: Any = socket.create_connection(("model", 25))
        sock.recv(100)
        locks = [threading.Lock(), threading.Lock()]
        turn = threading.Event()

        def use(lock: Any) -> None:
            with lock:
                sock.sendall(b"NOOP\r\n")
                sock.recv(100)

        def second() -> None:
            turn.wait()
            use(locks[not guarded])

        def first() -> None:
            use(locks[0])
            turn.set()

        run.thread(first)
        run.thread(second)
        run.judge(lambda: Verdict(tuple(server.connections[0].violations)))

    assert list(explore(program, DPOR()).kinds) == violations
