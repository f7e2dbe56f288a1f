"""CaptureServer: what it claims, seen from stdlib clients and raw sockets."""

from __future__ import annotations

import base64
import logging
import smtplib
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from typing import Any, Literal

import pytest

from threadmail.client import Client
from threadmail.testing import CapturedMessage, CaptureServer, TestCA

TLS_MODES: list[Literal["none", "starttls", "tls"]] = ["none", "starttls", "tls"]
HEADER = b"Subject: hello\r\n\r\n"


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("threadmail")] == []


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


@contextmanager
def client_of(server: CaptureServer) -> Iterator[smtplib.SMTP]:
    context = server.client_context
    client: smtplib.SMTP
    if server.url.startswith("smtps:"):
        client = smtplib.SMTP_SSL(server.host, server.port, timeout=5, context=context)
    elif server.url.startswith("lmtp:"):
        client = smtplib.LMTP(server.host, server.port)
    else:
        client = smtplib.SMTP(server.host, server.port, timeout=5)
        if context is not None:
            client.starttls(context=context)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def dial(server: CaptureServer) -> Iterator[socket.socket]:
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        yield connection


def say(connection: socket.socket, data: bytes, until: bytes) -> bytes:
    """Send, and read until the answer ends with `until`."""
    connection.sendall(data)
    answer = b""
    while not answer.endswith(until):
        more = connection.recv(4096)
        if not more:
            raise AssertionError(f"connection closed after {answer!r}")
        answer += more
    return answer


def send(client: smtplib.SMTP, content: bytes = HEADER + b"body\r\n") -> dict[str, Any]:
    return client.sendmail("ann@example.test", ["bob@example.test"], content)


# -- what is captured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", TLS_MODES)
def test_a_message_is_recorded_with_all_that_belongs_to_it(tls: Literal["none", "starttls", "tls"], ca: TestCA) -> None:
    authority = None if tls == "none" else ca
    with CaptureServer(tls=tls, ca=authority, auth={"ann": "secret"}) as server, client_of(server) as client:
        client.ehlo("laptop.example.test")
        client.login("ann", "secret")
        client.sendmail("ann@example.test", ["bob@example.test", "cy@example.test"], HEADER, ["BODY=8BITMIME"])
        [mail] = server.wait_for(1)
    assert (mail.sender, mail.recipients) == ("ann@example.test", ("bob@example.test", "cy@example.test"))
    assert mail.content == HEADER
    assert mail.message["Subject"] == "hello"
    assert (mail.helo, mail.username, mail.tls, mail.connection) == ("laptop.example.test", "ann", tls != "none", 0)
    assert mail.mail_options == (f"size={len(HEADER)}", "BODY=8BITMIME")
    assert mail.rcpt_options == ((), ())
    assert mail.received_at.utcoffset() is not None


def test_content_arrives_byte_for_byte() -> None:
    every_byte = bytes(set(range(1, 256)) - {10, 13})
    contents = [
        b".\r\n..\r\n...x\r\n.dot\r\n",
        b"x" * 5_000 + b"\r\n" + b"." * 5_000 + b"\r\n" + b"y" * 300_000 + b"\r\n",
        every_byte + b"\r\n",
        b"bare \n and \r in a line\r\n.\n.\r\r\n",
        b"",
    ]
    with CaptureServer() as server, dial(server) as wire:
        say(wire, b"", b"\r\n")
        say(wire, b"EHLO x\r\n", b"250 SIZE 33554432\r\n")
        for content in contents:
            say(wire, b"MAIL FROM:<a@x.test>\r\n", b"\r\n")
            say(wire, b"RCPT TO:<b@x.test>\r\n", b"\r\n")
            assert say(wire, b"DATA\r\n", b"\r\n").startswith(b"354")
            stuffed = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in content.split(b"\r\n"))
            assert say(wire, stuffed + b".\r\n", b"\r\n").startswith(b"250")
        assert [mail.content for mail in server.messages] == contents


