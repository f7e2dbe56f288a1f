"""A real Dovecot submission server for a test: on loopback, nothing installed, relaying to a server of the test's own.

Owns the search for Dovecot (Debian's packages unpacked into a cache folder) and its processes; its configuration
stands in ``tests/data/dovecot``. Guarantees that no process outlives the ``with`` block. Leaves to others what to send,
and the relay, at which everything arrives that Dovecot says it has taken: it answers the end of data when the relay
has.

    with CaptureServer() as relay, Dovecot(relay.port) as dovecot:
        ...                      # mail to dovecot.config()
        message, = relay.wait_for(1)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from threadmail import ServerConfig

from .servers import (
    HOST,
    Unavailable,
    alive,
    cached,
    end,
    free_port,
    greets,
    libraries_of,
    started,
    unpack_debian,
)

_TEMPLATE = Path(__file__).resolve().parents[1] / "data" / "dovecot" / "dovecot.conf"
_USER, _PASSWORD = "ann", "correct-horse"

# Where Dovecot looks for its modules is compiled in, and no setting moves it: in the unpacked library this is made a
# relative path, which Dovecot's processes look up in the folder they run in, its own.
_MODULES = b"/usr/lib/dovecot/modules\0"
_OWN_MODULES = b"modules\0"


class Dovecot:
    """A running Dovecot; use it in a ``with`` statement.

    Args:
        relay: the port on loopback of the server that it passes on to.
    Entering raises Unavailable if Dovecot cannot be had or run here, TimeoutError, with its log, if it does not start.
    """

    host = HOST

    def __init__(self, relay: int) -> None:
        self.port = 0
        self._relay = relay

    def config(self, **settings: Any) -> ServerConfig:
        """The server, and a login that it takes."""
        return ServerConfig(self.host, self.port, username=_USER, password=_PASSWORD, **settings)

    def log(self) -> str:
        """What Dovecot wrote to its log."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def processes(self) -> list[int]:
        """The ids of Dovecot's processes that run now."""
        return alive(self._master.pid)

    def __enter__(self) -> Dovecot:
        if os.geteuid() != 0:
            raise Unavailable("Dovecot's master process must be started by root")
        root = cached("dovecot", _unpack)
        # Not below a test's own folder: Dovecot gives up root, and pytest's folders are closed to others.
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dovecot-", ignore_cleanup_errors=True))
            self._folder = Path(folder).resolve()
            self._folder.chmod(0o755)
            daemons = root / "usr/lib/dovecot"
            self._configure(daemons)
            self._start(root, daemons)
            stack.callback(end, self._master, "Dovecot")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _configure(self, daemons: Path) -> None:
        self.port = free_port()
        for name in ("run", "state", "mail"):
            (self._folder / name).mkdir()
        shutil.chown(self._folder / "mail", "daemon", "daemon")
        (self._folder / "run" / "modules").symlink_to(daemons / "modules")
        (self._folder / "dovecot.conf").write_text(
            _TEMPLATE.read_text().format(
                folder=self._folder, daemons=daemons, password=_PASSWORD, relay=self._relay, port=self.port
            )
        )

    def _start(self, root: Path, daemons: Path) -> None:
        libraries = [daemons, daemons / "modules/old-stats", *libraries_of(root)]
        # Dovecot would have its configuration read by a program in /usr/bin, which starts it again.
        read = [str(root / "usr/bin/doveconf"), "-f", "service=master", "-c", str(self._folder / "dovecot.conf")]
        self._master = started(
            "Dovecot",
            [*read, "-m", "master", "-e", str(root / "usr/sbin/dovecot"), "-F", "-c", read[-1]],
            {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))},
            self._answers,
            self.log,
            15,
        )

    def _answers(self, master: subprocess.Popen[bytes]) -> bool:
        if master.poll() is not None:
            raise Unavailable(f"Dovecot ended with code {master.returncode}: {self.log()[-2000:]}")
        return greets(self.port)


def _unpack(scratch: Path) -> Path:
    root = unpack_debian(scratch, "dovecot-core", "dovecot-submissiond")
    for library in root.glob("usr/lib/dovecot/libdovecot.so.*.*"):
        code = library.read_bytes()
        if code.count(_MODULES) != 1:
            raise Unavailable("this Dovecot looks for its modules elsewhere")
        library.write_bytes(code.replace(_MODULES, _OWN_MODULES.ljust(len(_MODULES), b"\0")))
    return root
