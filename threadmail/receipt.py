"""What happened to a message.

Owns `Reply` (one answer of a server), `Receipt` (the fate of one message) and `Report` (the fates of a batch, in input
order). Plain data: frozen, comparable, picklable, with no hold on a connection, a frame or the content.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from .envelope import Envelope
from .errors import DeliveryFailed, MailError, Outcome, Phase, printable

_ENHANCED = re.compile(rb"([245])\.\d{1,3}\.\d{1,3}(?=[ \n]|$)")


@dataclass(frozen=True)
class Reply:
    """One whole SMTP reply (RFC 5321 §4.2).

    Attributes:
        code: the three digits.
        raw: the text as smtplib gives it: the lines without their codes, joined by newlines.
    """

    code: int
    raw: bytes = b""

    @property
    def text(self) -> str:
        """The text on one line, safe to print."""
        return printable(self.raw)

    @property
    def enhanced(self) -> str | None:
        """The enhanced status code, such as "5.1.1" (RFC 2034, RFC 3463), or None."""
        match = _ENHANCED.match(self.raw)
        # A class that contradicts the basic code is not trusted (RFC 2034 §4).
        return match[0].decode() if match and int(match[1]) == self.code // 100 else None

    @property
    def positive(self) -> bool:
        return 200 <= self.code <= 299

    @property
    def transient(self) -> bool:
        """4yz: the same command may succeed later."""
        return 400 <= self.code <= 499

    @property
    def permanent(self) -> bool:
        return 500 <= self.code <= 599

    @property
    def pair(self) -> tuple[int, bytes]:
        """smtplib's form of a reply."""
        return self.code, self.raw

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


@dataclass(frozen=True, init=False)
class Receipt:
    """The fate of one message.

    Attributes:
        outcome: SENT, PARTIAL, NOT_SENT or IN_DOUBT.
        phase: where the transaction ended; DONE when the server gave its final reply. None: it never began.
        sender, recipients, message_id: of the message.
        accepted: the recipients the server took responsibility for.
        replies: the last reply to each recipient that was answered.
        reply: the server's final reply; its text usually names the queue id. None where there was none.
        error: what kept the message from being sent; None when somebody accepted it (`refused` tells who did not).
        attempts: how often the message was handed to a connection.
        server: "host:port" of the last attempt.
    """

    outcome: Outcome
    phase: Phase | None
    sender: str
    recipients: tuple[str, ...]
    message_id: str | None = None
    accepted: tuple[str, ...] = ()
    replies: Mapping[str, Reply] = field(default_factory=dict)
    reply: Reply | None = None
    error: MailError | None = field(default=None, compare=False)
    attempts: int = 1
    server: str = ""

    def __init__(
        self,
        outcome: Outcome,
        phase: Phase | None,
        sender: str,
        recipients: tuple[str, ...],
        message_id: str | None = None,
        accepted: tuple[str, ...] = (),
        replies: Mapping[str, Reply] | None = None,
        reply: Reply | None = None,
        error: MailError | None = None,
        attempts: int = 1,
        server: str = "",
    ) -> None:
        # One is made for each message; the constructor of a frozen dataclass takes three times as long.
        fields = self.__dict__
        fields["outcome"] = outcome
        fields["phase"] = phase
        fields["sender"] = sender
        fields["recipients"] = recipients
        fields["message_id"] = message_id
        fields["accepted"] = accepted
        fields["replies"] = {} if replies is None else replies
        fields["reply"] = reply
        fields["error"] = error
        fields["attempts"] = attempts
        fields["server"] = server

    @classmethod
    def not_sent(cls, envelope: Envelope | None, error: MailError, attempts: int = 0) -> Receipt:
        """The receipt of a message that never reached a connection, or (None) never became an envelope."""
        receipt = cls(
            outcome=Outcome.NOT_SENT,
            phase=error.phase,
            sender=envelope.sender if envelope else "",
            recipients=envelope.recipients if envelope else (),
            message_id=envelope.message_id if envelope else None,
            error=error,
            attempts=attempts,
        )
        error.receipt = receipt
        return receipt

    @property
    def refused(self) -> dict[str, Reply]:
        """The recipients the server refused, each with its reply."""
        return {r: reply for r, reply in self.replies.items() if r not in self.accepted and not reply.positive}

    @property
    def deferred(self) -> tuple[str, ...]:
        """The recipients for whom a later try may succeed, and cannot send anything twice."""
        if self.outcome is Outcome.IN_DOUBT:
            return ()
        again = self.outcome is Outcome.NOT_SENT and self.error is not None and self.error.transient
        return tuple(
            r
            for r in self.recipients
            if r not in self.accepted and (self.replies[r].transient if r in self.refused else again)
        )

    def followed_by(self, later: Receipt) -> Receipt:
        """This receipt and that of a later attempt for some of its recipients, as one."""
        accepted = self.accepted + tuple(r for r in later.accepted if r not in self.accepted)
        # Who was in doubt stays so unless accepted now: a refusal does not take back what may have been delivered.
        doubtful = self.outcome is Outcome.IN_DOUBT and any(
            r not in accepted and (r in later.recipients or r not in self.refused) for r in self.recipients
        )
        if later.outcome is Outcome.IN_DOUBT or doubtful:
            outcome = Outcome.IN_DOUBT
        elif len(accepted) == len(self.recipients):
            outcome = Outcome.SENT
        else:
            outcome = Outcome.PARTIAL if accepted else Outcome.NOT_SENT
        return replace(
            later,
            outcome=outcome,
            recipients=self.recipients,
            accepted=accepted,
            replies={**self.replies, **later.replies},
            reply=later.reply or self.reply,
            attempts=self.attempts + later.attempts,
        )

    def raise_for_failure(self) -> Receipt:
        """Raise `error` if nobody surely has the message (NOT_SENT, IN_DOUBT); else return the receipt itself."""
        if self.outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT) and self.error is not None:
            raise self.error
        return self

    def to_dict(self) -> dict[str, Any]:
        """The receipt as data that JSON can hold."""
        return {
            "outcome": self.outcome.value,
            "phase": self.phase.value if self.phase else None,
            "sender": self.sender,
            "recipients": list(self.recipients),
            "message_id": self.message_id,
            "accepted": list(self.accepted),
            "refused": {r: str(reply) for r, reply in self.refused.items()},
            "reply": str(self.reply) if self.reply else None,
            "error": str(self.error) if self.error else None,
            "transient": bool(self.error and self.error.transient),
            "attempts": self.attempts,
            "server": self.server,
        }

    def __str__(self) -> str:
        because = self.error or self.reply or ""
        return f"{self.outcome.value}: {because}" if because else self.outcome.value


