"""Threads that send through one pool, with all that the server may do to them."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any
from unittest.mock import patch

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import Faults
from threadmail import ClientPool, Envelope, Receipt
from threadmail._pool.retired import LINGER
from threadmail._runtime.life import Life

from .scenario import CONFIG, NOBODY_HOME, OWNER, POOL, Scenario, by_envelope
from .stage import also


def pooled(
    size: int,
    threads: int,
    messages: int,
    *,
    faults: Faults | None = None,
    failures: tuple[str, ...] = (),
    deadline: float = inf,
    beside: Callable[[ClientPool], object] | None = None,
) -> Program:
    """Threads send through one pool."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=size, faults=faults), failures=failures)
        pool = ClientPool(CONFIG, max_size=size)
        pool._watch = None  # the idle watch has scenarios of its own
        # One turn of who waits for a held client, and not six hundred, each with an order of its own.
        run.context.enter_context(patch("threadmail._pool.retired.LINGER_TURN", LINGER))

        def send(envelope: Envelope) -> Receipt:
            return pool.send(envelope, deadline=deadline)

        office.senders(threads=threads, messages=messages, sendmail=by_envelope(send))
        if beside is not None:
            run.thread(lambda: beside(pool), "other")
        also(run, office, lambda: places_lost(pool))

    return program


def places_lost(pool: ClientPool) -> list[str]:
    """What must hold when all callers are gone: nobody waits or has a lease; a closed pool has nothing left."""
    stats = pool.stats()
    lost = []
    if stats.leased or stats.waiting:
        lost.append("a place of the pool was lost")
    if stats.idle > pool.max_size:
        lost.append("more idle clients than the pool may have")
    if pool._keys.life is not Life.OPEN and (stats.idle or pool._keys.life is not Life.CLOSED):
        lost.append("a closed pool is not closed")
    return lost


def discarding(size: int, threads: int) -> Program:
    """Each thread closes its client before it gives it back: whoever waits must not wait for ever."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=size))
        pool = ClientPool(CONFIG, max_size=size)
        pool._watch = None

        def send(envelope: Envelope) -> Receipt:
            with pool.lease(timeout=inf) as client:
                receipt = client.send(envelope)
                client.close()
                return receipt

        office.senders(threads=threads, messages=1, sendmail=by_envelope(send))
        also(run, office, lambda: places_lost(pool))

    return program


def _pool(name: str, program: Program, schedules: int | None = None, *, long: bool = False, **options: Any) -> Scenario:
    return Scenario(name, program, schedules, False, POOL, OWNER, options, long)


_FIRST_DIAL_FAILS = Faults(refuse_connects=frozenset([0]))
_SECOND_DIAL_FAILS = Faults(refuse_connects=frozenset([1]))
_LATE = ("TimedOut", "ReplyTimedOut")
_POOLS = {(1, 2, 1): 6, (1, 2, 2): 58, (1, 3, 1): 66, (2, 2, 1): 16, (2, 2, 2): 230, (2, 3, 1): 708}
_ENDED = ("Closed", "Aborted")


def _patiently(pool: ClientPool) -> None:
    pool.close(timeout=None)


SCENARIOS = [
    *(_pool(f"pool of {s}, {t}x{m}", pooled(s, t, m), known) for (s, t, m), known in _POOLS.items()),
    _pool("pool of 1, 2x1, deadlines", pooled(1, 2, 1, deadline=5.0, failures=_LATE), 24),
    _pool("pool of 1, 3 threads that discard", discarding(1, 3), 150),
    _pool("pool of 2, 2x1, first dial fails", pooled(2, 2, 1, faults=_FIRST_DIAL_FAILS, failures=NOBODY_HOME), 82),
    _pool("pool of 1, 1x1 beside a patient close()", pooled(1, 1, 1, beside=_patiently, failures=_ENDED), 32),
]

LONG = [
    _pool(
        "pool of 2, 3x1, second dial fails",
        pooled(2, 3, 1, faults=_SECOND_DIAL_FAILS, failures=NOBODY_HOME),
        long=True,
    ),
    _pool("pool of 1, 1x1 beside close()", pooled(1, 1, 1, beside=ClientPool.close, failures=_ENDED), 37202, long=True),
    _pool("pool of 1, 2x1 beside close()", pooled(1, 2, 1, beside=ClientPool.close, failures=_ENDED), long=True),
    _pool("pool of 1, 3x2", pooled(1, 3, 2), long=True),
    _pool("pool of 2, 4x1", pooled(2, 4, 1), long=True),
]
