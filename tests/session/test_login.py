"""Logging in: one mechanism, one attempt, never in the clear over a network, and no secret anywhere afterwards."""

from __future__ import annotations

import base64
import dataclasses
import hmac
import io
import logging
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmail import (
    SMTP,
    BadReply,
    ConnectionLost,
    InsecureLogin,
    InvalidConfig,
    InvalidEnvelope,
    LoginRefused,
    MailError,
    NotSupported,
    Phase,
    ReplyTimedOut,
)
from threadmail import testing as play
from threadmail._session import login as _login
from threadmail._transport.wire import protocol_log
from threadmail.testing import (
    CaptureServer,
    Drop,
    Expect,
    Reset,
    ScriptedServer,
    Send,
    Serve,
    Stall,
    answer,
    ehlo,
    greeting,
)

USER = "ann"
SECRET = "hunter2-correct-horse"
TRACES = [SECRET, base64.b64encode(SECRET.encode()).decode(), base64.b64encode(f"\0{USER}\0{SECRET}".encode()).decode()]


@contextmanager
def client_of(server: Any, timeout: float = 10.0) -> Iterator[SMTP]:
    client = SMTP(server.host, server.port, "test", timeout)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the protocol log says at its most talkative."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    level = protocol_log.level
    protocol_log.addHandler(handler)
    protocol_log.setLevel(logging.DEBUG)
    yield said
    protocol_log.removeHandler(handler)
    protocol_log.setLevel(level)


def assert_no_secret(text: str, *more: str) -> None:
    for trace in (*TRACES, *more):
        assert trace not in text


