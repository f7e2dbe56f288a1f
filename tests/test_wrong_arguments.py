"""What is given in the wrong kind is named at once, in the words of whoever gave it, and before a byte is written."""

from __future__ import annotations

from collections.abc import Callable
from email.message import EmailMessage
from fractions import Fraction
from typing import Any

import pytest

from tests.support.mail import envelope, message
from threadmail import (
    SMTP,
    Client,
    ClientPool,
    Deadline,
    InvalidConfig,
    InvalidEnvelope,
    Outcome,
    ThreadedSender,
    Throttle,
)
from threadmail.testing import CaptureServer

CONTENT = b"From: ada@example.org\r\nTo: bob@example.net\r\n\r\nhello\r\n"
ONE: list[Any] = [message(), EmailMessage(), CONTENT, bytearray(CONTENT), memoryview(CONTENT), envelope(), "a message"]
CALLS: list[tuple[type[Client | ThreadedSender], str]] = [
    (Client, "send_all"),
    (ThreadedSender, "send_all"),
    (ThreadedSender, "send_each"),
]


@pytest.mark.parametrize(("kind", "call"), CALLS)
@pytest.mark.parametrize("one", ONE, ids=lambda one: type(one).__name__)
def test_one_message_is_not_taken_for_many(one: Any, kind: type[Client | ThreadedSender], call: str) -> None:
    """An EmailMessage iterates over the names of its header, and each of them was a message that could not be sent."""
    with CaptureServer() as server, kind(server.url) as sender:
        with pytest.raises(TypeError) as caught:
            getattr(sender, call)(one)
        assert str(caught.value) == f"{call}() takes messages, and this is one: use send(), or [message]"
        assert len(list(getattr(sender, call)([envelope("b")]))) == 1  # it is as good as before
        assert len(server.wait_for(1)) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("From: a message", "not str"),
        (None, "not NoneType"),
        (17, "not int"),
        ([message()], "not list: use send_all()"),
        ((message(),), "not tuple: use send_all()"),
        (iter([message()]), "not list_iterator: use send_all()"),
        ((m for m in [message()]), "not generator: use send_all()"),
    ],
)
def test_what_is_no_message_is_named(given: Any, said: str) -> None:
    with CaptureServer() as server, Client(server.url) as client, ThreadedSender(server.url) as sender:
        calls: list[Callable[[Any], object]] = [client.send, sender.send, sender.submit]
        for send in calls:
            with pytest.raises(InvalidEnvelope) as caught:
                send(given)
            assert str(caught.value) == f"a message is an EmailMessage, bytes or an Envelope, {said}"


# ---------------------------------------------------------------- numbers

NAN = float("nan")
DURATIONS: list[tuple[Any, str]] = [
    ("20", "is no number of seconds but a str"),
    (True, "is no number of seconds but a bool"),
    ([], "is no number of seconds but a list"),
    (NAN, "must be a number of seconds, not nan"),
]


@pytest.mark.parametrize(("given", "said"), DURATIONS, ids=lambda given: str(given))
def test_a_deadline_that_is_no_number_is_named(given: Any, said: str) -> None:
    said = f"deadline or timeout {said}"
    with CaptureServer() as server, Client(server.url) as client, ThreadedSender(server.url) as sender:
        pool = ClientPool(server.url)
        smtp = SMTP(server.host, server.port)
        calls: list[Callable[[], object]] = [
            lambda: client.send(envelope(), deadline=given),
            lambda: client.send_all([envelope()], deadline=given),
            lambda: client.connect(deadline=given),
            lambda: client.noop(deadline=given),
            lambda: client.close(timeout=given),
            lambda: sender.send(envelope(), deadline=given),
            lambda: sender.submit(envelope(), deadline=given),
            lambda: sender.send_all([envelope()], deadline=given),
            lambda: sender.send_each([envelope()], deadline=given),
            lambda: sender.close(timeout=given),
            lambda: pool.send(envelope(), deadline=given),
            lambda: pool.lease(timeout=given).__enter__(),
            lambda: pool.close(timeout=given),
            lambda: smtp.noop(deadline=given),
            lambda: smtp.send_message(message(), deadline=given),
            lambda: Throttle(1).acquire(deadline=given),
            lambda: Deadline.after(given),
            lambda: Deadline().within(given),
        ]
        for call in calls:
            with pytest.raises(InvalidConfig) as caught:
                call()
            assert str(caught.value) == said
        smtp.close()
        for one in (client, sender, pool):  # what was refused has changed nothing
            assert one.send(envelope("after"), deadline=20).outcome is Outcome.SENT
        pool.close(timeout=5)
        assert len(server.wait_for(3)) == 3


@pytest.mark.parametrize("given", [20, 20.5, Fraction(41, 2), Deadline.after(20), None])
def test_any_number_is_a_deadline(given: Any) -> None:
    assert Deadline.after(given).at > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": "8"}, "workers is no int but a str"),
        ({"workers": 2.5}, "workers is no int but a float"),
        ({"workers": True}, "workers is no int but a bool"),
        ({"workers": None}, "workers is no int but a NoneType"),
        ({"queue_size": "10"}, "queue_size is no int but a str"),
        ({"queue_size": 2.5}, "queue_size is no int but a float"),
        ({"workers": 0}, "workers and queue_size must be at least 1, not 0 and 1000"),
        ({"queue_size": 0}, "workers and queue_size must be at least 1, not 4 and 0"),
        ({"retry": 5}, "retry is no RetryPolicy but a int"),
        ({"throttle": 10}, "throttle is no Throttle but a int"),
        ({"on_receipt": "log"}, "on_receipt is no callable but a str"),
        ({"before_final": 1}, "before_final is no callable but a int"),
    ],
)
def test_a_setting_of_another_kind_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        ThreadedSender("smtp://x", **settings)
    assert str(caught.value) == said
