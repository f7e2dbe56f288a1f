"""Who gets which client: the rules by example, against a plain model, and with an interruption at every call."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from math import inf
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import threadmail
from threadmail import (
    Aborted,
    Closed,
    ConnectFailed,
    ConnectionRefused,
    GreetingRefused,
    LoginRefused,
    MailError,
    Reentered,
    RetryPolicy,
)
from threadmail._connection.breaker import CircuitBreaker
from threadmail._pool.held import Closer, Farewell, Lease
from threadmail._pool.keys import RECENTLY, Keys
from threadmail._pool.room import Room
from threadmail._runtime.life import Life


class Rung:
    """A wake-up that is only counted."""

    def __init__(self) -> None:
        self.times = 0

    def set(self) -> None:
        self.times += 1

    def wait(self, seconds: float | None) -> None:
        raise AssertionError("nothing waits in the keys")


def keys_of(max_size: int) -> Keys[str]:
    numbers = iter(range(10_000))
    rng = random.Random(1)
    return Keys(max_size, CircuitBreaker(RetryPolicy(), rng), Room(rng), lambda: f"client {next(numbers)}")


def lease_of(keys: Keys[str], *holds: Lease[str]) -> Lease[str]:
    return Lease(keys, Rung(), holds)


def leased(keys: Keys[str], now: float = 0.0) -> Lease[str]:
    """A lease whose new client was connected."""
    lease = lease_of(keys)
    answer = keys.answer(lease, now)
    assert answer.dials
    keys.connected(lease, now)
    return lease


def back(keys: Keys[str], lease: Lease[str], now: float = 0.0, *, fit: bool = True) -> None:
    lease.fit = lease.answered = fit
    keys.give_back(lease, now)


def end_all(keys: Keys[str], now: float = 0.0) -> None:
    while keys.has_to_end:
        farewell = Farewell(keys)
        keys.claim(farewell, now)
        assert farewell.client is not None
        keys.gone(farewell.client, now)


NOT_NOW = GreetingRefused(421, b"4.3.2 not now")
NOBODY = ConnectionRefused("nobody listens there")


def test_the_client_used_last_goes_first_and_who_asked_first_is_served_first() -> None:
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    c, d = lease_of(keys), lease_of(keys)
    assert keys.answer(c, 0.0).client is None
    assert keys.answer(d, 0.0).client is None
    back(keys, b)
    assert keys.answer(d, 0.0).client is None
    assert keys.answer(c, 0.0).client == b.client
    back(keys, a)
    assert keys.answer(d, 0.0).client == a.client
    back(keys, c)
    back(keys, d)
    e = lease_of(keys)
    assert keys.answer(e, 0.0).client == d.client


def test_what_was_granted_to_one_that_gave_up_goes_to_the_next() -> None:
    """The grant comes between the end of the wait and the giving back, when nobody looks."""
    keys = keys_of(1)
    a, b, c = leased(keys), lease_of(keys), lease_of(keys)
    keys.answer(b, 0.0)
    keys.answer(c, 0.0)
    back(keys, a)  # now it is granted to b, which does not know
    keys.give_back(b, 0.0)
    assert keys.answer(c, 0.0).client == a.client
    back(keys, c)
    assert (len(keys.leased), len(keys.waiting), len(keys.idle)) == (0, 0, 1)


def test_the_permission_to_dial_that_was_granted_to_one_that_gave_up_goes_to_the_next() -> None:
    """Else the breaker would wait for its answer, and nobody dial again."""
    keys = keys_of(1)
    a, b, c = leased(keys), lease_of(keys), lease_of(keys)
    keys.answer(b, 0.0)
    keys.answer(c, 0.0)
    back(keys, a, fit=False)
    end_all(keys)
    assert b.client is not None
    keys.give_back(b, 0.0)
    end_all(keys)
    assert keys.answer(c, 0.0).dials
    assert not keys.breaker.probing


def test_a_refusal_while_others_serve_is_full_and_not_dead() -> None:
    keys = keys_of(3)
    a, b, c = leased(keys), lease_of(keys), lease_of(keys)
    assert keys.answer(b, 0.0).dials
    assert keys.refused(b, NOT_NOW, 0.0)
    end_all(keys)
    assert keys.breaker.error is None
    until = keys.answer(b, 0.0).until
    assert 0.0 < until < 2.0, "one more is asked for after a pause"
    assert keys.answer(c, 0.0).client is None
    back(keys, a)
    assert keys.answer(b, 0.0).client == a.client, "who was refused is the first in line"
    back(keys, b, fit=False)
    end_all(keys)
    assert keys.answer(c, 0.0).dials, "with no client left the first caller dials"


def test_a_refusal_a_moment_after_an_answer_is_waited_out() -> None:
    keys = keys_of(1)
    a, b = leased(keys), lease_of(keys)
    back(keys, a, fit=False)
    a.answered = True
    keys.give_back(a, 100.0)
    end_all(keys, 100.0)
    assert keys.answer(b, 100.1).dials
    assert keys.refused(b, NOT_NOW, 100.2)
    end_all(keys, 100.2)
    assert keys.answer(b, 100.2).dials, "once at once"
    assert keys.refused(b, NOT_NOW, 100.3)
    end_all(keys, 100.3)
    answer = keys.answer(b, 100.3)
    assert answer.client is None
    assert 100.3 < answer.until < 103.0, "then after a pause"
    assert keys.answer(b, answer.until).dials
    assert not keys.refused(b, NOT_NOW, 100.0 + RECENTLY)
    end_all(keys, 111.0)
    with pytest.raises(GreetingRefused, match="tried moments ago"):
        keys.answer(lease_of(keys), 100.0 + RECENTLY)


def test_a_dead_server_is_told_of_as_a_copy_of_the_same_class() -> None:
    keys = keys_of(2)
    a, b = lease_of(keys), lease_of(keys)
    assert keys.answer(a, 0.0).dials
    assert keys.answer(b, 0.0).client is None
    assert not keys.refused(a, NOBODY, 0.0)
    keys.give_back(a, 0.0)
    end_all(keys)
    assert isinstance(b.woken, Rung)
    assert b.woken.times > 0, "who waits is told at once"
    with pytest.raises(ConnectionRefused, match="next try in") as told:
        keys.answer(b, 0.0)
    assert told.value is not NOBODY
    assert "next try" not in str(NOBODY)


def test_any_answer_resets_the_pause_and_a_failure_on_a_new_session_begins_one() -> None:
    keys = keys_of(2)
    a = leased(keys)
    b = lease_of(keys)
    assert keys.answer(b, 0.0).dials
    keys.breaker.failed(NOBODY, 0.0)
    back(keys, a)
    assert keys.breaker.is_closed
    keys.give_back(b, 0.0)
    c = lease_of(keys)
    assert keys.answer(c, 0.0).client == a.client
    c.failure = NOBODY
    keys.give_back(c, 0.0)
    assert keys.breaker.pause(0.0) is not None


def test_a_line_that_cannot_move_is_told_so_and_one_that_can_is_not() -> None:
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    nested = lease_of(keys, a)
    assert keys.answer(nested, 0.0).client is None, "b may come back"
    other = lease_of(keys)
    assert keys.answer(other, 0.0).client is None, "it holds nothing up"
    last = lease_of(keys, b)
    with pytest.raises(Reentered):
        keys.answer(last, 0.0)
    keys.give_back(last, 0.0)
    back(keys, b)
    assert keys.answer(nested, 0.0).client == b.client


def test_who_holds_all_that_a_full_server_takes_waits_for_nobody() -> None:
    keys = keys_of(2)
    a = leased(keys)
    nested = lease_of(keys, a)
    assert keys.answer(nested, 0.0).dials
    assert not keys.refused(nested, NOT_NOW, 50.0)
    keys.give_back(nested, 50.0)
    end_all(keys)
    again = lease_of(keys, a)
    with pytest.raises(Reentered):
        keys.answer(again, 50.0)


def test_the_head_of_the_line_watches_the_pause_whoever_it_is() -> None:
    """The one who was to wake at the end of it may have given up."""
    keys = keys_of(2)
    leased(keys)
    b, c = lease_of(keys), lease_of(keys)
    assert keys.answer(b, 0.0).dials
    assert keys.answer(c, 0.0).client is None
    assert c.until == inf
    assert keys.refused(b, NOT_NOW, 0.0)
    end_all(keys)
    keys.answer(b, 0.0)
    assert isinstance(c.woken, Rung)
    before = c.woken.times
    keys.give_back(b, 0.0)
    assert c.woken.times > before
    assert keys.answer(c, 0.0).until < inf


def test_closing_lets_leases_end_and_waits_for_none_of_the_closer() -> None:
    keys = keys_of(3)
    a, b, c = leased(keys), leased(keys), leased(keys)
    back(keys, c)
    waiting = lease_of(keys)
    assert keys.answer(waiting, 0.0).client == c.client
    late = lease_of(keys)
    keys.answer(late, 0.0)
    closer: Closer[str] = Closer(Rung(), (a,))
    keys.close(closer, 0.0)
    with pytest.raises(Closed):
        keys.answer(late, 0.0)
    keys.give_back(late, 0.0)
    assert sorted(keys.to_drop(closer, 0.0)) == sorted([str(b.client), str(waiting.client)])
    back(keys, waiting)
    back(keys, b)
    end_all(keys)
    assert not keys.awaited(closer, 0.0)
    keys.leave(closer, 0.0)
    back(keys, a)
    end_all(keys)
    assert keys.life is Life.CLOSED
    assert keys.clients() == []


def test_two_that_close_inside_their_leases_do_not_wait_for_each_other() -> None:
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    first: Closer[str] = Closer(Rung(), (a,))
    second: Closer[str] = Closer(Rung(), (b,))
    keys.close(first, 0.0)
    assert keys.awaited(first, 0.0)
    keys.close(second, 0.0)
    assert not keys.awaited(second, 0.0)
    assert not keys.awaited(first, 0.0)
    assert isinstance(first.woken, Rung)
    assert first.woken.times > 0


# ---------------------------------------------------------------- dials inside a lease


def client_of(lease: Lease[str]) -> str:
    assert lease.client is not None
    return lease.client


def redial(keys: Keys[str], lease: Lease[str], now: float = 0.0) -> str:
    client = client_of(lease)
    keys.redial(client, 1, now)
    return client


def test_one_of_those_that_lost_their_connections_dials_and_tells_the_others() -> None:
    keys = keys_of(3)
    a, b, c = leased(keys), leased(keys), lease_of(keys)
    for lease in (a, b):
        redial(keys, lease)
    for lease in (a, b):
        keys.redialled(client_of(lease), NOBODY, 0.0)
    assert keys.answer(c, 0.0).client is None, "who asks for a lease is told by the same breaker"
    keys.give_back(c, 0.0)
    for lease in (a, b):
        with pytest.raises(ConnectionRefused, match=r"next try in \d+\.\d s"):
            redial(keys, lease, 0.001)
    redial(keys, a, 100.0)
    with pytest.raises(ConnectionRefused, match="just now"):
        redial(keys, b, 100.0)
    keys.redialled(client_of(a), None, 100.0)
    redial(keys, b, 100.0)
    keys.redialled(client_of(b), None, 100.0)
    assert keys.down == keys.redialling == {}


def test_the_probe_of_a_lease_wakes_who_waits_for_its_answer() -> None:
    keys = keys_of(2)
    a, b = leased(keys), lease_of(keys)
    redial(keys, a)
    keys.redialled(client_of(a), NOBODY, 0.0)
    redial(keys, a, 100.0)
    assert keys.answer(b, 100.0).until == inf
    assert isinstance(b.woken, Rung)
    keys.redialled(client_of(a), None, 100.0)
    assert b.woken.times > 0
    assert keys.answer(b, 100.0).dials


def test_a_server_that_serves_others_and_lets_one_in_no_more_is_full() -> None:
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    redial(keys, a)
    keys.redialled(client_of(a), NOT_NOW, 0.0)
    assert keys.breaker.error is None
    with pytest.raises(GreetingRefused, match="next try in"):
        redial(keys, a, 0.1)
    assert redial(keys, b, 0.1), "to replace its connection is not to ask for one more"
    keys.redialled(client_of(b), None, 0.1)
    assert keys.room.refusals == 1
    redial(keys, a, 10.0)
    keys.redialled(client_of(a), None, 10.0)
    assert keys.room.refusals == 0


def test_one_that_has_no_connection_serves_nobody() -> None:
    """Else each of those who lost theirs would take the server for a full one, for the sake of the others."""
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    assert keys.serves(client_of(a), 0.0)
    redial(keys, b)
    assert not keys.serves(client_of(a), 0.0)


@pytest.mark.parametrize("refuse", [True, False])
def test_a_refused_login_of_a_lease_bars_all(refuse: bool) -> None:
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    redial(keys, a)
    keys.redialled(client_of(a), LoginRefused(535, b"no") if refuse else Aborted("x"), 0.0)
    if refuse:
        with pytest.raises(LoginRefused):
            redial(keys, b, 1.0)
    else:
        redial(keys, b, 1.0)


def test_who_dials_where_nobody_has_been_let_in_yet_is_told_so() -> None:
    """As in a forked child, with a client of its parent's."""
    keys = keys_of(2)
    assert keys.answer(lease_of(keys), 0.0).dials
    with pytest.raises(ConnectFailed) as info:
        keys.redial("another", 0, 0.0)
    assert info.value.may_resend


