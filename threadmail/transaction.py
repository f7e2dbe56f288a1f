"""One message over one connection.

Owns the mail transaction (RFC 5321 §3.3): which commands it consists of, what each reply means for it, and where it
stands at every moment. Guarantees: it ends in a `Receipt`, or in an error that carries one, and the receipt is true:
SENT only after the server's final reply, IN_DOUBT only when the end of data was handed to the kernel and no whole
reply came, NOT_SENT otherwise. Decides and does no I/O: `_delivery` does, one command at a time or in groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .envelope import Envelope
from .errors import (
    BadReply,
    DataRefused,
    InvalidEnvelope,
    MailError,
    MessageTooLarge,
    NotSupported,
    Outcome,
    Phase,
    RecipientsRefused,
    SenderRefused,
)
from .receipt import Receipt, Reply


@dataclass(frozen=True)
class Terms:
    """On which terms a message is sent: what the server offers, and what the caller asks for.

    Attributes:
        extensions: ESMTP keywords (lower case) the server offers and the caller lets us use, with their parameters.
        lmtp: one final reply for each accepted recipient (RFC 2033 §4.2).
        all_or_nothing: send to every recipient or to none.
        mail_options, rcpt_options: further ESMTP parameters of MAIL and of every RCPT.
        server: "host:port", for the receipt.
    """

    extensions: Mapping[str, str] = field(default_factory=dict)
    lmtp: bool = False
    all_or_nothing: bool = False
    mail_options: Sequence[str] = ()
    rcpt_options: Sequence[str] = ()
    server: str = ""


class Command(NamedTuple):
    """A command of a transaction, with the phase it opens and, for RCPT, whom it names."""

    phase: Phase
    line: str
    recipient: str | None = None


class Transaction:
    """The state of one message under way. Knows its phase at every moment; does no I/O.

    Attributes:
        phase: where the transaction stands.
        error: the refusal that ended it, or None.
        content_due: DATA was answered 354: what comes next is content, whatever it is meant to be.
    """

    def __init__(self, envelope: Envelope, terms: Terms) -> None:
        self.envelope = envelope
        self.terms = terms
        self.phase = Phase.MAIL
        self.error: MailError | None = None
        self.content_due = False
        self._replies: dict[str, Reply] = {}
        self._at_rcpt: list[str] = []  # accepted at RCPT, which is not yet accepted for good
        self._accepted: list[str] = []
        self._final: Reply | None = None

    # ------------------------------------------------------------ before the first byte

    def commands(self) -> Iterator[Command]:
        """MAIL, a RCPT for each recipient, DATA.

        Raises:
            NotSupported, MessageTooLarge, InvalidEnvelope: the server cannot take this message; nothing was written.
        """
        rcpt_options = _parameters(self.terms.rcpt_options if self.terms.extensions else ())
        yield Command(Phase.MAIL, f"mail from:<{self.envelope.sender}>{_parameters(self._mail_options())}")
        for recipient in self.envelope.recipients:
            yield Command(Phase.RCPT, f"rcpt to:<{recipient}>{rcpt_options}", recipient)
        yield Command(Phase.DATA, "data")

    def _mail_options(self) -> list[str]:
        if not isinstance(self.envelope.source, bytes):
            self.envelope.source.require_unchanged()
        offers = self.terms.extensions
        asked = list(self.terms.mail_options) if offers else []
        named = {option.partition("=")[0].lower() for option in asked}
        if (self.envelope.smtputf8 or "smtputf8" in named) and "smtputf8" not in offers:
            raise NotSupported("an address beyond ASCII needs SMTPUTF8, which the server does not offer")
        if "8bitmime" not in offers and "body" not in named:
            self.envelope = self.envelope.in_seven_bits()  # RFC 6152 §3
        options = []
        if "size" in offers:
            size = self.envelope.size
            announced = re.fullmatch(r"[0-9]{1,20}", offers["size"])
            limit = int(announced[0]) if announced else 0  # 0 or absent: no fixed limit (RFC 1870)
            if 0 < limit < size:
                text = f"5.3.4 the message has {size} octets and the server takes {limit}"
                raise MessageTooLarge(552, text, self.envelope.sender, text[6:])
            options.append(f"size={size}")
        if self.envelope.eight_bit and "body" not in named:
            options.append("BODY=8BITMIME")
        if self.envelope.smtputf8 and "smtputf8" not in named:
            options.append("SMTPUTF8")
        return options + asked

    # ------------------------------------------------------------ replies

    def take(self, command: Command, reply: Reply) -> None:
        """Note the reply to one of the commands. Afterwards `error` says whether the transaction is over.

        Replies to commands that were written before that was known are taken as well: they change nothing about it.

        Raises:
            BadReply: a reply of a kind that has no place here: the two sides no longer speak of the same thing.
        """
        expected = reply.code == 354 if command.phase is Phase.DATA else reply.positive
        if not expected and not (reply.transient or reply.permanent):
            raise BadReply(f"{command.phase.value.upper()} was answered {reply}")
        self.content_due = expected and command.phase is Phase.DATA
        if self.error is not None:
            return
        if command.recipient is not None:
            self._take_recipient(command.recipient, reply)
        elif not expected:
            if command.phase is Phase.MAIL:
                self.error = SenderRefused(*reply.pair, self.envelope.sender)
            else:
                self.error = DataRefused(*reply.pair)

    def _take_recipient(self, recipient: str, reply: Reply) -> None:
        self._replies[recipient] = reply
        if reply.positive:
            self._at_rcpt.append(recipient)
        refused = {r: answer for r, answer in self._replies.items() if not answer.positive}
        unasked = len(self.envelope.recipients) - len(self._replies)
        everybody = len(refused) == len(self.envelope.recipients)
        if refused and (everybody or reply.code == 421 or (self.terms.all_or_nothing and not unasked)):
            self.error = RecipientsRefused({r: answer.pair for r, answer in refused.items()})
            if self._at_rcpt and self.terms.all_or_nothing:
                # The permanent refusal of one is permanent for all.
                self.error.transient = all(answer.transient for answer in refused.values())

    @property
    def refused_by_all(self) -> bool:
        """Whether MAIL was accepted and each recipient refused: then a lone dot delivers to nobody."""
        return isinstance(self.error, RecipientsRefused) and not self._at_rcpt

    @property
    def awaited(self) -> tuple[str, ...]:
        """Whose final replies are awaited once the content is out: under LMTP one for each accepted recipient."""
        return tuple(self._at_rcpt) if self.terms.lmtp else ("",)

    def take_final(self, recipient: str, reply: Reply) -> None:
        """Note a reply to the end of data: for one recipient under LMTP, for all of them (`""`) under SMTP."""
        if not (reply.positive or reply.transient or reply.permanent):
            raise BadReply(f"the end of data was answered {reply}")
        self._final = reply
        self.content_due = False
        concerned = [recipient] if recipient else self._at_rcpt
        if reply.positive:
            self._accepted += concerned
        elif recipient:
            self._replies[recipient] = reply
        if recipient in ("", self._at_rcpt[-1]):
            self.phase = Phase.DONE
            if not self._accepted:
                self.error = DataRefused(*reply.pair)

    # ------------------------------------------------------------ the end

    def receipt(self) -> Receipt:
        """What is known now."""
        if self.phase is Phase.FINAL:
            outcome = Outcome.IN_DOUBT
        elif len(self._accepted) == len(self.envelope.recipients):
            outcome = Outcome.SENT
        else:
            outcome = Outcome.PARTIAL if self._accepted else Outcome.NOT_SENT
        return Receipt(
            outcome=outcome,
            phase=self.phase,
            sender=self.envelope.sender,
            recipients=self.envelope.recipients,
            message_id=self.envelope.message_id,
            accepted=tuple(self._accepted),
            replies=dict(self._replies),
            reply=self._final,
            error=self.error,
            server=self.terms.server,
        )

    def blame(self, error: MailError) -> MailError:
        """Let `error` be what ended the transaction, and give it the receipt."""
        self.error = error
        error.phase = self.phase
        error.receipt = self.receipt()
        error.outcome = error.receipt.outcome
        return error


def _parameters(options: Sequence[str]) -> str:
    for option in options:
        if not re.fullmatch(r"[!-~]+", option):
            raise InvalidEnvelope(f"option {option!a} holds a space, a line end or another character it may not")
    return "".join(f" {option}" for option in options)
