"""A time limit from outside that strikes in what the caller gives: an iterable, a callback, a message, a file.

Relatives of `test_time_limits.py`. What an iterable or a callback raises by itself waits until others have been told,
or is only logged, and what a message raises is its own fault; but what a signal handler raises there is the limit of
whoever called us. It comes out as it is, and at once.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.mail import envelope, message
from threadmail import Client, Envelope, Outcome, Receipt, ServerConfig, ThreadedSender
from threadmail import config as _config
from threadmail._message import address_field as _field
from threadmail._message import content as _content
from threadmail._message import file as _file
from threadmail._message import sevenbit as _sevenbit
from threadmail._protocol.progress import Progress
from threadmail._protocol.transaction import Terms, Transaction
from threadmail._transport import lookup as _lookup
from threadmail.testing import CaptureServer

LIMITS = [TimeoutError("over"), RuntimeError("over"), ValueError("over"), Exception("over")]

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals of one's own are POSIX's")


def strike(*_: object, **__: object) -> Any:
    """The signal comes here, and its handler raises."""
    signal.raise_signal(signal.SIGUSR1)
    pytest.fail("no handler came")


@contextmanager
def limited(limit: Exception) -> Iterator[None]:
    """The handler is there; what it raises must come out of the block."""

    def handler(*_: object) -> None:
        raise limit.with_traceback(None)  # else with the frames of an earlier test

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(type(limit)) as caught:
            yield
        assert caught.value is limit
    finally:
        signal.signal(signal.SIGUSR1, before)
        limit.__traceback__ = limit.__context__ = None


class Given:
    """An iterable that is struck as it makes its third message, and has one more."""

    def __init__(self) -> None:
        self.number = 0

    def __iter__(self) -> Given:
        return self

    def __next__(self) -> Envelope:
        self.number += 1
        if self.number == 3:
            strike()
        if self.number > 4:
            raise StopIteration
        return envelope(f"m{self.number}")


# ---------------------------------------------------------------- an iterable


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_a_client_sends_nothing_more_when_it_has_struck(limit: Exception) -> None:
    """What was pulled left after it, for as long as a server takes."""
    with CaptureServer() as server, Client(server.url) as client:
        with limited(limit):
            client.send_all(Given())
        assert client.stats().opened == 0
        client.send(envelope("after"))
        assert [m.sender for m in server.messages] == ["from-after@example.org"]


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
@pytest.mark.parametrize("call", ["send_all", "send_each"])
def test_a_sender_waits_for_no_message_when_it_has_struck(call: str, limit: Exception) -> None:
    over, left = threading.Event(), []

    def held(*_: object) -> None:
        over.wait(10.0)
        left.append(True)

    with CaptureServer() as server, ThreadedSender(server.url, before_final=held) as sender:
        try:
            with limited(limit):
                list(getattr(sender, call)(Given()))
            assert left == []  # two are under way
        finally:
            over.set()


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_who_goes_on_iterating_gets_every_receipt(limit: Exception) -> None:
    """As after Ctrl-C; and what the iterable has left."""
    with CaptureServer() as server, ThreadedSender(server.url) as sender:
        receipts: list[Receipt] = []
        stream = sender.send_each(Given())
        with limited(limit):
            receipts.extend(stream)
        receipts += stream
        assert sorted(r.sender for r in receipts) == [f"from-m{i}@example.org" for i in (1, 2, 4)]
        assert {r.outcome for r in receipts} == {Outcome.SENT}


def test_what_an_iterable_raises_by_itself_waits_for_what_it_gave() -> None:
    """Also a time limit that some function it calls has raised."""

    def of_its_own() -> Iterator[Envelope]:
        yield envelope("m1")
        raise TimeoutError("its own")

    with CaptureServer() as server, Client(server.url) as client, ThreadedSender(server.url) as sender:
        for number, send_all in enumerate((client.send_all, sender.send_all), 1):
            with pytest.raises(TimeoutError, match="its own"):
                send_all(of_its_own())
            assert len(server.messages) == number


# ---------------------------------------------------------------- a callback


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_it_is_not_taken_for_what_progress_raises(limit: Exception) -> None:
    with CaptureServer() as server, ThreadedSender(server.url) as sender, limited(limit):
        sender.send_all([envelope("a")], progress=strike)


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_nor_for_what_on_receipt_raises(limit: Exception) -> None:
    """Where that is called on the caller's thread: of what is refused at the door."""
    with CaptureServer() as server, ThreadedSender(server.url, on_receipt=strike) as sender, limited(limit):
        sender.send_all([b"no message"])


# ---------------------------------------------------------------- a message, a file, a certificate


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_it_is_no_fault_of_the_message_that_it_strikes(limit: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt said that the message cannot be written."""
    monkeypatch.setattr(Envelope, "from_message", strike)
    with CaptureServer() as server, Client(server.url) as client, ThreadedSender(server.url) as sender:
        for call in (client.send_all, sender.send_all):
            with limited(limit):
                call([message("a"), message("b")])
        with limited(limit):
            sender.submit(message("a"))
        assert server.connections_opened == 0


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_nor_of_one_whose_commands_are_written_ahead(limit: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "commands", strike)
    with limited(limit):
        refusal = Progress(envelope(), Terms()).refusal
        assert refusal is not None
        raise refusal


def read_in_blocks(path: Path) -> object:
    with CaptureServer() as server, Client(server.url) as client:
        path.write_bytes(b"From: a@example.org\r\nTo: b@example.org\r\n\r\n" + b"x\r\n" * _content.BLOCK)
        letter = Envelope.from_file(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_file, "_raw_blocks", strike)
            return client.send(letter)


def looked_at(path: Path) -> object:
    path.write_bytes(b"From: a@example.org\r\nTo: b@example.org\r\n\r\n" + b"x\r\n" * _content.BLOCK)
    source: Any = Envelope.from_file(path).source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_file, "_opened", strike)
        return source.require_unchanged()


def recoded(_: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sevenbit, "_recoded", strike)
        return _sevenbit.seven_bit(b"Subject: x\r\n\r\n\xe9\r\n")


def folded(_: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_field, "_by_policy", strike)
        return _field.folded("To", message()["To"], message().policy)


def certificates(path: Path) -> object:
    path.write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_config, "_verifying_context", strike)
        return ServerConfig("mx.example.org", cafile=os.fspath(path)).make_ssl_context()


def own_name(_: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getfqdn", strike)
        return _lookup._own_name.__wrapped__()


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
@pytest.mark.parametrize("does", [read_in_blocks, looked_at, recoded, folded, certificates, own_name])
def test_nor_of_what_is_read_or_written_out(does: Callable[[Path], object], limit: Exception, tmp_path: Path) -> None:
    with limited(limit):
        does(tmp_path / "given")
