"""Who gets which client: each decision at its boundaries. No lock, no thread, no socket: the time is an argument."""

from __future__ import annotations

from math import inf

import pytest

from tests.pool.test_keys import NOBODY, NOT_NOW, Rung, back, client_of, end_all, keys_of, lease_of, leased, redial
from threadmail import Aborted, Closed, ConnectionRefused, GreetingRefused, MailError, Reentered, TimedOut
from threadmail._connection.breaker import Dial
from threadmail._pool.held import Closer, Farewell, Lease
from threadmail._pool.keys import RECENTLY, Keys
from threadmail._runtime.life import Life


def rung(who: Lease[str] | Closer[str]) -> int:
    assert isinstance(who.woken, Rung)
    return who.woken.times


def waits(keys: Keys[str], lease: Lease[str], now: float = 0.0) -> float:
    """Have somebody ask who has to wait. Returns until when."""
    answer = keys.answer(lease, now)
    assert answer.client is None
    assert not answer.dials
    assert answer.until == lease.until
    return answer.until


def paused(keys: Keys[str], refusals: int = 1, until: float = 50.0) -> None:
    """The server is full."""
    keys.room.refusals, keys.room.opens_at, keys.room.error = refusals, until, NOT_NOW


# Asking ---------------------------------------------------------------------------------------------------------------


def test_only_the_head_of_the_line_watches_the_pause() -> None:
    keys = keys_of(4)
    leased(keys)
    paused(keys)
    assert waits(keys, lease_of(keys)) == 50.0
    assert waits(keys, lease_of(keys)) == inf


@pytest.mark.parametrize(("size", "in_the_way"), [(2, 1), (3, 0)])
def test_who_says_goodbye_is_in_the_way_where_there_is_no_other_place(size: int, in_the_way: int) -> None:
    keys = keys_of(size)
    leased(keys)
    gone = leased(keys)
    back(keys, gone, fit=False)
    paused(keys)
    answer = keys.answer(lease_of(keys), 0.0)
    assert answer.in_the_way == (gone.client,) * in_the_way
    assert answer.to_end
    assert answer.leased == 1


def test_nobody_is_woken_as_long_as_nothing_changes() -> None:
    """Who wakes looks again: for nothing, and again, as long as the wait is."""
    keys = keys_of(3)
    a, b = leased(keys), leased(keys)
    paused(keys)
    first, second = lease_of(keys), lease_of(keys)
    waits(keys, first)
    before = rung(first)
    for _ in range(3):
        waits(keys, first)
        waits(keys, second)
        keys.serve(0.0)
    assert (rung(first), rung(second)) == (before, 0)
    del a, b


def test_who_is_being_granted_a_client_has_none_yet() -> None:
    """Memory can fail in between; then whoever looks finds the lease without its client."""
    keys = keys_of(2)
    a = leased(keys)
    keys.leased[lease_of(keys)] = None
    assert keys.clients() == [a.client]


# Who waits for himself ------------------------------------------------------------------------------------------------


def test_who_holds_what_is_gone_waits_for_a_full_server_as_everybody() -> None:
    """Nothing of his is in the way."""
    keys = keys_of(2)
    paused(keys, refusals=2)
    assert waits(keys, lease_of(keys, lease_of(keys))) == 50.0


@pytest.mark.parametrize("opens_at", [0.0, 1.0])
def test_who_may_dial_when_the_pause_of_a_dead_server_is_over_waits_for_that(opens_at: float) -> None:
    keys = keys_of(2)
    a = leased(keys, 1.0)
    keys.breaker.failed(NOBODY, 1.0)
    keys.room.opens_at = opens_at
    assert 1.0 < waits(keys, lease_of(keys, a), 1.0) < inf


def test_who_waits_for_the_end_of_his_own_dial_is_told_so() -> None:
    """A signal handler in the middle of the first dial, a callback that the login asks for a password."""
    keys = keys_of(2)
    a = lease_of(keys)
    assert keys.answer(a, 0.0).dials
    with pytest.raises(Reentered):
        keys.answer(lease_of(keys, a), 0.0)


