"""A forked child begins anew, whatever comes in the middle of that; and it is itself, whatever its number.

A signal handler, a finaliser and an exception from outside come up where a function is entered and where a call
returns. So each is let come at each of these places in turn, a run for each. The child is one without Python's hooks,
and in this very process: only its number is another one.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import pytest

import threadmail
from tests.support.mail import envelope
from threadmail import SMTP, Client, ClientPool, MailError, NotConnected, ThreadedSender, Throttle
from threadmail._connection.waiters import Waiters
from threadmail._known.refused_logins import RefusedLogins, mark
from threadmail._runtime import guard
from threadmail._runtime.deadline import Deadline
from threadmail._runtime.locks import new_rlock
from threadmail._runtime.process import here
from threadmail._transport import lookup
from threadmail.testing import CaptureServer

_OWN = threadmail.__path__[0]
CHILD = -1  # a number that no process has
PATIENCE = 20.0


class Interrupt(BaseException):
    """From outside."""


@pytest.fixture(scope="module")
def server() -> Iterator[CaptureServer]:
    with CaptureServer() as server:
        yield server


@pytest.fixture
def number(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of this process, as it takes itself to be."""
    number = [os.getpid()]
    monkeypatch.setattr("os.getpid", lambda: number[0])
    return number


# What is entered ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One that is used by the parent, and what a child does with it.

    Attributes:
        make: returns it, in use.
        use: connects, or uses the connection that there is.
        mine: what shows whether another one was begun since: all of it is to be of one beginning.
        places: there are more, where something may come.
    """

    make: Callable[[CaptureServer], Any]
    use: Callable[[Any, CaptureServer], object]
    mine: Callable[[Any], tuple[Any, ...]]
    places: int


def _smtp(server: CaptureServer) -> SMTP:
    return SMTP("localhost", server.config.port)


def _connect_smtp(smtp: SMTP, server: CaptureServer) -> object:
    if not smtp.is_quiet():
        smtp.connect("localhost", server.config.port)
    return smtp.noop()


def _client(server: CaptureServer) -> Client:
    client = Client(server.config)
    client.connect()
    return client


def _pool(server: CaptureServer) -> ClientPool:
    """Its one client is leased by another thread of the parent."""
    pool = ClientPool(replace(server.config, idle_timeout=None), max_size=1)
    lease = pool.lease()
    thread = threading.Thread(target=lease.__enter__)
    thread.start()
    thread.join()
    return pool


def _use_pool(pool: ClientPool, _: CaptureServer) -> None:
    with pool.lease(timeout=PATIENCE) as client:
        client.noop()


def _sender(server: CaptureServer) -> ThreadedSender:
    return ThreadedSender(server.config, workers=1, throttle=Throttle(1000.0, burst=1000))


SUBJECTS = {
    "smtp": Subject(_smtp, _connect_smtp, lambda s: (s._root, s._wire, s.sock), 6),
    "client": Subject(
        _client, lambda c, _: c.noop(), lambda c: (c._root, c._smtp, c._watch, c._waiters, c._leaving), 9
    ),
    "pool": Subject(_pool, _use_pool, lambda p: (p._keys, p._steps, p._retired, p._goodbyes, *p._keys.clients()), 20),
    "sender": Subject(_sender, lambda s, _: s.send(envelope("a")), lambda s: (s._dispatcher, s.throttle._lock), 20),
}


class Comes:
    """What comes at one place of the entering; `places` are those that were passed before."""

    def __init__(self, act: Callable[[], object], at: int | None) -> None:
        self.act = act
        self.at = at
        self.places: list[Any] = []
        self.has_come = False

    def over(self, enter: Callable[[], object]) -> None:
        def look(frame: FrameType, event: str, called: Any) -> None:
            if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(_OWN):
                return
            if self.at == len(self.places):
                sys.setprofile(None)
                self.has_come = True
                self.act()
            self.places.append((frame.f_code, frame.f_lineno, event, getattr(called, "__name__", "")))

        gc.disable()  # what it finalises would be a place in one run and not in another
        sys.setprofile(look)
        try:
            enter()
        finally:
            sys.setprofile(None)
            gc.enable()


def on_a_thread(do: Callable[[], object]) -> None:
    """Who waits for himself does so there, and the test goes on."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            do()
        except BaseException as exc:  # noqa: BLE001 - comes up below
            raised.append(exc)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it hangs"
    if raised:
        raise raised[0]


