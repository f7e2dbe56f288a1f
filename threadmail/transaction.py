"""One message over one connection.

Owns the mail transaction (RFC 5321 §3.3): which commands it consists of, what each reply means for it, and where it
stands at every moment. Guarantees: it ends in a `Receipt`, or in an error that carries one, and the receipt is true:
SENT only after the server's final reply, IN_DOUBT only when the end of data was handed to the kernel and no whole
reply came, NOT_SENT otherwise. `Transaction` decides and does no I/O; `send` is the lock-step driver, a command and its
reply at a time. Drivers that group commands, or let those of the next message ride on the content of this one, need
nothing else: `commands` can be written all at once, and `take` wants the replies in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ._wire import BLOCK, Wire
from .envelope import Envelope
from .errors import (
    BadReply,
    ConnectionLost,
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
    """

    def __init__(self, envelope: Envelope, terms: Terms) -> None:
        self.envelope = envelope
        self.terms = terms
        self.phase = Phase.MAIL
        self.error: MailError | None = None
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
        offers = self.terms.extensions
        asked = list(self.terms.mail_options) if offers else []
        named = {option.partition("=")[0].lower() for option in asked}
        if (self.envelope.smtputf8 or "smtputf8" in named) and "smtputf8" not in offers:
            raise NotSupported("an address beyond ASCII needs SMTPUTF8, which the server does not offer")
        options = []
        if "size" in offers:
            size = len(self.envelope.content)
            announced = re.fullmatch(r"[0-9]{1,20}", offers["size"])
            limit = int(announced[0]) if announced else 0  # 0 or absent: no fixed limit (RFC 1870)
            if 0 < limit < size:
                text = f"5.3.4 the message has {size} octets and the server takes {limit}"
                raise MessageTooLarge(552, text, self.envelope.sender, text[6:])
            options.append(f"size={size}")
        if self.envelope.eight_bit and "8bitmime" in offers and "body" not in named:
            options.append("BODY=8BITMIME")
        if self.envelope.smtputf8 and "smtputf8" not in named:
            options.append("SMTPUTF8")
        return options + asked

    # ------------------------------------------------------------ replies

    def take(self, command: Command, reply: Reply) -> None:
        """Note the reply to one of the commands. Afterwards `error` says whether the transaction is over.

        Raises:
            BadReply: a reply of a kind that has no place here: the two sides no longer speak of the same thing.
        """
        expected = reply.code == 354 if command.phase is Phase.DATA else reply.positive
        if not expected and not (reply.transient or reply.permanent):
            raise BadReply(f"{command.phase.value.upper()} was answered {reply}")
        if command.recipient is not None:
            self._take_recipient(command.recipient, reply)
        elif not expected and self.error is None:
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
    def awaited(self) -> tuple[str, ...]:
        """Whose final replies are awaited once the content is out: under LMTP one for each accepted recipient."""
        return tuple(self._at_rcpt) if self.terms.lmtp else ("",)

    def take_final(self, recipient: str, reply: Reply) -> None:
        """Note a reply to the end of data: for one recipient under LMTP, for all of them (`""`) under SMTP."""
        if not (reply.positive or reply.transient or reply.permanent):
            raise BadReply(f"the end of data was answered {reply}")
        self._final = reply
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


