"""Address fields: the mailboxes that were given are those on the wire, whatever this Python's email package does."""

from __future__ import annotations

import email
import email.policy
import re
import threading
from collections.abc import Callable
from email.header import Header
from email.headerregistry import Address, Group
from email.message import EmailMessage, Message
from email.mime.message import MIMEMessage
from email.mime.text import MIMEText
from email.utils import getaddresses
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from threadmail import SMTP, Client, Envelope, NotSupported
from threadmail._message import plain as _plain
from threadmail._message.address import address_list
from threadmail._message.address_field import NAMES
from threadmail.testing import ScriptedServer, Serve

LONG = "of the United Federation of Planets and All of Its Many Good Friends"
BOB = "bob@xn--bcher-kva.example"

#: What a program sets, and the mailboxes that it means.
VALUES: dict[str, list[str]] = {
    "bob@bücher.example": [BOB],
    "Bob <bob@bücher.example>": [BOB],
    "Böb <bob@bücher.example>": [BOB],
    '"Böb, Jr" <bob@bücher.example>': [BOB],
    "al@b.example, Bob <bob@bücher.example>, cy@bücher.example": ["al@b.example", BOB, "cy@xn--bcher-kva.example"],
    "The group: bob@bücher.example, al@b.example;, cy@c.example": [BOB, "al@b.example", "cy@c.example"],
    "Die Prüfer: bob@bücher.example;": [BOB],
    "bob@例え.example": ["bob@xn--r8jz45g.example"],
    "=?utf-8?q?Last=2C_First?= <bob@b.example>": ["bob@b.example"],
    "=?utf-8?q?Last=2C_F=C3=AFrst?= <bob@b.example>": ["bob@b.example"],
    "=?utf-8?q?eve=40e=2Eexample=2C?= Bob <bob@b.example>": ["bob@b.example"],
    "=?utf-8?b?TGFzdCwgRmlyc3QgPGV2ZUBleGFtcGxlLm5ldD4=?= <bob@b.example>": ["bob@b.example"],
    "=?utf-8?q?Group=3A?= Bob <bob@b.example>, al@b.example": ["bob@b.example", "al@b.example"],
    '"Böb of the firm, Jr" <bob@b.example>': ["bob@b.example"],
    f'"Müller, Hans-Peter {LONG}, Ltd" <bob@b.example>': ["bob@b.example"],
    f'"Mueller, Hans-Peter {LONG}, Ltd" <bob@b.example>': ["bob@b.example"],
    f'"boss <boss@bank.test>, {LONG}" <bob@b.example>': ["bob@b.example"],
    f'"boss@bank.test, {LONG}" <bob@b.example>, al@b.example': ["bob@b.example", "al@b.example"],
    f'"Ann \\"the\\" Lee, {LONG} \\\\" <bob@b.example>': ["bob@b.example"],
    f'{LONG} <"a b"@b.example>': ['"a b"@b.example'],
    f'"{"x" * 90}, {"y" * 700}" <bob@b.example>': ["bob@b.example"],
    f'"{"x" * 974}," <bob@b.example>': ["bob@b.example"],
}
#: Headers of one mailbox.
SINGLE = {value: named for value, named in VALUES.items() if len(named) == 1 and ":" not in value}
FIELDS = sorted(NAMES - {"bcc", "resent-bcc"})


def modern(name: str, value: Any) -> EmailMessage:
    message = EmailMessage()
    message[name] = value
    message.set_content("body\n")
    return message


def older(name: str, value: Any) -> Message:
    message = MIMEText("body\n")
    message[name] = value
    return message


def written(message: Any, name: str) -> str:
    """The field of that name as it goes out, unfolded; whatever field it is, the envelope is given."""
    content = Envelope.from_message(message, "ann@example.org", ["bob@example.net"]).content
    found = re.findall(rb"(?im)^%s:[ ]?(.*(?:\r\n[ \t].*)*)\r\n" % re.escape(name.encode()), content)
    assert len(found) == 1, content
    if message.policy.max_line_length:
        assert max(map(len, content.split(b"\r\n"))) <= 998
    return re.sub(r"\r\n(?=[ \t])", "", found[0].decode("utf-8"))


