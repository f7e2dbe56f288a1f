"""A storm of exceptions from outside: on callers' threads and on ours, at any moment, and nothing may be lost by it.

    python -m stress.interrupts [--seconds N] [--seed S] [--only client|pool|sender] [--how HOW]

Round after round, threads share a `Client`, a `ClientPool` or a `ThreadedSender`, and send, lease, stream, take back
and call off. Meanwhile exceptions strike that no code asked for:

* async: `PyThreadState_SetAsyncExc` on a caller or on a thread of threadmail's own;
* signal: a handler that raises, on the main thread, which is a caller then (as Ctrl-C does);
* error: as async, but a MemoryError, which is an `Exception`, so that other clauses catch it;
* memory: an allocation that fails, anywhere in the process (`_testcapi.set_nomemory`; where there is none, as error).
  Each round has a process of its own, for the interpreter itself may not survive it, which is no fault of ours.

Whoever was struck knows nothing of his message: it may have gone out, once. What everybody else was told must be true,
by the ledger (`ledger.py`): none lost, none twice, no false outcome. No more may be in doubt than strikes fell. Nobody
may hang; `close()` in peace must end everything: no thread, no connection, no lease is left.

The seed decides who is struck when, in the storm's own time, not how threads interleave: a failing round is likely, not
certain, to fail again. `--seed S --only X --how Y --round N` runs one round again.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from tests.support.naming import NamingServer
from tests.support.strikes import calm, strike, withdraw
from threadmail import (
    Client,
    ClientPool,
    ConnectFailed,
    Envelope,
    MailError,
    Receipt,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Timeouts,
)
from threadmail._dispatch.starter import Starter
from threadmail._dispatch.worker import Worker
from threadmail._runtime.locks import new_rlock

from .ledger import Arrived, Fate, Ledger, make_envelope
from .leftovers import open_descriptors

try:
    import _testcapi  # type: ignore[import-not-found]
except ImportError:  # a Python that was built without its own tests
    _testcapi = None

ROOT = Path(__file__).resolve().parents[1]

CALLERS = 4
WORKERS = 3
ROUND = 3.0  # seconds of storm
PATIENCE = 40.0  # seconds until what has not ended is taken for hanging
PAUSE = 0.0002, 0.02  # seconds between two strikes
FLOOR = 0.2  # of the messages whose fate is known must be sent
OURS, NOT_OURS = "threadmail-", ("threadmail-capture", "threadmail-proxy")
LANES = "threadmail-lane"  # an executor's
BORROWED_NUMBERS = sys.version_info < (3, 12)  # see `Ours`
HOWS = ("async", "signal", "error", "memory")
SWITCH = 1e-5
STDERR = 2
SHOWN = 20


class Strike(BaseException):
    """Comes from outside, as a KeyboardInterrupt does."""


class Shelter:
    """One thread, a caller's or one of ours: it can be struck while it is in a call of the product, and only then.

    What the harness itself does must not be struck, or it would lose its own accounts; nor what the interpreter does
    for a thread. `gate` is what the storm holds while it strikes: nobody leaves the call meanwhile.

    Args:
        starved: allocations fail in the whole process, so that whatever is raised may be of that.
    """

    def __init__(self, starved: bool = False) -> None:
        self.starved = starved
        self.gate = new_rlock()  # guards the two below; whoever takes it may be struck in that very moment
        self.outside = False  # in a call of the product, where strikes may fall
        self.hit = False  # in this call
        self.thread = 0

    def call(self, act: Callable[[], Any]) -> tuple[bool, Any]:
        """Call the product. Returns whether the call came to its end, and what it returned or the MailError it raised.

        It is struck once at most, so that what is caught here cannot be followed by another one.
        """
        self.thread, self.hit = threading.get_ident(), False
        _here.shelter = self
        done, told = False, None
        try:
            try:
                self.outside = True
                told = act()
                done = True
            except MailError as error:
                told, done = error, True
            except Exception as error:
                if not (self.starved or isinstance(error, MemoryError)):
                    raise
            self._come_in()
        except (Strike, MemoryError):
            self._come_in()
        finally:
            self.outside = False
        return done, told

    def _come_in(self) -> None:
        """What is on its way would strike the harness."""
        if not self.starved:
            with self.gate:
                self.outside = False
                withdraw(threading.get_ident())

    def go_on(self) -> None:
        """By its own thread, in the call: what has struck it is dealt with, and it may be struck again."""
        with self.gate:
            withdraw(threading.get_ident())
            self.hit = False

    def shut(self) -> bool:
        """By its own thread: from now on it is not struck. Returns whether it could be."""
        with self.gate:
            was_outside, self.outside = self.outside, False
            withdraw(threading.get_ident())
        return was_outside

    def struck(self, kind: type[BaseException]) -> bool:
        """By the storm: strike it, if it is outside and was not struck in this call."""
        with self.gate:
            if not self.outside or self.hit:
                return False
            self.hit = strike(self.thread, kind)
            return self.hit


_here = threading.local()  # each thread's shelter


class Ours:
    """The threads of threadmail's own that run now, each in a shelter.

    What the interpreter does before and behind their work is not to be struck. A thread that dies in its bootstrap is
    waited for by `Thread.start()` without end, and an executor's thread that dies with the word to end in its hand
    tells nobody else of it. Nor is it enough to look first and strike then: on a busy machine the thread may have ended
    in between, and its number be that of a new one, which is in its bootstrap.

    CPython 3.10 and 3.11 give a new thread the number of the one that starts it, until it runs; who strikes that one
    strikes the new one, in its bootstrap. So there nobody is struck between the two.

    Each is struck once, for what deals with a strike is not promised to bear another one; a worker once more each time
    that it looks for its next message.
    """

    def __init__(self) -> None:
        self._running: dict[Shelter, str] = {}

    @property
    def running(self) -> list[tuple[Shelter, str]]:
        """Each with the name of its thread."""
        return list(self._running.items())

    def shelter(self, act: Callable[[], Any]) -> None:
        """Do the work of the calling thread."""
        shelter = Shelter()
        self._running[shelter] = threading.current_thread().name
        try:
            shelter.call(act)
        finally:
            del self._running[shelter]

    @contextmanager
    def sheltered(self) -> Iterator[None]:
        """Meanwhile each that is started gets its shelter."""
        run, work, next_job = threading.Thread.run, Starter.work, Worker._next_job

        def run_sheltered(thread: threading.Thread) -> None:
            if thread.name.startswith(OURS) and not thread.name.startswith((LANES, *NOT_OURS)):
                self.shelter(lambda: run(thread))
            else:
                run(thread)

        def work_sheltered(starter: Starter, worker: Worker) -> None:
            self.shelter(lambda: work(starter, worker))

        def next_job_struck_anew(worker: Worker) -> Any:
            _here.shelter.go_on()
            return next_job(worker)

        with (
            start_unstruck(),
            patch.object(threading.Thread, "run", run_sheltered),
            patch.object(Starter, "work", work_sheltered),
            patch.object(Worker, "_next_job", next_job_struck_anew),
        ):
            yield


@contextmanager
def start_unstruck() -> Iterator[None]:
    """Who starts a thread is not struck until that one has its own number; see `Ours`."""
    if not BORROWED_NUMBERS:
        yield
        return
    start_new = threading._start_new_thread  # type: ignore[attr-defined]

    def start(bootstrap: Callable[[], object], arguments: tuple[()]) -> None:
        runs = threading.Event()

        def begin() -> None:
            runs.set()
            bootstrap()

        shelter: Shelter | None = getattr(_here, "shelter", None)
        was_outside = shelter is not None and shelter.shut()
        try:
            start_new(begin, arguments)
            runs.wait()
        finally:
            if shelter is not None:
                shelter.outside = was_outside

    with patch.object(threading, "_start_new_thread", start):
        yield


# ---------------------------------------------------------------- what is struck


class Target:
    """What is shared, and struck. Each `act` is one thing a caller does, within his shelter."""

    name = ""

    def __init__(self, config: ServerConfig, ledger: Ledger, rng: random.Random) -> None:
        self.config, self.ledger = config, ledger
        self.numbers = iter(range(1 << 60))

    def act(self, shelter: Shelter, rng: random.Random) -> None:
        raise NotImplementedError

    def close(self, seconds: float) -> None:
        raise NotImplementedError

    def left(self) -> dict[str, int]:
        """What must be 0 when it is closed."""
        raise NotImplementedError

    def letters(self, rng: random.Random, number: int = 1) -> list[Envelope]:
        letters = [
            make_envelope(rng, f"{self.name}{threading.get_ident()}x{next(self.numbers)}") for _ in range(number)
        ]
        for letter in letters:
            self.ledger.hand_in(letter)
        return letters

    def settle(self, letters: Sequence[Envelope], done: bool, told: Any) -> None:
        """One call for these messages has returned, raised or been struck."""
        receipts = {r.message_id: r for r in told if isinstance(r, Receipt)} if isinstance(told, (list, tuple)) else {}
        for letter in letters:
            if letter.message_id in receipts:
                self.ledger.settle(letter, Fate.of(receipts[letter.message_id]))
            elif done and isinstance(told, Receipt):
                self.ledger.settle(letter, Fate.of(told))
            elif done and isinstance(told, MailError) and len(letters) == 1:
                self.ledger.settle_error(letter, told)
                if isinstance(told, ConnectFailed):
                    time.sleep(0.05)  # whoever fails fast would only count its failures
            else:
                self.ledger.abandon(letter)


class ClientTarget(Target):
    name = "client"

    def __init__(self, config: ServerConfig, ledger: Ledger, rng: random.Random) -> None:
        super().__init__(config, ledger, rng)
        self.client = Client(config, rng=rng)

    def act(self, shelter: Shelter, rng: random.Random) -> None:
        chance = rng.random()
        if chance < 0.05:
            shelter.call(self.client.close_idle)
        elif chance < 0.1:
            self.ledger.may_doubt()
            shelter.call(self.client.abort)
        elif chance < 0.3:
            letters = self.letters(rng, 3)
            self.settle(letters, *shelter.call(lambda: list(self.client.send_all(letters))))
        else:
            [letter] = self.letters(rng)
            self.settle([letter], *shelter.call(lambda: self.client.send(letter)))

    def close(self, seconds: float) -> None:
        self.client.close(timeout=seconds)

    def left(self) -> dict[str, int]:
        return {"connections": int(self.client.is_connected)}


class PoolTarget(Target):
    name = "pool"

    def __init__(self, config: ServerConfig, ledger: Ledger, rng: random.Random) -> None:
        super().__init__(config, ledger, rng)
        self.pool = ClientPool(config, max_size=WORKERS, rng=rng)

    def act(self, shelter: Shelter, rng: random.Random) -> None:
        [letter] = self.letters(rng)

        def leased() -> Receipt:
            with self.pool.lease(timeout=PATIENCE / 4) as client:
                return client.send(letter)

        if rng.random() < 0.1:
            self.ledger.abandon(letter)
            shelter.call(self.pool.close_idle)
        elif rng.random() < 0.5:
            self.ledger.not_begun(letter)  # there may be no lease
            self.settle([letter], *shelter.call(leased))
        else:
            self.settle([letter], *shelter.call(lambda: self.pool.send(letter, deadline=PATIENCE / 4)))

    def close(self, seconds: float) -> None:
        self.pool.close(timeout=seconds)

    def left(self) -> dict[str, int]:
        stats = self.pool.stats()
        return {"clients leased": stats.leased, "threads waiting": stats.waiting, "clients idle": stats.idle}

    def at_rest(self) -> dict[str, int]:
        """What must be 0 when the callers are gone, before it is closed.

        The idle watch may be in the middle of a farewell, and whom it says goodbye to counts as leased until that ends.
        """
        stats = self.pool.stats()
        beyond = max(0, stats.idle - WORKERS)  # at the first look: later on the watch has closed them
        end = time.monotonic() + PATIENCE / 4
        while (stats.leased or stats.waiting) and time.monotonic() < end:
            time.sleep(0.005)
            stats = self.pool.stats()
        return {"clients leased": stats.leased, "threads waiting": stats.waiting, "clients idle beyond": beyond}


class SenderTarget(Target):
    name = "sender"

    def __init__(self, config: ServerConfig, ledger: Ledger, rng: random.Random) -> None:
        super().__init__(config, ledger, rng)
        self.heard: list[Receipt] = []
        retry = RetryPolicy(attempts=3, base=0.005, longest=0.05)
        self.sender = ThreadedSender(
            config, workers=WORKERS, queue_size=20, retry=retry, on_receipt=self.heard.append, rng=rng
        )

    def act(self, shelter: Shelter, rng: random.Random) -> None:
        chance = rng.random()
        if chance < 0.3:
            [letter] = self.letters(rng)
            self.settle([letter], *shelter.call(lambda: self.sender.send(letter)))
        elif chance < 0.7:
            self._submit(shelter, rng)
        elif chance < 0.85:
            letters = self.letters(rng, 5)
            self.settle(letters, *shelter.call(lambda: list(self.sender.send_all(letters))))
        else:
            letters = self.letters(rng, 5)
            got: list[Receipt] = []
            wanted = rng.choice([2, 5])

            def stream() -> None:
                for receipt in self.sender.send_each(letters):
                    got.append(receipt)
                    if len(got) == wanted:
                        break

            shelter.call(stream)
            self.settle(letters, False, got)

    def _submit(self, shelter: Shelter, rng: random.Random) -> None:
        [letter] = self.letters(rng)
        done, future = shelter.call(lambda: self.sender.submit(letter))
        if not done or isinstance(future, MailError):
            self.settle([letter], done, future)
            return
        if rng.random() < 0.2:
            self.ledger.may_doubt()
            shelter.call(lambda: self.sender.abort(future) if rng.random() < 0.5 else future.cancel())
        # The future is there, so it must be settled, whoever is struck meanwhile. Waiting is the harness's part, and in
        # the shelter: a strike within the standard library's own wait can leave the future's lock held for ever. So
        # where the whole process is struck it is not waited in there at all.
        end = time.monotonic() + PATIENCE
        while not future.done() and time.monotonic() < end:
            time.sleep(0.02) if shelter.starved else wait([future], 0.5)
        if not future.done():
            self.ledger.violated(f"{letter.message_id}: its future was never settled")
            self.ledger.abandon(letter)
        elif future.cancelled():
            told = future.receipt
            self.ledger.settle(letter, Fate.of(told)) if told is not None else self.ledger.abandon(letter)
        else:
            error = future.exception(0)
            self.settle([letter], True, future.result(0) if error is None else error)

    def close(self, seconds: float) -> None:
        self.sender.close(timeout=seconds)

    def left(self) -> dict[str, int]:
        stats = self.sender.stats()
        return {"queued": stats.queued, "retrying": stats.retrying, "in flight": stats.in_flight}


TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (ClientTarget, PoolTarget, SenderTarget)}


# ---------------------------------------------------------------- the storm


class Round:
    """One server, one target, callers, and the storm. `main` is a caller as well where signals strike."""

    def __init__(self, seed: str, name: str, how: str, where: tuple[str, int], seconds: float) -> None:
        self.seed, self.how, self.seconds = seed, how, seconds
        self.rng = random.Random(seed)
        self.ledger = Ledger(floor=FLOOR)
        config = ServerConfig(
            *where, local_hostname="storm.example.org", idle_timeout=0.05, timeouts=Timeouts.all(10.0)
        )
        self.target = TARGETS[name](config, self.ledger, random.Random(f"{seed}/target"))
        self.stop = threading.Event()
        self.shelters: list[Shelter] = []
        self.ours = Ours()
        self.strikes: Counter[str] = Counter()
        self.kind: type[BaseException] = Strike if how == "async" else MemoryError

    def run(self) -> list[str]:
        """Storm, then close in peace. Returns what is wrong beside what the ledger says."""
        callers = [
            threading.Thread(target=self._call, args=(number, shelter), name=f"caller-{number}", daemon=True)
            for number, shelter in enumerate(self._new_shelters(CALLERS))
        ]
        storm = self._strike_threads
        if self.how == "signal":
            storm = self._be_struck_by_signals
        elif self.how == "memory" and _testcapi is not None:
            storm = self._starve
        with self.ours.sheltered() if storm == self._strike_threads else nullcontext():
            for caller in callers:
                caller.start()
            storm()
        self.stop.set()
        end = time.monotonic() + PATIENCE
        for caller in callers:
            caller.join(max(0.0, end - time.monotonic()))
        hanging = [caller.name for caller in callers if caller.is_alive()]
        if hanging:
            faulthandler.dump_traceback(all_threads=True, file=STDERR)
            return [f"hangs: {name}" for name in hanging]
        return self._end()

    def _new_shelters(self, number: int) -> list[Shelter]:
        self.shelters += [Shelter(self.how == "memory" and _testcapi is not None) for _ in range(number)]
        return self.shelters[-number:]

    def _call(self, number: int, shelter: Shelter) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        try:
            while not self.stop.is_set():
                try:
                    self.target.act(shelter, rng)
                except Exception:
                    if not shelter.starved:  # else the harness is struck as well, and knows no more of its message
                        raise
        except BaseException as error:  # noqa: BLE001 - the harness's own, or what no caller should meet
            self.ledger.violated(f"{threading.current_thread().name}: {type(error).__name__}: {error}")

    def _strike_threads(self) -> None:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            time.sleep(self.rng.uniform(*PAUSE))
            ours = self.ours.running
            if ours and self.rng.random() < 0.5:
                shelter, name = self.rng.choice(ours)
                if shelter.struck(self.kind):
                    self._count(name.rstrip("0123456789").rstrip("-_"))
            elif self.rng.choice(self.shelters).struck(self.kind):
                self._count("caller")

    def _starve(self) -> None:
        """Let one allocation fail, now and then, whoever makes it."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            try:
                time.sleep(self.rng.uniform(0.001, 0.01))
                begin = self.rng.randrange(400)
                self._count("process")
                try:
                    _testcapi.set_nomemory(begin, begin + 1)
                    time.sleep(0.001)
                finally:
                    _testcapi.remove_mem_hooks()
            except MemoryError:
                continue

    def _count(self, whom: str) -> None:
        self.strikes[whom] += 1
        self.ledger.may_doubt()

    def _be_struck_by_signals(self) -> None:
        """On the main thread: call, and be struck by a handler that raises, as Ctrl-C's does."""
        [shelter] = self._new_shelters(1)
        rng = random.Random(f"{self.seed}/main")

        def handle(number: int, frame: FrameType | None) -> None:
            if shelter.outside and not shelter.hit:
                shelter.hit = True
                self._count("main")
                raise Strike

        # Who hangs here is the main thread, and nobody else could say so.
        faulthandler.dump_traceback_later(self.seconds + PATIENCE, exit=True, file=STDERR)
        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
        try:
            end = time.monotonic() + self.seconds
            while time.monotonic() < end:
                self.target.act(shelter, rng)
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(*PAUSE), rng.uniform(*PAUSE))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
            faulthandler.cancel_dump_traceback_later()

    def _end(self) -> list[str]:
        wrong = []
        if isinstance(self.target, PoolTarget):
            wrong += [f"{n} {what} left when callers are gone" for what, n in self.target.at_rest().items() if n]
        closer = threading.Thread(target=self._close, name="closer", daemon=True)
        begun = time.monotonic()
        closer.start()
        closer.join(PATIENCE)
        if closer.is_alive():
            faulthandler.dump_traceback(all_threads=True, file=STDERR)
            return [*wrong, "hangs: close()"]
        if time.monotonic() - begun > PATIENCE / 2:
            wrong.append(f"close(timeout={PATIENCE / 4:g}) took {time.monotonic() - begun:.0f} s")
        wrong += [f"{n} {what} left when it is closed" for what, n in self.target.left().items() if n]
        if isinstance(self.target, SenderTarget):
            counts = Counter(receipt.message_id for receipt in self.target.heard)
            wrong += [f"{name}: on_receipt was called {n} times" for name, n in counts.items() if n > 1]
            ours = sum(number for whom, number in self.strikes.items() if whom != "caller")
            unheard = [w for w in self.ledger.unheard(lambda: counts) if "never" in w]
            # A strike in the callback itself takes what it would have said.
            wrong += unheard if len(unheard) > ours and self.how != "memory" else []
        return wrong

    def _close(self) -> None:
        try:
            self.target.close(PATIENCE / 4)
        except BaseException as error:  # noqa: BLE001 - in peace nothing may be raised
            self.ledger.violated(f"close: {type(error).__name__}: {error}")


