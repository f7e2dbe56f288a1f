"""A row of messages that one client sends one after another, while no other thread comes in.

Owns what becomes of each: which is behind which, what is not tried, what was lost with its connection. Guarantees: a
receipt for each message, in order; nothing that may have been accepted is sent again. Leaves the lock to the client.
"""

from __future__ import annotations

import email.message
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias

from .._message.message import FAULTS, AnyMessage
from .._protocol.transaction import Transaction
from .._runtime.deadline import Deadline, now
from .._runtime.outside import is_of_a_handler
from .._session.delivery import BeforeMail, Follow, Follower
from ..envelope import Envelope
from ..errors import CONNECTING, Aborted, Closed, ConnectionLost, MailError, Phase, Reentered, detach, is_of_hook
from ..receipt import Receipt

#: Seconds after which a turn begins with what the iterable has given so far.
PATIENCE = 0.5

#: What can be sent.
Message: TypeAlias = "Envelope | AnyMessage | bytes"


def require_many(messages: Iterable[Message], call: str) -> None:
    """Refuse one message where an iterable of them is wanted: an `EmailMessage` iterates over its header's names, bytes
    over numbers, and each of those would be a message that cannot be sent.

    Raises:
        TypeError: it is one.
    """
    if isinstance(messages, (Envelope, email.message.Message, bytes, bytearray, memoryview, str)):
        raise TypeError(f"{call}() takes messages, and this is one: use send(), or [message]")


class Taker(Protocol):
    """The client."""

    @property
    def prefetched(self) -> Transaction | None: ...
    def transmit(
        self,
        envelope: Envelope,
        *,
        deadline: float | Deadline | None = None,
        before_mail: BeforeMail | None = None,
        follow: Follow | None = None,
        begun: Transaction | None = None,
    ) -> Receipt: ...


class _Entry:
    """A message, or why it is none; its transaction, once it was begun, also while another one was under way."""

    __slots__ = ("envelope", "invalid", "transaction")

    def __init__(self, message: Message) -> None:
        self.envelope: Envelope | None = None
        self.invalid: MailError | None = None
        self.transaction: Transaction | None = None
        try:
            self.envelope = Envelope.of(message)
        except MailError as error:
            self.invalid = detach(error)

    def begun(self, transaction: Transaction) -> None:
        self.transaction = transaction


class BatchPart:
    """Messages pulled from an iterator: so many, or as many as it gives in time.

    Attributes:
        is_full: it has not come to the end of the iterator.
        failure: what the iterable raised instead of another one.
        last: the receipt of the last one that was a message, from which the next turn can tell whether the server lets
            anybody in; of those that were none, where there was no other.
    """

    def __init__(self, messages: Iterator[Message], most: int) -> None:
        self.is_full = False
        self.failure: Exception | None = None
        self.last: Receipt | None = None
        self._entries: list[_Entry] = []
        begun = now()
        try:
            for message in messages:
                self._entries.append(_Entry(message))
                if len(self._entries) >= most or now() - begun >= PATIENCE:
                    self.is_full = True
                    break
        except Exception as exc:
            if is_of_a_handler(exc):
                raise  # a time limit that struck in the iterable waits for no message
            self.failure = exc  # for the caller to raise

    def __bool__(self) -> bool:
        return bool(self._entries) or self.failure is not None

    def not_sent(self, error: MailError) -> list[Receipt]:
        """The receipts if none of them can be sent, because of `error`."""
        receipts = [Receipt.not_sent(entry.envelope, entry.invalid or error) for entry in self._entries]
        self.last = receipts[-1] if receipts else None
        return receipts

    def taken_by(
        self, client: Taker, end: Deadline, last: Receipt | None, called_off: Callable[[], bool]
    ) -> list[Receipt]:
        """Have all of them sent.

        Args:
            last: that of the turn before.
            called_off: whether what has not begun is not to be sent any more.
        """
        receipts: list[Receipt] = []
        self.last = last
        ahead = deque(entry for entry in self._entries if entry.envelope is not None)
        begun = deque[_Entry]()

        def follow() -> Follower | None:
            if not ahead or (begun and begun[0].transaction is not client.prefetched):
                return None  # or another connection than the one they were prefetched on: they are to be seen to first
            entry = ahead.popleft()
            begun.append(entry)
            assert entry.envelope is not None
            return Follower(entry.envelope, entry.begun)

        for entry in self._entries:
            for waiting in (ahead, begun):
                if waiting and waiting[0] is entry:
                    waiting.popleft()
            receipt = self._fate(entry, client, end, follow, self.last, called_off)
            receipts.append(receipt)
            if entry.envelope is not None or self.last is None:
                self.last = receipt
        return receipts

    def _fate(
        self,
        entry: _Entry,
        client: Taker,
        end: Deadline,
        follow: Callable[[], Follower | None],
        last: Receipt | None,
        called_off: Callable[[], bool],
    ) -> Receipt:
        envelope, transaction = entry.envelope, entry.transaction
        if envelope is None:
            assert entry.invalid is not None
            return Receipt.not_sent(None, entry.invalid)
        begun = transaction if transaction is not None and transaction is client.prefetched else None
        try:
            if begun is None:
                if transaction is not None and transaction.phase is Phase.FINAL:
                    raise transaction.blame(ConnectionLost("the connection was lost before the server answered"))
                if called_off():
                    raise Aborted("the batch was ended by abort() or close()")
                if last is not None and last.error is not None and last.phase in CONNECTING:
                    return Receipt.not_sent(envelope, last.error)  # each would dial the server in vain
                end.check("other messages were sent")
            return client.transmit(envelope, deadline=end, before_mail=entry.begun, follow=follow, begun=begun)
        except MailError as error:
            if last is None and isinstance(error, (Closed, Reentered)):
                raise
            return Receipt.after(envelope, detach(error))
        except FAULTS as exc:
            if not is_of_hook(exc):  # from outside: many a time limit is a RuntimeError, or an AssertionError
                raise
            # A mistake in a hook of a dial, for which there is nothing of this message on any connection. Told as what
            # any message failed by, for the receipts of the others would be lost with it.
            mistake = MailError(f"the attempt was interrupted by {type(exc).__name__}")  # its text may hold anything
            mistake.__cause__ = exc
            return Receipt.not_sent(envelope, detach(mistake))
