"""One run: one peer, in a process of its own, sends its messages once.

Owns that process. Guarantees: the figures are the client's alone; the messages that arrived were counted, and a run in
which one was missing, or came twice, is a `RunFailed`; no process is left, whatever happens.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .job import Job
from .peers import Peer, command
from .servers import Server, on_core
from .tools import Tools

PATIENCE = 120.0  # seconds until a run that has not ended is ended, and so much more for each message:
_PATIENCE_EACH = 0.005
_FULL = 0.85  # of a core: what is busier than that is the limit
_SETTLING = 60.0  # seconds for the server to deliver what it has accepted


class RunFailed(Exception):
    """A run that says nothing; the text says why."""


@dataclass(frozen=True)
class Run:
    """What one run took.

    Attributes:
        seconds: from the first message handed over to the last receipt; of a program that does not say, its life.
        cpu: seconds, user and system, of the client in that time.
        peak, base: MiB resident: the most in the life of the process, and before the first message was made.
        trips: round trips on the delay line, if there was one.
        busy: what part of the time the server's processes were at work: near 1 for one process, the server is measured.
        wire: the same of the delay line.
        laps: seconds, user and system CPU of each time that the messages were sent.
    """

    messages: int
    seconds: float
    cpu: float
    peak: float
    base: float
    busy: float = 0.0
    trips: int = 0
    wire: float = 0.0
    laps: tuple[tuple[float, float, float], ...] = ()

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def each(self) -> float:
        """CPU seconds a message."""
        return self.cpu / self.messages


def run(peer: Peer, job: Job, server: Server, tools: Tools, core: int | None = None, tree: Path | None = None) -> Run:
    """Send `job` by `peer`; `job` names the way to `server`, which may lead over a delay line.

    Args:
        tree: the folder whose threadmail is measured, if it is not the one beside us.
    Raises:
        Unavailable: the peer cannot be had, or cannot do this.
        RunFailed: it failed, hung, or not exactly its messages arrived.
    """
    line, environment = command(peer, job, tools, tree)
    before, work = server.taken(), cpu_of(server.processes())
    with tempfile.TemporaryFile() as errors:
        with on_core(core):
            started = time.perf_counter()
            process = subprocess.Popen(
                line, env=environment, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        watchdog = threading.Timer(PATIENCE + job.messages * _PATIENCE_EACH, process.kill)
        watchdog.name = "bench-watchdog"
        watchdog.start()
        try:
            found = _talk(process, job, tree) if peer.says else _watch(process, job, started)
        except (ValueError, OSError) as error:
            raise RunFailed(f"{peer.label}: {_why(process, errors) or error}") from error
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()
            watchdog.join()
    busy = (cpu_of(server.processes()) - work) / found.seconds
    _compare(server, before, job.messages * job.laps, peer)
    return dataclasses.replace(found, busy=max(0.0, busy))


def _talk(process: subprocess.Popen[bytes], job: Job, tree: Path | None) -> Run:
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise ValueError("it did not get ready")
    process.stdin.write(b"go\n")
    process.stdin.flush()
    said = json.loads(process.stdout.readline() or b"null")
    if not said:
        raise ValueError("it ended without a word")
    messages = job.messages * job.laps
    if said["sent"] != messages:
        raise ValueError(f"it sent {said['sent']} of {messages} messages")
    if tree is not None and not Path(said["source"]).resolve().is_relative_to((tree / "threadmail").resolve()):
        raise ValueError(f"it is not what was to be measured: {said['source']}")
    process.wait(PATIENCE)
    laps = tuple(tuple(lap) for lap in said.get("laps", ()))
    return Run(messages, said["seconds"], said["cpu"], said["peak"] / 1024, said["base"] / 1024, laps=laps)


def _watch(process: subprocess.Popen[bytes], job: Job, started: float) -> Run:
    """Time a program that says nothing; its peak of memory is seen in passing, for it is gone with the process."""
    peak = 0.0
    done = threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _peak_mib(process.pid))

    looking = threading.Thread(target=look, name="bench-memory")
    looking.start()
    try:
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        done.set()
        looking.join()
    if process.returncode:
        raise ValueError(f"it ended with code {process.returncode}")
    return Run(job.messages, seconds, used.ru_utime + used.ru_stime, peak, 0.0)


def cpu_of(processes: Iterable[int]) -> float:
    """CPU seconds of the processes so far; 0 where the system does not say."""
    ticks = 0
    for pid in processes:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def _why(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    process.kill()
    process.wait()
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().splitlines()
    return said[-1][:300] if said else ""


def _compare(server: Server, before: int, messages: int, peer: Peer) -> None:
    end = time.monotonic() + _SETTLING
    while (arrived := server.taken() - before) < messages and time.monotonic() < end:
        time.sleep(0.01)
    if arrived != messages:
        raise RunFailed(f"{peer.label}: {arrived:,} messages arrived of {messages:,}")


def limit(runs: Sequence[Run], pinned: bool = False) -> str:
    """What was full in these runs; `pinned`: client and server had one core between them."""
    client = max((run.cpu / run.seconds for run in runs), default=0.0)
    server = max((run.busy for run in runs), default=0.0)
    wire = max((run.wire for run in runs), default=0.0)
    if pinned:
        full = "is full" if client + server >= _FULL else "is not full"
        return f"the core that both share {full} (client {client:.0%}, server {server:.0%} of the time)"
    most = max(client, server, wire)
    if most >= _FULL and most == client:
        return f"the client is busy {client:.0%} of the time: its core is full"
    if most >= _FULL:
        whose = "server" if most == server else "delay line"
        return f"the {whose} is busy {most:.0%} of the time: the limit is its own"
    shares = f"client {client:.0%}, server {server:.0%}" + (f", delay line {wire:.0%}" if wire else "")
    if client + server + wire >= _FULL:
        return f"none is full alone, but they share the machine ({shares} of a core)"
    return f"nothing is full ({shares} of a core)"
