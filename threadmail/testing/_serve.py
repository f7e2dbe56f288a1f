"""`Serve`: the step that behaves as a normal small mail server, until the script wants the word again.

Owns the default answers; the state they depend on is the connection's `Dialogue`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from . import _sasl
from ._dialogue import CONTENT, parse_path, verb_of
from ._endpoint import HOSTNAME
from ._peer import HungUp, Peer, ScriptFailure


class Step(Protocol):
    """Anything with this method can stand in a script."""

    def play(self, peer: Peer) -> None:
        """Do the step on one connection; raise AssertionError where the client is at fault."""


@dataclass(frozen=True, kw_only=True)
class Serve(Step):
    """Behave: greet (if nothing was sent yet), answer, store messages; until the client has quit or hung up.

    Args:
        extensions: what EHLO offers, e.g. ``("PIPELINING", "SIZE 1000", "CHUNKING")``; STARTTLS and AUTH come by
            themselves where the server and `auth` provide for them.
        auth: passwords (or tokens) by user; AUTH is offered and checked.
        mechanisms: what AUTH offers, of PLAIN, LOGIN, CRAM-MD5, XOAUTH2 and OAUTHBEARER.
        require_auth: answer MAIL with 530 before a login.
        replies: other answers than usual, by command; ``"CONNECT"`` is the greeting, ``"."`` the reply to a content:
            ``Serve(replies={"RCPT": "550 5.1.1 no such user"})``.
        until: stop when this command has been read and before it is answered; ``"."``: when a content has been read and
            stored. The steps that follow may answer it; a later `Serve` does, if none of them has. More than the first
            word may be given: ``until="RCPT TO:<b@"``. A client that is gone before fails the script.
        count: stop at the `count`-th such command that this step reads.
    """

    extensions: tuple[str, ...] = ("PIPELINING", "8BITMIME", "SMTPUTF8")
    auth: Mapping[str, str] | None = field(default=None, repr=False)
    mechanisms: tuple[str, ...] = _sasl.DEFAULT_MECHANISMS
    require_auth: bool = False
    replies: Mapping[str, str] = field(default_factory=dict)
    until: str | None = None
    count: int = 1

    def play(self, peer: Peer) -> None:
        if not peer.has_sent:
            peer.reply(self.replies.get("CONNECT", f"220 {HOSTNAME} ESMTP"))
        try:
            self._converse(peer)
        except HungUp as error:
            if self.until is not None:
                raise ScriptFailure(f"expected {self.until!r} number {self.count}, got: {error}") from None

    def _converse(self, peer: Peer) -> None:
        pending, seen = peer.dialogue.pending, 0
        while True:
            if not pending:
                command = self._read(peer)
                if self.until is not None and command.upper().startswith(self.until.upper()):
                    seen += 1
                    if seen == self.count:
                        return
            command = pending[0]
            self._answer(peer, command)
            if pending and pending[0] is command:
                pending.popleft()  # Answered by something from `replies` that is no reply.

    def _read(self, peer: Peer) -> str:
        if peer.dialogue.content_due:
            peer.read_content(None)
            return CONTENT
        command = peer.read_command(None)
        if peer.dialogue.chunk_due is not None:
            peer.read_bytes(peer.dialogue.chunk_due, None)
        return command

    def _answer(self, peer: Peer, command: str) -> None:
        """Answer the oldest open command, and hang up where it was QUIT."""
        verb = verb_of(command)
        if peer.dialogue.chunk_due is not None:
            peer.read_bytes(peer.dialogue.chunk_due, None)
        if verb in self.replies:
            peer.reply(self.replies[verb])
        elif verb == "AUTH":
            self._authenticate(peer, command)
        elif verb == "STARTTLS" and peer.offers_starttls and not peer.tls:
            peer.reply("220 2.0.0 go ahead")
            peer.start_tls()
        else:
            peer.reply(self._usual(peer, verb, command))
        if verb == "QUIT":
            peer.drop()

    def _usual(self, peer: Peer, verb: str, command: str) -> str:
        if verb in ("EHLO", "LHLO") and (verb == "LHLO") is peer.dialogue.lmtp:
            return self._offers(peer)
        if verb == "HELO" and not peer.dialogue.lmtp:
            return f"250 {HOSTNAME}"
        if verb in ("MAIL", "RCPT", "DATA", "BDAT"):
            return self._in_transaction(peer, verb, command)
        plain = {
            CONTENT: "250 2.0.0 OK",
            "RSET": "250 2.0.0 OK",
            "NOOP": "250 2.0.0 OK",
            "VRFY": "252 2.0.0 try it",
            "QUIT": "221 2.0.0 Bye",
        }
        return plain.get(verb, "500 5.5.1 unknown command")

    def _offers(self, peer: Peer) -> str:
        offers = [HOSTNAME, *self.extensions]
        if peer.offers_starttls and not peer.tls:
            offers.append("STARTTLS")
        elif self.auth is not None:
            offers.append("AUTH " + " ".join(self.mechanisms))
        return "\n".join([*(f"250-{offer}" for offer in offers[:-1]), f"250 {offers[-1]}"])

    def _in_transaction(self, peer: Peer, verb: str, command: str) -> str:
        dialogue = peer.dialogue
        if verb == "MAIL":
            if self.require_auth and dialogue.username is None:
                return "530 5.7.0 authentication required"
            if dialogue.sender is not None:
                return "503 5.5.1 nested MAIL"
            return "552 5.3.4 too big" if self._too_big(command) else "250 2.1.0 OK"
        if dialogue.sender is None:
            return "503 5.5.1 need MAIL"
        if verb == "RCPT":
            return "250 2.1.5 OK"
        if not dialogue.recipients:
            return "503 5.5.1 need RCPT"
        if verb == "DATA":
            return "354 go ahead"
        return "250 2.0.0 OK"

    def _too_big(self, command: str) -> bool:
        limits = [int(word[5:]) for word in self.extensions if re.fullmatch(r"SIZE \d+", word.upper())]
        sizes = [int(word[5:]) for word in parse_path(command)[1] if re.fullmatch(r"SIZE=\d+", word.upper())]
        return bool(limits and sizes and 0 < limits[0] < sizes[0])

    def _authenticate(self, peer: Peer, command: str) -> None:
        _, mechanism, *initial = [*command.split(), ""][:3]
        if self.auth is None:
            peer.reply("502 5.5.1 AUTH not available")
            return
        if mechanism.upper() not in _sasl.check(self.mechanisms):
            peer.reply("504 5.5.4 unknown mechanism")
            return
        exchange = _sasl.begin(mechanism, self.auth)
        try:
            challenge = next(exchange)
            if initial and initial[0]:
                challenge = exchange.send(_sasl.decode(initial[0]))
            while True:
                peer.reply(f"334 {_sasl.encode(challenge)}")
                challenge = exchange.send(_sasl.decode(peer.read_command(None)))
        except ValueError:
            peer.reply("501 5.5.2 cannot decode the answer")
        except StopIteration as end:
            peer.dialogue.username = end.value
            peer.reply("235 2.7.0 welcome" if end.value is not None else "535 5.7.8 wrong user or password")
