"""Envelopes: made once, checked whole, never changed; the message that went in comes out, fit for the wire."""

from __future__ import annotations

import base64
import copy
import dataclasses
import email
import email.policy
import json
import pickle
import re
import sys
import threading
from email.header import Header
from email.headerregistry import Address, Group
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmail import Client, Envelope, InvalidAddress, InvalidEnvelope, NotSupported, Outcome
from threadmail._message import message as _message
from threadmail._message.message import header_fields, header_length, message_id, normalise_line_ends
from threadmail._session.delivery import stuffed
from threadmail.testing import CaptureServer

CONTENT = b"Subject: x\r\n\r\nbody\r\n"


def plain(**fields: Any) -> EmailMessage:
    """An EmailMessage with these fields (underscores for hyphens) and a one-line body."""
    m = EmailMessage()
    for name, value in {"From": "ann@example.org", "To": "bob@example.net", **fields}.items():
        if value is not None:
            m[name.replace("_", "-")] = value
    m.set_content("body\n")
    return m


def old(*fields: tuple[str, Any], body: str = "body\n") -> Message:
    """A compat32 message with exactly these fields."""
    m = Message()
    for name, value in fields:
        m[name] = value
    m.set_payload(body)
    return m


def header(content: bytes) -> bytes:
    return content.partition(b"\r\n\r\n")[0] + b"\r\n"


def body(content: bytes) -> bytes:
    return content.partition(b"\r\n\r\n")[2]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("evil", ["\r\nRCPT TO:<eve@example.org>", "\n", "\r", "\0", "\x1b[2J"], ids=ascii)
@pytest.mark.parametrize("place", ["sender", "recipient", "second recipient"])
def test_a_line_end_or_nul_in_an_address_is_refused(evil: str, place: str) -> None:
    """CR, LF or NUL anywhere in the envelope: our own error that names the place, before there is an envelope."""
    given = {"sender": "ann@example.org", "recipient": "bob@example.net", "second recipient": "cy@example.net"}
    given[place] += evil
    to = [given["recipient"]] if place == "recipient" else [given["recipient"], given["second recipient"]]
    with pytest.raises(InvalidAddress, match="sender" if place == "sender" else "recipient") as info:
        Envelope(given["sender"], to, CONTENT)
    assert str(info.value).isprintable()
    if place == "second recipient":
        assert "recipient 2 " in str(info.value)


@pytest.mark.parametrize(
    ("sender", "recipients", "content", "match"),
    [
        ("ann", [], CONTENT, "no recipients"),
        ("ann", iter(()), CONTENT, "no recipients"),
        ("ann", "", CONTENT, "recipient '' is no mailbox"),
        ("ann", ["bob", ""], CONTENT, "recipient 2 '' is no mailbox"),
        ("ann", None, CONTENT, "recipients must be addresses, not NoneType"),
        ("ann", 5, CONTENT, "recipients must be addresses, not int"),
        ("ann", [b"bob"], CONTENT, "recipient must be a string, not bytes"),
        (None, "bob", CONTENT, "sender must be a string, not NoneType"),
        ("ann", "bob", "Grüße", "text beyond ASCII at position 2"),
        ("ann", "bob", None, "content must be bytes, not NoneType"),
        ("ann", "bob", 5, "content must be bytes, not int"),
    ],
)
def test_what_cannot_be_an_envelope_is_refused_by_name(sender: Any, recipients: Any, content: Any, match: str) -> None:
    """Each mistake is an InvalidEnvelope, which is a ValueError, that says what is wrong and where."""
    with pytest.raises(InvalidEnvelope, match=re.escape(match)) as info:
        Envelope(sender, recipients, content)
    assert isinstance(info.value, ValueError)


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"A: b\r\n\r\none\ntwo\r\n", "bare LF in line 3"), (b"A: b\r\n\r\nx\ry\r\n", "bare CR in line 3")],
)
def test_strict_refuses_what_would_be_normalised(content: bytes, match: str) -> None:
    """`strict=True` changes nothing: it refuses, and says in which line."""
    with pytest.raises(InvalidEnvelope, match=match):
        Envelope("ann", "bob", content, strict=True)
    with pytest.raises(InvalidEnvelope, match=match):
        Envelope.from_bytes(content, "ann", "bob", strict=True)


def test_a_nul_does_not_hide_the_end_of_data_in_the_first_line_either() -> None:
    """Behind the 354 a line begins: a server that drops NULs would take what follows for commands."""
    with pytest.raises(InvalidEnvelope, match="NUL in front of a dot in line 1"):
        Envelope("ann", "bob", b"\0\0.\r\nMAIL FROM:<eve@example.org>\r\n")
    assert Envelope("ann", "bob", b"\0 .\r\n").content == b"\0 .\r\n"


@pytest.mark.parametrize("mbox_line", [b"", b"From ann Mon Jan  2 10:00:00 2023\n", b"From ann\r\n", b"From ann\r"])
def test_a_lone_cr_hides_no_field_behind_an_mbox_line_either(mbox_line: bytes) -> None:
    """What stands behind it would become a field, and in a Bcc a recipient."""
    evil = b"From: ann@example.org\nTo: bob@example.net\nSubject: x\rBcc: eve@example.org\n\nbody\n"
    with pytest.raises(InvalidEnvelope, match=r"bare CR in a header field in line [34]"):
        Envelope.from_bytes(mbox_line + evil)
    assert Envelope.from_bytes(mbox_line + evil.replace(b"\rBcc", b"\n Bcc")).recipients == ("bob@example.net",)


