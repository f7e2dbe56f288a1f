"""A kept connection: who is asked before a dial, what the old one may cost, and who may call in the middle."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import pytest

from tests.connection.test_opening import Clock, clock
from tests.support.mail import envelope
from threadmail import (
    SMTP,
    Aborted,
    BadReply,
    Client,
    Closed,
    ConnectFailed,
    ConnectionLost,
    ConnectionRefused,
    DataRefused,
    GreetingRefused,
    MailError,
    Outcome,
    Phase,
    Receipt,
    Reentered,
    ServerConfig,
    TimedOut,
)
from threadmail._connection import kept_connection as _kept
from threadmail._runtime.deadline import NEVER
from threadmail._runtime.life import Life
from threadmail.testing import CaptureServer, Drop, Pause, Reply, Script, ScriptedServer, Serve, Signal, Stall

__all__ = ["clock"]  # a fixture


def config_of(server: ScriptedServer | CaptureServer, **settings: Any) -> ServerConfig:
    return ServerConfig(server.host, server.port, local_hostname="me.test", **settings)


# ---------------------------------------------------------------- who is asked before a dial


class Owner:
    """Of several clients of one server: says whether it may be dialled, and is told what came of it."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.forbids: BaseException | None = None

    def client(self, config: ServerConfig) -> Client:
        return Client(config, before_dial=self.before, after_dial=self.after)

    def before(self) -> None:
        self.told.append("asked")
        if self.forbids is not None:
            raise self.forbids

    def after(self, error: MailError | None) -> None:
        self.told.append(error if error is None else type(error))


def test_each_dial_is_asked_for_and_told_of() -> None:
    """Also the one in the middle of an attempt, where the kept connection proves stale."""
    owner = Owner()
    with ScriptedServer([Serve(until="MAIL", count=2), Drop()], [Serve()]) as server:
        with owner.client(config_of(server)) as client:
            client.send(envelope("a"))
            assert owner.told == ["asked", None]
            client.send(envelope("b"))
            assert owner.told == ["asked", None] * 2
            client.send(envelope("c"))
            client.connect()
        assert owner.told == ["asked", None] * 2
        assert server.connections == 2


def test_what_forbids_a_dial_says_nothing_of_a_mail() -> None:
    """Whatever its owner raises: an error, say, that he has kept of another message."""
    owner = Owner()
    owner.forbids = DataRefused(554, b"5.7.1 no", phase=Phase.FINAL)
    with ScriptedServer() as server, owner.client(config_of(server)) as client:
        with pytest.raises(DataRefused) as info:
            client.send(envelope("a"))
        assert info.value.phase is Phase.CONNECT
        assert client._answers == 0


@pytest.mark.parametrize("stale", [False, True], ids=["first", "stale"])
def test_a_dial_that_is_forbidden_is_not_made(stale: bool) -> None:
    """The call ends with what forbade it, nobody is told of a dial, and the client stays usable."""
    owner = Owner()
    scripts: list[Script] = [[Serve(until="MAIL", count=2), Drop()]] if stale else []
    with ScriptedServer(*scripts, [Serve()]) as server, owner.client(config_of(server)) as client:
        if stale:
            client.send(envelope("a"))
        connections, owner.told = server.connections, []
        owner.forbids = ConnectFailed("the server is dead, others say")
        with pytest.raises(ConnectFailed) as info:
            client.send(envelope("b"))
        assert str(info.value) == str(owner.forbids)
        assert info.value.outcome is Outcome.NOT_SENT
        assert info.value.receipt is not None
        assert owner.told == ["asked"]
        assert server.connections == connections
        owner.forbids = None
        assert client.send(envelope("c")).outcome is Outcome.SENT
        assert owner.told == ["asked", "asked", None]


