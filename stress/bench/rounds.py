"""Rounds in shuffled order, and the results they leave.

Owns servers and delay lines while the plan is worked off. Guarantees: in each round everybody in a cell has its turn
before the next cell, in an order drawn anew from the seed, so that what the machine does meanwhile hits all alike and
ratios can be taken pair by pair; who cannot be had, or fails twice running, is left out of the cell from then on, and
why is kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .job import Job
from .line import DelayLine
from .linecheck import Checked, check
from .peers import PEERS
from .plan import Cell, first_guess, fitting
from .running import Run, RunFailed, cpu_of, run
from .servers import Server, serve
from .tools import Tools, Unavailable

_Tell = Callable[[str], object]


@dataclass
class Results:
    """All runs, by cell and peer, in the order of rounds; and what could not be had or failed."""

    runs: dict[tuple[Cell, str], list[Run]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # "peer" or "server X": why
    failures: list[str] = field(default_factory=list)
    lines: dict[float, Checked] = field(default_factory=dict)  # by milliseconds
    about: dict[str, Any] = field(default_factory=dict)

    def cells(self, part: str) -> list[Cell]:
        """The cells of a part that have runs, each once."""
        return list(dict.fromkeys(cell for cell, _ in self.runs if cell.part == part))

    def find(self, part: str, **wanted: object) -> Cell | None:
        """The first cell of a part whose fields are as wanted."""
        for cell in self.cells(part):
            if all(getattr(cell, name) == value for name, value in wanted.items()):
                return cell
        return None

    def of(self, cell: Cell | None, peer: str) -> list[Run]:
        return self.runs.get((cell, peer), []) if cell is not None else []

    def keep(self, wanted: Callable[[Cell], bool]) -> None:
        """Forget the runs of all other cells, and what was not to be had or failed: it is to be tried again.

        Of the cells that stay, rounds that were cut short go: pairs are runs of one round.
        """
        self.runs = {(cell, peer): runs for (cell, peer), runs in self.runs.items() if wanted(cell)}
        self.missing, self.failures = {}, []
        for cell in {cell for cell, _ in self.runs}:
            whole = self.rounds(cell)
            for peer in cell.peers:
                del self.of(cell, peer)[whole:]

    def rounds(self, cell: Cell) -> int:
        """How many rounds of a cell are whole."""
        return min((len(self.runs[cell, peer]) for peer in cell.peers if (cell, peer) in self.runs), default=0)

    def to_json(self) -> str:
        runs = [
            {"cell": dataclasses.asdict(cell), "peer": peer, "runs": [dataclasses.asdict(run) for run in runs]}
            for (cell, peer), runs in self.runs.items()
        ]
        lines = {str(rtt): dataclasses.asdict(found) for rtt, found in self.lines.items()}
        return json.dumps(
            {"about": self.about, "missing": self.missing, "failures": self.failures, "lines": lines, "runs": runs},
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Results:
        data: Mapping[str, Any] = json.loads(text)
        results = cls(missing=data["missing"], failures=data["failures"], about=data["about"])
        results.lines = {float(rtt): Checked(**found) for rtt, found in data["lines"].items()}
        for entry in data["runs"]:
            cell = Cell(**{**entry["cell"], "peers": tuple(entry["cell"]["peers"])})
            runs = [{**one, "laps": tuple(map(tuple, one.get("laps", ())))} for one in entry["runs"]]
            results.runs[cell, entry["peer"]] = [Run(**one) for one in runs]
        return results


class Bench:
    """Works a plan off. A context manager, which ends the servers and lines.

    Args:
        core: the core for cells that are to be on one.
        earlier: results to go on with; rounds that are there are not run again.
        save: called with the results after each round.
    """

    def __init__(
        self, tools: Tools, rng: random.Random, tell: _Tell = print, core: int | None = None,
        *, earlier: Results | None = None, save: Callable[[Results], object] | None = None,
    ) -> None:  # fmt: skip
        self.results = earlier or Results()
        self._save = save
        self._tools, self._rng, self._tell = tools, rng, tell
        self._core = core if core is not None else _last_core()
        self._open = ExitStack()
        self._servers: dict[tuple[str, bool], Server] = {}
        self._lines: dict[tuple[str, float], DelayLine] = {}
        self._messages: dict[tuple[Cell, str], int] = {}
        self._out: set[tuple[Cell, str]] = set()
        self._content = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="bench-content-")))

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def check_lines(self, rtts: Iterable[float]) -> None:
        """Measure a delay line of each length."""
        for rtt in sorted(set(rtts) - {0.0}):
            self.results.lines[rtt] = check(rtt / 1e3)
            self._tell(f"delay line of {rtt:g} ms: {self.results.lines[rtt]}")

    def work(self, plan: list[Cell]) -> None:
        there = {cell: self.results.rounds(cell) for cell in plan}
        for number in range(max((cell.rounds for cell in plan), default=0)):
            for cell in plan:
                if there[cell] <= number < cell.rounds:
                    self._turn(cell, number)
            if self._save is not None:
                self._save(self.results)

    def _turn(self, cell: Cell, number: int) -> None:
        try:
            server = self._server(cell)
        except Unavailable as error:
            self._miss(f"server {cell.server}", str(error))
            return
        peers = [peer for peer in cell.peers if peer not in self.results.missing and (cell, peer) not in self._out]
        self._rng.shuffle(peers)
        said = []
        for peer in peers:
            try:
                one = self._again(cell, peer, server)
            except Unavailable as error:
                self._out.add((cell, peer))
                self._miss(peer if cell.form == "ready" else f"{peer} with a {cell.form}", str(error))
                continue
            except (RunFailed, OSError, subprocess.SubprocessError):
                self._out.add((cell, peer))
                self.results.runs.pop((cell, peer), None)
                continue
            self.results.runs.setdefault((cell, peer), []).append(one)
            said.append(f"{peer} {one.rate:,.0f}/s")
        if said:
            self._tell(f"{number + 1}/{cell.rounds} {cell.where}: {', '.join(sorted(said))}")

    def _again(self, cell: Cell, peer: str, server: Server) -> Run:
        """A run, and after a failure, which is kept, one more."""
        for last in (False, True):
            try:
                return self._run(cell, peer, server)
            except (RunFailed, OSError, subprocess.SubprocessError) as error:
                self.results.failures.append(f"{cell.where}: {error}")
                self._tell(f"FAILED {self.results.failures[-1]}")
                if last:
                    raise
        raise AssertionError

    def _miss(self, who: str, why: str) -> None:
        if who not in self.results.missing:
            self.results.missing[who] = why
            self._tell(f"without {who}: {why}")

    def _run(self, cell: Cell, peer: str, server: Server) -> Run:
        """One run with a number of messages that fits; done again once if the guess was far off."""
        number = self._messages.get((cell, peer)) or first_guess(cell, peer)
        one = self._send(cell, peer, server, number)
        if not cell.messages and not 0.4 < one.seconds / cell.seconds < 2.5:
            better = fitting(cell, peer, cell.seconds * one.rate)
            if better > 1.5 * number:
                one = self._send(cell, peer, server, better)
            number = better  # where the run took too long, the next one is shorter; this one counts
        self._messages[cell, peer] = number
        return one

    def once(self, cell: Cell, peer: str, messages: int, *, laps: int = 1, tree: Path | None = None) -> Run:
        """One run outside of all rounds.

        Args:
            laps: how often the messages are sent.
            tree: the folder whose threadmail is to be measured, if not the one beside us.
        Raises:
            Unavailable, RunFailed: as `run`.
        """
        return self._send(cell, peer, self._server(cell), messages, laps, tree)

    def _send(
        self, cell: Cell, peer: str, server: Server, messages: int, laps: int = 1, tree: Path | None = None
    ) -> Run:
        line = self._line(cell, server)
        host, port = (line.host, line.port) if line is not None else (server.host, server.port)
        path = str(self._eml(cell.size))
        job = Job(
            peer, host, port, cell.connections, messages, path, cell.form, cell.recipients,
            stream=cell.stream, laps=laps,
        )  # fmt: skip
        core = self._core if cell.pinned else None
        if line is None:
            return run(PEERS[peer], job, server, self._tools, core, tree)
        trips, work = line.trips, cpu_of([line.pid])
        one = run(PEERS[peer], job, server, self._tools, core, tree)
        return dataclasses.replace(one, trips=line.trips - trips, wire=(cpu_of([line.pid]) - work) / one.seconds)

    def _server(self, cell: Cell) -> Server:
        if f"server {cell.server}" in self.results.missing:
            raise Unavailable(self.results.missing[f"server {cell.server}"])
        key = (cell.server, cell.pinned)
        if key not in self._servers:
            core = self._core if cell.pinned else None
            self._servers[key] = self._open.enter_context(serve(cell.server, self._tools, core))
        return self._servers[key]

    def _line(self, cell: Cell, server: Server) -> DelayLine | None:
        if not cell.rtt:
            return None
        key = (cell.server, cell.rtt)
        if key not in self._lines:
            line = DelayLine((server.host, server.port), cell.rtt / 1e3)
            self._lines[key] = self._open.enter_context(line)
        return self._lines[key]

    def _eml(self, size: int) -> Path:
        path = self._content / f"{size}.eml"
        if not path.exists():
            path.write_bytes(content(size))
        return path


def content(size: int) -> bytes:
    """A message of exactly `size` bytes, ready for the wire: a header, and lines of 76 letters as base64 has them."""
    header = (
        b"From: Shop <bench@example.org>\r\nTo: you@example.net\r\nSubject: Your order\r\n"
        b"Date: Mon, 02 Jan 2023 10:00:00 +0000\r\nMessage-ID: <bench@example.org>\r\n"
        b'MIME-Version: 1.0\r\nContent-Type: text/plain; charset="us-ascii"\r\n\r\n'
    )
    line = (b"0123456789abcdefghijklmnopqrstuvwxyz" * 3)[:76] + b"\r\n"
    room = max(0, size - len(header) - 2)
    body = (line * (room // len(line) + 1))[:room]
    return header + (body[:-1] + b"x" if body.endswith(b"\r") else body) + b"\r\n"


def _last_core() -> int | None:
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
