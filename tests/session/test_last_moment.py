"""The last moment before the end of data leaves: what `before_final` may rely on.

Whoever commits there that a message is about to leave needs two things: between the commit and the write nothing may
come that could last or fail, and what raises there keeps the message from leaving, for sure.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.support.dialogue import CONTENT, A, B, Part, envelope, group, replies, wire_to
from threadmail import Envelope, Outcome, Phase
from threadmail._message.content import BLOCK
from threadmail._protocol.transaction import Terms, Transaction
from threadmail._session.delivery import Follower, Pipeline
from threadmail._transport.wire import Wire
from threadmail.testing import Expect, ReadBytes, ReadData, ScriptedServer, Stall, answer

PIPELINING = {"pipelining": ""}
RIDING = Terms(PIPELINING)
LARGE = CONTENT + b"x" * 70 + b"\r\n" * (2 * BLOCK)

LOCKSTEP: list[Part] = [answer("MAIL", "250 ok"), answer("RCPT", "250 ok"), answer("DATA", "354 go")]
GROUP: list[Part] = [*group(), replies("250 ok", "250 ok", "354 go")]
BDAT: list[Part] = [Expect("RSET"), Expect("MAIL"), Expect("RCPT"), Expect(f"BDAT {len(CONTENT)} LAST")]


class Events(list[str]):
    """What happens on a connection, in order."""

    def hook(self, transaction: Transaction) -> None:
        self.append(f"hook for {transaction.envelope.sender[0]}")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[Events]:
    """Sends, reads, looks at the socket and lines of the protocol log, wherever they come from."""
    found = Events()

    def noted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(sock: socket.socket, argument: object) -> object:
            if sock.getpeername()[1] in ports:
                found.append(name)
            return real(sock, argument)

        return call

    ports: set[int] = set()
    monkeypatch.setattr(socket.socket, "send", noted("send", socket.socket.send))
    monkeypatch.setattr(socket.socket, "recv", noted("recv", socket.socket.recv))
    quiet = Wire.quiet

    def looked(wire: Wire) -> bool:
        ports.add(wire.sock.getpeername()[1])
        found.append("look")
        return quiet(wire)

    monkeypatch.setattr(Wire, "quiet", looked)
    handler = logging.Handler()
    handler.emit = lambda record: found.append("log")  # type: ignore[method-assign]
    log = logging.getLogger("threadmail.protocol")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.DEBUG)
    yield found
    log.setLevel(level)
    log.removeHandler(handler)


def follower(asked: Events, kept: list[Transaction] | None = None) -> Callable[[], Follower | None]:
    """One message behind the first."""
    waiting = [Envelope("b@example.org", (B,), CONTENT)]

    def follow() -> Follower | None:
        asked.append("follow")
        return Follower(waiting.pop(), None if kept is None else kept.append) if waiting else None

    return follow


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("how", ["lock-step", "in a group", "riding", "LMTP", "window"])
def test_nothing_comes_between_the_hook_and_the_write(how: str, content: bytes, events: Events) -> None:
    """The socket was looked at and the next message asked for before; the log is written after."""
    script = [*(LOCKSTEP if how == "lock-step" else GROUP), ReadData()]
    extensions, follow = dict(PIPELINING), None
    if how == "lock-step":
        extensions = {}
    elif how == "riding":
        script += [Expect("RSET"), *group(), replies("250 ok", "250 reset", "250 ok", "250 ok", "354 go"), ReadData()]
        follow = follower(events)
    elif how == "window":
        extensions["chunking"] = ""
        follow = follower(events)
        if content is CONTENT:
            script = [*BDAT, ReadBytes(len(CONTENT)), *BDAT, ReadBytes(len(CONTENT))]
            script += [replies("250 reset", "250 ok", "250 ok", "250 ok", "250 reset", "250 ok", "250 ok")]
        else:  # it goes by itself, and opens no window for the one behind
            script += [replies("250 ok"), *BDAT, ReadBytes(len(CONTENT)), replies("250 reset", "250 ok", "250 ok")]
    terms = Terms(extensions, lmtp=how == "LMTP", window=2 if how == "window" else 1)
    with ScriptedServer([*script, replies("250 ok"), Stall()]) as server, wire_to(server) as wire:
        pipeline = Pipeline(wire)
        first = Envelope("a@example.org", (A,), content)
        assert pipeline.send(first, terms, before_final=events.hook, follow=follow).outcome is Outcome.SENT
        if pipeline.prefetched:
            second = pipeline.prefetched[0].envelope
            assert pipeline.send(second, terms, before_final=events.hook).outcome is Outcome.SENT
    hooks = [at for at, event in enumerate(events) if event.startswith("hook")]
    assert [events[at] for at in hooks] == (["hook for a", "hook for b"] if follow else ["hook for a"])
    assert [events[at + 1] for at in hooks] == ["send"] * len(hooks)
    if follow is not None and (how == "riding" or content is LARGE):
        assert events.index("follow") < hooks[0]
    if how != "window" or content is LARGE:
        assert "look" in events[: hooks[0]]


@pytest.mark.parametrize("error", [LookupError("no"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["small", "large"])
def test_what_is_raised_keeps_both_from_leaving(error: BaseException, content: bytes) -> None:
    """The one behind was asked for already; not a byte of it has been written, and the connection is gone."""
    asked: Events = Events()
    kept: list[Transaction] = []

    def objects(transaction: Transaction) -> None:
        assert transaction is kept[0]
        assert transaction.receipt().outcome is Outcome.NOT_SENT
        raise error

    with ScriptedServer([*GROUP, Stall()]) as server, wire_to(server) as wire:
        with pytest.raises(type(error)):
            Pipeline(wire).send(
                envelope(content=content),
                RIDING,
                before_mail=kept.append,
                before_final=objects,
                follow=follower(asked, kept),
            )
        assert not wire.is_open
        server.wait_for_connections(0)
        received = b"".join(t.data for t in server.transcript if t.direction == "received")
    assert asked == ["follow"]
    assert [(t.phase, t.receipt().outcome) for t in kept] == [
        (Phase.CONTENT, Outcome.NOT_SENT),
        (Phase.MAIL, Outcome.NOT_SENT),
    ]
    assert b"\r\n.\r\n" not in received
    assert b"from:<b@" not in received