# ---------------------------------------------------------------- an exception from outside, at every call


PACKAGE = threadmail.__path__[0]


class Interrupt(BaseException):
    pass


def interrupted_at(number: int, act: Callable[[], object]) -> bool:
    """Run `act`, and raise at its `number`-th call, or where one of the interpreter's returns; False: not so many."""
    seen = [0]

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_filename.startswith(PACKAGE) and event in ("call", "c_return"):
            seen[0] += 1
            if seen[0] == number:
                sys.setprofile(None)
                raise Interrupt

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        act()
    except Interrupt:
        return True
    except MailError:
        return seen[0] >= number
    finally:
        sys.setprofile(before)
    return seen[0] >= number


def served(keys: Keys[str]) -> list[Lease[str]]:
    """Two clients at most: one is leased, the other goes to the second who asks, and the third waits."""
    a, b = leased(keys), leased(keys)
    back(keys, b)
    rest = [lease_of(keys), lease_of(keys)]
    for lease in rest:
        keys.answer(lease, 0.0)
    return [a, *rest]


def dialling(keys: Keys[str]) -> list[Lease[str]]:
    """One is leased, the second who asks dials, the third waits."""
    a, b, c = leased(keys), lease_of(keys), lease_of(keys)
    keys.answer(b, 0.0)
    keys.answer(c, 0.0)
    return [a, b, c]


