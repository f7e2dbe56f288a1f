"""The mutation tool, on a small package of its own: it finds each piece of the locking, the explorer each mutant."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest

from tests.detsched import DPOR, Run, Verdict, explore, watched
from tests.proof.mutant_loading import installed, killed_by
from tests.proof.mutants import Mutant, Names, mutants_of, package_mutants

POOL = '''\
import threading


class Pool:
    """Hands out keys; whoever finds none waits."""

    def __init__(self, size):
        self._cond = threading.Condition()
        self._keys = list(range(size))
        self._closed = False

    def take(self):
        with self._cond:
            while not self._keys and not self._closed:
                self._cond.wait()
            if self._closed:
                raise RuntimeError("closed")
            return self._keys.pop()

    def give(self, key):
        with self._cond:
            self._keys.append(key)
            self._cond.notify()

    def close(self):
        with self._cond:
            self._closed = True
            self._cond.notify_all()
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "small_pool"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("from small_pool.pool import Pool\n")
    (folder / "pool.py").write_text(POOL)
    (folder / "inner" / "__init__.py").write_text("def nothing():\n    with lock:\n        pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    for name in ("small_pool", "small_pool.pool", "small_pool.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "small_pool"


def pool_mutants() -> dict[str, Mutant]:
    return {f"{mutant.function}: {mutant.description}": mutant for mutant in mutants_of(POOL, "small_pool.pool")}


def test_every_piece_of_the_locking_is_found() -> None:
    assert [(mutant.line, name) for name, mutant in pool_mutants().items()] == [
        (13, "Pool.take: without `with self._cond`"),
        (14, "Pool.take: `if` for `while not self._keys and not self._closed`"),
        (16, "Pool.take: `if self._closed` never after the wait"),
        (21, "Pool.give: without `with self._cond`"),
        (23, "Pool.give: without self._cond.notify()"),
        (26, "Pool.close: without `with self._cond`"),
        (28, "Pool.close: without self._cond.notify_all()"),
        (28, "Pool.close: notify() for self._cond.notify_all()"),
    ]


def test_a_mutant_is_the_source_with_one_piece_taken_away() -> None:
    mutants = pool_mutants()
    guard = mutants["Pool.give: without `with self._cond`"].diff()
    assert "+        with __import__('contextlib').nullcontext():" in guard
    assert "+            bool(1)" in mutants["Pool.give: without self._cond.notify()"].diff()
    assert "+            self._cond.notify()" in mutants["Pool.close: notify() for self._cond.notify_all()"].diff()
    assert "+            if False:" in mutants["Pool.take: `if self._closed` never after the wait"].diff()
    loop = mutants["Pool.take: `if` for `while not self._keys and not self._closed`"].diff()
    assert "+            for _once in (None,):" in loop
    assert "+                if not self._keys and (not self._closed):" in loop
    for mutant in mutants.values():
        compile(mutant.source, "mutant", "exec")


OTHER_FORMS = """\
class Other:
    @guarded
    def decorated(self):
        self._woken_event.set()

    def timed(self):
        if not self._lock.acquire(timeout=1):
            raise TimeoutError
        try:
            with self.locked(5), open("f") as file, holding(self._mutex, 5):
                while True:
                    if self.wait(1):
                        break
                    continue
        finally:
            self._lock.release()
        self._lock.notify(); self._lock.notify()
        got = self._more.wait(1)
        self._serve()
