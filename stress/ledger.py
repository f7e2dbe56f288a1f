"""What the soak's threads handed in, what they were told about it, and what the server has: the three must agree.

Owns the messages, their names and the judgement. A message's name is its Message-ID; its addresses and its content
carry it too, so that a mixture of two messages is seen. Leaves to others who sends, and what goes wrong on the way.
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from threadmail import Envelope, MailError, Outcome, Receipt

# A server refuses by domain, so that one set of messages fits every server.
TAKEN, REFUSED, DEFERRED = "taken.example.net", "refused.example.net", "deferred.example.net"
_MESSAGE_ID = re.compile(rb"^Message-ID: <(\S+)@example\.org>\r$", re.MULTILINE)


def make_envelope(rng: random.Random, name: str) -> Envelope:
    """A message of any shape; addresses and each part of the content carry its name."""
    lines = [
        f"{name} line",
        "",
        ".",
        f". {name}",
        "..two dots",
        "From here",
        f"{name} " * rng.randrange(1, 60),
        f"naïve {name}",
    ]
    body = "\r\n".join(rng.choice(lines) for _ in range(rng.choice([0, 1, 3, 20, 400, 3000])))
    domains = rng.choices([TAKEN, REFUSED, DEFERRED], weights=[90, 7, 3], k=rng.choice([1, 1, 2, 5]))
    recipients = [f"to{index}-{name}@{domain}" for index, domain in enumerate(domains)]
    content = f"From: from-{name}@example.org\r\nSubject: {name}\r\nMessage-ID: <{name}@example.org>\r\n\r\n{body}"
    return Envelope(f"from-{name}@example.org", recipients, content.encode() + rng.choice([b"", b"\r\n"]))


@dataclass(frozen=True)
class Arrived:
    """A message as the server has it; `queue_id` where the server told the client one."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    queue_id: str = ""


@dataclass(frozen=True)
class Fate:
    """What the sender of a message was told."""

    outcome: Outcome
    accepted: frozenset[str]
    refused: frozenset[str]
    reply: str = ""
    why: str = ""  # the kind of its error
    detail: str = ""

    @classmethod
    def of(cls, receipt: Receipt) -> Fate:
        why = type(receipt.error).__name__ if receipt.error is not None else ""
        return cls(
            receipt.outcome,
            frozenset(receipt.accepted),
            frozenset(receipt.refused),
            str(receipt.reply or ""),
            why,
            f"{why}: {receipt.error}" if why else "",
        )

    @classmethod
    def of_error(cls, error: MailError) -> Fate:
        if error.receipt is not None:
            return cls.of(error.receipt)
        return cls(error.outcome, frozenset(), frozenset(), why=type(error).__name__)

    @classmethod
    def in_doubt(cls, why: str) -> Fate:
        return cls(Outcome.IN_DOUBT, frozenset(), frozenset(), why=why)

    @classmethod
    def of_refused(cls, envelope: Envelope, refused: Collection[str]) -> Fate:
        """Of a function with the interface of `smtplib.SMTP.sendmail`, which returned."""
        accepted = frozenset(envelope.recipients) - frozenset(refused)
        return cls(Outcome.PARTIAL if refused else Outcome.SENT, accepted, frozenset(refused))


class Ledger:
    """What was handed in, what was told about it; threads share it."""

    def __init__(self, *, calm: bool = False) -> None:
        self._calm = calm  # nobody makes anything go wrong, so nothing may
        self._lock = threading.Lock()
        self._sent: dict[str, Envelope] = {}
        self._fates: dict[str, Fate] = {}
        self.faults: Counter[str] = Counter()
        self.violations: list[str] = []

    def hand_in(self, envelope: Envelope) -> None:
        with self._lock:
            self._sent[_name(envelope)] = envelope

    def settle(self, envelope: Envelope, fate: Fate) -> None:
        with self._lock:
            if _name(envelope) in self._fates:
                self.violations.append(f"{_name(envelope)}: settled twice")
            self._fates[_name(envelope)] = fate
            if fate.why:
                self.faults[fate.why] += 1
            self.faults["recipient refused"] += len(fate.refused)

    def settle_error(self, envelope: Envelope, error: MailError) -> None:
        self.settle(envelope, Fate.of_error(error))

    def violated(self, what: str) -> None:
        with self._lock:
            self.violations.append(what)

    def count(self, fault: str, number: int = 1) -> None:
        with self._lock:
            self.faults[fault] += number

    def outcomes(self) -> Counter[Outcome]:
        with self._lock:
            return Counter(fate.outcome for fate in self._fates.values())

    def surely_arrived(self) -> int:
        """At least so many messages must be at the server."""
        with self._lock:
            return sum(bool(fate.accepted) for fate in self._fates.values())

    def judge(self, arrived: Sequence[Arrived]) -> list[str]:
        """Everything that is not as the receipts say."""
        found = list(self.violations)
        copies: Counter[tuple[str, str]] = Counter()
        ids: dict[str, set[str]] = {}
        for message in arrived:
            match = _MESSAGE_ID.search(message.content)
            envelope = self._sent.get(match[1].decode(errors="replace")) if match else None
            if envelope is None:
                found.append(f"nobody's message arrived: {message.content[:80]!r}")
                continue
            name = _name(envelope)
            if message.content.removesuffix(b"\r\n") != envelope.content.removesuffix(b"\r\n"):
                found.append(f"{name}: the content is not intact")
            if message.sender != envelope.sender:
                found.append(f"{name}: arrived from {message.sender}")
            if strangers := set(message.recipients) - set(envelope.recipients):
                found.append(f"{name}: leaked to {sorted(strangers)}")
            copies.update((name, recipient) for recipient in message.recipients)
            ids.setdefault(name, set()).add(message.queue_id)
        for name, envelope in self._sent.items():
            fate = self._fates.get(name)
            if fate is None:
                found.append(f"{name}: no receipt")
                continue
            found += _judge_copies(envelope, fate, copies)
            if self._calm and fate.outcome is Outcome.IN_DOUBT:
                found.append(f"{name}: {fate.why}, although nobody did anything wrong")
            told = [queue_id for queue_id in ids.get(name, ()) if queue_id]
            if (
                fate.reply
                and fate.outcome is Outcome.SENT
                and told
                and not any(queue_id in fate.reply for queue_id in told)
            ):
                found.append(f"{name}: told {fate.reply!r}, which is another message's reply")
        return found


def _judge_copies(envelope: Envelope, fate: Fate, copies: Counter[tuple[str, str]]) -> Iterator[str]:
    for recipient in envelope.recipients:
        number = copies[_name(envelope), recipient]
        if recipient in fate.accepted:
            good = number == 1
        elif recipient in fate.refused or fate.outcome is not Outcome.IN_DOUBT:
            good = number == 0
        else:
            good = number <= 1
        if not good:
            told = f"{fate.outcome.value} ({fate.detail or fate.reply})"
            yield f"{_name(envelope)}: {told}, yet {number} copies for {recipient}"


def _name(envelope: Envelope) -> str:
    assert envelope.message_id is not None
    return envelope.message_id.strip("<>").partition("@")[0]
