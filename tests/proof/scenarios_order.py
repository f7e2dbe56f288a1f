"""Promises of a sender with one lane: messages in time, in turn, and settled however it ends."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.smtpmodel import Faults
from tests.support.keeper import Keeper
from threadmail import (
    Closed,
    LoginRefused,
    MailError,
    Outcome,
    Receipt,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Throttle,
    TimedOut,
)
from threadmail._dispatch.job import SendFuture

from .scenario import CONFIG, LETTER, no_exit_hook, of_sender, small
from .stage import EXTENSIONS, MORE_COMMANDS, Later, Server, Threads, no_thread_left, on_time


def one_lane(run: Run, **settings: Any) -> ThreadedSender:
    run.context.enter_context(no_exit_hook())
    if callable(settings.get("throttle")):
        settings["throttle"] = settings["throttle"]()
    settings.setdefault("retry", RetryPolicy(base=0.0))
    return ThreadedSender(CONFIG, workers=1, rng=random.Random(1), **settings)


def _paused() -> Throttle:
    throttle = Throttle()
    throttle.pause(10.0)
    return throttle


def _no_first_dial() -> ModelServer:
    return ModelServer(faults=Faults(refuse_connects=frozenset([0])))


def gives_up_in_the_queue(run: Run) -> None:
    """`send` with a deadline, behind a message whose callback takes for ever: TimedOut, in time."""
    threads = Threads(run, ModelServer(bound=1))
    released = threading.Event()
    sender = one_lane(run, on_receipt=lambda receipt: released.wait())

    def act() -> None:
        sender.submit(LETTER)
        try:
            sender.send(LETTER, deadline=5)
        except TimedOut:
            pass
        else:
            raise AssertionError("sent after its deadline")
        finally:
            released.set()
            sender.close(timeout=None)

    threads.add(act)


def drops_what_hangs(run: Run) -> None:
    """`send` with a deadline, on a connection whose own time-outs never fire: the connection is dropped."""
    server = Server(bound=1)
    server.mute_from_mail = True
    threads = Threads(run, server, allowed=(MailError,))
    sender = one_lane(run)

    def act() -> None:
        try:
            sender.send(LETTER, deadline=5)
        finally:
            sender.close(timeout=None)

    threads.add(act)


def sent(
    act: Callable[[ThreadedSender, Callable[[], None]], object],
    *others: Callable[[ThreadedSender], object],
    server: Callable[[], ModelServer] = lambda: ModelServer(ordered=True),
    allowed: tuple[type[Exception], ...] = (),
    **settings: Any,
) -> Program:
    """`act` on a thread of its own, which closes the sender at its end by the function it is given; that takes no time.

    `others` run beside it when `act` has submitted something and set the sender's `submitted`.
    """

    def program(run: Run) -> None:
        threads = Threads(run, server(), allowed=allowed)
        sender = one_lane(run, **settings)
        sender.submitted = threading.Event()  # type: ignore[attr-defined]

        def close() -> None:
            begun = time.monotonic()
            sender.close(timeout=None)
            on_time(begun, "close()")
            no_thread_left()
            assert all(c.closed for c in threads.server.connections), "close() left a connection open"

        def wait_and(other: Callable[[ThreadedSender], object]) -> None:
            sender.submitted.wait()  # type: ignore[attr-defined]
            other(sender)

        threads.add(lambda: act(sender, close))
        for other in others:
            threads.add(partial(wait_and, other))

    return program


def one_after_the_other(sender: ThreadedSender, close: Callable[[], None]) -> None:
    """The second message finds an idle lane, which sends it at once."""
    sender.send(LETTER)
    begun = time.monotonic()
    sender.send(LETTER)
    on_time(begun, "the second message")
    close()


def closed_at_once(messages: int, sender: ThreadedSender, close: Callable[[], None]) -> None:
    """The queue is worked off by `close`."""
    futures = [sender.submit(LETTER) for _ in range(messages)]
    close()
    for future in futures:
        future.result(0)


def after_a_failure(sender: ThreadedSender, close: Callable[[], None]) -> None:
    """The first message ends with the failed dial, the second one finds a server again."""
    with contextlib.suppress(MailError):
        sender.send(LETTER)
    begun = time.monotonic()
    with contextlib.suppress(MailError):
        sender.send(LETTER)
    on_time(begun, "the second message")
    close()


def submit_and_close(sender: ThreadedSender, close: Callable[[], None]) -> None:
    sender.future = sender.submit(LETTER)  # type: ignore[attr-defined]
    sender.submitted.set()  # type: ignore[attr-defined]
    close()


def put_off_while_closing(sender: ThreadedSender, close: Callable[[], None]) -> None:
    """A message is put off by the server while the sender is closed without draining: its future is settled too."""
    future = sender.submit(LETTER)
    sender.submitted.set()  # type: ignore[attr-defined]
    with contextlib.suppress(MailError):
        future.result()


def settled_by_its_deadline(run: Run) -> None:
    """The only lane is kept by a callback: who waits for a message in the queue is told by its deadline."""
    threads = Threads(run, ModelServer(ordered=True))
    stuck, released = threading.Event(), threading.Event()

    def callback(receipt: Receipt) -> None:
        if receipt.outcome is Outcome.SENT:
            stuck.set()
            released.wait()

    sender = one_lane(run, on_receipt=callback)

    def act() -> None:
        sender.submit(LETTER)
        stuck.wait()
        future = sender.submit(LETTER, deadline=1.0)
        begun = time.monotonic()
        with contextlib.suppress(TimedOut):
            future.result()
        on_time(begun + 1.0, "the future")
        released.set()
        sender.close(timeout=None)

    threads.add(act)


def put_off(sender: ThreadedSender, close: Callable[[], None]) -> None:
    """A message is put off by the server, and sent at the next attempt."""
    sender.send(LETTER)
    assert sender.stats().retries == 1, "the attempts were counted wrongly"
    close()


def close_without_drain(sender: ThreadedSender) -> None:
    sender.close(drain=False, timeout=None)


def cancel(sender: ThreadedSender) -> None:
    sender.future.cancel()  # type: ignore[attr-defined]


def look(sender: ThreadedSender) -> None:
    """What is counted at any moment: one message, one connection."""
    stats = sender.stats()
    assert stats.queued + stats.retrying + stats.in_flight <= 1, "a message was counted twice"
    assert stats.queued + stats.retrying + sum(stats.outcomes.values()) <= 1, "a settled message is still to be sent"
    assert stats.opened <= 1, "a connection was counted twice"


def no_lane_starts(run: Run) -> None:
    """The interpreter starts no threads any more: `close()` waits for no lane, and the message is told of."""
    threads = Threads(run, ModelServer(), allowed=(MailError,))

    def refuse(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    run.context.enter_context(mock.patch.object(ThreadPoolExecutor, "submit", refuse))
    sender = one_lane(run)

    def act() -> None:
        with contextlib.suppress(Closed):
            sender.submit(LETTER).result()

    threads.add(act)
    threads.add(lambda: sender.close(timeout=None))


def refused_for_good(run: Run) -> None:
    """The login is refused: that message fails, and the next one at once."""
    run.context.enter_context(mock.patch.dict(MORE_COMMANDS, {"AUTH": lambda *_: "535 5.7.8 no"}))
    threads = Threads(run, Server(*EXTENSIONS))
    run.context.enter_context(no_exit_hook())
    config = ServerConfig("127.0.0.1", 25, username="user", password="secret", local_hostname="me", max_age=None)
    sender = ThreadedSender(config, workers=1, rng=random.Random(1))

    def act() -> None:
        for _ in range(2):
            begun = time.monotonic()
            with contextlib.suppress(LoginRefused):
                sender.send(LETTER)
            on_time(begun, "the refusal")
        sender.close(timeout=None)

    threads.add(act)


def settled_again(run: Run) -> None:
    """An exception from outside came in the midst of settling, before those who wait were told: they are at the next.

    Nobody can interrupt a thread here, so what it leaves is made by hand.
    """
    threads = Threads(run, ModelServer())
    future = SendFuture(None, Keeper())  # type: ignore[arg-type]
    receipt = Receipt.not_sent(LETTER, MailError("no"))

    def settle() -> None:
        with future._condition:
            future._result, future._state = receipt, "FINISHED"
        future.settle(None, receipt)  # type: ignore[arg-type]

    threads.add(settle)
    threads.add(future.result)


def called_back_once(run: Run) -> None:
    """Two settle it, a worker and who closes: its callbacks are called by one of them."""
    threads = Threads(run, ModelServer())
    future = SendFuture(None, Keeper())  # type: ignore[arg-type]
    receipt = Receipt.not_sent(LETTER, MailError("no"))
    called: list[object] = []
    future.add_done_callback(called.append)
    job: Any = SimpleNamespace(cancelled=False)
    threads.add(partial(future.settle, job, receipt))
    threads.add(partial(future.settle, job, receipt))

    def wrong() -> list[str]:
        return [] if called == [future] else [f"called back {len(called)} times"]

    threads.at_the_end = wrong  # type: ignore[method-assign]


def told_once(run: Run) -> None:
    """Two tell of one that was settled half; who waits with `as_completed` does not stand to be told twice."""
    threads = Threads(run, ModelServer())
    future = SendFuture(None, Keeper())  # type: ignore[arg-type]
    receipt = Receipt.not_sent(LETTER, MailError("no"))
    half = threading.Event()

    def settle() -> None:
        with future._condition:
            future._result, future._state = receipt, "FINISHED"
        half.set()
        future.settle(None, receipt)  # type: ignore[arg-type]

    def again() -> None:
        half.wait()
        future.settle(None, receipt)  # type: ignore[arg-type]

    threads.add(lambda: list(as_completed([future])))
    threads.add(settle)
    threads.add(again)


def told_in_part(run: Run) -> None:
    """As above, where who waits knew of the future already, and was not woken."""
    threads = Threads(run, ModelServer())
    future = SendFuture(None, Keeper())  # type: ignore[arg-type]
    receipt = Receipt.not_sent(LETTER, MailError("no"))

    def settle() -> None:
        with future._condition:
            future._result, future._state = receipt, "FINISHED"
            for waiter in future._waiters:
                waiter.finished_futures.append(future)
                waiter.num_pending_calls -= 1  # type: ignore[attr-defined]
        future.settle(None, receipt)  # type: ignore[arg-type]

    threads.add(settle)
    threads.add(lambda: wait([future]))


def taken_back_by_two(run: Run) -> None:
    """Who takes a message back, and who closes meanwhile, tell of it in one moment: who waits is told once."""
    threads = Threads(run, ModelServer())
    future = SendFuture(None, Keeper())  # type: ignore[arg-type]
    receipt = Receipt.not_sent(LETTER, MailError("no"))
    future._state = "CANCELLED"

    def settle() -> None:
        future.settle(None, receipt)  # type: ignore[arg-type]

    threads.add(settle)
    threads.add(settle)


def in_batches(callers: int) -> Program:
    """Callers of `send_all` on a queue with one place: each has all its receipts."""

    def program(run: Run) -> None:
        threads = Threads(run, ModelServer(ordered=True))
        sender = one_lane(run, queue_size=1)
        left = [callers]

        def act() -> None:
            assert [receipt.outcome for receipt in sender.send_all([LETTER, LETTER])] == 2 * [Outcome.SENT]
            left[0] -= 1
            if not left[0]:
                sender.close(timeout=None)

        for _ in range(callers):
            threads.add(act)

    return program


def batch_out_of_time(run: Run) -> None:
    """The only worker is kept by a callback: who waits for a place, and for receipts, is told by his deadline."""
    threads = Threads(run, ModelServer(ordered=True))
    stuck, released = threading.Event(), threading.Event()

    def callback(receipt: Receipt) -> None:
        if receipt.outcome is Outcome.SENT:
            stuck.set()
            released.wait()

    sender = one_lane(run, queue_size=1, on_receipt=callback)

    def act() -> None:
        sender.submit(LETTER)
        stuck.wait()
        begun = time.monotonic()
        report = sender.send_all([LETTER, LETTER], deadline=1.0)
        assert [receipt.outcome for receipt in report] == 2 * [Outcome.NOT_SENT]
        on_time(begun + 1.0, "the batch")
        released.set()
        sender.close(timeout=None)

    threads.add(act)


SMALL = [
    of_sender("settled again", settled_again),
    of_sender("settled by two", called_back_once),
    of_sender("settled half, and told by two", told_once, limit=300),
    of_sender("settled again, told in part", told_in_part),
    small("sender, settled by two, taken back", taken_back_by_two, SendFuture),
    of_sender("a batch in a small queue", in_batches(1), limit=300),
    of_sender("two batches in a small queue", in_batches(2), limit=300),
    of_sender("a batch that runs out of time", batch_out_of_time, limit=300),
    of_sender("send() gives up in the queue", gives_up_in_the_queue),
    of_sender("send() drops what hangs", drops_what_hangs, limit=300),
    of_sender("one message after the other", sent(one_after_the_other), limit=300),
    of_sender("two messages, closed at once", sent(partial(closed_at_once, 2))),
    of_sender("three messages, closed at once", sent(partial(closed_at_once, 3)), limit=300),
    of_sender("a message put off", sent(put_off, server=lambda: Later(ordered=True)), limit=300),
    of_sender(
        "a message after a failed dial",
        sent(after_a_failure, server=_no_first_dial, retry=RetryPolicy(1, 0.0)),
        limit=300,
    ),
    of_sender("cancelled while it is closed", sent(submit_and_close, cancel), limit=300),
    of_sender(
        "cancelled while it is closed, and the throttle says wait",
        sent(submit_and_close, cancel, throttle=_paused),
        limit=300,
    ),
    of_sender(
        "put off while it is closed",
        sent(put_off_while_closing, close_without_drain, server=lambda: Later(ordered=True)),
        limit=300,
    ),
    of_sender("one message beside stats()", sent(submit_and_close, look), limit=300),
    of_sender("settled by its deadline", settled_by_its_deadline),
    of_sender("no lane can be started", no_lane_starts),
    of_sender("refused for good", refused_for_good, limit=300),
]
