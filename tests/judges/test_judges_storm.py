"""The storm of exceptions from outside runs; and on forged targets it sees each thing that it claims to see."""

from __future__ import annotations

import gc
import logging
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stress import interrupts
from stress.interrupts import Ours, Round, Shelter, Strike, start_unstruck, storm_round
from stress.ledger import Fate, Ledger, make_envelope
from tests.support.naming import NamingServer
from tests.support.strikes import calm, strike
from threadmail import Outcome, Receipt, ServerConfig, ThreadedSender

pytest.importorskip("aiosmtpd")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    level = logging.getLogger("threadmail").level
    yield
    logging.getLogger("threadmail").setLevel(level)
    calm()


@pytest.mark.parametrize(
    ("name", "how"),
    [("client", "async"), ("client", "signal")],
)
def test_a_short_storm_loses_nothing(name: str, how: str) -> None:
    """In a process of its own: what a storm leaves, and be it a hanging thread, disturbs no other test."""
    argv = [
        sys.executable,
        "-m",
        "stress.interrupts",
        "--seconds",
        "0",
        "--length",
        "0.6",
        "--only",
        name,
        "--how",
        how,
    ]
    # Callers that hang and a close that hangs are told of by the storm itself, before this is over.
    limit = 4 * interrupts.PATIENCE
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit)
    assert done.returncode == 0, done.stdout
    assert "0 violations; seed 1" in done.stdout, done.stdout


def test_after_a_storm_a_profiler_may_come() -> None:
    """CPython 3.11 turns for ever at the entry of a function, if a strike was withdrawn and nobody calmed it."""
    program = """
import sys, threading
from tests.support.strikes import calm, withdraw
withdraw(threading.get_ident())
calm()
sys.setprofile(lambda *_: None)
(lambda: None)()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=20)


# What it claims to see, forged ----------------------------------------------------------------------------------------


class Target(interrupts.Target):
    """Sends nothing, and says that it did; what it leaves behind is for each test to say."""

    name = "forged"
    numbers_left: dict[str, int] = {}  # noqa: RUF012 - each test puts its own in its place

    def act(self, shelter: Shelter, rng: random.Random) -> None:
        [letter] = self.letters(rng)
        self.settle([letter], *shelter.call(lambda: time.sleep(0.002)))

    def close(self, seconds: float) -> None: ...

    def left(self) -> dict[str, int]:
        return self.numbers_left


@pytest.fixture
def forged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interrupts.TARGETS, "forged", Target)
    monkeypatch.setattr(interrupts, "FLOOR", 0.0)
    monkeypatch.setattr(interrupts, "PATIENCE", 0.5)


def stormed(length: float = 0.1) -> list[str]:
    with interrupts._weather():
        return storm_round("1", "forged", "async", length)[1]


def nothing_told(found: list[str]) -> list[str]:
    return [line for line in found if not line.startswith("empty")]


@pytest.mark.usefixtures("forged")
def test_a_target_that_leaves_nothing_and_tells_nothing_is_seen_to_tell_nothing() -> None:
    assert stormed() == ["empty: 0 messages, and at least 1 are needed to say anything"]


@pytest.mark.usefixtures("forged")
def test_a_number_that_is_left_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "numbers_left", {"clients leased": 2})
    assert nothing_told(stormed()) == ["2 clients leased left when it is closed"]


@pytest.mark.usefixtures("forged")
def test_a_caller_that_hangs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(Target, "act", lambda self, shelter, rng: over.wait())
    try:
        assert "hangs: caller-0" in stormed(0.05)
    finally:
        over.set()


@pytest.mark.usefixtures("forged")
def test_a_close_that_hangs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(Target, "close", lambda self, seconds: over.wait())
    try:
        assert nothing_told(stormed(0.05)) == ["hangs: close()"]
    finally:
        over.set()


@pytest.mark.usefixtures("forged")
def test_a_close_that_takes_longer_than_it_may_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE", 2.0)
    monkeypatch.setattr(Target, "close", lambda self, seconds: time.sleep(1.1))
    assert nothing_told(stormed(0.05)) == ["close(timeout=0.5) took 1 s"]


@pytest.mark.usefixtures("forged")
def test_a_close_that_raises_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(self: Target, seconds: float) -> None:
        raise KeyError("x")

    monkeypatch.setattr(Target, "close", close)
    assert nothing_told(stormed(0.05)) == ["close: KeyError: 'x'"]


@pytest.mark.usefixtures("forged")
def test_what_a_caller_should_not_meet_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(self: Target, shelter: Shelter, rng: random.Random) -> None:
        shelter.call(lambda: dict[str, int]()["x"])

    monkeypatch.setattr(Target, "act", act)
    assert "caller-0: KeyError: 'x'" in stormed(0.05)


@pytest.mark.usefixtures("forged")
def test_a_thread_that_is_left_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    left: list[threading.Thread] = []

    def close(self: Target, seconds: float) -> None:
        thread = threading.Thread(target=over.wait, name="left over", daemon=True)
        left.append(thread)
        thread.start()
        thread.join = lambda timeout=None: None  # type: ignore[method-assign]

    monkeypatch.setattr(Target, "close", close)
    try:
        assert nothing_told(stormed(0.05)) == ["thread left: left over"]
    finally:
        over.set()
        threading.Thread.join(left[0])


@pytest.mark.usefixtures("forged")
def test_a_connection_that_is_left_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(self: Any, count: int, timeout: float) -> None:
        raise TimeoutError("1 connections are open")

    monkeypatch.setattr(NamingServer, "wait_for_connections", wait)
    assert nothing_told(stormed(0.05)) == ["connection left: 1 connections are open"]


@pytest.mark.usefixtures("forged")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_connection_that_only_an_exception_has_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was struck while he dialled has told; the socket is the exception's, and goes with it."""

    def act(self: Target, shelter: Shelter, rng: random.Random) -> None:
        def dial() -> None:
            sock = socket.create_connection((self.config.host, self.config.port))
            assert sock.recv(3) == b"220"  # the server has seen it
            raise MemoryError

        kept = None
        try:
            dial()
        except MemoryError as error:
            kept = error  # a cycle: it knows the frame that has it
        assert kept is not None
        time.sleep(0.01)

    monkeypatch.setattr(Target, "act", act)
    gc.disable()
    try:
        found = stormed(0.05)
    finally:
        gc.enable()
    assert nothing_told(found) == []


