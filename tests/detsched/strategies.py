"""Choosers: who moves next, for one run or for a whole search.

A `Strategy` is asked before each run (`begin`), at each choice (`pick`), and after each run (`finished`), which says
whether another run is wanted. Here: plain depth-first search (all schedules, or all with a bounded number of
preemptions), random walk, PCT, replay of a written schedule, and a schedule given as its preemptions (what Hypothesis
draws). The reduced search has its own module, dpor.py.

A *preemption* is a choice against a thread that could have gone on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from .scheduler import Scheduler
from .task import NonDeterminism, Task


class Strategy(Protocol):
    """A chooser for a sequence of runs."""

    @property
    def label(self) -> str:
        """Name and parameters, for certificates; enough to repeat the search."""
        ...

    @property
    def exhaustive(self) -> bool:
        """Does the end of the search mean that every schedule within its bound was covered?"""
        ...

    def begin(self) -> None: ...

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task | None: ...

    def finished(self, scheduler: Scheduler) -> bool: ...


def write_schedule(choices: Sequence[int]) -> str:
    """Thread numbers in run-length form: `[0, 0, 0, 1, 0]` is "0x3 1 0"."""
    runs: list[list[int]] = []
    for tid in choices:
        if runs and runs[-1][0] == tid:
            runs[-1][1] += 1
        else:
            runs.append([tid, 1])
    return " ".join(f"{tid}x{count}" if count > 1 else str(tid) for tid, count in runs)


def read_schedule(text: str) -> list[int]:
    """The inverse of `write_schedule`."""
    choices: list[int] = []
    for part in text.split():
        tid, _, count = part.partition("x")
        choices += [int(tid)] * int(count or 1)
    return choices


class DepthFirst:
    """Every schedule, once; with `preemptions`, every schedule with at most so many."""

    def __init__(self, preemptions: int | None = None) -> None:
        self.preemptions = preemptions
        # The choices of the last run, only where there was more than one option.
        self._path: list[_Choice] = []
        self._depth = 0
        self._used = 0

    @property
    def label(self) -> str:
        return "all schedules" if self.preemptions is None else f"preemptions <= {self.preemptions}"

    exhaustive = True

    def begin(self) -> None:
        self._depth = self._used = 0

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task:
        options = enabled
        going_on = current is not None and current in enabled
        if going_on:
            assert current is not None
            if self.preemptions is not None and self._used >= self.preemptions:
                return current
            options = [current, *(task for task in enabled if task is not current)]
        if len(options) == 1:
            return options[0]
        signature = [(task.tid, task.pending.kind) for task in options if task.pending is not None]
        if self._depth == len(self._path):
            self._path.append(_Choice(signature))
        choice = self._path[self._depth]
        if choice.options != signature:
            raise NonDeterminism(f"step {len(scheduler.trace)}: {signature} can move, last time {choice.options}")
        self._depth += 1
        self._used += going_on and choice.taken > 0
        return options[choice.taken]

    def finished(self, scheduler: Scheduler) -> bool:
        path = self._path
        if self._depth < len(path):
            raise NonDeterminism(f"after {self._depth} choices the run was over, last time there were {len(path)}")
        while path and path[-1].taken + 1 == len(path[-1].options):
            path.pop()
        if not path:
            return False
        path[-1].taken += 1
        return True


class _Choice:
    __slots__ = ("options", "taken")

    def __init__(self, options: list[tuple[int, str]]) -> None:
        self.options, self.taken = options, 0


class _Single:
    """Base of strategies that are one schedule."""

    exhaustive = False

    @property
    def label(self) -> str:
        return type(self).__name__.lower()

    def begin(self) -> None:
        pass

    def finished(self, scheduler: Scheduler) -> bool:
        return False


class Replay(_Single):
    """One written schedule; after its end the current thread goes on as long as it can."""

    def __init__(self, schedule: str | Sequence[int]) -> None:
        self.choices = read_schedule(schedule) if isinstance(schedule, str) else list(schedule)

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task:
        at = len(scheduler.trace)
        if at < len(self.choices):
            for task in enabled:
                if task.tid == self.choices[at]:
                    return task
            raise NonDeterminism(f"step {at}: thread {self.choices[at]} cannot move: a schedule of another program")
        return current if current is not None and current in enabled else enabled[0]


class Preempt(_Single):
    """One schedule by its preemptions: {step: which of the other threads}. No preemption: threads run one by one."""

    def __init__(self, points: Mapping[int, int]) -> None:
        self.points = dict(points)

    def __repr__(self) -> str:
        return f"Preempt({dict(sorted(self.points.items()))})"

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task:
        base = current if current is not None and current in enabled else enabled[0]
        which = self.points.get(len(scheduler.trace))
        if which is None or len(enabled) == 1:
            return base
        others = [task for task in enabled if task is not base]
        return others[which % len(others)]


class _Seeded:
    """Base of strategies that make `runs` runs from one seed."""

    exhaustive = False

    def __init__(self, runs: int, seed: int) -> None:
        self.runs, self.seed = runs, seed
        self._done = 0
        self._random = random.Random(seed)

    @property
    def label(self) -> str:
        return f"{type(self).__name__} seed={self.seed}"

    def begin(self) -> None:
        pass

    def finished(self, scheduler: Scheduler) -> bool:
        self._done += 1
        return self._done < self.runs


class RandomWalk(_Seeded):
    """At each step any thread that can move, with equal chance."""

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task:
        return enabled[int(self._random.random() * len(enabled))]


class PCT(_Seeded):
    """Probabilistic concurrency testing (Burckhardt et al., ASPLOS 2010).

    Threads have random priorities and the highest that can move does; at `depth` - 1 random steps of the expected
    `length` the mover falls below all others. One run finds a bug of that depth among n threads with a chance of at
    least 1 / (n * length ** (depth - 1)).
    """

    def __init__(self, runs: int, seed: int, *, depth: int, length: int) -> None:
        super().__init__(runs, seed)
        self.depth, self.length = depth, max(length, depth)
        self._priority: dict[int, float] = {}
        self._changes: dict[int, int] = {}

    @property
    def label(self) -> str:
        return f"PCT depth={self.depth} length={self.length} seed={self.seed}"

    def begin(self) -> None:
        self._priority = {}
        steps = self._random.sample(range(self.length), self.depth - 1)
        self._changes = {step: rank for rank, step in enumerate(steps)}

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task:
        priority = self._priority
        for task in scheduler.tasks[len(priority) :]:
            priority[task.tid] = self.depth + self._random.random()
        best = max(enabled, key=lambda task: priority[task.tid])
        rank = self._changes.get(len(scheduler.trace))
        if rank is not None:
            priority[best.tid] = rank
            best = max(enabled, key=lambda task: priority[task.tid])
        return best
