"""What an adversarial read found in the sender's core, each kind with the right behaviour.

The letters and numbers of the faults stand in the names of the groups only; each test states its claim.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import queue
import random
import signal
import socket
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.mail import envelope, intact
from threadmail import (
    Aborted,
    Closed,
    Envelope,
    LoginRefused,
    MailError,
    Outcome,
    Receipt,
    Reentered,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Throttle,
    TimedOut,
)
from threadmail._dispatch.job import SendFuture
from threadmail.testing import CaptureServer, Drop, Pause, Peer, Reply, ScriptedServer, Serve, Signal, Step

QUICK = RetryPolicy(base=0.01, longest=0.02)
PATIENCE = 20.0


def one(name: str) -> Envelope:
    """An envelope with a single recipient."""
    return envelope(name).for_recipients(f"to-{name}@example.net")


def arrived(server: ScriptedServer) -> Counter[str]:
    return Counter(m.sender.removeprefix("from-").partition("@")[0] for m in server.messages)


# ---------------------------------------------------------------- whose patience ended


def test_the_deadline_of_one_message_says_nothing_about_the_server() -> None:
    """It ends while its connection is replaced: the others are sent, and no worker less is allowed."""
    reconnects, go = threading.Event(), threading.Event()
    hangs_up = [Serve(until="."), Reply("250 ok"), Drop()]
    silent = [Signal(reconnects), Pause(go, PATIENCE)]
    with ScriptedServer(hangs_up, silent, [Serve()], last="repeat") as server:
        # With one attempt a server that is dead would end all that waits.
        with ThreadedSender(server.url, workers=1, retry=RetryPolicy(attempts=1)) as sender:
            sender.send(one("first"))
            server.wait_for_connections(0)
            hasty = sender.submit(one("hasty"), deadline=0.3)
            assert reconnects.wait(PATIENCE)
            others = [sender.submit(one(f"other{n}")) for n in range(3)]
            error = hasty.exception(PATIENCE)
            assert isinstance(error, TimedOut)
            assert error.deadline_passed
            assert [future.result(PATIENCE).outcome for future in others] == [Outcome.SENT] * 3
            go.set()
        assert sender._dispatcher._schedule.breaker.failures == 0
        assert sender._dispatcher._schedule.limit.workers == 1


def test_a_reconnect_in_the_middle_of_an_attempt_asks_the_breaker() -> None:
    """The server is known to be dead: nobody dials it behind the breaker's back, whatever is in his hands."""
    hangs_up = [Serve(until="."), Reply("250 ok"), Drop()]
    with ScriptedServer(hangs_up, [Serve()], last="repeat") as server:
        with ThreadedSender(server.url, workers=1, retry=QUICK) as sender:
            sender.send(one("first"))
            server.wait_for_connections(0)
            dispatcher = sender._dispatcher
            with dispatcher._lock:
                breaker = dispatcher._schedule.breaker
                breaker.failed(MailError("dead", transient=True), time.monotonic())
                breaker.opens_at = time.monotonic() + 3600.0
            dials = server.connections
            with pytest.raises(TimedOut):
                sender.send(one("second"), deadline=0.3)
            assert server.connections == dials
            with dispatcher._lock:
                breaker.opens_at = 0.0
                dispatcher._not_empty.notify_all()
            assert sender.send(one("third"), deadline=PATIENCE).outcome is Outcome.SENT


# ---------------------------------------------------------------- retries that nothing ended


class OneInTwo(Step):
    """Lets one connection in and hangs up on it at MAIL; refuses the next."""

    def __init__(self) -> None:
        self._turn = itertools.count()

    def play(self, peer: Peer) -> None:
        steps = [Reply("421 4.3.2 no more")] if next(self._turn) % 2 else [Serve(until="MAIL")]
        for step in (*steps, Drop()):
            step.play(peer)


def test_a_server_that_lets_one_in_and_refuses_the_next_is_not_dialled_without_end() -> None:
    """Each session is hung up on at MAIL: the pauses grow, and the message is settled within `total`."""
    policy = RetryPolicy(attempts=1000, base=0.05, longest=10.0, total=2.0)
    with ScriptedServer([OneInTwo()], last="repeat") as server:
        with ThreadedSender(server.url, workers=1, retry=policy, rng=random.Random(1)) as sender:
            error = sender.submit(one("a")).exception(PATIENCE)
    assert isinstance(error, MailError)
    assert error.receipt is not None
    assert error.outcome is Outcome.NOT_SENT
    assert server.connections <= 20  # thousands, while a greeting made the server well again


