"""Time-outs that the kernel counts: a system call less for each read and write, and the same waits."""

from __future__ import annotations

import dataclasses
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.mail import envelope
from threadmail import SMTP, Aborted, Client, ConnectionLost, Envelope, Outcome, ReplyTimedOut, Timeouts
from threadmail._runtime.deadline import Deadline
from threadmail._transport import socket as _socket
from threadmail._transport import wire as _wire
from threadmail._transport.wire import Wire
from threadmail.receipt import Reply
from threadmail.testing import CaptureServer, ScriptedServer, Serve, TestCA

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is known to count them so")

TICK = 0.05


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Wire, socket.socket]]:
    """A wire whose socket ticks fast, and its peer."""
    monkeypatch.setattr(_socket, "TICK", TICK)
    monkeypatch.setattr(_wire, "TICK", TICK)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), 7.0)
        theirs, _ = listener.accept()
    wire = Wire(ours, Timeouts())
    wire.tick_in_kernel()
    assert wire.kernel_ticks
    with theirs:
        yield wire, theirs
        wire.close()


def ticks(sock: socket.socket) -> tuple[float, float]:
    """What the kernel counts for reads and for writes, in seconds."""
    found = []
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        seconds, micros = struct.unpack("ll", sock.getsockopt(socket.SOL_SOCKET, option, 16))
        found.append(seconds + micros / 1e6)
    return found[0], found[1]


def test_python_does_not_look_before_each_call(pair: tuple[Wire, socket.socket]) -> None:
    """The socket blocks, as far as Python knows: it would ask with poll() else."""
    wire, theirs = pair
    theirs.sendall(b"250 a\r\n")
    wire.write(b"x")
    assert wire.read_reply() == Reply(250, b"a")
    assert wire.sock.gettimeout() is None
    assert ticks(wire.sock) == pytest.approx((TICK, TICK), abs=0.01)


@pytest.mark.parametrize("limit", [10.0, None])
@pytest.mark.parametrize("bounded", [True, False])
def test_a_reply_after_several_ticks_is_read(
    pair: tuple[Wire, socket.socket], limit: float | None, bounded: bool
) -> None:
    wire, theirs = pair
    if bounded:
        wire.deadline = Deadline.after(20.0)
    answer = threading.Timer(6 * TICK, theirs.sendall, [b"250 OK\r\n"])
    answer.start()
    try:
        assert wire.read_reply(limit) == Reply(250, b"OK")
    finally:
        answer.join(10.0)


@pytest.mark.parametrize("limit", [0.2, 4 * TICK, TICK, TICK / 2])
@pytest.mark.parametrize("by_deadline", [True, False])
def test_none_at_all_ends_in_time_and_says_whose_it_was(
    pair: tuple[Wire, socket.socket], limit: float, by_deadline: bool
) -> None:
    wire, _ = pair
    if by_deadline:
        wire.deadline = Deadline.after(limit)
    begin = time.monotonic()
    with pytest.raises(ReplyTimedOut) as info:
        wire.read_reply(10.0 if by_deadline else limit)
    assert limit * 0.9 <= time.monotonic() - begin < 4.0
    assert info.value.deadline_passed is by_deadline
    assert not wire.is_open


@pytest.mark.parametrize("size", [6_000, 600_000])
def test_a_peer_that_takes_nothing_is_given_up_in_time(pair: tuple[Wire, socket.socket], size: int) -> None:
    """A small write is one call; a large one is many."""
    wire, _ = pair
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def write_on() -> None:
        for _ in range(10_000):
            wire.write(b"x" * size, timeout=6 * TICK)

    with pytest.raises(ReplyTimedOut):
        write_on()
    assert not wire.is_open


def test_abort_ends_a_wait_at_once(pair: tuple[Wire, socket.socket]) -> None:
    wire, _ = pair
    aborting = threading.Timer(2 * TICK, wire.abort)
    aborting.start()
    with pytest.raises(Aborted):
        wire.read_reply(30.0)
    aborting.join(10.0)


def test_a_short_wait_is_pythons_and_the_next_long_one_the_kernels(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    theirs.sendall(b"250 a\r\n")
    wire.read_reply(TICK / 2)
    assert wire.sock.gettimeout() == TICK / 2
    theirs.sendall(b"250 b\r\n")
    assert wire.read_reply(10.0) == Reply(250, b"b")
    assert wire.sock.gettimeout() is None


@pytest.mark.parametrize("resting", [7.0, None])
def test_who_is_given_the_socket_finds_it_as_python_has_it(
    pair: tuple[Wire, socket.socket], resting: float | None
) -> None:
    """Also where it is to block for ever: nothing of the kernel's ticks is left."""
    wire, _ = pair
    wire._resting_timeout = resting
    wire.rest()
    assert wire.sock.gettimeout() == resting
    assert ticks(wire.sock) == (0.0, 0.0)
    assert not wire.kernel_ticks


def test_neither_a_connection_that_has_gone_nor_another_kind_of_socket_minds(pair: tuple[Wire, socket.socket]) -> None:
    wire, _ = pair

    class Other(socket.socket):
        pass

    with Other() as other:
        stranger = Wire(other, Timeouts())
        stranger.tick_in_kernel()
        assert not stranger.kernel_ticks
    wire.rest()
    wire.sock.close()
    wire.tick_in_kernel()
    assert not wire.kernel_ticks
    with pytest.raises(ConnectionLost):
        wire.read_reply()


def test_a_client_lets_the_kernel_count_and_a_session_under_tls_does_not() -> None:
    with CaptureServer() as server, Client(server.url) as client:
        assert client.send(envelope()).outcome is Outcome.SENT
        assert client._smtp is not None
        assert client._smtp._wire is not None
        assert client._smtp._wire.kernel_ticks
    ca = TestCA()
    with ScriptedServer([Serve()], tls="tls", ca=ca) as secured:
        config = dataclasses.replace(secured.config, timeouts=Timeouts())
        with Client(config) as client:
            assert client.send(envelope()).outcome is Outcome.SENT
            assert client._smtp is not None
            assert client._smtp._wire is not None
            assert not client._smtp._wire.kernel_ticks


def test_what_smtplibs_users_see_is_the_time_out_they_gave() -> None:
    with CaptureServer() as server, SMTP(server.host, server.port, timeout=33.0) as smtp:
        smtp.sendmail("a@example.org", "b@example.net", b"Subject: x\r\n\r\n")
        assert smtp.sock is not None
        assert smtp.sock.gettimeout() == 33.0
        assert ticks(smtp.sock) == (0.0, 0.0)
        assert smtp.transact(Envelope("a@example.org", "b@example.net", b"x")).outcome is Outcome.SENT
        assert smtp.sock.gettimeout() == 33.0
