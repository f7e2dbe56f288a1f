"""The model server: makes connections in the place of `socket.create_connection`, and keeps what was delivered."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from .modelsocket import ModelSocket
from .ops import CLOSE, CONNECT, SHUTDOWN, Op, Shared
from .scheduler import active
from .smtpmodel import EVERY, Connection, Envelope, Faults, name_of


class ModelServer(Shared):
    """The server: where its connections are made, and what was delivered.

    `extensions` are the EHLO lines. `bound` is the number of connections allowed at once (None: no bound): more is a
    violation. `lockset=True` notes a violation for a connection that was ever used without one and the same lock held
    each time (Savage et al., *Eraser*, 1997). With `read_timeouts=True` a read may time out as its socket says; without
    it, a read that nothing will ever answer is a deadlock. `ordered=True` makes the order of connects and closes
    matter even where no fault or bound depends on it.
    """

    __slots__ = ("_real", "answered", "bound", "connections", "delivered", "extensions", "faults", "lockset",
                 "most_open", "ordered", "read_timeouts", "refused", "said")  # fmt: skip

    def __init__(
        self,
        *extensions: str,
        faults: Faults | None = None,
        bound: int | None = None,
        lockset: bool = False,
        read_timeouts: bool = False,
        ordered: bool = False,
    ) -> None:
        super().__init__("server")
        self.extensions = {line.split(" ")[0].upper(): line for line in extensions}
        self.faults = faults or Faults()
        self.bound, self.lockset, self.read_timeouts = bound, lockset, read_timeouts
        # Does the order of connects and closes of different connections matter? If not, they commute.
        self.ordered = ordered or bound is not None or self.faults.by_number
        self.connections: list[Connection] = []
        self.delivered: list[Envelope] = []
        self.answered: dict[str, str] = {}  # what was said last to RCPT of each recipient
        self.said: dict[str, list[str]] = {}  # and all that was
        self.refused: list[str] = []  # senders of a content that was refused
        self.most_open = 0

    def fault(self, by_connection: Mapping[int, int], number: int) -> int | None:
        return by_connection.get(number, by_connection.get(EVERY))

    def create_connection(self, address: Any, timeout: Any = None, source_address: Any = None, **_: Any) -> ModelSocket:
        """In the place of `socket.create_connection`."""
        scheduler = active()
        assert scheduler is not None, "the model server lives within a run"
        me = scheduler.me()
        connection = Connection(self, scheduler.fresh_name("conn"), 0)
        if me is not None:
            scheduler.step(me, Op(CONNECT, self if self.ordered else connection))
        connection.number = len(self.connections)
        self.connections.append(connection)
        if connection.number in self.faults.refuse_connects:
            connection.closed = connection.eof = True
            connection.transcript.append((name_of(me), "<", "(refuses the connection)"))
            raise ConnectionRefusedError(111, "connection refused by the model server")
        self.most_open = max(self.most_open, sum(not c.closed for c in self.connections))
        if connection.number in self.faults.greet_421:
            connection.reply("421 4.3.2 not now", me, len(scheduler.trace) - 1)
            connection.hang_up()
        else:
            connection.reply("220 model ready", me, len(scheduler.trace) - 1)
        return ModelSocket(connection, timeout if isinstance(timeout, (int, float)) else None)

    def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        """In the place of `socket.getaddrinfo`: each name is an address, for which nobody has to wait."""
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]

    def hang_up_idle(self) -> None:
        """Hang up on every connection that has no transaction open; called by a thread of the scenario."""
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        assert self.ordered, "a server that is asked to hang up must be made with ordered=True"
        if scheduler is not None and me is not None:
            scheduler.step(me, Op(CLOSE, self))
        for connection in list(self.connections):
            if scheduler is not None and me is not None:
                scheduler.step(me, Op(SHUTDOWN, connection))
            if connection.idle:
                connection.transcript.append(("server", "<", "(hangs up)"))
                connection.hang_up()

    def __enter__(self) -> ModelServer:
        self._real = socket.create_connection, socket.socket, socket.getaddrinfo
        socket.create_connection = self.create_connection  # type: ignore[assignment]
        socket.getaddrinfo = self.getaddrinfo
        # Programs may call methods by way of the class: `socket.socket.shutdown(sock, how)`.
        socket.socket = ModelSocket  # type: ignore[assignment, misc]
        return self

    def __exit__(self, *exc: object) -> None:
        socket.create_connection, socket.socket, socket.getaddrinfo = self._real  # type: ignore[misc]