"""


def test_other_forms_of_locking_are_found() -> None:
    assert [f"{m.line} {m.kind}: {m.description}" for m in mutants_of(OTHER_FORMS, "other")] == [
        "2 guard: without @guarded",
        "4 wake: without self._woken_event.set()",
        "7 guard: without self._lock.acquire()/release()",
        "10 guard: without `with self.locked(5)`",
        "10 guard: without `with holding(self._mutex, 5)`",
        "11 loop: `if` for `while True`",
        "17 notify: without self._lock.notify()",
        "17 notify: without self._lock.notify() #2",
        "19 check: without `self._serve()` after the wait",
    ]
    for mutant in mutants_of(OTHER_FORMS, "other"):
        compile(mutant.source, "mutant", "exec")
        assert mutant.diff()
    assert not [m for m in mutants_of(OTHER_FORMS, "other", Names(lock="^no$")) if "`with" in m.description]


def test_a_package_is_walked_with_its_submodules(package: str) -> None:
    found = [mutant.module for mutant in package_mutants(package)]
    assert found.count("small_pool.pool") == 8
    assert found.count("small_pool.inner") == 1
    assert {mutant.module for mutant in package_mutants(package, skip=["small_pool.inner"])} == {"small_pool.pool"}


def test_a_mutant_takes_the_place_of_its_module_and_gives_it_back(package: str) -> None:
    real = importlib.import_module(package)
    mutant = pool_mutants()["Pool.give: without self._cond.notify()"]
    with installed(mutant, package) as root:
        assert importlib.import_module("small_pool.pool").Pool is root.Pool
        assert root.Pool is not real.Pool
        assert root.Pool.give.__code__.co_filename == real.Pool.give.__code__.co_filename
        assert root.Pool.give.__code__.co_firstlineno == real.Pool.give.__code__.co_firstlineno == 20
        assert "bool" in root.Pool.give.__code__.co_names
    assert importlib.import_module(package) is real
    assert importlib.import_module("small_pool.pool").Pool is real.Pool
    assert "bool" not in real.Pool.give.__code__.co_names


def exchange(root: types.ModuleType) -> str | None:
    """Three threads share one key; nobody holds it together with another."""

    def program(run: Run) -> None:
        pool = root.Pool(1)
        held: list[int] = []
        wrong: list[str] = []

        def work() -> None:
            key = pool.take()
            if held:
                wrong.append("two holders")
            held.append(key)
            held.remove(key)
            pool.give(key)

        for _ in range(3):
            run.thread(work)
        run.judge(lambda: Verdict(tuple(wrong)))

    return noticed(root, program)


def closing(root: types.ModuleType) -> str | None:
    """Two threads wait for a key that never comes; closing the pool ends their waits."""

    def program(run: Run) -> None:
        pool, told = root.Pool(0), []

        def work() -> None:
            try:
                pool.take()
            except RuntimeError as error:
                told.append(str(error))

        run.thread(work)
        run.thread(work)
        run.thread(pool.close)
        run.judge(lambda: Verdict(() if told == ["closed", "closed"] else ("not told",)))

    return noticed(root, program)


def noticed(root: types.ModuleType, program: object) -> str | None:
    with watched(root.Pool):
        result = explore(program, DPOR(), stop_at_failure=True, seconds=10)  # type: ignore[arg-type]
    return None if result.first is None else f"{result.first.schedule}: {result.first.violations[0]}"


def test_every_mutant_is_killed_and_the_real_package_is_not(package: str) -> None:
    probes = [("exchange", exchange), ("closing", closing)]
    real = importlib.import_module(package)
    assert [probe(real) for _, probe in probes] == [None, None]
    mutants = list(package_mutants(package, skip=["small_pool.inner"]))
    assert [mutant.name for mutant in mutants if killed_by(mutant, package, probes) is None] == []
    assert len(mutants) == 8


def test_a_mutant_that_nobody_looks_at_survives(package: str) -> None:
    mutant = pool_mutants()["Pool.close: without self._cond.notify_all()"]
    assert killed_by(mutant, package, [("exchange", exchange)]) is None
    assert "deadlock" in str(killed_by(mutant, package, [("closing", closing)]))


def test_a_probe_or_an_import_that_fails_has_noticed_the_mutant(package: str) -> None:
    mutant = pool_mutants()["Pool.give: without self._cond.notify()"]
    assert str(killed_by(mutant, package, [("odd", lambda root: str(1 // 0))])).startswith("odd: ZeroDivisionError: ")
    broken = next(mutants_of("import missing_module\nwith lock:\n    pass\n", "small_pool.pool"))
    assert str(killed_by(broken, package, [])).startswith("import: ModuleNotFoundError")
