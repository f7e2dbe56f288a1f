"""Runs a program under a strategy until the search ends, and says what was found.

A *program* is a function that sets up one run on fresh objects: it names the threads and says how to judge the end.
It is called again for each schedule, within `patched()`, and must do the same each time: no clocks, no chance, no
state left over (the garbage collector is held off during a run, for its finalizers may come at any moment).

    def program(run):
        lock, log = threading.Lock(), []
        for name in "ab":
            run.thread(lambda name=name: worker(lock, log, name), name)
        run.judge(lambda: Verdict(outcome=tuple(log)))
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .patching import patched
from .scheduler import Scheduler, set_active
from .strategies import Replay, Strategy, write_schedule
from .task import Task

_clock = time.perf_counter
# Runs between two collections of cyclic garbage.
_COLLECT_EVERY = 500
_STAT = Path("/proc/thread-self/stat")


@dataclass(frozen=True)
class Verdict:
    """What a run came to: kinds of violation (none: it passed), and its end state for comparison between searches."""

    violations: tuple[str, ...] = ()
    outcome: Hashable = None
    transcript: str = ""


class Run:
    """Given to the program: the run being set up."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.context = ExitStack()
        self._threads: list[tuple[Callable[[], object], str]] = []
        self._judge: Callable[[], Verdict] = Verdict

    def thread(self, function: Callable[[], object], name: str | None = None) -> None:
        """Add a thread. Threads are numbered in this order, from 0."""
        self._threads.append((function, name or f"T{len(self._threads)}"))

    def judge(self, verdict: Callable[[], Verdict]) -> None:
        """Called after the run, unless it was given up as redundant."""
        self._judge = verdict

    def start(self) -> None:
        for function, name in self._threads:
            self.scheduler.spawn(function, name)

    def verdict(self) -> Verdict:
        """The program's verdict, and what no program may do: hang, run on for ever, or let a thread die."""
        scheduler = self.scheduler
        verdict = self._judge()
        if scheduler.ending is not None:
            general = [scheduler.ending]
        else:
            errors = [task.error for task in scheduler.tasks if task.error is not None]
            general = [f"thread died: {type(error).__name__}" for error in errors]
        violations = tuple(dict.fromkeys((*general, *verdict.violations)))
        return Verdict(violations, (verdict.outcome, scheduler.ending), verdict.transcript)


class Program(Protocol):
    def __call__(self, run: Run, /) -> None: ...


@dataclass(frozen=True)
class Failure:
    """One failing run, enough to see it again: `explore(program, Replay(schedule))`."""

    run: int
    schedule: str
    violations: tuple[str, ...]
    transcript: str = field(repr=False)

    def __str__(self) -> str:
        return f"run {self.run}, schedule {self.schedule!r}: {'; '.join(self.violations)}\n{self.transcript}"


@dataclass(frozen=True)
class Result:
    """What a search found. `runs` counts the runs that were judged, `pruned` those given up as redundant."""

    scenario: str
    strategy: str
    granularity: str
    runs: int
    pruned: int
    failing: int
    complete: bool
    seconds: float
    steps: int
    longest: int
    outcomes: frozenset[Hashable] = field(repr=False)
    kinds: Mapping[str, int]
    first: Failure | None
    #: See `DPOR.data_races`; None for other strategies, which do not look.
    data_races: frozenset[str] | None

    def certificate(self) -> str:
        """One line for the record."""
        races = "not looked for" if self.data_races is None else ", ".join(sorted(self.data_races)) or "none"
        return (
            f"{self.scenario} | {self.strategy} | switch points: {self.granularity} | schedules {self.runs}"
            f" (+{self.pruned} redundant) of <= {self.longest} steps | complete={'yes' if self.complete else 'no'}"
            f" | violations {self.failing} | data races: {races} | {self.seconds:.2f} s"
        )


