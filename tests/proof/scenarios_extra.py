"""What the scenarios of scenarios.py leave out: the rest of each class, for the mutants of its locking.

Small scenarios, each for one promise: a call that threads make at the same time, a deadline that holds on a server that
says nothing, a call from within an exchange, a wait that ends when what it waits for has happened and not later. All
have no violation in the real package; mutation.py asks which of its mutants they notice.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from functools import partial
from typing import Any
from unittest import mock

from tests.detsched import Run, Verdict
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.modelsocket import ModelSocket
from tests.detsched.oracle import verdict
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import _COMMANDS, Connection, Faults
from threadmail import (
    SMTP,
    Client,
    ClientPool,
    Closed,
    Envelope,
    LoginRefused,
    MailError,
    NotConnected,
    Receipt,
    Reentered,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Throttle,
    TimedOut,
)
from threadmail._deadline import NEVER
from threadmail._dispatch import Dispatcher
from threadmail._jobs import Job, JobState

from .scenarios import (
    CLIENT,
    CONFIG,
    IDLE,
    OWNER,
    POOL,
    QUIET,
    SENDER,
    Scenario,
    by_envelope,
    no_exit_hook,
    pooled,
)

IMMEDIATELY = 0.5  # seconds of virtual time: nothing was waited for

_MORE_COMMANDS: dict[str, Callable[[Connection, str, Any], str]] = {
    "AUTH": lambda connection, argument, who: "235 2.7.0 welcome",
    "STARTTLS": lambda connection, argument, who: "220 2.0.0 go ahead",
    "HELP": lambda connection, argument, who: "214 2.0.0 no help",
    "EXPN": lambda connection, argument, who: "252 2.5.0 no lists",
}
_EXTENSIONS = ("SIZE 1000000", "STARTTLS", "AUTH PLAIN")
_MESSAGE = b"Subject: x\r\n\r\nx"


class _WrappedSocket(ModelSocket):
    """The model knows no TLS: the bytes stay as they are."""

    def do_handshake(self) -> None:
        pass


class _Context:
    """In the place of an `ssl.SSLContext`."""

    def wrap_socket(self, sock: ModelSocket, **_: object) -> _WrappedSocket:
        return _WrappedSocket(sock.connection, sock.gettimeout())


class _Server(ModelServer):
    """Knows a few more commands, and says nothing more once it is `mute`.

    It becomes so by a MAIL, if it is `mute_from_mail`.
    """

    mute = False
    mute_from_mail = False

    def __enter__(self) -> _Server:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(mock.patch.dict(_COMMANDS, _MORE_COMMANDS))
        said = Connection.reply

        def reply(connection: Connection, text: str, who: Any, cause: int) -> None:
            self.mute |= self.mute_from_mail and text.startswith("250 2.1.0")
            if not self.mute:
                said(connection, text, who, cause)

        ended = Connection.hang_up

        def hang_up(connection: Connection) -> None:
            if not (self.mute and connection.transcript[-1][2].lower() == "quit"):
                ended(connection)

        self._stack.enter_context(mock.patch.object(Connection, "reply", reply))
        self._stack.enter_context(mock.patch.object(Connection, "hang_up", hang_up))
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._stack.close()

    def times(self, command: str) -> int:
        said = [text for c in self.connections for _, direction, text in c.transcript if direction == ">"]
        return sum(text.lower().startswith(command) for text in said)


class _Threads:
    """The threads of a scenario that needs no ledger, and what went wrong in them."""

    def __init__(self, run: Run, server: ModelServer, *, allowed: tuple[type[Exception], ...] = ()) -> None:
        self.run, self.server, self.allowed = run, server, allowed
        self.wrong: list[str] = []
        run.context.enter_context(server)
        run.judge(self._judge)

    def _judge(self) -> Verdict:
        found = [*self.wrong]
        for connection in self.server.connections:
            found += connection.violations
        if self.server.bound is not None and self.server.most_open > self.server.bound:
            found.append(f"more connections than allowed: {self.server.most_open}")
        found += self.at_the_end()
        return Verdict(tuple(dict.fromkeys(found)))

    def at_the_end(self) -> list[str]:
        return []

    def add(self, act: Callable[[], object]) -> None:
        def attempt() -> None:
            try:
                act()
            except self.allowed:
                pass
            except Exception as error:  # noqa: BLE001 - every failure is a violation
                self.wrong.append(f"failed: {type(error).__name__}")

        self.run.thread(attempt)


# ---------------------------------------------------------------- one dialogue

Act = Callable[[SMTP], object]


def dialogue(*acts: Act, allowed: tuple[type[Exception], ...] = (), greeted: bool = True, ehlos: int = 0) -> Program:
    """Each act on a thread of its own, all on one connected client; `ehlos` (if not 0) are expected in all."""

    def program(run: Run) -> None:
        threads = _Threads(run, _Server(*_EXTENSIONS, bound=1, lockset=True), allowed=allowed)
        client = SMTP("model", 25, local_hostname="me")
        if greeted:
            client.ehlo()
        for act in acts:
            threads.add(partial(act, client))
        if ehlos:
            threads.at_the_end = lambda: [] if threads.server.times("ehlo") == ehlos else ["EHLO said too often"]  # type: ignore[attr-defined, method-assign]

    return program


def by_hand(client: SMTP) -> None:
    client.mail("a@here.test")
    client.rcpt("b@there.test")
    client.data(_MESSAGE)


def send(client: SMTP) -> None:
    client.sendmail("a@here.test", ["b@there.test"], _MESSAGE)


def send_while_open(client: SMTP) -> None:
    with client.sync_root:
        client.mail("a@here.test")
        try:
            send(client)
        except Reentered:
            client.rset()
            return
    raise AssertionError("sendmail() within a transaction begun by mail()")


def ask(client: SMTP) -> None:
    client.putcmd("noop")
    client.getreply()


def reconnect(client: SMTP) -> None:
    with client.sync_root:
        client.close()
        client.connect("model", 25)
        client.ehlo()


def offered(client: SMTP) -> None:
    assert client.has_extn("size"), "an extension is offered, and then not"


def hold(client: SMTP) -> None:
    with client.sync_root:
        client.noop()


def leave(client: SMTP) -> None:
    client.__exit__(None, None, None)


def start_tls(client: SMTP) -> None:
    client.starttls(context=_Context())  # type: ignore[arg-type]


def log_in(client: SMTP) -> None:
    client.login("user", "secret")


def authenticate(client: SMTP) -> None:
    client.auth("PLAIN", lambda challenge=None: "x")


def intruding(act: Act) -> Program:
    """While a client is in an exchange, its own thread makes another call, from a log handler say: it is refused."""

    def program(run: Run) -> None:
        threads = _Threads(run, _Server(*_EXTENSIONS, bound=1))

        class Talkative(SMTP):
            busy = True

            def _trace(self, direction: str, said: str) -> None:
                if self.busy:
                    return
                self.busy = True
                try:
                    self.noop()
                except Reentered:
                    pass
                except Exception as error:  # noqa: BLE001 - it was let in, and that is what came of it
                    threads.wrong.append(f"a call got into an exchange: {type(error).__name__}")
                else:
                    threads.wrong.append("a call got into an exchange")
                self.busy = False

        client = Talkative("model", 25, local_hostname="me")
        client.ehlo()

        def thread() -> None:
            client.busy = False
            act(client)

        threads.add(thread)

    return program


def in_time(act: Callable[[Any], object], seconds: float, *, dialled: bool = True, whole: bool = False) -> Program:
    """A call ends in time although the server says nothing (more); `whole`: on a `Client`."""

    def program(run: Run) -> None:
        server = _Server(*_EXTENSIONS, read_timeouts=True)
        threads = _Threads(run, server, allowed=(MailError,))
        client: Any
        if whole:
            client = Client(CONFIG, watch_idle=False)
            if dialled:
                client.connect()
        else:
            client = SMTP("model" if dialled else "", 25 if dialled else 0, local_hostname="me")
            if dialled:
                client.ehlo()
            if act is data_by_deadline:
                client.mail("a@here.test")
                client.rcpt("b@there.test")
        server.mute = True

        def thread() -> None:
            begun = time.monotonic()
            try:
                act(client)
            finally:
                if time.monotonic() - begun > seconds + IMMEDIATELY:
                    threads.wrong.append("the deadline did not hold")

        threads.add(thread)

    return program


def data_by_deadline(client: SMTP) -> None:
    client.data(_MESSAGE, deadline=5)


def within(client: SMTP) -> None:
    with client.within(5):
        client.noop()


_LETTER = Envelope("a@here.test", ["b@there.test"], _MESSAGE)


def send_message(client: SMTP) -> None:
    message = EmailMessage()
    message["From"], message["To"] = "a@here.test", "b@there.test"
    message.set_content("x")
    client.send_message(message, deadline=5)


# ---------------------------------------------------------------- one client


def clients(*acts: Callable[[Client], object]) -> Program:
    """Each act on a thread of its own, all on one `Client` that is not connected yet."""

    def program(run: Run) -> None:
        threads = _Threads(run, _Server(bound=1, lockset=True))
        client = Client(CONFIG, watch_idle=False)
        for act in acts:
            threads.add(partial(act, client))

    return program


def forked(run: Run) -> None:
    """Two threads are the first to use a client in a forked child (without Python's hooks, as some servers fork)."""
    office = PostOffice(run, ModelServer(bound=1))
    pid = [1]
    run.context.enter_context(mock.patch.object(os, "getpid", side_effect=lambda: pid[0]))
    client = Client(CONFIG, watch_idle=False)
    pid[0] = 2
    office.senders(threads=2, messages=1, sendmail=by_envelope(client.send))


def also(run: Run, office: PostOffice, check: Callable[[], list[str]]) -> None:
    """Judge by the oracle, and by `check`."""

    def judge() -> Verdict:
        given_up = run.scheduler.ending is not None
        usual = verdict(office.server, office.ledger, failures=office.failures, given_up=given_up)
        more = () if given_up else tuple(check())
        return Verdict((*usual.violations, *more), usual.outcome, usual.transcript)

    run.judge(judge)


def watched_idle(run: Run) -> None:
    """Nobody closes the client: its watch closes the connection when it has been idle, with a farewell, and ends."""
    office = PostOffice(run, ModelServer(ordered=True))
    client = Client(CONFIG)
    office.senders(threads=1, messages=1, sendmail=by_envelope(client.send))
    also(run, office, lambda: [] if not client.is_connected else ["an idle connection was not closed"])


def watch_stopped(make: Callable[[], Any]) -> Program:
    """When `close()` returns, the watch has ended."""

    def program(run: Run) -> None:
        threads = _Threads(run, ModelServer(ordered=True))
        owner = make()

        def act() -> None:
            owner.send(_LETTER)
            watch = owner._watch._thread
            begun = time.monotonic()
            owner.close()
            assert time.monotonic() - begun < IMMEDIATELY, "close() waited for the watch in vain"
            assert not watch.is_alive(), "the watch goes on"

        threads.add(act)

    return program


# ---------------------------------------------------------------- pool


def counted(size: int, threads: int) -> Program:
    """`stats()` beside work: never more clients than there may be."""

    def look(pool: ClientPool) -> None:
        stats = pool.stats()
        assert stats.leased + stats.idle <= size, "counted more clients than there may be"
        assert stats.waiting <= threads

    return pooled(size, threads, 1, beside=look)


def idle_close(pool: ClientPool) -> None:
    time.sleep(IDLE + 1)
    pool.close_idle()


def _pool(size: int) -> ClientPool:
    pool = ClientPool(CONFIG, max_size=size, rng=random.Random(1))
    pool._watch = None
    return pool


def closed_beside_leases(leases: int, closers: int = 1) -> Program:
    """`close()` lets leases end, however they follow each other, and returns when the last one has."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=leases))
        pool = _pool(leases)
        leased = threading.Semaphore(0)
        late: list[str] = []

        def send(envelope: Envelope) -> Any:
            with pool.lease() as client:
                leased.release()
                return client.send(envelope)

        def close() -> None:
            for _ in range(leases):
                leased.acquire()
            for _ in range(leases):
                leased.release()
            begun = time.monotonic()
            pool.close()
            if time.monotonic() - begun > IMMEDIATELY:
                late.append("close() went on waiting when all leases had ended")

        office.senders(threads=leases, messages=1, sendmail=by_envelope(send))
        for number in range(closers):
            run.thread(close, f"closer{number}")
        also(run, office, lambda: late)

    return program


def told_at_once(run: Run) -> None:
    """Who waits for a client is told at once that the pool was closed, however long leases last."""
    threads = _Threads(run, ModelServer(bound=1))
    pool = _pool(1)
    leased, told = threading.Event(), threading.Event()

    def holder() -> None:
        with pool.lease():
            leased.set()
            told.wait()

    def waiter() -> None:
        leased.wait()
        try:
            with pool.lease():
                pass
        except Closed:
            told.set()

    def closer() -> None:
        leased.wait()
        pool.close()

    for act in (holder, waiter, closer):
        threads.add(act)


def gate_reopens(run: Run) -> None:
    """A dial fails, the only other client is kept: who waits dials again when the pause is over, by itself."""
    threads = _Threads(run, ModelServer(bound=2, faults=Faults(refuse_connects=frozenset([1]))))
    pool = _pool(2)
    leased, served = threading.Event(), threading.Event()

    def holder() -> None:
        with pool.lease():
            leased.set()
            served.wait()

    def other() -> None:
        leased.wait()
        with pool.lease():
            served.set()

    threads.add(holder)
    threads.add(other)


def interrupted(closers: int) -> Program:
    """A thread that was handed a client is interrupted before it knows; `close()` does not wait for it any longer."""

    def program(run: Run) -> None:
        threads = _Threads(run, ModelServer(bound=1))
        pool = _pool(1)
        leased = threading.Event()
        real_wait = threading.Condition.wait
        waiting: list[int] = []

        def wait(condition: threading.Condition, timeout: float | None = None) -> bool:
            got = real_wait(condition, timeout)
            if waiting == [threading.get_ident()]:
                waiting.clear()
                raise KeyboardInterrupt
            return got

        run.context.enter_context(mock.patch.object(threading.Condition, "wait", wait))

        def holder() -> None:
            with pool.lease():
                leased.set()

        def victim() -> None:
            leased.wait()
            waiting.append(threading.get_ident())
            with contextlib.suppress(KeyboardInterrupt, Closed):
                with pool.lease():
                    waiting.clear()
            waiting.clear()

        def close() -> None:
            leased.wait()
            begun = time.monotonic()
            pool.close()
            if time.monotonic() - begun > IMMEDIATELY:
                threads.wrong.append("close() went on waiting when all leases had ended")

        threads.add(holder)
        threads.add(victim)
        for _ in range(closers):
            threads.add(close)

    return program


# ---------------------------------------------------------------- sender


def _sender(run: Run, **settings: Any) -> ThreadedSender:
    run.context.enter_context(no_exit_hook())
    if callable(settings.get("throttle")):
        settings["throttle"] = settings["throttle"]()
    settings.setdefault("retry", RetryPolicy(base=0.0))
    return ThreadedSender(CONFIG, workers=1, rng=random.Random(1), **settings)


def _paused() -> Throttle:
    throttle = Throttle()
    throttle.pause(10.0)
    return throttle


def _no_first_dial() -> ModelServer:
    return ModelServer(faults=Faults(refuse_connects=frozenset([0])))


def gives_up_in_the_queue(run: Run) -> None:
    """`send` with a deadline, behind a message whose callback takes for ever: TimedOut, in time."""
    threads = _Threads(run, ModelServer(bound=1))
    released = threading.Event()
    sender = _sender(run, on_receipt=lambda receipt: released.wait())

    def act() -> None:
        sender.submit(_LETTER)
        try:
            sender.send(_LETTER, deadline=5)
        except TimedOut:
            pass
        else:
            raise AssertionError("sent after its deadline")
        finally:
            released.set()
            sender.close(timeout=None)

    threads.add(act)


def drops_what_hangs(run: Run) -> None:
    """`send` with a deadline, on a connection whose own time-outs never fire: the connection is dropped."""
    server = _Server(bound=1)
    server.mute_from_mail = True
    threads = _Threads(run, server, allowed=(MailError,))
    sender = _sender(run)

    def act() -> None:
        try:
            sender.send(_LETTER, deadline=5)
        finally:
            sender.close(timeout=None)

    threads.add(act)


def closed_twice(run: Run) -> None:
    """Two threads close a sender whose only message hangs on the wire: one of them is told that it was cut short."""
    server = _Server(bound=1)
    server.mute_from_mail = True
    threads = _Threads(run, server, allowed=(MailError,))
    sender = _sender(run)
    unsent: list[object] = []

    def close() -> None:
        unsent.extend(sender.close(drain=False, timeout=1.0))

    sender.submit(_LETTER)
    threads.add(close)
    threads.add(close)
    threads.at_the_end = lambda: [] if len(unsent) == 1 else ["what was cut short was not told once"]  # type: ignore[method-assign]


# ---------------------------------------------------------------- dispatcher


def bare(act: Callable[[_Bare], list[Callable[[], object]]], jobs: int = 2, places: int = 1) -> Program:
    """A dispatcher without lanes, so that nothing but the threads given moves."""

    def program(run: Run) -> None:
        dispatcher = _Bare(jobs, places)
        threads = _Threads(run, ModelServer(), allowed=(Closed,))
        threads.at_the_end = lambda: [] if dispatcher.all_told() else ["a job was not settled, or twice"]  # type: ignore[method-assign]
        for each in act(dispatcher):
            threads.add(each)

    return program


class _Bare(Dispatcher):
    def __init__(self, jobs: int, places: int) -> None:
        self.told: list[Job] = []
        super().__init__(
            CONFIG,
            workers=1,
            queue_size=places,
            policy=RetryPolicy(),
            throttle=Throttle(),
            rng=random.Random(1),
            settled=self.told.append,
        )
        self._working = False
        self.jobs = [Job(_LETTER, NEVER, self) for _ in range(jobs)]
        self.refused: list[Job] = []
        self.queued = threading.Event()

    def add(self, number: int) -> None:
        try:
            self.put(self.jobs[number])
        except Closed:
            self.refused.append(self.jobs[number])
        if number == 0:
            self.queued.set()

    def add_both(self) -> None:
        self.add(0)
        self.add(1)

    def all_told(self) -> bool:
        withdrawn = [job for job in self.jobs if job.state is JobState.WITHDRAWN]
        waiting = [job for job in self.jobs if job.state is JobState.QUEUED and self._accepting]
        told = [*self.told, *self.refused, *withdrawn, *waiting]
        return len(told) == len(self.jobs) == len({id(job) for job in told})

    def shut(self) -> None:
        self.close(drain=False, end=NEVER)

    def take_back(self) -> None:
        self.queued.wait()
        assert self.withdraw(self.jobs[0])

    def call_off(self) -> None:
        self.queued.wait()
        if not self.refused:
            self.abort(self.jobs[0])


def _on_time(begun: float, what: str) -> None:
    assert time.monotonic() - begun < IMMEDIATELY, f"{what} took longer than needed"


class _Later(_Server):
    """Puts the first MAIL off by a 451."""

    put_off = 0

    def __enter__(self) -> _Later:
        def mail(connection: Connection, argument: str, who: Any) -> str:
            if not self.put_off:
                self.put_off = 1
                return "451 4.3.0 later"
            return Connection._mail(connection, argument, who)

        super().__enter__()
        self._stack.enter_context(mock.patch.dict(_COMMANDS, {"MAIL": mail}))
        return self


def sent(
    act: Callable[[ThreadedSender, Callable[[], None]], object],
    *others: Callable[[ThreadedSender], object],
    server: Callable[[], ModelServer] = lambda: ModelServer(ordered=True),
    allowed: tuple[type[Exception], ...] = (),
    **settings: Any,
) -> Program:
    """`act` on a thread of its own, which closes the sender at its end by the function it is given; that takes no time.

    `others` run beside it when `act` has submitted something and set the sender's `submitted`.
    """

    def program(run: Run) -> None:
        threads = _Threads(run, server(), allowed=allowed)
        sender = _sender(run, **settings)
        sender.submitted = threading.Event()  # type: ignore[attr-defined]

        def close() -> None:
            begun = time.monotonic()
            sender.close(timeout=None)
            _on_time(begun, "close()")
            assert all(c.closed for c in threads.server.connections), "close() left a connection open"

        def wait_and(other: Callable[[ThreadedSender], object]) -> None:
            sender.submitted.wait()  # type: ignore[attr-defined]
            other(sender)

        threads.add(lambda: act(sender, close))
        for other in others:
            threads.add(partial(wait_and, other))

    return program


def one_after_the_other(sender: ThreadedSender, close: Callable[[], None]) -> None:
    """The second message finds an idle lane, which sends it at once."""
    sender.send(_LETTER)
    begun = time.monotonic()
    sender.send(_LETTER)
    _on_time(begun, "the second message")
    close()


def closed_at_once(sender: ThreadedSender, close: Callable[[], None]) -> None:
    """The queue is worked off by `close`."""
    futures = [sender.submit(_LETTER) for _ in range(2)]
    close()
    for future in futures:
        future.result(0)


def after_a_failure(sender: ThreadedSender, close: Callable[[], None]) -> None:
    """The first message ends with the failed dial, the second one finds a server again."""
    with contextlib.suppress(MailError):
        sender.send(_LETTER)
    begun = time.monotonic()
    with contextlib.suppress(MailError):
        sender.send(_LETTER)
    _on_time(begun, "the second message")
    close()


def submit_and_close(sender: ThreadedSender, close: Callable[[], None]) -> None:
    sender.future = sender.submit(_LETTER)  # type: ignore[attr-defined]
    sender.submitted.set()  # type: ignore[attr-defined]
    close()


def put_off_while_closing(sender: ThreadedSender, close: Callable[[], None]) -> None:
    """A message is put off by the server while the sender is closed without draining: its future is settled too."""
    future = sender.submit(_LETTER)
    sender.submitted.set()  # type: ignore[attr-defined]
    with contextlib.suppress(MailError):
        future.result()


def close_without_drain(sender: ThreadedSender) -> None:
    sender.close(drain=False, timeout=None)


def cancel(sender: ThreadedSender) -> None:
    sender.future.cancel()  # type: ignore[attr-defined]


def look(sender: ThreadedSender) -> None:
    """What is counted at any moment: one message, one connection."""
    stats = sender.stats()
    assert stats.queued + stats.retrying + stats.in_flight <= 1, "a message was counted twice"
    assert stats.opened <= 1, "a connection was counted twice"


def side_by_side(lanes: int) -> Program:
    """As many lanes as messages, and each callback waits for all others: no lane sleeps while there is work for it."""

    def program(run: Run) -> None:
        run.context.enter_context(no_exit_hook())
        threads = _Threads(run, ModelServer(ordered=True))
        sender = ThreadedSender(CONFIG, workers=lanes, rng=random.Random(1), on_receipt=lambda receipt: arrive())
        arrived = [0]
        all_there = threading.Event()

        def arrive() -> None:
            arrived[0] += 1
            if arrived[0] == lanes:
                all_there.set()
            all_there.wait()

        def act() -> None:
            begun = time.monotonic()
            futures = [sender.submit(_LETTER) for _ in range(lanes)]
            for future in futures:
                future.result()
            _on_time(begun, "sending")
            begun = time.monotonic()
            sender.close(timeout=None)
            _on_time(begun, "close()")

        threads.add(act)

    return program


def waiting_for_a_place(callers: int) -> Program:
    """The queue is full, the lane stuck in a callback: callers who wait for a place are told at once of `close()`."""

    def program(run: Run) -> None:
        threads = _Threads(run, ModelServer(ordered=True))
        stuck, filled, told = threading.Event(), threading.Event(), threading.Semaphore(0)
        first = [True]

        def callback(receipt: Receipt) -> None:
            if first[0]:
                first[0] = False
                stuck.set()
                for _ in range(callers):
                    told.acquire()

        sender = _sender(run, queue_size=1, on_receipt=callback)

        def fill() -> None:
            sender.submit(_LETTER)
            stuck.wait()
            sender.submit(_LETTER)
            filled.set()

        def call() -> None:
            filled.wait()
            with contextlib.suppress(Closed):
                sender.submit(_LETTER)
            told.release()

        def close() -> None:
            filled.wait()
            sender.close(timeout=None)

        threads.add(fill)
        for _ in range(callers):
            threads.add(call)
        threads.add(close)

    return program


def queue_ended(callers: int) -> Program:
    """The server refuses for good: the queue is emptied, and all who waited for a place in it have one at once."""

    def program(run: Run) -> None:
        faults = Faults(refuse_connects=frozenset(range(9)))
        threads = _Threads(run, ModelServer(faults=faults), allowed=(MailError,))
        run.context.enter_context(no_exit_hook())
        filled, placed = threading.Event(), threading.Semaphore(0)
        first = [True]

        def callback(receipt: Receipt) -> None:
            if first[0]:
                first[0] = False
                for _ in range(callers):
                    placed.acquire()

        sender = ThreadedSender(
            CONFIG,
            workers=1,
            queue_size=callers,
            retry=RetryPolicy(attempts=1, base=0.0),
            rng=random.Random(1),
            on_receipt=callback,
        )
        left = [callers]

        def fill() -> None:
            for _ in range(callers):
                sender.submit(_LETTER)
            filled.set()

        def call() -> None:
            filled.wait()
            sender.submit(_LETTER)
            placed.release()
            left[0] -= 1
            if not left[0]:
                sender.close(timeout=None)

        threads.add(fill)
        for _ in range(callers):
            threads.add(call)

    return program


def no_lane_starts(run: Run) -> None:
    """The interpreter starts no threads any more: `close()` waits for no lane, and the message is told of."""
    threads = _Threads(run, ModelServer(), allowed=(MailError,))

    def refuse(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    run.context.enter_context(mock.patch.object(ThreadPoolExecutor, "submit", refuse))
    sender = _sender(run)

    def act() -> None:
        with contextlib.suppress(Closed):
            sender.submit(_LETTER).result()

    threads.add(act)
    threads.add(lambda: sender.close(timeout=None))


def refused_for_good(run: Run) -> None:
    """The login is refused: that message fails, and the next one at once."""
    run.context.enter_context(mock.patch.dict(_MORE_COMMANDS, {"AUTH": lambda *_: "535 5.7.8 no"}))
    threads = _Threads(run, _Server(*_EXTENSIONS))
    run.context.enter_context(no_exit_hook())
    config = ServerConfig("127.0.0.1", 25, username="user", password="secret", local_hostname="me", max_age=None)
    sender = ThreadedSender(config, workers=1, rng=random.Random(1))

    def act() -> None:
        for _ in range(2):
            begun = time.monotonic()
            with contextlib.suppress(LoginRefused):
                sender.send(_LETTER)
            _on_time(begun, "the refusal")
        sender.close(timeout=None)

    threads.add(act)


# ---------------------------------------------------------------- throttle


def throttled(
    make: Callable[[], Throttle],
    acts: list[Callable[[Throttle], object]],
    check: Callable[[Throttle, list[Any]], object],
) -> Program:
    """Threads use one throttle; `check` gets what their calls returned."""

    def program(run: Run) -> None:
        throttle = make()
        results: list[Any] = []
        for act in acts:
            run.thread(partial(_keep, results, act, throttle))
        run.judge(
            lambda: Verdict(() if run.scheduler.ending or check(throttle, results) else ("wrong number of tokens",))
        )

    return program


def _keep(results: list[Any], act: Callable[[Throttle], object], throttle: Throttle) -> None:
    results.append(act(throttle))


def _drained() -> Throttle:
    throttle = Throttle(3, per=1e9, burst=3)
    while throttle.take() == 0.0:
        pass
    return throttle


def _left(throttle: Throttle) -> int:
    return next(n for n in range(9) if throttle.take() != 0.0)


def acquired_at(throttle: Throttle) -> float:
    begun = time.monotonic()
    throttle.acquire()
    return time.monotonic() - begun


# ---------------------------------------------------------------- the list


def _dialogue(name: str, program: Program, **options: Any) -> Scenario:
    return Scenario(f"SMTP, {name}", program, classes=CLIENT, constant=OWNER, options={**QUIET, **options})


def _deadline(name: str, program: Program) -> Scenario:
    return Scenario(f"deadline of {name}", program)


def _sent(name: str, program: Program, **options: Any) -> Scenario:
    return Scenario(f"sender, {name}", program, classes=SENDER, constant=OWNER, options={**QUIET, **options})


def _throttle(
    name: str, make: Callable[[], Throttle], acts: list[Any], check: Callable[[Throttle, list[Any]], bool]
) -> Scenario:
    return Scenario(f"throttle, {name}", throttled(make, acts, check), classes=(Throttle,), options=QUIET)


def _pool_scenario(name: str, program: Program, **options: Any) -> Scenario:
    return Scenario(name, program, classes=POOL, constant=OWNER, options={**QUIET, **options})


def _pool_locks(name: str, program: Program) -> Scenario:
    """With switch points at locks and sockets only, and not all schedules, for what would take too long otherwise."""
    return Scenario(name, program, options={**QUIET, "limit": 300})


_TWICE: dict[str, Act] = {
    "noop()": lambda c: c.noop(),
    "docmd()": lambda c: c.docmd("NOOP"),
    "ehlo()": lambda c: c.ehlo(),
    "helo()": lambda c: c.helo(),
    "help()": lambda c: c.help(),
    "verify()": lambda c: c.verify("a@b.test"),
    "expn()": lambda c: c.expn("a@b.test"),
    "rset()": lambda c: c.rset(),
    "connect()": lambda c: c.connect("model", 25),
    "starttls()": start_tls,
    "login()": log_in,
    "auth()": authenticate,
    "send()": lambda c: c.send("NOOP\r\n"),
    "is_quiet()": lambda c: c.is_quiet(),
}

_IN_TIME: dict[str, tuple[Act, float]] = {
    "noop()": (lambda c: c.noop(deadline=5), 5),
    "data()": (data_by_deadline, 5),
    "within()": (within, 5),
    "starttls()": (lambda c: c.starttls(context=_Context(), deadline=5), 5),  # type: ignore[arg-type]
    "login()": (lambda c: c.login("user", "secret", deadline=5), 5),
    "sendmail()": (lambda c: c.sendmail("a@here.test", ["b@there.test"], _MESSAGE, deadline=5), 5),
    "transact()": (lambda c: c.transact(_LETTER, deadline=5), 5),
    "send_message()": (send_message, 5),
    "quit()": (lambda c: c.quit(deadline=1), 1),
    "quit(), by default": (lambda c: c.quit(), 2),
    "leaving": (leave, 2),
}

_BARE: dict[str, Callable[[_Bare], list[Callable[[], object]]]] = {
    "closed while two wait for one place": lambda d: [partial(d.add, 0), partial(d.add, 1), d.shut],
    "a place comes free by cancel": lambda d: [d.add_both, d.take_back],
    "closed beside a call off": lambda d: [partial(d.add, 0), d.call_off, d.shut, partial(d.add, 1)],
}

SCENARIOS = [
    *(_dialogue(f"{name} from two threads", dialogue(act, act)) for name, act in _TWICE.items()),
    _dialogue(
        "greeted once by two threads", dialogue(*2 * [lambda c: c.ehlo_or_helo_if_needed()], greeted=False, ehlos=1)
    ),
    _dialogue("sendmail() from two threads at first", dialogue(send, send, greeted=False, ehlos=1)),
    _dialogue("putcmd() from two threads", dialogue(*2 * [lambda c: c.putcmd("noop")], allowed=(Reentered,))),
    _dialogue("command and reply beside is_quiet()", dialogue(ask, lambda c: c.is_quiet(), allowed=(Reentered,))),
    _dialogue("a transaction by hand beside is_quiet()", dialogue(by_hand, lambda c: c.is_quiet())),
    _dialogue("sendmail() beside is_quiet()", dialogue(send, lambda c: c.is_quiet())),
    _dialogue("rset() beside a transaction by hand", dialogue(lambda c: c.rset(), send_while_open)),
    _dialogue("has_extn() beside a new connection", dialogue(reconnect, offered)),
    _dialogue("sendmail() beside close()", dialogue(send, lambda c: c.close(), allowed=(NotConnected,))),
    _dialogue("leaving beside one who holds it", dialogue(hold, leave, allowed=(NotConnected,)), timeouts=1),
    _dialogue("quit() beside one who holds it", dialogue(hold, SMTP.quit, allowed=(NotConnected,)), timeouts=1),
    *(
        _dialogue(f"a call from within {name}", intruding(act))
        for name, act in {
            "data()": by_hand,
            "transact()": send,
            "starttls()": start_tls,
            "login()": log_in,
            "auth()": authenticate,
        }.items()
    ),
    *(_deadline(f"SMTP.{name}", in_time(act, seconds)) for name, (act, seconds) in _IN_TIME.items()),
    _deadline("SMTP.connect()", in_time(lambda c: c.connect("model", 25, deadline=5), 5, dialled=False)),
    _deadline("Client.connect()", in_time(lambda c: c.connect(deadline=5), 5, dialled=False, whole=True)),
    _deadline("Client.noop()", in_time(lambda c: c.noop(deadline=5), 5, whole=True)),
    _deadline("Client.send()", in_time(lambda c: c.send(_LETTER, deadline=5), 5, whole=True)),
    Scenario("Client, connect() from two threads", clients(Client.connect, Client.connect), None, False, CLIENT, OWNER),
    Scenario("Client, noop() from two threads", clients(Client.noop, Client.noop), None, False, CLIENT, OWNER),
    Scenario("fork, two threads come first", forked, classes=(SMTP, Client)),
    Scenario("idle watch closes", watched_idle, options=QUIET),
    Scenario("idle watch of a client stops", watch_stopped(lambda: Client(CONFIG)), options=QUIET),
    Scenario("idle watch of a pool stops", watch_stopped(lambda: ClientPool(CONFIG)), options=QUIET),
    _pool_scenario("pool of 1, 2x1 beside stats()", counted(1, 2)),
    _pool_scenario("pool of 1, 2x1 beside idle close", pooled(1, 2, 1, beside=idle_close)),
    _pool_scenario("pool of 1, 1x2 beside idle close", pooled(1, 1, 2, beside=idle_close)),
    _pool_scenario("pool of 1, close() beside a lease", closed_beside_leases(1)),
    _pool_locks("pool of 1, two close() beside a lease", closed_beside_leases(1, closers=2)),
    _pool_locks("pool of 2, close() beside two leases", closed_beside_leases(2)),
    _pool_scenario("pool of 1, closed while a lease lasts", told_at_once),
    _pool_scenario("pool of 2, a dial fails and the gate opens again", gate_reopens),
    _pool_locks("pool of 1, a waiter is interrupted and close()", interrupted(1)),
    _pool_locks("pool of 1, a waiter is interrupted and two close()", interrupted(2)),
    Scenario(
        "sender, send() gives up in the queue", gives_up_in_the_queue, classes=SENDER, constant=OWNER, options=QUIET
    ),
    Scenario("sender, send() drops what hangs", drops_what_hangs, classes=SENDER, constant=OWNER, options=QUIET),
    _sent("closed by two threads", closed_twice),
    *(
        Scenario(f"sender, bare, {name}", bare(act), classes=SENDER, constant=OWNER, options=QUIET)
        for name, act in _BARE.items()
    ),
    _sent("one message after the other", sent(one_after_the_other)),
    _sent("two messages, closed at once", sent(closed_at_once)),
    _sent("a message after a failed dial", sent(after_a_failure, server=_no_first_dial, retry=RetryPolicy(1, 0.0))),
    _sent("cancelled while it is closed", sent(submit_and_close, cancel)),
    _sent("cancelled while it is closed, and the throttle says wait", sent(submit_and_close, cancel, throttle=_paused)),
    _sent(
        "put off while it is closed",
        sent(put_off_while_closing, close_without_drain, server=lambda: _Later(ordered=True)),
    ),
    _sent("one message beside stats()", sent(submit_and_close, look)),
    _sent("two lanes side by side", side_by_side(2), limit=300),
    _sent("three lanes side by side", side_by_side(3), limit=300),
    _sent("closed while a caller waits for a place", waiting_for_a_place(1), limit=300),
    _sent("closed while two callers wait for a place", waiting_for_a_place(2), limit=300),
    _sent("a caller waits for a place, the server is dead", queue_ended(1), limit=300),
    _sent("two callers wait for a place, the server is dead", queue_ended(2), limit=300),
    _sent("no lane can be started", no_lane_starts),
    _sent("refused for good", refused_for_good),
    _throttle(
        "two takes of one token", lambda: Throttle(1, per=10), 2 * [Throttle.take], lambda t, got: got.count(0.0) == 1
    ),
    _throttle("two tokens given back", _drained, 2 * [Throttle.give_back], lambda t, got: _left(t) == 2),
    _throttle(
        "two pauses",
        lambda: Throttle(),
        [lambda t: t.pause(10), lambda t: t.pause(20)],
        lambda t, got: t.take() > 15,
    ),
    _throttle(
        "three wait for a token",
        lambda: Throttle(1, per=10),
        3 * [acquired_at],
        lambda t, got: [round(seconds) for seconds in sorted(got)] == [0, 10, 20],
    ),
]
