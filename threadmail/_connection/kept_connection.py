"""A connection that is there when it is needed, and one that can be trusted.

Owns one dialogue with a server for as long as its owner lives: connecting and logging in when first needed, checking a
kept connection before it is trusted, replacing it when it is stale, worn or old, closing it when nobody uses it.
Guarantees: having a connection and using it are one critical section; what is asked of a connection that was replaced
had no effect on the old one; a connection made before a fork is never spoken on after it; neither a doubt about the old
connection nor a farewell to it uses up the time that a new one needs. What is sent on it is the business of `Client`.

A signal handler, a log handler or a finaliser may come in the middle of a call, in the very thread that makes it. There
`abort()`, `stats()`, `repr()` and the properties work as anywhere else, for they take no lock; all else is refused at
once (`Reentered`), and the call goes on unharmed.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar, cast

from .._protocol.transaction import Terms, Transaction
from .._runtime.deadline import NEVER, Deadline, now
from .._runtime.guard import Guarded, Root, holding
from .._runtime.life import Life
from .._runtime.locks import new_rlock
from .._runtime.threads import join_thread
from .._transport.lookup import CalledOff, Waiter
from ..config import ServerConfig
from ..errors import (
    INSTEAD,
    Aborted,
    Closed,
    MailError,
    Phase,
    Reentered,
    TimedOut,
    kept_copy,
)
from .evidence import mail_was_answered, was_stale, was_taken_back
from .idle import IdleWatch
from .opening import AnySMTP, Pair, as_ours, ask, is_lack, open_session, pair_to_offer, terms_of, unconnected
from .waiters import Waiters

#: A connection idle for longer than this is asked (NOOP) before it is trusted, in seconds. Shorter gaps are covered by
#: the look at the socket; a question each time made servers hang up (Symfony #35515).
PROBE_AFTER = 5.0

#: What a probe of the old connection, or a farewell to it, may take of the caller's time: a quarter of what is left,
#: and at most so many seconds.
SHARE = 5.0

#: Seconds for a call of another thread to end whose connection `close` has dropped: it may be dialling.
LAST_WAIT = 30.0

_AT_ONCE = Deadline(0.0)

#: Called when a server is about to be dialled. What it raises forbids that, and ends the call.
BeforeDial: TypeAlias = Callable[[], None]

#: Called when a dial is over: with None if there is a session now, else with what kept it from being one.
AfterDial: TypeAlias = Callable[["MailError | None"], None]

#: In a forked child: what is the parent's, and what takes its place.
Connections: TypeAlias = "tuple[AnySMTP | None, ...]"
Fresh: TypeAlias = "tuple[Root, Waiters, dict[AnySMTP, None], dict[str, int], IdleWatch | None]"

_T = TypeVar("_T")


class KeptConnection(Guarded):
    """One dialogue, had when it is needed.

    Args:
        config: the server.
        rng: chance, for the jitter of `max_age`.
        watch_idle: let a thread close the connection after `idle_timeout`.
        before_dial, after_dial: for an owner who has a say in when the server is dialled; see `Client`.
    """

    def __init__(
        self,
        config: ServerConfig,
        rng: random.Random,
        *,
        watch_idle: bool,
        before_dial: BeforeDial | None = None,
        after_dial: AfterDial | None = None,
    ) -> None:
        self._before_dial, self._after_dial = before_dial, after_dial
        self.config = config
        self._rng = rng
        self._aborted = False  # the one field that abort() writes without the lock; cleared when a call begins
        self._last_abort: object = None  # ... and another object each time, for calls that take several steps
        self._parted = False  # no call is to begin any more; set without the lock, once and for all
        self._waiters = Waiters()
        self._waiter: Waiter | None = None  # the last wait for our own name; under way, or over
        # Everything below is guarded by sync_root.
        self._life = Life.OPEN
        self._busy = False  # a call is under way; only its own thread can see it so
        self._smtp: AnySMTP | None = None
        self._last_used = 0.0
        self._expires_at = 0.0
        self._sent_here = 0  # messages on this connection
        self._dialled_at = 0.0
        self._logged_in = False
        self._terms = Terms()  # of this connection
        # What `stats` tells; each can be looked at without the lock.
        self._opened = self._sent = 0
        # Whether the server is there for mail: for a pool, when nobody else uses this.
        self._turned_down = 0  # messages that failed, though their MAIL was answered
        self._answers_before = 0  # this connection
        self._taken_back: MailError | None = None  # what a connection ended with on which no MAIL was answered
        self._closed: Mapping[str, int] = {}  # replaced whole
        self._leaving: dict[AnySMTP, None] = {}  # what is being said goodbye on; by the idle watch without the lock
        self._watch = IdleWatch(self) if watch_idle and self.config.idle_timeout is not None else None
        super().__init__()

    # ------------------------------------------------------------ state

    # These three wait for nobody: whoever asks would stand behind the network I/O of another thread.

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection. It proves nothing: the server may have hung up since."""
        smtp = self._smtp
        return smtp is not None and smtp.sock is not None and not self.is_inherited

    @property
    def prefetched(self) -> Transaction | None:
        """The message that was begun while the last one was under way, and that the next call is for."""
        smtp = self._smtp
        pipeline = smtp._pipeline if smtp is not None else None  # not `_prefetched`: it is asked for each message
        return pipeline.prefetched[0].transaction if pipeline is not None and pipeline.prefetched else None

    @property
    def is_authenticated(self) -> bool:
        """Whether there is a connection and it is logged in."""
        return self.is_connected and self._logged_in

    @property
    def _answers(self) -> int:
        """How often the server answered a MAIL."""
        return self._sent + self._turned_down

    def _hear(self, error: MailError) -> None:
        """Note what the end of a message says of the server."""
        if mail_was_answered(error):
            self._turned_down += 1
        elif was_taken_back(error) and self._answers == self._answers_before:
            self._taken_back = kept_copy(error)

    # ------------------------------------------------------------ ending

    def abort(self) -> None:
        """Drop the connection under the call that another thread is making. Takes no lock and returns at once.

        That call ends with `Aborted`, NOT_SENT or IN_DOUBT by the phase it was in; while it dials an address it ends
        when that does. A `send_all` ends as a whole: what it has not begun is NOT_SENT. The client stays usable.
        """
        if self.is_inherited:
            return  # the call under way, and the connection under it, are the parent's
        self._aborted = True
        self._last_abort = object()
        waiter, smtp = self._waiter, self._smtp
        if waiter is not None:
            waiter.call_off()
        if smtp is not None:
            smtp.abort()
        self._cut_farewells()

    def close(self, *, timeout: float | None = 5.0) -> None:
        """End the session and refuse further calls. May be called twice, and from any thread.

        Args:
            timeout: seconds for a call of another thread to finish, before the connection is dropped under it, and for
                the farewell.
        Raises:
            TimedOut: another thread holds `sync_root` and does not let go of it, even so. It can make no further call,
                and the next `close` goes on here.
            Reentered: this very thread is in the middle of a call on this client, which goes on unharmed. `abort()`
                ends that.
        """
        end = Deadline.after(timeout)
        try:
            with self._waiters.entering(self.sync_root, end):
                watcher = self._finish(end)
        except TimedOut:
            self._parted = True  # first: else the next message of a batch would dial again
            self.abort()
            # The call under way ends at once, or with its dial.
            with holding(self.sync_root, Deadline.after(LAST_WAIT)):
                watcher = self._finish(_AT_ONCE)
        left = end.remaining()
        join_thread(watcher, SHARE if left is None else left)
        if self._leaving:
            self._cut_farewells()
            join_thread(watcher, SHARE)

    def _cut_farewells(self) -> None:
        for smtp in list(self._leaving):
            smtp.abort()

    def _part(self, end: Deadline, reason: str = "closed", *, patience: Deadline = _AT_ONCE) -> bool:
        """For a pool, which does not wait for who may still use what it has to end: end the session, and for good.

        Args:
            end: by when the farewell is over.
            reason: for the statistics.
            patience: until when who holds `sync_root` is waited for.
        Returns:
            Whether all is closed. Else somebody holds `sync_root`, or this very thread is in the middle of a call: the
            connection is dropped under them, they can make no other one, and `_part` is to be called again.
        """
        self._parted = True
        root = self.sync_root
        if not root._is_owned():
            try:
                with holding(root, patience):
                    self._finish(end, reason)
                return True
            except TimedOut:
                pass
        self.abort()
        return False

    def _finish(self, end: Deadline, reason: str = "closed") -> threading.Thread | None:
        if self._busy:
            raise self._unusable()
        self._life = Life.CLOSING  # an exception from outside may end the farewell; then the next one goes on here
        self._disconnect(reason, end)
        self._life = Life.CLOSED
        return self._watch.stop() if self._watch is not None else None

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------ under sync_root

    # A call begins by one look and two fields set, with no call between them: an exception from outside, and a signal
    # handler, come up when something is called.

    def _called(self, end: Deadline, call: Callable[[], _T]) -> _T:
        with self._waiters.entering(self.sync_root, end):
            if self._busy or self._life is not Life.OPEN or self._parted:
                raise self._unusable()
            self._busy, self._aborted = True, False
            try:
                return call()
            finally:
                self._busy = False
                self._last_used = now()
                if self._smtp is not None and self._smtp.sock is None:
                    self._disconnect("lost")

    def _unusable(self) -> MailError:
        if self._busy:
            return Reentered(f"this thread is in the middle of a call on this client: {INSTEAD}")
        return Closed("this client is closed: make a new one")

    def _with_connection(self, end: Deadline, action: Callable[[AnySMTP], _T], begun: Transaction | None = None) -> _T:
        smtp, fresh = self._ready(end, begun)
        try:
            return action(smtp)
        except MailError as error:
            if fresh or not self._is_stale(smtp, error, end):
                raise
        return action(self._anew(end))

    def _is_stale(self, smtp: AnySMTP, error: MailError, end: Deadline) -> bool:
        """Whether a kept connection failed as one does that the server had hung up on, and there is time for another.

        Not with others under way there, content and all, whose replies are still to come.
        """
        return not end.passed and smtp._prefetched is None and was_stale(error)

    def _anew(self, end: Deadline) -> AnySMTP:
        """A connection in the place of one that was stale: nothing of value was on it, and nobody needs to know.

        Once only: a new connection that fails as well is news.
        """
        self._disconnect("stale")
        return self._connect(end)

    def _ready(self, end: Deadline, begun: Transaction | None = None) -> tuple[AnySMTP, bool]:
        """A connection that can be trusted, or that has prefetched the message of `begun`; and whether it is new."""
        prefetched = self.prefetched
        if prefetched is not None:
            if prefetched is begun:
                return cast("AnySMTP", self._smtp), False
            self._disconnect("lost")  # replies to another message are to come there
        if self._smtp is not None:
            end.check("the client was waited for")  # else the connection would be taken for a broken one
            reason = self._why_replace(self._smtp, end)
            if reason is None:
                if self._watch is not None and (self._watch.is_missing or self._watch.has_died):
                    self._watch.start()
                # One that was dialled a moment ago and not used yet is as good as new: its failure is no staleness.
                return self._smtp, self._sent_here == 0 and now() - self._dialled_at < PROBE_AFTER
            self._disconnect(reason, _share(end))
        return self._connect(end), True

    def _still_good(self, end: Deadline) -> bool:
        """For a pool, which asks its breaker before it dials: whether the kept connection can be trusted.

        One that cannot is dropped, and no other one is made. The caller holds `sync_root`.
        """
        smtp = self._smtp
        if smtp is not None and self._life is Life.OPEN and not (self._busy or self._parted or self._is_worn()):
            at = now()  # the usual case, without what a question takes
            if at < self._expires_at and at - self._last_used <= PROBE_AFTER and smtp.is_quiet():
                return True
            end.check("the client was waited for")  # as in `_ready`; not in a call, after which it counts as just used
        return self._called(end, lambda: self._looked_at(end))

    def _looked_at(self, end: Deadline) -> bool:
        if self._smtp is not None and (reason := self._why_replace(self._smtp, end)) is not None:
            self._disconnect(reason, _share(end))
        return self._smtp is not None

    def _is_free(self) -> bool:
        """For a pool: whether it may be handed on: connected, and nobody holds it or is in the middle of a call."""
        root = self.sync_root
        if root._is_owned():
            return False
        try:
            with holding(root, _AT_ONCE):
                smtp = self._smtp
                return smtp is not None and smtp.sock is not None and smtp._prefetched is None
        except TimedOut:
            return False

    def _why_replace(self, smtp: AnySMTP, end: Deadline) -> str | None:
        if now() >= self._expires_at:
            return "age"
        if self._is_worn():
            return "worn"
        if not smtp.is_quiet():
            return "stale"
        if now() - self._last_used > PROBE_AFTER:
            try:
                code = smtp.noop(deadline=_share(end).within(self.config.timeouts.probe))[0]
            except MailError:
                end.check("testing the connection")
                return "stale"  # also where only its share was over: what does not answer a NOOP is no use
            return None if code == 250 else "stale"
        return None

    def _is_worn(self) -> bool:
        return self.config.max_messages is not None and self._sent_here >= self.config.max_messages

    def _connect(self, end: Deadline) -> AnySMTP:
        if self._before_dial is not None:
            ask(self._before_dial)
        try:
            smtp = self._dial(end, pair_to_offer(self.config))  # where there is none: the owner is told as of a dial
        except BaseException as exc:
            if self._after_dial is not None:
                interrupted = Aborted(f"the dial was interrupted by {type(exc).__name__}", phase=Phase.CONNECT)
                ask(self._after_dial, exc if isinstance(exc, MailError) else interrupted)
            raise
        if self._after_dial is not None:
            ask(self._after_dial, None)
        return smtp

    def _dial(self, end: Deadline, pair: Pair | None) -> AnySMTP:
        smtp = self._smtp = self._new_smtp(end)  # from here on abort() reaches it
        try:
            # A call that looked at `_parted` a moment too early may have taken the note of the abort away.
            if not (self._aborted or self._parted):
                open_session(smtp, self.config, end, pair)
            if self._aborted or self._parted:
                raise Aborted("the call was ended by abort()", phase=Phase.CONNECT)
            if smtp._wire is not None:
                smtp._wire.tick_in_kernel()  # nobody but us ever sees this socket
            config, at, answers = self.config, now(), self._answers
            terms, logged_in, max_age = terms_of(smtp, config), config.needs_login, config.max_age
            expires_at = NEVER.at if max_age is None else at + max_age * self._rng.uniform(0.9, 1.0)
            if self._watch is not None:
                self._watch.start()
        except BaseException:
            self._smtp = None
            smtp.close()
            raise
        # Plain statements alone: an exception from outside between them would leave it with the terms of the last one.
        self._terms, self._logged_in, self._dialled_at, self._expires_at = terms, logged_in, at, expires_at
        self._sent_here, self._answers_before = 0, answers
        self._opened += 1
        return smtp

    def _new_smtp(self, end: Deadline) -> AnySMTP:
        try:
            return unconnected(self.config, self.sync_root, end, self._new_waiter)
        except CalledOff:
            raise Aborted("the call was ended by abort()", phase=Phase.CONNECT) from None
        except MailError as error:
            error.phase = error.phase or Phase.CONNECT
            raise
        except Exception as exc:
            if not is_lack(exc):
                raise
            raise as_ours(exc, self.config, Phase.CONNECT) from exc

    def _new_waiter(self) -> Waiter:
        waiter = self._waiter = Waiter()  # from here on abort() reaches it
        if self._aborted or self._parted:
            waiter.call_off()
        return waiter

    def _disconnect(self, reason: str, end: Deadline = NEVER) -> None:
        """End the session.

        Args:
            reason: see `ClientStats`.
            end: by when the farewell is over.
        """
        smtp = self._taken_out(reason)
        if smtp is not None:
            self._say_goodbye(smtp, end, quietly=reason in ("stale", "lost"))

    def _taken_out(self, reason: str) -> AnySMTP | None:
        """The session, which is this client's no more."""
        smtp, self._smtp = self._smtp, None
        self._logged_in = False
        if smtp is not None:
            self._closed = {**self._closed, reason: self._closed.get(reason, 0) + 1}
        return smtp

    def _say_goodbye(self, smtp: AnySMTP, end: Deadline, *, quietly: bool = False) -> None:
        """Close, with a farewell unless somebody is prefetched or it would not be heard."""
        try:
            if not quietly and smtp.sock is not None and smtp._prefetched is None:
                self._leaving[smtp] = None  # from here on abort() reaches it again
                smtp.quit(deadline=end)
        except MailError:
            pass  # the farewell is a courtesy, for which nobody's deadline is missed
        finally:
            self._leaving.pop(smtp, None)
            smtp.close()

    def _inherited(self, pid: int) -> Connections | None:
        return None if self._pid == pid else (self._smtp, *self._leaving)

    def _made_anew(self, pid: int, inherited: Connections) -> Fresh:
        for smtp in inherited:
            if smtp is not None:
                smtp.enter_child(pid)
        # The thread of the watch did not come along.
        return Root(new_rlock()), Waiters(), {}, {}, None if self._watch is None else IdleWatch(self)

    def _begin(self, pid: int, fresh: Fresh) -> None:
        root, waiters, leaving, closed, watch = fresh
        if self._pid == pid:
            return
        self._smtp, self._leaving = None, leaving
        self._busy = self._logged_in = False
        self._opened = self._sent = self._turned_down = self._answers_before = 0  # of this process
        self._closed, self._taken_back = closed, None
        self._waiters, self._waiter, self._watch = waiters, None, watch
        self._root, self._pid = root, pid

    # ------------------------------------------------------------ the idle watch

    def close_idle(self) -> float | None:
        """Close the connection if it has been idle for `idle_timeout`. For whoever watches over this client.

        Nobody who wants to send waits for the farewell: it is said when `sync_root` has been let go of.

        Returns:
            Seconds until it is worth looking again, or None: there is nothing to close.
        """
        limit = self.config.idle_timeout
        while limit is not None:
            try:
                with holding(self.sync_root, _AT_ONCE):
                    if self._busy:
                        return limit  # a call of this very thread
                    if self._smtp is None:
                        if self._watch is not None:
                            self._watch.ended()
                        return None
                    left = self._last_used + limit - now()
                    if left > 0:
                        return left
                    leaving = self._taken_out("idle")
                    assert leaving is not None
                    leaving.stand_alone()
            except TimedOut:
                return limit  # somebody is using it
            self._say_goodbye(leaving, NEVER)
        return None


def _share(end: Deadline) -> Deadline:
    """By when what concerns the old connection must be over, so that a new one can still be made."""
    left = end.remaining()
    return NEVER if left is None else Deadline.after(min(left / 4, SHARE))
