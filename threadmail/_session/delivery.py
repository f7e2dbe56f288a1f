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
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import NamedTuple, NoReturn, TypeAlias

from .._message.content import SMALL, Content, stuffed_blocks
from .._message.content import stuffed as stuffed  # for SMTP.data() too
from .._protocol.progress import Progress
from .._protocol.transaction import Command, Terms, Transaction
from .._transport.wire import Wire, joined
from ..envelope import Envelope
from ..errors import BadReply, ConnectionLost, DataRefused, MailError, Phase, ReplyTimedOut, call_hook
from ..receipt import Receipt, Reply
from .window import Window

#: Called with the transaction of a message when nothing of it has been written yet; if it raises, nothing is. Whoever
#: keeps the transaction can ask it what is known (`receipt`), whatever ends the call.
BeforeMail: TypeAlias = Callable[[Transaction], None]

#: Called with the transaction it is for, as the very last thing before the write that holds the end of data: between
#: the two nothing is read, written, waited for or locked. If it raises, the message is surely not sent.
BeforeFinal: TypeAlias = Callable[[Transaction], None]


# A member of an enum has to be looked up, each time.
_MAIL, _CONTENT, _FINAL = Phase.MAIL, Phase.CONTENT, Phase.FINAL

_RESET = ("rset",)
_NOTHING_OR_RESET = ((), _RESET)


class Follower(NamedTuple):
    """The message that comes next, and its own `before_mail`."""

    envelope: Envelope
    before_mail: BeforeMail | None = None


#: Asked for the message that comes next, when there is room for it; None: there is none at hand.
Follow: TypeAlias = Callable[[], Follower | None]


