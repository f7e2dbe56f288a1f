"""Who is told what became of a message.

Owns the order in which a message is told, and the mark on a thread that is telling. Guarantees: who waits for a message
is told before whoever watches; what a caller's own code does in a callback can be told from the outside (`is_telling`),
so that it is not made to wait for itself. Has no lock, and nothing of it is called under one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from ._job import Job


class Teller:
    """Tells of jobs that have their final receipts.

    Args:
        settle: settles the completion of a job, which takes no time but for callbacks of futures.
        announce: calls back whoever watches, which may take its time. Both may be called twice with one job.
    """

    def __init__(self, settle: Callable[[Job], None], announce: Callable[[Job], None]) -> None:
        self._settle = settle
        self._announce = announce
        self._local = threading.local()

    @property
    def is_telling(self) -> bool:
        """Whether this thread is in the middle of telling of a message."""
        return getattr(self._local, "depth", 0) > 0

    def tell(self, job: Job) -> None:
        """Tell of a job, on a worker's thread."""
        try:
            self._settle(job)
        finally:
            self._announce(job)

    def tell_all(self, jobs: Iterable[Job]) -> None:
        """Tell of jobs, on any thread."""
        self._marked(self.tell, jobs)

    def settle_all(self, jobs: Iterable[Job]) -> None:
        """Tell only those who wait for them; somebody else will do the rest."""
        self._marked(self._settle, jobs)

    def _marked(self, act: Callable[[Job], None], jobs: Iterable[Job]) -> None:
        local = self._local
        depth = getattr(local, "depth", 0)
        try:
            local.depth = depth + 1
            for job in jobs:
                act(job)
        finally:
            local.depth = depth