def require(wire: str, expected: list[str]) -> None:
    """The mailboxes on the wire, as we read them and as others do, and no encoded word in one of them."""
    assert address_list(re.sub(r"=\?\S+\?=", "word", wire), "field") == expected
    assert not re.search(r"=\?[^\s<>]*@|@[^\s<>]*=\?", wire)
    assert max(map(len, re.findall(r"=\?\S*", wire)), default=0) <= 78  # the email package's have 77 (RFC 2047 §2: 75)
    if '"' not in "".join(expected):
        assert [address for _, address in getaddresses([wire]) if address] == expected


@pytest.mark.parametrize("make", [modern, older], ids=["EmailMessage", "Message"])
@pytest.mark.parametrize("value", VALUES)
def test_the_mailboxes_given_are_those_on_the_wire(value: str, make: Callable[[str, str], Any]) -> None:
    """Domains beyond ASCII, names that hide a comma, names that are folded: with the fast serialiser and without."""
    wire = written(make("To", value), "To")
    assert wire.isascii()
    require(wire, VALUES[value])
    with mock.patch.object(_plain, "serialised", return_value=None):
        assert written(make("To", value), "To") == wire


@pytest.mark.parametrize("make", [modern, older], ids=["EmailMessage", "Message"])
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_that_names_mailboxes(field: str, make: Callable[[str, str], Any]) -> None:
    """From, Sender, Reply-To, the Resent- ones, and those that mailers have agreed on, in any case of letters."""
    for value in SINGLE if field.endswith("sender") else VALUES:
        for name in (field, field.title()):
            require(written(make(name, value), name), VALUES[value])


@pytest.mark.parametrize("make", [modern, older], ids=["EmailMessage", "Message"])
def test_blind_recipients_are_served_and_not_shown(make: Callable[[str, str], Any]) -> None:
    message = make("Bcc", '"Böb, Jr" <bob@bücher.example>, =?utf-8?q?Last=2C_First?= <al@b.example>')
    message["From"] = "ann@bücher.example"
    envelope = Envelope.from_message(message)
    assert envelope.sender == "ann@xn--bcher-kva.example"
    assert envelope.recipients == (BOB, "al@b.example")
    assert b"bcc" not in envelope.content.lower()


@pytest.mark.parametrize("value", VALUES)
def test_what_was_parsed_is_written_as_well(value: str) -> None:
    """A message that comes out of a file or another mail, under either policy."""
    if not value.isascii():
        return
    raw = f"From: ann@example.org\r\nTo: {value}\r\n\r\nbody\r\n".encode()
    for policy in (email.policy.default, email.policy.compat32, email.policy.SMTP.clone(refold_source="all")):
        message: Any = email.message_from_bytes(raw, policy=policy)
        require(written(message, "To"), VALUES[value])


def test_raw_utf8_of_a_parsed_message_is_written_for_every_server() -> None:
    """A name beyond ASCII that nobody encoded becomes encoded words, and the domain its A-label: no SMTPUTF8 needed."""
    raw = "From: Annä Müstermann <ann@bücher.example>\r\nTo: bob@example.net\r\n\r\nbody\r\n".encode()
    for policy in (email.policy.default, email.policy.compat32):
        message: Any = email.message_from_bytes(raw, policy=policy)
        envelope = Envelope.from_message(message)
        assert envelope.sender == "ann@xn--bcher-kva.example"
        assert not envelope.smtputf8
        wire = written(message, "From")
        require(wire, [envelope.sender])
        [(name, _)] = getaddresses([wire])
        assert str(email.header.make_header(email.header.decode_header(name))) == "Annä Müstermann"


def test_names_come_through() -> None:
    """Quotes, commas, letters of any script: a reader sees the name that was set."""
    for name in (
        "Last, First",
        f"Mueller, {LONG}",
        'Ann "the" Lee',
        "Böb, Jr",
        f"Жук, {LONG} Ёж" * 3,
        "a\\b, c",
        "例, え",
    ):
        for domain in ("b.example", "bücher.example"):
            wire = written(modern("To", Address(name, "bob", domain)), "To")
            [(shown, _)] = getaddresses([wire])
            found = str(email.header.make_header(email.header.decode_header(shown)))
            assert " ".join(found.split()) == " ".join(name.split())  # 3.13 doubles a space where it folds


