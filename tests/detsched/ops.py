"""What a thread can announce, and which announcements commute.

This module owns the vocabulary of the scheduler: an `Op` is one visible operation that a thread is about to perform
on one `Shared` object, and `dependent` says whether the order of two operations can matter. Everything that the
reduced search leaves out, it leaves out because of this file, so the rules are few and default to the safe side: two
operations on the same object are dependent unless the pair is listed here with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# Locks. ACQUIRE waits until the lock is free; TRY and TIMED may be performed on a busy lock, and then fail.
ACQUIRE: Final = "acquire"
TRY: Final = "try"
TIMED: Final = "timed"
RELEASE: Final = "release"
LOCKED: Final = "locked"
# Threads. END is the last operation of a thread that somebody can join or ask about.
END: Final = "end"
JOIN: Final = "join"
TIMED_JOIN: Final = "timed-join"
ALIVE: Final = "alive"
# Queues. GET takes the head and waits for one.
PUT: Final = "put"
GET: Final = "get"
TIMED_GET: Final = "timed-get"
# Memory. A field that holds a mutable container is WRITTEN even when it is only read: see fields.py.
READ: Final = "read"
WRITE: Final = "write"
# Connections. READLINE takes exactly one line, RECV whatever is there, LOOK whatever is there without waiting.
CONNECT: Final = "connect"
SEND: Final = "send"
READLINE: Final = "readline"
RECV: Final = "recv"
LOOK: Final = "look"
SHUTDOWN: Final = "shutdown"
CLOSE: Final = "close"


class Shared:
    """Something that threads operate on: a lock, a field, a connection, a thread.

    Its identity decides dependence; `name` is for people; `time` is the virtual time of the last operation on it
    (see clock.py).
    """

    __slots__ = ("__weakref__", "name", "time")

    def __init__(self, name: str) -> None:
        self.name = name
        self.time = 0.0

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Op:
    """One announced operation, and after it was performed one event of the trace."""

    __slots__ = ("barrier", "cause", "deadline", "kind", "note", "obj", "ready", "tid", "timeout")

    def __init__(
        self,
        kind: str,
        obj: Shared,
        ready: Callable[[], object] | None = None,
        *,
        note: str = "",
        timeout: float | None = None,
    ) -> None:
        self.kind = kind
        self.obj = obj
        # May it be performed now? None means always. Asked again and again, by whichever thread holds the baton.
        self.ready = ready
        self.note = note
        # A bound on the wait in seconds; None waits for ever. See Scheduler for when a wait may time out.
        self.timeout = timeout
        self.deadline = 0.0
        self.tid = -1
        # Position in the trace of the event that brought what this one took (-1: none).
        self.cause = -1
        # Performed because nothing else could be: ordered after everything before it.
        self.barrier = False

    def __repr__(self) -> str:
        return f"T{self.tid} {self.kind} {self.obj.name}" + (f" {self.note}" if self.note else "")


# Pairs on one object whose order cannot be observed.
_COMMUTE: Final = frozenset(
    {
        (READ, READ),
        (LOCKED, LOCKED),
        (JOIN, JOIN),
        (ALIVE, ALIVE),
        # A join or a look at a thread changes nothing.
        *((a, b) for a in (JOIN, TIMED_JOIN, ALIVE) for b in (JOIN, TIMED_JOIN, ALIVE)),
        # Replies are a queue and READLINE takes one whole line from its head: while it is enabled, a SEND only
        # appends at the tail. (RECV takes all there is, so a SEND before it changes what it gets.)
        (SEND, READLINE),
        (READLINE, SEND),
        (PUT, GET),
        (GET, PUT),
    }
)

# Pairs on one object that no state allows at once, so that neither can be tried in the other's place.
_NEVER_TOGETHER: Final = frozenset(
    {
        (RELEASE, ACQUIRE),
        (ACQUIRE, RELEASE),
        (END, JOIN),
        (JOIN, END),
    }
)


def dependent(a: Op, b: Op) -> bool:
    """Can the order of these two operations of different threads matter?"""
    if a.barrier or b.barrier:
        return True
    return a.obj is b.obj and (a.kind, b.kind) not in _COMMUTE


def kinds_dependent(a: str, b: str) -> bool:
    """The same question for two operations known to be on one object."""
    return (a, b) not in _COMMUTE


def kinds_race(a: str, b: str) -> bool:
    """Of one object: dependent, and possible in either order from one and the same state."""
    return (a, b) not in _COMMUTE and (a, b) not in _NEVER_TOGETHER
