"""A bounded pool of clients.

Owns the keys: who may use which client, and how many there are. Guarantees: never more than `max_size` connections,
those being dialled included; waiters are served in the order they came, and a client that comes free for one that gave
up goes to the next; all network I/O happens outside the lock; a server that does not answer is dialled by one thread at
a time, with growing pauses, whatever the number of threads. Leaves the dialogue to `Client`, retries to
`ThreadedSender`.
"""

from __future__ import annotations

import enum
import random
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from ._deadline import Deadline, now
from ._guard import BornAnew
from ._idle import IdleWatch
from ._threads import join_thread
from .client import Client, Message
from .config import ServerConfig
from .envelope import Envelope
from .errors import CONNECTING, Closed, ConnectFailed, MailError, TimedOut
from .receipt import Receipt
from .retry import Dial, DialGate, RetryPolicy


class _Life(enum.Enum):
    OPEN = "open"
    CLOSED = "closed"


class _Waiter:
    """A thread that waits for a client, or for the permission to dial a new one."""

    __slots__ = ("granted", "woken")

    def __init__(self, lock: threading.Lock) -> None:
        self.woken = threading.Condition(lock)  # on the pool's own lock: one lock, one wake-up for each waiter
        self.granted: Client | None = None


@dataclass(frozen=True)
class PoolStats:
    """What a pool is doing, and has done.

    Attributes:
        waiting: threads that wait for a lease.
        leased: clients in use, those being dialled included.
        idle: connected clients that nobody uses.
        opened: connections made.
        closed: connections ended, by reason (see `ClientStats`).
    """

    waiting: int = 0
    leased: int = 0
    idle: int = 0
    opened: int = 0
    closed: Mapping[str, int] = field(default_factory=dict)


