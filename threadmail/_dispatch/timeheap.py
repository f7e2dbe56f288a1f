"""Jobs by a time.

Owns `TimeHeap`, of which a sender has two: for due times, and for deadlines. Guarantees: every operation is O(log n),
amortised by nothing, so that no caller ever pays for what others left behind; whoever has left is not held: a time is
left of him, and for at most a third of those who are still here. An exception from outside between any two of its
steps, or a call by a signal handler there, loses nobody: the dictionary says who is here, the heaps are its index and
may hold too much, never too little.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import inf
from typing import Any, Generic, TypeAlias, TypeVar

_T = TypeVar("_T")

#: When, a number that no other has, and what; None once that has left, for it may be large.
_Entry: TypeAlias = "list[Any]"

#: Entries of the old heap that each operation looks at while that is worn down. More than one, or it would never end.
_WORN = 4

#: So many dead entries are nothing to be looked after.
_FEW = 64


class TimeHeap(Generic[_T]):
    """Things by a time; hashable by identity."""

    def __init__(self) -> None:
        self._entries: dict[_T, _Entry] = {}
        self._heap: list[_Entry] = []
        # Once half of a heap is dead it becomes the old one. Its living entries move to a new heap some at a time:
        # a sweep in one go takes 15 ms for 100,000, and somebody would wait for it under the lock.
        self._old: list[_Entry] = []
        self._counter = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, thing: object) -> bool:
        return thing in self._entries

    def __iter__(self) -> Iterator[_T]:
        return iter(list(self._entries))

    def add(self, thing: _T, at: float) -> None:
        """Have `thing` here, once, at this time."""
        self._counter = number = self._counter + 1  # in one step: a signal handler that adds has another one
        before = self._entries.get(thing)
        entry: _Entry = [at, number, thing]
        try:
            # Nothing comes up between the two: who looked at a heap there would take the entry for a dead one.
            self._entries[thing] = entry
            heapq.heappush(self._heap, entry)
        except BaseException:  # there is no memory; or from outside, and then an entry too many is worn down
            if before is None:
                self._entries.pop(thing, None)
            else:
                self._entries[thing] = before
            raise
        if before is not None:
            before[2] = None
        self._wear_down()

    def discard(self, thing: _T) -> bool:
        """Forget it. Returns whether it was here."""
        entries = self._entries
        if thing not in entries:
            return False
        entry = entries[thing]  # no call up to here: a signal handler that came by would discard it as well
        del entries[thing]
        entry[2] = None
        self._wear_down()
        return True

    def at(self, thing: _T) -> float:
        """Its time; inf if it is not here."""
        entry = self._entries.get(thing)
        return inf if entry is None else entry[0]

    def first_at(self) -> float:
        """The earliest time; inf where there is nothing."""
        first = self._first()
        return inf if first is None else first[0]

    def first_due(self, now: float) -> _T | None:
        """What comes first, if its time has come. It stays."""
        first = self._first()
        return None if first is None or first[0] > now else first[2]

    def _first(self) -> _Entry | None:
        first = self._living_top(self._heap)
        if self._old:
            other = self._living_top(self._old)
            if first is None or (other is not None and other < first):
                return other
        return first

    def _living_top(self, heap: list[_Entry]) -> _Entry | None:
        while heap:
            top = heap[0]
            if self._entries.get(top[2]) is top:
                return top
            if heap and heap[0] is top:  # still: a signal handler may have added one as that was asked
                heapq.heappop(heap)
        return None

    def _wear_down(self) -> None:
        old = self._old
        if not old:
            if len(self._heap) > 2 * len(self._entries) + _FEW:
                self._old, self._heap = self._heap, old
            return
        for _ in range(_WORN):
            if not old:
                return
            last = old[-1]  # a heap without its last entry is one still
            if self._entries.get(last[2]) is last:
                heapq.heappush(self._heap, last)  # first, and twice does no harm
            if old and old[-1] is last:  # still: a signal handler may have worn it down in between
                del old[-1]
