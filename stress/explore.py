"""The long explorations: what the suite has no time for.

    python -m stress.explore [--seconds N] [--seed S] [--only NAME] [--replay SCHEDULE] [--list]

Three kinds of search over the scheduler of tests/detsched, each judged by the oracle of the suite:

* the scenarios that are too long for the suite, reduced to one schedule for each class of equivalent ones: exhausted,
  or, where the time ends first, reported as incomplete;
* 8 threads with 10 messages each, far beyond what can be exhausted: a random walk, and PCT;
* a second net of another mesh: every line is a switch point, with 1 preemption, and every line of the guard with 2.

Prints a certificate for each search. Ends with 1 if a schedule broke anything, and says how to see that schedule again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.detsched import (
    DPOR,
    PCT,
    DepthFirst,
    NonDeterminism,
    Preempt,
    RandomWalk,
    Replay,
    Result,
    Strategy,
    UncontrolledBlocking,
    explore,
    line_tracer,
)
from tests.proof.scenario import BY_DESIGN, CLIENT, OWNER, POOL, QUIET, SENDER, Scenario
from tests.proof.scenarios import LONG
from tests.proof.scenarios_client import guarded, shared_client
from tests.proof.scenarios_pool import pooled
from tests.proof.scenarios_sender import dispatched
from threadmail import client, smtp
from threadmail._runtime import guard as _guard
from threadmail._session import dialogue as _dialogue

ENDLESS = 1 << 60  # runs of a search that ends with its time
DEPTH = 3  # of PCT: two change points; most known races of this family need one or two preemptions
TAIL = 60  # lines of a failing dialogue to print; a replay prints all of them


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        kind: "all", "random", "PCT" or "lines".
        scenario: what runs.
        begin: makes the strategy, from the seed and the length of a run without preemptions.
        share: its part of the time, in comparison with the others; what it leaves over goes to those after it.
        files: each line of these is a switch point, in the place of fields.
    """

    kind: str
    scenario: Scenario
    begin: Callable[[int, int], Strategy]
    share: float
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.scenario.name}"

    def search(self, seed: int, seconds: float) -> Result:
        length = self.run(Preempt({})).longest if self.kind == "PCT" else 0
        return self.run(self.begin(seed, length), seconds)

    def run(self, strategy: Strategy, seconds: float | None = None) -> Result:
        if not self.files:
            return self.scenario.run(strategy, seconds=seconds)
        return explore(
            self.scenario.program,
            strategy,
            scenario=self.scenario.name,
            granularity="locks, sockets, lines",
            seconds=seconds,
            tracer=line_tracer(*self.files),
            **self.scenario.options,
        )


def _crowd() -> list[Scenario]:
    """8 threads, 10 messages each: some 3,000 to 18,000 steps a run."""
    many = {"max_steps": 200_000}
    return [
        Scenario("SMTP shared, 8x10", guarded(8, 10), None, False, CLIENT, OWNER, many),
        Scenario("Client shared, 8x10", shared_client(8, 10), None, False, CLIENT, OWNER, many),
        Scenario("pool of 3, 8x10", pooled(3, 8, 10), None, False, POOL, OWNER, many),
        Scenario(
            "sender of 4, 8x10", dispatched(4, 10, callers=8), None, False, SENDER, OWNER, {**QUIET, **many}
        ),
    ]  # fmt: skip


def _lines() -> list[Search]:
    """Every line with one preemption; with two, the lines that may run without the lock, or take and drop it."""
    package = tuple(str(path) for path in Path(str(smtp.__file__)).parent.rglob("*.py") if "testing" not in path.parts)
    guard = str(_guard.__file__)
    nets = [
        ("SMTP shared, 2x1", guarded(2, 1), (guard, str(_dialogue.__file__), str(smtp.__file__))),
        ("Client shared, 2x1", shared_client(2, 1), (guard, str(client.__file__))),
    ]
    long = {"max_steps": 20_000}
    return [
        *(
            Search(
                "lines",
                Scenario(f"{name}, 1 preemption, every line", program, options=long),
                _preempting(1),
                3.0,
                package,
            )
            for name, program, _ in nets
        ),
        *(
            Search("lines", Scenario(f"{name}, 2 preemptions, the guard's lines", program), _preempting(2), 5.0, files)
            for name, program, files in nets
        ),
    ]


