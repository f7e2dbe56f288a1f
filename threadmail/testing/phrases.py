"""What mail servers say all the time, as ready-made steps of a script: each reads in a line.

    [greeting(), ehlo("PIPELINING"), transaction(), answer("MAIL", "452 4.3.1 full"), goodbye()]

They speak in lock-step. For a client that pipelines, read first and answer then:

    [Expect("MAIL"), Expect("RCPT"), Expect("DATA"), Reply("250 ok"), Reply("550 no"), Reply("503 no recipient")]

or let `Serve` do it. This module owns words only.
"""

from __future__ import annotations

from .steps import Expect, ReadData, Reply, Step, Steps


def greeting(text: str = "220 mail.example.test ESMTP") -> Steps:
    """The server's first words."""
    return Steps([Reply(text)])


def ehlo(*extensions: str) -> Steps:
    """An EHLO answered with these extensions: ``ehlo("PIPELINING", "SIZE 1000")``."""
    lines = ["mail.example.test", *extensions]
    reply = "\n".join([*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"])
    return Steps([Expect("EHLO"), Reply(reply)])


def transaction(recipients: int = 1, final: str = "250 2.0.0 OK") -> Steps:
    """A message taken in lock-step: MAIL, `recipients` times RCPT, DATA and content, answered with `final`."""
    steps: list[Step] = [Expect("MAIL"), Reply("250 2.1.0 OK")]
    for _ in range(recipients):
        steps += [Expect("RCPT"), Reply("250 2.1.5 OK")]
    return Steps([*steps, Expect("DATA"), Reply("354 go ahead"), ReadData(), Reply(final)])


def answer(command: str, reply: str) -> Steps:
    """One command and its reply: ``answer("RCPT", "550 5.1.1 no such user")``."""
    return Steps([Expect(command), Reply(reply)])


def goodbye() -> Steps:
    """QUIT and its reply."""
    return Steps([Expect("QUIT"), Reply("221 2.0.0 Bye")])
