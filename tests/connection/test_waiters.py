"""A batch lets others in between its turns, by their order and not by the lock's mood."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from tests.support.naming import NamingServer
from threadmail import Client, Envelope, TimedOut
from threadmail import client as client_module
from threadmail._connection.waiters import Waiters
from threadmail._runtime.deadline import NEVER, Deadline
from threadmail._runtime.guard import HeldInTime
from threadmail._runtime.locks import new_rlock


def letter(name: str) -> Envelope:
    return Envelope("a@here.test", [f"{name}@there.test"], f"Message-ID: <{name}>\r\n\r\nx\r\n".encode())


def until(holds: object, what: str) -> None:
    end = time.monotonic() + 10.0
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def turns_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "TURN", 5)


@pytest.fixture
def gate() -> threading.Event:
    """Closed, it holds up the server's answer to message number 3."""
    return threading.Event()


@pytest.fixture
def server(gate: threading.Event) -> Iterator[NamingServer]:
    def answer(message: object) -> None:
        if len(naming.taken) == 2:
            gate.wait(10.0)

    with NamingServer(on_message=answer) as naming:
        yield naming


def test_who_comes_during_a_turn_is_let_in_behind_it(server: NamingServer, gate: threading.Event) -> None:
    """Whatever the lock would do: the batch has 23 messages, and none of the 18 after the turn comes first."""
    with Client(server.url) as client:
        batch = threading.Thread(target=client.send_all, args=([letter(f"bulk{n}") for n in range(23)],))
        batch.start()
        until(lambda: len(server.taken) == 2, "the batch has begun")
        others = [threading.Thread(target=client.send, args=(letter(f"urgent{n}"),)) for n in range(3)]
        for number, other in enumerate(others, 1):
            other.start()
            until(lambda number=number: len(client._waiters._places) == number, "stands in line")
        gate.set()
        for thread in (batch, *others):
            thread.join(20.0)
    arrived = [message.recipients[0].partition("@")[0] for message in server.messages]
    assert arrived[:5] == [f"bulk{n}" for n in range(5)]
    assert sorted(arrived[5:8]) == ["urgent0", "urgent1", "urgent2"]
    assert arrived[8:] == [f"bulk{n}" for n in range(5, 23)]
    assert not client._waiters._places
    assert not client._waiters._batches


def test_a_batch_of_one_turn_and_a_single_message_stand_in_no_line(server: NamingServer) -> None:
    with Client(server.url) as client:
        client.send_all([letter("a"), letter("b")]).raise_for_failures()
        assert client._waiters.entering(client.sync_root, NEVER) is client.sync_root
        assert not client._waiters._batches


def test_who_holds_the_client_lets_nobody_in(server: NamingServer, gate: threading.Event) -> None:
    """`with client.sync_root:` around a batch makes it one step; it does not wait for those who wait for it."""
    gate.set()
    with Client(server.url) as client:
        with client.sync_root:
            client._waiters._places[threading.Event()] = None  # somebody
            begun = time.monotonic()
            client.send_all([letter(f"bulk{n}") for n in range(12)]).raise_for_failures()
        assert client._waiters._places
        assert time.monotonic() - begun < 4.0


def test_who_gives_up_leaves_the_line() -> None:
    line, root = Waiters(), threading.RLock()
    line.begin("batch")
    gone: list[BaseException] = []

    def wait() -> None:
        try:
            with line.entering(root, Deadline.after(0.05)):
                pass
        except TimedOut as error:
            gone.append(error)

    with root:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(10.0)
    assert len(gone) == 1
    assert not line._places
    line.let_in("batch", NEVER)  # waits for nobody


class Place(threading.Event):
    """Of somebody who does not come to the lock; and how often he was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        return False


def test_each_batch_waits_for_all_who_stand_there() -> None:
    """Also for whom another one waits already: else its turns would pass him, one after another."""
    line, place = Waiters(), Place()
    line.begin("one")
    line.begin("another")
    line._places[place] = None
    line.let_in("one", NEVER)
    line.let_in("another", NEVER)
    assert place.waits == 2


def test_whoever_does_not_come_holds_up_each_batch_once_and_the_last_one_takes_the_place_away() -> None:
    line, left, new = Waiters(), Place(), Place()
    line.begin("one")
    line.begin("another")
    line._places[left] = None
    for batch in ("one", "another", "one", "another"):
        line.begin(batch)  # as each turn does
        line.let_in(batch, NEVER)
    assert left.waits == 2
    line._places[new] = None
    line.end("one")
    assert list(line._places) == [left, new]
    line.end("another")
    assert list(line._places) == [new], "for whom the next batch is to wait"


def in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, as after a fork that ran none of Python's hooks."""
    monkeypatch.setattr("os.getpid", lambda: -1)