def test_who_waits_for_the_end_of_his_own_dial_inside_a_lease_is_told_so() -> None:
    keys = keys_of(2)
    a = leased(keys)
    keys.breaker.failed(NOBODY, -100.0)
    redial(keys, a)
    with pytest.raises(Reentered):
        keys.answer(lease_of(keys, a), 0.0)


def test_who_waits_for_the_dial_of_somebody_else_waits() -> None:
    keys = keys_of(3)
    a, b = leased(keys), lease_of(keys)
    keys.breaker.failed(NOBODY, -100.0)
    assert keys.answer(b, 0.0).dials
    assert waits(keys, lease_of(keys, a)) == inf


# Who else is there ----------------------------------------------------------------------------------------------------


def test_one_that_lost_its_connection_is_no_other() -> None:
    """A server that lets nobody in, while the only one who had a connection has none any more, is dead."""
    keys = keys_of(3)
    a = leased(keys)
    redial(keys, a)
    keys.redialled(client_of(a), None, 0.0)
    redial(keys, a)
    b = lease_of(keys)
    assert keys.answer(b, 0.0).dials
    assert not keys.refused(b, NOT_NOW, 50.0)
    assert keys.breaker.error is NOT_NOW
    assert keys.room.refusals == 0


def test_one_that_has_its_connection_still_is_another() -> None:
    keys = keys_of(4)
    a, b, c = leased(keys), leased(keys), lease_of(keys)
    redial(keys, a)
    assert keys.answer(c, 0.0).dials
    assert keys.refused(c, NOT_NOW, 50.0)
    assert keys.breaker.error is None
    del b


# Handing out ----------------------------------------------------------------------------------------------------------


def test_who_waits_is_told_that_the_pool_closes_one_after_another() -> None:
    keys = keys_of(1)
    leased(keys)
    first, second = lease_of(keys), lease_of(keys)
    waits(keys, first)
    waits(keys, second)
    keys.close(Closer(Rung()), 0.0)
    assert (rung(first), rung(second)) == (1, 0)
    with pytest.raises(Closed):
        keys.answer(first, 0.0)
    keys.give_back(first, 0.0)
    assert rung(second) > 0


def test_who_waits_is_told_that_the_server_is_dead_when_nobody_is_left() -> None:
    keys = keys_of(2)
    a, b = lease_of(keys), lease_of(keys)
    assert keys.answer(a, 0.0).dials
    assert waits(keys, b) == inf, "it is probed"
    keys.refused(a, NOBODY, 0.0)
    assert rung(b) == 1, "the end of the pause is known now"
    assert b.until == keys.breaker.opens_at
    keys.give_back(a, 0.0)
    assert rung(b) == 1
    end_all(keys)
    assert rung(b) == 2, "and now there is nobody to wait for"


def test_who_was_interrupted_when_he_was_let_dial_is_let_dial() -> None:
    """The breaker waits for his answer."""
    keys = keys_of(1)
    a = lease_of(keys)
    keys.waiting[a] = keys.dialling[a] = None
    assert keys.breaker.ask(0.0) is Dial.NOW
    assert keys.answer(a, 0.0).dials


def test_where_there_is_no_place_he_has_to_wait_all_the_same() -> None:
    keys = keys_of(1)
    leased(keys)
    a = lease_of(keys)
    keys.waiting[a] = keys.dialling[a] = None
    assert waits(keys, a) == inf


def test_everybody_may_dial_when_the_server_has_answered_whoever_probes_still() -> None:
    keys = keys_of(4)
    a, b, c = leased(keys), lease_of(keys), lease_of(keys)
    keys.breaker.failed(NOBODY, -100.0)
    assert keys.answer(b, 0.0).dials
    assert waits(keys, c) == inf
    keys.breaker.answered()
    assert keys.breaker.probing
    assert keys.answer(c, 0.0).dials
    del a


