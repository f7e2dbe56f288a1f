"""A bounded pool of clients.

Owns the shell around `_pool.keys.Keys`, which decides who gets which client: its one lock, the waits, and what is done
with a client that was granted or taken away. Guarantees: never more than `max_size` connections, those being dialled or
closed included; waiters are served in the order they came; no client is ever lost, however a wait or a lease ends; all
network I/O happens outside the lock; a server that does not answer is dialled by one thread at a time, with growing
pauses, whatever the number of threads. Leaves the dialogue to `Client`, retries to `ThreadedSender`.

A signal handler, or the garbage collector that ends a lease left in an abandoned generator, may come in the middle of a
step of the pool, in the very thread that takes it (`_runtime.steps`). There `stats()`, `close()` and the end of a lease
work as anywhere else, and hang nobody; a new lease, or connection, is refused (`Reentered`), there and only there.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias, TypeVar

from ._connection.breaker import CircuitBreaker
from ._connection.chance import chance
from ._connection.idle import IdleWatch
from ._pool.held import Answer, Closer, Farewell, Lease, PoolStats
from ._pool.keys import Keys
from ._pool.leases import AT_ONCE, have_here, held, in_line, is_good, is_refusal, no_longer_here
from ._pool.redial import Redials
from ._pool.retired import Retired
from ._pool.room import Room
from ._runtime.deadline import NEVER, Deadline, now, out_of_time
from ._runtime.guard import BornAnew
from ._runtime.life import Life
from ._runtime.steps import Bell, Steps
from ._runtime.threads import join_thread, start_thread
from .client import Client, Message
from .config import ServerConfig
from .envelope import Envelope
from .errors import InvalidConfig, MailError, kept_copy
from .receipt import Receipt
from .retry import RetryPolicy

#: Threads that say goodbye side by side, the one that closes included: servers that stall are waited for together.
FAREWELLS = 8

#: Seconds for callers to come back whose connections were dropped by `close()`.
GRACE = 1.0

#: In a forked child: what is the parent's, and what takes its place.
_Inherited: TypeAlias = "tuple[Keys[Client], Retired]"
_Fresh: TypeAlias = "tuple[Keys[Client], Steps, Retired, list[threading.Thread], IdleWatch | None]"

_T = TypeVar("_T")


class ClientPool(BornAnew):
    """A bounded pool of clients of one server.

    Nothing happens before the first lease. Use it as a context manager, or call `close()`.

    Args:
        server: a `ServerConfig` or a URL for one.
        max_size: connections at most. Servers allow few: Exchange Online three for a mailbox.
        rng: chance, for jitter.
    Raises:
        InvalidConfig: the URL is wrong, `max_size` is no number of connections, or `rng` is no `random.Random`.
    """

    def __init__(self, server: str | ServerConfig, *, max_size: int = 4, rng: random.Random | None = None) -> None:
        self.config: ServerConfig = ServerConfig.of(server)
        given: object = max_size
        if not isinstance(given, int) or isinstance(given, bool):
            raise InvalidConfig(f"max_size is no int but a {type(given).__name__}")
        if max_size < 1:
            raise InvalidConfig(f"max_size must be at least 1, not {max_size}")
        self.max_size = max_size
        self._rng = chance(rng)
        self._begin(os.getpid(), self._new(Life.OPEN))
        super().__init__()

    def _inherited(self, pid: int) -> _Inherited | None:
        return None if self._ready_in == pid else (self._keys, self._retired)

    def _made_anew(self, pid: int, inherited: _Inherited) -> _Fresh:
        keys, retired = inherited
        # Each is told now: where no hook runs, nobody else would close their connections, which are the parent's.
        for client in (*keys.clients(), *retired.lingering):
            client.enter_child(pid)
        return self._new(Life.OPEN if keys.life is Life.OPEN else Life.CLOSED)  # closed in a child as well

    def _new(self, life: Life) -> _Fresh:
        breaker, room = CircuitBreaker(RetryPolicy(), self._rng), Room(self._rng)
        keys = Keys(self.max_size, breaker, room, lambda: Redials(self, self.config, self._rng).client, life)
        steps = Steps(keys.wake_first)
        watch = IdleWatch(self) if self.config.idle_timeout is not None else None
        return keys, steps, Retired(steps), [], watch

    def _begin(self, pid: int, fresh: _Fresh) -> None:
        keys, steps, retired, goodbyes, watch = fresh
        if self._ready_in == pid:
            return
        self._keys = keys
        self._steps = steps  # the one lock: guards the keys, and all that is below
        self._retired = retired
        self._goodbyes = goodbyes
        self._watch = watch
        self._watching = False  # or about to
        self._ready_in = pid

    # ------------------------------------------------------------ leasing

    def lease(self, *, timeout: float | Deadline | None = None) -> AbstractContextManager[Client]:
        """The exclusive use of a connected client, for the length of a `with` block.

        Args:
            timeout: seconds to wait for one, dialling included. None waits at most a minute (`LINE`) for what others
                have, or two seconds where the caller has a client already, and for its own dial as long as the config
                allows; `math.inf` waits for ever.
        Raises:
            TimedOut: there was none in time.
            ConnectFailed, LoginRefused, ...: the server could not be reached, just now or moments ago.
            Reentered: all clients are leased, each by a caller who waits for another one, as this one does; or a signal
                handler came in the middle of a step of this very pool in this very thread.
            Closed: the pool is closed.
        """
        return self._lease(timeout)

    @contextmanager
    def _lease(self, timeout: float | Deadline | None, line: list[Deadline] | None = None) -> Iterator[Client]:
        """As `lease`.

        Args:
            line: when the wait for what others have is over; none as long as it has not begun, which is noted here.
                None: one for this lease alone, made here: what is used as a decorator is entered with each call.
        """
        self._check_process()
        line = [] if line is None else line
        end = Deadline.after(timeout)
        lease = Lease(self._keys, Bell(), held(self._keys))
        try:
            have_here(lease)
            yield self._acquire(lease, end, line)
        finally:
            try:
                self._give_back(lease, end)
            except BaseException:
                self._give_back(lease, end)  # an exception from outside: what it left undone is done now
                raise

    def send(self, message: Message, *, deadline: float | Deadline | None = None) -> Receipt:
        """Send one message on a client of the pool; as `Client.send`.

        Args:
            deadline: seconds that all of it may take, waiting for a client included; None: as `timeout` of `lease`.
        """
        envelope = Envelope.of(message)
        end = Deadline.after(deadline)
        line: list[Deadline] = []  # one for all tries
        try:
            while True:
                with self._lease(end, line) as client:
                    try:
                        return client.transmit(envelope, deadline=end)
                    except MailError as error:
                        # The server hung up after the last look at the connection, and lets no other one in. Nothing
                        # was written on that, so this is as if there had been none from the beginning.
                        if not self._is_passing(error, client):
                            raise
                # Behind the lease, whose client is not one that the caller has besides.
                line = line or [in_line(end, held(self._keys))]
        except MailError as error:
            told = Receipt.after(envelope, error)
            if told is error.receipt or told.error is None:
                raise
            raise told.error from error.__cause__

    def _is_passing(self, error: MailError, client: Client) -> bool:
        return error.transient and is_refusal(error) and self._steps.take(self._keys.serves, client)

    def _acquire(self, lease: Lease[Client], end: Deadline, line: list[Deadline]) -> Client:
        while True:
            answer = self._steps.take(self._keys.answer, lease)
            if answer.client is None:
                if not line:
                    line.append(in_line(end, lease.holds))
                answer = self._wait(lease, line[0], answer)
            client, dials = answer.client, answer.dials
            assert client is not None
            lease.answers = client._answers  # before anything may be raised: what it answered others is not for us
            if dials:
                if not self._dial(lease, client, end):
                    continue
            elif not is_good(client, end):
                # Whoever needs a new one asks for it, as everybody does.
                self._decide(end, self._stood_aside, lease)
                continue
            return client

    def _wait(self, lease: Lease[Client], line: Deadline, answer: Answer[Client]) -> Answer[Client]:
        """The answer that grants a client, sooner or later."""
        while answer.client is None:
            if line.passed:
                raise out_of_time(f"no client of the pool came free in time ({answer.leased} are in use)")
            if answer.to_end:
                self._work_off(AT_ONCE)
            else:
                for client in answer.in_the_way:
                    client.abort()  # it says goodbye: a courtesy, for which nobody waits
                lease.woken.wait(Deadline(min(line.at, answer.until)).remaining())
            answer = self._steps.take(self._keys.answer, lease)
        return answer

    def _dial(self, lease: Lease[Client], client: Client, end: Deadline) -> bool:
        """Connect a new client; False: its server takes no more, and the caller is in line again."""
        try:
            client.connect(deadline=end)
        except MailError as error:
            if not is_refusal(error):
                raise
            if self._decide(end, self._refused, lease, kept_copy(error)):
                return False
            raise
        self._steps.take(self._keys.connected, lease)
        return True

    # ------------------------------------------------------------ giving back

    def _give_back(self, lease: Lease[Client], end: Deadline) -> None:
        """End a lease, however far it had come. May be called twice, and by the garbage collector, in any thread."""
        self._check_process()
        no_longer_here(lease)
        client = lease.client if lease.taken else None  # else it is written by whoever grants one, under the lock
        if lease.keys is not self._keys:  # forked inside the lease: what came of it here is closed
            if client is not None:
                client._part(end)
                self._steps.surely(self._keys.gone, client)
            return
        if client is not None:
            lease.fit = client._is_free()
            lease.answered = lease.answered or client._answers > lease.answers
            lease.failure = lease.failure or client._taken_back
            client._taken_back = None
        starts, lingering = self._decide(end, self._returned, lease) or (False, ())
        if starts:
            self._start_watch()
        self._retired.sweep(lingering)
        if lingering and self._keys.life is not Life.OPEN:
            self._retired.see_off()  # closed in the middle of a step, by a signal handler: it left this to us

    def _returned(self, args: tuple[Farewell[Client], Lease[Client]], at: float) -> tuple[bool, Sequence[Client]]:
        """Returns whether the calling thread is to start the watch of idle clients, and whom it may have to close."""
        farewell, lease = args
        self._keys.give_back(lease, at)
        self._keys.claim(farewell, at)
        watch = self._watch
        if watch is None or not self._keys.idle or (self._watching and not watch.has_died):
            return False, self._retired.held(at)
        watch.ended()
        self._watching = True
        return True, self._retired.held(at)

    def _refused(self, args: tuple[Farewell[Client], Lease[Client], MailError], at: float) -> bool:
        farewell, lease, error = args
        waits = self._keys.refused(lease, error, at)
        self._keys.claim(farewell, at)
        return waits

    def _stood_aside(self, args: tuple[Farewell[Client], Lease[Client]], at: float) -> None:
        farewell, lease = args
        self._keys.stand_aside(lease, at)
        self._keys.claim(farewell, at)

    # ------------------------------------------------------------ ending clients

    def _decide(self, end: Deadline, do: Callable[[Any, float], _T], *args: Any) -> _T | None:
        """One operation under the lock, and, outside it, the end of the client that it took away, if it did.

        Args:
            end: by when the farewell is over.
            do: gets a `Farewell` to claim that client with, and `args`; and the time.
        Returns:
            What it returned; None if it is still to be done (see `Steps.surely`).
        """
        result, more = self._end_one(end, "closed", do, *args)
        if more:
            self._work_off(end)
        return result

    def _work_off(self, end: Deadline) -> None:
        """End what is to be ended and nobody is about yet, whoever left it."""
        while self._end_one(end, "closed", self._claim)[1]:
            pass

    def _claim(self, args: tuple[Farewell[Client]], at: float) -> None:
        self._keys.claim(args[0], at)

    def _end_one(
        self, end: Deadline, reason: str, do: Callable[[Any, float], _T], *args: Any
    ) -> tuple[_T | None, bool]:
        """As `_decide`; also returns whether there is another one to be ended.

        The client takes its place until the connection is gone, and is forgotten whatever happens here.
        """
        farewell = Farewell(self._keys)
        more = False
        try:
            result = self._steps.surely(do, (farewell, *args))
            client = farewell.client
            if client is not None:
                have_here(farewell)
                farewell.lingers = not client._part(end, reason)
        except BaseException:
            if farewell.client is not None:
                farewell.client.abort()  # an exception from outside, in the middle of it
                farewell.lingers = True
            raise
        finally:
            farewell.over = True
            if farewell.client is not None:
                try:
                    more = self._farewell_is_over(farewell)
                except BaseException:
                    self._farewell_is_over(farewell)
                    raise
            if farewell.lingers and self._keys.life is not Life.OPEN:
                self._retired.see_off()
        return result, more

    def _farewell_is_over(self, farewell: Farewell[Client]) -> bool:
        no_longer_here(farewell)
        return bool(self._steps.surely(self._forget, farewell))

    def _forget(self, farewell: Farewell[Client], at: float) -> bool:
        client = farewell.client
        assert client is not None
        if client in self._keys.ending:
            self._retired.add(farewell, client)
        self._keys.gone(client, at)
        return self._keys.has_to_end

    # ------------------------------------------------------------ idle clients

    def close_idle(self) -> float | None:
        """Close clients idle for `idle_timeout`. For the idle watch.

        Returns:
            Seconds until it is worth looking again, or None: there are no clients.
        """
        limit = self.config.idle_timeout
        assert limit is not None
        self._retired.sweep(self._steps.take(self._retired.held))
        while self._end_one(NEVER, "idle", self._claim_due, now() - limit)[0]:
            pass
        return self._steps.take(self._next_look, limit)

    def _claim_due(self, args: tuple[Farewell[Client], float], at: float) -> bool:
        farewell, before = args
        return self._keys.claim_due(farewell, before, at)

    def _next_look(self, limit: float, at: float) -> float | None:
        if self._keys.idle:
            return max(0.0, self._keys.idle[0][1] + limit - at)
        if self._keys.leased or self._keys.ending or self._retired.lingering:
            return limit
        if self._watch is not None:
            self._watch.ended()
        self._watching = False
        return None

    def _start_watch(self) -> None:
        """Outside the lock, for it may log; by one thread at a time, for `_watching` is set before."""
        assert self._watch is not None
        started = False
        try:
            self._watch.start()
            started = not self._watch.is_missing
        finally:
            if not started:
                self._steps.surely(self._not_watched)
        if not started:
            self.close_idle()  # those that are due now; the others by the next one who comes

    def _not_watched(self, _: None, at: float) -> None:
        self._watching = False

    # ------------------------------------------------------------ ending

    def close(self, *, timeout: float | None = 30.0) -> None:
        """Refuse new leases, wake those who wait, say goodbye on idle connections, let leases end.

        May be called twice, and from any thread, also while another one closes: each drops what is left after its own
        time, so a second call may shorten the first. What the calling thread itself has leased is not waited for: that
        ends with its block. A signal handler that came in the middle of a step of this pool returns at once, and that
        thread closes as soon as it goes on.

        Args:
            timeout: seconds for farewells, and to let leased clients finish before their connections are dropped under
                them. What somebody holds by its `sync_root` even then is closed when he lets go of it within a minute
                (`LINGER`), and else by the next `close()` after that.
        """
        self._check_process()
        end = Deadline.after(timeout)
        closer: Closer[Client] = Closer(Bell(), held(self._keys))
        try:
            begun = self._steps.surely(self._begin_close, closer)
            if begun is None:
                return
            to_end, watcher = begun
            if to_end:
                self._say_goodbye(to_end, end)
            if self._await(closer, end):
                for client in self._steps.take(self._keys.to_drop, closer):
                    client._part(AT_ONCE)
                self._await(closer, Deadline.after(GRACE))  # they come back at once, unless they do something else
        finally:
            goodbyes, lingering = self._steps.surely(self._leave, closer) or ([], ())
        if lingering:
            self._retired.sweep(lingering)
            self._retired.see_off()
        for thread in (watcher, *goodbyes):
            join_thread(thread, GRACE)

    def _begin_close(self, closer: Closer[Client], at: float) -> tuple[int, threading.Thread | None]:
        watcher = self._watch.stop() if self._watch is not None else None
        return self._keys.close(closer, at), watcher

    def _say_goodbye(self, clients: int, end: Deadline) -> None:
        """Side by side: servers that stall are waited for together."""
        for number in range(1, min(clients, FAREWELLS)):
            thread = start_thread(self._work_off, name=f"threadmail-goodbye-{number}", args=(end,))
            if thread is None:
                break
            self._steps.take(self._note_thread, thread)
        self._work_off(end)

    def _note_thread(self, thread: threading.Thread, _: float) -> None:
        self._goodbyes.append(thread)

    def _leave(self, closer: Closer[Client], at: float) -> tuple[list[threading.Thread], Sequence[Client]]:
        """Returns the threads that said goodbye, and whom somebody holds by its `sync_root` still."""
        self._keys.leave(closer, at)
        return [*self._goodbyes], self._retired.held(at)

    def _await(self, closer: Closer[Client], end: Deadline) -> bool:
        """Wait for all that this closing has to wait for. Returns whether there is something left at the end."""
        while self._steps.take(self._keys.awaited, closer):
            if end.passed:
                return True
            closer.woken.wait(end.remaining())
        return False

    def __enter__(self) -> ClientPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> PoolStats:
        """What the pool is doing now, and has done so far.

        In a signal handler that came in the middle of a step of this pool: as it stands there.
        """
        self._check_process()
        with self._steps.lock:
            keys = self._keys
            clients = [*keys.clients(), *self._retired.lingering]
            leased = len(keys.leased) + len(keys.ending)
            numbers = len(keys.waiting), leased, len(keys.idle), self._retired.opened, Counter(self._retired.closed)
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
