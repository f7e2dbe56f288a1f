"""What becomes of the jobs that a worker leaves lying, each decision at its boundaries."""

from __future__ import annotations

import random
import threading
from collections import deque
from typing import Any, cast

import pytest

from threadmail import Envelope, Outcome, Phase, Receipt, RetryPolicy
from threadmail._connection.breaker import CircuitBreaker
from threadmail._dispatch.job import Job, JobState
from threadmail._dispatch.recovery import left_by, lost_behind
from threadmail._dispatch.schedule import Schedule
from threadmail._dispatch.worker import Worker
from threadmail._protocol.transaction import Terms, Transaction
from threadmail._runtime.deadline import NEVER, now
from threadmail.errors import Aborted, ConnectionLost
from threadmail.receipt import Reply

LETTER = Envelope("s@example.org", ["r@example.org"], b"Subject: x\r\n\r\nx\r\n")


class Completion:
    def done(self) -> bool:
        return False

    def settle(self, job: Job, receipt: Receipt) -> None: ...

    def put_off(self) -> None: ...


class Hung:
    """A client whose connection somebody may drop."""

    def __init__(self) -> None:
        self.aborted = 0

    def abort(self) -> None:
        self.aborted += 1


class Fake:
    """A worker, as far as is looked at here."""

    def __init__(self) -> None:
        self.left: list[Job] = []
        self.connected, self.dialling, self.idle_since = True, False, 0.0
        self.wasted = False
        self.run: deque[Job] = deque()
        self.prefetched: deque[Job] = deque()
        self.current: Job | None = None
        self.lock = threading.RLock()
        self.client = Hung()


class Case:
    """A schedule, and a worker that was interrupted, or whose connection was lost."""

    def __init__(self) -> None:
        self.returned = 0
        self.breaker = CircuitBreaker(RetryPolicy(), random.Random(1))
        self.schedule: Schedule[Any] = Schedule(
            workers=2,
            queue_size=100,
            idle_timeout=None,
            breaker=self.breaker,
            take_token=lambda: 0.0,
            return_token=self._return_token,
            is_limited=lambda: False,
        )
        self.worker = self.another()

    def _return_token(self) -> None:
        self.returned += 1

    def another(self) -> Fake:
        worker = Fake()
        self.schedule.workers[worker] = None
        return worker

    def job(self, state: JobState = JobState.ON_WIRE, phase: Phase | None = None, owner: Fake | None = None) -> Job:
        """A job that a worker has; with a transaction in this phase."""
        job = Job(LETTER, NEVER, keeper=None, completion=Completion())  # type: ignore[arg-type]
        job.state = state
        if phase is not None:
            job.transaction = Transaction(LETTER, Terms())
            job.transaction.phase = phase
        self.schedule.in_flight[job] = owner or self.worker
        return job

    def begun(self, phase: Phase | None = None) -> Job:
        """The one that the worker is about."""
        job = self.worker.current = self.job(phase=phase)
        return job

    def prefetched(self, *phases: Phase | None) -> list[Job]:
        jobs = [self.job(phase=phase) for phase in phases]
        self.worker.prefetched.extend(jobs)
        return jobs

    def lost_behind(self, resumable: Transaction | None = None) -> Job | None:
        return lost_behind(self.schedule, cast(Worker, self.worker), resumable)

    def left(self) -> list[Job]:
        return left_by(self.schedule, cast(Worker, self.worker))


# Behind a message whose connection was lost ---------------------------------------------------------------------------


def test_where_nothing_was_prefetched_nothing_is_lost() -> None:
    case = Case()
    own = case.begun()
    case.worker.run.append(case.job(JobState.TAKEN))
    assert case.lost_behind() is None
    assert case.worker.current is own
    assert len(case.worker.run) == 1


