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
    MailError,
    NotConnected,
    Reentered,
    RetryPolicy,
    ThreadedSender,
    Throttle,
    TimedOut,
)

from .scenarios import (
    CLIENT,
    CONFIG,
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
    """Knows a few more commands, and says nothing more once it is `mute`, or was sent a MAIL and is `mute_from_mail`."""

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

        self._stack.enter_context(mock.patch.object(Connection, "reply", reply))
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
    run.context.enter_context(mock.patch.object(os, "getpid", lambda: pid[0]))
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
    return ThreadedSender(CONFIG, workers=1, retry=RetryPolicy(base=0.0), rng=random.Random(1), **settings)


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


# ---------------------------------------------------------------- throttle


def throttled(make: Callable[[], Throttle], acts: list[Callable[[Throttle], object]], check: Callable[[Throttle, list[Any]], object]) -> Program:
    """Threads use one throttle; `check` gets what their calls returned."""

    def program(run: Run) -> None:
        throttle = make()
        results: list[Any] = []
        for act in acts:
            run.thread(partial(_keep, results, act, throttle))
        run.judge(lambda: Verdict(() if run.scheduler.ending or check(throttle, results) else ("wrong number of tokens",)))

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


def _throttle(name: str, make: Callable[[], Throttle], acts: list[Any], check: Callable[[Throttle, list[Any]], bool]) -> Scenario:
    return Scenario(f"throttle, {name}", throttled(make, acts, check), classes=(Throttle,), options=QUIET)


def _pool_scenario(name: str, program: Program, **options: Any) -> Scenario:
    return Scenario(name, program, classes=POOL, constant=OWNER, options={**QUIET, **options})


def _pool_locks(name: str, program: Program) -> Scenario:
    """With switch points at locks and sockets only, for what would take too long otherwise."""
    return Scenario(name, program, options=QUIET)


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

SCENARIOS = [
    *(_dialogue(f"{name} from two threads", dialogue(act, act)) for name, act in _TWICE.items()),
    _dialogue("greeted once by two threads", dialogue(*2 * [lambda c: c.ehlo_or_helo_if_needed()], greeted=False, ehlos=1)),
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
        for name, act in {"data()": by_hand, "transact()": send, "starttls()": start_tls, "login()": log_in,
                          "auth()": authenticate}.items()
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
    _pool_scenario("pool of 1, close() beside a lease", closed_beside_leases(1)),
    _pool_locks("pool of 1, two close() beside a lease", closed_beside_leases(1, closers=2)),
    _pool_locks("pool of 2, close() beside two leases", closed_beside_leases(2)),
    _pool_scenario("pool of 1, closed while a lease lasts", told_at_once),
    _pool_scenario("pool of 2, a dial fails and the gate opens again", gate_reopens),
    _pool_locks("pool of 1, a waiter is interrupted and close()", interrupted(1)),
    _pool_locks("pool of 1, a waiter is interrupted and two close()", interrupted(2)),
    Scenario("sender, send() gives up in the queue", gives_up_in_the_queue, classes=SENDER, constant=OWNER, options=QUIET),
    Scenario("sender, send() drops what hangs", drops_what_hangs, classes=SENDER, constant=OWNER, options=QUIET),
    _throttle("two takes of one token", lambda: Throttle(1, per=10), 2 * [Throttle.take], lambda t, got: got.count(0.0) == 1),
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
