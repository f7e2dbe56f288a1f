"""The threaded sender: every message gets its receipt, retries wait in the queue, and the end leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, as_completed

import pytest

from tests.support.mail import envelope, in_threads, intact, message, said_goodbye
from threadmail import (
    Aborted,
    Closed,
    ConnectionLost,
    DeliveryFailed,
    Envelope,
    HostNotFound,
    LoginRefused,
    MailError,
    Outcome,
    QueueFull,
    Receipt,
    Reentered,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Throttle,
    TimedOut,
)
from threadmail._dispatch.job import SendFuture
from threadmail.testing import (
    CapturedMessage,
    CaptureServer,
    Drop,
    Pause,
    Reply,
    ScriptedServer,
    Serve,
    Signal,
    Stall,
)

QUICK = RetryPolicy(base=0.01, longest=0.02)


def one(name: str) -> Envelope:
    """An envelope with a single recipient."""
    return envelope(name).for_recipients(f"to-{name}@example.net")


# ---------------------------------------------------------------- one message


def test_a_future_gives_the_receipt() -> None:
    with CaptureServer() as server, ThreadedSender(server.url) as sender:
        future = sender.submit(message("a"))
        receipt = future.result(10.0)
        assert receipt.outcome is Outcome.SENT
        assert future.done()
        assert not future.running()
        assert not future.cancel()
        assert not sender.abort(future)


def test_a_future_gives_the_error_of_a_message_not_sent() -> None:
    with CaptureServer(on_message=lambda m: "554 5.7.1 no") as server, ThreadedSender(server.url) as sender:
        error = sender.submit(message()).exception(10.0)
        assert isinstance(error, MailError)
        assert error.outcome is Outcome.NOT_SENT
        assert error.receipt is not None
        assert error.receipt.attempts == 1
        with pytest.raises(MailError, match=r"5\.7\.1"):
            sender.send(message())


def test_nothing_starts_before_the_first_message() -> None:
    before = threading.active_count()
    with ThreadedSender("smtp://127.0.0.1:1") as sender:
        assert threading.active_count() == before
        assert sender.stats().lanes == 0


def test_a_message_can_be_cancelled_until_it_is_on_the_wire() -> None:
    on_wire, go = threading.Event(), threading.Event()
    script = [Serve(until="MAIL"), Signal(on_wire), Pause(go), Serve()]
    with ScriptedServer(script) as server, ThreadedSender(server.url, workers=1) as sender:
        first, second, third = (sender.submit(one(name)) for name in "abc")
        assert on_wire.wait(10.0)
        assert first.running()
        assert not first.cancel()
        assert second.cancel()
        assert second.cancelled()
        go.set()
        assert set(as_completed([first, second, third], 10.0)) == {first, second, third}
        with pytest.raises(CancelledError):
            second.result()
        assert first.result().outcome is third.result().outcome is Outcome.SENT
    assert [m.sender[5] for m in server.messages] == ["a", "c"]


def test_a_message_cancelled_while_its_connection_fails_stays_cancelled() -> None:
    """A failed reconnect puts a message back into the queue, but not one that was taken back meanwhile."""
    reached, go = threading.Event(), threading.Event()
    hangs_up = [Serve(until="."), Reply("250 ok"), Drop()]
    lets_nobody_in = [Signal(reached), Pause(go), Reply("450 4.3.0 not now"), Drop()]
    with ScriptedServer(hangs_up, lets_nobody_in, [Serve()]) as server:
        with ThreadedSender(server.url, workers=1, retry=QUICK) as sender:
            sender.send(one("a"))
            server.wait_for_connections(0)
            taken_back = sender.submit(one("b"))
            assert reached.wait(10.0)
            assert taken_back.cancel()
            go.set()
            assert sender.send(one("c")).outcome is Outcome.SENT
    assert [m.sender[5] for m in server.messages] == ["a", "c"]


@pytest.mark.parametrize(("at", "outcome"), [("MAIL", Outcome.NOT_SENT), ("end", Outcome.IN_DOUBT)])
def test_abort_ends_a_message_in_flight_and_nothing_else(at: str, outcome: Outcome) -> None:
    reached = threading.Event()
    until = "MAIL" if at == "MAIL" else "."
    with ScriptedServer([Serve(until=until), Signal(reached), Stall()], [Serve()]) as server:
        with ThreadedSender(server.url, workers=1, retry=QUICK) as sender:
            first, second = sender.submit(one("a")), sender.submit(one("b"))
            assert reached.wait(10.0)
            assert sender.abort(first)
            error = first.exception(10.0)
            assert isinstance(error, Aborted)
            assert error.outcome is outcome
            assert second.result(10.0).outcome is Outcome.SENT


def test_send_waits_no_longer_than_its_deadline() -> None:
    with ScriptedServer([Serve(until="MAIL"), Stall()], [Serve()], last="repeat") as server:
        with ThreadedSender(server.url, workers=1, retry=QUICK) as sender:
            started = time.monotonic()
            with pytest.raises(TimedOut) as caught:
                sender.send(one("a"), deadline=0.2)
            assert time.monotonic() - started < 2.0
            assert caught.value.outcome is Outcome.NOT_SENT


def test_the_deadline_covers_the_wait_for_a_place_in_the_queue() -> None:
    on_wire, go = threading.Event(), threading.Event()
    script = [Serve(until="MAIL"), Signal(on_wire), Pause(go), Serve()]
    with ScriptedServer(script) as server, ThreadedSender(server.url, workers=1, queue_size=1) as sender:
        sender.submit(one("a"))
        assert on_wire.wait(10.0)
        sender.submit(one("b"))
        with pytest.raises(TimedOut, match="place in the queue"):
            sender.submit(one("c"), deadline=0.05)
        go.set()


# ---------------------------------------------------------------- many messages


def test_the_report_is_in_input_order_and_a_bad_message_costs_nobody_else() -> None:
    messages: list[object] = [envelope(f"t{i}") for i in range(50)]
    messages[7] = b"no message at all"
    messages[11] = b"From: a@example.org\r\nTo: a b\r\n\r\n"
    with CaptureServer() as server, ThreadedSender(server.url, workers=4) as sender:
        report = sender.send_all(messages)  # type: ignore[arg-type]
    assert len(report) == 50
    assert [r.message_id for r in report[:3]] == ["<t0@example.org>", "<t1@example.org>", "<t2@example.org>"]
    assert [i for i, r in enumerate(report) if r.outcome is not Outcome.SENT] == [7, 11]
    assert "no header field" in str(report[7].error)
    assert "To field" in str(report[11].error)
    assert report.counts()[Outcome.SENT] == len(server.messages) == 48
    with pytest.raises(DeliveryFailed, match="2 not sent") as caught:
        report.raise_for_failures()
    assert caught.value.report is report


GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


class Watched(Envelope):
    """Counts how many of its kind are alive."""

    alive = 0
    peak = 0
    counting = threading.RLock()  # guards the two; re-entrant, since a collection may begin anywhere

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        with Watched.counting:
            Watched.alive += 1
            Watched.peak = max(Watched.peak, Watched.alive)

    def __del__(self) -> None:
        with Watched.counting:
            Watched.alive -= 1


@pytest.mark.parametrize(("way", "count"), [("send_all", 2_000), ("send_each", 10_000)])
def test_thousands_of_messages_from_a_generator_need_the_memory_of_a_queue(way: str, count: int) -> None:
    """The generator is pulled no faster than messages leave: at most the queue, the lanes and a few more are alive."""
    Watched.alive = Watched.peak = 0
    pulled_by: set[int] = set()

    def stream() -> Iterator[Envelope]:
        for i in range(count):
            pulled_by.add(threading.get_ident())
            yield Watched(f"from-{i}@example.org", f"to-{i}@example.net", b"Subject: x\r\n\r\nhello")

    server = ScriptedServer([Serve()], last="repeat")
    with server, ThreadedSender(server.url, workers=2, queue_size=50) as sender:
        if way == "send_all":
            report = sender.send_all(stream())
            assert [r.sender for r in report[:3]] == ["from-0@example.org", "from-1@example.org", "from-2@example.org"]
            outcomes = Counter(r.outcome for r in report)
        else:
            outcomes = Counter(r.outcome for r in sender.send_each(stream()))
    gc.collect()
    assert outcomes == {Outcome.SENT: count}
    print(f"{way}: at most {Watched.peak} envelopes alive")
    # Free of the GIL, what one thread made and another let go of is freed only when the first comes round to it.
    assert Watched.peak <= (50 + 2 + 8) * (1 if GIL else 2)
    assert pulled_by == {threading.get_ident()}


def test_send_each_yields_as_messages_finish() -> None:
    """A slow message holds back nobody's receipt."""
    stuck, go = threading.Event(), threading.Event()
    slow = [Serve(until="MAIL"), Signal(stuck), Pause(go), Serve()]
    with ScriptedServer(slow, [Serve()]) as server, ThreadedSender(server.url, workers=2) as sender:

        def stream() -> Iterator[Envelope]:
            yield one("slow")
            assert stuck.wait(10.0)
            yield from (one(f"quick{i}") for i in range(5))

        senders = []
        for receipt in sender.send_each(stream()):
            senders.append(receipt.sender)
            if len(senders) == 5:
                go.set()
    assert senders[-1] == "from-slow@example.org"
    assert len(senders) == 6


