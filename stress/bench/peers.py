"""Who there is, and how each is started for one run.

Owns names, labels and command lines. Leaves fetching to `tools`, sending to `client` and to the peers themselves.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .job import NAME, SENDER, Job
from .tools import Tools, Unavailable, version

ROOT = Path(__file__).resolve().parents[2]
WINDOW = 16  # messages in flight with CHUNKING


@dataclass(frozen=True)
class Peer:
    """Something that sends.

    Attributes:
        label: in tables and pictures.
        program: the function in `client` that drives it; "" for programs of other languages.
        package: the package of PyPI that it needs.
        trips, cost: a first guess at round trips and CPU seconds a message, to choose how many messages a run sends.
        forms: what it can be given.
        shares: all threads share one connection.
        says: whether it says itself when it is ready, and what it took; one that does not is timed as a process.
    """

    name: str
    label: str
    program: str = ""
    package: str = ""
    forms: tuple[str, ...] = ("ready", "message")
    window: int | None = None
    max_messages: int = 0
    shares: bool = False
    says: bool = True
    trips: float = 4.2
    cost: float = 200e-6

    @property
    def ours(self) -> bool:
        return self.program.startswith("threadmail")


PEERS = {
    peer.name: peer
    for peer in (
        Peer("threadmail", "threadmail", "threadmail", forms=("ready", "message", "file"), trips=1.1),
        Peer("threadmail-kept", "threadmail, max_messages=None", "threadmail", max_messages=-1, trips=1.1),
        Peer(
            "threadmail-window", f"threadmail, window={WINDOW}", "threadmail",
            forms=("ready",), window=WINDOW, trips=0.1,
        ),
        Peer(
            "threadmail-window-kept", f"threadmail, window={WINDOW}, max_messages=None", "threadmail",
            forms=("ready",), window=WINDOW, max_messages=-1, trips=0.1,
        ),
        Peer("threadmail-client", "threadmail, one shared Client", "threadmail-client", shares=True, trips=2.1),
        Peer("threadmail-client-all", "threadmail, Client.send_all", "threadmail-client-all", shares=True, trips=1.1),
        Peer("threadmail-smtp", "threadmail, an SMTP a thread", "threadmail-smtp"),
        Peer("smtplib", "smtplib, one a thread", "smtplib"),
        Peer("smtplib-new", "smtplib, new connection each", "smtplib-new", trips=8.4),
        Peer("smtplib-locked", "smtplib, one shared with a lock", "smtplib-locked", shares=True),
        Peer("aiosmtplib", "aiosmtplib", "aiosmtplib", package="aiosmtplib"),
        Peer("django", "Django's backend", "django", package="Django"),  # of "ready", too, it makes messages of its own
        Peer("nodemailer", "nodemailer's pool", forms=("ready", "message", "file"), trips=2.2, cost=1000e-6),
        Peer("smtp-source", "Postfix's smtp-source (C)", forms=("ready",), says=False, cost=60e-6),
    )
}  # fmt: skip


def command(peer: Peer, job: Job, tools: Tools, tree: Path | None = None) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of one run.

    Args:
        tree: a folder whose threadmail is measured, in place of the one beside this benchmark.
    Raises:
        Unavailable: the peer cannot be had here, or cannot do this.
    """
    if job.form not in peer.forms:
        raise Unavailable(f"takes no messages of the form {job.form!r}")
    job = dataclasses.replace(job, peer=peer.program, window=peer.window, max_messages=peer.max_messages)
    text = json.dumps(dataclasses.asdict(job))
    if peer.name == "nodemailer":
        node, folder = tools.node()
        return [node, str(Path(__file__).with_name("nodemailer.cjs")), str(folder), text], dict(os.environ)
    if peer.name == "smtp-source":
        return _smtp_source(job, tools)
    python = tools.python(peer.package) if peer.package else sys.executable
    path = os.pathsep.join(map(str, [tree, ROOT] if tree is not None else [ROOT]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}
    return [python, "-m", "stress.bench.client", text], environment


def _smtp_source(job: Job, tools: Tools) -> tuple[list[str], dict[str, str]]:
    installation = tools.postfix()
    size = Path(job.path).stat().st_size
    command = [str(installation.commands / "smtp-source"), "-4", "-d", "-s", str(job.connections)]
    command += ["-m", str(job.messages), "-l", str(size), "-r", str(job.recipients)]
    command += ["-M", NAME, "-f", SENDER, "-t", "to@example.net", f"inet:{job.host}:{job.port}"]
    return command, installation.environment()


def about(peer: Peer, tools: Tools) -> str:
    """The peer's version, as it says it; "" if it does not."""
    if peer.name == "nodemailer":
        node, folder = tools.node()
        package = json.loads((folder / "package.json").read_text())
        return f"{package['version']}, node {version([node, '--version']).removeprefix('v')}"
    if peer.name == "smtp-source":
        installation = tools.postfix()
        postconf = [str(installation.commands / "postconf"), "-d", "-h", "mail_version"]
        libraries = installation.environment().get("LD_LIBRARY_PATH", "")
        return version(["env", f"LD_LIBRARY_PATH={libraries}", *postconf])
    if peer.package:
        asked = f"from importlib.metadata import version; print(version({peer.package!r}))"
        return version([tools.python(peer.package), "-c", asked])
    return ""
