"""`threadmail send`: what goes in, what arrives, what is said about it, and the exit code."""

from __future__ import annotations

import contextlib
import io
import json
import mailbox
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import corpus
from threadmail import Envelope
from threadmail.cli import exit_codes as _cli_exit
from threadmail.cli import main
from threadmail.cli import send as _cli_send
from threadmail.cli import sources as _cli_sources
from threadmail.cli.exit_codes import Exit
from threadmail.cli.sources import Item
from threadmail.testing import (
    CapturedMessage,
    CaptureServer,
    Drop,
    Expect,
    Pause,
    ReadData,
    Reply,
    ScriptedServer,
    Send,
    Serve,
    Signal,
    Stall,
    answer,
    ehlo,
    goodbye,
    greeting,
)

MESSAGE = b"From: ada@example.org\nTo: bob@example.net\nSubject: x\n\nhello\n"
ROOT = Path(__file__).parents[2]
OPENING = [*greeting(), *ehlo()]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THREADMAIL_URL", "THREADMAIL_PASSWORD", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sink() -> Iterator[CaptureServer]:
    with CaptureServer() as server:
        yield server


@pytest.fixture
def letter(tmp_path: Path) -> str:
    path = tmp_path / "letter.eml"
    path.write_bytes(MESSAGE)
    return str(path)


def letters(folder: Path, count: int) -> str:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        data = MESSAGE.replace(b"ada", b"ada-%d" % number)
        (folder / f"{number:03}.eml").write_bytes(data)
    return str(folder)


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def differences(expected: list[corpus.Sample], server: CaptureServer) -> list[str]:
    """As `corpus.differences`; aiosmtpd unquotes the local part of "john..doe", which is no fault of ours."""
    return [d for d in corpus.differences(expected, server.messages) if not d.startswith("quoted-local-parts.eml: env")]


