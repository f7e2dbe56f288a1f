"""The oracle of the proof on forged evidence: for each thing that it claims to see one run that shows just that."""

from __future__ import annotations

import smtplib
from typing import Any

import pytest

from tests.detsched.modelserver import ModelServer
from tests.detsched.oracle import IN_DOUBT, NOT_SENT, SENT, Job, Ledger, Report, judge
from tests.detsched.smtpmodel import Connection, Envelope
from threadmail import MailError, Outcome, Phase, Receipt
from threadmail.errors import ConnectionLost, RecipientsRefused, TimedOut
from threadmail.receipt import Reply

JOB, OTHER = Job.make("a", recipients=2), Job.make("b")
R0, R1 = JOB.recipients
NO = "550 5.1.1 no such user"


def stored(job: Job, *to: str, **changes: Any) -> Envelope:
    parts = {"sender": job.sender, "recipients": list(to or job.recipients), "connection": "c", "body": job.content}
    return Envelope(**{**parts, "reply": f"250 stored {job.token}", **changes})


RIGHT, FIRST, SECOND = stored(JOB), stored(JOB, R0), stored(JOB, R1)
LOST = "silent loss: reported sent, not delivered intact"
FALSE = "reported not sent, but delivered"


def judged(
    *delivered: Envelope, report: Report | None, answers: dict[str, str] | None = None, **state: Any
) -> list[str]:
    server, ledger = ModelServer(bound=1), Ledger()
    ledger.jobs["a"] = JOB
    server.delivered = list(delivered)
    server.answered = answers or {}
    for name, value in state.items():
        setattr(server, name, value)
    if report is not None:
        ledger.report(JOB, report)
    return judge(server, ledger, failures=["allowed"])


def failed(outcome: str, **more: Any) -> Report:
    return Report(outcome, **{"detail": "allowed", **more})


def written(data: bytes) -> list[Connection]:
    connection = Connection(ModelServer(), "c", 0)
    connection.written += data
    return [connection]


@pytest.mark.parametrize(
    ("delivered", "report", "answers"),
    [
        ([RIGHT], Report(SENT), {}),
        ([RIGHT], Report(SENT, reply="250 stored a"), {}),
        ([FIRST, SECOND], Report(SENT), {}),
        ([FIRST], Report(SENT, frozenset({R1}), refusals={R1: NO}), {R1: NO}),
        ([], failed(NOT_SENT), {}),
        ([], failed(NOT_SENT, refused=frozenset({R0, R1})), {R0: NO, R1: NO}),
        ([RIGHT], failed(IN_DOUBT), {}),
        ([FIRST], failed(IN_DOUBT, refused=frozenset({R1})), {R1: NO}),
    ],
)
def test_what_is_true_passes(delivered: list[Envelope], report: Report, answers: dict[str, str]) -> None:
    assert judged(*delivered, report=report, answers=answers) == []


