"""The serialiser of plain messages writes what the email package's generator writes, byte for byte, or nothing."""

from __future__ import annotations

import copy
import io
import random
import re
from collections.abc import Callable
from email import headerregistry, message_from_bytes
from email.errors import MessageError
from email.generator import BytesGenerator
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage, Message, MIMEPart
from email.mime.application import MIMEApplication
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from email.mime.text import MIMEText
from email.policy import SMTP, SMTPUTF8, EmailPolicy, compat32, default
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import corpus
from threadmail import Envelope, InvalidEnvelope
from threadmail._message import flatten as _flatten
from threadmail._message import plain as _plain

POLICIES = (default, SMTP, compat32)
CUSTOM = (
    *POLICIES,
    SMTPUTF8,
    default.clone(max_line_length=0),
    default.clone(max_line_length=None),
    default.clone(max_line_length=40),
    default.clone(max_line_length=998),
    default.clone(refold_source="none"),
    default.clone(refold_source="all"),
    default.clone(cte_type="7bit"),
    compat32.clone(cte_type="7bit"),
    compat32.clone(max_line_length=None),
    compat32.clone(max_line_length=30),
)
ERRORS = (MessageError, ValueError, LookupError, AttributeError, TypeError, AssertionError, RecursionError)
ID = [("From", "ann@example.org"), ("To", "bob@example.net"), ("Message-ID", "<1@example.org>"), ("Date", "now")]


def generated(message: Any) -> bytes | None:
    """What the generator writes; None where it raises. It writes boundaries into the message, so it gets a copy."""
    out = io.BytesIO()
    copied = _flatten._copied(message)
    policy = message.policy.clone(utf8=False) if isinstance(message.policy, EmailPolicy) else message.policy
    _flatten._mind_addresses(copied, policy, utf8=False)
    random.seed(1)
    try:
        BytesGenerator(out, mangle_from_=False, policy=policy).flatten(copied, linesep="\r\n")
    except ERRORS:
        return None
    return out.getvalue()


def serialised(message: Any) -> bytes | None:
    random.seed(1)
    written = _plain.serialised(message, list(message.raw_items()))
    return None if written is None else b"".join((written[0], *written[1]))


def envelope_of(message: Any) -> Envelope | str:
    """The envelope, or why there is none."""
    random.seed(1)
    try:
        return Envelope.from_message(message, "ann@example.org", ["bob@example.net"])
    except InvalidEnvelope as error:
        return str(error)


def agrees(message: Any) -> bool:
    """Whether the message was written without the generator; and then it was written as the generator does."""
    written = serialised(message)
    assert written is None or written == generated(message)
    return written is not None


def built(kind: Any = EmailMessage, *fields: tuple[str, str], body: str = "body\n", policy: Any = default) -> Any:
    message = kind(policy=policy)
    for name, value in fields or ID:
        message[name] = value
    message.set_content(body)
    return message


def legacy(*fields: tuple[str, Any], body: str = "body\n") -> Any:
    message = MIMEText(body)
    for name, value in fields:
        message[name] = value
    return message


def with_raw(value: Any, name: str = "X-Field", policy: Any = default) -> Any:
    message = built(policy=policy) if isinstance(policy, EmailPolicy) else legacy(*ID)
    message.set_raw(name, value)
    return message


def attached(subtype: str = "mixed", policy: Any = default) -> Any:
    message = built(policy=policy)
    message.add_alternative("<p>body</p>\n", subtype="html")
    if subtype == "related":
        message.make_mixed()
    message.add_attachment(b"\0\xff" * 300, maintype="application", subtype="pdf", filename="a file.pdf")
    message.add_attachment(built())  # message/rfc822
    message.add_attachment("text\n", filename="a.txt")
    return message


def old_attached(*parts: Any) -> Any:
    message = MIMEMultipart("related", boundary="xyz")
    message["Subject"] = "x"
    inner = MIMEMultipart("alternative")
    inner.attach(MIMEText("body\r\nFrom here\n.\n"))
    inner.attach(MIMEText("<p>ü</p>", "html", "utf-8"))
    for part in (inner, MIMEApplication(b"\0\1" * 500), *parts):
        message.attach(part)
    return message


# ---------------------------------------------------------------- stored messages


@pytest.mark.parametrize("policy", POLICIES, ids=["default", "SMTP", "compat32"])
def test_stored_messages_are_written_as_the_generator_writes_them(policy: Any) -> None:
    """Every file of the corpus, the broken ones too; three in four need no generator."""
    files = sorted([*corpus.MESSAGES.glob("*.eml"), *corpus.BAD.glob("*.eml")])
    plain = [path.name for path in files if agrees(message_from_bytes(path.read_bytes(), policy=policy))]
    assert len(plain) >= 0.75 * len(files)
    assert {"gmail-attachment.eml", "body-utf8.eml", "headers-rfc2047.eml", "nested-rfc822.eml"} <= set(plain)


