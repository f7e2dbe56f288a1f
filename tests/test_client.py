"""The client: connects when needed, notices what died, replaces it unseen, closes what nobody uses."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import pickle
import random
import threading
import time
import weakref

import pytest

from tests.support.mail import envelope, message
from threadmail import (
    Aborted,
    Client,
    Closed,
    ConnectionLost,
    ConnectTimedOut,
    GreetingRefused,
    InvalidEnvelope,
    LoginRefused,
    MailError,
    Outcome,
    Phase,
    Reentered,
    ReplyTimedOut,
    SenderRefused,
    ServerConfig,
    TimedOut,
    Timeouts,
)
from threadmail import (
    client as client_module,
)
from threadmail._connection import kept_connection as _kept
from threadmail._connection import opening as _opening
from threadmail._runtime import deadline as _deadline
from threadmail.testing import (
    CaptureServer,
    Drip,
    Drop,
    Expect,
    Pause,
    Reply,
    Reset,
    ScriptedServer,
    Send,
    Serve,
    Signal,
    Stall,
    Step,
    ehlo,
    goodbye,
    greeting,
    transaction,
)

HOUR = 3600.0


class Clock:
    """The package's clock, moved by hand on top of the real one, so that deadlines still come."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hands = Clock()
    for module in (_deadline, _kept, _opening, client_module):
        monkeypatch.setattr(module, "now", hands)
    return hands


def config(server: CaptureServer | ScriptedServer, **settings: object) -> ServerConfig:
    return dataclasses.replace(server.config, **settings)  # type: ignore[arg-type]


# ---------------------------------------------------------------- connecting


def test_nothing_happens_before_the_first_use() -> None:
    with CaptureServer() as server, Client(server.url) as client:
        assert not client.is_connected
        assert server.connections_opened == 0
        assert client.send(message()).outcome is Outcome.SENT
        assert client.is_connected


def test_a_receipt_tells_what_happened() -> None:
    with CaptureServer() as server, Client(server.url) as client:
        receipt = client.send(envelope("a"))
        assert receipt.accepted == ("to-a@example.net", "too-a@example.net")
        assert receipt.message_id == "<a@example.org>"
        assert receipt.phase is Phase.DONE
        assert receipt.reply is not None
        assert receipt.reply.code == 250
        assert receipt.server == f"{server.host}:{server.port}"
        assert receipt.attempts == 1


def test_some_recipients_refused_is_partial_and_no_error() -> None:
    def refuse(recipient: str) -> str | None:
        return "550 5.1.1 unknown" if recipient.startswith("too") else None

    with CaptureServer(on_recipient=refuse) as server, Client(server.url) as client:
        receipt = client.send(envelope("a"))
        assert receipt.outcome is Outcome.PARTIAL
        assert {r: str(reply) for r, reply in receipt.refused.items()} == {"too-a@example.net": "550 5.1.1 unknown"}


def test_a_bad_message_is_refused_before_anybody_is_dialled() -> None:
    with CaptureServer() as server, Client(server.url) as client:
        with pytest.raises(InvalidEnvelope, match="no recipients"):
            client.send(b"From: a@example.org\r\n\r\nhello")
        assert server.connections_opened == 0


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_it_secures_the_connection_and_logs_in(tls: str) -> None:
    with CaptureServer(tls=tls, auth={"me": "pässword"}) as server, Client(server.config) as client:  # type: ignore[arg-type]
        client.send(message())
        assert client.is_authenticated
        assert (server.messages[0].tls, server.messages[0].username) == (True, "me")


def test_a_refused_login_is_not_tried_again_for_a_while(clock: Clock) -> None:
    """Each try would count against the account; after five minutes one more is made."""
    with CaptureServer(tls="starttls", auth={"me": "right"}) as server:
        with Client(config(server, password="not so")) as client:
            for number in range(3):
                with pytest.raises(LoginRefused, match="535") as caught:
                    client.send(message())
                assert caught.value.outcome is Outcome.NOT_SENT
                assert caught.value.smtp_code == 535
                assert ("not asked again: this login was refused" in str(caught.value)) is (number > 0)
            assert server.connections_opened == 1
            clock.ahead += 301.0
            with pytest.raises(LoginRefused):
                client.send(message())
            assert server.connections_opened == 2


def test_credentials_by_callable_are_asked_at_each_login_and_once_more_when_refused() -> None:
    tokens = iter(["expired", "right", "right"])
    asked: list[str] = []

    def credentials() -> tuple[str, str]:
        asked.append(next(tokens))
        return "me", asked[-1]

    with CaptureServer(tls="starttls", auth={"me": "right"}) as server:
        with Client(config(server, username=None, password=None, credentials=credentials)) as client:
            client.send(message())
            assert asked == ["expired", "right"]
            server.drop_connections("fin")
            client.send(message())
            assert asked == ["expired", "right", "right"]


