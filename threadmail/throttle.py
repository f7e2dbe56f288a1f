"""How many messages a second.

Owns `Throttle`, a token bucket that any number of threads, senders and pools may share. Guarantees: over any span of
time no more than burst + rate x span tokens are given. Knows nothing of mail.
"""

from __future__ import annotations

import os
import threading

from ._deadline import Deadline, now, out_of_time
from ._guard import after_fork
from .errors import InvalidConfig


class Throttle:
    """At most `messages` in `per` seconds, after a burst.

    Args:
        messages: how many; None is no limit (then only `pause` has an effect).
        per: in how many seconds.
        burst: how many at once after a quiet time; 1 by default, which spaces messages evenly.
    """

    def __init__(self, messages: float | None = None, per: float = 1.0, burst: int = 1) -> None:
        if messages is not None and not messages > 0:
            raise InvalidConfig(f"messages must be more than 0, not {messages!r}")
        if not per > 0 or burst < 1:
            raise InvalidConfig("per must be more than 0 seconds, and burst at least 1")
        self._rate = None if messages is None else messages / per
        self._burst = float(burst)
        self._pid = 0
        self.enter_child(os.getpid())
        self._tokens = self._burst
        self._counted_at = now()
        self._paused_until = 0.0
        after_fork(self)

    def enter_child(self, pid: int) -> None:
        """In a forked child: have a lock of its own, for the one inherited may be held by a thread that is not here.

        Called by the hook, and by the senders that use it where hooks do not run.
        """
        if self._pid != pid:
            self._pid = pid
            # Guards tokens, when they were counted, and the pause; a leaf: nothing is called under it.
            self._lock = threading.Lock()
            # Taken by itself, never by way of the condition: its `__exit__` is a function, and an exception from
            # outside that comes up where that begins would leave the lock held.
            self._changed = threading.Condition(self._lock)

    @property
    def is_limited(self) -> bool:
        """Whether it counts messages; else only `pause` has an effect."""
        return self._rate is not None

    @property
    def is_paused(self) -> bool:
        """Whether a pause is under way. Takes no lock: who looks just before one begins has asked before it began."""
        return bool(self._paused_until) and self._paused_until > now()

    def take(self) -> float:
        """Take a token and return 0.0, or take none and return the seconds until it is worth asking again."""
        # Most senders are not limited, and all their lanes come by here for each message. Who looks just before a pause
        # begins has asked before it began.
        if self._rate is None and not self._paused_until:
            return 0.0
        with self._lock:
            time = now()
            if time < self._paused_until:
                return self._paused_until - time
            if self._rate is None:
                return 0.0
            self._tokens = min(self._burst, self._tokens + (time - self._counted_at) * self._rate)
            self._counted_at = time
            if self._tokens >= 1.0:
                self._tokens -= 1.0
                return 0.0
            return (1.0 - self._tokens) / self._rate

    def give_back(self) -> None:
        """Return a token that was taken for nothing."""
        with self._lock:
            self._tokens = min(self._burst, self._tokens + 1.0)

    def pause(self, seconds: float) -> None:
        """Give no token for `seconds` from now; a longer pause that is under way stays."""
        with self._lock:
            self._paused_until = max(self._paused_until, now() + seconds)

    def acquire(self, deadline: float | Deadline | None = None) -> None:
        """Wait for a token.

        Args:
            deadline: seconds this may take.
        Raises:
            TimedOut: there will be none before the deadline.
        """
        end = Deadline.after(deadline)
        while pause := self.take():
            left = end.remaining()
            if left is not None and left < pause:
                raise out_of_time(f"the throttle gives no token for another {pause:.1f} s")
            with self._lock:
                self._changed.wait(pause)
