"""An exception raised from outside, at every point of a send where CPython can raise one, harms its own message only.

Ctrl-C, a time limit of a job queue, `PyThreadState_SetAsyncExc`: they come between any two instructions. Here they come
at each place in turn, one place a send, the last time it passes there. With THREADMAIL_EVERY_POINT=1 every passage
counts, loops and repeated calls included: some 4,000 sends.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from types import CodeType
from typing import Any

import pytest

from tests.reliability.injection import Injected, Injector
from tests.support.mail import envelope, in_threads
from threadmail import Client, ClientPool, Envelope, MailError, Outcome, RetryPolicy, ThreadedSender
from threadmail.testing import ScriptedServer, Serve

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="CPython 3.12 tells trace functions of few instructions, and crashes"
)

EVERY = bool(os.environ.get("THREADMAIL_EVERY_POINT"))


def one(name: str) -> Envelope:
    """With a single recipient."""
    return envelope(name).for_recipients(f"to-{name}@example.net")


@contextmanager
def traced(injector: Injector) -> Iterator[Injector]:
    before = sys.gettrace()  # of a debugger, or of a coverage tool
    sys.settrace(injector)
    try:
        yield injector
    finally:
        sys.settrace(before)


def passages(places: list[tuple[CodeType, int]]) -> list[int]:
    """Which of the points passed to try: all, or of each place the last."""
    if EVERY:
        return list(range(1, len(places) + 1))
    return sorted({place: number for number, place in enumerate(places, 1)}.values())


def copies(server: ScriptedServer) -> Counter[str]:
    return Counter(m.sender.removeprefix("from-").partition("@")[0] for m in server.messages)


@pytest.fixture
def sockets_left_to_the_collector() -> Iterator[None]:
    """One whose close() is where it happened has nobody else to close it; there a warning is in place."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.mark.usefixtures("sockets_left_to_the_collector")
@pytest.mark.parametrize("make", [Client, lambda url: ClientPool(url, max_size=1)], ids=["client", "pool"])
def test_an_exception_at_any_point_of_a_send(make: Callable[[str], Client | ClientPool]) -> None:
    """Afterwards the lock and the lease are free: this thread sends the next message, and another one after it."""
    wrong: list[str] = []
    struck: list[str | None] = []
    with ScriptedServer([Serve()], last="repeat") as server, make(server.url) as subject:
        subject.send(one("first"))
        with traced(Injector()):
            subject.send(one("warm"))  # CPython 3.13 tells of a function's instructions from the second time on
        with traced(Injector()) as dry:
            subject.send(one("dry"))
        numbers = passages(dry.places)
        for number in numbers:
            injector = Injector(number)
            try:
                with traced(injector):
                    subject.send(one(f"hit{number}"))
            except Injected:
                pass
            struck.append(injector.where)
            try:
                subject.send(one(f"same{number}"), deadline=5.0)
            except MailError as error:
                wrong.append(f"at {injector.where}: then this thread gets {error!r}")
            other = one(f"other{number}")
            errors = in_threads(1, lambda _, other=other: subject.send(other, deadline=5.0))  # type: ignore[misc]
            wrong += [f"at {injector.where}: then another thread gets {each!r}" for each in errors]
            if isinstance(subject, ClientPool) and (left := subject.stats()).leased + left.waiting:
                wrong.append(f"at {injector.where}: {left}")
            assert not wrong, wrong
        found = copies(server)
    assert len(numbers) > 100
    assert [name for name, count in found.items() if count > 1] == [], "sent twice"
    assert sum(name.startswith(("same", "other")) for name in found) == 2 * len(numbers)
    # What was interrupted before the last byte of the content surely never arrives, all the others once.
    assert 0 < sum(name.startswith("hit") for name in found) < len(numbers), f"{struck}, of {len(dry.places)} points"


#: How many copies of a message there may be, by what its sender was told.
COPIES = {Outcome.SENT: {1}, Outcome.NOT_SENT: {0}, Outcome.IN_DOUBT: {0, 1}}


@contextmanager
def traced_in_new_threads(injector: Injector) -> Iterator[Injector]:
    threading.settrace(injector)
    try:
        yield injector
    finally:
        threading.settrace(None)


def life_of_a_lane(url: str, name: str, injector: Injector) -> tuple[list[str], dict[str, Outcome]]:
    """Two messages and the end. Returns what is wrong, and the outcomes told."""
    sender = ThreadedSender(url, workers=1, retry=RetryPolicy(base=0.001))
    with traced_in_new_threads(injector):
        futures = {each: sender.submit(one(each)) for each in (f"{name}a", f"{name}b")}
        unsettled = wait(futures.values(), 10.0).not_done
        if unsettled:
            return [f"at {injector.where}: {len(unsettled)} futures stay unsettled, {sender.stats()}"], {}
        cut_short = sender.close(timeout=5.0)
    receipts = {each: future.receipt for each, future in futures.items()}
    stats = sender.stats()
    wrong = [f"at {injector.where}: no receipt" for receipt in receipts.values() if receipt is None]
    if cut_short or stats.queued or stats.in_flight or stats.lanes or sum(stats.outcomes.values()) != len(futures):
        wrong.append(f"at {injector.where}: {cut_short} {stats}")
    return wrong, {each: receipt.outcome for each, receipt in receipts.items() if receipt is not None}


@pytest.fixture
def locks_die_with_their_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is kept keeps the frames it came through; what they hold another thread may be left to let go.

    Of a lane that is the lock of its own client, which nobody wants any more: the complaint of the RLock is in place.
    """
    complain = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "cannot release un-acquired lock" not in str(unraisable.exc_value):
            complain(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", hook)


@pytest.fixture
def silent_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest keeps what is logged, tracebacks and their frames too, and lets go of it in another thread."""
    monkeypatch.setattr(logging.getLogger("threadmail.sender"), "disabled", True)


@pytest.mark.usefixtures("silent_log", "locks_die_with_their_clients", "sockets_left_to_the_collector")
def test_an_exception_at_any_point_of_a_lanes_life() -> None:
    """From its first line to its farewell: the lane is replaced, and every future settles and is true."""
    told: dict[str, Outcome] = {}
    wrong: list[str] = []
    with ScriptedServer([Serve()], last="repeat") as server:
        assert life_of_a_lane(server.url, "warm", Injector())[0] == []
        dry = Injector()
        assert life_of_a_lane(server.url, "dry", dry)[0] == []
        numbers = passages(dry.places)
        for number in numbers:
            found, outcomes = life_of_a_lane(server.url, f"n{number}", Injector(number))
            told |= outcomes
            wrong += found
            assert not wrong, wrong
        arrived = copies(server)
    assert len(numbers) > 200
    assert {name: arrived[name] for name, outcome in told.items() if arrived[name] not in COPIES[outcome]} == {}
    counted = Counter(told.values())
    assert counted[Outcome.SENT] > len(numbers), "the other message suffers as well"
    assert counted[Outcome.NOT_SENT] > 0 < counted[Outcome.IN_DOUBT]