def test_an_iterable_that_raises_keeps_the_receipts_it_has_earned() -> None:
    def stream() -> Iterator[Envelope]:
        yield one("a")
        yield one("b")
        raise LookupError("the database went away")

    got: list[Receipt] = []
    with CaptureServer() as server, ThreadedSender(server.url) as sender:
        with pytest.raises(LookupError):
            got.extend(sender.send_each(stream()))
    assert [r.outcome for r in got] == [Outcome.SENT, Outcome.SENT]


def test_a_batch_ends_at_its_deadline() -> None:
    """One message hangs at the server; the others are sent or taken back, and each has a receipt that says so."""
    with ScriptedServer([Serve(until="MAIL"), Stall()], [Serve()], last="repeat") as server:
        with ThreadedSender(server.url, workers=1, retry=RetryPolicy(attempts=1)) as sender:
            started = time.monotonic()
            report = sender.send_all([one(name) for name in "abc"], deadline=0.3)
            assert time.monotonic() - started < 3.0
    assert report.counts()[Outcome.NOT_SENT] == 3
    assert all(isinstance(r.error, TimedOut) for r in report)


def test_progress_is_told_on_the_callers_thread() -> None:
    told: list[tuple[int, int | None, int]] = []
    with CaptureServer() as server, ThreadedSender(server.url) as sender:
        sender.send_all(
            [one("a"), one("b")], progress=lambda done, total: told.append((done, total, threading.get_ident()))
        )
        sender.send_all(
            iter([one("c")]), progress=lambda done, total: told.append((done, total, threading.get_ident()))
        )
    me = threading.get_ident()
    assert told == [(1, 2, me), (2, 2, me), (1, None, me)]


