"""Who stands between client and server gets neither mail nor password.

Every way to take TLS away, or to fake it, is tried on a client, a pool and a sender with credentials and a message in
hand: the server, or whoever plays it, sees nothing of either.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.mail import envelope
from threadmail import (
    LMTP,
    SMTP,
    BadReply,
    Client,
    ClientPool,
    InsecureLogin,
    InvalidConfig,
    MailError,
    NotConnected,
    NotSupported,
    Outcome,
    Phase,
    RetryPolicy,
    Security,
    ServerConfig,
    StartTLSRefused,
    ThreadedSender,
    TLSFailed,
)
from threadmail.cli import main
from threadmail.testing import (
    CaptureServer,
    Expect,
    Reply,
    Script,
    ScriptedServer,
    Send,
    Serve,
    Stall,
    StartTLS,
    TestCA,
    answer,
    ehlo,
    greeting,
)

USER, SECRET = "ann", "correct horse"
Way = Callable[[ServerConfig], None]


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


@pytest.fixture(scope="module")
def cafile(ca: TestCA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.write_ca(path)
    return str(path)


def config_of(server: Any, security: Security = Security.STARTTLS, **values: Any) -> ServerConfig:
    values = {"username": USER, "password": SECRET, "local_hostname": "test", **values}
    return ServerConfig(server.host, server.port, security, **values)


def client(config: ServerConfig) -> None:
    with Client(config) as client:
        client.send(envelope())


def pool(config: ServerConfig) -> None:
    with ClientPool(config) as pool:
        pool.send(envelope())


def sender(config: ServerConfig) -> None:
    with ThreadedSender(config, workers=2, retry=RetryPolicy(attempts=1)) as sender:
        for receipt in sender.send_all([envelope("a"), envelope("b")]):
            assert receipt.outcome is Outcome.NOT_SENT
        receipt.raise_for_failure()


WAYS: list[Way] = [client, pool, sender]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)


def seen(server: ScriptedServer) -> set[str]:
    """The verbs of the commands that came, in whatever kind of connection."""
    return {line.split()[0].upper() for lines in server.received for line in lines if line}


# ---------------------------------------------------------------- no TLS


@every_way
def test_a_stripped_starttls_ends_the_session(way: Way) -> None:
    """Somebody took it out of the EHLO reply: without it nothing is said."""
    with ScriptedServer([greeting(), ehlo("AUTH PLAIN"), Serve(auth={USER: SECRET})], last="repeat") as server:
        with pytest.raises(NotSupported, match="no STARTTLS") as info:
            way(config_of(server))
    assert (info.value.phase, info.value.outcome, info.value.transient) == (Phase.TLS, Outcome.NOT_SENT, False)
    assert seen(server) == {"EHLO"}


@pytest.mark.parametrize("code", [454, 500, 554])
def test_a_refused_starttls_ends_the_session(code: int) -> None:
    script: Script = [greeting(), ehlo("STARTTLS", "AUTH PLAIN"), answer("STARTTLS", f"{code} no"), Serve()]
    with ScriptedServer(script) as server:
        with pytest.raises(StartTLSRefused) as info:
            client(config_of(server))
    assert info.value.transient is (code == 454)
    assert seen(server) == {"EHLO", "STARTTLS"}


@every_way
def test_what_was_said_before_the_handshake_counts_for_nothing(way: Way) -> None:
    """Bytes behind the 220 would be read as the first reply under TLS (CVE-2011-0411, NO STARTTLS 2021)."""
    injected = b"220 go\r\n250-mx\r\n250 AUTH PLAIN\r\n"
    script: Script = [greeting(), ehlo("STARTTLS"), Expect("STARTTLS"), Send(injected), Stall()]
    with ScriptedServer(script, last="repeat") as server:
        with pytest.raises(BadReply, match="out of turn") as info:
            way(config_of(server))
    assert info.value.outcome is Outcome.NOT_SENT
    assert seen(server) == {"EHLO", "STARTTLS"}


def test_extensions_offered_in_the_clear_are_forgotten(ca: TestCA) -> None:
    """Who stands in between could offer a weak AUTH before the handshake; EHLO is said again behind it."""
    script: Script = [
        *(greeting(), ehlo("STARTTLS", "AUTH LOGIN", "X-FORGED"), answer("STARTTLS", "220 go"), StartTLS()),
        *(ehlo("AUTH PLAIN"), Expect("AUTH PLAIN"), Reply("235 ok"), Serve()),
    ]
    with ScriptedServer(script, tls="starttls", ca=ca) as server:
        client(config_of(server, ssl_context=ca.client_context()))
    assert len(server.messages) == 1
    assert server.messages[0].tls


def test_a_plain_session_after_a_failed_starttls_is_not_to_be_had() -> None:
    """smtplib leaves one, and code that catches the error goes on in the clear. Here there is no connection then."""
    with ScriptedServer([greeting(), ehlo("STARTTLS"), answer("STARTTLS", "454 not now"), Serve()]) as server:
        smtp = SMTP(server.host, server.port, "test", timeout=10.0)
        with pytest.raises(StartTLSRefused):
            smtp.starttls()
        with pytest.raises(NotConnected):
            smtp.sendmail("ann@x.test", "bob@x.test", b"Subject: x\r\n\r\nbody\r\n")
    assert seen(server) == {"EHLO", "STARTTLS"}


@pytest.mark.parametrize("said", [b"220 mx ESMTP\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\0\2\2\x28"])
def test_plaintext_where_tls_is_due_ends_the_session(said: bytes) -> None:
    with ScriptedServer([Send(said), Stall()]) as server:
        with pytest.raises(TLSFailed):
            client(config_of(server, Security.TLS))
    assert seen(server) == set()


# ---------------------------------------------------------------- another's TLS

CERTIFICATES = [
    "expired_server_context",
    "wrong_host_server_context",
    "self_signed_server_context",
    "untrusted_server_context",
]


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS], ids=lambda s: s.value)
@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_a_bad_certificate_gets_no_password(ca: TestCA, cafile: str, certificate: str, security: Security) -> None:
    """Expired, made out to another host, signed by itself or by nobody known: permanent, and the cause is named."""
    before: Script = [greeting(), ehlo("STARTTLS", "AUTH PLAIN"), answer("STARTTLS", "220 go"), StartTLS()]
    with ScriptedServer(
        [*(before if security is Security.STARTTLS else []), Serve(auth={USER: SECRET})],
        tls=security.value,
        ssl_context=getattr(ca, certificate)(),
    ) as server:
        with pytest.raises(TLSFailed, match="certificate") as info:
            client(config_of(server, security, cafile=cafile))
    assert (info.value.phase, info.value.outcome, info.value.transient) == (Phase.TLS, Outcome.NOT_SENT, False)
    assert seen(server) <= {"EHLO", "STARTTLS"}
    assert server.messages == []


@every_way
@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS], ids=lambda s: s.value)
def test_nobody_is_trusted_unasked(ca: TestCA, security: Security, way: Way) -> None:
    """No setting at all means verified: an authority the system does not know is refused, at every level."""
    with CaptureServer(tls=security.value, ca=ca, auth={USER: SECRET}) as server:
        with pytest.raises(TLSFailed, match="certificate"):
            way(config_of(server, security))
        assert server.messages == []


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS], ids=lambda s: s.value)
def test_the_right_certificate_is_good(ca: TestCA, cafile: str, security: Security) -> None:
    """So that the tests above refuse for the reason they say."""
    with CaptureServer(tls=security.value, ca=ca, auth={USER: SECRET}) as server:
        client(config_of(server, security, cafile=cafile))
        assert server.messages[0].username == USER


def old_tls(ca: TestCA) -> ssl.SSLContext:
    context = ca.server_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS], ids=lambda s: s.value)
def test_tls_before_1_2_is_refused(ca: TestCA, cafile: str, security: Security) -> None:
    """RFC 8996, RFC 9325: it is no protection any more. Consent takes a context of one's own."""
    before: Script = [greeting(), ehlo("STARTTLS", "AUTH PLAIN"), answer("STARTTLS", "220 go"), StartTLS()]
    script = [*(before if security is Security.STARTTLS else []), Serve(auth={USER: SECRET})]
    with ScriptedServer(script, tls=security.value, ssl_context=old_tls(ca)) as server:
        with pytest.raises(TLSFailed) as info:
            client(config_of(server, security, cafile=cafile))
    assert info.value.phase is Phase.TLS
    assert seen(server) <= {"EHLO", "STARTTLS"}
    default = config_of(server, security, cafile=cafile).make_ssl_context()
    assert default.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert default.check_hostname
    assert default.verify_mode is ssl.CERT_REQUIRED


