"""Who waits for a client while a batch is on its way.

Owns the promise that a batch lets others in between its turns. A lock is not fair: who lets go of it has it back before
anybody who waits for it is awake. So while a batch of more than one turn runs, whoever comes for the client stands in
line beside the lock as well, and between two turns the batch waits until all who stood there have had the lock.
Guarantees: that costs nothing while there is no such batch; who is interrupted in the line holds nothing, and holds up
a batch for `LONGEST` seconds at most, once. No lock of its own: single operations of a dict are atomic.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

from ._deadline import Deadline
from ._guard import HeldInTime, holding

LONGEST = 5.0


class Line:
    """Of one client."""

    def __init__(self) -> None:
        self._batches: dict[object, None] = {}
        self._places: dict[threading.Event, None] = {}

    def entering(self, lock: Any, end: Deadline) -> AbstractContextManager[object]:
        """As `holding`: `with` the lock of the client, had before a deadline, and in line if there is one."""
        if self._batches and not lock._is_owned():  # who has it, as the batch itself, waits for nobody
            return _InLine(lock, end, self._places)
        return holding(lock, end)

    def begin(self, batch: object) -> None:
        """From now on others are to be let in between turns."""
        self._batches[batch] = None

    def end(self, batch: object) -> None:
        """The batch is over, if it had begun."""
        self._batches.pop(batch, None)

    def let_in(self, end: Deadline) -> None:
        """Between two turns, without the lock: wait until those who stand here now have had it, or gave up."""
        for place in list(self._places):
            self._places.pop(place, None)  # whoever was interrupted there holds nobody up twice
            place.wait(end.within(LONGEST).remaining())


class _InLine(HeldInTime):
    """Stands in line while it waits for the lock."""

    __slots__ = ("_place", "_places")

    def __init__(self, lock: Any, end: Deadline, places: dict[threading.Event, None]) -> None:
        super().__init__(lock, end)
        self._place = threading.Event()
        self._places = places

    def __enter__(self) -> None:
        try:
            self._places[self._place] = None
            super().__enter__()
            self._leave()
        except BaseException:
            self.give_back()
            self._leave()
            raise

    def _leave(self) -> None:
        self._places.pop(self._place, None)
        self._place.set()