def told(out: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The messages and the summary of `--json`, of which every line is an object."""
    *messages, summary = [json.loads(line) for line in out.splitlines()]
    return messages, summary["summary"]


# ---------------------------------------------------------------- what arrives


def test_the_corpus_arrives_byte_for_byte(sink: CaptureServer, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["send", "--server", sink.url, str(corpus.MESSAGES)])
    assert code == 0
    assert differences(corpus.samples(), sink) == []
    total = len(corpus.samples())
    out, err = capsys.readouterr()
    assert f"{total} of {total} messages sent" in out
    assert err == ""


def test_bad_files_are_named_and_cost_nobody_else(sink: CaptureServer, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["send", "--server", sink.url, str(corpus.BAD), str(corpus.MESSAGES)])
    assert code == Exit.UNFIT
    assert differences(corpus.samples(), sink) == []
    out = capsys.readouterr().out
    for path in corpus.bad_files():
        [line] = [line for line in out.splitlines() if line.startswith(str(path))]
        assert "unfit" in line


def test_an_mbox_file_is_its_messages(sink: CaptureServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", "--server", sink.url, str(corpus.MBOX), "--json"]) == 0
    by_name = {sample.name: sample for sample in corpus.samples()}
    assert differences([by_name[name] for name in corpus.IN_MBOX], sink) == []
    messages, _ = told(capsys.readouterr().out)
    numbered = [f"{corpus.MBOX}#{number}" for number in range(1, len(corpus.IN_MBOX) + 1)]
    assert sorted(m["file"] for m in messages) == numbered


@pytest.mark.parametrize(
    "data",
    [
        b"From a\nA: 1\n\nbody\n\nFrom b\nB: 2\n\n",
        b"From a\nA: 1\n\nbody\n>From here\n>>From there\n\nFrom b\nB: 2\n\nno end",
        b"From a\nA: 1\n\nno empty line before the next\nFrom b\nB: 2\n\n\n\n",
        b"From a\nFrom b\nB: 2\n\nFrom c\n\n",
        b"From a",
    ],
)
def test_an_mbox_is_divided_as_the_standard_library_divides_it(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "box"
    path.write_bytes(data)
    box = mailbox.mbox(path, create=False)
    try:
        expected = [box.get_bytes(key) for key in box.iterkeys()]
    finally:
        box.close()
    assert [item.content for item in _cli_sources.items([str(path)], io.BytesIO())] == expected


def test_a_from_field_in_the_old_syntax_is_no_mbox_line(
    sink: CaptureServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """RFC 5322 section 4.5. The field was lost, and in an mbox what stood behind it was a message of its own."""
    old = b"From : ann@example.org\nTo: bob@example.net\n\nFrom \t: ann\nx\n"
    give_stdin(monkeypatch, old)
    assert main(["send", "--server", sink.url]) == 0
    assert [m.content for m in sink.messages] == [old.replace(b"\n", b"\r\n")]
    path = tmp_path / "box"
    path.write_bytes(b"From a\n" + old + b"\nFrom b\n" + old)
    assert [item.content for item in _cli_sources.items([str(path)], io.BytesIO())] == [old, old]


def test_folders_are_searched_in_order_and_hidden_files_left_alone(tmp_path: Path) -> None:
    for name in ("b.eml", "a.EML", "._b.eml", "notes.txt", "c/z.eml", "c/y.eml", ".hidden/x.eml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(MESSAGE)
    names = [os.path.relpath(item.name, tmp_path) for item in _cli_sources.items([str(tmp_path)], io.BytesIO())]
    assert names == ["a.EML", "b.eml", os.path.join("c", "y.eml"), os.path.join("c", "z.eml")]
    assert _cli_sources.count([str(tmp_path)]) == 4


def test_a_maildir_gives_its_cur_and_new(tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "box")
    for text in ("one", "two"):
        box.add(MESSAGE + text.encode())
    (tmp_path / "box" / "tmp" / "half-written").write_bytes(b"From: a")
    found = [item.content for item in _cli_sources.items([str(tmp_path / "box")], io.BytesIO())]
    assert sorted(found) == [MESSAGE + b"one", MESSAGE + b"two"]


def test_standard_input_is_a_message(sink: CaptureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADMAIL_URL", sink.url)
    give_stdin(monkeypatch, MESSAGE)
    assert main(["send", "-"]) == 0
    give_stdin(monkeypatch, MESSAGE)
    assert main(["send"]) == 0
    give_stdin(monkeypatch, b"From x\n" + MESSAGE + b"\nFrom y\n" + MESSAGE)
    assert main(["send"]) == 0
    assert {m.content for m in sink.messages} == {MESSAGE.replace(b"\n", b"\r\n")}
    assert len(sink.messages) == 4


def test_sender_and_recipients_can_be_given(sink: CaptureServer, letter: str) -> None:
    options = ["--from", "bounces@example.org", "--to", "x@example.net", "--to", "y@example.net"]
    assert main(["send", "--server", sink.url, letter, *options]) == 0
    [mail] = sink.messages
    assert mail.sender == "bounces@example.org"
    assert mail.recipients == ("x@example.net", "y@example.net")


def test_the_password_comes_from_the_environment(
    letter: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THREADMAIL_PASSWORD", "open:sesame")
    with CaptureServer(auth={"ada": "open:sesame"}, require_auth=True) as server:
        url = f"smtp://ada@{server.host}:{server.port}"
        assert main(["send", "--server", url, letter, "--debug"]) == 0
        assert [m.username for m in server.messages] == ["ada"]
    out, err = capsys.readouterr()
    assert "MAIL FROM" in err.upper()
    assert "sesame" not in out + err


def test_a_dry_run_checks_and_connects_to_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", "--dry-run", str(corpus.MESSAGES), str(corpus.BAD)]) == Exit.UNFIT
    good, bad = len(corpus.samples()), len(corpus.bad_files())
    assert f"{good} of {good + bad} messages fit to be sent; nothing was sent" in capsys.readouterr().out
    assert main(["send", "--dry-run", "--json", str(corpus.MBOX)]) == 0
    messages, summary = told(capsys.readouterr().out)
    assert [m["outcome"] for m in messages] == ["fit"] * summary["fit"] == ["fit"] * 6


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ([*answer("RCPT", "550 5.1.1 no such user"), *answer("RSET", "250 ok")], Exit.REFUSED, "no such user"),
        ([*answer("RCPT", "451 4.3.0 greylisted"), *answer("RSET", "250 ok")], Exit.TRY_LATER, "greylisted"),
        ([*answer("DATA", "554 5.7.1 spam"), *answer("RSET", "250 ok")], Exit.UNAVAILABLE, "spam"),
        ([Expect("DATA"), Reply("354 go"), ReadData(), Drop()], Exit.IN_DOUBT, "in doubt"),
        ([Expect("DATA"), Drop()], Exit.TRY_LATER, "closed the connection"),
    ],
    ids=["recipient", "greylisted", "content", "doubt", "lost"],
)
def test_what_a_server_answers_decides_the_exit_code(
    script: list[Any], code: Exit, words: str, letter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opening = [*OPENING, *answer("MAIL", "250 ok")]
    if not (isinstance(script[0], Expect) and script[0].pattern == "RCPT"):
        opening += answer("RCPT", "250 ok")
    end = [] if any(isinstance(step, Drop) for step in script) else goodbye()
    with ScriptedServer([*opening, *script, *end], last="repeat") as server:
        assert main(["send", "--server", server.url, letter, "--attempts", "1"]) == code
    assert words in capsys.readouterr().out


def test_a_message_for_some_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.eml"
    path.write_bytes(MESSAGE.replace(b"bob@example.net", b"bob@example.net, eve@example.net"))

    def deferring(address: str) -> str | None:
        return "451 4.2.2 full" if address.startswith("eve") else None

    with CaptureServer(on_recipient=deferring) as server:
        code = main(["send", "--server", server.url, str(path), "--attempts", "1"])
    assert code == Exit.REFUSED  # and not 75: bob would get it twice
    out = capsys.readouterr().out
    assert "partial" in out
    assert "1 of 2 recipients have it; eve@example.net: 451 4.2.2 full" in out


def test_too_large_a_message_is_unfit(letter: str) -> None:
    with CaptureServer(size_limit=20) as server:
        assert main(["send", "--server", server.url, letter]) == Exit.UNFIT


def test_a_server_that_lets_nobody_in_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = letters(tmp_path / "out", 20)
    with CaptureServer(auth={"ada": "right"}) as server:
        url = f"smtp://ada:wr0ng@{server.host}:{server.port}"
        assert main(["send", "--server", url, folder]) == Exit.LOGIN
    out, err = capsys.readouterr()
    assert err.count("535") <= 2  # when it happened, and in the end
    assert "hint: check user name and password" in err
    assert "wr0ng" not in out + err
    assert "0 of " in out


def test_where_nothing_listens(letter: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"smtp://127.0.0.1:{unused_port()}"
    assert main(["send", "--server", url, letter, "--attempts", "1"]) == Exit.TRY_LATER
    assert "nothing listens there" in capsys.readouterr().err


def test_a_host_that_does_not_exist(letter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", "--server", "smtp://no-such-host.invalid", letter, "--attempts", "1"]) in (
        Exit.NO_HOST,
        Exit.TRY_LATER,  # where no name server answers, nobody knows
    )
    assert "cannot be resolved" in capsys.readouterr().err


def test_a_missing_file_costs_nobody_else(
    sink: CaptureServer, letter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    paths = ["nowhere.eml", str(empty), letter]
    assert main(["send", "--server", sink.url, *paths]) == Exit.NO_INPUT
    out = capsys.readouterr().out
    assert "nowhere.eml" in out
    assert "No such file" in out
    assert "no *.eml file" in out
    assert len(sink.messages) == 1


def test_the_deadline_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = letters(tmp_path / "out", 3)
    with ScriptedServer([Serve(until="MAIL"), Stall()]) as server:
        code = main(["send", "--server", server.url, folder, "--deadline", "0.3", "--json", "--workers", "1"])
    assert code == Exit.TRY_LATER
    messages, summary = told(capsys.readouterr().out)
    assert {m["outcome"] for m in messages} == {"not sent"}
    assert summary["exit_code"] == 75


def test_the_worst_code_wins() -> None:
    assert _cli_exit.worst([Exit.OK, Exit.TRY_LATER, Exit.UNFIT]) is Exit.UNFIT
    assert _cli_exit.worst([Exit.REFUSED, Exit.IN_DOUBT, Exit.LOGIN]) is Exit.IN_DOUBT
    assert _cli_exit.worst([]) is Exit.OK


def test_a_mistake_of_ours_costs_one_message(
    sink: CaptureServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = letters(tmp_path / "out", 3)
    original = Envelope.from_bytes

    def stumbling(data: bytes, *args: Any) -> Envelope:
        if b"ada-1" in data:
            raise RuntimeError("a bug")
        return original(data, *args)

    monkeypatch.setattr(Envelope, "from_bytes", stumbling)
    assert main(["send", "--server", sink.url, folder]) == Exit.SOFTWARE
    assert "internal error: RuntimeError: a bug" in capsys.readouterr().out
    assert len(sink.messages) == 2


# ---------------------------------------------------------------- the command line itself


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ([], 64),
        (["sned"], 64),
        (["send", "--workers", "0", "x"], 64),
        (["send", "--rate", "fast", "x"], 64),
        (["send", "--rate", "nan", "x"], 64),
        (["send", "--deadline", "-1", "x"], 64),
        (["check", "--timeout", "inf", "smtp://x"], 64),
        (["check", "--timeout", "1e9", "smtp://x"], 64),
        (["send", "--server", "smtp://x", "--to", "bob@@example.net", "x"], 64),
        (["send", "--server", "smtp://x", "--from", "a@b> SIZE=1", "x"], 64),
        (["send", "x"], 78),
        (["send", "--server", "ftp://x", "x"], 78),
        (["--version"], 0),
        (["send", "--help"], 0),
    ],
)
def test_usage(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert (err != "") == (code != 0)
    assert "Traceback" not in out + err


def test_nothing_to_send(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["send", "--server", "smtp://localhost"]) == Exit.USAGE
    assert "nothing to send" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["send", "--sever", "smtp://ada:hunter2@mail.example", "x"],
        ["send", "--server", "smtp://ada:hunter2@mail.example", "x"],
        ["send", "--server", "ada:hunter2@mail.example", "x"],
        ["send", "--server", "smtp://ada:hunter2#@mail.example", "x"],
        ["send", "--server", "smtp://ada:hunter2@localhost:1", "--attempts", "1", "smtp://ada:hunter2@mail.example"],
        ["send", "--workers", "smtp://ada:hun/ter2hunter2@mail.example", "x"],
        ["smtp://ada:hunter2@mail.example"],
        ["check", "smtps://ada:hunter2@localhost:1"],
        ["check", "smtp://ada:hunter2@localhost:1", "--json", "--debug"],
        ["sandbox", "--auht", "ada:hunter2"],
        ["sandbox", "--auth", "hunter2"],
        ["sandbox", "--auth=hunter2"],
        ["sandbox", "--auht=ada:hunter2"],
    ],
)
def test_no_secret_is_shown(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) != 0
    out, err = capsys.readouterr()
    assert "hunter2" not in out + err
    assert "Traceback" not in out + err


def test_json_is_all_there_is_on_standard_output(sink: CaptureServer, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["send", "--server", sink.url, "--json", "-v", str(corpus.BAD), str(corpus.MBOX), "-x.eml"])
    assert code == Exit.USAGE
    capsys.readouterr()
    code = main(["send", "--server", sink.url, "--json", "-v", str(corpus.BAD), str(corpus.MBOX), "no.eml"])
    out, err = capsys.readouterr()
    messages, summary = told(out)
    assert summary["exit_code"] == code == Exit.UNFIT
    assert (summary["sent"], summary["unfit"], summary["not read"]) == (6, len(corpus.bad_files()), 1)
    assert len(messages) == summary["messages"] == 7 + len(corpus.bad_files())
    assert err.count("250 2.0.0 OK") == 6  # --verbose


def test_quiet_says_only_what_went_wrong(sink: CaptureServer, letter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", "-q", "--server", sink.url, letter]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["send", "-q", "--server", sink.url, letter, "no.eml"]) == Exit.NO_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["threadmail: no.eml: not read: cannot be read: No such file or directory"]


def test_the_rate_is_kept(sink: CaptureServer, tmp_path: Path) -> None:
    folder = letters(tmp_path / "out", 3)
    began = time.monotonic()
    assert main(["send", "--server", sink.url, folder, "--rate", "20/s"]) == 0
    assert time.monotonic() - began >= 2 / 20  # not between arrivals: the first may have been late
    assert len(sink.messages) == 3


def test_more_failures_than_rows_are_all_named(
    sink: CaptureServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("threadmail.cli.ledger.MOST_ROWS", 2)
    paths = [str(tmp_path / f"{number}.eml") for number in range(5)]
    assert main(["send", "--server", sink.url, *paths]) == Exit.NO_INPUT
    out, err = capsys.readouterr()
    assert [sum(path in text for path in paths) for text in (out, err)] == [2, 3]


def test_no_more_is_read_than_may_be_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cli_send, "MOST_MESSAGES", 5)
    ahead: list[int] = []
    with CaptureServer() as server:

        def endless(paths: list[str], stdin: object) -> Iterator[Item]:
            for number in range(200):
                ahead.append(number - len(server.messages))
                yield Item(str(number), MESSAGE)

        monkeypatch.setattr(_cli_sources, "items", endless)
        assert main(["send", "--server", server.url, "x"]) == 0
        assert len(server.messages) == 200
    assert max(ahead) <= 5


def test_no_more_octets_than_may_be_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cli_send, "MOST_OCTETS", 3 * len(MESSAGE))
    ahead: list[int] = []
    with CaptureServer() as server:

        def endless(paths: list[str], stdin: object) -> Iterator[Item]:
            for number in range(50):
                ahead.append(number - len(server.messages))
                yield Item(str(number), MESSAGE if number != 20 else MESSAGE + b"large\n" * 100)

        monkeypatch.setattr(_cli_sources, "items", endless)
        assert main(["send", "--server", server.url, "x"]) == 0
        assert len(server.messages) == 50
    assert max(ahead) <= 3


def test_a_large_file_is_read_while_it_is_sent(
    sink: CaptureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It never is in memory as a whole, and does not count as if it were; one that has gone is one that is not read."""
    path, gone = tmp_path / "large.eml", tmp_path / "gone.eml"
    content = MESSAGE.replace(b"\n", b"\r\n") + b"a line\r\n" * 20_000
    path.write_bytes(content)
    gone.write_bytes(content)
    monkeypatch.setattr(_cli_sources, "LARGE", 100_000)
    real = _cli_sources.items

    def items(paths: list[str], stdin: Any) -> Iterator[Item]:
        for item in real(paths, stdin):
            assert item.content == b""
            if item.name == str(gone):
                gone.unlink()
            yield item

    monkeypatch.setattr(_cli_sources, "items", items)
    assert main(["send", "--server", sink.url, str(path), str(gone)]) == Exit.NO_INPUT
    assert [message.content for message in sink.messages] == [content]
    assert "cannot be read: No such file" in capsys.readouterr().out


# ---------------------------------------------------------------- terminals


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()

    @property
    def words(self) -> str:
        """The text without control sequences, with single blanks."""
        return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text).split())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    return Terminal()


