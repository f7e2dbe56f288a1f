"""Who closes what nobody uses.

Owns the thread that looks after idle connections while there are any. Guarantees: it holds its owner weakly, so a
forgotten client can still be collected; it sleeps on a stop signal; it ends when there is nothing left to close, and is
started again with the next connection.
"""

from __future__ import annotations

import threading
import weakref
from typing import Protocol


class ClosesIdle(Protocol):
    def close_idle(self) -> float | None:
        """Close what is idle; returns seconds until it is worth looking again, or None: nothing is left."""


class IdleWatch:
    """The thread of one owner. Methods are called under the owner's lock, but for `join`."""

    def __init__(self, owner: ClosesIdle) -> None:
        self._owner = weakref.ref(owner)
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch, unless a thread does already."""
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=_watch, args=(self._owner, self._stop), name="threadmail-idle", daemon=True
            )
            self._thread.start()

    def ended(self) -> None:
        """The thread has been told that there is nothing left, and will not look again."""
        self._thread = self._stop = None

    def stop(self) -> threading.Thread | None:
        """Let the thread end now. Returns it, to be joined when the owner's lock has been released."""
        if self._stop is not None:
            self._stop.set()
        return self._thread


def _watch(owner_ref: weakref.ref[ClosesIdle], stop: threading.Event) -> None:
    pause: float | None = 0.0
    while pause is not None and not stop.wait(pause):
        owner = owner_ref()
        if owner is None:
            return
        pause = owner.close_idle()
        del owner  # while it sleeps, the thread must not keep its owner alive
