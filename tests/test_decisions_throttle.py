"""What a throttle decides, each decision at its boundaries. Time passes when it is told to, and nobody waits."""

from __future__ import annotations

import os
import queue
import threading
from typing import Any

import pytest

from tests.support.clock import Clock, clock
from threadmail import InvalidConfig, Throttle, TimedOut
from threadmail import throttle as module
from threadmail._runtime import guard as _guard
from threadmail._runtime.deadline import LONGEST

__all__ = ["clock"]  # a fixture


@pytest.fixture
def waits(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """How long each wait was to be; it is over at once, and that time has passed."""
    asked: list[float | None] = []

    def wait(_: Any, seconds: float | None) -> None:
        asked.append(seconds)
        clock.time += seconds or 0.0

    monkeypatch.setattr(module, "_wait", wait)
    return asked


# What it is made of ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{"messages": 0.5}, {"messages": 1, "per": 0.5}, {"burst": 1}])
def test_less_than_one_a_second_is_a_limit_as_any_other(values: dict[str, Any]) -> None:
    assert Throttle(**values).take() == 0.0


@pytest.mark.parametrize("values", [{"messages": 0.0}, {"per": 0.0}, {"messages": float("nan")}, {"burst": 0}])
def test_nothing_is_no_limit(values: dict[str, Any]) -> None:
    """By the name of what is wrong: the rate that comes of it would be refused as well."""
    with pytest.raises(InvalidConfig, match=f"{next(iter(values))} (must be|at least)"):
        Throttle(**values)


def test_by_default_it_is_so_many_a_second_one_at_a_time(clock: Clock) -> None:
    t = Throttle(4)
    assert [t.take(), t.take()] == [0.0, pytest.approx(0.25)]


def test_a_new_one_is_not_paused(clock: Clock) -> None:
    clock.time = 0.5
    t = Throttle()
    assert (t.paused_until, t.is_paused, t.take()) == (0.0, False, 0.0)


# Without waiting ------------------------------------------------------------------------------------------------------


def test_a_pause_ends_at_its_moment(clock: Clock) -> None:
    t = Throttle()
    t.pause(2.0)
    before = t.is_paused
    clock.time += 2.0
    assert (before, t.is_paused, t.take()) == (True, False, 0.0)


def test_a_shorter_pause_changes_nothing_and_a_longer_one_all(clock: Clock) -> None:
    t = Throttle()
    for seconds, until in ((5.0, 5.0), (3.0, 5.0), (8.0, 8.0)):
        t.pause(seconds)
        assert t.paused_until == clock.time + until


def test_without_a_limit_nothing_is_counted(clock: Clock) -> None:
    t = Throttle()
    t.pause(1.0)
    clock.time += 1.0
    before = t._bucket
    assert [t.take() for _ in range(3)] == [0.0] * 3
    assert t._bucket == before


def test_a_clock_that_goes_back_takes_no_token_away(clock: Clock) -> None:
    """Another thread may have looked at the time before this one, and come later."""
    t = Throttle(1, burst=2)
    t.take()
    clock.time -= 0.5
    assert t.take() == 0.0
    clock.time += 0.5
    assert t.take() == pytest.approx(1.0), "and none is counted twice"


def test_a_pause_and_what_is_lacking_after_it_are_waited_for_together(clock: Clock) -> None:
    t = Throttle(1)
    t.take()
    t.pause(0.25)
    assert t.take() == pytest.approx(1.0), "the token comes meanwhile"
    t.pause(3.0)
    assert t.take() == pytest.approx(3.0)


def test_what_lacks_the_last_bit_of_a_float_is_a_token(clock: Clock) -> None:
    t = Throttle(1)
    t.take()
    clock.time += 1.0 - 1e-10
    assert t.take() == 0.0
    clock.time += 1.0 - 1e-8
    assert t.take() > 0.0


def test_what_is_given_back_is_one_token_and_wakes_the_first_in_line(clock: Clock) -> None:
    t = Throttle(1, burst=3)
    for _ in range(3):
        t.take()
    first, second = queue.SimpleQueue[None](), queue.SimpleQueue[None]()
    t._line.extend([first, second])
    t.give_back()
    assert t._bucket.tokens == 1.0
    assert (first.qsize(), second.qsize()) == (1, 0)


@pytest.mark.parametrize("act", ["take", "give_back"])
def test_what_was_computed_from_another_bucket_is_computed_again(act: str, clock: Clock) -> None:
    """A signal handler took one in between."""
    t = Throttle(1, burst=10)
    for _ in range(5):
        t.take()
    other = module._Bucket(2.0, clock.time)

    class Interrupted(module._Bucket):
        @property
        def tokens(self) -> float:
            t._bucket = other
            return self[0]

    t._bucket = Interrupted(5.0, clock.time)
    getattr(t, act)()
    assert t._bucket.tokens == (1.0 if act == "take" else 3.0)


class Untouched:
    """A lock that nobody is to take."""

    def __enter__(self) -> None:
        raise AssertionError

    def __exit__(self, *_: object) -> None: ...


def test_who_is_neither_limited_nor_paused_takes_no_lock() -> None:
    """All the workers of most senders come by there for each message."""
    t = Throttle()
    t._lock = Untouched()  # type: ignore[assignment]
    assert t.take() == 0.0


def test_who_is_limited_or_was_paused_takes_it(clock: Clock) -> None:
    paused = Throttle()
    paused.pause(1.0)
    for t in (Throttle(1), paused):
        t._lock = Untouched()  # type: ignore[assignment]
        with pytest.raises(AssertionError):
            t.take()


# Forks ----------------------------------------------------------------------------------------------------------------


def test_it_is_told_of_each_fork() -> None:
    t = Throttle(1)
    assert t in _guard._fork_aware


def test_a_child_has_a_lock_and_a_line_of_its_own_and_the_same_process_keeps_its() -> None:
    t = Throttle(1)
    lock, line, here = t._lock, t._line, t._in_line
    t.enter_child(os.getpid())
    assert (t._lock, t._line, t._in_line) == (lock, line, here)
    assert t._line is line
    line.append(queue.SimpleQueue())
    here[1] = None
    t.enter_child(os.getpid() + 1)
    assert t._lock is not lock
    assert (list(t._line), t._in_line) == ([], {})
    lock = t._lock
    t.enter_child(os.getpid() + 1)
    assert t._lock is lock, "once for each child"


# Waiting --------------------------------------------------------------------------------------------------------------


def test_where_a_token_is_there_and_nobody_waits_it_is_taken(waits: list[float | None]) -> None:
    t = Throttle(1)
    t.acquire(0.0)
    assert waits == []
    assert not t._line
    assert not t._in_line


def test_where_a_token_is_there_and_nobody_waits_nobody_stands_in_line(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = Throttle(1)
    stood: list[object] = []
    monkeypatch.setattr(t, "_await_turn", lambda *_: stood.append(1))
    t.acquire()
    assert stood == []
    assert t.take() > 0.0


def test_who_is_alone_waits_for_his_token_and_no_longer(waits: list[float | None]) -> None:
    t = Throttle(1)
    t.acquire()
    t.acquire()
    assert waits == [pytest.approx(1.0)]
    assert not t._line
    assert not t._in_line


def test_who_comes_later_stands_in_line_though_there_is_a_token(waits: list[float | None], clock: Clock) -> None:
    t = Throttle(1, burst=3)
    ahead: queue.SimpleQueue[None] = queue.SimpleQueue()
    t._line.append(ahead)
    t.acquire(60.0)
    assert waits == [pytest.approx(60.0, abs=1.0)], "until he is the first: that is not known"
    assert list(t._line) == [ahead]
    assert ahead.qsize() == 1, "who leaves wakes the first one"
    t.acquire()
    assert waits[1:] == [None]


def test_a_deadline_just_long_enough_is_waited_for(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a deadline is that of the clock as well."""
    monkeypatch.setattr("threadmail._runtime.deadline.now", clock)
    asked: list[float | None] = []

    def wait(_: Any, seconds: float | None) -> None:
        asked.append(seconds)
        clock.time += seconds or 0.0

    monkeypatch.setattr(module, "_wait", wait)
    t = Throttle(1)
    t.acquire()
    t.acquire(1.0)
    assert asked == [1.0]
    with pytest.raises(TimedOut, match=r"no token for another 1\.0 s"):
        t.acquire(0.5)
    assert asked == [1.0]


@pytest.mark.parametrize(("ahead", "deadline", "meets"), [(0, 1.0, True), (1, 2.0, True), (1, 1.5, False)])
def test_each_one_ahead_takes_a_token(
    ahead: int, deadline: float, meets: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threadmail._runtime.deadline.now", clock)
    t = Throttle(1)
    t.acquire()
    t._line.extend(queue.SimpleQueue() for _ in range(ahead))

    def wait(_: Any, seconds: float | None) -> None:
        clock.time += 1.0
        if len(t._line) > 1 and t.take() == 0.0:
            t._line.popleft()

    monkeypatch.setattr(module, "_wait", wait)
    if meets:
        t.acquire(deadline)
        assert not t._line
    else:
        with pytest.raises(TimedOut):
            t.acquire(deadline)
        assert clock.time == 1000.0, "at once"
        assert len(t._line) == ahead


def test_who_stands_in_line_already_does_not_stand_behind_himself(waits: list[float | None]) -> None:
    """As a signal handler that interrupts a wait does."""
    t = Throttle(1)
    t.acquire()
    mine: queue.SimpleQueue[None] = queue.SimpleQueue()
    t._line.append(mine)
    t._in_line[threading.get_ident()] = None
    t.acquire()
    assert waits == [pytest.approx(1.0)]
    assert list(t._line) == [mine]
    assert t._in_line == {threading.get_ident(): None}
    with pytest.raises(TimedOut):
        t.acquire(0.1)


def test_a_wait_ends_when_something_is_put_there_and_is_never_longer_than_a_clock_can() -> None:
    class Place:
        def __init__(self) -> None:
            self.timeouts: list[float | None] = []

        def get(self, timeout: float | None) -> None:
            self.timeouts.append(timeout)
            raise queue.Empty

    place: Any = Place()
    for seconds in (None, 0.25, 1e30):
        module._wait(place, seconds)
    assert place.timeouts == [None, 0.25, LONGEST]
