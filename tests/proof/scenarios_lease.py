"""Promises of the pool: how many clients there are, who is told of what, and when `close()` returns."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from math import inf
from typing import Any
from unittest import mock

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import Faults
from threadmail import SMTP, Client, ClientPool, Closed, ConnectionLost, Envelope, Reentered, TimedOut
from threadmail._connection.kept_connection import PROBE_AFTER
from threadmail._runtime.steps import Bell

from .scenario import CONFIG, IDLE, NOBODY_HOME, POOL, QUIET, Scenario, by_envelope, small
from .scenarios_pool import places_lost, pooled
from .stage import IMMEDIATELY, Threads, also


def counted(size: int, threads: int) -> Program:
    """`stats()` beside work: never more clients than there may be."""

    def look(pool: ClientPool) -> None:
        stats = pool.stats()
        assert stats.leased + stats.idle <= size, "counted more clients than there may be"
        assert stats.waiting <= threads

    return pooled(size, threads, 1, beside=look)


def idle_close(pool: ClientPool) -> None:
    time.sleep(IDLE + 1)
    pool.close_idle()


def small_pool(size: int) -> ClientPool:
    pool = ClientPool(CONFIG, max_size=size, rng=random.Random(1))
    pool._watch = None
    return pool


def closed_beside_leases(leases: int, closers: int = 1) -> Program:
    """`close()` lets leases end, however they follow each other, and returns when the last one has."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=leases))
        pool = small_pool(leases)
        leased = threading.Semaphore(0)
        late: list[str] = []

        def send(envelope: Envelope) -> Any:
            with pool.lease() as client:
                leased.release()
                return client.send(envelope)

        def close() -> None:
            for _ in range(leases):
                leased.acquire()
            for _ in range(leases):
                leased.release()
            begun = time.monotonic()
            pool.close()
            if time.monotonic() - begun > IMMEDIATELY:
                late.append("close() went on waiting when all leases had ended")
            if pool.stats().leased:
                late.append("close() returned before all leases had ended")

        office.senders(threads=leases, messages=1, sendmail=by_envelope(send))
        for number in range(closers):
            run.thread(close, f"closer{number}")
        also(run, office, lambda: [*late, *places_lost(pool)])

    return program


def told_at_once(run: Run) -> None:
    """Who waits for a client is told at once that the pool was closed, however long leases last."""
    threads = Threads(run, ModelServer(bound=1))
    pool = small_pool(1)
    leased, told = threading.Event(), threading.Event()

    def holder() -> None:
        with pool.lease():
            leased.set()
            told.wait()

    def waiter() -> None:
        leased.wait()
        try:
            with pool.lease():
                pass
        except Closed:
            told.set()

    def closer() -> None:
        leased.wait()
        pool.close()

    for act in (holder, waiter, closer):
        threads.add(act)
    threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]


def gate_reopens(run: Run) -> None:
    """A dial fails, the only other client is kept: who waits dials again when the pause is over, by itself."""
    threads = Threads(run, ModelServer(bound=2, faults=Faults(refuse_connects=frozenset([1]))))
    pool = small_pool(2)
    leased, served = threading.Event(), threading.Event()

    def holder() -> None:
        with pool.lease():
            leased.set()
            served.wait()

    def other() -> None:
        leased.wait()
        with pool.lease() as client:
            assert client.is_connected
            served.set()

    threads.add(holder)
    threads.add(other)
    threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]


def interrupted(closers: int) -> Program:
    """A thread that was handed a client is interrupted before it knows; `close()` does not wait for it any longer."""

    def program(run: Run) -> None:
        threads = Threads(run, ModelServer(bound=1))
        pool = small_pool(1)
        leased = threading.Event()
        real_wait = Bell.wait
        waiting: list[int] = []

        def wait(bell: Bell, seconds: float | None) -> None:
            real_wait(bell, seconds)
            if waiting == [threading.get_ident()]:
                waiting.clear()
                raise KeyboardInterrupt

        run.context.enter_context(mock.patch.object(Bell, "wait", wait))

        def holder() -> None:
            with pool.lease():
                leased.set()

        def victim() -> None:
            leased.wait()
            waiting.append(threading.get_ident())
            with contextlib.suppress(KeyboardInterrupt, Closed):
                with pool.lease():
                    waiting.clear()
            waiting.clear()

        def close() -> None:
            leased.wait()
            begun = time.monotonic()
            pool.close()
            if time.monotonic() - begun > IMMEDIATELY:
                threads.wrong.append("close() went on waiting when all leases had ended")

        threads.add(holder)
        threads.add(victim)
        for _ in range(closers):
            threads.add(close)

        def left() -> list[str]:
            still_open = run.scheduler.ending is None and not all(c.closed for c in threads.server.connections)
            return [*(["a closed pool kept a connection"] if still_open else []), *places_lost(pool)]

        threads.at_the_end = left  # type: ignore[method-assign]

    return program


