"""What a ThreadedSender has to do.

Owns one message's way through the sender (`Job`, its life cycle, its future) and the queue with its due times: this is
where a retry waits. Has no lock: the dispatcher's guards it all.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from concurrent.futures import Future, wait
from math import inf
from typing import Protocol

from ._deadline import Deadline
from .client import Client
from .envelope import Envelope
from .errors import MailError, Reentered, TimedOut
from .receipt import Receipt
from .transaction import Transaction


class JobState(enum.Enum):
    """The life of a job; changed under the dispatcher's lock only."""

    QUEUED = "queued"  # waiting for a lane, or for its next attempt
    TAKEN = "taken"  # a lane has it, and nothing has been written
    ON_WIRE = "on the wire"
    WITHDRAWN = "withdrawn"  # cancelled before it was on the wire
    DONE = "done"


class Keeper(Protocol):
    """Who has the jobs, and the lock."""

    def withdraw(self, job: Job) -> bool: ...
    def abort(self, job: Job) -> bool: ...
    def settle_overdue(self) -> None: ...
    @property
    def in_lane(self) -> bool: ...


class Promise(Protocol):
    """Whom a job's final receipt is told."""

    def done(self) -> bool: ...
    def settle(self, receipt: Receipt) -> None: ...


class Job:
    """One message on its way.

    Args:
        promise: in the place of a `SendFuture`, where nobody is given the future.

    Attributes:
        envelope: what is still to be sent, and to whom.
        receipt: what all attempts so far have come to; None before the first.
        due: when the next attempt may start, on the monotonic clock.
        taken_first: when a lane first took it.
        end: when the message must be settled.
        pauses_seen: `Pace.pauses` when a lane last took it.
        spared: attempts that the server put off for its own sake.
        client: whose connection it is on; transaction: how far it got there.
        called_off: `abort` or `close` ended it; nobody retries.
        told: its receipt has been announced, or is being so.
        walks: it lost its connection while it was aboard behind another one, and goes by itself the next time.
    """

    __slots__ = (
        "called_off",
        "client",
        "due",
        "end",
        "envelope",
        "future",
        "pauses_seen",
        "receipt",
        "spared",
        "state",
        "taken_first",
        "told",
        "transaction",
        "walks",
    )

    def __init__(self, envelope: Envelope, end: Deadline, keeper: Keeper, promise: Promise | None = None) -> None:
        self.envelope = envelope
        self.end = end
        self.future: Promise = SendFuture(self, keeper) if promise is None else promise
        self.state = JobState.QUEUED
        self.receipt: Receipt | None = None
        self.due = 0.0
        self.taken_first = 0.0
        self.pauses_seen = 0
        self.spared = 0
        self.client: Client | None = None
        self.transaction: Transaction | None = None
        self.called_off = False
        self.told = False
        self.walks = False

    def begun(self, transaction: Transaction) -> None:
        """It is about to be written behind another message."""
        self.transaction = transaction


