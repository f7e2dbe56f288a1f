"""Conversations by hand: one message over one connection, and what the server hears of it.

For tests that look at the order of what is written and said.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from threadmail import Envelope, Receipt, Timeouts
from threadmail import testing as play
from threadmail._protocol.transaction import Terms
from threadmail._session.delivery import BeforeFinal, BeforeMail, Pipeline
from threadmail._transport.wire import Wire
from threadmail.testing import Expect, Peer, ScriptedServer, Send
from threadmail.testing._peer import Silence

A, B, C = "a@x.test", "b@x.test", "c@x.test"
CONTENT = b"Subject: x\r\n\r\nbody\r\n"
PATIENT = Timeouts(command=10.0, content=10.0, final=10.0)

Part = play.Step | play.Steps


def envelope(*recipients: str, content: bytes = CONTENT, sender: str = "ann@example.org") -> Envelope:
    return Envelope(sender, recipients or (A,), content)


@contextmanager
def wire_to(server: ScriptedServer, timeouts: Timeouts = PATIENT) -> Iterator[Wire]:
    with socket.create_connection((server.host, server.port), 10.0) as sock:
        yield Wire(sock, timeouts, "test")


def send(
    wire: Wire,
    message: Envelope,
    terms: Terms,
    *,
    before_mail: BeforeMail | None = None,
    before_final: BeforeFinal | None = None,
) -> Receipt:
    """One message by itself, with nothing prefetched before or after."""
    return Pipeline(wire).send(message, terms, before_mail=before_mail, before_final=before_final)


def ok(recipients: int = 1, final: str = "250 2.0.0 OK") -> play.Steps:
    return play.transaction(recipients, final)


@dataclass(frozen=True)
class NothingMore:
    """Nothing more comes before the server has said something: what is written at once is written."""

    seconds: float = 0.05

    def play(self, peer: Peer) -> None:
        try:
            line = peer.read_command(self.seconds)
        except Silence:
            return
        raise AssertionError(f"came without waiting: {line!r}")


def group(recipients: int = 1) -> list[Part]:
    """The commands of a message, read before any is answered."""
    return [Expect("MAIL"), *[Expect("RCPT")] * recipients, Expect("DATA"), NothingMore()]


def replies(*lines: str) -> Send:
    return Send("".join(f"{line}\r\n" for line in lines).encode())
