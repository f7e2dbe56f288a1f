"""`threadmail send`: from files to delivered mail.

Owns the run of one mailing: reading a message, handing it to the sender, taking note of what became of it. Guarantees:
a bounded number of messages, and of octets, is in hand however many there are; a bad file costs nobody else; a message
that was handed over is accounted for, also when Ctrl-C comes in between.
"""

from __future__ import annotations

import argparse
import io
import queue
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from .._dispatch.job import SendFuture
from .._message.address import mailbox, sender_mailbox
from .._runtime.deadline import Deadline, now, out_of_time
from ..envelope import Envelope
from ..errors import CONNECTING, InvalidAddress, MailError, Outcome
from ..receipt import Receipt
from ..retry import RetryPolicy
from ..sender import ThreadedSender
from . import sources
from .exit_codes import Exit, Failure
from .ledger import Ledger
from .output import Output
from .server import server_of
from .signals import Signals
from .sources import STDIN, Item

#: Messages, and octets, that may wait or be under way at once.
MOST_MESSAGES = 1000
MOST_OCTETS = 64 * 1024 * 1024

#: Seconds to finish what is on the wire when the run is called off, before the connections are dropped.
GRACE = 30.0

#: Seconds that a message on the wire has after the deadline to say how it stands.
LAST_WORD = 2.0

#: Futures as they are settled; None is a signal.
News: TypeAlias = "queue.SimpleQueue[SendFuture | None]"

#: No wait is longer, in seconds: not every platform lets a signal end one.
TICK = 0.5


def run(options: argparse.Namespace, out: Output) -> Exit:
    """Send what the options name."""
    paths = options.path or ([] if sys.stdin is None or sys.stdin.isatty() else [STDIN])
    if not paths:
        raise Failure(Exit.USAGE, "nothing to send: name files or folders, or pipe a message in")
    _require_addresses(options)
    stdin = sys.stdin.buffer if sys.stdin is not None else io.BytesIO()
    total = sources.count(paths) if out.interactive else None
    # A dry run needs no server, but if one is named it had better be right.
    config = None if options.dry_run and options.server is None else server_of(options.server, "--server URL")
    ledger = Ledger(out, None if options.dry_run else config, as_json=options.json, verbose=options.verbose)
    if options.dry_run:
        with out.progress("Checking", total) as ledger.meter:
            for item in sources.items(paths, stdin):
                envelope = _envelope(item, options, ledger)
                if envelope is not None:
                    ledger.fit(item.name, envelope)
        return ledger.finish()
    assert config is not None
    news: News = queue.SimpleQueue()
    retry = RetryPolicy(attempts=options.attempts)
    settings = {"workers": options.workers, "queue_size": MOST_MESSAGES, "throttle": options.rate}
    with Signals(lambda: news.put(None)) as signals, ThreadedSender(config, retry=retry, **settings) as sender:
        mailing = Mailing(sender, ledger, signals, news, Deadline.after(options.deadline))
        with out.progress("Sending", total) as ledger.meter:
            stopped = mailing.run(sources.items(paths, stdin), options)
            if signals.count:
                mailing.call_off(out)
        return ledger.finish(stopped, signals.exit if signals.count else None)


def _require_addresses(options: argparse.Namespace) -> None:
    """Find out now that an address is none, not with each message."""
    try:
        if options.sender is not None:
            sender_mailbox(options.sender)
        for address in options.to or ():
            mailbox(address, "--to")
    except InvalidAddress as error:
        raise Failure(Exit.USAGE, str(error)) from error


class _InHand(NamedTuple):
    name: str
    octets: int


