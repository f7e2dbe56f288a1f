"""The judge of the every-byte runs.

Owns the verdict on a trial: the outcome against what the server has, the doubt against the bytes, the time against the
deadline; and the sum of many, one line for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.reliability.cutting import Layout, Mode, places
from tests.reliability.cutting_bench import Bench, Trial, run_damaged
from tests.reliability.cutting_ways import Way
from threadmail import Outcome
from threadmail.testing import Garble

SLACK = 2.0  # seconds by which a loaded machine may be late


def complaints(trial: Trial, layout: Layout, way: Way, *, exact: bool) -> Iterator[str]:
    """What is wrong with what the sender was told."""
    fate, fault = trial.fate, trial.place.fault
    for told, arrived in ((fate.outcome, trial.arrived), *trial.others):
        if arrived not in _may_arrive(told, 2 if way.resends else 1):
            yield f"false: {told.value}, and it arrived {arrived} times"
    if not trial.intact:
        yield "it arrived damaged"
    if fate.seconds > trial.deadline + SLACK:
        yield f"late: {fate.seconds:.2f} s, at a deadline of {trial.deadline:g} s"
    if fate.outcome is Outcome.IN_DOUBT and fate.handed_over is False:
        yield "in doubt, though the end of data was not handed over"
    if isinstance(fault, Garble):
        return
    if trial.spoken - {trial.envelope.message_id}:
        yield f"another Message-ID: {sorted(trial.spoken)}"
    # On a loaded machine the deadline may pass before the fault; or the short time-out of whoever tries again, on the
    # first connection before the fault or on the second, where there is none.
    again = trial.place.is_silent and trial.connections > 1 and (not trial.heard or "TimedOut" in fate.error)
    if not exact or again:
        return
    if fate.outcome is Outcome.IN_DOUBT and layout.excludes_doubt(trial.place):
        yield "in doubt, though the end of data cannot have left"
    expected = layout.expected(trial.place, way)
    if fate.outcome not in expected and fate.seconds < trial.deadline:
        yield f"{fate.outcome.value} instead of {' or '.join(sorted(o.value for o in expected))}"


def _may_arrive(told: Outcome, copies: int) -> range:
    return {
        Outcome.SENT: range(1, copies + 1),
        Outcome.PARTIAL: range(1, 2),
        Outcome.NOT_SENT: range(1),
        Outcome.IN_DOUBT: range(copies + 1),
    }[told]


@dataclass
class Tally:
    """What many trials came to.

    Attributes:
        wrong: what is wrong, each with the place to look at again.
        longest: the longest time until the outcome was told, by deadline; both in seconds.
        retried: messages that took more than one attempt.
    """

    name: str
    trials: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    longest: dict[float, float] = field(default_factory=dict)
    retried: int = 0
    wrong: list[str] = field(default_factory=list)

    def sweep(self, mode: Mode, way: Way, fault: str, sample: int | None = None, seed: int = 0) -> None:
        """Break a session at every byte; or at about `sample` bytes of each direction, drawn by `seed`."""
        with Bench(mode, way) as bench:
            where = places(bench.layout, fault, sample, seed)
            # Whose message is damaged nobody can tell from the message.
            trials = run_damaged(mode, way, where) if fault == "garble" else bench.run(where)
            self.add(trials, bench)

    def add(self, trials: Iterable[Trial], bench: Bench) -> None:
        """Judge trials."""
        for trial in trials:
            self.trials += 1
            self.outcomes[trial.fate.outcome] += 1
            self.retried += trial.fate.attempts > 1
            self.longest[trial.deadline] = max(trial.fate.seconds, self.longest.get(trial.deadline, 0.0))
            self.wrong += [
                f"{bench.mode.name}, {bench.way.name}, {trial.place}: {complaint} ({trial.fate.error})"
                for complaint in complaints(trial, bench.layout, bench.way, exact=bench.exact)
            ]

    def include(self, other: Tally) -> None:
        """Add what another tally came to."""
        self.trials += other.trials
        self.outcomes += other.outcomes
        self.retried += other.retried
        self.wrong += other.wrong
        for deadline, seconds in other.longest.items():
            self.longest[deadline] = max(seconds, self.longest.get(deadline, 0.0))

    def __str__(self) -> str:
        outcomes = ", ".join(f"{self.outcomes[o]} {o.value}" for o in Outcome if self.outcomes[o])
        longest = ", ".join(f"{seconds:.2f} s of {deadline:g} s" for deadline, seconds in sorted(self.longest.items()))
        return f"{self.name}: {self.trials} sessions, {len(self.wrong)} false outcomes ({outcomes}); longest {longest}"
