"""What was run and what came of it: certificates of the scenarios, the race reproduced, the golden replays.

Owns the measuring, and the judgement of each number: is it the one that was predicted? Guarantees that nothing here is
typed in: a `Certificate` is made from a search's `Result`, or read back from a row that was. How it is told is left to
_proof.py.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tests.detsched import DPOR, DepthFirst, Result, Run, explore
from tests.detsched.explore import Program
from tests.proof.scenario import BY_DESIGN, Scenario
from tests.proof.scenarios_client import guarded
from tests.proof.test_reproduce import FOREIGN, LEAK, LOSS, NESTED, raw

from ._pictures import Picture, draw
from ._story import Fault, OneSwitch, Story, tell

BY_FORMULA, KNOWN, UNKNOWN = "formula", "known", "by version"

#: Schedules and failing schedules of two threads with one message each on one `smtplib.SMTP`.
RACE: Final = (586, 582)


@dataclass(frozen=True)
class Certificate:
    """One search. `origin` says where the expected number of schedules is from, `expected` is None if there is none."""

    scenario: str
    threads: int
    messages: int
    timeouts: str
    switch_points: str
    schedules: int
    origin: str
    expected: int | None
    complete: bool
    violations: int
    races: tuple[str, ...]
    seconds: float

    @property
    def good(self) -> bool:
        counted = self.expected in (None, self.schedules)
        return self.complete and counted and not self.violations and set(self.races) <= BY_DESIGN

    def cells(self) -> list[str]:
        """A row of the table under `HEAD`; what is not as it has to be stands out."""
        number = "" if self.expected in (None, self.schedules) else f"**{self.expected:,} expected** by "
        return [
            self.scenario,
            str(self.threads),
            str(self.messages),
            self.timeouts,
            f"{self.schedules:,}",
            number + self.origin,
            "yes" if self.complete else "**no**",
            f"**{self.violations:,}**" if self.violations else "0",
            _races(self.races),
            f"{self.seconds:.1f}",
        ]

    @classmethod
    def read(cls, points: str, cells: Sequence[str]) -> Certificate:
        """From the cells of a good row, in the table of these switch points."""
        name, threads, messages, timeouts, schedules, origin, complete, violations, races, seconds = cells
        number = int(schedules.replace(",", ""))
        expected = None if origin == UNKNOWN else number
        fields = tuple(re.findall(r"`(.+?)`", races))
        return cls(
            name, int(threads), int(messages), timeouts, points, number, origin, expected,
            complete == "yes", int(violations), fields, float(seconds),
        )  # fmt: skip


HEAD: Final = (
    *("Scenario", "Threads", "Messages", "Time-outs"),
    *("Schedules", "Predicted", "Complete", "Violations", "Data races", "Seconds"),
)


def certify(scenario: Scenario) -> Certificate:
    """Search one scenario."""
    most = [0]
    last: list[Run] = []

    def counting(run: Run) -> None:
        count()
        last.append(run)
        scenario.program(run)

    def count() -> None:
        while last:
            most[0] = max(most[0], len(last.pop().scheduler.tasks))

    with quiet():
        result = dataclasses.replace(scenario, program=counting).run()
    count()
    return certificate(scenario, result, threads=most[0])


def certificate(scenario: Scenario, result: Result, *, threads: int) -> Certificate:
    messages = max((len(reports) for (_, reports), _ in result.outcomes), default=0)  # type: ignore[misc, has-type]
    return Certificate(
        scenario.name,
        threads,
        messages,
        _timeouts(scenario.options),
        result.granularity + (f" of {', '.join(one.__name__ for one in scenario.classes)}" if scenario.classes else ""),
        result.runs,
        UNKNOWN if scenario.schedules is None else BY_FORMULA if scenario.formula else KNOWN,
        scenario.schedules,
        result.complete,
        result.failing,
        tuple(sorted(result.data_races or ())),
        result.seconds,
    )


def _races(races: Sequence[str]) -> str:
    bad = [f"**`{race}`**" for race in races if race not in BY_DESIGN]
    good = ", ".join(f"`{race}`" for race in races if race in BY_DESIGN)
    return "; ".join([*bad, f"by design: {good}"] if good else bad) or "none"


def _timeouts(options: Mapping[str, int | None]) -> str:
    most = options.get("timeouts")
    return "any" if most is None else f"{most} each" if most else "last"


@contextmanager
def quiet() -> Iterator[None]:
    """Scenarios fail on purpose, thousands of times; the product's log says so each time."""
    logger, silence = logging.getLogger("threadmail"), logging.NullHandler()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(silence)
    try:
        yield
    finally:
        logger.removeHandler(silence)
        logger.propagate = propagate


