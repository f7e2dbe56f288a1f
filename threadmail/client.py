"""One connection that looks after itself.

Owns what is said over a connection that `_connection.kept_connection` has ready: messages, one or many, and questions.
Guarantees: connecting if needed and sending are one critical section; a message is written to a replaced connection
only if nothing of its content was handed to the old one. Leaves retries and more than one connection to
`ThreadedSender` and `ClientPool`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from ._connection.batch import BatchPart, require_many
from ._connection.batch import Message as Message
from ._connection.chance import chance
from ._connection.kept_connection import AfterDial, BeforeDial, KeptConnection
from ._connection.opening import AnySMTP
from ._protocol.transaction import Transaction
from ._runtime.deadline import NEVER, Deadline, now
from ._runtime.life import Life
from ._session.delivery import BeforeFinal, BeforeMail, Follow, Follower
from .config import ServerConfig
from .envelope import Envelope
from .errors import BadReply, ConnectionLost, MailError, TimedOut, detach
from .receipt import Receipt, Reply, Report

#: Messages of `send_all` after which other threads that share the client come in.
TURN = 50

_T = TypeVar("_T")


@dataclass(frozen=True)
class ClientStats:
    """What a client has done so far. Numbers only grow.

    Attributes:
        opened: connections made.
        sent: messages accepted for at least one recipient.
        closed: connections ended, by reason: "idle", "age", "worn" (`max_messages`), "stale" (the server had hung up),
            "lost" (it failed in use), "closed".
    """

    opened: int = 0
    sent: int = 0
    closed: Mapping[str, int] = field(default_factory=dict)


class Client(KeptConnection):
    """One self-healing connection that threads can share.

    Nothing happens before the first use. `with client.sync_root:` makes several calls one step. Use it as a context
    manager, or call `close()`.

    In a signal handler, a log handler or a hook that comes in the middle of a call of this client, on the same thread,
    `abort()`, `stats()` and the properties work; `close()` and all that would write raises `Reentered` at once, and the
    call goes on unharmed. Nothing hangs there.

    Args:
        server: a `ServerConfig` or a URL for one.
        rng: chance, for the jitter of `max_age`.
        watch_idle: let a thread close the connection after `idle_timeout`; owners that do so themselves say False.
        before_dial: called each time the server is about to be dialled, also where a kept connection proves stale in
            the middle of a call. For owners of several clients of a server that may be dead: what it raises (a
            MailError) forbids the dial and ends the call.
        after_dial: called when that dial is over: with None if there is a session, else with the error. An `Aborted`,
            as after an interrupt, and an error whose `deadline_passed` is set say nothing about the server. Not called
            where `before_dial` raised. Both are called on the thread of the call, which holds `sync_root`.
    Raises:
        InvalidConfig: the URL is wrong, or `rng` is no `random.Random`.
    """

    def __init__(
        self,
        server: str | ServerConfig,
        *,
        rng: random.Random | None = None,
        watch_idle: bool = True,
        before_dial: BeforeDial | None = None,
        after_dial: AfterDial | None = None,
    ) -> None:
        super().__init__(
            ServerConfig.of(server),
            chance(rng),
            watch_idle=watch_idle,
            before_dial=before_dial,
            after_dial=after_dial,
        )

    # ------------------------------------------------------------ sending

    def send(self, message: Message, *, deadline: float | Deadline | None = None) -> Receipt:
        """Send one message.

        Args:
            message: an `EmailMessage` (or `Message`), the bytes of one, or an `Envelope`.
            deadline: seconds that all of this may take, waiting for other threads included.
        Returns:
            The receipt: `outcome` is SENT, or PARTIAL if some recipients were refused.
        Raises:
            MailError: nobody got it, or (`outcome` IN_DOUBT) nobody knows; `receipt` has the details, and `may_resend`
                says whether to send it again is of use and safe (`transient` alone does not say that it is safe).
            InvalidEnvelope: the message is not fit to be sent.
        """
        envelope = Envelope.of(message)
        try:
            return self.transmit(envelope, deadline=deadline)
        except MailError as error:
            told = Receipt.after(envelope, error)
            if told is error.receipt or told.error is None:
                raise
            raise told.error from error.__cause__

    def transmit(
        self,
        envelope: Envelope,
        *,
        deadline: float | Deadline | None = None,
        all_or_nothing: bool = False,
        before_mail: BeforeMail | None = None,
        before_final: BeforeFinal | None = None,
        follow: Follow | None = None,
        begun: Transaction | None = None,
    ) -> Receipt:
        """As `send`, for an envelope, with more say.

        Args:
            all_or_nothing: send to every recipient or to none.
            before_mail: called with the transaction when a connection is ready and nothing of the message has been
                written; if it raises, nothing is. Called again if the connection proves stale and is replaced.
            before_final: called with the transaction of a message as the very last thing before the write that holds
                its end of data: between the two there is no I/O, no lock and no look at the socket. If it raises, the
                message is surely not sent, and the exception is that of the call for this message (of a `MailError` a
                copy, with its receipt). In a `window` it is called for the messages behind this one as well, each in
                its order.
            follow: asked, where the server offers PIPELINING, for the message that the next call will be for, or None.
                Its commands leave with the content of this one, which saves a round trip. Nothing of its content does
                before that call, unless the config has a `window`: then it is asked for so many, and content leaves
                as well. Who gives them lets nobody else use the client meanwhile (`sync_root`), keeps the transactions
                that their `before_mail` is called with, and looks at `prefetched` before each of those calls: what is
                not there any more was lost with its connection, and its transaction knows whether it is in doubt.
            begun: the transaction of this message, if it is the prefetched one.
        """
        end = NEVER if deadline is None else Deadline.after(deadline)
        riding = follow is not None and not all_or_nothing and not self.config._riding.ended
        asked = partial(self._follower, follow) if follow is not None and riding else None

        # As `_called`, which costs more than all else that is done here.
        with self._waiters.entering(self.sync_root, end):
            if self._busy or self._life is not Life.OPEN:
                raise self._unusable()
            # What is prefetched is seen through: its content may have left, and it is not to be told that it has not.
            if self._parted and (begun is None or begun is not self.prefetched):
                raise self._unusable()
            self._busy, self._aborted = True, False
            try:
                if begun is not None and begun is self.prefetched and not all_or_nothing:
                    # The short way: there is nothing to look at, and nobody to be counted again.
                    receipt = self._go_on(envelope, end, before_mail, before_final, asked)
                else:
                    attempt = partial(self._attempt, envelope, end, all_or_nothing, before_mail, before_final, asked)
                    receipt = self._with_connection(end, attempt, begun)
                self._sent += 1
                return receipt
            except MailError as error:
                self._hear(error)
                raise
            finally:
                self._busy = False
                self._last_used = now()
                if self._smtp is not None and self._smtp.sock is None:
                    self._disconnect("lost")

    def _go_on(
        self,
        envelope: Envelope,
        end: Deadline,
        before_mail: BeforeMail | None,
        before_final: BeforeFinal | None,
        follow: Follow | None,
    ) -> Receipt:
        """See the message through that is prefetched; on another connection, if this one proves stale."""
        smtp = self._smtp
        assert smtp is not None
        try:
            return smtp._transact(
                envelope,
                self._terms,
                end,
                before_mail=before_mail,
                before_final=before_final,
                follow=follow,
                is_last=self._is_worn,
            )
        except MailError as error:
            if not self._is_stale(smtp, error, end):
                raise
        return self._attempt(envelope, end, False, before_mail, before_final, follow, self._anew(end))

    def _attempt(
        self,
        envelope: Envelope,
        end: Deadline,
        all_or_nothing: bool,
        before_mail: BeforeMail | None,
        before_final: BeforeFinal | None,
        follow: Follow | None,
        smtp: AnySMTP,
    ) -> Receipt:
        """Send a message over a connection that is ready."""
        if smtp._prefetched is None:
            self._sent_here += 1
        return smtp._transact(
            envelope,
            replace(self._terms, all_or_nothing=True, window=1) if all_or_nothing else self._terms,
            end,
            before_mail=before_mail,
            before_final=before_final,
            follow=follow,
            is_last=self._is_worn,
        )

    @property
    def offers_riding(self) -> bool:
        """Whether a message may be prefetched behind another one: `follow` is asked.

        Not any more when a connection of this config was lost with a message in doubt and another one prefetched behind
        it, or when the server answered what rode as nobody may. Pipelining as such goes on.
        """
        return not self.config._riding.ended

    def _follower(self, follow: Follow) -> Follower | None:
        """What is to come prefetched; nobody does on a connection that is to be replaced."""
        most = self.config.max_messages
        if now() >= self._expires_at or (most is not None and self._sent_here >= most):
            return None
        follower = follow()
        if follower is not None:
            self._sent_here += 1
        return follower

    def send_all(self, messages: Iterable[Message], *, deadline: float | Deadline | None = None) -> Report:
        """Send messages one after another. Raises for none of them: the report tells.

        Where the server offers PIPELINING the commands of each message leave with the content of the one before, which
        takes one round trip a message. Threads that share the client take turns of `TURN` messages. There are no
        retries; when no session can be opened, and after `abort()` or `close()`, the rest is not tried.

        The messages of a turn are pulled from the iterable before the client is taken, so that a slow one holds up no
        other thread: what it gave half a second ago is sent, but not while it makes the next one. It is always read to
        its end. For messages that come when they please, there is `ThreadedSender.submit`.

        Args:
            deadline: seconds that all of this may take; what is not on the wire by then is not sent.
        Returns:
            One receipt for each message, in input order.
        Raises:
            TypeError: it is one message, and no iterable of them.
            Closed, Reentered: this client is closed, or in the middle of a message of the calling thread.
            Exception: what the iterable raised, once the messages it gave before have been sent; or what comes from
                outside, such as a time limit of a job queue.
        """
        require_many(messages, "send_all")
        end = Deadline.after(deadline)
        receipts: list[Receipt] = []
        last: Receipt | None = None
        source = iter(messages)
        batch = object()
        before = self._last_abort

        def called_off() -> bool:
            return self._last_abort is not before

        try:
            while turn := BatchPart(source, TURN):
                # The lock first, and both anew for each turn: in a forked child it makes the line that of the child.
                root = self.sync_root
                line = self._waiters
                if turn.is_full:  # another one may follow
                    line.begin(batch)
                try:
                    with line.entering(root, end):
                        try:
                            receipts += turn.taken_by(self, end, last, called_off)
                        finally:
                            if self.prefetched is not None:  # an exception from outside has left somebody behind
                                self._disconnect("lost")
                except TimedOut as error:
                    receipts += turn.not_sent(detach(error))
                last = turn.last or last
                if turn.failure is not None:
                    raise turn.failure
                if turn.is_full and not self.sync_root._is_owned():  # else nobody could come in
                    self._waiters.let_in(batch, end)
        finally:
            self._waiters.end(batch)
        return Report(receipts)

    def noop(self, *, deadline: float | Deadline | None = None) -> Reply:
        """Connect if needed, and ask the server for a sign of life."""
        return self._ask(lambda smtp, end: smtp.noop(deadline=end), deadline)

    def verify(self, address: str, *, deadline: float | Deadline | None = None) -> Reply:
        """Ask the server about an address (VRFY). Most answer 252: they will not say."""
        return self._ask(lambda smtp, end: smtp._together(lambda: smtp.verify(address), deadline=end), deadline)

    def connect(self, *, deadline: float | Deadline | None = None) -> None:
        """Connect and log in now, unless a good connection is there."""
        end = Deadline.after(deadline)
        self._called(end, lambda: self._ready(end))

    def _ask(
        self, question: Callable[[AnySMTP, Deadline], tuple[int, bytes]], deadline: float | Deadline | None
    ) -> Reply:
        end = Deadline.after(deadline)

        def attempt(smtp: AnySMTP) -> Reply:
            reply = Reply(*question(smtp, end))
            if reply.code == 221 or reply.closes:
                raise ConnectionLost(f"the server is closing: {reply}")
            if not (reply.positive or reply.transient or reply.permanent):
                smtp.close()
                raise BadReply(f"a question was answered {reply}")
            return reply

        return self._called(end, lambda: self._with_connection(end, attempt))

    # ------------------------------------------------------------ looking at it

    def stats(self) -> ClientStats:
        """What the client has done so far."""
        return ClientStats(self._opened, self._sent, self._closed)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.config.url}>"
