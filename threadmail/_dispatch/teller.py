"""Who is told what became of a message.

Owns the one path by which every message is told: who waits for it, then whoever watches; and the mark on a thread that
is telling. Guarantees: a message that was taken out is told of, whatever comes up meanwhile, and counted once; what a
caller's own code does in a callback can be told from outside (`is_telling`), so that it is not made to wait for itself;
a caller, who has a deadline, is not held up by callbacks where a worker can run them.

**No callback comes within another one, nor in the middle of something**: a step under the lock, the executor's own
lines, or `before_final`. What a signal handler, a finaliser or a callback brings up there is settled at once and put
behind, and the frame that leaves acts on it. Under a lock it could wait for ever for somebody who wants that lock; and
callbacks that take back the next message, whose callback takes back the next, end in a RecursionError.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from .._runtime.locks import is_owned
from .job import Job
from .schedule import Schedule
from .worker import Worker

_T = TypeVar("_T")


class Teller:
    """Tells of the jobs of one sender that have their final receipts.

    Args:
        lock: guards the schedule.
        settle: settles the completion of a job, which takes no time but for callbacks of futures.
        announce: calls back whoever watches, which may take its time. Both may be called twice with one job.
        wake_worker, wake_closers: called under the lock when there is something to be announced, and when it has been.
        in_worker: whether the calling thread is a worker's.
        in_between: whether it is in lines where no callback may come, other than under the lock.
    """

    def __init__(
        self,
        lock: Any,
        schedule: Schedule[Worker],
        settle: Callable[[Job], None],
        announce: Callable[[Job], None],
        *,
        wake_worker: Callable[[], None],
        wake_closers: Callable[[], None],
        in_worker: Callable[[], bool],
        in_between: Callable[[], bool],
    ) -> None:
        self._lock = lock
        self._schedule = schedule
        self._settle = settle
        self._call_back = announce
        self._wake_worker = wake_worker
        self._wake_closers = wake_closers
        self._in_worker = in_worker
        self._in_between = in_between
        self._local = threading.local()

    @property
    def is_telling(self) -> bool:
        """Whether this thread is in the middle of telling of a message."""
        return getattr(self._local, "depth", 0) > 0

    def _is_amid(self) -> bool:
        """Whether this thread is in the middle of something, and so this is a signal handler, a finaliser or a hook."""
        return is_owned(self._lock) or self._in_between()

    def tell(self, job: Job) -> None:
        """Tell of a job that its worker has sent, on that worker's thread."""
        local = self._local
        depth = getattr(local, "depth", 0)
        try:
            local.depth = depth + 1
            try:
                self._settle(job)
            finally:
                self._call_back(job)
        finally:
            local.depth = depth
            if not depth and getattr(local, "behind", None):
                self.catch_up()

    def end(self, jobs: list[Job], *, here: bool = False) -> None:
        """Tell of jobs that were taken out: their receipts are made here, without the lock.

        Where an exception from outside comes up in this, or as it is called, it is to be called again: nobody else
        would come by.

        Args:
            here: the callbacks are run on this thread in any case.
        """
        self.marked(self._conclude, jobs)
        # A caller has a deadline, and callbacks may take their time: so a worker runs them, if there is one.
        if here or not self._handed_over(jobs):
            if self.is_telling or self._is_amid():
                self._behind.extend([(self._announce_one, job) for job in jobs])
            else:
                self.announce(jobs)

    def _conclude(self, job: Job) -> None:
        job.conclude()
        self._settle(job)

    def _handed_over(self, jobs: list[Job]) -> bool:
        if self._in_worker() and (self.is_telling or not self._is_amid()):
            return False  # one that can call back itself, or very soon
        with self._lock:
            self._wake_worker()
            for job in jobs:
                job.let_go()
            handed_over = self._schedule.hand_over(jobs)
            self._wake_closers()
            self._schedule.wake_first()
        return handed_over

    def announce_some(self) -> bool:
        """Call back for jobs that were handed over, and for what was put behind. Returns whether there were any."""
        self.catch_up()
        jobs: list[Job] = []
        try:
            with self._lock:
                self._schedule.some_unannounced(jobs)
            self.announce(jobs)
        except BaseException:
            # From outside, perhaps: the rest is told of by whoever comes by when this worker ends. One operation of a
            # deque, which needs no lock.
            self._schedule.unannounced.extend([job for job in jobs if not (job.told and job.completion.all_told)])
            raise
        return bool(jobs)

    def announce(self, jobs: list[Job]) -> None:
        """Tell of jobs, perhaps again, and count them."""
        told: list[Job] = []
        try:
            self.marked(self._tell_last, jobs)
            told = jobs
        except BaseException:
            told = [job for job in jobs if job.told and job.completion.all_told]
            raise
        finally:
            with self._lock:
                self._schedule.told(told)
                self._wake_closers()
                self._schedule.wake_first()

    def _tell_last(self, job: Job) -> None:
        job.conclude()
        try:
            self._settle(job)
        finally:
            self._call_back(job)

    def marked(self, act: Callable[[_T], object], those: Iterable[_T]) -> None:
        """Act on each of those, with the mark on this thread that it is telling.

        Whatever comes up at one: a callback may end in `sys.exit`, and the others are not concerned. It is raised when
        all had their turn.
        """
        local = self._local
        depth = getattr(local, "depth", 0)
        raised: BaseException | None = None
        try:
            local.depth = depth + 1
            for each in those:
                try:
                    act(each)
                except BaseException as exc:  # noqa: BLE001 - it is raised below
                    raised = raised or exc
        finally:
            local.depth = depth
            if not depth and getattr(local, "behind", None):
                try:
                    self.catch_up()
                except BaseException as exc:  # noqa: BLE001 - it is raised below
                    raised = raised or exc
        if raised is not None:
            try:
                raise raised
            finally:
                del raised

    # ------------------------------------------------------------ what is put behind

    def call_back(self, act: Callable[[_T], object], those: Sequence[_T], *, settling: bool = False) -> None:
        """Act on each of those; or have the frame do it that leaves what this thread is in the middle of.

        Args:
            settling: called where a completion is settled, which has a mark of its own.
        """
        if getattr(self._local, "depth", 0) > settling or self._is_amid():
            self._behind.extend([(act, each) for each in those])
        else:
            self.marked(act, those)

    @property
    def has_behind(self) -> bool:
        """Whether this thread has something to act on."""
        return bool(getattr(self._local, "behind", None))

    @property
    def _behind(self) -> deque[tuple[Callable[[Any], object], Any]]:
        behind: deque[tuple[Callable[[Any], object], Any]] = self._local.__dict__.setdefault("behind", deque())
        return behind

    def catch_up(self) -> None:
        """Act on what was put behind, unless a frame below is to leave something first: that one does it."""
        if getattr(self._local, "behind", None) and not self.is_telling and not self._is_amid():
            self._catch_up()

    def _catch_up(self) -> None:
        """What comes up at one is raised when all had their turn."""
        local, behind = self._local, self._behind
        raised: BaseException | None = None
        # Looked at again without the mark: what a signal handler brings up from here on, it sees to itself.
        while behind:
            try:
                local.depth = 1
                while behind:
                    first = behind[0]
                    try:
                        first[0](first[1])
                    except BaseException as exc:  # noqa: BLE001 - it is raised below
                        raised = raised or exc
                    if behind and behind[0] is first:
                        del behind[0]  # afterwards, and no other one: a signal handler may have been here
            except BaseException:
                # From outside: whoever comes by calls back for messages. One operation of a deque, which needs no lock.
                kept = deque(each for each in behind if not isinstance(each[1], Job))
                self._schedule.unannounced.extend([job for _, job in behind if isinstance(job, Job)])
                local.behind = kept
                raise
            finally:
                local.depth = 0
        if raised is not None:
            try:
                raise raised
            finally:
                del raised

    def _announce_one(self, job: Job) -> None:
        try:
            self.announce([job])
        except BaseException:
            if not (job.told and job.completion.all_told):
                self._schedule.unannounced.append(job)  # as in `announce_some`
            raise
