"""The way into a sender from outside, and out again.

Owns what each call of a caller passes at its begin and at its end. Guarantees: a finaliser that came up in the middle
of a worker's step gets no further; what a signal handler or a finaliser brought up in the middle of this call is told
by this call, when it holds no lock any more.
"""

from __future__ import annotations

from typing import Any

from .._runtime.locks import is_owned
from ..errors import Reentered
from .starter import Starter
from .teller import Teller


class Entry:
    """What a call does from outside, as a context manager without a state of its own: it is for all threads.

    Args:
        lock: the dispatcher's.
    """

    def __init__(self, lock: Any, starter: Starter, teller: Teller) -> None:
        self._lock = lock
        self._starter = starter
        self._catch_up = teller.catch_up

    def __enter__(self) -> None:
        """Raises Reentered where a finaliser asks that came up in the middle of a worker's step.

        It may be on a worker's thread in a step under that worker's lock. The dispatcher's comes before that: who asked
        for it there could wait for one who has it, and wants the worker's.
        """
        if self._starter.in_step and not is_owned(self._lock):
            raise Reentered("a finaliser came up in the middle of a worker's step, and must not call its sender there")

    def __exit__(self, *_: object) -> None:
        self._catch_up()
