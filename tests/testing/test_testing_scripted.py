"""ScriptedServer: it plays what it is told, and tells on clients that do not follow."""

from __future__ import annotations

import base64
import re
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any, Literal

import pytest

from threadmail.client import Client
from threadmail.testing import (
    Drip,
    Drop,
    Expect,
    Pause,
    Peer,
    ReadBytes,
    ReadData,
    Reply,
    Reset,
    Script,
    ScriptedServer,
    Send,
    Serve,
    Signal,
    Stall,
    StartTLS,
    TestCA,
    answer,
    ehlo,
    goodbye,
    greeting,
    transaction,
)

ENVELOPE = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n"


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("threadmail")] == []


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


@contextmanager
def dial(server: ScriptedServer) -> Iterator[socket.socket]:
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        yield connection


def client_of(server: ScriptedServer) -> smtplib.SMTP:
    return smtplib.SMTP(server.host, server.port, timeout=5)


def read(connection: socket.socket, until: bytes) -> bytes:
    answer = b""
    while not answer.endswith(until):
        more = connection.recv(4096)
        if not more:
            raise AssertionError(f"connection closed after {answer!r}")
        answer += more
    return answer


def read_to_the_end(connection: socket.socket) -> bytes:
    answer = b""
    while more := connection.recv(4096):
        answer += more
    return answer


def failure_of(script: Script, sent: bytes, **settings: Any) -> str:
    """Send `sent` to a server with this script, wait for the end, and return its complaint."""
    server = ScriptedServer(script, **settings)
    server.start()
    with dial(server) as wire:
        wire.sendall(sent)
        wire.shutdown(socket.SHUT_WR)
        read_to_the_end(wire)
    with pytest.raises(AssertionError) as caught:
        server.close()
    server.close()  # Said once.
    return str(caught.value)


# -- playing ----------------------------------------------------------------------------------------------------------


def test_a_script_of_one_line_steps_serves_a_whole_session() -> None:
    script = [greeting(), ehlo("PIPELINING", "SIZE 1000"), transaction(recipients=2), goodbye()]
    with ScriptedServer(script) as server:
        with client_of(server) as client:
            client.ehlo("laptop")
            assert client.esmtp_features == {"pipelining": "", "size": "1000"}
            client.sendmail("a@x.test", ["b@x.test", "c@x.test"], "Subject: hi\r\n\r\n.dot\r\n")
        server.wait_until_played()
        [mail] = server.messages
    assert (mail.sender, mail.recipients, mail.helo) == ("a@x.test", ("b@x.test", "c@x.test"), "laptop")
    assert mail.mail_options == ("size=21",)
    assert mail.content == b"Subject: hi\r\n\r\n.dot\r\n"
    assert mail.message["Subject"] == "hi"
    assert [[line.lower() for line in lines] for lines in server.received] == [
        ["ehlo laptop", "mail from:<a@x.test> size=21", "rcpt to:<b@x.test>", "rcpt to:<c@x.test>", "data", "quit"]
    ]


def test_the_transcript_holds_both_sides_in_order() -> None:
    with ScriptedServer([Reply("220 hello"), Expect("NOOP"), Send(b"25"), Send(b"0 ok\r\n"), Drop()]) as server:
        with dial(server) as wire:
            wire.sendall(b"noop\r\n")
            assert read_to_the_end(wire) == b"220 hello\r\n250 ok\r\n"
    assert server.transcript == [
        (0, "sent", b"220 hello\r\n"),
        (0, "received", b"noop\r\n"),
        (0, "sent", b"25"),
        (0, "sent", b"0 ok\r\n"),
    ]


def test_content_is_kept_byte_for_byte_without_transparency_dots() -> None:
    wire_content = b"..\r\n...x\r\n" + b"y" * 5_000 + b"\r\n" + bytes(range(128, 256)) + b"\r\nbare \n. and \r\r\n.\r\n"
    with ScriptedServer([Expect("DATA"), Reply("354 go"), ReadData(), Reply("250 ok")]) as server, dial(server) as wire:
        wire.sendall(b"DATA\r\n" + wire_content)
        assert read_to_the_end(wire) == b"354 go\r\n250 ok\r\n"
        [mail] = server.messages
    expected = b".\r\n..x\r\n" + b"y" * 5_000 + b"\r\n" + bytes(range(128, 256)) + b"\r\nbare \n. and \r\r\n"
    assert mail.content == expected
    assert server.transcript[2].data == wire_content


