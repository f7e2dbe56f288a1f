"""Arbitrary bytes as replies, arbitrary text as mail: only our own errors, bounded time and memory, a well-formed wire.

What a single reply line, an address or an envelope is made of has its properties in the tests of those modules. Here
they are put together: whole sessions, from the public calls to the bytes that a server reads.
"""

from __future__ import annotations

import dataclasses
import email
import email.policy
import re
import smtplib
import time
import tracemalloc
from collections.abc import Callable
from email.header import Header
from email.message import EmailMessage, Message
from typing import Any

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from tests.reliability.fake_socket import STAGES, FakeSocket, dialled, read_strictly
from threadmail import LMTP, SMTP, Client, Envelope, InvalidEnvelope, MailError, Outcome, ServerConfig, Timeouts
from threadmail._transport.wire import MAX_LINE, MAX_LINES
from threadmail.config import Settings
from threadmail.testing import Drop, ScriptedServer, Send, Serve, Stall

CONFIG = ServerConfig(
    "127.0.0.1",
    25,
    username="ada",
    password="secret",
    local_hostname="me",
    idle_timeout=None,
    timeouts=Timeouts.all(5.0),
)
MAIL = Envelope("a@a.test", ["b@b.test", "c@c.test"], b"Message-ID: <m@a.test>\r\n\r\n.dot\r\n")

#: What smtplib's callers may have to expect beside MailError: smtplib's own, and a text that is no ASCII.
SMTPLIBS = (smtplib.SMTPException, UnicodeEncodeError)


def by_client(fake: FakeSocket) -> Outcome:
    # A config of its own: what refused the login once is not asked again by who shares it, for five minutes.
    with dialled(fake), Client(dataclasses.replace(CONFIG)) as client:
        try:
            return client.send(MAIL).outcome
        except MailError as exc:
            error = exc
    assert str(error).isprintable()
    assert error.receipt is not None
    assert error.receipt.outcome is error.outcome
    return error.outcome


def by_smtp(fake: FakeSocket) -> Outcome:
    with dialled(fake):
        outcome = Outcome.NOT_SENT
        try:
            with SMTP("127.0.0.1", 25, "me", timeouts=CONFIG.timeouts) as smtp:
                smtp.login("ada", "secret")
                refused = smtp.sendmail(MAIL.sender, MAIL.recipients, MAIL.content)
                outcome = Outcome.PARTIAL if refused else Outcome.SENT
        except smtplib.SMTPException as error:
            if outcome is Outcome.NOT_SENT:  # else the farewell was refused, which `with` tells in smtplib's own way
                outcome = getattr(error, "outcome")  # noqa: B009 - fails where the error is not ours
        return outcome


# ---------------------------------------------------------------- arbitrary replies

CODES = (220, 235, 250, 251, 334, 354, 421, 450, 550, 150, 600, 99, 2500)
SCRAPS = (
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"-",
    b"ok",
    b"2.0.0",
    b"\0",
    b"\xff",
    b"\x1b[2J",
    b"=",
    b"Kg==",
)
pieces = st.sampled_from([*(b"%d" % code for code in CODES), *SCRAPS])
replies = st.lists(pieces, max_size=10).map(b"".join) | st.binary(max_size=80)


def whole_reply(data: bytes) -> tuple[int, bytes] | None:
    """The code of the reply that `data` begins with, and what follows it; None if there is none (RFC 5321 §4.2)."""
    code = None
    while True:
        line, found, data = data.partition(b"\n")
        match = re.fullmatch(rb"([1-5][0-9][0-9])(-[^\r\n]*|( [^\r\n]*)?)\r", line)
        if not found or match is None or code not in (None, match[1]):
            return None
        code = match[1]
        if not match[2].startswith(b"-"):
            return int(code), data


