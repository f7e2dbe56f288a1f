"""Whose patience ended is part of the error: `deadline_passed` says that the caller's own deadline did.

Then nothing is known about the server, and nobody who shares it with the caller may conclude anything. A server that
is silent for the time-outs of the config is another matter. Each phase is ended both ways, by the same silence.
"""

from __future__ import annotations

import copy
import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.test_deadlines import BIG, NAME, STAGES, UNTIL_354, Resolver, Unread, config_of, resolver
from tests.support.mail import envelope
from threadmail import Client, MailError, Phase, Security, ServerConfig, Throttle, TimedOut, Timeouts, errors
from threadmail._runtime.deadline import Deadline
from threadmail.testing import Drip, Expect, Script, ScriptedServer, Stall, Step, answer, ehlo, greeting

__all__ = ["resolver"]  # a fixture

SHORT, LONG = 0.15, 30.0
QUICK = Timeouts.all(SHORT)

#: The caller's deadline is the shorter one, or the config's time-outs are.
MINE, THEIRS = (SHORT, Timeouts()), (LONG, QUICK)
whose = pytest.mark.parametrize(("deadline", "timeouts"), [MINE, THEIRS], ids=["deadline", "time-out"])


def failure(config: ServerConfig, deadline: float, message: Any = None) -> MailError:
    with Client(config) as client:
        with pytest.raises(MailError) as info:
            client.send(message or envelope(), deadline=deadline)
    return info.value


@whose
@pytest.mark.parametrize("stage", STAGES)
def test_at_every_stage_of_a_dialogue(stage: str, deadline: float, timeouts: Timeouts) -> None:
    steps, phase, _ = STAGES[stage]
    with ScriptedServer([*steps, Stall()]) as server:
        config = config_of(server, timeouts=timeouts, username="ann", password="secret")
        error = failure(config, deadline)
    if deadline is SHORT and error.phase is not phase:
        pytest.skip("the machine is too busy to get so far before the deadline")
    assert error.phase is phase
    assert error.deadline_passed is (deadline is SHORT)
    assert pickle.loads(pickle.dumps(error)).deadline_passed is error.deadline_passed
    assert copy.copy(error).deadline_passed is error.deadline_passed


@whose
def test_while_a_reply_comes_a_byte_at_a_time(deadline: float, timeouts: Timeouts) -> None:
    with ScriptedServer([greeting(), Expect("EHLO"), Drip(b"250-" + b"x" * 5000 + b"\r\n", 0.01)]) as server:
        assert failure(config_of(server, timeouts=timeouts), deadline).deadline_passed is (deadline is SHORT)


@whose
@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_in_a_tls_handshake(security: Security, deadline: float, timeouts: Timeouts) -> None:
    before: Script = [greeting(), ehlo("STARTTLS"), answer("STARTTLS", "220 go")]
    with ScriptedServer([*(before if security is Security.STARTTLS else []), Stall()]) as server:
        error = failure(config_of(server, security=security, timeouts=timeouts), deadline)
    assert error.phase is Phase.TLS
    assert error.deadline_passed is (deadline is SHORT)


@whose
def test_while_content_is_written(deadline: float, timeouts: Timeouts) -> None:
    unread: Step = Unread()
    assert isinstance(unread, Unread)
    with ScriptedServer([*UNTIL_354, unread]) as server:
        try:
            error = failure(config_of(server, timeouts=timeouts), deadline, BIG)
        finally:
            unread.over.set()
    assert error.phase is Phase.CONTENT
    assert error.deadline_passed is (deadline is SHORT)


@contextmanager
def full(listener: socket.socket) -> Iterator[int]:
    """A listener whose queue of connections is full: who dials it is neither let in nor refused."""
    with listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            knock = stack.enter_context(socket.socket())
            knock.setblocking(False)
            knock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@whose
def test_while_the_server_is_dialled(deadline: float, timeouts: Timeouts) -> None:
    with full(socket.socket()) as port:
        config = ServerConfig("127.0.0.1", port, local_hostname="test", timeouts=timeouts)
        error = failure(config, deadline)
    assert isinstance(error, TimedOut)
    assert error.phase is Phase.CONNECT
    assert error.deadline_passed is (deadline is SHORT)


@whose
def test_while_its_name_is_looked_up(resolver: Resolver, deadline: float, timeouts: Timeouts) -> None:
    error = failure(ServerConfig(NAME, 25, local_hostname="test", timeouts=timeouts), deadline)
    assert isinstance(error, TimedOut)
    assert error.deadline_passed is (deadline is SHORT)


def test_while_another_thread_has_the_client() -> None:
    client = Client("smtp://127.0.0.1:9")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with client.sync_root:
            held.set()
            done.wait(10.0)

    holder = threading.Thread(target=hold, name="holder")
    holder.start()
    try:
        assert held.wait(10.0)
        with pytest.raises(TimedOut) as info:
            client.send(envelope(), deadline=SHORT)
    finally:
        done.set()
        holder.join(10.0)
        client.close()
    assert info.value.deadline_passed
    assert info.value.may_resend


def test_before_anything_was_done_and_where_a_throttle_is_waited_for() -> None:
    with pytest.raises(TimedOut) as info:
        Deadline.after(-1.0).check("connecting")
    assert info.value.deadline_passed
    throttle = Throttle(1, per=3600.0)
    throttle.acquire()
    with pytest.raises(TimedOut) as info:
        throttle.acquire(deadline=SHORT)
    assert info.value.deadline_passed


def test_a_refused_connection_blames_nobodys_patience() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        config = ServerConfig("127.0.0.1", closed.getsockname()[1], local_hostname="test")
        error = failure(config, SHORT)
    assert isinstance(error, errors.ConnectionRefused)
    assert not error.deadline_passed


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there are no Unix sockets here")
def test_a_unix_socket_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    """`connect=None` means for ever, and no longer a millisecond."""
    path = str(tmp_path / "lmtp")
    seen: list[float | None] = []

    class Seeing(socket.socket):
        def connect(self, address: Any) -> None:
            seen.append(self.gettimeout())
            raise ConnectionRefusedError(111, "seen enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", Seeing)
        config = ServerConfig(path, lmtp=True, local_hostname="test", timeouts=Timeouts(connect=None))
        with Client(config) as client, pytest.raises(errors.ConnectionRefused):
            client.send(envelope())
    assert seen == [None]
