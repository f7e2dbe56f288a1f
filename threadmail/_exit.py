"""What happens when the interpreter ends.

Owns the one hook that closes senders nobody closed. Guarantees: the queue is worked off for a bounded time, and what
could not be sent is said, not swallowed.

`concurrent.futures` joins its threads, and so runs its whole queue without a deadline, before any `atexit` callback.
Only callbacks of `threading._register_atexit` come before it, newest first; it is private, and there since 3.9.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

#: Seconds for all senders together.
GRACE = 10.0

log = logging.getLogger("threadmail.sender")


class Closable(Protocol):
    def close(self, *, drain: bool, timeout: float | None) -> Sequence[object]: ...


_open: weakref.WeakSet[Closable] = weakref.WeakSet()
_registered: list[Callable[[], None]] = []


def close_at_exit(sender: Closable) -> None:
    """Have `sender` closed at interpreter exit, if it still exists then."""
    _open.add(sender)
    if not _registered:
        _registered.append(_close_all)
        try:
            threading._register_atexit(_close_all)  # type: ignore[attr-defined]
        except (AttributeError, RuntimeError):  # gone, or the interpreter is ending already
            atexit.register(_close_all)


def _close_all() -> None:
    for sender in list(_open):
        unsent = sender.close(drain=True, timeout=GRACE / max(1, len(_open)))
        if unsent:
            log.error("the interpreter ends, and %d messages were not sent", len(unsent))
