"""What a caller of a pool has, and what the use of it says.

Owns questions that are asked outside the pool's lock: what does the calling thread have already, so that nobody has to
wait for himself, and how long does it wait in line; was it the server that ended a dial; may a client be handed on.
Leaves to `_pool.keys` what follows from the answers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import ContextVar

from .._runtime.deadline import NEVER, Deadline
from .._runtime.guard import holding
from ..client import Client
from ..errors import CONNECTING, Aborted, Closed, MailError, Reentered, TimedOut
from .held import Held
from .keys import Keys

#: Seconds in the line of those who name no time-out. Nobody in front of them waits longer for a reply to a command, by
#: default; so who waits longer waits for a pool that is too small, or for a lease that somebody keeps.
LINE = 60.0

#: ... and of those who have a client of the pool already: others may wait for them, by a lock that the pool knows
#: nothing of, such as a log handler's. Then nothing moves until one of them gives up.
LINE_OF_HOLDERS = 2.0

#: A deadline that has passed.
AT_ONCE = Deadline(0.0)

#: What callers of this context have, and in which thread. Not by the thread alone: frameworks enter a lease
#: in one thread of theirs, in a context of its own, and leave it in another one; the first is free for other work.
_had_here: ContextVar[tuple[tuple[int, Held[Client]], ...]] = ContextVar("threadmail leases", default=())


def held(keys: Keys[Client]) -> tuple[Held[Client], ...]:
    """What the caller has of one pool."""
    here = _had_here.get()
    if not here:
        return ()
    me = threading.get_ident()
    return tuple(has for thread, has in here if thread == me and has.keys is keys and not has.over)


def have_here(has: Held[Client]) -> None:
    _had_here.set((*_not_over(), (threading.get_ident(), has)))


def no_longer_here(has: Held[Client]) -> None:
    has.over = True
    _had_here.set(tuple(_not_over()))


def _not_over() -> list[tuple[int, Held[Client]]]:
    """What was noted in this context, but for what has ended since, here or in the context of another thread."""
    return [each for each in _had_here.get() if not each[1].over]


def in_line(end: Deadline, holds: Sequence[Held[Client]]) -> Deadline:
    """When the wait for what others have is over, for a caller who has this much already."""
    if end is not NEVER:
        return end
    return Deadline.after(LINE_OF_HOLDERS if holds else LINE)


def is_refusal(error: MailError) -> bool:
    """Whether the server, or the way to it, let no session be opened."""
    return error.phase in CONNECTING and not error.deadline_passed and not isinstance(error, (Aborted, Reentered))


def is_good(client: Client, end: Deadline) -> bool:
    """Whether a kept client can be used; not by whom another thread holds, or is in the middle of a call on, still.

    Raises:
        TimedOut: the caller's deadline has passed, which says nothing about the client: it is as good as it was.
    """
    try:
        with holding(client.sync_root, AT_ONCE):
            return client._still_good(end)
    except TimedOut as error:
        if error.deadline_passed and end.passed:
            raise
        return False
    except (Closed, Reentered):
        return False  # whoever had it before has closed it, or is the caller himself
