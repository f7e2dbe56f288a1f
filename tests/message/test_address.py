"""Addresses: what comes out of the grammar is safe between brackets; what cannot be read is refused, never guessed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmail import InvalidAddress
from threadmail._message import address as _address
from threadmail._message.address import address_list, mailbox, sender_mailbox

# Characters that mean something to a command line, a header or IDNA, so that random text is nasty text.
NASTY = st.text(
    st.one_of(
        st.sampled_from('ab@.<>"\\,;:()[] \t\r\n\0=?%!-_'),
        st.sampled_from("é\u212a\u037e\u1fef\uff20\uff1c\uff1e\u3002ß\u0130ς\u200d\u00a0\u2028\x7f\x85"),
        st.characters(codec="utf-8"),
    ),
    max_size=24,
)
# Text that has a chance to be an address.
LIKELY = st.builds("{}@{}".format, NASTY, NASTY) | st.builds("{} <{}@{}>".format, NASTY, NASTY, NASTY) | NASTY

# RFC 5321 section 4.1.2 as the server reads it, with section 4.5.3's freedoms and RFC 6531's characters: written anew
# here, so that the test does not believe what it tests. Dots may stand anywhere in a local part.
_ATEXT = r"(?:[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]|[^\x00-\x9f\s])"
_QCONTENT = r"(?:[ !#-\[\]-~]|\\[ -~]|[^\x00-\x9f\s])"
_SUB = r"(?:[A-Za-z0-9_-]|[^\x00-\x9f\s])+"
PATH = re.compile(
    rf'(?:{_ATEXT}+|"{_QCONTENT}*")(?:@(?:{_SUB}(?:\.{_SUB})*|\[[0-9A-Za-z:.]+\]))?',
)


@given(LIKELY)
def test_what_is_let_out_stands_between_brackets_as_one_path(text: str) -> None:
    """A server that reads by the RFC finds in `RCPT TO:<...>` the whole address, and nothing behind it."""
    try:
        found = mailbox(text)
    except InvalidAddress:
        return
    assert PATH.fullmatch(found), found
    assert not set(found) & set("\r\n\0\t")
    assert len(f"rcpt to:<{found}>\r\n".encode()) <= 512


@given(LIKELY)
def test_a_naive_server_reads_the_same_address(text: str) -> None:
    """Outside quotes there is no space and no bracket: splitting the command at either changes nothing."""
    try:
        found = mailbox(text)
    except InvalidAddress:
        return
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', "", found)
    assert not re.search(r"[\s<>]", unquoted)


@given(LIKELY)
def test_reading_what_was_read_changes_nothing(text: str) -> None:
    """An address that was let out passes again, unchanged: envelopes survive being stored and read."""
    try:
        found = mailbox(text)
    except InvalidAddress:
        return
    assert mailbox(found) == found


@given(st.text(st.sampled_from("abzA-_.éüßÜ\u0308\u212a\u037e\u1fef\uff20\u3002\u0130ς\u03c3①㎏"), min_size=1))
def test_a_domain_in_ascii_only_comes_from_the_same_name(domain: str) -> None:
    """A domain beyond ASCII becomes an A-label that stands for it and no other, or it stays as it was written."""
    try:
        found = mailbox(f"ann@{domain}").removeprefix("ann@")
    except InvalidAddress:
        return
    if found != domain:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", found)
        assert found.encode().decode("idna") == unicodedata.normalize("NFC", domain).lower()


@given(st.text())
def test_arbitrary_text_is_an_address_or_our_own_error(text: str) -> None:
    """Nothing but InvalidAddress, one printable line, for whatever text; the same of lists and senders."""
    for read in (mailbox, sender_mailbox, lambda t: address_list(t, "To field")):
        said = ""
        try:
            read(text)
        except InvalidAddress as error:
            said = str(error)
        assert said.isprintable()


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("a@b.example", "a@b.example"),
        (" a@b.example ", "a@b.example"),
        ("<a@b.example>", "a@b.example"),
        ("Ann <a@b.example>", "a@b.example"),
        ('"Last, First" <a@b.example>', "a@b.example"),
        ('"evil <x@y>" <a@b.example>', "a@b.example"),
        ("root", "root"),
        ("Ann <root>", "root"),
        ("first..last@docomo.example", "first..last@docomo.example"),
        ("name.@docomo.example", "name.@docomo.example"),
        ("a+tag=x@b.example", "a+tag=x@b.example"),
        ('"a b"@b.example', '"a b"@b.example'),
        ('"a\\"b"@b.example', '"a\\"b"@b.example'),
        ('"a@b"@c.example', '"a@b"@c.example'),
        ("a@[127.0.0.1]", "a@[127.0.0.1]"),
        ("a@[IPv6:::1]", "a@[IPv6:::1]"),
        ("a@under_score.example", "a@under_score.example"),
        ("a@localhost", "a@localhost"),
        ("müller@bücher.example", "müller@bücher.example"),
        ("ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@BÜCHER.example", "ann@xn--bcher-kva.example"),
        ("ann@xn--bcher-kva.example", "ann@xn--bcher-kva.example"),
        ("ann@bu\u0308cher.example", "ann@xn--bcher-kva.example"),
    ],
)
def test_live_forms_are_read(text: str, bare: str) -> None:
    """Forms found in real mail give the bare mailbox."""
    assert mailbox(text) == bare


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "<>",
        "@b.example",
        "a@",
        "a@@b.example",
        "a@b@c.example",
        "a b@c.example",
        "a@b.example c",
        "a@b example",
        "<a@b.example> SIZE=1",
        "<a@b.example>SIZE=1",
        "<a@b.example",
        "a@b.example>",
        "<<a@b.example>>",
        "<a@b.example> <c@d.example>",
        "a@b.example, c@d.example",
        "a@b.example; c@d.example",
        "a@b.example:c",
        "a@b.example(x)",
        "a\\@b.example",
        "a@-b.example",
        "a@b-.example",
        "a@b..example",
        "a@.example",
        "a@example.",
        "a@[300.0.0.1",
        "a@[evil]",
        "a@b.example\r\nRCPT TO:<c@d.example>",
        "a@b.example\nDATA",
        "a@b.example\rDATA",
        "a\0@b.example",
        "a\x1b@b.example",
        "a\u2028b@c.example",
        "a\u200d@b.example",
        "a\udc80@b.example",
        '"a',
        '"a"',
        '"a b"c@d.example',
        '"a\r\n b"@c.example',
        "=?utf-8?q?a=40b.example?=",
        "a" * 470 + "@example.org",
        "a" * 5000,
        f'"{"x" * 2000}" <a@b.example>',
    ],
)
def test_what_is_no_mailbox_is_refused(text: str) -> None:
    """Each of these would be cut, guessed at or smuggled by a parser that lets things pass."""
    with pytest.raises(InvalidAddress) as info:
        mailbox(text, "recipient 3")
    assert str(info.value).startswith("recipient 3 ")
    assert str(info.value).isprintable()
    assert len(str(info.value)) < 700  # escapes included: it does not repeat a long input


# Names and addresses that nearly are plain.
PLAIN = st.from_regex(
    r"[ ]{0,5}([a-zA-Z0-9 .'=?_-]{0,9}<)?[a-z.+_-]{1,4}@[a-zA-Z0-9_.-]{1,9}>?[ ]{0,2}", fullmatch=True
)


def _read(read: Callable[[str], object], text: str) -> object:
    try:
        return read(text)
    except InvalidAddress as error:
        return str(error)


@given(PLAIN | LIKELY | st.lists(PLAIN | LIKELY, max_size=4).map(",".join))
def test_the_short_way_reads_what_the_grammar_reads(text: str) -> None:
    """Plain addresses and lists of them pass by without the parser, which would say the same; errors are the same."""
    readers: list[Callable[[str], object]] = [mailbox, sender_mailbox, lambda t: address_list(t, "To field")]
    short = [_read(read, text) for read in readers]
    with (
        mock.patch.object(_address, "_IS_PLAIN", return_value=None),
        mock.patch.object(_address, "_PLAIN_ITEM", return_value=None),
    ):
        assert [_read(read, text) for read in readers] == short


@pytest.mark.parametrize(
    "text", ["a@b.example", "x-y+z_0@sub.mail.b-c.example", "Ann Lee <a@b.example>", "=?utf-8?q?A=2C?= <a@b.example>"]
)
def test_plain_addresses_take_the_short_way(text: str) -> None:
    """A list of what most mail holds is not read character by character."""
    with mock.patch.object(_address, "mailbox", side_effect=AssertionError("the long way")):
        assert len(address_list(f"{text}, {text}", "To")) == 2


@pytest.mark.parametrize("value", [None, 3, b"a@b.example", ["a@b.example"]])
def test_what_is_no_string_is_refused_by_its_type(value: object) -> None:
    """The error names the type; nothing is converted."""
    with pytest.raises(InvalidAddress, match=f"must be a string, not {type(value).__name__}"):
        mailbox(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("domain", "other"),
    [
        ("faß.de", "fass.de"),
        ("βόλος.example", "xn--nxasmq6b.example"),
        ("ex\uff20mple.org", "ex@mple.org"),
        ("ex\u037eample.org", "ex;ample.org"),
        ("ex\u1fefample.org", "ex`ample.org"),
        ("a\u3002example.org", "a.example.org"),
        ("①.example", "1.example"),
    ],
)
def test_a_domain_never_becomes_another_one(domain: str, other: str) -> None:
    """IDNA 2003 maps "ß" to "ss" and more: the mail of one domain would go to another. Then the name stays as it is."""
    try:
        found = mailbox(f"ann@{domain}")
    except InvalidAddress:
        return  # also no other domain
    assert found == f"ann@{domain}"
    assert other not in found


@pytest.mark.parametrize("text", ["", "<>"])
def test_the_null_sender_is_empty(text: str) -> None:
    """Bounces have the reverse-path `<>` (RFC 5321 section 4.5.5)."""
    assert sender_mailbox(text) == ""


def test_the_null_path_is_no_recipient() -> None:
    """Mail to nobody is refused."""
    with pytest.raises(InvalidAddress):
        mailbox("<>")


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" , ,", []),
        ("a@x.test", ["a@x.test"]),
        ("a@x.test,b@x.test", ["a@x.test", "b@x.test"]),
        ('"Last, First" <a@x.test>, b@x.test', ["a@x.test", "b@x.test"]),
        ("friends: a@x.test, Bo <b@x.test>;", ["a@x.test", "b@x.test"]),
        ("friends: a@x.test;, c@x.test", ["a@x.test", "c@x.test"]),
        ("undisclosed-recipients:;", []),
        ('"a: group?" <a@x.test>', ["a@x.test"]),
        ("a@x.test (Ann)", ["a@x.test"]),
        ("(Ann, of x) a@x.test, b@x.test (Bo (the second), really)", ["a@x.test", "b@x.test"]),
        ("a@x.test (with \\) inside)", ["a@x.test"]),
        ("Ann (x)<a@x.test>", ["a@x.test"]),
        ("=?utf-8?q?Last=2C_First?= <a@x.test>", ["a@x.test"]),
        ("a@[IPv6:::1], b@x.test", ["a@[IPv6:::1]", "b@x.test"]),
        ('"q\\"u, o" <a@x.test>', ["a@x.test"]),
    ],
)
def test_address_lists_are_split_as_the_rfc_says(text: str, found: list[str]) -> None:
    """Groups dissolve, comments go, commas inside quotes, comments and encoded words separate nothing."""
    assert address_list(text, "To field") == found


@pytest.mark.parametrize(
    "text",
    [
        "a@x.test; b@x.test",
        "a@x.test b@x.test",
        "a@x.test: b@x.test",
        "a(comment)b@x.test",
        "a@x(comment)y.test",
        "friends: a@x.test",
        '"a@x.test',
        "a@x.test (unclosed",
        "<a@x.test",
        "a@x.test, nobody home, b@x.test",
        '"a\\',
    ],
)
def test_a_list_that_cannot_be_read_is_refused_whole(text: str) -> None:
    """Skipping what is not understood would lose a recipient in silence; joining it would invent one."""
    with pytest.raises(InvalidAddress, match="To field"):
        address_list(text, "To field")


@given(st.lists(st.builds("{}@{}.test".format, *[st.from_regex(r"[a-z]{1,8}", fullmatch=True)] * 2), max_size=6))
def test_a_list_gives_back_what_was_joined(addresses: list[str]) -> None:
    """However plain addresses are dressed, each comes back, in order, once for each time it was written."""
    for dress in ("{}", "X <{}>", '"y, z" <{}>', "{} (w, v)", "G: {};"):
        assert address_list(", ".join(dress.format(a) for a in addresses), "To") == addresses


@pytest.mark.parametrize("evil", ["(" * 20000, "<" * 20000, '"\\' * 10000, "a" * 20000, "a." * 10000, '"a' * 10000])
def test_long_nonsense_is_refused_in_linear_time(evil: str) -> None:
    """No input makes the grammar backtrack for long; the suite would hang here."""
    for read in (mailbox, lambda t: address_list(t, "To")):
        with pytest.raises(InvalidAddress):
            read(evil)
        with pytest.raises(InvalidAddress):
            read(evil[:900] + "@x!")
