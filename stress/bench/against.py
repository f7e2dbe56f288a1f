"""Before and after: the benchmark's rows that measure threadmail, by the working tree and by another commit in turn.

    python -m stress.bench --against COMMIT             about ten minutes
    python -m stress.bench --against COMMIT --quick     about one

Owns the comparison. Guarantees: both are driven by the same programs, those of the working tree, through public names
only; the two take turns, each time in a fresh process, on the same core where the row asks for one, against the same
server; what was measured is what was meant (the process says where its threadmail lies). A process sends its messages
several times. What counts is the tenth percentile of the cost: other work on the machine makes a run dearer and never
cheaper, so that the low end is the code's own.

A row is short if its speed is below 0.97 of before, and stays so with three more turns, and before measured against
before in those turns does not lie as far apart. Exits with 1 if a row is short, or could not be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .figures import in_words
from .peers import PEERS, ROOT
from .plan import HUGE, LARGE, PROFILES, Cell, cells, first_guess, fitting
from .rounds import Bench
from .running import Run, RunFailed
from .table import table
from .tools import Tools, Unavailable

SLOWEST = 0.97
MORE = 3  # turns for a row that seems short
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Reading:
    """What a row reads off a run: a cost for each lap, of which less is better."""

    name: str
    of: Callable[[Run], list[float]]
    shown: Callable[[float], str]


def _each_lap(run: Run, cost: Callable[[tuple[float, float, float]], float]) -> list[float]:
    return [cost(lap) * len(run.laps) / run.messages * 1e6 for lap in run.laps]


def user(run: Run) -> list[float]:
    """Microseconds a message, lap by lap."""
    return _each_lap(run, lambda lap: lap[1])


def system(run: Run) -> list[float]:
    return _each_lap(run, lambda lap: lap[2])


RATE = Reading("rate", lambda run: _each_lap(run, lambda lap: lap[0]), lambda us: f"{in_words(1e6 / us)}/s")
CPU = Reading("CPU", lambda run: _each_lap(run, lambda lap: lap[1] + lap[2]), lambda us: f"{in_words(us)} us")
TRIPS = Reading("round trips", lambda run: [run.trips / run.messages], lambda trips: f"{trips:.2f} RTT")
MEMORY = Reading("memory", lambda run: [run.peak - run.base], lambda mib: f"{in_words(mib)} MiB")


@dataclass(frozen=True)
class Row:
    """One line of the table. `number` is that of the target whose row it is, 0 of none."""

    number: int
    what: str
    peer: str
    cell: Cell
    reading: Reading
    laps: int = 2


def rows() -> list[Row]:
    """The rows, as cells of the plan."""
    plan = cells(PROFILES["default"])

    def cell(part: str, **wanted: object) -> Cell:
        return next(c for c in plan if c.part == part and all(getattr(c, n) == v for n, v in wanted.items()))

    one = cell("core", connections=1)
    eight = cell("speed", rtt=0.0, connections=8)
    near = cell("speed", rtt=10.0, connections=8)
    return [
        Row(1, "10 ms, queue not empty", "threadmail", cell("trips", rtt=10.0, messages=96), TRIPS, 1),
        Row(1, "10 ms, a lone message", "threadmail-client", cell("trips", rtt=10.0, messages=25), TRIPS, 1),
        Row(2, "10 ms, 8 connections", "threadmail", near, RATE),
        *(
            Row(3, f"10 ms, window 16, {k} connections", "threadmail-window",
                cell("window", server="sink", connections=k), RATE) for k in (1, 8)
        ),
        Row(4, "the whole sender, 1 worker, connection kept", "threadmail-kept", one, CPU, 8),
        Row(4, "the whole sender, 8 workers, connections kept", "threadmail-kept", eight, CPU, 8),
        Row(4, "the whole sender, 1 worker", "threadmail", one, RATE, 8),
        Row(4, "the whole sender, 8 workers", "threadmail", eight, RATE, 8),
        Row(0, "Client.send_all", "threadmail-client-all", one, CPU, 8),
        Row(0, "Client.send", "threadmail-client", one, CPU, 8),
        Row(0, "SMTP, one a thread", "threadmail-smtp", one, CPU, 8),
        Row(5, "EmailMessage", "threadmail", cell("objects", connections=1), CPU, 4),
        *(
            Row(6, f"1 MiB, {k} connections", "threadmail", cell("large", size=LARGE, connections=k), RATE)
            for k in (1, 8)
        ),
        Row(7, "25 MiB to 8 connections", "threadmail", cell("memory", size=HUGE, form="ready", messages=8), MEMORY, 1),
        Row(8, "10 ms, 32 connections", "threadmail", cell("linear", connections=32), RATE),
    ]  # fmt: skip


def low(values: Sequence[float]) -> float:
    """The tenth percentile, by nearest rank."""
    return sorted(values)[round((len(values) - 1) / 10)]


@dataclass
class Found:
    """What a row has given: runs by tree, in the order of turns, and the second run of `before` in the turns behind."""

    row: Row
    runs: dict[str, list[Run]] = field(default_factory=lambda: {BEFORE: [], AFTER: []})
    again: list[Run] = field(default_factory=list)
    failure: str = ""

    def cost(self, tree: str) -> float:
        return low([cost for run in self.runs[tree] for cost in self.row.reading.of(run)])

    def middle(self, tree: str) -> float:
        return statistics.median(cost for run in self.runs[tree] for cost in self.row.reading.of(run))

    @property
    def quotient(self) -> float:
        """After over before, of speed: above 1 is faster, or less."""
        return self.cost(BEFORE) / self.cost(AFTER)

    @property
    def seems_short(self) -> bool:
        return self.quotient < SLOWEST

    @property
    def scatter(self) -> float:
        """How far from 1 the quotient of before and before lies, at worst, in the turns where it was taken."""
        pairs = zip(self.runs[BEFORE][-len(self.again) :], self.again, strict=True) if self.again else []
        of = self.row.reading.of
        return max((abs(1.0 - low(of(a)) / low(of(b))) for a, b in pairs), default=0.0)

    @property
    def is_short(self) -> bool:
        return bool(self.failure) or (self.seems_short and 1.0 - self.quotient > self.scatter)

    @property
    def verdict(self) -> str:
        if self.failure:
            return f"**{self.failure}**"
        scatter = f"; before against before {self.scatter:.1%}" if self.again else ""
        if self.is_short:
            return f"**short**{scatter}"
        return f"within the scatter{scatter}" if self.seems_short else f"kept{scatter}"


Take = Callable[[Row, str], Run]


def compare(row: Row, take: Take, turns: int) -> Found:
    """Measure a row: both trees in turn, and again with a second run of before if it seems short."""
    found = Found(row)
    try:
        for number in range(turns):
            for tree in (BEFORE, AFTER) if number % 2 == 0 else (AFTER, BEFORE):
                found.runs[tree].append(take(row, tree))
        if found.seems_short:
            for number in range(MORE):
                three = [(found.runs[BEFORE], BEFORE), (found.runs[AFTER], AFTER), (found.again, BEFORE)]
                for kept, tree in three if number % 2 == 0 else three[::-1]:
                    kept.append(take(row, tree))
    except (RunFailed, Unavailable, OSError, subprocess.SubprocessError) as error:
        found.failure = f"not measured: {error}"
    return found


def in_table(found: Sequence[Found]) -> str:
    head = [
        "row",
        "what",
        "of",
        "before",
        "after",
        "after/before",
        "by the median",
        "user, us",
        "system, us",
        "verdict",
    ]
    lines = []
    for one in found:
        row = one.row
        line = [str(row.number or "-"), row.what, row.reading.name]
        if one.failure:
            lines.append([*line, *["-"] * 6, one.verdict])
            continue
        line += [row.reading.shown(one.cost(tree)) for tree in (BEFORE, AFTER)]
        line += [f"{one.quotient:.3f}", f"{one.middle(BEFORE) / one.middle(AFTER):.3f}"]
        for reading in (user, system):
            # By ticks of the clock: how the sum is parted is known on the average only.
            parts = (statistics.fmean(c for run in one.runs[tree] for c in reading(run)) for tree in (BEFORE, AFTER))
            line.append(" to ".join(map(in_words, parts)))
        lines.append([*line, one.verdict])
    return table(head, lines)


@contextmanager
def trees(commit: str) -> Iterator[dict[str, Path]]:
    """Folders with nothing but a threadmail in each: that of the commit, and the working tree's.

    Raises:
        SystemExit: there is no such commit; in git's words.
    """
    with tempfile.TemporaryDirectory(prefix="threadmail-against-") as name:
        folder, checkout = Path(name).resolve(), Path(name, "checkout").resolve()
        _git("worktree", "add", "--detach", "--quiet", str(checkout), f"{commit}^{{commit}}")
        try:
            found = {}
            for tree, source in ((BEFORE, checkout), (AFTER, ROOT)):
                found[tree] = folder / tree
                found[tree].mkdir()
                (found[tree] / "threadmail").symlink_to(source / "threadmail", target_is_directory=True)
            yield found
        finally:
            _git("worktree", "remove", "--force", str(checkout))


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise SystemExit(f"git {arguments[0]} {arguments[1]}: {done.stderr.strip()}")


class Taker:
    """Takes runs with a number of messages that fits the row, found once, by the code of before."""

    def __init__(self, bench: Bench, trees: dict[str, Path], *, quick: bool) -> None:
        self._bench, self._trees, self._quick = bench, trees, quick
        self._cells: dict[Row, tuple[Cell, int]] = {}

    def __call__(self, row: Row, tree: str) -> Run:
        if row not in self._cells:
            self._cells[row] = self._fit(row)
        cell, messages = self._cells[row]
        laps = min(row.laps, 2) if self._quick else row.laps
        return self._once(cell, row.peer, messages, laps, tree)

    def _fit(self, row: Row) -> tuple[Cell, int]:
        # By work alone, a fifth of a second is some thousand messages; over a wire it takes longer to be as many.
        seconds = (0.1 if self._quick else 0.2) if row.cell.pinned else row.cell.seconds * (0.3 if self._quick else 1.0)
        cell = dataclasses.replace(row.cell, seconds=seconds)
        try:
            first = self._once(cell, row.peer, first_guess(cell, row.peer), 1, BEFORE)
        except Unavailable:  # the plan's server has to be fetched, and cannot be: ours is there
            cell = dataclasses.replace(cell, server="sink")
            first = self._once(cell, row.peer, first_guess(cell, row.peer), 1, BEFORE)
        return cell, cell.messages or fitting(cell, row.peer, seconds * first.rate)

    def _once(self, cell: Cell, peer: str, messages: int, laps: int, tree: str) -> Run:
        """A run, and after a failure one more."""
        try:
            return self._bench.once(cell, peer, messages, laps=laps, tree=self._trees[tree])
        except RunFailed:
            return self._bench.once(cell, peer, messages, laps=laps, tree=self._trees[tree])


def main(options: argparse.Namespace) -> int:
    quick = options.profile == "quick"
    wanted = [
        row
        for row in rows()
        if (not options.part or row.cell.part in options.part)
        and (not options.only or row.peer in options.only)
        and (not options.connections or row.cell.connections in options.connections)
    ]
    turns = options.rounds or (2 if quick else 6)
    tools = Tools(options.cache, fetch=not options.offline)
    found: list[Found] = []
    with trees(options.against) as places, Bench(tools, random.Random(options.seed), print) as bench:
        take = Taker(bench, places, quick=quick)
        for row in wanted:
            found.append(compare(row, take, turns))
            one = found[-1]
            told = one.failure or f"{one.quotient:.3f}"
            print(f"{row.number or '-'} {row.what}, {PEERS[row.peer].label}, {row.reading.name}: {told}", flush=True)
    print(f"\nbefore is {options.against}; costs are the tenth percentile of {turns} turns\n")
    print(in_table(found))
    return 1 if not found or any(one.is_short for one in found) else 0
