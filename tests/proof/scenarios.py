"""What is proved: the scenarios, each with its bounds, over the product's own classes.

A scenario is a program for the explorer (tests/detsched) and the numbers it must come to. Each of its runs is judged by
the oracle: every message exactly once with its own sender, recipients and body; every reply read by the thread that
caused it; no foreign command inside a transaction; connections within the bound; no deadlock; every receipt true.

Where the only thing that threads can disagree on is the order in which they get the one lock, the number of schedules
has a formula, the number of orders of M critical sections in each of N threads: (N·M)! / (M!)^N. A search that finds
fewer has overlooked something, one that finds more has found a second thing to disagree on.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.detsched import DPOR, Result, Run, Strategy, Verdict, explore, watched
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.oracle import NOT_SENT, SENT, Job, Report, describe, failed_outcome
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import Faults
from threadmail import (
    SMTP,
    Client,
    ClientPool,
    Envelope,
    MailError,
    Receipt,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Throttle,
    TimedOut,
    _exit,
)
from threadmail._deadline import NEVER
from threadmail._dispatch import Dispatcher
from threadmail._jobs import Job as SenderJob
from threadmail._pace import Pace
from threadmail._wire import Wire
from threadmail.retry import DialGate

CONFIG = ServerConfig("model", 25, local_hostname="me", max_age=None)
IDLE = 30.0  # CONFIG.idle_timeout: an idle wait ends when a thread has slept that long in virtual time


@dataclass(frozen=True)
class Scenario:
    """One thing to exhaust.

    Attributes:
        name: what runs against what, and how much of it.
        program: sets up a run.
        schedules: how many there are, or None where nobody has a formula; a number found once is asserted as well, for
            a drop means lost coverage.
        formula: whether `schedules` was predicted, not found.
        classes: whose fields are switch points beside locks and sockets.
        constant: fields of them that are written before the threads start, and read without the lock.
        options: for `explore`.
        long: too long for the suite; for `stress/`.
    """

    name: str
    program: Program
    schedules: int | None = None
    formula: bool = False
    classes: tuple[type, ...] = ()
    constant: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    long: bool = False

    def run(self, strategy: Strategy | None = None, **options: Any) -> Result:
        """Search; by default all schedules, one for each class of equivalent ones."""
        granularity = "locks, sockets" + (", fields" if self.classes else "")
        with watched(*self.classes, constant=self.constant) if self.classes else contextlib.nullcontext():
            return explore(
                self.program,
                strategy or DPOR(),
                scenario=self.name,
                granularity=granularity,
                **{**self.options, **options},
            )


def orders(threads: int, messages: int) -> int:
    """In how many orders `threads` threads can get one lock `messages` times each."""
    return int(math.factorial(threads * messages) // math.factorial(messages) ** threads)


def by_envelope(send: Callable[[Envelope], Receipt]) -> Callable[[str, list[str], bytes], list[str]]:
    """A `send` of the product as a function like `sendmail`: what was refused comes back."""
    return lambda sender, recipients, content: list(send(Envelope(sender, recipients, content)).refused)


# ---------------------------------------------------------------- one client


def guarded(threads: int, messages: int) -> Program:
    """Threads share one guarded `SMTP`."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=1, lockset=True))
        client = SMTP("model", 25, local_hostname="me")
        office.senders(threads=threads, messages=messages, sendmail=client.sendmail)

    return program


def shared_client(
    threads: int,
    messages: int,
    *,
    faults: Faults | None = None,
    bound: int | None = 1,
    failures: tuple[str, ...] = (),
) -> Program:
    """Threads share one `Client`, which connects when the first of them needs it."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(faults=faults, bound=bound, lockset=bound is not None), failures=failures)
        client = Client(CONFIG, watch_idle=False)
        office.senders(threads=threads, messages=messages, sendmail=by_envelope(client.send), recipients=2)

    return program


def held_by_the_user(run: Run) -> None:
    """User code holds `sync_root` over two messages; another thread sends one: never in between."""
    office = PostOffice(run, ModelServer(bound=1, lockset=True))
    client = Client(CONFIG, watch_idle=False)
    send = by_envelope(client.send)
    pair, single = office.jobs(0, 2), office.jobs(1, 1)

    def both() -> None:
        with client.sync_root:
            for job in pair:
                office.ledger.send(job, send)

    run.thread(both, "pair")
    run.thread(lambda: office.ledger.send(single[0], send), "single")


def beside(
    act: Callable[[Client, ModelServer], object], *, failures: tuple[str, ...] = (), threads: int = 2
) -> Program:
    """Threads send one message each through one `Client` while another one does something to it."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(ordered=True), failures=failures)
        client = Client(CONFIG, watch_idle=False)
        office.senders(threads=threads, messages=1, sendmail=by_envelope(client.send))
        run.thread(lambda: act(client, office.server), "other")

    return program


