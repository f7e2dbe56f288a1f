"""How good is the proof? Takes away each piece of the package's locking, and asks which schedule notices.

    python -m tests.proof.mutation [--module NAME] [--match REGEX] [--quick] [--new] [--json] [--write]

prints one line for each mutant (mutants.py makes them): where it is, what was taken away, and the scenario, the
schedule and the violation that kill it (hunting.py looks for them), or why it survives; then the score. What killed
each is kept in killers.json, the score in score.json, both written by `--write`: the suite (test_mutation.py) replays
just those schedules, and asserts that there is one for every mutant that the tool finds, so that new locking without a
proof fails the suite without anyone remembering.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .hunting import PACKAGE, Baseline, Kill, hunt, scenarios_over
from .mutants import Mutant, Names, package_mutants

NAMES = Names(
    lock=Names.lock.removesuffix(")$") + "|changed|holding|entering|within)$",
    guard=Names.guard.removesuffix("$") + "(_reading|_parting)?$",
)

#: Modules whose locking is not part of the claim, each with the reason.
SKIPPED = {
    "threadmail.testing": "servers for tests, on real sockets and an event loop: nothing of it runs in production, and "
    "its own tests are what they are for",
}

_OF_LOGGING = (
    "the lock is that of a log handler, and not one of ours: no scheduler has it. That it is taken in time, and held "
    "as its handler is called, tests/runtime/test_logs.py shows with threads that are in the handler"
)

#: Mutants that cannot matter, each with the argument. Few: what cannot matter is better left out.
HARMLESS: dict[str, str] = {
    "threadmail._runtime.logs:_emit: without `with holding(handler.lock, Deadline.after(PATIENCE))`": _OF_LOGGING,
    "threadmail._runtime.logs:_emit_under: without `with handler.lock`": _OF_LOGGING,
    "threadmail._runtime.logs:_is_free: without `with holding(lock, Deadline.after(PATIENCE))`": _OF_LOGGING,
    "threadmail._dispatch.dispatcher:Dispatcher.is_awaited_below: without `with self._lock`": (
        "each of the two lists is copied in one step, and a job that moves from one to the other just then is the next "
        "waiter's to find; the lock keeps data races out of what the explorer reports"
    ),
    "threadmail._dispatch.job:SendFuture._wait: `if` for `while not (self.done() or limit.passed)`": (
        "who leaves the loop waits on as for any future; what that misses needs a signal handler, as no scenario has: "
        "tests/dispatch/test_sender_in_a_step.py"
    ),
}

KILLERS = Path(__file__).with_name("killers.json")
SCORE = Path(__file__).with_name("score.json")


def all_mutants(module: str | None = None) -> list[Mutant]:
    """Every mutant, or those of one module (its name with or without the package's)."""
    mutants = list(package_mutants(PACKAGE, NAMES, skip=SKIPPED))
    return [m for m in mutants if module is None or m.module in (module, f"{PACKAGE}.{module}")]


# ---------------------------------------------------------------- what is kept


def read_killers() -> dict[str, Kill]:
    return {name: Kill(**kill) for name, kill in json.loads(KILLERS.read_text(encoding="utf-8")).items()}


def keep(name: str, kill: Kill) -> None:
    """Record what kills a mutant; records of mutants that are no more go."""
    table = read_killers() if KILLERS.exists() else {}
    table[name] = kill
    names = {mutant.name for mutant in all_mutants()} - HARMLESS.keys()
    kept = {name: asdict(kill) for name, kill in sorted(table.items()) if name in names}
    KILLERS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Score:
    """How many mutants there are of each module and kind, and how many of them survive because they cannot matter."""

    modules: dict[str, int]
    kinds: dict[str, int]
    killed: int
    harmless: int

    @property
    def mutants(self) -> int:
        return sum(self.modules.values())

    @property
    def open(self) -> int:
        """Those that nobody noticed, and nobody can say why."""
        return self.mutants - self.killed - self.harmless

    def __str__(self) -> str:
        return f"killed {self.killed} of {self.mutants}, harmless {self.harmless}, open {self.open}"


def score(mutants: Iterable[Mutant], killed: Iterable[str]) -> Score:
    """The score of these mutants when those with these names were killed."""
    mutants, names = list(mutants), set(killed)
    return Score(
        dict(sorted(Counter(mutant.module for mutant in mutants).items())),
        dict(sorted(Counter(mutant.kind for mutant in mutants).items())),
        sum(mutant.name in names for mutant in mutants),
        sum(mutant.name in HARMLESS for mutant in mutants),
    )


def read_score() -> Score:
    return Score(**json.loads(SCORE.read_text(encoding="utf-8")))


# ---------------------------------------------------------------- the list


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof.mutation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--module", help="only the mutants of this module")
    parser.add_argument("--match", default="", help="only mutants whose name has this regular expression in it")
    parser.add_argument("--quick", action="store_true", help="a short search, for the easy kills")
    parser.add_argument("--new", action="store_true", help="only mutants that nothing is recorded about")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--write", action="store_true", help=f"keep what was found in {KILLERS.name} and {SCORE.name}")
    options = parser.parse_args(arguments)
    logging.getLogger(PACKAGE).addHandler(logging.NullHandler())  # what the mutants have to say is of no interest
    started = time.perf_counter()
    kept = read_killers() if KILLERS.exists() else {}
    with scenarios_over(None) as real:
        baseline = Baseline(dict(real))
    mutants = [mutant for mutant in all_mutants(options.module) if re.search(options.match, mutant.name)]
    if options.new:
        mutants = [mutant for mutant in mutants if mutant.name not in kept and mutant.name not in HARMLESS]
    rows, killed = [], []
    for mutant in mutants:
        reason = HARMLESS.get(mutant.name)
        kill = hunt(mutant, baseline, kept.get(mutant.name), quick=options.quick) if reason is None else None
        if kill is not None:
            killed.append(mutant.name)
            if options.write and kill != kept.get(mutant.name):
                keep(mutant.name, kill)
        rows.append({"name": mutant.name, "line": mutant.line, "kind": mutant.kind, "reason": reason,
                     "kill": kill and asdict(kill)})  # fmt: skip
        if not options.json:
            fate = f"killed by {kill}" if kill else f"harmless: {reason}" if reason else "OPEN: NOBODY NOTICES"
            place = f"{mutant.module}:{mutant.line} {mutant.function} {mutant.kind}"
            print(f"{place}: {mutant.description} -> {fate}", flush=True)
    result = score(mutants, killed)
    if options.json:
        print(json.dumps({"score": {**asdict(result), "open": result.open}, "mutants": rows}, indent=1))
    else:
        print(f"mutation score: {result}; {time.perf_counter() - started:.0f} s")
    if options.write:  # of all that is on record, whichever part was searched now
        whole = score(all_mutants(), read_killers())
        SCORE.write_text(json.dumps(asdict(whole), indent=1) + "\n", encoding="utf-8")
    return int(result.open > 0)


if __name__ == "__main__":
    sys.exit(main())
