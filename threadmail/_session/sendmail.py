"""Mail over one dialogue, as smtplib spells it and in one piece.

Owns the methods of the guarded clients that send a message: `sendmail` and `send_message` as smtplib has them,
`transact` for an envelope, and the commands of a transaction that a caller drives by hand. Guarantees: addresses and
content are checked before the first byte of a message; a message is sent in one step under `sync_root`. Leaves the
I/O of a transaction to `_session.delivery`.
"""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Sequence
from dataclasses import replace
from email.message import Message
from functools import partial
from typing import TYPE_CHECKING

from .._message import message as _message
from .._message.address import mailbox, sender_mailbox
from .._message.address_field import need_utf8
from .._message.flatten import flatten, message_fields
from .._protocol.progress import Progress
from .._protocol.transaction import Terms, Transaction
from .._runtime.deadline import NEVER, Deadline
from .._transport.wire import Wire
from ..envelope import Envelope
from ..errors import (
    DataRefused,
    InvalidEnvelope,
    MailError,
    NotSupported,
    Outcome,
    Phase,
    RecipientsRefused,
)
from ..receipt import Receipt
from . import delivery as _delivery
from .dialogue import Answer, Dialogue, State, exclusive

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, SizedBuffer


class SendingDialogue(Dialogue):
    """A dialogue in which mail is sent."""

    # ------------------------------------------------------------ in one piece

    def sendmail(
        self,
        from_addr: str,
        to_addrs: str | Sequence[str],
        msg: SizedBuffer | str,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        *,
        deadline: float | Deadline | None = None,
    ) -> dict[str, Answer]:
        """Send one message, as smtplib's `sendmail`: the refused recipients come back, each with (code, text).

        Line ends become CRLF (bytes too), addresses are checked before the first byte, and every error carries
        `outcome` and `receipt`.

        Args:
            deadline: seconds that waiting for the client and all of the transaction may take.
        Raises:
            MailError: nobody got the message, or (`outcome` IN_DOUBT) nobody knows. `may_resend` says whether to send
                it again is of use and safe.
        """
        given = [to_addrs] if isinstance(to_addrs, str) else list(to_addrs)
        envelope = Envelope(from_addr, given, _message.as_bytes(msg))
        try:
            receipt = self._transact_by_options(envelope, mail_options, rcpt_options, deadline=deadline)
        except RecipientsRefused as error:
            error.recipients = _as_given(error.recipients, given)
            error.args = (error.recipients,)
            raise
        return _as_given({r: reply.pair for r, reply in receipt.refused.items()}, given)

    @exclusive
    def _transact_by_options(
        self,
        envelope: Envelope,
        mail_options: Sequence[str],
        rcpt_options: Sequence[str],
        *,
        deadline: float | Deadline | None,
    ) -> Receipt:
        self._require_no_transaction()  # before the EHLO, which would end it
        self.ehlo_or_helo_if_needed()
        asked = {option.lower() for option in mail_options}
        if envelope.smtputf8 and not self.esmtp_features.keys() | asked >= {"smtputf8"}:
            # smtplib's own error here, for which callers may wait; it comes before the first byte.
            "".join([envelope.sender, *envelope.recipients]).encode("ascii")
        return self.transact(envelope, Terms(self.esmtp_features, mail_options=mail_options, rcpt_options=rcpt_options))

    @exclusive
    def transact(
        self,
        envelope: Envelope,
        terms: Terms | None = None,
        *,
        deadline: float | Deadline | None = None,
        before_mail: Callable[[Transaction], None] | None = None,
        before_final: _delivery.BeforeFinal | None = None,
    ) -> Receipt:
        """Send an envelope and return its receipt.

        Args:
            terms: on which terms; None uses every extension the server offers.
            deadline: seconds that waiting for the client and all of the transaction may take.
            before_mail, before_final: as in `Client.transmit`.
        Raises:
            MailError: with a receipt.
        """
        return self._transact(envelope, terms, NEVER, before_mail=before_mail, before_final=before_final)

    def _transact(
        self,
        envelope: Envelope,
        terms: Terms | None,
        end: Deadline,
        *,
        before_mail: _delivery.BeforeMail | None,
        before_final: _delivery.BeforeFinal | None,
        follow: _delivery.Follow | None = None,
        is_last: Callable[[], bool] | None = None,
    ) -> Receipt:
        """As `transact`, for who holds `sync_root` and, with `follow`, uses this client alone."""
        if self._state is not State.IDLE:
            self._require_turn()
            self._require_no_transaction()
        if self.ehlo_resp is None or not self.does_esmtp:
            self.ehlo_or_helo_if_needed()  # it knows whether that is so
        if terms is None or terms.lmtp != self._speaks_lmtp:
            terms = replace(terms or Terms(self.esmtp_features), lmtp=self._speaks_lmtp)
        wire = self._connected()
        pipeline = self._pipeline
        if pipeline is None or pipeline.wire is not wire:
            pipeline = self._pipeline = _delivery.Pipeline(wire)
        outer = wire.deadline
        self._state = State.DRIVING
        try:
            if end is not NEVER:
                wire.deadline = outer.within(end)
            return pipeline.send(
                envelope,
                terms,
                before_mail=before_mail,
                before_final=before_final,
                follow=follow,
                is_last=is_last,
            )
        finally:
            self._state = State.IDLE
            wire.deadline = outer
            if not wire.is_open:
                self._drop()

    @property
    def _prefetched(self) -> Progress | None:
        """The message that was begun while the last one was under way: the next call must be for it."""
        pipeline = self._pipeline
        return pipeline.prefetched[0] if pipeline is not None and pipeline.prefetched else None

    def send_message(
        self,
        msg: _message.AnyMessage,
        from_addr: str | None = None,
        to_addrs: str | Sequence[str] | None = None,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        *,
        deadline: float | Deadline | None = None,
    ) -> dict[str, Answer]:
        """Send a message object, as smtplib's `send_message`. It is written out before the client is locked.

        Raises:
            MailError: as `sendmail`; also no sender, or a header field that holds a line end.
        """
        end = Deadline.after(deadline)
        if not isinstance(msg, Message):
            raise InvalidEnvelope(f"a message must be an email.message.Message, not {type(msg).__name__}")
        fields = message_fields(msg)
        by_header = _message.sender_and_recipients(fields) if None in (from_addr, to_addrs) else None
        if by_header is not None:
            from_addr = by_header[0] if from_addr is None else from_addr
            to_addrs = by_header[1] if to_addrs is None else to_addrs
        if from_addr is None or to_addrs is None:
            raise InvalidEnvelope("the message has no sender: neither Sender nor From names one")
        given = [to_addrs] if isinstance(to_addrs, str) else list(to_addrs)
        # As they go out: a display name is not written, and a domain has its A-label.
        bare = [sender_mailbox(from_addr), *(mailbox(r, "recipient") for r in given)]
        international = not all(address.isascii() for address in bare) or need_utf8(fields)
        content = flatten(msg, utf8=international, fields=fields)
        sendmail = partial(self.sendmail, from_addr, given, content)  # the arguments by place, as smtplib has them
        return self._as_message(sendmail, mail_options, rcpt_options, international, deadline=end)

    @exclusive
    def _as_message(
        self,
        sendmail: Callable[[Sequence[str], Sequence[str]], dict[str, Answer]],
        mail_options: Sequence[str],
        rcpt_options: Sequence[str],
        international: bool,
        *,
        deadline: Deadline,
    ) -> dict[str, Answer]:
        self._require_no_transaction()
        self.ehlo_or_helo_if_needed()
        if international:
            if not self.has_extn("smtputf8"):
                raise NotSupported("an address beyond ASCII needs SMTPUTF8, which the server does not offer")
            mail_options = (*mail_options, "SMTPUTF8", "BODY=8BITMIME")
        return sendmail(mail_options, rcpt_options)

    # ------------------------------------------------------------ by hand

    @exclusive
    def rset(self) -> Answer:
        answer = super().rset()
        self._state = State.IDLE
        return answer

    @exclusive
    def mail(self, sender: str, options: Sequence[str] = ()) -> Answer:
        """Begin a transaction by hand. Hold `sync_root` from here to `data()` or `rset()`.

        Raises:
            NotSupported: the options name SMTPUTF8, which the server does not offer.
        """
        try:
            answer = super().mail(sender_mailbox(sender), options)
        except smtplib.SMTPNotSupportedError as exc:
            raise NotSupported(str(exc), phase=Phase.MAIL) from None
        if answer[0] == 250:
            self._state = State.OPEN
        else:
            self.command_encoding: str = "ascii"  # SMTPUTF8 was for this message
        return answer

    @exclusive
    def rcpt(self, recip: str, options: Sequence[str] = ()) -> Answer:
        return super().rcpt(mailbox(recip, "recipient"), options)

    def data(self, msg: ReadableBuffer | str, *, deadline: float | Deadline | None = None) -> Answer:
        """Send the content of a transaction begun with `mail()`; line ends become CRLF, bytes too.

        Raises:
            DataRefused: the server did not answer 354. Any other answer is returned as (code, text).
        """
        content = _message.normalise_line_ends(_message.as_bytes(msg), strict=False)
        return self._data(content, deadline=deadline)

    @exclusive
    def _data(self, content: bytes, *, deadline: float | Deadline | None) -> Answer:
        self.command_encoding = "ascii"  # SMTPUTF8 was for this message; smtplib leaves it on
        return self._drive(partial(_written_by_hand, content))


