"""What a server's replies tell about how much it can take, and what follows: each decision at its boundaries."""

from __future__ import annotations

import pytest

from threadmail import Outcome, Phase, Receipt
from threadmail._dispatch.limits import (
    LONGEST_PAUSE,
    NO_SIGNS,
    REGROW_AFTER,
    SHORTEST_PAUSE,
    ConcurrencyLimit,
    Signs,
    has_enough,
    read_signs,
)
from threadmail.errors import ConnectFailed, GreetingRefused, SenderRefused
from threadmail.receipt import Reply

TOO_FAST, TOO_MANY, GREYLISTED = Signs(too_fast=True), Signs(too_many=True), Signs(greylisted=True)
NOT_LET_IN = GreetingRefused(421, b"too many connections")


def test_no_sign_spares_nothing_and_each_sign_does() -> None:
    assert not NO_SIGNS.spares
    assert all(signs.spares for signs in (TOO_FAST, TOO_MANY, GREYLISTED))


def test_a_limit_begins_at_the_number_asked_for() -> None:
    limit = ConcurrencyLimit(4)
    assert (limit.workers, limit.pauses) == (4, 0)


def test_too_many_messages_pause_all_and_take_a_worker() -> None:
    limit = ConcurrencyLimit(4)
    assert limit.learn(TOO_FAST, running=4, pauses_seen=0) == SHORTEST_PAUSE
    assert (limit.workers, limit.pauses) == (3, 1)