def idle_close(client: Client, _: ModelServer) -> None:
    time.sleep(IDLE + 1)
    client.close_idle()


def hang_up(_: Client, server: ModelServer) -> None:
    server.hang_up_idle()


# ---------------------------------------------------------------- pool


def pooled(
    size: int,
    threads: int,
    messages: int,
    *,
    faults: Faults | None = None,
    failures: tuple[str, ...] = (),
    deadline: float | None = None,
    beside: Callable[[ClientPool], object] | None = None,
) -> Program:
    """Threads send through one pool."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=size, faults=faults), failures=failures)
        pool = ClientPool(CONFIG, max_size=size)
        pool._watch = None  # the idle watch has scenarios of its own

        def send(envelope: Envelope) -> Receipt:
            return pool.send(envelope, deadline=deadline)

        office.senders(threads=threads, messages=messages, sendmail=by_envelope(send))
        if beside is not None:
            run.thread(lambda: beside(pool), "other")

    return program


def discarding(size: int, threads: int) -> Program:
    """Each thread closes its client before it gives it back: whoever waits must not wait for ever."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=size))
        pool = ClientPool(CONFIG, max_size=size)
        pool._watch = None

        def send(envelope: Envelope) -> Receipt:
            with pool.lease() as client:
                receipt = client.send(envelope)
                client.close()
                return receipt

        office.senders(threads=threads, messages=1, sendmail=by_envelope(send))

    return program


# ---------------------------------------------------------------- sender


@contextlib.contextmanager
def no_exit_hook() -> Iterator[None]:
    """Senders of a run end with it; the interpreter's exit is none of their business."""
    real, _exit.close_at_exit = _exit.close_at_exit, lambda sender: None
    try:
        yield
    finally:
        _exit.close_at_exit = real


def dispatched(
    lanes: int,
    messages: int,
    *,
    callers: int = 1,
    faults: Faults | None = None,
    failures: tuple[str, ...] = (),
    beside: Callable[[ThreadedSender, list[Any]], object] | None = None,
    wait_for_submit: bool = True,
    drain: bool = True,
    **settings: Any,
) -> Program:
    """Callers submit to one `ThreadedSender`, wait for their futures, and the last one closes it."""

    def program(run: Run) -> None:
        run.context.enter_context(no_exit_hook())
        office = PostOffice(run, ModelServer(bound=lanes, faults=faults), failures=failures)
        sender = ThreadedSender(CONFIG, workers=lanes, retry=RetryPolicy(base=0.0), **settings)
        futures: list[Any] = []
        submitted = threading.Event()
        left = [callers]
        last = threading.Lock()

        def call(jobs: list[Job]) -> None:
            mine = []
            for job in jobs:
                try:
                    future = sender.submit(Envelope(job.sender, list(job.recipients), job.content))
                except MailError as error:
                    office.ledger.report(job, Report(NOT_SENT, detail=describe(error)))
                    continue
                mine.append((job, future))
                futures.append(future)
            submitted.set()
            for job, future in mine:
                try:
                    receipt = future.result()
                except CancelledError:
                    office.ledger.report(job, Report(NOT_SENT, detail="cancelled"))
                except MailError as error:
                    office.ledger.report(job, Report(failed_outcome(error), detail=describe(error)))
                else:
                    office.ledger.report(job, Report(SENT, frozenset(receipt.refused)))
            with last:
                left[0] -= 1
                done = not left[0]
            if done:
                sender.close(drain=drain, timeout=None)

        for caller in range(callers):
            jobs = office.jobs(caller, messages)
            run.thread(partial(call, jobs), f"caller{caller}")
        if beside is not None:

            def other() -> None:
                if wait_for_submit:
                    submitted.wait()
                beside(sender, futures)

            run.thread(other, "other")

    return program