def test_each_connection_plays_its_own_script_and_then_comes_421() -> None:
    with ScriptedServer([Reply("220 one")], [Reply("220 two")]) as server:
        answers = []
        for _ in range(3):
            with dial(server) as wire:
                answers.append(read_to_the_end(wire)[:7])
    assert answers == [b"220 one", b"220 two", b"421 4.3"]
    assert (server.connections, server.connections_refused) == (2, 1)


def test_the_last_script_repeats_when_told_to() -> None:
    with ScriptedServer([Reply("220 one")], [Reply("220 two")], last="repeat") as server:
        answers = []
        for _ in range(4):
            with dial(server) as wire:
                answers.append(read_to_the_end(wire))
    assert answers == [b"220 one\r\n", b"220 two\r\n", b"220 two\r\n", b"220 two\r\n"]


def test_reset_is_a_reset_and_drop_is_an_end() -> None:
    with ScriptedServer([Expect("NOOP"), Reset()], [Drop()]) as server:
        with dial(server) as wire:
            wire.sendall(b"NOOP\r\n")
            with pytest.raises(ConnectionResetError):
                wire.recv(1)
        with dial(server) as wire:
            assert wire.recv(1) == b""


def test_pause_holds_the_server_until_the_test_lets_it_go() -> None:
    arrived, go = threading.Event(), threading.Event()
    script = [Expect("MAIL"), Signal(arrived), Pause(go), Reply("250 ok")]
    with ScriptedServer(script) as server, dial(server) as wire:
        wire.sendall(b"MAIL FROM:<a@x.test>\r\n")
        assert arrived.wait(5)
        wire.settimeout(0.05)
        with pytest.raises(TimeoutError):
            wire.recv(1)
        go.set()
        wire.settimeout(5)
        assert read_to_the_end(wire) == b"250 ok\r\n"


def test_drip_sends_byte_by_byte() -> None:
    with ScriptedServer([Drip(b"220 hi\r\n", interval=0.001)]) as server, dial(server) as wire:
        assert read_to_the_end(wire) == b"220 hi\r\n"
    assert [entry.data for entry in server.transcript] == [bytes([byte]) for byte in b"220 hi\r\n"]


def test_stall_reads_on_in_silence_until_the_peer_hangs_up() -> None:
    after = threading.Event()
    with ScriptedServer([Stall(), Signal(after)]) as server, dial(server) as wire:
        wire.sendall(b"hello?\r\n")
        wire.settimeout(0.05)
        with pytest.raises(TimeoutError):
            wire.recv(1)
        assert not after.is_set()
        wire.shutdown(socket.SHUT_WR)
        assert after.wait(5)
    assert b"".join(entry.data for entry in server.transcript) == b"hello?\r\n"


def test_read_bytes_takes_a_chunk_that_looks_like_commands() -> None:
    script = [Serve(until="BDAT"), Reply("250 ok"), Expect("BDAT"), ReadBytes(6), Reply("250 ok")]
    with ScriptedServer(script) as server, dial(server) as wire:
        wire.sendall(b"EHLO x\r\n" + ENVELOPE + b"BDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nNOOP\r\n")
        read_to_the_end(wire)
        [mail] = server.messages
    assert mail.content == b"QUIT\r\nNOOP\r\n"


def test_scripts_may_hold_scripts() -> None:
    polite: Script = [Expect("HELO"), Reply("250 ok")]
    with ScriptedServer([greeting(), [*polite, [Expect("NOOP"), Reply("250 ok")]], goodbye()]) as server:
        with dial(server) as wire:
            wire.sendall(b"HELO x\r\nNOOP\r\nQUIT\r\n")
            assert read_to_the_end(wire).count(b"\r\n") == 4