# ---------------------------------------------------------------- retries


def test_a_transient_refusal_is_tried_again_with_the_same_message_id() -> None:
    answers = iter(["451 4.3.0 later", "451 4.3.0 later"])
    with CaptureServer(on_message=lambda m: next(answers, None)) as server:
        with ThreadedSender(server.url, retry=QUICK) as sender:
            receipt = sender.send(message("a"))
            assert receipt.outcome is Outcome.SENT
            assert receipt.attempts == 3
            assert sender.stats().retries == 2
    [arrived] = server.messages
    assert arrived.message["Message-ID"] == receipt.message_id


def test_only_the_deferred_recipients_are_tried_again() -> None:
    """One is accepted, one deferred once, one refused for good: nobody gets the message twice."""
    seen: Counter[str] = Counter()

    def judge(recipient: str) -> str | None:
        seen[recipient] += 1
        if recipient.startswith("late"):
            return "450 4.2.0 greylisted" if seen[recipient] == 1 else None
        return "550 5.1.1 unknown" if recipient.startswith("gone") else None

    mail = envelope("a").for_recipients(["good@example.net", "late@example.net", "gone@example.net"])
    with CaptureServer(on_recipient=judge) as server, ThreadedSender(server.url, retry=QUICK) as sender:
        receipt = sender.send(mail)
    assert [m.recipients for m in server.messages] == [("good@example.net",), ("late@example.net",)]
    assert receipt.outcome is Outcome.PARTIAL
    assert set(receipt.accepted) == {"good@example.net", "late@example.net"}
    assert list(receipt.refused) == ["gone@example.net"]
    assert receipt.recipients == mail.recipients
    assert receipt.attempts == 2


