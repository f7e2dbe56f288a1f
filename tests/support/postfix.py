"""A real Postfix for a test: smtpd, cleanup, queue manager and smtp client on loopback, nothing installed.

Owns the search for Postfix (an installed one, else Debian's package unpacked into a cache folder), its
processes, and the sink it relays to; its configuration stands in ``tests/data/postfix``. Guarantees that what
`Postfix.messages` returns is what the client under test sent, byte for byte (Postfix is told to rewrite, fold
and drop nothing, and the one Received field it must add is taken off again), and that no process outlives the
``with`` block. Leaves to others what to send, and to compare.

    with Postfix(tmp_path) as postfix:
        ...                      # mail to postfix.host, postfix.port; TLS by postfix.tls_context()
        message, = postfix.wait_for(1)
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .servers import (
    Certified,
    Delivered,
    Unavailable,
    alive,
    cached,
    end,
    free_port,
    greets,
    libraries_of,
    run,
    unpack_debian,
    until,
)

# Where packages put the daemons: Debian and its kin, and the rest.
_INSTALLED = (Path("/usr/lib/postfix/sbin"), Path("/usr/libexec/postfix"))

_TEMPLATES = Path(__file__).resolve().parents[1] / "data" / "postfix"

# Postfix insists on a user and a group of its own, each with an id that is neither root's nor nobody's nor the
# other's. These come with every Debian, and own nothing that Postfix would touch outside our folder.
_OWNER, _GROUP = "daemon", "operator"

_QUEUES = (
    *("incoming", "active", "deferred", "defer", "bounce", "trace", "flush", "hold", "corrupt", "saved", "maildrop"),
    *("private", "public", "data"),
)


@dataclass(frozen=True)
class Installation:
    """Where the programs are, and where their own libraries are if not in the system's folders."""

    commands: Path
    daemons: Path
    libraries: tuple[Path, ...] = ()

    def environment(self) -> dict[str, str]:
        """What to run them with: nothing of the caller's."""
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        if self.libraries:
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, self.libraries))
        return environment


def find_postfix() -> Installation:
    """Find an installed Postfix, or an unpacked one in the cache, or unpack Debian's package there.

    The cache folder is ``THREADMAIL_POSTFIX_CACHE``, by default one in the user's cache. A first download is
    bounded by minutes, not seconds. Raises Unavailable.
    """
    for daemons in _INSTALLED:
        if (daemons / "master").exists() and (postconf := shutil.which("postconf", path="/usr/sbin:/usr/bin")):
            return Installation(Path(postconf).parent, daemons)

    root = cached("postfix", lambda scratch: unpack_debian(scratch, "postfix"))
    libraries = (root / "usr/lib/postfix", *libraries_of(root))
    return Installation(root / "usr/sbin", root / "usr/lib/postfix/sbin", libraries)


