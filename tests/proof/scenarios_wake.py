"""Who is woken: workers that wait, each a thread that asks the dispatcher what to do and does nothing else.

One that is told to dial here takes for ever to do so, and one that was given a message sends it for ever: whoever
else there is work for must have been told as well.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from concurrent.futures import Future
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.detsched import Run
from tests.detsched.modelserver import ModelServer
from threadmail import GreetingRefused, LoginRefused, MailError, Receipt, RetryPolicy, Throttle
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.job import Job
from threadmail._dispatch.schedule import DONE, Do
from threadmail._dispatch.worker import Worker
from threadmail._protocol.transaction import Terms, Transaction
from threadmail._runtime.deadline import NEVER, now
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


class _Worker(Worker):
    """As much of one as the dispatcher looks at; its client does nothing."""

    def __init__(self, dispatcher: Dispatcher, *, connected: bool) -> None:
        super().__init__(dispatcher, CONFIG, random.Random(1))
        nothing = SimpleNamespace(opened=0, closed={})
        self.client = SimpleNamespace(is_connected=connected, prefetched=None, stats=lambda: nothing)  # type: ignore[assignment]
        dispatcher._schedule.workers[self] = None

    def take(self) -> Job:
        """Wait for a message, and begin with it; one that was stolen in between is not its own."""
        while True:
            assert self._boss.next(self) is Do.SEND
            with self.lock:
                if (job := self._head()) is not None and self._claimed(job):
                    self._offered = job
                    return job


def _staged(*connected: bool, attempts: int = 5, queue_size: int = 10) -> tuple[Dispatcher, list[_Worker]]:
    """A dispatcher with as many workers as it may have, all of which are the scenario's; whether each is connected."""
    dispatcher = Dispatcher(
        CONFIG,
        workers=len(connected),
        queue_size=queue_size,
        policy=_Again(attempts),
        throttle=Throttle(),
        rng=random.Random(1),
        settle=lambda job: None,
        announce=lambda job: None,
    )
    return dispatcher, [_Worker(dispatcher, connected=each) for each in connected]


def _put(dispatcher: Dispatcher) -> Job:
    job = Job(LETTER, NEVER, dispatcher)
    dispatcher.put(job)
    return job


def _end(dispatcher: Dispatcher) -> None:
    with dispatcher._lock:
        dispatcher._schedule.working = False
        dispatcher._not_empty.notify_all()


def all_may_dial(run: Run) -> None:
    """The server answers a first worker: all that have waited for that may dial now."""
    threads = Threads(run, ModelServer())
    dispatcher, workers = _staged(False, False, False)
    for _ in range(3):
        _put(dispatcher)
    first: list[Any] = []

    def act(worker: _Worker) -> None:
        begun = time.monotonic()
        assert dispatcher.next(worker) is Do.DIAL
        on_time(begun, "to be told")
        if not first:
            first.append(worker)
            dispatcher.dialled(worker, None)

    for worker in workers:
        threads.add(partial(act, worker))


def one_stands(run: Run) -> None:
    """A worker has connected, the next is told that there are enough: the server is not dead, the queue not lost."""
    threads = Threads(run, ModelServer())
    dispatcher, workers = _staged(False, False, attempts=1)
    jobs = [_put(dispatcher) for _ in range(2)]
    stands = threading.Event()

    def first() -> None:
        assert dispatcher.next(workers[0]) is Do.DIAL
        workers[0].client.is_connected = True  # type: ignore[misc]
        dispatcher.dialled(workers[0], None)
        stands.set()
        dispatcher.next(workers[0])

    def second() -> None:
        stands.wait()
        assert dispatcher.next(workers[1]) is Do.DIAL
        dispatcher.dialled(workers[1], GreetingRefused(421, b"4.3.2 enough"))
        assert not any(job.state is DONE for job in jobs), "the queue was given up"

    threads.add(first)
    threads.add(second)


def connected_worker_is_woken(run: Run) -> None:
    """The server refuses the login of one worker, and is asked once more; it has let another one in, which can work."""
    threads = Threads(run, ModelServer())
    dispatcher, (outside, inside) = _staged(False, True)
    breaker = dispatcher._schedule.breaker
    breaker.failed(LoginRefused(535, b"5.7.8 no"), now() - 1e6)
    breaker.ask(now())

    def shut_out() -> None:
        assert dispatcher.next(outside) is Do.END

    def let_in() -> None:
        begun = time.monotonic()
        inside.take()
        on_time(begun, "to be given the message")
        _end(dispatcher)

    threads.add(shut_out)
    threads.add(let_in)
    threads.add(lambda: _put(dispatcher))


def interrupted_before(run: Run) -> None:
    """A worker is interrupted with a message that it has not begun: another one, which sleeps, has it at once."""
    threads = Threads(run, ModelServer())
    dispatcher, (first, second) = _staged(True, True)
    run.context.enter_context(mock.patch.object(dispatcher._starter, "wanted", return_value=False))
    job = _put(dispatcher)
    assert dispatcher.next(first) is Do.SEND

    def other() -> None:
        begun = time.monotonic()
        assert second.take() is job
        on_time(begun, "to be given what the other one left")

    threads.add(other)
    threads.add(lambda: dispatcher.ended(first))


