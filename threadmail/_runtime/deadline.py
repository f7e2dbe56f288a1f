"""Time, in one place.

Owns the one clock hook (`now`) and `Deadline`, the absolute point that every wait of a call is measured against: it is
computed once, so a call made of many waits ends when it was told to, however each of them goes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf

from ..errors import TimedOut
from .numbers import require_number

#: What locks and sockets can still count, in seconds: 23 days. Nobody waits longer than that, whatever was asked for.
LONGEST = 2_000_000.0


def now() -> float:
    """Seconds on the monotonic clock. Everything in the package reads the time here."""
    return time.monotonic()


class DeadlinePassed(TimeoutError):
    """A wait was over because the caller's deadline came, and no time-out of the config did.

    Between the one who waits and the one who makes an error of ours of it; no user meets it.
    """


@dataclass(frozen=True)
class Deadline:
    """A point in time by which a call is over; `Deadline()` never comes."""

    at: float = inf

    @classmethod
    def after(cls, seconds: float | Deadline | None) -> Deadline:
        """The deadline `seconds` from now; None means never, and a Deadline is itself.

        Raises:
            InvalidConfig: it is no number.
        """
        if seconds is None:
            return NEVER
        if isinstance(seconds, Deadline):
            return seconds
        require_number("deadline or timeout", seconds, unit=" of seconds")
        return cls(now() + seconds)

    def within(self, seconds: float | Deadline | None) -> Deadline:
        """The earlier of this deadline and the one `seconds` from now."""
        other = Deadline.after(seconds)
        return other if other.at < self.at else self

    def remaining(self) -> float | None:
        """Seconds left, at least 0; None where there is no end. What `acquire`, `wait` and `settimeout` take."""
        return None if self.at == inf else min(max(0.0, self.at - now()), LONGEST)

    @property
    def passed(self) -> bool:
        return self.at != inf and self.at <= now()

    def check(self, doing: str) -> None:
        """Raise TimedOut if the deadline has passed."""
        if self.passed:
            raise out_of_time(f"the deadline passed while {doing}")


def out_of_time(message: str) -> TimedOut:
    """The error for a deadline of the caller that passed."""
    error = TimedOut(message)
    error.deadline_passed = True
    return error


NEVER = Deadline()
