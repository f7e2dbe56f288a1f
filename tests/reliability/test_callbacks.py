"""What a callback or a log handler does to us: raise, or mail through the very client it is called for."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.loggers import handed_over
from tests.support.mail import envelope
from threadmail import (
    Client,
    ClientPool,
    Closed,
    ConnectFailed,
    DataRefused,
    Envelope,
    MailError,
    Outcome,
    Receipt,
    Reentered,
    RetryPolicy,
    ThreadedSender,
)
from threadmail.testing import ScriptedServer, Serve

PATIENCE = 10.0


def one(name: str) -> Envelope:
    return envelope(name).for_recipients(f"to-{name}@example.net")


def arrived(server: ScriptedServer) -> Counter[str]:
    return Counter(m.sender.removeprefix("from-").partition("@")[0] for m in server.messages)


class Mailing(logging.Handler):
    """As `logging.handlers.SMTPHandler`: sends a mail for what is logged, under the handler's own lock."""

    def __init__(self, send: Callable[[Envelope], object]) -> None:
        super().__init__()
        self._send = send
        self._inside = threading.local()
        self.errors: list[BaseException] = []
        self.sent = 0

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._inside, "yes", False):
            return  # the mail about the mail is logged as well
        self._inside.yes = True
        try:
            self.sent += 1
            self._send(one(f"log{self.sent}"))
        except Exception as exc:
            self.errors.append(exc)
            raise
        finally:
            self._inside.yes = False


@contextmanager
def handling(logger: str, handler: logging.Handler) -> Iterator[None]:
    log = logging.getLogger(logger)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@pytest.mark.parametrize("make", [Client, lambda url: ClientPool(url, max_size=1)], ids=["client", "pool of 1"])
def test_a_handler_that_mails_through_the_client_whose_dialogue_it_logs(make: Callable[[str], Any]) -> None:
    """It is refused with a clear error each time, at once, and the message arrives."""
    with ScriptedServer() as server, make(server.url) as subject:
        handler = Mailing(subject.send)
        with handling("threadmail.protocol", handler):
            assert subject.send(one("outer")).outcome is Outcome.SENT
        assert subject.send(one("next")).outcome is Outcome.SENT
        found = arrived(server)
    assert found["outer"] == found["next"] == 1
    assert max(found.values()) == 1
    assert sum(isinstance(error, Reentered) for error in handler.errors) > 5


def test_a_handler_that_mails_by_a_sender_that_mails_because_of_it() -> None:
    """`submit` waits for nobody, so a log of the sender may go out through the sender."""
    with ScriptedServer() as server:
        with ThreadedSender(server.url, workers=1) as sender:
            handler = Mailing(sender.submit)
            with handling("threadmail.protocol", handler):
                assert sender.send(one("outer"), deadline=PATIENCE).outcome is Outcome.SENT
        found = arrived(server)
    assert handler.errors == []
    assert found["outer"] == 1
    assert sum(found.values()) == 1 + handler.sent
    assert max(found.values()) == 1


class Waiting(logging.Handler):
    """Mails for what the application logs, and waits for the outcome, under the handler's own lock."""

    def __init__(self, send: Callable[[Envelope], object]) -> None:
        super().__init__()
        self._send = send
        self.inside, self.go, self.got = threading.Event(), threading.Event(), list[object]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "app":
            self.inside.set()
            assert self.go.wait(PATIENCE)
            self.got.append(self._send(one("alarm")))


@contextmanager
def logging_an_error(handler: Waiting) -> Iterator[threading.Thread]:
    """A thread of the application is in the handler when the block begins, and out of it when that is over."""
    thread = threading.Thread(target=logging.getLogger("app").error, args=("boom",), daemon=True)
    with handling("app", handler), handling("threadmail", handler):
        thread.start()
        assert handler.inside.wait(PATIENCE)
        yield thread
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the handler waits for who waits for it"
    handed_over()


def test_a_handler_that_waits_for_a_sender_whose_workers_log_to_it() -> None:
    """They log each line of the dialogue, the dials and the outcome, and he who waits has the handler's lock."""
    with ScriptedServer() as server, ThreadedSender(server.url, workers=1) as sender:
        handler = Waiting(sender.send)
        with logging_an_error(handler):
            handler.go.set()
    assert [receipt.outcome for receipt in handler.got if isinstance(receipt, Receipt)] == [Outcome.SENT]


def test_a_handler_that_waits_for_a_sender_whose_server_is_down() -> None:
    with ScriptedServer() as server:
        url = server.url  # where nobody listens, soon
    with ThreadedSender(url, workers=1, retry=RetryPolicy(attempts=1)) as sender:
        handler = Waiting(lambda envelope: sender.submit(envelope).exception())
        with logging_an_error(handler):
            handler.go.set()
    assert [type(error).__mro__[1] for error in handler.got] == [ConnectFailed]