def each_place(enter: Callable[[int | None], Comes]) -> list[int]:
    """The number of each place, where one is passed more than once that of the first time."""
    first: dict[Any, int] = {}
    for number, place in enumerate(enter(None).places):
        first.setdefault(place, number)
    return list(first.values())


def close(subject: Any) -> None:
    if isinstance(subject, ThreadedSender):
        subject.close(drain=False, timeout=PATIENCE)
    else:
        subject.close()


# What comes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_handler_that_uses_it_in_the_midst_of_its_rebirth_hangs_nobody_and_keeps_what_it_had(
    name: str, server: CaptureServer, number: list[int]
) -> None:
    """What it finds, and connects, is that of the child: also when the interrupted thread goes on."""
    subject = SUBJECTS[name]
    parent = number[0]

    def enter(at: int | None) -> Comes:
        number[0] = parent
        here()
        made = subject.make(server)
        number[0] = CHILD
        found: list[tuple[Any, ...]] = []

        def handle() -> None:
            subject.use(made, server)
            found.append(subject.mine(made))

        comes = Comes(handle, at)
        on_a_thread(lambda: comes.over(lambda: made.enter_child(CHILD)))
        try:
            if at is not None:
                left = subject.mine(made)
                assert [a is b for a, b in zip(found[0], left, strict=True)] == [True] * len(left), comes.places[at]
                subject.use(made, server)
                assert [a is b for a, b in zip(left, subject.mine(made), strict=True)] == [True] * len(left)
            return comes
        finally:
            close(made)

    places = each_place(enter)
    assert len(places) > subject.places, "fewer places than there were"
    for place in places:
        assert enter(place).has_come


@pytest.mark.parametrize("name", SUBJECTS)
def test_one_whose_rebirth_was_interrupted_is_born_by_the_next_who_comes(
    name: str, server: CaptureServer, number: list[int]
) -> None:
    subject = SUBJECTS[name]
    parent = number[0]

    def strike() -> None:
        raise Interrupt

    def enter(at: int | None) -> Comes:
        number[0] = parent
        here()
        made = subject.make(server)
        parents = [each for each in subject.mine(made) if each is not None]
        number[0] = CHILD
        comes = Comes(strike, at)

        def entered() -> None:
            try:
                comes.over(lambda: made.enter_child(CHILD))
            except Interrupt:
                pass
            if isinstance(made, SMTP):
                with pytest.raises(NotConnected):
                    made.noop()
            subject.use(made, server)

        on_a_thread(entered)
        try:
            left = subject.mine(made)
            assert not [each for each in left if any(each is one for one in parents)], "something is the parent's still"
            return comes
        finally:
            close(made)

    places = each_place(enter)
    assert len(places) > subject.places, "fewer places than there were"
    for place in places:
        assert enter(place).has_come


def test_a_finaliser_of_what_is_replaced_finds_all_in_its_place(server: CaptureServer, number: list[int]) -> None:
    found: list[object] = []

    class Last(Waiters):
        def __del__(self) -> None:
            client.connect()
            found.append(client.sync_root)

    with Client(server.config) as client:
        client._waiters = Last()
        number[0] = CHILD
        on_a_thread(lambda: client.enter_child(CHILD))
        assert found == [client.sync_root]
        assert client.is_connected


class Aware:
    """`enter_child` of one is struck the first time."""

    def __init__(self) -> None:
        self.struck = False
        self.entered: list[int] = []

    def enter_child(self, pid: int) -> None:
        if not self.struck:
            self.struck = True
            raise Interrupt
        self.entered.append(pid)


