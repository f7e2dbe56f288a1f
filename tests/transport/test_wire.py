"""The wire: whole commands out, whole replies in, or the connection is closed; bounded in time and memory."""

from __future__ import annotations

import errno
import logging
import select
import signal
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threadmail import (
    Aborted,
    BadReply,
    ConnectionLost,
    MailError,
    NotConnected,
    Reply,
    ReplyTimedOut,
    Timeouts,
    TLSFailed,
)
from threadmail._runtime.deadline import Deadline
from threadmail._transport import socket as _socket
from threadmail._transport.tls import wrap_tls
from threadmail._transport.wire import BLOCK, MAX_LINE, MAX_LINES, Wire, protocol_log
from threadmail.testing import TestCA

FAST = Timeouts(command=5.0, content=5.0, final=5.0)


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire and the other end of its connection."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10.0)
    wire = Wire(ours, FAST, "test")
    with theirs, ours:
        yield wire, theirs


@contextmanager
def running(work: Callable[[], None]) -> Iterator[threading.Thread]:
    """`work` in a thread that must end."""
    thread = threading.Thread(target=work, name="wire-peer")
    thread.start()
    try:
        yield thread
    finally:
        thread.join(20.0)
        assert not thread.is_alive()


def answer_to(data: bytes, *, timeouts: Timeouts = FAST) -> Reply:
    """What the wire makes of `data` and the end of the connection; fails unless it closes after an error."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10.0)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        wire = Wire(ours, timeouts)
        try:
            return wire.read_reply()
        except MailError:
            assert not wire.is_open
            assert ours.fileno() == -1
            raise


def links(error: BaseException) -> list[BaseException]:
    """The chain of causes; fails when it bites its tail, where a walk along it would never end."""
    found: list[BaseException] = []
    step: BaseException | None = error
    while step is not None:
        assert all(step is not seen for seen in found), "the chain of causes is a circle"
        found.append(step)
        step = step.__cause__ or step.__context__
    return found


# ---------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("data", "code", "raw"),
    [
        (b"250 OK\r\n", 250, b"OK"),
        (b"250\r\n", 250, b""),
        (b"250 \r\n", 250, b""),
        (b"250-one\r\n250-two\r\n250 three\r\n", 250, b"one\ntwo\nthree"),
        (b"250-one\r\n250\r\n", 250, b"one\n"),
        (b"250- one \r\n250 two\t\r\n", 250, b"one\ntwo"),
        (b"354 go\r\n", 354, b"go"),
        (b"555 gr\xc3\xbc\xc3\x9fe \xff\r\n", 555, b"gr\xc3\xbc\xc3\x9fe \xff"),
        (b"199 x\r\n", 199, b"x"),
    ],
)
def test_whole_replies_are_read(data: bytes, code: int, raw: bytes) -> None:
    """Code and lines, as smtplib gives them (RFC 5321 section 4.2)."""
    assert answer_to(data) == Reply(code, raw)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"hello\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"+OK POP3\r\n",
        b"25 OK\r\n",
        b"2500 OK\r\n",
        b"+22 OK\r\n",
        b"2_0 OK\r\n",
        b" 250 OK\r\n",
        b"250\tOK\r\n",
        b"250=OK\r\n",
        b"050 OK\r\n",
        b"650 OK\r\n",
        b"\xb2\xb5\xb0 OK\r\n",
        b"250 OK\n",
        b"250 OK\r250 OK\r\n",
        b"250-one\r\n251 two\r\n",
        b"250-one\r\n550 two\r\n",
        b"250-one\r\ntwo\r\n",
        b"250-one\r\n-two\r\n",
        b"250 " + b"x" * MAX_LINE + b"\r\n",
        b"x" * (MAX_LINE * 3),
        b"250-x\r\n" * (MAX_LINES + 1),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_reply_is_refused_and_the_connection_closed(data: bytes) -> None:
    """smtplib takes most of these; here their sender is not believed again."""
    with pytest.raises(BadReply) as info:
        answer_to(data)
    assert str(info.value).isprintable()
    assert len(str(info.value)) < 500
    links(info.value)


@pytest.mark.parametrize("data", [b"", b"2", b"250", b"250 OK", b"250 OK\r", b"250-one\r\n", b"250-one\r\n250 two\r"])
def test_a_reply_cut_off_by_the_end_is_a_lost_connection(data: bytes) -> None:
    """ "250 2.0.0 O" and then nothing is no success."""
    with pytest.raises(ConnectionLost) as info:
        answer_to(data)
    assert not isinstance(info.value, (ReplyTimedOut, Aborted))
    assert ("in the middle of a reply" in str(info.value)) == bool(data and not data.endswith(b"\r\n"))
    links(info.value)


def test_the_bounds_are_where_they_are_said_to_be() -> None:
    """A line of exactly the allowed length and a reply of exactly the allowed lines still pass."""
    text = b"x" * (MAX_LINE - len(b"250 \r\n"))
    assert answer_to(b"250 " + text + b"\r\n").raw == text
    assert answer_to(b"250-x\r\n" * (MAX_LINES - 1) + b"250 x\r\n").raw.count(b"x") == MAX_LINES


def test_a_reset_is_a_lost_connection(pair: tuple[Wire, socket.socket]) -> None:
    """Whatever the system calls it; the system's words stand in the message."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), 5.0)
        theirs = listener.accept()[0]
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    wire = Wire(ours, FAST)
    with pytest.raises(ConnectionLost, match=r"(?i)reset") as info:
        wire.read_reply()
    assert not wire.is_open
    assert isinstance(info.value.__cause__, OSError)
    links(info.value)


