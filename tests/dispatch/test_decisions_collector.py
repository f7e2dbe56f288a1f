"""How receipts come back to one caller, each decision at its boundaries. Nobody waits: the queue is a note of it."""

from __future__ import annotations

import queue
import time
from collections import deque
from math import inf
from typing import Any

import pytest

from tests.support.keeper import Keeper
from threadmail import Envelope, MailError, Outcome, Receipt, TimedOut
from threadmail._dispatch import collector as module
from threadmail._dispatch.collector import LAST_WORD, LONGEST_REST, SHORTEST_REST, Collector, Slot
from threadmail._dispatch.job import Job, JobState
from threadmail._runtime.deadline import NEVER, Deadline

LETTER = Envelope("a@here.test", ["b@there.test"], b"Subject: x\r\n\r\nx")
SENT = Receipt(Outcome.SENT, None, LETTER.sender, LETTER.recipients)


class News:
    """A queue in which a wait is over at once: what comes up meanwhile is there, or the time is over."""

    def __init__(self) -> None:
        self.there: deque[Any] = deque()
        self.meanwhile: deque[Any] = deque()
        self.waits: list[float | None] = []
        self.strikes: list[BaseException] = []  # what comes up when something is put there

    def put(self, news: Any) -> None:
        if self.strikes:
            raise self.strikes.pop()
        self.there.append(news)

    def qsize(self) -> int:
        return len(self.there)

    def get(self, timeout: float | None = inf) -> Any:
        if timeout == inf:
            return self.there.popleft()
        self.waits.append(timeout)
        if not self.meanwhile:
            raise queue.Empty
        return self.meanwhile.popleft()


class Noting(Keeper):
    def __init__(self) -> None:
        self.withdrawn: list[tuple[Job, MailError]] = []
        self.aborted: list[Job] = []

    def withdraw(self, job: Job, error: MailError, *, cancelled: bool = False) -> bool:
        self.withdrawn.append((job, error))
        return False

    def abort(self, job: Job) -> bool:
        self.aborted.append(job)
        return True


class Case:
    def __init__(self, messages: int, *, workers: int = 2, end: Deadline = NEVER, size: int | None = None) -> None:
        self.collector = Collector(messages if size is None else size, workers, end)
        self.news = self.collector._news = News()  # type: ignore[assignment]
        self.keeper = Noting()
        self.jobs = [self.collector.job(index, LETTER, self.keeper) for index in range(messages)]
        for job in self.jobs:
            job.state = JobState.READY
        self.collector.under_way.update({index: (job, self.keeper) for index, job in enumerate(self.jobs)})
        for job in self.jobs:
            job.state = JobState.READY  # they have their places in the queue

    def settle(self, *indices: int) -> None:
        for index in indices:
            self.jobs[index].receipt = SENT
            self.jobs[index].completion.settle(self.jobs[index], SENT)

    @property
    def came(self) -> list[int]:
        return [index for index, _ in self.collector.came]


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def at(monkeypatch: pytest.MonkeyPatch, when: float) -> None:
    monkeypatch.setattr(module, "now", lambda: when)


# A slot ---------------------------------------------------------------------------------------------------------------


def test_a_receipt_is_told_once_and_that_it_was_is_known_afterwards() -> None:
    news: Any = News()
    slot = Slot(news, 7)
    job = Job(LETTER, NEVER, Noting(), slot)
    slot.put_off()
    assert not slot.done()
    slot.settle(job, SENT)
    assert slot.done()
    slot.settle(job, SENT)
    assert list(news.there) == [(7, None), (7, SENT)]


def test_a_receipt_is_handed_over_whatever_comes_up_meanwhile() -> None:
    news: Any = News()
    slot = Slot(news, 7)
    job = Job(LETTER, NEVER, Noting(), slot)
    news.strikes.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        slot.settle(job, SENT)
    assert list(news.there) == [(7, SENT)]
    assert slot.done()
    assert slot.all_told


# What has come up -----------------------------------------------------------------------------------------------------


def test_where_nothing_has_come_up_there_is_nothing() -> None:
    case = Case(2)
    assert not case.collector.look()
    assert not case.collector._in_hand


