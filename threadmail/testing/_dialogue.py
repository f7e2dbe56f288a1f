"""What one connection of a ScriptedServer has been told and has answered so far.

A pure state machine: commands go in, reply codes go in, and the envelope comes out. It follows scripted replies and
served ones alike, so that a script may hand over to `Serve` (or take over from it) at any point.
"""

from __future__ import annotations

import collections
from datetime import datetime, timezone

from .messages import CapturedMessage

CONTENT = "."
"""Stands among the commands for a content that has come whole and waits for its reply."""


class Dialogue:
    """Unanswered commands, and the transaction as the replies have made it."""

    def __init__(self, *, lmtp: bool) -> None:
        self.lmtp = lmtp
        self.pending: collections.deque[str] = collections.deque()
        self.helo: str = ""
        self.username: str | None = None
        self.content_due: bool = False
        self.chunk_due: int | None = None
        self.secret_due: bool = False
        self.ended: bool = False
        self._reset()

    def _reset(self) -> None:
        self.sender: str | None = None
        self.mail_options: tuple[str, ...] = ()
        self.recipients: list[str] = []
        self.rcpt_options: list[tuple[str, ...]] = []
        self.chunks: bytearray = bytearray()

    def command(self, line: str) -> None:
        """A line came from the client."""
        self.pending.append(line)
        words = line.upper().split()
        if words[:1] == ["BDAT"] and len(words) > 1 and words[1].isdigit():
            self.chunk_due = int(words[1])

    def content(self) -> None:
        """The content came whole: one reply is due, or in LMTP one for each recipient."""
        self.content_due = False
        self.pending.extend([CONTENT] * (max(1, len(self.recipients)) if self.lmtp else 1))

    def replied(self, code: str) -> None:
        """A final reply line went out: it answers the oldest command."""
        if not self.pending:
            return
        line = self.pending.popleft()
        verb = verb_of(line)
        if verb == CONTENT:
            if not self.pending or self.pending[0] != CONTENT:
                self._reset()
        elif code.startswith("2"):
            self._accepted(verb, line)
        elif code == "354" and verb == "DATA":
            self.content_due = True
        elif code == "334":
            self.secret_due = True

    def _accepted(self, verb: str, line: str) -> None:
        if verb in ("EHLO", "HELO", "LHLO"):
            self._reset()
            self.helo = line[4:].strip()
        elif verb == "MAIL":
            self.sender, self.mail_options = parse_path(line)
        elif verb == "RCPT":
            recipient, options = parse_path(line)
            self.recipients.append(recipient)
            self.rcpt_options.append(options)
        elif verb == "QUIT":
            self.ended = True
        elif verb in ("RSET", "STARTTLS") or (verb == "BDAT" and line.upper().endswith("LAST")):
            self._reset()

    def message(self, content: bytes, *, connection: int, tls: bool) -> CapturedMessage:
        return CapturedMessage(
            sender=self.sender or "",
            recipients=tuple(self.recipients),
            content=content,
            helo=self.helo,
            mail_options=self.mail_options,
            rcpt_options=tuple(self.rcpt_options),
            username=self.username,
            tls=tls,
            connection=connection,
            received_at=datetime.now(timezone.utc),
        )


def verb_of(line: str) -> str:
    """The command's first word in capitals, or `CONTENT` itself."""
    return line.split(maxsplit=1)[0].upper() if line.strip() else ""


def parse_path(line: str) -> tuple[str, tuple[str, ...]]:
    """Address and parameters of a MAIL or RCPT line; forgiving, since a script may accept anything."""
    path = line.partition(":")[2].strip()
    if path.startswith("<") and ">" in path:
        address, _, tail = path[1:].rpartition(">")
    else:
        address, _, tail = path.partition(" ")
    return address, tuple(tail.split())
