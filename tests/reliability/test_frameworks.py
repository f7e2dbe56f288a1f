"""gunicorn, Celery and gevent: each as it is, in processes of its own, with senders used before it forks or patches."""

from __future__ import annotations

import re
import signal
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from tests.reliability.programs import PATIENCE, finished, program
from tests.support.mail import intact, names
from threadmail.testing import ScriptedServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gunicorn and Celery's prefork need fork")

NAMES = ("client", "pool", "sender")


def parents_connections_are_intact(server: ScriptedServer, before: str) -> None:
    """What was opened before the fork carried nothing of a child."""
    of = {m.sender.removeprefix("from-").partition("@")[0]: m.connection for m in server.messages}
    mine = {of[f"{before}-{name}"] for name in NAMES}
    others = {number for name, number in of.items() if name.startswith(("task", "worker", "queued"))}
    assert mine.isdisjoint(others)


def test_gunicorn_with_preload() -> None:
    """Two workers use what the master used; a worker's end sends what is in its queue."""
    pytest.importorskip("gunicorn")
    options = ["--preload", "--workers=2", "--bind=127.0.0.1:0", "--no-control-socket", "--log-level=info"]
    code = "import sys; from gunicorn.app.wsgiapp import run; run(prog='gunicorn')"
    with ScriptedServer() as server:
        argv = [sys.executable, "-c", code, *options, "tests.reliability.programs.gunicorn_app:app"]
        with program("", argv=argv, THREADMAIL_URL=server.url) as process:
            assert process.stderr is not None
            url = ""
            while not url:
                line = process.stderr.readline()
                assert line, "gunicorn ended"
                match = re.search(r"http://[0-9.:]+", line)
                url = match[0] if match else ""
            for number in range(6):
                with urllib.request.urlopen(f"{url}/?{number}", timeout=25.0) as response:
                    assert response.read() == b" ".join([b"Outcome.SENT"] * 3)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err
        assert process.returncode == 0
        found = intact(server.messages)
        assert set(found.values()) == {1}
        assert Counter(name.partition("-")[0] for name in found) == {"preload": 3, "worker": 18, "queued": 6}
        parents_connections_are_intact(server, "preload")


def test_celery_prefork(tmp_path: Path) -> None:
    """The children end by os._exit(), past every hook of Python's, and nothing hangs."""
    pytest.importorskip("celery")
    with ScriptedServer() as server:
        argv = [sys.executable, "-m", "tests.reliability.programs.celery_app", str(tmp_path)]
        with program("", argv=argv, THREADMAIL_URL=server.url) as process:  # without errors for Celery's own warnings
            server.wait_for(3 + 4 * 3, timeout=PATIENCE)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=PATIENCE)
            seconds = time.monotonic() - started
        assert "Traceback" not in out + err
        found = intact(server.messages)
        assert set(found.values()) == {1}
        assert Counter(name.partition("-")[0] for name in found) == {"before": 3, "task": 12, "queued": 4, "after": 3}
        parents_connections_are_intact(server, "before")
    assert seconds < 20.0, f"it took {seconds:.1f} s to end"


def test_gevent() -> None:
    pytest.importorskip("gevent")
    with ScriptedServer() as server:
        with program("patched", server.url) as process:
            assert finished(process) == ""
        every = [f"{what}-{name}" for what in NAMES for name in names(10, 5)]
        assert intact(server.messages) == Counter([*every, *(f"batch-{number}" for number in range(20))])