def test_the_null_sender_and_non_ascii_addresses_are_captured_as_they_are() -> None:
    with CaptureServer() as server, dial(server) as wire:
        say(wire, b"EHLO x\r\n", b"250 SIZE 33554432\r\n")
        say(wire, b"MAIL FROM:<>\r\n", b"\r\n")
        say(wire, "RCPT TO:<jörg@exämple.test>\r\n".encode(), b"\r\n")
        say(wire, b"DATA\r\n", b"\r\n")
        say(wire, b".\r\n", b"\r\n")
        [mail] = server.messages
    assert (mail.sender, mail.recipients) == ("", ("jörg@exämple.test",))


def test_commands_sent_at_once_and_followed_by_fin_are_all_carried_out() -> None:
    with CaptureServer() as server, dial(server) as wire:
        wire.sendall(
            b"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nhello\r\n.\r\n"
            b"MAIL FROM:<c@x.test>\r\nRCPT TO:<d@x.test>\r\nDATA\r\nworld\r\n.\r\n"
        )
        wire.shutdown(socket.SHUT_WR)
        first, second = server.wait_for(2)
        server.wait_for_connections(0)
    assert (first.content, second.content) == (b"hello\r\n", b"world\r\n")


@pytest.mark.parametrize("tls", ["starttls", "tls"])
@pytest.mark.parametrize("farewell", [False, True])
def test_a_message_counts_whose_client_left_before_the_reply_under_tls(
    tls: Literal["starttls", "tls"], farewell: bool, ca: TestCA
) -> None:
    with CaptureServer(tls=tls, ca=ca) as server:
        for count in range(1, 6):
            with client_of(server) as client:
                client.ehlo()
                client.mail("a@x.test")
                client.rcpt("b@x.test")
                client.docmd("DATA")
                assert isinstance(client.sock, ssl.SSLSocket)
                client.sock.settimeout(0)
                client.sock.sendall(b"x" * 5000 + b"\r\n.\r\n")
                if farewell:
                    try:
                        client.sock.unwrap()
                    except ssl.SSLError:
                        pass  # close_notify is out; the server's is not in, or its reply came first.
                socket.socket.shutdown(client.sock, socket.SHUT_WR)
                server.wait_for(count)
        server.wait_for_connections(0)


def test_a_content_cut_off_is_no_message() -> None:
    with CaptureServer() as server, dial(server) as wire:
        wire.sendall(b"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nhello\r\n.\r")
        wire.shutdown(socket.SHUT_WR)
        while wire.recv(4096):
            pass
        server.wait_for_connections(0)
        assert server.messages == []
        assert server.connections_opened == 1


def test_dsn_parameters_are_understood_when_offered_and_kept_as_sent() -> None:
    with CaptureServer(extensions=("DSN",)) as server, client_of(server) as client:
        client.ehlo()
        assert client.mail("a@x.test", ["RET=HDRS", "ENVID=Qq314"])[0] == 250
        assert client.rcpt("b@x.test", ["NOTIFY=SUCCESS,FAILURE"])[0] == 250
        assert client.rcpt("c@x.test")[0] == 250
        client.data(b"x")
        [mail] = server.messages
    assert mail.mail_options == ("RET=HDRS", "ENVID=Qq314")
    assert mail.rcpt_options == (("NOTIFY=SUCCESS,FAILURE",), ())
    with CaptureServer() as server, client_of(server) as client:
        client.ehlo()
        assert client.mail("a@x.test", ["RET=HDRS"])[0] == 555


def test_chunks_make_one_message_and_nothing_in_them_is_a_command() -> None:
    with CaptureServer(extensions=("PIPELINING", "CHUNKING"), size_limit=30) as server, dial(server) as wire:
        envelope = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n"
        say(wire, b"EHLO x\r\n", b"250 SIZE 30\r\n")
        answer = say(wire, envelope + b"BDAT 7\r\n.\r\nQUITBDAT 4 LAST\r\n\r\n.\n", b"250 2.0.0 OK\r\n")
        assert answer.count(b"\r\n") == 4
        assert say(wire, b"BDAT 3 LAST\r\nabc", b"\r\n").startswith(b"503")
        assert say(wire, envelope + b"BDAT 31 LAST\r\n" + b"x" * 31, b"data\r\n").splitlines()[-1].startswith(b"552")
        assert say(wire, b"NOOP\r\n", b"\r\n").startswith(b"250")
        assert [mail.content for mail in server.messages] == [b".\r\nQUIT\r\n.\n"]