def test_total_runs_on_while_the_server_pauses_everybody() -> None:
    """A pause holds each message back; what was tried is not tried again after `total`."""
    slow = Serve(replies={"MAIL": "450 4.7.1 slow down"})
    policy = RetryPolicy(attempts=5, base=0.01, total=1.5)
    with ScriptedServer([slow], last="repeat") as server:
        with ThreadedSender(server.url, workers=1, retry=policy) as sender:
            futures = [sender.submit(one(f"m{n}")) for n in range(4)]
            errors = [future.exception(PATIENCE) for future in futures]
    assert all(isinstance(error, MailError) for error in errors)
    for error in errors:
        assert isinstance(error, MailError)
        assert error.receipt is not None
        assert error.receipt.attempts <= 3, "the pauses last a second and two: no fourth attempt is within `total`"


# ---------------------------------------------------------------- what a dial may raise


@pytest.mark.parametrize("raised", [ValueError("odd"), TypeError("odd"), OSError("odd"), RuntimeError("odd")])
def test_whatever_a_dial_raises_is_a_failed_dial(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many dials as the policy has attempts, and an error of ours with the cause."""
    dials: list[object] = []

    def create_connection(*args: object, **settings: object) -> socket.socket:
        dials.append(args)
        raise raised

    monkeypatch.setattr(socket, "create_connection", create_connection)
    with ThreadedSender("smtp://127.0.0.1:9", workers=2, retry=RetryPolicy(attempts=3, base=0.01)) as sender:
        error = sender.submit(one("a")).exception(PATIENCE)
    assert isinstance(error, MailError)
    assert error.outcome is Outcome.NOT_SENT
    assert 1 <= len(dials) <= 3


def test_credentials_that_are_none_end_a_message_and_do_not_spin() -> None:
    asked: list[None] = []

    def credentials() -> Any:
        asked.append(None)

    with ScriptedServer([Serve(extensions=("AUTH PLAIN",))], last="repeat") as server:
        config = ServerConfig(server.config.host, server.config.port, credentials=credentials)
        with ThreadedSender(config, workers=1, retry=RetryPolicy(attempts=2, base=0.01)) as sender:
            error = sender.submit(one("a")).exception(PATIENCE)
    assert isinstance(error, MailError)
    assert len(asked) <= 2


# ---------------------------------------------------------------- closing, closing again, and who may


def busy_sender(server: ScriptedServer, reached: threading.Event, **settings: Any) -> ThreadedSender:
    sender = ThreadedSender(server.url, workers=1, retry=QUICK, **settings)
    sender.submit(one("busy"))
    assert reached.wait(PATIENCE)
    return sender


@pytest.fixture
def stalls() -> Iterator[SimpleNamespace]:
    """A server that takes a message and does not answer."""
    reached, go = threading.Event(), threading.Event()
    script = [Serve(until="."), Signal(reached), Pause(go, PATIENCE), Reply("250 ok"), Serve()]
    with ScriptedServer(script) as server:
        yield SimpleNamespace(server=server, reached=reached, go=go)
        go.set()


def test_a_second_close_shortens_the_first(stalls: SimpleNamespace) -> None:
    """It does not wait for what the first one allowed; both get the whole list."""
    sender = busy_sender(stalls.server, stalls.reached)
    lists: list[Any] = []
    first = threading.Thread(target=lambda: lists.append(sender.close(timeout=3600.0)))
    first.start()
    while not sender._dispatcher._settled._waiters:  # type: ignore[attr-defined]
        time.sleep(0.001)
    lists.append(sender.close(drain=False, timeout=0.1))
    first.join(PATIENCE)
    assert not first.is_alive()
    assert [[unsent.receipt.outcome for unsent in each] for each in lists] == [[Outcome.IN_DOUBT]] * 2
    assert sender.close() == []


def test_a_second_close_never_lengthens_the_first(stalls: SimpleNamespace) -> None:
    sender = busy_sender(stalls.server, stalls.reached)
    closing = threading.Thread(target=sender.close, kwargs={"timeout": 0.2})
    closing.start()
    assert [unsent.receipt.outcome for unsent in sender.close(timeout=3600.0)] in ([Outcome.IN_DOUBT], [])
    closing.join(PATIENCE)
    assert not closing.is_alive()


def test_a_signal_handler_may_close_while_the_same_thread_closes(stalls: SimpleNamespace) -> None:
    """It sees the end through itself; the call that it interrupted finds it done."""
    sender = busy_sender(stalls.server, stalls.reached)
    by_handler: list[Any] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: by_handler.append(sender.close(drain=False, timeout=0.1)))

    def interrupt() -> None:
        while not sender._dispatcher._settled._waiters:  # type: ignore[attr-defined]
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=interrupt).start()
    try:
        unsent = sender.close(timeout=3600.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [[each.receipt.outcome for each in told] for told in (unsent, *by_handler)] == [[Outcome.IN_DOUBT]] * 2


def test_a_callback_on_the_thread_that_closes_must_not_close(stalls: SimpleNamespace) -> None:
    raised: list[BaseException] = []

    def on_receipt(receipt: Receipt) -> None:
        if receipt.outcome is Outcome.NOT_SENT:
            try:
                sender.close(drain=False)
            except MailError as error:
                raised.append(error)

    sender = busy_sender(stalls.server, stalls.reached, on_receipt=on_receipt)
    for number in range(3):
        sender.submit(one(f"m{number}"))
    assert len(sender.close(drain=False, timeout=0.1)) == 4
    assert [type(error) for error in raised] == [Reentered] * 3


@pytest.mark.parametrize("call", ["stats", "submit", "cancel", "abort", "throttle", "close"])
def test_a_signal_handler_may_call_the_sender_in_the_middle_of_each_of_its_steps(call: str) -> None:
    """At each place where Python lets a handler in, within what the main thread does there under the lock."""
    throttle = Throttle(1000, per=1.0, burst=1000)
    throttle.pause(3600.0)  # nothing leaves: all stays with the callers
    with ScriptedServer([Serve()], last="repeat") as server:
        sender = ThreadedSender(server.url, workers=1, queue_size=10_000, throttle=throttle)
        nested = Nested(sender, call)
        futures = []
        for _ in range(3):
            nested.within(lambda: futures.append(sender.submit(one("a"))))
            nested.within(sender.stats)
            nested.within(lambda: [future.cancel() for future in futures])
            nested.within(lambda: sender.submit(one("b")).abort())
        assert nested.places > 50
        sender.close(drain=False, timeout=0.0)
        schedule = sender._dispatcher._schedule
        assert schedule.is_empty
        assert not schedule.line
        assert all(future.done() for future in [*futures, *nested.futures])


class Nested:
    """Calls the sender from within the main thread's own steps, at one place after the other."""

    def __init__(self, sender: ThreadedSender, call: str) -> None:
        self.sender, self.call = sender, call
        self.futures: list[Any] = []
        self.places = 0
        self._inside = False

    def within(self, act: Callable[[], object]) -> None:
        def look(frame: Any, event: str, argument: Any) -> None:
            if self._inside or event not in ("call", "c_return") or "threadmail" not in frame.f_code.co_filename:
                return
            self._inside = True
            try:
                self.places += 1
                self._act()
            finally:
                self._inside = False

        sys.setprofile(look)
        try:
            act()
        except Closed:
            pass
        finally:
            sys.setprofile(None)

    def _act(self) -> None:
        sender = self.sender
        if self.call == "stats":
            sender.stats()
        elif self.call == "throttle":
            sender.throttle.take()
        elif self.call == "close":
            if self.places == 40:
                sender.close(drain=False, timeout=0.0)
        else:
            try:
                self.futures.append(sender.submit(one("nested")))
            except Closed:
                return
            if self.call == "cancel":
                self.futures[0].cancel()
            elif self.call == "abort":
                self.futures[0].abort()


# ---------------------------------------------------------------- threads that cannot be started


def test_where_no_thread_can_be_started_a_message_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """And later messages find a thread again."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with ScriptedServer() as server, ThreadedSender(server.url) as sender:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            future = sender.submit(one("a"))
            error = future.exception(PATIENCE)
            assert isinstance(error, MailError)
            assert error.may_resend
            assert "can't start new thread" in str(error)
        assert sender.send(one("b"), deadline=PATIENCE).outcome is Outcome.SENT


# ---------------------------------------------------------------- what was taken back is gone at once


@pytest.mark.parametrize("how", ["cancel", "abort", "deadline"])
def test_what_was_taken_back_holds_no_content(how: str) -> None:
    throttle = Throttle()
    throttle.pause(3600.0)
    with ScriptedServer() as server:
        sender = ThreadedSender(server.url, workers=1, queue_size=10, throttle=throttle)
        sender.submit(one("stays"))
        contents = []
        for number in range(300):
            letter = one(f"m{number}")
            contents.append(weakref.ref(letter))
            future = sender.submit(letter, deadline=0.0 if how == "deadline" else 3600.0)
            if how == "deadline":
                assert isinstance(future.exception(PATIENCE), TimedOut)
            else:
                assert getattr(future, how)()
            del letter, future
        end = time.monotonic() + PATIENCE
        while sum(sender.stats().outcomes.values()) < len(contents) and time.monotonic() < end:
            time.sleep(0.01)  # a worker calls back for them, as soon as it gets to run
        while _held(contents) >= 100 and time.monotonic() < end:
            time.sleep(0.01)  # and has them in its hands for a moment after it has counted them
        # What the heap of deadlines still holds is bounded by what is there, and not by what was there.
        assert _held(contents) < 100
        sender.close(drain=False, timeout=0.0)


def _held(contents: list[weakref.ref[Envelope]]) -> int:
    gc.collect()
    return sum(content() is not None for content in contents)


def test_a_deadline_that_passes_costs_one_step_whatever_is_queued() -> None:
    """One of many expires: no other one is looked at."""
    throttle = Throttle()
    throttle.pause(3600.0)
    with ScriptedServer() as server:
        sender = ThreadedSender(server.url, workers=1, queue_size=3000, throttle=throttle)
        for number in range(2000):
            sender.submit(one(f"m{number}"), deadline=3600.0)
        looked_at = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal looked_at
            looked_at += 1

        hasty = sender.submit(one("hasty"), deadline=0.0)
        sys.setprofile(count)
        try:
            sender._dispatcher.settle_overdue()
        finally:
            sys.setprofile(None)
        assert isinstance(hasty.exception(PATIENCE), TimedOut)
        assert looked_at < 500
        sender.close(drain=False, timeout=0.0)


# ---------------------------------------------------------------- a greylist does not stop the others


class Longest(random.Random):
    """Each pause is as long as it can be."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Raising(random.Random):
    """Chance of somebody's own, with a mistake in it."""

    def uniform(self, a: float, b: float) -> float:
        raise ZeroDivisionError


class NoTokens(Throttle):
    """One of somebody's own, with a mistake in it."""

    def take(self) -> float:
        raise ZeroDivisionError


@pytest.mark.parametrize("settings", [{"rng": Raising()}, {"throttle": NoTokens()}], ids=["rng", "throttle"])
def test_a_worker_that_ends_early_is_not_followed_by_one_that_dials_at_once(settings: dict[str, Any]) -> None:
    """Each ended as soon as it was connected, and the next one dialled: 304 connections in a second."""
    policy = RetryPolicy(base=3600.0, longest=3600.0, total=7200.0)
    with CaptureServer() as server, ThreadedSender(server.url, retry=policy, **settings) as sender:
        with pytest.raises(TimedOut):
            sender.send(one("late"), deadline=0.5)
        assert server.connections_opened == 1
        assert sender._dispatcher._schedule.breaker.failures == 1
        sender.close(drain=False)


def test_messages_that_wait_for_another_attempt_take_no_place() -> None:
    """A domain with a greylist, a queue of five: all the others go through while those wait."""

    seen: Counter[str] = Counter()

    def on_message(message: Any) -> str | None:
        name = message.sender.removeprefix("from-").partition("@")[0]
        seen[name] += 1
        return "450 4.2.0 Greylisted" if name.startswith("grey") and seen[name] == 1 else None

    with CaptureServer(on_message=on_message) as server:
        policy = RetryPolicy(attempts=3, base=3600.0, longest=3600.0, total=7200.0)
        sender = ThreadedSender(
            server.url,
            workers=2,
            queue_size=5,
            retry=policy,
            rng=Longest(),
        )
        letters = [one(f"{'grey' if n % 2 else 'plain'}{n}") for n in range(60)]
        stream = sender.send_each(letters)
        came = [next(stream) for _ in range(30)]
        assert {receipt.outcome for receipt in came} == {Outcome.SENT}
        while sender.stats().retrying < 30:
            time.sleep(0.001)
        sender.close(drain=False, timeout=0.0)
        assert [receipt.outcome for receipt in stream] == [Outcome.NOT_SENT] * 30


def test_retries_have_a_bound_of_their_own() -> None:
    """Ten for each place: then callers wait, or the queue had no bound."""
    with ScriptedServer([Serve(replies={"MAIL": "450 4.2.0 Greylisted"})], last="repeat") as server:
        policy = RetryPolicy(attempts=3, base=3600.0, longest=3600.0, total=7200.0)
        sender = ThreadedSender(
            server.url,
            workers=1,
            queue_size=2,
            retry=policy,
            rng=Longest(),
        )
        for number in range(20):
            sender.submit(one(f"m{number}"), deadline=7200.0)
        while sender.stats().retrying < 20:
            time.sleep(0.001)
        with pytest.raises(TimedOut, match="place in the queue"):
            sender.submit(one("late"), deadline=0.05)
        sender.close(drain=False, timeout=0.0)


# ---------------------------------------------------------------- one door, one path


def test_who_waits_for_a_place_has_it_at_once_when_a_message_is_called_off() -> None:
    throttle = Throttle()
    throttle.pause(3600.0)
    with ScriptedServer() as server:
        sender = ThreadedSender(server.url, workers=1, queue_size=1, throttle=throttle)
        for how in ("cancel", "abort"):
            first = sender.submit(one("a"))
            placed: list[Any] = []
            waiter = threading.Thread(target=lambda: placed.append(sender.submit(one("b"))))  # noqa: B023
            waiter.start()
            while not sender._dispatcher._schedule.line:
                time.sleep(0.001)
            assert getattr(first, how)()
            waiter.join(PATIENCE)
            assert not waiter.is_alive()
            assert placed[0].cancel()
        sender.close(drain=False, timeout=0.0)


def test_places_are_given_in_the_order_of_asking() -> None:
    throttle = Throttle()
    throttle.pause(3600.0)
    with ScriptedServer() as server:
        sender = ThreadedSender(server.url, workers=1, queue_size=1, throttle=throttle)
        line = sender._dispatcher._schedule.line
        last = sender.submit(one("first"))
        placed: list[tuple[int, Any]] = []
        threads = []
        for number in range(5):
            work = lambda number=number: placed.append((number, sender.submit(one(f"m{number}"))))  # noqa: E731
            threads.append(threading.Thread(target=work))
            threads[-1].start()
            while len(line) <= number:
                time.sleep(0.001)
        for number in range(5):
            last.cancel()
            threads[number].join(PATIENCE)
            assert [each for each, _ in placed] == list(range(number + 1))
            last = placed[-1][1]
        sender.close(drain=False, timeout=0.0)


@pytest.mark.parametrize("how", ["cancel", "abort", "deadline of send", "deadline of send_all", "close"])
def test_every_message_is_told_of_once_and_counted(how: str) -> None:
    """By its future, then by `on_receipt`, and in the numbers: also when it was taken back or came too late."""
    throttle = Throttle()
    throttle.pause(3600.0)
    told: list[Receipt] = []
    with ScriptedServer() as server:
        with ThreadedSender(server.url, workers=1, throttle=throttle, on_receipt=told.append) as sender:
            sender.submit(one("stays"))  # keeps the worker there
            expected: list[type] = [Aborted]
            if how in ("cancel", "abort"):
                future = sender.submit(one("a"))
                assert getattr(future, how)()
                assert future.receipt is not None
                assert isinstance(future.receipt.error, Aborted)
            elif how == "deadline of send":
                with pytest.raises(TimedOut):
                    sender.send(one("a"), deadline=0.05)
                expected = [TimedOut]
            elif how == "deadline of send_all":
                report = sender.send_all([one(f"m{n}") for n in range(20)], deadline=0.05)
                assert len(report) == 20
                expected = [TimedOut] * 20
            else:
                expected = []
            sender.close(drain=False, timeout=0.0)
            assert sum(sender.stats().outcomes.values()) == len(expected) + 1
    assert Counter(type(receipt.error) for receipt in told) == Counter([*expected, Closed])


def test_the_error_of_a_message_carries_what_all_its_attempts_have_come_to() -> None:
    """In doubt first, refused second: in doubt."""
    script = [Serve(until="."), Drop()]
    with ScriptedServer(script, [Serve(replies={"RCPT": "550 5.1.1 no"})]) as server:
        policy = RetryPolicy(base=0.01, longest=0.02, resend_in_doubt=True)
        with ThreadedSender(server.url, workers=1, retry=policy) as sender:
            error = sender.submit(one("a")).exception(PATIENCE)
    assert isinstance(error, MailError)
    assert error.outcome is Outcome.IN_DOUBT
    assert not error.may_resend
    assert error.receipt is not None
    assert error.receipt.attempts == 2


# ---------------------------------------------------------------- what is logged


def test_a_handler_that_mails_what_is_logged_is_not_fed_by_what_it_sends(caplog: pytest.LogCaptureFixture) -> None:
    """What a future tells is INFO; that the server is gone is one warning."""
    caplog.set_level(logging.INFO, logger="threadmail")
    with ScriptedServer([Drop()], last="repeat") as server:
        with ThreadedSender(server.url, workers=1, retry=RetryPolicy(attempts=4, base=0.01)) as sender:
            assert len(sender.send_all([one(f"m{n}") for n in range(30)]).failures) == 30
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("no connection")
    assert sum(record.levelno == logging.INFO for record in caplog.records) >= 30


# ---------------------------------------------------------------- Ctrl-C in the loop


def test_who_goes_on_after_ctrl_c_gets_every_receipt() -> None:
    """It comes up at each place of the loop's own thread in turn: no receipt is lost, none comes twice."""
    with ScriptedServer([Serve()], last="repeat") as server, ThreadedSender(server.url, workers=2) as sender:
        for number in range(0, 400, 7):
            stream = sender.send_each([one(f"n{number}m{n}") for n in range(6)])
            got: list[str] = []
            places = 0

            def look(frame: Any, event: str, argument: Any, at: int = number) -> None:
                nonlocal places
                if event in ("call", "c_return") and frame.f_code.co_filename.endswith(
                    ("_dispatch/stream.py", "_dispatch/collector.py")
                ):
                    places += 1
                    if places == at:
                        raise KeyboardInterrupt

            for _ in range(2):
                sys.setprofile(look)
                try:
                    for receipt in stream:
                        got += (receipt.sender,)
                except KeyboardInterrupt:
                    pass
                finally:
                    sys.setprofile(None)
            assert sorted(got) == [f"from-n{number}m{n}@example.org" for n in range(6)]
    assert set(arrived(server).values()) == {1}


def test_stop_takes_back_what_no_worker_has_begun_and_tells_of_all() -> None:
    reached, go = threading.Event(), threading.Event()
    script = [Serve(until="."), Signal(reached), Pause(go, PATIENCE), Reply("250 ok"), Serve()]
    with ScriptedServer(script) as server, ThreadedSender(server.url, workers=1, queue_size=4) as sender:
        pulled: list[int] = []

        def letters() -> Iterator[Envelope]:
            for number in range(1000):
                pulled.append(number)
                yield one(f"m{number}")

        stream = sender.send_each(letters())
        stream._feed()
        assert reached.wait(PATIENCE)
        for _ in range(3):
            stream._feed()
        stream.stop()
        go.set()
        receipts = list(stream)
    outcomes = Counter(receipt.outcome for receipt in receipts)
    assert sum(outcomes.values()) == len(pulled)
    assert outcomes[Outcome.SENT] == len(arrived(server)) <= 3  # on the wire, or begun behind it


# ---------------------------------------------------------------- hooks of the outbox


@pytest.mark.parametrize("window", [1, 3])
def test_the_hook_before_the_end_of_data_knows_which_message_it_is_for(window: int) -> None:
    """And what it holds back is surely not sent."""
    asked: list[tuple[str, Any]] = []

    def hook(transaction: Any, tag: Any) -> None:
        asked.append((transaction.envelope.sender, tag))
        if tag == "held":
            raise LookupError("fenced off")

    extensions = ("PIPELINING", "CHUNKING", "8BITMIME")
    with ScriptedServer([Serve(extensions=extensions)], last="repeat") as server:
        config = ServerConfig(server.config.host, server.config.port, window=window)
        with ThreadedSender(config, workers=1, before_final=hook) as sender:
            futures = {}
            for name in ("a", "b", "held", "c", "d"):
                futures[name] = sender.submit(one(name), tag=name)
            errors = {name: future.exception(PATIENCE) for name, future in futures.items()}
            receipts = {name: future.receipt for name, future in futures.items()}
    assert [name for name, error in errors.items() if error is not None] == ["held"]
    held = errors["held"]
    assert isinstance(held, MailError)
    assert held.outcome is Outcome.NOT_SENT
    assert not held.may_resend
    assert isinstance(held.__cause__, LookupError)
    assert {name: receipt and receipt.tag for name, receipt in receipts.items()} == {name: name for name in receipts}
    assert Counter(asked) == Counter((f"from-{name}@example.org", name) for name in futures)
    assert arrived(server) == Counter("abcd")


def test_a_refused_login_ends_the_queue_with_its_own_class() -> None:
    with ScriptedServer([Serve(extensions=("AUTH PLAIN",), replies={"AUTH": "535 5.7.8 no"})], last="repeat") as server:
        config = ServerConfig(server.config.host, server.config.port, username="u", password="secret")
        with ThreadedSender(config, workers=2, retry=QUICK) as sender:
            report = sender.send_all([one(f"m{n}") for n in range(5)])
    assert {type(receipt.error) for receipt in report} == {LoginRefused}
    assert server.connections == 1


def test_intact_and_once_while_workers_steal_and_callers_cancel() -> None:
    rng = random.Random(7)
    with ScriptedServer([Serve()], last="repeat") as server:
        config = ServerConfig(server.config.host, server.config.port, max_messages=3)
        with ThreadedSender(config, workers=4, queue_size=300) as sender:
            futures = [sender.submit(envelope(f"r{i}")) for i in range(300)]
            taken_back = {i for i in rng.sample(range(300), 100) if futures[i].cancel()}
    assert intact(server.messages) == {f"r{i}": 1 for i in range(300) if i not in taken_back}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_leaves_its_parents_futures_alone() -> None:
    """The lock of the parent's sender may be held by a thread that does not exist here: nobody waits for it."""
    throttle = Throttle()
    throttle.pause(3600.0)
    with ScriptedServer() as server:
        sender = ThreadedSender(server.url, workers=1, throttle=throttle)
        future = sender.submit(one("a"))
        with sender._dispatcher._lock:
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
                threading.Thread(target=lambda: os._exit(_as_a_child(future))).start()  # as the lock is this thread's
                time.sleep(20.0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert future.cancel()
        sender.close(drain=False, timeout=0.0)


def _as_a_child(future: Any) -> int:
    if future.cancel() or future.abort() or future.done():
        return 1
    try:
        future.result(0.1)
    except MailError as error:
        return 0 if "submitted" in str(error) else 2
    return 3


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_receipt_is_told_though_there_was_no_memory_for_it(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MemoryError is no error of a callback: the message was sent, and who waits hears of it."""
    left = [times, times]

    def starved(which: int) -> None:
        if left[which]:
            left[which] -= 1
            raise MemoryError

    set_result = SendFuture.set_result

    def set_in_the_end(future: SendFuture, receipt: Receipt) -> None:
        starved(0)
        set_result(future, receipt)

    class News(queue.SimpleQueue[Any]):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            starved(1)
            super().put(item)

    monkeypatch.setattr(SendFuture, "set_result", set_in_the_end)
    monkeypatch.setattr("threadmail._dispatch.collector.queue", SimpleNamespace(SimpleQueue=News, Empty=queue.Empty))
    with ScriptedServer([Serve()], last="repeat") as server, ThreadedSender(server.url, workers=1) as sender:
        assert sender.submit(one("a")).result(10.0).outcome is Outcome.SENT
        (receipt,) = sender.send_all([one("b")], deadline=10.0)
        assert receipt.outcome is Outcome.SENT
    assert left == [0, 0]
