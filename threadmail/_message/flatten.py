"""A message object as bytes.

Owns the one time that a message object is written out. Guarantees: the caller's object is not written to, so that
threads may flatten one at once; the header block that comes out holds the fields that went in, Bcc aside, and no
others. Leaves plain messages to `_message.plain`, and has the email package write the rest.
"""

from __future__ import annotations

import copy
import io
import os
from email.errors import MessageError
from email.generator import BytesGenerator
from email.message import Message
from typing import Any, cast

from ..errors import InvalidEnvelope
from . import address_field as _address_field
from . import plain as _plain
from .message import FIELD, AnyMessage, Fields, header_length, normalise_line_ends

_BCC = ("bcc", "resent-bcc")
# Stands behind the last field while a message is flattened. Nobody can know it, so nobody can write it.
_END = f"X-{os.urandom(8).hex()}"


def message_fields(message: AnyMessage) -> Fields:
    """The fields of a message object, with values as the address parser wants them: encoded words untouched."""
    # raw_items, because the values of a parsed message come decoded from items(), and a comma that an encoded word hid
    # inside a display name would then look like the end of an address.
    return list(message.raw_items())


def flatten(message: AnyMessage, *, utf8: bool, fields: Fields | None = None, before: bytes = b"") -> bytes:
    """The message as bytes with CRLF line ends, without its Bcc fields; the object itself is left as it was.

    Args:
        utf8: write header fields in UTF-8 (RFC 6532), for messages with addresses beyond ASCII.
        fields: what `message_fields` said, where that was asked before.
        before: fields to put before the others.
    Raises:
        InvalidEnvelope: the header block holds other fields than the message: a value smuggled a line end past the
            generator (CVE-2024-6923), or a field's name is none.
    """
    if not utf8:
        fields = message_fields(message) if fields is None else fields
        plain = _plain.serialised(message, [field for field in fields if field[0].lower() not in _BCC])
        if plain is not None:
            header, pieces = plain
            return b"".join((before, header, *pieces))
    return _generated(message, utf8=utf8, before=before)


def _generated(message: AnyMessage, *, utf8: bool, before: bytes) -> bytes:
    """As the email package writes it, held against the fields that it was to write."""
    copied = _copied(message)
    del copied["Bcc"]
    del copied["Resent-Bcc"]
    policy: Any = copied.policy
    if utf8 and hasattr(policy, "utf8"):
        policy = policy.clone(utf8=True)
    elif utf8:
        _write_utf8_as_it_is(copied)
    elif getattr(policy, "utf8", False):
        # With encoded words it goes to any server; raw, it would need one with SMTPUTF8, and say so (RFC 6531 3.1).
        policy = policy.clone(utf8=False)
    _mind_addresses(copied, policy, utf8=utf8)
    copied.set_raw(_END, "")
    out = io.BytesIO()
    try:
        # A body line "From ..." stays what it is: to mangle it is the business of mbox files.
        BytesGenerator(out, mangle_from_=False, policy=policy).flatten(copied, linesep="\r\n")
    except InvalidEnvelope:
        raise
    except (MessageError, ValueError, LookupError, AttributeError, TypeError) as exc:
        # What the generator raises for messages it cannot write; newer versions also refuse injected headers here.
        raise InvalidEnvelope(f"the message cannot be written: {type(exc).__name__}: {exc}") from exc
    content = normalise_line_ends(out.getvalue(), strict=False)
    start, stop = _verify_header(copied, content)
    return b"".join((before, content[:start], memoryview(content)[stop:]))


def _copied(message: AnyMessage) -> AnyMessage:
    # The generator writes boundaries into the parts it meets: one message flattened by eight threads at once came out
    # wrong in up to 8 % of the cases. Copying the tree of parts, not what hangs in it, costs next to nothing;
    # deepcopy would copy the parse tree of every header.
    new = copy.copy(message)
    if message.is_multipart():  # asked first, for get_payload() recodes a text, and raises where it cannot
        payload = message.get_payload()
        parts = [_copied(cast(AnyMessage, part)) if isinstance(part, Message) else part for part in payload]
        new.set_payload(cast(Any, parts))
    return new


def _write_utf8_as_it_is(message: AnyMessage) -> None:
    """Make the generator write text fields in UTF-8 under the compat32 policy, which cannot be told to.

    It would put an address into an encoded word, where none may be; but bytes in the guise of surrogates it leaves.
    """
    fields = list(message.raw_items())
    for name, _ in fields:
        del message[name]
    for name, value in fields:
        plain = isinstance(value, str) and not value.isascii()
        message.set_raw(
            name, value.encode("utf-8", "surrogateescape").decode("ascii", "surrogateescape") if plain else value
        )


def _mind_addresses(message: AnyMessage, policy: Any, *, utf8: bool, inside: bool = False) -> None:
    """Have the address fields of a copy, and of its parts, written with the mailboxes that they name.

    Args:
        policy: that of the generator, which writes all parts by it.
        inside: see `Written`.
    """
    if any(name.lower() in _address_field.NAMES for name in message):
        fields = list(message.raw_items())
        for name, _ in fields:
            del message[name]
        for name, value in fields:
            if name.lower() in _address_field.NAMES:
                value = _address_field.Written(name, value, policy, utf8=utf8, inside=inside)
            message.set_raw(name, value)
    if message.is_multipart():
        # No server looks at the addresses of a message inside, whoever wrote to whom.
        is_message = message.get_content_type() == "message/rfc822"
        for part in message.get_payload():
            if isinstance(part, Message):
                needs = is_message and not utf8 and _address_field.need_utf8(list(part.raw_items()))
                _mind_addresses(part, policy, utf8=utf8, inside=inside or needs)


def _verify_header(message: AnyMessage, content: bytes) -> tuple[int, int]:
    """Where the line of the field `_END` begins and ends in `content`, whose fields are those of `message`."""
    found = list(FIELD.finditer(content, 0, header_length(content)))
    written = [m[1].decode("ascii") for m in found]
    wanted = message.keys()
    if "content-transfer-encoding" not in message:
        # The generator adds it to a message whose text it has to encode.
        wanted = wanted + [name for name in written[len(wanted) :] if name.lower() == "content-transfer-encoding"][:1]
    # A header object taken from another message is written under the name it had there, in upper case or lower.
    same = [name.lower() for name in written]
    if same != [name.lower() for name in wanted]:
        at = next((i for i, name in enumerate(wanted) if same[i : i + 1] != [name.lower()]), len(wanted))
        culprits = " or ".join(repr(name) for name in wanted[max(0, at - 1) : at + 1] if name != _END)
        raise InvalidEnvelope(f"header injection: field {culprits} holds a line end, or its name is no field name")
    return found[written.index(_END)].span()
