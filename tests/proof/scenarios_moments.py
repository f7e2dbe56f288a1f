"""What callers do at an awkward moment, on a sender with its executor: the moments that an adversarial read found open.

A deadline that passes while a connection is replaced, a server that lets one in and refuses the next, a dial that
raises anything at all, a thread that cannot be started, a queue full of retries, a callback that closes, a second
`close()` with less time. Each is a promise that can be broken by one call alone; what is explored is when it comes.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest import mock

from tests.detsched import Run
from tests.detsched.modelserver import ModelServer
from tests.detsched.modelsocket import ModelSocket
from tests.detsched.smtpmodel import _COMMANDS, Connection, Faults
from threadmail import (
    Closed,
    MailError,
    Outcome,
    Receipt,
    Reentered,
    RetryPolicy,
    ThreadedSender,
    TimedOut,
)

from .scenario import CONFIG, LETTER, no_exit_hook, of_sender
from .stage import Server, Threads, no_thread_left, on_time

ONCE = RetryPolicy(attempts=1, base=0.0)
CONNECT = 10.0  # seconds: CONFIG.timeouts.connect


class Dialled(ModelServer):
    """What a connect meets is said by `dials`: a number of it to what is done in its place."""

    def __init__(self, dials: Mapping[int, Callable[[float], object]], *, faults: Faults | None = None) -> None:
        super().__init__(ordered=True, faults=faults)
        self.dials: Mapping[int, Callable[[float], object]] = dials
        self.made = 0

    def create_connection(self, address: Any, timeout: Any = None, source_address: Any = None, **_: Any) -> ModelSocket:
        self.made += 1
        dial = self.dials.get(self.made - 1)
        if dial is not None:
            dial(timeout)
        return super().create_connection(address, timeout, source_address)


def hangs(seconds: float) -> None:
    """A connect that nobody answers."""
    time.sleep(seconds)
    raise TimeoutError("timed out")


def raises(error: BaseException) -> Callable[[float], object]:
    def dial(_: float) -> None:
        raise error.with_traceback(None)  # else that of each run before would be in it, and in what is logged of it

    return dial


class Greylist(Server):
    """Puts off the first MAIL of each that it is asked to, by 451."""

    later: frozenset[str] = frozenset()

    def __enter__(self) -> Greylist:
        seen: set[str] = set()
        self.asked = threading.Event()

        def mail(connection: Connection, argument: str, who: Any) -> str:
            sender = argument[5:].partition(" ")[0].strip("<>")
            if sender in self.later and sender not in seen:
                seen.add(sender)
                self.asked.set()
                return "451 4.7.1 greylisted"
            return Connection._mail(connection, argument, who)

        super().__enter__()
        self._stack.enter_context(mock.patch.dict(_COMMANDS, {"MAIL": mail}))
        return self


def _sender(run: Run, **settings: Any) -> ThreadedSender:
    run.context.enter_context(no_exit_hook())
    settings.setdefault("retry", RetryPolicy(base=0.0))
    settings.setdefault("workers", 1)
    return ThreadedSender(CONFIG, rng=random.Random(1), **settings)


def _close(sender: ThreadedSender, **how: Any) -> None:
    begun = time.monotonic()
    sender.close(**{"timeout": None, **how})
    on_time(begun, "close()")
    no_thread_left()


def patience_of_another(run: Run) -> None:
    """The deadline of one message ends the replacing of a connection: that says nothing of the server to the others."""
    # MAIL, RCPT and DATA of the first message are 2 to 4; the MAIL of the second is met by the end of the connection.
    server = Dialled({1: hangs}, faults=Faults(drop={0: 5}))
    threads = Threads(run, server)
    sender = _sender(run, retry=ONCE)

    def act() -> None:
        sender.send(LETTER)
        hasty, patient = sender.submit(LETTER, deadline=1.0), sender.submit(LETTER)
        with contextlib.suppress(TimedOut):
            hasty.result()
        assert patient.result().outcome is Outcome.SENT
        sender.close(timeout=None)

    threads.add(act)


def let_in_and_refused(run: Run) -> None:
    """A server that lets one connection in, takes it back at MAIL and refuses the next: few dials, and an end."""
    refuses = raises(ConnectionRefusedError(111, "no"))
    server = Dialled(dict.fromkeys(range(1, 99, 2), refuses), faults=Faults(drop=dict.fromkeys(range(99), 2)))
    threads = Threads(run, server, allowed=(MailError,))
    sender = _sender(run, retry=RetryPolicy(attempts=3, base=1.0, total=60.0))

    def act() -> None:
        begun = time.monotonic()
        with contextlib.suppress(MailError):
            sender.send(LETTER)
        assert time.monotonic() - begun < 60.0 + CONNECT, "it was tried for longer than the policy says"
        assert server.made <= 8, f"{server.made} dials"
        sender.close(timeout=None)

    threads.add(act)


def dial_that_raises(error: BaseException) -> Callable[[Run], None]:
    def program(run: Run) -> None:
        # A failed dial like any other.
        server = Dialled(dict.fromkeys(range(99), raises(error)))
        threads = Threads(run, server)
        sender = _sender(run, retry=RetryPolicy(attempts=2, base=0.0))

        def act() -> None:
            with contextlib.suppress(MailError):
                sender.send(LETTER)
            assert server.made <= 3, f"{server.made} dials"
            _close(sender)
            if not isinstance(error, Exception):  # that a worker ended by it is in the log
                threads.wrong[:] = [wrong for wrong in threads.wrong if wrong != "logged: a worker ended early"]

        threads.add(act)

    return program


def full_of_retries(run: Run) -> None:
    """Messages that are put off take no place in the queue from others."""
    server = Greylist(ordered=True)
    server.later = frozenset([LETTER.sender])
    threads = Threads(run, server)
    sender = _sender(run, queue_size=1, retry=RetryPolicy(base=100.0))
    other = LETTER.__class__("c@here.test", LETTER.recipients, LETTER.content)

    def act() -> None:
        put_off = sender.submit(LETTER)
        server.asked.wait()
        begun = time.monotonic()
        sender.send(other)
        on_time(begun, "another message")
        assert sender.abort(put_off)
        _close(sender)

    threads.add(act)


def aborted_for_a_place(run: Run) -> None:
    """A caller waits for a place in the queue; a message in it is called off, and the place is the caller's at once."""
    threads = Threads(run, ModelServer(ordered=True))
    stuck, placed = threading.Event(), threading.Event()

    def callback(receipt: Receipt) -> None:
        if receipt.outcome is Outcome.SENT and not stuck.is_set():
            stuck.set()
            placed.wait()

    sender = _sender(run, queue_size=1, on_receipt=callback)
    queued: list[Any] = []
    filled = threading.Event()

    def fill() -> None:
        sender.submit(LETTER)
        stuck.wait()
        queued.append(sender.submit(LETTER))
        filled.set()
        assert queued[0].abort() if hasattr(queued[0], "abort") else sender.abort(queued[0])

    def wait() -> None:
        filled.wait()
        begun = time.monotonic()
        sender.submit(LETTER)
        on_time(begun, "a place")
        placed.set()
        sender.close(timeout=None)

    threads.add(fill)
    threads.add(wait)


