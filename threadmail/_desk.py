"""What callers ask of a ThreadedSender's lanes.

Owns the callers' side of the crew's lock: to queue a message when there is a place for it, to take it back, to end it
where it is, to end what has waited for too long, and to end everything. Guarantees: whoever waits here waits no longer
than the message's deadline, or the one of `close()`; every job that ends here is settled exactly once. What the lanes
ask is in `_dispatch`.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable

from ._crew import Crew
from ._deadline import Deadline
from ._jobs import Job, JobState
from ._lane import Lane
from .config import ServerConfig
from .errors import Aborted, Closed, MailError, Outcome, QueueFull, TimedOut
from .receipt import Receipt
from .retry import RetryPolicy
from .throttle import Throttle

#: Seconds for all lanes together to say goodbye once they were told to end.
FAREWELL = 10.0


class Desk(Crew):
    """Where callers come, with the queue of one sender in one process behind it.

    Args:
        settled: called with each job when it has its final receipt, on a lane's thread, without a lock.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        workers: int,
        queue_size: int,
        policy: RetryPolicy,
        throttle: Throttle,
        rng: random.Random,
        settled: Callable[[Job], None],
    ) -> None:
        super().__init__(config, workers=workers, policy=policy, throttle=throttle, rng=rng, settled=settled)
        self.queue_size = queue_size
        self._policy = policy
        self._throttle = throttle
        # Guarded by the crew's lock, as all that is decided here.
        self._room = threading.Condition(self._lock)  # callers wait for a place in the queue
        self._accepting = True
        self._cut_short: dict[Job, None] = {}  # by close()

    # ------------------------------------------------------------ jobs in and out

    def put(self, job: Job) -> None:
        """Queue a job; waits for a place.

        Raises:
            TimedOut: there was none before the job's deadline.
            QueueFull: there is none, and the caller is a lane, which would wait for itself.
            Closed: no more jobs are taken.
        """
        try:
            with self._lock:
                self._wait_for_room(job)
                self._queue.put(job)
                start = self._wake()
            self._start_lane(start)
        except BaseException:
            self._abandon_start()
            raise

    def _wait_for_room(self, job: Job) -> None:
        while True:
            if not self._accepting:
                raise Closed("this sender is closed")
            if len(self._queue) < self.queue_size:
                return
            if self.in_lane:
                raise QueueFull("the queue is full, and a callback of the sender must not wait for a place in it")
            if job.end.passed:
                raise TimedOut("the deadline passed while waiting for a place in the queue")
            self._room.wait(job.end.remaining())

    def withdraw(self, job: Job) -> bool:
        """Take a job back that is not on the wire, and that nobody has received anything of."""
        with self._lock:
            if job.receipt is not None and job.receipt.outcome is not Outcome.NOT_SENT:
                return False
            if job.state is JobState.QUEUED:
                self._queue.withdraw(job)
                self._room.notify()
            elif job.state is JobState.TAKEN:
                job.state = JobState.WITHDRAWN  # the lane finds out before it writes MAIL
            else:
                return False
            self._calm.notify()
            return True

    def abort(self, job: Job) -> bool:
        """Drop the connection under a job that is on the wire, or end its retries. Returns False if it was settled."""
        with self._lock:
            if job.state is JobState.ON_WIRE:
                job.called_off = True
                lane = self._in_flight[job]
                if lane is None or job not in lane.aboard:
                    assert job.client is not None
                    # Under the lock, so that the lane cannot have gone on to another message. It blocks nobody: the
                    # socket is shut down, nothing is sent or awaited.
                    job.client.abort()
                    return True
                if not self._calls_off(job):
                    return True  # its connection is also that of those ahead, and is dropped when they are settled
            elif job.state is JobState.QUEUED:
                self._queue.withdraw(job)
            else:
                return False
            self._finish(job, job.receipt or Receipt.not_sent(job.envelope, Aborted("the message was called off")))
        self._announce([job])
        return True

    def _calls_off(self, job: Job) -> bool:
        """Take a job out of the hands of a lane that has begun it behind another one, and has sent no content of it."""
        lane = self._in_flight[job]
        if lane is None or job not in lane.aboard or self.config.window > 1:
            return False
        lane.aboard.remove(job)
        self._in_flight[job] = None  # who ends it tells of it; else a lane that ends meanwhile would as well
        self._throttle.give_back()
        return True

    def expire(self, lane: Lane | None = None) -> list[Job]:
        """Messages that nobody could take up in time, for the server or the throttle let nobody through."""
        with self._lock:
            over = [job for job in self._queue.jobs() if job.end.passed]
            for job in over:
                late = Receipt.not_sent(
                    job.envelope, TimedOut("the deadline passed before the message was on the wire")
                )
                self._finish(job, late if job.receipt is None else job.receipt.followed_by(late), lane)
            self._queue.count()
            self._room.notify_all()
            return over

    def settle_overdue(self) -> None:
        """As `expire`, for a thread that waits for a message and is no lane."""
        self._announce(self.expire())

    # ------------------------------------------------------------ the end

    def _end_all(self, cause: MailError, owner: Lane | None = None) -> list[Job]:
        """Take the queue out and finish every job in it as not sent, because of `cause`. Under the lock."""
        jobs = self._queue.jobs()
        for job in jobs:
            if owner is None:
                self._cut_short[job] = None
            error = copy.copy(cause)
            error.receipt = None
            fresh = Receipt.not_sent(job.envelope, error)
            if job.receipt is None or isinstance(cause, Closed):
                self._finish(job, job.receipt or fresh, owner)
            else:
                self._finish(job, job.receipt.followed_by(fresh), owner)
        self._queue.clear()
        self._room.notify_all()
        return jobs

    def close(self, *, drain: bool, end: Deadline) -> list[Job]:
        """Take no more jobs, work the queue off or not, and end all lanes. Called again if it was interrupted.

        Returns:
            The jobs that were cut short: taken out of the queue, or dropped on the wire. All are settled.
        """
        closed = Closed("the sender was closed before it was sent")
        with self._lock:
            self._accepting = False
            self._room.notify_all()
            self._wait(lambda: not (drain and self._lane_count and (self._queue or self._in_flight)), end)
            self._end_all(closed)
            for job in [job for lane in self._lanes for job in list(lane.aboard) if self._calls_off(job)]:
                self._cut_short[job] = None
                self._finish(job, job.receipt or Receipt.not_sent(job.envelope, copy.copy(closed)))
            unsent = [job for job in self._cut_short if not job.future.done()]
        if unsent:
            self._announce(unsent)
        with self._lock:
            self._wait(lambda: not self._in_flight, end)
            cut = list(self._in_flight)
            for job in cut:
                job.called_off = True
                self._cut_short[job] = None
            for client in [*(lane.client for lane in self._dialling), *(job.client for job in cut if job.client)]:
                client.abort()
            self._working = False
            self._work.notify_all()
            self._wait(lambda: not self._lane_count, Deadline.after(FAREWELL))
            late = self._end_all(closed)  # what was put back for another attempt meanwhile
            executor, self._executor = self._executor, None
            ended = not self._lane_count
        if late:
            self._announce(late)
        if executor is not None:
            executor.shutdown(wait=ended)
        return list(self._cut_short)

    def _wait(self, done: Callable[[], object], end: Deadline) -> None:
        while not done() and not end.passed:
            self._calm.wait(end.remaining())