def late(waiters: int) -> Program:
    """A lease ends as the deadline of those who wait passes, in whatever order: what they were granted is not lost."""

    def program(run: Run) -> None:
        threads = Threads(run, ModelServer(bound=1), allowed=(TimedOut,))
        pool = small_pool(1)
        leased = threading.Event()

        def holder() -> None:
            with pool.lease(timeout=inf):
                leased.set()

        def waiter() -> None:
            leased.wait()
            with pool.lease(timeout=5.0):
                pass

        threads.add(holder)
        for _ in range(waiters):
            threads.add(waiter)
        threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]

    return program


def ended_by_another(run: Run) -> None:
    """A lease is begun by one thread and ended by another, twice, while a third one waits for its client."""
    threads = Threads(run, ModelServer(bound=1))
    pool = small_pool(1)
    lease = pool.lease(timeout=inf)
    leased = threading.Event()

    def begin() -> None:
        lease.__enter__()
        leased.set()

    def end() -> None:
        leased.wait()
        lease.__exit__(None, None, None)

    def waiter() -> None:
        leased.wait()
        with pool.lease(timeout=inf):
            pass

    for act in (begin, end, waiter):
        threads.add(act)
    threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]


def all_want_another(run: Run) -> None:
    """Each thread has a client and asks for one more: whoever comes last is told, and the other one is served."""
    threads = Threads(run, ModelServer(bound=2))
    pool = small_pool(2)
    both = [threading.Event(), threading.Event()]
    told: list[str] = []

    def ask(number: int) -> None:
        with pool.lease(timeout=inf):
            both[number].set()
            both[1 - number].wait()
            try:
                with pool.lease(timeout=inf):
                    told.append("served")
            except Reentered:
                told.append("refused")

    for number in range(2):
        threads.add(lambda number=number: ask(number))  # type: ignore[misc]

    def at_the_end() -> list[str]:
        wrong = (
            ["nobody was served, or nobody was told"] if run.scheduler.ending is None and "served" not in told else []
        )
        return [*wrong, *places_lost(pool)]

    threads.at_the_end = at_the_end  # type: ignore[method-assign]


def closed_inside(run: Run) -> None:
    """Two threads close the pool inside their leases: neither waits for the other, and the second one ends it."""
    threads = Threads(run, ModelServer(bound=2), allowed=(Closed,))
    pool = small_pool(2)

    def act() -> None:
        with pool.lease(timeout=inf):
            begun = time.monotonic()
            pool.close()
            assert time.monotonic() - begun < IMMEDIATELY, "close() waited for a lease of somebody who closes"

    for _ in range(2):
        threads.add(act)
    threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]


def held_at_the_end(run: Run) -> None:
    """A lease ends while another thread holds its client: that is not handed on, and can be used by nobody any more."""
    threads = Threads(run, ModelServer())
    pool = small_pool(1)
    clients: list[Client] = []
    leased, held, ended = threading.Event(), threading.Event(), threading.Event()

    def owner() -> None:
        with pool.lease(timeout=inf) as client:
            clients.append(client)
            leased.set()
            held.wait()
        ended.set()

    def other() -> None:
        leased.wait()
        with clients[0].sync_root:
            held.set()
            ended.wait()
        try:
            clients[0].noop()
        except Closed:
            return
        threads.wrong.append("a client was used after its lease")

    for act in (owner, other):
        threads.add(act)
    threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]


def held_while_idle(run: Run) -> None:
    """Somebody has taken hold of an idle client: the next lease does not wait for him."""
    threads = Threads(run, ModelServer())
    pool = small_pool(1)
    clients: list[Client] = []
    held, served = threading.Event(), threading.Event()

    def owner() -> None:
        with pool.lease(timeout=inf) as client:
            clients.append(client)
        run_other.set()
        held.wait()
        with pool.lease(timeout=inf):
            served.set()

    def other() -> None:
        run_other.wait()
        with clients[0].sync_root:
            held.set()
            served.wait()

    run_other = threading.Event()
    for act in (owner, other):
        threads.add(act)
    threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]


def called_at_the_end(run: Run) -> None:
    """A lease ends while another thread is, or is not yet, in a call on its client: whom it hits is that call alone."""
    threads = Threads(run, ModelServer())
    pool = small_pool(1)
    clients: list[Client] = []
    leased = threading.Event()

    def owner() -> None:
        with pool.lease(timeout=inf) as client:
            clients.append(client)
            leased.set()

    def other() -> None:
        leased.wait()
        with contextlib.suppress(Closed, ConnectionLost):
            clients[0].noop()

    for act in (owner, other):
        threads.add(act)
    threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]