@pytest.mark.parametrize(("refusals", "others", "waiting"), [(1, True, True), (1, False, False), (2, False, True)])
def test_a_full_server_is_asked_at_once_by_who_is_alone_but_once(refusals: int, others: bool, waiting: bool) -> None:
    for now, late in ((49.9, False), (50.0, True)):
        keys = keys_of(2)
        if others:
            leased(keys)
        paused(keys, refusals)
        assert keys.answer(lease_of(keys), now).dials == (late or not waiting)


# What came of a dial --------------------------------------------------------------------------------------------------


def test_one_that_is_let_in_ends_the_pauses_of_a_full_server() -> None:
    keys = keys_of(3)
    leased(keys)
    paused(keys, until=0.0)
    leased(keys)
    assert (keys.room.refusals, keys.room.error) == (0, None)


def test_only_who_dialled_tells_what_came_of_it() -> None:
    """He may be interrupted, and tell again."""
    keys = keys_of(3)
    a = leased(keys)
    paused(keys)
    keys.connected(a, 0.0)
    assert keys.room.refusals == 1


@pytest.mark.parametrize("error", [NOBODY, NOT_NOW, GreetingRefused(554, b"5.7.1 no")])
def test_a_refusal_that_is_told_twice_is_one(error: MailError) -> None:
    keys = keys_of(3)
    a, b = leased(keys), lease_of(keys)
    assert keys.answer(b, 0.0).dials
    told = keys.refused(b, error, 50.0)
    seen = keys.breaker.failures, keys.room.refusals
    assert seen == ((1, 0) if error is not NOT_NOW and not error.transient else (0, 1))
    end_all(keys)
    assert keys.refused(b, error, 50.0) == told
    assert (keys.breaker.failures, keys.room.refusals) == seen
    assert list(keys.waiting) == [b] * told
    del a


@pytest.mark.parametrize(("seconds", "full"), [(0.0, True), (9.99, True), (10.0, False), (10.5, False)])
def test_a_server_that_answered_in_the_last_ten_seconds_is_full(seconds: float, full: bool) -> None:
    keys = keys_of(1)
    a = leased(keys)
    a.answered = True
    keys.give_back(a, 100.0)
    end_all(keys, 100.0)
    b = lease_of(keys)
    assert keys.answer(b, 100.0).dials
    assert keys.refused(b, NOT_NOW, 100.0 + seconds) == full
    assert RECENTLY == 10.0


def test_who_has_been_refused_waits_where_one_is_idle() -> None:
    """It is his at once."""
    keys = keys_of(3)
    mine, other, b = leased(keys), leased(keys), lease_of(keys, leased(keys))
    back(keys, mine)
    b.met_stale = True
    back(keys, other, fit=False)
    end_all(keys)
    assert keys.answer(b, 0.0).dials
    b.met_stale = False
    assert keys.refused(b, NOT_NOW, 50.0)
    assert b.client == mine.client


def test_who_closes_is_told_of_a_refusal_and_nobody_waits_any_more() -> None:
    keys = keys_of(2)
    a, b = leased(keys), lease_of(keys)
    assert keys.answer(b, 0.0).dials
    closer: Closer[str] = Closer(Rung())
    keys.close(closer, 0.0)
    before = rung(closer)
    assert not keys.refused(b, NOT_NOW, 50.0)
    assert rung(closer) > before
    assert not keys.waiting
    del a


def test_who_met_a_kept_one_that_was_none_dials_and_does_not_try_the_next() -> None:
    keys = keys_of(3)
    a, b = leased(keys), leased(keys)
    back(keys, a)
    back(keys, b)
    c, behind = lease_of(keys), lease_of(keys)
    assert keys.answer(c, 0.0).client == b.client
    keys.stand_aside(c, 0.0)
    assert c.client not in (None, a.client, b.client), "it is served before anybody asks"
    assert keys.answer(c, 0.0).dials
    assert keys.has_to_end
    assert keys.answer(behind, 0.0).client == a.client