@pytest.mark.parametrize("policy", POLICIES, ids=["default", "SMTP", "compat32"])
def test_the_envelope_of_a_stored_message_is_that_of_the_generator(policy: Any) -> None:
    """From end to end: Bcc gone, fields added, sender, recipients and Message-ID the same."""
    for sample in corpus.samples():
        message = message_from_bytes(sample.data, policy=policy)
        del message["Message-ID"], message["Date"]  # made anew, the date by the second
        message["Date"], message["Message-ID"] = "Mon, 02 Jan 2023 10:00:00 +0000", "<1@example.org>"
        envelope = envelope_of(message)
        with mock.patch.object(_plain, "serialised", return_value=None):
            assert envelope_of(message) == envelope, sample.name


# ---------------------------------------------------------------- built messages


@pytest.mark.parametrize(
    "make",
    [
        built,
        lambda: built(policy=SMTP),
        lambda: built(policy=SMTPUTF8),
        lambda: built(MIMEPart),
        lambda: built(EmailMessage, ("Subject", "é" * 60), ("To", "Zoë <a@b.example>, " * 9 + "c@d.example")),
        lambda: built(EmailMessage, ("Subject", ""), ("Date", "no date"), ("From", "a@b.example (comment)")),
        lambda: built(body="ünï\n" * 9),
        lambda: built(body="ünï\n" * 9, policy=SMTP),
        lambda: built(body="a\r\nb\rc\n\n.\nFrom me\n" + "x" * 2000),
        lambda: built(body=""),
        EmailMessage,
        Message,
        attached,
        lambda: attached("related"),
        lambda: attached(policy=SMTP),
        legacy,
        lambda: legacy(*ID, ("Subject", "x" * 300)),
        lambda: legacy(("Subject", Header("é" * 60, "utf-8"))),
        lambda: MIMEText("é", "plain", "utf-8"),
        lambda: MIMEMultipart("mixed", "b", [MIMEText("x")]),
        old_attached,
        lambda: old_attached(MIMEMessage(legacy(*ID))),
        lambda: old_attached(built()),
        lambda: with_raw("folded by\r\n its source"),
    ],
)
def test_what_programs_build_needs_no_generator(make: Callable[[], Any]) -> None:
    """The common ways of making a message are fast, and write the same bytes."""
    assert agrees(make())


def test_sending_a_common_message_never_enters_the_generator() -> None:
    """The fast way is taken, for text and for parts, also when Date and Message-ID are to be added."""
    forbidden = mock.patch.object(_flatten, "BytesGenerator", side_effect=AssertionError("the generator was called"))
    bare = built(EmailMessage, *ID[:2], ("Bcc", "eve@example.net"))
    with forbidden:
        for message in (built(), attached(), old_attached(), bare):
            Envelope.from_message(message, "ann@example.org", ["bob@example.net"])
        envelope = Envelope.from_message(bare)
    assert envelope.recipients == ("bob@example.net", "eve@example.net")
    assert b"eve@" not in envelope.content
    assert re.match(rb"Date: .*\r\nMessage-ID: <.*@example.org>\r\nFrom: ann@example.org\r\n", envelope.content)


@pytest.mark.parametrize("make", [attached, old_attached])
def test_nothing_is_written_into_the_message(make: Callable[[], Any]) -> None:
    """Not even the boundaries that it lacks."""
    message = make()
    before = [(list(part.raw_items()), part.policy, part._payload) for part in message.walk()]
    assert serialised(message)
    assert [(list(part.raw_items()), part.policy, part._payload) for part in message.walk()] == before


@pytest.mark.parametrize("policy", CUSTOM, ids=range(len(CUSTOM)))
@pytest.mark.parametrize("subtype", ["mixed", "alternative", "x" * 12, "x" * 30, "x" * 48, "x" * 70])
def test_a_boundary_is_added_as_the_generator_adds_it(subtype: str, policy: Any) -> None:
    """Wherever the line has to be folded, under each policy, and out of the same random number."""
    message: Any = MIMEMultipart(subtype, policy=policy)
    message.attach(MIMEText("body"))
    modern = EmailMessage(policy if isinstance(policy, EmailPolicy) else default)
    modern["Content-Type"] = f"multipart/{subtype}"
    modern.attach(built())
    fits = (policy.max_line_length or 998) > 40 and len(subtype) < 70
    assert agrees(message) >= fits
    assert agrees(modern) >= fits


