"""Every misdeed of a server, at every stage of a session, ends as the stage table says.

Each cell is played over real sockets: against a `Client`, which tells of the message, of the connection and of the next
message, and against a `ThreadedSender`, which tries again what may be tried again and nothing else. Cells in which
nothing happens until a time limit ends it are played side by side.
"""

from __future__ import annotations

import dataclasses
import email
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from stress import stages
from tests.reliability.stage_server import SCENES, Play, large, small
from tests.reliability.stages import (
    ACTS,
    EMPTY,
    HELD_UP,
    LOCK_STEP,
    MEANINGS,
    MODES,
    REASONS,
    STAGES,
    TABLE,
    VERDICTS,
    Mode,
    Next,
    Verdict,
    error_of,
    word,
)
from threadmail import Client, DataRefused, MailError, Outcome, Phase, Receipt, RetryPolicy, ThreadedSender, Timeouts
from threadmail.errors import CONNECTING
from threadmail.testing import CapturedMessage, Drop, ReadBytes, Reply, ScriptedServer, Serve

HOLDING = ("stall", "drip")
REFUSED = ("4yz", "5yz", "421")

#: Seconds after which a client gives up on a server that holds back: far more than an honest answer takes here, even on
#: a machine that has much else to do.
LIMIT = 2.0

SLACK = 2.0

Cell = tuple[Mode, str, str]

CELLS: list[Cell] = [(mode, *cell) for mode in MODES if not mode.batch for cell in mode.cells()]
BATCHED: list[Cell] = [(mode, *cell) for mode in MODES if mode.batch for cell in mode.cells()]


def each(cells: Iterable[Cell]) -> pytest.MarkDecorator:
    """Run a test once for each of the cells."""
    known = list(cells)
    names = [" ".join((stage, act) if mode is MODES[0] else (mode.name, stage, act)) for mode, stage, act in known]
    return pytest.mark.parametrize(("mode", "stage", "act"), known, ids=names)


@dataclass(frozen=True)
class Seen:
    """What came of a message, and of the one after it."""

    receipt: Receipt
    connected: bool
    next: Next
    copies: list[CapturedMessage]
    seconds: float
    others: list[tuple[Receipt, int]] = dataclasses.field(default_factory=list)


Player = Callable[[Mode, str, str], Seen]


def test_the_table_is_whole() -> None:
    assert set(TABLE) == {(stage, act) for stage in STAGES for act in ACTS}
    assert {stage for (stage, _), verdict in TABLE.items() if verdict is None} == set(EMPTY)
    assert {word(verdict) for verdict in TABLE.values()} == {*VERDICTS, "-"}
    assert set(MEANINGS) == set(VERDICTS)
    assert all((stage, act) in TABLE for stage, acts, _ in REASONS for act in acts.split())


def test_the_page_is_in_step_with_the_table() -> None:
    assert stages.PAGE.read_text("utf-8") == stages.page(), "docs/stages.md is stale: run python -m stress.stages"


# ---------------------------------------------------------------- one client


def play_client(mode: Mode, stage: str, act: str) -> Seen:
    with Play(stage, act, mode, limit=LIMIT if act in HOLDING else 10.0) as play, Client(play.config) as client:
        receipt, seconds = send_under_way(play, client, None)
        connected, opened = client.is_connected, client.stats().opened
        dialled = play.server.connections
        try:
            client.send(small("after"), deadline=30.0)
        except MailError:
            assert play.server.connections == dialled
            then = Next.REFUSED
        else:
            then = Next.SAME if client.stats().opened == opened else Next.NEW
        return Seen(receipt, connected, then, copies(play), seconds)


