"""Messages for servers that take seven bits.

Owns the recoding of 8-bit parts. Where a server does not offer 8BITMIME, RFC 6152 §3 leaves a client two ways: recode
or refuse. Guarantees: every part decodes to the octets it had, and the header fields that describe no encoding are the
same, for the result is read again to make sure of it; a message that is signed, that has 8-bit text in its header, or
that the email package stumbles over, is refused.
"""

from __future__ import annotations

import base64
import binascii
import email
import io
from email.generator import BytesGenerator
from email.message import Message
from email.policy import compat32
from typing import Any, TypeAlias

from .._runtime.outside import is_of_a_handler
from ..errors import NotSupported
from .message import FAULTS

_Part: TypeAlias = "Message[Any, Any]"

_ENCODING = "Content-Transfer-Encoding"
_CHANGED = ("mime-version", "content-type", _ENCODING.lower())  # the first two only where they are missing
_AS_IT_IS = compat32.clone(max_line_length=None)
_PLAIN = ("", "7bit", "8bit", "binary")


def seven_bit(content: bytes) -> bytes:
    """`content`, CRLF-normalised, with its 8-bit parts in quoted-printable or base64.

    Raises:
        NotSupported: that cannot be done without loss, or the email package, which reads anything, stumbles over it:
            over parts nested a hundred deep, say.
    """
    try:
        return _recoded(content)
    except FAULTS as exc:
        if is_of_a_handler(exc):
            raise
        raise _refusal(f"cannot be recoded: {type(exc).__name__}") from exc


def _recoded(content: bytes) -> bytes:
    message = email.message_from_bytes(content, policy=_AS_IT_IS)
    before = _essence(message)
    for part in message.walk():
        _require_recodable(part)
        _recode(part)
    if "MIME-Version" not in message:
        message["MIME-Version"] = "1.0"
    out = io.BytesIO()
    BytesGenerator(out, mangle_from_=False, policy=_AS_IT_IS).flatten(message, linesep="\r\n")
    recoded = out.getvalue()
    if not recoded.isascii() or _essence(email.message_from_bytes(recoded, policy=_AS_IT_IS)) != before:
        raise _refusal("cannot be recoded without loss")
    return recoded


def _refusal(why: str) -> NotSupported:
    return NotSupported(f"the message holds 8-bit text, the server does not offer 8BITMIME, and the message {why}")


def _require_recodable(part: _Part) -> None:
    if part.get_content_type() == "multipart/signed" or "DKIM-Signature" in part:
        raise _refusal("is signed, so that it must not be recoded")
    if part.defects or not part.keys():
        raise _refusal("is not well-formed")
    if not all(str(value).isascii() for _, value in part.raw_items()):
        raise _refusal("has 8-bit text in its header")


def _recode(part: _Part) -> None:
    encoding = str(part.get(_ENCODING, "")).strip().lower()
    data = None if part.is_multipart() else part.get_payload(decode=True)
    if not isinstance(data, bytes) or encoding not in _PLAIN or data.isascii():
        if encoding in ("8bit", "binary"):
            part.replace_header(_ENCODING, "7bit")
        return
    name, encoded = _encoded(data, text=part.get_content_maintype() == "text")
    del part[_ENCODING]
    part[_ENCODING] = name
    if "Content-Type" not in part:
        part["Content-Type"] = "text/plain; charset=unknown-8bit"  # RFC 1428
    part.set_payload(encoded.decode("ascii"))


def _encoded(data: bytes, *, text: bool) -> tuple[str, bytes]:
    in_base64 = base64.encodebytes(data).replace(b"\n", b"\r\n")
    if text:
        quoted = binascii.b2a_qp(data, istext=True)
        if len(quoted) <= len(in_base64) and binascii.a2b_qp(quoted) == data:
            return "quoted-printable", quoted
    return "base64", in_base64


def _essence(message: _Part) -> list[object]:
    """What must not change: the other header fields of each part, but for their folding, and what it decodes to."""
    essence: list[object] = []
    for part in message.walk():
        fields = [(n.lower(), "".join(str(v).split())) for n, v in part.raw_items() if n.lower() not in _CHANGED]
        data = None if part.is_multipart() else part.get_payload(decode=True)
        essence.append((fields, part.get_content_type(), part.get_content_charset("unknown-8bit"), data))
    return essence
