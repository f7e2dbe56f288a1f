"""Puts the controlled primitives where programs look for them, and puts everything back.

A program comes under control unchanged if it makes its locks, conditions and threads through `threading.X` at call
time. The stdlib's Condition, Event, Semaphore, Barrier, Queue, Future and ThreadPoolExecutor do; what they took out
of `threading` or `time` when they were imported is replaced in their modules too. `threading.local` needs nothing:
the threads are real. Not covered: subclasses of the real `threading.Thread` (`threading.Timer` is one), locks made at
import, `time.time` and `time.perf_counter`.
"""

from __future__ import annotations

import concurrent.futures.thread as futures_thread
import itertools
import logging
import queue
import sys
import threading
import time
import weakref
from typing import Any

from .clock import EPOCH
from .primitives import Lock, RLock, SimpleQueue
from .scheduler import active
from .task import Abort
from .threads import Thread, current_thread_of, facades, get_ident

_real_monotonic = time.monotonic
_real_sleep = time.sleep
_real_current_thread = threading.current_thread


def _monotonic() -> float:
    scheduler = active()
    if scheduler is None:
        return _real_monotonic()
    me = scheduler.me()
    return EPOCH if me is None else scheduler.clock.now(me)


def _sleep(seconds: float) -> None:
    """In a controlled thread time passes for that thread and nobody waits."""
    scheduler = active()
    me = scheduler.me() if scheduler is not None else None
    if scheduler is None or me is None:
        _real_sleep(seconds)
    else:
        scheduler.clock.sleep(me, seconds)


def _current_thread() -> Any:
    scheduler = active()
    me = scheduler.me() if scheduler is not None else None
    return _real_current_thread() if me is None else current_thread_of(me)


_real_handle = logging.Logger.handle


def _handle(logger: logging.Logger, record: logging.LogRecord) -> None:
    # Who catches BaseException and logs it, as the executor does, has nothing to tell when a run is given up.
    scheduler = active()
    if scheduler is None or scheduler.ending is None or scheduler.me() is None:
        _real_handle(logger, record)


class patched:
    """Context manager: within it, new locks, conditions, threads, queues and executors are controlled ones."""

    def __init__(self) -> None:
        self._saved: list[tuple[Any, str, Any]] = []

    def _put(self, module: Any, name: str, value: Any) -> None:
        self._saved.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def __enter__(self) -> patched:
        put = self._put
        put(threading, "Lock", Lock)
        put(threading, "RLock", RLock)
        put(threading, "_allocate_lock", Lock)
        put(threading, "Thread", Thread)
        put(threading, "get_ident", get_ident)
        put(threading, "current_thread", _current_thread)
        put(threading, "_time", _monotonic)
        put(time, "monotonic", _monotonic)
        put(time, "sleep", _sleep)
        put(queue, "time", _monotonic)
        put(queue, "SimpleQueue", SimpleQueue)
        put(futures_thread, "_global_shutdown_lock", Lock())
        put(futures_thread.ThreadPoolExecutor, "_counter", itertools.count().__next__)  # in the names of its threads
        put(futures_thread, "_threads_queues", weakref.WeakKeyDictionary())
        put(sys, "unraisablehook", self._unraisable)
        put(logging.Logger, "handle", _handle)
        return self

    def __exit__(self, *exc: object) -> None:
        while self._saved:
            setattr(*self._saved.pop())
        facades.clear()

    def _unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        # A finalizer or weak reference callback that meets the end of a given-up run has nothing to tell.
        if unraisable.exc_type is not Abort:
            next(value for _, name, value in self._saved if name == "unraisablehook")(unraisable)