def send(
    wire: Wire,
    envelope: Envelope,
    terms: Terms,
    *,
    before_mail: Callable[[Transaction], None] | None = None,
    before_final: Callable[[Envelope], None] | None = None,
) -> Receipt:
    """Send one message in lock-step: each command waits for its reply.

    Args:
        before_mail: called with the transaction when nothing has been written yet; if it raises, nothing is. Whoever
            keeps the transaction can ask it what is known (`receipt`), whatever ends the call.
        before_final: called before the last bytes of the content leave; if it raises, the message is surely not sent.
    Returns:
        The receipt of a message that at least one recipient was accepted for.
    Raises:
        MailError: with a receipt. The connection is ready for the next message, or closed.
    """
    transaction = Transaction(envelope, terms)
    try:
        commands = list(transaction.commands())
    except MailError as error:
        raise transaction.blame(error) from None
    if before_mail is not None:
        before_mail(transaction)
    try:
        for command in commands:
            transaction.phase = command.phase
            transaction.take(command, wire.command(command.line))
            if transaction.error is not None:
                break
        else:
            _send_content(wire, transaction, before_final)
    except MailError as error:
        wire.close()
        raise transaction.blame(error) from error.__cause__
    except BaseException:
        wire.close()
        raise
    if transaction.error is not None:
        reset(wire, transaction.error)
        raise transaction.blame(transaction.error)
    return transaction.receipt()


def _send_content(wire: Wire, transaction: Transaction, before_final: Callable[[Envelope], None] | None) -> None:
    wire.require_no_surplus()  # what lies there would be taken for the answer to the content
    transaction.phase = Phase.CONTENT
    content = stuffed(transaction.envelope.content)
    tail = len(content) - BLOCK  # the end of data leaves in one write with what stands before it
    if tail > 0:
        _write_most(wire, memoryview(content)[:tail])
    last = content[max(0, tail) :]
    if before_final is not None:
        before_final(transaction.envelope)
    if (tail > 0 or before_final is not None) and not wire.quiet():
        raise _early(wire.read_reply())
    transaction.phase = Phase.FINAL  # first, so that an interrupt in the write below leaves the message in doubt
    try:
        wire.write(last, f"<{len(last)} octets of content, and the end>", timeout=wire.timeouts.content)
    except ConnectionLost:
        transaction.phase = Phase.CONTENT  # the kernel did not take the last byte, so the server cannot have it
        raise
    closing = False
    for recipient in transaction.awaited:
        reply = wire.read_reply(wire.timeouts.final)
        transaction.take_final(recipient, reply)
        closing = closing or reply.code == 421
    if closing:  # though others accepted it, under LMTP
        wire.close()


def _write_most(wire: Wire, data: memoryview) -> None:
    """Write all of a large content but its end. A server that refuses it and hangs up is heard."""
    try:
        wire.write(data, f"<{len(data)} octets of content>", timeout=wire.timeouts.content, listen=True)
    except ConnectionLost:
        if wire.last_words is None:
            raise
        raise _early(wire.last_words) from None


def _early(reply: Reply) -> MailError:
    """What a reply means that came before the end of the content, which now never leaves.

    A refusal stands, and is reported; a consent to what the server has not seen is none.
    """
    if reply.transient or reply.permanent:
        return DataRefused(*reply.pair)
    return BadReply(f"the server answered before the content had ended: {reply}")


def stuffed(content: bytes) -> bytes:
    """`content` as it goes to the wire: dots doubled at line starts, a line end and the lone dot behind it.

    RFC 5321 §4.5.2. Looking first is cheaper than replacing: 0.6 ms against 3.9 ms a MiB.
    """
    if b"\r\n." in content:
        content = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    return content + (b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n")


def reset(wire: Wire, refusal: MailError | None = None) -> None:
    """Bring the session back to its start after a refusal, or close it. Raises nothing: the refusal is what matters.

    Only a 250 to RSET proves that no old MAIL still stands (field: 503 nested MAIL for all later messages). A server
    that said 421 is closing (RFC 5321 §3.8).
    """
    codes = [getattr(refusal, "smtp_code", 0), *(c for c, _ in getattr(refusal, "recipients", {}).values())]
    if 421 in codes:
        wire.close()
        return
    try:
        if wire.command("rset").code != 250:
            wire.close()
    except MailError:
        wire.close()


def _parameters(options: Sequence[str]) -> str:
    for option in options:
        if not re.fullmatch(r"[!-~]+", option):
            raise InvalidEnvelope(f"option {option!a} holds a space, a line end or another character it may not")
    return "".join(f" {option}" for option in options)
