"""What a signal handler, a finaliser or a hook brings up in the middle of something is told when that is over.

A callback under the sender's lock, or in the lines of the executor, could wait for ever: for somebody who has the
callback's own lock, and wants the sender's. The handler is put where Python could let it in, by hand.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, TimeoutError, as_completed, wait
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from tests.support.mail import envelope
from threadmail import (
    Closed,
    Envelope,
    MailError,
    Outcome,
    QueueFull,
    Receipt,
    Reentered,
    RetryPolicy,
    ThreadedSender,
    Throttle,
    TimedOut,
)
from threadmail._dispatch import admission, closing
from threadmail._dispatch import dispatcher as dispatching
from threadmail._dispatch import job as jobs
from threadmail._dispatch.job import Job
from threadmail._dispatch.schedule import Schedule
from threadmail._dispatch.starter import Starter
from threadmail._runtime.locks import is_owned
from threadmail.testing import CaptureServer, Pause, ScriptedServer, Serve, Signal

PATIENCE = 20.0

#: A step of a call, and the function in the middle of it.
STEPS = {"submit": (Schedule, "submit"), "stats": (dispatching, "seen"), "a start": (Starter, "_able")}


def one(name: str) -> Envelope:
    """An envelope with a single recipient."""
    return envelope(name).for_recipients(f"to-{name}@example.net")


@contextmanager
def no_worker(**settings: Any) -> Iterator[ThreadedSender]:
    """A sender that nothing leaves and that has no worker: who takes a message back has to tell of it himself."""
    throttle = Throttle()
    throttle.pause(3600.0)
    with ScriptedServer([Serve()], last="repeat") as server:
        sender = ThreadedSender(server.url, workers=1, throttle=throttle, **settings)
        try:
            yield sender
        finally:
            sender.close(drain=False, timeout=0.0)


def within(step: str, sender: ThreadedSender, handler: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Make a call, and have the handler come up once in the middle of that step of it."""
    place, name = STEPS[step]
    real = getattr(place, name)
    came: list[None] = []

    def struck(*args: Any) -> Any:
        if not came:
            came.append(None)
            handler()
        return real(*args)

    with patch.context() as patched:
        patched.setattr(place, name, struck)
        if step == "stats":
            sender.stats()
        else:
            sender.submit(one("outer"))
    assert came


def is_free(sender: ThreadedSender) -> bool:
    """Whether another thread gets the sender's lock, and the calling thread is not in the executor's lines."""
    dispatcher = sender._dispatcher
    return not (is_owned(dispatcher._lock) or dispatcher._starter.in_the_middle)


def cancelled(sender: ThreadedSender, said: list[bool]) -> Callable[[], object]:
    future = sender.submit(one("a"))
    return future.cancel


def with_done_callback(sender: ThreadedSender, said: list[bool]) -> Callable[[], object]:
    future = sender.submit(one("a"))
    future.add_done_callback(lambda _: said.append(is_free(sender)))
    return future.cancel


def stopped(sender: ThreadedSender, said: list[bool]) -> Callable[[], object]:
    stream = sender.send_each([one("a")])
    stream._pull(1)
    stream._make_job()  # it has no place in the queue yet
    return stream.stop


