"""The threads of a sender's workers.

Owns the executor, and how a worker gets its thread, and whose worker a thread is. When the main thread has ended an
executor starts none any more: then each has a thread of its own. Guarantees: a worker that is counted has a thread, or
is forgotten again, whatever comes up between the two; where the system or the interpreter's end gives no thread, that
is said, and whoever asked is told to have the work done another way. How many workers there are to be, the schedule
knows.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .._runtime.deadline import Deadline
from .._runtime.locks import is_owned
from .._runtime.threads import join_thread, start_thread
from . import outliving
from .schedule import Schedule
from .worker import Worker, note

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
else:
    try:
        from concurrent.futures import ThreadPoolExecutor
    except RuntimeError:  # the interpreter is ending, and this the first mail of the program
        outliving.begin()

#: Seconds for the threads to be gone, when their workers have ended.
FAREWELL = 10.0

#: How often it is tried to see to the end of a worker. What raises there has been told by then, or came from outside.
_TRIES = 3


class Starter:
    """Gives workers their threads.

    Args:
        lock: guards the schedule, and the executor.
        make: makes a worker, which is not started yet.
        ended: called when a worker's thread is over, whatever it met; perhaps again.
        over: called when that was tried for the last time.
        nobody: called with the reason where no thread could be had and no worker is left.
        not_begun: called under the lock when a worker is forgotten before it began.
        is_over: whether the sender is closed; asked under the lock.
    """

    def __init__(
        self,
        lock: Any,
        schedule: Schedule[Worker],
        workers: int,
        *,
        make: Callable[[], Worker],
        ended: Callable[[Worker], None],
        over: Callable[[Worker], None],
        nobody: Callable[[Exception], None],
        not_begun: Callable[[], None],
        is_over: Callable[[], bool],
    ) -> None:
        self._lock = lock
        self._schedule = schedule
        self._workers = workers
        self._make = make
        self._ended = ended
        self._given_up = over
        self._nobody = nobody
        self._forgotten = not_begun
        self._is_over = is_over
        self._local = threading.local()  # each worker's thread keeps its worker, and so its client, here
        self._executors: list[ThreadPoolExecutor] = []  # the last one is in use
        self._lanes: set[threading.Thread] = set()  # the threads of that one
        self._alone: dict[threading.Thread, None] = {}  # those that were started without one; each step on it is one
        self._to_start: deque[Worker] = deque()  # wanted, and not with the executor yet; whoever comes by starts them

    @property
    def in_worker(self) -> bool:
        """Whether the calling thread is one of those that workers have, one after another."""
        return getattr(self._local, "is_lane", False)

    @property
    def in_step(self) -> bool:
        """Whether the calling thread is a worker's, in a step under its own lock; or between two workers, in the lines
        of the executor, whose locks are not for one thread twice: then a finaliser asks."""
        local = self._local
        worker: Worker | None = getattr(local, "worker", None)
        return is_owned(worker.lock) if worker is not None else getattr(local, "is_lane", False)

    @property
    def in_the_middle(self) -> bool:
        """Whether the calling thread is about the executor already, whose locks are not for one thread twice.

        Then this is a signal handler, or a finaliser: who waits here would wait for the frame under it.
        """
        local = self._local
        return getattr(local, "starting", None) is not None or getattr(local, "joining", False)

    @property
    def in_between(self) -> bool:
        """Whether the calling thread is about the executor, or a worker's that asks before the last bytes of a message:
        no place for a callback."""
        worker: Worker | None = getattr(self._local, "worker", None)
        return (worker is not None and worker.asks) or self.in_the_middle

    def wanted(self) -> bool:
        """Have one more worker, if there is more to do than those there are can do. Under the lock.

        Returns:
            Whether there is somebody to start, by `start`, whoever wanted him: that may be the frame under a signal
            handler.
        """
        schedule = self._schedule
        if (
            not schedule.working
            or len(schedule.workers) >= schedule.limit.workers
            or schedule.idle >= len(schedule.ready) + len(schedule.later)
        ):
            return bool(self._to_start)
        worker = self._make()
        if not self._schedule.working:  # a signal handler has closed as it was made
            return bool(self._to_start)
        self._to_start += (worker,)
        self._local.owes = True
        schedule.workers[worker] = None
        return True

    def start(self) -> None:
        """Start those that are wanted, without the lock. A signal handler leaves it to whom it interrupted in this."""
        local = self._local
        if self.in_the_middle:
            local.again = True
            return
        local.again = True
        while local.again and (worker := self._next_to_start()) is not None:
            try:
                self._begin(worker)
            except (RuntimeError, MemoryError) as exc:  # the system gives no thread, or the interpreter is going
                note(logging.WARNING, "no worker could be started: %s", exc)
                local.starting = None
                if self._forget(worker):
                    self._nobody(exc)
            local.starting = None
        local.owes = False

    def _begin(self, worker: Worker) -> None:
        with outliving.starting():
            if not outliving.has_begun():
                # The callback is for a worker that was interrupted where it cannot help itself: before its first line.
                self._able().submit(self.work, worker).add_done_callback(partial(self._over, worker))
                return
        # A daemon, for who closes waits for it; and the interpreter ends when all have closed.
        thread = start_thread(self._work_alone, name=outliving.LANE, args=(worker,))
        if thread is None:
            raise RuntimeError("the program's main thread has ended, and there is no thread to be had")
        self._alone[thread] = None
        for each in list(self._alone):
            if not each.is_alive():
                self._alone.pop(each, None)

    def _work_alone(self, worker: Worker) -> None:
        try:
            self.work(worker)
        finally:
            self._over(worker, None)

    def _able(self) -> ThreadPoolExecutor:
        """An executor that can start a thread. One that has lost one, struck in the executor's own lines, cannot."""
        unable: ThreadPoolExecutor | None = None
        with self._lock:
            if not self._executors or any(not lane.is_alive() for lane in list(self._lanes)):
                unable = self._executors[-1] if self._executors else None
                self._executors += (ThreadPoolExecutor(self._workers, thread_name_prefix=outliving.LANE),)
                self._lanes = set()
            able = self._executors[-1]
        if unable is not None:
            unable.shutdown(wait=False)  # what it has begun it ends
        return able

    def _next_to_start(self) -> Worker | None:
        local = self._local
        with self._lock:
            local.again = len(self._to_start) > 1  # a signal handler that comes by will say so as well
            worker = self._to_start[0] if self._to_start else None
            if worker is not None:
                local.starting = worker
                del self._to_start[0]
            over = worker is None and self._is_over()
        if over:
            self.join()  # a signal handler has closed, in the middle of the start before
        return worker

    def _over(self, worker: Worker, _: object) -> None:
        """See to its end. Nothing may come out of here: the executor would lose its thread by it.

        On the worker's thread; or, if that was over in no time, on the one that has started it.
        """
        local = self._local
        before = getattr(local, "worker", None)
        try:
            local.worker = worker
            self._end(worker)
        except BaseException:  # noqa: BLE001 - out of a log handler, or from outside; all that can be done was tried
            pass
        finally:
            local.worker = before

    def _end(self, worker: Worker) -> None:
        for _ in range(_TRIES):
            try:
                self._ended(worker)
                return
            except BaseException:  # noqa: BLE001 - a callback's `sys.exit`, or from outside; the log says so
                note(logging.ERROR, "a worker's end was interrupted", exc_info=True)
        self._given_up(worker)

    def has_begun(self, worker: Worker) -> None:
        """A worker is on its thread. Under the lock."""
        worker.begun = True
        self._lanes.add(threading.current_thread())

    def work(self, worker: Worker) -> None:
        """Be a worker's thread."""
        local = self._local
        local.worker, local.is_lane = worker, True
        try:
            worker.work()
        finally:
            local.worker = None

    def abandon(self) -> None:
        """This thread was to start workers, and perhaps was interrupted before it had."""
        worker: Worker | None = getattr(self._local, "starting", None)
        self._local.starting = None
        if worker is not None and self._forget(worker):
            with self._lock:
                if len(self._schedule):
                    self.wanted()
        self.start()

    def before_closing(self) -> None:
        """Where a signal handler closes before the frame under it has started whom it wanted: start."""
        if getattr(self._local, "owes", False):
            self.start()

    def _forget(self, worker: Worker) -> bool:
        """A worker could not be started. Returns whether there is nobody left to come to the queue."""
        with self._lock:
            if not worker.begun:
                worker.over = True  # should it begin after all, it ends at once
                self._schedule.workers.pop(worker, None)
            self._forgotten()
            return not self._schedule.workers

    def join(self) -> None:
        """See the threads off; each of those who close does, so that for all of them it is over."""
        with self._lock:
            schedule = self._schedule
            executors, ended = list(self._executors), not (schedule.workers or schedule.ending or self.in_worker)
        if self.in_the_middle:
            self._local.again = True
            return
        try:
            self._local.joining = True
            for executor in executors:
                executor.shutdown(wait=ended)
            end = Deadline.after(FAREWELL if ended else 0.0)
            for thread in list(self._alone):
                join_thread(thread, end.remaining() or 0.0)
        finally:
            self._local.joining = False