def _preempting(preemptions: int) -> Callable[[int, int], Strategy]:
    return lambda seed, length: DepthFirst(preemptions)


SEARCHES = [
    *(Search("random", scenario, lambda seed, length: RandomWalk(ENDLESS, seed), 1.0) for scenario in _crowd()),
    *(
        Search("PCT", scenario, lambda seed, length: PCT(ENDLESS, seed, depth=DEPTH, length=length), 1.0)
        for scenario in _crowd()
    ),
    *_lines(),
    *(Search("all", scenario, lambda seed, length: DPOR(), 8.0) for scenario in LONG),
]


def verdict(search: Search, result: Result) -> str:
    if result.failing:
        return f"BROKEN: {result.failing} of {result.runs} schedules"
    # In which order lanes connect to the model server no lock of the library is meant to decide.
    if races := (result.data_races or frozenset()) - BY_DESIGN - {"server"}:
        return f"BROKEN: data races on {', '.join(sorted(races))}"
    if result.complete:
        known = search.scenario.schedules
        if known is not None and known != result.runs:
            return f"BROKEN: {result.runs} schedules, {known} are known"
        return "exhausted, nothing broke"
    if search.kind in ("random", "PCT"):
        return f"{result.runs} schedules drawn, nothing broke"
    return f"INCOMPLETE: {result.runs} schedules in the time there was, nothing broke; how many are left is not known"


def show(search: Search, result: Result, lines: int) -> None:
    """The first failure, and how to see it again."""
    if result.first is None:
        return
    print(f"  run {result.first.run}: {'; '.join(result.first.violations)}")
    dialogue = result.first.transcript.splitlines()
    if len(dialogue) > lines:
        print(f"    ... {len(dialogue) - lines} lines before")
    print("\n".join(f"    {line}" for line in dialogue[-lines:]))
    print(f'  again: python -m stress.explore --only "{search.name}" --replay "{result.first.schedule}"')


def search_all(searches: Sequence[Search], seed: int, seconds: float) -> bool:
    """Give each its share of the time. Returns whether nothing broke."""
    started = time.monotonic()
    good, incomplete = True, 0
    for index, search in enumerate(searches):
        left = max(0.0, started + seconds - time.monotonic())
        share = left * search.share / sum(other.share for other in searches[index:])
        try:
            result = search.search(seed, share)
        except (NonDeterminism, UncontrolledBlocking) as error:
            good = False
            print(f"{search.name}: BROKEN, not under control: {type(error).__name__}: {error}", flush=True)
            continue
        said = verdict(search, result)
        good = good and not said.startswith("BROKEN")
        incomplete += said.startswith("INCOMPLETE")
        print(f"{search.name}: {said}\n  {result.certificate()}", flush=True)
        show(search, result, TAIL)
    spent = time.monotonic() - started
    print(
        f"{len(searches)} searches, {incomplete} incomplete, "
        f"{'no violation' if good else 'VIOLATIONS, see above'}; seed {seed}, {spent:.0f} s, Python {sys.version}"
    )
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="for all searches together (300)")
    parser.add_argument("--seed", type=int, default=1, help="of random walk and PCT (1)")
    parser.add_argument("--only", metavar="NAME", default="", help="the searches whose name holds this")
    parser.add_argument("--replay", metavar="SCHEDULE", help="run one schedule of the search --only names")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    args = parser.parse_args(arguments)
    searches = [search for search in SEARCHES if args.only in search.name]
    if not searches:
        parser.error(f"no search is named {args.only!r}; --list has the names")
    if args.list:
        print("\n".join(search.name for search in searches))
        return 0
    if args.replay is None:
        return 0 if search_all(searches, args.seed, args.seconds) else 1
    if len(searches) > 1:
        parser.error("--replay needs --only with the name of one search")
    try:
        result = searches[0].run(Replay(args.replay))
    except NonDeterminism as error:
        parser.error(str(error))
    print(f"{searches[0].name}: {'; '.join(result.first.violations) if result.first else 'nothing broke'}")
    show(searches[0], result, sys.maxsize)
    return 1 if result.failing else 0


if __name__ == "__main__":
    sys.exit(main())
