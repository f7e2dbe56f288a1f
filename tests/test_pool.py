"""The pool: never too many, nobody forgotten, no I/O under the lock, no stampede on a dead server."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.mail import envelope, in_threads, message
from threadmail import (
    Aborted,
    Client,
    ClientPool,
    Closed,
    ConnectFailed,
    GreetingRefused,
    LoginRefused,
    MailError,
    Outcome,
    ServerConfig,
    TimedOut,
)
from threadmail.testing import (
    CaptureServer,
    Drop,
    Expect,
    Pause,
    Reply,
    ScriptedServer,
    Serve,
    Signal,
    Stall,
    ehlo,
    greeting,
)


def wait_until_waiting(pool: ClientPool, count: int) -> None:
    """Until `count` threads stand in line; a condition of the pool itself, looked at until it holds."""
    end = time.monotonic() + 10.0
    while pool.stats().waiting < count:
        assert time.monotonic() < end, "nobody waits"
        threading.Event().wait(0.001)


@contextlib.contextmanager
def leased_elsewhere(pool: ClientPool) -> Iterator[None]:
    """Another thread has a lease meanwhile."""
    has, over = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.lease():
            has.set()
            over.wait(30.0)

    holder = threading.Thread(target=hold, name="holder")
    holder.start()
    assert has.wait(10.0)
    try:
        yield
    finally:
        over.set()
        holder.join(10.0)


def test_a_client_comes_back_and_is_used_again() -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool:
        with pool.lease() as first:
            first.send(message("a"))
        with pool.lease() as second:
            assert second is first
            second.send(message("b"))
        assert pool.stats().opened == 1
        assert pool.stats().idle == 1


def test_there_are_never_more_than_max_size() -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool:

        def work(i: int) -> None:
            for k in range(5):
                pool.send(envelope(f"t{i}m{k}"))

        assert in_threads(6, work) == []
        assert server.max_simultaneous == 2
        assert len(server.messages) == 30


def test_a_lease_is_waited_for_no_longer_than_asked() -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=1) as pool, leased_elsewhere(pool):
        started = time.monotonic()
        with pytest.raises(TimedOut, match="1 are in use") as info, pool.lease(timeout=0.05):
            pass
        assert time.monotonic() - started < 2.0
        assert info.value.deadline_passed
        assert pool.stats().waiting == 0


def test_waiters_are_served_in_the_order_they_came() -> None:
    order: list[int] = []
    with CaptureServer() as server, ClientPool(server.url, max_size=1) as pool:

        def wait(i: int) -> None:
            with pool.lease(timeout=10.0):
                order.append(i)

        threads = [threading.Thread(target=wait, args=(i,), name=f"waiter-{i}") for i in range(4)]
        with pool.lease():
            for i, thread in enumerate(threads):
                thread.start()
                wait_until_waiting(pool, i + 1)
        for thread in threads:
            thread.join(10.0)
    assert order == [0, 1, 2, 3]


def test_a_waiter_wakes_when_a_client_is_discarded() -> None:
    """Not only when one is given back: the commonest defect of pools in the field."""
    with CaptureServer() as server, ClientPool(server.url, max_size=1) as pool:
        got: list[Outcome] = []
        waiting = threading.Thread(
            target=lambda: got.append(pool.send(message("b"), deadline=10.0).outcome), name="waiter"
        )
        with pool.lease() as client:
            waiting.start()
            wait_until_waiting(pool, 1)
            client.close()
        waiting.join(10.0)
        assert got == [Outcome.SENT]


def test_a_waiter_wakes_when_a_dial_fails() -> None:
    """The first caller's dial fails; the second, who waited for its place, learns the reason at once."""
    dialling, go = threading.Event(), threading.Event()
    with ScriptedServer([Signal(dialling), Pause(go), Reply("554 no"), Drop()], last="refuse") as server:
        with ClientPool(server.url, max_size=1) as pool:
            errors: list[MailError] = []

            def send() -> None:
                try:
                    pool.send(message(), deadline=10.0)
                except MailError as error:
                    errors.append(error)

            first = threading.Thread(target=send, name="first")
            first.start()
            assert dialling.wait(10.0)
            second = threading.Thread(target=send, name="second")
            second.start()
            wait_until_waiting(pool, 1)
            go.set()
            first.join(10.0)
            second.join(10.0)
            assert len(errors) == 2
            assert all("no" in str(error) for error in errors)
            assert server.connections == 1


def test_a_dead_server_is_dialled_once_whatever_the_number_of_threads() -> None:
    """Eight threads, a server that sends nobody in: one probe, and the reason for all."""
    with ScriptedServer([Reply("450 4.3.0 not now"), Drop()], last="refuse") as server:
        with ClientPool(server.url, max_size=8, rng=random.Random(1)) as pool:

            def work(i: int) -> None:
                with pytest.raises(MailError, match="not now"):
                    pool.send(envelope(f"t{i}"), deadline=5.0)

            assert in_threads(8, work) == []
            assert server.connections + server.connections_refused == 1