def alone(keys: Keys[str]) -> list[Lease[str]]:
    """One is leased, and whoever dials next is the only one."""
    keys.breaker.failed(NOBODY, -1000.0)
    return [leased(keys)]


def redialling(keys: Keys[str]) -> list[Lease[str]]:
    """One is leased and dials again, the second waits."""
    (a,) = alone(keys)
    redial(keys, a)
    b = lease_of(keys)
    keys.answer(b, 0.0)
    return [a, b]


Act = Callable[[Keys[str], list[Lease[str]]], object]
STEPS: dict[str, tuple[Callable[[Keys[str]], list[Lease[str]]], Act]] = {
    "ask": (served, lambda keys, has: keys.answer(lease_of(keys), 0.0)),
    "look": (dialling, lambda keys, has: keys.answer(has[2], 0.0)),
    "give back": (served, lambda keys, has: back(keys, has[0])),
    "discard": (served, lambda keys, has: back(keys, has[0], fit=False)),
    "stand aside": (served, lambda keys, has: keys.stand_aside(has[1], 0.0)),
    "connected": (dialling, lambda keys, has: keys.connected(has[1], 0.0)),
    "full": (dialling, lambda keys, has: keys.refused(has[1], NOT_NOW, 50.0)),
    "dead": (dialling, lambda keys, has: keys.refused(has[1], GreetingRefused(554, b"no"), 50.0)),
    "redial": (alone, lambda keys, has: redial(keys, has[0])),
    "redialled": (redialling, lambda keys, has: keys.redialled(client_of(has[0]), None, 0.0)),
    "redial fails": (redialling, lambda keys, has: keys.redialled(client_of(has[0]), NOBODY, 0.0)),
    "redial is full": (redialling, lambda keys, has: keys.redialled(client_of(has[0]), NOT_NOW, 0.0)),
    "discard one that dials": (redialling, lambda keys, has: back(keys, has[0], fit=False)),
    "close": (served, lambda keys, has: keys.close(Closer(Rung()), 0.0)),
}


