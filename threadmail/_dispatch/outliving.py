"""Threads of a program that are still at work when its main thread has ended.

The interpreter waits for those that are no daemons, and they may mail for hours yet. Owns who they are, the thread that
waits for them, and how workers get their threads from then on: `concurrent.futures` starts none any more, and waits for
those that it has before anything else ends. Guarantees: senders stay open as long as such a thread runs, and what they
have is worked off as at any other end when the last one has ended.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .._runtime.deadline import Deadline
from .._runtime.threads import join_thread, start_thread

#: What the names of workers' threads begin with. They end when their senders do, which do not wait for them with that.
LANE = "threadmail-lane"

#: Nobody sleeps longer than this without a look around, in seconds.
LOOK = 60.0

#: Seconds in which an executor has started a thread, and between two looks whether it has.
A_START = 1.0
A_LOOK = 0.001

_begun: list[bool] = []  # if it holds anything: the main thread has ended
_waiting: list[threading.Thread] = []  # who waits for them
_starting: dict[object, None] = {}  # one for each thread that is with an executor, or about to ask `has_begun`


@contextmanager
def starting() -> Iterator[None]:
    """Who asks an executor for a thread, unless `has_begun`, does both in this."""
    me = object()
    _starting[me] = None
    try:
        yield
    finally:
        del _starting[me]


def has_begun() -> bool:
    """Whether the main thread has ended, and so no executor starts a thread any more."""
    return bool(_begun)


def begin() -> None:
    """The main thread has ended."""
    _begun.append(True)


def is_waiting() -> bool:
    """Whether the last of them is still waited for, or what comes then goes on."""
    return any(thread.is_alive() for thread in _waiting)


def others() -> list[threading.Thread]:
    """Threads that the interpreter waits for, and that are neither ours nor the calling one."""
    not_asked = (threading.main_thread(), threading.current_thread())
    return [
        thread
        for thread in threading.enumerate()
        if not (thread.daemon or thread in not_asked or thread.name.startswith(LANE))
    ]


def wait_for_them(then: Callable[[], None]) -> bool:
    """Have `then` called when the last of them has ended. False: there is none, or no thread to wait for them."""
    begin()
    if not others():
        return False
    # No daemon: else the interpreter would end in the middle of `then`.
    waiting = start_thread(_wait, name="threadmail-exit", args=(then,), daemon=False)
    if waiting is None:
        return False
    _waiting.append(waiting)
    _leave_executors()
    return True


def _wait(then: Callable[[], None]) -> None:
    while threads := others():
        join_thread(threads[0], LOOK)
    then()


def _leave_executors() -> None:
    """Have `concurrent.futures` not wait for our threads, which last until the senders are closed.

    It would wait while the main thread still counts as alive; and a thread that runs until that has ended would wait
    for it, and we for that thread. Private, and so left out where it is not there.
    """
    end = Deadline.after(A_START)
    while _starting and not end.passed:
        time.sleep(A_LOOK)
    futures = sys.modules.get("concurrent.futures.thread")
    waited_for = getattr(futures, "_threads_queues", {})
    for thread in list(waited_for):
        if thread.name.startswith(LANE):
            waited_for.pop(thread, None)


if not threading.main_thread().is_alive():  # it has ended before the first mail of the program
    begin()
