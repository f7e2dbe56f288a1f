"""What is measured: cells, each a place to send to and those who send there in turn.

Owns the three profiles. A cell belongs to a part, and a part answers one question; the targets name parts.

| part | question |
|---|---|
| `trips` | how many round trips does a message cost? (by slope, see `figures`) |
| `speed` | how does throughput fall with the round-trip time? |
| `core` | what does a message cost in CPU, with client and server on one core? |
| `window` | what does CHUNKING with a window bring? |
| `objects` | and when messages are given as objects, not as bytes? |
| `large` | and when they are large? |
| `memory` | how much memory do 25 MiB to eight connections take? |
| `linear` | do 32 threads send 32 times as much as one? |
| `growth-*` | how does cost grow? (`growth`) |
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .peers import PEERS

KIB, MIB = 1 << 10, 1 << 20
SMALL, LARGE, HUGE = 2 * KIB, MIB, 25 * MIB

EVERYBODY = (
    *("threadmail", "threadmail-client", "smtplib", "smtplib-new", "smtplib-locked"),
    *("aiosmtplib", "django", "nodemailer", "smtp-source"),
)
OURS = ("threadmail", "threadmail-kept", "threadmail-client", "threadmail-client-all", "threadmail-smtp")
WINDOWS = ("threadmail-window", "threadmail-window-kept")


@dataclass(frozen=True)
class Cell:
    """One comparison.

    Attributes:
        rtt: milliseconds; 0 is without a delay line.
        size: bytes of content.
        form: as in `client.Job`.
        pinned: client and server on one core.
        messages: for a run; 0 takes as many as fill `seconds`.
        seconds: the time that a run is to take.
    """

    part: str
    peers: tuple[str, ...]
    server: str = "smtp-sink"
    rtt: float = 0.0
    connections: int = 8
    size: int = SMALL
    form: str = "ready"
    recipients: int = 1
    pinned: bool = False
    messages: int = 0
    stream: bool = False
    rounds: int = 5
    seconds: float = 0.6

    @property
    def where(self) -> str:
        """In words."""
        wire = f"{self.rtt:g} ms" if self.rtt else "0 ms, one core" if self.pinned else "0 ms"
        many = f", {self.recipients:,} recipients" if self.recipients > 1 else ""
        return f"{self.part}: {self.server}, {wire}, k={self.connections}, {size_in_words(self.size)}{many}"


@dataclass(frozen=True)
class Profile:
    """How much of everything."""

    name: str
    rounds: int
    seconds: float
    rtts: tuple[float, ...]
    connections: tuple[int, ...]
    sizes: tuple[int, ...] = (SMALL,)
    few: tuple[int, ...] = ()  # connections at 10 ms only, in two rounds
    postfix: bool = True
    growth: bool = True
    most_messages: int = 1_000_000


PROFILES = {
    "quick": Profile("quick", 2, 0.3, (0.0, 10.0), (8,), postfix=False, growth=False, most_messages=10_000),
    "default": Profile("default", 5, 0.6, (0.0, 1.0, 10.0, 50.0), (8,), few=(1, 32)),
    "full": Profile("full", 9, 1.0, (0.0, 1.0, 10.0, 50.0), (1, 8, 32)),
}


def cells(profile: Profile) -> list[Cell]:
    """The comparisons of a profile, less its growth."""
    found = [*_trips(profile), *_speed(profile), *_core(profile), *_window(profile), *_sizes(profile)]
    linear = ("threadmail",)
    # Long enough that opening the connections, which is work and no wait, does not stand for the rest.
    lasting = 0.6 if profile.name == "quick" else 2.5
    found += [Cell("linear", linear, "sink", 10.0, k, rounds=profile.rounds, seconds=lasting) for k in (1, 32)]
    return found


def _trips(profile: Profile) -> Iterator[Cell]:
    """Two counts of messages at two distances: what is left of time is a message's round trips."""
    rounds = min(3, profile.rounds) if profile.name != "quick" else 1
    lines = (1.0, 10.0) if profile.name != "full" else (1.0, 10.0, 50.0)
    # Below 100 messages, so that nobody reconnects, and above the window. Who needs more round trips needs fewer.
    fast = ("threadmail", "threadmail-client-all", *WINDOWS[:1])
    slow = tuple(p for p in (*EVERYBODY, "threadmail-smtp") if p not in fast and p != "smtplib-locked")
    for peers, counts in ((fast, (16, 96)), (slow, (5, 25))):
        for rtt in lines:
            for messages in counts:
                yield Cell("trips", peers, "sink", rtt, 1, messages=messages, rounds=rounds)


def _speed(profile: Profile) -> Iterator[Cell]:
    for rtt in profile.rtts:
        peers = (*EVERYBODY, "threadmail-smtp") if rtt else (*EVERYBODY, "threadmail-smtp", "threadmail-kept")
        far = rtt >= 50.0
        rounds = {1.0: min(3, profile.rounds), 50.0: min(2, profile.rounds)}.get(rtt, profile.rounds)
        for k, size in itertools.product(profile.connections, profile.sizes):
            yield Cell(
                "speed", peers, "smtp-sink", rtt, k, size, pinned=not rtt,
                rounds=rounds, seconds=profile.seconds * (3 if far else 1),
            )  # fmt: skip
        if rtt == 10.0:
            for k in profile.few:
                yield Cell("speed", peers, "smtp-sink", rtt, k, rounds=2, seconds=profile.seconds)


