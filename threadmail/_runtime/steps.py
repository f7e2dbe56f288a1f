"""A lock that its own thread may come to again.

Owns the lock of short steps that decide and never wait, and what becomes of a step that is interrupted. A thread can
meet a lock that it holds already: in a signal handler, and where the garbage collector ends what was left in a cycle.
With a plain lock it would wait for itself, for ever, and everybody after it. Guarantees: nobody hangs; two steps are
never mixed; what may be left for later is done at the end of the step that is under way, and surely. Leaves to its
owner what the steps are, and that each may be repeated: one that an exception from outside ended in the middle is.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import Reentered
from .deadline import now
from .locks import new_rlock

_T = TypeVar("_T")


class Steps:
    """See the module. Each operation gets the time as its last argument.

    Args:
        left: an operation for the end of a step in which something was left for others to do.
    """

    def __init__(self, left: Callable[[float], object]) -> None:
        # Guards the fields of the owner, and those below. Never held over I/O, a wait, or what calls back.
        self.lock = new_rlock()
        self._left = left
        self._inside = False  # a step is under way; only its own thread can see it so
        self._todo: deque[tuple[Callable[[Any, float], object], Any]] = deque()  # for the end of that step

    def take(self, do: Callable[..., _T], *args: Any) -> _T:
        """One operation, under the lock.

        Raises:
            Reentered: this thread is in the middle of another one, which a signal handler or a finaliser interrupted.
        """
        with self.lock:
            if self._inside:
                raise Reentered("a signal handler, or the garbage collector, came in the middle of a step of this pool")
            self._inside = True
            try:
                try:
                    return do(*args, now())
                finally:
                    # Nothing can come in between the last look and the end of the step: neither calls anything.
                    while self._todo:
                        later, argument = self._todo[0]
                        later(argument, now())
                        self._left(now())
                        self._todo.popleft()  # afterwards: what is interrupted is done again
            finally:
                self._inside = False

    def surely(self, do: Callable[[Any, float], _T], argument: Any = None) -> _T | None:
        """One operation that may be repeated, under the lock: now, or if that is in the middle of a step, at its end.

        Returns:
            What it returned; None if it is still to be done.
        """
        with self.lock:
            if not self._inside:
                return self.take(do, argument)
            self._todo.append((do, argument))
            return None


class Bell:
    """How one thread is woken. May be rung from anywhere, also by a signal handler in the middle of its own `wait`.

    A SimpleQueue, whose `put` is reentrant by design; an Event has a lock that the handler would wait for.
    """

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        self._rings.put(None)

    def wait(self, seconds: float | None) -> None:
        """Until it is rung, or was since the last time; `seconds` at most."""
        try:
            self._rings.get(timeout=seconds)
        except queue.Empty:
            pass
