"""What a scenario is, and what all of them share.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.detsched import DPOR, Result, Strategy, explore, watched
from tests.detsched.explore import Program
from threadmail import SMTP, Client, ClientPool, Envelope, Receipt, ServerConfig
from threadmail._connection.breaker import CircuitBreaker
from threadmail._dispatch import at_exit as _exit
from threadmail._dispatch.closing import Closing
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.job import Job as SenderJob
from threadmail._dispatch.limits import ConcurrencyLimit
from threadmail._dispatch.schedule import Schedule
from threadmail._dispatch.starter import Starter
from threadmail._dispatch.timeheap import TimeHeap
from threadmail._pool.held import Lease
from threadmail._pool.keys import Keys
from threadmail._pool.room import Room
from threadmail._runtime.steps import Steps
from threadmail._transport.wire import Wire

from .stage import MESSAGE

CONFIG = ServerConfig("model", 25, local_hostname="me", max_age=None)
IDLE = 30.0  # CONFIG.idle_timeout: an idle wait ends when a thread has slept that long in virtual time
LETTER = Envelope("a@here.test", ["b@there.test"], MESSAGE)


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


def by_envelope(send: Callable[[Envelope], Receipt]) -> Callable[[str, list[str], bytes], Receipt]:
    """A `send` of the product that is called like `sendmail`; the receipt comes back, and is judged in full."""
    return lambda sender, recipients, content: send(Envelope(sender, recipients, content))


@contextlib.contextmanager
def no_exit_hook() -> Iterator[None]:
    """Senders of a run end with it; the interpreter's exit is none of their business."""
    real, _exit.close_at_exit = _exit.close_at_exit, lambda sender: None
    try:
        yield
    finally:
        _exit.close_at_exit = real


CLIENT = (SMTP, Client, Wire)
POOL = (ClientPool, Steps, Keys, Lease, CircuitBreaker, Room)
SENDER = (Dispatcher, Closing, Starter, Schedule, TimeHeap, SenderJob, ConcurrencyLimit, CircuitBreaker)
#: Read on each use of `sync_root` without it: written before the threads start, and in a forked child.
OWNER = ("_root", "_pid")
QUIET = {"timeouts": 0}  # a timed wait ends by being woken only
#: Fields that `abort()` uses without the lock, because a call that it ends has the lock; and a hint.
BY_DESIGN = frozenset(
    {
        "Client._aborted",
        "Client._last_abort",
        "Client._leaving",
        "Client._parted",
        "Client._smtp",
        # Set before any dial is aborted, looked at after a dial has begun: one of the two ends it.
        "Dispatcher.dials",
        "Dispatcher.others_idle",
        # Whoever closes looks whether somebody tells of a message already; if not, once more after a while.
        "Job.told",
        "SMTP._abort_requested",
        "SMTP._wire",
        "Wire.aborted",
    }
)
LOST = ("ConnectionLost",)
NOBODY_HOME = ("ConnectionRefused", "ConnectFailed")


def small(name: str, program: Program, *classes: type, **options: Any) -> Scenario:
    """One promise, for the mutants of the locking that keeps it."""
    return Scenario(name, program, classes=classes, constant=OWNER, options={**QUIET, **options})


def of_sender(name: str, program: Program, **options: Any) -> Scenario:
    return small(f"sender, {name}", program, *SENDER, **options)