def storm_round(seed: str, name: str, how: str, seconds: float) -> tuple[Round, list[str], int]:
    """One round from nothing to nothing. Returns it, what is wrong, and how many messages arrived."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    with RemoteServer() if how == "memory" else LocalServer() as server:
        storm = Round(seed, name, how, server.where, seconds)
        violations = storm.run()
        calm()
        # Who is struck in the standard library's dial leaves the socket to the exception, and that, where the one whom
        # it is told keeps it in a frame that it has come through, to the collector.
        gc.collect()
        hangs = any(line.startswith("hangs") for line in violations)
        arrived, left_open = server.arrived()
        if left_open and not hangs:
            violations.append(f"connection left: {left_open}")
    if how == "memory":
        storm.ledger.abandon_the_rest()
    violations += storm.ledger.judge(arrived)
    if hangs:
        return storm, violations, len(arrived)
    # One whose `start()` was struck before there was a thread has no number, and stays in the interpreter's list.
    left = [thread for thread in threading.enumerate() if thread not in threads and thread.ident is not None]
    for thread in left:
        thread.join(5.0)
    violations += [f"thread left: {thread.name}" for thread in left if thread.is_alive()]
    after = open_descriptors()
    violations += [f"descriptor left: {after[number]}" for number in after.keys() - descriptors.keys()]
    return storm, violations, len(arrived)


class LocalServer:
    """In this process."""

    def __init__(self) -> None:
        self._server = NamingServer()

    def __enter__(self) -> LocalServer:
        self._server.start()
        self.where = self._server.host, self._server.port
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.close()

    def arrived(self) -> tuple[list[Arrived], str]:
        """What it has taken, and which connections are left, in words."""
        left = ""
        try:
            self._server.wait_for_connections(0, 5.0)
        except TimeoutError as error:
            left = str(error)
        return [Arrived(m.sender, m.recipients, m.content, queue_id) for m, queue_id in self._server.taken], left


class RemoteServer:
    """In a process of its own, which no failing allocation of this one can hit."""

    def __enter__(self) -> RemoteServer:
        argv = [sys.executable, "-m", "stress.interrupts", "--serve"]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        assert self._process.stdout is not None
        host, port = self._process.stdout.readline().decode().split()
        self.where = host, int(port)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def arrived(self) -> tuple[list[Arrived], str]:
        """As `LocalServer`'s; to be asked once."""
        told, _ = self._process.communicate(b"\n", PATIENCE)
        found: tuple[list[Arrived], str] = pickle.loads(told)
        return found


