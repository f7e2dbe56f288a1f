"""The pictures: lines against an axis, and bars, as SVG.

Owns the drawing of the benchmark's results; what the shapes look like is `stress._svg`'s. Nothing is said by colour
alone: every line has its name at its end, and ours is thick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stress._svg import Canvas, width

from . import figures, growth
from .figures import in_words
from .peers import PEERS
from .plan import HUGE, Cell
from .rounds import Results

_WIDE = 860.0
_LEFT, _TOP, _HIGH = 70.0, 62.0, 330.0
_RIGHT = 600.0  # where lines end and their names begin
_STEP = 17.0  # between names


@dataclass(frozen=True)
class Line:
    """A name and its points."""

    label: str
    points: Sequence[tuple[float, float]]
    ours: bool = False
    thick: bool = False  # the one that the picture is about


def pictures(results: Results) -> dict[str, str]:
    """Names of files, and the pictures that the results are enough for."""
    found = {
        "bench-speed.svg": _speed(results),
        "bench-trips.svg": _trips(results),
        "bench-memory.svg": _memory(results),
        **{f"bench-{curve.part}.svg": _growth(results, curve) for curve in growth.CURVES},
    }
    return {name: svg for name, svg in found.items() if svg}


def _speed(results: Results) -> str:
    cells = [cell for cell in results.cells("speed") if cell.connections == 8]
    cells = cells or results.cells("speed")
    lines = []
    for peer in PEERS.values():
        points = []
        for cell in cells:
            rate = figures.median(results, cell, peer.name, figures.rate)
            if rate is not None and (cell.connections, cell.size) == (cells[0].connections, cells[0].size):
                points.append((max(cell.rtt, 0.3), rate.value))
        if len(points) > 1:
            lines.append(Line(peer.label, sorted(points), peer.ours, peer.name == "threadmail"))
    if not lines:
        return ""
    names = {0.3: "0"} if any(not cell.rtt for cell in cells) else {}
    names |= {cell.rtt: f"{cell.rtt:g}" for cell in cells if cell.rtt}
    return chart(
        f"Throughput against the round-trip time, {cells[0].connections} connections", lines,
        "round-trip time, ms (0: client and server on one core)", "messages a second", names,
    )  # fmt: skip


def _growth(results: Results, curve: growth.Curve) -> str:
    lines = [
        Line(peer.label, points, peer.ours, peer.name == "threadmail")
        for peer in PEERS.values()
        if len(points := growth.series(results, curve, peer.name)) > 1
    ]
    if not lines:
        return ""
    names = {x: f"{x:,.0f}" for line in lines for x, _ in line.points}
    return chart(curve.title, lines, curve.x, curve.y, names)


def _trips(results: Results) -> str:
    found = [(figures.counted(results, peer.name), peer) for peer in PEERS.values()]
    bars_ = sorted((value.value, peer.label, peer.ours) for value, peer in found if value is not None)
    return bars("Round trips a message, one kept connection", [(n, max(0.0, v), o) for v, n, o in bars_], "RTT")


def _memory(results: Results) -> str:
    found: list[tuple[str, float, bool]] = []
    for cell in results.cells("memory"):
        for peer in cell.peers:
            peak = figures.median(results, cell, peer, figures.peak)
            if peak is not None and cell.size == HUGE and cell.messages == 8:
                found.append((PEERS[peer].label + _given(cell), peak.value, PEERS[peer].ours))
    found.sort(key=lambda bar: bar[1])
    return bars("Eight messages of 25 MiB to eight connections: peak of memory", found, "MiB")


def _given(cell: Cell) -> str:
    return ", from a file" if cell.form == "file" else ""


# ---------------------------------------------------------------------- shapes


def chart(title: str, lines: Sequence[Line], x: str, y: str, names: dict[float, str]) -> str:
    """Lines on two logarithmic axes; `names` are what is written at the x axis, and where."""
    canvas = Canvas(_WIDE)
    xs = _Scale([px for line in lines for px, _ in line.points], _LEFT, _RIGHT)
    ys = _Scale(_round_range([py for line in lines for _, py in line.points]), _TOP + _HIGH, _TOP)
    canvas.text(24, 32, title, "ink", room=_WIDE - 48, size=16, bold=True)
    canvas.text(_LEFT, 52, y, "soft", room=300, size=12)
    for value in ys.ticks():
        at = ys(value)
        canvas.line([(_LEFT, at), (_RIGHT, at)], "line", thick=0.6)
        canvas.text(_LEFT - 8, at + 4, f"{value:,g}", "soft", room=_LEFT, size=11, anchor="end")
    last = -math.inf
    for value, name in sorted(names.items()):
        if xs(value) - last > width(name, 11) + 6:  # as many names as there is room for
            canvas.text(xs(value), _TOP + _HIGH + 18, name, "soft", room=90, size=11, anchor="middle")
            last = xs(value)
    canvas.text(_LEFT, _TOP + _HIGH + 38, x, "soft", room=_RIGHT, size=12)
    for line in sorted(lines, key=lambda line: (line.thick, line.ours)):
        _draw(canvas, line, [(xs(px), ys(py)) for px, py in line.points])
    for line, at in _spread([(line, ys(line.points[-1][1])) for line in lines]):
        end = ys(line.points[-1][1])
        canvas.line([(_RIGHT + 4, end), (_RIGHT + 16, at)], "line", thick=0.8)
        look = "word0" if line.ours else "ink"
        canvas.text(_RIGHT + 20, at + 4, line.label, look, room=_WIDE - _RIGHT - 24, size=12, bold=line.thick)
    ends = "; ".join(f"{line.label}: {in_words(line.points[0][1])} to {in_words(line.points[-1][1])}" for line in lines)
    return canvas.write(_TOP + _HIGH + 56, title, f"{y} against {x}. {ends}.")


def _draw(canvas: Canvas, line: Line, points: list[tuple[float, float]]) -> None:
    canvas.line(points, "edge0" if line.ours else "line", thick=3 if line.thick else 1.5)
    for px, py in points:
        canvas.rect(px - 2.5, py - 2.5, 5, 5, "bar0" if line.ours else "soft", round=2.5)
    if points[-1][0] < _RIGHT:
        canvas.line([points[-1], (_RIGHT, points[-1][1])], "line", thick=0.8, dash="2 3")


def _spread(ends: Sequence[tuple[Line, float]]) -> list[tuple[Line, float]]:
    """Names near the ends of their lines, and apart from each other."""
    placed: list[tuple[Line, float]] = []
    for line, at in sorted(ends, key=lambda end: end[1]):
        placed.append((line, max(at, placed[-1][1] + _STEP) if placed else at))
    lowest = _TOP + _HIGH
    for number in range(len(placed) - 1, -1, -1):
        line, at = placed[number]
        placed[number] = (line, min(at, lowest))
        lowest = placed[number][1] - _STEP
    return placed


class _Scale:
    """From values to places, by their logarithms."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low, high = min(values), max(values)
        self._span = math.log(high / self._low) if high > self._low else 1.0
        self._high, self._start, self._end = high, start, end

    def __call__(self, value: float) -> float:
        return self._start + (self._end - self._start) * math.log(value / self._low) / self._span

    def ticks(self) -> list[float]:
        powers = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
        found = [10.0**power * step for power in powers for step in (1, 2, 5)]
        inside = [value for value in found if self._low <= value <= self._high]
        return inside if len(inside) <= 8 else [value for value in inside if f"{value:e}"[0] == "1"]


