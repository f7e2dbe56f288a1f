"""Figures from runs: medians, paired ratios, and round trips by slope.

Owns the arithmetic and nothing else. Ratios are taken pair by pair, between runs of the same round, which the machine
treated alike; the median of them stands, with the lowest and the highest beside it. What cannot be said is None.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .plan import Cell
from .rounds import Results
from .running import Run

Reading = Callable[[Run], float]


@dataclass(frozen=True)
class Figure:
    """A median, and how far apart the values lie that it comes from."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure | None:
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1], len(found)) if found else None

    def times(self, factor: float) -> Figure:
        return Figure(self.value * factor, self.low * factor, self.high * factor, self.count)


def rate(run: Run) -> float:
    """Messages a second."""
    return run.rate


def each(run: Run) -> float:
    """Microseconds of the client's CPU a message."""
    return run.each * 1e6


def peak(run: Run) -> float:
    """MiB at most."""
    return run.peak


def grown(run: Run) -> float:
    """MiB at most, less what was there before the first message was made."""
    return run.peak - run.base


def median(results: Results, cell: Cell | None, peer: str, reading: Reading) -> Figure | None:
    return Figure.of(reading(run) for run in results.of(cell, peer))


def paired(ours: Sequence[Run], theirs: Sequence[Run], reading: Reading) -> Figure | None:
    """How many times as much `ours` is, round by round."""
    return Figure.of(reading(a) / reading(b) for a, b in zip(ours, theirs, strict=False))


def ratio(results: Results, cell: Cell | None, peer: str, other: str, reading: Reading = rate) -> Figure | None:
    """`peer` over `other` in one cell."""
    return paired(results.of(cell, peer), results.of(cell, other), reading)


def difference(results: Results, cell: Cell | None, peer: str, other: str, reading: Reading) -> Figure | None:
    """`peer` less `other`, round by round."""
    pairs = zip(results.of(cell, peer), results.of(cell, other), strict=False)
    return Figure.of(reading(a) - reading(b) for a, b in pairs)


@dataclass(frozen=True)
class Point:
    """One run of a slope: seconds for so many messages at such a distance (seconds)."""

    rtt: float
    messages: int
    seconds: float


def slope(points: Sequence[Point]) -> float | None:
    """Round trips a message, from runs at two distances or more, each with two counts of messages or more.

    The time of a run is fixed + messages * (own + trips * rtt). At one distance, the slope over messages is free of
    what is fixed (connecting, starting); the slope of that over distances is free of what a message costs without a
    wire. What is left is trips. Least squares in both steps.
    """
    steady = []
    for rtt in sorted({point.rtt for point in points}):
        line = _line([(point.messages, point.seconds) for point in points if point.rtt == rtt])
        if line is not None:
            steady.append((rtt, line))
    return _line(steady)


def _line(points: Sequence[tuple[float, float]]) -> float | None:
    if len({x for x, _ in points}) < 2:
        return None
    middle_x, middle_y = statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)
    across = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / across


def trips(results: Results, peer: str) -> Figure | None:
    """Round trips a message of a peer, one value for each round."""
    by_cell = {cell: results.of(cell, peer) for cell in results.cells("trips") if results.of(cell, peer)}
    found = []
    for number in range(min((len(runs) for runs in by_cell.values()), default=0)):
        points = [
            Point(distance(results, cell.rtt), runs[number].messages, runs[number].seconds)
            for cell, runs in by_cell.items()
        ]
        value = slope(points)
        if value is not None:
            found.append(value)
    return Figure.of(found)


def counted(results: Results, peer: str) -> Figure | None:
    """Round trips a message as the delay line counted them, at its longest; what is fixed falls out."""
    cells = [cell for cell in results.cells("trips") if results.of(cell, peer)]
    cells = [cell for cell in cells if cell.rtt == max(cell.rtt for cell in cells)]
    found = []
    for number in range(min((len(results.of(cell, peer)) for cell in cells), default=0)):
        runs = [results.of(cell, peer)[number] for cell in cells]
        value = _line([(run.messages, run.trips) for run in runs])
        if value is not None:
            found.append(value)
    return Figure.of(found)


def distance(results: Results, milliseconds: float) -> float:
    """The round-trip time of a line in seconds, as measured where it was."""
    checked = results.lines.get(milliseconds)
    return checked.rtt if checked is not None else milliseconds / 1e3


def in_words(value: float) -> str:
    """A figure with as many digits as mean something."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:,.{digits}f}"