def test_strict_takes_what_is_right() -> None:
    """Content with CRLF throughout passes `strict=True` as the very same bytes."""
    assert Envelope("ann", "bob", CONTENT, strict=True).content is CONTENT
    assert Envelope.from_message(plain(), strict=True).content.endswith(b"\r\nbody\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"\x89PNG\r\n\x1a\n\0\0",
        b"no header here\r\n\r\nbody",
        b"From: a\r\nno field\r\n\r\nbody",
        b"\r\nFrom: a\r\nTo: b\r\n\r\n",
        b"From: a\r\nTo: b\r\n\xff\xfe: c\r\n\r\n",
    ],
)
def test_a_file_that_is_no_message_is_refused(data: bytes) -> None:
    """A picture, an empty file or a header with a hole in it is no message; the error says what stands there."""
    with pytest.raises(InvalidEnvelope, match="content:") as info:
        Envelope.from_bytes(data, "ann", "bob")
    assert str(info.value).isprintable()


@pytest.mark.parametrize("value", [None, "From: a", 5, [], object()])
def test_what_is_no_message_is_refused_by_its_type(value: Any) -> None:
    """`Envelope.of` takes envelopes, messages and bytes; anything else is named in the error."""
    with pytest.raises(InvalidEnvelope, match=type(value).__name__):
        Envelope.of(value)


def test_a_message_without_sender_or_recipients_is_refused() -> None:
    """Nobody guesses who sends, or to whom."""
    with pytest.raises(InvalidEnvelope, match="no sender"):
        Envelope.from_message(plain(From=None))
    with pytest.raises(InvalidEnvelope, match="no recipients"):
        Envelope.from_message(plain(To=None))
    with pytest.raises(InvalidEnvelope, match="no recipients"):
        Envelope.from_message(plain(To="undisclosed-recipients:;"))
    with pytest.raises(InvalidEnvelope, match="no recipients"):
        Envelope.from_message(plain(), recipients=[])


@pytest.mark.parametrize(
    "value",
    [
        "not an address",
        "bob@example.net; cy@example.net",
        "bob@example.net cy@example.net",
        "bob@@example.net",
        "Bob <bob@example.net> SIZE=1",
        "<bob@example.net",
    ],
)
@pytest.mark.parametrize("make", [lambda v: plain(To=v), lambda v: old(("From", "ann@example.org"), ("To", v))])
def test_a_malformed_address_in_the_header_is_refused(make: Any, value: str) -> None:
    """No recipient is skipped or cut in silence, with EmailMessage and with compat32; the error names the field."""
    with pytest.raises(InvalidEnvelope, match="To field"):
        Envelope.from_message(make(value))


# ---------------------------------------------------------------- header injection


INJECTIONS = [
    "hi\nBcc: eve@example.org",
    "hi\r\nBcc: eve@example.org",
    "hi\rBcc: eve@example.org",
    "hi\n\nanother body",
    "hi\r\n\r\nanother body",
    "hi\n\n",
    "hi\nBcc eve",
]


@pytest.mark.parametrize("value", INJECTIONS, ids=ascii)
@pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
def test_compat32_values_cannot_inject_a_header_or_a_body(value: str, last: bool) -> None:
    """Whatever this version's email package lets pass, no field and no body text comes from a field's value."""
    fields = [("From", "ann@example.org"), ("To", "bob@example.net")]
    fields.insert(2 if last else 0, ("Subject", value))
    try:
        content = Envelope.from_message(old(*fields)).content
    except InvalidEnvelope:
        return
    assert not re.search(rb"(?im)^bcc", content)
    assert body(content) == b"body\r\n"


@pytest.mark.parametrize("name", ["X-A: b\r\nBcc", "X-A\nBcc", "Subj ect", "", "Bcc:", "Grüße", "X\0Y"], ids=ascii)
def test_header_names_cannot_inject_a_header(name: str) -> None:
    """A name that is no field name is refused, or it is not on the wire as something else."""
    message = old(("From", "ann@example.org"), ("To", "bob@example.net"))
    message.set_raw(name, "eve@example.org")  # from 3.14 on the front door is shut
    with pytest.raises(InvalidEnvelope):
        Envelope.from_message(message)


@pytest.mark.parametrize("encoded", ["=0ABcc:=20eve@example.org", "=0D=0ABcc:=20eve@example.org", "=0A=0Aanother body"])
@pytest.mark.parametrize("name", ["Subject", "X-Note", "To"])
@pytest.mark.parametrize("padding", [0, 100])
def test_encoded_line_ends_cannot_inject_a_header(encoded: str, name: str, padding: int) -> None:
    """CVE-2024-6923: an encoded word that hides a line end, in a short value and in one that is folded anew."""
    word = f"=?utf-8?q?{'x' * padding}hi{encoded.replace(' ', '=20')}?="
    value = f"{word} <bob@example.net>" if name == "To" else word
    raw = f"From: ann@example.org\r\nTo: bob@example.net\r\n{name}: {value}\r\n\r\nbody\r\n".encode()
    for message in (
        email.message_from_bytes(raw, policy=email.policy.default),
        email.message_from_bytes(raw),
        _set_again(raw, name),
    ):
        try:
            content = Envelope.from_message(message, "ann@example.org", "bob@example.net").content
        except InvalidEnvelope:
            continue
        assert not re.search(rb"(?im)^bcc", content)
        assert body(content) == b"body\r\n"


def _set_again(raw: bytes, name: str) -> EmailMessage:
    """The message as an application makes it that copies a parsed value into a new one."""
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    m = plain()
    del m[name]
    try:
        m[name] = parsed[name]
    except ValueError:
        m[name] = "harmless <bob@example.net>" if name == "To" else "harmless"
    return m


# ---------------------------------------------------------------- the message comes out as it went in


def test_an_email_message_becomes_wire_ready_bytes() -> None:
    """Every line ends in CRLF, the header holds the fields that were set, the body follows."""
    e = Envelope.from_message(plain(Subject="Grüße"))
    assert (e.sender, e.recipients) == ("ann@example.org", ("bob@example.net",))
    assert b"Subject: =?utf-8?" in e.content
    assert body(e.content) == b"body\r\n"
    assert re.search(rb"\r(?!\n)|(?<!\r)\n", e.content) is None