def test_a_greeting_that_refuses_is_an_error_with_its_text() -> None:
    with ScriptedServer([Reply("554 5.7.1 not from there"), Drop()]) as server, Client(server.url) as client:
        with pytest.raises(GreetingRefused, match="not from there") as caught:
            client.send(message())
        assert caught.value.phase is Phase.CONNECT
        assert not caught.value.transient
        assert caught.value.receipt is not None
        assert caught.value.receipt.attempts == 0


# ---------------------------------------------------------------- idle servers that hang up


@pytest.mark.parametrize("mode", ["fin", "reset", "421"])
def test_a_server_that_hung_up_between_two_messages_goes_unnoticed(mode: str) -> None:
    with CaptureServer() as server, Client(server.url) as client:
        client.send(message("a"))
        server.drop_connections(mode)  # type: ignore[arg-type]
        assert client.send(message("b")).outcome is Outcome.SENT
        assert len(server.messages) == 2
        assert client.stats().closed == {"stale": 1}


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize(
    "how", [[Drop()], [Reset()], [Reply("421 4.4.2 idle too long"), Drop()]], ids=["fin", "reset", "421"]
)
def test_a_kept_connection_that_fails_before_the_content_is_replaced_once(at: str, how: list[Step]) -> None:
    """Whatever the look at the socket cannot see, the first commands do; the message goes out on a new connection."""
    with ScriptedServer([Serve(until=at, count=2), *how], [Serve()]) as server, Client(server.url) as client:
        one = client.send(envelope("a").for_recipients("to-a@example.net"))
        two = client.send(envelope("b").for_recipients("to-b@example.net"))
        assert (one.outcome, two.outcome) == (Outcome.SENT, Outcome.SENT)
        assert two.attempts == 1
        assert server.connections == 2


def test_a_new_connection_that_fails_is_news() -> None:
    with ScriptedServer([greeting(), ehlo(), Expect("MAIL"), Drop()], [Serve()]) as server:
        with Client(server.url) as client, pytest.raises(ConnectionLost) as caught:
            client.send(message())
        assert caught.value.outcome is Outcome.NOT_SENT
        assert caught.value.transient


def test_after_the_end_of_data_nothing_is_sent_again() -> None:
    """The server may have the message; only its own word could tell."""
    with ScriptedServer([Serve(until=".", count=2), Drop()], last="refuse") as server, Client(server.url) as client:
        client.send(envelope("a"))
        with pytest.raises(ConnectionLost) as caught:
            client.send(envelope("b"))
        assert caught.value.outcome is Outcome.IN_DOUBT
        assert caught.value.receipt is not None
        assert caught.value.receipt.deferred == ()
        assert server.connections == 1


def test_an_idle_connection_is_asked_before_it_is_trusted(clock: Clock) -> None:
    """A server that is silent but gone (421 to NOOP) is replaced before the message is risked."""
    script = [greeting(), ehlo(), transaction(2), Expect("NOOP"), Reply("421 4.4.2 too late"), Drop()]
    with ScriptedServer(script, [Serve()]) as server, Client(server.url) as client:
        client.send(envelope("a"))
        clock.ahead += _kept.PROBE_AFTER + 1
        assert client.send(envelope("b")).outcome is Outcome.SENT
        assert server.connections == 2


def test_a_connection_just_used_is_not_asked() -> None:
    """Too many NOOPs make servers hang up."""
    with ScriptedServer([greeting(), ehlo(), transaction(2), transaction(2), goodbye()]) as server:
        with Client(server.url) as client:
            client.send(envelope("a"))
            client.send(envelope("b"))


def test_an_idle_connection_is_closed_with_quit_although_nobody_sends() -> None:
    with CaptureServer() as server, Client(config(server, idle_timeout=0.1)) as client:
        client.send(message())
        server.wait_for_connections(0)
        assert server.quits == 1
        assert client.stats().closed == {"idle": 1}
        assert client.send(message()).outcome is Outcome.SENT


def test_age_and_use_end_a_connection(clock: Clock) -> None:
    with (
        CaptureServer() as server,
        Client(config(server, max_messages=2, max_age=100.0), rng=random.Random(1)) as client,
    ):
        for name in "abc":
            client.send(message(name))
        assert client.stats().closed == {"worn": 1}
        clock.ahead += 101.0
        client.send(message("d"))
        assert client.stats().closed == {"worn": 1, "age": 1}
        assert server.quits == 2


# ---------------------------------------------------------------- deadlines, abort, close


