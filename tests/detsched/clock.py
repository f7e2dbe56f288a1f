"""Virtual time: a clock for each thread, and the rule by which clocks meet.

No run reads a real clock. A thread's time moves when it sleeps or when a wait of its own times out, and by nothing
else; clocks meet along happens-before edges, as Lamport's do: an operation on an object brings its thread up to the
time of the last operation there. So the reading of a clock is no operation on anything shared (the searches need not
order it), and yet no thread ever sees a time stamp from its future.

For the reduced search, time must be the same in equivalent schedules: it must not depend on the order of operations
that commute. That is what the two sets below are for.
"""

from __future__ import annotations

from typing import Final

from .ops import ALIVE, GET, JOIN, LOCKED, READ, READLINE, Op
from .task import Task

#: Virtual monotonic time at which every run starts, in seconds.
EPOCH: Final = 1000.0
# These do not pass time on to the object they are performed on ...
_QUIET: Final = frozenset({READ, READLINE, GET, LOCKED, JOIN, ALIVE})
# ... and these take it from what they get (see `arrived`), not from the place where they get it.
_BROUGHT: Final = frozenset({READLINE, GET})


class Clock:
    """The times of one run. They are kept in the tasks and the shared objects; here are the rules."""

    def __init__(self) -> None:
        # False as long as it is the same time everywhere, which saves the work.
        self.moved = False

    def now(self, task: Task) -> float:
        """What `time.monotonic()` says in that thread, in seconds."""
        return EPOCH + task.now

    def sleep(self, task: Task, seconds: float) -> None:
        if seconds > 0:
            self.moved = True
            task.now += seconds

    def timed_out(self, task: Task, op: Op) -> None:
        """The timed wait `op` of `task` ended without success."""
        if task.timeouts_left > 0:
            task.timeouts_left -= 1
        self.sleep(task, op.deadline - task.now)

    def arrived(self, task: Task, time: float) -> None:
        """`task` took something that was sent at that time."""
        task.now = max(task.now, time)

    def carry(self, task: Task, op: Op) -> None:
        """`op` is performed: let the clocks of thread and object meet."""
        obj = op.obj
        if op.kind not in _BROUGHT and obj.time > task.now:
            task.now = obj.time
        if op.kind not in _QUIET and task.now > obj.time:
            obj.time = task.now