def test_who_met_a_kept_one_that_was_none_takes_the_next_where_he_may_not_dial() -> None:
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    back(keys, a)
    back(keys, b)
    c = lease_of(keys)
    assert keys.answer(c, 0.0).client == b.client
    keys.stand_aside(c, 0.0)
    assert keys.answer(c, 0.0).client == a.client


def test_who_stands_aside_is_the_first_in_line() -> None:
    keys = keys_of(1)
    a = leased(keys)
    waiting = lease_of(keys)
    waits(keys, waiting)
    for _ in range(2):  # he may be interrupted, and do it again
        keys.stand_aside(a, 0.0)
        assert list(keys.waiting) == [a, waiting]
        assert (a.client, a.taken, a.until, len(keys.ending)) == (None, False, inf, 1)


def test_a_lease_that_is_over_has_nothing_to_be_taken_away() -> None:
    """Its client may be somebody else's by now."""
    keys = keys_of(2)
    a = leased(keys)
    back(keys, a)
    keys.stand_aside(a, 0.0)
    assert (len(keys.idle), len(keys.ending), len(keys.waiting)) == (1, 0, 0)


def test_one_that_was_refused_and_gives_up_before_he_knows_of_another_one_hands_it_on() -> None:
    keys = keys_of(2)
    a, b = leased(keys), lease_of(keys)
    assert keys.answer(b, 0.0).dials
    assert keys.refused(b, NOT_NOW, 0.0)
    end_all(keys)
    back(keys, a)
    assert b.client == a.client
    keys.give_back(b, 0.0)
    assert [client for client, _ in keys.idle] == [a.client]


def test_a_lease_that_is_given_back_twice_leaves_its_client_to_the_next_one() -> None:
    keys = keys_of(1)
    a = leased(keys)
    back(keys, a)
    b = lease_of(keys)
    assert keys.answer(b, 0.0).client == a.client
    client = redial(keys, b)
    keys.give_back(a, 0.0)
    assert client in keys.redialling
    assert client in keys.down
    assert list(keys.leased) == [b]


def test_a_lease_that_got_nothing_and_is_given_back_changes_nothing() -> None:
    keys = keys_of(1)
    a = leased(keys)
    b = lease_of(keys)
    waits(keys, b)
    keys.give_back(b, 0.0)
    assert (list(keys.leased), list(keys.waiting), len(keys.idle), len(keys.ending)) == ([a], [], 0, 0)
    b.failure = NOBODY
    keys.give_back(b, 0.0)
    assert keys.breaker.failures == 0


def test_one_whose_new_client_was_never_connected_ends_it_however_fit_it_is() -> None:
    keys = keys_of(2)
    a = lease_of(keys)
    assert keys.answer(a, 0.0).dials
    a.fit = a.answered = True
    keys.give_back(a, 0.0)
    assert (keys.idle, len(keys.ending)) == ([], 1)
    assert not keys.breaker.probing
    assert keys.answered_at == -inf


def test_when_a_client_is_gone_nobody_owes_an_answer_for_it() -> None:
    """As in a forked child, with a client of its parent's."""
    keys = keys_of(1)
    keys.redial("another", 0, 0.0)
    keys.gone("another", 0.0)
    assert (keys.redialling, keys.breaker.probing) == ({}, False)


def test_a_client_may_be_said_to_be_gone_twice() -> None:
    keys = keys_of(1)
    a = leased(keys)
    back(keys, a, fit=False)
    for _ in range(2):
        keys.gone(client_of(a), 0.0)
        assert keys.clients() == []


def test_a_pool_that_closes_ends_all_that_are_idle() -> None:
    keys = keys_of(3)
    leases = [leased(keys) for _ in range(3)]
    for lease in leases:
        back(keys, lease)
    assert keys.close(Closer(Rung()), 0.0) == 3
    assert set(keys.ending) == {client_of(lease) for lease in leases}
    assert not keys.idle


