"""What is sent to: a sink of ours, Postfix's `smtp-sink`, and Postfix itself.

Owns their processes. Guarantees of each: it listens when the `with` block is entered, `taken()` is the number of
messages that arrived in it, and nothing of it runs after the block.

| server | offers | is |
|---|---|---|
| `sink` | PIPELINING, CHUNKING | `stress.sink`: one Python thread; searches content for its end and keeps nothing |
| `smtp-sink` | PIPELINING | Postfix's own, in C |
| `postfix` | PIPELINING, CHUNKING | smtpd, cleanup, queue (with fsync), queue manager; mail ends in its discard |
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from stress.sink import Sink

from .tools import Tools, Unavailable


class Server(Protocol):
    """A place to send to."""

    host: str
    port: int

    def taken(self) -> int:
        """Messages that have arrived so far."""

    def processes(self) -> list[int]:
        """Ids of its processes."""


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Processes started in the block stay on one processor core; None leaves that to the system."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def serve(name: str, tools: Tools, core: int | None = None) -> Iterator[Server]:
    """A running server, on a core of its own if given.

    Raises:
        Unavailable: it cannot be had here.
    """
    with on_core(core), ExitStack() as stack:
        server: Server
        if name == "sink":
            server = _Ours(stack.enter_context(Sink(core=core)))
        elif name == "smtp-sink":
            server = stack.enter_context(_smtp_sink(tools))
        elif name == "postfix":
            server = stack.enter_context(_postfix(tools))
        else:
            raise ValueError(f"no server is called {name!r}")
        yield server


class _Ours:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.host, self.port = sink.host, sink.port

    def taken(self) -> int:
        return self._sink.messages

    def processes(self) -> list[int]:
        return [self._sink.pid]


class _SmtpSink:
    """It writes "sess=1 quit=1 mesg=5" and a carriage return after each message; the last one counts."""

    host = "127.0.0.1"

    def __init__(self, port: int, log: Path, pid: int) -> None:
        self.port, self._log, self._pid = port, log, pid

    def taken(self) -> int:
        with open(self._log, "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 200))
            counts = re.findall(rb"mesg=(\d+)\s", log.read())
        return int(counts[-1]) if counts else 0

    def processes(self) -> list[int]:
        return [self._pid]


@contextmanager
def _smtp_sink(tools: Tools) -> Iterator[Server]:
    installation = tools.postfix()
    port = _free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    command = [str(installation.commands / "smtp-sink"), "-c", *user, f"inet:127.0.0.1:{port}", "1000"]
    with tempfile.TemporaryDirectory(prefix="smtp-sink-") as folder:
        log = Path(folder, "log")
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command, env=installation.environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            _await_greeting(port, process, log)
            yield _SmtpSink(port, log, process.pid)
        finally:
            process.terminate()
            process.wait(10.0)


def _await_greeting(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 10.0
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5.0) as sock:
                sock.recv(4)
                sock.sendall(b"QUIT\r\n")
                sock.recv(4)
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > end:
                said = log.read_text(errors="replace").strip().splitlines()
                raise Unavailable(f"smtp-sink does not start: {said[-1] if said else error}") from error
        time.sleep(0.01)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class _RealPostfix:
    """Counts deliveries in the log as it grows."""

    def __init__(self, host: str, port: int, log: Path, group: int) -> None:
        self.host, self.port, self._log, self._group = host, port, log, group
        self._read = self._count = 0

    def taken(self) -> int:
        if self._log.exists():
            with open(self._log, "rb") as log:
                log.seek(self._read)
                new = log.read()
            new = new[: new.rfind(b"\n") + 1]
            self._read += len(new)
            self._count += new.count(b"status=sent")
        return self._count

    def processes(self) -> list[int]:
        from tests.support.servers import alive

        return alive(self._group)


@contextmanager
def _postfix(tools: Tools) -> Iterator[Server]:
    tools.postfix()
    from tests.support import servers as real
    from tests.support.postfix import Postfix

    settings = {"default_transport": "discard", "default_process_limit": "100"}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # Postfix's processes give up root
        postfix = Postfix(Path(folder), settings=settings)
        try:
            postfix.__enter__()
        except (real.Unavailable, TimeoutError, ValueError) as error:
            raise Unavailable(str(error)) from error
        try:
            yield _RealPostfix(postfix.host, postfix.port, Path(folder, "log"), postfix._master.pid)
        finally:
            postfix.__exit__(None, None, None)
