"""`threadmail sandbox`: what it prints, what it stores, and how it ends."""

from __future__ import annotations

import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from threadmail import Client, MailError
from threadmail.cli import main
from threadmail.cli.exit_codes import Exit

MESSAGE = b"From: ada@example.org\nTo: bob@example.net\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n\nhello\n.dot\n"
WIRE = MESSAGE.replace(b"\n", b"\r\n")


@contextmanager
def sandbox(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A sandbox on a port of its own, and its URL."""
    argv = [sys.executable, "-m", "threadmail", "sandbox", "--port", "0", *options]
    # A text pipe whose encoding is given: what is tested is what we write, not the locale.
    settings: dict[str, Any] = {"env": {"PYTHONIOENCODING": "utf-8"}, "encoding": "utf-8"}
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], **settings
    ) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        assert words[:2] == ["listening", "on"]
        try:
            yield process, words[2]
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=10)
    assert "Traceback" not in out + err
    return out, err


def test_it_prints_a_line_for_each_message_and_ends_with_ctrl_c() -> None:
    with sandbox() as (process, url):
        with Client(url) as client:
            client.send(MESSAGE)
            assert process.stdout is not None
            assert process.stdout.readline().startswith("   1  ada@example.org -> bob@example.net  'Grüße'")
        process.send_signal(signal.SIGINT)
        _, err = finish(process)
        assert process.returncode == Exit.INTERRUPTED
        assert err.splitlines()[-1] == "threadmail: 1 message received"


def test_it_ends_after_as_many_messages_as_it_was_told(tmp_path: Path) -> None:
    with sandbox("--max-messages", "2", "--full", "--store", str(tmp_path / "caught")) as (process, url):
        with Client(url) as client:
            client.send(MESSAGE)
            client.send(MESSAGE.replace(b"hello", b"\x1b[31mred"))
            try:
                client.send(MESSAGE)
            except MailError:
                pass  # 452, or the server is gone
            else:
                raise AssertionError("a third message was taken")
        out, _ = finish(process)
        assert process.returncode == 0
    assert "      | hello" in out
    assert "\\x1b[31mred" in out
    assert "\x1b" not in out
    stored = sorted((tmp_path / "caught").iterdir())
    assert [path.suffix for path in stored] == [".eml", ".eml"]
    assert stored[0].read_bytes() == WIRE


def test_what_a_client_says_drives_no_terminal() -> None:
    """aiosmtpd logs a command that it does not know, as it came."""
    with sandbox() as (process, url):
        host, _, port = url.removeprefix("smtp://").partition(":")
        with socket.create_connection((host, int(port)), 10) as client, client.makefile("rb") as replies:
            assert replies.readline().startswith(b"220 ")
            client.sendall(b"\x1b[31mBAD\r\n")
            assert replies.readline().startswith(b"500 ")
        process.send_signal(signal.SIGINT)
        out, err = finish(process)
    assert "unrecognised: \\x1b[31MBAD" in err
    assert "\x1b" not in out + err


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_tls_and_login_by_the_url_it_prints(tls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trustme", reason="it makes the certificate")
    with sandbox("--tls", tls, "--auth", "ada:hunter2", "--max-messages", "1") as (process, url):
        monkeypatch.setenv("THREADMAIL_PASSWORD", "hunter2")
        assert "hunter2" not in url
        with Client(url) as client:
            client.send(MESSAGE)
        out, err = finish(process)
        assert process.returncode == 0
    assert "TLS, user ada" in out
    assert "hunter2" not in out + err


def test_a_message_that_cannot_be_stored_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "caught"
    with sandbox("--store", str(folder)) as (process, url):
        folder.rmdir()
        host, _, port = url.removeprefix("smtp://").partition(":")
        with smtplib.SMTP(host, int(port), "localhost") as smtp, pytest.raises(smtplib.SMTPDataError, match=r"4\.3\.1"):
            smtp.sendmail("ada@example.org", ["bob@example.net"], WIRE)
        process.send_signal(signal.SIGTERM)
        _, err = finish(process)
        assert process.returncode == Exit.TERMINATED
    assert "cannot be written" in err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["sandbox", "--port", str(port)]) == Exit.UNAVAILABLE
    err = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}" in err
    assert "hint: is another sandbox running? --port 0 takes a free one" in err


def test_an_address_that_is_not_this_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "--host", "192.0.2.1", "--port", "0"]) == Exit.UNAVAILABLE
    err = capsys.readouterr().err
    assert "cannot listen on 192.0.2.1:0" in err
    assert "another sandbox" not in err


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert main(["sandbox", "--port", "0", "--store", str(path)]) == Exit.CANNOT_CREATE
    assert "is no folder to write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "options", "line"),
    [
        ("aiosmtpd.smtp", [], "pip install 'threadmail[cli,sandbox]'"),
        ("trustme", ["--tls", "tls"], "pip install trustme"),
    ],
)
def test_what_is_missing_is_named(
    module: str,
    options: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["sandbox", "--port", "0", *options]) == Exit.UNAVAILABLE
    assert line in capsys.readouterr().err
