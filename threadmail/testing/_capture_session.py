"""One session of a CaptureServer: aiosmtpd's, with what a test server needs put right.

Owns the dialogue on one connection. What differs from aiosmtpd, and why:

* commands of any length are read, too, by limits of the session (aiosmtpd keeps one growing dict for the class);
* commands that came before the client's FIN are carried out, as real servers do (aiosmtpd forgets them);
* MAIL and RCPT parameters are kept as sent, and those of DSN understood; BDAT is; EHLO offers what was asked for;
* content is taken as it is, with lines of any length, and LMTP answers it once for each recipient;
* AUTH knows the mechanisms of `_sasl`, and nobody is warned of plain-text logins: on loopback the test wants them.
"""

from __future__ import annotations

import asyncio
import collections
import socket
import struct
from typing import Any, Literal

from aiosmtpd import smtp as aiosmtpd

from . import _sasl
from ._book import Book
from ._capture_hooks import Envelope, Hooks, Login, Manners
from ._endpoint import HOSTNAME

UNLIMITED = 2**31 - 1
NO_TIMEOUT = 86_400.0

DSN_MAIL = frozenset({"RET", "ENVID"})
DSN_RCPT = frozenset({"NOTIFY", "ORCPT"})


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
            loop=loop,
        )
        # Set here because the constructor warns when AUTH is required without TLS.
        self._auth_required = manners.require_auth
        self.command_size_limit = UNLIMITED
        self.number: int | None = None
        self.gone: asyncio.Future[None] = loop.create_future()
        self._dismissed = False
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
            return  # aiosmtpd calls this itself when a STARTTLS handshake fails; asyncio may, too.
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
            self._dismissed = True
            transport.write(b"421 4.4.2 idle timeout\r\n")
        transport.close()
        if self.encrypted:
            # close_notify is out; asyncio would now wait for the peer's.
            try:
                self._raw.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    # -- commands ---------------------------------------------------------------------------------------------------

    async def smtp_AUTH(self, arg: str | None) -> None:
        """Log in by one of the offered mechanisms (RFC 4954); aiosmtpd's knows two, and keeps their order."""
        refusal = self._no_auth(arg)
        if refusal is not None:
            await self.push(refusal)
            return
        mechanism, *initial = (arg or "").split()
        exchange = _sasl.begin(mechanism, self._manners.auth or {})
        try:
            challenge = next(exchange)
            if initial:
                challenge = exchange.send(_sasl.decode(initial[0]))
            while True:
                await self.push(f"334 {_sasl.encode(challenge)}")
                answer = (await self._reader.readuntil()).decode("ascii", "replace").strip()
                if answer == "*":
                    await self.push("501 5.7.0 cancelled")
                    return
                challenge = exchange.send(_sasl.decode(answer))
        except ValueError:
            await self.push("501 5.5.2 cannot decode the answer")
        except StopIteration as end:
            assert isinstance(self.session, Login)
            self.session.user = end.value
            self.session.authenticated = end.value is not None
            await self.push("235 2.7.0 welcome" if end.value is not None else "535 5.7.8 wrong user or password")

    def _no_auth(self, arg: str | None) -> str | None:
        assert self.session is not None
        if self._manners.auth is None:
            return "502 5.5.1 AUTH not available"
        if not self.session.extended_smtp or self.session.authenticated:
            return "503 5.5.1 AUTH not now"
        if self._manners.tls == "starttls" and not self.encrypted:
            return "538 5.7.11 encryption required"
        if not 1 <= len((arg or "").split()) <= 2:
            return "501 5.5.4 Syntax: AUTH mechanism [initial-response]"
        if (arg or "").split()[0].upper() not in self._manners.mechanisms:
            return "504 5.5.4 unknown mechanism"
        return None

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        """As aiosmtpd, but the address as it was sent: its parser takes the quotes off `"john..doe"@example.org`."""
        address, rest = super()._getaddr(arg)
        if address and rest is not None and arg.lstrip().startswith("<"):
            address = arg[: len(arg) - len(rest)].strip()[1:-1] or address
        return address, rest

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
        if self._too_big(len(envelope.chunks)):
            await self._finish(None)
        elif words[1:] == ["LAST"]:
            await self._finish(bytes(envelope.chunks))
        else:
            await self.push(f"250 2.0.0 {len(chunk)} octets received")

    async def smtp_DATA(self, arg: str | None) -> None:
        """The content as it is, whatever the length of its lines; a size counts without transparency dots."""
        if await self.check_helo_needed() or await self.check_auth_needed("DATA"):
            return
        if arg or self.envelope is None or not self.envelope.rcpt_tos:
            await self.push("501 5.5.4 Syntax: DATA" if arg else "503 5.5.1 need RCPT command")
            return
        await self.push("354 end with <CR><LF>.<CR><LF>")
        lines, size = [], 0
        while (line := await self._reader.readuntil(b"\r\n")) != b".\r\n":
            lines.append(line[1:] if line.startswith(b".") else line)
            size += len(lines[-1])
            if self._too_big(size):
                lines.clear()
        await self._finish(None if self._too_big(size) else b"".join(lines))

    def _too_big(self, size: int) -> bool:
        return self._manners.size_limit is not None and size > self._manners.size_limit

    async def _finish(self, content: bytes | None) -> None:
        """Answer a content that has come whole; None stands for one that was too big."""
        envelope = self.envelope
        assert envelope is not None
        if self._dismissed:
            return  # the client reads the 421 as the answer to its content: nobody may have the message
        if content is None:
            # RFC 2033 section 4.2: a reply for each recipient, also when all are the same.
            replies = len(envelope.rcpt_tos) if self._manners.lmtp else 1
            status = "\r\n".join(["552 5.3.4 too much mail data"] * replies)
        else:
            envelope.content = content
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
