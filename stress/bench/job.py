"""What one run is given, and the clock that it carries.

Owns the words between the benchmark and the programs that it measures. Imports nothing of any peer, and little else:
it is part of every process that is measured.
"""

from __future__ import annotations

import functools
import gc
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SENDER = "bench@example.org"
NAME = "bench.example.net"  # given to everybody: looking the name up would be measured else


@dataclass
class Job:
    """What is to be sent, where, and how.

    Attributes:
        form: "ready": content that is bytes; "message": objects of the peer's own class; "file": a path.
        path: the file that holds the content.
        window: CHUNKING with so many in flight, where the peer can; None without.
        stream: make the messages as they are sent.
        laps: how often the messages are sent, one time after another, each with the clock anew.
    """

    peer: str
    host: str
    port: int
    connections: int
    messages: int
    path: str
    form: str = "ready"
    recipients: int = 1
    window: int | None = None
    max_messages: int = 0
    stream: bool = False
    laps: int = 1

    @property
    def content(self) -> bytes:
        return Path(self.path).read_bytes()

    def to(self, number: int) -> list[str]:
        return [f"to-{number}-{i}@example.net" for i in range(self.recipients)]

    def email(self, number: int) -> Any:
        """The content as a standard library message: its header, and its body as text."""
        from email.message import EmailMessage

        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = SENDER, ", ".join(self.to(number)), f"Order {number}"
        message["Date"], message["Message-ID"] = "Mon, 02 Jan 2023 10:00:00 +0000", f"<{number}@example.org>"
        message.set_content(self.text)
        return message

    @functools.cached_property
    def text(self) -> str:
        return self.content.partition(b"\r\n\r\n")[2].decode().replace("\r\n", "\n")


@dataclass
class Clock:
    """Wall time and CPU of the blocks between `go` and `stop`, and how much was sent in all of them."""

    base: int = 0
    sent: int = 0
    laps: list[tuple[float, float, float]] = field(default_factory=list)  # seconds, user, system

    def go(self) -> None:
        """Everything is ready: wait for the word, the first time, and start."""
        if self.laps:
            gc.collect()
        else:
            print("ready", flush=True)
            sys.stdin.readline()
        self._user, self._system = _cpu()
        self._started = time.perf_counter()

    def stop(self, sent: int) -> None:
        seconds = time.perf_counter() - self._started
        user, system = _cpu()
        self.laps.append((seconds, user - self._user, system - self._system))
        self.sent += sent

    def result(self) -> dict[str, Any]:
        seconds, user, system = map(sum, zip(*self.laps, strict=True))
        return {"seconds": seconds, "cpu": user + system, "sent": self.sent, "base": self.base, "laps": self.laps}


def _cpu() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


def peak_kib(field: str = "VmHWM") -> int:
    """The peak of resident memory. `ru_maxrss` would count what the parent had when it forked."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])