def test_a_batch_in_a_child_waits_for_nobody_who_stands_in_the_line_of_its_parent(
    server: NamingServer, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.set()
    with Client(server.url) as client:
        place = Place()
        client._waiters.begin("of the parent")
        client._waiters._places[place] = None
        in_a_child(monkeypatch)
        client.send_all([letter(f"bulk{n}") for n in range(12)]).raise_for_failures()
    assert place.waits == 0
    assert not client._waiters._batches


def test_nor_one_that_was_begun_before_the_fork(
    server: NamingServer, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the child has a line of its own, in which the others of the child stand."""
    gate.set()
    place = Place()
    with Client(server.url) as client:

        def messages() -> Iterator[Envelope]:
            yield from (letter(f"a{n}") for n in range(5))
            client._waiters._places[place] = None
            in_a_child(monkeypatch)
            yield from (letter(f"b{n}") for n in range(5))
            assert client._waiters._batches, "others are to stand in line"
            yield from (letter(f"c{n}") for n in range(5))

        parents = client._waiters
        client.send_all(messages()).raise_for_failures()
        assert client._waiters is not parents
    assert place.waits == 0
    assert not client._waiters._batches


def test_an_exception_from_outside_leaves_neither_a_place_nor_the_lock() -> None:
    """At each place that the way in passes, from its first step to its last."""
    for number in range(1, 100):
        line, root = Waiters(), new_rlock()
        line.begin("batch")
        if not struck(number, line, root):
            break
        got: list[bool] = []
        thread = threading.Thread(target=lambda root=root, got=got: got.append(root.acquire(timeout=5.0)))
        thread.start()
        thread.join(10.0)
        assert got == [True], f"the lock is lost at {number}"
        assert not [place for place in line._places if not place.is_set()], f"a place is left at {number}"
    assert 5 < number < 99


class Strike(BaseException):
    """Comes from outside."""


def struck(number: int, line: Waiters, root: Any) -> bool:
    """Go in and out, struck where the `number`-th of our functions is entered or calls return; False: not so many."""
    seen = 0
    files = (Waiters.entering.__code__.co_filename, HeldInTime.__enter__.__code__.co_filename)

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal seen
        if event in ("call", "c_return") and frame.f_code.co_filename in files:
            seen += 1
            if seen == number:
                sys.setprofile(None)
                raise Strike

    sys.setprofile(look)
    try:
        with line.entering(root, NEVER):
            pass
    except Strike:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_a_slow_iterable_does_not_hold_back_what_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn begins with what is there after a while; nothing is lost between two turns, and others come in."""
    at = [0.0]
    monkeypatch.setattr("threadmail._connection.batch.now", lambda: at[0])
    monkeypatch.setattr(client_module, "TURN", 50)
    arrived: list[int] = []
    with NamingServer() as server, Client(server.url) as client:

        def slow() -> Iterator[Envelope]:
            for number in range(9):
                arrived.append(len(server.taken))
                at[0] += 0.2
                yield letter(f"m{number}")

        report = client.send_all(slow())
    assert [receipt.message_id for receipt in report] == [f"<m{number}>" for number in range(9)]
    assert len(server.taken) == 9
    # The clock of a turn starts with it; the first message of the next one is pulled behind it.
    assert arrived == [0, 0, 0, 3, 3, 3, 6, 6, 6]


def test_who_has_the_client_already_stands_in_no_line() -> None:
    """The messages of the batch itself, above all: a place for each of them is a fifth of what it costs."""
    line, root = Waiters(), new_rlock()
    line.begin("batch")
    with root:
        assert line.entering(root, NEVER) is root
    assert line.entering(root, NEVER) is not root