def test_what_is_there_is_taken_in_its_order() -> None:
    case = Case(3)
    case.settle(2, 0)
    assert case.collector.look()
    assert case.came == [2, 0]
    assert list(case.collector.under_way) == [1]
    assert case.collector.look(), "they are still there"
    case.collector.came.clear()
    assert not case.collector.look()


def test_that_there_may_be_a_place_is_news_and_no_receipt() -> None:
    case = Case(2)
    case.collector.wake()
    assert case.collector.look()
    assert (case.came, case.collector.room, len(case.collector)) == ([], 0, 2)


def test_one_that_is_put_off_twice_or_after_its_receipt_stays_where_it_is() -> None:
    case = Case(2, size=5)
    for _ in range(2):
        case.news.put((0, None))
    case.news.put((1, SENT))
    case.news.put((1, None))
    case.collector.look()
    assert (list(case.collector.under_way), list(case.collector._put_off)) == ([], [0])
    assert case.collector.room == 5
    case.news.put((0, SENT))
    case.collector.look()
    assert case.came == [1, 0]
    assert len(case.collector) == 0


def test_only_receipts_that_are_taken_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one begins the clock."""
    case = Case(4)
    at(monkeypatch, 5.0)
    for news in (None, (0, None), (9, SENT)):
        case.news.put(news)
    case.collector.look()
    assert (case.collector._begun, case.collector._seen) == (inf, 0)
    case.news.put((1, SENT))
    case.collector.look()
    assert (case.collector._begun, case.collector._seen) == (5.0, 0)
    at(monkeypatch, 6.0)
    for news in ((1, SENT), (0, SENT), (2, SENT), (3, None), None):
        case.news.put(news)
    case.collector.look()
    assert (case.collector._begun, case.collector._seen) == (5.0, 2)


def test_what_was_in_hand_when_it_was_interrupted_is_found() -> None:
    """Whose receipt was told knows it; who has none was not told; and who was put off is looked at as well."""
    case = Case(5)
    case.news.put((3, None))
    case.collector.look()
    for index in (0, 1, 3):
        slot = case.jobs[index].completion
        assert isinstance(slot, Slot)
        slot._told = True
        case.jobs[index].receipt = None if index == 1 else SENT
    case.jobs[2].receipt = SENT
    assert not case.collector.look(), "it was not interrupted"
    case.collector._in_hand = True
    assert case.collector.look()
    assert case.came == [0, 3]
    assert not case.collector._in_hand
    assert list(case.collector.under_way) == [1, 2, 4]


@pytest.mark.parametrize("way", ["look", "wait"])
def test_who_is_interrupted_while_he_takes_something_knows_it(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(1)

    def interrupted(timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    if way == "look":
        case.news.put((0, SENT))
    monkeypatch.setattr(case.news, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(case.collector, way)()
    assert case.collector._in_hand


# Waiting --------------------------------------------------------------------------------------------------------------


def test_who_finds_something_does_not_wait(rests: list[float]) -> None:
    case = Case(1000)
    case.collector._begun, case.collector._seen = 0.0, 1
    case.news.put((0, SENT))
    case.collector.wait()
    assert (case.came, case.news.waits, rests) == ([0], [], [])


def test_who_waits_takes_what_comes_and_what_has_come_up_meanwhile() -> None:
    case = Case(4)
    case.news.meanwhile.append((1, SENT))
    real = case.news.get

    def get(timeout: float | None = inf) -> Any:
        found = real(timeout)
        if timeout is None:
            case.settle(3, 2)
        return found

    case.news.get = get  # type: ignore[method-assign]
    case.collector.wait()
    assert (case.came, case.news.waits) == ([1, 3, 2], [None])
    assert not case.collector._in_hand


def test_who_waits_for_a_place_does_not_rest(rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(1000)
    at(monkeypatch, 100.0)
    case.collector._begun, case.collector._seen = 0.0, 1
    case.news.meanwhile.append(None)
    case.collector.wait()
    assert (case.came, rests) == ([], [])


@pytest.mark.parametrize(("waiting", "rest"), [(5, True), (4, False)])
def test_who_waits_rests_only_while_more_is_queued_than_the_workers_take_up(
    waiting: int, rest: bool, rests: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two for each worker."""
    case = Case(waiting + 1)
    at(monkeypatch, 100.0)
    case.collector._begun, case.collector._seen = 0.0, 1
    case.news.meanwhile.append((0, SENT))
    case.collector.wait()
    assert rests == [LONGEST_REST] * rest
    assert LONGEST_REST == 0.005


