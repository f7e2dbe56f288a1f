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
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest
from aiosmtpd.controller import Controller

from tests.support.exim import GREYLISTING, Exim
from tests.support.nodemailer import Nodemailer
from tests.support.postfix import Postfix
from tests.support.servers import Delivered, Unavailable, free_port, until
from tests.support.traps import (
    ACTS,
    EVERY_PAIR,
    GOOD,
    LATER,
    MANNERS,
    PUT_OFF,
    REFUSED,
    Letter,
    Taken,
    Trapper,
    complaints,
    letter,
    letters,
    unlike,
)
from threadmail import (
    Client,
    Envelope,
    MailError,
    MessageTooLarge,
    Outcome,
    Receipt,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
)
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
                receipts.append(error.receipt or Receipt.not_sent(envelope, error))
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
        return list(client.send_all(envelopes, deadline=PATIENCE))


@dataclass(frozen=True)
class Mode:
    """A way of sending.

    Args:
        send: sends the messages, calls back when all that are to wait at once do, and returns their receipts.
        offers: what our own server offers for it.
        settings: of the client.
        retries: it tries again what is surely not sent.
        doubts: messages that one lost connection leaves in doubt, at most.
        batch: messages to be sent where a place in a dialogue is to go wrong.
        blind: acts that cannot be seen through. Without a 354 all replies of a window look alike, so that one too many
            is found when the window is empty, and no sooner.
    """

    name: str
    send: Callable[[ServerConfig, Sequence[Envelope], Queued], list[Receipt]]
    offers: tuple[str, ...] = ("PIPELINING", "8BITMIME")
    settings: Mapping[str, Any] = field(default_factory=dict)
    retries: bool = True
    doubts: int = 1
    batch: int = 3
    blind: tuple[str, ...] = ()


def window(name: str, send: Callable[[ServerConfig, Sequence[Envelope], Queued], list[Receipt]], retries: bool) -> Mode:
    offers = ("PIPELINING", "CHUNKING", "8BITMIME")
    return Mode(name, send, offers, {"window": 3}, retries=retries, doubts=3, batch=5, blind=("surplus",))


LOCK_STEP = Mode("lock-step", one_by_one, ("8BITMIME",), {"without": frozenset({"pipelining"})}, retries=False)

#: One line a way of sending.
MODES = [
    LOCK_STEP,
    Mode("groups", one_by_one, retries=False),
    Mode("riding", all_at_once),
    Mode("riding, one client", as_a_list, retries=False),
    window("window", all_at_once, retries=True),
    window("window, one client", as_a_list, retries=False),
]

#: One command at a time a client has little to be mistaken in, and the stage table has all of that.
FEW = ("421", "close", "surplus")
CASES = [(m, act) for m in MODES for act in ACTS if (act in FEW if m is LOCK_STEP else act not in m.blind)]

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
        receipts = mode.send(config, [mine.envelope for mine in sent], queued.set)
    return Played(receipts, taken, server.connections)


def even(found: Iterator[str]) -> None:
    wrong = list(found)
    assert not wrong, "\n".join(wrong[:20])


# ---------------------------------------------------------------- refusals


@each_mode
@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("lax", [0, 1, 2], ids=["strict", "354 for nobody", "RCPT without MAIL"])
def test_each_refusal_behind_each(mode: Mode, lax: int, manner: str) -> None:
    """All refused, partly refused, MAIL refused, none refused: each behind each, over one connection.

    An old MAIL that still stands would take the next recipients; a lone dot behind them would be an empty message.
    """
    sent = letters(EVERY_PAIR)
    played = play(mode, sent, lax=lax, manner=manner)
    even(complaints(sent, played.receipts, played.taken.messages))
    even(unlike(sent, played.receipts))
    if lax < 2:  # else a refused MAIL is followed by a 354 that no dot may end
        assert played.connections == 1


# ---------------------------------------------------------------- a misdeed in each place

EHLO = 1  # the greeting is 0
FINAL = (".", "BDAT")  # what the last reply that a message is owed answers
MUTE = ("close", "reset", "cut", "garbage")  # what is no answer to a content