def serve() -> None:
    """The process of a `RemoteServer`: serve until a line comes, then tell what has arrived."""
    with LocalServer() as server:
        print(*server.where, flush=True)
        sys.stdin.readline()
        sys.stdout.buffer.write(pickle.dumps(server.arrived()))


# ---------------------------------------------------------------- the command


def run(
    seconds: float, seed: int, names: Sequence[str], hows: Sequence[str], only_round: int | None, length: float
) -> int:
    """Storm; each round is told in a line, and what is wrong in one each. Returns the number of violations."""
    kinds = [(name, how) for how in hows for name in names]
    number, wrong, strikes = 0, 0, Counter[str]()
    started = time.monotonic()
    while only_round is not None or number < len(kinds) or time.monotonic() - started < seconds:
        name, how = kinds[number % len(kinds)]
        if how == "memory" and only_round is None:
            wrong += in_a_process(seed, number, name, length)
        elif only_round in (None, number):
            storm, violations, arrived = storm_round(f"{seed}/{number}", name, how, length)
            outcomes = {outcome.value: count for outcome, count in storm.ledger.outcomes().items()}
            print(
                f"round {number}, {name}, {how}: {storm.strikes.total()} strikes {dict(storm.strikes)}; {outcomes}, "
                f"{storm.ledger.abandoned} unknown {dict(storm.ledger.faults.most_common(5))}; "
                f"{arrived} at the server, {len(violations)} wrong"
            )
            print("".join(f"  {line}\n" for line in violations[:SHOWN]), end="", flush=True)
            if violations:
                print(f"  again: --seed {seed} --only {name} --how {how} --round {number}")
            wrong += len(violations)
            strikes += storm.strikes
            if not storm.strikes:
                wrong += 1
                print("  empty: nobody was struck")
            if any(line.startswith("hangs") for line in violations):
                break  # what hangs would disturb the next round
        if number == only_round:
            break
        number += 1
    print(f"{strikes.total()} strikes in {number} rounds, {time.monotonic() - started:.0f} s: {dict(strikes)}")
    print(f"{wrong} violations; seed {seed}, Python {sys.version}")
    return wrong


