"""The record both test servers keep: messages, connections, errors, and waiting for them.

Owns one condition that guards every field; each change wakes all waiters. Knows no socket and no protocol.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .messages import CapturedMessage


class Book:
    """Messages and counters of one server, safe to read and write from any thread."""

    def __init__(self) -> None:
        self.changed: threading.Condition = threading.Condition()
        self._opened = 0
        self._refused = 0
        self._quits = 0
        self._most = 0
        self._errors: list[BaseException] = []
        self._messages: list[CapturedMessage] = []
        self._open: set[int] = set()

    @property
    def opened(self) -> int:
        with self.changed:
            return self._opened

    @property
    def refused(self) -> int:
        with self.changed:
            return self._refused

    @property
    def quits(self) -> int:
        with self.changed:
            return self._quits

    @property
    def most(self) -> int:
        """The largest number of connections open at once."""
        with self.changed:
            return self._most

    @property
    def messages(self) -> list[CapturedMessage]:
        with self.changed:
            return list(self._messages)

    @property
    def open_count(self) -> int:
        with self.changed:
            return len(self._open)

    def admit(self, limit: int | None = None) -> int | None:
        """Count a new connection in and return its number, or None where `limit` are open already."""
        with self.changed:
            if limit is not None and len(self._open) >= limit:
                self._refused += 1
                self.changed.notify_all()
                return None
            number = self._opened
            self._opened += 1
            self._open.add(number)
            self._most = max(self._most, len(self._open))
            self.changed.notify_all()
            return number

    def release(self, number: int) -> None:
        with self.changed:
            self._open.discard(number)
            self.changed.notify_all()

    def store(self, message: CapturedMessage) -> None:
        with self.changed:
            self._messages.append(message)
            self.changed.notify_all()

    def count_quit(self) -> None:
        with self.changed:
            self._quits += 1
            self.changed.notify_all()

    def blame(self, error: BaseException) -> None:
        with self.changed:
            self._errors.append(error)
            self.changed.notify_all()

    def raise_errors(self) -> None:
        """Raise the first error noted and forget all; several failed scripts become one AssertionError."""
        with self.changed:
            errors, self._errors = self._errors, []
        if len(errors) > 1 and all(type(error) is AssertionError for error in errors):
            raise AssertionError("\n".join(str(error) for error in errors))
        if errors:
            raise errors[0]

    def clear(self) -> None:
        with self.changed:
            self._messages.clear()
            self.changed.notify_all()

    def wait_until(self, holds: Callable[[], bool], timeout: float, complaint: Callable[[], str]) -> None:
        """Wait until `holds()` (asked under the lock); TimeoutError(complaint()) after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while not holds():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(complaint())
                self.changed.wait(left)

    def wait_for_messages(self, count: int, timeout: float) -> list[CapturedMessage]:
        def complaint() -> str:
            return f"{len(self._messages)} of {count} messages arrived within {timeout:g} s"

        with self.changed:
            self.wait_until(lambda: len(self._messages) >= count, timeout, complaint)
            return list(self._messages)

    def wait_for_connections(self, count: int, timeout: float) -> None:
        def complaint() -> str:
            return f"{len(self._open)} connections are open after {timeout:g} s, not {count}"

        self.wait_until(lambda: len(self._open) == count, timeout, complaint)
