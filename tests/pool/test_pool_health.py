"""What a lease says of its server, and what becomes of a client that its user treats badly."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.mail import message
from tests.support.naming import NamingServer
from threadmail import (
    Client,
    ClientPool,
    Envelope,
    MailError,
    Outcome,
    PoolStats,
    SenderRefused,
    ServerConfig,
    TimedOut,
)
from threadmail._connection import kept_connection as _kept
from threadmail._connection import opening as _opening
from threadmail._pool.retired import Retired
from threadmail._runtime.deadline import now
from threadmail.testing import CaptureServer, Expect, Reply, ScriptedServer, Serve, ehlo, greeting

#: Lets everybody in, and takes each session back at MAIL.
TAKES_BACK = [greeting(), ehlo(), Expect("MAIL"), Reply("421 4.3.0 not now")]
#: For one who asks at most.
IDLE = [greeting(), ehlo(), Serve()]


class Dials:
    """Counts the dials, and stops the clock that the pool decides by."""

    def __init__(self) -> None:
        self.number = 0
        self.at = now()


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> Dials:
    made = Dials()
    real = _opening.open_session

    def counted(*args: Any) -> object:
        made.number += 1
        return real(*args)

    monkeypatch.setattr(_kept, "open_session", counted)
    monkeypatch.setattr("threadmail._runtime.steps.now", lambda: made.at)
    return made


@contextlib.contextmanager
def pool_of(*scripts: list[Any]) -> Iterator[ClientPool]:
    with ScriptedServer(*scripts) as server, ClientPool(server.url, max_size=2) as pool:
        yield pool


def send(pool: ClientPool) -> None:
    with contextlib.suppress(MailError):
        pool.send(message())


def send_inside(pool: ClientPool) -> None:
    """The error does not come out of the block."""
    with contextlib.suppress(MailError), pool.lease() as client, contextlib.suppress(MailError):
        client.send(message())


@pytest.mark.parametrize("use", [send, send_inside])
def test_a_server_that_takes_its_sessions_back_is_not_dialled_again_at_once(
    dials: Dials, use: Callable[[ClientPool], None]
) -> None:
    with pool_of(TAKES_BACK, TAKES_BACK) as pool:
        for _ in range(10):
            use(pool)
        assert dials.number == 1
        assert pool._keys.breaker.failures == 1
        dials.at += 100.0
        for _ in range(10):
            use(pool)
        assert dials.number == 2
        assert pool._keys.breaker.failures == 2


def test_a_message_that_is_too_large_makes_no_server_well(dials: Dials) -> None:
    """Nothing of it is written. It forgot what had failed, and the pauses began anew."""
    sized = [greeting(), ehlo("SIZE 1000"), Expect("MAIL"), Reply("421 4.3.0 not now")]
    large = Envelope("a@here.test", ["b@there.test"], b"Subject: x\r\n\r\n" + b"x\r\n" * 1000)
    with pool_of(*[sized] * 4) as pool:
        for failures in (1, 2):
            for _ in range(10):
                with contextlib.suppress(MailError):
                    pool.send(large)
                send(pool)
            assert dials.number == 2 * failures, "the one that was kept may have been hung up on, and is replaced"
            assert pool._keys.breaker.failures == failures
            dials.at += 100.0


def test_nor_in_the_middle_of_a_lease(dials: Dials) -> None:
    """Who goes on sending in his lease dials as the others do."""
    with pool_of(TAKES_BACK) as pool, pool.lease() as client:
        told = []
        for _ in range(10):
            with pytest.raises(MailError) as info:
                client.send(message())
            told.append(str(info.value))
        assert dials.number == 1
        assert pool._keys.breaker.failures == 1, "told once"
        assert "tried moments ago; next try in" in told[-1]


@pytest.mark.parametrize("use", [lambda client: None, lambda client: client.noop()], ids=["nothing", "noop"])
def test_a_lease_in_which_no_mail_was_answered_makes_no_server_well(dials: Dials, use: Callable[[Any], object]) -> None:
    """A health check forgot what had failed, and the pauses began anew."""
    with pool_of(TAKES_BACK, TAKES_BACK, IDLE) as pool:
        for _ in range(2):
            send(pool)
            dials.at += 100.0
        with contextlib.suppress(MailError), pool.lease() as client:
            use(client)
        assert pool._keys.breaker.failures == 2
        assert not pool._keys.breaker.is_closed


@pytest.mark.parametrize("because", ["idle", "age"])
def test_callers_whose_time_is_over_cost_no_connection(because: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overload is when callers' deadlines have passed: each of them took a good connection away from the next one."""
    with CaptureServer() as server, ClientPool(server.url, max_size=3) as pool:
        with pool.lease() as one, pool.lease() as two, pool.lease() as three:
            clients = [one, two, three]
        for client in clients:
            monkeypatch.setattr(client, "_last_used" if because == "idle" else "_expires_at", 0.0)
        before = [client._last_used for client in clients]
        late: list[Callable[[], object]] = [
            lambda: pool.send(message(), deadline=0),
            lambda: pool.lease(timeout=0).__enter__(),
        ]
        for call in late * 3:
            with pytest.raises(TimedOut) as caught:
                call()
            assert caught.value.deadline_passed
            assert pool.stats() == PoolStats(idle=3, opened=3)
        assert [client._last_used for client in clients] == before  # nobody has tested it: the next one does
        assert pool.send(message(), deadline=10.0).outcome is Outcome.SENT


