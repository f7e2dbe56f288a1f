"""Hunts a mutant: which scenario, under which schedule, notices that a piece of the locking is gone?

A mutant is killed by a violation in a run of a scenario that has none in the real package; or, where no run fails, by a
data race on a field that has none there: two threads use it in an order that no lock decides.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

from tests.detsched import DPOR, NonDeterminism, RandomWalk, Scheduler, read_schedule, write_schedule
from tests.detsched.task import Task

from .mutant_loading import installed
from .mutants import Mutant

if TYPE_CHECKING:
    from .scenario import Scenario

PACKAGE = "threadmail"

_REGISTRY = "tests.proof.scenarios"

#: Which scenarios are asked about the mutants of a module: beginnings of their names, likely killers first.
_ASKED = {
    "threadmail._session.dialogue": ("SMTP", "deadline", "Client"),
    "threadmail._runtime.guard": ("fork", "SMTP", "Client"),
    "threadmail._connection.idle": ("idle",),
    "threadmail._connection.kept_connection": ("pool of 1, called", "pool of 1, held", "Client", "deadline", "idle"),
    "threadmail._connection.waiters": ("Client, somebody", "Client"),
    "threadmail._session.sendmail": ("SMTP", "deadline", "Client"),
    "threadmail._connection.opening": ("deadline", "Client"),
    "threadmail.client": ("Client", "deadline", "idle"),
    "threadmail._pool.keys": ("pool of 1, c", "pool of 2, paused", "pool of 1, a lease ended in", "pool"),
    "threadmail._pool.leases": ("pool",),
    "threadmail._runtime.steps": ("pool", "idle"),
    "threadmail.pool": ("pool of 1, 2x1", "pool of 2, close", "pool", "idle"),
    "threadmail.sender": ("sender, closed by", "sender"),
    "threadmail._dispatch.closing": ("sender, closed by", "sender, moments, closed", "sender, bare", "sender"),
    "threadmail._dispatch.dispatcher": (
        "sender, lanes",
        "sender, bare",
        "sender, attempts",
        "sender, stolen",
        "sender",
    ),
    "threadmail._dispatch.admission": ("sender, bare", "sender, lanes", "sender, moments", "sender"),
    "threadmail._dispatch.job": ("sender, settled", "sender"),
    "threadmail._dispatch.recovery": ("sender, lanes, one is interrupted", "sender, riding, interrupted", "sender"),
    "threadmail._dispatch.schedule": ("sender, stolen", "sender, attempts, overdue", "sender, lanes", "sender"),
    "threadmail._dispatch.sender_stats": ("sender, one message beside stats()", "sender"),
    "threadmail._dispatch.starter": (
        "sender, 1 lane",
        "sender, moments",
        "sender, two lanes",
        "sender, three lanes",
        "sender",
    ),
    "threadmail._dispatch.stream": ("sender, a batch", "sender, two batches", "sender"),
    "threadmail._dispatch.teller": ("sender, settled", "sender, bare", "sender, attempts", "sender"),
    "threadmail._dispatch.worker": ("sender, stolen", "sender, riding, the one", "sender, attempts", "sender"),
    "threadmail.smtp": ("SMTP", "deadline", "Client"),
    "threadmail.throttle": ("throttle", "sender"),
}
#: Runs for each scenario: first a few in all of them, then more.
_ROUNDS = ((40, 20), (200, 40))
#: Seconds for each strategy in one scenario; and where only the easy kills are looked for.
_SECONDS, _QUICK_SECONDS = 2.0, 0.7


@dataclass(frozen=True)
class Kill:
    """What notices a mutant."""

    scenario: str
    schedule: str
    violation: str

    def __str__(self) -> str:
        return f"{self.scenario} | {self.schedule or '(set-up)'} | {self.violation}"


@contextmanager
def scenarios_over(mutant: Mutant | None) -> Iterator[dict[str, Scenario]]:
    """All scenarios by name, over a fresh import of the package with `mutant` in it; None: over the real one."""
    registry = importlib.import_module(_REGISTRY)
    if mutant is None:
        yield _by_name(registry)
        return
    parent = sys.modules[_REGISTRY.rpartition(".")[0]]
    prefix = f"{parent.__name__}.scenario"
    saved = {name: module for name, module in sys.modules.items() if name.startswith(prefix)}
    try:
        # A mutant leaves nothing behind in the process.
        with mock.patch.object(os, "register_at_fork"), installed(mutant, PACKAGE):
            for name in saved:
                del sys.modules[name]
                delattr(parent, name.rpartition(".")[2])  # `from . import x` looks here first
            yield _by_name(importlib.import_module(_REGISTRY))
    finally:
        sys.modules.update(saved)
        for name, module in saved.items():
            setattr(parent, name.rpartition(".")[2], module)


def _by_name(registry: types.ModuleType) -> dict[str, Scenario]:
    return {scenario.name: scenario for scenario in (*registry.SUITE, *registry.SMALL)}


# ---------------------------------------------------------------- strategies


class Hunt(DPOR):
    """The reduced search, which also keeps the first schedule with a data race on a field that is not `known`."""

    def __init__(self, known: frozenset[str], start: str = "") -> None:
        super().__init__()
        self._known = known
        self._start = read_schedule(start)
        self._first = True
        self.found: tuple[str, str] | None = None

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task | None:
        at = len(scheduler.trace)
        chosen = super().pick(scheduler, enabled, current)
        if not self._first or at >= len(self._start):
            return chosen
        node = self._nodes[at]
        node.chosen = self._start[at]
        node.todo |= {node.chosen}
        for task in enabled:
            if task.tid == node.chosen:
                return task
        raise NonDeterminism(f"step {at}: thread {node.chosen} cannot move: a schedule of another program")

    def finished(self, scheduler: Scheduler) -> bool:
        self._first = False
        more = super().finished(scheduler)
        races = self.data_races - self._known
        if races and self.found is None:
            self.found = write_schedule(scheduler.schedule), f"data race on {', '.join(sorted(races))}"
        return more


class Baseline:
    """Which fields are raced for in the real package, by scenario: those that are read without a lock on purpose."""

    def __init__(self, real: dict[str, Scenario]) -> None:
        self._real = real
        self._known: dict[str, frozenset[str]] = {}
        self._sound: set[str] = set()

    def of(self, scenario: str) -> frozenset[str]:
        if scenario not in self._known:
            result = self._real[scenario].run(limit=3000)
            assert not result.failing, f"{scenario} fails without a mutant: {result.first}"
            self._known[scenario] = result.data_races or frozenset()
        return self._known[scenario]

    def expect_sound(self, scenario: str) -> None:
        """That the scenario fails under random walks is the mutant's doing, not its own."""
        if scenario not in self._sound:
            found = search(self._real[scenario], *_ROUNDS[-1])
            assert not isinstance(found, Kill), f"without a mutant as well: {found}"
            self._sound.add(scenario)


