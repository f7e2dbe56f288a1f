"""Promises of a sender's `close()`: told once, over for everybody, and the queue before what is under way."""

from __future__ import annotations

import threading
import time
from functools import partial

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from threadmail import Closed, MailError, Outcome, Receipt
from threadmail._dispatch.closing import FAREWELL

from .scenario import LETTER, of_sender
from .scenarios_order import one_lane
from .stage import Server, Threads, no_thread_left, on_time


def closed_twice(run: Run) -> None:
    """Two threads close a sender whose only message hangs on the wire: who sees its end is told so."""
    server = Server(bound=1)
    server.mute_from_mail = True
    threads = Threads(run, server, allowed=(MailError,))
    sender = one_lane(run)
    unsent: list[object] = []

    def close() -> None:
        unsent.extend(sender.close(drain=False, timeout=1.0))

    sender.submit(LETTER)
    threads.add(close)
    threads.add(close)
    threads.at_the_end = lambda: [] if len(unsent) in (1, 2) else ["what was cut short was not told"]  # type: ignore[method-assign]


def closed_by_two(run: Run) -> None:
    """Two threads close a sender: for both of them it is over when they come back."""
    threads = Threads(run, ModelServer(ordered=True))
    sender = one_lane(run)

    def close() -> None:
        sender.close(timeout=None)
        no_thread_left()

    sender.submit(LETTER)
    threads.add(close)
    threads.add(close)


def closed_shorter_by_one(closers: int) -> Program:
    """Some close without a limit while a callback is stuck, then one with a second: for all it is over as soon."""

    def program(run: Run) -> None:
        threads = Threads(run, ModelServer(ordered=True))
        stuck, released = threading.Event(), threading.Event()
        left = [closers + 1]

        def callback(receipt: Receipt) -> None:
            stuck.set()
            released.wait()

        sender = one_lane(run, on_receipt=callback)

        def close(seconds: float | None) -> None:
            stuck.wait()
            begun = time.monotonic()
            if seconds is not None:
                threading.Event().wait(2.0)  # the others have looked around once by then, and wait for long
            sender.close(timeout=seconds)
            on_time(begun + 3.0 + FAREWELL, "close()")
            left[0] -= 1
            if not left[0]:
                released.set()

        sender.submit(LETTER)
        for _ in range(closers):
            threads.add(partial(close, None))
        threads.add(partial(close, 1.0))

    return program


def taken_back_at_once(run: Run) -> None:
    """Closed without draining, a sender takes its queue back before it waits for what is under way."""
    threads = Threads(run, ModelServer(ordered=True), allowed=(Closed,))
    stuck, told = threading.Event(), threading.Event()

    def callback(receipt: Receipt) -> None:
        if receipt.outcome is Outcome.NOT_SENT:
            told.set()
        else:
            stuck.set()
            told.wait()

    sender = one_lane(run, on_receipt=callback)

    def act() -> None:
        sender.submit(LETTER)
        stuck.wait()
        sender.submit(LETTER)
        sender.close(drain=False, timeout=None)
        no_thread_left()

    threads.add(act)


SMALL = [
    of_sender("closed by two threads, something hangs", closed_twice, limit=300),
    of_sender("closed by two threads", closed_by_two, limit=300),
    of_sender("closed by two threads, a callback is stuck", closed_shorter_by_one(1), limit=300),
    of_sender("closed by three threads, a callback is stuck", closed_shorter_by_one(2), limit=300),
    of_sender("taken back while a message is under way", taken_back_at_once),
]
