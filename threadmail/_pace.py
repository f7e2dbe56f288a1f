"""What a server tells about how much it can take.

Owns the reading of overload signs (421, 432, 454, enhanced codes 4.3.2 and 4.7.x) and what follows from them: fewer
lanes, a pause for all, and after a while without trouble one lane more. A greylist's reply, which may look the same, is
about one message and slows nobody else down. Has no lock: the dispatcher's guards it.
"""

from __future__ import annotations

import re

from .errors import MailError, Outcome
from .receipt import Receipt, Reply
from .throttle import Throttle

#: After this many messages in a row without trouble, one more lane is tried, up to the number asked for.
REGROW_AFTER = 50

SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

# There is no code for it: postgrey says 450 4.2.0, others 451 4.7.1, and all of them say the word.
_GREYLISTED = re.compile(rb"gr[ae]y[- ]?list", re.IGNORECASE)


class Pace:
    """How many lanes may run, and when all of them pause.

    Args:
        workers: lanes at most.
        throttle: what to pause.

    Attributes:
        lane_limit: how many lanes may run now.
        pauses: how many pauses the server was given so far.
    """

    def __init__(self, workers: int, throttle: Throttle) -> None:
        self.lane_limit = workers
        self.pauses = 0
        self._workers = workers
        self._throttle = throttle
        self._pause = 0.0  # how long the server was last given to recover
        self._good_in_a_row = 0

    def learn(self, receipt: Receipt, lanes: int, pauses_seen: int) -> bool:
        """Draw the conclusions from one attempt.

        Args:
            lanes: how many are running.
            pauses_seen: `pauses` when the attempt began.
        Returns:
            Whether the server put the message off for its own sake, or that of its rules about when to come: the
            message did nothing wrong, and the next one would have fared the same.
        """
        if receipt.outcome is Outcome.SENT:  # whoever takes a message for everybody asks for nothing
            self._count_good()
            return False
        replies = _replies(receipt)
        greylisted = any(_GREYLISTED.search(r.raw) for r in replies)
        too_fast = not greylisted and any(_too_fast(r) for r in replies)
        too_many = any(_too_many(r) for r in replies)
        # What was under way when a pause began tells nothing new: the refusals of one burst count once. If each of
        # them doubled the pause, sixteen lanes would stand still for a minute because of a second's excess.
        if too_fast and pauses_seen == self.pauses:
            self.pauses += 1
            self._pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, 2 * self._pause))
            self._throttle.pause(self._pause)
            self.fewer(lanes)  # else each pause would end in as large a burst
        if too_many:
            self.fewer(lanes)
        self._good_in_a_row = 0
        return greylisted or too_fast or too_many

    def _count_good(self) -> None:
        self._pause = 0.0
        self._good_in_a_row += 1
        if self._good_in_a_row >= REGROW_AFTER and self.lane_limit < self._workers:
            self._good_in_a_row = 0
            self.lane_limit += 1

    def fewer(self, lanes: int) -> None:
        """One lane less than there are, and at least one."""
        self._good_in_a_row = 0
        self.lane_limit = max(1, min(lanes, self.lane_limit) - 1)


def has_enough(error: MailError) -> bool:
    """Whether a server that let nobody in said that it has enough to do for now: it is alive, and will have less."""
    return any(_too_fast(r) or _too_many(r) for r in _reply_of(error))


def _too_fast(reply: Reply) -> bool:
    return reply.code == 454 or (reply.enhanced or "").startswith("4.7.")


def _too_many(reply: Reply) -> bool:
    return reply.code in (421, 432) or reply.enhanced == "4.3.2"


def _replies(receipt: Receipt) -> list[Reply]:
    found = [r for r in (receipt.reply, *receipt.refused.values()) if r is not None]
    return found if receipt.error is None else [*found, *_reply_of(receipt.error)]


def _reply_of(error: MailError) -> list[Reply]:
    code = getattr(error, "smtp_code", None)
    return [] if code is None else [Reply(code, getattr(error, "smtp_error", b""))]