@pytest.mark.parametrize(("mode", "act"), CASES, ids=[f"{mode.name}-{act}" for mode, act in CASES])
def test_a_misdeed_in_each_place(mode: Mode, act: str) -> None:
    """At each reply of a dialogue of some messages: what was told is true, and the others never pay for it."""
    sent = [letter(f"batch-{number}") for number in range(mode.batch)]
    sound = play(mode, sent)
    even(unlike(sent, sound.receipts))
    wrong, doubts = [], 0
    for place, manner in places(sound.taken.replies):
        played = play(mode, sent, act=act, place=place, manner=manner)
        where = f"{act} at reply {place}, to {played.taken.replies[place]}, {manner}"
        wrong += [f"{where}: {complaint}" for complaint in judged(mode, sent, played, act, place)]
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


def judged(mode: Mode, sent: Sequence[Letter], played: Played, act: str, place: int) -> Iterator[str]:
    """What is false; who has not got what he should have; who was charged for what is not his."""
    yield from complaints(sent, played.receipts, played.taken.messages)
    for mine, receipt in zip(sent, played.receipts, strict=True):
        doubt = mine.envelope.content in played.taken.unanswered
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
    # In a window the content has left when a 421 comes, and who says so and goes on has refused that command.
    refused = act in ("4yz", "5yz") or (act == "421" and mode.doubts > 1)
    kept = owner > 0 and verbs[place] not in FINAL
    for number, receipt in enumerate(played.receipts):
        concerned = number == owner and (refused or not kept)
        if receipt.attempts > 1 + (concerned and mode.retries):
            yield f"{receipt.message_id} took {receipt.attempts} attempts"
        excused = concerned and (act == "5yz" or not mode.retries)
        if receipt.outcome not in (Outcome.SENT, Outcome.IN_DOUBT) and not excused:
            yield f"{receipt.message_id} ended {receipt}"


@each_mode
def test_what_cannot_be_sent_stands_among_others_whose_connection_is_lost(mode: Mode) -> None:
    """It is refused before its first byte, wherever it stands, and has its receipt as the others have theirs."""
    sent = [letter(f"batch-{number}", padding=4000 * (number == 1)) for number in range(4)]
    offering = dataclasses.replace(mode, offers=(*mode.offers, "SIZE 2000"))
    sound = play(offering, sent)
    assert [receipt.outcome is Outcome.SENT for receipt in sound.receipts] == [True, False, True, True]
    for place, _ in places(sound.taken.replies):
        played = play(offering, sent, act="close", place=place)
        even(complaints(sent, played.receipts, played.taken.messages))
        assert isinstance(played.receipts[1].error, MessageTooLarge) or place <= EHLO


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


# ---------------------------------------------------------------- servers nobody here wrote


class RealServer(Protocol):
    """What is asked of one: where it is, and what it has taken, when nothing is on its way any more."""

    @property
    def url(self) -> str: ...
    def messages(self) -> list[Delivered]: ...


class Aiosmtpd:
    """aiosmtpd as it comes, which has no PIPELINING; only its handler is ours."""

    def __init__(self) -> None:
        self._taken: list[Delivered] = []
        self._controller = Controller(self, hostname="127.0.0.1", port=free_port())
        self.url = f"smtp://127.0.0.1:{self._controller.port}"

    def messages(self) -> list[Delivered]:
        return list(self._taken)

    def __enter__(self) -> Aiosmtpd:
        self._controller.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._controller.stop()

    async def handle_MAIL(self, server: object, session: object, envelope: Any, address: str, options: Any) -> str:
        if address.startswith(REFUSED):
            return "550 5.7.1 not from you"
        envelope.mail_from = address
        return "250 2.1.0 OK"

    async def handle_RCPT(self, server: object, session: object, envelope: Any, address: str, options: Any) -> str:
        if address.startswith(REFUSED):
            return "550 5.1.1 nobody here"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        self._taken.append(Delivered(envelope.mail_from, tuple(envelope.rcpt_tos), envelope.content))
        return "250 2.0.0 OK"