def test_starttls_of_the_guarded_client_verifies_the_host_it_was_connected_to(ca: TestCA) -> None:
    """Also when the name came with connect(), where smtplib has no name to verify and raises; and by every name."""
    with CaptureServer(tls="starttls", ca=ca) as server:
        for host in ("localhost", "127.0.0.1"):
            smtp = SMTP(local_hostname="test", timeout=10.0)
            smtp.connect(host, server.port)
            smtp.starttls(context=ca.client_context())
            assert smtp.is_encrypted
            smtp.quit()


# ---------------------------------------------------------------- passwords in the clear


def elsewhere(smtp: SMTP | LMTP) -> None:
    """As if the server were another machine; there is none to be had here."""
    smtp._peer_is_local = lambda: False  # type: ignore[method-assign]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"])
def test_no_mechanism_sends_credentials_in_the_clear(mechanism: str) -> None:
    """Nor one that hides the password: what follows the login would still be anybody's."""
    with ScriptedServer([Serve(auth={USER: SECRET}, mechanisms=(mechanism,))]) as server:
        smtp = SMTP(server.host, server.port, "test", timeout=10.0)
        elsewhere(smtp)
        with pytest.raises(InsecureLogin, match="in the clear") as info:
            smtp.login(USER, SECRET, mechanism=mechanism)
        assert (info.value.phase, info.value.transient) == (Phase.AUTH, False)
        smtp.allow_plaintext_login = True
        assert smtp.login(USER, SECRET, mechanism=mechanism)[0] == 235, "by consent"
        smtp.quit()
    assert [line.split()[0] for line in server.received[0] if line.upper().startswith("AUTH")] == ["AUTH"]


def test_a_config_with_credentials_and_no_tls_is_none() -> None:
    for values in ({"username": USER, "password": SECRET}, {"credentials": lambda: (USER, SECRET)}):
        with pytest.raises(InvalidConfig, match="in the clear"):
            ServerConfig("mx.example.test", **values)


@pytest.mark.parametrize("command", ["check", "send"])
def test_the_command_line_says_it_in_its_own_words(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What to do comes first; the consent is said to be Python's, for there is no option that gives it."""
    letter = tmp_path / "letter.eml"
    letter.write_bytes(b"From: a@x.test\nTo: b@x.test\n\nbody\n")
    url = f"smtp://{USER}:pa55word@mx.example.test"
    assert main([command, *(["--server", url, str(letter)] if command == "send" else [url])]) != 0
    said = capsys.readouterr().err
    assert "use smtp+starttls:// or smtps://" in said
    assert "Python code may consent" in said
    assert "pa55word" not in said


def test_every_error_of_this_kind_is_of_ours() -> None:
    """So that one `except` is enough not to go on in the clear by mistake."""
    for kind in (NotSupported, StartTLSRefused, TLSFailed, InsecureLogin, BadReply):
        assert issubclass(kind, MailError)
