"""What an attempt means for its message and for the server, each decision at its boundaries."""

from __future__ import annotations

import random
from typing import Any

import pytest

from threadmail import Envelope, MailError, Outcome, Phase, Receipt, RetryPolicy
from threadmail._dispatch.job import Job
from threadmail._dispatch.limits import NO_SIGNS, Signs
from threadmail._dispatch.verdict import Verdict, judge
from threadmail._runtime.deadline import NEVER, Deadline
from threadmail.errors import (
    Aborted,
    BadReply,
    ConnectFailed,
    ConnectionLost,
    DataRefused,
    InvalidEnvelope,
    RecipientsRefused,
    SenderRefused,
    TimedOut,
    of_hook,
)
from threadmail.receipt import Reply

A, B = "a@example.net", "b@example.net"
LETTER = Envelope("s@example.org", [A, B], b"Subject: x\r\n\r\nx\r\n")
OK, LATER, NEVER_SO = Reply(250, b"2.0.0 queued"), Reply(451, b"4.2.1 later"), Reply(550, b"5.1.1 no")


class Chance(random.Random):
    """Every pause is the longest that it may be."""

    def uniform(self, a: float, b: float) -> float:
        return b


POLICY = RetryPolicy(attempts=3, base=2.0, longest=60.0, total=100.0)


def job(*, end: Deadline = NEVER, taken_first: float = 0.0, spared: int = 0, receipt: Receipt | None = None) -> Job:
    made = Job(LETTER, end, keeper=None, completion=None)  # type: ignore[arg-type]
    made.taken_first, made.spared, made.receipt = taken_first, spared, receipt
    return made


def attempt(outcome: Outcome, phase: Phase | None, error: MailError | None = None, **parts: Any) -> Receipt:
    given = {"accepted": (), "replies": {}, "reply": None, "attempts": 1, **parts}
    return Receipt(outcome, phase, LETTER.sender, LETTER.recipients, error=error, **given)


def judged(told: Receipt, *, now: float = 10.0, policy: RetryPolicy = POLICY, **of_job: Any) -> Verdict:
    return judge(job(**{"taken_first": 9.0, **of_job}), told, policy, Chance(), now)


SENT = attempt(Outcome.SENT, Phase.DONE, accepted=(A, B), reply=OK)


def failed(error: MailError, phase: Phase, **parts: Any) -> Receipt:
    return attempt(Outcome.NOT_SENT, phase, error, **parts)


# What was sent, and what was no attempt -------------------------------------------------------------------------------


def test_what_everybody_has_is_sent_and_over() -> None:
    verdict = judged(SENT)
    assert (verdict.sent, verdict.made, verdict.no_session, verdict.answered) == (True, True, False, True)
    assert (verdict.again, verdict.lost, verdict.signs, verdict.receipt) == (None, None, NO_SIGNS, SENT)
    assert verdict.at == 10.0


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.TLS, Phase.AUTH])
def test_where_there_was_no_session_there_was_no_attempt_and_nothing_is_concluded(phase: Phase) -> None:
    verdict = judged(failed(ConnectFailed("x"), phase))
    assert (verdict.no_session, verdict.made, verdict.sent, verdict.answered) == (True, False, False, False)
    assert (verdict.again, verdict.at, verdict.signs, verdict.lost) == (None, 0.0, NO_SIGNS, None)


def test_what_is_in_doubt_was_an_attempt_whatever_its_phase() -> None:
    verdict = judged(attempt(Outcome.IN_DOUBT, Phase.CONNECT, ConnectionLost("x")))
    assert (verdict.no_session, verdict.made, verdict.answered) == (False, True, True)


@pytest.mark.parametrize(("attempts", "made"), [(0, False), (1, True), (2, True)])
def test_an_attempt_was_made_where_a_connection_was_handed_the_message(attempts: int, made: bool) -> None:
    assert judged(failed(TimedOut("x"), Phase.MAIL, attempts=attempts)).made is made


# Again or not ---------------------------------------------------------------------------------------------------------


def test_what_may_be_sent_again_is_when_its_pause_is_over_and_to_whom_it_concerns() -> None:
    told = attempt(Outcome.PARTIAL, Phase.DONE, accepted=(A,), replies={B: LATER}, reply=OK)
    verdict = judged(told)
    assert verdict.again is not None
    assert (verdict.again.recipients, verdict.at, verdict.sent) == ((B,), 12.0, False)


def test_what_was_refused_for_good_is_not_sent_again() -> None:
    told = attempt(Outcome.PARTIAL, Phase.DONE, accepted=(A,), replies={B: NEVER_SO}, reply=OK)
    assert (judged(told).again, judged(told).at) == (None, 10.0)


def test_when_all_have_it_by_two_attempts_it_is_over() -> None:
    first = attempt(Outcome.PARTIAL, Phase.DONE, accepted=(A,), replies={B: LATER}, reply=OK)
    second = Receipt(Outcome.SENT, Phase.DONE, LETTER.sender, (B,), None, (B,), {}, OK)
    verdict = judged(second, receipt=first)
    assert (verdict.receipt.outcome, verdict.receipt.attempts, verdict.sent) == (Outcome.SENT, 2, True)
    assert verdict.again is None


def test_attempts_of_before_count() -> None:
    lost = failed(ConnectionLost("x"), Phase.RCPT)
    assert judged(lost, receipt=failed(ConnectionLost("x"), Phase.RCPT)).again is not None
    assert judged(lost, receipt=failed(ConnectionLost("x"), Phase.RCPT, attempts=2)).again is None


