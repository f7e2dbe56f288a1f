"""What a message is, as bytes.

Owns what is read and changed in content that is bytes, between the caller's hands and the wire: normalising its line
ends, taking its Bcc out, and reading sender, recipients and Message-ID from its header. Guarantees: what comes out has
the fields that went in, Bcc aside. Leaves the writing of message objects to `_message.flatten`.
"""

from __future__ import annotations

import functools
import re
import time
from email.errors import MessageError
from email.header import Header
from email.utils import formatdate, make_msgid
from typing import Any, TypeAlias

from ..errors import InvalidEnvelope
from . import plain as _plain
from .address import address_list

AnyMessage: TypeAlias = _plain.AnyMessage
Fields: TypeAlias = _plain.Fields

# A field name is printable ASCII without space and colon (RFC 5322 §2.2).
FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)(?:\r\n|$)")
# As many fields at once as a match may remember without costing memory.
_FIELDS = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\r\n]*(?:\r\n[ \t][^\r\n]*)*(?:\r\n|$)){1,64}")
_MESSAGE_ID = re.compile(rb"message-id[ \t]*:")
_ORIGINATORS_AND_RECIPIENTS = frozenset(
    p + name for p in ("", "resent-") for name in ("date", "sender", "from", "to", "cc", "bcc")
)
#: An mbox line; what goes on with a colon is a From field as RFC 822 let it be written.
MBOX_LINE = re.compile(rb"From (?![ \t]*:)[^\r\n]*(?:\r\n?|$)")
_BCC = re.compile(rb"((?i:resent-)?(?i:bcc))[ \t]*:[^\r\n]*(?:\r\n[ \t][^\r\n]*)*(?:\r\n|$)")
_BLANK = re.compile(rb"(?:[ \t]*\r\n)+")
_DOMAIN = re.compile(r"[A-Za-z0-9.-]+")
_BLOCK = 1 << 15
#: What the email package raises of a message that is not as it should be. Others come from outside: a time limit, no
#: memory.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    MessageError,
)
# What the header parser of EmailMessage says when it has dropped part of an address list.
_LOST = ("invalid address", "missing trailing '>'")
BARE_END = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def as_bytes(content: object) -> bytes:
    """What a caller gave as content, as bytes: text must be ASCII, for nobody said in which encoding it is.

    Raises:
        InvalidEnvelope: it is something else.
    """
    if isinstance(content, bytes):
        return content
    if isinstance(content, (bytearray, memoryview)):
        return bytes(content)
    if not isinstance(content, str):
        raise InvalidEnvelope(f"content must be bytes, not {type(content).__name__}")
    try:
        return content.encode("ascii")
    except UnicodeEncodeError as exc:
        raise InvalidEnvelope(
            f"content: text beyond ASCII at position {exc.start}: encode it, or give an EmailMessage"
        ) from exc


def normalise_line_ends(content: bytes, *, strict: bool) -> bytes:
    """Give every line of `content` a CRLF end; `strict` refuses a bare CR or LF instead (RFC 5321 §2.3.8).

    Content that is right already is not copied.

    Raises:
        InvalidEnvelope: what is no line end here would be the end of data to a server that drops NULs.
    """
    if b"\0" in content and (b"\n\0" in content or b"\r\0" in content or content.startswith(b"\0")):
        _refuse_hidden_end(content)
    if _ends_in_crlf(content):
        return content
    if strict:
        found = BARE_END.search(content)
        assert found is not None
        line = _line_at(content, found.start())
        name = "CR" if found[0] == b"\r" else "LF"
        raise InvalidEnvelope(f"content: bare {name} in line {line}")
    if b"\n" in content and content.count(b"\r") > content.count(b"\r\n"):
        refuse_hidden_field(content)
    return _rewritten(content)


def with_crlf(content: bytes) -> bytes:
    """`content` with CRLF for each of its line ends, whatever they are; the same object if they are that already."""
    return content if _ends_in_crlf(content) else _rewritten(content)


