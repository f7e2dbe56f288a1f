"""One session of a CaptureServer: aiosmtpd's, with what a test server needs put right.

Owns the dialogue on one connection. What differs from aiosmtpd, and why:

* the line length limit is lifted and command limits are per session (aiosmtpd shares one growing dict by class);
* commands that came before the client's FIN are carried out, as real servers do (aiosmtpd forgets them);
* MAIL and RCPT parameters are kept as sent, and those of DSN understood; BDAT is; EHLO offers what was asked for;
* LMTP answers once for each recipient;
* no warning and no log record about plain-text logins: on loopback they are what the test wants.
"""

from __future__ import annotations

import asyncio
import collections
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal

from aiosmtpd import smtp as aiosmtpd

from ._book import Book
from ._endpoint import TLSMode
from .messages import CapturedMessage

HOSTNAME = "mail.example.test"
UNLIMITED = 2**31 - 1
NO_TIMEOUT = 86_400.0

DSN_MAIL = frozenset({"RET", "ENVID"})
DSN_RCPT = frozenset({"NOTIFY", "ORCPT"})


@dataclass(frozen=True)
class Manners:
    """How a CaptureServer behaves: its arguments, in one piece."""

    tls: TLSMode
    ssl_context: ssl.SSLContext | None
    auth: dict[str, str] | None = field(repr=False)
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
    """aiosmtpd's session without the property that logs a warning at each login."""

    login_data: Any = None


