"""The delay line: a wire of a known round-trip time, without root.

Owns a process that passes TCP connections on to a server and holds every chunk for half the round-trip time, in each
direction. Guarantees: a chunk leaves when its own time has come, whatever came before or after it; order and ends of
streams are kept; a new connection costs what it costs on a wire (SYN, SYN-ACK and ACK before the server may speak, so
that the greeting comes after two round trips); as much is under way as the senders like, so that delay alone is added
and no limit. `linecheck` measures all that. It counts round trips as well: `trips` grows by one when something reaches
the client that was caused by something the client sent after it had learnt of the one before, which is what takes a
round trip however long the line is and however busy the machine. What it does not imitate: loss, slow start, the
bandwidth of a real line, and acknowledgements: TCP ends here on both sides, and the server's segments are acknowledged
at once, so that neither Nagle's algorithm there nor a delayed acknowledgement costs anything. Without a line they do.
"""

from __future__ import annotations

import collections
import ctypes
import heapq
import itertools
import multiprocessing
import select
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stress.sink import end_with_parent

if TYPE_CHECKING:
    from typing_extensions import Self

_BLOCK = 1 << 18
_MOST_HELD = 64 << 20  # bytes in one direction of one connection; at 50 ms still more than 2 GiB/s
_PR_SET_TIMERSLACK = 29
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)


class DelayLine:
    """A context manager: what connects to `host`, `port` meets the server `rtt` seconds away."""

    def __init__(self, server: tuple[str, int], rtt: float) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.rtt = rtt
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.host, self.port = self._listener.getsockname()
        self._trips = spawn.RawValue("q", 0)  # written by one thread only, so it needs no lock
        arguments = (self._listener, server, rtt, self._trips)
        self._process = spawn.Process(target=_serve, args=arguments, name="line", daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._listener.close()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.join(10.0)
        self._process.close()

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def trips(self) -> int:
        """Round trips so far, of all connections together, two for the opening of each among them."""
        return int(self._trips.value)


def _serve(listener: socket.socket, server: tuple[str, int], rtt: float, trips: Any) -> None:
    if sys.platform == "linux":
        # By default Linux may wake a sleeper 50 us late, which is a tenth of the half of 1 ms.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    _Loop(listener, server, rtt, trips).run()


class _Loop:
    """One thread that waits for sockets and for times."""

    def __init__(self, listener: socket.socket, server: tuple[str, int], rtt: float, trips: Any) -> None:
        self._listener, self._server, self.rtt, self.trips = listener, server, rtt, trips
        self.poll = selectors.DefaultSelector()
        self._number = itertools.count()  # breaks ties, so that what is due first came first
        self._later: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, due: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (due, next(self._number), action))

    def run(self) -> None:
        self._listener.setblocking(False)
        self.poll.register(self._listener, selectors.EVENT_READ, self._accept)
        end_with_parent(self.poll)
        # Polling rounds time-outs up to milliseconds, `select` waits for microseconds: it waits for the poll.
        waiting = [self.poll]
        while True:
            pause = max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
            select.select(waiting, (), (), pause)
            while self._later and self._later[0][0] <= time.monotonic():
                heapq.heappop(self._later)[2]()
            for key, _ in self.poll.select(0):
                key.data()

    def _accept(self) -> None:
        try:
            client = self._listener.accept()[0]
        except (BlockingIOError, ConnectionError):
            return
        self.at(time.monotonic() + 1.5 * self.rtt, lambda: self._dial(client))

    def _dial(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server, timeout=5.0)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.trips.value += 2
        up, down = _Pipe(self, client, server), _Pipe(self, server, client)
        up.back, down.back = down, up
        up.first, down.acknowledges = True, True
        _End(self, client, reads=up, writes=down).watch()
        _End(self, server, reads=down, writes=up).watch()


class _End:
    """One of the two sockets of a connection: the source of one pipe and the target of the other."""

    def __init__(self, loop: _Loop, sock: socket.socket, *, reads: _Pipe, writes: _Pipe) -> None:
        self._loop, self._sock, self._reads, self._writes = loop, sock, reads, writes
        reads.source_end = writes.target_end = self
        self._mask = 0

    def watch(self) -> None:
        """Wait for what the pipes have use for; close when both are at their end."""
        if self._sock.fileno() < 0:
            return
        mask = self._reads.wants_input * selectors.EVENT_READ | self._writes.has_due * selectors.EVENT_WRITE
        if mask != self._mask:
            if not self._mask:
                self._loop.poll.register(self._sock, mask, self._ready)
            elif mask:
                self._loop.poll.modify(self._sock, mask, self._ready)
            else:
                self._loop.poll.unregister(self._sock)
            self._mask = mask
        if self._reads.over and self._writes.over:
            self._sock.close()

    def _ready(self) -> None:
        if self._reads.wants_input:
            self._reads.fill()
        if self._writes.has_due:
            self._writes.drain()


class _Pipe:
    """One direction. `held` waits for its time, `due` for a target that does not take more just now."""

    source_end: _End
    target_end: _End
    back: _Pipe
    first = False  # from the client: what it sends begins a round trip
    acknowledges = False  # at once, which has to be said anew each time

    def __init__(self, loop: _Loop, source: socket.socket, target: socket.socket) -> None:
        self._loop, self._source, self._target = loop, source, target
        self._held: collections.deque[tuple[bytes, int]] = collections.deque()
        self._due: collections.deque[memoryview] = collections.deque()
        self._size = 0  # bytes in both
        self._ended = False  # no more comes in
        self._end_due = False  # and the target is to know
        self.over = False
        self._told = 0  # round trips that the target has heard of

    @property
    def wants_input(self) -> bool:
        return not self._ended and self._size < _MOST_HELD

    @property
    def has_due(self) -> bool:
        return bool(self._due)

    def fill(self) -> None:
        try:
            data = self._source.recv(_BLOCK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self.acknowledges and data and _QUICKACK is not None:
            self._source.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        self._ended = not data
        self._size += len(data)
        # Whoever sends this has heard of so many round trips; the client's next words begin another one.
        self._held.append((data, self.back._told + self.first if data else 0))
        self._loop.at(time.monotonic() + self._loop.rtt / 2, self._release)
        self.source_end.watch()

    def _release(self) -> None:
        data, trips = self._held.popleft()
        if trips > self._told:
            self._loop.trips.value += 0 if self.first else trips - self._told
            self._told = trips
        if data:
            self._due.append(memoryview(data))
        else:
            self._end_due = True
        self.drain()

    def drain(self) -> None:
        try:
            while self._due and not self.over:
                sent = self._target.send(self._due[0])
                self._size -= sent
                self._due[0] = self._due[0][sent:]
                if not self._due[0]:
                    self._due.popleft()
            if self._end_due and not self._due and not self.over:
                self.over = True
                self._target.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self.over = self._ended = True  # the target is gone: what is on its way to it goes nowhere
            self._due.clear()
        self.target_end.watch()
        self.source_end.watch()
