"""What a leased client dials by itself: it asks the breaker of its pool, and tells it what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from tests.support.mail import message
from threadmail import (
    Client,
    ClientPool,
    Closed,
    ConnectionRefused,
    LoginRefused,
    MailError,
    Outcome,
    Reentered,
    ServerConfig,
    TimedOut,
)
from threadmail._connection import kept_connection as _kept
from threadmail._connection import opening as _opening
from threadmail._known.refused_logins import mark
from threadmail._runtime.deadline import now
from threadmail.testing import CaptureServer


class Dials:
    """Counts the dials, and stops the clock that the pool decides by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        self.at = now()
        self.instead: Callable[[], object] | None = None
        real = _opening.open_session

        def counted(*args: Any) -> object:
            self.number += 1
            if self.instead is not None:
                self.instead()
            return real(*args)

        monkeypatch.setattr(_kept, "open_session", counted)
        monkeypatch.setattr("threadmail._runtime.steps.now", lambda: self.at)


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> Dials:
    return Dials(monkeypatch)


@contextlib.contextmanager
def leased(pool: ClientPool, number: int) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.lease()) for _ in range(number)]
        for client in clients:
            client.send(message())
        yield clients


def lose(*clients: Client) -> None:
    """The server hangs up, and nobody has looked yet."""
    for client in clients:
        assert client._smtp is not None
        assert client._smtp.sock is not None
        client._smtp.sock.shutdown(2)


def refused(client: Client) -> MailError:
    with pytest.raises(ConnectionRefused) as info:
        client.send(message())
    return info.value


def test_a_dead_server_is_dialled_once_by_each_lease_and_then_by_one_of_them(dials: Dials) -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=8) as pool, leased(pool, 8) as clients:
        server.close()
        lose(*clients)
        before = dials.number
        told = [refused(client) for _ in range(5) for client in clients]
        assert dials.number - before == 8
        assert "tried moments ago; next try in" in str(told[-1])
        assert told[-1].receipt is not None
        assert told[-1].receipt.attempts == 0
        assert told[-1].may_resend
        for _ in range(5):
            dials.at += 100.0
            before = dials.number
            for client in clients:
                refused(client)
            assert dials.number - before == 1


def test_the_leases_end_and_the_server_is_dead_still(dials: Dials) -> None:
    """That it answered before its death opens nothing."""
    with CaptureServer() as server, ClientPool(server.url, max_size=4) as pool:
        with leased(pool, 4) as clients:
            server.close()
            lose(*clients)
            for client in clients:
                refused(client)
        before = dials.number
        for _ in range(5):
            with pytest.raises(ConnectionRefused), pool.lease():
                pass
        assert dials.number == before


def test_what_a_lease_dials_opens_the_breaker_for_the_others(dials: Dials) -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool, leased(pool, 2) as clients:
        with CaptureServer() as other:
            address = other.url
        config = ServerConfig.of(address)
        at_home = [client.config for client in clients]
        for client in clients:
            client.config = config  # nobody is at home there
        lose(*clients)
        for client in clients:
            refused(client)
        for client, home in zip(clients, at_home, strict=True):
            client.config = home
        refused(clients[0])  # the pause is not over
        dials.at += 100.0
        assert clients[0].send(message()).outcome is Outcome.SENT
        assert clients[1].send(message()).outcome is Outcome.SENT
        assert not pool._keys.breaker.probing
        assert pool._keys.down == pool._keys.redialling == {}


