"""Programs that tests run as processes of their own, since what they show needs one: forks, exits, signals.

Each is a module of a screen or two, run as `python -m tests.reliability.programs.NAME`; the servers stay with the test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

STRICT = ("-W", "error", "-W", "ignore::DeprecationWarning")

#: Seconds after which a program hangs, however loaded the machine is.
PATIENCE = 30.0


@contextmanager
def program(
    name: str, *arguments: str, argv: Sequence[str] = (), **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process group of its own, which is killed at the end of the block if any of it is left.

    Args:
        argv: a command of another kind, in the place of a program of this package.

    Warnings are errors in it, but the one of Python 3.12 that a process with threads had better not fork.
    """
    process = subprocess.Popen(
        argv or [sys.executable, *STRICT, "-m", f"{__name__}.{name}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    watchdog = threading.Timer(PATIENCE, _kill_group, [process.pid])
    watchdog.name = "watchdog"
    watchdog.start()
    try:
        with process:
            yield process
    finally:
        watchdog.cancel()
        watchdog.join(PATIENCE)
        _kill_group(process.pid)


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of it has ended by itself


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line the program prints; if it ends instead, what it complained of is told."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        out, err = process.communicate(timeout=PATIENCE)
        raise AssertionError(f"{process.args!r}: ended with {process.returncode} before its next line\n{out}\n{err}")
    return line


def finished(process: subprocess.Popen[str]) -> str:
    """What the program printed; it must have ended well, and without a word of complaint."""
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, ""), f"{process.args!r}: ended with {process.returncode}\n{out}\n{err}"
    return out
