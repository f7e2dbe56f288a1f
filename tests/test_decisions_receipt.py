"""What a receipt decides, each decision at its boundaries: what two attempts come to together."""

from __future__ import annotations

from typing import Any

import pytest

from threadmail import Envelope, MailError, Outcome, Phase, Receipt, Report
from threadmail.errors import ConnectionLost, TimedOut
from threadmail.receipt import Reply

A, B = "a@example.net", "b@example.net"
TAKEN, FULL, LATER = Reply(250, b"2.0.0 queued as 17"), Reply(452, b"4.3.1 full"), Reply(451, b"4.2.1 later")


def partly(reply: Reply) -> Receipt:
    return Receipt(Outcome.PARTIAL, Phase.DONE, "s@example.org", (A, B), None, (A,), {B: LATER}, reply)


def rest(outcome: Outcome, reply: Reply | None, *accepted: str) -> Receipt:
    return Receipt(outcome, Phase.DONE, "s@example.org", (B,), None, accepted, {}, reply)


def test_the_reply_of_a_message_that_somebody_has_is_the_one_that_accepted_it() -> None:
    """The later attempt for the rest was refused at the end of data: the queue id is still the first one's."""
    merged = partly(TAKEN).followed_by(rest(Outcome.NOT_SENT, FULL))
    assert (merged.outcome, merged.accepted, merged.reply) == (Outcome.PARTIAL, (A,), TAKEN)


def test_of_two_acceptances_the_reply_is_the_later_one() -> None:
    again = Reply(250, b"2.0.0 queued as 18")
    assert partly(TAKEN).followed_by(rest(Outcome.SENT, again, B)).reply == again


def test_of_two_refusals_the_reply_is_the_later_one() -> None:
    nobody = Receipt(Outcome.NOT_SENT, Phase.DONE, "s@example.org", (A, B), None, (), {}, FULL)
    assert nobody.followed_by(rest(Outcome.NOT_SENT, LATER)).reply == LATER
    assert nobody.followed_by(rest(Outcome.NOT_SENT, None)).reply == FULL


# The first digit, at its boundaries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (199, ""),
        (200, "positive"),
        (201, "positive"),
        (299, "positive"),
        (300, ""),
        (354, ""),
        (399, ""),
        (400, "transient"),
        (401, "transient"),
        (499, "transient"),
        (500, "permanent"),
        (501, "permanent"),
        (599, "permanent"),
        (600, ""),
    ],
)
def test_what_a_reply_is_says_its_first_digit_and_nothing_else(code: int, kind: str) -> None:
    reply = Reply(code)
    assert [name for name in ("positive", "transient", "permanent") if getattr(reply, name)] == [kind] * bool(kind)


@pytest.mark.parametrize("code", [200, 250, 299, 400, 499, 500, 599])
def test_an_enhanced_code_is_trusted_where_its_class_is_the_replys(code: int) -> None:
    """At both ends of each hundred."""
    digit = code // 100
    assert Reply(code, b"%d.1.1 x" % digit).enhanced == f"{digit}.1.1"
    assert Reply(code, b"%d.1.1 x" % (7 - digit if digit != 5 else 4)).enhanced is None


# Defaults -------------------------------------------------------------------------------------------------------------


def test_a_receipt_is_of_one_attempt_unless_said_otherwise_and_one_of_nothing_sent_is_of_none() -> None:
    assert Receipt(Outcome.SENT, Phase.DONE, "s@example.org", (A,)).attempts == 1
    letter = Envelope("s@example.org", [A], b"Message-ID: <m@example.org>\r\n\r\nx\r\n")
    assert Receipt.not_sent(letter, TimedOut("late")).attempts == 0


def test_of_a_message_that_could_not_be_made_nothing_is_known_and_of_another_all() -> None:
    letter = Envelope("s@example.org", [A], b"Message-ID: <m@example.org>\r\n\r\nx\r\n")
    told, blank = Receipt.not_sent(letter, TimedOut("late")), Receipt.not_sent(None, TimedOut("late"))
    assert (told.sender, told.recipients, told.message_id) == ("s@example.org", (A,), "<m@example.org>")
    assert (blank.sender, blank.recipients, blank.message_id) == ("", (), None)


# Two attempts ---------------------------------------------------------------------------------------------------------


def whole(outcome: Outcome, *accepted: str, error: MailError | None = None, **parts: Any) -> Receipt:
    given = {"phase": Phase.DONE, "replies": {}, "reply": None, "attempts": 1, **parts}
    phase = given.pop("phase")
    return Receipt(outcome, phase, "s@example.org", (A, B), None, accepted, error=error, **given)


LOST = ConnectionLost("gone", phase=Phase.FINAL)
SLOW = TimedOut("late")


def test_who_was_accepted_twice_is_named_once() -> None:
    """Where what is in doubt is sent again, both attempts may have been accepted."""
    first = whole(Outcome.PARTIAL, A, reply=TAKEN)
    assert first.followed_by(whole(Outcome.SENT, A, B, reply=TAKEN)).accepted == (A, B)


def test_a_doubt_that_comes_later_is_the_one_that_is_told() -> None:
    """Its error and its phase, though there was one before."""
    first = whole(Outcome.IN_DOUBT, error=LOST, phase=Phase.FINAL)
    later = whole(Outcome.IN_DOUBT, error=SLOW, phase=Phase.CONTENT)
    merged = first.followed_by(later)
    assert (merged.outcome, merged.phase, type(merged.error)) == (Outcome.IN_DOUBT, Phase.CONTENT, TimedOut)


