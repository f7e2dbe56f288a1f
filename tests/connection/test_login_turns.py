"""A password that may be wrong is offered by one thread, and the others wait for what the server says to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.mail import envelope
from threadmail import (
    Aborted,
    Client,
    ClientPool,
    LoginRefused,
    MailError,
    Outcome,
    Phase,
    Receipt,
    Reentered,
    ServerConfig,
    TimedOut,
)
from threadmail._connection import opening as _opening
from threadmail._known import refused_logins
from threadmail._known.refused_logins import RefusedLogins, mark
from threadmail.testing import Expect, Pause, Reply, ScriptedServer, Serve, Signal, Step, ehlo, greeting

SECRET = "hush-hush"


def until(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.001)


class Fleet:
    """Clients with one config, each of which sends a message on a thread of its own."""

    def __init__(self, config: ServerConfig, number: int) -> None:
        self.clients = [Client(config) for _ in range(number)]
        self.errors: list[MailError] = []
        self.receipts: list[Receipt] = []
        self.threads = [threading.Thread(target=self._send, args=(client,)) for client in self.clients]

    def _send(self, client: Client) -> None:
        try:
            self.receipts.append(client.send(envelope()))
        except MailError as error:
            self.errors.append(error)

    def ends(self) -> None:
        for thread in self.threads:
            thread.join(10.0)
            assert not thread.is_alive()
        for client in self.clients:
            client.close()


class Door:
    """Where the server answers a login: it says that it was asked, and waits for its cue."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def script(self, *answer: Step) -> list[Step]:
        offers = ehlo("AUTH PLAIN")
        return [greeting(), offers, Expect("AUTH PLAIN"), Signal(self.reached), Pause(self.go), *answer]


#: A session in which nobody logs in.
UNUSED: list[Step] = [greeting(), ehlo("AUTH PLAIN"), Serve()]


def config_of(server: ScriptedServer) -> ServerConfig:
    return ServerConfig(server.host, server.port, local_hostname="test", username="ann", password=SECRET)


def logins(server: ScriptedServer) -> int:
    return sum(line.upper().startswith("AUTH") for lines in server.received for line in lines)


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.go.set()


@pytest.fixture
def at_the_turn(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Callable[[], bool]]:
    """Whether so many have come to the turn: from there on nobody is at anything but to wait for it, or to log in."""
    asked: list[bytes] = []
    real = RefusedLogins.turn

    def turn(known: RefusedLogins, marked: bytes) -> Any:
        turn = real(known, marked)
        asked.append(marked)
        return turn

    monkeypatch.setattr(RefusedLogins, "turn", turn)
    return lambda number: lambda: len(asked) == number


def test_a_wrong_password_is_offered_once_by_all_dials_under_way(
    door: Door, at_the_turn: Callable[[int], Callable[[], bool]]
) -> None:
    refusing = door.script(Reply("535 5.7.8 no"), Serve())
    with ScriptedServer(refusing, *[UNUSED] * 3) as server:
        fleet = Fleet(config_of(server), 4)
        fleet.threads[0].start()
        assert door.reached.wait(10.0)
        for thread in fleet.threads[1:]:
            thread.start()
        until(at_the_turn(4), "all want to log in")
        door.go.set()
        fleet.ends()
        assert logins(server) == 1
        assert [type(error) for error in fleet.errors] == [LoginRefused] * 4


def test_a_right_one_is_offered_by_all_once_the_server_took_it(
    door: Door, at_the_turn: Callable[[int], Callable[[], bool]]
) -> None:
    accepting = door.script(Reply("235 2.7.0 ok"), Serve())
    others = [Serve(auth={"ann": SECRET}, mechanisms=("PLAIN",))]
    with ScriptedServer(accepting, *[others] * 3) as server:
        fleet = Fleet(config_of(server), 4)
        fleet.threads[0].start()
        assert door.reached.wait(10.0)
        for thread in fleet.threads[1:]:
            thread.start()
        until(at_the_turn(4), "all want to log in")
        assert logins(server) == 1
        door.go.set()
        fleet.ends()
        assert [receipt.outcome for receipt in fleet.receipts] == [Outcome.SENT] * 4


def test_who_waits_for_another_ones_login_waits_until_his_own_deadline(door: Door) -> None:
    with ScriptedServer(door.script(Reply("235 2.7.0 ok"), Serve()), UNUSED) as server:
        fleet = Fleet(config_of(server), 1)
        fleet.threads[0].start()
        assert door.reached.wait(10.0)
        with Client(fleet.clients[0].config) as client:
            with pytest.raises(TimedOut) as info:
                client.send(envelope(), deadline=0.2)
            assert info.value.deadline_passed
        door.go.set()
        fleet.ends()


