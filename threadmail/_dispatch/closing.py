"""The end of a sender.

Owns its life cycle (OPEN, CLOSING, CLOSED), the time that closing may take, and who waits for it. Guarantees: several
threads may close at once, and a signal handler inside one of them: each sees the end through, by the earliest deadline
that any of them gave; another call may shorten and never lengthens; each gets the whole list of what was cut short.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice
from typing import Any

from .._runtime.deadline import NEVER, Deadline
from .._runtime.life import Life
from .._runtime.locks import is_owned
from .._runtime.threads import takes_signals
from ..errors import Reentered
from .job import LAST_WORD, Job
from .schedule import SLICE, Schedule
from .worker import Worker

#: Seconds for all workers together to end, once their connections were dropped. A dial cannot be ended before its own
#: time is over.
FAREWELL = 10.0

#: Nobody sleeps longer than this without a look around, in seconds.
LONGEST_WAIT = 60.0


class Closing:
    """The life of one sender in one process.

    Args:
        is_awaited_below: whether the frame under this signal handler keeps workers from coming to an end.
    Attributes:
        life: changed under the lock only, and only forwards.
        settled: who closes waits here for jobs to be told, then for workers to end.
        cut_short: jobs that closing has taken out of the queue, or dropped on the wire.
    """

    def __init__(self, lock: Any, schedule: Schedule[Worker], is_awaited_below: Callable[[], bool]) -> None:
        self._lock = lock
        self._schedule = schedule
        self._is_awaited_below = is_awaited_below
        self.life = Life.OPEN
        self.settled = threading.Condition(lock)
        self.cut_short: dict[Job, None] = {}
        self._drain = True  # what is queued is worked off before the end; once False it stays so
        self._close_by = Deadline()  # only ever becomes earlier
        self._farewell = NEVER  # begins when connections were first dropped, whoever closes

    def begin(self, *, drain: bool, end: Deadline, must_not_wait: bool) -> bool:
        """Take no more jobs, and wait until the queue is worked off, or until the time is over. False: it is over.

        Args:
            must_not_wait: the calling thread is in a callback, or in the middle of something.
        Raises:
            Reentered: it is, or it has a lock that a worker needs to end. What would be taken back here could not be
                told of before that is over.
        """
        schedule = self._schedule
        with self._lock:
            if self.life is Life.CLOSED:
                return False
            self.life = Life.CLOSING
            self._drain = self._drain and drain
            self._close_by = self._close_by.within(end)
            for waiter in list(schedule.line):
                waiter.wake()
            self.settled.notify_all()
            if must_not_wait or any(is_owned(worker.lock) for worker in list(schedule.workers)):
                raise _reentered()
            self._wait(lambda: not (self._drain and schedule.workers) or not (len(schedule) or schedule.in_flight))
        return True

    def see_off(self, drop_connections: Callable[[], None], *, stay: bool = True) -> tuple[list[Job], bool]:
        """Wait for what is on the wire, and until all is told, or until the time is over; then for the workers to end.

        Args:
            drop_connections: called under the lock when that wait is over.
            stay: wait for the workers.
        Returns:
            Jobs that whoever closes is to tell of, for nobody else may come to it; and whether that was all. Else it is
            to be called again.
        """
        schedule = self._schedule
        with self._lock:
            to_tell: list[Job] = []
            self._wait(self._untold(to_tell), longest=LAST_WORD)
            if to_tell:
                return to_tell, False
            drop_connections()
            schedule.working = False
            self._farewell = self._farewell.within(Deadline.after(FAREWELL))
            farewell = self._farewell if stay else Deadline(0.0)
            self._wait(lambda: not (schedule.workers or schedule.ending), farewell)
            return list(schedule.untold), True

    def _untold(self, to_tell: list[Job]) -> Callable[[], bool]:
        """Asks, under the lock, whether all is told; or whether there is something that nobody tells of.

        What was handed over to a worker, who may be dialling; and what nobody has begun to tell of for a while: it may
        be the frame under this signal handler that was to.

        Args:
            to_tell: that is added here.
        """
        schedule = self._schedule
        first: Job | None = None
        patience = NEVER

        def asked() -> bool:
            nonlocal first, patience
            schedule.some_unannounced(to_tell)
            # Some at a time, and copied in one step, for a signal handler may add some. What those who tell have begun
            # with is in front, a slice each.
            some = list(islice(schedule.untold, SLICE * (len(schedule.workers) + 2)))
            before, first = first, next((job for job in some if not job.told), None)
            if first is not before:
                patience = Deadline.after(LAST_WORD)
            elif first is not None and patience.passed:
                to_tell.extend([job for job in some if not job.told])
            return bool(to_tell) or not (schedule.in_flight or schedule.untold)

        return asked

    def finish(self) -> list[Job]:
        """It is over. Returns what was cut short."""
        with self._lock:
            self.life = Life.CLOSED
            return list(self.cut_short)

    def _wait(self, done: Callable[[], object], end: Deadline | None = None, *, longest: float = LONGEST_WAIT) -> None:
        """Wait until it is done, or until `end`; None: by the earliest of all who close, which may change meanwhile.

        Raises:
            Reentered: nobody can come to an end, because of the lock of a future that the frame below has.
        """
        most = min(longest, LAST_WORD)
        while not (done() or (end or self._close_by).passed):
            left = (end or self._close_by).remaining()
            if not self.settled.wait(most if left is None else min(left, most)):
                if self._is_awaited_below():
                    raise _reentered()
                # What a worker comes to later may be awaited as well, where this is a signal handler.
                most = most if takes_signals() else longest


def _reentered() -> Reentered:
    return Reentered("a callback or a signal handler closes: that has begun, and another call sees it through")
