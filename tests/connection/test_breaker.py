"""Who may dial: everybody while the server answers, one at a time while it does not."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_retry import Fixed
from threadmail import ConnectFailed, ConnectionLost, LoginRefused, MailError, RetryPolicy
from threadmail._connection.breaker import CircuitBreaker, Dial
from threadmail.retry import LOGIN_PAUSE


def breaker(fraction: float = 1.0, **policy: Any) -> CircuitBreaker:
    return CircuitBreaker(RetryPolicy(**policy), Fixed(fraction))


def succeeded(g: CircuitBreaker) -> None:
    """A dial opened a session, and a MAIL was answered on it."""
    g.connected()
    g.answered()


def test_while_nothing_is_known_one_dials() -> None:
    """Eight threads that start at once do not hammer a server that may be dead."""
    g = breaker()
    assert [g.ask(0.0) for _ in range(8)] == [Dial.NOW] + [Dial.WAIT] * 7
    assert not g.is_closed


def test_a_server_that_answered_may_be_dialled_by_all() -> None:
    """The probe's success closes the breaker for everybody."""
    g = breaker()
    g.ask(0.0)
    succeeded(g)
    assert g.is_closed
    assert [g.ask(0.0) for _ in range(8)] == [Dial.NOW] * 8
    assert g.pause(0.0) is None


def test_a_failed_dial_opens_the_breaker_for_a_time_and_then_one_probes() -> None:
    """Nobody dials during the pause; after it exactly one does."""
    g = breaker(base=8.0)
    g.ask(0.0)
    error = MailError("x")
    g.failed(error, 100.0)
    assert g.error is error
    assert g.pause(100.0) == 8.0
    assert [g.ask(t) for t in (100.0, 104.0, 107.99)] == [Dial.WAIT] * 3
    assert [g.ask(108.0) for _ in range(4)] == [Dial.NOW] + [Dial.WAIT] * 3
    assert g.pause(108.0) is None  # one is under way


def test_the_pause_grows_with_each_failure_in_a_row_and_success_ends_it() -> None:
    """Doubling up to `longest`; a lucky draw still waits a quarter, so that nobody hammers."""
    for fraction, share in ((1.0, 1.0), (0.0, 0.25)):
        g, now, pauses = breaker(fraction, base=1.0, longest=8.0), 0.0, []
        for _ in range(6):
            assert g.ask(now) is Dial.NOW
            g.failed(MailError("x"), now)
            pauses.append(g.opens_at - now)
            now = g.opens_at
        assert pauses == [p * share for p in (1.0, 2.0, 4.0, 8.0, 8.0, 8.0)]
        assert g.failures == 6
        g.ask(now)
        succeeded(g)
        assert (g.failures, g.opens_at, g.error) == (0, 0.0, None)


def test_chance_that_raises_takes_no_pause_away() -> None:
    """It is a caller's own, perhaps; the quarter that is fixed is there."""

    class Raising(random.Random):
        def uniform(self, a: float, b: float) -> float:
            raise ZeroDivisionError

    g = CircuitBreaker(RetryPolicy(base=8.0), Raising())
    for now, pause in ((100.0, 2.0), (102.0, 4.0)):
        assert g.ask(now) is Dial.NOW
        with pytest.raises(ZeroDivisionError):
            g.failed(MailError("x"), now)
        assert g.pause(now) == pause
        assert g.ask(now) is Dial.WAIT


def test_a_refused_login_is_not_tried_again_soon() -> None:
    """Servers lock accounts: the same password waits; a temporary refusal (454) is only an ordinary failure."""
    g = breaker(base=1.0)
    g.ask(0.0)
    g.failed(LoginRefused(535, b"5.7.8 no"), 0.0)
    assert g.opens_at == LOGIN_PAUSE
    assert g.ask(LOGIN_PAUSE - 1) is Dial.WAIT
    g = breaker(base=1.0)
    g.failed(LoginRefused(454, b"4.7.0 later"), 0.0)
    assert g.opens_at == 1.0


def test_a_probe_that_gave_up_leaves_its_place_to_the_next() -> None:
    """A deadline of the caller or an interrupt says nothing about the server: no failure, no pause, no lock-out."""
    g = breaker()
    g.ask(0.0)
    g.gave_up()
    assert g.failures == 0
    assert [g.ask(0.0), g.ask(0.0)] == [Dial.NOW, Dial.WAIT]


def test_a_failure_while_it_is_closed_opens_it_at_once() -> None:
    """Those who ask afterwards wait, though many were let through before."""
    g = breaker(base=4.0)
    g.ask(0.0)
    succeeded(g)
    g.failed(MailError("x"), 10.0)
    assert not g.is_closed
    assert [g.ask(13.9), g.ask(14.0), g.ask(14.0)] == [Dial.WAIT, Dial.NOW, Dial.WAIT]


