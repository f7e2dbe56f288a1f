"""What a test server caught: one frozen record a message, a live list of them, and the lines of a transcript.

Owns nothing and opens nothing. The content is kept byte for byte as it came over the wire, transparency dots taken
off; parsing it is left to the moment somebody asks.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.message import EmailMessage
from typing import ClassVar, Literal, NamedTuple, overload


@dataclass(frozen=True)
class CapturedMessage:
    """One message as a test server received it.

    Attributes:
        sender: the address of MAIL FROM; empty for the null sender ``<>``.
        recipients: the addresses of those RCPT TO that were accepted, in order.
        content: the octets between the 354 and the final dot (or of all BDAT chunks), with CRLF line ends and without
            the doubled leading dots of RFC 5321 section 4.5.2.
        helo: the name the client gave in HELO, EHLO or LHLO.
        mail_options: the parameters of MAIL as sent, e.g. ``("SIZE=120", "BODY=8BITMIME")``.
        rcpt_options: for each recipient the parameters of its RCPT, e.g. ``(("NOTIFY=NEVER",), ())``.
        username: who had logged in, or None.
        tls: whether the message came over TLS.
        connection: which connection it came over, counted from 0 in the order they were made.
        received_at: when the last octet had come (UTC).
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    helo: str
    mail_options: tuple[str, ...]
    rcpt_options: tuple[tuple[str, ...], ...]
    username: str | None
    tls: bool
    connection: int
    received_at: datetime

    @property
    def message(self) -> EmailMessage:
        """The content parsed with `email.policy.default`: a new object at each call, so that nobody shares it."""
        return email.message_from_bytes(self.content, policy=email.policy.default)


class MessageList(Sequence[CapturedMessage]):
    """A live, read-only view of a server's messages: it grows while they come.

    It compares equal to a list with the same messages, so ``outbox == []`` says what it seems to say.
    """

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __init__(self, snapshot: Callable[[], list[CapturedMessage]]) -> None:
        self._snapshot = snapshot

    def __len__(self) -> int:
        return len(self._snapshot())

    @overload
    def __getitem__(self, index: int) -> CapturedMessage: ...

    @overload
    def __getitem__(self, index: slice) -> list[CapturedMessage]: ...

    def __getitem__(self, index: int | slice) -> CapturedMessage | list[CapturedMessage]:
        return self._snapshot()[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (list, MessageList)):
            return self._snapshot() == list(other)
        return NotImplemented

    def __repr__(self) -> str:
        return repr(self._snapshot())


class TranscriptEntry(NamedTuple):
    """One step of a conversation: which connection, who spoke, the bytes."""

    connection: int
    direction: Literal["received", "sent"]
    data: bytes
