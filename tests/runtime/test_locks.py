"""Our locks: what is taken by `with` is given back, wherever an exception from outside strikes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import threadmail
from tests.support.strikes import calm, strike
from threadmail._runtime import locks as _locks
from threadmail._runtime.locks import new_rlock

PACKAGE = Path(threadmail.__file__).parent


class Strike(BaseException):
    """Comes from outside."""


@pytest.fixture(params=["this Python's", "the one for 3.14"])
def lock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param != "this Python's":
        monkeypatch.setattr(_locks, "_HAS_THE_GAP", True)
    return new_rlock()


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
    calm()


def is_free(lock: Any) -> bool:
    got: bool = lock.acquire(timeout=5.0)
    if got:
        lock.release()
    return got


def test_no_exception_from_outside_loses_a_lock(lock: Any) -> None:
    """Where CPython 3.14 has its gap, one strike in thirty meets it: a plain lock is lost long before the last."""
    for _ in range(400):
        inside = threading.Event()

        def work(inside: threading.Event = inside) -> None:
            try:
                while True:
                    with lock:
                        inside.set()
            except Strike:
                pass

        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(10)
        assert thread.ident is not None
        assert strike(thread.ident, Strike)
        thread.join(10)
        assert not thread.is_alive()
        assert is_free(lock)


def test_it_is_a_re_entrant_lock(lock: Any) -> None:
    """Its own thread may take it again, nobody else may, and whatever leaves the body gives it back."""
    others: list[bool] = []

    def other() -> None:
        others.append(lock.acquire(blocking=False))

    def leave() -> None:
        with lock:
            with lock:
                thread = threading.Thread(target=other)
                thread.start()
                thread.join(10)
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert others == [False]
    with pytest.raises(RuntimeError):
        lock.release()


def test_conditions_stand_on_it(lock: Any) -> None:
    """Who waits lets go of every level, and has them all again."""
    condition, told = threading.Condition(lock), []

    def tell() -> None:
        with lock:
            told.append(True)
            condition.notify_all()

    with lock, lock:
        thread = threading.Thread(target=tell)
        thread.start()
        assert condition.wait_for(lambda: told, 10)
        thread.join(10)
    assert is_free(lock)


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent.name not in ("cli", "testing") and p.stem != "locks"],
    ids=lambda p: p.relative_to(PACKAGE).as_posix(),
)
def test_every_lock_that_may_be_struck_is_made_here(path: Path) -> None:
    """Those of the command line have one thread."""
    assert "threading.RLock()" not in path.read_text().replace("`threading.RLock()`", "")


def test_a_lock_in_the_place_of_threadings_is_the_one_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler of the proof puts its own there."""

    class Scheduled:
        pass

    monkeypatch.setattr(_locks, "_HAS_THE_GAP", True)
    monkeypatch.setattr(threading, "RLock", Scheduled)
    assert isinstance(new_rlock(), Scheduled)