def test_a_name_that_looks_like_an_encoded_word_is_encoded() -> None:
    """Where the field is ours to write: or readers would show another name."""
    wire = written(modern("To", Address("=?utf-8?q?x?=", "bob", "bücher.example")), "To")
    [(shown, address)] = getaddresses([wire])
    assert (str(email.header.make_header(email.header.decode_header(shown))), address) == ("=?utf-8?q?x?=", BOB)


@pytest.mark.parametrize("domain", ["b.example", "bücher.example"])
def test_a_long_name_of_any_script_is_no_reason_to_refuse(domain: str) -> None:
    """In encoded words it is some times as long as what was given, and longer than any line may be."""
    wire = written(modern("To", Address("Ж" * 400, "bob", domain)), "To")
    assert len(wire) > 1200
    assert wire.endswith(f" <bob@{domain.encode('idna').decode()}>")


def test_groups_come_through() -> None:
    """With their names, in their places; an empty one too."""
    groups = [
        Group("Prüfer, alle", [Address("Böb", "bob", "bücher.example"), Address("", "al", "b.example")]),
        Address("Cy, Jr", "cy", "bücher.example"),
        Group("undisclosed-recipients", []),
    ]
    wire = written(modern("To", groups), "To")
    assert wire == (
        f"=?utf-8?q?Pr=C3=BCfer=2C_alle?=: =?utf-8?q?B=C3=B6b?= <{BOB}>, al@b.example;,"
        ' "Cy, Jr" <cy@xn--bcher-kva.example>, undisclosed-recipients:;'
    )


def test_an_older_header_object_is_written_right() -> None:
    """`Header` puts a whole address into one encoded word."""
    message = older("Reply-To", Header("Böb <bob@bücher.example>", "utf-8"))
    require(written(message, "Reply-To"), [BOB])


@pytest.mark.parametrize("make", [modern, older], ids=["EmailMessage", "Message"])
def test_the_message_is_left_as_it_was(make: Callable[[str, str], Any]) -> None:
    """It may be shared: eight threads at once get the same bytes out of it."""
    message = make("To", '"Böb, Jr" <bob@bücher.example>')
    message["From"], message["Date"], message["Message-ID"] = "ann@bücher.example", "now", "<1@b.example>"
    message.preamble = "\udcff" if make is older else None  # the generator has to do it
    before = list(message.raw_items())
    found: list[bytes] = []
    together = threading.Barrier(8)

    def run() -> None:
        together.wait(10)
        found.append(Envelope.from_message(message).content)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(found)) == 1
    after = list(message.raw_items())
    assert after == before
    assert all(a[1] is b[1] for a, b in zip(after, before, strict=True))


def test_an_attached_message_too() -> None:
    """On Python 3.15 one domain in one part would keep the whole message from being sent."""
    inner = modern("To", "Bob <bob@bücher.example>")
    for message in (MIMEMessage(inner), modern("Subject", "x")):
        if isinstance(message, EmailMessage):
            message.add_attachment(inner)
        content = Envelope.from_message(message, "ann@example.org", ["bob@example.net"]).content
        assert f"\r\nTo: Bob <{BOB}>\r\n".encode() in content


def test_a_mailbox_without_a_form_in_ascii_needs_smtputf8_wherever_it_is_named() -> None:
    """Also where the envelope names others: the header holds it in UTF-8 (RFC 6531 §3.4), for every recipient."""
    for make in (modern, older):
        message = make("Cc", "Jürgen <jürgen@bücher.example>")
        envelope = Envelope.from_message(message, "ann@example.org", ["bob@example.net", "cy@example.net"])
        assert envelope.smtputf8
        assert envelope.for_recipients(["cy@example.net"]).smtputf8
        assert "Cc: Jürgen <jürgen@".encode() in envelope.content
        # What nobody will see needs nothing.
        hidden = make("Resent-Bcc", "Jürgen <jürgen@b.example>")
        hidden["Subject"] = "Grüße"
        assert not Envelope.from_message(hidden, "ann@example.org", ["bob@example.net"]).smtputf8