def _core(profile: Profile) -> Iterator[Cell]:
    peers = (*OURS, "smtplib", "aiosmtplib", "nodemailer", "smtp-source")
    yield Cell("core", peers, "smtp-sink", 0.0, 1, pinned=True, rounds=profile.rounds, seconds=profile.seconds)
    objects = ("threadmail", "smtplib", "aiosmtplib", "django", "nodemailer")
    for k in (1,) if profile.name != "full" else (1, 8):
        yield Cell(
            "objects", objects, "smtp-sink", 0.0, k, form="message", pinned=True, rounds=profile.rounds,
            seconds=profile.seconds,
        )  # fmt: skip


def _window(profile: Profile) -> Iterator[Cell]:
    peers = ("threadmail", *WINDOWS, "nodemailer")
    for server in ("sink", "postfix") if profile.postfix else ("sink",):
        more = ("smtplib", "smtp-source") if server == "postfix" else ()
        for k in (1, 8):
            rounds = min(3, profile.rounds) if server == "postfix" and profile.name != "full" else profile.rounds
            # Several connections' worth of messages: opening them is part of the default, and a window feels it.
            lasting = 2 * profile.seconds
            yield Cell("window", peers + more, server, 10.0, k, rounds=rounds, seconds=lasting)
            if server == "postfix":  # without a line, so that acknowledgements are the client's own
                yield Cell("window", peers + more, server, 0.0, k, rounds=min(2, rounds), seconds=profile.seconds)


def _sizes(profile: Profile) -> Iterator[Cell]:
    peers = ("threadmail", "smtplib", "aiosmtplib", "nodemailer", "smtp-source")
    for k in (1, 8):
        yield Cell(
            "large", peers, "sink", 0.0, k, LARGE, pinned=True, rounds=profile.rounds, seconds=profile.seconds
        )  # fmt: skip
    if profile.name == "full":
        yield Cell("large", peers, "sink", 10.0, 8, LARGE, rounds=profile.rounds)
    rounds = 1 if profile.name == "quick" else 2
    yield Cell("memory", peers, "sink", 0.0, 8, HUGE, messages=8, rounds=rounds)
    yield Cell("memory", ("threadmail",), "sink", 0.0, 8, HUGE, messages=32, rounds=rounds)
    yield Cell("memory", ("threadmail", "nodemailer"), "sink", 0.0, 8, HUGE, "file", messages=8, rounds=rounds)


@dataclass(frozen=True)
class Filter:
    """What to keep of a plan; an empty tuple keeps everything."""

    peers: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    rtts: tuple[float, ...] = ()
    connections: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return any((self.peers, self.parts, self.servers, self.rtts, self.connections, self.sizes))

    def of(self, plan: Iterable[Cell]) -> list[Cell]:
        return [self._with_peers(cell) for cell in plan if self._keeps(cell)]

    def _keeps(self, cell: Cell) -> bool:
        asked = (
            (self.parts, cell.part),
            (self.servers, cell.server),
            (self.rtts, cell.rtt),
            (self.connections, cell.connections),
            (self.sizes, cell.size),
        )
        return all(not wanted or value in wanted for wanted, value in asked) and bool(self._with_peers(cell).peers)

    def _with_peers(self, cell: Cell) -> Cell:
        if not self.peers:
            return cell
        return dataclasses.replace(cell, peers=tuple(peer for peer in cell.peers if peer in self.peers))


def first_guess(cell: Cell, peer: str) -> int:
    """How many messages a run may take to fill the cell's time, before one has been seen."""
    return cell.messages or fitting(cell, peer, cell.seconds / _each(cell, peer))


def _each(cell: Cell, peer: str) -> float:
    """Roughly the seconds that a message takes."""
    one = PEERS[peer]
    waiting = one.trips * cell.rtt / 1e3 / (1 if one.shares else cell.connections)
    return max(waiting, one.cost + cell.size * 2e-9)


def fitting(cell: Cell, peer: str, wanted: float) -> int:
    """A number of messages near `wanted`: the same for each connection, and several for each."""
    each = max(1 if PEERS[peer].shares else 4, round(wanted / cell.connections))
    # Objects are many and take longer to build than to send.
    most = 2000 if cell.form == "message" else max(cell.connections, (256 * MIB) // cell.size, 16)
    return min(each * cell.connections, most, 200_000)


def minutes(plan: Iterable[Cell]) -> float:
    """Roughly how long it takes to work off, on a machine that does nothing else."""
    starting = 0.4
    return sum(
        cell.rounds * (starting + first_guess(cell, peer) * _each(cell, peer)) for cell in plan for peer in cell.peers
    ) / 60.0  # fmt: skip


def size_in_words(size: int) -> str:
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size / KIB:g} KiB"