reply_bytes = st.binary(max_size=60) | st.lists(
    st.sampled_from(
        [b"250", b"-", b" ", b"\r\n", b"\r", b"\n", b"OK", b"550", b"\0", b"\xff", b"250-a\r\n", b"250 z\r\n"]
    )
).map(b"".join)


@given(reply_bytes)
def test_arbitrary_bytes_are_a_reply_or_our_own_error(data: bytes) -> None:
    """A reply that is there, byte for byte; or an error of ours and a closed connection, whatever comes."""
    reply, refusal = None, None
    try:
        reply = answer_to(data)
    except (BadReply, ConnectionLost) as error:
        refusal = error
    if reply is None:
        assert refusal is not None
        assert str(refusal).isprintable()
        links(refusal)
        return
    lines = data.split(b"\r\n")
    count = reply.raw.count(b"\n") + 1
    assert all(line.startswith(b"%d" % reply.code) for line in lines[:count])
    assert [line[4:].strip(b" \t") for line in lines[:count]] == reply.raw.split(b"\n")


@given(st.data())
@settings(max_examples=30)
def test_replies_split_anywhere_are_the_same_replies(data: st.DataObject) -> None:
    """How the network cuts the bytes changes nothing; what follows a reply waits for its turn."""
    stream = b"250-one\r\n250 two\r\n354 go\r\n550-5.1.1 no\r\n550 5.1.1 such user\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=12)))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire(ours, FAST)

        def drip() -> None:
            for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                theirs.sendall(stream[begin:end])

        with running(drip):
            replies = [wire.read_reply() for _ in range(3)]
        assert replies == [Reply(250, b"one\ntwo"), Reply(354, b"go"), Reply(550, b"5.1.1 no\n5.1.1 such user")]
        assert wire.quiet()


@pytest.mark.parametrize("flood", [b"250-" + b"x" * 500 + b"\r\n", b"x" * 4096, b"250-\r\n"])
def test_an_endless_reply_ends_soon_and_small(pair: tuple[Wire, socket.socket], flood: bytes) -> None:
    """smtplib grew by a gigabyte in a second; here it is a few lines, and over."""
    wire, theirs = pair

    def pour() -> None:
        try:
            while True:
                theirs.sendall(flood * 16)
        except OSError:
            pass

    tracemalloc.start()
    try:
        with running(pour):
            begin = time.monotonic()
            with pytest.raises(BadReply):
                wire.read_reply()
            assert time.monotonic() - begin < 5.0
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- time


