"""Ctrl-C while mail is on its way.

Owns what SIGINT and SIGTERM do to a command that must not be interrupted between any two of its steps: instead of an
exception they are news, which the command takes note of when it can. Guarantees: the handlers that were there before
are there afterwards.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .._runtime.deadline import NEVER, Deadline
from .exit_codes import Exit


class Signals:
    """A context manager in which SIGINT and SIGTERM are counted.

    Args:
        tell: called in the handler, between any two instructions of the main thread: it may do next to nothing, such
            as put something into a SimpleQueue.
    """

    def __init__(self, tell: Callable[[], object] = lambda: None) -> None:
        self.count: int = 0
        self.exit: Exit = Exit.INTERRUPTED
        self._tell = tell
        self._raises = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # nobody else may set handlers, nor gets signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def raised(self, end: Deadline = NEVER) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt in this block: for endless waits that are ended without a loss.

        Args:
            end: raises it as well, where the system has an alarm.
        """
        left = end.remaining()
        timed = left is not None and hasattr(signal, "setitimer") and bool(self._before)
        before = signal.signal(signal.SIGALRM, self._end) if timed else None
        self._raises = True
        try:
            if self.count:
                raise KeyboardInterrupt  # it came just before
            if timed:
                signal.setitimer(signal.ITIMER_REAL, left or 0.001)  # 0 would mean: never
            yield
        finally:
            self._raises = False
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                signal.signal(signal.SIGALRM, before)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.exit = Exit.TERMINATED if number == signal.SIGTERM else Exit.INTERRUPTED
        self._tell()
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt
