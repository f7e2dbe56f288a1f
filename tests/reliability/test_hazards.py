"""What somebody else wrote - an address, a header, a body, a reply - never becomes a command, a header or a terminal's.

Each hazard is shown where it would hurt: a user's call on one end, the bytes on a real socket at the other. What single
modules promise about the same hazards is tested with them; docs/hazards.md lists both.
"""

from __future__ import annotations

import base64
import email
import email.policy
import json
import logging
import re
import tracemalloc
from collections.abc import Callable, Iterator
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.mail import envelope
from threadmail import (
    LMTP,
    SMTP,
    Client,
    Envelope,
    InvalidAddress,
    InvalidConfig,
    InvalidEnvelope,
    MailError,
    NotSupported,
    Outcome,
    ServerConfig,
    ThreadedSender,
)
from threadmail._message.sevenbit import seven_bit
from threadmail.cli import main
from threadmail.testing import Expect, Peer, Reply, Script, ScriptedServer, Serve, Step, ehlo, greeting

ANN, BOB, EVE = "ann@x.test", "bob@x.test", "eve@evil.test"
BODY = b"From: ann@x.test\r\nTo: bob@x.test\r\nSubject: x\r\n\r\nbody\r\n"
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


def config_of(server: ScriptedServer, **values: Any) -> ServerConfig:
    return ServerConfig(server.host, server.port, **{"local_hostname": "test", **values})


def smtp_of(server: ScriptedServer) -> SMTP:
    return SMTP(server.host, server.port, "test", timeout=10.0)


def commands(server: ScriptedServer) -> list[str]:
    return [line for connection in server.received for line in connection]


def wire(server: ScriptedServer) -> bytes:
    """Everything that came, in order."""
    return b"".join(entry.data for entry in server.transcript if entry.direction == "received")


def contents(server: ScriptedServer) -> list[bytes]:
    """What was written after each DATA, the lone dot included, before anybody un-stuffed it."""
    found = []
    for before, entry in zip(server.transcript, server.transcript[1:], strict=False):
        if entry.direction == "received" and before.data.startswith(b"354"):
            found.append(entry.data)
    return found


# ---------------------------------------------------------------- commands

