"""Callbacks and hooks that do what none should: end the thread, or keep it. No message is left untold by one."""

from __future__ import annotations

import contextlib
import sys
import threading
from concurrent.futures import wait
from queue import Queue
from types import FrameType
from typing import Any

import pytest

from tests.support.mail import envelope
from tests.support.servers import until
from threadmail import (
    Closed,
    Envelope,
    MailError,
    Outcome,
    Receipt,
    Report,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Throttle,
)
from threadmail._dispatch import closing as _closing
from threadmail._dispatch import dispatcher as _dispatcher
from threadmail._dispatch import recovery as _recovery
from threadmail._dispatch.collector import Slot
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.job import Job
from threadmail._dispatch.schedule import Schedule
from threadmail._dispatch.starter import Starter
from threadmail._dispatch.teller import Teller
from threadmail.testing import ScriptedServer, Serve

PATIENCE = 20.0


def one(name: str) -> Envelope:
    """An envelope with a single recipient."""
    return envelope(name).for_recipients(f"to-{name}@example.net")


def leave(*_: object) -> None:
    raise SystemExit(1)


def waiting(**how: Any) -> ThreadedSender:
    """A sender to nobody that begins no message."""
    throttle = Throttle()
    throttle.pause(3600)
    return ThreadedSender("smtp://127.0.0.1:1", workers=1, throttle=throttle, **how)


# ---------------------------------------------------------------- callbacks that end in sys.exit


def test_callbacks_that_leave_keep_no_other_message_from_being_told() -> None:
    """A dead server ends twenty messages at once, and each of their callbacks ends in `sys.exit`."""
    sender = ThreadedSender("smtp://127.0.0.1:1", workers=1, retry=RetryPolicy(attempts=1))
    with sender._dispatcher._lock:  # all are there before the first dial is over
        futures = [sender.submit(one(f"m{i}")) for i in range(20)]
        for future in futures:
            future.add_done_callback(leave)
    assert not wait(futures, PATIENCE).not_done
    assert sender.close(timeout=PATIENCE) == []
    assert sender.stats().outcomes[Outcome.NOT_SENT] == 20


@pytest.mark.parametrize("whose", ["future", "on_receipt"])
def test_a_caller_that_tells_of_several_tells_of_all(whose: str) -> None:
    told: list[Receipt] = []

    def note(receipt: Receipt) -> None:
        told.append(receipt)
        if whose == "on_receipt":
            raise SystemExit(1)

    sender = waiting(on_receipt=note)
    futures = [sender.submit(one(f"m{i}")) for i in range(6)]
    if whose == "future":
        for future in futures:
            future.add_done_callback(leave)
    with contextlib.suppress(SystemExit):
        sender.close(drain=False, timeout=PATIENCE)
    assert all(future.done() for future in futures)
    assert len(told) == 6
    assert sender.stats().outcomes[Outcome.NOT_SENT] == 6


# ---------------------------------------------------------------- two exceptions from outside


def test_two_interrupts_while_messages_are_told_lose_none_of_them() -> None:
    """The second one comes up while what the first one left is seen to; another call of `close` tells of all."""
    struck_twice = 0
    for first in range(1, 40, 3):
        for second in range(1, 24):
            struck_twice += _closed_with_two_strikes(first, second)
    assert struck_twice > 100


def _closed_with_two_strikes(first: int, second: int) -> bool:
    """Strike at the so-manieth call in the telling, and at the so-manieth after that. Returns whether both hit."""
    sender = waiting()
    futures = [sender.submit(one(f"m{i}")) for i in range(3)]
    left = [first, second]

    def comes_up(which: int, frame: FrameType) -> None:
        if len(left) == which and frame.f_code.co_filename.endswith(
            ("_dispatch/teller.py", "_dispatch/withdrawal.py", "_dispatch/job.py")
        ):
            left[0] -= 1
            if not left[0]:
                del left[0]
                raise KeyboardInterrupt

    # Two ways in, for the interpreter takes away the one that raised.
    def first_one(frame: FrameType, event: str, arg: object) -> None:
        comes_up(2, frame)

    def second_one(frame: FrameType, event: str, arg: object) -> None:
        # Not as a lock was taken, before it is bound to be given back: nothing comes from outside there (3.10 to 3.13,
        # and 3.15; for 3.14 see `_runtime.locks`), but a profiler would.
        if event == "call" or (event == "c_return" and getattr(arg, "__name__", "") not in ("__enter__", "acquire")):
            comes_up(1, frame)

    sys.settrace(first_one)
    sys.setprofile(second_one)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            sender._dispatcher.fail_queue(MailError("it was ended"))
    finally:
        sys.setprofile(None)
        sys.settrace(None)
    sender.close(drain=False, timeout=0.0)
    assert all(future.done() for future in futures), (first, second)
    return not left