@pytest.mark.parametrize("name", STEPS)
def test_no_place_is_lost_wherever_a_step_is_interrupted(name: str) -> None:
    """Who was interrupted gives back, as the pool does; then nothing is leased, and all that there is can be had."""
    prepare, act = STEPS[name]
    number = 0
    while True:
        number += 1
        keys = keys_of(2)
        has = prepare(keys)
        if not interrupted_at(number, lambda keys=keys, has=has: act(keys, has)):  # type: ignore[misc]
            break
        for lease in [*reversed(has), *keys.waiting]:
            keys.give_back(lease, 100.0)
        end_all(keys, 100.0)
        assert (keys.leased, keys.dialling, list(keys.waiting)) == ({}, {}, []), f"at {number}"
        assert (keys.down, keys.redialling, keys.breaker.probing) == ({}, {}, False), f"at {number}"
        assert len(keys.idle) <= 2
        if keys.life is Life.OPEN:
            for _ in range(2):
                lease = lease_of(keys)
                assert keys.answer(lease, 1000.0).client is not None, f"at {number}"
                keys.connected(lease, 1000.0)
        else:
            keys.close(Closer(Rung()), 100.0)
            end_all(keys, 100.0)
            assert keys.life is Life.CLOSED
    assert number > 3


# ---------------------------------------------------------------- against a plain model


