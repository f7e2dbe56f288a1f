"""What the circuit breaker and the retry policy decide, each decision at its boundaries."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from tests.test_retry import Fixed
from threadmail import ConnectFailed, InvalidConfig, LoginRefused, Outcome, Phase, Receipt, RetryPolicy
from threadmail._connection.breaker import CircuitBreaker, Dial
from threadmail.errors import ConnectionLost
from threadmail.receipt import Reply
from threadmail.retry import LOGIN_PAUSE

ERROR = ConnectFailed("x")


def breaker(fraction: float = 1.0, **policy: Any) -> CircuitBreaker:
    return CircuitBreaker(RetryPolicy(**{"base": 8.0, "longest": 1e9, **policy}), Fixed(fraction))


def closed(**policy: Any) -> CircuitBreaker:
    made = breaker(**policy)
    made.ask(0.0)
    made.connected()
    return made


def refused(*, fixed: bool) -> LoginRefused:
    error = LoginRefused(535, "5.7.8 no")
    error.pair_is_fixed = fixed
    return error


def test_a_new_breaker_knows_nothing() -> None:
    made = breaker()
    assert (made.is_closed, made.probing, made.failures, made.opens_at, made.error) == (False, False, 0, 0.0, None)
    assert made.pause(0.0) is None


def test_the_first_session_closes_it_where_nothing_had_failed() -> None:
    made = closed()
    assert (made.is_closed, made.probing, made.error) == (True, False, None)


def test_after_a_failure_a_session_closes_it_only_when_a_mail_was_answered() -> None:
    made = breaker()
    made.ask(0.0)
    made.failed(ERROR, 0.0)
    made.ask(made.opens_at)
    made.connected()
    assert (made.is_closed, made.failures, made.error) == (False, 1, ERROR)
    made.answered()
    assert (made.is_closed, made.failures, made.opens_at, made.error) == (True, 0, 0.0, None)


def test_an_answer_closes_one_that_nothing_had_failed_in() -> None:
    made = breaker()
    made.answered()
    assert made.is_closed


def test_an_answer_forgets_failures_of_one_that_is_closed() -> None:
    made = closed()
    made.failures = 2
    made.answered()
    assert made.failures == 0


@pytest.mark.parametrize(("now", "left"), [(0.0, 8.0), (7.0, 1.0), (8.0, None), (9.0, None)])
def test_the_pause_is_over_when_it_is(now: float, left: float | None) -> None:
    made = breaker()
    made.ask(0.0)
    made.failed(ERROR, 0.0)
    assert made.pause(now) == left
    assert made.ask(now) is (Dial.WAIT if left else Dial.NOW)


def test_there_is_no_pause_while_it_is_closed_or_while_one_probes() -> None:
    made = closed()
    made.opens_at = 9.0
    assert made.pause(0.0) is None
    made = breaker()
    made.ask(0.0)
    made.opens_at = 9.0
    assert made.pause(0.0) is None


def test_those_who_dialled_together_count_once_each_and_the_probe_for_itself() -> None:
    made = closed()
    assert [made.ask(0.0), made.ask(0.0), made.ask(0.0)] == [Dial.NOW] * 3
    for _ in range(3):
        made.failed(ERROR, 0.0)
        assert (made.failures, made.opens_at, made.is_closed) == (1, 8.0, False)
    assert made.ask(8.0) is Dial.NOW
    assert made.probing
    made.failed(ERROR, 8.0)
    assert (made.failures, made.opens_at, made.probing) == (2, 24.0, False)


def test_who_gave_up_has_reported_too() -> None:
    made = closed()
    made.ask(0.0)
    made.ask(0.0)
    made.gave_up()
    made.failed(ERROR, 0.0)
    assert made.ask(8.0) is Dial.NOW
    made.failed(ERROR, 8.0)
    assert made.failures == 2


def test_where_nobody_dials_nobody_owes_an_answer() -> None:
    """Whoever was interrupted before he gave it: the next one may probe, and what he tells is news."""
    made = breaker()
    made.ask(0.0)
    made.nobody_dials()
    assert (made.probing, made.ask(0.0)) == (False, Dial.NOW)
    made = closed()
    made.ask(0.0)
    made.nobody_dials()
    made.lost(ERROR, 0.0)
    assert made.ask(8.0) is Dial.NOW
    made.failed(ERROR, 8.0)
    assert (made.failures, made.probing) == (2, False)


def test_of_those_who_dialled_together_one_that_fails_after_another_came_in_tells_news() -> None:
    made = closed()
    for _ in range(3):
        made.ask(0.0)
    made.failed(ERROR, 0.0)
    made.connected()
    made.failed(ERROR, 0.0)
    assert made.failures == 2


def test_a_session_that_is_lost_opens_it_and_takes_nobodys_answer() -> None:
    made = closed()
    made.ask(0.0)
    made.lost(ERROR, 0.0)
    assert (made.is_closed, made.failures, made.error, made.opens_at) == (False, 1, ERROR, 8.0)
    made.failed(ERROR, 0.0)  # who dialled while it was closed tells nothing new
    assert made.failures == 1
    made.lost(ERROR, 0.0)
    assert made.failures == 2


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0.25), (1.0, 1.0), (0.5, 0.625)])
@pytest.mark.parametrize(("failures", "longest"), [(0, 8.0), (1, 16.0), (2, 32.0)])
def test_a_quarter_of_each_pause_is_fixed_and_it_doubles(
    failures: int, longest: float, fraction: float, share: float
) -> None:
    made = breaker(fraction)
    made.failures = failures
    made.ask(0.0)
    made.failed(ERROR, 100.0)
    assert made.opens_at == 100.0 + share * longest


@pytest.mark.parametrize(("failures", "exponent"), [(29, 29), (30, 30), (31, 30), (90, 30)])
def test_the_pause_doubles_thirty_times_at_most(failures: int, exponent: int) -> None:
    made = breaker(base=2.0**-20)
    made.failures = failures
    made.failed(ERROR, 0.0)
    assert made.opens_at == 2.0 ** (exponent - 20)


def test_a_pause_is_no_longer_than_the_longest() -> None:
    made = breaker(longest=20.0)
    made.failures = 9
    made.failed(ERROR, 0.0)
    assert made.opens_at == 20.0


# A refused login ----------------------------------------------------------------------------------------------------


def test_a_password_that_was_refused_bars_for_long_and_each_time_counts() -> None:
    made = breaker()
    for number in (1, 2):
        made.ask(0.0)
        made.failed(refused(fixed=True), 0.0)
        assert (made.failures, made.opens_at) == (number, LOGIN_PAUSE)
    made.answered()  # on a session of before: that says nothing of the password
    assert (made.is_closed, made.failures) == (False, 2)
    made.connected()
    made.answered()
    assert (made.is_closed, made.failures) == (True, 0)


def test_a_callable_is_asked_again_at_once_and_then_after_growing_pauses() -> None:
    made = breaker()
    made.failed(refused(fixed=False), 100.0)
    assert (made.failures, made.opens_at, made.is_final()) == (1, 100.0, False)
    made.failed(refused(fixed=False), 100.0)
    assert (made.failures, made.opens_at, made.is_final()) == (2, 116.0, True)


def test_what_will_not_change_is_final() -> None:
    made = breaker()
    assert not made.is_final()
    made.failed(ERROR, 0.0)
    assert not made.is_final()
    made.failed(ConnectFailed("x", transient=False), 0.0)
    assert made.is_final()
    made.failed(refused(fixed=True), 0.0)
    assert made.is_final()


def test_a_login_that_was_put_off_is_a_failure_like_any_other() -> None:
    made = breaker()
    made.failed(LoginRefused(454, "4.7.0 later"), 0.0)
    assert (made.failures, made.opens_at, made.is_final()) == (1, 8.0, False)


# When patience ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failures", "over"), [(1, False), (2, True), (3, True)])
def test_a_server_that_does_not_answer_gets_its_attempts(failures: int, over: bool) -> None:
    made = breaker(attempts=2)
    for _ in range(failures):
        made.failed(ERROR, 0.0)
    assert made.given_up(alive=False) is over


@pytest.mark.parametrize(("total", "over"), [(23.9, True), (24.0, False), (24.1, False)])
def test_a_server_that_has_enough_to_do_gets_the_total_time_from_its_first_failure(total: float, over: bool) -> None:
    """Failures at 100 and 108, of 8 and 16 s: the next dial would be 24 s after the first."""
    made = breaker(attempts=2, total=total)
    made.failed(ERROR, 100.0)
    made.failed(ERROR, 108.0)
    assert made.given_up(alive=True) is over


def test_the_total_time_counts_from_a_login_that_was_refused_as_well() -> None:
    """It counted from the time before it, or from when the machine was started: patience ended at once."""
    made = breaker(attempts=2, total=1000.0)
    made.failed(refused(fixed=True), 5000.0)
    made.failed(ERROR, 5300.0)
    assert not made.given_up(alive=True)


def test_where_one_attempt_is_all_a_server_that_has_enough_to_do_gets_no_more() -> None:
    made = breaker(attempts=1, total=1e9)
    assert not made.given_up(alive=True)
    made.failed(ERROR, 0.0)
    assert made.given_up(alive=True)


# The policy ---------------------------------------------------------------------------------------------------------

A, B = "a@example.net", "b@example.net"


def receipt(outcome: Outcome, attempts: int = 1, **replies: Reply) -> Receipt:
    error = ConnectionLost("x", phase=Phase.FINAL)
    told = {f"{name}@example.net": reply for name, reply in replies.items()}
    return Receipt(outcome, Phase.FINAL, "s@example.org", (A, B), None, (), told, None, error, attempts)


def test_the_policy_unless_said_otherwise() -> None:
    assert RetryPolicy() == RetryPolicy(5, 1.0, 60.0, 300.0, False)
    assert LOGIN_PAUSE == 300.0


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"base": -0.1}, {"longest": -0.1}, {"total": -0.1}])
def test_what_makes_no_policy_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig):
        RetryPolicy(**wrong)  # type: ignore[arg-type]
    RetryPolicy(attempts=1, base=0.0, longest=0.0, total=0.0)


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 1.0), (2, 2.0), (3, 4.0), (30, 2.0**29), (31, 2.0**30), (32, 2.0**30), (99, 2.0**30)]
)
def test_pauses_between_attempts_double_and_that_thirty_times_at_most(attempt: int, longest: float) -> None:
    policy = RetryPolicy(base=1.0, longest=inf)
    assert policy.pause(attempt, Fixed(1.0)) == longest
    assert policy.pause(attempt, Fixed(0.0)) == 0.0
    assert RetryPolicy(base=1.0, longest=3.0).pause(attempt, Fixed(1.0)) == min(3.0, longest)


def test_of_what_is_in_doubt_those_are_tried_again_who_were_not_refused_for_good() -> None:
    doubt = receipt(Outcome.IN_DOUBT, a=Reply(550, b"no"), b=Reply(451, b"later"))
    assert RetryPolicy(resend_in_doubt=True).recipients(doubt) == (B,)
    assert RetryPolicy().recipients(doubt) == ()


@pytest.mark.parametrize(
    ("attempts", "made", "spared", "again"),
    [
        (1, 1, 0, False),
        (1, 1, 1, False),
        (2, 1, 0, True),
        (2, 2, 0, False),
        (2, 2, 1, True),
        (2, 3, 1, False),
        (3, 2, 0, True),
        (3, 3, 0, False),
    ],
)
def test_there_are_as_many_attempts_as_it_says_those_not_counted_that_are_spared(
    attempts: int, made: int, spared: int, again: bool
) -> None:
    policy = RetryPolicy(attempts=attempts)
    told = policy.next_attempt(receipt(Outcome.NOT_SENT, made), 0.0, Fixed(0.0), spared=spared)
    assert (told is not None) is again


@pytest.mark.parametrize(("elapsed", "again"), [(91.9, True), (92.0, True), (92.1, False)])
def test_the_last_attempt_begins_within_the_total_time(elapsed: float, again: bool) -> None:
    policy = RetryPolicy(base=8.0, total=100.0)
    assert policy.next_attempt(receipt(Outcome.NOT_SENT), elapsed, Fixed(1.0)) == (8.0 if again else None)
