"""A signal handler, or a finaliser, calls the sender in the middle of the same thread's own call of it.

It may come up where a function is entered and where a call returns: inside any step, with the dispatcher's lock held,
with a worker's, in the middle of starting a thread. So the handler is called at each of these places that a caller's
thread passes, in turn: a run for each. Whatever it interrupts and whatever it does (look, submit, wait, cancel, close,
raise), nothing hangs, every message is told of once, and at the end nothing is left behind.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import threadmail
from tests.detsched import DPOR, Run, run_once
from tests.detsched.modelserver import ModelServer
from tests.proof.scenario import CONFIG, LETTER, no_exit_hook
from tests.proof.stage import Threads
from threadmail import MailError, Receipt, RetryPolicy, ThreadedSender

_OWN = threadmail.__path__[0]
_EXECUTOR = str(Path(str(futures.__file__)).parent)


class Interrupt(BaseException):
    """What a handler raises."""


class Handler:
    """Comes up at one place of the caller's thread; `places` are those it has seen."""

    def __init__(self, act: Callable[[ThreadedSender, list[Any]], object], at: int | None) -> None:
        self.act = act
        self.at = at
        self.places: list[Any] = []

    def over(self, sender: ThreadedSender, given: list[Any], program: Callable[[], None]) -> None:
        def look(frame: FrameType, event: str, called: Any) -> None:
            if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith((_OWN, _EXECUTOR)):
                return
            if self.at == len(self.places):
                sys.setprofile(None)
                try:
                    self.act(sender, given)
                except MailError:
                    pass  # it is told that this is not the moment, or that there is no sender any more
            self.places.append((frame.f_code, frame.f_lineno, event, getattr(called, "__name__", "")))

        sys.setprofile(look)
        try:
            program()
        except (Interrupt, MailError):
            sys.setprofile(None)
            sender.close(timeout=None)  # a handler that closes in the middle of a step leaves that to another call
        finally:
            sys.setprofile(None)


def nested(handler: Handler) -> list[str]:
    """One run. Returns what went wrong."""
    heard: list[Receipt] = []
    given: list[Any] = []
    made: list[ThreadedSender] = []

    def program(run: Run) -> None:
        run.context.enter_context(no_exit_hook())
        threads = Threads(run, ModelServer(ordered=True), allowed=(MailError,))
        sender = ThreadedSender(
            CONFIG, workers=1, retry=RetryPolicy(base=0.0), rng=random.Random(1), on_receipt=heard.append
        )
        made.append(sender)

        def call() -> None:
            given.append(sender.submit(LETTER))
            given.append(sender.submit(LETTER, deadline=1e6))
            given[1].cancel()
            sender.stats()
            sender.abort(given[0])
            sender.close(drain=False, timeout=None)

        threads.add(lambda: handler.over(sender, given, call))
        # Where the handler closed, the rest of the calls is refused; where it was too late for it, somebody has to.
        threads.at_the_end = list  # type: ignore[method-assign]

    scheduler, verdict = run_once(program, DPOR(), timeouts=0)
    assert verdict is not None
    found = list(verdict.violations)
    schedule = made[0]._dispatcher._schedule
    if scheduler.ending is None:
        found += ["a future was not settled" for future in given if not future.done()]
        struck = handler.act is strikes  # in a `submit`, which may have queued what it was given
        found += ["not each message was told of once"][: not 0 <= len(heard) - len(given) <= struck]
        left = [schedule.workers, schedule.in_flight, schedule.untold, schedule.line, schedule.leaving, len(schedule)]
        found += ["something was left behind"][: any(map(bool, left)) or schedule.idle > 0]
    return found


def submits(sender: ThreadedSender, given: list[Any]) -> None:
    given.append(sender.submit(LETTER))


def waits(sender: ThreadedSender, given: list[Any]) -> None:
    submits(sender, given)
    given[-1].exception(timeout=5.0)


def cancels(sender: ThreadedSender, given: list[Any]) -> None:
    for future in given:
        future.cancel()


def closes(sender: ThreadedSender, given: list[Any]) -> None:
    sender.close(timeout=5.0)


def strikes(sender: ThreadedSender, given: list[Any]) -> None:
    raise Interrupt


def looks(sender: ThreadedSender, given: list[Any]) -> None:
    sender.stats()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("act", [looks, submits, waits, cancels, closes, strikes], ids=lambda act: act.__name__)
def test_whatever_a_signal_handler_interrupts_nothing_hangs(act: Callable[[ThreadedSender, list[Any]], object]) -> None:
    watcher = Handler(act, None)
    assert nested(watcher) == []
    first: dict[Any, int] = {}
    for number, place in enumerate(watcher.places):
        first.setdefault(place, number)
    assert len(first) > 100, "fewer places than there were"
    wrong = {}
    for number in first.values():
        if found := nested(Handler(act, number)):
            wrong[watcher.places[number]] = found
    assert wrong == {}