@pytest.mark.parametrize("make", [Message, EmailMessage])
def test_what_was_set_is_what_arrives(make: type[Message]) -> None:
    """The bytes parse back to the message: every field in order, and the body, lines that say "From " included."""
    m = make()
    fields = [
        ("From", "ann@example.org"),
        ("To", "bob@example.net"),
        ("X-B", "2"),
        ("X-A", "1"),
        ("Subject", "word " * 40 + "end"),
    ]
    for name, value in fields:
        m[name] = value
    text = "From here on\n.dot\n\nend\n"
    m.set_payload(text)
    e = Envelope.from_message(m)
    again = email.message_from_bytes(e.content)
    assert [(k, re.sub(r"\r?\n(?=[ \t])", "", v)) for k, v in again.items()][-len(fields) :] == fields
    assert body(e.content) == text.replace("\n", "\r\n").encode()


def test_the_message_object_is_left_as_it_was() -> None:
    """Making an envelope writes nothing into the message: not a boundary, a date, nor does it take the Bcc."""
    m = nested()
    m["Bcc"] = "eve@example.org"
    before = state(m)
    Envelope.from_message(m)
    assert state(m) == before


def state(m: Any) -> Any:
    payload = m.get_payload()
    return (
        [(n, str(v)) for n, v in m.raw_items()],
        m.get_boundary(),
        [state(p) for p in payload] if isinstance(payload, list) else payload,
    )


def nested() -> MIMEMultipart:
    """Multiparts in multiparts without a boundary yet: the generator writes one into each."""
    m = MIMEMultipart("mixed")
    m["From"], m["To"] = "ann@example.org", "bob@example.net"
    for i in range(3):
        part = MIMEMultipart("alternative")
        for k in range(3):
            part.attach(MIMEText(f"part {i} {k}\n" * 20))
        m.attach(part)
    return m


def shape(content: bytes) -> list[tuple[str, Any]]:
    """Types and texts of all parts, boundaries left out."""
    parsed = email.message_from_bytes(content)
    assert not any(part.defects for part in parsed.walk())
    return [
        (part.get_content_type(), None if part.is_multipart() else part.get_payload(decode=True))
        for part in parsed.walk()
    ]


def test_eight_threads_flatten_one_message_and_all_come_out_right() -> None:
    """Making envelopes of one nested message in eight threads at once corrupts none (the stdlib's generator does)."""
    m = nested()
    wanted = shape(Envelope.from_message(nested()).content)
    barrier = threading.Barrier(8)
    found: list[Any] = []

    def work() -> None:
        barrier.wait(10.0)
        for _ in range(12):
            found.append(shape(Envelope.from_message(m).content))

    threads = [threading.Thread(target=work, name=f"flatten-{i}") for i in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.join(60.0)
    finally:
        sys.setswitchinterval(interval)
    assert len(found) == 96
    assert all(f == wanted for f in found)


def test_a_seven_bit_policy_may_change_the_encoding_of_the_body() -> None:
    """With `cte_type="7bit"` the generator adds a field of its own; that is no injection."""
    raw = b"From: a@b.c\r\nTo: d@e.f\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n"
    m = email.message_from_bytes(raw, policy=email.policy.default.clone(cte_type="7bit"))
    content = Envelope.from_message(m).content
    assert content.isascii()
    assert email.message_from_bytes(content).get_payload(decode=True) == "Grüße\r\n".encode()


def test_a_message_that_cannot_be_written_is_our_own_error() -> None:
    """What the generator cannot flatten ends in InvalidEnvelope, whatever it raises itself."""
    payloads: list[Any] = [[1, 2], object(), 5]
    for payload in payloads:
        m = old(("From", "a@b.c"), ("To", "d@e.f"))
        m.set_payload(payload)
        with pytest.raises(InvalidEnvelope, match="the message cannot be written"):
            Envelope.from_message(m)
    m = old(("From", "a@b.c"), ("To", "d@e.f"), ("Content-Type", "multipart/mixed"))
    m.set_payload(payloads[0])
    with pytest.raises(InvalidEnvelope, match="the message cannot be written"):
        Envelope.from_message(m)


def test_bytes_are_sent_as_they_are() -> None:
    """`from_bytes` adds and rewrites nothing but line ends: a signature over the content stays valid."""
    raw = b"to: bob@example.net\nFROM:ann@example.org\nX-Odd:\n\tfolded\n\n\x00\xff body \r\n.\n"
    e = Envelope.from_bytes(raw)
    assert e.content == raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert e.message_id is None
    assert Envelope.from_bytes(b"From ann Mon Jan  1\n" + raw).content == e.content


# ---------------------------------------------------------------- sender and recipients by the header


def test_sender_and_recipients_come_from_the_header() -> None:
    """To, Bcc and Cc make the recipients, each once; Sender stands before From."""
    m = plain(
        From="ann@example.org, zoe@example.org",
        Sender="Sec <sec@example.org>",
        To="Bob <bob@example.net>, cy@example.net",
        Cc="bob@example.net, dee@example.net",
        Bcc="eve@example.net",
    )
    e = Envelope.from_message(m)
    assert e.sender == "sec@example.org"
    assert sorted(e.recipients) == ["bob@example.net", "cy@example.net", "dee@example.net", "eve@example.net"]
    del m["Sender"]
    assert Envelope.from_message(m).sender == "ann@example.org"


@pytest.mark.parametrize("kind", [EmailMessage, Message])
def test_resent_fields_are_read_in_a_message_that_was_resent(kind: type[Message]) -> None:
    """With Resent-Date the Resent- fields say who sends to whom (RFC 5322 section 3.6.6); Resent-Bcc is not seen."""
    m = kind()
    for name, value in [
        ("From", "ann@example.org"),
        ("To", "bob@example.net"),
        ("Resent-Date", "Mon, 1 Jan 2024 00:00:00 +0000"),
        ("Resent-From", "cy@example.org"),
        ("Resent-To", "dee@example.net"),
        ("Resent-Cc", "eli@example.net"),
        ("Resent-Bcc", "eve@example.net"),
    ]:
        m[name] = value
    m.set_payload("body\n")
    e = Envelope.from_message(m)
    assert e.sender == "cy@example.org"
    assert set(e.recipients) == {"dee@example.net", "eli@example.net", "eve@example.net"}
    assert b"eve@" not in e.content
    assert b"Resent-Cc: eli@example.net" in e.content
    m["Resent-Sender"] = "sec@example.org"
    assert Envelope.from_message(m).sender == "sec@example.org"
    m["Resent-Date"] = "Tue, 2 Jan 2024 00:00:00 +0000"
    with pytest.raises(InvalidEnvelope, match="more than one block of Resent-"):
        Envelope.from_message(m)


def test_given_addresses_stand_before_the_header() -> None:
    """`sender` and `recipients` replace what the header says, which stays as it is."""
    e = Envelope.from_message(plain(), "", ["list@example.net"])
    assert (e.sender, e.recipients) == ("", ("list@example.net",))
    assert b"To: bob@example.net\r\n" in e.content


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("friends: bob@example.net, Cy <cy@example.net>;", ("bob@example.net", "cy@example.net")),
        ("bob@example.net (Bob, the first)", ("bob@example.net",)),
        ('"Last, First" <bob@example.net>', ("bob@example.net",)),
        ("=?utf-8?q?Last=2C_First?= <bob@example.net>, cy@example.net", ("bob@example.net", "cy@example.net")),
        ("=?utf-8?b?TGFzdCwgRmlyc3QgPGV2ZUBleGFtcGxlLm5ldD4=?= <bob@example.net>", ("bob@example.net",)),
        ("Bob\r\n <bob@example.net>,\r\n\tcy@example.net", ("bob@example.net", "cy@example.net")),
    ],
)
@pytest.mark.parametrize("policy", [email.policy.compat32, email.policy.default], ids=["compat32", "default"])
def test_recipients_are_read_from_parsed_messages(value: str, found: tuple[str, ...], policy: Any) -> None:
    """Groups, comments, quotes, folds and encoded words that hide commas or addresses, from bytes and from objects."""
    raw = f"From: ann@example.org\r\nTo: {value}\r\n\r\nbody\r\n".encode()
    assert Envelope.from_bytes(raw).recipients == found
    assert Envelope.from_message(email.message_from_bytes(raw, policy=policy)).recipients == found


