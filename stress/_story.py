"""What happened in one run, told so that it can be drawn: who said what to the server, in order, and what went wrong.

Owns the reading of a trace. Every fault is found from the run itself, by the rules below; nobody writes it down beside
a picture. What a correct client never does is a fault: to speak inside another thread's transaction, to read the reply
to another thread's command, to wait for a reply that cannot come. How it looks is left to _pictures.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, cast

from tests.detsched import Scheduler, Verdict, run_once
from tests.detsched.explore import Program
from tests.detsched.ops import ACQUIRE, LOOK, READLINE, RECV, RELEASE, SEND, Op
from tests.detsched.oracle import SENT, Job
from tests.detsched.strategies import Replay, Strategy, write_schedule
from tests.detsched.task import Task


class Kind(Enum):
    """What a row of a picture is."""

    SAYS = "says"  # command or message text, from a thread to the server
    HEARS = "hears"  # one reply, from the server to a thread
    TAKES = "takes"  # the lock
    GIVES = "gives"  # the lock back
    HELD_OFF = "held off"  # a thread whose turn it would be, and which cannot move
    WAITS = "waits"  # for ever


class Fault(Enum):
    """What can be wrong with a row."""

    TEXT = "text"  # a command that the server takes for a line of another thread's message
    RECIPIENT = "recipient"  # a recipient added to another thread's message
    NESTED = "nested"  # a MAIL inside another thread's transaction
    RESET = "reset"  # another thread's transaction thrown away
    ORPHAN = "orphan"  # a command whose transaction is gone
    STOLEN = "stolen"  # the reply to another thread's command
    HANG = "hang"  # a wait without end


@dataclass(frozen=True)
class Event:
    """One row. `owner` is the thread that caused it: for a reply, the one whose command it answers."""

    thread: int
    kind: Kind
    lines: tuple[str, ...] = ()
    owner: int = -1
    fault: Fault | None = None
    words: str = ""
    #: The server after it: whose transaction is open (-1: nobody's), and whether it takes lines for message text.
    transaction: int = -1
    content: bool = False
    #: The thread had just been given the turn; if `preempted`, the one before it could have gone on.
    switched: bool = False
    preempted: bool = False

    def __str__(self) -> str:
        arrow = {Kind.SAYS: ">", Kind.HEARS: "<"}.get(self.kind, self.kind.value)
        told = f"T{self.thread} {arrow} {' / '.join(self.lines)}".rstrip()
        return f"{told}  [{self.words}]" if self.words else told


@dataclass(frozen=True)
class Copy:
    """A message as the server stored it; `foreign` are the parts that belong to another message."""

    sender: str
    recipients: tuple[str, ...]
    lines: tuple[str, ...]
    foreign: frozenset[str]


@dataclass(frozen=True)
class Told:
    """What a thread was told about its message. `outcome` is empty where it never returned."""

    outcome: str
    detail: str
    true: bool


@dataclass(frozen=True)
class Story:
    """One run of two threads with one message each."""

    schedule: str
    preemptions: int
    events: tuple[Event, ...]
    stored: tuple[Copy, ...]
    told: tuple[Told, Told]
    violations: tuple[str, ...] = field(repr=False)


class OneSwitch:
    """Threads in order, but for one attempt to turn to the other one, right after the reply that begins with `after`.

    It is the schedule that a stress test hopes for. `refused` is the position where the other thread could not move.
    """

    exhaustive = False
    label = "one switch"

    def __init__(self, after: str) -> None:
        self.after = after
        self.refused = -1
        self._tried = False

    def begin(self) -> None:
        pass

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task:
        trace = scheduler.trace
        heard = bool(trace) and trace[-1].kind in (READLINE, RECV) and _noted(trace[-1]).startswith(self.after)
        if heard and not self._tried:
            self._tried = True
            for task in enabled:
                if task is not current:
                    return task
            self.refused = len(trace)
        return current if current is not None and current in enabled else enabled[0]

    def finished(self, scheduler: Scheduler) -> bool:
        return False


class _Watching:
    """Another strategy, and a note of each choice against a thread that could have gone on."""

    exhaustive = False

    def __init__(self, strategy: Strategy) -> None:
        self.strategy, self.label, self.preempted = strategy, strategy.label, set[int]()
        self.begin, self.finished = strategy.begin, strategy.finished

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task | None:
        chosen = self.strategy.pick(scheduler, enabled, current)
        if current is not None and current in enabled and chosen is not current:
            self.preempted.add(len(scheduler.trace))
        return chosen


def tell(program: Program, how: str | OneSwitch) -> Story:
    """Run `program`, two threads with one message each, by a written schedule or one attempted switch."""
    watching = _Watching(Replay(how) if isinstance(how, str) else how)
    scheduler, verdict = run_once(program, watching)
    assert verdict is not None
    refused = how.refused if isinstance(how, OneSwitch) else -1
    stored, told = _end(verdict)
    return Story(
        write_schedule(scheduler.schedule),
        len(watching.preempted),
        tuple(_turns(_with_faults(_events(scheduler, refused)), watching.preempted)),
        stored,
        told,
        verdict.violations,
    )


def _noted(op: Op) -> str:
    """The bytes that an operation sent or took, as text."""
    return str(ast.literal_eval(op.note).decode()) if op.note else ""


def plain(text: str) -> str:
    """Addresses and text without the number of the message, for each thread has only one; verbs in capitals, for
    smtplib's are not the same in all versions."""
    text = re.sub(r"(T\d)m0", r"\1", text)
    return re.sub(r"^(mail from|rcpt to|data$|rset$)", lambda verb: verb[0].upper(), text, flags=re.I)