def test_a_permanent_refusal_is_final() -> None:
    with (
        CaptureServer(on_message=lambda m: "550 5.7.1 never") as server,
        ThreadedSender(server.url, retry=QUICK) as sender,
    ):
        [receipt] = sender.send_all([one("a")])
        assert receipt.attempts == 1


def test_attempts_and_total_time_end() -> None:
    with CaptureServer(on_message=lambda m: "451 4.3.0 later") as server:
        with ThreadedSender(server.url, retry=dataclasses.replace(QUICK, attempts=3)) as sender:
            assert sender.send_all([one("a")])[0].attempts == 3
        with ThreadedSender(server.url, retry=RetryPolicy(base=100.0, total=0.0), rng=random.Random(1)) as sender:
            assert sender.send_all([one("a")])[0].attempts == 1


@pytest.mark.parametrize(("again", "expected"), [(False, Outcome.IN_DOUBT), (True, Outcome.SENT)])
def test_what_is_in_doubt_is_sent_again_only_if_you_allow_it(again: bool, expected: Outcome) -> None:
    with ScriptedServer([Serve(until="."), Drop()], [Serve()]) as server:
        policy = dataclasses.replace(QUICK, resend_in_doubt=again)
        with ThreadedSender(server.url, workers=1, retry=policy) as sender:
            [receipt] = sender.send_all([one("a")])
            assert receipt.outcome is expected
            if not again:
                assert isinstance(receipt.error, ConnectionLost)
        assert len(server.messages) == (2 if again else 1)


def test_a_retry_waits_in_the_queue_and_holds_up_nobody() -> None:
    """With one lane: the message that waits for its second attempt does not keep the lane from the others."""
    first = threading.Event()

    def judge(m: CapturedMessage) -> str | None:
        if m.sender.startswith("from-late") and not first.is_set():
            first.set()
            return "451 4.3.0 later"
        return None

    with CaptureServer(on_message=judge) as server:
        policy = RetryPolicy(base=1.0, longest=0.6)
        with ThreadedSender(server.url, workers=1, retry=policy, rng=random.Random(3)) as sender:
            order = [r.sender for r in sender.send_each(one(name) for name in ["late", "x", "y", "z"])]
    assert order[-1] == "from-late@example.org"


def test_a_waiting_retry_can_be_cancelled() -> None:
    refused = threading.Event()

    def judge(m: CapturedMessage) -> str:
        refused.set()
        return "451 4.3.0 later"

    with CaptureServer(on_message=judge) as server:
        with ThreadedSender(server.url, retry=RetryPolicy(base=1000.0, longest=1000.0, total=9999.0)) as sender:
            future = sender.submit(one("a"))
            assert refused.wait(10.0)
            end = time.monotonic() + 10.0
            while not sender.stats().retrying:
                assert time.monotonic() < end
                threading.Event().wait(0.001)
            assert future.cancel()


# ---------------------------------------------------------------- servers with limits, dead servers, hung-up servers


def test_a_connection_limit_means_fewer_lanes_not_failed_messages() -> None:
    with CaptureServer(max_connections=2) as server, ThreadedSender(server.url, workers=6, retry=QUICK) as sender:
        report = sender.send_all(one(f"t{i}") for i in range(60))
        assert report.counts()[Outcome.SENT] == 60
        assert sender.stats().connected <= 2
    assert server.max_simultaneous <= 2


def test_throttling_by_the_server_pauses_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    answers = iter(["454 4.7.0 too fast", "454 4.7.0 too fast"])
    throttle = Throttle()
    monkeypatch.setattr(throttle, "pause", pauses.append)
    with CaptureServer(on_message=lambda m: next(answers, None)) as server:
        with ThreadedSender(server.url, workers=1, retry=QUICK, throttle=throttle) as sender:
            assert sender.send(one("a")).outcome is Outcome.SENT
    assert pauses == [1.0, 2.0]