@pytest.mark.usefixtures("forged")
def test_a_message_told_as_sent_and_not_there_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(self: Target, shelter: Shelter, rng: random.Random) -> None:
        [letter] = self.letters(rng)
        self.ledger.settle(letter, Fate(Outcome.SENT, frozenset(letter.recipients), frozenset(), "250 ok"))
        time.sleep(0.01)

    monkeypatch.setattr(Target, "act", act)
    assert any("yet 0 copies" in line for line in stormed(0.05))


def sender_round(heard: list[Receipt], strikes: dict[str, int]) -> list[str]:
    round_ = Round.__new__(Round)
    round_.how, round_.ledger, round_.strikes = "async", Ledger(), Counter(strikes)
    target = interrupts.SenderTarget.__new__(interrupts.SenderTarget)
    target.ledger, target.heard = round_.ledger, heard
    stats = SimpleNamespace(queued=0, retrying=0, in_flight=0)
    target.sender = SimpleNamespace(stats=lambda: stats, close=lambda **_: None)  # type: ignore[assignment]
    round_.target = target
    [letter] = interrupts.Target.letters(target, random.Random(1)) if hasattr(target, "numbers") else [_letter(target)]
    round_.ledger.settle(letter, Fate(Outcome.NOT_SENT, frozenset(), frozenset()))
    return round_._end()


def _letter(target: interrupts.Target) -> Any:
    target.numbers = iter(range(9))
    return target.letters(random.Random(1))[0]


def receipt(name: str) -> Receipt:
    return Receipt(Outcome.NOT_SENT, None, "s@example.org", ("r@example.org",), f"<{name}@example.org>")


def test_that_on_receipt_is_called_twice_is_seen() -> None:
    told = receipt(f"sender{threading.get_ident()}x0")
    assert sender_round([told], {}) == []
    assert sender_round([told, told], {}) == [f"{told.message_id}: on_receipt was called 2 times"]


def test_that_on_receipt_is_never_called_is_seen_unless_a_strike_on_our_threads_can_have_taken_it() -> None:
    name = f"sender{threading.get_ident()}x0"
    assert sender_round([], {"caller": 5}) == [f"{name}: on_receipt was never called"]
    assert sender_round([], {"threadmail-lane": 1}) == []


NO_CLIENT = SimpleNamespace(leased=0, waiting=0, idle=0)


def pool_round(looks: list[SimpleNamespace]) -> list[str]:
    """With a pool that looks like these in turn, like the last one until it is closed, and then like none."""
    round_ = Round.__new__(Round)
    round_.how, round_.ledger = "async", Ledger()
    target = interrupts.PoolTarget.__new__(interrupts.PoolTarget)
    pool = SimpleNamespace(
        stats=lambda: looks.pop(0) if len(looks) > 1 else looks[0],
        close=lambda **_: looks.__setitem__(slice(None), [NO_CLIENT]),
    )
    target.pool, round_.target = pool, target  # type: ignore[assignment]
    return round_._end()


def test_a_lease_that_is_left_when_the_callers_are_gone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE", 0.5)
    assert pool_round([SimpleNamespace(leased=1, waiting=0, idle=interrupts.WORKERS + 1)]) == [
        "1 clients leased left when callers are gone",
        "1 clients idle beyond left when callers are gone",
    ]


def test_a_farewell_of_the_idle_watch_is_no_lease_that_is_left() -> None:
    busy = SimpleNamespace(leased=1, waiting=0, idle=interrupts.WORKERS - 1)
    assert pool_round([busy, busy, NO_CLIENT]) == []