def _events(scheduler: Scheduler, refused: int) -> Iterator[tuple[int, Event, int]]:
    """Position in the trace, event, and position of the event that caused it."""
    hello = {at for at, op in enumerate(scheduler.trace) if op.kind == SEND and _noted(op).startswith("ehlo")}
    for at, op in enumerate(scheduler.trace):
        if at == refused:
            yield at, Event(1 - op.tid, Kind.HELD_OFF, owner=op.tid), -1
        if op.kind == SEND and at not in hello:
            lines = _noted(op).removesuffix("\r\n").split("\r\n")
            yield at, Event(op.tid, Kind.SAYS, tuple(plain(line) for line in lines), op.tid), -1
        elif op.kind in (READLINE, RECV) and op.cause not in hello:
            owner = scheduler.trace[op.cause].tid
            yield at, Event(op.tid, Kind.HEARS, (plain(_noted(op).strip()),), owner), op.cause
        elif op.kind in (ACQUIRE, RELEASE):
            yield at, Event(op.tid, Kind.TAKES if op.kind == ACQUIRE else Kind.GIVES, owner=op.tid), -1
        else:
            assert op.kind == LOOK or at in hello or op.cause in hello, f"a picture has no place for {op}"
    for op in scheduler.stuck:
        yield len(scheduler.trace), Event(op.tid, Kind.WAITS, owner=op.tid), -1


def _with_faults(found: Iterator[tuple[int, Event, int]]) -> Iterator[tuple[int, Event]]:
    """The server's state after each event, and the faults, by the code with which each command was answered."""
    rows = list(found)
    answers = {cause: event.lines[0] for _, event, cause in rows if event.kind is Kind.HEARS}
    asked = {at: event for at, event, _ in rows if event.kind is Kind.SAYS}
    transaction, content = -1, False
    for at, event, cause in rows:
        fault, words = None, ""
        if event.kind is Kind.SAYS:
            fault, words = _spoken(event, answers.get(at, ""), transaction, content)
            transaction, content = _after(event, answers.get(at, ""), transaction, content)
        elif event.kind is Kind.HEARS and event.owner != event.thread:
            fault = Fault.STOLEN
            words = f"T{event.thread} reads the answer to T{event.owner}'s {_verb(asked[cause])}"
        elif event.kind is Kind.WAITS:
            fault, words = Fault.HANG, f"T{event.thread} waits for ever for an answer"
        elif event.kind is Kind.HELD_OFF:
            words = f"T{event.thread} cannot cut in: it has to wait for sync_root"
        yield at, replace(event, fault=fault, words=words, transaction=transaction, content=content)


