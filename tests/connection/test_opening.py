"""Opening a session: whatever raises on the way is an error of ours, and no refused pair is offered again."""

from __future__ import annotations

import base64
import dataclasses
import pickle
import signal
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mail import envelope
from threadmail import (
    Client,
    ClientPool,
    ConnectFailed,
    InvalidConfig,
    LoginRefused,
    MailError,
    Outcome,
    Phase,
    Security,
    ServerConfig,
    TLSFailed,
)
from threadmail import client as client_module
from threadmail._connection import kept_connection as _kept
from threadmail._connection import opening as _opening
from threadmail._known.refused_logins import RefusedLogins, mark
from threadmail._runtime import deadline as _deadline
from threadmail._transport import lookup as _lookup
from threadmail._transport import socket as _socket
from threadmail._transport import wire as _wire
from threadmail.testing import (
    CaptureServer,
    Expect,
    Reply,
    Script,
    ScriptedServer,
    Serve,
    Stall,
    TestCA,
    ehlo,
    greeting,
)

SECRET = "hush-hush"
Raising = Callable[[], Any]


def raising(exc: BaseException) -> Raising:
    def credentials() -> Any:
        raise exc

    return credentials


def failure(config: ServerConfig) -> MailError:
    with Client(config) as client, pytest.raises(MailError) as info:
        client.send(envelope())
    error = info.value
    assert error.outcome is Outcome.NOT_SENT
    assert error.receipt is not None
    return error


# ---------------------------------------------------------------- what the user's own code raises


@pytest.mark.parametrize(
    ("credentials", "transient", "said"),
    [
        (lambda: None, False, "it gave NoneType"),
        (lambda: SECRET, False, "it gave str"),
        (lambda: "ab", False, "it gave str"),
        (lambda: ("ann",), False, "it gave 1 values"),
        (lambda: ("ann", SECRET, "more"), False, "it gave 3 values"),
        (lambda: ("ann", SECRET.encode()), False, "it gave str and bytes"),
        (lambda: (None, SECRET), False, "it gave NoneType and str"),
        (lambda: {"ann": SECRET, "x": "y"}, False, "it gave dict"),
        (raising(KeyError(SECRET)), True, "could not be had: KeyError"),
        (raising(OSError(SECRET)), True, "could not be had: OSError"),
        (raising(InvalidConfig(SECRET)), False, "could not be had: InvalidConfig"),
        (raising(MailError(SECRET, transient=True)), True, "could not be had: MailError"),
    ],
)
def test_credentials_that_are_none(credentials: Raising, transient: bool, said: str) -> None:
    """An error of ours, in the phase it belongs to, that says what came and never what it was."""
    with CaptureServer(tls="starttls", auth={"ann": SECRET}) as server:
        config = dataclasses.replace(server.config, username=None, password=None, credentials=credentials)
        error = failure(config)
    assert (error.phase, error.transient) == (Phase.AUTH, transient)
    assert said in str(error)
    assert SECRET not in str(error) + repr(error)
    if "could not be had" in said:
        assert error.__cause__ is not None
        assert type(error.__cause__).__name__ in said
    else:
        frames = [
            frame for frame, _ in traceback.walk_tb(error.__traceback__) if "threadmail" in frame.f_code.co_filename
        ]
        ours = [frame for frame in frames if "tests" not in frame.f_code.co_filename]
        assert ours
        assert SECRET not in repr([{k: v for k, v in frame.f_locals.items() if k != "config"} for frame in ours])


def test_what_comes_from_outside_stays_itself() -> None:
    """Ctrl-C in the callable is no failure of the server."""
    with CaptureServer(tls="starttls", auth={"ann": SECRET}) as server:
        config = dataclasses.replace(
            server.config, username=None, password=None, credentials=raising(KeyboardInterrupt())
        )
        with Client(config) as client, pytest.raises(KeyboardInterrupt):
            client.send(envelope())


