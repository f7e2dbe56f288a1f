"""`threadmail check`: what is shown of a server, and what is said when it cannot be used."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from threadmail.cli import main
from threadmail.cli.check import _human
from threadmail.cli.exit_codes import Exit
from threadmail.testing import (
    CaptureServer,
    Drop,
    Expect,
    Reply,
    ScriptedServer,
    Send,
    Serve,
    Stall,
    TestCA,
    answer,
    ehlo,
    greeting,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THREADMAIL_URL", "THREADMAIL_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


@pytest.fixture
def cafile(ca: TestCA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.write_ca(path)
    return str(path)


def facts(out: str) -> dict[str, str]:
    """The table, by name."""
    pairs = [line.strip().split("  ", 1) for line in out.splitlines() if "  " in line.strip()]
    return {name: value.strip() for name, value in pairs}


def test_a_plain_server(capsys: pytest.CaptureFixture[str]) -> None:
    with CaptureServer(extensions=("8BITMIME", "CHUNKING", "DSN"), size_limit=36_700_160) as server:
        assert main(["check", server.url]) == 0
        assert server.messages == []
        assert server.quits == 1
    out, err = capsys.readouterr()
    shown = facts(out)
    assert shown["address"] == "127.0.0.1"
    assert shown["greeting"].startswith("220 ")
    assert shown["TLS"].startswith("none")
    assert shown["offers"] == "CHUNKING 8BITMIME"
    assert shown["lacks"] == "PIPELINING SMTPUTF8"
    assert "DSN" in shown["also offers"]
    assert shown["message size"] == "36,700,160 octets (35 MiB) at most"
    assert shown["login"] == "none offered"
    assert shown["round trip"].endswith("ms (median of 5 NOOPs)")
    assert "is ready for mail" in out
    assert "Traceback" not in err


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_a_server_with_tls_and_login(
    tls: Any, ca: TestCA, cafile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with CaptureServer(tls=tls, ca=ca, auth={"ada": "hunter2"}) as server:
        monkeypatch.setenv("THREADMAIL_URL", f"{server.url}?cafile={cafile}")
        assert main(["check"]) == 0
    out, err = capsys.readouterr()
    shown = facts(out)
    assert shown["server"].startswith("smtp+starttls://ada@" if tls == "starttls" else "smtps://ada@")
    assert shown["TLS"].startswith("TLSv1.")
    assert "bits" in shown["TLS"]
    assert "trustme" in shown["certificate"]
    assert "trustme" in shown["issued by"]
    assert "127.0.0.1" in shown["valid for"]
    assert shown["valid"].endswith("days left")
    assert shown["login"].endswith("; accepted")
    assert "login " in shown["time"]
    assert "hunter2" not in out + err


def test_json(ca: TestCA, cafile: str, capsys: pytest.CaptureFixture[str]) -> None:
    with CaptureServer(tls="starttls", ca=ca, auth={"ada": "hunter2"}) as server:
        assert main(["check", "--json", f"{server.url}?cafile={cafile}"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["ok"], told["login"], told["exit_code"], told["size"]) == (True, True, 0, 33554432)
        assert told["tls"]["version"].startswith("TLSv1.")
        assert "127.0.0.1" in told["certificate"]["names"]
        assert told["auth"][0] == "PLAIN"
        assert [step["step"] for step in told["steps"]][-1] == "login"
        wrong = server.url.replace("hunter2", "hunter3")
        assert main(["check", "--json", f"{wrong}?cafile={cafile}"]) == Exit.LOGIN
        told = json.loads(capsys.readouterr().out)
        assert (told["ok"], told["login"], told["exit_code"]) == (False, False, 77)
        assert "535" in told["error"]
        assert "password" in told["advice"]


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ssl

    import trustme  # here, so that the other tests run where it is not to be had

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    soon = datetime.now(timezone.utc) + timedelta(days=5, hours=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=soon).configure_cert(context)
    with CaptureServer(tls="tls", ssl_context=context) as server:
        assert main(["check", f"{server.url}?cafile={tmp_path}/ca.pem"]) == 0
    out, err = capsys.readouterr()
    assert facts(out)["valid"].endswith("5 days left")
    assert "warning: the certificate expires in 5 days" in err


def test_starttls_that_is_not_used_is_a_warning(ca: TestCA, capsys: pytest.CaptureFixture[str]) -> None:
    with CaptureServer(tls="starttls", ca=ca) as server:
        assert main(["check", f"smtp://{server.host}:{server.port}"]) == 0
    assert "smtp+starttls:// would encrypt" in capsys.readouterr().err


# ---------------------------------------------------------------- what can go wrong


@contextmanager
def nothing_there() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"smtp://127.0.0.1:{port}"


@contextmanager
def no_such_name() -> Iterator[str]:
    yield "smtp://no-such-host.invalid"


@contextmanager
def scripted(scheme: str, *steps: Any) -> Iterator[str]:
    with ScriptedServer(steps, last="repeat") as server:
        yield f"{scheme}://127.0.0.1:{server.port}"


@contextmanager
def capturing(scheme: str, **settings: Any) -> Iterator[str]:
    with CaptureServer(**settings) as server:
        yield f"{scheme}://127.0.0.1:{server.port}"


CASES: dict[str, tuple[Any, set[Exit], str, str]] = {
    "name": (no_such_name, {Exit.NO_HOST, Exit.TRY_LATER}, "cannot be resolved", "spelling"),
    "nothing listens": (nothing_there, {Exit.TRY_LATER}, "nothing listens there", "is the server running"),
    "a web server": (
        lambda: scripted("smtp", Send(b"HTTP/1.1 400 Bad Request\r\n"), Drop()),
        {Exit.UNAVAILABLE},
        "is no SMTP server",
        "something else than a mail server",
    ),
    "silence": (lambda: scripted("smtp", Stall()), {Exit.TRY_LATER}, "no greeting", "try smtps://"),
    "unwelcome": (
        lambda: scripted("smtp", *greeting("554 5.7.1 blocked"), Drop()),
        {Exit.UNAVAILABLE},
        "554 5.7.1 blocked",
        "ask who runs it",
    ),
    "hangs up": (lambda: scripted("smtp", Drop()), {Exit.TRY_LATER}, "closed the connection", "try smtps://"),
    "TLS on a STARTTLS port": (
        lambda: capturing("smtps", tls="none"),
        {Exit.TRY_LATER, Exit.UNAVAILABLE},
        "TLS handshake",
        "try smtp+starttls://",
    ),
    "no STARTTLS": (
        lambda: capturing("smtp+starttls", tls="none"),
        {Exit.UNAVAILABLE},
        "offers no STARTTLS",
        "try smtps://",
    ),
    "STARTTLS refused": (
        lambda: scripted("smtp+starttls", *greeting(), *ehlo("STARTTLS"), *answer("STARTTLS", "454 4.7.0 not now")),
        {Exit.TRY_LATER},
        "454 4.7.0 not now",
        "ask who runs it",
    ),
    "no AUTH": (lambda: capturing("smtp"), {Exit.UNAVAILABLE}, "offers no AUTH", "login only under TLS"),
    "wrong password": (
        lambda: capturing("smtp", auth={"ada": "right"}),
        {Exit.LOGIN},
        "535",
        "check user name and password",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_failure_has_its_cause_and_its_advice(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    server, codes, cause, advice = CASES[name]
    login = name in ("no AUTH", "wrong password")
    with server() as url:
        url = url.replace("://", "://ada:hunter2@") if login else url
        assert main(["check", url, "--timeout", "0.3" if name == "silence" else "5"]) in codes
    out, err = capsys.readouterr()
    assert cause in err
    assert advice in err
    assert "Traceback" not in out + err
    assert "hunter2" not in out + err
    assert "ready for mail" not in out


def test_plain_smtp_on_a_tls_port_is_found_out(ca: TestCA, capsys: pytest.CaptureFixture[str]) -> None:
    with CaptureServer(tls="tls", ca=ca) as server:
        assert main(["check", f"smtp://{server.host}:{server.port}", "--timeout", "0.3"]) == Exit.TRY_LATER
        assert "speaks TLS from the first byte" in capsys.readouterr().err


@pytest.mark.parametrize("tls", ["starttls", "tls"])
@pytest.mark.parametrize(
    ("kind", "cause", "advice", "fact"),
    [
        ("expired", "expired", "new certificate", "expired 1 day ago"),
        ("wrong host", "mismatch", "use the name", "wrong-host.example"),
        ("self-signed", "self-signed", "?cafile=", "trustme"),
        ("untrusted", "unable to get local issuer", "?cafile=", "127.0.0.1"),
    ],
)
def test_a_certificate_that_is_not_valid_is_shown_all_the_same(
    tls: Any,
    kind: str,
    cause: str,
    advice: str,
    fact: str,
    ca: TestCA,
    cafile: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contexts = {
        "expired": ca.expired_server_context,
        "wrong host": ca.wrong_host_server_context,
        "self-signed": ca.self_signed_server_context,
        "untrusted": ca.untrusted_server_context,
    }
    with ScriptedServer([Serve()], last="repeat", tls=tls, ssl_context=contexts[kind]()) as server:
        code = main(["check", f"{server.url.replace('://', '://ada:hunter2@')}?cafile={cafile}"])
        assert not any("AUTH" in line or "hunter2" in line for lines in server.received for line in lines)
    assert code == Exit.UNAVAILABLE
    out, err = capsys.readouterr()
    assert cause in err.lower().replace("self signed", "self-signed")
    assert advice in err
    assert fact in out
    assert "ready for mail" not in out


def test_a_login_without_tls_is_refused_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "smtp://ada:hunter2@mail.example.com"]) == Exit.CONFIG
    out, err = capsys.readouterr()
    assert "in the clear" in err
    assert "hunter2" not in out + err


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_of_an_unknown_host_only_the_lookup_has_a_time(scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", f"{scheme}://no-such-host.invalid"]) in (Exit.NO_HOST, Exit.TRY_LATER)
    assert [step["step"] for step in json.loads(capsys.readouterr().out)["steps"]] == ["name lookup"]


def test_no_server_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """How to name one, in the words of the command, and the variable that may hold it."""
    for argv, way in ((["check"], "a URL"), (["send", "x.eml"], "--server URL")):
        assert main(argv) == Exit.CONFIG
        said = f"no server: name one by {way}, or in THREADMAIL_URL, which is not set: smtp://localhost\n"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["send", "--bogus"], "threadmail send"),
        (["send", "--workers", "0"], "threadmail send"),
        (["check", "smtp://x", "hunter2", "--deadline=3"], "threadmail check"),
        (["sandbox", "--port", "x"], "threadmail sandbox"),
        (["bogus"], "threadmail"),
        ([], "threadmail"),
    ],
)
def test_who_gives_a_wrong_option_is_sent_to_the_help_that_knows(
    argv: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == Exit.USAGE
    err = capsys.readouterr().err
    assert err.endswith(f"Try '{command} --help'.\n")
    assert "hunter2" not in err


def test_server_text_is_printed_safely(capsys: pytest.CaptureFixture[str]) -> None:
    script = [Send(b"220 \x1b[31mred\r\n"), Expect("EHLO"), Reply("250-x\n250 EVIL\x1b[0m"), Serve()]
    with ScriptedServer(script) as server:
        assert main(["check", server.url]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\\x1b[31mred" in out


@pytest.mark.parametrize(
    ("octets", "text"), [(512, "512 octets"), (1024, "1 KiB"), (35_882_577, "34.2 MiB"), (5 * 2**40, "5120 GiB")]
)
def test_sizes_for_people(octets: int, text: str) -> None:
    assert _human(octets) == text
