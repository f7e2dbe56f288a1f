"""A controlled thread as the scheduler sees it, and the exceptions that tell how control ended."""

from __future__ import annotations

import _thread
from collections.abc import Callable

from .ops import Op, Shared


class Abort(BaseException):
    """Unwinds a controlled thread when its run is given up."""


class UncontrolledBlocking(RuntimeError):
    """A controlled thread blocked on something that the scheduler does not own."""


class NonDeterminism(RuntimeError):
    """The program did something else when the same choices were made again."""


class Task(Shared):
    """A controlled thread."""

    __slots__ = ("counters", "done", "error", "function", "go", "held", "launching", "now", "observed", "parked",
                 "pending", "tid", "timeouts_left", "unwound")  # fmt: skip

    def __init__(self, tid: int, name: str, function: Callable[[], object], *, observed: bool) -> None:
        super().__init__(name)
        self.tid = tid
        self.function = function
        # Can others join it or ask whether it is alive? Only then is its end an operation.
        self.observed = observed
        self.go = _thread.allocate_lock()
        self.go.acquire()
        self.parked = _thread.allocate_lock()
        self.parked.acquire()
        self.launching = True
        self.pending: Op | None = None
        self.done = False
        self.error: BaseException | None = None
        self.now = 0.0
        self.timeouts_left = -1
        self.unwound = 0
        self.counters: dict[str, int] = {}
        # Locks this thread holds, for oracles.
        self.held: set[Shared] = set()

    def fresh_name(self, kind: str) -> str:
        """A name for a new object, the same in every run in which this thread comes to the same place."""
        number = self.counters.get(kind, 0)
        self.counters[kind] = number + 1
        return f"{kind}{self.tid}.{number}"