def test_a_boundary_that_stands_in_a_part_is_left_to_the_generator() -> None:
    """It would try another one."""
    random.seed(1)
    message = MIMEMultipart()
    message.attach(MIMEText("x\n--===============" + f"{random.randrange(2**63 - 1):019}" + "==\n"))
    assert serialised(message) is None


# ---------------------------------------------------------------- nasty messages

LONG = [f"{'x' * n}" for n in (66, 67, 68, 69, 70, 78, 79, 500, 987, 988, 989, 998, 1200)]
WORDS = [f"{'word ' * 20}{'x' * n}" for n in (1, 40, 78, 79, 998)]
VALUES = [
    *("", " ", "\t", "  ", "a ", " a", "a\t", "a\tb", "a  b", "a\x0bb", "a\x0cb", "a\x1cb", "a\x7fb", "a\0b"),
    *("a\r\nBcc: eve@example.org", "a\nX: y", "a\rX: y", "a\r\n\r\nbody", "a\r\n", "\r\na", "a\r\n b", "a\n b"),
    *("a\n\tb", "a\x85b", "a\u2028X: y", "é", "\udce9", "a\udc0ab", "\ud800", "=?utf-8?q?a=0AX:_y?=", "=?u?q?abc?="),
    *("=?utf-8?q?=C3=A9?=", "=?utf-8?b?DQpCY2M6IGVAeA==?= <a@b.example>", '"Last, First" <a@b.example>'),
    *("=?utf-8?q?Last=2C_First?= <a@b.example>", "a@b.example (x)", " a@b.example", "<a@b.example>", "g: a@b.example;"),
    *("text/plain", 'multipart/mixed; boundary="x y"', "multipart/mixed; boundary=a", "text", "x/y/z", "a/b; c=d; c=e"),
    *("text/plain (comment); charset=utf-8", "multipart/mixed", "message/rfc822", "multipart/signed; boundary=q"),
    *("Mon, 02 Jan 2023 10:00:00 +0000", "no date", "<1@example.org>", "<1@example.org> x", "1.0", "base64", "7bit"),
    *("a@b.example,c@d", *LONG, *WORDS),
]
NAMES = [
    *("Subject", "To", "From", "Sender", "Bcc", "Date", "Message-ID", "Content-Type", "Content-Disposition"),
    *("MIME-Version", "Content-Transfer-Encoding", "References", "X-Field", "x", "content-type", "X_y!", "X" * 80),
    *("", "A B", "A:", "A: b", "A\r\nB", "A\n", "É", " A"),
]


def set_field(message: Any, name: str, value: str, raw: bool) -> None:
    """By the front door, or past every check."""
    if not raw:
        try:
            message[name] = value
            return
        except (*ERRORS, IndexError):
            pass
    message.set_raw(name, value)


@pytest.mark.parametrize("policy", CUSTOM, ids=range(len(CUSTOM)))
def test_nasty_fields_are_written_as_the_generator_writes_them_or_not_at_all(policy: Any) -> None:
    """Line ends, control characters, encoded words, lengths about the limits, blanks, odd names; set and raw."""
    for raw in (True, False):
        for name in NAMES:
            for value in VALUES if name in NAMES[:16] and policy in POLICIES else VALUES[::5]:
                message = EmailMessage(policy) if isinstance(policy, EmailPolicy) else Message(policy)
                set_field(message, name, value, raw)
                message.set_payload("body\n")
                agrees(message)


@pytest.mark.parametrize("policy", POLICIES, ids=["default", "SMTP", "compat32"])
@pytest.mark.parametrize("value", [v for v in VALUES if re.search(r"[\r\n](?![ \t])", v)])
def test_no_line_end_gets_past(value: str, policy: Any) -> None:
    """CVE-2024-6923 and its kin: what could begin another field is never written, at the top or in a part."""
    inner = with_raw(value, policy=policy)
    for message in (inner, MIMEMultipart("mixed", "b", [inner], policy=policy)):
        written = serialised(message)
        assert written is None or not re.search(rb"(?m)^(X|Bcc): ", written.partition(b"\r\n\r\nbody")[0])


@pytest.mark.parametrize("name", [n for n in NAMES if not re.fullmatch(r"[!-9;-~]+", n)])
def test_a_name_that_is_none_is_left_to_the_generator(name: str) -> None:
    """Whoever reads the result would see another field."""
    assert serialised(with_raw("x", name)) is None


# ---------------------------------------------------------------- what is not for us


class OtherPolicy(EmailPolicy):
    pass


