"""The oracle: what must hold when a run is over, whatever the schedule was.

For each message and each of its recipients: one copy with the message's own sender and body if it was reported sent,
none if it was reported not sent or refused, at most one if in doubt. The final reply that was told is one that the
server gave to this message, a refusal the one it gave to this recipient. What is in doubt has had its end of data
written. Each message is reported once; where somebody listens on `on_receipt`, he hears of each once, and the same. A
receipt does not contradict itself, nor an error its receipt. For each connection: no reply read by a thread that did
not cause it, no foreign command inside a transaction, no command out of sequence. For the server: connections within
the bound. For the run: there was something to judge. Deadlock, endless runs and dying threads are the explorer's to
notice. The rules that other judges share are in `tests/support/judgement.py`.
"""

from __future__ import annotations

import smtplib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support import judgement
from tests.support.judgement import FOREIGN_REFUSAL, IN_DOUBT, NOT_SENT, PARTIAL, SENT, Kind

from .explore import Verdict
from .modelserver import ModelServer
from .smtpmodel import Envelope

__all__ = ["IN_DOUBT", "NOT_SENT", "SENT", "Job", "Ledger", "Report", "describe", "failed_outcome", "judge", "outcome",
           "transcript", "verdict"]  # fmt: skip


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
    """What the sender was told about one message. SENT with somebody `refused` is what receipts call PARTIAL."""

    outcome: str
    refused: frozenset[str] = frozenset()
    #: For a failure its kind; part of the outcome of the run.
    detail: str = ""
    #: The server's final reply as the sender has it; "": he was told of none; None: this way to send does not tell.
    reply: str | None = None
    #: The reply to each refused recipient, where this way to send tells.
    refusals: Mapping[str, str] = field(default_factory=dict)
    #: Where the receipt, or the error that was raised, contradicts itself.
    wrong: tuple[str, ...] = ()
    #: It was refused at the door: whoever gave it was told by an exception, and `on_receipt` need not be.
    at_the_door: bool = False

    @classmethod
    def of_receipt(cls, receipt: Any, *, wrong: Iterable[str] = ()) -> Report:
        """From a receipt: what the sender was told in full.

        Args:
            wrong: what else is wrong with it.
        """
        outcome = SENT if receipt.outcome.value == PARTIAL else str(receipt.outcome.value)
        detail = "" if outcome == SENT or receipt.error is None else describe(receipt.error)
        reply = None if outcome != SENT else "" if receipt.reply is None else str(receipt.reply)
        refusals = {name: str(said) for name, said in receipt.refused.items()}
        contradictions = dict.fromkeys([*judgement.of_receipt(receipt), *wrong])
        return cls(outcome, frozenset(refusals), detail, reply, refusals, tuple(contradictions))

    @classmethod
    def of_error(cls, error: Exception, *, at_the_door: bool = False) -> Report:
        """From what was raised for one message: the error, and the receipt that it carries."""
        ours = hasattr(error, "outcome") or not isinstance(error, (smtplib.SMTPException, OSError))
        wrong = tuple(judgement.of_error(error)) if ours else ()  # the raw client knows no better
        receipt = getattr(error, "receipt", None)
        refusals = {} if receipt is None else {name: str(said) for name, said in receipt.refused.items()}
        outcome, refused = failed_outcome(error), frozenset(refusals)
        return cls(outcome, refused, describe(error), None, refusals, wrong, at_the_door)


