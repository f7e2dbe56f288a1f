"""The way back of a batch: each receipt once, to one thread, which is not woken for each of them."""

from __future__ import annotations

import time

import pytest

from threadmail import Closed, Envelope, Outcome, Receipt
from threadmail._batch import LONGEST_REST, Batch
from threadmail._deadline import NEVER, Deadline
from threadmail._jobs import Job, JobState

LETTER = Envelope("a@here.test", ["b@there.test"], b"Subject: x\r\n\r\nx")
SENT = Receipt(Outcome.SENT, None, LETTER.sender, LETTER.recipients)


class Keeper:
    """Takes back what is queued, and settles what it is to drop."""

    in_lane = False

    def __init__(self) -> None:
        self.aborted: list[Job] = []

    def withdraw(self, job: Job) -> bool:
        return job.state is JobState.QUEUED

    def abort(self, job: Job) -> bool:
        self.aborted.append(job)
        job.future.settle(Receipt.not_sent(job.envelope, Closed("dropped")))
        return True

    def settle_overdue(self) -> None: ...


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the caller let the lanes work; nobody waits in truth."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def filled(messages: int, *, lanes: int = 2, end: Deadline = NEVER) -> tuple[Batch, list[Job]]:
    batch = Batch(messages, lanes, end)
    return batch, [batch.add(index, LETTER, Keeper()) for index in range(messages)]


def test_a_receipt_that_is_told_twice_is_taken_once() -> None:
    """A lane that was interrupted tells again."""
    batch, (first, second) = filled(2)
    first.future.settle(SENT)
    assert first.future.done()
    first.future._told = False  # type: ignore[attr-defined]  # interrupted between the two
    first.future.settle(SENT)
    assert list(batch.receipts()) == [(0, SENT)]
    assert len(batch) == 1
    assert not batch.wants_asking
    second.future.settle(SENT)
    second.future.settle(SENT)
    assert list(batch.receipts()) == [(1, SENT)]
    assert not len(batch)
    assert list(batch.receipts()) == []


def test_receipts_that_are_there_are_taken_at_once(rests: list[float]) -> None:
    batch, jobs = filled(1000)
    for job in jobs[:5]:
        job.future.settle(SENT)
    assert [index for index, _ in batch.receipts()] == [0, 1, 2, 3, 4]
    assert rests == []


def timed(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    """What the clock says whenever a batch asks; the last time from then on."""
    left = list(times)
    monkeypatch.setattr("threadmail._batch.now", lambda: left.pop(0) if len(left) > 1 else left[0])


@pytest.mark.parametrize(
    ("messages", "each", "rest"), [(6, 1.0, None), (15, 1e-6, None), (18, 2e-4, 0.001), (1000, 1.0, LONGEST_REST)]
)
def test_who_had_to_wait_rests_for_half_as_long_as_the_queue_lasts(
    messages: int, each: float, rest: float | None, rests: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first nobody knows how long that is."""
    batch, jobs = filled(messages, lanes=2)
    wait = batch._wait
    ready = iter(jobs)

    def woken() -> tuple[int, Receipt]:
        next(ready).future.settle(SENT)
        first = wait()
        next(ready).future.settle(SENT)  # comes up while the caller rests
        return first

    monkeypatch.setattr(batch, "_wait", woken)
    timed(monkeypatch, 100.0, 100.0 + 2 * each)
    assert len(list(batch.receipts())) == 2
    assert len(list(batch.receipts())) == 2
    assert rests == []
    assert len(batch) == messages - 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_wait", lambda: (4, SENT))
        assert len(list(batch.receipts())) == 1
    assert rests == ([] if rest is None else [pytest.approx(rest)])


def test_nobody_rests_past_the_deadline(rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    batch, jobs = filled(1000, end=Deadline.after(0))
    batch._begun, batch._came = 0.0, 1
    monkeypatch.setattr(batch, "_wait", lambda: (0, SENT))
    assert list(batch.receipts()) == [(0, SENT)]
    assert rests == []
    assert jobs[1].state is JobState.QUEUED


def test_at_the_deadline_what_is_queued_is_taken_back_and_what_is_on_the_wire_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("threadmail._batch.LAST_WORD", 0.01)
    keeper = Keeper()
    batch = Batch(2, 1, Deadline.after(0))
    on_wire, queued = (batch.add(index, LETTER, keeper) for index in range(2))
    on_wire.state = JobState.ON_WIRE
    came = dict(batch.receipts())
    assert list(came) == [1]
    assert came[1].outcome is Outcome.NOT_SENT
    assert "taken back" in str(came[1].error)
    assert queued.future.done()
    assert not keeper.aborted
    came = dict(batch.receipts())
    assert keeper.aborted == [on_wire]
    assert str(came[0].error) == "dropped"


def test_a_message_that_was_not_queued_is_not_waited_for() -> None:
    batch, _ = filled(2)
    assert batch.wants_asking, "no more may be added"
    batch.forget(0)
    assert len(batch) == 1
    assert not batch.wants_asking