def test_a_drip_does_not_stretch_the_time_limit(pair: tuple[Wire, socket.socket]) -> None:
    """The limit is for the whole reply: a byte now and then does not start it anew."""
    wire, theirs = pair
    wire.timeouts = Timeouts(command=0.3)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            try:
                theirs.sendall(b"2")
            except OSError:
                return

    with running(drip):
        begin = time.monotonic()
        with pytest.raises(ReplyTimedOut) as info:
            wire.read_reply()
        assert 0.25 < time.monotonic() - begin < 4.0
        stop.set()
    assert not wire.is_open
    assert isinstance(info.value, TimeoutError)
    links(info.value)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_the_deadline_of_the_call_stands_before_every_timeout(
    pair: tuple[Wire, socket.socket], timeout: float | None
) -> None:
    """However long a step may take, and also where it may take for ever."""
    wire, _ = pair
    wire.timeouts = Timeouts(command=timeout, content=timeout)
    wire.deadline = Deadline.after(0.2)
    begin = time.monotonic()
    with pytest.raises(ReplyTimedOut):
        wire.read_reply()
    assert time.monotonic() - begin < 4.0


def test_a_deadline_that_has_passed_writes_nothing(pair: tuple[Wire, socket.socket]) -> None:
    """Too late is too late: not a byte leaves."""
    wire, theirs = pair
    wire.deadline = Deadline.after(0.0)
    with pytest.raises(ReplyTimedOut):
        wire.write(b"MAIL FROM:<>\r\n")
    assert theirs.recv(100) == b""


def test_large_content_gets_its_time_for_each_block(pair: tuple[Wire, socket.socket]) -> None:
    """A slow reader that always progresses is waited for: 20 blocks at a limit far shorter than the whole takes."""
    wire, theirs = pair
    size = BLOCK * 20
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    got = 0
    pace = threading.Event()

    def read() -> None:
        nonlocal got
        while got < size:
            pace.wait(0.005)  # a slow reader is what is tested
            got += len(theirs.recv(16384))

    with running(read):
        begin = time.monotonic()
        wire.write(b"x" * size, timeout=0.25)
        took = time.monotonic() - begin
    assert got == size
    assert took > 0.25


def test_a_reader_that_stops_is_not_waited_for_any_longer(pair: tuple[Wire, socket.socket]) -> None:
    """When a block is not taken in its time, the connection is closed."""
    wire, _ = pair
    with pytest.raises(ReplyTimedOut) as info:
        wire.write(b"x" * 10_000_000, timeout=0.2)
    assert not wire.is_open
    links(info.value)


def test_no_limit_means_no_limit(pair: tuple[Wire, socket.socket]) -> None:
    """With None for a step the socket blocks for ever, also where commands have a time-out."""
    sock, theirs = pair[0].sock, pair[1]
    sock.settimeout(3.0)
    waits: list[float | None] = []

    class Watching:
        def __getattr__(self, name: str) -> Any:
            return getattr(sock, name)

        def send(self, data: bytes) -> int:
            waits.append(sock.gettimeout())
            return sock.send(data)

        def recv(self, size: int) -> bytes:
            waits.append(sock.gettimeout())
            return sock.recv(size)

    wire = Wire(Watching(), Timeouts(command=5.0, content=None, final=None))  # type: ignore[arg-type]
    theirs.sendall(b"250 OK\r\n")
    wire.write(b"x", timeout=wire.timeouts.content)
    wire.read_reply(wire.timeouts.final)
    assert waits == [None, None]
    wire.rest()
    assert sock.gettimeout() == 3.0


