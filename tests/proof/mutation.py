"""How good is the proof? Takes away each piece of the package's locking, and asks which schedule notices.

    python -m tests.proof.mutation [--module NAME] [--json] [--write]

prints one line for each mutant (mutants.py makes them): where it is, what was taken away, and the scenario, the
schedule and the violation that kill it, or why it survives; then the score. What killed each is kept in killers.json,
written by `--write`: the suite (test_mutation.py) replays just those schedules, and asserts that there is one for every
mutant that the tool finds, so that new locking without a proof fails the suite without anyone remembering.

A mutant is killed by a violation in a run of a scenario that has none in the real package; or, where no run fails, by a
data race on a field that has none there: two threads use it in an order that no lock decides.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import sys
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from tests.detsched import DPOR, NonDeterminism, RandomWalk, Scheduler, read_schedule, write_schedule
from tests.detsched.task import Task

from .mutant_loading import installed
from .mutants import Mutant, Names, package_mutants

if TYPE_CHECKING:
    from .scenario import Scenario

PACKAGE = "threadmail"
NAMES = Names(
    lock=Names.lock.removesuffix(")$") + "|changed|closing|holding|_step|within|_call|_driving)$",
)

#: Modules whose locking is not part of the claim, each with the reason.
SKIPPED = {
    "threadmail.testing": "servers for tests, on real sockets and an event loop: nothing of it runs in production, and "
    "its own tests are what they are for",
}

#: Mutants that cannot matter, each with the argument.
HARMLESS: dict[str, str] = {
    "threadmail._cli_sandbox:run: without `with _closing(server)`": "no lock: it stops a server when the command ends",
    **dict.fromkeys(
        (
            f"threadmail._dispatch:Dispatcher.{function}: notify() for self._calm.notify_all()"
            for function in ("withdraw", "_start_lane", "_count", "_off_the_lane", "ended", "_announce")
        ),
        "only close() waits on _calm, and ThreadedSender._closing lets one thread at a time into it",
    ),
    "threadmail._dispatch:Dispatcher._wake: notify() for self._work.notify_all()": "while the gate is not healthy no "
    "lane has a connection, or the refusal is known to be for good: whichever lane is woken does what all would do "
    "(dial, wait for the gate, give the queue up), and whoever dials wakes all others when it is done",
    "threadmail._dispatch:Dispatcher.judge: without self._work.notify()": "the lane that judged knows of the retry and "
    "goes on to wait for it or to another message; each later put() wakes the lane that sleeps longest, so that a lane "
    "that slept since before the retry learns of it before the one that knows is taken by other work",
}

#: Mutants that nobody has killed yet, each with what is known. To be empty.
OPEN: dict[str, str] = {
    "threadmail._dispatch:Dispatcher.judge: without `with self._lock`": "not shown within the bounds searched",
    "threadmail._dispatch:Dispatcher.dialled: notify() for self._work.notify_all()": "needs three lanes at least",
    "threadmail._dispatch:Dispatcher.close: `if executor is not None` never after the wait": "a thread of the executor "
    "that nobody ends is ended by its weak reference: needs an oracle for threads left over",
    "threadmail._dispatch:Dispatcher._wait: `if` for `while not done() and not end.passed`": "not shown within the "
    "bounds searched",
    "threadmail.pool:ClientPool._take_back: notify() for self._all_back.notify_all()": "a long search of `a waiter is "
    "interrupted and two close()` killed it; its schedule is not recorded yet",
    "threadmail.pool:ClientPool._take_back: without self._all_back.notify_all()": "close() then waits out its time "
    "instead of being woken: no scenario bounds that yet",
    "threadmail._guard:BornAnew.enter_child: without `with new_lock`": "needs a fork scenario of pool and sender",
    "threadmail._guard:BornAnew.enter_child: without `with first_lock`": "needs a fork scenario of pool and sender",
    "threadmail.sender:ThreadedSender.close: without `with self._closing`": "not shown within the bounds searched",
}

KILLERS = Path(__file__).with_name("killers.json")

_REGISTRY = "tests.proof.scenarios"

#: Which scenarios are asked about the mutants of a module: beginnings of their names, likely killers first.
_ASKED = {
    "threadmail._dialogue": ("SMTP", "deadline", "Client"),
    "threadmail._guard": ("SMTP", "fork", "Client"),
    "threadmail._idle": ("idle",),
    "threadmail._opening": ("deadline", "Client"),
    "threadmail.client": ("Client", "deadline", "idle"),
    "threadmail.pool": ("pool", "idle"),
    "threadmail.sender": ("sender",),
    "threadmail._dispatch": ("sender",),
    "threadmail.smtp": ("SMTP", "deadline", "Client"),
    "threadmail.throttle": ("throttle", "sender"),
}
#: Runs for each scenario: first a few in all of them, then more.
_ROUNDS = ((40, 20), (200, 40))


@dataclass(frozen=True)
class Kill:
    """What notices a mutant."""

    scenario: str
    schedule: str
    violation: str

    def __str__(self) -> str:
        return f"{self.scenario} | {self.schedule or '(set-up)'} | {self.violation}"


def all_mutants(module: str | None = None) -> list[Mutant]:
    """Every mutant, or those of one module (its name with or without the package's)."""
    mutants = list(package_mutants(PACKAGE, NAMES, skip=SKIPPED))
    return [m for m in mutants if module is None or m.module in (module, f"{PACKAGE}.{module}")]


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

    def of(self, scenario: str) -> frozenset[str]:
        if scenario not in self._known:
            result = self._real[scenario].run(limit=3000)
            assert not result.failing, f"{scenario} fails without a mutant: {result.first}"
            self._known[scenario] = result.data_races or frozenset()
        return self._known[scenario]


# ---------------------------------------------------------------- hunting and replaying


def hunt(mutant: Mutant, baseline: Baseline, kept: Kill | None = None) -> Kill | None:
    """Search the scenarios, likely ones first, for a run that fails; else for a data race.

    Args:
        kept: what killed it before; tried first of all.
    """
    races: Kill | None = None
    with scenarios_over(mutant) as scenarios:
        if kept is not None and kept.scenario in scenarios and replayed(scenarios[kept.scenario], kept):
            return kept
        asked = _ASKED.get(mutant.module, ("",))
        ordered = [s for beginning in asked for s in scenarios.values() if s.name.startswith(beginning)]
        for runs, walks in _ROUNDS:
            for scenario in ordered:
                found = search(scenario, runs, walks)
                if isinstance(found, Kill):
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


def search(scenario: Scenario, runs: int, walks: int) -> Kill | Hunt | None:
    """A failing run of one scenario among so many; else the hunter, which may have met a data race."""
    hunter = Hunt(frozenset())
    try:
        for strategy in (hunter, RandomWalk(walks, seed=1)):
            result = scenario.run(strategy, limit=runs, stop_at_failure=True, seconds=2.0)
            if result.first is not None:
                return Kill(scenario.name, result.first.schedule, result.first.violations[0])
    except NonDeterminism:
        return None  # says nothing
    except Exception as error:  # noqa: BLE001 - the set-up of a run fails
        return Kill(scenario.name, "", f"{type(error).__name__}: {error}".splitlines()[0])
    return hunter


def replayed(scenario: Scenario, kill: Kill) -> bool:
    """Does the recorded schedule show it again?"""
    hunter = Hunt(frozenset(), kill.schedule)
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


def read_killers() -> dict[str, Kill]:
    return {name: Kill(**kill) for name, kill in json.loads(KILLERS.read_text(encoding="utf-8")).items()}


def keep(name: str, kill: Kill) -> None:
    """Record what kills a mutant; records of mutants that are no more go."""
    table = read_killers() if KILLERS.exists() else {}
    table[name] = kill
    names = {mutant.name for mutant in all_mutants()} - HARMLESS.keys() - OPEN.keys()
    kept = {name: asdict(kill) for name, kill in sorted(table.items()) if name in names}
    KILLERS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- the list


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof.mutation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--module", help="only the mutants of this module")
    parser.add_argument("--match", default="", help="only mutants whose name has this regular expression in it")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--write", action="store_true", help=f"keep what was found in {KILLERS.name}")
    options = parser.parse_args(arguments)
    logging.getLogger(PACKAGE).addHandler(logging.NullHandler())  # what the mutants have to say is of no interest
    started = time.perf_counter()
    kept = read_killers() if KILLERS.exists() else {}
    rows, score = [], [0, 0]
    with scenarios_over(None) as real:
        baseline = Baseline(dict(real))
    for mutant in all_mutants(options.module):
        if not re.search(options.match, mutant.name):
            continue
        reason = HARMLESS.get(mutant.name) or OPEN.get(mutant.name)
        kill = hunt(mutant, baseline, kept.get(mutant.name)) if reason is None else None
        score[kill is not None] += 1
        if kill is not None and options.write and kill != kept.get(mutant.name):
            keep(mutant.name, kill)
        rows.append({"name": mutant.name, "line": mutant.line, "kind": mutant.kind, "reason": reason,
                     "kill": kill and asdict(kill)})  # fmt: skip
        if not options.json:
            fate = f"killed by {kill}" if kill else f"survives because {reason or 'NOBODY NOTICED'}"
            place = f"{mutant.module}:{mutant.line} {mutant.function} {mutant.kind}"
            print(f"{place}: {mutant.description} -> {fate}", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{score[1]} of {sum(score)} killed, {score[0]} survive; {time.perf_counter() - started:.0f} s")
    return int(any(row["kill"] is None and row["reason"] is None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
