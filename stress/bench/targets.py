"""What was promised, and whether it is kept.

Owns the targets, word for word, and for each the measurements that decide it. Guarantees that a target is called met
only if everything it asks for was measured and lies on the right side; what was not measured is never met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from . import figures
from .figures import Figure
from .plan import HUGE, LARGE, MIB, SMALL, Cell
from .rounds import Results
from .running import limit

KEPT = "the same with max_messages=None"  # stands behind the default that it is shown beside

Measure = Callable[[Results], "Figure | None"]


class Verdict(Enum):
    MET = "met"
    SHORT = "short"
    UNMEASURED = "not measured"


class Place:
    """A cell, by its part and some of its fields."""

    def __init__(self, part: str, **fields: object) -> None:
        self._part, self._fields = part, fields

    def cell(self, results: Results) -> Cell | None:
        return results.find(self._part, **self._fields)


@dataclass(frozen=True)
class Check:
    """One figure with a bound, in `unit`.

    Attributes:
        place, peer: where, and whom of ours, to look at if it falls short.
        at_most: the bound is from above.
        decides: False for a figure that is shown beside the others: with a setting that is not the default.
    """

    what: str
    bound: float
    measure: Measure
    place: Place | None = None
    peer: str = "threadmail"
    at_most: bool = False
    unit: str = "x"
    decides: bool = True

    def why(self, results: Results) -> str:
        """What was full while it was measured; "" if that says nothing."""
        runs = results.of(self.place.cell(results), self.peer) if self.place is not None else []
        cell = self.place.cell(results) if self.place is not None else None
        return limit(runs, cell.pinned) if cell is not None and runs else ""

    def judge(self, results: Results) -> tuple[Figure | None, Verdict]:
        found = self.measure(results)
        if found is None:
            return None, Verdict.UNMEASURED
        good = found.value <= self.bound if self.at_most else found.value >= self.bound
        return found, Verdict.MET if good else Verdict.SHORT

    @property
    def asked(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}{'' if self.unit == 'x' else ' '}{self.unit}"


@dataclass(frozen=True)
class Target:
    """A row of the table."""

    number: int
    what: str
    wording: str
    checks: tuple[Check, ...]

    def judge(self, results: Results) -> Verdict:
        verdicts = {check.judge(results)[1] for check in self.checks if check.decides}
        for verdict in (Verdict.SHORT, Verdict.UNMEASURED):
            if verdict in verdicts:
                return verdict
        return Verdict.MET


def _trips(peer: str) -> Measure:
    return lambda results: figures.trips(results, peer)


def _counted(peer: str) -> Measure:
    return lambda results: figures.counted(results, peer)


def _over(what: str, bound: float, other: str, place: Place, peer: str = "threadmail", decides: bool = True) -> Check:
    """How many times as many messages a second as `other`."""
    measure: Measure = lambda results: figures.ratio(results, place.cell(results), peer, other)  # noqa: E731
    return Check(what, bound, measure, place, peer, decides=decides)


def _cost(what: str, bound: float, place: Place, peer: str = "threadmail", decides: bool = True) -> Check:
    def measure(results: Results) -> Figure | None:
        return figures.median(results, place.cell(results), peer, figures.each)

    return Check(what, bound, measure, place, peer, at_most=True, unit="us", decides=decides)


def _copies(results: Results) -> Figure | None:
    """Of the runs with fewer and with more messages, the one that took more."""
    cells = [cell for cell in results.cells("memory") if cell.form == "ready" and cell.size == HUGE]
    found = [figures.median(results, cell, "threadmail", figures.grown) for cell in cells]
    most = max((figure for figure in found if figure is not None), key=lambda figure: figure.value, default=None)
    return most.times(MIB / HUGE) if most is not None else None


def _streamed(results: Results) -> Figure | None:
    return figures.median(results, results.find("memory", form="file", size=HUGE), "threadmail", figures.peak)


def _own_work(results: Results) -> Figure | None:
    """Over `Client.send_all`: a direct call that rides, as lanes do, and reconnects as often."""
    cell = results.find("core", connections=1)
    return figures.difference(results, cell, "threadmail", "threadmail-client-all", figures.each)


def _linear(results: Results) -> Figure | None:
    many = results.of(results.find("linear", connections=32), "threadmail")
    one = results.of(results.find("linear", connections=1), "threadmail")
    found = figures.paired(many, one, figures.rate)
    return found.times(1 / 32) if found is not None else None


_EIGHT = Place("speed", rtt=10.0, connections=8, size=SMALL)
_OBJECTS = Place("objects", connections=1)
_MANY = Place("linear", connections=32)


def _at_size(k: int) -> tuple[Check, ...]:
    place = Place("large", size=LARGE, connections=k, pinned=True)
    return (
        _over(f"k={k}: over nodemailer", 1.4, "nodemailer", place),
        _over(f"k={k}: over smtplib", 1.7, "smtplib", place),
        _over(f"k={k}: over smtp-source", 0.65, "smtp-source", place),
    )


def _on_one_core(part: str, k: int) -> tuple[Check, ...]:
    place, kept = Place(part, rtt=0.0, connections=k, size=SMALL, pinned=True), "threadmail-kept"
    return (
        _over(f"k={k}: over smtp-source", 1.0, "smtp-source", place),
        _over(KEPT, 1.0, "smtp-source", place, kept, decides=False),
        _over(f"k={k}: over smtplib, one a thread", 1.8, "smtplib", place),
        _over(KEPT, 1.8, "smtplib", place, kept, decides=False),
        _over(f"k={k}: over nodemailer", 10.0, "nodemailer", place),
        _cost(f"k={k}: CPU a message", 30.0, place),
        _cost(KEPT, 30.0, place, kept, decides=False),
    )


def _windowed(server: str, k: int, bound: float) -> tuple[Check, ...]:
    place = Place("window", server=server, connections=k, rtt=10.0)
    return (
        _over(f"{server}, k={k}: over nodemailer", bound, "nodemailer", place, "threadmail-window"),
        _over(KEPT, bound, "nodemailer", place, "threadmail-window-kept", decides=False),
    )


TARGETS = (
    Target(
        1, "RTT a message, one connection, queue not empty",
        "<= 1.10 by default where PIPELINING is offered; a lone message <= 2.15",
        (
            Check("queue not empty, counted by the line", 1.10, _counted("threadmail"), at_most=True, unit="RTT"),
            Check("queue not empty, by slope", 1.10, _trips("threadmail"), at_most=True, unit="RTT"),
            Check("a lone message, counted", 2.15, _counted("threadmail-client"), at_most=True, unit="RTT"),
            Check("a lone message, by slope", 2.15, _trips("threadmail-client"), at_most=True, unit="RTT"),
        ),
    ),
    Target(
        2, "10 ms, 8 connections", "1.9x nodemailer, 3.7x smtplib with a client a thread, 3.7x smtp-source",
        (
            _over("over nodemailer", 1.9, "nodemailer", _EIGHT),
            _over("over smtplib, one a thread", 3.7, "smtplib", _EIGHT),
            _over("over smtp-source", 3.7, "smtp-source", _EIGHT),
        ),
    ),
    Target(
        3, "opt-in CHUNKING, window 16",
        "<= 0.10 RTT a message; 20x nodemailer on a sink with CHUNKING, 6x on real Postfix (k=8), 12x (k=1)",
        (
            Check("counted by the line", 0.10, _counted("threadmail-window"), at_most=True, unit="RTT"),
            Check("by slope", 0.10, _trips("threadmail-window"), at_most=True, unit="RTT"),
            *_windowed("sink", 8, 20.0),
            *_windowed("postfix", 8, 6.0),
            *_windowed("postfix", 1, 12.0),
        ),
    ),
    Target(
        4, "0 ms, client and sink on one core, the whole ThreadedSender path on ready envelopes",
        "1.0x smtp-source, 1.8x smtplib a thread, 10x nodemailer; <= 30 us CPU a message",
        (*_on_one_core("core", 1), *_on_one_core("speed", 8)),
    ),
    Target(
        5, "messages given as EmailMessage", "1.3x smtplib's send_message",
        (_over("k=1: over smtplib", 1.3, "smtplib", _OBJECTS),),
    ),
    Target(
        6, "1 MiB ready content, 1 to 8 connections", "1.4x nodemailer, 1.7x smtplib, 0.65x smtp-source",
        (*_at_size(1), *_at_size(8)),
    ),
    Target(
        7, "25 MiB to 8 connections",
        "<= 2.5 wire copies in all, whatever the number; streamed from a file <= 40 MiB RSS in all",
        (
            Check("read into memory, over what was there before", 2.5, _copies, at_most=True, unit="copies"),
            Check("streamed from a file, in all", 40.0, _streamed, at_most=True, unit="MiB"),
        ),
    ),
    Target(
        8, "the sender's own work a message", "<= 10 us over a direct call; 32 threads at 10 ms >= 0.95 of linear",
        (
            Check("CPU over Client.send_all, which rides as well, k=1", 10.0, _own_work, at_most=True, unit="us"),
            Check("32 threads at 10 ms, of linear", 0.95, _linear, _MANY),
        ),
    ),
)  # fmt: skip
