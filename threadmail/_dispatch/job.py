"""One message on its way through a ThreadedSender.

Owns `Job`, its states, and `SendFuture`, whom its receipt is told. Guarantees: a future is settled once, and an
exception from outside that comes up while it is leaves it settled or to be settled again. Where a job is, and who may
move it, `Schedule` and the workers know.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Protocol, TypeAlias

from .._protocol.transaction import Transaction
from .._runtime.deadline import Deadline
from .._runtime.locks import is_owned, keep_for_sure
from .._runtime.process import here
from .._runtime.steps import Bell
from .._runtime.threads import takes_signals
from ..envelope import Envelope
from ..errors import Aborted, MailError, Reentered
from ..receipt import Receipt


class JobState(enum.Enum):
    """Where a job is. Which moves there are, and under which lock, stands in `_schedule`."""

    NEW = "not queued yet"
    READY = "waiting for a worker"
    LATER = "waiting for its next attempt"
    TAKEN = "a worker has it, and has not begun it"
    ON_WIRE = "a worker has begun it"
    DONE = "it has its final receipt"


#: Seconds that a message on the wire has, after its deadline, to say itself how it stands before it is aborted.
LAST_WORD = 1.0

#: Makes the final receipt of a job that was taken out; without a lock, for that grows with its recipients.
Ending: TypeAlias = "Callable[[Job], Receipt]"


class Keeper(Protocol):
    """Who has the jobs, and the lock."""

    def withdraw(self, job: Job, error: MailError, *, cancelled: bool = False) -> bool: ...
    def abort(self, job: Job) -> bool: ...
    def settle_overdue(self) -> None: ...
    def call_back(
        self, act: Callable[[SendFuture], object], those: Sequence[SendFuture], *, settling: bool = ...
    ) -> None: ...
    def is_awaited_below(self) -> bool: ...
    @property
    def must_not_wait(self) -> bool: ...


class Completion(Protocol):
    """Whom a job's final receipt is told."""

    @property
    def all_told(self) -> bool:
        """Whether everybody knows who waits; not so where there was no memory for telling."""

    @property
    def is_held_here(self) -> bool:
        """Whether the calling thread has a lock that whoever settles this needs."""

    def orphan(self) -> None:
        """In a forked child: nobody settles it here, and nobody is to wait for a lock of it."""

    def done(self) -> bool: ...
    def settle(self, job: Job, receipt: Receipt) -> None: ...
    def put_off(self) -> None: ...


class Job:
    """One message on its way.

    Args:
        end: when the message must be settled.
        completion: whom its receipt is told; None makes a `SendFuture`, which is there as `future`.
        tag: what the caller gave for the receipt to carry back.

    Attributes:
        envelope: what is still to be sent, and to whom.
        receipt: what all attempts so far have come to; None before the first.
        ending: makes its final receipt. It is here from when the job is taken out until that is made, so that whoever
            comes by can end what another one was interrupted about.
        taken_first: when a worker first began with it, on the monotonic clock; 0.0 before.
        pauses_seen: how many pauses the server had been given when a worker last took it.
        spared: attempts that the server put off for its own sake.
        transaction: how far its attempt under way has come.
        called_off: `abort` or `close` ended it on the wire; nobody retries.
        cancelled: it was taken back by its own future's `cancel`.
        told: its receipt has been announced, or is being so.
        alone: it lost its connection while it was prefetched, and is not begun behind another one the next time.
    """

    __slots__ = (
        "alone",
        "called_off",
        "cancelled",
        "completion",
        "end",
        "ending",
        "envelope",
        "pauses_seen",
        "receipt",
        "spared",
        "state",
        "tag",
        "taken_first",
        "told",
        "transaction",
    )

    def __init__(
        self,
        envelope: Envelope,
        end: Deadline,
        keeper: Keeper,
        completion: Completion | None = None,
        tag: Any = None,
    ) -> None:
        self.envelope: Envelope = envelope
        self.end: Deadline = end
        self.completion: Completion = SendFuture(self, keeper) if completion is None else completion
        self.tag: Any = tag
        self.state: JobState = JobState.NEW
        self.receipt: Receipt | None = None
        self.ending: Ending | None = None
        self.taken_first: float = 0.0
        self.pauses_seen: int = 0
        self.spared: int = 0
        self.transaction: Transaction | None = None
        self.called_off: bool = False
        self.cancelled: bool = False
        self.told: bool = False
        self.alone: bool = False

    @property
    def future(self) -> SendFuture:
        assert isinstance(self.completion, SendFuture)
        return self.completion

    def begun(self, transaction: Transaction) -> None:
        """It is about to be written behind another message."""
        self.transaction = transaction

    def let_go(self) -> None:
        """Its receipt is told, and only callbacks are still to come: they may take their time, and need no content."""
        self.envelope = _NOTHING

    def conclude(self) -> None:
        """Have the final receipt. May be called twice, and by two: the first one's counts."""
        ending = self.ending
        if ending is not None:
            receipt = ending(self)
            if self.ending is ending:
                self.receipt = receipt
                self.ending = None

    def ended_by(self, error: MailError) -> Receipt:
        """The final receipt if no other attempt is made, because of `error`: what earlier ones have come to counts."""
        so_far = self.receipt
        if so_far is None:
            return Receipt.not_sent(self.envelope, error)
        if so_far.accepted or so_far.error is None or not so_far.error.may_resend:
            return so_far  # some have it, or may have it: that is more than why the others do not
        return so_far.followed_by(Receipt.not_sent(self.envelope, error))


