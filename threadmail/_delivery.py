"""How messages get over the wire.

Owns the I/O of mail transactions: the commands of one in groups where the server offers PIPELINING (RFC 2920), else one
at a time; then its content, and together with that, in one write, the commands of the message that comes next; and the
way back to a session that can be used again. What the replies mean, `Transaction` knows. Guarantees: what is returned
or raised has a true receipt; the connection is ready for the next message, or closed; once a 354 has come, the content
of that message follows, or the connection is dropped; nothing of a message's content leaves before the message ahead
of it is settled, so that a lost connection leaves one message in doubt at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import closing
from typing import NoReturn, TypeAlias

from ._content import SMALL, Content, stuffed_blocks
from ._content import stuffed as stuffed  # for SMTP.data() too
from ._wire import Wire
from .envelope import Envelope
from .errors import BadReply, ConnectionLost, DataRefused, MailError, Phase
from .receipt import Receipt, Reply
from .transaction import Command, Terms, Transaction

#: Called with the transaction of a message when nothing of it has been written yet; if it raises, nothing is. Whoever
#: keeps the transaction can ask it what is known (`receipt`), whatever ends the call.
BeforeMail: TypeAlias = Callable[[Transaction], None]

#: Called before the last bytes of the content leave; if it raises, the message is surely not sent.
BeforeFinal: TypeAlias = Callable[[Envelope], None]

#: Asked for the message that comes next, when there is room for its commands; None: there is none at hand.
Follow: TypeAlias = Callable[[], Envelope | None]

#: Commands whose replies may be outstanding. Each side must be able to keep what the other has not read yet, or both
#: wait for ever (RFC 2920 §3.1): a hundred commands have 32 KiB at most, their replies 51 KiB, and usually a tenth of
#: it. Linux keeps 128 KiB.
IN_FLIGHT = 100


class Passage:
    """A message under way, and which of its commands were written and answered.

    Attributes:
        envelope: as it was given; that of the transaction may be recoded.
        before: commands written ahead of it that bring the session back to its start: `.` and `rset`, by name.
        refusal: what keeps it from being sent before its first byte.
    """

    __slots__ = ("before", "envelope", "refusal", "transaction", "unanswered", "waiting")

    def __init__(self, envelope: Envelope, terms: Terms) -> None:
        self.envelope = envelope
        self.transaction = Transaction(envelope, terms)
        self.before: list[str] = []
        self.unanswered: deque[Command] = deque()
        self.refusal: MailError | None = None
        try:
            self.waiting = deque(self.transaction.commands())
        except MailError as error:
            self.waiting = deque()
            self.refusal = error

    def take(self) -> list[Command]:
        """The commands that may be written now: one without PIPELINING, else as many as may be outstanding."""
        terms, unanswered, waiting = self.transaction.terms, self.unanswered, self.waiting
        depth = IN_FLIGHT if "pipelining" in terms.extensions else 1
        if len(unanswered) > depth // 2:
            return []
        if terms.all_or_nothing and len(waiting) > 1:
            # After a 354 there is no way back but to hang up, so who wants all or nothing asks for it when all have
            # answered.
            group = [waiting.popleft() for _ in range(min(len(waiting) - 1, depth - len(unanswered)))]
        elif terms.all_or_nothing and unanswered:
            return []
        elif len(waiting) <= depth - len(unanswered):
            group = list(waiting)
            waiting.clear()
        else:
            group = [waiting.popleft() for _ in range(depth - len(unanswered))]
        unanswered.extend(group)
        return group


class Pipeline:
    """The transactions under way on one connection.

    Attributes:
        aboard: the message whose commands were written, to the last or in part, together with the content of the one
            ahead of it. It is for the next call.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.aboard: Passage | None = None

    def send(
        self,
        envelope: Envelope,
        terms: Terms,
        *,
        before_mail: BeforeMail | None = None,
        before_final: BeforeFinal | None = None,
        follow: Follow | None = None,
    ) -> Receipt:
        """Send one message, or see the one through that is aboard.

        Takes two round trips where PIPELINING is among the terms, and one if the message was aboard; else one for each
        command.

        Args:
            follow: gives the message whose commands are to be written with the content of this one. It is aboard
                then, and must be what the next call is for; `before_mail` is called with its transaction as well.
        Returns:
            The receipt of a message that at least one recipient was accepted for.
        Raises:
            MailError: with a receipt. The connection is ready for the next message, or closed.
        """
        passage, self.aboard = self.aboard, None
        if passage is None:
            passage = Passage(envelope, terms)
            if passage.refusal is None and before_mail is not None:
                before_mail(passage.transaction)
        assert passage.envelope is envelope
        transaction = passage.transaction
        if passage.refusal is not None:
            raise transaction.blame(passage.refusal) from None
        if "pipelining" not in terms.extensions:
            follow = None
        try:
            self._exchange(passage)
            if transaction.error is None:
                self._send_content(transaction, before_mail, before_final, follow)
        except MailError as error:
            self.wire.close()
            raise transaction.blame(error) from error.__cause__
        except BaseException:
            self.wire.close()
            raise
        if transaction.error is not None:
            self._recover(transaction, before_mail, follow)
            raise transaction.blame(transaction.error)
        return transaction.receipt()

    # ------------------------------------------------------------ commands

    def _exchange(self, passage: Passage) -> None:
        """Write the commands, in overlapping groups, and take all replies, whatever the first one says."""
        wire, transaction = self.wire, passage.transaction
        if passage.before:
            self._back_at_the_start(passage.before)
        rode = bool(passage.unanswered)
        while passage.unanswered or (passage.waiting and transaction.error is None):
            if passage.waiting and transaction.error is None:
                if not passage.unanswered:
                    wire.require_quiet()
                group = passage.take()
                if group:
                    wire.write_commands([command.line for command in group])
            if not self._take_answer(transaction, passage.unanswered.popleft(), rode):
                return

    def _take_answer(self, transaction: Transaction, command: Command, rode: bool) -> bool:
        """Take one reply. Returns whether others may follow."""
        decided = transaction.error is not None
        if not decided:
            transaction.phase = command.phase
        try:
            reply = self.wire.read_reply()
            if rode and reply.code == 503 and command.phase is Phase.MAIL:
                # The one ahead has left the session in another state than it should: this says nothing of this message.
                raise BadReply(f"MAIL behind another message was answered {reply}")
            transaction.take(command, reply)
        except MailError:
            if not decided:
                raise
            self.wire.close()  # what was refused stays refused, however the rest of the group goes
        else:
            if reply.code == 421:
                self.wire.close()  # the server is closing (RFC 5321 §3.8)
        return self.wire.is_open

    def _back_at_the_start(self, before: list[str]) -> None:
        """Take the replies to what was written to end the transaction ahead."""
        while before:
            name = before.pop(0)
            reply = self.wire.read_reply()
            if reply.code == 421:
                raise ConnectionLost(f"the server is closing: {reply}")
            # Only a 250 to RSET proves that no old MAIL still stands (field: 503 nested MAIL for all later messages).
            if name == "rset" and reply.code != 250:
                raise BadReply(f"RSET was answered {reply}")

    # ------------------------------------------------------------ content

    def _send_content(
        self,
        transaction: Transaction,
        before_mail: BeforeMail | None,
        before_final: BeforeFinal | None,
        follow: Follow | None,
    ) -> None:
        wire = self.wire
        wire.require_no_surplus()  # what lies there would be taken for the answer to the content
        transaction.phase = Phase.CONTENT
        content = transaction.envelope.source
        if large := not isinstance(content, bytes) or len(content) > SMALL:
            last = _write_most(wire, content)
        else:
            last = stuffed(content)
        if before_final is not None:
            before_final(transaction.envelope)
        if (large or before_final is not None) and not wire.quiet():
            _early(wire.read_reply())
        passage = self._take_aboard(transaction.terms, before_mail, follow)
        behind = passage.take() if passage is not None else []
        transaction.phase = Phase.FINAL  # first, so that an interrupt in the write below leaves the message in doubt
        try:
            wire.write_content(last, [command.line for command in behind])
        except ConnectionLost:
            if wire.content_left > 0:  # the kernel did not take the last byte, so the server cannot have it
                transaction.phase = Phase.CONTENT
            raise
        closing = False
        for recipient in transaction.awaited:
            reply = wire.read_reply(wire.timeouts.final)
            transaction.take_final(recipient, reply)
            closing = closing or reply.code == 421
        if closing:  # though others accepted it, under LMTP
            wire.close()

    def _take_aboard(self, terms: Terms, before_mail: BeforeMail | None, follow: Follow | None) -> Passage | None:
        """Have the next message aboard, if there is one at hand."""
        envelope = follow() if follow is not None else None
        if envelope is None:
            return None
        self.aboard = passage = Passage(envelope, terms)
        if passage.refusal is None and before_mail is not None:
            before_mail(passage.transaction)
        return passage

    # ------------------------------------------------------------ after a refusal

    def _recover(self, transaction: Transaction, before_mail: BeforeMail | None, follow: Follow | None) -> None:
        """Bring the session back to its start, or close it. Raises no MailError: the refusal matters more.

        With a next message at hand this takes no round trip of its own: RSET stands at the head of its commands.
        """
        wire = self.wire
        before = ["rset"]
        if transaction.content_due:
            if not transaction.refused_by_all or transaction.terms.lmtp:
                wire.close()  # a lone dot would deliver an empty message, or be owed no reply at all (RFC 2033 §4.2)
                return
            before.insert(0, ".")
        if not wire.is_open:
            return
        if self.aboard is not None:
            # It was the content that was refused, which ends a transaction as well (RFC 5321 §4.1.1.4). Where a server
            # thinks otherwise, the MAIL that was written behind it is answered 503.
            return
        try:
            passage = self._take_aboard(transaction.terms, before_mail, follow)
            behind = passage.take() if passage is not None else []
            wire.require_quiet()
            wire.write_commands([*before, *(command.line for command in behind)])
            if passage is not None and behind:
                passage.before = before
            else:
                self._back_at_the_start(before)
        except MailError:
            wire.close()
        except BaseException:
            wire.close()
            raise


