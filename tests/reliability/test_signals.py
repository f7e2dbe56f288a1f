"""Ctrl-C and SIGTERM: once, and what is on the wire is finished; twice, and it is over now. Also at the very end.

What the command line makes of signals is in tests/cli/test_cli_send.py, but for SIGTERM.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import Popen

import pytest

from tests.reliability.programs import PATIENCE, ROOT, next_line, program
from tests.reliability.test_exit import REST, stalling
from threadmail.cli.exit_codes import Exit
from threadmail.testing import Pause, Reply, ScriptedServer, Serve, Signal

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)


def begin(process: Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("leave\n")
    process.stdin.flush()
    assert next_line(process) == "leaving\n"
    asleep(process)


def called_off(process: Popen[str]) -> None:
    """Wait until the first signal has come through: what was queued is taken back."""
    assert [next_line(process) for _ in range(3)] == ["not sent\n"] * 3
    asleep(process)


def asleep(process: Popen[str]) -> None:
    """Wait until the program's main thread does: it has not been switched to for a while.

    CPython sees a signal that comes between its last look and the wait when the wait is over. That is a moment, but a
    free-threaded one tries for the lock for a while in between.
    """
    status, switches = Path(f"/proc/{process.pid}/status"), ""
    end = time.monotonic() + PATIENCE
    while status.exists():
        before, switches = switches, "".join(re.findall(r"State:\tS|ctxt_switches:.*", status.read_text()))
        if "State:\tS" in switches and switches == before:
            return
        assert time.monotonic() < end, f"it does not come to rest: {switches}"
        time.sleep(0.05)


def status(number: signal.Signals) -> int:
    return 3 if number is signal.SIGTERM else -signal.SIGINT


@SIGNALS
def test_once_finishes_what_is_on_the_wire(number: signal.Signals) -> None:
    """In a `with` block of a program: two messages are being sent, three wait."""
    reached, go_on = [threading.Event(), threading.Event()], threading.Event()
    scripts = [[Serve(until="."), Signal(event), Pause(go_on), Reply("250 2.0.0 OK"), Serve()] for event in reached]
    with ScriptedServer(*scripts) as server, program("leaves_early", "20", "with", server.url) as process:
        assert all(event.wait(10.0) for event in reached)
        begin(process)
        process.send_signal(number)
        called_off(process)
        go_on.set()
        out, err = process.communicate(timeout=20.0)
        assert out == "sent\nsent\n"
        # Where another message was prefetched already there is no way back from its DATA but to hang up.
        assert all(lines[-1].lower() in ("quit", "data") for lines in server.received if lines)
    assert "3 messages were not sent when the sender was closed" in err
    assert process.returncode == status(number)


@SIGNALS
def test_twice_is_now(number: signal.Signals) -> None:
    with stalling() as (server, reached), program("leaves_early", "20", "with", server.url) as process:
        assert all(event.wait(10.0) for event in reached)
        begin(process)
        process.send_signal(number)
        called_off(process)
        process.send_signal(number)
        started = time.monotonic()
        out, err = process.communicate(timeout=20.0)
        seconds = time.monotonic() - started
    assert out == "in doubt\nin doubt\n"
    assert "the closing was interrupted, and 3 messages were not sent, 2 in doubt" in err
    assert process.returncode == status(number)
    assert seconds < REST, f"it took {seconds:.1f} s"


def test_ctrl_c_while_the_interpreter_waits_at_the_end() -> None:
    with stalling() as (server, reached), program("leaves_early", "25", "end", server.url) as process:
        assert all(event.wait(10.0) for event in reached)
        begin(process)
        for _ in range(10):  # one that comes before the interpreter waits ends something else
            process.send_signal(signal.SIGINT)
            try:
                _, err = process.communicate(timeout=2.0)
                break
            except subprocess.TimeoutExpired:
                pass
        else:
            pytest.fail("Ctrl-C does not end the waiting")
    assert "the closing was interrupted, and 3 messages were not sent, 2 in doubt" in err


@pytest.mark.parametrize("offers", [(), ("PIPELINING",)], ids=["lock-step", "riding"])
def test_the_command_line_ends_on_sigterm_as_on_ctrl_c(tmp_path: Path, offers: tuple[str, ...]) -> None:
    """Once: what is on the wire is finished; a second one is tests/cli/test_cli_send.py's.

    With PIPELINING a second message is on the wire, its commands are. It is taken back when the sender is closed, or
    finished where the server answers before that.
    """
    for index in range(4):
        text = f"From: ada@example.org\nTo: bob@example.net\nSubject: {index}\n\nhello\n"
        (tmp_path / f"{index}.eml").write_text(text)
    reached, go_on = threading.Event(), threading.Event()
    serve = Serve(extensions=offers, until=".")
    script = [serve, Signal(reached), Pause(go_on), Reply("250 2.0.0 OK"), Serve(extensions=offers)]
    argv = [sys.executable, "-m", "threadmail", "send", "--workers", "1", "--json", str(tmp_path)]
    with (
        ScriptedServer(script) as server,
        Popen(
            [*argv, "--server", server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        ) as process,
    ):
        assert process.stderr is not None
        assert reached.wait(10.0)
        process.send_signal(signal.SIGTERM)
        assert "stopping" in process.stderr.readline()
        go_on.set()
        out, err = process.communicate(timeout=20.0)
        sent = len(server.messages)
    assert sent == 1 or (offers and sent == 2)
    assert process.returncode == Exit.TERMINATED
    outcomes = [json.loads(line).get("outcome") for line in out.splitlines()]
    assert sorted(each for each in outcomes if each) == ["not sent"] * (4 - sent) + ["sent"] * sent
    assert "Traceback" not in err
