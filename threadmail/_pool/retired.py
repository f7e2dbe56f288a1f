"""The clients of a pool that are ended.

Owns their numbers, and those clients whom somebody held by their `sync_root` when they were to be ended: these linger,
and are closed when he lets go. Guarantees: each connection is counted once, when it is closed, whatever interrupts;
who holds on to one keeps no other one open; one thread at a time waits for them. Leaves to `_pool.keys` who is to
be ended.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from .._runtime.deadline import Deadline
from .._runtime.steps import Steps
from .._runtime.threads import start_thread
from ..client import Client
from .held import Farewell
from .leases import AT_ONCE

#: Seconds for whoever holds the `sync_root` of a client, when its pool is closed, to let go of it. Nobody waits for
#: that but one thread for all of them, which closes the socket then.
LINGER = 60.0

#: Seconds that it waits for one of them before it looks at the next.
LINGER_TURN = 0.1


class Retired:
    """See the module.

    Args:
        steps: the lock of the pool: guards the fields, and the methods that get the time are called in its steps.

    Attributes:
        opened, closed: numbers of all that are gone, as those of `ClientStats`.
        lingering: ended, but under somebody who holds their `sync_root`; not counted yet.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.opened = 0
        self.closed: Counter[str] = Counter()
        self.lingering: Sequence[Client] = ()  # replaced whole
        self._seer: threading.Thread | None = None  # who sees them off
        self._until = 0.0  # ... and for how long

    def add(self, farewell: Farewell[Client], client: Client) -> None:
        """A farewell is over. In a step, which may be repeated."""
        if farewell.counted:
            return
        if farewell.lingers:
            self.lingering, farewell.counted = (*self.lingering, client), True  # and counted when it is closed
        else:
            opened, closed = self._with_numbers_of(client)
            self.opened, self.closed, farewell.counted = opened, closed, True

    def _with_numbers_of(self, client: Client) -> tuple[int, Counter[str]]:
        stats = client.stats()
        return self.opened + stats.opened, self.closed + Counter(stats.closed)

    def held(self, _: float) -> Sequence[Client]:
        return self.lingering

    def sweep(self, lingering: Sequence[Client], seconds: float = 0.0) -> None:
        """Close what somebody held when it was to be ended, and holds no more, or not for longer than `seconds`."""
        for client in lingering:
            if client._part(AT_ONCE, patience=Deadline.after(seconds)):
                self._steps.surely(self._swept, client)

    def _swept(self, client: Client, _: float) -> None:
        if client in self.lingering:
            opened, closed = self._with_numbers_of(client)
            left = tuple([each for each in self.lingering if each is not client])
            self.opened, self.closed, self.lingering = opened, closed, left

    # ------------------------------------------------------------ when the pool is closed

    def see_off(self) -> None:
        """Have closed what somebody holds still, now that nobody comes any more who looks."""
        if self._steps.take(self._is_to_be_begun):
            start_thread(self._see_all_off, name="threadmail-lingering")

    def _is_to_be_begun(self, at: float) -> bool:
        self._until = at + LINGER
        return bool(self.lingering) and not self._is_under_way()

    def _is_under_way(self) -> bool:
        return self._seer is not None and self._seer.is_alive()

    def _see_all_off(self) -> None:
        """In turns, until none is left or the time is over."""
        if self._steps.take(self._begin):
            while lingering := self._steps.take(self._still_here):
                self.sweep(lingering, LINGER_TURN)

    def _begin(self, _: float) -> bool:
        if self._is_under_way():
            return False  # another thread was faster
        self._seer = threading.current_thread()
        return True

    def _still_here(self, at: float) -> Sequence[Client]:
        if self.lingering and at < self._until:
            return self.lingering
        self._seer = None  # in this same step: who is left later is for another thread
        return ()
