"""Re-entrant locks that no exception from outside can lose.

Owns the one place where the package makes such a lock. CPython 3.14 looks for exceptions from outside (a signal
handler's, as Ctrl-C raises it, or one set by `PyThreadState_SetAsyncExc`) once more after a `with` statement has taken
its lock and before it is bound to give it back: who is struck there leaves a lock that nobody holds and nobody gets. A
method written in Python is left without that look, so there the lock is taken by one. Other versions (3.10 to 3.13,
3.15) have no such gap, and get the interpreter's own lock, at a fifth of the cost. Guarantees: a `with` statement ends
with the lock given back, wherever one such exception strikes.
"""

from __future__ import annotations

import _thread
import sys
import threading
from operator import attrgetter
from typing import TYPE_CHECKING, Any

_HAS_THE_GAP = sys.version_info[:2] == (3, 14)
_BLOCKING = (True,)


class _Kept(_thread.RLock):  # type: ignore[misc]  # it is not final
    """Takes itself in one call of the interpreter's own, behind which every exception is caught."""

    def __enter__(self) -> bool:  # type: ignore[override]
        acquired: list[bool] = []
        try:
            acquired.extend(map(self.acquire, _BLOCKING))
            return True
        except BaseException:
            if acquired:
                self.release()
            raise


def new_rlock() -> _thread.RLock:
    """A `threading.RLock`, asked for by that name, so that a scheduler's may stand in its place."""
    made = threading.RLock()
    return _Kept() if _HAS_THE_GAP and type(made) is _thread.RLock else made


class _Condition(threading.Condition):
    """`with` it is `with` its lock: no line of Python is between, in which memory could run out with the lock held."""

    if not TYPE_CHECKING:
        __enter__ = property(attrgetter("_lock.__enter__"))
        __exit__ = property(attrgetter("_lock.__exit__"))


_TheirCondition = threading.Condition


def keep_for_sure(condition: threading.Condition | None) -> None:
    """Have a condition that the standard library has made give its lock back, whatever happens."""
    if type(condition) is _TheirCondition:  # and not a scheduler's
        condition.__class__ = _Condition


def is_owned(lock: Any) -> bool:
    """Whether the calling thread has this re-entrant lock."""
    return bool(lock._is_owned())
