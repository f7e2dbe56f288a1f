"""The end of the interpreter: one time for all senders, and what one does spoils nothing for the others.

With real interpreters that end: tests/reliability/test_exit.py.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import SupportsIndex

import pytest

from tests.support.mail import envelope
from threadmail import MailError, Outcome, Receipt, ThreadedSender
from threadmail._dispatch import at_exit as _exit
from threadmail._dispatch import outliving
from threadmail._dispatch.starter import Starter
from threadmail._runtime import deadline as _deadline
from threadmail.testing import ScriptedServer


class Unsent:
    receipt = Receipt.not_sent(None, MailError("the sender was closed"))


class Sender:
    """Closes as it is told to, and notes how it was asked to."""

    def __init__(self, does: Callable[[], object] = lambda: None, unsent: int = 0) -> None:
        self.asked: list[tuple[bool, float | None]] = []
        self.closed: list[tuple[bool, float | None]] = []
        self._does, self._unsent = does, unsent

    def _part(self, *, drain: bool, timeout: float | None) -> None:
        self.asked.append((drain, None if timeout is None else round(timeout, 1)))
        self._does()

    def close(self, *, drain: bool, timeout: float | None) -> list[Unsent]:
        self.closed.append((drain, None if timeout is None else round(timeout, 1)))
        return [Unsent()] * self._unsent


class Clock:
    time = 1000.0

    def __call__(self) -> float:
        return self.time

    def passes(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hands = Clock()
    monkeypatch.setattr(_deadline, "now", hands)
    return hands


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders of other tests are none of ours; and no hook of the interpreter is set."""
    monkeypatch.setattr(_exit, "_open", weakref.WeakSet())
    monkeypatch.setattr(_exit, "_not_closed", weakref.WeakSet())
    monkeypatch.setattr(_exit, "_registered", [print])
    monkeypatch.setattr(_exit, "_time_is_up", [])


class InOrder(list[Sender]):
    """In the place of the weak set, whose order is chance."""

    add = list.append

    def pop(self, index: SupportsIndex = 0) -> Sender:
        if not self:
            raise KeyError
        return super().pop(index)


def closing(monkeypatch: pytest.MonkeyPatch, *senders: Sender) -> None:
    monkeypatch.setattr(_exit, "_open", InOrder(senders))
    _exit._close_all()