LINE_ENDS = ["\r\n", "\n", "\r", "\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]

SMUGGLERS: dict[str, Callable[[SMTP, str], object]] = {
    "sender": lambda c, evil: c.sendmail(evil, BOB, BODY),
    "sender's name": lambda c, evil: c.sendmail(f"{evil} <{ANN}>", BOB, BODY),
    "recipient": lambda c, evil: c.sendmail(ANN, [BOB, evil], BODY),
    "recipient's name": lambda c, evil: c.sendmail(ANN, f"{evil} <{BOB}>", BODY),
    "option of MAIL": lambda c, evil: c.sendmail(ANN, BOB, BODY, mail_options=[evil]),
    "option of RCPT": lambda c, evil: c.sendmail(ANN, BOB, BODY, rcpt_options=[evil]),
    "given to send_message": lambda c, evil: c.send_message(email.message_from_bytes(BODY), ANN, [evil]),
    "mail()": lambda c, evil: c.mail(evil),
    "mail() option": lambda c, evil: c.mail(ANN, [evil]),
    "rcpt()": lambda c, evil: c.rcpt(evil),
    "rcpt() option": lambda c, evil: c.rcpt(ANN, [evil]),
    "verify()": lambda c, evil: c.verify(evil),
    "expn()": lambda c, evil: c.expn(evil),
    "help()": lambda c, evil: c.help(evil),
    "ehlo()": lambda c, evil: c.ehlo(evil),
    "helo()": lambda c, evil: c.helo(evil),
    "docmd()": lambda c, evil: c.docmd("NOOP", evil),
    "auth()": lambda c, evil: c.auth(f"PLAIN{evil}", lambda challenge=None: ""),
}


@pytest.mark.parametrize("place", SMUGGLERS)
def test_no_argument_becomes_a_command(server: ScriptedServer, place: str) -> None:
    """Whatever might be taken for a line end: refused before a byte of it is written, and the session goes on."""
    with smtp_of(server) as client:
        client.ehlo()
        for end in LINE_ENDS:
            with pytest.raises((MailError, UnicodeEncodeError)) as info:
                SMUGGLERS[place](client, f"a@x.test{end}RCPT TO:<{EVE}>")
            assert isinstance(info.value, ValueError)
            client.rset()
        assert client.noop()[0] == 250
    assert b"evil" not in wire(server)
    assert {line.split()[0].upper() for line in commands(server)} <= {"EHLO", "RSET", "NOOP", "QUIT"}


@pytest.mark.parametrize(
    "evil", [f"<{BOB}> SIZE=1", f"{BOB}> NOTIFY=NEVER ORCPT=<{EVE}", f"{BOB} <{EVE}", "a b@x.test", f"<{BOB}><{EVE}>"]
)
def test_no_address_adds_a_parameter_or_another_address(server: ScriptedServer, evil: str) -> None:
    """3.13's smtplib let `<b@x> SIZE=1` through, and made `b@x.testevil` of `b@x.test evil`."""
    with Client(config_of(server)) as client, pytest.raises(InvalidAddress):
        client.send(Envelope(ANN, [evil], BODY))
    with smtp_of(server) as smtp:
        smtp.ehlo()
        for call in (lambda: smtp.sendmail(ANN, evil, BODY), lambda: smtp.mail(evil), lambda: smtp.rcpt(evil)):
            with pytest.raises(InvalidAddress):
                call()
    assert commands(server) == ["ehlo test", "QUIT"]


@pytest.mark.parametrize("name", ["a b", "jürgen", "a\r\nMAIL FROM:<>", "a\tb", "\x1b[2J", " ", "a\0"])
def test_the_name_in_ehlo_is_one_word(server: ScriptedServer, name: str) -> None:
    """It may come from a settings file; nothing is written before it is one."""
    with pytest.raises(InvalidConfig, match="no host name"):
        config_of(server, local_hostname=name)
    client = SMTP(server.host, server.port, local_hostname=name, timeout=10.0)
    for call in (client.ehlo, client.helo, lambda: client.sendmail(ANN, BOB, BODY)):
        with pytest.raises((InvalidConfig, InvalidEnvelope)):
            call()
    client.close()
    assert commands(server) == []


@pytest.mark.parametrize("url", [
    "smtp://mx.example.test%0d%0aRSET", "smtp://mx.example.test/%0aRSET", "smtp://mx example.test",
    "smtp://mx.example.test:25%0a", "smtp://mx.example.test?local_hostname=a%0d%0aMAIL",
    "smtp://mx.example.test?local_hostname=a%20b", "smtp://mx.example.test\n?timeout=1",
])  # fmt: skip
def test_no_part_of_a_url_becomes_a_command(url: str) -> None:
    with pytest.raises(InvalidConfig):
        ServerConfig.from_url(url)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize(
    ("user", "password"),
    [("ann\0root", "pw"), ("ann", "pw\0"), ("ann\1auth=Bearer x\1\1", "pw"), ("ann", "token\1host=evil")],
)
def test_credentials_cannot_forge_the_fields_of_a_response(mechanism: str, user: str, password: str) -> None:
    """NUL and ^A separate them (RFC 4616, RFC 7628): "ann\\0root" would log in as somebody else. Nothing is written."""
    script: Script = [greeting(), ehlo(f"AUTH {mechanism}"), Serve()]
    with ScriptedServer(script) as server, smtp_of(server) as client:
        with pytest.raises(InvalidConfig, match="control character") as info:
            client.login(user, password, mechanism=mechanism)
        assert password not in str(info.value)
    assert commands(server) == ["ehlo test", "QUIT"]


# ---------------------------------------------------------------- headers

ENCODED = [f"=?utf-8?{form}?=" for form in (
    f"q?x=0D=0ABcc:_{EVE}", f"q?x=0ABcc:_{EVE}", f"q?x=0DBcc:_{EVE}",
    "b?" + base64.b64encode(f"x\r\nBcc: {EVE}\r\n\r\nanother body".encode()).decode(),
)]  # fmt: skip


def parsed(kind: str, field: str, value: str) -> Message:
    """A message that came from elsewhere, with `value` in one field."""
    fields = {"From": ANN, "To": BOB, "Subject": "x", field: value}
    text = "".join(f"{name}: {content}\r\n" for name, content in fields.items()) + "\r\nbody\r\n"
    policy: Any = email.policy.default if kind == "EmailMessage" else email.policy.compat32
    return email.message_from_string(text, policy=policy)


def sent_or_refused(send: Callable[[], object]) -> None:
    """Send without the injected field, or not at all."""
    try:
        send()
    except InvalidEnvelope:
        pass


@pytest.mark.parametrize("kind", ["EmailMessage", "compat32"])
@pytest.mark.parametrize("field", ["Subject", "To", "From", "Reply-To", "X-Note"])
@pytest.mark.parametrize("encoded", ENCODED)
def test_an_encoded_line_end_injects_no_header(server: ScriptedServer, kind: str, field: str, encoded: str) -> None:
    """CVE-2024-6923: on Python up to 3.12.4 the generator writes what it decoded, and a Bcc line is on the wire."""
    value = f"{encoded} <{BOB}>" if field in ("To", "From", "Reply-To") else encoded
    with Client(config_of(server)) as client:
        sent_or_refused(lambda: client.send(parsed(kind, field, value)))
    with smtp_of(server) as smtp:
        sent_or_refused(lambda: smtp.send_message(parsed(kind, field, value), ANN, [BOB]))
    for mail in server.messages:
        head = mail.content.partition(b"\r\n\r\n")[0]
        assert not re.search(rb"(?im)^bcc[ \t]*:", head.replace(b"\r\n", b"\n"))
        assert b"another body" not in mail.content
    assert EVE not in "".join(commands(server))


@pytest.mark.parametrize("kind", [MIMEText, EmailMessage])
@pytest.mark.parametrize("name", [f"X\r\nBcc: {EVE}\r\nY", f"X: y\nBcc: {EVE}\nZ", "X Y", "X:", "", "Ünicode", "X\0"])
def test_a_header_name_injects_no_header(server: ScriptedServer, kind: Any, name: str) -> None:
    """The generators check values and not names, on 3.13.0 too; an application may take names from a form."""
    message = kind("body") if kind is MIMEText else kind()
    message["From"], message["To"] = ANN, BOB

    def send() -> None:
        message.add_header(name, "x")
        with Client(config_of(server)) as client:
            client.send(message)

    with pytest.raises(ValueError):  # noqa: PT011 - ours, or that of a newer EmailMessage
        send()
    assert wire(server) == b""


# ---------------------------------------------------------------- the end of data

#: What lenient servers were found to take for the end of data (SMTP smuggling, 2023), and kin of it.
ENDS = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r.\r\n", b"\r.\r", b"\n.\r", b"\r\n.\r\n", b"\r\r\n.\r\r\n",
        b"\n\n.\n\n", b"\r\n.\r\n.\r\n", b"\n.", b"\r.", b"\r\n..\r\n"]  # fmt: skip
