"""Sessions with a fault in each, several at a time.

Owns the servers and proxies of the every-byte runs: a `Bench` is a server of one mode with one way to send to it, a
`Trial` one broken session and what became of its message. Guarantees that what arrived is counted when nothing can
arrive any more. What the trials mean is for `cutting_tally` to say.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias

from tests.reliability.cutting import Layout, Mode, Place
from tests.reliability.cutting_ways import Fate, Other, Way
from tests.support.naming import NamingServer
from threadmail import Envelope, Outcome, ServerConfig, Timeouts
from threadmail.testing import CapturedMessage, FaultProxy

CALM = 5.0  # seconds, the deadline where the fault is noticed at once
SILENT = 0.25  # seconds, the deadline where silence has to be waited for
WORKERS = 4
DAMAGERS = 8  # servers at once where each trial needs one for itself
WAITERS = 24  # trials at once where most of them wait
CARRIED = ("host", "port", "security", "username", "password", "ssl_context", "lmtp")

Arrivals: TypeAlias = dict[bytes, list[tuple[CapturedMessage, str]]]  # by the first line of the content

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Trial:
    """One session with a fault in it.

    Attributes:
        deadline: what the sender was given, in seconds.
        connections: how many it took.
        heard: whether the end of data came out of the client on the first of them.
        spoken: the Message-IDs that went to the server, over all connections; empty where they cannot be seen.
        copies: how often the server took the message for each of its recipients, in their order.
        ids: what the server's final replies to it named; empty where it names nothing.
        intact: whether each of those copies is the message as it was sent.
        others: the same of the messages that went with it: what was told, and the copies of it that arrived whole.
    """

    place: Place
    envelope: Envelope
    fate: Fate
    deadline: float
    connections: int
    heard: bool
    spoken: frozenset[str]
    copies: tuple[int, ...] = ()
    ids: frozenset[str] = frozenset()
    intact: bool = True
    others: tuple[tuple[Other, tuple[int, ...], frozenset[str]], ...] = ()


def new_envelope(padding: int) -> Envelope:
    """A message of the same length each time, as short as can be but for the padding."""
    lines = ("x" * 900 + "\r\n") * (padding // 902)
    content = f"Message-ID: <m{next(_numbers):07}@a.test>\r\n\r\n.dot\r\n{lines}"
    return Envelope("a@a.test", ["b@b.test", "c@c.test"], content)


class Bench:
    """A mode's server, and what a session with it looks like when nothing breaks."""

    def __init__(self, mode: Mode, way: Way) -> None:
        self.mode = mode
        self.way = way
        self._server = mode.server()

    def __enter__(self) -> Bench:
        self._server.start()
        try:
            self.layout, *self.others = self.layouts = self._look()
        except BaseException:
            self._server.close()
            raise
        return self

    def _look(self) -> list[Layout]:
        """The layout of the message that is watched, and of those that go with it."""
        envelope = new_envelope(self.mode.padding)
        with FaultProxy(self._server, record=not self.mode.padding) as proxy:
            fate = self.way.send(self._config(proxy, CALM), envelope, CALM)
            assert fate.outcome is Outcome.SENT, fate
            proxy.wait_until_idle()
            passage = proxy.passages[0]
        if not self.mode.exact:
            return [Layout(passage.from_client, passage.from_server)] * (1 + len(fate.others))
        others = [number for number in range(1 + len(fate.others)) if number != self.way.before] if fate.others else []
        sent = [envelope, *(other.envelope for other in fate.others)]
        return [
            Layout.of(passage, envelope.content[:-6], place, whole=bool(fate.others))
            for envelope, place in zip(sent, [self.way.before, *others], strict=True)
        ]

    def __exit__(self, *exc: object) -> None:
        self._server.close()

    def _config(self, proxy: FaultProxy, seconds: float) -> ServerConfig:
        timeouts = Timeouts(seconds, seconds, seconds, seconds, quit=SILENT)
        fields = {name: getattr(self._server.config, name) for name in CARRIED}
        config = ServerConfig(**{**fields, "local_hostname": "me", "timeouts": timeouts, **self.mode.settings})
        return proxy.reroute(config)

    def _attempt(self, place: Place) -> Trial:
        # Who tries again needs time beyond the silence: for him the time-outs are short instead of the deadline.
        timeout = SILENT if place.is_silent and self.way.replaced else CALM
        deadline = SILENT if place.is_silent and not self.way.replaced else CALM
        envelope = new_envelope(self.mode.padding)
        with FaultProxy(self._server, place.plan(), record=not self.mode.padding) as proxy:
            fate = self.way.send(self._config(proxy, timeout), envelope, deadline)
            passages = proxy.passages
        said = b"".join(passage.client_said for passage in passages)
        spoken = frozenset(m.decode("latin-1") for m in re.findall(rb"Message-ID: (<m[^>\r\n]*>)", said))
        heard = bool(passages) and (envelope.content + b".\r\n") in passages[0].client_said.replace(b"\r\n..", b"\r\n.")
        return Trial(place, envelope, fate, deadline, len(passages), heard, spoken)

    def run(self, places: Sequence[Place]) -> Iterator[Trial]:
        """A trial for each place, several at a time; what arrived is counted when all connections are gone."""
        workers = WAITERS if any(place.is_silent for place in places) else WORKERS
        with ThreadPoolExecutor(workers, "cutting") as pool:
            trials = list(pool.map(self._attempt, places))
        self._server.wait_for_connections(0)
        arrivals: Arrivals = {}
        for message, queue_id in self._taken():
            arrivals.setdefault(_first_line(message.content), []).append((message, queue_id))
        for trial in trials:
            sent = trial.envelope
            taken = arrivals.get(_first_line(sent.content), [])
            others = tuple(
                (other, *_counted(other.envelope, _whole(other.envelope, arrivals))) for other in trial.fate.others
            )
            copies, ids = _counted(sent, taken)
            intact = all(_is_whole(sent, message) for message, _ in taken)
            yield replace(trial, copies=copies, ids=ids, intact=intact, others=others)

    def _taken(self) -> list[tuple[CapturedMessage, str]]:
        """What the server took, each with the id that its reply named, or ""."""
        if isinstance(self._server, NamingServer):
            return self._server.taken
        return [(message, "") for message in self._server.messages]

    def run_one(self, place: Place) -> Trial:
        """A trial whose message may arrive damaged beyond recognition: whatever arrives meanwhile is it."""
        before = len(self._server.messages)
        trial = self._attempt(place)
        self._server.wait_for_connections(0)
        taken = self._taken()[before:]
        copies = Counter(recipient for message, _ in taken for recipient in message.recipients)
        known = trial.envelope.recipients
        damaged = sum(number for recipient, number in copies.items() if recipient not in known)
        counts = [copies[recipient] for recipient in known]
        # A name that nobody has is that of whoever is missing: one byte was damaged, so one name.
        if damaged and 0 in counts:
            counts[counts.index(0)] = damaged
        return replace(trial, copies=tuple(counts))