ACTS = {"cancel": (cancelled, 1), "done callback": (with_done_callback, 2), "stop": (stopped, 1)}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("act", ACTS)
def test_what_is_taken_back_in_a_step_is_told_when_the_step_is_over(
    act: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []
    make, count = ACTS[act]
    monkeypatch.setattr(Schedule, "hand_over", lambda *_: False)  # there is no worker to tell of it

    def on_receipt(_: Receipt) -> None:
        said.append(is_free(sender))

    with no_worker(on_receipt=on_receipt) as sender:
        with monkeypatch.context() as patched:
            patched.setattr(Starter, "wanted", lambda _: False)
            handler = make(sender, said)
        heard: list[int] = []

        def taking_back() -> None:
            handler()
            heard.append(len(said))

        within(step, sender, taking_back, monkeypatch)
        assert heard == [0]
        assert said == [True] * count


def test_where_there_is_a_worker_it_tells_and_the_handler_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    threads: list[str] = []

    def on_receipt(_: Receipt) -> None:
        threads.append(threading.current_thread().name)
        told.set()

    with no_worker(on_receipt=on_receipt) as sender:
        future = sender.submit(one("a"))
        within("stats", sender, future.cancel, monkeypatch)
        assert future.cancelled()
        assert told.wait(PATIENCE)
    assert threads[0].startswith("threadmail-lane")


def test_a_future_that_is_cancelled_in_a_step_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its callbacks wait."""
    order: list[str] = []
    with no_worker() as sender:
        future = sender.submit(one("a"))
        future.add_done_callback(lambda _: order.append("called back"))

        def handler() -> None:
            assert future.cancel()
            order.append("done" if future.cancelled() else "not done")

        within("stats", sender, handler, monkeypatch)
    assert order == ["done", "called back"]


def test_what_could_not_be_sent_for_want_of_a_thread_is_told_without_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bool] = []

    def no_thread(*_: object) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Starter, "_able", no_thread)

    def on_receipt(_: Receipt) -> None:
        said.append(is_free(sender))

    with no_worker(on_receipt=on_receipt) as sender:
        within("stats", sender, lambda: sender.submit(one("a")), monkeypatch)
        assert said == [True]


@pytest.mark.parametrize("step", STEPS)
def test_who_closes_in_a_step_is_told_so_and_another_call_sees_it_through(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Receipt] = []
    raised: list[type[BaseException]] = []

    def handler() -> None:
        try:
            sender.close(drain=False)
        except MailError as error:
            raised.append(type(error))

    with no_worker(on_receipt=told.append) as sender:
        if step == "stats":
            sender.submit(one("outer"))
        try:
            within(step, sender, handler, monkeypatch)
        except MailError:
            assert step == "submit"  # it is closed
        assert raised == [Reentered]
        assert len(sender.close(drain=False, timeout=0.0)) == (step != "submit")
    assert [receipt.outcome for receipt in told] == [Outcome.NOT_SENT] * (step != "submit")


@pytest.mark.parametrize("last", ["a receipt", "sys.exit"])
def test_a_hook_that_takes_another_message_back_is_not_called_back_within_itself(last: str) -> None:
    """Its journal is under a lock perhaps, which `on_receipt` takes as well; and what that raises is not the hook's."""
    journal, told = threading.Lock(), list[Outcome]()
    submitted, all_told = threading.Event(), threading.Event()
    futures: list[Future[Receipt]] = []
    free: list[bool] = []

    def on_receipt(receipt: Receipt) -> None:
        free.append(journal.acquire(blocking=False))
        if free[-1]:
            journal.release()
        told.append(receipt.outcome)
        if len(told) == count:
            all_told.set()
        if receipt.outcome is not Outcome.SENT and last == "sys.exit":
            raise SystemExit

    def hook(_: object, tag: int) -> None:
        assert submitted.wait(PATIENCE)
        with journal:
            if tag == 0:
                assert futures[-1].cancel()

    count = 6
    with CaptureServer() as server:
        sender = ThreadedSender(server.url, workers=1, on_receipt=on_receipt, before_final=hook)
        futures += [sender.submit(one(f"m{number}"), tag=number) for number in range(count)]
        submitted.set()
        assert all_told.wait(PATIENCE)
        assert [future.result(PATIENCE).outcome for future in futures[:-1]] == [Outcome.SENT] * (count - 1)
        sender.close()
    assert free == [True] * count
    assert told.count(Outcome.NOT_SENT) == 1


def test_what_a_finaliser_takes_back_as_its_worker_goes_to_sleep_is_told_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = threading.Event()
    nothing_due = Schedule._nothing_due
    futures: list[Future[Receipt]] = []

    def finalised(*args: Any) -> Any:
        action = nothing_due(*args)
        while futures:
            futures.pop().cancel()
        return action

    def later(_: object) -> str:
        assert submitted.wait(PATIENCE)
        return "451 later"

    submitted = threading.Event()
    with CaptureServer(on_message=later) as server:
        policy = RetryPolicy(base=1000.0, longest=1000.0, total=10_000.0)
        sender = ThreadedSender(server.url, workers=1, retry=policy, on_receipt=lambda _: told.set())
        monkeypatch.setattr(Schedule, "_nothing_due", finalised)
        future = sender.submit(one("a"))
        futures.append(future)
        submitted.set()
        assert told.wait(PATIENCE)
        assert future.cancelled()
        sender.close(drain=False)


def test_who_has_a_deadline_does_not_call_back_for_others_while_another_thread_closes() -> None:
    reached, go = threading.Event(), threading.Event()
    callers: list[threading.Thread] = []

    with ScriptedServer([Signal(reached), Pause(go, PATIENCE), Serve()], last="repeat") as server:
        sender = ThreadedSender(server.url, workers=1, on_receipt=lambda _: callers.append(threading.current_thread()))
        sender.submit(one("first"))
        assert reached.wait(PATIENCE)
        futures = [sender.submit(one(f"m{number}"), deadline=0.05) for number in range(5)]
        closer = threading.Thread(target=sender.close)
        closer.start()
        while sender._dispatcher._closing.life.name == "OPEN":
            time.sleep(0.001)
        with pytest.raises(TimedOut):
            futures[-1].result()
        assert threading.current_thread() not in callers
        go.set()
        closer.join(PATIENCE)
    assert len(callers) == 6


def test_done_callbacks_that_take_each_other_back_do_not_pile_up() -> None:
    """One after the other, and not each within the one before: that would end at Python's limit of recursion."""
    count = 3000
    with no_worker(queue_size=count) as sender:
        futures = [sender.submit(one("a")) for _ in range(count)]
        for future, after in pairwise(futures):
            future.add_done_callback(partial(_take_back, after))
        futures[0].cancel()
        assert all(future.cancelled() for future in futures)


def _take_back(after: Future[Receipt], _: Future[Receipt]) -> None:
    after.cancel()


def test_done_callbacks_of_a_future_that_was_settled_half_are_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception from outside comes up between those who wait being told, and the callbacks."""
    called: list[object] = []
    with no_worker() as sender:
        future = sender.submit(one("a"))
        future.add_done_callback(called.append)
        real = type(future)._invoke_callbacks
        struck: list[None] = []

        def interrupted(self: Any) -> None:
            if not struck:
                struck.append(None)
                raise KeyboardInterrupt
            real(self)

        monkeypatch.setattr(type(future), "_invoke_callbacks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            future.cancel()
        assert called == [future]


def test_an_executor_of_the_application_may_be_used_by_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of all executors is held where one starts a thread."""
    done: list[int] = []
    adjust = ThreadPoolExecutor._adjust_thread_count
    with ThreadPoolExecutor(1) as journal, no_worker(on_receipt=lambda _: journal.submit(done.append, 1)) as sender:
        journal.submit(int).result(PATIENCE)
        stream = sender.send_each([one("a"), one("b")])

        def struck(executor: ThreadPoolExecutor) -> None:
            stream.stop()
            adjust(executor)

        with monkeypatch.context() as patched:
            patched.setattr(ThreadPoolExecutor, "_adjust_thread_count", struck)
            patched.setattr(Schedule, "hand_over", lambda *_: False)
            receipts = list(stream)
    assert len(receipts) == len(done) == 2


@contextmanager
def awaited(future: Future[Receipt]) -> Iterator[None]:
    """As `concurrent.futures.wait` has the locks of its futures, when a signal handler comes up in it."""
    with future._condition:
        yield


@pytest.mark.parametrize("timeout", [None, 12.0])
def test_a_handler_that_closes_where_its_thread_has_the_lock_of_a_future_does_not_wait_for_the_worker(
    timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "LAST_WORD", 0.01)  # after which it looks
    reached, go = threading.Event(), threading.Event()
    with ScriptedServer([Signal(reached), Pause(go, PATIENCE), Serve()], last="repeat") as server:
        with ThreadedSender(server.url, workers=1) as sender:
            future = sender.submit(one("a"))
            assert reached.wait(PATIENCE)
            with awaited(future):
                go.set()
                with pytest.raises(Reentered):
                    sender.close(timeout=timeout)
            assert future.result(PATIENCE).outcome is Outcome.SENT


@pytest.mark.parametrize("act", ["close", "result"])
def test_nor_for_one_that_comes_to_that_message_later(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first look it is still in the queue: the worker is about another one, and stands before it only then."""
    for module in (closing, jobs):
        monkeypatch.setattr(module, "LAST_WORD", 0.01)
    looked, go = threading.Event(), threading.Event()
    look = dispatching.Dispatcher.is_awaited_below

    def looks(dispatcher: Any) -> bool:
        found = look(dispatcher)
        looked.set()
        return found

    def hook(_: object, tag: str) -> None:
        assert go.wait(PATIENCE)

    def lets_go() -> None:
        assert looked.wait(PATIENCE)
        go.set()

    monkeypatch.setattr(dispatching.Dispatcher, "is_awaited_below", looks)
    with CaptureServer() as server, ThreadedSender(server.url, workers=1, before_final=hook) as sender:
        first = sender.submit(one("a"), tag="a")
        second = sender.submit(one("b"), tag="b")
        third = sender.submit(one("c"), tag="c")
        helper = threading.Thread(target=lets_go)
        helper.start()
        waits: dict[str, Callable[[], object]] = {
            "close": lambda: sender.close(timeout=PATIENCE),
            "result": lambda: third.result(PATIENCE),
        }
        with awaited(second), pytest.raises(Reentered):
            waits[act]()
        helper.join()
        assert [future.result(PATIENCE).outcome for future in (first, second, third)] == [Outcome.SENT] * 3


def test_nor_does_one_that_submits_or_waits_for_another_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LAST_WORD", 0.01)  # after which they look
    monkeypatch.setattr(jobs, "LAST_WORD", 0.01)
    reached, go = threading.Event(), threading.Event()

    def hook(*_: object) -> None:
        reached.set()
        assert go.wait(PATIENCE)

    with CaptureServer() as server, ThreadedSender(server.url, workers=1, queue_size=1, before_final=hook) as sender:
        future = sender.submit(one("a"))
        assert reached.wait(PATIENCE)
        other = sender.submit(one("b"))
        with awaited(future):
            with pytest.raises(QueueFull):
                sender.submit(one("c"))
            with pytest.raises(Reentered):
                other.result()
        go.set()


def test_who_waits_is_woken_by_his_own_threads_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes up when he has looked, and before he waits: there is nobody to be notified yet."""
    with no_worker() as sender:
        future = sender.submit(one("a"))
        done = type(future).done
        looks: list[bool] = []

        def looked(self: Any) -> bool:
            looks.append(done(self))
            if len(looks) == 2:  # the first one asks whether there is anything to wait for
                future.cancel()
            return looks[-1]

        monkeypatch.setattr(type(future), "done", looked)
        with pytest.raises(CancelledError):
            future.result(PATIENCE)
    assert looks[:2] == [False, False]


def test_a_handler_that_closes_as_its_thread_tells_has_begun_the_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    conclude = Job.conclude
    raised: list[type[BaseException]] = []

    def closes(job: Job) -> None:
        conclude(job)
        try:
            sender.close(drain=False, timeout=0.0)
        except MailError as error:
            raised.append(type(error))

    with no_worker() as sender:
        future = sender.submit(one("a"))
        with monkeypatch.context() as patched:
            patched.setattr(Job, "conclude", closes)
            future.cancel()
        assert raised == [Reentered]
        with pytest.raises(Closed):
            sender.submit(one("b"))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("ask", ["cancel", "done", "cancelled", "repr", "add_done_callback", "wait"])
def test_a_forked_child_does_not_wait_for_the_lock_of_an_inherited_future(ask: str) -> None:
    """Another thread may have had it at the fork, which is not there to give it back."""
    with no_worker() as sender:
        future = sender.submit(one("a"))
        held, go = threading.Event(), threading.Event()

        def other() -> None:
            with awaited(future):
                held.set()
                assert go.wait(PATIENCE)

        thread = threading.Thread(target=other)
        thread.start()
        assert held.wait(PATIENCE)
        pid = os.fork()
        if not pid:
            signal.alarm(int(PATIENCE / 2))  # without it a child that waits would never end
            if ask == "add_done_callback":
                future.add_done_callback(print)
            elif ask == "wait":
                wait([future], timeout=0.0)
            elif ask == "repr":
                repr(future)
            else:
                getattr(future, ask)()
            os._exit(0)
        go.set()
        thread.join()
        assert os.waitpid(pid, 0)[1] == 0


def test_those_who_wait_for_a_cancelled_message_are_told_before_its_callbacks() -> None:
    told = threading.Event()
    with no_worker() as sender:
        future = sender.submit(one("a"))
        heard: list[bool] = []
        future.add_done_callback(lambda _: heard.append(told.wait(PATIENCE)))

        def waits() -> None:
            list(as_completed([future]))
            told.set()

        thread = threading.Thread(target=waits)
        thread.start()
        while not future._waiters:
            time.sleep(0.001)
        future.cancel()
        thread.join()
    assert heard == [True]


def test_a_settled_future_keeps_nothing_of_its_sender() -> None:
    with no_worker() as sender:
        future = sender.submit(one("a"))
        future.cancel()
        dispatcher = weakref.ref(sender._dispatcher)
    del sender
    gc.collect()
    assert future.cancelled()
    assert dispatcher() is None


def test_to_ask_again_and_again_does_not_grow_with_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_worker() as sender:
        future = sender.submit(one("a"))
        monkeypatch.setattr(Schedule, "with_workers", lambda _: pytest.fail("it looked at others"))
        for timeout in (0, 0.001):
            with pytest.raises(TimeoutError):
                future.result(timeout)


def test_to_abort_a_message_that_was_taken_back_is_too_late() -> None:
    with no_worker() as sender:
        future = sender.submit(one("a"))
        assert [sender.abort(future), sender.abort(future)] == [True, False]


def test_what_close_says_was_cut_short_carries_its_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "FAREWELL", 0.01)
    reached, go = threading.Event(), threading.Event()

    def hook(*_: object) -> None:
        reached.set()
        assert go.wait(PATIENCE)

    with CaptureServer() as server:
        sender = ThreadedSender(server.url, workers=1, before_final=hook)
        future = sender.submit(one("a"), tag="order 17")
        assert reached.wait(PATIENCE)
        assert [unsent.receipt.tag for unsent in sender.close(drain=False, timeout=0.0)] == ["order 17"]
        go.set()
        assert isinstance(future.exception(PATIENCE), MailError)
        assert future.receipt is not None
        assert future.receipt.tag == "order 17"


def test_what_is_taken_back_as_it_is_asked_who_is_awaited_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step as any other: whoever leaves it tells, and waits on then."""
    monkeypatch.setattr(jobs, "LAST_WORD", 0.01)
    monkeypatch.setattr(Schedule, "hand_over", lambda *_: False)
    told: list[str] = []
    with no_worker() as sender:
        waited, other = sender.submit(one("a")), sender.submit(one("b"))
        other.add_done_callback(lambda _: told.append("b"))
        having = Schedule.with_workers

        def struck(schedule: Any) -> Any:
            other.cancel()
            return having(schedule)

        monkeypatch.setattr(Schedule, "with_workers", struck)
        with pytest.raises(TimeoutError):
            waited.result(0.1)
        assert told == ["b"]
