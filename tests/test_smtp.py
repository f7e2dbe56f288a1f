"""The guarded clients: smtplib's, shared safely; every dialogue that ends early ends the connection."""

from __future__ import annotations

import io
import logging
import pickle
import signal
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import EmailMessage, Message
from pathlib import Path
from typing import Any

import pytest

from tests.support.mail import envelope, in_threads, intact, names
from threadmail import (
    LMTP,
    SMTP,
    SMTP_SSL,
    Aborted,
    BadReply,
    ConnectFailed,
    ConnectionLost,
    ConnectionRefused,
    ConnectTimedOut,
    DataRefused,
    Envelope,
    GreetingRefused,
    HeloRefused,
    HostNotFound,
    InvalidEnvelope,
    MailError,
    NotConnected,
    NotSupported,
    Outcome,
    Phase,
    Reentered,
    ReplyTimedOut,
    SenderRefused,
    StartTLSRefused,
    TimedOut,
    TLSFailed,
)
from threadmail import testing as play
from threadmail._session import delivery as _delivery
from threadmail._transport.wire import protocol_log
from threadmail.testing import (
    CaptureServer,
    Drip,
    Drop,
    Expect,
    Pause,
    ReadData,
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
)

A, B, C = "a@x.test", "b@x.test", "c@x.test"
ANN = "ann@example.org"
CONTENT = b"Subject: x\r\n\r\nbody\r\n"
Part = play.Step | play.Steps


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


@contextmanager
def client_of(server: Any, timeout: float | None = 10.0, kind: Any = SMTP) -> Iterator[SMTP]:
    """A connected client, closed without a farewell."""
    client = kind(server.host, server.port, local_hostname="test", timeout=timeout)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def running(work: Callable[[], object], name: str = "smtp-test") -> Iterator[list[Any]]:
    """`work` in a thread; the list holds what it returned or raised once the block has ended."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as exc:  # noqa: BLE001 - told to the test
            result.append(exc)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    try:
        yield result
    finally:
        thread.join(20.0)
        assert not thread.is_alive()


def said_to(server: ScriptedServer, connection: int = 0) -> list[str]:
    return [line.split(":")[0].split()[0].upper() for line in server.received[connection] if line.strip()]


def message(**fields: str | None) -> EmailMessage:
    m = EmailMessage()
    for name, value in {"From": ANN, "To": A, **fields}.items():
        if value is not None:
            m[name] = value
    m.set_content("body\n")
    return m


class Interrupt(play.Step):
    """Ctrl-C in the main thread, as the system delivers it."""

    def play(self, peer: play.Peer) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def until(phase: Phase) -> list[Part]:
    """The steps of a session up to the command of `phase`, read and not answered."""
    steps: list[Part] = [greeting(), ehlo(), Expect("MAIL")]
    for before, reply, command in (
        (Phase.MAIL, "250 ok", Expect("RCPT")),
        (Phase.RCPT, "250 ok", Expect("DATA")),
        (Phase.DATA, "354 go", ReadData()),
    ):
        if phase is before:
            break
        steps += [play.Reply(reply), command]
    return steps


COMMANDS = [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.FINAL]


def unconnected(mode: str, context: ssl.SSLContext | None = None) -> SMTP | SMTP_SSL:
    """The client for a server with TLS from the first byte, or later."""
    if mode == "tls":
        return SMTP_SSL(local_hostname="test", timeout=60.0, context=context)
    return SMTP(local_hostname="test", timeout=60.0)


def secured(client: SMTP | SMTP_SSL, server: Any, context: ssl.SSLContext | None = None) -> None:
    client.connect(server.host, server.port)
    if not isinstance(client, SMTP_SSL):
        client.starttls(context=context)


# ---------------------------------------------------------------- connecting


def test_a_session_from_greeting_to_farewell() -> None:
    """As with smtplib: connect by constructor, send, and `with` says QUIT."""
    with ScriptedServer([greeting(), ehlo("8BITMIME"), play.transaction(), goodbye()]) as server:
        with SMTP(server.host, server.port, "me.example.org", 10.0) as client:
            assert client.sendmail(ANN, A, CONTENT) == {}
            assert not client.is_encrypted
        assert client.sock is None
    assert server.messages[0].helo == "me.example.org"


def test_without_a_connection_every_call_says_so() -> None:
    """NotConnected is smtplib's SMTPServerDisconnected; closing is nothing."""
    client = SMTP(local_hostname="test")
    calls: list[Callable[[], object]] = [
        client.noop,
        client.rset,
        client.quit,
        client.ehlo,
        client.getreply,
        client.starttls,
        lambda: client.login("a", "b"),
        lambda: client.sendmail(ANN, A, CONTENT),
        lambda: client.send_message(message()),
        lambda: client.mail(ANN),
        lambda: client.data(CONTENT),
        lambda: client.send("x"),
        lambda: client.transact(envelope()),
    ]
    for call in calls:
        with pytest.raises(NotConnected) as info:
            call()
        assert isinstance(info.value, smtplib.SMTPServerDisconnected)
    client.close()
    client.abort()
    assert not client.is_quiet()


@pytest.mark.parametrize("code", [421, 450, 554])
def test_a_greeting_that_refuses_is_an_error_and_no_connection(code: int) -> None:
    """By constructor; `connect` returns it, as smtplib's."""
    script = [greeting(f"{code} 4.3.2 go away"), Stall()]
    with ScriptedServer(script, script) as server:
        with pytest.raises(GreetingRefused) as info:
            SMTP(server.host, server.port, "test", 10.0)
        assert (info.value.smtp_code, info.value.transient, info.value.phase) == (code, code < 500, Phase.CONNECT)
        client = SMTP(local_hostname="test", timeout=10.0)
        assert client.connect(server.host, server.port)[0] == code
        client.close()


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"+OK ready\r\n", b"\xff\xfb\x01"]
)
def test_a_server_that_is_no_smtp_server_is_named(said: bytes) -> None:
    """The address and what came instead; permanent, for waiting will not help."""
    with ScriptedServer([Send(said), Drop()]) as server:
        with pytest.raises((BadReply, ConnectionLost)) as info:
            SMTP(server.host, server.port, "test", 10.0)
        assert info.value.phase is Phase.CONNECT
        if isinstance(info.value, BadReply):
            assert f"{server.host}:{server.port} is no SMTP server" in str(info.value)
            assert not info.value.transient


def test_a_server_without_a_greeting_is_a_connect_that_timed_out() -> None:
    """It is there, and says nothing; also where it drips."""
    for silence in (Stall(), Drip(b"220" + b"-" * 2000, 0.02)):
        with ScriptedServer([silence]) as server:
            begin = time.monotonic()
            with pytest.raises(ConnectTimedOut, match="sent no greeting"):
                SMTP(server.host, server.port, "test", 0.2)
            assert time.monotonic() - begin < 4.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_nobody_listening_is_named() -> None:
    """With the address, and the system's errno."""
    port = free_port()
    with pytest.raises(ConnectionRefused, match=f"127.0.0.1:{port} refused") as info:
        SMTP("127.0.0.1", port, "test")
    assert info.value.errno
    assert isinstance(info.value, ConnectionRefusedError)


