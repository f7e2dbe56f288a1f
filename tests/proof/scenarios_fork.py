"""What a forked child finds: threads that come first to what their parent has left them.

The fork is one without Python's hooks, as some servers do it: the objects find out for themselves, by their first use.
It came while another thread of the parent held the object's lock. That thread does not exist in the child, so whoever
waits for that lock waits for ever.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.scenario import PostOffice
from threadmail import SMTP, Client, ClientPool, NotConnected, ThreadedSender

from .scenario import CONFIG, QUIET, Scenario, by_envelope, no_exit_hook
from .stage import MESSAGE, Threads, also


def _forking(run: Run) -> Callable[[], None]:
    """Returns what to call when the set-up is to go on in the child."""
    pid = [1]
    run.context.enter_context(mock.patch.object(os, "getpid", side_effect=lambda: pid[0]))
    return lambda: pid.__setitem__(0, 2)


def forked(run: Run) -> None:
    """Two threads are the first to use a client: on a connection of their own."""
    office = PostOffice(run, ModelServer(ordered=True))
    fork = _forking(run)
    client = Client(CONFIG, watch_idle=False)
    client.connect()
    fork()
    office.senders(threads=2, messages=1, sendmail=by_envelope(client.send))
    also(run, office, lambda: _spoke(office.server))


def bare_forked(run: Run) -> None:
    """Two threads are the first to use a connected `SMTP`: they are told that they have no connection."""
    threads = Threads(run, ModelServer(ordered=True), allowed=(NotConnected,))
    fork = _forking(run)
    client = SMTP("model", 25, local_hostname="me")
    fork()
    for _ in range(2):
        threads.add(lambda: client.sendmail("a@here.test", ["b@there.test"], MESSAGE))
    threads.at_the_end = lambda: _spoke(threads.server)  # type: ignore[method-assign]


def forked_and_connected(run: Run) -> None:
    """Two threads are the first to use a connected `SMTP`, and one connects it anew: nobody drops that under it."""
    threads = Threads(run, ModelServer(ordered=True), allowed=(NotConnected,))
    fork = _forking(run)
    client = SMTP("model", 25, local_hostname="me")
    fork()

    def connects() -> None:
        client.connect("model", 25)
        assert client.sock is not None

    threads.add(connects)
    threads.add(lambda: client.is_quiet())
    threads.at_the_end = lambda: [] if client.is_quiet() else ["the connection of the child was dropped"]  # type: ignore[method-assign]


def _spoke(server: ModelServer) -> list[str]:
    said = [who for who, _, _ in server.connections[0].transcript if who.startswith("T")]
    return ["a thread of the child spoke on its parent's connection"] if said else []


def begun_anew(make: Callable[[], Any], lock: Callable[[Any], Any], *uses: Callable[[Any], object]) -> Program:
    """Each use on a thread of its own; the object's lock was held in the parent."""

    def program(run: Run) -> None:
        run.context.enter_context(no_exit_hook())
        threads = Threads(run, ModelServer(ordered=True))
        fork = _forking(run)
        made = make()
        lock(made).acquire()
        fork()
        for use in uses:
            threads.add(lambda use=use: use(made))  # type: ignore[misc]

    return program


def _pool() -> ClientPool:
    return ClientPool(CONFIG, max_size=1, rng=random.Random(1))


def _sender() -> ThreadedSender:
    return ThreadedSender(CONFIG, workers=1, rng=random.Random(1))


def _close(sender: ThreadedSender) -> None:
    sender.close(timeout=None)


SMALL = [
    Scenario("fork, two threads come first", forked, classes=(Client,)),
    Scenario("fork, two threads come first to an SMTP", bare_forked, options=QUIET),
    Scenario(
        "fork, two threads come first to an SMTP, and one connects",
        forked_and_connected,
        classes=(SMTP,),
        options=QUIET,
    ),
    Scenario(
        "fork, two threads come first to a pool",
        begun_anew(_pool, lambda pool: pool._steps.lock, ClientPool.stats, ClientPool.close),
        classes=(ClientPool,),
        options=QUIET,
    ),
    Scenario(
        "fork, two threads come first to a sender",
        begun_anew(_sender, lambda sender: sender._dispatcher._lock, ThreadedSender.stats, _close),
        classes=(ThreadedSender,),
        options=QUIET,
    ),
]
