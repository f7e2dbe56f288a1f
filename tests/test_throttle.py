"""Throttle: never more than the burst and what the rate allows since, whoever asks and whatever is given back."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmail import InvalidConfig, Throttle, TimedOut
from threadmail import throttle as module


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    c = Clock()
    monkeypatch.setattr(module, "now", c)
    return c


def taken(throttle: Throttle, tries: int) -> int:
    return sum(throttle.take() == 0.0 for _ in range(tries))


@pytest.mark.parametrize("values", [{"messages": 0}, {"messages": -1}, {"messages": 1, "per": 0}, {"burst": 0}])
def test_a_throttle_that_gives_nothing_is_refused(values: dict[str, Any]) -> None:
    """It would make everybody wait for ever."""
    with pytest.raises(InvalidConfig):
        Throttle(**values)


def test_messages_are_spaced_evenly_by_default(clock: Clock) -> None:
    """Without a burst the second token comes an interval after the first."""
    t = Throttle(60, per=60.0)
    assert t.take() == 0.0
    assert t.take() == pytest.approx(1.0)
    clock.time += 0.75
    assert t.take() == pytest.approx(0.25)
    clock.time += 0.25
    assert t.take() == 0.0


def test_a_quiet_time_earns_a_burst_and_no_more(clock: Clock) -> None:
    """However long nobody asked."""
    t = Throttle(1, burst=5)
    assert taken(t, 10) == 5
    clock.time += 3.0
    assert taken(t, 10) == 3
    clock.time += 3600.0
    assert taken(t, 10) == 5


def test_what_take_names_is_when_it_is_worth_asking_again(clock: Clock) -> None:
    """After exactly that time there is a token, and not before."""
    t = Throttle(3, per=7.0)
    t.take()
    pause = t.take()
    clock.time += pause * 0.99
    assert t.take() > 0.0
    clock.time += pause * 0.010001
    assert t.take() == 0.0


def test_a_token_given_back_can_be_taken_again(clock: Clock) -> None:
    """Once, and never beyond the burst."""
    t = Throttle(1, burst=2)
    assert taken(t, 3) == 2
    t.give_back()
    assert taken(t, 3) == 1
    for _ in range(5):
        t.give_back()
    assert taken(t, 9) == 2


def test_a_pause_stops_everybody_and_the_longer_one_holds(clock: Clock) -> None:
    """A server asked for quiet: no token, though there are some."""
    t = Throttle(100, burst=10)
    t.pause(30.0)
    t.pause(5.0)
    assert t.take() == pytest.approx(30.0)
    clock.time += 29.0
    assert t.take() == pytest.approx(1.0)
    clock.time += 1.0
    assert taken(t, 20) == 10


def test_a_throttle_without_a_limit_only_pauses(clock: Clock) -> None:
    """`Throttle()` lets everything pass until somebody pauses it."""
    t = Throttle()
    assert taken(t, 1000) == 1000
    t.pause(2.0)
    assert t.take() == pytest.approx(2.0)
    clock.time += 2.0
    assert t.take() == 0.0


@given(
    st.floats(0.1, 1000),
    st.floats(0.1, 100),
    st.integers(1, 20),
    st.lists(st.one_of(st.floats(0, 5), st.sampled_from(["take", "back", "pause"])), max_size=80),
)
def test_never_more_than_the_burst_and_the_rate_allow(
    messages: float, per: float, burst: int, steps: list[Any]
) -> None:
    """Over any span, from any moment to any later one: at most burst + rate x span tokens are kept."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "now", clock)
        t = Throttle(messages, per, burst)
        paused_until, kept = 0.0, []
        for step in steps:
            if step == "take":
                if t.take() == 0.0:
                    assert clock.time >= paused_until
                    kept.append(clock.time)
            elif step == "back":
                if kept:
                    kept.pop()
                    t.give_back()
            elif step == "pause":
                t.pause(1.0)
                paused_until = clock.time + 1.0
            else:
                clock.time += step
    for i, begin in enumerate(kept):
        for count, end in enumerate(kept[i:], 1):
            assert count <= burst + (messages / per) * (end - begin) + 1e-6


def test_a_deadline_that_no_token_can_meet_ends_at_once() -> None:
    """Who cannot be served in time is told so now, and takes nothing."""
    t = Throttle(1, per=3600.0)
    t.acquire()
    begin = time.monotonic()
    with pytest.raises(TimedOut, match="no token for another"):
        t.acquire(deadline=60.0)
    assert time.monotonic() - begin < 5.0


def test_acquire_waits_for_its_token() -> None:
    """In real time: the second one comes when the rate says so."""
    t = Throttle(20)
    t.acquire()
    begin = time.monotonic()
    t.acquire(deadline=10.0)
    assert 0.04 <= time.monotonic() - begin < 5.0


def test_threads_share_one_limit() -> None:
    """Eight threads together get the burst and not one more."""
    t = Throttle(1, per=3600.0, burst=25)
    barrier = threading.Barrier(8)
    counts: list[int] = []

    def work() -> None:
        barrier.wait(10.0)
        counts.append(taken(t, 200))

    threads = [threading.Thread(target=work, name=f"throttle-{i}") for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert sum(counts) == 25