def test_pauses_double_up_to_the_longest() -> None:
    limit = ConcurrencyLimit(4)
    pauses = [limit.learn(TOO_FAST, running=1, pauses_seen=number) for number in range(8)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert LONGEST_PAUSE == 60.0


def test_after_a_message_that_went_well_the_pause_is_the_shortest_again() -> None:
    limit = ConcurrencyLimit(4)
    limit.learn(TOO_FAST, running=4, pauses_seen=0)
    limit.learn(TOO_FAST, running=4, pauses_seen=1)
    limit.count_good(1)
    assert limit.learn(TOO_FAST, running=4, pauses_seen=2) == SHORTEST_PAUSE


@pytest.mark.parametrize("seen", [0, 2])
def test_what_was_under_way_when_a_pause_began_tells_nothing_new(seen: int) -> None:
    limit = ConcurrencyLimit(4)
    limit.learn(TOO_FAST, running=4, pauses_seen=0)
    assert limit.learn(TOO_FAST, running=4, pauses_seen=seen) == 0.0
    assert (limit.workers, limit.pauses) == (3, 1)


def test_a_greylist_slows_nobody_down() -> None:
    limit = ConcurrencyLimit(4)
    assert limit.learn(Signs(greylisted=True, too_fast=True), running=4, pauses_seen=0) == 0.0
    assert (limit.workers, limit.pauses) == (4, 0)


def test_too_many_connections_take_a_worker_and_pause_nobody() -> None:
    limit = ConcurrencyLimit(4)
    assert limit.learn(TOO_MANY, running=4, pauses_seen=0) == 0.0
    assert (limit.workers, limit.pauses) == (3, 0)


def test_both_at_once_take_two() -> None:
    limit = ConcurrencyLimit(4)
    assert limit.learn(Signs(too_fast=True, too_many=True), running=4, pauses_seen=0) == SHORTEST_PAUSE
    assert limit.workers == 2


@pytest.mark.parametrize(
    ("asked", "running", "left"), [(4, 4, 3), (4, 3, 2), (4, 2, 1), (4, 1, 1), (4, 9, 3), (1, 1, 1), (4, 0, 1)]
)
def test_there_is_one_worker_less_than_there_are_and_at_least_one(asked: int, running: int, left: int) -> None:
    limit = ConcurrencyLimit(asked)
    limit.fewer(running)
    assert limit.workers == left


def test_after_a_while_without_trouble_one_more_is_tried_and_then_it_begins_anew() -> None:
    limit = ConcurrencyLimit(4)
    limit.fewer(3)
    assert limit.workers == 2
    for messages, workers in ((REGROW_AFTER - 1, 2), (1, 3), (REGROW_AFTER - 1, 3), (1, 4), (10 * REGROW_AFTER, 4)):
        limit.count_good(messages)
        assert limit.workers == workers
    assert REGROW_AFTER == 50


@pytest.mark.parametrize("signs", [NO_SIGNS, TOO_MANY])
def test_trouble_begins_the_count_anew(signs: Signs) -> None:
    limit = ConcurrencyLimit(4)
    limit.fewer(3)
    limit.count_good(REGROW_AFTER - 1)
    before = limit.workers
    limit.learn(signs, running=2, pauses_seen=0)
    limit.count_good(1)
    assert limit.workers == (before if signs is NO_SIGNS else 1)


def test_a_worker_less_begins_the_count_anew() -> None:
    limit = ConcurrencyLimit(4)
    limit.count_good(REGROW_AFTER - 1)
    limit.fewer(4)
    limit.count_good(1)
    assert limit.workers == 3


# What replies say -----------------------------------------------------------------------------------------------------


def signs_of(*replies: Reply, final: Reply | None = None, error: SenderRefused | None = None) -> Signs:
    names = [f"r{number}@example.org" for number in range(len(replies))]
    told = dict(zip(names, replies, strict=True))
    outcome = Outcome.NOT_SENT
    return read_signs(Receipt(outcome, Phase.RCPT, "s@example.org", tuple(names), None, (), told, final, error))


@pytest.mark.parametrize(
    ("code", "text", "signs"),
    [
        (250, b"2.0.0 ok", NO_SIGNS),
        (450, b"4.2.0 Greylisted, see http://", GREYLISTED),
        (450, b"4.2.0 grey listing in action", GREYLISTED),
        (451, b"4.7.1 GRAYLISTED", Signs(greylisted=True, too_fast=True)),
        (451, b"4.7.1 too much mail", TOO_FAST),
        (451, b"4.7.28 rate", TOO_FAST),
        (451, b"4.3.2 busy", TOO_MANY),
        (451, b"4.3.0 busy", NO_SIGNS),
        (421, b"closing", TOO_MANY),
        (432, b"4.3.2 too many connections", TOO_MANY),
        (454, b"throttled", TOO_FAST),
        (453, b"no", NO_SIGNS),
        (455, b"no", NO_SIGNS),
        (420, b"no", NO_SIGNS),
        (422, b"no", NO_SIGNS),
        (431, b"no", NO_SIGNS),
        (433, b"no", NO_SIGNS),
        (550, b"5.7.1 no", NO_SIGNS),
    ],
)
def test_each_sign_is_read_where_it_stands(code: int, text: bytes, signs: Signs) -> None:
    reply = Reply(code, text)
    expected = signs if not reply.positive else NO_SIGNS
    assert signs_of(final=reply) == expected
    assert signs_of(reply) == expected
    assert signs_of(error=SenderRefused(code, text, "s@example.org")) == expected


def test_one_sign_among_many_replies_is_enough() -> None:
    assert signs_of(Reply(550, b"no"), Reply(421, b"closing"), final=Reply(451, b"4.7.1 slower")) == Signs(
        too_fast=True, too_many=True
    )


def test_a_server_that_says_it_has_enough_is_alive() -> None:
    assert has_enough(GreetingRefused(421, b"4.3.2 too many connections"))
    assert has_enough(GreetingRefused(454, b"later"))
    assert not has_enough(GreetingRefused(450, b"4.2.0 greylisted"))
    assert not has_enough(ConnectFailed("nobody"))


def test_the_first_pause_is_the_shortest_whatever_was_before() -> None:
    """Nothing was before."""
    limit = ConcurrencyLimit(4)
    assert limit._pause == 0.0
    assert limit.learn(NO_SIGNS, running=4, pauses_seen=0) == 0.0
    assert limit.learn(TOO_FAST, running=4, pauses_seen=0) == SHORTEST_PAUSE


@pytest.mark.parametrize("trouble", ["learn", "fewer"])
def test_the_count_of_what_went_well_begins_at_nothing(trouble: str) -> None:
    """Neither one too few nor one too many is needed for the next worker."""
    limit = ConcurrencyLimit(4)
    limit.fewer(3)
    if trouble == "learn":
        limit.count_good(REGROW_AFTER - 2)
        limit.learn(NO_SIGNS, running=2, pauses_seen=0)
    for good, workers in ((REGROW_AFTER - 1, 2), (1, 3), (REGROW_AFTER - 1, 3), (1, 4)):
        limit.count_good(good)
        assert limit.workers == workers


def test_a_new_limit_needs_as_many_good_ones_as_any_other() -> None:
    limit = ConcurrencyLimit(4)
    limit.workers = 3
    for good, workers in ((REGROW_AFTER - 1, 3), (1, 4)):
        limit.count_good(good)
        assert limit.workers == workers


def test_the_error_speaks_as_well_as_the_replies_to_recipients() -> None:
    told = Receipt(
        Outcome.NOT_SENT,
        Phase.RCPT,
        "s@example.org",
        ("r@example.org",),
        None,
        (),
        {"r@example.org": Reply(450, b"4.2.0 greylisted")},
        error=SenderRefused(421, b"closing", "s@example.org"),
    )
    assert read_signs(told) == Signs(greylisted=True, too_many=True)


def test_an_error_without_a_code_is_no_reply() -> None:
    told = Receipt(Outcome.NOT_SENT, Phase.RCPT, "s@example.org", (), error=ConnectFailed("gr[ae]ylist"))
    assert read_signs(told) == NO_SIGNS


# One connection is not let in, while others serve -----------------------------------------------------------------


def test_one_that_is_not_let_in_is_one_too_many_for_a_while_which_doubles() -> None:
    limit = ConcurrencyLimit(9)
    assert (limit.stands_still, limit.again_at) == (False, 0.0)
    pauses = []
    now = 0.0
    for _ in range(9):
        limit.let_in_no_more(9, now, NOT_LET_IN)
        assert limit.stands_still
        pauses.append(limit.again_at - now)
        now = limit.again_at
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert limit.workers == 1


def test_those_that_are_not_let_in_at_one_moment_count_once_but_for_the_number() -> None:
    limit = ConcurrencyLimit(9)
    for running in (9, 8, 7):
        limit.let_in_no_more(running, 5.0, NOT_LET_IN)
    assert (limit.again_at, limit.workers) == (5.0 + SHORTEST_PAUSE, 6)
    limit.let_in_no_more(6, 5.9, NOT_LET_IN)
    assert limit.again_at == 5.0 + SHORTEST_PAUSE
    limit.let_in_no_more(6, 6.0, NOT_LET_IN)
    assert limit.again_at == 6.0 + 2 * SHORTEST_PAUSE


@pytest.mark.parametrize("moved", ["sent", "answered"])
def test_when_the_others_move_it_begins_anew(moved: str) -> None:
    limit = ConcurrencyLimit(9)
    limit.let_in_no_more(9, 0.0, NOT_LET_IN)
    limit.let_in_no_more(8, 1.0, NOT_LET_IN)
    if moved == "sent":
        limit.count_good(1)
    else:
        limit.learn(Signs(), running=3, pauses_seen=0)
    assert not limit.stands_still
    limit.let_in_no_more(3, 1.5, NOT_LET_IN)
    assert (limit.stands_still, limit.again_at) == (True, 1.5 + SHORTEST_PAUSE)


def test_one_more_is_tried_up_to_the_number_asked_for() -> None:
    limit = ConcurrencyLimit(3)
    limit.fewer(2)
    counted = []
    for _ in range(3):
        limit.one_more()
        counted.append(limit.workers)
    assert counted == [2, 3, 3]