def _rewritten(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def _ends_in_crlf(content: bytes) -> bool:
    """Whether each CR and LF is half of a CRLF.

    Without its CRs and with one before each LF it then is what it was: half a millisecond a MiB, a tenth of counting
    the pairs. Block by block, for that takes two copies.
    """
    start, length = 0, len(content)
    while start < length:
        end = content.find(b"\n", start + _BLOCK) + 1 or length
        block = content[start:end]
        if block.replace(b"\r", b"").replace(b"\n", b"\r\n") != block:
            return False
        start = end
    return True


def _refuse_hidden_end(content: bytes) -> None:
    """Refuse NULs before a dot at the start of a line: for who drops NULs it is to be doubled, for others it is not."""
    found = re.search(rb"(?:[\r\n]|\A)\0+\.", content)
    if found is not None:
        raise InvalidEnvelope(f"content: NUL in front of a dot in line {_line_at(content, found.end())}")


def refuse_hidden_field(content: bytes) -> None:
    """Refuse a lone CR inside a header field: as a line end it would make a field of what stands behind it.

    Only where other lines end otherwise; a file of CRs alone is an old Macintosh's.
    """
    header = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    begin = _lead(header)[1]
    end = begin + header_length(header[begin:])
    if re.match(rb"[!-9;-~]+[ \t]*:[^\r\n]*(?:\r\n[ \t][^\r\n]*)*\r(?!\n)", header[end:]):
        raise InvalidEnvelope(f"content: bare CR in a header field in line {_line_at(header, end)}")


def _line_at(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def header_length(content: bytes) -> int:
    """How many bytes of CRLF-normalised `content` are its header block, the empty line not included."""
    position = 0
    while match := _FIELDS.match(content, position):
        position = match.end()
    return position


def header_fields(content: bytes) -> Fields:
    """The fields of the header block: names as they stand, values unfolded."""
    fields: Fields = []
    for match in FIELD.finditer(content, 0, header_length(content)):
        value = match[2].replace(b"\r\n", b"").strip(b" \t")
        fields.append((match[1].decode("ascii"), _text(value)))
    return fields


def _text(value: bytes) -> str:
    try:
        text = value.decode("utf-8")  # RFC 6532
    except UnicodeDecodeError:
        text = value.decode("latin-1")  # what else legacy mailers wrote; bytes and characters correspond
    return text.replace("\t", " ")


def header_start(content: bytes) -> int:
    """Where the header begins in CRLF-normalised `content`: behind mbox lines, which servers take out as well.

    Where no header follows those are what somebody wrote, and it begins with them.
    """
    written, behind = _lead(content)
    return behind if FIELD.match(content, behind) else written


def _lead(content: bytes, at: int = 0) -> tuple[int, int]:
    """Where the last mbox lines begin that `content` begins with, and where they end.

    With the Bcc fields among them: those go, and then the next line is the first one.
    """
    begin = end = at
    while True:
        if field := _BCC.match(content, end):
            begin = end = field.end()
        elif line := MBOX_LINE.match(content, end):
            end = line.end()
        else:
            return begin, end


def without_bcc(content: bytes) -> bytes:
    """`content` without its Bcc and Resent-Bcc fields, which are for senders' eyes only (RFC 5322 §3.6.3).

    Raises:
        InvalidEnvelope: there are blank lines where the header should begin, and Bcc fields behind them.
    """
    end = header_length(content)
    if not end:
        _refuse_late_bcc(content)
    if b"bcc" not in content[:end].lower():
        return content
    kept = [m[0] for m in FIELD.finditer(content, 0, end) if m[1].lower() not in (b"bcc", b"resent-bcc")]
    return b"".join((*kept, memoryview(content)[end:]))


def _refuse_late_bcc(content: bytes) -> None:
    """Refuse Bcc fields behind blank lines that `content` begins with: a text in three quotes, a lone CR.

    By the letter the header is empty then, and they are text, which every recipient is shown. To take the blank lines
    out would make a header of what somebody may have meant as text.
    """
    begin = at = _lead(content)[1]
    behind_bcc = False
    while not behind_bcc and (blank := _BLANK.match(content, at)) is not None:
        bcc, at = _lead(content, blank.end())
        behind_bcc = bcc > blank.end()
    if at == begin:
        return
    below = content[at:]
    if behind_bcc or without_bcc(below) is not below:
        raise InvalidEnvelope("content: Bcc behind a blank line at the beginning, where it is no header field any more")


def require_message(content: bytes) -> None:
    """Raise InvalidEnvelope unless `content` begins as a message does: with header fields and an empty line."""
    if not content or content.isspace():  # not strip(), which copies what it leaves
        raise InvalidEnvelope("content: this is no message: it is empty")
    end = header_length(content)
    if end == 0:
        raise InvalidEnvelope(f"content: this is no message: line 1 is no header field: {content[:40]!r}")
    if end < len(content) and not content.startswith(b"\r\n", end):
        line = _line_at(content, end)
        raise InvalidEnvelope(f"content: line {line} is neither a header field nor empty: {content[end : end + 40]!r}")


def sender_and_recipients(fields: Fields) -> tuple[str | None, list[str]]:
    """Sender and recipients by the header, as `smtplib.send_message` reads it (RFC 5322 §3.6.2, §3.6.6).

    Returns:
        The sender (None where no field names one) and the mailboxes of To, Bcc and Cc without repetitions. In a message
        with Resent-Date the Resent- fields are read instead.
    Raises:
        InvalidEnvelope: more than one block of Resent- fields, or an address that is none.
    """
    values: dict[str, list[Any]] = {}
    for name, value in fields:
        key = name.lower()
        if key in _ORIGINATORS_AND_RECIPIENTS:
            values.setdefault(key, []).append(value)
    if len(values.get("resent-date", ())) > 1:
        raise InvalidEnvelope("the message has more than one block of Resent- fields: say who sends it to whom")
    prefix = "resent-" if "resent-date" in values else ""
    origin = "sender" if prefix + "sender" in values else "from"
    senders = _addresses(prefix + origin, values.get(prefix + origin, [])[:1])
    recipients = [a for f in ("to", "bcc", "cc") for a in _addresses(prefix + f, values.get(prefix + f, []))]
    return (senders[0] if senders else None), list(dict.fromkeys(recipients))


def _addresses(field: str, values: list[Any]) -> list[str]:
    found: list[str] = []
    what = f"{field.title()} field"
    for value in values:
        if isinstance(value, str):
            text = str(value)
            if text.isascii() and text.isprintable() and not getattr(value, "defects", ()):
                found += address_list(text, what)
                continue
        try:
            text = value.encode() if isinstance(value, Header) else _text(str(value).encode("utf-8", "surrogateescape"))
        except (UnicodeError, MessageError) as exc:
            raise InvalidEnvelope(f"{what} cannot be written: {type(exc).__name__}: {exc}") from exc
        unfolded = re.sub(r"\r?\n(?=[ \t])", "", text).replace("\t", " ")
        addresses = address_list(unfolded, what)
        # EmailMessage reads an address when it is set and hands on what it made of it: "not an address" comes back as a
        # quoted local part, "a@b; c@d" as a@b alone. The defects are all that is left of what was written.
        defects = [str(defect) for defect in getattr(value, "defects", ())]
        if any(d.startswith(_LOST) for d in defects) or (defects and any(a.startswith('"') for a in addresses)):
            raise InvalidEnvelope(f"{what}: {unfolded[:80]!r} is no list of addresses, or was cut: {defects[0]}")
        found += addresses
    return found


def missing_fields(fields: Fields, sender: str) -> bytes:
    """The Date and Message-ID lines that the message lacks: RFC 5322 §3.6 asks for both, and retries need the latter.

    The Message-ID is made in the domain of the sender, so that no name of this host is looked up.
    """
    names = {name.lower() for name, _ in fields}
    lines = b""
    if "date" not in names:
        lines += f"Date: {_date(int(time.time()))}\r\n".encode()
    if "message-id" not in names:
        domain = sender.rpartition("@")[2]
        if not _DOMAIN.fullmatch(domain):  # none, an address literal, or beyond ASCII
            domain = "localhost"
        lines += f"Message-ID: {make_msgid(domain=domain)}\r\n".encode()
    return lines


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, localtime=True)


def message_id(content: bytes) -> str | None:
    """The value of the first Message-ID field in the header of CRLF-normalised `content`, or None."""
    header = content[: header_length(content)]
    lowered = header.lower()  # bytes: no length changes
    at = 0
    while at >= 0:
        if _MESSAGE_ID.match(lowered, at):
            match = FIELD.match(header, at)
            assert match is not None
            return " ".join(_text(match[2].replace(b"\r\n", b"")).split())
        at = lowered.find(b"\r\nmessage-id", at)
        at = at + 2 if at >= 0 else at
    return None
