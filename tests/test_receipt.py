"""Receipts: what happened, as plain data; and what two attempts together mean."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmail import DataRefused, DeliveryFailed, Envelope, MailError, Outcome, Phase, Receipt, Reply, Report

A, B, C = "a@x.test", "b@x.test", "c@x.test"
OK, LATER, NEVER = Reply(250, b"2.1.5 OK"), Reply(450, b"4.2.1 later"), Reply(550, b"5.1.1 no such user")


def receipt(outcome: Outcome, recipients: tuple[str, ...] = (A,), **values: Any) -> Receipt:
    values.setdefault("accepted", recipients if outcome is Outcome.SENT else ())
    return Receipt(outcome, Phase.DONE, "ann@example.org", recipients, **values)


# ---------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("raw", "code", "found"),
    [
        (b"2.1.5 OK", 250, "2.1.5"),
        (b"5.1.1", 550, "5.1.1"),
        (b"4.7.100\nmore", 421, "4.7.100"),
        (b"5.1.1 no", 250, None),  # a class that contradicts the code
        (b"5.1.1.1 no", 550, None),
        (b"5.1 no", 550, None),
        (b"5.1.1x", 550, None),
        (b"no 5.1.1", 550, None),
        (b"9.1.1", 950, None),
        (b"", 550, None),
    ],
)
def test_the_enhanced_status_code_is_read_where_it_can_be_trusted(raw: bytes, code: int, found: str | None) -> None:
    """Only at the start, only well formed, only of the class of the basic code (RFC 2034 section 4)."""
    assert Reply(code, raw).enhanced == found


@pytest.mark.parametrize("code", range(200, 600, 25))
def test_the_first_digit_says_what_a_reply_is(code: int) -> None:
    """Positive, transient or permanent, and never two of them."""
    reply = Reply(code)
    assert (reply.positive, reply.transient, reply.permanent) == (code < 300, 400 <= code < 500, code >= 500)


def test_a_reply_is_printed_on_one_safe_line() -> None:
    """Lines joined, control characters shown and not obeyed; `pair` is smtplib's form."""
    reply = Reply(550, b"one\ntwo \x1b[2J \xff")
    assert str(reply) == "550 one two \\x1b[2J \\xff"
    assert reply.pair == (550, b"one\ntwo \x1b[2J \xff")
    assert str(Reply(250)) == "250"


# ---------------------------------------------------------------- receipts


def test_refused_and_deferred_recipients_are_told_apart() -> None:
    """A 4yz may be tried again, a 5yz not, an accepted one must not."""
    r = receipt(Outcome.PARTIAL, (A, B, C), accepted=(A,), replies={A: OK, B: LATER, C: NEVER})
    assert r.refused == {B: LATER, C: NEVER}
    assert r.deferred == (B,)


def test_nobody_is_deferred_while_the_message_is_in_doubt() -> None:
    """Another attempt could send it twice, so there is none by default."""
    assert receipt(Outcome.IN_DOUBT, (A, B), replies={B: LATER}).deferred == ()


@pytest.mark.parametrize("transient", [True, False])
def test_the_error_decides_for_recipients_without_a_verdict(transient: bool) -> None:
    """Nobody was refused in person: whether the message failed for now or for good decides for all."""
    error = MailError("x", transient=transient)
    r = receipt(Outcome.NOT_SENT, (A, B, C), replies={A: OK, C: NEVER}, error=error)
    assert r.deferred == ((A, B) if transient else ())


def test_not_sent_makes_a_receipt_that_its_error_carries() -> None:
    """Also for what never became an envelope."""
    error = MailError("x", phase=Phase.CONNECT)
    r = Receipt.not_sent(Envelope("ann", [A, B], b"Message-ID: <1@x>\r\n\r\n"), error, attempts=3)
    assert error.receipt is r
    assert (r.outcome, r.phase, r.recipients, r.message_id, r.attempts) == (
        Outcome.NOT_SENT,
        Phase.CONNECT,
        (A, B),
        "<1@x>",
        3,
    )
    assert Receipt.not_sent(None, MailError("x")).recipients == ()


