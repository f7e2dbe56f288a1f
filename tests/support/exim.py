"""A real Exim for a test: one daemon on two loopback ports (plain with STARTTLS, and TLS at once), nothing installed.

Owns the search for Exim (Debian's package unpacked into a cache folder), its processes and its spool; its
configuration stands in ``tests/data/exim``. Guarantees that `Exim.messages` is what it has taken, as it was when the
client was told 250 (Exim delivers nothing here), and that no process outlives the ``with`` block. Leaves to others
what to send, and to compare.

    with Exim(rcpt=GREYLISTING) as exim:
        ...                      # mail to exim.url; TLS by exim.tls_context()
        message, = exim.messages()
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
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
    started,
    unpack_debian,
    until,
)

# Debian's Exim wants a user of this name before it reads its configuration. A machine without the package has none:
# a library in front of the C library tells Exim, and nobody else, that there is one.
_USER = "Debian-exim"
_UID, _GID = 1, 37  # daemon and operator, which come with every Debian and own nothing that Exim would touch

_TEMPLATE = Path(__file__).resolve().parents[1] / "data" / "exim" / "exim.conf"

#: Rules (see `Exim`): a recipient is put off the first time a sender names it, with the reply that greylists give.
#: The memory is that of Exim's rate limits: the first measured rate is 1, the second nearly 2.
GREYLISTING = (
    "defer message = 451 4.7.1 Greylisted, please try again\n"
    "!ratelimit = 1.5 / 1h / strict / grey:$sender_address:$local_part@$domain"
)


def slower_than(messages: float, per: str) -> str:
    """A rule for `mail`: more than so many messages in that time (``"1s"``) are put off."""
    return f"defer message = 451 4.7.0 Slow down\nratelimit = {messages} / {per} / per_mail / leaky"


class Exim(Certified):
    """A running Exim; use it in a ``with`` statement.

    Args:
        settings: main settings, such as ``{"smtp_accept_max_per_host": "2"}``, ``{"smtp_receive_timeout": "1s"}`` for a
            server that hangs up on idle clients, or ``{"message_size_limit": "10K"}``.
        mail, rcpt, data: rules for the access control lists of these commands, one statement each, a line for each of
            its conditions; what no rule refuses is accepted.
        users: passwords by user, for AUTH PLAIN under TLS.
    Entering raises Unavailable if Exim cannot be had or run here, ValueError if it refuses the settings, TimeoutError,
    with its log, if it does not start.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        mail: str = "",
        rcpt: str = "",
        data: str = "",
        users: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.tls_port = 0
        # Exim takes each but once.
        self._settings = {"message_size_limit": "64M", "smtp_accept_max_nonmail": "1000", **(settings or {})}
        self._rules = {name: _indented(rule) for name, rule in (("mail", mail), ("rcpt", rcpt), ("data", data))}
        self._users = dict(users or {})

    def messages(self) -> list[Delivered]:
        """What Exim has taken so far: a message is complete when its envelope is in place."""
        return [_spooled(path) for path in sorted((self._folder / "spool" / "input").glob("*-H"))]

    def log(self) -> str:
        """What Exim wrote to its main log, which has everything, and to the one for the end of the world."""
        logs = (self._folder / "spool" / name for name in ("main.log", "panic.log"))
        return "".join(path.read_text(errors="replace") for path in logs if path.exists())

    def wait_until_logged(self, pattern: str, timeout: float = 10) -> None:
        """Wait for a line of the log to match; raises TimeoutError."""
        until(lambda: re.search(pattern, self.log()) is not None, timeout, f"{pattern!r} in the log")

    def processes(self) -> list[int]:
        """The ids of Exim's processes that run now."""
        return alive(self._daemon.pid)

    def __enter__(self) -> Exim:
        if os.geteuid() != 0:
            raise Unavailable("Exim's daemon must be started by root")
        root = _root()
        # Not below a test's own folder: Exim gives up root, and pytest's folders are closed to others.
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="exim-", ignore_cleanup_errors=True))
            self._folder = Path(folder).resolve()
            self._folder.chmod(0o755)
            self._configure()
            self._start(root)
            stack.callback(end, self._daemon, "Exim")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, root: Path) -> None:
        environment = _environment(root, self._folder)
        command = [str(root / "usr/sbin/exim4"), "-C", str(self._folder / "exim.conf")]
        checked = run([*command, "-bV"], 20, environment)
        if checked.returncode == 127 or "error while loading" in checked.stderr:
            raise Unavailable(f"Exim does not run: {checked.stderr.strip()}")
        if checked.returncode:
            raise ValueError(f"Exim refuses its settings: {checked.stdout.strip()[-500:]} {checked.stderr.strip()}")
        self._daemon = started("Exim", [*command, "-bdf"], environment, self._answers, self.log, 10)

    def _configure(self) -> None:
        self.port, self.tls_port = free_port(), free_port()
        spool = self._folder / "spool"
        spool.mkdir(parents=True)
        os.chown(spool, _UID, _GID)
        certificate = self._folder / "tls.pem"
        self._certificate().private_key_and_cert_chain_pem.write_to_path(certificate)
        os.chown(certificate, _UID, _GID)
        (self._folder / "passwd").write_text(
            f"root:x:0:0:root:/root:/bin/sh\n{_USER}:x:{_UID}:{_GID}::/nonexistent:/bin/false\n"
        )
        (self._folder / "group").write_text(f"root:x:0:\n{_USER}:x:{_GID}:\n")
        checks = [
            f"{{and {{ {{eq{{$auth2}}{{{user}}}}} {{eq{{$auth3}}{{{word}}}}} }} }}"
            for user, word in self._users.items()
        ]
        template = _TEMPLATE.read_text()
        if not checks:
            template = template.partition("begin authenticators")[0]
        (self._folder / "exim.conf").write_text(
            template.format(
                folder=self._folder,
                port=self.port,
                tls_port=self.tls_port,
                settings="\n".join(f"{name} = {value}" for name, value in self._settings.items()),
                auth=f"${{if or {{ {' '.join(checks)} }} }}",
                **self._rules,
            )
        )

    def _answers(self, daemon: subprocess.Popen[bytes]) -> bool:
        if daemon.poll() is not None:
            raise Unavailable(f"Exim ended with code {daemon.returncode}: {self.log()[-2000:]}")
        return greets(self.port)