def on(terminal: Terminal, *argv: str) -> int:
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        return main(argv)


def test_a_terminal_gets_a_bar_and_colours(sink: CaptureServer, terminal: Terminal) -> None:
    assert on(terminal, "send", "--server", sink.url, str(corpus.MESSAGES), str(corpus.BAD)) == Exit.UNFIT
    assert "Sending" in terminal.text
    assert "\x1b[3" in terminal.text
    assert "9 unfit 79 of 88 messages sent" in terminal.words


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_may_want_plain_text(
    variables: dict[str, str], sink: CaptureServer, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert on(terminal, "send", "--server", sink.url, str(corpus.MESSAGES)) == 0
    assert "\x1b" not in terminal.text
    assert "messages sent" in terminal.text


def test_without_rich_it_is_plain_text(
    sink: CaptureServer, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr("threadmail.cli.output.PROGRESS_EVERY", 0.0)
    assert on(terminal, "send", "--server", sink.url, str(corpus.MESSAGES)) == 0
    assert "\x1b" not in terminal.text
    total = len(corpus.samples())
    assert f"Sending: {total} of {total}\n" in terminal.text


def test_no_escape_sequence_gets_into_a_pipe(
    sink: CaptureServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["send", "--server", sink.url, str(corpus.MESSAGES), str(corpus.BAD)]) == Exit.UNFIT
    assert "\x1b" not in "".join(capsys.readouterr())


def test_neither_servers_nor_files_drive_the_terminal(tmp_path: Path, terminal: Terminal) -> None:
    path = tmp_path / "evil\x1b[31m.eml"
    path.write_bytes(MESSAGE)
    reply = Send(b"550 5.1.1 \x1b]0;owned\x07 \xe2\x80\xae no\r\n")
    script = [*OPENING, *answer("MAIL", "250 ok"), Expect("RCPT"), reply, *answer("RSET", "250 ok"), *goodbye()]
    with ScriptedServer(script) as server:
        assert on(terminal, "send", "--server", server.url, str(path)) == Exit.REFUSED
    for sequence in ("\x1b]0;", "\x07", "\x1b[31m.eml", "\u202e"):
        assert sequence not in terminal.text


# ---------------------------------------------------------------- signals and pipes


def command(*argv: str, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "threadmail", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **settings,
    )


def test_ctrl_c_lets_the_message_on_the_wire_be_finished(tmp_path: Path) -> None:
    folder = letters(tmp_path / "out", 5)
    on_wire, go_on = threading.Event(), threading.Event()
    final: list[Any] = [Signal(on_wire), Pause(go_on), Reply("250 2.0.0 queued"), *goodbye()]
    opening = [*OPENING, *answer("MAIL", "250 ok"), *answer("RCPT", "250 ok"), Expect("DATA"), Reply("354 go")]
    with (
        ScriptedServer([*opening, ReadData(), *final]) as server,
        command("send", "--server", server.url, folder, "--workers", "1", "--json") as process,
    ):
        assert process.stderr is not None
        assert on_wire.wait(10)
        process.send_signal(signal.SIGINT)
        assert "stopping" in process.stderr.readline()
        go_on.set()
        out, err = process.communicate(timeout=10)
        assert process.returncode == Exit.INTERRUPTED
        assert "Traceback" not in err
        messages, summary = told(out)
        assert sorted(m["outcome"] for m in messages) == ["not sent"] * 4 + ["sent"]
        assert (summary["sent"], summary["not tried"]) == (1, 4)
        assert len(server.messages) == 1


def test_ctrl_c_twice_drops_the_connection_and_says_what_is_known(tmp_path: Path) -> None:
    folder = letters(tmp_path / "out", 1)
    on_wire = threading.Event()
    opening = [*OPENING, *answer("MAIL", "250 ok"), *answer("RCPT", "250 ok"), Expect("DATA"), Reply("354 go")]
    with (
        ScriptedServer([*opening, ReadData(), Signal(on_wire), Stall()]) as server,
        command("send", "--server", server.url, folder) as process,
    ):
        assert process.stderr is not None
        assert on_wire.wait(10)
        process.send_signal(signal.SIGINT)
        assert "stopping" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == Exit.INTERRUPTED
    assert "in doubt" in out
    assert "Traceback" not in out + err


def test_ctrl_c_while_standard_input_is_awaited() -> None:
    with (
        CaptureServer() as server,
        command("send", "--server", server.url, "--debug", "no.eml", "-", "-v", stdin=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        assert "no.eml" in process.stderr.readline()  # so it is at standard input, or just before it
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == Exit.INTERRUPTED
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_fifo_is_awaited(tmp_path: Path, number: signal.Signals) -> None:
    """Nobody may ever open its other end."""
    fifo = tmp_path / "x.eml"
    os.mkfifo(fifo)
    with (
        CaptureServer() as server,
        command("send", "--server", server.url, "no.eml", str(fifo), "-v", "--debug") as process,
    ):
        assert process.stderr is not None
        assert "no.eml" in process.stderr.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert "Traceback" not in err


def test_the_deadline_ends_the_wait_for_standard_input() -> None:
    with (
        CaptureServer() as server,
        command("send", "--server", server.url, "-", "--deadline", "1", stdin=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        process.stdin.write("From x\n" + MESSAGE.decode() + "\nFrom y\n")
        process.stdin.flush()
        assert process.wait(timeout=20) == 0
        out = process.stdout.read() if process.stdout else ""
        err = process.stderr.read() if process.stderr else ""
    assert "the deadline passed; what came after was not tried" in out + err
    assert len(server.messages) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a file that was just being opened
def test_ctrl_c_in_process_leaves_the_handlers_as_they_were(tmp_path: Path) -> None:
    folder = letters(tmp_path / "out", 50)
    before = signal.getsignal(signal.SIGINT)

    def interrupting(message: CapturedMessage) -> None:
        if message.sender.startswith("ada-3@"):
            os.kill(os.getpid(), signal.SIGINT)

    with CaptureServer(on_message=interrupting) as server:
        assert main(["send", "--server", server.url, folder, "--workers", "1"]) == Exit.INTERRUPTED
        senders = [m.sender for m in server.messages]
    assert 4 <= len(senders) < 50
    assert len(set(senders)) == len(senders)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    folder = letters(tmp_path / "out", 300)
    with ScriptedServer([Serve()], last="repeat") as server:
        with command("send", "--server", server.url, folder, "--json") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())
            process.stdout.close()
            err = process.stderr.read()
            process.wait(timeout=10)
    assert process.returncode == Exit.OUTPUT_LOST
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_no_traceback(letter: str) -> None:
    argv = [sys.executable, "-m", "threadmail", "send", "--dry-run", letter]
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=10)
    assert done.returncode == Exit.OUTPUT_LOST
    assert done.stderr.splitlines() == ["threadmail: the result cannot be written: No space left on device"]


def test_closed_streams_are_no_traceback(letter: str) -> None:
    for closed in (">&-", "2>&-", "<&-"):
        line = f"'{sys.executable}' -m threadmail send --dry-run '{letter}' {closed}"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=10)
        assert (done.returncode, done.stderr) == (0, "")


def test_exit_codes_reach_the_shell(letter: str) -> None:
    with command("send", letter) as process:
        out, err = process.communicate(timeout=10)
    assert process.returncode == Exit.CONFIG
    assert out == ""
    assert "THREADMAIL_URL" in err