_NOTHING = Envelope("", "nobody@invalid", b"")


class SendFuture(Future[Receipt]):
    """The future of one message: its result is the receipt, its exception the MailError of a message not sent.

    `cancel()` works until the message is on the wire, also between two attempts as long as nobody has it.
    """

    _keeper: Keeper | None = None  # of one that is settled: a future that is kept keeps nothing else

    def __init__(self, job: Job, keeper: Keeper) -> None:
        super().__init__()
        keep_for_sure(self._condition)
        self._keeper = keeper
        # Let go of when the message is settled: job and future know each other, and would stay in memory, content and
        # all, until the garbage collector comes by.
        self._job: Job | None = job
        self._receipt: Receipt | None = None
        self._all_told = False  # that it is settled, all who wait know
        self._called_back = False  # they were told, and the callbacks are run, or will be
        # Of one that was taken back; guarded by the future's own lock, which is for one thread twice.
        self._cancel_begun = self._cancel_told = False
        self._bells: list[Bell] = []  # of those who wait for the result
        self._process = here()
        self._is_orphaned = False

    def _mine(self) -> tuple[Job, Keeper] | None:
        """The job, and who has it. None: it is settled; or this is a forked child, and it is the parent's."""
        if self._is_inherited:
            return None
        job, keeper = self._job, self._keeper
        return None if job is None or keeper is None else (job, keeper)

    @property
    def _is_inherited(self) -> bool:
        """Whether this is a forked child: the message is its parent's, whose locks are not to be touched here."""
        if self._process is here():
            return False
        self.orphan()
        return True

    def orphan(self) -> None:
        """In a forked child: have a lock of its own. A thread may have had this one that did not come along."""
        if not (self._is_orphaned or self.is_held_here):
            self._condition, self._is_orphaned = threading.Condition(), True
            keep_for_sure(self._condition)

    def cancel(self) -> bool:
        """Take the message back. Returns False if that is too late."""
        if (mine := self._mine()) is None:
            return self.cancelled()
        job, keeper = mine
        taken_back = Aborted("the message was taken back before it was on the wire")
        return keeper.withdraw(job, taken_back, cancelled=True) or self.cancelled()

    def take_back(self, error: MailError) -> bool:
        """As `cancel`, but the future is not cancelled: it has `error`, where the message had no other outcome yet."""
        mine = self._mine()
        return mine is not None and mine[1].withdraw(mine[0], error)

    def abort(self) -> bool:
        """End the message now: out of the queue, or with the connection it is on. Returns False if it was settled."""
        mine = self._mine()
        return mine is not None and mine[1].abort(mine[0])

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
        """Wait until the message is settled or its deadline has passed; settle it then, should no worker come to it.

        Returns:
            Seconds that are left of `timeout`.
        """
        is_inherited, job, keeper = self._is_inherited, self._job, self._keeper
        if keeper is None or self.done():
            return timeout
        if is_inherited:
            raise MailError("this message is sent by the process that submitted it, and its future is told there")
        if keeper.must_not_wait:
            raise _reentered()
        left = None if job is None else job.end.remaining()
        if left is None or (timeout is not None and timeout < left):
            return self._wait(Deadline.after(timeout), keeper)
        limit = Deadline.after(timeout)
        self._wait(Deadline.after(left), keeper)
        # While every worker is busy with a server that stalls, none of them looks at the queue.
        keeper.settle_overdue()
        return limit.remaining() if self.done() else self._left_after_last_word(limit, keeper)

    def _left_after_last_word(self, limit: Deadline, keeper: Keeper) -> float | None:
        """It may have been begun behind another one, whose callback takes its time. What its own worker can say of it,
        it says in a moment."""
        self._wait(limit.within(LAST_WORD), keeper)
        return self._left_after_abort(limit)

    def _left_after_abort(self, limit: Deadline) -> float | None:
        if not limit.passed:
            self.abort()
        return limit.remaining()

    def _wait(self, limit: Deadline, keeper: Keeper) -> float | None:
        """Wait until it is settled. Returns seconds that are left then.

        Not as any future does, which looks, and waits then to be notified: a signal handler that settles it between the
        two, on the thread that waits, would notify nobody.
        """
        bell = Bell()
        self._bells.append(bell)
        most: Deadline | None = None
        try:
            while not (self.done() or limit.passed):
                if most is not None and keeper.is_awaited_below():
                    raise _reentered()
                # Again and again where this may be a signal handler: what a worker comes to later may be awaited too.
                most = limit.within(LAST_WORD) if most is None or takes_signals() else limit
                bell.wait(most.remaining())
        finally:
            self._bells.remove(bell)
        return limit.remaining()

    @property
    def is_held_here(self) -> bool:
        """Whether a frame of this thread, under a signal handler, is in the lines of this future."""
        return is_owned(self._condition)

    @property
    def all_told(self) -> bool:
        return self._all_told

    @property
    def receipt(self) -> Receipt | None:
        """The receipt, whatever the outcome; None while the message is under way."""
        return self._receipt

    def put_off(self) -> None:
        """The message waits for another attempt: that is no news for who has its future."""

    def settle(self, job: Job, receipt: Receipt) -> None:
        """Set the result, or the error of a message that surely or possibly nobody has. May be called twice."""
        try:
            self._set(job, receipt)
        except BaseException:
            # From outside, or there is no memory: between the result being there and those who wait being told of it.
            self._set(job, receipt)
            raise

    def _set(self, job: Job, receipt: Receipt) -> None:
        if self._all_told:
            return
        if not self.done():
            for waiter in list(self._waiters):
                keep_for_sure(getattr(getattr(waiter, "event", None), "_cond", None))
            try:
                self._set_first(job, receipt)
            except InvalidStateError:
                return  # another thread has told of it in this very moment: who closes, say
        # Nobody is told once more who may know it: `as_completed` would come to it twice, which it does not stand.
        if self.cancelled():
            self._tell_cancelled()
        elif not self._called_back:
            self._tell_the_others()
        if not self._called_back:
            self._invoke_callbacks()
        self._ring()
        self._all_told = True

    def _set_first(self, job: Job, receipt: Receipt) -> None:
        self._receipt = receipt
        self._job = None
        if job.cancelled:
            super().cancel()
            return
        try:
            receipt.raise_for_failure()
        except MailError as error:
            error.__traceback__ = None
            self.set_exception(error)
        else:
            self.set_result(receipt)

    def _invoke_callbacks(self) -> None:
        """Call back, as any future does when those who wait were told; but not in the middle of something, and once.

        The other one may be a thread that closes, or this one before an exception from outside came up.
        """
        self._ring()
        self._called_back = True
        keeper: Keeper | None = self.__dict__.pop("_keeper", None)  # in one step, which needs no lock
        if keeper is not None and self._done_callbacks:  # type: ignore[attr-defined]
            if self.cancelled():
                self._tell_cancelled()
            keeper.call_back(_call_back, [self], settling=True)

    def _ring(self) -> None:
        for bell in list(self._bells):
            bell.set()

    def _tell_cancelled(self) -> None:
        """Nobody will run it any more, so those who wait are told now."""
        with self._condition:
            if self._cancel_told:
                return
            if not self._cancel_begun:
                self._cancel_begun = True
                self.set_running_or_notify_cancel()
            else:
                self._tell_the_others()
            self._cancel_told = True

    def _tell_the_others(self) -> None:
        """Tell those who wait and were not told: an exception in the midst of `set_result` lets them wait for ever."""
        with self._condition:
            for waiter in self._waiters:
                if self not in waiter.finished_futures:
                    waiter.add_result(self)
                elif not getattr(waiter, "num_pending_calls", 0):
                    # It knows of this future, and perhaps was not woken. One that waits for others as well is let be:
                    # it would come back early.
                    waiter.event.set()


def _reentered() -> Reentered:
    return Reentered("a callback of the sender, or a signal handler in its midst, must not wait for a message of it")


def _call_back(future: SendFuture) -> None:
    super(SendFuture, future)._invoke_callbacks()  # type: ignore[misc]
