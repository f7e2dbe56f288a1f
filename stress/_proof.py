"""The words of the report: claim, certificates, reproduction, pictures, argument, limits, and how to run it.

Owns what the page says. Numbers come from the evidence; where the evidence is not as it has to be, the page says that
in the place of the claim.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import threadmail
from tests.proof.mutation import Score, read_score
from tests.proof.scenario import BY_DESIGN, Scenario

from ._evidence import BY_FORMULA, HEAD, Certificate, Reproduction, Shown
from ._page import Block, Code, Heading, Image, Items, Table, Text

TITLE: Final = "No interleaved commands: what was proved, and how far"


@dataclass(frozen=True)
class Report:
    """All that was run. `left_out` are the scenarios of the registry that were not.

    `score` is the one that was written down when all mutants were hunted; the suite replays what killed them.
    """

    certificates: Sequence[Certificate]
    reproduction: Reproduction
    shown: Sequence[Shown]
    left_out: Sequence[Scenario]
    score: Score = field(default_factory=read_score)

    @property
    def good(self) -> bool:
        parts = [*(one.good for one in self.certificates), *(one.good for one in self.shown)]
        return self.reproduction.good and all(parts) and not self.score.open


POINTS: Final = "Switch points: "

#: To be stated beside the claim, word for word.
LIMITS: Final = (
    "bounded: N, M and scenario as listed;",
    "switch points = lock, socket, thread and queue operations and instance fields; a container reached through a "
    "saved alias, the single steps of a loop over one, module globals and class attributes are not seen (second net: "
    "the line-granularity pass, `line_tracer`); finalizers of thread-local values run after their thread's last step, "
    "unscheduled;",
    "`sendall` is atomic in the model (true interleaving inside a large sendall only makes unguarded code worse; "
    "irrelevant under the lock);",
    'the server answers at once, so "no reply yet" is a schedule, not a delay;',
    'timed waits = "may time out whenever scheduled while busy", an over-approximation (TimedOut must be an allowed '
    "outcome); where the bounds say so, each thread may use that freedom only so many times, and beyond it "
    "a wait times out only when no thread can move otherwise;",
    "TLS, DNS and the C internals of sockets are outside;",
    "sequential consistency at Python-operation level, which both GIL and free-threaded builds give per operation.",
)

_ORACLE: Final = (
    "each message is stored exactly once with its own sender, recipients and body if its thread was told `sent`, not "
    "at all if it was told `not sent`, at most once if it is in doubt;",
    "each reply is read by the thread whose command caused it;",
    "no command of another thread comes inside a transaction, and none out of sequence: the model server is strict;",
    "the connections open at one time stay within the bound;",
    "no thread dies, waits for ever, or is told what is not true of its own message.",
)

_BEYOND: Final = (
    "**From MAIL to the final reply, one lock.** Mutual exclusion is what was seen: in the scenarios with one shared "
    "`SMTP` or `Client` that keeps its connection (`shared`, `sync_root held`, `a recipient refused`), every socket "
    "operation of every explored run, each write and each read, happened with one and the same lock held (the lockset "
    "of Savage et al., *Eraser*, 1997), from MAIL to the final reply. In all scenarios, no command of another thread "
    "came between a MAIL and its final reply.",
    "**Nothing else to disagree on.** N threads can take one lock M times each in (N·M)! / (M!)^N orders. The search "
    "finds exactly that many schedules that differ, with every field access a switch point. If the lock were given "
    "back anywhere between MAIL and the final reply, or if anything that the threads share and change were used "
    "outside of it, there would be more. So one message is one step.",
    "**Mutual exclusion does not depend on N.** A lock that keeps two threads apart keeps any two of N apart. Every "
    "damage in the pictures needs a command of one thread inside the transaction of another: two threads and one "
    "connection. With N threads the steps come in some order, each of them alone; the next one meets the connection as "
    "its predecessor left it, which the scenarios with two messages for each thread, refused recipients, idle closes "
    "and lost connections go through.",
    "**A message that rides** (its commands leave with the content of the one ahead; in a window its content, too) "
    "is its own thread's before that one is settled: the thread has the lock, or the lane its client, until the last "
    "prefetched message is seen through or its connection dropped. So two messages of one thread are one step, and the "
    "premises above are those of the step; the scenarios named `riding`, `window` and `batches` go through what may "
    "end it in the middle.",
    "**Pool and sender** give a client to one holder at a time, and what that holder does is the above. Who gets it is "
    "decided under the pool's and the dispatcher's own locks, from counts and queues whose cases (free, full, somebody "
    "waits, a dial fails, closed) occur at these sizes. That larger numbers bring no new case is an argument, not a "
    "search.",
)


def blocks(report: Report) -> list[Block]:
    """The document."""
    return [
        Heading(1, TITLE),
        *_claim(report),
        *_race(report.reproduction, report.shown),
        *_certificates(report),
        *_mutation(report.score),
        Heading(2, "From these bounds to any number of threads"),
        Text("This part is an argument. Its premises were checked in every run; the step beyond the bounds was not."),
        Items(_BEYOND, numbered=True),
        Heading(2, "Limits"),
        Text("They belong to the claim."),
        Items(LIMITS, numbered=True),
        *_reading(report),
        Heading(2, "Versions"),
        Text(versions()),
    ]


def versions() -> str:
    threads = "with the GIL" if getattr(sys, "_is_gil_enabled", lambda: True)() else "free-threaded"
    python = f"{platform.python_implementation()} {platform.python_version()} ({threads})"
    return f"Made by threadmail {threadmail.__version__} on {python}, {platform.system()}."


def _claim(report: Report) -> list[Block]:
    found = report.certificates
    schedules, violations = sum(c.schedules for c in found), sum(c.violations for c in found)
    if not report.good:
        parts = [c.scenario for c in found if not c.good]
        parts += [] if report.reproduction.good else ["the reproduction"]
        parts += [shown.golden.picture.name for shown in report.shown if not shown.good]
        parts += ["the mutation score"] if report.score.open else []
        return [Text(f"**Not proved.** Not as it has to be: {'; '.join(parts)}.")]
    formula = sum(c.origin == BY_FORMULA for c in found)
    runs, failing = report.reproduction.all.runs, report.reproduction.all.failing
    return [
        Text(
            "**Proved within these bounds, argued beyond:** threads that share a threadmail client, pool or sender do "
            "not interleave the commands of two messages, whatever the order in which they run."
        ),
        Text(
            f"{len(found)} scenarios over the product's own classes, {schedules:,} schedules, every one that can make "
            f"a difference within the bounds of its scenario, {violations} violations. In {formula} scenarios the "
            "number of schedules was predicted by a formula. The same tool, set on the standard library's "
            f"`smtplib.SMTP` shared by two threads, finds that {failing} of {runs} schedules fail."
        ),
        Text("A run passes if all of this holds at its end:"),
        Items(_ORACLE),
    ]


def _race(found: Reproduction, shown: Sequence[Shown]) -> list[Block]:
    reduced = found.reduced
    bounded = [
        [str(n), f"{result.runs:,}", f"{result.failing:,}"] for n, result in enumerate(found.bounded)
    ]  # fmt: skip
    replays = [
        [
            f"[{one.golden.picture.name}]({one.golden.picture.name}.svg)",
            f"`{one.story.schedule}`",
            str(one.story.preemptions),
            "; ".join(kind for kind in one.story.violations if not kind.startswith("failed")) or "none",
        ]
        for one in shown
    ]
    blocks: list[Block] = [
        Heading(2, "The race, reproduced"),
        Text(
            f"Two threads send one message each through one connected `smtplib.SMTP`. Of all **{found.all.runs}** "
            f"schedules **{found.all.failing}** fail. The {found.all.runs - found.all.failing} that pass are the two "
            "serial orders, each also with the second thread's MAIL written just before the first thread reads its "
            f"last reply. The reduced search ends in the same {len(reduced.outcomes)} states in {reduced.runs} "
            "schedules. A schedule mostly does more than one kind of damage:"
        ),
        Table(("Damage", "Schedules"), [[kind, f"{n:,}"] for kind, n in found.kinds.items()], right=("Schedules",)),
        Text("One preemption, a switch away from a thread that could have gone on, is enough:"),
        Table(("Preemptions at most", "Schedules", "Failing"), bounded, right=("Schedules", "Failing")),
        Heading(2, "The shortest ways to break it"),
        Text(
            "Each picture is drawn from a replay. The schedule `0x6 1 0x2` is six steps of thread 0, one of thread 1, "
            "two of thread 0. A step is one write to the connection, one read of a reply, or one operation on a lock."
        ),
        Table(("Picture", "Schedule", "Preemptions", "Violations"), replays),
    ]
    for one in shown:
        picture = one.golden.picture
        blocks += [
            Heading(3, picture.title),
            Text(one.golden.words),
            Image(f"{picture.name}.svg", picture.title, one.svg),
        ]
    return blocks


def _certificates(report: Report) -> list[Block]:
    right = ("Threads", "Messages", "Schedules", "Violations", "Seconds")
    blocks: list[Block] = [
        Heading(2, "Certificates"),
        Text("Every row is one exhaustive search. There is a table for each set of switch points."),
    ]
    for points in dict.fromkeys(one.switch_points for one in report.certificates):
        blocks.append(Heading(3, f"{POINTS}{points}"))
        rows = [one.cells() for one in report.certificates if one.switch_points == points]
        blocks.append(Table(HEAD, rows, right))
    names = ", ".join(f"`{name}`" for name in sorted(BY_DESIGN))
    blocks.append(
        Text(
            f"The data races of `abort()` ({names}) are there by design: abort() takes no lock, because the call that "
            "it ends holds the lock; close() uses it on a call that does not end in time. Each is one read or one "
            "write, each is a switch point, and all their orders were searched. Any other data race would stand in "
            "bold and spoil the claim."
        )
    )
    known = [f"{one.name} ({one.schedules:,} schedules)" for one in report.left_out if one.schedules is not None]
    unknown = [one.name for one in report.left_out if one.schedules is None]
    if known:
        blocks.append(Text(f"Exhausted by `python -m stress.explore`, not again for this page: {'; '.join(known)}."))
    if unknown:
        blocks.append(Text(f"Searched there, and not exhausted so far: {'; '.join(unknown)}."))
    return blocks


#: What each kind of mutant has lost.
_PIECES: Final = {
    "guard": "a lock is not taken",
    "loop": "`if` for the `while` around a wait",
    "notify": "a notify is left out, or wakes one thread for all",
    "wake": "an event is not set",
    "check": "what is looked at, or done, after a wait is left out",
}


def _mutation(score: Score) -> list[Block]:
    return [
        Heading(2, "Mutation score"),
        Text(
            "A proof that finds nothing is worth what it would have found. A tool reads the source of the package and "
            "takes its locking away piece by piece; for each piece some schedule of some scenario must fail. "
            f"**{score.killed} of {score.mutants} mutants are killed**, {score.harmless} cannot matter, {score.open} "
            "are open. `pytest tests/proof/test_mutation.py` replays the schedule that kills each, and fails if the "
            "tool finds a piece that has none; `python -m tests.proof.mutation` prints them all."
        ),
        Table(
            ("Piece", "Mutants"),
            [[_PIECES[kind], str(number)] for kind, number in score.kinds.items()],
            right=("Mutants",),
        ),
        Table(
            ("Module", "Mutants"),
            [[f"`{module}`", str(number)] for module, number in score.modules.items()],
            right=("Mutants",),
        ),
    ]


def _reading(report: Report) -> list[Block]:
    first = report.shown[0].story.schedule if report.shown else ""
    replayed = (
        "from tests.detsched import replay\n"
        "from tests.proof.test_reproduce import raw\n\n"
        f'verdict, scheduler = replay(raw, "{first}")\n'
        "print(verdict.violations)\nprint(verdict.transcript)"
    )
    return [
        Heading(2, "How to run it"),
        Code(
            "pip install -e '.[test]'\n"
            "python -m stress.report                  # this page, docs/*.svg, and build/proof/proof.html\n"
            "python -m stress.report --long           # with the searches that take minutes\n"
            "python -m stress.report --only pool      # some scenarios; leaves docs/ alone\n"
            "python -m pytest tests/proof             # the same as tests\n"
            "python -m tests.proof.mutation           # each mutant with the schedule that kills it, and the score",
            "console",
        ),
        Text("Any schedule can be run again, the same every time:"),
        Code(replayed, "python"),
        Heading(2, "How to read it"),
        Items(
            [
                "**Threads**, **Messages** and **Time-outs** are the bounds: the most threads of a run, the sender's "
                "lanes included; the most messages; and when a timed wait may time out: *any*, whenever its thread is "
                "scheduled while it cannot succeed; *n each*, so for n waits of each thread; *last*, only when nothing "
                "else can happen.",
                "**Switch points**: where another thread may get the turn. *Fields* are the instance fields of the "
                "named classes, those that they inherit included; a field that is written before the threads start "
                "and only read after that is none (`_root` and `_pid`, by which each client finds its own lock).",
                "**Schedules**: how many were run. Of schedules that differ only in the order of operations that "
                "cannot affect each other, one is run (dynamic partial-order reduction with sleep sets); that the "
                "reduction leaves out nothing else is checked on random programs against the plain search, by "
                "`tests/detsched/test_detsched_selfcheck.py`.",
                "**Predicted**: *formula*, the number follows from (N·M)! / (M!)^N and is asserted; *known*, it was "
                "found once and is asserted since, for fewer mean lost coverage; *by version*, it differs between "
                "versions of Python, whose executor is searched along.",
                "**Complete**: no schedule within the bounds is left. **Violations**: schedules that failed. "
                "**Data races**: fields that two threads used, one of them to write, with nothing to order them.",
            ]
        ),
    ]
