"""A strict SMTP server in memory: a state machine for each connection, and an exact record of who caused what.

Strict means: whatever RFC 5321 calls out of sequence is answered 5yz and noted as a violation, because a correct
client never gets there. Each byte that comes in and each reply that goes out carries the thread that caused it, so
that the oracle can tell a foreign command inside a transaction and a reply read by the wrong thread. The server
answers at once: that an answer is late is one of the schedules, not a delay.

The server is in modelserver.py, the socket to it in modelsocket.py. No TLS, no authentication.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from .ops import Shared
from .task import Task

if TYPE_CHECKING:
    from .modelserver import ModelServer

#: In a mapping of faults by connection: every connection.
EVERY: Final = -1


@dataclass(frozen=True)
class Faults:
    """What the server does wrong, on purpose. Connections are numbered from 0 in the order of their connects."""

    #: Recipients answered 550.
    refuse: frozenset[str] = frozenset()
    #: {connection: n}: hang up instead of answering its nth command line (from 1; EHLO counts).
    drop: Mapping[int, int] = field(default_factory=dict)
    #: {connection: n}: answer its nth command line by 421, and hang up.
    closing: Mapping[int, int] = field(default_factory=dict)
    #: {sender: reply}: what the first content of his is answered in the place of 250; after a 421, hang up.
    refuse_content: Mapping[str, str] = field(default_factory=dict)
    #: {connection: n}: store its nth message, and hang up in the place of the final reply.
    drop_final: Mapping[int, int] = field(default_factory=dict)
    #: {connection: n}: hang up right after the final reply to its nth message, as a server does with an idle client.
    hang_up_after: Mapping[int, int] = field(default_factory=dict)
    #: Connects that are refused.
    refuse_connects: frozenset[int] = frozenset()
    #: Connections greeted by 421 and closed.
    greet_421: frozenset[int] = frozenset()

    @property
    def by_number(self) -> bool:
        """Does the order of the connects decide who is hit?"""
        by_connection = (self.drop, self.closing, self.drop_final, self.hang_up_after)
        numbers = {*self.refuse_connects, *self.greet_421, *(number for each in by_connection for number in each)}
        return bool(numbers - {EVERY})


@dataclass(frozen=True)
class Reply:
    """One reply line on its way: who caused it, by which event, at what virtual time."""

    line: bytes
    owner: Task | None
    cause: int
    time: float


@dataclass
class Envelope:
    """A message as the server stored it."""

    sender: str
    recipients: list[str]
    connection: str
    body: bytes = b""
    #: The text of the final reply, by which a receipt can be checked.
    reply: str = ""


class Connection(Shared):
    """One connection: command state machine, replies under way, transcript."""

    __slots__ = ("_chunk_left", "_command_count", "_data", "_envelope", "_partial", "_partial_owner", "_state",
                 "_stored", "closed", "eof", "lockset", "number", "owner", "replies", "server", "transcript",
                 "violations", "written")  # fmt: skip

    def __init__(self, server: ModelServer, name: str, number: int) -> None:
        super().__init__(name)
        self.server, self.number = server, number
        self.replies: deque[Reply] = deque()
        self.closed = False  # by the client
        self.eof = False  # by the server, or a shutdown
        self.transcript: list[tuple[str, str, str]] = []
        self.violations: list[str] = []
        self.written = bytearray()  # by the client, all of it: what was answered is another question
        # The thread whose transaction is open, and the locks that were held at every use of the connection so far.
        self.owner: Task | None = None
        self.lockset: set[Shared] | None = None
        self._state = "idle"
        self._partial = b""
        self._partial_owner: Task | None = None
        self._envelope: Envelope | None = None
        self._data: list[bytes] = []
        self._chunk_left = 0  # octets of a BDAT still to come
        self._command_count = self._stored = 0

    @property
    def idle(self) -> bool:
        """Open on both sides, and no transaction under way."""
        return self._state == "idle" and not (self.closed or self.eof)

    def violate(self, text: str) -> None:
        if text not in self.violations:
            self.violations.append(text)

    def reply(self, text: str, who: Task | None, cause: int) -> None:
        now = who.now if who is not None else 0.0
        self.transcript.append((name_of(who), "<", text))
        self.replies.append(Reply(text.encode() + b"\r\n", who, cause, now))

    def hang_up(self) -> None:
        self.eof = True
        self._envelope, self._state, self.owner = None, "gone", None

    def feed(self, data: bytes, who: Task | None, cause: int) -> None:
        """Bytes from the client, sent by thread `who` in event `cause`."""
        self.written += data
        if self._partial and who is not self._partial_owner:
            self.violate("two threads in one line")
        data, self._partial_owner = self._partial + data, who
        commands = 0
        while data and not self.eof:
            if self._chunk_left:
                part, data = data[: self._chunk_left], data[self._chunk_left :]
                self._chunk(part, who, cause)
                continue
            line, end, rest = data.partition(b"\r\n")
            if not end:
                break
            data = rest
            commands += self._state != "data" or line == b"."  # what follows a content in one write is pipelined too
            self._line(line, who, cause)
        self._partial = data
        if commands > 1 and "PIPELINING" not in self.server.extensions:
            self.violate("pipelined without PIPELINING")

    def _line(self, line: bytes, who: Task | None, cause: int) -> None:
        text = line.decode("utf-8", "replace")
        self.transcript.append((name_of(who), ">", text))
        if self.owner is not None and who is not self.owner:
            self.violate("foreign command inside a transaction")
        if self._state == "data":
            self._content(line, who, cause)
            return
        self._command_count += 1
        if self._command_count == self.server.fault(self.server.faults.drop, self.number):
            self.transcript.append((name_of(who), "<", "(hangs up)"))
            self.hang_up()
            return
        if self._command_count == self.server.fault(self.server.faults.closing, self.number):
            self.reply("421 4.3.2 closing", who, cause)
            self.hang_up()
            return
        verb, _, argument = text.partition(" ")
        handler = _COMMANDS.get(verb.upper())
        answer = handler(self, argument, who) if handler is not None else "500 5.5.2 unknown command"
        if verb.upper() == "RCPT":
            recipient = argument[3:].strip("<> ")
            self.server.answered[recipient] = answer
            self.server.said.setdefault(recipient, []).append(answer)
        for reply in answer.split("\n") if answer else ():
            self.reply(reply, who, cause)
        if answer.startswith("50"):
            self.violate(f"server answered {answer}")
        if verb.upper() == "QUIT":
            self.hang_up()

    def _content(self, line: bytes, who: Task | None, cause: int) -> None:
        if line == b".":
            self._store(b"\r\n".join(self._data), who, cause)
        else:
            self._data.append(line[1:] if line.startswith(b".") else line)

    def _chunk(self, part: bytes, who: Task | None, cause: int) -> None:
        """Octets that BDAT announced: content as it is, whatever it looks like. Answered when all are there."""
        if self.owner is not None and who is not self.owner:
            self.violate("foreign command inside a transaction")
        self._data.append(part)
        self._chunk_left -= len(part)
        if self._chunk_left:
            return
        content = b"".join(self._data)
        self.transcript.append((name_of(who), ">", f"({len(content)} octets)"))
        if self._state == "rcpt":
            self._store(content.removesuffix(b"\r\n"), who, cause)
        else:
            self._data = []
            answer = self._without_recipients()
            self.reply(answer, who, cause)
            if answer.startswith("50"):
                self.violate(f"server answered {answer}")

    def _store(self, body: bytes, who: Task | None, cause: int) -> None:
        envelope = self._envelope
        assert envelope is not None
        refusal = self.server.faults.refuse_content.get(envelope.sender)
        if refusal is not None and envelope.sender not in self.server.refused:
            self.server.refused.append(envelope.sender)
            self._reset()
            self.reply(refusal, who, cause)
            if refusal.startswith("421"):
                self.hang_up()
            return
        self._stored += 1
        envelope.body = body
        envelope.reply = f"250 2.0.0 stored as {self.name}-{self._stored}"
        self.server.delivered.append(envelope)
        self._reset()
        if self._stored == self.server.fault(self.server.faults.drop_final, self.number):
            self.transcript.append((name_of(who), "<", "(hangs up)"))
            self.hang_up()
            return
        self.reply(envelope.reply, who, cause)
        if self._stored == self.server.fault(self.server.faults.hang_up_after, self.number):
            self.transcript.append(("server", "<", "(hangs up)"))
            self.hang_up()

    def _reset(self) -> None:
        self._state, self._envelope, self._data, self.owner = "idle", None, [], None

    # Commands: each returns its reply, lines separated by "\n" ------------------------------------------------------

    def _ehlo(self, argument: str, who: Task | None) -> str:
        self._reset()
        lines = ["model", *self.server.extensions.values()]
        return "\n".join(f"250{'-' if i < len(lines) - 1 else ' '}{line}" for i, line in enumerate(lines))

    def _helo(self, argument: str, who: Task | None) -> str:
        self._reset()
        return "250 model"

    def _mail(self, argument: str, who: Task | None) -> str:
        if self._state != "idle":
            return "503 5.5.1 nested MAIL"
        address, *parameters = argument[5:].split(" ") if argument[:5].upper() == "FROM:" else [""]
        if not (address.startswith("<") and address.endswith(">")):
            return "501 5.5.4 bad MAIL"
        for parameter in parameters:
            name = parameter.partition("=")[0].upper()
            if name and _PARAMETERS.get(name) not in self.server.extensions:
                return f"504 5.5.4 {name} was not offered"
        self._state, self.owner = "mail", who
        self._envelope = Envelope(address[1:-1], [], self.name)
        return "250 2.1.0 sender ok"

    def _rcpt(self, argument: str, who: Task | None) -> str:
        if self._envelope is None:
            return "503 5.5.1 need MAIL"
        address = argument[3:].strip("<> ")
        if address in self.server.faults.refuse:
            return f"550 5.1.1 no such user: {address}"
        self._state = "rcpt"
        self._envelope.recipients.append(address)
        return "250 2.1.5 recipient ok"

    def _data_command(self, argument: str, who: Task | None) -> str:
        if self._state != "rcpt":
            return self._without_recipients()
        self._state = "data"
        return "354 go ahead"

    def _without_recipients(self) -> str:
        refused = self._state == "mail" and self.server.faults.refuse and "PIPELINING" in self.server.extensions
        # A pipelining client writes DATA or BDAT before it knows that no recipient was accepted; that is in sequence.
        return "554 5.5.1 no valid recipients" if refused else "503 5.5.1 need RCPT"

    def _bdat(self, argument: str, who: Task | None) -> str:
        size, _, last = argument.partition(" ")
        if "CHUNKING" not in self.server.extensions or not size.isdecimal() or not int(size) or last.upper() != "LAST":
            return "501 5.5.4 bad BDAT"
        self._chunk_left = int(size)
        return ""

    def _rset(self, argument: str, who: Task | None) -> str:
        self._reset()
        return "250 2.0.0 reset"

    def _noop(self, argument: str, who: Task | None) -> str:
        return "250 2.0.0 ok"

    def _vrfy(self, argument: str, who: Task | None) -> str:
        return "252 2.5.0 try it"

    def _quit(self, argument: str, who: Task | None) -> str:
        return "221 2.0.0 bye"


_COMMANDS: Final[dict[str, Callable[[Connection, str, Task | None], str]]] = {
    "EHLO": Connection._ehlo, "HELO": Connection._helo, "MAIL": Connection._mail, "RCPT": Connection._rcpt,
    "DATA": Connection._data_command, "RSET": Connection._rset, "NOOP": Connection._noop, "VRFY": Connection._vrfy,
    "QUIT": Connection._quit, "BDAT": Connection._bdat,
}  # fmt: skip
_PARAMETERS: Final = {"SIZE": "SIZE", "BODY": "8BITMIME", "SMTPUTF8": "SMTPUTF8"}


def name_of(who: Task | None) -> str:
    return who.name if who is not None else "set-up"
