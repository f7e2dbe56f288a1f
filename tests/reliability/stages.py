"""What every misdeed of a server costs at every stage of a session: the stage table.

Data and nothing else, written down from RFC 5321, 3207 and 4954 and the promises of `threadmail`, not from what the
code does. `test_stages` plays each cell over real sockets; `python -m stress.stages` writes it as `docs/stages.md`.

The rule behind it: what surely did not reach anybody may be tried again if the server did not refuse it for good; a
dialogue in which anything stood out of its place is closed and not used again; and only where the end of the content
has left, and no whole reply came back, nobody can know.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from threadmail import Outcome, Phase


class Next(enum.Enum):
    """What the next message on the same client does."""

    SAME = "same connection"
    NEW = "new connection"
    REFUSED = "refused at once"


SENT, PARTIAL, NOT_SENT, IN_DOUBT = Outcome.SENT, Outcome.PARTIAL, Outcome.NOT_SENT, Outcome.IN_DOUBT
SAME, NEW, REFUSED = Next


@dataclass(frozen=True, eq=False)  # some differ by their meaning only
class Verdict:
    """What comes of one cell.

    Attributes:
        outcome: of the message under way.
        again: whether a later try may succeed, for those recipients who have nothing; a `ThreadedSender` makes it.
        connected: what `Client.is_connected` says afterwards.
        next: what the next message on the same client does.
    """

    outcome: Outcome
    again: bool
    connected: bool
    next: Next


# fmt: off
VERDICTS = {
    #                  outcome   again  lives  next
    "ok":      Verdict(SENT,     False, True,  SAME),
    "anew":    Verdict(SENT,     False, True,  SAME),
    "worn":    Verdict(SENT,     False, True,  NEW),
    "spent":   Verdict(SENT,     False, True,  NEW),
    "part+":   Verdict(PARTIAL,  True,  True,  SAME),
    "part-":   Verdict(PARTIAL,  False, True,  SAME),
    "later":   Verdict(NOT_SENT, True,  True,  SAME),
    "never":   Verdict(NOT_SENT, False, True,  SAME),
    "tired":   Verdict(NOT_SENT, False, True,  NEW),
    "lost":    Verdict(NOT_SENT, True,  False, NEW),
    "shut":    Verdict(NOT_SENT, False, False, NEW),
    "barred":  Verdict(NOT_SENT, False, False, REFUSED),
    "doubt":   Verdict(IN_DOUBT, False, False, NEW),
}
# fmt: on

MEANINGS = {
    "ok": "sent as if nothing had been",
    "anew": "sent, once, over a new connection that took the place of the kept one; nobody is told",
    "worn": "sent over the connection that follows the one said goodbye to; in this row each carries one message",
    "spent": "sent; what lies unread is found when the connection is wanted again, and it is replaced",
    "part+": "sent to the other recipient; this one may be tried again",
    "part-": "sent to the other recipient; this one is refused for good",
    "later": "refused for now; RSET, and the connection goes on",
    "never": "refused for good; RSET, and the connection goes on",
    "tired": "refused for good; what lies unread is found when the connection is wanted again, and it is replaced",
    "lost": "surely not sent, and may be tried again; the connection is closed",
    "shut": "surely not sent, and refused for good; the connection is closed",
    "barred": "surely not sent; nobody dials with the same password for 5 minutes, for servers lock accounts",
    "doubt": "the server has the message or not: sent again only if the user chose so; the connection is closed",
}

#: What the server does in place of the reply that is due, or with it.
ACTS = {
    "4yz": "a transient refusal",
    "5yz": "a permanent refusal",
    "421": "the refusal that says the server is closing (RFC 5321 §3.8); it does not hurry to",
    "2yz": "a positive reply, but the code of another stage",
    "3yz": "an intermediate reply where none is due (at DATA one that is no 354)",
    "close": "ends the connection (FIN)",
    "reset": "resets the connection (RST)",
    "garbage": "a line that is no SMTP reply, and goes on as if nothing were",
    "cut": "the right reply, ended by FIN before its line end",
    "stall": "nothing, ever",
    "drip": "a byte at a time of a reply that never ends",
    "endless": "lines of one reply without end",
    "unasked": "the right reply, and right behind it one that nobody asked for",
    "split": "the right reply, each byte in a segment of its own",
}


@dataclass(frozen=True)
class Stage:
    """One row.

    Attributes:
        phase: which phase a failure is reported in.
        refusal: the error that a refusal raises.
        next_phase: the phase in which a reply that nobody asked for is found.
        about: what happens there.
    """

    phase: Phase
    refusal: str
    next_phase: Phase
    about: str


CONNECT, TLS, AUTH, MAIL, RCPT, DATA, CONTENT, FINAL, DONE = Phase

# fmt: off
STAGES = {
    #                      phase    refusal              next
    "greeting":      Stage(CONNECT, "GreetingRefused",   CONNECT, "the server's first words"),
    "EHLO":          Stage(CONNECT, "HeloRefused",       MAIL,    "refused for good, HELO is tried"),
    "HELO":          Stage(CONNECT, "HeloRefused",       MAIL,    "after EHLO was refused with 502"),
    "STARTTLS":      Stage(TLS,     "StartTLSRefused",   TLS,     "the reply to the command"),
    "TLS":           Stage(TLS,     "",                  CONNECT, "the handshake after it"),
    "AUTH":          Stage(AUTH,    "LoginRefused",      MAIL,    "AUTH PLAIN with the credentials in it"),
    "AUTH answer":   Stage(AUTH,    "LoginRefused",      MAIL,    "AUTH LOGIN: the reply to the password"),
    "MAIL":          Stage(MAIL,    "SenderRefused",     RCPT,    "the reply to the command"),
    "RCPT first":    Stage(RCPT,    "RecipientsRefused", RCPT,    "the first of two recipients; the other is accepted"),
    "RCPT last":     Stage(RCPT,    "RecipientsRefused", DATA,    "the last of two recipients; the other is accepted"),
    "RCPT only":     Stage(RCPT,    "RecipientsRefused", DATA,    "the only recipient"),
    "DATA":          Stage(DATA,    "DataRefused",       DATA,    "the reply to the command"),
    "content":       Stage(CONTENT, "DataRefused",       CONTENT, "while a large content is being written"),
    "final":         Stage(FINAL,   "DataRefused",       DONE,    "the reply to the end of the content"),
    "RSET":          Stage(RCPT,    "RecipientsRefused", RCPT,    "after the only recipient was refused with 550"),
    "NOOP":          Stage(MAIL,    "",                  MAIL,    "asked before a connection idle for long is used"),
    "QUIT":          Stage(CONNECT, "",                  CONNECT, "to a connection that has carried `max_messages`"),
    "idle":          Stage(MAIL,    "",                  MAIL,    "between two messages, unasked"),
    "kept MAIL":     Stage(MAIL,    "SenderRefused",     RCPT,    "on a connection that has carried a message before"),
    "kept RCPT":     Stage(RCPT,    "RecipientsRefused", DATA,    "the last of two, on such a connection"),
    "kept DATA":     Stage(DATA,    "DataRefused",       DATA,    "on such a connection"),
    "kept content":  Stage(CONTENT, "DataRefused",       CONTENT, "on such a connection"),
    "kept final":    Stage(FINAL,   "DataRefused",       DONE,    "on such a connection"),
}

_GRID = """
              4yz    5yz    421    2yz    3yz    close  reset  garbage cut    stall  drip   endless unasked split
