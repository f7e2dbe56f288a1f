"""The product in one test: eight threads, one sender, every message whole. And without the lock: broken."""

from __future__ import annotations

import smtplib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.mail import envelope, in_threads, intact, names, said_goodbye
from threadmail import SMTP, Client, ClientPool, ThreadedSender
from threadmail.testing import CaptureServer

THREADS, EACH = 8, 200

Send = Callable[[str], object]


@contextmanager
def shared_smtp(server: CaptureServer) -> Iterator[Send]:
    with SMTP(server.host, server.port, local_hostname="test") as client:

        def send(name: str) -> object:
            e = envelope(name)
            return client.sendmail(e.sender, e.recipients, e.content)

        yield send


@contextmanager
def shared_client(server: CaptureServer) -> Iterator[Send]:
    with Client(server.url) as client:
        yield lambda name: client.send(envelope(name))


@contextmanager
def pool_of_three(server: CaptureServer) -> Iterator[Send]:
    with ClientPool(server.url, max_size=3) as pool:
        yield lambda name: pool.send(envelope(name))


@contextmanager
def sender_of_eight(server: CaptureServer) -> Iterator[Send]:
    with ThreadedSender(server.url, workers=8) as sender:
        yield lambda name: sender.submit(envelope(name))


@pytest.mark.parametrize(
    ("way", "connections"),
    [(shared_smtp, 1), (shared_client, 1), (pool_of_three, 3), (sender_of_eight, 8)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_eight_threads_deliver_everything_whole(
    way: Callable[[CaptureServer], Iterator[Send]], connections: int
) -> None:
    """1,600 of 1,600, each once, with its own sender, recipients and body, and never more connections than allowed."""
    with CaptureServer() as server:
        with way(server) as send:  # type: ignore[attr-defined]

            def work(i: int) -> None:
                for k in range(EACH):
                    send(f"t{i}m{k}")

            errors = in_threads(THREADS, work)
        assert errors == []
        assert intact(server.messages) == Counter(names(THREADS, EACH))
        assert server.max_simultaneous <= connections
        assert said_goodbye(server)


def test_the_raw_smtplib_client_breaks() -> None:
    """The same work on `smtplib.SMTP`: hardly a thread gets through, and the server does not get 400 whole messages."""
    with CaptureServer() as server:
        client = smtplib.SMTP(server.host, server.port, local_hostname="test", timeout=0.5)

        def work(i: int) -> None:
            for k in range(50):
                e = envelope(f"t{i}m{k}")
                client.sendmail(e.sender, e.recipients, e.content)

        errors = in_threads(THREADS, work)
        client.close()
        whole = sum(count for name, count in intact(server.messages).items() if "mixed" not in name)
    assert errors, "no thread noticed anything"
    assert whole < THREADS * 50


def test_sync_root_makes_several_calls_one_step() -> None:
    """Inside `with client.sync_root:` nobody else's message comes between two of ours."""
    with CaptureServer() as server, Client(server.url) as client:

        def work(i: int) -> None:
            for k in range(5):
                with client.sync_root:
                    client.send(envelope(f"t{i}m{2 * k}"))
                    client.send(envelope(f"t{i}m{2 * k + 1}"))

        assert in_threads(4, work) == []
        order = [m.sender.partition("@")[0].removeprefix("from-") for m in server.messages]
    pairs = [(order[i], order[i + 1]) for i in range(0, len(order), 2)]
    assert all(a.partition("m")[0] == b.partition("m")[0] for a, b in pairs)
    assert all(int(b.partition("m")[2]) == int(a.partition("m")[2]) + 1 for a, b in pairs)
