"""What the threads of a soak or a storm handed in, what they were told about it, and what the server has.

The three must agree, message by message and recipient by recipient. Owns the messages, their names and the judgement
(its rules: `tests/support/judgement.py`). A message's name is its Message-ID; its addresses and its content carry it
too, so that a mixture of two messages is seen. Beyond each message: whoever has a callback hears of each once; no more
is in doubt than what was done to connections can explain; some share must have been sent at all.

Leaves to others who sends, and what goes wrong on the way: they say how many connections with a message on them they
may have ended (`may_doubt`).
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.support import judgement
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
    reply: str | None = ""  # the server's final one; "": told of none; None: this way to send does not tell
    why: str = ""  # the kind of its error
    detail: str = ""
    refusals: Mapping[str, str] = field(default_factory=dict)  # the replies to the refused, where they are told
    wrong: tuple[str, ...] = ()  # where receipt and error contradict each other

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
            {recipient: str(reply) for recipient, reply in receipt.refused.items()},
            tuple(judgement.of_receipt(receipt)),
        )

    @classmethod
    def of_error(cls, error: MailError, *, receipt_due: bool = True) -> Fate:
        """Of what was raised: the receipt that it carries, and where the two contradict each other."""
        wrong = tuple(judgement.of_error(error, receipt_due=receipt_due))
        if error.receipt is not None:
            return replace(cls.of(error.receipt), wrong=wrong)
        return cls(error.outcome, frozenset(), frozenset(), why=type(error).__name__, wrong=wrong)

    @classmethod
    def in_doubt(cls, why: str) -> Fate:
        return cls(Outcome.IN_DOUBT, frozenset(), frozenset(), why=why)

    @classmethod
    def of_refused(cls, envelope: Envelope, refused: Collection[str]) -> Fate:
        """Of a function with the interface of `smtplib.SMTP.sendmail`, which returned."""
        accepted = frozenset(envelope.recipients) - frozenset(refused)
        return cls(Outcome.PARTIAL if refused else Outcome.SENT, accepted, frozenset(refused), reply=None)


class Ledger:
    """What was handed in, what was told about it; threads share it.

    Args:
        calm: nobody makes anything go wrong, so nothing may.
        floor: the share of all messages that must be sent (SENT or PARTIAL).
        least: messages that there must be.
    """

    def __init__(self, *, calm: bool = False, floor: float = 0.0, least: int = 1) -> None:
        self._calm = calm
        self._floor = floor
        self._least = least
        self._lock = threading.Lock()  # guards all below
        self._sent: dict[str, Envelope] = {}
        self._fates: dict[str, Fate] = {}
        self._silent: set[str] = set()  # those of which no callback tells
        self._hurried: set[str] = set()  # those with a deadline of their own
        self._abandoned: set[str] = set()  # those whose sender was struck, so that nobody knows
        self._not_begun: set[str] = set()  # those that nobody had taken when it failed
        self._doubts = 0  # that what was done can explain
        self.faults: Counter[str] = Counter()
        self.violations: list[str] = []

    def hand_in(self, envelope: Envelope, *, announced: bool = True, hurried: bool = False) -> None:
        """A message is about to be sent.

        Args:
            announced: a callback will tell of it as well, if there is one.
            hurried: it has a deadline of its own, which may end it anywhere.
        """
        with self._lock:
            name = _name(envelope)
            self._sent[name] = envelope
            if not announced:
                self._silent.add(name)
            if hurried:
                self._hurried.add(name)

    def turned_away(self, envelope: Envelope) -> None:
        """It was refused at the door by an exception: a callback need not tell of it."""
        with self._lock:
            self._silent.add(_name(envelope))

    def not_begun(self, envelope: Envelope) -> None:
        """It failed before the message was handed to anybody (no lease, no connection), so that there is no receipt."""
        with self._lock:
            self._not_begun.add(_name(envelope))

    def abandon(self, envelope: Envelope) -> None:
        """Its sender was struck before he could be told: it may have gone out, once, and more nobody knows."""
        with self._lock:
            self._abandoned.add(_name(envelope))

    def abandon_the_rest(self) -> None:
        """Where the harness itself was struck: of those that it has not settled nobody was told."""
        with self._lock:
            self._abandoned |= self._sent.keys() - self._fates.keys()

    @property
    def abandoned(self) -> int:
        """Messages of which nobody was told."""
        with self._lock:
            return len(self._abandoned)

    def may_doubt(self, messages: int = 1) -> None:
        """So many messages more may be in doubt, by what was done to their connections."""
        with self._lock:
            self._doubts += messages

    def settle(self, envelope: Envelope, fate: Fate) -> None:
        with self._lock:
            name = _name(envelope)
            if name in self._fates:
                self.violations.append(f"{name}: settled twice")
            self._fates[name] = fate
            if fate.why:
                self.faults[fate.why] += 1
            self.faults["recipient refused"] += len(fate.refused)

    def settle_error(self, envelope: Envelope, error: MailError) -> None:
        self.settle(envelope, Fate.of_error(error, receipt_due=_name(envelope) not in self._not_begun))

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

    def unheard(self, heard: Callable[[], Mapping[str | None, int]]) -> list[str]:
        """What is wrong with the calls of a callback that tells of every message once. To be asked when it has ended.

        Args:
            heard: how often it was called for each Message-ID.
        """
        with self._lock:
            told = [name for name in self._fates if name not in self._silent]
        counts = Counter({_bare(message_id): count for message_id, count in heard().items()})
        found = [
            f"{name}: on_receipt was called {number} times" if number else f"{name}: on_receipt was never called"
            for name, number in judgement.unheard(told, counts)
        ]
        return found + [
            f"{name}: on_receipt was called {number} times"
            for name, number in counts.items()
            if number > 1 and name not in told
        ]

    def judge(self, arrived: Sequence[Arrived]) -> list[str]:
        """Everything that is not as the receipts say."""
        found = list(dict.fromkeys(self.violations))
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
            if message.queue_id:
                ids.setdefault(name, set()).add(message.queue_id)
        for name, envelope in self._sent.items():
            fate = self._fates.get(name)
            if fate is None and name in self._abandoned:
                found += _judge_fate(envelope, Fate.in_doubt("nobody was told"), copies, set())
            elif fate is None:
                found.append(f"{name}: no receipt")
            else:
                found += _judge_fate(envelope, fate, copies, ids.get(name, set()))
        return [*found, *self._judge_all()]

    def _judge_all(self) -> Iterator[str]:
        """What no single message shows."""
        doubts = {name: fate for name, fate in self._fates.items() if fate.outcome is Outcome.IN_DOUBT}
        late = sum(name in self._hurried and fate.why in _LATE for name, fate in doubts.items())
        if self._calm:
            yield from (f"{name}: {fate.why}, although nobody did anything wrong" for name, fate in doubts.items())
        else:
            yield from judgement.unexplained(len(doubts) - late, self._doubts)
        outcomes = Counter(fate.outcome.value for fate in self._fates.values())
        yield from judgement.too_few(outcomes, self._floor, self._least)


#: How a message in doubt ends by its own deadline.
_LATE = ("ReplyTimedOut", "TimedOut")


def _judge_fate(
    envelope: Envelope, fate: Fate, copies: Counter[tuple[str, str]], ids: Collection[str]
) -> Iterator[str]:
    name, outcome = _name(envelope), fate.outcome.value
    own = {recipient: copies[name, recipient] for recipient in envelope.recipients}
    wrong = judgement.miscounts(envelope.recipients, outcome, fate.refused, own, accepted=fate.accepted)
    for _, recipient, number in wrong:
        yield f"{name}: {outcome} ({fate.detail or fate.reply}), yet {number} copies for {recipient}"
    for complaint in judgement.misquotes(outcome, fate.reply, ids):
        yield f"{name}: {complaint}: {fate.reply!r}"
    for recipient, reply in fate.refusals.items():
        if not reply.startswith("421") and recipient not in reply:
            yield f"{name}: {judgement.FOREIGN_REFUSAL}: {recipient} was told {reply!r}"
    yield from (f"{name}: {complaint}" for complaint in fate.wrong)


def _name(envelope: Envelope) -> str:
    return _bare(envelope.message_id)


def _bare(message_id: str | None) -> str:
    assert message_id is not None
    return message_id.strip("<>").partition("@")[0]
