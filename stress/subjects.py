"""What the soak's threads share: each subject sends, can be disturbed in its own ways, and ends.

A subject's `send` returns the fate of the message or raises a MailError; anything else it raises is a violation.
"""

from __future__ import annotations

import random
import smtplib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack
from typing import Protocol

from threadmail import (
    SMTP,
    Client,
    ClientPool,
    Closed,
    Envelope,
    MailError,
    Outcome,
    Receipt,
    ServerConfig,
    ThreadedSender,
    TimedOut,
)
from threadmail._dispatch.job import SendFuture

from .ledger import Fate, Ledger
from .servers import PATIENCE, Server

POOL = 3  # connections of the pool, lanes of the sender


class Subject(Protocol):
    name: str
    #: Whether `close` ends calls that are under way, for good.
    closes_under_work: bool
    #: Whether a callback tells of each message as well.
    announces: bool
    #: Connections at most, and so messages that closing it may leave in doubt.
    connections: int

    def send(self, envelope: Envelope, deadline: float | None, rng: random.Random) -> Fate: ...

    def disturb(self, rng: random.Random) -> str:
        """Do something rude; return what."""
        ...

    def left(self) -> dict[str, int]:
        """What there is of its callers' use, in numbers that must be 0 when nobody uses it any more."""
        ...

    def close(self) -> None: ...


def _config(server: Server, rng: random.Random) -> ServerConfig:
    return ServerConfig(
        server.host,
        server.port,
        local_hostname="soak.example.org",
        idle_timeout=0.05,
        max_age=rng.choice([None, 0.5]),
        max_messages=rng.choice([None, 7]),
        **server.settings,
    )


