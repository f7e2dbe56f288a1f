"""Which process this is.

Owns `here`, whose answer is another one in each process. Its number is not enough to tell: numbers come round, and a
child may get that of an ancestor which has ended, while it still has what that one left. Guarantees: what is kept by
the answer is nobody else's, as long as Python's hooks run at a fork. Where they do not, a child is known by its number,
which is then compared with the last process of its line that asked. No lock: `dict.setdefault` is atomic, so threads of
a child that ask first at the same time agree.
"""

from __future__ import annotations

import os


class Process:
    """One process. Compared by identity."""

    __slots__ = ("heirs", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.heirs: dict[int, Process] = {}  # in a child, until it is known to be one: itself


_last = Process(os.getpid())


def here() -> Process:
    """The process that asks."""
    global _last
    process, pid = _last, os.getpid()
    if process.pid == pid:
        return process
    _last = heir = process.heirs.setdefault(pid, Process(pid))
    return heir


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=here)