def test_nor_do_they_say_that_the_server_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it answered somebody else, some time ago, ended the pauses of a server that is dead by now."""
    with CaptureServer() as server, ClientPool(server.url, max_size=1) as pool:
        pool.send(message())
        answered_at = pool._keys.answered_at
        (client,) = pool._keys.clients()
        monkeypatch.setattr(client, "_last_used", 0.0)
        told: list[str] = []
        monkeypatch.setattr(pool._keys.breaker, "answered", lambda: told.append("answered"))
        with pytest.raises(TimedOut):
            pool.send(message(), deadline=0)
        assert (told, pool._keys.answered_at) == ([], answered_at)


def test_a_refused_message_in_a_lease_says_that_the_server_is_there(dials: Dials) -> None:
    """Whether or not its error comes out of the block."""
    refuses = [greeting(), ehlo(), Expect("MAIL"), Reply("550 5.7.1 no"), Serve()]
    with pool_of(TAKES_BACK, refuses) as pool:
        send(pool)
        dials.at += 100.0
        with pool.lease() as client, contextlib.suppress(SenderRefused):
            client.send(message())
        assert pool._keys.breaker.failures == 0
        assert pool._keys.breaker.is_closed


def test_an_idle_client_that_its_former_user_closes_is_replaced() -> None:
    with NamingServer() as server, ClientPool(server.url) as pool:
        with pool.lease() as client:
            client.send(message())
        client.close()
        assert pool.send(message()).outcome is Outcome.SENT
        assert pool.stats().opened == 2


def test_clients_that_are_held_when_their_lease_ends_do_not_pile_up() -> None:
    """Each kept its connection until the pool was closed."""
    with NamingServer() as server:
        config = ServerConfig.from_url(server.url, idle_timeout=None)
        with ClientPool(config, max_size=1) as pool:
            clients = []
            for _ in range(5):
                with contextlib.ExitStack() as lease:
                    client = lease.enter_context(pool.lease())
                    clients.append(client)
                    client.sync_root.acquire()
                client.sync_root.release()
            assert [each.is_connected for each in clients[:-1]] == [False] * 4
            assert len(pool._retired.lingering) <= 1
            with pool.lease():
                pass
            assert not pool._retired.lingering


def test_the_idle_watch_looks_after_those_that_are_held_as_well() -> None:
    with NamingServer() as server, ClientPool(server.url, max_size=1) as pool:
        with contextlib.ExitStack() as lease:
            client = lease.enter_context(pool.lease())
            client.sync_root.acquire()
        assert pool.close_idle() == pool.config.idle_timeout, "it is worth looking again"
        client.sync_root.release()
        assert pool.close_idle() is None
        assert not client.is_connected


@pytest.mark.parametrize("closed_first", [False, True], ids=["lease ends first", "pool closed first"])
def test_what_is_held_when_the_pool_is_closed_is_closed_when_it_is_let_go_of(closed_first: bool) -> None:
    """Its socket stayed open until somebody called `close()` once more, and it was in no number."""
    with NamingServer() as server:
        pool = ClientPool(server.url, max_size=1)
        with contextlib.ExitStack() as lease:
            client = lease.enter_context(pool.lease())
            client.send(message())
            client.sync_root.acquire()
            if closed_first:
                pool.close()
        pool.close()
        assert client._smtp is not None
        sock = client._smtp.sock
        assert sock is not None
        assert (pool.stats().opened, pool.stats().closed) == (1, {})
        waiting = [each for each in threading.enumerate() if each.name == "threadmail-lingering"]
        assert waiting
        client.sync_root.release()
        for each in waiting:
            each.join(10.0)
        assert sock.fileno() == -1
        assert (pool.stats().opened, pool.stats().closed) == (1, {"closed": 1})
        pool.close()
        assert (pool.stats().opened, pool.stats().closed) == (1, {"closed": 1})


class Held:
    """Clients of a pool whose leases have ended while the main thread holds their `sync_root`."""

    def __init__(self, pool: ClientPool, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gone: queue.SimpleQueue[Client] = queue.SimpleQueue()
        real = Retired._swept

        def swept(retired: Retired, client: Client, at: float) -> None:
            real(retired, client, at)
            self.gone.put(client)

        monkeypatch.setattr(Retired, "_swept", swept)
        with contextlib.ExitStack() as leases:
            self.clients = [leases.enter_context(pool.lease()) for _ in range(count)]
            for client in self.clients:
                client.send(message())
                client.sync_root.acquire()

    def let_go(self, client: Client) -> None:
        client.sync_root.release()
        assert self.gone.get(timeout=10.0) is client
        assert not client.is_connected


def seeing_off() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "threadmail-lingering"]


@pytest.mark.parametrize("first", [0, 1])
def test_who_holds_on_to_a_client_of_a_closed_pool_keeps_no_other_one_open(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were waited for one after another, each for a minute."""
    with NamingServer() as server:
        pool = ClientPool(server.url, max_size=2)
        held = Held(pool, 2, monkeypatch)
        pool.close()
        [thread] = seeing_off()
        held.let_go(held.clients[first])
        assert held.clients[1 - first] in pool._retired.lingering
        held.let_go(held.clients[1 - first])
        thread.join(10.0)
        assert (pool.stats().opened, pool.stats().closed) == (2, {"closed": 2})