@pytest.mark.parametrize(("end", "again"), [(11.9, False), (12.0, False), (12.1, True)])
def test_no_attempt_is_made_that_would_begin_at_the_deadline_or_later(end: float, again: bool) -> None:
    verdict = judged(failed(ConnectionLost("x"), Phase.RCPT), end=Deadline(end))
    assert (verdict.again is not None, verdict.at) == (again, 12.0 if again else 10.0)


@pytest.mark.parametrize(("taken_first", "again"), [(-88.1, False), (-88.0, True), (5.0, True)])
def test_the_time_for_all_attempts_counts_from_when_it_was_first_taken(taken_first: float, again: bool) -> None:
    """100 s, of which the pause takes 2."""
    assert (judged(failed(ConnectionLost("x"), Phase.RCPT), taken_first=taken_first).again is not None) is again


def test_an_attempt_that_the_server_put_off_for_its_own_sake_does_not_count() -> None:
    """The third of three is the last; but not where it, or one before, was put off by a greylist."""
    greylisted = SenderRefused(450, b"4.2.0 Greylisted", LETTER.sender)
    two = failed(ConnectionLost("x"), Phase.RCPT, attempts=2)
    assert judged(failed(ConnectionLost("x"), Phase.RCPT), receipt=two).again is None
    assert judged(failed(greylisted, Phase.MAIL), receipt=two).again is not None
    assert judged(failed(ConnectionLost("x"), Phase.RCPT), receipt=two, spared=1).again is not None


def test_the_signs_of_the_server_are_read() -> None:
    assert judged(failed(SenderRefused(421, b"4.3.2 closing", LETTER.sender), Phase.MAIL)).signs == Signs(too_many=True)


# What it says of the server -------------------------------------------------------------------------------------------


def late(error: MailError) -> MailError:
    error.deadline_passed = True
    return error


@pytest.mark.parametrize(
    ("error", "phase", "lost"),
    [
        (ConnectionLost("x"), Phase.MAIL, True),
        (BadReply("x"), Phase.MAIL, True),
        (SenderRefused(421, b"closing", "s"), Phase.MAIL, True),
        (SenderRefused(420, b"no", "s"), Phase.MAIL, False),
        (SenderRefused(422, b"no", "s"), Phase.MAIL, False),
        (SenderRefused(450, b"later", "s"), Phase.MAIL, False),
        (TimedOut("x"), Phase.MAIL, False),
        (ConnectionLost("x"), Phase.RCPT, False),
        (ConnectionLost("x"), Phase.DATA, False),
        (Aborted("x"), Phase.MAIL, False),
        (late(ConnectionLost("x")), Phase.MAIL, False),
        (of_hook(SenderRefused(421, b"its own server", "s")), Phase.MAIL, False),
    ],
)
def test_a_session_that_was_taken_back_before_a_mail_was_answered_is_lost(
    error: MailError, phase: Phase, lost: bool
) -> None:
    verdict = judged(failed(error, phase))
    assert verdict.lost is (error if lost else None)
    assert not (lost and verdict.answered)


def test_what_is_in_doubt_has_lost_no_session_and_what_has_no_error_neither() -> None:
    assert judged(attempt(Outcome.IN_DOUBT, Phase.MAIL, ConnectionLost("x"))).lost is None
    assert judged(failed(None, Phase.MAIL)).lost is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "phase", "answered"),
    [
        (ConnectionLost("x"), Phase.MAIL, False),
        (TimedOut("x"), Phase.MAIL, False),
        (InvalidEnvelope("x"), Phase.MAIL, False),
        (BadReply("x"), Phase.MAIL, False),
        (SenderRefused(450, b"later", "s"), Phase.MAIL, True),
        (SenderRefused(550, b"no", "s"), Phase.MAIL, True),
        (RecipientsRefused({A: (550, b"no")}), None, True),
        (DataRefused(554, b"no"), None, True),
        (ConnectionLost("x"), Phase.RCPT, True),
        (ConnectionLost("x"), Phase.DATA, True),
        (ConnectionLost("x"), Phase.CONTENT, True),
        (ConnectionLost("x"), Phase.FINAL, True),
        (ConnectionLost("x"), Phase.DONE, True),
        (ConnectionLost("x"), None, False),
        (of_hook(SenderRefused(550, b"its own server", "s")), Phase.MAIL, False),
        (None, Phase.MAIL, False),
    ],
)
def test_the_server_answered_a_mail_where_it_refused_it_or_the_dialogue_had_gone_on(
    error: MailError | None, phase: Phase, answered: bool
) -> None:
    assert judged(failed(error, phase)).answered is answered  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", [Outcome.SENT, Outcome.PARTIAL, Outcome.IN_DOUBT])
def test_whoever_may_have_it_was_answered(outcome: Outcome) -> None:
    accepted = {Outcome.SENT: (A, B), Outcome.PARTIAL: (A,), Outcome.IN_DOUBT: ()}[outcome]
    error = ConnectionLost("x") if outcome is Outcome.IN_DOUBT else None
    assert judged(attempt(outcome, Phase.MAIL, error, accepted=accepted)).answered


def test_a_verdict_is_of_an_attempt_that_is_over_unless_it_says_otherwise() -> None:
    plain = Verdict(SENT)
    assert (plain.again, plain.at, plain.signs, plain.sent, plain.made) == (None, 0.0, NO_SIGNS, False, True)
    assert (plain.no_session, plain.answered, plain.lost) == (False, False, None)