def test_recipients_are_read_from_address_objects() -> None:
    """EmailMessage's own Address and Group, with display names full of commas."""
    m = plain(
        To=(Address("Last, First", "bob", "example.net"), Group("friends", (Address("Ü, y", "cy", "example.net"),)))
    )
    assert Envelope.from_message(m).recipients == ("bob@example.net", "cy@example.net")


def test_recipients_are_read_from_header_objects() -> None:
    """compat32 values may be Header objects, which encode when they are written."""
    m = old(("From", "ann@example.org"), ("To", Header("Bob <bob@example.net>")), ("Subject", Header("Grüße", "utf-8")))
    e = Envelope.from_message(m)
    assert e.recipients == ("bob@example.net",)
    assert b"Subject: =?utf-8?" in e.content


def test_raw_utf8_header_fields_are_read() -> None:
    """A header in UTF-8 (RFC 6532), parsed by compat32 with its surrogates, gives the addresses that were meant."""
    raw = "From: ann@example.org\r\nTo: Jürgen <jürgen@example.net>\r\n\r\nbody\r\n".encode()
    for e in (Envelope.from_bytes(raw), Envelope.from_message(email.message_from_bytes(raw))):
        assert e.recipients == ("jürgen@example.net",)
        assert e.smtputf8
        assert "Jürgen <jürgen@example.net>".encode() in e.content


# ---------------------------------------------------------------- Bcc


@pytest.mark.parametrize("name", ["Bcc", "bcc", "BCC", "bCC", "Resent-Bcc", "RESENT-BCC"])
@pytest.mark.parametrize(
    "value", [b" eve@example.net", b"\r\n eve@example.net,\r\n\tevi@example.net", b"eve@example.net"]
)
@pytest.mark.parametrize("gap", [b"", b" ", b"\t"], ids=["", "space", "tab"])
def test_no_bcc_field_reaches_the_content(name: str, value: bytes, gap: bytes) -> None:
    """Bcc and Resent-Bcc go, in any case, folded or not, wherever they stand; everything else stays byte for byte."""
    field = name.encode() + gap + b":" + value + b"\r\n"
    rest = [b"From: ann@example.org\r\n", b"To: bob@example.net\r\n", b"Subject: Bcc: is no field here\r\n"]
    text = b"\r\nBcc: in the body stays\r\n"
    for position in range(4):
        lines = [*rest[:position], field, *rest[position:]]
        e = Envelope("ann@example.org", "bob@example.net", b"".join(lines) + text)
        assert e.content == b"".join(rest) + text
        assert Envelope.from_bytes(b"".join(lines) + text).content == b"".join(rest) + text


