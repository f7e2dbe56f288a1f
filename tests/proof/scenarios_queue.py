"""Promises of the dispatcher's queue: who waits for a place in it, and that no lane sleeps while there is work."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.modelsocket import ModelSocket
from tests.detsched.smtpmodel import Faults
from threadmail import Closed, MailError, Receipt, RetryPolicy, ThreadedSender, Throttle, TimedOut
from threadmail._dispatch.collector import Collector
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.job import Job, JobState
from threadmail._dispatch.stream import ReceiptStream
from threadmail._runtime.deadline import NEVER, Deadline, now
from threadmail._runtime.life import Life

from .scenario import CONFIG, LETTER, no_exit_hook, of_sender
from .scenarios_order import one_lane
from .stage import Threads, on_time


def bare(act: Callable[[_Bare], list[Callable[[], object]]], jobs: int = 2, places: int = 1) -> Program:
    """A dispatcher without lanes, so that nothing but the threads given moves."""

    def program(run: Run) -> None:
        dispatcher = _Bare(jobs, places)
        threads = Threads(run, ModelServer(), allowed=(Closed,))
        threads.at_the_end = lambda: [] if dispatcher.all_told() else ["a job was not settled, or twice"]  # type: ignore[method-assign]
        for each in act(dispatcher):
            threads.add(each)

    return program


class _Bare(Dispatcher):
    def __init__(self, jobs: int, places: int) -> None:
        self.told: list[Job] = []
        super().__init__(
            CONFIG,
            workers=1,
            queue_size=places,
            policy=RetryPolicy(),
            throttle=Throttle(),
            rng=random.Random(1),
            settle=self._settle,
            announce=self._told,
        )
        self._schedule.working = False
        self.jobs = [Job(LETTER, NEVER, self) for _ in range(jobs)]
        self.refused: list[Job] = []
        self.queued = threading.Event()

    def _settle(self, job: Job) -> None:
        assert job.receipt is not None
        job.completion.settle(job, job.receipt)

    def _told(self, job: Job) -> None:
        if not job.told:  # it may be called twice
            job.told = True
            self.told.append(job)

    def add(self, number: int) -> None:
        try:
            self.put(self.jobs[number])
        except Closed:
            self.refused.append(self.jobs[number])
        if number == 0:
            self.queued.set()

    def add_both(self) -> None:
        self.add(0)
        self.add(1)

    def all_told(self) -> bool:
        waiting = [job for job in self.jobs if job.state is JobState.READY and self._closing.life is Life.OPEN]
        told = [*self.told, *self.refused, *waiting]
        return len(told) == len(self.jobs) == len({id(job) for job in told})

    def shut(self) -> None:
        self.close(drain=False, end=NEVER)

    def take_back(self) -> None:
        self.queued.wait()
        assert self.jobs[0].future.cancel()

    def cancel(self) -> None:
        self.queued.wait()
        future = self.jobs[0].future
        if future.cancel():
            assert future.cancelled(), "a message that was cancelled is told otherwise"

    def call_off(self) -> None:
        self.queued.wait()
        if not self.refused:
            self.abort(self.jobs[0])


def cancelled_when_overdue(dispatcher: _Bare) -> list[Callable[[], object]]:
    """Its deadline has passed, which somebody sees to, while somebody else cancels it."""
    dispatcher.jobs[0].end = Deadline(now())
    return [partial(dispatcher.add, 0), dispatcher.cancel, dispatcher.settle_overdue]


def too_late_in_line(dispatcher: _Bare) -> list[Callable[[], object]]:
    """The queue is full and stays so: who waits for a place is told by his deadline, and nothing is queued."""
    dispatcher.add(0)
    dispatcher.jobs[1].end = Deadline.after(1.0)

    def wait() -> None:
        begun = time.monotonic()
        try:
            dispatcher.put(dispatcher.jobs[1])
        except TimedOut:
            dispatcher.refused.append(dispatcher.jobs[1])
        on_time(begun + 1.0, "the wait for a place")
        assert dispatcher.jobs[1].state is JobState.NEW, "a full queue took one more"

    return [wait]


class _InLine(_Bare):
    """A queue of one place, taken; a batch of one message waits for it."""

    def __init__(self, end: Deadline) -> None:
        super().__init__(2, 1)
        self.add(0)
        self.in_line, self.let_in = threading.Event(), threading.Event()
        self.collector = Collector(1, 1, end)
        self.stream = ReceiptStream([LETTER], self.collector, end, lambda: self, lambda receipt: None)

    def put_some(self, jobs: Any, waiter: Any) -> None:
        super().put_some(jobs, waiter)
        (self.in_line if jobs[0][1].state is JobState.NEW else self.let_in).set()


def woken_in_line(run: Run) -> None:
    """A batch waits for a place, and is woken for nothing: who came later gets it no sooner than the batch."""
    dispatcher = _InLine(NEVER)
    threads = Threads(run, ModelServer(), allowed=(Closed,))

    def later() -> None:
        dispatcher.in_line.wait()
        dispatcher.put(dispatcher.jobs[1])
        raise AssertionError("the batch was overtaken")

    def wake() -> None:
        dispatcher.in_line.wait()
        dispatcher.collector.wake()
        assert dispatcher.jobs[0].future.cancel()
        dispatcher.let_in.wait()
        dispatcher.shut()

    threads.add(lambda: list(dispatcher.stream))
    threads.add(later)
    threads.add(wake)


def batch_too_late_in_line(run: Run) -> None:
    """The queue is full and stays so: a batch that waits for a place is over by its deadline."""
    dispatcher = _InLine(Deadline.after(1.0))
    threads = Threads(run, ModelServer())

    def act() -> None:
        begun = time.monotonic()
        (receipt,) = dispatcher.stream
        on_time(begun + 1.0, "the batch")
        assert isinstance(receipt.error, TimedOut)

    threads.add(act)


def side_by_side(lanes: int) -> Program:
    """As many lanes as messages, and each callback waits for all others: no lane sleeps while there is work for it."""

    def program(run: Run) -> None:
        run.context.enter_context(no_exit_hook())
        threads = Threads(run, ModelServer(ordered=True))
        sender = ThreadedSender(CONFIG, workers=lanes, rng=random.Random(1), on_receipt=lambda receipt: arrive())
        arrived = [0]
        all_there = threading.Event()

        def arrive() -> None:
            arrived[0] += 1
            if arrived[0] == lanes:
                all_there.set()
            all_there.wait()

        def act() -> None:
            begun = time.monotonic()
            futures = [sender.submit(LETTER) for _ in range(lanes)]
            for future in futures:
                future.result()
            on_time(begun, "sending")
            begun = time.monotonic()
            sender.close(timeout=None)
            on_time(begun, "close()")

        threads.add(act)

    return program


def waiting_for_a_place(callers: int) -> Program:
    """The queue is full, the lane stuck in a callback: callers who wait for a place are told at once of `close()`."""

    def program(run: Run) -> None:
        threads = Threads(run, ModelServer(ordered=True))
        stuck, filled, told = threading.Event(), threading.Event(), threading.Semaphore(0)
        first = [True]

        def callback(receipt: Receipt) -> None:
            if first[0]:
                first[0] = False
                stuck.set()
                for _ in range(callers):
                    told.acquire()

        sender = one_lane(run, queue_size=1, on_receipt=callback)

        def fill() -> None:
            sender.submit(LETTER)
            stuck.wait()
            sender.submit(LETTER)
            filled.set()

        def call() -> None:
            filled.wait()
            with contextlib.suppress(Closed):
                sender.submit(LETTER)
            told.release()

        def close() -> None:
            filled.wait()
            sender.close(timeout=None)

        threads.add(fill)
        for _ in range(callers):
            threads.add(call)
        threads.add(close)

    return program


def queue_ended(callers: int) -> Program:
    """The server refuses for good: the queue is emptied, and all who waited for a place in it have one at once."""

    def program(run: Run) -> None:
        filled, placed = threading.Event(), threading.Semaphore(0)

        class Dead(ModelServer):
            """Answers nobody before the queue is full: else only a part of it would be emptied, and not all placed."""

            def create_connection(self, *args: Any, **settings: Any) -> ModelSocket:
                filled.wait()
                return super().create_connection(*args, **settings)

        dead = Dead(faults=Faults(refuse_connects=frozenset(range(9))))
        threads = Threads(run, dead, allowed=(MailError,))
        run.context.enter_context(no_exit_hook())
        first = [True]

        def callback(receipt: Receipt) -> None:
            if first[0]:
                first[0] = False
                for _ in range(callers):
                    placed.acquire()

        sender = ThreadedSender(
            CONFIG,
            workers=1,
            queue_size=callers,
            retry=RetryPolicy(attempts=1, base=0.0),
            rng=random.Random(1),
            on_receipt=callback,
        )
        left = [callers]

        def fill() -> None:
            for _ in range(callers):
                sender.submit(LETTER)
            filled.set()

        def call() -> None:
            filled.wait()
            sender.submit(LETTER)
            placed.release()
            left[0] -= 1
            if not left[0]:
                sender.close(timeout=None)

        threads.add(fill)
        for _ in range(callers):
            threads.add(call)

    return program


def queue_expired(callers: int) -> Program:
    """The throttle lets nobody through: who runs out of time leaves, and who waited for his place has it at once."""

    def program(run: Run) -> None:
        threads = Threads(run, ModelServer(ordered=True), allowed=(MailError,))
        filled, placed = threading.Event(), threading.Semaphore(0)
        first = [True]

        def callback(receipt: Receipt) -> None:
            if first[0]:
                first[0] = False
                for _ in range(callers):
                    placed.acquire()

        throttle = Throttle()
        throttle.pause(5.0)
        sender = one_lane(run, queue_size=callers, on_receipt=callback, throttle=throttle)
        left = [callers]

        def fill() -> None:
            for _ in range(callers):
                sender.submit(LETTER, deadline=1.0)
            filled.set()

        def call() -> None:
            filled.wait()
            sender.submit(LETTER)
            placed.release()
            left[0] -= 1
            if not left[0]:
                sender.close(timeout=None)

        threads.add(fill)
        for _ in range(callers):
            threads.add(call)

    return program


_BARE: dict[str, Callable[[_Bare], list[Callable[[], object]]]] = {
    "closed while two wait for one place": lambda d: [partial(d.add, 0), partial(d.add, 1), d.shut],
    "a place comes free by cancel": lambda d: [d.add_both, d.take_back],
    "cancelled by two": lambda d: [d.add_both, d.cancel, d.cancel],
    "closed beside a call off": lambda d: [partial(d.add, 0), d.call_off, d.shut, partial(d.add, 1)],
}


SMALL = [
    *(of_sender(f"bare, {name}", bare(act), limit=300) for name, act in _BARE.items()),
    of_sender("bare, cancelled when it is overdue", bare(cancelled_when_overdue, jobs=1)),
    of_sender("bare, too late in line", bare(too_late_in_line)),
    of_sender("bare, a batch is woken in line for nothing", woken_in_line, limit=300),
    of_sender("bare, a batch that is too late in line", batch_too_late_in_line),
    of_sender("two lanes side by side", side_by_side(2), limit=300),
    of_sender("three lanes side by side", side_by_side(3), limit=300),
    of_sender("closed while a caller waits for a place", waiting_for_a_place(1), limit=300),
    of_sender("closed while two callers wait for a place", waiting_for_a_place(2), limit=300),
    of_sender("a caller waits for a place, the server is dead", queue_ended(1), limit=300),
    of_sender("two callers wait for a place, the server is dead", queue_ended(2), limit=300),
    of_sender("a caller waits for a place of a message that runs out of time", queue_expired(1), limit=300),
    of_sender("two callers wait for places of messages that run out of time", queue_expired(2), limit=300),
]
