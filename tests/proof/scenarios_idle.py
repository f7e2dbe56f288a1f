"""The watch of idle connections: it closes them with a farewell, and ends with its owner."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.scenario import PostOffice
from threadmail import Client, ClientPool

from .scenario import CONFIG, LETTER, QUIET, Scenario, by_envelope
from .stage import IMMEDIATELY, Threads, also


def watched_idle(run: Run) -> None:
    """Nobody closes the client: its watch closes the connection when it has been idle, with a farewell, and ends."""
    office = PostOffice(run, ModelServer(ordered=True))
    client = Client(CONFIG)
    office.senders(threads=1, messages=1, sendmail=by_envelope(client.send))
    also(run, office, lambda: [] if not client.is_connected else ["an idle connection was not closed"])


def watch_stopped(make: Callable[[], Any]) -> Program:
    """When `close()` returns, the watch has ended."""

    def program(run: Run) -> None:
        threads = Threads(run, ModelServer(ordered=True))
        owner = make()

        def act() -> None:
            owner.send(LETTER)
            watch = owner._watch._thread
            begun = time.monotonic()
            owner.close()
            assert time.monotonic() - begun < IMMEDIATELY, "close() waited for the watch in vain"
            assert not watch.is_alive(), "the watch goes on"

        threads.add(act)

    return program


SMALL = [
    Scenario("idle watch closes", watched_idle, options=QUIET),
    Scenario("idle watch of a client stops", watch_stopped(lambda: Client(CONFIG)), options=QUIET),
    Scenario("idle watch of a pool stops", watch_stopped(lambda: ClientPool(CONFIG)), options=QUIET),
]