def assert_error_holds_no_secret(error: BaseException, *more: str) -> None:
    """Nothing in it, nor in the chain behind it, nor in the locals of our frames that a crash reporter would show."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        exc = todo.pop()
        if exc is None or id(exc) in seen:
            continue
        seen.add(id(exc))
        assert_no_secret(f"{exc} {exc!r} {exc.args!r} {vars(exc)!r} {getattr(exc, '__notes__', '')!r}", *more)
        for frame, _ in traceback.walk_tb(exc.__traceback__):
            if frame.f_code.co_filename != __file__:
                for name, value in frame.f_locals.items():
                    assert_no_secret(f"{name}={value!r}", *more)
        todo += [exc.__cause__, exc.__context__]


# ---------------------------------------------------------------- which mechanism


@pytest.mark.parametrize(
    ("offered", "tls", "chosen"),
    [
        ("CRAM-MD5 LOGIN PLAIN", True, "PLAIN"),
        ("CRAM-MD5 LOGIN", True, "LOGIN"),
        ("cram-md5", True, "CRAM-MD5"),
        ("PLAIN LOGIN CRAM-MD5", False, "CRAM-MD5"),
        (" login plain", False, "PLAIN"),
        ("GSSAPI NTLM LOGIN", False, "LOGIN"),
    ],
)
def test_the_best_mechanism_is_chosen(offered: str, tls: bool, chosen: str) -> None:
    """Under TLS what every server can check; without it, what does not show the password."""
    assert _login.choose(offered, None, tls=tls) == chosen


def test_the_mechanism_asked_for_is_the_only_one() -> None:
    """No other is taken instead; what the server offers stands in the error, as one printable line."""
    assert _login.choose("PLAIN XOAUTH2", "xoauth2", tls=True) == "XOAUTH2"
    with pytest.raises(NotSupported, match="offers PLAIN LOGIN"):
        _login.choose("PLAIN LOGIN", "XOAUTH2", tls=True)
    for offered in ("", "GSSAPI \x1b[2J"):
        with pytest.raises(NotSupported) as info:
            _login.choose(offered, None, tls=True)
        assert str(info.value).isprintable()


def test_a_python_without_md5_goes_without_cram_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    """FIPS builds raise when it is asked for: the next best is taken."""

    def none(*args: object, **kwargs: object) -> None:
        raise ValueError("disabled for FIPS")

    monkeypatch.setattr(hmac, "new", none)
    assert _login.choose("CRAM-MD5 PLAIN", None, tls=False) == "PLAIN"


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("password", [SECRET, "pässwörd-€", "with space, = and ,", "x" * 200])
def test_every_mechanism_logs_in(mechanism: str, initial: bool, password: str) -> None:
    """With and without an initial response, with passwords of all kinds, UTF-8 among them."""
    with ScriptedServer([Serve(auth={USER: password}, mechanisms=(mechanism,))]) as server, client_of(server) as client:
        code, _ = client.login(USER, password, mechanism=mechanism, initial_response_ok=initial)
        assert code == 235
        client.sendmail("ann@x.test", "bob@x.test", b"Subject: x\r\n\r\n")
    assert server.messages[0].username == USER


def test_login_is_understood_by_another_implementation() -> None:
    """aiosmtpd, which is not ours, checks the passwords as well."""
    for mechanism in ("PLAIN", "LOGIN"):
        with CaptureServer(auth={USER: "pässwörd"}, mechanisms=[mechanism]) as server, client_of(server) as client:
            assert client.login(USER, "pässwörd")[0] == 235
            with pytest.raises(LoginRefused), client_of(server) as other:
                other.login(USER, "passwort")


def test_cram_md5_answers_the_example_of_the_rfc() -> None:
    """RFC 2195, section 2."""
    answerer = _login.mechanism("CRAM-MD5", "tim", _login.Secret("tanstaaftanstaaf"))
    assert answerer(None) is None
    assert answerer(b"<1896.697170952@postoffice.reston.mci.net>") == "tim b913a602c7eda7a495b4e6e7334d3890"


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")), st.binary())
def test_responses_can_always_be_written(user: str, password: str, challenge: bytes) -> None:
    """Whatever user, password and challenge: one line of base64, or a refusal of what would forge another response."""
    for name in ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"):
        if set("\0\1") & {*user, *password}:
            with pytest.raises(InvalidConfig, match="control character"):
                _login.mechanism(name, user, _login.Secret(password))
            continue
        answerer = _login.mechanism(name, user, _login.Secret(password))
        for said in (answerer(None), answerer(challenge), answerer(challenge)):
            line = _login.encoded(said or "")
            assert set(line) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


# ---------------------------------------------------------------- one attempt


def test_a_refused_login_is_one_attempt() -> None:
    """Three mechanisms are offered, one is tried: each further one would count as another wrong password."""
    with ScriptedServer([Serve(auth={USER: "other"}, mechanisms=("CRAM-MD5", "PLAIN", "LOGIN"))]) as server:
        with client_of(server) as client:
            with pytest.raises(LoginRefused) as info:
                client.login(USER, SECRET)
            assert (info.value.smtp_code, info.value.phase, info.value.transient) == (535, Phase.AUTH, False)
            assert client.noop()[0] == 250
        assert sum(line.upper().startswith("AUTH") for line in server.received[0]) == 1


@pytest.mark.parametrize(("code", "transient"), [(454, True), (432, True), (534, False), (535, False)])
def test_a_refusal_says_whether_to_try_again(code: int, transient: bool) -> None:
    """By its first digit; the connection can be used."""
    script = [greeting(), ehlo("AUTH PLAIN"), answer("AUTH", f"{code} 5.7.8 no"), answer("NOOP", "250 ok")]
    with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(LoginRefused) as info:
            client.login(USER, SECRET)
        assert info.value.transient is transient
        assert client.noop()[0] == 250


def test_logged_in_already_is_no_refusal() -> None:
    """503 after an earlier login, as smtplib takes it."""
    with ScriptedServer([greeting(), ehlo("AUTH PLAIN"), answer("AUTH", "503 already")]) as server:
        with client_of(server) as client:
            assert client.login(USER, SECRET)[0] == 503


def test_421_to_a_login_closes() -> None:
    """The server is going: nothing more is written to it."""
    with ScriptedServer([greeting(), ehlo("AUTH PLAIN"), answer("AUTH", "421 4.3.2 bye"), Stall()]) as server:
        with client_of(server) as client:
            with pytest.raises(LoginRefused) as info:
                client.login(USER, SECRET)
            assert info.value.transient
            assert client.sock is None


# ---------------------------------------------------------------- breakdowns

BREAKDOWNS: list[tuple[str, list[play.Step], type[MailError]]] = [
    ("close", [Drop()], ConnectionLost),
    ("stall", [Stall()], ReplyTimedOut),
    ("garbage", [Send(b"what?\r\n"), Stall()], BadReply),
    ("no base64", [play.Reply("334 !!!"), Stall()], BadReply),
    ("echo and close", [Send(f"535 no, {SECRET}".encode()), Drop()], ConnectionLost),
    ("challenges without end", [play.Reply("334 "), *[answer("", "334 ")] * 5, Stall()], MailError),
]


@pytest.mark.parametrize(("steps", "kind"), [b[1:] for b in BREAKDOWNS], ids=[b[0] for b in BREAKDOWNS])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"])
def test_a_login_that_breaks_down_closes_and_keeps_its_secret(
    steps: list[play.Step], kind: type[MailError], mechanism: str, log: io.StringIO
) -> None:
    """Our own error in the phase of logging in; no secret in it, in its traceback's frames or in the log."""
    with ScriptedServer([greeting(), ehlo(f"AUTH {mechanism}"), Expect("AUTH"), *steps]) as server:
        with client_of(server, 0.2 if kind is ReplyTimedOut else 10.0) as client:
            with pytest.raises(kind) as info:
                client.login(USER, SECRET, mechanism=mechanism)
            assert info.value.phase is Phase.AUTH
            assert client.sock is None
            assert_error_holds_no_secret(info.value)
    assert_no_secret(log.getvalue())


