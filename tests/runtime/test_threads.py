"""Threads of ours: started in one place, or the work is done without one; none outlives what it was for."""

from __future__ import annotations

import dataclasses
import gc
import logging
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mail import envelope, message
from threadmail import Client, ClientPool, Outcome, ServerConfig
from threadmail._runtime import threads as _threads
from threadmail._runtime.deadline import Deadline
from threadmail._runtime.threads import join_thread, start_thread
from threadmail._transport import lookup as _lookup
from threadmail.testing import CaptureServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def threads_fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets no thread of ours start, as where a process has as many as it may; those of the tests' servers do."""
    real, failing = threading.Thread.start, [False]

    def start(self: threading.Thread) -> None:
        if failing[0] and self.name in ("threadmail-idle", "threadmail-lookup"):
            raise RuntimeError("can't start new thread")
        real(self)

    def let(fail: bool) -> None:
        failing[0] = fail

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(_threads, "_told", set())
    return let


# ---------------------------------------------------------------- starting and joining


def test_a_thread_that_starts_runs_with_its_name_and_arguments() -> None:
    seen: list[tuple[str, int]] = []
    thread = start_thread(lambda n: seen.append((threading.current_thread().name, n)), name="threadmail-x", args=(3,))
    assert thread is not None
    assert thread.daemon
    join_thread(thread, 10.0)
    assert seen == [("threadmail-x", 3)]


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_thread_that_cannot_start_is_none_and_its_kind_is_told_once(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Never the bare RuntimeError that a user would meet in the middle of a message."""

    def start(self: threading.Thread) -> None:
        raise error

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(_threads, "_told", set())
    with caplog.at_level(logging.WARNING, "threadmail.threads"):
        for number in range(5):
            assert start_thread(print, name=f"threadmail-worker_{number}") is None
        assert start_thread(print, name="threadmail-idle") is None
    assert [record.getMessage().split(" could")[0] for record in caplog.records] == [
        "no thread threadmail-worker",
        "no thread threadmail-idle",
    ]
    assert (str(error) or "MemoryError") in caplog.text


def test_a_broken_log_handler_does_not_take_the_place_of_what_it_is_to_tell(
    threads_fail: Callable[[bool], None],
) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise OSError("disk full")

    threads_fail(True)
    handler = Broken()
    _threads.log.addHandler(handler)
    try:
        assert start_thread(print, name="threadmail-idle") is None
    finally:
        _threads.log.removeHandler(handler)


def test_nobody_waits_for_itself() -> None:
    """`Thread.join` of the calling thread is a RuntimeError; a finaliser may run on any thread."""
    join_thread(None, 10.0)
    join_thread(threading.current_thread(), 10.0)


# ---------------------------------------------------------------- the idle watch is a courtesy


def test_a_client_works_without_its_idle_watch_and_gets_it_later(threads_fail: Callable[[bool], None]) -> None:
    """No thread can be started for a while: messages go out, `close()` ends, and later the watch watches again."""
    with CaptureServer() as server:
        client = Client(dataclasses.replace(server.config, idle_timeout=0.1))
        threads_fail(True)
        assert client.send(message("a")).outcome is Outcome.SENT
        assert client.send(message("b")).outcome is Outcome.SENT
        threads_fail(False)
        assert client.send(message("c")).outcome is Outcome.SENT
        assert client.stats().opened == 1
        server.wait_for_connections(0)
        assert client.stats().closed == {"idle": 1}
        client.close()


def test_close_never_fails_for_a_watch_that_was_not_started(threads_fail: Callable[[bool], None]) -> None:
    with CaptureServer() as server:
        client = Client(server.url)
        threads_fail(True)
        client.send(message())
        client.close()
        assert server.quits == 1


def break_watch(
    monkeypatch: pytest.MonkeyPatch, owner: Client | ClientPool, ends_by: type[BaseException] = MemoryError
) -> list[bool]:
    """Whoever looks for what is idle ends by this, until the flag in the list is taken back."""
    real, broken = owner.close_idle, [True]

    def close_idle() -> float | None:
        if broken[0]:
            raise ends_by
        return real()

    monkeypatch.setattr(owner, "close_idle", close_idle)
    return broken


def test_a_watch_that_died_is_started_again_with_the_next_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever ended it: the idle time-out is not off for good."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with CaptureServer() as server, Client(dataclasses.replace(server.config, idle_timeout=0.05)) as client:
        broken = break_watch(monkeypatch, client)
        client.send(message("a"))
        assert client._watch is not None
        join_thread(client._watch._thread, 10.0)
        broken[0] = False
        server.drop_connections("fin")
        client.send(message("b"))
        server.wait_for_connections(0)
        assert client.stats().closed == {"stale": 1, "idle": 1}


class Struck(BaseException):
    """From outside."""


@pytest.mark.parametrize("ends_by", [MemoryError, Struck])
def test_a_watch_of_a_pool_that_died_is_started_again_with_the_next_lease(
    monkeypatch: pytest.MonkeyPatch, ends_by: type[BaseException]
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with CaptureServer() as server, ClientPool(dataclasses.replace(server.config, idle_timeout=0.05)) as pool:
        broken = break_watch(monkeypatch, pool, ends_by)
        pool.send(message("a"))
        assert pool._watch is not None
        join_thread(pool._watch._thread, 10.0)
        broken[0] = False
        pool.send(message("b"))
        server.wait_for_connections(0)
        assert pool.stats().closed == {"idle": 1}


def test_one_that_is_dying_is_not_taken_for_one_that_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread is still there when the next one comes."""
    dying, over = threading.Event(), threading.Event()

    def die_slowly(_: object) -> None:
        dying.set()
        over.wait(10)

    monkeypatch.setattr(threading, "excepthook", die_slowly)
    with CaptureServer() as server, Client(dataclasses.replace(server.config, idle_timeout=0.05)) as client:
        broken = break_watch(monkeypatch, client)
        client.send(message("a"))
        assert dying.wait(10)
        broken[0] = False
        try:
            client.send(message("b"))
            server.wait_for_connections(0)
            assert client.stats().closed == {"idle": 1}
        finally:
            over.set()


def test_one_that_is_taken_for_dead_ends_when_another_one_takes_its_place() -> None:
    """CPython 3.11 calls a thread dead that runs, if an exception from outside strikes whoever asks."""
    with CaptureServer() as server, Client(server.url) as client:
        client.send(message("a"))
        assert client._watch is not None
        first = client._watch._thread
        assert first is not None
        first.is_alive = lambda: False  # type: ignore[method-assign]
        server.drop_connections("fin")
        client.send(message("b"))
        assert client._watch._thread is not first
        first.join(10.0)
        assert not threading.Thread.is_alive(first)


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_forgotten_client_leaves_no_thread(in_a_cycle: bool) -> None:
    """Its idle watch ends when it is collected, not half a minute later."""
    with CaptureServer() as server:
        clients = [Client(server.url) for _ in range(5)]
        watches = []
        for client in clients:
            client.send(message())
            assert client._watch is not None
            watches.append(client._watch._thread)
            assert client._smtp is not None
            client._smtp.close()
            if in_a_cycle:
                client.me = client  # type: ignore[attr-defined]
        del client
        clients.clear()
        gc.collect()
        for watch in watches:
            assert watch is not None
            watch.join(5.0)
            assert not watch.is_alive()


# ---------------------------------------------------------------- the lookup


def test_a_name_is_looked_up_on_the_callers_thread_where_there_is_no_other(
    threads_fail: Callable[[bool], None],
) -> None:
    threads_fail(True)
    asked_on: list[threading.Thread] = []
    _lookup.Waiter().ask("question", lambda: asked_on.append(threading.current_thread()), Deadline.after(10.0))
    assert asked_on == [threading.current_thread()]


def test_an_interrupt_while_the_lookup_begins_lets_nobody_else_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes where the thread of the lookup is started; another thread waits for the same answer."""
    joined = threading.Event()
    errors: list[BaseException] = []

    def other() -> None:
        try:
            _lookup.Waiter().ask("name", lambda: "never asked", Deadline.after(30.0))
        except BaseException as exc:  # noqa: BLE001 - told to the test
            errors.append(exc)

    class Joined(list[_lookup.Waiter]):
        def append(self, waiter: _lookup.Waiter) -> None:
            super().append(waiter)
            if len(self) == 2:
                joined.set()

    waiting = threading.Thread(target=other, name="other")

    def interrupted(*_: object, **__: object) -> None:
        (lookup,) = _lookup._under_way.values()
        lookup.waiting = Joined(lookup.waiting)
        waiting.start()
        assert joined.wait(10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(_lookup, "start_thread", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _lookup.Waiter().ask("name", lambda: "never asked", Deadline.after(30.0))
    waiting.join(10.0)
    assert [type(error) for error in errors] == [InterruptedError]
    assert not _lookup._under_way


# ---------------------------------------------------------------- the end of the interpreter


def test_a_client_first_used_by_an_atexit_handler_sends() -> None:
    """A crash report, a MemoryHandler that `logging.shutdown` flushes: since 3.12 no thread starts any more then."""
    program = textwrap.dedent(
        """
        import atexit, sys
        import threadmail
        client = threadmail.Client(sys.argv[1])
        def last():
            print(client.send(b"From: a@example.org\\nTo: b@example.net\\n\\nbye\\n").outcome.value)
            client.close()
        atexit.register(last)
        """
    )
    with CaptureServer() as server:
        done = subprocess.run(
            [sys.executable, "-c", program, server.url], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        assert (done.stdout, done.stderr) == ("sent\n", "")
        assert len(server.messages) == 1
        assert server.quits == 1


def test_the_name_of_a_server_is_looked_up_at_exit_too(
    threads_fail: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread can be started the wait is the resolver's, which is better than no mail."""
    threads_fail(True)
    with CaptureServer() as server:
        real = socket.getaddrinfo

        def resolve(host: str, *args: object, **kwargs: object) -> object:
            if host == "mail.test":
                if kwargs.get("flags"):
                    raise socket.gaierror(socket.EAI_NONAME, "no address")
                host = server.host
            return real(host, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with Client(ServerConfig("mail.test", server.port, local_hostname="me.test")) as client:
            assert client.send(envelope()).outcome is Outcome.SENT