def close_anyway(client: Client, _: ModelServer) -> None:
    """Close; every timed wait may time out at any moment, so that close() may say that it gave up."""
    with contextlib.suppress(TimedOut):
        client.close()


def cancel_all(_: ThreadedSender, futures: list[Any]) -> None:
    for future in list(futures):
        future.cancel()


def abort_all(sender: ThreadedSender, futures: list[Any]) -> None:
    for future in list(futures):
        sender.abort(future)


def close(sender: ThreadedSender, _: list[Any]) -> None:
    sender.close(timeout=None)


def lanes_alone(
    lanes: int,
    messages: int,
    *,
    faults: Faults | None = None,
    cancel: int | None = None,
    closing: bool = False,
) -> Program:
    """Lanes and a queue that is full when they start; no caller and no executor beside them.

    Each lane dials, sends, finds nothing more and ends. Where `cancel` says so, a thread takes that message back; with
    `closing` one closes the dispatcher and takes the whole queue back.
    """

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=lanes, faults=faults), failures=("cancelled", "taken back"))
        dispatcher = Dispatcher(
            CONFIG,
            workers=lanes,
            queue_size=10,
            policy=RetryPolicy(base=0.0),
            throttle=Throttle(),
            rng=random.Random(1),
            settled=lambda job: None,
        )
        dispatcher._working = False  # no lanes of its own while the queue is filled
        given = office.jobs(0, messages)
        jobs = [SenderJob(Envelope(j.sender, list(j.recipients), j.content), NEVER, dispatcher) for j in given]
        for job in jobs:
            dispatcher.put(job)
        dispatcher._working, dispatcher._lane_count = True, lanes
        for number in range(lanes):
            run.thread(dispatcher._lane, f"lane{number}")
        if cancel is not None:
            run.thread(jobs[cancel].future.cancel, "canceller")
        if closing:
            run.thread(lambda: dispatcher.close(drain=False, end=NEVER), "closer")
        verdict = office.verdict

        def judge() -> Verdict:
            for mine, job in zip(given, jobs, strict=True):
                if job.future.cancelled():
                    office.ledger.report(mine, Report(NOT_SENT, detail="cancelled"))
                elif job.receipt is not None:
                    told = "" if job.receipt.error is None else "taken back"
                    refused = frozenset(job.receipt.refused)
                    office.ledger.report(mine, Report(job.receipt.outcome.value, refused, detail=told))
            return verdict()

        run.judge(judge)

    return program


# ---------------------------------------------------------------- the list

CLIENT = (SMTP, Client, Wire)
POOL = (ClientPool, DialGate)
SENDER = (Dispatcher, SenderJob, Pace, DialGate)
#: Read on each use of `sync_root` without it: written before the threads start, and in a forked child.
OWNER = ("_locks", "_pid")
QUIET = {"timeouts": 0}  # a timed wait ends by being woken only
LOST = ("ConnectionLost",)
NOBODY_HOME = ("ConnectionRefused", "ConnectFailed")


def _client(name: str, program: Program, schedules: int | None = None, *, formula: bool = False) -> Scenario:
    return Scenario(name, program, schedules, formula, CLIENT, OWNER)


def _pool(name: str, program: Program, schedules: int | None = None, *, long: bool = False, **options: Any) -> Scenario:
    return Scenario(name, program, schedules, False, POOL, OWNER, options, long)


def _sender(
    name: str, program: Program, schedules: int | None = None, *, long: bool = False, **options: Any
) -> Scenario:
    return Scenario(name, program, schedules, False, SENDER, OWNER, {**QUIET, **options}, long)


_BOUNDS = [(2, 1), (2, 2), (3, 1), (3, 2)]

_REFUSED = Faults(refuse=frozenset(["r1.T0m0@there.test"]))
_DROPS = Faults(drop={0: 4})
_HANGS_UP = Faults(hang_up_after={0: 1})
_FIRST_DIAL_FAILS = Faults(refuse_connects=frozenset([0]))
_SECOND_DIAL_FAILS = Faults(refuse_connects=frozenset([1]))
_BUSY_AT_FIRST = Faults(greet_421=frozenset([0]))
_ENDED = ("Closed", "Aborted")
_LATE = ("TimedOut", "ReplyTimedOut")
_POOLS = {(1, 2, 1): 6, (1, 2, 2): 106, (1, 3, 1): 84, (2, 2, 1): 16, (2, 2, 2): 840, (2, 3, 1): 1164}