def test_an_address_in_an_attached_message_goes_as_8_bit_text() -> None:
    """Where the message goes out in ASCII: never an encoded word in its place."""
    inner = modern("To", "jürgen@b.example")
    envelope = Envelope.from_message(MIMEMessage(inner), "ann@example.org", ["bob@example.net"])
    assert (envelope.smtputf8, envelope.eight_bit) == (False, True)
    assert "To: jürgen@b.example\r\n".encode() in envelope.content


@pytest.mark.parametrize("make", [modern, older], ids=["EmailMessage", "Message"])
def test_it_is_sent_through_a_server_without_smtputf8(make: Callable[[str, str], Any]) -> None:
    """From end to end; and what has no form in ASCII is not."""
    message = make("To", "Böb <bob@bücher.example>")
    hopeless = make("To", "jürgen@b.example")
    message["From"] = hopeless["From"] = "ann@example.org"
    with ScriptedServer([Serve(extensions=())], [Serve(extensions=())]) as server:
        with Client(server.url) as client:
            client.send(message)
            with pytest.raises(NotSupported):
                client.send(hopeless)
        with SMTP(server.host, server.port, local_hostname="me") as smtp, pytest.raises(NotSupported):
            smtp.send_message(hopeless, "ann@example.org", ["bob@example.net"])
    [got] = server.messages
    assert got.recipients == (BOB,)
    assert f"To: =?utf-8?q?B=C3=B6b?= <{BOB}>\r\n".encode() in got.content


# ---------------------------------------------------------------- made at random

CHARS = st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp", "Cn", "Co"))
NAME = st.one_of(
    st.text(CHARS, max_size=40),
    st.text(st.sampled_from('ab ,;:<>@()[]\\".éЖ=?_'), max_size=120),
    st.sampled_from(["", "Last, First", f"x@y.example, {LONG}", "=?utf-8?q?a=2C?=", "a  b, c", " , ", '"', LONG]),
)
LOCAL = st.sampled_from(["a", "first.last", "x+y", "a b", "a@b", "o'neil", "x" * 64, 'q"q', ""])
DOMAIN = st.sampled_from(["b.example", "bücher.example", "例え.example", "x-y.example", f"{'l' * 60}.example"])
ADDRESS = st.builds(Address, NAME, LOCAL.filter(bool), DOMAIN)
MEMBER = st.one_of(ADDRESS, ADDRESS, st.builds(Group, NAME.filter(str.strip), st.lists(ADDRESS, max_size=3)))
POLICY = st.sampled_from(
    [
        email.policy.default,
        email.policy.SMTP,
        email.policy.SMTPUTF8,
        email.policy.default.clone(max_line_length=40),
        email.policy.default.clone(max_line_length=0),
        email.policy.default.clone(cte_type="7bit"),
        email.policy.compat32,
        email.policy.compat32.clone(max_line_length=None),
    ]
)


@settings(max_examples=150, deadline=None)
@given(POLICY, st.lists(MEMBER, min_size=1, max_size=6), st.booleans())
@example(email.policy.default, [Address("a, b", "c", "bücher.example")], True)
@example(email.policy.default.clone(max_line_length=40), [Group("0000\xa0", [])] * 3, False)
@example(email.policy.default, [Address("=??Q?0=2C?=", "a", "b.example")], True)
def test_any_mailboxes_are_written_or_refused(policy: Any, members: list[Any], fast: bool) -> None:
    """Whatever their names: on the wire stand the mailboxes that a reader of the field would have had from it."""
    text = ", ".join(map(str, members))
    try:
        expected = address_list(text, "To")
    except ValueError:
        return
    if isinstance(policy, email.policy.EmailPolicy):
        message: Any = EmailMessage(policy)
        message["To"] = members
    else:
        message = Message(policy)
        message["To"] = text
    message.set_payload("body\n")
    refused = mock.patch.object(_plain, "serialised", return_value=None)
    with refused if not fast else mock.patch.object(_plain, "nothing", create=True):
        wire = written(message, "To")
    assert address_list(re.sub(r"=\?utf-8\?\S*\?=(?=.*<)", "word", wire), "To") == expected
    assert not re.search(r"@[^\s<>]*=\?", wire)
    assert wire.isascii() or getattr(policy, "utf8", False)
