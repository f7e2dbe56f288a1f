"""What a second adversarial read found in the sender, each with the right behaviour."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, as_completed, wait
from dataclasses import replace
from typing import Any

import pytest

from tests.support.mail import envelope
from tests.support.servers import until
from threadmail import (
    Aborted,
    Closed,
    ConnectFailed,
    Envelope,
    InvalidEnvelope,
    Outcome,
    Receipt,
    Reentered,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Throttle,
)
from threadmail._dispatch.collector import Collector
from threadmail._dispatch.stream import ReceiptStream
from threadmail._dispatch.timeheap import TimeHeap
from threadmail._dispatch.worker import Worker
from threadmail.testing import CaptureServer, Pause, ScriptedServer, Serve

PATIENCE = 20.0

#: A sender's queue that nobody comes to: the throttle gives one message, and then none for an hour.
HOURLY = 1 / 3600


# ---------------------------------------------------------------- closing


def test_a_second_close_does_not_stumble_over_what_the_first_is_telling() -> None:
    """Jobs that another thread has taken out and not got to yet are that thread's: it tells them, and nobody fails."""
    with CaptureServer() as server:
        sender = ThreadedSender(server.url, throttle=Throttle(HOURLY), workers=1)
        sender.send(envelope("first"))
        futures = [sender.submit(envelope(f"m{n}")) for n in range(3)]
        telling, go_on = threading.Event(), threading.Event()

        def dawdle(_: Any) -> None:
            telling.set()
            go_on.wait(PATIENCE)

        futures[0].add_done_callback(dawdle)
        closing = threading.Thread(target=sender.close, kwargs={"drain": False})
        closing.start()
        try:
            assert telling.wait(PATIENCE)
            sender.close(drain=False, timeout=0.0)
        finally:
            go_on.set()
            closing.join(PATIENCE)
        assert [future.receipt and future.receipt.outcome for future in futures] == [Outcome.NOT_SENT] * 3


def test_a_callback_of_a_message_that_its_own_thread_took_back_may_not_close_the_sender() -> None:
    """Closing would wait for this very callback."""
    met: list[BaseException] = []

    def close(_: Any) -> None:
        try:
            sender.close(timeout=PATIENCE)
        except Reentered as error:
            met.append(error)

    with CaptureServer() as server, ThreadedSender(server.url, throttle=Throttle(HOURLY), workers=1) as sender:
        sender.send(envelope("first"))
        future = sender.submit(envelope("second"))
        future.add_done_callback(close)
        assert future.cancel()
        assert len(met) == 1
        sender.close(drain=False)


# ---------------------------------------------------------------- deadlines


def test_a_deadline_that_is_no_number_is_refused() -> None:
    """It is neither before nor after any other: in a heap the deadlines behind it would never come."""
    with CaptureServer() as server, ThreadedSender(server.url) as sender:
        with pytest.raises(ValueError, match="nan"):
            sender.submit(envelope("one"), deadline=math.nan)
        with pytest.raises(ValueError, match="nan"):
            sender.send_all([envelope("one")], deadline=math.nan)
        with pytest.raises(ValueError, match="nan"):
            sender.close(timeout=math.nan)


# ---------------------------------------------------------------- the line