class SharedSMTP:
    """One guarded `SMTP`; connecting again when it was dropped is its users' business, and one step under the lock."""

    name = "smtp"
    closes_under_work = announces = False
    connections = 1

    def __init__(self, server: Server, rng: random.Random, ledger: Ledger) -> None:
        self._where = server.host, server.port
        self._ledger = ledger
        self._smtp = SMTP(local_hostname="soak.example.org", timeouts=server.settings["timeouts"])

    def send(self, envelope: Envelope, deadline: float | None, rng: random.Random) -> Fate:
        smtp = self._smtp
        self._ledger.not_begun(envelope)  # its errors have a receipt only where the dialogue had begun
        with smtp.sync_root:
            if smtp.sock is None:
                smtp.connect(*self._where)
        if rng.random() < 0.5:
            return Fate.of(smtp.transact(envelope, deadline=deadline))
        refused = smtp.sendmail(envelope.sender, envelope.recipients, envelope.content, deadline=deadline)
        return Fate.of_refused(envelope, refused)

    def disturb(self, rng: random.Random) -> str:
        self._ledger.may_doubt()
        self._smtp.abort()
        return "SMTP.abort()"

    def left(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._smtp.close()


class SharedClient:
    name = "client"
    closes_under_work = True
    announces = False
    connections = 1

    def __init__(self, server: Server, rng: random.Random, ledger: Ledger) -> None:
        self._ledger = ledger
        self._client = Client(_config(server, rng), rng=rng)
        self._closed = False

    def send(self, envelope: Envelope, deadline: float | None, rng: random.Random) -> Fate:
        return Fate.of(self._client.send(envelope, deadline=deadline))

    def disturb(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            self._ledger.may_doubt()
            self._client.abort()
            return "Client.abort()"
        self._client.close_idle()
        return "Client.close_idle()"

    def left(self) -> dict[str, int]:
        return {"connections": int(self._closed and self._client.is_connected)}

    def close(self) -> None:
        self._client.close(timeout=0.01)
        self._closed = True


class SharedPool:
    """Also by leases, some of which are given back without a connection, and aborted by a thread beside them."""

    name = "pool"
    closes_under_work = True
    announces = False
    connections = POOL

    def __init__(self, server: Server, rng: random.Random, ledger: Ledger) -> None:
        self._ledger = ledger
        self._closed = False
        self._pool = ClientPool(_config(server, rng), max_size=POOL, rng=rng)
        self._leased: deque[Client] = deque(maxlen=POOL)  # the last ones, so that aborting may come too late as well

    def send(self, envelope: Envelope, deadline: float | None, rng: random.Random) -> Fate:
        if rng.random() < 0.5:
            return Fate.of(self._pool.send(envelope, deadline=deadline))
        with ExitStack() as stack:
            try:
                client = stack.enter_context(self._pool.lease(timeout=deadline))
            except MailError:
                self._ledger.not_begun(envelope)
                raise
            self._leased.append(client)
            receipt = client.send(envelope, deadline=deadline)
            if rng.random() < 0.1:
                client.close()
            return Fate.of(receipt)

    def disturb(self, rng: random.Random) -> str:
        if rng.random() < 0.7 and self._leased:
            self._ledger.may_doubt()
            self._leased[-1].abort()
            return "abort() of a leased client"
        self._pool.close_idle()
        return "ClientPool.close_idle()"

    def left(self) -> dict[str, int]:
        stats = self._pool.stats()
        idle = stats.idle if self._closed else max(0, stats.idle - POOL)
        return {"clients leased": stats.leased, "threads waiting": stats.waiting, "clients idle": idle}

    def close(self) -> None:
        self._pool.close(timeout=0.05)
        self._closed = True


class SharedSender:
    name = "sender"
    closes_under_work = announces = True
    connections = POOL

    def __init__(self, server: Server, rng: random.Random, ledger: Ledger) -> None:
        self._ledger = ledger
        self._announced: Counter[str | None] = Counter()
        self._lock = threading.Lock()
        self._futures: deque[SendFuture] = deque(maxlen=10)
        self._drain = rng.random() < 0.5
        self._sender = ThreadedSender(
            _config(server, rng),
            workers=POOL,
            queue_size=3,
            retry=server.patience,
            on_receipt=self._announce,
            rng=rng,
        )

    def _announce(self, receipt: Receipt) -> None:
        with self._lock:
            self._announced[receipt.message_id] += 1

    def send(self, envelope: Envelope, deadline: float | None, rng: random.Random) -> Fate:
        if rng.random() < 0.5:
            try:
                return Fate.of(self._sender.send(envelope, deadline=deadline))
            except (Closed, TimedOut):
                self._ledger.turned_away(envelope)  # at the door, or later: it does not say
                raise
        try:
            future = self._sender.submit(envelope, deadline=deadline)
        except MailError:
            self._ledger.turned_away(envelope)
            raise
        self._futures.append(future)
        try:
            return Fate.of(future.result(PATIENCE / 2))
        except CancelledError:
            assert future.receipt is not None
            return Fate.of(future.receipt)

    def disturb(self, rng: random.Random) -> str:
        try:
            future = self._futures[-1]
        except IndexError:
            return ""
        if rng.random() < 0.3:
            future.cancel()
            return "cancel() of a future"
        self._ledger.may_doubt()
        self._sender.abort(future)
        return "ThreadedSender.abort()"

    def left(self) -> dict[str, int]:
        stats = self._sender.stats()
        return {"queued": stats.queued, "retrying": stats.retrying, "in flight": stats.in_flight}

    def close(self) -> None:
        self._sender.close(drain=self._drain, timeout=0.5)
        for wrong in self._ledger.unheard(self._heard):
            self._ledger.violated(wrong)

    def _heard(self) -> Mapping[str | None, int]:
        with self._lock:
            return dict(self._announced)


class RawSMTP:
    """The standard library's own client, as a control: what the others are spared."""

    name = "raw"
    closes_under_work = announces = False
    connections = 1

    def __init__(self, server: Server, rng: random.Random, ledger: Ledger) -> None:
        self._where = server.host, server.port
        self._smtp = self._connect()

    def _connect(self) -> smtplib.SMTP:
        # The timeout is what each hang costs; the server answers within milliseconds.
        return smtplib.SMTP(*self._where, local_hostname="soak.example.org", timeout=0.25)

    def send(self, envelope: Envelope, deadline: float | None, rng: random.Random) -> Fate:
        time.sleep(rng.uniform(0, 0.02))  # threads that never paused would leave it no message to get wrong in silence
        try:
            if self._smtp.sock is None:
                self._smtp = self._connect()
            refused = self._smtp.sendmail(envelope.sender, envelope.recipients, envelope.content)
        except smtplib.SMTPRecipientsRefused as error:
            return Fate(Outcome.NOT_SENT, frozenset(), frozenset(error.recipients), why=type(error).__name__)
        except Exception as error:  # noqa: BLE001 - it raises nearly everything, and is forgiven all of it
            self._smtp.close()  # as its users do: the next one connects again
            return Fate.in_doubt(type(error).__name__)
        return Fate.of_refused(envelope, refused)

    def disturb(self, rng: random.Random) -> str:
        return ""

    def left(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._smtp.close()


SUBJECTS: dict[str, Callable[[Server, random.Random, Ledger], Subject]] = {
    kind.name: kind for kind in (SharedSMTP, SharedClient, SharedPool, SharedSender, RawSMTP)
}
