"""A user's program, for type checkers: nobody runs it.

mypy reads it with the suite (`files` in setup.cfg), in strict mode, where an ignored error that is none is an error
itself: so each `type: ignore` says that a mistake of that kind is found. pyright, strict, has nothing against it:
`tox -e pyright`.
"""

# pyright: strict

from __future__ import annotations

import math
import ssl
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, as_completed
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING

import threadmail
from threadmail import (
    LMTP,
    SMTP,
    SMTP_SSL,
    Client,
    ClientPool,
    ClientStats,
    ConnectFailed,
    Credentials,
    Deadline,
    DeliveryFailed,
    Envelope,
    MailError,
    Message,
    Outcome,
    Phase,
    PoolStats,
    Receipt,
    RecipientsRefused,
    Reply,
    ReplyError,
    Report,
    RetryPolicy,
    Security,
    SenderRefused,
    SenderStats,
    SendFuture,
    ServerConfig,
    ThreadedSender,
    Throttle,
    Timeouts,
    Unsent,
)
from threadmail.testing import (
    CapturedMessage,
    CaptureServer,
    Cut,
    FaultProxy,
    MessageList,
    Plan,
    ScriptedServer,
    Serve,
    TestCA,
    ehlo,
    goodbye,
    greeting,
    transaction,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack, assert_type

    from threadmail.config import Settings


def letters(readers: Iterable[str]) -> Iterator[EmailMessage]:
    for reader in readers:
        letter = EmailMessage()
        letter["From"], letter["To"], letter["Subject"] = "shop@example.com", reader, "Your order"
        letter.set_content("It is on its way.")
        yield letter


# What a user writes -------------------------------------------------------------------------------------------------


def token() -> Credentials:
    return "user", "a token that expires"


def configs(context: ssl.SSLContext) -> list[ServerConfig]:
    by_hand = ServerConfig(
        "mail.example.com",
        security=Security.STARTTLS,
        credentials=token,
        auth="XOAUTH2",
        ssl_context=context,
        timeouts=Timeouts(connect=5, final=None),
        max_age=None,
    )
    return [
        by_hand,
        ServerConfig.of("smtp://localhost"),
        ServerConfig.from_env("MAIL_URL"),
        ServerConfig.from_url("smtps://user@mail.example.com", window=8, without={"chunking"}, max_age=60),
    ]


def configured(url: str, **settings: Unpack[Settings]) -> ServerConfig:
    return ServerConfig.from_url(url, **settings)


def one_by_one(server: ServerConfig | str, message: Message) -> Reply | None:
    with Client(server) as client, client.sync_root:
        receipt = client.send(message, deadline=20)
        assert_type(receipt, Receipt)
        assert_type(receipt.outcome, Outcome)
        assert_type(receipt.accepted, "tuple[str, ...]")
        assert_type(receipt.refused, "dict[str, Reply]")
        assert_type(receipt.error, "MailError | None")
        assert_type(client.stats(), ClientStats)
        assert_type(client.noop(deadline=Deadline.after(5)), Reply)
        return receipt.reply


def pooled(pool: ClientPool, messages: Iterable[Message]) -> Report:
    with pool.lease(timeout=math.inf) as client:
        assert_type(client, Client)
        report = client.send_all(messages)
    assert_type(pool.stats(), PoolStats)
    assert_type(report[0], Receipt)
    assert_type(report[1:], Report)
    assert_type(report.counts(), "dict[Outcome, int]")
    for receipt in report.failures:
        assert_type(receipt, Receipt)
    return report.raise_for_failures()


def in_threads(server: str, readers: list[str]) -> list[Unsent]:
    def seen(receipt: Receipt) -> None:
        print(receipt.message_id, receipt.to_dict())

    def on_the_way(settled: int, total: int | None) -> None:
        print(settled, total)

    letter = Envelope.from_file(Path("newsletter.eml"))
    sender = ThreadedSender(
        server, workers=8, throttle=Throttle(10, per=1.0), retry=RetryPolicy(attempts=5), on_receipt=seen
    )
    with sender:
        report = sender.send_all((letter.for_recipients(reader) for reader in readers), progress=on_the_way)
        assert_type(report, Report)
        receipts = sender.send_each(letters(readers), deadline=600)
        for receipt in receipts:
            assert_type(receipt, Receipt)
        receipts.stop()
        futures: list[SendFuture] = [sender.submit(letter, tag=number) for number in range(3)]
        for future in as_completed(futures):
            assert_type(future.result(), Receipt)
        plain: Future[Receipt] = futures[0]
        plain.add_done_callback(lambda done: print(done.exception()))
        assert_type(sender.abort(futures[1]), bool)
        assert_type(sender.stats(), SenderStats)
        assert_type(sender.config, ServerConfig)
        return sender.close(drain=False, timeout=5)


def told(error: MailError) -> bool:
    assert_type(error.phase, "Phase | None")
    assert_type(error.receipt, "Receipt | None")
    assert_type(error.transient, bool)
    if isinstance(error, RecipientsRefused):
        assert_type(error.recipients, "dict[str, tuple[int, bytes]]")
    if isinstance(error, ReplyError):
        assert_type(error.smtp_code, int)
        assert_type(error.smtp_error, bytes)
    if isinstance(error, SenderRefused):
        assert_type(error.sender, str)
    if isinstance(error, ConnectFailed):
        assert_type(error.errno, "int | None")
    if isinstance(error, DeliveryFailed):
        assert_type(error.report, Report)
    return error.may_resend and error.phase is not Phase.FINAL


def as_smtplib() -> None:
    with SMTP("localhost", 25, timeouts=Timeouts()) as smtp, SMTP_SSL("localhost", context=None) as secured:
        smtp.starttls(context=ssl.create_default_context())
        smtp.login("user", "password", mechanism="PLAIN")
        assert_type(smtp.sendmail("a@example.com", ["b@example.com"], b"..."), "dict[str, tuple[int, bytes]]")
        assert_type(secured.noop(deadline=5), "tuple[int, bytes]")
        assert_type(secured.context, ssl.SSLContext)
    try:
        LMTP("/run/lmtp").connect("localhost", 24, deadline=3)
    except threadmail.TimedOut as error:
        assert_type(error.outcome, Outcome)
    except threadmail.errors.MailError as error:
        told(error)


def tested(threadmail_outbox: MessageList) -> list[str]:
    ca = TestCA()
    with CaptureServer(tls="starttls", ca=ca, auth={"user": "password"}) as server, Client(server.config) as client:
        client.send(next(letters(["ada@example.test"])))
        [mail] = server.wait_for(1)
        assert_type(mail, CapturedMessage)
        assert_type(mail.message, EmailMessage)
        assert_type(server.outbox, MessageList)
    with ScriptedServer([greeting(), ehlo("PIPELINING"), transaction(final="451 later"), goodbye()]) as scripted:
        assert_type(scripted.url, str)
        with FaultProxy(scripted, Plan(to_server=[Cut(after=100)])) as proxy:
            assert_type(proxy.reroute(scripted.config), ServerConfig)
    with ScriptedServer([Serve(auth={"user": "password"})], last="repeat") as good:
        good.wait_for_connections(1, timeout=2)
    return [mail.helo for mail in threadmail_outbox]


# What a user gets wrong ---------------------------------------------------------------------------------------------


def mistakes(url: str, message: Message, future: SendFuture) -> None:
    ServerConfig.from_url(url, max_mesages=500)  # type: ignore[call-arg]  # misspelt
    ServerConfig.from_url(url, window="8")  # type: ignore[arg-type]  # as from a file
    ServerConfig(url, user="me")  # type: ignore[call-arg]
    configured(url, idle_time=1)  # type: ignore[call-arg]
    Client(url, timeout=5)  # type: ignore[call-arg]
    ClientPool(url, size=4)  # type: ignore[call-arg]
    ThreadedSender(url, worker=4)  # type: ignore[call-arg]
    ThreadedSender(url, retry=5)  # type: ignore[arg-type]
    SMTP(url, time_out=5)  # type: ignore[call-arg]
    SMTP_SSL(url, sync_roots=None)  # type: ignore[call-arg]
    LMTP(url, time_outs=None)  # type: ignore[call-arg]
    CaptureServer(tsl="none")  # type: ignore[call-arg]
    CaptureServer(tls="ssl")  # type: ignore[arg-type]
    Client(url).send("Subject: as text")  # type: ignore[arg-type]
    Client(url).send_all(message)  # type: ignore[arg-type]
    future.result().state  # type: ignore[attr-defined]  # noqa: B018
    threadmail.Cilent  # type: ignore[attr-defined]  # noqa: B018