SMUGGLED = b"MAIL FROM:<eve@evil.test>\r\nRCPT TO:<bob@x.test>\r\nDATA\r\nSubject: owned\r\n\r\nowned\r\n.\r\n"
BLOCK = 65536


def to_the_wire(server: ScriptedServer, way: str, content: bytes) -> None:
    if way == "Client":
        with Client(config_of(server)) as client:
            client.send(Envelope(ANN, [BOB], content))
        return
    with smtp_of(server) as smtp:
        if way == "sendmail":
            smtp.sendmail(ANN, BOB, content)
        else:
            smtp.ehlo()
            smtp.mail(ANN)
            smtp.rcpt(BOB)
            assert smtp.data(content)[0] == 250


def require_one_end(server: ScriptedServer, sent: bytes) -> None:
    """However a server reads line ends, there is one end of data, and it is where it belongs."""
    (raw,) = contents(server)
    assert [m.start() for m in re.finditer(rb"(?<=[\r\n])\.(?=[\r\n])", raw)] == [len(raw) - 3]
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", raw)
    unstuffed = re.sub(rb"(?m)^\.", b"", raw[: -len(b".\r\n")].replace(b"\r\n", b"\n"))
    wanted = sent.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert unstuffed == wanted if wanted.endswith(b"\n") else unstuffed == wanted + b"\n"
    assert EVE not in "".join(commands(server))