def test_a_refusal_keeps_the_secret_though_the_server_shouts_it(log: io.StringIO) -> None:
    """What a server echoes is masked: the password, its base64, the whole response."""
    shouted = " ".join(TRACES)
    with ScriptedServer([greeting(), ehlo("AUTH PLAIN"), answer("AUTH", f"535 5.7.8 {shouted}")]) as server:
        with client_of(server) as client:
            with pytest.raises(LoginRefused) as info:
                client.login(USER, SECRET)
            assert b"***" in info.value.smtp_error
            assert_error_holds_no_secret(info.value)
            assert client.sock is not None


def refused_before_auth() -> dict[str, Callable[[], None]]:
    """Logins that fail before AUTH is written, each in its own way."""

    def no_auth() -> None:
        with ScriptedServer([greeting(), ehlo(), Stall()]) as server, client_of(server) as client:
            client.login(USER, SECRET)

    def no_mechanism() -> None:
        with ScriptedServer([greeting(), ehlo("AUTH GSSAPI"), Stall()]) as server, client_of(server) as client:
            client.login(USER, SECRET)

    def unknown_mechanism() -> None:
        with ScriptedServer([greeting(), ehlo("AUTH GSSAPI"), Stall()]) as server, client_of(server) as client:
            client.login(USER, SECRET, mechanism="GSSAPI")

    def no_ehlo() -> None:
        with ScriptedServer([greeting(), Expect("EHLO"), Drop()]) as server, client_of(server) as client:
            client.login(USER, SECRET)

    def insecure() -> None:
        with ScriptedServer([greeting(), ehlo("AUTH PLAIN"), Stall()]) as server, client_of(server) as client:
            client._peer_is_local = lambda: False  # type: ignore[method-assign]
            client.login(USER, SECRET)

    def not_connected() -> None:
        SMTP(local_hostname="test").login(USER, SECRET)

    return {f.__name__: f for f in (no_auth, no_mechanism, unknown_mechanism, no_ehlo, insecure, not_connected)}


@pytest.mark.parametrize("name", list(refused_before_auth()))
def test_a_login_that_is_not_begun_shows_nothing(name: str, log: io.StringIO) -> None:
    """Nor does the traceback of an error that comes before AUTH."""
    with pytest.raises(MailError) as info:
        refused_before_auth()[name]()
    assert_error_holds_no_secret(info.value)
    assert_no_secret(log.getvalue())


def test_an_interrupted_login_closes_and_keeps_its_secret() -> None:
    """Ctrl-C while the server thinks: the connection is dropped, and the frames show no password."""
    main = threading.main_thread().ident or 0

    class Interrupt(play.Step):
        def play(self, peer: play.Peer) -> None:
            signal.pthread_kill(main, signal.SIGINT)

    with ScriptedServer([greeting(), ehlo("AUTH PLAIN"), Expect("AUTH"), Interrupt(), Stall()]) as server:
        with client_of(server) as client:
            with pytest.raises(KeyboardInterrupt) as info:
                client.login(USER, SECRET)
            assert client.sock is None
            assert_error_holds_no_secret(info.value)