def test_a_dial_that_fails_or_is_interrupted_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the error; an interrupt says nothing about the server, and is told as `Aborted`."""
    owner = Owner()
    with ScriptedServer([Reply("554 no")], [Reply("421 busy")]) as server, owner.client(config_of(server)) as client:
        for _ in range(2):
            with pytest.raises(GreetingRefused):
                client.send(envelope())
        assert owner.told == ["asked", GreetingRefused] * 2

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        owner.told = []
        monkeypatch.setattr(_kept, "open_session", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.send(envelope())
        assert owner.told == ["asked", Aborted]


def test_what_the_callers_deadline_ended_is_told_as_that() -> None:
    told: list[MailError | None] = []
    with ScriptedServer([Stall()]) as server, Client(config_of(server), after_dial=told.append) as client:
        with pytest.raises(TimedOut):
            client.send(envelope(), deadline=0.1)
    assert [error is not None and error.deadline_passed for error in told] == [True]


def test_a_dead_server_is_told_as_that() -> None:
    told: list[MailError | None] = []
    with ScriptedServer() as server:
        config = config_of(server)
    with Client(config, after_dial=told.append) as client, pytest.raises(ConnectionRefused):
        client.send(envelope(), deadline=5.0)
    assert [error is not None and error.deadline_passed for error in told] == [False]


# ---------------------------------------------------------------- the old connection takes no time from the new one


def test_a_probe_that_is_not_answered_leaves_time_for_a_new_connection(clock: Clock) -> None:
    """The peer has gone without a word (NAT, firewall): of one second a quarter goes, and the message goes out."""
    with ScriptedServer([Serve(until="NOOP"), Stall()], [Serve()]) as server, Client(config_of(server)) as client:
        client.send(envelope("a"))
        clock.ahead += _kept.PROBE_AFTER + 1
        assert client.send(envelope("b"), deadline=2.0).outcome is Outcome.SENT
        assert client.stats().closed == {"stale": 1}
        assert server.connections == 2


def test_a_probe_has_five_seconds_at_most_and_the_configs_time_out(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the deadline: and without one the time-out of the config holds."""
    limits: list[float | None] = []

    def noop(self: SMTP, *, deadline: Any = None) -> tuple[int, bytes]:
        left = deadline.remaining()
        limits.append(None if left is None else round(left))
        return 250, b"ok"

    monkeypatch.setattr(SMTP, "noop", noop)
    with ScriptedServer() as server:
        for probe in (20.0, 3.0, None):
            timeouts = dataclasses.replace(config_of(server).timeouts, probe=probe)
            with Client(config_of(server, timeouts=timeouts)) as client:
                client.send(envelope())
                for deadline in (100.0, 8.0, None):
                    clock.ahead += _kept.PROBE_AFTER + 1
                    client.connect(deadline=deadline)
    assert limits == [5, 2, 20, 3, 2, 3, 5, 2, None]


@pytest.mark.parametrize("answer", ["421 4.4.2 idle too long", "500 what", "250 ok"])
def test_a_probe_that_is_answered_is_judged_by_the_answer(answer: str, clock: Clock) -> None:
    """Only 250 passes."""
    good = answer.startswith("250")
    script: Script = [Serve(until="NOOP"), Reply(answer), *([Serve()] if good else [])]
    scripts = [script] if good else [script, [Serve()]]
    with ScriptedServer(*scripts) as server, Client(config_of(server)) as client:
        client.send(envelope("a"))
        clock.ahead += _kept.PROBE_AFTER + 1
        assert client.send(envelope("b"), deadline=5.0).outcome is Outcome.SENT
        assert server.connections == len(scripts)


def aborted_at(client: Client, reached: threading.Event) -> None:
    """Another thread sends, and its call is ended when that is reached."""
    raised: list[BaseException] = []

    def send() -> None:
        with pytest.raises(Aborted) as info:
            client.send(envelope("b"))
        raised.append(info.value)

    thread = threading.Thread(target=send, name="aborted")
    thread.start()
    assert reached.wait(10.0)
    client.abort()
    thread.join(10.0)
    assert len(raised) == 1


def test_abort_during_a_probe_ends_the_call_and_dials_nobody(clock: Clock) -> None:
    reached = threading.Event()
    with ScriptedServer([Serve(until="NOOP"), Signal(reached), Stall()]) as server:
        with Client(config_of(server)) as client:
            client.send(envelope("a"))
            clock.ahead += _kept.PROBE_AFTER + 1
            aborted_at(client, reached)
        assert server.connections == 1


def test_a_farewell_takes_a_quarter_of_what_is_left() -> None:
    """A worn connection is replaced, and its server says nothing to QUIT."""
    with ScriptedServer([Serve(until="QUIT"), Stall()], [Serve()]) as server:
        with Client(config_of(server, max_messages=1)) as client:
            client.send(envelope("a"))
            began = time.monotonic()
            assert client.send(envelope("b"), deadline=1.2).outcome is Outcome.SENT
            assert time.monotonic() - began < 1.2


def test_abort_ends_a_farewell_too() -> None:
    """A call that replaces a worn connection waits for the old server's answer to QUIT: not after `abort()`."""
    quitting = threading.Event()
    with ScriptedServer([Serve(until="QUIT"), Signal(quitting), Stall()]) as server:
        slow = dataclasses.replace(config_of(server).timeouts, quit=30.0)
        with Client(config_of(server, max_messages=1, timeouts=slow)) as client:
            client.send(envelope("a"))
            aborted_at(client, quitting)
        assert server.connections == 1


