"""What the queue costs when it is long: each operation of `Schedule` with 100,000 messages in it.

    python -m stress.operations [N ...]

Owns a run through all of them, in the order of a sender's life: all are submitted, each with a deadline; a quarter is
taken back, anywhere; a tenth fails and is to be tried again, and half of these are taken back; what is due is taken and
finished; the rest expires. Reaches into the library, for callers see only what all of it comes to. Prints microseconds
of CPU each, and the longest single step, which is how long the lock would be held. `stress.figures` has the worst.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tests.support.keeper import Keeper
from threadmail import Envelope, MailError, Receipt, RetryPolicy
from threadmail._connection.breaker import CircuitBreaker
from threadmail._dispatch.job import Job
from threadmail._dispatch.schedule import Do, Schedule
from threadmail._runtime.deadline import Deadline

_T = TypeVar("_T")
LETTER = Envelope("a@b.example", ["d@e.example"], b"x: y\r\n\r\nz")
RECEIPT = Receipt.not_sent(LETTER, MailError("x"))


class Hand:
    """A worker, as far as the schedule knows one."""

    def __init__(self) -> None:
        self.connected, self.dialling, self.idle_since = True, False, 0.0
        self.run: deque[Job] = deque()
        self.left: list[Job] = []
        self.begun = True
        self.lock = threading.RLock()


class Nobody(Keeper):
    """Who has the jobs and whom they are told: nobody looks."""

    all_told = is_held_here = False

    def orphan(self) -> None: ...

    def done(self) -> bool:
        return False

    def settle(self, job: Job, receipt: Receipt) -> None: ...

    def put_off(self) -> None: ...


class Run:
    """One run; `each` and `longest` have what came of it, in microseconds, by operation."""

    def __init__(self, jobs: int) -> None:
        self.each: dict[str, float] = {}
        self.longest: dict[str, float] = {}
        self._rng = random.Random(1)
        self._schedule: Schedule[Any] = Schedule(
            workers=8,
            queue_size=jobs,
            idle_timeout=30.0,
            breaker=CircuitBreaker(RetryPolicy(), self._rng),
            take_token=lambda: 0.0,
            return_token=lambda: None,
            is_limited=lambda: False,
        )
        nobody = Nobody()
        self._jobs = [Job(LETTER, Deadline(100.0 + self._rng.random() * 1000.0), nobody, nobody) for _ in range(jobs)]
        self._hand = Hand()
        self._schedule.workers[self._hand] = None

    def all(self) -> None:
        """The whole life of a queue."""
        jobs, schedule, rng = self._jobs, self._schedule, self._rng
        gc.collect()
        gc.disable()
        try:
            self._time("submit", self._submit, jobs)
            self._time("take back, anywhere", self._out, rng.sample(jobs, len(jobs) // 4))
            taken: list[Job] = []
            self._time("take for a worker", lambda now: self._take(taken, now), [1.0] * (len(jobs) // 10 // 16))
            self._time("try again later", self._again, taken)
            self._time("take back a retry", self._out, taken[::2])
            # By now all retries are due, and so the first: what else is to be finished makes up a quarter.
            self._time("take and finish", self._finish, [60.0] * (len(jobs) // 4 // 16))
            seconds = [float(second) for second in range(100, 1101) for _ in range(2)]  # one slice may not be enough
            self._time("expire", self._expired, seconds)
        finally:
            gc.enable()
        assert schedule.is_empty
        assert not len(schedule.ends)

    def _time(self, name: str, step: Callable[[_T], int], things: Sequence[_T]) -> None:
        """Take a step with each; it says how many messages that were."""
        clock = time.thread_time
        done, longest, whole = 0, 0.0, clock()
        for thing in things:
            begun = clock()
            done += step(thing)
            longest = max(longest, clock() - begun)
        self.each[name] = (clock() - whole) / max(1, done) * 1e6
        self.longest[name] = longest * 1e6

    def _submit(self, job: Job) -> int:
        self._schedule.submit(job)
        return 1

    def _out(self, job: Job) -> int:
        out: list[Job] = []
        self._schedule.take_out(job, out)
        return self._told(out)

    def _told(self, jobs: list[Job]) -> int:
        for job in jobs:
            job.receipt = RECEIPT
        self._schedule.told(jobs)
        return len(jobs)

    def _take(self, taken: list[Job], now: float) -> int:
        assert self._schedule.next_action(self._hand, now).do is Do.SEND
        run = list(self._hand.run)
        self._hand.run.clear()
        taken += run
        return len(run)

    def _again(self, job: Job) -> int:
        self._schedule.again(job, 5.0 + self._rng.random() * 50.0, job.end.at)
        return 1

    def _finish(self, now: float) -> int:
        run: list[Job] = []
        self._take(run, now)
        for job in run:
            self._schedule.finish(job, RECEIPT, self._hand)
            self._hand.left = []
        return self._told(run)

    def _expired(self, now: float) -> int:
        out: list[Job] = []
        self._schedule.expired(now, out)
        return self._told(out)


def measure(jobs: int) -> Run:
    run = Run(jobs)
    run.all()
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    for jobs in map(int, given or ("1000", "10000", "100000")):
        run = measure(jobs)
        print(f"{jobs:,} messages")
        for name, each in run.each.items():
            print(f"  {name:24} {each:7.2f} us each, the longest step {run.longest[name]:9.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
