"""A server that takes everything and keeps nothing, in a process of its own: what is measured is the client.

Owns one process with one thread, which serves all connections as they have something to say. Guarantees that the
replies to commands that came together leave together (RFC 2920 §3.2), that DATA and BDAT (RFC 3030) are both
understood, that content costs a search and no copy of it, and that a message is counted before it is answered.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

#: What it says it can do. SIZE is without a limit.
OFFERS = ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "CHUNKING")

_END = b"\r\n.\r\n"
_BLOCK = 1 << 18  # bytes read at once


class Sink:
    """A context manager. `url` says where it listens, `messages` how many it has taken, after the block too.

    Args:
        offers: the extensions it names in the reply to EHLO.
        core: the processor core to stay on; None leaves that to the system.
        session: makes each dialogue, of those that answer otherwise; it is called in the sink's own process.
    """

    def __init__(
        self, *, offers: Sequence[str] = OFFERS, core: int | None = None, session: Callable[..., Session] | None = None
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.host, self.port = self._listener.getsockname()
        self.url = f"smtp://{self.host}:{self.port}"
        self._count = spawn.RawValue("q", 0)  # written by one thread only, so it needs no lock
        arguments = (self._listener, tuple(offers), core, self._count, session or Session)
        self._process = spawn.Process(target=_serve, args=arguments, name="sink", daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._listener.close()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.join(10.0)
        self._process.close()

    @property
    def messages(self) -> int:
        """Messages taken so far."""
        return int(self._count.value)

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process.pid is not None
        return self._process.pid


class Session:
    """One dialogue, without its socket: bytes in, replies out."""

    greeting = b"220 sink ESMTP\r\n"

    def __init__(self, offers: Sequence[str] = OFFERS) -> None:
        self.taken = 0
        self.ended = False
        self._hello = "".join(f"250-{line}\r\n" for line in ("sink", *offers)).encode() + b"250 HELP\r\n"
        self._rest = b""  # the beginning of a line, or the last bytes of content that may begin its end
        self._in_data = False
        self._in_chunk = 0  # bytes of BDAT still to come
        self._last_chunk = False

    def feed(self, data: bytes) -> bytes:
        """Take what came; returns what to answer."""
        data = self._rest + data if self._rest else data
        self._rest = b""
        replies: list[bytes] = []
        at = 0
        while not self.ended:
            if self._in_chunk:
                skipped = min(self._in_chunk, len(data) - at)
                at += skipped
                self._in_chunk -= skipped
                if self._in_chunk:
                    break
                replies.append(self._chunk_taken())
            elif self._in_data:
                end = data.find(_END, at)
                if end < 0:
                    self._rest = data[max(at, len(data) - len(_END) + 1) :]
                    break
                at = end + len(_END)
                self._in_data = False
                self.taken += 1
                replies.append(b"250 2.0.0 taken\r\n")
            else:
                end = data.find(b"\r\n", at)
                if end < 0:
                    self._rest = data[at:]
                    break
                replies.append(self.command(data[at:end]))
                # The line end of DATA itself may be the one before the final dot.
                at = end if self._in_data else end + 2
        return b"".join(replies)

    def command(self, line: bytes) -> bytes:
        """Take one command; returns the reply. With `ended` set the connection is closed behind it."""
        verb = line[:4].upper()
        if verb == b"DATA":
            self._in_data = True
            return b"354 go\r\n"
        if verb == b"BDAT":
            self._in_chunk, self._last_chunk = int(line.split()[1]), line.upper().endswith(b" LAST")
            return b"" if self._in_chunk else self._chunk_taken()
        if verb == b"EHLO":
            return self._hello
        if verb == b"QUIT":
            self.ended = True
            return b"221 2.0.0 bye\r\n"
        return b"250 2.0.0 ok\r\n"

    def _chunk_taken(self) -> bytes:
        self.taken += self._last_chunk
        return b"250 2.0.0 taken\r\n"


class _Connection:
    """A session on its socket; what the peer does not read at once is kept until it does."""

    def __init__(self, poll: selectors.BaseSelector, sock: socket.socket, session: Session) -> None:
        self._poll, self._sock, self.session = poll, sock, session
        self._replies = self._unsent = b""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(sock, selectors.EVENT_READ, self)
        self._send(session.greeting)
        if session.ended:
            self._close()

    def read(self) -> int:
        """Take what the peer sent; returns how many messages that completed."""
        before = self.session.taken
        try:
            data = self._sock.recv(_BLOCK)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if data:
            self._replies = self.session.feed(data)
        else:
            self._close()
        return self.session.taken - before

    def answer(self) -> None:
        """Send the replies, now that what they tell of is counted."""
        if self._sock.fileno() >= 0:
            replies, self._replies = self._replies, b""
            if replies or self._unsent:
                self._send(replies)
            if self.session.ended and not self._unsent:
                self._close()

    def _send(self, data: bytes) -> None:
        waiting = bool(self._unsent)
        data = self._unsent + data
        try:
            sent = self._sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close()
            return
        self._unsent = data[sent:]
        if waiting != bool(self._unsent):
            write = selectors.EVENT_WRITE if self._unsent else 0
            self._poll.modify(self._sock, selectors.EVENT_READ | write, self)

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            self._poll.unregister(self._sock)
            self._sock.close()


def end_with_parent(poll: selectors.BaseSelector) -> None:
    """For a process that another one started: ignore Ctrl-C, which is the parent's, and learn of its end.

    Registers what becomes readable then, with `sys.exit` as data.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        poll.register(parent.sentinel, selectors.EVENT_READ, sys.exit)


def _serve(
    listener: socket.socket, offers: Sequence[str], core: int | None, count: Any, session: Callable[..., Session]
) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    listener.setblocking(False)
    with selectors.DefaultSelector() as poll:
        poll.register(listener, selectors.EVENT_READ, None)
        end_with_parent(poll)
        while True:
            for key, mask in poll.select():
                if key.data is sys.exit:
                    sys.exit()
                if key.data is None:
                    try:
                        sock = listener.accept()[0]
                    except (BlockingIOError, ConnectionError):
                        continue
                    one = session(offers)
                    count.value += one.taken  # of one that counts itself; before its greeting
                    _Connection(poll, sock, one)
                else:
                    if mask & selectors.EVENT_READ:
                        count.value += key.data.read()
                    key.data.answer()
