"""Promises of the throttle: a token goes to one thread, and nothing that was told it is forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.detsched import Run, Verdict
from tests.detsched.explore import Program
from threadmail import Throttle

from .scenario import QUIET, Scenario


def throttled(
    make: Callable[[], Throttle],
    acts: list[Callable[[Throttle], object]],
    check: Callable[[Throttle, list[Any]], object],
) -> Program:
    """Threads use one throttle; `check` gets what their calls returned."""

    def program(run: Run) -> None:
        throttle = make()
        results: list[Any] = []
        for act in acts:
            run.thread(partial(_keep, results, act, throttle))
        run.judge(
            lambda: Verdict(() if run.scheduler.ending or check(throttle, results) else ("wrong number of tokens",))
        )

    return program


def _keep(results: list[Any], act: Callable[[Throttle], object], throttle: Throttle) -> None:
    results.append(act(throttle))


def _drained() -> Throttle:
    throttle = Throttle(3, per=1e9, burst=3)
    while throttle.take() == 0.0:
        pass
    return throttle


def _taken() -> Throttle:
    throttle = Throttle(1, per=10)
    throttle.take()
    return throttle


def _left(throttle: Throttle) -> int:
    return next(n for n in range(9) if throttle.take() != 0.0)


def acquired_at(throttle: Throttle) -> float:
    begun = time.monotonic()
    throttle.acquire()
    return time.monotonic() - begun


def given_back_and_taken(throttle: Throttle) -> float:
    throttle.give_back()
    return throttle.take()


def _throttle(
    name: str,
    make: Callable[[], Throttle],
    acts: list[Any],
    check: Callable[[Throttle, list[Any]], bool],
    **options: int,
) -> Scenario:
    return Scenario(
        f"throttle, {name}", throttled(make, acts, check), classes=(Throttle,), options={**QUIET, **options}
    )


SMALL = [
    _throttle(
        "two takes of one token", lambda: Throttle(1, per=10), 2 * [Throttle.take], lambda t, got: got.count(0.0) == 1
    ),
    _throttle("two tokens given back", _drained, 2 * [Throttle.give_back], lambda t, got: _left(t) == 2),
    _throttle(
        "two pauses",
        lambda: Throttle(),
        [lambda t: t.pause(10), lambda t: t.pause(20)],
        lambda t, got: t.take() > 15,
    ),
    _throttle(
        "two wait for a token",
        _taken,
        2 * [acquired_at],
        lambda t, got: [round(seconds) for seconds in sorted(got)] == [10, 20] and not t._line,
    ),
    _throttle(
        "three wait for a token",
        lambda: Throttle(1, per=10),
        3 * [acquired_at],
        lambda t, got: [round(seconds) for seconds in sorted(got)] == [0, 10, 20] and not t._line,
        limit=400,  # of 10,896: what a third one adds to two is a place in the middle
    ),
    _throttle(
        "two wait for a token, and one is given back",
        _taken,
        [acquired_at, acquired_at, Throttle.give_back],
        lambda t, got: sorted(round(seconds) for seconds in got if seconds is not None) in ([0, 10], [10, 20]),
        limit=400,
    ),
    _throttle(
        "a token given back, and taken before the one it woke could",
        _taken,
        [acquired_at, given_back_and_taken],
        lambda t, got: sorted(map(round, got)) == [0, 10],  # one of them has it, and the other one waits, or would
    ),
]
