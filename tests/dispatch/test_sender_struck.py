"""An exception from outside, or a signal handler, in the middle of taking messages in: nothing is lost or told falsely.

They come up where a function is entered and where a call returns, so a profile function stands for both: it raises, or
does what a handler would, at one such place after the other. No message leaves before its test lets it: the throttle
pauses for an hour.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from email.message import EmailMessage
from types import FrameType
from typing import Any

import pytest

import threadmail
from tests.support.mail import envelope
from threadmail import (
    Closed,
    InvalidEnvelope,
    MailError,
    Outcome,
    QueueFull,
    Receipt,
    Reentered,
    ThreadedSender,
    Throttle,
    TimedOut,
)
from threadmail._dispatch.stream import ReceiptStream
from threadmail._runtime.locks import is_owned
from threadmail.testing import CapturedMessage, CaptureServer

PATIENCE = 20.0
PACKAGE = threadmail.__path__[0]


def name_of(mail: Receipt | CapturedMessage) -> str:
    return mail.sender.removeprefix("from-").partition("@")[0]


class Struck:
    """Does something at one place of this thread within files of the package; `places` are those it has seen."""

    def __init__(self, act: Callable[[], object], at: int | None, files: tuple[str, ...] = ("",)) -> None:
        self.act = act
        self.at = at
        self.files = files
        self.places: list[Any] = []
        self.struck: Any = None

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        file = frame.f_code.co_filename
        if event not in ("call", "c_return") or not file.startswith(PACKAGE) or not file.endswith(self.files):
            return
        if event == "c_return" and called.__name__ == "__enter__":
            return  # 3.15 tells of a lock that `with` has just taken: nothing from outside comes up there
        place = (frame.f_code, frame.f_lineno, event, getattr(called, "__name__", ""))
        if self.at == len(self.places):
            sys.setprofile(None)
            self.struck = place
            self.act()
        self.places.append(place)

    def __enter__(self) -> Struck:
        sys.setprofile(self)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)

    def ends(self) -> list[int]:
        """Of each place the first and the last time that it was passed."""
        passed: dict[Any, list[int]] = {}
        for number, place in enumerate(self.places):
            passed.setdefault(place, []).append(number)
        return sorted({each for numbers in passed.values() for each in (numbers[0], numbers[-1])})


def strike() -> None:
    raise KeyboardInterrupt


def once() -> Callable[[Receipt], None]:
    """Strikes who is told of the first receipt."""
    strikes = [strike]

    def on_receipt(receipt: Receipt) -> None:
        if strikes:
            strikes.pop()()

    return on_receipt


class Still:
    """A sender of one worker and few places, which sends nothing before `release`."""

    def __init__(self, url: str, places: int = 2) -> None:
        self.throttle = Throttle()
        self.throttle.pause(3600)
        self.told: Counter[str] = Counter()
        self.on_receipt: Callable[[Receipt], object] = lambda receipt: None
        self.sender = ThreadedSender(url, workers=1, queue_size=places, throttle=self.throttle, on_receipt=self._note)

    def _note(self, receipt: Receipt) -> None:
        self.told[name_of(receipt)] += 1
        self.on_receipt(receipt)

    def fill(self) -> None:
        for n in range(self.sender.queue_size):
            self.sender.submit(envelope(f"fill{n}"))

    def release(self) -> None:
        self.throttle._paused_until = 0.0
        with self.sender._dispatcher._lock:
            self.sender._dispatcher._not_empty.notify_all()

    @property
    def line(self) -> list[Any]:
        return list(self.sender._dispatcher._schedule.line)

    def in_line(self, names: Iterable[str], **settings: Any) -> ReceiptStream:
        """A stream of these, pulled into the line, and interrupted there."""
        self.fill()
        stream = self.sender.send_each([envelope(name) for name in names], **settings)
        stream._collector.wait = strike  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        del stream._collector.wait
        assert len(stream._held) == len(list(names))
        return stream

    def release_when_it_waits(self, stream: ReceiptStream) -> None:
        wait = stream._collector.wait

        def released() -> None:
            self.release()
            wait()

        stream._collector.wait = released  # type: ignore[method-assign]


@pytest.fixture
def server() -> Iterator[CaptureServer]:
    with CaptureServer() as server:
        yield server


@pytest.fixture
def still(server: CaptureServer) -> Iterator[Still]:
    made = Still(server.url)
    yield made
    made.release()
    made.sender.close()


# ---------------------------------------------------------------- the line


@pytest.mark.parametrize("name", ["wanted", "any"])
def test_a_stream_struck_as_its_messages_were_queued_stands_in_no_line(still: Still, name: str) -> None:
    """They have their places. It joined the line for none, and barred it for everybody else."""
    stream = still.sender.send_each([envelope("a"), envelope("b")])

    def look(frame: FrameType, event: str, called: Any) -> None:
        place = frame.f_code.co_name if event == "call" else getattr(called, "__name__", "")
        if place == name and event in ("call", "c_return") and len(still.sender._dispatcher._schedule.ready) == 2:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    finally:
        sys.setprofile(None)
    assert len(stream._held) == 2
    still.release_when_it_waits(stream)
    assert [name_of(receipt) for receipt in stream] == ["a", "b"]
    assert still.line == []
    assert still.sender.send(envelope("next"), deadline=PATIENCE).outcome is Outcome.SENT


# ---------------------------------------------------------------- stop()


def test_who_is_told_of_what_was_stopped_may_be_interrupted_in_it(still: Still, server: CaptureServer) -> None:
    """What was told NOT_SENT was sent nevertheless, and told of twice."""
    stream = still.in_line("ab")
    still.on_receipt = once()
    with pytest.raises(KeyboardInterrupt):
        stream.stop()
    still.release()
    outcomes = {name_of(receipt): receipt.outcome for receipt in stream}
    still.sender.close()
    assert outcomes == dict.fromkeys("ab", Outcome.NOT_SENT)
    assert {name: still.told[name] for name in "ab"} == dict.fromkeys("ab", 1)
    assert not {name_of(mail) for mail in server.messages} & {*"ab"}


def test_who_is_told_of_what_is_too_late_may_be_interrupted_in_it(still: Still) -> None:
    stream = still.sender.send_each([envelope(name) for name in "abcd"], deadline=0.0)
    still.on_receipt = once()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert [name_of(receipt) for receipt in stream] == [*"abcd"]
    assert still.told == dict.fromkeys("abcd", 1)


def stopped(url: str, server: CaptureServer, name: str, struck: Struck, *, again: bool) -> list[str]:
    """One Ctrl-C in `stop()`. Returns what is wrong."""
    still = Still(url)
    names = [f"{name}x{n}" for n in range(2)]
    stream = still.in_line(names)
    try:
        with struck:
            stream.stop()
    except KeyboardInterrupt:
        pass
    if again:
        stream.stop()
    still.release()
    receipts = [(name_of(receipt), receipt.outcome) for receipt in stream]
    still.sender.close()
    arrived = Counter(map(name_of, server.messages))
    wrong = []
    if sorted(each for each, _ in receipts) != names:
        wrong.append(f"receipts of {receipts}")
    wrong += [f"{each} is told {told}" for each, told in receipts if arrived[each] != (told is Outcome.SENT)]
    wrong += [f"{each}: {still.told[each]}" for each in names if still.told[each] != 1]
    return wrong


@pytest.mark.parametrize("again", [True, False], ids=["stopped again", "only gone on"])
def test_wherever_stopping_is_interrupted_each_message_is_told_once_and_truly(
    server: CaptureServer, again: bool
) -> None:
    watcher = Struck(strike, None)
    assert stopped(server.url, server, "dry", watcher, again=again) == []
    wrong = {}
    for at in watcher.ends():
        struck = Struck(strike, at)
        if found := stopped(server.url, server, f"n{at}", struck, again=again):
            wrong[struck.struck] = found
    assert wrong == {}
    assert len(watcher.places) > 100


#: Where the iteration of a stream, and stopping it, come along.
OF_A_STREAM = (
    "_dispatch/stream.py",
    "_dispatch/collector.py",
    "_dispatch/admission.py",
    "_dispatch/withdrawal.py",
    "_dispatch/schedule.py",
)


def stopped_by_a_handler(server: CaptureServer, name: str, at: int | None, *, lazy: bool) -> tuple[Struck, list[str]]:
    told: Counter[str] = Counter()
    pulled: list[str] = []

    def letters() -> Iterator[Any]:
        for n in range(4):
            pulled.append(f"{name}x{n}")
            yield envelope(pulled[-1])

    with ThreadedSender(
        server.url, workers=1, queue_size=2, on_receipt=lambda receipt: told.update([name_of(receipt)])
    ) as sender:
        stream = sender.send_each(letters() if lazy else list(letters()))
        with Struck(stream.stop, at, OF_A_STREAM) as struck:
            receipts = [(name_of(receipt), receipt.outcome) for receipt in stream]
        left = list(sender._dispatcher._schedule.line)
    arrived = Counter(map(name_of, server.messages))
    wrong = [f"{each} is told {outcome}" for each, outcome in receipts if arrived[each] != (outcome is Outcome.SENT)]
    if lazy and sorted(each for each, _ in receipts) != pulled:
        wrong.append(f"receipts of {receipts}")
    if told != Counter(each for each, _ in receipts):
        wrong.append(f"{told} and {receipts}")
    if not {each for each in arrived if each.startswith(f"{name}x")} <= {each for each, _ in receipts}:
        wrong.append("one was sent, and has no receipt")
    if left:
        wrong.append("the line was not left")
    return struck, wrong


@pytest.mark.parametrize("lazy", [True, False], ids=["generator", "list"])
def test_a_signal_handler_may_stop_the_stream_that_it_interrupts(server: CaptureServer, lazy: bool) -> None:
    """It changed what the frame under it was going through, and took back what that one then queued."""
    watcher, wrong = stopped_by_a_handler(server, "dry", None, lazy=lazy)
    assert wrong == []
    found = {}
    for at in watcher.ends():
        struck, wrong = stopped_by_a_handler(server, f"n{at}", at, lazy=lazy)
        if wrong:
            found[struck.struck] = wrong
    assert found == {}


# ---------------------------------------------------------------- refused at the door


def test_wherever_a_refusal_is_interrupted_no_receipt_is_lost_or_doubled(server: CaptureServer) -> None:
    files = (
        "_dispatch/stream.py",
        "_dispatch/collector.py",
        "receipt.py",
        "sender.py",
        "envelope.py",
        "errors.py",
        "_dispatch/teller.py",
    )
    with ThreadedSender(server.url, workers=1) as sender:

        def refused(at: int | None) -> tuple[Struck, int, int]:
            told: list[Receipt] = []
            sender._on_receipt = told.append
            stream = sender.send_each([object()] * 3)  # type: ignore[list-item]
            struck = Struck(strike, at, files)
            receipts: list[Receipt] = []
            try:
                with struck:
                    for receipt in stream:
                        receipts += (receipt,)
            except KeyboardInterrupt:
                pass
            receipts += stream
            return struck, len(receipts), len(told)

        watcher, *counts = refused(None)
        assert counts == [3, 3]
        wrong = {}
        for at in range(len(watcher.places)):
            struck, came, told = refused(at)
            if came != 3 or told != 3:
                wrong[struck.struck] = came, told
        assert wrong == {}


@pytest.mark.parametrize("what", ["send", "close", "send_all"])
def test_who_is_told_of_a_refusal_is_in_a_callback(server: CaptureServer, what: str) -> None:
    met: list[BaseException] = []

    def act() -> None:
        if what == "send":
            sender.send(envelope("c"), deadline=PATIENCE)
        elif what == "close":
            sender.close()
        else:
            sender.send_all([envelope("c")], deadline=PATIENCE)

    def watch(receipt: Receipt) -> None:
        if receipt.outcome is Outcome.NOT_SENT:
            try:
                act()
            except MailError as error:
                met.append(error)

    with ThreadedSender(server.url, workers=1, on_receipt=watch) as sender:
        report = sender.send_all(["no message", envelope("a")])  # type: ignore[list-item]
    other = Outcome.NOT_SENT if what == "close" else Outcome.SENT  # nothing more is taken
    assert [type(error) for error in met] == [Reentered] * (1 + (what == "close"))
    assert [receipt.outcome for receipt in report] == [Outcome.NOT_SENT, other]


def nested(depth: int) -> EmailMessage:
    """Deeper than it can be written out."""
    message = EmailMessage()
    message.set_content("hi")
    for _ in range(depth):
        outer = EmailMessage()
        outer["Content-Type"] = "multipart/mixed"
        outer.attach(message)
        message = outer
    message["From"], message["To"] = "a@example.org", "b@example.net"
    return message


class Broken(EmailMessage):
    """Raises where its content is asked for."""

    error: Exception

    def get_payload(self, *args: Any, **settings: Any) -> Any:
        raise self.error

    def is_multipart(self) -> bool:
        raise self.error


def broken(error: Exception) -> EmailMessage:
    message = Broken()
    message["From"], message["To"] = "a@example.org", "b@example.net"
    message.error = error
    return message


@pytest.mark.parametrize("message", [nested(1000), broken(LookupError("no charset"))], ids=["deep", "broken"])
def test_a_message_that_cannot_be_written_out_is_refused_alone(server: CaptureServer, message: EmailMessage) -> None:
    with ThreadedSender(server.url, workers=1) as sender:
        report = sender.send_all([envelope("a"), message, envelope("b")], deadline=PATIENCE)
        assert [receipt.outcome for receipt in report] == [Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT]
        assert isinstance(report[1].error, InvalidEnvelope)
        with pytest.raises(InvalidEnvelope):
            sender.submit(message)


def test_what_comes_from_outside_while_a_message_is_made_is_raised_and_got_past(server: CaptureServer) -> None:
    """A time limit of a job queue, say, is not to be hidden; nor may a message that raises it always bar the others."""

    class TimeLimit(Exception):
        pass

    with ThreadedSender(server.url, workers=1) as sender:
        stream = sender.send_each([envelope("a"), broken(TimeLimit()), envelope("b")], deadline=PATIENCE)
        with pytest.raises(TimeLimit):
            list(stream)
        receipts = list(stream)
    refused = [receipt.error for receipt in receipts if receipt.outcome is Outcome.NOT_SENT]
    assert len(receipts) == 3
    assert [error and error.may_resend for error in refused] == [True]


# ---------------------------------------------------------------- closed meanwhile


def test_a_report_tells_of_all_messages_when_the_sender_is_closed_meanwhile(server: CaptureServer) -> None:
    with ThreadedSender(server.url, workers=1) as sender:

        def letters() -> Iterator[Any]:
            for n in range(4):
                if n == 1:
                    sender.close()
                yield envelope(f"m{n}")

        report = sender.send_all(letters())
    assert [receipt.outcome for receipt in report] == [Outcome.SENT, *[Outcome.NOT_SENT] * 3]
    assert all(isinstance(receipt.error, Closed) for receipt in report[1:])


def test_what_the_iterable_raises_is_raised_of_a_closed_sender_too(server: CaptureServer) -> None:
    with ThreadedSender(server.url, workers=1) as sender:

        def letters() -> Iterator[Any]:
            sender.close()
            yield envelope("a")
            raise LookupError("no more")

        with pytest.raises(LookupError, match="no more"):
            sender.send_all(letters())


# ---------------------------------------------------------------- a full queue


def handled_while_it_waits(still: Still, handle: Callable[[], object]) -> None:
    """`handle` is called, as a signal handler is, where this thread waits for a place and does not have the lock."""

    def look(frame: FrameType, event: str, called: Any) -> None:
        waits = frame.f_code.co_name == "wait" and getattr(called, "__name__", "") in ("acquire", "get")
        if event == "c_call" and waits and not is_owned(still.sender._dispatcher._lock):
            sys.setprofile(None)
            handle()

    sys.setprofile(look)


@pytest.mark.parametrize("via", ["submit", "send_all"])
@pytest.mark.parametrize("then", ["submit", "send_all"])
def test_a_handler_does_not_stand_in_line_behind_its_own_thread(still: Still, via: str, then: str) -> None:
    """It would wait for the frame under it, which waits for it; and all others behind them."""
    still.fill()
    met: list[object] = []

    def handle() -> None:
        try:
            if then == "submit":
                still.sender.submit(envelope("handler"), deadline=PATIENCE)
            else:
                met.extend(receipt.error for receipt in still.sender.send_all([envelope("handler")], deadline=PATIENCE))
        except MailError as error:
            met.append(error)
        assert len(still.line) == 1, "it took the place of the frame below"
        still.release()

    handled_while_it_waits(still, handle)
    try:
        if via == "submit":
            receipts = [still.sender.submit(envelope("a"), deadline=PATIENCE).result(PATIENCE)]
        else:
            receipts = list(still.sender.send_all([envelope("a")], deadline=PATIENCE))
    finally:
        sys.setprofile(None)
    assert [receipt.outcome for receipt in receipts] == [Outcome.SENT]
    assert [type(error) for error in met] == [QueueFull]
    assert still.line == []


@pytest.mark.parametrize("whose", ["its own", "others'"])
def test_a_handler_that_stops_the_stream_wakes_the_thread_under_it(still: Still, whose: str) -> None:
    """Nobody else would: it waits for a place, and nothing gets one."""
    if whose == "others'":
        still.fill()
    stream = still.sender.send_each([envelope(f"m{number}") for number in range(3)], deadline=PATIENCE)
    handled_while_it_waits(still, stream.stop)
    try:
        receipts = list(stream)
    finally:
        sys.setprofile(None)
    assert [str(receipt.error) for receipt in receipts] == [
        "the sending was stopped before it was on the wire"
    ] * stream._count
    assert receipts
    assert not stream._end.passed, "it slept until its deadline"


class Waiter:
    def wake(self) -> None: ...


def test_a_handler_uses_the_turn_of_the_frame_under_it(still: Still) -> None:
    """There is a place, and that frame is the first in line for it."""
    line = still.sender._dispatcher._schedule.line
    line[Waiter()] = threading.get_ident()
    still.sender.submit(envelope("a"))
    assert len(line) == 1
    line.clear()


def test_a_handler_does_not_overtake_others_than_the_frame_under_it(still: Still) -> None:
    line = still.sender._dispatcher._schedule.line
    line[Waiter()] = 0
    line[Waiter()] = threading.get_ident()
    with pytest.raises(QueueFull):
        still.sender.submit(envelope("a"), deadline=PATIENCE)
    assert len(line) == 2
    line.clear()


def test_who_asks_for_a_place_from_within_a_step_does_not_wait(still: Still) -> None:
    """A worker's lock may be held in that step, and is not let go of by who waits for a place."""
    still.fill()
    with still.sender._dispatcher._lock:
        with pytest.raises(QueueFull):
            still.sender.submit(envelope("a"), deadline=PATIENCE)
    with pytest.raises(TimedOut):
        still.sender.submit(envelope("a"), deadline=0.0)