def test_a_doubt_that_a_refusal_follows_is_told_with_its_own_error() -> None:
    first = whole(Outcome.IN_DOUBT, error=LOST, phase=Phase.FINAL)
    later = whole(Outcome.NOT_SENT, error=SLOW, phase=Phase.RCPT, replies={A: LATER, B: LATER})
    merged = first.followed_by(later)
    assert (merged.outcome, merged.phase, type(merged.error)) == (Outcome.IN_DOUBT, Phase.FINAL, ConnectionLost)


def test_a_doubt_that_an_acceptance_of_all_follows_is_none() -> None:
    merged = whole(Outcome.IN_DOUBT, error=LOST).followed_by(whole(Outcome.SENT, A, B, reply=TAKEN))
    assert (merged.outcome, merged.error) == (Outcome.SENT, None)


def test_where_the_rest_was_refused_the_phase_is_that_of_who_was_accepted_and_where_it_was_not_of_the_rest() -> None:
    first = whole(Outcome.PARTIAL, A, reply=TAKEN, phase=Phase.DONE)
    refused = whole(Outcome.NOT_SENT, error=SLOW, phase=Phase.RCPT)
    accepted = whole(Outcome.SENT, B, reply=TAKEN, phase=Phase.FINAL)
    assert first.followed_by(refused).phase is Phase.DONE
    assert first.followed_by(accepted).phase is Phase.FINAL


def test_what_somebody_has_has_no_error_though_an_attempt_had() -> None:
    merged = whole(Outcome.PARTIAL, A, reply=TAKEN).followed_by(whole(Outcome.NOT_SENT, error=SLOW))
    assert (merged.outcome, merged.error) == (Outcome.PARTIAL, None)
    first = whole(Outcome.NOT_SENT, error=SLOW)
    assert first.followed_by(whole(Outcome.PARTIAL, A, reply=TAKEN)).error is None


@pytest.mark.parametrize(("first", "later", "told"), [("a", None, "a"), (None, "b", "b"), ("a", "b", "b")])
def test_the_tag_is_the_one_there_is(first: str | None, later: str | None, told: str) -> None:
    merged = whole(Outcome.NOT_SENT, error=SLOW, tag=first).followed_by(
        whole(Outcome.SENT, A, B, reply=TAKEN, tag=later)
    )
    assert merged.tag == told


# Whose the error is, and what comes back from data --------------------------------------------------------------------


def test_an_error_that_somebody_has_changed_since_is_told_with_the_outcome_of_the_receipt() -> None:
    told = Receipt.not_sent(None, TimedOut("late"))
    assert told.error is not None
    assert told.failure() is told.error
    told.error.outcome = Outcome.IN_DOUBT
    failure = told.failure()
    assert failure is not None
    assert (failure.outcome, failure.receipt) == (Outcome.NOT_SENT, told)


def test_the_final_reply_comes_back_octet_for_octet() -> None:
    """Two lines, and an octet that is no UTF-8."""
    told = partly(Reply(250, b"2.0.0 queued\nas 1\xff7"))
    assert Receipt.from_dict(told.to_dict()).reply == told.reply


def test_a_recipient_without_a_reply_comes_back_without_one() -> None:
    data = partly(TAKEN).to_dict()
    data["replies"][A] = None
    assert Receipt.from_dict(data).replies == {B: LATER}


def test_an_earlier_versions_error_comes_back_with_its_phase_or_none() -> None:
    data = {**Receipt.not_sent(None, TimedOut("late")).to_dict(), "failure": None}
    for phase in (None, "rcpt"):
        error = Receipt.from_dict({**data, "phase": phase}).error
        assert error is not None
        assert error.phase is (None if phase is None else Phase.RCPT)


def test_a_report_is_equal_to_a_report_and_to_nothing_else() -> None:
    assert Report([partly(TAKEN)]) == Report([partly(TAKEN)])
    assert Report([partly(TAKEN)]) != Report([])
    assert Report([]) != ()


def test_the_final_reply_is_there_for_people_too_where_there_was_one() -> None:
    assert partly(TAKEN).to_dict()["reply"] == "250 2.0.0 queued as 17"
    assert Receipt.not_sent(None, TimedOut("late")).to_dict()["reply"] is None


# An error that is raised more than once ------------------------------------------------------------------------------


def test_the_receipt_that_an_error_carries_is_that_of_its_message() -> None:
    letter = Envelope("s@example.org", ["r@example.org"], b"x")
    error = MailError("x")
    first = Receipt.not_sent(letter, error)
    assert error.receipt is first
    assert Receipt.after(letter, error) is first


def test_one_that_carries_none_gets_one() -> None:
    letter = Envelope("s@example.org", ["r@example.org"], b"x")
    error = MailError("x")
    assert Receipt.after(letter, error) is error.receipt


@pytest.mark.parametrize("other", ["sender", "recipients", "both"])
def test_of_another_message_it_is_not_taken(other: str) -> None:
    """A hook raises the same object again and again. Equal addresses do not make it the same message."""
    first, second = (Envelope("".join(["s@example", ".org"]), ["r@example.org"], b"x") for _ in range(2))
    if other != "both":
        same = "recipients" if other == "sender" else "sender"
        object.__setattr__(second, same, getattr(first, same))
    error = MailError("x")
    carried = Receipt.not_sent(first, error)
    assert Receipt.after(second, error) is not carried
    assert Receipt.after(second, error).recipients is second.recipients
