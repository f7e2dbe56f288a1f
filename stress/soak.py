"""Real threads, real sockets, everything going wrong at once, and a ledger that must come out even.

    python -m stress.soak [--seconds N] [--seed S] [--server aiosmtpd|postfix|exim] [--only NAME]
    python -m stress.soak --minutes 10 --faults all

Round after round, threads share an `SMTP`, a `Client`, a `ClientPool` and a `ThreadedSender`, each alone and all at
once, and send messages of every shape, while recipients and messages are refused, connections dropped, calls aborted,
deadlines missed and subjects closed under work. The interpreter switches threads every microsecond. After each round
the ledger compares every receipt with what the server has: sent means exactly once and intact, to each accepted
recipient; not sent means never; in doubt means at most once. No more may be in doubt than broken connections can
explain, and a share must have been sent at all. `on_receipt` tells of each message once. When nobody sends any more
nothing may be leased, queued or waited for; no thread and no file descriptor may be left, and memory must not grow from
round to round.

With `--faults`, all subjects work at once, in longer rounds, before a server that is cut off at random bytes, stalls,
greylists, ends sessions, refuses logins and is restarted (`stress/storm.py`).

The seed decides messages and faults, not how threads interleave: a failing round is likely, not certain, to fail again.
What schedules can do is stress/explore.py's to show. `--only raw` runs the bare `smtplib.SMTP`, without any fault, and
must fail: a soak that passes it sees nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import logging
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NoReturn

from threadmail import Closed, MailError, Outcome
from threadmail.errors import CONNECTING

from .ledger import Ledger, make_envelope
from .leftovers import open_descriptors
from .servers import PATIENCE, SERVERS, Server
from .storm import FAULTS, Storm
from .subjects import SUBJECTS, RawSMTP, Subject

THREADS = 5  # for each subject
CONTROL_THREADS = 2
ROUND = 5.0  # seconds of sending
STORM_ROUND = 20.0  # time for some restarts
GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
FAREWELLS = 5.0  # seconds for idle connections that are being closed: they count as leased until they are
WARM = 3  # rounds after which memory is taken for what it needs
GROWTH = 24.0  # MiB that it may be more in the end; the messages of one round are several times as much
OBJECTS = 1000  # that there may be more in the end; a round makes millions
SWITCH = 1e-6  # the interpreter's switch interval, in seconds
DEADLINES = (0.0005, 0.002, 0.01, 0.05)  # seconds; one in twelve messages has one
FLOOR = 0.25  # of the messages of a round must be sent; in the worst storm about half of them are
LEAST = 5  # messages of a round, or it says nothing
STDERR = 2  # also where a test has replaced sys.stderr
SHOWN = 20  # violations of a round to print


class Round:
    """One server, some subjects, threads that send, and one that disturbs them."""

    def __init__(self, seed: str, names: Sequence[str], server: Server, seconds: float) -> None:
        self._seed, self._seconds = seed, seconds
        self._server = server
        self._rng = random.Random(seed)
        self._calm = names == [RawSMTP.name]
        self.ledger = Ledger(calm=self._calm, floor=FLOOR, least=LEAST)
        server.faulty = not self._calm
        self._subjects = [SUBJECTS[name](server, self._rng, self.ledger) for name in names]
        self._stop = threading.Event()

    def run(self) -> None:
        """Send until the time is over, then end everything, some of it while work is under way."""
        workers = [
            threading.Thread(target=self._guarded, args=(self._work, subject, number), name=f"soak-{subject.name}")
            for subject in self._subjects
            for number in range(CONTROL_THREADS if self._calm else THREADS)
        ]
        if not self._calm:
            workers.append(threading.Thread(target=self._guarded, args=(self._disturb,), name="soak-disturber"))
        for worker in workers:
            worker.start()
        self._stop.wait(self._seconds)
        early = [] if self._calm else [s for s in self._subjects if s.closes_under_work and self._rng.random() < 0.5]
        for subject in early:
            self._guarded(subject.close)
            self.ledger.count("closed under work")
            self.ledger.may_doubt(subject.connections)
        self._stop.set()
        _join(workers)
        for subject in self._subjects:
            self._guarded(self._end, subject)

    def _end(self, subject: Subject) -> None:
        """Close it when nobody uses it any more: then and thereafter nothing may be left of their use."""
        for when, act in (("when its callers are gone", None), ("when it is closed", subject.close)):
            if act is not None:
                act()
            for what, number in _left_by(subject).items():
                self.ledger.violated(f"{subject.name}: {number} {what} left {when}")

    def _guarded(self, work: Callable[..., object], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - whatever comes out here should not have
            self.ledger.violated(f"{threading.current_thread().name}: {type(error).__name__}: {error}")

    def _work(self, subject: Subject, number: int) -> None:
        rng = random.Random(f"{self._seed}/{subject.name}/{number}")
        message = 0
        while not self._stop.is_set():
            message += 1
            envelope = make_envelope(rng, f"{subject.name}{number}-{message}")
            deadline = rng.choice(DEADLINES) if not self._calm and rng.random() < 1 / 12 else None
            self.ledger.hand_in(envelope, announced=subject.announces, hurried=deadline is not None)
            try:
                fate = subject.send(envelope, deadline, rng)
            except MailError as error:
                self.ledger.settle_error(envelope, error)
                if isinstance(error, Closed):
                    return
                if error.phase in CONNECTING:
                    self._stop.wait(0.05)  # whoever fails fast would only count its failures
            else:
                self.ledger.settle(envelope, fate)

    def _disturb(self) -> None:
        rng = random.Random(f"{self._seed}/disturber")
        while not self._stop.wait(rng.uniform(0.01, 0.2)):
            if rng.random() < 0.4:
                self.ledger.count(*self._server.disturb(rng))
            else:
                rudeness = rng.choice(self._subjects).disturb(rng)
                self.ledger.count(rudeness or "nothing to disturb")


def _left_by(subject: Subject) -> dict[str, int]:
    """What is left of a subject's use when the farewells that are under way have had their time: two seconds each."""
    end = time.monotonic() + FAREWELLS
    while True:
        left = {what: number for what, number in subject.left().items() if number}
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.01)


