"""The circuit breaker: one dial at a time while the server is dead, and what makes it forget."""

from __future__ import annotations

import random

from threadmail import ConnectionRefused, LoginRefused, RetryPolicy
from threadmail._breaker import CircuitBreaker, Dial


def test_an_answer_on_an_old_session_says_nothing_of_a_refused_password() -> None:
    """Else each accepted message would let the next thread offer it again, until the account is locked."""
    breaker = CircuitBreaker(RetryPolicy(), random.Random(1))
    assert breaker.ask(0.0) is Dial.NOW
    breaker.connected()
    assert breaker.ask(1.0) is Dial.NOW
    breaker.failed(LoginRefused(535, b"5.7.8 no"), 1.0)
    breaker.answered()
    assert breaker.ask(2.0) is Dial.WAIT
    assert breaker.ask(302.0) is Dial.NOW
    breaker.connected()
    breaker.answered()
    assert breaker.is_closed
    assert breaker.error is None


def test_an_answered_mail_forgets_what_failed_before() -> None:
    breaker = CircuitBreaker(RetryPolicy(), random.Random(1))
    assert breaker.ask(0.0) is Dial.NOW
    breaker.failed(ConnectionRefused("no"), 0.0)
    assert breaker.ask(0.1) is Dial.WAIT
    breaker.answered()
    assert breaker.ask(0.1) is Dial.NOW


def test_a_refused_token_bars_nobody_for_minutes() -> None:
    """A callable may give another one: asked again at once, and then with the pauses of a server that fails."""
    breaker = CircuitBreaker(RetryPolicy(), random.Random(1))
    expired = LoginRefused(535, b"5.7.8 expired")
    expired.pair_is_fixed = False
    assert breaker.ask(0.0) is Dial.NOW
    breaker.failed(expired, 0.0)
    assert breaker.ask(0.0) is Dial.NOW
    assert breaker.ask(0.0) is Dial.WAIT, "one at a time"
    breaker.failed(expired, 0.0)
    assert breaker.ask(0.1) is Dial.WAIT
    assert 0.5 <= breaker.opens_at <= 2.0
    assert breaker.ask(2.0) is Dial.NOW
    breaker.connected()
    breaker.answered()
    assert breaker.is_closed
