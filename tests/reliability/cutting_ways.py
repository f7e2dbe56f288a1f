"""The ways to send one message that the every-byte runs go through, each with its own word on what became of it.

Owns nothing that lasts: each way opens what it needs and has closed it when it returns.
"""

from __future__ import annotations

import smtplib
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

from tests.support import judgement
from threadmail import (
    SMTP,
    Client,
    ClientPool,
    Envelope,
    MailError,
    Outcome,
    Receipt,
    RetryPolicy,
    Security,
    ServerConfig,
    ThreadedSender,
)


class Other(NamedTuple):
    """What a sender was told of a message that went with the one that is watched."""

    envelope: Envelope
    outcome: Outcome
    attempts: int = 1
    receipt: Receipt | None = None


@dataclass(frozen=True)
class Fate:
    """What a sender was told of its message.

    Attributes:
        handed_over: whether the end of data was about to leave at some time; None: this way does not tell.
        others: what was told of the messages that went with it, in their order.
        receipt: what he got, or what the error had; None: this way does not give one.
        refused: whom the server did not want, where there is no receipt to say so.
        wrong: where receipt and error contradict each other or themselves.
    """

    outcome: Outcome
    seconds: float
    error: str = ""
    attempts: int = 1
    handed_over: bool | None = None
    others: tuple[Other, ...] = ()
    receipt: Receipt | None = None
    refused: frozenset[str] = frozenset()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Way:
    """A way to send.

    Args:
        send: sends the envelope within the deadline (seconds).
        before: messages that it sends first, over the same connection.
        after: messages that it sends behind it. With any, all of them are judged, wherever the fault meets them.
        replaced: a message that is surely not sent gets another connection.
        resends: so does one in doubt.
        dials: it connects first, and takes another look at the connection when it sends.
    """

    name: str
    send: Callable[[ServerConfig, Envelope, float], Fate]
    before: int = 0
    after: int = 0
    replaced: bool = False
    resends: bool = False
    dials: bool = False


def _told(
    begin: float,
    send: Callable[[], Receipt | Outcome],
    handed_over: list[object] | None = None,
    *,
    receipt_due: bool = True,
) -> Fate:
    error, attempts, receipt = "", 1, None
    wrong: list[str] = []
    try:
        told = send()
        receipt = told if isinstance(told, Receipt) else None
    except MailError as exc:
        told, receipt, error = exc.outcome, exc.receipt, f"{type(exc).__name__}: {exc}"
        wrong += judgement.of_error(exc, receipt_due=receipt_due)
    seconds = time.monotonic() - begin
    if receipt is not None:
        attempts = receipt.attempts
        wrong += judgement.of_receipt(receipt)
    outcome = told.outcome if isinstance(told, Receipt) else told
    gone = None if handed_over is None else bool(handed_over)
    return Fate(outcome, seconds, error, attempts, gone, receipt=receipt, wrong=tuple(dict.fromkeys(wrong)))


def by_smtp(config: ServerConfig, envelope: Envelope, deadline: float) -> Fate:
    """As code written for smtplib does."""
    smtp = SMTP(local_hostname=config.local_hostname, timeouts=config.timeouts)
    refused: dict[str, tuple[int, bytes]] = {}

    def send() -> Outcome:
        with smtp.within(deadline):
            smtp.connect(config.host, config.port)
            if config.security is Security.STARTTLS:
                smtp.starttls(context=config.make_ssl_context())
            if config.username is not None and config.password is not None:
                smtp.login(config.username, config.password)
            refused.update(smtp.sendmail(envelope.sender, envelope.recipients, envelope.content))
        return Outcome.PARTIAL if refused else Outcome.SENT

    fate = _told(time.monotonic(), send, receipt_due=False)  # it may fail before there is a message
    try:
        smtp.quit()
    except MailError:
        pass
    return replace(fate, refused=frozenset(refused))


def by_client(config: ServerConfig, envelope: Envelope, deadline: float) -> Fate:
    """A connection of its own."""
    gone: list[object] = []
    with Client(config) as client:
        begin = time.monotonic()
        return _told(
            begin,
            lambda: client.transmit(envelope, deadline=deadline, before_final=gone.append),
            gone,
            receipt_due=False,
        )


