"""Is the delay line what it says? Measures one, so that nobody has to believe it.

Owns the measuring, against a server that echoes. The page says what was found, and slopes are taken over the round-trip
times that were measured here, not over those that were asked for.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from dataclasses import dataclass

from .line import DelayLine


@dataclass(frozen=True)
class Checked:
    """What a delay line was found to do.

    Attributes:
        rtt: the median of the measured round trips, in seconds; worst: the slowest but one in twenty.
        apart: seconds between the arrivals of two chunks that were sent `apart_sent` apart.
        rate: bytes a second, one way, one connection.
    """

    rtt: float
    worst: float
    apart: float
    apart_sent: float
    rate: float

    def __str__(self) -> str:
        return (
            f"measured {self.rtt * 1e3:.2f} ms (19 of 20 below {self.worst * 1e3:.2f}), chunks sent "
            f"{self.apart_sent * 1e3:.1f} ms apart arrive {self.apart * 1e3:.1f} ms apart, "
            f"{self.rate / (1 << 20):,.0f} MiB/s"
        )


def check(rtt: float, *, pings: int = 20, size: int = 32 << 20) -> Checked:
    """Put a line of `rtt` seconds before a server that echoes, and measure it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        echo = threading.Thread(target=_echo, args=(listener,), name="line-check-echo")
        echo.start()
        with DelayLine(listener.getsockname(), rtt) as line:
            with socket.create_connection((line.host, line.port), timeout=30.0) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _ping(sock)  # the connection is there
                trips = sorted(_ping(sock) for _ in range(pings))
                gaps = [_two_chunks(sock, max(0.002, rtt / 5)) for _ in range(5)]
                rate = _stream(sock, size)
            echo.join(30.0)
    sent, apart = (statistics.median(gap[i] for gap in gaps) for i in (0, 1))
    return Checked(statistics.median(trips), trips[-1 - pings // 20], apart, sent, rate)


def _ping(sock: socket.socket) -> float:
    started = time.monotonic()
    sock.sendall(b"e")
    sock.recv(1)
    return time.monotonic() - started


def _two_chunks(sock: socket.socket, pause: float) -> tuple[float, float]:
    first = time.monotonic()
    sock.sendall(b"e")
    time.sleep(pause)
    second = time.monotonic()
    sock.sendall(b"e")
    sock.recv(1)
    arrived = time.monotonic()
    sock.recv(1)
    return second - first, time.monotonic() - arrived


def _stream(sock: socket.socket, size: int) -> float:
    block = bytes(1 << 18)  # the echo answers only "e", and the end
    started = time.monotonic()
    for _ in range(size // len(block)):
        sock.sendall(block)
    sock.sendall(b"e")
    sock.recv(1)
    return size / (time.monotonic() - started)


def _echo(listener: socket.socket) -> None:
    sock = listener.accept()[0]
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := sock.recv(1 << 18):
            sock.sendall(b"e" * data.count(b"e"))
