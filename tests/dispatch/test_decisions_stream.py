"""What the stream of receipts decides: who stands in the line for a place, and who is out of it when he is struck."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from threadmail import Envelope, Outcome, Receipt, ThreadedSender, TimedOut
from threadmail._dispatch.collector import Collector
from threadmail._dispatch.job import Job, JobState
from threadmail._dispatch.stream import ReceiptStream
from threadmail._runtime.deadline import NEVER
from threadmail.testing import CaptureServer

LETTER = Envelope("a@here.test", ["b@there.test"], b"Subject: x\r\n\r\nx")


class Dispatcher:
    """Has no place for anybody, so that each stands in its line; strikes where it is told to."""

    must_not_wait = False

    def __init__(self, strike: str) -> None:
        self.strike = strike
        self.line: list[Any] = []
        self.left = 0

    def _struck(self, where: str) -> None:
        if self.strike == where:
            self.strike = ""
            raise KeyboardInterrupt(where)

    def put_some(self, jobs: list[tuple[int, Job]], waiter: Any) -> None:
        self.line.append(waiter)
        self._struck("in the line, and not waiting yet")

    def leave_line(self, waiter: Any) -> None:
        self._struck("about to leave it")
        if waiter in self.line:
            self.line.remove(waiter)
        self._struck("out of it, and nobody was told")
        self.left += 1


class Waiting(Collector):
    """Somebody is struck while he waits, or has something to tell at once."""

    strike: Callable[[], None] = staticmethod(lambda: None)

    def wait(self) -> None:
        self.strike()


def struck(dispatcher: Dispatcher, strike: Callable[[], None] | None = None) -> None:
    collector = Waiting(1, 1, NEVER)
    receipt = Receipt.not_sent(LETTER, TimedOut("late"))
    collector.strike = strike or (lambda: collector.came.append((0, receipt)))  # for which he leaves the line
    refused: list[Receipt] = []
    stream = ReceiptStream([LETTER], collector, NEVER, lambda: dispatcher, refused.append)  # type: ignore[arg-type, return-value]
    with pytest.raises(KeyboardInterrupt):
        list(stream)


@pytest.mark.parametrize(
    "where", ["in the line, and not waiting yet", "about to leave it", "out of it, and nobody was told"]
)
def test_who_is_struck_does_not_stay_in_the_line(where: str) -> None:
    """Those behind him would wait for ever; and the next one is told that it is his turn."""
    dispatcher = Dispatcher(where)
    struck(dispatcher)
    assert dispatcher.line == []
    assert dispatcher.left == 1


def test_who_is_struck_while_he_waits_does_not_stay_in_the_line() -> None:
    def strike() -> None:
        raise KeyboardInterrupt

    dispatcher = Dispatcher("")
    struck(dispatcher, strike)
    assert dispatcher.line == []
    assert dispatcher.left >= 1


# Many streams, few places -------------------------------------------------------------------------------------------


def test_many_who_wait_for_a_place_get_one_after_the_other() -> None:
    """Each that was woken left the line and joined it again at its end: they woke each other, and nothing was sent."""
    threads, messages = 5, 20
    done: list[int] = []

    def letters(thread: int) -> list[Envelope]:
        return [Envelope(f"{thread}.{n}@here.test", ["b@there.test"], LETTER.content) for n in range(messages)]

    def send(thread: int) -> None:
        report = sender.send_all(letters(thread), deadline=60.0)
        done.append(sum(receipt.outcome is Outcome.SENT for receipt in report))

    with CaptureServer() as server, ThreadedSender(server.url, workers=1, queue_size=2) as sender:
        callers = [threading.Thread(target=send, args=(thread,)) for thread in range(threads)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert done == [messages] * threads
        assert len(server.messages) == threads * messages


class Turn(Dispatcher):
    """Admits who is the first of its line; there is always a place for one message."""

    def put_some(self, jobs: list[tuple[int, Job]], waiter: Any) -> None:
        if waiter not in self.line:
            self.line.append(waiter)
        if self.line[0] is waiter:
            jobs[0][1].state = JobState.READY
            self.line.remove(waiter)


def test_who_is_woken_keeps_his_place_until_he_has_looked() -> None:
    """Another one stands before him at first; when he is woken, still; then he is the first."""
    dispatcher = Turn("")
    dispatcher.line.append("another")
    places: list[int] = []
    collector = Waiting(1, 1, NEVER)

    def wait() -> None:
        places.append(dispatcher.line.index(collector))
        if len(places) == 2:
            dispatcher.line.remove("another")
        if len(places) == 3:
            raise KeyboardInterrupt

    collector.strike = wait
    refused: list[Receipt] = []
    stream = ReceiptStream([LETTER], collector, NEVER, lambda: dispatcher, refused.append)  # type: ignore[arg-type, return-value]
    stream._feed()
    assert (places, dispatcher.line, refused) == ([1, 1], [], [])
    assert not stream._held
