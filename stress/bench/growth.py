"""How cost grows: with connections, with messages, with recipients.

Owns these cells, and the sentence on each bend, which is read off the figures: where a curve leaves its line, and what
was full there, the client, the server or neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import figures
from .figures import Reading, in_words
from .peers import PEERS
from .plan import Cell, Profile
from .rounds import Results
from .running import Run, limit

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64)
RECIPIENTS = (1, 10, 100, 1000)


def cells(profile: Profile) -> list[Cell]:
    """The growth of a profile."""
    rounds = {"quick": 1, "default": 2}.get(profile.name, 3)
    peers = ("threadmail", "smtplib", "nodemailer")
    found = [
        Cell("growth-connections", peers, "sink", 10.0, k, rounds=rounds, seconds=profile.seconds) for k in CONNECTIONS
    ]
    # On a short line: who waits for each recipient waits a thousand times. Enough messages that connecting is little.
    many = {n: max(4, min(40, 2_000 // n)) for n in RECIPIENTS}
    found += [
        Cell("growth-recipients", peers, "sink", 1.0, 1, messages=many[n], recipients=n, rounds=rounds)
        for n in RECIPIENTS
    ]
    # Last, for a million take longer than all the rest.
    counts = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= profile.most_messages]
    found += [
        Cell(
            "growth-messages", ("threadmail",), "sink", 0.0, 4, messages=n, stream=True,
            rounds=1 if n > 10_000 else rounds,
        )
        for n in counts
    ]  # fmt: skip
    return found


@dataclass(frozen=True)
class Curve:
    """What a picture shows of a part: its axes, and how to read them off cells and runs."""

    part: str
    title: str
    x: str
    y: str
    across: Callable[[Cell], float]
    reading: Reading


CURVES = (
    Curve(
        "growth-connections", "Throughput against connections, 10 ms", "connections", "messages a second",
        lambda cell: cell.connections, figures.rate,
    ),
    Curve(
        "growth-messages", "Memory against messages, four connections", "messages", "peak MiB",
        lambda cell: cell.messages, figures.peak,
    ),
    Curve(
        "growth-recipients", "Time of a message against recipients, 1 ms", "recipients", "ms a message",
        lambda cell: cell.recipients, lambda run: 1e3 / run.rate,
    ),
)  # fmt: skip


def series(results: Results, curve: Curve, peer: str) -> list[tuple[float, float]]:
    """The points of one peer."""
    points = []
    for cell in results.cells(curve.part):
        found = figures.median(results, cell, peer, curve.reading)
        if found is not None:
            points.append((curve.across(cell), found.value))
    return sorted(points)


def sentences(results: Results) -> list[tuple[str, str, list[str]]]:
    """Part, title, and a sentence for each peer on how its curve runs."""
    found = []
    for curve in CURVES:
        lines = []
        for peer in PEERS.values():
            points = series(results, curve, peer.name)
            if len(points) > 1:
                lines.append(f"{peer.label}: {_SAY[curve.part](results, curve, peer.name, points)}")
        if lines:
            found.append((curve.part, curve.title, lines))
    return found


Points = Sequence[tuple[float, float]]


def _connections(results: Results, curve: Curve, peer: str, points: Points) -> str:
    first, one = points[0]
    straight = [k for k, rate in points if rate >= 0.9 * one * k / first]
    last, most = points[-1]
    said = f"{in_words(one)} messages a second with {first:g}, {in_words(most)} with {last:g}"
    bend = next((k for k, _ in points if k not in straight), None)
    if bend is None:
        return f"{said}; straight to the end."
    cell = results.find(curve.part, connections=int(bend))
    share = most / (one * last / first)
    return f"{said}, {share:.0%} of a straight line; the bend is at {bend:g}, where {limit(results.of(cell, peer))}."


def _messages(results: Results, curve: Curve, peer: str, points: Points) -> str:
    (few, small), (many, large) = points[0], points[-1]
    costs = [
        figures.median(results, results.find(curve.part, messages=int(n)), peer, figures.each) for n in (few, many)
    ]
    said = f"{in_words(small)} MiB for {few:,.0f} messages, {in_words(large)} for {many:,.0f}"
    if costs[0] is not None and costs[1] is not None:
        said += f"; CPU a message {in_words(costs[0].value)} us and {in_words(costs[1].value)}"
    return said + ("; memory does not grow." if large < small * 1.25 + 2 else "; memory grows with the number.")


def _recipients(results: Results, curve: Curve, peer: str, points: Points) -> str:
    (few, alone), (many, crowd) = points[0], points[-1]
    further = 1e3 * (crowd - alone) / (many - few)
    said = f"{in_words(alone)} ms for {few:g}, {in_words(crowd)} for {many:,.0f}"
    said += f", {in_words(further)} us for each further one"
    trips = [
        figures.median(results, results.find(curve.part, recipients=int(n)), peer, _steady_trips) for n, _ in points
    ]
    counted = [(int(n), found.value) for (n, _), found in zip(points, trips, strict=True) if found is not None]
    bend = next(((n, count) for n, count in counted if count > counted[0][1] + 0.5), None)
    if bend is None:
        return f"{said}; no further round trip, what grows is work."
    shown = ", ".join(f"{in_words(count)} for {n:,}" for n, count in counted)
    return f"{said}; the bend is at {bend[0]:,}, where round trips begin to grow ({shown})."


def _steady_trips(run: Run) -> float:
    """Round trips a message, less the three of opening the connection and EHLO."""
    return max(0.0, run.trips - 3) / run.messages


_SAY: dict[str, Callable[[Results, Curve, str, Points], str]] = {
    "growth-connections": _connections,
    "growth-messages": _messages,
    "growth-recipients": _recipients,
}