def test_a_throttle_spaces_messages() -> None:
    with CaptureServer() as server, ThreadedSender(server.url, throttle=Throttle(20, per=1.0)) as sender:
        started = time.monotonic()
        sender.send_all(one(f"t{i}") for i in range(6))
        assert time.monotonic() - started >= 5 / 20


def test_a_dead_server_is_dialled_by_one_probe_at_a_time_and_then_given_up() -> None:
    """Eight lanes and twenty messages: as many dials as the policy has attempts, and each message is told why."""
    dead = [Reply("450 4.3.0 down for maintenance"), Drop()]
    with ScriptedServer(dead, last="repeat") as server:
        policy = RetryPolicy(attempts=3, base=0.02, longest=0.05)
        with ThreadedSender(server.url, workers=8, retry=policy) as sender:
            report = sender.send_all([one(f"t{i}") for i in range(20)])
    assert report.counts()[Outcome.NOT_SENT] == 20
    assert all("maintenance" in str(r.error) for r in report)
    assert all(r.error is not None and r.error.transient for r in report)
    assert server.connections <= 4
    assert server.max_simultaneous == 1


def test_a_server_that_comes_back_gets_everything() -> None:
    dead = [Reply("450 4.3.0 down for maintenance"), Drop()]
    with ScriptedServer(dead, dead, [Serve()], last="repeat") as server:
        with ThreadedSender(server.url, workers=4, retry=RetryPolicy(base=0.02, longest=0.05)) as sender:
            assert sender.send_all(one(f"t{i}") for i in range(20)).counts()[Outcome.SENT] == 20


@pytest.mark.parametrize("kind", ["name", "login"])
def test_what_will_never_work_fails_at_once_and_for_all(kind: str) -> None:
    """No retries, no hammering: one refused login, one unknown name, and every message has the reason."""
    with CaptureServer(tls="starttls", auth={"me": "right"}) as server:
        config = dataclasses.replace(server.config, password="not so")
        target = config if kind == "login" else "smtp://no-such-host.invalid"
        with ThreadedSender(target, workers=4) as sender:
            started = time.monotonic()
            report = sender.send_all(one(f"t{i}") for i in range(10))
            assert time.monotonic() - started < 5.0
        assert server.connections_opened == (1 if kind == "login" else 0)
    assert all(isinstance(r.error, LoginRefused if kind == "login" else HostNotFound) for r in report)


@pytest.mark.parametrize("mode", ["fin", "reset", "421"])
def test_a_server_that_hung_up_goes_unnoticed(mode: str) -> None:
    with CaptureServer() as server, ThreadedSender(server.url, workers=2) as sender:
        assert sender.send(one("a")).outcome is Outcome.SENT
        server.drop_connections(mode)  # type: ignore[arg-type]
        receipt = sender.send(one("b"))
        assert (receipt.outcome, receipt.attempts) == (Outcome.SENT, 1)


def test_idle_lanes_say_goodbye_and_start_again_with_work() -> None:
    with CaptureServer() as server:
        with ThreadedSender(dataclasses.replace(server.config, idle_timeout=0.1), workers=3) as sender:
            sender.send_all(one(f"t{i}") for i in range(9))
            server.wait_for_connections(0)
            assert said_goodbye(server)
            assert sender.send(one("again")).outcome is Outcome.SENT


# ---------------------------------------------------------------- callbacks


def test_a_callback_that_raises_harms_nothing() -> None:
    got: list[Receipt] = []

    def tell(receipt: Receipt) -> None:
        got.append(receipt)
        raise RuntimeError("the callback is broken")

    with CaptureServer() as server, ThreadedSender(server.url, on_receipt=tell) as sender:
        report = sender.send_all([one("a"), b"rubbish", one("b")])
    assert [r.outcome for r in report] == [Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT]
    assert len(got) == 3


def test_a_callback_may_submit_but_not_wait() -> None:
    """Waiting for the sender on one of its own lanes would be waiting for itself."""
    refused: list[type[BaseException]] = []
    more: list[object] = []

    def tell(receipt: Receipt) -> None:
        if receipt.sender != "from-a@example.org":
            return
        for forbidden in (lambda: sender.send(one("x")), lambda: sender.send_all([one("x")])):
            try:
                forbidden()
            except Reentered as error:
                refused.append(type(error))
        more.append(sender.submit(one("b")))

    with CaptureServer() as server, ThreadedSender(server.url, workers=1, on_receipt=tell) as sender:
        sender.send(one("a"))
    assert refused == [Reentered] * 2
    assert [m.sender[5] for m in server.messages] == ["a", "b"]