class Ledger:
    """The jobs of one run and what was reported about each."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.reports: dict[str, Report] = {}
        self.twice: list[str] = []
        self.heard: dict[str, list[Report]] | None = None  # by `on_receipt`; None: nobody listens

    def add(self, token: str, recipients: int = 1) -> Job:
        job = self.jobs[token] = Job.make(token, recipients)
        return job

    def report(self, job: Job, report: Report) -> None:
        if job.token in self.reports:
            self.twice.append(job.token)
        self.reports[job.token] = report

    def listen(self) -> Callable[[Any], None]:
        """A function to be given as `on_receipt`: from now on each job that is reported must be heard of, once."""
        heard = self.heard = {}

        def hear(receipt: Any) -> None:
            heard.setdefault(receipt.sender.partition("@")[0], []).append(Report.of_receipt(receipt))

        return hear

    def send(self, job: Job, send: Callable[[str, list[str], bytes], Any]) -> None:
        """Send by a function with `smtplib.SMTP.sendmail`'s interface, and report what it returned or raised.

        One that returns a receipt in the place of the refused recipients is reported in full.
        """
        try:
            told = send(job.sender, list(job.recipients), job.content)
        except Exception as error:  # noqa: BLE001 - every way to fail is a report
            self.report(job, Report.of_error(error))
        else:
            full = hasattr(told, "outcome")
            self.report(job, Report.of_receipt(told) if full else Report(SENT, frozenset(told or ())))

    def send_for_receipt(self, job: Job, send: Callable[[Job], Any]) -> None:
        """Send by a function that returns a receipt, or raises an error that carries one."""
        try:
            receipt = send(job)
        except Exception as error:  # noqa: BLE001 - every way to fail is a report
            self.report(job, Report.of_error(error))
        else:
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
    if not ledger.jobs:
        found.append("empty: there was no message")
    allowed = tuple(failures)
    for job in ledger.jobs.values():
        report = ledger.reports.get(job.token)
        if report is not None:
            found += _judge_report(server, job, report, allowed)
        elif not given_up:
            found.append("no report")
    if ledger.twice:
        found.append("reported twice")
    if not given_up:
        found += _judge_heard(ledger)
    by_body = {job.content: job for job in ledger.jobs.values()}
    for envelope in server.delivered:
        found += _judge_envelope(envelope, by_body)
    return list(dict.fromkeys(found))


_MISCOUNTED = {
    Kind.LOST: "silent loss: reported sent, not delivered intact",
    Kind.TWICE: "delivered twice",
    Kind.FALSE: "reported not sent, but delivered",
}


def _judge_report(server: ModelServer, job: Job, report: Report, allowed: tuple[str, ...]) -> Iterator[str]:
    everybody = set(job.recipients)
    own = [e for e in server.delivered if (e.sender, e.body) == (job.sender, job.content)]
    intact = [e for e in own if set(e.recipients) <= everybody]
    copies = Counter(name for envelope in intact for name in envelope.recipients)
    for kind, name, _ in judgement.miscounts(job.recipients, report.outcome, report.refused, copies):
        if kind is Kind.LOST and _last_answer(server, name)[:1] in ("4", "5") and name not in report.refused:
            yield "refused recipients reported wrongly"
        else:
            yield "reported refused, but delivered" if name in report.refused else _MISCOUNTED[kind]
    for name in sorted(report.refused):
        refusals = [answer for answer in _answers(server, name) if answer[:1] in ("4", "5")]
        if name not in job.recipients or not (copies[name] or refusals):
            yield "refused recipients reported wrongly"
        elif name in report.refusals and not any(report.refusals[name] in answer for answer in refusals):
            yield FOREIGN_REFUSAL
    yield from judgement.misquotes(report.outcome, report.reply, [envelope.reply for envelope in intact] or ["\0"])
    if report.outcome == IN_DOUBT and not copies and not _was_written(server, job):
        yield "in doubt, though its end of data was never written"
    if report.outcome != SENT and report.detail not in allowed:
        yield f"failed: {report.detail or report.outcome}"
    yield from report.wrong


def _last_answer(server: ModelServer, name: str) -> str:
    """What the server said last to RCPT of this recipient; "" if it was never asked."""
    return server.answered.get(name, "")


def _answers(server: ModelServer, name: str) -> list[str]:
    """All that the server said to RCPT of this recipient: refused once, he stays so until an attempt has taken him."""
    return server.said.get(name) or [_last_answer(server, name)]


def _was_written(server: ModelServer, job: Job) -> bool:
    """Whether the client wrote the whole message on some connection, as DATA or as a chunk has it."""
    return any(job.content + b"\r\n" in connection.written for connection in server.connections)


def _judge_heard(ledger: Ledger) -> Iterator[str]:
    if ledger.heard is None:
        return
    told = {token: report for token, report in ledger.reports.items() if not report.at_the_door}
    counts = {token: len(reports) for token, reports in ledger.heard.items()}
    for _, number in judgement.unheard(told, counts):
        yield "on_receipt was called twice" if number else "on_receipt was never called"
    for token, reports in ledger.heard.items():
        if token in told and any(heard.outcome != told[token].outcome for heard in reports):
            yield "on_receipt was told another outcome"
        yield from (wrong for heard in reports for wrong in heard.wrong)


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
