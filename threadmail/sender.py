"""Mail from many messages at once.

Owns the user's side of sending in parallel: `submit`, `send`, `send_all`, `send_each`, callbacks, and the sender's end,
at `close()`, at interpreter exit and after a fork. Guarantees: every message gets its receipt, whatever becomes of it;
an iterable is pulled by the caller's thread only, and no faster than messages leave; what a callback raises never turns
an accepted message into an error. Leaves lanes, retries and pace to `_dispatch`.
"""

from __future__ import annotations

import enum
import itertools
import logging
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import NamedTuple

from . import _exit
from ._batch import LAST_WORD, Batch
from ._deadline import NEVER, Deadline
from ._dispatch import Dispatcher
from ._guard import BornAnew
from ._jobs import Job, SendFuture
from ._lane import note
from .client import Client, Message
from .config import ServerConfig
from .envelope import Envelope
from .errors import Closed, MailError, Outcome, Reentered, detach
from .receipt import Receipt, Report
from .retry import RetryPolicy
from .throttle import Throttle


class _Life(enum.Enum):
    OPEN = "open"
    CLOSED = "closed"


class Unsent(NamedTuple):
    """A message that `close()` cut short: `receipt.outcome` says whether it is surely not sent, or in doubt."""

    envelope: Envelope
    receipt: Receipt


@dataclass(frozen=True)
class SenderStats:
    """What a sender is doing, and has done.

    Attributes:
        queued: messages waiting for a lane.
        retrying: messages waiting for their next attempt.
        in_flight: messages that a lane works on.
        lanes: lanes running; connected: those with a connection.
        outcomes: settled messages by outcome.
        retries: attempts after the first.
        opened: connections made.
        closed: connections ended, by reason (see `ClientStats`).
    """

    queued: int = 0
    retrying: int = 0
    in_flight: int = 0
    lanes: int = 0
    connected: int = 0
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    retries: int = 0
    opened: int = 0
    closed: Mapping[str, int] = field(default_factory=dict)


