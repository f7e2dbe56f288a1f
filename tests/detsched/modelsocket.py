"""The client's end of a connection to the model server: enough of `socket.socket`, every transfer announced.

`sendall` is one step, however long the data. `recv` takes whatever is there, as a real one does; `readline` of a file
made by `makefile("rb")` takes one line and leaves the rest (the real reader buffers ahead, which no command-and-reply
client can tell). `shutdown` from any thread ends a read that is blocked. `settimeout` is no switch point. There is no
`fileno`: nothing here can be polled.
"""

from __future__ import annotations

import errno
import io
import socket
from typing import Any

from .ops import CLOSE, LOOK, READLINE, RECV, SEND, SHUTDOWN, Op
from .scheduler import Scheduler, active
from .smtpmodel import Connection, Reply
from .task import Abort, Task, UncontrolledBlocking


class ModelSocket:
    def __init__(self, connection: Connection, timeout: float | None) -> None:
        self.connection = connection
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<model socket {self.connection.name}>"

    def __enter__(self) -> ModelSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Writing ----------------------------------------------------------------------------------------------------

    def sendall(self, data: Any, flags: int = 0) -> None:
        connection, data = self.connection, bytes(data)
        scheduler, me = _announce(Op(SEND, connection, note=repr(data[:60])))
        if connection.closed:
            raise OSError(errno.EBADF, "socket is closed")
        if connection.eof:
            raise BrokenPipeError(errno.EPIPE, "the server hung up")
        _watch_locks(connection, me)
        connection.feed(data, me, len(scheduler.trace) - 1)

    def send(self, data: Any, flags: int = 0) -> int:
        self.sendall(data)
        return len(bytes(data))

    # Reading ----------------------------------------------------------------------------------------------------

    def _something(self) -> bool:
        connection = self.connection
        return bool(connection.replies) or connection.eof or connection.closed

    def _wait(self, kind: str) -> Task | None:
        """Announce a read and wait until there is something to take, or raise what a socket raises."""
        connection = self.connection
        looking = kind is RECV and self._timeout == 0
        timeout = self._timeout if connection.server.read_timeouts and not looking else None
        if timeout is not None and _may_time_out():
            kind = RECV  # it may find nothing and give up, so that a SEND before it matters to a READLINE too
        op = Op(LOOK, connection) if looking else Op(kind, connection, self._something, timeout=timeout)
        scheduler, me = _announce(op)
        _watch_locks(connection, me)
        if connection.replies:
            op.cause = connection.replies[0].cause
            op.note = repr(connection.replies[0].line[:60])
        elif not self._something():
            if looking:
                raise BlockingIOError(errno.EAGAIN, "nothing to read")
            if me is None:
                raise UncontrolledBlocking("the set-up of a run would wait for the server for ever")
            assert timeout is not None
            scheduler.clock.timed_out(me, op)
            raise TimeoutError("timed out")
        return me

    def recv(self, size: int, flags: int = 0) -> bytes:
        me = self._wait(RECV)
        connection = self.connection
        if connection.closed:
            raise OSError(errno.EBADF, "socket is closed")
        chunk = b""
        while connection.replies and len(chunk) < size:
            reply = connection.replies.popleft()
            part = reply.line[: size - len(chunk)]
            _taken(connection, reply, me)
            chunk += part
            if len(part) < len(reply.line):
                rest = Reply(reply.line[len(part) :], reply.owner, reply.cause, reply.time)
                connection.replies.appendleft(rest)
        return chunk

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        chunk = self.recv(nbytes or len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    def readline(self) -> bytes:
        """For `ModelReader`."""
        me = self._wait(READLINE)
        connection = self.connection
        if not connection.replies:
            if connection.closed:
                raise ValueError("I/O operation on closed file")
            return b""
        reply = connection.replies.popleft()
        _taken(connection, reply, me)
        return reply.line

    def makefile(self, mode: str = "r", *args: Any, **kwargs: Any) -> ModelReader:
        if mode != "rb":
            raise ValueError(f"the model socket makes binary readers only, not {mode!r}")
        return ModelReader(self)

    # The end ----------------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        scheduler = active()
        if scheduler is not None and scheduler.ending is not None:
            return
        _announce(Op(SHUTDOWN, self.connection))
        if self.connection.closed:
            raise OSError(errno.EBADF, "socket is closed")
        if how in (socket.SHUT_RDWR, socket.SHUT_WR):
            self.connection.transcript.append(("client", ">", "(shutdown)"))
            self.connection.hang_up()

    def close(self) -> None:
        scheduler = active()
        if scheduler is not None and scheduler.ending is None:
            me = scheduler.me()
            if me is not None:
                scheduler.step(me, Op(CLOSE, self.connection))
                if self.connection.server.ordered and not self.connection.closed:
                    scheduler.step(me, Op(CLOSE, self.connection.server))
        self.connection.closed = True

    def detach(self) -> int:
        raise io.UnsupportedOperation("the model socket has no file descriptor")

    fileno = detach

    # What a client sets and asks ----------------------------------------------------------------------------------

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    def setsockopt(self, *args: Any) -> None:
        pass

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 25)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 50000 + self.connection.number)


class ModelReader:
    """What `makefile("rb")` returns. The C BufferedReader would block on a lock that nobody controls."""

    def __init__(self, sock: ModelSocket) -> None:
        self._sock = sock

    def readline(self, size: int = -1) -> bytes:
        return self._sock.readline()

    def close(self) -> None:
        pass


def _announce(op: Op) -> tuple[Scheduler, Task | None]:
    scheduler = active()
    if scheduler is None:
        raise OSError(errno.ENOTCONN, "the run of this model socket is over")
    me = scheduler.me()
    if me is not None:
        if scheduler.ending is not None:
            raise Abort
        scheduler.step(me, op)
    return scheduler, me


def _may_time_out() -> bool:
    scheduler = active()
    me = scheduler.me() if scheduler is not None else None
    return me is not None and me.timeouts_left != 0


def _taken(connection: Connection, reply: Reply, me: Task | None) -> None:
    if me is not None:
        me.now = max(me.now, reply.time)
        if reply.owner is not me:
            connection.violate("reply read by the wrong thread")


def _watch_locks(connection: Connection, me: Task | None) -> None:
    if me is None or not connection.server.lockset:
        return
    connection.lockset = set(me.held) if connection.lockset is None else connection.lockset & me.held
    if not connection.lockset:
        connection.violate("connection used without a lock in common")
