"""One connection through a FaultProxy: two sockets, a flow each way, and what the plan does to them.

Owns both sockets. Everything here runs on the proxy's one thread and never blocks: `events` says what to wait for,
`due` until when at most, `work` does what can be done now. Guarantees: of each flow exactly the bytes before a fault's
position pass before it strikes, and nothing passes after a cut, in either direction.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ._proxy_faults import Cut, Delay, Fault, Garble, Hold, Passage, Plan, Trickle

CHUNK = 65536
FLUSH = 2.0  # seconds that a reset waits for what has passed to leave this machine's buffers


class Flow:
    """The bytes of one direction.

    Attributes:
        came: bytes read from the source.
        passed: how many of them were written to the sink.
        cut: the cut that is due, or was made.
        lost: the source was reset.
        ended: nothing more comes, and the sink knows.
        mute: the sink is not to know.
        resumes_at: until then nothing passes, on the monotonic clock.
    """

    def __init__(self, source: socket.socket, sink: socket.socket, faults: Sequence[Fault], *, record: bool) -> None:
        self.source = source
        self.sink = sink
        self.came = self.passed = 0
        self.record: bytearray | None = bytearray() if record else None
        self.cut: Cut | None = None
        self.lost = self.ended = self.mute = False
        self.resumes_at: float | None = None
        self._faults = deque(sorted(faults, key=lambda fault: fault.after))
        self._waiting = bytearray()  # came, and has not passed
        self._inserted = b""  # the proxy's own words, which go first
        self._hold: Hold | None = None
        self._trickle: Trickle | None = None
        self._heard_all = False

    @property
    def reads(self) -> bool:
        """Whether what comes is to be read."""
        if self._heard_all:
            return False
        return len(self._waiting) < CHUNK if self._hold is None else self._hold.reading

    @property
    def writes(self) -> bool:
        """Whether there is something to pass on now."""
        return bool(self._inserted or self._waiting) and not self.paused

    @property
    def paused(self) -> bool:
        return self.resumes_at is not None and self.resumes_at > time.monotonic()

    def read(self) -> None:
        """Take what has come."""
        try:
            data = self.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._heard_all = self.lost = True
            return
        self._heard_all = not data
        self.came += len(data)
        if self.record is not None:
            self.record += data
        if self._hold is None:
            self._waiting += data

    def pump(self) -> None:
        """Let pass what may pass now."""
        if not self.paused:
            self.resumes_at = None
        try:
            while self._hold is None and not self.paused:
                self._strike()
                if self.cut is not None or not self.writes or not self._send():
                    break
            at_the_end = self._heard_all and not self.lost and not self._waiting and not self._inserted
            if at_the_end and not self.ended and (self.cut is None or self._hold is not None):
                self._end()
        except OSError:
            self.swallow()  # nobody is there any more, which the other flow's reading will tell

    def _end(self) -> None:
        self.ended = True
        if not self.mute:
            self.sink.shutdown(socket.SHUT_WR)

    def swallow(self, hold: Hold | None = None) -> None:
        """Let nothing pass from now on."""
        self._hold = hold or Hold(self.passed)
        self.resumes_at = None
        self._waiting.clear()
        self._inserted = b""

    def _strike(self) -> None:
        while self._due() and self._hold is None and self.cut is None and not self.paused:
            fault = self._faults[0]
            if isinstance(fault, Garble) and fault.mask and not self._waiting:
                return  # the byte to damage is still to come
            self._faults.popleft()
            if isinstance(fault, Cut):
                self.cut = fault
            elif isinstance(fault, Hold):
                self.swallow(fault)
            elif isinstance(fault, Garble):
                self._inserted += fault.insert
                if fault.mask:
                    self._waiting[0] ^= fault.mask
            elif isinstance(fault, Delay):
                self.resumes_at = time.monotonic() + fault.seconds
            else:
                self._trickle = fault

    def _due(self) -> bool:
        return bool(self._faults) and self._faults[0].after <= self.passed

    def _send(self) -> bool:
        """Write once. Returns whether the sink took it all."""
        until_fault = self._faults[0].after - self.passed if self._faults else CHUNK
        size = self._trickle.size if self._trickle is not None else CHUNK
        data = self._inserted or bytes(self._waiting[: min(until_fault, size)])
        try:
            sent = self.sink.send(data)
        except BlockingIOError:
            return False
        if self._inserted:
            self._inserted = self._inserted[sent:]
        else:
            self.passed += sent
            del self._waiting[:sent]
            if self._trickle is not None and not self._due():
                self.resumes_at = time.monotonic() + self._trickle.interval
        return sent == len(data)


class Link:
    """Both flows of one connection, and its end."""

    def __init__(self, number: int, client: socket.socket, server: socket.socket, plan: Plan, *, record: bool) -> None:
        self.number = number
        self.plan = plan
        self.open = True
        self.sockets = (client, server)
        self._up = Flow(client, server, plan.to_server, record=record)
        self._down = Flow(server, client, plan.to_client, record=record)
        self._flows = (self._up, self._down)
        self._cut = False
        self._told: list[socket.socket] = []  # who is to see the cut
        self._unflushed: set[socket.socket] = set()  # a reset is due when what has passed is out of these
        self._flush_until = 0.0
        for sock in self.sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def passage(self) -> Passage:
        """The connection as it stands."""
        up, down = self._flows
        said = [bytes(flow.record or b"") for flow in self._flows]
        return Passage(self.number, self.plan, up.came, down.came, up.passed, down.passed, self.open, *said)

    def events(self) -> dict[socket.socket, int]:
        """What to wait for, by socket."""
        if not self.open:
            return {}
        if self._unflushed:
            return dict.fromkeys(self._unflushed, selectors.EVENT_WRITE)
        wanted = dict.fromkeys(self.sockets, 0)
        for flow in self._flows:
            wanted[flow.source] |= selectors.EVENT_READ * flow.reads
            wanted[flow.sink] |= selectors.EVENT_WRITE * flow.writes
        return {sock: events for sock, events in wanted.items() if events and sock.fileno() >= 0}

    def due(self) -> float | None:
        """When to work at the latest though nothing comes, on the monotonic clock; None: there is no such time."""
        times = [flow.resumes_at for flow in self._flows] if not self._unflushed else [self._flush_until]
        return min((t for t in times if t is not None), default=None) if self.open else None

    def work(self, ready: Mapping[socket.socket, int]) -> None:
        """Do what can be done now, where `ready` is what came of `events`."""
        if self._unflushed:
            self._unflushed -= ready.keys()
            if not self._unflushed or time.monotonic() >= self._flush_until:
                self._reset(self._told)
            return
        for flow in self._flows:
            if ready.get(flow.source, 0) & selectors.EVENT_READ:
                flow.read()
        for flow in self._flows:
            flow.pump()
            if flow.cut is not None and not self._cut:
                self._make(flow.cut)
                return
        if any(flow.lost and not flow.writes and not flow.paused for flow in self._flows):
            self._reset(self.sockets)  # what one side did, the other one sees
        elif all(flow.ended for flow in self._flows):
            self.close()

    def _make(self, cut: Cut) -> None:
        self._cut = True
        for flow in self._flows:
            flow.swallow()
            flow.mute = True
        client, server = self.sockets
        self._told = [s for s, name in ((client, "client"), (server, "server")) if cut.side in ("both", name)]
        for sock in self._told:
            if cut.how == "reset" and hasattr(socket, "TCP_NOTSENT_LOWAT"):
                # Closing with a reset throws away what the kernel has not sent, and exactly that has been let pass.
                # With this mark a socket is writable only when there is nothing such left.
                _quietly(sock, lambda s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1))
        if cut.how == "reset":
            self._unflushed = set(self._told)
            self._flush_until = time.monotonic() + FLUSH
        else:
            for sock in self._told:
                _quietly(sock, lambda s: s.shutdown(socket.SHUT_WR))

    def _reset(self, sides: Sequence[socket.socket]) -> None:
        self._unflushed = set()
        for sock in sides:
            reset(sock)
        for flow in self._flows:
            flow.ended = flow.ended or flow.source in sides
        self.open = not all(flow.ended for flow in self._flows)

    def close(self) -> None:
        """Close both ends in order."""
        self.open = False
        for sock in self.sockets:
            sock.close()


def reset(sock: socket.socket) -> None:
    """Close with a TCP reset."""
    _quietly(sock, lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)))
    sock.close()


def _quietly(sock: socket.socket, action: Callable[[socket.socket], object]) -> None:
    try:
        action(sock)
    except OSError:
        pass  # the peer was faster
