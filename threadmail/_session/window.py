"""Messages under way content and all.

Owns the I/O of a window: commands and content of several messages written one behind the other (CHUNKING, RFC 3030, and
PIPELINING), their replies read as they are due. Guarantees: each message begins with RSET, so that none inherits
what a refused one left behind; every reply is counted; no more replies are outstanding than both sides can keep. What
is given up for it: a connection that is lost leaves each message in doubt whose content had been written, whatever the
server said before: that it is closing proves nothing about what had reached it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy

from .._protocol.progress import IN_FLIGHT, Progress
from .._protocol.transaction import Transaction
from .._transport.wire import Wire
from ..errors import BadReply, ConnectionLost, MailError, Phase, call_hook
from ..receipt import Reply


class Window:
    """What is under way on one connection, of those that leave content and all.

    Args:
        prefetched: the messages behind the one that is being seen through, in order; those written are in the window.

    Attributes:
        saw_closing: the server has said 421.
    """

    def __init__(self, wire: Wire, prefetched: deque[Progress]) -> None:
        self._wire = wire
        self._prefetched = prefetched
        self._outstanding = 0  # replies
        self._broken: ConnectionLost | None = None  # nothing can be written any more; what was said can still be read
        self.saw_closing = False
        self._closing = False  # 421 was the last reply
        self._at_start = True  # no transaction of a message that has been answered can stand

    def has_room(self, size: int) -> bool:
        """Whether another message may be asked for, of `size` at once."""
        return (
            len(self._prefetched) < size - 1
            and self._outstanding < IN_FLIGHT
            and self._broken is None
            and not (self._prefetched and self._prefetched[-1].waiting)
        )

    def fits(self, progress: Progress) -> bool:
        """Whether the replies to this message may be outstanding as well; else it is written in its turn."""
        return self._outstanding + len(progress.before) + len(progress.waiting) <= IN_FLIGHT

    def write(
        self, progress: Progress, before_final: Callable[[Transaction], None] | None, *, in_turn: bool = True
    ) -> None:
        """Write a message, all of it at once. A connection that breaks is noticed when its replies are due.

        The server may have said why it hangs up, and that it took the messages ahead, before it did.

        Args:
            before_final: what it raises keeps the message from being written.
            in_turn: the call under way is for this message; else its objection waits for the one that will be, for
                the messages ahead have left and are owed their replies.
        """
        if self._broken is not None:
            return
        wire, transaction = self._wire, progress.transaction
        if not self._outstanding:
            wire.require_quiet()
            wire.acknowledges_at_once = True
        lines = [*progress.before, *(command.line for command in progress.waiting)]
        assert progress.chunk is not None
        if before_final is not None:
            try:
                call_hook(before_final, transaction)
            except Exception as exc:
                if in_turn:
                    raise
                progress.refusal = exc
                return
        transaction.phase = Phase.FINAL  # first, so that an interrupt in the write below leaves the message in doubt
        progress.take()
        self._outstanding += len(lines)
        try:
            wire.write_chunk(lines, progress.chunk)
        except ConnectionLost as error:
            if wire.content_left > 0:
                transaction.phase = Phase.MAIL  # the server cannot have the last byte, and takes no part for the whole
            if not wire.is_open:
                raise
            self._broken = error

    def say_goodbye(self) -> None:
        """Write QUIT behind all that was written."""
        if self._broken is None:
            try:
                self._wire.write_chunk(["quit"], b"")
            except ConnectionLost as error:
                if not self._wire.is_open:
                    raise
                self._broken = error

    def take(self, progress: Progress) -> None:
        """Take the replies to a message, all of them, whatever the first one says."""
        wire, transaction = self._wire, progress.transaction
        if progress.waiting:
            assert self._broken is not None
            raise copy(self._broken)
        for _ in progress.before:
            reply = self._read()
            # A server that goes on after a 421 need not have reset anything, but then there must have been nothing to.
            if reply.code != 250 and not (self._closing and self._at_start):
                raise BadReply(f"RSET was answered {reply}")
        while progress.unanswered and wire.is_open:
            command = progress.unanswered.popleft()
            decided = transaction.error is not None
            try:
                reply = self._read(final=command.phase is Phase.FINAL)
                if command.phase is not Phase.FINAL:
                    transaction.take(command, reply)
                elif not decided:
                    transaction.take_final("", reply)
                elif reply.positive:
                    transaction.phase = Phase.FINAL  # whom it was taken for, nobody knows
                    raise BadReply(f"what was refused before was accepted with {reply}")
            except MailError:
                if not decided:
                    raise
                wire.close()  # what was refused stays refused, however the rest goes
                return
            if transaction.error is not None and not decided and command.phase is not Phase.FINAL:
                transaction.phase = command.phase
            self._at_start = command.phase is Phase.FINAL and reply.positive
        if self._broken is not None and not self._outstanding:
            wire.close()

    def _read(self, *, final: bool = False) -> Reply:
        """Read the next reply."""
        timeouts = self._wire.timeouts
        announced, self._closing = self._closing, False
        reply = self._wire.read_reply(timeouts.quit if announced else timeouts.final if final else timeouts.command)
        self._outstanding -= 1
        if reply.closes:
            # It is closing (RFC 5321 §3.8): nothing more is written. But some say so, to put off one recipient, and go
            # on (field: Exim's `defer message = 421`); what they took they tell in their next replies. One that does
            # hang up may have taken what had reached it all the same, and died before it could say so.
            self._closing = self.saw_closing = True
            self._broken = self._broken or ConnectionLost(f"the server is closing: {reply}")
        return reply
