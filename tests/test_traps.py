"""The traps that each falsify a fast sender: what it says was sent is what the server took, in every way of sending.

An all-refused message whose old MAIL still stands; a 354 for nobody; a 421 or a lost connection in each place of a
dialogue; a thousand recipients; a server that answers late, in pieces, or once too often. Against a server made to lay
these traps, and the same traffic against servers nobody here wrote. What is stated are outcomes, never round trips, so
that each way of sending is held to the same.
"""

from __future__ import annotations

import dataclasses
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest

from tests.support.traps import (
    ACTS,
    EVERY_PAIR,
    GOOD,
    MANNERS,
    Letter,
    Taken,
    Trapper,
    complaints,
    letter,
    letters,
    unlike,
)
from threadmail import Client, Envelope, MailError, Outcome, Receipt, RetryPolicy, ServerConfig, ThreadedSender
from threadmail.testing import Pause, ScriptedServer

PATIENCE = 30.0  # seconds for everything that a test sends

Queued: TypeAlias = Callable[[], None]


def one_by_one(config: ServerConfig, envelopes: Sequence[Envelope], queued: Queued) -> list[Receipt]:
    """Each as the last one has its receipt, on one client."""
    queued()
    receipts = []
    with Client(config) as client:
        for envelope in envelopes:
            try:
                receipts.append(client.send(envelope, deadline=PATIENCE))
            except MailError as error:
                assert error.receipt is not None
                receipts.append(error.receipt)
    return receipts


def all_at_once(config: ServerConfig, envelopes: Sequence[Envelope], queued: Queued) -> list[Receipt]:
    """All wait on one lane when the connection is ready."""
    retry = RetryPolicy(base=0.01)
    with ThreadedSender(config, workers=1, retry=retry, rng=random.Random(1)) as sender:
        futures = [sender.submit(envelope, deadline=PATIENCE) for envelope in envelopes]
        queued()
        for future in futures:
            future.exception(PATIENCE)
    return [future.receipt for future in futures if future.receipt is not None]


def as_a_list(config: ServerConfig, envelopes: Sequence[Envelope], queued: Queued) -> list[Receipt]:
    """All given to one client together."""
    queued()
    with Client(config) as client:
        return list(client.send_all(envelopes, deadline=PATIENCE))  # type: ignore[attr-defined, unused-ignore]


@dataclass(frozen=True)
class Mode:
    """A way of sending.

    Args:
        send: sends the messages, calls back when all that are to wait at once do, and returns their receipts.
        offers: what our own server offers for it.
        settings: of the client.
        retries: it tries again what is surely not sent.
        doubts: messages that one lost connection leaves in doubt, at most.
    """

    name: str
    send: Callable[[ServerConfig, Sequence[Envelope], Queued], list[Receipt]]
    offers: tuple[str, ...] = ("PIPELINING", "8BITMIME")
    settings: Mapping[str, Any] = field(default_factory=dict)
    retries: bool = True
    doubts: int = 1


LOCK_STEP = Mode("lock-step", one_by_one, ("8BITMIME",), {"without": frozenset({"pipelining"})}, retries=False)

#: One line a way of sending.
MODES = [
    LOCK_STEP,
    Mode("groups", one_by_one, retries=False),
    Mode("riding", all_at_once),
    *([Mode("riding, one client", as_a_list, retries=False)] if hasattr(Client, "send_all") else []),
]

each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


@dataclass(frozen=True)
class Played:
    """What came of a session, or several."""

    receipts: list[Receipt]
    taken: Taken
    connections: int


def play(mode: Mode, sent: Sequence[Letter], **trap: Any) -> Played:
    """Send to a server that lays a trap on its first connection."""
    taken, queued = Taken(), threading.Event()
    script = [Pause(queued), Trapper(taken, mode.offers, **trap)]
    with ScriptedServer(script, last="repeat") as server:
        config = dataclasses.replace(server.config, **mode.settings)
        receipts = mode.send(config, [letter.envelope for letter in sent], queued.set)
    return Played(receipts, taken, server.connections)


def even(found: Iterator[str]) -> None:
    wrong = list(found)
    assert not wrong, "\n".join(wrong[:20])


# ---------------------------------------------------------------- refusals


@each_mode
@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("lax", [False, True], ids=["554 to DATA", "354 to DATA"])
def test_each_refusal_behind_each(mode: Mode, lax: bool, manner: str) -> None:
    """All refused, partly refused, MAIL refused, none refused: each behind each, over one connection.

    An old MAIL that still stands would take the next recipients; a lone dot behind them would be an empty message.
    """
    sent = letters(EVERY_PAIR)
    played = play(mode, sent, lax=lax, manner=manner)
    even(complaints(sent, played.receipts, played.taken.messages))
    even(unlike(sent, played.receipts))
    assert played.connections == 1


# ---------------------------------------------------------------- a misdeed in each place