def _verb(event: Event) -> str:
    return event.lines[0].split(" ")[0] if len(event.lines) == 1 else "message"


def _spoken(event: Event, answer: str, transaction: int, content: bool) -> tuple[Fault | None, str]:
    """What is wrong with a command, in the state in which it meets the server."""
    me, verb, other = f"T{event.thread}'s", _verb(event), f"T{transaction}'s"
    foreign = transaction not in (-1, event.thread)
    if content and foreign:
        return Fault.TEXT, f"{me} {verb} lands in {other} message"
    if verb == "RCPT" and foreign and answer.startswith("250"):
        return Fault.RECIPIENT, f"{me} recipient joins {other} message"
    if verb == "MAIL" and foreign:
        return Fault.NESTED, f"{me} MAIL comes inside {other} transaction: refused"
    if verb == "RSET" and foreign:
        return Fault.RESET, f"{me} RSET throws {other} transaction away"
    if answer.startswith("503"):
        return Fault.ORPHAN, f"{me} transaction is gone: {verb} is refused"
    return None, ""


def _after(event: Event, answer: str, transaction: int, content: bool) -> tuple[int, bool]:
    """The server's state after a command."""
    if content:
        return (-1, False) if event.lines[-1] == "." else (transaction, True)
    verb, accepted = _verb(event), answer[:1] in ("2", "3")
    if verb == "MAIL" and accepted:
        return event.thread, False
    if verb == "RSET":
        return -1, False
    return transaction, verb == "DATA" and accepted


def _turns(rows: Iterator[tuple[int, Event]], preempted: set[int]) -> Iterator[Event]:
    """Each event, with a note where its thread had not been the one before."""
    current = None
    for at, event in rows:
        if event.kind not in (Kind.WAITS, Kind.HELD_OFF):
            switched = current not in (None, event.thread)
            event = replace(event, switched=switched, preempted=switched and at in preempted)
            current = event.thread
        yield event


def _end(verdict: Verdict) -> tuple[tuple[Copy, ...], tuple[Told, Told]]:
    """What the server stored, and what the threads were told, from the outcome that the oracle wrote."""
    (delivered, reports), _ = cast("tuple[tuple[Any, Any], str | None]", verdict.outcome)
    jobs = [Job.make(f"T{thread}m0") for thread in range(2)]
    told = {token: (outcome, detail) for token, outcome, detail in reports}
    copies = [_copy(sender, recipients, body, jobs) for sender, recipients, body in delivered]

    def heard(job: Job) -> Told:
        outcome, detail = told.get(job.token, ("", ""))
        intact = (job.sender, job.recipients, job.content) in delivered
        return Told(outcome, detail, intact == (outcome == SENT))

    return tuple(copies), (heard(jobs[0]), heard(jobs[1]))


def _copy(sender: str, recipients: Sequence[str], body: bytes, jobs: Sequence[Job]) -> Copy:
    """Whose message it is, its own text tells; whatever of it is not that message's is foreign."""
    job = next(job for job in jobs if body.endswith(job.content))
    own = set(job.content.decode().split("\r\n"))
    lines = body.decode().split("\r\n")
    foreign = {sender} - {job.sender} | set(recipients) - set(job.recipients) | set(lines) - own
    clean: Callable[[Any], tuple[str, ...]] = lambda texts: tuple(plain(text) for text in texts)  # noqa: E731
    return Copy(plain(sender), clean(recipients), clean(lines), frozenset(clean(foreign)))