def test_a_step_of_your_own_is_an_object_with_play() -> None:
    @dataclass(frozen=True)
    class Shout:
        text: str

        def play(self, peer: Peer) -> None:
            assert peer.number == 0, "only the first may shout"
            peer.reply(self.text.upper())

    server = ScriptedServer([Shout("220 hello")], last="repeat")
    server.start()
    with dial(server) as wire, dial(server) as second:
        assert read_to_the_end(wire) == b"220 HELLO\r\n"
        assert read_to_the_end(second) == b""
    with pytest.raises(AssertionError, match=r"connection 1, step 0 \(.*Shout.*\): only the first"):
        server.close()


# -- complaints -------------------------------------------------------------------------------------------------------


def test_a_mismatch_names_step_expectation_and_what_came_and_closes_the_connection() -> None:
    complaint = failure_of([greeting(), Expect("MAIL"), Reply("250 never")], b"RCPT TO:<b@x.test>\r\n")
    assert complaint == (
        "connection 0, step 1 (Expect(pattern='MAIL', timeout=None)): expected 'MAIL', got 'RCPT TO:<b@x.test>'"
    )


def test_patterns_match_prefixes_in_any_case_or_expressions_as_they_are() -> None:
    script = [Expect("MAIL FROM:<A@"), Expect(re.compile(r"RCPT TO:<\w+@x\.test>")), Reply("250 ok"), Reply("250 ok")]
    with ScriptedServer(script) as server, dial(server) as wire:
        wire.sendall(b"mail from:<a@x.test>\r\nRCPT TO:<bob@x.test> NOTIFY=NEVER\r\n")
        assert read_to_the_end(wire) == b"250 ok\r\n250 ok\r\n"
    complaint = failure_of([Expect(re.compile("RCPT"))], b"rcpt TO:<b@x.test>\r\n")
    assert complaint.endswith("expected '/RCPT/', got 'rcpt TO:<b@x.test>'")


@pytest.mark.parametrize(
    ("step", "sent", "complaint"),
    [
        (Expect("QUIT"), b"", "expected 'QUIT', got: end of connection"),
        (Expect("QUIT"), b"QUI", "expected 'QUIT', got: end of connection"),
        (ReadData(), b"x\r\n.\r", "expected a content ended by a lone dot, got: end of connection"),
        (ReadBytes(4), b"abc", "expected 4 bytes, got: end of connection"),
        (Serve(until="MAIL", count=2), ENVELOPE, "expected 'MAIL' number 2, got: end of connection"),
        (Serve(until="MAIL", auth={"a": "b"}), b"AUTH LOGIN\r\n", "expected 'MAIL' number 1, got: end of connection"),
        (Serve(until="MAIL"), b"QUIT\r\n", "expected 'MAIL' number 1, got: the connection is closed"),
    ],
)
def test_a_client_that_hangs_up_too_soon_is_reported(step: Any, sent: bytes, complaint: str) -> None:
    assert failure_of([step], sent).endswith(complaint)


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        (Expect("QUIT"), "got nothing within 0.02 s"),
        (Expect("QUIT", timeout=0.01), "got nothing within 0.01 s"),
        (ReadData(), "got no more within 0.02 s"),
        (ReadBytes(1), "got fewer within 0.02 s"),
        (Pause(threading.Event(), timeout=0.01), "not set within 0.01 s"),
    ],
)
def test_every_wait_of_a_script_has_a_deadline(step: Any, complaint: str) -> None:
    server = ScriptedServer([step], timeout=0.02)
    server.start()
    with dial(server) as wire:
        assert read_to_the_end(wire) == b""
        with pytest.raises(AssertionError, match=re.escape(complaint)):
            server.wait_until_played()
    server.close()


def test_a_script_that_still_expects_something_at_the_end_is_reported() -> None:
    server = ScriptedServer([greeting(), Expect("QUIT")])
    server.start()
    with dial(server) as wire:
        read(wire, b"\r\n")
        with pytest.raises(AssertionError, match="expected 'QUIT', got: the server was closed"):
            server.close()


