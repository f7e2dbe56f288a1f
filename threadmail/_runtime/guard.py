"""What guards something that one thread at a time may use.

Owns `Guarded`: the `sync_root` of a client, and what becomes of it after a fork; and `holding`, the one place where a
lock is taken with a deadline. Guarantees: in a forked child the lock is a new one, free, and the object has dropped
what belongs to the parent before any thread of the child gets hold of it, whatever interrupts; and nobody hangs there.
"""

from __future__ import annotations

import os
import weakref
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, cast

from .deadline import NEVER, Deadline, out_of_time
from .locks import new_rlock
from .process import here


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


class InEachProcess:
    """Base of what begins anew in a forked child, before anybody of the child goes on.

    Three things may come while a child is entered. Another thread of it, where no hook of Python's ran: `_births` has
    one lock for each child, and `dict.setdefault` is atomic, so all agree on it. A signal handler or a finaliser, on
    the very thread that is about it: it does all of it there, and what it interrupted finds that nothing is left to do.
    And an exception from outside: the next one who comes does it again.

    So what is the parent's is let go of, and the new is made, aside and perhaps twice; and it is put in its place in
    one step, once. Which process it is for is set the last, so whoever finds that may use all of it. Handlers,
    finalisers and such exceptions come up where something is called: in `_inherited` and `_begin` nothing is, from the
    look whether it is due to the end. Over what takes other locks that of `_births` is not held.
    """

    def __init__(self) -> None:
        """The last thing when one is made: another thread may fork from here on."""
        self._births: dict[int, Any] = {}
        after_fork(self)

    def enter_child(self, pid: int) -> None:
        """In a forked child: begin anew, unless that is done."""
        here()  # where no hook runs, this is how the process comes to be known
        lock = self._births.setdefault(pid, new_rlock())
        with lock:
            inherited = self._inherited(pid)
        if inherited is None:
            return
        fresh = self._made_anew(pid, inherited)
        # What is replaced goes when all is in its place, and without the lock: what goes may call.
        replaced = vars(self).copy()
        with lock:
            self._begin(pid, fresh)
            # Numbers of processes come round: a child of this one may get the number of one that has ended.
            self._births = {}
        del replaced

    def _inherited(self, pid: int) -> Any:
        """What is the parent's. None: this has begun anew already."""
        raise NotImplementedError

    def _made_anew(self, pid: int, inherited: Any) -> Any:
        """Let go of what is the parent's, and make what takes its place. May be interrupted, and done again."""
        raise NotImplementedError

    def _begin(self, pid: int, fresh: Any) -> None:
        """Put it in its place, and set the process the last; or do nothing, if somebody has been faster."""
        raise NotImplementedError


class Root:
    """Has the `sync_root` of one object in one process."""

    __slots__ = ("own",)

    def __init__(self, own: Any) -> None:
        self.own = own


class Guarded(InEachProcess):
    """Base of what is guarded by a `sync_root` and must not be used by two processes."""

    def __init__(self, sync_root: Any = None) -> None:
        self._pid: int = os.getpid()  # whose `_root` is; in a child that is not entered yet, the parent
        self._root: Root = Root(new_rlock() if sync_root is None else sync_root)
        super().__init__()

    @property
    def sync_root(self) -> Any:
        """The lock that makes several calls one step: `with client.sync_root:`. Reentrant; guards the dialogue.

        A forked child has one of its own: the one inherited may be held by a thread that does not exist there.
        """
        pid = os.getpid()
        # Asked on each use: some servers fork without running Python's hooks (uWSGI without its fork-hook flag).
        if self._pid != pid:
            self.enter_child(pid)
        return self._root.own

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child that has not used the object yet: what it holds is still the parent's."""
        return self._pid != os.getpid()

    def stand_alone(self) -> None:
        """Have a lock that nobody else knows, instead of the owner's, who holds that now and lets go of this object."""
        self._root.own = new_rlock()

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} holds a live connection and cannot be pickled: "
            "send a ServerConfig, and make one there"
        )


class BornAnew(InEachProcess):
    """Base of what owns several of these, and asks at the beginning of each call which process this is."""

    _ready_in: int = 0  # the process that it has begun in

    def _check_process(self) -> None:
        if self._ready_in != os.getpid():
            self.enter_child(os.getpid())


class ForkAware(Protocol):
    """What must know that it lives in a forked child now."""

    def enter_child(self, pid: int) -> Any: ...


_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def after_fork(fork_aware: ForkAware) -> None:
    """Let `enter_child` be called in every forked child, for as long as the object lives."""
    _fork_aware.add(fork_aware)


def _in_child() -> None:
    pid = os.getpid()
    struck: BaseException | None = None
    for fork_aware in list(_fork_aware):
        try:
            try:
                fork_aware.enter_child(pid)
            except BaseException:
                fork_aware.enter_child(pid)  # an exception from outside: what it left undone is done now
                raise
        except BaseException as exc:  # noqa: BLE001 - the others too; then Python says it was ignored
            struck = exc
    if struck is not None:
        raise struck


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
