"""Calls that come at the wrong moment: before a dial has begun, in the midst of a step, behind a callback."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from math import inf
from types import FrameType

import pytest

from tests.support.mail import envelope
from tests.support.servers import until
from threadmail import (
    Aborted,
    ConnectFailed,
    Envelope,
    MailError,
    Outcome,
    Receipt,
    Reentered,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
)
from threadmail._dispatch.collector import Collector
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.stream import ReceiptStream
from threadmail._dispatch.timeheap import TimeHeap
from threadmail._dispatch.worker import Worker
from threadmail._runtime.deadline import NEVER, Deadline, now
from threadmail._runtime.process import Process
from threadmail.testing import CaptureServer, Drop, Reply, ScriptedServer, Serve

PATIENCE = 20.0


def one(name: str) -> Envelope:
    """An envelope with a single recipient."""
    return envelope(name).for_recipients(f"to-{name}@example.net")


# ---------------------------------------------------------------- a dial that has not begun


def test_a_dial_that_begins_as_the_sender_is_closed_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker was told to dial, and has not begun to: the abort of a call does not end the next one."""
    told_to, go_on = threading.Event(), threading.Event()
    dial = Worker._dial

    def held_up(self: Worker) -> None:
        told_to.set()
        assert go_on.wait(PATIENCE)
        dial(self)

    monkeypatch.setattr(Worker, "_dial", held_up)
    monkeypatch.setattr("threadmail._dispatch.closing.FAREWELL", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = ThreadedSender(f"smtp://127.0.0.1:{server.getsockname()[1]}", workers=1)
        future = sender.submit(one("m"))
        assert told_to.wait(PATIENCE)
        (worker,) = sender._dispatcher._schedule.workers
        assert len(sender.close(drain=False, timeout=0.0)) == 1
        assert future.done()
        go_on.set()
        for thread in threading.enumerate():
            if thread.name.startswith("threadmail-lane"):
                thread.join(PATIENCE / 4)
        assert worker.buried
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


# ---------------------------------------------------------------- a finaliser in a worker's step


@pytest.mark.parametrize("call", ["cancel", "abort", "submit", "stats", "result", "stop"])
def test_a_finaliser_in_a_workers_step_is_refused_and_waits_for_nobody(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dispatcher's lock comes before the worker's: here another thread has the one, and wants the other."""
    said: list[object] = []
    inside, wants = threading.Event(), threading.Event()
    claimed = Worker._claimed

    def in_the_step(self: Worker, job: object) -> bool:
        if threading.current_thread() is not threading.main_thread() and not inside.is_set() and armed:
            inside.set()
            assert wants.wait(PATIENCE)
            try:
                said.append(calls[call]())
            except Reentered as error:
                said.append(error)
        return claimed(self, job)  # type: ignore[arg-type]

    armed: list[bool] = []
    monkeypatch.setattr(Worker, "_claimed", in_the_step)
    with CaptureServer() as server, ThreadedSender(server.url, workers=1) as sender:
        sender.send(one("first"))
        with sender._dispatcher._lock:
            futures = [sender.submit(one(f"m{i}"), deadline=PATIENCE) for i in range(10)]
            armed.append(True)
        last = futures[-1]
        told: list[Receipt] = []
        stream = ReceiptStream([one("s")], Collector(9, 1, NEVER), NEVER, lambda: sender._dispatcher, told.extend)
        stream._pull(1)
        stream._make_job()  # it is held, and would be refused
        calls: dict[str, Callable[[], object]] = {
            "cancel": last.cancel,
            "abort": lambda: sender.abort(last),
            "submit": lambda: sender.submit(one("finaliser")),
            "stats": sender.stats,
            "result": lambda: last.result(),
            "stop": stream.stop,
        }
        assert inside.wait(PATIENCE)
        with sender._dispatcher._lock:
            wants.set()
            worker = next(iter(sender._dispatcher._schedule.workers))
            taken = worker.lock.acquire(timeout=PATIENCE)
            if taken:
                worker.lock.release()
        assert taken
        for future in futures:
            future.result(PATIENCE)
    assert len(said) == 1
    assert isinstance(said[0], Reentered)
    assert (told, len(stream._held)) == ([], 1)


@pytest.mark.parametrize("call", ["submit", "stop", "close"])
def test_a_finaliser_between_two_workers_is_refused_and_waits_for_nobody(call: str) -> None:
    """The executor's own locks are not for one thread twice; and one of them is that of all executors."""
    with (
        CaptureServer() as server,
        ThreadedSender(ServerConfig("127.0.0.1", server.port, idle_timeout=0.01), workers=1) as sender,
    ):
        sender.send(one("first"))
        until(lambda: sender.stats().lanes == 0, PATIENCE, "the worker's end")
        stream = sender.send_each([one("streamed")])
        calls: dict[str, Callable[[], object]] = {
            "submit": lambda: sender.submit(one("finaliser")),
            "stop": stream.stop,
            "close": sender.close,
        }
        [executor] = sender._dispatcher._starter._executors
        error = executor.submit(calls[call]).exception(PATIENCE)
        assert isinstance(error, Reentered)
        assert sender.submit(one("second")).result(PATIENCE).outcome is Outcome.SENT


def test_who_goes_on_with_the_stream_of_a_parent_process_is_told_so_and_waits_for_nobody() -> None:
    def nobody() -> Dispatcher:
        raise AssertionError("the parent's locks are not to be touched")

    stream = ReceiptStream([one("a")], Collector(9, 1, NEVER), NEVER, nobody, lambda _: None)
    stream._process = Process(-1)
    with pytest.raises(MailError, match="by the process that gave them in"):
        next(stream)
    stream.stop()


def test_one_that_could_not_be_queued_whole_is_not_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for its worker: who gets an exception has not handed the message over."""
    with CaptureServer() as server, ThreadedSender(server.url, workers=1) as sender:

        def no_memory() -> Worker:
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(sender._dispatcher._starter, "_make", no_memory)
            with pytest.raises(MemoryError):
                sender.submit(one("a"))
        assert sender.stats().queued == 0
        sender.send(one("b"))
    assert [message.recipients for message in server.messages] == [one("b").recipients]


def test_one_that_is_called_off_as_its_connection_is_to_be_replaced_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The breaker lets nobody dial just then, for another lane's dial has failed: it went back into the queue."""
    may_dial, aborted = Dispatcher.may_dial, list[bool]()

    def called_off(self: Dispatcher, worker: Worker) -> bool:
        if not aborted:
            with self._lock:
                self._schedule.breaker.failed(ConnectFailed("another lane's", transient=True), now())
            aborted.append(sender.abort(future))
        return may_dial(self, worker)

    stale = [Serve(until="."), Reply("250 ok"), Serve(until="MAIL"), Drop()]
    with ScriptedServer(stale, [Serve()], last="repeat") as server:
        config = ServerConfig("127.0.0.1", server.port, without=frozenset({"pipelining"}))
        with ThreadedSender(config, workers=1, retry=RetryPolicy(base=0.01, longest=0.01)) as sender:
            sender.send(one("first"))
            monkeypatch.setattr(Dispatcher, "may_dial", called_off)
            with sender._dispatcher._lock:
                future = sender.submit(one("called-off"))
            error = future.exception(PATIENCE)
        assert aborted == [True]
        assert isinstance(error, Aborted)
        assert error.outcome is Outcome.NOT_SENT
        assert len(server.messages) == 1


def test_a_refusal_at_the_door_carries_the_tag() -> None:
    with CaptureServer() as server, ThreadedSender(server.url, workers=1) as sender:
        sender.close()
        with pytest.raises(MailError) as raised:
            sender.submit(one("a"), tag="order 17")
    assert raised.value.receipt is not None
    assert raised.value.receipt.tag == "order 17"


# ---------------------------------------------------------------- a signal handler in the heap of deadlines


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_signal_handler_that_submits_in_the_middle_of_a_submit_gets_a_number_of_its_own() -> None:
    """Two of one time and one number would be compared themselves, which jobs cannot be."""
    places = 1
    while _adds_inside_an_add(places):
        places += 1
    assert places > 3


def _adds_inside_an_add(place: int) -> bool:
    """Whether there is such a place, counted by what is called."""
    end, left = Deadline.after(60.0), place
    heap: TimeHeap[object] = TimeHeap()

    def handler(frame: FrameType, event: str, arg: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith("_dispatch/timeheap.py"):
            left -= 1
            if not left:
                sys.setprofile(None)
                heap.add(object(), end.at)

    sys.setprofile(handler)
    try:
        heap.add(object(), end.at)
    finally:
        sys.setprofile(None)
    for _ in range(3):
        heap.add(object(), end.at)
    for thing in heap:
        heap.discard(thing)
    assert heap.first_at() == inf
    return left <= 0


# ---------------------------------------------------------------- a result behind a callback


def test_a_result_comes_by_its_deadline_though_a_callback_of_the_one_ahead_takes_its_time() -> None:
    """It was begun behind that one, and no worker comes by to see that its time has passed."""
    first, go_on = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        if not first.is_set():
            first.set()
            assert go_on.wait(PATIENCE)

    with CaptureServer() as server, ThreadedSender(server.url, workers=1, on_receipt=slow) as sender:
        try:
            with sender._dispatcher._lock:
                ahead, *behind = (sender.submit(one(f"m{i}"), deadline=1.0) for i in range(3))
            assert ahead.result(PATIENCE)
            assert first.wait(PATIENCE)
            for future in behind:
                with pytest.raises(MailError):
                    future.result()
        finally:
            go_on.set()
    assert [message.sender for message in server.messages] == ["from-m0@example.org"]
