"""Who gets which client of a pool, decided.

Owns the keys: the line of those who wait, the clients that are idle, leased or on their way out, and what the server's
answers mean for who may dial. Guarantees: never more than `max_size` clients, those included that are being dialled or
closed; whoever has waited longest is served first; a client granted to somebody who gave up meanwhile goes to the next
one, whatever ended the wait; as long as the line can move it does, and who closes it in a ring is told at once. Has no
lock, no thread and no I/O: the pool calls it under its one lock, and time is an argument. What is said on a connection,
and who waits how, are the business of others.

An exception from outside (Ctrl-C, a time limit of a job queue) comes up where something is called, entered or repeated,
not between two plain statements, and memory can fail where something grows. So what belongs together, such as being
taken from here and being noted there, calls nothing and grows first; and every operation may be repeated, which does
what was left undone.

    waiting -> leased    `serve`: a client that is idle, or (`dialling`) a new one, in the order of asking
    leased  -> idle      `give_back`, when it is fit for the next one
    leased  -> ending    `give_back`, `refused`, `stand_aside`; idle -> ending by `close` and `claim_due`
    ending  -> gone      `gone`, once the connection is closed: until then it takes its place

A leased client whose connection was lost makes another one by itself, in the middle of a call. That is a dial like any
other: it asks here (`redial`) and tells what came of it (`redialled`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from copy import copy
from math import inf
from typing import Generic

from .._connection.breaker import CircuitBreaker, Dial
from .._runtime.life import Life
from ..errors import Aborted, Closed, ConnectFailed, MailError, Reentered, ReplyError
from .held import Answer, C, Closer, Farewell, Held, Lease
from .room import Room

#: Seconds after an answer in which a server that says "not now" is full and not dead: it may still count a connection
#: that we ended. Those who ask meanwhile wait in line, and are not told of a refusal that a moment undoes.
RECENTLY = 10.0


class Keys(Generic[C]):
    """See the module.

    Args:
        max_size: clients at most.
        breaker: who may dial a server that may be dead.
        room: ... and one that serves others.
        new: makes a client, not connected yet.
        life: CLOSED in the child of a process that had closed it.
    """

    def __init__(
        self, max_size: int, breaker: CircuitBreaker, room: Room, new: Callable[[], C], life: Life = Life.OPEN
    ) -> None:
        self.max_size = max_size
        self.breaker = breaker
        self.room = room
        self._new = new
        self.life = life
        self.waiting: OrderedDict[Lease[C], None] = OrderedDict()
        self.leased: dict[Lease[C], None] = {}
        self.dialling: dict[Lease[C], None] = {}  # those that the breaker let dial, and that owe it an answer
        # Who is idle, and since when. The one used last is at the end and goes first, so the others grow old and go.
        self.idle: list[tuple[C, float]] = []
        self.ending: dict[C, Farewell[C] | None] = {}  # and who is about it
        self.closers: dict[Closer[C], None] = {}
        # Of clients that were connected: those that have no connection, and whether they tried for one in vain; and
        # those that the breaker let dial, and that owe it an answer.
        self.down: dict[C, bool] = {}
        self.redialling: dict[C, None] = {}
        self.answered_at = -inf  # when a lease came back on which the server had answered

    def clients(self) -> list[C]:
        """All there are."""
        # Over copies: a finaliser that ends a lease comes up where a loop turns.
        leased = [lease.client for lease in list(self.leased) if lease.client is not None]
        return [*leased, *(client for client, _ in list(self.idle)), *list(self.ending)]

    # ------------------------------------------------------------ asking

    def answer(self, lease: Lease[C], now: float) -> Answer[C]:
        """What whoever asked, or woke, is told; who is new gets in line.

        Raises:
            Closed: there are no more leases.
            MailError: the server was found dead moments ago: what the last dial met, as a copy of the same class.
            Reentered: every client is leased by a caller who waits for another one, this one included.
        """
        if lease not in self.waiting and lease not in self.leased:
            self.waiting[lease] = None
        self.serve(now)
        client = lease.client
        if client is not None:
            lease.taken = True
            return Answer(client, lease in self.dialling)
        if self.life is not Life.OPEN:
            raise Closed("this pool is closed: make a new one")
        self._fail_fast(now)
        if lease.holds and self._is_stuck(now):
            raise Reentered(
                "every client of this pool is leased by a thread that waits for another one, as this does: send with "
                "the client you leased, or raise max_size"
            )
        lease.until = self._next_dial(lease, now) if self._first() is lease else inf
        in_the_way = tuple(self.ending) if self._taken() >= self.max_size else ()
        return Answer(None, False, lease.until, in_the_way, self.has_to_end, len(self.leased))

    def _first(self) -> Lease[C] | None:
        return next(iter(self.waiting), None)

    def _taken(self) -> int:
        return len(self.leased) + len(self.idle) + len(self.ending)

    def _is_dead(self, now: float) -> bool:
        """Whether the server was found dead moments ago, and there is nobody to wait for."""
        return self.breaker.error is not None and self.breaker.pause(now) is not None and not self._taken()

    def _fail_fast(self, now: float) -> None:
        if self._is_dead(now) and self.breaker.error is not None:
            raise _tried(self.breaker.error, self.breaker.opens_at - now) from None

    def _is_stuck(self, now: float) -> bool:
        """Whether nobody who waits can be served: each client that can be had is with one of them."""
        if self.idle or not self._taken() or self._can_come_free(self._held_up(self.waiting)):
            return False
        # Nor does a place help where the dial that all wait for is that of a caller who waits here, in the midst of it.
        return self._taken() >= self.max_size or now < self.room.opens_at or self.breaker.probing

    @staticmethod
    def _held_up(waiting: Iterable[Lease[C] | Closer[C]]) -> set[Held[C] | None]:
        """What those have who wait."""
        return {held for each in waiting for held in each.holds}

    def _can_come_free(self, held_up: set[Held[C] | None]) -> bool:
        return not (held_up.issuperset(self.leased) and held_up.issuperset(self.ending.values()))

    def _others(self, lease: Lease[C]) -> bool:
        """Whether there is any other client, connected or to be connected."""
        if self.idle or not self.down:
            return bool(self.idle) or len(self.leased) > (lease in self.leased)
        return any(other is not lease and other.client not in self.down for other in list(self.leased))

    def serves(self, but: C, now: float) -> bool:
        """Whether any client but one is connected."""
        return bool(self.idle) or any(
            lease.client is not but and lease not in self.dialling and lease.client not in self.down
            for lease in list(self.leased)
        )

    @property
    def has_to_end(self) -> bool:
        """Whether there is one to be ended that nobody is about."""
        return bool(self.ending) and None in self.ending.values()

    # ------------------------------------------------------------ handing out

    def serve(self, now: float) -> None:
        """Hand out what there is, in the order of asking. Whatever changed, it is called afterwards."""
        while self.waiting and self.life is Life.OPEN:
            lease = next(iter(self.waiting))
            kept = bool(self.idle) and not (lease.met_stale and self._may_dial(lease, now))
            if not kept and not self._may_dial(lease, now):
                break
            client = self.idle[-1][0] if kept else self._new()
            if not kept and lease not in self.dialling:
                self.dialling[lease] = None  # noted first: an answer owed by nobody would bar all others for ever
                if self.breaker.ask(now) is Dial.WAIT:
                    del self.dialling[lease]
                    break
            lease.woken.set()  # first: one that wakes too early looks for itself, one not woken sleeps for ever
            self.leased[lease] = None
            lease.client = client
            if kept:
                del self.idle[-1]
            del self.waiting[lease]
        first = self._first()
        if first is None:
            return
        if self.life is not Life.OPEN or self._is_dead(now):
            first.woken.set()  # there is nothing to wait for; when it has been told, the next one is the first
        elif (due := self._next_dial(first, now)) < first.until:
            first.until = due
            first.woken.set()  # the head of the line watches the pause, for all behind it

    def _may_dial(self, lease: Lease[C], now: float) -> bool:
        return self._next_dial(lease, now) <= now

    def _next_dial(self, lease: Lease[C], now: float) -> float:
        """When this lease may be granted a new client, if nothing changes."""
        if self._taken() >= self.max_size:
            return inf
        if lease in self.dialling:
            return now  # it was allowed before, and interrupted
        return max(self._breaker_opens(now), self._room_opens(self._others(lease), now))

    def _breaker_opens(self, now: float) -> float:
        if self.breaker.is_closed:
            return now
        return inf if self.breaker.probing else self.breaker.opens_at

    def _room_opens(self, others: bool, now: float) -> float:
        """A full server is asked again after a pause. When nobody is left, the first caller asks at once; but once."""
        return max(now, self.room.opens_at) if others or self.room.refusals > 1 else now

    # ------------------------------------------------------------ what came of it

    def connected(self, lease: Lease[C], now: float) -> None:
        """The new client of the lease is connected."""
        if lease in self.dialling:
            self.breaker.connected()
            del self.dialling[lease]
            self.room.found()
        self.serve(now)

    def refused(self, lease: Lease[C], error: MailError, now: float) -> bool:
        """The new client of the lease was not let in. Returns whether the caller is in line again, at the head.

        Args:
            error: why; kept, so a copy that nothing hangs on.
        """
        spoke, others = self._spoke(error, now), self._others(lease)
        full = error.transient and (others or spoke)
        if lease in self.dialling:
            self._tell(error, full, now)
            del self.dialling[lease]
            if full:
                self.room.refused(error, now, alone=not others)
        # But who has all the others himself waits for nobody.
        waits = full and self.life is Life.OPEN and (spoke or self._is_worth_waiting(lease))
        self._take_away(lease, waits)
        self._changed(now)
        return waits

    def _spoke(self, error: MailError, now: float) -> bool:
        """Whether the server took mail a moment ago and says "not now": it is not dead but full."""
        return isinstance(error, ReplyError) and now - self.answered_at < RECENTLY

    def _tell(self, error: MailError, full: bool, now: float) -> None:
        if full:
            self.breaker.gave_up()
        else:
            self.breaker.failed(error, now)

    def _is_worth_waiting(self, lease: Lease[C]) -> bool:
        return bool(self.idle) or self._can_come_free(self._held_up([*self.waiting, lease]) | {lease})

    def stand_aside(self, lease: Lease[C], now: float) -> None:
        """The kept client of the lease is none any more: its caller is in line again, at the head."""
        lease.met_stale = True
        self._take_away(lease, True)
        self._changed(now)

    def _take_away(self, lease: Lease[C], waits: bool) -> None:
        """The client of the lease is to be ended."""
        client = lease.client
        if lease not in self.leased or client is None:
            return
        if waits:
            self.waiting[lease] = None
            self.waiting.move_to_end(lease, last=False)
        self.ending[client] = None
        lease.client = None
        lease.taken = False
        lease.until = inf
        del self.leased[lease]

    def give_back(self, lease: Lease[C], now: float) -> None:
        """The end of a lease, however far it had come."""
        if lease in self.waiting:
            del self.waiting[lease]
        client = lease.client
        if client is not None and lease in self.leased:
            self._owes_nothing(client)
        # Granted to one that gave up before it knew: as good as it was, for the next one.
        keep = lease.fit if lease.taken else True
        if lease in self.dialling:
            keep = False
            self.breaker.gave_up()
            del self.dialling[lease]
        elif lease.answered:
            self.breaker.answered()
            self.answered_at = now
        elif lease.failure is not None and lease in self.leased:
            self.breaker.lost(lease.failure, now)
        if client is not None and lease in self.leased:
            if keep:
                entry = (client, now)
                self.idle += [entry]
            else:
                self.ending[client] = None
            del self.leased[lease]
        self._changed(now)

    def gone(self, client: C, now: float) -> None:
        """The connection of a client that was to be ended is closed: there is room for another one."""
        self._owes_nothing(client)
        if client in self.ending:
            del self.ending[client]
        self._changed(now)

    def _changed(self, now: float) -> None:
        """What follows from a client's having gone or come back."""
        if self.life is not Life.OPEN:
            self._end_idle()
            if not self._taken():
                self.life = Life.CLOSED
        self.serve(now)
        for closer in list(self.closers):
            closer.woken.set()

    # ------------------------------------------------------------ dials inside a lease

    def redial(self, client: C, answers: int, now: float) -> None:
        """A client that was connected has no connection any more: it may dial, and owes an answer, or is told why not.

        Nobody waits here: the caller is in the middle of a call. To replace one connection is not to ask a full server
        for one more; to try again, after it let none in, is.

        Args:
            answers: how often the server answered a MAIL on the client so far; that says nothing of it any more.
        Raises:
            MailError: what the last dial met, as a copy of the same class.
        """
        if client in self.redialling:
            return  # it was allowed before, and interrupted
        for lease in list(self.leased):
            if lease.client is client:
                lease.answers = answers
                if client not in self.down:
                    self.down[client] = False
        due = self._breaker_opens(now)
        if self.down.get(client):
            due = max(due, self._room_opens(self.serves(client, now), now))
        if due <= now:
            self.redialling[client] = None  # noted first, as in `serve`
            if self.breaker.ask(now) is Dial.NOW:
                return
            del self.redialling[client]
        raise _tried(self.breaker.error or self.room.error, due - now)

    def taken_back(self, error: MailError, now: float) -> None:
        """The server took a session back before it answered a MAIL, and its lease goes on."""
        self.breaker.lost(error, now)

    def redialled(self, client: C, error: MailError | None, now: float) -> None:
        """What came of a dial that `redial` allowed; nothing, if that has been told.

        Args:
            error: None: it is connected. An `Aborted`, and one whose deadline has passed, say nothing of the server.
        """
        if client not in self.redialling:
            return
        if error is None:
            self.breaker.connected()
            if self.down.get(client):
                self.room.found()
            if client in self.down:
                del self.down[client]
            del self.redialling[client]
        else:
            others = self.serves(client, now)
            silent = error.deadline_passed or isinstance(error, Aborted)
            full = error.transient and (others or self._spoke(error, now))
            self._tell(error, full or silent, now)
            if client in self.down:
                self.down[client] = True
            del self.redialling[client]
            if full and not silent:
                self.room.refused(error, now, alone=not others)
        self.serve(now)

    def _owes_nothing(self, client: C) -> None:
        """Nobody uses the client any more. What it was allowed, and was interrupted in, is for others."""
        if client in self.down:
            del self.down[client]
        if client in self.redialling:
            self.breaker.gave_up()
            del self.redialling[client]

    # ------------------------------------------------------------ ending clients

    def claim(self, farewell: Farewell[C], now: float) -> None:
        """Give one that is to be ended, and that nobody is about yet, to the calling thread, if there is any.

        Not if that has gone on already, and the step was left for the end of another one.
        """
        if farewell.over:
            return
        for client, claimed in list(self.ending.items()):
            if claimed is None:
                self.ending[client] = farewell
                farewell.client = client
                return

    def claim_due(self, farewell: Farewell[C], before: float, now: float) -> bool:
        """Give one that has been idle since `before` or longer, out of everybody's reach, to the calling thread.

        One at a time, so that the others can be leased while it says goodbye. Returns whether there was one.
        """
        if farewell.over or not self.idle or self.idle[0][1] > before:
            return False
        client = self.idle[0][0]
        self.ending[client] = farewell
        farewell.client = client
        del self.idle[0]
        return True

    def wake_first(self, now: float) -> None:
        """Something was left for whoever comes: let the head of the line look."""
        if (first := self._first()) is not None:
            first.woken.set()

    # ------------------------------------------------------------ ending all

    def close(self, closer: Closer[C], now: float) -> int:
        """Refuse new leases, tell those who wait, and take what is idle away. Returns how many are to be ended."""
        self.closers[closer] = None
        if self.life is Life.OPEN:
            self.life = Life.CLOSING
        self._changed(now)
        return len(self.ending)

    def _end_idle(self) -> None:
        while self.idle:
            self.ending[self.idle[-1][0]] = None
            del self.idle[-1]

    def awaited(self, closer: Closer[C], now: float) -> bool:
        """Whether there is anything left for which this thread, which closes the pool, has to wait.

        What it, or another one that closes, has itself ends with the block that has it.
        """
        return self._can_come_free(self._held_up(self.closers))

    def to_drop(self, closer: Closer[C], now: float) -> list[C]:
        """Whom this thread has waited for long enough."""
        held_up = self._held_up(self.closers)
        leased = [lease.client for lease in list(self.leased) if lease not in held_up and lease.client is not None]
        return [*leased, *(client for client, farewell in list(self.ending.items()) if farewell not in held_up)]

    def leave(self, closer: Closer[C], now: float) -> None:
        """It waits no longer."""
        if closer in self.closers:
            del self.closers[closer]


def _tried(cause: MailError | None, pause: float) -> MailError:
    """What whoever may not dial now is told. Of the same class as the cause: its `except` clause is the caller's.

    Args:
        pause: seconds until the next try; infinite: somebody is about it.
    """
    if cause is None:
        return ConnectFailed("another thread is dialling the server, which nobody has reached yet")
    again = copy(cause)
    when = "another thread tries again just now" if pause == inf else f"next try in {max(0.0, pause):.1f} s"
    again.message = f"{cause} (tried moments ago; {when})"
    return again
