"""The envelope: a message as it goes to the wire, made once and never changed.

Owns sender, recipients and content of one message, checked, and what they need of the server. Guarantees: frozen, so
threads may share it; addresses are mailboxes (RFC 5321 §4.1.2); every line of the content ends in CRLF; no Bcc is
left in it. Whoever makes an envelope pays for flattening and checking, on the thread that makes it; whoever sends it
only writes bytes. Content exists once, in memory or in a file, however many recipients and threads share it. Leaves the
final line end and dot-stuffing to `_message.content`, which is where they are decided.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, TypeAlias

from ._message import message as _message
from ._message.address import mailbox, sender_mailbox
from ._message.address_field import need_utf8
from ._message.content import BLOCK, Content, blocks
from ._message.file import read_file
from ._message.flatten import flatten, message_fields
from ._message.message import AnyMessage
from ._message.sevenbit import seven_bit
from ._runtime.outside import is_of_a_handler
from .errors import InvalidEnvelope, MailError, printable

Recipients: TypeAlias = str | Iterable[str]


@dataclass(frozen=True, init=False)
class Envelope:
    """A message ready for the wire.

    Args:
        sender: the reverse-path: a mailbox, `Name <mailbox>`, or `""` for the null sender of bounces (RFC 5321 §4.5.5).
        recipients: one address, or an iterable of them; repetitions are dropped, the order is kept.
        content: the message with header and body. Line ends become CRLF; text must be ASCII. Bcc fields, and mbox
            lines (`From ` and a space) ahead of the header, are taken out.
        strict: refuse a bare CR or LF instead of turning it into CRLF.
    Raises:
        InvalidEnvelope, InvalidAddress (both ValueError): naming what is wrong and where.
    """

    sender: str
    recipients: tuple[str, ...]
    source: Content = field(repr=False)  # where `content` comes from: bytes are themselves, a file is read in blocks
    message_id: str | None = None
    smtputf8: bool = field(default=False, repr=False)
    eight_bit: bool = field(default=False, repr=False)
    _utf8_header: bool = field(default=False, repr=False, compare=False)  # whoever of the recipients it goes to

    def __init__(self, sender: str, recipients: Recipients, content: bytes | str, *, strict: bool = False) -> None:
        wire = _message.normalise_line_ends(_message.as_bytes(content), strict=strict)
        wire = _message.without_bcc(wire[_message.header_start(wire) :])
        self._fill(sender, recipients, wire, wire)

    def _fill(
        self, sender: str, recipients: Recipients, source: Content, header: bytes, *, utf8_header: bool = False
    ) -> Envelope:
        """Check and set everything. `header` begins with that of the message."""
        bare, to = sender_mailbox(sender), _mailboxes(recipients)
        self.__dict__.update(
            sender=bare,
            recipients=to,
            source=source,
            message_id=_message.message_id(header),
            smtputf8=utf8_header or not (bare.isascii() and all(map(str.isascii, to))),
            _utf8_header=utf8_header,
            eight_bit=not source.isascii(),
        )
        return self

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_message(
        cls,
        message: AnyMessage,
        sender: str | None = None,
        recipients: Recipients | None = None,
        *,
        strict: bool = False,
    ) -> Envelope:
        """The envelope of an `EmailMessage` or an older `Message`.

        Sender and recipients come from the header where they are not given, by the rules of `smtplib.send_message`:
        Sender before From; To, Cc and Bcc; the Resent- fields in a message that has Resent-Date. Date and Message-ID
        are added where they are missing. The message object is not changed.

        Raises:
            InvalidEnvelope, InvalidAddress: as the class; also no sender, no recipients, header injection.
        """
        if not isinstance(message, Message):
            raise InvalidEnvelope(f"a message must be an email.message.Message, not {type(message).__name__}")
        fields = message_fields(message)
        sender, recipients = _complete(fields, sender, recipients)
        bare = sender_mailbox(sender)
        to = _mailboxes(recipients)
        # The header may name somebody whom the envelope does not (RFC 6531 §3.4).
        utf8 = not (bare.isascii() and all(r.isascii() for r in to)) or need_utf8(fields)
        before = _message.missing_fields(fields, bare)
        content = flatten(message, utf8=utf8, fields=fields, before=before)
        utf8 = utf8 and not content[: _message.header_length(content)].isascii()
        return cls.__new__(cls)._fill(bare, to, content, content, utf8_header=utf8)

    @classmethod
    def from_bytes(
        cls, data: bytes, sender: str | None = None, recipients: Recipients | None = None, *, strict: bool = False
    ) -> Envelope:
        """The envelope of a message that is bytes already, such as an `.eml` file: sent as it is, never written anew.

        Signatures over the content stay valid, for only line ends change (not with `strict`), and Bcc fields and a
        leading mbox line (`From ` and a space) are taken out. Nothing is added.

        Args:
            sender, recipients: as in `from_message`; None reads them from the header.
        Raises:
            InvalidEnvelope: also when `data` does not begin with a header.
        """
        content = _message.normalise_line_ends(_message.as_bytes(data), strict=strict)
        if _message.MBOX_LINE.match(content):
            content = content.partition(b"\r\n")[2]
        _message.require_message(content)
        sender, recipients = _complete(_message.header_fields(content), sender, recipients)
        content = _message.without_bcc(content)
        return cls.__new__(cls)._fill(sender, recipients, content, content)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        sender: str | None = None,
        recipients: Recipients | None = None,
        *,
        strict: bool = False,
    ) -> Envelope:
        """The envelope of an `.eml` file: as `from_bytes` of what is in it, without a copy of it in memory.

        The file is read twice, in blocks of 64 KiB: now, to check it, and when it is sent. It is sent as it is now or,
        if it has changed or gone meanwhile, not at all: InvalidEnvelope then, permanent, NOT_SENT. A file of one block
        or less is kept in memory, and so is what comes out of a pipe. Recoding for a server without 8BITMIME,
        `content` and `to_dict` take all of it into memory. Pickled, it is the path.

        Args:
            sender, recipients, strict: as in `from_bytes`.
        Raises:
            OSError: the file cannot be read now.
            InvalidEnvelope: as `from_bytes`.
        """
        found = os.stat(path)
        if found.st_size <= BLOCK or not stat.S_ISREG(found.st_mode):
            with open(path, "rb") as file:
                return cls.from_bytes(file.read(), sender, recipients, strict=strict)
        content, header = read_file(path, strict=strict)
        sender, recipients = _complete(_message.header_fields(header), sender, recipients)
        return cls.__new__(cls)._fill(sender, recipients, content, header)

    @property
    def content(self) -> bytes:
        """The whole content, CRLF-normalised. That of a file is read each time.

        Raises:
            InvalidEnvelope: the file has changed since, or cannot be read.
        """
        return self.source if isinstance(self.source, bytes) else b"".join(blocks(self.source))

    @property
    def size(self) -> int:
        """How many octets the content has; of a file too without reading it."""
        return len(self.source)

    @classmethod
    def of(cls, message: Envelope | AnyMessage | bytes) -> Envelope:
        """The envelope of whatever may be sent: an envelope is itself, a message object or bytes are read.

        Raises:
            InvalidEnvelope: as `from_message` and `from_bytes`; also for what a message object raises that cannot be
                written out, such as one with parts nested too deep.
        """
        if isinstance(message, Envelope):
            return message
        if isinstance(message, (bytes, bytearray, memoryview)):
            return cls.from_bytes(bytes(message))
        given: object = message
        if not isinstance(given, Message):
            kind = type(given).__name__
            hint = ": use send_all()" if isinstance(given, (list, tuple, Iterator)) else ""
            raise InvalidEnvelope(f"a message is an EmailMessage, bytes or an Envelope, not {kind}{hint}")
        try:
            return cls.from_message(message)
        except MailError:
            raise
        except _message.FAULTS as exc:
            if is_of_a_handler(exc):
                raise  # many a time limit is a RuntimeError or a ValueError
            raise InvalidEnvelope(
                f"the message cannot be written: {type(exc).__name__}: {printable(str(exc))}"
            ) from exc

    def for_recipients(self, recipients: Recipients) -> Envelope:
        """The same message for other recipients, such as those a retry is for; the content is shared, not copied."""
        to = _mailboxes(recipients)
        changed = object.__new__(Envelope)
        changed.__dict__.update(self.__dict__, recipients=to)
        changed._set("smtputf8", self._utf8_header or not (self.sender.isascii() and all(r.isascii() for r in to)))
        return changed

    def in_seven_bits(self) -> Envelope:
        """The same message with its 8-bit parts recoded, for a server without 8BITMIME.

        Raises:
            NotSupported: it is signed, or cannot be recoded without loss.
        """
        if not self.eight_bit:
            return self
        changed = object.__new__(Envelope)
        changed.__dict__.update(self.__dict__, source=seven_bit(self.content), eight_bit=False)
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Sender, recipients, content (base64) and whether its header needs SMTPUTF8, as data that JSON can hold.

        `from_dict` reads it back.
        """
        return {
            "sender": self.sender,
            "recipients": list(self.recipients),
            "content": base64.b64encode(self.content).decode("ascii"),
            "utf8_header": self._utf8_header,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Envelope:
        """The envelope that `to_dict` wrote, checked anew.

        Raises:
            InvalidEnvelope: the data is not what `to_dict` writes.
        """
        try:
            sender, recipients, content = data["sender"], data["recipients"], data["content"]
            utf8_header = data.get("utf8_header", False)  # earlier versions wrote none
            if not isinstance(utf8_header, bool):
                raise TypeError(f"utf8_header is no bool but a {type(utf8_header).__name__}")
            envelope = cls(sender, recipients, base64.b64decode(content, validate=True))
            envelope.__dict__.update(_utf8_header=utf8_header, smtputf8=envelope.smtputf8 or utf8_header)
            return envelope
        except (KeyError, TypeError) as exc:
            raise InvalidEnvelope(f"no envelope: {type(exc).__name__}: {exc}") from exc
        except ValueError as exc:
            if isinstance(exc, InvalidEnvelope):
                raise
            raise InvalidEnvelope(f"no envelope: content is not base64: {exc}") from exc


def _mailboxes(recipients: Recipients) -> tuple[str, ...]:
    try:
        given = [recipients] if isinstance(recipients, str) else list(recipients)
    except TypeError as exc:
        raise InvalidEnvelope(f"recipients must be addresses, not {type(recipients).__name__}") from exc
    if not given:
        raise InvalidEnvelope("the message has no recipients")
    if len(given) == 1:
        return (mailbox(given[0], "recipient"),)
    return tuple(dict.fromkeys(mailbox(r, f"recipient {i}") for i, r in enumerate(given, 1)))


def _complete(fields: _message.Fields, sender: str | None, recipients: Recipients | None) -> tuple[str, Recipients]:
    if sender is None or recipients is None:
        by_header = _message.sender_and_recipients(fields)
        sender = by_header[0] if sender is None else sender
        recipients = by_header[1] if recipients is None else recipients
    if sender is None:
        raise InvalidEnvelope("the message has no sender: neither Sender nor From names one")
    if not recipients:
        raise InvalidEnvelope("the message has no recipients: To, Cc and Bcc name none")
    return sender, recipients
