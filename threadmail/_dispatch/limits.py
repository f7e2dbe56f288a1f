"""What a server tells about how much it can take.

Owns the reading of overload signs (421, 432, 454, enhanced codes 4.3.2 and 4.7.x), and `ConcurrencyLimit`, what follows
from them: fewer workers, a pause for all, and after a while without trouble one worker more. A greylist's reply, which
may look the same, is about one message and slows nobody else down. Pure: the signs of a receipt are read before any
lock is taken, for that grows with its recipients; what is learnt of them is a few numbers.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import MailError
from ..receipt import Receipt, Reply

#: After this many messages in a row without trouble, one more worker is tried, up to the number asked for.
REGROW_AFTER = 50

SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

# There is no code for it: postgrey says 450 4.2.0, others 451 4.7.1, and all of them say the word.
_GREYLISTED = re.compile(rb"gr[ae]y[- ]?list", re.IGNORECASE)


class Signs(NamedTuple):
    """What a server said of itself while it refused a message.

    Attributes:
        greylisted: come again later: about this message alone.
        too_fast: too many messages.
        too_many: too many connections, or it is about to close.
    """

    greylisted: bool = False
    too_fast: bool = False
    too_many: bool = False

    @property
    def spares(self) -> bool:
        """Whether the message did nothing wrong: it was put off for the server's sake, or by its rules about when to
        come, and the next one would have fared the same."""
        return self.greylisted or self.too_fast or self.too_many


NO_SIGNS = Signs()


class ConcurrencyLimit:
    """How many workers may run, and for how long all of them pause.

    Args:
        workers: at most.

    Attributes:
        workers: how many may run now.
        pauses: how many pauses the server was given so far.
        stands_still: nothing was heard of those who are connected since one more was not let in.
        again_at: when one more is tried, should they stand still until then.
        not_let_in: what that one was told; None once they move.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pauses = 0
        self._at_most = workers
        self._pause = 0.0  # how long the server was last given to recover
        self._good_in_a_row = 0
        self.stands_still = False
        self.again_at = 0.0
        self.not_let_in: MailError | None = None
        self._still = 0.0  # how long was last waited for them to move

    def learn(self, signs: Signs, running: int, pauses_seen: int) -> float:
        """Draw the conclusions from an attempt that was not simply sent.

        Args:
            running: how many workers there are.
            pauses_seen: `pauses` when the attempt began.
        Returns:
            Seconds for which nobody is to begin a message; 0.0 if this is no reason to pause.
        """
        pause = self._still = 0.0
        self._moves()
        # What was under way when a pause began tells nothing new: the refusals of one burst count once. If each of
        # them doubled the pause, sixteen workers would stand still for a minute because of a second's excess.
        if signs.too_fast and not signs.greylisted and pauses_seen == self.pauses:
            self.pauses += 1
            pause = self._pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, 2 * self._pause))
            self.fewer(running)  # else each pause would end in as large a burst
        if signs.too_many:
            self.fewer(running)
        self._good_in_a_row = 0
        return pause

    def count_good(self, messages: int) -> None:
        """So many messages were taken for everybody, without trouble between them."""
        self._pause = self._still = 0.0
        self._moves()
        self._good_in_a_row += messages
        if self._good_in_a_row >= REGROW_AFTER and self.workers < self._at_most:
            self._good_in_a_row = 0
            self.workers += 1

    def _moves(self) -> None:
        self.stands_still, self.not_let_in = False, None

    def let_in_no_more(self, running: int, now: float, error: MailError) -> None:
        """A server that others are connected to did not let in one more."""
        self.fewer(running)
        self.not_let_in = error
        if not self.stands_still or now >= self.again_at:  # those that failed at one moment count once
            self.stands_still = True
            self._still = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, 2 * self._still))
            self.again_at = now + self._still

    def one_more(self) -> None:
        """Try it with one more, though nothing good was heard: those who are connected stand still."""
        self.workers = min(self._at_most, self.workers + 1)

    def fewer(self, running: int) -> None:
        """One worker less than there are, and at least one."""
        self._good_in_a_row = 0
        self.workers = max(1, min(running, self.workers) - 1)


def read_signs(receipt: Receipt) -> Signs:
    """What the server said of itself in the replies of an attempt. What a hook raised is none of them."""
    replies = [r for r in (receipt.reply, *receipt.refused.values()) if r is not None]
    error = receipt.error
    return _signs(replies if error is None or error._of_hook else [*replies, *_reply_of(error)])


def has_enough(error: MailError) -> bool:
    """Whether a server that let nobody in said that it has enough to do for now: it is alive, and will have less."""
    signs = _signs(_reply_of(error))
    return signs.too_fast or signs.too_many


def _signs(replies: list[Reply]) -> Signs:
    return Signs(
        greylisted=any(_GREYLISTED.search(r.raw) for r in replies),
        too_fast=any(r.code == 454 or (r.enhanced or "").startswith("4.7.") for r in replies),
        too_many=any(r.closes or r.code == 432 or r.enhanced == "4.3.2" for r in replies),
    )


def _reply_of(error: MailError) -> list[Reply]:
    code = getattr(error, "smtp_code", None)
    return [] if code is None else [Reply(code, getattr(error, "smtp_error", b""))]