def send(
    wire: Wire,
    envelope: Envelope,
    terms: Terms,
    *,
    before_mail: BeforeMail | None = None,
    before_final: BeforeFinal | None = None,
) -> Receipt:
    """Send a message by itself: as `Pipeline.send`, with nothing aboard before or after."""
    return Pipeline(wire).send(envelope, terms, before_mail=before_mail, before_final=before_final)


def _write_most(wire: Wire, content: Content) -> bytes:
    """Write all of a large content but its last block, which is returned: the end leaves in one write with it.

    A server that refuses the content and hangs up is heard. Raises InvalidEnvelope for a file that has changed.
    """
    with closing(stuffed_blocks(content)) as pieces:
        ahead = next(pieces)
        for piece in pieces:
            try:
                wire.write(ahead, f"<{len(ahead)} octets of content>", timeout=wire.timeouts.content, listen=True)
            except ConnectionLost:
                if wire.last_words is None:
                    raise
                _early(wire.last_words)
            ahead = piece
    return bytes(ahead)


def _early(reply: Reply) -> NoReturn:
    """Raise what a reply means that came before the end of the content, which now never leaves.

    A refusal stands, and is reported; a consent to what the server has not seen is none.
    """
    if reply.transient or reply.permanent:
        raise DataRefused(*reply.pair) from None
    raise BadReply(f"the server answered before the content had ended: {reply}") from None