def test_a_handler_that_waits_for_a_client_that_another_thread_logs_with() -> None:
    """That one is in a dialogue, under `sync_root`, when the handler is called, and comes to log the rest of it."""
    with ScriptedServer() as server, Client(server.url) as client:
        handler = Waiting(client.send)
        with logging_an_error(handler):
            with client.sync_root:
                handler.go.set()
                assert client.send(one("outer")).outcome is Outcome.SENT
    assert [receipt.outcome for receipt in handler.got if isinstance(receipt, Receipt)] == [Outcome.SENT]
    assert arrived(server) == {"outer": 1, "alarm": 1}


class Broken(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise LookupError("the handler is broken")


def test_a_protocol_handler_that_raises() -> None:
    with ScriptedServer() as server, handling("threadmail.protocol", Broken()):
        with Client(server.url) as client, ThreadedSender(server.url, workers=1) as sender:
            assert client.send(one("client")).outcome is Outcome.SENT
            assert sender.send(one("sender"), deadline=PATIENCE).outcome is Outcome.SENT
        assert arrived(server) == {"client": 1, "sender": 1}


def test_a_handler_of_the_senders_log_that_raises() -> None:
    """The sender logs refused messages, dials that fail and callbacks that raise, on the lane that has to go on."""

    def broken(receipt: Receipt) -> None:
        raise LookupError("the callback is broken")

    refusing = Serve(replies={"DATA": "554 5.6.0 no"})
    with ScriptedServer([refusing]) as server, handling("threadmail.sender", Broken()):
        with ThreadedSender(server.url, workers=1, on_receipt=broken) as sender:
            futures = [sender.submit(one(name), deadline=PATIENCE) for name in ("a", "b")]
            for future in futures:
                assert isinstance(future.exception(PATIENCE), DataRefused)
            assert sender.stats().opened == 1, "the lane did not go on"
        assert server.messages == []
    with ThreadedSender("smtp://127.0.0.1:1", retry=RetryPolicy(attempts=1)) as unreachable:
        with handling("threadmail.sender", Broken()):
            assert isinstance(unreachable.submit(one("c")).exception(PATIENCE), ConnectFailed)


@pytest.mark.parametrize("attempt", ["send", "send_all", "close"])
def test_a_callback_that_waits_for_its_own_sender_is_told_so(attempt: str) -> None:
    refused: list[BaseException] = []

    def callback(receipt: Receipt) -> None:
        work: dict[str, Callable[[], object]] = {
            "send": lambda: sender.send(one("again")),
            "send_all": lambda: sender.send_all([one("again")]),
            "close": sender.close,
        }
        try:
            work[attempt]()
        except MailError as error:
            refused.append(error)
            raise

    with ScriptedServer() as server:
        with ThreadedSender(server.url, workers=1, on_receipt=callback) as sender:
            assert sender.send(one("a"), deadline=PATIENCE).outcome is Outcome.SENT
            if attempt == "close":  # that has begun
                with pytest.raises(Closed):
                    sender.send(one("b"))
            else:
                assert sender.send(one("b"), deadline=PATIENCE).outcome is Outcome.SENT
        assert arrived(server) == ({"a": 1} if attempt == "close" else {"a": 1, "b": 1})
    assert [type(error) for error in refused] == [Reentered] * (1 + (attempt != "close"))


def test_callbacks_of_every_kind_that_raise() -> None:
    def broken(*_: object) -> None:
        raise LookupError("the callback is broken")

    with ScriptedServer() as server:
        with ThreadedSender(server.url, workers=2, on_receipt=broken) as sender:
            future = sender.submit(one("a"))
            future.add_done_callback(broken)
            assert future.result(PATIENCE).outcome is Outcome.SENT
            report = sender.send_all([one(f"m{number}") for number in range(5)], progress=broken, deadline=PATIENCE)
            assert [receipt.outcome for receipt in report] == [Outcome.SENT] * 5
        assert set(arrived(server).values()) == {1}
        assert len(server.messages) == 6


def test_callbacks_that_mail_on() -> None:
    """A receipt for each receipt: through the sender's own queue, and through a client and a pool beside it."""
    with ScriptedServer() as server, Client(server.url) as client, ClientPool(server.url) as pool:

        def mail_on(receipt: Receipt) -> None:
            name = receipt.sender.removeprefix("from-").partition("@")[0]
            if name.startswith("first"):
                client.send(one(f"client-{name}"), deadline=PATIENCE)
                pool.send(one(f"pool-{name}"), deadline=PATIENCE)
                sender.submit(one(f"sender-{name}"))
                mailed_on.release()

        mailed_on = threading.Semaphore(0)
        with ThreadedSender(server.url, workers=2, on_receipt=mail_on) as sender:
            sender.send_all([one(f"first{number}") for number in range(5)], deadline=PATIENCE)
            # Who waits for a message is told before the callback, which may take its time.
            assert all(mailed_on.acquire(timeout=PATIENCE) for _ in range(5))
        assert set(arrived(server).values()) == {1}
        assert len(server.messages) == 20