# -- what the server offers and refuses -------------------------------------------------------------------------------


def test_ehlo_offers_what_was_asked_for_and_nothing_else() -> None:
    with CaptureServer() as server, client_of(server) as client:
        client.ehlo()
        assert set(client.esmtp_features) == {"pipelining", "8bitmime", "smtputf8", "size"}
    with CaptureServer(extensions=("XFOO bar",), size_limit=None) as server, client_of(server) as client:
        client.ehlo()
        assert client.esmtp_features == {"xfoo": "bar"}


def test_auth_is_offered_only_where_it_can_be_used(ca: TestCA) -> None:
    with CaptureServer(tls="starttls", ca=ca, auth={"ann": "secret"}, require_auth=True) as server:
        with smtplib.SMTP(server.host, server.port, timeout=5) as client:
            client.ehlo()
            assert "auth" not in client.esmtp_features
            assert client.docmd("AUTH", "PLAIN AGFubgBzZWNyZXQ=")[0] == 538
            client.starttls(context=ca.client_context())
            client.ehlo()
            assert client.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]
            assert "starttls" not in client.esmtp_features
            assert client.mail("a@x.test")[0] == 530
            assert client.docmd("AUTH", "plain AGFubgB3cm9uZw==")[0] == 535
            assert client.mail("a@x.test")[0] == 530
            client.login("ann", "secret")
            assert client.mail("a@x.test")[0] == 250


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_each_mechanism_takes_the_right_password_alone(mechanism: str) -> None:
    with CaptureServer(auth={"ann": "secret", "bob": "other"}, mechanisms=[mechanism]) as server:
        with client_of(server) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("ann", "other")
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("nobody", "secret")
            client.login("ann", "secret")
            send(client)
        assert [mail.username for mail in server.messages] == ["ann"]


