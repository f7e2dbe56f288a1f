"""The way back of receipts: each once, to one thread, which is not woken for each of them."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from tests.support.keeper import Keeper
from threadmail import Closed, Envelope, MailError, Outcome, Receipt, TimedOut
from threadmail._dispatch import collector as collector_module
from threadmail._dispatch.collector import LONGEST_REST, Collector, Slot
from threadmail._dispatch.job import Job, JobState
from threadmail._runtime.deadline import NEVER, Deadline

LETTER = Envelope("a@here.test", ["b@there.test"], b"Subject: x\r\n\r\nx")
SENT = Receipt(Outcome.SENT, None, LETTER.sender, LETTER.recipients)


class Taking(Keeper):
    """Takes back what is queued, and settles what it is to drop."""

    def __init__(self) -> None:
        self.aborted: list[Job] = []

    def withdraw(self, job: Job, error: MailError, *, cancelled: bool = False) -> bool:
        if job.state is not JobState.NEW:
            return False
        settle(job, job.ended_by(error))
        return True

    def abort(self, job: Job) -> bool:
        self.aborted.append(job)
        settle(job, Receipt.not_sent(job.envelope, Closed("dropped")))
        return True


def settle(job: Job, receipt: Receipt = SENT) -> None:
    job.receipt = receipt
    job.completion.settle(job, receipt)


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the caller let the workers work; nobody waits in truth."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def filled(messages: int, *, workers: int = 2, end: Deadline = NEVER) -> tuple[Collector, list[Job]]:
    collector, keeper = Collector(messages, workers, end), Taking()
    jobs = [collector.job(index, LETTER, keeper) for index in range(messages)]
    collector.under_way.update({index: (job, keeper) for index, job in enumerate(jobs)})
    return collector, jobs


def taken(collector: Collector) -> list[tuple[int, Receipt]]:
    collector.wait()
    came = list(collector.came)
    collector.came.clear()
    return came


def test_a_receipt_that_is_told_twice_is_taken_once() -> None:
    """A worker that was interrupted tells again."""
    collector, (first, second) = filled(2)
    settle(first)
    assert isinstance(first.completion, Slot)
    assert first.completion.done()
    first.completion._told = False  # interrupted between the two
    settle(first)
    assert taken(collector) == [(0, SENT)]
    assert len(collector) == 1
    settle(second)
    settle(second)
    assert taken(collector) == [(1, SENT)]
    assert not len(collector)


def test_receipts_that_are_there_are_taken_at_once(rests: list[float]) -> None:
    collector, jobs = filled(1000)
    for job in jobs[:5]:
        settle(job)
    assert collector.look()
    assert [index for index, _ in collector.came] == [0, 1, 2, 3, 4]
    assert rests == []


def test_one_that_is_put_off_takes_no_room() -> None:
    """A domain with a greylist would else stop all others."""
    collector, jobs = filled(3)
    assert collector.room == 0
    jobs[1].completion.put_off()
    collector.wait()
    assert not collector.came
    assert (collector.room, len(collector)) == (1, 3)
    settle(jobs[1])
    assert taken(collector) == [(1, SENT)]
    assert (collector.room, len(collector)) == (1, 2)


def test_what_was_dropped_by_an_exception_from_outside_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the queue has given a receipt and nobody has it yet."""
    collector, jobs = filled(3)
    for job in jobs[:2]:
        settle(job)
    get = collector._news.get

    def interrupted() -> None:
        get()
        raise KeyboardInterrupt

    real = collector._news
    monkeypatch.setattr(collector, "_news", SimpleNamespace(qsize=lambda: 2, get=interrupted))
    with pytest.raises(KeyboardInterrupt):
        collector.look()
    monkeypatch.setattr(collector, "_news", real)
    collector.look()
    assert sorted(index for index, _ in collector.came) == [0, 1]
    collector.came.clear()
    assert not collector.look()


def timed(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    """What the clock says whenever a collector asks; the last time from then on."""
    left = list(times)
    monkeypatch.setattr(collector_module, "now", lambda: left.pop(0) if len(left) > 1 else left[0])


@pytest.mark.parametrize(
    ("messages", "each", "rest"), [(6, 1.0, None), (15, 1e-6, None), (18, 2e-4, 0.0012), (1000, 1.0, LONGEST_REST)]
)
def test_who_had_to_wait_rests_for_half_as_long_as_the_queue_lasts(
    messages: int, each: float, rest: float | None, rests: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first nobody knows how long that is."""
    collector, jobs = filled(messages, workers=2)
    timed(monkeypatch, 100.0, 100.0 + each)
    settle(jobs[0])
    taken(collector)
    settle(jobs[1])
    news = SimpleNamespace(qsize=lambda: 0, get=collector._news.get)  # it came up while the caller waited
    monkeypatch.setattr(collector, "_news", news)
    assert rests == []
    taken(collector)
    assert rests == ([] if rest is None else [pytest.approx(rest)])


def test_nobody_rests_past_the_deadline(rests: list[float]) -> None:
    collector, jobs = filled(1000, end=Deadline.after(0))
    collector._begun, collector._seen = 0.0, 1
    settle(jobs[0])
    assert taken(collector) == [(0, SENT)]
    assert rests == []


def test_at_the_deadline_what_is_queued_is_taken_back_and_what_is_on_the_wire_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector_module, "LAST_WORD", 0.01)
    collector, (on_wire, queued) = filled(2, end=Deadline.after(0))
    on_wire.state = JobState.ON_WIRE
    [(index, receipt)] = taken(collector)
    assert index == 1
    assert receipt.outcome is Outcome.NOT_SENT
    assert isinstance(receipt.error, TimedOut)
    assert receipt.error.deadline_passed
    assert queued.completion.done()
    keeper = collector.under_way[0][1]
    assert isinstance(keeper, Taking)
    assert not keeper.aborted
    [(index, receipt)] = taken(collector)
    assert keeper.aborted == [on_wire]
    assert str(receipt.error) == "dropped"