def called_in_a_probe(run: Run) -> None:
    """A kept client is asked whether it is good, and a log handler mails through it meanwhile: he is refused."""
    threads = Threads(run, ModelServer())
    pool = small_pool(1)
    asked: list[str] = []
    noop = SMTP.noop

    def act() -> None:
        with pool.lease(timeout=inf) as client:
            pass
        time.sleep(PROBE_AFTER + 1)

        def logged(smtp: SMTP, **options: Any) -> tuple[int, bytes]:
            if not asked:
                asked.append("once")
                try:
                    client.noop()
                except Reentered:
                    asked.append("refused")
            return noop(smtp, **options)

        with mock.patch.object(SMTP, "noop", logged), pool.lease(timeout=inf):
            assert asked == ["once", "refused"]

    threads.add(act)
    threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]


def paused_behind_another(run: Run) -> None:
    """Who was refused gives up before the pause is over: who stands behind him dials when it is."""
    threads = Threads(run, ModelServer(faults=Faults(refuse_connects=frozenset([1]))), allowed=(TimedOut,))
    pool = small_pool(2)
    leased, served = threading.Event(), threading.Event()

    def holder() -> None:
        with pool.lease(timeout=inf):
            leased.set()
            served.wait()

    def impatient() -> None:
        leased.wait()
        with pool.lease(timeout=0.1):
            pass

    def patient() -> None:
        leased.wait()
        with pool.lease(timeout=inf):
            served.set()

    for act in (holder, impatient, patient):
        threads.add(act)
    threads.at_the_end = lambda: places_lost(pool)  # type: ignore[method-assign]


def ended_in_a_step(run: Run) -> None:
    """The collector ends a lease in the middle of a step of the pool: who waits for its place gets it."""
    threads = Threads(run, ModelServer())
    pool = small_pool(1)
    lease = pool.lease(timeout=inf)
    leased = threading.Event()

    def collected() -> None:
        lease.__enter__().close()
        leased.set()
        pool._steps.take(lambda now: lease.__exit__(None, None, None))

    def waiter() -> None:
        leased.wait()
        with pool.lease(timeout=inf):
            pass

    for act in (collected, waiter):
        threads.add(act)


def failing_dials(run: Run) -> None:
    """The first two dials fail, of two or three threads: each is told, or served; and nobody waits for ever."""
    faults = Faults(refuse_connects=frozenset([0, 1]))
    pooled(2, 3, 1, faults=faults, failures=NOBODY_HOME)(run)


def _leased(name: str, program: Program, **options: Any) -> Scenario:
    return small(name, program, *POOL, **options)


def _locks_only(name: str, program: Program) -> Scenario:
    """With switch points at locks and sockets only, and not all schedules, for what would take too long otherwise."""
    return Scenario(name, program, options={**QUIET, "limit": 300})


SMALL = [
    small("pool of 1, a deadline passes as a client is granted", late(1), *POOL, timeouts=1),
    small("pool of 1, two deadlines pass as a client is granted", late(2), timeouts=1, limit=2000),
    _leased("pool of 1, a lease ended by another thread", ended_by_another),
    _locks_only("pool of 1, called at the end of a lease", called_at_the_end),
    _locks_only("pool of 1, called in a probe", called_in_a_probe),
    _locks_only("pool of 2, paused behind one who gives up", paused_behind_another),
    _locks_only("pool of 1, a lease ended in the middle of a step", ended_in_a_step),
    _locks_only("pool of 1, held at the end of a lease", held_at_the_end),
    _locks_only("pool of 1, held while idle", held_while_idle),
    _locks_only("pool of 2, two threads want another one each", all_want_another),
    _locks_only("pool of 2, closed twice inside leases", closed_inside),
    _locks_only("pool of 2, 3x1, dials fail while others wait", failing_dials),
    _leased("pool of 1, 2x1 beside stats()", counted(1, 2)),
    _leased("pool of 1, 2x1 beside idle close", pooled(1, 2, 1, beside=idle_close)),
    _leased("pool of 1, 1x2 beside idle close", pooled(1, 1, 2, beside=idle_close)),
    _leased("pool of 1, close() beside a lease", closed_beside_leases(1)),
    _locks_only("pool of 1, two close() beside a lease", closed_beside_leases(1, closers=2)),
    _locks_only("pool of 2, close() beside two leases", closed_beside_leases(2)),
    _locks_only("pool of 1, closed while a lease lasts", told_at_once),
    _leased("pool of 2, a dial fails and the gate opens again", gate_reopens),
    _locks_only("pool of 1, a waiter is interrupted and close()", interrupted(1)),
    _locks_only("pool of 1, a waiter is interrupted and two close()", interrupted(2)),
]
