"""What guards something that one thread at a time may use.

Owns `Guarded`: the `sync_root` of a client, and what becomes of it after a fork; and `holding`, the one place where a
lock is taken with a deadline. Guarantees: in a forked child the lock is a new one, free, and the object was told to
drop what belongs to the parent before any thread of the child gets hold of it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, cast

from .deadline import NEVER, Deadline, out_of_time
from .locks import new_rlock


class Lock(Protocol):
    """What `threading.RLock` and `threading.Lock` have in common."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


def holding(lock: Any, end: Deadline) -> AbstractContextManager[object]:
    """`with` a lock that must be had before a deadline; where there is none, the lock itself, at a fifth of the cost.

    Raises:
        TimedOut: it was not; the body does not run.
    """
    return cast("AbstractContextManager[object]", lock) if end is NEVER else HeldInTime(lock, end)


class HeldInTime:
    """Takes a lock before a deadline.

    An exception raised from outside (Ctrl-C, a time limit of a job queue) finds it held or not held, and never lost: it
    can come when a call returns and when a function is entered, so the lock is taken and noted in one call, and given
    back by its own `__exit__`. Both are the interpreter's own code, in which no such exception comes up.
    """

    __slots__ = ("__exit__", "_acquired", "_end", "_lock")

    def __init__(self, lock: Any, end: Deadline) -> None:
        self._lock: Lock = lock
        self._end = end
        self._acquired: list[bool] = []
        if not TYPE_CHECKING:
            self.__exit__ = lock.__exit__

    def __enter__(self) -> None:
        acquired = self._acquired
        try:
            left = self._end.remaining()
            acquired.extend(map(self._lock.acquire, (True,), (-1 if left is None else left,)))
            if acquired[0]:
                return
        except BaseException:
            self.give_back()
            raise
        raise out_of_time("another thread kept this client busy until the deadline passed")

    def give_back(self) -> None:
        """Where the body is not come to: what was taken all the same is not kept."""
        if self._acquired and self._acquired.pop():
            self._lock.release()

    if TYPE_CHECKING:

        def __exit__(self, *exc: object) -> None: ...


class Guarded:
    """Base of what is guarded by a `sync_root` and must not be used by two processes."""

    def __init__(self, sync_root: Any = None) -> None:
        self._pid = os.getpid()
        # One lock for each process this object lives in. A child finds none of its own and makes one: the lock it
        # inherited may be held by a thread that does not exist there. dict.setdefault is atomic, so threads of the
        # child that come first at the same time agree on one.
        self._locks: dict[int, Any] = {self._pid: new_rlock() if sync_root is None else sync_root}
        after_fork(self)

    @property
    def sync_root(self) -> Any:
        """The lock that makes several calls one step: `with client.sync_root:`. Reentrant; guards the dialogue."""
        pid = os.getpid()
        lock = self._locks.get(pid)
        # Asked on each use: some servers fork without running Python's hooks (uWSGI without its fork-hook flag).
        return lock if lock is not None else self.enter_child(pid)

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child that has not used the object yet: what it holds is still the parent's."""
        return self._pid != os.getpid()

    def stand_alone(self) -> None:
        """Have a lock that nobody else knows, instead of the owner's, who holds that now and lets go of this object."""
        self._locks[self._pid] = new_rlock()

    def enter_child(self, pid: int) -> Any:
        """In a forked child: have a lock of its own, and drop what is the parent's. Returns the lock."""
        new_lock = new_rlock()
        with new_lock:  # held before anybody can find it, so that nobody gets at the parent's connection first
            lock = self._locks.setdefault(pid, new_lock)
            if lock is new_lock:
                self._pid = pid
                self._after_fork()
        return lock

    def _after_fork(self) -> None:
        """Drop what belongs to the parent: close sockets without a word on them, forget what was under way."""
        raise NotImplementedError

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} holds a live connection and cannot be pickled: "
            "send a ServerConfig, and make one there"
        )


class BornAnew:
    """Base of what begins anew in a forked child: `_reset` runs once there, before anybody of the child goes on."""

    def __init__(self) -> None:
        self._ready_in = os.getpid()  # the process that `_reset` has run in
        self._births: dict[int, Any] = {}
        after_fork(self)

    def _check_process(self) -> None:
        if self._ready_in != os.getpid():
            self.enter_child(os.getpid())

    def enter_child(self, pid: int) -> None:
        """In a forked child: begin anew, or wait for the thread that is about it."""
        new_lock = threading.Lock()
        with new_lock:  # held before anybody can find it
            first_lock = self._births.setdefault(pid, new_lock)
            if first_lock is new_lock:
                for client in self._inherited():
                    client.enter_child(pid)
                self._reset()
                self._ready_in = pid
                return
        with first_lock:
            pass

    def _inherited(self) -> Iterable[Guarded]:
        """Whose connections are the parent's. Each is told now: where no hook runs, nobody else would close them."""
        raise NotImplementedError

    def _reset(self) -> None:
        """Forget what the parent had: locks, queues, connections."""
        raise NotImplementedError


class ForkAware(Protocol):
    """What must know that it lives in a forked child now."""

    def enter_child(self, pid: int) -> Any: ...


_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def after_fork(fork_aware: ForkAware) -> None:
    """Let `enter_child` be called in every forked child, for as long as the object lives."""
    _fork_aware.add(fork_aware)


def _in_child() -> None:
    for fork_aware in list(_fork_aware):
        fork_aware.enter_child(os.getpid())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
