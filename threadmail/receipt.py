"""What happened to a message.

Owns `Reply` (one answer of a server), `Receipt` (the fate of one message) and `Report` (the fates of a batch, in input
order). Plain data: frozen, comparable, picklable, with no hold on a connection, a frame or the content.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, overload

from .envelope import Envelope
from .errors import CLOSING, DeliveryFailed, MailError, Outcome, Phase, printable

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
    def closes(self) -> bool:
        """421: the server closes the connection, whatever it was asked (RFC 5321 §3.8)."""
        return self.code == CLOSING

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
        phase: where the transaction ended; DONE when the server gave its final reply. None: it never began. Of several
            attempts it is that of the one which decided the outcome.
        sender, recipients, message_id: of the message.
        accepted: the recipients the server took responsibility for.
        replies: the last reply to each recipient that was answered.
        reply: the server's final reply; its text usually names the queue id. None where there was none.
        error: what kept the message from being sent, or leaves it in doubt; None when somebody surely has it (SENT,
            PARTIAL: `refused` tells who does not). Its `receipt` and `outcome` are those of the message.
        attempts: how often the message was handed to a connection.
        server: "host:port" of the last attempt.
        tag: what the caller of `submit(message, tag=...)` gave, carried back. Not compared; pickled with the receipt.
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
    tag: Any = field(default=None, compare=False)

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
        tag: Any = None,
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
        fields["tag"] = tag

    @classmethod
    def not_sent(cls, envelope: Envelope | None, error: MailError, attempts: int = 0, *, tag: Any = None) -> Receipt:
        """The receipt of a message that never reached a connection, or (None) never became an envelope.

        Args:
            error: why. It gets the receipt; one that has a receipt already is another message's, and a copy gets it.
        """
        return _told_by(
            cls(
                outcome=Outcome.NOT_SENT,
                phase=error.phase,
                sender=envelope.sender if envelope else "",
                recipients=envelope.recipients if envelope else (),
                message_id=envelope.message_id if envelope else None,
                error=error,
                attempts=attempts,
                tag=tag,
            )
        )

    @classmethod
    def after(cls, envelope: Envelope, error: MailError) -> Receipt:
        """The receipt of a message for which `error` was raised.

        The one that it carries, unless that is another message's: a hook may raise the same object again and again.
        """
        carried = error.receipt
        if carried is not None and carried.recipients is envelope.recipients and carried.sender is envelope.sender:
            return carried
        return cls.not_sent(envelope, error)

    @property
    def refused(self) -> dict[str, Reply]:
        """The recipients the server refused, each with its reply."""
        accepted = set(self.accepted)
        return {r: reply for r, reply in self.replies.items() if not reply.positive and r not in accepted}

    @property
    def deferred(self) -> tuple[str, ...]:
        """The recipients for whom a later try may succeed, and cannot send anything twice.

        Of a message whose error `may_resend`, all but whom the server refused for good. Of any other that is not in
        doubt, whom the server put off himself (4yz): also where it refused the content for good (5yz) thereafter. Who
        was put off at RCPT was no recipient of that transaction (RFC 5321 §4.1.1.3), so the refusal is about the
        others, and to try the same RCPT again is what a 4yz asks for (§4.2.1). `may_resend` is False then: it is about
        the message as it was given, which nobody should offer that server again as it is (§4.2.5).
        """
        if self.outcome is Outcome.IN_DOUBT:
            return ()
        again = self.outcome is Outcome.NOT_SENT and self.error is not None and self.error.transient
        accepted, refused = set(self.accepted), self.refused
        return tuple(
            r for r in self.recipients if r not in accepted and (refused[r].transient if r in refused else again)
        )

    def followed_by(self, later: Receipt) -> Receipt:
        """This receipt and that of a later attempt for some of its recipients, as one.

        `error`, where there is one, is a copy: its `receipt` is the new one and its `outcome` that of the message.
        """
        had = set(self.accepted)
        accepted = self.accepted + tuple(r for r in later.accepted if r not in had)
        had.update(accepted)
        if later.outcome is Outcome.IN_DOUBT or self._leaves_doubt(later, had):
            outcome = Outcome.IN_DOUBT
            decisive = later if later.outcome is Outcome.IN_DOUBT else self
        elif had:
            outcome = Outcome.SENT if len(accepted) == len(self.recipients) else Outcome.PARTIAL
            decisive = later if later.accepted else self
        else:
            outcome, decisive = Outcome.NOT_SENT, later
        merged = replace(
            later,
            outcome=outcome,
            phase=decisive.phase,
            recipients=self.recipients,
            accepted=accepted,
            replies=self._replies_with(later),
            # What quotes the queue id is the acceptance; a later refusal of the rest does not take it away.
            reply=self.reply if self.accepted and not later.accepted else later.reply or self.reply,
            error=decisive.error if outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT) else None,
            attempts=self.attempts + later.attempts,
            tag=self.tag if later.tag is None else later.tag,
        )
        return _told_by(merged)

    def _replies_with(self, later: Receipt) -> dict[str, Reply]:
        """The last reply to each recipient; but who was refused stays so until an attempt came to something.

        A later 250 to RCPT, of an attempt that was lost before its content, would leave him neither accepted nor
        refused: nobody would be told of him, and nobody would try again.
        """
        replies = {**self.replies, **later.replies}
        if later.outcome is Outcome.NOT_SENT:
            replies.update({r: reply for r, reply in self.refused.items() if replies[r].positive})
        return replies

    def _leaves_doubt(self, later: Receipt, accepted: set[str]) -> bool:
        """Whether somebody was in doubt, and was not accepted since: a refusal takes back nothing."""
        if self.outcome is not Outcome.IN_DOUBT:
            return False
        asked, refused = set(later.recipients), self.refused
        return any(r not in accepted and (r in asked or r not in refused) for r in self.recipients)

    def failure(self) -> MailError | None:
        """The error for whoever is told of this message; None if somebody surely has it.

        Its `receipt` is this one and its `outcome` is this one's, whatever the attempt that raised it knew: that may
        have been one of several, or another message's.
        """
        error = self.error
        if error is None or self.outcome in (Outcome.SENT, Outcome.PARTIAL):
            return None
        if error.receipt is None:
            error.receipt, error.outcome = self, self.outcome
        return error if error.receipt is self and error.outcome is self.outcome else _copied(error, self)

    def raise_for_failure(self) -> Receipt:
        """Raise `failure()` if nobody surely has the message (NOT_SENT, IN_DOUBT); else return the receipt itself."""
        error = self.failure()
        if error is not None:
            raise error
        return self

    def to_dict(self) -> dict[str, Any]:
        """The receipt as data that JSON can hold. `from_dict` reads it back.

        "refused", "reply" and "error" are for people. "transient" says whether a later try of the same thing may
        succeed, "may_resend" whether that is safe as well: only then send the message again. "tag" is None where it is
        none of str, int, float and bool.
        """
        error = self.failure() or self.error
        return {
            "outcome": self.outcome.value,
            "phase": self.phase.value if self.phase else None,
            "sender": self.sender,
            "recipients": list(self.recipients),
            "message_id": self.message_id,
            "accepted": list(self.accepted),
            "refused": {r: str(reply) for r, reply in self.refused.items()},
            "reply": str(self.reply) if self.reply else None,
            "error": str(error) if error else None,
            "transient": bool(error and error.transient),
            "may_resend": bool(error and error.may_resend),
            "attempts": self.attempts,
            "server": self.server,
            "tag": self.tag if isinstance(self.tag, (str, int, float)) else None,
            "replies": {r: _reply_to_data(reply) for r, reply in self.replies.items()},
            "final_reply": _reply_to_data(self.reply) if self.reply else None,
            "failure": error.to_dict() if error else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Receipt:
        """The receipt that `to_dict` wrote, of this version or an earlier one, which wrote less.

        Raises:
            ValueError: the data is not what `to_dict` writes.
        """
        try:
            receipt = cls(
                outcome=Outcome(data["outcome"]),
                phase=Phase(data["phase"]) if data["phase"] else None,
                sender=data["sender"],
                recipients=tuple(data["recipients"]),
                message_id=data["message_id"],
                accepted=tuple(data["accepted"]),
                replies=_replies_of(data),
                reply=_reply_of(data.get("final_reply") or data["reply"]),
                error=_error_of(data),
                attempts=data["attempts"],
                server=data["server"],
                tag=data.get("tag"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ValueError(f"no receipt: {type(exc).__name__}: {exc}") from exc
        return _told_by(receipt)

    def __str__(self) -> str:
        because = self.error or self.reply or ""
        return f"{self.outcome.value}: {because}" if because else self.outcome.value


def _told_by(receipt: Receipt) -> Receipt:
    """The receipt, with an error that carries it; another message's, or another attempt's, is left as it is."""
    error = receipt.error
    if error is None:
        return receipt
    if error.receipt is None:
        error.receipt, error.outcome = receipt, receipt.outcome
    elif error.receipt is not receipt:
        receipt.__dict__["error"] = _copied(error, receipt)
    return receipt


def _copied(error: MailError, receipt: Receipt) -> MailError:
    copied = copy(error)
    copied.__cause__, copied.__suppress_context__ = error.__cause__, error.__suppress_context__
    copied.receipt, copied.outcome = receipt, receipt.outcome
    return copied


def _reply_to_data(reply: Reply) -> list[Any]:
    return [reply.code, reply.raw.decode("latin-1")]  # octets as they are


def _reply_of(data: list[Any] | str | None) -> Reply | None:
    if data is None:
        return None
    if isinstance(data, str):  # as earlier versions wrote it: "250 2.0.0 OK"
        code, _, text = data.partition(" ")
        return Reply(int(code), text.encode())
    code, text = data
    return Reply(int(code), text.encode("latin-1"))


def _replies_of(data: Mapping[str, Any]) -> dict[str, Reply]:
    found = {r: _reply_of(reply) for r, reply in data.get("replies", data["refused"]).items()}
    return {r: reply for r, reply in found.items() if reply is not None}


def _error_of(data: Mapping[str, Any]) -> MailError | None:
    if data.get("failure") is not None:
        return MailError.from_dict(data["failure"])
    if data["error"] is None:
        return None
    phase = Phase(data["phase"]) if data["phase"] else None
    return MailError(data["error"], phase=phase, transient=data["transient"])


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

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # receipts hold mappings

    def counts(self) -> dict[Outcome, int]:
        """How many messages ended in each outcome; every outcome is a key."""
        found = Counter(receipt.outcome for receipt in self._receipts)
        return {outcome: found[outcome] for outcome in Outcome}

    @property
    def failures(self) -> tuple[Receipt, ...]:
        """The receipts of messages that did not reach every recipient for sure."""
        return tuple(r for r in self._receipts if r.outcome is not Outcome.SENT)

    def raise_for_failures(self) -> Report:
        """Raise DeliveryFailed, with this report, unless every message was sent; else return the report itself.

        Its `outcome` is that of the batch: IN_DOUBT or PARTIAL where anybody may have any of the messages, so that
        nobody sends all of them again.
        """
        failures = self.failures
        if failures:
            raise DeliveryFailed(f"{self}; the first: {failures[0]}", self)
        return self

    def __str__(self) -> str:
        parts = [f"{count} {outcome.value}" for outcome, count in self.counts().items() if count]
        noun = "message" if len(self) == 1 else "messages"
        return f"{len(self)} {noun}: {', '.join(parts)}" if parts else "no messages"

    def __repr__(self) -> str:
        return f"<Report of {self}>"