class Mailing:
    """Messages on their way. Everything here happens on the main thread; `news` is how the others reach it.

    Args:
        news: gets each future as it is settled, and None when a signal came.
        end: when all of it must be over.
    """

    def __init__(
        self,
        sender: ThreadedSender,
        ledger: Ledger,
        signals: Signals,
        news: News,
        end: Deadline,
    ) -> None:
        self._sender, self._ledger, self._signals, self._news, self._end = sender, ledger, signals, news, end
        self._in_hand: dict[SendFuture, _InHand] = {}
        self._octets = 0
        self._hopeless = False  # the server lets nobody in
        self._cut_off: str | None = None  # why there was no more to be had from the input

    def run(self, items: Iterator[Item], options: argparse.Namespace) -> str | None:
        """Send all, or until there is a reason to stop.

        Returns:
            The reason, or None.
        """
        while (stopped := self._reason()) is None:
            item = self._next(items)
            if item is None:
                break
            envelope = _envelope(item, options, self._ledger)
            if envelope is not None:
                self._submit(item.name, envelope)
        while self._in_hand and not self._signals.count:
            if self._end.passed:
                # What is on the wire has the same deadline, and knows best how it stands.
                late = now() > self._end.at + LAST_WORD
                self._drop([future for future in self._in_hand if late or not future.running()])
            self._take_news()
        return stopped or self._cut_off or ("interrupted" if self._signals.count else None)

    def call_off(self, out: Output) -> None:
        """Finish what is on the wire, take the rest back; at the next signal drop the connections."""
        for future in list(self._in_hand):
            future.cancel()
        out.note("stopping; what is on the wire is being finished (Ctrl-C again drops it)")
        # On a thread of its own, for it waits, and this one has to listen.
        closing = {"drain": False, "timeout": GRACE}
        closer = threading.Thread(target=self._sender.close, kwargs=closing, name="threadmail-close", daemon=True)
        closer.start()
        while self._in_hand and (closer.is_alive() or not self._news.empty()):
            if self._signals.count > 1:
                self._drop(list(self._in_hand))
            self._take_news()
        closer.join(GRACE)
        for name, _ in self._in_hand.values():  # a lane that hangs: nobody knows
            error = MailError("the program ended before the message was settled")
            self._ledger.settled(name, Receipt(Outcome.IN_DOUBT, None, "", (), error=error))

    def _reason(self) -> str | None:
        if self._signals.count:
            return "interrupted"
        if self._hopeless:
            return "the server cannot be used"
        return "the deadline passed" if self._end.passed else None

    def _next(self, items: Iterator[Item]) -> Item | None:
        """None: there are no more; or none came before a signal, or in time: nobody may ever write to a pipe."""
        try:
            with self._signals.raised(self._end):
                return next(items, None)
        except KeyboardInterrupt:
            self._cut_off = self._reason() or "the deadline passed"
            return None

    def _submit(self, name: str, envelope: Envelope) -> None:
        octets = envelope.size if isinstance(envelope.source, bytes) else 0  # in memory
        while self._in_hand and (len(self._in_hand) >= MOST_MESSAGES or self._octets + octets > MOST_OCTETS):
            self._take_news()
            if self._reason() is not None:
                return
        try:
            future = self._sender.submit(envelope, deadline=self._end)
        except MailError as error:
            self._ledger.settled(name, error.receipt or Receipt.not_sent(envelope, error))
            return
        self._in_hand[future] = _InHand(name, octets)
        self._octets += octets
        future.add_done_callback(self._news.put)  # type: ignore[arg-type]  # it is called with the very future
        while not self._news.empty():
            self._take_news()

    def _drop(self, futures: list[SendFuture]) -> None:
        for future in futures:
            late = self._end.passed and future.take_back(
                out_of_time("the deadline passed before the message was on the wire")
            )
            if not late:
                self._sender.abort(future)

    def _take_news(self) -> None:
        """Wait for a message to be settled, or a signal, or the deadline; not for long."""
        left = self._end.remaining()
        try:
            future = self._news.get(timeout=TICK if not left else min(TICK, left))
        except queue.Empty:
            return
        if future is None:
            return
        name, octets = self._in_hand.pop(future)
        self._octets -= octets
        receipt = future.receipt
        assert receipt is not None
        if self._signals.count and future.cancelled():
            self._ledger.not_tried(name, receipt)
            return
        self._ledger.settled(name, receipt)
        if receipt.outcome is Outcome.NOT_SENT and receipt.error is not None and receipt.error.phase in CONNECTING:
            self._hopeless = True


def _envelope(item: Item, options: argparse.Namespace, ledger: Ledger) -> Envelope | None:
    """The envelope of a message, or None when the ledger knows what is wrong with it."""
    if item.problem is not None:
        ledger.unread(item.name, item.problem)
        return None
    try:
        if item.path is not None:
            return Envelope.from_file(item.path, options.sender, options.to)
        return Envelope.from_bytes(item.content, options.sender, options.to)
    except MailError as error:
        ledger.unfit(item.name, error)
    except OSError as error:
        ledger.unread(item.name, f"cannot be read: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - whatever one message does to us, the others are to be sent
        ledger.broken(item.name, error)
    return None
