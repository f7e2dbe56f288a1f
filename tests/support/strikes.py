"""Exceptions from outside, by the interpreter's own means."""

from __future__ import annotations

import ctypes
import threading

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)


class _Calm(BaseException):
    """Raised and caught by `calm`."""


def strike(thread: int, kind: type[BaseException]) -> bool:
    """Raise in that thread, at its next step. Returns whether there was one."""
    return bool(_set_async_exc(thread, ctypes.py_object(kind)))


def withdraw(thread: int) -> None:
    """What is on its way to that thread does not come."""
    _set_async_exc(thread, ctypes.py_object())


def calm() -> None:
    """Let the interpreter forget that exceptions were on their way; to be called when all that was struck is over.

    CPython 3.11 has one note for all threads. It stays where a strike was withdrawn, or its thread ended first, and
    with it the interpreter turns for ever at the entry of the next function that a profile or trace function sees.
    """
    try:
        strike(threading.get_ident(), _Calm)
        for _ in range(1000):
            pass
    except _Calm:
        pass
