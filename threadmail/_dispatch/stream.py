"""Many messages in, their receipts out.

Owns `ReceiptStream`, the iterator behind `send_all` and `send_each`: it pulls messages from the caller's iterable, on
the caller's thread, as fast as there are places for them, and gives each receipt as it is there. Guarantees: constant
memory; an interrupt (Ctrl-C) while it waits loses nothing: who goes on iterating gets every receipt that is still to
come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial
from itertools import islice

from .._runtime.deadline import Deadline, out_of_time
from .._runtime.outside import is_of_a_handler
from .._runtime.process import here
from ..client import Message
from ..envelope import Envelope
from ..errors import Aborted, Closed, MailError, QueueFull, Reentered, TimedOut, detach
from ..receipt import Receipt
from .collector import Collector
from .dispatcher import Dispatcher
from .job import Job, JobState

#: Messages of a list that are queued in one step. More would keep the workers waiting for the first of them.
_AT_ONCE = 32


class ReceiptStream(Iterator[Receipt]):
    """Receipts of many messages, each as it is there.

    An iterator, and not a generator, so that an exception from outside does not end it: after a `KeyboardInterrupt` go
    on iterating, or call `stop()` first, and no receipt is lost. A signal handler may call `stop()` in the middle of
    any step. So each message moves on in plain statements, between which nothing comes up: from what was pulled to
    what is held, and from there into the queue, or to those that are refused.

    Args:
        dispatcher: gives the dispatcher of this process.
        tell: tells of receipts of messages that were not queued. It takes each out in the moment before.
        to_the_end: of a closed sender the rest of the messages is refused one by one; else Closed is raised.
    """

    def __init__(
        self,
        messages: Iterable[Message],
        collector: Collector,
        end: Deadline,
        dispatcher: Callable[[], Dispatcher],
        tell: Callable[[deque[Receipt]], None],
        *,
        to_the_end: bool = False,
    ) -> None:
        self._collector = collector
        self._end = end
        self._dispatcher = dispatcher
        self._tell = tell
        self._to_the_end = to_the_end
        # A list can be taken in pieces; who gives a generator wants each of its messages to leave as it is made.
        self._at_once = _AT_ONCE if isinstance(messages, (list, tuple)) else 1
        self._source: Iterator[Message] | None = iter(messages)
        self._count = 0  # messages that something was made of
        self._pulled: deque[Message] = deque()  # those that nothing was made of yet
        self._held: deque[tuple[int, Job]] = deque()  # waiting for their places
        self._untold: deque[Receipt] = deque()  # of those that were refused, as long as nobody was told
        self._stopped = False
        self._process = here()
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
            MailError: called in a forked child; the messages are the parent's.
            Exception: what the iterable raised, or Closed, when those that were pulled are settled.
        """
        collector = self._collector
        if self._process is not here():
            raise MailError("these messages are sent by the process that gave them in, and their receipts come there")
        came = collector.came
        self._tell_refused()
        while not came:
            if collector.look() and came:
                break
            if self._dispatcher().must_not_wait:
                raise Reentered("a callback of the sender must not wait for the receipts of a stream")
            if self._held or self._pulled or self._source is not None:
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
        if self._process is not here():
            return  # a forked child: the messages are its parent's, whose locks are not to be touched here
        with self._dispatcher().entry:
            self._stopped, self._source = True, None
            self._refuse_held(_stopped)
            self._collector.take_back(_stopped)
            self._dispatcher().leave_line(self._collector)
            self._collector.wake()  # it may be the thread under this signal handler that waits for a place

    # ------------------------------------------------------------ feeding

    def _feed(self) -> None:
        """Queue some messages; or wait, where there is no place."""
        collector = self._collector
        self._drop_queued()
        if not self._held:
            if not self._pulled:
                room = collector.room
                if room <= 0:
                    collector.wait()
                    return
                self._pull(min(self._at_once, room))
            while self._pulled:
                self._make_job()
        try:
            if self._stopped:
                self._refuse_held(_stopped)
            elif self._end.passed:
                self._refuse_held(_too_late)
            elif self._held and not self._queue_some():
                self._wait_in_line()
            if self._stopped:
                self._dispatcher().leave_line(collector)  # a signal handler did it as this one was joining
        except BaseException:
            # From outside, perhaps before the waiting began: who never comes back would bar the line for all others.
            self._dispatcher().leave_line(collector)
            raise

    def _pull(self, most: int) -> None:
        """Take the next messages. None is lost, whatever comes up: those that the iterable gave before are there."""
        source, pulled = self._source, self._pulled
        if source is None:
            return
        before = len(pulled)
        try:
            pulled += islice(source, most)
        except Exception as exc:
            if is_of_a_handler(exc):
                raise  # now, as Ctrl-C; who goes on iterating gets what the iterable has left
            self._source, self._failure = None, exc  # raised when those already queued are settled
            return
        if len(pulled) < before + most:
            self._source = None

    def _make_job(self) -> None:
        """Make a job of the first that was pulled, or refuse it."""
        index, message = self._count, self._pulled[0]
        envelope = message if isinstance(message, Envelope) else None
        try:
            envelope = Envelope.of(message)
            dispatcher = self._dispatcher()
            job = self._collector.job(index, envelope, dispatcher)
        except MailError as error:
            self._refuse_pulled(index, envelope, error)
        except Exception as exc:
            # A time limit of a job queue, say, or no memory: it is not hidden. But who goes on gets past this message,
            # whose own fault it may be.
            reason = f"{type(exc).__name__} came up before the message was queued"
            self._refuse_pulled(index, envelope, MailError(reason, transient=True))
            raise
        else:
            # Plain statements, between which nothing comes from outside.
            self._collector.under_way[index] = job, dispatcher
            self._held += ((index, job),)
            self._count += 1
            del self._pulled[0]

    def _queue_some(self) -> bool:
        """Queue those held, as far as there are places. Returns whether any left."""
        held = self._held
        before = len(held)
        try:
            self._dispatcher().put_some(held, self._collector)
        except QueueFull as full:
            self._refuse_held(partial(copy, full))
            return True
        except Closed as closed:
            # Those have their receipts, as all that were pulled; the exception tells of those that were not.
            if not self._to_the_end:
                self._source = None
                self._failure = self._failure or closed
            self._refuse_held(partial(copy, closed))
            return True
        self._drop_queued()
        return len(held) < before

    def _drop_queued(self) -> None:
        """Let go of those that are not waiting for a place any more."""
        held = self._held
        while True:
            if not held or held[0][1].state is JobState.NEW:
                break
            del held[0]

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

    def _refuse_held(self, error: Callable[[], MailError]) -> None:
        collector = self._collector
        for index, job in list(self._held):
            receipt = Receipt.not_sent(job.envelope, detach(error()))
            # Plain statements again. In between, a signal handler may have refused it; or has come up in the middle of
            # its being queued, where whoever queues it looks once more.
            if job.state is JobState.NEW:
                job.state = JobState.DONE
                job.receipt = receipt
                del collector.under_way[index]
                collector.came += ((index, receipt),)
                self._untold += (receipt,)
        self._drop_queued()
        self._tell_refused()

    def _refuse_pulled(self, index: int, envelope: Envelope | None, error: MailError) -> None:
        receipt = Receipt.not_sent(envelope, detach(error))
        self._collector.came += ((index, receipt),)
        self._untold += (receipt,)
        self._count += 1
        del self._pulled[0]
        self._tell_refused()

    def _tell_refused(self) -> None:
        """Tell of what was refused; its receipt is there. Who is interrupted here tells of the others the next time."""
        if self._untold:
            self._tell(self._untold)


def _too_late() -> TimedOut:
    return out_of_time("the deadline passed while waiting for a place in the queue")


def _stopped() -> Aborted:
    return Aborted("the sending was stopped before it was on the wire")