def test_a_password_that_is_no_text_is_our_own_error() -> None:
    """Lone surrogates (an environment variable in another encoding) cannot be written: said so, not shown."""
    with ScriptedServer([greeting(), ehlo("AUTH PLAIN"), Stall()]) as server, client_of(server) as client:
        with pytest.raises(InvalidConfig, match="UTF-8") as info:
            client.login(USER, SECRET + "\udcff")
        assert_error_holds_no_secret(info.value, "\\udcff")


def test_neither_log_nor_debug_output_shows_a_login(log: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    """AUTH and every continuation line are masked, in `threadmail.protocol` and in smtplib's debug output."""
    for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5"):
        with ScriptedServer([Serve(auth={USER: SECRET}, mechanisms=(mechanism,))]) as server:
            with client_of(server) as client:
                client.set_debuglevel(2)
                client.login(USER, SECRET, initial_response_ok=mechanism == "PLAIN")
    said = log.getvalue() + capsys.readouterr().err
    assert "AUTH PLAIN ***" in said
    assert_no_secret(said, base64.b64encode(USER.encode()).decode())
    assert "d2VsY29tZQ" not in said


@pytest.mark.parametrize("by_hand", ["docmd", "putcmd"])
def test_a_login_by_hand_is_masked_too(by_hand: str, log: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    """`docmd("AUTH", "XOAUTH2 ...")` is how legacy code does it: that and the answers to challenges stay secret."""
    script = [
        greeting(),
        ehlo("AUTH LOGIN"),
        answer("AUTH", "334 VXNlcm5hbWU6"),
        answer("", "334 UGFzc3dvcmQ6"),
        answer("", "235 ok"),
        answer("NOOP hello", "250 ok"),
    ]
    with ScriptedServer(script) as server, client_of(server) as client:
        client.set_debuglevel(1)
        client.ehlo()

        def say(command: str, args: str = "") -> int:
            if by_hand == "docmd":
                return client.docmd(command, args)[0]
            client.putcmd(command, args)
            return client.getreply()[0]

        assert say("auth", f"LOGIN {TRACES[1]}") == 334
        assert say(TRACES[1]) == 334
        assert say(TRACES[2]) == 235
        assert say("NOOP", "hello") == 250
    said = log.getvalue() + capsys.readouterr().err
    assert_no_secret(said)
    assert "NOOP hello" in said


def test_no_secret_stands_in_an_error_about_a_command() -> None:
    """A line end in hand-made credentials is refused without quoting them."""
    with ScriptedServer([greeting(), Stall()]) as server, client_of(server) as client:
        with pytest.raises(InvalidEnvelope) as info:
            client.docmd("AUTH", f"PLAIN {TRACES[2]}\n")
        assert_no_secret(str(info.value))


# ---------------------------------------------------------------- not in the clear


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        (("127.0.0.1", 25), True),
        (("127.9.9.9", 25), True),
        (("::1", 25, 0, 0), True),
        ("/run/lmtp", True),
        (("192.0.2.1", 25), False),
        (("10.0.0.1", 25), False),
        (("0.0.0.0", 25), False),
        (("2001:db8::1", 25, 0, 0), False),
        (("fe80::1%lo", 25, 0, 1), False),
    ],
)
def test_no_password_crosses_a_network_in_the_clear(peer: Any, allowed: bool) -> None:
    """Who the peer is counts, not its name: not a byte of AUTH to another machine, unless consent was given."""

    class Elsewhere:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def getpeername(self) -> Any:
            return peer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

    for consent in (False, True):
        with ScriptedServer([Serve(auth={USER: SECRET})]) as server, client_of(server) as client:
            client.ehlo()
            client.sock = Elsewhere(client.sock)  # type: ignore[assignment, arg-type]
            client.allow_plaintext_login = consent
            if allowed or consent:
                assert client.login(USER, SECRET)[0] == 235
            else:
                with pytest.raises(InsecureLogin, match="in the clear") as info:
                    client.login(USER, SECRET)
                assert info.value.phase is Phase.AUTH
                assert client.noop()[0] == 250
                assert not any("AUTH" in line for line in server.received[0])