class ClientPool(BornAnew):
    """A bounded pool of clients of one server.

    Nothing happens before the first lease. Use it as a context manager, or call `close()`.

    Args:
        server: a `ServerConfig` or a URL for one.
        max_size: connections at most. Servers allow few: Exchange Online three for a mailbox.
        rng: chance, for jitter.
    Raises:
        InvalidConfig: the URL is wrong.
    """

    def __init__(self, server: str | ServerConfig, *, max_size: int = 4, rng: random.Random | None = None) -> None:
        self.config = ServerConfig.of(server)
        if max_size < 1:
            raise ValueError(f"max_size must be at least 1, not {max_size}")
        self.max_size = max_size
        self._rng = rng or random.Random()
        self._life = _Life.OPEN  # a closed pool is closed in a forked child as well
        self._reset()
        super().__init__()

    def _inherited(self) -> list[Client]:
        return [*self._leased, *(client for client, _ in self._idle)]

    def _reset(self) -> None:
        # Also in a forked child, which begins anew.
        # Guards everything below: who waits, who has what, how many there are. Never held over network I/O.
        self._lock = threading.Lock()
        self._all_back = threading.Condition(self._lock)
        self._waiters: deque[_Waiter] = deque()
        # Who is idle, and since when. The one used last is at the end and goes first, so the others grow old and go.
        self._idle: list[tuple[Client, float]] = []
        self._leased: dict[Client, _Waiter | None] = {}  # to whom; None: the pool itself is about to close it
        self._dialling: dict[Client, None] = {}  # those of the leased that the gate let dial, and that owe it an answer
        self._gate = DialGate(RetryPolicy(), self._rng)
        self._opened = 0
        self._closed: Counter[str] = Counter()
        self._watch = IdleWatch(self) if self.config.idle_timeout is not None else None

    # ------------------------------------------------------------ leasing

    @contextmanager
    def lease(self, *, timeout: float | Deadline | None = None) -> Iterator[Client]:
        """The exclusive use of a connected client, for the length of a `with` block.

        Args:
            timeout: seconds to wait for one, dialling included.
        Raises:
            TimedOut: there was none in time.
            ConnectFailed, LoginRefused, ...: the server could not be reached, just now or moments ago.
            Closed: the pool is closed.
        """
        self._check_process()
        waiter = _Waiter(self._lock)
        try:
            yield self._acquire(waiter, Deadline.after(timeout))
        finally:
            try:
                self._give_back(waiter)
            except BaseException:
                self._give_back(waiter)  # an exception from outside came in between: what it left undone is done now
                raise

    def send(self, message: Message, *, deadline: float | Deadline | None = None) -> Receipt:
        """Send one message on a client of the pool; as `Client.send`.

        Args:
            deadline: seconds that all of it may take, waiting for a client included.
        """
        envelope = Envelope.of(message)
        end = Deadline.after(deadline)
        try:
            with self.lease(timeout=end) as client:
                return client.transmit(envelope, deadline=end)
        except MailError as error:
            if error.receipt is None:
                Receipt.not_sent(envelope, error)
            raise

    def _acquire(self, waiter: _Waiter, end: Deadline) -> Client:
        while True:
            with self._lock:
                self._waiters.append(waiter)
                client = self._wait(waiter, end)
            try:
                client.connect(deadline=end)
            except BaseException as exc:
                others = self._discard(client, exc, answered=not end.passed)
                waiter.granted = None
                # A server that has enough connections already is not dead: wait for one of those.
                if others and isinstance(exc, MailError) and exc.transient and not end.passed:
                    continue
                raise
            with self._lock:
                if client in self._dialling:
                    del self._dialling[client]
                    self._gate.succeeded()
                    self._serve()
                if self._watch is not None and self._life is _Life.OPEN:
                    self._watch.start()
            return client

    def _wait(self, waiter: _Waiter, end: Deadline) -> Client:
        """The client that the waiter is granted, sooner or later. Under the lock."""
        self._serve()
        while waiter.granted is None:
            self._require_open()
            self._fail_fast()
            if end.passed:
                raise TimedOut(f"no client of the pool came free in time ({len(self._leased)} are in use)")
            waiter.woken.wait(end.within(self._gate.pause(now())).remaining())
            self._serve()  # the pause of the gate may be over
        return waiter.granted

    def _require_open(self) -> None:
        if self._life is not _Life.OPEN:
            raise Closed("this pool is closed")

    def _fail_fast(self) -> None:
        """Raise what the last dial met, if the server was found dead moments ago and no client is left to wait for."""
        cause, pause = self._gate.error, self._gate.pause(now())
        if cause is not None and pause is not None and not self._leased:
            raise ConnectFailed(
                f"{cause} (tried moments ago; next try in {pause:.1f} s)", phase=cause.phase, transient=cause.transient
            ) from None

    # An exception from outside (Ctrl-C, a time limit of a job queue) comes up when something is called, not between two
    # plain statements. So what belongs together, such as being taken from here and being noted there, calls nothing.

    def _serve(self) -> None:
        """Hand out what there is, in the order of asking. Called under the lock whenever something changed."""
        while self._waiters and self._life is _Life.OPEN:
            waiter = self._waiters[0]
            new = None if self._idle else self._new_client()
            if not self._idle and new is None:
                break
            waiter.woken.notify()  # first: one that wakes too early looks for itself, one not woken sleeps for ever
            if new is not None:
                client = new
                self._dialling[client] = None
            else:
                client = self._idle[-1][0]
                del self._idle[-1]
            self._leased[client] = waiter
            waiter.granted = client
            del self._waiters[0]

    def _new_client(self) -> Client | None:
        """A client to dial with, if there is room for one more and the gate lets it."""
        if len(self._leased) >= self.max_size:
            return None
        client = Client(self.config, rng=self._rng, watch_idle=False)
        return client if self._gate.ask(now()) is Dial.NOW else None

    # ------------------------------------------------------------ giving back

    def _give_back(self, waiter: _Waiter) -> None:
        """End a lease, however far it had come. May be called twice."""
        self._check_process()  # forked inside the lease: what came of it here is closed, the pool begins anew
        client = waiter.granted
        healthy = client is not None and client.is_connected
        with self._lock:
            if client is None and waiter in self._waiters:
                self._waiters.remove(waiter)
            if not self._dialling:
                self._gate.gave_up()  # nobody owes it an answer
            mine = client is not None and self._leased.get(client) is waiter
            if client is not None and mine and healthy and client not in self._dialling and self._life is _Life.OPEN:
                self._take_back(client)
                return
            self._serve()
            if client is None or not (mine or self._is_stray(client)):
                return
        self._discard(client, None)

    def _is_stray(self, client: Client) -> bool:
        """Whether the pool knows nothing of it: leased before a fork, or forgotten before it was closed."""
        return client not in self._leased and all(client is not idle for idle, _ in self._idle)

    def _take_back(self, client: Client) -> None:
        """Keep it for the next one. Under the lock, in an open pool, so that nobody waits for all to be back."""
        entry = (client, now())
        self._idle += [entry]
        del self._leased[client]
        self._serve()

    def _discard(self, client: Client, cause: BaseException | None, *, answered: bool = True) -> bool:
        """End a client that is of no more use. Returns whether any other is leased or idle.

        Args:
            cause: why it could not connect; None if it could.
            answered: whether `cause` says something about the server, not just about the caller's patience.
        """
        client.close()  # outside the lock; the place is taken until the connection is gone
        stats = client.stats()
        with self._lock:
            if client in self._leased:
                self._opened += stats.opened
                self._closed.update(stats.closed)
            if isinstance(cause, MailError) and answered and cause.phase in CONNECTING:
                self._dialling.pop(client, None)
                self._gate.failed(cause, now())
            self._forget(client)
            return bool(self._leased or self._idle)

    def _forget(self, client: Client) -> None:
        """Make room for another client. Under the lock."""
        self._leased.pop(client, None)
        if client in self._dialling:
            del self._dialling[client]
            self._gate.gave_up()
        self._serve()
        if not self._leased:
            for waiter in self._waiters:  # nobody is left who could wake them: they fail, or one of them probes
                waiter.woken.notify()
        self._all_back.notify_all()

    def close_idle(self) -> float | None:
        """Close clients idle for `idle_timeout`. For the idle watch.

        Returns:
            Seconds until it is worth looking again, or None: there are no clients.
        """
        limit = self.config.idle_timeout
        assert limit is not None
        with self._lock:
            before = now() - limit
            due = [client for client, since in self._idle if since <= before]
            self._idle = [(client, since) for client, since in self._idle if since > before]
            self._leased.update(dict.fromkeys(due))  # out of everybody's reach; each counts until it is closed
        for client in due:
            client.close_idle()
            self._discard(client, None)
        with self._lock:
            if self._idle:
                return max(0.0, self._idle[0][1] + limit - now())
            if self._leased:
                return limit
            if self._watch is not None:
                self._watch.ended()
            return None

    # ------------------------------------------------------------ ending

    def close(self, *, timeout: float | None = 30.0) -> None:
        """Refuse new leases, wake those who wait, say goodbye on idle connections, let leases end. May be called twice.

        Args:
            timeout: seconds to let leased clients finish before their connections are dropped under them.
        """
        self._check_process()
        end = Deadline.after(timeout)
        with self._lock:
            self._life = _Life.CLOSED
            for waiter in self._waiters:
                waiter.woken.notify()
            idle = [client for client, _ in self._idle]
            self._idle.clear()
            self._leased.update(dict.fromkeys(idle))
            watcher = self._watch.stop() if self._watch is not None else None
        for client in idle:
            self._discard(client, None)
        for client in self._still_leased(end):
            client.abort()
        self._still_leased(Deadline.after(1.0))  # those come back at once, unless their users do something else
        join_thread(watcher, 5.0)

    def _still_leased(self, end: Deadline) -> list[Client]:
        with self._lock:
            while self._leased and not end.passed:
                self._all_back.wait(end.remaining())
            return list(self._leased)

    def __enter__(self) -> ClientPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> PoolStats:
        """What the pool is doing now, and has done so far."""
        self._check_process()
        with self._lock:
            clients = [*self._leased, *(client for client, _ in self._idle)]
            numbers = len(self._waiters), len(self._leased), len(self._idle), self._opened, Counter(self._closed)
        waiting, leased, idle, opened, closed = numbers
        for client in clients:  # outside the lock: a client's numbers are behind its own
            stats = client.stats()
            opened += stats.opened
            closed.update(stats.closed)
        return PoolStats(waiting, leased, idle, opened, dict(closed))

    def __repr__(self) -> str:
        return f"<ClientPool of {self.config.url}, at most {self.max_size}>"

    def __reduce__(self) -> str:
        raise TypeError(
            "a ClientPool holds live connections and cannot be pickled: send its config, and make one there"
        )
