"""A total deadline holds, whatever the server, the resolver or another thread does; and what makes progress is not cut.

Every call here is made as a user makes it, and must be over by its deadline and two seconds, with the right error and a
true outcome. The waits that neighbours cover (the lock, the lease, a full queue) are named in docs/hazards.md.
"""

from __future__ import annotations

import concurrent.futures
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from tests.support.mail import envelope, in_threads
from threadmail import (
    SMTP,
    Aborted,
    Client,
    ClientPool,
    ConnectTimedOut,
    Envelope,
    HostNotFound,
    MailError,
    Outcome,
    Phase,
    Receipt,
    Security,
    ServerConfig,
    ThreadedSender,
    TimedOut,
    Timeouts,
    TLSFailed,
)
from threadmail._connection import kept_connection as _kept
from threadmail._runtime.deadline import Deadline
from threadmail._transport import lookup as _lookup
from threadmail.testing import (
    CaptureServer,
    Drip,
    Expect,
    Pause,
    Peer,
    Reply,
    Script,
    ScriptedServer,
    Serve,
    Signal,
    Stall,
    Step,
    TestCA,
    answer,
    ehlo,
    greeting,
)

DEADLINE = 0.2
GRACE = 2.0

T = TypeVar("T")
Send = Callable[[ServerConfig, Envelope, float], Receipt]


def by_client(config: ServerConfig, message: Envelope, deadline: float) -> Receipt:
    with Client(config) as client:
        return in_time(lambda: client.send(message, deadline=deadline), deadline)


def by_pool(config: ServerConfig, message: Envelope, deadline: float) -> Receipt:
    with ClientPool(config) as pool:
        return in_time(lambda: pool.send(message, deadline=deadline), deadline)


def by_sender(config: ServerConfig, message: Envelope, deadline: float) -> Receipt:
    with ThreadedSender(config, workers=1) as sender:
        try:
            return in_time(lambda: sender.send(message, deadline=deadline), deadline)
        finally:
            sender.close(drain=False, timeout=0.0)


def by_batch(config: ServerConfig, message: Envelope, deadline: float) -> Receipt:
    with ThreadedSender(config, workers=1) as sender:
        try:
            (receipt,) = in_time(lambda: sender.send_all([message], deadline=deadline), deadline)
            return receipt.raise_for_failure()
        finally:
            sender.close(drain=False, timeout=0.0)


WAYS: list[Send] = [by_client, by_pool, by_sender, by_batch]


def in_time(call: Callable[[], T], deadline: float) -> T:
    """What `call` comes to, which must be over by its deadline."""
    began = time.monotonic()
    try:
        return call()
    finally:
        took = time.monotonic() - began
        if took > deadline + GRACE:
            pytest.fail(f"the call took {took:.1f} s, with a deadline of {deadline:g} s")


def config_of(server: Any, **settings: Any) -> ServerConfig:
    return ServerConfig(server.host, server.port, local_hostname="test", **settings)


def stopped_at(
    steps: Script,
    how: Step,
    send: Send,
    message: Envelope,
    *,
    kind: type[MailError] = TimedOut,
    server: dict[str, Any] | None = None,
    **settings: Any,
) -> MailError:
    """The error of a call whose server takes `steps` and then stops.

    Where the machine was too busy to get so far before the deadline, there is another try with more time.
    """
    for deadline in (DEADLINE, 4 * DEADLINE, 16 * DEADLINE):
        reached = threading.Event()
        try:
            with ScriptedServer([*steps, Signal(reached), how], **(server or {})) as running:
                try:
                    with pytest.raises(MailError) as info:
                        send(config_of(running, **settings), message, deadline)
                finally:
                    if isinstance(how, Unread):
                        how.over.set()
        except AssertionError:  # of a script that went on to expect something; in_time() has an error of its own
            if reached.is_set():
                raise
        if reached.is_set():
            assert isinstance(info.value, kind)
            return info.value
        if isinstance(how, Unread):
            how = Unread()
    pytest.fail("the machine is too busy for this test")


# ---------------------------------------------------------------- the server


OPEN: Script = [greeting(), ehlo("AUTH PLAIN")]
IN: Script = [*OPEN, answer("AUTH", "235 ok")]
ENDLESS = b"250-" + b"x" * 5000 + b"\r\n"

