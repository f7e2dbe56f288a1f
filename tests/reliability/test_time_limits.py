"""A time limit from outside that looks like the socket's own: a TimeoutError, or another OSError.

`signal.alarm` with a handler that raises TimeoutError is the textbook's way to limit a call. Such a limit comes out as
it is, wherever it strikes, and what it strikes is never written twice. Here it comes as a call on the socket returns,
where it was taken for the socket's own time-out.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from tests.support.mail import envelope
from threadmail import SMTP, Client, ClientPool, Envelope, MailError, Outcome, TimedOut
from threadmail._transport.socket import TimedSocket, is_from_outside
from threadmail.testing import CaptureServer


class Limit(TimeoutError):
    """A time limit of somebody's own."""


class Worded(TimeoutError):
    """One whose class has a text of its own: another thread sets the class alone."""

    def __init__(self, *_: object) -> None:
        super().__init__("exceeded the timeout value")


LIMITS = [
    Worded(),
    TimeoutError("time limit"),
    TimeoutError("timed out"),
    Limit("over"),
    OSError("over"),
    TimeoutError(),
    TimeoutError(errno.ETIME, "over"),
    BlockingIOError(errno.EAGAIN, "over"),
]


class Strike:
    """Raises as the n-th call of that name on a socket returns; the last bytes of the content may be in it."""

    def __init__(self, limit: OSError, name: str, at: int | None) -> None:
        self.limit, self.name, self.at = limit, name, at
        self.passed = 0

    def over(self, call: Callable[[], object]) -> object:
        def look(frame: FrameType, event: str, called: Any) -> None:
            if event != "c_return" or getattr(called, "__name__", "") != self.name:
                return
            if "_transport" not in frame.f_code.co_filename:
                return
            self.passed += 1
            if self.passed == self.at:
                sys.setprofile(None)
                raise self.limit.with_traceback(None)

        sys.setprofile(look)
        try:
            return call()
        finally:
            sys.setprofile(None)


def one(name: str) -> Envelope:
    return envelope(name).for_recipients(f"to-{name}@example.net")


@pytest.mark.parametrize("name", ["send", "recv"])
@pytest.mark.parametrize("limit", LIMITS, ids=repr)
@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_it_comes_out_and_nothing_is_written_twice(name: str, limit: OSError, where: str) -> None:
    """Of 12 struck messages 2 arrived with 64 KiB of their content twice, and were told SENT."""
    wrong: list[str] = []
    names: list[str] = []

    def strike_each() -> None:
        with CaptureServer() as server, Client(server.url) as client:
            client.send(one("first"))
            dry = Strike(limit, name, None)
            dry.over(lambda: client.send(one("dry")))
            for number in range(1, dry.passed + 1):
                letter = one(f"n{number}")
                names.append(letter.sender)
                strike = Strike(limit, name, number)
                try:
                    strike.over(partial(client.send, letter))
                except type(limit) as exc:
                    if exc is not limit:
                        wrong.append(f"{number}: {exc!r}")
                except MailError as exc:
                    wrong.append(f"{number}: {exc!r}")
                else:
                    if strike.passed >= number:  # replies may come in fewer pieces than they did
                        wrong.append(f"{number}: the limit was swallowed")
                client.send(one(f"after{number}"))
            server.wait_for(dry.passed + 2)
            arrived = [(mail.sender, mail.content) for mail in server.messages]
            for each in names:
                contents = [content for sender, content in arrived if sender == each]
                if len(contents) > 1 or any(content.count(b"Subject:") != 1 for content in contents):
                    wrong.append(f"{each}: {contents}")

    if where == "main thread":
        strike_each()
    else:
        thread = threading.Thread(target=strike_each)
        thread.start()
        thread.join(60.0)
        assert not thread.is_alive()
    assert len(names) >= 2
    assert wrong == []


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_the_one_in_a_batch_whose_end_was_written_is_in_doubt(limit: OSError) -> None:
    """It was told NOT_SENT, to be sent again, and had arrived."""
    with CaptureServer() as server, Client(server.url) as client:
        client.send(one("first"))
        dry = Strike(limit, "send", None)
        dry.over(lambda: client.send(one("dry")))
        told: list[object] = []

        def send() -> None:
            try:
                client.send(one("struck"))
            except MailError as error:
                told.append(error.outcome)

        try:
            Strike(limit, "send", dry.passed).over(send)
        except type(limit):
            pass
        assert told in ([], [Outcome.IN_DOUBT])
        server.wait_for(3)
        assert [mail.sender for mail in server.messages].count(one("struck").sender) == 1


@pytest.mark.parametrize("limit", LIMITS[:3], ids=repr)
def test_the_drop_in_class_and_the_pool_let_it_out_as_well(limit: OSError) -> None:
    with CaptureServer() as server:
        smtp = SMTP(server.host, server.port)
        with pytest.raises(type(limit)) as caught:
            Strike(limit, "recv", 1).over(smtp.noop)
        assert caught.value is limit
        smtp.close()
        with ClientPool(server.url, max_size=1) as pool:
            pool.send(one("first"))
            with pytest.raises(type(limit)):
                Strike(limit, "recv", 1).over(lambda: pool.send(one("second")))
            assert pool.send(one("third")).outcome is Outcome.SENT
            assert pool.stats().leased == 0


def test_what_a_socket_raises_in_our_own_frame_is_not_from_outside() -> None:
    a, b = socket.socketpair()
    with a, b:
        a.settimeout(0.001)
        wire = TimedSocket(a)
        with pytest.raises(TimeoutError) as caught:
            wire._patiently(a.recv, 1, 0.001, "nothing came")
        trace = caught.value.__traceback__
        assert trace is not None
        caught.value.__traceback__ = trace.tb_next  # without this test's own frame
        assert not is_from_outside(caught.value, a)


@pytest.mark.parametrize("name", ["send", "recv"])
def test_the_error_of_another_client_that_a_handler_uses_is_from_outside(name: str) -> None:
    """The handler's `pool.send` found no client free in time: the write it interrupted was made again."""
    with CaptureServer() as server, Client(server.url) as client, ClientPool(server.url, max_size=1) as pool:
        client.send(one("first"))

        with pool.lease():

            def look(frame: FrameType, event: str, called: Any) -> None:
                ours = event == "c_return" and "_transport" in frame.f_code.co_filename
                if ours and getattr(called, "__name__", "") == name and not struck:
                    struck.append(name)
                    sys.setprofile(None)
                    in_threads_with_none_free(pool)

            struck: list[str] = []
            sys.setprofile(look)
            try:
                with pytest.raises(TimedOut):
                    client.send(one("struck"))
            finally:
                sys.setprofile(None)
        assert client.send(one("after")).outcome is Outcome.SENT
        server.wait_for(2)
        assert all(mail.content.count(b"Subject:") == 1 for mail in server.messages)


def in_threads_with_none_free(pool: ClientPool) -> None:
    """What a handler may do: it ends in a TimedOut of ours."""
    raise TimedOut("no client of the pool came free in time")
