"""FaultProxy: exactly so many bytes pass, then it strikes, however the stream is cut into segments."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

import threadmail.testing
from tests.support.mail import envelope
from threadmail import Client, MailError, Outcome
from threadmail.testing import (
    CaptureServer,
    Cut,
    Delay,
    Fault,
    FaultProxy,
    Garble,
    Hold,
    Plan,
    TestCA,
    Trickle,
)

TIMEOUT = 10.0
HELLO = b"hello, world"
MiB = 1 << 20


class Rig:
    """A client and a server with a proxy between them, all in the hands of the test."""

    def __init__(self, *plans: Plan, record: bool = False) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(TIMEOUT)
        self.proxy = FaultProxy(("127.0.0.1", self.listener.getsockname()[1]), *plans, record=record)
        self.proxy.start()
        self._open: list[socket.socket] = [self.listener]

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The client's socket and the server's."""
        client = socket.create_connection((self.proxy.host, self.proxy.port), TIMEOUT)
        self._open.append(client)
        server, _ = self.listener.accept()
        server.settimeout(TIMEOUT)
        self._open.append(server)
        return client, server

    def close(self) -> None:
        for sock in self._open:
            sock.close()
        self.proxy.close()


@contextmanager
def rig(*plans: Plan, record: bool = False) -> Iterator[Rig]:
    with closing(Rig(*plans, record=record)) as found:
        yield found


@contextmanager
def pair(
    *faults: Fault, to: str = "server", record: bool = False
) -> Iterator[tuple[socket.socket, socket.socket, Rig]]:
    """The sending end and the receiving end of a direction in which `faults` strike."""
    plan = Plan(to_server=faults) if to == "server" else Plan(to_client=faults)
    with rig(plan, record=record) as found:
        client, server = found.connect()
        yield (client, server, found) if to == "server" else (server, client, found)


def read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, f"the connection ended after {data!r}"
        data += more
    return data


def read_to_the_end(sock: socket.socket) -> tuple[bytes, str]:
    """What comes, and how it ends."""
    data = b""
    while True:
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            return data, "reset"
        if not more:
            return data, "fin"
        data += more


