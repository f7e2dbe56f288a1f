"""Who would notice a wrong decision? Changes each one, mechanically, and runs the tests that come by it.

    python -m stress.mutants [--module NAME] [--match REGEX] [--again] [--jobs N] [--limit SECONDS]

tests/proof/decisions.py makes the mutants: each comparison, boundary, branch, state, boolean and call of the modules
that decide (tests/proof/deciding.py). First the tests that are asked about a module run once, watched, so that it is
known which of them comes by which line. Then each mutant is loaded in a process of its own, forked from one that has
all but the package imported; in it these tests run, the cheap ones first, until one fails. One that hangs is killed,
and counts as noticed by the test that it hung in.

What noticed each mutant is kept in tests/proof/decisions.json as it goes, so that a run can be broken off and resumed:
what was noticed by a test that there still is is not hunted again (but with `--again`). The exit status is 1 if a
mutant is open: noticed by nobody, and nobody says why (`ARGUED`).

    python -m stress.mutants --replay NAME [NAME ...]

runs for these mutants the recorded killers alone, and says of each whether it still fails; for the gate.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import resource
import select
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest

from tests.proof.deciding import (
    ROOT,
    TARGETS,
    Fate,
    argument,
    files_asked,
    kind_of,
    mutants_of_module,
    path_of,
    read_record,
    still_open,
    write_record,
)
from tests.proof.mutant_loading import put_in_place
from tests.proof.mutants import Mutant

LIMIT = 90.0  # seconds for all tests of a mutant together
MOST = 400  # tests for a mutant, cheap ones first
MEMORY = 4 << 30  # bytes that a process may take: a mutant may fill a list without end
ARGS = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--no-summary", "-o", "addopts="]
ARGS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is imported already was for speed


@dataclass
class Watched:
    """What a watched run of the tests of a module has shown.

    Attributes:
        lines: the tests that come by each line of the module.
        seconds: how long each test took; only tests that passed.
    """

    lines: dict[int, set[str]]
    seconds: dict[str, float]

    def kills(self, fate: Fate | None) -> bool:
        """Whether it was noticed before, by a test that there still is."""
        return fate is not None and fate.killer is not None and (fate.killer in self.seconds or fate.how == "import")

    def tests_for(self, mutant: Mutant) -> list[str]:
        """Those that come by its line, the cheap ones first; all, if it is run as the module is imported."""
        # A default, say, is read by tests that come by no line of the module.
        found = self.lines.get(mutant.line) or set(self.seconds)
        known = [test for test in found if test in self.seconds]
        return sorted(known, key=lambda test: (self.seconds[test], test))[:MOST]


# ---------------------------------------------------------------- in a forked process


class Watcher:
    """A plugin that notes which lines of a file each test comes by, and how long it takes."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.lines: dict[int, set[str]] = {}
        self.seconds: dict[str, float] = {}
        self._now: set[int] = set()

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != self._file:
            return None
        self._now.add(frame.f_lineno)
        return self._line

    def _line(self, frame: FrameType, event: str, _: object) -> Any:
        self._now.add(frame.f_lineno)
        return self._line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._now = set()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            for line in self._now:
                self.lines.setdefault(line, set()).add(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = report.duration


class Hunter:
    """A plugin that runs these tests in this order, says which one it is about, and which one failed."""

    def __init__(self, wanted: Sequence[str], say: Any) -> None:
        self._place = {test: number for number, test in enumerate(wanted)}
        self._say = say

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self._place), key=lambda item: self._place[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say("at", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._say("failed", report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._say("import", report.nodeid)


def watch(module: str) -> Watched:
    """Run the tests of a module, watched, in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _alone()
        watcher = Watcher(str(path_of(module)))
        pytest.main([*(a for a in ARGS if a != "-x"), *map(str, files_asked(module))], [watcher])
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump((watcher.lines, watcher.seconds), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return Watched(*pickle.loads(told))


def _alone() -> None:
    """What a forked process does first: a group of its own, bounds, nothing to say."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.chdir(ROOT)


class Hunt:
    """One mutant, and the process in which tests are run on it."""

    def __init__(self, mutant: Mutant, tests: Sequence[str], limit: float) -> None:
        self.mutant, self.tests = mutant, tests
        self._began = time.monotonic()
        self._end = self._began + limit
        self.at = ""
        self._said = b""
        self.fate: Fate | None = None
        self.pipe, writing = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self.pipe)
            try:
                self._run(writing)
            finally:
                os._exit(1)
        os.close(writing)

    def _run(self, writing: int) -> None:
        _alone()

        def say(what: str, test: str) -> None:
            os.write(writing, f"{json.dumps([what, test])}\n".encode())
            if what != "at":
                os._exit(0)

        put_in_place(self.mutant, str(path_of(self.mutant.module)))
        files = dict.fromkeys(test.partition("::")[0] for test in self.tests)
        status = pytest.main([*ARGS, *files], [Hunter(self.tests, say)])
        os.write(writing, f"{json.dumps(['end', str(int(status))])}\n".encode())
        os._exit(0)

    def look(self) -> bool:
        """Read what it has said. Returns whether it is over."""
        ready = select.select([self.pipe], [], [], 0)[0]
        chunk = os.read(self.pipe, 65536) if ready else b""
        self._said += chunk
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            self._hear(*json.loads(line))
        if ready and not chunk and self.fate is None:  # it died without a word: killed by memory, say
            self.fate = Fate(self.at or None, "crashed", self._spent())
        if self.fate is None and time.monotonic() > self._end:
            self.fate = Fate(self.at or None, "hung", self._spent())
        if self.fate is not None:
            self._kill()
        return self.fate is not None

    def _hear(self, what: str, test: str) -> None:
        if what == "at":
            self.at = test
        elif what == "end" and test == "0":
            self.fate = Fate(None, "survived", self._spent())
        elif what == "end":  # no test was collected: what they import cannot be imported
            self.fate = self.fate or Fate("(collection)", "import", self._spent())
        else:
            self.fate = Fate(test, what, self._spent())

    def _spent(self) -> float:
        return round(time.monotonic() - self._began, 2)

    def _kill(self) -> None:
        try:
            os.killpg(self._child, signal.SIGKILL)  # what its tests have started as well
        except ProcessLookupError:
            pass
        os.close(self.pipe)
        os.waitpid(self._child, 0)


def hunt_all(hunts: Iterator[tuple[Mutant, Sequence[str]]], jobs: int, limit: float) -> Iterator[Hunt]:
    """Hunt mutants, several at a time; each as it is over."""
    running: list[Hunt] = []
    more = True
    while more or running:
        while more and len(running) < jobs:
            nxt = next(hunts, None)
            if nxt is None:
                more = False
            else:
                running.append(Hunt(*nxt, limit))
        if running:
            select.select([hunt.pipe for hunt in running], [], [], 0.2)
        for hunt in list(running):
            if hunt.look():
                running.remove(hunt)
                yield hunt


# ---------------------------------------------------------------- the command


def run(modules: Sequence[str], match: str, *, again: bool, jobs: int, limit: float) -> int:
    """Hunt the mutants of these modules, keep what is found, and tell it. Returns how many are open."""
    fates = read_record()
    started = time.monotonic()
    total: Counter[str] = Counter()
    for module in modules:
        mutants = [mutant for mutant in mutants_of_module(module) if re.search(match, mutant.name)]
        names = {mutant.name for mutant in mutants}
        if not match:  # those that are no more go
            fates = {n: f for n, f in fates.items() if not n.startswith(f"{module}:") or n in names}
        seen = watch(module)
        print(f"{module}: {len(seen.seconds)} tests, {sum(seen.seconds.values()):.0f} s, watched", flush=True)
        wanted = [m for m in mutants if argument(m.name) is None and (again or not seen.kills(fates.get(m.name)))]
        print(f"  {len(mutants)} mutants, {len(wanted)} to hunt", flush=True)
        if wanted:
            for number, hunt in enumerate(hunt_all(((m, seen.tests_for(m)) for m in wanted), jobs, limit), 1):
                assert hunt.fate is not None
                fates[hunt.mutant.name] = hunt.fate
                if hunt.fate.killer is None:
                    print(f"  OPEN {hunt.mutant.line}: {hunt.mutant.name} ({len(hunt.tests)} tests)", flush=True)
                if number % 20 == 0:
                    write_record(fates)
            write_record(fates)
        mine = {name: fates[name] for name in names if name in fates}
        total.update(kind_of(fate.killer) for fate in mine.values() if fate.killer is not None)
        total["argued for"] += sum(argument(name) is not None for name in names)
    write_record(fates)
    open_now = [name for name in still_open(fates) if name.partition(":")[0] in modules]
    print(f"{sum(total.values()) + len(open_now)} mutants of decisions in {len(modules)} modules; noticed by:")
    print("".join(f"  {count:5} {kind}\n" for kind, count in total.most_common()), end="")
    print("".join(f"  open: {name}\n" for name in open_now), end="")
    print(f"{len(open_now)} open; {time.monotonic() - started:.0f} s")
    return len(open_now)


def replay(names: Iterable[str], limit: float) -> int:
    """Run the recorded killers of these mutants. Returns how many of them are noticed no longer."""
    fates, wrong = read_record(), 0
    by_module: dict[str, dict[str, Mutant]] = {}
    for name in names:
        module = name.partition(":")[0]
        if module not in by_module:
            by_module[module] = {mutant.name: mutant for mutant in mutants_of_module(module)}
        mutant, killer = by_module[module].get(name), fates[name].killer
        if mutant is None or killer is None:
            print(f"gone: {name}")
            continue
        [hunt] = hunt_all(iter([(mutant, [killer])]), 1, limit)
        assert hunt.fate is not None
        # That the killer is no more would be no death.
        noticed = hunt.fate.killer == killer and (hunt.fate.how == "import") == (fates[name].how == "import")
        wrong += not noticed
        print(f"{'killed' if noticed else 'SURVIVES'}: {name} by {killer} ({hunt.fate.how}, {hunt.fate.seconds:g} s)")
    return wrong


def _import_what_tests_need() -> None:
    """All but the package, once, so that the forked processes have it already."""
    for name in ("hypothesis", "trustme", "aiosmtpd.smtp", "asyncio", "email.mime.text", "ssl", "concurrent.futures"):
        try:
            __import__(name)
        except ImportError:
            pass  # then what needs it is skipped
        except Warning:
            pass
    assert not [name for name in sys.modules if name.split(".")[0] == "threadmail"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--module", action="append", help="only this one, with or without the package's name; or several"
    )
    parser.add_argument("--match", default="", help="only mutants whose name has this regular expression in it")
    parser.add_argument("--again", action="store_true", help="hunt those as well that were noticed before")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds for a mutant ({LIMIT:g})")
    parser.add_argument("--replay", nargs="+", metavar="NAME")
    options = parser.parse_args(arguments)
    _import_what_tests_need()
    # Else pytest loads the package's modules by itself, for its plugin's sake, and a mutant would never be met.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp(prefix="mutants-")
    if options.replay:
        return 1 if replay(options.replay, options.limit) else 0
    modules = [name if "." in name else f"threadmail.{name}" for name in options.module or TARGETS]
    return 1 if run(modules, options.match, again=options.again, jobs=options.jobs, limit=options.limit) else 0


if __name__ == "__main__":
    sys.exit(main())