class Postfix(Certified):
    """A running Postfix; use it in a ``with`` statement.

    `folder` receives its configuration, queue and log. `settings` are merged into main.cf, for instance
    ``{"smtpd_timeout": "1s"}`` for a server that hangs up on idle clients,
    ``{"smtpd_client_connection_count_limit": "2"}``, ``{"smtpd_discard_ehlo_keywords": "pipelining"}`` or, to
    measure Postfix without the sink, ``{"default_transport": "discard"}``. Entering raises Unavailable if
    Postfix cannot be had or run here, ValueError if it refuses the settings, and TimeoutError, with its log, if
    it does not start.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._folder = folder.resolve()
        self._settings = dict(settings or {})

    def messages(self) -> list[Delivered]:
        """What has been delivered so far, in the order of arrival at the sink."""
        with self._sink.arrival:
            return list(self._sink.delivered)

    def wait_for(self, count: int, timeout: float = 10) -> list[Delivered]:
        """Wait until `count` messages have been delivered; raises TimeoutError, with the log, after `timeout` s."""
        with self._sink.arrival:
            if not self._sink.arrival.wait_for(lambda: len(self._sink.delivered) >= count, timeout):
                raise TimeoutError(f"{len(self._sink.delivered)} of {count} messages came\n{self.log()[-4000:]}")
            return list(self._sink.delivered)

    def clear(self) -> None:
        """Forget what has been delivered."""
        with self._sink.arrival:
            self._sink.delivered.clear()

    def wait_until_logged(self, pattern: str, timeout: float = 10) -> str:
        """Wait for a line of the log to match; return the match. Raises TimeoutError, with the log."""
        try:
            until(lambda: re.search(pattern, self.log()) is not None, timeout, f"{pattern!r} in the log")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log()[-4000:]}") from None
        found = re.search(pattern, self.log())
        assert found is not None
        return found[0]

    def log(self) -> str:
        """What Postfix wrote to its log."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def processes(self) -> list[int]:
        """The ids of Postfix's processes that run now."""
        return alive(self._master.pid)

    def __enter__(self) -> Postfix:
        if os.geteuid() != 0:
            raise Unavailable("Postfix's master process must be started by root")
        installation = find_postfix()
        self._sink = _Sink()
        try:
            self._configure(installation)
            self._start(installation)
        except BaseException:
            self._sink.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop()
        finally:
            self._sink.stop()

    def _configure(self, installation: Installation) -> None:
        try:
            owner = pwd.getpwnam(_OWNER).pw_uid
            grp.getgrnam(_GROUP)
        except KeyError as error:
            raise Unavailable(f"an account Postfix could use is missing: {error}") from None
        self.port = free_port()
        config, queue = self._folder / "config", self._folder / "queue"
        config.mkdir(parents=True)
        (queue / "pid").mkdir(parents=True)
        for name in _QUEUES:
            (queue / name).mkdir(mode=0o755 if name == "public" else 0o700)
            os.chown(queue / name, owner, -1)
        self._certificate().private_key_and_cert_chain_pem.write_to_path(config / "tls.pem")
        main = (_TEMPLATES / "main.cf").read_text().format(
            folder=self._folder, daemons=installation.daemons, commands=installation.commands,
            owner=_OWNER, group=_GROUP, sink=self._sink.port,
        )  # fmt: skip
        # Never two lines for one name: each process would warn of that in the log, postlogd itself as well, and when it
        # starts after ten others have, there is no room left for its own warning, and it waits for itself.
        kept = [line for line in main.splitlines() if line.partition(" =")[0] not in self._settings]
        main = "".join(
            f"{line}\n" for line in (*kept, *(f"{name} = {value}" for name, value in self._settings.items()))
        )
        (config / "main.cf").write_text(main)
        (config / "master.cf").write_text((_TEMPLATES / "master.cf").read_text().format(port=self.port))
        # Postfix takes a file of this very second for one that is still being written, and waits.
        os.utime(config / "main.cf", (0, 0))

        # master tells only syslog what it dislikes about its settings; this one tells us.
        check = [str(installation.commands / "postsuper"), "-c", str(config), "-p"]
        done = run(check, 20, installation.environment())
        if done.returncode == 127:
            raise Unavailable(f"Postfix's programs do not run: {done.stderr.strip()}")
        if done.returncode:
            raise ValueError(f"Postfix refuses its settings: {done.stderr.strip()}")

    def _start(self, installation: Installation) -> None:
        # A session of its own, so that its process group is exactly the processes to end.
        self._master = subprocess.Popen(
            [str(installation.daemons / "master"), "-c", str(self._folder / "config"), "-d"],
            env=installation.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            until(self._answers, 10, "Postfix to answer")
        except TimeoutError as error:
            self._stop()
            raise TimeoutError(f"{error}\n{self.log()[-4000:]}") from None
        except BaseException:
            self._stop()
            raise

    def _answers(self) -> bool:
        if self._master.poll() is not None:
            raise Unavailable(f"master ended with code {self._master.returncode}: {self.log()[-2000:]}")
        return greets(self.port)

    def _stop(self) -> None:
        end(self._master, "Postfix")


class _Sink:
    """A server on a thread that speaks just the SMTP Postfix's client needs, and keeps every byte."""

    def __init__(self) -> None:
        self.delivered: list[Delivered] = []
        self.arrival = threading.Condition()  # guards `delivered`
        self._server = _SinkServer(("127.0.0.1", 0), _SinkSession)
        self._server.sink = self
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="postfix-sink")
        self._thread.start()

    def stop(self) -> None:
        """End the server and its sessions, which end with Postfix."""
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


class _SinkServer(socketserver.ThreadingTCPServer):
    request_queue_size = 100
    daemon_threads = False
    sink: _Sink


class _SinkSession(socketserver.StreamRequestHandler):
    timeout = 60
    disable_nagle_algorithm = True
    server: _SinkServer

    def handle(self) -> None:
        threading.current_thread().name = "postfix-sink-session"
        try:
            self._converse()
        except ConnectionError:
            pass  # Postfix was stopped

    def _converse(self) -> None:
        sender, recipients = "", list[str]()
        self.wfile.write(b"220 sink.example.test ESMTP\r\n")
        while command := self.rfile.readline():
            verb = command[:4].upper()
            reply = b"250 2.0.0 Ok"
            if verb == b"EHLO":
                reply = b"250-sink.example.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 0"
            elif verb == b"MAIL":
                sender, recipients = _path(command), []
            elif verb == b"RCPT":
                recipients.append(_path(command))
            elif verb == b"DATA":
                self.wfile.write(b"354 Go ahead\r\n")
                received, content = _split_trace(self._content())
                with self.server.sink.arrival:
                    self.server.sink.delivered.append(Delivered(sender, tuple(recipients), content, received))
                    self.server.sink.arrival.notify_all()
            elif verb == b"QUIT":
                # Postfix awaits no answer, and one that it did not read would make its hanging up a reset.
                return
            self.wfile.write(reply + b"\r\n")

    def _content(self) -> bytes:
        lines: list[bytes] = []
        whole = True
        while line := self.rfile.readline():
            if whole and line == b".\r\n":
                return b"".join(lines)
            # A dot is stuffing only where a line begins, which is after CRLF and not after a lone LF.
            lines.append(line[1:] if whole and line.startswith(b".") else line)
            whole = line.endswith(b"\r\n")
        raise ConnectionError("Postfix hung up inside a message")


def _path(command: bytes) -> str:
    """The address of a MAIL or RCPT command: up to the last angle bracket before the parameters."""
    found = re.fullmatch(rb"(?:MAIL FROM|RCPT TO):<(.*)>(?: [A-Z0-9-]+(?:=\S*)?)*\r\n", command)
    if found is None:
        raise ValueError(f"not understood: {command!r}")
    return found[1].decode()


def _split_trace(content: bytes) -> tuple[bytes, bytes]:
    """Split off the Received field that Postfix put first."""
    found = re.match(rb"Received: .*\r\n(?:[ \t].*\r\n)*", content)
    if found is None:
        raise ValueError(f"Postfix added no Received field: {content[:200]!r}")
    return found[0], content[found.end() :]
