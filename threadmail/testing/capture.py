"""CaptureServer: a well-behaved mail server that keeps every message it is given.

Owns one thread with one asyncio loop on which aiosmtpd speaks SMTP or LMTP; guarantees that after the ``with`` block
no thread, socket or task of it is left. How a session runs is `_capture_session`'s business; a server that misbehaves
is `scripted`'s.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from . import _aiosmtpd
from ._book import Book
from ._endpoint import Endpoint, TLSMode
from ._sasl import DEFAULT_MECHANISMS, check
from .certificates import TestCA
from .messages import CapturedMessage, MessageList

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._capture_loop import CaptureLoop

EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8")
JOIN_DEADLINE = 10.0


class CaptureServer(Endpoint):
    """A mail server on a free port that accepts, records and hands over; a context manager.

        with CaptureServer(tls="starttls", auth={"ada": "secret"}) as server:
            send_report(server.url)
            [mail] = server.wait_for(1)

    Callbacks run one at a time on the server's own thread, and the whole server waits for them; to hold one
    connection while others go on, use `ScriptedServer`. What a callback raises is answered with 451 and raised
    again by `close()` or at the end of the ``with`` block.

    Args:
        tls: ``"none"``, ``"starttls"`` (offered, and needed for AUTH) or ``"tls"`` (from the first byte).
        ssl_context: the server's context for TLS; without it `ca` issues a certificate.
        ca: the authority to use; without it and `ssl_context` the server makes one of its own (needs trustme).
        auth: passwords (or tokens) by user; AUTH is offered when given.
        mechanisms: what AUTH offers, of PLAIN, LOGIN, CRAM-MD5, XOAUTH2 and OAUTHBEARER.
        require_auth: refuse MAIL with 530 before a login (RFC 4954 section 6).
        size_limit: the octets a message may have (RFC 1870, offered as SIZE); None: any number, SIZE not offered.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        extensions: what EHLO offers beside SIZE, STARTTLS and AUTH. ``"DSN"`` (RFC 3461) and ``"CHUNKING"``
            (RFC 3030) are understood as well; a name the server does not know is offered and nothing more.
        on_message: called with each message before it is kept; a reply text it returns (``"550 5.7.1 no"``) refuses
            the message, None accepts it. With LMTP it is asked once for each recipient, with that recipient alone.
        on_recipient: called with each address of RCPT; a reply text refuses it.
        lmtp: speak LMTP (RFC 2033): LHLO, and a reply for each recipient after the content.
        max_connections: connections beyond this number are answered 421 and closed.
    Raises:
        ImportError: aiosmtpd is not installed, or trustme where a certificate is needed; with the line to type.
        ValueError: the arguments do not fit together.
    """

    def __init__(
        self,
        *,
        tls: TLSMode = "none",
        ssl_context: ssl.SSLContext | None = None,
        ca: TestCA | None = None,
        auth: Mapping[str, str] | None = None,
        mechanisms: Collection[str] = DEFAULT_MECHANISMS,
        require_auth: bool = False,
        size_limit: int | None = 33_554_432,
        host: str = "127.0.0.1",
        port: int = 0,
        extensions: Collection[str] = EXTENSIONS,
        on_message: Callable[[CapturedMessage], str | None] | None = None,
        on_recipient: Callable[[str], str | None] | None = None,
        lmtp: bool = False,
        max_connections: int | None = None,
    ) -> None:
        _need_aiosmtpd()
        if require_auth and not auth:
            raise ValueError("require_auth needs auth: nobody could ever log in")
        super().__init__(tls=tls, ssl_context=ssl_context, ca=ca, auth=auth, host=host, port=port, lmtp=lmtp)
        self._mechanisms = check(tuple(mechanisms))
        self._require_auth = require_auth
        self._size_limit = size_limit
        self._extensions = tuple(extensions)
        self._on_message = on_message
        self._on_recipient = on_recipient
        self._max_connections = max_connections
        self._book = Book()
        self._loop: CaptureLoop | None = None
        self._closed = False
        self.outbox: MessageList = MessageList(lambda: self._book.messages)
        """The messages as a live, read-only list that grows while they come."""

    def start(self) -> None:
        """Listen and serve; entering the ``with`` block does this. Raises RuntimeError when called twice."""
        from ._capture_hooks import Manners
        from ._capture_loop import CaptureLoop

        if self._loop is not None or self._closed:
            raise RuntimeError("a CaptureServer starts once: make a new one")
        manners = Manners(
            tls=self._tls,
            ssl_context=self._ssl_context,
            auth=self._auth,
            mechanisms=self._mechanisms,
            require_auth=self._require_auth,
            size_limit=self._size_limit,
            extensions=self._extensions,
            on_message=self._on_message,
            on_recipient=self._on_recipient,
            lmtp=self._lmtp,
            max_connections=self._max_connections,
        )
        listener = self._listen()
        self._loop = CaptureLoop(listener, manners, self._book, name=f"threadmail-capture-{self.port}")
        self._loop.start()

    def close(self) -> None:
        """Close every connection and end the server's thread; idempotent. Raises what a callback raised."""
        self._stop()
        self._book.raise_errors()

    def _stop(self) -> None:
        self._closed = True
        if self._loop is not None:
            self._loop.stop(JOIN_DEADLINE)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stop()

    @property
    def messages(self) -> list[CapturedMessage]:
        """The messages accepted so far, oldest first: a copy."""
        return self._book.messages

    def clear(self) -> None:
        """Forget the messages."""
        self._book.clear()

    def wait_for(self, count: int, timeout: float = 10.0) -> list[CapturedMessage]:
        """Wait until at least `count` messages are there and return all.

        Raises TimeoutError, saying how many arrived, after `timeout` seconds.
        """
        return self._book.wait_for_messages(count, timeout)

    def wait_for_connections(self, count: int, timeout: float = 10.0) -> None:
        """Wait until exactly `count` connections are open; TimeoutError after `timeout` seconds.

        A connection counts from the moment the server has accepted it (and, with implicit TLS, shaken hands), surely
        before its greeting reaches the client.
        """
        self._book.wait_for_connections(count, timeout)

    @property
    def connections_opened(self) -> int:
        """How many connections were served so far (with implicit TLS: got through the handshake)."""
        return self._book.opened

    @property
    def connections_open(self) -> int:
        """How many connections are open now; one that has said QUIT no longer counts."""
        return self._book.open_count

    @property
    def connections_refused(self) -> int:
        """How many connections were turned away because of `max_connections`."""
        return self._book.refused

    @property
    def max_simultaneous(self) -> int:
        """The largest number of connections that were open at once."""
        return self._book.most

    @property
    def quits(self) -> int:
        """How many QUIT commands came."""
        return self._book.quits

    def drop_connections(self, mode: Literal["fin", "reset", "421"] = "fin", timeout: float = 5.0) -> int:
        """Hang up on every open connection, as a server does that is tired of idle clients.

        mode: ``"fin"`` closes in order (with close_notify under TLS), ``"reset"`` sends a TCP reset, ``"421"`` says
        ``421 4.4.2 idle timeout`` and closes. The connections are gone when this returns (at most `timeout` seconds
        later, or TimeoutError). Returns how many there were.
        """
        if mode not in ("fin", "reset", "421"):
            raise ValueError(f'mode must be "fin", "reset" or "421", not {mode!r}')
        if self._loop is None or self._closed:
            raise RuntimeError("the server is not running")
        return self._loop.drop_connections(mode, timeout)


def _need_aiosmtpd() -> None:
    try:
        _aiosmtpd.load()
    except ImportError as error:
        message = "threadmail.testing.CaptureServer needs aiosmtpd: pip install 'threadmail[sandbox]'"
        raise ImportError(message) from error