class Pipeline:
    """The transactions under way on one connection.

    Attributes:
        prefetched: the message whose commands were written, to the last or in part, together with the content of the
            one ahead of it; in a window all that were written behind it. They are for the next calls, in order.
        said_goodbye: QUIT was written behind the last message; its reply is still to be read.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.prefetched: deque[Progress] = deque()
        self.said_goodbye = False
        self._window = Window(wire, self.prefetched)

    def send(
        self,
        envelope: Envelope,
        terms: Terms,
        *,
        before_mail: BeforeMail | None = None,
        before_final: BeforeFinal | None = None,
        follow: Follow | None = None,
        is_last: Callable[[], bool] | None = None,
    ) -> Receipt:
        """Send one message, or see the one through that is prefetched.

        Takes two round trips where PIPELINING is among the terms, and one if the message was prefetched; else one for
        each command.

        Args:
            follow: gives the message whose commands are to be written with the content of this one; with a window,
                messages to be written behind it. They are prefetched then, and what the next calls are for.
            is_last: whether no more messages are to come over this connection: then QUIT leaves with the content of the
                last one, and the server has closed by the time it is needed no more.
            before_final: what it raises about a message behind this one in a window is kept for the call that is for
                that message; those ahead, which have left, are answered meanwhile. Nothing kept is an interrupt.
        Where `terms.riding` has ended, neither `follow` nor `is_last` is asked.
        Returns:
            The receipt of a message that at least one recipient was accepted for.
        Raises:
            MailError: with a receipt. The connection is ready for the next message, or closed.
        """
        # Until the `try` below nothing may be taken off and called after: an exception from outside comes when a call
        # returns, and a message that is gone from `prefetched` with replies due has them taken for another one's.
        prefetched = self.prefetched
        riding = progress = prefetched[0] if prefetched else None
        if progress is None:
            progress = Progress(envelope, terms)
            if progress.refusal is None and before_mail is not None:
                try:
                    call_hook(before_mail, progress.transaction)
                except MailError as error:
                    raise progress.transaction.blame(error) from error.__cause__
        assert progress.envelope is envelope
        transaction = progress.transaction
        if progress.refusal is not None:
            if isinstance(progress.refusal, MailError):
                transaction.blame(progress.refusal)
            if riding is not None:
                prefetched.popleft()  # nothing of it was written
            raise progress.refusal from progress.refusal.__cause__
        if "pipelining" not in terms.extensions or terms.riding.ended:
            follow = is_last = None
        rode = progress.chunk is None and bool(progress.before or progress.unanswered)
        try:
            try:
                if riding is not None:
                    prefetched.popleft()
                if progress.chunk is not None:
                    self._send_in_window(progress, before_final, follow, is_last)
                else:
                    self._exchange(progress)
                    if transaction.error is None:
                        source = transaction.envelope.source
                        if (
                            isinstance(source, bytes)
                            and len(source) <= SMALL
                            and before_final is None
                            and not terms.lmtp
                        ):
                            self._send_small(transaction, source, follow, is_last)
                        else:
                            self._send_content(transaction, before_final, follow, is_last)
            except MailError as error:
                self._learn(transaction, error, rode)
                self.wire.close()
                raise transaction.blame(error) from error.__cause__
            if transaction.error is not None:
                self._recover(transaction, follow)
        except BaseException:
            self.wire.close()
            raise
        if transaction.error is not None:
            raise transaction.blame(transaction.error)
        return transaction.receipt()

    def _learn(self, transaction: Transaction, error: MailError, rode: bool) -> None:
        """End riding for a server that seems to mind it, before more messages come to doubt for it."""
        if self.wire.aborted or self.wire.deadline.passed or self._window.saw_closing:
            return  # it is we who had enough, or the server has said why
        riding, server = transaction.terms.riding, transaction.terms.server
        if transaction.phase is _FINAL:
            if self.prefetched or self.said_goodbye:
                riding.end(server, error)
        elif rode and transaction.phase is not _CONTENT:
            if isinstance(error, (BadReply, ReplyTimedOut)):
                riding.end(server, error)  # it is out of step, or has overlooked what rode: there may be worse
            else:
                riding.hung_up(server, error)

    def _prefetch(self, terms: Terms, follower: Follower) -> Progress:
        """Have the next message prefetched."""
        progress = Progress(follower[0], terms)
        self.prefetched.append(progress)
        if follower[1] is not None:
            call_hook(follower[1], progress.transaction)
        return progress

    def _take_behind(self, terms: Terms, follow: Follow | None) -> list[str]:
        """Ask for the next message, where one by itself is under way. Returns the commands to write with it.

        RSET is their head: it costs no round trip. It ends what a content that is refused may leave behind, and a
        server in the field crashes on a bare MAIL and RCPT there (Dovecot submission 2.3: 10 of 10 sessions).
        """
        follower = follow() if follow is not None and not self.prefetched else None
        if follower is None:
            return []
        progress = self._prefetch(terms, follower)
        # One that is for a window opens it, in its turn; and of one that the server cannot take there is nothing.
        if progress.chunk is not None or progress.refusal is not None:
            return []
        progress.before = _RESET
        return ["rset", *[each[1] for each in progress.take()]]

    def _farewell(self, is_last: Callable[[], bool] | None) -> bool:
        """Whether QUIT is to be written now: behind all that is to be, once."""
        if is_last is None or self.said_goodbye or not is_last():
            return False
        if any(each.chunk is None or each.waiting for each in self.prefetched):
            return False  # its content is still to come
        self.said_goodbye = True
        return True

    def _send_in_window(
        self,
        progress: Progress,
        before_final: BeforeFinal | None,
        follow: Follow | None,
        is_last: Callable[[], bool] | None,
    ) -> None:
        """Keep the window full, and take the replies to the first message in it."""
        terms = progress.transaction.terms
        if progress.waiting:
            self._window.write(progress, before_final, in_turn=True)
        while self._window.has_room(terms.window):
            follower = follow() if follow is not None else None
            if follower is None:
                break
            behind = self._prefetch(terms, follower)
            if behind.chunk is not None and self._window.fits(behind):
                self._window.write(behind, before_final, in_turn=False)
        if self._farewell(is_last):
            self._window.say_goodbye()
        self._window.take(progress)

    # ------------------------------------------------------------ commands

    def _exchange(self, progress: Progress) -> None:
        """Write the commands, in overlapping groups, and take all replies, whatever the first one says."""
        wire, transaction = self.wire, progress.transaction
        rode = bool(progress.unanswered)
        if not rode:
            self._write_group(progress)
        begun = None
        if not progress.waiting and progress.before in _NOTHING_OR_RESET:
            ahead = len(progress.before)
            count = ahead + len(progress.unanswered)
            known = wire.read_known_group(count)
            if known is not None:
                transaction.take_consent(known[ahead:])
                if rode and transaction.terms.riding.hang_ups:
                    transaction.terms.riding.hang_ups = 0
                return
            begun = wire.place
        if progress.before:
            self._back_at_the_start(progress.before)
        while progress.unanswered or (progress.waiting and transaction.error is None):
            if progress.waiting and transaction.error is None:
                self._write_group(progress)
            if not self._take_answer(transaction, progress.unanswered.popleft(), rode):
                return
        if begun is not None and transaction.error is None:
            wire.learn_group(begun, count)
        if rode:
            transaction.terms.riding.hang_ups = 0

    def _write_group(self, progress: Progress) -> None:
        """Write the commands that may be written now, if any."""
        if not progress.unanswered:
            progress.transaction.phase = progress.waiting[0].phase
            self.wire.require_quiet()
        group = progress.take()
        if group:
            self.wire.write_commands([command[1] for command in group])

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
            if reply.closes:
                self.wire.close()  # the server is closing (RFC 5321 §3.8)
        return self.wire.is_open

    def _back_at_the_start(self, before: Sequence[str]) -> None:
        """Take the replies to what was written to end the transaction ahead."""
        for name in before:
            reply = self.wire.read_reply()
            if reply.closes:
                raise ConnectionLost(f"the server is closing: {reply}")
            # Only a 250 to RSET proves that no old MAIL still stands (field: 503 nested MAIL for all later messages).
            if name == "rset" and reply.code != 250:
                raise BadReply(f"RSET was answered {reply}")

    # ------------------------------------------------------------ content

    def _send_small(
        self, transaction: Transaction, source: bytes, follow: Follow | None, is_last: Callable[[], bool] | None
    ) -> None:
        """As `_send_content`, for what nearly all messages are: one block, one reply, nobody to be told before."""
        wire = self.wire
        wire.require_no_surplus()
        transaction.phase = _CONTENT
        behind = self._take_behind(transaction.terms, follow)
        if is_last is not None and is_last() and self._farewell(is_last):
            behind.append("quit")
        tail = joined(behind) if behind else b""
        data = stuffed(source, tail)
        transaction.phase = _FINAL
        try:
            wire.write_content(data, behind, len(data) - len(tail))
        except ConnectionLost:
            if wire.content_left > 0:
                transaction.phase = _CONTENT
            raise
        reply = wire.read_reply(wire.timeouts.final)
        transaction.take_final("", reply)
        if reply.closes:
            wire.close()

    def _send_content(
        self,
        transaction: Transaction,
        before_final: BeforeFinal | None,
        follow: Follow | None,
        is_last: Callable[[], bool] | None,
    ) -> None:
        wire = self.wire
        wire.require_no_surplus()  # what lies there would be taken for the answer to the content
        transaction.phase = Phase.CONTENT
        content = transaction.envelope.source
        if large := not isinstance(content, bytes) or len(content) > SMALL:
            last = _write_most(wire, content)
        else:
            last = stuffed(content)
        if (large or before_final is not None) and not wire.quiet():
            _early(wire.read_reply())
        behind = self._take_behind(transaction.terms, follow)
        if self._farewell(is_last):
            behind.append("quit")
        data = last + joined(behind) if behind else last
        if before_final is not None:
            call_hook(before_final, transaction)
        transaction.phase = Phase.FINAL  # first, so that an interrupt in the write below leaves the message in doubt
        try:
            wire.write_content(data, behind, len(last))
        except ConnectionLost:
            if wire.content_left > 0:  # the kernel did not take the last byte, so the server cannot have it
                transaction.phase = Phase.CONTENT
            raise
        closing = False
        for recipient in transaction.awaited:
            reply = wire.read_reply(wire.timeouts.final)
            transaction.take_final(recipient, reply)
            closing = closing or reply.closes
        if closing:  # though others accepted it, under LMTP
            wire.close()

    # ------------------------------------------------------------ after a refusal

    def _recover(self, transaction: Transaction, follow: Follow | None) -> None:
        """Bring the session back to its start, or close it. Raises no MailError: the refusal matters more.

        With a next message at hand this takes no round trip of its own: RSET stands at the head of its commands.
        """
        wire = self.wire
        dot: tuple[str, ...] = ()
        if transaction.content_due:
            if not transaction.refused_by_all or transaction.terms.lmtp:
                wire.close()  # a lone dot would deliver an empty message, or be owed no reply at all (RFC 2033 §4.2)
                return
            dot = (".",)
        if not wire.is_open:
            return
        if self.said_goodbye or any(progress.unanswered for progress in self.prefetched):
            return  # what was written behind it has an RSET at its head
        try:
            behind = self._take_behind(transaction.terms, follow)
            wire.require_quiet()
            wire.write_commands([*dot, *(behind or ["rset"])])
            if behind:
                self.prefetched[0].before = dot + _RESET
            else:
                self._back_at_the_start(dot + _RESET)
        except MailError:
            wire.close()


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
