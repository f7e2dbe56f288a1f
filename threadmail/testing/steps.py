"""The steps of a script for `ScriptedServer`: what the server waits for, says, and breaks.

Each step is a frozen dataclass with one method, ``play(peer)``; a class of your own with that method is a step, too.
A script is a sequence of steps, and may hold such sequences.

    [greeting(), ehlo(), Expect("MAIL"), Reply("250 ok"), Expect("RCPT"), Drop()]
    [Serve(until="MAIL", count=2), Reply("451 4.3.0 later"), Serve()]
    [greeting(), ehlo("AUTH PLAIN"), Expect("AUTH PLAIN"), Reply("535 5.7.8 no"), Serve()]

`peer.dialogue` follows every command read and every reply sent, whichever step did it. So `Serve` knows, when it takes
over, what was said before: a command that no reply has answered yet is answered first.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from ._peer import HungUp, Peer, ScriptFailure, Silence
from ._serve import Serve, Step

Script = Sequence[Union[Step, "Script"]]


class Steps(tuple[Step, ...], Step):
    """Several steps that stand in a script as one."""

    def play(self, peer: Peer) -> None:
        for step in self:
            step.play(peer)


@dataclass(frozen=True)
class Expect(Step):
    """Read one line. It must begin with `pattern` (in any case), or match it where it is a compiled expression.

    Args:
        pattern: the beginning of the line, or an expression that `re.Pattern.match` tries on it.
        timeout: seconds to wait; None: the server's.
    """

    pattern: str | re.Pattern[str]
    timeout: float | None = None

    def play(self, peer: Peer) -> None:
        wanted = self.pattern if isinstance(self.pattern, str) else f"/{self.pattern.pattern}/"
        timeout = peer.timeout if self.timeout is None else self.timeout
        try:
            line = peer.read_command(timeout)
        except HungUp as error:
            raise ScriptFailure(f"expected {wanted!r}, got: {error}") from None
        except Silence:
            raise ScriptFailure(f"expected {wanted!r}, got nothing within {timeout:g} s") from None
        if isinstance(self.pattern, str):
            matches = line.upper().startswith(self.pattern.upper())
        else:
            matches = self.pattern.match(line) is not None
        if not matches:
            raise ScriptFailure(f"expected {wanted!r}, got {peer.shown(line)}")


@dataclass(frozen=True)
class ReadData(Step):
    """Read the content up to the lone dot and store it as a message, whatever is answered afterwards."""

    timeout: float | None = None

    def play(self, peer: Peer) -> None:
        timeout = peer.timeout if self.timeout is None else self.timeout
        try:
            peer.read_content(timeout)
        except HungUp as error:
            raise ScriptFailure(f"expected a content ended by a lone dot, got: {error}") from None
        except Silence:
            raise ScriptFailure(f"expected a content ended by a lone dot, got no more within {timeout:g} s") from None


@dataclass(frozen=True)
class ReadBytes(Step):
    """Read exactly `count` bytes: part of a content, or the chunk that an expected BDAT announced."""

    count: int
    timeout: float | None = None

    def play(self, peer: Peer) -> None:
        timeout = peer.timeout if self.timeout is None else self.timeout
        try:
            peer.read_bytes(self.count, timeout)
        except HungUp as error:
            raise ScriptFailure(f"expected {self.count} bytes, got: {error}") from None
        except Silence:
            raise ScriptFailure(f"expected {self.count} bytes, got fewer within {timeout:g} s") from None


@dataclass(frozen=True)
class Reply(Step):
    """Send a reply; each line of `text` gets its CRLF: ``Reply("250 ok")``, ``Reply("250-one\\n250 two")``."""

    text: str

    def play(self, peer: Peer) -> None:
        peer.reply(self.text)


@dataclass(frozen=True)
class Send(Step):
    """Send bytes as they are: half a reply, garbage, two replies at once."""

    data: bytes

    def play(self, peer: Peer) -> None:
        peer.send(self.data)


@dataclass(frozen=True)
class Drip(Step):
    """Send a byte at a time, `interval` seconds apart."""

    data: bytes
    interval: float = 0.05

    def play(self, peer: Peer) -> None:
        for index in range(len(self.data)):
            if index:
                peer.sleep(self.interval)
            peer.send(self.data[index : index + 1])


@dataclass(frozen=True)
class Stall(Step):
    """Say nothing, whatever comes, until the peer hangs up or the server is closed."""

    def play(self, peer: Peer) -> None:
        try:
            peer.read_anything()
        except HungUp:
            pass


@dataclass(frozen=True)
class Pause(Step):
    """Wait until the test sets `event`; after `timeout` seconds the script has failed.

    Closing the server ends the wait and the script without a complaint.
    """

    event: threading.Event
    timeout: float = 10.0

    def play(self, peer: Peer) -> None:
        if not peer.wait(self.event, self.timeout):
            raise ScriptFailure(f"the event to go on was not set within {self.timeout:g} s")


@dataclass(frozen=True)
class Signal(Step):
    """Set `event`: the test may go on, the script has come this far."""

    event: threading.Event

    def play(self, peer: Peer) -> None:
        self.event.set()


@dataclass(frozen=True)
class Drop(Step):
    """Close the connection in order (FIN; under TLS close_notify first)."""

    def play(self, peer: Peer) -> None:
        peer.drop()


@dataclass(frozen=True)
class Reset(Step):
    """Close the connection with a TCP reset."""

    def play(self, peer: Peer) -> None:
        peer.reset()


@dataclass(frozen=True)
class StartTLS(Step):
    """Shake hands with the server's certificate, as after ``Expect("STARTTLS"), Reply("220 go ahead")``.

    Bytes the client sent before are thrown away. A client that declines the certificate has hung up: that is for the
    next step to judge.
    """

    def play(self, peer: Peer) -> None:
        peer.start_tls()


__all__ = [
    "Drip",
    "Drop",
    "Expect",
    "Pause",
    "Peer",
    "ReadBytes",
    "ReadData",
    "Reply",
    "Reset",
    "Script",
    "ScriptFailure",
    "Send",
    "Serve",
    "Signal",
    "Stall",
    "StartTLS",
    "Step",
    "Steps",
]
