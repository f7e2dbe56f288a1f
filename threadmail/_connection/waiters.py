"""Who waits for a client while a batch is on its way.

Owns the promise that a batch lets others in between its turns. A lock is not fair: who lets go of it has it back before
anybody who waits for it is awake. So while a batch of more than one turn runs, whoever comes for the client stands in
line beside the lock as well, and between two turns the batch waits until all who stood there have had the lock.
Guarantees: that costs nothing while there is no such batch; who is interrupted in the line holds nothing, and holds up
each batch for `LONGEST` seconds at most, once. No lock of its own: single operations of a dict are atomic.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

from .._runtime.deadline import Deadline
from .._runtime.guard import HeldInTime, holding

LONGEST = 5.0


class Waiters:
    """Of one client."""

    def __init__(self) -> None:
        self._batches: dict[object, set[threading.Event]] = {}  # and for which places each has waited
        self._places: dict[threading.Event, None] = {}

    def entering(self, lock: Any, end: Deadline) -> AbstractContextManager[object]:
        """As `holding`: `with` the lock of the client, had before a deadline, and in line if there is one."""
        if self._batches and not lock._is_owned():  # who has it, as the batch itself, waits for nobody
            return _InLine(lock, end, self._places)
        return holding(lock, end)

    def begin(self, batch: object) -> None:
        """From now on others are to be let in between turns."""
        self._batches.setdefault(batch, set())

    def end(self, batch: object) -> None:
        """The batch is over, if it had begun."""
        waited = self._batches.pop(batch, set())
        if not self._batches:
            for place in waited:  # in vain, if it is there still: what an interrupted thread left goes with the last
                self._places.pop(place, None)

    def let_in(self, batch: object, end: Deadline) -> None:
        """Between two turns, without the lock: wait until those who stand here now have had it, or gave up.

        The places stay: other batches are to wait for them as well, else theirs would be the turns meanwhile.
        """
        waited = self._batches.get(batch)
        if waited is None:
            return  # it began in another process
        here = list(self._places)
        waited.intersection_update(here)
        for place in here:
            if place not in waited:
                waited.add(place)  # first: whoever was interrupted there holds this batch up once
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
