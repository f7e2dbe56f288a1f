"""Throttle: never more than the burst and what the rate allows since, whoever asks and whatever is given back."""

from __future__ import annotations

import threading
import time
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.clock import Clock, clock
from threadmail import InvalidConfig, Throttle, TimedOut
from threadmail import throttle as module

__all__ = ["clock"]  # a fixture


def taken(throttle: Throttle, tries: int) -> int:
    return sum(throttle.take() == 0.0 for _ in range(tries))


@pytest.mark.parametrize(
    "values",
    [
        {"messages": 0},
        {"messages": -1},
        {"messages": 1, "per": 0},
        {"burst": 0},
        {"messages": 1, "per": inf},
        {"messages": inf},
        {"messages": 1e-320, "per": 1e10},
    ],
)
def test_a_throttle_that_gives_nothing_is_refused(values: dict[str, Any]) -> None:
    """It would make everybody wait for ever."""
    with pytest.raises(InvalidConfig):
        Throttle(**values)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"messages": "10"}, "messages is no number but a str"),
        ({"messages": True}, "messages is no number but a bool"),
        ({"messages": float("nan")}, "messages must be a number, not nan"),
        ({"messages": 10, "per": "1"}, "per is no number but a str"),
        ({"messages": 10, "per": None}, "per is no number but a NoneType"),
        ({"messages": 10, "burst": "5"}, "burst is no number but a str"),
        ({"messages": 10, "burst": float("nan")}, "burst must be a number, not nan"),
    ],
)
def test_a_setting_of_another_kind_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Throttle(**settings)
    assert str(caught.value) == said


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


@settings(deadline=None)  # it compares each with each
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


# ---------------------------------------------------------------- first come, first served


def in_line(throttle: Throttle, count: int) -> None:
    """Wait until so many threads stand in line."""
    end = time.monotonic() + 10.0
    while len(throttle._line) != count:
        assert time.monotonic() < end
        time.sleep(0.001)


def waiters(t: Throttle, count: int, deadlines: dict[int, float] | None = None) -> tuple[list[Any], list[Any]]:
    """Threads that ask one after another, and who of them was served or gave up, in that order."""
    told: list[Any] = []

    def work(i: int) -> None:
        try:
            t.acquire(deadline=(deadlines or {}).get(i))
            told.append(i)
        except TimedOut:
            told.append(f"{i} gave up")

    threads = []
    for i in range(count):
        threads.append(threading.Thread(target=work, args=(i,), name=f"waiter-{i}"))
        threads[-1].start()
        in_line(t, i + 1)
    return threads, told


def let(t: Throttle, threads: list[threading.Thread], told: list[Any]) -> None:
    """Give tokens one at a time, each when the one before it has been taken."""
    for served in range(1, len(threads) + 1):
        t.give_back()
        end = time.monotonic() + 10.0
        while len(told) < served:
            assert time.monotonic() < end, f"nobody took a token: {told}"
            time.sleep(0.001)
    for thread in threads:
        thread.join(10.0)


def test_who_asked_first_is_served_first() -> None:
    """No thread overtakes another one, however they wake."""
    t = Throttle(1, per=3600.0)
    t.acquire()
    threads, told = waiters(t, 6)
    let(t, threads, told)
    assert told == list(range(6))
    assert not t._line
    assert not t._in_line


def test_a_deadline_that_those_ahead_leave_no_token_for_ends_at_once() -> None:
    """Two wait for the tokens of the next two hours: a third one with ninety minutes need not wait to know."""
    t = Throttle(1, per=3600.0)
    t.acquire()
    threads, told = waiters(t, 2)
    begin = time.monotonic()
    with pytest.raises(TimedOut, match="no token for another") as info:
        t.acquire(deadline=5400.0)
    assert time.monotonic() - begin < 5.0
    assert info.value.deadline_passed
    let(t, threads, told)
    assert told == [0, 1]


@pytest.mark.parametrize("impatient", [0, 1, 2])
def test_who_gives_up_frees_the_place(impatient: int) -> None:
    """A pause that began meanwhile outlasts one of three deadlines: its owner is gone, and those behind move up."""
    t = Throttle(20)
    t.acquire()
    t.pause(0.3)
    threads, told = waiters(t, 3, {impatient: 1.0})
    t.pause(3600.0)
    threads[impatient].join(10.0)
    assert told == [f"{impatient} gave up"]
    in_line(t, 2)
    t._paused_until = 0.0
    t._wake_first()
    for thread in threads:
        thread.join(10.0)
    assert told[1:] == [i for i in range(3) if i != impatient]


def test_an_exception_from_outside_leaves_no_place_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while it waits, and once more where it leaves."""
    t = Throttle(1, per=3600.0)
    t.acquire()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_wait", interrupted)
    left, real = [0], t._leave

    def leave(place: Any, me: int) -> None:
        left[0] += 1
        if left[0] == 1:
            raise KeyboardInterrupt
        real(place, me)

    monkeypatch.setattr(t, "_leave", leave)
    with pytest.raises(KeyboardInterrupt):
        t.acquire()
    assert left == [2]
    assert not t._line
    assert not t._in_line


# ---------------------------------------------------------------- signal handlers and finalisers


@pytest.mark.parametrize("inner", ["take", "give_back", "pause", "acquire"])
@pytest.mark.parametrize("outer", ["take", "give_back", "acquire"])
def test_any_call_may_come_in_the_middle_of_any_other(outer: str, inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal handler or the garbage collector does, on the same thread: nobody waits for itself, and the tokens
    that come out are as many as there were."""
    t = Throttle(1, per=3600.0, burst=10)
    for _ in range(5):
        t.take()
    depth, inside = [0], list[str]()

    def call(name: str) -> None:
        getattr(t, name)(*([0.0] if name == "pause" else []))

    class Interrupted(module._Bucket):
        """The bucket is looked at in the middle of each call, under the lock."""

        @property
        def tokens(self) -> float:
            if not depth[0]:
                depth[0] = 1
                call(inner)
                inside.append(inner)
            return self[0]

    t._bucket = Interrupted(*t._bucket)
    thread = threading.Thread(target=call, args=(outer,), name="interrupted", daemon=True)
    thread.start()
    thread.join(5.0)
    assert not thread.is_alive(), "it waits for itself"
    assert inside == [inner]
    change = {"take": -1, "acquire": -1, "give_back": 1, "pause": 0}
    assert taken(t, 20) == 5 + change[outer] + change[inner]


def test_a_handler_that_interrupts_a_wait_does_not_stand_behind_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread waits in `acquire`; its signal handler acquires as well. Both get a token."""
    t = Throttle(1, per=0.05)
    t.acquire()
    real, nested = module._wait, list[str]()

    def wait(place: Any, seconds: float | None) -> None:
        if not nested:
            nested.append("asked")
            t.acquire()
            nested.append("served")
        real(place, seconds)

    monkeypatch.setattr(module, "_wait", wait)
    thread = threading.Thread(target=t.acquire, name="interrupted", daemon=True)
    thread.start()
    thread.join(10.0)
    assert not thread.is_alive()
    assert ",".join(nested) == "asked,served"


def test_what_a_schedule_asks_of_it(clock: Clock) -> None:
    t = Throttle()
    assert not t.is_limited
    assert not t.is_paused
    t.pause(2.0)
    assert t.paused_until == clock.time + 2.0
    found = [t.is_paused]
    clock.time += 2.0
    assert [*found, t.is_paused] == [True, False]
    assert Throttle(1).is_limited
