"""What was taken back, or nobody came for: told without nesting, without piling up, and in words that are true."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from tests.support.mail import envelope
from threadmail import (
    Client,
    Envelope,
    GreetingRefused,
    MailError,
    Outcome,
    Receipt,
    RetryPolicy,
    SendFuture,
    ThreadedSender,
    Throttle,
    TimedOut,
)
from threadmail._dispatch.limits import NO_SIGNS, read_signs
from threadmail._dispatch.stream import ReceiptStream
from threadmail.errors import DataRefused, of_hook
from threadmail.testing import CaptureServer

PATIENCE = 20.0


def one(name: str) -> Envelope:
    """An envelope with a single recipient."""
    return envelope(name).for_recipients(f"to-{name}@example.net")


@pytest.mark.parametrize("reply", [None, "550 no", "paused"])
def test_a_callback_that_takes_back_all_the_others_is_not_called_within_itself(reply: str | None) -> None:
    """At the first one call the rest off, under a lock of one's own: 900 ended in RecursionErrors, or it hung."""
    futures: list[SendFuture] = []
    finished: list[Receipt] = []
    lock = threading.Lock()
    nested: list[Receipt] = []

    def call_off_the_rest(receipt: Receipt) -> None:
        if not lock.acquire(timeout=PATIENCE):
            nested.append(receipt)
            return
        try:
            for future in futures:
                future.cancel()
            finished.append(receipt)
        finally:
            lock.release()

    throttle = Throttle()
    with CaptureServer(on_message=lambda _: reply) as server:
        if reply == "paused":
            throttle.pause(3600.0)
        sender = ThreadedSender(server.url, workers=4, throttle=throttle, on_receipt=call_off_the_rest)
        futures += [sender.submit(one(str(n))) for n in range(400)]
        if reply == "paused":
            futures[0].cancel()
        assert not wait(futures, PATIENCE).not_done
        sender.close(drain=False, timeout=PATIENCE)
    assert not nested
    assert len(finished) == len({receipt.message_id for receipt in finished}) == 400


def test_a_callback_that_stops_its_stream_is_not_called_within_itself() -> None:
    depth: list[int] = []
    deepest = 0
    told: list[Receipt] = []
    streams: list[ReceiptStream] = []

    def stop(receipt: Receipt) -> None:
        nonlocal deepest
        depth.append(1)
        deepest = max(deepest, len(depth))
        streams[0].stop()
        told.append(receipt)
        depth.pop()

    throttle = Throttle()
    throttle.pause(3600.0)
    with ThreadedSender("smtp://127.0.0.1:1", workers=1, queue_size=4, throttle=throttle, on_receipt=stop) as sender:
        streams.append(sender.send_each([one(str(n)) for n in range(40)], deadline=0.2))
        receipts = list(streams[0])
    assert deepest == 1
    assert len(receipts) == len(told)
    assert len({receipt.message_id for receipt in told}) == len(told)


def test_who_has_a_deadline_calls_back_for_nobody_else() -> None:
    """Whatever is left for a busy worker to call back for."""
    go, reached = threading.Event(), threading.Event()
    here = threading.current_thread()
    told_here: list[Receipt] = []

    def hold(_: object) -> None:
        reached.set()
        go.wait(PATIENCE)

    def record(receipt: Receipt) -> None:
        if threading.current_thread() is here:
            told_here.append(receipt)

    with CaptureServer(on_message=hold) as server:
        sender = ThreadedSender(server.url, workers=1, queue_size=10, on_receipt=record)
        first = sender.submit(one("first"))
        assert reached.wait(PATIENCE)
        for n in range(100):
            assert sender.submit(one(str(n))).cancel()
        with pytest.raises(MailError):
            sender.send(one("late"), deadline=0.01)
        assert not told_here
        assert sender.stats().outcomes == {Outcome.NOT_SENT: 101}
        go.set()
        assert first.result(PATIENCE).outcome is Outcome.SENT
        sender.close(timeout=PATIENCE)


@pytest.mark.parametrize("text", [b"4.7.1 too fast", b"4.3.2 bye"])
@pytest.mark.parametrize("code", [421, 450, 454])
def test_what_a_hook_heard_from_another_server_is_no_sign_of_ours(code: int, text: bytes) -> None:
    said = DataRefused(code, text)
    ours = Receipt.not_sent(one("a"), of_hook(said))
    assert read_signs(ours) == NO_SIGNS
    assert read_signs(Receipt.not_sent(one("a"), said)) != NO_SIGNS


def test_a_hook_that_fails_costs_its_own_message_its_attempts_and_nobody_a_worker() -> None:
    """Its journal's 421 was read as our server's: seven attempts of two, and one worker of four."""
    with CaptureServer() as server, CaptureServer(on_message=lambda _: "421 4.3.2 bye") as journal:
        with Client(journal.url) as other:
            calls: list[object] = []

            def hook(_: object, tag: object) -> None:
                if tag == "bad":
                    calls.append(tag)
                    other.send(one("copy"))

            policy = RetryPolicy(attempts=2, base=0.001, total=PATIENCE)
            with ThreadedSender(server.url, workers=4, before_final=hook, retry=policy) as sender:
                bad = sender.submit(one("bad"), tag="bad")
                with pytest.raises(MailError):
                    bad.result(PATIENCE)
                assert len(calls) == 2
                limit = sender._dispatcher._schedule.limit
                assert (limit.workers, limit.pauses) == (4, 0)


@pytest.mark.parametrize("refused", [None, GreetingRefused(421, b"too many connections")])
def test_who_gave_no_deadline_is_not_told_that_it_passed(refused: GreetingRefused | None) -> None:
    """Nobody came for it within RetryPolicy.total: what one worker more was told decides, or that all were busy."""
    go, reached = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        reached.set()
        go.wait(PATIENCE)

    with CaptureServer(on_message=hold) as server:
        sender = ThreadedSender(server.url, workers=1)
        sender.submit(one("first"))
        assert reached.wait(PATIENCE)
        future = sender.submit(one("second"))
        schedule = sender._dispatcher._schedule
        if refused is not None:
            schedule.limit.let_in_no_more(2, 0.0, refused)
        [job] = schedule.ready
        schedule.expires(job, 0.0)  # as after an attempt for which there was no session
        sender._dispatcher.settle_overdue()
        error = future.exception(PATIENCE)
        go.set()
        sender.close(timeout=PATIENCE)
    assert isinstance(error, MailError)
    assert error is not refused
    assert isinstance(error, TimedOut if refused is None else GreetingRefused)
    assert "RetryPolicy.total" in str(error) or refused is not None
    assert (error.transient, error.deadline_passed) == (True, False)
