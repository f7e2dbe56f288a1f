"""How a `ScriptedServer` plays a cell of the stage table.

Owns the scripts and the settings of the client that meets them. The first connection is the wicked one; all later ones
are served as they ought to be. What the server did wrong it does not notice: it goes on, so that a client that trusts
such a connection further would be answered.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from dataclasses import dataclass, field
from typing import Any

from threadmail import Envelope, ServerConfig, Timeouts
from threadmail.testing import (
    Drip,
    Drop,
    Expect,
    Peer,
    ReadBytes,
    Reply,
    Reset,
    Script,
    ScriptedServer,
    Send,
    Serve,
    Signal,
    Stall,
    StartTLS,
    Step,
    TestCA,
)

from .stages import Mode

USERS = {"ada": "correct horse"}
TO, TOO = "to@example.net", "too@example.net"

#: More than the buffers of both ends hold, so that a server that does not read is felt.
LARGE = 6 * 1024 * 1024

#: Seconds between two bytes of a server that drips, and how many it has: more than any limit of these tests.
PACE, DROPS = 0.02, 3000

#: Far more than a client will read.
ENDLESS = 5000


@dataclass(frozen=True)
class Scene:
    """How the server gets to a stage, and what would be right there.

    Attributes:
        until, count: the stage begins with the `count`-th such command, which is not answered.
        right: the reply that is due.
        positive: a positive reply with the code of another stage.
        replies: what the server answers differently on its way.
        lead: further steps before the stage.
        kept: a message goes over the connection before.
        recipients: of the message under way.
        large: whether its content is.
        settings: of the client.
        waits: which of its time-outs ends the wait here.
    """

    until: str
    right: str
    count: int = 1
    positive: str = "220 mail.example.test once more"
    replies: dict[str, str] = field(default_factory=dict)
    lead: tuple[Step, ...] = ()
    kept: bool = False
    recipients: tuple[str, ...] = (TO, TOO)
    large: bool = False
    settings: dict[str, object] = field(default_factory=dict)
    waits: str = "command"

    @property
    def login(self) -> bool:
        return self.until == "AUTH"

    @property
    def secured(self) -> bool:
        return self.until == "STARTTLS"


OK, GO_AHEAD = "250 2.0.0 fine with me", "354 go ahead"

_CONTENT = (Reply(GO_AHEAD), ReadBytes(65536))
_PASSWORD = (Reply("334 UGFzc3dvcmQ6"), Expect(re.compile(r"[A-Za-z0-9+/=]+\Z")))

# fmt: off
SCENES = {
    "greeting":     Scene("",         "220 mail.example.test ESMTP", positive=OK),
    "EHLO":         Scene("EHLO",     "250-mail.example.test\n250 8BITMIME"),
    "HELO":         Scene("HELO",     "250 mail.example.test", replies={"EHLO": "502 5.5.1 unknown command"}),
    "STARTTLS":     Scene("STARTTLS", "220 go ahead", positive=OK),
    "TLS":          Scene("STARTTLS", "", lead=(Reply("220 go ahead"),), waits="connect"),
    "AUTH":         Scene("AUTH",     "235 2.7.0 welcome", positive=OK),
    "AUTH answer":  Scene("AUTH",     "235 2.7.0 welcome", positive=OK, lead=_PASSWORD, settings={"auth": "LOGIN"}),
    "MAIL":         Scene("MAIL",     OK),
    "RCPT first":   Scene("RCPT",     OK),
    "RCPT last":    Scene("RCPT",     OK, 2),
    "RCPT only":    Scene("RCPT",     OK, recipients=(TO,)),
    "DATA":         Scene("DATA",     GO_AHEAD, positive=OK),
    "content":      Scene("DATA",     OK, lead=_CONTENT, large=True, waits="content"),
    "final":        Scene(".",        OK, waits="final"),
    "RSET":         Scene("RSET",     OK, replies={"RCPT": "550 5.1.1 nobody"}, recipients=(TO,)),
    "NOOP":         Scene("NOOP",     OK, kept=True, waits="probe"),
    "QUIT":         Scene("QUIT",     "221 2.0.0 bye", kept=True, settings={"max_messages": 1}, waits="quit"),
    "idle":         Scene(".",        OK, kept=True, lead=(Reply(OK),)),
    "kept MAIL":    Scene("MAIL",     OK, 2, kept=True),
    "kept RCPT":    Scene("RCPT",     OK, 3, kept=True),  # the message before has one recipient
    "kept DATA":    Scene("DATA",     GO_AHEAD, 2, positive=OK, kept=True),
    "kept content": Scene("DATA",     OK, 2, lead=_CONTENT, large=True, kept=True, waits="content"),
    "kept final":   Scene(".",        OK, 2, kept=True, waits="final"),
}
# fmt: on


class Deaf(Step):
    """Neither say nor read anything, unlike `Stall`, which reads."""

    def play(self, peer: Peer) -> None:
        peer.sleep(60.0)


@dataclass(frozen=True)
class Surplus(Step):
    """Send a reply and one more in the same segment, which is not counted as the answer to anything."""

    reply: bytes
    more: bytes

    def play(self, peer: Peer) -> None:
        if peer.dialogue.pending:
            peer.dialogue.pending.insert(1, "")
        peer.send(self.reply + self.more)


class ReadSlowly(Step):
    """Read a byte at a time."""

    def play(self, peer: Peer) -> None:
        never = threading.Event()
        while not peer.wait(never, PACE):
            peer.read_bytes(1, None)


class Play:
    """One cell on a server of its own; a context manager.

    Args:
        limit: seconds that the client waits for what the server holds back.
    """

    def __init__(self, stage: str, act: str, mode: Mode, *, limit: float = 10.0) -> None:
        self.stage, self.scene = stage, SCENES[stage]
        self.done = threading.Event()  # the server has done its worst
        self._mode = mode
        if "CHUNKING" in mode.extensions:  # there the content comes with the command, and one reply is to both
            self.scene = dataclasses.replace(self.scene, until=self.scene.until.replace(".", "BDAT"))
        usual = Serve(extensions=mode.extensions, auth=USERS if self.scene.login else None)
        self.server = ScriptedServer(
            self._script(usual, stage, act),
            [usual],
            last="repeat",
            tls="starttls" if self.scene.secured else "none",
            **(_certificates() if self.scene.secured else {}),
        )
        self._limit = limit

    def __enter__(self) -> Play:
        self.server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.server.__exit__(kind, None, None)

    @property
    def config(self) -> ServerConfig:
        timeouts = dataclasses.replace(Timeouts.all(20.0), **{self.scene.waits: self._limit})
        settings: dict[str, object] = {
            "idle_timeout": None,
            "timeouts": timeouts,
            **self.scene.settings,
            **self._mode.settings,
        }
        return dataclasses.replace(self.server.config, **settings)  # type: ignore[arg-type]

    def message(self) -> Envelope:
        """The message under way."""
        body = _large_body() if self.scene.large else "This is it.\r\n"
        return _envelope("subject", self.scene.recipients, body)

    def _script(self, usual: Serve, stage: str, act: str) -> Script:
        scene = self.scene
        way = dataclasses.replace(usual, replies=scene.replies, until=scene.until, count=scene.count)
        arrive = [way, *scene.lead] if scene.until else []
        misdeed = _unasked(stage, act) or _instead_of(scene, act)
        if (stage, act) == ("STARTTLS", "split"):
            misdeed = [*misdeed, StartTLS()]
        ends = act in ("close", "reset", "cut")
        # What drips has begun to when the first byte is out; a client that is idle waits for that.
        first = [Send(b"2")] if stage == "idle" and act == "drip" else [] if act == "drip" else misdeed
        return [*arrive, *first, Signal(self.done), *([] if first is misdeed else misdeed), *([] if ends else [usual])]


def _unasked(stage: str, act: str) -> list[Step] | None:
    """What an act is where no reply is due; None where it is what it is elsewhere."""
    if stage == "TLS":
        return _in_handshake(act)
    return _in_content(act) if stage.endswith("content") else None


def _instead_of(scene: Scene, act: str) -> list[Step]:
    """The act where a reply is due."""
    line = "".join(f"{line}\r\n" for line in scene.right.split("\n")).encode()
    code = line[:3]
    acts: dict[str, list[Step]] = {
        "4yz": [Reply("451 4.3.0 not now")],
        "5yz": [Reply("550 5.7.1 no")],
        "421": [Reply("421 4.4.2 closing")],
        "2yz": [Reply(scene.positive)],
        "3yz": [Reply("334 " if scene.right == GO_AHEAD else GO_AHEAD)],
        "close": [Drop()],
        "reset": [Reset()],
        "garbage": [Send(b"\x07this is no SMTP, is it?\r\n")],
        "cut": [Send(line[:-4]), Drop()],
        "stall": [Stall()],
        "drip": [Drip(code + b"-" + b"x" * DROPS, PACE)],
        "endless": [Send((code + b"-and then\r\n") * ENDLESS)],
        "unasked": [Surplus(line, b"250 2.0.0 nobody asked\r\n")],
        "split": [Drip(line, 0.0)],
    }
    return acts[act]


def _in_content(act: str) -> list[Step] | None:
    """The act while the client writes and expects nothing. After a reply the server reads on, as most do."""
    if act in ("4yz", "5yz", "421", "2yz", "3yz", "garbage", "endless"):
        scene = Scene("", OK)
        return [*_instead_of(scene, act), Stall()]
    acts: dict[str, list[Step]] = {
        "cut": [Send(b"25"), Drop()],
        "stall": [Deaf()],
        "drip": [ReadSlowly()],
    }
    return acts.get(act)


def _in_handshake(act: str) -> list[Step] | None:
    """The act after the client's first words of TLS."""
    if act != "unasked":
        return [ReadBytes(5), *(_against_hello(act) or _instead_of(SCENES["TLS"], act))]
    return [StartTLS(), Send(b"220 mail.example.test once more\r\n")]