def in_a_process(seed: int, number: int, name: str, length: float) -> int:
    """One round by a process of its own, which says what this one would. Returns the number of violations."""
    argv = [sys.executable, "-m", "stress.interrupts", "--seed", str(seed), "--only", name, "--how", "memory"]
    argv += ["--round", str(number), "--length", str(length), "--seconds", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=4 * PATIENCE)
    told = [line for line in done.stdout.splitlines() if line.startswith(("round", "  "))]
    print("\n".join(told), flush=True)
    if done.returncode < 0 or "Fatal Python error" in done.stderr:
        print(f"round {number}, {name}, memory: the interpreter itself did not survive ({done.returncode})")
        return 0
    if done.returncode and not told:
        print(done.stderr[-2000:])
    return int(done.returncode != 0)


@contextmanager
def _weather() -> Iterator[None]:
    """Threads switch often; what the struck log about it is of no interest."""
    interval, loggers = sys.getswitchinterval(), [logging.getLogger(n) for n in ("threadmail", "concurrent.futures")]
    levels, hook = [logger.level for logger in loggers], threading.excepthook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    threading.excepthook = lambda args: None  # a thread of ours that was struck in the standard library's part of it
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of storm (60); a round of each kind at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--how", choices=HOWS)
    parser.add_argument("--round", type=int, help="this round only")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=float, default=ROUND, help=f"of a round, in seconds ({ROUND:g})")
    options = parser.parse_args(arguments)
    if options.serve:
        serve()
        return 0
    names = [options.only] if options.only else list(TARGETS)
    hows = [options.how] if options.how else list(HOWS)
    with _weather():
        return 1 if run(options.seconds, options.seed, names, hows, options.round, options.length) else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a thread that hangs would keep the interpreter from ending