class Model(RuleBasedStateMachine):
    """The same, told in the simplest way: a line, those who have a client, a stack of idle ones.

    Whoever is served is the first in line, and gets the client used last, or a new one; that is all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = 3
        self.keys = keys_of(self.size)
        self.now = 0.0
        self.line: list[Lease[str]] = []
        self.having: dict[Lease[str], str] = {}
        self.idle: list[str] = []
        self.told: set[Lease[str]] = set()

    def served(self) -> None:
        """Take over what was granted, and see that it was granted to the right ones."""
        while self.line and self.line[0].client is not None:
            first = self.line.pop(0)
            client = first.client
            assert client is not None
            if client in self.idle:
                assert client == self.idle.pop(), "not the one used last"
            else:
                assert first in self.keys.dialling
            self.having[first] = client
            assert isinstance(first.woken, Rung)
            assert first.woken.times > 0, "granted, and not woken"
        assert all(lease.client is None for lease in self.line), "somebody was served out of turn"

    @rule()
    def ask(self) -> None:
        lease = lease_of(self.keys)
        self.line.append(lease)
        self.look(lease)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        self.look(data.draw(st.sampled_from(self.line)))

    def look(self, lease: Lease[str]) -> None:
        try:
            answer = self.keys.answer(lease, self.now)
        except MailError:
            self.line.remove(lease)
            self.keys.give_back(lease, self.now)
        else:
            if answer.client is not None:
                self.told.add(lease)
        self.served()

    def choose(self, data: st.DataObject) -> Lease[str]:
        return data.draw(st.sampled_from(list(self.having)))

    @precondition(lambda self: self.having)
    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        lease = self.choose(data)
        self.keys.connected(lease, self.now)
        self.served()

    @precondition(lambda self: self.keys.dialling)
    @rule(data=st.data(), error=st.sampled_from([NOT_NOW, NOBODY, GreetingRefused(554, b"no")]))
    def refuse(self, data: st.DataObject, error: MailError) -> None:
        lease = data.draw(st.sampled_from(list(self.keys.dialling)))
        if lease not in self.told:
            return
        del self.having[lease]
        self.told.discard(lease)
        if self.keys.refused(lease, error, self.now):
            self.line.insert(0, lease)
        else:
            self.keys.give_back(lease, self.now)
        self.served()

    @precondition(lambda self: set(self.having) & self.told - set(self.keys.dialling))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        able = [lease for lease in self.having if lease in self.told and lease not in self.keys.dialling]
        with contextlib.suppress(MailError):
            redial(self.keys, data.draw(st.sampled_from(able)), self.now)
        self.served()

    @precondition(lambda self: self.keys.redialling)
    @rule(data=st.data(), error=st.sampled_from([None, NOT_NOW, NOBODY, Aborted("x")]))
    def redialled(self, data: st.DataObject, error: MailError | None) -> None:
        self.keys.redialled(data.draw(st.sampled_from(list(self.keys.redialling))), error, self.now)
        self.served()

    @precondition(lambda self: self.having)
    @rule(data=st.data(), fit=st.booleans())
    def give_back(self, data: st.DataObject, fit: bool) -> None:
        lease = self.choose(data)
        dialled = lease in self.keys.dialling
        client = self.having.pop(lease)
        lease.fit = fit
        if (fit or lease not in self.told) and not dialled and self.keys.life is Life.OPEN:
            self.idle.append(client)
        self.keys.give_back(lease, self.now)
        self.served()

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.line))
        self.line.remove(lease)
        self.keys.give_back(lease, self.now)
        self.served()

    @rule()
    def end_one(self) -> None:
        farewell = Farewell(self.keys)
        self.keys.claim(farewell, self.now)
        if farewell.client is not None:
            self.keys.gone(farewell.client, self.now)
        self.served()

    @rule(seconds=st.sampled_from([0.1, 1.0, 20.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.now > 200.0)
    @rule()
    def close(self) -> None:
        closer: Closer[str] = Closer(Rung())
        self.keys.close(closer, self.now)
        self.keys.leave(closer, self.now)
        self.idle.clear()

    @invariant()
    def each_client_is_in_one_place(self) -> None:
        clients = self.keys.clients()
        assert len(clients) == len(set(clients)) <= self.size
        assert set(self.keys.leased) == set(self.having)
        assert list(self.keys.waiting) == self.line
        assert [client for client, _ in self.keys.idle] == self.idle

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        if self.keys.life is Life.OPEN and self.line:
            assert not self.idle

    @invariant()
    def somebody_moves_the_line(self) -> None:
        """A client may come back, or the head of the line wakes by itself, or was woken to hear why there is none."""
        if not self.line or self.keys.clients():
            return
        first = self.line[0]
        assert isinstance(first.woken, Rung)
        assert first.until < inf or first.woken.times > 0

    @invariant()
    def the_breaker_waits_for_somebody(self) -> None:
        assert self.keys.dialling or self.keys.redialling or not self.keys.breaker.probing
        assert {*self.keys.down, *self.keys.redialling} <= {lease.client for lease in self.having}

    def teardown(self) -> None:
        for lease in [*self.line, *self.having]:
            self.keys.give_back(lease, self.now)
        end_all(self.keys, self.now)
        assert not self.keys.leased
        assert not self.keys.waiting
        self.keys.close(Closer(Rung()), self.now)
        end_all(self.keys, self.now)
        assert self.keys.life is Life.CLOSED
        assert self.keys.clients() == []


TestAgainstTheModel = Model.TestCase
TestAgainstTheModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