def by_kept_client(config: ServerConfig, envelope: Envelope, deadline: float) -> Fate:
    """Over a connection that has served another message, and is replaced unseen where it proves stale."""
    gone: list[object] = []
    with Client(config) as client:
        try:
            client.send(another(envelope), deadline=deadline)
        except MailError:
            pass  # under TLS nobody knows where it ends; then the second one gets a new connection
        begin = time.monotonic()
        return _told(
            begin,
            lambda: client.transmit(envelope, deadline=deadline, before_final=gone.append),
            gone,
            receipt_due=False,
        )


def by_pool(config: ServerConfig, envelope: Envelope, deadline: float) -> Fate:
    """A client leased from a pool."""
    with closing(ClientPool(config, max_size=1)) as pool:
        return _told(time.monotonic(), lambda: pool.send(envelope, deadline=deadline))


def _by_sender(config: ServerConfig, envelope: Envelope, deadline: float, resend: bool) -> Fate:
    retry = RetryPolicy(attempts=3, base=0.002, resend_in_doubt=resend)
    with ThreadedSender(config, workers=1, retry=retry) as sender:
        return _told(time.monotonic(), lambda: sender.send(envelope, deadline=deadline))


def by_sender(config: ServerConfig, envelope: Envelope, deadline: float) -> Fate:
    """With retries of what is surely not sent."""
    return _by_sender(config, envelope, deadline, False)


def by_resending_sender(config: ServerConfig, envelope: Envelope, deadline: float) -> Fate:
    """With retries of what is in doubt as well: the user's choice."""
    return _by_sender(config, envelope, deadline, True)


def by_batch(config: ServerConfig, envelope: Envelope, deadline: float) -> Fate:
    """The middle one of three that go over one connection, as long as it holds."""
    batch = [another(envelope, "v"), envelope, another(envelope, "w")]
    retry = RetryPolicy(attempts=3, base=0.002)
    with ThreadedSender(config, workers=1, retry=retry) as sender:
        begin = time.monotonic()
        report = sender.send_all(batch, deadline=deadline)
        seconds = time.monotonic() - begin
    others = tuple(Other(batch[i], report[i].outcome, report[i].attempts, report[i]) for i in (0, 2))
    wrong = tuple(dict.fromkeys(complaint for receipt in report for complaint in judgement.of_receipt(receipt)))
    own = report[1]
    return Fate(own.outcome, seconds, str(own.error or ""), own.attempts, others=others, receipt=own, wrong=wrong)


def by_raw_smtplib(config: ServerConfig, envelope: Envelope, deadline: float) -> Fate:
    """The standard library's client, whose caller takes an error for "not sent". For control: it comes out wrong."""

    def send() -> Outcome:
        try:
            with smtplib.SMTP(config.host, config.port, config.local_hostname, deadline) as smtp:
                smtp.sendmail(envelope.sender, envelope.recipients, envelope.content)
        except (smtplib.SMTPException, OSError):
            return Outcome.NOT_SENT
        return Outcome.SENT

    return _told(time.monotonic(), send)


def another(envelope: Envelope, letter: str = "w") -> Envelope:
    """A message of the same shape."""
    content = envelope.content.replace(b"Message-ID: <m", f"Message-ID: <{letter}".encode(), 1)
    return Envelope(envelope.sender, envelope.recipients, content)


SMTP_WAY = Way("SMTP", by_smtp)
CLIENT = Way("Client", by_client)
KEPT = Way("Client, second message", by_kept_client, before=1, replaced=True)
POOL = Way("ClientPool", by_pool, dials=True)
SENDER = Way("ThreadedSender", by_sender, replaced=True)
RESENDER = Way("ThreadedSender, resend_in_doubt", by_resending_sender, replaced=True, resends=True)
BATCH = Way("ThreadedSender, batch", by_batch, before=1, after=1, replaced=True)
RAW = Way("smtplib", by_raw_smtplib)

WAYS = (SMTP_WAY, CLIENT, KEPT, POOL, SENDER, RESENDER, BATCH)
