"""A lock that its own thread may come to again: nobody hangs, nothing is mixed, nothing is forgotten."""

from __future__ import annotations

import threading

import pytest

from threadmail import Reentered
from threadmail._runtime.steps import Bell, Steps


def test_what_comes_in_the_middle_is_done_at_the_end_and_others_are_woken() -> None:
    done: list[str] = []
    steps = Steps(lambda now: done.append("left"))

    def outer(now: float) -> str:
        assert steps.surely(lambda what, now: done.append(what), "inner") is None
        done.append("outer")
        return "result"

    assert steps.take(outer) == "result"
    assert done == ["outer", "inner", "left"]
    assert steps.surely(lambda what, now: what, "at once") == "at once"


def test_a_step_in_the_middle_of_a_step_is_refused_and_harms_nothing() -> None:
    steps = Steps(lambda now: None)

    def outer(now: float) -> None:
        with pytest.raises(Reentered):
            steps.take(lambda now: None)

    steps.take(outer)
    assert steps.take(lambda now: "free") == "free"


def test_what_was_left_is_done_although_the_step_fails() -> None:
    done: list[str] = []
    steps = Steps(lambda now: None)

    def outer(now: float) -> None:
        steps.surely(lambda what, now: done.append(what), "inner")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.take(outer)
    assert done == ["inner"]
    assert steps.take(lambda now: "free") == "free"


def test_what_was_left_is_done_again_by_the_next_one_if_it_was_interrupted() -> None:
    done: list[str] = []
    steps = Steps(lambda now: None)

    def inner(what: str, now: float) -> None:
        done.append(what)
        if len(done) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.take(lambda now: steps.surely(inner, "inner"))
    assert steps.take(lambda now: "free") == "free"
    assert done == ["inner", "inner"]


def test_other_threads_wait_for_the_end_of_a_step() -> None:
    steps = Steps(lambda now: None)
    inside, go = threading.Event(), threading.Event()
    order: list[str] = []

    def slow(now: float) -> None:
        inside.set()
        assert go.wait(10.0)
        order.append("slow")

    first = threading.Thread(target=steps.take, args=(slow,), name="first")
    second = threading.Thread(target=steps.take, args=(lambda now: order.append("second"),), name="second")
    first.start()
    assert inside.wait(10.0)
    second.start()
    go.set()
    first.join(10.0)
    second.join(10.0)
    assert order == ["slow", "second"]


def test_a_bell_that_was_rung_before_the_wait_is_heard_and_one_that_is_not_is_waited_for_in_time() -> None:
    bell = Bell()
    bell.set()
    bell.wait(None)
    bell.wait(0.01)