def test_the_idle_watch_never_delays_a_send() -> None:
    """While it says goodbye to the old connection, whose server does not answer, a message goes out on a new one."""
    quitting = threading.Event()
    with ScriptedServer([Serve(until="QUIT"), Signal(quitting), Stall()], [Serve()]) as server:
        with Client(config_of(server, idle_timeout=0.05)) as client:
            client.send(envelope("a"))
            assert quitting.wait(10.0)
            # The farewell has two seconds, and this one.
            assert client.send(envelope("b"), deadline=1.0).outcome is Outcome.SENT
            assert client.stats().closed["idle"] >= 1


def test_close_does_not_wait_for_a_farewell_longer_than_it_was_told_to() -> None:
    """Neither for its own nor for that of the idle watch; and no thread is left."""
    quitting = threading.Event()
    with ScriptedServer([Serve(until="QUIT"), Signal(quitting), Stall()]) as server:
        client = Client(config_of(server, idle_timeout=0.05))
        client.send(envelope("a"))
        assert quitting.wait(10.0)
        watch = client._watch
        assert watch is not None
        thread = watch._thread
        began = time.monotonic()
        client.close(timeout=0.1)
        assert time.monotonic() - began < 1.5
        assert thread is not None
        assert not thread.is_alive()
    with ScriptedServer([Serve(until="QUIT"), Stall()]) as server:
        client = Client(config_of(server))
        client.send(envelope("a"))
        began = time.monotonic()
        client.close(timeout=0.1)
        assert time.monotonic() - began < 1.5


# ---------------------------------------------------------------- in the middle of a call, on its own thread


class Meddling(logging.Handler):
    """A log handler that does something at a record of the protocol log, and keeps what it raises."""

    def __init__(self, at: str, act: Callable[[], object]) -> None:
        super().__init__()
        self.at, self.act = at, act
        self.raised: list[BaseException | None] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.at in record.getMessage():
            try:
                self.act()
            except MailError as error:
                self.raised.append(error)
            else:
                self.raised.append(None)


@contextlib.contextmanager
def meddling(at: str, act: Callable[[], object]) -> Iterator[Meddling]:
    log, handler = logging.getLogger("threadmail.protocol"), Meddling(at, act)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


REFUSED: dict[str, Callable[[Client], object]] = {
    "close": lambda client: client.close(),
    "with": lambda client: client.__exit__(),
    "send": lambda client: client.send(envelope("inner")),
    "send_all": lambda client: client.send_all([envelope("inner")]).raise_for_failures(),
    "noop": lambda client: client.noop(),
    "connect": lambda client: client.connect(),
}
ALLOWED: dict[str, Callable[[Client], object]] = {
    "stats": lambda client: client.stats(),
    "repr": repr,
    "is_connected": lambda client: client.is_connected,
    "prefetched": lambda client: client.prefetched,
    "close_idle": lambda client: client.close_idle(),
}


@pytest.mark.parametrize("at", ["mail from", "octets of content, and the end", "< 250 2.0.0"])
@pytest.mark.parametrize("act", REFUSED)
def test_what_would_meddle_is_refused_and_harms_nothing(act: str, at: str) -> None:
    """A log handler of the protocol log, in the middle of an exchange: the message goes out, the client lives."""
    with CaptureServer() as server, Client(server.config) as client:
        with meddling(at, lambda: REFUSED[act](client)) as handler:
            assert client.send(envelope("outer")).outcome is Outcome.SENT
        assert [type(error) for error in handler.raised] == [Reentered]
        assert client.send(envelope("next")).outcome is Outcome.SENT
        assert client.stats().opened == 1
        assert [m.sender for m in server.messages] == ["from-outer@example.org", "from-next@example.org"]


@pytest.mark.parametrize("act", ALLOWED)
def test_what_looks_only_works_there_too(act: str) -> None:
    """And no idle time-out, however short, closes a connection that is in use."""
    with CaptureServer() as server, Client(dataclasses.replace(server.config, idle_timeout=0.001)) as client:
        with meddling("octets of content, and the end", lambda: ALLOWED[act](client)) as handler:
            assert client.send(envelope("outer")).outcome is Outcome.SENT
        assert handler.raised == [None]


def test_a_drop_in_client_is_not_closed_in_the_middle_of_an_exchange_either() -> None:
    with CaptureServer() as server, SMTP(server.host, server.port, "me.test") as client:
        with meddling("octets of content, and the end", client.close) as handler:
            assert client.sendmail("a@example.org", ["b@example.net"], b"Subject: x\r\n\r\nx\r\n") == {}
        assert [type(error) for error in handler.raised] == [Reentered]


