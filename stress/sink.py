"""A server that takes everything and keeps nothing, in a process of its own: what is measured is the client."""

from __future__ import annotations

import multiprocessing
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_END = b"\r\n.\r\n"


class Sink:
    """A context manager. `url` says where it listens, `messages` how many it has taken, after the block too."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"smtp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._count = spawn.Value("q", 0)
        self._process = spawn.Process(target=_serve, args=(self._listener, self._count), name="sink", daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._listener.close()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.join(10.0)

    @property
    def messages(self) -> int:
        """Messages taken so far."""
        return int(self._count.value)


def _serve(listener: socket.socket, count: object) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_converse, args=(connection, count), daemon=True).start()


def _converse(connection: socket.socket, count: object) -> None:
    unread = b""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"220 sink ESMTP\r\n")
        while data := connection.recv(65536):
            unread += data
            while b"\r\n" in unread:
                line, _, unread = unread.partition(b"\r\n")
                verb = line[:4].upper()
                if verb == b"DATA":
                    connection.sendall(b"354 go\r\n")
                    while _END not in unread:
                        unread += connection.recv(65536)
                    unread = unread.partition(_END)[2]
                    with count.get_lock():  # type: ignore[attr-defined]
                        count.value += 1  # type: ignore[attr-defined]
                    connection.sendall(b"250 2.0.0 taken\r\n")
                elif verb == b"QUIT":
                    connection.sendall(b"221 2.0.0 bye\r\n")
                    return
                elif verb == b"EHLO":
                    connection.sendall(b"250-sink\r\n250 8BITMIME\r\n")
                else:
                    connection.sendall(b"250 2.0.0 ok\r\n")
