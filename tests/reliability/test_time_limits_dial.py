"""A time limit from outside that looks like the socket's own strikes while a server is dialled, or where nobody looks.

Relatives of `test_time_limits.py`: there a read or a write is struck, here what comes before and between. The limit is
told by the frame of its handler, whatever its class; what a socket, a resolver or a context of the user's own raises is
told as theirs, whoever they call.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import gc
import logging
import signal
import socket
import ssl
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from tests.support.mail import envelope
from threadmail import (
    SMTP,
    Client,
    ClientPool,
    ConnectFailed,
    ConnectionLost,
    MailError,
    Security,
    ServerConfig,
    Timeouts,
    TLSFailed,
)
from threadmail._connection.opening import is_lack
from threadmail._transport import lookup
from threadmail._transport.socket import is_from_outside
from threadmail.testing import CaptureServer

LIMITS = [
    TimeoutError("the job has had its time"),
    TimeoutError("timed out"),
    TimeoutError(errno.ETIME, "Timer expired"),
    ConnectionResetError("over"),
    ValueError("over"),
]

TIMEOUTS = Timeouts.all(5.0)
HOST = "mx.example.org"


@contextmanager
def limited(limit: Exception, seconds: float = 0.2) -> Iterator[None]:
    """The textbook's time limit; it must come out as it is, and soon."""

    def strike(*_: object) -> None:
        raise limit.with_traceback(None)  # else with the frames of an earlier test

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    begun = time.monotonic()
    try:
        with pytest.raises(type(limit)) as caught:
            yield
        assert caught.value is limit
        assert time.monotonic() - begun < 3.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def deaf(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port whose backlog is full: a connect there hangs."""
    with socket.socket() as full:
        full.bind((host, port))
        full.listen(0)
        place = full.getsockname()
        knocking = [socket.socket() for _ in range(3)]
        for each in knocking:
            each.setblocking(False)
            each.connect_ex(place)
        try:
            yield place[1]
        finally:
            for each in knocking:
                each.close()


@pytest.fixture(autouse=True)
def left_to_the_collector() -> Iterator[None]:
    """The sockets that the standard library, or `SMTP(...)` itself, was making when it was struck."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        for limit in LIMITS:
            limit.__traceback__ = limit.__context__ = None
        gc.collect()


class Resolver:
    """In the place of the system's, for one name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], list[str]]) -> None:
        self.ask, self.real = ask, socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.look)

    def look(self, host: Any, port: Any, *args: Any, **settings: Any) -> list[Any]:
        if host != HOST:
            return self.real(host, port, *args, **settings)
        if settings.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "no address in figures")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.ask()]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
@pytest.mark.parametrize("limit", LIMITS, ids=repr)
@pytest.mark.parametrize("deadline", [None, 4.0])
def test_it_comes_out_of_a_connect(limit: Exception, deadline: float | None) -> None:
    """It was ConnectTimedOut, with `deadline_passed` where the caller had a deadline of his own."""
    with deaf() as port:
        config = ServerConfig("127.0.0.1", port, timeouts=TIMEOUTS)
        with Client(config) as client, limited(limit):
            client.send(envelope("a"), deadline=deadline)
        with limited(limit):
            SMTP("127.0.0.1", port, "test", timeout=5.0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
def test_it_says_nothing_of_the_server_to_a_pool() -> None:
    """The breaker took the server for dead, and refused the next caller without a dial."""
    with deaf() as port, ClientPool(ServerConfig("127.0.0.1", port, timeouts=TIMEOUTS)) as pool:
        with limited(LIMITS[0]):
            pool.send(envelope("a"))
        with pytest.raises(MailError) as caught:
            pool.send(envelope("b"), deadline=0.2)
        assert caught.value.deadline_passed


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_no_other_address_is_tried_after_it(limit: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message was sent through the next one, and the limit forgotten."""
    with CaptureServer() as server, deaf("127.0.0.2", server.port):
        Resolver(monkeypatch, lambda: ["127.0.0.2", server.host])
        config = ServerConfig(HOST, server.port, timeouts=TIMEOUTS)
        with Client(config) as client, limited(limit):
            client.send(envelope("a"))
        assert not server.messages


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_it_comes_out_of_the_lookup_of_a_name(limit: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def ask() -> list[str]:
        go.wait(20.0)
        return ["127.0.0.1"]

    Resolver(monkeypatch, ask)
    try:
        with Client(ServerConfig(HOST, 25, timeouts=TIMEOUTS)) as client, limited(limit):
            client.send(envelope("a"))
    finally:
        go.set()


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_it_comes_out_of_the_lookup_of_the_own_name(limit: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """EHLO gave an address literal instead, and the message was sent."""
    go = threading.Event()
    monkeypatch.setattr(socket, "getfqdn", lambda: str(go.wait(20.0)))
    lookup._own_name.cache_clear()
    try:
        with CaptureServer() as server, Client(server.url) as client, limited(limit):
            client.send(envelope("a"))
    finally:
        go.set()
        lookup._own_name.cache_clear()


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_it_comes_out_of_the_wait_for_a_greeting(limit: Exception) -> None:
    """One with a number was told as what the machine lacks."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        config = ServerConfig("127.0.0.1", silent.getsockname()[1], timeouts=TIMEOUTS)
        with Client(config) as client, limited(limit):
            client.send(envelope("a"))


@pytest.mark.parametrize("limit", [*LIMITS, RuntimeError("over")], ids=repr)
def test_it_comes_out_of_the_users_credentials(limit: Exception) -> None:
    """A token is fetched there, from somewhere that does not answer: what strikes is no error of the callable."""

    def fetch() -> tuple[str, str]:
        time.sleep(5.0)
        return "ann", "token"

    with CaptureServer(auth={"ann": "token"}) as server:
        config = ServerConfig(server.host, server.port, credentials=fetch, timeouts=TIMEOUTS)
        with Client(config) as client, limited(limit):
            client.send(envelope("a"))


class OwnContext(ssl.SSLContext):
    """As truststore's."""


class Stumbling(OwnContext):
    def wrap_socket(self, *args: Any, **settings: Any) -> ssl.SSLSocket:
        raise ssl.SSLError("no root is trusted")


@pytest.mark.parametrize("limit", [*LIMITS, RuntimeError("over")], ids=repr)
@pytest.mark.parametrize("kind", [ssl.SSLContext, OwnContext])
def test_it_comes_out_of_a_handshake(limit: Exception, kind: type[ssl.SSLContext]) -> None:
    """With a context of the user's own it was TLSFailed, permanent."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        context = kind(ssl.PROTOCOL_TLS_CLIENT)
        port = silent.getsockname()[1]
        config = ServerConfig("127.0.0.1", port, Security.TLS, ssl_context=context, timeouts=TIMEOUTS)
        with Client(config) as client, limited(limit):
            client.send(envelope("a"))


def test_what_a_context_of_the_users_own_raises_is_told_as_a_failure_of_tls() -> None:
    """An SSLError from its own frames came out bare."""
    with CaptureServer() as server:
        context = Stumbling(ssl.PROTOCOL_TLS_CLIENT)
        config = ServerConfig(server.host, server.port, Security.TLS, ssl_context=context)
        with Client(config) as client, pytest.raises(TLSFailed, match="no root is trusted"):
            client.send(envelope("a"))


def test_it_comes_out_of_a_log_handler(caplog: pytest.LogCaptureFixture) -> None:
    limit = RuntimeError("over")

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(5.0)

    log, slow = logging.getLogger("threadmail.protocol"), Slow()
    with CaptureServer() as server, Client(server.url) as client, caplog.at_level(logging.DEBUG, log.name):
        client.connect()
        log.addHandler(slow)
        try:
            with limited(limit):
                client.send(envelope("a"))
        finally:
            log.removeHandler(slow)
        client.send(envelope("b"))
        assert [mail.sender for mail in server.messages] == [envelope("b").sender]


@pytest.mark.parametrize("kind", [Client, SMTP])
def test_it_comes_out_wherever_in_a_session_it_strikes(kind: type) -> None:
    """As a call of ours returns. In 20 of 500 places it was swallowed, or told as the server's."""
    limit, passed = TimeoutError("time limit"), [0]
    mail = envelope("a")

    def session() -> None:
        with CaptureServer() as server:
            if kind is Client:
                with Client(server.url) as client:
                    watched(lambda: client.send(mail))
            else:
                watched(lambda: by_hand(server.host, server.port))

    def by_hand(host: str, port: int) -> None:
        with SMTP(host, port) as smtp:
            smtp.sendmail(mail.sender, list(mail.recipients), b"Subject: x\r\n\r\nhi\r\n")

    def watched(call: Callable[[], object]) -> None:
        def look(frame: FrameType, event: str, _: object) -> None:
            path = frame.f_code.co_filename
            if event != "c_return" or "/threadmail/" not in path or "/testing/" in path:
                return
            passed[0] += 1
            if passed[0] == struck_at:
                sys.setprofile(None)
                places.append(f"{path.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}")
                raise limit.with_traceback(None)

        sys.setprofile(look)
        try:
            call()
        finally:
            sys.setprofile(None)

    places: list[str] = []
    struck_at = 0
    session()
    wrong: list[str] = []
    for struck_at in range(1, passed[0] + 1):
        passed[0] = 0
        try:
            session()
        except Exception as exc:  # noqa: BLE001 - whatever it became
            if exc is not limit:
                wrong.append(f"{places[-1]}: {exc!r}")
        else:
            if passed[0] >= struck_at:
                wrong.append(f"{places[-1]}: swallowed")
    assert len(places) > 200
    assert wrong == []


# ------------------------------------------------------------ what is theirs, and nobody's time limit


def module(name: str, source: str, **known: object) -> Any:
    made = types.ModuleType(name)
    vars(made).update(known)
    exec(source, vars(made))
    return made


METRICS = module("metrics", "def timed(call, *a):\n    return call(*a)\ndef counted(f):\n    return lambda *a: f(*a)")
OWN = module(
    "own_sockets",
    """
import socket
class Calling(socket.socket):
    def send(self, *a): return metrics.timed(super().send, *a)
    def recv(self, *a): return metrics.timed(super().recv, *a)
class Called(socket.socket):
    @metrics.counted
    def send(self, *a): return socket.socket.send(self, *a)
    @metrics.counted
    def recv(self, *a): return socket.socket.recv(self, *a)
class Gone(OSError):
    pass
class Raising(socket.socket):
    def recv(self, *a): raise Gone("the tunnel is gone")
def dial(*a, **k): raise Gone("the tunnel is gone")
""",
    metrics=METRICS,
)


def client_on(kind: type[socket.socket], host: str, port: int) -> SMTP:
    class Mine(SMTP):
        def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
            made = super()._get_socket(host, port, timeout)
            own = kind(fileno=made.detach())
            own.settimeout(5.0)
            return own

    return Mine(host, port, "test", timeouts=TIMEOUTS)


@pytest.mark.parametrize("kind", [OWN.Calling, OWN.Called])
def test_what_a_socket_of_the_users_own_raises_is_told_as_the_sockets(kind: type[socket.socket]) -> None:
    """Also where it calls helpers of another package, or is called by them."""
    with CaptureServer() as server:
        client = client_on(kind, server.host, server.port)
        with pytest.raises(MailError) as caught:
            client._wire.read_reply(0.2)  # type: ignore[union-attr]
        assert isinstance(caught.value, TimeoutError)


def test_an_error_of_a_class_of_its_own_is_told_as_the_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    with CaptureServer() as server:
        with pytest.raises(MailError) as caught:
            client_on(OWN.Raising, server.host, server.port)
        assert isinstance(caught.value.__cause__, OWN.Gone)
        monkeypatch.setattr(socket, "create_connection", OWN.dial)
        with pytest.raises(ConnectFailed):
            SMTP(server.host, server.port, "test")


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_a_limit_that_strikes_in_a_socket_of_the_users_own_comes_out(limit: Exception) -> None:
    with CaptureServer() as server:
        client = client_on(OWN.Calling, server.host, server.port)
        with limited(limit):
            client._wire.read_reply(5.0)  # type: ignore[union-attr]
        client.close()


def test_what_is_thrown_into_a_waiting_greenlet_is_from_outside_unless_it_says_that_it_timed_out() -> None:
    """As `gevent.Timeout(1, exception)` does it, and gevent's sockets with their own time-outs."""
    green = module(
        "green",
        """
def switch(exc): raise exc
class cancelled(OSError): pass
class Socket:
    def recv(self, exc): switch(exc)
    def send(self, exc): raise exc
""",
    )
    sock = green.Socket()

    def told(call: Callable[[OSError], None], exc: OSError) -> bool:
        with pytest.raises(type(exc)) as caught:
            call(exc)
        assert caught.value.__traceback__ is not None
        caught.value.__traceback__ = caught.value.__traceback__.tb_next  # without this test's own frame
        return is_from_outside(caught.value, sock)

    for limit in (TimeoutError(errno.ETIME, "over"), ConnectionResetError("over"), OSError("over"), TimeoutError()):
        assert told(sock.recv, limit)
    assert not told(sock.recv, TimeoutError("timed out"))
    assert not told(sock.recv, green.cancelled(errno.EBADF, "closed in another greenlet"))
    assert not told(sock.send, BrokenPipeError(errno.EPIPE, "Broken pipe"))


def test_only_descriptors_and_memory_are_what_the_machine_lacks() -> None:
    assert is_lack(OSError(errno.EMFILE, "Too many open files"))
    assert is_lack(MemoryError())
    assert not is_lack(TimeoutError(errno.ETIME, "Timer expired"))
    assert not is_lack(OSError("over"))


def traced(call: Callable[..., Any]) -> Callable[..., Any]:
    """As tracers and pytest-socket wrap a function; what says whose it is, is copied."""

    @functools.wraps(call)
    def wrapper(*args: Any, **settings: Any) -> Any:
        return call(*args, **settings)

    return wrapper


@pytest.mark.parametrize("name", ["create_connection", "getaddrinfo"])
def test_a_function_that_is_wrapped_raises_what_it_raised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, name, traced(getattr(socket, name)))
    with CaptureServer() as server:
        port = server.port
    host = "no.such.invalid" if name == "getaddrinfo" else "127.0.0.1"
    for make in (Client, ClientPool):
        with make(f"smtp://{host}:{port}") as client, pytest.raises(ConnectFailed):
            client.send(envelope("a"))


@pytest.mark.parametrize("number", [None, errno.ECONNRESET])
def test_a_method_that_is_wrapped_on_the_class_raises_what_it_raised(
    number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recv(sock: socket.socket, *args: Any) -> bytes:
        if number is None:
            raise TimeoutError("timed out")
        raise OSError(number, "it said")

    with CaptureServer() as server, SMTP(server.host, server.port, "test") as client:
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "recv", functools.wraps(socket.socket.recv)(recv), raising=False)
            with pytest.raises(MailError) as caught:
                client._wire.read_reply(0.2)  # type: ignore[union-attr]
    assert isinstance(caught.value, TimeoutError if number is None else ConnectionLost)


def test_a_callable_that_gives_a_frame_to_its_helper_is_no_signal_handler() -> None:
    def helper(_: FrameType) -> Any:
        raise KeyError("no such account")

    def credentials() -> tuple[str, str]:
        return helper(sys._getframe())  # type: ignore[no-any-return]

    with CaptureServer(tls="starttls", auth={"ann": "secret"}) as server:
        config = dataclasses.replace(server.config, username=None, password=None, credentials=credentials)
        with Client(config) as client, pytest.raises(MailError, match="credentials could not be had"):
            client.send(envelope("a"))


@pytest.mark.parametrize("place", ["before_dial", "after_dial"])
def test_it_is_not_told_as_that_of_a_hook_of_the_dial(place: str) -> None:
    """A RuntimeError of a hook is told of its message alone; one that a signal handler raises in the hook comes out."""
    limit = RuntimeError("the job has had its time")

    def strikes(_: object = None) -> None:
        signal.raise_signal(signal.SIGALRM)

    def handler(number: int, frame: FrameType | None) -> None:
        raise limit

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with CaptureServer() as server:
            hooks: dict[str, Any] = {place: strikes}
            with Client(server.config, **hooks) as client:
                with pytest.raises(RuntimeError) as caught:
                    client.send_all([envelope("a")])
                assert caught.value is limit
    finally:
        signal.signal(signal.SIGALRM, before)