THREE = letters([GOOD] * 3, "three")
EHLO = 1  # the greeting is 0
FINAL = (".", "BDAT")  # what the last reply that a message is owed answers
MUTE = ("close", "reset", "cut", "garbage")  # what is no answer to a content


@each_mode
@pytest.mark.parametrize("act", ACTS)
def test_a_misdeed_in_each_place(mode: Mode, act: str) -> None:
    """At each reply of a dialogue of three messages: what was told is true, and the others never pay for it."""
    sound = play(mode, THREE)
    even(unlike(THREE, sound.receipts))
    wrong, doubts = [], 0
    for place, manner in places(sound.taken.replies):
        played = play(mode, THREE, act=act, place=place, manner=manner)
        where = f"{act} at reply {place}, to {played.taken.replies[place]}, {manner}"
        wrong += [f"{where}: {complaint}" for complaint in judged(mode, played, act, place)]
        doubts += sum(receipt.outcome is Outcome.IN_DOUBT for receipt in played.receipts) * (manner == "at once")
    assert not wrong, "\n".join(wrong[:20])
    if mode.doubts == 1:
        assert doubts == (3 if act in MUTE else 0)


def places(replies: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Each reply by itself; those to the second message also where one write brings all that are due."""
    for place in range(len(replies)):
        yield place, "at once"
        if owner_of(replies, place) == 1:
            yield place, "late"


def owner_of(replies: Sequence[str], place: int) -> int:
    """Which message a reply concerns."""
    return sum(verb in FINAL for verb in replies[:place])


def judged(mode: Mode, played: Played, act: str, place: int) -> Iterator[str]:
    """What is false; who has not got what he should have; who was charged for what is not his."""
    yield from complaints(THREE, played.receipts, played.taken.messages)
    for letter, receipt in zip(THREE, played.receipts, strict=True):
        doubt = letter.envelope.content in played.taken.unanswered
        if doubt and receipt.outcome is not Outcome.IN_DOUBT:
            yield f"{receipt.message_id} ended {receipt.outcome.value}, and nobody had answered its content"
        if not doubt and receipt.outcome is Outcome.IN_DOUBT and mode.doubts == 1:
            yield f"{receipt.message_id} in doubt, and its content was answered or had never come"
    if [receipt.outcome for receipt in played.receipts].count(Outcome.IN_DOUBT) > mode.doubts:
        yield "too much in doubt"
    if place > EHLO:
        yield from charged(mode, played, act, place)


def charged(mode: Mode, played: Played, act: str, place: int) -> Iterator[str]:
    """Whoever was refused, or lost, has had an attempt; whose content had not left goes over another connection."""
    if played.connections > 2:
        yield f"{played.connections} connections"
    verbs = played.taken.replies
    owner = owner_of(verbs, place)
    kept = owner > 0 and verbs[place] not in FINAL
    for number, receipt in enumerate(played.receipts):
        concerned = number == owner and (act in ("4yz", "5yz") or not kept)
        if receipt.attempts > 1 + (concerned and mode.retries):
            yield f"{receipt.message_id} took {receipt.attempts} attempts"
        excused = concerned and (act == "5yz" or not mode.retries)
        if receipt.outcome not in (Outcome.SENT, Outcome.IN_DOUBT) and not excused:
            yield f"{receipt.message_id} ended {receipt}"


# ---------------------------------------------------------------- a thousand recipients

#: What each side keeps for the other: a server hardly anything, the client what Linux gives it at first.
SERVER_KEEPS, CLIENT_KEEPS = 8192, 65536


def crowd(tag: str, domain: str = "example.net") -> list[Letter]:
    """A thousand between two that have two each."""
    between = letter(f"{tag}-crowd", recipients=1000, domain=domain)
    return [letter(f"{tag}-before"), between, letter(f"{tag}-after")]


@each_mode
@pytest.mark.parametrize("manner", MANNERS)
def test_a_thousand_recipients(mode: Mode, manner: str) -> None:
    """However the server answers, each of them gets it once."""
    sent = crowd(manner.replace(" ", "-"))
    played = play(mode, sent, manner="at once" if mode is LOCK_STEP else manner)
    even(complaints(sent, played.receipts, played.taken.messages))
    even(unlike(sent, played.receipts))


@each_mode
def test_a_thousand_recipients_and_small_buffers(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side waits for the other to read: commands and replies are long, and nobody keeps many of them."""
    dial = socket.create_connection

    def dial_with_small_buffers(*args: Any, **kwargs: Any) -> socket.socket:
        connection = dial(*args, **kwargs)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CLIENT_KEEPS // 2)  # the kernel doubles it
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CLIENT_KEEPS)
        return connection

    monkeypatch.setattr(socket, "create_connection", dial_with_small_buffers)
    sent = crowd("m", domain=".".join(["x" * 60] * 4))
    played = play(mode, sent, prolix=480, buffers=SERVER_KEEPS)
    even(complaints(sent, played.receipts, played.taken.messages))
    even(unlike(sent, played.receipts))