@pytest.mark.parametrize("mbox_line", [b"From ann Mon Jan  2 10:00:00 2023\n", b"From ann\r\n"])
def test_no_bcc_is_left_behind_an_mbox_line(mbox_line: bytes) -> None:
    """The line goes, as in `from_bytes`: behind it there seemed to be no header, and the Bcc went to everybody."""
    e = Envelope("ann", "bob", mbox_line + b"Message-ID: <1@x>\nBcc: eve@example.org\nSubject: x\n\nFrom here\n")
    assert e.content == b"Message-ID: <1@x>\r\nSubject: x\r\n\r\nFrom here\r\n"
    assert e.message_id == "<1@x>"
    assert e == Envelope.from_bytes(mbox_line + e.content, "ann", "bob")


@pytest.mark.parametrize(
    ("lead", "kept"),
    [
        (b"Bcc: eve@example.org\r\nFrom jack Mon\r\n", b""),
        (b"Bcc: eve@example.org\r\nFrom jack Mon\r\nBcc: mallory@example.org\r\n", b""),
        (b"From a\r\nFrom b\r\nBcc: eve@example.org\r\n", b""),
        (b"From a\r\nresent-BCC : eve,\r\n mallory\r\nFrom b\r\nFrom c\r\nbcc:\r\n", b""),
        (b"From : ann\r\nBcc: eve@example.org\r\n", b"From : ann\r\n"),
    ],
)
def test_no_bcc_is_left_around_mbox_lines(lead: bytes, kept: bytes) -> None:
    """With the Bcc gone the line behind it is the first one; what was behind that was a header to whoever reads it."""
    for rest in (b"Subject: bcc\r\n\r\nBcc: x\r\n", b"X: 1\r\nBcc: eve@example.org\r\n\r\nFrom a\r\n"):
        e = Envelope("ann", "bob", lead + rest)
        assert e.content == kept + rest.replace(b"Bcc: eve@example.org\r\n", b"")
        assert Envelope.from_dict(e.to_dict()) == e
    e = Envelope("ann", "bob", lead + b"\r\nFrom a\r\n")
    assert b"bcc" not in e.content.lower()
    assert Envelope.from_dict(e.to_dict()) == e


def test_mbox_lines_with_no_header_behind_them_are_what_somebody_wrote() -> None:
    for text in (b"From a\r\nFrom b\r\nx\r\n", b"From a\r\n", b"From a\r\n\r\n"):
        assert Envelope("ann", "bob", text).content == text
        assert Envelope("ann", "bob", b"Bcc: eve\r\n" + text).content == text
    with pytest.raises(InvalidEnvelope, match="bare CR in a header field in line 4"):
        Envelope("ann", "bob", b"From a\r\nBcc: eve\r\nFrom b\r\nX: 1\rX-Hidden: 1\r\n\r\n")


@given(
    st.lists(
        st.sampled_from([b"From a", b"From : a", b"Bcc: a", b"Resent-Bcc:", b" x", b"X: bcc", b"", b"text", b"a\rX: 1"])
    ).map(b"\r\n".join)
)
def test_what_an_envelope_took_out_it_took_out_whole(content: bytes) -> None:
    try:
        e = Envelope("ann", "bob", content)
    except InvalidEnvelope:
        return
    assert Envelope.from_dict(e.to_dict()) == e
    assert Envelope("ann", "bob", e.content).content == e.content


@pytest.mark.parametrize("gap", [b" ", b"  ", b" \t"])
def test_a_from_field_with_a_space_before_its_colon_is_no_mbox_line(gap: bytes, tmp_path: Path) -> None:
    """RFC 5322 section 4.5: the old syntax, which is still to be read. It was taken out, and the mail had no From."""
    raw = b"From" + gap + b": ann@example.org\r\nTo: bob@example.net\r\n\r\n" + b"x\r\n" * 40_000
    path = tmp_path / "old.eml"
    path.write_bytes(raw)
    for e in (Envelope("ann", "bob", raw), Envelope.from_bytes(raw), Envelope.from_file(path)):
        assert e.content == raw
    assert (Envelope.from_bytes(raw).sender, Envelope.from_file(path).sender) == ("ann@example.org", "ann@example.org")
    with pytest.raises(InvalidEnvelope, match="bare CR in a header field"):
        Envelope("ann", "bob", raw.replace(b"org\r\n", b"org\rX-Hidden: 1\r\n"))


def test_text_that_begins_as_an_mbox_line_does_is_left_alone() -> None:
    """Where no header follows it is what somebody wrote."""
    for text in (b"From here on\r\nnothing is sure.\r\n", b"From here on\r\n\r\nSubject: x\r\n", b"From here on"):
        assert Envelope("ann", "bob", text).content == text


@pytest.mark.parametrize("name", ["Bcc", "bcc", "BCC", "Resent-Bcc", "resent-BCC"])
@pytest.mark.parametrize("kind", [EmailMessage, Message])
def test_no_bcc_of_a_message_object_is_written(name: str, kind: type[Message]) -> None:
    """The recipient is served, the field is not shown, and the object keeps it."""
    m = kind()
    m["From"], m["To"] = "ann@example.org", "bob@example.net"
    m[name] = ", ".join(f"eve{i}@example.net" for i in range(9))  # long enough to be folded
    m.set_payload("body\n")
    e = Envelope.from_message(m)
    assert b"eve" not in e.content
    assert name in m
    if "resent" not in name.lower():
        assert "eve8@example.net" in e.recipients


# ---------------------------------------------------------------- beyond ASCII


def test_a_domain_beyond_ascii_needs_no_smtputf8() -> None:
    """The A-label goes to the wire, so that every server can take it."""
    e = Envelope("ann@example.org", "bob@bücher.example", CONTENT)
    assert e.recipients == ("bob@xn--bcher-kva.example",)
    assert not e.smtputf8


def test_fass_is_not_fass_with_two_s() -> None:
    """IDNA 2003 would send the mail for faß.de to fass.de, another domain: the name stays, and needs SMTPUTF8."""
    e = Envelope("ann@example.org", "bob@faß.de", CONTENT)
    assert e.recipients == ("bob@faß.de",)
    assert e.smtputf8