# The race, reproduced -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reproduction:
    """All schedules of two threads on one `smtplib.SMTP`; the reduced search; and the searches with few preemptions."""

    all: Result
    reduced: Result
    bounded: tuple[Result, ...]

    @property
    def good(self) -> bool:
        complete = all(result.complete for result in (self.all, self.reduced, *self.bounded))
        return complete and (self.all.runs, self.all.failing) == RACE and self.all.outcomes == self.reduced.outcomes

    @property
    def kinds(self) -> dict[str, int]:
        """What went wrong, and in how many schedules; the errors that threads were told of are no damage."""
        return {kind: number for kind, number in self.all.kinds.items() if not kind.startswith("failed")}


def reproduce() -> Reproduction:
    return Reproduction(
        explore(raw, DepthFirst()),
        explore(raw, DPOR()),
        tuple(explore(raw, DepthFirst(preemptions)) for preemptions in range(4)),
    )


# The golden replays -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Golden:
    """One interleaving worth a picture: what it must show, and the same in words."""

    picture: Picture
    program: Program
    how: str | OneSwitch
    must: frozenset[str]
    words: str


@dataclass(frozen=True)
class Shown:
    """A golden replay after its run."""

    golden: Golden
    story: Story
    svg: str

    @property
    def good(self) -> bool:
        """Every kind of damage that it is kept for, or none at all."""
        must, found = self.golden.must, set(self.story.violations)
        return must <= found if must else not found


_SHARED = "Two threads, one message each, through one shared smtplib.SMTP"


def goldens() -> list[Golden]:
    """Afresh for each report, for a strategy remembers its run."""
    return [
        Golden(
            Picture(
                "race-silent-loss",
                'Silent loss: one thread switch, and a damaged mail counts as "sent"',
                f"{_SHARED}; the thread is switched once.",
                Fault.TEXT,
            ),
            raw,
            "0x6 1 0x2",
            frozenset({LOSS, FOREIGN}),
            "One switch after the server's 354. Thread 1 writes its MAIL, and the server, which waits for the text of "
            "thread 0's message, takes it for the first line. Thread 0 is told that its message is sent. Nobody is "
            "told that it is damaged.",
        ),
        Golden(
            Picture(
                "race-leak",
                "Leak: a mail goes to the recipients of another one",
                f"{_SHARED}; the thread is switched twice.",
                Fault.RECIPIENT,
            ),
            raw,
            "0 1x4 0x7 1x2",
            frozenset({LEAK, LOSS}),
            "Thread 1's MAIL is refused, but thread 1 reads the 250 that was meant for thread 0, and goes on: its "
            "recipient joins the transaction of thread 0, whose message is delivered to a stranger.",
        ),
        Golden(
            Picture(
                "race-nested-mail",
                "Nested MAIL: the thread that was refused destroys the other one's message",
                f"{_SHARED}; the thread is switched once.",
                Fault.NESTED,
            ),
            raw,
            "0 1x6 0x5",
            frozenset({NESTED, FOREIGN}),
            "The harmless form, and the usual one in logs (503 nested MAIL): neither message is sent, both threads are "
            "told so, for reasons that are not theirs.",
        ),
        Golden(
            Picture(
                "race-hang",
                "Hang: each side waits for the other one, for ever",
                f"{_SHARED}; the thread is switched once.",
                Fault.HANG,
            ),
            raw,
            "0x5 1x3",
            frozenset({"deadlock"}),
            "Thread 1 takes the 354 that was meant for thread 0, does not know what to do with it, and resets; the "
            "server takes the RSET for text. Thread 0 waits for its 354, thread 1 for the answer to its RSET, the "
            "server for the end of the text. A socket without a time-out stays so.",
        ),
        Golden(
            Picture(
                "race-guarded",
                "The same two sends through threadmail: the switch finds a lock",
                "Two threads, one message each, through one shared threadmail.SMTP; the same switch is tried.",
                None,
            ),
            guarded(2, 1),
            OneSwitch("354"),
            frozenset(),
            "The switch of the first picture, tried on `threadmail.SMTP`. Thread 0 holds `sync_root` from its MAIL to "
            "the final reply, so thread 1 cannot move: its next step is to take that lock.",
        ),
    ]


def show(golden: Golden) -> Shown:
    """Replay it and draw it."""
    with quiet():
        story = tell(golden.program, golden.how)
    return Shown(golden, story, draw(golden.picture, story))
