"""Who closes what nobody uses.

Owns the thread that looks after idle connections while there are any. Guarantees: it holds its owner weakly, so a
forgotten client can still be collected, and ends when that happens; it sleeps on a stop signal; it ends when there is
nothing left to close, and is started again with the next connection. It is a courtesy: where no thread can be started
nobody is disturbed, and it is tried again later.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from .._runtime.deadline import LONGEST
from .._runtime.threads import start_thread


class ClosesIdle(Protocol):
    def close_idle(self) -> float | None:
        """Close what is idle; returns seconds until it is worth looking again, or None: nothing is left."""


class IdleWatch:
    """The thread of one owner. Methods are called under the owner's lock, but for `join_thread` of what `stop` returns.

    The stop signal is a SimpleQueue and no Event: the one who sends it may be the garbage collector, in the middle of
    whatever this thread or another one is about, and an Event has a lock that the same thread may hold. `put` is
    reentrant by design.
    """

    def __init__(self, owner: ClosesIdle) -> None:
        self._owner = weakref.ref(owner)
        self._stop: queue.SimpleQueue[None] | None = None
        self._thread: threading.Thread | None = None
        self.is_missing = False  # it was wanted and could not be started
        # By an exception, and another one is to be started. The thread itself sets it, without the lock.
        self.has_died = False

    def start(self) -> None:
        """Watch, unless a thread does already; where none can be started, `is_missing` says so."""
        owner = self._owner()
        if owner is None or (self._thread is not None and not self.has_died and self._thread.is_alive()):
            return
        self.is_missing, self.has_died = True, False
        # CPython 3.11 takes a thread for dead when whoever asks whether it lives is struck in that very moment.
        self.stop()
        stop = self._stop = queue.SimpleQueue()
        # The thread holds this reference, so its callback comes although owner and watch are collected together.
        owner_ref = weakref.ref(owner, lambda _: stop.put(None))
        try:
            self._thread = start_thread(_watch, name="threadmail-idle", args=(owner_ref, stop, self._died))
        except BaseException:
            stop.put(None)  # an exception from outside: one that runs all the same is nobody's
            raise
        self.is_missing = self._thread is None

    def ended(self) -> None:
        """The thread has been told that there is nothing left, or has died, and will not look again."""
        self._thread = self._stop = None
        self.has_died = False

    def _died(self) -> None:
        """By the thread: it ends too early."""
        self.has_died = True

    def stop(self) -> threading.Thread | None:
        """Let the thread end now. Returns it, to be joined when the owner's lock has been released."""
        if self._stop is not None:
            self._stop.put(None)
        return self._thread


def _watch(owner_ref: weakref.ref[ClosesIdle], stop: queue.SimpleQueue[None], died: Callable[[], None]) -> None:
    try:
        pause: float | None = 0.0
        while pause is not None and not _wait_for(stop, pause):
            owner = owner_ref()
            if owner is None:
                return
            pause = owner.close_idle()
            del owner  # while it sleeps, the thread must not keep its owner alive
    except BaseException:  # there is no memory, perhaps
        died()
        raise


def _wait_for(stop: queue.SimpleQueue[None], seconds: float) -> bool:
    try:
        stop.get(timeout=min(seconds, LONGEST))
    except queue.Empty:
        return False
    return True
