"""What the real servers of the suite have in common: how they are had, watched and ended, with nothing installed.

Owns the cache folder in which Debian's and npm's packages are unpacked, each once, the waiting for processes that offer
no event to wait for, and a server's address and certificate. Guarantees that a folder of the cache is whole, whatever
cut its making short, and that a machine where a server cannot be had is told so once, with the reason. Leaves
configuration and life to each server's own module.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trustme import LeafCert

HOST = "127.0.0.1"

# Why a server could not be had for a cache folder: offline, the next to ask would wait as long for the same answer.
_refused: dict[Path, Unavailable] = {}


class Unavailable(Exception):
    """A server cannot be had or run here; the text says why. Tests skip with it."""


@dataclass(frozen=True)
class Delivered:
    """One message as a server has it: the envelope, the content without the server's trace, and that trace."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    received: bytes = b""


class Certified:
    """A server on loopback as its clients know it: where it is, and a certificate from an authority of its own."""

    host = HOST

    def __init__(self) -> None:
        self.port = 0
        import trustme  # here, so that what needs no server is run where it has no wheel

        self._ca = trustme.CA()

    @property
    def url(self) -> str:
        """The server as threadmail's configuration names it, without TLS."""
        return f"smtp://{self.host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext:
        """A client's context that trusts this server, as localhost and as 127.0.0.1."""
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context

    def _certificate(self) -> LeafCert:
        return self._ca.issue_cert("localhost", self.host)


def cached(name: str, make: Callable[[Path], Path]) -> Path:
    """A folder that `make` filled once, below a scratch folder it is given; kept for all later runs.

    The cache is ``THREADMAIL_<NAME>_CACHE``, by default a folder in the user's cache. Raises what `make` raises, which
    is Unavailable, again and at once whenever the same cache is asked for.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get(f"THREADMAIL_{name.upper()}_CACHE") or Path(base, "threadmail", name)).resolve()
    if cache in _refused:
        raise _refused[cache]
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / "root"
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="unpack-") as scratch:
                try:
                    # Renamed when whole, so that an unpacking cut short is never taken for the server.
                    make(Path(scratch)).rename(root)
                except Unavailable as error:
                    _refused[cache] = error
                    raise
    return root


def unpack_debian(scratch: Path, *packages: str) -> Path:
    """Download Debian packages and what they need that is not installed; unpack all into one folder.

    Bounded by minutes. Raises Unavailable.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unavailable(f"no {packages[0]} is installed, and there is no apt-get to download one with")
    archives = scratch / "archives"
    (archives / "partial").mkdir(parents=True)
    options = ["-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]
    download = ["apt-get", *options, "install", "--download-only", "--no-install-recommends", "--yes", *packages]
    done = run(download, 120)
    if done.returncode:
        # A fresh machine has no package lists, an old one may have lists of packages that are gone.
        run(["apt-get", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20", "update"], 120)
        done = run(download, 120)
    found = sorted(archives.glob("*.deb"))
    if done.returncode or not found:
        raise Unavailable(f"apt-get could not download Debian's {packages[0]}: {_last_line(done)}")
    root = scratch / "root"
    for package in found:
        if run(["dpkg-deb", "-x", str(package), str(root)], 60).returncode:
            raise Unavailable(f"dpkg-deb could not unpack {package.name}")
    return root


def libraries_of(root: Path) -> tuple[Path, ...]:
    """Where the libraries of unpacked Debian packages are."""
    return (*root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu"))


def install_npm(scratch: Path, *packages: str) -> Path:
    """Have npm put packages into one folder, their scripts not run. Bounded by minutes. Raises Unavailable."""
    if not (shutil.which("node") and shutil.which("npm")):
        raise Unavailable(f"there is no node with an npm to download {packages[0]} with")
    root = scratch / "root"
    root.mkdir()
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", f"--cache={scratch / 'npm'}"]
    done = run(["npm", "install", *options, "--prefix", str(root), *packages], 120)
    if done.returncode or not (root / "node_modules").is_dir():
        raise Unavailable(f"npm could not download {packages[0]}: {_last_line(done)}")
    return root


def run(
    command: list[str], timeout: float, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run a command that asks nobody anything; raises Unavailable if it takes longer than `timeout` seconds."""
    environment = {**environment, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(
            command, env=environment, timeout=timeout, text=True, input="", capture_output=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command[:2])} took longer than {timeout} s") from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def free_port() -> int:
    """A port that was free a moment ago, for servers that cannot be asked to choose one."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def greets(port: int) -> bool:
    """Whether a server says 220 there."""
    try:
        with socket.create_connection((HOST, port), timeout=5) as client:
            greeted = client.recv(4) == b"220 "
            client.sendall(b"QUIT\r\n")
    except ConnectionError:
        return False
    return greeted


def until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll, for what the kernel offers no event for: another program's listener, another's children."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.01)


def alive(group: int) -> list[int]:
    """The processes of a group, less those that only wait for a parent to take note of their end."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # What follows the command's name, which may hold spaces and brackets itself: state, parent, group.
            state, _, member_of = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(member_of) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def started(
    name: str,
    command: list[str],
    environment: Mapping[str, str],
    answers: Callable[[subprocess.Popen[bytes]], bool],
    log: Callable[[], str],
    seconds: float,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that its process group is exactly the processes to end.

    Raises:
        TimeoutError: with its log, if `answers` is not fulfilled in time; it has been ended, as by any other exception.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: answers(process), seconds, f"{name} to answer")
    except TimeoutError as error:
        end(process, name)
        raise TimeoutError(f"{error}\n{log()[-4000:]}") from None
    except BaseException:
        end(process, name)
        raise
    return process


def end(leader: subprocess.Popen[bytes], name: str) -> None:
    """End a process that leads a group of its own, and all of the group: politely, then not."""
    leader.terminate()
    try:
        leader.wait(5)
        # A leader that does not signal its group leaves its children to us.
        signal_group(leader.pid, signal.SIGTERM)
        until(lambda: not alive(leader.pid), 5, f"{name}'s processes to end")
    except (subprocess.TimeoutExpired, TimeoutError):
        signal_group(leader.pid, signal.SIGKILL)
        leader.wait(5)
        until(lambda: not alive(leader.pid), 5, f"{name}'s killed processes to end")


def signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass  # all of it is gone already