def _counted(
    envelope: Envelope, taken: Sequence[tuple[CapturedMessage, str]]
) -> tuple[tuple[int, ...], frozenset[str]]:
    """How often each recipient has it, and what the replies to it named."""
    copies = Counter(recipient for message, _ in taken for recipient in message.recipients)
    ids = frozenset(queue_id for _, queue_id in taken if queue_id)
    return tuple(copies[recipient] for recipient in envelope.recipients), ids


def _is_whole(envelope: Envelope, message: CapturedMessage) -> bool:
    strangers = set(message.recipients) - set(envelope.recipients)
    return (message.sender, message.content) == (envelope.sender, envelope.content) and not strangers


def _whole(envelope: Envelope, arrivals: Arrivals) -> list[tuple[CapturedMessage, str]]:
    taken = arrivals.get(_first_line(envelope.content), [])
    return [(message, queue_id) for message, queue_id in taken if _is_whole(envelope, message)]


def _first_line(content: bytes) -> bytes:
    return content.partition(b"\r\n")[0]  # the Message-ID


def run_damaged(mode: Mode, way: Way, places: Sequence[Place]) -> list[Trial]:
    """A trial for each place, several at a time, each of them with a server of its own."""

    def some(share: Sequence[Place]) -> list[Trial]:
        with Bench(mode, way) as bench:
            return [bench.run_one(place) for place in share]

    with ThreadPoolExecutor(DAMAGERS, "cutting") as pool:
        shares = pool.map(some, [places[i::DAMAGERS] for i in range(DAMAGERS)])
        return [trial for share in shares for trial in share]
