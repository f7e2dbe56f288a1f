"""Locks and the simple queue under the scheduler's control, with the interfaces of the stdlib's.

`Lock` and `RLock` announce acquire and release; the stdlib's own Condition, Event, Semaphore, Barrier, Queue, Future
and ThreadPoolExecutor are Python code on top of locks and so come under control by way of patching.py. Outside a run
(set-up, verdict, after it) the locks work for one thread at a time and raise where they would have to wait.

An inner acquire or release of an RLock by its owner is no switch point: nobody can tell whether it happened.
"""

from __future__ import annotations

import queue
from collections import deque
from typing import Any, Final

from .ops import ACQUIRE, GET, LOCKED, PUT, RELEASE, TIMED, TIMED_GET, TRY, Op, Shared
from .scheduler import Scheduler, active
from .task import Abort, Task

#: Owner of a lock that was taken outside the controlled threads.
OUTSIDE: Final = Shared("outside")


class _BaseLock(Shared):
    __slots__ = ("_count", "_owner")

    def __init__(self) -> None:
        scheduler = active()
        super().__init__(scheduler.fresh_name("lock") if scheduler is not None else "lock")
        self._owner: Shared | None = None
        self._count = 0

    def _free(self) -> bool:
        return self._owner is None

    def _acquire(self, scheduler: Scheduler, me: Task, blocking: bool, timeout: float) -> bool:
        if scheduler.ending is not None:
            scheduler.unwinding(me)
            return True
        if not blocking or timeout == 0:
            op = Op(TRY, self)
        elif timeout > 0:
            # With no early time-out left this waits like any other, so that the search need not try it while busy.
            op = Op(TIMED if me.timeouts_left else ACQUIRE, self, self._free, timeout=timeout)
        else:
            op = Op(ACQUIRE, self, self._free)
        scheduler.step(me, op)
        if self._owner is not None and scheduler.ending is None:
            if op.timeout is not None:
                scheduler.clock.timed_out(me, op)
            return False
        self._owner, self._count = me, 1
        me.held.add(self)
        return True

    def _let_go(self) -> None:
        if isinstance(self._owner, Task):
            self._owner.held.discard(self)
        self._owner, self._count = None, 0

    def _acquire_outside(self, blocking: bool, timeout: float) -> bool:
        if self._owner is None or (isinstance(self._owner, Task) and active() is None):
            # Free, or held by a thread of a run that is over.
            self._owner, self._count = OUTSIDE, 1
            return True
        if blocking and timeout < 0:
            raise RuntimeError(f"{self.name} is held by {self._owner.name}, and outside a run nobody can wait for it")
        return False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError

    def locked(self) -> bool:
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        if scheduler is not None and me is not None and scheduler.ending is None:
            scheduler.step(me, Op(LOCKED, self))
        return self._owner is not None

    def held_by_me(self) -> bool:
        """Does the calling thread hold it? For oracles: no operation, nobody is told."""
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        if scheduler is not None and me is not None and scheduler.ending is not None:
            return True  # clean-up code of a given-up run passes, see Scheduler.unwinding
        return self._owner is (me or OUTSIDE)

    def _at_fork_reinit(self) -> None:
        self._owner, self._count = None, 0


class Lock(_BaseLock):
    """`threading.Lock`. Any thread may release it, as a Condition's waiter lock needs."""

    __slots__ = ()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        if scheduler is None or me is None:
            return self._acquire_outside(blocking, timeout)
        return self._acquire(scheduler, me, blocking, timeout)

    def release(self) -> None:
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        if scheduler is not None and me is not None:
            if scheduler.ending is not None:
                return
            scheduler.step(me, Op(RELEASE, self))
        if self._owner is None:
            raise RuntimeError("release unlocked lock")
        self._let_go()

    def _is_owned(self) -> bool:
        # For Condition. The stdlib asks by a try-lock, which would be an operation; the owner of a lock need not ask.
        return self.held_by_me() or self.locked()


class RLock(_BaseLock):
    """`threading.RLock`, with the hooks that Condition uses to let go of all levels at once."""

    __slots__ = ()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        if self._owner is (me or OUTSIDE):
            self._count += 1
            return True
        if scheduler is None or me is None:
            return self._acquire_outside(blocking, timeout)
        return self._acquire(scheduler, me, blocking, timeout)

    def release(self) -> None:
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        if scheduler is not None and me is not None and scheduler.ending is not None:
            return
        if self._owner is not (me or OUTSIDE):
            raise RuntimeError("cannot release un-acquired lock")
        if self._count > 1:
            self._count -= 1
            return
        if scheduler is not None and me is not None:
            scheduler.step(me, Op(RELEASE, self))
        self._let_go()

    def _is_owned(self) -> bool:
        return self.held_by_me()

    def _recursion_count(self) -> int:
        return self._count if self.held_by_me() else 0

    def _release_save(self) -> int:
        count, self._count = self._count, 1
        self.release()
        return count

    def _acquire_restore(self, count: int) -> None:
        self.acquire()
        self._count = count


class SimpleQueue(Shared):
    """`queue.SimpleQueue`, whose real put and get are atomic C functions: one operation each."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        scheduler = active()
        super().__init__(scheduler.fresh_name("queue") if scheduler is not None else "queue")
        # Each item with the position in the trace and the virtual time of the put that brought it.
        self._items: deque[tuple[Any, int, float]] = deque()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        cause, now = -1, 0.0
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        if scheduler is not None and me is not None and scheduler.ending is None:
            scheduler.step(me, Op(PUT, self))
            cause, now = len(scheduler.trace) - 1, me.now
        self._items.append((item, cause, now))

    put_nowait = put

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if timeout is not None and timeout < 0:
            raise ValueError("'timeout' must be a non-negative number")
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        if scheduler is not None and me is not None:
            if scheduler.ending is not None:
                raise Abort
            if not block or timeout == 0:
                op = Op(TIMED_GET, self)
            elif timeout is not None and me.timeouts_left:
                op = Op(TIMED_GET, self, self._items.__len__, timeout=timeout)
            else:
                op = Op(GET, self, self._items.__len__, timeout=timeout)
            scheduler.step(me, op)
            if self._items:
                _, op.cause, time = self._items[0]
                scheduler.clock.arrived(me, time)
            elif op.timeout is not None:
                scheduler.clock.timed_out(me, op)
        if not self._items:
            raise queue.Empty
        return self._items.popleft()[0]

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return self.qsize() == 0

    def qsize(self) -> int:
        scheduler = active()
        me = scheduler.me() if scheduler is not None else None
        if scheduler is not None and me is not None and scheduler.ending is None:
            scheduler.step(me, Op(LOCKED, self))
        return len(self._items)