def test_a_deadline_that_has_passed_costs_no_connection() -> None:
    """Nothing was written, and the server has refused nothing: overload is when callers' deadlines have passed."""
    with CaptureServer() as server, Client(server.url) as client:
        client.send(message())
        for _ in range(3):
            with pytest.raises(TimedOut) as caught:
                client.send(message(), deadline=0)
            assert caught.value.deadline_passed
        client.send(message())
        assert (client.stats().opened, client.stats().closed) == (1, {})


def test_the_deadline_covers_the_wait_for_another_thread() -> None:
    with CaptureServer() as server, Client(server.url) as client:
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with client.sync_root:
                held.set()
                done.wait(10.0)

        holder = threading.Thread(target=hold, name="holder")
        holder.start()
        held.wait(10.0)
        started = time.monotonic()
        with pytest.raises(TimedOut) as caught:
            client.send(message(), deadline=0.1)
        assert time.monotonic() - started < 2.0
        assert caught.value.outcome is Outcome.NOT_SENT
        done.set()
        holder.join(10.0)


def test_the_deadline_holds_against_a_dripping_server() -> None:
    """A byte each 20 ms would keep every single wait short for minutes."""
    with ScriptedServer([greeting(), Expect("EHLO"), Drip(b"250-" + b"x" * 500 + b"\r\n", 0.02)]) as server:
        started = time.monotonic()
        with Client(server.url) as client, pytest.raises(ReplyTimedOut):
            client.send(message(), deadline=0.3)
        assert time.monotonic() - started < 2.0


def test_a_deadline_beyond_all_counting_is_none() -> None:
    """Locks count in nanoseconds and sockets in milliseconds, both in so many bits."""
    with CaptureServer() as server, Client(server.url) as client:
        assert client.send(message(), deadline=1e12).outcome is Outcome.SENT


def test_a_server_without_greeting_is_a_connect_timeout() -> None:
    with ScriptedServer([Stall()]) as server:
        quick = config(server, timeouts=Timeouts(command=0.1))
        with Client(quick) as client, pytest.raises(ConnectTimedOut, match="no greeting"):
            client.send(message())


@pytest.mark.parametrize(("at", "outcome"), [("MAIL", Outcome.NOT_SENT), (".", Outcome.IN_DOUBT)])
def test_abort_ends_a_call_at_once_and_says_what_is_known(at: str, outcome: Outcome) -> None:
    reached = threading.Event()
    script = [Serve(until=at), Signal(reached), Stall()]
    with ScriptedServer(script, [Serve()]) as server, Client(server.url) as client:
        caught: list[MailError] = []

        def send() -> None:
            try:
                client.send(envelope())
            except MailError as error:
                caught.append(error)

        thread = threading.Thread(target=send, name="aborted")
        thread.start()
        assert reached.wait(10.0)
        client.abort()
        thread.join(5.0)
        assert not thread.is_alive()
        assert isinstance(caught[0], Aborted)
        assert caught[0].outcome is outcome
        assert client.send(envelope("b")).outcome is Outcome.SENT, "the client stays usable"


def test_close_lets_a_call_finish_and_then_refuses() -> None:
    go, reached = threading.Event(), threading.Event()
    with ScriptedServer([Serve(until="MAIL"), Signal(reached), Pause(go), Serve()]) as server:
        client = Client(server.url)
        outcomes: list[Outcome] = []
        sending = threading.Thread(target=lambda: outcomes.append(client.send(envelope()).outcome), name="sending")
        sending.start()
        assert reached.wait(10.0)
        closing = threading.Thread(target=client.close, name="closing")
        closing.start()
        go.set()
        sending.join(10.0)
        closing.join(10.0)
        assert outcomes == [Outcome.SENT]
        with pytest.raises(Closed):
            client.send(envelope())
        client.close()


def test_close_drops_a_call_that_does_not_end() -> None:
    reached = threading.Event()
    with ScriptedServer([greeting(), ehlo(), Expect("MAIL"), Signal(reached), Stall()]) as server:
        client = Client(server.url)
        errors: list[MailError] = []

        def send() -> None:
            try:
                client.send(envelope())
            except MailError as error:
                errors.append(error)

        sending = threading.Thread(target=send, name="sending")
        sending.start()
        assert reached.wait(10.0)
        client.close(timeout=0.05)
        sending.join(5.0)
        assert isinstance(errors[0], Aborted)


# ---------------------------------------------------------------- the same thread, the other process