def test_the_time_is_one_for_all_and_not_divided_among_them(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Forty idle ones that take no time leave all of it to the one that has a queue; who is late has what is left."""
    idle = [Sender() for _ in range(40)]
    slow, late = Sender(lambda: clock.passes(7.0)), Sender(lambda: clock.passes(60.0))
    last = Sender()
    closing(monkeypatch, *idle, slow, late, last)
    assert {asked for sender in idle for asked in sender.asked} == {(True, _exit.GRACE)}
    assert (slow.asked, late.asked, last.asked) == ([(True, 10.0)], [(True, 3.0)], [(True, 0.0)])


def test_a_sender_that_was_closed_is_left_alone() -> None:
    one, two = Sender(), Sender()
    for sender in (one, two):
        _exit.close_at_exit(sender)
    _exit.forget(one)
    _exit.forget(one)
    _exit._close_all()
    assert (one.asked, two.asked) == ([], [(True, _exit.GRACE)])
    _exit._close_all()
    assert len(two.asked) == 1


def test_senders_that_bring_forth_others_end_when_the_time_is_over(clock: Clock) -> None:
    """A callback that reports what was not sent by another sender, whose callback does: for ever."""
    born: list[Sender] = []  # those at exit are known by weak references only

    def another() -> None:
        clock.passes(3.0)
        if len(born) < 50:
            born.append(Sender(another))
            _exit.close_at_exit(born[-1])

    first = Sender(another)
    _exit.close_at_exit(first)
    _exit._close_all()
    assert first.asked == [(True, _exit.GRACE)]
    assert [sender.asked for sender in born[:4]] == [[(True, 7.0)], [(True, 4.0)], [(True, 1.0)], [(True, 0.0)]]
    assert {sender.asked[0] for sender in born[4:]} == {(False, 0.0)}


def test_one_that_cannot_be_closed_spoils_nothing_for_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise OSError("a mistake")

    other = Sender(unsent=3)
    broken = Sender(fails)
    monkeypatch.setattr(broken, "close", broken._part)
    with caplog.at_level(logging.ERROR, "threadmail.sender"):
        closing(monkeypatch, broken, other)
    assert other.asked == [(True, _exit.GRACE)]
    assert [record.getMessage() for record in caplog.records] == [
        "a sender could not be closed at the end of the interpreter",
        "the interpreter ends, and 3 messages were not sent",
    ]


def test_ctrl_c_ends_all_of_them_at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    first, other = Sender(interrupted, unsent=2), Sender()
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.ERROR, "threadmail.sender"):
        closing(monkeypatch, first, other)
    assert (first.asked, first.closed) == ([(True, _exit.GRACE)], [(False, 0.0)])
    assert (other.asked, other.closed) == ([(False, 0.0)], [(False, 0.0)])
    assert "the closing was interrupted, and 2 messages were not sent" in caplog.text


def test_threads_are_waited_for_when_all_have_parted_with_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each would wait for its own ones before the next is told, and go on meanwhile."""
    calls: list[str] = []
    senders = [Sender(), Sender()]

    def closes(**_: object) -> list[Unsent]:
        calls.append("closed")
        return []

    for sender in senders:
        monkeypatch.setattr(sender, "_does", lambda: calls.append("parted"))
        monkeypatch.setattr(sender, "close", closes)
    closing(monkeypatch, *senders)
    assert calls == ["parted", "parted", "closed", "closed"]


@pytest.mark.parametrize("when", ["_does", "close"])
def test_a_sender_that_is_first_used_while_others_end_is_closed_as_well(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a callback of one of them, say. Nobody else would, and its threads would keep the process."""
    sender, latecomer = Sender(), Sender()

    def uses(**_: object) -> list[Unsent]:
        _exit.close_at_exit(latecomer)
        return []

    monkeypatch.setattr(sender, when, uses)
    closing(monkeypatch, sender)
    assert (len(latecomer.asked), len(latecomer.closed)) == (1, 1)


# Threads that outlive the main one ----------------------------------------------------------------------------------


@pytest.fixture
def main_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliving, "_begun", [True])


@pytest.mark.usefixtures("main_is_over")
def test_workers_have_threads_of_their_own_when_executors_start_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Starter, "_able", lambda self: pytest.fail("it asked an executor"))
    with ScriptedServer() as server:
        with ThreadedSender(server.url, workers=2) as sender:
            sent = sender.send_all([envelope(str(number)) for number in range(20)])
            assert {receipt.outcome for receipt in sent} == {Outcome.SENT}
            lanes = [thread for thread in threading.enumerate() if thread.name.startswith("threadmail-lane")]
            assert lanes
            assert all(thread.daemon for thread in lanes)
        assert not any(thread.is_alive() for thread in lanes)
        assert len({message.sender for message in server.messages}) == len(server.messages) == 20


@pytest.mark.usefixtures("main_is_over")
def test_where_none_can_be_had_it_is_told_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """No later try can help: `may_resend` said that it might."""
    monkeypatch.setattr("threadmail._dispatch.starter.start_thread", lambda *args, **settings: None)
    with ThreadedSender("smtp://127.0.0.1:1") as sender, pytest.raises(MailError) as info:
        sender.send(envelope("x"))
    assert str(info.value).startswith("no thread could be started to send it: the program's main thread has ended")
    assert (info.value.outcome, info.value.may_resend) == (Outcome.NOT_SENT, False)


def test_the_main_thread_may_end_as_a_worker_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor has refused it then, or its thread is one that nobody waits for."""
    monkeypatch.setattr(outliving, "_begun", [])
    monkeypatch.setattr(outliving, "A_START", 10.0)
    waited, able = threading.Event(), Starter._able
    futures = sys.modules["concurrent.futures.thread"]

    class Looked(dict[object, None]):
        def __len__(self) -> int:
            waited.set()
            return super().__len__()

    def ended_meanwhile(starter: Starter) -> object:
        leaving.start()
        assert waited.wait(10.0)  # it waits for who is in this
        return able(starter)

    monkeypatch.setattr(outliving, "_starting", Looked())
    monkeypatch.setattr(Starter, "_able", ended_meanwhile)

    def leave() -> None:
        outliving.begin()
        outliving._leave_executors()

    leaving = threading.Thread(target=leave)
    with ScriptedServer() as server, ThreadedSender(server.url, workers=1) as sender:
        assert sender.send(envelope("x")).outcome is Outcome.SENT
        leaving.join(10.0)
        lanes = [thread for thread in threading.enumerate() if thread.name.startswith("threadmail-lane")]
        assert lanes
        assert not any(lane in futures._threads_queues for lane in lanes)


def test_who_is_waited_for() -> None:
    """Not daemons, nor the main thread, the calling one, and workers."""
    end = threading.Event()
    made = [
        threading.Thread(target=end.wait, args=(10.0,), name=name, daemon=daemon)
        for name, daemon in (("one", False), ("daemon", True), ("threadmail-lane_0", False))
    ]
    try:
        for thread in made:
            thread.start()
        assert [thread for thread in outliving.others() if thread in made] == made[:1]
    finally:
        end.set()
        for thread in made:
            thread.join()


def test_without_others_or_a_thread_to_wait_for_them_all_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliving, "_begun", [])
    for others in ([], [threading.main_thread()]):
        monkeypatch.setattr(outliving, "others", lambda others=others: others)
        monkeypatch.setattr(outliving, "start_thread", lambda *args, **settings: None)
        sender = Sender()
        monkeypatch.setattr(_exit, "_open", InOrder([sender]))
        _exit._at_end()
        assert sender.closed


def test_what_ctrl_c_has_left_open_is_cut_short(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender(unsent=2)
    _exit.close_at_exit(sender)
    with caplog.at_level(logging.ERROR):
        _exit._cut_short()
    assert sender.closed == [(False, 0.0)]
    assert [record.getMessage() for record in caplog.records] == [
        "the waiting was interrupted, and 2 messages were not sent"
    ]