def _round_range(values: Sequence[float]) -> tuple[float, float]:
    """From a round number below to one above, and at least a decade: what hardly changes is to look so."""
    low, high = max(min(values), 1e-9), max(values)
    steps = [10.0**power * step for power in range(-9, 12) for step in (1, 2, 5)]
    top = next(step for step in steps if step >= high)
    return min(max(step for step in steps if step <= low * 1.0000001), top / 10), top


def bars(title: str, values: Sequence[tuple[str, float, bool]], unit: str) -> str:
    """A bar for each name, from top to bottom; the longest fills the room."""
    if not values:
        return ""
    canvas = Canvas(_WIDE)
    canvas.text(24, 32, title, "ink", room=_WIDE - 48, size=16, bold=True)
    longest = max(value for _, value, _ in values) or 1.0
    at = 58.0
    for name, value, ours in values:
        canvas.text(286, at + 13, name, "word0" if ours else "ink", room=270, size=12, anchor="end", bold=ours)
        long = 440 * value / longest
        canvas.rect(296, at, max(1.0, long), 18, "bar0" if ours else "idle", round=3)
        canvas.text(304 + long, at + 13, f"{in_words(value)} {unit}", "ink", room=110, size=12)
        at += 27
    described = "; ".join(f"{name}: {in_words(value)} {unit}" for name, value, _ in values)
    return canvas.write(at + 12, title, described)