@pytest.mark.parametrize("way", ["Client", "sendmail", "data"])
@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_no_content_ends_the_data_early(server: ScriptedServer, way: str, end: bytes) -> None:
    """Bare line ends become CRLF before dots are stuffed, so nothing looks like an end to anybody."""
    content = b"Subject: x\r\n\r\nbefore" + end + SMUGGLED
    to_the_wire(server, way, content)
    require_one_end(server, content)


@pytest.mark.parametrize("end", [b"\r\n.\r\n", b"\n.\n", b"\r.\r\n"], ids=repr)
@pytest.mark.parametrize("offset", range(-7, 8))
def test_nor_where_it_meets_the_border_of_a_block(server: ScriptedServer, end: bytes, offset: int) -> None:
    """Content is written in blocks of 64 KiB, the last one apart: stuffing must not depend on where one ends."""
    head = b"Subject: x\r\n\r\n"
    content = head + b"x" * (BLOCK - len(head) + offset) + end + SMUGGLED
    content += b"y" * (2 * BLOCK - len(content) + offset) + end + SMUGGLED
    to_the_wire(server, "Client", content)
    require_one_end(server, content)


@pytest.mark.parametrize("way", ["Client", "sendmail", "data"])
@pytest.mark.parametrize("hidden", [b"\r\n\0.\r\n", b"\n\0\0.\n", b"\r\0.\r"], ids=repr)
def test_a_nul_cannot_hide_the_end_of_data(server: ScriptedServer, way: str, hidden: bytes) -> None:
    """For a server that drops NULs it is a lone dot, for others a line with a NUL: no stuffing suits both."""
    with pytest.raises(InvalidEnvelope, match=r"NUL in front of a dot in line [34]"):
        to_the_wire(server, way, b"Subject: x\r\n\r\nbefore" + hidden + SMUGGLED)
    assert contents(server) == []


def test_other_control_characters_arrive_as_they_are(server: ScriptedServer) -> None:
    """They are the author's, end no line, and hide no dot. (That a terminal is not driven is up to who shows them.)"""
    body = bytes(c for c in range(256) if c not in b"\r\n") + b"\r\n" + b"\x0b.\x0c\r\n" + b".\0\r\n"
    with Client(config_of(server)) as client:
        client.send(Envelope(ANN, [BOB], b"Subject: x\r\n\r\n" + body))
    assert server.messages[0].content == b"Subject: x\r\n\r\n" + body


@pytest.mark.parametrize("where", ["header", "body"])
@pytest.mark.parametrize("length", [998, 999, 2048, BLOCK + 17])
def test_long_lines_are_neither_cut_nor_folded(server: ScriptedServer, where: str, length: int) -> None:
    """RFC 5321 §4.5.3.1.6 leaves it to the server to refuse them; to fold one would break signatures and HTML alike."""
    long = b"x" * (length - 6)
    content = (
        (b"A: b\r\nX-L: " + long + b" \r\n\r\nbody\r\n") if where == "header" else b"A: b\r\n\r\n" + long + b"\r\n"
    )
    with Client(config_of(server)) as client:
        client.send(Envelope(ANN, [BOB], content))
    assert server.messages[0].content == content


# ---------------------------------------------------------------- Bcc

BLIND = "blind@x.test"


