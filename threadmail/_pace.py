"""What a server tells about how much it can take.

Owns the reading of overload signs (421, 432, 454, enhanced codes 4.3.2 and 4.7.x) and what follows from them: fewer
lanes, a pause for all, and after a while without trouble one lane more. Has no lock: the dispatcher's guards it.
"""

from __future__ import annotations

from .errors import Outcome
from .receipt import Receipt, Reply
from .throttle import Throttle

#: After this many messages in a row without trouble, one more lane is tried, up to the number asked for.
REGROW_AFTER = 50

SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


class Pace:
    """How many lanes may run, and when all of them pause.

    Args:
        workers: lanes at most.
        throttle: what to pause.
    """

    def __init__(self, workers: int, throttle: Throttle) -> None:
        self.lane_limit = workers
        self._workers = workers
        self._throttle = throttle
        self._pause = 0.0  # how long the server was last given to recover
        self._good_in_a_row = 0

    def learn(self, receipt: Receipt, lanes: int) -> None:
        """Draw the conclusions from one attempt; `lanes` is how many are running."""
        replies = _replies(receipt)
        too_fast = any(r.code == 454 or (r.enhanced or "").startswith("4.7.") for r in replies)
        too_many = any(r.code in (421, 432) or r.enhanced == "4.3.2" for r in replies)
        if too_fast:
            self._pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, 2 * self._pause))
            self._throttle.pause(self._pause)
        if too_many:
            self.fewer(lanes)
        if too_fast or too_many or receipt.outcome is not Outcome.SENT:
            self._good_in_a_row = 0
            return
        self._pause = 0.0
        self._good_in_a_row += 1
        if self._good_in_a_row >= REGROW_AFTER and self.lane_limit < self._workers:
            self._good_in_a_row = 0
            self.lane_limit += 1

    def fewer(self, lanes: int) -> None:
        """One lane less than there are, and at least one."""
        self._good_in_a_row = 0
        self.lane_limit = max(1, min(lanes, self.lane_limit) - 1)


def _replies(receipt: Receipt) -> list[Reply]:
    replies = [r for r in (receipt.reply, *receipt.refused.values()) if r is not None]
    code = getattr(receipt.error, "smtp_code", None)
    if code is not None:
        replies.append(Reply(code, getattr(receipt.error, "smtp_error", b"")))
    return replies