def test_what_was_sent_before_the_end_is_still_played() -> None:
    for _ in range(20):
        server = ScriptedServer([Serve(until="RSET"), Expect("QUIT")])
        with server, dial(server) as wire:
            read(wire, b"\r\n")  # Accepted.
            wire.sendall(b"NOOP\r\n" * 50 + b"RSET\r\nQUIT\r\n")
            server.close()
        assert server.received == [["NOOP"] * 50 + ["RSET", "QUIT"]]


def test_open_serving_stalling_and_pausing_scripts_end_with_the_server_in_silence() -> None:
    held = Pause(threading.Event(), timeout=60)
    server = ScriptedServer([Serve()], [Stall()], [held], [Drip(b"x" * 99, interval=1)])
    with server, dial(server) as a, dial(server) as b, dial(server) as c, dial(server) as d:
        server.wait_for_connections(4)
        server.close()
        for wire in (a, b, c, d):
            read_to_the_end(wire)
        assert server.connections_open == 0


def test_several_complaints_come_together_and_other_errors_as_they_are() -> None:
    server = ScriptedServer([Expect("A")], [Expect("B")])
    server.start()
    for _ in range(2):
        with dial(server) as wire:
            wire.sendall(b"X\r\n")
            read_to_the_end(wire)
    server.wait_for_connections(0)
    with pytest.raises(AssertionError) as caught:
        server.check()
    assert len(str(caught.value).splitlines()) == 2
    server.check()
    server.close()

    server = ScriptedServer([StartTLS()])
    server.start()
    with dial(server) as wire:
        read_to_the_end(wire)
    with pytest.raises(RuntimeError, match="StartTLS needs a server with tls"):
        server.close()


def test_an_exception_under_way_is_not_replaced() -> None:
    def scene() -> None:
        with ScriptedServer([Expect("QUIT")]) as server, dial(server) as wire:
            wire.sendall(b"MAIL\r\n")
            read_to_the_end(wire)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scene()


def test_a_reply_into_a_closed_connection_is_no_failure() -> None:
    gone = threading.Event()
    script = [Expect("NOOP"), Pause(gone), *[Reply("250 ok")] * 50]
    with ScriptedServer(script) as server:
        with dial(server) as wire:
            wire.sendall(b"NOOP\r\n")
            server.wait_for_connections(1)
        gone.set()
        server.wait_until_played()


def test_credentials_are_masked_in_complaints() -> None:
    secret = base64.b64encode(b"\0ann\0secret").decode()
    complaint = failure_of([Expect("MAIL")], f"AUTH PLAIN {secret}\r\n".encode())
    assert complaint.endswith("got 'AUTH PLAIN ***'")
    script = [Expect("AUTH"), Reply("334 "), Expect("MAIL")]
    complaint = failure_of(script, f"AUTH PLAIN\r\n{secret}\r\n".encode())
    assert complaint.endswith("got '***'")
    assert secret not in complaint
    assert "secret" not in repr(Serve(auth={"ann": "secret"}))


# -- serving ----------------------------------------------------------------------------------------------------------


def test_without_a_script_every_connection_is_served_normally() -> None:
    with ScriptedServer() as server:
        for _ in range(2):
            with client_of(server) as client:
                client.sendmail("a@x.test", ["b@x.test"], "Subject: hi\r\n\r\nbody\r\n")
                assert client.rset()[0] == client.noop()[0] == 250
                assert client.verify("b@x.test")[0] == 252
                assert client.docmd("XYZZY")[0] == 500
                assert client.docmd("")[0] == 500
        first, second = server.wait_for(2)
        assert server.outbox == [first, second]
    assert (first.content, second.connection, server.max_simultaneous) == (b"Subject: hi\r\n\r\nbody\r\n", 1, 1)


