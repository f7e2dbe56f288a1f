"""A worker is interrupted from outside, at one place after the other, from its first step to its last.

Such an exception (Ctrl-C in a thread, the time limit of a job queue) comes up where a function is entered and where a
call returns, so it is raised at each of these places that the worker's thread passes, the first time and the last time
that it passes there: a run for each. It has messages in its run then, one on the wire and one behind it. Whatever is
hit, the messages are told of once and truly, those that were not hit are sent, nothing is left behind, and nobody waits
for longer than he has to.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import _GeneratorContextManager
from types import FrameType
from typing import Any

import pytest

import threadmail
from tests.detsched import DPOR, run_once
from tests.detsched.oracle import SENT
from tests.proof.scenarios_lanes import lanes_alone
from tests.proof.stage import IMMEDIATELY
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.job import Job
from threadmail._dispatch.worker import Worker
from threadmail._runtime.deadline import NEVER

_PACKAGE = threadmail.__path__[0]

#: What the interrupted moment may cost: one in the numbers, a token, the farewell of a connection (the socket of an
#: object that nobody has is closed by the interpreter; the model's is not); a doubt, where it comes between the note
#: that the end of data leaves and the write of it: nobody can do both at once.
_COSTS = {
    "a connection was left open",
    "connections were counted wrongly",
    "in doubt, though its end of data was never written",
    "more connections than allowed: 2",
    "outcomes were counted wrongly",
    "tokens were lost or won",
}


class Interrupt(BaseException):
    """Comes from outside."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


class Interrupter:
    """Passes through the worker's thread, and interrupts it at one place; `places` are those it has seen.

    `struck` is the place of this run. That it is the one of the same number in another run is likely, not certain: what
    is made once, and what the garbage collector does, comes now and then.
    """

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.struck: Any = None
        self.places: list[Any] = []

    def run(self, dispatcher: Dispatcher, worker: Worker) -> None:
        def look(frame: FrameType, event: str, called: Any) -> None:
            if not _is_place(frame, event):
                return
            # Its name alone: a method of a list, say, would keep what is in the list.
            place = (frame.f_code, frame.f_lineno, event, getattr(called, "__name__", ""))
            if self.at == len(self.places):
                sys.setprofile(None)
                self.struck = place
                raise Interrupt
            self.places.append(place)

        sys.setprofile(look)
        try:
            dispatcher._starter.work(worker)
        except Interrupt:
            pass  # where the worker cannot help itself the executor's future says so
        finally:
            sys.setprofile(None)
        dispatcher._starter._over(worker, None)


def _is_place(frame: FrameType, event: str) -> bool:
    """Within the package, and where it enters the functions of others.

    But locks, which are the interpreter's own; what is called when an object goes, where exceptions are lost; and the
    end of a `with` over a generator: that is closed when the exception is let go of, which the model does too late.
    """
    if event not in ("call", "c_return"):
        return False
    if frame.f_code.co_filename.startswith(_PACKAGE):
        return True
    if any(frame.f_code is getattr(callback, "__code__", None) for callback in gc.callbacks):
        return False  # Hypothesis has one, which the collector calls
    back = frame.f_back
    from_package = back is not None and back.f_code.co_filename.startswith(_PACKAGE)
    if not from_package or frame.f_code is _GeneratorContextManager.__exit__.__code__:
        return False
    return event == "call" and not frame.f_code.co_filename.endswith(("primitives.py", "_weakrefset.py"))


def interrupted(interrupter: Interrupter) -> list[str]:
    """One run. Returns what went wrong."""
    took: list[float] = []

    def closer(dispatcher: Dispatcher, _: list[Job]) -> None:
        begun = time.monotonic()
        dispatcher.close(drain=True, end=NEVER)
        took.append(time.monotonic() - begun)

    program = lanes_alone(1, 3, "PIPELINING", failures=["MailError"], others=[closer], body=interrupter.run)
    scheduler, verdict = run_once(program, DPOR(), timeouts=0)
    assert verdict is not None
    found = [violation for violation in verdict.violations if violation not in _COSTS]
    if scheduler.ending is None:
        outcome: Any = verdict.outcome
        reports = outcome[0][1]
        if sum(outcome != SENT for _, outcome, _ in reports) > 2:
            found.append("more messages were hit than are under way at one time")
        if took[0] > IMMEDIATELY:
            found.append(f"somebody waited for {took[0]:g} s")
    return found


def test_whatever_is_interrupted_the_others_are_sent_and_nobody_waits() -> None:
    watcher = Interrupter(None)
    assert interrupted(watcher) == []
    numbers: dict[Any, list[int]] = {}
    for number, place in enumerate(watcher.places):
        numbers.setdefault(place, []).append(number)
    assert len(numbers) > 250, "fewer places than there were"
    struck, wrong = set(), {}
    for number in sorted({each for passed in numbers.values() for each in (passed[0], passed[-1])}):
        interrupter = Interrupter(number)
        found = interrupted(interrupter)
        struck.add(interrupter.struck)
        if interrupter.struck is None:
            assert found == []
        if found:
            wrong[interrupter.struck] = found
    assert wrong == {}
    assert len(struck) > 250, "fewer were struck than there were"
