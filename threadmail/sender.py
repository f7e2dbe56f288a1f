"""Mail from many messages at once.

Owns the user's side of sending in parallel: `submit`, `send`, `send_all`, `send_each`, callbacks, and the sender's end,
at `close()`, at interpreter exit and after a fork. Guarantees: every message gets its receipt, whatever becomes of it;
an iterable is pulled by the caller's thread only, and no faster than messages leave; what a callback raises never turns
an accepted message into an error. Leaves workers, retries and limits to `_dispatch.dispatcher`.
"""

from __future__ import annotations

import logging
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Sized
from typing import Any, NamedTuple

from ._connection.batch import require_many
from ._connection.chance import chance
from ._dispatch import at_exit as _exit
from ._dispatch.collector import Collector
from ._dispatch.dispatcher import Dispatcher
from ._dispatch.job import Job, SendFuture
from ._dispatch.sender_stats import SenderStats as SenderStats
from ._dispatch.stream import ReceiptStream
from ._dispatch.worker import BeforeFinal, note, seen_from_outside
from ._runtime.deadline import NEVER, Deadline
from ._runtime.guard import BornAnew
from ._runtime.life import Life
from ._runtime.numbers import require_whole
from ._runtime.outside import is_of_a_handler
from .client import Message
from .config import ServerConfig
from .envelope import Envelope
from .errors import Aborted, InvalidConfig, MailError, Outcome, Reentered, printable
from .receipt import Receipt, Report
from .retry import RetryPolicy
from .throttle import Throttle


class Unsent(NamedTuple):
    """A message that `close()` cut short: `receipt.outcome` says whether it is surely not sent, or in doubt."""

    envelope: Envelope
    receipt: Receipt