def true_outcomes(stage: str, odd: bytes, *, content_whole: bool) -> set[Outcome]:
    """What may be said of a message when a server says `odd` at `stage`, and is good before."""
    if not content_whole:
        return {Outcome.NOT_SENT}
    if stage == "quit":
        return {Outcome.SENT}
    reply = whole_reply(odd)
    if stage != "content" or reply is None or reply[0] // 100 in (1, 3):
        return {Outcome.IN_DOUBT}  # at an earlier stage the server has gone silent since
    return {Outcome.SENT if reply[0] // 100 == 2 else Outcome.NOT_SENT}


@given(st.sampled_from(STAGES), replies, st.booleans(), st.sampled_from([by_client, by_smtp]))
@settings(max_examples=400, deadline=None)
def test_whatever_a_server_says_only_our_own_errors_come_of_it(
    stage: str, odd: bytes, hangs_up: bool, way: Callable[[FakeSocket], Outcome]
) -> None:
    """At each stage; the outcome is true, the connection closed, and what was written until then well-formed."""
    fake = FakeSocket(stage, odd, hangs_up)
    outcome = way(fake)
    assert outcome in true_outcomes(stage, odd, content_whole=fake.content_whole)
    assert fake.closed
    if fake.content_whole:
        assert read_strictly(bytes(fake.said)).content == MAIL.content
    else:
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n", bytes(fake.said))


@given(st.sampled_from(STAGES[:-1]), replies)
@settings(max_examples=100, deadline=None)
def test_nothing_is_said_after_what_is_no_reply(stage: str, odd: bytes) -> None:
    """The next command could meet the rest of it: not even a farewell is written."""
    assume(whole_reply(odd) is None)
    fake = FakeSocket(stage, odd)
    by_client(fake)
    said = bytes(fake.said).split(b"\r\n")
    last = {"greeting": b"", "ehlo": b"ehlo", "second rcpt": b"rcpt", "content": b".", "auth": b"AUTH"}.get(stage)
    assert said[-2 if len(said) > 1 else 0].startswith(stage.encode() if last is None else last)
    assert b"quit" not in said
    assert fake.closed


@given(st.sampled_from(STAGES), replies)
@settings(max_examples=25, deadline=None)
def test_the_same_over_a_real_connection(stage: str, odd: bytes) -> None:
    """A server of flesh and blood, which hangs up behind it."""
    where = {"greeting": "CONNECT", "second rcpt": "RCPT TO:<c@", "content": "."}.get(stage, stage.upper())
    script = (
        [Send(odd), Drop()] if stage == "greeting" else [Serve(auth={"ada": "secret"}, until=where), Send(odd), Drop()]
    )
    with ScriptedServer(script) as server, Client(ServerConfig.from_url(server.url, **KEPT)) as client:
        try:
            outcome = client.send(MAIL, deadline=5.0).outcome
        except MailError as error:
            outcome = error.outcome
        arrived = len(server.messages)
        if stage == "quit":
            client.close()
    true = true_outcomes(stage, odd, content_whole=bool(arrived))
    consent = whole_reply(odd) if stage == "data" else None
    if consent is not None and consent[0] == 354:
        true = true | {Outcome.IN_DOUBT}  # the content left, and nobody knows that it was not read
    assert outcome in true


KEPT: Settings = {"username": "ada", "password": "secret", "local_hostname": "me", "idle_timeout": None}
FLOODS = {
    "a line without an end": b"2" * 4096,
    "a reply without an end": b"250-still there\r\n" * 256,
    "NULs": b"\0" * 4096,
    "empty lines": b"\r\n" * 2048,
    "whole replies": b"250 ok\r\n" * 512,
    "line feeds": b"\n" * 4096,
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_flood_is_bounded_in_time_and_memory(stage: str, flood: str) -> None:
    """An endless reply costs what a reply may have at most, and ends the connection, not the process."""
    fake = FakeSocket(stage, FLOODS[flood], endless=True)
    by_client(FakeSocket())  # what is made once is not counted
    tracemalloc.start()
    try:
        begin = time.monotonic()
        by_client(fake)
        took = time.monotonic() - begin
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fake.closed
    assert fake.taken <= MAX_LINES * MAX_LINE + MAX_LINE
    assert peak < 8 * MAX_LINES * MAX_LINE
    assert took < 5.0


def test_a_flood_over_a_real_connection() -> None:
    """It does not even have to end when the client has gone."""
    with ScriptedServer([Serve(until="MAIL"), Send(b"250-more\r\n" * 100_000), Stall()]) as server:
        with Client(server.config) as client, pytest.raises(MailError, match="more than 256 lines"):
            client.send(MAIL, deadline=5.0)


# ---------------------------------------------------------------- arbitrary text

#: What an injection is made of, between what mail is made of.
LINE_ENDS = ("\r\n", "\n", "\r", "\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r\n.\r\n", "\n.\n", "\r.\r", ".")
MARKS = (" ", "\t", "<", ">", "@", ",", ";", ":", '"', "\\", "(", ")", "[", "]", "=", "=0A", "=?", "?=")
COMMANDS = ("RCPT TO:<evil@x.test>", "\nDATA\n", "SIZE=1", "NOTIFY=NEVER", "BODY=8BITMIME")
HEADERS = ("\r\nBcc: evil@x.test", "Bcc", "Subject", "X-Header", "=?utf-8?q?a=0D=0ABcc:_evil@x.test?=")
WORDS = ("é", "ß", "☃", "\ud800", "a", "b@b.test", "a@a.test", "word", "=?utf-8?b?DQpCY2M6IGV2aWxAeC50ZXN0?=")
risky = st.sampled_from([*LINE_ENDS, *MARKS, *COMMANDS, *HEADERS, *WORDS])
texts = st.lists(risky | st.characters(), max_size=6).map("".join)
plain = st.sampled_from(["a@a.test", "b@b.test", "Ann <a@a.test>", '"x y"@a.test'])
addresses = plain | texts | st.builds("{}@{}".format, texts, texts) | st.builds("{} <b@b.test>".format, texts)
bodies = st.lists(risky | st.characters(), max_size=12).map("".join)


def check(fake: FakeSocket, recipients: int | None = None) -> bytes | None:
    """Read what a good server heard, strictly; returns the content."""
    heard = read_strictly(bytes(fake.said))
    verbs = [re.split(r"[ :]", command, maxsplit=1)[0].lower() for command in heard.commands]
    if "mail" not in verbs:
        assert heard.content is None
        assert set(verbs) <= {"ehlo", "auth", "quit"}, "an error came after the first byte of the message"
        return None
    count = verbs.count("rcpt")
    assert [v for v in verbs if v not in ("ehlo", "auth", "quit")] == ["mail", *["rcpt"] * count, "data"]
    assert recipients is None or 1 <= count <= recipients
    path = r'<((?:"(?:[^"\\\0-\x1f]|\\[ -~])*"|[^\s<>"\\()\[\],;:]+)(?:@(?:\[[^\s\[\]<>]+\]|[^\s<>"\\()\[\],;:@]+))?)?>'
    for verb, command in zip(verbs, heard.commands, strict=True):
        if verb == "mail":
            assert re.fullmatch(rf"mail from:{path}( size=\d+| BODY=8BITMIME| SMTPUTF8)*", command), command
        if verb == "rcpt":
            assert re.fullmatch(rf"rcpt to:{path}", command), command
    assert heard.content is not None
    return heard.content


def fields(content: bytes) -> list[str]:
    """The names in the header, as a reader that knows nothing of us finds them."""
    block = re.split(rb"\r\n\r\n", content, maxsplit=1)[0]
    unfolded = re.sub(rb"\r\n[ \t]", b" ", block)
    return [line.partition(b":")[0].decode("latin-1").strip().lower() for line in unfolded.split(b"\r\n")]


one_of_them = st.one_of(
    st.tuples(addresses, st.just(["b@b.test"]), st.just("body")),
    st.tuples(st.just("a@a.test"), st.lists(addresses, max_size=3) | addresses, st.just("body")),
    st.tuples(st.just("a@a.test"), st.just(["b@b.test", "c@c.test"]), bodies),
)


@given(one_of_them)
@settings(max_examples=200, deadline=None)
def test_no_address_and_no_text_gets_out_of_its_place(mail: tuple[str, Any, str]) -> None:
    """`sendmail` with whatever strings: one MAIL, a RCPT for each recipient, one content, nothing else."""
    sender, recipients, body = mail
    fake = FakeSocket()
    content = "Subject: x\r\n\r\n" + body
    raw = content.encode("utf-8", "surrogatepass")
    with dialled(fake):
        with SMTP("127.0.0.1", 25, "me", timeouts=CONFIG.timeouts) as smtp:
            try:
                smtp.sendmail(sender, recipients, raw)
            except SMTPLIBS:
                assert check(fake) is None
                event("refused")
                return
    event("sent")
    arrived = check(fake, recipients=1 if isinstance(recipients, str) else len(recipients))
    assert arrived is not None
    assert re.split(rb"\r\n|\r|\n", arrived)[:-1] == _lines(raw)


def _lines(raw: bytes) -> list[bytes]:
    lines = re.split(rb"\r\n|\r|\n", raw)
    return lines[:-1] if lines[-1] == b"" else lines


@given(st.lists(texts, max_size=2), st.lists(texts, max_size=2))
@settings(max_examples=100, deadline=None)
def test_options_are_parameters_or_refused(mail_options: list[str], rcpt_options: list[str]) -> None:
    """Each option is one word behind the path, or an error before the first byte."""
    fake = FakeSocket()
    with dialled(fake):
        with SMTP("127.0.0.1", 25, "me", timeouts=CONFIG.timeouts) as smtp:
            try:
                smtp.sendmail("a@a.test", ["b@b.test"], b"x", mail_options, rcpt_options)
            except SMTPLIBS:
                assert check(fake) is None
                event("refused")
                return
    event("sent")
    heard = read_strictly(bytes(fake.said))
    assert heard.commands[1].split(" ")[2:][-len(mail_options) or 9 :] == mail_options
    assert heard.commands[2].split(" ")[2:] == rcpt_options
    assert [c[:4].lower() for c in heard.commands] == ["ehlo", "mail", "rcpt", "data", "quit"]


CALLS: dict[str, Callable[[SMTP, str], object]] = {
    "docmd": lambda smtp, text: smtp.docmd(text),
    "docmd with arguments": lambda smtp, text: smtp.docmd("NOOP", text),
    "putcmd": lambda smtp, text: smtp.putcmd("NOOP", text),
    "helo": lambda smtp, text: smtp.helo(text),
    "ehlo": lambda smtp, text: smtp.ehlo(text),
    "verify": lambda smtp, text: smtp.verify(text),
    "expn": lambda smtp, text: smtp.expn(text),
    "help": lambda smtp, text: smtp.help(text),
    "mail": lambda smtp, text: smtp.mail(text),
    "mail options": lambda smtp, text: smtp.mail("a@a.test", [text]),
    "rcpt": lambda smtp, text: smtp.rcpt(text),
    "rcpt options": lambda smtp, text: smtp.rcpt("b@b.test", [text]),
    "login": lambda smtp, text: smtp.login(text, text),
}


@given(st.sampled_from(sorted(CALLS)), texts | addresses)
@settings(max_examples=300, deadline=None)
def test_each_call_writes_one_line_at_most(name: str, text: str) -> None:
    """Whatever its argument: one command of one line, or an error and nothing written."""
    fake = FakeSocket()
    with dialled(fake):
        smtp = SMTP("127.0.0.1", 25, "me", timeouts=CONFIG.timeouts)
        try:
            if name == "login":
                smtp.ehlo()
            before = len(fake.said)
            raised = False
            try:
                CALLS[name](smtp, text)
            except (*SMTPLIBS, ValueError):
                raised = True
            event(f"{name}: {'refused' if raised else 'done'}")
            written = bytes(fake.said[before:])
        finally:
            smtp.close()
    assert written.count(b"\n") == written.count(b"\r") == written.count(b"\r\n")
    assert written.count(b"\r\n") == (0 if raised and not written else 1)
    assert not written or written.endswith(b"\r\n")
    assert b"\0" not in written


def modern(name: str, subject: str, display: str, body: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "a@a.test"
    message["To"] = f"{display} <b@b.test>"
    message["Subject"] = subject
    message[name] = subject
    message.set_content(body)
    return message


def compat32(name: str, subject: str, display: str, body: str) -> Message:
    message = Message()
    message["From"] = "a@a.test"
    message["To"] = f"{display} <b@b.test>"
    message["Subject"] = Header(subject, "utf-8") if len(subject) % 2 else subject  # type: ignore[assignment]
    message[name] = subject
    message.set_payload(body)
    return message


def read(name: str, subject: str, display: str, body: str) -> Message:
    text = f"From: a@a.test\nTo: {display} <b@b.test>\nSubject: {subject}\n{name}: {subject}\n\n{body}"
    policy = email.policy.default if len(subject) % 2 else email.policy.compat32
    return email.message_from_bytes(text.encode("utf-8", "surrogatepass"), policy=policy)


parts = st.one_of(
    st.tuples(texts, st.just("hello"), st.just("Bob"), st.just("body")),
    st.tuples(st.just("X-A"), texts, st.just("Bob"), st.just("body")),
    st.tuples(st.just("X-A"), st.just("hello"), texts, st.just("body")),
    st.tuples(st.just("X-A"), st.just("hello"), st.just("Bob"), bodies),
    st.tuples(texts, texts, texts, bodies),
)


@given(st.sampled_from([modern, compat32, read]), parts, st.sampled_from(["client", "smtp"]))
@settings(max_examples=200, deadline=None)
def test_no_header_gets_a_line_of_its_own(
    build: Callable[..., Message], text: tuple[str, str, str, str], way: str
) -> None:
    """Subjects, display names, header names, bodies: a field is a field, and what it holds opens no other one."""
    try:
        message = build(*text)
    except Exception:  # noqa: BLE001 - the email package does not take it
        assume(False)
    fake = FakeSocket()
    refused, ours = False, True
    with dialled(fake):
        try:
            if way == "client":
                with Client(CONFIG) as client:
                    client.send(message)
            else:
                with SMTP("127.0.0.1", 25, "me", timeouts=CONFIG.timeouts) as smtp:
                    smtp.send_message(message)
        except SMTPLIBS as error:
            refused = True
            ours = isinstance(error, MailError)
    assert ours or way == "smtp"
    arrived = check(fake)
    assert (arrived is None) == refused
    event("refused" if refused else "sent")
    if arrived is None:
        return
    given_names = {key.strip().lower() for key in message}
    added = {"date", "message-id", "mime-version", "content-type", "content-transfer-encoding"}
    assert set(fields(arrived)) <= (given_names | added) - {"bcc", "resent-bcc"}
    assert set(fields(arrived)) >= {"from", "to"}


@given(st.binary(max_size=200) | bodies.map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=100, deadline=None)
def test_bytes_that_are_sent_as_they_are_arrive_as_they_were(body: bytes) -> None:
    """But for the line ends: what a server un-stuffs is what went in, and it ends where it should."""
    fake = FakeSocket()
    raw = b"From: a@a.test\r\nTo: b@b.test\r\n\r\n" + body
    with dialled(fake), Client(CONFIG) as client:
        try:
            client.send(raw)
        except MailError:
            assert check(fake) is None
            return
    arrived = check(fake)
    assert arrived is not None
    assert arrived.split(b"\r\n")[:-1] == _lines(raw)


def test_lmtp_has_the_same_guard() -> None:
    """It greets in its own way, and that is all that differs."""
    fake = FakeSocket()
    with dialled(fake):
        smtp = LMTP("127.0.0.1", 24, "me", timeouts=CONFIG.timeouts)
        with pytest.raises(SMTPLIBS):
            smtp.sendmail("a@a.test\r\nRCPT TO:<evil@x.test>", "b@b.test", b"x")
        smtp.close()
    assert bytes(fake.said) == b""


@pytest.mark.parametrize("where", ["From", "To", "Cc", "Bcc", "Reply-To", "Subject", "body"])
def test_half_a_character_is_our_own_error(where: str) -> None:
    """A lone surrogate, as a file name or a damaged database holds it, is nothing that a wire could carry."""
    message = Message()
    message["From"], message["To"] = "a@a.test", "b@b.test"
    if where == "body":
        message.set_payload("x\ud800")
    else:
        del message[where]
        message[where] = "\ud800 <b@b.test>"
    with pytest.raises(InvalidEnvelope, match="cannot be written"):
        Envelope.of(message)