def send_under_way(play: Play, client: Client, deadline: float | None) -> tuple[Receipt, float]:
    """Bring the client to the stage, and send the message that meets it. Returns its receipt, and the seconds."""
    if play.scene.kept:
        client.send(small("before"), deadline=30.0)
    if play.stage == "idle":
        assert play.done.wait(10.0)
    elif play.stage == "NOOP":
        client._last_used -= 60.0  # idle for so long that it is asked
    message = play.message()
    receipt: Receipt | None = None
    error: MailError | None = None
    began = time.monotonic()
    try:
        receipt = client.send(message, deadline=deadline)
    except MailError as failure:
        error = failure
    seconds = time.monotonic() - began
    if error is not None:
        receipt = error.receipt
        assert receipt is not None
        assert error is receipt.error
        assert error.outcome is receipt.outcome
    assert receipt is not None
    return receipt, seconds


def copies(play: Play) -> list[CapturedMessage]:
    """Of the message under way: what reached the server whole."""
    return [m for m in play.server.messages if m.content.startswith(b"Subject: subject\r\n")]


def message_ids(found: list[CapturedMessage]) -> set[str]:
    return {email.message_from_bytes(m.content[:200])["Message-ID"] for m in found}


@each(CELLS)
def test_client(mode: Mode, stage: str, act: str, played: SideBySide) -> None:
    verdict = mode.verdict(stage, act)
    assert verdict is not None
    seen = played(play_client, mode, stage, act)
    assert (seen.receipt.outcome, seen.connected, seen.next) == (verdict.outcome, verdict.connected, verdict.next)
    check_error(seen.receipt, verdict, mode, stage, act)
    check_copies(seen.copies, verdict, stage, act)
    assert seen.seconds < (LIMIT + SLACK if act in HOLDING else 30.0)


def check_error(receipt: Receipt, verdict: Verdict, mode: Mode, stage: str, act: str) -> None:
    if verdict.outcome in (Outcome.SENT, Outcome.PARTIAL):
        assert receipt.error is None
    else:
        assert receipt.error is not None
        kinds = {error_of(stage, act)}
        if (stage, act) == ("greeting", "reset"):
            kinds.add("ConnectFailed")  # one that outruns the end of the system's own connect() is reported by that
        assert type(receipt.error).__name__ in kinds
        assert receipt.phase is receipt.error.phase is mode.phase(stage, act)
        if verdict.outcome is Outcome.NOT_SENT:
            assert receipt.error.transient is verdict.again
    assert bool(receipt.deferred) is verdict.again


def check_copies(found: list[CapturedMessage], verdict: Verdict, stage: str, act: str) -> None:
    """What the server has agrees with what the sender was told."""
    if verdict.outcome in (Outcome.SENT, Outcome.PARTIAL):
        replaced = word(verdict) in ("anew", "worn")
        assert [m.connection for m in found] == [int(replaced)]
        assert len(found[0].recipients) == len(SCENES[stage].recipients) - (verdict.outcome is Outcome.PARTIAL)
    else:
        # A test server keeps what came whole, also what it refused then.
        assert len(found) == stage.endswith("final")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems forget what was said before a reset")
def test_a_server_that_refuses_a_content_and_hangs_up_is_heard() -> None:
    """Else a message too large for good would be tried again and again. The hang-up is a reset: much lies unread."""
    refusing = [Serve(until="DATA"), Reply("354 go ahead"), ReadBytes(65536), Reply("552-5.3.4 too\n552 big"), Drop()]
    with ScriptedServer(refusing) as server, Client(server.config) as client:
        with pytest.raises(DataRefused) as info:
            client.send(large("refused"), deadline=30.0)
        error = info.value
        assert (error.smtp_code, error.smtp_error) == (552, b"5.3.4 too\nbig")
        assert (error.outcome, error.phase, error.transient) == (Outcome.NOT_SENT, Phase.CONTENT, False)
        assert not client.is_connected


# ---------------------------------------------------------------- a sender that tries again


