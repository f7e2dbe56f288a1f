"""A lane is interrupted from outside, at one place after the other, while a message is aboard.

Such an exception (Ctrl-C in a thread, the time limit of a job queue) comes up where a function is entered and where a
call returns, so it is raised at each of these places that the lane's thread passes, in turn: a run for each. Whatever
it hits, the messages are told of once and truly, those it did not hit are sent, nothing is left behind, and nobody
waits for longer than he has to.
"""

from __future__ import annotations

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
from threadmail._deadline import NEVER
from threadmail._dispatch import Dispatcher
from threadmail._jobs import Job
from threadmail._lane import Lane

_PACKAGE = threadmail.__path__[0]

#: What the interrupted moment may cost: one in the numbers, a token, the farewell of a connection (the socket of an
#: object that nobody has is closed by the interpreter; the model's is not), a second call of `settled` (`Job.told`); a
#: doubt, where it comes between the note that the end of data leaves and the write of it: nobody can do both at once.
_COSTS = {
    "a connection was left open",
    "a job was not told of, or twice",
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
    """Passes through the lane's thread, and interrupts it at one place; `places` are those it has seen."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.places: list[Any] = []

    def run(self, dispatcher: Dispatcher, lane: Lane) -> None:
        def look(frame: FrameType, event: str, called: Any) -> None:
            if not _is_place(frame, event):
                return
            if self.at == len(self.places):
                sys.setprofile(None)
                raise Interrupt
            self.places.append((frame.f_code, frame.f_lineno, event, called))

        sys.setprofile(look)
        try:
            dispatcher._lane(lane)
        except Interrupt:
            pass  # where the lane cannot help itself the executor's future says so
        finally:
            sys.setprofile(None)
        dispatcher._surely_ended(lane)


def _is_place(frame: FrameType, event: str) -> bool:
    """Within the package, and where it enters the functions of others.

    But locks, which are the interpreter's own; what is called when an object goes, where exceptions are lost; and the
    end of a `with` over a generator: that is closed when the exception is let go of, which the model does too late.
    """
    if event not in ("call", "c_return"):
        return False
    if frame.f_code.co_filename.startswith(_PACKAGE):
        return True
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

    program = lanes_alone(
        1, 3, "PIPELINING", failures=["MailError"], others=[closer], body=lambda d, lane: interrupter.run(d, lane)
    )
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
    # From where one is asked aboard to where it asks for the next one.
    begin, end, *_ = (
        n for n, place in enumerate(watcher.places) if place[0] is Dispatcher.follow.__code__ and place[2] == "call"
    )
    assert end - begin > 150, "fewer places than there were"
    wrong = {}
    for number in range(begin, end):
        if found := interrupted(Interrupter(number)):
            wrong[watcher.places[number]] = found
    assert wrong == {}
