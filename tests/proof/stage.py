"""Where scenarios play that need no ledger: a server that can fall silent, threads, and what went wrong in them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

from tests.detsched import Run, Verdict
from tests.detsched.modelserver import ModelServer
from tests.detsched.modelsocket import ModelSocket
from tests.detsched.oracle import verdict
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import _COMMANDS, Connection
from tests.detsched.threads import facades

IMMEDIATELY = 0.5  # seconds of virtual time: nothing was waited for

MORE_COMMANDS: dict[str, Callable[[Connection, str, Any], str]] = {
    "AUTH": lambda connection, argument, who: "235 2.7.0 welcome",
    "STARTTLS": lambda connection, argument, who: "220 2.0.0 go ahead",
    "HELP": lambda connection, argument, who: "214 2.0.0 no help",
    "EXPN": lambda connection, argument, who: "252 2.5.0 no lists",
}
EXTENSIONS = ("SIZE 1000000", "STARTTLS", "AUTH PLAIN")
MESSAGE = b"Subject: x\r\n\r\nx"


class _WrappedSocket(ModelSocket):
    """The model knows no TLS: the bytes stay as they are."""

    def do_handshake(self) -> None:
        pass


class Context:
    """In the place of an `ssl.SSLContext`."""

    def wrap_socket(self, sock: ModelSocket, **_: object) -> _WrappedSocket:
        return _WrappedSocket(sock.connection, sock.gettimeout())


class Answering(ModelServer):
    """Answers MAIL of some senders and RCPT of some recipients as it is told, one answer after the other."""

    def __init__(self, answers: Mapping[str, Sequence[str]], *extensions: str, **settings: Any) -> None:
        super().__init__(*extensions, **settings)
        self._answers = {address: list(each) for address, each in answers.items()}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Answering:
        for verb in ("MAIL", "RCPT") if self._answers else ():
            self._stack.enter_context(mock.patch.dict(_COMMANDS, {verb: partial(self._answer, _COMMANDS[verb])}))
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._stack.close()

    def _answer(self, usual: Any, connection: Connection, argument: str, who: Any) -> str:
        address = argument.partition(":")[2].partition(" ")[0].strip("<>")
        left = self._answers.get(address)
        return left.pop(0) if left else str(usual(connection, argument, who))


class Server(ModelServer):
    """Knows a few more commands, and says nothing more once it is `mute`.

    It becomes so by a MAIL, if it is `mute_from_mail`.
    """

    mute = False
    mute_from_mail = False

    def __enter__(self) -> Server:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(mock.patch.dict(_COMMANDS, MORE_COMMANDS))
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


class Later(Server):
    """Puts the first MAIL off by a 451."""

    put_off = 0

    def __enter__(self) -> Later:
        def mail(connection: Connection, argument: str, who: Any) -> str:
            if not self.put_off:
                self.put_off = 1
                return "451 4.3.0 later"
            return Connection._mail(connection, argument, who)

        super().__enter__()
        self._stack.enter_context(mock.patch.dict(_COMMANDS, {"MAIL": mail}))
        return self


class _Listener(logging.Handler):
    def __init__(self, wrong: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._wrong = wrong

    def createLock(self) -> None:
        self.lock = None  # it would be a switch point

    def handle(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            self._wrong.append(f"logged: {record.getMessage()}")
        return True


@contextlib.contextmanager
def no_exception_logged(wrong: list[str]) -> Iterator[None]:
    """What the package catches and logs, lest a thread of its own die of it, is a violation all the same."""
    logger, listener = logging.getLogger("threadmail"), _Listener(wrong)
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)


class Threads:
    """The threads of a scenario that needs no ledger, and what went wrong in them."""

    def __init__(self, run: Run, server: ModelServer, *, allowed: tuple[type[Exception], ...] = ()) -> None:
        self.run, self.server, self.allowed = run, server, allowed
        self.wrong: list[str] = []
        run.context.enter_context(server)
        run.context.enter_context(no_exception_logged(self.wrong))
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


def also(run: Run, office: PostOffice, check: Callable[[], list[str]]) -> None:
    """Judge by the oracle, and by `check`."""

    def judge() -> Verdict:
        given_up = run.scheduler.ending is not None
        usual = verdict(office.server, office.ledger, failures=office.failures, given_up=given_up)
        more = () if given_up else tuple(check())
        return Verdict((*usual.violations, *more), usual.outcome, usual.transcript)

    run.judge(judge)


def on_time(begun: float, what: str) -> None:
    assert time.monotonic() - begun < IMMEDIATELY, f"{what} took longer than needed"


def no_thread_left() -> None:
    """None that the package has started goes on; those of the scenario itself nobody can ask about."""
    left = [thread for task, thread in list(facades.items()) if task.observed and thread.is_alive()]
    assert not left, "a thread was left behind"