class SendFuture(Future[Receipt]):
    """The future of one message: its result is the receipt, its exception the MailError of a message not sent.

    `cancel()` works until the message is on the wire, also between two attempts as long as nobody has it.
    """

    def __init__(self, job: Job, keeper: Keeper) -> None:
        super().__init__()
        self._keeper = keeper
        # Let go of when the message is settled: job and future know each other, and would stay in memory, content and
        # all, until the garbage collector comes by.
        self._job: Job | None = job
        self._receipt: Receipt | None = None

    def cancel(self) -> bool:
        """Take the message back. Returns False if that is too late."""
        job = self._job
        if job is None or not self._keeper.withdraw(job):
            return self.cancelled()
        self._receipt = Receipt.not_sent(job.envelope, TimedOut("the message was taken back before it was on the wire"))
        self._job = None
        super().cancel()
        # Nobody will run it any more, so those who wait are told now.
        self.set_running_or_notify_cancel()
        return True

    def abort(self) -> bool:
        """Drop the connection the message is on, or end its retries. Returns False if it was settled."""
        job = self._job
        return job is not None and self._keeper.abort(job)

    def running(self) -> bool:
        """Whether the message is on the wire."""
        job = self._job
        return job is not None and job.state is JobState.ON_WIRE

    def result(self, timeout: float | None = None) -> Receipt:
        """As that of any future; it comes by the deadline of the message."""
        return super().result(self._left_after_deadline(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As that of any future; it comes by the deadline of the message."""
        return super().exception(self._left_after_deadline(timeout))

    def _left_after_deadline(self, timeout: float | None) -> float | None:
        """Wait until the message is settled or its deadline has passed; settle it then, should no lane come to it.

        Returns:
            Seconds that are left of `timeout`.
        """
        job = self._job
        if job is not None and self._keeper.in_lane:
            raise Reentered("a callback of the sender must not wait for another message of the sender")
        left = None if job is None else job.end.remaining()
        if left is None or (timeout is not None and timeout < left):
            return timeout
        limit = Deadline.after(timeout)
        wait([self], left)
        # While every lane is busy with a server that stalls, none of them looks at the queue.
        self._keeper.settle_overdue()
        return limit.remaining()

    @property
    def receipt(self) -> Receipt | None:
        """The receipt, whatever the outcome; None while the message is under way."""
        return self._receipt

    def settle(self, receipt: Receipt) -> None:
        """Set the result, or the error of a message that surely or possibly nobody has. May be called twice."""
        if self.done():
            return
        self._receipt = receipt
        self._job = None
        try:
            receipt.raise_for_failure()
        except MailError as error:
            error.__traceback__ = None
            self.set_exception(error)
        else:
            self.set_result(receipt)


class JobQueue:
    """First in, first out, but for jobs that are not due yet.

    An exception from outside comes up when something is called, not between two plain statements (`pool` relies on it
    as well). A job that one made fall between queue and lane is put back by `restore`.
    """

    def __init__(self) -> None:
        self._ready: deque[Job] = deque()
        self._later: list[tuple[float, int, Job]] = []
        self._counter = 0
        self._size = 0
        self.ends_at = inf  # no queued job's deadline passes before; it may be early, for who left is not looked for

    def __len__(self) -> int:
        """Jobs waiting, withdrawn ones not counted."""
        return self._size

    @property
    def waiting_for_retry(self) -> int:
        return sum(job.state is JobState.QUEUED for _, _, job in self._later)

    def put(self, job: Job) -> None:
        """Add a job, behind all others."""
        self._enter(job)
        if job.due:
            self._counter += 1  # so that jobs due at once are compared by it, not by themselves
            heapq.heappush(self._later, (job.due, self._counter, job))
        else:
            self._ready.append(job)

    def put_first(self, job: Job) -> None:
        """Give a job back that was taken for nothing."""
        self._enter(job)
        self._ready.appendleft(job)

    def _enter(self, job: Job) -> None:
        job.state = JobState.QUEUED
        self._size += 1
        if job.end.at < self.ends_at:
            self.ends_at = job.end.at

    def first(self, now: float) -> Job | None:
        """The next job that is due, or None. It stays; `take` is to follow."""
        self._skip_withdrawn()
        if self._later and self._later[0][0] <= now:
            return self._later[0][2]
        return self._ready[0] if self._ready else None

    def take(self, job: Job, now: float) -> None:
        """Take out what `first` returned."""
        if self._ready and self._ready[0] is job:
            del self._ready[0]
        else:
            heapq.heappop(self._later)
        job.state = JobState.TAKEN
        job.due = 0.0
        job.taken_first = job.taken_first or now
        self._size -= 1

    def restore(self, job: Job) -> None:
        """Have `job` at the head, once, wherever it is now."""
        self._ready = deque(other for other in self._ready if other is not job)
        self._later = [entry for entry in self._later if entry[2] is not job]
        heapq.heapify(self._later)
        self._ready.appendleft(job)

    def count(self) -> None:
        """Count anew, after jobs have left otherwise than by `take` and `withdraw`."""
        jobs = self.jobs()
        self._size = len(jobs)
        self.ends_at = min((job.end.at for job in jobs), default=inf)

    def jobs(self) -> list[Job]:
        """All jobs, in order."""
        later = (job for _, _, job in sorted(self._later, key=lambda entry: entry[:2]))
        return [job for job in (*self._ready, *later) if job.state is JobState.QUEUED]

    def withdraw(self, job: Job) -> None:
        """Take a queued job out. It stays where it lies, is not counted, and never comes up again."""
        job.state = JobState.WITHDRAWN
        self._size -= 1

    def pause(self, now: float) -> float | None:
        """Seconds until a job is due: 0.0 if one is, None if there is none at all."""
        self._skip_withdrawn()
        if self._ready:
            return 0.0
        return max(0.0, self._later[0][0] - now) if self._later else None

    def last_end(self) -> Deadline:
        """When the last of them is over."""
        return max((job.end for job in self.jobs()), key=lambda end: end.at, default=Deadline())

    def _skip_withdrawn(self) -> None:
        ready, later = self._ready, self._later
        while ready and ready[0].state is not JobState.QUEUED:
            del ready[0]
        while later and later[0][2].state is not JobState.QUEUED:
            heapq.heappop(later)

    def clear(self) -> None:
        """Take everything out."""
        self._ready.clear()
        self._later.clear()
        self._size = 0
