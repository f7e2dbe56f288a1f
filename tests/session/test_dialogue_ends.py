"""What a dialogue is left in when a step of it ends early, is left out, or was spoken by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.reliability.injection import Injected, Injector
from tests.reliability.test_interrupts import passages, pytestmark, sockets_left_to_the_collector, traced  # noqa: F401
from threadmail import (
    SMTP,
    Aborted,
    Client,
    InvalidAddress,
    InvalidConfig,
    NotSupported,
    Outcome,
    Phase,
    Reentered,
    ReplyError,
    ServerConfig,
    TimedOut,
)
from threadmail._runtime.deadline import NEVER
from threadmail._session.dialogue import Dialogue
from threadmail._transport.wire import Wire
from threadmail.testing import CaptureServer, Pause, ScriptedServer, Serve

CONTENT = "Subject: x\r\n\r\nx\r\n"


def client_of(server: ScriptedServer) -> SMTP:
    return SMTP(server.host, server.port, local_hostname="test", timeout=10.0)


# ---------------------------------------------------------------- interrupted


def at_each_point(work: Callable[[Injector], None]) -> int:
    """Do it with an interrupt at one place after the other. Returns how many there were."""
    work(Injector())
    dry = Injector()
    work(dry)
    numbers = passages(dry.places)
    for number in numbers:
        work(Injector(number))
    return len(numbers)


@pytest.mark.usefixtures("sockets_left_to_the_collector")
def test_a_connection_whose_greeting_was_not_read_is_closed() -> None:
    """Else it would be the reply to the first command, and each reply that of the command before."""
    greets = threading.Event()

    def connected(injector: Injector) -> None:
        greets.clear()
        smtp = SMTP(local_hostname="test", timeout=10.0)
        send = smtp._greeted

        def greeted(host: str, port: int) -> Any:
            greets.set()
            return send(host, port)

        smtp._greeted = greeted  # type: ignore[method-assign]
        try:
            with traced(injector):
                smtp.connect(server.host, server.port)
        except Injected:
            pass
        greets.set()
        if smtp.sock is not None:
            assert smtp.noop() == (250, b"noop"), injector.where
        smtp.close()

    script = [Pause(greets), Serve(replies={"NOOP": "250 noop"})]
    with ScriptedServer(script, last="repeat") as server:
        assert at_each_point(connected) > 30


@pytest.mark.usefixtures("sockets_left_to_the_collector")
def test_what_was_offered_in_the_clear_is_forgotten_with_the_first_octet_of_tls() -> None:
    def secured(injector: Injector) -> None:
        with SMTP(server.host, server.port, local_hostname="test", timeout=10.0) as smtp:
            smtp.ehlo()
            try:
                with traced(injector):
                    smtp.starttls(context=server.client_context)
            except Injected:
                pass
            if smtp.is_encrypted:
                assert (smtp.ehlo_resp, smtp.esmtp_features, smtp.does_esmtp) == (None, {}, False), injector.where

    with CaptureServer(tls="starttls") as server:
        assert at_each_point(secured) > 30


@pytest.mark.usefixtures("sockets_left_to_the_collector")
def test_half_of_what_a_server_offers_is_not_taken_for_all() -> None:
    def greeted(injector: Injector) -> None:
        with client_of(server) as smtp:
            try:
                with traced(injector):
                    smtp.ehlo()
            except Injected:
                pass
            if smtp.sock is not None and smtp.ehlo_resp is not None:
                assert smtp.esmtp_features.keys() == {"pipelining", "8bitmime", "smtputf8"}, injector.where

    with ScriptedServer([Serve()], last="repeat") as server:
        assert at_each_point(greeted) > 30


@pytest.mark.usefixtures("sockets_left_to_the_collector")
def test_a_deadline_goes_with_its_block_also_where_that_is_interrupted() -> None:
    def within(injector: Injector) -> None:
        with client_of(server) as smtp:
            try:
                with traced(injector), smtp.within(5.0):
                    smtp.noop()
            except Injected as exc:
                exc.__traceback__ = None  # with it goes a block that was struck before it could end itself
            assert smtp._deadline is NEVER, injector.where

    with ScriptedServer([Serve()], last="repeat") as server:
        assert at_each_point(within) > 30


def test_a_deadline_goes_before_anything_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is struck at the end of the block is struck when it has gone."""
    with ScriptedServer([Serve()]) as server, client_of(server) as smtp:

        def struck(*_: object) -> None:
            raise Injected

        def ended() -> None:
            with smtp.within(5.0):
                monkeypatch.setattr(Dialogue, "_set_deadline", struck)
                monkeypatch.setattr(Dialogue, "_rest", struck)

        with pytest.raises(Injected):
            ended()
        monkeypatch.undo()
        assert smtp._wire is not None
        assert (smtp._deadline, smtp._wire.deadline) == (NEVER, NEVER)