def test_what_was_written_in_part_is_the_first_again_in_its_order_and_was_no_attempt() -> None:
    case = Case()
    [queued] = [Job(LETTER, NEVER, keeper=None, completion=Completion())]  # type: ignore[arg-type]
    case.schedule.submit(queued)
    waiting = case.job(JobState.TAKEN)
    case.worker.run.append(waiting)
    jobs = case.prefetched(Phase.MAIL, Phase.RCPT, Phase.DATA)
    case.begun()
    assert case.lost_behind() is None
    assert list(case.schedule.ready) == [*jobs, waiting, queued]
    assert [job.alone for job in [*jobs, waiting]] == [True] * 3 + [False]
    assert {job.state for job in jobs} == {JobState.READY}
    assert not case.worker.prefetched
    assert not case.worker.run
    assert (case.worker.current, case.returned, case.worker.client.aborted) == (None, 4, 0)


def test_one_that_could_not_even_begin_is_given_back_as_well() -> None:
    case = Case()
    [job] = case.prefetched(None)
    assert case.lost_behind() is None
    assert (job.state, job.alone) == (JobState.READY, True)


def test_the_one_that_the_connection_still_has_goes_on() -> None:
    case = Case()
    lost, goes_on, behind = case.prefetched(Phase.MAIL, Phase.RCPT, Phase.MAIL)
    waiting = case.job(JobState.TAKEN)
    case.worker.run.append(waiting)
    assert case.lost_behind(goes_on.transaction) is goes_on
    assert case.worker.current is goes_on
    assert list(case.worker.prefetched) == [behind]
    assert goes_on.transaction is not None
    assert goes_on.transaction.error is None
    assert list(case.schedule.ready) == [lost, waiting]


def test_where_nothing_was_lost_the_run_stays() -> None:
    case = Case()
    [goes_on] = case.prefetched(Phase.MAIL)
    case.worker.run.append(case.job(JobState.TAKEN))
    assert case.lost_behind(goes_on.transaction) is goes_on
    assert len(case.worker.run) == 1
    assert not case.schedule.ready


def test_one_whose_content_had_left_is_in_doubt() -> None:
    case = Case()
    [doubtful] = case.prefetched(Phase.FINAL)
    assert case.lost_behind() is doubtful
    assert case.worker.current is doubtful
    assert doubtful.transaction is not None
    assert isinstance(doubtful.transaction.error, ConnectionLost)
    assert doubtful.transaction.receipt().outcome is Outcome.IN_DOUBT
    assert case.worker.client.aborted == 0


@pytest.mark.parametrize("phase", [None, Phase.MAIL])
def test_one_that_was_called_off_is_told_so(phase: Phase | None) -> None:
    """Nothing of it was sent, and nobody sends it again."""
    case = Case()
    [off] = case.prefetched(phase)
    off.called_off = True
    assert case.lost_behind() is off
    assert case.worker.client.aborted == 1
    assert off.transaction is not None
    assert isinstance(off.transaction.error, Aborted)


def test_one_that_was_called_off_and_is_under_way_ends_with_its_connection() -> None:
    """What it has come to, the connection says."""
    case = Case()
    [off] = case.prefetched(Phase.RCPT)
    off.called_off = True
    assert case.lost_behind(off.transaction) is off
    assert case.worker.client.aborted == 1
    assert off.transaction is not None
    assert off.transaction.error is None


# By a worker that has ended -------------------------------------------------------------------------------------------


def test_what_others_have_is_left_to_them() -> None:
    case = Case()
    theirs = case.job(owner=case.another())
    assert case.left() == []
    assert theirs.state is JobState.ON_WIRE
    assert theirs in case.schedule.in_flight


def test_a_worker_that_has_ended_has_nothing_any_more() -> None:
    case = Case()
    case.begun()
    case.prefetched(Phase.MAIL)
    case.left()
    assert (case.worker.current, len(case.worker.prefetched), case.schedule.in_flight) == (None, 0, {})


def test_what_was_not_begun_is_given_back() -> None:
    case = Case()
    job = case.job(JobState.TAKEN)
    assert case.left() == []
    assert (job.state, job.alone, list(case.schedule.ready)) == (JobState.READY, False, [job])
    assert case.returned == 1


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA])
def test_what_was_prefetched_and_surely_not_sent_is_given_back(phase: Phase) -> None:
    case = Case()
    [job] = case.prefetched(phase)
    assert case.left() == []
    assert (job.state, job.alone, job.receipt) == (JobState.READY, True, None)


