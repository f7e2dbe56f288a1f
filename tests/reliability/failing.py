"""Failures by the hundred, of every kind, and a count of what they leave behind.

Owns the kinds, each a server that fails in one way, and who meets it in which way. `Census` counts what a process
holds: file descriptors, threads, and live objects of ours. The files are counted before the garbage collector comes by,
for a socket that waits for it is a leak as well.
"""

from __future__ import annotations

import gc
import os
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.mail import envelope
from threadmail import Client, ClientPool, MailError, Outcome, RetryPolicy, Security, ServerConfig, ThreadedSender
from threadmail.testing import (
    Drop,
    Expect,
    Reply,
    Reset,
    Script,
    ScriptedServer,
    Send,
    Serve,
    Stall,
    TestCA,
    ehlo,
    greeting,
)

SOON = 0.02  # seconds, for servers that say nothing


@dataclass(frozen=True)
class Kind:
    """One way to fail.

    Args:
        script: what the server does, on each connection.
        settings: fields of `ServerConfig` that differ from those of the server's own config.
        deadline: of each message, in seconds.
        server: arguments of the server.
    """

    script: Script = (Serve(),)
    settings: Mapping[str, Any] = field(default_factory=dict)
    deadline: float = 10.0
    server: Mapping[str, Any] = field(default_factory=dict)


def _refusing(command: str, reply: str) -> Kind:
    return Kind([Serve(replies={command: reply})])


_LOGIN = {"username": "ada", "password": "wrong"}
_STARTTLS = {"security": Security.STARTTLS}
_START = (greeting(), ehlo("STARTTLS"), Expect("STARTTLS"))

KINDS = {
    "nobody listens": Kind(settings={"port": 1}),
    "reset at once": Kind([Reset()]),
    "closed at once": Kind([Drop()]),
    "silent at once": Kind([Stall()], deadline=SOON),
    "421 at once": Kind([Reply("421 4.3.2 not now"), Drop()]),
    "554 at once": Kind([Reply("554 5.7.1 never"), Drop()]),
    "a greeting that is none": Kind([Send(b"SSH-2.0-OpenSSH_9.2\r\n"), Stall()]),
    "EHLO refused": Kind([Serve(replies={"EHLO": "502 no", "HELO": "502 no"})]),
    "login refused": Kind([Serve(auth={"ada": "secret"})], settings=_LOGIN),
    "no STARTTLS": Kind(settings=_STARTTLS),
    "STARTTLS refused": Kind([*_START, Reply("454 4.7.0 not now"), Stall()], _STARTTLS),
    "a certificate of nobody": Kind(settings={"ssl_context": ssl.create_default_context()}, server={"tls": "tls"}),
    "cut in the handshake": Kind([*_START, Reply("220 go"), Reset()], _STARTTLS),
    "MAIL refused": _refusing("MAIL", "550 5.1.8 not you"),
    "MAIL deferred": _refusing("MAIL", "451 4.3.0 later"),
    "MAIL unanswered": Kind([Serve(until="MAIL"), Stall()], deadline=SOON),
    "all recipients refused": _refusing("RCPT", "550 5.1.1 nobody here"),
    "DATA refused": _refusing("DATA", "554 5.7.1 no"),
    "content refused": _refusing(".", "554 5.6.0 no"),
    "cut at RCPT": Kind([Serve(until="RCPT"), Reset()]),
    "garbage at DATA": Kind([Serve(until="DATA"), Send(b"\xff\0\xff\r\n"), Stall()]),
    "cut before the final reply": Kind([Serve(until="."), Drop()]),
    "no final reply": Kind([Serve(until="."), Stall()], deadline=SOON),
    "an endless reply": Kind([Serve(until="MAIL"), Send(b"250-\r\n" * 5000), Stall()]),
}


@cache
def authority() -> TestCA:
    return TestCA()


@contextmanager
def failing_server(kind: Kind) -> Iterator[ServerConfig]:
    """A server that fails in this way; gives the config to meet it with."""
    tls = {"ca": authority()} if "tls" in kind.server else {}
    server = ScriptedServer(kind.script, last="repeat", **{**kind.server, **tls})
    server.start()
    try:
        yield replace(server.config, local_hostname="me", **kind.settings)
    finally:
        server._stop()  # not close(): that some client did not follow the script is what was wanted


def by_clients(config: ServerConfig, kind: Kind, count: int) -> int:
    """Each with a connection of its own; half of them one after the other on the same client."""
    failures = 0
    with Client(config) as kept:
        for number in range(count):
            with ExitStack() as stack:
                client = kept if number % 2 else stack.enter_context(Client(config))
                failures += _fails(lambda c=client: c.send(envelope(), deadline=kind.deadline))  # type: ignore[misc]
    return failures


def by_pools(config: ServerConfig, kind: Kind, count: int) -> int:
    """Four through each pool: the first dials, the others are told why there is no client."""
    failures = 0
    for _ in range(count // 4):
        with ClientPool(config, max_size=2) as pool:
            failures += sum(_fails(lambda p=pool: p.send(envelope(), deadline=kind.deadline)) for _ in range(4))  # type: ignore[misc]
    return failures


def by_senders(config: ServerConfig, kind: Kind, count: int) -> int:
    """Four through each sender, with retries of what is transient, and little patience with who has enough."""
    retry = RetryPolicy(attempts=2, base=0.0, total=SOON)
    failures = 0
    for _ in range(count // 4):
        with ThreadedSender(config, workers=2, retry=retry) as sender:
            report = sender.send_all([envelope(str(i)) for i in range(4)], deadline=kind.deadline)
            failures += len(report.failures)
    return failures


WAYS: dict[str, Callable[[ServerConfig, Kind, int], int]] = {
    "Client": by_clients,
    "ClientPool": by_pools,
    "ThreadedSender": by_senders,
}


def _fails(send: Callable[[], object]) -> bool:
    try:
        send()
    except MailError as error:
        return error.outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT)
    return False


def fail(way: str, each: int) -> Counter[str]:
    """Meet every kind of failure `each` times; returns how often each kind failed, as it should."""
    failures: Counter[str] = Counter()
    for name, kind in KINDS.items():
        with failing_server(kind) as config:
            failures[name] = WAYS[way](config, kind, each)
    return failures


@dataclass(frozen=True)
class Census:
    """What this process holds.

    Attributes:
        files: open file descriptors, by what they are.
        threads: their names.
        objects: live objects of threadmail's classes, sockets and TLS objects, by class.
    """

    files: Counter[str]
    threads: tuple[str, ...]
    objects: Counter[str]

    @classmethod
    def take(cls) -> Census:
        files = Counter(kind for entry in Path("/proc/self/fd").iterdir() if (kind := _kind_of(entry)))
        threads = tuple(sorted(thread.name for thread in threading.enumerate()))
        gc.collect()
        objects = Counter(
            name
            for thing in gc.get_objects()
            if (name := f"{type(thing).__module__}.{type(thing).__name__}") and _ours(thing)
        )
        return cls(files, threads, objects)


def _kind_of(entry: Path) -> str:
    try:
        return os.readlink(entry).partition(":")[0]
    except OSError:
        return ""  # the one that the directory itself was read with


def _ours(thing: object) -> bool:
    kind = type(thing)
    module = str(kind.__module__)  # Cython's types have something else there
    if module.startswith("threadmail.testing"):
        return False
    return module.startswith("threadmail") or kind in (socket.socket, ssl.SSLSocket, ssl.SSLContext)
