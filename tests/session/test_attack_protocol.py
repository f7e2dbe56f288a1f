"""What adversarial reads of the protocol found: each fault as the claim that it broke."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys

import pytest

from tests.support.mail import envelope
from threadmail import Client, Envelope, MailError, Outcome, ReplyTimedOut, ServerConfig, Timeouts
from threadmail._protocol.transaction import Terms, Transaction
from threadmail._transport import socket as _socket
from threadmail._transport import wire as _wire
from threadmail.receipt import Reply as Answer
from threadmail.testing import Reply, ScriptedServer, Serve, Stall

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a socket's ticks")

TICK = 0.2


@pytest.fixture
def fast_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_socket, "TICK", TICK)
    monkeypatch.setattr(_wire, "TICK", TICK)


def patient_for(server: ScriptedServer, seconds: float) -> ServerConfig:
    return dataclasses.replace(ServerConfig.of(server.url), timeouts=Timeouts.all(seconds))


@linux_only
def test_signals_that_keep_coming_do_not_keep_a_time_out_from_coming(fast_ticks: None) -> None:
    """Each interrupts the main thread's wait, which Python begins again; the kernel then counts anew."""
    signals: list[None] = []
    with ScriptedServer([Serve(until="MAIL"), Stall()]) as server, Client(patient_for(server, 3 * TICK)) as client:

        def tick(*_: object) -> None:
            signals.append(None)
            if len(signals) > 200:  # for the code that would wait for ever
                client.abort()

        before = signal.signal(signal.SIGALRM, tick)
        signal.setitimer(signal.ITIMER_REAL, TICK / 4, TICK / 4)
        try:
            with pytest.raises(ReplyTimedOut):
                client.send(envelope("a"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
    assert signals


@linux_only
def test_a_socket_that_a_loop_waits_for_is_not_left_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gevent's: it stands in the place of Python's own, and its descriptor never blocks, so no tick comes."""

    class Looped(socket.socket):
        def settimeout(self, value: float | None) -> None:
            super().settimeout(value)
            if self.fileno() >= 0:
                os.set_blocking(self.fileno(), False)

    monkeypatch.setattr(_socket, "_SystemSocket", Looped)
    ours, theirs = socket.socketpair()
    with Looped(fileno=ours.detach()) as looped, theirs:
        looped.settimeout(7.0)
        wire = _wire.Wire(looped, Timeouts())
        wire.tick_in_kernel()
        assert not wire.kernel_ticks
        assert looped.gettimeout() == 7.0
        assert looped.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == bytes(16)


def test_a_batch_does_not_dial_again_behind_what_is_no_message() -> None:
    """Where no session can be opened the rest is not tried; what is no message says nothing of the server."""
    batch: list[Envelope | bytes] = []
    for number in range(60):
        batch += [envelope(f"m{number}"), b"no message\0"]
    with ScriptedServer([Reply("554 5.7.1 not you")], last="repeat") as server, Client(server.url) as client:
        report = client.send_all(batch)
        assert server.connections == 1
    assert report.counts()[Outcome.NOT_SENT] == 120


@pytest.mark.parametrize("replies", [("450 4.2.0 later", "550 5.1.1 no"), ("550 5.1.1 no", "450 4.2.0 later")])
def test_whether_to_resend_by_lmtp_does_not_hang_on_the_order_of_recipients(replies: tuple[str, str]) -> None:
    recipients = ("a@example.net", "b@example.net")
    transaction = Transaction(Envelope("me@example.org", recipients, "Subject: x\r\n\r\nx\r\n"), Terms(lmtp=True))
    for command in transaction.commands():
        transaction.take(command, _reply("354 go" if command.line == "data" else "250 ok"))
    for recipient, reply in zip(transaction.awaited, replies, strict=True):
        transaction.take_final(recipient, _reply(reply))
    error = transaction.error
    assert isinstance(error, MailError)
    assert transaction.blame(error).may_resend
    assert transaction.receipt().deferred == (recipients[replies.index("450 4.2.0 later")],)


def _reply(text: str) -> Answer:
    code, _, said = text.partition(" ")
    return Answer(int(code), said.encode())