#: The server hangs up after the first message, and greets the next connection with 421.
_IN_VAIN = Faults(hang_up_after={0: 1}, greet_421=frozenset([1]))
replaced_in_vain = lanes_alone(1, 2, faults=_IN_VAIN, cancel=1)
put_back_late = lanes_alone(1, 2, faults=_IN_VAIN, closing=True)

SCENARIOS = [
    *(_client(f"SMTP shared, {t}x{m}", guarded(t, m), orders(t, m), formula=True) for t, m in _BOUNDS),
    *(_client(f"Client shared, {t}x{m}", shared_client(t, m), orders(t, m), formula=True) for t, m in _BOUNDS),
    _client("Client, sync_root held over two messages", held_by_the_user, 2, formula=True),
    _client("Client, a recipient refused, 2x1", shared_client(2, 1, faults=_REFUSED), 2, formula=True),
    _client(
        "Client, dropped at the 4th command, 2x1", shared_client(2, 1, faults=_DROPS, bound=None, failures=LOST), 2
    ),
    _client("Client, hung up on after a message, 2x1", shared_client(2, 1, faults=_HANGS_UP, bound=None), 2),
    _client("Client, 2x1 beside idle close", beside(idle_close), 10),
    _client("Client, 2x1 beside a server that hangs up", beside(hang_up, failures=LOST), 58),
    _client("Client, 1x1 beside close()", beside(close_anyway, failures=_ENDED, threads=1), 216),
    _client("Client, 2x1 beside abort()", beside(lambda client, _: client.abort(), failures=_ENDED), 420),
    *(_pool(f"pool of {s}, {t}x{m}", pooled(s, t, m), known) for (s, t, m), known in _POOLS.items()),
    _pool("pool of 1, 2x1, deadlines", pooled(1, 2, 1, deadline=5.0, failures=_LATE), 16),
    _pool("pool of 1, 3 threads that discard", discarding(1, 3), 150),
    _pool("pool of 2, 2x1, first dial fails", pooled(2, 2, 1, faults=_FIRST_DIAL_FAILS, failures=NOBODY_HOME), 4),
    _pool("pool of 1, 1x1 beside close()", pooled(1, 1, 1, beside=ClientPool.close, failures=_ENDED), 577),
    # The executor differs between versions of Python, and the numbers with it.
    _sender("sender, 1 lane, 1 message", dispatched(1, 1)),
    _sender("sender, 1 lane, 2 messages", dispatched(1, 2)),
    _sender("sender, 2 lanes, 2 messages", lanes_alone(2, 2), 2288),
    _sender("sender, cancel while a connection is replaced in vain", replaced_in_vain, 17, timeouts=1),
    _sender("sender, closed while a message is put back", put_back_late, 958, timeouts=1),
    _sender("sender, lane ends idle while work arrives", dispatched(1, 1), timeouts=2),
    _sender("sender, retry after a refused session", dispatched(1, 1, faults=_BUSY_AT_FIRST), timeouts=3),
    _sender("sender, cancel beside it", dispatched(1, 1, beside=cancel_all, failures=("cancelled",))),
    _sender("sender, abort beside it", dispatched(1, 1, beside=abort_all, failures=("cancelled", "Aborted"))),
    _sender("sender, full queue, 2 callers", dispatched(1, 1, callers=2, queue_size=1)),
    _sender(
        "sender, closed while work arrives", dispatched(1, 1, beside=close, wait_for_submit=False, failures=("Closed",))
    ),
    _pool(
        "pool of 2, 3x1, second dial fails",
        pooled(2, 3, 1, faults=_SECOND_DIAL_FAILS, failures=NOBODY_HOME),
        long=True,
    ),
    _pool("pool of 1, 2x1 beside close()", pooled(1, 2, 1, beside=ClientPool.close, failures=_ENDED), long=True),
    _pool("pool of 1, 3x2", pooled(1, 3, 2), long=True),
    _pool("pool of 2, 4x1", pooled(2, 4, 1), long=True),
    _sender("sender, 2 lanes, 2 messages, with caller and executor", dispatched(2, 2), long=True),
]
SUITE = [scenario for scenario in SCENARIOS if not scenario.long]
LONG = [scenario for scenario in SCENARIOS if scenario.long]