def test_commands_out_of_order_are_refused_and_pipelined_ones_served() -> None:
    with ScriptedServer([Serve(extensions=("PIPELINING", "SIZE 50"))]) as server, dial(server) as wire:
        wire.sendall(
            b"EHLO x\r\nRCPT TO:<b@x.test>\r\nDATA\r\nMAIL FROM:<a@x.test> SIZE=51\r\nMAIL FROM:<> SIZE=50\r\n"
        )
        wire.sendall(b"MAIL FROM:<c@x.test>\r\nDATA\r\nRCPT TO:<b@x.test>\r\nDATA\r\nx\r\n.\r\nRSET\r\nQUIT\r\n")
        answer = read_to_the_end(wire).decode().splitlines()
    codes = [line[:3] for line in answer if line[3] == " "]
    assert codes == ["220", "250", "503", "503", "552", "250", "503", "503", "250", "354", "250", "250", "221"]
    assert [(mail.sender, mail.content) for mail in server.messages] == [("", b"x\r\n")]


def test_at_the_second_mail_do_this_and_behave_before_and_after() -> None:
    script = [Serve(until="MAIL", count=2), Reply("451 4.3.0 later"), Serve()]
    with ScriptedServer(script) as server, client_of(server) as client:
        client.sendmail("a@x.test", ["b@x.test"], b"one")
        with pytest.raises(smtplib.SMTPSenderRefused) as caught:
            client.sendmail("a@x.test", ["b@x.test"], b"two")
        assert (caught.value.smtp_code, caught.value.smtp_error) == (451, b"4.3.0 later")
        client.sendmail("a@x.test", ["b@x.test"], b"three")
        assert [mail.content for mail in server.messages] == [b"one\r\n", b"three\r\n"]


def test_a_command_nobody_answered_is_answered_when_serving_goes_on() -> None:
    arrived, go = threading.Event(), threading.Event()
    script = [Serve(until="RCPT TO:<c@"), Signal(arrived), Pause(go), Serve()]
    with ScriptedServer(script) as server, client_of(server) as client:
        sending = threading.Thread(target=client.sendmail, args=("a@x.test", ["b@x.test", "c@x.test"], b"x"))
        sending.start()
        assert arrived.wait(5)
        assert server.messages == []
        go.set()
        sending.join(5)
        [mail] = server.messages
    assert mail.recipients == ("b@x.test", "c@x.test")


def test_the_final_reply_can_be_withheld_after_the_message_was_stored() -> None:
    with ScriptedServer([Serve(until="."), Reset()], [Serve(replies={".": "554 5.6.0 no"})]) as server:
        client = client_of(server)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.sendmail("a@x.test", ["b@x.test"], b"x")
        client.close()
        with client_of(server) as client, pytest.raises(smtplib.SMTPDataError):
            client.sendmail("a@x.test", ["b@x.test"], b"y")
        assert [mail.content for mail in server.messages] == [b"x\r\n", b"y\r\n"]


def test_replies_replace_the_usual_ones_and_count_for_the_state() -> None:
    replies = {"CONNECT": "220-hi\n220 there", "RCPT": "550 5.1.1 who?", "NOOP": "garbage"}
    with ScriptedServer([Serve(replies=replies)]) as server, dial(server) as wire:
        wire.sendall(b"EHLO x\r\n" + ENVELOPE + b"DATA\r\nNOOP\r\nRSET\r\nQUIT\r\n")
        answer = read_to_the_end(wire)
    assert answer.startswith(b"220-hi\r\n220 there\r\n")
    assert answer.endswith(
        b"250 2.1.0 OK\r\n550 5.1.1 who?\r\n503 5.5.1 need RCPT\r\ngarbage\r\n250 2.0.0 OK\r\n221 2.0.0 Bye\r\n"
    )


def test_scripted_replies_decide_what_the_envelope_is() -> None:
    script = [
        Serve(until="RCPT"),
        Reply("550 no"),
        answer("RCPT", "250 ok"),
        Expect("DATA"),
        Drip(b"354 go\r\n", interval=0),
        Serve(),
    ]
    with ScriptedServer(script) as server, dial(server) as wire:
        wire.sendall(b"EHLO x\r\n" + ENVELOPE + b"RCPT TO:<c@x.test>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n")
        read_to_the_end(wire)
        [mail] = server.messages
    assert mail.recipients == ("c@x.test",)