greeting      lost   shut   lost   shut   shut   lost   lost   shut    lost   lost   lost   shut    lost    ok
EHLO          lost   ok     lost   lost   lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
HELO          lost   shut   lost   lost   lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
STARTTLS      lost   shut   lost   lost   lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
TLS           -      -      -      -      -      lost   lost   lost    lost   lost   lost   lost    lost    -
AUTH          lost   barred lost   lost   lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
AUTH answer   lost   barred lost   lost   lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
MAIL          later  never  lost   ok     lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
RCPT first    part+  part-  lost   ok     lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
RCPT last     part+  part-  lost   ok     lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
RCPT only     later  never  lost   ok     lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
DATA          later  never  lost   lost   lost   lost   lost   lost    lost   lost   lost   lost    lost    ok
content       lost   shut   lost   lost   lost   lost   lost   lost    lost   lost   lost   lost    -       -
final         later  never  lost   ok     doubt  doubt  doubt  doubt   doubt  doubt  doubt  doubt   spent   ok
RSET          shut   shut   shut   shut   shut   shut   shut   shut    shut   shut   shut   shut    tired   never
NOOP          anew   anew   anew   anew   anew   anew   anew   anew    anew   anew   anew   anew    anew    ok
QUIT          worn   worn   worn   worn   worn   worn   worn   worn    worn   worn   worn   worn    worn    worn
idle          anew   anew   anew   anew   anew   anew   anew   anew    anew   -      anew   anew    -       -
kept MAIL     later  never  anew   ok     anew   anew   anew   anew    anew   anew   anew   anew    anew    ok
kept RCPT     part+  part-  anew   ok     anew   anew   anew   anew    anew   anew   anew   anew    anew    ok
kept DATA     later  never  anew   anew   anew   anew   anew   anew    anew   anew   anew   anew    anew    ok
kept content  lost   shut   lost   lost   lost   lost   lost   lost    lost   lost   lost   lost    -       -
kept final    later  never  lost   ok     doubt  doubt  doubt  doubt   doubt  doubt  doubt  doubt   spent   ok
"""
# fmt: on

#: Why a cell is empty, by row.
EMPTY = {
    "TLS": "there are no replies in a handshake: a line in the clear is garbage; and its bytes, however they come, are "
    "put together by OpenSSL",
    "content": "no reply is due here, so that each one is unasked, and there is none to be split",
    "idle": "silence is what is due here, so that each reply is unasked",
    "kept content": "as in the row above it",
}

#: What comes of `stall` and `drip` where the deadline of the whole call ends them, and not the time-out of the step: no
#: time is left for another connection. All other stages are as in the table.
HELD_UP = dict.fromkeys(("kept MAIL", "kept RCPT", "kept DATA"), "lost")

#: Which error a failing act raises, for all stages. A refusal (4yz, 5yz, 421) raises what stands with its stage.
ERRORS = {
    **dict.fromkeys(("2yz", "3yz", "garbage", "endless", "unasked"), "BadReply"),
    **dict.fromkeys(("close", "reset", "cut"), "ConnectionLost"),
    **dict.fromkeys(("stall", "drip"), "ReplyTimedOut"),
}

#: Where it is another one.
ODD_ERRORS = {
    ("greeting", "2yz"): "GreetingRefused",
    ("greeting", "3yz"): "GreetingRefused",
    ("greeting", "stall"): "ConnectTimedOut",
    ("greeting", "drip"): "ConnectTimedOut",
    **{("TLS", act): "TLSFailed" for act in ("close", "reset", "garbage", "cut", "stall", "drip", "endless")},
}

#: What is not plain from the table: row, acts, why it is so.
REASONS = [
    (
        "greeting",
        "2yz 3yz garbage endless",
        "Who begins with anything but 220, 4yz or 5yz is no SMTP server (RFC 5321 §4.3.2), and will not become one.",
    ),
    (
        "EHLO",
        "4yz 5yz 2yz",
        "HELO is for servers that do not know EHLO, which is what 5yz says (§3.2). After a 4yz it would give up what "
        "EHLO offers, STARTTLS and AUTH among it, and make a permanent failure of a passing one. The 2yz is a second "
        "greeting here, which shifts all replies by one; with any other 2yz code the session goes on (§4.3.2).",
    ),
    (
        "STARTTLS",
        "4yz 5yz",
        "Whoever asked for TLS gets it or nothing (RFC 3207 §4.1): the connection is closed, in the clear nothing more "
        "is said.",
    ),
    ("STARTTLS", "unasked", "Bytes from before the handshake were injected by somebody in between."),
    (
        "TLS",
        "garbage",
        "It speaks TLS, for it offered so: something came between. (Where TLS is due from the first byte, a line in "
        "the clear means the wrong port, and no later try will help.)",
    ),
    (
        "AUTH",
        "5yz 2yz 3yz",
        "A refused password is offered once. What is neither 235 nor a refusal says nothing about the password.",
    ),
    (
        "RCPT first",
        "4yz 5yz 421",
        "A refused recipient is no refused message: the others get it. Only a 421 ends the session.",
    ),
    (
        "DATA",
        "2yz unasked",
        "Without a 354, and with anything behind it, no byte of the content leaves: the next reply would be taken for "
        "the answer to it.",
    ),
    (
        "content",
        "4yz 5yz 421 2yz",
        "The end of the content has not left, so the server cannot have the message. Its refusal stands; a 250 before "
        "the end is no acceptance. The connection is dropped: once a 354 has come, content follows or nothing.",
    ),
    (
        "final",
        "421 3yz",
        "A 421 is a transient refusal (§4.2.1), so nobody has the message. A reply that is neither yes nor no leaves "
        "it in doubt.",
    ),
    (
        "RSET",
        "4yz 5yz",
        "Only a 250 proves that the old MAIL is forgotten. What became of the message is known before.",
    ),
    (
        "NOOP",
        "4yz 2yz",
        "Only a 250 passes: a queued 221 was taken for a sign of life elsewhere.",
    ),
    ("QUIT", "stall", "The farewell is a courtesy: it costs 2 s at most, and less if the deadline is nearer."),
    (
        "kept MAIL",
        "421 close stall",
        "The server had hung up on an idle connection. Nothing of the content has left, so the message goes over a "
        "new one, once, and nobody needs to know.",
    ),
    ("kept content", "close", "Never replaced unseen: part of the content has left. It counts as an attempt."),
]


def _table() -> dict[tuple[str, str], Verdict | None]:
    acts, *rows = _GRID.strip("\n").splitlines()
    table = {}
    for row in rows:
        stage, words = row[:14].strip(), row[14:].split()
        for act, word in zip(acts.split(), words, strict=True):
            table[stage, act] = None if word == "-" else VERDICTS[word]
    return table


#: The table: what comes of each act at each stage; None where there can be no such thing.
TABLE = _table()


@dataclass(frozen=True)
class Mode:
    """A way of sending.

    Attributes:
        name: what it is called.
        extensions: what the server offers.
        settings: of the client.
        stages: those that may go differently.
        batch: the message under way is one of three that are there at once for one lane.
        doubts: the misdeed may leave those behind it in doubt as well.
        differs: the cells in which it differs from the table.
        found: where it finds a reply that nobody asked for, if that is not where the table says.
    """

    name: str
    extensions: tuple[str, ...]
    stages: tuple[str, ...] = tuple(STAGES)
    differs: Mapping[tuple[str, str], Verdict | None] = field(default_factory=dict)
    found: Mapping[str, Phase] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    batch: bool = False
    doubts: bool = False

    def verdict(self, stage: str, act: str) -> Verdict | None:
        cell = stage, act
        return self.differs[cell] if cell in self.differs else TABLE[cell]

    def cells(self) -> list[tuple[str, str]]:
        """Those that there can be."""
        return [cell for cell in TABLE if cell[0] in self.stages and self.verdict(*cell) is not None]

    def phase(self, stage: str, act: str) -> Phase:
        """The phase in which a failing cell is reported."""
        if STAGES[stage].phase is FINAL and act in ("4yz", "5yz", "421"):
            return DONE  # a whole reply came
        if act == "unasked":
            return self.found.get(stage, STAGES[stage].next_phase)
        return STAGES[stage].phase


_OF_A_MESSAGE = tuple(s for s in STAGES if STAGES[s].phase not in (CONNECT, TLS, AUTH) and s not in ("NOOP", "idle"))

LOCK_STEP = Mode("lock-step", ("8BITMIME",))
#: MAIL, RCPT and DATA in one write. A surplus reply shifts those behind it by one, and DATA gets what is no 354.
GROUPS = Mode("in groups", ("PIPELINING", "8BITMIME"), _OF_A_MESSAGE, found={"MAIL": DATA, "RCPT first": DATA})

_BEHIND = ("kept MAIL", "kept RCPT", "kept DATA", "kept content", "kept final")
#: The content of a message and the commands of the next in one write, which changes nothing for either.
RIDING = Mode("riding", GROUPS.extensions, ("MAIL", "final", "RSET", *_BEHIND), batch=True)

_IN_WINDOW = ("MAIL", "RCPT first", "RCPT last", "RCPT only", "final", "kept MAIL", "kept RCPT", "kept final")
_NO_ANSWER = ("3yz", "close", "reset", "garbage", "cut", "stall", "drip", "endless")
#: RSET, MAIL, RCPT and content of several messages in one write. All content has left before the first reply is there,
#: so that whatever is none leaves it in doubt; and one reply too many looks like the next one.
WINDOW = Mode(
    "in a window",
    ("PIPELINING", "CHUNKING", "8BITMIME"),
    _IN_WINDOW,
    differs={
        **{(stage, act): VERDICTS["doubt"] for stage in _IN_WINDOW for act in _NO_ANSWER},
        # This server goes on, takes the content for the other one and says so; who hangs up instead leaves it in doubt.
        **{(stage, "421"): VERDICTS["part+"] for stage in ("RCPT first", "RCPT last", "kept RCPT")},
        ("kept MAIL", "421"): VERDICTS["lost"],
        **{(stage, "unasked"): None for stage in _IN_WINDOW},
    },
    settings={"window": 3},
    batch=True,
    doubts=True,
)

MODES = [LOCK_STEP, GROUPS, RIDING, WINDOW]


def word(verdict: Verdict | None) -> str:
    """The name of a verdict."""
    return next((name for name, known in VERDICTS.items() if known is verdict), "-")


def error_of(stage: str, act: str) -> str:
    """The class of the error that a failing cell raises."""
    if (stage, act) in ODD_ERRORS:
        return ODD_ERRORS[stage, act]
    if act in ("4yz", "5yz", "421") or stage == "RSET":  # at RSET the refusal came before
        return STAGES[stage].refusal
    return ERRORS[act]