def closing_callback(run: Run) -> None:
    """A callback closes the sender, while another thread does: told so, or done; and it ends for both."""
    threads = Threads(run, ModelServer(ordered=True))
    said: list[str] = []

    def callback(receipt: Receipt) -> None:
        try:
            sender.close(timeout=None)
        except Reentered:
            said.append("reentered")

    sender = _sender(run, on_receipt=callback)
    sender.submit(LETTER)
    threads.add(lambda: _close(sender))
    threads.at_the_end = lambda: [] if said == ["reentered"] else ["a callback that closes was not told so"]  # type: ignore[method-assign]


def closed_shorter(run: Run) -> None:
    """One thread closes without a limit, and another one with a second: a second is what both of them take."""
    server = Server(bound=1)
    server.mute_from_mail = True
    threads = Threads(run, server, allowed=(MailError,))
    sender = _sender(run, retry=ONCE)

    def close(seconds: float | None) -> None:
        begun = time.monotonic()
        sender.close(timeout=seconds)
        on_time(begun + 1.0, "close()")

    sender.submit(LETTER)
    threads.add(partial(close, None))
    threads.add(partial(close, 1.0))


def no_thread(run: Run) -> None:
    """The system starts no thread: who submits is told, by the future or the call, and nobody waits for ever."""
    threads = Threads(run, ModelServer())
    sender = _sender(run, retry=ONCE)
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("threadmail-lane"):
            raise RuntimeError("can't start new thread")
        real(thread)

    run.context.enter_context(mock.patch.object(threading.Thread, "start", start))

    def act() -> None:
        for _ in range(2):
            with contextlib.suppress(MailError):
                sender.submit(LETTER).result()
        _close(sender)

    threads.add(act)