def test_a_stale_connection_is_replaced_as_ever(dials: Dials) -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=3) as pool, leased(pool, 3) as clients:
        lose(*clients)
        assert {client.send(message()).outcome for client in clients} == {Outcome.SENT}
        assert dials.number == 6
        assert pool._keys.breaker.is_closed


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), TimedOut("mine"), LookupError()], ids=lambda e: type(e).__name__
)
def test_what_says_nothing_of_the_server_gives_the_permission_back(dials: Dials, error: BaseException) -> None:
    if isinstance(error, TimedOut):
        error.deadline_passed = True

    def interrupt() -> None:
        raise error

    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool, leased(pool, 2) as clients:
        pool._keys.breaker._closed = False  # so that there is one permission, and no more
        lose(*clients)
        dials.instead = interrupt
        with pytest.raises(BaseException) as info:  # noqa: PT011 - also what is no Exception
            clients[0].send(message())
        assert type(info.value) is type(error) or isinstance(info.value, MailError)
        dials.instead = None
        assert not pool._keys.breaker.probing
        assert pool._keys.breaker.error is None
        assert clients[1].send(message()).outcome is Outcome.SENT


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_beside_the_dial_loses_no_permission(
    dials: Dials, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It comes when the permission was given, and nobody knows; or when what came of it was noted, or not yet."""
    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool, leased(pool, 2) as clients:
        keys = pool._keys
        keys.breaker._closed = False
        lose(*clients)
        name = "redial" if when == "before" else "redialled"
        real = getattr(keys, name)

        def interrupted(*args: Any) -> None:
            monkeypatch.undo()
            if when == "before":
                real(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr(keys, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            clients[0].send(message())
        assert not keys.breaker.probing
        assert keys.redialling == {}
        assert clients[1].send(message()).outcome is Outcome.SENT


def test_what_nobody_could_give_back_ends_with_the_lease(dials: Dials) -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool:
        with leased(pool, 2) as clients:
            pool._keys.breaker._closed = False
            clients[0].close()
            pool._steps.take(pool._keys.redial, clients[0], 1)
            assert clients[0] in pool._keys.redialling
        assert not pool._keys.breaker.probing
        assert pool.send(message()).outcome is Outcome.SENT


@pytest.mark.parametrize("fixed", [True, False])
def test_one_whose_login_is_barred_serves_nobody(dials: Dials, fixed: bool) -> None:
    """Its pair was refused elsewhere, so nobody is dialled; it was counted among those that have a connection."""
    pair = ("ann", "right")
    with CaptureServer(auth=dict([pair])) as server:
        by_callable: dict[str, Any] = {"username": None, "password": None, "credentials": lambda: pair}
        config = dataclasses.replace(server.config, **({} if fixed else by_callable))
        with ClientPool(config, max_size=2) as pool, leased(pool, 2) as clients:
            before = dials.number
            config._refused_logins.bar(mark(*pair), LoginRefused(535, b"no"), until=now() + 300.0, now=now())
            lose(*clients)
            with pytest.raises(LoginRefused):
                clients[0].send(message())
            keys = pool._keys
            assert dials.number == before
            assert not keys.serves(clients[1], dials.at)
            assert keys.serves(clients[0], dials.at)  # nobody has looked at the other one yet
            assert isinstance(keys.breaker.error, LoginRefused)
            assert not keys.breaker.probing
            assert keys.redialling == {}


def test_while_one_tries_the_others_are_told(dials: Dials) -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool, leased(pool, 2) as clients:
        server.close()
        lose(*clients)
        for client in clients:
            refused(client)
        dials.at += 100.0
        told: list[MailError] = []
        dials.instead = lambda: told.append(refused(clients[1]))
        refused(clients[0])
        assert "another thread tries again just now" in str(told[0])


def test_who_asks_for_another_client_in_the_midst_of_the_only_dial_is_told_so(dials: Dials) -> None:
    """A signal handler, or a callback that the login asks for a password: the end of that dial waits for it."""
    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool:
        told: list[Outcome | None] = []

        def ask() -> None:
            dials.instead = None
            with pytest.raises(Reentered) as info:
                pool.send(message(), deadline=30.0)
            told.append(info.value.outcome)

        dials.instead = ask
        assert pool.send(message()).outcome is Outcome.SENT
        assert told == [Outcome.NOT_SENT]


def test_the_client_of_a_lease_that_is_over_dials_no_more(dials: Dials) -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=1) as pool:
        with pool.lease() as client:
            client.send(message())
            lose(client)
            # In the middle of the call, as by another thread: the client is taken from it, and then it would dial.
            dials_before, real = dials.number, client._disconnect

            def parted(*args: Any) -> None:
                client._parted = True
                real(*args)

            with mock.patch.object(client, "_disconnect", parted), pytest.raises(Closed):
                client.send(message())
        assert dials.number == dials_before
        assert not pool._keys.breaker.probing
        assert pool.send(message()).outcome is Outcome.SENT


def test_a_handler_in_the_middle_of_a_step_does_not_dial(dials: Dials) -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=1) as pool, leased(pool, 1) as [client]:
        lose(client)

        def in_a_step(at: float) -> None:
            with pytest.raises(Reentered):
                client.send(message())

        pool._steps.take(in_a_step)
        assert client.send(message()).outcome is Outcome.SENT


def test_a_pool_sends_on_by_those_that_serve(dials: Dials) -> None:
    """One of its clients is not let in any more: the message goes by another one."""
    with CaptureServer() as server, ClientPool(server.url, max_size=2) as pool:
        with leased(pool, 2) as clients:
            kept, lost = clients
            lost.config = ServerConfig.of("smtp://127.0.0.1:1")
        del kept
        assert pool.stats().idle == 2
        lose(*[client for client in pool._keys.clients() if client.config is not pool.config])
        assert {pool.send(message()).outcome for _ in range(3)} == {Outcome.SENT}
        assert pool._keys.breaker.error is None