def test_what_two_interrupts_left_is_told_by_the_next_worker_that_comes_by() -> None:
    sender = waiting()
    future = sender.submit(one("m"))
    teller, end, strikes = sender._dispatcher._teller, sender._dispatcher._teller.end, [1, 2]

    def struck(*args: Any, **kwargs: Any) -> None:
        if strikes:
            del strikes[0]
            raise KeyboardInterrupt
        end(*args, **kwargs)

    teller.end = struck  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        future.cancel()
    assert not strikes
    other = sender.submit(one("other"), deadline=0.1)  # a worker comes by
    assert not wait([future, other], PATIENCE).not_done
    assert future.cancelled()
    sender.close(drain=False, timeout=PATIENCE)


# ---------------------------------------------------------------- a hook that keeps its thread


def test_close_gives_back_what_a_hook_keeps_it_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can end a hook: `close` says what is known of its message, and its future has the end."""
    monkeypatch.setattr("threadmail._dispatch.closing.FAREWELL", 0.2)
    inside, go_on = threading.Event(), threading.Event()

    def hook(transaction: object, tag: object) -> None:
        inside.set()
        assert go_on.wait(PATIENCE)

    with ScriptedServer([Serve()], last="repeat") as server:
        sender = ThreadedSender(server.url, workers=1, before_final=hook)
        future = sender.submit(one("m"))
        assert inside.wait(PATIENCE)
        (cut,) = sender.close(drain=False, timeout=0.0)
        assert not future.done()
        assert (cut.envelope.sender, cut.receipt.outcome) == ("from-m@example.org", Outcome.NOT_SENT)
        assert "closed" in str(cut.receipt.error)
        go_on.set()
        error = future.exception(PATIENCE)
    assert isinstance(error, MailError)
    assert error.outcome is Outcome.NOT_SENT


class Strike(BaseException):
    """Comes from outside."""


@pytest.mark.parametrize("where", ["left_by", "announce"])
def test_a_worker_that_is_struck_again_as_it_ends_leaves_nobody_waiting(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First as it tells that a message was sent, and then before it has told of what the first strike left behind."""
    strikes = {"settle": 1, where: 1}

    def struck(name: str) -> None:
        if strikes.get(name, 0):
            strikes[name] -= 1
            raise Strike

    settle, announce, left_by = Slot.settle, Teller.announce, _recovery.left_by

    def settle_struck(slot: Slot, job: Job, receipt: Receipt) -> None:
        struck("settle")
        settle(slot, job, receipt)

    def announce_struck(teller: Teller, jobs: list[Job]) -> None:
        struck("announce")
        announce(teller, jobs)

    def left_by_struck(schedule: Any, worker: Any) -> list[Job]:
        left = left_by(schedule, worker)
        struck("left_by")
        return left

    monkeypatch.setattr(Slot, "settle", settle_struck)
    monkeypatch.setattr(Teller, "announce", announce_struck)
    monkeypatch.setattr(_dispatcher, "left_by", left_by_struck)
    with ScriptedServer([Serve()], last="repeat") as server, ThreadedSender(server.url, workers=1) as sender:
        told = Queue[Report]()
        caller = threading.Thread(target=lambda: told.put(sender.send_all([one("a")])), daemon=True)
        caller.start()
        report = told.get(timeout=10.0)
        assert [receipt.outcome for receipt in report] == [Outcome.SENT]
        caller.join(10.0)
    assert not any(strikes.values())


