"""ScriptedServer: a mail server that does exactly what it is told, down to the byte and the reset.

Owns a listening socket, one thread that accepts and one thread for each connection; guarantees that all of them are
gone after the ``with`` block, and that a script the client did not follow is reported there. The steps themselves are
in `steps`, the normal server among them in `_serve`.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from ._book import Book
from ._endpoint import Endpoint, TLSMode
from ._peer import HungUp, Peer
from .certificates import TestCA
from .messages import CapturedMessage, MessageList, TranscriptEntry
from .steps import Script, Serve, Step

if TYPE_CHECKING:
    from typing_extensions import Self

GRACE = 2.0
JOIN_DEADLINE = 10.0


class ScriptedServer(Endpoint):
    """A server that plays one script for each connection, in the order the connections come; a context manager.

        script = [greeting(), ehlo("PIPELINING"), transaction(), Expect("MAIL"), Reply("421 4.4.2 idle"), Drop()]
        with ScriptedServer(script, [Serve()]) as server:
            ...

    When a script has been played the connection is closed. When the client does what the script does not expect, the
    script ends there, the connection is closed, and `check()` or the end of the ``with`` block raises AssertionError
    naming connection, step, what was expected and what came; credentials are masked. A script for which no connection
    came is reported at the end as well, unless it is a plain `Serve()`. An exception already under way is left alone.

    Args:
        scripts: one for each connection; without any, every connection is served normally (`Serve`).
        last: what connections get when the scripts are used up: ``"refuse"`` (421 and closed) or ``"repeat"`` (the
            last script again).
        tls: ``"none"``, ``"starttls"`` (for `StartTLS` and `Serve`), ``"tls"`` (the handshake precedes the script).
        ssl_context, ca: as for `CaptureServer`; ``ssl_context=TestCA().expired_server_context()`` and its kin go here.
        host: the address to listen on.
        lmtp: `Serve` speaks LMTP, and a content is owed a reply for each recipient.
        timeout: seconds that `Expect`, `ReadData` and `ReadBytes` wait, that a write may take, and a handshake.
    """

    def __init__(
        self,
        *scripts: Script,
        last: Literal["refuse", "repeat"] = "refuse",
        tls: TLSMode = "none",
        ssl_context: ssl.SSLContext | None = None,
        ca: TestCA | None = None,
        host: str = "127.0.0.1",
        lmtp: bool = False,
        timeout: float = 10.0,
    ) -> None:
        if last not in ("refuse", "repeat"):
            raise ValueError(f'last must be "refuse" or "repeat", not {last!r}')
        self._scripts = [tuple(_flat(script)) for script in scripts] or [(Serve(),)]
        self._repeat = last == "repeat" or not scripts
        users = [step.auth for script in self._scripts for step in script if isinstance(step, Serve) and step.auth]
        super().__init__(
            tls=tls, ssl_context=ssl_context, ca=ca, auth=users[0] if users else None, host=host, lmtp=lmtp
        )
        self._timeout = timeout
        self._book = Book()
        self._transcript: list[TranscriptEntry] = []
        self._played = 0
        self._reported = False
        self._closing = threading.Event()
        self._threads: dict[threading.Thread, Peer] = {}
        self._acceptor: threading.Thread | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self.outbox: MessageList = MessageList(lambda: self._book.messages)
        """The messages as a live, read-only list that grows while they come."""

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen and play; entering the ``with`` block does this. Raises RuntimeError when called twice."""
        if self._acceptor is not None or self._closing.is_set():
            raise RuntimeError("a ScriptedServer starts once: make a new one")
        listener = self._listen()
        self._wake = socket.socketpair()
        name = f"threadmail-scripted-{self.port}-accept"
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), name=name, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """End all connections and threads, then `check()`; idempotent.

        What the clients had sent before is still played; a script that waits for more ends.
        """
        self._stop()
        self._report_unplayed()
        self.check()

    def _report_unplayed(self) -> None:
        if self._reported or self._acceptor is None:
            return
        self._reported = True
        came = self._book.opened
        for number, script in enumerate(self._scripts):
            idle = all(isinstance(step, Serve) and step.until is None for step in script)
            if number >= came and not idle:
                self._book.blame(AssertionError(f"script {number} was never played: {came} connections came"))

    def _stop(self) -> None:
        self._closing.set()
        if self._acceptor is None or self._wake is None:
            return
        deadline = time.monotonic() + JOIN_DEADLINE
        self._wake[1].close()  # Makes the other end readable for every thread that waits.
        self._acceptor.join(JOIN_DEADLINE)
        grace = time.monotonic() + GRACE
        for thread in self._threads:
            thread.join(max(0.0, grace - time.monotonic()))
        for thread, peer in self._threads.items():
            if thread.is_alive():
                peer.cut()
        for thread in [*self._threads, self._acceptor]:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise RuntimeError(f"thread {thread.name} did not end within {JOIN_DEADLINE:g} s")
        self._wake[0].close()

    def check(self) -> None:
        """Raise what went wrong so far: AssertionError for scripts that clients did not follow. Then forget it."""
        self._book.raise_errors()

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

    # -- what happened ------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[CapturedMessage]:
        """The contents that came whole, oldest first, whatever was answered: a copy."""
        return self._book.messages

    @property
    def transcript(self) -> list[TranscriptEntry]:
        """Everything that was read by a step or sent, in order: (connection, direction, bytes). A copy.

        Credentials are in it as they came.
        """
        with self._book.changed:
            return list(self._transcript)

    @property
    def received(self) -> list[list[str]]:
        """For each connection the lines read as commands (answers to AUTH among them), without their line ends."""
        with self._book.changed:
            return [list(peer.lines) for peer in self._threads.values()]

    @property
    def connections(self) -> int:
        """How many connections were played so far."""
        return self._book.opened

    @property
    def connections_open(self) -> int:
        """How many connections are being played now; one whose QUIT was granted no longer counts."""
        return self._book.open_count

    @property
    def connections_refused(self) -> int:
        """How many connections found no script left."""
        return self._book.refused

    @property
    def max_simultaneous(self) -> int:
        """The largest number of connections that were open at once."""
        return self._book.most

    def wait_for(self, count: int, timeout: float = 10.0) -> list[CapturedMessage]:
        """Wait until at least `count` messages are there; TimeoutError, saying how many came, after `timeout` s."""
        return self._book.wait_for_messages(count, timeout)

    def wait_for_connections(self, count: int, timeout: float = 10.0) -> None:
        """Wait until exactly `count` connections are open; TimeoutError after `timeout` seconds."""
        self._book.wait_for_connections(count, timeout)

    def wait_until_played(self, timeout: float = 10.0) -> None:
        """Wait until as many scripts as were given have ended; then `check()`. TimeoutError after `timeout` s."""
        total = len(self._scripts)
        self._book.wait_until(
            lambda: self._played >= total,
            timeout,
            lambda: f"{self._played} of {total} scripts have been played after {timeout:g} s",
        )
        self.check()

    # -- threads ------------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        assert self._wake is not None
        with listener, selectors.DefaultSelector() as selector:
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._wake[0], selectors.EVENT_READ)
            while True:
                selector.select()
                try:
                    connection, _ = listener.accept()
                except (BlockingIOError, ConnectionError):
                    if self._closing.is_set():
                        return  # And nobody is waiting at the door.
                    continue
                self._admit(connection, self._wake[0])

    def _admit(self, connection: socket.socket, wake: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._book.changed:
            limit = 0 if self._book.opened >= len(self._scripts) and not self._repeat else None
            number = self._book.admit(limit)
        if number is None:
            try:
                connection.settimeout(GRACE)
                connection.sendall(b"421 4.3.2 no script is left for this connection\r\n")
            except OSError:
                pass
            connection.close()
            return
        peer = Peer(
            connection,
            number=number,
            book=self._book,
            transcript=self._transcript,
            closing=self._closing,
            wake=wake,
            timeout=self._timeout,
            tls_context=self._ssl_context,
            starttls=self._tls == "starttls",
            lmtp=self._lmtp,
        )
        name = f"threadmail-scripted-{self.port}-{number}"
        thread = threading.Thread(target=self._play, args=(peer,), name=name, daemon=True)
        with self._book.changed:
            self._threads[thread] = peer
        thread.start()

    def _play(self, peer: Peer) -> None:
        script = self._scripts[min(peer.number, len(self._scripts) - 1)]
        place = ""
        try:
            if self._tls == "tls":
                peer.start_tls()
            for index, step in enumerate(script):
                place = f"connection {peer.number}, step {index} ({step!r})"
                step.play(peer)
        except AssertionError as failure:
            self._book.blame(AssertionError(f"{place}: {failure}"))
        except HungUp:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by check()
            self._book.blame(error)
        finally:
            peer.release()
            with self._book.changed:
                self._played += 1
                self._book.release(peer.number)


def _flat(script: Script) -> Iterator[Step]:
    for part in script:
        if isinstance(part, Sequence):  # Steps among them, for all that they can play.
            yield from _flat(part)
        else:
            yield part