def _against_hello(act: str) -> list[Step] | None:
    server_hello = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03"
    acts: dict[str, list[Step]] = {
        "garbage": [Send(b"500 5.5.1 unknown command\r\n"), Stall()],
        "cut": [Send(server_hello), Drop()],
        "drip": [Drip(server_hello + bytes(DROPS), PACE)],
        "endless": [Send((b"\x16\x03\x03\x40\x00\x02\xff\xff\xff" + bytes(0x3FFC)) * 50), Stall()],
    }
    return acts.get(act)


def small(name: str) -> Envelope:
    """A message to go before or after the one under way."""
    return _envelope(name, (TO,), f"This is {name}.\r\n")


def large(name: str) -> Envelope:
    """A message whose content does not fit into the buffers between two programs."""
    return _envelope(name, (TO,), _large_body())


def _envelope(name: str, recipients: tuple[str, ...], body: str) -> Envelope:
    return Envelope(
        "from@example.org", recipients, f"Subject: {name}\r\nMessage-ID: <{name}@example.org>\r\n\r\n{body}"
    )


@functools.lru_cache(maxsize=1)
def _large_body() -> str:
    return ("x" * 990 + "\r\n") * (LARGE // 992)


@functools.lru_cache(maxsize=1)
def _certificates() -> dict[str, Any]:
    authority = TestCA()
    return {"ca": authority, "ssl_context": authority.server_context()}
