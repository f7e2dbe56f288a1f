"""One connection of a ScriptedServer: reads, sends, waits, hangs up, and writes everything into the transcript.

Owns the accepted socket. Sending never fails: whether a write into a closed connection raises is a matter of timing,
so a script learns of a lost peer where it reads, which is certain. Reading ends when the peer hangs up or the server
closes; what came before either is always read first.
"""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import struct
import threading
import time
from typing import Literal

from ._book import Book
from ._dialogue import Dialogue
from .messages import TranscriptEntry

FINAL_REPLY = re.compile(rb"(\d{3})(?: .*)?\r?\n\Z", re.DOTALL)
POLL = 0.02


class ScriptFailure(AssertionError):
    """The client did not do what the script expected."""


class HungUp(Exception):
    """Nothing more can be read: the peer hung up, or the server is being closed."""


class Silence(Exception):
    """Nothing came in time."""


class Peer:
    """The client at the other end of one connection, as the steps of a script see it."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        number: int,
        book: Book,
        transcript: list[TranscriptEntry],
        closing: threading.Event,
        wake: socket.socket,
        timeout: float,
        tls_context: ssl.SSLContext | None,
        starttls: bool,
        lmtp: bool,
    ) -> None:
        self.number = number
        self.timeout = timeout
        self.dialogue: Dialogue = Dialogue(lmtp=lmtp)
        self.has_sent: bool = False
        self.lines: list[str] = []
        self.offers_starttls = starttls
        self.tls: bool = False
        self._connection = connection
        self._book = book
        self._transcript = transcript
        self._closing = closing
        self._tls_context = tls_context
        self._buffer = bytearray()
        self._sent_tail = b""
        self._secret_lines: set[str] = set()
        self._gone = False
        connection.settimeout(timeout)
        self._selector = selectors.DefaultSelector()
        # By number: it stays the same when TLS wraps the socket.
        self._selector.register(connection.fileno(), selectors.EVENT_READ, "peer")
        self._selector.register(wake, selectors.EVENT_READ, "wake")

    # -- reading ----------------------------------------------------------------------------------------------------

    def read_command(self, timeout: float | None) -> str:
        """The next line without its line end, noted as a command. `timeout` None: as long as it takes."""
        line = self._take_line(timeout)
        text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        with self._book.changed:
            self._record("received", line)
            self.lines.append(text)
        if self.dialogue.secret_due or text.upper().startswith("AUTH "):
            self._secret_lines.add(text)
        self.dialogue.secret_due = False
        self.dialogue.command(text)
        return text

    def read_content(self, timeout: float | None) -> bytes:
        """The content up to the lone dot, dots un-stuffed; stored as a message, its reply is due."""
        raw, lines = bytearray(), []
        while (line := self._take_line(timeout, b"\r\n")) != b".\r\n":
            raw += line
            lines.append(line[1:] if line.startswith(b".") else line)
        self._record("received", bytes(raw) + b".\r\n")
        content = b"".join(lines)
        self._store(content)
        self.dialogue.content()
        return content

    def read_bytes(self, count: int, timeout: float | None) -> bytes:
        """Exactly `count` bytes; where they are the chunk of a BDAT they are noted as such."""
        while len(self._buffer) < count:
            self._fill(timeout)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._record("received", data)
        if self.dialogue.chunk_due == count:
            self.dialogue.chunk_due = None
            self.dialogue.chunks += data
            if self.dialogue.pending[-1].upper().endswith("LAST") and self.dialogue.recipients:
                self._store(bytes(self.dialogue.chunks))
        return data

    def read_anything(self) -> None:
        """Read and record until the peer hangs up or the server closes; raises HungUp then."""
        while True:
            if self._buffer:
                self._record("received", bytes(self._buffer))
                self._buffer.clear()
            self._fill(None)

    def _take_line(self, timeout: float | None, ending: bytes = b"\n") -> bytes:
        searched = 0
        while (end := self._buffer.find(ending, searched)) < 0:
            searched = max(0, len(self._buffer) - 1)
            self._fill(timeout)
        end += len(ending)
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        return line

    def _fill(self, timeout: float | None) -> None:
        if self._gone:
            raise HungUp("the connection is closed")
        secured = self._connection if isinstance(self._connection, ssl.SSLSocket) else None
        if secured is None or not secured.pending():
            self._wait_readable(timeout)
        try:
            data = self._connection.recv(65536)
        except TimeoutError:
            raise Silence from None  # Half a TLS record.
        except OSError as error:
            self._gone = True
            raise HungUp(f"connection lost: {error.strerror or error}") from None
        if not data:
            self._gone = True
            raise HungUp("end of connection")
        self._buffer += data

    def _wait_readable(self, timeout: float | None) -> None:
        ready = {key.data for key, _ in self._selector.select(timeout)}
        if "peer" not in ready:
            if "wake" in ready:
                raise HungUp("the server was closed")
            raise Silence

    def _store(self, content: bytes) -> None:
        self._book.store(self.dialogue.message(content, connection=self.number, tls=self.tls))

    def shown(self, line: str) -> str:
        """The line as it may stand in an error: credentials masked."""
        if line not in self._secret_lines:
            return repr(line)
        words = line.split()
        return repr(" ".join([*words[:2], "***"]) if words[:1] and words[0].upper() == "AUTH" else "***")

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send `data` as it is; each final reply line in it answers the oldest open command."""
        self.has_sent = True
        if self._gone:
            return
        self._record("sent", data)
        *lines, self._sent_tail = (self._sent_tail + data).split(b"\n")
        for line in lines:
            if match := FINAL_REPLY.match(line + b"\n"):
                self.dialogue.replied(match[1].decode())
        if self.dialogue.ended:
            # Before the client can know: who dials again after the 221 must not seem to hold two connections.
            self._book.release(self.number)
        try:
            self._connection.sendall(data)
        except OSError:
            pass  # See the module's first paragraph.

    def reply(self, text: str) -> None:
        """Send the lines of `text`, each with CRLF."""
        self.send("".join(f"{line}\r\n" for line in text.splitlines()).encode("utf-8", "surrogateescape"))

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Wait for `event`; False after `timeout` seconds. Raises HungUp when the server is closed meanwhile."""
        deadline = time.monotonic() + timeout
        # An Event cannot be waited for together with another: look at both in turn.
        while not event.wait(POLL):
            if self._closing.is_set():
                raise HungUp("the server was closed")
            if time.monotonic() >= deadline:
                return False
        return True

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass, less when the server is closed."""
        self._closing.wait(seconds)

    # -- the connection ---------------------------------------------------------------------------------------------

    def start_tls(self) -> None:
        """Shake hands as a TLS server. A client that declines is gone, as one that hung up."""
        if self._tls_context is None:
            raise RuntimeError('StartTLS needs a server with tls="starttls" or "tls"')
        if self._gone:
            return
        self._buffer.clear()
        self._connection.settimeout(0)
        try:
            self._connection.getpeername()  # one that was reset is found out here: wrap_socket() would leak it
            secured = self._tls_context.wrap_socket(self._connection, server_side=True, do_handshake_on_connect=False)
            self._connection = secured
            while not self.tls:
                try:
                    secured.do_handshake()
                    self.tls = True
                except ssl.SSLWantReadError:
                    self._wait_readable(self.timeout)
            secured.settimeout(self.timeout)
        except (OSError, Silence):
            self._gone = True

    def drop(self) -> None:
        """Close in order: close_notify under TLS, then FIN."""
        if isinstance(self._connection, ssl.SSLSocket):
            try:
                self._connection.settimeout(0)  # Do not wait for the peer's close_notify.
                self._connection.unwrap()
            except (OSError, ValueError):
                pass
        self._close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        try:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        self._close()

    def cut(self) -> None:
        """From another thread: end a call that is stuck in this connection."""
        try:
            # Not SSLSocket.shutdown: that takes the TLS object away from the thread that uses it.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
        except OSError:
            pass

    def _close(self) -> None:
        self._gone = True
        self._connection.close()

    def release(self) -> None:
        """Give everything back; the last call of the connection's thread."""
        if self._connection.fileno() >= 0:
            self.drop()
        self._selector.close()

    def _record(self, direction: Literal["received", "sent"], data: bytes) -> None:
        with self._book.changed:
            self._transcript.append(TranscriptEntry(self.number, direction, data))
            self._book.changed.notify_all()
