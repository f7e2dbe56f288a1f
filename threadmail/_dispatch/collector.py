"""The way back of receipts to the one caller that waits for many.

Owns `Collector`: from the workers, each as it has a receipt, to the thread of `send_all` or `send_each`. Guarantees:
every message that was handed over comes back once, with its receipt, by the collector's deadline; workers are never
made to wait; an exception from outside that comes up here loses no receipt: it comes back the next time. A caller that
has to wait is woken for the first receipt, not for each: while enough is queued to keep all workers busy it gives them
a moment, and takes what has come up then in one go. Each waking costs two switches of threads, more than all the rest
of a message's way through the sender. Has no lock: the queue between the threads is `SimpleQueue`, and everything else
belongs to the caller's thread.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from math import inf
from typing import Any, TypeAlias

from .._runtime.deadline import Deadline, now, out_of_time
from ..envelope import Envelope
from ..errors import TimedOut
from ..receipt import Receipt
from .job import LAST_WORD as LAST_WORD
from .job import Job, JobState, Keeper

#: Seconds for which the caller lets the workers work before it takes what has come up. A receipt is that late at most.
LONGEST_REST = 0.005

#: Less is not worth to lie down for, in seconds.
SHORTEST_REST = 0.0002

#: A receipt and whose; no receipt: that message is put off. None: there may be a place in the queue.
_News: TypeAlias = "tuple[int, Receipt | None] | None"


class Slot:
    """Where the receipt of one message goes: in the place of a future, whose locks nobody would need."""

    __slots__ = ("_index", "_news", "_told")

    def __init__(self, news: queue.SimpleQueue[_News], index: int) -> None:
        self._news = news
        self._index = index
        self._told = False

    def done(self) -> bool:
        """Whether the receipt is on its way to the caller."""
        return self._told

    is_held_here = False

    def orphan(self) -> None:
        """There is no lock."""

    @property
    def all_told(self) -> bool:
        return self._told

    def settle(self, job: Job, receipt: Receipt) -> None:
        """Hand the receipt over. May be called twice, and is where an exception from outside comes up in it."""
        if self._told:
            return
        news = (self._index, receipt)
        try:
            self._news.put(news)
        except BaseException:
            self._news.put(news)  # a receipt that comes twice is taken once
            self._told = True
            raise
        # Last: who is interrupted before that tells again.
        self._told = True

    def put_off(self) -> None:
        """The message waits for another attempt, and takes no place meanwhile."""
        self._news.put((self._index, None))


class Collector:
    """The messages of one `send_all` or `send_each`; used by the caller's thread only.

    Args:
        size: messages under way at most, those that wait for another attempt not counted.
        workers: how many work on them at most.
        end: when all of them must be settled.

    Attributes:
        came: receipts that are there, in the order in which they came.
        under_way: messages handed over that no receipt has come of, and who has them; those put off are apart.
    """

    def __init__(self, size: int, workers: int, end: Deadline) -> None:
        self.came: deque[tuple[int, Receipt]] = deque()
        self._size = size
        self._reserve = 2 * workers
        self._begun = inf  # when the first receipt was there
        self._seen = 0  # receipts after it
        self._end = end
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self.under_way: dict[int, tuple[Job, Keeper]] = {}
        self._put_off: dict[int, tuple[Job, Keeper]] = {}
        self._in_hand = False  # something was taken from the queue, and has perhaps not got here

    # ------------------------------------------------------------ there

    def job(self, index: int, envelope: Envelope, keeper: Keeper) -> Job:
        """The job of a message, to be put into `under_way` and then queued, and taken out again if that fails."""
        return Job(envelope, self._end, keeper, Slot(self._news, index))

    @property
    def room(self) -> int:
        """How many more messages may be under way."""
        return self._size - len(self.under_way)

    def __len__(self) -> int:
        """Messages that no receipt has come of."""
        return len(self.under_way) + len(self._put_off)

    def wake(self) -> None:
        """There may be a place in the queue now. From any thread, under any lock."""
        self._news.put(None)

    # ------------------------------------------------------------ and back

    def look(self) -> bool:
        """Take what has come up, without waiting. Returns whether there was anything."""
        if self._in_hand:
            self._find_what_was_dropped()
        news = self._news
        there = news.qsize()
        self._in_hand = True
        for _ in range(there):
            self._take(news.get())
        self._in_hand = False
        return there > 0 or bool(self.came)

    def wait(self) -> None:
        """Wait for news: a receipt, a place, room. At the deadline whatever is under way is ended, and tells of it."""
        if self.look():
            return
        self._in_hand = True
        try:
            self._take(self._news.get(timeout=self._end.remaining()))
        except queue.Empty:
            self._end_all()
        self._in_hand = False
        if self.came:
            self._rest()
        self.look()

    def _take(self, news: _News) -> None:
        if news is None:
            return
        index, receipt = news
        if receipt is None:
            if index in self.under_way:
                self._put_off[index] = self.under_way[index]
                del self.under_way[index]
        elif index in self.under_way:
            self.came += ((index, receipt),)
            del self.under_way[index]
        elif index in self._put_off:
            self.came += ((index, receipt),)
            del self._put_off[index]
        else:
            return  # it was told twice
        if receipt is not None:
            if self._begun == inf:
                self._begun = now()
            else:
                self._seen += 1

    def _find_what_was_dropped(self) -> None:
        """An exception from outside came between the queue and here. Whose receipt was told knows it."""
        for pending in (self.under_way, self._put_off):
            for index, (job, _) in list(pending.items()):
                if job.completion.done() and job.receipt is not None:
                    self._take((index, job.receipt))

    def _rest(self) -> None:
        # Half as long as the queue lasts at the pace so far, so that no worker runs dry; what the workers have now, and
        # what they take up if all of them are done at once, is no part of it.
        if self._seen:
            time_now = now()
            lasts = (len(self.under_way) - self._reserve) * (time_now - self._begun) / self._seen
            rest = min(LONGEST_REST, lasts / 2, self._end.at - time_now)
            if rest >= SHORTEST_REST:
                time.sleep(rest)

    def _end_all(self) -> None:
        self.take_back(_taken_back)
        if all(job.state is JobState.NEW for job, _ in self._all()):
            return  # those have no place in the queue yet: their last word is their caller's, who waits here
        try:
            self._take(self._news.get(timeout=LAST_WORD))
        except queue.Empty:
            for job, keeper in self._all():
                keeper.abort(job)  # a connection that was dropped says so at once

    def take_back(self, error: Any) -> None:
        """Take back what nobody has begun; `error()` makes the reason."""
        for job, keeper in self._all():
            keeper.withdraw(job, error())

    def _all(self) -> list[tuple[Job, Keeper]]:
        return [*self.under_way.values(), *self._put_off.values()]


def _taken_back() -> TimedOut:
    return out_of_time("the message was taken back before it was on the wire")