def test_a_callback_that_closes_has_begun_the_closing_and_another_call_sees_it_through() -> None:
    met: list[type[BaseException]] = []

    def tell(_: Receipt) -> None:
        for act in (sender.close, lambda: sender.submit(one("b"))):
            try:
                act()
            except MailError as error:
                met.append(type(error))

    with CaptureServer() as server, ThreadedSender(server.url, workers=1, on_receipt=tell) as sender:
        sender.send(one("a"))
    assert met == [Reentered, Closed]
    assert [m.sender[5] for m in server.messages] == ["a"]


def test_a_callback_does_not_wait_for_a_place_in_a_full_queue() -> None:
    full: list[BaseException] = []
    filled = threading.Event()

    def tell(receipt: Receipt) -> None:
        assert filled.wait(10.0)
        try:
            sender.submit(one("more"))
        except QueueFull as error:
            full.append(error)
        told.set()

    told = threading.Event()
    with CaptureServer() as server:
        config = ServerConfig.from_url(server.url, without=frozenset({"pipelining"}))  # else b may be prefetched
        sender = ThreadedSender(config, workers=1, queue_size=1, on_receipt=tell)
        first = sender.submit(one("a"))
        while not first.running() and not first.done() and not server.messages:
            threading.Event().wait(0.001)
        sender.submit(one("b"))
        filled.set()
        first.result(10.0)
        assert told.wait(10.0)  # the future comes first
        sender.close()
    assert full


# ---------------------------------------------------------------- the end


def test_close_sends_what_is_queued_and_then_refuses() -> None:
    with CaptureServer() as server:
        sender = ThreadedSender(server.url, workers=2)
        futures = [sender.submit(one(f"t{i}")) for i in range(30)]
        assert sender.close() == []
        assert all(f.result(0).outcome is Outcome.SENT for f in futures)
        with pytest.raises(Closed):
            sender.submit(one("late"))
        assert sender.close() == []
        assert intact(server.messages).total() == 30
        assert said_goodbye(server)


def test_close_without_draining_gives_back_what_was_not_sent() -> None:
    on_wire, go = threading.Event(), threading.Event()
    script = [Serve(until="MAIL"), Signal(on_wire), Pause(go), Serve()]
    with ScriptedServer(script) as server:
        sender = ThreadedSender(server.url, workers=1)
        futures = [sender.submit(one(name)) for name in "abc"]
        assert on_wire.wait(10.0)
        threading.Timer(0.05, go.set).start()
        unsent = sender.close(drain=False)
        assert [u.envelope.sender[5] for u in unsent] == ["b", "c"]
        assert all(u.receipt.outcome is Outcome.NOT_SENT for u in unsent)
        assert futures[0].result(0).outcome is Outcome.SENT
        assert isinstance(futures[1].exception(0), Closed)


def test_close_ends_in_time_although_the_server_stalls() -> None:
    """What hangs on the wire is dropped, what is queued comes back, each with its outcome."""
    reached = threading.Event()
    with ScriptedServer([Serve(until="."), Signal(reached), Stall()], last="refuse") as server:
        sender = ThreadedSender(server.url, workers=1)
        sender.submit(one("a"))
        sender.submit(one("b"))
        assert reached.wait(10.0)
        started = time.monotonic()
        unsent = sender.close(timeout=0.2)
        assert time.monotonic() - started < 3.0
    assert {u.envelope.sender[5]: u.receipt.outcome for u in unsent} == {"a": Outcome.IN_DOUBT, "b": Outcome.NOT_SENT}


def test_an_exception_in_the_block_does_not_wait_for_the_queue() -> None:
    """Ctrl-C must not mean: after the next ten thousand messages."""

    def interrupted(url: str) -> None:
        with ThreadedSender(url, workers=1) as sender:
            sender.submit(one("a"), deadline=0.5)
            futures.append(sender.submit(one("b")))
            assert reached.wait(10.0)
            raise KeyError

    reached = threading.Event()
    futures: list[SendFuture] = []
    with ScriptedServer([Serve(until="MAIL"), Signal(reached), Stall()]) as server:
        with pytest.raises(KeyError):
            interrupted(server.url)
    assert isinstance(futures[0].exception(0), Closed)


