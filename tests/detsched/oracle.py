"""The oracle: what must hold when a run is over, whatever the schedule was.

For each message: exactly one stored envelope with its own sender, its own accepted recipients and its own body if it
was reported sent, none if it was reported not sent, at most one if in doubt; its refused recipients reported to its
own thread and no other. For each connection: no reply read by a thread that did not cause it, no foreign command
inside a transaction, no command out of sequence. For the server: connections within the bound. Deadlock, endless runs
and dying threads are the explorer's to notice.
"""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .explore import Verdict
from .modelserver import ModelServer
from .smtpmodel import Envelope

SENT: Final = "sent"
NOT_SENT: Final = "not sent"
IN_DOUBT: Final = "in doubt"


@dataclass(frozen=True)
class Job:
    """A message to send: all its parts carry its token, so that the server's copy tells where each came from."""

    token: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes

    @classmethod
    def make(cls, token: str, recipients: int = 1) -> Job:
        names = tuple(f"r{i}.{token}@there.test" for i in range(recipients))
        return cls(token, f"{token}@here.test", names, f"Subject: {token}\r\n\r\nBody of {token}".encode())


@dataclass(frozen=True)
class Report:
    """What the sender was told about one message."""

    outcome: str
    refused: frozenset[str] = frozenset()
    #: For a failure its kind; part of the outcome of the run.
    detail: str = ""
    #: The server's final reply as the sender has it; checked against the stored envelope if not empty.
    reply: str = ""

    @classmethod
    def of_receipt(cls, receipt: Any) -> Report:
        """From an object with `outcome` (an enum), `refused`, `reply` and `error`: what the sender was told in full."""
        outcome = SENT if receipt.outcome.value == "partial" else str(receipt.outcome.value)
        detail = "" if outcome == SENT or receipt.error is None else describe(receipt.error)
        return cls(outcome, frozenset(receipt.refused), detail, str(receipt.reply) if outcome == SENT else "")


class Ledger:
    """The jobs of one run and what was reported about each."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.reports: dict[str, Report] = {}
        self.twice: list[str] = []

    def add(self, token: str, recipients: int = 1) -> Job:
        job = self.jobs[token] = Job.make(token, recipients)
        return job

    def report(self, job: Job, report: Report) -> None:
        if job.token in self.reports:
            self.twice.append(job.token)
        self.reports[job.token] = report

    def send(self, job: Job, sendmail: Callable[[str, list[str], bytes], Any]) -> None:
        """Send by a function with `smtplib.SMTP.sendmail`'s interface, and report what it returned or raised."""
        try:
            refused = sendmail(job.sender, list(job.recipients), job.content)
        except Exception as error:  # noqa: BLE001 - every way to fail is a report
            self.report(job, Report(failed_outcome(error), detail=describe(error)))
        else:
            self.report(job, Report(SENT, frozenset(refused or ())))

    def send_for_receipt(self, job: Job, send: Callable[[Job], Any]) -> None:
        """Send by a function that returns a receipt, or raises an error that carries one."""
        try:
            receipt = send(job)
        except Exception as error:  # noqa: BLE001 - every way to fail is a report
            receipt = getattr(error, "receipt", None)
            if receipt is None:
                self.report(job, Report(failed_outcome(error), detail=describe(error)))
                return
        self.report(job, Report.of_receipt(receipt))


def failed_outcome(error: Exception) -> str:
    """The outcome an error tells of: its own if it has one, else what smtplib's callers must assume: not sent."""
    outcome = getattr(error, "outcome", None)
    value = getattr(outcome, "value", outcome)
    return IN_DOUBT if "doubt" in str(value).lower() else NOT_SENT


def describe(error: BaseException) -> str:
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"{type(error).__name__} {sorted(code for code, _ in error.recipients.values())}"
    code = getattr(error, "smtp_code", None)
    return type(error).__name__ + (f" {code}" if code is not None else "")


def judge(
    server: ModelServer,
    ledger: Ledger,
    *,
    failures: Iterable[str] = (),
    given_up: bool = False,
) -> list[str]:
    """All violations. `failures` lists the kinds of failure (`describe`) that the scenario may bring.

    `given_up`: the run ended in a deadlock or the like, so that missing reports say nothing new.
    """
    found: list[str] = []
    for connection in server.connections:
        found += connection.violations
    if server.bound is not None and server.most_open > server.bound:
        found.append(f"more connections than allowed: {server.most_open}")
    allowed = tuple(failures)
    for job in ledger.jobs.values():
        report = ledger.reports.get(job.token)
        if report is not None:
            found += _judge_report(server, job, report, allowed)
        elif not given_up:
            found.append("no report")
    if ledger.twice:
        found.append("reported twice")
    by_body = {job.content: job for job in ledger.jobs.values()}
    for envelope in server.delivered:
        found += _judge_envelope(envelope, by_body)
    return list(dict.fromkeys(found))


def _judge_report(server: ModelServer, job: Job, report: Report, allowed: tuple[str, ...]) -> list[str]:
    found = []
    accepted = [name for name in job.recipients if name not in server.faults.refuse]
    intact = [
        envelope
        for envelope in server.delivered
        if (envelope.sender, envelope.recipients, envelope.body) == (job.sender, accepted, job.content)
    ]
    if report.outcome == SENT:
        if not intact:
            found.append("silent loss: reported sent, not delivered intact")
        if report.refused != frozenset(job.recipients) - frozenset(accepted):
            found.append("refused recipients reported wrongly")
        if report.reply and report.reply not in [envelope.reply for envelope in intact]:
            found.append("receipt with another message's reply")
    elif report.outcome == NOT_SENT and intact:
        found.append("reported not sent, but delivered")
    if len(intact) > 1:
        found.append("delivered twice")
    if report.outcome != SENT and report.detail not in allowed:
        found.append(f"failed: {report.detail or report.outcome}")
    return found


def _judge_envelope(envelope: Envelope, by_body: Mapping[bytes, Job]) -> list[str]:
    job = by_body.get(envelope.body)
    if job is None:
        return ["body mixed with other bytes"]
    found = []
    if envelope.sender != job.sender:
        found.append("body under another sender")
    if not set(envelope.recipients) <= set(job.recipients):
        found.append("leak: body delivered to another message's recipients")
    return found


def outcome(server: ModelServer, ledger: Ledger) -> Hashable:
    """The end state of a run, without what differs between equivalent schedules."""
    delivered = sorted((e.sender, tuple(e.recipients), e.body) for e in server.delivered)
    reports = sorted((token, r.outcome, r.detail) for token, r in ledger.reports.items())
    return tuple(delivered), tuple(reports)


def transcript(server: ModelServer) -> str:
    """The dialogue on each connection, with the thread behind every line."""
    lines = []
    for connection in server.connections:
        lines.append(f"{connection.name}:")
        lines += [f"  {who:>7} {direction} {text}" for who, direction, text in connection.transcript]
    return "\n".join(lines)


def verdict(server: ModelServer, ledger: Ledger, *, failures: Iterable[str] = (), given_up: bool = False) -> Verdict:
    """The oracle's verdict in the explorer's form."""
    violations = judge(server, ledger, failures=failures, given_up=given_up)
    return Verdict(tuple(violations), outcome(server, ledger), transcript(server))
