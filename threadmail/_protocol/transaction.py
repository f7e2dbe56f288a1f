"""One message over one connection.

Owns the mail transaction (RFC 5321 §3.3): which commands it consists of, what each reply means for it, and where it
stands at every moment. Guarantees: it ends in a `Receipt`, or in an error that carries one, and the receipt is true:
SENT only after the server's final reply, IN_DOUBT only when the end of data was handed to the kernel and no whole
reply came, NOT_SENT otherwise. Decides and does no I/O: `_session.delivery` does, one command at a time or in groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from typing import NamedTuple, cast

from .._known.riding import Riding
from ..envelope import Envelope
from ..errors import (
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
from ..receipt import Receipt, Reply


@dataclass(frozen=True)
class Terms:
    """On which terms a message is sent: what the server offers, and what the caller asks for.

    Attributes:
        extensions: ESMTP keywords (lower case) the server offers and the caller lets us use, with their parameters.
        lmtp: one final reply for each accepted recipient (RFC 2033 §4.2).
        all_or_nothing: send to every recipient or to none.
        mail_options, rcpt_options: further ESMTP parameters of MAIL and of every RCPT.
        server: "host:port", for the receipt.
        window: messages that may be under way content and all; more than one only with PIPELINING and CHUNKING.
        riding: what is known of the server about what is written behind the end of data.
    """

    extensions: Mapping[str, str] = field(default_factory=dict)
    lmtp: bool = False
    all_or_nothing: bool = False
    mail_options: Sequence[str] = ()
    rcpt_options: Sequence[str] = ()
    server: str = ""
    window: int = 1
    riding: Riding = field(default_factory=Riding, compare=False)


class Command(NamedTuple):
    """A command of a transaction, with the phase it opens and, for RCPT, whom it names."""

    phase: Phase
    line: str
    recipient: str | None = None


# Two of these or more are made for each message: the constructor that a NamedTuple comes with takes twice as long, and
# a member of an enum has to be looked up.
_command = tuple.__new__
_MAIL, _RCPT, _FINAL, _DONE = Phase.MAIL, Phase.RCPT, Phase.FINAL, Phase.DONE
_DATA = Command(Phase.DATA, "data")


class Transaction:
    """The state of one message under way. Knows its phase at every moment; does no I/O.

    Attributes:
        phase: where the transaction stands.
        error: the refusal that ended it, or None.
        content_due: DATA was answered 354: what comes next is content, whatever it is meant to be.
    """

    def __init__(self, envelope: Envelope, terms: Terms) -> None:
        self.envelope: Envelope = envelope
        self.terms = terms
        self.phase: Phase = _MAIL
        self.error: MailError | None = None
        self.content_due: bool = False
        self._replies: dict[str, Reply] = {}
        self._refused: dict[str, Reply] = {}  # at RCPT
        self._at_rcpt: Sequence[str] = []  # accepted at RCPT, which is not yet accepted for good
        self._accepted: Sequence[str] = ()
        self._final: Reply | None = None

    # ------------------------------------------------------------ before the first byte

    def commands(self) -> list[Command]:
        """MAIL, a RCPT for each recipient, DATA.

        Raises:
            NotSupported, MessageTooLarge, InvalidEnvelope: the server cannot take this message; nothing was written.
        """
        terms = self.terms
        for_mail, for_rcpt = (terms.mail_options, terms.rcpt_options) if terms.extensions else ((), ())
        parameters = self._parameters(for_mail)  # first: it may recode the envelope
        envelope = self.envelope
        commands = [_command(Command, (_MAIL, f"mail from:<{envelope.sender}>{parameters}", None))]
        parameters = _checked(for_rcpt) if for_rcpt else ""
        for recipient in envelope.recipients:
            commands.append(_command(Command, (_RCPT, f"rcpt to:<{recipient}>{parameters}", recipient)))
        commands.append(_DATA)
        return commands

    def _parameters(self, asked: Sequence[str]) -> str:
        """What stands behind the sender: what this message needs, then what was asked for."""
        envelope = self.envelope
        if not isinstance(envelope.source, bytes):
            envelope.source.require_unchanged()
        if not (asked or envelope.eight_bit or envelope.smtputf8):
            return self._size()  # all that most messages need
        offers = self.terms.extensions
        named = {option.partition("=")[0].lower() for option in asked}
        if (envelope.smtputf8 or "smtputf8" in named) and "smtputf8" not in offers:
            raise NotSupported("an address beyond ASCII needs SMTPUTF8, which the server does not offer")
        if "8bitmime" not in offers and "body" not in named:
            self.envelope = envelope = envelope.in_seven_bits()  # RFC 6152 §3
        parameters = self._size()
        if envelope.eight_bit and "body" not in named:
            parameters += " BODY=8BITMIME"
        if envelope.smtputf8 and "smtputf8" not in named:
            parameters += " SMTPUTF8"
        return parameters + _checked(asked)

    def _size(self) -> str:
        """The size of the message, for a server that asks for it (RFC 1870)."""
        offered = self.terms.extensions.get("size")
        if offered is None:
            return ""
        size = len(self.envelope.source)
        limit = _size_limit(offered)
        if size > limit:
            text = f"5.3.4 the message has {size} octets and the server takes {limit}"
            raise MessageTooLarge(552, text, self.envelope.sender, text[6:])
        return f" size={size}"

    # ------------------------------------------------------------ replies

    def take(self, command: Command, reply: Reply) -> None:
        """Note the reply to one of the commands. Afterwards `error` says whether the transaction is over.

        Replies to commands that were written before that was known are taken as well: they change nothing about it.

        Raises:
            BadReply: a reply of a kind that has no place here: the two sides no longer speak of the same thing.
        """
        is_data = command.phase is Phase.DATA
        kind = reply.code // 100
        expected = reply.code == 354 if is_data else kind == 2
        if not expected and kind != 4 and kind != 5:
            raise BadReply(f"{command.phase.value.upper()} was answered {reply}")
        self.content_due = expected and is_data
        if self.error is not None:
            return
        if command.recipient is not None:
            self._take_recipient(command.recipient, reply, expected)
        elif not expected:
            if is_data:
                self.error = DataRefused(*reply.pair)
            else:
                self.error = SenderRefused(*reply.pair, self.envelope.sender)

    def take_consent(self, replies: Sequence[Reply]) -> None:
        """Note the replies to all commands at once, when each of them is 250, and 354 to DATA."""
        recipients = self.envelope.recipients
        self.phase = _DATA.phase
        self.content_due = True
        self._replies = dict(zip(recipients, replies[1:-1], strict=True))
        self._at_rcpt = recipients

    def _take_recipient(self, recipient: str, reply: Reply, accepted: bool) -> None:
        self._replies[recipient] = reply
        if accepted:
            cast("list[str]", self._at_rcpt).append(recipient)
        else:
            self._refused[recipient] = reply
        refused = self._refused
        if not refused:
            return
        unasked = len(self.envelope.recipients) - len(self._replies)
        everybody = len(refused) == len(self.envelope.recipients)
        # With the content at the server already, what it says of the others counts; and it may go on after a 421.
        closing = reply.closes and self.phase is not Phase.FINAL
        if everybody or closing or (self.terms.all_or_nothing and not unasked):
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
        kind = reply.code // 100
        if kind not in (2, 4, 5):
            raise BadReply(f"the end of data was answered {reply}")
        self._final = reply
        self.content_due = False
        if not recipient:
            if kind == 2:
                self._accepted = self._at_rcpt
        elif kind == 2:
            self._accepted = self._accepted or []
            cast("list[str]", self._accepted).append(recipient)
        else:
            self._replies[recipient] = reply
        if not recipient or recipient == self._at_rcpt[-1]:
            self.phase = _DONE
            if not self._accepted:
                self.error = DataRefused(*self._most_hopeful(reply).pair)

    def _most_hopeful(self, reply: Reply) -> Reply:
        """What the error is to say where several final replies came, and none of them is a consent (LMTP).

        That somebody was only put off, if he was: what `may_resend` says does not hang on the order of recipients.
        """
        return next((self._replies[r] for r in self._at_rcpt if self._replies[r].transient), reply)

    # ------------------------------------------------------------ the end

    def receipt(self) -> Receipt:
        """What is known now."""
        envelope, phase = self.envelope, self.phase
        recipients = envelope.recipients
        # One object for both, where all were accepted; a list of thousands is kept for each message otherwise.
        accepted = recipients if len(self._accepted) == len(recipients) else tuple(self._accepted)
        if phase is _FINAL:
            outcome = Outcome.IN_DOUBT
        elif accepted is recipients:
            outcome = Outcome.SENT
        else:
            outcome = Outcome.PARTIAL if accepted else Outcome.NOT_SENT
        return Receipt(
            outcome,
            phase,
            envelope.sender,
            recipients,
            envelope.message_id,
            accepted,
            self._replies if phase is _DONE else self._replies.copy(),  # nothing changes any more
            self._final,
            self.error,
            1,
            self.terms.server,
        )

    def blame(self, error: MailError) -> MailError:
        """Let `error` be what ended the transaction, and give it the receipt."""
        self.error = error
        error.phase = self.phase
        error.receipt = self.receipt()
        error.outcome = error.receipt.outcome
        return error


@lru_cache(maxsize=64)
def _size_limit(announced: str) -> float:
    """The largest message a server takes; 0, and what is no number, is no fixed limit (RFC 1870)."""
    return (int(announced) if re.fullmatch(r"[0-9]{1,20}", announced) else 0) or inf


def _checked(options: Sequence[str]) -> str:
    """Parameters as somebody gave them, ready to stand in a command."""
    for option in options:
        if not re.fullmatch(r"[!-~]+", option):
            raise InvalidEnvelope(f"option {option!a} holds a space, a line end or another character it may not")
    return "".join([f" {option}" for option in options])
