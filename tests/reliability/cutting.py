"""Where a session can be broken, by what, and what must come out.

Owns the vocabulary of the every-byte runs: a `Mode` is a kind of server and the terms it is used on, a `Layout` says
where in the bytes of a session its turning points are, a `Place` is a fault at a byte. Ways to send are in
`cutting_ways`; `cutting_bench` breaks the sessions, and `cutting_tally` compares what senders were told with what
servers have.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

from tests.reliability.cutting_ways import Way
from tests.support.naming import NamingServer
from threadmail import Outcome
from threadmail.testing import Cut, Garble, Hold, Passage, Plan, ScriptedServer, Serve, TestCA

Server: TypeAlias = NamingServer | ScriptedServer
Direction: TypeAlias = Literal["up", "down"]  # to the server, to the client

RECIPIENTS = 2


# ---------------------------------------------------------------- modes


@dataclass(frozen=True)
class Mode:
    """A kind of server, and the terms it is used on.

    Args:
        server: makes one.
        settings: fields of `ServerConfig` that differ from those of the server's own config.
        exact: the bytes of a session are the same each time, so what must come out is known for each position. Not
            under TLS, whose signatures and tickets vary, nor where the system's buffers decide how much was handed
            over; what may come out is known there as well.
        padding: octets of content beyond the few that are needed.
        doubts: messages of a batch that one fault leaves in doubt, at most.
    """

    name: str
    server: Callable[[], Server]
    settings: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    padding: int = 0
    doubts: int = 1


@cache
def authority() -> TestCA:
    return TestCA()


#: One line a mode. What goes over all of them takes a new one in.
MODES = [
    Mode("EHLO", lambda: NamingServer(extensions=(), size_limit=None)),
    Mode("PIPELINING", lambda: NamingServer(extensions=("PIPELINING",), size_limit=None)),
    Mode(
        "window of 3",
        lambda: NamingServer(extensions=("PIPELINING", "CHUNKING"), size_limit=None),
        {"window": 3},
        exact=False,  # what of a window the kernel took before it saw the cut is in doubt, the rest is not
        doubts=3,
    ),
    Mode("HELO", lambda: ScriptedServer([Serve(replies={"EHLO": "502 5.5.1 what?"})], last="repeat")),
    Mode(
        "STARTTLS and AUTH",
        lambda: NamingServer(tls="starttls", ca=authority(), auth={"ada": "secret"}, require_auth=True),
        exact=False,
    ),
]

#: More content than the system's buffers take at once, in many blocks.
LARGE = Mode("EHLO, 3 MiB", lambda: NamingServer(extensions=(), size_limit=None), exact=False, padding=3 << 20)


# ---------------------------------------------------------------- where things are


@dataclass(frozen=True)
class Layout:
    """The turning points of a session, as the number of bytes of a direction that have passed when it is reached.

    Attributes:
        up, down: all bytes of a session, to the server and to the client.
        content: the content begins here; before, the server cannot have the message, and the client knows it.
        end: the end of data.
        go_ahead: the reply that lets the content go is whole.
        final: the reply to the end of data is whole.
        ready: the last reply before the transaction is whole.
        first_up, first_down: where the faults begin; a way may send another message before, for that alone.
        handed_over: up to here the same write may reach that has the end of data: the commands of the next message.
    """

    up: int
    down: int
    content: int = 0
    end: int = 0
    go_ahead: int = 0
    final: int = 0
    ready: int = 0
    first_up: int = 0
    first_down: int = 0
    handed_over: int = 0

    @classmethod
    def of(cls, passage: Passage, content: bytes, before: int, *, whole: bool = False) -> Layout:
        """Read it off a session that went well, in which `before` other messages came first.

        Args:
            whole: the faults begin with the session all the same.
        """
        up, down = passage.client_said, passage.server_said
        begin = up.index(content)
        replies = [(int(m[1]), m.end()) for m in re.finditer(rb"(?m)^(\d{3})(?: [^\n]*)?\r\n", down)]
        finals = [i + 1 for i, (code, _) in enumerate(replies) if code == 354]
        final = finals[before]
        end = up.index(b"\r\n.\r\n", begin) + 5
        following = up.find(content[:10], end)  # each begins with its Message-ID
        skipped = before and not whole
        return cls(
            up=len(up),
            down=len(down),
            content=begin,
            end=end,
            go_ahead=replies[final - 1][1],
            final=replies[final][1],
            ready=replies[final - 2 - 1 - RECIPIENTS][1],  # before 354, RCPT and MAIL
            first_up=up.index(b"\r\n.\r\n") + 6 if skipped else 0,  # 5: the other message would be cut off as well
            first_down=replies[finals[before - 1]][1] if skipped else 0,
            handed_over=following if following > 0 else end,
        )

    def expected(self, place: Place, way: Way) -> set[Outcome]:
        """What must come out when the connection is cut or goes silent at this place."""
        surely_not = Outcome.SENT if way.replaced else Outcome.NOT_SENT
        doubt = Outcome.SENT if way.resends else Outcome.IN_DOUBT
        n, cut = place.fault.after, isinstance(place.fault, Cut)
        if place.direction == "up":
            if self.excludes_doubt(place):
                return {surely_not}
            # Where only the way up is held, the reply to what has passed still comes.
            if n < self.end or (cut and n == self.end):
                return {doubt}
            return {doubt, Outcome.SENT} if cut and n <= self.handed_over > self.end else {Outcome.SENT}
        if n == self.go_ahead and cut:
            # The content meets the cut, or the kernel has taken it before. Content is nothing to begin anew in silence.
            return {Outcome.IN_DOUBT, surely_not, doubt, *(() if way.after else (Outcome.NOT_SENT,))}
        if n == self.ready and cut and way.dials:
            return {Outcome.SENT, surely_not}  # a look at the connection may show that it has gone
        return {surely_not} if n < self.go_ahead else {doubt} if n < self.final else {Outcome.SENT}

    def excludes_doubt(self, place: Place) -> bool:
        """Whether the end of data cannot have left."""
        n = place.fault.after
        if place.direction == "down":
            return n < self.go_ahead
        # Where only the way up falls silent, the go-ahead still comes, and the content is handed over to nobody.
        return n < self.content or (n == self.content and isinstance(place.fault, Cut))


class Place(NamedTuple):
    """A fault on the way to the server ("up") or to the client ("down")."""

    direction: Direction
    fault: Cut | Hold | Garble

    @property
    def is_silent(self) -> bool:
        """Whether the sender has to wait to notice."""
        return not isinstance(self.fault, Cut) or self.fault.side == "server"

    def plan(self) -> Plan:
        return Plan(to_server=[self.fault]) if self.direction == "up" else Plan(to_client=[self.fault])

    def __str__(self) -> str:
        fault = self.fault
        kind = f"{fault.how}:{fault.side}" if isinstance(fault, Cut) else type(fault).__name__.lower()
        return f"{self.direction}:{fault.after}:{kind}"


#: The faults by name, each to be made for a position.
FAULTS: dict[str, Callable[[int], Cut | Hold | Garble]] = {
    "reset": Cut,
    "fin": lambda n: Cut(n, "fin"),
    "hold": Hold,
    "unread": lambda n: Hold(n, reading=False),
    "garble": Garble,
    "reset client": lambda n: Cut(n, "reset", "client"),
    "fin client": lambda n: Cut(n, "fin", "client"),
    "reset server": lambda n: Cut(n, "reset", "server"),
    "fin server": lambda n: Cut(n, "fin", "server"),
}


def places(layouts: Sequence[Layout], fault: str, sample: int | None, seed: int) -> list[Place]:
    """A fault at each position of each direction; or at about `sample` of each, the turning points among them.

    Args:
        layouts: of each message of the session.
    """
    found: list[Place] = []
    begin = layouts[0]
    for direction, first, last, points in (
        ("up", begin.first_up, begin.up, [point for layout in layouts for point in (layout.content, layout.end)]),
        ("down", begin.first_down, begin.down, [p for layout in layouts for p in (layout.go_ahead, layout.final)]),
    ):
        positions = list(range(first, last + 1))
        if sample is not None:
            rng = random.Random(f"{seed}/{fault}/{direction}")
            near = {p + d for p in points for d in (-1, 0, 1)} if begin.content else set()
            # The end is dear: that is where the message changes hands, and under TLS the handshake takes most bytes.
            tail = positions[-last // 8 :]
            drawn = [
                *rng.sample(positions, min(sample, len(positions))),
                *rng.sample(tail, min(sample // 2, len(tail))),
            ]
            positions = sorted({*drawn, *near})
        found += [Place(direction, FAULTS[fault](n)) for n in positions]  # type: ignore[arg-type]
    return found