def test_what_was_begun_ends_as_it_stands() -> None:
    """Surely not sent: but it was an attempt, and who interrupted it may have meant it."""
    case = Case()
    job = case.begun(Phase.MAIL)
    assert case.left() == [job]
    assert job.state is JobState.DONE
    assert job.receipt is not None
    assert job.receipt.outcome is Outcome.NOT_SENT
    assert case.returned == 0


def test_a_prefetched_one_in_doubt_ends_in_doubt() -> None:
    case = Case()
    [job] = case.prefetched(Phase.FINAL)
    assert case.left() == [job]
    assert job.receipt is not None
    assert job.receipt.outcome is Outcome.IN_DOUBT


def test_a_prefetched_one_that_was_answered_ends_as_it_was_answered() -> None:
    case = Case()
    [job] = case.prefetched(Phase.MAIL)
    assert job.transaction is not None
    for command in job.transaction.commands():
        job.transaction.take(command, Reply(354 if command.phase is Phase.DATA else 250, b"2.0.0 ok"))
    job.transaction.phase = Phase.FINAL
    job.transaction.take_final("", Reply(250, b"2.0.0 queued"))
    assert case.left() == [job]
    assert job.receipt is not None
    assert job.receipt.outcome is Outcome.SENT


def test_one_that_was_called_off_is_not_sent_again() -> None:
    case = Case()
    taken = case.job(JobState.TAKEN)
    [begun] = case.prefetched(Phase.MAIL)
    taken.called_off = begun.called_off = True
    assert case.left() == [taken, begun]
    assert [job.receipt and job.receipt.outcome for job in (taken, begun)] == [Outcome.NOT_SENT] * 2


def test_one_that_is_done_is_told_perhaps_again() -> None:
    case = Case()
    job = case.job(JobState.DONE)
    job.receipt = receipt = Receipt(Outcome.SENT, Phase.DONE, LETTER.sender, LETTER.recipients)
    assert case.left() == [job]
    assert job.receipt is receipt
    assert not case.schedule.in_flight


def test_one_that_waits_already_waits_on() -> None:
    """Its worker was interrupted in the middle of giving it back, or of putting it off."""
    case = Case()
    back, later = case.job(JobState.READY), case.job(JobState.LATER)
    case.schedule.later.add(later, 5.0)
    first = Job(LETTER, NEVER, keeper=None, completion=Completion())  # type: ignore[arg-type]
    case.schedule.submit(first)
    assert case.left() == []
    assert list(case.schedule.ready) == [first, back]
    assert (back.state, later.state) == (JobState.READY, JobState.LATER)
    assert not case.schedule.in_flight
    assert case.returned == 0


def test_what_another_worker_has_taken_meanwhile_stays_with_him() -> None:
    """By a call of the same thread in between."""
    case = Case()
    other = case.another()
    job = case.job(JobState.TAKEN)

    class Meanwhile(deque[Job]):
        def clear(self) -> None:
            case.schedule.in_flight[job] = other

    case.worker.prefetched = Meanwhile()
    case.left()
    assert case.schedule.in_flight == {job: other}


@pytest.mark.parametrize("another_dials", [True, False])
def test_who_was_interrupted_in_a_dial_owes_no_answer_any_more(another_dials: bool) -> None:
    case = Case()
    case.breaker.ask(0.0)
    case.another().dialling = another_dials
    case.left()
    assert case.breaker.probing == another_dials


# ---------------------------------------------------------------- one that ended for nothing


@pytest.mark.parametrize("wasted", [True, False])
def test_a_connection_that_was_made_for_nothing_is_counted_once(wasted: bool) -> None:
    """Else the next worker would dial at once, and end as well."""
    case = Case()
    case.breaker.connected()
    case.worker.wasted = wasted
    for _ in range(2):
        left_by(case.schedule, cast(Worker, case.worker))
        assert case.breaker.failures == int(wasted)
        assert case.breaker.is_closed is not wasted
    assert (case.breaker.opens_at > now()) is wasted
    assert not case.breaker.is_final()