def test_the_hook_enters_what_was_struck_once_more_and_all_others(
    number: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A throttle does not ask at each use."""
    those = [Aware(), Aware(), Aware()]
    monkeypatch.setattr(guard, "_fork_aware", weakref.WeakSet(those))
    number[0] = CHILD
    with pytest.raises(Interrupt):
        guard._in_child()
    assert [each.entered for each in those] == [[CHILD]] * 3


@pytest.mark.parametrize("make", [Client, SMTP])
def test_one_that_is_being_made_while_another_thread_forks_is_left_alone(
    make: Callable[..., Client | SMTP], server: CaptureServer, number: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody in the child has it."""
    entered: list[type] = []
    monkeypatch.setattr(guard, "_fork_aware", weakref.WeakSet())
    parent = number[0]

    def forks(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name == "__init__" and not entered:
            number[0] = CHILD
            guard._in_child()
            number[0] = parent

    sys.setprofile(forks)
    try:
        made = make("smtp://localhost:2525") if make is Client else make()
    finally:
        sys.setprofile(None)
    assert made in guard._fork_aware


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_grandchild_with_the_number_of_a_dead_ancestor_is_another_process(
    name: str, server: CaptureServer, number: list[int]
) -> None:
    """Made in one process, used in its child; and the child of that has the number of the first, which has ended."""
    subject = SUBJECTS[name]
    first = number[0]
    made = subject.make(server)
    number[0] = CHILD
    on_a_thread(lambda: subject.use(made, server))
    parents = subject.mine(made)
    its_threads = made._dispatcher if isinstance(made, ThreadedSender) else None
    number[0] = first
    if isinstance(made, Client):
        assert made.is_inherited
    made.enter_child(first)
    childs = subject.mine(made)
    assert not [each for each in childs if each is not None and any(each is one for one in parents)]
    on_a_thread(lambda: subject.use(made, server) if name != "smtp" else _not_connected(made))
    close(made)
    if its_threads is not None:
        its_threads.close(drain=False, end=Deadline.after(PATIENCE))


@pytest.mark.parametrize("name", SUBJECTS)
def test_nor_does_it_wait_for_a_thread_of_that_ancestor(name: str, server: CaptureServer, number: list[int]) -> None:
    """One that came to begin anew as well, too late, and was about to find that out when its process forked."""
    first = number[0]
    made = SUBJECTS[name].make(server)
    number[0] = CHILD
    made.enter_child(CHILD)
    held, over = threading.Event(), threading.Event()

    def comes_late() -> None:
        with made._births.setdefault(CHILD, new_rlock()):
            held.set()
            over.wait(PATIENCE)

    thread = threading.Thread(target=comes_late)
    thread.start()
    assert held.wait(PATIENCE)
    try:
        for number[0] in (first, CHILD):
            made.enter_child(number[0])
        assert not over.is_set()
        assert thread.is_alive(), "it was waited for"
    finally:
        over.set()
        thread.join(PATIENCE)
        close(made)


def _not_connected(smtp: SMTP) -> None:
    with pytest.raises(NotConnected):
        smtp.noop()


def test_the_future_and_the_stream_of_a_dead_ancestor_are_not_those_of_whoever_has_its_number(
    number: list[int],
) -> None:
    first = number[0]
    sender = ThreadedSender("smtp://localhost:2525")
    sender._dispatcher._starter.wanted = lambda: False  # type: ignore[method-assign]
    future = sender.submit(envelope("a"))
    stream = sender.send_each([envelope("b")])
    number[0] = CHILD
    sender.stats()
    number[0] = first
    with pytest.raises(MailError, match="by the process that submitted it"):
        future.result(PATIENCE)
    with pytest.raises(MailError, match="by the process that gave them in"):
        next(stream)
    sender.close(drain=False)


def test_nor_is_its_turn_to_log_in(number: list[int]) -> None:
    known, ann = RefusedLogins(), mark("ann", "secret")
    first = number[0]
    ancestors = known.turn(ann)
    number[0] = CHILD
    assert known.turn(ann) is not ancestors
    number[0] = first
    assert known.turn(ann) is not ancestors


def test_nor_the_question_that_its_thread_was_asking(number: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no thread any more that would answer."""
    asked = queue.SimpleQueue[None]()
    monkeypatch.setattr(lookup, "_under_way", {})
    first = number[0]
    with monkeypatch.context() as patched:
        patched.setattr(lookup, "_start", lambda *_: None)
        with pytest.raises(TimeoutError):
            lookup.Waiter().ask("who", lambda: None, Deadline(0.0))
    number[0] = CHILD
    lookup.Waiter().ask("another", lambda: None, Deadline.after(PATIENCE))
    number[0] = first
    assert lookup.Waiter().ask("who", lambda: asked.put(None), Deadline.after(PATIENCE)) is None
    assert asked.qsize() == 1