def undeclared(text: str) -> Any:
    """A part of a digest: without a Content-Type it is a message."""
    part = Message()
    part.set_default_type("message/rfc822")
    part.set_payload(text)
    return part


OWN_FOLD: Any = {"fold_binary": lambda name, value: b"X: y\r\n"}  # a policy takes methods for settings


class Folding(headerregistry.UnstructuredHeader, headerregistry.BaseHeader):
    """A header that writes itself."""

    def fold(self, *, policy: Any) -> str:
        return f"{self.name}: folded\r\n"


class Reading(headerregistry.UnstructuredHeader):
    """A header whose text is not what it writes."""

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        super().parse(value, kwds)
        kwds["decoded"] = "shown"


class Payload(Message):
    def get_payload(self, *args: Any, **kwds: Any) -> Any:
        return "other"


class Writer(EmailMessage):
    def _write_headers(self, generator: Any) -> None:
        generator.write("X: y\r\n\r\n")


class Items(EmailMessage):
    def raw_items(self) -> Any:
        return iter([("X", "y")])


def patched(**attributes: Any) -> Any:
    message = built()
    vars(message).update(attributes)
    return message


@pytest.mark.parametrize(
    "make",
    [
        lambda: built(policy=OtherPolicy()),
        lambda: built(EmailMessage, ("Subject", "x"), policy=default.clone(**OWN_FOLD)),
        lambda: built(Writer),
        lambda: built(Items),
        Payload,
        lambda: patched(_write_headers=lambda generator: None),
        lambda: patched(get_payload=lambda: "other"),
        lambda: patched(_payload=b"bytes"),
        lambda: patched(_payload=["no message"]),
        lambda: patched(_payload=[built()]),
        lambda: patched(_payload="nul \0"),
        lambda: patched(_payload="é"),
        lambda: patched(_payload="\udcc3\udca9", policy=default.clone(cte_type="7bit")),
        lambda: MIMEMultipart("digest", "b", [undeclared("a\nb")]),
        lambda: (
            built(body="ünï\n", policy=default.clone(cte_type="8bit")).__class__
            and with_raw("text/plain", "Content-Type")
        ),
        lambda: MIMEMultipart("signed", "b", [MIMEText("x")]),
        lambda: MIMEMultipart("mixed", "b b", [MIMEText("x")]),
        lambda: MIMEMultipart("mixed", None, [Payload()]),
        lambda: MIMENonMultipart("multipart", "mixed"),
        lambda: message_from_bytes((corpus.MESSAGES / "exchange-undeliverable.eml").read_bytes(), policy=default),
    ],
)
def test_what_is_not_certain_is_left_to_the_generator(make: Callable[[], Any]) -> None:
    """Policies, messages and instances of one's own, payloads that are none, types that are written otherwise."""
    assert serialised(make()) is None


def test_headers_of_ones_own_write_themselves() -> None:
    """A class that folds or reads in its own way is asked, as the generator asks it."""
    assert b"\r\nX-Field: folded\r\n" in (serialised(with_raw(Folding("X-Field", "value"))) or b"")
    assert agrees(with_raw(Folding("X-Field", "value")))
    shown = headerregistry.HeaderRegistry(default_class=Reading)("X-Field", "value")
    assert shown == "shown"
    assert agrees(with_raw(shown))


def test_a_content_type_of_ones_own_gets_its_boundary_from_its_policy() -> None:
    """A registry with another class for Content-Type is asked what the field with its boundary looks like."""

    class Shouting(headerregistry.ContentTypeHeader):
        def fold(self, *, policy: Any) -> str:
            return super().fold(policy=policy).replace("mixed", "MIXED")  # type: ignore[misc,no-any-return]

    factory = headerregistry.HeaderRegistry()
    factory.map_to_type("content-type", Shouting)  # type: ignore[arg-type]  # it gets its base there
    message = EmailMessage(default.clone(header_factory=factory))
    message.make_mixed()
    message.attach(built())
    assert agrees(message)
    assert b"multipart/MIXED; " in (serialised(message) or b"")


def test_a_deep_tree_is_left_to_the_generator() -> None:
    """Nobody's stack is used up by two."""
    message: Any = MIMEText("x")
    for _ in range(40):
        message = MIMEMultipart("mixed", None, [message])
    assert serialised(message) is None


def test_a_header_of_another_message_keeps_its_name() -> None:
    """A header object is written under the name that it was made with: no injection, only another case."""
    message = built(EmailMessage, *ID[:2])
    message["subject"] = built(EmailMessage, ("Subject", "x"))["Subject"]
    assert agrees(message)
    assert b"\r\nSubject: x\r\n" in Envelope.from_message(message).content
    with mock.patch.object(_plain, "serialised", return_value=None):
        assert b"\r\nSubject: x\r\n" in Envelope.from_message(message).content


