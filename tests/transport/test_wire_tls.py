"""What TLS does to writes and reads: each is of records, of at most 16,384 octets."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import Any

import pytest

from tests.support.mail import envelope
from threadmail import BadReply, Client, Envelope, Outcome, Security, ServerConfig
from threadmail.testing import CaptureServer, Drop, ScriptedServer, Send, Serve, Signal, TestCA

RECORD = 16384
END = b"\r\n.\r\n"


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def config(server: ScriptedServer, ca: TestCA, kind: type[ssl.SSLSocket]) -> ServerConfig:
    context = ca.client_context()
    context.sslsocket_class = kind
    return ServerConfig(server.host, server.port, security=Security.TLS, ssl_context=context)


def with_a_long_ride() -> list[Envelope]:
    """Two messages: the content of the first is nearly a record, the commands of the second are another."""
    many = [f"{'r' * 58}{i}@{'d' * 60}.{'e' * 60}.test" for i in range(50)]
    content = b"Message-ID: <one>\r\n\r\n" + b"x" * 70 + (b"\r\n" + b"x" * 70) * 200
    return [Envelope("a@h.test", ["b@t.test"], content), Envelope("a@h.test", many, b"Message-ID: <two>\r\n\r\ny\r\n")]


def test_a_connection_that_breaks_behind_the_end_of_a_content(ca: TestCA) -> None:
    """The record with the end had left, a later one had not: nobody knows, and nobody sends it again."""

    class Breaking(ssl.SSLSocket):
        ended = False

        def send(self, data: Any, flags: int = 0) -> int:
            said = bytes(data)
            if self.ended or (END in said and len(said) > RECORD):
                if not self.ended:
                    super().send(said[:RECORD], flags)
                raise ConnectionResetError("reset in the next record")
            self.ended = END in said
            return super().send(data, flags)

    first = [Serve(until="."), Drop()]
    with ScriptedServer(first, [Serve()], tls="tls", ca=ca) as server, Client(config(server, ca, Breaking)) as client:
        report = client.send_all(with_a_long_ride())
        server.wait_for(2)
    arrived = sum(b"<one>" in m.content for m in server.messages)
    assert next((r.outcome, arrived) for r in report) == (Outcome.IN_DOUBT, 1)


def test_what_is_written_behind_a_small_content_still_leaves_with_it(ca: TestCA) -> None:
    writes: list[bytes] = []

    class Watched(ssl.SSLSocket):
        def send(self, data: Any, flags: int = 0) -> int:
            writes.append(bytes(data))
            return super().send(data, flags)

    with ScriptedServer([Serve()], tls="tls", ca=ca) as server, Client(config(server, ca, Watched)) as client:
        report = client.send_all(
            [Envelope("a@h.test", ["b@t.test"], f"X: {n}\r\n\r\ny\r\n".encode()) for n in range(3)]
        )
    assert [r.outcome for r in report] == [Outcome.SENT] * 3
    assert sum(END + b"rset\r\nmail" in write for write in writes) == 2


@pytest.mark.parametrize("size", [100, 200_000])
def test_a_reply_behind_the_354_is_not_taken_for_the_answer_to_the_content(ca: TestCA, size: int) -> None:
    """In a record of its own it is still with the kernel when the 354 is read."""
    both_there = threading.Event()

    class Patient(ssl.SSLSocket):
        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            data = super().recv(buflen, flags)
            if b"354" in data:
                assert both_there.wait(10.0)
            return data

    script = [
        Serve(until="DATA"),
        Send(b"354 go\r\n"),
        Send(b"250 2.0.0 early\r\n"),
        Signal(both_there),
    ]
    content = b"X: y\r\n\r\n" + b"x\r\n" * (size // 3)
    with ScriptedServer(script, tls="tls", ca=ca) as server, Client(config(server, ca, Patient)) as client:
        with pytest.raises(BadReply, match="out of turn") as caught:
            client.send(Envelope("a@h.test", ["b@t.test"], content))
    assert caught.value.outcome is Outcome.NOT_SENT
    assert server.messages == []


def test_a_name_with_its_last_dot_is_the_one_in_the_certificate(ca: TestCA, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 6066 section 3: the name that is asked for is written without it."""
    resolve = socket.getaddrinfo

    def resolver(host: str, *args: Any, **settings: Any) -> Any:
        return resolve("127.0.0.1" if host == "mail.example.com." else host, *args, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with CaptureServer(tls="starttls", ssl_context=ca.server_context("mail.example.com")) as server:
        config = ServerConfig("mail.example.com.", server.port, Security.STARTTLS, ssl_context=ca.client_context())
        with Client(config) as client:
            assert client.send(envelope("a")).outcome is Outcome.SENT