def test_interpreter_exit_sends_the_queue_and_says_what_it_could_not() -> None:
    """A script that forgets close(): the messages leave all the same, and a stalled server does not hold the exit."""
    program = """
import sys
import threadmail, threadmail._dispatch.at_exit
threadmail._dispatch.at_exit.GRACE = 0.5
sender = threadmail.ThreadedSender(sys.argv[1], workers=2)
for i in range(5):
    sender.submit(threadmail.Envelope(f"from-t{i}@example.org", f"to-t{i}@example.net", b"Subject: x\\r\\n\\r\\nhello"))
"""

    def run(url: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=30.0, check=False
        )

    with CaptureServer() as server:
        done = run(server.url)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(server.wait_for(5)) == 5
        server.wait_for_connections(0)
        assert said_goodbye(server)
    with ScriptedServer([Stall()], last="repeat") as stalled:
        started = time.monotonic()
        done = run(stalled.url)
        assert time.monotonic() - started < 15.0
        assert "5 messages were not sent" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_begins_with_an_empty_queue_and_lanes_of_its_own() -> None:
    with CaptureServer() as server, ThreadedSender(server.url, workers=2) as sender:
        sender.send(one("a"))
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                status = 0 if sender.send(one("b"), deadline=5.0).outcome is Outcome.SENT else 2
                sender.close()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert sender.send(one("c")).outcome is Outcome.SENT
        assert Counter(m.sender[5] for m in server.wait_for(3)) == {"a": 1, "b": 1, "c": 1}


def test_closing_from_two_threads_at_once_is_one_close() -> None:
    with CaptureServer() as server:
        sender = ThreadedSender(server.url, workers=2)
        for i in range(20):
            sender.submit(one(f"t{i}"))
        assert in_threads(2, lambda _: sender.close()) == []
        assert len(server.messages) == 20


def test_stats_count_what_was_queued_and_a_report_tells_of_the_rest() -> None:
    """What is refused at the door never was in the queue that they are about."""
    with CaptureServer() as server, ThreadedSender(server.url) as sender:
        report = sender.send_all([one("a"), b"no message"])
        assert [r.outcome for r in report] == [Outcome.SENT, Outcome.NOT_SENT]
        assert sender.stats().outcomes == {Outcome.SENT: 1}


def test_stats_add_up() -> None:
    with CaptureServer(on_message=lambda m: "550 no" if "bad" in m.sender else None) as server:
        # One lane: with two, one may still be dialling when the other has sent everything, and is hung up on.
        with ThreadedSender(server.url, workers=1, retry=QUICK) as sender:
            sender.send_all([one("a"), one("bad"), one("b")])
            stats = sender.stats()
            assert stats.outcomes == {Outcome.SENT: 2, Outcome.NOT_SENT: 1}
            assert (stats.queued, stats.retrying, stats.in_flight) == (0, 0, 0)
            assert (stats.lanes, stats.connected, stats.opened) == (1, 1, server.connections_opened)
    stats = sender.stats()
    assert (stats.lanes, stats.connected, stats.opened) == (0, 0, server.connections_opened)
    assert stats.closed == {"closed": server.connections_opened}


def test_wrong_numbers_are_refused() -> None:
    for wrong in ({"workers": 0}, {"queue_size": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            ThreadedSender("smtp://localhost", **wrong)  # type: ignore[arg-type]
    sender = ThreadedSender("smtp://localhost")
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(sender)


def test_who_is_refused_for_want_of_memory_is_named_in_the_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Receipt] = []
    letter = envelope("x")

    def no_memory(message: object) -> Envelope:
        raise MemoryError

    monkeypatch.setattr(Envelope, "of", no_memory)
    with ThreadedSender("smtp://127.0.0.1:1", on_receipt=told.append) as sender, pytest.raises(MemoryError):
        sender.send_all([letter])
    assert [(receipt.outcome, receipt.message_id) for receipt in told] == [(Outcome.NOT_SENT, letter.message_id)]