# ---------------------------------------------------------------- hunting and replaying


def hunt(mutant: Mutant, baseline: Baseline, kept: Kill | None = None, *, quick: bool = False) -> Kill | None:
    """Search the scenarios, likely ones first, for a run that fails; else for a data race.

    Args:
        kept: what killed it before; tried first of all.
        quick: the first round only, and less time for each scenario.
    """
    rounds, seconds = (_ROUNDS[:1], _QUICK_SECONDS) if quick else (_ROUNDS, _SECONDS)
    races: Kill | None = None
    with scenarios_over(mutant) as scenarios:
        if kept is not None and kept.scenario in scenarios and replayed(scenarios[kept.scenario], kept):
            return kept
        asked = _ASKED.get(mutant.module, ("",))
        likely = {s.name: s for beginning in asked for s in scenarios.values() if s.name.startswith(beginning)}
        for runs, walks in rounds:
            for scenario in likely.values():
                found = search(scenario, runs, walks, seconds)
                if isinstance(found, Kill):
                    baseline.expect_sound(scenario.name)
                    return found
                if found is not None and races is None and found.found is not None:
                    race = _new_race(found.found, baseline.of(scenario.name))
                    races = race and Kill(scenario.name, *race)
            if races is not None:
                return races
    return races


def _new_race(found: tuple[str, str], known: frozenset[str]) -> tuple[str, str] | None:
    names = set(found[1].removeprefix("data race on ").split(", ")) - known
    return (found[0], f"data race on {', '.join(sorted(names))}") if names else None


def _by_design() -> frozenset[str]:
    """The fields that are raced for in the real package: no race of theirs kills anything."""
    known: frozenset[str] = importlib.import_module("tests.proof.scenario").BY_DESIGN
    return known


def search(scenario: Scenario, runs: int, walks: int, seconds: float = _SECONDS) -> Kill | Hunt | None:
    """A failing run of one scenario among so many; else the hunter, which may have met a data race."""
    hunter = Hunt(_by_design())
    try:
        for strategy in (hunter, RandomWalk(walks, seed=1)):
            result = scenario.run(strategy, limit=runs, stop_at_failure=True, seconds=seconds)
            if result.first is not None:
                return Kill(scenario.name, result.first.schedule, result.first.violations[0])
    except NonDeterminism:
        return None  # says nothing
    except Exception as error:  # noqa: BLE001 - the set-up of a run fails
        return Kill(scenario.name, "", f"{type(error).__name__}: {error}".splitlines()[0])
    return hunter


def replayed(scenario: Scenario, kill: Kill) -> bool:
    """Does the recorded schedule show it again?"""
    hunter = Hunt(_by_design(), kill.schedule)
    try:
        result = scenario.run(hunter, limit=1)
    except NonDeterminism:
        return False  # the schedule means something else, in another version of Python for example
    except Exception:  # noqa: BLE001 - as in `search`
        return not kill.schedule
    if not kill.violation.startswith("data race"):
        return result.failing > 0
    return hunter.found is not None and hunter.found[1] == kill.violation


def still_killed(scenario: Scenario, kill: Kill) -> bool:
    """Does the recorded schedule show it again, or else a bounded search of its scenario? (The executor takes other
    steps in other versions of Python.)"""
    if replayed(scenario, kill):
        return True
    found = search(scenario, *_ROUNDS[-1])
    race = kill.violation.startswith("data race")
    return isinstance(found, Kill) or (race and found is not None and found.found is not None)
