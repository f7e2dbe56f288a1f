"""`Schedule` beside a plain model of it: lists, `sorted()`, and what the words say.

Callers submit, cancel and let time pass; workers ask, begin, finish, put off, give back, steal and get lost; the
throttle gives a token or not. After each step every job is where the model has it, in the same order, and every answer
was the model's.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from math import inf
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from threadmail import Envelope, Outcome, Receipt, RetryPolicy
from threadmail._connection.breaker import CircuitBreaker
from threadmail._dispatch.job import Job, JobState
from threadmail._dispatch.schedule import RETRIES_A_PLACE, RUN, Do, Schedule
from threadmail._runtime.deadline import NEVER, Deadline

LETTER = Envelope("a@here.test", ["b@there.test"], b"Subject: x\r\n\r\nx")
PLACES, WORKERS = 40, 3

numbers = st.integers(0, 1000)
seconds = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])
seldom = st.sampled_from([False, False, False, False, False, False, False, True])


class Completion:
    def done(self) -> bool:
        return False

    def settle(self, job: Job, receipt: Receipt) -> None: ...

    def put_off(self) -> None: ...


class Worker:
    def __init__(self) -> None:
        self.connected, self.dialling, self.idle_since = True, False, 0.0
        self.run: deque[Job] = deque()
        self.current: Job | None = None
        self.left: list[Job] = []
        self.begun = True
        self.lock = threading.RLock()


class Beside(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.wait_for_token = 0.0
        self.limited = False
        self.tokens = 0  # taken and not returned
        breaker = CircuitBreaker(RetryPolicy(), random.Random(1))
        breaker.ask(self.now)
        breaker.connected()
        self.schedule: Schedule[Worker] = Schedule(
            workers=WORKERS,
            queue_size=PLACES,
            idle_timeout=None,
            breaker=breaker,
            take_token=self._take,
            return_token=self._return,
            is_limited=lambda: self.limited,
        )
        self.workers = [Worker() for _ in range(WORKERS)]
        self.schedule.workers.update(dict.fromkeys(self.workers))
        # The model.
        self.ready: list[Job] = []
        self.later: list[tuple[float, int, Job]] = []
        self.runs: dict[Worker, list[Job]] = {worker: [] for worker in self.workers}
        self.wire: dict[Worker, Job] = {}
        self.ends: dict[Job, float] = {}
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.gone: list[Job] = []
        self.count = 0
        self.submit(12, None)  # else most machines would have nothing to do

    def _take(self) -> float:
        self.tokens += not self.wait_for_token
        return self.wait_for_token

    def _return(self) -> None:
        self.tokens -= 1

    # ------------------------------------------------------------ the model's words

    def due(self) -> list[tuple[float, int, Job]]:
        return sorted(entry for entry in self.later if entry[0] <= self.now)

    def everybody(self) -> list[Job]:
        """Who can be taken out, in the order in which they were made."""
        waiting = [*self.ready, *(job for *_, job in self.later), *(job for run in self.runs.values() for job in run)]
        return sorted(waiting, key=self._number)

    def _number(self, job: Job) -> int:
        return int(job.tag)

    def places(self) -> int:
        if len(self.later) >= RETRIES_A_PLACE * PLACES:
            return 0
        in_flight = sum(map(len, self.runs.values())) + len(self.wire)
        return min(PLACES - len(self.ready), PLACES + 2 * WORKERS - len(self.ready) - in_flight)

    def spare(self, worker: Worker) -> int:
        return (len(self.runs[worker]) + (worker in self.wire)) // 2

    def forget(self, job: Job) -> None:
        for run in self.runs.values():
            if job in run:
                run.remove(job)
        if job in self.ready:
            self.ready.remove(job)
        self.later = [entry for entry in self.later if entry[2] is not job]
        self.ends.pop(job, None)
        self.gone.append(job)

    def told(self, jobs: list[Job], outcome: Outcome = Outcome.NOT_SENT) -> None:
        for job in jobs:
            job.receipt = Receipt(outcome, None, LETTER.sender, LETTER.recipients)
            self.outcomes[outcome] += 1
        self.schedule.told(jobs)

    def busy(self, number: int) -> Worker:
        return [worker for worker in self.workers if worker in self.wire][number % len(self.wire)]

    # ------------------------------------------------------------ callers

    @rule(number=st.integers(1, 12), end=st.sampled_from([None, None, None, None, 1.0, 5.0, 30.0]))
    def submit(self, number: int, end: float | None) -> None:
        for _ in range(number):
            assert self.schedule.admits(None) == (self.places() > 0)
            if not self.places() > 0:
                return
            self.count += 1
            deadline = NEVER if end is None else Deadline(self.now + end)
            job = Job(LETTER, deadline, None, completion=Completion(), tag=self.count)  # type: ignore[arg-type]
            self.schedule.submit(job)
            self.ready.append(job)
            if end is not None:
                self.ends[job] = self.now + end

    @precondition(lambda self: self.everybody())
    @rule(number=numbers)
    def take_out(self, number: int) -> None:
        if number % 4:
            return
        job = self.everybody()[number % len(self.everybody())]
        in_run = any(job in run for run in self.runs.values())
        out: list[Job] = []
        before = self.tokens
        assert self.schedule.take_out(job, out)
        assert (out, before - self.tokens) == ([job], int(in_run))
        self.forget(job)
        self.told(out)

    @precondition(lambda self: self.wire)
    @rule(number=numbers)
    def too_late_to_take_out(self, number: int) -> None:
        others = [*self.wire.values(), *self.gone]
        out: list[Job] = []
        assert not self.schedule.take_out(others[number % len(others)], out)
        assert out == []

    @rule(passed=seconds)
    def time_passes(self, passed: float) -> None:
        self.now += passed

    @precondition(lambda self: any(at <= self.now for at in self.ends.values()))
    @rule()
    def expire(self) -> None:
        out: list[Job] = []
        self.schedule.expired(self.now, out)
        due = [job for job, at in self.ends.items() if at <= self.now]
        on_wire = list(self.wire.values())
        expected = [job for job in due if job not in on_wire]
        assert sorted(out, key=self._number) == sorted(expected, key=self._number)
        assert [self.ends[job] for job in out] == sorted(self.ends[job] for job in out)
        for job in due:
            self.ends.pop(job)
        for job in out:
            self.forget(job)
        self.told(out)

    @rule(seldom=seldom)
    def drain(self, seldom: bool) -> None:
        if not seldom:
            return
        out: list[Job] = []
        self.schedule.drained(out)
        assert out == [*self.ready, *(job for *_, job in sorted(self.later, key=lambda entry: entry[:2]))]
        for job in out:
            self.forget(job)
        self.told(out)

    @rule(wait=st.sampled_from([0.0, 0.0, 0.0, 0.0, 3.0]), limited=st.sampled_from([False, False, True]))
    def throttle(self, wait: float, limited: bool) -> None:
        self.wait_for_token, self.limited = wait, limited

    # ------------------------------------------------------------ workers

    @rule(number=numbers)
    def ask(self, number: int) -> None:
        idle = [worker for worker in self.workers if worker not in self.wire]
        if not idle:
            return
        worker = idle[number % len(idle)]
        action = self.schedule.next_action(worker, self.now)
        until_end = min(self.ends.values(), default=inf) - self.now
        if until_end <= 0.0:
            assert action.do is Do.EXPIRE
        elif self.runs[worker]:
            assert action.do is Do.SEND
        elif self.ready or self.due():
            if self.wait_for_token:
                assert action == (Do.WAIT, min(self.wait_for_token, until_end))
            else:
                assert action.do is Do.SEND
                self.taken_by(worker)
        elif not self.stolen_by(worker, action.do is Do.SEND):
            next_due = min((at for at, *_ in self.later), default=inf) - self.now
            assert action == (Do.WAIT, min(next_due, until_end))

    def taken_by(self, worker: Worker) -> None:
        share = 1 if self.limited else min(RUN, 1 + len(self.ready) // (2 * WORKERS))
        late = [job for *_, job in self.due()][:share]
        new = self.ready[: share - len(late)]
        self.later = [entry for entry in self.later if entry[2] not in late]
        self.ready = self.ready[len(new) :]
        self.runs[worker] = [*late, *new]
        self.tokens += len(late) + len(new) - 1  # a run of an unlimited throttle: nobody counts its tokens

    def stolen_by(self, thief: Worker, has: bool) -> bool:
        others = [worker for worker in self.workers if worker is not thief]
        most = max(map(self.spare, others))
        if not most:
            assert not has
            return False
        assert has
        [victim] = [worker for worker in others if len(self.runs[worker]) != len(worker.run)]
        assert self.spare(victim) == most
        at = len(self.runs[victim]) - most
        self.runs[thief], self.runs[victim] = self.runs[victim][at:], self.runs[victim][:at]
        return True

    @rule(number=numbers)
    def ask_and_begin(self, number: int) -> None:
        self.ask(number)
        if self.can_claim():
            self.claim(number)

    @precondition(lambda self: self.ready or self.due())
    @rule(number=numbers)
    def ask_for_more(self, number: int) -> None:
        self.ask_and_begin(number)

    def can_claim(self) -> bool:
        return any(run and worker not in self.wire for worker, run in self.runs.items())

    @precondition(can_claim)
    @rule(number=numbers)
    def claim(self, number: int) -> None:
        able = [worker for worker in self.workers if self.runs[worker] and worker not in self.wire]
        worker = able[number % len(able)]
        job = self.runs[worker].pop(0)
        assert worker.run[0] is job
        worker.current, job.state = job, JobState.ON_WIRE
        del worker.run[0]
        self.wire[worker] = job

    @precondition(lambda self: self.wire)
    @rule(number=numbers)
    def finish(self, number: int) -> None:
        worker = self.busy(number)
        job = self.wire.pop(worker)
        worker.current = None
        receipt = Receipt(Outcome.PARTIAL, None, LETTER.sender, LETTER.recipients)
        self.schedule.finish(job, receipt, worker)
        assert (job.receipt, worker.left) == (receipt, [job])
        worker.left = []
        self.forget(job)
        self.told([job], Outcome.PARTIAL)

    @precondition(lambda self: self.wire)
    @rule(number=numbers)
    def sent(self, number: int) -> None:
        worker = self.busy(number)
        job = self.wire.pop(worker)
        worker.current, job.state = None, JobState.DONE
        self.schedule.sent([job])
        self.forget(job)

    @precondition(lambda self: self.wire)
    @rule(number=numbers, pause=seconds, patience=st.sampled_from([1.0, 60.0, inf]))
    def put_off(self, number: int, pause: float, patience: float) -> None:
        worker = self.busy(number)
        job = self.wire.pop(worker)
        worker.current = None
        until = min(job.end.at, self.now + patience)
        self.schedule.again(job, self.now + pause, until)
        self.count += 1
        self.later.append((self.now + pause, self.count, job))
        if until != inf:
            self.ends[job] = until

    @precondition(lambda self: self.wire)
    @rule(number=numbers)
    def no_session(self, number: int) -> None:
        worker = self.busy(number)
        job = self.wire.pop(worker)
        worker.current = None
        before = self.tokens
        self.schedule.give_back(job)
        assert before - self.tokens == 1
        self.ready.insert(0, job)
        if job not in self.ends and job.end.at != inf:
            self.ends[job] = job.end.at

    @rule(number=numbers)
    def give_back_run(self, number: int) -> None:
        having = [worker for worker in self.workers if self.runs[worker]]
        if not having or number % 2:
            return
        worker = having[number % len(having)]
        before = self.tokens
        with worker.lock:
            self.schedule.give_back_run(worker)
        back = self.runs[worker]
        assert before - self.tokens == len(back)
        self.ready = [*back, *self.ready]
        for job in back:
            if job.end.at != inf:
                self.ends.setdefault(job, job.end.at)
        self.runs[worker] = []

    # ------------------------------------------------------------ at any time

    @invariant()
    def each_is_where_the_model_has_it(self) -> None:
        schedule = self.schedule
        assert list(schedule.ready) == self.ready
        assert {job: schedule.later.at(job) for job in schedule.later} == {job: at for at, _, job in self.later}
        assert [list(worker.run) for worker in self.workers] == [self.runs[worker] for worker in self.workers]
        owned = {job: worker for worker, run in self.runs.items() for job in run}
        owned.update({job: worker for worker, job in self.wire.items()})
        assert schedule.in_flight == owned
        assert {job: schedule.ends.at(job) for job in schedule.ends} == self.ends
        assert (len(schedule), schedule.untold) == (len(self.ready) + len(self.later), {})
        assert schedule.is_empty == (not self.ready and not self.later and not owned)
        states: dict[Any, JobState] = dict.fromkeys(self.ready, JobState.READY)
        states.update((job, JobState.LATER) for *_, job in self.later)
        states.update((job, JobState.TAKEN) for run in self.runs.values() for job in run)
        states.update((job, JobState.ON_WIRE) for job in self.wire.values())
        states.update((job, JobState.DONE) for job in self.gone)
        assert all(job.state is state for job, state in states.items())

    @invariant()
    def its_figures_are_those_of_the_model(self) -> None:
        assert self.schedule.places() == self.places()
        assert self.schedule.later.first_at() == min((at for at, *_ in self.later), default=inf)
        assert self.schedule.ends.first_at() == min(self.ends.values(), default=inf)
        assert dict(self.schedule.outcomes) == self.outcomes


TestBeside = Beside.TestCase
TestBeside.settings = settings(max_examples=60, stateful_step_count=80, deadline=None)