def explore(
    program: Program,
    strategy: Strategy,
    *,
    scenario: str | None = None,
    granularity: str = "locks, sockets",
    limit: int | None = None,
    seconds: float | None = None,
    stop_at_failure: bool = False,
    **options: Any,
) -> Result:
    """Run `program` under `strategy` until it has no further schedule, or `limit` runs or `seconds` have passed.

    `options` go to the `Scheduler`: `max_steps`, `patience`, `timeouts`, `tracer`. Raises `UncontrolledBlocking` and
    `NonDeterminism` where the program is not under control.
    """
    started = _clock()
    runs = pruned = failing = steps = longest = 0
    kinds: Counter[str] = Counter()
    outcomes: set[Hashable] = set()
    first: Failure | None = None
    complete = False
    with _one_core(), _collector_off() as collect:
        while True:
            strategy.begin()
            scheduler, verdict = run_once(program, strategy, **options)
            steps += len(scheduler.trace)
            longest = max(longest, len(scheduler.trace))
            if verdict is None:
                pruned += 1
            else:
                runs += 1
                outcomes.add(verdict.outcome)
                if verdict.violations:
                    failing += 1
                    kinds.update(verdict.violations)
                    if first is None:
                        schedule = write_schedule(scheduler.schedule)
                        first = Failure(runs, schedule, verdict.violations, verdict.transcript)
            if not strategy.finished(scheduler):
                complete = strategy.exhaustive
                break
            if (stop_at_failure and failing) or (limit and runs + pruned >= limit):
                break
            if seconds is not None and _clock() - started > seconds:
                break
            if (runs + pruned) % _COLLECT_EVERY == 0:
                collect()
    name = scenario or str(getattr(program, "__name__", "program"))
    return Result(
        name, strategy.label, granularity, runs, pruned, failing, complete, _clock() - started,
        steps, longest, frozenset(outcomes), dict(kinds.most_common()), first,
        getattr(strategy, "data_races", None),
    )  # fmt: skip


def run_once(program: Program, strategy: Strategy, **options: Any) -> tuple[Scheduler, Verdict | None]:
    """One run. The verdict is None where the strategy gave the run up as redundant."""
    scheduler = Scheduler(strategy, **options)
    set_active(scheduler)
    try:
        with patched():
            run = Run(scheduler)
            with run.context:
                program(run)
                try:
                    run.start()
                    scheduler.run()
                except BaseException:
                    scheduler.abandon()
                    raise
                return scheduler, None if scheduler.ending == "pruned" else run.verdict()
    finally:
        set_active(None)


def replay(program: Program, schedule: str, **options: Any) -> tuple[Verdict, Scheduler]:
    """Run one written schedule and return its verdict, with the scheduler for its trace."""
    scheduler, verdict = run_once(program, Replay(schedule), **options)
    assert verdict is not None
    return verdict, scheduler


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep this thread, and those that it starts, on one core.

    One of them runs at a time, and a thread is woken faster on the core where the last one went to sleep: a search
    takes three quarters of the time. But not without the GIL: there who waits for a lock spins first, on the core that
    its holder needs.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        yield
        return
    try:
        here = int(_STAT.read_text().rpartition(")")[2].split()[36])
        allowed = os.sched_getaffinity(0)
    except (OSError, AttributeError):  # not Linux
        yield
        return
    os.sched_setaffinity(0, {here})  # where the system has put it: on another core than what else is busy
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class _collector_off:
    """Holds the cyclic collector off, with everything that exists now out of its sight while collecting by hand."""

    def __enter__(self) -> Callable[[], object]:
        self._was_on = gc.isenabled()
        gc.disable()
        gc.freeze()
        return gc.collect

    def __exit__(self, *exc: object) -> None:
        gc.unfreeze()
        if self._was_on:
            gc.enable()


def line_tracer(*files: str) -> Callable[[Scheduler, Task], Any]:
    """A `tracer` that makes every line of these source files a switch point: the second net, without reduction."""
    from .ops import Op, Shared

    line = Shared("line")

    def tracer(scheduler: Scheduler, task: Task) -> Any:
        def local(frame: Any, event: str, arg: object) -> Any:
            if event == "line" and scheduler.ending is None:
                scheduler.step(task, Op("line", line, note=f"{frame.f_code.co_name}:{frame.f_lineno}"))
            return local

        def outer(frame: Any, event: str, arg: object) -> Any:
            return local if frame.f_code.co_filename in files else None

        return outer

    return tracer