class Broken(ssl.SSLContext):
    """A context of the user's, with a mistake in it."""

    def wrap_socket(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyError(SECRET)


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_a_tls_context_with_a_mistake_in_it(security: Security) -> None:
    tls: Any = {Security.STARTTLS: "starttls", Security.TLS: "tls"}[security]
    script: Script = [greeting(), ehlo("STARTTLS"), Expect("STARTTLS"), Reply("220 go"), Stall()]
    server = (
        ScriptedServer(script, tls=tls, ca=TestCA()) if security is Security.STARTTLS else ScriptedServer([Stall()])
    )
    with server:
        context = Broken(ssl.PROTOCOL_TLS_CLIENT)
        error = failure(ServerConfig(server.host, server.port, security, ssl_context=context, local_hostname="me.test"))
    assert isinstance(error, TLSFailed)
    assert (error.phase, error.transient) == (Phase.TLS, False)
    assert isinstance(error.__cause__, KeyError)
    assert SECRET not in str(error)


@pytest.mark.parametrize(
    ("resolved", "transient"),
    [(RuntimeError(SECRET), True), (KeyError(SECRET), False), ([("nonsense",)], False), (None, False)],
    ids=["RuntimeError", "KeyError", "nonsense", "None"],
)
def test_a_resolver_with_a_mistake_in_it(resolved: Any, transient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin in the place of `socket.getaddrinfo` (a cache, a service registry)."""

    def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(resolved, Exception):
            raise resolved
        return resolved

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    error = failure(ServerConfig("mail.test", 25, local_hostname="me.test"))
    assert isinstance(error, ConnectFailed)
    assert (error.phase, error.transient) == (Phase.CONNECT, transient)
    assert error.__cause__ is not None
    assert SECRET not in str(error)


def test_a_mistake_of_a_resolver_on_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, *args: Any, flags: int = 0, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "no address") if flags else KeyError(SECRET)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    error = failure(ServerConfig("mail.test", 25, local_hostname="me.test"))
    assert str(error) == "cannot connect to mail.test:25: KeyError"
    assert isinstance(error, ConnectFailed)
    assert (error.phase, error.transient, type(error.__cause__)) == (Phase.CONNECT, False, KeyError)


class TimeLimit(Exception):
    """As Celery's SoftTimeLimitExceeded."""


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Strikes the test in 0.3 seconds."""

    def strike(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("script", [[Stall()], [greeting(), Expect("EHLO"), Stall()]], ids=["greeting", "EHLO"])
@pytest.mark.parametrize("method", ["send", "send_all"])
def test_a_time_limit_in_a_dial_says_nothing_of_the_server(method: str, script: Script) -> None:
    """It was a ConnectFailed, for good, and nobody else dialled the server."""
    with ScriptedServer(script, [Serve()], last="repeat") as server:
        with ClientPool(server.config) as pool:
            with pytest.raises(TimeLimit), pool.lease() as client:
                getattr(client, method)(envelope() if method == "send" else [envelope()])
            assert pool.send(envelope()).outcome is Outcome.SENT
        assert server.connections == 2


@pytest.mark.usefixtures("time_limit")
def test_a_time_limit_while_a_lost_connection_is_replaced_says_nothing_of_the_server() -> None:
    with ScriptedServer([Serve()], [Stall()], [Serve()]) as server, ClientPool(server.config) as pool:
        with pool.lease() as client:
            client.abort()
            with pytest.raises(TimeLimit):
                client.send(envelope())
        assert pool.send(envelope()).outcome is Outcome.SENT


@pytest.mark.usefixtures("time_limit", "fresh_name")
@pytest.mark.parametrize("slow", ["getaddrinfo", "getfqdn"])
def test_a_time_limit_while_a_name_is_looked_up_comes_out(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def lookup(*args: Any, flags: int = 0, **kwargs: Any) -> Any:
        if not flags:
            over.wait(10.0)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, slow, lookup)
    name = "me.test" if slow == "getaddrinfo" else None
    with Client(ServerConfig("mail.test", 25, local_hostname=name)) as client:
        with pytest.raises(TimeLimit):
            client.send(envelope())
        over.set()


def test_what_the_machine_lacks_it_may_have_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: object) -> None:
        raise MemoryError

    with CaptureServer() as server:
        monkeypatch.setattr(_kept, "unconnected", lacks)
        error = failure(server.config)
    assert (type(error), error.phase, error.transient) == (ConnectFailed, Phase.CONNECT, True)
    assert isinstance(error.__cause__, MemoryError)


def test_a_client_goes_on_after_a_mistake_was_mended() -> None:
    given: list[Any] = [None, ("ann", SECRET)]
    with CaptureServer(tls="starttls", auth={"ann": SECRET}) as server:
        config = dataclasses.replace(server.config, username=None, password=None, credentials=lambda: given.pop(0))
        with Client(config) as client:
            with pytest.raises(InvalidConfig):
                client.send(envelope("a"))
            assert client.send(envelope("b")).outcome is Outcome.SENT


# ---------------------------------------------------------------- this machine's own name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("box.example.org", "box.example.org"),
        ("MÜLLER-PC.lan", "[192.0.2.7]"),
        ("my pc.lan", "[192.0.2.7]"),
        (f"{'a' * 64}.example.org", "[192.0.2.7]"),
        ("localhost", "[192.0.2.7]"),
    ],
)
def test_a_name_that_ehlo_cannot_carry_is_an_address_literal(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 5321 section 4.1.4."""
    monkeypatch.setattr(socket, "getfqdn", lambda *_: name)
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "192.0.2.7")
    assert _lookup._own_name.__wrapped__() == said


@pytest.fixture
def fresh_name() -> Iterator[None]:
    _lookup._own_name.cache_clear()
    yield
    _lookup._own_name.cache_clear()


@pytest.mark.usefixtures("fresh_name")
def test_a_machine_with_the_longest_name_there_is_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 octets, as Linux allows, and one more than a label may have: the resolver raises a UnicodeError."""
    monkeypatch.setattr(socket, "gethostname", lambda: "a" * 64)
    with CaptureServer() as server, Client(ServerConfig(server.host, server.port)) as client:
        assert client.send(envelope()).outcome is Outcome.SENT


# ---------------------------------------------------------------- settings are checked when they are given


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"host": f"{'a' * 64}.example"}, "label"),
        ({"host": 7}, "host"),
        ({"port": "25"}, "port"),
        ({"security": "starttls"}, "security"),
        ({"source_address": "127.0.0.1"}, "source_address"),
        ({"source_address": ("127.0.0.1",)}, "source_address"),
        ({"source_address": ("127.0.0.1", "0")}, "source_address"),
        ({"source_address": ("127.0.0.1", 70000)}, "source_address"),
        ({"source_address": ("x\0y", 0)}, "source_address"),
        ({"source_address": ("\ud800", 0)}, "source_address"),
        ({"source_address": ("x" * 70 + "\u00e9", 0)}, "source_address"),
        ({"host": "localhost:2525"}, "a host and a port"),
        ({"host": "/run/" + "x" * 200, "security": Security.NONE, "lmtp": True}, "path of a Unix socket"),
        ({"cafile": "\ud800x"}, "cafile is no path"),
        ({"cafile": Path("\ud800x")}, "cafile is no path"),
        ({"ssl_context": "context"}, "ssl_context"),
        ({"credentials": ("ann", SECRET)}, "credentials"),
        ({"username": "ann", "password": SECRET.encode()}, "password"),
        ({"timeouts": 5}, "timeouts"),
        ({"idle_timeout": True}, "idle_timeout"),
        ({"local_hostname": 5}, "local_hostname"),
    ],
)
def test_a_setting_that_no_dial_could_use_is_refused_at_once(settings: dict[str, Any], named: str) -> None:
    """By name, and without its value where that may be a password."""
    with pytest.raises(InvalidConfig, match=named) as info:
        ServerConfig(**{"host": "localhost", **settings})
    assert SECRET not in str(info.value)


def test_a_source_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with CaptureServer() as server:
        config = dataclasses.replace(server.config, source_address=("127.0.0.1", 0))
        with Client(config) as client:
            assert client.send(envelope()).outcome is Outcome.SENT


# ---------------------------------------------------------------- refused logins


class Clock:
    """The package's clock, moved by hand on top of the real one."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.real = _deadline.now

    def __call__(self) -> float:
        return self.real() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hands = Clock()
    for module in (_deadline, _kept, _opening, _socket, _wire, client_module):
        monkeypatch.setattr(module, "now", hands)
    return hands


def offered(server: ScriptedServer) -> list[str]:
    """The passwords that the server was told, in order."""
    lines = [line for lines in server.received for line in lines if line.upper().startswith("AUTH PLAIN")]
    return [base64.b64decode(line.split()[2]).split(b"\0")[2].decode() for line in lines]


def doorman() -> ScriptedServer:
    """Lets in who says "right"."""
    return ScriptedServer([Serve(auth={"ann": "right"}, mechanisms=("PLAIN",))], last="repeat")


def config_of(server: ScriptedServer, **settings: Any) -> ServerConfig:
    return ServerConfig(server.host, server.port, local_hostname="me.test", **settings)


def by_turns(*passwords: str) -> Raising:
    """A callable that gives one after another, and the last one again and again."""
    left = list(passwords)
    return lambda: ("ann", left.pop(0) if len(left) > 1 else left[0])


def sends(client: Client, times: int) -> list[str]:
    """What came of so many messages: the outcome, or the class of the error."""
    told = []
    for _ in range(times):
        try:
            told.append(client.send(envelope()).outcome.value)
        except MailError as error:
            told.append(type(error).__name__)
    return told


def test_a_callable_is_asked_each_time_and_its_refused_pair_is_offered_once(clock: Clock) -> None:
    """Twenty messages with a token that has expired: one login, one connection. After five minutes one more."""
    with doorman() as server:
        asked: list[int] = []

        def token() -> tuple[str, str]:
            asked.append(1)
            return "ann", "expired"

        with Client(config_of(server, credentials=token)) as client:
            assert sends(client, 20) == ["LoginRefused"] * 20
            assert offered(server) == ["expired"]
            assert server.connections == 1
            assert len(asked) >= 20
            clock.ahead += 301.0
            assert sends(client, 2) == ["LoginRefused"] * 2
            assert offered(server) == ["expired"] * 2


def test_another_token_is_offered_at_once() -> None:
    """The old one was refused; the next send has a new one, and nobody waits five minutes for it."""
    with doorman() as server:
        config = config_of(server, credentials=by_turns("expired", "expired", "right"))
        with Client(config) as client:
            assert sends(client, 2) == ["LoginRefused", "sent"]
        assert offered(server) == ["expired", "right"]


def test_a_token_made_anew_in_the_same_call_is_offered_and_barred_like_the_first() -> None:
    with doorman() as server:
        credentials = by_turns("old", "new", "old", "new", "right")
        with Client(config_of(server, credentials=credentials)) as client:
            assert sends(client, 4) == ["LoginRefused", "LoginRefused", "LoginRefused", "sent"]
        assert offered(server) == ["old", "new", "right"]


def test_a_refused_password_is_known_to_all_clients_of_a_config_and_no_other() -> None:
    """One wrong password in a pool or a sender counts as one at the server. Another config has another one."""
    with doorman() as server:
        wrong = config_of(server, username="ann", password="wrong")
        with Client(wrong) as one, Client(wrong) as two:
            assert sends(one, 2) + sends(two, 2) == ["LoginRefused"] * 4
        with Client(dataclasses.replace(wrong, password="right")) as three:
            assert sends(three, 1) == ["sent"]
        assert offered(server) == ["wrong", "right"]


def test_the_error_says_whether_another_pair_may_come() -> None:
    with doorman() as server:
        for config, fixed in (
            (config_of(server, username="ann", password="wrong"), True),
            (config_of(server, credentials=lambda: ("ann", "wrong")), False),
        ):
            with Client(config) as client:
                for _ in range(2):
                    with pytest.raises(LoginRefused) as info:
                        client.send(envelope())
                    assert info.value.pair_is_fixed is fixed
                    assert info.value.smtp_code == 535


def test_a_passing_refusal_bars_nobody() -> None:
    """454: the server cannot say now."""
    busy: Script = [greeting(), ehlo("AUTH PLAIN"), Expect("AUTH"), Reply("454 4.7.0 not now")]
    with ScriptedServer(busy, [Serve(auth={"ann": "right"}, mechanisms=("PLAIN",))]) as server:
        with Client(config_of(server, username="ann", password="right")) as client:
            with pytest.raises(LoginRefused) as info:
                client.send(envelope())
            assert info.value.may_resend
            assert sends(client, 1) == ["sent"]


def test_what_is_remembered_is_no_password() -> None:
    """A hash with a key of the process; a copy elsewhere begins anew; and it goes when its time is over."""
    refused = RefusedLogins()
    refused.bar(mark("ann", SECRET), LoginRefused(535, b"no"), until=100.0, now=0.0)
    assert SECRET not in repr(vars(refused)) + repr(refused)
    assert refused.any(99.0)
    assert refused.refusal(mark("ann", SECRET), 99.0) is not None
    assert refused.refusal(mark("ann", SECRET), 100.0) is None
    assert refused.refusal(mark("an", f"n{SECRET}"), 50.0) is None
    told = refused.refusal(mark("ann", SECRET), 12.4)
    assert told is not None
    assert (told.smtp_code, told.smtp_error) == (535, b"no")
    assert str(told) == (
        "the server answered 535 no; not asked again: this login was refused 12 s ago; the next try is in 88 s, "
        "or with another password"
    )
    assert str(pickle.loads(pickle.dumps(told))) == str(MailError.from_dict(told.to_dict())) == str(told)
    refused.bar(mark("bob", "x"), LoginRefused(535, b"no"), until=300.0, now=200.0)
    assert len(refused._refused) == 1
    assert not pickle.loads(pickle.dumps(refused)).any(250.0)
    config = ServerConfig("localhost", username="ann", password=SECRET)
    config._refused_logins.bar(mark("ann", SECRET), LoginRefused(535, b"no"), until=100.0, now=0.0)
    for copied in (pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
        assert copied == config
        assert not copied._refused_logins.any(50.0)
    assert "refused" not in repr(config)