def test_abort_is_heard_in_the_first_step_of_a_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look of the owner and the connect(): the server is silent, and nobody waits for it."""
    real, begun = SMTP._drop, threading.Event()

    def drop(self: SMTP) -> None:
        real(self)
        if not begun.is_set():
            begun.set()
            client.abort()

    go = threading.Event()
    with ScriptedServer([Pause(go)]) as server:
        client = Client(ServerConfig(server.host, server.port))
        monkeypatch.setattr(SMTP, "_drop", drop)
        with pytest.raises(Aborted):
            client.noop(deadline=30.0)
        go.set()
        client.close()


def test_abort_of_a_client_that_is_used_again_is_for_the_connection_of_then() -> None:
    with ScriptedServer([Serve()], last="repeat") as server, client_of(server) as smtp:
        smtp.abort()
        smtp.connect(server.host, server.port)
        assert smtp.noop()[0] == 250


# ---------------------------------------------------------------- left with a reply to come


def test_leaving_the_block_with_a_reply_to_come_closes_and_hides_nothing() -> None:
    with ScriptedServer([Serve()]) as server:
        smtp = client_of(server)

        def left() -> None:
            with smtp:
                smtp.putcmd("NOOP")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            left()
        assert smtp.sock is None


@pytest.mark.parametrize("reply", ["421 4.3.2 closing", "500 what", "250 ok"])
def test_a_farewell_that_is_refused_says_that_nothing_is_to_be_sent_again(reply: str) -> None:
    """smtplib raises here as well. Code that looks at `outcome` is not to take it for that of a message."""
    with ScriptedServer([Serve(replies={"QUIT": reply})]) as server:
        with pytest.raises(ReplyError) as info, client_of(server) as smtp:
            assert smtp.sendmail("a@here.test", "b@there.test", CONTENT) == {}
        assert smtp.sock is None
    error = info.value
    assert (error.smtp_code, error.phase, error.receipt) == (int(reply[:3]), Phase.DONE, None)
    assert (error.outcome, error.may_resend) == (Outcome.IN_DOUBT, False)
    assert str(error) == f"QUIT was answered {reply}"


@pytest.mark.parametrize("reply", ["221 bye", "421 4.3.2 closing", "what"])
def test_a_farewell_hides_nothing_that_ended_the_block(reply: str) -> None:
    with ScriptedServer([Serve(replies={"QUIT": reply})]) as server:
        with pytest.raises(ZeroDivisionError), client_of(server) as smtp:
            raise ZeroDivisionError
        assert smtp.sock is None


def test_nor_does_one_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer([Serve()]) as server:
        smtp = client_of(server)

        def late(*_: object) -> Any:
            raise TimedOut("too late")

        monkeypatch.setattr(smtp, "docmd", late)
        with pytest.raises(ZeroDivisionError), smtp:
            raise ZeroDivisionError
        assert smtp.sock is None


def test_a_mail_by_hand_that_needs_what_is_not_offered_is_an_error_of_ours() -> None:
    with ScriptedServer([Serve(extensions=())]) as server, client_of(server) as smtp:
        smtp.ehlo()
        with pytest.raises(NotSupported) as info:
            smtp.mail("a@here.test", ["SMTPUTF8"])
        assert (info.value.phase, info.value.outcome) == (Phase.MAIL, Outcome.NOT_SENT)
        assert smtp.mail("a@here.test")[0] == 250, "nothing was written"


def test_quit_with_a_reply_to_come_closes() -> None:
    """Its own answer could not be told from that."""
    with ScriptedServer([Serve()]) as server:
        smtp = client_of(server)
        smtp.putcmd("NOOP")
        with pytest.raises(Reentered, match="reply has not been read"):
            smtp.quit()
        assert smtp.sock is None


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("exchange", ["connect", "noop", "ehlo", "mail"])
@pytest.mark.parametrize("intruder", ["getreply", "close", "noop", "quit", "ehlo", "connect", "__exit__"])
def test_nobody_reads_or_closes_while_a_reply_is_waited_for(
    exchange: str, intruder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that comes there, in this very thread: it is refused, and the exchange goes on unharmed."""
    read, told = Wire.read_reply, list[type[BaseException]]()
    with CaptureServer() as server:
        smtp = SMTP(local_hostname="test", timeout=5.0)
        place = (server.host, server.port)
        exchanges: dict[str, Callable[[], Any]] = {
            "connect": lambda: smtp.connect(*place),
            "noop": smtp.noop,
            "ehlo": smtp.ehlo,
            "mail": lambda: smtp.mail("a@here.test"),
        }
        intruders: dict[str, Callable[[], object]] = {
            **exchanges,
            "getreply": smtp.getreply,
            "close": smtp.close,
            "quit": smtp.quit,
            "__exit__": lambda: smtp.__exit__(None, None, None),
        }

        def interrupted(wire: Wire, timeout: float | None = None) -> Any:
            monkeypatch.setattr(Wire, "read_reply", read)
            with pytest.raises(Reentered) as info:
                intruders[intruder]()
            told.append(info.type)
            return read(wire, timeout) if timeout is not None else read(wire)

        if exchange != "connect":
            smtp.connect(*place)
            smtp.ehlo()
        monkeypatch.setattr(Wire, "read_reply", interrupted)
        assert exchanges[exchange]()[0] in (220, 250)
        assert told == [Reentered]
        assert smtp.rset()[0] == 250
        assert smtp.docmd("VRFY", "a@here.test")[0] == 252, "each reply is that to its command"
        smtp.close()