def _join(threads: Sequence[threading.Thread]) -> None:
    end = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    hanging = [thread.name for thread in threads if thread.is_alive()]
    if hanging:
        _give_up(f"VIOLATION: these threads hang: {hanging}")


def _give_up(why: str) -> NoReturn:
    """End at once, for a thread that hangs would keep the interpreter from ending."""
    print(why, flush=True)
    faulthandler.dump_traceback(all_threads=True, file=STDERR)
    os._exit(1)


def soak_round(
    seed: str, names: Sequence[str], make: Callable[[random.Random], Server], seconds: float
) -> tuple[Ledger, list[str], int]:
    """One round from nothing to nothing. Returns the ledger, what is wrong, and how many messages arrived."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    with make(random.Random(f"{seed}/server")) as server:
        sending = Round(seed, names, server, seconds)
        sending.run()
        arrived = server.arrived(sending.ledger.surely_arrived())
        sending.ledger.faults.update(server.struck)
        sending.ledger.may_doubt(server.hit)
    violations = sending.ledger.judge(arrived)
    left = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in left:
        thread.join(5.0)
    violations += [f"thread left: {thread.name}" for thread in left if thread.is_alive()]
    after = open_descriptors()
    violations += [f"descriptor left: {after[number]}" for number in after.keys() - descriptors.keys()]
    return sending.ledger, violations, len(arrived)


def in_use() -> tuple[float, int]:
    """MiB of resident memory, and how many objects there are, when nothing is left that could be given back."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)  # else it keeps what the busiest round needed, and calls it ours
    try:
        with open("/proc/self/statm") as numbers:
            mib = int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    except FileNotFoundError:
        mib = 0.0  # not Linux: the objects must do
    return mib, len(gc.get_objects())