@pytest.mark.parametrize("make", [lambda to: plain(To=to), lambda to: old(("From", "ann@example.org"), ("To", to))])
def test_a_local_part_beyond_ascii_needs_smtputf8(make: Any) -> None:
    """With EmailMessage and compat32 alike the envelope says so."""
    e = Envelope.from_message(make("jürgen@example.net"))
    assert e.recipients == ("jürgen@example.net",)
    assert e.smtputf8


def test_an_international_message_has_its_addresses_in_utf8() -> None:
    """The header names the recipient in UTF-8 (RFC 6532), not in an encoded word, which no address may be."""
    e = Envelope.from_message(plain(To="Jürgen <jürgen@example.net>", Subject="Grüße"))
    assert "To: Jürgen <jürgen@example.net>".encode() in e.content
    assert "Subject: Grüße".encode() in e.content
    assert e.eight_bit


@pytest.mark.parametrize(("text", "flag"), [(b"plain", False), (b"gr\xfc\xdfe", True)])
def test_eight_bit_content_is_noticed(text: bytes, flag: bool) -> None:
    """The transaction must know whether to ask for BODY=8BITMIME."""
    assert Envelope("ann", "bob", CONTENT + text).eight_bit is flag


# ---------------------------------------------------------------- Date and Message-ID


def test_date_and_message_id_are_added_where_they_are_missing() -> None:
    """RFC 5322 wants both, and a retry the same Message-ID; the envelope knows it."""
    e = Envelope.from_message(plain())
    parsed = email.message_from_bytes(e.content)
    assert parsed["Message-ID"] == e.message_id
    assert re.fullmatch(r"<[^<>@\s]+@example\.org>", e.message_id or "")
    assert parsedate_to_datetime(parsed["Date"]).tzinfo is not None
    assert Envelope.from_message(plain()).message_id != e.message_id


def test_date_and_message_id_that_are_there_stay() -> None:
    """In whatever case their names are written; nothing is added then."""
    date = "Mon, 01 Jan 2024 00:00:00 +0000"
    e = Envelope.from_message(plain(date=date, MESSAGE_ID="<1@x>"))
    assert e.message_id == "<1@x>"
    assert len(re.findall(rb"(?im)^(?:date|message-id):", e.content)) == 2


@pytest.mark.parametrize("sender", ["", "ann@[127.0.0.1]", "jürgen@example.net", "ann@faß.de", "root"])
def test_a_message_id_is_made_in_a_domain_that_can_be_one(sender: str) -> None:
    """No literal, no brackets, nothing beyond ASCII: <...@localhost> where the sender has no such domain."""
    e = Envelope.from_message(plain(), sender)
    assert re.fullmatch(r"<[!-;=?-~]+@[a-z.]+>", e.message_id or "")


def test_bytes_get_neither_date_nor_message_id() -> None:
    """Only `from_message` adds fields: bytes are sent as they are."""
    assert Envelope("ann", "bob", CONTENT).content == CONTENT
    raw = b"From: ann@example.org\r\nTo: bob@example.net\r\n\r\nbody\r\n"
    assert Envelope.from_bytes(raw).content == raw


def test_a_folded_message_id_is_known_unfolded() -> None:
    """Long identifiers stand on a line of their own; receipts show them on one."""
    e = Envelope.from_bytes(b"From: a\r\nTo: b\r\nMessage-ID:\r\n <long@example.org>\r\n\r\nbody\r\n")
    assert e.message_id == "<long@example.org>"


# ---------------------------------------------------------------- a value


def test_an_envelope_is_frozen() -> None:
    """Threads may share it, for nobody can change it."""
    e = Envelope("ann", "bob", CONTENT)
    for name in ("sender", "recipients", "content", "message_id", "smtputf8", "eight_bit", "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(e, name, "x")
    assert isinstance(e.recipients, tuple)


def test_mutable_content_is_copied() -> None:
    """Changing the bytearray afterwards changes no envelope."""
    data = bytearray(CONTENT)
    e = Envelope("ann", "bob", data)  # type: ignore[arg-type]
    data[:] = b"x"
    assert e.content == CONTENT


def test_equal_envelopes_are_equal_hash_alike_pickle_and_copy() -> None:
    """A value in every respect: two made alike are one to sets, and what comes out of a pickle is the same."""
    e, other = (Envelope("ann", ["bob", "cy"], CONTENT) for _ in range(2))
    assert e == other
    assert len({e, other}) == 1
    for again in (pickle.loads(pickle.dumps(e)), copy.copy(e), copy.deepcopy(e)):
        assert again == e
        assert hash(again) == hash(e)
    assert e != Envelope("ann", ["cy", "bob"], CONTENT)


def test_the_repr_holds_no_content() -> None:
    """Logs name sender, recipients and Message-ID; what was written stays private."""
    e = Envelope("ann", "bob", b"Message-ID: <1@x>\r\n\r\nsecret words\r\n")
    assert "secret" not in repr(e)
    assert "<1@x>" in repr(e)


def test_repeated_recipients_are_asked_once_in_the_order_given() -> None:
    """However they are dressed; the case of a local part may mean something and makes two."""
    e = Envelope("ann", ["b@x.test", "Bob <b@x.test>", "a@x.test", "b@x.test", "B@x.test"], CONTENT)
    assert e.recipients == ("b@x.test", "a@x.test", "B@x.test")


def test_one_recipient_may_be_given_as_a_string() -> None:
    """A string is one address, never its letters."""
    assert Envelope("ann", "bob@example.net", CONTENT).recipients == ("bob@example.net",)


def test_for_recipients_shares_the_content() -> None:
    """A retry costs no copy of the message, and everything else stays what it was."""
    e = Envelope("ann", ["bob@example.net", "jürgen@example.net"], CONTENT)
    again = e.for_recipients(["bob@example.net"])
    assert again.content is e.content
    assert (again.sender, again.recipients, again.message_id) == (e.sender, ("bob@example.net",), e.message_id)
    assert (e.smtputf8, again.smtputf8) == (True, False)
    assert e.recipients == ("bob@example.net", "jürgen@example.net")
    with pytest.raises(InvalidEnvelope):
        e.for_recipients([])


def test_of_leaves_an_envelope_alone() -> None:
    """`Envelope.of(envelope)` is that envelope; bytes in any form are read."""
    e = Envelope("ann", "bob", CONTENT)
    assert Envelope.of(e) is e
    raw = b"From: ann@example.org\r\nTo: bob@example.net\r\n\r\nbody\r\n"
    for data in (raw, bytearray(raw), memoryview(raw)):
        assert Envelope.of(data).content == raw  # type: ignore[arg-type]


# ---------------------------------------------------------------- properties

contents = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"A: b\r\n", b"Bcc: x\r\n", b" ", b"\xff"])
    ).map(b"".join),
)
addresses = st.sampled_from(["", "ann@example.org", "jürgen@example.net", '"a b"@x.test', "b@faß.de", "root"])


