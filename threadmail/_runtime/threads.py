"""Threads that are started, or not.

Owns the one place where the package starts a thread. Guarantees: where the system or the end of the interpreter lets
none begin, whoever asked is told by None and not by an exception that a user would meet in the middle of a message, and
the reason is logged once for each kind of thread. Leaves to whoever asked how the work is done without one, and that
each thread has an owner, a signal to stop and a join.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

from .logs import say

log = logging.getLogger("threadmail.threads")

_told: set[tuple[str, str]] = set()  # kind of thread and reason


def start_thread(
    target: Callable[..., object], *, name: str, args: tuple[Any, ...] = (), daemon: bool = True
) -> threading.Thread | None:
    """Start a thread.

    Args:
        target: what the thread runs, with `args`.
        name: of the thread; without the number at its end it is the kind that the log speaks of.
    Returns:
        The thread, running; or None: the limit of threads is reached (RLIMIT_NPROC, pids.max), there is no memory for
        one, or the interpreter ends and starts none any more (since 3.12).
    """
    if sys.is_finalizing():
        _tell(name, "the interpreter has ended")
        return None  # it would wait for the GIL for ever, and start() for it
    try:
        thread = threading.Thread(target=target, name=name, args=args, daemon=daemon)
        thread.start()
    except (RuntimeError, MemoryError) as exc:
        _tell(name, str(exc) or type(exc).__name__)
        return None
    return thread


def join_thread(thread: threading.Thread | None, seconds: float) -> None:
    """Wait for a thread to end; not for none, nor for the calling one, nor where the interpreter lets nobody wait."""
    if thread is None or thread is threading.current_thread():
        return
    try:
        thread.join(seconds)
    except RuntimeError:  # PythonFinalizationError (3.14)
        pass


def _tell(name: str, reason: str) -> None:
    kind = name.rstrip("0123456789").rstrip("-_")
    if (kind, reason) in _told:
        return
    _told.add((kind, reason))
    # At the end it is in the nature of things.
    level = logging.INFO if "interpreter" in reason else logging.WARNING
    say(log, level, "no thread %s could be started: %s", kind, reason)


def takes_signals() -> bool:
    """Whether signal handlers come up on the calling thread: Python calls them on the main one."""
    return threading.current_thread() is threading.main_thread()