def test_a_stream_that_is_interrupted_as_it_begins_to_wait_leaves_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stands first and never comes back would bar the line for everybody else."""

    def interrupted(self: ReceiptStream) -> None:
        raise KeyboardInterrupt  # where the method begins, before its first statement

    go = threading.Event()
    with ScriptedServer([Pause(go, PATIENCE), Serve()], last="repeat") as server:
        with ThreadedSender(server.url, workers=1, queue_size=1) as sender:
            first = sender.submit(envelope("first"))
            with monkeypatch.context() as patch:
                patch.setattr(ReceiptStream, "_wait_in_line", interrupted)
                stream = sender.send_each([envelope("second"), envelope("third")])
                with pytest.raises(KeyboardInterrupt):
                    next(stream)
            assert not sender._dispatcher._schedule.line
            stream.stop()
            go.set()
            assert [receipt.outcome for receipt in stream] == [Outcome.NOT_SENT]  # the other was not pulled
            assert first.result(PATIENCE).outcome is Outcome.SENT
            assert sender.send(envelope("after"), deadline=PATIENCE).outcome is Outcome.SENT


def test_none_among_the_messages_is_refused_as_whatever_else_is_no_message() -> None:
    """It has its receipt in its place, and those behind it are sent."""
    with CaptureServer() as server, ThreadedSender(server.url) as sender:
        report = sender.send_all([envelope("one"), None, envelope("three")])  # type: ignore[list-item]
        assert [receipt.outcome for receipt in report] == [Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT]
        assert isinstance(report[1].error, InvalidEnvelope)


def test_all_that_a_stream_has_pulled_have_receipts_when_the_sender_is_closed_under_it() -> None:
    """Those waiting for a place as well, and whoever watches is told of each of them once."""
    watched: list[Receipt] = []
    with CaptureServer() as server:
        sender = ThreadedSender(server.url, throttle=Throttle(HOURLY), workers=1, on_receipt=watched.append)
        sender.send(envelope("first"))
        pulled: list[int] = []

        def messages() -> Iterator[Envelope]:
            for n in range(2):
                if n == 1:
                    sender.close(drain=False)
                pulled.append(n)
                yield envelope(f"m{n}")

        receipts: list[Receipt] = []
        with pytest.raises(Closed):
            receipts.extend(sender.send_each(messages()))  # keeps what came before
        assert len(pulled) == 2
        assert [receipt.outcome for receipt in receipts] == [Outcome.NOT_SENT] * 2
        assert sorted(each.sender for each in watched[1:]) == sorted(each.sender for each in receipts)


def test_a_callback_does_not_wait_for_a_stream() -> None:
    """Its worker may be the one that is to bring the receipt."""
    met: list[BaseException] = []

    def watch(receipt: Receipt) -> None:
        if receipt.tag == "first":
            try:
                next(stream)
            except Reentered as error:
                met.append(error)

    with CaptureServer() as server, ThreadedSender(server.url, workers=1, on_receipt=watch) as sender:
        stream = sender.send_each([envelope("second")], deadline=PATIENCE)
        sender.submit(envelope("first"), tag="first").result(PATIENCE)
        assert [receipt.outcome for receipt in stream] == [Outcome.SENT]
        assert len(met) == 1


# ---------------------------------------------------------------- callbacks handed over


def test_what_is_queued_does_not_wait_for_a_callback_while_another_worker_may_run() -> None:
    """The one idle worker is woken for a callback and for a message; only the callback takes its time."""
    go_on = threading.Event()

    def watch(receipt: Receipt) -> None:
        if receipt.tag == "slow":
            go_on.wait(PATIENCE)

    with CaptureServer() as server, ThreadedSender(server.url, workers=2, on_receipt=watch) as sender:
        sender.send(envelope("first"))
        dispatcher = sender._dispatcher
        while True:
            with dispatcher._lock:
                if dispatcher._schedule.idle:  # it waits, and wakes when this step is over
                    assert sender.submit(envelope("slow"), tag="slow").cancel()
                    future = sender.submit(envelope("quick"))
                    break
        try:
            assert future.result(PATIENCE / 2).outcome is Outcome.SENT
        finally:
            go_on.set()


# ---------------------------------------------------------------- memory


def dead_but_held(watched: list[weakref.ref[Any]]) -> int:
    gc.collect()
    return sum(each() is not None for each in watched)


def test_an_idle_worker_holds_no_message() -> None:
    with CaptureServer() as server, ThreadedSender(server.url, workers=1) as sender:
        messages = [envelope(f"m{n}") for n in range(3)]
        watched = [weakref.ref(message) for message in messages]
        futures = [sender.submit(message) for message in messages]
        del messages
        wait(futures, PATIENCE)
        del futures
        dispatcher = sender._dispatcher
        deadline = threading.Event()
        while not dispatcher.others_idle:
            deadline.wait(0.01)
        assert dead_but_held(watched) == 0


def test_what_has_left_the_heap_is_not_held_behind_what_is_due_before() -> None:
    heap: TimeHeap[Thing] = TimeHeap()
    first = Thing()
    heap.add(first, 1.0)
    things = [Thing() for _ in range(50)]
    watched = [weakref.ref(thing) for thing in things]
    for thing in things:
        heap.add(thing, 2.0)
        heap.add(thing, 3.0)  # another time: of the first nothing is left either
    for thing in things:
        heap.discard(thing)
    del things, thing
    assert dead_but_held(watched) == 0
    assert heap.first_due(1.0) is first


class Thing:
    """What can be watched."""


# ---------------------------------------------------------------- between the parts


def test_as_completed_gives_each_message_once_while_it_is_still_being_announced() -> None:
    """Whoever waits is told that a future is settled once: `as_completed` does not stand a second time (KeyError)."""
    telling, go_on, other = threading.Event(), threading.Event(), Future[Any]()

    def dawdle(_: Receipt) -> None:
        telling.set()
        go_on.wait(PATIENCE)

    with CaptureServer() as server:
        sender = ThreadedSender(server.url, throttle=Throttle(HOURLY), workers=1)
        sender.send(envelope("first"))
        sender._on_receipt = dawdle
        futures = [sender.submit(envelope(f"m{n}")) for n in range(3)]
        closing = threading.Thread(target=sender.close, kwargs={"drain": False})
        closing.start()
        try:
            assert telling.wait(PATIENCE)  # all three are settled, and one is announced
            completed = as_completed([*futures, other], PATIENCE)
            came: list[Any] = [next(completed)]
        finally:
            go_on.set()
            closing.join(PATIENCE)
        other.set_result(None)
        came += completed
        assert len(came) == 4
        assert set(came) == {*futures, other}


def test_what_a_stream_was_interrupted_with_is_not_sent_once_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was pulled, and nothing was made of it yet: it has its receipt, and whoever watches is told."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    watched: list[Receipt] = []
    with CaptureServer() as server, ThreadedSender(server.url, on_receipt=watched.append) as sender:
        stream = sender.send_each(iter([envelope("one"), envelope("two")]))
        with monkeypatch.context() as patch:
            patch.setattr(Collector, "job", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(stream)
        stream.stop()
        receipts = list(stream)
        assert [(receipt.outcome, type(receipt.error)) for receipt in receipts] == [(Outcome.NOT_SENT, Aborted)]
        assert watched == receipts
        assert not server.messages


def test_a_worker_that_was_interrupted_before_its_dial_owes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next probe is taken for its dial, and nobody may ever dial again."""
    real = Worker._dial

    def interrupted(_: Worker) -> None:
        monkeypatch.setattr(Worker, "_dial", real)
        raise SystemExit

    patient = RetryPolicy(attempts=3, base=0.01)
    with CaptureServer() as server:
        config = replace(ServerConfig.of(server.url), idle_timeout=0.01)
        sender = ThreadedSender(config, workers=1, retry=patient)
        sender.send(envelope("one"), deadline=PATIENCE)
        until(lambda: not sender.stats().lanes, PATIENCE, "the end of the idle worker")
        monkeypatch.setattr(Worker, "_dial", interrupted)
        assert sender.send(envelope("two"), deadline=PATIENCE).outcome is Outcome.SENT
        until(lambda: not sender.stats().lanes, PATIENCE, "the end of the idle worker")
    with sender, pytest.raises(ConnectFailed):
        sender.submit(envelope("three")).result(PATIENCE)  # the server is gone, and the policy's patience ends