@given(contents)
def test_normalised_content_has_no_bare_line_end(content: bytes) -> None:
    """Every CR is followed by LF and every LF preceded by CR; nothing else changes, and once is enough."""
    try:
        wire = normalise_line_ends(content, strict=False)
    except InvalidEnvelope:
        return  # a field hidden behind a lone CR
    assert re.search(rb"\r(?!\n)|(?<!\r)\n", wire) is None
    assert re.split(rb"\r\n|\r|\n", content) == wire.split(b"\r\n")
    assert normalise_line_ends(wire, strict=True) is wire


@given(contents)
def test_stuffing_can_be_undone_and_ends_the_data_once(content: bytes) -> None:
    """A server that takes the dots off gets the content, whole; the lone dot stands at the end and nowhere else."""
    try:
        wire = normalise_line_ends(content, strict=False)
    except InvalidEnvelope:
        return
    lines = stuffed(wire).split(b"\r\n")
    assert lines[-2:] == [b".", b""]
    assert b"." not in lines[:-2]
    plain_lines = [line[1:] if line.startswith(b".") else line for line in lines[:-2]]
    received = b"".join(line + b"\r\n" for line in plain_lines)
    assert received == wire + (b"" if wire.endswith(b"\r\n") else b"\r\n")


@given(addresses, st.lists(addresses.filter(bool), min_size=1), contents)
def test_an_envelope_survives_json(sender: str, recipients: list[str], content: bytes) -> None:
    """from_dict(to_dict(e)) is e, by way of JSON, for whatever could become an envelope."""
    try:
        e = Envelope(sender, recipients, content)
    except InvalidEnvelope:
        return
    assert Envelope.from_dict(json.loads(json.dumps(e.to_dict()))) == e


def test_that_a_header_needs_smtputf8_survives_json() -> None:
    """Also where none of the recipients does: a server without it would be given a header that it cannot read."""
    m = plain(To="jürgen@example.net")
    e = Envelope.from_message(m, "ann@example.org", recipients=["list@example.net"])
    data = json.loads(json.dumps(e.to_dict()))
    again = Envelope.from_dict(data)
    assert again == e
    assert again.smtputf8
    assert again.for_recipients("bob@example.net").smtputf8
    with CaptureServer(extensions=("8BITMIME",)) as server, Client(server.url) as client:
        for each in (e, again):
            with pytest.raises(NotSupported, match="SMTPUTF8"):
                client.send(each)


def test_what_earlier_versions_wrote_is_read() -> None:
    data = {"sender": "ann@example.org", "recipients": ["bob@example.net"], "content": "U3ViamVjdDogeA0KDQo="}
    assert Envelope.from_dict(data) == Envelope("ann@example.org", "bob@example.net", b"Subject: x\r\n\r\n")
    for wrong in (None, 1, "no"):
        with pytest.raises(InvalidEnvelope, match="utf8_header is no bool"):
            Envelope.from_dict({**data, "utf8_header": wrong})


@given(contents)
def test_no_bcc_field_is_left_whatever_the_content(content: bytes) -> None:
    """In the header block that a reader finds there is no Bcc."""
    try:
        e = Envelope("ann", "bob", content)
    except InvalidEnvelope:
        return
    first = True
    for line in e.content.split(b"\r\n"):
        if not re.match(rb"[!-9;-~]+[ \t]*:" if first else rb"[!-9;-~]+[ \t]*:|[ \t]", line):
            break
        assert not re.match(rb"(?i)(resent-)?bcc[ \t]*:", line)
        first = False


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["ann@example.org", "QUFB"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["sender", "recipients", "content", "utf8_header"]), inner)
    ),
    max_leaves=6,
)


@given(JSON)
def test_data_that_is_no_envelope_is_our_own_error(data: Any) -> None:
    """Whatever JSON can hold: an envelope, or InvalidEnvelope."""
    try:
        Envelope.from_dict(data)
    except InvalidEnvelope:
        pass


@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from([b"From: a@b.c\r\n", b"To: d@e.f\n", b"\r\n", b"x"])).map(b"".join)
)
def test_arbitrary_bytes_are_a_message_or_our_own_error(data: bytes) -> None:
    """Whatever a file holds: an envelope, or InvalidEnvelope."""
    try:
        Envelope.of(data)
    except InvalidEnvelope:
        pass


# ---------------------------------------------------------------- read once, and by block

LINES = st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\r\n.\r\n", b"\0", b"aa"]), max_size=40).map(b"".join)


