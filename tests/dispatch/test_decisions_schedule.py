"""What a schedule decides, each decision at its boundaries. No lock, no thread, no socket: the time is an argument."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

from threadmail import Envelope, Outcome, Receipt, RetryPolicy
from threadmail._connection.breaker import CircuitBreaker
from threadmail._dispatch.closing import Closing
from threadmail._dispatch.job import Job, JobState
from threadmail._dispatch.schedule import RETRIES_A_PLACE, RUN, SLICE, Action, Do, Schedule
from threadmail._runtime.deadline import NEVER, Deadline
from threadmail.errors import ConnectFailed, LoginRefused

LETTER = Envelope("s@example.org", ["r@example.org"], b"Subject: x\r\n\r\nx\r\n")


class Completion:
    def done(self) -> bool:
        return False

    def settle(self, job: Job, receipt: Receipt) -> None: ...

    def put_off(self) -> None: ...


class Worker:
    def __init__(self, *, connected: bool = True, idle_since: float = 0.0) -> None:
        self.connected, self.dialling, self.idle_since = connected, False, idle_since
        self.run: deque[Job] = deque()
        self.current: Job | None = None
        self.left: list[Job] = []
        self.begun = True
        self.lock = threading.RLock()


class Waiter:
    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


class Case:
    """A schedule, and what it is given from outside."""

    def __init__(self, **settings: Any) -> None:
        self.tokens = inf
        self.wait_for_token = 0.0
        self.returned = 0
        self.limited = False
        policy = RetryPolicy(attempts=3, base=1.0, longest=8.0)
        self.breaker = CircuitBreaker(policy, random.Random(1))
        given = {"workers": 2, "queue_size": 100, "idle_timeout": 30.0, **settings}
        self.schedule: Schedule[Worker] = Schedule(
            breaker=self.breaker,
            take_token=self._take_token,
            return_token=self._return_token,
            is_limited=lambda: self.limited,
            **given,
        )

    def _take_token(self) -> float:
        return self.wait_for_token

    def _return_token(self) -> None:
        self.returned += 1

    def job(self, end: float = inf) -> Job:
        return Job(LETTER, Deadline(end) if end != inf else NEVER, keeper=None, completion=Completion())  # type: ignore[arg-type]

    def queued(self, number: int = 1, end: float = inf) -> list[Job]:
        jobs = [self.job(end) for _ in range(number)]
        for job in jobs:
            self.schedule.submit(job)
        return jobs

    def worker(self, **how: Any) -> Worker:
        worker = Worker(**how)
        self.schedule.workers[worker] = None
        return worker

    def later(self, at: float, until: float = inf, end: float = inf) -> Job:
        """A job that waits for its next attempt."""
        [job] = self.queued(1, end)
        del self.schedule.ready[job]
        job.state = JobState.ON_WIRE
        self.schedule.again(job, at, until)
        self.schedule.retries = 0
        return job

    def begun(self, number: int = 1) -> tuple[Worker, list[Job]]:
        """Jobs that a worker has begun."""
        jobs = self.queued(number)
        worker = self.worker()
        for job in jobs:
            self.schedule._take(job, worker)
            del self.schedule.ready[job]
            job.state = JobState.ON_WIRE
        worker.run.clear()
        return worker, jobs


def told(job: Job, outcome: Outcome = Outcome.NOT_SENT) -> Job:
    job.receipt = Receipt(outcome, None, "s@example.org", ("r@example.org",))
    return job


# Places -------------------------------------------------------------------------------------------------------------


def test_a_new_schedule_is_empty_and_has_all_its_places() -> None:
    schedule = Case(queue_size=7).schedule
    assert (schedule.is_empty, len(schedule), schedule.places(), schedule.working) == (True, 0, 7, True)
    assert (schedule.idle, schedule.retries, schedule.outcomes) == (0, 0, dict.fromkeys(Outcome, 0))


def test_each_job_that_waits_for_a_worker_takes_one_place_and_the_last_place_is_one() -> None:
    case = Case(queue_size=2)
    assert [case.schedule.places(), case.schedule.admits(None)] == [2, True]
    case.queued()
    assert [case.schedule.places(), case.schedule.admits(None)] == [1, True]
    case.queued()
    assert [case.schedule.places(), case.schedule.admits(None)] == [0, False]


def test_what_workers_have_taken_ahead_takes_places_beyond_two_for_each() -> None:
    """In memory are at most the queue and two for each worker: with 3 places and 2 workers, 7."""
    case = Case(queue_size=3, workers=2)
    case.begun(4)
    assert case.schedule.places() == 3
    case.begun(1)
    assert case.schedule.places() == 2
    case.queued(2)
    assert case.schedule.places() == 0


def test_retries_take_no_place_until_there_are_ten_for_each() -> None:
    case = Case(queue_size=1)
    for number in range(RETRIES_A_PLACE - 1):
        case.later(at=100.0 + number)
    assert case.schedule.places() == 1
    case.later(at=200.0)
    assert case.schedule.places() == 0
    assert RETRIES_A_PLACE == 10


def test_the_first_in_line_comes_in_and_nobody_overtakes_him() -> None:
    schedule = Case(queue_size=1).schedule
    first, second = Waiter(), Waiter()
    schedule.line[first] = schedule.line[second] = 1
    assert [schedule.admits(who) for who in (first, second, None)] == [True, False, False]
    del schedule.line[first]
    assert [schedule.admits(who) for who in (first, second, None)] == [False, True, False]


def test_nobody_comes_in_where_there_is_no_place_though_he_is_first() -> None:
    case = Case(queue_size=1)
    first = Waiter()
    case.schedule.line[first] = 1
    case.queued()
    assert not case.schedule.admits(first)
    case.schedule.wake_first()
    assert first.woken == 0


def test_where_there_is_a_place_the_first_in_line_is_woken_and_he_alone() -> None:
    schedule = Case(queue_size=1).schedule
    schedule.wake_first()  # there is nobody
    first, second = Waiter(), Waiter()
    schedule.line[first] = schedule.line[second] = 1
    schedule.wake_first()
    assert (first.woken, second.woken) == (1, 0)


# Out again ----------------------------------------------------------------------------------------------------------


def test_what_was_queued_can_be_taken_back_in_the_same_step_as_if_it_had_not_been() -> None:
    case = Case()
    job, other = case.queued(2, end=50.0)
    case.schedule.take_back(job)
    assert (job.state, list(case.schedule.ready), list(case.schedule.ends)) == (JobState.NEW, [other], [other])
    case.schedule.take_back(job)
    assert (list(case.schedule.untold), case.returned) == ([], 0)


def test_what_waits_for_a_worker_can_be_taken_out_and_is_gone_at_once() -> None:
    case = Case()
    (job, other), out = case.queued(2, end=50.0), []  # type: ignore[var-annotated]
    assert case.schedule.take_out(job, out)
    assert (out, job.state, list(case.schedule.ready), list(case.schedule.untold)) == (
        [job],
        JobState.DONE,
        [other],
        [job],
    )
    assert job not in case.schedule.ends
    assert other in case.schedule.ends
    assert case.returned == 0
    assert not case.schedule.take_out(job, out)
    assert out == [job]


def test_what_waits_for_its_next_attempt_can_be_taken_out() -> None:
    case, out = Case(), list[Job]()
    job = case.later(at=9.0, until=50.0)
    assert case.schedule.take_out(job, out)
    assert (out, job.state, len(case.schedule.later), len(case.schedule.ends)) == ([job], JobState.DONE, 0, 0)
    assert case.returned == 0


def test_what_a_worker_has_taken_and_not_begun_can_be_taken_out_and_gives_its_token_back() -> None:
    case, out = Case(), list[Job]()
    job, other = case.queued(2)
    worker = case.worker()
    case.schedule.take_run(worker, 0.0)
    case.schedule._take(other, worker) if other not in worker.run else None
    assert case.schedule.take_out(job, out)
    assert (list(worker.run), case.returned, out) == ([other], 1, [job])
    assert job not in case.schedule.in_flight


@pytest.mark.parametrize("state", [JobState.NEW, JobState.ON_WIRE, JobState.DONE])
def test_what_is_not_queued_or_was_begun_or_is_over_cannot_be_taken_out(state: JobState) -> None:
    case, out = Case(), list[Job]()
    _, [job] = case.begun()
    job.state = state
    assert not case.schedule.take_out(job, out)
    assert (out, job.state, job in case.schedule.in_flight) == ([], state, True)


def test_what_was_taken_and_is_in_no_run_any_more_cannot_be_taken_out() -> None:
    """Its worker has claimed it, or it was stolen meanwhile."""
    case, out = Case(), list[Job]()
    worker, [job] = case.begun()
    job.state = JobState.TAKEN
    assert not case.schedule.take_out(job, out)
    worker.run.append(job)
    assert case.schedule.take_out(job, out)


def test_what_has_its_final_receipt_is_nowhere_but_among_the_untold() -> None:
    case = Case()
    worker, [job] = case.begun()
    case.schedule.expires(job, 50.0)
    receipt = Receipt(Outcome.PARTIAL, None, "s@example.org", ("r@example.org",))
    case.schedule.finish(job, receipt, worker)
    assert (job.state, list(case.schedule.untold), list(case.schedule.in_flight)) == (JobState.DONE, [job], [])
    assert job.receipt is receipt
    assert worker.left == [job]
    assert (len(case.schedule.ends), case.schedule.is_empty) == (0, False)


@pytest.mark.parametrize(("at", "gone"), [(9.9, False), (10.0, True), (10.1, True)])
def test_at_its_deadline_what_nobody_has_begun_is_taken_out(at: float, gone: bool) -> None:
    case, out = Case(), list[Job]()
    [job] = case.queued(1, end=10.0)
    case.schedule.expired(at, out)
    assert (out == [job], job.state is JobState.DONE, len(case.schedule.ends) == 0) == (gone, gone, gone)


def test_at_its_deadline_what_is_in_a_run_is_taken_out_and_what_was_begun_is_not() -> None:
    case, out = Case(), list[Job]()
    waiting, begun = case.queued(2, end=10.0)
    worker = case.worker()
    case.schedule.take_run(worker, 0.0)
    case.schedule._take(begun, worker) if begun not in worker.run else None
    case.schedule.ready.pop(begun, None)
    worker.run.remove(begun)
    begun.state = JobState.ON_WIRE
    case.schedule.expired(10.0, out)
    assert (out, begun.state, len(case.schedule.ends), case.returned) == ([waiting], JobState.ON_WIRE, 0, 1)


def test_those_whose_time_has_passed_are_taken_out_a_slice_at_a_time() -> None:
    case, out = Case(queue_size=1000), list[Job]()
    case.queued(SLICE + 1, end=10.0)
    case.schedule.expired(10.0, out)
    assert (len(out), len(case.schedule)) == (SLICE, 1)
    again: list[Job] = []
    case.schedule.expired(10.0, again)
    assert (len(again), len(case.schedule)) == (1, 0)
    assert SLICE == 256


def test_the_queue_is_drained_a_slice_at_a_time_retries_last() -> None:
    case, out = Case(queue_size=1000), list[Job]()
    retries = [case.later(at=99.0), case.later(at=98.0)]
    new = case.queued(SLICE - 1)
    case.schedule.drained(out)
    assert out == [*new, retries[1]]
    again: list[Job] = []
    case.schedule.drained(again)
    assert again == [retries[0]]
    assert (len(case.schedule), case.returned) == (0, 0)


def test_a_slice_of_new_ones_leaves_the_rest_and_the_retries() -> None:
    case, out = Case(queue_size=1000), list[Job]()
    case.later(at=99.0)
    case.queued(SLICE + 2)
    case.schedule.drained(out)
    assert (len(out), len(case.schedule)) == (SLICE, 3)


# Telling ------------------------------------------------------------------------------------------------------------


def test_what_was_told_is_counted_once_and_nobodys_any_more() -> None:
    case = Case()
    worker, (job, other) = case.begun(2)
    receipt = told(job, Outcome.PARTIAL).receipt
    assert receipt is not None
    case.schedule.finish(job, receipt, worker)
    case.schedule.told([job, told(other)])
    case.schedule.told([job])
    assert case.schedule.outcomes[Outcome.PARTIAL] == 1
    assert case.schedule.outcomes.total() == 1
    assert list(case.schedule.untold) == []


def test_a_worker_calls_back_where_there_is_one_that_stays() -> None:
    case = Case()
    [job] = case.queued()
    assert not case.schedule.hand_over([job])
    worker = case.worker()
    assert case.schedule.hand_over([job])
    case.schedule.leaving[worker] = None
    assert not case.schedule.hand_over([job])
    del case.schedule.leaving[worker]
    case.schedule.working = False
    assert not case.schedule.hand_over([job])
    assert list(case.schedule.unannounced) == [job]


def test_they_are_called_back_for_a_slice_at_a_time_in_their_order() -> None:
    case = Case(queue_size=1000)
    case.worker()
    jobs = case.queued(SLICE + 1)
    case.schedule.hand_over(jobs)
    for expected in (jobs[:SLICE], jobs[SLICE:], []):
        out: list[Job] = []
        case.schedule.some_unannounced(out)
        assert out == expected


class Walked(dict[Job, None]):
    """Counts how many of its keys are looked at."""

    seen = 0

    def __iter__(self) -> Iterator[Job]:
        for job in super().__iter__():
            self.seen += 1
            yield job

    def __reversed__(self) -> Iterator[Job]:
        for job in super().__reversed__():
            self.seen += 1
            yield job


def test_those_with_workers_are_all_that_are_under_way_and_the_newest_untold_no_more_than_a_slice() -> None:
    case = Case(queue_size=5 * SLICE)
    _, begun = case.begun(2)
    jobs = case.queued(4 * SLICE)
    case.schedule.untold = untold = Walked(dict.fromkeys(jobs))
    assert case.schedule.with_workers() == [*begun, *reversed(jobs[-SLICE:])]
    assert untold.seen == SLICE


def test_who_closes_looks_at_some_of_the_untold_each_time_and_not_at_all_of_them() -> None:
    case = Case(queue_size=10 * SLICE)
    case.worker()
    case.schedule.untold = untold = Walked(dict.fromkeys(case.queued(10 * SLICE)))
    closing: Any = Closing(threading.RLock(), case.schedule, lambda: False)  # type: ignore[arg-type]
    assert not closing._untold([])()
    assert 0 < untold.seen <= 3 * SLICE


def test_what_was_sent_at_once_leaves_with_a_good_word_for_the_server() -> None:
    case = Case()
    _, jobs = case.begun(2)
    case.schedule.expires(jobs[0], 9.0)
    case.schedule.limit.fewer(2)
    case.breaker.ask(0.0)
    case.breaker.failed(ConnectFailed("x"), 0.0)
    case.schedule.sent(jobs)
    assert (case.schedule.is_empty, len(case.schedule.ends), case.breaker.is_closed) == (True, 0, True)
    assert case.schedule.limit._good_in_a_row == 2


# What a worker is to do ---------------------------------------------------------------------------------------------


def action(case: Case, worker: Worker, now: float = 0.0) -> Action:
    return case.schedule.next_action(worker, now)


def test_a_connected_worker_takes_what_there_is() -> None:
    case = Case()
    [job] = case.queued()
    worker = case.worker()
    assert action(case, worker, 5.0).do is Do.SEND
    assert (list(worker.run), job.state, case.schedule.in_flight) == ([job], JobState.TAKEN, {job: worker})
    assert (list(case.schedule.ready), worker.idle_since) == ([], 5.0)


def test_what_is_in_its_run_comes_before_another_token_is_taken() -> None:
    case = Case()
    [job] = case.queued()
    worker = case.worker()
    case.schedule.take_run(worker, 0.0)
    case.queued()
    case.wait_for_token = 3.0
    assert action(case, worker) == Action(Do.SEND)
    assert list(worker.run) == [job]


def test_without_a_token_it_waits_for_one_and_takes_nothing() -> None:
    case = Case()
    [job] = case.queued()
    worker = case.worker()
    case.wait_for_token = 3.0
    assert action(case, worker) == Action(Do.WAIT, 3.0)
    assert (list(worker.run), job.state) == ([], JobState.READY)


def test_no_wait_is_longer_than_until_the_next_deadline() -> None:
    case = Case()
    case.queued(1, end=2.0)
    worker = case.worker()
    case.wait_for_token = 3.0
    assert action(case, worker, 0.5) == Action(Do.WAIT, 1.5)
    assert action(case, worker, 2.0) == Action(Do.EXPIRE)
    assert action(case, worker, 1.9999).do is Do.WAIT


def test_what_has_expired_and_what_is_to_be_told_comes_before_all_work() -> None:
    case = Case()
    case.queued(1, end=2.0)
    worker = case.worker()
    case.schedule.hand_over([case.job()])
    assert action(case, worker, 2.0) == Action(Do.EXPIRE)
    case.schedule.expired(2.0, [])
    assert action(case, worker, 2.0) == Action(Do.ANNOUNCE)


def test_a_worker_too_many_ends() -> None:
    case = Case(workers=2)
    case.queued(5)
    first, second = case.worker(), case.worker()
    wanted = [case.schedule.is_wanted]
    case.schedule.limit.fewer(2)
    wanted.append(case.schedule.is_wanted)
    assert wanted == [True, False]
    assert action(case, second) == Action(Do.END)
    case.schedule.leaving[second] = None  # it counts no more, and the other one stays
    assert action(case, first).do is Do.SEND


def test_when_all_work_is_over_each_ends() -> None:
    case = Case()
    case.queued()
    worker = case.worker()
    case.schedule.working = False
    assert action(case, worker) == Action(Do.END)


@pytest.mark.parametrize(("now", "due"), [(6.9, False), (7.0, True), (7.1, True)])
def test_a_retry_is_taken_when_it_is_due_and_not_before(now: float, due: bool) -> None:
    case = Case()
    job = case.later(at=7.0)
    worker = case.worker(idle_since=6.0)
    assert action(case, worker, now).do is (Do.SEND if due else Do.WAIT)
    assert (list(worker.run) == [job], len(case.schedule.later) == 0) == (due, due)


def test_a_retry_that_is_due_comes_before_new_mail_and_the_earlier_one_first() -> None:
    case = Case(workers=1)
    new = case.queued(40)
    second, first = case.later(at=6.0), case.later(at=5.0)
    worker = case.worker()
    assert action(case, worker, 7.0).do is Do.SEND
    assert list(worker.run)[:2] == [first, second]
    assert worker.run[2] is new[0]


def test_while_a_retry_is_to_come_a_worker_waits_for_it() -> None:
    case = Case()
    case.later(at=7.0)
    worker = case.worker(idle_since=0.0)
    assert action(case, worker, 2.0) == Action(Do.WAIT, 5.0)


def test_it_waits_no_longer_than_its_connection_may_idle_then_closes_it_and_waits_on() -> None:
    case = Case(idle_timeout=30.0)
    case.later(at=100.0)
    worker = case.worker(idle_since=10.0)
    assert action(case, worker, 20.0) == Action(Do.WAIT, 20.0)
    assert action(case, worker, 39.9).do is Do.WAIT
    assert action(case, worker, 40.0) == Action(Do.REST)
    worker.connected = False
    assert action(case, worker, 40.0) == Action(Do.WAIT, 60.0)


def test_of_several_one_waits_for_a_retry_and_the_others_end() -> None:
    case = Case(idle_timeout=30.0)
    case.later(at=100.0)
    worker = case.worker(idle_since=0.0)
    case.schedule.idle = 1
    assert action(case, worker, 29.0).do is Do.WAIT
    assert action(case, worker, 30.0) == Action(Do.END)


def test_without_work_it_waits_as_long_as_its_connection_may_idle_and_ends() -> None:
    case = Case(idle_timeout=30.0)
    worker = case.worker(idle_since=10.0)
    assert action(case, worker, 15.0) == Action(Do.WAIT, 25.0)
    assert action(case, worker, 40.0) == Action(Do.END)
    worker.connected = False
    assert action(case, worker, 15.0) == Action(Do.WAIT, 25.0)
    assert action(case, worker, 40.0) == Action(Do.END)


def test_where_connections_may_idle_for_ever_it_waits_for_ever() -> None:
    case = Case(idle_timeout=None)
    assert action(case, case.worker(), 1e9) == Action(Do.WAIT, inf)


def test_without_a_connection_it_dials_if_there_is_work() -> None:
    case = Case()
    case.queued()
    worker = case.worker(connected=False)
    assert action(case, worker) == Action(Do.DIAL)
    assert worker.dialling
    other = case.worker(connected=False)
    assert action(case, other) == Action(Do.WAIT, inf)  # one probe at a time, until it is woken
    assert not other.dialling


@pytest.mark.parametrize(("now", "what"), [(6.9, Do.WAIT), (7.0, Do.DIAL)])
def test_without_a_connection_it_dials_for_a_retry_when_that_is_due(now: float, what: Do) -> None:
    case = Case()
    case.later(at=7.0)
    assert action(case, case.worker(connected=False, idle_since=6.0), now).do is what


def test_while_the_server_is_not_to_be_dialled_it_waits_for_the_pause() -> None:
    case = Case()
    case.queued()
    case.breaker.ask(0.0)
    case.breaker.failed(ConnectFailed("x"), 0.0)
    worker = case.worker(connected=False)
    assert action(case, worker) == Action(Do.WAIT, case.breaker.opens_at)
    assert action(case, worker, case.breaker.opens_at) == Action(Do.DIAL)


def test_what_waits_for_a_server_that_refuses_for_good_fails() -> None:
    case = Case()
    case.queued()
    case.breaker.ask(0.0)
    error = LoginRefused(535, "5.7.8 no")
    error.pair_is_fixed = True
    case.breaker.failed(error, 0.0)
    worker = case.worker(connected=False)
    assert action(case, worker) == Action(Do.FAIL)


# How much it takes --------------------------------------------------------------------------------------------------


class NoMemory(dict[Job, Worker]):
    def __setitem__(self, job: Job, worker: Worker) -> None:
        raise MemoryError


def test_what_is_taken_as_memory_ends_is_still_queued() -> None:
    """It was taken in name only, swept out of the queue by the next, and so lost."""
    case = Case()
    worker, [job] = case.worker(), case.queued()
    case.schedule.in_flight = NoMemory()
    with pytest.raises(MemoryError):
        case.schedule.take_run(worker, 0.0)
    case.schedule.in_flight = {}
    case.schedule.take_run(case.worker(), 0.0)
    assert (job.state, list(case.schedule.in_flight), list(worker.run)) == (JobState.TAKEN, [job], [])


@pytest.mark.parametrize(
    ("ready", "workers", "taken"),
    [(1, 2, 1), (3, 2, 1), (4, 2, 2), (7, 2, 2), (8, 2, 3), (59, 2, 15), (60, 2, 16), (1000, 2, 16), (2, 1, 2)],
)
def test_a_share_leaves_enough_for_all_who_could_work(ready: int, workers: int, taken: int) -> None:
    case = Case(queue_size=2000, workers=workers)
    jobs = case.queued(ready)
    worker = case.worker()
    case.schedule.take_run(worker, 0.0)
    assert list(worker.run) == jobs[:taken]
    assert len(case.schedule.ready) == ready - taken
    assert RUN == 16


def test_where_the_throttle_counts_nobody_takes_more_than_one() -> None:
    case = Case()
    case.limited = True
    case.queued(100)
    case.later(at=0.0)
    worker = case.worker()
    case.schedule.take_run(worker, 1.0)
    assert len(worker.run) == 1


def test_retries_count_in_a_share_like_all_others() -> None:
    case = Case(workers=1)
    retry = case.later(at=1.0)
    new = case.queued(2)
    worker = case.worker()
    case.schedule.take_run(worker, 1.0)
    assert list(worker.run) == [retry, new[0]]


def test_what_is_taken_remembers_how_many_pauses_there_were() -> None:
    case = Case()
    case.schedule.limit.pauses = 3
    [job] = case.queued()
    case.schedule.take_run(case.worker(), 0.0)
    assert job.pauses_seen == 3


def test_a_left_over_of_an_interrupted_move_is_swept_up() -> None:
    case = Case()
    stale, job = case.queued(2)
    stale.state = JobState.TAKEN
    old = case.later(at=0.0)
    old.state = JobState.DONE
    worker = case.worker()
    case.schedule.take_run(worker, 1.0)
    assert list(worker.run) == [job]
    assert (len(case.schedule.ready), len(case.schedule.later)) == (0, 0)


# Stealing -----------------------------------------------------------------------------------------------------------


def loaded(case: Case, number: int) -> Worker:
    worker = case.worker()
    for job in case.queued(number):
        case.schedule._take(job, worker)
        del case.schedule.ready[job]
    worker.current = case.job()  # it is in the middle of that
    return worker


@pytest.mark.parametrize(("has", "stolen"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_half_of_what_the_busiest_has_not_begun_is_taken_over_from_its_end(has: int, stolen: int) -> None:
    case = Case(workers=3)
    busy, thief = loaded(case, has), case.worker()
    jobs = list(busy.run)
    assert action(case, thief).do is (Do.SEND if stolen else Do.WAIT)
    assert (list(busy.run), list(thief.run)) == (jobs[: has - stolen], jobs[has - stolen :])
    assert all(case.schedule.in_flight[job] is thief for job in thief.run)
    assert all(case.schedule.in_flight[job] is busy for job in busy.run)


@pytest.mark.parametrize(("connected", "has", "stolen"), [(True, 1, 0), (True, 3, 1), (False, 1, 1), (False, 3, 2)])
def test_who_is_about_to_begin_keeps_its_last_unless_it_has_to_connect(connected: bool, has: int, stolen: int) -> None:
    case = Case(workers=3)
    idle, thief = loaded(case, has), case.worker()
    idle.current, idle.connected = None, connected
    assert action(case, thief).do is (Do.SEND if stolen else Do.WAIT)
    assert (len(idle.run), len(thief.run)) == (has - stolen, stolen)


def test_it_is_the_busiest_that_is_relieved() -> None:
    case = Case(workers=4)
    less, more, thief = loaded(case, 2), loaded(case, 4), case.worker()
    assert action(case, thief).do is Do.SEND
    assert (len(less.run), len(more.run), len(thief.run)) == (2, 2, 2)


def test_what_is_over_is_not_taken_over() -> None:
    case = Case()
    busy, thief = loaded(case, 1), case.worker()
    busy.run[0].state = JobState.DONE
    assert action(case, thief).do is Do.WAIT
    assert (list(busy.run), list(thief.run)) == ([], [])


def test_alone_it_steals_from_nobody() -> None:
    case = Case()
    assert action(case, case.worker()).do is Do.WAIT


# Back from workers --------------------------------------------------------------------------------------------------


def test_what_is_given_back_is_the_first_again_and_cost_nothing() -> None:
    case = Case()
    job, other = case.queued(2, end=50.0)
    worker = case.worker()
    case.schedule.take_run(worker, 0.0)
    job.transaction = object()  # type: ignore[assignment]
    case.schedule.ends.discard(job)
    case.schedule.give_back(job)
    assert list(case.schedule.ready) == [job, other]
    assert (job.state, job.transaction, job in case.schedule.in_flight) == (JobState.READY, None, False)
    assert (case.returned, case.schedule.ends.at(job)) == (1, 50.0)


def test_its_deadline_is_kept_once_and_one_without_has_none() -> None:
    case = Case()
    job, free = *case.queued(1, end=50.0), *case.queued(1)
    case.schedule.expires(job, 20.0)
    for each in (job, free):
        case.schedule.give_back(each)
    assert (case.schedule.ends.at(job), case.schedule.ends.at(free), len(case.schedule.ends)) == (20.0, inf, 1)


def test_a_run_is_given_back_in_its_order_and_what_is_over_is_not() -> None:
    case = Case()
    worker = loaded(case, 3)
    jobs = list(worker.run)
    jobs[1].state = JobState.DONE
    case.schedule.give_back_run(worker)
    assert (list(case.schedule.ready), list(worker.run), case.returned) == ([jobs[0], jobs[2]], [], 2)


def test_another_attempt_waits_for_its_time_and_has_an_end() -> None:
    case = Case()
    _, [job] = case.begun()
    job.transaction = object()  # type: ignore[assignment]
    case.schedule.again(job, 7.0, 50.0)
    assert (job.state, case.schedule.later.at(job), case.schedule.ends.at(job)) == (JobState.LATER, 7.0, 50.0)
    assert (job.transaction, list(case.schedule.in_flight), case.schedule.retries) == (None, [], 1)
    assert len(case.schedule) == 1
    _, [endless] = case.begun()
    case.schedule.again(endless, 8.0, inf)
    assert (endless in case.schedule.ends, case.schedule.retries) == (False, 2)


def test_an_end_may_come_earlier_and_not_later() -> None:
    case = Case()
    [job] = case.queued(1, end=50.0)
    for at, held in ((60.0, 50.0), (50.0, 50.0), (20.0, 20.0), (30.0, 20.0)):
        case.schedule.expires(job, at)
        assert case.schedule.ends.at(job) == held


# How long a connection is of use ------------------------------------------------------------------------------------


def test_a_connection_is_of_use_until_the_last_deadline_of_those_that_wait() -> None:
    case = Case()
    assert case.schedule.needed_until(0.0) is NEVER
    case.queued(1, end=50.0)
    case.queued(1, end=20.0)
    assert case.schedule.needed_until(0.0) == Deadline(50.0)
    assert case.schedule.needed_until(49.9) == Deadline(50.0)
    assert case.schedule.needed_until(50.0) is NEVER
    case.queued(1)
    assert case.schedule.needed_until(0.0) is NEVER


def test_where_one_that_is_later_or_begun_has_no_deadline_there_is_none() -> None:
    case = Case()
    case.queued(1, end=50.0)
    case.later(at=9.0)
    assert case.schedule.needed_until(0.0) is NEVER
    case = Case()
    case.queued(1, end=50.0)
    case.begun()
    assert case.schedule.needed_until(0.0) is NEVER


def test_when_those_have_left_the_last_deadline_is_that_of_the_next() -> None:
    case = Case()
    [late] = case.queued(1, end=90.0)
    case.schedule.take_out(late, [])
    case.queued(1, end=50.0)
    assert case.schedule.needed_until(0.0) == Deadline(50.0)


# Whether all is over ------------------------------------------------------------------------------------------------


def test_it_is_empty_when_nothing_waits_nothing_is_under_way_and_all_was_told() -> None:
    case = Case()
    [job] = case.queued()
    assert not case.schedule.is_empty
    worker = case.worker()
    case.schedule.take_run(worker, 0.0)
    assert not case.schedule.is_empty
    worker.run.clear()
    case.schedule.again(job, 9.0, inf)
    assert not case.schedule.is_empty
    case.schedule.take_out(job, [])
    assert not case.schedule.is_empty
    case.schedule.told([told(job)])
    assert case.schedule.is_empty


# What an interrupted move may have left -----------------------------------------------------------------------------


def test_draining_sweeps_up_what_is_in_two_places_and_comes_to_an_end() -> None:
    case, out = Case(), list[Job]()
    stale, job = case.queued(2)
    stale.state = JobState.TAKEN  # taken, and not yet out of the queue
    old = case.later(at=5.0)
    old.state = JobState.DONE
    case.schedule.drained(out)
    assert (out, len(case.schedule.ready), len(case.schedule.later)) == ([job], 0, 0)


class Held:
    """A lock that counts how often it was held."""

    def __init__(self) -> None:
        self.times = 0

    def __enter__(self) -> None:
        self.times += 1

    def __exit__(self, *exc: object) -> None: ...


def test_what_has_expired_in_a_run_is_taken_out_under_the_lock_of_its_worker() -> None:
    """Else its worker could claim it in the same moment, and send what was told to be too late."""
    case = Case()
    case.queued(1, end=10.0)
    worker = case.worker()
    case.schedule.take_run(worker, 0.0)
    lock = worker.lock = Held()  # type: ignore[assignment]
    case.schedule.expired(10.0, [])
    assert lock.times == 1


def test_only_a_wait_has_a_time() -> None:
    assert all(Action(do).seconds == 0.0 for do in Do)


# One worker too many, where the others stand still ------------------------------------------------------------


class StandingStill(Case):
    """One worker is connected and waits for its server, which did not let the other one in; there is more to do."""

    def __init__(self) -> None:
        super().__init__(workers=4)
        self.busy, self.spare = self.worker(), self.worker(connected=False)
        self.queued()
        self.schedule.limit.let_in_no_more(2, 0.0, ConnectFailed("421"))

    @property
    def again_at(self) -> float:
        return self.schedule.limit.again_at

    @property
    def limit(self) -> int:
        return self.schedule.limit.workers


def test_one_that_was_not_let_in_waits_for_the_others_to_move_as_one_that_leaves() -> None:
    case = StandingStill()
    assert action(case, case.spare, 0.25) == Action(Do.WAIT, case.again_at - 0.25)
    assert list(case.schedule.leaving) == [case.spare]
    assert action(case, case.spare, 0.5) == Action(Do.WAIT, case.again_at - 0.5)
    assert action(case, case.busy) == Action(Do.SEND)
    assert case.limit == 1


def test_where_they_do_not_move_it_is_tried_with_one_more() -> None:
    case = StandingStill()
    action(case, case.spare)
    assert action(case, case.spare, case.again_at) == Action(Do.DIAL)
    assert (list(case.schedule.leaving), case.limit) == ([], 2)


def test_it_may_be_tried_at_once_though_it_never_waited() -> None:
    case = StandingStill()
    assert action(case, case.spare, case.again_at + 1.0) == Action(Do.DIAL)
    assert case.limit == 2


def test_who_is_wanted_does_not_have_one_more_tried() -> None:
    case = StandingStill()
    case.schedule.leaving[case.spare] = None
    assert action(case, case.busy, case.again_at + 1.0) == Action(Do.SEND)
    assert case.limit == 1


@pytest.mark.parametrize("reason", ["closed", "they move", "connected", "one has nothing to do", "nothing to do"])
def test_one_too_many_that_nobody_needs_ends(reason: str) -> None:
    case = StandingStill()
    if reason == "closed":
        case.schedule.working = False
    elif reason == "they move":
        case.schedule.limit.count_good(1)
    elif reason == "connected":
        case.spare.connected = True
    elif reason == "one has nothing to do":
        case.schedule.idle = 1
    else:
        case.schedule.ready.clear()
    assert action(case, case.spare) == Action(Do.END)
    assert list(case.schedule.leaving) == []


def test_one_that_waits_with_the_others_settles_what_is_too_late() -> None:
    case = StandingStill()
    case.queued(end=0.5)
    assert action(case, case.spare, 0.25) == Action(Do.WAIT, 0.25)
    assert action(case, case.spare, 0.5) == Action(Do.EXPIRE)


# Interrupted by their own thread ------------------------------------------------------------------------------


def test_one_that_a_signal_handler_has_refused_as_it_was_queued_is_nowhere() -> None:
    case = Case()
    job = case.job(end=10.0)
    job.state = JobState.DONE
    case.schedule.submit(job)
    assert (job.state, len(case.schedule), len(case.schedule.ends)) == (JobState.DONE, 0, 0)


def test_of_a_run_what_is_another_workers_by_now_is_only_dropped() -> None:
    """It was given back before, and taken by another one, who may be about to send it."""
    case = Case()
    first = loaded(case, 1)
    [job] = list(first.run)
    case.schedule.give_back(job)
    second = case.worker()
    case.schedule.take_run(second, 0.0)
    case.schedule.give_back_run(first)
    assert (list(first.run), list(second.run), job.state) == ([], [job], JobState.TAKEN)
    assert list(case.schedule.ready) == []