def test_a_log_handler_that_mails_through_the_client_it_logs_for_harms_nothing() -> None:
    """An RLock lets its owner pass. The inner call is refused before it writes, the outer one succeeds."""
    refused: list[BaseException] = []

    class Mailing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                client.send(envelope("inner"))
            except Reentered as error:
                refused.append(error)

    log = logging.getLogger("threadmail.protocol")
    handler = Mailing()
    with CaptureServer() as server, Client(server.url) as client:
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
        try:
            assert client.send(envelope("outer")).outcome is Outcome.SENT
        finally:
            log.removeHandler(handler)
            log.setLevel(logging.NOTSET)
        assert [m.sender for m in server.messages] == ["from-outer@example.org"]
    assert len(refused) > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_never_speaks_on_the_parents_connection() -> None:
    """Also when another thread of the parent holds the lock at the fork: the child has a lock of its own."""
    with CaptureServer() as server, Client(server.url) as client:
        client.send(message("a"))
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with client.sync_root:
                held.set()
                done.wait(10.0)

        holder = threading.Thread(target=hold, name="holder")
        holder.start()
        held.wait(10.0)
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                status = 0 if client.send(message("b"), deadline=5.0).outcome is Outcome.SENT else 2
            os._exit(status)
        _, status = os.waitpid(child, 0)
        done.set()
        holder.join(10.0)
        assert os.waitstatus_to_exitcode(status) == 0
        client.send(message("c"))
        assert client.stats().opened == 1, "the parent's connection was harmed"
        by_connection = {m.sender: m.connection for m in server.wait_for(3)}
    assert by_connection["from-a@example.org"] == by_connection["from-c@example.org"]
    assert by_connection["from-b@example.org"] != by_connection["from-a@example.org"]


def test_a_client_does_not_pickle_and_says_what_does() -> None:
    with pytest.raises(TypeError, match="ServerConfig"):
        pickle.dumps(Client("smtp://localhost"))
    assert pickle.loads(pickle.dumps(ServerConfig.from_url("smtp://localhost"))).host == "localhost"


def test_a_forgotten_client_is_collected_although_its_idle_watch_runs() -> None:
    with CaptureServer() as server:
        client = Client(config(server, idle_timeout=0.05))
        client.send(message())
        collected = threading.Event()
        weakref.finalize(client, collected.set)
        server.wait_for_connections(0)
        del client
        gc.collect()
        assert collected.wait(5.0), "the idle watch keeps it alive"


def test_no_secret_is_shown() -> None:
    with CaptureServer(tls="starttls", auth={"me": "hush-hush"}) as server, Client(server.config) as client:
        client.send(message())
        assert "hush" not in repr(client) + repr(client.config) + str(client.stats())


# ---------------------------------------------------------------- odds and ends


def test_hooks_stop_a_message_without_harm() -> None:
    """Before MAIL nothing was written and the connection lives; before the last bytes it is surely not sent."""
    with CaptureServer() as server, Client(server.url) as client:

        def refuse(_: object) -> None:
            raise SenderRefused(550, "not this one", "me")

        with pytest.raises(SenderRefused):
            client.transmit(envelope("a"), before_mail=refuse)
        client.send(envelope("b"))
        assert client.stats().opened == 1
        with pytest.raises(SenderRefused) as caught:
            client.transmit(envelope("c"), before_final=refuse)
        assert caught.value.outcome is Outcome.NOT_SENT
        client.send(envelope("d"))
        assert [m.sender[5] for m in server.wait_for(2)] == ["b", "d"]


def test_noop_and_verify_answer_with_replies() -> None:
    with ScriptedServer(
        [greeting(), ehlo(), Expect("NOOP"), Reply("250 here"), Expect("VRFY"), Reply("252 maybe"), goodbye()]
    ) as server:
        with Client(server.url) as client:
            assert str(client.noop()) == "250 here"
            assert client.verify("a@example.org").code == 252


def test_extensions_can_be_switched_off() -> None:
    with ScriptedServer(
        [greeting(), ehlo("SIZE 5", "8BITMIME"), Expect("MAIL FROM:<from-a@example.org>"), Send(b"250 ok\r\n"), Stall()]
    ) as server:
        with Client(config(server, without=frozenset({"SIZE", "8BITMIME"}))) as client:
            with pytest.raises(ReplyTimedOut):
                client.send(envelope(), deadline=0.3)
        [line] = [received for received in server.received[0] if received.upper().startswith("MAIL")]
        assert line.lower() == "mail from:<from-a@example.org>"


def test_a_connection_that_questions_alone_kept_alive_is_replaced_as_well(clock: Clock) -> None:
    """No message was sent on it, but it is no new one: that the server had enough of it is no news."""
    tired: list[Step] = [Serve(until="MAIL"), Reply("421 4.4.2 idle for too long")]
    with ScriptedServer(tired, [Serve()]) as server, Client(server.url) as client:
        for _ in range(3):
            client.noop()
            clock.ahead += 4.0
        assert client.send(envelope()).outcome is Outcome.SENT
        assert client.stats().opened == 2
