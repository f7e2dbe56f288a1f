"""`threading.Thread` under the scheduler's control, and who am I.

`Thread` starts a real OS thread that the scheduler controls. Its end is an operation, because others can wait for it
or ask whether it came. Identifiers are numbers of the run, for those of the OS differ from run to run.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from .ops import ALIVE, JOIN, TIMED_JOIN, Op
from .scheduler import active
from .task import Task

#: Thread identifiers under control: this plus the task's number, so that no run depends on what the OS reuses.
IDENT_BASE: Final = 1_000_000


class Thread:
    """`threading.Thread`: start, join, is_alive, name, daemon, ident. `run` may be overridden."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        scheduler = active()
        self._task: Task | None = None
        # The executor keeps its threads in a set and joins them in its order.
        self._serial = scheduler.serial() if scheduler is not None else 0
        self._target, self._args, self._kwargs = target, tuple(args), dict(kwargs or {})
        self.name = str(name) if name else (scheduler.fresh_name("Thread-") if scheduler is not None else "Thread")
        self.daemon = bool(daemon)

    def __repr__(self) -> str:
        return f"<controlled thread {self.name}>"

    def __hash__(self) -> int:
        return self._serial

    def run(self) -> None:
        if self._target is not None:
            self._target(*self._args, **self._kwargs)

    def start(self) -> None:
        scheduler = active()
        if scheduler is None:
            raise RuntimeError("a controlled thread can only start within a run")
        if self._task is not None:
            raise RuntimeError("threads can only be started once")
        me = scheduler.me()
        if me is not None and scheduler.ending is not None:
            scheduler.unwinding(me)
            return
        self._task = scheduler.spawn(self._bootstrap, self.name, observed=True)

    def _bootstrap(self) -> None:
        scheduler = active()
        task = scheduler.me() if scheduler is not None else None
        assert task is not None
        facades[task] = self
        self.run()

    def join(self, timeout: float | None = None) -> None:
        scheduler, task = active(), self._task
        if task is None:
            raise RuntimeError("cannot join thread before it is started")
        me = scheduler.me() if scheduler is not None else None
        if scheduler is None or me is None or scheduler.ending is not None:
            return
        if task is me:
            raise RuntimeError("cannot join current thread")
        early = timeout is not None and me.timeouts_left != 0
        op = Op(TIMED_JOIN if early else JOIN, task, lambda: task.done, timeout=timeout)
        scheduler.step(me, op)
        if timeout is not None and not task.done:
            scheduler.clock.timed_out(me, op)

    def is_alive(self) -> bool:
        scheduler, task = active(), self._task
        if task is None:
            return False
        me = scheduler.me() if scheduler is not None else None
        if scheduler is not None and me is not None and scheduler.ending is None and task is not me:
            scheduler.step(me, Op(ALIVE, task))
        return not task.done

    @property
    def ident(self) -> int | None:
        return None if self._task is None else IDENT_BASE + self._task.tid

    native_id = ident


class _Facade(Thread):
    """What `current_thread()` returns in a thread that the scenario, not the program, started."""

    def __init__(self, task: Task) -> None:
        super().__init__(name=task.name)
        self._task = task


#: Thread objects by task, for `current_thread()`; emptied after each run.
facades: dict[Task, Thread] = {}

_real_get_ident = _thread.get_ident


def get_ident() -> int:
    """`threading.get_ident`: in a controlled thread a number that is the same in every run."""
    scheduler = active()
    me = scheduler.me() if scheduler is not None else None
    return _real_get_ident() if me is None else IDENT_BASE + me.tid


def current_thread_of(me: Task) -> Thread:
    thread = facades.get(me)
    if thread is None:
        thread = facades[me] = _Facade(me)
    return thread