def test_nobody_rests_before_the_pace_is_known(rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(1000)
    at(monkeypatch, 100.0)
    case.news.meanwhile.append((0, SENT))
    case.collector.wait()
    assert rests == []


@pytest.mark.parametrize(("took", "rest"), [(0.002, 0.002), (0.00021, 0.00021), (0.00019, None), (1.0, 0.005)])
def test_a_rest_is_half_as_long_as_the_queue_lasts(
    took: float, rest: float | None, rests: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six wait, four are the workers': two are left, and one took so long."""
    case = Case(7)
    at(monkeypatch, 1.0 + took)
    case.collector._begun = 1.0
    case.news.meanwhile.append((0, SENT))
    case.collector.wait()
    assert rests == ([] if rest is None else [pytest.approx(rest)])
    assert SHORTEST_REST == 0.0002


def test_a_rest_of_the_shortest_length_is_one(rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST_REST", LONGEST_REST)
    case = Case(1000)
    at(monkeypatch, 100.0)
    case.collector._begun, case.collector._seen = 0.0, 1
    case.news.meanwhile.append((0, SENT))
    case.collector.wait()
    assert rests == [LONGEST_REST]


def test_nobody_rests_past_the_deadline(rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(1000, end=Deadline(100.001))
    at(monkeypatch, 100.0)
    case.collector._begun, case.collector._seen = 0.0, 1
    case.news.meanwhile.append((0, SENT))
    case.collector.wait()
    assert rests == [pytest.approx(0.001)]


# The deadline ---------------------------------------------------------------------------------------------------------


def test_at_the_deadline_all_are_taken_back_and_what_is_on_the_wire_gets_a_last_word() -> None:
    case = Case(2, end=Deadline(0.0))
    case.news.put((1, None))
    case.collector.look()
    real = case.news.get

    def get(timeout: float | None = inf) -> Any:
        if timeout == LAST_WORD:
            case.news.meanwhile.append((0, SENT))
        return real(timeout)

    case.news.get = get  # type: ignore[method-assign]
    case.collector.wait()
    assert [job for job, _ in case.keeper.withdrawn] == case.jobs
    errors = [error for _, error in case.keeper.withdrawn]
    assert all(isinstance(error, TimedOut) and error.deadline_passed for error in errors)
    assert errors[0] is not errors[1]
    assert (case.keeper.aborted, case.came, case.news.waits) == ([], [0], [0.0, LAST_WORD])


def test_who_has_no_last_word_is_dropped() -> None:
    case = Case(2, end=Deadline(0.0))
    case.collector.wait()
    assert case.keeper.aborted == case.jobs
    assert case.news.waits == [0.0, LAST_WORD]
    assert LAST_WORD == 1.0


@pytest.mark.parametrize("others", [JobState.NEW, JobState.ON_WIRE])
def test_those_without_a_place_have_no_last_word_but_that_of_their_caller(others: JobState) -> None:
    """He waits here himself; one that is on the wire is waited for all the same."""
    case = Case(2, end=Deadline(0.0))
    case.jobs[0].state, case.jobs[1].state = JobState.NEW, others
    case.collector.wait()
    assert [job for job, _ in case.keeper.withdrawn] == case.jobs
    waited = others is not JobState.NEW
    assert case.news.waits == [0.0, LAST_WORD][: 1 + waited]
    assert case.keeper.aborted == case.jobs * waited


def test_what_is_taken_back_is_told_why() -> None:
    case = Case(2)
    made: list[MailError] = []

    def why() -> MailError:
        made.append(MailError("no more"))
        return made[-1]

    case.collector.take_back(why)
    assert [error for _, error in case.keeper.withdrawn] == made
    assert len(made) == 2