class Soak:
    """Rounds until the time is over, one of each kind at least, and what they come to."""

    def __init__(self, make: Callable[[random.Random], Server], rounds: Sequence[Sequence[str]], seed: int) -> None:
        self._make, self._rounds, self._seed = make, rounds, seed
        self.outcomes: Counter[Outcome] = Counter()
        self.faults: Counter[str] = Counter()
        self.violations: list[str] = []
        self._memory: list[tuple[float, int]] = []  # after each round

    def run(self, seconds: float, round_length: float) -> None:
        """Soak; each round is told in a line, and what is wrong in one each."""
        number = 0
        started = time.monotonic()
        length = min(round_length, seconds / len(self._rounds))
        while number < len(self._rounds) or time.monotonic() - started < seconds:
            names = self._rounds[number % len(self._rounds)]
            ledger, wrong, arrived = soak_round(f"{self._seed}/{number}", names, self._make, length)
            self.outcomes += ledger.outcomes()
            self.faults += ledger.faults
            self.violations += wrong
            counts = counted(ledger.outcomes())
            print(f"round {number}, {' + '.join(names)}: {counts}; {arrived:,} at the server, {len(wrong)} wrong")
            print("".join(f"  {line}\n" for line in wrong[:SHOWN]), end="", flush=True)
            del ledger
            self._memory.append(in_use())
            number += 1
        self._judge_memory()
        spent = time.monotonic() - started
        print(f"{self.outcomes.total():,} messages in {number} rounds, {spent:.0f} s: {counted(self.outcomes)}")

    def _judge_memory(self) -> None:
        if len(self._memory) > WARM:
            (begin, few), (end, many) = self._memory[WARM - 1], self._memory[-1]
            print(
                f"after round {WARM - 1}: {begin:.0f} MiB, {few:,} objects; at the end: {end:.0f} MiB, {many:,} objects"
            )
            if not GIL:
                # aiosmtpd makes a class for each address, and there classes made while threads run are never freed.
                print("free of the GIL that growth is the server's, and not judged")
                return
            if end - begin > GROWTH:
                self.violations.append(f"memory left: {end - begin:.0f} MiB more than after round {WARM - 1}")
            if many - few > OBJECTS:
                self.violations.append(f"objects left: {many - few:,} more than after round {WARM - 1}")

    def tell(self) -> None:
        """The closing lines."""
        survived = ", ".join(f"{count:,} {fault}" for fault, count in self.faults.most_common() if count)
        print("faults survived:", survived)
        kinds = Counter(kind_of(violation) for violation in self.violations)
        print(", ".join(f"{kinds[kind]} {kind}" for kind in KINDS))
        print(f"{len(self.violations)} violations; seed {self._seed}, Python {sys.version}")
        if self.violations:
            print("The same messages and faults again: the same command with --seed", self._seed)


KINDS = ("lost", "twice", "leaked", "otherwise wrong")


def kind_of(violation: str) -> str:
    """What a violation comes to for who relies on the receipts."""
    if " left: " in violation:
        return "leaked"
    copies = re.search(r"yet (\d+) copies", violation)
    if copies is None:
        return "otherwise wrong"
    return "lost" if copies[1] == "0" else "twice"


def counted(outcomes: Counter[Outcome]) -> str:
    return ", ".join(f"{outcomes[outcome]:,} {outcome.value}" for outcome in Outcome if outcomes[outcome])


@contextmanager
def _switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def main(arguments: Sequence[str] | None = None) -> int:
    together = [name for name in SUBJECTS if name != RawSMTP.name]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of sending (60); a round of each kind at least")
    parser.add_argument("--minutes", type=float, help="the same in minutes")
    parser.add_argument("--seed", type=int, default=1, help="of messages and faults (1)")
    parser.add_argument("--server", choices=SERVERS, default="aiosmtpd")
    parser.add_argument("--faults", metavar="NAMES", help=f"`all`, or some of {', '.join(FAULTS)}, with commas between")
    parser.add_argument("--only", choices=SUBJECTS, help="this subject only")
    args = parser.parse_args(arguments)
    faults = None if args.faults is None else list(FAULTS) if args.faults == "all" else args.faults.split(",")
    if faults is not None and (unknown := set(faults) - FAULTS.keys()):
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    make: Callable[[random.Random], Server] = SERVERS[args.server]
    if faults is not None:
        make = partial(Storm, faults=faults)
    storm = faults is not None or args.server == "storm"
    kinds = [[args.only]] if args.only else [*([name] for name in together if not storm), together]
    seconds = args.seconds if args.minutes is None else 60 * args.minutes
    faulthandler.dump_traceback_later(seconds + 5 * PATIENCE, exit=True, file=STDERR)
    # What is not sent is the ledger's to tell; a callback that raised would be logged as an error.
    logging.getLogger("threadmail").setLevel(logging.ERROR)
    try:
        with _switching():
            soaked = Soak(make, kinds, args.seed)
            soaked.run(seconds, STORM_ROUND if storm else ROUND)
            soaked.tell()
            return 1 if soaked.violations else 0
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    sys.exit(main())