@pytest.mark.parametrize(
    ("outcome", "raises"),
    [(Outcome.SENT, False), (Outcome.PARTIAL, False), (Outcome.NOT_SENT, True), (Outcome.IN_DOUBT, True)],
)
def test_raise_for_failure_raises_where_nobody_surely_has_it(outcome: Outcome, raises: bool) -> None:
    """The very error of the receipt; otherwise the receipt comes back."""
    r = receipt(outcome, (A, B), accepted=(A,) if outcome is Outcome.PARTIAL else (), error=MailError("boo"))
    if raises:
        with pytest.raises(MailError) as info:
            r.raise_for_failure()
        assert info.value is r.error
    else:
        assert r.raise_for_failure() is r


def test_a_receipt_is_plain_data() -> None:
    """Frozen, equal by value, picklable, and JSON can hold what `to_dict` gives."""
    r = receipt(
        Outcome.PARTIAL, (A, B), accepted=(A,), replies={B: NEVER}, reply=OK, server="mx:25", error=MailError("x")
    )
    assert pickle.loads(pickle.dumps(r)) == r
    data = json.loads(json.dumps(r.to_dict()))
    assert (data["outcome"], data["phase"], data["refused"], data["error"]) == (
        "partial",
        "done",
        {B: "550 5.1.1 no such user"},
        "x",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        r.attempts = 5  # type: ignore[misc]


def test_the_text_of_a_receipt_says_why() -> None:
    """Outcome and cause on one line."""
    assert str(receipt(Outcome.NOT_SENT, error=DataRefused(554, b"5.7.1 spam\r\n"))).startswith("not sent: ")
    assert "554 5.7.1 spam" in str(receipt(Outcome.NOT_SENT, error=DataRefused(554, b"5.7.1 spam")))
    assert str(receipt(Outcome.SENT, reply=Reply(250, b"queued as 42"))) == "sent: 250 queued as 42"
    assert str(receipt(Outcome.SENT)) == "sent"


# ---------------------------------------------------------------- attempts that follow each other


def test_a_retry_of_the_deferred_completes_a_message() -> None:
    """First one recipient, then the other: sent, with both replies and both attempts counted."""
    first = receipt(Outcome.PARTIAL, (A, B), accepted=(A,), replies={A: OK, B: LATER}, reply=OK)
    both = first.followed_by(receipt(Outcome.SENT, (B,), replies={B: OK}))
    assert (both.outcome, both.accepted, both.recipients, both.attempts) == (Outcome.SENT, (A, B), (A, B), 2)
    assert both.replies == {A: OK, B: OK}
    assert both.refused == {}


def test_doubt_about_one_recipient_is_doubt_about_the_message() -> None:
    """A later attempt in doubt outweighs what was accepted before, and nobody is tried again."""
    first = receipt(Outcome.PARTIAL, (A, B), accepted=(A,), replies={B: LATER})
    both = first.followed_by(receipt(Outcome.IN_DOUBT, (B,)))
    assert (both.outcome, both.accepted, both.deferred) == (Outcome.IN_DOUBT, (A,), ())


@pytest.mark.parametrize("reply", [LATER, NEVER, None])
def test_doubt_is_not_lifted_by_a_later_refusal(reply: Reply | None) -> None:
    """The first attempt may have delivered it (`resend_in_doubt`): that the second did not proves nothing."""
    first = receipt(Outcome.IN_DOUBT, (A, B), replies={B: NEVER})
    second = receipt(Outcome.NOT_SENT, (A,), replies={A: reply} if reply else {}, error=MailError("x"))
    assert first.followed_by(second).outcome is Outcome.IN_DOUBT
    assert first.followed_by(second).followed_by(second).outcome is Outcome.IN_DOUBT


def test_doubt_is_lifted_by_a_later_acceptance() -> None:
    """Whoever was in doubt has it for sure now; whoever was refused at the time was never in doubt."""
    first = receipt(Outcome.IN_DOUBT, (A, B), replies={B: NEVER})
    assert first.followed_by(receipt(Outcome.SENT, (A,))).outcome is Outcome.PARTIAL
    first = receipt(Outcome.IN_DOUBT, (A, B))
    assert first.followed_by(receipt(Outcome.SENT, (A, B))).outcome is Outcome.SENT
    assert (
        first.followed_by(receipt(Outcome.PARTIAL, (A, B), accepted=(A,), replies={B: NEVER})).outcome
        is Outcome.IN_DOUBT
    )


EVERYBODY = (A, B, C)
Fate = dict[str, Reply]


@st.composite
def attempts(draw: st.DrawFn) -> list[Receipt]:
    """Attempts as a retrying sender makes them: each for those whom the ones before left deferred."""
    found: list[Receipt] = []
    pending: tuple[str, ...] = EVERYBODY
    while pending and len(found) < 4:
        replies = {r: draw(st.sampled_from([OK, LATER, NEVER])) for r in pending}
        accepted = tuple(r for r in pending if replies[r] is OK)
        outcome = Outcome.SENT if accepted == pending else Outcome.PARTIAL if accepted else Outcome.NOT_SENT
        if accepted and draw(st.integers(0, 9)) == 0:
            outcome, accepted = Outcome.IN_DOUBT, ()
        found.append(receipt(outcome, pending, accepted=accepted, replies=replies))
        pending = found[-1].deferred
    return found


@given(attempts())
def test_the_algebra_of_attempts(parts: list[Receipt]) -> None:
    """Whatever the attempts: nobody is both accepted and to be tried, counts add up, and grouping does not matter."""
    total = parts[0]
    for part in parts[1:]:
        total = total.followed_by(part)
    assert total.recipients == EVERYBODY
    assert total.attempts == len(parts)
    assert set(total.accepted) == {r for part in parts for r in part.accepted}
    assert len(total.accepted) == len(set(total.accepted))
    assert not set(total.accepted) & {*total.deferred, *total.refused}
    assert total.deferred == parts[-1].deferred
    assert (total.outcome is Outcome.SENT) == (set(total.accepted) == set(EVERYBODY))
    assert (total.outcome is Outcome.IN_DOUBT) == any(part.outcome is Outcome.IN_DOUBT for part in parts)
    if len(parts) >= 3:
        first, second, third = parts[:3]
        assert first.followed_by(second.followed_by(third)) == first.followed_by(second).followed_by(third)


# ---------------------------------------------------------------- reports


def test_a_report_is_a_sequence_of_receipts() -> None:
    """In order, sliceable, comparable; with every outcome counted and the failures picked out."""
    receipts = [receipt(o) for o in (Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT, Outcome.IN_DOUBT)]
    report = Report(iter(receipts))
    assert list(report) == receipts
    assert (len(report), report[1], report[-1]) == (4, receipts[1], receipts[3])
    assert report[1:3] == Report(receipts[1:3])
    assert report.counts() == {Outcome.SENT: 2, Outcome.PARTIAL: 0, Outcome.NOT_SENT: 1, Outcome.IN_DOUBT: 1}
    assert report.failures == (receipts[1], receipts[3])
    assert str(report) == "4 messages: 2 sent, 1 not sent, 1 in doubt"
    assert str(Report()) == "no messages"
    assert pickle.loads(pickle.dumps(report)) == report


def test_a_report_raises_for_its_failures_or_not_at_all() -> None:
    """DeliveryFailed carries the report and names the first failure; a clean report comes back."""
    clean = Report([receipt(Outcome.SENT)])
    assert clean.raise_for_failures() is clean
    assert Report().raise_for_failures() == Report()
    mixed = Report([receipt(Outcome.SENT), receipt(Outcome.PARTIAL, (A, B), accepted=(A,))])
    with pytest.raises(DeliveryFailed, match="2 messages: 1 sent, 1 partial; the first: partial") as info:
        mixed.raise_for_failures()
    assert info.value.report is mixed
