"""The thread under a CaptureServer: one asyncio loop that accepts, hangs up, and ends without a trace.

Owns the listening socket, the loop, every connection's task; guarantees that after `stop` all of them are gone.
Connections are accepted here and not by `loop.create_server`, because the raw socket is needed to hang up at once
(asyncio waits up to 30 s for a TLS peer's close_notify) and to find connections that are still shaking hands.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading
from typing import Any, Literal

from ._book import Book
from ._capture_hooks import Manners
from ._capture_session import LMTPSession, Session

HANDSHAKE_TIMEOUT = 10.0
HANG_UP_TIMEOUT = 5.0


class CaptureLoop:
    """Runs sessions on a thread of its own from `start` to `stop`."""

    def __init__(self, listener: socket.socket, manners: Manners, book: Book, *, name: str) -> None:
        self._listener = listener
        self._manners = manners
        self._book = book
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        # Not the platform's default: on Windows that has no add_reader.
        self._loop = asyncio.SelectorEventLoop()
        self._loop.set_exception_handler(self._on_loose_error)
        self._stopping = asyncio.Event()
        self._sessions: set[Session] = set()
        self._greetings: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._listener.setblocking(False)
        try:
            self._thread.start()
        except RuntimeError:
            self._listener.close()
            self._loop.close()
            raise

    def stop(self, timeout: float) -> None:
        """End loop and thread; a second call does nothing. RuntimeError if they have not ended after `timeout` s."""
        if self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._stopping.set)
            except RuntimeError:
                pass  # The loop closed between the question and the call.
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise RuntimeError(f"thread {self._thread.name} did not end within {timeout:g} s: is a callback stuck?")

    def drop_connections(self, mode: Literal["fin", "reset", "421"], timeout: float) -> int:
        future = asyncio.run_coroutine_threadsafe(self._drop(mode, timeout), self._loop)
        try:
            return future.result(timeout + 1)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise TimeoutError(f"the server's thread did not answer within {timeout:g} s") from None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - a broken server must be reported by the test, not by a thread
            self._book.blame(error)
        finally:
            self._listener.close()
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _serve(self) -> None:
        self._loop.add_reader(self._listener, self._accept)
        await self._stopping.wait()
        self._loop.remove_reader(self._listener)
        for task in self._greetings:
            task.cancel()
        await asyncio.gather(*self._greetings, return_exceptions=True)
        await self._drop("fin", HANG_UP_TIMEOUT)
        leftovers = asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
        for leftover in leftovers:
            leftover.cancel()
        await asyncio.gather(*leftovers, return_exceptions=True)

    def _accept(self) -> None:
        # A plain callback: a cancelled `await sock_accept()` may have accepted a socket that nobody gets to see.
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # The peer was gone before it was accepted.
        connection.setblocking(False)
        # asyncio does so only where the socket names its protocol; without it EHLO's lines take 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def settle(task: asyncio.Task[None]) -> None:
            self._greetings.discard(task)
            if task.cancelled():
                connection.close()  # Perhaps before the task had begun.

        task = self._loop.create_task(self._greet(connection))
        self._greetings.add(task)
        task.add_done_callback(settle)

    async def _greet(self, connection: socket.socket) -> None:
        def factory() -> Session:
            kind = LMTPSession if self._manners.lmtp else Session
            return kind(self._loop, connection, self._manners, self._book, self._sessions)

        options: dict[str, Any] = {}
        if self._manners.tls == "tls":
            options = {"ssl": self._manners.ssl_context, "ssl_handshake_timeout": HANDSHAKE_TIMEOUT}
        try:
            await self._loop.connect_accepted_socket(factory, connection, **options)
        except OSError:
            connection.close()  # The handshake failed: the client's concern, and the client knows.

    async def _drop(self, mode: Literal["fin", "reset", "421"], timeout: float) -> int:
        sessions = list(self._sessions)
        for session in sessions:
            session.hang_up(mode)
        if sessions:
            _, waiting = await asyncio.wait([session.gone for session in sessions], timeout=timeout)
            if waiting:
                raise TimeoutError(f"{len(waiting)} of {len(sessions)} connections did not close in {timeout:g} s")
        return len(sessions)

    def _on_loose_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError):
            return  # A peer that hung up while it was being answered.
        self._book.blame(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))
