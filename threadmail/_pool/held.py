"""What the callers of a pool have, and are told.

Owns the notes of one lease, one farewell and one closing, the answer to whoever asks for a client, and the numbers of a
pool. Has no lock: who writes what, each of them says. Leaves to `_pool.keys` who gets what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..errors import MailError

if TYPE_CHECKING:
    from .keys import Keys

C = TypeVar("C")


class Wakes(Protocol):
    """How somebody who waits is woken. Too often does no harm: he looks for himself. Nobody waits here."""

    def set(self) -> None: ...
    def wait(self, seconds: float | None) -> None: ...


class Held(Generic[C]):
    """What a caller has, and what nobody else can have meanwhile.

    Args:
        keys: of which pool.

    Attributes:
        client: which client; None as long as there is none.
        over: the caller is done with it.
    """

    __slots__ = ("client", "keys", "over")

    def __init__(self, keys: Keys[C]) -> None:
        self.keys = keys
        self.client: C | None = None
        self.over = False


class Lease(Held[C]):
    """One caller's use of a client, from the asking to the end.

    Its client is written under the lock, by whoever grants it.

    Args:
        keys: of which pool.
        woken: how the caller is woken.
        holds: what the same caller has already: while this one waits, nothing of it comes back.

    Attributes:
        taken: the caller has been told so.
        answers: how often the server had answered a MAIL on the client before.
        fit: the caller's word, at the end, that the client may be handed on.
        answered: ... and that the server answered a MAIL on it.
        failure: ... or took a session back before it did.
        met_stale: its last client was none any more, so it rather dials than tries the next one that is kept.
        until: when the caller wakes without being woken.
    """

    __slots__ = ("answered", "answers", "failure", "fit", "holds", "met_stale", "taken", "until", "woken")

    def __init__(self, keys: Keys[C], woken: Wakes, holds: Sequence[Held[C]] = ()) -> None:
        super().__init__(keys)
        self.woken = woken
        self.holds = holds
        self.taken = self.fit = self.answered = self.met_stale = False
        self.answers = 0
        self.failure: MailError | None = None
        self.until = inf


class Farewell(Held[C]):
    """One thread's claim on a client that is to be ended.

    Attributes:
        lingers: somebody else held it, and it is to be closed later.
        counted: noted among those that are gone, or that linger.
    """

    __slots__ = ("counted", "lingers")

    def __init__(self, keys: Keys[C]) -> None:
        super().__init__(keys)
        self.lingers = self.counted = False


class Closer(Generic[C]):
    """A thread that waits until all is closed but what it has itself."""

    __slots__ = ("holds", "woken")

    def __init__(self, woken: Wakes, holds: Sequence[Held[C]] = ()) -> None:
        self.woken = woken
        self.holds = holds


@dataclass(slots=True)
class Answer(Generic[C]):
    """What a caller is told: here is your client, or wait.

    Attributes:
        client: None: wait, until woken or until `until`.
        dials: the client is a new one, for the caller to connect, and to report.
        in_the_way: clients that only say goodbye still, in a place that the caller needs.
        to_end: there are clients that nobody has begun to end.
        leased: how many are in use.
    """

    client: C | None = None
    dials: bool = False
    until: float = inf
    in_the_way: tuple[C, ...] = ()
    to_end: bool = False
    leased: int = 0


@dataclass(frozen=True)
class PoolStats:
    """What a pool is doing, and has done.

    Attributes:
        waiting: threads that wait for a lease.
        leased: clients in use, those being dialled or closed included.
        idle: connected clients that nobody uses.
        opened: connections made.
        closed: connections ended, by reason (see `ClientStats`).
    """

    waiting: int = 0
    leased: int = 0
    idle: int = 0
    opened: int = 0
    closed: Mapping[str, int] = field(default_factory=dict)
