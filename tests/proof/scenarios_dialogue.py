"""Promises of one dialogue: calls made at the same time, calls from within an exchange, deadlines that hold."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable
from email.message import EmailMessage
from functools import partial
from typing import Any
from unittest import mock

from tests.detsched import Run
from tests.detsched.explore import Program
from threadmail import SMTP, Client, MailError, NotConnected, Reentered
from threadmail._runtime.guard import HeldInTime

from .scenario import CLIENT, CONFIG, LETTER, Scenario, small
from .stage import EXTENSIONS, IMMEDIATELY, MESSAGE, MORE_COMMANDS, Context, Server, Threads

Act = Callable[[SMTP], object]


def dialogue(*acts: Act, allowed: tuple[type[Exception], ...] = (), greeted: bool = True, ehlos: int = 0) -> Program:
    """Each act on a thread of its own, all on one connected client; `ehlos` (if not 0) are expected in all."""

    def program(run: Run) -> None:
        threads = Threads(run, Server(*EXTENSIONS, bound=1, lockset=True), allowed=allowed)
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
    client.data(MESSAGE)


def send(client: SMTP) -> None:
    client.sendmail("a@here.test", ["b@there.test"], MESSAGE)


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
    client.starttls(context=Context())  # type: ignore[arg-type]


def log_in(client: SMTP) -> None:
    client.login("user", "secret")


def authenticate(client: SMTP) -> None:
    client.auth("PLAIN", lambda challenge=None: "x")


def challenged(run: Run) -> None:
    """Two threads log in by AUTH LOGIN, user name first and then the password: neither is said in the other's place."""
    answers = {
        "AUTH": "334 UGFzc3dvcmQ6",
        _line(b"secret"): "235 2.7.0 welcome",
        _line(b"user"): "535 5.7.8 no password",
    }
    commands = {verb: lambda *_, answer=answer: answer for verb, answer in answers.items()}
    run.context.enter_context(mock.patch.dict(MORE_COMMANDS, commands))
    threads = Threads(run, Server("AUTH LOGIN", bound=1, lockset=True))
    client = SMTP("model", 25, local_hostname="me")
    client.user, client.password = "user", "secret"
    client.ehlo()
    for _ in range(2):
        threads.add(lambda: client.auth("LOGIN", client.auth_login))


def _line(said: bytes) -> str:
    return base64.b64encode(said).decode("ascii").upper()


def interrupted(run: Run) -> None:
    """A thread is interrupted the moment it has the lock: it lets go of it, and the next thread has its turn."""
    threads = Threads(run, Server(bound=1))
    client = SMTP("model", 25, local_hostname="me")

    def here(frame: Any, event: str, _: object) -> Any:
        if event == "line" and frame.f_locals.get("acquired"):
            raise KeyboardInterrupt
        return here

    def victim() -> None:
        sys.settrace(lambda frame, *_: here if frame.f_code is HeldInTime.__enter__.__code__ else None)
        try:
            client.noop(deadline=60.0)
        except KeyboardInterrupt:
            return
        finally:
            sys.settrace(None)
        raise AssertionError("nobody interrupted it")

    threads.add(victim)
    threads.add(client.noop)


def intruding(act: Act) -> Program:
    """While a client is in an exchange, its own thread makes another call, from a log handler say: it is refused."""

    def program(run: Run) -> None:
        threads = Threads(run, Server(*EXTENSIONS, bound=1))

        class Talkative(SMTP):
            busy = True
            debuglevel = 1

            def _debug(self, *said: object) -> None:
                pass

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
        server = Server(*EXTENSIONS, read_timeouts=True)
        threads = Threads(run, server, allowed=(MailError,))
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
    client.data(MESSAGE, deadline=5)


def within(client: SMTP) -> None:
    with client.within(5):
        client.noop()


def ask_within(client: SMTP) -> None:
    with client.within():
        client.putcmd("noop")
        client.getreply()


def send_message(client: SMTP) -> None:
    message = EmailMessage()
    message["From"], message["To"] = "a@here.test", "b@there.test"
    message.set_content("x")
    client.send_message(message, deadline=5)


def _dialogue(name: str, program: Program, **options: Any) -> Scenario:
    return small(f"SMTP, {name}", program, *CLIENT, **options)


def _deadline(name: str, program: Program) -> Scenario:
    return Scenario(f"deadline of {name}", program)


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
    "within()": ask_within,
}
_INTRUDED: dict[str, Act] = {
    "data()": by_hand,
    "transact()": send,
    "starttls()": start_tls,
    "login()": log_in,
    "auth()": authenticate,
}

_IN_TIME: dict[str, tuple[Act, float]] = {
    "noop()": (lambda c: c.noop(deadline=5), 5),
    "data()": (data_by_deadline, 5),
    "within()": (within, 5),
    "starttls()": (lambda c: c.starttls(context=Context(), deadline=5), 5),  # type: ignore[arg-type]
    "login()": (lambda c: c.login("user", "secret", deadline=5), 5),
    "sendmail()": (lambda c: c.sendmail("a@here.test", ["b@there.test"], MESSAGE, deadline=5), 5),
    "transact()": (lambda c: c.transact(LETTER, deadline=5), 5),
    "send_message()": (send_message, 5),
    "quit()": (lambda c: c.quit(deadline=1), 1),
    "quit(), by default": (lambda c: c.quit(), 2),
    "leaving": (leave, 2),
}


SMALL = [
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
    _dialogue("interrupted when it has the lock", interrupted),
    _dialogue("a login by challenges from two threads", challenged),
    *(_dialogue(f"a call from within {name}", intruding(act)) for name, act in _INTRUDED.items()),
    *(_deadline(f"SMTP.{name}", in_time(act, seconds)) for name, (act, seconds) in _IN_TIME.items()),
    _deadline("SMTP.connect()", in_time(lambda c: c.connect("model", 25, deadline=5), 5, dialled=False)),
    _deadline("Client.connect()", in_time(lambda c: c.connect(deadline=5), 5, dialled=False, whole=True)),
    _deadline("Client.noop()", in_time(lambda c: c.noop(deadline=5), 5, whole=True)),
    _deadline("Client.send()", in_time(lambda c: c.send(LETTER, deadline=5), 5, whole=True)),
]
