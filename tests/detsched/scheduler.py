"""The scheduler: real threads, one baton, and a chooser that says who moves next.

Every controlled thread is a real OS thread, but only the holder of the baton runs. Before a visible operation
(`ops.py`) a thread *announces* it with `Scheduler.step` and then the chooser picks, among all threads whose announced
operation is possible now, the one that performs its operation and runs on to its next announcement. What a thread
does between two announcements is therefore atomic, and a run is a function of the choices alone: the same choices,
the same run.

Guaranteed: at most one controlled thread runs; a state in which threads remain and none can move is a *deadlock*
verdict, at once and not after a timeout; a run of more than `max_steps` operations ends as *steps*; a thread that
blocks on something the scheduler does not own raises `UncontrolledBlocking` in the caller of `run`. A run that is
given up unwinds every thread by the exception `Abort`, so that none is left behind.

Timed waits. A wait with a timeout *may time out whenever its thread is scheduled while it cannot succeed*: that
covers every real length of the delay. `timeouts` bounds how often each thread may use that freedom in a run (None:
always). Beyond it a wait times out only when no thread can move otherwise, the earliest deadline first, as real time
would do.

Left to others: what is visible (primitives.py, fields.py, modelsocket.py), who moves (strategies.py, dpor.py).
"""

from __future__ import annotations

import _thread
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from .clock import Clock
from .ops import END, Op
from .task import Abort, Task, UncontrolledBlocking

_get_ident = _thread.get_ident
_real_clock = time.monotonic
_real_sleep = time.sleep

# Operations a thread may go through while it unwinds, before Abort is raised in it once more: enough for `finally`
# blocks, and an end for a loop that swallows BaseException and waits again (as the stdlib's executor does).
_UNWIND_STEPS: Final = 100


class Chooser(Protocol):
    """Decides who moves. `None` gives the run up as redundant."""

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task | None: ...


_active: Scheduler | None = None


def active() -> Scheduler | None:
    """The scheduler of the run in progress, set-up and verdict included."""
    return _active


def set_active(scheduler: Scheduler | None) -> None:
    global _active
    _active = scheduler


