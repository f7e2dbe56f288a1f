"""What a CaptureServer decides and records; the dialogue itself is `_capture_session`'s.

Owns the arguments of a server in one piece, the state of a transaction, and the hooks aiosmtpd calls: what EHLO
offers, whether a recipient or a message is taken, and the record of those that are.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from aiosmtpd import smtp as aiosmtpd

from ._book import Book
from ._endpoint import HOSTNAME, TLSMode
from .messages import CapturedMessage

if TYPE_CHECKING:
    from ._capture_session import Session

T = TypeVar("T")


@dataclass(frozen=True)
class Manners:
    """How a CaptureServer behaves: its arguments, in one piece."""

    tls: TLSMode
    ssl_context: ssl.SSLContext | None
    auth: dict[str, str] | None = field(repr=False)
    mechanisms: tuple[str, ...]
    require_auth: bool
    size_limit: int | None
    extensions: tuple[str, ...]
    on_message: Callable[[CapturedMessage], str | None] | None
    on_recipient: Callable[[str], str | None] | None
    lmtp: bool
    max_connections: int | None

    def offers(self, extension: str) -> bool:
        return extension in (word.upper() for word in self.extensions)


class Envelope(aiosmtpd.Envelope):
    """aiosmtpd's, and the parameters as they were sent."""

    def __init__(self) -> None:
        super().__init__()
        self.mail_words: tuple[str, ...] = ()
        self.rcpt_words: list[tuple[str, ...]] = []
        self.chunks = bytearray()


class Login(aiosmtpd.Session):
    """aiosmtpd's session, and who has logged in."""

    user: str | None = None


class Hooks:
    """aiosmtpd's handler: it decides and records, the session talks."""

    def __init__(self, manners: Manners, book: Book) -> None:
        self._manners = manners
        self._book = book

    async def handle_EHLO(
        self, server: Session, session: Any, envelope: Any, hostname: str, responses: Sequence[str]
    ) -> list[str]:
        session.host_name = hostname
        offers = list(self._manners.extensions)
        if self._manners.size_limit is not None:
            offers.append(f"SIZE {self._manners.size_limit}")
        if self._manners.tls == "starttls" and not server.encrypted:
            offers.append("STARTTLS")
        if self._manners.auth is not None and (server.encrypted or self._manners.tls == "none"):
            offers.append("AUTH " + " ".join(self._manners.mechanisms))
        lines = [HOSTNAME, *offers]
        return [f"250-{line}" for line in lines[:-1]] + [f"250 {lines[-1]}"]

    async def handle_RCPT(
        self, server: Session, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = self._ask(self._manners.on_recipient, address)
        if refusal is not None:
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: Session, session: Any, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        assert server.number is not None
        sender = envelope.mail_from or ""
        message = CapturedMessage(
            sender="" if sender == "<>" else sender,
            recipients=tuple(envelope.rcpt_tos),
            content=envelope.content,
            helo=session.host_name,
            mail_options=envelope.mail_words,
            rcpt_options=tuple(envelope.rcpt_words),
            username=session.user,
            tls=server.encrypted,
            connection=server.number,
            received_at=datetime.now(timezone.utc),
        )
        return self._deliver_each(message) if self._manners.lmtp else self._deliver(message)

    def _deliver(self, message: CapturedMessage) -> str:
        refusal = self._ask(self._manners.on_message, message)
        if refusal is None:
            self._book.store(message)
        return refusal or "250 2.0.0 OK"

    def _deliver_each(self, message: CapturedMessage) -> str:
        replies, taken = [], []
        for index, recipient in enumerate(message.recipients):
            alone = replace(message, recipients=(recipient,), rcpt_options=(message.rcpt_options[index],))
            refusal = self._ask(self._manners.on_message, alone)
            replies.append(refusal or "250 2.0.0 OK")
            if refusal is None:
                taken.append(index)
        if taken:
            self._book.store(
                replace(
                    message,
                    recipients=tuple(message.recipients[index] for index in taken),
                    rcpt_options=tuple(message.rcpt_options[index] for index in taken),
                )
            )
        return "\r\n".join(replies)

    def _ask(self, callback: Callable[[T], str | None] | None, about: T) -> str | None:
        if callback is None:
            return None
        try:
            return callback(about)
        except BaseException as error:  # noqa: BLE001 - raised again by CaptureServer.close
            self._book.blame(error)
            return "451 4.3.0 a callback of the test raised an exception"

    async def handle_QUIT(self, server: Session, session: Any, envelope: Any) -> str:
        self._book.count_quit()
        if server.number is not None:
            # Before the client can know: who dials again after the 221 must not seem to hold two connections.
            self._book.release(server.number)
        return "221 2.0.0 Bye"

    async def handle_exception(self, error: Exception) -> str:
        if not isinstance(error, (OSError, aiosmtpd.TLSSetupException)):
            self._book.blame(error)
        return "451 4.3.0 internal error"