@pytest.mark.parametrize(
    ("claim", "delivered", "report", "answers", "violation"),
    [
        ("a loss", [], Report(SENT), {}, LOST),
        ("a loss for one recipient", [FIRST], Report(SENT), {}, LOST),
        ("twice", [RIGHT, RIGHT], Report(SENT), {}, "delivered twice"),
        ("twice for one recipient", [RIGHT, FIRST], Report(SENT), {}, "delivered twice"),
        ("twice in one envelope", [stored(JOB, R0, R0, R1)], Report(SENT), {}, "delivered twice"),
        ("twice, in doubt", [RIGHT, RIGHT], failed(IN_DOUBT), {}, "delivered twice"),
        ("twice for one, in doubt", [RIGHT, SECOND], failed(IN_DOUBT), {}, "delivered twice"),
        ("told not sent", [RIGHT], failed(NOT_SENT), {}, FALSE),
        ("told not sent, one has it", [FIRST], failed(NOT_SENT), {}, FALSE),
        (
            "told refused, and he has it",
            [RIGHT],
            Report(SENT, frozenset({R1})),
            {R1: NO},
            "reported refused, but delivered",
        ),
        (
            "told refused, in doubt, and he has it",
            [RIGHT],
            failed(IN_DOUBT, refused=frozenset({R1})),
            {R1: NO},
            "reported refused, but delivered",
        ),
        (
            "told refused, and nobody refused him",
            [FIRST],
            Report(SENT, frozenset({R1})),
            {R1: "250 2.1.5 recipient ok"},
            "refused recipients reported wrongly",
        ),
        ("refused and not told", [FIRST], Report(SENT), {R1: NO}, "refused recipients reported wrongly"),
        ("a stranger refused", [RIGHT], Report(SENT, frozenset({"x"})), {}, "refused recipients reported wrongly"),
        (
            "another recipient's reply",
            [FIRST],
            Report(SENT, frozenset({R1}), refusals={R1: f"{NO}: x"}),
            {R1: f"{NO}: {R1}"},
            "receipt with another recipient's reply",
        ),
        (
            "another message's reply",
            [RIGHT],
            Report(SENT, reply="250 other"),
            {},
            "receipt with another message's reply",
        ),
        (
            "partly sent, another's reply",
            [FIRST],
            Report(SENT, frozenset({R1}), reply="250 stored b"),
            {R1: NO},
            "receipt with another message's reply",
        ),
        ("no reply", [RIGHT], Report(SENT, reply=""), {}, "sent without the server's reply"),
        (
            "in doubt and never written",
            [],
            failed(IN_DOUBT),
            {},
            "in doubt, though its end of data was never written",
        ),
        ("a failure of another kind", [], Report(NOT_SENT, detail="KeyError"), {}, "failed: KeyError"),
        ("a doubt of another kind", [RIGHT], Report(IN_DOUBT, detail="KeyError"), {}, "failed: KeyError"),
        ("nothing told", [RIGHT], None, {}, "no report"),
        ("a foreign body", [RIGHT, stored(JOB, body=b"?")], Report(SENT), {}, "body mixed with other bytes"),
        ("a foreign sender", [RIGHT, stored(JOB, sender="x")], Report(SENT), {}, "body under another sender"),
        (
            "a leak",
            [RIGHT, stored(JOB, *OTHER.recipients)],
            Report(SENT),
            {},
            "leak: body delivered to another message's recipients",
        ),
        ("a contradiction", [RIGHT], Report(SENT, wrong=("contradiction",)), {}, "contradiction"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_oracle_sees(
    claim: str, delivered: list[Envelope], report: Report | None, answers: dict[str, str], violation: str
) -> None:
    assert judged(*delivered, report=report, answers=answers) == [violation]


def test_a_doubt_whose_end_of_data_was_written_is_one() -> None:
    """As DATA or as a chunk has it; half of it is no doubt."""
    for content, violations in (
        (JOB.content + b"\r\n.\r\n", []),
        (b"bdat 9 last\r\n" + JOB.content + b"\r\n", []),
        (JOB.content, ["in doubt, though its end of data was never written"]),
        (OTHER.content + b"\r\n.\r\n", ["in doubt, though its end of data was never written"]),
    ):
        assert judged(report=failed(IN_DOUBT), connections=written(content)) == violations


def test_the_oracle_sees_a_second_report() -> None:
    server, ledger = ModelServer(), Ledger()
    ledger.jobs["a"] = JOB
    server.delivered = [RIGHT]
    ledger.report(JOB, Report(SENT))
    ledger.report(JOB, Report(SENT))
    assert judge(server, ledger) == ["reported twice"]


def test_the_oracle_sees_too_many_connections() -> None:
    assert judged(RIGHT, report=Report(SENT), most_open=2) == ["more connections than allowed: 2"]


def test_the_oracle_sees_what_a_connection_saw() -> None:
    connection = Connection(ModelServer(), "c", 0)
    connection.violate("foreign command inside a transaction")
    assert judged(RIGHT, report=Report(SENT), connections=[connection]) == ["foreign command inside a transaction"]


def test_the_oracle_sees_a_run_without_a_message() -> None:
    assert judge(ModelServer(), Ledger()) == ["empty: there was no message"]


def test_of_a_run_that_hangs_the_missing_report_is_no_news() -> None:
    server, ledger = ModelServer(), Ledger()
    ledger.jobs["a"] = JOB
    assert judge(server, ledger, given_up=True) == []


# What `on_receipt` is told ------------------------------------------------------------------------------------------


def receipt(outcome: Outcome = Outcome.SENT, **changes: Any) -> Receipt:
    error = None if outcome in (Outcome.SENT, Outcome.PARTIAL) else ConnectionLost("gone", phase=Phase.FINAL)
    parts = {
        "accepted": JOB.recipients if outcome is Outcome.SENT else (),
        "reply": Reply(250, b"stored a") if error is None else None,
        "error": error,
    }
    return Receipt(outcome, Phase.DONE, JOB.sender, JOB.recipients, **{**parts, **changes})


@pytest.mark.parametrize(
    ("heard", "report", "violations"),
    [
        ([receipt()], Report(SENT), []),
        ([], Report(SENT, at_the_door=True), []),
        ([], Report(SENT), ["on_receipt was never called"]),
        ([receipt(), receipt()], Report(SENT), ["on_receipt was called twice"]),
        ([receipt(Outcome.NOT_SENT)], Report(SENT), ["on_receipt was told another outcome"]),
        ([receipt(reply=None)], Report(SENT), ["sent without the server's reply"]),
    ],
)
def test_the_oracle_sees_what_on_receipt_was_told(heard: list[Receipt], report: Report, violations: list[str]) -> None:
    server, ledger = ModelServer(), Ledger()
    ledger.jobs["a"] = JOB
    server.delivered = [RIGHT]
    hear = ledger.listen()
    for each in heard:
        hear(each)
    ledger.report(JOB, report)
    assert judge(server, ledger) == violations


# How what was returned or raised becomes a report -------------------------------------------------------------------


def sent_by(act: Any) -> Report:
    ledger = Ledger()
    ledger.send(ledger.add("a", 2), act)
    return ledger.reports["a"]


def raising(error: Exception) -> Any:
    def act(*_: object) -> Any:
        raise error

    return act


def test_a_receipt_is_reported_in_full() -> None:
    ledger, whole = Ledger(), receipt(Outcome.PARTIAL, accepted=(R0,), replies={R1: Reply(550, b"no")})
    full = Report(SENT, frozenset({R1}), "", "250 stored a", {R1: "550 no"})
    ledger.send_for_receipt(ledger.add("a", 2), lambda job: whole)
    assert ledger.reports["a"] == sent_by(lambda *_: whole) == full


def test_who_returns_the_refused_recipients_alone_tells_no_reply() -> None:
    assert sent_by(lambda *_: {R1: (550, b"no")}) == Report(SENT, frozenset({R1}))
    assert sent_by(lambda *_: None) == Report(SENT)


def test_a_raised_error_is_reported_with_the_receipt_it_carries() -> None:
    error = RecipientsRefused(dict.fromkeys(JOB.recipients, (550, b"no")))
    refused = {name: Reply(550, b"no") for name in JOB.recipients}
    error.receipt = receipt(Outcome.NOT_SENT, error=error, replies=refused)
    assert sent_by(raising(error)) == Report(
        NOT_SENT, frozenset(refused), "RecipientsRefused [550, 550]", refusals=dict.fromkeys(refused, "550 no")
    )


def test_a_raised_error_that_contradicts_its_receipt_is_seen() -> None:
    error = TimedOut("late")
    error.receipt = receipt(Outcome.IN_DOUBT)
    assert sent_by(raising(error)).wrong == (
        "TimedOut says not sent, its receipt in doubt",
        "TimedOut was raised, and its receipt names ConnectionLost",
    )


def test_an_error_without_a_receipt_is_seen() -> None:
    assert sent_by(raising(MailError("?"))).wrong == ("MailError carries no receipt",)


def test_an_error_that_is_none_of_ours_is_seen() -> None:
    report = sent_by(raising(KeyError("x")))
    assert (report.outcome, report.detail, report.wrong) == (NOT_SENT, "KeyError", ("KeyError is no error of ours",))


def test_of_the_raw_client_no_receipt_is_asked() -> None:
    assert sent_by(raising(smtplib.SMTPServerDisconnected("x"))).wrong == ()
    assert sent_by(raising(ConnectionResetError())).wrong == ()
