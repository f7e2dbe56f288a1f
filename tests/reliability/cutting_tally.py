"""The judge of the every-byte runs.

Owns the verdict on a trial: the outcome against what the server has for each recipient, the reply that was told against
the one that was given, the error against its receipt, the doubt against the bytes, the time against the deadline; and
the sum of many, one line for people, in which there must be some, and not all in doubt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.reliability.cutting import Layout, Mode, Place, places
from tests.reliability.cutting_bench import Bench, Trial, run_damaged
from tests.reliability.cutting_ways import Fate, Other, Way
from tests.support import judgement
from threadmail import Envelope, Outcome
from threadmail.testing import Garble

GIVEN_UP = (Outcome.NOT_SENT, Outcome.PARTIAL)
MANY = 20  # trials from which on a share says something
DOUBTFUL = 0.6  # of them at most may be in doubt where the places are drawn; near the end of data are many of them
#: In a window content leaves together with its commands, so that most places are behind an end of data.
DOUBTFUL_IN_A_WINDOW = 0.85
SLACK = 2.0  # seconds by which a loaded machine may be late


def complaints(
    trial: Trial, layout: Layout, way: Way, *, exact: bool, others: Sequence[Layout] = (), doubts: int = 1
) -> Iterator[str]:
    """What is wrong with what the sender was told.

    Args:
        layout: of the message that is watched; `others`: of those that went with it.
        exact: what must come out is known for each position, not only what may.
        doubts: messages that may be in doubt at once.
    """
    fate, fault = trial.fate, trial.place.fault
    told = [fate.outcome, *(other.outcome for other, _, _ in trial.others)]
    most = 2 if way.resends else 1
    yield from _false(trial.envelope, fate, trial.copies, trial.ids, most)
    for mate, copies, ids in trial.others:
        yield from _false(mate.envelope, mate, copies, ids, most)
    yield from fate.wrong
    # In silence each connection ends by a short time-out, which may pass on a busy machine where nothing is silent.
    most_doubts = doubts * trial.connections if trial.place.is_silent else doubts
    if told.count(Outcome.IN_DOUBT) > most_doubts:
        yield f"more than {most_doubts} in doubt"
    # Trying again takes longer than a silence may last on a loaded machine; after a cut there is time enough.
    if way.after and not trial.place.is_silent and fate.seconds < trial.deadline:
        yield from (f"{outcome.value}, and not tried again" for outcome in told if outcome in GIVEN_UP)
    if not trial.intact:
        yield "it arrived damaged"
    if fate.seconds > trial.deadline + SLACK:
        yield f"late: {fate.seconds:.2f} s, at a deadline of {trial.deadline:g} s"
    if fate.outcome is Outcome.IN_DOUBT and fate.handed_over is False:
        yield "in doubt, though the end of data was not handed over"
    if isinstance(fault, Garble):
        return
    if trial.spoken - {trial.envelope.message_id, *(other.envelope.message_id for other, _, _ in trial.others)}:
        yield f"another Message-ID: {sorted(trial.spoken)}"
    # On a loaded machine the deadline may pass before the fault; or the short time-out of whoever tries again, on the
    # first connection before the fault or on the second, where there is none.
    again = trial.place.is_silent and trial.connections > 1 and (not trial.heard or "TimedOut" in fate.error)
    if not exact or again:
        return
    in_time = fate.seconds < trial.deadline
    yield from _unexpected(fate.outcome, trial.place, layout, way, in_time=in_time)
    if trial.place.is_silent or not in_time:
        return
    yield from _charged(fate.attempts, trial.place, layout, way, first=not way.before)
    for number, ((other, _, _), itself) in enumerate(zip(trial.others, others, strict=True)):
        yield from _unexpected(other.outcome, trial.place, itself, way, in_time=in_time)
        yield from _charged(other.attempts, trial.place, itself, way, first=number == 0 < way.before)


def _unexpected(outcome: Outcome, place: Place, layout: Layout, way: Way, *, in_time: bool) -> Iterator[str]:
    if outcome is Outcome.IN_DOUBT and layout.excludes_doubt(place):
        yield "in doubt, though the end of data cannot have left"
    expected = layout.expected(place, way)
    if outcome not in expected and in_time:
        yield f"{outcome.value} instead of {' or '.join(sorted(o.value for o in expected))}"


def _charged(attempts: int, place: Place, layout: Layout, way: Way, *, first: bool) -> Iterator[str]:
    """In a batch who meets the fault on a kept connection before his content leaves goes over another one, unseen."""
    leaving = place.direction == "down" and place.fault.after == layout.go_ahead
    if way.after and attempts > 1 and not first and not leaving:
        yield f"{attempts} attempts, though its content had not left"


def _of(trial: Trial, bench: Bench) -> Iterator[str]:
    mode = bench.mode
    return complaints(trial, bench.layout, bench.way, exact=mode.exact, others=bench.others, doubts=mode.doubts)


def _false(
    envelope: Envelope, told: Fate | Other, copies: Sequence[int], ids: frozenset[str], most: int
) -> Iterator[str]:
    """Whom it reached how often, and whose reply the receipt quotes."""
    receipt, outcome = told.receipt, told.outcome.value
    refused = receipt.refused if receipt is not None else told.refused if isinstance(told, Fate) else ()
    accepted = None if receipt is None else receipt.accepted
    own = dict(zip(envelope.recipients, copies, strict=True))
    for miscount in judgement.miscounts(envelope.recipients, outcome, refused, own, accepted=accepted, most=most):
        yield f"false: {outcome}, and it arrived {miscount.copies} times for {miscount.recipient}"
    reply = None if receipt is None else str(receipt.reply or "")
    yield from judgement.misquotes(outcome, reply, ids)


def of_sweep(trials: int, outcomes: Counter[Outcome], *, exact: bool, window: int = 1) -> Iterator[str]:
    """What no single trial shows: that there were any, and that not everything is in doubt, where no place can say so.

    Args:
        exact: what must come out is known for each place, so that no trial is in doubt without need.
        window: messages that a connection may have under way, content and all.
    """
    yield from judgement.too_few({outcome.value: number for outcome, number in outcomes.items()}, 0.0)
    doubts = outcomes[Outcome.IN_DOUBT]
    most = (DOUBTFUL if window == 1 else DOUBTFUL_IN_A_WINDOW) * trials
    if not exact and trials >= MANY and doubts > most:
        yield f"{doubts} of {trials} in doubt: the end of data is not in so many places"


@dataclass
class Tally:
    """What many trials came to.

    Attributes:
        wrong: what is wrong, each with the place to look at again.
        longest: the longest time until the outcome was told, by deadline; both in seconds.
        retried: messages that took more than one attempt.
        again: trials of silence that were made once more, see `_once_more`.
    """

    name: str
    trials: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    longest: dict[float, float] = field(default_factory=dict)
    retried: int = 0
    again: int = 0
    wrong: list[str] = field(default_factory=list)

    def sweep(self, mode: Mode, way: Way, fault: str, sample: int | None = None, seed: int = 0) -> None:
        """Break a session at every byte; or at about `sample` bytes of each direction, drawn by `seed`."""
        with Bench(mode, way) as bench:
            where = places(bench.layouts, fault, sample, seed)
            # Whose message is damaged nobody can tell from the message.
            trials = run_damaged(mode, way, where) if fault == "garble" else list(bench.run(where))
            if fault == "hold":
                trials = [self._once_more(trial, bench) for trial in trials]
            before = self.trials
            outcomes = self.outcomes.copy()
            self.add(trials, bench)
            self.wrong += [
                f"{mode.name}, {way.name}, {fault}: {complaint}"
                for complaint in of_sweep(
                    self.trials - before,
                    self.outcomes - outcomes,
                    exact=mode.exact,
                    window=mode.settings.get("window", 1),
                )
            ]

    def _once_more(self, trial: Trial, bench: Bench) -> Trial:
        """Of a server that holds still, a true word that is not the best one is asked for again, and counted.

        A machine that was slow for longer than the time-outs of the bench looks like a server that holds still, but not
        at the same place twice. What was told falsely, or arrived twice, stands.
        """
        wrong = list(_of(trial, bench))
        if wrong and all(" instead of " in each for each in wrong):
            self.again += 1
            (trial,) = bench.run([trial.place])
        return trial

    def add(self, trials: Iterable[Trial], bench: Bench) -> None:
        """Judge trials."""
        for trial in trials:
            self.trials += 1
            self.outcomes[trial.fate.outcome] += 1
            self.retried += trial.fate.attempts > 1
            self.longest[trial.deadline] = max(trial.fate.seconds, self.longest.get(trial.deadline, 0.0))
            self.wrong += [
                f"{bench.mode.name}, {bench.way.name}, {trial.place}: {complaint} ({trial.fate.error})"
                for complaint in _of(trial, bench)
            ]

    def include(self, other: Tally) -> None:
        """Add what another tally came to."""
        self.trials += other.trials
        self.outcomes += other.outcomes
        self.retried += other.retried
        self.again += other.again
        self.wrong += other.wrong
        for deadline, seconds in other.longest.items():
            self.longest[deadline] = max(seconds, self.longest.get(deadline, 0.0))

    def __str__(self) -> str:
        outcomes = ", ".join(f"{self.outcomes[o]} {o.value}" for o in Outcome if self.outcomes[o])
        longest = ", ".join(f"{seconds:.2f} s of {deadline:g} s" for deadline, seconds in sorted(self.longest.items()))
        again = f", {self.again} tried again" if self.again else ""
        false = f"{len(self.wrong)} false outcomes"
        return f"{self.name}: {self.trials} sessions, {false}{again} ({outcomes}); longest {longest}"
