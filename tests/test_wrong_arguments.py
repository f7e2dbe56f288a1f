"""What is given in the wrong kind is named at once, in the words of whoever gave it, and before a byte is written."""

from __future__ import annotations

import dataclasses
import random
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
    Closed,
    ConnectFailed,
    Deadline,
    InvalidConfig,
    InvalidEnvelope,
    NotSupported,
    Outcome,
    Reentered,
    ServerConfig,
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


# ---------------------------------------------------------------- the server


@pytest.mark.parametrize("name", ["pipelinig", "dsn", "starttls"])
def test_an_extension_that_is_not_used_anyway_is_named(name: str) -> None:
    """Else a slip of the pen would leave in use what was to be left out."""
    with pytest.raises(InvalidConfig) as caught:
        ServerConfig("h", without=frozenset({name, "SIZE"}))
    assert str(caught.value) == (
        f"without: {name!r} is not used anyway; what is: 8bitmime, chunking, pipelining, size, smtputf8"
    )


def test_the_mechanism_that_was_asked_for_is_named() -> None:
    with CaptureServer(auth={"ann": "right"}) as server:
        config = dataclasses.replace(server.config, username="ann", password="right", auth="PLAINN")
        with Client(config) as client, pytest.raises(NotSupported) as caught:
            client.send(message())
    assert str(caught.value).startswith("no mechanism to log in with: PLAINN was asked for, and the server offers ")


@pytest.mark.parametrize(("url", "said"), [("smtp://ann:hunter2", "the port is no number"), ("smtp://a]b", "host and")])
def test_a_port_that_is_no_number_is_not_shown(url: str, said: str) -> None:
    """Where the host was forgotten, it is a password."""
    with pytest.raises(InvalidConfig) as caught:
        ServerConfig.from_url(url)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith(": expected host, host:port or [IPv6 address]:port")
    assert "hunter2" not in str(caught.value)


def test_a_port_of_smtplibs_kind_is_named() -> None:
    with pytest.raises(ConnectFailed, match="port 'abc' is no number"):
        SMTP("localhost:abc")


# ---------------------------------------------------------------- what cannot be used just now


def test_who_is_in_the_middle_of_a_call_is_told_what_to_use_instead() -> None:
    said: list[str] = []

    def mail_of_it(_: object) -> None:
        with pytest.raises(Reentered) as caught:
            client.send(envelope("inner"))
        said.append(str(caught.value))

    with CaptureServer() as server, Client(server.url) as client:
        client.transmit(envelope(), before_final=mail_of_it)
    assert said == [
        "this thread is in the middle of a call on this client: a log handler or callback must use a client of its "
        "own, or ThreadedSender.submit()"
    ]


def test_a_pool_whose_clients_are_all_leased_by_who_wants_one_says_how_to_go_on() -> None:
    with CaptureServer() as server, ClientPool(server.url, max_size=1) as pool, pool.lease():
        with pytest.raises(Reentered, match="send with the client you leased, or raise max_size"):
            pool.send(envelope())


def test_what_is_closed_says_that_a_new_one_is_wanted() -> None:
    with CaptureServer() as server:
        for kind in (Client, ClientPool, ThreadedSender):
            one: Any = kind(server.url)
            one.close()
            with pytest.raises(Closed, match="is closed: make a new one"):
                one.send(envelope())


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


@pytest.mark.parametrize("kind", [Client, ClientPool, ThreadedSender])
@pytest.mark.parametrize(("given", "said"), [(random.Random, "type"), (random, "module"), (7, "int"), (0, "int")])
def test_chance_of_another_kind_is_named(given: Any, said: str, kind: Any) -> None:
    """It is used while a server is dialled: the class instead of one of it made hundreds of connections in a second."""
    with pytest.raises(InvalidConfig) as caught:
        kind("smtp://x", rng=given)
    assert str(caught.value) == f"rng is no random.Random but a {said}"
    for right in (random.Random(7), random.SystemRandom(), None):
        kind("smtp://x", rng=right).close()