def with_bcc(kind: Any, field: str) -> Message:
    message = kind("body\n") if kind is MIMEText else kind()
    resent = "Resent-" if field.lower().startswith("resent") else ""
    if resent:
        message["Resent-Date"] = "Sun, 22 Nov 2026 12:00:00 +0000"
    message[f"{resent}From"], message[f"{resent}To"], message[field] = ANN, BOB, BLIND
    return message


@pytest.mark.parametrize("way", ["Client", "Client, bytes", "sender", "send_message"])
@pytest.mark.parametrize("field", ["Bcc", "BCC", "Resent-Bcc"])
@pytest.mark.parametrize("kind", [MIMEText, EmailMessage])
def test_bcc_is_never_on_the_wire_and_gets_its_mail(server: ScriptedServer, kind: Any, field: str, way: str) -> None:
    """RFC 5322 §3.6.3. RCPT has to name it; no header does."""
    message = with_bcc(kind, field)
    if way == "Client":
        with Client(config_of(server)) as client:
            client.send(message)
    elif way == "Client, bytes":
        with Client(config_of(server)) as client:
            client.send(message.as_bytes())
    elif way == "sender":
        with ThreadedSender(config_of(server), workers=1) as sender:
            sender.send(message)
    else:
        with smtp_of(server) as smtp:
            smtp.send_message(message)
    (mail,) = server.messages
    assert set(mail.recipients) == {BOB, BLIND}
    (raw,) = contents(server)
    assert b"bcc" not in raw.lower()
    assert BLIND.encode() not in raw
    assert message[field] == BLIND, "the caller's message is left as it was"


def test_bcc_is_taken_out_of_bytes_given_to_sendmail(server: ScriptedServer) -> None:
    """As legacy code has it: a message written out by hand, with recipients of its own."""
    with smtp_of(server) as smtp:
        smtp.sendmail(ANN, [BOB, BLIND], f"From: {ANN}\nbcc :\n {BLIND}\nResent-Bcc: {BLIND}\nTo: {BOB}\n\nbody\n")
    (raw,) = contents(server)
    assert raw == b"From: ann@x.test\r\nTo: bob@x.test\r\n\r\nbody\r\n.\r\n"


# ---------------------------------------------------------------- eight bits

GREEK = "Grüße, Καλημέρα\n" * 3
NO_8BIT: Script = [greeting(), ehlo("PIPELINING"), Serve()]