class ThreadedSender(BornAnew):
    """Sends messages on several threads, each with a connection of its own.

    Nothing starts before the first message. Use it as a context manager, or call `close()`.

    Args:
        server: a `ServerConfig` or a URL for one.
        workers: threads, and so connections, at most.
        queue_size: messages that may wait; a full queue makes the caller wait.
        retry: when to try again what was surely not sent.
        throttle: how many messages a second; may be shared with other senders.
        on_receipt: called with each receipt as it is there, once for each message whatever becomes of it (taken back,
            too late, called off; of a batch also what is refused at the door; not what `submit` itself raises), on the
            thread that has it and after the future is settled; what it raises is logged. The place to record what is to
            survive a Ctrl-C.
        before_final: called with the transaction and the tag of a message as the very last thing before the write that
            holds its end of data, on a worker's thread: from there on it may be delivered. If it raises, the message is
            surely not sent. Whoever keeps the transaction can ask it what is known (`receipt()`).
        rng: chance, for jitter.
    Raises:
        InvalidConfig: the URL is wrong, or a setting.
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
        before_final: BeforeFinal | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config: ServerConfig = ServerConfig.of(server)
        require_whole("workers", workers)
        require_whole("queue_size", queue_size)
        if workers < 1 or queue_size < 1:
            raise InvalidConfig(f"workers and queue_size must be at least 1, not {workers} and {queue_size}")
        for name, given, kind in (("retry", retry, RetryPolicy), ("throttle", throttle, Throttle)):
            if given is not None and not isinstance(given, kind):
                raise InvalidConfig(f"{name} is no {kind.__name__} but a {type(given).__name__}")
        for name, hook in (("on_receipt", on_receipt), ("before_final", before_final)):
            if hook is not None and not callable(hook):
                raise InvalidConfig(f"{name} is no callable but a {type(hook).__name__}")
        self.workers = workers
        self.queue_size = queue_size
        self.retry: RetryPolicy = retry or RetryPolicy()
        self.throttle: Throttle = throttle or Throttle()
        self._on_receipt = on_receipt or _nobody
        self._before_final = before_final
        self._rng = chance(rng)
        self._closed_at_exit = False
        self._life = Life.OPEN  # a closed sender is closed in a forked child as well
        self._begin(os.getpid(), self._new())
        super().__init__()

    def _inherited(self, pid: int) -> Dispatcher | None:
        return None if self._ready_in == pid else self._dispatcher

    def _made_anew(self, pid: int, inherited: Dispatcher) -> Dispatcher:
        # Each is told now: where no hook runs, nobody else would close their connections, which are the parent's.
        for client in inherited.inherited():
            client.enter_child(pid)
        return self._new()

    def _begin(self, pid: int, fresh: Dispatcher) -> None:
        if self._ready_in == pid:
            return
        self._dispatcher = fresh
        self._ready_in = pid

    def _new(self) -> Dispatcher:
        # Also in a forked child, which begins with an empty queue: what the parent queued, the parent sends.
        self.throttle.enter_child(os.getpid())
        dispatcher = Dispatcher(
            self.config,
            workers=self.workers,
            queue_size=self.queue_size,
            policy=self.retry,
            throttle=self.throttle,
            rng=self._rng,
            settle=self._settle,
            announce=self._announce_job,
            before_final=self._before_final,
        )
        if self._life is Life.CLOSED:
            dispatcher.close(drain=False, end=NEVER)
        return dispatcher

    # ------------------------------------------------------------ one message

    def submit(self, message: Message, *, deadline: float | Deadline | None = None, tag: Any = None) -> SendFuture:
        """Queue one message, and return at once unless the queue is full.

        Args:
            message: an `EmailMessage` (or `Message`), the bytes of one, or an `Envelope`.
            deadline: seconds in which the message must be settled, waiting for a place in the queue, retries and all.
                Nothing of it is sent later. Who asks its future for the result is told by then; callbacks come when a
                worker comes by, which may be later while all of them stand before a slow server.
            tag: anything; the receipt carries it back.
        Returns:
            A future: its result is the receipt (SENT or PARTIAL), its exception the `MailError` of a message not sent.
        Raises:
            InvalidEnvelope: the message is not fit to be sent.
            TimedOut: no place in the queue came free before the deadline.
            QueueFull: there is none, and the caller must not wait for one: a callback of this sender, or a signal
                handler that came up in the middle of its own thread's call of it.
            Closed: the sender is closed.
        """
        envelope = Envelope.of(message)
        dispatcher = self._here()
        job = Job(envelope, Deadline.after(deadline), dispatcher, tag=tag)
        future = job.future
        try:
            dispatcher.put(job)
        except MailError as error:
            receipt = Receipt.not_sent(envelope, error)
            if tag is not None:
                receipt.__dict__["tag"] = tag
            raise
        return future

    def send(self, message: Message, *, deadline: float | Deadline | None = None, tag: Any = None) -> Receipt:
        """Send one message and wait for its receipt; as `Client.send`, with retries.

        Args:
            deadline: seconds that all of it may take.
            tag: anything; the receipt carries it back.
        Raises:
            MailError: nobody got it, or (`outcome` IN_DOUBT) nobody knows; `receipt` has the details.
        """
        self._require_no_callback()
        return self.submit(message, deadline=deadline, tag=tag).result()

    def abort(self, future: SendFuture) -> bool:
        """End one message now: take it back, or drop the connection it is on.

        In a window, one behind others whose content was sent is ended when those ahead of it are settled: without their
        connection they would be in doubt.

        What is known then is told by the future: it is cancelled if nothing was written, else its error is `Aborted`,
        with outcome NOT_SENT or IN_DOUBT.

        Returns:
            False if the message was settled already.
        """
        return not future.done() and (future.cancel() or future.abort())

    # ------------------------------------------------------------ many messages

    def send_all(
        self,
        messages: Iterable[Message],
        *,
        deadline: float | Deadline | None = None,
        progress: Callable[[int, int | None], object] | None = None,
    ) -> Report:
        """Send messages and wait for all of them. Raises for none of them: the report tells, also where the sender is
        closed meanwhile.

        The iterable is pulled lazily, so a generator of a million messages needs the memory of `queue_size`.

        Args:
            deadline: seconds in which all must be settled; what is not on the wire by then is not sent.
            progress: called on this thread with the number of settled messages and the total (None if unknown).
        Returns:
            One receipt for each message, in input order.
        Raises:
            TypeError: it is one message, and no iterable of them.
            Exception: what the iterable raised, once the messages it gave before are settled: they may have been sent,
                and `on_receipt` alone has been told so; or, at once, what comes from outside, such as a time limit of a
                job queue, while those that are queued go on.
        """
        require_many(messages, "send_all")
        total = len(messages) if isinstance(messages, Sized) else None
        receipts: dict[int, Receipt] = {}
        stream = self._stream(messages, deadline, to_the_end=True)
        try:
            while True:
                index, receipts[index] = stream.next_indexed()
                if progress is not None:
                    try:
                        progress(len(receipts), total)
                    except Exception as exc:  # noqa: BLE001 - the log says so
                        _not_hidden(exc)
                        _complain()
        except StopIteration:
            return Report(receipts[index] for index in range(len(receipts)))

    def send_each(self, messages: Iterable[Message], *, deadline: float | Deadline | None = None) -> ReceiptStream:
        """Send messages and give each receipt as it is there, in constant memory.

        Messages are pulled as long as receipts are: whoever stops iterating stops sending, but for what is queued.
        While much is queued a receipt may come some milliseconds late, with others; `on_receipt` is told at once.

        What comes back is an iterator that an exception does not end. After Ctrl-C go on iterating and nothing is lost;
        `stop()` first takes back what is queued::

            receipts = sender.send_each(messages)
            try:
                for receipt in receipts:
                    record(receipt)
            except KeyboardInterrupt:
                receipts.stop()
                for receipt in receipts:  # of all that were handed over
                    record(receipt)

        Args:
            deadline: seconds in which all must be settled.
        Raises:
            TypeError: it is one message, and no iterable of them.

        While it is iterated:

        Raises:
            Closed: the sender was closed meanwhile; when those that were pulled are settled, and their receipts given.
            Exception: what the iterable raised, just then; or, at once, what comes from outside.
        """
        require_many(messages, "send_each")
        return self._stream(messages, deadline)

    def _stream(
        self, messages: Iterable[Message], deadline: float | Deadline | None, *, to_the_end: bool = False
    ) -> ReceiptStream:
        self._require_no_callback()
        end = Deadline.after(deadline)
        collector = Collector(self.queue_size, self.workers, end)
        return ReceiptStream(messages, collector, end, self._here, self._announce_refused, to_the_end=to_the_end)

    def _require_no_callback(self) -> None:
        if self._dispatcher.must_not_wait:
            raise Reentered("a callback of the sender must not wait for the sender: use submit()")

    # ------------------------------------------------------------ receipts

    # The one path by which every message is told: first who waits for it, then who watches, then the log.

    def _settle(self, job: Job) -> None:
        receipt = job.receipt
        assert receipt is not None
        if job.tag is not None:
            receipt.__dict__["tag"] = job.tag  # nobody has seen it yet
        try:
            job.completion.settle(job, receipt)
        except Exception as exc:
            _not_hidden(exc)
            if not job.completion.all_told:
                raise  # there is no memory: whoever tells comes again
            _complain()

    def _announce_job(self, job: Job) -> None:
        if job.told:
            return
        receipt, callback = job.receipt, self._on_receipt
        assert receipt is not None
        try:
            # Nothing can come up between these two: whatever interrupts this comes before the mark, and the message is
            # told of again, or it comes to the callback itself, which is called once.
            job.told = True
            callback(receipt)
        except Exception as exc:  # noqa: BLE001 - the log says so
            _not_hidden(exc)
            _complain()
        _log_unsent(receipt)

    def _announce_refused(self, receipts: deque[Receipt]) -> None:
        """Tell of what was refused at the door. Each is taken out in the moment before: nobody is told of it twice."""
        dispatcher = self._here(opened=False)
        with dispatcher.entry:
            dispatcher.call_back(self._announce_first, [receipts] * len(receipts))

    def _announce_first(self, receipts: deque[Receipt]) -> None:
        if not receipts:
            return  # a signal handler has
        receipt, callback = receipts[0], self._on_receipt
        try:
            del receipts[0]  # see `_announce_job`
            callback(receipt)
        except Exception as exc:  # noqa: BLE001 - the log says so
            _not_hidden(exc)
            _complain()
        _log_unsent(receipt)

    # ------------------------------------------------------------ the end

    def close(self, *, drain: bool = True, timeout: float | None = 30.0) -> list[Unsent]:
        """Take no more messages, send what is queued, end all workers.

        May be called twice, from any thread, and by a signal handler: another call may shorten what the first one
        allowed (`drain=False`, a smaller `timeout`), for all of them, and never lengthen it.

        Args:
            drain: work the queue off; False takes it back and finishes only what is on the wire. (Where Reentered is
                raised, the call that sees it through does so.)
            timeout: seconds for that. What is still queued then is taken back, what is on the wire is dropped; the
                threads get up to ten seconds more to come to their end, for a dial or a callback may not be ended.
        Returns:
            What was cut short, each with the receipt that its future got as well; where a callback or a hook kept a
            thread from coming to its end, with what is known by now. Empty when all went well.
        Raises:
            Reentered: called by a callback, or by a signal handler that came up in the middle of a call of this sender
                or of `concurrent.futures.wait`: it would wait for itself. The closing has begun, nothing more is taken,
                and another call sees it through. But a finaliser in the middle of a worker's step must not call its
                sender at all, and has begun nothing.
            KeyboardInterrupt: and whatever else ends the waiting from outside; the sender is closed then, as if
                `timeout` had passed, and the log says what was cut short.
        """
        dispatcher = self._here(opened=False)
        end = Deadline.after(timeout)
        try:
            cut = dispatcher.close(drain=drain, end=end)
        except Reentered:
            raise
        except BaseException:  # Ctrl-C while it waits: now
            dispatcher.close(drain=False, end=Deadline.after(0))
            unsent = _unsent(dispatcher.cut_short)
            self._life = Life.CLOSED
            if unsent:
                note(logging.ERROR, "the closing was interrupted, and %s", _exit.in_words(unsent))
            raise
        self._life = Life.CLOSED
        _exit.forget(self)
        return _unsent(cut)

    def _part(self, *, drain: bool, timeout: float | None) -> None:
        """At exit: the first half of `close`, which sees it through."""
        self._here(opened=False).part(drain=drain, end=Deadline.after(timeout))

    def __enter__(self) -> ThreadedSender:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        # An exception in the block (Ctrl-C, say) does not wait for a queue that may take hours.
        unsent = self.close() if kind is None else self.close(drain=False)
        if unsent:
            note(logging.ERROR, "%s when the sender was closed", _exit.in_words(unsent))

    def stats(self) -> SenderStats:
        """What the sender is doing now, and has done so far."""
        return self._here(opened=False).stats()

    def __repr__(self) -> str:
        return f"<ThreadedSender to {self.config.url}, at most {self.workers} workers>"

    def __reduce__(self) -> str:
        raise TypeError("a ThreadedSender holds threads and connections and cannot be pickled: send its config")

    # ------------------------------------------------------------ exit and fork

    def _here(self, *, opened: bool = True) -> Dispatcher:
        """The dispatcher of this process."""
        self._check_process()
        if opened and not self._closed_at_exit:
            _exit.close_at_exit(self)
            self._closed_at_exit = True
        return self._dispatcher


def _nobody(_: Receipt) -> None:
    """In place of an `on_receipt` that is not there."""


def _not_hidden(exc: Exception) -> None:
    """Raise it once more if it only struck in a callback: the time limit of who called us, say, whose signal came."""
    if is_of_a_handler(exc):
        raise exc


def _complain() -> None:
    note(logging.ERROR, "a callback raised; the message is not concerned", exc_info=True)


def _log_unsent(receipt: Receipt) -> None:
    if receipt.outcome is not Outcome.SENT and receipt.outcome is not Outcome.PARTIAL:
        # INFO: its future or its report says it to whoever asks. A handler that mails what is logged would else mail of
        # each message that could not be sent. The Message-ID is what its author wrote, and may hold what drives a
        # terminal.
        note(logging.INFO, "message %s: %s", printable(receipt.message_id or "without Message-ID"), receipt)


def _unsent(cut_short: Iterable[Job]) -> list[Unsent]:
    """What has not arrived of what was cut short; of one whose worker does not let go of it, what is known by now."""
    unsent = []
    for job in cut_short:
        receipt = seen_from_outside(job, Aborted("the sender was closed while it was under way"))
        if receipt is None or receipt.outcome is Outcome.SENT:
            continue
        if job.tag is not None:
            receipt.__dict__["tag"] = job.tag
        unsent.append(Unsent(job.envelope, receipt))
    return unsent