@pytest.mark.parametrize(
    ("raised", "kind", "transient"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), HostNotFound, False),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), HostNotFound, True),
        (TimeoutError("timed out"), ConnectTimedOut, True),
        (ConnectionRefusedError(111, "Connection refused"), ConnectionRefused, True),
        (OSError(101, "Network is unreachable"), ConnectFailed, True),
        (OverflowError("port must be 0-65535"), ConnectFailed, False),
        (UnicodeError("label empty or too long"), HostNotFound, False),
        (ValueError("embedded null character"), HostNotFound, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_whatever_the_system_says_to_a_connect_is_our_own_error(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[ConnectFailed], transient: bool
) -> None:
    """One class for each cause, with where to; and whether to try again."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise raised

    place = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.1", 25))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [place])
    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(kind, match=r"mx\.example\.org") as info:
        SMTP("mx.example.org", 25, "test")
    assert type(info.value) is kind
    assert info.value.transient is transient
    assert info.value.phase is Phase.CONNECT
    assert info.value.__cause__ is raised


@pytest.mark.parametrize("host", ["mx..example.org", "x" * 70 + ".example.org", "a\0b", "mx.example.org:smtp"])
def test_a_host_that_can_be_none_is_our_own_error(host: str) -> None:
    """No UnicodeError, ValueError or OverflowError comes out of a wrong setting; nor does a resolver hear of it."""
    with pytest.raises(ConnectFailed) as info:
        SMTP(host, local_hostname="test", timeout=5.0)
    assert not info.value.transient
    assert str(info.value).isprintable()


def test_a_deadline_covers_connecting_whole() -> None:
    """Greeting included, however it drips; and one that has passed dials nobody."""
    with ScriptedServer([Drip(b"220" + b"-" * 2000, 0.02)]) as server:
        client = SMTP(local_hostname="test")
        begin = time.monotonic()
        with pytest.raises(TimedOut):
            client.connect(server.host, server.port, deadline=0.2)
        assert time.monotonic() - begin < 4.0
        with pytest.raises(TimedOut):
            client.connect(server.host, server.port, deadline=0.0)
        assert server.connections == 1


def test_ehlo_falls_back_to_helo_and_no_further() -> None:
    """HELO where EHLO is refused; both refused is an error."""
    with ScriptedServer(
        [greeting(), answer("EHLO", "502 what"), answer("HELO", "250 ok"), play.transaction()]
    ) as server:
        with client_of(server) as client:
            client.sendmail(ANN, A, CONTENT, ["SIZE=5"])
            assert not client.does_esmtp
        assert server.received[0][2].lower() == f"mail from:<{ANN}>"
    with ScriptedServer([greeting(), answer("EHLO", "502 what"), answer("HELO", "550 no"), Stall()]) as server:
        with client_of(server) as client, pytest.raises(HeloRefused):
            client.sendmail(ANN, A, CONTENT)


def test_ehlo_put_off_is_not_helo() -> None:
    """HELO would give up STARTTLS and AUTH for a passing trouble; the next call asks again."""
    script = [greeting(), answer("EHLO", "451 later"), answer("EHLO", "250 ok"), play.transaction(), goodbye()]
    with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(HeloRefused) as info:
            client.sendmail(ANN, A, CONTENT)
        assert info.value.transient
        client.sendmail(ANN, A, CONTENT)
        client.quit()


@pytest.mark.parametrize("code", [150, 220, 354])
def test_ehlo_answered_with_what_is_no_answer_to_it(code: int) -> None:
    """Whoever goes on reads every reply one command late."""
    with ScriptedServer([greeting(), answer("EHLO", f"{code} hm"), Stall()]) as server, client_of(server) as client:
        with pytest.raises(BadReply, match=f"{code} hm") as info:
            client.sendmail(ANN, A, CONTENT)
        assert info.value.phase is Phase.CONNECT
        assert client.sock is None


# ---------------------------------------------------------------- one dialogue for many threads


@pytest.mark.parametrize("lmtp", [False, True])
def test_eight_threads_share_one_client_and_every_message_is_whole(lmtp: bool) -> None:
    """400 of 400, each once, over one connection, by sendmail, send_message and transact alike."""
    with CaptureServer(lmtp=lmtp) as server, client_of(server, kind=LMTP if lmtp else SMTP) as client:

        def work(i: int) -> None:
            for number, name in enumerate(names(8, 50)[i * 50 : (i + 1) * 50]):
                e = envelope(name)
                if number % 2:
                    client.transact(e)
                else:
                    client.sendmail(e.sender, e.recipients, e.content)

        assert in_threads(8, work) == []
        found = intact(server.messages)
    if lmtp:  # stored once for each recipient
        assert sum(found.values()) in (400, 800)
    else:
        assert found == dict.fromkeys(names(8, 50), 1)


def test_several_calls_can_be_made_one_step() -> None:
    """`with client.sync_root:` keeps other threads out between mail(), rcpt() and data()."""
    with CaptureServer() as server, client_of(server) as client:
        client.ehlo()

        def work(i: int) -> None:
            for name in names(4, 10)[i * 10 : (i + 1) * 10]:
                e = envelope(name)
                with client.sync_root:
                    assert client.mail(e.sender)[0] == 250
                    for r in e.recipients:
                        assert client.rcpt(r)[0] == 250
                    assert client.data(e.content)[0] == 250

        assert in_threads(4, work) == []
        assert intact(server.messages) == dict.fromkeys(names(4, 10), 1)


def blocked_calls(client: SMTP) -> dict[str, Callable[[float], object]]:
    return {
        "sendmail": lambda d: client.sendmail(ANN, A, CONTENT, deadline=d),
        "send_message": lambda d: client.send_message(message(), deadline=d),
        "transact": lambda d: client.transact(envelope(), deadline=d),
        "noop": lambda d: client.noop(deadline=d),
        "login": lambda d: client.login("ann", "x", deadline=d),
        "starttls": lambda d: client.starttls(deadline=d),
        "connect": lambda d: client.connect("127.0.0.1", 9, deadline=d),
        "quit": lambda d: client.quit(deadline=d),
        "data": lambda d: client.data(CONTENT, deadline=d),
        "within": lambda d: client.within(d).__enter__(),
    }


@pytest.mark.parametrize("name", list(blocked_calls(SMTP(local_hostname="test"))))
def test_a_deadline_covers_the_wait_for_the_lock(name: str) -> None:
    """While another thread holds `sync_root`: TimedOut in time, nothing written, the connection as good as before."""
    with ScriptedServer([greeting(), answer("NOOP", "250 ok")]) as server, client_of(server) as client:
        held, free = threading.Event(), threading.Event()

        def hold() -> None:
            with client.sync_root:
                held.set()
                free.wait(15.0)

        with running(hold):
            held.wait(10.0)
            begin = time.monotonic()
            with pytest.raises(TimedOut, match="another thread"):
                blocked_calls(client)[name](0.1)
            assert 0.09 < time.monotonic() - begin < 4.0
            free.set()
        assert client.noop()[0] == 250


def test_a_deadline_covers_all_calls_within() -> None:
    """`within(deadline)` is one limit for everything inside, however each call goes."""
    with ScriptedServer(
        [greeting(), answer("NOOP", "250 ok"), Expect("NOOP"), Drip(b"250" + b"-" * 2000, 0.02)]
    ) as server:
        with client_of(server, timeout=60.0) as client:
            begin = time.monotonic()

            def both() -> None:
                with client.within(0.3):
                    client.noop()
                    client.noop()

            with pytest.raises(ReplyTimedOut):
                both()
            assert time.monotonic() - begin < 4.0
            assert client.sock is None


@pytest.mark.parametrize("phase", COMMANDS)
def test_a_deadline_holds_against_a_drip(phase: Phase) -> None:
    """In time at every step, with the outcome by phase, and no connection afterwards."""
    with ScriptedServer([*until(phase), Drip(b"250" + b"-" * 2000, 0.02)]) as server:
        with client_of(server, timeout=60.0) as client:
            begin = time.monotonic()
            with pytest.raises(ReplyTimedOut) as info:
                client.sendmail(ANN, A, CONTENT, deadline=0.3)
            assert time.monotonic() - begin < 4.0
            assert info.value.outcome is (Outcome.IN_DOUBT if phase is Phase.FINAL else Outcome.NOT_SENT)
            assert client.sock is None


# ---------------------------------------------------------------- re-entry of the same thread


def reentrant_calls(client: SMTP) -> dict[str, Callable[[], object]]:
    """Everything that could write into a dialogue under way."""
    return {
        "sendmail": lambda: client.sendmail(ANN, B, CONTENT),
        "send_message": lambda: client.send_message(message()),
        "transact": lambda: client.transact(envelope()),
        "noop": client.noop,
        "rset": client.rset,
        "ehlo": client.ehlo,
        "helo": client.helo,
        "quit": client.quit,
        "help": client.help,
        "verify": lambda: client.verify(A),
        "expn": lambda: client.expn(A),
        "mail": lambda: client.mail(ANN),
        "rcpt": lambda: client.rcpt(B),
        "data": lambda: client.data(CONTENT),
        "login": lambda: client.login("ann", "x"),
        "auth": lambda: client.auth("X", lambda challenge=None: "x"),
        "starttls": client.starttls,
        "connect": lambda: client.connect("127.0.0.1", 9),
        "docmd": lambda: client.docmd("NOOP"),
        "putcmd": lambda: client.putcmd("NOOP"),
        "send": lambda: client.send(b"NOOP\r\n"),
        "within": lambda: client.within().__enter__(),
        "is_quiet": client.is_quiet,
    }


def try_all(client: SMTP, found: dict[str, list[BaseException | None]]) -> None:
    for name, call in reentrant_calls(client).items():
        try:
            call()
            found.setdefault(name, []).append(None)
        except BaseException as exc:  # noqa: BLE001 - told to the test
            found.setdefault(name, []).append(exc)


class Mailing(logging.Handler):
    """A log handler that mails through the client whose commands it logs: once for each record it is given."""

    def __init__(self, client: SMTP) -> None:
        super().__init__()
        self.client = client
        self.found: dict[str, list[BaseException | None]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try_all(self.client, self.found)


@contextmanager
def mailing_log(client: SMTP) -> Iterator[Mailing]:
    handler, level = Mailing(client), protocol_log.level
    protocol_log.addHandler(handler)
    protocol_log.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        protocol_log.removeHandler(handler)
        protocol_log.setLevel(level)


def assert_reentered(found: dict[str, list[BaseException | None]], times: int | None = None) -> None:
    assert set(found) == set(reentrant_calls(SMTP(local_hostname="test")))
    for name, errors in found.items():
        assert all(type(e) is Reentered for e in errors), (name, errors)
        assert times is None or len(errors) == times, name


def refused(client: SMTP) -> None:
    with pytest.raises(SenderRefused):
        client.sendmail(ANN, A, CONTENT)


def outer_calls(client: SMTP) -> dict[str, tuple[Callable[[], object], list[Part], list[str]]]:
    """Calls with an exchange in them, what the server plays to them, and the commands it must have heard."""
    sent = [ehlo("AUTH LOGIN"), play.transaction()]
    commands = ["EHLO", "MAIL", "RCPT", "DATA"]
    return {
        "sendmail": (lambda: client.sendmail(ANN, A, CONTENT), [*sent], commands),
        "send_message": (lambda: client.send_message(message()), [*sent], commands),
        "transact": (lambda: client.transact(Envelope(ANN, A, CONTENT)), [*sent], commands),
        "login": (
            lambda: client.login("ann", "x"),
            [ehlo("AUTH LOGIN"), answer("AUTH", "334 "), answer("eA==", "235 ok")],
            ["EHLO", "AUTH", "EA=="],
        ),
        "docmd": (lambda: client.docmd("NOOP"), [answer("NOOP", "250 ok")], ["NOOP"]),
        "ehlo": (client.ehlo, [ehlo()], ["EHLO"]),
        "quit": (client.quit, [goodbye()], ["QUIT"]),
        "refused sendmail": (
            lambda: refused(client),
            [ehlo(), answer("MAIL", "550 no"), answer("RSET", "250 ok")],
            ["EHLO", "MAIL", "RSET"],
        ),
    }


@pytest.mark.parametrize("name", list(outer_calls(SMTP(local_hostname="test"))))
def test_a_log_handler_that_mails_through_the_client_it_logs_is_stopped(name: str) -> None:
    """The lock lets its own thread pass; the error comes before a byte is written, and the outer call succeeds."""
    script: list[Part] = outer_calls(SMTP(local_hostname="test"))[name][1]
    with ScriptedServer([greeting(), *script]) as server:
        with client_of(server) as client:
            outer, _, commands = outer_calls(client)[name]
            with mailing_log(client) as handler:
                outer()
        server.wait_for_connections(0)
        server.check()
        assert_reentered(handler.found, 2 * len(commands) + (2 if "DATA" in commands else 0))
        assert said_to(server) == commands
        for arrived in server.messages:
            assert arrived.recipients == (A,)


def test_an_authobject_that_uses_its_client_is_stopped() -> None:
    """Between the challenge and the answer nothing else is said."""
    script = [greeting(), ehlo("AUTH X"), answer("AUTH X", "334 "), answer("eA==", "235 ok")]
    found: dict[str, list[BaseException | None]] = {}
    with ScriptedServer(script) as server, client_of(server) as client:
        client.ehlo()

        def authobject(challenge: bytes | None = None) -> str | None:
            try_all(client, found)
            return None if challenge is None else "x"

        assert client.auth("X", authobject)[0] == 235
    assert_reentered(found, 2)
    assert said_to(server) == ["EHLO", "AUTH", "EA=="]


@pytest.mark.parametrize("hook", ["before_final", "before_mail"])
def test_a_hook_that_uses_its_client_is_stopped(hook: str) -> None:
    """Called in the middle of a message; the message goes all the same."""
    found: dict[str, list[BaseException | None]] = {}
    with ScriptedServer([greeting(), ehlo(), play.transaction()]) as server, client_of(server) as client:
        hooks: dict[str, Any] = {hook: lambda _: try_all(client, found)}
        assert client.transact(Envelope(ANN, A, CONTENT), **hooks).outcome is Outcome.SENT
    assert_reentered(found, 1)
    assert said_to(server) == ["EHLO", "MAIL", "RCPT", "DATA"]


@pytest.mark.parametrize("greeted", [True, False])
@pytest.mark.parametrize("call", ["sendmail", "send_message", "transact"])
def test_between_mail_and_data_by_hand_no_other_message_begins(call: str, greeted: bool) -> None:
    """It would write into the open transaction; not even the EHLO that is missing is written, for it would end it."""
    steps: list[Part] = [ehlo()] if greeted else []
    script = [greeting(), *steps, play.transaction(), answer("NOOP", "250 ok")]
    with ScriptedServer(script) as server, client_of(server) as client:
        if greeted:
            client.ehlo()
        client.mail(ANN)
        with pytest.raises(Reentered, match=r"mail\(\)"):
            reentrant_calls(client)[call]()
        client.rcpt(A)
        with pytest.raises(Reentered):
            reentrant_calls(client)[call]()
        assert client.data(CONTENT)[0] == 250
        assert client.noop()[0] == 250
    assert [m.recipients for m in server.messages] == [(A,)]
    assert said_to(server) == [*(["EHLO"] if greeted else []), "MAIL", "RCPT", "DATA", "NOOP"]


def test_rset_ends_a_transaction_by_hand() -> None:
    """Then a message may be sent."""
    script = [greeting(), ehlo(), answer("MAIL", "250 ok"), answer("RSET", "250 ok"), play.transaction()]
    with ScriptedServer(script) as server, client_of(server) as client:
        client.ehlo()
        client.mail(ANN)
        assert client.rset()[0] == 250
        assert client.sendmail(ANN, A, CONTENT) == {}


def test_another_command_before_the_reply_is_read_is_refused() -> None:
    """putcmd() without getreply(): the next reply would be that of the first; nothing is written."""
    with ScriptedServer([greeting(), answer("NOOP", "250 first"), answer("NOOP", "250 second")]) as server:
        with client_of(server) as client:
            client.putcmd("NOOP")
            for call in (client.noop, lambda: client.putcmd("RSET"), lambda: client.sendmail(ANN, A, CONTENT)):
                with pytest.raises(Reentered):
                    call()
            assert client.getreply() == (250, b"first")
            assert client.noop() == (250, b"second")


# ---------------------------------------------------------------- abort


@pytest.mark.parametrize("phase", COMMANDS)
def test_abort_ends_a_blocked_reply_at_once(phase: Phase) -> None:
    """From another thread, while that one holds the lock; the outcome is what is known in that phase."""
    waiting = threading.Event()
    with ScriptedServer([*until(phase), Signal(waiting), Stall()]) as server:
        with client_of(server, timeout=60.0) as client:
            with running(lambda: client.sendmail(ANN, A, CONTENT)) as result:
                assert waiting.wait(10.0)
                begin = time.monotonic()
                client.abort()
            assert time.monotonic() - begin < 4.0
            [error] = result
            assert isinstance(error, Aborted)
            assert error.outcome is (Outcome.IN_DOUBT if phase is Phase.FINAL else Outcome.NOT_SENT)
            assert error.phase is phase
            assert error.receipt is not None
            assert error.receipt.outcome is error.outcome
            assert error.receipt.deferred == ()
            assert client.sock is None


def test_abort_ends_a_wait_for_the_greeting() -> None:
    """As soon as there is a connection there is something to drop."""
    client = SMTP(local_hostname="test", timeout=60.0)
    connected = threading.Event()
    with ScriptedServer([Signal(connected), Stall()]) as server:

        def connect() -> None:
            client.connect(server.host, server.port)

        with running(connect) as result:
            assert connected.wait(10.0)
            while client._wire is None:  # accepted, and not yet back from create_connection
                threading.Event().wait(0.001)
            begin = time.monotonic()
            client.abort()
        assert time.monotonic() - begin < 4.0
    assert isinstance(result[0], Aborted)
    assert result[0].phase is Phase.CONNECT
    assert client.sock is None


def test_abort_before_there_is_a_connection_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the name is resolved or the peer dialled there is nothing to drop: then it is dropped when it comes."""
    real = socket.create_connection
    client = SMTP(local_hostname="test", timeout=60.0)

    def dial(*args: Any, **kwargs: Any) -> socket.socket:
        client.abort()
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", dial)
    with ScriptedServer([Stall()]) as server:
        with pytest.raises(Aborted):
            client.connect(server.host, server.port)
        assert client.sock is None


@pytest.mark.parametrize("mode", ["starttls", "tls"])
def test_abort_ends_a_tls_handshake(mode: str) -> None:
    """A server that says nothing after STARTTLS, or at all, holds nobody."""
    shaking = threading.Event()

    class Hello(play.Step):
        def play(self, peer: play.Peer) -> None:
            peer.read_bytes(1, 10.0)  # of the ClientHello
            shaking.set()

    before: list[Part] = [greeting(), ehlo("STARTTLS"), answer("STARTTLS", "220 go")] if mode == "starttls" else []
    with ScriptedServer([*before, Hello(), Stall()]) as server:
        client = unconnected(mode)
        with running(lambda: secured(client, server)) as result:
            assert shaking.wait(10.0)
            begin = time.monotonic()
            client.abort()
        assert time.monotonic() - begin < 4.0
        assert isinstance(result[0], Aborted)
        assert client.sock is None


def test_after_an_abort_the_client_can_connect_again() -> None:
    """Nothing of the old connection is left."""
    with ScriptedServer([greeting(), Stall()], [greeting(), ehlo(), play.transaction()]) as server:
        with client_of(server) as client:
            client.abort()
            with pytest.raises(Aborted):
                client.noop()
            client.connect(server.host, server.port)
            assert client.sendmail(ANN, A, CONTENT) == {}


# ---------------------------------------------------------------- interrupts


@pytest.mark.parametrize("phase", COMMANDS)
def test_ctrl_c_between_a_command_and_its_reply_closes(phase: Phase) -> None:
    """The late reply can answer no other command; a new connection is as good as ever."""
    script = [*until(phase), Interrupt(), Stall()]
    with ScriptedServer(script, [greeting(), ehlo(), play.transaction()]) as server:
        with client_of(server) as client:
            with pytest.raises(KeyboardInterrupt):
                client.sendmail(ANN, A, CONTENT)
            assert client.sock is None
            with pytest.raises(NotConnected):
                client.noop()
            client.connect(server.host, server.port)
            assert client.sendmail(ANN, B, CONTENT) == {}
        assert server.messages[-1].recipients == (B,)


@pytest.mark.parametrize("name", ["noop", "rset", "ehlo", "docmd", "mail", "data", "quit", "starttls"])
def test_ctrl_c_in_any_single_exchange_closes(name: str) -> None:
    """Whoever speaks next would read the reply to this one."""
    with ScriptedServer([greeting(), ehlo("STARTTLS"), Expect(""), Interrupt(), Stall()]) as server:
        with client_of(server) as client:
            client.ehlo()
            with pytest.raises(KeyboardInterrupt):
                reentrant_calls(client)[name]()
            assert client.sock is None


@pytest.mark.parametrize("by_hand", [True, False])
def test_an_interrupt_between_354_and_the_content_closes(monkeypatch: pytest.MonkeyPatch, by_hand: bool) -> None:
    """The server waits for content: the next command would be taken for it."""

    def interrupted(content: bytes, behind: bytes = b"") -> bytes:
        raise KeyboardInterrupt

    script = [greeting(), ehlo(), answer("MAIL", "250 ok"), answer("RCPT", "250 ok"), answer("DATA", "354 go"), Stall()]
    with ScriptedServer(script) as server, client_of(server) as client:
        client.ehlo()
        monkeypatch.setattr(_delivery, "stuffed", interrupted)
        if by_hand:
            client.mail(ANN)
            client.rcpt(A)
        with pytest.raises(KeyboardInterrupt):
            client.data(CONTENT) if by_hand else client.sendmail(ANN, A, CONTENT)
        assert client.sock is None


# ---------------------------------------------------------------- STARTTLS and TLS


def test_starttls_goes_on_in_tls_and_forgets_what_was_said_before(ca: TestCA) -> None:
    """EHLO is said again: what a server offered in the clear was anybody's word."""
    script = [
        greeting(),
        ehlo("STARTTLS", "AUTH PLAIN", "SIZE 1"),
        answer("STARTTLS", "220 go"),
        StartTLS(),
        ehlo("8BITMIME"),
        play.transaction(),
    ]
    with ScriptedServer(script, tls="starttls", ca=ca) as server, client_of(server) as client:
        assert client.starttls(context=ca.client_context())[0] == 220
        assert client.is_encrypted
        assert not client.esmtp_features
        assert client.ehlo_resp is None
        assert client.sendmail(ANN, A, CONTENT) == {}
        assert not client.has_extn("auth")
    assert server.messages[0].tls


def test_starttls_that_was_stripped_is_no_plaintext_session() -> None:
    """Somebody took the offer away: the connection is closed, and nothing was said."""
    with ScriptedServer([greeting(), ehlo("8BITMIME"), Stall()]) as server, client_of(server) as client:
        with pytest.raises(NotSupported, match="no STARTTLS") as info:
            client.starttls()
        assert info.value.phase is Phase.TLS
        assert client.sock is None
    assert said_to(server) == ["EHLO"]


@pytest.mark.parametrize(
    ("code", "kind"), [(454, StartTLSRefused), (500, StartTLSRefused), (421, StartTLSRefused), (250, BadReply)]
)
def test_starttls_that_was_refused_is_no_plaintext_session(code: int, kind: type[MailError]) -> None:
    """smtplib returns the refusal and goes on in the clear."""
    with ScriptedServer([greeting(), ehlo("STARTTLS"), answer("STARTTLS", f"{code} no"), Stall()]) as server:
        with client_of(server) as client:
            with pytest.raises(kind, match=f"{code} no") as info:
                client.starttls()
            assert info.value.phase is Phase.TLS
            assert client.sock is None


def test_bytes_injected_behind_the_220_are_refused() -> None:
    """They would count as said under TLS (CVE-2011-0411)."""
    script = [
        greeting(),
        ehlo("STARTTLS"),
        Expect("STARTTLS"),
        Send(b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n"),
        Stall(),
    ]
    with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(BadReply, match="out of turn: 250-evil"):
            client.starttls()
        assert client.sock is None


BAD_CERTIFICATES = [
    ("expired_server_context", "certificate has expired"),
    ("wrong_host_server_context", r"(?i)IP address mismatch|hostname mismatch|not valid for"),
    ("self_signed_server_context", "self[- ]signed"),
    ("untrusted_server_context", "unable to get local issuer|self[- ]signed"),
]


@pytest.mark.parametrize("mode", ["starttls", "tls"])
@pytest.mark.parametrize(("kind", "match"), BAD_CERTIFICATES, ids=[kind for kind, _ in BAD_CERTIFICATES])
def test_a_bad_certificate_is_named_and_ends_the_connection(ca: TestCA, mode: str, kind: str, match: str) -> None:
    """The cause in the message, permanent; not a byte of mail in the clear afterwards."""
    script: list[Part] = []
    if mode == "starttls":
        script = [greeting(), ehlo("STARTTLS"), answer("STARTTLS", "220 go"), StartTLS()]
    with ScriptedServer(script, tls=mode, ssl_context=getattr(ca, kind)()) as server:  # type: ignore[arg-type]
        client = unconnected(mode, ca.client_context())
        with pytest.raises(TLSFailed, match=match) as info:
            secured(client, server, ca.client_context())
        assert not info.value.transient
        assert info.value.phase is Phase.TLS
        assert "127.0.0.1" in str(info.value)
        assert client.sock is None
        with pytest.raises(NotConnected):
            client.noop()


@pytest.mark.parametrize("mode", ["starttls", "tls"])
def test_certificates_are_verified_by_default(ca: TestCA, mode: str) -> None:
    """Without a context of the caller's an unknown authority is refused (the stdlib's default accepts anybody)."""
    with CaptureServer(tls=mode, ca=ca) as server:  # type: ignore[arg-type]
        with pytest.raises(TLSFailed, match="certificate"):
            secured(unconnected(mode), server)


@pytest.mark.parametrize("timeout", [10.0, None])
def test_implicit_tls_delivers(ca: TestCA, timeout: float | None) -> None:
    """Also without a time limit."""
    with CaptureServer(tls="tls", ca=ca) as server:
        context = ca.client_context()
        with SMTP_SSL(server.host, server.port, "test", timeout=timeout, context=context) as client:
            assert client.is_encrypted
            assert client.sendmail(ANN, A, CONTENT) == {}
        assert server.messages[0].tls


def test_plaintext_on_a_port_for_tls_is_named() -> None:
    """The likely mistake is in the message."""
    with ScriptedServer([greeting(), Stall()]) as server:
        with pytest.raises(TLSFailed, match="does not speak TLS on this port"):
            SMTP_SSL(server.host, server.port, "test", timeout=10.0)


def test_a_client_certificate_that_cannot_be_read_leaves_no_session_in_the_clear(tmp_path: Path) -> None:
    """Whatever goes wrong once STARTTLS was said, nothing follows in plaintext; best it is not said at all."""
    with ScriptedServer([greeting(), ehlo("STARTTLS"), Stall()]) as server, client_of(server) as client:
        client.ehlo()
        with pytest.raises(OSError, match="No such file"):
            client.starttls(certfile=str(tmp_path / "missing.pem"))
        with pytest.raises(ValueError, match="mutually exclusive"):
            client.starttls(context=ssl.create_default_context(), certfile="x.pem")
        client.close()
        server.wait_for_connections(0)
        assert said_to(server) == ["EHLO"]


# ---------------------------------------------------------------- replies that end the connection


@pytest.mark.parametrize("code", [221, 421])
@pytest.mark.parametrize("call", ["noop", "rset", "docmd", "mail"])
def test_a_server_that_says_goodbye_is_not_spoken_to_again(code: int, call: str) -> None:
    """NOOP answered 421 is no healthy connection: it is returned, as smtplib does, and closed, as smtplib does not."""
    with ScriptedServer([greeting(), Expect(""), play.Reply(f"{code} 4.3.2 bye"), Stall()]) as server:
        with client_of(server) as client:
            answered: Any = reentrant_calls(client)[call]()
            assert answered[0] == code
            assert client.sock is None


@pytest.mark.parametrize("flood", [b"250-x\r\n" * 5000, b"250 " + b"x" * 100_000 + b"\r\n", b"x" * 100_000])
def test_a_flood_of_a_reply_closes(flood: bytes) -> None:
    """Bounded, and not believed again."""
    with ScriptedServer([greeting(), Expect("NOOP"), Send(flood), Stall()]) as server, client_of(server) as client:
        with pytest.raises(BadReply):
            client.noop()
        assert client.sock is None


def test_a_server_that_speaks_out_of_turn_is_closed_before_the_next_command() -> None:
    """A 421 that lies there from an idle time-out; nothing is written to a connection that is over."""
    with ScriptedServer([greeting(), Send(b"421 4.4.2 idle too long\r\n"), Drop()]) as server:
        with client_of(server) as client:
            server.wait_until_played()
            assert not client.is_quiet()
            with pytest.raises((BadReply, ConnectionLost), match=r"421 4\.4\.2 idle too long"):
                client.sendmail(ANN, A, CONTENT)
            assert client.sock is None
    assert server.received == [[]]


# ---------------------------------------------------------------- mail


def test_refused_recipients_come_back_as_the_caller_wrote_them() -> None:
    """That is where code written for smtplib looks; each with (code, text)."""
    script = [
        greeting(),
        ehlo(),
        answer("MAIL", "250 ok"),
        answer(f"RCPT TO:<{A}>", "550 5.1.1 no"),
        answer(f"RCPT TO:<{B}>", "250 ok"),
        answer("RCPT TO:<c@xn--bcher-kva.example>", "450 4.2.1 later"),
        answer("DATA", "354 go"),
        ReadData(),
        play.Reply("250 ok"),
    ]
    with ScriptedServer(script) as server, client_of(server) as client:
        refused = client.sendmail(f"Ann <{ANN}>", [f"Al <{A}>", B, "c@bücher.example", A], CONTENT)
    assert refused == {f"Al <{A}>": (550, b"5.1.1 no"), "c@bücher.example": (450, b"4.2.1 later")}


def test_all_recipients_refused_is_an_error_with_the_callers_addresses() -> None:
    """As smtplib's; and it pickles with them."""
    script = [greeting(), ehlo(), answer("MAIL", "250 ok"), answer("RCPT", "550 no"), answer("RSET", "250 ok")]
    with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(smtplib.SMTPRecipientsRefused) as info:
            client.sendmail(ANN, f"Al <{A}>", CONTENT)
    assert info.value.recipients == {f"Al <{A}>": (550, b"no")}
    assert pickle.loads(pickle.dumps(info.value)).recipients == info.value.recipients


def test_after_a_refusal_the_next_message_starts_clean() -> None:
    """smtplib leaves the old MAIL standing, and every later message gets 503."""
    for command in ("RCPT", "DATA", "."):
        with (
            ScriptedServer([Serve(until=command), play.Reply("550 no"), Serve()]) as server,
            client_of(server) as client,
        ):
            with pytest.raises(MailError):
                client.sendmail(ANN, A, CONTENT)
            assert client.sendmail(ANN, B, CONTENT) == {}
            assert server.messages[-1].recipients == (B,)


@pytest.mark.parametrize(
    "evil", ["a@x.test\r\nDATA", "<a@x.test> SIZE=1", "a@x.test evil", "a@x\0.test", "a@x.test>\n"]
)
def test_a_bad_address_is_refused_before_a_byte_is_written(evil: str) -> None:
    """In every place that takes one."""
    with ScriptedServer([greeting(), answer("NOOP", "250 ok")]) as server, client_of(server) as client:
        calls: list[Callable[[], object]] = [
            lambda: client.sendmail(evil, A, CONTENT),
            lambda: client.sendmail(ANN, [A, evil], CONTENT),
            lambda: client.send_message(message(), to_addrs=[evil]),
            lambda: client.send_message(message(), from_addr=evil),
            lambda: client.mail(evil),
            lambda: client.rcpt(evil),
        ]
        for call in calls:
            with pytest.raises(InvalidEnvelope):
                call()
        assert client.noop()[0] == 250
    assert said_to(server) == ["NOOP"]


@pytest.mark.parametrize(
    "address",
    ['"a b"@x.test', '"a(b)c"@x.test', '"a\\"b"@x.test', '"a,b"@x.test', '"<x@y>"@x.test', "a..b@x.test", "a.@x.test",
     "a'b@x.test", "a@[127.0.0.1]", "a@[IPv6:::1]", "root", '"a@b"@x.test', "a=b{c}@x.test"],
)  # fmt: skip
def test_by_hand_an_address_goes_to_the_wire_as_it_was_checked(address: str) -> None:
    """mail() and rcpt() put between the brackets what the grammar let out, not what another parser makes of it."""
    with ScriptedServer([greeting(), answer("MAIL", "250 ok"), answer("RCPT", "250 ok")]) as server:
        with client_of(server) as client:
            assert client.mail(address)[0] == 250
            assert client.rcpt(address)[0] == 250
        assert [line.partition(":")[2] for line in server.received[0]] == [f"<{address}>"] * 2


def test_options_by_hand_are_those_of_smtplib() -> None:
    """Passed in MAIL and RCPT; SMTPUTF8 makes the commands UTF-8 for this one message."""
    script = [
        greeting(),
        ehlo("SMTPUTF8"),
        answer("MAIL FROM:<grüße@x.test> SMTPUTF8 SIZE=5", "250 ok"),
        answer(f"RCPT TO:<{A}> NOTIFY=NEVER", "250 ok"),
        answer("DATA", "354 go"),
        ReadData(),
        play.Reply("250 ok"),
        answer("NOOP", "250 ok"),
    ]
    with ScriptedServer(script) as server, client_of(server) as client:
        client.ehlo()
        client.mail("grüße@x.test", ["SMTPUTF8", "SIZE=5"])
        client.rcpt(A, ["NOTIFY=NEVER"])
        client.data(CONTENT)
        assert client.command_encoding == "ascii"
        client.noop()


_UTF8_TRANSACTION = [greeting(), ehlo("SMTPUTF8"), answer("MAIL", "250 ok")]


@pytest.mark.parametrize(
    ("script", "ends"),
    [
        ([*_UTF8_TRANSACTION, Stall()], lambda client: client.close()),
        ([*_UTF8_TRANSACTION, Expect("NOOP"), Drop()], lambda client: client.noop()),
        ([*_UTF8_TRANSACTION, answer("NOOP", "421 closing")], lambda client: client.noop()),
        ([*_UTF8_TRANSACTION, answer("EHLO", "250 ok"), Stall()], lambda client: client.ehlo()),
        ([*_UTF8_TRANSACTION, answer("HELO", "250 ok"), Stall()], lambda client: client.helo()),
        ([*_UTF8_TRANSACTION, answer("RSET", "250 ok"), Stall()], lambda client: client.rset()),
        ([*_UTF8_TRANSACTION, answer("RSET", "250 ok"), Stall()], lambda client: client.docmd("RSET")),
        ([greeting(), ehlo("SMTPUTF8"), answer("MAIL", "550 no"), Stall()], lambda client: None),
    ],
    ids=["close", "lost", "421", "ehlo", "helo", "rset", "docmd", "refused"],
)
def test_smtputf8_by_hand_ends_with_its_transaction(script: Any, ends: Callable[[SMTP], object]) -> None:
    """Else an address beyond ASCII reaches a server, the next one among them, that was not told of SMTPUTF8."""
    with ScriptedServer(script, [greeting(), ehlo(), Stall()]) as server, client_of(server) as client:
        client.ehlo()
        client.mail("grüße@x.test", ["SMTPUTF8"])
        with suppress(MailError):
            ends(client)
        if client.sock is not None:
            no_way_beyond_ascii(client)
            client.close()
        client.connect(server.host, server.port)
        client.ehlo()
        no_way_beyond_ascii(client)
        client.close()


def no_way_beyond_ascii(client: SMTP) -> None:
    for beyond in (client.mail, client.verify, lambda text: client.docmd("NOOP", text)):
        with pytest.raises((InvalidEnvelope, UnicodeEncodeError)):
            beyond("grüße@x.test")


@pytest.mark.parametrize("code", [450, 550, 421])
def test_data_by_hand_raises_and_closes_where_it_must(code: int) -> None:
    """A refused DATA is smtplib's SMTPDataError; after a 421 there is no connection."""
    with ScriptedServer([greeting(), answer("DATA", f"{code} no"), Stall()]) as server, client_of(server) as client:
        with pytest.raises(DataRefused) as info:
            client.data(CONTENT)
        assert info.value.smtp_code == code
        assert (client.sock is None) == (code == 421)


def test_an_answer_before_the_content_is_none() -> None:
    """A 250 behind the 354, read as the reply to the content, would be a message reported and never sent."""
    early = Send(b"354 go ahead\r\n250 2.0.0 taken\r\n")
    with ScriptedServer(
        [greeting(), Expect("DATA"), early, Stall()],
        [greeting(), ehlo(), answer("MAIL", "250 ok"), answer("RCPT", "250 ok"), Expect("DATA"), early, Stall()],
    ) as server:
        with client_of(server) as client, pytest.raises(BadReply, match="out of turn: 250") as info:
            client.data(CONTENT)
        assert client.sock is None
        assert (info.value.phase, info.value.outcome) == (Phase.DATA, Outcome.NOT_SENT)
        with client_of(server) as client, pytest.raises(BadReply, match="out of turn: 250") as info:
            client.sendmail(ANN, A, CONTENT)
        assert client.sock is None
        assert (info.value.phase, info.value.outcome) == (Phase.DATA, Outcome.NOT_SENT)
    assert server.messages == []


def test_content_is_normalised_and_stuffed_on_the_wire() -> None:
    """Bytes too, by sendmail and by data(): no bare CR or LF, no dot that ends the message early."""
    given = b"Subject: x\n\nlone\rcr\n.\n..\r\n.end"
    wanted = b"Subject: x\r\n\r\nlone\r\ncr\r\n.\r\n..\r\n.end\r\n"
    with ScriptedServer([greeting(), ehlo(), play.transaction(), play.transaction()]) as server:
        with client_of(server) as client:
            client.sendmail(ANN, A, given)
            client.mail(ANN)
            client.rcpt(A)
            client.data(given)
    assert [m.content for m in server.messages] == [wanted, wanted]


def test_send_message_writes_the_message_and_keeps_its_bcc() -> None:
    """Recipients from To, Cc and Bcc; the Bcc field is not written, and stays in the object."""
    m = message(Cc=B, Bcc=C, Subject="Grüße")
    with ScriptedServer([greeting(), ehlo(), play.transaction(3)]) as server, client_of(server) as client:
        assert client.send_message(m) == {}
    assert set(server.messages[0].recipients) == {A, B, C}
    assert C.encode() not in server.messages[0].content
    assert m["Bcc"] == C


@pytest.mark.parametrize("make", [EmailMessage, Message])
def test_send_message_without_a_sender_or_recipients_is_refused(make: type[Message]) -> None:
    """Before the client is touched."""
    client = SMTP(local_hostname="test")
    m = make()
    m["To"] = A
    with pytest.raises(InvalidEnvelope, match="no sender"):
        client.send_message(m)
    m = make()
    m["From"] = ANN
    with pytest.raises((InvalidEnvelope, NotConnected)):
        client.send_message(m)
    with pytest.raises(InvalidEnvelope):
        client.send_message("no message")  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["bob@bücher.example", f"Jürgen <{A}>", [f"Jürgen <{A}>", "bob@bücher.example"]])
def test_what_can_be_written_in_ascii_needs_no_smtputf8(to: Any) -> None:
    """A display name or a domain beyond ASCII is no reason to fail at a server without the extension."""
    with ScriptedServer([Serve(extensions=())]) as server, client_of(server) as client:
        assert client.send_message(message(), ANN, to) == {}
        assert client.sendmail(f"Jörg <{ANN}>", to, CONTENT) == {}
        assert client.send_message(message(To="Bob <bob@bücher.example>")) == {}
    assert all(r.isascii() for m in server.messages for r in m.recipients)


@pytest.mark.parametrize("make", [EmailMessage, Message])
def test_an_address_beyond_ascii_needs_smtputf8(make: type[Message]) -> None:
    """With the extension it goes out in UTF-8; without, nothing does."""
    m = make()
    m["From"], m["To"], m["Subject"] = ANN, "jürgen@x.test", "Grüße"
    m.set_payload("body\n")
    with ScriptedServer([Serve()], [Serve(extensions=())]) as server:
        with client_of(server) as client:
            client.send_message(m)
            client.sendmail(ANN, A, CONTENT)
        with client_of(server) as client:
            with pytest.raises(NotSupported, match="SMTPUTF8"):
                client.send_message(m)
            assert client.sendmail(ANN, A, CONTENT) == {}
    assert server.messages[0].recipients == ("jürgen@x.test",)
    assert "SMTPUTF8" in server.messages[0].mail_options
    assert "To: jürgen@x.test".encode() in server.messages[0].content
    assert server.messages[1].mail_options == ()  # it does not stick


def test_transact_has_the_receipt_that_sendmail_hides() -> None:
    """The server's last words, and the terms of the caller."""
    with ScriptedServer([greeting(), ehlo("SIZE 5000"), play.transaction(2, "250 queued as 42")]) as server:
        with client_of(server) as client:
            receipt = client.transact(envelope("x"))
    assert receipt.reply is not None
    assert (receipt.outcome, receipt.reply.text) == (Outcome.SENT, "queued as 42")


# ---------------------------------------------------------------- LMTP


def test_lmtp_over_a_unix_socket_reports_each_recipient(tmp_path: Path) -> None:
    """LHLO, one reply for each recipient; and the next command gets its own (smtplib's noop read an old one)."""
    path = tmp_path / "a:b" / "lmtp"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> list[bytes]:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as file:
                heard = []
                for reply in (
                    b"220 hi",
                    None,
                    b"250 x",
                    None,
                    b"250 ok",
                    None,
                    b"250 ok",
                    None,
                    b"250 ok",
                    None,
                    b"354 go",
                ):
                    if reply is None:
                        heard.append(file.readline())
                    else:
                        file.write(reply + b"\r\n")
                        file.flush()
                while file.readline() != b".\r\n":
                    pass
                file.write(b"250 ok\r\n452 full\r\n")
                file.flush()
                heard.append(file.readline())
                file.write(b"250 alive\r\n")
                return heard

        with running(serve) as heard:
            client = LMTP(str(path), local_hostname="test", timeout=10.0)
            assert client.sendmail(ANN, [A, B], CONTENT) == {B: (452, b"full")}
            assert client.noop() == (250, b"alive")
            client.close()
    assert heard[0][0] == b"lhlo test\r\n"


def test_a_unix_socket_with_a_colon_in_its_path_is_a_path(tmp_path: Path) -> None:
    """Not a host and a port; and one that is not there is our own error."""
    client = LMTP(local_hostname="test")
    with pytest.raises(ConnectFailed, match="a:b"):
        client.connect(str(tmp_path / "a:b"), 0)


@pytest.mark.parametrize(
    "by_hand", [lambda _: None, lambda c: c.ehlo(), lambda c: c.helo()], ids=["not greeted", "ehlo", "helo"]
)
def test_lmtp_says_lhlo_or_nothing(by_hand: Callable[[SMTP], object]) -> None:
    """Who takes a HELO speaks SMTP, and owes one reply where LMTP waits for two: delivered mail was told in doubt."""
    with ScriptedServer([Serve()]) as server, client_of(server, kind=LMTP) as client:
        by_hand(client)
        for _ in range(2):
            with pytest.raises(HeloRefused, match="knows no LHLO, and may speak SMTP") as info:
                client.sendmail(ANN, [A, B], CONTENT)
            assert (info.value.outcome, info.value.transient) == (Outcome.NOT_SENT, False)
        assert not {"MAIL", "DATA"} & set(said_to(server))
        assert said_to(server)[-2:] == ["LHLO", "LHLO"]


@pytest.mark.parametrize(("kind", "hint"), [(LMTP, "may speak SMTP (smtp://)"), (SMTP, "may speak LMTP (lmtp://)")])
def test_a_server_that_speaks_the_other_protocol_is_told_of(kind: Any, hint: str) -> None:
    """Behind what it said: a whole server of each kind."""
    with CaptureServer(lmtp=kind is SMTP) as server, client_of(server, kind=kind) as client:
        with pytest.raises(HeloRefused) as info:
            client.sendmail(ANN, [A, B], CONTENT)
        assert str(info.value).startswith("the server answered 500 ")
        assert hint in str(info.value)
        assert server.messages == []


@pytest.mark.parametrize("refusal", ["550 5.7.1 not you", "501 5.5.4 what name is that", "451 4.3.0 later"])
@pytest.mark.parametrize("kind", [SMTP, LMTP])
def test_a_greeting_that_is_refused_for_another_reason_hints_at_nothing(kind: Any, refusal: str) -> None:
    greet = "LHLO" if kind is LMTP else "EHLO"
    helo = [] if kind is LMTP or refusal.startswith("4") else [answer("HELO", refusal)]
    with ScriptedServer([greeting(), answer(greet, refusal), *helo, Stall()]) as server:
        with client_of(server, kind=kind) as client, pytest.raises(HeloRefused) as info:
            client.sendmail(ANN, A, CONTENT)
    assert str(info.value) == f"the server answered {refusal}"


# ---------------------------------------------------------------- the end


def test_leaving_the_block_says_quit_and_never_waits_long() -> None:
    """A server that does not answer QUIT holds nobody beyond the short time it gets; nor is it an error."""
    with ScriptedServer([greeting(), Expect("QUIT"), Stall()]) as server:
        begin = time.monotonic()
        with SMTP(server.host, server.port, "test", 0.3) as client:
            pass
        assert time.monotonic() - begin < 4.0
        assert client.sock is None


def test_quit_closes_whatever_the_answer() -> None:
    """And the answer is returned."""
    for reply in ("221 bye", "500 what"):
        with ScriptedServer([greeting(), answer("QUIT", reply), Stall()]) as server, client_of(server) as client:
            assert client.quit()[0] == int(reply[:3])
            assert client.sock is None


def test_a_client_cannot_be_pickled_and_says_what_to_send() -> None:
    """A live connection is of one process; the settings can travel."""
    with pytest.raises(TypeError, match="ServerConfig"):
        pickle.dumps(SMTP(local_hostname="test"))


def test_debug_output_and_log_leave_the_content_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Commands and replies are shown, what people write to each other is not."""
    log = io.StringIO()
    handler, level = logging.StreamHandler(log), protocol_log.level
    protocol_log.addHandler(handler)
    protocol_log.setLevel(logging.DEBUG)
    try:
        with ScriptedServer([greeting(), ehlo(), play.transaction(), play.transaction()]) as server:
            with client_of(server) as client:
                client.set_debuglevel(1)
                client.sendmail(ANN, A, b"Subject: x\r\n\r\nsecret love\r\n")
                client.mail(ANN)
                client.rcpt(A)
                client.docmd("data")
                client.send(b"Subject: x\r\n\r\nsecret love\r\n.\r\n")
                client.getreply()
    finally:
        protocol_log.removeHandler(handler)
        protocol_log.setLevel(level)
    said = log.getvalue() + capsys.readouterr().err
    assert "mail from" in said.lower()
    assert "250 2.0.0 OK" in said
    assert "secret love" not in said


def test_a_held_server_and_a_deadline_for_the_whole_call() -> None:
    """The reply comes when the call is over: it answers nothing else, for the connection is gone."""
    go = threading.Event()
    script = [*until(Phase.MAIL), Pause(go), play.Reply("250 late"), Stall()]
    with ScriptedServer(script, [Serve()]) as server, client_of(server, timeout=60.0) as client:
        with pytest.raises(ReplyTimedOut):
            client.sendmail(ANN, A, CONTENT, deadline=0.2)
        go.set()
        client.connect(server.host, server.port)
        assert client.sendmail(ANN, B, CONTENT) == {}
    assert server.messages[-1].recipients == (B,)