def letter(**fields: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Message-ID"] = ANN, BOB, "<1@x.test>"
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    message.set_content(GREEK, cte="8bit")
    return message


def received(server: ScriptedServer) -> tuple[bytes, EmailMessage]:
    content = server.messages[0].content
    read = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(read, EmailMessage)
    return content, read


@pytest.mark.parametrize("script", [NO_8BIT, [greeting(), Expect("EHLO"), Reply("502 no"), Serve()]],
                         ids=["EHLO", "HELO"])  # fmt: skip
def test_without_8bitmime_text_is_recoded(script: Script) -> None:
    """RFC 6152 §3: to send it as it is, as smtplib does, is not allowed; the recipient reads the same."""
    with ScriptedServer(script) as server, Client(config_of(server)) as client:
        client.send(letter(Subject="Grüße"))
    content, read = received(server)
    assert content.isascii()
    assert read.get_content().replace("\r\n", "\n") == GREEK
    assert read["Subject"] == "Grüße"
    assert not any("BODY=" in line for line in commands(server))


def test_with_8bitmime_nothing_is_recoded(server: ScriptedServer) -> None:
    """Byte for byte, and declared."""
    ready = Envelope.of(letter())
    with Client(config_of(server)) as client:
        client.send(ready)
    assert server.messages[0].content == ready.content
    assert not ready.content.isascii()
    assert any("BODY=8BITMIME" in line for line in commands(server))


def test_8bitmime_may_be_switched_off_for_a_server_that_gets_it_wrong(server: ScriptedServer) -> None:
    with Client(config_of(server, without=frozenset({"8bitmime"}))) as client:
        client.send(letter())
    assert received(server)[0].isascii()


def test_parts_are_recoded_each_for_itself() -> None:
    """Text, HTML, a binary part declared binary, an attached message; what is in base64 already stays as it is."""
    message = letter(Subject="x")
    message.add_alternative("<p>Grüße</p>", subtype="html", cte="8bit")
    message.add_attachment(bytes(range(256)), maintype="application", subtype="octet-stream", filename="b.bin")
    message.add_attachment(letter(Subject="inside"))
    ready = Envelope.of(message).content
    recoded = seven_bit(ready)
    assert recoded.isascii()
    before, after = (list(email.message_from_bytes(c, policy=email.policy.default).walk()) for c in (ready, recoded))
    assert [p.get_content_type() for p in before] == [p.get_content_type() for p in after]
    assert [p.get_payload(decode=True) for p in before] == [p.get_payload(decode=True) for p in after]
    assert not any(p.get("Content-Transfer-Encoding") in ("8bit", "binary") for p in after)


def test_text_in_no_declared_charset_is_said_to_be_so() -> None:
    """RFC 1428: what came without MIME fields gets them, and no charset is made up."""
    read = email.message_from_bytes(seven_bit(b"Subject: x\r\n\r\nGr\xfc\xdfe\r\n"))
    assert (read["MIME-Version"], read["Content-Type"]) == ("1.0", "text/plain; charset=unknown-8bit")
    assert read.get_payload(decode=True) == b"Gr\xfc\xdfe\r\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"DKIM-Signature: v=1\r\nSubject: x\r\n\r\n\xff\r\n", "signed"),
        (b'Content-Type: multipart/signed; boundary="b"\r\n\r\n--b\r\n\r\n\xff\r\n--b--\r\n', "signed"),
        (b"Subject: Gr\xc3\xbc\xc3\x9fe\r\n\r\nx\r\n", "in its header"),
        (b"Content-Transfer-Encoding: base64\r\n\r\n\xff\r\n", "not well-formed|without loss"),
        (
            b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n\xff\r\n--b\r\n\r\nx\r\n--b--\r\n',
            "well-formed|without loss",
        ),
        (b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\n\xff\r\n', "not well-formed"),
    ],
)
def test_what_cannot_be_recoded_is_refused_before_a_byte_is_written(content: bytes, why: str) -> None:
    """A broken signature or a mangled header would be worse than an error that says what to do."""
    with ScriptedServer(NO_8BIT) as server, Client(config_of(server)) as client:
        with pytest.raises(NotSupported, match=why) as info:
            client.send(Envelope(ANN, [BOB], content))
        assert (info.value.outcome, info.value.transient) == (Outcome.NOT_SENT, False)
        assert client.send(envelope()).outcome is Outcome.SENT, "the connection is good"
    assert len(server.messages) == 1


def test_what_the_email_package_stumbles_over_is_recoded_or_refused() -> None:
    """A bare TypeError came up here before CPython learned to sort what it finds in a Content-Type."""
    content = b"Content-Type: application/pdf; name*0=a; name*1*=b; name*=utf-8''c\r\n\r\n\xff\r\n"
    with ScriptedServer(NO_8BIT) as server, Client(config_of(server)) as client:
        first, second = client.send_all([Envelope(ANN, [BOB], content), envelope()])
        assert first.outcome is Outcome.SENT or isinstance(first.error, NotSupported)
        assert second.outcome is Outcome.SENT