def test_abort_in_the_middle_of_an_exchange_ends_it() -> None:
    """That is what it is for, from the same thread as well."""
    with CaptureServer() as server, Client(server.config) as client:
        with meddling("mail from", client.abort), pytest.raises(Aborted) as info:
            client.send(envelope("outer"))
        assert info.value.outcome is Outcome.NOT_SENT
        assert client.send(envelope("next")).outcome is Outcome.SENT


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
@pytest.mark.parametrize("act", ["close", "send", "stats"])
def test_a_signal_handler_hangs_nobody(act: str) -> None:
    """The main thread waits for the server's reply when the signal comes; its handler is told no at once."""
    reached, go_on = threading.Event(), threading.Event()
    raised: list[type[BaseException] | None] = []
    with ScriptedServer([Serve(until="."), Signal(reached), Pause(go_on), Reply("250 2.0.0 ok"), Serve()]) as server:
        with Client(config_of(server)) as client:

            def handler(number: int, frame: object) -> None:
                began = time.monotonic()
                try:
                    {**REFUSED, **ALLOWED}[act](client)
                except MailError as error:
                    raised.append(type(error))
                else:
                    raised.append(None)
                assert time.monotonic() - began < 2.0
                go_on.set()

            def ring() -> None:
                assert reached.wait(10.0)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

            before = signal.signal(signal.SIGUSR1, handler)
            ringing = threading.Thread(target=ring, name="ringing")
            ringing.start()
            try:
                assert client.send(envelope("outer"), deadline=10.0).outcome is Outcome.SENT
            finally:
                go_on.set()
                ringing.join(10.0)
                signal.signal(signal.SIGUSR1, before)
    assert raised == [None if act == "stats" else Reentered]


# ---------------------------------------------------------------- one life


def test_a_client_lives_once() -> None:
    with CaptureServer() as server:
        client = Client(server.config)
        lives = [client._life]
        client.send(envelope())
        client.close()
        assert [*lives, client._life] == [Life.OPEN, Life.CLOSED]
        assert server.quits == 1
        for act in ("send", "noop", "connect"):
            with pytest.raises(Closed):
                REFUSED[act](client)
        client.close()


