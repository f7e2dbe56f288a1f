"""When to try again.

Owns `RetryPolicy`, the rule by which a message that was surely not sent gets another attempt. It
neither waits nor sleeps: it says until when, and the queue does the waiting. Time and chance are arguments, so tests
can choose them. Who may dial a server that may be dead is the circuit breaker's business.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import isfinite

from ._runtime.numbers import require_number, require_whole
from .errors import InvalidConfig, Outcome
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
        require_whole("attempts", self.attempts)
        if self.attempts < 1:
            raise InvalidConfig(f"attempts must be at least 1, not {self.attempts}")
        for name in ("base", "longest", "total"):
            require_number(name, getattr(self, name), unit=" of seconds")
            if getattr(self, name) < 0:
                raise InvalidConfig(f"{name} must not be negative")
        if not isfinite(self.base * 2.0**30):
            raise InvalidConfig("base must be a finite number of seconds: a share of infinity is no pause")

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
