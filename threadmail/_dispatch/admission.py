"""How messages come in.

Owns the line of callers that wait for a place in a sender's queue. Guarantees: places are given in the order of asking,
and nobody overtakes who waits; who gives up, or is interrupted, passes his turn on; whoever waits here waits no longer
than his message's deadline, or until the sender is closed; and nobody waits here for himself: a signal handler that
comes up where its own thread waits for a place, or is in the middle of a step, gets one at once or none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from .._runtime.deadline import out_of_time
from .._runtime.locks import is_owned
from .._runtime.threads import takes_signals
from ..errors import Closed, QueueFull
from . import outliving
from .closing import LONGEST_WAIT
from .job import LAST_WORD, Job
from .schedule import NEW, READY, Schedule, Waiter
from .starter import Starter
from .worker import Worker


class _Waiter:
    """A caller that waits for a place in the queue."""

    def __init__(self, lock: Any) -> None:
        self._woken = threading.Condition(lock)
        self.wake = self._woken.notify
        self.wait = self._woken.wait


class Admission:
    """Lets jobs into the queue of one sender.

    Args:
        lock: guards the schedule.
        not_empty: where workers wait for something to do.
        is_open: whether jobs are taken; asked under the lock.
        in_callback: whether the calling thread must not be made to wait.
        is_awaited_below: whether a frame under it keeps workers from going on; this is asked after a moment of waiting.
    """

    def __init__(
        self,
        lock: Any,
        schedule: Schedule[Worker],
        not_empty: threading.Condition,
        starter: Starter,
        *,
        is_open: Callable[[], bool],
        in_callback: Callable[[], bool],
        is_awaited_below: Callable[[], bool],
    ) -> None:
        self._lock = lock
        self._schedule = schedule
        self._not_empty = not_empty
        self._starter = starter
        self._is_open = is_open
        self._in_callback = in_callback
        self._is_awaited_below = is_awaited_below

    def put(self, job: Job) -> None:
        """Queue a job; waits for a place, in the order of asking.

        Raises:
            TimedOut: there was none before the job's deadline.
            QueueFull: there is none, and the caller is a callback, or a signal handler that came up while its thread
                was waiting for a place or had the lock: it would wait for itself.
            Closed: no more jobs are taken.
        """
        try:
            in_a_step = is_owned(self._lock)
            with self._lock:
                start = self._put_in_turn(job, in_a_step)
            if start:
                self._starter.start()
        except BaseException:
            self._starter.abandon()
            with self._lock:
                self._schedule.wake_first()  # who left the line may have been interrupted before he passed it on
            raise

    def _put_in_turn(self, job: Job, in_a_step: bool) -> bool:
        schedule, mine = self._schedule, None
        # Who waits in the frame below cannot come in before this one returns: his turn is used for both.
        waiter = below = self._in_line()
        most = LAST_WORD
        try:
            while not schedule.admits(waiter):
                self._require_open()
                if in_a_step or below is not None or self._in_callback() or self._starter.in_the_middle:
                    raise _full()
                if job.end.passed:
                    raise out_of_time("the deadline passed while waiting for a place in the queue")
                if mine is None:
                    waiter = mine = _Waiter(self._lock)
                    schedule.line[mine] = threading.get_ident()
                left = job.end.remaining()
                if not mine.wait(most if left is None else min(left, most)):
                    if self._is_awaited_below():
                        raise _full()
                    most = LAST_WORD if takes_signals() else LONGEST_WAIT  # as in `Closing`
            self._require_open()
            return self._submit(job)
        finally:
            if mine is not None:
                schedule.line.pop(mine, None)
                schedule.wake_first()  # there may be a place for the next one too

    def put_some(self, jobs: Sequence[tuple[int, Job]], waiter: Waiter) -> None:
        """Queue the first of `jobs`, as many as there are places for, in one step. Waits for nothing.

        May be called again with the same jobs: those that are queued are passed over.

        Args:
            jobs: each with its caller's number.
            waiter: stands in the line of those who wait for a place until its turn comes, or until `leave_line`.
        Raises:
            QueueFull: there is no place, and the frame under this signal handler is waiting for one already.
            Closed: no more jobs are taken.
        """
        try:
            with self._lock:
                self._require_open()
                schedule = self._schedule
                if not schedule.admits(waiter):
                    if waiter not in schedule.line:
                        if self._in_line() is not None:
                            raise _full()
                        schedule.line[waiter] = threading.get_ident()
                    return
                some = list(islice(jobs, schedule.places()))  # a signal handler may change them meanwhile
                starts = [self._submit(job) for _, job in some if job.state is NEW]
                if schedule.line:
                    schedule.line.pop(waiter, None)
                    schedule.wake_first()
            if any(starts):
                self._starter.start()
        except BaseException:
            self._starter.abandon()
            raise

    def leave_line(self, waiter: Waiter) -> None:
        """This waiter does not wait any more."""
        with self._lock:
            self._schedule.line.pop(waiter, None)
            self._schedule.wake_first()

    def _in_line(self) -> Waiter | None:
        """Who of the calling thread waits for a place, if this is a signal handler or a finaliser."""
        line = self._schedule.line
        if not line:
            return None
        me = threading.get_ident()
        return next((waiter for waiter, thread in list(line.items()) if thread == me), None)

    def _require_open(self) -> None:
        if not self._is_open():
            raise Closed(_why_closed())

    def _submit(self, job: Job) -> bool:
        """Queue a job. Returns whether a worker is to be started for it. Under the lock."""
        schedule = self._schedule
        if schedule.idle:
            # First: one that wakes too early looks for himself, one that is not woken sleeps on. While the server is
            # not to be dialled, only some workers can work, and one of the others might be woken.
            if schedule.breaker.is_closed:
                self._not_empty.notify()
            else:
                self._not_empty.notify_all()
        schedule.submit(job)
        if not self._is_open() and job.state is READY:
            schedule.take_back(job)  # a signal handler has closed in the middle of this, and nobody would come by
            raise Closed(_why_closed())
        try:
            return self._starter.wanted()
        except BaseException:  # there is no memory, or from outside: who gets an exception has not queued it
            if job.state is READY:
                schedule.take_back(job)
            raise


def _full() -> QueueFull:
    return QueueFull("the queue is full, and who asks from within the sender must not wait for a place in it")


def _why_closed() -> str:
    if outliving.has_begun():
        return "this sender is closed, for the interpreter is ending: a Client still sends, it needs no thread"
    return "this sender is closed: make a new one"
