"""How many connections a server takes at once, as far as it has shown.

Owns what a refusal means while other connections serve: the server is not dead, it is full, and mail goes on by those
that are there. Guarantees: a full server is asked for one more only after growing pauses. Has no lock and does no
waiting: its owner calls it under the lock of the pool. Time and chance are arguments. What a refusal means when nobody
serves is the business of the circuit breaker.
"""

from __future__ import annotations

import random

from ..errors import MailError

#: Seconds after the first refusal until one more connection is asked for, doubled by each refusal after it; and at
#: most. Many servers count connections a minute, so to ask more often than that is to stay refused.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Room:
    """See the module.

    Args:
        rng: chance, for jitter.

    Attributes:
        refusals: in a row, those of one moment counted once.
        opens_at: when one more connection may be asked for while others serve, on the monotonic clock.
        error: the last refusal; None if one more was let in since.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.refusals = 0
        self.opens_at = 0.0
        self.error: MailError | None = None

    def refused(self, error: MailError, now: float, *, alone: bool = False) -> None:
        """One more was not let in.

        Args:
            error: what the server said; kept, so a copy that nothing hangs on.
            alone: nobody else was there, or dialled.
        """
        if now < self.opens_at and not alone:
            return  # who dialled at the same time as the first that was refused tells nothing new
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.refusals, 30))
        self.refusals += 1
        self.error = error
        self.opens_at = now + pause / 2  # first, as in the breaker
        self.opens_at += self._rng.uniform(0, pause / 2)

    def found(self) -> None:
        """One more was let in."""
        self.refusals, self.opens_at, self.error = 0, 0.0, None
