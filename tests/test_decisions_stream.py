"""What the stream of receipts decides: who stands in the line for a place, and who is out of it when he is struck."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from threadmail import Envelope, Receipt
from threadmail._collector import Collector
from threadmail._deadline import NEVER
from threadmail._job import Job
from threadmail._stream import ReceiptStream

LETTER = Envelope("a@here.test", ["b@there.test"], b"Subject: x\r\n\r\nx")


class Dispatcher:
    """Has no place for anybody, so that each stands in its line; strikes where it is told to."""

    in_callback = False

    def __init__(self, strike: str) -> None:
        self.strike = strike
        self.line: list[Any] = []
        self.left = 0

    def _struck(self, where: str) -> None:
        if self.strike == where:
            self.strike = ""
            raise KeyboardInterrupt(where)

    def put_some(self, jobs: list[Job], waiter: Any) -> None:
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
    if strike is not None:
        collector.strike = strike
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