@given(st.binary(max_size=300), st.sampled_from([b"", b"Content-Type: text/html; charset=utf-8\r\n"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_recoding_loses_nothing_or_refuses(body: bytes, declared: bytes) -> None:
    """Whatever the body: seven bits come out, and decode to what went in."""
    ready = Envelope(ANN, [BOB], b"Subject: x\r\n" + declared + b"\r\n" + body.replace(b"\0", b"")).content
    recoded = seven_bit(ready)
    assert recoded.isascii()
    assert email.message_from_bytes(recoded).get_payload(decode=True) == ready.partition(b"\r\n\r\n")[2]


# ---------------------------------------------------------------- other alphabets


@pytest.mark.parametrize(
    ("address", "on_the_wire"),
    [
        ("bob@bücher.example", "<bob@xn--bcher-kva.example>"),
        ("bob@BÜCHER.example", "<bob@xn--bcher-kva.example>"),
        ("bob@bu\u0308cher.example", "<bob@xn--bcher-kva.example>"),
        ("bob@xn--bcher-kva.example", "<bob@xn--bcher-kva.example>"),
        ("bob@XN--BCHER-KVA.example", "<bob@XN--BCHER-KVA.example>"),
        ("bob@Example.ORG", "<bob@Example.ORG>"),
        ("bob@faß.example", "<bob@faß.example>"),  # not fass.example
        ("bob@βόλος.example", "<bob@βόλος.example>"),  # not βόλοσ.example
        ("jürgen@bücher.example", "<jürgen@bücher.example>"),
    ],
)
def test_a_domain_goes_out_as_itself(server: ScriptedServer, address: str, on_the_wire: str) -> None:
    """As its A-label where that stands for it and no other; else as it is, in SMTPUTF8 (RFC 6531)."""
    with Client(config_of(server)) as client:
        client.send(Envelope(ANN, [address], BODY))
    mail, rcpt = (next(line for line in commands(server) if line.startswith(verb)) for verb in ("mail", "rcpt"))
    assert rcpt == f"rcpt to:{on_the_wire}"
    assert ("SMTPUTF8" in mail) is not on_the_wire.isascii()


@pytest.mark.parametrize("domain", [
    "evil.test\u3002example", "\uff45\uff58ample.org", "example\uff0eorg", "ﬁ.example", "℀.example", "①.example",
    "ex\u037eample.org", "exa\u00admple.org", "exa\u200dmple.org", "example.org.", ".example.org", "a..b.example",
    "ex\u2024ample.org",
])  # fmt: skip
def test_a_domain_that_stands_for_another_is_refused(domain: str) -> None:
    """Full-width letters and stops, ligatures, dots of other scripts: somebody on the way takes them for others."""
    with pytest.raises(InvalidAddress):
        Envelope(ANN, [f"bob@{domain}"], BODY)
    with pytest.raises(InvalidAddress):
        Envelope(ANN, [f"jürgen@{domain}"], BODY)


@pytest.mark.parametrize("host", ["faß.de", "mail。example.com", "\uff4d\uff58.example.com", "βόλος.gr"])
def test_no_other_server_is_dialled_than_the_one_named(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's resolver maps by IDNA 2003: the mail and password for faß.de would go to fass.de."""
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: pytest.fail("it was looked up"))
    with pytest.raises(InvalidConfig, match="another name"):
        ServerConfig(host)
    with pytest.raises(MailError, match="another name") as info:
        SMTP(host, 25, "test", timeout=5.0)
    assert not info.value.transient


@pytest.mark.parametrize("port", [65536, 70000, -1])
def test_no_other_port_is_dialled_than_the_one_named(port: int) -> None:
    """The resolver takes it modulo 65536."""
    with pytest.raises(MailError, match="0-65535") as info:
        SMTP("127.0.0.1", port, "test", timeout=5.0)
    assert not info.value.transient


def test_without_smtputf8_an_address_beyond_ascii_is_refused_before_mail() -> None:
    with ScriptedServer(NO_8BIT) as server, Client(config_of(server)) as client:
        with pytest.raises(NotSupported, match="SMTPUTF8"):
            client.send(Envelope(ANN, ["jürgen@x.test"], BODY))
    assert commands(server) == ["ehlo test", "quit"]


# ---------------------------------------------------------------- what a server says


class Flood(Step):
    """Say the same over and over, past the transcript, until the client has hung up."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sent = 0

    def play(self, peer: Peer) -> None:
        try:
            while self.sent < 200_000_000:
                peer._connection.sendall(self.data)
                self.sent += len(self.data)
        except OSError:
            peer._gone = True


@pytest.mark.parametrize("stage", ["greeting", "EHLO", "final reply"])
@pytest.mark.parametrize("kind", ["line", "lines"])
def test_a_flood_needs_no_memory(stage: str, kind: str) -> None:
    """A reply that never ends: the client hangs up after some KiB of it, and keeps none."""
    flood = Flood(b"x" * 65536 if kind == "line" else b"250-more\r\n" * 6554)
    steps: dict[str, Script] = {
        "greeting": [],
        "EHLO": [greeting(), Expect("EHLO")],
        "final reply": [Serve(until=".")],
    }
    ready = envelope()
    ours = [tracemalloc.Filter(True, "*/threadmail/*.py"), tracemalloc.Filter(False, "*/threadmail/testing/*")]
    with ScriptedServer([*steps[stage], flood]) as server, Client(config_of(server)) as client:
        tracemalloc.start()
        try:
            with pytest.raises(MailError) as info:
                client.send(ready)
            peak = tracemalloc.get_traced_memory()[1]
            kept = tracemalloc.take_snapshot().filter_traces(ours)
        finally:
            tracemalloc.stop()
    assert peak < 4_000_000, "the server's share included"
    assert sum(stat.size for stat in kept.statistics("filename")) < 200_000
    assert flood.sent < 50_000_000, "the client did not hang up"
    assert info.value.outcome is (Outcome.IN_DOUBT if stage == "final reply" else Outcome.NOT_SENT)
    assert len(str(info.value)) < 500


def escapes(text: str) -> list[str]:
    return [c for c in text if not c.isprintable()]


@pytest.mark.parametrize("stage", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."])
def test_no_server_drives_a_terminal(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    """Errors, receipts, logs and the protocol log show what a server said on one line, without control characters."""
    caplog.set_level(logging.DEBUG, "threadmail")
    hostile = Serve(replies={stage: f"554 5.7.1 {ESCAPE}no"})
    if stage == "EHLO":
        hostile = Serve(extensions=(f"X-{ESCAPE}",), replies={"MAIL": "554 no"})
    with ScriptedServer([hostile], last="repeat") as server:
        with Client(config_of(server)) as client, pytest.raises(MailError) as info:
            client.send(envelope())
        with ThreadedSender(config_of(server), workers=1) as sender:
            (receipt,) = sender.send_all([envelope("b")])
    texts = [str(info.value), repr(info.value), str(receipt), repr(receipt), json.dumps(receipt.to_dict())]
    texts += [record.getMessage() for record in caplog.records]
    assert caplog.records
    assert [text for text in texts if escapes(text)] == []


def test_no_message_drives_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    """A Message-ID stands in the log line about a failure, and its author chose it."""
    caplog.set_level(logging.DEBUG, "threadmail")
    evil = f"Message-ID: <{ESCAPE}@x>\r\nFrom: {ANN}\r\nTo: {BOB}\r\n\r\nbody\r\n".encode()
    with ScriptedServer([Serve(replies={"MAIL": "550 no"})]) as server:
        with ThreadedSender(config_of(server), workers=1) as sender:
            sender.send_all([evil])
    told = [record.getMessage() for record in caplog.records if "message <" in record.getMessage()]
    assert told
    assert [text for text in told if escapes(text)] == []


def test_the_path_of_a_socket_does_not_either(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    with pytest.raises(MailError) as info:
        LMTP(f"{tmp_path}/{ESCAPE}", local_hostname="test", timeout=5.0)
    assert escapes(str(info.value)) == []


@pytest.mark.parametrize("command", [["check"], ["send"]])
def test_the_command_line_prints_no_server_text_raw(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    path = tmp_path / "letter.eml"
    path.write_bytes(BODY)
    with ScriptedServer([Serve(replies={"CONNECT": f"554 {ESCAPE}"})], last="repeat") as server:
        main(
            [*command, *(["--server", server_url(server), str(path)] if command == ["send"] else [server_url(server)])]
        )
    out, err = capsys.readouterr()
    assert "554" in out + err
    assert escapes((out + err).replace("\n", "")) == []


def server_url(server: ScriptedServer) -> str:
    return f"smtp://{server.host}:{server.port}?local_hostname=test"
