"""What is given in the wrong kind is named at once, in the words of whoever gave it, and before a byte is written."""

from __future__ import annotations

from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

import pytest

from tests.support.mail import envelope, message
from threadmail import Client, InvalidEnvelope, ThreadedSender
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