def test_a_header_of_another_name_is_refused() -> None:
    """It would be written as what it is, and not as what it was added as."""
    message = with_raw(built(EmailMessage, ("Subject", "x" * 90))["Subject"])
    assert serialised(message) is None
    with pytest.raises(InvalidEnvelope, match="X-Field"):
        Envelope.from_message(message)


# ---------------------------------------------------------------- made at random

TEXT = st.text(st.sampled_from('aabcX  .,;:<>@"()[]=?_\\/-\t\r\n\x0b\x1c\x7f\0éü\u2028\udcc3\udca9'), max_size=100)
VALUE = st.one_of(
    st.sampled_from(VALUES),
    TEXT,
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=100),
    st.integers(60, 80).map(lambda n: "x" * n),
    st.lists(st.sampled_from(["ann@example.org", "Bo <bo@example.net>", '"C, D" <c@d.example>', "word"])).map(
        ", ".join
    ),
)
FIELD = st.tuples(st.sampled_from(NAMES[:16]) | st.sampled_from(NAMES), VALUE, st.booleans())
BODY = st.one_of(st.none(), TEXT, st.sampled_from(["", "body\n", "a\r\nb\rc\n", "From me\n", ".\n", "é\n", "x" * 1000]))


@st.composite
def leaves(draw: st.DrawFn) -> Any:
    """A part without parts, by one of the ways to make one."""
    policy = draw(st.sampled_from(CUSTOM))
    body = draw(BODY)
    if not isinstance(policy, EmailPolicy):
        message: Any = MIMEText("x") if draw(st.booleans()) else Message(policy)
        message.set_payload(body)
    else:
        message = EmailMessage(policy)
        if body is not None and draw(st.booleans()):
            try:
                message.set_content(body)
            except ERRORS:
                message.set_payload(body)
        else:
            message.set_payload(body)
    for name, value, raw in draw(st.lists(FIELD, max_size=4)):
        set_field(message, name, value, raw)
    return message


@st.composite
def branches(draw: st.DrawFn, parts: st.SearchStrategy[Any]) -> Any:
    """A part with parts in it: new style, old style, with or without a boundary, or a message."""
    below = draw(st.lists(parts, max_size=3))
    boundary = draw(st.none() | st.sampled_from(["b", "b c", 'q"', "===1=="]))
    subtype = draw(st.sampled_from(["mixed", "alternative", "related", "signed", "digest", "x-a.b", "report"]))
    if draw(st.integers(0, 5)) == 0 and below:
        return MIMEMessage(below[0])
    message: Any = EmailMessage() if draw(st.booleans()) else Message()
    message["Content-Type"] = f"multipart/{subtype}"
    if boundary is not None:
        message.set_boundary(boundary)
    for part in below:
        message.attach(part)
    message.preamble, message.epilogue = draw(BODY), draw(BODY)
    for name, value, raw in draw(st.lists(FIELD, max_size=2)):
        set_field(message, name, value, raw)
    return message


@settings(max_examples=200, deadline=None)
@given(st.recursive(leaves(), branches, max_leaves=4))
def test_random_trees_are_written_as_the_generator_writes_them_or_not_at_all(message: Any) -> None:
    """Nothing that can be built makes the two differ, and what the generator refuses is not written."""
    agrees(message)
    agrees(copy.copy(message))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([default, SMTP, SMTPUTF8, compat32]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
    st.lists(st.sampled_from(["ann@example.org", "Bo Li <b.li@c.example>", "x-y+z@d.example", "=?u?q?a?= <b@c.test>"])),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=100),
    st.booleans(),
)
def test_ordinary_mail_is_always_plain(policy: Any, subject: str, to: list[str], body: str, parts: bool) -> None:
    """Whatever stands in its subject, its recipients and its text."""
    if not isinstance(policy, EmailPolicy):
        message: Any = MIMEText(body, "plain", "utf-8")
        if parts:
            message = MIMEMultipart("mixed", None, [message, MIMEApplication(body.encode())])
        message["From"] = "a@b.example"
    else:
        message = EmailMessage(policy)
        message["From"] = Address("A B", "a", "b.example")
        message.set_content(body)
        if parts:
            message.add_alternative(body, subtype="html")
            message.add_attachment(body.encode(), maintype="image", subtype="png", filename="a b.png")
    message["Subject"], message["To"] = subject, ", ".join(to)
    assert agrees(message)
