"""Retries: only what is surely not sent and may succeed, never beyond the limits; and one probe for a dead server."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmail import InvalidConfig, LoginRefused, MailError, Outcome, Phase, Receipt, Reply, RetryPolicy
from threadmail.retry import LOGIN_PAUSE, Dial, DialGate

A, B, C = "a@x.test", "b@x.test", "c@x.test"


class Fixed(random.Random):
    """Chance that always draws the same fraction of what is possible."""

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def random(self) -> float:
        return self.fraction


def receipt(outcome: Outcome = Outcome.NOT_SENT, attempts: int = 1, transient: bool = True, **values: Any) -> Receipt:
    values.setdefault("recipients", (A, B))
    error = MailError("x", transient=transient)
    return Receipt(outcome, Phase.MAIL, "ann@example.org", error=error, attempts=attempts, **values)


# ---------------------------------------------------------------- the policy


@pytest.mark.parametrize("values", [{"attempts": 0}, {"attempts": -1}, {"base": -0.1}, {"longest": -1}, {"total": -1}])
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    """By name."""
    with pytest.raises(InvalidConfig, match=next(iter(values))):
        RetryPolicy(**values)


def test_the_pause_doubles_up_to_the_longest() -> None:
    """With the least luck: base, twice, four times, and never more than `longest`."""
    policy = RetryPolicy(base=1.0, longest=10.0)
    assert [policy.pause(n, Fixed(1.0)) for n in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert [policy.pause(n, Fixed(0.5)) for n in range(1, 4)] == [0.5, 1.0, 2.0]
    assert policy.pause(10_000, Fixed(1.0)) == 10.0


@given(st.integers(1, 5000), st.floats(0, 1e6), st.floats(0, 1e6), st.integers())
def test_the_pause_is_never_negative_nor_too_long(attempt: int, base: float, longest: float, seed: int) -> None:
    """Full jitter draws between nothing and the bound, whatever the policy."""
    policy = RetryPolicy(base=base, longest=longest)
    assert 0 <= policy.pause(attempt, random.Random(seed)) <= min(longest, base * 2.0 ** min(attempt - 1, 30))


@pytest.mark.parametrize(
    ("again", "expected"),
    [
        (receipt(), (A, B)),
        (receipt(transient=False), ()),
        (receipt(Outcome.SENT, accepted=(A, B)), ()),
        (receipt(Outcome.IN_DOUBT), ()),
        (receipt(Outcome.PARTIAL, accepted=(A,), replies={B: Reply(450)}), (B,)),
        (receipt(Outcome.PARTIAL, accepted=(A,), replies={B: Reply(550)}), ()),
        (receipt(replies={A: Reply(450), B: Reply(550)}), (A,)),
        (receipt(replies={B: Reply(550)}), (A,)),
    ],
)
def test_only_what_is_surely_not_sent_and_may_succeed_is_tried_again(again: Receipt, expected: tuple[str, ...]) -> None:
    """Nobody gets a message twice, and nobody is asked again who said no for good."""
    assert RetryPolicy().recipients(again) == expected


def test_doubt_is_tried_again_by_consent_only() -> None:
    """With `resend_in_doubt`, for all who did not accept or refuse in person."""
    doubtful = receipt(Outcome.IN_DOUBT, recipients=(A, B, C), accepted=(C,), replies={B: Reply(550)})
    assert RetryPolicy().recipients(doubtful) == ()
    assert RetryPolicy(resend_in_doubt=True).recipients(doubtful) == (A,)


def test_the_number_of_attempts_is_bounded() -> None:
    """The first counts."""
    policy = RetryPolicy(attempts=3)
    found = [policy.next_attempt(receipt(attempts=n), 0.0, Fixed(0.5)) is not None for n in range(1, 6)]
    assert found == [True, True, False, False, False]
    assert RetryPolicy(attempts=1).next_attempt(receipt(), 0.0, Fixed(0.0)) is None


def test_the_whole_time_is_bounded() -> None:
    """A retry that would begin after `total` is none; what is never to be tried has no next attempt at all."""
    policy = RetryPolicy(base=10.0, total=100.0)
    assert policy.next_attempt(receipt(), 90.0, Fixed(1.0)) == 10.0
    assert policy.next_attempt(receipt(), 90.1, Fixed(1.0)) is None
    assert policy.next_attempt(receipt(transient=False), 0.0, Fixed(0.0)) is None


@given(st.integers(1, 8), st.floats(0, 50), st.floats(0, 50), st.floats(0, 200), st.integers())
def test_a_message_that_always_fails_ends(attempts: int, base: float, longest: float, total: float, seed: int) -> None:
    """Following the policy to its end takes at most `attempts` attempts, the last of them within `total`."""
    policy, rng = RetryPolicy(attempts, base, longest, total), random.Random(seed)
    made, elapsed = 1, 0.0
    while (pause := policy.next_attempt(receipt(attempts=made), elapsed, rng)) is not None:
        made += 1
        elapsed += pause
    assert made <= attempts
    assert elapsed <= total


# ---------------------------------------------------------------- the gate


def gate(fraction: float = 1.0, **policy: Any) -> DialGate:
    return DialGate(RetryPolicy(**policy), Fixed(fraction))


def test_while_nothing_is_known_one_dials() -> None:
    """Eight threads that start at once do not hammer a server that may be dead."""
    g = gate()
    assert [g.ask(0.0) for _ in range(8)] == [Dial.NOW] + [Dial.WAIT] * 7
    assert not g.healthy


def test_a_server_that_answered_may_be_dialled_by_all() -> None:
    """The probe's success opens the gate for everybody."""
    g = gate()
    g.ask(0.0)
    g.succeeded()
    assert g.healthy
    assert [g.ask(0.0) for _ in range(8)] == [Dial.NOW] * 8
    assert g.pause(0.0) is None