#: Where the server stops answering: the steps until then, what the error says of the phase, and what became of it.
STAGES: dict[str, tuple[Script, Phase, Outcome]] = {
    "greeting": ([], Phase.CONNECT, Outcome.NOT_SENT),
    "EHLO": ([greeting(), Expect("EHLO")], Phase.CONNECT, Outcome.NOT_SENT),
    "AUTH": ([*OPEN, Expect("AUTH")], Phase.AUTH, Outcome.NOT_SENT),
    "MAIL": ([*IN, Expect("MAIL")], Phase.MAIL, Outcome.NOT_SENT),
    "RCPT": ([*IN, answer("MAIL", "250 ok"), Expect("RCPT")], Phase.RCPT, Outcome.NOT_SENT),
    "DATA": ([*IN, Serve(until="DATA")], Phase.DATA, Outcome.NOT_SENT),
    "final reply": ([*IN, Serve(until=".")], Phase.FINAL, Outcome.IN_DOUBT),
}


@pytest.mark.parametrize(
    ("stage", "how"),
    [(stage, Stall()) for stage in STAGES]
    + [(stage, Drip(ENDLESS, 0.02)) for stage in ("EHLO", "MAIL", "final reply")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_deadline_holds_at_every_stage(stage: str, how: Step) -> None:
    """Silence, and a reply that comes a byte at a time: either way the call ends when it was told to."""
    steps, phase, outcome = STAGES[stage]
    error = stopped_at(steps, how, by_client, envelope(), username="ann", password="secret")
    assert (error.phase, error.outcome) == (phase, outcome)
    assert error.receipt is not None
    assert error.receipt.outcome is outcome


@pytest.mark.parametrize("send", WAYS[1:], ids=lambda f: f.__name__)
@pytest.mark.parametrize("stage", ["greeting", "MAIL", "final reply"])
def test_it_holds_through_pool_and_sender(send: Send, stage: str) -> None:
    """The same promise at each level: waiting for a lease, a lane or a receipt adds nothing to it."""
    steps, _, outcome = STAGES[stage]
    error = stopped_at(steps, Stall(), send, envelope(), username="ann", password="secret")
    assert error.outcome is outcome


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_it_holds_in_a_tls_handshake_that_stalls(security: Security) -> None:
    """A server that takes the ClientHello and says no more."""
    before: Script = [greeting(), ehlo("STARTTLS"), answer("STARTTLS", "220 go")]
    steps = before if security is Security.STARTTLS else []
    error = stopped_at(steps, Stall(), by_client, envelope(), kind=TLSFailed, security=security)
    assert "in time" in str(error)
    assert (error.phase, error.outcome, error.transient) == (Phase.TLS, Outcome.NOT_SENT, True)


class Unread(Step):
    """Read nothing, until the client has given up."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def play(self, peer: Peer) -> None:
        peer.wait(self.over, 20.0)


BIG = Envelope("ann@x.test", "bob@x.test", b"Subject: big\r\n\r\n" + b"0123456789abcde\r\n" * (1 << 20))  # 17 MiB


UNTIL_354: Script = [Serve(until="DATA"), Reply("354 go")]


@pytest.mark.parametrize("send", WAYS, ids=lambda f: f.__name__)
def test_it_holds_against_a_server_that_does_not_read(send: Send) -> None:
    """The kernel's buffers are full and the content is half out: surely nobody has it."""
    error = stopped_at(UNTIL_354, Unread(), send, BIG)
    assert (error.phase, error.outcome) == (Phase.CONTENT, Outcome.NOT_SENT)


def test_it_holds_against_a_server_that_does_not_read_under_tls() -> None:
    """A TLS record is written whole or not at all, and not waited for any longer."""
    ca = TestCA()
    error = stopped_at(
        *(UNTIL_354, Unread(), by_client, BIG),
        server={"tls": "tls", "ca": ca},
        security=Security.TLS,
        ssl_context=ca.client_context(),
    )
    assert (error.phase, error.outcome) == (Phase.CONTENT, Outcome.NOT_SENT)


class Slowly(Step):
    """Read `total` bytes at a steady pace that takes about `seconds`."""

    def __init__(self, total: int, seconds: float) -> None:
        self.total, self.pause = total, seconds / 40

    def play(self, peer: Peer) -> None:
        left = self.total
        while left:
            peer.sleep(self.pause)
            left -= len(peer.read_bytes(min(left, -(-self.total // 40)), 10.0))


def test_large_mail_that_makes_progress_is_not_cut() -> None:
    """The time-out is for each block: content that takes several times as long is sent all the same."""
    seconds = 2.4
    timeouts = Timeouts(content=seconds / 4)
    slowly = Slowly(len(BIG.content) + 3, seconds)  # and the lone dot
    script = [Serve(until="DATA"), Reply("354 go"), slowly, Reply("250 2.0.0 ok"), Serve()]
    with ScriptedServer(script) as server, Client(config_of(server, timeouts=timeouts)) as client:
        began = time.monotonic()
        assert client.send(BIG, deadline=60.0).outcome is Outcome.SENT
        assert time.monotonic() - began > 2 * seconds / 4, "the server was too fast to show anything"


def test_a_farewell_on_the_way_does_not_outlast_the_deadline() -> None:
    """A worn connection is replaced, and its server takes its time over QUIT: a quarter of what is left at most."""
    with ScriptedServer([Serve(until="QUIT"), Stall()], [Serve()]) as server:
        with Client(config_of(server, max_messages=1)) as client:
            client.send(envelope("a"))
            # Not the two seconds that a farewell may take otherwise.
            assert client.send(envelope("b"), deadline=1.5).outcome is Outcome.SENT


def test_a_refusal_stays_one_though_the_server_then_stalls() -> None:
    """The RSET behind a refusal is housekeeping: it is bounded, and what it meets changes nothing."""
    steps: Script = [*OPEN, answer("MAIL", "550 5.7.1 no"), Expect("RSET")]
    error = stopped_at(steps, Stall(), by_client, envelope(), kind=MailError)
    assert "550 5.7.1" in str(error)
    assert (error.phase, error.transient) == (Phase.MAIL, False)


# ---------------------------------------------------------------- the resolver

NAME = "mail.example.test"


class Resolver:
    """In the place of `socket.getaddrinfo`: figures are read as ever, and for names it blocks until `go`."""

    def __init__(self) -> None:
        self.real = socket.getaddrinfo
        self.asked: list[str] = []
        self.asking = threading.Event()
        self.go = threading.Event()
        self.found: list[Any] = []

    def __call__(self, host: str, *args: Any, **kwargs: Any) -> Any:
        if host != NAME:
            return self.real(host, *args, **kwargs)
        if kwargs.get("flags", 0) & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no figures")
        self.asked.append(host)
        self.asking.set()
        assert self.go.wait(20.0), "nobody let the resolver go"
        if not self.found:
            raise socket.gaierror(socket.EAI_AGAIN, "the name server does not answer")
        return self.found

    def let_go(self, *hosts: str) -> threading.Thread:
        """When somebody asks, answer, from another thread."""

        def run() -> None:
            assert self.asking.wait(10.0)
            self.answers(*hosts)

        thread = threading.Thread(target=run, name="lets-go")
        thread.start()
        return thread

    def answers(self, *hosts: str) -> None:
        self.found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 25)) for host in hosts]
        self.go.set()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    slow = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    yield slow
    slow.go.set()
    for thread in threading.enumerate():
        if thread.name == "threadmail-lookup":
            thread.join(10.0)
    assert _lookup._under_way == {}


@pytest.mark.parametrize("send", WAYS, ids=lambda f: f.__name__)
def test_it_holds_against_a_resolver_that_hangs(resolver: Resolver, send: Send) -> None:
    """getaddrinfo can be neither interrupted nor told how long to take."""
    with pytest.raises(TimedOut) as info:
        send(ServerConfig(NAME, 25, local_hostname="test"), envelope(), DEADLINE)
    assert info.value.outcome is Outcome.NOT_SENT
    assert info.value.transient


def test_the_connect_timeout_bounds_the_lookup_without_a_deadline(resolver: Resolver) -> None:
    """As legacy code has it: `timeout=` is all it says."""
    with pytest.raises(ConnectTimedOut, match=NAME):
        in_time(lambda: SMTP(NAME, 25, "test", timeout=DEADLINE), DEADLINE)


def test_lookups_that_were_given_up_do_not_pile_up(resolver: Resolver) -> None:
    """Ten calls give up; one thread asks, and its answer, when it comes, is for whoever asks then."""
    for _ in range(10):
        with Client(ServerConfig(NAME, 25, local_hostname="test")) as client, pytest.raises(TimedOut):
            client.send(envelope(), deadline=0.02)
    assert resolver.asked == [NAME]
    assert [t.name for t in threading.enumerate()].count("threadmail-lookup") == 1


def test_threads_that_ask_at_once_share_the_answer(resolver: Resolver) -> None:
    """One question on the network for eight clients that connect; each gets the answer, and has its own connection."""
    with CaptureServer() as server:
        config = ServerConfig(NAME, server.port, local_hostname="test")

        def send(i: int) -> None:
            with Client(config) as client:
                assert client.send(envelope(f"m{i}"), deadline=10.0).outcome is Outcome.SENT

        answering = resolver.let_go(server.host)
        assert in_threads(8, send) == []
        answering.join(10.0)
        assert len(server.wait_for(8)) == 8
    assert 1 <= len(resolver.asked) <= 8  # who asks after the answer asks anew


def test_an_error_of_the_resolver_reaches_everybody_who_waits(resolver: Resolver) -> None:
    """Each as its own object, for each thread adds its own traceback."""
    errors: list[BaseException] = []

    def connect(i: int) -> None:
        try:
            SMTP(NAME, 25, "test", timeout=10.0)
        except HostNotFound as error:
            errors.append(error)

    answering = resolver.let_go()
    assert in_threads(4, connect) == []
    answering.join(10.0)
    assert len(errors) == 4
    assert all(isinstance(e, HostNotFound) and e.transient for e in errors)
    assert len({id(e.__cause__) for e in errors}) == 4


@pytest.mark.parametrize("kind", [SMTP, Client])
def test_abort_ends_a_lookup_at_once(resolver: Resolver, kind: Any) -> None:
    """From another thread, without a lock, though the resolver goes on for as long as it likes."""
    ended: list[BaseException] = []
    patient = ServerConfig(NAME, 25, local_hostname="test", timeouts=Timeouts.all(30.0))
    client: Any = SMTP(local_hostname="test", timeout=30.0) if kind is SMTP else Client(patient)

    def run() -> None:
        try:
            if kind is SMTP:
                client.connect(NAME, 25)
            else:
                client.send(envelope())
        except BaseException as exc:  # noqa: BLE001 - looked at below
            ended.append(exc)

    thread = threading.Thread(target=run, name="connects")
    thread.start()
    assert resolver.asking.wait(10.0)
    began = time.monotonic()
    client.abort()
    thread.join(10.0)
    assert time.monotonic() - began < GRACE
    client.close()
    (error,) = ended
    assert isinstance(error, Aborted)
    assert (error.phase, error.outcome) == (Phase.CONNECT, Outcome.NOT_SENT)


def test_an_abort_during_the_lookup_leaves_the_client_usable(resolver: Resolver) -> None:
    """The next call asks again, or gets the answer that the last one did not wait for."""
    with CaptureServer() as server:
        config = ServerConfig(NAME, server.port, local_hostname="test")
        with Client(config) as client:
            with pytest.raises(TimedOut):
                client.send(envelope("a"), deadline=0.05)
            resolver.answers(server.host)
            assert client.send(envelope("b"), deadline=10.0).outcome is Outcome.SENT


def test_figures_and_this_machine_need_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can hang there, so nothing is paid for it."""
    started: list[str] = []
    start = threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    with CaptureServer() as server:
        monkeypatch.setattr(threading.Thread, "start", counted)
        for host in ("127.0.0.1", "localhost"):
            SMTP(host, server.port, "test", timeout=10.0).quit()
    assert "threadmail-lookup" not in started


def test_where_no_thread_can_be_started_the_name_is_resolved_all_the_same(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12 starts none when the interpreter ends, and a sender may still have mail to send then."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with CaptureServer() as server:
        resolver.answers(server.host)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            SMTP(NAME, server.port, "test", timeout=10.0).quit()
    assert resolver.asked == [NAME]


def test_several_addresses_share_the_deadline(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the connect timeout, and all of them no more than is left."""
    given: list[float] = []

    def dial(place: tuple[str, int], timeout: float, source: Any) -> socket.socket:
        given.append(timeout)
        threading.Event().wait(timeout)  # as a host that drops every packet would have it
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", dial)
    resolver.answers("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")
    client = SMTP(local_hostname="test", timeouts=Timeouts(connect=0.2))
    with pytest.raises(ConnectTimedOut):
        in_time(lambda: client.connect(NAME, 25, deadline=0.5), 0.5)
    assert 2 <= len(given) <= 3
    assert sum(given) <= 0.51
    given.clear()
    with pytest.raises(ConnectTimedOut):
        client.connect(NAME, 25)
    assert len(given) == 4, "without a deadline each address is tried"


def test_the_next_address_is_tried_where_one_refuses(resolver: Resolver) -> None:
    """As socket.create_connection does it."""
    with CaptureServer() as server:
        resolver.answers("127.0.0.2", server.host)
        client = SMTP(NAME, server.port, "test", timeout=10.0)
        assert client.sock is not None
        assert client.sock.getpeername()[0] == server.host
        client.quit()


def test_this_machines_own_name_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the resolver is dead, EHLO says the address literal that smtplib falls back to; later it says the name."""
    go = threading.Event()

    def getfqdn() -> str:
        assert go.wait(20.0)
        return "me.example.test"

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    _lookup._own_name.cache_clear()
    try:
        with ScriptedServer() as server:
            config = ServerConfig(server.host, server.port)
            with Client(config) as client, pytest.raises(TimedOut):
                by_client(config, envelope("a"), DEADLINE)
            monkeypatch.setattr(_lookup, "OWN_NAME", 0.05)
            assert by_client(config, envelope("b"), 10.0).outcome is Outcome.SENT
            go.set()
            while _lookup._under_way:
                _lookup.Waiter().ask("the name of this machine", _lookup._own_name, Deadline.after(10.0))
            assert by_client(config, envelope("c"), 10.0).outcome is Outcome.SENT
            client.close()
            said = [line for lines in server.received for line in lines if line.startswith("ehlo")]
    finally:
        _lookup._own_name.cache_clear()
    assert said[-2:] == ["ehlo [127.0.0.1]", "ehlo me.example.test"]


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Nobody says this machine's own name, and nobody gives up, until `go`."""
    asking, go = threading.Event(), threading.Event()

    def getfqdn() -> str:
        asking.set()
        assert go.wait(30.0)
        return "me.example.test"

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    monkeypatch.setattr(_lookup, "OWN_NAME", 60.0)
    _lookup._own_name.cache_clear()
    yield asking, go
    go.set()
    for thread in threading.enumerate():
        if thread.name == "threadmail-lookup":
            thread.join(10.0)
    assert _lookup._under_way == {}
    _lookup._own_name.cache_clear()


@pytest.mark.parametrize("how", ["abort", "close"])
def test_the_wait_for_this_machines_own_name_is_called_off_too(
    how: str, nameless: tuple[threading.Event, threading.Event]
) -> None:
    """It was waited for, up to five seconds, whoever had ended the call."""
    asking, go = nameless
    ended: list[BaseException | Receipt] = []
    with CaptureServer() as server:
        client = Client(ServerConfig(server.host, server.port))

        def run() -> None:
            try:
                ended.append(client.send(envelope()))
            except BaseException as exc:  # noqa: BLE001 - looked at below
                ended.append(exc)

        thread = threading.Thread(target=run, name="connects")
        thread.start()
        assert asking.wait(10.0)
        client.abort() if how == "abort" else client.close(timeout=0.0)
        thread.join(10.0)
        assert not thread.is_alive()
        (error,) = ended
        assert isinstance(error, Aborted)
        assert (error.phase, error.outcome) == (Phase.CONNECT, Outcome.NOT_SENT)
        assert server.connections_opened == 0
        if how == "abort":
            go.set()
            assert client.send(envelope(), deadline=10.0).outcome is Outcome.SENT
            client.close()


def test_an_abort_as_that_wait_begins_is_not_lost(
    nameless: tuple[threading.Event, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes before anybody else can reach what waits."""
    made: list[object] = []

    class Beginning(_lookup.Waiter):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)
            client.abort()

    monkeypatch.setattr(_kept, "Waiter", Beginning)
    with CaptureServer() as server, Client(ServerConfig(server.host, server.port)) as client:
        with pytest.raises(Aborted) as caught:
            client.send(envelope(), deadline=20.0)
        assert (caught.value.phase, caught.value.outcome, len(made)) == (Phase.CONNECT, Outcome.NOT_SENT, 1)


# ---------------------------------------------------------------- another thread


@contextmanager
def a_call_under_way(send: Callable[[], object]) -> Iterator[None]:
    """Another thread sends, on a server that has read the message and does not answer."""
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(send())
        except MailError as error:
            ended.append(error)

    thread = threading.Thread(target=run, name="under-way")
    thread.start()
    try:
        yield
    finally:
        thread.join(10.0)
        assert not thread.is_alive()


def test_it_holds_while_another_thread_waits_for_its_reply() -> None:
    """The lock is held over network I/O that may take ten minutes; the other's message is not harmed."""
    read, go = threading.Event(), threading.Event()
    with ScriptedServer([Serve(until="."), Signal(read), Pause(go), Serve()]) as server:
        with Client(config_of(server)) as client:
            with a_call_under_way(lambda: client.send(envelope("a"))):
                assert read.wait(10.0)
                for call in (
                    lambda: client.send(envelope("b"), deadline=DEADLINE),
                    lambda: client.noop(deadline=DEADLINE),
                    lambda: client.connect(deadline=DEADLINE),
                ):
                    with pytest.raises(TimedOut) as info:
                        in_time(call, DEADLINE)
                    assert info.value.outcome is Outcome.NOT_SENT
                go.set()
    assert len(server.messages) == 1


def test_it_holds_while_others_lease_every_client() -> None:
    """With the pool at its bound, a message waits for a lease no longer than for anything else."""
    read, go = threading.Event(), threading.Event()
    with ScriptedServer([Serve(until="."), Signal(read), Pause(go), Serve()]) as server:
        with ClientPool(config_of(server), max_size=1) as pool:
            with a_call_under_way(lambda: pool.send(envelope("a"))):
                assert read.wait(10.0)
                with pytest.raises(TimedOut, match="no client of the pool came free") as info:
                    in_time(lambda: pool.send(envelope("b"), deadline=DEADLINE), DEADLINE)
                assert info.value.outcome is Outcome.NOT_SENT
                go.set()
    assert len(server.messages) == 1


def test_it_holds_behind_a_full_queue_and_busy_lanes() -> None:
    """send() and send_all() end in time, and what is theirs is taken back; the others' messages go their way."""
    read, go = threading.Event(), threading.Event()
    with ScriptedServer([Serve(until="."), Signal(read), Pause(go), Serve()]) as server:
        with ThreadedSender(config_of(server), workers=1, queue_size=1) as sender:
            first = sender.submit(envelope("a"))
            assert read.wait(10.0)
            with pytest.raises(TimedOut):  # waits in the queue
                in_time(lambda: sender.send(envelope("b"), deadline=DEADLINE), DEADLINE)
            second = sender.submit(envelope("c"))
            with pytest.raises(TimedOut, match="place in the queue"):
                in_time(lambda: sender.send(envelope("d"), deadline=DEADLINE), DEADLINE)
            report = in_time(lambda: sender.send_all([envelope("e"), envelope("f")], deadline=DEADLINE), DEADLINE)
            assert [r.outcome for r in report] == [Outcome.NOT_SENT] * 2
            go.set()
            assert [f.result(10.0).outcome for f in (first, second)] == [Outcome.SENT] * 2
    assert len(server.messages) == 2


def test_who_waits_for_a_future_waits_until_its_deadline() -> None:
    """Though every lane is busy with a server that stalls, and none looks at the queue. Others keep their place."""
    read, go = threading.Event(), threading.Event()
    with ScriptedServer([Serve(until="."), Signal(read), Pause(go), Serve()]) as server:
        with ThreadedSender(config_of(server), workers=1) as sender:
            first = sender.submit(envelope("a"))
            assert read.wait(10.0)
            patient = sender.submit(envelope("b"))
            hasty = [sender.submit(envelope(name), deadline=DEADLINE) for name in "cd"]
            with pytest.raises(TimedOut, match="before the message was on the wire") as info:
                in_time(lambda: hasty[0].result(60.0), DEADLINE)
            assert info.value.outcome is Outcome.NOT_SENT
            assert isinstance(in_time(hasty[1].exception, DEADLINE), TimedOut)
            with pytest.raises(concurrent.futures.TimeoutError):
                patient.result(0.01)
            assert sender.stats().queued == 1
            go.set()
            assert [f.result(10.0).outcome for f in (first, patient)] == [Outcome.SENT] * 2
    assert len(server.messages) == 2


def test_a_deadline_that_has_passed_dials_nobody() -> None:
    """Nothing is begun that cannot be ended."""
    with ScriptedServer() as server, Client(config_of(server)) as client:
        with pytest.raises(TimedOut):
            client.send(envelope(), deadline=0.0)
        assert server.connections == 0