@pytest.mark.parametrize("standing", [0.04, 0.3, None, 0.0])
def test_a_wait_in_ticks_is_no_longer_and_no_shorter(
    pair: tuple[Wire, socket.socket], monkeypatch: pytest.MonkeyPatch, standing: float | None
) -> None:
    """Whatever time-out stands on the socket: a reply after several ticks is read, and none at all ends in time."""
    monkeypatch.setattr(_socket, "TICK", 0.05)
    wire, theirs = pair
    wire.sock.settimeout(standing)
    answer = threading.Timer(0.3, theirs.sendall, [b"250 OK\r\n"])
    answer.start()
    try:
        assert wire.read_reply(10.0) == Reply(250, b"OK")
    finally:
        answer.join(10.0)
    begin = time.monotonic()
    with pytest.raises(ReplyTimedOut):
        wire.read_reply(0.3)
    assert 0.28 < time.monotonic() - begin < 4.0


def test_a_time_out_is_set_once(pair: tuple[Wire, socket.socket]) -> None:
    """Setting it is a system call, made once for all steps of all messages and not at each of them."""
    sock, theirs = pair[0].sock, pair[1]
    calls: list[float | None] = []

    class Watching:
        def __getattr__(self, name: str) -> Any:
            return getattr(sock, name)

        def settimeout(self, value: float | None) -> None:
            calls.append(value)
            sock.settimeout(value)

    wire = Wire(Watching(), Timeouts())  # type: ignore[arg-type]
    wire.deadline = Deadline.after(1000.0)
    for _ in range(20):
        theirs.sendall(b"250 OK\r\n" * 2)
        wire.write_commands(["rset"])
        wire.read_reply()
        wire.write_content(b"x")
        wire.read_reply(wire.timeouts.final)
    assert calls == [_socket.TICK]


def test_a_look_finds_what_lies_there_and_who_has_gone(pair: tuple[Wire, socket.socket]) -> None:
    """Without waiting, without taking anything that a reply is made of, and without touching the time-out."""
    wire, theirs = pair
    wire.sock.settimeout(30.0)
    assert wire.quiet()
    theirs.sendall(b"250 OK\r\n")
    assert not wire.quiet()
    assert wire.sock.gettimeout() == 30.0
    assert wire.read_reply() == Reply(250, b"OK")
    assert wire.quiet()
    theirs.close()
    assert not wire.quiet()
    wire.close()
    assert not wire.quiet()


def test_a_known_reply_is_as_strict_as_a_new_one(pair: tuple[Wire, socket.socket]) -> None:
    """A line that was said before is taken at sight, and only when it came whole and is the same to the byte."""
    wire, theirs = pair
    for _ in range(3):
        theirs.sendall(b"250 OK\r\n250 OK\r\n")
        assert [wire.read_reply(), wire.read_reply()] == [Reply(250, b"OK")] * 2
    theirs.sendall(b"250 OK\n250 OK\r\n")
    with pytest.raises(BadReply):
        wire.read_reply()


def test_a_thousand_different_replies_are_not_kept(pair: tuple[Wire, socket.socket]) -> None:
    """Each names its queue id; what is known at sight stays bounded."""
    wire, theirs = pair
    for i in range(1000):
        theirs.sendall(b"250 queued as %d\r\n" % i)
        assert wire.read_reply().raw == b"queued as %d" % i
    assert len(wire._known) <= 32


# ---------------------------------------------------------------- commands


def test_a_command_is_written_whole_and_answered(pair: tuple[Wire, socket.socket]) -> None:
    """One line with its CRLF, in UTF-8, and the reply to it."""
    wire, theirs = pair
    heard: list[bytes] = []

    def serve() -> None:
        heard.append(theirs.recv(100))
        theirs.sendall(b"250 OK\r\n")

    with running(serve):
        assert wire.command("mail from:<jürgen@x.test>") == Reply(250, b"OK")
    assert heard == ["mail from:<jürgen@x.test>\r\n".encode()]