class Reader:
    """A stream reader that ends the session at EOF, once everything before it has been read."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.__dict__["_reader"] = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._reader, name, value)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        return await self._or_cancel(self._reader.readuntil(separator))

    async def readexactly(self, count: int) -> bytes:
        return await self._or_cancel(self._reader.readexactly(count))

    async def _or_cancel(self, reading: Any) -> bytes:
        try:
            data: bytes = await reading
        except asyncio.IncompleteReadError:
            raise asyncio.CancelledError from None
        return data


class Session(aiosmtpd.SMTP):
    """The dialogue on one connection."""

    line_length_limit = UNLIMITED

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        raw: socket.socket,
        manners: Manners,
        book: Book,
        sessions: set[Session],
    ) -> None:
        self._manners = manners
        self.command_size_limits = collections.defaultdict(lambda: UNLIMITED)
        super().__init__(
            Hooks(manners, book),
            data_size_limit=manners.size_limit,
            enable_SMTPUTF8=manners.offers("SMTPUTF8"),
            decode_data=False,
            hostname=HOSTNAME,
            ident="threadmail.testing",
            tls_context=manners.ssl_context if manners.tls == "starttls" else None,
            timeout=NO_TIMEOUT,
            auth_require_tls=manners.tls == "starttls",
            authenticator=_authenticator(manners.auth or {}),
            loop=loop,
        )
        # Set here because the constructor warns when AUTH is required without TLS.
        self._auth_required = manners.require_auth
        self.command_size_limit = UNLIMITED
        self.number: int | None = None
        self.gone: asyncio.Future[None] = loop.create_future()
        self._raw = raw
        self._book = book
        self._sessions = sessions

    def _create_session(self) -> aiosmtpd.Session:
        return Login(self.loop)

    def _create_envelope(self) -> aiosmtpd.Envelope:
        return Envelope()

    # -- the connection ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self not in self._sessions:  # After STARTTLS it is made a second time.
            self._sessions.add(self)
            self.number = self._book.admit(self._manners.max_connections)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self.gone.done():
            return  # aiosmtpd calls this itself when a STARTTLS handshake fails.
        super().connection_lost(error)
        self._sessions.discard(self)
        self.gone.set_result(None)
        if self.number is not None:
            self._book.release(self.number)

    def eof_received(self) -> bool | None:
        # aiosmtpd would cancel the session here, and with it the commands that came before the FIN.
        return asyncio.StreamReaderProtocol.eof_received(self) and not self.encrypted

    def _cb_client_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super()._cb_client_connected(Reader(reader), writer)  # type: ignore[arg-type]

    async def _handle_client(self) -> None:
        if self.number is None:
            await self.push("421 4.7.0 too many connections")
            self.hang_up("fin")
            return
        await super()._handle_client()

    @property
    def encrypted(self) -> bool:
        return self._manners.tls == "tls" or self._tls_protocol is not None

    def hang_up(self, mode: Literal["fin", "reset", "421"]) -> None:
        """Close the connection without waiting for the peer; `gone` tells when it is done."""
        transport: Any = self.transport
        if transport is None:
            return
        if mode == "reset":
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
            return
        if mode == "421":
            transport.write(b"421 4.4.2 idle timeout\r\n")
        transport.close()
        if self.encrypted:
            # close_notify is out; asyncio would now wait for the peer's.
            try:
                self._raw.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    # -- commands ---------------------------------------------------------------------------------------------------

    async def smtp_AUTH(self, arg: str) -> None:
        if self._manners.auth is None:
            await self.push("502 5.5.1 AUTH not available")
            return
        await super().smtp_AUTH(arg)

    async def smtp_MAIL(self, arg: str | None) -> None:
        rest, words = self._split(arg, DSN_MAIL)
        envelope = self.envelope
        assert isinstance(envelope, Envelope)
        before = envelope.mail_from
        await super().smtp_MAIL(rest)
        if before is None and envelope.mail_from is not None:
            envelope.mail_words = words

    async def smtp_RCPT(self, arg: str | None) -> None:
        rest, words = self._split(arg, DSN_RCPT)
        envelope = self.envelope
        assert isinstance(envelope, Envelope)
        before = len(envelope.rcpt_tos)
        await super().smtp_RCPT(rest)
        if len(envelope.rcpt_tos) > before:
            envelope.rcpt_words.append(words)

    def _split(self, arg: str | None, dsn: frozenset[str]) -> tuple[str | None, tuple[str, ...]]:
        """`arg` without the parameters that aiosmtpd does not know but we do, and all parameters as sent."""
        if arg is None:
            return None, ()
        path, bracket, tail = arg.rpartition(">")
        words = tuple(tail.split()) if bracket else ()
        if not self._manners.offers("DSN"):
            return arg, words
        kept = [word for word in words if word.partition("=")[0].upper() not in dsn]
        return (f"{path}{bracket} {' '.join(kept)}".rstrip() if bracket else arg), words

    async def smtp_BDAT(self, arg: str | None) -> None:
        """A chunk of content, taken off the wire whatever the answer (RFC 3030 section 2)."""
        words = (arg or "").upper().split()
        well_formed = words and words[0].isdigit() and words[1:] in ([], ["LAST"])
        if not self._manners.offers("CHUNKING") or not well_formed:
            await self.push("501 5.5.4 Syntax: BDAT size [LAST]" if words else "500 5.5.1 unknown command")
            return
        chunk = await self._reader.readexactly(int(words[0]))
        envelope = self.envelope
        assert isinstance(envelope, Envelope)
        if not envelope.rcpt_tos:
            await self.push("503 5.5.1 need RCPT command")
            return
        envelope.chunks += chunk
        if self._manners.size_limit is not None and len(envelope.chunks) > self._manners.size_limit:
            self.envelope = self._create_envelope()
            await self.push("552 5.3.4 too much mail data")
            return
        if words[1:] != ["LAST"]:
            await self.push(f"250 2.0.0 {len(chunk)} octets received")
            return
        envelope.content = bytes(envelope.chunks)
        status = await self._call_handler_hook("DATA")
        self.envelope = self._create_envelope()
        await self.push(status)


class LMTPSession(Session):
    """The same in LMTP (RFC 2033)."""

    @aiosmtpd.syntax("LHLO hostname")
    async def smtp_LHLO(self, arg: str) -> None:
        await super().smtp_EHLO(arg)

    async def smtp_EHLO(self, hostname: str) -> None:
        await self.push("500 5.5.1 this is LMTP: send LHLO")

    async def smtp_HELO(self, hostname: str) -> None:
        await self.push("500 5.5.1 this is LMTP: send LHLO")


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
            offers.append("AUTH PLAIN LOGIN")
        lines = [HOSTNAME, *offers]
        return [f"250-{line}" for line in lines[:-1]] + [f"250 {lines[-1]}"]

    async def handle_RCPT(
        self, server: Session, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = self._manners.on_recipient(address) if self._manners.on_recipient is not None else None
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
            username=session.auth_data.login.decode("utf-8", "replace") if session.authenticated else None,
            tls=server.encrypted,
            connection=server.number,
            received_at=datetime.now(timezone.utc),
        )
        return self._deliver_each(message) if self._manners.lmtp else self._deliver(message)

    def _deliver(self, message: CapturedMessage) -> str:
        refusal = self._ask(message)
        if refusal is None:
            self._book.store(message)
        return refusal or "250 2.0.0 OK"

    def _deliver_each(self, message: CapturedMessage) -> str:
        replies, taken = [], []
        for index, recipient in enumerate(message.recipients):
            alone = replace(message, recipients=(recipient,), rcpt_options=(message.rcpt_options[index],))
            refusal = self._ask(alone)
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

    def _ask(self, message: CapturedMessage) -> str | None:
        if self._manners.on_message is None:
            return None
        try:
            return self._manners.on_message(message)
        except Exception as error:  # noqa: BLE001 - raised again by CaptureServer.close
            self._book.blame(error)
            return "451 4.3.0 on_message raised an exception"

    async def handle_QUIT(self, server: Session, session: Any, envelope: Any) -> str:
        self._book.count_quit()
        return "221 2.0.0 Bye"

    async def handle_exception(self, error: Exception) -> str:
        if not isinstance(error, (OSError, aiosmtpd.TLSSetupException)):
            self._book.blame(error)
        return "451 4.3.0 internal error"


def _authenticator(users: dict[str, str]) -> aiosmtpd.AuthenticatorType:
    def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> aiosmtpd.AuthResult:
        login, password = data.login.decode("utf-8", "replace"), data.password.decode("utf-8", "replace")
        known = login in users and users[login] == password
        return aiosmtpd.AuthResult(success=known, handled=False, auth_data=data)

    return check