class ThreadedSender(BornAnew):
    """Sends messages on several threads, each with a connection of its own.

    Nothing starts before the first message. Use it as a context manager, or call `close()`.

    Args:
        server: a `ServerConfig` or a URL for one.
        workers: lanes, and so connections, at most.
        queue_size: messages that may wait; a full queue makes the caller wait.
        retry: when to try again what was surely not sent.
        throttle: how many messages a second; may be shared with other senders.
        on_receipt: called with each receipt as it is there, on the thread that has it; what it raises is logged.
        rng: chance, for jitter.
    Raises:
        InvalidConfig: the URL is wrong.
    """

    def __init__(
        self,
        server: str | ServerConfig,
        *,
        workers: int = 4,
        queue_size: int = 1000,
        retry: RetryPolicy | None = None,
        throttle: Throttle | None = None,
        on_receipt: Callable[[Receipt], object] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config = ServerConfig.of(server)
        if workers < 1 or queue_size < 1:
            raise ValueError(f"workers and queue_size must be at least 1, not {workers} and {queue_size}")
        self.workers = workers
        self.queue_size = queue_size
        self.retry = retry or RetryPolicy()
        self.throttle = throttle or Throttle()
        self._on_receipt = on_receipt
        self._rng = rng or random.Random()
        self._closed_at_exit = False
        self._life = _Life.OPEN  # a closed sender is closed in a forked child as well
        self._reset()
        super().__init__()

    def _inherited(self) -> list[Client]:
        return self._dispatcher.clients()

    def _reset(self) -> None:
        # Also in a forked child, which begins with an empty queue: what the parent queued, the parent sends.
        self.throttle.enter_child(os.getpid())
        self._close_lock = threading.Lock()  # guards _life, and lets one thread at a time close
        self._dispatcher = Dispatcher(
            self.config,
            workers=self.workers,
            queue_size=self.queue_size,
            policy=self.retry,
            throttle=self.throttle,
            rng=self._rng,
            settled=self._settled,
        )
        if self._life is _Life.CLOSED:
            self._dispatcher.close(drain=False, end=NEVER)

    # ------------------------------------------------------------ one message

    def submit(self, message: Message, *, deadline: float | Deadline | None = None) -> SendFuture:
        """Queue one message, and return at once unless the queue is full.

        Args:
            message: an `EmailMessage` (or `Message`), the bytes of one, or an `Envelope`.
            deadline: seconds in which the message must be settled, waiting for a place in the queue, retries and all.
        Returns:
            A future: its result is the receipt (SENT or PARTIAL), its exception the `MailError` of a message not sent.
        Raises:
            InvalidEnvelope: the message is not fit to be sent.
            TimedOut: no place in the queue came free before the deadline.
            Closed: the sender is closed.
        """
        envelope = Envelope.of(message)
        dispatcher = self._here()
        job = Job(envelope, Deadline.after(deadline), dispatcher)
        try:
            dispatcher.put(job)
        except MailError as error:
            Receipt.not_sent(envelope, error)
            raise
        assert isinstance(job.future, SendFuture)
        return job.future

    def send(self, message: Message, *, deadline: float | Deadline | None = None) -> Receipt:
        """Send one message and wait for its receipt; as `Client.send`, with retries.

        Args:
            deadline: seconds that all of it may take.
        Raises:
            MailError: nobody got it, or (`outcome` IN_DOUBT) nobody knows; `receipt` has the details.
        """
        if self._dispatcher.in_lane:
            raise Reentered("a callback of the sender must not wait for the sender: use submit()")
        end = Deadline.after(deadline)
        future = self.submit(message, deadline=end)
        wait([future], end.remaining())
        if not future.done() and not future.cancel():
            wait([future], LAST_WORD)
            future.abort()
        if future.cancelled():
            assert future.receipt is not None
            return future.receipt.raise_for_failure()
        return future.result()

    def abort(self, future: SendFuture) -> bool:
        """End one message now: take it back, or drop the connection it is on.

        What is known then is told by the future: it is cancelled if nothing was written, else its error is `Aborted`,
        with outcome NOT_SENT or IN_DOUBT.

        Returns:
            False if the message was settled already.
        """
        return future.cancel() or future.abort()

    # ------------------------------------------------------------ many messages

    def send_all(
        self,
        messages: Iterable[Message],
        *,
        deadline: float | Deadline | None = None,
        progress: Callable[[int, int | None], object] | None = None,
    ) -> Report:
        """Send messages and wait for all of them. Raises for none of them: the report tells.

        The iterable is pulled lazily, so a generator of a million messages needs the memory of `queue_size`.

        Args:
            deadline: seconds in which all must be settled; what is not on the wire by then is not sent.
            progress: called on this thread with the number of settled messages and the total (None if unknown).
        Returns:
            One receipt for each message, in input order.
        """
        total = len(messages) if isinstance(messages, Sized) else None
        receipts: dict[int, Receipt] = {}
        for index, receipt in self._stream(messages, Deadline.after(deadline)):
            receipts[index] = receipt
            if progress is not None:
                self._shielded(progress, len(receipts), total)
        return Report(receipts[index] for index in range(len(receipts)))

    def send_each(self, messages: Iterable[Message], *, deadline: float | Deadline | None = None) -> Iterator[Receipt]:
        """Send messages and yield each receipt as it is there, in constant memory.

        Messages are pulled as long as receipts are: whoever stops iterating stops sending, but for what is queued.
        While much is queued a receipt may come some milliseconds late, with others; `on_receipt` is told at once.

        Args:
            deadline: seconds in which all must be settled.
        """
        for _, receipt in self._stream(messages, Deadline.after(deadline)):
            yield receipt

    def _stream(self, messages: Iterable[Message], end: Deadline) -> Iterator[tuple[int, Receipt]]:
        if self._dispatcher.in_lane:
            raise Reentered("a callback of the sender must not wait for the sender: use submit()")
        batch = Batch(self.queue_size, self.workers, end)
        failure: Exception | None = None
        source = iter(messages)
        for index in itertools.count():
            try:
                message = next(source)
            except StopIteration:
                break
            except Exception as exc:  # noqa: BLE001 - raised below, when those already submitted are settled
                failure = exc
                break
            refused = self._add(batch, index, message)
            if refused is not None:
                yield index, refused
            while len(batch) and batch.wants_asking:
                yield from batch.receipts()
        while len(batch):
            yield from batch.receipts()
        if failure is not None:
            raise failure

    def _add(self, batch: Batch, index: int, message: Message) -> Receipt | None:
        """Queue a message of a batch; returns its receipt if there is nothing to be queued."""
        envelope = None
        try:
            envelope = Envelope.of(message)
            dispatcher = self._here()
            job = batch.add(index, envelope, dispatcher)
            try:
                dispatcher.put(job)
            except BaseException:
                batch.forget(index)
                raise
        except Closed as closed:
            Receipt.not_sent(envelope, closed)
            raise
        except MailError as error:
            receipt = Receipt.not_sent(envelope, error)
            detach(error)
            self._announce(receipt)
            return receipt
        return None

    # ------------------------------------------------------------ receipts

    def _settled(self, job: Job) -> None:
        assert job.receipt is not None
        try:
            if not job.told:
                job.told = True
                self._announce(job.receipt)
        finally:
            self._shielded(job.future.settle, job.receipt)

    def _announce(self, receipt: Receipt) -> None:
        if self._on_receipt is not None:
            self._shielded(self._on_receipt, receipt)

    def _shielded(self, callback: Callable[..., object], *details: object) -> None:
        try:
            callback(*details)
        except Exception:  # noqa: BLE001 - the log says so
            note(logging.ERROR, "a callback raised; the message is not concerned", exc_info=True)

    # ------------------------------------------------------------ the end

    def close(self, *, drain: bool = True, timeout: float | None = 30.0) -> list[Unsent]:
        """Take no more messages, send what is queued, end all lanes. May be called twice, and from any thread.

        Args:
            drain: work the queue off; False takes it back and finishes only what is on the wire.
            timeout: seconds for that. What is still queued then is taken back, what is on the wire is dropped.
        Returns:
            What was cut short, each with the receipt that its future got as well. Empty when all went well.
        Raises:
            Reentered: called by a callback, which would wait for itself.
            KeyboardInterrupt: and whatever else ends the waiting from outside; the sender is closed then, as if
                `timeout` had passed, and the log says what was cut short.
        """
        dispatcher = self._here(opened=False)
        if dispatcher.in_lane:
            raise Reentered("a callback of the sender must not close it")
        end = Deadline.after(timeout)
        with self._close_lock:
            if self._life is _Life.CLOSED:
                return []
            try:
                cut = dispatcher.close(drain=drain, end=end)
            except BaseException:  # Ctrl-C while it waits: now
                unsent = _unsent(dispatcher.close(drain=False, end=Deadline.after(0)))
                self._life = _Life.CLOSED
                if unsent:
                    note(logging.ERROR, "the closing was interrupted, and %s", _exit.in_words(unsent))
                raise
            self._life = _Life.CLOSED
        return _unsent(cut)

    def __enter__(self) -> ThreadedSender:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        # An exception in the block (Ctrl-C, say) does not wait for a queue that may take hours.
        unsent = self.close() if kind is None else self.close(drain=False)
        if unsent:
            note(logging.ERROR, "%s when the sender was closed", _exit.in_words(unsent))

    def stats(self) -> SenderStats:
        """What the sender is doing now, and has done so far."""
        return SenderStats(*self._here(opened=False).numbers())

    def __repr__(self) -> str:
        return f"<ThreadedSender to {self.config.url}, at most {self.workers} lanes>"

    def __reduce__(self) -> str:
        raise TypeError("a ThreadedSender holds threads and connections and cannot be pickled: send its config")

    # ------------------------------------------------------------ exit and fork

    def _here(self, *, opened: bool = True) -> Dispatcher:
        """The dispatcher of this process."""
        self._check_process()
        if opened and not self._closed_at_exit:
            self._closed_at_exit = True
            _exit.close_at_exit(self)
        return self._dispatcher


def _unsent(cut_short: Iterable[Job]) -> list[Unsent]:
    return [
        Unsent(job.envelope, job.receipt)
        for job in cut_short
        if job.receipt is not None and job.receipt.outcome is not Outcome.SENT
    ]
