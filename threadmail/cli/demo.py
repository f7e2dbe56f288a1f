"""`threadmail demo`: the quickest proof that it works.

Owns a server on this machine, a number of messages no two of which are alike, and the comparison of what was sent with
what arrived, byte for byte. Guarantees: exit code 0 means that every message arrived once, with its own sender, its
own recipients and its own content.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .._runtime.deadline import now
from ..envelope import Envelope
from ..sender import ThreadedSender
from ..testing.messages import CapturedMessage
from . import exit_codes as codes
from .exit_codes import Exit
from .output import Output, Tone
from .sandbox import capture_server

_SENDER = "sender-{}@demo.example"


@dataclass(frozen=True)
class Verdict:
    """What arrived, held against what was sent."""

    intact: int
    lost: int
    repeated: int
    wrong: int


def run(options: argparse.Namespace, out: Output) -> Exit:
    """Send, compare, tell."""
    total = options.messages
    with capture_server() as server:
        out.note(f"sending {total:,} messages from {options.workers} threads to {server.host}:{server.port}")
        with ThreadedSender(server.config, workers=options.workers) as sender:
            with out.progress("Sending", total) as meter:
                began = now()
                report = sender.send_all(_envelopes(total), progress=lambda *_: meter.advance())
                seconds = now() - began
        verdict = compare(total, server.messages)
        connections = server.connections_opened
    rows = [
        (f"{verdict.intact:,}", "delivered intact: own sender, own recipients, own content, once"),
        (f"{verdict.lost:,}", "lost"),
        (f"{verdict.repeated:,}", "delivered more than once"),
        (f"{verdict.wrong:,}", "with another message's sender, recipients or content"),
    ]
    good = verdict == Verdict(total, 0, 0, 0)
    if not out.quiet:
        out.table(("messages", f"over {connections} connections"), rows, [Tone.GOOD, *[Tone.PLAIN] * 3])
        out.say()
    pace = f"{total / seconds:,.0f} messages a second"
    out.say(f"{verdict.intact:,} of {total:,} delivered intact, {pace}", Tone.GOOD if good else Tone.BAD)
    for receipt in report.failures[:3]:
        out.complain(str(receipt))
    if good:
        return Exit.OK
    return codes.worst(codes.of_receipt(r) for r in report.failures) if report.failures else Exit.SOFTWARE


def compare(total: int, arrived: Iterable[CapturedMessage]) -> Verdict:
    """Hold what arrived against the messages 0 to `total` - 1."""
    copies: Counter[int] = Counter()
    wrong = 0
    numbers = {_SENDER.format(number): number for number in range(total)}
    for message in arrived:
        number = numbers.get(message.sender)
        expected = None if number is None else _envelope(number)
        if number is None or expected is None:
            wrong += 1
        elif (message.recipients, message.content) == (expected.recipients, expected.content):
            copies[number] += 1
        else:
            wrong += 1
    return Verdict(
        intact=sum(count == 1 for count in copies.values()),
        lost=total - len(copies),
        repeated=sum(count > 1 for count in copies.values()),
        wrong=wrong,
    )


def _envelopes(total: int) -> Iterator[Envelope]:
    return (_envelope(number) for number in range(total))


def _envelope(number: int) -> Envelope:
    """Message `number`: always the same, and like no other."""
    chance = random.Random(number)
    recipients = [f"recipient-{number}-{i}@demo.example" for i in range(1 + number % 3)]
    lines = [f"{'.' * chance.randrange(3)}{chance.getrandbits(chance.randrange(8, 250)):x}" for _ in range(20)]
    header = (
        f"From: {_SENDER.format(number)}",
        f"To: {', '.join(recipients)}",
        f"Subject: Message {number} of the demo",
        f"Message-ID: <{number}@demo.example>",
    )
    return Envelope(_SENDER.format(number), recipients, "\r\n".join([*header, "", *lines, f"The end of {number}.", ""]))