@pytest.mark.parametrize("early", [b"421 4.4.2 idle\r\n", b"250 OK\r\n", b"2"])
def test_bytes_that_nobody_asked_for_end_the_connection(pair: tuple[Wire, socket.socket], early: bytes) -> None:
    """They would be taken for the reply to the next command; so that one is not written."""
    wire, theirs = pair
    theirs.sendall(early)
    with pytest.raises(BadReply, match="spoke out of turn: " + early.decode().strip()):
        wire.command("noop")
    assert not wire.is_open
    assert theirs.recv(100) == b""


def test_the_rest_of_a_reply_ends_the_connection(pair: tuple[Wire, socket.socket]) -> None:
    """Two replies to one command: the second was sent before anybody asked."""
    wire, theirs = pair
    theirs.sendall(b"250 one\r\n250 two\r\n")
    assert wire.read_reply().raw == b"one"
    with pytest.raises(BadReply, match="out of turn: 250 two"):
        wire.command("noop")


def test_a_peer_that_hung_up_is_noticed_before_a_command_is_written(pair: tuple[Wire, socket.socket]) -> None:
    """By one look, without waiting."""
    wire, theirs = pair
    assert wire.quiet()
    theirs.close()
    assert not wire.quiet()
    with pytest.raises(ConnectionLost, match="closed the connection"):
        wire.command("noop")
    assert not wire.is_open


def test_a_closed_wire_says_so(pair: tuple[Wire, socket.socket]) -> None:
    """Every use is a lost connection, nothing else; closing twice is nothing."""
    wire, _ = pair
    wire.close()
    wire.close()
    assert not wire.quiet()
    for use in (lambda: wire.write(b"x"), wire.read_reply, lambda: wire.command("noop"), wire.require_quiet):
        with pytest.raises(ConnectionLost) as info:
            use()
        links(info.value)
    with pytest.raises(NotConnected):
        wire.write(b"x")
    wire.abort()
    wire.close()


class Interrupting:
    """A socket on which one call is interrupted, before or after it did its work."""

    def __init__(self, sock: socket.socket, name: str, when: str, error: BaseException) -> None:
        self._sock, self._name, self._when, self._error = sock, name, when, error

    def __getattr__(self, name: str) -> Any:
        if name != self._name:
            return getattr(self._sock, name)

        def call(*args: Any) -> Any:
            if self._when == "after":
                getattr(self._sock, name)(*args)
            raise self._error

        return call


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["send", "recv"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), MemoryError()], ids=lambda e: type(e).__name__)
def test_whatever_ends_an_exchange_early_closes_the_connection(
    pair: tuple[Wire, socket.socket], name: str, when: str, error: BaseException
) -> None:
    """Otherwise the reply to the interrupted command would answer the next one."""
    wire, theirs = pair
    if name == "recv":
        theirs.sendall(b"250 OK\r\n")
    sock, wire.sock = wire.sock, Interrupting(wire.sock, name, when, error)  # type: ignore[assignment]
    use: Callable[[], object] = (lambda: wire.write(b"noop\r\n")) if name == "send" else wire.read_reply
    with pytest.raises(type(error)):
        use()
    assert not wire.is_open
    assert sock.fileno() == -1


def test_a_real_interrupt_while_a_reply_is_awaited_closes_the_connection(pair: tuple[Wire, socket.socket]) -> None:
    """Ctrl-C, as the system delivers it, after the command was written."""
    wire, theirs = pair
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        theirs.recv(100)
        signal.pthread_kill(main, signal.SIGINT)

    with running(interrupt), pytest.raises(KeyboardInterrupt):
        wire.command("noop")
    assert not wire.is_open


# ---------------------------------------------------------------- abort


def test_abort_ends_a_blocked_read_at_once(pair: tuple[Wire, socket.socket]) -> None:
    """From another thread, without a lock; the error says who did it, and is not transient."""
    wire, theirs = pair

    def abort() -> None:
        theirs.recv(100)
        wire.abort()

    with running(abort):
        begin = time.monotonic()
        with pytest.raises(Aborted) as info:
            wire.command("noop")
        assert time.monotonic() - begin < 4.0
    assert not info.value.transient
    links(info.value)