def play_sender(mode: Mode, stage: str, act: str, resend: bool = False) -> Seen:
    policy = RetryPolicy(attempts=3, base=0.0, resend_in_doubt=resend)
    with Play(stage, act, mode, limit=LIMIT if act in HOLDING else 10.0) as play:
        with ThreadedSender(play.config, workers=1, retry=policy) as sender:
            if play.scene.kept:
                sender.send(small("before"), deadline=30.0)
            if stage == "idle":
                assert play.done.wait(10.0)
            began = time.monotonic()
            [receipt] = sender.send_all([play.message()], deadline=30.0)
            return Seen(receipt, False, Next.SAME, copies(play), time.monotonic() - began)


@each(c for c in CELLS if c[1] != "NOOP" and (c[0] is LOCK_STEP or c[2] not in HOLDING))
def test_sender_tries_again_only_what_cannot_go_out_twice(mode: Mode, stage: str, act: str, played: SideBySide) -> None:
    verdict = mode.verdict(stage, act)
    assert verdict is not None
    seen = played(play_sender, mode, stage, act)
    assert seen.receipt.outcome is (Outcome.SENT if verdict.again else verdict.outcome)
    assert seen.receipt.deferred == ()
    assert seen.receipt.attempts == attempts(verdict, stage, act)
    check_recipients(seen, stage, act)


def attempts(verdict: Verdict, stage: str, act: str) -> int:
    """How often the message was handed to a connection; to dial in vain is none."""
    if STAGES[stage].phase in CONNECTING:
        return int(verdict.outcome is Outcome.SENT or verdict.again)
    return 2 if verdict.again else 1


def check_recipients(seen: Seen, stage: str, act: str) -> None:
    """Each recipient got it at most once, and once if it was sent; every time it was the same message."""
    took = seen.copies[1:] if stage.endswith("final") and act in REFUSED else seen.copies
    got = [recipient for m in took for recipient in m.recipients]
    assert len(got) == len(set(got))
    if seen.receipt.outcome is not Outcome.IN_DOUBT:
        assert sorted(got) == sorted(seen.receipt.accepted)
    assert message_ids(seen.copies) <= {seen.receipt.message_id}


@each(c for c in CELLS if c[1] == "final" and c[2] not in HOLDING and c[0].verdict(*c[1:]) is VERDICTS["doubt"])
def test_what_is_in_doubt_goes_out_again_if_the_user_chose_so(mode: Mode, stage: str, act: str) -> None:
    seen = play_sender(mode, stage, act, resend=True)
    assert (seen.receipt.outcome, seen.receipt.attempts) == (Outcome.SENT, 2)
    assert [m.connection for m in seen.copies] == [0, 1]
    assert message_ids(seen.copies) == {seen.receipt.message_id}


# ---------------------------------------------------------------- one of three


def play_batch(mode: Mode, stage: str, act: str) -> Seen:
    """The message under way stands behind another one, or first; there is at least one behind it."""
    policy = RetryPolicy(attempts=3, base=0.0)
    with Play(stage, act, mode, limit=LIMIT if act in HOLDING else 10.0) as play:
        at = int(play.scene.kept)
        batch = [small(name) for name in ("one", "another")]
        batch.insert(at, play.message())
        with ThreadedSender(play.config, workers=1, retry=policy) as sender:
            began = time.monotonic()
            receipts = list(sender.send_all(batch, deadline=30.0))
            seconds = time.monotonic() - began
        contents = [message.content for message in play.server.messages]
        others = [(receipts[i], contents.count(batch[i].content)) for i in range(3) if i != at]
        return Seen(receipts[at], False, Next.SAME, copies(play), seconds, others)


@each(BATCHED)
def test_batch(mode: Mode, stage: str, act: str, played: SideBySide) -> None:
    """The verdict is the same as for a message by itself; nothing of it falls upon the others."""
    verdict = mode.verdict(stage, act)
    assert verdict is not None
    seen = played(play_batch, mode, stage, act)
    assert seen.receipt.outcome is (Outcome.SENT if verdict.again else verdict.outcome)
    assert seen.receipt.attempts == attempts(verdict, stage, act)
    check_recipients(seen, stage, act)
    for other, arrived in seen.others:
        assert other.attempts == 1
        if other.outcome is Outcome.IN_DOUBT:
            assert mode.doubts
            assert arrived <= 1
        else:
            assert (other.outcome, arrived) == (Outcome.SENT, 1)


