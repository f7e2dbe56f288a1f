"""The rules that all judges share, on forged receipts and errors: each contradiction that they claim to see, alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import judgement
from threadmail import MailError, Outcome, Phase, Receipt
from threadmail.errors import ConnectionLost, DataRefused, RecipientsRefused, TimedOut
from threadmail.receipt import Reply

A, B = "a@example.net", "b@example.net"
OK, NO = Reply(250, b"2.0.0 queued"), Reply(550, b"5.1.1 no")
LOST = ConnectionLost("gone", phase=Phase.FINAL)


def receipt(outcome: Outcome, *accepted: str, **parts: Any) -> Receipt:
    given = {"replies": {}, "reply": None, "error": None, **parts}
    return Receipt(outcome, Phase.FINAL, "s@example.org", (A, B), None, accepted, **given)


@pytest.mark.parametrize(
    "told",
    [
        receipt(Outcome.SENT, A, B, reply=OK),
        receipt(Outcome.PARTIAL, A, reply=OK, replies={B: NO}),
        receipt(Outcome.NOT_SENT, error=LOST),
        receipt(Outcome.IN_DOUBT, error=LOST),
        receipt(Outcome.IN_DOUBT, A, error=LOST),
    ],
)
def test_a_receipt_that_is_right_passes(told: Receipt) -> None:
    assert list(judgement.of_receipt(told)) == []


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        (receipt(Outcome.SENT, A, reply=OK), "receipt says sent, and accepted does not fit"),
        (receipt(Outcome.PARTIAL, A, B, reply=OK), "receipt says partial, and accepted does not fit"),
        (receipt(Outcome.PARTIAL, reply=OK), "receipt says partial, and accepted does not fit"),
        (receipt(Outcome.NOT_SENT, A, error=LOST), "receipt says not sent, and accepted does not fit"),
        (receipt(Outcome.IN_DOUBT, A, B, error=LOST), "receipt says in doubt, and accepted does not fit"),
        (receipt(Outcome.NOT_SENT), "receipt says not sent, and no error why"),
        (receipt(Outcome.IN_DOUBT), "receipt says in doubt, and no error why"),
        (receipt(Outcome.SENT, A, B), judgement.WITHOUT_REPLY),
        (receipt(Outcome.SENT, A, B, reply=NO), judgement.WITHOUT_REPLY),
        (receipt(Outcome.PARTIAL, A, reply=NO), judgement.WITHOUT_REPLY),
        (
            receipt(Outcome.PARTIAL, A, "x@example.net", reply=OK),
            "receipt names recipients the message has not",
        ),
        (
            receipt(Outcome.PARTIAL, A, reply=OK, replies={"x@example.net": NO}),
            "receipt names recipients the message has not",
        ),
        (
            SimpleNamespace(
                outcome=Outcome.PARTIAL, accepted=(A,), recipients=(A, B), refused={A: NO}, reply=OK, error=None
            ),
            "receipt has a recipient both accepted and refused",
        ),
    ],
)
def test_a_receipt_that_contradicts_itself_is_seen(told: Any, wrong: str) -> None:
    assert list(judgement.of_receipt(told)) == [wrong]


def raised(error: MailError, told: Receipt | None = None, **changes: Any) -> list[str]:
    for name, value in changes.items():
        setattr(error, name, value)
    error.receipt = told
    return list(judgement.of_error(error))


def lost(outcome: Outcome = Outcome.NOT_SENT) -> ConnectionLost:
    error = ConnectionLost("gone", phase=Phase.FINAL)
    error.outcome = outcome
    return error


def of(error: MailError, outcome: Outcome, **parts: Any) -> Receipt:
    return receipt(outcome, error=error, **parts)


def test_an_error_that_agrees_with_its_receipt_passes() -> None:
    for error in (lost(), lost(Outcome.IN_DOUBT), TimedOut("late"), DataRefused(554, b"no")):
        assert raised(error, of(error, error.outcome)) == []


def test_an_error_that_is_none_of_ours_is_seen() -> None:
    assert list(judgement.of_error(KeyError("x"))) == ["KeyError is no error of ours"]


def test_an_error_raised_for_what_was_sent_is_seen() -> None:
    error = lost(Outcome.SENT)
    found = raised(error, receipt(Outcome.SENT, A, B, reply=OK, error=error))
    assert found == ["ConnectionLost was raised for a message that is sent"]


class Rash(ConnectionLost):
    may_resend = True


class Timid(ConnectionLost):
    may_resend = False


def test_an_error_that_bids_send_again_what_is_in_doubt_is_seen() -> None:
    error = Rash("gone", phase=Phase.FINAL)
    error.outcome = Outcome.IN_DOUBT
    assert raised(error, of(error, Outcome.IN_DOUBT)) == ["Rash may be sent again, it says, and is in doubt"]


def test_an_error_that_bids_send_again_what_will_never_do_is_seen() -> None:
    error = Rash("gone", phase=Phase.FINAL, transient=False)
    assert raised(error, of(error, Outcome.NOT_SENT)) == ["Rash may be sent again, it says, and is not sent"]


def test_an_error_that_forbids_what_is_safe_and_of_use_is_seen() -> None:
    error = Timid("gone", phase=Phase.FINAL)
    [wrong] = raised(error, of(error, Outcome.NOT_SENT))
    assert wrong == "Timid may not be sent again, it says, and is surely not sent and transient"


def test_an_error_without_a_receipt_is_seen() -> None:
    assert raised(lost()) == ["ConnectionLost carries no receipt"]
    assert list(judgement.of_error(lost(), receipt_due=False)) == []
    assert list(judgement.of_error(lost(Outcome.IN_DOUBT), receipt_due=False)) == ["ConnectionLost carries no receipt"]


def test_an_error_whose_receipt_has_another_outcome_is_seen() -> None:
    error = lost()
    assert raised(error, of(error, Outcome.IN_DOUBT)) == ["ConnectionLost says not sent, its receipt in doubt"]


def test_an_error_whose_receipt_names_another_error_is_seen() -> None:
    assert raised(lost(), of(TimedOut("late"), Outcome.NOT_SENT)) == [
        "ConnectionLost was raised, and its receipt names TimedOut"
    ]


def test_a_doubt_before_the_end_of_data_is_seen() -> None:
    error = ConnectionLost("gone", phase=Phase.RCPT)
    error.outcome = Outcome.IN_DOUBT
    assert raised(error, of(error, Outcome.IN_DOUBT)) == ["ConnectionLost is in doubt before the end of data"]
    assert raised(error, of(error, Outcome.IN_DOUBT, attempts=2)) == []  # an earlier attempt left it in doubt


def test_an_error_whose_receipt_does_not_know_the_refused_is_seen() -> None:
    error = RecipientsRefused({A: (550, b"no"), B: (550, b"no")})
    assert raised(error, of(error, Outcome.NOT_SENT, replies={A: NO})) == [
        "RecipientsRefused names recipients that its receipt does not"
    ]
