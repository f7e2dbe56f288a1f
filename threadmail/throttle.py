"""How many messages a second.

Owns `Throttle`, a token bucket that any number of threads and senders may share. Guarantees: over any span of
time no more than burst + rate x span tokens are given; who waits in `acquire` is served in the order of asking; every
method may be called by a signal handler or a finaliser, whatever the interrupted thread is about. Knows nothing of
mail.
"""

from __future__ import annotations

import _thread
import os
import queue
import threading
from collections import deque
from math import inf
from typing import NamedTuple, TypeAlias

from ._runtime.deadline import LONGEST, Deadline, now, out_of_time
from ._runtime.guard import InEachProcess
from ._runtime.locks import new_rlock
from ._runtime.numbers import require_number
from .errors import InvalidConfig, TimedOut


class _Bucket(NamedTuple):
    """How many tokens there were, and when that was."""

    tokens: float
    counted_at: float


#: One place in the line: what is put there ends a wait.
_Place: TypeAlias = "queue.SimpleQueue[None]"

#: A lock, who stands in line, and on which threads: what another process has for itself.
_Fresh: TypeAlias = "tuple[_thread.RLock, deque[_Place], dict[int, None]]"


class Throttle(InEachProcess):
    """At most `messages` in `per` seconds, after a burst.

    Senders take it as a setting, several of them the same one. A `Client` and a `ClientPool` do not pace: call
    `acquire()` before each message that they send.

    Args:
        messages: how many; None is no limit (then only `pause` has an effect).
        per: in how many seconds.
        burst: how many at once after a quiet time; 1 by default, which spaces messages evenly.
    """

    _pid: int = 0  # the process that it has begun in

    def __init__(self, messages: float | None = None, per: float = 1.0, burst: int = 1) -> None:
        if messages is not None:
            require_number("messages", messages)
        require_number("per", per)
        require_number("burst", burst)
        if messages is not None and not messages > 0:
            raise InvalidConfig(f"messages must be more than 0, not {messages!r}")
        if not per > 0 or burst < 1:
            raise InvalidConfig("per must be more than 0 seconds, and burst at least 1")
        self._rate = None if messages is None else messages / per
        if self._rate is not None and not 0.0 < self._rate < inf:
            raise InvalidConfig(f"{messages!r} messages in {per!r} seconds is no rate that can be kept")
        self._burst = float(burst)
        self._begin(os.getpid(), self._new())
        self._bucket = _Bucket(self._burst, now())
        self._paused_until = 0.0
        super().__init__()

    # In a forked child it has a lock of its own, for the one inherited may be held by a thread that is not here. It is
    # entered by the hook, and by the senders that use it where hooks do not run.

    def _inherited(self, pid: int) -> tuple[()] | None:
        return None if self._pid == pid else ()

    def _made_anew(self, pid: int, inherited: tuple[()]) -> _Fresh:
        return self._new()

    def _new(self) -> _Fresh:
        return new_rlock(), deque(), {}

    def _begin(self, pid: int, fresh: _Fresh) -> None:
        lock, line, in_line = fresh
        if self._pid == pid:
            return
        # Guards the bucket and the pause; a leaf: nothing is called under it that waits. Reentrant, for a signal
        # handler may ask in the middle of it. So each change is made in one statement that nothing comes between,
        # and what was computed from a bucket that is another one by then is computed again.
        self._lock = lock
        # Who waits, in the order of asking. No lock: each operation on it is atomic, and whoever leaves wakes the
        # one who is first then, who may be told so twice and never not at all.
        self._line = line
        self._in_line = in_line  # which threads those are
        self._pid = pid

    # ------------------------------------------------------------ without waiting

    @property
    def is_limited(self) -> bool:
        """Whether it counts messages; else only `pause` has an effect."""
        return self._rate is not None

    @property
    def is_paused(self) -> bool:
        """Whether a pause is under way. Takes no lock: who looks just before one begins has asked before it began."""
        return bool(self._paused_until) and self._paused_until > now()

    def take(self) -> float:
        """Take a token and return 0.0, or take none and return the seconds until it is worth asking again.

        It does not look at who waits in `acquire`: who comes back after those seconds has waited as well.
        """
        # Most senders are not limited, and all their workers come by here for each message. Who looks just before a
        # pause begins has asked before it began.
        if self._rate is None and not self._paused_until:
            return 0.0
        with self._lock:
            while True:
                time, bucket = now(), self._bucket
                pause = self._pause_for(1, bucket, time)
                if pause or self._rate is None:
                    return pause
                left = _Bucket(self._counted(bucket, time) - 1.0, max(time, bucket.counted_at))
                if self._bucket is bucket:
                    self._bucket = left
                    return 0.0

    def give_back(self) -> None:
        """Return a token that was taken for nothing."""
        with self._lock:
            while True:
                bucket = self._bucket
                more = _Bucket(min(self._burst, bucket.tokens + 1.0), bucket.counted_at)
                if self._bucket is bucket:
                    self._bucket = more
                    break
        self._wake_first()

    def pause(self, seconds: float) -> None:
        """Give no token for `seconds` from now; a longer pause that is under way stays."""
        until = now() + seconds
        with self._lock:
            if self._paused_until < until:
                self._paused_until = until

    @property
    def paused_until(self) -> float:
        """Until when `pause` lets nobody pass, on the monotonic clock; perhaps over."""
        return self._paused_until

    def _counted(self, bucket: _Bucket, time: float) -> float:
        """How many tokens there are at `time`."""
        assert self._rate is not None
        return min(self._burst, bucket.tokens + max(0.0, time - bucket.counted_at) * self._rate)

    def _pause_for(self, count: int, bucket: _Bucket, time: float) -> float:
        """Seconds until the last of `count` tokens will be there, if each is taken when it comes."""
        paused = max(0.0, self._paused_until - time)
        if self._rate is None:
            return paused
        lacking = count - self._counted(bucket, time + paused)
        # Not a pause too short for any clock to notice: a token that lacks the last bit of a float is one.
        return paused + lacking / self._rate if lacking > 1e-9 else paused

    # ------------------------------------------------------------ waiting

    def acquire(self, deadline: float | Deadline | None = None) -> None:
        """Wait for a token; first come, first served.

        A signal handler that interrupts a thread in here does not stand in line behind itself: it takes the next token.

        Args:
            deadline: seconds this may take.
        Raises:
            TimedOut: there will be none before the deadline. Nothing was taken, and those behind move up.
        """
        end, me = Deadline.after(deadline), threading.get_ident()
        place: _Place = queue.SimpleQueue()
        if me in self._in_line:
            self._await_token(place, end)
            return
        if not self._line and not self.take():
            return
        try:
            self._in_line[me] = None
            ahead = len(self._line)
            self._line.append(place)
            self._await_turn(place, ahead, end)
            self._await_token(place, end)
        finally:
            try:
                self._leave(place, me)
            except BaseException:
                self._leave(place, me)  # an exception from outside came in between; those behind must not wait for it
                raise

    def _await_turn(self, place: _Place, ahead: int, end: Deadline) -> None:
        with self._lock:
            pause = self._pause_for(ahead + 1, self._bucket, now())
        left = end.remaining()
        if left is not None and left < pause:
            raise _too_late(pause)
        if self._line[0] is not place:
            # Nobody wakes one who is not first. Who wakes because his time is over may find a token all the same.
            _wait(place, end.remaining())

    def _await_token(self, place: _Place, end: Deadline) -> None:
        while pause := self.take():
            left = end.remaining()
            if left is not None and left < pause:
                raise _too_late(pause)
            _wait(place, pause)

    def _leave(self, place: _Place, me: int) -> None:
        self._in_line.pop(me, None)
        try:
            self._line.remove(place)
        except ValueError:
            pass  # done already
        self._wake_first()

    def _wake_first(self) -> None:
        try:
            self._line[0].put(None)
        except IndexError:
            pass  # nobody waits


def _wait(place: _Place, seconds: float | None) -> None:
    try:
        place.get(timeout=None if seconds is None else min(seconds, LONGEST))
    except queue.Empty:
        pass


def _too_late(pause: float) -> TimedOut:
    return out_of_time(f"the throttle gives no token for another {pause:.1f} s")