def test_lmtp_is_owed_a_reply_for_each_recipient() -> None:
    script = [Serve(until="."), Reply("452 4.2.2 full"), Serve()]
    with ScriptedServer(script, lmtp=True) as server, dial(server) as wire:
        assert server.url.startswith("lmtp://")
        wire.sendall(b"EHLO x\r\nHELO x\r\nLHLO x\r\n" + ENVELOPE + b"RCPT TO:<c@x.test>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n")
        answer = read_to_the_end(wire)
    assert answer.count(b"500 ") == 2
    assert answer.endswith(b"354 go ahead\r\n452 4.2.2 full\r\n250 2.0.0 OK\r\n221 2.0.0 Bye\r\n")


def test_served_chunks_make_one_message() -> None:
    with ScriptedServer([Serve(extensions=("CHUNKING",))]) as server, dial(server) as wire:
        wire.sendall(
            b"EHLO x\r\n" + ENVELOPE + b"BDAT 6\r\nQUIT\r\nBDAT 0 LAST\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\nQUIT\r\n"
        )
        answer = read_to_the_end(wire)
        assert [mail.content for mail in server.messages] == [b"QUIT\r\n"]
    assert answer.endswith(b"250 2.0.0 OK\r\n250 2.0.0 OK\r\n503 5.5.1 need MAIL\r\n250 2.0.0 OK\r\n221 2.0.0 Bye\r\n")


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_logins_are_checked(mechanism: str) -> None:
    serve = Serve(auth={"ann": "secret"}, mechanisms=(mechanism,), require_auth=True)
    with ScriptedServer([serve]) as server, client_of(server) as client:
        assert server.url == f"smtp://ann:secret@127.0.0.1:{server.port}"
        client.ehlo()
        assert client.mail("a@x.test")[0] == 530
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("ann", "guess")
        assert client.docmd("AUTH", "GSSAPI")[0] == 504
        assert client.docmd("AUTH")[0] == 504
        if mechanism == "PLAIN":
            assert client.docmd("AUTH", "PLAIN ?")[0] == 501
        client.login("ann", "secret")
        client.sendmail("a@x.test", ["b@x.test"], b"x")
        client.quit()
    assert [mail.username for mail in server.messages] == ["ann"]
    with ScriptedServer() as server, client_of(server) as client:
        assert client.docmd("AUTH", "PLAIN AGFubgBzZWNyZXQ=")[0] == 502


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_serving_under_tls(tls: Literal["starttls", "tls"], ca: TestCA) -> None:
    with ScriptedServer([Serve(auth={"ann": "secret"})], tls=tls, ca=ca) as server:
        context = server.client_context
        assert context is not None
        if tls == "tls":
            client: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=5, context=context)
        else:
            client = client_of(server)
            client.ehlo()
            assert "auth" not in client.esmtp_features
            client.starttls(context=context)
        with client:
            client.login("ann", "secret")
            client.sendmail("a@x.test", ["b@x.test"], b"x" * 100_000)
        [mail] = server.messages
    assert (mail.tls, mail.username, len(mail.content)) == (True, "ann", 100_002)


@pytest.mark.parametrize("end", [Drop(), Reset(), Stall()])
def test_a_tls_connection_ends_as_told(end: Any, ca: TestCA) -> None:
    script = [greeting(), ehlo("STARTTLS"), Expect("STARTTLS"), Reply("220 go"), StartTLS(), Expect("EHLO"), end]
    server = ScriptedServer(script, tls="starttls", ca=ca)
    with server, dial(server) as wire:
        read(wire, b"\r\n")
        wire.sendall(b"EHLO x\r\n")
        read(wire, b"STARTTLS\r\n")
        wire.sendall(b"STARTTLS\r\n")
        read(wire, b"220 go\r\n")
        with ca.client_context().wrap_socket(wire, server_hostname=server.host, suppress_ragged_eofs=False) as secured:
            secured.sendall(b"EHLO x\r\n")
            if isinstance(end, Drop):
                assert secured.recv(1) == b""
            elif isinstance(end, Reset):
                # Python before 3.13 tells a reset under TLS as a missing close_notify.
                with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                    secured.recv(1)
            else:
                secured.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    secured.recv(1)