@given(st.lists(st.sampled_from(["ask", "ok", "fail", "drop", "wait"]), max_size=60), st.integers())
def test_at_most_one_probe_is_under_way_while_the_server_does_not_answer(steps: list[str], seed: int) -> None:
    """Whatever happens in whatever order, a server that does not answer is dialled by one thread at a time."""
    g, now, probes = CircuitBreaker(RetryPolicy(), random.Random(seed)), 0.0, 0
    for step in steps:
        if step == "wait":
            now += 1.0
        elif step == "ask":
            closed = g.is_closed
            if g.ask(now) is Dial.NOW and not closed:
                probes += 1
                assert probes == 1
                assert now >= g.opens_at
        elif probes:  # only who got NOW reports
            if step == "fail":
                g.failed(MailError("x"), now)
            else:
                {"ok": lambda: succeeded(g), "drop": g.gave_up}[step]()
            probes = 0
        pause = g.pause(now)
        assert pause is None or pause > 0


def test_dials_that_failed_together_count_once() -> None:
    """Sixteen dials are under way when the server goes away: the first pause follows, not the sixteenth; one probe."""
    g = CircuitBreaker(RetryPolicy(base=1.0), random.Random(1))
    assert g.ask(0.0) is Dial.NOW
    succeeded(g)
    assert {g.ask(1.0) for _ in range(16)} == {Dial.NOW}
    for _ in range(16):
        g.failed(ConnectFailed("refused"), 2.0)
        assert g.ask(2.0) is Dial.WAIT
    assert g.failures == 1
    assert g.opens_at <= 3.0
    assert [g.ask(3.0) for _ in range(3)] == [Dial.NOW, Dial.WAIT, Dial.WAIT]
    g.failed(ConnectFailed("refused"), 3.0)
    assert g.failures == 2
    assert [g.ask(9.0) for _ in range(3)] == [Dial.NOW, Dial.WAIT, Dial.WAIT]
    succeeded(g)
    assert {g.ask(9.0) for _ in range(3)} == {Dial.NOW}


def test_a_slow_dial_of_before_does_not_let_a_second_probe_out() -> None:
    g = CircuitBreaker(RetryPolicy(base=1.0), random.Random(1))
    succeeded(g)
    assert {g.ask(0.0) for _ in range(3)} == {Dial.NOW}
    g.failed(ConnectFailed("refused"), 0.0)
    assert g.ask(5.0) is Dial.NOW  # the probe, while two of the three are still under way
    for report in (g.gave_up, lambda: g.failed(ConnectFailed("refused"), 5.0)):
        report()
        assert g.ask(5.0) is Dial.WAIT
    g.failed(ConnectFailed("refused"), 5.0)
    assert g.failures == 2
    assert g.ask(50.0) is Dial.NOW


def test_probes_of_different_senders_do_not_keep_step() -> None:
    """Full pauses are drawn by chance, so that a hundred machines do not come back as one."""
    error = ConnectFailed("refused")
    draws = set()
    for seed in range(50):
        g = CircuitBreaker(RetryPolicy(base=1.0), random.Random(seed))
        g.failed(error, 0.0)
        g.failed(error, 0.0)
        draws.add(g.opens_at)
        assert 0.5 <= g.opens_at <= 2.0
    assert len(draws) == 50
    assert max(draws) - min(draws) > 1.0


def test_a_server_that_lets_one_in_and_refuses_the_next_gets_growing_pauses() -> None:
    """A greeting forgets nothing of what failed before; an answered MAIL does."""
    g, now, pauses = breaker(base=1.0, longest=64.0), 0.0, []
    for _ in range(4):
        assert g.ask(now) is Dial.NOW
        g.connected()
        g.lost(ConnectionLost("the server hung up at MAIL"), now)
        pauses.append(g.opens_at - now)
        now = g.opens_at
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert g.ask(now) is Dial.NOW
    g.connected()
    assert g.failures == 4
    g.answered()
    assert (g.failures, g.error, g.is_closed) == (0, None, True)


def test_after_a_failure_a_session_lets_one_more_dial_at_a_time() -> None:
    """It may be the only one that the server allows."""
    g = breaker(base=1.0)
    g.ask(0.0)
    g.failed(MailError("x"), 0.0)
    assert g.ask(1.0) is Dial.NOW
    g.connected()
    assert [g.ask(1.0) for _ in range(3)] == [Dial.NOW, Dial.WAIT, Dial.WAIT]


def test_a_lost_session_takes_no_answer_from_a_dial_that_is_under_way() -> None:
    g = breaker(base=1.0)
    g.ask(0.0)
    g.failed(MailError("x"), 0.0)
    assert g.ask(1.0) is Dial.NOW
    g.lost(ConnectionLost("of before"), 1.0)
    assert g.probing
    assert g.ask(1000.0) is Dial.WAIT
