"""Peers that have to be fetched: each by name, with the ordinary client of its registry, into a folder of ours.

Owns the cache folder. Guarantees that nothing is installed on the machine, and that what cannot be had is an
`Unavailable` with a reason in one line, found once: the benchmark says it and goes on.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tests.support.postfix import Installation

_T = TypeVar("_T")
_PATIENCE = 300.0  # seconds for a download

#: Where what was fetched is kept, unless another folder is named.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "threadmail", "bench")


class Unavailable(Exception):
    """This peer or server cannot be had here; the text says why, and names no host: it ends on a page for everybody."""

    def __init__(self, why: str) -> None:
        super().__init__(re.sub(r"\w+://\S+|host='[^']*'", "...", why))


class Tools:
    """What can be run, fetched when first asked for.

    Args:
        cache: the folder that keeps what was fetched, from one run to the next.
        fetch: whether to ask registries for what is not there.
    """

    def __init__(self, cache: Path, *, fetch: bool = True) -> None:
        self.cache = cache.resolve()
        self._fetch = fetch
        self._found: dict[str, object] = {}

    def python(self, package: str) -> str:
        """A Python that has `package` (and is this one, in an environment with it)."""
        return self._once(f"python {package}", lambda: self._find_python(package))

    def node(self) -> tuple[str, Path]:
        """Node, and the folder of nodemailer."""
        return self._once("node", self._find_node)

    def postfix(self) -> Installation:
        """Postfix with its test programs `smtp-source` and `smtp-sink`."""
        return self._once("postfix", self._find_postfix)

    def _once(self, name: str, find: Callable[[], _T]) -> _T:
        if name not in self._found:
            try:
                self._found[name] = find()
            except Unavailable as error:
                self._found[name] = error
        found = self._found[name]
        if isinstance(found, Unavailable):
            raise found
        return found  # type: ignore[return-value]

    def _find_python(self, package: str) -> str:
        if importlib.util.find_spec(package.lower()):
            return sys.executable
        folder = self.cache / f"python{sys.version_info[0]}.{sys.version_info[1]}"  # everybody runs on the same one
        python = folder / "bin" / "python"
        if not python.exists():
            self._run([sys.executable, "-m", "venv", str(folder)], "a virtual environment")
        if self._has(python, package):
            return str(python)
        self._run([str(python), "-m", "pip", "install", "--quiet", package], f"{package} from PyPI")
        return str(python)

    def _has(self, python: Path, package: str) -> bool:
        command = [str(python), "-c", f"import {package.lower()}"]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0

    def _find_node(self) -> tuple[str, Path]:
        node = shutil.which("node")
        if node is None:
            raise Unavailable("there is no node on this machine")
        folder = self.cache / "node" / "node_modules" / "nodemailer"
        if not (folder / "package.json").exists():
            npm = shutil.which("npm")
            if npm is None:
                raise Unavailable("there is no npm on this machine")
            (self.cache / "node").mkdir(parents=True, exist_ok=True)
            quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
            self._run([npm, "install", "--prefix", str(self.cache / "node"), *quiet, "nodemailer"], "npm's nodemailer")
        return node, folder

    def _find_postfix(self) -> Installation:
        try:
            from tests.support import servers as real
            from tests.support.postfix import find_postfix
        except ImportError as error:
            raise Unavailable(f"the tests' helper for Postfix needs the extra `test`: {error}") from error
        shared = self.cache == CACHE.resolve()  # with the tests, which unpack it as well
        os.environ.setdefault("THREADMAIL_POSTFIX_CACHE", str((CACHE.parent if shared else self.cache) / "postfix"))
        unpacked = Path(os.environ["THREADMAIL_POSTFIX_CACHE"], "root")
        if not self._fetch and not unpacked.exists() and not shutil.which("smtp-source", path="/usr/sbin:/usr/bin"):
            raise Unavailable("not in the cache, and not to be fetched")
        try:
            return find_postfix()
        except real.Unavailable as error:
            raise Unavailable(str(error)) from error

    def _run(self, command: list[str], what: str) -> None:
        if not self._fetch:
            raise Unavailable(f"{what}: not in the cache, and not to be fetched")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{what}: {type(error).__name__}") from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unavailable(f"{what}: {reason[:200]}")


def version(command: list[str]) -> str:
    """The last line that a command prints, or "" if it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines and done.returncode == 0 else ""