def test_a_connection_that_was_reset_is_lost_and_not_insecure() -> None:
    """The system no longer knows who the peer was; a loopback server is not taken for a stranger, for good."""
    with ScriptedServer([greeting(), ehlo("AUTH PLAIN"), Reset()]) as server:
        client = SMTP(server.host, server.port)
        client.ehlo()
        server.wait_until_played()
        assert client.sock is not None
        select.select([client.sock], [], [], 10.0)
        with pytest.raises(ConnectionResetError):
            client.sock.recv(1)
        with pytest.raises(ConnectionLost) as info:
            client.login("ada", "secret")
        assert (info.value.phase, info.value.transient) == (Phase.AUTH, True)


def test_under_tls_a_password_may_go_anywhere() -> None:
    """STARTTLS first, then the login, by the config of a server that asks for both."""
    with CaptureServer(tls="starttls", auth={USER: SECRET}) as server:
        config = dataclasses.replace(server.config)
        with SMTP(server.host, server.port, "test", 10.0) as client:
            with pytest.raises(NotSupported, match="after STARTTLS"):
                client.login(USER, SECRET)
            client.starttls(context=config.ssl_context)
            client._peer_is_local = lambda: False  # type: ignore[method-assign]
            assert client.login(USER, SECRET)[0] == 235


# ---------------------------------------------------------------- mechanisms of one's own


def test_an_authobject_of_ones_own() -> None:
    """Called as smtplib calls it; an empty initial response goes out as "=" (RFC 4954 section 4)."""
    script = [
        greeting(),
        ehlo("AUTH EXTERNAL X-OWN"),
        answer("AUTH EXTERNAL =", "235 ok"),
        answer("AUTH X-OWN aW5pdA==", "334 Y2hhbGxlbmdl"),
        answer("YW5zd2Vy", "235 ok"),
    ]
    asked: list[bytes | None] = []

    def own(challenge: bytes | None = None) -> str:
        asked.append(challenge)
        return "init" if challenge is None else "answer"

    with ScriptedServer(script) as server, client_of(server) as client:
        client.ehlo()
        assert client.auth("external", lambda challenge=None: "")[0] == 235
        assert client.auth("X-OWN", own)[0] == 235
    assert asked == [None, b"challenge"]


def test_an_authobject_that_fails_closes_and_tells() -> None:
    """Its own exception comes out; an answer that will not come is not waited for."""

    def broken(challenge: bytes | None = None) -> str:
        raise ZeroDivisionError("mine")

    with ScriptedServer([greeting(), ehlo("AUTH X"), Expect("AUTH X"), play.Reply("334 "), Stall()]) as server:
        with client_of(server) as client:
            client.ehlo()
            with pytest.raises(ZeroDivisionError, match="mine"):
                client.auth("X", broken, initial_response_ok=False)
            assert client.sock is None


@pytest.mark.parametrize("name", ["PLAIN\r\nRSET", "PLAIN x", "", "PLÄIN", "X\0"])
def test_a_mechanism_cannot_smuggle_a_command(name: str) -> None:
    """Its name is a word of letters, digits, hyphens and underscores (RFC 4422), or nothing is written."""
    with ScriptedServer([greeting(), ehlo("AUTH PLAIN"), answer("NOOP", "250 ok")]) as server:
        with client_of(server) as client:
            client.ehlo()
            with pytest.raises(ValueError, match="mechanism"):
                client.auth(name, lambda challenge=None: "x")
            assert client.noop()[0] == 250


def test_smtplibs_own_authobjects_go_on_working() -> None:
    """Code that sets `user` and `password` and calls `auth` with smtplib's methods."""
    with ScriptedServer(
        [Serve(auth={USER: SECRET}, mechanisms=("CRAM-MD5", "PLAIN", "LOGIN"))], last="repeat"
    ) as server:
        for name in ("PLAIN", "LOGIN", "CRAM-MD5"):
            with client_of(server) as client:
                client.user, client.password = USER, SECRET
                client.ehlo()
                authobject = getattr(client, f"auth_{name.lower().replace('-', '_')}")
                assert client.auth(name, authobject, initial_response_ok=name != "CRAM-MD5")[0] == 235


def test_hmac_is_what_the_server_computes() -> None:
    """The check of the checker: a digest made elsewhere."""
    made = hmac.new(SECRET.encode(), b"x", "md5").hexdigest()
    assert _login.mechanism("CRAM-MD5", USER, _login.Secret(SECRET))(b"x") == f"{USER} {made}"