def test_abort_ends_a_blocked_write_at_once(pair: tuple[Wire, socket.socket]) -> None:
    """Also one that waits for a reader."""
    wire, theirs = pair

    def abort() -> None:
        theirs.recv(1)
        wire.abort()

    with running(abort), pytest.raises(Aborted):
        wire.write(b"x" * 10_000_000)
    assert not wire.is_open


def test_what_was_aborted_before_is_aborted_still(pair: tuple[Wire, socket.socket]) -> None:
    """The next command finds out, before it is written."""
    wire, _ = pair
    wire.abort()
    with pytest.raises(Aborted):
        wire.command("noop")


def test_abort_ends_a_tls_handshake_at_once() -> None:
    """A server that accepts STARTTLS and then says nothing does not hold the call until its time-out."""
    ours, theirs = socket.socketpair()
    with theirs, ours:
        theirs.settimeout(10.0)
        wire = Wire(ours, Timeouts(connect=30.0))

        def abort() -> None:
            theirs.recv(100)  # the ClientHello
            wire.abort()

        with running(abort):
            begin = time.monotonic()
            with pytest.raises(MailError):
                wire.start_tls(ssl.create_default_context(), "localhost")
            assert time.monotonic() - begin < 10.0
        assert not wire.is_open


# ---------------------------------------------------------------- the log


def test_the_log_shows_both_directions_and_masks_what_it_is_told_to(
    pair: tuple[Wire, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """The name of the connection, the direction, the line; the secret as it was given to be shown."""
    wire, theirs = pair
    theirs.sendall(b"250-x\x1b[2J\r\n250 OK\r\n")
    with caplog.at_level(logging.DEBUG, protocol_log.name):
        wire.look_for_listeners()  # as a client does before each message and command
        wire.write(b"AUTH PLAIN c2VjcmV0\r\n", "AUTH PLAIN ***")
        wire.read_reply()
    assert [r.getMessage() for r in caplog.records] == ["test > AUTH PLAIN ***", "test < 250 x\\x1b[2J OK"]


def test_nothing_is_said_while_nobody_listens(
    pair: tuple[Wire, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """Above DEBUG there is no record and no work."""
    wire, _ = pair
    with caplog.at_level(logging.INFO, protocol_log.name):
        wire.write(b"noop\r\n")
    assert caplog.records == []


@pytest.mark.parametrize("broken", ["handler", "trace"])
def test_a_broken_log_comes_not_between_a_command_and_its_reply(pair: tuple[Wire, socket.socket], broken: str) -> None:
    """What a handler or a debug output raises is let go of; the exchange goes on."""
    wire, theirs = pair

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError

    def trace(direction: str, said: str) -> None:
        raise OSError(errno.EPIPE, "nobody reads stderr")

    handler = Broken()
    level = protocol_log.level
    theirs.sendall(b"250 OK\r\n")
    if broken == "trace":
        wire.trace = trace
    else:
        protocol_log.addHandler(handler)
        protocol_log.setLevel(logging.DEBUG)
    try:
        wire.write(b"noop\r\n")
        assert wire.read_reply().code == 250
    finally:
        protocol_log.removeHandler(handler)
        protocol_log.setLevel(level)
    assert wire.is_open


# ---------------------------------------------------------------- TLS


@contextmanager
def tls_server(context: ssl.SSLContext | None, *, say: bytes = b"") -> Iterator[socket.socket]:
    """Our end of a connection whose other end shakes hands with `context`, or only speaks."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        theirs.settimeout(10.0)
        try:
            if context is None:
                theirs.sendall(say)
                while theirs.recv(4096):
                    pass
                return
            with context.wrap_socket(theirs, server_side=True) as wrapped:
                while data := wrapped.recv(4096):
                    wrapped.sendall(data)
        except OSError:
            pass

    with ours, theirs, running(serve):
        try:
            yield ours
        finally:
            ours.close()


def test_a_connection_reset_before_the_handshake_is_not_left_open() -> None:
    """The standard library takes the descriptor, finds the reset and raises: a ResourceWarning would tell of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), 10.0)
        theirs, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        reset = select.poll()
        reset.register(ours, 0)
        assert reset.poll(10_000)
        with pytest.raises(TLSFailed, match="the server closed the connection"):
            wrap_tls(ours, ssl.create_default_context(), "localhost", Deadline.after(10.0))
    assert ours.fileno() == -1


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def test_a_verified_connection_goes_on_in_tls(ca: TestCA) -> None:
    """What is written afterwards comes back through TLS, the socket's own time-out as it was."""
    with tls_server(ca.server_context("mx.example.org")) as sock:
        sock.settimeout(7.0)
        wire = Wire(sock, FAST)
        wrapped = wire.start_tls(ca.client_context(), "mx.example.org")
        with wrapped:
            assert wire.sock is wrapped
            assert wrapped.gettimeout() == 7.0
            wire.write(b"250 echo\r\n")
            assert wire.read_reply() == Reply(250, b"echo")
            assert wire.quiet()


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("expired_server_context", "certificate has expired"),
        ("wrong_host_server_context", "(?i)hostname mismatch|not valid for"),
        ("self_signed_server_context", "self[- ]signed"),
        ("untrusted_server_context", "unable to get local issuer|self[- ]signed"),
    ],
)
def test_a_certificate_that_is_not_valid_is_named(ca: TestCA, kind: str, match: str) -> None:
    """The cause in words, permanent, the host by name; and no connection any more."""
    with tls_server(getattr(ca, kind)()) as sock:
        wire = Wire(sock, FAST)
        with pytest.raises(TLSFailed, match=match) as info:
            wire.start_tls(ca.client_context(), "localhost")
        assert not info.value.transient
        assert "localhost" in str(info.value)
        assert sock.fileno() == -1
        assert not wire.is_open