def refusing_postfix(folder: Path) -> Postfix:
    access = folder / "access"
    access.write_text(f"/^{REFUSED}/ 550 5.7.1 not here\n")
    refusals = {
        "smtpd_delay_reject": "no",
        "smtpd_sender_restrictions": f"check_sender_access regexp:{access}",
        "smtpd_recipient_restrictions": f"check_recipient_access regexp:{access}",
        # What this traffic has in errors would make it slow, then end the connection.
        "smtpd_soft_error_limit": "1000",
        "smtpd_hard_error_limit": "1000",
        "smtp_connection_cache_on_demand": "no",  # a sink that is hung up on at once has nothing to wait for
    }
    return Postfix(folder, settings=refusals)


def refusing_exim(folder: Path) -> Exim:
    deny = "deny message = 550 5.7.1 not here\n"
    return Exim(mail=f"{deny}senders = ^{REFUSED}", rcpt=f"{deny}local_parts = ^{REFUSED}")


SERVERS: dict[str, Callable[[Path], AbstractContextManager[RealServer]]] = {
    "aiosmtpd": lambda folder: Aiosmtpd(),
    "postfix": refusing_postfix,
    "exim": refusing_exim,
    "nodemailer": lambda folder: Nodemailer(refuse=REFUSED),
}


@pytest.fixture(scope="module", params=SERVERS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """Each of them in turn, started once."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(SERVERS[request.param](tmp_path_factory.mktemp(request.param)))
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield server


@each_mode
def test_the_same_traffic_on_a_real_server(real: RealServer, mode: Mode) -> None:
    """Each refusal behind each: who is told of a delivery has got it, byte for byte, and nobody else anything."""
    sent = letters(EVERY_PAIR, f"{tag(mode)}-pairs-")
    even(unlike(sent, exchange(real, mode, sent)))


@each_mode
def test_a_thousand_recipients_on_a_real_server(real: RealServer, mode: Mode) -> None:
    """However it reads and answers a long list."""
    sent = crowd(tag(mode))
    even(unlike(sent, exchange(real, mode, sent)))


@pytest.fixture(scope="module")
def putting_off() -> Iterator[Exim]:
    """An Exim that says 421 to a recipient it sees for the first time, and goes on with the session."""
    rule = f"{GREYLISTING}\nlocal_parts = ^{PUT_OFF}".replace("451", "421")
    with ExitStack() as stack:
        try:
            yield stack.enter_context(Exim(rcpt=rule))
        except Unavailable as reason:
            pytest.skip(str(reason))


@each_mode
def test_a_421_of_a_server_that_goes_on(putting_off: Exim, mode: Mode) -> None:
    """It tells of each recipient in its turn: who was put off is tried again, and nobody gets anything twice."""
    sent = letters([GOOD, LATER, GOOD, GOOD, LATER, GOOD], f"{tag(mode)}-later-")
    receipts = exchange(putting_off, mode, sent)
    for mine, receipt in zip(sent, receipts, strict=True):
        put_off = mine.envelope.recipients[0].startswith(PUT_OFF)
        assert receipt.outcome is Outcome.SENT or (put_off and not mode.retries), receipt


def tag(mode: Mode) -> str:
    return mode.name.replace(", ", "-").replace(" ", "-")


def exchange(real: RealServer, mode: Mode, sent: Sequence[Letter]) -> list[Receipt]:
    """Send, and compare what was told with what the server has now and had not before."""
    before = real.messages()
    config = dataclasses.replace(ServerConfig.from_url(real.url), **mode.settings)
    receipts = mode.send(config, [mine.envelope for mine in sent], lambda: None)
    if isinstance(real, Postfix):
        settle(real, receipts)
    even(complaints(sent, receipts, [message for message in real.messages() if message not in before]))
    return receipts


def settle(postfix: Postfix, receipts: Sequence[Receipt]) -> None:
    """Wait until it has passed on all that it has taken: each message has its id in the log, and then its end."""
    taken = [f": message-id={receipt.message_id}" for receipt in receipts if receipt.accepted]

    def passed_on() -> bool:
        log = postfix.log()
        return all(line in log for line in taken) and log.count(": message-id=") == log.count(": removed")

    until(passed_on, PATIENCE, "Postfix to pass on what it has taken")
