"""An exception raised from outside, at every point of a send where CPython can raise one, harms its own message only.

Ctrl-C, a time limit of a job queue, `PyThreadState_SetAsyncExc`: they come between any two instructions. Here they come
at each place in turn, one place a send; by default at the first and the last time a send passes it. With
THREADMAIL_EVERY_POINT=1 every passage counts, loops included.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType

import pytest

from tests.reliability.injection import Injected, Injector
from tests.support.mail import envelope, in_threads
from threadmail import Client, ClientPool, Envelope, MailError
from threadmail.testing import ScriptedServer, Serve

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
    """Which of the points passed to try: all, or of each place the first and the last."""
    if EVERY:
        return list(range(1, len(places) + 1))
    first = {place: number for number, place in reversed([*enumerate(places, 1)])}
    last = {place: number for number, place in enumerate(places, 1)}
    return sorted({*first.values(), *last.values()})


def copies(server: ScriptedServer) -> Counter[str]:
    return Counter(m.sender.removeprefix("from-").partition("@")[0] for m in server.messages)


# A socket whose close() is where it happened is closed by the garbage collector, which complains.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("make", [Client, lambda url: ClientPool(url, max_size=1)], ids=["client", "pool"])
def test_an_exception_at_any_point_of_a_send(make: Callable[[str], Client | ClientPool]) -> None:
    """Afterwards the lock and the lease are free: this thread sends the next message, and another one after it."""
    wrong: list[str] = []
    with ScriptedServer([Serve()], last="repeat") as server, make(server.url) as subject:
        subject.send(one("first"))
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
            try:
                subject.send(one(f"same{number}"), deadline=5.0)
            except MailError as error:
                wrong.append(f"at {injector.where}: then this thread gets {error!r}")
            other = one(f"other{number}")
            for error in in_threads(1, lambda _, other=other: subject.send(other, deadline=5.0)):  # type: ignore[misc]
                wrong.append(f"at {injector.where}: then another thread gets {error!r}")
            if isinstance(subject, ClientPool) and (left := subject.stats()).leased + left.waiting:
                wrong.append(f"at {injector.where}: {left}")
            assert not wrong, wrong
        found = copies(server)
    assert len(numbers) > 200
    assert [name for name, count in found.items() if count > 1] == [], "sent twice"
    assert sum(name.startswith(("same", "other")) for name in found) == 2 * len(numbers)
    # What was interrupted before the last byte of the content surely never arrives, all the others once.
    assert 0 < sum(name.startswith("hit") for name in found) < len(numbers)