def test_nobody_connects_while_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two connections would come of it, and one of them would be closed by nobody."""
    dial = SMTP._dial
    with CaptureServer() as server:
        smtp = SMTP(local_hostname="test", timeout=5.0)

        def interrupted(*given: Any) -> Any:
            monkeypatch.setattr(SMTP, "_dial", dial)
            for intruder in (smtp.close, smtp.noop, lambda: smtp.connect(server.host, server.port)):
                with pytest.raises(Reentered):
                    intruder()
            return dial(*given)

        monkeypatch.setattr(SMTP, "_dial", interrupted)
        assert smtp.connect(server.host, server.port)[0] == 220
        assert smtp.noop()[0] == 250
        smtp.close()


def test_a_content_may_be_streamed_by_hand() -> None:
    """As with smtplib: the reply behind the content ends the transaction."""
    with ScriptedServer([Serve()]) as server, client_of(server) as smtp:
        for _ in range(2):
            smtp.ehlo()
            smtp.mail("a@h.test")
            smtp.rcpt("b@t.test")
            assert smtp.docmd("DATA")[0] == 354
            with pytest.raises(Reentered, match="content"):
                smtp.sendmail("a@h.test", ["b@t.test"], CONTENT)
            smtp.send(b"Subject: big\r\n\r\nstreamed\r\n.\r\n")
            assert smtp.getreply()[0] == 250
            assert smtp.sendmail("a@h.test", ["b@t.test"], CONTENT) == {}
        smtp.quit()
    assert len(server.messages) == 4


@pytest.mark.parametrize("command", ["RSET", "rset", "EHLO test"])
def test_a_command_by_hand_that_ends_the_transaction(command: str) -> None:
    with ScriptedServer([Serve()]) as server, client_of(server) as smtp:
        smtp.ehlo()
        smtp.mail("a@h.test")
        with pytest.raises(Reentered):
            smtp.sendmail("a@h.test", ["b@t.test"], CONTENT)
        smtp.docmd(command)
        assert smtp.sendmail("a@h.test", ["b@t.test"], CONTENT) == {}


def test_what_a_transaction_was_begun_with_does_not_come_back() -> None:
    """A command that was written as bytes, after data(): its reply restores nothing."""
    with ScriptedServer([Serve()]) as server, client_of(server) as smtp:
        smtp.ehlo()
        smtp.mail("a@h.test")
        smtp.rcpt("b@t.test")
        smtp.data(CONTENT)
        smtp.send("NOOP\r\n")
        smtp.getreply()
        assert smtp.sendmail("a@h.test", ["b@t.test"], CONTENT) == {}


# ---------------------------------------------------------------- refused before anything is done


def test_an_address_to_ask_about_that_cannot_be_written() -> None:
    with ScriptedServer([Serve()]) as server, Client(server.config) as client:
        with pytest.raises(InvalidAddress, match="not ASCII"):
            client.verify("j\xfcrgen@example.com")
        assert client.verify("juergen@example.com").code == 252


@pytest.mark.parametrize("make", [threading.Lock, threading.Semaphore])
def test_a_lock_that_is_not_reentrant_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidConfig, match="RLock"):
        SMTP(local_hostname="test", sync_root=make())
    assert SMTP(local_hostname="test", sync_root=threading.RLock()).noop is not None