class Scheduler:
    """One run. `ending` says how it went: None (all threads finished), "deadlock", "steps" or "pruned"."""

    def __init__(
        self,
        chooser: Chooser,
        *,
        max_steps: int = 5000,
        patience: float = 10.0,
        timeouts: int | None = None,
        tracer: Callable[[Scheduler, Task], object] | None = None,
    ) -> None:
        self.chooser = chooser
        self.max_steps = max_steps
        self.patience = patience
        self.timeouts = -1 if timeouts is None else timeouts
        self.tracer = tracer
        self.tasks: list[Task] = []
        self.trace: list[Op] = []
        # For each task the position in the trace of the event that created it (-1: the set-up did).
        self.births: list[int] = []
        self.ending: str | None = None
        self.stuck: list[Op] = []
        # True while a choice is made only among waits that time out because nothing else can happen.
        self.quiescent = False
        self.error: Exception | None = None
        # For fields.py: the switch points of objects without a dictionary, by identity.
        self.slotted: dict[int, tuple[Callable[[], Any], Any]] = {}
        self.clock = Clock()
        self._by_ident: dict[int, Task] = {}
        self._setup_names: dict[str, int] = {}
        self._started = False
        self._finished = _thread.allocate_lock()
        self._finished.acquire()
        self._running: Task | None = None
        # The thread that blocked out of control, if there is one: it cannot be told anything.
        self._lost: Task | None = None

    # Identity ---------------------------------------------------------------------------------------------------

    def me(self) -> Task | None:
        """The controlled thread that calls; None for any other thread."""
        return self._by_ident.get(_get_ident())

    def fresh_name(self, kind: str) -> str:
        task = self.me()
        if task is not None:
            return task.fresh_name(kind)
        number = self._setup_names.get(kind, 0)
        self._setup_names[kind] = number + 1
        return f"{kind}{number}"

    def serial(self) -> int:
        """A number for a new object, by which sets of such objects have the same order in every run."""
        counters = self._setup_names if (task := self.me()) is None else task.counters
        counters[""] = number = counters.get("", 0) + 1
        return number + (0 if task is None else (task.tid + 1) * 10_000)

    # The life of a thread ---------------------------------------------------------------------------------------

    def spawn(self, function: Callable[[], object], name: str | None = None, *, observed: bool = False) -> Task:
        """Start a thread and let it run to its first announcement. What it does until then is local to it."""
        task = Task(len(self.tasks), name or f"T{len(self.tasks)}", function, observed=observed)
        task.timeouts_left = self.timeouts
        parent = self.me()
        if parent is not None:
            task.now = parent.now
        self.tasks.append(task)
        self.births.append(len(self.trace) - 1)
        _thread.start_new_thread(self._body, (task,))
        if not task.parked.acquire(timeout=self.patience):
            self.error, self.ending = UncontrolledBlocking(self._where()), "error"
            if parent is None:
                raise self.error
            raise Abort
        self._running = parent
        return task

    def _body(self, task: Task) -> None:
        ident = _get_ident()
        self._by_ident[ident] = task
        self._running = task
        try:
            if self.tracer is not None:
                sys.settrace(self.tracer(self, task))  # type: ignore[arg-type]
            task.function()
        except Abort:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the verdict
            task.error = error
        finally:
            sys.settrace(None)
        if task.observed and self.ending is None:
            try:
                self.step(task, Op(END, task))
            except Abort:
                pass
        task.done = True
        del self._by_ident[ident]
        if task.launching:
            task.launching = False
            task.parked.release()
        else:
            self._leave()

    def _leave(self) -> None:
        """The baton holder is done: pass the baton on, or end the run."""
        chosen = None if self.ending is not None else self._choose(None)
        if chosen is not None:
            chosen.go.release()
        else:
            self._unwind_next()

    def _unwind_next(self) -> None:
        for task in self.tasks:
            if not (task.done or task.launching or task is self._lost):
                task.go.release()
                return
        self._finished.release()

    # The heart --------------------------------------------------------------------------------------------------

    def step(self, task: Task, op: Op) -> None:
        """Announce `op` for the calling thread `task`; returns when it is to be performed.

        Raises `Abort` where the run is given up instead.
        """
        if self.ending is not None:
            self.unwinding(task)
            return
        op.tid = task.tid
        if op.timeout is not None:
            op.deadline = task.now + op.timeout
        task.pending = op
        if task.launching:
            task.launching = False
            task.parked.release()
            task.go.acquire()
            self._running = task
        else:
            chosen = self._choose(task)
            if chosen is task:
                return
            if chosen is not None:
                chosen.go.release()
                task.go.acquire()
                self._running = task
        if self.ending is not None:  # by this choice, or while this thread waited
            task.unwound = 1  # type: ignore[unreachable]
            raise Abort

    def fail(self, task: Task, error: Exception) -> None:
        """End the run, and have `run` raise `error` in its caller: the set-up of the search is wrong."""
        self.error, self.ending = error, "error"
        task.unwound = 1
        raise Abort

    def unwinding(self, task: Task) -> None:
        """Called for an operation of a run that was given up: raises `Abort`, or lets clean-up code pass."""
        task.unwound += 1
        if task.unwound == 1 or task.unwound > _UNWIND_STEPS:
            raise Abort

    def _choose(self, current: Task | None) -> Task | None:
        """Pick the next thread and enter its operation into the trace; None ends the run (see `ending`)."""
        enabled = []
        for task in self.tasks:
            op = task.pending
            if op is None:
                continue
            if op.ready is None or op.ready() or (op.timeout is not None and task.timeouts_left != 0):
                enabled.append(task)
        if not enabled:
            enabled = self._earliest_deadlines()
            self.quiescent = True
            if not enabled:
                self._give_up_stuck()
                return None
        if len(self.trace) >= self.max_steps:
            self.ending = "steps"
            return None
        try:
            chosen = self.chooser.pick(self, enabled, current)
        except Exception as error:  # noqa: BLE001 - raised again by run(), in the caller's thread
            self.error, self.ending = error, "error"
            return None
        if chosen is None:
            self.ending = "pruned"
            self.stuck = [task.pending for task in self.tasks if task.pending is not None]
            return None
        op = chosen.pending
        assert op is not None
        chosen.pending = None
        op.barrier, self.quiescent = self.quiescent, False
        self.trace.append(op)
        if self.clock.moved:
            self.clock.carry(chosen, op)
        return chosen

    def _earliest_deadlines(self) -> list[Task]:
        waits = [(t.pending.deadline, t) for t in self.tasks if t.pending and t.pending.timeout is not None]
        earliest = min((deadline for deadline, _ in waits), default=0.0)
        return [task for deadline, task in waits if deadline == earliest]

    def _give_up_stuck(self) -> None:
        self.stuck = [task.pending for task in self.tasks if task.pending is not None]
        if self.stuck:
            self.ending = "deadlock"

    # The run ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let the spawned threads run to the end. Raises what the chooser raised, or `UncontrolledBlocking`."""
        chosen = self._choose(None)
        if chosen is not None:
            chosen.go.release()
        else:
            self._unwind_next()
        seen = -1
        while not self._finished.acquire(timeout=self.patience):
            if len(self.trace) == seen:
                raise UncontrolledBlocking(self._where())
            seen = len(self.trace)
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """After an exception in the set-up, or in `run`: end all threads that can be ended."""
        if self.ending is None or self._lost is None:
            self.ending = self.ending or "error"
            self._lost = self._running
            self._unwind_next()
            self._finished.acquire(timeout=self.patience)

    def ended_within(self, seconds: float) -> bool:
        """After `UncontrolledBlocking`: did all threads end after all, once what blocked them let go?"""
        deadline = _real_clock() + seconds
        while not all(task.done for task in self.tasks):
            if _real_clock() > deadline:
                return False
            _real_sleep(0.001)
        return True

    def _where(self) -> str:
        task = self._running
        lines = [f"no operation for {self.patience} s; {task and task.name} holds the baton and is blocked at:"]
        frames = sys._current_frames()
        for ident, owner in list(self._by_ident.items()):
            if owner is task and ident in frames:
                lines += traceback.format_stack(frames[ident])[-4:]
        return "\n".join(lines)

    @property
    def schedule(self) -> list[int]:
        """The choices made: for each step the number of the thread."""
        return [op.tid for op in self.trace]