def test_an_interrupted_farewell_leaves_no_connection_and_the_next_close_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in `close()`: the connection is closed all the same, the client takes nothing more."""
    with ScriptedServer([Serve()]) as server:
        client = Client(config_of(server))
        client.send(envelope())
        smtp = client._smtp

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(SMTP, "quit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.close()
        assert smtp is not None
        assert smtp.sock is None
        with pytest.raises(Closed):
            client.send(envelope())
        client.close()
        assert client._life is Life.CLOSED
        assert client.stats().closed == {"closed": 1}


def test_a_call_in_a_callback_of_the_message_is_refused() -> None:
    """`before_mail` and `before_final` run in the middle of the exchange, on its thread."""
    with CaptureServer() as server, Client(server.config) as client:
        errors: list[MailError] = []

        def meddle(_: object) -> None:
            for act in REFUSED.values():
                try:
                    act(client)
                except MailError as error:
                    errors.append(error)

        client.transmit(envelope(), before_mail=meddle, before_final=meddle)
        assert [type(error) for error in errors] == [Reentered] * 2 * len(REFUSED)
        assert len(server.messages) == 1


# ---------------------------------------------------------------- what a hook says is none of the connection


def of_another_message() -> MailError:
    """What a hook raises that sends mail of its own: that message is in doubt."""
    error = ConnectionLost("another message was lost", phase=Phase.FINAL)
    error.outcome = Outcome.IN_DOUBT
    error.receipt = Receipt(Outcome.IN_DOUBT, Phase.FINAL, "other@example.org", ("another@example.org",), "<other@id>")
    return error


@pytest.mark.parametrize(
    ("hook", "how"),
    [
        *itertools.product(["before_dial", "after_dial"], ["send", "transmit", "send_all"]),
        ("before_mail", "transmit"),
        ("before_final", "transmit"),
    ],
)
def test_what_a_hook_raises_of_another_message_is_told_of_none_of_ours(hook: str, how: str) -> None:
    """Nothing of ours was written: it is NOT_SENT, and the receipt, if there is one, is its own."""
    raised = of_another_message()
    before = dict(vars(raised))

    def objects(*_: object) -> None:
        raise raised

    hooks: dict[str, Any] = {hook: objects}
    dials = hook.endswith("dial")
    with CaptureServer() as server, Client(config_of(server), **(hooks if dials else {})) as client:
        if how == "send_all":
            [receipt] = client.send_all([envelope("a")])
            told = receipt.error
        else:
            call: Callable[..., object] = (
                client.send if how == "send" else partial(client.transmit, **({} if dials else hooks))
            )
            with pytest.raises(ConnectionLost) as info:
                call(envelope("a"))
            told = info.value
        assert told is not None
        assert told.outcome is Outcome.NOT_SENT
        assert told.may_resend
        assert told.phase is {"before_mail": Phase.MAIL, "before_final": Phase.CONTENT}.get(hook, Phase.CONNECT)
        assert (told.receipt is None) is (dials and how == "transmit"), "a dial has no receipt"
        assert told.receipt is None or told.receipt.recipients == envelope("a").recipients
        assert not server.messages
    assert vars(raised) == before, "the hook's own object is left alone"


def test_what_a_hook_raises_shows_where_it_came_from() -> None:
    """The copy has the frames of the hook, and its cause."""

    def objects(_: object) -> None:
        raise ConnectionLost("mine") from ValueError("the cause")

    with CaptureServer() as server, Client(config_of(server)) as client, pytest.raises(ConnectionLost) as info:
        client.transmit(envelope(), before_mail=objects)
    assert "objects" in [entry.name for entry in info.traceback]
    assert isinstance(info.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [ConnectionLost("mine"), BadReply("mine"), DataRefused(421, b"mine")], ids=repr)
@pytest.mark.parametrize("hook", ["before_mail", "before_final"])
@pytest.mark.parametrize("window", [1, 4])
def test_what_a_hook_raises_is_not_taken_for_a_stale_connection(error: MailError, hook: str, window: int) -> None:
    """It is called once, and what it raised is what comes out; whatever that looks like."""
    with CaptureServer() as server, Client(config_of(server, window=window)) as client:
        client.send(envelope("a"))
        called: list[object] = []

        def objects(transaction: object) -> None:
            called.append(transaction)
            raise error

        hooks: dict[str, Any] = {hook: objects}
        with pytest.raises(type(error)) as info:
            client.transmit(envelope("b"), **hooks)
        told = info.value
        assert (told is not error, str(told)) == (True, str(error)), "the hook's own object is left alone"
        assert told.receipt is not None
        assert told.receipt.recipients == envelope("b").recipients
        assert (error.receipt, error._of_hook) == (None, False)
        assert len(called) == 1
        assert client.stats().closed.get("stale") is None
        assert len(server.messages) == 1
        assert client.send(envelope("c")).outcome is Outcome.SENT


def test_what_is_said_goodbye_on_does_not_stay_open_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where none of Python's hooks ran: the server would not see the parent go."""
    with CaptureServer() as server, Client(server.url) as client:
        client.connect()
        assert client._smtp is not None
        sock = client._smtp.sock
        assert sock is not None

        def forked(*_: object, **__: object) -> None:
            with monkeypatch.context() as child:
                child.setattr("os.getpid", lambda: -1)
                assert client.sync_root is not None  # the first use
                assert sock.fileno() == -1

        monkeypatch.setattr(type(client._smtp), "quit", forked)
        leaving = client._taken_out("idle")
        assert leaving is not None
        client._say_goodbye(leaving, NEVER)
        assert sock.fileno() == -1
        assert not client._leaving


@pytest.mark.parametrize(
    "where",
    [
        "threadmail._transport.wire.Wire.tick_in_kernel",
        "threadmail._connection.kept_connection.terms_of",
        "threadmail._connection.idle.IdleWatch.start",
    ],
)
def test_a_dial_that_is_struck_at_its_end_leaves_no_connection(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stayed, uncounted, unwatched, and with what the server of the connection before had offered."""
    with ScriptedServer([Serve(extensions=("8BITMIME",))], *[[Serve(extensions=())]] * 3) as server:
        with Client(server.url) as client:
            client.send(envelope("first"))
            client.abort()
            before = client.stats()
            with monkeypatch.context() as patched:
                patched.setattr(where, _struck)
                with pytest.raises(KeyboardInterrupt):
                    client.send(envelope("struck"))
            stats = client.stats()
            assert (client.is_connected, stats.opened) == (False, before.opened)
            assert client.send(envelope("last")).outcome is Outcome.SENT
            assert "8bitmime" not in client._terms.extensions
        stats = client.stats()
        assert stats.opened == sum(stats.closed.values())


def _struck(*args: object, **settings: object) -> NoReturn:
    raise KeyboardInterrupt
