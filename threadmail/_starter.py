"""The threads of a sender's workers.

Owns the executor, and how a worker gets its thread, and whose worker a thread is. Guarantees: a worker that is counted
has a thread, or is forgotten again, whatever comes up between the two; where the system or the interpreter's end gives
no thread, that is said, and whoever asked is told to have the work done another way. How many workers there are to be,
the schedule knows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ._schedule import Schedule
from ._worker import Worker, note


class Starter:
    """Gives workers their threads.

    Args:
        lock: guards the schedule, and the executor.
        make: makes a worker, which is not started yet.
        ended: called when a worker's thread is over, whatever it met; perhaps again.
        nobody: called with the reason where no thread could be had and no worker is left.
        not_begun: called under the lock when a worker is forgotten before it began.
    """

    def __init__(
        self,
        lock: Any,
        schedule: Schedule[Worker],
        workers: int,
        *,
        make: Callable[[], Worker],
        ended: Callable[[Worker], None],
        nobody: Callable[[RuntimeError], None],
        not_begun: Callable[[], None],
    ) -> None:
        self._lock = lock
        self._schedule = schedule
        self._workers = workers
        self._make = make
        self._ended = ended
        self._nobody = nobody
        self._forgotten = not_begun
        self._local = threading.local()  # each worker's thread keeps its worker, and so its client, here
        self._executor: ThreadPoolExecutor | None = None

    @property
    def in_worker(self) -> bool:
        """Whether the calling thread is a worker's."""
        return getattr(self._local, "worker", None) is not None

    def wanted(self) -> Worker | None:
        """A worker that is to be started, if there is more to do than those there are can do. Under the lock."""
        schedule = self._schedule
        if (
            not schedule.working
            or len(schedule.workers) >= schedule.limit.workers
            or schedule.idle >= len(schedule.ready) + len(schedule.later)
        ):
            return None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="threadmail-lane")
        worker = self._make()
        self._local.starting = worker
        schedule.workers[worker] = None
        return worker

    def start(self, worker: Worker | None) -> None:
        """Start what `wanted` gave, without the lock."""
        if worker is None:
            return
        executor = self._executor
        try:
            if executor is None:
                raise RuntimeError("the sender was closed meanwhile")
            # The callback is for a worker that was interrupted where it cannot help itself: before its first line.
            executor.submit(self.work, worker).add_done_callback(lambda _: self._ended(worker))
        except RuntimeError as exc:  # the system gives no thread, or the interpreter is going and starts none any more
            note(logging.WARNING, "no worker could be started: %s", exc)
            self._local.starting = None
            if self._forget(worker):
                self._nobody(exc)
        self._local.starting = None

    def work(self, worker: Worker) -> None:
        """Be a worker's thread."""
        self._local.worker = worker
        try:
            worker.work()
        finally:
            self._local.worker = None

    def abandon(self) -> None:
        """This thread was to start a worker, and perhaps was interrupted before it had."""
        worker: Worker | None = getattr(self._local, "starting", None)
        if worker is None:
            return
        self._local.starting = None
        if self._forget(worker):
            with self._lock:
                another = self.wanted() if len(self._schedule) else None
            self.start(another)

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
            executor, ended = self._executor, not self._schedule.workers
        if executor is None or getattr(self._local, "joining", False):
            return  # a signal handler, in the middle of this: the executor's locks are not for one thread twice
        try:
            self._local.joining = True
            executor.shutdown(wait=ended)
        finally:
            self._local.joining = False
