"""What a job's future decides: who is told, once, though an exception from outside comes in the midst of it."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from typing import Any

import pytest

from tests.support.keeper import Keeper
from threadmail import Envelope, Outcome, Phase, Receipt
from threadmail._dispatch.job import Job
from threadmail._runtime.deadline import NEVER
from threadmail.errors import TimedOut
from threadmail.receipt import Reply

LETTER = Envelope("s@example.org", ["r@example.org"], b"Subject: x\r\n\r\nx\r\n")
SENT = Receipt(
    Outcome.SENT, Phase.DONE, LETTER.sender, LETTER.recipients, None, LETTER.recipients, {}, Reply(250, b"ok")
)


class Struck:
    """Who waits first; whoever tells him is struck, once."""

    def __init__(self, strike: type[BaseException]) -> None:
        self.finished_futures: list[Any] = []
        self._strike: type[BaseException] | None = strike

    def add_result(self, future: Any) -> None:
        strike, self._strike = self._strike, None
        if strike is not None:
            raise strike
        self.finished_futures.append(future)

    add_exception = add_cancelled = add_result


def failed() -> Receipt:
    return Receipt.not_sent(LETTER, TimedOut("late"))


@pytest.mark.parametrize("strike", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("receipt", [SENT, failed()], ids=["sent", "not sent"])
def test_who_waits_is_told_though_whoever_tells_him_is_struck(strike: type[BaseException], receipt: Receipt) -> None:
    """In `set_result` the future was done, the others who waited for it were not told, and waited for ever."""
    job = Job(LETTER, NEVER, Keeper())
    future, ended = job.future, list[Any]()
    first: Any = Struck(strike)
    future._waiters.append(first)
    others = [threading.Thread(target=lambda: ended.append(wait([future]).done)) for _ in range(2)]
    others.append(threading.Thread(target=lambda: ended.append(future.exception())))
    for thread in others:
        thread.start()
    while len(future._waiters) < 3:
        pass
    try:
        with pytest.raises(strike):
            job.completion.settle(job, receipt)
        for thread in others:
            thread.join(10)
        assert len(ended) == 3
        assert first.finished_futures == [future]
    finally:
        future._waiters[:] = [waiter for waiter in future._waiters if waiter is not first]
        for waiter in future._waiters:
            waiter.add_result(future)
        with future._condition:
            future._condition.notify_all()
        for thread in others:
            thread.join(10)


def test_a_future_that_is_settled_twice_keeps_the_first_receipt_and_tells_once() -> None:
    job = Job(LETTER, NEVER, Keeper())
    called: list[Any] = []
    job.future.add_done_callback(called.append)
    for receipt in (SENT, failed()):
        job.completion.settle(job, receipt)
    assert (job.future.result(), called) == (SENT, [job.future])


@pytest.mark.parametrize("how", ["sent", "not sent", "taken back"])
def test_of_two_that_settle_in_one_moment_one_does_and_the_other_is_silent(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both have looked, and seen that it is not settled: who closes, and the worker that he waits for no longer."""
    job = Job(LETTER, NEVER, Keeper())
    job.cancelled = how == "taken back"
    future, called = job.future, list[Any]()
    future.add_done_callback(called.append)
    receipt = SENT if how == "sent" else failed()
    future.settle(job, receipt)
    with monkeypatch.context() as patched:
        patched.setattr(future, "done", lambda: False)
        patched.setattr(future, "_all_told", False)
        future.settle(job, receipt)
    assert (called, future.cancelled(), caplog.records) == ([future], job.cancelled, [])
    assert future.receipt is receipt


class Swapping:
    """Who waits as `as_completed` does: what it was told of it has taken away already."""

    def __init__(self) -> None:
        self.told = 0

    @property
    def finished_futures(self) -> list[Any]:
        return []

    def add_result(self, future: Any) -> None:
        self.told += 1

    add_exception = add_cancelled = add_result


@pytest.mark.parametrize("how", ["sent", "not sent", "taken back"])
def test_who_waits_is_told_once_though_a_callback_leaves_and_it_is_settled_again(how: str) -> None:
    job = Job(LETTER, NEVER, Keeper())
    job.cancelled = how == "taken back"
    future, receipt, waiter = job.future, SENT if how == "sent" else failed(), Swapping()
    future._waiters.append(waiter)  # type: ignore[arg-type]

    def callback(_: object) -> None:
        future.settle(job, receipt)  # who closes meanwhile
        raise SystemExit

    future.add_done_callback(callback)
    with pytest.raises(SystemExit):
        future.settle(job, receipt)
    future.settle(job, receipt)
    assert (waiter.told, future.all_told, future.cancelled()) == (1, True, job.cancelled)
