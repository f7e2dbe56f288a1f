"""Who is woken: lanes that wait, each a thread that asks the dispatcher what to do and does nothing else.

A lane that is told to dial here takes for ever to do so, and one that was given a message sends it for ever: whoever
else there is work for must have been told as well.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.detsched import Run
from tests.detsched.modelserver import ModelServer
from threadmail import GreetingRefused, LoginRefused, MailError, Receipt, RetryPolicy, Throttle
from threadmail._deadline import NEVER, now
from threadmail._dispatch import Dispatcher
from threadmail._jobs import Job
from threadmail._lane import Do, LaneLife
from threadmail.errors import Phase

from .scenario import CONFIG, LETTER, of_sender
from .stage import IMMEDIATELY, Threads, on_time

PAUSE = 5.0  # seconds until the second attempt


class _Again(RetryPolicy):
    """Tries everything again, after PAUSE."""

    def recipients(self, receipt: Receipt) -> tuple[str, ...]:
        return receipt.recipients

    def next_attempt(self, receipt: Receipt, elapsed: float, rng: random.Random, *, spared: int = 0) -> float:
        return PAUSE


def _dispatcher(lanes: int, attempts: int = 5) -> Dispatcher:
    """With as many lanes as it may have, all of which are the scenario's."""
    dispatcher = Dispatcher(
        CONFIG,
        workers=lanes,
        queue_size=10,
        policy=_Again(attempts),
        throttle=Throttle(),
        rng=random.Random(1),
        settled=lambda job: None,
    )
    dispatcher._lane_count = lanes
    return dispatcher


class _Lane:
    """As much of a lane as the dispatcher looks at."""

    def __init__(self, *, connected: bool) -> None:
        nothing = SimpleNamespace(opened=0, closed={})
        self.client = SimpleNamespace(is_connected=connected, aboard=None, stats=lambda: nothing)
        self.connected = False
        self.life = LaneLife.RUNNING
        self.needed_until = 0.0
        self.aboard: deque[Job] = deque()
        self.finished: list[Job] = []


def _lane(*, connected: bool) -> Any:
    return _Lane(connected=connected)


def all_may_dial(run: Run) -> None:
    """The server answers a first lane: all that have waited for that may dial now."""
    threads = Threads(run, ModelServer())
    dispatcher = _dispatcher(3)
    for _ in range(3):
        dispatcher.put(Job(LETTER, NEVER, dispatcher))
    first: list[Any] = []

    def act() -> None:
        lane = _lane(connected=False)
        begun = time.monotonic()
        assert dispatcher.next(lane) is Do.DIAL
        on_time(begun, "to be told")
        if not first:
            first.append(lane)
            dispatcher.dialled(lane, None)

    for _ in range(3):
        threads.add(act)


def one_stands(run: Run) -> None:
    """A lane has connected, the next one is told that there are enough: the server is not dead, the queue not lost."""
    threads = Threads(run, ModelServer())
    dispatcher = _dispatcher(2, attempts=1)
    for _ in range(2):
        dispatcher.put(Job(LETTER, NEVER, dispatcher))
    stands = threading.Event()

    def first() -> None:
        lane = _lane(connected=False)
        assert dispatcher.next(lane) is Do.DIAL
        lane.client.is_connected = True
        dispatcher.dialled(lane, None)
        stands.set()
        dispatcher.next(lane)

    def second() -> None:
        stands.wait()
        lane = _lane(connected=False)
        assert dispatcher.next(lane) is Do.DIAL
        assert not dispatcher.dialled(lane, GreetingRefused(421, b"4.3.2 enough")), "the queue was given up"

    threads.add(first)
    threads.add(second)


