"""A server that lays traps, letters to run into them, and the comparison of what was told with what was taken.

Owns `Trapper`, a step for `ScriptedServer` that keeps the state of its session as lax servers do: an old MAIL stands
until RSET, a recipient joins whatever sender stands, a lone dot is a message for whoever stands accepted. Guarantees
that `Taken` has what it took over before anybody is told. Knows DATA and BDAT, commands one by one, in groups and in
windows; leaves to others what to send, and how.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from threadmail import Envelope, Outcome, Receipt
from threadmail.testing import Peer, Step
from threadmail.testing._dialogue import parse_path, verb_of
from threadmail.testing._peer import HungUp, Silence

from .servers import Delivered

# ---------------------------------------------------------------- letters

#: Addresses that begin so are refused, as senders and as recipients.
REFUSED = "no-"

#: Recipients that begin so are put off the first time, where a server is told to.
PUT_OFF = "later-"

GOOD, NOBODY, SOME, SENDER, LATER = "good", "all refused", "partly refused", "refused MAIL", "partly put off"

#: Each kind follows each kind, itself as well.
EVERY_PAIR = (
    *(GOOD, GOOD, NOBODY, GOOD, SOME, GOOD, SENDER, NOBODY, NOBODY, SOME),
    *(NOBODY, SENDER, SOME, SOME, SENDER, SENDER, GOOD),
)


@dataclass(frozen=True)
class Letter:
    """A message, and what must come of it."""

    envelope: Envelope
    outcome: Outcome = Outcome.SENT
    accepted: tuple[str, ...] = ()


def letter(
    name: str, kind: str = GOOD, *, recipients: int = 2, domain: str = "example.net", padding: int = 0
) -> Letter:
    """A message that tells by each of its addresses and by its content which one it is.

    Args:
        padding: octets of content beyond the few that are needed.
    """
    addresses = [f"{'too' * (i > 0)}{i}-{name}@{domain}" for i in range(recipients)]
    if kind == NOBODY:
        addresses = [REFUSED + address for address in addresses]
    elif kind == SOME:
        addresses[0] = REFUSED + addresses[0]
    elif kind == LATER:
        addresses[0] = PUT_OFF + addresses[0]
    sender = f"{REFUSED if kind == SENDER else ''}from-{name}@example.org"
    lines = f".{name} begins with a dot\r\n" * (1 + padding // (len(name) + 23))
    content = f"From: {sender}\r\nSubject: {kind}\r\nMessage-ID: <{name}@example.org>\r\n\r\nThis is {name}.\r\n{lines}"
    accepted = () if kind == SENDER else tuple(a for a in addresses if not a.startswith(REFUSED))
    outcome = {GOOD: Outcome.SENT, LATER: Outcome.SENT, SOME: Outcome.PARTIAL}.get(kind, Outcome.NOT_SENT)
    return Letter(Envelope(sender, addresses, content), outcome, accepted)


def letters(kinds: Sequence[str], tag: str = "m") -> list[Letter]:
    """One of each kind, in this order. Every third has more content than goes into one write."""
    return [letter(f"{tag}{i}", kind, padding=100_000 * (i % 3 == 2)) for i, kind in enumerate(kinds)]


# ---------------------------------------------------------------- the judge


def complaints(sent: Sequence[Letter], receipts: Sequence[Receipt], taken: Iterable[Delivered]) -> Iterator[str]:
    """What is false, lost, doubled or mixed up: what the sender was told against what a server took."""
    copies: dict[str, Counter[str]] = {}
    by_content = {letter.envelope.content: letter.envelope for letter in sent}
    for message in taken:
        mine = by_content.get(message.content)
        if mine is None:
            yield f"nobody sent {message.content[:60]!r} to {message.recipients} from {message.sender}"
        elif message.sender != mine.sender or not set(message.recipients) <= set(mine.recipients):
            yield f"mixed up: {mine.message_id} from {message.sender} to {message.recipients}"
        else:
            copies.setdefault(str(mine.message_id), Counter()).update(message.recipients)
    if len(receipts) != len(sent):
        yield f"{len(receipts)} receipts for {len(sent)} messages"
    for letter, receipt in zip(sent, receipts, strict=False):
        got = copies.get(str(letter.envelope.message_id), Counter())
        if receipt.message_id != letter.envelope.message_id:
            yield f"the receipt of {receipt.message_id} in the place of {letter.envelope.message_id}'s"
        elif receipt.outcome is Outcome.IN_DOUBT:
            if any(count > 1 for count in got.values()):
                yield f"doubled: {receipt.message_id}, in doubt, arrived {dict(got)}"
        elif got != Counter(receipt.accepted):
            yield f"false: {receipt.message_id} {receipt.outcome.value} to {receipt.accepted}, and arrived {dict(got)}"


def unlike(sent: Sequence[Letter], receipts: Sequence[Receipt]) -> Iterator[str]:
    """Which messages did not end as they should have."""
    for letter, receipt in zip(sent, receipts, strict=True):
        if (receipt.outcome, sorted(receipt.accepted)) != (letter.outcome, sorted(letter.accepted)):
            yield f"{receipt.message_id} ended {receipt}, not {letter.outcome.value}"


# ---------------------------------------------------------------- the server


@dataclass
class Taken:
    """What servers took over, whether or not they lived to say so.

    Attributes:
        messages: each with the recipients that stood.
        unanswered: the contents that came whole and got no whole reply.
        replies: the commands of the first connection that it had a reply for, by verb.
    """

    messages: list[Delivered] = field(default_factory=list)
    unanswered: list[bytes] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)


#: What the server does at one reply. What it was asked is done first, but for the refusals, and that is the worse for
#: the client: the message is taken and nobody says so. After a surplus reply it refuses every content, so that whoever
#: takes the surplus for an answer believes what is not so.
ACTS = {
    "4yz": "451 4.3.0 not now",
    "5yz": "550 5.7.1 no",
    "421": "421 4.4.2 closing, but not now",
    "421 and gone": "421 4.4.2 closing",
    "close": "",
    "reset": "",
    "cut": "half of the reply",
    "garbage": "\x07this is no SMTP, is it?",
    "surplus": "250 2.0.0 nobody asked",
}
REFUSALS = ("4yz", "5yz", "421", "421 and gone")
ENDS = ("421 and gone", "close", "reset", "cut")

#: When the server answers: each command as it comes; all of them when nothing more comes; a byte at a time.
MANNERS = ("at once", "late", "in pieces")

#: Seconds of silence after which no more is taken to come.
LULL = 0.003


@dataclass(frozen=True)
class Trapper(Step):
    """A whole session of a small server that is lax about its state, and misbehaves once if told to.

    Args:
        taken: where it writes down what it takes.
        offers: what EHLO offers.
        lax: 1: answer DATA 354 as soon as MAIL stands, recipients or not; 2: take recipients without MAIL, too.
        manner: one of `MANNERS`.
        act, place: one of `ACTS`, at the reply of this number on the first connection; the greeting is 0.
        buffers: octets of the socket's buffers, for a server that hardly keeps anything.
        prolix: octets by which each reply is longer than it need be.
    """

    taken: Taken
    offers: tuple[str, ...] = ("PIPELINING", "8BITMIME")
    lax: int = 0
    manner: str = "at once"
    act: str | None = None
    place: int = -1
    buffers: int | None = None
    prolix: int = 0

    def play(self, peer: Peer) -> None:
        if self.buffers is not None:
            peer._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.buffers)
            peer._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffers)
        try:
            _Session(self, peer).run()
        except HungUp:
            pass


class _Session:
    def __init__(self, trap: Trapper, peer: Peer) -> None:
        self._trap = trap
        self._peer = peer
        self._said = 0
        self._over = False
        self._content_due = False
        self._confused = False
        self._reset()

    def _reset(self) -> None:
        self._sender: str | None = None
        self._recipients: list[str] = []

    def run(self) -> None:
        if self._peer.number == 0:
            self._trap.taken.replies.append("greeting")
        self._say("220 trap.example.test ESMTP")
        while not self._over:
            commands = iter(self._next())
            while not self._over and (command := next(commands, None)) is not None:
                self._answer(*command)

    # -- reading ----------------------------------------------------------------------------------------------------

    def _next(self) -> list[tuple[str, bytes]]:
        """What is to be answered now."""
        found = [self._read(None)]
        while self._trap.manner == "late":
            try:
                found.append(self._read(LULL))
            except (Silence, HungUp):
                break
        return found

    def _read(self, timeout: float | None) -> tuple[str, bytes]:
        if self._content_due:
            self._content_due = False
            return ".", self._peer.read_content(None)
        line = self._peer.read_command(timeout)
        words = line.split()
        size = int(words[1]) if verb_of(line) == "BDAT" else 0
        return line, self._peer.read_bytes(size, None) if size else b""

    # -- answering --------------------------------------------------------------------------------------------------

    def _answer(self, line: str, data: bytes) -> None:
        verb = verb_of(line)
        if self._peer.number == 0:
            self._trap.taken.replies.append(verb)
        if self._strikes and self._trap.act in REFUSALS:
            if verb in (".", "BDAT"):
                self._reset()
            reply = ACTS[self._trap.act]
        else:
            reply = self._do(verb, line, data)
        unanswered = self._trap.taken.unanswered
        owed = verb == "." or (verb == "BDAT" and reply.startswith("2"))
        if owed:
            unanswered.append(data)
        whole = self._say(reply)
        if owed and whole:
            unanswered.remove(data)
        self._content_due = reply.startswith("354") and whole
        if verb == "QUIT":
            self._over = True

    def _do(self, verb: str, line: str, data: bytes) -> str:
        """Do what was asked; returns the reply."""
        if verb == "EHLO":
            return "\n".join([*(f"250-{offer}" for offer in ("trap.example.test", *self._trap.offers)), "250 HELP"])
        if verb in ("RSET", "HELO"):
            self._reset()
        elif verb in ("MAIL", "RCPT"):
            return self._address(verb, line)
        elif verb == "DATA":
            return self._go_ahead()
        elif verb in (".", "BDAT"):
            return self._take(verb, line, data)
        return "221 2.0.0 bye" if verb == "QUIT" else "250 2.0.0 OK"

    def _address(self, verb: str, line: str) -> str:
        address = parse_path(line)[0]
        if verb == "MAIL" and self._sender is not None:
            return "503 5.5.1 nested MAIL"
        if verb == "RCPT" and self._sender is None and self._trap.lax < 2:
            return "503 5.5.1 need MAIL"
        if address.startswith(REFUSED):
            return "550 5.1.1 not here"
        if verb == "MAIL":
            self._sender = address
        else:
            self._recipients.append(address)
        return "250 2.1.0 OK"

    def _go_ahead(self) -> str:
        if self._sender is None and not self._recipients:
            return "503 5.5.1 need MAIL"
        if not self._recipients and not self._trap.lax:
            return "554 5.5.1 no valid recipients"
        return "354 go ahead"

    def _take(self, verb: str, line: str, data: bytes) -> str:
        if verb == "BDAT" and (self._sender is None or not self._recipients):
            return "503 5.5.1 need MAIL and RCPT"  # and what stands, stands (RFC 3030 §2 leaves it open)
        if verb == "BDAT" and not line.upper().endswith("LAST"):
            raise AssertionError(f"a message in several chunks is beyond this server: {line}")
        if self._confused:
            self._reset()
            return "554 5.5.0 what did you say?"
        if self._recipients:
            self._trap.taken.messages.append(Delivered(self._sender or "", tuple(self._recipients), data))
        self._reset()
        return "250 2.0.0 taken"

    # -- saying -----------------------------------------------------------------------------------------------------

    @property
    def _strikes(self) -> bool:
        return (self._peer.number, self._said) == (0, self._trap.place)

    def _say(self, reply: str) -> bool:
        """Say it, or do the act in its place or with it. Returns whether the whole of a reply went out."""
        strikes, act = self._strikes, self._trap.act
        self._said += 1
        text = reply + "x" * self._trap.prolix
        line = "".join(f"{part}\r\n" for part in text.split("\n")).encode()
        if strikes and act in ENDS:
            self._over = True
            if act in REFUSALS:
                self._write(line)
            elif act == "cut":
                self._write(line[:-4])
            if act == "reset":
                self._peer.reset()
            else:
                self._peer.drop()
            return act in REFUSALS
        if strikes and act == "garbage":
            self._write(f"{ACTS[act]}\r\n".encode())
            return False
        if strikes and act == "surplus":
            self._confused = True
            line += f"{ACTS[act]}\r\n".encode()
        self._write(line)
        return True

    def _write(self, data: bytes) -> None:
        step = 1 if self._trap.manner == "in pieces" else len(data)
        for start in range(0, len(data), step):
            self._peer.send(data[start : start + step])
