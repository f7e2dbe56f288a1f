"""A message under way on a connection.

Owns which of its commands were written and answered, and which may be written now. Pure state, as `Transaction`, which
knows what the answers mean: the I/O is in `_session.delivery`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .._message.content import SMALL
from .._message.message import FAULTS
from .._runtime.outside import is_of_a_handler
from ..envelope import Envelope
from ..errors import InvalidEnvelope, MailError, Phase
from .transaction import Command, Terms, Transaction

#: Commands whose replies may be outstanding. Each side must be able to keep what the other has not read yet, or both
#: wait for ever (RFC 2920 §3.1): a hundred commands have 32 KiB at most, their replies 51 KiB, and usually a tenth of
#: it. Linux keeps 128 KiB.
IN_FLIGHT = 100


class Progress:
    """A message under way, and which of its commands were written and answered.

    Attributes:
        envelope: as it was given; that of the transaction may be recoded.
        before: commands written ahead of it that bring the session back to its start: `.` and `rset`, by name.
        refusal: what keeps it from being sent before its first byte; for the call that it is for. The server cannot
            take it, it is not as it should be, or `before_final`, or somebody from outside, raised while the one ahead
            was under way.
        chunk: its content, where that leaves together with its commands (BDAT, RFC 3030): in a window.
    """

    __slots__ = ("before", "chunk", "envelope", "refusal", "transaction", "unanswered", "waiting")

    def __init__(self, envelope: Envelope, terms: Terms) -> None:
        self.envelope = envelope
        self.transaction = Transaction(envelope, terms)
        self.before: tuple[str, ...] = ()
        self.unanswered: deque[Command] = deque()
        self.refusal: Exception | None = None
        self.chunk: bytes | None = None
        try:
            self.waiting = deque(self.transaction.commands())
        except Exception as exc:  # noqa: BLE001 - of this message alone: the content of the one ahead may be under way
            self.waiting = deque()
            self.refusal = _as_ours(exc)
        else:
            if terms.window > 1 and len(self.waiting) <= IN_FLIGHT // 2:
                self._chunk()

    def _chunk(self) -> None:
        """Have content and commands leave at once; but not much of it, for a large one gains nothing by that."""
        content = self.transaction.envelope.source
        if isinstance(content, bytes) and len(content) <= SMALL:
            self.chunk = content if content.endswith(b"\r\n") else content + b"\r\n"
            self.waiting[-1] = Command(Phase.FINAL, f"bdat {len(self.chunk)} last")
            # What a refused BDAT leaves behind is not defined (RFC 3030 §2), and it is not known yet whether the one
            # of the message ahead is.
            self.before = ("rset",)

    def take(self) -> Sequence[Command]:
        """The commands that may be written now: one without PIPELINING, else as many as may be outstanding."""
        terms, unanswered, waiting = self.transaction.terms, self.unanswered, self.waiting
        if not (unanswered or terms.all_or_nothing) and len(waiting) <= IN_FLIGHT and "pipelining" in terms.extensions:
            self.unanswered, self.waiting = waiting, unanswered  # nearly always all of them, and at once
            return waiting
        depth = IN_FLIGHT if "pipelining" in terms.extensions else 1
        if len(unanswered) > depth // 2:
            return []
        room = depth - len(unanswered)
        if terms.all_or_nothing and len(waiting) > 1:
            # After a 354 there is no way back but to hang up, so who wants all or nothing asks for it when all have
            # answered.
            room = min(room, len(waiting) - 1)
        elif terms.all_or_nothing and unanswered:
            return []
        group = [waiting.popleft() for _ in range(min(room, len(waiting)))]
        unanswered.extend(group)
        return group


def _as_ours(exc: Exception) -> Exception:
    """What is at fault with a message, as an error of ours; what comes from outside, a time limit say, as it is."""
    if is_of_a_handler(exc):
        return exc
    if isinstance(exc, MailError) or not isinstance(exc, FAULTS):
        return exc
    fault = InvalidEnvelope(f"the message cannot be written: {type(exc).__name__}: {exc}")
    fault.__cause__ = exc
    return fault
