"""The soak's worst server: one that is alive, and everything between it and the client goes wrong.

Owns a `NamingServer` that limits connections, greylists, refuses logins and is restarted, the `FaultProxy` before it
that cuts and stalls connections at random bytes, and the count of what struck. Guarantees what every server of the
soak does: `arrived` is the whole truth, over all restarts. Each kind of fault can be left out (`FAULTS`).
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from tests.support.naming import NamingServer, naming
from threadmail import RetryPolicy, Timeouts
from threadmail.testing import CapturedMessage
from threadmail.testing.proxy import Cut, Delay, Fault, FaultProxy, Hold, Plan

from .ledger import DEFERRED, REFUSED, Arrived

#: What can go wrong, and what that means here.
FAULTS = {
    "cuts": "connections reset or closed at a random byte, either way",
    "stalls": "connections that go silent at a random byte, for a while or for good",
    "421": "more connections than the server allows, and sessions it ends",
    "greylist": "recipients put off when they are first seen",
    "refusals": "recipients and contents refused, for good and for now",
    "logins": "passwords that have just expired",
    "restarts": "the server goes away, and comes back",
}

CONNECTIONS = 6  # allowed; the subjects together would like eight
USER, PASSWORD, EXPIRED = "soak", "right", "expired"
PLANS = 20_000  # more than a round can use up
LIFE = 3.0, 8.0  # seconds between two restarts
DEATH = 0.05, 0.5  # seconds that one takes


class Storm:
    """See the module. The proxy's address stays, whatever happens behind it."""

    patience = RetryPolicy(attempts=8, base=0.02, longest=1.0, total=30.0)

    def __init__(self, rng: random.Random, faults: Collection[str] = tuple(FAULTS)) -> None:
        self._rng = rng  # used on the server's thread only
        self._faults = frozenset(faults)
        self._seen: set[str] = set()
        self._arrived: list[Arrived] = []
        self._expired = threading.local()
        self._tokens = random.Random(rng.random())
        self.struck: Counter[str] = Counter()  # on the server's thread, but for restarts
        self.hit = 0
        self._restarts = 0
        self._restart_at = 0.0
        # A stall for good costs a whole timeout, so it is short; a busy machine that misses it makes one fault more.
        self.settings: Mapping[str, Any] = {"timeouts": Timeouts.all(2.0), "credentials": self._credentials}
        self._plans = [self._plan(rng) for _ in range(PLANS)]
        self.faulty = True

    def __enter__(self) -> Storm:
        self._server = self._new_server(0)
        self._server.start()
        self._proxy = FaultProxy(self._server, *self._plans)
        self._proxy.start()
        self.host, self.port = self._proxy.host, self._proxy.port
        return self

    def __exit__(self, *exc: object) -> None:
        self._proxy.close()
        self._server.close()

    def _new_server(self, port: int) -> NamingServer:
        return NamingServer(
            port=port,
            auth={USER: PASSWORD},
            max_connections=CONNECTIONS if "421" in self._faults else None,
            on_recipient=self._judge_recipient,
            on_message=self._judge_message,
        )

    def _plan(self, rng: random.Random) -> Plan:
        """For a connection: nothing, a cut or a stall, after as many bytes as any number of messages may take."""
        after = int(10 ** rng.uniform(0, 5.5))
        chance = rng.random()
        fault: Fault
        if chance < 0.35 and "cuts" in self._faults:
            fault = Cut(after, how=rng.choice(("reset", "fin")))
        elif 0.35 <= chance < 0.45 and "stalls" in self._faults:
            fault = Hold(after) if rng.random() < 0.3 else Delay(after, rng.uniform(0.05, 1.0))
        else:
            return Plan()
        return Plan(to_server=[fault]) if rng.random() < 0.5 else Plan(to_client=[fault])

    # -- what the server says, on its thread ---------------------------------------------------------------------------

    def _judge_recipient(self, recipient: str) -> str | None:
        domain = recipient.rpartition("@")[2]
        if "refusals" in self._faults and domain in (REFUSED, DEFERRED):
            code, words = {REFUSED: ("550 5.1.1", "nobody here"), DEFERRED: ("451 4.2.1", "later")}[domain]
            return naming(code, recipient, words)
        if "greylist" in self._faults and recipient not in self._seen and self._rng.random() < 0.05:
            self._seen.add(recipient)
            self.struck["recipient greylisted"] += 1
            return naming("451 4.7.1", recipient, "Greylisted, please try again")
        return None

    def _judge_message(self, message: CapturedMessage) -> str | None:
        chance = self._rng.random() if self.faulty and "refusals" in self._faults else 1.0
        return "554 5.7.1 no" if chance < 0.01 else "452 4.3.1 full" if chance < 0.03 else None

    # -- what goes wrong beside it -------------------------------------------------------------------------------------

    def _credentials(self) -> tuple[str, str]:
        """As a token that expires: asked again after a refusal, this thread gets a good one."""
        expired = getattr(self._expired, "now", False)
        self._expired.now = not expired and "logins" in self._faults and self._tokens.random() < 0.1
        return USER, EXPIRED if self._expired.now else PASSWORD

    def disturb(self, rng: random.Random) -> tuple[str, int]:
        """Restart the server, when it is time; else hang up on everybody. On one thread at a time."""
        now = time.monotonic()
        if "restarts" in self._faults and now >= (self._restart_at or now + 1):
            self._restart(rng)
            self._restart_at = time.monotonic() + rng.uniform(*LIFE)
            return "server restarted", 1
        self._restart_at = self._restart_at or now + rng.uniform(*LIFE)
        if "421" not in self._faults or rng.random() < 0.8:
            return "left alone", 0
        dropped = self._server.drop_connections("421")
        self.hit += dropped
        return "session ended with 421", dropped

    def _restart(self, rng: random.Random) -> None:
        self._keep()
        self.hit += self._server.max_simultaneous
        time.sleep(rng.uniform(*DEATH))
        self._server = self._new_server(self._server.port)
        self._server.start()

    def _keep(self) -> None:
        self._server.close()
        self._arrived += [Arrived(m.sender, m.recipients, m.content, queue_id) for m, queue_id in self._server.taken]
        self.struck["connection over the limit"] += self._server.connections_refused

    def arrived(self, at_least: int) -> list[Arrived]:
        self._proxy.close()
        self._keep()
        for passage in self._proxy.passages:
            for faults, passed in (
                (passage.plan.to_server, passage.to_server),
                (passage.plan.to_client, passage.to_client),
            ):
                for fault in faults:
                    if passed >= fault.after:
                        self.struck["connection cut" if isinstance(fault, Cut) else "connection stalled"] += 1
                        self.hit += 1
        self.struck["connection refused while the server was away"] = self._proxy.connections_refused
        return self._arrived