def interrupted_with_two(run: Run) -> None:
    """A worker is interrupted before a word of its two messages is written: two that sleep have one each at once."""
    threads = Threads(run, ModelServer())
    dispatcher, (first, *others) = _staged(True, True, True)
    run.context.enter_context(mock.patch.object(dispatcher._starter, "wanted", return_value=False))
    _put(dispatcher)
    first.take()
    _put(dispatcher)
    assert first._follow() is not None

    def other(worker: _Worker) -> None:
        begun = time.monotonic()
        worker.take()
        on_time(begun, "to be given what the other one left")

    for worker in others:
        threads.add(partial(other, worker))
    threads.add(lambda: dispatcher.ended(first))


def all_are_told_of_the_end(run: Run) -> None:
    """A sender is closed, and none of its workers sleeps on: one may be long about its farewell, and so is none yet."""
    threads = Threads(run, ModelServer())
    dispatcher, workers = _staged(True, True)

    def sleep(worker: _Worker) -> None:
        begun = time.monotonic()
        assert dispatcher.next(worker) is Do.END
        on_time(begun, "to be told of the end")

    for worker in workers:
        threads.add(partial(sleep, worker))
    threads.add(lambda: dispatcher.close(drain=True, end=NEVER))


def start_is_interrupted(run: Run) -> None:
    """Who starts the only worker is interrupted in it, while another one queues a message: there is one in the end."""
    threads = Threads(run, ModelServer())
    dispatcher, _ = _staged(True)
    schedule, started = dispatcher._schedule, [0]
    schedule.workers.clear()

    def submit(*_: object) -> Future[None]:
        started[0] += 1
        if started[0] == 1:
            raise KeyboardInterrupt
        return Future()

    dispatcher._starter._executors = [SimpleNamespace(submit=submit)]  # type: ignore[list-item]

    def put() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            _put(dispatcher)

    threads.add(put)
    threads.add(put)
    threads.at_the_end = lambda: [] if len(schedule.workers) == 1 else [f"{len(schedule.workers)} workers"]  # type: ignore[method-assign]


def interrupted_in_the_midst(run: Run) -> None:
    """A worker is interrupted with a message that it has begun: that one is told of, and who closes waits no longer."""
    threads = Threads(run, ModelServer())
    dispatcher, (worker,) = _staged(True)
    job = _put(dispatcher)
    worker.take()
    worker._claim(Transaction(job.envelope, Terms()))

    def closer() -> None:
        begun = time.monotonic()
        dispatcher.close(drain=True, end=NEVER)
        on_time(begun, "close()")

    threads.add(closer)
    threads.add(lambda: dispatcher.ended(worker))
    threads.at_the_end = lambda: [] if job.receipt is not None else ["a message was forgotten"]  # type: ignore[method-assign]


def retry_is_known(run: Run) -> None:
    """A message is put off and its worker given another one: one that slept meanwhile takes it when it is due.

    `notify` wakes any thread that waits, so the documentation: here the one that came last.
    """
    threads = Threads(run, ModelServer())
    dispatcher, (busy, other) = _staged(True, True)
    real_notify = threading.Condition.notify

    def notify(condition: Any, n: int = 1) -> None:
        condition._waiters.rotate(n)
        real_notify(condition, n)

    run.context.enter_context(mock.patch.object(threading.Condition, "notify", notify))
    dispatcher._schedule.breaker.answered()  # the server is there: of a message one worker is told, not all of them
    job = _put(dispatcher)
    assert busy.take() is job
    tried = threading.Event()
    taken: dict[object, float] = {}

    def take(worker: _Worker) -> None:
        got = worker.take()
        taken[got] = now()

    def put_off() -> None:
        error = MailError("later", phase=Phase.MAIL, transient=True)
        dispatcher.judged(busy, job, Receipt.not_sent(LETTER, error, attempts=1))
        tried.set()
        take(busy)

    def put_another() -> None:
        tried.wait()
        _put(dispatcher)

    for act in (lambda: take(other), put_off, put_another):
        threads.add(act)
    due = now() + PAUSE
    threads.at_the_end = lambda: [] if taken.get(job, inf) < due + IMMEDIATELY else ["a retry was late"]  # type: ignore[method-assign]


def place_is_told(run: Run) -> None:
    """A worker takes messages out of a queue that is full, first one by itself, then one that is to follow behind it.

    Each time a caller who waits for the place has it at once.
    """
    threads = Threads(run, ModelServer())
    dispatcher, (worker,) = _staged(True, queue_size=1)
    _put(dispatcher)

    def take_two() -> None:
        worker.take()
        placed.wait()
        assert worker._follow() is not None

    def put_two() -> None:
        _put(dispatcher)
        placed.set()
        _put(dispatcher)

    placed = threading.Event()
    threads.add(take_two)
    threads.add(put_two)


SMALL = [
    of_sender("lanes, who waits for a place is told", place_is_told),
    of_sender("lanes, all may dial", all_may_dial),
    of_sender("lanes, one connects and one does not", one_stands),
    of_sender("lanes, one of two can work", connected_worker_is_woken),
    of_sender("lanes, one is interrupted before it begins", interrupted_before),
    of_sender("lanes, one is interrupted with two messages", interrupted_with_two, limit=300),
    of_sender("lanes, the start of one is interrupted", start_is_interrupted, limit=300),
    of_sender("lanes, all are told of the end", all_are_told_of_the_end, limit=300),
    of_sender("lanes, one is interrupted in the midst", interrupted_in_the_midst),
    of_sender("lanes, a retry is known", retry_is_known),
]