def test_bearer_tokens_are_checked_and_a_refusal_is_a_challenge_first() -> None:
    def blob(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    with CaptureServer(auth={"ann": "token"}, mechanisms=["XOAUTH2", "OAUTHBEARER"]) as server:
        for good, bad in (
            ("XOAUTH2 " + blob("user=ann\1auth=Bearer token\1\1"), "XOAUTH2 " + blob("user=ann\1auth=Bearer old\1\1")),
            (
                "OAUTHBEARER " + blob("n,a=ann,\1host=h\1port=25\1auth=Bearer token\1\1"),
                "OAUTHBEARER " + blob("n,a=ann,\1auth=Bearer old\1\1"),
            ),
        ):
            with client_of(server) as client:
                client.ehlo()
                assert client.docmd("AUTH", bad)[0] == 334
                assert client.docmd("")[0] == 535
                assert client.docmd("AUTH", good)[0] == 235


def test_malformed_logins_are_answered_and_the_session_goes_on() -> None:
    with CaptureServer(auth={"ann": "secret"}) as server, client_of(server) as client:
        client.ehlo()
        assert client.docmd("AUTH")[0] == 501
        assert client.docmd("AUTH", "GSSAPI")[0] == 504
        assert client.docmd("AUTH", "PLAIN !!")[0] == 501
        assert client.docmd("AUTH", "PLAIN YQ==")[0] == 501
        assert client.docmd("AUTH", "LOGIN")[0] == 334
        assert client.docmd("*")[0] == 501
        client.login("ann", "secret")
        assert client.docmd("AUTH", "PLAIN AGFubgBzZWNyZXQ=")[0] == 503
    with CaptureServer() as server, client_of(server) as client:
        client.ehlo()
        assert client.docmd("AUTH", "PLAIN AGFubgBzZWNyZXQ=")[0] == 502


def test_callbacks_refuse_messages_and_recipients() -> None:
    seen: list[CapturedMessage] = []

    def no_spam(message: CapturedMessage) -> str | None:
        seen.append(message)
        return "550 5.7.1 no" if b"spam" in message.content else None

    def known(recipient: str) -> str | None:
        return None if recipient.startswith("bob@") else "550 5.1.1 who?"

    with CaptureServer(on_message=no_spam, on_recipient=known) as server, client_of(server) as client:
        with pytest.raises(smtplib.SMTPDataError, match="no"):
            send(client, b"spam")
        refused = client.sendmail("a@x.test", ["bob@x.test", "eve@x.test"], b"ham")
        assert refused == {"eve@x.test": (550, b"5.1.1 who?")}
        [mail] = server.messages
        assert mail.recipients == ("bob@x.test",)
        assert len(seen) == 2


def test_what_a_callback_raises_is_a_451_to_the_client_and_raised_at_the_end() -> None:
    def broken(message: CapturedMessage) -> str | None:
        pytest.fail("not in my house")  # Not an Exception, but a BaseException.

    server = CaptureServer(on_message=broken)
    server.start()
    with client_of(server) as client:
        with pytest.raises(smtplib.SMTPDataError) as caught:
            send(client)
    assert caught.value.smtp_code == 451
    with pytest.raises(pytest.fail.Exception, match="not in my house"):
        server.__exit__(None, None, None)
    server.close()
    assert server.messages == []


def test_an_exception_under_way_is_not_replaced_by_that_of_a_callback() -> None:
    def broken(recipient: str) -> str | None:
        raise ValueError(recipient)

    def scene() -> None:
        with CaptureServer(on_recipient=broken) as server, client_of(server) as client:
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                send(client)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scene()


def test_the_size_limit_holds_for_what_is_declared_and_for_what_comes() -> None:
    with CaptureServer(size_limit=100) as server, dial(server) as wire:
        say(wire, b"EHLO x\r\n", b"250 SIZE 100\r\n")
        assert say(wire, b"MAIL FROM:<a@x.test> SIZE=101\r\n", b"\r\n").startswith(b"552")
        for size, code in ((98, b"250"), (99, b"552"), (5_000, b"552")):
            say(wire, b"MAIL FROM:<a@x.test>\r\n", b"\r\n")
            say(wire, b"RCPT TO:<b@x.test>\r\n", b"\r\n")
            say(wire, b"DATA\r\n", b"\r\n")
            # The doubled dot does not count (RFC 1870 section 3).
            assert say(wire, b".." + b"x" * (size - 1) + b"\r\n.\r\n", b"\r\n").startswith(code)
        assert [len(mail.content) for mail in server.messages] == [100]


def test_lmtp_answers_for_each_recipient_and_keeps_those_that_were_taken() -> None:
    def full(message: CapturedMessage) -> str | None:
        return "452 4.2.2 full" if message.recipients == ("bob@x.test",) else None

    with CaptureServer(lmtp=True, on_message=full, size_limit=1000) as server, dial(server) as wire:
        assert server.url == f"lmtp://127.0.0.1:{server.port}"
        say(wire, b"EHLO x\r\n", b"LHLO\r\n")
        say(wire, b"LHLO x\r\n", b"250 SIZE 1000\r\n")
        envelope = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<ann@x.test>\r\nRCPT TO:<bob@x.test>\r\nDATA\r\n"
        say(wire, envelope, b".<CR><LF>\r\n")
        assert say(wire, b"x\r\n.\r\n", b"full\r\n") == b"250 2.0.0 OK\r\n452 4.2.2 full\r\n"
        say(wire, envelope, b".<CR><LF>\r\n")
        assert say(wire, b"x" * 1000 + b"\r\n.\r\nNOOP\r\n", b"OK\r\n").count(b"552 ") == 2
        [mail] = server.messages
    assert mail.recipients == ("ann@x.test",)


def test_connections_beyond_the_maximum_get_421() -> None:
    with CaptureServer(max_connections=1) as server, client_of(server) as client:
        with pytest.raises(smtplib.SMTPConnectError) as caught:
            smtplib.SMTP(server.host, server.port, timeout=5)
        assert caught.value.smtp_code == 421
        send(client)
        client.quit()
        server.wait_for_connections(0)
        with client_of(server) as next_client:
            send(next_client)
        assert (server.connections_opened, server.connections_refused, server.max_simultaneous) == (2, 1, 1)
        assert [mail.connection for mail in server.messages] == [0, 1]


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize("mode", ["fin", "reset", "421"])
def test_dropped_connections_are_gone_when_the_call_returns(
    mode: Literal["fin", "reset", "421"], tls: Literal["none", "starttls", "tls"], ca: TestCA
) -> None:
    with CaptureServer(tls=tls, ca=None if tls == "none" else ca) as server:
        with client_of(server) as client, client_of(server) as other:
            send(client)
            other.noop()
            assert server.connections_open == 2
            assert server.drop_connections(mode) == 2
            assert server.connections_open == 0
            assert client.sock is not None
            if mode == "421":
                assert client.sock.recv(100) == b"421 4.4.2 idle timeout\r\n"
            if mode == "reset" and tls == "none":
                with pytest.raises(ConnectionResetError):
                    client.sock.recv(100)
            else:
                # Under TLS Python before 3.13 takes a reset for the end.
                try:
                    assert client.sock.recv(100) == b""
                except ConnectionResetError:
                    assert mode == "reset"
        assert server.drop_connections(mode) == 0
        with client_of(server) as again:
            send(again)
        assert len(server.messages) == 2


@pytest.mark.parametrize("tls", TLS_MODES)
def test_who_has_said_quit_holds_no_connection_from_the_reply_on(
    tls: Literal["none", "starttls", "tls"], ca: TestCA
) -> None:
    with CaptureServer(tls=tls, ca=None if tls == "none" else ca) as server:
        for _ in range(3):
            with client_of(server) as client:
                client.docmd("QUIT")  # And stays on the line.
                assert server.connections_open == 0
        assert server.max_simultaneous == 1


def test_counters_tell_of_connections_and_quits() -> None:
    with CaptureServer() as server:
        with client_of(server), client_of(server), client_of(server) as third:
            server.wait_for_connections(3)
            third.quit()
            server.wait_for_connections(2)
        server.wait_for_connections(0)
        assert (server.connections_opened, server.max_simultaneous, server.quits) == (3, 3, 1)
        with pytest.raises(TimeoutError, match=r"0 connections are open after 0\.05 s, not 1"):
            server.wait_for_connections(1, timeout=0.05)


def test_wait_for_wakes_when_mail_comes_and_says_what_is_missing() -> None:
    with CaptureServer() as server, client_of(server) as client:
        with pytest.raises(TimeoutError, match=r"0 of 1 messages arrived within 0\.05 s"):
            server.wait_for(1, timeout=0.05)
        waiting = threading.Event()
        got: list[CapturedMessage] = []

        def wait() -> None:
            waiting.set()
            got.extend(server.wait_for(2))

        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(5)
        send(client)
        send(client)
        thread.join(5)
        assert got == server.messages
        with pytest.raises(TimeoutError, match="2 of 3 messages"):
            server.wait_for(3, timeout=0.05)
        server.clear()
        assert server.messages == []


def test_the_outbox_is_live_and_messages_is_a_copy() -> None:
    with CaptureServer() as server, client_of(server) as client:
        outbox, copy = server.outbox, server.messages
        assert outbox == []
        send(client)
        assert (len(outbox), len(copy)) == (1, 0)
        assert outbox[0] is outbox[-1]
        assert outbox[:] == server.messages
        assert outbox == server.outbox
        assert outbox != ()
        assert "bob@example.test" in repr(outbox)


def test_leaving_the_block_closes_what_clients_hold_open(ca: TestCA) -> None:
    server = CaptureServer(tls="starttls", ca=ca)
    with server:
        with dial(server) as plain, client_of(server) as secured, dial(server) as middle_of_data:
            say(plain, b"", b"\r\n")
            middle_of_data.sendall(b"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nx")
            say(middle_of_data, b"", b"<CR><LF>\r\n")
            server.close()
            assert plain.recv(100) == b""
            assert secured.sock is not None
            assert secured.sock.recv(100) == b""
            assert server.connections_open == 0
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), timeout=5)


