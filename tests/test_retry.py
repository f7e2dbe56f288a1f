"""Retries: only what is surely not sent and may succeed, never beyond the limits; and one probe for a dead server."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmail import InvalidConfig, MailError, Outcome, Phase, Receipt, Reply, RetryPolicy

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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attempts": "5"}, "attempts is no int but a str"),
        ({"attempts": 2.5}, "attempts is no int but a float"),
        ({"attempts": True}, "attempts is no int but a bool"),
        ({"base": "1"}, "base is no number of seconds but a str"),
        ({"longest": float("nan")}, "longest must be a number of seconds, not nan"),
        ({"total": float("nan")}, "total must be a number of seconds, not nan"),
        ({"total": None}, "total is no number of seconds but a NoneType"),
        ({"base": float("inf")}, "base must be a finite number of seconds: a share of infinity is no pause"),
        (
            {"base": float("inf"), "longest": float("inf")},
            "base must be a finite number of seconds: a share of infinity is no pause",
        ),
    ],
)
def test_a_setting_of_another_kind_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        RetryPolicy(**settings)
    assert str(caught.value) == said


def test_a_policy_may_be_without_limits() -> None:
    for base in (0, 1.0, 1e100):
        policy = RetryPolicy(total=float("inf"), longest=float("inf"), base=base)
        assert 0 <= policy.pause(1000, random.Random(1)) < float("inf")


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
