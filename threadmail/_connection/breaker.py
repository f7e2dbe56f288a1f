"""Who may dial a server that may be dead.

Owns the circuit breaker that the threads of one pool or one sender share. Guarantees: while the server answers
everybody may dial; while it does not, one dial at a time is made (the half-open probe), with growing pauses between
them. A session that opens is only half of an answer: some servers let one connection in and refuse the next, so what
failed before is forgotten when a MAIL was answered, and not before. Has no lock and does no waiting: its owner calls it
under the lock that also guards the queue or the pool. Time and chance are arguments.

    CLOSED     nothing is wrong; dial            -> OPEN       by `failed`
    OPEN       nobody may, until `opens_at`      -> HALF_OPEN  by `ask`, once the pause is over
    HALF_OPEN  one dials; the others wait        -> ON_TRIAL   by `connected`;  -> OPEN by `failed`
    ON_TRIAL   a session is open, and nothing was asked of it yet; one more dial at a time
                                                 -> CLOSED     by `answered`;   -> OPEN by `failed`
"""

from __future__ import annotations

import enum
import random

from ..errors import LoginRefused, MailError
from ..retry import LOGIN_PAUSE, RetryPolicy


class Dial(enum.Enum):
    """What a thread that needs a new connection may do."""

    NOW = "now"
    WAIT = "wait"  # another one is probing, or the pause is not over


class CircuitBreaker:
    """See the module. Whoever gets `Dial.NOW` must report once: `connected`, `failed` or `gave_up`.

    Args:
        policy: how long the pauses are, and when patience ends.
        rng: chance, for jitter.

    Attributes:
        failures: failed dials in a row, those of one moment counted once.
        opens_at: when the next probe may start, on the monotonic clock.
        error: why the last dial failed; None while nothing is wrong.
    """

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._closed = False  # nothing is known yet, so the first dial is a probe
        self._connected = False  # since the last failure
        self._barred = False  # the last login was refused for good
        self._probing = False
        self._at_once = 0  # dials under way that began while the breaker was closed
        self._failing_since = 0.0
        self.failures = 0
        self.opens_at = 0.0
        self.error: MailError | None = None

    # ------------------------------------------------------------ before a dial

    def ask(self, now: float) -> Dial:
        """May the calling thread dial?"""
        if self._closed:
            self._at_once += 1
            return Dial.NOW
        if self._probing or now < self.opens_at:
            return Dial.WAIT
        self._probing = True
        return Dial.NOW

    def pause(self, now: float) -> float | None:
        """Seconds until a probe may start; None when one is under way or may start now."""
        return None if self._closed or self._probing or now >= self.opens_at else self.opens_at - now

    @property
    def is_closed(self) -> bool:
        """Whether everybody may dial."""
        return self._closed

    @property
    def probing(self) -> bool:
        """Whether somebody owes an answer."""
        return self._probing

    # ------------------------------------------------------------ after it

    def connected(self) -> None:
        """The dial opened a session."""
        self._reported()
        self._connected = True
        self._barred = False
        # Without a failure to forget there is nothing to be careful about.
        self._closed = self._closed or not self.failures
        if self._closed:
            self.error = None

    def answered(self) -> None:
        """The server answered a MAIL, in whatever way: it is there for mail, and what failed before is forgotten.

        But not a refused login: who answers on a session of before says nothing of the password that others would offer
        again, and again, until the account is locked.
        """
        if self._barred:
            return
        if self.failures or not self._closed:
            self._closed = True
            self.failures, self.opens_at, self.error = 0, 0.0, None

    def gave_up(self) -> None:
        """The dial ended without an answer about the server, such as a deadline of the caller or an interrupt."""
        self._reported()

    def nobody_dials(self) -> None:
        """Nobody is dialling now, so nobody owes an answer, whoever was interrupted before he gave it."""
        self._probing, self._at_once = False, 0

    def failed(self, error: MailError, now: float) -> None:
        """The dial did not open a session.

        Not for an error whose `deadline_passed` says that only the caller's patience ended: that is `gave_up`.
        """
        was_closed = self._closed
        told_already = self._reported() and not was_closed
        self._open(error, now, told_already=told_already)

    def lost(self, error: MailError, now: float) -> None:
        """The server took a session back before it answered a MAIL. Nobody owes an answer for that."""
        self._open(error, now, told_already=False)

    def _open(self, error: MailError, now: float, *, told_already: bool) -> None:
        self._closed = False
        was_connected, self._connected = self._connected, False
        self.error = error
        self._failing_since = self._failing_since if self.failures else now
        refused = isinstance(error, LoginRefused) and not error.transient
        if isinstance(error, LoginRefused) and refused and error.pair_is_fixed:
            self.failures += 1
            self.opens_at = now + LOGIN_PAUSE
            self._barred = True
            return
        # Who dialled at the same time as the first that failed tells nothing new. If each of them doubled the pause,
        # sixteen threads would take a server's restart for a minute's absence.
        if told_already and not was_connected:
            return
        self.failures += 1
        if refused and self.failures == 1:
            # A callable gave what was refused: it is asked again, and only another pair is offered. Once at once; where
            # that is refused as well, the pauses grow as ever.
            self.opens_at = now
            return
        # Never at once: a quarter of the pause is fixed, so that a lucky draw does not hammer. It is noted first, for
        # chance may be a caller's own, and raise: each thread that ended by that would else be followed by the next.
        longest = min(self._policy.longest, self._policy.base * 2.0 ** min(self.failures - 1, 30))
        self.opens_at = now + longest / 4
        self.opens_at += self._rng.uniform(0, longest * 3 / 4)

    def is_final(self) -> bool:
        """Whether the last dial met what will not change. A callable may have another password, and is asked again."""
        error = self.error
        if error is None or error.transient:
            return False
        another_pair = isinstance(error, LoginRefused) and not error.pair_is_fixed and self.failures == 1
        return not another_pair

    def given_up(self, *, alive: bool) -> bool:
        """Whether the policy has no patience left for another dial.

        Args:
            alive: the server answered that it has enough to do: that is waited out for the policy's `total` time,
                for a rate limit may count minutes. A server that does not answer gets its `attempts`.
        """
        if alive and self._policy.attempts > 1:
            return self.opens_at - self._failing_since > self._policy.total
        return self.failures >= self._policy.attempts

    def _reported(self) -> bool:
        """Count a report; returns whether it is one of those that dialled while the breaker was closed.

        A slow one of them may be taken for the probe, and the probe for it: there is one probe at a time all the same.
        """
        if self._at_once:
            self._at_once -= 1
            return True
        self._probing = False
        return False
