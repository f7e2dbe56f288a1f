"""Many messages on their way, and the one thread that waits for their receipts.

Owns the way back: from the lanes, each as it has a receipt, to the caller of `send_all` or `send_each`. Guarantees:
every message that was handed over comes back once, with its receipt, by the batch's deadline; lanes are never made to
wait. A caller that has to wait is woken for the first receipt, not for each: while enough is queued to keep all lanes
busy it gives them a moment, and takes what has come up then in one go. Each waking costs two switches of threads, more
than all the rest of a message's way through the sender. Has no lock: the queue between the threads is `SimpleQueue`,
and everything else belongs to the caller's thread.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from math import inf

from ._deadline import Deadline, now
from ._jobs import Job, Keeper
from .envelope import Envelope
from .errors import TimedOut
from .receipt import Receipt

#: Seconds that a message on the wire has, after its deadline, to say itself how it stands before it is aborted.
LAST_WORD = 1.0

#: Seconds for which the caller lets the lanes work before it takes what has come up. A receipt is that late at most.
LONGEST_REST = 0.005

#: Less is not worth to lie down for, in seconds.
SHORTEST_REST = 0.0002


class Place:
    """Where the receipt of one message of a batch goes: in the place of a future, whose locks nobody would need.

    Args:
        index: which of the batch it is.
    """

    __slots__ = ("_index", "_news", "_told")

    def __init__(self, news: queue.SimpleQueue[tuple[int, Receipt]], index: int) -> None:
        self._news = news
        self._index = index
        self._told = False

    def done(self) -> bool:
        """Whether the receipt is on its way to the caller."""
        return self._told

    def settle(self, receipt: Receipt) -> None:
        """Hand the receipt over. May be called twice."""
        if not self._told:
            self._news.put((self._index, receipt))
            # Last: who is interrupted before that tells again, and a receipt that comes twice is taken once.
            self._told = True


class Batch:
    """The messages of one `send_all` or `send_each`; used by the caller's thread only.

    Args:
        size: messages under way at most.
        lanes: how many work on them at most.
        end: when all of them must be settled.
    """

    def __init__(self, size: int, lanes: int, end: Deadline) -> None:
        self._size = size
        self._reserve = 2 * lanes
        self._begun = inf  # when the first receipt was there
        self._came = 0  # receipts after it
        self._end = end
        self._news: queue.SimpleQueue[tuple[int, Receipt]] = queue.SimpleQueue()
        self._pending: dict[int, tuple[Job, Keeper]] = {}

    def add(self, index: int, envelope: Envelope, keeper: Keeper) -> Job:
        """The job for the next message, to be queued; `forget` it if that fails."""
        job = Job(envelope, self._end, keeper, Place(self._news, index))
        self._pending[index] = job, keeper
        return job

    def forget(self, index: int) -> None:
        """This message was not queued."""
        del self._pending[index]

    def __len__(self) -> int:
        """Messages under way, and receipts that nobody has asked for yet."""
        return len(self._pending)

    @property
    def wants_asking(self) -> bool:
        """Whether there is a receipt to be had, or no more messages may be added before there is."""
        return len(self._pending) >= self._size or not self._news.empty()

    def receipts(self) -> Iterator[tuple[int, Receipt]]:
        """Wait for a receipt, and take those that are there then."""
        if not self._pending:
            return
        if self._news.empty():
            first = self._wait()
            self._rest()
        else:
            first = self._news.get()
        came = [first, *(self._news.get() for _ in range(self._news.qsize()))]
        if self._begun == inf:
            self._begun = now()
        else:
            self._came += len(came)
        for index, receipt in came:
            if self._pending.pop(index, None) is not None:
                yield index, receipt

    def _rest(self) -> None:
        # Half as long as the queue lasts at the pace so far, so that no lane runs dry; what the lanes have now, and
        # what they take up if all of them are done at once, is no part of it.
        spare = len(self._pending) - self._reserve
        if spare > 0 and self._came:
            time_now = now()
            lasts = spare * (time_now - self._begun) / self._came
            rest = min(LONGEST_REST, lasts / 2, self._end.at - time_now)
            if rest >= SHORTEST_REST:
                time.sleep(rest)

    def _wait(self) -> tuple[int, Receipt]:
        try:
            return self._news.get(timeout=self._end.remaining())
        except queue.Empty:
            pass
        for job, keeper in list(self._pending.values()):
            if keeper.withdraw(job):
                late = TimedOut("the message was taken back before it was on the wire")
                job.future.settle(Receipt.not_sent(job.envelope, late))
        try:
            return self._news.get(timeout=LAST_WORD)
        except queue.Empty:
            for job, keeper in list(self._pending.values()):
                keeper.abort(job)
            return self._news.get()  # a connection that was dropped says so at once