@pytest.mark.parametrize("size", [1, 2, 5, 1 << 15])
@given(content=LINES)
def test_right_line_ends_are_known_block_by_block(size: int, content: bytes) -> None:
    """Content is taken as it is if and only if no CR and no LF of it stands alone, wherever the blocks end."""
    with mock.patch.object(_message, "_BLOCK", size):
        found = _message._ends_in_crlf(content)
    assert found == (re.search(rb"\r(?!\n)|(?<!\r)\n", content) is None)


@pytest.mark.parametrize("number", [0, 1, 63, 64, 65, 128, 129, 1000])
def test_every_field_belongs_to_the_header(number: int) -> None:
    """However many there are, folded ones too; what is no field ends it."""
    fields = b"X-Field: a\r\n b\r\n" * number
    for rest in (b"", b"\r\nX: y\r\n", b"no field\r\nX: y\r\n"):
        assert header_length(fields + rest) == len(fields)


IDS = ["Message-ID: <a@b>", "MESSAGE-id \t:\r\n <a@b>\r\n c", "Message-ID-Of: <x@y>", "X-Message-ID: <x@y>"]
IDS += [
    "Message-ID:",
    "Message-ID: é\tx",
    "Subject: Message-ID: <x@y>",
    "Subject: a\r\n Message-ID: <x@y>",
    "",
    "bad line",
]


@given(st.lists(st.sampled_from(IDS), max_size=6).map("\r\n".join))
def test_the_message_id_is_the_first_of_the_header(text: str) -> None:
    """Found without reading the other fields; the same that reading them all finds."""
    content = text.encode()
    first = [" ".join(v.split()) for n, v in header_fields(content) if n.lower() == "message-id"][:1]
    assert message_id(content) == (first[0] if first else None)


@pytest.mark.parametrize("attachment", [None, b"%PDF"])
def test_a_message_whose_policy_wants_utf8_is_written_with_encoded_words(attachment: bytes | None) -> None:
    """Its addresses need no SMTPUTF8: raw, it would need a server with that, and nobody would ask for it."""
    message = EmailMessage(policy=email.policy.SMTPUTF8)
    message["From"], message["To"], message["Subject"] = "Jos\u00e9 <a@example.org>", "b@example.net", "\u00fc"
    message.set_content("hello")
    if attachment is not None:
        message.add_attachment(attachment, maintype="application", subtype="pdf", filename="\u00fc.pdf")
    e = Envelope.from_message(message)
    assert not e.smtputf8
    assert e.content[: header_length(e.content)].isascii()
    assert email.message_from_bytes(bytes(e.content), policy=email.policy.default)["Subject"] == "\u00fc"


def test_a_message_that_forwards_an_international_one_goes_as_8_bit_text() -> None:
    """As one that was parsed does. No server looks at the addresses of what is attached."""
    inner = EmailMessage(policy=email.policy.SMTP)
    inner["From"], inner["To"], inner["Subject"] = "j\u00f6rg@example.com", "b@example.net", "hi"
    inner.set_content("hello")
    outer = EmailMessage()
    outer["From"], outer["To"], outer["Subject"] = "a@example.org", "b@example.net", "Fwd: hi"
    outer.set_content("see below")
    outer.add_attachment(inner)
    e = Envelope.from_message(outer)
    assert (e.smtputf8, e.eight_bit) == (False, True)
    assert "j\u00f6rg@example.com".encode() in bytes(e.content)
    with CaptureServer() as server, Client(server.url) as client:
        assert client.send(outer).outcome is Outcome.SENT


LATE_BCC = [
    "\nBcc: s@x.org\nSubject: x\n\nhi\n",
    "\rBcc: s@x.org\rSubject: x\r\rhi\r",
    "\rSubject: x\r\nBcc: s@x.org\r\n\r\nhi\r\n",
    " \t\n\nSubject: x\nBCC : s@x.org\n\nhi\n",
    "\nSubject: x\n folded\nResent-Bcc: s@x.org",
    "From a@b Mon\n\nBcc: s@x.org\n\nhi\n",
    "\nFrom a@b Mon\nSubject: x\nBcc: s@x.org\n\nhi\n",
    "\nFrom a@b Mon\n\nSubject: x\nBcc: s@x.org\n\nhi\n",
    "\nBcc: s@x.org\nFrom a@b Mon\n\nhi\n",
]


@pytest.mark.parametrize("content", LATE_BCC)
def test_bcc_behind_a_blank_line_at_the_beginning_is_refused(content: str) -> None:
    """A text in three quotes: for every server that is an empty header, and a text that shows the hidden recipient."""
    with pytest.raises(InvalidEnvelope, match="Bcc behind a blank line") as caught:
        Envelope("a@x.org", ["b@x.org"], content)
    assert "s@x.org" not in str(caught.value)
    data = {"sender": "a@x.org", "recipients": ["b@x.org"], "content": base64.b64encode(content.encode()).decode()}
    with pytest.raises(InvalidEnvelope):
        Envelope.from_dict(data)


@pytest.mark.parametrize("content", ["\nhi\nBcc: s@x.org\n", "\nSubject: x\n\nBcc: s@x.org\n", "\n\n", "\n", ""])
def test_what_is_a_text_stays_one(content: str) -> None:
    made = Envelope("a@x.org", ["b@x.org"], content)
    assert made.content == content.replace("\n", "\r\n").encode()


def test_blank_lines_and_mbox_lines_by_the_thousand_are_looked_through_once() -> None:
    """It looked behind each by calling itself, and ended in a RecursionError."""
    with pytest.raises(InvalidEnvelope, match="Bcc behind a blank line"):
        Envelope("a@example.org", ["b@example.net"], b"\r\nFrom x\r\n" * 5000 + b"Bcc: c@example.net\r\n\r\nx\r\n")
    Envelope("a@example.org", ["b@example.net"], b"\r\nFrom x\r\n" * 5000 + b"x\r\n")