def test_or_until_he_is_called_off(door: Door, at_the_turn: Callable[[int], Callable[[], bool]]) -> None:
    with ScriptedServer(door.script(Reply("235 2.7.0 ok"), Serve()), UNUSED) as server:
        fleet = Fleet(config_of(server), 2)
        fleet.threads[0].start()
        assert door.reached.wait(10.0)
        fleet.threads[1].start()
        until(at_the_turn(2), "both want to log in")
        fleet.clients[1].abort()
        fleet.threads[1].join(10.0)
        assert isinstance(fleet.errors[0], Aborted)
        door.go.set()
        fleet.ends()


def test_or_as_long_as_a_command_may_take(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it goes on by itself: whoever holds the turn may never have an answer."""
    monkeypatch.setattr(_opening, "LOOK", 0.01)
    with ScriptedServer(door.script(Reply("235 2.7.0 ok"), Serve()), [Serve(auth={"ann": SECRET})]) as server:
        config = config_of(server)
        fleet = Fleet(config, 1)
        fleet.threads[0].start()
        assert door.reached.wait(10.0)
        object.__setattr__(config.timeouts, "command", 0.05)
        with Client(config) as client:
            assert client.send(envelope()).outcome is Outcome.SENT
        door.go.set()
        fleet.ends()


def test_who_has_another_pair_waits_for_nobody(door: Door) -> None:
    """A token for each dial: none of them is ever proven, and eight clients logged in one after another."""
    tokens = iter(["token 1", "token 2"])
    others = [Serve(auth={"ann": "token 2"}, mechanisms=("PLAIN",))]
    with ScriptedServer(door.script(Reply("235 2.7.0 ok"), Serve()), others) as server:
        config = ServerConfig(
            server.host, server.port, local_hostname="test", credentials=lambda: ("ann", next(tokens))
        )
        fleet = Fleet(config, 1)
        fleet.threads[0].start()
        assert door.reached.wait(10.0)
        with Client(config) as client:
            assert client.send(envelope(), deadline=8.0).outcome is Outcome.SENT
        assert not fleet.receipts
        door.go.set()
        fleet.ends()
        assert [receipt.outcome for receipt in fleet.receipts] == [Outcome.SENT]


def test_how_long_a_pair_is_proven() -> None:
    known = RefusedLogins()
    ann, bob = mark("ann", SECRET), mark("bob", SECRET)
    assert not known.is_proven(ann, 0.0)
    known.took(ann, 0.0)
    assert known.is_proven(ann, refused_logins.PROVEN - 0.1)
    assert not known.is_proven(ann, refused_logins.PROVEN)
    assert not known.is_proven(bob, 0.0)
    known.bar(bob, LoginRefused(535, b"no"), until=300.0, now=1.0)
    assert known.is_proven(ann, 1.0)
    known.bar(ann, LoginRefused(535, b"no"), until=300.0, now=1.0)
    assert not known.is_proven(ann, 1.0)


def test_the_turn_of_a_parent_is_not_that_of_its_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may hold it there who is not here."""
    known, ann = RefusedLogins(), mark("ann", SECRET)
    parents = known.turn(ann)
    assert known.turn(ann) is parents
    monkeypatch.setattr("threadmail._known.refused_logins.os.getpid", lambda: -1)
    assert known.turn(ann) is not parents


def test_each_pair_has_its_turn_and_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused_logins, "TURNS", 3)
    known = RefusedLogins()
    marks = [mark("ann", f"token {number}") for number in range(4)]
    turns = [known.turn(marked) for marked in marks[:3]]
    assert len(set(map(id, turns))) == 3
    assert [known.turn(marked) for marked in marks[:3]] == turns
    known.turn(marks[3])
    assert len(known._turns) == 3
    assert [known.turn(marked) for marked in marks[1:3]] == turns[1:]
    assert known.turn(marks[0]) is not turns[0]


@pytest.mark.parametrize("mails_through", [Client, ClientPool], ids=["client", "pool"])
def test_a_log_handler_that_mails_does_not_offer_the_password_that_is_just_refused(
    mails_through: Callable[[ServerConfig], Client | ClientPool],
) -> None:
    """It runs on the thread of the login, whose turn lets its owner pass; the password was offered twice."""
    told: list[MailError] = []

    class Mails(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "535" in record.getMessage() and not told:
                try:
                    within.send(envelope("b"))
                except MailError as error:
                    told.append(error)

    refusing = [greeting(), ehlo("AUTH PLAIN"), Expect("AUTH PLAIN"), Reply("535 5.7.8 no"), Serve()]
    with ScriptedServer(refusing, UNUSED) as server:
        config = config_of(server)
        log = logging.getLogger("threadmail.protocol")
        handler, level = Mails(), log.level
        with Client(config) as client, mails_through(config) as within:
            log.addHandler(handler)
            log.setLevel(logging.DEBUG)
            try:
                with pytest.raises(LoginRefused):
                    client.send(envelope("a"))
            finally:
                log.removeHandler(handler)
                log.setLevel(level)
            assert [(type(error), error.phase, error.outcome) for error in told] == [
                (Reentered, Phase.AUTH, Outcome.NOT_SENT)
            ]
            assert logins(server) == 1
            if isinstance(within, ClientPool):
                assert within._keys.breaker.failures == 0, "it says nothing of the server"