# ---------------------------------------------------------------- questions and farewells

#: What `noop()` comes to on a kept connection: the code of the answer, and how many connections it took. A refusal is
#: an answer. What is none is found as with a message, and the question is asked again.
ANSWERS = dict.fromkeys(ACTS, (250, 2)) | {
    "4yz": (451, 1),
    "5yz": (550, 1),
    "2yz": (220, 1),
    "unasked": (250, 1),
    "split": (250, 1),
}


@pytest.mark.parametrize("act", [act for act in ACTS if act not in HOLDING])
def test_noop_asked_for(act: str) -> None:
    with Play("NOOP", act, LOCK_STEP) as play, Client(play.config) as client:
        client.send(small("before"), deadline=30.0)
        reply = client.noop(deadline=30.0)
        assert (reply.code, client.stats().opened) == ANSWERS[act]


@pytest.mark.parametrize("act", ACTS)
def test_close_is_quiet_whatever_the_server_says_to_it(act: str) -> None:
    with Play("QUIT", act, LOCK_STEP, limit=0.2 if act in HOLDING else 10.0) as play:
        client = Client(play.config)
        client.send(small("before"), deadline=30.0)
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < SLACK
        assert not client.is_connected
        assert client.stats().closed == {"closed": 1}


# ---------------------------------------------------------------- deadlines


def play_deadline(mode: Mode, stage: str, act: str) -> Seen:
    """No time-out of a step would end it in time: the deadline of the call has to."""
    with Play(stage, act, mode) as play:
        patient = dataclasses.replace(play.config, timeouts=Timeouts(60.0, 60.0, 60.0, 60.0, 60.0, 60.0))
        with Client(patient) as client:
            receipt, seconds = send_under_way(play, client, LIMIT)
            return Seen(receipt, client.is_connected, Next.NEW, copies(play), seconds)


@each(c for c in CELLS if c[0] is LOCK_STEP and c[2] in HOLDING)
def test_deadline(mode: Mode, stage: str, act: str, played: SideBySide) -> None:
    seen = played(play_deadline, mode, stage, act)
    verdict = VERDICTS[HELD_UP[stage]] if stage in HELD_UP else mode.verdict(stage, act)
    assert verdict is not None
    assert seen.seconds < LIMIT + SLACK
    assert (seen.receipt.outcome, seen.connected) == (verdict.outcome, verdict.connected)
    assert bool(seen.receipt.deferred) is verdict.again
    if verdict.outcome is Outcome.SENT:
        assert len(seen.copies) == 1


# ---------------------------------------------------------------- cells side by side


class SideBySide:
    """Plays cells; those that are held up all at once, since each of them only waits."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Player, str, str, str], Seen | BaseException] = {}

    def __call__(self, play: Player, mode: Mode, stage: str, act: str) -> Seen:
        if act not in HOLDING:
            return play(mode, stage, act)
        if (play, mode.name, stage, act) not in self._seen:
            self._play_all(play, mode, [cell for cell in mode.cells() if cell[1] in HOLDING])
        seen = self._seen[play, mode.name, stage, act]
        if isinstance(seen, BaseException):
            raise seen
        return seen

    def _play_all(self, play: Player, mode: Mode, cells: list[tuple[str, str]]) -> None:
        def run(cell: tuple[str, str]) -> None:
            try:
                self._seen[play, mode.name, cell[0], cell[1]] = play(mode, *cell)
            except BaseException as exc:  # noqa: BLE001 - raised by the test of that cell
                self._seen[play, mode.name, cell[0], cell[1]] = exc

        threads = [threading.Thread(target=run, args=(cell,), name=f"cell {' '.join(cell)}") for cell in cells]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        assert not any(thread.is_alive() for thread in threads)


@pytest.fixture(scope="module")
def played() -> SideBySide:
    return SideBySide()