def test_one_thread_sees_to_what_is_held_however_often_the_pool_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with NamingServer() as server:
        pool = ClientPool(server.url, max_size=1)
        held = Held(pool, 1, monkeypatch)
        for _ in range(3):
            pool.close()
        [thread] = seeing_off()
        pool._retired._see_all_off()  # of one that was started beside it: it ends at once
        held.let_go(held.clients[0])
        thread.join(10.0)
        assert not thread.is_alive()
        pool.close()
        assert not seeing_off()


def test_what_is_held_for_too_long_is_closed_by_the_next_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread waits for a minute at most."""
    monkeypatch.setattr("threadmail._pool.retired.LINGER", 0.0)
    with NamingServer() as server:
        pool = ClientPool(server.url, max_size=1)
        held = Held(pool, 1, monkeypatch)
        pool.close()
        for thread in seeing_off():
            thread.join(10.0)
        [client] = held.clients
        client.sync_root.release()
        assert pool._retired.lingering == (client,)
        pool.close()
        assert held.gone.get(timeout=10.0) is client
        assert (pool.stats().opened, pool.stats().closed) == (1, {"closed": 1})


def test_a_pool_that_is_closed_in_the_middle_of_a_step_sees_to_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal handler, which leaves the closing to the thread that it came to."""
    with NamingServer() as server:
        pool = ClientPool(server.url, max_size=2)
        held = Held(pool, 1, monkeypatch)
        real = pool._keys.answer

        def answer(*args: Any) -> Any:
            monkeypatch.setattr(pool._keys, "answer", real)
            pool.close()
            return real(*args)

        monkeypatch.setattr(pool._keys, "answer", answer)
        with contextlib.suppress(MailError), pool.lease():
            pass
        [thread] = seeing_off()
        held.let_go(held.clients[0])
        thread.join(10.0)
        assert pool.stats().closed == {"closed": 2}


@pytest.mark.parametrize("held", [False, True])
def test_an_exception_from_outside_has_no_connection_counted_twice(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes up behind the numbers, before the client's place is free; then the step is taken once more."""
    with NamingServer() as server:
        pool = ClientPool(server.url, max_size=1)
        real = pool._keys.gone

        def gone(*args: Any) -> None:
            monkeypatch.setattr(pool._keys, "gone", real)
            raise KeyboardInterrupt

        lease = contextlib.ExitStack()
        client = lease.enter_context(pool.lease())
        client.send(message())
        if held:
            client.sync_root.acquire()
        else:
            client.close()
        monkeypatch.setattr(pool._keys, "gone", gone)
        with pytest.raises(KeyboardInterrupt):
            lease.close()
        if held:
            assert pool._retired.lingering == (client,)
            client.sync_root.release()
        pool.close()
        assert (pool.stats().opened, pool.stats().closed) == (1, {"closed": 1})