def test_clients_beyond_are_seen_although_the_idle_watch_closes_them_soon() -> None:
    beyond = SimpleNamespace(leased=1, waiting=0, idle=interrupts.WORKERS)
    assert pool_round([beyond, NO_CLIENT]) == []
    beyond.idle += 1
    assert pool_round([beyond, NO_CLIENT]) == ["1 clients idle beyond left when callers are gone"]


def test_a_round_in_which_nobody_is_struck_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interrupts, "strike", lambda thread, kind: False)
    assert interrupts.main(["--seconds", "0", "--length", "0.01", "--only", "client", "--how", "async"]) == 1
    assert "empty: nobody was struck" in capsys.readouterr().out


# The shelter ----------------------------------------------------------------------------------------------------------


def test_in_its_shelter_the_harness_is_not_struck_and_outside_it_is() -> None:
    shelter, go = Shelter(), threading.Event()
    found: list[object] = []

    def wait() -> str:
        end = time.monotonic() + 10
        go.set()
        while time.monotonic() < end:
            pass
        return "done"

    def work() -> None:
        found.append(shelter.call(wait))
        found.append("on")

    assert not shelter.struck(Strike)
    thread = threading.Thread(target=work)
    thread.start()
    assert go.wait(10)
    assert shelter.struck(Strike)
    thread.join(10)
    assert found == [(False, None), "on"]
    assert not shelter.struck(Strike)


def test_a_thread_of_ours_does_not_end_while_it_is_struck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its number may be that of a new one by then, which would be struck before it has begun."""
    ours, begun, go = Ours(), threading.Event(), threading.Event()
    alive: list[bool] = []

    def work() -> None:
        begun.set()
        go.wait(10)

    def late(number: int, kind: type[BaseException]) -> bool:
        go.set()
        thread.join(0.1)
        alive.append(thread.is_alive() and number == thread.ident)
        return True

    monkeypatch.setattr(interrupts, "strike", late)
    with ours.sheltered():
        thread = threading.Thread(target=work, name="threadmail-forged_1")
        thread.start()
    assert begun.wait(10)
    [(shelter, name)] = ours.running
    assert name == "threadmail-forged_1"
    assert shelter.struck(Strike)
    thread.join(10)
    assert alive == [True]
    assert ours.running == []
    assert not shelter.struck(Strike)


@pytest.mark.parametrize("name", ["threadmail-capture", "caller-1"])
def test_a_thread_of_the_harness_is_none_of_ours(name: str) -> None:
    ours = Ours()
    found: list[object] = []
    with ours.sheltered():
        thread = threading.Thread(target=lambda: found.append(ours.running), name=name)
        thread.start()
        thread.join(10)
    assert found == [[]]


def test_a_lane_is_one_of_ours() -> None:
    ours = Ours()
    found: list[list[str]] = []

    def note(receipt: Receipt) -> None:
        found.append([name for _, name in ours.running])

    with NamingServer() as server, ours.sheltered(), ThreadedSender(server.url, workers=1, on_receipt=note) as sender:
        sender.send(make_envelope(random.Random(1), "lane"))
    assert found == [["threadmail-lane_0"]]


def test_a_thread_is_struck_once_until_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "strike", lambda thread, kind: True)
    shelter = Shelter()
    found: list[bool] = []

    def work() -> None:
        found.extend([shelter.struck(Strike), shelter.struck(Strike)])
        shelter.go_on()
        found.append(shelter.struck(Strike))

    shelter.call(work)
    assert found == [True, False, True]


@pytest.mark.skipif(not interrupts.BORROWED_NUMBERS, reason="a new thread has a number of its own from the first")
def test_who_starts_a_thread_is_not_struck_before_that_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the new one that is struck, in its bootstrap, and `start()` waits for that without end."""
    shelter = Shelter()
    found: list[object] = []
    start_new = threading._start_new_thread  # type: ignore[attr-defined]

    def struck_in_between(bootstrap: Callable[[], object], arguments: tuple[()]) -> None:
        found.append(shelter.struck(Strike))
        start_new(bootstrap, arguments)

    def work() -> None:
        thread = threading.Thread(target=found.append, args=("it runs",))
        thread.start()
        thread.join(10)
        monkeypatch.setattr(interrupts, "strike", lambda thread, kind: True)
        found.append(shelter.struck(Strike))

    monkeypatch.setattr(threading, "_start_new_thread", struck_in_between)
    with start_unstruck():
        assert shelter.call(work) == (True, None)
    assert found == [False, "it runs", True]


def test_a_strike_at_a_thread_that_is_no_more_says_so() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert thread.ident is not None
    assert not strike(thread.ident, Strike)


def test_the_config_of_a_round_is_that_of_its_server() -> None:
    round_ = Round("1", "client", "async", ("127.0.0.1", 9), 0.0)
    assert isinstance(round_.target.config, ServerConfig)
    assert (round_.target.config.host, round_.target.config.port) == ("127.0.0.1", 9)