def connected_lane_is_woken(run: Run) -> None:
    """The server refuses the login of one lane, and is asked once more; it has let another one in, which can work."""
    threads = Threads(run, ModelServer())
    dispatcher = _dispatcher(2)
    dispatcher._gate.failed(LoginRefused(535, b"5.7.8 no"), now() - 1e6)
    dispatcher._gate.ask(now())

    def shut_out() -> None:
        assert dispatcher.next(_lane(connected=False)) is Do.END

    def let_in() -> None:
        begun = time.monotonic()
        assert isinstance(dispatcher.next(_lane(connected=True)), Job)
        on_time(begun, "to be given the message")
        with dispatcher._lock:
            dispatcher._working = False
            dispatcher._work.notify_all()

    threads.add(shut_out)
    threads.add(let_in)
    threads.add(lambda: dispatcher.put(Job(LETTER, NEVER, dispatcher)))


def interrupted(run: Run) -> None:
    """A lane is interrupted with a message in its hands, while another one asks what to do."""
    threads = Threads(run, ModelServer())
    dispatcher = _dispatcher(2)
    dispatcher.put(Job(LETTER, NEVER, dispatcher))
    lane = _lane(connected=True)
    job = dispatcher.next(lane)
    assert isinstance(job, Job)

    def other() -> None:
        assert dispatcher.next(_lane(connected=True)) is Do.END

    def end() -> None:
        dispatcher.ended(lane)
        with dispatcher._lock:
            dispatcher._working = False
            dispatcher._work.notify_all()

    threads.add(other)
    threads.add(end)
    threads.at_the_end = lambda: [] if job.receipt is not None else ["a message was forgotten"]  # type: ignore[method-assign]


def retry_is_known(run: Run) -> None:
    """A message is put off and its lane given another one: a lane that slept meanwhile takes it when it is due.

    `notify` wakes any thread that waits, so the documentation: here the one that came last.
    """
    threads = Threads(run, ModelServer())
    dispatcher = _dispatcher(2)
    dispatcher._gate.succeeded()
    real_notify = threading.Condition.notify

    def notify(condition: Any, n: int = 1) -> None:
        condition._waiters.rotate(n)
        real_notify(condition, n)

    run.context.enter_context(mock.patch.object(threading.Condition, "notify", notify))
    dispatcher.put(Job(LETTER, NEVER, dispatcher))
    busy = _lane(connected=True)
    job = dispatcher.next(busy)
    assert isinstance(job, Job)
    tried = threading.Event()
    taken: dict[object, float] = {}

    def take(lane: Any) -> None:
        given = dispatcher.next(lane)
        taken[given] = now()

    def put_off() -> None:
        error = MailError("later", phase=Phase.MAIL, transient=True)
        dispatcher.judge(job, Receipt.not_sent(LETTER, error, attempts=1))
        tried.set()
        take(busy)

    def idle() -> None:
        take(_lane(connected=True))

    def put_another() -> None:
        tried.wait()
        dispatcher.put(Job(LETTER, NEVER, dispatcher))

    for act in (idle, put_off, put_another):
        threads.add(act)
    due = now() + PAUSE
    threads.at_the_end = lambda: [] if taken[job] < due + IMMEDIATELY else ["a retry was late"]  # type: ignore[method-assign]


def place_is_told(run: Run) -> None:
    """Lanes take messages out of a queue that is full, first one by itself, then one that is to be aboard behind it.

    Each time a caller who waits for the place has it at once.
    """
    threads = Threads(run, ModelServer())
    dispatcher = _dispatcher(1)
    dispatcher.queue_size = 1
    dispatcher.put(Job(LETTER, NEVER, dispatcher))

    def take_two() -> None:
        lane = _lane(connected=True)
        job = dispatcher.next(lane)
        assert isinstance(job, Job)
        placed.wait()
        assert dispatcher.follow(lane, job) is not None

    def put_two() -> None:
        dispatcher.put(Job(LETTER, NEVER, dispatcher))
        placed.set()
        dispatcher.put(Job(LETTER, NEVER, dispatcher))

    placed = threading.Event()
    threads.add(take_two)
    threads.add(put_two)


SMALL = [
    of_sender("lanes, who waits for a place is told", place_is_told),
    of_sender("lanes, all may dial", all_may_dial),
    of_sender("lanes, one connects and one does not", one_stands),
    of_sender("lanes, one of two can work", connected_lane_is_woken),
    of_sender("lanes, one is interrupted", interrupted),
    of_sender("lanes, a retry is known", retry_is_known),
]
