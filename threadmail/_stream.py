"""Many messages in, their receipts out.

Owns `ReceiptStream`, the iterator behind `send_all` and `send_each`: it pulls messages from the caller's iterable, on
the caller's thread, as fast as there are places for them, and gives each receipt as it is there. Guarantees: constant
memory; an interrupt (Ctrl-C) while it waits loses nothing: who goes on iterating gets every receipt that is still to
come.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial
from itertools import islice

from ._collector import Collector
from ._deadline import Deadline, out_of_time
from ._dispatcher import Dispatcher
from ._job import Job, JobState
from .client import Message
from .envelope import Envelope
from .errors import Aborted, Closed, MailError, Reentered, TimedOut, detach
from .receipt import Receipt

#: Messages of a list that are queued in one step. More would keep the workers waiting for the first of them.
_AT_ONCE = 32


class _Nothing(enum.Enum):
    """Not None, which an iterable may give by mistake."""

    PULLED = enum.auto()


class ReceiptStream(Iterator[Receipt]):
    """Receipts of many messages, each as it is there.

    An iterator, and not a generator, so that an exception from outside does not end it: after a `KeyboardInterrupt` go
    on iterating, or call `stop()` first, and no receipt is lost.

    Args:
        dispatcher: gives the dispatcher of this process.
        refused: told of the receipt of a message that was not queued.
    """

    def __init__(
        self,
        messages: Iterable[Message],
        collector: Collector,
        end: Deadline,
        dispatcher: Callable[[], Dispatcher],
        refused: Callable[[Receipt], None],
    ) -> None:
        self._collector = collector
        self._end = end
        self._dispatcher = dispatcher
        self._refused = refused
        # A list can be taken in pieces; who gives a generator wants each of its messages to leave as it is made.
        self._at_once = _AT_ONCE if isinstance(messages, (list, tuple)) else 1
        self._source: Iterator[Message] | None = iter(messages)
        self._count = 0  # messages pulled
        self._pulled: Message | _Nothing = _Nothing.PULLED  # the last of them, as long as nothing was made of it
        self._held: deque[tuple[int, Job]] = deque()  # waiting for their places
        self._stopped = False
        self._failure: BaseException | None = None  # what the iterable raised, or that the sender was closed

    def __iter__(self) -> ReceiptStream:
        return self

    def __next__(self) -> Receipt:
        return self.next_indexed()[1]

    def next_indexed(self) -> tuple[int, Receipt]:
        """The next receipt, and which message it is of.

        Raises:
            StopIteration: there are no more.
            Reentered: called by a callback of the sender, and there is none yet.
            Exception: what the iterable raised, or Closed, when those that were pulled are settled.
        """
        collector = self._collector
        came = collector.came
        while not came:
            if collector.look() and came:
                break
            if self._dispatcher().must_not_wait:
                raise Reentered("a callback of the sender must not wait for the receipts of a stream")
            if self._held or self._source is not None or self._pulled is not _Nothing.PULLED:
                self._feed()
            elif len(collector):
                collector.wait()
            else:
                failure, self._failure = self._failure, None
                if failure is not None:
                    raise failure
                raise StopIteration
        first = came[0]
        del came[0]
        return first

    def stop(self) -> None:
        """Pull no more messages, and take back what no worker has begun. What is still to come tells of all of them."""
        self._stopped, self._source = True, None
        self._refuse_held(_stopped)
        self._collector.take_back(_stopped)

    # ------------------------------------------------------------ feeding

    def _feed(self) -> None:
        """Queue some messages; or wait, where there is no place."""
        collector = self._collector
        if not self._held:
            if collector.room <= 0:
                collector.wait()
                return
            self._pull(min(self._at_once, collector.room))
        try:
            if self._held and not self._queue_some():
                self._wait_in_line()
        except BaseException:
            # From outside, perhaps before the waiting began: who never comes back would bar the line for all others.
            self._dispatcher().leave_line(collector)
            raise

    def _pull(self, most: int) -> None:
        """Make jobs of the next messages."""
        if self._pulled is not _Nothing.PULLED:
            self._make_job()
        if self._source is None:
            return
        pulled = 0
        try:
            for message in islice(self._source, most):
                self._pulled = message  # from here on it is not lost, whatever comes in between
                pulled += 1
                self._make_job()
        except Exception as exc:  # noqa: BLE001 - raised when those already queued are settled
            self._source, self._failure = None, exc
            return
        if pulled < most:
            self._source = None

    def _make_job(self) -> None:
        message, index = self._pulled, self._count
        assert message is not _Nothing.PULLED
        envelope = None
        try:
            envelope = Envelope.of(message)
            if self._stopped:
                raise _stopped()  # it was pulled before, and who pulled it was interrupted
            if self._end.passed:
                raise _too_late()
            dispatcher = self._dispatcher()
            job = self._collector.job(index, envelope, dispatcher)
            # Plain statements, between which nothing comes from outside.
            self._collector.under_way[index] = job, dispatcher
            self._held += ((index, job),)
            self._count += 1
            self._pulled = _Nothing.PULLED
        except MailError as error:
            self._count += 1
            self._pulled = _Nothing.PULLED
            self._refuse(index, envelope, error)

    def _queue_some(self) -> bool:
        """Queue those held, as far as there are places. Returns whether any left."""
        held = self._held
        before = len(held)
        try:
            self._dispatcher().put_some(held, self._collector)
        except Closed as closed:
            # Those have their receipts, as all that were pulled; the exception tells of those that were not.
            self._source = None
            self._failure = self._failure or closed
            self._refuse_held(partial(copy, closed))
            return True
        while held and held[0][1].state is not JobState.NEW:
            del held[0]
        return len(held) < before

    def _wait_in_line(self) -> None:
        """Wait until it is our turn and some are queued, until there is a receipt, or until it is too late.

        Whoever is woken keeps his place until he has looked: three that left the line, and joined it again at its end,
        would wake each other for ever, and nobody would ever find it empty. But nobody keeps it while somebody looks at
        receipts: those behind would wait for him.
        """
        collector = self._collector
        while not (collector.came or self._end.passed):
            collector.wait()
            if self._end.passed or (not collector.came and self._queue_some()):
                break
        self._dispatcher().leave_line(collector)
        if self._end.passed:
            self._refuse_held(_too_late)

    def _refuse_held(self, error: Callable[[], MailError]) -> None:
        while self._held:
            index, job = self._held[-1]
            if job.state is JobState.NEW:
                self._refuse(index, job.envelope, error())
            del self._held[-1]

    def _refuse(self, index: int, envelope: Envelope | None, error: MailError) -> None:
        """A message that is not queued has its receipt at once."""
        receipt = Receipt.not_sent(envelope, detach(error))
        self._collector.forget(index)
        self._collector.came += ((index, receipt),)
        self._refused(receipt)


def _too_late() -> TimedOut:
    return out_of_time("the deadline passed while waiting for a place in the queue")


def _stopped() -> Aborted:
    return Aborted("the sending was stopped before it was on the wire")