def _as_given(replies: dict[str, Answer], given: Sequence[str]) -> dict[str, Answer]:
    """`replies` under the addresses as the caller wrote them, which is where code written for smtplib looks."""
    if not replies or replies.keys() <= set(given):
        return replies
    written = {recipient: name for name in reversed(given) for recipient in Envelope("", name, b"x").recipients}
    return {written[r]: answer for r, answer in replies.items()}


def _written_by_hand(content: bytes, wire: Wire) -> Answer:
    """DATA and the content, with the outcome of what fails."""
    phase = Phase.DATA
    try:
        reply = wire.command("data")
        if reply.code == 354:
            wire.require_no_surplus()  # what lies there would be taken for the answer to the content
            phase = Phase.CONTENT
            wire.write(_delivery.stuffed(content), f"<{len(content)} octets>", timeout=wire.timeouts.content)
            phase = Phase.FINAL
            reply = wire.read_reply(wire.timeouts.final)
    except MailError as error:
        error.phase = phase
        error.outcome = Outcome.IN_DOUBT if phase is Phase.FINAL else Outcome.NOT_SENT
        raise
    except BaseException:
        wire.close()  # after a 354 the next command would be taken for content
        raise
    if reply.closes:
        wire.close()
    if phase is Phase.DATA:
        raise DataRefused(*reply.pair)
    return reply.pair
