"""When to try again.

Owns `RetryPolicy`, the rule by which a message that was surely not sent gets another attempt, and `DialGate`, the rule
by which threads that share a dead server dial it one at a time. Neither waits nor sleeps: they say until when, and the
queue does the waiting. Time and chance are arguments, so tests can choose them.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from .errors import InvalidConfig, LoginRefused, MailError, Outcome
from .receipt import Receipt

#: Seconds for which a refused login is not tried again with the same password: servers lock accounts for less.
LOGIN_PAUSE = 300.0


@dataclass(frozen=True)
class RetryPolicy:
    """How often, how long and how far apart to try.

    Only what is surely not sent and may succeed later is tried again, and only for the recipients it concerns.

    Args:
        attempts: at most this many, the first included; and at most so many dials of a server that does not answer.
            With more than one, what the server put off for its own sake (greylisting, rate and connection limits) does
            not count: that ends with `total`.
        base: seconds before the second attempt, at most; doubled for each one after it.
        longest: seconds between two attempts, at most.
        total: seconds from the first attempt to the last, at most.
        resend_in_doubt: also try again what is in doubt. The recipient may get it twice: your choice.
    """

    attempts: int = 5
    base: float = 1.0
    longest: float = 60.0
    total: float = 300.0
    resend_in_doubt: bool = False

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidConfig(f"attempts must be at least 1, not {self.attempts}")
        for name in ("base", "longest", "total"):
            if getattr(self, name) < 0:
                raise InvalidConfig(f"{name} must not be negative")

    def pause(self, attempt: int, rng: random.Random) -> float:
        """Seconds to wait after the `attempt`-th attempt failed: full jitter, so that retries spread out.

        Full jitter makes the least work for server and client of the usual ways to back off (AWS Architecture Blog,
        "Exponential Backoff And Jitter").
        """
        return rng.uniform(0, min(self.longest, self.base * 2.0 ** min(attempt - 1, 30)))

    def recipients(self, receipt: Receipt) -> tuple[str, ...]:
        """For whom the message of `receipt` may be tried again; () when for nobody."""
        if receipt.outcome is Outcome.IN_DOUBT and self.resend_in_doubt:
            final = {*receipt.accepted, *(r for r, reply in receipt.refused.items() if not reply.transient)}
            return tuple(r for r in receipt.recipients if r not in final)
        return receipt.deferred

    def next_attempt(self, receipt: Receipt, elapsed: float, rng: random.Random, *, spared: int = 0) -> float | None:
        """Seconds until the next attempt, or None if there is none.

        Args:
            receipt: of all attempts so far.
            elapsed: seconds since the first attempt began.
            spared: how many of the attempts do not count.
        """
        if self.attempts == 1 or receipt.attempts - spared >= self.attempts or not self.recipients(receipt):
            return None
        pause = self.pause(receipt.attempts, rng)
        return pause if elapsed + pause <= self.total else None


class Dial(enum.Enum):
    """What a thread that needs a new connection may do."""

    NOW = "now"
    WAIT = "wait"  # another one is probing, or the pause is not over


class DialGate:
    """Who may dial a server that may be dead: everybody while it answers, one probe at a time while it does not.

    Has no lock: its owner calls it under the lock that also guards the queue or the pool.
    """

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._healthy = False  # nothing is known yet, so the first dial is a probe
        self._probing = False
        self._at_once = 0  # dials under way that began while the server answered
        self.failures = 0  # in a row
        self._failing_since = 0.0
        self.opens_at = 0.0  # when the next probe may start
        self.error: MailError | None = None  # why the last dial failed

    def ask(self, now: float) -> Dial:
        """May the calling thread dial? Whoever gets NOW must report `succeeded`, `failed` or `gave_up`."""
        if self._healthy:
            self._at_once += 1
            return Dial.NOW
        if self._probing or now < self.opens_at:
            return Dial.WAIT
        self._probing = True
        return Dial.NOW

    @property
    def healthy(self) -> bool:
        """Whether the server answered when it was last dialled."""
        return self._healthy

    @property
    def probing(self) -> bool:
        """Whether somebody owes an answer."""
        return self._probing

    def succeeded(self) -> None:
        self._reported()
        self._healthy, self._probing = True, False
        self.failures, self.opens_at, self.error = 0, 0.0, None

    def failed(self, error: MailError, now: float) -> None:
        was_healthy, self._healthy = self._healthy, False
        self.error = error
        told_already = self._reported() and not was_healthy
        if isinstance(error, LoginRefused) and not error.transient:
            self.failures += 1
            self.opens_at = now + LOGIN_PAUSE
            return
        # Who dialled at the same time as the first that failed tells nothing new. If each of them doubled the pause,
        # sixteen threads would take a server's restart for a minute's absence.
        if told_already:
            return
        self._failing_since = self._failing_since if self.failures else now
        self.failures += 1
        # Never at once: a quarter of the pause is fixed, so that a lucky draw does not hammer.
        longest = min(self._policy.longest, self._policy.base * 2.0 ** min(self.failures - 1, 30))
        self.opens_at = now + longest / 4 + self._rng.uniform(0, longest * 3 / 4)

    def _reported(self) -> bool:
        """Count a report; returns whether it is one of those that dialled a healthy server.

        A slow one of them may be taken for the probe, and the probe for it: there is one probe at a time all the same.
        """
        if self._at_once:
            self._at_once -= 1
            return True
        self._probing = False
        return False

    def given_up(self, *, alive: bool) -> bool:
        """Whether the policy has no patience left for another dial.

        Args:
            alive: the server answered that it has enough to do: that is waited out for the policy's `total` time,
                for a rate limit may count minutes. A server that does not answer gets its `attempts`.
        """
        if alive and self._policy.attempts > 1:
            return self.opens_at - self._failing_since > self._policy.total
        return self.failures >= self._policy.attempts

    def pause(self, now: float) -> float | None:
        """Seconds until a probe may start; None when one is under way or may start now."""
        return None if self._healthy or self._probing or now >= self.opens_at else self.opens_at - now

    def gave_up(self) -> None:
        """The dial ended without an answer about the server, such as a deadline of the caller or an interrupt."""
        self._reported()