def _at_first_start(run: Run, act: Callable[[], object]) -> None:
    """Something comes up in the thread that starts the first worker, in the middle of that."""
    real, first = threading.Thread.start, [True]

    def start(thread: threading.Thread) -> None:
        if first[0] and thread.name.startswith("threadmail-lane"):
            first[0] = False
            act()
        real(thread)

    run.context.enter_context(mock.patch.object(threading.Thread, "start", start))


def closed_in_a_start(run: Run) -> None:
    """A signal handler closes in the middle of a worker's start, while another thread submits: no worker is lost.

    It is told that this is not the moment, and whoever comes next sees the closing through.
    """
    threads = Threads(run, ModelServer(ordered=True), allowed=(Closed,))
    sender = _sender(run, workers=2)

    def handler() -> None:
        with contextlib.suppress(Reentered):
            sender.close(drain=False, timeout=None)

    def submits() -> None:
        try:
            sender.submit(LETTER)
        finally:
            sender.close(drain=False, timeout=None)

    _at_first_start(run, handler)
    threads.add(submits)
    threads.add(submits)

    def left() -> list[str]:
        return ["a worker that never began is counted"] if sender._dispatcher._schedule.workers else []

    threads.at_the_end = left  # type: ignore[method-assign]


def closed_where_one_is_handed_over(run: Run) -> None:
    """One is on the wire, one taken back and handed to that one's worker: who closes tells of it, and drops nothing."""
    threads = Threads(run, ModelServer(ordered=True))
    inside, told = threading.Event(), threading.Event()

    def hook(*_: object) -> None:
        inside.set()
        told.wait()

    def heard(receipt: Receipt) -> None:
        if receipt.outcome is Outcome.NOT_SENT:
            told.set()

    sender = _sender(run, workers=1, before_final=hook, on_receipt=heard)

    def act() -> None:
        first = sender.submit(LETTER)
        inside.wait()
        assert sender.submit(LETTER).cancel()
        sender.close(drain=False, timeout=None)
        assert first.result().outcome is Outcome.SENT

    threads.add(act)


def closed_while_submitted(run: Run) -> None:
    """`close(drain=False)` beside `submit` and `cancel`: each message is told once, by the call or by its future."""
    threads = Threads(run, ModelServer(ordered=True), allowed=(Closed,))
    heard: list[Receipt] = []
    sender = _sender(run, on_receipt=heard.append)
    given: list[Any] = []

    def submit() -> None:
        given.append(sender.submit(LETTER))
        given[0].cancel()

    threads.add(submit)
    threads.add(lambda: _close(sender, drain=False))

    def told() -> list[str]:
        left = [future for future in given if not future.done()]
        return [*["a future was not settled" for _ in left], *["not told once"][: len(heard) != len(given)]]

    threads.at_the_end = told  # type: ignore[method-assign]


SMALL = [
    of_sender("moments, a deadline ends the replacing of a connection", patience_of_another, limit=300),
    of_sender("moments, let in, and the next one refused", let_in_and_refused, limit=300),
    of_sender("moments, a dial raises a ValueError", dial_that_raises(ValueError("a label too long")), limit=300),
    of_sender("moments, a dial raises what is no Exception", dial_that_raises(KeyboardInterrupt()), limit=300),
    of_sender("moments, a full queue of retries", full_of_retries, limit=300),
    of_sender("moments, called off while another waits for the place", aborted_for_a_place, limit=300),
    of_sender("moments, a callback closes", closing_callback, limit=300),
    of_sender("moments, closed where one is handed over", closed_where_one_is_handed_over, limit=300),
    of_sender("moments, closed again with less time", closed_shorter, limit=300),
    of_sender("moments, no thread can be started", no_thread, limit=300),
    of_sender("moments, closed in the middle of a worker's start", closed_in_a_start, limit=300),
    of_sender("moments, closed beside submit and cancel", closed_while_submitted, limit=300),
]