def test_a_client_in_the_middle_of_its_handshake_does_not_hold_up_the_end(ca: TestCA) -> None:
    with CaptureServer(tls="tls", ca=ca) as server, dial(server) as mute:
        with client_of(server) as client:  # Accepted after the mute one.
            client.noop()
        server.close()
        assert mute.recv(100) == b""


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_failed_handshakes_leave_the_server_whole(tls: Literal["starttls", "tls"], ca: TestCA) -> None:
    with CaptureServer(tls=tls, ca=ca) as server:
        with dial(server) as wire:
            if tls == "starttls":
                say(wire, b"", b"\r\n")
                say(wire, b"STARTTLS\r\n", b"\r\n")
            stranger = ssl.create_default_context()
            with pytest.raises(ssl.SSLCertVerificationError):
                stranger.wrap_socket(wire, server_hostname=server.host)
        with dial(server) as garbage:
            garbage.sendall(b"STARTTLS\r\nhello, is this TLS?\r\n" * 3)
            garbage.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.wait_for_connections(0)
        with client_of(server) as honest:
            send(honest)
        assert len(server.messages) == 1


# -- life and settings ------------------------------------------------------------------------------------------------


def test_a_server_starts_once_and_has_no_port_before() -> None:
    server = CaptureServer()
    assert repr(server) == "<CaptureServer not started>"
    with pytest.raises(RuntimeError, match="before it is started"):
        _ = server.port
    with pytest.raises(RuntimeError, match="not running"):
        server.drop_connections()
    with server:
        with pytest.raises(RuntimeError, match="starts once"):
            server.start()
    with pytest.raises(RuntimeError, match="starts once"):
        server.start()