class Report(Sequence[Receipt]):
    """The receipts of a batch, in the order of its messages."""

    def __init__(self, receipts: Iterable[Receipt] = ()) -> None:
        self._receipts = tuple(receipts)

    @overload
    def __getitem__(self, index: int) -> Receipt: ...
    @overload
    def __getitem__(self, index: slice) -> Report: ...
    def __getitem__(self, index: int | slice) -> Receipt | Report:
        return Report(self._receipts[index]) if isinstance(index, slice) else self._receipts[index]

    def __len__(self) -> int:
        return len(self._receipts)

    def __eq__(self, other: object) -> bool:
        return self._receipts == other._receipts if isinstance(other, Report) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # receipts hold mappings

    def counts(self) -> dict[Outcome, int]:
        """How many messages ended in each outcome; every outcome is a key."""
        found = Counter(receipt.outcome for receipt in self._receipts)
        return {outcome: found[outcome] for outcome in Outcome}

    @property
    def failures(self) -> tuple[Receipt, ...]:
        """The receipts of messages that did not reach every recipient for sure."""
        return tuple(r for r in self._receipts if r.outcome is not Outcome.SENT)

    def raise_for_failures(self) -> Report:
        """Raise DeliveryFailed, with this report, unless every message was sent; else return the report itself."""
        failures = self.failures
        if failures:
            raise DeliveryFailed(f"{self}; the first: {failures[0]}", self)
        return self

    def __str__(self) -> str:
        parts = [f"{count} {outcome.value}" for outcome, count in self.counts().items() if count]
        return f"{len(self)} messages: {', '.join(parts)}" if parts else "no messages"

    def __repr__(self) -> str:
        return f"<Report of {self}>"