@pytest.mark.parametrize("where", ["announce", "forget"])
def test_a_worker_that_is_struck_before_it_tells_of_a_refusal_leaves_nobody_waiting(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: as the message has its receipt, and nobody knows of it but the worker."""
    struck: list[str] = []
    announce, forget = Teller.announce, Schedule.forget

    def strike(name: str) -> None:
        if name == where and not struck:
            struck.append(name)
            raise Strike

    def announce_struck(teller: Teller, jobs: list[Job]) -> None:
        strike("announce")
        announce(teller, jobs)

    def forget_struck(schedule: Any, job: Job) -> None:
        strike("forget")
        forget(schedule, job)

    def refuse(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(Teller, "announce", announce_struck)
    monkeypatch.setattr(Schedule, "forget", forget_struck)
    with (
        ScriptedServer([Serve()], last="repeat") as server,
        ThreadedSender(server.url, workers=1, before_final=refuse) as sender,
    ):
        told = Queue[Report]()
        caller = threading.Thread(target=lambda: told.put(sender.send_all([one("a")])), daemon=True)
        caller.start()
        report = told.get(timeout=10.0)
        assert [(receipt.outcome, str(receipt.error)) for receipt in report] == [
            (Outcome.NOT_SENT, "it was held back before its last bytes: ValueError")
        ]
        caller.join(10.0)
    assert struck == [where]


@pytest.mark.parametrize("place", ["ended", "_over"])
def test_a_worker_that_is_struck_at_its_very_end_costs_the_sender_no_thread(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the executor's callback: who raises there ends its thread, and the executor starts no other in its place."""
    owner: type[Dispatcher] | type[Starter] = Dispatcher if place == "ended" else Starter
    inner, calls = getattr(owner, place), list[object]()

    def struck(self: object, *given: Any) -> None:
        calls.append(self)
        if len(calls) <= (2 if place == "ended" else 1):
            raise Strike
        inner(self, *given)

    with ScriptedServer([Serve()], last="repeat") as server:
        monkeypatch.setattr(owner, place, struck)
        with ThreadedSender(ServerConfig("127.0.0.1", server.port, idle_timeout=0.01), workers=1) as sender:
            sender.send(one("a"))
            lanes = [thread for thread in threading.enumerate() if thread.name.startswith("threadmail-lane")]
            until(lambda: len(calls) >= (3 if place == "ended" else 1), PATIENCE, "the worker's end")
            if place == "_over":
                for lane in lanes:
                    lane.join(PATIENCE)
            assert sender.submit(one("b")).result(PATIENCE).outcome is Outcome.SENT


def test_callbacks_that_leave_tell_of_all_that_a_caller_has_taken_back() -> None:
    """More of them than are told in one step; and the worker's thread is there for the next message."""
    inside, go, heard = threading.Event(), threading.Event(), list[object]()

    def leaving(receipt: Receipt) -> None:
        heard.append(receipt)
        inside.set()
        assert go.wait(PATIENCE)
        if len(heard) <= 601:
            sys.exit(1)

    with (
        ScriptedServer([Serve()], last="repeat") as server,
        ThreadedSender(server.url, workers=1, on_receipt=leaving) as sender,
    ):
        sender.submit(one("a"))
        assert inside.wait(PATIENCE)
        for number in range(600):
            assert sender.submit(one(f"b{number}")).cancel()
        go.set()
        assert sender.submit(one("c")).result(PATIENCE).outcome is Outcome.SENT
    assert len(heard) == 602


@pytest.mark.parametrize("calls", ["nothing", "submit"])
def test_closing_waits_no_longer_than_it_says_for_a_callback_of_a_worker_that_has_ended(
    calls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells of what a caller has taken back when it is no worker any more; its thread is waited for all the same."""
    monkeypatch.setattr(_closing, "FAREWELL", 0.1)
    first, last, go = threading.Event(), threading.Event(), threading.Event()
    met: list[Exception] = []

    def on_receipt(receipt: Receipt) -> None:
        if not first.is_set():
            first.set()
            return
        last.set()
        assert go.wait(PATIENCE)
        if calls == "submit":
            try:
                sender.submit(one("late"))
            except (MailError, RuntimeError) as error:
                met.append(error)

    throttle = Throttle()
    with ScriptedServer([Serve()], last="repeat") as server:
        sender = ThreadedSender(server.url, workers=1, on_receipt=on_receipt, throttle=throttle)
        try:
            sender.send(one("a"))
            assert first.wait(PATIENCE)
            throttle.pause(3600.0)
            with sender._dispatcher._lock:  # the worker is told to end before it is told to announce
                assert sender.submit(one("b")).cancel()
                sender._dispatcher._schedule.limit.workers = 0
            assert last.wait(PATIENCE)
            assert sender.stats().lanes == 0
            assert sender.close(timeout=0.0) == []
            assert not go.is_set()
            with pytest.raises(Closed):
                sender.submit(one("c"), deadline=PATIENCE)
        finally:
            go.set()
            sender.close(timeout=PATIENCE)
    until(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("threadmail-lane")], PATIENCE, "its thread"
    )
    assert [type(error) for error in met] == ([Closed] if calls == "submit" else [])


def test_threads_that_are_lost_one_after_another_are_not_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = Starter._over
    lost = list[threading.Thread]()

    def struck(starter: Starter, *given: Any) -> None:
        over(starter, *given)
        lost.append(threading.current_thread())
        raise Strike

    def lanes() -> int:
        return len([thread for thread in threading.enumerate() if thread.name.startswith("threadmail-lane")])

    monkeypatch.setattr(Starter, "_over", struck)
    with ScriptedServer([Serve()], last="repeat") as server:
        with ThreadedSender(ServerConfig("127.0.0.1", server.port, idle_timeout=0.01), workers=2) as sender:
            for number in range(4):
                assert sender.submit(one(f"m{number}")).result(PATIENCE).outcome is Outcome.SENT
                assert lanes() <= 2
                until(lambda: len(lost) > number, PATIENCE, "the strike")  # noqa: B023
                lost[number].join(PATIENCE)
