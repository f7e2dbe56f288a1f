"""Messages that can be told apart, and the count of what became of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from email.message import EmailMessage

from threadmail import Envelope
from threadmail.testing import CapturedMessage, CaptureServer


def message(name: str = "a") -> EmailMessage:
    """A small message whose sender, recipients and body all carry `name`."""
    m = EmailMessage()
    m["From"] = f"from-{name}@example.org"
    m["To"] = f"to-{name}@example.net, too-{name}@example.net"
    m["Subject"] = f"About {name}"
    m.set_content(f"This is {name}.\n.{name} begins with a dot\n")
    return m


def envelope(name: str = "a") -> Envelope:
    """The same as an envelope, made without the email package: ready in microseconds."""
    content = (
        f"From: from-{name}@example.org\r\nTo: to-{name}@example.net\r\nSubject: About {name}\r\n"
        f"Message-ID: <{name}@example.org>\r\n\r\nThis is {name}.\r\n.{name} begins with a dot\r\n"
    )
    return Envelope(f"from-{name}@example.org", [f"to-{name}@example.net", f"too-{name}@example.net"], content)


def names(threads: int, each: int) -> list[str]:
    return [f"t{i}m{k}" for i in range(threads) for k in range(each)]


def intact(arrived: Iterable[CapturedMessage]) -> Counter[str]:
    """How often each message arrived whole: with its own sender, its own recipients and its own body."""
    found: Counter[str] = Counter()
    for m in arrived:
        name = m.sender.removeprefix("from-").partition("@")[0]
        mine = envelope(name)
        body = m.content.partition(b"\r\n\r\n")[2]
        if m.recipients == mine.recipients and body == mine.content.partition(b"\r\n\r\n")[2]:
            found[name] += 1
        else:
            found[f"{name} (mixed)"] += 1
    return found


def said_goodbye(server: CaptureServer) -> bool:
    """Whether each connection that carried a message ended with QUIT.

    A lane that is still dialling when the last message has left is hung up on, and that is no fault.
    """
    return len({m.connection for m in server.messages}) <= server.quits <= server.connections_opened


def in_threads(count: int, work: Callable[[int], object]) -> list[BaseException]:
    """Run `work(i)` in `count` threads that start together; returns what they raised."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        barrier.wait(10.0)
        try:
            work(i)
        except BaseException as exc:  # noqa: BLE001 - told to the test
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(i,), name=f"test-{i}") for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60.0)
    assert not any(t.is_alive() for t in threads), "a thread hangs"
    return errors