def is_silent(sock: socket.socket) -> bool:
    """Whether nothing comes for a little while: for what is lost, no event tells that it will not come after all."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return not selector.select(0.05)


@contextmanager
def running(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work, name="test-peer")
    thread.start()
    try:
        yield
    finally:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


# -- nothing wrong ----------------------------------------------------------------------------------------------------


def test_without_a_plan_everything_passes_both_ways_and_is_counted() -> None:
    with rig() as found:
        client, server = found.connect()
        client.sendall(HELLO)
        assert read(server, len(HELLO)) == HELLO
        server.sendall(b"hi")
        assert read(client, 2) == b"hi"
        client.close()
        assert read_to_the_end(server) == (b"", "fin")
        server.close()
        found.proxy.wait_until_idle()
        [passage] = found.proxy.passages
    assert (passage.from_client, passage.to_server) == (len(HELLO), len(HELLO))
    assert (passage.from_server, passage.to_client) == (2, 2)
    assert (passage.number, passage.plan, passage.open) == (0, Plan(), False)
    assert (passage.client_said, passage.server_said) == (b"", b"")


def test_half_a_close_passes_as_half_a_close() -> None:
    """Whoever has said everything still hears the answer."""
    with rig() as found:
        client, server = found.connect()
        client.sendall(HELLO)
        client.shutdown(socket.SHUT_WR)
        assert read_to_the_end(server) == (HELLO, "fin")
        server.sendall(b"late answer")
        server.close()
        assert read_to_the_end(client) == (b"late answer", "fin")


@pytest.mark.parametrize("to", ["server", "client"])
def test_a_reset_passes_as_a_reset(to: str) -> None:
    with pair(to=to) as (sender, receiver, _):
        sender.sendall(HELLO)
        assert read(receiver, len(HELLO)) == HELLO
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sender.close()
        assert read_to_the_end(receiver) == (b"", "reset")


def test_a_large_stream_passes_whole_to_a_slow_reader() -> None:
    data = bytes(range(256)) * (4 * MiB // 256)
    with pair() as (sender, receiver, _):

        def send() -> None:
            sender.sendall(data)
            sender.shutdown(socket.SHUT_WR)

        with running(send):
            assert read_to_the_end(receiver) == (data, "fin")


def test_what_is_recorded_is_what_came() -> None:
    """Also what did not pass."""
    with pair(Hold(3), record=True) as (client, server, found):
        client.sendall(HELLO)
        assert read(server, 3) == HELLO[:3]
        server.sendall(b"hi")
        assert read(client, 2) == b"hi"
        client.close()
        server.close()
        found.proxy.wait_until_idle()
        [passage] = found.proxy.passages
    assert (passage.client_said, passage.server_said) == (HELLO, b"hi")
    assert (passage.from_client, passage.to_server) == (len(HELLO), 3)


# -- cuts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["server", "client"])
@pytest.mark.parametrize("how", ["reset", "fin"])
@pytest.mark.parametrize("after", [1, 5, len(HELLO)])
@pytest.mark.parametrize("dripped", [False, True])
def test_a_cut_lets_exactly_so_many_bytes_pass(to: str, how: Any, after: int, dripped: bool) -> None:
    """And both sides see it, whether the bytes come at once or one by one."""
    with pair(Cut(after, how), to=to) as (sender, receiver, found):
        try:
            for i in range(len(HELLO)) if dripped else [0]:
                sender.sendall(HELLO[i : i + 1] if dripped else HELLO)
        except OSError:
            assert how == "reset"  # it came while the sender was sending
        assert read_to_the_end(receiver) == (HELLO[:after], how)
        if how == "fin":
            assert read_to_the_end(sender) == (b"", how)
        sender.close()
        receiver.close()
        found.proxy.wait_until_idle()
        [passage] = found.proxy.passages
        passed = passage.to_server if to == "server" else passage.to_client
        assert passed == after


@pytest.mark.parametrize("to", ["server", "client"])
def test_a_cut_at_the_very_beginning(to: str) -> None:
    """No byte passes; a reset may even meet the client while it connects."""
    for how in ("fin", "reset"):
        plan = Plan(**{f"to_{to}": [Cut(0, how)]})
        with rig(plan) as found:
            try:
                client, server = found.connect()
                server.sendall(HELLO)
                assert read_to_the_end(client) == (b"", how)
            except ConnectionError:
                assert how == "reset"


def test_a_cut_comes_at_once() -> None:
    """The answer to the last byte that passed is lost with the connection."""
    with pair(Cut(len(HELLO), "fin")) as (client, server, _):
        client.sendall(HELLO)
        assert read_to_the_end(server) == (HELLO, "fin")
        server.sendall(b"an answer")
        assert read_to_the_end(client) == (b"", "fin")


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system cannot tell what it has not sent")
def test_a_reset_throws_nothing_away_that_has_passed() -> None:
    """Megabytes may lie in buffers when the reset is due; the receiver gets each byte before it."""
    after = 3 * MiB + 1
    with pair(Cut(after)) as (sender, receiver, _):

        def send() -> None:
            try:
                sender.sendall(b"x" * (8 * MiB))
            except OSError:
                pass

        with running(send):
            data, end = read_to_the_end(receiver)
    assert (len(data), end) == (after, "reset")


@pytest.mark.parametrize("how", ["reset", "fin"])
@pytest.mark.parametrize(("side", "to"), [("client", "server"), ("client", "client"), ("server", "server")])
def test_a_cut_of_one_side_leaves_the_other_in_silence(how: Any, side: Any, to: str) -> None:
    with rig(Plan(**{f"to_{to}": [Cut(2, how, side)]})) as found:
        client, server = found.connect()
        (client if to == "server" else server).sendall(HELLO)
        told, other = (client, server) if side == "client" else (server, client)
        expected = HELLO[:2] if (told is server) == (to == "server") else b""
        assert read_to_the_end(told) == (expected, how)
        if (other is server) == (to == "server"):
            assert read(other, 2) == HELLO[:2]
        other.sendall(b"anybody there?")
        assert is_silent(other)
        assert found.proxy.connections_open == 1
        other.close()
        told.close()
        found.proxy.wait_until_idle()


# -- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["server", "client"])
@pytest.mark.parametrize("after", [0, 4])
def test_a_hold_lets_so_many_bytes_pass_and_only_the_end_thereafter(to: str, after: int) -> None:
    """The other direction goes on."""
    with pair(Hold(after), to=to) as (sender, receiver, found):
        sender.sendall(HELLO)
        assert read(receiver, after) == HELLO[:after]
        receiver.sendall(b"hi")
        assert read(sender, 2) == b"hi"
        sender.sendall(HELLO)
        assert is_silent(receiver)
        sender.close()
        assert read_to_the_end(receiver)[0] == b""
        receiver.close()
        found.proxy.wait_until_idle()


def test_a_hold_that_does_not_read_fills_the_senders_buffers() -> None:
    with pair(Hold(2, reading=False)) as (sender, receiver, found):
        sender.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sender.sendall(b"x" * (64 * MiB))
        assert read(receiver, 2) == b"xx"
        sender.close()
        assert found.proxy.connections_open == 1
        receiver.close()
        found.proxy.close()
        assert found.proxy.connections_open == 0


# -- damage and delay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "arrives"),
    [
        ([Garble(4)], b"hell\xef, world"),
        ([Garble(0, mask=0x20)], b"Hello, world"),
        ([Garble(5, mask=0, insert=b"!!")], b"hello!!, world"),
        ([Garble(5, mask=0x0C, insert=b"!")], b"hello!  world"),
        ([Garble(0, mask=0, insert=b"> ")], b"> hello, world"),
        ([Garble(11), Garble(0)], b"\xe8ello, worl\xe4"),
        ([Garble(2, mask=0x20), Cut(4, "fin")], b"heLl"),
        ([Garble(4, mask=0, insert=b"p"), Cut(4, "fin")], b"hell"),
        ([Delay(3, 0.01), Trickle(5, 0.001, 3), Garble(7, mask=0x20)], b"hello, World"),
    ],
)
@pytest.mark.parametrize("to", ["server", "client"])
def test_bytes_are_damaged_where_the_plan_says(to: str, faults: list[Fault], arrives: bytes) -> None:
    """Positions count what the sender sent; an insertion counts nowhere."""
    with pair(*faults, to=to) as (sender, receiver, _):
        for i in range(len(HELLO)):
            sender.sendall(HELLO[i : i + 1])
        sender.shutdown(socket.SHUT_WR)
        assert read_to_the_end(receiver)[0] == arrives


def test_a_delay_holds_back_and_loses_nothing() -> None:
    with pair(Delay(5, 0.15)) as (sender, receiver, _):
        begin = time.monotonic()
        sender.sendall(HELLO)
        assert read(receiver, 5) == HELLO[:5]
        assert read(receiver, len(HELLO) - 5) == HELLO[5:]
        assert time.monotonic() - begin > 0.14


def test_a_cut_behind_a_delay_waits_for_it() -> None:
    with pair(Delay(5, 0.15), Cut(5, "fin")) as (sender, receiver, _):
        begin = time.monotonic()
        sender.sendall(HELLO)
        assert read_to_the_end(receiver) == (HELLO[:5], "fin")
        assert time.monotonic() - begin > 0.1


def test_a_trickle_passes_a_little_at_a_time() -> None:
    with pair(Trickle(4, interval=0.02, size=2)) as (sender, receiver, _):
        begin = time.monotonic()
        sender.sendall(HELLO)
        assert read(receiver, 4) == HELLO[:4]
        assert read(receiver, len(HELLO) - 4) == HELLO[4:]  # four pieces, or fewer where we were kept from reading
        assert time.monotonic() - begin > 0.05


# -- plans ------------------------------------------------------------------------------------------------------------


def test_each_connection_has_the_next_plan_and_those_beyond_have_none() -> None:
    with rig(Plan(to_server=[Cut(1, "fin")]), Plan(to_client=[Cut(2, "fin")])) as found:
        found.proxy.add(Plan(to_server=[Cut(3, "fin")]))
        for after in (1, None, 3, None):
            client, server = found.connect()
            client.sendall(b"1234")
            if after is None:
                assert read(server, 4) == b"1234"
            else:
                assert read_to_the_end(server) == (b"1234"[:after], "fin")
        assert found.proxy.connections == 4
        assert [p.to_server for p in found.proxy.passages] == [1, 4, 3, 4]
        assert [p.number for p in found.proxy.passages] == [0, 1, 2, 3]


def test_a_server_that_is_not_there_refuses_and_uses_up_no_plan() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = listener.getsockname()
    with FaultProxy(address, Plan(to_server=[Cut(0)])) as proxy:
        try:
            with socket.create_connection((proxy.host, proxy.port), TIMEOUT) as client:
                assert read_to_the_end(client) == (b"", "reset")
        except ConnectionResetError:
            pass  # it was refused before it was told that it is connected
        assert (proxy.connections, proxy.connections_refused) == (0, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cut(-1),
        lambda: Cut(0, "bang"),  # type: ignore[arg-type]
        lambda: Cut(0, side="left"),  # type: ignore[arg-type]
        lambda: Hold(-1),
        lambda: Garble(-1),
        lambda: Garble(0, mask=256),
        lambda: Delay(-1, 1.0),
        lambda: Delay(0, -1.0),
        lambda: Trickle(interval=-1.0),
        lambda: Trickle(size=0),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(make: Callable[[], Fault]) -> None:
    with pytest.raises(ValueError, match=r"at least|must|byte"):
        make()


# -- life -------------------------------------------------------------------------------------------------------------


def test_closing_ends_everything() -> None:
    """With connections open; twice is nothing; and a proxy starts once."""
    with rig() as found:
        client, server = found.connect()
        found.proxy.close()
        assert read_to_the_end(client)[0] == b""
        assert read_to_the_end(server)[0] == b""
        found.proxy.close()
        assert found.proxy.connections_open == 0
        with pytest.raises(ConnectionError):
            socket.create_connection((found.proxy.host, found.proxy.port), TIMEOUT)
        with pytest.raises(RuntimeError, match="starts once"):
            found.proxy.start()


def test_a_proxy_that_was_never_started() -> None:
    proxy = FaultProxy(("127.0.0.1", 25))
    with pytest.raises(RuntimeError, match="no port before it is started"):
        _ = proxy.port
    assert repr(proxy) == "<FaultProxy not started to 127.0.0.1:25>"
    proxy.close()


def test_whoever_waits_for_the_end_is_told_when_it_does_not_come() -> None:
    with rig() as found:
        client, server = found.connect()
        client.sendall(HELLO)
        read(server, len(HELLO))
        with pytest.raises(TimeoutError, match=r"1 connections are still under way after 0\.05 s"):
            found.proxy.wait_until_idle(0.05)


def test_all_names_can_be_had_from_the_package() -> None:
    from threadmail.testing import proxy

    for name in proxy.__all__:
        assert getattr(threadmail.testing, name) is getattr(proxy, name)


# -- in use -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_it_works_beneath_tls(tls: Any) -> None:
    """What it damages there is noticed."""
    with CaptureServer(tls=tls, ca=TestCA()) as server, FaultProxy(server) as proxy:
        config = proxy.reroute(server.config)
        with Client(config) as client:
            assert client.send(envelope("a")).outcome is Outcome.SENT
        proxy.add(Plan(to_client=[Garble(proxy.passages[0].to_client - 120)]))
        with Client(config) as client, pytest.raises(MailError):
            client.send(envelope("b"))
        assert [m.sender for m in server.messages][:1] == ["from-a@example.org"]


def test_the_example_of_its_docstring() -> None:
    with CaptureServer() as server, FaultProxy(server, Plan(to_client=[Cut(200)])) as proxy:
        with Client(proxy.reroute(server.url)) as client:
            with pytest.raises(MailError):
                client.send(envelope("a"))
            assert client.send(envelope("b")).outcome is Outcome.SENT
        assert proxy.connections == 2