def test_bytes_sent_before_the_handshake_are_thrown_away(ca: TestCA) -> None:
    script = [Expect("STARTTLS"), Reply("220 go"), StartTLS(), Expect("EHLO")]
    with ScriptedServer(script, tls="starttls", ca=ca) as server, dial(server) as wire:
        wire.sendall(b"STARTTLS\r\nMAIL FROM:<injected@x.test>\r\n")
        read(wire, b"220 go\r\n")
        with ca.client_context().wrap_socket(wire, server_hostname=server.host) as secured:
            secured.sendall(b"EHLO x\r\n")
            server.wait_until_played()


def test_a_client_that_declines_the_certificate_has_hung_up(ca: TestCA) -> None:
    server = ScriptedServer([Serve()], [Expect("EHLO")], tls="tls", ssl_context=ca.expired_server_context())
    server.start()
    assert server.client_context is None
    for _ in range(2):
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            smtplib.SMTP_SSL(server.host, server.port, context=ca.client_context(), timeout=5)
    with pytest.raises(AssertionError, match=r"connection 1, step 0 .* got: the connection is closed"):
        server.wait_until_played()
    server.close()
    assert server.transcript == []


# -- life -------------------------------------------------------------------------------------------------------------


def test_a_script_for_which_nobody_came_is_reported() -> None:
    server = ScriptedServer([Serve()], [Serve(until="MAIL"), Drop()], [Serve()])
    server.start()
    with pytest.raises(AssertionError, match="script 1 was never played: 0 connections came"):
        server.close()
    server.close()


def test_clients_that_came_just_before_the_end_are_still_played() -> None:
    for _ in range(10):
        server = ScriptedServer(*[[Expect("QUIT")]] * 8)
        server.start()
        with ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(dial(server)).sendall(b"QUIT\r\n")
            server.close()
        assert server.received == [["QUIT"]] * 8


def test_a_client_in_the_middle_of_its_handshake_does_not_hold_up_the_end(ca: TestCA) -> None:
    server = ScriptedServer(tls="tls", ca=ca)
    server.start()
    with dial(server) as mute:
        server.wait_for_connections(1)
        begun = time.monotonic()
        server.close()
        assert time.monotonic() - begun < 1.5
        assert mute.recv(1) == b""


def test_waits_say_what_is_missing() -> None:
    with ScriptedServer([Serve()], [Serve()]) as server, client_of(server) as client:
        with pytest.raises(TimeoutError, match="0 of 1 messages"):
            server.wait_for(1, timeout=0.02)
        with pytest.raises(TimeoutError, match="1 connections are open"):
            server.wait_for_connections(0, timeout=0.02)
        client.quit()
        server.wait_for_connections(0)
        with pytest.raises(TimeoutError, match="1 of 2 scripts"):
            server.wait_until_played(timeout=0.02)


def test_a_client_that_reads_nothing_does_not_hold_up_the_end() -> None:
    flood = Send(b"250-" + b"x" * 20_000_000)
    server = ScriptedServer([flood], timeout=30)
    with server, dial(server) as wire:
        wire.recv(1)
        server.close()
        assert server.connections_open == 0


def test_config_is_all_a_client_needs() -> None:
    message = EmailMessage()
    message["From"], message["To"] = "ann@example.test", "bob@example.test"
    with ScriptedServer([Serve(auth={"ann": "secret"}, require_auth=True)], tls="starttls") as server:
        with Client(server.config) as client:
            client.send(message)
        [mail] = server.messages
    assert (mail.username, mail.tls, mail.recipients) == ("ann", True, ("bob@example.test",))


def test_a_server_starts_once() -> None:
    server = ScriptedServer()
    assert repr(server) == "<ScriptedServer not started>"
    server.close()
    with pytest.raises(RuntimeError, match="starts once"):
        server.start()
    with ScriptedServer() as server:
        with pytest.raises(RuntimeError, match="starts once"):
            server.start()
    with pytest.raises(ConnectionRefusedError):
        client_of(server)
    with pytest.raises(ValueError, match="last must be"):
        ScriptedServer(last="again")  # type: ignore[arg-type]