def _root() -> Path:
    return cached("exim", lambda scratch: unpack_debian(scratch, "exim4-daemon-light", "libnss-wrapper"))


def _environment(root: Path, folder: Path) -> dict[str, str]:
    """What to run Exim with: nothing of the caller's, and its user."""
    libraries = libraries_of(root)
    wrapper = next((path / "libnss_wrapper.so" for path in libraries if (path / "libnss_wrapper.so").exists()), None)
    if wrapper is None:
        raise Unavailable("Debian's libnss-wrapper brought no library")
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "LD_PRELOAD": str(wrapper),
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
        "NSS_WRAPPER_GROUP": str(folder / "group"),
    }


def _indented(rule: str) -> str:
    return "".join(f"  {line}\n" for line in rule.splitlines())


def _spooled(path: Path) -> Delivered:
    """Read a message as Exim spools it (the format is described in Exim's specification, chapter 56)."""
    head = path.read_bytes()
    envelope, _, fields = head.partition(b"\n\n")
    lines = envelope.split(b"\n")
    count = int(lines[lines.index(b"XX") + 1])
    recipients = tuple(line.split(b" ")[0].decode() for line in lines[len(lines) - count :])
    received, headers = b"", b""
    while fields:
        # Three digits of length, a letter for the kind (a blank for most, * for one that was replaced), a blank.
        size, kind = int(fields[:3]), fields[3:4]
        field, fields = fields[5 : 5 + size], fields[5 + size :]
        if kind == b"P":
            received += field
        elif kind != b"*":
            headers += field
    body = path.with_name(path.name.removesuffix("-H") + "-D").read_bytes().partition(b"\n")[2]
    content = (headers + b"\n" + body).replace(b"\n", b"\r\n")
    return Delivered(lines[2].strip(b"<>").decode(), recipients, content, received)