@pytest.mark.parametrize(
    ("say", "match"),
    [(b"220 mx ESMTP\r\n", "does not speak TLS"), (b"\x15\x03\x01\0\2\2\x28", "handshake")],
)
def test_a_server_that_speaks_no_tls_is_named(say: bytes, match: str) -> None:
    """The likely mistake is a port meant for STARTTLS."""
    with tls_server(None, say=say) as sock:
        with pytest.raises(TLSFailed, match=match):
            wrap_tls(sock, ssl.create_default_context(), "localhost", Deadline.after(5.0))
        assert sock.fileno() == -1


def test_a_handshake_that_stalls_ends_in_time() -> None:
    """The deadline is for the whole handshake."""
    with tls_server(None) as sock:
        begin = time.monotonic()
        with pytest.raises(TLSFailed, match="in time"):
            wrap_tls(sock, ssl.create_default_context(), "localhost", Deadline.after(0.2))
        assert time.monotonic() - begin < 4.0


def test_a_handshake_without_a_time_limit_takes_as_long_as_it_takes(ca: TestCA) -> None:
    """`timeout=None` waits, as it does everywhere else."""
    context = ca.server_context("localhost")
    ours, theirs = socket.socketpair()
    hold = threading.Event()

    def serve() -> None:
        hold.wait(0.05)  # longer than any limit that stands for none
        # The client leaves as soon as it has seen enough, and may be gone before the last of the handshake is written.
        with suppress(OSError), context.wrap_socket(theirs, server_side=True) as wrapped:
            wrapped.recv(1)

    with ours, theirs, running(serve):
        with wrap_tls(ours, ca.client_context(), "localhost", Deadline()) as wrapped:
            assert wrapped.version() is not None


def test_injected_bytes_before_the_handshake_are_refused(pair: tuple[Wire, socket.socket]) -> None:
    """What came before TLS was said by anybody: it is not carried over into what is believed."""
    wire, theirs = pair
    theirs.sendall(b"220 go ahead\r\n250 injected\r\n")
    assert wire.read_reply().code == 220
    with pytest.raises(BadReply, match="out of turn"):
        wire.start_tls(ssl.create_default_context(), "localhost")
    assert not wire.is_open