def test_a_failed_dial_closes_the_gate_for_a_time_and_then_one_probes() -> None:
    """Nobody dials during the pause; after it exactly one does."""
    g = gate(base=8.0)
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
        g, now, pauses = gate(fraction, base=1.0, longest=8.0), 0.0, []
        for _ in range(6):
            assert g.ask(now) is Dial.NOW
            g.failed(MailError("x"), now)
            pauses.append(g.opens_at - now)
            now = g.opens_at
        assert pauses == [p * share for p in (1.0, 2.0, 4.0, 8.0, 8.0, 8.0)]
        assert g.failures == 6
        g.ask(now)
        g.succeeded()
        assert (g.failures, g.opens_at, g.error) == (0, 0.0, None)


def test_a_refused_login_is_not_tried_again_soon() -> None:
    """Servers lock accounts: the same password waits; a temporary refusal (454) is only an ordinary failure."""
    g = gate(base=1.0)
    g.ask(0.0)
    g.failed(LoginRefused(535, b"5.7.8 no"), 0.0)
    assert g.opens_at == LOGIN_PAUSE
    assert g.ask(LOGIN_PAUSE - 1) is Dial.WAIT
    g = gate(base=1.0)
    g.failed(LoginRefused(454, b"4.7.0 later"), 0.0)
    assert g.opens_at == 1.0


def test_a_probe_that_gave_up_leaves_its_place_to_the_next() -> None:
    """A deadline of the caller or an interrupt says nothing about the server: no failure, no pause, no lock-out."""
    g = gate()
    g.ask(0.0)
    g.gave_up()
    assert g.failures == 0
    assert [g.ask(0.0), g.ask(0.0)] == [Dial.NOW, Dial.WAIT]


def test_a_failure_while_healthy_closes_the_gate_at_once() -> None:
    """Those who ask afterwards wait, though many were let through before."""
    g = gate(base=4.0)
    g.ask(0.0)
    g.succeeded()
    g.failed(MailError("x"), 10.0)
    assert not g.healthy
    assert [g.ask(13.9), g.ask(14.0), g.ask(14.0)] == [Dial.WAIT, Dial.NOW, Dial.WAIT]


@given(st.lists(st.sampled_from(["ask", "ok", "fail", "drop", "wait"]), max_size=60), st.integers())
def test_at_most_one_probe_is_under_way_while_the_server_does_not_answer(steps: list[str], seed: int) -> None:
    """Whatever happens in whatever order, an unhealthy server is dialled by one thread at a time."""
    g, now, probes = DialGate(RetryPolicy(), random.Random(seed)), 0.0, 0
    for step in steps:
        if step == "wait":
            now += 1.0
        elif step == "ask":
            healthy = g.healthy
            if g.ask(now) is Dial.NOW and not healthy:
                probes += 1
                assert probes == 1
                assert now >= g.opens_at
        elif probes:  # only who got NOW reports
            if step == "fail":
                g.failed(MailError("x"), now)
            else:
                {"ok": g.succeeded, "drop": g.gave_up}[step]()
            probes = 0
        pause = g.pause(now)
        assert pause is None or pause > 0