def test_a_pool_that_closes_is_closed_when_the_last_client_is_gone() -> None:
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    back(keys, b)
    closer: Closer[str] = Closer(Rung())
    assert keys.close(closer, 0.0) == 1
    lives = [keys.life]
    keys.gone(client_of(b), 0.0)
    lives.append(keys.life)
    back(keys, a)
    lives.append(keys.life)
    assert lives == [Life.CLOSING] * 3
    before = rung(closer)
    keys.gone(client_of(a), 0.0)
    lives = [keys.life]
    assert rung(closer) > before
    keys.close(closer, 0.0)
    assert [*lives, keys.life] == [Life.CLOSED] * 2


def test_a_closed_pool_stays_closed_also_where_closing_it_again_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = keys_of(1)
    keys.close(Closer(Rung()), 0.0)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(keys, "_changed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keys.close(Closer(Rung()), 0.0)
    assert keys.life is Life.CLOSED


# Dials inside a lease -------------------------------------------------------------------------------------------------


def test_who_was_interrupted_when_he_was_let_dial_again_is_let() -> None:
    keys = keys_of(2)
    a = leased(keys)
    keys.breaker.failed(NOBODY, -100.0)
    redial(keys, a)
    redial(keys, a)
    keys.redialled(client_of(a), None, 0.0)
    assert not keys.breaker.probing


def test_what_was_sent_before_is_noted_of_the_lease_that_lost_its_connection() -> None:
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    keys.redial(client_of(a), 7, 0.0)
    assert (a.answers, b.answers) == (7, 0)
    assert keys.down == {a.client: False}


def test_that_it_tried_in_vain_is_not_forgotten_when_it_asks_again() -> None:
    keys = keys_of(2)
    a, b = leased(keys), leased(keys)
    redial(keys, a)
    keys.redialled(client_of(a), NOT_NOW, 0.0)
    for _ in range(2):
        with pytest.raises(GreetingRefused):
            redial(keys, a, 0.1)
        assert keys.down == {a.client: True}
    del b


@pytest.mark.parametrize("error", [None, NOBODY, NOT_NOW])
def test_a_client_of_no_lease_may_dial_as_well_and_nothing_is_kept_of_it(error: MailError | None) -> None:
    keys = keys_of(2)
    keys.redial("another", 0, 0.0)
    for _ in range(2):
        keys.redialled("another", error, 0.0)
        assert (keys.down, keys.redialling, keys.breaker.probing) == ({}, {}, False)
        assert keys.breaker.failures == (error is not None)


def late() -> TimedOut:
    error = TimedOut("too late")
    error.deadline_passed = True
    return error


@pytest.mark.parametrize("error", [Aborted("called off"), late(), NOBODY, GreetingRefused(554, b"5.7.1 no")])
@pytest.mark.parametrize("others", [True, False])
def test_only_a_full_server_begins_a_pause_of_the_full(error: MailError, others: bool) -> None:
    keys = keys_of(2)
    a = leased(keys)
    if others:
        leased(keys)
    redial(keys, a)
    keys.redialled(client_of(a), error, 0.0)
    silent = error.deadline_passed or isinstance(error, Aborted)
    assert keys.room.refusals == (others and error.transient and not silent)
    assert keys.breaker.failures == (not silent and not (others and error.transient))


@pytest.mark.parametrize(("others", "refusals"), [(True, 1), (False, 2)])
def test_who_is_alone_tells_each_time_that_a_server_is_full(others: bool, refusals: int) -> None:
    """Those of one moment are one where others dial at the same time."""
    keys = keys_of(3)
    before = leased(keys)
    back(keys, before, 0.0)
    a = lease_of(keys)
    assert keys.answer(a, 0.0).client is not None
    if others:
        b = leased(keys)
        redial(keys, b)
        keys.redialled(client_of(b), NOT_NOW, 0.0)
        c = leased(keys, 100.0)
        keys.room.refusals, keys.room.opens_at = 1, 0.5
        keys.answered_at = 0.0
        del c
        redial(keys, a)
        keys.redialled(client_of(a), NOT_NOW, 0.0)
    else:
        for _ in range(2):
            redial(keys, a)
            keys.redialled(client_of(a), NOT_NOW, 0.0)
    assert keys.room.refusals == refusals
    assert keys.breaker.failures == 0


def test_what_whoever_may_not_dial_is_told() -> None:
    keys = keys_of(2)
    a = leased(keys)
    redial(keys, a)
    keys.redialled(client_of(a), NOBODY, 0.0)
    keys.breaker.opens_at = 2.5
    with pytest.raises(ConnectionRefused, match=r"^nobody listens there \(tried moments ago; next try in 2\.5 s\)$"):
        redial(keys, a)


# Ending clients -------------------------------------------------------------------------------------------------------


def test_each_that_is_to_be_ended_is_claimed_once_in_order() -> None:
    keys = keys_of(3)
    clients = [leased(keys) for _ in range(2)]
    for lease in clients:
        back(keys, lease, fit=False)
    farewells = [Farewell(keys) for _ in range(3)]
    for farewell in farewells:
        assert keys.has_to_end == (farewell is not farewells[2])
        keys.claim(farewell, 0.0)
    assert [farewell.client for farewell in farewells] == [*(lease.client for lease in clients), None]


def test_a_farewell_that_has_gone_on_claims_nothing() -> None:
    keys = keys_of(2)
    back(keys, leased(keys), fit=False)
    back(keys, leased(keys))
    over = Farewell(keys)
    over.over = True
    keys.claim(over, 0.0)
    assert not keys.claim_due(over, 100.0, 100.0)
    assert over.client is None
    assert keys.has_to_end
    assert len(keys.idle) == 1


def test_those_idle_for_long_are_ended_the_oldest_first_one_at_a_time() -> None:
    keys = keys_of(3)
    leases = [leased(keys) for _ in range(3)]
    for since, lease in enumerate(leases):
        back(keys, lease, float(since))
    claimed = []
    while keys.claim_due(farewell := Farewell(keys), 1.0, 50.0):
        claimed.append(farewell.client)
        assert keys.ending[client_of(farewell)] is farewell  # type: ignore[arg-type]
    assert claimed == [leases[0].client, leases[1].client]
    assert [since for _, since in keys.idle] == [2.0]
    assert not keys.claim_due(Farewell(keys_of(1)), 1.0, 50.0)


def test_where_none_is_idle_none_is_due() -> None:
    keys = keys_of(1)
    assert not keys.claim_due(Farewell(keys), 100.0, 100.0)


def test_the_head_of_the_line_is_woken_to_look() -> None:
    keys = keys_of(1)
    keys.wake_first(0.0)
    leased(keys)
    first, second = lease_of(keys), lease_of(keys)
    waits(keys, first)
    waits(keys, second)
    keys.wake_first(0.0)
    assert (rung(first), rung(second)) == (1, 0)


# Ending all -----------------------------------------------------------------------------------------------------------


def test_whom_one_that_closes_has_waited_for_long_enough() -> None:
    """Not for what he has himself, nor for what says goodbye by him; nor for one who has been granted nothing yet."""
    keys = keys_of(5)
    mine, other, ending, by_me = (leased(keys) for _ in range(4))
    back(keys, by_me, fit=False)
    farewell = Farewell(keys)
    keys.claim(farewell, 0.0)
    back(keys, ending, fit=False)
    keys.leased[lease_of(keys)] = None
    closer: Closer[str] = Closer(Rung(), (mine, farewell))
    keys.close(closer, 0.0)
    assert keys.to_drop(closer, 0.0) == [other.client, ending.client]


def test_one_that_closes_and_waits_no_longer_is_told_nothing() -> None:
    keys = keys_of(1)
    a = leased(keys)
    closer: Closer[str] = Closer(Rung())
    keys.close(closer, 0.0)
    assert keys.awaited(closer, 0.0)
    before = rung(closer)
    for _ in range(2):
        keys.leave(closer, 0.0)
    back(keys, a)
    assert rung(closer) == before