def test_after_the_pause_one_probe_opens_the_pool_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [0.0]

    def now() -> float:
        return time.monotonic() + ahead[0]

    monkeypatch.setattr("threadmail._runtime.steps.now", now)
    with ScriptedServer([Reply("450 4.3.0 not now"), Drop()], [Serve()]) as server, ClientPool(server.url) as pool:
        with pytest.raises(MailError):
            pool.send(message())
        with pytest.raises(GreetingRefused, match="next try in"):
            pool.send(message())
        ahead[0] = 2.0
        assert pool.send(message()).outcome is Outcome.SENT


def test_a_refused_login_is_not_repeated_by_other_threads() -> None:
    with CaptureServer(tls="starttls", auth={"me": "right"}) as server:
        with ClientPool(dataclasses.replace(server.config, password="not so"), max_size=4) as pool:

            def work(i: int) -> None:
                with pytest.raises((LoginRefused, ConnectFailed)):
                    pool.send(envelope(f"t{i}"), deadline=5.0)

            assert in_threads(4, work) == []
            assert server.connections_opened == 1


def test_a_server_that_allows_fewer_connections_is_not_dead() -> None:
    """Two are let in, the third gets 421: its caller waits for one of the two, and nothing fails."""
    with CaptureServer(max_connections=2) as server, ClientPool(server.url, max_size=4) as pool:

        def work(i: int) -> None:
            for k in range(5):
                assert pool.send(envelope(f"t{i}m{k}"), deadline=20.0).outcome is Outcome.SENT

        assert in_threads(4, work) == []
        assert len(server.messages) == 20


@pytest.mark.parametrize("mode", ["fin", "reset", "421"])
def test_servers_that_hung_up_go_unnoticed(mode: str) -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool:
        with pool.lease() as a, pool.lease() as b:
            a.send(message("a"))
            b.send(message("b"))
        server.drop_connections(mode)  # type: ignore[arg-type]
        with pool.lease() as c, pool.lease() as d:
            c.send(message("c"))
            d.send(message("d"))
        assert len(server.messages) == 4


def test_idle_clients_are_closed_with_quit_although_nobody_comes() -> None:
    with CaptureServer() as server:
        with ClientPool(dataclasses.replace(server.config, idle_timeout=0.1), max_size=3) as pool:
            with pool.lease(), pool.lease():
                pass
            server.wait_for_connections(0)
            assert server.quits == 2
            assert pool.send(message()).outcome is Outcome.SENT
            assert pool.stats().closed.get("idle") == 2


def test_close_refuses_wakes_and_says_goodbye() -> None:
    with CaptureServer() as server:
        pool = ClientPool(server.url, max_size=1)
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                with pool.lease(timeout=10.0):
                    pass
            except Closed as error:
                errors.append(error)

        waiting = threading.Thread(target=wait, name="waiter")
        with pool.lease():
            waiting.start()
            wait_until_waiting(pool, 1)
            closing = threading.Thread(target=pool.close, name="closing")
            closing.start()
            waiting.join(10.0)
            assert len(errors) == 1
        closing.join(10.0)
        with pytest.raises(Closed), pool.lease():
            pass
        pool.close()
        server.wait_for_connections(0)
        assert server.quits == 1


def test_close_drops_what_does_not_end() -> None:
    reached = threading.Event()
    with ScriptedServer([greeting(), ehlo(), Expect("MAIL"), Signal(reached), Stall()]) as server:
        pool = ClientPool(server.url)
        errors: list[MailError] = []

        def send() -> None:
            try:
                pool.send(message())
            except MailError as error:
                errors.append(error)

        sending = threading.Thread(target=send, name="sending")
        sending.start()
        assert reached.wait(10.0)
        pool.close(timeout=0.05)
        sending.join(5.0)
        assert isinstance(errors[0], Aborted)
        assert errors[0].outcome is Outcome.NOT_SENT


def test_no_thread_waits_behind_the_network_io_of_another() -> None:
    """While one thread dials a server that does not answer, another can ask for numbers and be refused in time."""
    dialling = threading.Event()
    with ScriptedServer([Signal(dialling), Stall()], last="refuse") as server, ClientPool(server.url) as pool:
        stuck = threading.Thread(
            target=lambda: in_threads(1, lambda _: pool.send(message(), deadline=1.0)), name="stuck"
        )
        stuck.start()
        assert dialling.wait(10.0)
        started = time.monotonic()
        assert pool.stats().leased == 1
        with pytest.raises(TimedOut), pool.lease(timeout=0.05):
            pass
        assert time.monotonic() - started < 1.0
        stuck.join(10.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=1) as pool:
        pool.send(message("a"))
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                status = 0 if pool.send(message("b"), deadline=5.0).outcome is Outcome.SENT else 2
            os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        pool.send(message("c"))
        by = {m.sender[5]: m.connection for m in server.wait_for(3)}
    assert by["a"] == by["c"] != by["b"]


def test_sizes_and_urls_are_checked() -> None:
    with pytest.raises(ValueError, match="max_size"):
        ClientPool("smtp://localhost", max_size=0)
    with pytest.raises(ValueError, match="scheme"):
        ClientPool("localhost")
    assert ClientPool(ServerConfig("localhost")).config.port == 25
    assert Client("smtp://localhost").config.port == 25