def test_the_password_is_in_the_url_of_one_user_and_in_no_repr() -> None:
    with CaptureServer(auth={"ann@x.test": "s/e:c@r#t"}) as server:
        assert server.url == f"smtp://ann%40x.test:s%2Fe%3Ac%40r%23t@127.0.0.1:{server.port}"
        assert "r#t" not in repr(server)
        assert "ann" not in repr(server)
        assert "r#t" not in repr(vars(server)["_loop"].__dict__)
    with CaptureServer(auth={"ann": "x", "bob": "y"}) as server:
        assert server.url == f"smtp://127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("tls", "lmtp"), [("none", False), ("starttls", False), ("tls", False), ("none", True), ("starttls", True)]
)
def test_config_is_all_a_client_needs(tls: Literal["none", "starttls", "tls"], lmtp: bool) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ann@example.test", "bob@example.test", "hello"
    message.set_content("body")
    with CaptureServer(tls=tls, lmtp=lmtp, auth={"ann@x.test": "s/e:c@r#t"}, require_auth=True) as server:
        with Client(server.config) as client:
            client.send(message)
        [mail] = server.messages
        assert server.quits == 1
    assert (mail.username, mail.tls, mail.message["Subject"]) == ("ann@x.test", tls != "none", "hello")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"tls": "ssl"}, "tls must be"),
        ({"ca": "any"}, "no use for"),
        ({"require_auth": True}, "nobody could"),
        ({"lmtp": True, "tls": "tls"}, "no implicit TLS"),
        ({"auth": {}, "mechanisms": ["NTLM"]}, "NTLM is not known"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CaptureServer(**arguments)


def test_the_missing_package_is_named_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiosmtpd.smtp", None)
    with pytest.raises(ImportError, match=r"pip install 'threadmail\[sandbox\]'"):
        CaptureServer()


def test_nothing_is_logged_as_a_warning_by_an_ordinary_login(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        with CaptureServer(auth={"ann": "secret-word"}, require_auth=True) as server, client_of(server) as client:
            client.login("ann", "secret-word")
            send(client)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "secret-word" not in caplog.text
    assert base64.b64encode(b"\0ann\0secret-word").decode() not in caplog.text
